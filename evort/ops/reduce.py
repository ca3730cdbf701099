"""Reductions over axes, positions of extremes, cumulative sums, determinants."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from evort.ops.base import Attr, Call, Kernel, Op, op, wide
from evort.ops.reduce_driver import (
    ABS,
    EXP,
    EXTREME,
    POST_DIVIDE,
    POST_LOG,
    POST_NONE,
    POST_SHIFTED_LOG,
    POST_SQRT,
    PROD,
    SQUARE,
    SUM,
    WIDE,
    WRAP,
    reduce_kernel,
)
from evort.types import FLOATS, NUMERIC, STORAGE, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

_D = DType
_WORDS = frozenset({_D.INT32, _D.INT64, _D.UINT32, _D.UINT64})
_EXTREMES = frozenset({_D.FLOAT, _D.INT8, _D.UINT8, _D.BOOL, _D.INT32, _D.INT64})  # of the EXTREME micro-kernels


class _Reduce(Op):
    """ReduceX over `axes` (all where absent or empty, none with `noop_with_empty_axes`), kept as 1 with `keepdims`."""

    inputs, outputs = ("data", "axes?"), ("reduced",)
    attrs = {"keepdims": Attr("int", 1), "noop_with_empty_axes": Attr("int", 0)}
    dtypes = {"data": FLOATS | _WORDS, "axes": frozenset({_D.INT64})}
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


def _total(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The sum, floats in float64; integers wrap around."""
    return np.sum(x, axis=axes, keepdims=True, dtype=np.float64 if x.dtype.kind == "f" else x.dtype)


class _Wrapping(_Reduce):
    """Integers wrap around, so they have a driver too."""

    def bind(self, c: Call) -> Kernel | None:
        if c.ins[0].dtype in _WORDS:
            return reduce_kernel(c, self.axes(c), WRAP, int(self.form[1] == PROD))
        return super().bind(c)


@op("ReduceSum", since=13)
class ReduceSum(_Wrapping):
    """Y = sum of X; 0 for no elements."""

    def compute(self, x, axes):
        return _total(x, axes)


@op("ReduceMean", since=18)
class ReduceMean(_Reduce):
    """Y = mean of X; NaN for no elements. Integers: towards zero."""

    form = (WIDE, SUM, POST_DIVIDE)

    def infer(self, c: Call) -> list[Spec]:
        if c.ins[0].dtype in _WORDS and any(c.ins[0].shape[a] == 0 for a in self.axes(c)):
            raise c.error("the mean of no integers is undefined")
        return super().infer(c)

    def compute(self, x, axes):
        count = prod(x.shape[a] for a in axes)
        if x.dtype.kind == "f":
            return _total(x, axes) / np.float64(count)
        total = np.sum(x, axis=axes, keepdims=True, dtype=np.uint64 if x.dtype.kind == "u" else np.int64)
        whole = np.abs(total) // max(count, 1)
        return np.where(total < 0, -whole, whole)


@op("ReduceProd", since=18)
class ReduceProd(_Wrapping):
    """Y = product of X; 1 for no elements."""

    form = (WIDE, PROD, POST_NONE)

    def compute(self, x, axes):
        return np.prod(x, axis=axes, keepdims=True, dtype=np.float64 if x.dtype.kind == "f" else x.dtype)


@op("ReduceL1", since=18)
class ReduceL1(_Reduce):
    """Y = sum of |X|."""

    form = (WIDE, ABS, POST_NONE)
    idle = False

    def compute(self, x, axes):
        return _total(np.abs(x), axes)


@op("ReduceL2", since=18)
class ReduceL2(_Reduce):
    """Y = root of the sum of X*X, without overflow on the way. Integers: rounded down."""

    form = (WIDE, SQUARE, POST_SQRT)
    idle = False

    def compute(self, x, axes):
        return np.sqrt(np.sum(np.square(x, dtype=np.float64), axis=axes, keepdims=True))


@op("ReduceSumSquare", since=18)
class ReduceSumSquare(_Reduce):
    """Y = sum of X*X."""

    form = (WIDE, SQUARE, POST_NONE)
    idle = False

    def compute(self, x, axes):
        return _total(np.square(wide(x)), axes)


@op("ReduceLogSum", since=28)
class ReduceLogSum(_Reduce):
    """Y = log of the sum of X; -infinity for no elements."""

    dtypes = {"data": FLOATS, "axes": frozenset({_D.INT64})}
    form = (WIDE, SUM, POST_LOG)
    idle = False

    def compute(self, x, axes):
        return np.log(_total(x, axes))


@op("ReduceLogSumExp", since=28)
class ReduceLogSumExp(_Reduce):
    """Y = log of the sum of exp(X), without overflow; -infinity for no elements."""

    dtypes = {"data": FLOATS, "axes": frozenset({_D.INT64})}
    form = (WIDE, EXP, POST_SHIFTED_LOG)
    idle = False

    def compute(self, x, axes):
        x = wide(x)
        most = np.max(x, axis=axes, keepdims=True, initial=-np.inf)
        most = np.where(np.isfinite(most), most, 0.0)
        return np.log(np.sum(np.exp(x - most), axis=axes, keepdims=True)) + most


class _Extreme(_Reduce):
    dtypes = {"data": FLOATS | _WORDS | {_D.INT8, _D.UINT8, _D.BOOL}, "axes": frozenset({_D.INT64})}

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


class _Arg(Op):
    inputs, outputs = ("data",), ("reduced",)
    attrs = {"axis": Attr("int", 0), "keepdims": Attr("int", 1), "select_last_index": Attr("int", 0)}
    dtypes = {"data": NUMERIC}
    minimum = False

    def infer(self, c: Call) -> list[Spec]:
        shape = list(c.ins[0].shape)
        axis = c.axis(c["axis"], len(shape))
        if shape[axis] == 0:
            raise c.error(f"axis {axis} is empty, so that no element of it is an extreme")
        shape[axis : axis + 1] = [1] if c["keepdims"] else []
        return [Spec(DType.INT64, tuple(shape))]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        axis = c.axis(c["axis"], x.ndim)
        last = c["select_last_index"]
        along = np.flip(x, axis) if last else x
        y = (np.argmin if self.minimum else np.argmax)(along, axis, keepdims=bool(c["keepdims"]))
        return x.shape[axis] - 1 - y if last else y

    def bind(self, c: Call) -> Kernel | None:
        x = c.ins[0]
        if x.dtype not in (DType.FLOAT, DType.INT32, DType.INT64) or x.size == 0:
            return None
        axis = c.axis(c["axis"], x.rank)
        last = int(c["select_last_index"] != 0)
        inner = prod(x.shape[axis + 1 :])
        if x.shape[axis] >= 1 << 31:
            return None
        ints = (int(self.minimum), last, x.shape[axis], inner, STORAGE[x.dtype].itemsize)
        return Kernel("reduce.arg_extreme", ints)


@op("ArgMax", since=13)
class ArgMax(_Arg):
    """Position of the largest element along `axis`, the first (or last) of equals; of a NaN where there is one."""


@op("ArgMin", since=13)
class ArgMin(_Arg):
    """Position of the smallest element along `axis`, the first (or last) of equals; of a NaN where there is one."""

    minimum = True


class _Cumulative(Op):
    inputs, outputs = ("x", "axis"), ("y",)
    attrs = {"exclusive": Attr("int", 0), "reverse": Attr("int", 0)}
    dtypes = {"x": FLOATS | _WORDS, "axis": frozenset({_D.INT32, _D.INT64})}
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
        if x.dtype not in _WORDS | {DType.FLOAT} or x.size == 0:
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


@op("Det", since=22)
class Det(Op):
    """Determinants of the matrices in the last two axes."""

    inputs, outputs = ("X",), ("Y",)
    dtypes = {"X": FLOATS}

    def infer(self, c: Call) -> list[Spec]:
        x = c.ins[0]
        if x.rank < 2 or x.shape[-1] != x.shape[-2]:
            raise c.error("the last two axes must be square matrices")
        return [Spec(x.dtype, x.shape[:-2])]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(np.linalg.det(wide(x))).astype(x.dtype)
