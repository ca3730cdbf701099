"""Rewriting of normalizations, the Softmax family and Resize, whose older forms mean something else; and of
DequantizeLinear, of which there are files that mean something else than they say."""

from __future__ import annotations

import numpy as np

from evort_tools.importer.builder import Builder
from evort_tools.importer.canonical import rewrite


@rewrite("Softmax", "LogSoftmax", "Hardmax", before=13)
def softmax_coerced(b: Builder) -> None:
    """Up to opset 12 the input is seen as a matrix: the axes before `axis` make its rows, the others its columns.

    That is today's meaning where all axes after `axis` have length 1; else a matrix is made, and unmade.
    """
    x, axis = b.input(0), b.node.attrs.get("axis", 1)
    dims = b.dims(x)
    if dims is not None:
        if not -len(dims) <= axis <= len(dims):
            raise b.refuse(f"axis {axis} is outside a tensor of rank {len(dims)}")
        axis = axis + len(dims) if axis < 0 else axis
        if axis < len(dims) and all(d == 1 for d in dims[axis + 1 :]):
            b.finish(b.node.op, [x], {"axis": axis})
            return
    elif axis == -1:
        b.finish(b.node.op, [x], {"axis": -1})
        return
    matrix = b.emit("Flatten", [x], {"axis": axis})
    rows = b.emit(b.node.op, [matrix], {"axis": -1})
    b.finish("Reshape", [rows, b.emit("Shape", [x])], {"allowzero": 1})


@rewrite("BatchNormalization", before=14)
def batch_normalization(b: Builder) -> None:
    """`spatial=0` (to opset 8) has statistics for each element; the outputs beyond Y came of training."""
    node = b.node
    if any(node.outputs[1:]):
        raise b.refuse(f"its training outputs {[o for o in node.outputs[1:] if o]} are read")
    attrs = {k: v for k, v in node.attrs.items() if k != "spatial"}
    if node.attrs.get("spatial", 1):
        b.emit("BatchNormalization", node.inputs, attrs, node.outputs[:1])
        return
    x, scale, bias, mean, variance = node.inputs
    epsilon = b.like(attrs.get("epsilon", 1e-5), x, "epsilon")
    deviation = b.emit("Sqrt", [b.emit("Add", [variance, epsilon])])
    normalized = b.emit("Div", [b.emit("Sub", [x, mean]), deviation])
    b.emit("Add", [b.emit("Mul", [normalized, scale]), bias], None, node.outputs[:1])


@rewrite("GroupNormalization", before=21)
def group_normalization(b: Builder) -> None:
    """Opset 18 has one scale and bias for each group, 21 one for each channel."""
    x = b.input(0)
    groups = b.node.attrs.get("num_groups")
    if not groups:
        raise b.refuse("attribute 'num_groups' is required")
    channels = b.emit("Shape", [x], {"start": 1, "end": 2})
    each = b.emit("Concat", [b.ints([1]), b.emit("Div", [channels, b.ints([groups])])], {"axis": 0})
    wide = []
    for index in (1, 2):
        column = b.emit("Reshape", [b.input(index), b.ints([-1, 1])])
        wide.append(b.emit("Reshape", [b.emit("Tile", [column, each]), b.ints([-1])]))
    b.finish("GroupNormalization", [x, *wide], b.node.attrs)


# Resize


def _resize(b: Builder, scales: str, nearest: str) -> None:
    attrs = {"mode": b.node.attrs.get("mode", "nearest"), "coordinate_transformation_mode": "asymmetric"}
    if attrs["mode"] == "bilinear":
        attrs["mode"] = "linear"
    if attrs["mode"] == "nearest":
        attrs["nearest_mode"] = nearest
    b.finish("Resize", [b.input(0), "", scales], attrs)


@rewrite("Upsample", before=9)
def upsample_attribute(b: Builder) -> None:
    if "scales" not in b.node.attrs:
        raise b.refuse("attribute 'scales' is required")
    _resize(b, b.constant(np.array(b.node.attrs["scales"], np.float32), hint="scales"), "floor")


@rewrite("Upsample", before=99)
def upsample(b: Builder) -> None:
    _resize(b, b.input(1), "floor")


@rewrite("Resize", before=11)
def resize_10(b: Builder) -> None:
    """Opset 10 maps coordinates by x / scale and takes the pixel before where it enlarges, the one after where it
    shrinks. A nearest Resize whose scales do both, or are not known, is one that enlarges and one that shrinks."""
    if b.node.attrs.get("mode", "nearest") != "nearest":
        _resize(b, b.input(1), "floor")
        return
    scales = b.value(b.input(1))
    if scales is not None and (scales >= 1).all():
        _resize(b, b.input(1), "floor")
        return
    if scales is not None and (scales <= 1).all():
        _resize(b, b.input(1), "ceil")
        return
    one = b.constant(np.ones(1, np.float32), hint="one")
    attrs = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
    larger = b.emit("Resize", [b.input(0), "", b.emit("Max", [b.input(1), one])], {**attrs, "nearest_mode": "floor"})
    b.finish("Resize", [larger, "", b.emit("Min", [b.input(1), one])], {**attrs, "nearest_mode": "ceil"})


# With (x + 0.5) / scale = half_pixel + 0.5, the rounding of tf_half_pixel_for_nn moves by one half.
_HALF_PIXEL_FOR_NN = {"floor": "round_prefer_ceil", "round_prefer_floor": "ceil"}


@rewrite("Resize", before=13)
def resize_11(b: Builder) -> None:
    """Empty tensors stand for absent inputs; a coordinate mode is gone since."""
    attrs = dict(b.node.attrs)
    if attrs.get("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        rounding = attrs.get("nearest_mode", "round_prefer_floor")
        if attrs.get("mode", "nearest") != "nearest" or rounding not in _HALF_PIXEL_FOR_NN:
            raise b.refuse(f"tf_half_pixel_for_nn with mode {attrs.get('mode', 'nearest')} and {rounding}")
        attrs["coordinate_transformation_mode"] = "half_pixel"
        attrs["nearest_mode"] = _HALF_PIXEL_FOR_NN[rounding]
    b.finish("Resize", _present(b), attrs)


@rewrite("Resize", before=99)
def resize(b: Builder) -> None:
    b.finish("Resize", _present(b), b.node.attrs)


def _present(b: Builder) -> list[str]:
    """The inputs of Resize, with "" for those that are empty tensors; exporters write such at every opset."""
    found = [b.input(0)]
    for index in (1, 2, 3):
        dims = b.dims(b.input(index)) if b.input(index) else None
        found.append("" if dims == (0,) else b.input(index))
    return found


@rewrite("DequantizeLinear", before=99)
def dequantize_linear(b: Builder) -> None:
    """onnxruntime's quantizer gives a bias [1, N] of a Gemm N scales along axis 0. No runtime takes the node as it is;
    onnxruntime never looks at it, since it makes an integer operator of the product before."""
    attrs = dict(b.node.attrs)
    dims, scales, axis = b.dims(b.input(0)), b.dims(b.input(1)), attrs.get("axis", 1)
    if dims and scales and len(scales) == 1 and scales != (1,) and -len(dims) <= axis < len(dims):
        fits = [i for i, d in enumerate(dims) if d == scales[0]]
        if len(fits) == 1 and dims[axis] == 1 and all(d == 1 for i, d in enumerate(dims) if i not in fits):
            attrs["axis"] = fits[0]
    b.finish("DequantizeLinear", b.node.inputs, attrs)
