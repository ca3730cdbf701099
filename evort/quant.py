"""Numbers as integers: scales and zero points from ranges, and quantizing in NumPy.

    real = scale * (q - zero_point)
    q    = saturate(round_half_even(real / scale) + zero_point)

as ONNX's QuantizeLinear and DequantizeLinear define them, in float32, so that what is computed here is bit for bit
what the kernels compute. The offline quantizer and quantization-aware training share these functions.
"""

from __future__ import annotations

import math

import numpy as np

from evort.types import RANGES, STORAGE, DType

_TINY = float(np.finfo(np.float32).tiny)  # smaller scales would be denormal, whose reciprocal overflows
_HUGE = float(np.finfo(np.float32).max)


def limits(dtype: DType, narrow: bool = False) -> tuple[int, int]:
    """The smallest and largest number of an integer type; narrow: without the smallest of a signed one, so that the
    range is symmetric (int8: -127 to 127). Raises ValueError for a type that is no integer to quantize to."""
    if dtype not in RANGES:
        known = ", ".join(d.name.lower() for d in RANGES)
        raise ValueError(f"{dtype.name.lower()} is no type to quantize to; {known} are")
    low, high = RANGES[dtype]
    return (-high, high) if narrow and low < 0 else (low, high)


def qparams(
    lo: np.ndarray | float, hi: np.ndarray | float, dtype: DType, symmetric: bool = False, narrow: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Scale (float32) and zero point (the NumPy dtype of `dtype`) for real numbers in [lo, hi], elementwise.

    The range is widened to hold zero, which is represented exactly. symmetric: the zero point is in the middle of the
    type's range (0 for a signed type). narrow: see `limits`. A range of nothing but zero has scale 1.

    Raises ValueError for a bound that is not finite, or for lo > hi.
    """
    lo, hi = np.asarray(lo, np.float64), np.asarray(hi, np.float64)
    if not (np.isfinite(lo).all() and np.isfinite(hi).all()):
        raise ValueError("a range has a bound that is NaN or infinite")
    if (lo > hi).any():
        raise ValueError(f"a range goes from {lo[lo > hi].flat[0]:g} down to {hi[lo > hi].flat[0]:g}")
    low, high = limits(dtype, narrow)
    lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
    if symmetric:
        zero = 0 if low < 0 else (high + 1) // 2
        bound = np.maximum(-lo, hi)
        scale = bound / (high - zero)
        zero_point = np.full(scale.shape, zero)
    else:
        scale = (hi - lo) / (high - low)
    scale = np.where(scale > 0, np.clip(scale, _TINY, _HUGE), 1.0).astype(np.float32)
    if not symmetric:
        zero_point = np.clip(np.rint(low - lo / scale.astype(np.float64)), low, high)
    return scale, zero_point.astype(STORAGE[dtype])


def spread(values: np.ndarray, rank: int, axis: int | None) -> np.ndarray:
    """Scales or zero points, one each for the indices of `axis` (axis None: one for all, or one for each element), in
    a shape that broadcasts to a tensor of that rank."""
    if axis is None:
        return values.reshape(()) if values.size == 1 else values
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def quantize(
    x: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
    dtype: DType,
    axis: int | None = None,
    narrow: bool = False,
) -> np.ndarray:
    """saturate(round(x / scale) + zero_point) in the NumPy dtype of `dtype`; NaN becomes the smallest number.

    scale, zero_point: one, or one for each index of `axis`.
    """
    low, high = limits(dtype, narrow)
    with np.errstate(all="ignore"):
        whole = np.asarray(x, np.float32) / spread(np.asarray(scale, np.float32), x.ndim, axis)
        np.rint(whole, out=whole)
        # An integer added in float32 stays exact where it matters: below 2**24, and beyond it saturates anyway.
        whole += spread(np.asarray(zero_point), x.ndim, axis).astype(np.float32)
        np.clip(whole, low, high, out=whole)
        if np.isnan(whole).any():
            whole[np.isnan(whole)] = low
    return whole.astype(STORAGE[dtype])


def dequantize(
    q: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray | None = None,
    axis: int | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """(q - zero_point) * scale in float32. out: an array for the result."""
    real = np.empty(q.shape, np.float32) if out is None else out
    real[...] = q
    if zero_point is not None:
        real -= spread(np.asarray(zero_point), q.ndim, axis).astype(np.float32)
    real *= spread(np.asarray(scale, np.float32), q.ndim, axis)
    return real


def fake_quantize(
    x: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
    dtype: DType,
    axis: int | None = None,
    narrow: bool = False,
) -> np.ndarray:
    """What is left of x (float32) after quantizing and dequantizing."""
    return dequantize(quantize(x, scale, zero_point, dtype, axis, narrow), scale, zero_point, axis)


def decibels(signal: float, noise: float) -> float:
    """Signal to noise in dB, from two sums of squares: infinite without noise, minus infinite for noise alone."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
