"""Searching and sorting: TopK, NonMaxSuppression, Unique, NonZero."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from evort.ops.base import Attr, Call, DataDependent, Kernel, Op, op
from evort.types import ANY, FLOAT8, NUMERIC, STORAGE, SUBBYTE, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

_PLAIN = ANY - FLOAT8 - SUBBYTE - {DType.SEQUENCE, DType.OPTIONAL}


@op("TopK", since=24)
class TopK(Op):
    """The K largest (or smallest) elements along `axis`, best first, and their positions; of equals the first.

    NaN counts as larger than every number. `sorted` is ignored: sorted order is allowed where none is asked for.
    """

    inputs, outputs = ("X", "K"), ("Values", "Indices")
    attrs = {"axis": Attr("int", -1), "largest": Attr("int", 1), "sorted": Attr("int", 1)}
    dtypes = {"X": NUMERIC, "K": frozenset({DType.INT64})}

    def infer(self, c: Call) -> list[Spec | None]:
        x = c.ins[0]
        axis = c.axis(c["axis"], x.rank)
        given = c.ints(1)
        if len(given) != 1 or not 0 <= given[0] <= x.shape[axis]:
            raise c.error(f"K must be one number from 0 to {x.shape[axis]}, not {list(given)}")
        shape = (*x.shape[:axis], given[0], *x.shape[axis + 1 :])
        return [Spec(x.dtype, shape), Spec(DType.INT64, shape)]

    def reference(self, c: Call, x: np.ndarray, k: np.ndarray) -> Any:
        axis, count = c.axis(c["axis"], x.ndim), int(k.reshape(-1)[0])
        if c["largest"]:
            # From behind, so that the stable sort leaves the first of equals last, and this turns it round.
            order = x.shape[axis] - 1 - np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
        else:
            order = np.argsort(x, axis, kind="stable")
        index = np.take(order, np.arange(count), axis)
        return np.take_along_axis(x, index, axis), index

    def bind(self, c: Call) -> Kernel | None:
        x, y = c.ins[0], c.outs[0]
        if x.dtype not in (DType.FLOAT, DType.INT32, DType.INT64) or y.size == 0:
            return None
        if not (c.wants(0) and c.wants(1)):
            return None
        axis = c.axis(c["axis"], x.rank)
        k, n = y.shape[axis], x.shape[axis]
        ints = (k, n, prod(x.shape[axis + 1 :]), STORAGE[x.dtype].itemsize, int(not c["largest"]), 16 * k)
        return Kernel("search.top_k", ints, scratch=16 * k * c.threads, inputs=(0,))

    def gradient(self, g: Gradients, c: Call, dvalues: str | None, *_: None) -> list[str | None]:
        if dvalues is None:
            return [None, None]
        index = c.node.outputs[1] if c.wants(1) else g.replay("TopK", c, c.node.inputs, outputs=2)[1]
        zeros = g.expand(g.scalar(0, dvalues), c.ins[0].shape)
        return [g.emit("ScatterElements", [zeros, index, dvalues], {"axis": c["axis"]}), None]


@op("NonMaxSuppression", since=11)
class NonMaxSuppression(Op):
    """Rows (batch, class, box): for each batch and class the boxes in falling order of score, without those whose
    overlap with one chosen before (intersection over union) is above `iou_threshold`; at most
    `max_output_boxes_per_class` of them, with a score above `score_threshold`.
    """

    inputs = ("boxes", "scores", "max_output_boxes_per_class?", "iou_threshold?", "score_threshold?")
    outputs = ("selected_indices",)
    attrs = {"center_point_box": Attr("int", 0)}
    dtypes = {
        "boxes": frozenset({DType.FLOAT}),
        "scores": frozenset({DType.FLOAT}),
        "max_output_boxes_per_class": frozenset({DType.INT64}),
        "iou_threshold": frozenset({DType.FLOAT}),
        "score_threshold": frozenset({DType.FLOAT}),
    }

    def infer(self, c: Call) -> list[Spec | None]:
        boxes, scores = c.ins[:2]
        if boxes.rank != 3 or scores.rank != 3 or boxes.shape[2] != 4:
            raise c.error("boxes must have shape (batches, boxes, 4), scores (batches, classes, boxes)")
        if boxes.shape[0] != scores.shape[0] or boxes.shape[1] != scores.shape[2]:
            raise c.error("boxes and scores differ in batches or boxes")
        if any(c.has(i) and c.ins[i].size != 1 for i in (2, 3, 4)):
            raise c.error("the limits must be single numbers")
        if c["center_point_box"] not in (0, 1):
            raise c.error(f"center_point_box must be 0 or 1, not {c['center_point_box']}")
        raise DataDependent

    def reference(self, c: Call, boxes, scores, most=None, overlap=None, least=None) -> np.ndarray:
        most = 0 if most is None else int(most.reshape(-1)[0])
        overlap = np.float32(0) if overlap is None else overlap.reshape(-1)[0]
        rows = []
        for batch in range(len(boxes) if most > 0 else 0):
            corners = _corners(boxes[batch], c["center_point_box"])
            for kind in range(scores.shape[1]):
                score = scores[batch, kind]
                found = np.arange(len(score)) if least is None else np.flatnonzero(score > least.reshape(-1)[0])
                found = found[np.argsort(-score[found], kind="stable")]
                chosen = _suppress(corners, found, most, overlap)
                rows += [(batch, kind, box) for box in chosen]
        return np.array(rows, np.int64).reshape(-1, 3)

    def compute(self, c: Call, boxes, scores, most=None, overlap=None, least=None) -> np.ndarray:
        from evort._kernels import search

        limit = 0 if most is None else int(most.reshape(-1)[0])
        threshold = 0.0 if overlap is None else float(overlap.reshape(-1)[0])
        floor = None if least is None else float(least.reshape(-1)[0])
        boxes, scores = np.ascontiguousarray(boxes), np.ascontiguousarray(scores)
        corners = np.stack([_corners(b, c["center_point_box"]) for b in boxes]) if len(boxes) else boxes
        return np.frombuffer(search.choose_boxes(corners, scores, limit, threshold, floor), np.int64).reshape(-1, 3)


def _corners(boxes: np.ndarray, centred: int) -> np.ndarray:
    """(4, boxes): least x, least y, greatest x, greatest y."""
    if centred:
        x, y, w, h = boxes.T
        return np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    y1, x1, y2, x2 = boxes.T
    return np.stack([np.minimum(x1, x2), np.minimum(y1, y2), np.maximum(x1, x2), np.maximum(y1, y2)])


def _suppress(corners: np.ndarray, order: np.ndarray, most: int, threshold: np.floating) -> list[int]:
    """The boxes chosen among `order`, which is best first."""
    chosen: list[int] = []
    with np.errstate(all="ignore"):
        while len(order) and len(chosen) < most:
            best, order = order[0], order[1:]
            chosen.append(int(best))
            x1, y1, x2, y2 = corners[:, best]
            left, top, right, bottom = corners[:, order]
            w = np.minimum(right, x2) - np.maximum(left, x1)
            h = np.minimum(bottom, y2) - np.maximum(top, y1)
            own, other, common = (x2 - x1) * (y2 - y1), (right - left) * (bottom - top), w * h
            union = own + other - common
            overlapping = (w > 0) & (h > 0) & (own > 0) & (other > 0) & (union > 0)
            order = order[~(overlapping & (common / union > threshold))]
    return chosen


@op("Unique", since=28)
class Unique(Op):
    """The distinct elements of X (or slices of it along `axis`), sorted or in order of first occurrence; the position
    of each one's first occurrence; for each element of X its position in Y; how often each occurs."""

    inputs, outputs = ("X",), ("Y", "indices?", "inverse_indices?", "counts?")
    attrs = {"axis": Attr("int"), "sorted": Attr("int", 1)}
    dtypes = {"X": _PLAIN}
    raw_bits = True

    def infer(self, c: Call) -> list[Spec | None]:
        if c["axis"] is not None:
            c.axis(c["axis"], c.ins[0].rank)
        raise DataDependent

    def reference(self, c: Call, x: np.ndarray) -> Any:
        axis = c["axis"]
        comparable = x.astype(str) if x.dtype == object else x
        if c.ins[0].dtype == DType.BFLOAT16:
            from evort.ops.lowp import widen

            comparable = widen(x, DType.BFLOAT16)
        _, first, inverse, counts = np.unique(comparable, True, True, True, axis=axis)
        inverse = inverse.reshape(-1)
        if not c["sorted"]:
            order = np.argsort(first)
            place = np.empty_like(order)
            place[order] = np.arange(len(order))
            first, inverse, counts = first[order], place[inverse], counts[order]
        y = np.take(x.reshape(-1), first) if axis is None else np.take(x, first, axis)
        return y, first.astype(np.int64), inverse.astype(np.int64), counts.astype(np.int64)


@op("NonZero", since=13)
class NonZero(Op):
    """(rank, count): the positions of the elements that are not 0, in row-major order."""

    inputs, outputs = ("X",), ("Y",)
    dtypes = {"X": _PLAIN}

    def infer(self, c: Call) -> list[Spec | None]:
        raise DataDependent

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        if x.ndim == 0:
            return np.zeros((0, int(bool(x))), np.int64)
        return np.array(np.nonzero(x), np.int64)
