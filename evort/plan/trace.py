"""The walk that finds every tensor's dtype and shape for given input shapes, and evaluates what is already known.

Nodes whose inputs are all known (shape arithmetic, mostly) are computed here, by their references, and need no step.
The walk stops at a node whose output shape needs a value that is not known yet (`NeedsValue`), or which only running
can tell (`DataDependent`); what is left becomes another stage. An If whose condition is known is replaced by its
branch, so control flow on inputs costs one stage and nothing per run.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from evort.errors import EvortError, ShapeError, UnsupportedError
from evort.graph import Graph, Node
from evort.ops.base import (
    Call,
    DataDependent,
    NeedsValue,
    Op,
    check_arity,
    check_dtypes,
    complete_attrs,
    lookup,
)
from evort.ops.run import OBJECTS, run_reference
from evort.types import BITS, DType, Spec

# Values computed while planning are small: shapes, axes, indices. Larger ones are left to the kernels.
KNOWN_BYTES = 1 << 16
# A single tensor beyond this is refused before anything is allocated.
TENSOR_BYTES = 1 << 42


class Bound:
    """A node with its definition and completed attributes."""

    __slots__ = ("attrs", "definition", "node")

    def __init__(self, node: Node):
        self.node = node
        self.definition = lookup(node)
        check_arity(self.definition, node)
        self.attrs = complete_attrs(self.definition, node)


class Stage:
    """Nodes to plan together.

    reads: names that the nodes, or the graph's outputs, need from outside (graph inputs, results of earlier stages),
    constants excepted. known: those whose value a plan needs.
    """

    def __init__(self, nodes: list[Bound], outputs: list[str], constants: dict[str, Spec], known: Iterable[str] = ()):
        self.nodes = nodes
        self.outputs = outputs
        self.constants = constants
        self.known = frozenset(known)
        defined = set()
        reads: dict[str, None] = dict.fromkeys(self.known)
        for bound in nodes:
            for name in names_read(bound.node):
                if name and name not in defined and name not in constants:
                    reads[name] = None
            defined.update(bound.node.outputs)
        for name in outputs:
            if name not in defined and name not in constants:
                reads[name] = None
        self.reads = list(reads)
        self.plans: dict[object, object] = {}


class Trace:
    """What the walk found.

    calls: (definition, Call) for each node that needs a step, in order, outs filled in. specs: of every tensor met.
    rest: the nodes not reached; eager: the node to run by its reference before them, or None; known: names whose value
    the next stage needs.
    """

    __slots__ = ("calls", "eager", "known", "rest", "specs")

    def __init__(self, specs: dict[str, Spec]):
        self.calls: list[tuple[Op, Call]] = []
        self.specs = specs
        self.rest: list[Bound] = []
        self.eager: Bound | None = None
        self.known: list[str] = []


def names_read(node: Node) -> list[str]:
    """Names that a node needs: its inputs, and what its nested graphs take from around them."""
    names = node.inputs
    if node.attrs:
        for sub in node.subgraphs():
            names = names + sub.free_names()
    return names


def constant_specs(graph: Graph) -> dict[str, Spec]:
    """A specification, with value, for each constant of a graph.

    Raises UnsupportedError for a tensor that is stored in a way that no kernel reads.
    """
    for t in graph.tensors.values():
        if t.layout or t.sparsity is not None:
            how = f"in layout {t.layout!r}" if t.layout else f"sparse ({t.sparsity.kind})"
            raise UnsupportedError(f"tensor {t.name!r} is stored {how}, which this version of evort cannot run")
    return {name: Spec(t.dtype, t.data.shape, t.data) for name, t in graph.tensors.items() if t.data is not None}


def trace(stage: Stage, specs: dict[str, Spec], threads: int = 1) -> Trace:
    """Walks a stage. specs: one for each name that the stage reads, with values for `stage.known`.

    Raises ShapeError or UnsupportedError, naming the node.
    """
    known = {**stage.constants, **specs}
    found = Trace(known)
    nodes = stage.nodes
    at = 0
    while at < len(nodes):
        bound = nodes[at]
        node, definition = bound.node, bound.definition
        try:
            ins = [known[name] if name else None for name in node.inputs]
        except KeyError as missing:
            raise ShapeError(f"{node.label()}: input {missing} is not defined before it") from None
        c = Call(node, bound.attrs, ins, threads)
        try:
            check_dtypes(definition, c)
            graph = definition.expand(c)
            if graph is not None:
                nodes = nodes[:at] + _inline(node, graph, found.specs) + nodes[at + 1 :]
                continue
            c.outs = _checked(c, definition.infer(c))
            if _has_objects(c.ins) or _has_objects(c.outs):
                raise DataDependent
        except NeedsValue as need:
            found.rest = nodes[at:]
            found.known = [node.inputs[need.index]]
            return found
        except DataDependent:
            found.rest = nodes[at + 1 :]
            found.eager = bound
            return found
        except EvortError:
            raise
        except Exception as error:
            raise c.error(f"cannot infer its outputs ({type(error).__name__}: {error})") from error
        if not _evaluate(definition, c):
            found.calls.append((definition, c))
        for name, spec in zip(node.outputs, c.outs, strict=False):
            if name:
                known[name] = spec
        at += 1
    return found


def _has_objects(specs: Iterable[Spec | None]) -> bool:
    return any(s is not None and s.dtype in OBJECTS for s in specs)


def _checked(c: Call, outs: Iterable[Spec | None]) -> list[Spec | None]:
    """The inferred outputs, held to what memory can be."""
    outs = list(outs)
    for spec in outs:
        if spec is None:
            continue
        size = 1
        for d in spec.shape:
            if d < 0:
                raise c.error(f"output shape {spec.shape} has a negative dimension")
            size *= d
        if size * BITS.get(spec.dtype, 64) > TENSOR_BYTES * 8:
            raise c.error(f"an output of shape {spec.shape} is beyond evort's limit of {TENSOR_BYTES} bytes")
    return outs


def _evaluate(definition: Op, c: Call) -> bool:
    """Computes the outputs where everything is known and small. Returns whether it did."""
    outs = c.outs
    if all(s is None or s.value is not None for s in outs):
        return True
    if not definition.deterministic:
        return False
    if any(s is not None and s.value is None for s in c.ins):
        return False
    if sum(s.nbytes for s in outs if s is not None) > KNOWN_BYTES:
        return False
    if any(True for _ in c.node.subgraphs()):
        return False
    inputs = [None if s is None else s.value for s in c.ins]
    for spec, result in zip(outs, run_reference(definition, c, inputs), strict=False):
        if spec is not None:
            spec.value = np.ascontiguousarray(result).reshape(spec.shape)
    return True


def _inline(node: Node, graph: Graph, specs: dict[str, Spec]) -> list[Bound]:
    """The nodes of a graph in place of a node; names defined inside get the node's name as a prefix."""
    prefix = f"{node.name or node.outputs[0]}/"
    names = dict(zip(graph.inputs, node.inputs, strict=False))
    for name, spec in constant_specs(graph).items():
        names[name] = prefix + name
        specs[prefix + name] = spec
    inlined = [_renamed(inner, names, prefix) for inner in graph.nodes]
    for outer, inner in zip(node.outputs, graph.outputs, strict=True):
        if outer:
            inlined.append(Node("Identity", [names.get(inner, inner)], [outer], name=f"{prefix}{outer}"))
    return [Bound(inner) for inner in inlined]


def _renamed(node: Node, names: dict[str, str], prefix: str) -> Node:
    """A copy of a node with `names` applied, in its nested graphs too; its outputs get the prefix."""
    inputs = [names.get(name, name) for name in node.inputs]
    attrs = {k: _captured(v, names) if isinstance(v, Graph) else v for k, v in node.attrs.items()}
    for name in node.outputs:
        if name:
            names[name] = prefix + name
    outputs = [names[name] if name else "" for name in node.outputs]
    return Node(node.op, inputs, outputs, attrs, node.domain, prefix + node.name)


def _captured(graph: Graph, names: dict[str, str]) -> Graph:
    """A copy of a nested graph that reads outer names under their new names."""
    free = set(graph.free_names())
    outer = {name: new for name, new in names.items() if name in free}
    if not outer:
        return graph
    copy = Graph(graph.name)
    copy.inputs, copy.tensors = graph.inputs, graph.tensors
    copy.outputs = [outer.get(name, name) for name in graph.outputs]
    for node in graph.nodes:
        attrs = {k: _captured(v, outer) if isinstance(v, Graph) else v for k, v in node.attrs.items()}
        inputs = [outer.get(name, name) for name in node.inputs]
        copy.nodes.append(Node(node.op, inputs, node.outputs, attrs, node.domain, node.name))
    return copy


def dtype_name(dtype: DType) -> str:
    """ "float", "int64", ... as messages write it."""
    return dtype.name.lower()
