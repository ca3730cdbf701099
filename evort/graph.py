"""The graph: nodes, tensors and constants, with ONNX's meaning.

A graph is in static single assignment form: each tensor name is written once, by a node, an input or a constant.
Nodes are in topological order. A nested graph (the branch of an If, the body of a Loop) may read names of the graphs
around it. Operators are in their newest ONNX form (the importer rewrites older ones), so each has one meaning.
"""

from __future__ import annotations

import numpy as np

from evort._records import Graph, Node, Tensor
from evort.types import DType

# A dimension: a number, or the name of a symbolic one ("" where nothing is known of it).
Dim = int | str
Attribute = object  # int | float | str | np.ndarray | Graph | list[int] | list[float] | list[str]


class Quantization:
    """How the numbers of a tensor stand for real ones: real = scale * (stored - zero_point).

    scheme: "per_tensor", "per_axis" (one scale for each index of `axis`) or "grouped" (one for each `group`
    consecutive items along `axis`). bits: of one stored number. scale: float32; zero_point: an integer array of the
    same shape, or None for all zero. range: (smallest, largest) real value seen, or None.
    """

    __slots__ = ("axis", "bits", "group", "range", "scale", "scheme", "zero_point")

    def __init__(
        self,
        scheme: str,
        bits: int,
        scale: np.ndarray,
        zero_point: np.ndarray | None = None,
        axis: int = 0,
        group: int = 0,
        range: tuple[float, float] | None = None,
    ):
        self.scheme = scheme
        self.bits = bits
        self.scale = scale
        self.zero_point = zero_point
        self.axis = axis
        self.group = group
        self.range = range


class Sparsity:
    """How a constant's zeros are left out: kind "n:m" or "block", block and indices as evort.sparse describes them;
    index_type: UINT2, UINT4 or UINT8, what an index takes in a file (in `indices`, it is a byte)."""

    __slots__ = ("block", "index_type", "indices", "kind")

    def __init__(self, kind: str, block: tuple[int, int], indices: np.ndarray, index_type: DType = DType.UINT8):
        self.kind = kind
        self.block = block
        self.indices = indices
        self.index_type = index_type


class Golden:
    """Inputs, and the outputs that they must give, by name; arrays in storage dtypes.

    tolerance: the largest error of an output of floats, in parts of its largest expected magnitude; outputs of other
    types must be equal.
    """

    __slots__ = ("inputs", "outputs", "tolerance")

    def __init__(self, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], tolerance: float):
        self.inputs = inputs
        self.outputs = outputs
        self.tolerance = tolerance


class Model:
    """A graph with its provenance. `opsets` maps domain to version; `metadata` is free text by key; `bounds` gives the
    smallest and largest size of symbolic dimensions of the inputs, by name; `golden` checks an installation."""

    __slots__ = ("bounds", "golden", "graph", "metadata", "opsets", "producer")

    def __init__(
        self,
        graph: Graph,
        opsets: dict[str, int] | None = None,
        metadata: dict[str, str] | None = None,
        producer: str = "",
        bounds: dict[str, tuple[int, int]] | None = None,
        golden: Golden | None = None,
    ):
        self.graph = graph
        self.bounds = bounds or {}
        self.golden = golden
        self.opsets = opsets or {}
        self.metadata = metadata or {}
        self.producer = producer


def with_outputs(model: Model, names: list[str]) -> Model:
    """A view of a model that gives `names` as its outputs; nodes that those do not need are left out. The two share
    all nodes and constants, and neither must be changed while the other is used."""
    graph = model.graph
    needed, kept = set(names), []
    for node in reversed(graph.nodes):
        if any(o in needed for o in node.outputs):
            kept.append(node)
            needed.update(node.inputs)
            for sub in node.subgraphs():
                needed.update(sub.free_names())
    new = Graph(graph.name)
    new.nodes = kept[::-1]
    new.inputs = list(graph.inputs)
    new.outputs = list(names)
    new.tensors = {n: t for n, t in graph.tensors.items() if t.data is None or n in needed}
    for name in names:
        if name not in new.tensors:
            new.add(Tensor(name, DType.FLOAT, None))
    return Model(new, model.opsets, model.metadata, model.producer)


__all__ = ["Attribute", "Dim", "Golden", "Graph", "Model", "Node", "Quantization", "Sparsity", "Tensor", "with_outputs"]
