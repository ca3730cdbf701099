"""Times the kernels that each layer could run with on this processor, and writes a file that has the best of each.

A layer's kernel is otherwise chosen by a cost model. Here every kernel that takes the layer runs inside the whole
model, in turns with the others, on random inputs. What is faster beyond noise (by 3 % in the median, and in three
rounds of four) is chosen; then all choices together run once more beside the cost model's, and what does not hold is
taken back.
The file can have choices for several processors: each follows its own (see docs/tuning.md).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from evort import __version__, etm
from evort.graph import Model
from evort.ops.base import Call
from evort.plan import Plan, Step
from evort.session import Session
from evort.tuning import PREFIX, Tuned, cpu_name, parse, render
from evort.types import Spec
from evort_tools.common import (
    Progress,
    add_shape_argument,
    bytes_text,
    print_json,
    progress_bar,
    shapes_of,
    silent,
    source,
    tried_inputs,
)
from evort_tools.inspection import operator_text

FASTER = 0.97  # of the other kernel's time: what is not beyond that is noise
HOLDS = 0.99  # the same for what is looked at a second time
_FEWEST, _MOST = 12, 400  # rounds

Key = tuple[str, tuple[int, ...]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an .etm file (or .onnx, converted in memory)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.etm", help="the file to write")
    add_shape_argument(parser)
    parser.add_argument("--threads", type=int, default=1, help="threads to measure with: those that runs will use (1)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to measure, about (10)")
    parser.add_argument("--cpu", metavar="NAME", help="the processor's name (see evort --config; or set EVORT_CPU)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


@dataclass
class Layer:
    """A layer that more than one kernel takes, or that is decided on together with such ones.

    kernels: the cost model's choice, then the others; winner: the best. us: microseconds with each, medians; before,
    after: with the cost model's kernels and with the winners, measured beside each other once more. region: a number
    that layers have in common whose operands lie channels last together, and which change that together; -1: none.
    """

    key: Key
    operator: str
    kernels: list[str]
    region: int = -1
    winner: str = ""
    us: dict[str, float] = field(default_factory=dict)
    before: float = 0.0
    after: float = 0.0


@dataclass
class Result:
    """What was found. before, after: milliseconds of a run of the whole model, medians."""

    cpu: str
    threads: int
    layers: list[Layer]
    rounds: int
    before: float
    after: float
    arena: tuple[int, int]

    @property
    def tuned(self) -> Tuned:
        return {layer.key: layer.winner for layer in self.layers}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        layers = [
            {"layer": x.key[0], "output": list(x.key[1]), "operator": x.operator, "cost_model": x.kernels[0],
             "winner": x.winner, "microseconds": x.us, "before_us": x.before, "after_us": x.after}
            for x in self.layers
        ]  # fmt: skip
        return {
            "cpu": self.cpu, "threads": self.threads, "rounds": self.rounds, "before_ms": self.before,
            "after_ms": self.after, "arena_before": self.arena[0], "arena_after": self.arena[1], "layers": layers,
        }  # fmt: skip


def run(args: argparse.Namespace) -> int:
    if args.threads < 1 or args.seconds <= 0:
        raise ValueError("--threads must be at least 1, and --seconds more than 0")
    model = etm.read(source(args.model)).model
    cpu = args.cpu or cpu_name()
    feeds = tried_inputs(Session(model, threads=args.threads), shapes_of(args))
    with progress_bar(quiet=args.json) as progress:
        result = tune(model, feeds, args.threads, args.seconds, cpu, progress)
    noted = {**parse(model.metadata.get(PREFIX + cpu, "")), **result.tuned}  # those of other shapes stay
    if noted:
        notes = [f"threads {result.threads}, evort {__version__}"]
        model.metadata = {**model.metadata, PREFIX + cpu: render(noted, notes)}
    etm.write(model, args.output)
    if args.json:
        print_json(result.as_dict())
    else:
        show(result, args.model, args.output)
    return 0


def show(result: Result, path: str, output: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"{path} on {result.cpu}")
    for column in ("layer", "operator", "output", "cost model", "best"):
        table.add_column(column, overflow="fold")
    for column in ("µs before", "after", "ratio"):
        table.add_column(column, justify="right")
    for x in result.layers:
        best = x.winner if x.winner == x.kernels[0] else f"[bold]{x.winner}"
        ratio = f"{x.after / x.before:.2f}" if x.before else ""
        table.add_row(x.key[0], x.operator, "x".join(map(str, x.key[1])), x.kernels[0], best, f"{x.before:.1f}",
                      f"{x.after:.1f}", ratio)  # fmt: skip
    changed = sum(x.winner != x.kernels[0] for x in result.layers)
    console.print(table)
    console.print(
        f"{changed} of {len(result.layers)} layers with a choice have another kernel than the cost model's; "
        f"the whole model: {result.before:.4g} -> {result.after:.4g} ms ({result.after / result.before:.2f}), "
        f"arena {bytes_text(result.arena[0])} -> {bytes_text(result.arena[1])}"
    )
    console.print(f"written to {output}, for {result.threads} thread{'s' if result.threads > 1 else ''}")


def tune(
    model: Model,
    feeds: dict[str, Any],
    threads: int = 1,
    seconds: float = 10.0,
    cpu: str | None = None,
    progress: Progress = silent,
) -> Result:
    """Measures which kernels are best for a model's layers here. feeds: the inputs to run it with. seconds: how long
    to measure, about. The model is not changed.

    Raises what the model's run raises.
    """

    def session(tuned: Tuned) -> Session:
        """The model with these kernels, whatever its own records say."""
        metadata = {k: v for k, v in model.metadata.items() if not k.startswith(PREFIX)}
        if tuned:
            metadata[PREFIX + cpu_name()] = render(tuned, ())
        bare = Model(model.graph, model.opsets, metadata, model.producer, model.bounds)
        return Session(bare, threads=threads)

    base = session({})
    layers = found_layers([plan for plan, _ in base.profile(feeds)])
    variants = [base]
    for i in range(1, max([len(x.kernels) for x in layers], default=1)):
        variants.append(session({x.key: x.kernels[i] for x in layers if i < len(x.kernels)}))
    rounds, times = timed(variants, feeds, layers, seconds * 0.6, progress, "timing kernels")
    for group in groups_of(layers):
        decide(group, times)
    final = variants[0]
    if any(x.winner != x.kernels[0] for x in layers):
        final = session({x.key: x.winner for x in layers})
        _, times = timed([base, final], feeds, layers, seconds * 0.25, progress, "looking again")
        for group in groups_of(layers):
            before, after = (sum(times[x.key][i] for x in group) for i in (0, 1))
            if np.median(after / before) > HOLDS:
                for x in group:
                    x.winner = x.kernels[0]
        final = session({x.key: x.winner for x in layers})
    before, after = whole(base, final, feeds, seconds * 0.15)
    if after > before:
        for x in layers:
            x.winner = x.kernels[0]
        final, after = base, before
    for x in layers:
        x.before = float(np.median(times[x.key][0])) / 1e3
        changed = x.winner != x.kernels[0]
        x.after = float(np.median(times[x.key][1])) / 1e3 if changed else x.before
    arena = base.memory().arena, final.memory().arena
    layers = [x for x in layers if len(x.kernels) > 1]
    return Result(cpu or cpu_name(), threads, layers, rounds, before, after, arena)


def found_layers(plans: Iterable[Plan]) -> list[Layer]:
    """The layers that more than one kernel takes, and those that read or write what such ones have channels last."""
    layers = []
    for plan in plans:
        region = regions(plan)
        for i, step in enumerate(plan.steps):
            out = step.call.outs[0]
            if out is None or not (step.definition.choices or i in region):
                continue
            kernels = kernels_of(step, i in region)
            if len(kernels) > 1 or i in region:
                key = step.call.node.outputs[0], out.shape
                layers.append(Layer(key, operator_text(step), kernels, region.get(i, -1)))
    return layers


def kernels_of(step: Step, plain: bool) -> list[str]:
    """The drivers that take a step, that of the plan first. plain: those that take its operands with channels first,
    where they lie channels last."""

    def tried(kernel: str | None) -> str | None:
        c = step.call
        ins, outs = c.ins, c.outs
        if plain:
            ins, outs = ([s and Spec(s.dtype, s.shape, s.value, s.sparse) for s in specs] for specs in (ins, outs))
        call = Call(c.node, c.attrs, ins, c.threads)
        call.outs, call.memo, call.kernel = outs, c.memo, kernel
        found = step.definition.bind(call)
        return None if found is None else found.driver

    found = [step.driver]
    if plain:
        # By itself, unless that is the driver of the region: it may take channels that lie first, too.
        choices = step.definition.choices
        own = (k for k in (tried(None), *choices) if k in choices and k != step.driver and tried(k) == k)
        return [*found, *islice(own, 1)]
    return found + [k for k in step.definition.choices if k != step.driver and tried(k) == k]


def regions(plan: Plan) -> dict[int, int]:
    """A number for each step that reads or writes a tensor that lies channels last: the same one for those that are
    connected by such tensors."""
    owner: dict[str, int] = {}
    found: dict[int, int] = {}
    for i, step in enumerate(plan.steps):
        c = step.call
        operands = [*zip(c.node.inputs, c.ins, strict=False), *zip(c.node.outputs, c.outs, strict=False)]
        names = [name for name, spec in operands if spec is not None and spec.channels_last]
        if not names:
            continue
        joined = {owner[name] for name in names if name in owner}
        number = min(joined, default=i)
        found = {k: number if v in joined else v for k, v in found.items()}
        owner = {k: number if v in joined else v for k, v in owner.items()} | dict.fromkeys(names, number)
        found[i] = number
    return found


def groups_of(layers: Iterable[Layer]) -> list[list[Layer]]:
    """Layers that are decided on together: those of a region, and any other alone."""
    groups: dict[Any, list[Layer]] = {}
    for x in layers:
        groups.setdefault(x.key if x.region < 0 else x.region, []).append(x)
    return list(groups.values())


def decide(group: list[Layer], times: Mapping[Key, list[np.ndarray]]) -> None:
    """Sets the winner of layers that are decided on together, and their microseconds."""
    for x in group:
        x.us = {kernel: float(np.median(times[x.key][i])) / 1e3 for i, kernel in enumerate(x.kernels)}
        x.winner = x.kernels[0]
    summed = [sum(times[x.key][i] for x in group) for i in range(max(len(x.kernels) for x in group))]
    best = np.median(summed[0])
    for i, after in enumerate(summed):
        ratio = after / summed[0]
        if np.median(ratio) < FASTER and np.quantile(ratio, 0.75) < 1 and np.median(after) < best:
            best = np.median(after)
            for x in group:
                x.winner = x.kernels[min(i, len(x.kernels) - 1)]


def timed(
    sessions: list[Session], feeds: dict[str, Any], layers: list[Layer], seconds: float, progress: Progress, what: str
) -> tuple[int, dict[Key, list[np.ndarray]]]:
    """How many rounds there were, and the nanoseconds of each layer in each session, by round; sessions take turns."""
    wanted = {x.key for x in layers}
    start = time.perf_counter()
    for session in sessions:
        session.profile(feeds)
    rounds = int(seconds / max(time.perf_counter() - start, 1e-6))
    rounds = min(_MOST, max(_FEWEST, rounds))
    step: Callable[[], None] = progress(what, rounds)
    found: dict[Key, list[list[float]]] = {key: [[] for _ in sessions] for key in wanted}
    for count in range(rounds):
        for turn in range(len(sessions)):
            i = (turn + count) % len(sessions)
            for plan, nanoseconds in sessions[i].profile(feeds):
                for at, done in enumerate(plan.steps):
                    key = done.call.node.outputs[0], done.call.outs[0] and done.call.outs[0].shape
                    if key in wanted:
                        found[key][i].append(float(max(nanoseconds[at], 1)))
        step()
    return rounds, {key: [np.array(x) for x in lists] for key, lists in found.items()}


def whole(base: Session, final: Session, feeds: dict[str, Any], seconds: float) -> tuple[float, float]:
    """Milliseconds of a run of both, medians, in turns."""
    spent: list[list[int]] = [[], []]
    for session in (base, final):
        session.run(feeds)
    end = time.perf_counter() + seconds
    while len(spent[0]) < _FEWEST or (time.perf_counter() < end and len(spent[0]) < 50 * _MOST):
        for i, session in enumerate((base, final)):
            start = time.perf_counter_ns()
            session.run(feeds)
            spent[i].append(time.perf_counter_ns() - start)
    before, after = (float(np.median(x)) / 1e6 for x in spent)
    return before, after


if __name__ == "__main__":
    from evort_tools.cli import run_command

    sys.exit(run_command("tune"))
