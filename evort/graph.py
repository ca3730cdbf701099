"""The graph: nodes, tensors and constants, with ONNX's meaning.

A graph is in static single assignment form: each tensor name is written once, by a node, an input or a constant.
Nodes are in topological order. A nested graph (the branch of an If, the body of a Loop) may read names of the graphs
around it. Operators are in their newest ONNX form (the importer rewrites older ones), so each has one meaning.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

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
    """How a tensor's zeros are left out: kind "n:m" or "block", the block's shape, and the indices kept."""

    __slots__ = ("block", "indices", "kind")

    def __init__(self, kind: str, block: tuple[int, ...], indices: np.ndarray):
        self.kind = kind
        self.block = block
        self.indices = indices


class Tensor:
    """A named tensor. `shape` is None where even the rank is unknown; `data` is the value of a constant, in the
    NumPy dtype that `evort.types.STORAGE` gives for `dtype`, else None. `layout` is "" for ONNX's own order."""

    __slots__ = ("data", "dtype", "layout", "name", "quant", "shape", "sparsity")

    def __init__(
        self,
        name: str,
        dtype: DType,
        shape: tuple[Dim, ...] | None,
        data: np.ndarray | None = None,
        quant: Quantization | None = None,
        sparsity: Sparsity | None = None,
        layout: str = "",
    ):
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.data = data
        self.quant = quant
        self.sparsity = sparsity
        self.layout = layout

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.dtype.name}, {self.shape}{', constant' if self.data is not None else ''})"


class Node:
    """One operation. An absent optional input or output is the empty string.

    Attribute values are int, float, str, NumPy array (a tensor; `bfloat16` and the like as their bits), Graph, or a
    list of int, float or str. `attrs` holds only what differs from, or has no, default.
    """

    __slots__ = ("attrs", "domain", "inputs", "name", "op", "outputs")

    def __init__(
        self,
        op: str,
        inputs: list[str],
        outputs: list[str],
        attrs: dict[str, Attribute] | None = None,
        domain: str = "",
        name: str = "",
    ):
        self.op = op
        self.inputs = inputs
        self.outputs = outputs
        self.attrs = attrs or {}
        self.domain = domain
        self.name = name

    def subgraphs(self) -> Iterator[Graph]:
        """The graphs among the attributes."""
        return (a for a in self.attrs.values() if isinstance(a, Graph))

    def label(self) -> str:
        """How messages name the node."""
        full = f"{self.domain}::{self.op}" if self.domain else self.op
        return f"{full} {self.name!r}" if self.name else f"{full} -> {self.outputs[0] if self.outputs else '?'!r}"

    def __repr__(self) -> str:
        return f"Node({self.label()}: {self.inputs} -> {self.outputs})"


class Graph:
    """Nodes in topological order over named tensors.

    `tensors` has at least every input and constant; for values between nodes it may hold what inference found.
    """

    __slots__ = ("inputs", "name", "nodes", "outputs", "tensors")

    def __init__(self, name: str = ""):
        self.name = name
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}
        self.inputs: list[str] = []
        self.outputs: list[str] = []

    def add(self, tensor: Tensor) -> str:
        """Adds or replaces a tensor; returns its name."""
        self.tensors[tensor.name] = tensor
        return tensor.name

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a constant of this graph, or None."""
        t = self.tensors.get(name)
        return None if t is None else t.data

    def free_names(self) -> list[str]:
        """Names read here but defined in a graph around this one, in order of first use."""
        defined = set(self.inputs)
        defined.update(name for name, t in self.tensors.items() if t.data is not None)
        free: dict[str, None] = {}
        for node in self.nodes:
            for name in node.inputs:
                if name and name not in defined:
                    free[name] = None
            for sub in node.subgraphs():
                for name in sub.free_names():
                    if name not in defined:
                        free[name] = None
            defined.update(node.outputs)
        for name in self.outputs:
            if name not in defined:
                free[name] = None
        return list(free)


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
