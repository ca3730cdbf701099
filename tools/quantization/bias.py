"""Bias correction: what rounding the weights adds to a layer's output on average is taken off its bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), section 4.2, with
the expectation over calibration samples: a product W x + b with W' in place of W is off by E[(W' - W) x] in each
channel. Rounding errors of single weights cancel less than one would think: behind a ReLU x is positive, so that all of
a channel's errors add up with one sign.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from evort.graph import Graph, Model, Node, Tensor
from evort.session import Session
from evort.types import DType
from evort_tools.passes import names_of
from evort_tools.quantization.capture import Capture
from evort_tools.quantization.encodings import Encoding
from evort_tools.quantization.equalize import set_constant
from evort_tools.quantization.select import operand

BIAS = 2  # the operand
PART = 1 << 24  # bytes of weights whose rounding errors are held at once


def channel_axis(node: Node) -> int:
    """The axis of a product's output along which its bias lies."""
    return 1 if node.op in ("Conv", "ConvTranspose") else -1


def product_alone(model: Model, node: Node, weights: np.ndarray, threads: int | None = None) -> Session:
    """A session that computes W x for a product with other weights: without bias, residual and activation."""
    graph = Graph(node.name)
    x, w = node.inputs[:2]
    graph.add(Tensor(x, DType.FLOAT, None))
    graph.add(Tensor(w, DType.FLOAT, weights.shape, np.ascontiguousarray(weights, np.float32)))
    graph.inputs, graph.outputs = [x], [node.outputs[0]]
    attrs = {k: v for k, v in node.attrs.items() if not k.startswith("activation")}
    graph.nodes = [Node(node.op, [x, w], [node.outputs[0]], attrs, name=node.name)]
    return Session(Model(graph, model.opsets), threads=threads)


def corrections(
    model: Model,
    nodes: Iterable[Node],
    encodings: Mapping[str, Encoding],
    samples: Iterable[Mapping[str, np.ndarray]],
    threads: int | None = None,
    progress: Callable[[], None] | None = None,
    fitted: Graph | None = None,
) -> dict[str, np.ndarray]:
    """{output of a product: what to add to its bias, float64 [channels]}, for products whose weights are encoded.

    The samples run through the float model. fitted: the same graph with the weights that are encoded, where helpers
    have rounded them.
    """
    fitted = fitted or model.graph
    weights = {n: t for n, t in model.graph.tensors.items() if t.data is not None and n in encodings}
    chosen = [n for n in nodes if len(n.inputs) > 1 and n.inputs[1] in weights]
    samples = list(samples)
    found: dict[str, np.ndarray] = {}
    part: list[Node] = []
    size = 0
    for node in [*chosen, None]:
        more = 0 if node is None else weights[node.inputs[1]].data.nbytes
        if part and (node is None or size + more > PART):
            found.update(_part(model, fitted, part, encodings, samples, threads, progress))
            part, size = [], 0
        if node is not None:
            part.append(node)
            size += more
    return found


def _part(
    model: Model,
    fitted: Graph,
    chosen: Sequence[Node],
    encodings: Mapping[str, Encoding],
    samples: Sequence[Mapping[str, np.ndarray]],
    threads: int | None,
    progress: Callable[[], None] | None,
) -> dict[str, np.ndarray]:
    """The corrections of some layers, in one pass over the samples."""
    sessions: dict[str, Session] = {}
    for node in chosen:
        w, rounded = (graph.constant(node.inputs[1]) for graph in (model.graph, fitted))
        sessions[node.outputs[0]] = product_alone(model, node, encodings[node.inputs[1]].fake(rounded) - w, threads)
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    capture = Capture(model, [n.inputs[0] for n in chosen], threads)
    for feeds in samples:
        for part in capture.parts(feeds):
            for node in chosen:
                if node.inputs[0] not in part:
                    continue
                out = node.outputs[0]
                error = sessions[out].run({node.inputs[0]: part[node.inputs[0]]})[out]
                rows = np.moveaxis(error, channel_axis(node), -1)
                rows = rows.reshape(-1, rows.shape[-1])
                sums[out] = sums.get(out, 0.0) - rows.sum(axis=0, dtype=np.float64)
                counts[out] = counts.get(out, 0) + len(rows)
        if progress is not None:
            progress()
    found = {out: total / counts[out] for out, total in sums.items()}
    return {out: value for out, value in found.items() if np.isfinite(value).all()}


def add_to_biases(graph: Graph, changes: Mapping[str, np.ndarray]) -> None:
    """Adds to the biases of products, in place; changes: by the product's output. One without a bias gets one."""
    for node in graph.nodes:
        change = changes.get(node.outputs[0]) if node.outputs else None
        if change is None:
            continue
        if not operand(node, BIAS):
            name = names_of(graph).fresh(f"{node.outputs[0]}/bias")
            graph.add(Tensor(name, DType.FLOAT, (1,), np.zeros(1, np.float32)))
            node.inputs = [*node.inputs[:BIAS], *[""] * (BIAS - len(node.inputs)), name, *node.inputs[BIAS + 1 :]]
        old = graph.constant(node.inputs[BIAS])
        # Gemm's may be [1, channels], or have a row for each of the result's.
        set_constant(graph, node, BIAS, old.astype(np.float64).reshape(() if old.size == 1 else old.shape) + change)
