"""Watching a quantized model in production: one run in N is repeated in float32, layer by layer.

    session = evort.load("model.int8.etm", shadow=100, shadow_model="model.etm")
    ...
    session.shadow.worst()          # the layer with the least signal to noise

Tensors are compared by name: quantizing keeps the names of the float model. What is kept is bounded: a few numbers
for each layer.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from evort.errors import InputError
from evort.etm import read
from evort.graph import Graph, Model, with_outputs
from evort.ops.qoperands import scaled_operands
from evort.ops.quantize import MOVES
from evort.quant import decibels, quantize
from evort.session import Session
from evort.types import DType

# Those that move integers under conditions, which hold where they are found with integers.
_MOVES = MOVES | {"Concat", "Pad", "Resize"}
_log = logging.getLogger("evort.shadow")


class LayerCount:
    """What was seen of one layer's output.

    runs: how many were compared. elements: numbers seen, and saturated: those of them that the integers cut off
    (0 for a float tensor). signal, noise: sums of squares of the float values and of the differences. alarms: runs in
    which a threshold was crossed. last_sqnr (dB), last_saturation (share): of the latest run.
    """

    __slots__ = ("alarms", "elements", "last_saturation", "last_sqnr", "name", "noise", "runs", "saturated", "signal")

    def __init__(self, name: str):
        self.name = name
        self.runs = self.elements = self.saturated = self.alarms = 0
        self.signal = self.noise = 0.0
        self.last_sqnr, self.last_saturation = math.inf, 0.0

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise over all runs, in dB."""
        return decibels(self.signal, self.noise)

    @property
    def saturation(self) -> float:
        """Share of all numbers seen that were cut off at an end of the integer range."""
        return self.saturated / self.elements if self.elements else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON; a ratio without noise is None."""
        sqnr = {key: None if math.isinf(v) else v for key, v in (("sqnr", self.sqnr), ("last_sqnr", self.last_sqnr))}
        kept = {
            key: getattr(self, key) for key in ("name", "runs", "elements", "saturated", "alarms", "last_saturation")
        }
        return {**kept, **sqnr, "saturation": self.saturation}


class Shadow:
    """The counters of a session. layers: LayerCount by tensor name, in the order of the graph.

    alarm_sqnr (dB) and alarm_saturation (share): a layer that falls below the one or rises above the other in a run
    counts an alarm; the first is logged (logger "evort.shadow").
    """

    def __init__(self, model: Model, real: Model, every: int, threads: int, alarm_sqnr: float, alarm_saturation: float):
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"shadow must be a positive int, not {every!r}")
        names = [v for v in model.graph.inputs if v not in real.graph.inputs]
        if names or len(model.graph.inputs) != len(real.graph.inputs):
            raise InputError(
                f"the shadow model takes {', '.join(real.graph.inputs)}; this one {', '.join(model.graph.inputs)}"
            )
        self.every, self.alarm_sqnr, self.alarm_saturation = every, alarm_sqnr, alarm_saturation
        self._scales = dict(integer_tensors(model.graph))
        written = {name for node in real.graph.nodes for name in node.outputs}
        compared = [
            name
            for node in model.graph.nodes
            for name in node.outputs
            if name in written and (name in self._scales or name in model.graph.outputs)
        ]
        if not compared:
            raise InputError("the shadow model has no tensor in common with this one: was it made from the same model?")
        # Inputs that operators quantize as they read them: what they lose is seen there, and nowhere after.
        self._inputs = [name for name in model.graph.inputs if name in self._scales]
        self.layers = {name: LayerCount(name) for name in (*self._inputs, *compared)}
        self._sessions = [Session(with_outputs(m, compared), threads=threads) for m in (model, real)]
        self._calls = 0
        self._lock = threading.Lock()

    def seen(self, inputs: dict[str, Any]) -> None:
        """Counts a run of the session; every N-th is repeated and compared."""
        with self._lock:
            self._calls += 1
            if self._calls % self.every:
                return
        mine, real = (session.run(inputs) for session in self._sessions)
        for name in self._inputs:
            real[name] = np.asarray(inputs[name], np.float32)
            scale, zero, dtype = self._scales[name]
            mine[name] = quantize(real[name], np.float32(scale), np.array(zero), dtype)
        with self._lock:
            for name, count in self.layers.items():
                self._compare(count, mine[name], real[name])

    def _compare(self, count: LayerCount, got: np.ndarray, real: np.ndarray) -> None:
        saturated = 0
        real = np.asarray(real, np.float64)
        if count.name in self._scales and got.dtype.kind in "iu":
            scale, zero, _ = self._scales[count.name]
            scale = np.reshape(scale, (-1, *(1,) * (got.ndim - 2))) if np.ndim(scale) else scale
            limits = np.iinfo(got.dtype)
            low, high = ((end - zero) * scale for end in (limits.min, limits.max))
            # At an end for want of range, and not because the value is there (the zeros of a Relu).
            cut = ((got == limits.min) & (real < low - scale / 2)) | ((got == limits.max) & (real > high + scale / 2))
            saturated = int(np.count_nonzero(cut))
            got = (got.astype(np.float64) - zero) * scale
        signal, noise = float(np.square(real).sum()), float(np.square(got - real).sum())
        count.runs += 1
        count.elements += real.size
        count.saturated += saturated
        count.signal += signal
        count.noise += noise
        count.last_sqnr = decibels(signal, noise)
        count.last_saturation = saturated / max(1, real.size)
        if count.last_sqnr < self.alarm_sqnr or count.last_saturation > self.alarm_saturation:
            count.alarms += 1
            if count.alarms == 1:
                _log.warning(
                    "layer %r: %.1f dB signal to quantization noise, %.2f %% saturated",
                    count.name, count.last_sqnr, 100 * count.last_saturation,
                )  # fmt: skip

    def worst(self) -> LayerCount:
        """The layer with the least signal to noise so far."""
        return min(self.layers.values(), key=lambda count: count.sqnr)

    def alarmed(self) -> list[LayerCount]:
        """The layers that have crossed a threshold."""
        return [count for count in self.layers.values() if count.alarms]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: how many runs were seen, and the layers."""
        return {"calls": self._calls, "every": self.every, "layers": [c.as_dict() for c in self.layers.values()]}


def integer_tensors(graph: Graph) -> Iterator[tuple[str, tuple[float | np.ndarray, int, DType]]]:
    """The tensors that operators read or write with constant scales: (name, (scale, zero point, integer type)); the
    scale is a number, or float64 [C], one for each index of axis 1. What only moves integers gives them on as they
    are."""
    known: dict[str, tuple[float | np.ndarray, int, DType]] = {}
    for name, found in _operands(graph):
        if name not in known or np.ndim(known[name][0]) < np.ndim(found[0]):
            known[name] = found
    for node in graph.nodes:
        if node.op in _MOVES and not node.domain and node.inputs[0] in known:
            for name in node.outputs:
                if name and name not in known:
                    known[name] = known[node.inputs[0]]
    yield from known.items()


def _operands(graph: Graph) -> Iterator[tuple[str, tuple[float | np.ndarray, int, DType]]]:
    """What operators say of each tensor. Where a reader has a scale for each channel, the writer's units are those."""
    for node in graph.nodes:
        for operand, *about in scaled_operands(node):
            given = [node.inputs[i] if i < len(node.inputs) else "" for i in (max(operand, 0), *about)]
            tensor = node.outputs[0] if operand < 0 else given[0]
            scale, zero = (graph.constant(name) for name in given[1:])
            if graph.constant(tensor) is not None or scale is None or zero is None or zero.size != 1:
                continue
            if scale.size == 1 or node.op == "QLinearInstanceNormalization":
                unit = float(scale.reshape(-1)[0]) if scale.size == 1 else scale.astype(np.float64)
                yield tensor, (unit, int(zero.reshape(-1)[0]), graph.tensors[given[2]].dtype)


class ShadowedSession(Session):
    """A session whose runs a Shadow sees; made by `evort.load(..., shadow=N)`."""

    shadow: Shadow

    def watch(self, every: int, real: Any, alarm_sqnr: float, alarm_saturation: float) -> None:
        """Repeats one run in `every` in float32, by the model `real` (a path or the bytes of a `.etm` file)."""
        if real is None:
            raise ValueError("shadow needs shadow_model, the float model that this one was made from")
        file = read(real)
        self.shadow = Shadow(self.model, file.model, every, self.threads, alarm_sqnr, alarm_saturation)
        self._options.update(
            shadow=every, shadow_model=real, alarm_sqnr=alarm_sqnr, alarm_saturation=alarm_saturation
        )  # fmt: skip

    def _run(self, inputs: dict[str, Any], into: dict[str, np.ndarray] | None) -> dict[str, Any]:
        results = super()._run(inputs, into)
        self.shadow.seen(inputs)
        return results


__all__ = ["LayerCount", "Shadow", "ShadowedSession", "integer_tensors"]
