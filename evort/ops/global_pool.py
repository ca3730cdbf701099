"""Pooling over the whole image."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from evort.ops.base import Attr, Call, Kernel, Op, op, wide
from evort.ops.pool import spatial_axes
from evort.ops.reduce_driver import ABS, EXTREME, POST_DIVIDE, POST_NONE, POST_SQRT, SQUARE, SUM, WIDE, reduce_kernel
from evort.types import FLOATS, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients


class _Global(Op):
    """Pools over all spatial axes, kept as 1."""

    inputs, outputs = ("X",), ("Y",)
    dtypes = {"X": FLOATS}
    form = (WIDE, SUM, POST_DIVIDE)

    def infer(self, c: Call) -> list[Spec]:
        spatial = spatial_axes(c)
        if 0 in spatial:
            raise c.error("an image without pixels cannot be pooled")
        return [Spec(c.ins[0].dtype, (*c.ins[0].shape[:2], *(1,) * len(spatial)))]

    def bind(self, c: Call) -> Kernel | None:
        x = c.ins[0]
        return reduce_kernel(c, tuple(range(2, x.rank)), *self.form) if x.dtype == DType.FLOAT else None

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        dims, x, y = c.ins[0].shape, c.node.inputs[0], c.node.outputs[0]
        if self.name == "GlobalAveragePool":
            return [g.expand(g.scale(dy, 1 / prod(dims[2:])), dims)]
        if self.name == "GlobalMaxPool":
            return [g.of_extremes(x, y, dy, range(2, len(dims)))]
        return [g.mul(g.lp_share(y, dy, c["p"]), g.lp_slope(x, c["p"]))]


@op("GlobalAveragePool", since=22)
class GlobalAveragePool(_Global):
    """Y = mean of each channel of each instance."""

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        return np.mean(wide(x), axis=tuple(range(2, x.ndim)), keepdims=True)


@op("GlobalMaxPool", since=22)
class GlobalMaxPool(_Global):
    """Y = largest element of each channel of each instance, NaN where there is one."""

    form = (EXTREME, 0, POST_NONE)

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        return np.max(x, axis=tuple(range(2, x.ndim)), keepdims=True)


@op("GlobalLpPool", since=22)
class GlobalLpPool(_Global):
    """Y = (sum of |X|^p)^(1/p) over each channel of each instance."""

    attrs = {"p": Attr("int", 2)}

    def infer(self, c: Call) -> list[Spec]:
        if c["p"] < 1:
            raise c.error(f"p must be at least 1, not {c['p']}")
        return super().infer(c)

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.sum(np.abs(wide(x)) ** c["p"], axis=tuple(range(2, x.ndim)), keepdims=True) ** (1 / c["p"])

    def bind(self, c: Call) -> Kernel | None:
        x, form = c.ins[0], {1: (WIDE, ABS, POST_NONE), 2: (WIDE, SQUARE, POST_SQRT)}.get(c["p"])
        if form is None or x.dtype != DType.FLOAT:
            return None
        return reduce_kernel(c, tuple(range(2, x.rank)), *form)
