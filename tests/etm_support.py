"""What the tests of the `.etm` format share: operators and models made for them, and ways to look into a file that
do not go through evort's reader."""

from __future__ import annotations

import itertools
import struct

import numpy as np

from evort.etm._generated import etm_generated as fb
from evort.etm._reader import xxh64
from evort.graph import Golden, Graph, Model, Node, Quantization, Sparsity, Tensor
from evort.ops import Attr, Op, op
from evort.ops.base import REQUIRED
from evort.sparse import expand
from evort.types import BITS, STORAGE, DType, dtype_of

DOMAIN = "test.etm"


@op("Any", domain=DOMAIN)
class Any(Op):
    """Takes anything: the format's tests need no meaning."""

    inputs, outputs = ("*X",), ("*Y",)
    attrs = {
        "i": Attr("int"), "f": Attr("float"), "s": Attr("str"), "t": Attr("tensor"), "g": Attr("graph"),
        "h": Attr("graph"), "is": Attr("ints"), "fs": Attr("floats"), "ss": Attr("strs"),
    }  # fmt: skip


@op("Strict", domain=DOMAIN)
class Strict(Op):
    """Two inputs, an optional third, one or two outputs, an attribute that must be there."""

    inputs, outputs = ("A", "B", "C?"), ("Y", "Z?")
    attrs = {"axis": Attr("int", 0), "mode": Attr("str", "x"), "body": Attr("graph"), "k": Attr("ints", REQUIRED)}


def node(inputs: list[str], outputs: list[str], name: str = "", **attrs: object) -> Node:
    return Node("Any", inputs, outputs, attrs, DOMAIN, name)


def random_array(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """Any values that the element type has, in its storage."""
    if dtype == DType.STRING:
        found = np.empty(int(np.prod(shape)), object)
        found[:] = ["".join(rng.choice(list("aé漢\U0001f600\0 "), rng.integers(0, 6))) for _ in range(found.size)]
        return found.reshape(shape)
    storage = STORAGE[dtype]
    if dtype == DType.BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    if BITS[dtype] < 8:
        low = -(1 << (BITS[dtype] - 1)) if storage.kind == "i" else 0
        return rng.integers(low, low + (1 << BITS[dtype]), shape).astype(storage)
    return rng.integers(0, 256, (*shape, storage.itemsize)).astype(np.uint8).view(storage).reshape(shape)


def convolutional() -> Model:
    """The shape of a small classifier: the ordinary case."""
    rng = np.random.default_rng(1)
    graph = Graph("classifier")
    graph.add(Tensor("image", DType.FLOAT, ("batch", 1, 28, 28)))
    graph.inputs = ["image"]
    previous = "image"
    for i, shape in enumerate([(6, 1, 5, 5), (16, 6, 5, 5), (120, 16, 5, 5), (84, 120), (10, 84)]):
        graph.add(Tensor(f"w{i}", DType.FLOAT, shape, rng.standard_normal(shape).astype(np.float32)))
        graph.add(Tensor(f"b{i}", DType.FLOAT, shape[:1], rng.standard_normal(shape[:1]).astype(np.float32)))
        attrs = {"is": [5, 5], "s": "SAME", "f": 1.0} if len(shape) == 4 else {"i": 1, "f": 0.5}
        graph.nodes.append(node([previous, f"w{i}", f"b{i}"], [f"y{i}"], f"layer{i}", **attrs))
        graph.nodes.append(node([f"y{i}"], [f"r{i}"]))
        previous = f"r{i}"
    graph.add(Tensor(previous, DType.FLOAT, ("batch", 10)))
    graph.outputs = [previous]
    return Model(graph, {"": 21, DOMAIN: 1}, {"labels": "0 1 2 3 4 5 6 7 8 9", "author": "é"}, "evort tests")


def all_types() -> Model:
    """A constant of each element type in several shapes, and one of each kind of attribute."""
    rng = np.random.default_rng(2)
    graph = Graph()
    for dtype in STORAGE:
        for i, shape in enumerate([(), (0,), (3,), (2, 0, 3), (3, 1, 5)]):
            name = f"{dtype.name.lower()} {i}"
            graph.add(Tensor(name, dtype, shape, random_array(rng, dtype, shape)))
    graph.add(Tensor("unknown", DType.SEQUENCE, None))
    graph.add(Tensor("some", DType.OPTIONAL, ("", 3, "n", 0)))
    graph.inputs = ["unknown", "some"]
    graph.nodes = [
        node(["unknown", "", "int4 2"], ["", "a"], i=1, f=1.0, s="", t=np.arange(6, dtype=np.int16).reshape(2, 3)),
        node([], ["b"], i=-(2**63), f=float("inf"), s="é", t=np.array("x", object), **{"is": [0, 2**63 - 1]}),
        node(["a"], ["c"], **{"is": [], "fs": [], "ss": []}),
        node(["c"], ["d"], fs=[1.0, -0.0, 5e-324], ss=["", "é", ""]),
    ]
    graph.outputs = ["d", "c", "unknown"]
    return Model(graph)


def quantized() -> Model:
    """Each scheme of quantization, each kind of sparsity."""
    rng = np.random.default_rng(3)
    graph = Graph("q")

    def scales(*shape: int) -> np.ndarray:
        return rng.uniform(0.001, 1, shape).astype(np.float32)

    def add(name: str, dtype: DType, shape: tuple, quant: Quantization | None = None, sparse: Sparsity | None = None,
            stored: tuple[int, ...] | None = None) -> None:  # fmt: skip
        data = None if any(isinstance(d, str) for d in shape) else random_array(rng, dtype, stored or shape)
        graph.add(Tensor(name, dtype, shape, data, quant, sparse))

    add("x", DType.UINT8, ("n", 3), Quantization("per_tensor", 8, scales(), np.array(128, np.uint8), range=(-1.0, 1.5)))
    add("a", DType.INT8, (4, 3), Quantization("per_tensor", 8, scales()))
    add("b", DType.INT8, (4, 3), Quantization("per_axis", 8, scales(3), np.array([-128, 0, 127], np.int8), axis=1))
    add("c", DType.INT4, (2, 10), Quantization("grouped", 4, scales(2, 3), random_array(rng, DType.INT4, (2, 3)), 1, 4))
    add("d", DType.UINT2, (5, 3), Quantization("grouped", 2, scales(3, 3), None, 0, 2))
    add("e", DType.FLOAT, ("n", 3), Quantization("per_axis", 6, scales(3), np.array([-32, 0, 31], np.int32), 1))
    add("f", DType.INT32, (2, 3), Quantization("per_axis", 32, scales(2), np.array([-(2**31), 2**31 - 1]), 0))
    kept = np.array([[0, 1, 2, 3], [1, 3, 0, 2]], np.uint8)
    add("n:m", DType.FLOAT, (2, 8), None, Sparsity("n:m", (2, 4), kept, DType.UINT2), (2, 4))
    add("blocks", DType.INT8, (4, 6), None, Sparsity("block", (2, 3), np.array([0, 2], np.uint8)), (2, 2, 3))
    add(
        "gaps",
        DType.INT4,
        (2, 40),
        None,
        Sparsity("block", (1, 1), np.array([3, 15, 0], np.uint8), DType.UINT4),
        (2, 1, 1),
    )
    add("none", DType.FLOAT16, (4, 6), None, Sparsity("block", (4, 2), np.array([], np.uint8)), (0, 4, 2))
    graph.inputs = ["x", "e"]
    graph.nodes = [node(list(graph.tensors), ["y"])]
    graph.tensors["a"].layout = "blocked"
    graph.outputs = ["y"]
    return Model(graph, producer="quantizer")


def nested(depth: int = 3) -> Model:
    """Graphs in graphs that read names from all around them; two branches that use the same names."""

    def body(level: int, outer: list[str]) -> Graph:
        graph = Graph(f"level {level}")
        mine = [f"in{level}", f"w{level}"]
        graph.add(Tensor(mine[0], DType.FLOAT, (2, "k")))
        graph.add(Tensor(mine[1], DType.INT64, (level,), np.arange(level)))
        graph.inputs = mine[:1]
        visible = outer + mine
        attrs = {"g": body(level + 1, visible), "h": body(level + 1, visible)} if level < depth else {}
        graph.nodes = [node(visible, [f"out{level}"], f"n{level}", **attrs), node([f"out{level}"], [f"last{level}"])]
        graph.outputs = [f"last{level}", outer[0] if outer else mine[0]]
        return graph

    return Model(body(0, []), {"": 20})


def guarded() -> Model:
    """Bounds of symbolic dimensions, and golden data of several types."""
    rng = np.random.default_rng(4)
    graph = Graph("guarded")
    for name, dtype, shape in (("x", DType.FLOAT, ("n", 3)), ("k", DType.INT4, (2,)), ("t", DType.STRING, None)):
        graph.add(Tensor(name, dtype, shape))
    graph.inputs = ["x", "k", "t"]
    graph.nodes = [node(graph.inputs, ["y", "z"])]
    graph.add(Tensor("y", DType.BFLOAT16, ("n", "")))
    graph.outputs = ["y", "z", "x"]
    shapes = {"x": (DType.FLOAT, (2, 3)), "k": (DType.INT4, (2,)), "t": (DType.STRING, (1,))}
    values = {name: random_array(rng, *kind) for name, kind in shapes.items()}
    outputs = {"y": random_array(rng, DType.BFLOAT16, (2, 4)), "z": np.array(5), "x": values["x"]}
    return Model(graph, bounds={"n": (0, 4), "m": (2**40, 2**63 - 1)}, golden=Golden(values, outputs, 1e-4))


SAMPLES = {
    "convolutional": convolutional, "all_types": all_types, "quantized": quantized, "nested": nested,
    "guarded": guarded,
}  # fmt: skip


def plain(model: Model) -> tuple:
    """All that a model says, as tuples that compare equal only where the models are; arrays bit by bit."""
    return (
        model.producer, tuple(sorted(model.opsets.items())), tuple(sorted(model.metadata.items())),
        _plain_graph(model.graph), tuple(sorted(model.bounds.items())),
        model.golden and (*(_plain_named(a) for a in (model.golden.inputs, model.golden.outputs)),
                          model.golden.tolerance),
    )  # fmt: skip


def _plain_named(arrays: dict[str, np.ndarray]) -> tuple:
    return tuple((name, _plain_array(arrays[name])) for name in sorted(arrays))


def _plain_graph(graph: Graph) -> tuple:
    tensors = tuple(
        (t.name, t.dtype, t.shape, t.layout, _plain_array(t.data, t.dtype),
         None if t.quant is None else _plain_quantization(t.quant),
         None if t.sparsity is None else _plain_sparsity(t.sparsity))
        for t in graph.tensors.values()
    )  # fmt: skip
    nodes = tuple(
        (n.op, n.domain, n.name, tuple(n.inputs), tuple(n.outputs),
         tuple((key, _plain_attribute(n.attrs[key])) for key in sorted(n.attrs)))
        for n in graph.nodes
    )  # fmt: skip
    return graph.name, tuple(graph.inputs), tuple(graph.outputs), tensors, nodes


def _plain_sparsity(s: Sparsity) -> tuple:
    return s.kind, tuple(s.block), s.index_type, _plain_array(s.indices)


def _plain_quantization(q: Quantization) -> tuple:
    return q.scheme, q.bits, q.axis, q.group, q.range, _plain_array(q.scale), _plain_array(q.zero_point)


def _plain_array(array: np.ndarray | None, dtype: DType | None = None) -> tuple | None:
    if array is None:
        return None
    items = tuple(array.reshape(-1).tolist()) if array.dtype == object else array.tobytes()
    return int(dtype or dtype_of(array)), array.shape, items


def _plain_attribute(value: object) -> tuple:
    if isinstance(value, Graph):
        return "graph", _plain_graph(value)
    if isinstance(value, np.ndarray):
        return "tensor", _plain_array(value)
    if isinstance(value, list | tuple):
        return "list", tuple(_plain_attribute(v) for v in value)
    return type(value).__name__, repr(value)


class Oracle:
    """Reads a file with FlatBuffers' generated code and a few lines of NumPy, trusting it: what `plain` would say."""

    HEADER = struct.Struct("<4s4B2I5QQ")

    def __init__(self, data: bytes):
        *_, at, length, self.weights_at, self.weights_length, _, _ = self.HEADER.unpack_from(data)
        self.data = data
        self.root = fb.Model.GetRootAs(data[at : at + length])
        self.strings = [self.root.Strings(i).decode() for i in range(self.root.StringsLength())]

    def plain(self) -> tuple:
        m, s = self.root, self.strings
        opsets = [m.Opsets(i) for i in range(m.OpsetsLength())]
        pairs = [m.Metadata(i) for i in range(m.MetadataLength())]
        return (
            s[m.Producer()], tuple(sorted((s[o.Domain()], o.Version()) for o in opsets)),
            tuple(sorted((s[p.Key()], s[p.Value()]) for p in pairs)), self.graph(m.Graph()),
            tuple(sorted((s[b.Name()], (b.Min(), b.Max())) for b in map(m.Symbols, range(m.SymbolsLength())))),
            m.Golden() and self.golden(m.Golden()),
        )  # fmt: skip

    def golden(self, g: fb.Golden) -> tuple:
        inputs, outputs = map(g.Inputs, range(g.InputsLength())), map(g.Outputs, range(g.OutputsLength()))
        arrays = (tuple(sorted((self.strings[a.Name()], self.array(a.Value())) for a in g)) for g in (inputs, outputs))
        return (*arrays, g.Tolerance())

    def names(self, get: object, n: int) -> tuple:
        return tuple(self.strings[get(i)] for i in range(n))

    def graph(self, g: fb.Graph) -> tuple:
        return (
            self.strings[g.Name()], self.names(g.Inputs, g.InputsLength()), self.names(g.Outputs, g.OutputsLength()),
            tuple(self.tensor(g.Tensors(i)) for i in range(g.TensorsLength())),
            tuple(self.node(g.Nodes(i)) for i in range(g.NodesLength())),
        )  # fmt: skip

    def shape(self, t: fb.Tensor) -> tuple | None:
        if t.ShapeIsNone():
            return None
        dims = [t.Shape(i) for i in range(t.ShapeLength())]
        return tuple(d if d >= 0 else self.strings[-1 - d] for d in dims)

    def value(self, blob: fb.Blob, dtype: int, shape: tuple) -> tuple:
        at = self.weights_at + blob.Offset()
        raw = self.data[at : at + blob.Length()]
        assert xxh64(raw) == blob.Checksum()
        count = int(np.prod(shape))
        if dtype == DType.STRING:
            ends = np.frombuffer(raw, "<u8", count + 1).tolist()
            text = raw[8 * (count + 1) :]
            return dtype, shape, tuple(text[a:b].decode() for a, b in itertools.pairwise(ends))
        bits = BITS[dtype]
        if bits < 8:
            mask = (1 << bits) - 1
            items = np.array([(byte >> s) & mask for byte in raw for s in range(0, 8, bits)][:count], np.uint8)
            if STORAGE[dtype].kind == "i":
                items = np.where(items >> (bits - 1), items.astype(int) - (1 << bits), items).astype(np.int8)
            return dtype, shape, items.tobytes()
        assert len(raw) == count * bits // 8
        return dtype, shape, raw

    def array(self, a: fb.Array | None) -> tuple | None:
        if a is None:
            return None
        dtype, shape, items = self.value(a.Data(), a.Dtype(), self.shape(a) or ())
        return int(dtype_of(np.empty(0, STORAGE[dtype]))), shape, items

    def tensor(self, t: fb.Tensor) -> tuple:
        shape, sparse = self.shape(t), None
        stored = shape
        if t.Sparsity() is not None:
            indices = self.array(t.Sparsity().Indices())
            block = tuple(t.Sparsity().Block(i) for i in range(t.Sparsity().BlockLength()))
            kind = DType(t.Sparsity().Indices().Dtype())
            sparse = (("n:m", "block")[t.Sparsity().Kind()], block, kind, indices)
            kept = len(indices[2].replace(bytes([(1 << BITS[kind]) - 1]), b""))
            stored = indices[1] if t.Sparsity().Kind() == fb.SparseKind.NM else (kept, *block)
        data = None if t.Data() is None else self.value(t.Data(), t.Dtype(), stored)
        quant = None if t.Quantization() is None else self.quantization(t.Quantization())
        return self.strings[t.Name()], DType(t.Dtype()), shape, self.strings[t.Layout()], data, quant, sparse

    def quantization(self, q: fb.Quantization) -> tuple:
        bounds = None if q.Range() is None else (q.Range().Min(), q.Range().Max())
        scheme = ("per_tensor", "per_axis", "grouped")[q.Scheme()]
        return scheme, q.Bits(), q.Axis(), q.Group(), bounds, self.array(q.Scale()), self.array(q.ZeroPoint())

    def node(self, n: fb.Node) -> tuple:
        s = self.strings
        inputs, outputs = self.names(n.Inputs, n.InputsLength()), self.names(n.Outputs, n.OutputsLength())
        attributes = tuple(self.attribute(n.Attributes(i)) for i in range(n.AttributesLength()))
        return s[n.Op()], s[n.Domain()], s[n.Name()], inputs, outputs, attributes

    def attribute(self, a: fb.Attribute) -> tuple:
        kind, t = a.Type(), fb.AttributeType
        if kind == t.Tensor:
            value = "tensor", self.array(a.Tensor())
        elif kind == t.Graph:
            value = "graph", self.graph(a.Graph())
        else:
            value = _plain_attribute({
                t.Int: a.I, t.Float: a.F, t.String: lambda: self.strings[a.S()],
                t.Ints: lambda: [a.Ints(i) for i in range(a.IntsLength())],
                t.Floats: lambda: [a.Floats(i) for i in range(a.FloatsLength())],
                t.Strings: lambda: list(self.names(a.Strings, a.StringsLength())),
            }[kind]())  # fmt: skip
        return self.strings[a.Key()], value


def assemble(
    metadata: bytes,
    weights: bytes = b"",
    version: tuple[int, int] = (1, 0),
    oldest: tuple[int, int] = (1, 0),
    flags: int = 0,
    **places: int,
) -> bytes:
    """A file of these parts with a right hash. places: header fields to set otherwise (metadata_offset, ...)."""
    start = -(-(64 + len(metadata)) // 64) * 64
    fields = {
        "metadata_offset": 64, "metadata_length": len(metadata), "weights_offset": start,
        "weights_length": len(weights), "file_size": start + len(weights),
    }  # fmt: skip
    fields.update(places)
    head = struct.pack("<4s4B2I5Q", b"\x89ETM", *version, *oldest, flags, 0, *fields.values())
    at, length = fields["metadata_offset"], fields["metadata_length"]
    file = bytearray(head + bytes(8) + metadata + bytes(start - 64 - len(metadata)) + weights)
    file[56:64] = struct.pack("<Q", xxh64(bytes(file[at : at + length]), xxh64(head)))
    return bytes(file)


def parts(file: bytes) -> tuple[bytes, bytes]:
    """Metadata and weights of a file."""
    *_, at, length, weights_at, weights_length, _, _ = Oracle.HEADER.unpack_from(file)
    return file[at : at + length], file[weights_at : weights_at + weights_length]


def check_model(model: Model) -> None:
    """What a Model that was read promises, whatever the file: fails by AssertionError. Touches every array's bytes."""
    _check_graph(model.graph, frozenset())
    assert all(name and 0 <= low <= high for name, (low, high) in model.bounds.items())
    if model.golden is not None:
        assert 0 <= model.golden.tolerance < np.inf
        for arrays, names in (
            (model.golden.inputs, model.graph.inputs),
            (model.golden.outputs, model.graph.outputs),
        ):
            assert arrays.keys() == set(names)
            for array in arrays.values():
                _check_array(array)


def _check_graph(graph: Graph, outer: frozenset[str]) -> None:
    constants = [t for t in graph.tensors.values() if t.data is not None]
    for t in constants:
        _check_array(t.data)
        assert t.data.dtype == STORAGE[t.dtype]
        dense = t.data if t.sparsity is None else expand(t.data, t.sparsity, t.shape)
        assert dense.shape == t.shape
        if t.quant is not None:
            assert np.isfinite(t.quant.scale).all() and (t.quant.scale > 0).all()
    for t in graph.tensors.values():
        assert t.shape is None or all(isinstance(d, str) or d >= 0 for d in t.shape)
        for array in (t.quant and t.quant.scale, t.quant and t.quant.zero_point, t.sparsity and t.sparsity.indices):
            if array is not None:
                _check_array(array)
    defined = set(outer)
    for name in [t.name for t in constants] + graph.inputs:
        assert name and name not in defined and name in graph.tensors
        defined.add(name)
    for n in graph.nodes:
        assert n.op and all(name in defined for name in n.inputs if name)
        for value in n.attrs.values():
            if isinstance(value, Graph):
                _check_graph(value, frozenset(defined))
            elif isinstance(value, np.ndarray):
                _check_array(value)
        for name in filter(None, n.outputs):
            assert name not in defined
            defined.add(name)
    assert all(name in defined for name in graph.outputs)


def _check_array(array: np.ndarray) -> None:
    assert not array.flags.writeable and array.flags.c_contiguous and array.flags.aligned
    if array.dtype == object:
        assert all(isinstance(item, str) for item in array.reshape(-1))
    else:
        array.tobytes()
    if array.dtype == bool:
        assert (array.view(np.uint8) <= 1).all()
