"""Integer forms of averages, normalizations, resampling and joins."""

from __future__ import annotations

import numpy as np

from evort.graph import Node
from evort.ops.base import complete_attrs, find
from evort_tools.passes.edit import Edit
from evort_tools.passes.integer_forms import MICROSOFT, activation, form, fused_of, operand, target_of, triple
from evort_tools.passes.quantized import BYTES, Made, Quantized, quantized


def _sides(ed: Edit, node: Node, target: Quantized | None) -> tuple[list[str], list[str]] | None:
    """(triple of the first operand, pair of the output) where the operand is of 8 bits and nothing is fused."""
    x, out = activation(ed, node.inputs[0]), target_of(target)
    if x is None or out is None or x.dtype not in BYTES or node.attrs.get("activation"):
        return None
    return triple(x), out


def _plain(node: Node) -> dict[str, object]:
    return {k: v for k, v in node.attrs.items() if not k.startswith("activation")}


@form("AveragePool")
def _average_pool(ed: Edit, node: Node, target: Quantized | None) -> Made | None:
    found = _sides(ed, node, target)
    return None if found is None else ("QLinearAveragePool", MICROSOFT, found[0] + found[1], _plain(node))


@form("GlobalAveragePool")
def _global_average_pool(ed: Edit, node: Node, target: Quantized | None) -> Made | None:
    found = _sides(ed, node, target)
    return None if found is None else ("QLinearGlobalAveragePool", MICROSOFT, found[0] + found[1], {})


@form("ReduceMean")
def _mean(ed: Edit, node: Node, target: Quantized | None) -> Made | None:
    found, rank = _sides(ed, node, target), ed.shapes.rank(node.inputs[0])
    axes = ed.value(operand(node, 1)) if operand(node, 1) else None
    if found is None or rank is None or (operand(node, 1) and axes is None):
        return None
    if axes is None or not axes.size:
        if node.attrs.get("noop_with_empty_axes", 0):
            return None
        axes = range(rank)
    attrs = {"axes": [int(a) for a in axes], "keepdims": int(node.attrs.get("keepdims", 1))}
    return "QLinearReduceMean", MICROSOFT, found[0] + found[1], attrs


@form("Softmax")
def _softmax(ed: Edit, node: Node, target: Quantized | None) -> Made | None:
    found = _sides(ed, node, target)
    if found is None:
        return None
    return "QLinearSoftmax", MICROSOFT, found[0] + found[1], {"axis": int(node.attrs.get("axis", -1)), "opset": 13}


@form("LayerNormalization")
def _layer_normalization(ed: Edit, node: Node, target: Quantized | None) -> Made | None:
    found = _sides(ed, node, target)
    weights = [operand(node, 1), operand(node, 2)]
    if found is None or ed.real(weights[0]) is None or (weights[1] and ed.real(weights[1]) is None):
        return None
    attrs = {k: v for k, v in _plain(node).items() if k in ("axis", "epsilon")}
    return "QLinearLayerNormalization", "evort", [*found[0], *weights, *found[1]], attrs


@form("InstanceNormalization")
def _instance_normalization(ed: Edit, node: Node, target: Quantized | None) -> Made | None:
    """Of float32, as its moments need more than 8 bits; only the result is of bytes."""
    constant = all(ed.real(name) is not None for name in node.inputs[1:])
    if target is None or target.axis is not None or target.dtype not in BYTES or not constant:
        return None
    return "QLinearInstanceNormalization", "evort", [*node.inputs[:3], target.scale, target.zero], node.attrs


@form("BatchNormalization")
def _batch_normalization(ed: Edit, node: Node, target: Quantized | None) -> Made | None:
    """A depthwise convolution of single pixels, of 127 or -127 times a scale for each channel."""
    x, out, fused = activation(ed, node.inputs[0]), target_of(target), fused_of(node)
    rank = ed.shapes.rank(node.inputs[0])
    values = [ed.real(name) for name in node.inputs[1:5]]
    plain = not node.attrs.get("training_mode", 0) and all(v is not None for v in values)
    if x is None or target is None or out is None or fused is None or rank is None or rank < 3 or not plain:
        return None
    scale, shift, mean, variance = (v.astype(np.float64) for v in values)
    factor = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    offset = shift - mean * factor
    x_scale = float(x.scales(ed)[0])
    # A channel's sums must hold what is added to all numbers, also where that is most of it.
    unit = np.maximum(np.abs(factor) / 127, np.abs(offset) / (x_scale * 2**24))
    unit = np.where(unit > 0, unit, 1).astype(np.float32)
    if not np.isfinite(unit).all() or not (np.float32(x_scale) * unit > 0).all():
        return None
    bias = np.rint(offset / (np.float64(x_scale) * unit))
    w = np.rint(factor / unit).astype(np.int8).reshape(-1, *(1,) * (rank - 1))
    made = [ed.constant(v, f"{node.outputs[0]}/{what}") for what, v in (
        ("weights", w), ("unit", unit), ("zero", np.int8(0)), ("bias", bias.astype(np.int32)))]  # fmt: skip
    return "QLinearConv", "", [*triple(x), *made[:3], *out, made[3]], {**fused, "group": w.shape[0]}


@form("Resize")
def _resize(ed: Edit, node: Node, target: Quantized | None) -> Made | None:
    found = _sides(ed, node, target)
    attrs = complete_attrs(find("Resize"), node)
    if found is None or attrs["mode"] not in ("linear", "cubic"):
        return None
    if attrs["coordinate_transformation_mode"] == "tf_crop_and_resize":
        return None
    given = {k: v for k, v in node.attrs.items() if k != "mode" or v != "linear"}
    return "QLinearResize", "evort", [*found[0], *found[1], *node.inputs[1:]], given


@form("Concat")
def _concat(ed: Edit, node: Node, target: Quantized | None) -> Made | None:
    """Operands of several scales; those of one are moved as they are."""
    parts, out = [activation(ed, name) for name in node.inputs], target_of(target)
    if target is None or out is None or any(p is None or p.dtype not in BYTES for p in parts):
        return None
    return "QLinearConcat", MICROSOFT, [*out, *(name for p in parts for name in triple(p))], node.attrs


@form("Where")
def _where(ed: Edit, node: Node, target: Quantized | None) -> Made | None:
    a, b = (activation(ed, name) for name in node.inputs[1:3])
    out = target_of(target)
    if target is None or out is None or any(q is None or q.dtype not in BYTES for q in (a, b)):
        return None
    return "QLinearWhere", MICROSOFT, [node.inputs[0], *triple(a), *triple(b), *out], {}


@form("tri_forward", domain="cus_ops")
def _tri_forward(ed: Edit, node: Node, target: Quantized | None) -> Made | None:
    """With a table or an image in integers, or both."""
    table, image, out = quantized(ed, node.inputs[0]), activation(ed, node.inputs[1]), target_of(target)
    if (
        out is None
        or (target is not None and target.dtype not in BYTES)
        or (table is not None and table.axis is not None)
    ):
        return None
    table, image = (q if q is not None and q.dtype in BYTES else None for q in (table, image))
    if table is None and image is None:
        return None
    sides = [node.inputs[0], "", ""] if table is None else triple(table)
    sides += [node.inputs[1], "", ""] if image is None else triple(image)
    return "QLinearTriForward", "evort", [*sides, node.inputs[5], *out], {}
