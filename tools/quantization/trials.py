"""Which calibration samples a quantization is judged by, where running all of them each time would take too long.

Most samples of a classifier tell next to nothing: where it is sure, its output is 0 or 1 whatever the noise before the
Softmax. A choice of ranges by ten such samples is a choice by chance. So all samples are run once, in float32 and with
wide and with narrow ranges, and those with the most noise come first, in turns with evenly spread ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from evort.graph import Model
from evort.session import Session
from evort.weights import with_floats
from evort_tools.common import Progress
from evort_tools.quantization.capture import specs_of
from evort_tools.quantization.compare import Comparison, add_outputs, expected_outputs, output_errors, total_ratio
from evort_tools.quantization.data import Calibration
from evort_tools.quantization.encodings import Encoding
from evort_tools.quantization.qdq import copy_model, fake_quantized, total_bytes

# Elements that all samples together may have when methods are compared by running operators or the whole model.
_ELEMENTS = 1 << 26
_FEWEST, _MOST = 2, 128
# Models with more bytes of weights are not copied for a trial, nor loaded twice: memory stays below 2.5 times the
# model's size.
LARGE = 1 << 25
_RANKED = 256  # samples at most that are run to be put in order
_JUDGES = 64  # samples at most on which a result is measured, fewer of a large model
_RUN = 1 << 32  # elements that all samples together may have where each is run a few times


def _elements(model: Model, data: Calibration) -> int:
    """Of all tensors that a model computes for a sample."""
    specs = specs_of(model.graph, next(iter(data)))
    return max(1, sum(spec.size for spec in specs.values()))


def trial_count(model: Model, data: Calibration) -> int:
    """How many samples to try things on: fewer of a model with many activations."""
    return max(_FEWEST, min(_MOST, _ELEMENTS // _elements(model, data)))


def run_count(model: Model, data: Calibration) -> int:
    """How many samples to run a few times each, to see what a change gives."""
    return max(_FEWEST, _RUN // _elements(model, data))


def measured(real: Model, model: Model, data: Calibration, threads: int | None, progress: Progress) -> dict[str, Any]:
    """How far a model's outputs are from the float model's: an entry of a result's `measured`."""
    step = progress("measuring the result", None)
    worst: dict[str, float] = {}
    if total_bytes(real.graph) > LARGE:  # not both at once in memory
        samples = data.head(trial_count(real, data))
        errors, count = output_errors(model, samples, expected_outputs(real, samples, threads), threads), len(samples)
    else:
        found = Comparison(real, with_floats(model)[0], threads)
        for feeds in data.some(min(_JUDGES, run_count(real, data))):
            found.add(feeds)
            step()
        errors, count, worst = found.errors, found.samples, found.worst
    sqnr = {name: error.sqnr for name, error in errors.items()}
    return {"samples": count, "sqnr_db": sqnr, "worst_db": worst}


class Judge:
    """Tells what encodings of a model lose on samples.

    Where outputs come from a Softmax at the end it looks at what that reads: where a classifier is sure, its output is
    0 or 1 whatever the noise before it, and the few samples that it is not sure of would decide by chance.
    """

    def __init__(self, model: Model, samples: Sequence[Mapping[str, np.ndarray]], threads: int | None):
        self.samples = samples
        self._threads = threads
        softmax = {n.outputs[0]: n.inputs[0] for n in model.graph.nodes if n.op == "Softmax" and not n.domain}
        self._outputs = list(model.graph.outputs)
        self._judged = [softmax.get(name, name) for name in self._outputs]
        self._model = model

    @functools.cached_property
    def expected(self) -> list[dict[str, np.ndarray]]:
        """What is judged by, of the float model; it is run when this is wanted first."""
        return expected_outputs(self._view(self._model), self.samples, self._threads)

    def _view(self, model: Model) -> Model:
        view = copy_model(model)
        written = {name for node in model.graph.nodes for name in node.outputs}
        view.graph.outputs = list(dict.fromkeys((*self._outputs, *filter(written.__contains__, self._judged))))
        return view

    def ratio(self, model: Model, encodings: Mapping[str, Encoding]) -> float:
        """Noise over signal of what is judged by."""
        return self._ratios(model, encodings)[0]

    def of_outputs(self, model: Model, encodings: Mapping[str, Encoding]) -> float:
        """Noise over signal of the outputs themselves."""
        return self._ratios(model, encodings)[1]

    def of_integers(self, made: Model) -> float:
        """As `ratio`, of an integer model; of what a Softmax makes where that reads integers."""
        errors = output_errors(self._view(made), self.samples, self.expected, self._threads)
        pairs = zip(self._outputs, self._judged, strict=True)
        names = [judged if judged in errors else output for output, judged in pairs]
        return total_ratio({name: errors[name] for name in names if name in errors})

    def _ratios(self, model: Model, encodings: Mapping[str, Encoding]) -> tuple[float, float]:
        made = fake_quantized(self._view(model), encodings)
        errors = output_errors(made, self.samples, self.expected, self._threads)
        judged, outputs = (
            total_ratio({name: errors[name] for name in names if name in errors})
            for names in (self._judged, self._outputs)
        )
        return judged, outputs


def rank(
    model: Model,
    data: Calibration,
    proposals: Sequence[Mapping[str, Encoding]],
    threads: int | None = None,
    progress: Callable[[str, int | None], Callable[[], None]] | None = None,
) -> None:
    """Sets `data.order`, where there are more samples than are tried at once and it is not set yet, by the noise of all
    proposals together.

    That of a large model is left as it is. Samples of even and of odd places take turns in it, so that the halves of
    it (`improve.halves`) have no sample in common with those of all the data (`improve.Fitting`).
    """
    count = trial_count(model, data)
    if data.order is not None or len(data) <= 2 * count or total_bytes(model.graph) > LARGE:
        return
    places = data.spread(min(_RANKED, max(2 * count, run_count(model, data))))
    step = (progress or (lambda what, count: lambda: None))("looking for telling samples", len(places))
    real = Session(model, threads=threads)
    rounded = [Session(fake_quantized(model, encodings), threads=threads) for encodings in proposals]
    noise: list[list[float]] = []
    signal: list[list[float]] = []
    wanted = set(places)
    for number, feeds in enumerate(data):
        if number not in wanted:
            continue
        expected, errors = real.run(dict(feeds)), {}
        for session in rounded:
            add_outputs(errors, expected, session.run(dict(feeds)))
        noise.append([error.noise for error in errors.values()])
        signal.append([error.signal for error in errors.values()])
        step()
    total = np.maximum(np.sum(signal, axis=0), np.finfo(np.float64).tiny)
    lost = dict(zip(places, np.sum(np.asarray(noise) / total, axis=1), strict=True))
    halves = (_in_turns([p for p in places if p % 2 == odd], lost, count) for odd in (0, 1))
    data.order = [place for pair in zip(*halves, strict=False) for place in pair]


def _in_turns(places: list[int], lost: Mapping[int, Any], count: int) -> list[int]:
    """The worst place, one of the evenly spread rest, the next worst, and so on."""
    hardest = sorted(places, key=lambda place: -lost[place])
    first = set(hardest[: -(-count // 2)])
    rest = [place for place in places if place not in first]
    spread = [rest[i * len(rest) // max(1, count // 2)] for i in range(min(len(rest), count // 2))]
    taken: dict[int, None] = {}
    for i in range(len(places)):
        taken |= dict.fromkeys([*hardest[i : i + 1], *spread[i : i + 1]])
    return list(taken)
