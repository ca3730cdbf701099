"""Makes the arena of a quantized model smaller where that changes no result by more than a last bit.

    conv(Transpose(x)), quantized by its range      bytes are moved: DynamicQuantizeLinear comes before the Transpose
    GlobalMaxPool(f(conv(x, W)))                    in four parts of W's output channels, one after the other: the image
                                                    that is only looked through need not be there whole

Only what lies in the arena when it is fullest is looked at, and only as long as that is more than a third of the float
model's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from evort.graph import Graph, Model, Node, Tensor
from evort.memory import Memory
from evort.session import Session
from evort.types import DType, dtype_of
from evort_tools.importer.builder import Names
from evort_tools.passes import names_of
from evort_tools.quantization.capture import specs_of
from evort_tools.quantization.equalize import readers_of
from evort_tools.quantization.qdq import copy_model, drop_unread
from evort_tools.quantization.select import UNARY, operand

SHARE = 1 / 3  # of the float model's arena, from which no more is done for memory
_PARTS, _LEAST = 4, 64  # and channels of each: fewer do not fill the kernels
_POOLS = frozenset({"GlobalMaxPool", "GlobalAveragePool"})
# Convolutions: where the operands are that have an item for each output channel.
_BY_CHANNEL = {("", "QLinearConv"): (3, 4, 5, 8), ("evort", "DynamicQuantizeConv"): (1, 2, 3, 4)}
_RESIDUAL = {("", "QLinearConv"): 9, ("evort", "DynamicQuantizeConv"): 5}


def planned(model: Model, sample: Mapping[str, Any]) -> Memory:
    """What a run of a model takes."""
    session = Session(model, threads=1)
    session.run(dict(sample))
    return session.memory()


def fullest(memory: Memory) -> set[str]:
    """What lies in the arena at the step at which most does."""
    alive = [[b for b in memory.buffers if b.start <= step <= b.end] for step in range(len(memory.steps))]
    most = max(alive, key=lambda buffers: sum(b.nbytes for b in buffers), default=[])
    return {name for buffer in most for name in buffer.names}


def smaller(real: Model, model: Model, sample: Mapping[str, Any]) -> Model:
    """A quantized model that gives the same in less memory; itself where there is none. real: the float model."""
    if not any(_kind(node) == ("evort", "DynamicQuantizeConv") or node.op in _POOLS for node in model.graph.nodes):
        return model
    enough = SHARE * planned(real, sample).arena
    while (memory := planned(model, sample)).arena > enough:
        made = copy_model(model)
        full = fullest(memory)
        if not (_bytes_are_moved(made.graph, full) or _in_parts(made.graph, full, sample)):
            break
        if planned(made, sample).arena >= memory.arena:
            break
        model = made
    return model


def _kind(node: Node) -> tuple[str, str]:
    return node.domain, node.op


def _bytes_are_moved(graph: Graph, full: Collection[str]) -> bool:
    readers, writer = readers_of(graph), {node.outputs[0]: node for node in graph.nodes}
    for node in graph.nodes:
        move = writer.get(node.inputs[0]) if node.inputs else None
        if _kind(node) != ("evort", "DynamicQuantizeConv") or move is None or _kind(move) != ("", "Transpose"):
            continue
        w = graph.constant(node.inputs[1])
        alone = len(readers[move.outputs[0]]) == 1 and move.outputs[0] not in graph.outputs
        if w is None or w.dtype == np.int16 or node.attrs.get("bits", 8) != 8 or operand(node, 5) or not alone:
            continue
        if move.outputs[0] in full:
            _move_bytes(graph, node, move, w.dtype)
            return True
    return False


def _move_bytes(graph: Graph, node: Node, move: Node, dtype: np.dtype) -> None:
    names, (x,) = names_of(graph), move.inputs
    q, scale, zero, moved = (names.fresh(f"{x}/{what}") for what in ("bytes", "scale", "zero_point", "moved"))
    shift = operand(node, 3) or add_constant(graph, names, np.zeros((), dtype), f"{node.outputs[0]}/zero")
    fused = {key: value for key, value in node.attrs.items() if key.startswith("activation")}
    attrs = {key: value for key, value in node.attrs.items() if key != "bits"}
    made = [
        Node("DynamicQuantizeLinear", [x], [q, scale, zero], name=move.name),
        Node("Transpose", [q], [moved], dict(move.attrs), name=move.name),
        Node("QLinearConv", [moved, scale, zero, node.inputs[1], node.inputs[2], shift], list(node.outputs), attrs,
             name=node.name),
    ]  # fmt: skip
    if operand(node, 4):  # a bias in real numbers is added to what leaves the sums, as before
        rank = graph.constant(node.inputs[1]).ndim
        column = graph.constant(node.inputs[4]).reshape(1, -1, *(1,) * (rank - 2))
        sums = names.fresh(f"{node.outputs[0]}/sums")
        made[-1].outputs, made[-1].attrs = [sums], {key: v for key, v in attrs.items() if key not in fused}
        bias = add_constant(graph, names, column, f"{node.outputs[0]}/bias")
        made.append(Node("Add", [sums, bias], list(node.outputs), fused, name=node.name))
    at = graph.nodes.index(node)
    graph.nodes[at : at + 1] = made
    graph.nodes.remove(move)
    drop_unread(graph, node.inputs[4:5])


def _in_parts(graph: Graph, full: Collection[str], sample: Mapping[str, Any]) -> bool:
    shapes = {name: spec.shape for name, spec in specs_of(graph, sample).items()}
    for pool in graph.nodes:
        chain = _chain(graph, pool, shapes) if pool.op in _POOLS and not pool.domain else None
        if chain is not None and chain[0].outputs[0] in full:
            _cut(graph, chain)
            return True
    return False


def _chain(graph: Graph, pool: Node, shapes: Mapping[str, tuple[int, ...]]) -> list[Node] | None:
    """A convolution, what follows it channel by channel, and the pool that ends this; None for any other."""
    readers, writer = readers_of(graph), {node.outputs[0]: node for node in graph.nodes}
    chain = [pool]
    while _kind(chain[0]) not in _BY_CHANNEL:
        names = [name for name in chain[0].inputs if name in writer]
        node = writer[names[0]] if len(names) == 1 and len(readers[names[0]]) == 1 else None
        if node is None or names[0] in graph.outputs or len(node.outputs) > 1 or names[0] not in shapes:
            return None
        if _kind(node) not in _BY_CHANNEL and not _keeps_channels(graph, node, shapes):
            return None
        chain.insert(0, node)
    w = graph.constant(chain[0].inputs[_BY_CHANNEL[_kind(chain[0])][0]])
    plain = chain[0].attrs.get("group", 1) == 1 and not operand(chain[0], _RESIDUAL[_kind(chain[0])])
    fits = w is not None and w.shape[0] % _PARTS == 0 and w.shape[0] >= _PARTS * _LEAST
    return chain if plain and fits and "PRelu" not in {n.attrs.get("activation") for n in chain} else None


def _keeps_channels(graph: Graph, node: Node, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a node does the same to each channel (axis 1), or adds or multiplies by constants that can be cut."""
    if node.domain:
        return False
    if node.op in ("Squeeze", "Unsqueeze"):
        axes = graph.constant(operand(node, 1)) if operand(node, 1) else None
        return axes is not None and all(axis > 1 for axis in axes.reshape(-1))
    if node.op in ("Add", "Mul"):
        rank = len(shapes[node.outputs[0]])
        values = [graph.constant(name) for name in node.inputs]
        return any(v is not None and (v.size == 1 or (v.ndim == rank and v.size == v.shape[1])) for v in values)
    return node.op in UNARY and len(node.inputs) == 1


def _cut(graph: Graph, chain: list[Node]) -> None:
    names, (conv, *rest) = names_of(graph), chain
    count = graph.constant(conv.inputs[_BY_CHANNEL[_kind(conv)][0]]).shape[0]
    inside = {node.outputs[0] for node in chain}
    made: list[Node] = []
    results: list[str] = []
    for part in range(_PARTS):
        own = slice(part * count // _PARTS, (part + 1) * count // _PARTS)
        new = {name: names.fresh(f"{name}/{part}") for name in inside}
        for node in chain:
            inputs = []
            for i, name in enumerate(node.inputs):
                value = graph.constant(name) if name else None
                if node is conv and i in _BY_CHANNEL[_kind(conv)] and value is not None and value.size > 1:
                    name = add_constant(graph, names, value[own], f"{name}/{part}")
                elif node is not conv and node.op in ("Add", "Mul") and value is not None and value.size > 1:
                    name = add_constant(graph, names, value[:, own], f"{name}/{part}")
                inputs.append(new.get(name, name))
            made.append(Node(node.op, inputs, [new[node.outputs[0]]], dict(node.attrs), node.domain, node.name))
        results.append(made[-1].outputs[0])
    made.append(Node("Concat", results, list(rest[-1].outputs), {"axis": 1}, name=rest[-1].name))
    at = graph.nodes.index(rest[-1])
    graph.nodes[at : at + 1] = made
    for node in chain[:-1]:
        graph.nodes.remove(node)
    drop_unread(graph, [name for node in chain for name in node.inputs])


def add_constant(graph: Graph, names: Names, value: np.ndarray, hint: str) -> str:
    """Adds a constant under a name that is free; returns that."""
    data = np.ascontiguousarray(value).reshape(value.shape)
    dtype: DType = dtype_of(data)
    return graph.add(Tensor(names.fresh(hint), dtype, data.shape, data))
