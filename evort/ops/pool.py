"""Pooling over windows (evort.ops.global_pool and regions have what pools over anything else).

MaxPool, AveragePool and LpPool may carry an activation (evort.ops.activation).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from evort.ops.activation import activation_attrs, activation_ints_reals, apply_reference, check_activation
from evort.ops.base import REQUIRED, Attr, Call, Kernel, Op, op, wide
from evort.types import FLOATS, STORAGE, DType, Spec

if TYPE_CHECKING:
    from evort.graph import Node
    from evort.ops.gradients import Gradients

LIMIT = 1 << 31  # for each attribute: what follows fits 64 bits
_DRIVER_MAX, _DRIVER_SUM, _DRIVER_INT8, _DRIVER_UINT8, _DRIVER_INT16 = 0, 1, 8, 9, 10
_BYTES = frozenset({DType.INT8, DType.UINT8})
_LAST_TAPS = 256  # most of the driver for channels last
_WINDOW = {
    "kernel_shape": Attr("ints", REQUIRED),
    "strides": Attr("ints"),
    "pads": Attr("ints"),
    "dilations": Attr("ints"),
    "auto_pad": Attr("str", "NOTSET"),
    "ceil_mode": Attr("int", 0),
}


def window_attrs() -> dict[str, Attr]:
    """The attributes that `windows` reads."""
    return dict(_WINDOW)


class Window:
    """The windows along one axis: window o covers o*stride - pad + k*dilation, k in [0, kernel), of `size`
    elements. pad, pad_end: padding before and after; out: how many windows there are."""

    __slots__ = ("dilation", "kernel", "out", "pad", "pad_end", "size", "stride")

    def __init__(self, size: int, kernel: int, stride: int, dilation: int, pad: int, pad_end: int, out: int):
        self.size, self.kernel, self.stride, self.dilation = size, kernel, stride, dilation
        self.pad, self.pad_end, self.out = pad, pad_end, out

    @property
    def needed(self) -> int:
        """Elements after the padding before, up to the end of the last window."""
        return (self.out - 1) * self.stride + (self.kernel - 1) * self.dilation + 1 - self.pad


def listed(c: Call, name: str, count: int, default: int, least: int) -> list[int]:
    """An attribute of one number for each axis, checked."""
    given = c[name] if c.attrs.get(name) else [default] * count
    if len(given) != count:
        raise c.error(f"{name} has {len(given)} numbers, expected {count}")
    if given and (min(given) < least or max(given) >= LIMIT):
        raise c.error(f"{name} {given} must be at least {least} (and below 2^31)")
    return list(given)


def spatial_axes(c: Call) -> tuple[int, ...]:
    x = c.ins[0]
    if x.rank < 3:
        raise c.error("the input must have a batch, a channel and at least one spatial axis")
    return x.shape[2:]


def windows(c: Call) -> list[Window]:
    """The windows of a pool, one for each spatial axis. Raises ShapeError for attributes that the operator forbids."""
    if c.memo is not None:
        return c.memo
    spatial = spatial_axes(c)
    n = len(spatial)
    kernel = listed(c, "kernel_shape", n, 0, 1)
    strides, dilations = listed(c, "strides", n, 1, 1), listed(c, "dilations", n, 1, 1)
    pads = listed(c, "pads", 2 * n, 0, 0)
    auto = c["auto_pad"]
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise c.error(f"auto_pad {auto!r} is none of NOTSET, VALID, SAME_UPPER, SAME_LOWER")
    found = []
    for i, (size, k, s, d) in enumerate(zip(spatial, kernel, strides, dilations, strict=True)):
        extent = (k - 1) * d + 1
        before, after = pads[i], pads[n + i]
        if auto.startswith("SAME"):
            out = -(-size // s)
            total = max(0, (out - 1) * s + extent - size)
            before = total // 2 if auto == "SAME_UPPER" else total - total // 2
            after = total - before
        else:
            if auto == "VALID":
                before = after = 0
            room = size + before + after - extent
            if room < 0:
                raise c.error(f"a window of {extent} does not fit spatial axis {i} with its padding")
            out = room // s + 1
            if c["ceil_mode"] and auto == "NOTSET" and room % s and out * s < size + before:
                out += 1  # a last window that begins before the padding at the end
        if size == 0 or out < 1:
            raise c.error(f"spatial axis {i} has no window")
        found.append(Window(size, k, s, d, before, after, out))
    c.memo = found
    return found


def patches(x: np.ndarray, axes: list[Window], fill: Any) -> np.ndarray:
    """[N, C, out..., kernel...]: the windows of x, `fill` where they leave it."""
    pads = [(w.pad, max(0, w.needed - w.size)) for w in axes]
    x = np.pad(x, [(0, 0), (0, 0), *pads], constant_values=fill)
    at = tuple(range(2, x.ndim))
    views = np.lib.stride_tricks.sliding_window_view(x, [(w.kernel - 1) * w.dilation + 1 for w in axes], at)
    steps = [slice(0, (w.out - 1) * w.stride + 1, w.stride) for w in axes]
    return views[(slice(None), slice(None), *steps, *(slice(None, None, w.dilation) for w in axes))]


def _least(dtype: np.dtype) -> Any:
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min


class Pool(Op):
    """Shared by MaxPool, AveragePool and LpPool."""

    inputs: tuple[str, ...] = ("X",)
    outputs: tuple[str, ...] = ("Y",)
    dtypes = {"X": FLOATS}

    def infer(self, c: Call) -> list[Spec | None]:
        check_activation(c)
        x = c.ins[0]
        return [Spec(x.dtype, (*x.shape[:2], *(w.out for w in windows(c))))]

    def kernel(self, c: Call, op: int, size: int, include_pad: bool = False) -> Kernel | None:
        """The driver, for one to three spatial axes."""
        axes = windows(c)
        if c.outs[0].size == 0 or len(axes) > 3:
            return None
        axes, ints = axis_ints(axes, include_pad)
        act, params = activation_ints_reals(c)
        depth, height, width = axes
        pointers = aligned(8 * min(depth.kernel, depth.size) * min(height.kernel, height.size))
        scratch = pointers + aligned(size * width.size)
        return Kernel("pooling.pool", (op, size, pointers, scratch, *ints, *act), params, scratch * c.threads)


def axis_ints(axes: list[Window], include_pad: bool) -> tuple[list[Window], list[int]]:
    """One to three axes, led by axes of length 1 to make three, and the eight numbers of each for the drivers."""
    axes = [Window(1, 1, 1, 1, 0, 0, 1)] * (3 - len(axes)) + axes
    ints = []
    for w in axes:
        counts = (-w.pad, w.size + w.pad_end) if include_pad else (0, w.size)
        ints += [w.size, w.out, w.kernel, w.stride, w.dilation, w.pad, *counts]
    return axes, ints


def aligned(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


@op("MaxPool", since=22)
class MaxPool(Pool):
    """Y = largest element of each window, NaN where there is one; Indices = its position in X, flattened.

    `storage_order` 1 flattens the spatial axes in column-major order. -infinity (the least integer) and index -1 where
    a window lies wholly in the padding. int16 is an extension of evort.
    """

    outputs = ("Y", "Indices?")
    joins = "QLinearConv"
    attrs = {**_WINDOW, "storage_order": Attr("int", 0), **activation_attrs()}
    dtypes = {"X": FLOATS | {DType.INT8, DType.UINT8, DType.INT16}}

    def infer(self, c: Call) -> list[Spec | None]:
        y = super().infer(c)[0]
        if c["storage_order"] not in (0, 1):
            raise c.error(f"storage_order must be 0 or 1, not {c['storage_order']}")
        if c["activation"] and y.dtype not in FLOATS:
            raise c.error("only pools of floats can have an activation")
        return [y, Spec(DType.INT64, y.shape)] if c.wants(1) else [y]

    def reference(self, c: Call, x: np.ndarray) -> Any:
        axes, n = windows(c), x.ndim - 2
        values = patches(x, axes, _least(x.dtype))
        over = tuple(range(-n, 0))
        y = np.max(values, axis=over)
        result = apply_reference(c, y)
        if not c.wants(1):
            return result
        order = "F" if c["storage_order"] else "C"
        place = np.arange(prod(x.shape[2:]), dtype=np.int64).reshape(x.shape[2:], order=order)
        place = place + prod(x.shape[2:]) * np.arange(prod(x.shape[:2])).reshape(*x.shape[:2], *(1,) * n)
        place = patches(place, axes, -1)
        largest = np.expand_dims(y, over)
        first = (place >= 0) & ((values == largest) | (values != values))
        flat = first.reshape(*y.shape, -1)
        index = np.take_along_axis(place.reshape(flat.shape), np.argmax(flat, -1, keepdims=True), -1)[..., 0]
        return result, np.where(flat.any(-1), index, -1)

    def channels_last(self, c: Call) -> Sequence[tuple[int, ...] | dict[int, int]]:
        axes, dtype = windows(c), c.ins[0].dtype
        taps = prod(w.kernel for w in axes)
        if dtype not in _BYTES or c.wants(1) or len(axes) > 3 or taps > _LAST_TAPS or c.ins[0].size >= LIMIT:
            return ()
        return (0,), {~0: 0}

    def bind_last(self, c: Call) -> Kernel:
        """The driver for an image of bytes that lies channels last."""
        axes, ints = axis_ints(windows(c), False)
        turned = not c.outs[0].channels_last
        row = aligned(axes[2].size * c.ins[0].shape[1] + 16)  # as much is read behind it
        slot = row + (aligned(axes[2].out * c.ins[0].shape[1] + 16) if turned else 0)
        ints = (int(c.ins[0].dtype == DType.INT8), *c.ins[0].shape[:2], row, slot, int(turned), *ints)
        return Kernel("qnhwc.max_pool", ints, scratch=slot * c.threads)

    def bind(self, c: Call) -> Kernel | None:
        if c.ins[0].channels_last or c.outs[0].channels_last:
            return self.bind_last(c)
        known = {
            DType.FLOAT: _DRIVER_MAX, DType.INT8: _DRIVER_INT8, DType.UINT8: _DRIVER_UINT8, DType.INT16: _DRIVER_INT16,
        }  # fmt: skip
        dtype = c.ins[0].dtype
        if dtype not in known:
            return None
        kernel = self.kernel(c, known[dtype], STORAGE[dtype].itemsize)
        if kernel is None or not c.wants(1):
            return kernel
        if c["activation"]:
            return None
        ints = (kernel.ints[0], c["storage_order"], *kernel.ints[4:28])
        return Kernel("pooling.max_with_indices", ints)

    def join(self, calls: Sequence[Call]) -> tuple[int, Node] | None:
        from evort.ops import qconv_pool

        return qconv_pool.join(*calls)

    def gradient(self, g: Gradients, c: Call, dy: str, *_: None) -> list[str | None]:
        attrs = {k: c[k] for k in _WINDOW if c[k] is not None}
        return [g.emit("MaxPoolGrad", [dy, c.node.inputs[0]], attrs, "evort")]


@op("AveragePool", since=22)
class AveragePool(Pool):
    """Y = mean of each window, over the elements of X alone, or with `count_include_pad` over the padding too.

    0 where a window lies wholly in the padding.
    """

    attrs = {**_WINDOW, "count_include_pad": Attr("int", 0), **activation_attrs()}

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        axes, n = windows(c), x.ndim - 2
        with np.errstate(all="ignore"):
            sums = np.sum(patches(wide(x), axes, 0), axis=tuple(range(-n, 0)))
            for i, w in enumerate(axes):
                at = np.arange(w.out)[:, None] * w.stride - w.pad + np.arange(w.kernel) * w.dilation
                low, high = (-w.pad, w.size + w.pad_end) if c["count_include_pad"] else (0, w.size)
                count = np.sum((at >= low) & (at < high), 1)
                sums = sums / np.maximum(count, 1).reshape(-1, *(1,) * (n - 1 - i))
            return apply_reference(c, sums.astype(x.dtype))

    def bind(self, c: Call) -> Kernel | None:
        if c.ins[0].dtype != DType.FLOAT:
            return None
        return self.kernel(c, _DRIVER_SUM, 4, bool(c["count_include_pad"]))

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        attrs = {k: c[k] for k in (*_WINDOW, "count_include_pad") if c[k] is not None}
        attrs["input_shape"] = list(c.ins[0].shape)
        return [g.emit("AveragePoolGrad", [dy], attrs, "evort")]
