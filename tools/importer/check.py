"""Checks that a graph runs: operators, attributes, arities, element types and shapes, all problems at once."""

from __future__ import annotations

from collections.abc import Mapping

from evort.errors import EvortError
from evort.graph import Graph, Model
from evort.ops.base import check_arity, complete_attrs, find, lookup
from evort_tools.passes import graphs_of
from evort_tools.passes.shapes import Shapes


def unsound(model: Model, symbols: Mapping[str, list[int]] | None = None) -> list[str]:
    """All problems where one of them is with an operator that evort has, [] where all are operators that it lacks:
    passes rely on well-formed nodes, and may well remove others."""
    found = problems_of(model, symbols)
    lacking = 0
    for graph in graphs_of(model.graph):
        lacking += len({node.label() for node in graph.nodes if find(node.op, node.domain) is None})
    return found if len(found) > lacking else []


def problems_of(model: Model, symbols: Mapping[str, list[int]] | None = None) -> list[str]:
    """What would keep evort from running a model: a line for each node at fault, in order, without repetition.

    symbols: sizes to sample symbolic dimensions with, by name; the usual ones for those that are not given.
    """
    shapes = Shapes(dict(symbols or {}))
    shapes.graph(model.graph)
    found: dict[str, None] = {}
    _walk(model.graph, shapes, found)
    return list(found)


def _walk(graph: Graph, shapes: Shapes, found: dict[str, None]) -> None:
    for node in graph.nodes:
        try:
            definition = lookup(node)
            check_arity(definition, node)
            complete_attrs(definition, node)
        except EvortError as error:
            found[str(error)] = None
        else:
            error, certain = shapes.problems.get(id(node), (None, False))
            if certain:
                found[str(error)] = None
        for sub in node.subgraphs():
            _walk(sub, shapes, found)
