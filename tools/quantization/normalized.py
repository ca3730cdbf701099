"""Bytes between a convolution and the InstanceNormalization behind it, where they are the most that a run holds.

Half a step of 8 bits is a good part of what a normalization makes of a channel that varies little. But it takes the
scale of each channel out again; so each has a scale of its own, which joins that of the convolution's weights:

    T = act(sum * x_scale * w_scale)           becomes    q = act(sum * x_scale * (w_scale / s)) + z, uint8
    Y = InstanceNormalization(T)                          Y = QLinearInstanceNormalization(q, scales s, z)

with an activation of which act(x / s) = act(x) / s. The zero point is the same in all channels: that with which steps
are least beside the channels' deviations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from evort.graph import Graph, Model, Node
from evort_tools.passes import names_of
from evort_tools.quantization.capture import observe, specs_of
from evort_tools.quantization.data import Calibration
from evort_tools.quantization.equalize import HOMOGENEOUS, readers_of
from evort_tools.quantization.memory import SHARE, add_constant, fullest, planned
from evort_tools.quantization.qdq import copy_model
from evort_tools.quantization.select import Z, operand
from evort_tools.quantization.static import Calibrated, widest

_LARGE = 0.25  # of the elements of a model's largest tensor: smaller ones do not decide what a run takes
_LOSS = 1.25  # times the noise of the outputs, at most: a decibel


def spots(model: Model, found: Calibrated, sample: Mapping[str, Any]) -> list[str]:
    """The large results of convolutions in integers that only an InstanceNormalization reads, the largest first."""
    graph, selection = model.graph, found.selection
    sizes = {name: spec.size for name, spec in specs_of(graph, sample).items()}
    readers = readers_of(graph)
    names = [
        node.outputs[0]
        for node in selection.nodes
        if node.op == "Conv" and node.inputs[1] in selection.weights and not operand(node, Z)
        and node.attrs.get("activation", "") in HOMOGENEOUS and _reader(graph, readers, node.outputs[0]) is not None
    ]  # fmt: skip
    least = _LARGE * max(sizes.values(), default=0)
    return sorted((name for name in names if sizes.get(name, 0) >= least), key=lambda name: -sizes[name])


def in_bytes(real: Model, model: Model, names: Sequence[str], data: Calibration, noise: Callable[[Model], float],
             threads: int | None = None) -> Model:  # fmt: skip
    """An integer model with bytes in these of its tensors (`spots`), as long as they are what its arena is for, and but
    for those with which it would lose too much. real: the float model; noise: that of a model's outputs over their
    signal."""
    integer = {node.outputs[0] for node in model.graph.nodes if node.op == "QLinearConv" and not node.domain}
    left = [name for name in names if name in integer]
    if not left:
        return model
    ranges = {name: Channels() for name in left}
    count = observe(model, data, ranges, threads)
    (sample,) = data.head(1)
    most, enough = _LOSS * noise(model), SHARE * planned(real, sample).arena
    while left and (memory := planned(model, sample)).arena > enough:
        full = fullest(memory)
        name = next((name for name in left if name in full), "")
        if not name:
            break
        left.remove(name)
        made = copy_model(model)
        _write_bytes(made.graph, name, ranges[name], count)
        if noise(made) <= most:
            model = made
    return model


class Channels:
    """An observer: the extremes of each channel (axis 1), at least 0, and the sum of its variances in the samples."""

    def __init__(self) -> None:
        self.low = self.high = self.variance = np.float64(0)

    def observe(self, value: np.ndarray) -> None:
        axes = (0, *range(2, value.ndim))
        self.low, self.high = np.minimum(self.low, value.min(axes)), np.maximum(self.high, value.max(axes))
        self.variance = self.variance + value.var(axes, dtype=np.float64)

    def encoding(self, room: float, gain: np.ndarray) -> tuple[np.ndarray, int]:
        """(scale of each channel, zero point) of uint8. room: how much further than what was seen they reach; gain:
        what a channel is multiplied by once its variance is 1."""
        low, high = (np.abs(end) * room for end in (self.low, self.high))
        none = (low == 0) & (high == 0)  # any scale is right
        weight = np.square(gain) / np.where(self.variance > 0, self.variance, np.inf)
        best, least = (np.ones_like(low), 0), np.inf
        for zero in range(256):
            with np.errstate(divide="ignore", invalid="ignore"):
                scale = np.where(none, 1, np.fmax(low / zero, high / (255 - zero)))
                error = float(np.sum(np.square(scale) * weight))
            if np.isfinite(scale).all() and error < least:
                best, least = (scale, zero), error
        return best[0].astype(np.float32), best[1]


def _reader(graph: Graph, readers: Mapping[str, list[Node]], name: str) -> Node | None:
    """The InstanceNormalization that alone reads a tensor."""
    users = readers.get(name, [])
    alone = len(users) == 1 and name not in graph.outputs and users[0].inputs.count(name) == 1
    return users[0] if alone and users[0].op.endswith("InstanceNormalization") and users[0].inputs[0] == name else None


def _write_bytes(graph: Graph, name: str, channels: Channels, samples: int) -> None:
    names = names_of(graph)

    def constant(value: np.ndarray, what: str) -> str:
        return add_constant(graph, names, value, f"{name}/{what}")

    (node,) = (n for n in graph.nodes if n.outputs[0] == name)
    reader = _reader(graph, readers_of(graph), name)
    gain = graph.constant(reader.inputs[1])
    scale, zero = channels.encoding(widest(samples), np.ones(1) if gain is None else gain)
    zero_point = constant(np.array(zero, np.uint8), "zero_point")
    weights = constant((graph.constant(node.inputs[4]) / scale).astype(np.float32), "units")
    node.inputs = [*node.inputs[:4], weights, node.inputs[5], constant(np.array(1, np.float32), "one"), zero_point,
                   *node.inputs[8:]]  # fmt: skip
    given = [*reader.inputs, "", ""][:5]
    reader.inputs = [*given, constant(scale, "scale"), zero_point]
    reader.op, reader.domain = "QLinearInstanceNormalization", "evort"
