"""The precisions of a quantized model: what its file says of them, and the graph of each.

Level 0 is the graph as it is. Each other level makes tensors int16 (with a range HEADROOM times wider than what is
expected, so that a value far out of range is not cut off) and computes some layers in float32, from weights that the
file has for them. All other weights are the same arrays.

The metadata `adaptive` is JSON: {"noise": {tensor: noise/signal of the outputs that its int8 causes, ...},
"levels": [{"int16": [tensor, ...], "float": {output of a layer: its float32 weights}}, ...]}, level 1 first.
"""

from __future__ import annotations

import json
import math

import numpy as np

from evort.adaptive.tensors import Followed, biases
from evort.errors import EtmFormatError
from evort.graph import Graph, Model, Node, Tensor
from evort.types import STORAGE, DType, dtype_of

HEADROOM = 8.0
MOST_LEVELS = 8
# A step of int16 with that headroom, beside one of 8 bits, squared: how much less noise.
INT16_NOISE = (HEADROOM * 255 / 65535) ** 2


class Level:
    """int16, float: names of tensors that are int16, or float32 between layers. layers: {index of a node: name of its
    float32 weights}."""

    __slots__ = ("float", "int16", "layers")

    def __init__(self, int16: frozenset[str], layers: dict[int, str], float: frozenset[str]):
        self.int16, self.layers, self.float = int16, layers, float

    def bits(self, tensor: Followed) -> int:
        """Of a tensor's numbers: 8, 16 or 32."""
        return (
            32 if tensor.name in self.float else 16 if tensor.name in self.int16 or tensor.dtype == DType.INT16 else 8
        )


def read_levels(model: Model, tensors: list[Followed]) -> tuple[list[Level], np.ndarray]:
    """The levels of a model, 0 first, and the noise (see above) of each tensor, 0 where the file does not say.

    Raises EtmFormatError where the metadata do not fit the model.
    """
    graph = model.graph
    levels = [Level(frozenset(), {}, frozenset())]
    noise = np.zeros(len(tensors))
    text = model.metadata.get("adaptive")
    if text is None:
        return levels, noise
    known = {t.name: i for i, t in enumerate(tensors)}
    writer = {node.outputs[0]: i for i, node in enumerate(graph.nodes)}
    try:
        found = json.loads(text)
        for name, value in found.get("noise", {}).items():
            noise[known[name]] = float(value)
        if not (np.isfinite(noise).all() and (noise >= 0).all()):
            raise ValueError("noise must be finite and not negative")
        given = found["levels"]
        if len(given) > MOST_LEVELS:
            raise ValueError(f"{len(given)} levels; at most {MOST_LEVELS}")
        for row in given:
            int16 = frozenset(tensors[known[name]].name for name in row.get("int16", ()))
            layers = {writer[name]: str(weights) for name, weights in row.get("float", {}).items()}
            for i, weights in layers.items():
                _check_layer(graph, i, weights)
            levels.append(Level(int16, layers, frozenset(_float_tensors(graph, tensors, layers))))
    except KeyError as error:
        raise EtmFormatError(f"metadata 'adaptive' names {error}, which this model does not have") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise EtmFormatError(f"metadata 'adaptive' is damaged: {error}") from None
    return levels, noise


def _check_layer(graph: Graph, i: int, weights: str) -> None:
    node = graph.nodes[i]
    w, plain = graph.constant(weights), graph.constant(node.inputs[3]) if len(node.inputs) > 3 else None
    if node.op not in ("QLinearConv", "QLinearMatMul") or len(node.inputs) > 9:
        raise ValueError(f"{node.label()} has no float form")
    if w is None or plain is None or w.shape != plain.shape or w.dtype != np.float32:
        raise ValueError(f"{weights!r} are no float32 weights of {node.label()}")


def _float_tensors(graph: Graph, tensors: list[Followed], layers: dict[int, str]) -> set[str]:
    """The tensors that float layers read and write. Raises ValueError where one would need a cast of its own."""
    found = set()
    for t in tensors:
        if any(use.node in layers and use.operand in (0, -1) for use in t.uses):
            found.add(t.name)
            for use in t.uses:
                if graph.nodes[use.node].op in ("QuantizeLinear", "DequantizeLinear"):
                    raise ValueError(f"{graph.nodes[use.node].label()} casts {t.name!r}")
    reached = {t.name for t in tensors for use in t.uses if use.node in layers and use.operand == 0}
    for i in layers:
        x = graph.nodes[i].inputs[0]
        if not any(x in t.names and t.name in reached for t in tensors) and graph.tensors.get(x) is None:
            raise ValueError(f"what {graph.nodes[i].label()} reads cannot be float32")
    return found


def scale_names(tensor: Followed) -> tuple[str, str]:
    """The names of a followed tensor's own scale and zero point."""
    return f"{tensor.name}/adaptive_scale", f"{tensor.name}/adaptive_zero_point"


def bias_name(node: Node) -> str:
    """The name of a product's own bias."""
    return f"{node.outputs[0]}/adaptive_bias"


def rescaled(bias: np.ndarray, factor: float) -> np.ndarray:
    """An int32 bias in other units; what does not fit is cut off (see `least_scale`)."""
    limit = (1 << 31) - 1
    return np.clip(np.rint(bias.astype(np.float64) * factor), -limit, limit).astype(np.int32)


def encoding(tensor: Followed, bits: int, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of a tensor for real values from low to high, at so many bits."""
    from evort.quant import qparams

    if bits == 8:
        if tensor.dtype != DType.INT16:
            return qparams(low, high, tensor.dtype, tensor.symmetric)
        bits = 16
    return qparams(HEADROOM * low, HEADROOM * high, DType.INT16, True)


def graph_of(graph: Graph, tensors: list[Followed], level: Level) -> Graph:
    """A level's graph: nodes of its own, each followed tensor with scale and zero point of its own (for the range that
    the file gives it), the biases in units of those, the constants of `graph` otherwise."""
    new = Graph(graph.name)
    new.inputs, new.outputs = list(graph.inputs), list(graph.outputs)
    new.tensors = dict(graph.tensors)
    new.nodes = [Node(n.op, list(n.inputs), list(n.outputs), n.attrs, n.domain, n.name) for n in graph.nodes]
    for t in tensors:
        bits = level.bits(t)
        names = scale_names(t)
        same = (np.float32(t.scale), np.asarray(t.zero, STORAGE[t.dtype]))
        values = same if bits == 8 else encoding(t, bits, *t.range())
        for name, value in zip(names, values, strict=True):
            value = np.array(value)
            new.tensors[name] = Tensor(name, dtype_of(value), value.shape, value)
        for use in t.uses:
            node = new.nodes[use.node]
            writes_float = bits == 32 and use.operand == -1
            node.inputs[use.scale], node.inputs[use.zero] = ("", "") if writes_float else names
        if bits != 8 and t.writer >= 0 and t.bounds[0] == 0:
            # The lower end of the 8 bits may have stood for a Relu.
            writer = new.nodes[t.writer]
            if not writer.attrs.get("activation"):
                writer.attrs = {**writer.attrs, "activation": "Relu"}
        if bits != 8:
            for name in t.names:  # the declared types no longer hold
                if name not in graph.inputs and name in new.tensors and name not in graph.outputs:
                    del new.tensors[name]
    for i, index, about in biases(graph, tensors):
        if i not in level.layers:
            old = graph.constant(graph.nodes[i].inputs[index])
            factor = 1.0
            for k in about:
                factor *= tensors[k].scale / float(new.constant(scale_names(tensors[k])[0]))
            name = bias_name(graph.nodes[i])
            new.tensors[name] = Tensor(name, DType.INT32, old.shape, rescaled(old, factor))
            new.nodes[i].inputs[index] = name
    for i, weights in level.layers.items():
        _make_float(graph, new, i, weights)
    for node in new.nodes:
        while node.inputs and not node.inputs[-1]:
            node.inputs.pop()
    return new


def _make_float(graph: Graph, new: Graph, i: int, weights: str) -> None:
    """A product in float32: the bias, in units of the scales of the file, becomes real."""
    old, node = graph.nodes[i], new.nodes[i]
    inputs = [old.inputs[0], weights]
    if len(old.inputs) > 8 and old.inputs[8]:
        unit = graph.constant(old.inputs[1]).astype(np.float64).reshape(()) * graph.constant(old.inputs[4])
        bias = np.asarray(graph.constant(old.inputs[8]) * unit, np.float32)
        name = bias_name(old)
        new.tensors[name] = Tensor(name, DType.FLOAT, bias.shape, bias)
        inputs.append(name)
    node.inputs = inputs
    node.domain = ""
    node.op = "Conv" if old.op == "QLinearConv" else "Gemm"
    node.attrs = {k: v for k, v in node.attrs.items() if k != "presum"}


def noise_of(tensors: list[Followed], level: Level, noise: np.ndarray) -> np.ndarray:
    """The noise that each tensor causes at a level, where its range is as wide as its values."""
    factor = {8: 1.0, 16: INT16_NOISE, 32: 0.0}
    return np.array([n * factor[level.bits(t)] for t, n in zip(tensors, noise, strict=True)])


def least_scale(tensor: Followed, bias: np.ndarray) -> float:
    """The smallest scale at which a bias in units of it still fits, half of int32 being for the sums."""
    most = float(np.abs(bias.astype(np.float64)).max(initial=0.0))
    return tensor.scale * most / float(1 << 30) if math.isfinite(most) else 0.0
