"""Convolutions: Conv, and what it shares with ConvTranspose, with those of integers (qconv.py), DeformConv and Col2Im.

All of them relate positions of an image to positions of a smaller or larger one by

    image = stride * position + dilation * tap - pad

with a tap for each element of the kernel. The references go through the taps; each adds one matrix product over a
strided slice, so that no padded copy and no im2col matrix is built.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from evort.graph import Graph, Node
from evort.ops.activation import activation_attrs, activation_ints_reals, activation_params, apply_reference
from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.types import FLOATS, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

_LIMIT = 1 << 31  # of strides, dilations and pads, so that 64-bit index arithmetic cannot overflow
_MOST = (1 << 30) - 1  # of a spatial axis in the drivers, where lanes are counted in 32 bits
_DEPTHWISE, _DIRECT, _LANES = "conv.depthwise_f32", "conv.direct_f32", "conv.direct_lanes_f32"
_LINE = "conv.winograd_line_f32"
_ALONE = 1 << 20  # multiply-adds that are not worth a second thread
_AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


class Window:
    """How a kernel moves over the spatial axes: one entry for each axis.

    kernel, strides, dilations: sizes. pads: at the beginning of each axis. image: the larger side that the kernel
    reads (Conv) or adds to (ConvTranspose, Col2Im). out: the number of positions that the kernel takes.
    """

    __slots__ = ("_ints", "dilations", "image", "kernel", "out", "pads", "strides")

    def __init__(self, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int],
                 image: Sequence[int], out: Sequence[int]):  # fmt: skip
        self.kernel = tuple(kernel)
        self.strides = tuple(strides)
        self.dilations = tuple(dilations)
        self.pads = tuple(pads)
        self.image = tuple(image)
        self.out = tuple(out)
        self._ints: tuple[int, ...] | None = None

    def taps(self) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]]:
        """For each tap that meets the image: its index, the positions at which it does, and the image's elements."""
        for tap in np.ndindex(*self.kernel):
            positions, elements = [], []
            for t, s, d, p, size, out in zip(
                tap, self.strides, self.dilations, self.pads, self.image, self.out, strict=True
            ):
                offset = t * d - p
                first = max(0, -(offset // s))
                last = min(out, (size - 1 - offset) // s + 1)
                if first >= last:
                    break
                positions.append(slice(first, last))
                elements.append(slice(first * s + offset, (last - 1) * s + offset + 1, s))
            else:
                yield tap, tuple(positions), tuple(elements)

    def trimmed(self) -> tuple[Window, tuple[slice, ...]]:
        """The window without first and last taps of an axis that never meet the image, and the taps that it has."""
        met = [
            [t for t in range(kernel) if max(0, -((t * d - p) // s)) < min(out, (size - 1 - t * d + p) // s + 1)]
            for kernel, s, d, p, size, out in zip(
                self.kernel, self.strides, self.dilations, self.pads, self.image, self.out, strict=True
            )
        ]
        if not all(met) or all(len(taps) == kernel for taps, kernel in zip(met, self.kernel, strict=True)):
            return self, tuple(map(slice, self.kernel))
        taps = tuple([slice(found[0], found[-1] + 1) for found in met])
        kernel = [found[-1] + 1 - found[0] for found in met]
        pads = [p - found[0] * d for p, found, d in zip(self.pads, met, self.dilations, strict=True)]
        return Window(kernel, self.strides, self.dilations, pads, self.image, self.out), taps

    def ints(self) -> tuple[int, ...]:
        """The parameters of the compiled drivers: image, out, kernel, strides, dilations and pads of three axes. Axes
        of one element and one tap are left out, so that the last one is long where any is. Empty where more than
        three are left, or one is too long."""
        if self._ints is not None:
            return self._ints
        rows = (self.image, self.out, self.kernel, self.strides, self.dilations, self.pads)
        axes = [axis for axis in zip(*rows, strict=True) if axis[:3] != (1, 1, 1) or axis[5]]
        if len(axes) > 3 or max(self.image) > _MOST:
            self._ints = ()
        else:
            axes = [(1, 1, 1, 1, 1, 0)] * (3 - len(axes)) + axes
            self._ints = tuple(chain.from_iterable(zip(*axes, strict=True)))
        return self._ints


def same_dtype(c: Call, *indices: int) -> None:
    """Raises ShapeError where the inputs that are there, of those given, have different element types."""
    ins, found = c.ins, None
    for i in indices:
        if i < len(ins) and ins[i] is not None:
            if found is None:
                found = ins[i].dtype
            elif ins[i].dtype != found:
                raise c.error("operands must have one element type")


NARROW = frozenset({DType.FLOAT16, DType.BFLOAT16})


def weights_dtype(c: Call, *indices: int) -> None:
    """As same_dtype for inputs 0, 1 and those given, but for weights (input 1) of float16 or bfloat16 beside float32:
    they are widened as they are used, an extension of evort."""
    narrow = c.ins[0].dtype == DType.FLOAT and c.ins[1].dtype in NARROW
    same_dtype(c, 0, *indices, *(() if narrow else (1,)))


def _numbers(name: str, values: Sequence[int] | None, rank: int, default: int, low: int) -> tuple[int, ...]:
    """An attribute with `rank` integers of at least `low`. Raises ValueError."""
    if values is None:
        return (default,) * rank
    if len(values) != rank:
        raise ValueError(f"{name} has {len(values)} items; {rank} are needed")
    if rank and (min(values) < low or max(values) >= _LIMIT):
        raise ValueError(f"{name} {list(values)} must be at least {low} and less than 2**31")
    return tuple(values)


def _list(c: Call, name: str, rank: int, default: int, low: int) -> tuple[int, ...]:
    """The same of a node. Raises ShapeError."""
    try:
        return _numbers(name, c[name], rank, default, low)
    except ValueError as error:
        raise c.error(str(error)) from None


def _auto_pad(c: Call) -> str:
    if c["auto_pad"] not in _AUTO_PADS:
        raise c.error(f"auto_pad {c['auto_pad']!r} must be one of {', '.join(_AUTO_PADS)}")
    return c["auto_pad"]


def _split_pads(totals: Sequence[int], more_first: bool) -> tuple[int, ...]:
    """The share of each total that goes before: half of it, and the odd one too where more_first."""
    return tuple((t + more_first) // 2 for t in totals)


def check_kernel(c: Call, kernel: tuple[int, ...]) -> None:
    if c["kernel_shape"] is not None and tuple(c["kernel_shape"]) != kernel:
        raise c.error(f"kernel_shape {list(c['kernel_shape'])} is not that of the weights, {list(kernel)}")


def conv_window(c: Call, image: tuple[int, ...], kernel: tuple[int, ...], auto_pad: str = "NOTSET") -> Window:
    """The window of a convolution with attributes strides, dilations and pads.

    Raises ShapeError for attributes out of range and for an image smaller than the kernel.
    """
    given = [None if values is None else tuple(values) for values in (c["strides"], c["dilations"], c["pads"])]
    try:
        return _window(image, kernel, *given, auto_pad)
    except ValueError as error:
        raise c.error(str(error)) from None


@lru_cache(256)
def _window(
    image: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...] | None,
    dilations: tuple[int, ...] | None,
    pads: tuple[int, ...] | None,
    auto_pad: str,
) -> Window:
    """The window, kept for the next layer of the same geometry. Raises ValueError."""
    rank = len(image)
    if 0 in kernel:
        raise ValueError("the kernel has no elements")
    strides = _numbers("strides", strides, rank, 1, 1)
    dilations = _numbers("dilations", dilations, rank, 1, 1)
    pads = _numbers("pads", pads, 2 * rank, 0, 0)
    same, padded = auto_pad.startswith("SAME"), auto_pad == "NOTSET"
    before, out = [], []
    for i, size in enumerate(image):
        step, extent = strides[i], (kernel[i] - 1) * dilations[i] + 1
        if same:
            places = -(-size // step)
            total = max(0, (places - 1) * step + extent - size)
            first = (total + (auto_pad == "SAME_LOWER")) // 2
        else:
            first, last = (pads[i], pads[rank + i]) if padded else (0, 0)
            room = size + first + last - extent
            if room < 0:
                raise ValueError(f"the kernel spans {extent} along spatial axis {i}, more than the padded image")
            places = room // step + 1
        before.append(first)
        out.append(places)
    return Window(kernel, strides, dilations, before, image, out)


def conv_shapes(c: Call, x: Spec, w: Spec) -> tuple[Window, Spec]:
    """Window and output specification of a convolution of x [N, C, D...] with w [M, C/group, k...]."""
    if c.memo is not None:
        return c.memo
    if x.rank < 3 or w.rank != x.rank:
        raise c.error("X must be [N, C, D1, ...] and W [M, C/group, k1, ...] with at least one spatial axis")
    group = c["group"]
    if group < 1 or w.shape[1] * group != x.shape[1] or w.shape[0] % group:
        raise c.error(f"{x.shape[1]} channels in and {w.shape[0]} out do not fit {group} groups of the weights")
    check_kernel(c, w.shape[2:])
    window = conv_window(c, x.shape[2:], w.shape[2:], _auto_pad(c))
    c.memo = window, Spec(x.dtype, (x.shape[0], w.shape[0], *window.out))
    return c.memo


def expect(c: Call, index: int, shape: tuple[int, ...], what: str) -> None:
    if c.has(index) and c.ins[index].shape != shape:
        raise c.error(f"{what} must have shape {list(shape)}")


def convolve(x: np.ndarray, w: np.ndarray, window: Window, group: int) -> np.ndarray:
    """y[n, m, o...] = sum over c and taps of w[m, c, tap] * x[n, c, image(o, tap)], in the dtype of x and w."""
    n, channels, m = x.shape[0], x.shape[1], w.shape[0]
    x = x.reshape(n, group, channels // group, *window.image)
    w = w.reshape(group, m // group, channels // group, *window.kernel)
    y = np.zeros((n, group, m // group, *window.out), x.dtype)
    for tap, positions, elements in window.taps() if w.size and x.size else ():
        part = x[(..., *elements)]
        product = w[(..., *tap)] @ part.reshape(*part.shape[:3], math.prod(part.shape[3:]))
        y[(..., *positions)] += product.reshape(n, group, m // group, *part.shape[3:])
    return y.reshape(n, m, *window.out)


def unconvolve(x: np.ndarray, w: np.ndarray, window: Window, group: int) -> np.ndarray:
    """The transpose of `convolve`: y[n, m, image(o, tap)] += w[c, m, tap] * x[n, c, o], for the channels of a group."""
    n, channels, m = x.shape[0], x.shape[1], w.shape[1]
    parts = x.reshape(n, group, channels // group, *window.out)
    w = np.swapaxes(w.reshape(group, channels // group, m, *window.kernel), 1, 2)
    y = np.zeros((n, group, m, *window.image), x.dtype)
    for tap, positions, elements in window.taps() if w.size and x.size else ():
        part = parts[(..., *positions)]
        product = w[(..., *tap)] @ part.reshape(*part.shape[:3], math.prod(part.shape[3:]))
        y[(..., *elements)] += product.reshape(n, group, m, *part.shape[3:])
    return y.reshape(n, group * m, *window.image)


def per_channel(v: np.ndarray, rank: int) -> np.ndarray:
    """[M] as [M, 1, ...], to go with [N, M, D...] of that rank."""
    return v.reshape(-1, *(1,) * (rank - 2))


def finish(c: Call, y: np.ndarray, dtype: np.dtype, b: np.ndarray | None, z: np.ndarray | None,
            slope: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
    """Bias, residual and activation."""
    if b is not None:
        y = y + per_channel(b, y.ndim)
    if z is not None:
        y = y + z
    if slope is not None:
        slope = per_channel(slope, y.ndim)
    return apply_reference(c, y, slope).astype(dtype, copy=False)


def widened(x: np.ndarray) -> np.ndarray:
    """float16 as float32, in which products of it are added up."""
    return x.astype(np.float32) if x.dtype == np.float16 else x


def conv_attrs() -> dict[str, Attr]:
    return {
        "auto_pad": Attr("str", "NOTSET"),
        "dilations": Attr("ints"),
        "group": Attr("int", 1),
        "kernel_shape": Attr("ints"),
        "pads": Attr("ints"),
        "strides": Attr("ints"),
    }


@op("Conv", since=22)
class Conv(Op):
    """Y = activation(X * W + B + Z), over any number of spatial axes. X [N, C, D...], W [M, C/group, k...], B [M],
    Z and Y [N, M, D'...]. Z, slope [M] (of PRelu), the activation, and W of float16 or bfloat16 beside float32 are
    extensions of evort; so is `exact`: sums of whole numbers below 2^24 are exact (no Winograd)."""

    inputs, outputs = ("X", "W", "B?", "Z?", "slope?"), ("Y",)
    dtypes = dict.fromkeys(("X", "W", "B", "Z", "slope"), FLOATS)
    attrs = {**conv_attrs(), "exact": Attr("int", 0), **activation_attrs()}
    inplace = ((0, 3),)
    choices = (
        _DEPTHWISE, "conv.few_f32", "conv.winograd_f32", _LINE, _DIRECT, _LANES, "conv.pointwise_f32",
        "conv.im2col_f32", "sparse.convolution_f32",
    )  # fmt: skip

    def infer(self, c: Call) -> list[Spec]:
        weights_dtype(c, 2, 3, 4)
        _, out = conv_shapes(c, c.ins[0], c.ins[1])
        channels = (out.shape[1],)
        expect(c, 2, channels, "B")
        expect(c, 3, out.shape, "Z")
        expect(c, 4, channels, "slope")
        activation_params(c)
        if (c["activation"] == "PRelu") != c.has(4):
            raise c.error("activation PRelu and the input slope come together")
        return [out]

    def reference(self, c: Call, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None,
                  z: np.ndarray | None = None, slope: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
        window = conv_window(c, x.shape[2:], w.shape[2:], c["auto_pad"])
        return finish(c, convolve(widened(x), widened(w), window, c["group"]), x.dtype, b, z, slope)

    def expand(self, c: Call) -> Graph | None:
        """Where each weight of 16 bits is used at many positions, all are widened first."""
        x, w = c.ins[0], c.ins[1]
        if w.dtype is x.dtype or x.dtype != DType.FLOAT:
            return None
        from evort.ops import nbits

        out = conv_shapes(c, x, w)[1]
        if out.size // max(1, out.shape[1]) < nbits.WIDENED_FROM:
            return None
        widen = Node("Cast", ["w"], ["wide"], {"to": int(DType.FLOAT)})
        return nbits.widened_graph(c, ("x", "w", "b", "z", "slope"), widen, dict(c.node.attrs))

    def bind(self, c: Call) -> Kernel | None:
        x, w = c.ins[0], c.ins[1]
        window, _ = conv_shapes(c, x, w)
        place = window.ints()
        if x.dtype != DType.FLOAT or not place:
            return None
        if w.dtype != DType.FLOAT:
            from evort.ops import nbits

            return nbits.bind_convolution(c, w, 16, 0, 2)
        if w.sparse is not None:
            from evort.ops import sparse

            number, _ = activation_ints_reals(c)
            ints = (*number, c["group"], *place, 0, x.shape[0], x.shape[1], w.shape[0], 4, 0, 1, len(c.ins))
            kernel = sparse.bind_convolution(c, ints, 1, (0, 2, 3, 4), "convolution_f32")
            if kernel is not None:
                return kernel
        from evort._kernels import conv

        number, reals = activation_ints_reals(c)
        group, channels, taps = c["group"], w.shape[1], math.prod(window.kernel)
        ints = (*number, group, *place)
        plain = taps == 1 and set(window.strides) == {1} and window.out == window.image
        images, inputs = x.shape[:2]
        maps, threads = w.shape[0], c.threads
        sizes = (maps // group, math.prod(window.out), channels * taps)
        # The driver that is expected to be best; or the one that was measured to be, if it can.
        told = c.kernel
        free = told is None
        if channels == 1 and group > 1 and place[0] == place[3] == place[6] == 1 and (free or told == _DEPTHWISE):
            return Kernel(_DEPTHWISE, ints, reals, conv.depthwise_scratch(inputs, maps, ints, threads))
        if (sizes[1] > 1 or not plain) and (
            told == "conv.few_f32" or (free and (threads == 1 or math.prod(sizes) <= _ALONE))
        ):
            scratch = conv.few_scratch(*sizes, not free)
            if scratch:
                short, met = window.trimmed()
                if short is window or w.value is None:
                    return Kernel("conv.few_f32", ints, reals, scratch)
                packed = [("taps that meet the image", lambda: w.value[:, :, *met])]
                return Kernel("conv.few_f32", (*number, group, *short.ints()), reals, scratch, packed, range(5))
        if not c["exact"] and (free or told == "conv.winograd_f32"):
            scratch = conv.winograd_scratch(inputs, maps, images, ints, threads, not free)
            if scratch:
                return Kernel("conv.winograd_f32", ints, reals, scratch)
        if w.shape[-1] == 5 and w.value is not None and not c["exact"] and not c.has(3) and (free or told == _LINE):
            scratch = conv.winograd_line_scratch(inputs, maps, images, ints, threads, not free)
            if scratch:
                packed = [("Winograd, lines", lambda: conv.winograd_line_kernels(w.value))]
                return Kernel(_LINE, ints, reals, scratch, packed, range(5))
        if free or told == _DIRECT or (told == _LANES and not c.has(3)):
            lanes = told == _LANES if told or c.has(3) else None
            lanes, scratch = conv.direct_scratch(inputs, maps, images, ints, threads, lanes, not free)
            if scratch:
                return Kernel(_LANES if lanes else _DIRECT, ints, reals, scratch)
        scratch = conv.products_scratch(images * group, *sizes, threads)
        return Kernel("conv.pointwise_f32" if plain else "conv.im2col_f32", ints, reals, scratch)

    def join(self, calls: Sequence[Call]) -> tuple[int, Node] | None:
        if all(c["group"] == 1 for c in calls[-2:]):
            return None
        from evort.ops import separable

        return separable.join(calls)

    def macs(self, c: Call) -> int:
        return c.outs[0].size * math.prod(c.ins[1].shape[1:])

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        x = c.node.inputs[0]
        window, _ = conv_shapes(c, c.ins[0], c.ins[1])
        dx = db = None
        # What is left of the image behind the last window, and the padding that reaches there.
        ends = [
            (o - 1) * s + (k - 1) * d + 1 - p
            for o, s, k, d, p in zip(
                window.out, window.strides, window.kernel, window.dilations, window.pads, strict=True
            )
        ]
        geometry = {"strides": list(window.strides), "dilations": list(window.dilations), "group": c["group"]}
        after = [max(0, end - size) for end, size in zip(ends, window.image, strict=True)]
        pads = [*window.pads, *after]
        if g.wants(0):
            rest = [max(0, size - end) for end, size in zip(ends, window.image, strict=True)]
            if any(r >= max(s, d) for r, s, d in zip(rest, window.strides, window.dilations, strict=True)):
                raise c.error("windows that leave out so much of the image have no gradient in evort")
            dx = self.image_gradient(g, c, dy, window, {**geometry, "pads": pads, "output_padding": rest})
        dw, db = self.weight_gradients(g, c, x, dy, {**geometry, "pads": pads, "kernel_shape": list(window.kernel)})
        return [dx, dw, db, dy]

    @staticmethod
    def image_gradient(g: Gradients, c: Call, dy: str, window: Window, attrs: dict) -> str:
        """dX: a ConvTranspose with `attrs`; with stride 1 a Conv with the kernel turned round, which is faster."""
        w, group, dims = c.node.inputs[1], c["group"], c.ins[1].shape
        reach = [(k - 1) * d for k, d in zip(window.kernel, window.dilations, strict=True)]
        before = [r - p for r, p in zip(reach, window.pads, strict=True)]
        after = [i + r - o - b for i, r, o, b in zip(window.image, reach, window.out, before, strict=True)]
        if set(window.strides) != {1} or min(*before, *after) < 0:
            return g.emit("ConvTranspose", [dy, w], attrs)
        rank, (m, channels) = len(reach), dims[:2]
        turned = g.reshape(w, (group, m // group, channels, *window.kernel))
        turned = g.transpose(turned, [0, 2, 1, *range(3, 3 + rank)])
        turned = g.reshape(turned, (group * channels, m // group, *window.kernel))
        if max(window.kernel) > 1:
            starts, ends, axes = [-1] * rank, [-_LIMIT] * rank, list(range(2, 2 + rank))
            operands = [turned, g.ints(*starts), g.ints(*ends), g.ints(*axes), g.ints(*starts)]
            turned = g.emit("Slice", operands)
        kept = {"dilations": list(window.dilations), "group": group, "pads": [*before, *after]}
        return g.emit("Conv", [dy, turned], kept)

    @staticmethod
    def weight_gradients(g: Gradients, c: Call, x: str, dy: str, attrs: dict) -> tuple[str | None, str | None]:
        """Those of W and B, of which both or one may be wanted."""
        if g.wants(1):
            dw, db = g.emit("ConvWeightGrad", [x, dy], attrs, "evort", [True, g.wants(2)])
            return dw, db
        axes = [i for i in range(c.outs[0].rank) if i != 1]
        return None, g.sum(dy, axes, False) if g.wants(2) else None


def transposed_window(c: Call, image: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """The window of a ConvTranspose: `out` is its input, `image` its output. Raises ShapeError for attributes out of
    range and for an output without elements."""
    rank = len(image)
    if 0 in kernel:
        raise c.error("the kernel has no elements")
    strides = _list(c, "strides", rank, 1, 1)
    dilations = _list(c, "dilations", rank, 1, 1)
    extra = _list(c, "output_padding", rank, 0, 0)
    pads = _list(c, "pads", 2 * rank, 0, 0)
    auto = _auto_pad(c)
    for e, s, d in zip(extra, strides, dilations, strict=True):
        if e >= max(s, d):
            raise c.error(f"output_padding {list(extra)} must be less than stride or dilation")
    full = [
        (i - 1) * s + (k - 1) * d + 1 + e
        for i, s, k, d, e in zip(image, strides, kernel, dilations, extra, strict=True)
    ]
    wanted = _list(c, "output_shape", rank, 0, 1) if c["output_shape"] is not None else None
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = tuple(i * s for i, s in zip(image, strides, strict=True))
    if wanted is not None:
        totals = [max(0, f - o) for f, o in zip(full, wanted, strict=True)]
        before, out = _split_pads(totals, auto != "SAME_UPPER"), wanted
    else:
        if auto == "VALID":
            pads = (0,) * (2 * rank)
        before = pads[:rank]
        out = tuple(f - a - b for f, a, b in zip(full, before, pads[rank:], strict=True))
    if min(out) < 1:
        raise c.error(f"the output would have spatial shape {list(out)}")
    return Window(kernel, strides, dilations, before, out, image)


def transposed_shapes(c: Call, x: Spec, w: Spec) -> tuple[Window, Spec]:
    """Window and output specification of a transposed convolution of x [N, C, D...] with w [C, M/group, k...]."""
    if x.rank < 3 or w.rank != x.rank:
        raise c.error("X must be [N, C, D1, ...] and W [C, M/group, k1, ...] with at least one spatial axis")
    group = c["group"]
    if group < 1 or w.shape[0] != x.shape[1] or x.shape[1] % group:
        raise c.error(f"{x.shape[1]} channels in do not fit {group} groups of the weights")
    check_kernel(c, w.shape[2:])
    window = transposed_window(c, x.shape[2:], w.shape[2:])
    return window, Spec(x.dtype, (x.shape[0], w.shape[1] * group, *window.image))
