"""Sequences and optionals: rare, never compiled; they run between the stages of a plan, as Python lists and None."""

from __future__ import annotations

from typing import Any

import numpy as np

from evort.ops.base import REQUIRED, Attr, Call, DataDependent, Op, op
from evort.types import Spec


class _Dynamic(Op):
    """An operator on values that are no tensors."""

    raw_bits = True

    def infer(self, c: Call) -> list[Spec]:
        raise DataDependent


def _position(c: Call, position: np.ndarray | None, length: int, last: int) -> int:
    """An index into a sequence of `length`, from -length to `last`; the end where absent."""
    if position is None:
        return last
    at = int(np.asarray(position).reshape(-1)[0])
    if not -length <= at <= last:
        raise c.error(f"position {at} is outside a sequence of {length}")
    return at + length if at < 0 else at


@op("SequenceConstruct", since=11)
class SequenceConstruct(_Dynamic):
    inputs, outputs = ("*inputs",), ("output_sequence",)

    def reference(self, c: Call, *items: Any) -> tuple[list[Any]]:
        return (list(items),)


@op("SequenceEmpty", since=11)
class SequenceEmpty(_Dynamic):
    outputs = ("output",)
    attrs = {"dtype": Attr("int", 1)}

    def reference(self, c: Call) -> tuple[list[Any]]:
        return ([],)


@op("SequenceAt", since=11)
class SequenceAt(_Dynamic):
    inputs, outputs = ("input_sequence", "position"), ("tensor",)

    def reference(self, c: Call, items: list[Any], position: np.ndarray) -> Any:
        return items[_position(c, position, len(items), len(items) - 1)]


@op("SequenceInsert", since=11)
class SequenceInsert(_Dynamic):
    inputs, outputs = ("input_sequence", "tensor", "position?"), ("output_sequence",)

    def reference(self, c: Call, items: list[Any], tensor: Any, position: Any = None) -> tuple[list[Any]]:
        at = _position(c, position, len(items), len(items))
        return ([*items[:at], tensor, *items[at:]],)


@op("SequenceErase", since=11)
class SequenceErase(_Dynamic):
    inputs, outputs = ("input_sequence", "position?"), ("output_sequence",)

    def reference(self, c: Call, items: list[Any], position: Any = None) -> tuple[list[Any]]:
        at = _position(c, position, len(items), len(items) - 1)
        return ([*items[:at], *items[at + 1 :]],)


@op("SequenceLength", since=11)
class SequenceLength(_Dynamic):
    inputs, outputs = ("input_sequence",), ("length",)

    def reference(self, c: Call, items: list[Any]) -> np.ndarray:
        return np.array(len(items), np.int64)


@op("SplitToSequence", since=24)
class SplitToSequence(_Dynamic):
    inputs, outputs = ("input", "split?"), ("output_sequence",)
    attrs = {"axis": Attr("int", 0), "keepdims": Attr("int", 1)}

    def reference(self, c: Call, x: np.ndarray, split: np.ndarray | None = None) -> tuple[list[np.ndarray]]:
        axis = c.axis(c["axis"], x.ndim)
        length = x.shape[axis]
        if split is None:
            parts = np.split(x, length, axis) if length else []
            return ([p if c["keepdims"] else p.squeeze(axis) for p in parts],)
        sizes = np.asarray(split)
        if sizes.ndim == 0:
            if sizes <= 0:
                raise c.error("split must be positive")
            ends = np.arange(int(sizes), length, int(sizes))
        else:
            if (sizes < 0).any() or sizes.sum() != length:
                raise c.error(f"split {sizes.tolist()} does not add up to {length}")
            ends = np.cumsum(sizes)[:-1]
        return (np.split(x, ends.astype(int), axis),)


@op("ConcatFromSequence", since=11)
class ConcatFromSequence(_Dynamic):
    inputs, outputs = ("input_sequence",), ("concat_result",)
    attrs = {"axis": Attr("int", REQUIRED), "new_axis": Attr("int", 0)}

    def reference(self, c: Call, items: list[np.ndarray]) -> np.ndarray:
        if not items:
            raise c.error("the sequence is empty")
        rank = items[0].ndim + (1 if c["new_axis"] else 0)
        axis = c.axis(c["axis"], rank)
        return np.stack(items, axis) if c["new_axis"] else np.concatenate(items, axis)


@op("SequenceMap", since=17)
class SequenceMap(_Dynamic):
    inputs, outputs = ("input_sequence", "*additional_inputs"), ("*out_sequence",)
    attrs = {"body": Attr("graph", REQUIRED)}

    def reference(self, c: Call, items: list[Any], *others: Any) -> tuple[list[Any], ...]:
        body = c["body"]
        rows = []
        for i, item in enumerate(items):
            row = [item, *(x[i] if isinstance(x, list) else x for x in others)]
            rows.append(c.run_graph(body, dict(zip(body.inputs, row, strict=True))))
        return tuple([row[k] for row in rows] for k in range(len(body.outputs)))


@op("Optional", since=15)
class Optional(_Dynamic):
    inputs, outputs = ("input?",), ("output",)
    attrs = {"type": Attr("int")}

    def reference(self, c: Call, x: Any = None) -> tuple[Any]:
        return (x,)


@op("OptionalGetElement", since=18)
class OptionalGetElement(_Dynamic):
    inputs, outputs = ("input",), ("output",)

    def reference(self, c: Call, x: Any) -> tuple[Any]:
        if x is None:
            raise c.error("the optional is empty")
        return (x,)


@op("OptionalHasElement", since=18)
class OptionalHasElement(_Dynamic):
    inputs, outputs = ("input?",), ("output",)

    def reference(self, c: Call, x: Any = None) -> np.ndarray:
        return np.array(x is not None)
