"""Reductions over axes: sum, mean, extremes."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.ops.reduce_driver import (
    EXTREME,
    POST_DIVIDE,
    POST_NONE,
    PROD,
    SUM,
    WIDE,
    WRAP,
    reduce_kernel,
)
from evort.types import FLOATS, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

_D = DType
WORDS = frozenset({_D.INT32, _D.INT64, _D.UINT32, _D.UINT64})
_EXTREMES = frozenset({_D.FLOAT, _D.INT8, _D.UINT8, _D.BOOL, _D.INT32, _D.INT64})  # of the EXTREME micro-kernels


class Reduce(Op):
    """ReduceX over `axes` (all where absent or empty, none with `noop_with_empty_axes`), kept as 1 with `keepdims`."""

    inputs, outputs = ("data", "axes?"), ("reduced",)
    attrs = {"keepdims": Attr("int", 1), "noop_with_empty_axes": Attr("int", 0)}
    dtypes = {"data": FLOATS | WORDS, "axes": frozenset({_D.INT64})}
    form = (WIDE, SUM, POST_NONE)  # kind, op and post of the float32 driver
    idle = True  # reducing a single element gives the element

    def axes(self, c: Call) -> tuple[int, ...]:
        given: tuple[int, ...] = ()
        if c.has(1):
            if c.ins[1].rank > 1:
                raise c.error("axes must be a vector")
            given = c.ints(1)
        rank = c.ins[0].rank
        if not given:
            return () if c["noop_with_empty_axes"] else tuple(range(rank))
        return c.axes(given, rank)

    def infer(self, c: Call) -> list[Spec]:
        x, axes = c.ins[0], self.axes(c)
        if c["keepdims"]:
            shape = tuple(1 if i in axes else d for i, d in enumerate(x.shape))
        else:
            shape = tuple(d for i, d in enumerate(x.shape) if i not in axes)
        return [Spec(x.dtype, shape)]

    def reference(self, c: Call, x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
        over = self.axes(c)
        with np.errstate(all="ignore"):
            y = self.compute(x, over)
        return np.asarray(y if c["keepdims"] else np.squeeze(y, over)).astype(x.dtype, copy=False)

    def compute(self, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        """The reduction with kept dimensions."""
        raise NotImplementedError

    def view(self, c: Call) -> dict[int, tuple[int, int]] | None:
        x = c.ins[0]
        if self.idle and x.size and all(x.shape[a] == 1 for a in self.axes(c)):
            return {0: (0, 0)}
        return None

    def bind(self, c: Call) -> Kernel | None:
        return reduce_kernel(c, self.axes(c), *self.form) if c.ins[0].dtype == DType.FLOAT else None

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        axes, dims, x = self.axes(c), c.ins[0].shape, c.node.inputs[0]
        if not axes and self.idle:
            return [dy, None]
        kept = tuple(1 if i in axes else d for i, d in enumerate(dims))
        y, dy = g.reshape(c.node.outputs[0], kept), g.reshape(dy, kept)
        return [g.expand(self.slope(g, x, y, dy, axes), dims), None]

    def slope(self, g: Gradients, x: str, y: str, dy: str, axes: tuple[int, ...]) -> str:
        """The gradient, which may yet have to be expanded over the axes; y and dy have them with size 1."""
        name = self.name
        if name in ("ReduceSum", "ReduceMean"):
            return g.scale(dy, 1 / prod(g.shape(x)[a] for a in axes) if name == "ReduceMean" else 1)
        if name == "ReduceL1":
            return g.mul(dy, g.emit("Sign", [x]))
        if name == "ReduceL2":
            return g.mul(g.lp_share(y, dy, 2), x)
        if name == "ReduceSumSquare":
            return g.mul(g.scale(dy, 2), x)
        if name == "ReduceProd":
            return g.mul(dy, _product_of_others(g, x, axes))
        if name == "ReduceLogSum":
            return g.div(dy, g.emit("Exp", [y]))
        if name == "ReduceLogSumExp":
            return g.mul(dy, g.emit("Exp", [g.sub(x, y)]))
        return g.of_extremes(x, y, dy, axes)  # ReduceMax and ReduceMin


def _product_of_others(g: Gradients, x: str, axes: tuple[int, ...]) -> str:
    """For each element the product of all others that it is reduced with: of those before and those behind it, so that
    nothing is divided by zero."""
    dims = g.shape(x)
    perm = [i for i in range(len(dims)) if i not in axes] + list(axes)
    turned = g.transpose(x, perm)
    moved, rest = g.shape(turned), len(dims) - len(axes)
    row = g.reshape(turned, (*moved[:rest], prod(moved[rest:])))
    before, behind = (
        g.emit("CumProd", [row, g.constant(np.array(rest, np.int64))], {"exclusive": 1, "reverse": reverse})
        for reverse in (0, 1)
    )
    back = [perm.index(i) for i in range(len(dims))]
    return g.transpose(g.reshape(g.mul(before, behind), moved), back)


def total(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The sum, floats in float64; integers wrap around."""
    return np.sum(x, axis=axes, keepdims=True, dtype=np.float64 if x.dtype.kind == "f" else x.dtype)


class Wrapping(Reduce):
    """Integers wrap around, so they have a driver too."""

    def bind(self, c: Call) -> Kernel | None:
        if c.ins[0].dtype in WORDS:
            return reduce_kernel(c, self.axes(c), WRAP, int(self.form[1] == PROD))
        return super().bind(c)


@op("ReduceSum", since=13)
class ReduceSum(Wrapping):
    """Y = sum of X; 0 for no elements."""

    def compute(self, x, axes):
        return total(x, axes)


@op("ReduceMean", since=18)
class ReduceMean(Reduce):
    """Y = mean of X; NaN for no elements. Integers: towards zero."""

    form = (WIDE, SUM, POST_DIVIDE)

    def infer(self, c: Call) -> list[Spec]:
        if c.ins[0].dtype in WORDS and any(c.ins[0].shape[a] == 0 for a in self.axes(c)):
            raise c.error("the mean of no integers is undefined")
        return super().infer(c)

    def compute(self, x, axes):
        count = prod(x.shape[a] for a in axes)
        if x.dtype.kind == "f":
            return total(x, axes) / np.float64(count)
        sums = np.sum(x, axis=axes, keepdims=True, dtype=np.uint64 if x.dtype.kind == "u" else np.int64)
        whole = np.abs(sums) // max(count, 1)
        return np.where(sums < 0, -whole, whole)


class _Extreme(Reduce):
    dtypes = {"data": FLOATS | WORDS | {_D.INT8, _D.UINT8, _D.BOOL}, "axes": frozenset({_D.INT64})}

    def bind(self, c: Call) -> Kernel | None:
        return reduce_kernel(c, self.axes(c), *self.form) if c.ins[0].dtype in _EXTREMES else None


@op("ReduceMax", since=20)
class ReduceMax(_Extreme):
    """Y = largest of X, NaN where there is one; for no elements the least number of the type."""

    form = (EXTREME, 0, POST_NONE)

    def compute(self, x, axes):
        return np.maximum.reduce(x, axis=axes, keepdims=True, initial=_limits(x.dtype)[0])


@op("ReduceMin", since=20)
class ReduceMin(_Extreme):
    """Y = smallest of X, NaN where there is one; for no elements the greatest number of the type."""

    form = (EXTREME, 1, POST_NONE)

    def compute(self, x, axes):
        return np.minimum.reduce(x, axis=axes, keepdims=True, initial=_limits(x.dtype)[1])


def _limits(dtype: np.dtype) -> tuple[float | int | bool, float | int | bool]:
    if dtype.kind == "b":
        return False, True
    return (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
