"""Dynamic quantization: weights are integers, activations are quantized by the range that they turn out to have.

    DynamicQuantizeMatMul      com.microsoft; with int16 weights, 16 bits and the fused epilogue an extension of evort
    DynamicQuantizeConv        evort; and DynamicQuantizeConvTranspose

8 bits: the activation becomes uint8 as ONNX's DynamicQuantizeLinear has it; 16: int16 with zero point 0 and scale
max |x| / 32767. Sums are exact (requantize.py says what follows them). Weights of int16 are widened as they are used,
and the activation stays as it is.
"""

from __future__ import annotations

import math

import numpy as np

from evort.ops.activation import activation_attrs, activation_ints_reals, apply_reference, check_activation
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
from evort.ops.linear import matmul_shape
from evort.ops.nbits import bind_convolution
from evort.ops.requantize import finish, quantized, to_int32
from evort.types import DType, Spec

_BYTES = frozenset({DType.INT8, DType.UINT8})
_WEIGHTS = _BYTES | {DType.INT16}
_FLOAT = frozenset({DType.FLOAT})


def dynamic_range(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale (float32) and zero point (uint8, or with 16 bits int16) for all of x. NaN has no place in a range."""
    with np.errstate(all="ignore"):
        high = np.fmax.reduce(x, axis=None, initial=np.float32(0))
        low = np.fmin.reduce(x, axis=None, initial=np.float32(0))
        if bits == 16:
            scale = np.fmax(-low, high) / np.float32(32767) if low != high else np.float32(1)
            return np.array(scale, np.float32), np.array(0, np.int16)
        scale = np.float32(high - low if high != low else 1) / np.float32(255)
        zero = np.rint(np.fmax(np.fmin(-low / scale, np.float32(255)), np.float32(0)))
        return np.array(scale, np.float32), np.array(zero, np.uint8)


def check_weights(c: Call, weights: int, scale: int, zero: int, channels: int) -> None:
    """Raises ShapeError unless scale and zero point are one, or one for each channel, and fit the weights' type."""
    if c["bits"] not in (8, 16):
        raise c.error(f"bits must be 8 or 16, not {c['bits']}")
    for index, what in ((scale, "the scale"), (zero, "the zero point")):
        if c.has(index) and c.ins[index].shape not in ((), (1,), (channels,)):
            raise c.error(f"{what} of the weights must be a scalar or one for each of {channels} channels")
    if c.has(zero) and (c.ins[zero].dtype != c.ins[weights].dtype or c.ins[weights].dtype == DType.INT16):
        raise c.error("the zero point must have the weights' element type, and int16 weights have none")


def _step(c: Call, index: int) -> int:
    return int(c.has(index) and c.ins[index].size > 1)


def centred(x: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    """x - zero in float64, in which sums of products are exact; a vector of zero points is for x's last axis."""
    return x.astype(np.float64) - (0 if zero is None else zero.reshape(zero.shape if zero.size > 1 else ()))


def plain(v: np.ndarray) -> np.ndarray:
    """A vector, or a scalar where there is one number."""
    return v.reshape(v.shape if v.size > 1 else ())


@op("DynamicQuantizeMatMul", domain="com.microsoft")
class DynamicQuantizeMatMul(Op):
    """Y = activation((A_q - a_zero)(B - b_zero_point) * a_scale * b_scale + bias + Z), with A [..., K] quantized by its
    range. B [K, N] int8 or uint8, b_scale and b_zero_point one or [N]; bias [N]; Z and Y [..., N] in float32. (B may be
    batched, as numpy.matmul has it; that runs in NumPy.) Z, the activation, `bits` 16 for A, and B of int16, with which
    A is not quantized, are extensions of evort."""

    inputs, outputs = ("A", "B", "b_scale", "b_zero_point?", "bias?", "Z?"), ("Y",)
    dtypes = {
        "B": _WEIGHTS,
        "b_zero_point": _BYTES,
        **dict.fromkeys(("A", "b_scale", "bias", "Z"), _FLOAT),
    }
    attrs = {"bits": Attr("int", 8), **activation_attrs()}
    inplace = ((0, 5),)

    def infer(self, c: Call) -> list[Spec]:
        a, b = c.ins[0], c.ins[1]
        shape = matmul_shape(c, a.shape, b.shape)
        columns = b.shape[-1] if b.rank > 1 else 1
        check_weights(c, 1, 2, 3, columns)
        expect(c, 4, (columns,), "bias")
        expect(c, 5, shape, "Z")
        check_activation(c)
        return [Spec(DType.FLOAT, shape)]

    def reference(self, c: Call, a: np.ndarray, b: np.ndarray, b_scale: np.ndarray, b_zero: np.ndarray | None = None,
                  bias: np.ndarray | None = None, z: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
        bias = None if bias is None else plain(bias) if b.ndim == 1 else bias
        if b.dtype == np.int16:
            return finish(c, np.matmul(a, b * plain(b_scale)), np.float32(1), None, None, z, bias=bias)
        scale, zero = dynamic_range(a, c["bits"])
        total = np.asarray(np.matmul(centred(quantized(a, scale, zero), zero), centred(b, b_zero)))
        if c["bits"] == 8:
            total = to_int32(total)
        return finish(c, total, scale * plain(b_scale), None, None, z, bias=bias)

    def bind(self, c: Call) -> Kernel | None:
        a, b = c.ins[0], c.ins[1]
        if b.rank != 2:
            return None
        m, (k, n) = math.prod(a.shape[:-1]), b.shape
        number, reals = activation_ints_reals(c)
        if b.dtype == DType.INT16:
            from evort._kernels import nbits

            if c.ins[2].shape != (n,):
                return None
            ints = (*number, m, n, k, 16, 0, 1, 4, 5, 0)
            return Kernel("nbits.product", ints, (*reals, 1.0), nbits.product_scratch(m, n, k, 0, c.threads))
        from evort._kernels import dynamic

        ints = (*number, m, n, k, c["bits"], _step(c, 2), _step(c, 3))
        return Kernel("dynamic.matmul", ints, reals, dynamic.matmul_scratch(m, n, k, c["bits"], c.threads))

    def macs(self, c: Call) -> int:
        return c.outs[0].size * c.ins[0].shape[-1]


class _Convolution(Op):
    """What the two convolutions have in common."""

    inputs, outputs = ("X", "w", "w_scale", "w_zero_point?", "B?", "Z?"), ("Y",)
    dtypes = {
        "w": _WEIGHTS,
        "w_zero_point": _BYTES,
        **dict.fromkeys(("X", "w_scale", "B", "Z"), _FLOAT),
    }
    inplace = ((0, 5),)

    def _shapes(self, c: Call) -> tuple[Window, Spec]:
        raise NotImplementedError

    def infer(self, c: Call) -> list[Spec]:
        _, out = self._shapes(c)
        check_weights(c, 1, 2, 3, out.shape[1])
        expect(c, 4, (out.shape[1],), "B")
        expect(c, 5, out.shape, "Z")
        check_activation(c)
        return [out]

    def _finished(self, c: Call, total: np.ndarray, scale: np.ndarray, b: np.ndarray | None,
                  z: np.ndarray | None) -> np.ndarray:  # fmt: skip
        """activation((total * scale + Z) + B), in float32 and in this order."""
        with np.errstate(all="ignore"):
            r = total.astype(np.float32) * scale
            r = r if z is None else r + z
            r = r if b is None else r + per_channel(b, r.ndim)
            return apply_reference(c, r)

    def _spread(self, v: np.ndarray, rank: int) -> np.ndarray:
        """A scale (or zero point) of output channels, to go with a result of that rank."""
        return per_channel(v, rank) if v.size > 1 else v.reshape(())

    def bind(self, c: Call) -> Kernel | None:
        from evort.ops.qconv import bind_last, packs, window_ints

        window, out = self._shapes(c)
        if c.ins[1].dtype == DType.INT16:
            return None
        zero = Spec(DType.INT16 if c["bits"] == 16 else DType.UINT8, ())
        w_zero, z = (c.ins[i] if c.has(i) else None for i in (3, 5))
        given = [c.ins[0], Spec(DType.FLOAT, ()), zero, c.ins[1], c.ins[2], w_zero, *[None] * 3, z, *[None] * 2]
        plain = {key: attr.default for key, attr in activation_attrs().items()}
        inner = Call(c.node, {**c.attrs, **plain, "presum": 0}, given, c.threads)  # as QLinearConv has it
        inner.outs = c.outs
        from evort._kernels import dynamic, qwindow

        number, reals = activation_ints_reals(c)
        own = (c["bits"], *number)
        if not self.transposed and packs(inner, window, True):
            last = bind_last(inner, window, False)
            scratch = dynamic.convolution_scratch(last.scratch, c.threads)
            return Kernel("dynamic.convolution_last", (*last.ints, *own), reals, scratch, last.packed)
        ints = window_ints(inner, 0, window.ints(), out.shape[1], 0, self.transposed)
        if ints is None:
            return None
        scratch = qwindow.scratch_bytes(ints, c.threads, False)
        if scratch < 0:
            return None
        return Kernel("dynamic.convolution", (*ints, *own), reals, dynamic.convolution_scratch(scratch, c.threads))


@op("DynamicQuantizeConv", domain="evort")
class DynamicQuantizeConv(_Convolution):
    """Conv with integer weights: Y = activation((X_q - x_zero) * (w - w_zero_point) * x_scale * w_scale + Z + B), with
    X [N, C, D...] quantized by its range. w [M, C/group, k...] int8, uint8 or int16, w_scale and w_zero_point one or
    [M]; B [M], Z and Y [N, M, D'...] in float32. bits: of X, 8 or 16; with w of int16, X is not quantized."""

    attrs = {**conv_attrs(), "bits": Attr("int", 8), **activation_attrs()}
    transposed = False

    def _shapes(self, c: Call) -> tuple[Window, Spec]:
        return conv_shapes(c, c.ins[0], c.ins[1])

    def reference(self, c: Call, x: np.ndarray, w: np.ndarray, w_scale: np.ndarray, w_zero: np.ndarray | None = None,
                  b: np.ndarray | None = None, z: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
        window = conv_window(c, x.shape[2:], w.shape[2:], c["auto_pad"])
        across = (-1, *(1,) * (w.ndim - 1))
        if w.dtype == np.int16:
            wide = w * (w_scale.reshape(across) if w_scale.size > 1 else w_scale.reshape(()))
            return self._finished(c, convolve(x, wide, window, c["group"]), np.float32(1), b, z)
        scale, zero = dynamic_range(x, c["bits"])
        centre = w.astype(np.float64)
        if w_zero is not None:
            centre = centre - (w_zero.reshape(across) if w_zero.size > 1 else w_zero.reshape(()))
        total = convolve(centred(quantized(x, scale, zero), zero), centre, window, c["group"])
        if c["bits"] == 8:
            total = to_int32(total)
        return self._finished(c, total, scale * self._spread(w_scale, x.ndim), b, z)

    def bind(self, c: Call) -> Kernel | None:
        if c.ins[1].dtype == DType.INT16:
            fits = c.ins[2].shape == c.ins[1].shape[:1]
            return bind_convolution(c, c.ins[1], 16, 0, 4) if fits else None
        return super().bind(c)

    def macs(self, c: Call) -> int:
        return c.outs[0].size * math.prod(c.ins[1].shape[1:])


@op("DynamicQuantizeConvTranspose", domain="evort")
class DynamicQuantizeConvTranspose(_Convolution):
    """ConvTranspose with integer weights, as DynamicQuantizeConv is Conv: w [C, M/group, k...]. Weights of int16 run in
    NumPy."""

    attrs = {
        **conv_attrs(),
        "output_padding": Attr("ints"),
        "output_shape": Attr("ints"),
        "bits": Attr("int", 8),
        **activation_attrs(),
    }
    transposed = True

    def _shapes(self, c: Call) -> tuple[Window, Spec]:
        return transposed_shapes(c, c.ins[0], c.ins[1])

    def reference(self, c: Call, x: np.ndarray, w: np.ndarray, w_scale: np.ndarray, w_zero: np.ndarray | None = None,
                  b: np.ndarray | None = None, z: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
        window, group = transposed_window(c, x.shape[2:], w.shape[2:]), c["group"]
        parts = w.reshape(group, w.shape[0] // group, *w.shape[1:]).astype(np.float64)  # one channel: second axis
        across = (group, 1, -1, *(1,) * (w.ndim - 2))
        if w.dtype == np.int16:
            wide = parts * (w_scale.reshape(across) if w_scale.size > 1 else w_scale.reshape(()))
            y = unconvolve(x, wide.reshape(w.shape).astype(np.float32), window, group)
            return self._finished(c, y, np.float32(1), b, z)
        scale, zero = dynamic_range(x, c["bits"])
        if w_zero is not None:
            parts = parts - (w_zero.reshape(across) if w_zero.size > 1 else w_zero.reshape(()))
        total = unconvolve(centred(quantized(x, scale, zero), zero), parts.reshape(w.shape), window, group)
        if c["bits"] == 8:
            total = to_int32(total)
        return self._finished(c, total, scale * self._spread(w_scale, x.ndim), b, z)

    def macs(self, c: Call) -> int:
        return c.ins[0].size * math.prod(c.ins[1].shape[1:])
