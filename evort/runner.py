"""Runs a graph: plans its stages for the shapes that come, keeps the plans, and runs them.

One runner serves any number of threads: each run takes a program (a plan with an arena) from the plan's free list, or
makes one, and puts it back. Plans are bounded: the least recently used is dropped.
"""

from __future__ import annotations

from _thread import allocate_lock  # importing threading takes longer than all of this module
from typing import Any

import numpy as np

from evort._kernels.core import Uncollected
from evort._kernels.executor import INPUT, Program, Programs, Ready, StepFailed
from evort.backends import CpuBackend
from evort.errors import ExecutionError, MemoryBudgetError
from evort.graph import Graph
from evort.ops.base import Call
from evort.plan import Bound, Plan, Stage, build, constant_specs
from evort.types import STORAGE, DType, Spec, spec_of

MAX_PLANS = 16
SMALL = 64  # bytes of inputs, by which the results of a stage may be remembered

_STATUS = {
    1: "an index points outside its axis",
    2: "integer division by zero",
    3: "an operand's value is outside what the operator defines",
    4: "the kernel does not take these dtypes or shapes (a bug in evort's bind)",
}


class Planned(Programs):
    """A plan and the programs that wait for their next run.

    following: plans of the stage after it, by the values that they are for: what else they depend on, shapes, is given
    by this plan. switch: names of the few small inputs that alone decide what this plan computes and which one follows,
    where it computes no output (as with an If on a sampling rate), else empty; switched: what came of their bytes, the
    plan that follows and what that reads of this one.
    """

    __slots__ = ("following", "switch", "switched")

    def __init__(self, plan: Plan, outputs: list[str], threads: int):
        writes = [(n, s.shape, STORAGE[s.dtype]) for n, s in zip(plan.writes, plan.write_specs, strict=True)]
        alone = plan.next is None and plan.eager is None and plan.writes == outputs
        super().__init__(plan, writes, alone, threads)
        self.following: dict[tuple[bytes, ...], Planned] = {}
        self.switch = self._switch()
        self.switched: dict[tuple[bytes, ...], tuple[Planned, dict[str, np.ndarray]]] = {}

    def _switch(self) -> list[str]:
        plan = self.plan
        if plan.next is None or plan.eager is not None or plan.writes or plan.known:
            return []
        if not all(step.definition.deterministic for step in plan.steps):
            return []
        used = {i for row in plan.rows for i in row[2]} | {i for n, i in plan.keep_ids.items() if n not in plan.reads}
        names = {plan.reads[plan.tensors[i][2]] for i in used if i >= 0 and plan.tensors[i][1] == INPUT}
        names.update([name for name in plan.next.known if name in plan.reads])
        return list(names) if sum(plan.specs[name].nbytes for name in names) <= SMALL else []

    def ready(self, feeds: dict[str, Any], names: list[str], stages: Any) -> Ready:
        """The short way for inputs of these shapes, and of these values where they decide and that was remembered.
        names: of the inputs in order; stages: what runs them through several stages, where it takes several."""
        shapes = tuple([feeds[name].shape for name in names])
        if self.alone:
            return Ready(shapes, self, names, {}, {})
        key = tuple([feeds[name].tobytes() for name in self.switch])
        if key not in self.switched:
            return Ready(shapes, None, names, {}, {}, stages)
        following, given = self.switched[key]
        return Ready(shapes, following, names, dict(zip(self.switch, key, strict=True)), given)

    def remember(self, feeds: dict[str, Any], following: Planned, env: dict[str, Any]) -> None:
        """Keeps what came of these inputs, for `ready`. env: all values after the run."""
        if not self.switch or not following.alone:
            return
        kept = {name: env[name].copy() for name in self.plan.keep_ids if name not in feeds}
        if len(self.switched) >= MAX_PLANS:
            self.switched.clear()
        self.switched[tuple([feeds[name].tobytes() for name in self.switch])] = following, kept

    def error(self, failure: StepFailed) -> ExecutionError:
        """A driver's error status in words, with its node."""
        call = self.plan.steps[failure.step].call
        operands = ", ".join("absent" if s is None else repr(s) for s in call.ins)
        reason = _STATUS.get(failure.status, f"status {failure.status}")
        return ExecutionError(f"{call.node.label()}: {reason}. Inputs were ({operands})")


class Runner:
    """Plans and runs one graph. outer: constants of the graphs around it. max_memory: bytes that weights and arena
    may take together, None for any."""

    def __init__(
        self,
        graph: Graph,
        backend: CpuBackend,
        threads: int,
        outer: dict[str, Spec] | None = None,
        max_memory: int | None = None,
        weight_bytes: int = 0,
    ):
        self.graph = graph
        self.backend = backend
        self.threads = threads
        self.max_memory = max_memory
        self.weight_bytes = weight_bytes
        self.constants = {**(outer or {}), **constant_specs(graph)}
        for name in graph.inputs:
            self.constants.pop(name, None)
        self.root = Stage([Bound(node) for node in graph.nodes], graph.outputs, self.constants)
        self._lock = allocate_lock()
        self._nested: dict[int, tuple[Graph, Runner]] = {}

    def plan(self, stage: Stage, specs: dict[str, Spec]) -> Planned:
        """The plan of a stage for given input specifications, made where it is not there yet."""
        # From a list: a tuple made from a generator ends up in another free list than it came from, and those grow.
        key = tuple([(specs[n].dtype, specs[n].shape) for n in stage.reads])
        if stage.known:
            key += tuple([specs[n].value.tobytes() for n in stage.reads if n in stage.known])
        found = stage.plans.get(key)
        if found is None:
            with self._lock:
                found = stage.plans.get(key)
                if found is None:
                    with Uncollected():
                        found = Planned(
                            build(stage, specs, self.backend, self.threads), self.graph.outputs, self.threads
                        )
                    self._check_memory(found.plan)
                    while len(stage.plans) >= MAX_PLANS:
                        stage.plans.pop(next(iter(stage.plans)))
                    stage.plans[key] = found
        elif len(stage.plans) > 1:
            stage.plans[key] = stage.plans.pop(key, found)
        return found

    def _check_memory(self, plan: Plan) -> None:
        if self.max_memory is None:
            return
        needed = self.weight_bytes + self.backend.packed_bytes + plan.arena_bytes
        if needed > self.max_memory:
            raise MemoryBudgetError(
                f"the plan needs {needed:,} bytes (weights {self.weight_bytes:,}, packed weights "
                f"{self.backend.packed_bytes:,}, arena {plan.arena_bytes:,}), {self.max_memory:,} are allowed",
                needed,
                self.max_memory,
            )

    def run(
        self,
        feeds: dict[str, Any],
        into: dict[str, np.ndarray] | None = None,
        dtypes: dict[str, DType] | None = None,
        times: list[tuple[Plan, np.ndarray]] | None = None,
        planned: Planned | None = None,
    ) -> dict[str, Any]:
        """The graph's outputs by name. feeds: C-contiguous arrays (or lists, for sequences) by input name, and of the
        names that the graph takes from around it; dtypes: element types where the NumPy dtype does not tell.

        into: arrays to write outputs to; others are allocated. times: gets (plan, nanoseconds per step) per stage.
        planned: the first stage's plan, where the caller has it. Raises ExecutionError where a kernel refuses its
        operands.
        """
        env: dict[str, Any] = dict(feeds)
        dtypes = dict(dtypes or {})
        results: dict[str, Any] = {}
        taken: list[tuple[Planned, Program]] = []
        if planned is None:
            planned = self.plan(self.root, self.specs(self.root, env, dtypes))
        try:
            while True:
                plan = planned.plan
                program = planned.take()
                taken.append((planned, program))
                inputs = [env[n] for n in plan.reads]
                outputs = [
                    into[name] if into is not None and name in into else np.empty(shape, dtype)
                    for name, shape, dtype in planned.writes
                ]
                self._execute(planned, program, inputs, outputs, times)
                for name, array in zip(plan.writes, outputs, strict=True):
                    results[name] = env[name] = array
                for name, value in plan.known.items():
                    results[name] = self._deliver(value, name, into)
                for name, index in plan.keep_ids.items():
                    if name not in env:
                        env[name] = program.view(index, inputs, outputs)
                    dtypes[name] = plan.specs[name].dtype
                if plan.eager is not None:
                    self._run_eager(plan, env, dtypes)
                if plan.next is None:
                    break
                planned = self._follow(planned, env, dtypes)
            for name in self.graph.outputs:
                if name not in results:
                    results[name] = self._deliver(env[name], name, into)
            if len(taken) == 2:
                taken[0][0].remember(feeds, planned, env)
        finally:
            for used, program in taken:
                used.free.append(program)
        return results

    def _follow(self, planned: Planned, env: dict[str, Any], dtypes: dict[str, DType]) -> Planned:
        """The plan of the next stage."""
        stage = planned.plan.next
        if planned.plan.eager is not None:  # whose results may have any shape
            return self.plan(stage, self.specs(stage, env, dtypes))
        key = tuple([env[name].tobytes() for name in stage.known])
        found = planned.following.get(key)
        if found is None:
            found = self.plan(stage, self.specs(stage, env, dtypes))
            if len(planned.following) >= MAX_PLANS:
                planned.following.clear()
            planned.following[key] = found
        return found

    @staticmethod
    def _deliver(value: Any, name: str, into: dict[str, np.ndarray] | None) -> Any:
        """An output that no step wrote to its final place: a copy, which the caller owns."""
        if into is not None and name in into:
            into[name][...] = value
            return into[name]
        return value.copy() if isinstance(value, np.ndarray) else value

    @staticmethod
    def specs(stage: Stage, env: dict[str, Any], dtypes: dict[str, DType]) -> dict[str, Spec]:
        """Specifications of what a stage reads, with the values that it must know."""
        specs = {}
        for name in stage.reads:
            spec = spec_of(env[name], dtypes.get(name))
            if name not in stage.known:
                spec.value = None
            elif spec.value is not None:
                spec.value = spec.value.copy()
            specs[name] = spec
        return specs

    @staticmethod
    def _execute(
        planned: Planned,
        program: Program,
        inputs: list[np.ndarray],
        outputs: list[np.ndarray],
        times: list[tuple[Plan, np.ndarray]] | None,
    ) -> None:
        spent = None
        if times is not None:
            spent = np.zeros(len(planned.plan.rows), np.int64)
            times.append((planned.plan, spent))
        try:
            program.run(inputs, outputs, spent)
        except StepFailed as failure:
            raise planned.error(failure) from None

    def _run_eager(self, plan: Plan, env: dict[str, Any], dtypes: dict[str, DType]) -> None:
        """Runs a node between stages, on values of any kind."""
        from evort.ops import run

        bound = plan.eager
        node = bound.node

        def value(name: str) -> tuple[Any, DType | None]:
            spec = plan.specs.get(name)
            if spec is not None and (spec.value is not None or spec.sparse is not None):
                return spec.dense(), spec.dtype
            return env[name], dtypes.get(name)

        inputs = [value(n) if n else None for n in node.inputs]
        c = Call(node, bound.attrs, [None if v is None else spec_of(*v) for v in inputs], self.threads)
        c.run_graph = lambda graph, feeds: self._run_nested(graph, feeds, value)
        operands = [None if v is None else v[0] for v in inputs]
        results, types = run.run_dynamic(bound.definition, c, operands, bound.definition.compute)
        for name, result, dtype in zip(node.outputs, results, types, strict=False):
            if not name:
                continue
            if isinstance(result, np.ndarray | np.generic):
                result = np.asarray(result, order="C")
                if dtype is not None:
                    dtypes[name] = dtype
            env[name] = result

    def _run_nested(self, graph: Graph, feeds: dict[str, Any], value: Any) -> list[Any]:
        """Runs a nested graph with the names that it takes from here."""
        found = self._nested.get(id(graph))
        if found is None:
            found = (graph, Runner(graph, self.backend, self.threads, self.constants))
            self._nested[id(graph)] = found
        runner = found[1]
        values, dtypes = dict(feeds), {}
        for name in runner.root.reads:
            if name not in values:
                values[name], dtype = value(name)
                if dtype is not None:
                    dtypes[name] = dtype
        for name, array in values.items():
            if isinstance(array, np.ndarray):
                values[name] = np.ascontiguousarray(array).reshape(array.shape)
        results = runner.run(values, dtypes=dtypes)
        return [results[name] for name in graph.outputs]

    def planned(self) -> list[Planned]:
        """All plans kept, those of later stages and nested graphs included."""
        found: list[Planned] = []
        stages = [self.root]
        while stages:
            for planned in list(stages.pop().plans.values()):
                found.append(planned)
                if planned.plan.next is not None:
                    stages.append(planned.plan.next)
        for _, runner in list(self._nested.values()):
            found.extend(runner.planned())
        return found
