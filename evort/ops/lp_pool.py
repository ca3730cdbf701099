"""LpPool: p-norms of windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evort.ops.activation import activation_attrs, apply_reference
from evort.ops.base import Attr, Call, Kernel, op, wide
from evort.ops.pool import Pool, patches, window_attrs, windows
from evort.types import STORAGE, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

_DRIVER_SQUARE, _DRIVER_ABS = 2, 3


@op("LpPool", since=22)
class LpPool(Pool):
    """Y = (sum of |X|^p over each window)^(1/p)."""

    attrs = {**window_attrs(), "p": Attr("int", 2), **activation_attrs()}

    def infer(self, c: Call) -> list[Spec | None]:
        if c["p"] < 1:
            raise c.error(f"p must be at least 1, not {c['p']}")
        return super().infer(c)

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        axes, p = windows(c), c["p"]
        with np.errstate(all="ignore"):
            powers = np.abs(wide(x)) ** p
            y = np.sum(patches(powers, axes, 0), axis=tuple(range(2 - x.ndim, 0))) ** (1 / p)
            return apply_reference(c, y.astype(x.dtype))

    def bind(self, c: Call) -> Kernel | None:
        op = {1: _DRIVER_ABS, 2: _DRIVER_SQUARE}.get(c["p"])
        return self.kernel(c, op, 4) if op is not None and c.ins[0].dtype == DType.FLOAT else None

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        p, x, y = c["p"], c.node.inputs[0], c.node.outputs[0]
        attrs = {k: c[k] for k in window_attrs() if c[k] is not None}
        if c["activation"]:
            y = g.emit("LpPool", [x], {**attrs, "p": p})
        dy = g.lp_share(y, dy, p)
        # AveragePoolGrad divides by the number of a window's elements.
        count = np.ones(())
        for w in windows(c):
            at = np.arange(w.out)[:, None] * w.stride - w.pad + np.arange(w.kernel) * w.dilation
            count = count[..., None] * np.maximum(np.sum((at >= 0) & (at < w.size), 1), 1)
        dy = g.mul(dy, g.constant(count.astype(STORAGE[c.ins[0].dtype])))
        total = g.emit("AveragePoolGrad", [dy], {**attrs, "input_shape": list(c.ins[0].shape)}, "evort")
        return [g.mul(total, g.lp_slope(x, p))]


# d/dx of y = (sum |x|^p)^(1/p) is y^(1-p) times sign(x) |x|^(p-1).
