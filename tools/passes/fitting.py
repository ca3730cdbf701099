"""Finds sizes that a model takes, where it takes only some of those that it calls symbolic."""

from __future__ import annotations

from evort.graph import Graph
from evort_tools.passes.facts import SAMPLES
from evort_tools.passes.shapes import Shapes

# Sizes that models are made for: multiples of 8, usual image sides, 1.
_USUAL = (1, 48, 32, 64, 224, 96, 80, 128, 16, 24, 40, 112, 160, 192, 256, 320, 384, 416, 448, 480, 512, 640, 768, 1024,
          8, 28, 56, 72, 100, 120, 144, 299, 300, 336, 576, 608, 800, 1280)  # fmt: skip
# What is added to a size that works, sample by sample, to see which others do.
_NEIGHBOURS = (0, 0, 1, 0, 2, 8, -1, 0)
_FEW = (0, 1)  # samples that tell whether a size works at all


def shapes_of(graph: Graph) -> Shapes:
    """Inference for a graph of which nothing is known yet."""
    shapes = Shapes()
    shapes.graph(graph)
    return fitted(graph, shapes)


def fitted(graph: Graph, shapes: Shapes) -> Shapes:
    """Inference for a model, with sizes for which all its shape rules hold.

    Where the usual samples all fail, one symbol after the other is set to a size that models are made for. Around one
    that works, others are tried, so that what only holds for that very size is not taken for the rule; where none of
    them works, nothing is concluded from the symbol, since a quite different one may. Gives the facts
    of the first samples back where no size works: then shapes are unknown from the node on that refuses them.
    """
    if not shapes.refused():
        return shapes
    for size in _USUAL:
        for symbol in reversed(shapes.symbols):
            trial = Shapes({**shapes.symbols, symbol: [size] * SAMPLES})
            trial.live = _FEW
            if not _holds(graph, trial):
                continue
            sizes = {**shapes.symbols, symbol: [max(1, size + n) for n in _NEIGHBOURS]}
            around = Shapes(sizes)
            around.graph(graph)
            if len({sizes[symbol][k] for k in around.live}) < 2:
                # It may not be the only one that works.
                around = Shapes(sizes, [symbol])
                around.graph(graph)
            if not around.refused():
                return around
    return shapes


def _holds(graph: Graph, shapes: Shapes) -> bool:
    """Whether all rules hold; the walk ends at the first that does not."""
    plain = Graph(graph.name)
    plain.inputs, plain.tensors = graph.inputs, graph.tensors
    shapes.graph(plain)
    for node in graph.nodes:
        shapes.infer(node)
        if shapes.refused():
            return False
    return True
