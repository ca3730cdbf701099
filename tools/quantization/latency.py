"""How long each layer takes in each precision: measured with evort's own kernels, or read from a file that was measured
so on the target (`evort profile model.onnx --precisions -o profile.json`).

Layers are timed inside whole models, one for each precision, as they run there: operands in the caches that the layers
before have left them in. An integer layer costs more where it has to quantize what it reads, or to give float32; so
every other product is left in float in two more models, and what integer layers take beside those is noted too.

    {"evort_latency_profile": 1,
     "machine": {"processor": "x86_64", "isa": "avx512", "threads": 1, "evort": "0.1.0"},
     "inputs": {"image": [1, 1, 28, 28]},
     "layers": {"relu1": {"name": "Conv@1", "operator": "Conv",
                          "microseconds": {"float32": 4.3, "int8": 5.1, "int8_beside_float": 6.0, "int4": 9.2}}}}

A layer is named by its first output, as the graph has it after the float passes; a precision that it has no kernel for
is left out.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from evort import __version__
from evort._kernels import core
from evort.graph import Graph, Model, Node
from evort.session import Session
from evort_tools.common import Progress, silent, write_atomically
from evort_tools.quantization.integers import integer_model
from evort_tools.quantization.qdq import total_bytes
from evort_tools.quantization.select import PRODUCTS
from evort_tools.quantization.static import Calibrated, restricted

VERSION = 1
BESIDE = "int8_beside_float"  # an integer layer whose neighbours are float, where those of "int8" are integers
_SECONDS = 1.0  # to measure all variants of a model
_FEWEST, _MOST = 7, 400
_LEAST, _LONG = 3, 8.0  # runs, where _FEWEST take longer than so many times the seconds
# Models with more bytes of weights are measured one after the other, not in turns: fewer of them are held at once.
_LARGE = 1 << 25

Times = dict[str, float]


class Profile:
    """Microseconds of a run by layer (first output) and precision.

    times: {layer: {precision: us}}; nodes: {layer: (name, operator)}, machine: what it was measured on; inputs: the
    shapes. source: the file that it was read from, or "" where it was measured just now.
    """

    def __init__(
        self,
        times: dict[str, Times],
        nodes: dict[str, tuple[str, str]],
        machine: dict[str, Any],
        inputs: dict[str, list[int]],
        source: str = "",
    ):
        self.times = times
        self.nodes = nodes
        self.machine = machine
        self.inputs = inputs
        self.source = source

    def of(self, layer: str, precision: str) -> float:
        """Microseconds of a layer; infinite where it has not been measured in that precision."""
        return self.times.get(layer, {}).get(precision, math.inf)

    def total(self, precision: str = "float32") -> float:
        """Microseconds of the model with all layers in a precision, where they have it, else in float32."""
        return sum(t.get(precision, t.get("float32", 0.0)) for t in self.times.values())

    def as_dict(self) -> dict[str, Any]:
        """The form of the file."""
        layers = {
            layer: {"name": self.nodes[layer][0], "operator": self.nodes[layer][1], "microseconds": times}
            for layer, times in self.times.items()
        }
        return {"evort_latency_profile": VERSION, "machine": self.machine, "inputs": self.inputs, "layers": layers}

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the file, whole or not at all. Raises OSError."""
        write_atomically(path, (json.dumps(self.as_dict(), indent=1) + "\n").encode())

    def require(self, layers: Iterable[str]) -> None:
        """Raises ValueError for layers that have not been measured in float32: the profile is another model's."""
        missing = [layer for layer in layers if "float32" not in self.times.get(layer, {})]
        if missing:
            raise ValueError(
                f"{self.source or 'the profile'}: there is nothing on layer {missing[0]!r} ({len(missing)} missing): "
                "it was measured with another model, or other passes; make one on the target with `evort profile "
                "MODEL --precisions -o FILE`"
            )


def read(path: str | os.PathLike[str]) -> Profile:
    """A profile from its file. Raises ValueError, with what is wrong, and OSError."""
    try:
        with open(path, "rb") as file:
            found = json.load(file)
    except ValueError as error:  # UnicodeDecodeError among them
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict) or found.get("evort_latency_profile") != VERSION:
        raise ValueError(f"{path}: not a latency profile of version {VERSION}, as `evort profile --precisions` writes")
    times: dict[str, Times] = {}
    nodes: dict[str, tuple[str, str]] = {}
    try:
        for layer, row in found["layers"].items():
            times[layer] = {str(p): float(us) for p, us in row["microseconds"].items()}
            nodes[layer] = str(row["name"]), str(row["operator"])
            if not all(math.isfinite(us) and us >= 0 for us in times[layer].values()):
                raise ValueError(f"layer {layer!r} has a time that is negative or not finite")
        return Profile(times, nodes, dict(found["machine"]), dict(found["inputs"]), os.fspath(path))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: a damaged latency profile ({type(error).__name__}: {error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def machine(threads: int) -> dict[str, Any]:
    """What times depend on."""
    return {"processor": platform.machine(), "isa": core.isa(), "threads": threads, "evort": __version__}


def measure(
    model: Model,
    found: Calibrated,
    feeds: Mapping[str, np.ndarray],
    threads: int | None = None,
    others: Mapping[str, Callable[[], Model]] | None = None,
    progress: Progress = silent,
    isas: Sequence[str] = (),
) -> Profile:
    """Times a model's layers in float32 and int8, and in other precisions, with each of the instruction sets (by
    default that in use): a layer's time is the mean of its shares of the float32 model's, in microseconds of the first.

    found: what calibration found; any ranges do, since times do not depend on them. feeds: the inputs of a run.
    others: {precision: what makes the model with all layers in it that have it}, whose nodes have the outputs of
    the float model's.
    """
    profiles = []
    for isa in isas or (core.isa(),):
        with selected(isa):
            profiles.append(_measure(model, found, feeds, threads or 1, others, progress))
    first = profiles[0]
    weights = [first.total() / (profile.total() or 1.0) for profile in profiles]
    for layer, times in first.times.items():
        for precision in times:
            found_times = [w * profile.times[layer][precision] for w, profile in zip(weights, profiles, strict=True)]
            times[precision] = round(sum(found_times) / len(profiles), 3)
    first.machine["isa"] = ", ".join(profile.machine["isa"] for profile in profiles)
    return first


@contextmanager
def selected(isa: str) -> Iterator[None]:
    """With another instruction set in use. Raises ValueError for one that this machine does not run."""
    own = core.isa()
    core.select_isa(isa)
    try:
        yield
    finally:
        core.select_isa(own)


def _measure(
    model: Model,
    found: Calibrated,
    feeds: Mapping[str, np.ndarray],
    threads: int,
    others: Mapping[str, Callable[[], Model]] | None,
    progress: Progress,
) -> Profile:
    """The times of `measure` with the instruction set in use."""

    def integer(floats: Mapping[str, str]) -> tuple[Model, set[str]]:
        made, left = integer_model(model, restricted(found, floats) if floats else found)
        layers = {n.outputs[0] for n in left.selection.nodes}
        return made, layers - {n.outputs[0] for n in made.graph.nodes if n.op in PRODUCTS and not n.domain}

    def other(make: Callable[[], Model]) -> tuple[Model, set[str]]:
        made = make()
        return made, changed(model.graph, made.graph)

    makers: dict[str, Callable[[], tuple[Model, set[str]]]] = {"float32": lambda: (model, set())}
    products = [n.outputs[0] for n in found.selection.nodes if n.op in PRODUCTS]
    if products:
        makers["int8"] = lambda: integer({})
    for half in (0, 1) if len(products) > 1 else ():
        makers[f"{BESIDE}/{half}"] = lambda half=half: integer(dict.fromkeys(products[half::2], ""))
    makers |= {name: lambda make=make: other(make) for name, make in (others or {}).items()}
    step = progress("measuring layers", len(makers))
    layers_of: dict[str, set[str]] = {}
    best: dict[str, Times] = {}
    waiting: dict[str, Session] = {}
    for name, make in makers.items():
        made, layers_of[name] = make()
        waiting[name] = Session(made, threads=threads)
        if total_bytes(model.graph) > _LARGE:
            best |= _run(model.graph, waiting, feeds, _SECONDS / len(makers))
            waiting = {}
        step()
    best |= _run(model.graph, waiting, feeds, _SECONDS)
    times: dict[str, Times] = {}
    for node in model.graph.nodes:
        layer = node.outputs[0]
        times[layer] = {"float32": best["float32"].get(layer, 0.0)}
        for name, layers in layers_of.items():
            if layer in layers:
                times[layer][name.partition("/")[0]] = best[name].get(layer, 0.0)
    return Profile(
        {layer: {p: round(us, 3) for p, us in row.items()} for layer, row in times.items()},
        {node.outputs[0]: (node.label(), node.op) for node in model.graph.nodes},
        machine(threads),
        {name: list(np.shape(value)) for name, value in feeds.items()},
    )


def both(
    first: Model, second: Model, feeds: Mapping[str, Any], threads: int | None = None, isas: Sequence[str] = ()
) -> dict[str, tuple[float, float]]:
    """{layer: microseconds in the first model, in the second}, of layers that both run, those of branches too; with the
    instruction set (by default that in use) with which the second takes longest beside the first."""
    found: dict[str, tuple[float, float]] = {}
    models, large = {"1": first, "2": second}, total_bytes(first.graph) > _LARGE
    for isa in isas or (core.isa(),):
        with selected(isa):
            best: dict[str, Times] = {}
            for turn in (("1",), ("2",)) if large else (("1", "2"),):
                sessions = {name: Session(models[name], threads=threads or 1) for name in turn}
                best |= _run(first.graph, sessions, feeds, _SECONDS / 2 * len(turn), nested=True)
                del sessions
        for layer in best["1"].keys() & best["2"].keys():
            pair = best["1"][layer], best["2"][layer]
            old = found.get(layer, (1.0, 0.0))
            found[layer] = pair if pair[1] * old[0] > old[1] * pair[0] else old
    return found


def ratio(
    first: Model, second: Model, feeds: Mapping[str, Any], threads: int | None = None, isas: Sequence[str] = ()
) -> float:
    """How much longer the second model takes than the first, at most, with any of the instruction sets (by default with
    that in use)."""
    found = []
    for isa in isas or (core.isa(),):
        with selected(isa):
            found.append(_ratio(first, second, feeds, threads))
    return max(found)


def _ratio(first: Model, second: Model, feeds: Mapping[str, Any], threads: int | None) -> float:
    """The ratio of the shortest runs, in turns."""
    best = [math.inf, math.inf]
    large = total_bytes(first.graph) > _LARGE
    for turn in ((0,), (1,)) if large else ((0, 1),):
        sessions = {i: Session((first, second)[i], threads=threads or 1) for i in turn}
        for session in sessions.values():
            session.run(dict(feeds))
        begin = time.perf_counter()
        for count in range(100 * _MOST):
            for i, session in sessions.items():
                start = time.perf_counter_ns()
                session.run(dict(feeds))
                best[i] = min(best[i], time.perf_counter_ns() - start)
            if _enough(count + 1, time.perf_counter() - begin, _SECONDS / 2):
                break
    return best[1] / best[0]


def changed(before: Graph, after: Graph) -> set[str]:
    """The first outputs of nodes that are other operators than in the float model, or read other constants; and of
    those in whose nested graphs there are such."""
    old = {node.outputs[0]: node for node in before.nodes}
    return {n.outputs[0] for n in after.nodes if n.outputs[0] in old and not _same(n, old[n.outputs[0]])}


def _same(a: Node, b: Node) -> bool:
    pairs = list(zip(a.subgraphs(), b.subgraphs(), strict=True))
    return (a.domain, a.op, a.inputs) == (b.domain, b.op, b.inputs) and all(
        len(x.nodes) == len(y.nodes) and all(map(_same, x.nodes, y.nodes)) for x, y in pairs
    )


def _owners(graph: Graph, nested: bool, prefix: str = "") -> dict[str, str]:
    """{name of a node or of what it writes, as a plan has it: its layer}. What a node is expanded to while planning is
    named after the node; so are the nodes of an If's branch, which are layers of their own where `nested`."""
    owner: dict[str, str] = {}
    for node in graph.nodes:
        owner |= {prefix + name: node.outputs[0] for name in (node.name, *node.outputs) if name}
        for body in node.subgraphs() if nested else ():
            owner |= _owners(body, True, f"{prefix}{node.name or node.outputs[0]}/")
    return owner


def _run(
    graph: Graph, sessions: Mapping[str, Session], feeds: Mapping[str, Any], seconds: float, nested: bool = False
) -> dict[str, Times]:
    """{variant: {layer of the float graph: its least microseconds}}; variants take turns. nested: as in `_owners`."""
    owner = _owners(graph, nested)
    best: dict[str, Times] = {name: {} for name in sessions}
    for session in sessions.values():
        session.run(dict(feeds))
    start = time.perf_counter()
    for count in range(_MOST if sessions else 0):
        for name, session in sessions.items():
            spent: Times = {}
            for plan, nanoseconds in session.profile(dict(feeds)):
                for at, step in enumerate(plan.steps):
                    layer = _layer(owner, step.call.node)
                    if layer is not None:
                        spent[layer] = spent.get(layer, 0.0) + float(nanoseconds[at]) / 1e3
            for layer, us in spent.items():
                best[name][layer] = min(us, best[name].get(layer, math.inf))
        if _enough(count + 1, time.perf_counter() - start, seconds):
            break
    return best


def _enough(runs: int, spent: float, seconds: float) -> bool:
    """Whether so many runs of each model, in so many seconds, tell their times."""
    return spent > (seconds if runs >= _FEWEST else _LONG * seconds) and runs >= _LEAST


def _layer(owner: Mapping[str, str], node: Node) -> str | None:
    """The layer of the float graph that a node's time counts for: that which it is named after, as a step that does a
    pool along with a product is. What casts and moved operators write is named after the tensor of that graph, with
    suffixes."""
    names = [node.name, *node.outputs]
    while any(names):
        for name in names:
            if name in owner:
                return owner[name]
        names = [name.rpartition("/")[0] for name in names]
    return None
