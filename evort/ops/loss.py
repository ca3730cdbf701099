"""Classification losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from evort.errors import ExecutionError
from evort.ops.base import Attr, Call, Kernel, Op, op, wide
from evort.types import FLOATS, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

_LABELS = frozenset({DType.INT32, DType.INT64})


class _Loss(Op):
    attrs = {"ignore_index": Attr("int"), "reduction": Attr("str", "mean")}
    untrained = (2,)

    def infer(self, c: Call) -> list[Spec | None]:
        x, labels = c.ins[:2]
        if x.rank < 2 or labels.shape != (x.shape[0], *x.shape[2:]):
            raise c.error("the labels must have the shape of the scores without their axis 1")
        if c.has(2) and c.ins[2].shape != (x.shape[1],):
            raise c.error(f"the weights must have shape ({x.shape[1]},): one for each class")
        if c["reduction"] not in ("none", "sum", "mean"):
            raise c.error(f"reduction {c['reduction']!r} is none of none, sum, mean")
        return [Spec(x.dtype, labels.shape if c["reduction"] == "none" else ())]

    def loss(self, c: Call, logs: np.ndarray, labels: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        """-logs at the labels, weighted and reduced. Raises ExecutionError for a label that is no class."""
        kept = np.ones(labels.shape, bool) if c["ignore_index"] is None else labels != c["ignore_index"]
        classes = np.where(kept, labels, 0)
        if np.any(kept & ((labels < 0) | (labels >= logs.shape[1]))):
            raise ExecutionError(f"{c.node.label()}: a label is not one of {logs.shape[1]} classes")
        if logs.shape[1] == 0:
            losses = weight = np.zeros(labels.shape)
        else:
            weight = np.where(kept, 1.0 if weights is None else wide(weights)[classes], 0.0)
            taken = np.take_along_axis(logs, np.expand_dims(classes, 1), 1)[:, 0]
            losses = np.where(kept, -taken * weight, 0.0)
        if c["reduction"] == "none":
            return losses
        total = np.sum(losses)
        return total if c["reduction"] == "sum" else total / np.sum(weight)

    def lowered(self, g: Gradients, c: Call, logs: str) -> str:
        """The same, by operators with gradients. A label that is no class is an ExecutionError of GatherElements."""
        labels, shape = g.cast(c.node.inputs[1], DType.INT64), c.ins[1].shape
        kept = None
        if c["ignore_index"] is not None:
            kept = g.emit("Not", [g.emit("Equal", [labels, g.scalar(c["ignore_index"], labels)])])
            labels = g.emit("Where", [kept, labels, g.scalar(0, labels)])
        at = g.reshape(labels, (shape[0], 1, *shape[1:]))
        losses = g.neg(g.reshape(g.emit("GatherElements", [logs, at], {"axis": 1}), shape))
        weight = g.expand(g.scalar(1, logs), shape)
        if c.has(2):
            weight = g.emit("Gather", [c.node.inputs[2], labels])
        if kept is not None:
            weight = g.mask(kept, weight)
        losses = g.mul(losses, weight)
        if c["reduction"] == "none":
            return losses
        total = g.sum(losses, range(len(shape)), keepdims=False)
        return total if c["reduction"] == "sum" else g.div(total, g.sum(weight, range(len(shape)), keepdims=False))


@op("NegativeLogLikelihoodLoss", since=22)
class NegativeLogLikelihoodLoss(_Loss):
    """-input at the target class, times the class's weight; 0 for `ignore_index`. Reduced to the sum, or to the mean
    (sum of losses / sum of weights)."""

    inputs, outputs = ("input", "target", "weight?"), ("loss",)
    dtypes = {"input": FLOATS, "target": _LABELS, "weight": FLOATS}

    def reference(self, c: Call, x, target, weight=None) -> np.ndarray:
        with np.errstate(all="ignore"):
            return self.loss(c, wide(x), target, weight)

    def lower(self, g: Gradients, c: Call) -> list[str]:
        return [self.lowered(g, c, c.node.inputs[0])]


@op("SoftmaxCrossEntropyLoss", since=13)
class SoftmaxCrossEntropyLoss(_Loss):
    """-log softmax(scores) at the label's class, times the class's weight; 0 for `ignore_index`. Reduced to the sum,
    or to the mean (sum of losses / sum of weights). log_prob is the logarithm of the softmax."""

    inputs, outputs = ("scores", "labels", "weights?"), ("output", "log_prob?")
    dtypes = {"scores": FLOATS, "labels": _LABELS, "weights": FLOATS}

    def infer(self, c: Call) -> list[Spec | None]:
        return [*super().infer(c), c.like(0)] if c.wants(1) else super().infer(c)

    def reference(self, c: Call, x, labels, weights=None) -> Any:
        with np.errstate(all="ignore"):
            shifted = wide(x)
            shifted = shifted - np.max(shifted, axis=1, keepdims=True, initial=-np.inf)
            logs = shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))
            return self.loss(c, logs, labels, weights), logs

    def lower(self, g: Gradients, c: Call) -> list[str]:
        logs = g.emit("LogSoftmax", [c.node.inputs[0]], {"axis": 1})
        return [self.lowered(g, c, logs), logs]


@op("CrossEntropy", domain="evort")
class CrossEntropy(Op):
    """What a classifier is trained with: the mean of -sum(target * log softmax(scores)) over all rows, its gradient
    with respect to the scores, and how many rows have their largest score at the label.

    scores [..., C]; labels [...]. target is 1 at the label, or with label_smoothing s: 1 - s + s/C there and s/C
    elsewhere (Szegedy et al., arXiv:1512.00567). Rows whose label is ignore_index count for nothing.
    """

    inputs, outputs = ("scores", "labels"), ("loss", "gradient", "correct?")
    attrs = {"label_smoothing": Attr("float", 0.0), "ignore_index": Attr("int")}
    dtypes = {"scores": FLOATS, "labels": _LABELS}

    def infer(self, c: Call) -> list[Spec | None]:
        x, labels = c.ins
        if x.rank < 1 or labels.shape != x.shape[:-1] or x.size == 0:
            raise c.error("the labels must have the shape of the scores without their last axis, which has elements")
        if not 0 <= c["label_smoothing"] < 1:
            raise c.error(f"label_smoothing must be in [0, 1), not {c['label_smoothing']}")
        return [Spec(x.dtype, ()), c.like(0), Spec(DType.INT64, ()) if c.wants(2) else None]

    def reference(self, c: Call, x: np.ndarray, labels: np.ndarray) -> Any:
        classes, smooth = x.shape[-1], c["label_smoothing"]
        rows, labels = wide(x).reshape(-1, classes), labels.reshape(-1)
        kept = np.ones(labels.shape, bool) if c["ignore_index"] is None else labels != c["ignore_index"]
        if np.any(kept & ((labels < 0) | (labels >= classes))):
            raise ExecutionError(f"{c.node.label()}: a label is not one of {classes} classes")
        count = max(1, int(kept.sum()))
        shifted = rows - rows.max(1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        target = np.full(rows.shape, smooth / classes)
        target[np.arange(len(rows)), np.where(kept, labels, 0)] += 1 - smooth
        target[~kept] = 0
        gradient = (np.exp(logs) * kept[:, None] - target) / count
        correct = np.sum((rows.argmax(1) == labels) & kept)
        return -np.sum(target * logs) / count, gradient.reshape(x.shape), correct

    def bind(self, c: Call) -> Kernel | None:
        x = c.ins[0]
        if x.dtype != DType.FLOAT or c.ins[1].dtype != DType.INT64:
            return None
        ignore = c["ignore_index"]
        ints = (x.shape[-1], int(ignore is not None), ignore or 0)
        return Kernel("train.cross_entropy_f32", ints, (c["label_smoothing"],), scratch=8 * 64)

    def gradient(self, g: Gradients, c: Call, dloss: str | None, *_: None) -> list[str | None]:
        return [None if dloss is None else g.mul(c.node.outputs[1], dloss), None]
