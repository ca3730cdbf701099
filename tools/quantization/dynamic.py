"""The dynamic scheme: integer weights, activations quantized by the range that they turn out to have. Needs no data.

    model = dynamic(model, DynamicOptions(bits=8))

    MatMul, Gemm    DynamicQuantizeMatMul      weights int8, one scale for each column; with 16 bits int16, and then
    Conv            DynamicQuantizeConv        activations stay as they are: the weights are widened as they are used
    ConvTranspose   DynamicQuantizeConvTranspose                                (8 bits)
    LSTM, GRU       DynamicQuantizeLSTM, DynamicQuantizeGRU                     (8 bits)
    Gather          GatherBlockQuantized, one scale for each row of the table   (8 bits)
    Attention       DynamicQuantizeAttention, both products in integers         (8 bits)

Left in float, as it cannot pay there:
- a layer of fewer than MIN_CHANNELS output channels, and a depthwise convolution: each number of the activation takes
  part in that few products, which cost no more than finding the range and quantizing it;
- a product of two activations that is not part of an Attention: both sides would be quantized on each run; and an
  Attention of heads of fewer than MIN_HEAD numbers, or whose scores are an output of their own. At run time it is in
  float where there are fewer than MIN_QUERIES queries for a head of keys;
- RNN, and layers that have no integer form: an activation PRelu, other functions than the default ones
  in LSTM and GRU, weights that are no constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import numpy as np

from evort.graph import Graph, Model, Node
from evort.quant import qparams, quantize
from evort.types import STORAGE, DType
from evort_tools.passes.fitting import shapes_of
from evort_tools.passes.shapes import Shapes
from evort_tools.quantization.weighted import Layer, node_like, rewrite
from evort_tools.quantization.weights import WeightOptions, blocks, replaced, round_to_nearest, snr

MIN_CHANNELS = 8
MIN_HEAD = 32
MIN_QUERIES = 64
_GATES = {"LSTM": (4, 8, ["sigmoid", "tanh", "tanh"]), "GRU": (3, 6, ["sigmoid", "tanh"])}


class DynamicOptions:
    """bits: of the weights, 8 or 16. symmetric: int8 with zero point 0; else uint8 with a zero point for each channel.
    activations: bits of activations beside weights of 8 bits, 8 or 16. skip: names of layers to leave. operators: those
    to change (None: all that there are). attention: "on" for integers in every Attention, "off" for none, "auto" for
    those where they pay."""

    def __init__(
        self,
        bits: int = 8,
        symmetric: bool = True,
        activations: int = 8,
        skip: Callable[[str], bool] | None = None,
        operators: Collection[str] | None = None,
        attention: str = "auto",
    ):
        if bits not in (8, 16) or activations not in (8, 16):
            raise ValueError(f"bits must be 8 or 16, not {bits} for weights and {activations} for activations")
        self.bits = bits
        self.symmetric = symmetric
        self.activations = activations
        self.skip = skip or (lambda name: False)
        self.operators = operators
        self.attention = attention

    def takes(self, node: Node) -> bool:
        """Whether a node may be changed."""
        return (self.operators is None or node.op in self.operators) and not self.skip(node.name or node.outputs[0])


def quantize_channels(rows: np.ndarray, options: DynamicOptions) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Weights [n, k] as (integers [n, k], scales [n], zero points [n] or None). Raises ValueError for weights that are
    not finite."""
    if not np.isfinite(rows).all():
        raise ValueError("weights hold NaN or infinity")
    symmetric = options.symmetric or options.bits == 16
    dtype = DType.INT16 if options.bits == 16 else DType.INT8 if symmetric else DType.UINT8
    scale, zero = qparams(rows.min(1), rows.max(1), dtype, symmetric, narrow=True)
    q = np.empty(rows.shape, STORAGE[dtype])
    for part in blocks(rows):
        q[part] = quantize(rows[part], scale[part], zero[part], dtype, axis=0)
    return q, scale, None if symmetric else zero


def floats(q: np.ndarray, scale: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    """The weights that integers [n, k] stand for."""
    wide = q.astype(np.float32)
    if zero is not None:
        wide -= zero[:, None]
    wide *= scale[:, None]
    return wide


def dynamic(
    model: Model, options: DynamicOptions, report: list[dict[str, object]] | None = None, nested: bool = True
) -> Model:
    """A copy of a model in which layers have integer weights, nested: those in nested graphs, too. report: as in
    `weights.weight_only`. Raises ValueError, naming the layer, for weights that are not finite."""
    shapes = None

    def other(graph: Graph, node: Node) -> list[Node] | None:
        nonlocal shapes
        if options.bits == 16 or not options.takes(node):
            return None
        if node.op == "Attention" and not node.domain:
            shapes = shapes or shapes_of(model.graph)
            return _attention(node, shapes, options, report)
        return _other(graph, node, options, report)

    return rewrite(model, lambda layer: _replaced(layer, options, report), other, nested)


def _replaced(layer: Layer, options: DynamicOptions, report: list[dict[str, object]] | None) -> list[Node] | None:
    """The nodes in a layer's place; None to keep it."""
    if not options.takes(layer.node):
        return None
    try:
        found = _table(layer, options) if layer.node.op == "Gather" else _product(layer, options)
    except ValueError as error:
        raise ValueError(f"{layer.name}: {error}") from None
    if found is None:
        return None
    nodes, ratio = found
    if report is not None:
        report.append({"name": layer.name, "bits": options.bits, "snr": ratio})
    return nodes


def _other(
    graph: Graph, node: Node, options: DynamicOptions, report: list[dict[str, object]] | None
) -> list[Node] | None:
    """The nodes in the place of a recurrent layer; None to keep it."""
    found = _recurrent(graph, node, options)
    if found is not None and report is not None:
        report.append({"name": node.name or node.outputs[0], "bits": 8, "snr": found[1]})
    return None if found is None else found[0]


def _product(layer: Layer, options: DynamicOptions) -> tuple[list[Node], float] | None:
    """The nodes in a product's place, and its weights' signal-to-noise ratio."""
    node, n = layer.node, len(layer.rows)
    known = ("MatMul", "Gemm", "Conv", "ConvTranspose")
    if node.op not in known or n < MIN_CHANNELS or node.attrs.get("activation") == "PRelu":
        return None
    if node.op == "ConvTranspose" and options.bits == 16:
        return None
    w = layer.graph.tensors[layer.weight]
    if node.op == "Conv" and w.shape[1] == 1 and node.attrs.get("group", 1) > 1:
        return None
    q, scale, zero = quantize_channels(layer.rows, options)
    suffix = f"{q.dtype.name}{'c' if layer.columns else 'r'}"
    bias, attrs = layer.bias, layer.activation()
    if node.op == "Conv":
        op, domain, value, attrs = "DynamicQuantizeConv", "evort", q.reshape(w.shape), dict(node.attrs)
    elif node.op == "ConvTranspose":
        group, per = node.attrs.get("group", 1), w.shape[1]
        parts = np.swapaxes(q.reshape(group, per, w.shape[0] // group, *w.shape[2:]), 1, 2)
        op, domain, value, attrs = "DynamicQuantizeConvTranspose", "evort", parts.reshape(w.shape), dict(node.attrs)
    else:
        op, domain, value = "DynamicQuantizeMatMul", "com.microsoft", q.T
        suffix += "k"  # [K, N], whichever way the constant lay
        if bias and layer.graph.tensors[bias].shape == (1, n):
            bias = layer.add("bias", layer.graph.tensors[bias].data.reshape(n))
    if options.activations == 16 and options.bits == 8:
        attrs["bits"] = 16
    names = [layer.input(0), layer.add(suffix, value), layer.add(f"{suffix}:scale", scale),
             "" if zero is None else layer.add(f"{suffix}:zero", zero), bias, layer.input(3)]  # fmt: skip
    ratio = snr(layer.rows, lambda part: floats(q[part], scale[part], None if zero is None else zero[part]))
    return node_like(layer, op, names, attrs, domain), ratio


def _table(layer: Layer, options: DynamicOptions) -> tuple[list[Node], float] | None:
    if options.bits == 16:
        return None
    block = 16
    while block < layer.rows.shape[1]:
        block *= 2
    how = WeightOptions(8, block, options.symmetric, search=False, half_scales=False)
    packed = round_to_nearest(layer.rows, how)
    nodes = replaced(layer, packed, how)
    return None if nodes is None else (nodes, snr(layer.rows, packed.floats()))


def _recurrent(graph: Graph, node: Node, options: DynamicOptions) -> tuple[list[Node], float] | None:
    """LSTM or GRU with the default functions, and its weights' signal-to-noise ratio; None for other nodes."""
    if node.op not in _GATES or node.domain not in ("", "ai.onnx") or node.attrs.get("layout", 0):
        return None
    gates, scales, functions = _GATES[node.op]
    tensors = [graph.tensors.get(name) for name in node.inputs[1:3]]
    if any(t is None or t.data is None or t.dtype != DType.FLOAT or t.data.ndim != 3 for t in tensors):
        return None
    given = [str(f).lower() for f in node.attrs.get("activations", [])]
    if given not in ([], functions, functions * 2) or tensors[1].shape[2] * gates < MIN_CHANNELS:
        return None
    want, got = [], []
    inputs = [*node.inputs, *("" for _ in range(scales - len(node.inputs)))]
    for index, tensor in enumerate(tensors, start=1):
        ways, rows, depth = tensor.data.shape
        try:
            q, scale, zero = quantize_channels(tensor.data.reshape(ways * rows, depth), options)
        except ValueError as error:
            raise ValueError(f"{node.name or node.outputs[0]}: {error}") from None
        want.append(tensor.data.reshape(-1))
        got.append(floats(q, scale, zero).reshape(-1))
        part = Layer(graph, node, tensor.name, tensor.data, False)
        value = q.reshape(ways, rows, depth).swapaxes(1, 2)
        inputs[index] = part.add(f"{q.dtype.name}t", value)
        inputs.append(part.add(f"{q.dtype.name}t:scale", scale.reshape(ways, rows)))
        inputs.append("" if zero is None else part.add(f"{q.dtype.name}t:zero", zero.reshape(ways, rows)))
    domain = "com.microsoft" if node.op == "LSTM" else "evort"
    attrs = {key: value for key, value in node.attrs.items() if key != "layout"}
    while not inputs[-1]:
        inputs.pop()
    new = Node(f"DynamicQuantize{node.op}", inputs, list(node.outputs), attrs, domain, node.name)
    return [new], snr(np.concatenate(want), np.concatenate(got))


def _attention(
    node: Node, shapes: Shapes, options: DynamicOptions, report: list[dict[str, object]] | None
) -> list[Node] | None:
    """Attention in integers; None where it has no such form, or would not pay."""
    names = [*node.inputs, *("" for _ in range(7 - len(node.inputs)))]
    floats = all(shapes.dtype(name) == DType.FLOAT for name in (*names[:3], *names[4:6]) if name)
    mask = not names[3] or shapes.dtype(names[3]) in (DType.FLOAT, DType.BOOL)
    scores = len(node.outputs) > 3 and node.outputs[3] != ""
    precision = node.attrs.get("softmax_precision", DType.FLOAT)
    if options.activations == 16 or scores or precision != DType.FLOAT or not floats or not mask:
        return None
    if options.attention == "off" or (options.attention == "auto" and _small_heads(node, shapes)):
        return None
    attrs = {k: v for k, v in node.attrs.items() if k not in ("qk_matmul_output_mode", "softmax_precision")}
    attrs["min_queries"] = 0 if options.attention == "on" else MIN_QUERIES
    if report is not None:
        report.append({"name": node.name or node.outputs[0], "bits": 8, "snr": math.inf})  # it has no weights
    return [Node("DynamicQuantizeAttention", list(node.inputs), list(node.outputs[:3]), attrs, "evort", node.name)]


def _small_heads(node: Node, shapes: Shapes) -> bool:
    known = shapes.shape(node.inputs[0])
    size = known[-1] if known else ""
    if isinstance(size, str):
        return False
    return size // (node.attrs.get("q_num_heads", 1) if len(known) == 3 else 1) < MIN_HEAD
