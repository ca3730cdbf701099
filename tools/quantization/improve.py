"""The accuracy helpers, one after the other; "auto" keeps one only where it lowers the error on calibration samples.

before calibration, since they change the weights:   equalize, smooth
after it, on top of the encodings:                   16 bits for some activations, clip (weights' outliers), adaround,
                                                     bias correction, weights of a reduced range (for speed)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evort.graph import Model, Node, Tensor
from evort.quant import decibels
from evort.types import DType
from evort_tools.quantization import adaround, bias, equalize, reduced, smooth, static, trials, widen
from evort_tools.quantization.data import Calibration, Sample
from evort_tools.quantization.encodings import Encoding
from evort_tools.quantization.qdq import copy_model, total_bytes
from evort_tools.quantization.select import DELICATE, PRODUCTS, is_product
from evort_tools.quantization.static import Calibrated, Settings

Progress = Callable[[str, int | None], Callable[[], None]]
# A helper must lower the error by this share to be kept.
_WORTH = 0.98
_DELICATE = "8 bits are too few for its results"
_SHRINKS = np.linspace(0.5, 1.0, 51)


@dataclass
class Helpers:
    """Which helpers to use: each "on", "off" or "auto". smooth_alpha: see `smooth.smooth`."""

    equalize: str = "auto"
    smooth: str = "off"
    int16: str = "auto"
    clip: str = "off"
    adaround: str = "auto"
    bias: str = "auto"
    smooth_alpha: float = 0.5


_FEWEST = 4  # samples that are worth being halved


def halves(data: Calibration, count: int) -> tuple[list[Sample], list[Sample]]:
    """(samples to judge by, others to fit weights to), at most `count` of each; the same ones where there are few."""
    found = data.head(2 * count)
    return (found[::2], found[1::2]) if len(found) >= _FEWEST else (found, found)


class Fitting:
    """All samples but those that are judged by (`halves`), read anew each time that they are gone through."""

    def __init__(self, data: Calibration):
        self._data = data
        self._few = len(data.head(_FEWEST)) < _FEWEST

    def __iter__(self) -> Iterator[Sample]:
        return (sample for i, sample in enumerate(self._data) if self._few or i % 2)


class Trial(trials.Judge):
    """The error that a quantization has on a few calibration samples. fitting: others, for helpers that learn from data
    (the same ones where there are not enough): what is learnt by heart is no improvement."""

    def __init__(self, model: Model, data: Calibration, threads: int | None):
        samples, self.fitting = halves(data, trials.trial_count(model, data))
        super().__init__(model, samples, threads)


def quantize(
    model: Model, data: Calibration, settings: Settings, helpers: Helpers, progress: Progress
) -> tuple[Model, Calibrated, dict[str, float]]:
    """Calibrates a model with the helpers that are on.

    Returns (a float model with their changes in it, what calibration found, {helper that was kept: noise over signal of
    the outputs with it}); `qdq.insert` on the two gives the quantized graph. The model given is not changed.
    """
    found = static.calibrate(model, data, settings, progress)
    kept: dict[str, float] = {}

    def again(found: Calibrated) -> Settings:
        """For ranges of changed weights: the method that was best for them before; all are not compared once more."""
        return replace(settings, method=min(found.ratios, key=found.ratios.get)) if found.ratios else settings

    steps = [
        ("equalize", helpers.equalize, lambda m, f: _equalized(m, data, again(f), progress)),
        ("smooth", helpers.smooth, lambda m, f: _smoothed(m, data, again(f), helpers.smooth_alpha, progress)),
        ("int16", helpers.int16, lambda m, f: _widened(m, f, trial, settings, progress)),
        ("clip", helpers.clip, lambda m, f: (m, clipped(m, f))),
        ("adaround", helpers.adaround, lambda m, f: _rounded(m, f, trial.fitting, settings, progress)),
        ("bias", helpers.bias, lambda m, f: _corrected(plain, m, f, trial.fitting, settings, progress)),
    ]
    if not found.encodings or (settings.reduce == {} and all(switch == "off" for _, switch, _ in steps)):
        return model, found, kept
    trials.rank(model, data, [found.encodings], settings.threads, progress)
    trial = Trial(model, data, settings.threads)
    plain = model  # before weights were fitted to integers
    ratio = trial.ratio(model, found.encodings)
    delicate = [node.outputs[0] for node in found.selection.nodes if node.op in DELICATE]
    if delicate:
        others = static.restricted(found, dict.fromkeys(delicate, _DELICATE))
        got = trial.ratio(model, others.encodings)
        if got < _WORTH * ratio:
            found, ratio = others, got
            settings = replace(settings, floats={**settings.floats, **dict.fromkeys(delicate, _DELICATE)})
    large = total_bytes(model.graph) > trials.LARGE
    for name, switch, make in steps:
        if switch == "off" or (switch == "auto" and name in ("equalize", "adaround") and large):
            continue
        made = make(model, found)
        if made is None:
            continue
        changed, other = made
        got = trial.ratio(changed, other.encodings)
        if switch == "on" or got < _WORTH * ratio:
            if other.samples < found.samples:
                other = static.calibrate(changed, data, again(found), progress)
            other.ratios = other.ratios or found.ratios
            model, found, ratio = changed, other, got
            kept[name] = got
            plain = plain if name in ("int16", "clip", "adaround", "bias") else model
    if settings.reduce != {}:
        model, found = reduced.choose(model, plain, found, settings.reduce, trial, settings.threads, progress)
    return model, replace(found, plain=plain), kept


def _equalized(
    model: Model, data: Calibration, settings: Settings, progress: Progress
) -> tuple[Model, Calibrated] | None:
    changed = copy_model(model)
    if not equalize.equalize(changed.graph):
        return None
    return changed, static.calibrate(changed, data, settings, progress, trial=True)


def _smoothed(
    model: Model, data: Calibration, settings: Settings, alpha: float, progress: Progress
) -> tuple[Model, Calibrated] | None:
    changed = copy_model(model)
    step = progress("finding the range of channels", data.count)
    if not smooth.smooth(changed, data, alpha, settings.threads, step):
        return None
    return changed, static.calibrate(changed, data, settings, progress, trial=True)


def restored(model: Model, found: Calibrated) -> Model:
    """A copy of a model in which layers that stay in float have their own weights and biases again, where helpers have
    fitted those to integers."""
    if found.plain is None:
        return model
    changed = copy_model(model)
    integer = {node.outputs[0] for node in found.selection.nodes}
    own = {n.outputs[0]: n for n in found.plain.graph.nodes if n.op in PRODUCTS and n.outputs[0] not in integer}
    for node in changed.graph.nodes:
        old = own.get(node.outputs[0])
        if old is not None:
            node.inputs = list(old.inputs)
            constants = (found.plain.graph.tensors.get(name) for name in old.inputs)
            for tensor in constants:
                if tensor is not None and tensor.data is not None:
                    changed.graph.add(tensor)
    return changed


def _widened(
    model: Model, found: Calibrated, trial: Trial, settings: Settings, progress: Progress
) -> tuple[Model, Calibrated] | None:
    step = progress("trying 16 bits", None)

    def ratio(encodings: Mapping[str, Encoding]) -> float:
        step()
        return trial.ratio(model, encodings)

    if decibels(1.0, trial.of_outputs(model, found.encodings)) >= widen.good(found):
        return None
    wide = widen.widened(model, found, ratio, trial.samples[0], settings.threads)
    return None if wide is found else (model, wide)


def with_encodings(found: Calibrated, encodings: Mapping[str, Encoding]) -> Calibrated:
    """The same calibration with other encodings in place of some."""
    return replace(found, encodings={**found.encodings, **encodings})


def clipped(model: Model, found: Calibrated) -> Calibrated:
    """Weights' outliers clipped: each channel's scale is shrunk to where its weights' squared error is least."""
    better: dict[str, Encoding] = {}
    for name, node in found.selection.weights.items():
        if not is_product(node):
            continue
        w, old = model.graph.constant(name), found.encodings[name]
        best = np.full(old.scale.shape, np.inf)
        shrink = np.ones(old.scale.shape)
        others = None if old.axis is None else tuple(i for i in range(w.ndim) if i != old.axis)
        for factor in _SHRINKS[::-1]:
            scale = (old.scale * np.float32(factor)).astype(np.float32)
            trial = Encoding(old.dtype, scale, old.zero_point, old.axis, narrow=True)
            error = np.square(trial.fake(w) - w).sum(axis=others, dtype=np.float64)
            shrink = np.where(error < best, factor, shrink)
            best = np.minimum(best, error)
        scale = (old.scale * shrink).astype(np.float32)
        better[name] = Encoding(old.dtype, scale, old.zero_point, old.axis, narrow=True, method="weights, clipped")
    return with_encodings(found, better)


def _products(found: Calibrated) -> list[Node]:
    return [node for node in found.selection.nodes if node.op in PRODUCTS]


def _rounded(
    model: Model, found: Calibrated, samples: Sequence[Any], settings: Settings, progress: Progress
) -> tuple[Model, Calibrated]:
    nodes = _products(found)
    step = progress("rounding weights", len(nodes))
    weights = adaround.adaround(model, nodes, found.encodings, samples, settings.threads, step)
    changed = copy_model(model)
    for name, value in weights.items():
        changed.graph.add(Tensor(name, DType.FLOAT, value.shape, value))
    return changed, found


def _corrected(
    plain: Model, model: Model, found: Calibrated, samples: Sequence[Any], settings: Settings, progress: Progress
) -> tuple[Model, Calibrated]:
    step = progress("correcting biases", len(samples))
    nodes = _products(found)
    changes = bias.corrections(plain, nodes, found.encodings, samples, settings.threads, step, model.graph)
    changed = copy_model(model)
    bias.add_to_biases(changed.graph, changes)
    return changed, found
