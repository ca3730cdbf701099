"""What differs between two `.etm` files, for `evort diff` and for tests.

Nodes are matched by the first name that they write, tensors by their name, nested graphs by the node and attribute
that hold them.
"""

from __future__ import annotations

import os

import numpy as np

from evort.etm import File, read
from evort.graph import Golden, Graph, Model, Node, Quantization, Sparsity, Tensor
from evort.types import FLOAT8, DType

_CHUNK = 1 << 20  # elements compared at a time: two large weights need no third array of their size


class Difference:
    """One thing that differs.

    where: the part of the file, such as "header", "node Conv 'c1'" or "tensor 'w'"; `If 'i' else_branch / ` stands
      before parts of nested graphs. what: which property. a, b: what each file says (of arrays: the items that differ
      most); None where it lacks it. max_abs: the largest absolute difference of two arrays (infinity for strings, and
      where one item is NaN), else None.
    """

    __slots__ = ("a", "b", "max_abs", "what", "where")

    def __init__(self, where: str, what: str, a: object, b: object, max_abs: float | None = None):
        self.where = where
        self.what = what
        self.a = a
        self.b = b
        self.max_abs = max_abs

    def as_dict(self) -> dict[str, object]:
        """The fields, for JSON."""
        return {key: getattr(self, key) for key in ("where", "what", "a", "b", "max_abs")}

    def __repr__(self) -> str:
        return f"{self.where}: {self.what}: {self.a!r} | {self.b!r}"


def diff(a: File | str | os.PathLike | bytes, b: File | str | os.PathLike | bytes) -> list[Difference]:
    """What differs between two files, given as paths, as bytes or read already; empty where both say the same.

    Operators need not be known. Raises EtmFormatError for a damaged file, and OSError.
    """
    a, b = (f if isinstance(f, File) else read(f, checksum=True, operators=False) for f in (a, b))
    found: list[Difference] = []
    for key in ("version", "oldest", "flags"):
        _compare(found, "header", key, getattr(a.header, key), getattr(b.header, key))
    _models(found, a.model, b.model)
    if not found and a.header.hash != b.header.hash:
        # Such as another order of tensors or of the strings: no reader sees it.
        found.append(Difference("header", "hash (the same content, laid out otherwise)", a.header.hash, b.header.hash))
    return found


def diff_models(a: Model, b: Model) -> list[Difference]:
    """What differs between two models in memory."""
    found: list[Difference] = []
    _models(found, a, b)
    return found


def _compare(found: list[Difference], where: str, what: str, a: object, b: object) -> None:
    if a != b:
        found.append(Difference(where, what, a, b))


def _models(found: list[Difference], a: Model, b: Model) -> None:
    _compare(found, "model", "producer", a.producer, b.producer)
    for what, field in (("opset", "opsets"), ("metadata", "metadata"), ("bounds of", "bounds")):
        x, y = getattr(a, field), getattr(b, field)
        for key in sorted(x.keys() | y.keys()):
            _compare(found, what, repr(key), x.get(key), y.get(key))
    _golden(found, a.golden, b.golden)
    _graphs(found, a.graph, b.graph, "")


def _golden(found: list[Difference], a: Golden | None, b: Golden | None) -> None:
    if a is None or b is None:
        _compare(found, "model", "golden", a and "Golden", b and "Golden")
        return
    _compare(found, "golden", "tolerance", a.tolerance, b.tolerance)
    for what in ("inputs", "outputs"):
        x, y = getattr(a, what), getattr(b, what)
        for name in sorted(x.keys() | y.keys()):
            _arrays(found, f"golden {what}", repr(name), x.get(name), y.get(name), None)


def _graphs(found: list[Difference], a: Graph, b: Graph, path: str) -> None:
    where = f"{path}graph {a.name!r}"
    for what in ("name", "inputs", "outputs"):
        _compare(found, where, what, getattr(a, what), getattr(b, what))
    nodes_a, nodes_b = _by_output(a), _by_output(b)
    for name in nodes_a.keys() | nodes_b.keys():
        if name not in nodes_a or name not in nodes_b:
            node_a, node_b = nodes_a.get(name), nodes_b.get(name)
            labels = (None if n is None else n.label() for n in (node_a, node_b))
            found.append(Difference(f"{path}node {(node_a or node_b).label()}", "only in one file", *labels))
    order_a = [name for name in nodes_a if name in nodes_b]
    _compare(found, where, "order of nodes", order_a, [name for name in nodes_b if name in nodes_a])
    for name in order_a:
        _nodes(found, nodes_a[name], nodes_b[name], path)
    for name in [*a.tensors, *(n for n in b.tensors if n not in a.tensors)]:
        _tensors(found, a.tensors.get(name), b.tensors.get(name), f"{path}tensor {name!r}")


def _by_output(graph: Graph) -> dict[str, Node]:
    """Nodes by the first name that they write (and those that write none by their place)."""
    return {next(filter(None, node.outputs), f"node {i}"): node for i, node in enumerate(graph.nodes)}


def _nodes(found: list[Difference], a: Node, b: Node, path: str) -> None:
    where = f"{path}node {a.label()}"
    for what in ("op", "domain", "name", "inputs", "outputs"):
        _compare(found, where, what, getattr(a, what), getattr(b, what))
    for key in sorted(a.attrs.keys() | b.attrs.keys()):
        x, y = a.attrs.get(key), b.attrs.get(key)
        if isinstance(x, Graph) and isinstance(y, Graph):
            _graphs(found, x, y, f"{path}{a.label()} {key} / ")
        elif isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            _arrays(found, where, f"attribute {key}", x, y, None)
        elif type(x) is not type(y) or _plain(x) != _plain(y):
            found.append(Difference(where, f"attribute {key}", _plain(x), _plain(y)))


def _plain(value: object) -> object:
    """An attribute as it can be compared and shown; numbers of different types differ (1 and 1.0)."""
    if isinstance(value, list | tuple):
        return repr(list(value))
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, Graph):
        return f"graph {value.name!r}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return repr(value)


def _tensors(found: list[Difference], a: Tensor | None, b: Tensor | None, where: str) -> None:
    if a is None or b is None:
        found.append(Difference(where, "only in one file", a and repr(a), b and repr(b)))
        return
    for what in ("dtype", "shape", "layout"):
        x, y = getattr(a, what), getattr(b, what)
        if x != y:
            x, y = (v.name if isinstance(v, DType) else v for v in (x, y))
            found.append(Difference(where, what, x, y))
    _objects(found, where, "quantization", a.quant, b.quant, Quantization, ("scale", "zero_point"))
    _objects(found, where, "sparsity", a.sparsity, b.sparsity, Sparsity, ("indices",))
    _arrays(found, where, "data", a.data, b.data, a.dtype if a.dtype == b.dtype else None)


def _objects(
    found: list[Difference], where: str, what: str, a: object, b: object, kind: type, arrays: tuple[str, ...]
) -> None:
    if a is None or b is None:
        _compare(found, where, what, a and kind.__name__, b and kind.__name__)
        return
    for key in kind.__slots__:
        x, y = getattr(a, key), getattr(b, key)
        if key in arrays:
            _arrays(found, where, f"{what} {key}", x, y, None)
        else:
            _compare(found, where, f"{what} {key}", x, y)


def _arrays(
    found: list[Difference], where: str, what: str, a: np.ndarray | None, b: np.ndarray | None, dtype: DType | None
) -> None:
    """Compares bit by bit. dtype: the element type, where the arrays' own dtype does not tell it."""
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        if a is not b:
            found.append(Difference(where, what, *(None if x is None else f"{x.dtype}{list(x.shape)}" for x in (a, b))))
        return
    x, y = np.ascontiguousarray(a).reshape(-1), np.ascontiguousarray(b).reshape(-1)
    count, largest, at = 0, -1.0, 0
    for start in range(0, x.size, _CHUNK):
        p, q = x[start : start + _CHUNK], y[start : start + _CHUNK]
        unequal = np.flatnonzero(p != q if p.dtype == object else (_bytes(p) != _bytes(q)).any(axis=1))
        if unequal.size:
            gaps = _gaps(p[unequal], q[unequal], dtype)
            worst = int(gaps.argmax())
            if gaps[worst] > largest:
                largest, at = float(gaps[worst]), start + int(unequal[worst])
            count += unequal.size
    if count:
        what += f", {count} of {x.size} items, at worst item {at}"
        found.append(Difference(where, what, *(v[at : at + 1].tolist()[0] for v in (x, y)), largest))


def _bytes(array: np.ndarray) -> np.ndarray:
    """[items, bytes of an item]: NaN equals itself, and 0 is not -0."""
    return array.view(np.uint8).reshape(array.size, -1)


def _gaps(a: np.ndarray, b: np.ndarray, dtype: DType | None) -> np.ndarray:
    """Absolute differences as float64: infinity where only one is NaN or where there is no number (strings), 0 where
    both are NaN."""
    if a.dtype == object:
        return np.full(a.size, np.inf)
    if dtype is not None and dtype in FLOAT8 | {DType.BFLOAT16, DType.FLOAT4E2M1}:
        from evort.ops.lowp import widen

        a, b = widen(a, dtype), widen(b, dtype)
    kind = np.complex128 if a.dtype.kind == "c" else np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        gaps = np.abs(a.astype(kind) - b.astype(kind))
    gaps[np.isnan(gaps)] = np.inf
    gaps[(np.isnan(a) & np.isnan(b)) | (a == b)] = 0
    return gaps
