"""Signal processing in NumPy: windows, Fourier transforms, mel filters."""

from __future__ import annotations

from math import log, pi
from typing import TYPE_CHECKING

import numpy as np

from evort.errors import ExecutionError
from evort.ops.base import Attr, Call, Op, op
from evort.types import FLOATS, NUMERIC, STORAGE, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

_SIZES = frozenset({DType.INT32, DType.INT64})


def _number(c: Call, index: int, name: str, least: int) -> int:
    """The value of an integer scalar input."""
    given = c.ints(index)
    if len(given) != 1 or given[0] < least:
        raise c.error(f"{name} must be one number, at least {least}, not {list(given)}")
    return given[0]


def _output_dtype(c: Call) -> DType:
    if c["output_datatype"] not in NUMERIC:
        raise c.error(f"output_datatype {c['output_datatype']} is not that of a number")
    return DType(c["output_datatype"])


class _Window(Op):
    """A sum of cosines: Y[i] = sum over k of coefficients[k] * cos(2 pi k i / N), N = size if `periodic` else
    size - 1."""

    inputs, outputs = ("size",), ("output",)
    attrs = {"output_datatype": Attr("int", 1), "periodic": Attr("int", 1)}
    dtypes = {"size": _SIZES}
    coefficients: tuple[float, ...] = ()

    def infer(self, c: Call) -> list[Spec]:
        return [Spec(_output_dtype(c), (_number(c, 0, "size", 0),))]

    def reference(self, c: Call, size: np.ndarray) -> np.ndarray:
        n = int(size.reshape(-1)[0])
        if n == 1:
            return np.ones(1)  # the formula for N = 0 leaves it open; its peak, as SciPy and PyTorch have it
        angle = 2 * pi * np.arange(n) / (n if c["periodic"] else n - 1)
        return sum(a * np.cos(k * angle) for k, a in enumerate(self.coefficients))


@op("HannWindow", since=17)
class HannWindow(_Window):
    """Y[i] = 1/2 - 1/2 cos(2 pi i / N), N = size if `periodic` else size - 1."""

    coefficients = (0.5, -0.5)


@op("HammingWindow", since=17)
class HammingWindow(_Window):
    """Y[i] = 25/46 - 21/46 cos(2 pi i / N), N = size if `periodic` else size - 1."""

    coefficients = (25 / 46, -21 / 46)


@op("BlackmanWindow", since=17)
class BlackmanWindow(_Window):
    """Y[i] = 0.42 - 0.5 cos(2 pi i / N) + 0.08 cos(4 pi i / N), N = size if `periodic` else size - 1."""

    coefficients = (0.42, -0.5, 0.08)


def _real(x: np.ndarray) -> np.ndarray:
    """[..., 1 or 2] -> the real part, in float32 at least."""
    return x[..., 0].astype(np.float32) if x.dtype == np.float16 else x[..., 0]


def _complex(x: np.ndarray) -> np.ndarray:
    """[..., 1 or 2] real and imaginary parts as complex numbers of the same precision."""
    z = np.empty(x.shape[:-1], np.complex128 if x.dtype == np.float64 else np.complex64)
    z.real, z.imag = x[..., 0], x[..., 1] if x.shape[-1] == 2 else 0
    return z


def fitted(g: Gradients, x: str, axis: int, size: int) -> str:
    """An axis cut to a size, or filled with zeros."""
    shape = g.shape(x)
    if shape[axis] > size:
        return g.emit("Slice", [x, g.ints(0), g.ints(size), g.ints(axis)])
    pads = [0] * (2 * len(shape))
    pads[len(shape) + axis] = size - shape[axis]
    return x if shape[axis] == size else g.emit("Pad", [x, g.ints(*pads)])


def _parts(z: np.ndarray) -> np.ndarray:
    return np.stack([z.real, z.imag], -1)


@op("DFT", since=20)
class DFT(Op):
    """The discrete Fourier transform of `dft_length` elements along `axis` (cut, or filled with zeros), or its
    inverse. The last axis holds the real and the imaginary part, or the real part alone.

    `onesided`: forward, only the first dft_length // 2 + 1 terms, of real input; inverse, the real result of those.
    """

    inputs, outputs = ("input", "dft_length?", "axis?"), ("output",)
    attrs = {"inverse": Attr("int", 0), "onesided": Attr("int", 0)}
    dtypes = {"input": FLOATS, "dft_length": _SIZES, "axis": frozenset({DType.INT64})}

    def plan(self, c: Call) -> tuple[int, int]:
        """(axis, length)."""
        x = c.ins[0]
        if x.rank < 2 or x.shape[-1] not in (1, 2):
            raise c.error("the last axis must hold the real, or the real and the imaginary part")
        given = c.ints(2) if c.has(2) else (-2,)
        if len(given) != 1:
            raise c.error("axis must be a single number")
        axis = c.axis(given[0], x.rank)
        if axis == x.rank - 1:
            raise c.error("the last axis is that of the parts, and not to be transformed")
        if c.has(1):
            length = _number(c, 1, "dft_length", 1)
        else:
            length = 2 * (x.shape[axis] - 1) if c["inverse"] and c["onesided"] else x.shape[axis]
        if length < 1:
            raise c.error("a transform of no elements is undefined")
        return axis, length

    def infer(self, c: Call) -> list[Spec]:
        axis, length = self.plan(c)
        shape = [*c.ins[0].shape[:-1], 2]
        shape[axis] = length
        if c["onesided"] and c["inverse"]:
            shape[-1] = 1
        elif c["onesided"]:
            if c.ins[0].shape[-1] != 1:
                raise c.error("onesided is for real input")
            shape[axis] = length // 2 + 1
        return [Spec(c.ins[0].dtype, tuple(shape))]

    def reference(self, c: Call, x: np.ndarray, length=None, axis=None) -> np.ndarray:
        at, n = self.plan(c)
        if x.size == 0:
            return np.zeros(self.infer(c)[0].shape)
        if c["inverse"]:
            z = _complex(x)
            return np.fft.irfft(z, n, at)[..., None] if c["onesided"] else _parts(np.fft.ifft(z, n, at))
        return _parts(np.fft.rfft(_real(x), n, at) if c["onesided"] else np.fft.fft(_complex(x), n, at))

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        """The adjoint: n times the inverse transform of dY, or 1/n of the transform."""
        axis, n = self.plan(c)
        x = c.ins[0].shape
        if not c["inverse"]:
            dx = g.scale(self.transformed(g, fitted(g, dy, axis, n), n, axis, inverse=1), n)
        elif not c["onesided"]:
            dx = g.scale(self.transformed(g, dy, n, axis), 1 / n)
        else:
            # A term stands for its conjugate, too; the first, and the one of half of an even n, are their own.
            weights = np.full(n // 2 + 1, 2 / n)
            weights[:: n // 2 if n % 2 == 0 else n] = 1 / n
            weights = weights.reshape(-1, *[1] * (len(x) - 1 - axis)).astype(STORAGE[c.ins[0].dtype])
            dx = g.mul(self.transformed(g, dy, n, axis, onesided=1), g.constant(weights))
        dx = fitted(g, dx, axis, x[axis])
        if x[-1] == 1:
            dx = g.emit("Slice", [dx, g.ints(0), g.ints(1), g.ints(len(x) - 1)])
        return [dx, None, None]

    @staticmethod
    def transformed(g: Gradients, x: str, n: int, axis: int, **flags: int) -> str:
        return g.emit("DFT", [x, g.constant(np.array(n)), g.constant(np.array(axis))], flags)


@op("STFT", since=17)
class STFT(Op):
    """The Fourier transforms of frames of `frame_length` elements, `frame_step` apart, times `window`: [batch, frames,
    terms, 2]. `onesided` (of real signals): the first frame_length // 2 + 1 terms."""

    inputs, outputs = ("signal", "frame_step", "window?", "frame_length?"), ("output",)
    untrained = (2,)
    attrs = {"onesided": Attr("int", 1)}
    dtypes = {"signal": FLOATS, "frame_step": _SIZES, "window": FLOATS, "frame_length": _SIZES}

    def plan(self, c: Call) -> tuple[int, int, int]:
        """(step, length, frames)."""
        signal = c.ins[0]
        if signal.rank != 3 or signal.shape[2] not in (1, 2):
            raise c.error("the signal must have shape (batch, length, 1 or 2)")
        step = _number(c, 1, "frame_step", 1)
        length = signal.shape[1]
        if c.has(2):
            if c.ins[2].rank != 1:
                raise c.error("the window must be a vector")
            length = c.ins[2].shape[0]
        if c.has(3):
            given = _number(c, 3, "frame_length", 1)
            if c.has(2) and given != length:
                raise c.error(f"frame_length {given} is not the length of the window, {length}")
            length = given
        if not 1 <= length <= signal.shape[1]:
            raise c.error(f"a frame of {length} elements does not fit a signal of {signal.shape[1]}")
        return step, length, (signal.shape[1] - length) // step + 1

    def infer(self, c: Call) -> list[Spec]:
        _, length, frames = self.plan(c)
        if c["onesided"] and c.ins[0].shape[2] == 2:
            raise c.error("onesided is for real signals")
        terms = length // 2 + 1 if c["onesided"] else length
        return [Spec(c.ins[0].dtype, (c.ins[0].shape[0], frames, terms, 2))]

    def reference(self, c: Call, signal: np.ndarray, frame_step, window=None, frame_length=None) -> np.ndarray:
        step, length, _ = self.plan(c)
        x = _real(signal) if c["onesided"] else _complex(signal)
        frames = np.lib.stride_tricks.sliding_window_view(x, length, 1)[:, ::step]
        if window is not None:
            frames = frames * window
        return _parts(np.fft.rfft(frames) if c["onesided"] else np.fft.fft(frames))

    def lower(self, g: Gradients, c: Call) -> list[str]:
        step, length, count = self.plan(c)
        at = np.arange(count)[:, None] * step + np.arange(length)
        frames = g.emit("Gather", [c.node.inputs[0], g.constant(at)], {"axis": 1})
        if c.has(2):
            frames = g.mul(frames, g.reshape(c.node.inputs[2], (length, 1)))
        return [DFT.transformed(g, frames, length, 2, onesided=int(c["onesided"] != 0))]


@op("MelWeightMatrix", since=17)
class MelWeightMatrix(Op):
    """[dft_length // 2 + 1, num_mel_bins]: triangular filters between the edges, evenly spaced on the mel scale,
    mel(f) = 2595 log10(1 + f / 700), each with a peak of 1."""

    inputs = ("num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz")
    outputs = ("output",)
    attrs = {"output_datatype": Attr("int", 1)}
    dtypes = {**dict.fromkeys(inputs[:3], _SIZES), **dict.fromkeys(inputs[3:], FLOATS)}

    def infer(self, c: Call) -> list[Spec]:
        if any(s.size != 1 for s in c.ins):
            raise c.error("all inputs must be single numbers")
        bins, length = _number(c, 0, "num_mel_bins", 1), _number(c, 1, "dft_length", 1)
        return [Spec(_output_dtype(c), (length // 2 + 1, bins))]

    def reference(self, c: Call, num_mel_bins, dft_length, sample_rate, lower, upper) -> np.ndarray:
        bins, length, rate = (int(v.reshape(-1)[0]) for v in (num_mel_bins, dft_length, sample_rate))
        low, high = (float(v.reshape(-1)[0]) for v in (lower, upper))
        rows = length // 2 + 1
        # Written so that a NaN fails too.
        if not (rate > 0 and 0 <= low <= high and (length + 1) * high // rate < rows):
            raise ExecutionError(
                f"{c.node.label()}: edges {low} and {high} Hz do not lie in order within half the sample rate, {rate}"
            )
        mel = 2595 / log(10) * np.log1p(np.array([low, high]) / 700)
        edges = mel[0] + np.arange(bins + 2) * (mel[1] - mel[0]) / (bins + 2)
        points = ((length + 1) * (700 * np.expm1(edges * log(10) / 2595)) // rate).astype(int)
        at = np.arange(rows)
        weights = np.zeros((rows, bins))
        for i, (left, centre, right) in enumerate(zip(points[:-2], points[1:-1], points[2:], strict=True)):
            rising = (at - left) / max(centre - left, 1) * ((at >= left) & (at < centre))
            falling = (right - at) / max(right - centre, 1) * ((at > centre) & (at < right))
            weights[:, i] = rising + falling
            weights[centre, i] = 1
        return weights
