"""Comparisons with broadcasting, and Where."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from evort.ops.base import Call, Kernel, Op, op, register
from evort.ops.binary import Binary, nary_kernel, same_dtype
from evort.ops.broadcast import broadcast, loops
from evort.types import ANY, BITS, NUMERIC, STORAGE, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

_BOOL = frozenset({DType.BOOL})
_TENSORS = ANY - {DType.SEQUENCE, DType.OPTIONAL}


class _Comparison(Binary):
    """C = A op B, a bool."""

    def __init__(self, operation: str, function: Callable[..., np.ndarray], dtypes: frozenset[DType] = NUMERIC,
                 swapped: bool = False):  # fmt: skip
        """swapped: whether the kernel gets B first."""
        super().__init__(operation, function, dtypes)
        self.swapped = swapped

    def infer(self, c: Call) -> list[Spec]:
        same_dtype(c)
        return [Spec(DType.BOOL, broadcast(c, c.ins[0].shape, c.ins[1].shape))]

    def bind(self, c: Call) -> Kernel | None:
        return nary_kernel(c, (self.operation,), inputs=(1, 0) if self.swapped else None)


register(_Comparison("Equal", np.equal, NUMERIC | {DType.BOOL, DType.STRING}), "Equal", 19)
register(_Comparison("Less", np.less), "Less", 13)
register(_Comparison("LessOrEqual", np.less_equal), "LessOrEqual", 16)
register(_Comparison("Less", np.greater, swapped=True), "Greater", 13)
register(_Comparison("LessOrEqual", np.greater_equal, swapped=True), "GreaterOrEqual", 16)


@op("Where", since=16)
class Where(Op):
    """output = X where condition, else Y; all three are broadcast."""

    inputs, outputs = ("condition", "X", "Y"), ("output",)
    dtypes = {"condition": _BOOL, "X": _TENSORS, "Y": _TENSORS}
    inplace = ((0, 1), (0, 2))
    raw_bits = True

    def infer(self, c: Call) -> list[Spec]:
        condition, x, y = c.ins
        if x.dtype != y.dtype:
            raise c.error("X and Y must have one element type")
        return [Spec(x.dtype, broadcast(c, condition.shape, x.shape, y.shape))]

    def reference(self, c: Call, condition: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.where(condition, x, y)

    def bind(self, c: Call) -> Kernel | None:
        dtype = c.outs[0].dtype
        if dtype not in BITS or STORAGE[dtype].itemsize > 8:
            return None
        walk = loops(c.outs[0].shape, [s.shape for s in c.ins])
        return Kernel("elementwise.where", ints=(STORAGE[dtype].itemsize, *walk))

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        condition, zero = c.node.inputs[0], g.scalar(0, dy)
        found: list[str | None] = [None, None, None]
        for i, operands in ((1, [condition, dy, zero]), (2, [condition, zero, dy])):
            if g.wants(i):
                found[i] = g.reduced_to(g.emit("Where", operands), c.ins[i].shape)
        return found
