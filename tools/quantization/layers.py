"""How far a quantized model is from its float one: for each layer alone, and with the error of those before it.

    accumulated   the tensor in the quantized model against the same tensor in the float model
    alone         the layer quantized, fed with the float model's tensors: what this layer adds by itself

Both models run on evort's own kernels, sample by sample; sums are kept, not tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from evort.graph import Graph, Model, Node, Tensor
from evort.quant import limits
from evort.shadow import integer_tensors
from evort.types import BITS, DType
from evort_tools.passes import names_of
from evort_tools.passes.fitting import shapes_of
from evort_tools.quantization.capture import Capture
from evort_tools.quantization.compare import Error
from evort_tools.quantization.encodings import Encoding
from evort_tools.quantization.qdq import copy_graph

BINS = 256
MOST = 1 << 19  # elements of a tensor that are compared, evenly spread; extremes and what is cut off are those of all


class Layer:
    """One tensor that the quantized model computes, and the node that writes it.

    accumulated, alone: Error (alone is None where the layer has no integers). low, high: of the float values seen;
    clipped: share of them outside the encoding's range. histogram: counts in equal bins of [low, high] of the first
    sample, values outside in the outermost ones. bytes_before, bytes_after: of the node's constants.
    """

    __slots__ = (
        "accumulated",
        "after",
        "alone",
        "bytes_after",
        "bytes_before",
        "clipped",
        "edges",
        "encoding",
        "high",
        "histogram",
        "low",
        "name",
        "op",
        "seen",
    )  # fmt: skip

    def __init__(self, name: str, op: str, after: str, encoding: Encoding | None):
        self.name = name
        self.op = op
        self.after = after
        self.encoding = encoding
        self.accumulated = Error()
        self.alone: Error | None = None
        self.low, self.high = math.inf, -math.inf
        self.clipped = self.seen = 0
        self.bytes_before = self.bytes_after = 0
        self.histogram = np.zeros(BINS, np.int64)
        self.edges: tuple[float, float] | None = None

    def observe(self, real: np.ndarray) -> None:
        """Counts one sample's values: floats, or the integers and booleans of what is no layer to quantize."""
        if real.dtype.kind != "f":
            real = real.astype(np.float64)
        low, high = float(real.min(initial=math.inf)), float(real.max(initial=-math.inf))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.seen += real.size
        if self.encoding is not None:
            ends = self.encoding.range
            half = float(self.encoding.scale.max()) / 2  # what rounds to the end is not cut off
            outside = (real < ends[0].min() - half) | (real > ends[1].max() + half)
            self.clipped += int(np.count_nonzero(outside))
        if self.edges is None:
            self.edges = (low, high) if high > low else (low - 0.5, low + 0.5)
        self.histogram += np.histogram(np.clip(_thinned(real), *self.edges), BINS, self.edges)[0]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; an infinite ratio is None."""

        def finite(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            "name": self.name,
            "operator": self.op,
            "quantized_as": self.after,
            "sqnr": finite(self.accumulated.sqnr),
            "sqnr_alone": None if self.alone is None else finite(self.alone.sqnr),
            "cosine": self.accumulated.cosine,
            "low": finite(self.low),
            "high": finite(self.high),
            "clipped": self.clipped / self.seen if self.seen else 0.0,
            "encoding": None if self.encoding is None else self.encoding.as_dict(),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
        }


def compare(
    real: Model,
    quantized: Model,
    encodings: Mapping[str, Encoding],
    samples: Iterable[Mapping[str, np.ndarray]],
    threads: int | None = None,
    progress: Callable[[], None] | None = None,
    fitted: Graph | None = None,
) -> list[Layer]:
    """The layers of a quantized model, in order.

    real: the float model that it was made from, after its passes. encodings: those of its activations and weights.
    fitted: the same graph with the weights and biases that helpers have fitted to integers, where they did.
    """
    layers = _layers(real.graph, quantized.graph, encodings)
    # Layers whose weights alone are narrower have no encodings that tell what they add.
    reads = {n.outputs[0]: n.inputs for n in real.graph.nodes}
    integer = [
        n
        for n, layer in layers.items()
        if layer.after not in ("", layer.op) and (n in encodings or any(i in encodings for i in reads.get(n, ())))
    ]
    alone, twins = _isolated(real, encodings, integer, fitted or real.graph)
    twins |= _beside_floats(alone.graph, quantized.graph, [n for n in layers if n not in twins], encodings)
    for name in twins:
        layers[name].alone = Error()
    scales = dict(integer_tensors(quantized.graph))
    first = Capture(alone, [*layers, *twins.values()], threads)
    second = Capture(quantized, layers, threads)
    for feeds in samples:
        values: dict[str, np.ndarray] = {}
        for part in first.parts(feeds):
            for name in part.keys() & layers.keys():
                layers[name].observe(part[name])
            values |= {name: _thinned(value) for name, value in part.items()}
        for name in twins:
            layers[name].alone.add(values[name], values[twins[name]])
        for part in second.parts(feeds):
            for name, got in part.items():
                layers[name].accumulated.add(values[name], _real(got, scales.get(name)))
        if progress is not None:
            progress()
    return list(layers.values())


def _thinned(value: np.ndarray) -> np.ndarray:
    """Some of the elements of a large tensor."""
    if value.size <= MOST:
        return value
    step = -(-value.size // MOST) | 1  # odd, so that it goes through images of even width in all columns
    return value.reshape(-1)[::step].copy()


def _real(value: np.ndarray, about: tuple[float | np.ndarray, int, DType] | None) -> np.ndarray:
    """Some of the elements, as real numbers."""
    if value.dtype.kind not in "iu" or about is None:
        return _thinned(value)
    scale, zero, _ = about
    if np.ndim(scale):
        by_channel = np.float32(scale).reshape(-1, *(1,) * (value.ndim - 2))
        return _thinned((value.astype(np.float32) - zero) * by_channel)
    return (_thinned(value).astype(np.float32) - zero) * np.float32(scale)


def _layers(real: Graph, quantized: Graph, encodings: Mapping[str, Encoding]) -> dict[str, Layer]:
    """The float tensors that both models compute."""
    before = {name: node for node in real.nodes for name in node.outputs if name}
    found = {}
    for node in quantized.nodes:
        for name in node.outputs:
            origin = before.get(name)
            tensor = real.tensors.get(name)
            if origin is None or (tensor is not None and tensor.dtype != DType.FLOAT):
                continue
            layer = found[name] = Layer(name, origin.op, node.op, encodings.get(name))
            layer.bytes_before, layer.bytes_after = constant_bytes(real, origin), constant_bytes(quantized, node)
    return found


def constant_bytes(graph: Graph, node: Node) -> int:
    """Bytes of a node's constants as the file holds them."""
    total = 0
    for name in dict.fromkeys(node.inputs):
        tensor = graph.tensors.get(name)
        if tensor is not None and tensor.data is not None:
            total += (tensor.data.size * BITS.get(tensor.dtype, 64) + 7) // 8
    return total


def _isolated(
    real: Model, encodings: Mapping[str, Encoding], names: Iterable[str], fitted: Graph
) -> tuple[Model, dict[str, str]]:
    """The float model with a second version of each layer, which reads and gives rounded values, constants those of
    `fitted`: {layer: its output there}."""
    graph = copy_graph(real.graph)
    taken = names_of(graph)
    wanted = set(names)
    twins: dict[str, str] = {}
    rounded: dict[str, str] = {}
    copies: dict[str, str] = {}
    nodes: list[Node] = []
    fitted_nodes = {node.outputs[0]: node for node in fitted.nodes}

    def own(name: str) -> str:
        """A constant of the fitted graph, under a name of its own where it differs from the float graph's."""
        tensor = fitted.tensors.get(name)
        if tensor is None or tensor.data is None or tensor.data is graph.constant(name):
            return name
        if name not in copies:
            copies[name] = graph.add(Tensor(taken.fresh(f"{name}/fitted"), tensor.dtype, tensor.shape, tensor.data))
        return copies[name]

    def round_off(name: str) -> str:
        """The tensor after quantizing and dequantizing."""
        encoding = encodings.get(name)
        if encoding is None or name in rounded:
            return rounded.get(name, name)
        out = rounded[name] = taken.fresh(f"{name}/rounded")
        value = fitted.constant(name)
        if value is not None:
            data = encoding.fake(value)
            graph.add(Tensor(out, DType.FLOAT, data.shape, data))
            return out
        integer = taken.fresh(f"{name}/integer")
        scale = graph.add(Tensor(taken.fresh("scale"), DType.FLOAT, encoding.scale.shape, encoding.scale))
        zero = graph.add(Tensor(taken.fresh("zero"), encoding.dtype, encoding.zero_point.shape, encoding.zero_point))
        attrs = {} if encoding.axis is None else {"axis": encoding.axis}
        nodes.append(Node("QuantizeLinear", [name, scale, zero], [integer], dict(attrs)))
        nodes.append(Node("DequantizeLinear", [integer, scale, zero], [out], dict(attrs)))
        return out

    for node in graph.nodes:
        nodes.append(node)
        if len(node.outputs) != 1 or node.outputs[0] not in wanted:
            continue
        name = node.outputs[0]
        twin = taken.fresh(f"{name}/alone")
        given = fitted_nodes.get(name, node).inputs
        inputs = ["" if not n else round_off(n) if n in encodings else own(n) for n in given]
        nodes.append(Node(node.op, inputs, [twin], dict(node.attrs), node.domain, f"{node.name}/alone"))
        if name in encodings:
            encodings = {**encodings, twin: encodings[name]}
            twin = round_off(twin)
        twins[name] = twin
    graph.nodes = nodes
    return Model(graph, dict(real.opsets), dict(real.metadata), real.producer), twins


def _beside_floats(
    graph: Graph, quantized: Graph, names: Iterable[str], encodings: Mapping[str, Encoding]
) -> dict[str, str]:
    """Adds to the float graph those of these layers that have other operators than in it and read float tensors, as in
    the dynamic scheme: {layer: its output there}."""
    taken = names_of(graph)
    own = {o: node.op for node in graph.nodes for o in node.outputs}
    twins: dict[str, str] = {}
    wanted = set(names)
    others = [n for n in quantized.nodes if n.outputs[0] in wanted and own.get(n.outputs[0], n.op) != n.op]
    if not others:
        return twins
    before, after = shapes_of(graph), shapes_of(quantized)
    for node in others:
        name = node.outputs[0]
        if any(node.outputs[1:]):
            continue
        constants = {n: quantized.tensors[n] for n in node.inputs if n and quantized.constant(n) is not None}
        computed = [n for n in node.inputs if n and n not in constants]
        if any(n in encodings or (n not in own and n not in graph.inputs) for n in computed):
            continue
        if any(before.dtype(n) != after.dtype(n) for n in computed):  # integers that a Resize or Concat handed on
            continue
        renamed = {n: taken.fresh(f"{n}/alone") for n in constants}
        for n, tensor in constants.items():
            graph.add(Tensor(renamed[n], tensor.dtype, tensor.shape, tensor.data))
        twins[name] = taken.fresh(f"{name}/alone")
        inputs = [renamed.get(n, n) for n in node.inputs]
        graph.nodes.append(Node(node.op, inputs, [twins[name]], dict(node.attrs), node.domain))
    return twins


def integer_range(layer: Layer) -> tuple[float, float] | None:
    """The real numbers that a layer's integers reach; None for a float layer."""
    if layer.encoding is None:
        return None
    low, high = layer.encoding.range
    return float(low.min()), float(high.max())


def used_share(layer: Layer) -> float:
    """The share of the integer range that the values seen cover."""
    ends = integer_range(layer)
    if ends is None or not math.isfinite(layer.low):
        return 1.0
    low, high = limits(layer.encoding.dtype, layer.encoding.narrow)
    step = (ends[1] - ends[0]) / (high - low)
    return min(1.0, (min(layer.high, ends[1]) - max(layer.low, ends[0])) / max(ends[1] - ends[0], step))
