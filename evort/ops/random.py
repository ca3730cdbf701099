"""Operators that draw random numbers.

RandomUniform, RandomNormal, their Like forms and Bernoulli draw by a counter (Philox4x32-10): with a seed, element i is
the same in each run, on any machine and with any number of threads (normal numbers up to the last place of the C
library's logarithm, sine and cosine). ONNX leaves the generator open: other runtimes draw other numbers from a seed.
Multinomial and Dropout draw what ONNX's reference implementation draws.
"""

from __future__ import annotations

import os
import struct

import numpy as np

from evort.errors import ExecutionError
from evort.ops.base import REQUIRED, Attr, Call, Kernel, Op, element_type, op
from evort.types import ANY, FLOAT8, FLOATS, NUMERIC, STORAGE, DType, Spec


def _generator(seed: float | int | None) -> np.random.RandomState:
    return np.random.RandomState(None if seed is None or seed != seed else int(seed) % 2**32)


UNIFORM, NORMAL, BERNOULLI = range(3)  # laws, as in evort._kernels.random


def _key(seed: float | None) -> int | None:
    """The generator's key for a seed: its bits as a float64, signed. None where there is no seed."""
    return None if seed is None or seed != seed else struct.unpack("<q", struct.pack("<d", seed))[0]


def _philox(count: int, key: int, stream: int = 0) -> np.ndarray:
    """So many random uint32: item w of block b is word w of Philox4x32-10 for the counter (b, stream).

    Source: J. Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011).
    """
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    block = np.arange((count + 3) // 4, dtype=np.uint64)
    upper = (np.full_like(block, stream & 0xFFFFFFFF), np.full_like(block, stream >> 32 & 0xFFFFFFFF))
    w = [block & low, block >> half, *upper]
    key_0, key_1 = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    for _ in range(10):
        p, q = np.uint64(0xD2511F53) * w[0], np.uint64(0xCD9E8D57) * w[2]
        w = [q >> half ^ w[1] ^ np.uint64(key_0), q & low, p >> half ^ w[3] ^ np.uint64(key_1), p & low]
        key_0, key_1 = (key_0 + 0x9E3779B9) & 0xFFFFFFFF, (key_1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(w, axis=1).astype(np.uint32).reshape(-1)[:count]


def _words(c: Call, count: int) -> np.ndarray:
    """So many random uint32 for the node's seed."""
    key = _key(c["seed"])
    return _philox(count, int.from_bytes(os.urandom(8), "little") if key is None else key)


def _units(c: Call, count: int) -> np.ndarray:
    """Numbers in [0, 1) of 24 bits, as float64: their products with float32 numbers are exact."""
    return (_words(c, count) >> 8) / 2.0**24


def _stored(x: np.ndarray, dtype: DType) -> np.ndarray:
    """float64 numbers in the storage of a type."""
    from evort.ops.cast import convert

    return convert(x, DType.DOUBLE, dtype)


class _Random(Op):
    """One output of random numbers."""

    outputs = ("output",)
    deterministic = False

    def dtype(self, c: Call, default: DType, allowed: frozenset[DType]) -> DType:
        """The element type that the attribute asks for."""
        found = element_type(c, c["dtype"]) if c["dtype"] is not None else default
        if found not in allowed:
            raise c.error(f"it draws no numbers of type {found.name.lower()}")
        return found


def _kernel(c: Call, law: int, factor: float = 1.0, offset: float = 0.0, inputs: tuple[int, ...] = ()) -> Kernel:
    key = _key(c["seed"])
    return Kernel("random.draw", (law, int(key is not None), key or 0), (factor, offset), inputs=inputs)


class _OfShape(_Random):
    def infer(self, c: Call) -> list[Spec]:
        if any(d < 0 for d in c["shape"]):
            raise c.error(f"shape {list(c['shape'])} has a negative dimension")
        return [Spec(self.dtype(c, DType.FLOAT, FLOATS), tuple(c["shape"]))]


class _LikeInput(_Random):
    inputs = ("input",)
    dtypes = {"input": ANY - {DType.SEQUENCE, DType.OPTIONAL}}
    raw_bits = True

    def infer(self, c: Call) -> list[Spec]:
        return [c.like(0, self.dtype(c, c.ins[0].dtype, FLOATS))]


class _Normal(Op):
    """mean + scale * z. A pair of words gives two numbers, by Box and Muller."""

    def reference(self, c: Call, *x: np.ndarray) -> np.ndarray:
        spec = c.outs[0]
        w = _words(c, 2 * ((spec.size + 1) // 2)).astype(np.float64).reshape(-1, 2)
        radius, angle = np.sqrt(-2 * np.log((w[:, 0] + 1) / 2**32)), w[:, 1] * (2 * np.pi / 2**32)
        z = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[: spec.size]
        return _stored((z * c["scale"] + c["mean"]).reshape(spec.shape), spec.dtype)

    def bind(self, c: Call) -> Kernel | None:
        return _kernel(c, NORMAL, c["scale"], c["mean"]) if c.outs[0].dtype == DType.FLOAT else None


class _Uniform(Op):
    """low + (high - low) * u. A float64 takes two words, for 53 bits."""

    def reference(self, c: Call, *x: np.ndarray) -> np.ndarray:
        spec = c.outs[0]
        if spec.dtype == DType.DOUBLE:
            w = _words(c, 2 * spec.size).reshape(-1, 2)
            u = ((w[:, 0] >> 5) * 2.0**26 + (w[:, 1] >> 6)) / 2**53
        else:
            u = _units(c, spec.size)
        return _stored((u * _span(c) + c["low"]).reshape(spec.shape), spec.dtype)

    def bind(self, c: Call) -> Kernel | None:
        return _kernel(c, UNIFORM, _span(c), c["low"]) if c.outs[0].dtype == DType.FLOAT else None


def _span(c: Call) -> float:
    return float(np.float32(c["high"] - c["low"]))


_NORMAL = {"mean": Attr("float", 0.0), "scale": Attr("float", 1.0), "seed": Attr("float")}
_UNIFORM = {"low": Attr("float", 0.0), "high": Attr("float", 1.0), "seed": Attr("float")}


@op("RandomNormal", since=22)
class RandomNormal(_OfShape, _Normal):
    """Numbers of a normal distribution."""

    attrs = {"dtype": Attr("int", 1), "shape": Attr("ints", REQUIRED), **_NORMAL}


@op("RandomUniform", since=22)
class RandomUniform(_OfShape, _Uniform):
    """Numbers of a uniform distribution on [low, high)."""

    attrs = {"dtype": Attr("int", 1), "shape": Attr("ints", REQUIRED), **_UNIFORM}


@op("RandomNormalLike", since=22)
class RandomNormalLike(_LikeInput, _Normal):
    """Numbers of a normal distribution, as many as the input has."""

    attrs = {"dtype": Attr("int"), **_NORMAL}


@op("RandomUniformLike", since=22)
class RandomUniformLike(_LikeInput, _Uniform):
    """Numbers of a uniform distribution on [low, high), as many as the input has."""

    attrs = {"dtype": Attr("int"), **_UNIFORM}


# What the driver writes for Bernoulli.
_TOSSED = frozenset({
    DType.FLOAT, DType.DOUBLE, DType.INT32, DType.INT64, DType.BOOL, DType.INT8, DType.UINT8,
})  # fmt: skip


@op("Bernoulli", since=22)
class Bernoulli(_Random):
    """1 with the probability that the input gives, else 0. A probability outside [0, 1] is an ExecutionError."""

    inputs = ("input",)
    dtypes = {"input": FLOATS}
    attrs = {"dtype": Attr("int"), "seed": Attr("float")}

    def infer(self, c: Call) -> list[Spec]:
        return [c.like(0, self.dtype(c, c.ins[0].dtype, NUMERIC | {DType.BOOL}))]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        if not ((x >= 0) & (x <= 1)).all():
            raise ExecutionError(f"{c.node.label()}: a probability is outside [0, 1]")
        tossed = _units(c, x.size).reshape(x.shape) < x
        return tossed.astype(np.float32 if c.outs[0].dtype in FLOATS else STORAGE[c.outs[0].dtype])

    def bind(self, c: Call) -> Kernel | None:
        fits = c.ins[0].dtype == DType.FLOAT and c.outs[0].dtype in _TOSSED
        return _kernel(c, BERNOULLI, inputs=(0,)) if fits else None


@op("Multinomial", since=22)
class Multinomial(_Random):
    """sample_size class indices for each row of unnormalized log-probabilities [batch, class]."""

    inputs = ("input",)
    dtypes = {"input": FLOATS}
    attrs = {"dtype": Attr("int", 6), "sample_size": Attr("int", 1), "seed": Attr("float")}

    def infer(self, c: Call) -> list[Spec]:
        shape = c.ins[0].shape
        if len(shape) != 2 or (shape[0] and not shape[1]):
            raise c.error("the input must have the shape [batch, class], with a class at least")
        if c["sample_size"] < 0:
            raise c.error(f"sample_size must not be negative, as {c['sample_size']} is")
        dtype = self.dtype(c, DType.INT32, frozenset({DType.INT32, DType.INT64}))
        return [Spec(dtype, (shape[0], c["sample_size"]))]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        if x.size:
            x = x - x.max(axis=1, keepdims=True)
        heights = np.cumsum(np.exp(x), axis=1)
        drawn = _generator(c["seed"]).random_sample((len(x), c["sample_size"]))
        rows = [
            np.searchsorted(h, d * h[-1], side="right").clip(max=len(h) - 1)
            for h, d in zip(heights, drawn, strict=True)
        ]
        return np.array(rows, STORAGE[c.outs[0].dtype]).reshape(len(x), c["sample_size"])


@op("Dropout", since=22)
class Dropout(Op):
    """output = data where it is kept, times 1 / (1 - ratio), and a mask of what was kept. Unless training_mode is given
    and true, all is kept as it is."""

    inputs, outputs = ("data", "ratio?", "training_mode?"), ("output", "mask?")
    dtypes = {
        "data": FLOATS | FLOAT8,
        "ratio": FLOATS | FLOAT8,
        "training_mode": frozenset({DType.BOOL}),
    }
    attrs = {"seed": Attr("int")}
    untrained = (1,)
    deterministic = False

    def infer(self, c: Call) -> list[Spec]:
        for i in (1, 2):
            if c.has(i) and c.ins[i].size != 1:
                raise c.error("ratio and training_mode must be scalars")
        return [c.like(0), c.like(0, DType.BOOL)]

    def reference(
        self, c: Call, x: np.ndarray, ratio: np.ndarray | None = None, training: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        share = 0.5 if ratio is None else float(ratio.reshape(()))
        if training is None or not training.reshape(()) or share == 0:
            return x, np.ones(x.shape, bool)
        if not 0 <= share < 1:
            raise ExecutionError(f"{c.node.label()}: ratio {share} is outside [0, 1)")
        mask = _generator(c["seed"]).uniform(0, 1, x.shape) >= share
        return (mask * x * (1 / (1 - share))).astype(x.dtype), mask

    def view(self, c: Call) -> dict[int, tuple[int, int]] | None:
        trains = c.has(2) and (c.ins[2].value is None or bool(c.ins[2].value.reshape(())))
        return None if trains or c.wants(1) else {0: (0, 0)}


@op("RandomDropout", domain="evort")
class RandomDropout(Op):
    """Y = X / (1 - ratio) where an element is kept, else 0: element i is kept where the i-th number that Philox draws
    for (seed, step) is at least ratio. `step` (a scalar) counts training steps: the same step has the same mask, so
    that the gradient and a recomputation need none that was kept.

    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting" (2014).
    """

    inputs, outputs = ("X", "step"), ("Y",)
    attrs = {"ratio": Attr("float", 0.5), "seed": Attr("int", 0)}
    dtypes = {"X": FLOATS, "step": frozenset({DType.INT64})}
    inplace = ((0, 0),)

    def infer(self, c: Call) -> list[Spec]:
        if not 0 <= c["ratio"] < 1:
            raise c.error(f"ratio must be in [0, 1), not {c['ratio']}")
        if c.ins[1].size != 1:
            raise c.error("step must be a scalar")
        return [c.like(0)]

    def reference(self, c: Call, x: np.ndarray, step: np.ndarray) -> np.ndarray:
        words = _philox(x.size, c["seed"], int(step.reshape(())))
        keep = ((words >> 8) / 2.0**24 >= c["ratio"]).reshape(x.shape)
        return x * (keep * x.dtype.type(1 / (1 - c["ratio"])))

    def bind(self, c: Call) -> Kernel | None:
        if c.ins[0].dtype != DType.FLOAT:
            return None
        return Kernel("random.dropout_f32", (c["seed"],), (c["ratio"],))

    def gradient(self, g, c: Call, dy: str) -> list[str | None]:
        return [g.replay("RandomDropout", c, [dy, c.node.inputs[1]]), None]
