"""Chooses, tensor by tensor, the range that harms the operators behind it least.

For each tensor all methods of `ranges` propose a range. The operators that read the tensor are run alone, on what
calibration samples give them, once as they are and once for each proposal; the proposal whose results differ least
wins. So a range that looks bad in the tensor itself (clipped outliers) wins where it is good for the layer's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from evort.graph import Graph, Model, Node, Tensor
from evort.session import Session
from evort.types import DType
from evort_tools.quantization.capture import LIMIT, Capture, specs_of
from evort_tools.quantization.compare import Error
from evort_tools.quantization.encodings import Encoding
from evort_tools.quantization.select import Selection

Proposals = list[Encoding]


class Probe:
    """One operator run alone: its computed operands are inputs."""

    def __init__(
        self, model: Model, selection: Selection, node: Node, weights: Mapping[str, Encoding], threads: int | None
    ):
        graph = Graph(node.name)
        self.inputs: list[str] = []
        for name in dict.fromkeys(n for n in node.inputs if n):
            tensor = model.graph.tensors.get(name)
            if tensor is not None and tensor.data is not None:
                data = weights[name].fake(tensor.data) if name in weights else tensor.data
                graph.add(Tensor(name, tensor.dtype, data.shape, data))
            else:
                graph.add(Tensor(name, selection.shapes.dtype(name) or DType.FLOAT, None))
                self.inputs.append(name)
        graph.inputs = list(self.inputs)
        graph.outputs = [o for o in node.outputs if o][:1]
        graph.nodes = [node]
        self._session = Session(Model(graph, model.opsets), threads=threads)

    def run(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        return next(iter(self._session.run(dict(feeds)).values()))


def choose(
    model: Model,
    selection: Selection,
    proposals: Mapping[str, Proposals],
    weights: Mapping[str, Encoding],
    samples: Iterable[Mapping[str, np.ndarray]],
    threads: int | None = None,
    progress: Callable[[], None] | None = None,
) -> dict[str, Encoding]:
    """The best proposal for each group of tensors, by its root.

    proposals: encodings by root of a group, best guess first (it stays where two are equal). weights: the encodings of
    weights, with which the operators are run.
    """
    groups = selection.groups()
    open_roots = [root for root, found in proposals.items() if len(found) > 1]
    chosen = {root: found[0] for root, found in proposals.items()}
    samples = list(samples)
    uses: dict[str, list[tuple[str, Node]]] = {
        root: list(dict.fromkeys((name, node) for name in groups[root] for node, _ in selection.uses(name)))
        for root in open_roots
    }
    for part in _parts(model, selection, uses, samples):
        errors: dict[tuple[str, int, int], Error] = {}
        probes: dict[int, Probe] = {}
        wanted = {name for root in part for _, node in uses[root] for name in node.inputs if name}
        computed = [n for n in wanted if model.graph.constant(n) is None]
        capture = Capture(model, computed, threads)
        for feeds in samples:
            values = capture.run(feeds)
            for root in part:
                for at, (name, node) in enumerate(uses[root]):
                    probe = probes.get(id(node))
                    if probe is None:
                        probe = probes[id(node)] = Probe(model, selection, node, weights, threads)
                    given: dict[str, Any] = {n: values[n] for n in probe.inputs}
                    expected = probe.run(given)
                    for k, encoding in enumerate(proposals[root]):
                        got = probe.run({**given, name: encoding.fake(values[name])})
                        errors.setdefault((root, at, k), Error()).add(expected, got)
            if progress is not None:
                progress()
        for root in part:
            totals = [
                sum(errors[root, at, k].ratio for at in range(len(uses[root]))) for k in range(len(proposals[root]))
            ]
            if totals and uses[root]:
                chosen[root] = proposals[root][int(np.argmin(totals))]
    return chosen


def _parts(
    model: Model, selection: Selection, uses: Mapping[str, list[tuple[str, Node]]], samples: list[Any]
) -> list[list[str]]:
    """The groups, in parts whose operators' operands together stay below the limit of captured bytes."""
    specs = specs_of(model.graph, samples[0])
    parts: list[list[str]] = []
    size = 0
    for root, found in uses.items():
        names = {n for _, node in found for n in node.inputs if n}
        more = sum(specs[n].nbytes for n in names if n in specs)
        if not parts or size + more > LIMIT:
            parts.append([])
            size = 0
        parts[-1].append(root)
        size += more
    return parts
