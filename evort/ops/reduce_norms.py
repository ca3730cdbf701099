"""Reductions over axes: products, norms, logarithms of sums."""

from __future__ import annotations

import numpy as np

from evort.ops.base import op, wide
from evort.ops.reduce import Reduce, Wrapping, total
from evort.ops.reduce_driver import (
    ABS,
    EXP,
    POST_LOG,
    POST_NONE,
    POST_SHIFTED_LOG,
    POST_SQRT,
    PROD,
    SQUARE,
    SUM,
    WIDE,
)
from evort.types import FLOATS, DType


@op("ReduceProd", since=18)
class ReduceProd(Wrapping):
    """Y = product of X; 1 for no elements."""

    form = (WIDE, PROD, POST_NONE)

    def compute(self, x, axes):
        return np.prod(x, axis=axes, keepdims=True, dtype=np.float64 if x.dtype.kind == "f" else x.dtype)


@op("ReduceL1", since=18)
class ReduceL1(Reduce):
    """Y = sum of |X|."""

    form = (WIDE, ABS, POST_NONE)
    idle = False

    def compute(self, x, axes):
        return total(np.abs(x), axes)


@op("ReduceL2", since=18)
class ReduceL2(Reduce):
    """Y = root of the sum of X*X, without overflow on the way. Integers: rounded down."""

    form = (WIDE, SQUARE, POST_SQRT)
    idle = False

    def compute(self, x, axes):
        return np.sqrt(np.sum(np.square(x, dtype=np.float64), axis=axes, keepdims=True))


@op("ReduceSumSquare", since=18)
class ReduceSumSquare(Reduce):
    """Y = sum of X*X."""

    form = (WIDE, SQUARE, POST_NONE)
    idle = False

    def compute(self, x, axes):
        return total(np.square(wide(x)), axes)


@op("ReduceLogSum", since=28)
class ReduceLogSum(Reduce):
    """Y = log of the sum of X; -infinity for no elements."""

    dtypes = {"data": FLOATS, "axes": frozenset({DType.INT64})}
    form = (WIDE, SUM, POST_LOG)
    idle = False

    def compute(self, x, axes):
        return np.log(total(x, axes))


@op("ReduceLogSumExp", since=28)
class ReduceLogSumExp(Reduce):
    """Y = log of the sum of exp(X), without overflow; -infinity for no elements."""

    dtypes = {"data": FLOATS, "axes": frozenset({DType.INT64})}
    form = (WIDE, EXP, POST_SHIFTED_LOG)
    idle = False

    def compute(self, x, axes):
        x = wide(x)
        most = np.max(x, axis=axes, keepdims=True, initial=-np.inf)
        most = np.where(np.isfinite(most), most, 0.0)
        return np.log(np.sum(np.exp(x - most), axis=axes, keepdims=True)) + most
