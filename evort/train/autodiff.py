"""Reverse-mode differentiation of a graph: a backward graph of ordinary operators.

    graph --trace--> Gradients (its nodes at concrete shapes) --differentiate--> the same, with the backward nodes
    behind

Each operator's rule is its `gradient` method. What a rule emits is an ordinary node, planned in the same arena and run
by the same executor as the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from evort.errors import UnsupportedError
from evort.graph import Graph, Node
from evort.ops.activation import ACTIVATIONS, activation_gradient, activation_params
from evort.ops.base import Call, DataDependent, NeedsValue, Op, lookup
from evort.ops.gradients import Gradients
from evort.ops.run import run_reference
from evort.plan import constant_specs
from evort.types import FLOATS, STORAGE, Spec

_KNOWN_BYTES = 1 << 16  # values computed while tracing are small: shapes, axes, indices


def trace(graph: Graph, inputs: dict[str, Spec]) -> Gradients:
    """The graph's nodes at concrete shapes. inputs: a specification for each input, without value for what changes from
    run to run. Operators that only training lowers (LSTM, Attention) are replaced by simpler ones, and what depends on
    constants alone is computed.

    Raises UnsupportedError for a graph whose shapes depend on data; ShapeError as planning does.
    """
    g = Gradients({**constant_specs(graph), **inputs})
    for name, tensor in graph.tensors.items():
        if tensor.data is not None and name not in inputs:
            g.constants[name] = tensor.data
    for node in graph.nodes:
        extend(g, node)
    return g


def extend(g: Gradients, node: Node) -> None:
    """Appends a node of the forward graph."""
    definition = lookup(node)
    try:
        c = g.append(node)
    except (NeedsValue, DataDependent):
        raise UnsupportedError(f"{node.label()}: its shape depends on data, which cannot be trained") from None
    if _evaluated(g, definition, c):
        g.nodes.pop(), g.calls.pop()
        return
    if type(definition).lower is Op.lower:
        return
    g.nodes.pop(), g.calls.pop()
    names = definition.lower(g, c)
    if names is None:
        g.nodes.append(node), g.calls.append(c)
        return
    for name, simple in zip(node.outputs, names, strict=False):
        if name:
            g.append(Node("Identity", [simple], [name], None, "", name))


def _evaluated(g: Gradients, definition: Op, c: Call) -> bool:
    """Computes a node whose inputs are all constants."""
    known = all(s is None or s.value is not None for s in c.ins)
    if not known or not definition.deterministic or sum(s.nbytes for s in c.outs if s is not None) > _KNOWN_BYTES:
        return False
    results = run_reference(definition, c, [None if s is None else s.value for s in c.ins])
    for name, spec, value in zip(c.node.outputs, c.outs, results, strict=False):
        if name:
            g.constants[name] = np.ascontiguousarray(value).reshape(spec.shape)
            g.specs[name] = Spec(spec.dtype, spec.shape, g.constants[name])
    return True


def differentiate(g: Gradients, loss: str, wrt: Sequence[str], checkpoint: int | str | None = None) -> dict[str, str]:
    """Appends the nodes that compute d loss / d name for each name of `wrt`; returns the gradients' names. A name that
    the loss does not depend on is left out.

    loss: a scalar. checkpoint: None keeps all activations that the gradients read; a number cuts the graph into so
    many segments, of which only the borders are kept and the inside is computed again when its gradients are due;
    "auto" cuts it into about the root of its length. (Chen et al., "Training deep nets with sublinear memory cost",
    arXiv:1604.06174.)

    Raises UnsupportedError, naming the node, for an operator without a gradient rule.
    """
    if g.specs[loss].size != 1 or g.specs[loss].dtype not in FLOATS:
        raise UnsupportedError(f"the loss {loss!r} must be one float, not {g.specs[loss]!r}")
    forward = list(g.calls)
    active = _active(forward, wrt)
    one = g.constant(np.ones(g.specs[loss].shape, STORAGE[g.specs[loss].dtype]), "one")
    pending: dict[str, list[str]] = {loss: [one]}
    segments = _segments(forward, checkpoint)
    for number, segment in enumerate(reversed(segments)):
        calls = segment if number == 0 else _recomputed(g, segment, forward, {loss, *wrt})
        for original, c in zip(reversed(segment), reversed(calls), strict=True):
            _backward(g, original, c, pending, active)
    return {name: g.total(pending[name]) for name in wrt if name in pending}


def _active(calls: Sequence[Call], wrt: Iterable[str]) -> set[str]:
    """Float tensors that depend on `wrt`."""
    active = set(wrt)
    for c in calls:
        if any(name in active for name in c.node.inputs):
            active.update(name for name, s in zip(c.node.outputs, c.outs, strict=False) if name and s.dtype in FLOATS)
    return active


def _backward(g: Gradients, original: Call, c: Call, pending: dict[str, list[str]], active: set[str]) -> None:
    """One node: from the gradients of its outputs to those of its inputs. c: the node whose values are read, which
    stands for `original`."""
    node = original.node
    if not any(name in pending for name in node.outputs):
        return
    wanted = [name in active for name in node.inputs]
    dys = [g.total(pending.pop(name)) if name in pending else None for name in node.outputs]
    if not any(wanted):
        return
    name = c.attrs.get("activation")
    if name:
        if not ACTIVATIONS[name].of_output:
            raise UnsupportedError(f"{node.label()}: its activation {name} must stand alone to be differentiated")
        dys[0] = activation_gradient(g, name, *activation_params(c), "", c.node.outputs[0], dys[0])
    g.wanted = wanted
    found = lookup(node).gradient(g, c, *dys)
    for name, wants, gradient in zip(node.inputs, wanted, found, strict=False):
        if wants and gradient is not None:
            pending.setdefault(name, []).append(gradient)


# Recomputation -------------------------------------------------------------------------------------------------------


def _segments(calls: list[Call], checkpoint: int | str | None) -> list[list[Call]]:
    """Cuts the forward nodes where few bytes cross, at about equal shares of all bytes."""
    if checkpoint is None or len(calls) < 4:
        return [calls]
    count = round(math.sqrt(len(calls))) if checkpoint == "auto" else checkpoint
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"checkpoint must be None, 'auto' or a positive number of segments, not {checkpoint!r}")
    sizes = [sum(s.nbytes for s in c.outs if s is not None) for c in calls]
    last_use = {name: i for i, c in enumerate(calls) for name in c.node.inputs}
    crossing = [0] * len(calls)  # bytes that live behind node i
    for i, c in enumerate(calls):
        for name, spec in zip(c.node.outputs, c.outs, strict=False):
            for at in range(i, last_use.get(name, i)):
                crossing[at] += spec.nbytes
    reach = np.cumsum(sizes) / max(1, sum(sizes))
    cuts: list[int] = []
    for k in range(1, count):
        low, high = (k - 0.5) / count, (k + 0.5) / count
        near = [i for i in range(len(calls) - 1) if low <= reach[i] < high and (not cuts or i > cuts[-1])]
        if near:
            cuts.append(min(near, key=lambda i: (crossing[i], abs(reach[i] - k / count))))
    edges = [0, *(cut + 1 for cut in cuts), len(calls)]
    return [calls[a:b] for a, b in pairwise(edges)]


def _recomputed(g: Gradients, segment: list[Call], forward: list[Call], kept: set[str]) -> list[Call]:
    """Emits a segment's nodes once more, under other names; those that other segments read are there already."""
    inside = {id(c) for c in segment}
    border = set(kept).union(*(c.node.inputs for c in forward if id(c) not in inside))
    names: dict[str, str] = {}
    calls = []
    for c in segment:
        node = c.node
        outputs = list(node.outputs)
        if node.op == "BatchNormalization":  # its running statistics have been counted
            outputs = outputs[:1]
        fresh = [g.fresh("again") if name else "" for name in outputs]
        again = g.append(
            Node(node.op, [names.get(n, n) for n in node.inputs], fresh, node.attrs, node.domain, node.name)
        )
        for name, new in zip(outputs, fresh, strict=True):
            if name and name not in border:
                names[name] = new
        # Rules read the border's tensors where they are kept.
        values = [name if name in border else new for name, new in zip(outputs, fresh, strict=True)]
        seen = Call(
            Node(node.op, again.node.inputs, values, node.attrs, node.domain, node.name), again.attrs, again.ins
        )
        seen.outs = again.outs
        calls.append(seen)
    return calls


def needed_nodes(nodes: Sequence[Node], outputs: Iterable[str]) -> list[Node]:
    """The nodes that `outputs` depend on, in their order."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if any(name in needed for name in node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    return kept[::-1]


__all__ = ["differentiate", "extend", "needed_nodes", "trace"]
