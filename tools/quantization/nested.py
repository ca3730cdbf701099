"""Static quantization of nested graphs: each is a model of its own, calibrated on what runs bring to it.

A branch of an If reads tensors of the graph around it. These become inputs, and their values in those calibration
samples that take the branch its calibration data. The body of a Loop or a Scan has inputs of its own, too: a copy of it
gives them on as scan outputs, so that each iteration is a sample.

What may be lost is of the whole model's outputs, also where a nested graph's layers are undone for it (`Inside`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from evort.errors import EvortError
from evort.graph import Graph, Model, Node, Tensor
from evort.types import DType
from evort_tools.passes import graphs_of, names_of
from evort_tools.passes.edit import rename_free
from evort_tools.passes.shapes import Shapes
from evort_tools.quantization.by_range import is_by_range, layers_by_range
from evort_tools.quantization.capture import Capture
from evort_tools.quantization.data import Calibration, CalibrationError, open_calibration
from evort_tools.quantization.metric import Goal
from evort_tools.quantization.qdq import copy_graph, copy_model, own_constants
from evort_tools.quantization.select import is_product
from evort_tools.quantization.stored import Place

BRANCHES = {"then_branch": True, "else_branch": False}
NESTED = {"If": tuple(BRANCHES), "Loop": ("body",), "Scan": ("body",)}
NOT_TAKEN = {"If": "no calibration sample takes this branch", "Loop": "no calibration sample runs this body",
             "Scan": "no calibration sample runs this body"}  # fmt: skip
_ITERATIONS = 32  # of a sample that are calibrated on, evenly spread

UNDONE = "the model would lose more than it may"
_SHARE = 0.5  # of what may be lost, for all nested graphs together

Quantize = Callable[[Model, Calibration, "Goal | None", Place], Model]


class Inside(Goal):
    """What a model may lose, as a nested graph sees it, whose quantized forms are put in the model's place for it.

    place: a model of the nested graph -> the whole model. share: the part of the limit that may be used."""

    def __init__(self, whole: Goal, place: Callable[[Model], Model], share: float = 1.0):
        self.whole = whole
        self.place = place
        self.metric = whole.metric
        self.base = whole.base
        self.limit = share * whole.limit

    def ratio(self, model: Model) -> float:
        return self.whole.ratio(self.place(model))

    def loss(self, model: Model) -> float:
        return self.whole.loss(self.place(model))


def has_layers(graph: Graph) -> bool:
    """Whether a graph, or one nested in it, has layers that the static scheme makes integers."""
    return any(is_product(node) or is_by_range(node) for node in graph.nodes) or has_nested(graph)


def has_nested(graph: Graph) -> bool:
    """Whether graphs with such layers are nested in a graph."""
    return any(has_layers(node.attrs[key]) for node in graph.nodes for key in _keys(node))


def _keys(node: Node) -> tuple[str, ...]:
    return () if node.domain else NESTED.get(node.op, ())


def fitting(graph: Graph, patterns: Collection[str], inside: bool) -> tuple[str, ...]:
    """Those of the excluded names that are for a graph: that fit something in it; of the outermost graph (not inside)
    also those that fit nothing at all, which is an error that is raised there."""
    own = tuple(p for p in patterns if fits(graph.nodes, p))
    nested = [node for g in graphs_of(graph) if g is not graph for node in g.nodes]
    return own if inside else tuple(p for p in patterns if p in own or not fits(nested, p))


def fits(nodes: Collection[Node], pattern: str) -> bool:
    """Whether a name or pattern fits one of these nodes, a tensor that it writes, or its operator."""
    return any(fnmatchcase(name, pattern) for n in nodes for name in (n.name, n.op, *n.outputs) if name)


def quantized_nested(
    model: Model,
    data: Calibration,
    shapes: Shapes,
    quantize: Quantize,
    threads: int | None = None,
    goal: Goal | None = None,
    unseen: Callable[[Model, str, Place], Model] | None = None,
) -> tuple[Model, dict[str, str]]:
    """A copy of a model whose nested graphs are quantized, and {label of a product: why it stays in float} of those
    that no sample runs, or with which the model would lose too much.

    quantize: gives the quantized model of a nested graph, for that as a model, its calibration data, its own view of
    the goal, and its place. shapes: of the model's graph. goal: of which the nested graphs together may use a half.
    unseen: gives the model that takes the place of one that no sample runs, and is told why; without it such a graph
    stays in float.
    """
    model = own_constants(model)
    taken = names_of(model.graph).taken
    kept: dict[str, str] = {}
    for node in model.graph.nodes:
        for key in _keys(node):
            body = node.attrs[key]
            if not has_layers(body):
                continue
            inner, reads = _as_model(body, model, shapes)

            def place(made: Model, at: Node = node, key: str = key, reads: list[str] = reads) -> Model:
                """The whole model with another form of this graph."""
                whole = copy_model(model)
                (twin,) = (n for n in whole.graph.nodes if n.outputs == at.outputs)
                twin.attrs[key] = _as_body(copy_graph(made.graph), at.attrs[key], reads, taken)
                return whole

            samples: _Samples | _Iterations
            if node.op == "If":
                samples = _Samples(model, node.inputs[0], BRANCHES[key], reads, threads)
            else:
                samples = _Iterations(model, node, reads, threads)
            try:
                inside = None if goal is None else Inside(goal, place, _SHARE)
                given = open_calibration(lambda s=samples: s.of(data), inner.graph)
                made = quantize(inner, given, inside, (node.outputs[0], key))
            except CalibrationError:
                if samples.seen:
                    raise
                why = samples.why or NOT_TAKEN[node.op]
                if unseen is not None:
                    node.attrs[key] = _as_body(unseen(inner, why, (node.outputs[0], key)).graph, body, reads, taken)
                else:
                    kept |= {n.label(): why for n in layers_of(body)}
                continue
            if inside is not None and not inside.holds(
                inside.loss(made)
            ):  # it alone would hold it, but not with others
                kept |= {n.label(): UNDONE for n in layers_of(body)}
                continue
            node.attrs[key] = _as_body(made.graph, body, reads, taken)
    return model, kept


def layers_of(body: Graph) -> list[Node]:
    """The layers of a graph that the static scheme makes integers."""
    return [*filter(is_product, body.nodes), *layers_by_range(body)]


class _Samples:
    """What a branch reads, in the samples that take it. seen: whether any did."""

    why = ""

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


class _Iterations:
    """What the body of a Loop or Scan reads in its iterations. seen: whether there were any; why: what else there was
    none for."""

    def __init__(self, model: Model, node: Node, reads: list[str], threads: int | None):
        copied = copy_model(model)
        graph = copied.graph
        names = names_of(graph)
        twin = next(n for n in graph.nodes if n.outputs == node.outputs and n.op == node.op)
        body = twin.attrs["body"]
        self.reads = reads
        self.seen = False
        self.why = ""
        self._inside: dict[str, str] = {}  # an input of the body, and what outside holds its values
        twin.outputs += [""] * (len(body.outputs) - (node.op == "Loop") - len(twin.outputs))
        for name in body.inputs:
            given = names.fresh(f"{name}/given")
            self._inside[name] = names.fresh(f"{name}/iterations")
            body.nodes.append(Node("Identity", [name], [given]))
            body.outputs.append(given)
            twin.outputs.append(self._inside[name])
        for key in ("scan_output_axes", "scan_output_directions"):
            if twin.attrs.get(key):
                twin.attrs[key] = [*twin.attrs[key], *(0 for _ in body.inputs)]
        self._capture = Capture(copied, [*self._inside.values(), *reads], threads)

    def of(self, data: Calibration) -> Iterator[Mapping[str, Any]]:
        for feeds in data:
            try:
                values = self._capture.run(feeds)
            except (EvortError, ValueError) as error:  # what is carried is a sequence, or grows
                self.why = f"what its iterations read cannot be told ({error})"
                return
            rows = {name: values[outside] for name, outside in self._inside.items()}
            count = len(next(iter(rows.values())))
            for i in np.unique(np.linspace(0, count - 1, min(count, _ITERATIONS)).astype(int)):
                self.seen = True
                yield {**{name: row[i] for name, row in rows.items()}, **{name: values[name] for name in self.reads}}


def _as_model(body: Graph, model: Model, shapes: Shapes) -> tuple[Model, list[str]]:
    """A nested graph with what it reads from the graph around it among its inputs, and the names of that."""
    graph = copy_graph(body)
    reads = list(body.free_names())
    for name in reads:
        known = model.graph.tensors.get(name)
        rank = shapes.rank(name)
        open_shape = None if rank is None else tuple(f"{name}:{i}" for i in range(rank))
        shape = known.shape if known is not None and known.shape is not None else open_shape
        graph.add(Tensor(name, shapes.dtype(name) or DType.FLOAT, shape))
    graph.inputs = [*body.inputs, *reads]
    return Model(graph, dict(model.opsets), {}, model.producer, dict(model.bounds)), reads


def _as_body(graph: Graph, old: Graph, reads: list[str], taken: set[str]) -> Graph:
    """A quantized nested graph in the place of the old one. What it names as the graph around it does is renamed."""
    own = {name for node in old.nodes for name in node.outputs} | set(old.tensors)
    for name in reads:
        del graph.tensors[name]
    graph.inputs = list(old.inputs)
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
