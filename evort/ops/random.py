"""Operators that draw random numbers. With a seed they draw what ONNX's reference implementation draws."""

from __future__ import annotations

import numpy as np

from evort.errors import ExecutionError
from evort.ops.base import REQUIRED, Attr, Call, Op, op
from evort.ops.cast import convert, element_type
from evort.types import ANY, FLOAT8, FLOATS, NUMERIC, STORAGE, DType, Spec


def _generator(seed: float | int | None) -> np.random.RandomState:
    return np.random.RandomState(None if seed is None or seed != seed else int(seed) % 2**32)


class _Random(Op):
    """One output of random numbers. `parameters` names what they are scaled by: (factor, offset)."""

    outputs = ("output",)
    deterministic = False

    def dtype(self, c: Call, default: DType, allowed: frozenset[DType]) -> DType:
        """The element type that the attribute asks for."""
        found = element_type(c, c["dtype"]) if c["dtype"] is not None else default
        if found not in allowed:
            raise c.error(f"it draws no numbers of type {found.name.lower()}")
        return found


def _normal(c: Call, shape: tuple[int, ...]) -> np.ndarray:
    return _generator(c["seed"]).standard_normal(shape) * c["scale"] + c["mean"]


def _uniform(c: Call, shape: tuple[int, ...]) -> np.ndarray:
    return _generator(c["seed"]).random_sample(shape) * (c["high"] - c["low"]) + c["low"]


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


_NORMAL = {"mean": Attr("float", 0.0), "scale": Attr("float", 1.0), "seed": Attr("float")}
_UNIFORM = {"low": Attr("float", 0.0), "high": Attr("float", 1.0), "seed": Attr("float")}


def _drawn(c: Call, values: np.ndarray) -> np.ndarray:
    return convert(np.asarray(values), DType.DOUBLE, c.outs[0].dtype)


@op("RandomNormal", since=22)
class RandomNormal(_OfShape):
    """Numbers of a normal distribution."""

    attrs = {"dtype": Attr("int", 1), "shape": Attr("ints", REQUIRED), **_NORMAL}

    def reference(self, c: Call) -> np.ndarray:
        return _drawn(c, _normal(c, c.outs[0].shape))


@op("RandomUniform", since=22)
class RandomUniform(_OfShape):
    """Numbers of a uniform distribution on [low, high)."""

    attrs = {"dtype": Attr("int", 1), "shape": Attr("ints", REQUIRED), **_UNIFORM}

    def reference(self, c: Call) -> np.ndarray:
        return _drawn(c, _uniform(c, c.outs[0].shape))


@op("RandomNormalLike", since=22)
class RandomNormalLike(_LikeInput):
    """Numbers of a normal distribution, as many as the input has."""

    attrs = {"dtype": Attr("int"), **_NORMAL}

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        return _drawn(c, _normal(c, x.shape))


@op("RandomUniformLike", since=22)
class RandomUniformLike(_LikeInput):
    """Numbers of a uniform distribution on [low, high), as many as the input has."""

    attrs = {"dtype": Attr("int"), **_UNIFORM}

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        return _drawn(c, _uniform(c, x.shape))


@op("Bernoulli", since=22)
class Bernoulli(_Random):
    """1 with the probability that the input gives, else 0. A probability outside [0, 1] is an ExecutionError."""

    inputs = ("input",)
    dtypes = {"input": FLOATS}
    attrs = {"dtype": Attr("int"), "seed": Attr("float")}

    def infer(self, c: Call) -> list[Spec]:
        return [c.like(0, self.dtype(c, c.ins[0].dtype, NUMERIC | {DType.BOOL}))]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        try:
            drawn = _generator(c["seed"]).binomial(1, x.astype(np.float64))
        except ValueError:
            raise ExecutionError(f"{c.node.label()}: a probability is outside [0, 1]") from None
        return np.asarray(drawn).astype(np.float32 if c.outs[0].dtype in FLOATS else STORAGE[c.outs[0].dtype])


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
