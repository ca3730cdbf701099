"""Gradients of pools over windows. Domain `evort`."""

from __future__ import annotations

from typing import Any

import numpy as np

from evort.ops.base import REQUIRED, Attr, Call, Kernel, Op, op, wide
from evort.ops.pool import Window, axis_ints, patches, window_attrs, windows
from evort.types import FLOATS, DType, Spec


def _scatter(values: np.ndarray, axes: list[Window]) -> np.ndarray:
    """The transpose of `patches`: [N, C, out..., kernel...] added up to [N, C, size...]; what was padding is lost."""
    before = [max(0, w.pad) for w in axes]
    total = np.zeros((*values.shape[:2], *(b + max(w.size, w.needed) for b, w in zip(before, axes, strict=True))),
                     values.dtype)  # fmt: skip
    for tap in np.ndindex(*(w.kernel for w in axes)):
        at = tuple(
            slice(k * w.dilation, k * w.dilation + (w.out - 1) * w.stride + 1, w.stride)
            for k, w in zip(tap, axes, strict=True)
        )
        total[(slice(None), slice(None), *at)] += values[(..., *tap)]
    return total[(slice(None), slice(None), *(slice(b, b + w.size) for b, w in zip(before, axes, strict=True)))]


class _PoolGrad(Op):
    def kernel(self, c: Call, spec: Spec, law: int, include_pad: bool) -> Kernel | None:
        axes = windows(c)
        if spec.dtype != DType.FLOAT or spec.size == 0 or len(axes) > 3:
            return None
        _, ints = axis_ints(axes, include_pad)
        return Kernel("train.pool_grad_f32", (law, *ints))


@op("MaxPoolGrad", domain="evort")
class MaxPoolGrad(_PoolGrad):
    """dX of a MaxPool of X with the attributes given: each window's gradient goes to the first of its largest
    elements."""

    inputs, outputs = ("dY", "X"), ("dX",)
    attrs = window_attrs()
    dtypes = {"dY": FLOATS, "X": FLOATS}

    def infer(self, c: Call) -> list[Spec]:
        dy, x = c.ins
        inner = Call(c.node, c.attrs, [x])
        if dy.shape != (*x.shape[:2], *(w.out for w in windows(inner))) or dy.dtype != x.dtype:
            raise c.error("dY must have the element type and shape of the pool's output")
        c.memo = inner.memo
        return [c.like(1)]

    def reference(self, c: Call, dy: np.ndarray, x: np.ndarray) -> np.ndarray:
        axes = windows(Call(c.node, c.attrs, [c.ins[1]]))
        values = patches(x, axes, -np.inf)
        flat = values.reshape(*dy.shape, -1)
        first = np.argmax(flat, -1, keepdims=True)
        chosen = np.zeros(flat.shape, dy.dtype)
        np.put_along_axis(chosen, first, dy[..., None], -1)
        return _scatter(chosen.reshape(values.shape), axes)

    def bind(self, c: Call) -> Kernel | None:
        return self.kernel(c, c.ins[1], 0, False)


@op("AveragePoolGrad", domain="evort")
class AveragePoolGrad(_PoolGrad):
    """dX [input_shape] of an AveragePool with the attributes given: each window's gradient is shared by its
    elements."""

    inputs, outputs = ("dY",), ("dX",)
    attrs = {**window_attrs(), "count_include_pad": Attr("int", 0), "input_shape": Attr("ints", REQUIRED)}
    dtypes = {"dY": FLOATS}

    def infer(self, c: Call) -> list[Spec]:
        x = Spec(c.ins[0].dtype, tuple(c["input_shape"]))
        if min(x.shape, default=0) < 0:
            raise c.error(f"input_shape {list(x.shape)} has a negative dimension")
        inner = Call(c.node, c.attrs, [x])
        if c.ins[0].shape != (*x.shape[:2], *(w.out for w in windows(inner))):
            raise c.error("dY must have the shape of the pool's output")
        c.memo = inner.memo
        return [x]

    def reference(self, c: Call, dy: np.ndarray) -> Any:
        axes = windows(Call(c.node, c.attrs, [c.outs[0] if c.outs else Spec(c.ins[0].dtype, tuple(c["input_shape"]))]))
        n = len(axes)
        share = wide(dy)
        for i, w in enumerate(axes):
            at = np.arange(w.out)[:, None] * w.stride - w.pad + np.arange(w.kernel) * w.dilation
            low, high = (-w.pad, w.size + w.pad_end) if c["count_include_pad"] else (0, w.size)
            count = np.sum((at >= low) & (at < high), 1)
            share = share / np.maximum(count, 1).reshape(-1, *(1,) * (n - 1 - i))
        kernel = tuple(w.kernel for w in axes)
        spread = np.broadcast_to(share.reshape(*share.shape, *(1,) * n), (*share.shape, *kernel))
        return _scatter(spread, axes).astype(dy.dtype)

    def bind(self, c: Call) -> Kernel | None:
        return self.kernel(c, c.outs[0], 1, bool(c["count_include_pad"]))
