"""Writes encodings into a graph: QuantizeLinear and DequantizeLinear around float operators.

    T = Conv(X, W, B, Z)                  becomes    X' = DQ(Q(X)), W' = DQ(int8 constant), Z' = DQ(Q(Z))
                                                     T = Conv(X', W', B, Z'), with its fused activation
                                                     T' = DQ(Q(T)), which all readers of T read

A tensor has one encoding, and all who read it read what is left of it. Biases stay float: they are added to exact
integer sums, and the pass `integers` rounds them to the sums' scale. The graph so made runs as it is (in float: "fake
quantization"), with the numbers that the integer operators will give up to the rounding of float sums.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from evort.graph import Graph, Model, Node, Tensor
from evort.types import BITS, DType
from evort_tools.importer.builder import Names
from evort_tools.passes import names_of
from evort_tools.passes.edit import rename_free
from evort_tools.quantization.encodings import Encoding

QUANTIZED = "/quantized"  # suffix of the integer tensor that stands for a tensor


def insert(graph: Graph, encodings: Mapping[str, Encoding], integer: Collection[str] | None = None) -> dict[str, str]:
    """Puts a QuantizeLinear/DequantizeLinear pair (for constants: integers and a DequantizeLinear) behind each tensor
    that has an encoding, in place. Returns {tensor: name of its integer tensor}.

    A tensor T keeps its name where it is computed; its readers get `T/dequantized`. A graph output keeps its name and
    is the dequantized one. integer: the first outputs of the nodes that run in integers; all others go on reading
    activations as they are in float (None: all nodes read what is left of them). Raises KeyError for a name that the
    graph does not define, ValueError for one that is not float32.
    """
    names = names_of(graph)
    integers: dict[str, str] = {}
    written = {name: i for i, node in enumerate(graph.nodes) for name in node.outputs if name}
    before: dict[int, list[Node]] = {}  # nodes to put in front of the node at an index
    for name, encoding in encodings.items():
        tensor = graph.tensors.get(name)
        if tensor is not None and tensor.dtype != DType.FLOAT:
            raise ValueError(f"{name!r} is {tensor.dtype.name.lower()}; only float tensors are quantized")
        if tensor is not None and tensor.data is not None:
            at = _first_reader(graph, name)  # before its readers are given another name
            nodes = _constant(graph, tensor, encoding, names, integer)
        elif name in written:
            at = written[name] + 1
            nodes = _activation(graph, name, encoding, names, graph.nodes[at - 1], integer)
        elif name in graph.inputs:
            nodes, at = _activation(graph, name, encoding, names, None, integer), 0
        else:
            raise KeyError(f"the graph {graph.name!r} has no tensor {name!r}")
        integers[name] = nodes[-1].inputs[0]
        before.setdefault(at, []).extend(nodes)
    ordered: list[Node] = []
    for i in range(len(graph.nodes) + 1):
        ordered += before.get(i, ())
        ordered += graph.nodes[i : i + 1]
    graph.nodes[:] = ordered
    drop_unread(graph, encodings)
    return integers


def _activation(
    graph: Graph, name: str, encoding: Encoding, names: Names, writer: Node | None, readers: Collection[str] | None
) -> list[Node]:
    source, out = name, names.fresh(f"{name}/dequantized")
    if name in graph.outputs and readers is None:  # the name stays with the output
        if writer is None:
            raise ValueError(f"{name!r} is both an input and an output of the graph: it stays as it is")
        source, out = names.fresh(f"{name}/float"), name
        writer.outputs = [source if o == name else o for o in writer.outputs]
    else:
        _redirect(graph, name, out, readers)
    integer = names.fresh(f"{name}{QUANTIZED}")
    operands = _parameters(graph, name, encoding, names)
    attrs = _attrs(encoding)
    graph.add(Tensor(integer, encoding.dtype, _shape(graph, name)))
    return [
        Node("QuantizeLinear", [source, *operands], [integer], dict(attrs), name=f"{name}/QuantizeLinear"),
        Node("DequantizeLinear", [integer, *operands], [out], dict(attrs), name=f"{name}/DequantizeLinear"),
    ]


def _constant(
    graph: Graph, tensor: Tensor, encoding: Encoding, names: Names, readers: Collection[str] | None
) -> list[Node]:
    name = tensor.name
    integer, out = names.fresh(f"{name}{QUANTIZED}"), names.fresh(f"{name}/dequantized")
    data = encoding.quantize(tensor.data)
    graph.add(Tensor(integer, encoding.dtype, data.shape, data))
    operands = _parameters(graph, name, encoding, names)
    _redirect(graph, name, out, readers)
    return [Node("DequantizeLinear", [integer, *operands], [out], _attrs(encoding), name=f"{name}/DequantizeLinear")]


def _parameters(graph: Graph, name: str, encoding: Encoding, names: Names) -> list[str]:
    """Constants with the scale and the zero point."""
    scale = Tensor(names.fresh(f"{name}/scale"), DType.FLOAT, encoding.scale.shape, encoding.scale)
    zero = Tensor(names.fresh(f"{name}/zero_point"), encoding.dtype, encoding.zero_point.shape, encoding.zero_point)
    return [graph.add(scale), graph.add(zero)]


def _attrs(encoding: Encoding) -> dict[str, Any]:
    attrs: dict[str, Any] = {}
    if encoding.axis is not None and encoding.axis != 1:  # 1 is the operators' default
        attrs["axis"] = encoding.axis
    if encoding.block:
        attrs["block_size"] = encoding.block
    return attrs


def _shape(graph: Graph, name: str) -> tuple[int | str, ...] | None:
    tensor = graph.tensors.get(name)
    return None if tensor is None else tensor.shape


def _first_reader(graph: Graph, name: str) -> int:
    """Where a constant is first read; the end where only the graph's output is."""
    for i, node in enumerate(graph.nodes):
        if name in node.inputs or any(name in sub.free_names() for sub in node.subgraphs()):
            return i
    return len(graph.nodes)


def _redirect(graph: Graph, old: str, new: str, readers: Collection[str] | None) -> None:
    """Lets all nodes that read a tensor read another, those in nested graphs too; or those of these first outputs."""
    for node in graph.nodes:
        if readers is not None and node.outputs[0] not in readers:
            continue
        if old in node.inputs:
            node.inputs = [new if n == old else n for n in node.inputs]
        for sub in node.subgraphs():
            rename_free(sub, old, new)


def drop_unread(graph: Graph, names: Iterable[str]) -> None:
    """Drops those of the constants named that nothing reads any more."""
    read = set(graph.outputs)
    for node in graph.nodes:
        read.update(node.inputs)
        for sub in node.subgraphs():
            read.update(sub.free_names())
    for name in names:
        tensor = graph.tensors.get(name)
        if tensor is not None and tensor.data is not None and name not in read:
            del graph.tensors[name]


def name_constants(graph: Graph) -> None:
    """Gives integers that stand for a constant that is there no more its name, in place."""
    taken = set(names_of(graph).taken)
    shorter: dict[str, str] = {}
    for name, tensor in graph.tensors.items():
        plain = name.removesuffix(QUANTIZED)
        if tensor.data is not None and plain != name and plain not in taken and name not in graph.outputs:
            shorter[name] = plain
    for tensor in [graph.tensors.pop(name) for name in shorter]:
        tensor.name = shorter[tensor.name]
        graph.add(tensor)
    for node in graph.nodes:
        node.inputs = [shorter.get(name, name) for name in node.inputs]
        for sub in node.subgraphs():
            for old, new in shorter.items():
                rename_free(sub, old, new)


def own_constants(model: Model) -> Model:
    """A copy of a model whose nested graphs have the constants that they read as their own (data is shared), so that
    what their layers are can be told by looking at them alone."""
    copied = copy_model(model)
    _sink(copied.graph, names_of(copied.graph))
    return copied


def _sink(graph: Graph, names: Names) -> None:
    read = {*graph.outputs, *(name for node in graph.nodes for name in node.inputs)}
    for node in graph.nodes:
        for sub in node.subgraphs():
            for name in sub.free_names():
                tensor = graph.tensors.get(name)
                if tensor is None or tensor.data is None:
                    continue
                own = names.fresh(name) if name in read else name
                rename_free(sub, name, own)
                sub.add(Tensor(own, tensor.dtype, tensor.shape, tensor.data, tensor.quant, tensor.sparsity))
            _sink(sub, names)
    for name in [n for n, t in graph.tensors.items() if t.data is not None and n not in read]:
        del graph.tensors[name]


def copy_model(model: Model) -> Model:
    """A copy of a model whose graph can be changed; constants' data is shared. Golden data is left out,
    since a changed model would not give it."""
    return Model(copy_graph(model.graph), dict(model.opsets), dict(model.metadata), model.producer, dict(model.bounds))


def copy_graph(graph: Graph) -> Graph:
    """A copy of a graph whose nodes and tensors can be changed; constants' data is shared."""
    new = Graph(graph.name)
    new.inputs, new.outputs = list(graph.inputs), list(graph.outputs)
    for t in graph.tensors.values():
        new.add(Tensor(t.name, t.dtype, t.shape, t.data, t.quant, t.sparsity, t.layout))
    for node in graph.nodes:
        attrs = {k: copy_graph(v) if isinstance(v, Graph) else v for k, v in node.attrs.items()}
        new.nodes.append(Node(node.op, list(node.inputs), list(node.outputs), attrs, node.domain, node.name))
    return new


def fake_quantized(model: Model, encodings: Mapping[str, Encoding]) -> Model:
    """A copy of a model with encodings written into it."""
    copied = copy_model(model)
    insert(copied.graph, encodings)
    return copied


def total_bytes(graph: Graph) -> int:
    """Bytes of a graph's constants as a file holds them, nested graphs included."""
    total = 0
    for tensor in graph.tensors.values():
        if tensor.data is not None:
            total += (int(np.prod(tensor.data.shape, dtype=np.int64)) * BITS.get(tensor.dtype, 64) + 7) // 8
    return total + sum(total_bytes(sub) for node in graph.nodes for sub in node.subgraphs())


def nodes_in_integers(graph: Graph) -> int:
    """How many nodes of a graph, nested ones included, have weights of 8 bits or fewer."""

    def small(name: str) -> bool:
        tensor = graph.tensors.get(name)
        bits = 64 if tensor is None or tensor.dtype == DType.BOOL else BITS.get(tensor.dtype, 64)
        return bits <= 8 and tensor.data is not None and tensor.data.size > 1

    own = sum(any(small(name) for name in node.inputs) for node in graph.nodes)
    return own + sum(nodes_in_integers(sub) for node in graph.nodes for sub in node.subgraphs())
