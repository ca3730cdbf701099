"""Embeddings and recurrent layers beside the static scheme's integers: they have the dynamic scheme's form.

An embedding's rows are widened as they are gathered. An LSTM or GRU goes through its own state again and again, whose
range is best seen as it runs. Both read and give float32, so calibration has nothing to say about them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from fnmatch import fnmatchcase

import numpy as np

from evort.graph import Graph, Model, Node
from evort.types import DType
from evort_tools.quantization.dynamic import DynamicOptions, dynamic
from evort_tools.quantization.metric import Goal
from evort_tools.quantization.placement import Costs, faster_alone

BY_RANGE = frozenset({"Gather", "LSTM", "GRU"})
UNDONE = "the model would lose more than it may"


def is_by_range(node: Node) -> bool:
    """Whether a node is an embedding or a recurrent layer, as far as its operator tells."""
    return node.op in BY_RANGE and not node.domain


def layers_by_range(graph: Graph) -> list[Node]:
    """The embeddings and recurrent layers of a graph, nested ones left out: their weights are constants, and finite."""

    def fits(name: str) -> bool:
        tensor = graph.tensors.get(name)
        floats = tensor is not None and tensor.data is not None and tensor.dtype == DType.FLOAT
        return floats and bool(np.isfinite(tensor.data).all())

    nodes = [node for node in graph.nodes if is_by_range(node)]
    return [n for n in nodes if all(map(fits, n.inputs[:1] if n.op == "Gather" else n.inputs[1:3]))]


def in_integers(model: Model, skip: Callable[[str], bool] | None = None) -> Model:
    """A copy of a model with 8-bit weights in all layers of this kind that have such a form; skip: names to leave."""
    known = {node.name or node.outputs[0] for node in layers_by_range(model.graph)}
    options = DynamicOptions(skip=lambda n: n not in known or (skip is not None and skip(n)), operators=BY_RANGE)
    return dynamic(model, options, nested=False)


def converted(
    model: Model, exclude: Collection[str], costs: Costs | None, goal: Goal | None
) -> tuple[Model, list[dict[str, object]], dict[str, str]]:
    """A model whose layers of this kind are integers; what changed ({name, operator} of each), and {label: why} of what
    stays in float.

    exclude: names and patterns of nodes that are left alone. costs: where they are given, what is slower so stays in
    float. goal: what the model made must hold, where there is one; else all stay in float.
    """
    kept: dict[str, str] = {}
    skipped: set[str] = set()
    layers = layers_by_range(model.graph)
    for node in layers:
        why = "" if costs is None else faster_alone(costs, node)
        if any(fnmatchcase(text, p) for p in exclude for text in (node.name, node.op, *node.outputs) if text):
            why = "excluded"
        if why:
            kept[node.label()] = why
            skipped.add(node.name or node.outputs[0])
    made = in_integers(model, skipped.__contains__)
    left = _unchanged(layers, made)
    changed = [node for node in layers if id(node) not in left]
    if changed and goal is not None and not goal.holds(goal.loss(made)):
        return model, [], {**kept, **{node.label(): UNDONE for node in changed}}
    kept |= {n.label(): "it has no integer form" for n in layers if id(n) in left and n.label() not in kept}
    return made, [{"name": n.name or n.outputs[0], "operator": n.op} for n in changed], kept


def _unchanged(layers: list[Node], made: Model) -> set[int]:
    now = {tuple(node.outputs): node.op for node in made.graph.nodes}
    return {id(node) for node in layers if now[tuple(node.outputs)] == node.op}
