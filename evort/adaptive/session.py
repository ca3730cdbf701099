"""A session that follows its data; made by `evort.load(..., adaptive=...)`."""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Mapping
from typing import Any

import numpy as np

from evort._kernels.executor import shapes_of
from evort.adaptive.levels import graph_of, noise_of, read_levels
from evort.adaptive.stream import Adaptive, Stream
from evort.adaptive.tensors import followed
from evort.errors import MemoryBudgetError, UnsupportedError
from evort.memory import Memory
from evort.plan import Plan
from evort.runner import Planned, Runner
from evort.session import Session


class AdaptiveSession(Session):
    """A session whose runs are a stream (`default`), and which makes others that share its weights (`stream()`).

    Runs of the session itself go to the default stream, one at a time. tensors: those whose ranges follow; levels: the
    precisions that the file names, 0 the integers as they are; options: an Adaptive.
    """

    def adapt(self, given: Adaptive | Mapping[str, Any] | bool) -> None:
        """Sets the session up. Raises UnsupportedError for a model in which no range can follow, ValueError for options
        out of range, EtmFormatError for metadata that do not fit the model."""
        self.options = (
            given if isinstance(given, Adaptive) else Adaptive(**(given if isinstance(given, Mapping) else {}))
        )
        self._options["adaptive"] = self.options
        self.tensors = followed(self.model.graph)
        if not self.tensors or self.device != "cpu":
            raise UnsupportedError(
                'adaptive needs device="cpu" and a model with quantized products whose ranges can follow the data '
                "(evort quantize --scheme static)"
            )
        self.levels, self.noise = read_levels(self.model, self.tensors)
        if self.options.level != "auto" and self.options.level >= len(self.levels):
            raise ValueError(f"adaptive: level {self.options.level} of a model that has {len(self.levels)}")
        self.graphs = [graph_of(self.model.graph, self.tensors, level) for level in self.levels]
        self._backend.joins = False  # each followed tensor has a step that notes its range
        self._runners = [Runner(graph, self._backend, self.threads) for graph in self.graphs]
        self.noises = [float(noise_of(self.tensors, level, self.noise).sum()) for level in self.levels]
        self._one_at_a_time = allocate_lock()
        self._seen: set[tuple[tuple[int, ...], ...]] = set()  # shapes that were checked
        self.default = Stream(self)

    def stream(self) -> Stream:
        """A stream of its own: ranges as in the file, no memory of other streams."""
        return Stream(self)

    def plan_of(self, level: int, feeds: dict[str, np.ndarray]) -> Planned:
        """The plan of a level for these inputs."""
        runner = self._runners[level]
        return runner.plan(runner.root, runner.specs(runner.root, feeds, self._dtypes))

    def check_memory(self, arenas: int) -> None:
        """Raises MemoryBudgetError where weights and a stream's arenas take more than `max_memory`."""
        allowed = self._options["max_memory"]
        needed = self._mapped + self._copied + self._backend.packed_bytes + arenas
        if allowed is not None and needed > allowed:
            raise MemoryBudgetError(f"the stream needs {needed:,} bytes, {allowed:,} are allowed", needed, allowed)

    def checked(self, inputs: dict[str, Any]) -> tuple[dict[str, np.ndarray], tuple[tuple[int, ...], ...]]:
        """The inputs, checked and contiguous, and their shapes. Raises InputError."""
        found = shapes_of(inputs, self._plain)
        if found in self._seen:
            return inputs, found
        feeds, _ = self._feeds(inputs)
        if len(self._seen) >= 16:
            self._seen.clear()
        shapes = tuple([feeds[name].shape for name, _ in self._plain])
        self._seen.add(shapes)
        return feeds, shapes

    def memory(self) -> Memory:
        planned = [p for runner in self._runners for p in runner.planned()]
        return Memory(planned, self._mapped, self._copied + self._backend.packed_bytes)

    def plans(self) -> list[Plan]:
        return [p.plan for runner in self._runners for p in runner.planned()]

    def _run(self, inputs: dict[str, Any], into: dict[str, np.ndarray] | None) -> dict[str, Any]:
        with self._one_at_a_time:
            return self.default.run(inputs, into)
