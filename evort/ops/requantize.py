"""What follows an integer sum in QLinearConv, QLinearMatMul and their like: scales, residual, activation, rounding.

With `total` the exact sum (and the integer bias), in float32 and in this order, each operation rounded by itself (no
fused multiply-add), so that every instruction set gives the same bits:

    y quantized, no residual, activation none, Relu or Clip:
        r = total * (x_scale * w_scale / y_scale)
        y = clamp(rint(r) + y_zero, low, high)     low, high: the type's bounds, or the activation's where narrower
    else:
        r = activation(total * (x_scale * w_scale) + (z - z_zero) * z_scale)
        y = r, or clamp(rint(r * (1 / y_scale)) + y_zero, the type's bounds)

A float residual is added as it is. Ties round to even; NaN becomes the smallest number.
"""

from __future__ import annotations

import numpy as np

from evort.ops.activation import activation_params, apply_reference
from evort.ops.base import Call

_CLAMPS = ("", "Relu", "Clip")


def to_int32(x: np.ndarray) -> np.ndarray:
    """Whole numbers as int32, wrapping around."""
    return x.astype(np.int64).astype(np.int32)


def plain_scale(scale: np.ndarray | None) -> np.ndarray | None:
    """A scale of one element as a scalar, float32."""
    if scale is None:
        return None
    return (scale if scale.size != 1 else scale.reshape(())).astype(np.float32, copy=False)


def requantize(total: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    """saturate(round(total * scale) + zero_point) in the zero point's type; the product in float32, ties to even."""
    with np.errstate(all="ignore"):
        return rounded(to_int32(total).astype(np.float32) * scale.astype(np.float32), zero_point)


def rounded(r: np.ndarray, zero_point: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """clamp(rint(r) + zero_point, low, high) in the zero point's type; its own bounds where none are given."""
    limits = np.iinfo(zero_point.dtype)
    zero = zero_point.reshape(zero_point.shape if zero_point.size != 1 else ()).astype(np.float64)
    with np.errstate(all="ignore"):
        y = np.rint(r).astype(np.float64) + zero
        y = np.where(np.isnan(y), limits.min, y)
        y = np.clip(y, limits.min if low is None else low, limits.max if high is None else high)
        return y.astype(zero_point.dtype)


def clamp_bounds(c: Call, y_scale: float, y_zero: int, dtype: np.dtype) -> tuple[int, int]:
    """(low, high): the activation (none, Relu or Clip) makes a quantized y min(max(y, low), high)."""
    limits = np.iinfo(dtype)
    low, high = limits.min, limits.max
    if c["activation"]:
        alpha, beta = (0.0, np.inf) if c["activation"] == "Relu" else activation_params(c)
        with np.errstate(all="ignore"):
            steps = np.rint(np.array([alpha, beta], np.float32) / np.float32(y_scale)).astype(np.float64) + y_zero
        low, high = np.clip(np.where(np.isnan(steps), (low, high), steps), low, high).astype(int).tolist()
    return low, high


def quantized(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    """A float operand as a driver reads it: saturate(round(x / scale) + zero_point); NaN the smallest number."""
    with np.errstate(all="ignore"):
        return rounded(x / plain_scale(scale), zero_point)


def finish(c: Call, total: np.ndarray, scale: np.ndarray, y_scale: np.ndarray | None, y_zero: np.ndarray | None,
           z: np.ndarray | None = None, z_scale: np.ndarray | None = None, z_zero: np.ndarray | None = None,
           bias: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
    """The result from whole numbers `total`.

    scale: x_scale * w_scale in float32, shaped to broadcast with total. y_scale, y_zero: None for a float result.
    bias: in float32, added to the scaled total (an integer bias is part of it).
    """
    with np.errstate(all="ignore"):
        r = total.astype(np.float32)
        unit = plain_scale(y_scale)
        if y_zero is not None and z is None and bias is None and c["activation"] in _CLAMPS:
            low, high = clamp_bounds(c, float(unit), int(y_zero.reshape(())), y_zero.dtype)
            return rounded(r * (scale / unit), y_zero, low, high)
        r = r * scale
        if bias is not None:
            r = r + bias
        if z is not None and z_scale is None:
            r = r + z
        elif z is not None:
            shift = 0 if z_zero is None else int(z_zero.reshape(()))
            r = r + (z.astype(np.int32) - shift).astype(np.float32) * plain_scale(z_scale)
        r = apply_reference(c, r)
        return r if y_zero is None else rounded(r * (np.float32(1) / unit), y_zero)
