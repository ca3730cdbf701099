"""Linear quantization: QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear.

A scale (and zero point) holds for a whole tensor, for one index of an axis, or for a block of `block_size` items along
an axis; see `_granularity`.
"""

from __future__ import annotations

import numpy as np

from evort.ops.base import Attr, Call, Kernel, Op, element_type, op
from evort.ops.broadcast import MAX_LOOPS, loops
from evort.types import FLOAT8, RANGES, STORAGE, DType, Spec

_D = DType
_WIDE = frozenset({_D.FLOAT, _D.FLOAT16, _D.BFLOAT16, _D.INT32})
_SCALES = _WIDE | {_D.FLOAT8E8M0}
# Operators that move elements of their first input, or pick the largest, and compute nothing: integers stay the same.
MOVES = frozenset({
    "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "GlobalMaxPool", "Identity", "MaxPool",
    "ReduceMax", "ReduceMin", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
_FLOAT8 = FLOAT8 - {_D.FLOAT8E8M0}
_QUANTIZED = frozenset(RANGES) | _FLOAT8 | {_D.FLOAT4E2M1}


def _held(dtype: DType) -> DType:
    """The type of the same storage that the kernels know."""
    return dtype if dtype == _D.INT32 else _D(_BY_STORAGE[STORAGE[dtype].name])


_BY_STORAGE = {"uint8": _D.UINT8, "int8": _D.INT8, "uint16": _D.UINT16, "int16": _D.INT16}


def _granularity(c: Call) -> tuple[tuple[int, ...], tuple[int, ...], int | None]:
    """(shape of x with a blocked axis split in two, shape of the scale that broadcasts to it, the axis).

    The axis is None per tensor. Where a last block is cut short, x's shape is returned unsplit, and so the scale's does
    not broadcast to it. Raises ShapeError for shapes that do not fit.
    """
    x, scale = c.ins[0].shape, c.ins[1].shape
    block = c["block_size"]
    if block < 0:
        raise c.error(f"block_size must not be negative, as {block} is")
    if c.ins[1].size == 1 and len(scale) <= 1 and (not c.has(2) or c.ins[2].size == 1):
        return x, (), None
    if c.has(2) and c.ins[2].shape != scale:
        raise c.error("scale and zero point must have one shape")
    axis = c.axis(c["axis"], len(x))
    if not block:
        if scale != x[axis : axis + 1]:
            raise c.error(f"a scale of shape {list(scale)} is not one for each index of axis {axis}")
        return x, (*(1 for _ in x[:axis]), *scale, *(1 for _ in x[axis + 1 :])), axis
    if scale != (*x[:axis], -(-x[axis] // block), *x[axis + 1 :]):
        raise c.error(f"a scale of shape {list(scale)} is not one for each block of {block} along axis {axis}")
    if x[axis] % block:
        return x, scale, axis
    split = (*x[:axis], x[axis] // block, block, *x[axis + 1 :])
    return split, (*scale[: axis + 1], 1, *scale[axis + 1 :]), axis


def _spread(c: Call, values: np.ndarray) -> np.ndarray:
    """Scales or zero points in a shape that broadcasts to x."""
    x = c.ins[0].shape
    _, shape, axis = _granularity(c)
    if axis is None or not c["block_size"]:
        return values.reshape(shape)
    return np.repeat(values, c["block_size"], axis)[tuple(slice(d) for d in x)]


def _walk(c: Call) -> tuple[int, ...] | None:
    """The drivers' loops over x, scale and zero point, or None where they cannot walk them."""
    x, scale, axis = _granularity(c)
    if axis is not None and c["block_size"] and x == c.ins[0].shape and x != scale:
        return None  # the last block is cut short
    walk = loops(x, [x, scale, scale] if c.has(2) else [x, scale])
    return walk if walk[0] <= MAX_LOOPS else None


def _rounded(values: np.ndarray, dtype: DType) -> np.ndarray:
    """float32 values with the precision of a float type."""
    from evort.ops import lowp

    if dtype == _D.FLOAT16:
        return values.astype(np.float16)
    return lowp.widen(lowp.narrow(values, dtype), dtype) if dtype == _D.BFLOAT16 else values


@op("QuantizeLinear", since=28)
class QuantizeLinear(Op):
    """y = saturate(round(x / y_scale) + y_zero_point), rounding to nearest even; float8 and float4 round by
    themselves. NaN becomes the smallest integer."""

    inputs, outputs = ("x", "y_scale", "y_zero_point?"), ("y",)
    dtypes = {"x": _WIDE, "y_scale": _SCALES, "y_zero_point": _QUANTIZED}
    attrs = {
        "axis": Attr("int", 1),
        "saturate": Attr("int", 1),
        "block_size": Attr("int", 0),
        "output_dtype": Attr("int", 0),
        "precision": Attr("int", 0),
    }

    def infer(self, c: Call) -> list[Spec]:
        _granularity(c)
        wanted = element_type(c, c["output_dtype"]) if c["output_dtype"] else None
        dtype = c.ins[2].dtype if c.has(2) else wanted or _D.UINT8
        if wanted not in (None, dtype):
            raise c.error(f"output_dtype is {wanted.name.lower()}, but the zero point is {dtype.name.lower()}")
        if dtype not in _QUANTIZED:
            raise c.error(f"{dtype.name.lower()} is no type to quantize to")
        if c["precision"] and element_type(c, c["precision"]) not in _WIDE - {_D.INT32}:
            raise c.error(f"precision must be float, float16 or bfloat16, not {c['precision']}")
        return [c.like(0, dtype)]

    def reference(self, c: Call, x: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
        from evort.ops import lowp

        dtype = c.outs[0].dtype
        # The precision of the division: as asked for, else float32 unless both operands are narrower.
        sources = c.ins[0].dtype, c.ins[1].dtype
        precision = DType(c["precision"]) if c["precision"] else sources[0] if sources[0] == sources[1] else _D.FLOAT
        with np.errstate(all="ignore"):
            x, scale = (_rounded(v.astype(np.float32), precision) for v in (x, _spread(c, scale)))
            ratio = _rounded(x / scale, precision)
            if dtype not in RANGES:
                ratio = ratio.astype(np.float32)
                if zero is not None and dtype == _D.FLOAT4E2M1:
                    ratio = ratio + _spread(c, zero)
                return lowp.narrow(ratio, dtype, bool(c["saturate"]))
            low, high = RANGES[dtype]
            shift = np.float64(0) if zero is None else _spread(c, zero).astype(np.float64)
            whole = np.rint(ratio).astype(np.float64) + shift
            return np.where(np.isnan(whole), low, np.clip(whole, low, high)).astype(STORAGE[dtype])

    def bind(self, c: Call) -> Kernel | None:
        dtype = c.outs[0].dtype
        if c.ins[0].dtype != _D.FLOAT or c.ins[1].dtype != _D.FLOAT or dtype not in RANGES:
            return None
        walk = _walk(c)
        if walk is None or c["precision"] not in (0, _D.FLOAT):
            return None
        return Kernel("quantize.quantize", ints=(_held(dtype), *walk), reals=RANGES[dtype])


@op("DequantizeLinear", since=28)
class DequantizeLinear(Op):
    """y = (x - x_zero_point) x_scale, computed in float32."""

    inputs, outputs = ("x", "x_scale", "x_zero_point?"), ("y",)
    dtypes = {
        "x": _QUANTIZED | {_D.INT32},
        "x_scale": _SCALES - {_D.INT32},
        "x_zero_point": _QUANTIZED | {_D.INT32},
    }
    attrs = {"axis": Attr("int", 1), "block_size": Attr("int", 0), "output_dtype": Attr("int", 0)}
    inplace = ((0, 0),)

    def infer(self, c: Call) -> list[Spec]:
        _granularity(c)
        if c.has(2) and c.ins[2].dtype != c.ins[0].dtype:
            raise c.error("x and its zero point must have one element type")
        scale = c.ins[1].dtype
        dtype = element_type(c, c["output_dtype"]) if c["output_dtype"] else _D.FLOAT if scale in FLOAT8 else scale
        if dtype not in _WIDE - {_D.INT32}:
            raise c.error(f"output_dtype must be float, float16 or bfloat16, not {dtype.name.lower()}")
        return [c.like(0, dtype)]

    def reference(self, c: Call, x: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
        with np.errstate(all="ignore"):
            shifted = x.astype(np.float32)
            if zero is not None:
                shifted = shifted - _spread(c, zero).astype(np.float32)
            y = shifted * _spread(c, scale).astype(np.float32)
            return y.astype(np.float16) if c.outs[0].dtype == _D.FLOAT16 else y

    def bind(self, c: Call) -> Kernel | None:
        dtype = c.ins[0].dtype
        if c.ins[1].dtype != _D.FLOAT or c.outs[0].dtype != _D.FLOAT or (dtype not in RANGES and dtype != _D.INT32):
            return None
        walk = _walk(c)
        return None if walk is None else Kernel("quantize.dequantize", ints=(_held(dtype), *walk))


@op("DynamicQuantizeLinear", since=11)
class DynamicQuantizeLinear(Op):
    """y = saturate(round(x / y_scale) + y_zero_point) in uint8, with the scale and zero point that x's range asks for:
    y_scale = (max(x, 0) - min(x, 0)) / 255, y_zero_point = round(-min(x, 0) / y_scale)."""

    inputs, outputs = ("x",), ("y", "y_scale", "y_zero_point")
    dtypes = {"x": frozenset({_D.FLOAT})}

    def infer(self, c: Call) -> list[Spec]:
        return [c.like(0, _D.UINT8), Spec(_D.FLOAT, ()), Spec(_D.UINT8, ())]

    def reference(self, c: Call, x: np.ndarray) -> tuple[np.ndarray, ...]:
        with np.errstate(all="ignore"):
            # NaN has no place in a range.
            high = np.fmax.reduce(x, axis=None, initial=np.float32(0))
            low = np.fmin.reduce(x, axis=None, initial=np.float32(0))
            scale = np.float32(high - low if high != low else 1) / np.float32(255)
            zero = np.rint(np.fmax(np.fmin(-low / scale, np.float32(255)), np.float32(0)))
            whole = np.rint(x / scale) + zero
            y = np.where(np.isnan(whole), 0, np.clip(whole, 0, 255)).astype(np.uint8)
        return y, np.array(scale, np.float32), np.array(zero, np.uint8)

    def bind(self, c: Call) -> Kernel | None:
        if not (c.wants(0) and c.wants(1) and c.wants(2)):
            return None
        return Kernel("quantize.dynamic_quantize", scratch=64 * c.threads)
