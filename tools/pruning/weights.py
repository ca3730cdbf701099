"""Which weights can be pruned, and how pruned ones are stored: without their zeros (evort/sparse.py)."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase

import numpy as np

from evort.graph import Graph, Model, Node, Tensor
from evort.ops.base import find
from evort.sparse import compress, expand
from evort.types import BITS, DType
from evort_tools.pruning.patterns import Pattern
from evort_tools.quantization.qdq import copy_model

# The operand that holds the weights, by operator; products have them as [n, k] with transB, else as [k, n].
OPERAND = {"Conv": 1, "Gemm": 1, "MatMul": 1, "QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}
ZERO_POINT = {"QLinearConv": 5, "QLinearMatMul": 5, "QGemm": 5}
SMALL = 1024  # weights of a layer that is left as it is
_STORED = frozenset({DType.FLOAT, DType.INT8, DType.INT4})
WORTH = 0.9  # of the dense bytes, at most


class Weight:
    """A product's constant weights.

    name: of the tensor; node: the product; transposed: whether the matrix [rows, columns] of output channels by what is
    added up is the tensor's transpose.
    """

    __slots__ = ("name", "node", "transposed")

    def __init__(self, name: str, node: Node, transposed: bool):
        self.name = name
        self.node = node
        self.transposed = transposed

    def matrix(self, array: np.ndarray) -> np.ndarray:
        """An array of the tensor's shape as the matrix: a view."""
        return array.T if self.transposed else array.reshape(array.shape[0], -1)

    def like(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The inverse of `matrix`."""
        return (matrix.T if self.transposed else matrix).reshape(shape)


def weights_of(graph: Graph) -> list[Weight]:
    """The constant weights of all products of a graph that a single node reads, depthwise convolutions excepted."""
    reads = Counter(name for node in graph.nodes for name in node.inputs)
    for node in graph.nodes:
        for sub in node.subgraphs():
            reads.update(sub.free_names())
    reads.update(graph.outputs)
    found = []
    for node in graph.nodes:
        at = OPERAND.get(node.op)
        if at is None or node.domain not in ("", "com.microsoft") or len(node.inputs) <= at:
            continue
        tensor = graph.tensors.get(node.inputs[at])
        if tensor is None or tensor.data is None or reads[tensor.name] != 1 or tensor.dtype not in _STORED:
            continue
        if node.op.endswith("Conv"):
            if tensor.shape[1] > 1 or node.attrs.get("group", 1) == 1:
                found.append(Weight(tensor.name, node, False))
        elif len(tensor.shape) == 2:
            found.append(Weight(tensor.name, node, not node.attrs.get("transB", 0)))
    return found


def chosen(graph: Graph, exclude: tuple[str, ...] = ()) -> tuple[list[Weight], dict[str, str]]:
    """The weights to prune, and {tensor: why} of those that are left as they are: small ones, the first convolution's
    (of four channels or fewer), and what `exclude` names (nodes, tensors, operators; with * and ?).

    Raises ValueError for an excluded name that fits nothing.
    """
    found, kept = [], {}
    unused = set(exclude)
    for weight in weights_of(graph):
        tensor, node = graph.tensors[weight.name], weight.node
        names = (weight.name, node.name, node.op, *node.outputs)
        hits = [p for p in exclude if any(fnmatchcase(name, p) for name in names if name)]
        unused.difference_update(hits)
        if hits:
            kept[weight.name] = "excluded"
        elif np.prod(tensor.shape) < SMALL:
            kept[weight.name] = f"fewer than {SMALL} weights"
        elif node.op == "Conv" and tensor.shape[1] <= 4:
            kept[weight.name] = "a convolution of few channels, as the first one is"
        else:
            found.append(weight)
    if unused:
        raise ValueError(f"nothing to prune is called {', '.join(sorted(unused))}")
    return found, kept


def zero_share(matrix: np.ndarray) -> float:
    return 1 - np.count_nonzero(matrix) / max(1, matrix.size)


def stored_bytes(tensor: Tensor) -> int:
    """Bytes of a constant in a file, with its indices."""
    size = -(-tensor.data.size * BITS[tensor.dtype] // 8)
    if tensor.sparsity is not None:
        size += -(-tensor.sparsity.indices.size * BITS[tensor.sparsity.index_type] // 8)
    return size


def encode(model: Model, pattern: Pattern, bits: int = 8) -> list[str]:
    """Stores weights without their zeros, in place, where that makes them smaller: those whose zeros have the pattern
    and that are not shifted by a zero point. Returns the tensors' names.

    bits: where this is 4, int8 weights that need no more are stored so. A product's weights are transposed to [n, k]
    where its operator has `transB`: then every pattern is one of rows."""
    graph = model.graph
    changed = []
    for weight in weights_of(graph):
        node, tensor = weight.node, graph.tensors[weight.name]
        if tensor.sparsity is not None or not _unshifted(graph, node):
            continue
        matrix = weight.matrix(tensor.data)
        turns = weight.transposed and "transB" in find(node.op, node.domain).attrs
        block, shape, as_stored = pattern.block, tensor.shape, tensor.data
        if turns:
            shape, as_stored = matrix.shape, matrix
        elif weight.transposed:
            if pattern.kind == "n:m":
                continue
            block = block[::-1]
        try:
            data, sparsity = compress(as_stored, pattern.kind, block)
        except ValueError:
            continue
        few = bits == 4 and tensor.dtype == DType.INT8 and data.size and data.min() >= -8 and data.max() < 8
        new = Tensor(tensor.name, DType.INT4 if few else tensor.dtype, shape, data, None, sparsity)
        if stored_bytes(new) > WORTH * tensor.data.size * BITS[new.dtype] / 8:
            continue
        graph.add(new)
        at = ZERO_POINT.get(node.op, len(node.inputs))
        if few and at < len(node.inputs) and node.inputs[at]:
            zero = graph.tensors[node.inputs[at]]
            name = graph.add(Tensor(f"{tensor.name}/zero", DType.INT4, zero.shape, zero.data.astype(np.int8)))
            node.inputs = [name if i == at else n for i, n in enumerate(node.inputs)]
        if turns:
            node.attrs = {**node.attrs, "transB": 1}
        changed.append(tensor.name)
    return changed


def _unshifted(graph: Graph, node: Node) -> bool:
    at = ZERO_POINT.get(node.op)
    if at is None or len(node.inputs) <= at or not node.inputs[at]:
        return True
    zero = graph.constant(node.inputs[at])
    return zero is not None and not zero.any()


def dense(model: Model) -> Model:
    """The model with all zeros filled in: a copy where there are sparse constants, which passes do not know."""
    if all(t.sparsity is None for t in model.graph.tensors.values()):
        return model
    copied = copy_model(model)
    for t in list(copied.graph.tensors.values()):
        if t.sparsity is not None:
            full = expand(t.data, t.sparsity, t.shape)
            copied.graph.add(Tensor(t.name, t.dtype, t.shape, full, t.quant, None, t.layout))
    return copied


__all__ = ["Weight", "chosen", "dense", "encode", "stored_bytes", "weights_of", "zero_share"]
