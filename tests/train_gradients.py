"""Gradients of one node, three ways: central differences and the gradient graph in float64 by the references, and the
gradient graph in float32 by the compiled drivers."""

from __future__ import annotations

from typing import Any

import numpy as np
from support import node_model

from evort._kernels import core
from evort.backends.reference import interpret
from evort.graph import Graph, Model, Tensor
from evort.session import Session
from evort.train import differentiate, trace
from evort.train.autodiff import needed_nodes
from evort.types import Spec, dtype_of


def gradient_model(
    op: str, inputs: list[Any], attrs: dict | None, wrt: list[int], outputs: int, domain: str, weights:
    list[np.ndarray], constants: tuple[int, ...], checkpoint: Any = None,
) -> tuple[Model, dict[str, np.ndarray]]:  # fmt: skip
    """A model that gives the loss sum(output * weights), and its gradients with respect to inputs `wrt`; its feeds."""
    source = node_model(op, inputs, attrs, outputs, domain, constants).graph
    feeds = {f"in{i}": x for i, x in enumerate(inputs) if x is not None and i not in constants}
    g = trace(source, {n: Spec(dtype_of(x), x.shape) for n, x in feeds.items()})
    terms = [
        g.emit("ReduceSum", [g.mul(name, g.constant(w.astype(inputs[wrt[0]].dtype)))], {"keepdims": 0})
        for name, w in zip(source.outputs, weights, strict=False)
    ]
    loss = g.total(terms)
    names = [f"in{i}" for i in wrt]
    found = differentiate(g, loss, names, checkpoint)
    graph = Graph("gradients")
    graph.outputs = [loss, *(found[n] for n in names)]
    graph.nodes = needed_nodes(g.nodes, graph.outputs)
    for name, x in feeds.items():
        graph.inputs.append(graph.add(Tensor(name, dtype_of(x), x.shape)))
    for name, value in g.constants.items():
        graph.add(Tensor(name, g.specs[name].dtype, value.shape, value))
    return Model(graph), feeds


def check(
    op: str, inputs: list[Any], attrs: dict | None = None, wrt: list[int] | None = None, outputs: int = 1,
    domain: str = "", constants: tuple[int, ...] = (), rtol: float = 2e-4, single: bool = True, drivers: bool = True,
    watched: int | None = None,
) -> None:  # fmt: skip
    """Central differences with step h = 1e-5 of a smooth function of size 1 are right to about h^2 + eps/h = 1e-10 +
    2e-11; 1e-6 of the largest gradient leaves room for curvature. float32 is held to rtol of it. watched: how many
    outputs are differentiated, all where None."""
    wrt = [i for i, x in enumerate(inputs) if x is not None and x.dtype == np.float64] if wrt is None else wrt
    rng = np.random.default_rng(7)
    source = node_model(op, inputs, attrs, outputs, domain, constants).graph
    all_feeds = {f"in{i}": x for i, x in enumerate(inputs) if x is not None and i not in constants}
    results = interpret(source, all_feeds)[: watched or outputs]
    weights = [rng.normal(size=np.shape(y)) for y in results]
    model, feeds = gradient_model(op, inputs, attrs, wrt, outputs, domain, weights, constants)
    got = interpret(model.graph, feeds)[1:]

    def loss(at: dict[str, np.ndarray]) -> float:
        return sum(float(np.sum(y * w)) for y, w in zip(interpret(source, at), weights, strict=False))

    h = 1e-5
    for number, i in enumerate(wrt):
        x = inputs[i]
        assert got[number].shape == x.shape
        some = rng.permutation(x.size)[:40]
        expected = np.zeros(len(some))
        for k, at in enumerate(some):
            for sign in (1, -1):
                moved = x.copy()
                moved.reshape(-1)[at] += sign * h
                expected[k] += sign * loss({**feeds, f"in{i}": moved}) / (2 * h)
        scale = max(1.0, np.abs(got[number]).max(initial=0))
        np.testing.assert_allclose(
            got[number].reshape(-1)[some], expected, atol=1e-6 * scale, rtol=0, err_msg=f"input {i}"
        )
    if single:
        check_single(op, inputs, attrs, wrt, outputs, domain, weights, constants, got, rtol, drivers)


def check_single(op, inputs, attrs, wrt, outputs, domain, weights, constants, expected, rtol, drivers) -> None:
    """The same graph in float32 by compiled drivers, on each instruction set, with one thread and two."""
    narrow = [x.astype(np.float32) if x is not None and x.dtype == np.float64 else x for x in inputs]
    model, feeds = gradient_model(op, narrow, attrs, wrt, outputs, domain, weights, constants)
    try:
        for isa in core.available_isas():
            core.select_isa(isa)
            for threads in (1, 2):
                session = Session(model, threads=threads)
                results = session.run(feeds)
                if drivers:
                    used = {s.driver: s.call.node.op for plan in session.plans() for s in plan.steps}
                    assert "numpy" not in used, used["numpy"]
                for name, want in zip(model.graph.outputs[1:], expected, strict=True):
                    scale = max(1.0, np.abs(want).max(initial=0))
                    np.testing.assert_allclose(results[name], want, atol=rtol * scale, rtol=0, err_msg=f"{isa} {name}")
    finally:
        core.select_isa()
