"""The softmax family: what turns scores along an axis into shares of 1."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from evort.ops.base import Attr, Call, Kernel, Op, op, wide
from evort.types import FLOATS, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients


class _Softmax(Op):
    inputs, outputs = ("input",), ("output",)
    attrs = {"axis": Attr("int", -1)}
    dtypes = {"input": FLOATS}
    inplace = ((0, 0),)  # a lane is read before it is written, and depends on no other
    logarithm = False

    def infer(self, c: Call) -> list[Spec]:
        c.axis(c["axis"], c.ins[0].rank)
        return [c.like(0)]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        axis = c["axis"]
        if x.size == 0:
            return x
        with np.errstate(all="ignore"):
            shifted = wide(x)
            shifted = shifted - np.max(shifted, axis, keepdims=True)
            e = np.exp(shifted)
            total = np.sum(e, axis, keepdims=True)
            return (shifted - np.log(total) if self.logarithm else e / total).astype(x.dtype)

    def bind(self, c: Call) -> Kernel | None:
        x = c.ins[0]
        if x.dtype != DType.FLOAT or x.size == 0:
            return None
        axis = c.axis(c["axis"], x.rank)
        return Kernel("reduce.softmax_f32", (int(self.logarithm), x.shape[axis], prod(x.shape[axis + 1 :])))

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        y, axes = c.node.outputs[0], (c.axis(c["axis"], c.ins[0].rank),)
        if self.logarithm:
            return [g.sub(dy, g.mul(g.emit("Exp", [y]), g.sum(dy, axes)))]
        weighted = g.mul(dy, y)
        return [g.sub(weighted, g.mul(y, g.sum(weighted, axes)))]


@op("Softmax", since=13)
class Softmax(_Softmax):
    """Y = exp(X) / sum of exp(X) along `axis`, without overflow. A lane with a NaN or +infinity is NaN.

    The float32 driver gives 0 for results below 1.7e-38.
    """


@op("LogSoftmax", since=13)
class LogSoftmax(_Softmax):
    """Y = X - log(sum of exp(X)) along `axis`, without overflow. A lane with a NaN or +infinity is NaN."""

    logarithm = True


@op("Hardmax", since=13)
class Hardmax(Op):
    """1 at the first largest element along `axis`, 0 elsewhere."""

    inputs, outputs = ("input",), ("output",)
    attrs = {"axis": Attr("int", -1)}
    dtypes = {"input": FLOATS}

    def infer(self, c: Call) -> list[Spec]:
        c.axis(c["axis"], c.ins[0].rank)
        return [c.like(0)]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        y = np.zeros_like(x)
        if x.size:
            np.put_along_axis(y, np.argmax(x, c["axis"], keepdims=True), 1, c["axis"])
        return y
