"""Static quantization of the branches of If nodes: each is a model of its own, calibrated on what runs bring to it.

A branch reads tensors of the graph around it. These become inputs, and their values in those calibration samples that
take the branch its calibration data. Bodies of Loop and Scan stay in float: what an iteration reads is nowhere to be
seen from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from evort.graph import Graph, Model, Node, Tensor
from evort.types import DType
from evort_tools.passes import graphs_of, names_of
from evort_tools.passes.edit import rename_free
from evort_tools.passes.shapes import Shapes
from evort_tools.quantization.capture import Capture
from evort_tools.quantization.data import Calibration, CalibrationError, open_calibration
from evort_tools.quantization.qdq import copy_graph, own_constants
from evort_tools.quantization.select import is_product

BRANCHES = {"then_branch": True, "else_branch": False}
NOT_TAKEN = "no calibration sample takes this branch"

Quantize = Callable[[Model, Calibration], Model]


def has_products(graph: Graph) -> bool:
    """Whether a graph, or a branch of an If in it, has products."""
    return any(is_product(node) for node in graph.nodes) or has_branches(graph)


def has_branches(graph: Graph) -> bool:
    """Whether a graph has branches with products in them."""
    ifs = [node for node in graph.nodes if node.op == "If" and not node.domain]
    return any(has_products(sub) for node in ifs for sub in node.subgraphs())


def fitting(graph: Graph, patterns: Collection[str], inside: bool) -> tuple[str, ...]:
    """Those of the excluded names that are for a graph: that fit something in it; of the outermost graph (not inside)
    also those that fit nothing at all, which is an error that is raised there."""
    fits = tuple(p for p in patterns if _fits(graph.nodes, p))
    nested = [node for g in graphs_of(graph) if g is not graph for node in g.nodes]
    return fits if inside else tuple(p for p in patterns if p in fits or not _fits(nested, p))


def _fits(nodes: Collection[Node], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for n in nodes for name in (n.name, n.op, *n.outputs) if name)


def quantized_branches(
    model: Model, data: Calibration, shapes: Shapes, quantize: Quantize, threads: int | None = None
) -> tuple[Model, dict[str, str]]:
    """A copy of a model whose branches are quantized, and {label of a product: why it stays in float} of branches that
    no sample takes.

    quantize: gives the quantized model of a branch, for a branch as a model and its calibration data. shapes: of the
    model's graph.
    """
    model = own_constants(model)
    taken = names_of(model.graph).taken
    kept: dict[str, str] = {}
    for node in model.graph.nodes:
        for key in BRANCHES if node.op == "If" and not node.domain else ():
            body = node.attrs[key]
            if not has_products(body):
                continue
            branch, reads = _as_model(body, model, shapes)
            samples = _Samples(model, node.inputs[0], BRANCHES[key], reads, threads)
            try:
                made = quantize(branch, open_calibration(lambda s=samples: s.of(data), branch.graph))
            except CalibrationError:
                if samples.seen:
                    raise
                kept |= {inner.label(): NOT_TAKEN for inner in body.nodes if is_product(inner)}
                continue
            node.attrs[key] = _as_body(made.graph, body, reads, taken)
    return model, kept


class _Samples:
    """What a branch reads, in the samples that take it. seen: whether any did."""

    def __init__(self, model: Model, condition: str, wanted: bool, reads: list[str], threads: int | None):
        self.condition = condition
        self.wanted = wanted
        self.reads = reads
        self.seen = False
        self._capture = Capture(model, [condition, *reads], threads)

    def of(self, data: Calibration) -> Iterator[Mapping[str, Any]]:
        for feeds in data:
            values = self._capture.run(feeds)
            if bool(np.asarray(values[self.condition]).reshape(-1)[0]) == self.wanted:
                self.seen = True
                yield {name: values[name] for name in self.reads}


def _as_model(body: Graph, model: Model, shapes: Shapes) -> tuple[Model, list[str]]:
    """A branch with what it reads as its inputs, and their names."""
    graph = copy_graph(body)
    reads = list(body.free_names())
    for name in reads:
        known = model.graph.tensors.get(name)
        rank = shapes.rank(name)
        open_shape = None if rank is None else tuple(f"{name}:{i}" for i in range(rank))
        shape = known.shape if known is not None and known.shape is not None else open_shape
        graph.add(Tensor(name, shapes.dtype(name) or DType.FLOAT, shape))
    graph.inputs = reads
    return Model(graph, dict(model.opsets), {}, model.producer, dict(model.bounds)), reads


def _as_body(graph: Graph, old: Graph, reads: list[str], taken: set[str]) -> Graph:
    """A quantized branch in the place of the old one; what it names as the graph around it does gets another name."""
    own = {name for node in old.nodes for name in node.outputs} | set(old.tensors)
    for name in reads:
        del graph.tensors[name]
    graph.inputs = []
    made = {name for node in graph.nodes for name in node.outputs if name} | set(graph.tensors)
    names = names_of(graph)
    names.taken.update(taken)
    for name in sorted((made - own) & taken):
        _rename(graph, name, names.fresh(name))
    return graph


def _rename(graph: Graph, old: str, new: str) -> None:
    tensor = graph.tensors.pop(old, None)
    if tensor is not None:
        tensor.name = new
        graph.add(tensor)
    for node in graph.nodes:
        _rename_in(node, old, new)
    graph.outputs = [new if name == old else name for name in graph.outputs]


def _rename_in(node: Node, old: str, new: str) -> None:
    node.inputs = [new if name == old else name for name in node.inputs]
    node.outputs = [new if name == old else name for name in node.outputs]
    for sub in node.subgraphs():
        rename_free(sub, old, new)
