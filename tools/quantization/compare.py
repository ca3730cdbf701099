"""How far a quantized model's results are from the float model's: signal-to-noise ratios."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from evort.graph import Model
from evort.quant import decibels
from evort.session import Session


class Error:
    """The squared error of one tensor against another, summed over samples; values that are not finite in both count
    as equal where they are the same, else as an error as large as the signal."""

    __slots__ = ("dot", "noise", "rounded", "signal", "values")

    def __init__(self) -> None:
        self.signal = self.noise = 0.0
        self.dot = self.rounded = 0.0  # of what was expected with what was got, and of that with itself
        self.values = 0

    def add(self, expected: np.ndarray, got: np.ndarray) -> None:
        """Takes one sample. Raises ValueError for different shapes."""
        if expected.shape != got.shape:
            raise ValueError(f"shapes {expected.shape} and {got.shape} cannot be compared")
        x, y = (v.astype(np.float64).reshape(-1) for v in (expected, got))
        finite = np.isfinite(x) & np.isfinite(y)
        if not finite.all():
            wrong = int(np.count_nonzero(~finite & ~((x == y) | (np.isnan(x) & np.isnan(y)))))
            x, y = x[finite], y[finite]
            mean = _dot(x, x) / max(1, len(x))
            self.noise += wrong * max(mean, 1e-30)
        self.signal += _dot(x, x)
        self.rounded += _dot(y, y)
        self.dot += _dot(x, y)
        y -= x
        self.noise += _dot(y, y)
        self.values += expected.size

    @property
    def ratio(self) -> float:
        """Noise over signal; 0 for no error, infinite for an error where there is no signal."""
        if not self.noise:
            return 0.0
        return self.noise / self.signal if self.signal else math.inf

    @property
    def sqnr(self) -> float:
        """10 log10(signal / noise), in dB."""
        return decibels(self.signal, self.noise)

    @property
    def cosine(self) -> float:
        """Cosine similarity; 1 for two tensors of zeros."""
        size = math.sqrt(self.signal * self.rounded)
        return self.dot / size if size > 0 else float(self.signal == self.rounded)


def _dot(x: np.ndarray, y: np.ndarray) -> float:
    """The inner product on this thread: BLAS would wake others, which takes longer than the sum itself."""
    return float(np.einsum("i,i->", x, y))


def expected_outputs(
    model: Model, samples: Iterable[Mapping[str, np.ndarray]], threads: int | None = None
) -> list[Any]:
    """A model's outputs for each sample."""
    session = Session(model, threads=threads)
    return [session.run(dict(feeds)) for feeds in samples]


def output_errors(
    model: Model,
    samples: Sequence[Mapping[str, np.ndarray]],
    expected: Sequence[Mapping[str, Any]],
    threads: int | None = None,
) -> dict[str, Error]:
    """The error of each output of a model against what was expected of it. Outputs that are no numbers are left out."""
    session = Session(model, threads=threads)
    errors: dict[str, Error] = {}
    for feeds, wanted in zip(samples, expected, strict=True):
        add_outputs(errors, wanted, session.run(dict(feeds)))
    return errors


class Comparison:
    """Two models, and how far the second one's outputs are from the first's, sample by sample; nothing is kept of them.

    errors: by output, over all samples that were added; worst: the least SQNR, in dB, that a sample has left an output;
    samples: how many there were.
    """

    def __init__(self, real: Model, model: Model, threads: int | None = None):
        self._sessions = [Session(m, threads=threads) for m in (real, model)]
        self.errors: dict[str, Error] = {}
        self.worst: dict[str, float] = {}
        self.samples = 0

    def add(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Runs both on a sample."""
        outputs = [session.run(dict(feeds)) for session in self._sessions]
        add_outputs(self.errors, *outputs)
        for name, error in add_outputs({}, *outputs).items():
            self.worst[name] = min(error.sqnr, self.worst.get(name, math.inf))
        self.samples += 1


def add_outputs(errors: dict[str, Error], wanted: Mapping[str, Any], got: Mapping[str, Any]) -> dict[str, Error]:
    """Adds one sample's outputs to the errors by name, which are returned."""
    for name, value in got.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            error = errors.setdefault(name, Error())
            if value.shape == wanted[name].shape:
                error.add(wanted[name], value)
            else:  # the number of what was found depends on the values
                error.signal += float(np.sum(np.square(wanted[name].astype(np.float64))))
                error.noise += max(1e-30, float(np.sum(np.square(wanted[name].astype(np.float64)))))
    return errors


def total_ratio(errors: Mapping[str, Error]) -> float:
    """One number for the error of all outputs: the mean of their noise over signal."""
    return sum(e.ratio for e in errors.values()) / max(1, len(errors))
