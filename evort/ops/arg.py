"""Positions of extremes: ArgMax, ArgMin."""

from __future__ import annotations

from math import prod

import numpy as np

from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.types import NUMERIC, STORAGE, DType, Spec


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
