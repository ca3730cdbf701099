"""Operators on bits and truth values of two tensors with broadcasting."""

from __future__ import annotations

import numpy as np

from evort.ops.base import REQUIRED, Attr, Call, Kernel, Op, op, register
from evort.ops.binary import Binary, nary_kernel, same_dtype
from evort.ops.broadcast import broadcast
from evort.types import INTS, DType, Spec

_BOOL = frozenset({DType.BOOL})

# On bits, and on truth values, which are the bits 0 and 1.
register(Binary("BitwiseAnd", np.logical_and, _BOOL), "And", 7)
register(Binary("BitwiseOr", np.logical_or, _BOOL), "Or", 7)
register(Binary("BitwiseXor", np.logical_xor, _BOOL), "Xor", 7)
register(Binary("BitwiseAnd", np.bitwise_and, INTS), "BitwiseAnd", 18)
register(Binary("BitwiseOr", np.bitwise_or, INTS), "BitwiseOr", 18)
register(Binary("BitwiseXor", np.bitwise_xor, INTS), "BitwiseXor", 18)


@op("BitShift", since=28)
class BitShift(Op):
    """Z = X shifted by Y bits; to the right, the sign is extended. A shift by fewer than 0 or by all bits leaves that
    extension alone: -1 for a right shift of a negative number, else 0."""

    inputs, outputs = ("X", "Y"), ("Z",)
    dtypes = {"X": INTS, "Y": INTS}
    inplace = ((0, 0), (0, 1))
    attrs = {"direction": Attr("str", REQUIRED)}

    def infer(self, c: Call) -> list[Spec]:
        if c["direction"] not in ("LEFT", "RIGHT"):
            raise c.error(f"direction must be 'LEFT' or 'RIGHT', not {c['direction']!r}")
        return [Spec(same_dtype(c), broadcast(c, c.ins[0].shape, c.ins[1].shape))]

    def reference(self, c: Call, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        bits = x.dtype.itemsize * 8
        outside = (y < 0) | (y >= bits)
        if c["direction"] == "RIGHT":
            return np.right_shift(x, np.where(outside, bits - 1, y).astype(x.dtype)) * ~(outside & (x > 0))
        return np.where(outside, 0, np.left_shift(x, np.where(outside, 0, y).astype(x.dtype))).astype(x.dtype)

    def bind(self, c: Call) -> Kernel | None:
        return nary_kernel(c, ("ShiftLeft" if c["direction"] == "LEFT" else "ShiftRight",))
