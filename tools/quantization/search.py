"""The search for a precision of each layer: float32, float16, int16, int8 or int4, under limits.

    sensitivity   each layer alone in each precision: noise over signal of the model's outputs on calibration samples,
                  or what the user's metric loses
    cost          bytes of its constants; microseconds as measured on the target (`latency`)
    choice        a knapsack: what has no limit is minimised, first of the loss, the size and the latency; a model is
                  never slower than in float32, unless layers are pinned so
    target        the loss that layers cause together is measured with the model itself, and layers go back to finer
                  precisions, the worst for their size first, until it is within the limit

What an int8 layer takes depends on its neighbours, which quantize for it or not: the knapsack is solved again with the
times that layers have beside the last choice, until it chooses the same, and what it chooses is added up as it lies.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evort import etm
from evort.graph import Model
from evort_tools.common import Progress, bytes_text
from evort_tools.quantization import knapsack, static
from evort_tools.quantization.metric import Goal
from evort_tools.quantization.options import PRECISIONS
from evort_tools.quantization.placement import Costs, slower_in_integers
from evort_tools.quantization.precisions import Layer, build, static_int8, swapped
from evort_tools.quantization.qdq import fake_quantized
from evort_tools.quantization.select import PRODUCTS
from evort_tools.quantization.static import Calibrated

NOTED = "evort.quantization"  # the key of the file's metadata for what was chosen
# Bytes that a node takes more in the file than its constants: their names, shapes and attributes.
_RECORDS = {"float32": 0, "float16": 0, "int16": 192, "int8": 384, "int4": 384}
_ROUNDS = 6  # of solving again with the times beside the last choice
_TRIES = 12  # of budgets for the noise, each of which is measured
_STEP = 0.005  # of the size's limit, by which room is made where a file is larger than was thought
_CLOSE = 1.1  # budgets that are so near to each other are not told apart
_SLACK = 1.02  # times the least time, where a model may be slower than in float32
_WORST = 1e6  # noise over signal where there is no signal


class Candidate:
    """A model with its choice. chosen: the precision of each layer; found: of what is int8; bytes: of the file;
    us: predicted; noise: predicted; loss: measured."""

    __slots__ = ("bytes", "chosen", "found", "loss", "model", "noise", "us")

    def __init__(
        self, chosen: list[str], model: Model, found: Calibrated | None, size: int, us: float, noise: float, loss: float
    ):
        self.chosen = chosen
        self.model = model
        self.found = found
        self.bytes = size
        self.us = us
        self.noise = noise
        self.loss = loss


def sensitivities(
    real: Model,
    found: Calibrated | None,
    models: Mapping[str, Model],
    layers: Sequence[Layer],
    goal: Goal,
    by_metric: bool,
    step: Callable[[], None],
) -> tuple[list[dict[str, float]], list[dict[str, float]] | None]:
    """For each layer noise over signal of the outputs in each precision, when all others are float32; and what the
    metric loses by it, where that is asked for."""
    noise: list[dict[str, float]] = []
    losses: list[dict[str, float]] | None = [] if by_metric else None
    products = [] if found is None else [n.outputs[0] for n in found.selection.nodes if n.op in PRODUCTS]
    for layer in layers:
        row, lost = {"float32": 0.0}, {"float32": 0.0}
        for precision in layer.bytes:
            if precision == "float32":
                continue
            if precision == "int8" and layer.static:
                others = {name: "" for name in products if name not in layer.outputs}
                trial = fake_quantized(real, static.restricted(found, others).encodings)
            else:
                trial = swapped(real, models, dict.fromkeys(layer.outputs, precision))
            row[precision] = min(goal.ratio(trial), _WORST)
            if losses is not None:
                lost[precision] = goal.loss(trial)
            step()
        noise.append(row)
        if losses is not None:
            losses.append(lost)
    return noise, losses


def _file_bytes(layer: Layer, precision: str) -> float:
    return float(layer.bytes[precision] + _RECORDS[precision] * len(layer.outputs))


class Search:
    """Looks for the best precisions of a model's layers.

    noise, losses: `sensitivities`. costs: what layers take, None where latency is of no interest. pins: {index of a
    layer: precision}. wanted: the precisions that others may have. notes: what the user should know of what was found.
    """

    def __init__(
        self,
        real: Model,
        found: Calibrated | None,
        models: Mapping[str, Model],
        layers: Sequence[Layer],
        noise: Sequence[Mapping[str, float]],
        losses: Sequence[Mapping[str, float]] | None,
        costs: Costs | None,
        goal: Goal,
        pins: Mapping[int, str],
        wanted: Sequence[str],
    ):
        self.real = real
        self.found = found
        self.models = models
        self.layers = layers
        self.costs = costs
        self.goal = goal
        self._noise = noise
        self._losses = losses
        # What the metric does not tell apart, a little of the noise does.
        self._harm = noise if losses is None else [
            {p: max(0.0, lost[p]) + 1e-6 * row[p] for p in row} for row, lost in zip(noise, losses, strict=True)
        ]  # fmt: skip
        self._choices = [
            [pins[i]] if i in pins else [p for p in layer.bytes if p in wanted or p == "float32"]
            for i, layer in enumerate(layers)
        ]
        self.max_bytes = self.max_us = math.inf
        self.limits_us = False
        self.objective = "noise"
        self._seen: dict[tuple[str, ...], Candidate] = {}
        self._times: dict[frozenset[str], float] = {}  # with what is int8 and all else in float32
        self.notes: list[str] = []
        self.float_bytes = len(etm.write(real))
        self._others = self.float_bytes - sum(layer.bytes["float32"] for layer in layers)
        self.float_us = 0.0 if costs is None else self.time(["float32"] * len(layers))

    def limit(self, max_bytes: float = math.inf, max_us: float = math.inf) -> None:
        """Sets limits for the bytes of the file and the microseconds of a run; what has none is minimised: first the
        loss, then the size, then the latency. Without one for the latency the model is no slower than in float32, as
        far as pins allow."""
        self.max_bytes = max_bytes
        self.limits_us = math.isfinite(max_us)
        self.max_us = max_us if self.limits_us or self.costs is None else max(self.float_us, self.fastest())
        if not self.limits_us and self.costs is not None and self.max_us > self.float_us:
            slower = f"{self.max_us / 1e3:.4g} ms, float32 {self.float_us / 1e3:.4g} ms"
            self.notes.append(f"what is pinned makes the model slower: at least {slower}")
        drop = math.isfinite(self.goal.limit)
        self.objective = (
            "noise" if not drop or (self.limits_us and math.isfinite(max_bytes))
            else "bytes" if not math.isfinite(max_bytes) else "us"
        )  # fmt: skip
        if self.objective == "us" and self.costs is None:
            self.objective = "noise"

    # Times

    def time(self, chosen: Sequence[str]) -> float:
        """Microseconds of the model with these precisions, predicted."""
        integer = frozenset(static_int8(self.layers, chosen))
        if integer not in self._times:
            whole = self.costs.selection
            floats = {n.outputs[0]: "" for n in whole.nodes if n.op in PRODUCTS and n.outputs[0] not in integer}
            self._times[integer] = self.costs.total(whole.without(floats))
        return self._times[integer] + sum(
            self._own(layer, p) - self._own(layer, "float32")
            for layer, p in zip(self.layers, chosen, strict=True)
            if p != "float32" and not (p == "int8" and layer.static)
        )

    def _own(self, layer: Layer, precision: str) -> float:
        if not layer.timed:
            precision = "float32"
        return sum(self.costs.profile.of(o, precision) for o in layer.outputs)

    def _beside(self, chosen: Sequence[str]) -> list[list[float]]:
        """Microseconds of each layer's choices beside what is chosen for the others."""
        table = []
        for i, (layer, choices) in enumerate(zip(self.layers, self._choices, strict=True)):
            row = []
            for p in choices:
                if p == "int8" and layer.static:
                    with_it = self.time([*chosen[:i], "int8", *chosen[i + 1 :]])
                    without = self.time([*chosen[:i], "float32", *chosen[i + 1 :]])
                    row.append(max(0.0, self._own(layer, "float32") + with_it - without))
                else:
                    row.append(self._own(layer, p))
            table.append(row)
        return table

    def _starts(self) -> list[list[str]]:
        """Choices whose neighbourhoods are tried: all in int8, and those that the minimum cut has in int8."""

        def filled(integer: Callable[[Layer], bool]) -> list[str]:
            return [
                choices[0] if len(choices) == 1 else "int8" if "int8" in choices and integer(layer) else "float32"
                for layer, choices in zip(self.layers, self._choices, strict=True)
            ]

        floats = slower_in_integers(self.costs)
        return [filled(lambda layer: True), filled(lambda layer: not any(o in floats for o in layer.outputs))]

    def fastest(self) -> float:
        """The least microseconds that any choice takes, as far as is found."""
        return self.time(self._fastest(math.inf, math.inf))

    def _fastest(self, noise: float, size: float) -> list[str] | None:
        """The choice of the least time within limits on noise and bytes, whatever the limit on the time."""
        before, self.max_us = self.max_us, math.inf
        chosen = self.choose("us", noise, size)
        self.max_us = before
        return chosen

    # The knapsack

    def _tables(self, what: str) -> list[list[float]]:
        if what == "noise":
            return [[h[p] for p in choices] for h, choices in zip(self._harm, self._choices, strict=True)]
        return [[_file_bytes(layer, p) for p in c] for layer, c in zip(self.layers, self._choices, strict=True)]

    def _solutions(self, objective: str, noise: float, size: float, us: float) -> list[list[str]]:
        """Choices that hold the limits on sums of noise and bytes, by any of the starts; times are not yet checked."""
        limits = (("noise", noise), ("bytes", size))
        resources = [(self._tables(what), limit) for what, limit in limits if math.isfinite(limit)]
        if self.costs is None:
            found = knapsack.solve(self._tables(objective), resources)
            return [] if found is None else [self._named(found)]
        rest = self.float_us - sum(self._own(layer, "float32") for layer in self.layers)
        solutions: list[list[str]] = []
        for start in self._starts():
            now = start
            for _ in range(_ROUNDS):
                times = self._beside(now)
                finite = [[t if math.isfinite(t) else 1e12 for t in row] for row in times]
                cost = finite if objective == "us" else self._tables(objective)
                if objective == "bytes":  # of what takes the same room the faster
                    share = 1e-4 * self.float_bytes / max(self.float_us, 1e-9)
                    pairs = zip(cost, finite, strict=True)
                    cost = [[b + share * t for b, t in zip(*pair, strict=True)] for pair in pairs]
                limited = [*resources, (times, us - rest)] if math.isfinite(us) else resources
                found = knapsack.solve(cost, limited)
                if found is None:
                    break
                now = self._named(found)
                if now in solutions:
                    break
                solutions.append(now)
        return solutions

    def _named(self, found: Sequence[int]) -> list[str]:
        return [choices[c] for choices, c in zip(self._choices, found, strict=True)]

    def _sum(self, what: str, chosen: Sequence[str]) -> float:
        if what == "us":
            return self.time(chosen)
        if what == "noise":
            return sum(h[p] for h, p in zip(self._harm, chosen, strict=True))
        return sum(_file_bytes(layer, p) for layer, p in zip(self.layers, chosen, strict=True))

    def choose(self, objective: str, noise: float, size: float) -> list[str] | None:
        """The best choice that is found within limits on noise, bytes of layers, and the latency."""
        best = None
        for share in (1.0, 0.97, 0.9, 0.8):  # int8 beside float may take longer than beside the last choice
            solutions = self._solutions(objective, noise, size, share * self.max_us)
            if self.costs is not None:
                solutions = [s for s in solutions if self.time(s) <= self.max_us * (1 + 1e-9)]
            best = min(solutions, key=lambda s: self._sum(objective, s), default=None)
            if best is not None or self.costs is None:
                break
        if best is None and self.costs is not None and math.isfinite(self.max_us):
            best = self._fastest(noise, size)
            if best is not None and self.time(best) > self.max_us:
                best = None
        if best is None or self.costs is None:
            return best
        return self._polished(best, objective, noise, size)

    def _polished(self, chosen: list[str], objective: str, noise: float, size: float) -> list[str]:
        """Changes one layer after the other, or two that follow each other, where that is better with what it does to
        the neighbours' times."""
        limits = [("noise", noise), ("bytes", size), ("us", self.max_us)]
        limits = [(what, limit) for what, limit in limits if math.isfinite(limit)]
        best = self._sum(objective, chosen)
        for _ in range(_ROUNDS):
            before = best
            for i, choices in enumerate(self._choices):
                for change in itertools.product(choices, *self._choices[i + 1 : i + 2]):
                    tried = [*chosen[:i], *change, *chosen[i + 2 :]]
                    value = self._sum(objective, tried)
                    if value < best and all(self._sum(what, tried) <= limit for what, limit in limits):
                        best, chosen = value, tried
            if best == before:
                break
        return chosen

    # Models

    def candidate(self, chosen: list[str]) -> Candidate:
        """The model of a choice."""
        key = tuple(chosen)
        if key not in self._seen:
            self._seen[key] = self.fitted(chosen, self.real, self.found)
        return self._seen[key]

    def fitted(self, chosen: list[str], real: Model, found: Calibrated | None) -> Candidate:
        """The model of a choice, with other weights and encodings of what is int8. Its metadata say what was chosen."""
        model, left = self._built(chosen, real, found)
        us = 0.0 if self.costs is None else self.time(chosen)
        loss = self.goal.loss(model)
        return Candidate(chosen, model, left, len(etm.write(model)), us, self._sum("noise", chosen), loss)

    def _built(self, chosen: list[str], real: Model, found: Calibrated | None) -> tuple[Model, Calibrated | None]:
        model, left = build(real, found, self.models, self.layers, chosen)
        noted: dict[str, Any] = {"scheme": "mixed"}
        if self.costs is not None:
            noted |= {key: self.costs.profile.machine.get(key) for key in ("isa", "threads")}
        for layer, precision in zip(self.layers, chosen, strict=True):
            noted.setdefault(precision, []).append(layer.name)
        if set(chosen) != {"float32"}:
            model.metadata[NOTED] = json.dumps(noted, separators=(",", ":"))
        return model, left

    def attempt(self, objective: str, noise: float) -> Candidate | None:
        """The model of the best choice with at most this noise, whose file holds the limit."""
        room = self.max_bytes - self._others
        for _ in range(_TRIES):  # the file takes a little more or less than is known of it
            chosen = self.choose(objective, noise, room)
            if chosen is None:
                return None
            found = self.candidate(chosen)
            if found.bytes <= self.max_bytes:
                return found
            room -= max(found.bytes - self.max_bytes, _STEP * self.max_bytes)
        return None

    def _plainest(self) -> Candidate:
        """What is pinned, and all else in float32: of a tiny model the smallest file, as names and scales of integer
        layers then take more than their weights gain."""
        return self.candidate([c[0] if len(c) == 1 else "float32" for c in self._choices])

    def run(self, progress: Progress) -> Candidate:
        """The best model. Raises ValueError, with what can be reached, where there is none."""
        best, plain = self._best(progress), self._plainest()
        if self.objective != "bytes" or plain.bytes > best.bytes:
            return best
        free = any(len(choices) > 1 for choices in self._choices)
        # Else it is so for what may be lost.
        if free and (best is not plain or plain.bytes <= self._fewest_constants()):
            self.notes.append(
                f"all in float32 is the smallest file, {bytes_text(plain.bytes)}: names and scales of other precisions "
                "take more than such small weights gain"
            )
        return plain

    def _best(self, progress: Progress) -> Candidate:
        step = progress("trying precisions", None)
        first = self.attempt(self.objective, math.inf)
        plain = self._plainest()
        if first is None and plain.bytes <= self.max_bytes and plain.us <= self.max_us * (1 + 1e-9):
            first = plain
        step()
        if first is None:
            slower = self._slower()
            first = slower and (self.attempt(self.objective, math.inf) or slower)
            step()
        if first is None:
            raise ValueError(self._unreachable())
        if not math.isfinite(self.goal.limit) or self.goal.holds(first.loss):
            return first
        best = self.attempt("noise", math.inf)
        step()
        if best is None or not self.goal.holds(best.loss):
            raise ValueError(
                f"max_drop: with what is pinned and the other limits the least loss found is "
                f"{self.goal.text(first.loss if best is None else best.loss)}; the limit is "
                f"{self.goal.text(self.goal.limit)}"
            )
        low, high = max(best.noise, 1e-9 * first.noise), first.noise
        budget = min(self.goal.limit**2, high / _CLOSE) if self.goal.metric is None else math.sqrt(low * high)
        for _ in range(_TRIES):
            if not low * _CLOSE < budget * _CLOSE < high * _CLOSE or high / low < _CLOSE:
                break
            tried = self.attempt(self.objective, budget)
            step()
            if tried is not None and self.goal.holds(tried.loss):
                low = budget
                if self._better(tried, best):
                    best = tried
            else:
                high = budget
            budget = math.sqrt(low * high)
        return best

    def _slower(self) -> Candidate | None:
        """Where the user has limited the size and not the time: lets the model be slower than in float32, by as little
        as is found. The fastest model that is small enough; None where there is none."""
        if self.costs is None or self.limits_us or not math.isfinite(self.max_bytes):
            return None
        before, self.max_us = self.max_us, math.inf
        fastest = self.attempt("us", math.inf)
        if fastest is None:
            self.max_us = before
            return None
        self.max_us = _SLACK * fastest.us
        self.notes.append(
            f"max_size costs time: nothing that small takes less than {fastest.us / 1e3:.4g} ms, float32 takes "
            f"{self.float_us / 1e3:.4g} ms"
        )
        return fastest

    def _better(self, one: Candidate, other: Candidate) -> bool:
        return getattr(one, self.objective) < getattr(other, self.objective)

    def _unreachable(self) -> str:
        if self.limits_us:
            fastest = self.fastest()
            if fastest > self.max_us:
                return (
                    f"max_latency: {self.max_us / 1e3:.4g} ms cannot be reached: the fastest precisions that were "
                    f"found take {fastest / 1e3:.4g} ms, float32 {self.float_us / 1e3:.4g} ms"
                )
        smallest = self._smallest()
        if smallest > self.max_bytes:
            plain = f"float32 takes {bytes_text(self.float_bytes)}"
            if smallest >= self.float_bytes:
                plain = "that in float32: names and scales of other precisions take more than such small weights gain"
            return (
                f"max_size: {bytes_text(self.max_bytes)} cannot be reached: the smallest file is "
                f"{bytes_text(smallest)}, {plain}"
            )
        if self.costs is None:
            return (
                f"max_size: nothing was found of {bytes_text(self.max_bytes)}; the smallest is {bytes_text(smallest)}"
            )
        self.max_us = math.inf
        fastest = self.attempt("us", math.inf)
        return (
            f"max_size and max_latency cannot be held together: {bytes_text(self.max_bytes)} takes at least "
            f"{(math.inf if fastest is None else fastest.us) / 1e3:.4g} ms as far as is found; the smallest file is "
            f"{bytes_text(smallest)}; float32 takes {self.float_us / 1e3:.4g} ms"
        )

    def _smallest(self) -> int:
        """Bytes of the smallest file, whatever it loses and takes."""
        return min(self._fewest_constants(), self._plainest().bytes)

    def _fewest_constants(self) -> int:
        """Bytes of the file whose layers have the precisions in which their constants take least."""
        bytes_of = [[layer.bytes[p] for p in c] for layer, c in zip(self.layers, self._choices, strict=True)]
        chosen = knapsack.solve(bytes_of, [])
        return len(etm.write(self._built(self._named(chosen), self.real, self.found)[0]))

    def rows(self, chosen: Sequence[str]) -> list[dict[str, Any]]:
        """For tables and JSON: each layer with its precision, its harm alone, its bytes and microseconds."""
        beside = None if self.costs is None else self._beside(chosen)
        found = []
        for i, (layer, p) in enumerate(zip(self.layers, chosen, strict=True)):
            us = None if beside is None else beside[i][self._choices[i].index(p)]
            found.append(
                {
                    "name": layer.name,
                    "operator": layer.op,
                    "precision": p,
                    "pinned": len(self._choices[i]) == 1 and len(layer.bytes) > 1,
                    "noise_alone": {q: self._noise[i][q] for q in PRECISIONS if q in self._noise[i]},
                    **({} if self._losses is None else {"metric_lost_alone": dict(self._losses[i])}),
                    "bytes": {q: layer.bytes[q] for q in PRECISIONS if q in layer.bytes},
                    "us": us,
                    "us_float32": None if self.costs is None else self._own(layer, "float32"),
                }
            )
        return found
