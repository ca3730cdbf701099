"""Averages of quantized tensors: over windows, over the image, over any axes.

Sums of integers are exact. In float32, each operation rounded by itself, with n the number of elements averaged:

    y = clamp(rint(sum(x - x_zero) * (x_scale / y_scale / n)) + y_zero)

Sources: the com.microsoft operators of the same names. A result without scale and zero point is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from evort.ops.base import REQUIRED, Attr, Call, Kernel, Op, op
from evort.ops.pool import aligned, axis_ints, patches, window_attrs, windows
from evort.ops.qoperands import (
    BYTES,
    INTEGERS,
    Quantity,
    operand_dtypes,
    operand_type,
    quantities,
    result,
    result_type,
)
from evort.types import DType, Spec

_MOST = 1 << 22  # rows that are summed down in 32 bits
_FLOAT = frozenset({DType.FLOAT})


class _Average(Op):
    """Shared by the averages: X, its scale and zero point, then those of Y."""

    inputs = ("X", "x_scale", "x_zero_point?", "y_scale?", "y_zero_point?")
    outputs = ("Y",)
    dtypes = {
        "X": operand_dtypes("X")["X"],
        **dict.fromkeys(("x_scale", "y_scale"), _FLOAT),
        **dict.fromkeys(("x_zero_point", "y_zero_point"), INTEGERS),
    }

    def result(self, c: Call, shape: tuple[int, ...]) -> list[Spec]:
        """The output, of that shape. Raises ShapeError."""
        if c.attrs.get("channels_last"):
            raise c.error("channels_last is not supported: transpose the tensor, or quantize without that layout")
        return [Spec(result_type(c, 3, operand_type(c, 0)), shape)]

    def finish(self, c: Call, given: tuple[np.ndarray | None, ...], total: np.ndarray, count: np.ndarray) -> np.ndarray:
        """From exact sums and how many elements each has."""
        (x,), y = quantities(c, given, 0), result(c, given, 3)
        with np.errstate(all="ignore"):
            unit = x.scale if y is None else x.scale / y.scale
            real = total.astype(np.float32) * (unit / np.maximum(count, 1).astype(np.float32))
        return real if y is None else y.rounded(real)

    def parameters(self, c: Call) -> tuple[tuple[int, ...], np.float32] | None:
        """((types of X and Y, zero points of X and Y, smallest and largest Y), X's scale in units of Y's), where they
        are constants and X is of 8 bits."""
        if not c.known(1, 2, 3, 4) or c.ins[0].dtype not in BYTES:
            return None
        x, dtype = Quantity.of(c, 0), c.outs[0].dtype
        y = None if dtype == DType.FLOAT else Quantity.of(c, 2, dtype)
        low, high = (0, 0) if y is None else y.bounds
        with np.errstate(all="ignore"):
            unit = x.scale if y is None else x.scale / y.scale
        return (x.dtype, dtype, x.zero, 0 if y is None else y.zero, low, high), unit

    def mean(self, c: Call, axes: tuple[int, ...]) -> Kernel | None:
        """The driver of a mean over axes that follow one another."""
        x, found = c.ins[0], self.parameters(c)
        kept = [a for a in axes if x.shape[a] != 1]
        apart = bool(kept) and any(x.shape[a] != 1 for a in range(kept[0], kept[-1]) if a not in kept)
        n = prod(x.shape[a] for a in axes)
        if found is None or apart or c.outs[0].size == 0 or not 0 < n <= _MOST:
            return None
        inner = x.shape[1] if x.channels_last else prod(x.shape[kept[-1] + 1 :]) if kept else 1
        ints, unit = found
        return Kernel(
            "qnormalize.mean", ints=(*ints, n, inner), reals=(np.float32(unit) / np.float32(n),), inputs=(0,)
        )  # fmt: skip


@op("QLinearAveragePool", domain="com.microsoft")
class QLinearAveragePool(_Average):
    """Y = mean of each window, over the elements of X alone, or with `count_include_pad` over the padding too, whose
    real value is 0."""

    attrs = {**window_attrs(), "count_include_pad": Attr("int", 0), "channels_last": Attr("int", 0)}

    def infer(self, c: Call) -> list[Spec]:
        return self.result(c, (*c.ins[0].shape[:2], *(w.out for w in windows(c))))

    def reference(self, c: Call, *given: np.ndarray | None) -> np.ndarray:
        axes, n = windows(c), given[0].ndim - 2
        x = quantities(c, given, 0)[0].centred(given[0]).astype(np.float64)
        total = np.sum(patches(x, axes, 0), axis=tuple(range(-n, 0)))
        count = np.ones((1,) * n)
        for i, w in enumerate(axes):
            at = np.arange(w.out)[:, None] * w.stride - w.pad + np.arange(w.kernel) * w.dilation
            low, high = (-w.pad, w.size + w.pad_end) if c["count_include_pad"] else (0, w.size)
            count = count * np.sum((at >= low) & (at < high), 1).reshape(-1, *(1,) * (n - 1 - i))
        return self.finish(c, given, total, count)

    def bind(self, c: Call) -> Kernel | None:
        axes, found = windows(c), self.parameters(c)
        if found is None or c.outs[0].size == 0 or len(axes) > 3:
            return None
        ints, unit = found
        padded, sizes = axis_ints(axes, bool(c["count_include_pad"]))
        depth, height, width = padded
        if prod(w.kernel for w in axes) > _MOST:
            return None
        pointers = aligned(8 * min(depth.kernel, depth.size) * min(height.kernel, height.size))
        scratch = pointers + aligned(4 * (width.size + 2 * width.out))
        return Kernel(
            "pooling.quantized_average",
            ints=(*ints, pointers, scratch, *sizes),
            reals=(unit,),
            scratch=scratch * c.threads,
            inputs=(0,),
        )


@op("QLinearGlobalAveragePool", domain="com.microsoft")
class QLinearGlobalAveragePool(_Average):
    """Y = mean of each channel of each instance."""

    attrs = {"channels_last": Attr("int", 0)}

    def infer(self, c: Call) -> list[Spec]:
        x = c.ins[0]
        if x.rank < 3 or 0 in x.shape[2:]:
            raise c.error("the input must have a batch, a channel and at least one spatial axis, none of them empty")
        return self.result(c, (*x.shape[:2], *(1,) * (x.rank - 2)))

    def reference(self, c: Call, *given: np.ndarray | None) -> np.ndarray:
        x = quantities(c, given, 0)[0].centred(given[0])
        total = np.sum(x, tuple(range(2, x.ndim)), np.float64, keepdims=True)
        return self.finish(c, given, total, np.array(prod(x.shape[2:])))

    def channels_last(self, c: Call) -> Sequence[tuple[int, ...]]:
        return () if self.bind(c) is None else ((0,),)

    def bind(self, c: Call) -> Kernel | None:
        return self.mean(c, tuple(range(2, c.ins[0].rank)))


@op("QLinearReduceMean", domain="com.microsoft")
class QLinearReduceMean(_Average):
    """Y = mean over `axes`."""

    inputs = ("data", "data_scale", "data_zero_point?", "reduced_scale?", "reduced_zero_point?")
    outputs = ("reduced",)
    dtypes = {**operand_dtypes("data"), "reduced_scale": _FLOAT, "reduced_zero_point": INTEGERS}
    attrs = {"axes": Attr("ints", REQUIRED), "keepdims": Attr("int", REQUIRED)}

    def infer(self, c: Call) -> list[Spec]:
        x = c.ins[0]
        axes = c.axes(c["axes"], x.rank)
        if not axes:
            raise c.error("axes must name at least one axis")
        kept = [(1 if i in axes else d) for i, d in enumerate(x.shape) if i not in axes or c["keepdims"]]
        return self.result(c, tuple(kept))

    def reference(self, c: Call, *given: np.ndarray | None) -> np.ndarray:
        x = quantities(c, given, 0)[0].centred(given[0])
        axes = c.axes(c["axes"], x.ndim)
        total = np.sum(x, axes, np.float64, keepdims=bool(c["keepdims"]))
        return self.finish(c, given, total, np.array(prod(x.shape[a] for a in axes)))

    def bind(self, c: Call) -> Kernel | None:
        return self.mean(c, c.axes(c["axes"], c.ins[0].rank))
