"""Turns a traced stage into a plan: bound steps over placed tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evort.ops.base import Call, Kernel, Op
from evort.ops.run import OBJECTS
from evort.plan.storage import ARENA, CONST, INPUT, OUTPUT, Storage, assign
from evort.plan.trace import Bound, Stage, Trace, trace
from evort.types import STORAGE, Spec

COPY = Kernel("executor.copy")


if TYPE_CHECKING:
    from typing import Protocol

    class Binder(Protocol):
        """What planning asks of a backend."""

        def bind(self, definition: Op, c: Call) -> tuple[Kernel | None, Callable[[list[Any]], Sequence[Any]] | None]:
            """A driver, or a Python function, for one node."""

        def capsule(self, kernel: Kernel) -> object:
            """The driver's address."""

        def packed(self, c: Call, key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
            """A constant made from a node's weights, made once for each node and key."""


class Step:
    """One step, for people: what runs, on what, and where its scratch is."""

    __slots__ = ("call", "definition", "driver", "scratch")

    def __init__(self, definition: Op, call: Call, driver: str, scratch: int):
        self.definition = definition
        self.call = call
        self.driver = driver
        self.scratch = scratch


class Buffer:
    """A block of the arena, for people: the tensors in it, bytes, offset, first and last step that it lives."""

    __slots__ = ("end", "names", "nbytes", "offset", "start")

    def __init__(self, names: list[str], nbytes: int, offset: int, start: int, end: int):
        self.names = names
        self.nbytes = nbytes
        self.offset = offset
        self.start = start
        self.end = end


class Plan:
    """Steps and memory for one stage and one set of input shapes; immutable, shared by the programs that run it.

    reads: names of its inputs, in the order that `Program.run` takes them; writes: the graph outputs that it computes,
    likewise, with `write_specs`; keeps: names that later stages read, with `keep_ids` their tensors.
    known: graph outputs whose value planning found.
    """

    def __init__(self) -> None:
        self.tensors: list[tuple[Any, ...]] = []
        self.rows: list[tuple[Any, ...]] = []
        self.constants: list[np.ndarray] = []
        self.steps: list[Step] = []
        self.buffers: list[Buffer] = []
        self.arena_bytes = 0
        self.scratch_bytes = 0
        self.lower_bound = 0
        self.reads: list[str] = []
        self.writes: list[str] = []
        self.write_specs: list[Spec] = []
        self.keep_ids: dict[str, int] = {}
        self.known: dict[str, np.ndarray] = {}
        self.specs: dict[str, Spec] = {}
        self.eager: Bound | None = None
        self.next: Stage | None = None


def build(stage: Stage, specs: dict[str, Spec], binder: Binder, threads: int = 1) -> Plan:
    """Plans a stage for given input specifications.

    Raises ShapeError or UnsupportedError, naming the node.
    """
    found = trace(stage, specs, threads)
    plan = Plan()
    plan.eager, plan.specs = found.eager, found.specs
    later: list[str] = []
    if found.rest or found.eager:
        # This plan, and so the stages after it, are for these very values: what is known stays known.
        constants = {n: s for n, s in found.specs.items() if s.value is not None}
        done = {n for _, c in found.calls for n in c.node.outputs} | constants.keys()
        outputs = [n for n in stage.outputs if n not in done]
        follow = found.rest if found.eager is None else [found.eager, *found.rest]
        later = [n for n in Stage(follow, outputs, constants, found.known).reads if n in found.specs]
        plan.next = Stage(found.rest, outputs, constants, found.known)
    _Builder(plan, stage, found, binder, later).run(threads)
    return plan


class _Builder:
    def __init__(self, plan: Plan, stage: Stage, found: Trace, binder: Binder, later: list[str]):
        self.plan = plan
        self.stage = stage
        self.found = found
        self.binder = binder
        self.later = later
        self.storage = Storage()

    def run(self, threads: int) -> None:
        plan, found, storage, specs = self.plan, self.found, self.storage, self.found.specs
        produced = {n for _, c in found.calls for n in c.node.outputs if n}
        # Strings, sequences and optionals stay with the runner: only nodes between stages touch them.
        plan.reads = [n for n in self.stage.reads if specs[n].value is None and specs[n].dtype not in OBJECTS]
        for index, name in enumerate(plan.reads):
            storage.add(name, INPUT, index, specs[name].nbytes, -1)
        calls = self._views()
        last = len(calls)

        for step, (_, c) in enumerate(calls):
            for name in c.node.inputs:
                if name:
                    self._source(name)
                    storage.use(name, step)
        for name in {*self.stage.outputs, *self.later}:
            if name in storage.where:
                storage.use(name, last)
        for definition, c in calls:
            storage.place_parts(definition, c)
        for step, (definition, c) in enumerate(calls):
            storage.take_over(definition, c, step)

        plan.known = {n: specs[n].value for n in self.stage.outputs if n in specs and specs[n].value is not None}
        copies = self._outputs(produced)
        self._emit(calls, copies, threads)

    def _views(self) -> list[tuple[Op, Call]]:
        """Steps 1 and 2 of evort.plan.storage; returns the calls that need a step."""
        storage, kept = self.storage, []
        for definition, c in self.found.calls:
            views = definition.view(c)
            step = len(kept)
            if views:
                for out, (source, offset) in views.items():
                    if c.wants(out):
                        name = c.node.inputs[source]
                        self._source(name)
                        storage.alias(c.node.outputs[out], name, offset, c.outs[out].nbytes, step)
                continue
            for name, spec in zip(c.node.outputs, c.outs, strict=False):
                if name:
                    storage.add(name, ARENA, 0, spec.nbytes, step)
            kept.append((definition, c))
        return kept

    def _source(self, name: str) -> None:
        """Makes a known value into a constant tensor of the plan when a step reads it."""
        if name not in self.storage.where:
            self.storage.add(name, CONST, self._constant(self.found.specs[name].value), 0, -1)

    def _constant(self, array: np.ndarray) -> int:
        self.plan.constants.append(np.ascontiguousarray(array))
        return len(self.plan.constants) - 1

    def _outputs(self, produced: set[str]) -> list[tuple[str, int]]:
        """Step 5: blocks that become the caller's buffers; returns the outputs that need a copy."""
        plan, storage, specs = self.plan, self.storage, self.found.specs
        copies = []
        for name in dict.fromkeys(self.stage.outputs):
            here = name in produced or (plan.next is None and name in storage.where)
            if not here or name in plan.known:
                continue
            index = len(plan.writes)
            plan.writes.append(name)
            plan.write_specs.append(specs[name])
            block = storage.whole(name)
            if block is None or specs[name].nbytes == 0:
                copies.append((name, index))
            else:
                block.kind, block.index = OUTPUT, index
        return copies

    def _emit(self, calls: list[tuple[Op, Call]], copies: list[tuple[str, int]], threads: int) -> None:
        plan, storage, specs, binder = self.plan, self.storage, self.found.specs, self.binder
        bound = [binder.bind(definition, c) for definition, c in calls]
        scratch = [(i, k.scratch) for i, (k, _) in enumerate(bound) if k is not None and k.scratch]
        blocks = storage.blocks()
        plan.arena_bytes, offsets, plan.lower_bound = assign(blocks, scratch)
        scratch_at = {step: offset for (step, _), offset in zip(scratch, offsets, strict=True)}
        plan.scratch_bytes = max((n for _, n in scratch), default=0)
        plan.buffers = [
            Buffer([m[0] for m in b.members], b.nbytes, b.offset, max(b.start, 0), b.end)
            for b in blocks
            if b.kind == ARENA
        ]
        plan.buffers += [
            Buffer([f"scratch of {calls[step][1].node.label()}"], n, scratch_at[step], step, step)
            for step, n in scratch
        ]

        ids: dict[str, int] = {}

        def tensor(name: str) -> int:
            if name not in ids:
                block, at, _ = storage.where[name]
                spec = specs[name]
                offset = at + (block.offset if block.kind == ARENA else 0)
                ids[name] = self._tensor(spec, block.kind, block.index, offset)
            return ids[name]

        for step, ((definition, c), (kernel, function)) in enumerate(zip(calls, bound, strict=True)):
            used = c.node.inputs
            if kernel is not None and kernel.inputs is not None:
                used = [used[i] if i < len(used) else "" for i in kernel.inputs]
            ins = [tensor(n) if n else -1 for n in used]
            outs = [tensor(n) if n else -1 for n in c.node.outputs]
            if kernel is None:
                plan.rows.append((None, function, ins, outs, (), (), 0, 0))
                driver = "numpy"
            else:
                for key, make in kernel.packed:
                    array = binder.packed(c, key, make)
                    spec = Spec(_dtype(array), array.shape)
                    ins.append(self._tensor(spec, CONST, self._constant(array), 0))
                plan.rows.append(
                    (binder.capsule(kernel), None, ins, outs, kernel.ints, kernel.reals,
                     scratch_at.get(step, 0), kernel.scratch)
                )  # fmt: skip
                driver = kernel.driver if isinstance(kernel.driver, str) else "user"
            plan.steps.append(Step(definition, c, driver, kernel.scratch if kernel is not None else 0))

        for name, index in copies:
            spec = specs[name]
            target = self._tensor(spec, OUTPUT, index, 0)
            plan.rows.append((binder.capsule(COPY), None, [tensor(name)], [target], (spec.nbytes,), (), 0, 0))
        plan.keep_ids = {n: tensor(n) for n in self.later if n in storage.where}

    def _tensor(self, spec: Spec, kind: int, index: int, offset: int) -> int:
        self.plan.tensors.append((int(spec.dtype), kind, index, offset, STORAGE[spec.dtype], spec.shape))
        return len(self.plan.tensors) - 1


def _dtype(array: np.ndarray) -> Any:
    from evort.types import dtype_of

    return dtype_of(array)
