"""Cumulative sums and products."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.ops.reduce import WORDS
from evort.types import FLOATS, STORAGE, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients


class _Cumulative(Op):
    inputs, outputs = ("x", "axis"), ("y",)
    attrs = {"exclusive": Attr("int", 0), "reverse": Attr("int", 0)}
    dtypes = {"x": FLOATS | WORDS, "axis": frozenset({DType.INT32, DType.INT64})}
    inplace = ((0, 0),)
    product = False

    def axis(self, c: Call) -> int:
        given = c.ints(1)
        if len(given) != 1:
            raise c.error("axis must be a single number")
        return c.axis(given[0], c.ins[0].rank)

    def infer(self, c: Call) -> list[Spec]:
        self.axis(c)
        return [c.like(0)]

    def reference(self, c: Call, x: np.ndarray, axis: np.ndarray) -> np.ndarray:
        at = self.axis(c)
        along = np.flip(x, at) if c["reverse"] else x
        accumulate = np.cumprod if self.product else np.cumsum
        with np.errstate(all="ignore"):
            y = accumulate(along, at, dtype=np.float64 if x.dtype.kind == "f" else x.dtype)
            y = y.astype(x.dtype)
        if c["exclusive"] and x.shape[at]:
            y = np.roll(y, 1, at)
            y[(slice(None),) * at + (0,)] = self.product
        return np.flip(y, at) if c["reverse"] else y

    def bind(self, c: Call) -> Kernel | None:
        x = c.ins[0]
        if x.dtype not in WORDS | {DType.FLOAT} or x.size == 0:
            return None
        axis = self.axis(c)
        flags = (int(self.product), int(c["exclusive"] != 0), int(c["reverse"] != 0))
        ints = (*flags, x.shape[axis], prod(x.shape[axis + 1 :]), STORAGE[x.dtype].itemsize)
        return Kernel("reduce.cumulative", ints, inputs=(0,))

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        attrs = {"exclusive": c["exclusive"], "reverse": int(not c["reverse"])}
        return [g.emit("CumSum", [dy, c.node.inputs[1]], attrs), None]


@op("CumSum", since=14)
class CumSum(_Cumulative):
    """Y[i] = sum of X[0..i] along `axis`; without X[i] if `exclusive`, from the end if `reverse`."""


@op("CumProd", since=26)
class CumProd(_Cumulative):
    """Y[i] = product of X[0..i] along `axis`; without X[i] if `exclusive`, from the end if `reverse`."""

    product = True

    def lower(self, g: Gradients, c: Call) -> list[str] | None:
        """In log2(n) products with the same shifted, which have gradients also where elements are 0 (Hillis and
        Steele, "Data parallel algorithms", 1986)."""
        if c.ins[0].dtype not in FLOATS:
            return None
        axis, y, step = self.axis(c), c.node.inputs[0], 1
        size = c.ins[0].shape[axis]

        def moved(x: str, by: int) -> str:
            """Later by so many places, ones coming in."""
            shape = list(c.ins[0].shape)
            shape[axis] = by
            ones = g.expand(g.scalar(1, x), shape)
            first, last = (by, size) if c["reverse"] else (0, size - by)
            kept = g.emit("Slice", [x, g.ints(first), g.ints(last), g.ints(axis)])
            return g.emit("Concat", [kept, ones] if c["reverse"] else [ones, kept], {"axis": axis})

        if c["exclusive"] and size:
            y = moved(y, 1)
        while step < size:
            y = g.mul(y, moved(y, step))
            step *= 2
        return [g.emit("Identity", [y])]
