"""Graph passes, in the order in which they run. Each is a module with

    run(graph, ctx) -> int      changes `graph` in place and returns how many changes it made

and a docstring whose first line says what it does. `run_passes` applies them to a model and all its nested graphs,
until none of them changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from importlib import import_module

from evort.graph import Graph, Model
from evort_tools.importer.builder import Names
from evort_tools.passes.edit import Context
from evort_tools.passes.fitting import shapes_of
from evort_tools.passes.shapes import Shapes

# The name of a pass is that of its module. Simplifying ones come first; those that fuse operators into their producers
# come last, because what they make is no pattern for others any more.
ORDER = (
    "dead_code",
    "branches",
    "constants",
    "identities",
    "shape_arithmetic",
    "common",
    "lookups",
    "normalizations",
    "attention",
    "activations",
    "transposes",
    "upsampling",
    "strides",
    "pads",
    "scales",
    "factors",
    "spreads",
    "products",
    "residuals",
    "affines",
    "epilogues",
    "integers",
    "attributes",
    "duplicates",
)
# These hide patterns from the others, so they wait until the others are done; those on integers, and what shortens the
# file, to the very end.
FUSING = ("residuals", "affines", "epilogues")
LAST = ("integers", "attributes")
MAX_ROUNDS = 24

Run = Callable[[Graph, Context], int]


def passes() -> dict[str, tuple[Run, str]]:
    """The passes by name, in order, each with what it does in a line."""
    found = {}
    for name in ORDER:
        module = import_module(f"evort_tools.passes.{name}")
        found[name] = (module.run, (module.__doc__ or "").strip().splitlines()[0])
    return found


def run_passes(
    model: Model, shapes: Shapes, disabled: Collection[str] = (), fold_limit: int = 1 << 20
) -> list[tuple[str, int]]:
    """Runs all passes but those `disabled`, round after round, until a round changes nothing.

    Returns (pass, changes) for each that changed something. Raises ValueError for an unknown name in `disabled`.
    """
    available = passes()
    unknown = [name for name in disabled if name not in available]
    if unknown:
        raise ValueError(f"no pass is named {', '.join(map(repr, unknown))}; passes: {', '.join(available)}")
    ctx = Context(model.graph, shapes, names_of(model.graph), fold_limit)
    log: list[tuple[str, int]] = []
    ctx.fold_weights = "integers" in disabled
    for waiting in ((*FUSING, *LAST), LAST, ()):
        for _ in range(MAX_ROUNDS):
            before = len(log)
            for name, (run, _) in available.items():
                if name not in disabled and name not in waiting:
                    changes = sum(run(graph, ctx) for graph in graphs_of(model.graph))
                    if changes:
                        log.append((name, changes))
            if len(log) == before:
                break
    return log


def lower(model: Model) -> list[tuple[str, int]]:
    """Runs all passes over a graph that the quantizer has put QuantizeLinear and DequantizeLinear into; the last one
    (`integers`) makes integer operators of them. Changes the model in place; returns what `run_passes` does."""
    return run_passes(model, shapes_of(model.graph))


def graphs_of(graph: Graph) -> Iterator[Graph]:
    """A graph and all nested in it, the innermost first."""
    for node in list(graph.nodes):
        for sub in node.subgraphs():
            yield from graphs_of(sub)
    yield graph


def names_of(graph: Graph) -> Names:
    """All names in use."""
    names = Names()
    for g in graphs_of(graph):
        names.taken.update(g.tensors, g.inputs, g.outputs)
        for node in g.nodes:
            names.taken.update(node.inputs, node.outputs)
    return names


def node_count(graph: Graph) -> int:
    """Nodes of a graph and of all nested in it."""
    return sum(len(g.nodes) for g in graphs_of(graph))
