"""The form of a model that is trained, made from the one that is run.

- BatchNormalization normalizes by the batch's own moments and keeps running ones; Dropout draws.
- Activations that other operators compute on their way out stand alone where their slope is a function of their input;
  Relu and the like, whose slope is one of their output, move into the operator before them instead, where there is one.
- Relu behind a Conv and before a MaxPool changes places with it: the same result, a quarter of the work.
"""

from __future__ import annotations

from collections import Counter

from evort.graph import Graph, Model, Node, Tensor
from evort.ops.base import find
from evort.ops.unfuse import apart
from evort.types import DType

STEP = "train/step"  # int64 scalar: which step it is, for Dropout's draws


class Prepared:
    """A graph to train. running: pairs (input, output) of statistics that a step updates beside the parameters."""

    __slots__ = ("graph", "running")

    def __init__(self, graph: Graph, running: list[tuple[str, str]]):
        self.graph = graph
        self.running = running


def prepare(model: Model, seed: int = 0, frozen: frozenset[str] = frozenset()) -> Prepared:
    """The training form of a model, whose constants it shares. seed: of Dropout. frozen: names of tensors that are not
    trained; a BatchNormalization whose scale is among them keeps its running statistics as they are."""
    source = model.graph
    graph = Graph(source.name)
    graph.inputs, graph.outputs = list(source.inputs), list(source.outputs)
    graph.tensors = dict(source.tensors)
    running: list[tuple[str, str]] = []
    nodes: list[Node] = []
    for node in source.nodes:
        nodes.extend(apart(Node(node.op, [*node.inputs], [*node.outputs], {**node.attrs}, node.domain, node.name)))
    used = Counter(name for node in nodes for name in node.inputs) + Counter(graph.outputs)
    nodes = _joined(_later_relu(nodes, used), used)
    for i, node in enumerate(nodes):
        if node.domain == "" and node.op == "BatchNormalization" and node.inputs[1] not in frozen:
            node.attrs["training_mode"] = 1
            node.outputs = [node.outputs[0], f"{node.inputs[3]}/new", f"{node.inputs[4]}/new"]
            running += [(node.inputs[3], node.outputs[1]), (node.inputs[4], node.outputs[2])]
        elif node.domain == "" and node.op == "Dropout":
            nodes[i] = _dropout(graph, node, seed, i)
    graph.nodes = nodes
    return Prepared(graph, running)


def _dropout(graph: Graph, node: Node, seed: int, index: int) -> Node:
    ratio = graph.constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
    share = 0.5 if ratio is None else float(ratio.reshape(()))
    if share == 0:
        return Node("Identity", node.inputs[:1], node.outputs[:1], None, "", node.name)
    if STEP not in graph.tensors:
        graph.add(Tensor(STEP, DType.INT64, ()))
        graph.inputs.append(STEP)
    attrs = {"ratio": share, "seed": seed * 1_000_003 + index}
    return Node("RandomDropout", [node.inputs[0], STEP], node.outputs[:1], attrs, "evort", node.name)


def _later_relu(nodes: list[Node], used: Counter[str]) -> list[Node]:
    """MaxPool(Relu(x)) as Relu(MaxPool(x)): both keep the order of numbers."""
    made = {node.outputs[0]: node for node in nodes}
    result = list(nodes)
    for pool in nodes:
        relu = made.get(pool.inputs[0]) if pool.domain == "" and pool.op == "MaxPool" else None
        plain = relu is not None and relu.op == "Relu" and relu.domain == "" and used[relu.outputs[0]] == 1
        if plain and len(pool.outputs) == 1 and not pool.attrs.get("activation"):
            inside, out = relu.outputs[0], pool.outputs[0]
            pool.inputs[0], pool.outputs[0] = relu.inputs[0], inside
            relu.inputs[0], relu.outputs[0] = inside, out
            i, j = (next(k for k, n in enumerate(result) if n is node) for node in (relu, pool))
            result[i], result[j] = pool, relu
    return result


def _joined(nodes: list[Node], used: Counter[str]) -> list[Node]:
    """Relu and the like in the operator before them, where nothing else reads that one's output."""
    made = {node.outputs[0]: node for node in nodes}
    dropped = set()
    for node in nodes:
        before = made.get(node.inputs[0]) if node.inputs else None
        if node.domain or node.op not in ("Relu", "Sigmoid", "Tanh", "HardSigmoid") or before is None:
            continue
        definition = find(before.op, before.domain)
        takes = definition is not None and "activation" in definition.attrs and not before.attrs.get("activation")
        if not takes or len(before.outputs) > 1 or used[before.outputs[0]] != 1:
            continue
        before.attrs["activation"] = node.op
        before.attrs.update({f"activation_{key}": value for key, value in node.attrs.items()})
        before.outputs[0] = node.outputs[0]
        made[node.outputs[0]] = before
        dropped.add(id(node))
    return [node for node in nodes if id(node) not in dropped]


__all__ = ["STEP", "Prepared", "prepare"]
