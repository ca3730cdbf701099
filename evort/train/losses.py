"""Losses: what a model is trained to make small.

A loss emits the operators that compute it behind the model's. `build` gets the names of the model's outputs and of the
targets (arrays that come with each batch), and returns the name of the loss, a scalar, and those of metrics. The loss
of a batch is the mean over its samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evort.graph import Model
from evort.ops.gradients import Gradients
from evort.session import Session


class Loss:
    """Base class. targets: how many arrays come with a batch beside the inputs."""

    targets = 1

    def build(self, g: Gradients, outputs: list[str], targets: list[str]) -> tuple[str, dict[str, str]]:
        """Emits the loss; returns its name and those of metrics: "correct", how many samples are right."""
        raise NotImplementedError

    def extra(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Targets that the loss makes itself from a batch's inputs; they follow those given."""
        return []

    def prepare_target(self, array: np.ndarray) -> np.ndarray:
        """A target in the element type that the operators take."""
        return np.ascontiguousarray(array, np.float32)


class CrossEntropy(Loss):
    """Softmax cross entropy of scores [..., C] (the first output) and labels [...], with label smoothing."""

    def __init__(self, label_smoothing: float = 0.0, ignore_index: int | None = None):
        self.label_smoothing, self.ignore_index = label_smoothing, ignore_index

    def build(self, g: Gradients, outputs: list[str], targets: list[str]) -> tuple[str, dict[str, str]]:
        attrs: dict[str, Any] = {"label_smoothing": float(self.label_smoothing)}
        if self.ignore_index is not None:
            attrs["ignore_index"] = self.ignore_index
        loss, _, correct = g.emit("CrossEntropy", [outputs[0], targets[0]], attrs, "evort", 3)
        return loss, {"correct": correct}

    def prepare_target(self, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array, np.int64)


class MSE(Loss):
    """Mean of squared differences between the first output and a target of its shape."""

    def build(self, g: Gradients, outputs: list[str], targets: list[str]) -> tuple[str, dict[str, str]]:
        off = g.sub(outputs[0], targets[0])
        return g.emit("ReduceMean", [g.mul(off, off)], {"keepdims": 0}), {}


class L1(Loss):
    """Mean of absolute differences between the first output and a target of its shape."""

    def build(self, g: Gradients, outputs: list[str], targets: list[str]) -> tuple[str, dict[str, str]]:
        off = g.emit("Abs", [g.sub(outputs[0], targets[0])])
        return g.emit("ReduceMean", [off], {"keepdims": 0}), {}


class KLDivergence(Loss):
    """T^2 times the mean over rows of KL(softmax(target / T) || softmax(output / T)), for scores [..., C] of both:
    what a student learns from a teacher's scores. Hinton, Vinyals and Dean, arXiv:1503.02531."""

    def __init__(self, temperature: float = 1.0):
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        self.temperature = temperature

    def build(self, g: Gradients, outputs: list[str], targets: list[str]) -> tuple[str, dict[str, str]]:
        t = 1 / self.temperature
        mine = g.emit("LogSoftmax", [g.scale(outputs[0], t)])
        theirs = g.emit("LogSoftmax", [g.scale(targets[0], t)])
        off = g.mul(g.emit("Exp", [theirs]), g.sub(theirs, mine))
        shape = g.shape(off)
        total = g.emit("ReduceSum", [off], {"keepdims": 0})
        rows = int(np.prod(shape[:-1]))
        return g.scale(total, self.temperature**2 / max(1, rows)), {}


class Distillation(Loss):
    """weight * KLDivergence(temperature) to a teacher's scores, and (1 - weight) * another loss to the targets given.

    teacher: a model (or session) that takes the same inputs; its first output is learnt from.
    """

    def __init__(
        self, teacher: Model | Session, loss: Loss | None = None, temperature: float = 4.0, weight: float = 0.5
    ):
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must be in [0, 1], not {weight}")
        self.teacher = teacher if isinstance(teacher, Session) else Session(teacher)
        self.loss = loss or CrossEntropy()
        self.kl = KLDivergence(temperature)
        self.weight = weight

    def extra(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        results = self.teacher.run({v.name: inputs[v.name] for v in self.teacher.inputs})
        return [results[self.teacher.outputs[0].name]]

    def build(self, g: Gradients, outputs: list[str], targets: list[str]) -> tuple[str, dict[str, str]]:
        hard, metrics = self.loss.build(g, outputs, targets[:-1])
        soft, _ = self.kl.build(g, outputs, targets[-1:])
        return g.add(g.scale(hard, 1 - self.weight), g.scale(soft, self.weight)), metrics

    def prepare_target(self, array: np.ndarray) -> np.ndarray:
        return self.loss.prepare_target(array)


__all__ = ["L1", "MSE", "CrossEntropy", "Distillation", "KLDivergence", "Loss"]
