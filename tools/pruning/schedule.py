"""Pruning little by little while training goes on.

The share of zeros grows as s(t) = s (1 - (1 - t)^3), quickly first and slowly towards the end (Zhu and Gupta, "To
prune, or not to prune", 2017), over the first part of the epochs; the rest repairs what was lost. Each growth takes
those that matter least of what is left; what is zero stays zero.

Importance of a weight: "magnitude", w^2, or "taylor", (w dL/dw)^2, the square of the first-order change of the loss
without it, averaged over batches (Molchanov et al., "Importance estimation for neural network pruning", 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from evort.graph import Model
from evort_tools.pruning.patterns import Pattern
from evort_tools.pruning.weights import Weight

IMPORTANCES = ("magnitude", "taylor")
GROWTH = 0.5  # of the steps, in which the share grows
_LOOKS = 20  # times that masks are chosen anew
_BATCHES = 16  # that first-order importance is taken from


def magnitudes(parameters: Mapping[str, np.ndarray], weights: Sequence[Weight]) -> dict[str, np.ndarray]:
    """w^2 of each weight, as a matrix."""
    return {w.name: np.square(w.matrix(parameters[w.name]).astype(np.float64)) for w in weights}


class Importance:
    """How much each parameter of a trainer matters; see the module."""

    def __init__(self, kind: str, trainer: Any, batches: Iterable[Any]):
        self.kind, self.trainer, self.batches = kind, trainer, batches
        self._steps: dict[Any, Any] = {}

    def products(self, name: str, gradient: np.ndarray) -> np.ndarray:
        return self.trainer.parameters[name].astype(np.float64) * gradient

    def each_batch(self) -> Iterable[dict[str, np.ndarray]]:
        """w dL/dw of each parameter, by batch."""
        from itertools import islice

        from evort.train.step import Step

        t = self.trainer
        for batch in islice(iter(self.batches), _BATCHES):
            arrays = t.batch_arrays(batch)
            key = tuple(a.shape for a in arrays)
            if key not in self._steps:
                self._steps[key] = Step(
                    t.prepared, arrays, t.loss, None, t.parameters, {n: a.copy() for n, a in t.state.items()},
                    threads=t.threads, keep_gradients=True,
                )  # fmt: skip
            step = self._steps[key]
            step.run(arrays, 0.0, 1)
            yield {n: self.products(n, step.result(g)) for n, g in step.gradients.items()}

    def of(self, weights: Sequence[Weight]) -> dict[str, np.ndarray]:
        """The saliency of each weight, as a matrix."""
        if self.kind == "magnitude":
            return magnitudes(self.trainer.parameters, weights)
        total = {w.name: np.float64(0) for w in weights}
        for products in self.each_batch():
            for w in weights:
                total[w.name] = total[w.name] + np.square(w.matrix(products[w.name]))
        # Weights that no batch uses (all of a layer may be 0 at first) are told apart by their size.
        least = magnitudes(self.trainer.parameters, weights)
        return {w.name: total[w.name] + 1e-12 * least[w.name] for w in weights}


def gradual(
    trainer: Any,
    batches: Any,
    epochs: int,
    weights: Sequence[Weight],
    pattern: Pattern,
    share: float,
    importance: Importance,
    step: Callable[[], None],
    history: list[dict[str, Any]],
    growth: float = GROWTH,
) -> dict[str, np.ndarray]:
    """Trains for `epochs` while `share` of the weights become zero; notes each epoch's loss in `history`. Returns the
    masks (of the tensors' shapes)."""
    per_epoch = len(batches)
    until = max(1, int(growth * epochs * per_epoch))
    every = max(1, until // _LOOKS)
    masks: dict[str, np.ndarray] = {}
    done = 0
    for epoch in range(epochs):
        loss, count = 0.0, 0
        for batch in batches.epoch(epoch):
            if done <= until and (done % every == 0 or done == until):
                masks = masks_of(trainer, weights, pattern, share * (1 - (1 - done / until) ** 3), importance)
            loss += trainer.step(batch)["loss"]
            apply(trainer.parameters, masks)
            done, count = done + 1, count + 1
        zeros = 1 - sum(int(m.sum()) for m in masks.values()) / max(1, sum(m.size for m in masks.values()))
        history.append({"epoch": epoch + 1, "loss": loss / max(1, count), "zeros": zeros})
        step()
    return masks


def masks_of(
    trainer: Any, weights: Sequence[Weight], pattern: Pattern, share: float, importance: Importance
) -> dict[str, np.ndarray]:
    saliency = importance.of(weights)
    shapes = {w.name: trainer.parameters[w.name].shape for w in weights}
    return {w.name: w.like(pattern.mask(saliency[w.name], share), shapes[w.name]) for w in weights}


def apply(parameters: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray]) -> None:
    for name, mask in masks.items():
        parameters[name] *= mask


def at_once(model: Model, weights: Sequence[Weight], pattern: Pattern, share: float) -> dict[str, np.ndarray]:
    """Masks by magnitude, without training."""
    tensors = model.graph.tensors
    saliency = magnitudes({w.name: tensors[w.name].data for w in weights}, weights)
    return {w.name: w.like(pattern.mask(saliency[w.name], share), tensors[w.name].shape) for w in weights}


__all__ = ["IMPORTANCES", "Importance", "apply", "at_once", "gradual"]
