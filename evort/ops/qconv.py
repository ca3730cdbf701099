"""Convolutions of integers: QLinearConv, ConvInteger, QLinearConvTranspose.

The window is that of the float convolutions (conv.py); sums of products are exact, and what follows them is defined in
requantize.py. Where the kernels take an operand as known (scales, zero points, weights), it must be a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from evort._kernels import core, qnhwc, qwindow
from evort.ops.activation import activation_attrs, activation_ints_reals, check_activation
from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.ops.conv import (
    Window,
    conv_attrs,
    conv_shapes,
    conv_window,
    convolve,
    expect,
    per_channel,
    transposed_shapes,
    transposed_window,
    unconvolve,
)
from evort.ops.qoperands import check_few_bits
from evort.ops.requantize import finish, plain_scale, to_int32
from evort.types import DType, Spec

_BYTES = frozenset({DType.INT8, DType.UINT8})
_INTS = _BYTES | {DType.INT16}
_FLOAT = frozenset({DType.FLOAT})

# Where the drivers' parameters say how many bytes a staged element takes; and those for channels last whether x, and y
# after it, lie so, whether weights are in pairs of 16 bits, and whether the result is of any type.
_SIZE, _X_LAST, _WIDE, _ANY = 24, 28, 30, 33
_MOST_TAPS = 256  # of a depthwise convolution, in its drivers
_LANES = 16  # channels of a vector in those for channels last: fewer than half are a waste
_FEW = 64  # positions of a result, of which a matrix product is faster for one channel
_LONG = 64  # products of a result, from which they pay for moving operands in float,
_SMALL = 1 << 16  # and elements that are quick to move
_MOST_COLUMNS = 64  # of one channel's row of a transposed kernel there

_FIRST = ("qconv.linear", "qdepthwise.linear", "sparse.convolution_s8")  # drivers for operands that lie channels first
_CHOICES = (*_FIRST, "qnhwc.linear", "qnhwc.winograd", "qnhwc.depthwise")

# Indices of the inputs.
_X, _X_SCALE, _X_ZERO, _W, _W_SCALE, _W_ZERO, _Y_SCALE, _Y_ZERO, _B, _Z, _Z_SCALE, _Z_ZERO = range(12)


# Scales and zero points: (index of the input, that of the tensor whose element type a zero point has, whether there may
# be one for each output channel).
_QUANTITIES = (
    (_X_SCALE, None, False), (_W_SCALE, None, True), (_Y_SCALE, None, False), (_Z_SCALE, None, False),
    (_X_ZERO, _X, False), (_W_ZERO, _W, True), (_Y_ZERO, _Y_ZERO, False), (_Z_ZERO, _Z, False),
)  # fmt: skip


def _check_quantities(c: Call, quantities: Sequence[tuple[int, int | None, bool]], channels: int) -> None:
    """A scale or zero point is a scalar or [1], or [channels] where it may be. Raises ShapeError."""
    ins = c.ins
    for index, like, many in quantities:
        spec = ins[index] if index < len(ins) else None
        if spec is None:
            continue
        if spec.shape not in ((), (1,)) and not (many and spec.shape == (channels,)):
            what = "scale" if like is None else "zero point"
            raise c.error(f"{what} (input {index}) must be a scalar{' or one for each channel' if many else ''}")
        other = None if like is None else ins[like]
        if other is not None and spec.dtype != other.dtype and not (like == _X and other.dtype == DType.FLOAT):
            raise c.error(f"zero point (input {index}) must have the element type of input {like}")


def _centred(x: np.ndarray, zero_point: np.ndarray | None) -> np.ndarray:
    """x - zero_point as float64, in which sums of products of 8 and 16 bits are exact; a vector of zero points is one
    for each index of the first axis."""
    x = x.astype(np.float64)
    if zero_point is None:
        return x
    return x - zero_point.reshape((-1, *(1,) * (x.ndim - 1)) if zero_point.size != 1 else ())


@op("ConvInteger", since=10)
class ConvInteger(Op):
    """Y = (x - x_zero_point) * (w - w_zero_point) in int32; w_zero_point a scalar or one for each output channel."""

    inputs, outputs = ("x", "w", "x_zero_point?", "w_zero_point?"), ("y",)
    dtypes = dict.fromkeys(("x", "w", "x_zero_point", "w_zero_point"), _BYTES)
    attrs = conv_attrs()

    def infer(self, c: Call) -> list[Spec]:
        _, out = conv_shapes(c, c.ins[0], c.ins[1])
        _check_quantities(c, ((2, 0, False), (3, 1, True)), out.shape[1])
        return [Spec(DType.INT32, out.shape)]

    def reference(self, c: Call, x: np.ndarray, w: np.ndarray, x_zero: np.ndarray | None = None,
                  w_zero: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
        window = conv_window(c, x.shape[2:], w.shape[2:], c["auto_pad"])
        return to_int32(convolve(_centred(x, x_zero), _centred(w, w_zero), window, c["group"]))

    def bind(self, c: Call) -> Kernel | None:
        window, out = conv_shapes(c, c.ins[0], c.ins[1])
        ints = window_ints(c, 0, window.ints(), out.shape[1], 0, False, (1, 3))
        if ints is None:
            return None

        scratch = qwindow.scratch_bytes(ints, c.threads, False)
        return None if scratch < 0 else Kernel("qconv.integer", ints, scratch=scratch)

    def macs(self, c: Call) -> int:
        return c.outs[0].size * math.prod(c.ins[1].shape[1:])


_QLINEAR_INPUTS = (
    "x", "x_scale", "x_zero_point", "w", "w_scale", "w_zero_point", "y_scale?", "y_zero_point?", "B?", "Z?",
    "z_scale?", "z_zero_point?",
)  # fmt: skip
_QLINEAR_DTYPES = {
    "x": _INTS | _FLOAT,
    "x_zero_point": _INTS,
    **dict.fromkeys(("w", "w_zero_point"), _BYTES | {DType.INT4}),
    **dict.fromkeys(("y_zero_point", "z_zero_point"), _INTS),
    "Z": _INTS | _FLOAT,
    **dict.fromkeys(("x_scale", "w_scale", "y_scale", "z_scale"), _FLOAT),
    "B": frozenset({DType.INT32}),
}


def _infer(c: Call, out: Spec) -> list[Spec]:
    """The output of a quantized convolution of that shape. Raises ShapeError for operands that do not fit."""
    channels = out.shape[1]
    check_few_bits(c, _W)
    _check_quantities(c, _QUANTITIES, channels)
    if "presum" in c.attrs and c["presum"] < 0:
        raise c.error("presum must not be negative")
    if c.has(_Y_SCALE) != c.has(_Y_ZERO):
        raise c.error("y_scale and y_zero_point come together; a float32 result has neither")
    expect(c, _B, (channels,), "B")
    expect(c, _Z, out.shape, "Z")
    if not c.has(_Z) and (c.has(_Z_SCALE) or c.has(_Z_ZERO)):
        raise c.error("z_scale and z_zero_point are for Z, which is absent")
    if c.has(_Z) and (c.ins[_Z].dtype == DType.FLOAT) == c.has(_Z_SCALE):
        raise c.error("z_scale comes with a quantized Z, and only with one")
    check_activation(c)
    return [Spec(c.ins[_Y_ZERO].dtype if c.has(_Y_ZERO) else DType.FLOAT, out.shape)]


def _quantized(x: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """A float image as it is read: saturate(round(x / scale) + zero)."""
    if x.dtype != np.float32:
        return x
    limits = np.iinfo(zero.dtype)
    with np.errstate(all="ignore"):
        y = np.rint(x / plain_scale(scale)).astype(np.float64) + int(zero.reshape(()))
        return np.clip(np.where(np.isnan(y), limits.min, y), limits.min, limits.max).astype(zero.dtype)


def _finish(c: Call, total: np.ndarray, ins: list[np.ndarray | None]) -> np.ndarray:
    """From exact sums to the result."""
    if ins[_B] is not None:
        total = total + per_channel(ins[_B], total.ndim)
    if ins[_X_ZERO].dtype.itemsize == 1:
        total = to_int32(total)
    scale = plain_scale(ins[_X_SCALE]) * plain_scale(ins[_W_SCALE])
    scale = per_channel(scale, total.ndim) if scale.size != 1 else scale
    return finish(c, total, scale, ins[_Y_SCALE], ins[_Y_ZERO], ins[_Z], ins[_Z_SCALE], ins[_Z_ZERO])


def _good_quantities(c: Call, found: bool = False) -> bool:
    """Whether scales and zero points are constants, and scales finite and positive. found: those of x need not be."""
    if not c.known(*(_X_ZERO, _W_ZERO, _Y_ZERO, _Z_ZERO)[found:]):
        return False
    for i in (_X_SCALE, _W_SCALE, _Y_SCALE, _Z_SCALE)[found:]:
        if c.has(i):
            scale = c.ins[i].value
            if scale is None or not qwindow.positive(np.ascontiguousarray(scale)):
                return False
    return True


def window_ints(
    c: Call,
    x: int,
    place: tuple[int, ...],
    m: int,
    number: int,
    transposed: bool,
    weights: tuple[int, int] = (_W, _W_ZERO),
) -> tuple[int, ...] | None:
    """The parameters of the drivers, or None where they do not take the window, `place`. weights: where c has them, and
    their zero points."""
    if not place:
        return None
    spec = c.ins[x]
    floats = spec.dtype == DType.FLOAT
    wide = spec.dtype == DType.INT16 or (floats and c.ins[_X_ZERO].dtype == DType.INT16)
    sizes = (*spec.shape[:2], m, 2 if wide else 1, int(floats))
    return (number, c["group"], *place, int(transposed), *sizes, int(_shifted(c, *weights)), len(c.ins))


def _shifted(c: Call, w: int = _W, zero: int = _W_ZERO) -> bool:
    """Whether weights, input w, have zero points, other than those that make int8 of uint8."""
    plain = 128 if c.ins[w].dtype == DType.UINT8 else 0
    if not c.has(zero):
        return plain != 0
    value = c.ins[zero].value
    return value is None or (value.item() != plain if value.size == 1 else bool((value != plain).any()))


def _is_depthwise(c: Call) -> bool:
    """Whether each channel of x gives one of the result."""
    return c.ins[_W].shape[1] == 1 and c["group"] == c.outs[0].shape[1] == c.ins[_X].shape[1]


def last_ints(
    c: Call, window: Window, found: bool | None = None
) -> tuple[tuple[int, ...], bool, tuple[float, ...]] | None:
    """(ints, depthwise?, reals) of the drivers for operands that lie channels last, or None where those do not take
    them; with operands that do not (see `_placed`). found: the scale and zero point of x are found as it runs, which by
    default the operands tell."""
    if c.found is None:
        found = _of_run(c) if found is None else found
        c.found = (_takes_last(c, found) and _last_parameters(c, window)) or ()
    return c.found or None


def _of_run(c: Call) -> bool:
    """Whether the range of x is that of the run, as a node found it."""
    return c.ins[_X].dtype in _BYTES and c.ins[_X_SCALE].value is None


def _takes_last(c: Call, found: bool) -> bool:
    """Whether those drivers take the element types, channels, and scales."""
    w, y = c.ins[_W], c.outs[0]
    if w.value is None or w.dtype not in _BYTES:
        return False
    if c.ins[_X_ZERO].dtype not in _BYTES and not _adds_limbs(c, found):
        return False
    if _is_depthwise(c):
        if found or y.dtype not in _BYTES or c.has(_Z) or math.prod(w.shape[2:]) > _MOST_TAPS:
            return False
    elif c["group"] != 1 or not _fills(y.shape[1]):
        return False
    return not _shifted(c) and _good_quantities(c, found)


def _adds_limbs(c: Call, found: bool) -> bool:
    """Whether x has 16 bits and few positions, and all sums of its products, of two bytes each, fit 32 bits."""
    if math.prod(c.outs[0].shape[2:]) >= _LANES or c["group"] != 1 or _is_depthwise(c):
        return False
    zero, bias = c.ins[_X_ZERO], c.ins[_B] if c.has(_B) else None
    if not (found or (zero.value is not None and not zero.value.any())) or (bias is not None and bias.value is None):
        return False
    w = c.ins[_W].value
    sizes = np.abs(w.astype(np.int32) - (128 if w.dtype == np.uint8 else 0)).reshape(len(w), -1).sum(1, dtype=np.int64)
    largest = (sizes << 15) + (0 if bias is None else np.abs(bias.value.astype(np.int64)))
    return bool(largest.max(initial=0) < 1 << 31)


def _last_parameters(c: Call, window: Window) -> tuple[tuple[int, ...], bool, tuple[float, ...]] | None:
    """What `last_ints` returns of operands that it has accepted."""
    w, y, depthwise = c.ins[_W], c.outs[0], _is_depthwise(c)
    number, reals = activation_ints_reals(c)
    ints = window_ints(c, _X, window.ints(), y.shape[1], number[0], False)
    if ints is None:
        return None
    bytes_, wide = _of_bytes(c) and ints[_SIZE] == 1, qnhwc.wide()
    presum = c["presum"] if wide and not depthwise else 0
    pool = c.attrs.get("pool") or (1, 1)
    ints = (*ints, 0, 0, int(wide and not presum), 1, y.shape[1], int(not bytes_))
    small = (
        not depthwise
        and bytes_
        and window.kernel[-2:] == (3, 3)
        and qnhwc.winograd((*ints, 1, presum, *pool))  # looking at the weights takes longer
        and qnhwc.small_sums(w.value, 0x80 if w.dtype == DType.UINT8 else 0)
    )
    ints = (*ints, int(small), presum, *pool)
    return None if qnhwc.scratch_bytes(ints, c.threads, depthwise) < 0 else (ints, depthwise, reals)


def _placed(c: Call, ints: tuple[int, ...]) -> tuple[int, ...]:
    """Those ints for operands that lie as the planner has decided."""
    x, y, pixel = c.ins[_X], c.outs[0], _pixels(c)
    x_last = x.channels_last or (pixel and x.dtype == DType.UINT8)
    y_last = y.channels_last or (pixel and not ints[_ANY])
    return (*ints[:_X_LAST], int(x_last), int(y_last), *ints[_X_LAST + 2 :])


def _of_bytes(c: Call) -> bool:
    """Whether the result and what is added to it are of bytes, so that they may lie channels last."""
    return c.outs[0].dtype in _BYTES and (not c.has(_Z) or c.ins[_Z].dtype in _BYTES)


def _fills(channels: int) -> bool:
    """Whether so many channels of a result fill half of their vectors; products of bytes take half a vector, too."""
    lanes = _LANES // 2 if channels <= _LANES // 2 and not qnhwc.wide() else _LANES
    return 2 * channels >= -(-channels // lanes) * lanes


def _pixels(c: Call) -> bool:
    """Whether images have one pixel each, which lie the same either way."""
    return math.prod(c.ins[_X].shape[2:]) == 1 == math.prod(c.outs[0].shape[2:])


def _turned_ints(c: Call, window: Window) -> tuple[tuple[int, ...], bool, tuple[float, ...]] | None:
    """The same for transposed convolutions: those whose kernel is their stride, so that each pixel of the image gives
    its own pixels of the result. Of one channel, the result may be of any type and activation."""
    x, w, y = c.ins[_X], c.ins[_W], c.outs[0]
    m, columns = y.shape[1], y.shape[1] * window.kernel[-1]
    many = m > 1
    if (
        len(window.kernel) > 2
        or c["group"] != 1
        or c.has(_Z)
        or window.kernel != window.strides
        or window.image != tuple(k * n for k, n in zip(window.kernel, window.out, strict=True))
        or any(window.pads)
        or any(d > 1 for d, k in zip(window.dilations, window.kernel, strict=True) if k > 1)
        or not {x.dtype, w.dtype} <= _BYTES
        or not (w.value is not None and _good_quantities(c))
        or _shifted(c)
        or (many and y.dtype not in _BYTES)
        or not (_fills(columns) if many else columns <= _MOST_COLUMNS)
    ):
        return None
    turns, image = (1, (1, 1, *window.out)) if len(window.kernel) == 1 else (window.kernel[0], (1, *window.out))
    number, reals = activation_ints_reals(c)
    ints = window_ints(c, _X, (*image, *image, *(1,) * 9, *(0,) * 3), columns, number[0], True)  # of single pixels
    if ints is None:
        return None
    ints = (*ints, int(x.channels_last), 1, int(qnhwc.wide()), turns, m, 0, 0, 0, 1, 1)
    return None if qnhwc.scratch_bytes(ints, c.threads, False) < 0 else (ints, False, reals)


def _turned(w: np.ndarray) -> np.ndarray:
    """Weights [C, M, k...] of a transposed convolution as [kernel's rows, columns, M, C]."""
    return np.moveaxis(w if w.ndim == 4 else w[:, :, None], (0, 1), (3, 2))


def bind_last(c: Call, window: Window, transposed: bool) -> Kernel:
    """The driver for operands that lie channels last."""
    ints, depthwise, reals = (_turned_ints if transposed else last_ints)(c, window)
    if not transposed:
        ints = _placed(c, ints)
    scratch = qnhwc.scratch_bytes(ints, c.threads, depthwise)
    w, flip = c.ins[_W].value, 0x80 if c.ins[_W].dtype == DType.UINT8 else 0
    if depthwise:
        name = f"channels last, {qnhwc.cycle_of(ints)}, {ints[_WIDE]}"
        return Kernel("qnhwc.depthwise", ints, reals, scratch, [(name, lambda: qnhwc.pack_depthwise(w, flip, ints))])
    small = qnhwc.winograd(ints)
    name = f"channels last, {'Winograd' if small else ints[_WIDE]}{c.attrs.get('pool', '')}"
    packed = [(name, lambda: qnhwc.pack_dense(_turned(w) if transposed else w, flip, ints))]
    return Kernel("qnhwc.winograd" if small else "qnhwc.linear", ints, reals, scratch, packed)


def packs(c: Call, window: Window, found: bool | None = None) -> bool:
    """Whether a convolution whose operands lie channels first takes the kernels for those that lie channels last, which
    move them on the way: where results are bytes and fill vectors, single pixels lie the same either way, few positions
    would leave vectors of them empty, and Winograd's convolution makes up for it. Results in float take longer to move:
    products have to be many, and with VNNI, where they are quick, x be quantized on the way, and small or the products
    very many. found: as in `last_ints`."""
    if c.kernel in _FIRST or c["group"] != 1 or not core.channels_last():
        return False
    last = last_ints(c, window, found)
    if last is None or last[1]:
        return False
    few = math.prod(window.out) < _LANES and not qnhwc.wide()
    if _pixels(c) or few or c.kernel or qnhwc.winograd(last[0]):
        return True
    if c.ins[_X_ZERO].dtype not in _BYTES:  # two images
        return False
    if _of_bytes(c):
        return c.outs[0].shape[1] >= _LANES // 2
    x, products = c.ins[_X], math.prod(c.ins[_W].shape[1:])
    if qnhwc.wide():
        return products >= _LONG
    return (
        x.dtype == DType.FLOAT and products >= (2 if x.size <= _SMALL else 8) * _LONG and c.outs[0].shape[1] >= _LANES
    )


def _bind_linear(c: Call, window: Window, transposed: bool) -> Kernel | None:
    if c.ins[_X].channels_last or c.outs[0].channels_last:
        return bind_last(c, window, transposed)
    if not transposed and packs(c, window):
        return bind_last(c, window, transposed)
    if not _good_quantities(c, _of_run(c)):
        return None
    number, reals = activation_ints_reals(c)
    ints = window_ints(c, _X, window.ints(), c.outs[0].shape[1], number[0], transposed)
    if ints is None:
        return None
    w = c.ins[_W]
    if (
        w.sparse is not None
        and w.dtype != DType.UINT8
        and not (transposed or c.ins[_W_ZERO].value.any() or ints[_SIZE] == 2)
    ):
        from evort.ops import sparse

        kernel = sparse.bind_convolution(c, ints, _W, (0, 1, 2, 4, 6, 7, 8, 9, 10, 11), "convolution_s8")
        if kernel is not None:
            return kernel
    if w.dtype == DType.INT4:
        return None

    packed: list[tuple[str, Callable[[], np.ndarray]]] = []
    depthwise = not transposed and w.shape[1] == 1 and 0 < w.size <= _MOST_TAPS * w.shape[0]
    if c["group"] == 1 and math.prod(c.outs[0].shape[2:]) < _FEW:
        depthwise = False  # its vectors are positions
    if depthwise and ints[_SIZE] == 1:  # bytes
        depthwise = w.value is not None
        packed = [("taps", lambda: _depthwise_program(c))]
    scratch = qwindow.scratch_bytes(ints, c.threads, depthwise)
    if scratch < 0:
        return None
    if depthwise:
        return Kernel("qdepthwise.linear", ints, reals, scratch, packed)
    return Kernel("qconv.linear", ints, reals, scratch)


def _depthwise_program(c: Call) -> np.ndarray:
    """How the taps of each map are added up: see depthwise_program of the kernels."""
    from evort._kernels import qdepthwise

    w = _centred(c.ins[_W].value, c.ins[_W_ZERO].value).astype(np.int16)
    return np.frombuffer(qdepthwise.depthwise_program(w.tobytes(), w.shape[0], w[0].size), np.int32)


def _all(ins: tuple[np.ndarray | None, ...]) -> list[np.ndarray | None]:
    return [*ins, *(None for _ in range(12 - len(ins)))]


@op("QLinearConv", since=10)
class QLinearConv(Op):
    """y = quantize(activation((x * w + B) * x_scale * w_scale + (Z - z_zero_point) * z_scale)), with zero points taken
    off x and w; w_scale and w_zero_point for each output channel or one. x [N, C, D...], w [M, C/group, k...], B [M]
    int32, Z and y [N, M, D'...].

    Extensions of evort: float32 x is quantized as it is read; y is float32 without y_scale and y_zero_point; x, y and
    Z may be int16; a sparse constant w may be int4; Z (float32, or quantized with z_scale) and the activation; presum:
    so many successive sums of two products, of unsigned x and weights at the same place of the kernel, from groups of
    four successive channels, fit 16 bits together in every output channel; C / 4 is a multiple of it - 0 where that is
    not known."""

    inputs, outputs = _QLINEAR_INPUTS, ("y",)
    dtypes = _QLINEAR_DTYPES
    attrs = {**conv_attrs(), "presum": Attr("int", 0), **activation_attrs()}
    inplace = ((0, _Z),)
    choices = _CHOICES

    def infer(self, c: Call) -> list[Spec]:
        _, out = conv_shapes(c, c.ins[_X], c.ins[_W])
        return _infer(c, out)

    def reference(self, c: Call, *ins: np.ndarray | None) -> np.ndarray:
        given = _all(ins)
        x, w = _quantized(given[_X], given[_X_SCALE], given[_X_ZERO]), given[_W]
        window = conv_window(c, x.shape[2:], w.shape[2:], c["auto_pad"])
        total = convolve(_centred(x, given[_X_ZERO]), _centred(w, given[_W_ZERO]), window, c["group"])
        return _finish(c, total, given)

    def channels_last(self, c: Call) -> Sequence[tuple[int, ...]]:
        if c.kernel in _FIRST:
            return ()
        window, _ = conv_shapes(c, c.ins[_X], c.ins[_W])
        found = last_ints(c, window)
        if found is None:
            return ()
        image = c.ins[_X].dtype == DType.UINT8
        if found[1]:
            return ((_X, ~0),) if image else ()
        result = () if found[0][_ANY] else ((_Z, ~0) if c.has(_Z) else (~0,),)
        return ((_X,), *result) if image else result

    def bind(self, c: Call) -> Kernel | None:
        window, _ = conv_shapes(c, c.ins[_X], c.ins[_W])
        return _bind_linear(c, window, False)

    def macs(self, c: Call) -> int:
        return c.outs[0].size * math.prod(c.ins[_W].shape[1:])


@op("QLinearConvTranspose", since=1, domain="evort")
class QLinearConvTranspose(Op):
    """The transpose of QLinearConv's convolution, as ConvTranspose is Conv's: w [C, M/group, k...], w_scale and
    w_zero_point for each output channel or one, the rest as in QLinearConv."""

    inputs, outputs = _QLINEAR_INPUTS, ("y",)
    dtypes = _QLINEAR_DTYPES
    attrs = {**conv_attrs(), "output_padding": Attr("ints"), "output_shape": Attr("ints"), **activation_attrs()}
    inplace = ((0, _Z),)
    choices = _CHOICES

    def infer(self, c: Call) -> list[Spec]:
        _, out = transposed_shapes(c, c.ins[_X], c.ins[_W])
        return _infer(c, out)

    def reference(self, c: Call, *ins: np.ndarray | None) -> np.ndarray:
        given = _all(ins)
        x, w, group = _quantized(given[_X], given[_X_SCALE], given[_X_ZERO]), given[_W], c["group"]
        window = transposed_window(c, x.shape[2:], w.shape[2:])
        zero = given[_W_ZERO]
        # One zero point for each output channel: w's second axis, group by group.
        parts = w.reshape(group, w.shape[0] // group, *w.shape[1:]).astype(np.float64)
        if zero is not None:
            parts = parts - (zero.reshape(group, 1, -1, *(1,) * (w.ndim - 2)) if zero.size != 1 else zero.reshape(()))
        total = unconvolve(_centred(x, given[_X_ZERO]), parts.reshape(w.shape), window, group)
        return _finish(c, total, given)

    def channels_last(self, c: Call) -> Sequence[tuple[int, ...]]:
        if c.kernel in _FIRST:
            return ()
        window, _ = transposed_shapes(c, c.ins[_X], c.ins[_W])
        return () if c.ins[_X].dtype != DType.UINT8 or _turned_ints(c, window) is None else ((_X, ~0),)

    def bind(self, c: Call) -> Kernel | None:
        window, _ = transposed_shapes(c, c.ins[_X], c.ins[_W])
        return _bind_linear(c, window, True)

    def macs(self, c: Call) -> int:
        return c.ins[_X].size * math.prod(c.ins[_W].shape[1:])
