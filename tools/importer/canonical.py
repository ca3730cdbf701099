"""Rewriting of operators to their newest form: the table, and the rules that are short.

A rule takes a node in the form of an opset below its `before` and emits nodes in the newest form (opset 28). An
operator without a rule for an opset has the same attributes and inputs there as now, or fewer, with defaults that mean
what it meant; `tests/tools/test_canonical.py` compares every version of every operator's schema to hold that true.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evort.graph import Node
from evort.types import DType
from evort_tools.importer.builder import Builder

Rule = Callable[[Builder], None]

# By (domain, operator): (the first opset that the rule is not for, the rule), in ascending order.
RULES: dict[tuple[str, str], list[tuple[int, Rule]]] = {}


def rewrite(*names: str, before: int, domain: str = "") -> Callable[[Rule], Rule]:
    """Registers a rule for operators in opsets below `before`."""

    def decorate(rule: Rule) -> Rule:
        for name in names:
            rules = RULES.setdefault((domain, name), [])
            rules.append((before, rule))
            rules.sort(key=lambda entry: entry[0])
        return rule

    return decorate


def rule_for(domain: str, op: str, opset: int) -> Rule | None:
    """The rule for an operator in an opset, or None where that form is the newest."""
    return next((rule for before, rule in RULES.get((domain, op), ()) if opset < before), None)


def _rest(node: Node, *names: str) -> dict[str, object]:
    """A node's attributes without those named."""
    return {key: value for key, value in node.attrs.items() if key not in names}


# Attributes that became inputs.


@rewrite("Squeeze", "Unsqueeze", before=13)
def axes_to_input(b: Builder) -> None:
    b.finish(b.node.op, [b.input(0), b.ints(b.node.attrs.get("axes"), "axes")], _rest(b.node, "axes"))


@rewrite("ReduceSum", before=13)
@rewrite("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
         "ReduceProd", "ReduceSumSquare", before=18)  # fmt: skip
def reduce_axes(b: Builder) -> None:
    """No axes, or an empty list of them, means all, then and now (noop_with_empty_axes is 0)."""
    axes = b.node.attrs.get("axes") or None
    b.finish(b.node.op, [b.input(0), b.ints(axes, "axes")], _rest(b.node, "axes"))


@rewrite("Slice", before=10)
def slice_attributes(b: Builder) -> None:
    attrs = b.node.attrs
    if "starts" not in attrs or "ends" not in attrs:
        raise b.refuse("attributes 'starts' and 'ends' are required")
    inputs = [b.ints(attrs[key], key) for key in ("starts", "ends")]
    b.finish("Slice", [b.input(0), *inputs, b.ints(attrs.get("axes"), "axes")])


@rewrite("Split", before=13)
def split_attribute(b: Builder) -> None:
    split = b.node.attrs.get("split")
    attrs = _rest(b.node, "split")
    if split is None:
        attrs["num_outputs"] = len(b.node.outputs)
    b.finish("Split", [b.input(0), b.ints(split, "split")], attrs)


@rewrite("Split", before=18)
def split_number(b: Builder) -> None:
    attrs = dict(b.node.attrs)
    if not b.input(1):
        attrs["num_outputs"] = len(b.node.outputs)
    b.finish("Split", b.node.inputs, attrs)


@rewrite("Pad", before=11)
def pad_attributes(b: Builder) -> None:
    attrs = b.node.attrs
    if "pads" not in attrs:
        raise b.refuse("attribute 'pads' is required")
    value = attrs.get("value", 0.0)
    fill = b.like(value, b.input(0), "value") if value else ""
    b.finish("Pad", [b.input(0), b.ints(attrs["pads"], "pads"), fill], _rest(b.node, "pads", "value"))


@rewrite("Clip", before=11)
def clip_attributes(b: Builder) -> None:
    """The defaults were the largest and smallest finite float32, which no operator's finite result exceeds; an absent
    bound says the same."""
    bounds = [b.node.attrs.get(key) for key in ("min", "max")]
    limits = (float(np.finfo(np.float32).min), float(np.finfo(np.float32).max))
    inputs = ["" if v is None or v == limit else b.like(v, b.input(0), key)
              for key, v, limit in zip(("min", "max"), bounds, limits, strict=True)]  # fmt: skip
    b.finish("Clip", [b.input(0), *inputs])


@rewrite("TopK", before=10)
def topk_attribute(b: Builder) -> None:
    if "k" not in b.node.attrs:
        raise b.refuse("attribute 'k' is required")
    b.finish("TopK", [b.input(0), b.ints([b.node.attrs["k"]], "k")], _rest(b.node, "k"))


@rewrite("Dropout", before=12)
def dropout_ratio(b: Builder) -> None:
    """Inference leaves the data alone; the mask is all true (of the data's type before opset 10)."""
    ratio = b.constant(np.array(b.node.attrs.get("ratio", 0.5), np.float32), hint="ratio")
    if b.opset >= 10 or not b.wants(1):
        b.finish("Dropout", [b.input(0), ratio])
        return
    mask = b.names.fresh(f"{b.node.outputs[1]}/bool")
    b.emit("Dropout", [b.input(0), ratio], None, [b.node.outputs[0] or b.names.fresh("dropout"), mask])
    b.emit("CastLike", [mask, b.input(0)], None, [b.node.outputs[1]])


@rewrite("DFT", before=20)
def dft_axis(b: Builder) -> None:
    axis = b.constant(np.array(b.node.attrs.get("axis", 1), np.int64), hint="axis")
    b.finish("DFT", [b.input(0), b.input(1), axis], _rest(b.node, "axis"))


# Operators that were renamed, and attribute values that were.


@rewrite("Scatter", before=99)
def scatter(b: Builder) -> None:
    b.finish("ScatterElements", b.node.inputs, b.node.attrs)


@rewrite("GridSample", before=20)
def grid_sample_mode(b: Builder) -> None:
    attrs = dict(b.node.attrs)
    mode = attrs.get("mode", "bilinear")
    attrs["mode"] = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    b.finish("GridSample", b.node.inputs, attrs)


@rewrite("RoiAlign", before=16)
def roi_align_mode(b: Builder) -> None:
    attrs = {**b.node.attrs, "coordinate_transformation_mode": "output_half_pixel"}
    b.finish("RoiAlign", b.node.inputs, attrs)


@rewrite("LabelEncoder", before=2, domain="ai.onnx.ml")
def label_encoder_classes(b: Builder) -> None:
    """Version 1 maps both ways between strings and their places in a list; the input's type tells which."""
    classes = list(b.node.attrs.get("classes_strings", []))
    places = list(range(len(classes)))
    if b.dtype(b.input(0)) == DType.STRING:
        attrs = {"keys_strings": classes, "values_int64s": places,
                 "default_int64": b.node.attrs.get("default_int64", -1)}  # fmt: skip
    else:
        attrs = {"keys_int64s": places, "values_strings": classes,
                 "default_string": b.node.attrs.get("default_string", "_Unused")}  # fmt: skip
    b.emit("LabelEncoder", b.node.inputs, attrs, b.node.outputs, "ai.onnx.ml")


from evort_tools.importer import canonical_control, canonical_nn  # noqa: E402, F401  (they register their rules)
