"""How a tensor's real numbers are stored as integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from evort.quant import dequantize, limits, qparams, quantize
from evort.types import BITS, DType


class Encoding:
    """real = scale * (q - zero_point), q of an integer `dtype`.

    scale: float32, shape [] (per tensor), or [channels] where `axis` is the axis of the channels, or with a `block`
    the tensor's shape with `axis` divided by it (one scale for each `block` consecutive items along `axis`).
    zero_point: the dtype's NumPy type, of the scale's shape. narrow: a signed type without its smallest number.
    method: how the range was found ("minmax", "entropy", ...), for reports.
    """

    __slots__ = ("axis", "block", "dtype", "method", "narrow", "scale", "zero_point")

    def __init__(
        self,
        dtype: DType,
        scale: np.ndarray,
        zero_point: np.ndarray,
        axis: int | None = None,
        block: int = 0,
        narrow: bool = False,
        method: str = "",
    ):
        self.dtype = dtype
        self.scale = np.asarray(scale, np.float32)
        self.zero_point = np.asarray(zero_point)
        self.axis = axis
        self.block = block
        self.narrow = narrow
        self.method = method

    @classmethod
    def of_range(
        cls,
        lo: Any,
        hi: Any,
        dtype: DType,
        symmetric: bool = False,
        axis: int | None = None,
        narrow: bool = False,
        method: str = "",
    ) -> Encoding:
        """The encoding of numbers in [lo, hi]; arrays of bounds, one for each index of `axis`. Raises ValueError as
        `evort.quant.qparams` does."""
        scale, zero_point = qparams(lo, hi, dtype, symmetric, narrow)
        return cls(dtype, scale, zero_point, axis, narrow=narrow, method=method)

    @classmethod
    def of_weights(cls, w: np.ndarray, axis: int | None, dtype: DType = DType.INT8, shrink: Any = 1.0) -> Encoding:
        """The symmetric encoding of weights in [-127, 127] (for int8), one scale for each index of `axis`.

        shrink: the factor (one, or one for each index) of the largest magnitude that is still represented. An index
        whose weights are all zero has scale 1.
        """
        others = None if axis is None else tuple(i for i in range(w.ndim) if i != axis % w.ndim)
        largest = np.abs(w).max(axis=others, initial=0.0).astype(np.float64) * shrink
        return cls.of_range(-largest, largest, dtype, True, axis, narrow=True, method="weights")

    @property
    def bits(self) -> int:
        return BITS[self.dtype]

    @property
    def symmetric(self) -> bool:
        """Whether all zero points are the middle of the dtype's range."""
        low, high = limits(self.dtype)
        return bool((self.zero_point == (low + high + 1) // 2).all())

    @property
    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and largest real numbers that are represented (float64)."""
        low, high = limits(self.dtype, self.narrow)
        zero = self.zero_point.astype(np.float64)
        return (low - zero) * self.scale, (high - zero) * self.scale

    def same(self, other: Encoding) -> bool:
        """Whether two encodings represent the same numbers by the same integers."""
        return (
            self.dtype == other.dtype
            and self.axis == other.axis
            and self.block == other.block
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def _operands(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, int | None]:
        """(scale, zero point, axis) as `evort.quant` takes them; blocks are written out."""
        if not self.block:
            return self.scale, self.zero_point, self.axis
        cut = tuple(slice(d) for d in x.shape)
        return *(np.repeat(v, self.block, self.axis)[cut] for v in (self.scale, self.zero_point)), None

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """The integers that stand for x."""
        scale, zero, axis = self._operands(x)
        return quantize(x, scale, zero, self.dtype, axis, self.narrow)

    def dequantize(self, q: np.ndarray) -> np.ndarray:
        """The float32 numbers that integers stand for."""
        scale, zero, axis = self._operands(q)
        return dequantize(q, scale, zero, axis)

    def fake(self, x: np.ndarray) -> np.ndarray:
        """What is left of x after quantizing and dequantizing."""
        return self.dequantize(self.quantize(x))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        low, high = self.range
        return {
            "dtype": self.dtype.name.lower(),
            "scale": self.scale.tolist(),
            "zero_point": self.zero_point.tolist(),
            "axis": self.axis,
            "low": float(low.min()),
            "high": float(high.max()),
            "method": self.method,
        }

    def __repr__(self) -> str:
        low, high = self.range
        how = "" if self.axis is None else f", {self.scale.size} channels of axis {self.axis}"
        return f"Encoding({self.dtype.name.lower()}, {float(low.min()):.6g} to {float(high.max()):.6g}{how})"
