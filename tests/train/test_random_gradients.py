"""Gradients of whole random graphs: along a random direction they are what differences say, and compiled kernels in
float32 give what the references give in float64."""

from __future__ import annotations

import numpy as np
import pytest
from random_graphs import RandomGraph

from evort.backends.reference import interpret
from evort.graph import Graph, Model, Tensor
from evort.session import Session
from evort.train import differentiate, trace
from evort.train.autodiff import needed_nodes
from evort.types import STORAGE, DType, Spec
from evort_tools.convert import Options, convert_model
from evort_tools.quantization.qdq import copy_model

WEIGHTS = 4  # constants that gradients are taken to, besides x
STEPS = (1e-5, 1e-6, 1e-7)  # of differences: of a kink between two points the smallest is free


def in_type(model: Model, feeds: dict[str, np.ndarray], dtype: DType) -> tuple[Graph, dict[str, np.ndarray]]:
    """The graph with floats of a type, and what is fed as inputs."""
    graph = copy_model(model).graph
    scales = {name for node in graph.nodes if node.op == "Resize" for name in node.inputs[1:]}
    for name, tensor in list(graph.tensors.items()):
        if tensor.dtype == DType.FLOAT and name not in scales:
            data = None if tensor.data is None or name in feeds else tensor.data.astype(STORAGE[dtype])
            graph.tensors[name] = Tensor(name, dtype, tensor.shape, data)
    graph.inputs = list(feeds)
    return graph, {name: x.astype(STORAGE[dtype]) for name, x in feeds.items()}


def gradients(
    graph: Graph, feeds: dict[str, np.ndarray], weights: list[np.ndarray], dtype: DType, checkpoint: int | None
) -> tuple[Model, dict[str, str]]:
    """A model that gives the gradients of sum(output * weights), and their names by those of the feeds."""
    g = trace(graph, {name: Spec(dtype, x.shape) for name, x in feeds.items()})
    terms = [
        g.emit("ReduceSum", [g.mul(name, g.constant(w.astype(STORAGE[dtype])))], {"keepdims": 0})
        for name, w in zip(graph.outputs, weights, strict=True)
    ]
    found = differentiate(g, g.total(terms), list(feeds), checkpoint)
    made = Graph("gradients")
    made.outputs = list(dict.fromkeys(found.values()))
    made.nodes = needed_nodes(g.nodes, made.outputs)
    for name, x in feeds.items():
        made.inputs.append(made.add(Tensor(name, dtype, x.shape)))
    for name, value in g.constants.items():
        made.add(Tensor(name, g.specs[name].dtype, value.shape, value))
    return Model(made), found


def loss(
    graph: Graph, at: dict[str, np.ndarray], way: dict[str, np.ndarray], weights: list[np.ndarray], h: float
) -> float:
    """sum(output * weights), h along `way` from the inputs `at`."""
    outputs = interpret(graph, {name: x + h * way[name] for name, x in at.items()})
    return sum(float(np.sum(y * w)) for y, w in zip(outputs, weights, strict=True))


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_along_a_random_direction(first):
    compared = 0
    for seed in range(first, first + 25):
        source = RandomGraph(seed)
        if not source.outputs:
            continue
        # Activations that are fused are taken apart by evort.train.prepare, and not here.
        model = convert_model(source.model, Options(disable=["epilogues"]))
        read = dict.fromkeys(name for node in model.graph.nodes if node.op != "Resize" for name in node.inputs)
        values = {n: model.graph.constant(n) for n in read if n}
        chosen = [n for n, v in values.items() if v is not None and v.dtype == np.float32 and v.size > 1][:WEIGHTS]
        feeds = {**source.input(), **{n: values[n] for n in chosen}}
        graph, exact = in_type(model, feeds, DType.DOUBLE)
        results = interpret(graph, exact)
        rng = np.random.default_rng(seed)
        weights = [rng.normal(size=np.shape(y)) for y in results]
        checkpoint = None if seed % 3 else 2
        made, found = gradients(graph, exact, weights, DType.DOUBLE, checkpoint)
        got = dict(zip(made.graph.outputs, interpret(made.graph, exact), strict=True))
        way = {name: rng.normal(size=x.shape) for name, x in exact.items()}
        slope = sum(float(np.sum(got[found[name]] * way[name])) for name in found)

        differences = [
            (loss(graph, exact, way, weights, h) - loss(graph, exact, way, weights, -h)) / (2 * h) for h in STEPS
        ]
        scale = max(1e-2, abs(slope), *map(abs, differences))
        assert min(abs(d - slope) for d in differences) <= 1e-4 * scale, seed
        graph, single = in_type(model, feeds, DType.FLOAT)
        made, found = gradients(graph, single, weights, DType.FLOAT, checkpoint)
        for name, x in Session(made).run(single).items():
            want = got.get(name)
            if want is not None:
                assert np.abs(x - want).max(initial=0) <= 1e-3 * max(1e-2, np.abs(want).max(initial=0)), (seed, name)
                compared += 1
    assert compared > 25
