"""Folds BatchNormalization, and Mul, Div, Add, Sub with constants, into the weights before or after them.

After Conv, ConvTranspose, Gemm, MatMul:   s * (W x + b) + t  ->  (s W) x + (s b + t)
Before them:                               W (s x + t) + b    ->  (W s) x + (b + W t)

A shift does not go past a convolution's zero padding, but a scale does: s x + t = s (x + t / s).
"""

from __future__ import annotations

import numpy as np

from evort.graph import Graph, Node
from evort_tools.passes.edit import Context, Edit
from evort_tools.passes.linear import (
    PRODUCTS,
    bias,
    channels,
    input_channels,
    output_vector,
    per_channel,
    product_of,
    replace,
    scaled_inputs,
    scaled_outputs,
    weights,
)

_ARITHMETIC = ("Add", "Sub", "Mul", "Div")


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    changes = 0
    for node in ed.nodes():
        if node.op == "BatchNormalization" or (node.op in _ARITHMETIC and not node.attrs):
            changes += _after(ed, node)
        elif node.op in PRODUCTS:
            while _before(ed, node):
                changes += 1
    return changes


def _after(ed: Edit, node: Node) -> bool:
    at, affine = 0, None
    for at, x in enumerate(node.inputs[:1] if node.op == "BatchNormalization" else node.inputs[:2]):
        source = product_of(ed, x)
        if source is not None:
            affine = _batch_norm(ed, node, source) if node.op == "BatchNormalization" else _affine(ed, node, at, source)
            if affine is not None:
                break
    if affine is None:
        return False
    scale, shift = affine
    before = bias(ed, source)
    w = None
    if before is None:
        return False
    if scale is not None:
        w = weights(ed, source)
        if w is None or not np.isfinite(scale).all():
            return False
        w = scaled_outputs(source, w, scale)
        before = before * scale
    if shift is not None:
        before = before + shift
    keep = shift is None and not (len(source.inputs) > 2 and source.inputs[2])
    if not replace(ed, source, w, None if keep else before):
        return False
    return ed.bypass(node, node.inputs[at])


Affine = tuple[np.ndarray | None, np.ndarray | None]


def _affine(ed: Edit, node: Node, at: int, source: Node) -> Affine | None:
    """Scale and shift for each channel of input `at`, None for one that there is not."""
    number = output_vector(ed, source, node.inputs[1 - at])
    return None if number is None else _as_affine(node.op, at, number)


def _as_affine(op: str, at: int, number: np.ndarray) -> Affine | None:
    if op == "Add":
        return None, number
    if op == "Mul":
        return number, None
    if op == "Sub":
        return (None, -number) if at == 0 else (-np.ones_like(number), number)
    if at == 0 and number.all():
        return 1 / number, None
    return None


def _batch_norm(ed: Edit, node: Node, source: Node) -> Affine | None:
    count = channels(ed, source)
    values = [ed.real(name) for name in node.inputs[1:5]]
    if any(v is None or v.shape != (count,) for v in values) or node.attrs.get("training_mode", 0):
        return None
    if source.op not in ("Conv", "ConvTranspose") and ed.shapes.rank(node.inputs[0]) != 2:
        return None
    scale, shift, mean, variance = (v.astype(np.float64) for v in values)
    factor = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    return factor, shift - mean * factor


# Before


def _before(ed: Edit, node: Node) -> bool:
    """Folds what computes the first input of a product; once."""
    w = weights(ed, node)
    if w is None or node.attrs.get("transA", 0):
        return False
    x = node.inputs[0]
    found = _input_affine(ed, node, x, w)
    if found is None:
        return False
    source, inner, (scale, shift) = found
    if scale is not None:
        if not np.isfinite(scale).all() or not replace(ed, node, scaled_inputs(node, w, scale)):
            return False
        ed.set_input(node, 0, inner)
        return True
    if not _padded(node):
        before = bias(ed, node)
        if before is None or not replace(ed, node, None, before + _response(node, w, shift)):
            return False
        ed.set_input(node, 0, inner)
        return True
    # A shift stays; a scale before it moves on.
    first = _input_affine(ed, node, inner, w)
    if first is None or first[2][0] is None or not first[2][0].all():
        return False
    scale = first[2][0]
    with np.errstate(over="ignore"):
        moved = (shift / scale).astype(ed.value(node.inputs[1]).dtype)
    if not np.isfinite(moved).all() or not replace(ed, node, scaled_inputs(node, w, scale)):
        return False
    rank = w.ndim if node.op in ("Conv", "ConvTranspose") else 1
    same = bool((moved == moved[0]).all())
    value = moved[0].reshape(()) if same else moved.reshape(-1, *(1,) * (rank - 2)) if rank > 1 else moved
    ed.change(source, "Add", [first[1], ed.constant(value, f"{source.outputs[0]}/shift", ed.shapes.dtype(x))])
    return True


def _input_affine(ed: Edit, node: Node, x: str, w: np.ndarray) -> tuple[Node, str, Affine] | None:
    """(node, its variable input, scale and shift for each input channel) of what computes x."""
    source = ed.producer(x, *_ARITHMETIC)
    if source is None or source.attrs or not ed.single(x) or not ed.is_real(x):
        return None
    convolution = node.op in ("Conv", "ConvTranspose")
    rank = w.ndim if convolution else ed.shapes.rank(x)
    for at, name in enumerate(source.inputs):
        value = ed.real(source.inputs[1 - at])
        if value is None or not ed.shapes.same_shape(name, x):
            continue
        number = per_channel(value, input_channels(ed, node, w), 1 if convolution else -1, rank)
        affine = None if number is None else _as_affine(source.op, at, number)
        if affine is not None and (affine[0] is None or affine[1] is None):
            return source, name, affine
    return None


def _padded(node: Node) -> bool:
    """Whether zeros are added around the input; for ConvTranspose a shift is not constant at its output's border."""
    if node.op not in ("Conv", "ConvTranspose"):
        return False
    auto = node.attrs.get("auto_pad", "NOTSET")
    return (
        node.op == "ConvTranspose"
        or auto not in ("NOTSET", "VALID")
        or (auto == "NOTSET" and any(node.attrs.get("pads") or ()))
    )


def _response(node: Node, w: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """What a shift of each input channel adds to each output channel."""
    total = scaled_inputs(node, w, shift)
    if node.op == "Conv":
        return total.reshape(total.shape[0], -1).sum(1)
    alpha = node.attrs.get("alpha", 1.0) if node.op == "Gemm" else 1.0
    return alpha * total.sum(1 if node.op == "Gemm" and node.attrs.get("transB", 0) else 0)
