"""Runs a float model sample by sample, on evort's own kernels, and hands the values of its tensors to observers.

Nothing is kept between samples but what observers keep. Where the tensors asked for would take more than `limit` bytes
at once, they are captured in several groups, each in a run of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from evort.backends import CpuBackend
from evort.errors import EvortError
from evort.graph import Graph, Model, with_outputs
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
        self._sessions: list[tuple[list[str], Session]] = []

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The values of all the tensors for one sample."""
        values: dict[str, Any] = {}
        for part in self.parts(feeds):
            values.update(part)
        return values

    def parts(self, feeds: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        """The values for one sample, group by group."""
        if not self._sessions:
            for group in self._groups(feeds):
                session = Session(with_outputs(self.model, group), threads=self._threads)
                self._sessions.append((group, session))
        given = {n: feeds[n] for n in self.names if n in feeds and n not in self._written}
        if given:
            yield given
        for _, session in self._sessions:
            yield session.run({v.name: feeds[v.name] for v in session.inputs})

    def _groups(self, feeds: Mapping[str, np.ndarray]) -> list[list[str]]:
        try:
            specs = specs_of(self.model.graph, feeds)
        except EvortError:
            specs = {}  # running the model raises it, with more to say
        groups: list[list[str]] = []
        size = 0
        for name in self._written:
            more = specs[name].nbytes if name in specs else 0
            if not groups or size + more > self._limit:
                groups.append([])
                size = 0
            groups[-1].append(name)
            size += more
        return groups


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
            del value, part  # before the next group is computed
        count += 1
        if progress is not None:
            progress()
    return count
