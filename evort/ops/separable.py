"""A depthwise convolution together with the pointwise ones around it, which the planner makes of the three.

Inverted residuals (Sandler et al., MobileNetV2, arXiv:1801.04381) widen an image, filter each channel and narrow the
result: what lies between is several times as large as what goes in and out, and is made strip by strip, not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from evort.graph import Node
from evort.ops.activation import ACTIVATIONS, activation_ints_reals, activation_params
from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.ops.conv import Conv, conv_shapes
from evort.types import FLOATS, DType, Spec

_CONV = Conv()
_PARTS = ("expand", "depthwise", "project")
_GEOMETRY = ("auto_pad", "dilations", "pads", "strides")  # attributes of the depthwise convolution


@op("SeparableConv", domain="evort")
class SeparableConv(Op):
    """Y = project(depthwise(expand(X))) + Z: a depthwise convolution and the pointwise ones (1x1, stride 1) before and
    after it, of which one may be absent. X [N, C, H, W], Z and Y [N, M, H', W'], weights and biases as Conv's.
    activations, alphas and betas have an item for each of the three. The planner makes it of Conv, see `join`."""

    inputs = ("X", "expand W?", "expand B?", "depthwise W", "depthwise B?", "project W?", "project B?", "Z?")
    outputs = ("Y",)
    dtypes = dict.fromkeys((name.strip("?") for name in inputs), FLOATS)
    attrs = {
        **{key: Conv.attrs[key] for key in _GEOMETRY},
        "activations": Attr("strs", ["", "", ""]),
        "alphas": Attr("floats", [0.0, 0.0, 0.0]),
        "betas": Attr("floats", [0.0, 0.0, 0.0]),
    }
    inplace = ((0, 7),)

    def parts(self, c: Call) -> list[Call | None]:
        """The three convolutions as nodes of their own, with shapes; None for one that is absent."""
        if c.memo is not None:
            return c.memo
        if not len(c["activations"]) == len(c["alphas"]) == len(c["betas"]) == len(_PARTS):
            raise c.error("activations, alphas and betas have three items each")
        found: list[Call | None] = []
        x = c.ins[0]
        for i, name in enumerate(_PARTS):
            if not c.has(2 * i + 1):
                found.append(None)
                continue
            ins = [x, *(c.ins[j] if c.has(j) else None for j in (2 * i + 1, 2 * i + 2))]
            if i == 2 and c.has(7):
                ins.append(c.ins[7])
            attrs = {key: attr.default for key, attr in Conv.attrs.items()} | {"activation": c["activations"][i]}
            known = ACTIVATIONS.get(attrs["activation"])
            for key in ("alpha", "beta")[: len(known.params) if known else 0]:
                attrs[f"activation_{key}"] = c[f"{key}s"][i]
            if i == 1:
                attrs |= {key: c[key] for key in _GEOMETRY} | {"group": x.shape[1]}
            node = Node("Conv", ["x", "w", "b", "z"][: len(ins)], ["y"], {}, "", f"{c.node.name}/{name}")
            found.append(Call(node, attrs, ins, c.threads))
            found[-1].outs = _CONV.infer(found[-1])
            x = found[-1].outs[0]
        c.memo = found
        return found

    def infer(self, c: Call) -> list[Spec]:
        return [part for part in self.parts(c) if part is not None][-1].outs

    def reference(self, c: Call, x: np.ndarray, *operands: np.ndarray | None) -> np.ndarray:
        for i, part in enumerate(self.parts(c)):
            if part is not None:
                some = (*operands[2 * i : 2 * i + 2], *(operands[6:7] if i == 2 else ()))
                x = _CONV.reference(part, x, *some)
        return x

    def bind(self, c: Call) -> Kernel | None:
        found = _ints_reals(self.parts(c))
        if found is None:
            return None
        from evort._kernels import conv

        scratch = conv.separable_scratch(found[0], c.threads)
        return Kernel("conv.separable_f32", *found, scratch) if scratch else None

    def macs(self, c: Call) -> int:
        return sum(_CONV.macs(part) for part in self.parts(c) if part is not None)


def _ints_reals(parts: Sequence[Call | None]) -> tuple[tuple[int, ...], tuple[float, ...]] | None:
    """What the driver gets of the three convolutions; None where it does not take them."""
    there = [part for part in parts if part is not None]
    x, y, expand, depthwise, project = there[0].ins[0], there[-1].outs[0], *parts
    window = conv_shapes(depthwise, *depthwise.ins[:2])[0]
    place, channels = window.ints(), depthwise.ins[0].shape[1]
    dense = all(s is None or (s.dtype == DType.FLOAT and s.sparse is None) for part in there for s in part.ins)
    pointwise = all(_part_of(part) == 0 for part in (expand, project) if part is not None)
    flat = bool(place) and place[0] == place[3] == place[6] == 1
    if len(there) < 2 or not dense or not pointwise or not flat or depthwise.ins[1].shape[0] != channels:
        return None
    found = [((0,), (0.0, 0.0)) if part is None else activation_ints_reals(part) for part in parts]
    sizes = (x.shape[0], x.shape[1], channels, y.shape[1], int(expand is not None), int(project is not None))
    return (*sizes, *(ints[0] for ints, _ in found), *place), tuple(chain.from_iterable(reals for _, reals in found))


def _part_of(c: Call) -> int | None:
    """Which part a convolution can be: 1 the depthwise one, 0 either of the pointwise ones; None for no part."""
    x, w = c.ins[0], c.ins[1]
    if len(x.shape) != 4 or c.has(4):
        return None
    if c["group"] == x.shape[1] == w.shape[0] > 1:
        return 1 if not c.has(3) else None
    window = conv_shapes(c, x, w)[0]
    return 0 if c["group"] == 1 and set(window.kernel) == {1} and window.image == window.out else None


def join(calls: Sequence[Call]) -> tuple[int, Node] | None:
    """For Conv's `Op.join`: how many of the last of a chain of convolutions SeparableConv does better, and its node."""
    kinds = [_part_of(c) for c in calls]
    for parts, kind in (([0, 1, 2], [0, 1, 0]), ([1, 2], [1, 0]), ([0, 1], [0, 1])):
        some = calls[-len(parts) :]
        if kinds[-len(parts) :] != kind or any(c.has(3) for c in some[:-1]) or (parts[-1] == 1 and some[-1].has(3)):
            continue
        three: list[Call | None] = [None, None, None]
        for i, c in zip(parts, some, strict=True):
            three[i] = c
        found = _ints_reals(three)
        if found is None:
            continue
        from evort._kernels import conv

        if conv.separable_pays(found[0]):
            return len(parts), _node(three)
    return None


def _node(parts: Sequence[Call | None]) -> Node:
    last = [part for part in parts if part is not None][-1].node
    inputs = [next(part for part in parts if part is not None).node.inputs[0]]
    params = []
    for part in parts:
        names = [] if part is None else part.node.inputs[1:3]
        inputs += [*names, *[""] * (2 - len(names))]
        params.append((0.0, 0.0) if part is None else activation_params(part))
    if parts[2] is not None and parts[2].has(3):
        inputs.append(parts[2].node.inputs[3])
    while not inputs[-1]:
        inputs.pop()
    attrs = {key: parts[1][key] for key in _GEOMETRY if parts[1][key] is not None}
    attrs["activations"] = ["" if part is None else part["activation"] for part in parts]
    attrs["alphas"], attrs["betas"] = map(list, zip(*params, strict=True))
    return Node("SeparableConv", inputs, last.outputs, attrs, "evort", last.name)
