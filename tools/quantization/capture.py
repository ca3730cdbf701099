"""Runs a float model sample by sample, on evort's own kernels, and hands the values of its tensors to observers.

Nothing is kept between samples but what observers keep. Where the tensors asked for would take more than `limit` bytes
at once, the model is run in several stages, each of which hands on what later ones read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from evort.backends import CpuBackend
from evort.errors import EvortError
from evort.graph import Graph, Model, Node, Tensor, with_outputs
from evort.ops.base import Call, Op
from evort.ops.run import run_reference
from evort.plan import Bound, Stage, build, constant_specs
from evort.session import Session
from evort.types import Spec

LIMIT = 1 << 28


class _Unbound(CpuBackend):
    """Plans shapes alone: no step has a kernel."""

    channels_last = joins = False

    def bind(self, definition: Op, c: Call) -> tuple[None, Callable[[list[Any]], Sequence[Any]]]:
        return None, lambda arrays: run_reference(definition, c, arrays)

    def capsule(self, name: str) -> None:
        """No kernel to copy with."""


class Observer(Protocol):
    """What takes a tensor's values, one sample after another."""

    def observe(self, value: np.ndarray) -> None: ...


def specs_of(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, Spec]:
    """Element type and shape of each tensor of a graph for given inputs, as far as inference can tell without running
    it. Constants are left out."""
    constants = constant_specs(graph)
    stage = Stage([Bound(node) for node in graph.nodes], graph.outputs, constants)
    given = {n: Spec(graph.tensors[n].dtype, feeds[n].shape, feeds[n] if feeds[n].size < 64 else None) for n in feeds}
    plan = build(stage, {name: given[name] for name in stage.reads}, _Unbound())
    return {name: spec for name, spec in plan.specs.items() if name not in constants}


class Capture:
    """Runs a model and returns the values of some of its tensors.

    model: the float model (its passes may have run). names: tensors of its outermost graph: inputs, or what nodes
    write. threads: as for a session. limit: the most bytes of captured values that are held at once (one tensor that
    is larger is taken all the same). Raises KeyError for an unknown name.
    """

    def __init__(self, model: Model, names: Iterable[str], threads: int | None = None, limit: int = LIMIT):
        self.model = model
        self.names = list(dict.fromkeys(names))
        self._threads = threads
        self._limit = limit
        graph = model.graph
        written = {o for node in graph.nodes for o in node.outputs if o}
        for name in self.names:
            if name not in written and name not in graph.inputs:
                raise KeyError(f"no node of {graph.name!r} writes a tensor {name!r}, and no input is named so")
        self._written = [n for n in self.names if n in written]
        self._stages: list[_Stage] = []

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The values of all the tensors for one sample."""
        values: dict[str, Any] = {}
        for part in self.parts(feeds):
            values.update(part)
        return values

    def parts(self, feeds: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        """The values for one sample, part by part, in the order in which they are computed."""
        if not self._stages and self._written:
            self._stages = list(self._cut(feeds))
        given = {n: feeds[n] for n in self.names if n in feeds and n not in self._written}
        if given:
            yield given
        values: dict[str, Any] = dict(feeds)
        for stage in self._stages:
            got = stage.session.run({v.name: values[v.name] for v in stage.session.inputs})
            values.update((name, got[name]) for name in stage.carried)
            for name in stage.done:
                del values[name]
            yield {name: got.pop(name) for name in stage.names}

    def together(
        self, feeds: Mapping[str, np.ndarray], groups: Sequence[Collection[str]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(place of a group, the values of its tensors) for one sample, as soon as all of these are computed; what no
        later group wants is not kept."""
        values: dict[str, Any] = {}
        left = Counter(name for group in groups for name in group)
        waiting = list(range(len(groups)))
        for part in self.parts(feeds):
            values.update((name, value) for name, value in part.items() if name in left)
            ready = [i for i in waiting if all(name in values for name in groups[i])]
            waiting = [i for i in waiting if i not in ready]
            for i in ready:
                yield i, {name: values[name] for name in groups[i]}
                for name in groups[i]:
                    left[name] -= 1
                    if not left[name]:
                        del values[name]

    def _cut(self, feeds: Mapping[str, np.ndarray]) -> Iterator[_Stage]:
        """The model in stages, each of which gives out no more than the limit."""
        whole = with_outputs(self.model, self._written)
        nodes, wanted = whole.graph.nodes, set(self._written)
        try:
            specs = specs_of(self.model.graph, feeds)
        except EvortError:
            specs = {}  # running the model raises it, with more to say
        written = {o: i for i, node in enumerate(nodes) for o in node.outputs if o}
        last = {name: i for i, node in enumerate(nodes) for name in _reads(node)}
        starts, size = [0], 0
        for i, node in enumerate(nodes):
            more = sum(specs[o].nbytes for o in node.outputs if o in wanted and o in specs)
            crossing = (n for n, at in written.items() if at < i <= last.get(n, -1))
            if size and size + more > self._limit and all(n in specs for n in crossing):
                starts.append(i)
                size = 0
            size += more
        for start, end in zip(starts, [*starts[1:], len(nodes)], strict=True):
            part = Graph(whole.graph.name)
            part.nodes = nodes[start:end]
            inside = dict.fromkeys(o for node in part.nodes for o in node.outputs if o)
            reads = dict.fromkeys(n for node in part.nodes for n in _reads(node) if n not in inside)
            carried = [n for n in inside if last.get(n, -1) >= end]
            names = [n for n in self._written if n in inside]
            part.inputs = [n for n in reads if n in written or n in whole.graph.inputs]
            part.outputs = list(dict.fromkeys((*names, *carried)))
            part.tensors = {n: t for n, t in whole.graph.tensors.items() if n in inside or n in reads}
            for name in part.inputs:
                if name in written:
                    part.add(Tensor(name, specs[name].dtype, None))
            done = [n for n in part.inputs if n in written and last[n] < end]
            model = Model(part, whole.opsets, whole.metadata, whole.producer)
            yield _Stage(names, carried, done, Session(model, threads=self._threads))


class _Stage:
    """A part of a model that is run at once. names: what it gives out; carried: what later stages read of it; done:
    what no later stage reads."""

    __slots__ = ("carried", "done", "names", "session")

    def __init__(self, names: list[str], carried: list[str], done: list[str], session: Session):
        self.names = names
        self.carried = carried
        self.done = done
        self.session = session


def _reads(node: Node) -> list[str]:
    """The tensors that a node reads, those of its nested graphs among them."""
    return [n for n in (*node.inputs, *(n for sub in node.subgraphs() for n in sub.free_names())) if n]


def observe(
    model: Model,
    samples: Iterable[Mapping[str, np.ndarray]],
    observers: Mapping[str, Observer],
    threads: int | None = None,
    progress: Callable[[], None] | None = None,
    limit: int = LIMIT,
) -> int:
    """Runs `samples` through a model and hands the value of each tensor in `observers` to its observer.

    progress: called after each sample. Returns the number of samples. Memory does not grow with them.
    """
    capture = Capture(model, observers, threads, limit)
    count = 0
    for feeds in samples:
        for part in capture.parts(feeds):
            for name, value in part.items():
                observers[name].observe(value)
            del value, part  # before the next stage is run
        count += 1
        if progress is not None:
            progress()
    return count
