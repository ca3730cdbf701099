"""SmoothQuant: the range of activations' channels goes over into the weights that read them.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models" (2022). In
transformers a few channels of activations are far larger than the others, so that one scale for all leaves those few
levels. Y = X W = (X / s) (s W) holds for any s > 0 by channel, with

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)

The division is absorbed by what computes X, so it costs nothing: a normalization's scale and bias, or the output
channels of a product with a homogeneous activation. alpha = 1 gives all channels of X one range, which is what scales
for each channel of activations would do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from evort.graph import Graph, Model, Node
from evort_tools.quantization.capture import observe
from evort_tools.quantization.equalize import (
    Side,
    readers_of,
    reading_side,
    scale_input,
    scale_output,
    set_constant,
    writing_side,
)
from evort_tools.quantization.select import operand

# Normalizations -> the axis of their output along which scale and bias lie.
_NORMALIZATIONS = {
    "LayerNormalization": -1, "RMSNormalization": -1, "InstanceNormalization": 1, "BatchNormalization": 1,
}  # fmt: skip
_MOST_STEP = 2.0**14


class Magnitudes:
    """An observer: the largest magnitude in each channel, and how often it was not zero: in how many images where
    channels are those of images, else in how many rows."""

    def __init__(self, axis: int):
        self.axis = axis
        self.largest: np.ndarray | None = None
        self.times = np.zeros(0)

    def observe(self, value: np.ndarray) -> None:
        x = np.abs(np.moveaxis(value, self.axis, 0))
        x = x.reshape(*x.shape[:2], -1).max(axis=2, initial=0.0) if self.axis > 0 else x.reshape(len(x), -1)
        found, times = x.max(axis=1, initial=0.0).astype(np.float64), np.count_nonzero(x, axis=1)
        if self.largest is None:
            self.largest, self.times = np.zeros(len(x)), np.zeros(len(x))
        self.largest = np.maximum(self.largest, found)
        self.times = self.times + times

    def reach(self) -> np.ndarray:
        """How far each channel may reach.

        A range for all channels has been seen as often as all of them together, one for a channel as often as it alone:
        others will go beyond. Where the tail is exponential the largest of n numbers grows as log n; so of n numbers of
        each of C channels it may be log(n C) / log(n) times as large. No channel reaches further than all have.
        """
        top = self.largest.max(initial=0.0)
        times = np.maximum(self.times, 1 + 1e-9)
        room = 1 + np.log(max(2, len(times))) / np.log(times)
        return np.where(self.largest > 0, np.minimum(top, room * self.largest), top)


class Spot:
    """A tensor that may be smoothed: what writes it, and the products that read it (alone)."""

    def __init__(self, name: str, axis: int, writer: Node, sides: list[Side]):
        self.name = name
        self.axis = axis
        self.writer = writer
        self.sides = sides


def spots(graph: Graph) -> list[Spot]:
    """The tensors whose channels can be scaled at no cost."""
    readers = readers_of(graph)
    found = []
    for node in graph.nodes:
        name = node.outputs[0] if node.outputs else ""
        users = readers.get(name, [])
        if not users or name in graph.outputs or any(o for o in node.outputs[1:]):
            continue
        sides = [reading_side(graph, u) if u.inputs[0] == name and name not in u.inputs[1:] else None for u in users]
        if any(side is None for side in sides):
            continue
        axes = {1 if side.node.op in ("Conv", "ConvTranspose") else -1 for side in sides}
        shared = any(len(readers[side.node.inputs[1]]) > 1 for side in sides)
        channels = {side.channels for side in sides}
        if len(axes) == 1 and len(channels) == 1 and not shared and _absorbs(graph, node, next(iter(axes)), channels):
            found.append(Spot(name, next(iter(axes)), node, sides))
    return found


def _absorbs(graph: Graph, node: Node, axis: int, channels: set[int]) -> bool:
    if node.op in _NORMALIZATIONS and not node.domain:
        if _NORMALIZATIONS[node.op] != axis or node.attrs.get("activation") or node.attrs.get("axis", -1) != -1:
            return False
        scale, bias = (graph.constant(operand(node, i)) if operand(node, i) else None for i in (1, 2))
        if scale is None or (operand(node, 2) and bias is None):
            return False
        return all(v is None or (v.ndim == 1 and {v.size} == channels) for v in (scale, bias))
    side = writing_side(graph, node)
    convolution = node.op in ("Conv", "ConvTranspose")
    shared = side is not None and len(readers_of(graph)[node.inputs[1]]) > 1
    return side is not None and not shared and convolution == (axis == 1) and {side.channels} == channels


def smooth(
    model: Model,
    samples: Iterable[Mapping[str, np.ndarray]],
    alpha: float = 0.5,
    threads: int | None = None,
    progress: Callable[[], None] | None = None,
) -> int:
    """Smooths the activations of a model, in place; returns how many tensors. alpha: how much of the activations' range
    goes over, from 0 (none, the weights' goes to them) to 1 (all). Raises ValueError for another alpha."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, not {alpha}")
    places = spots(model.graph)
    seen = {spot.name: Magnitudes(spot.axis) for spot in places}
    if not places:
        return 0
    observe(model, samples, seen, threads, progress)
    for spot in places:
        _scale(model.graph, spot, seen[spot.name].reach(), alpha)
    return len(places)


def _scale(graph: Graph, spot: Spot, largest: np.ndarray, alpha: float) -> None:
    sides = [Side(graph, side.node, side.axis) for side in spot.sides]  # others may have scaled their outputs
    weights = np.max([side.ranges() for side in sides], axis=0)
    good = (largest > 0) & (weights > 0) & np.isfinite(largest)
    s = np.ones(len(largest))
    s[good] = np.clip(largest[good] ** alpha / weights[good] ** (1 - alpha), 1 / _MOST_STEP, _MOST_STEP)
    if spot.writer.op in _NORMALIZATIONS:
        for index in (1, 2):
            if operand(spot.writer, index):
                set_constant(graph, spot.writer, index, graph.constant(spot.writer.inputs[index]) / s)
    else:
        scale_output(graph, writing_side(graph, spot.writer), 1 / s)
    for side in sides:
        scale_input(graph, side, s)
