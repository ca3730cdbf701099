"""Levels of precision for `evort.load(..., adaptive=...)`: which tensors become int16 first, which layers float32.

The integer graph is measured on calibration samples: how much noise each tensor's 8 bits alone cause in the outputs.

    level 1   int16 for the few tensors that cause most of that noise
    level 2   int16 for all tensors that can be
    level 3   ... and the layers whose rounded weights harm most in float32, from weights kept in the file

What a level cannot run without a NumPy step is left out of it. The result goes into the metadata `adaptive`, see
`evort.adaptive.levels`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from evort.adaptive.levels import Level, _float_tensors, graph_of
from evort.adaptive.tensors import Followed, followed
from evort.errors import EvortError
from evort.graph import Model, Tensor
from evort.session import Session
from evort.types import DType
from evort_tools.quantization.compare import expected_outputs, output_errors, total_ratio

_MOST_NOISE = 0.75  # what level 1 takes away at least of the noise of 8 bits
_WORTH = 0.95  # a float layer must lower the noise of level 2 to this share of it

Samples = Sequence[Mapping[str, np.ndarray]]


def add_levels(
    model: Model,
    real: Model,
    weights: Mapping[str, np.ndarray],
    samples: Samples,
    budget: float,
    threads: int | None,
    progress: Callable[[str, int | None], Callable[[], None]],
) -> dict[str, object]:
    """Finds the levels of an integer model, writes them into its metadata, and returns what they are.

    real: the float model, whose outputs count. weights: float32 weights by the name that they have there; budget: bytes
    of them that may be added, in parts of the model's constants. Raises ValueError for a model in which no range can
    follow the data, and for one with nested graphs: it runs in several stages, each planned when what it depends on is
    known, and there is no one plan whose ranges could change from run to run.
    """
    for node in model.graph.nodes:
        if any(True for _ in node.subgraphs()):
            raise ValueError(
                f"adaptive: {node.label()} holds nested graphs, and ranges can only follow the data in models that run "
                "in one piece: quantize it without --adaptive"
            )
    tensors = followed(model.graph)
    if not tensors:
        raise ValueError("adaptive: there is no quantized product whose range could follow the data")
    return _Search(model, real, tensors, samples, threads).run(weights, budget, progress)


class _Search:
    def __init__(self, model: Model, real: Model, tensors: list[Followed], samples: Samples, threads: int | None):
        self.model, self.tensors, self.samples, self.threads = model, tensors, samples, threads
        self.expected = expected_outputs(real, samples, threads)
        self.numpy_steps = self._numpy_steps(model)

    def run(self, weights: Mapping[str, np.ndarray], budget: float,
            progress: Callable[[str, int | None], Callable[[], None]]) -> dict[str, object]:  # fmt: skip
        step = progress("finding levels of precision", None)
        able = [t for t in self.tensors if self._runs(self._level([t], {}))]
        step()
        everything = self._level(able, {})
        while able and not self._runs(everything):  # two that cannot both be int16, as operands of one product
            able.pop()
            everything = self._level(able, {})
        best = self._outputs(everything)
        noise = {}
        for t in able:
            noise[t.name] = self._ratio(self._level([o for o in able if o is not t], {}), best)
            step()
        levels = []
        first, taken, total = [], 0.0, sum(noise.values())
        for t in sorted(able, key=lambda t: -noise[t.name]):
            if taken >= _MOST_NOISE * total:
                break
            first.append(t)
            taken += noise[t.name]
        if 0 < len(first) < len(able):
            levels.append({"int16": [t.name for t in first]})
        if able:
            levels.append({"int16": [t.name for t in able]})
        kept = self._float_layers(able, weights, budget, step)
        if kept:
            levels.append({"int16": [t.name for t in able], "float": kept})
        found = {"noise": noise, "levels": levels}
        self.model.metadata["adaptive"] = json.dumps(found, separators=(",", ":"), sort_keys=True)
        ratios = [self._ratio(level, self.expected) for level in self._read()]
        return {**found, "noise_by_level": ratios}

    def _read(self) -> list[Level]:
        from evort.adaptive.levels import read_levels

        return read_levels(self.model, self.tensors)[0]

    def _level(self, int16: list[Followed], layers: dict[int, str]) -> Level:
        floats = _float_tensors(self.model.graph, self.tensors, layers)
        return Level(frozenset(t.name for t in int16), layers, frozenset(floats))

    def _of(self, level: Level) -> Model:
        return Model(graph_of(self.model.graph, self.tensors, level), self.model.opsets)

    def _numpy_steps(self, model: Model) -> int:
        session = Session(model, threads=1)
        session.run(dict(self.samples[0]))
        return sum(step.driver == "numpy" for plan in session.plans() for step in plan.steps)

    def _runs(self, level: Level) -> bool:
        """Whether a level's graph runs, with no more steps in NumPy than the model has."""
        try:
            return self._numpy_steps(self._of(level)) <= self.numpy_steps
        except EvortError:
            return False

    def _outputs(self, level: Level) -> list[dict[str, np.ndarray]]:
        return expected_outputs(self._of(level), self.samples, self.threads)

    def _ratio(self, level: Level, expected: list[dict[str, np.ndarray]]) -> float:
        return total_ratio(output_errors(self._of(level), self.samples, expected, self.threads))

    def _float_layers(self, able: list[Followed], weights: Mapping[str, np.ndarray], budget: float,
                      step: Callable[[], None]) -> dict[str, str]:  # fmt: skip
        """{output of a layer: its float32 weights}, which are added to the graph: those that lower the noise most for
        their size, within the budget."""
        graph = self.model.graph
        room = budget * sum(t.data.nbytes for t in graph.tensors.values() if t.data is not None)
        base = self._ratio(self._level(able, {}), self.expected)
        candidates = []
        for i, node in enumerate(graph.nodes):
            w = self._float_weights(i, weights)
            if w is None or w.nbytes > room:
                continue
            graph.add(Tensor(name := f"{node.inputs[3]}/float", DType.FLOAT, w.shape, w))
            try:
                level = self._level(able, {i: name})
                gain = base - self._ratio(level, self.expected) if self._runs(level) else 0.0
            except (ValueError, EvortError):
                gain = 0.0
            del graph.tensors[name]
            if gain > 0:
                candidates.append((gain / w.nbytes, i, name, w))
            step()
        layers: dict[int, str] = {}
        for _, i, name, w in sorted(candidates, key=lambda c: (-c[0], c[1])):
            if w.nbytes > room:
                continue
            graph.add(Tensor(name, DType.FLOAT, w.shape, w))
            trial = {**layers, i: name}
            ratio = self._ratio(self._level(able, trial), self.expected)
            if ratio < _WORTH * base:
                layers, base, room = trial, ratio, room - w.nbytes
            else:
                del graph.tensors[name]
            step()
        return {graph.nodes[i].outputs[0]: name for i, name in layers.items()}

    def _float_weights(self, i: int, weights: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The float32 weights that a product's integers were rounded from, or None where it has no float form."""
        graph = self.model.graph
        node = graph.nodes[i]
        if node.op not in ("QLinearConv", "QLinearMatMul") or len(node.inputs) > 9:
            return None
        q, scale = graph.constant(node.inputs[3]), graph.constant(node.inputs[4])
        w = weights.get(node.inputs[3].removesuffix("/quantized"))
        if q is None or w is None or w.shape != q.shape or w.dtype != np.float32 or q.dtype != np.int8:
            return None
        return np.ascontiguousarray(w) if scale is not None else None
