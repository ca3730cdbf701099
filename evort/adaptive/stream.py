"""A stream: one sequence of inputs with ranges of its own, and the control of its precision."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from evort._kernels.executor import Program, StepFailed
from evort._kernels.follow import Follower, Watch
from evort.adaptive.levels import HEADROOM, encoding, least_scale, noise_of, rescaled, scale_names
from evort.adaptive.tensors import biases
from evort.errors import InputError, UnsupportedError
from evort.ops.base import Call
from evort.types import DType, Spec

if TYPE_CHECKING:
    from evort.adaptive.session import AdaptiveSession
    from evort.graph import Graph
    from evort.runner import Planned

_MOST_SHAPES = 4  # that a stream keeps programs for, at each level


class Adaptive:
    """How a session follows its data.

    every: where nothing changes, one run in so many is looked at: between those nothing is noted, and nothing changes.
    A run whose input goes beyond its range is looked at, too; behind that, a change or an outlier the next one is, then
    the second next, the fourth next and so on.
    attack, release: how much of the way an average goes, in one run, to values beyond it and to smaller ones. outlier:
    values so many times beyond the average are not followed, unless they come `confirm` runs in a row. grow, shrink: a
    range changes where the average is larger by that share, or smaller. margin: how much wider than the average a new
    range is.

    level: the precision: a number, 0 the integers of the file, or "auto": as low as `max_noise` allows, and higher for
    an input that is cut off. max_noise: noise over signal that may be expected of the outputs, by the file's own
    figures; 0 for no bound. max_excess: a run that cut off a larger share of a value is repeated at the next level.
    max_latency: seconds; no run is repeated, and no level chosen, where that would take longer. skip_equal: an input
    equal to the one before gives the same result without a run.

    Raises ValueError for an option out of its range.
    """

    __slots__ = (
        "attack", "confirm", "every", "grow", "level", "margin", "max_excess", "max_latency", "max_noise", "outlier",
        "release", "shrink", "skip_equal",
    )  # fmt: skip

    def __init__(self, *, every: int = 8, attack: float = 0.5, release: float = 0.05, outlier: float = 4.0,
                 confirm: int = 3, grow: float = 0.05, shrink: float = 0.3, margin: float = 1.05,
                 level: int | str = "auto", max_noise: float = 0.0, max_excess: float = 0.1,
                 max_latency: float | None = None, skip_equal: bool = False):  # fmt: skip
        for name, value, low, high in (
            ("every", every, 1, 1000), ("attack", attack, 0, 1), ("release", release, 0, 1),
            ("outlier", outlier, 1, np.inf), ("confirm", confirm, 1, 1000), ("grow", grow, 0, 1),
            ("shrink", shrink, 0, 1), ("margin", margin, 1, 4), ("max_noise", max_noise, 0, np.inf),
            ("max_excess", max_excess, 0, np.inf),
        ):  # fmt: skip
            if not low <= value <= high:
                raise ValueError(f"adaptive: {name} must be from {low} to {high}, not {value!r}")
        if level != "auto" and not (isinstance(level, int) and level >= 0):
            raise ValueError(f'adaptive: level must be "auto" or a number from 0 on, not {level!r}')
        self.every = every
        self.attack, self.release, self.outlier, self.confirm = attack, release, outlier, confirm
        self.grow, self.shrink, self.margin, self.level = grow, shrink, margin, level
        self.max_noise, self.max_excess, self.max_latency = max_noise, max_excess, max_latency
        self.skip_equal = skip_equal


class _Lane:
    """A program of one level for one set of input shapes, with scales, zero points and biases of its own.

    version: for each followed tensor, the change of its range that the program has; clock: the latest of them. notes:
    whether its steps note ranges.
    """

    def __init__(self, session: AdaptiveSession, level: int, planned: Planned):
        plan = planned.plan
        if not planned.alone:
            raise UnsupportedError("adaptive: a model whose shapes depend on values, or that runs in several stages")
        tensors = session.tensors
        self.planned, self.level = planned, session.levels[level]
        graph = session.graphs[level]
        self._own: dict[str, np.ndarray] = {}
        shared = {}  # arrays of the plan that this lane replaces
        for t in tensors:
            for name in scale_names(t):
                value = graph.constant(name)
                shared[id(value)] = self._own[name] = value.copy()
        # Biases in units of the scales; `base` is for the scales of the file.
        self._biases: list[tuple[np.ndarray, np.ndarray, list[int]]] = []
        self._least = np.zeros(len(tensors))
        for node, index, about in biases(session.model.graph, tensors):
            if node in self.level.layers:
                continue
            base = session.model.graph.constant(session.model.graph.nodes[node].inputs[index])
            value = graph.constant(graph.nodes[node].inputs[index])
            own = shared[id(value)] = value.copy()
            self._biases.append((own, base, about))
            for i in about:
                self._least[i] = max(self._least[i], least_scale(tensors[i], base))
        constants = [shared.get(id(array), array) for array in plan.constants]
        self.program = Program(plan.tensors, plan.rows, constants, plan.arena_bytes, session.threads)
        planned.made += 1
        # Inputs of the model have rows behind those of the steps.
        rows = len(plan.rows)
        steps = {id(step.call.node): k for k, step in enumerate(plan.steps)}
        row = np.full(len(tensors), -1, np.int32)
        inputs = 0
        for i, t in enumerate(tensors):
            if t.writer < 0:
                row[i] = rows + inputs
                inputs += 1
            elif self.level.bits(t) < 32:
                row[i] = steps[id(graph.nodes[t.writer])]
        ranges = np.empty((rows + inputs, 2), np.float32)
        noises = noise_of(tensors, self.level, session.noise)
        reach = np.array([HEADROOM if self.level.bits(t) == 16 else 1.0 for t in tensors])
        self.watch = Watch(ranges, row, list(range(rows, len(ranges))), noises, reach, np.ones(len(tensors)))
        self.program.watch(ranges[:rows])
        self.notes = True
        self._reads, self._writes = plan.reads, planned.writes
        self.clock = 0
        self.version = np.zeros(len(tensors), np.int64)
        self._calls = self._dependent(session, graph, plan, shared)
        self.seconds = 0.0  # of a run, averaged

    def _dependent(
        self, session: AdaptiveSession, graph: Graph, plan: Any, shared: dict[int, np.ndarray]
    ) -> list[list[Any]]:
        """For each tensor, the steps whose parameters depend on its scale: (number, definition, call)."""
        found: list[list[Any]] = [[] for _ in session.tensors]
        for k, step in enumerate(plan.steps):
            call = step.call
            ins = [
                s if s is None or id(s.value) not in shared else Spec(s.dtype, s.shape, shared[id(s.value)])
                for s in call.ins
            ]
            about = [i for i, t in enumerate(session.tensors)
                     if any(graph.nodes[use.node] is call.node for use in t.uses)]  # fmt: skip
            if not about or step.driver == "numpy":
                continue
            own = Call(call.node, call.attrs, ins, call.threads)
            own.outs = call.outs
            for i in about:
                if self._depends(step.definition, own, scale_names(session.tensors[i])):
                    found[i].append((k, step.definition, own))
        return found

    def _depends(self, definition: Any, call: Call, names: tuple[str, str]) -> bool:
        """Whether binding gives other parameters for another scale; most drivers read the scale itself."""
        own = self._own[names[0]]
        before = definition.bind(call)
        kept = own.copy()
        own[...] = kept * np.float32(1.25)
        after = definition.bind(call)
        own[...] = kept
        return (before.ints, before.reals) != (after.ints, after.reals)

    def unnoted(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Results of a run that is not looked at."""
        if self.notes:
            self.program.pause(True)
            self.notes = False
        return self.program.call(feeds, self._reads, self._writes)

    def update(self, session: AdaptiveSession, state: np.ndarray, version: np.ndarray, clock: int) -> None:
        """Takes over the ranges that have changed."""
        self.clock = clock
        changed = np.flatnonzero(version != self.version)
        steps = {}
        for i in changed:
            t = session.tensors[i]
            scale, zero = encoding(t, self.level.bits(t), state[i, 2], state[i, 3])
            names = scale_names(t)
            self._own[names[0]][...] = max(float(scale), self._least[i])
            self._own[names[1]][...] = zero
            if t.steps:
                self.watch.units[i] = self._own[names[0]]
            for k, definition, call in self._calls[i]:
                steps[k] = definition, call
        for own, base, about in self._biases:
            if any(self.version[i] != version[i] for i in about):
                factor = 1.0
                for i in about:
                    factor *= session.tensors[i].scale / float(self._own[scale_names(session.tensors[i])[0]])
                own[...] = rescaled(base, factor)
        for k, (definition, call) in steps.items():
            kernel = definition.bind(call)
            self.program.rebind(k, tuple(kernel.ints), tuple(kernel.reals))
        self.version[:] = version


class Stream:
    """A sequence of inputs. Made by `AdaptiveSession.stream()`; used by one thread at a time.

    runs, repeated, skipped, changes: counts of runs, of those repeated at a higher level, of those skipped as the input
    was the same, and of changes of a range. level: of the latest result.
    """

    def __init__(self, session: AdaptiveSession):
        self._session = session
        self.options: Adaptive = session.options
        o = self.options
        bounds = np.array([t.bounds for t in session.tensors]).reshape(-1, 2)
        inputs = [i for i, t in enumerate(session.tensors) if t.writer < 0]
        self._inputs = [session.tensors[i].name for i in inputs]
        self._follower = Follower(bounds, inputs, o.attack, o.release, o.outlier, o.confirm, o.grow, o.shrink)
        self._timed, self._skips = o.max_latency is not None, o.skip_equal
        self._every = o.every
        self._auto = o.level == "auto"
        self._lanes: list[dict[tuple[tuple[int, ...], ...], _Lane]] = [{} for _ in session.levels]
        # The change, counted over all tensors, in which each one's range became what it is.
        self._version = np.zeros(len(session.tensors), np.int64)
        self._clock = 0
        self.reset()

    def reset(self) -> None:
        """Forgets what it has seen: the ranges are those of the file again."""
        state = self._follower.state
        for i, t in enumerate(self._session.tensors):
            low, high = t.range()
            if t.dtype == DType.INT16:
                low, high = low / HEADROOM, high / HEADROOM
            state[i] = low, high, low, high, 0
        self._clock += 1
        self._version[:] = self._clock
        self.runs = self.repeated = self.skipped = self.changes = 0
        self.level = self._next = 0 if self._auto else self.options.level
        self._gap, self._look = 1, 0  # between looks, and the next run that is looked at in any case
        self._last: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None = None

    def state(self) -> dict[str, Any]:
        """All that it remembers, as plain numbers (for JSON): restore() gives it to another stream of the model."""
        names = [t.name for t in self._session.tensors]
        rows = self._follower.state.tolist()
        return {
            "tensors": dict(zip(names, rows, strict=True)), "level": self._next, "runs": self.runs,
            "gap": self._gap, "look": self._look,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a state. Raises InputError for one that is not of this model."""
        names = [t.name for t in self._session.tensors]
        try:
            rows = np.array([state["tensors"][name] for name in names], np.float64).reshape(len(names), 5)
            level, runs, gap, look = (int(state[key]) for key in ("level", "runs", "gap", "look"))
        except (KeyError, TypeError, ValueError):
            raise InputError("this is no state of a stream of this model") from None
        good = (
            np.isfinite(rows).all() and (rows[:, 2] <= 0).all() and (rows[:, 3] >= 0).all() and (rows[:, 4] >= 0).all()
        )
        if not good or len(state["tensors"]) != len(names) or not 0 <= level < len(self._session.levels):
            raise InputError("this is no state of a stream of this model")
        self.reset()
        self._follower.state[:] = rows
        self._next, self.runs = level, runs
        self._gap, self._look = min(max(1, gap), self._every), min(look, runs + self._every)

    def ranges(self) -> dict[str, tuple[float, float]]:
        """The range that each followed tensor's integers stand for now."""
        return {
            t.name: (float(r[2]), float(r[3])) for t, r in zip(self._session.tensors, self._follower.state, strict=True)
        }

    def run(self, inputs: dict[str, Any], into: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Runs the model on the next input; returns its outputs by name, `into`'s arrays where given. Raises as
        `Session.run` and `run_into` do."""
        feeds, shapes = self._session.checked(inputs)
        if self._last is not None and self._equal(feeds):
            self.skipped += 1
            return self._repeat(into)
        level = self._next
        beyond = self._follower.look(feeds, self._inputs)
        looks = beyond or self.runs >= self._look
        changes = self.changes
        self.runs += 1
        if not looks and into is None and not self._timed:
            lane = self._lanes[level].get(shapes)
            if lane is not None and lane.clock == self._clock:  # the short way
                self.level = level
                try:
                    results = lane.unnoted(feeds)
                except StepFailed as failure:
                    raise lane.planned.error(failure) from None
                if self._skips:
                    self._keep(feeds, results)
                return results
        results, lane = self._run_at(level, feeds, shapes, into, True, looks)
        if looks:
            moves = beyond or self._follower.waits or changes != self.changes
            self._gap = 1 if moves else min(2 * self._gap, self._every)
            self._look = self.runs + self._gap - 1
        if looks and self._auto:
            while self._follower.excess > self.options.max_excess and self._may_rise(level, lane, feeds, shapes):
                level += 1
                self.repeated += 1
                results, lane = self._run_at(level, feeds, shapes, results, False, True)
            if self.options.max_noise > 0:
                self._choose(lane)
            else:
                self._next = 0
        self.level = level
        if self._skips:
            self._keep(feeds, results)
        return results

    def _keep(self, feeds: dict[str, np.ndarray], results: dict[str, np.ndarray]) -> None:
        self._last = ({k: v.copy() for k, v in feeds.items()}, {k: v.copy() for k, v in results.items()})

    @property
    def excess(self) -> float:
        """By how much of itself the largest value of the latest result that was looked at was cut off, at worst."""
        return self._follower.excess

    @property
    def noise(self) -> float:
        """The noise over signal that is expected of the latest result looked at, by the file's figures."""
        return self._follower.noise

    def _equal(self, feeds: dict[str, np.ndarray]) -> bool:
        return all(
            x.shape == feeds[name].shape and np.array_equal(x.view(np.uint8), feeds[name].view(np.uint8))
            for name, x in self._last[0].items()
        )

    def _repeat(self, into: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
        if into is None:
            return {name: array.copy() for name, array in self._last[1].items()}
        for name, array in into.items():
            np.copyto(array, self._last[1][name])
        return into

    def _lane(self, level: int, feeds: dict[str, np.ndarray], shapes: tuple[tuple[int, ...], ...]) -> _Lane:
        lanes = self._lanes[level]
        lane = lanes.get(shapes)
        if lane is None:
            if len(lanes) >= _MOST_SHAPES:
                lanes.pop(next(iter(lanes)))
            planned = self._session.plan_of(level, feeds)
            self._session.check_memory(self.nbytes + planned.plan.arena_bytes)
            lane = lanes[shapes] = _Lane(self._session, level, planned)
        return lane

    def _run_at(self, level: int, feeds: dict[str, np.ndarray], shapes: tuple[tuple[int, ...], ...],
                into: dict[str, np.ndarray] | None, learn: bool,
                looks: bool) -> tuple[dict[str, np.ndarray], _Lane]:  # fmt: skip
        """Results, and the lane that ran. looks: whether ranges are noted; learn: whether averages follow those."""
        lane = self._lanes[level].get(shapes) or self._lane(level, feeds, shapes)
        follower = self._follower
        if lane.clock != self._clock:
            lane.update(self._session, follower.state, self._version, self._clock)
        timed = self._timed
        start = perf_counter() if timed else 0.0
        plan = lane.planned.plan
        lane.program.pause(not looks)
        lane.notes = looks
        try:
            if into is None:
                results = lane.program.call(feeds, plan.reads, lane.planned.writes)
            elif lane.planned.fits(into):
                results = into
                lane.program.run([feeds[n] for n in plan.reads], [into[n] for n in plan.writes])
            else:
                raise InputError("run_into needs an array for each output, of its shape and dtype")
        except StepFailed as failure:
            raise lane.planned.error(failure) from None
        if looks and follower.observe(lane.watch, learn):
            due = follower.due.view(bool)
            margin = self.options.margin
            follower.state[due, 2:4] = follower.state[due, :2] * margin
            self._clock += 1
            self._version[due] = self._clock
            self.changes += int(due.sum())
        if timed:
            spent = perf_counter() - start
            lane.seconds = spent if not lane.seconds else lane.seconds + 0.1 * (spent - lane.seconds)
        return results, lane

    def _may_rise(self, level: int, lane: _Lane, feeds: dict[str, np.ndarray],
                  shapes: tuple[tuple[int, ...], ...]) -> bool:  # fmt: skip
        """Whether there is a next level, and time for it after this one. A level that was never run is tried."""
        if level + 1 >= len(self._lanes):
            return False
        budget = self.options.max_latency
        return budget is None or lane.seconds + self._lane(level + 1, feeds, shapes).seconds <= budget

    def _choose(self, lane: _Lane) -> None:
        """The level of the next run: the lowest one whose expected noise is within bounds, and whose time."""
        options, session = self.options, self._session
        # What this run's noise would be at each level: that of ranges as they are is known for the one that ran.
        own = lane.watch.noises.sum()
        stretch = self.noise / own if own > 0 else 1.0
        fitting = [k for k, noise in enumerate(session.noises) if noise * stretch <= options.max_noise]
        self._next = fitting[0] if fitting else len(session.noises) - 1
        if options.max_latency is not None:
            while self._next and self._seconds(self._next) > options.max_latency:
                self._next -= 1

    def _seconds(self, level: int) -> float:
        return max((lane.seconds for lane in self._lanes[level].values()), default=0.0)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds: arenas of its programs and what is noted for each tensor."""
        arenas = sum(
            lane.planned.plan.arena_bytes + lane.watch.ranges.nbytes for lanes in self._lanes for lane in lanes.values()
        )
        return arenas + self._follower.state.nbytes
