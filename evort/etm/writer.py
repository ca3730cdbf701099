"""Writes `.etm` files.

    Model --_Metadata--> FlatBuffer (knows each blob's place and checksum)  \
          --_Blobs-----> places of the blobs                                 --> header, metadata, blobs one by one

The arrays are read twice, once for their checksums and once to be written, and never held together.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator

import flatbuffers
import numpy as np

from evort.etm import read
from evort.etm._generated import etm_generated as fb
from evort.etm._reader import ALIGNMENT, IDENTIFIER, MAGIC, VERSION, blob_alignment, parse, xxh64
from evort.graph import Attribute, Dim, Golden, Graph, Model, Node, Quantization, Sparsity, Tensor
from evort.ops.base import find
from evort.types import BITS, STORAGE, DType, dtype_of

HEADER = struct.Struct("<4s4B2I5QQ")  # magic, version, oldest reader, flags, reserved, places, file size, hash
PAGE = 4096
PAGE_WORTH = 1 << 20  # from so many bytes of weights on, they start on a page: the padding is below 0.4 % then

_SCHEMES = {"per_tensor": fb.Scheme.PerTensor, "per_axis": fb.Scheme.PerAxis, "grouped": fb.Scheme.Grouped}
_SPARSE_KINDS = {"n:m": fb.SparseKind.NM, "block": fb.SparseKind.Block}
_LIST_TYPES = {"floats": fb.AttributeType.Floats, "strs": fb.AttributeType.Strings}


def write(model: Model, path: str | os.PathLike | None = None) -> bytes | None:
    """See `evort.etm.write`."""
    blobs = _Blobs()
    metadata = _Metadata(model, blobs).finish()
    if path is None:
        data = b"".join(_parts(metadata, blobs))
        parse(data, True, False)
        return data
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.urandom(6).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            for part in _parts(metadata, blobs):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        read(temporary, checksum=True, operators=False).close()
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)
    return None


def _sync_folder(folder: str) -> None:
    """Makes the renaming last through a power cut, where the system lets a folder be opened for that."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _round_up(n: int, to: int) -> int:
    return -(-n // to) * to


def _parts(metadata: bytes, blobs: _Blobs) -> Iterator[bytes | memoryview]:
    """The file's bytes, in order."""
    offsets = blobs.places()
    last = next(reversed(offsets), None)
    length = 0 if last is None else offsets[last] + blobs.sizes[last]
    start = _round_up(HEADER.size + len(metadata), PAGE if length >= PAGE_WORTH else ALIGNMENT)
    places = (HEADER.size, len(metadata), start, length, start + length)
    header = HEADER.pack(MAGIC, *VERSION, 1, 0, 0, 0, *places, 0)[:-8]
    yield header + struct.pack("<Q", xxh64(metadata, xxh64(header)))
    yield metadata
    yield bytes(start - HEADER.size - len(metadata))
    end = 0
    for number, offset in offsets.items():
        yield bytes(offset - end)
        data = _encode(*blobs.arrays[number])
        yield data
        end = offset + len(data)


def _encode(array: np.ndarray, dtype: DType) -> bytes | memoryview:
    """An array's bytes in the file; a view of it where they are the same."""
    if dtype == DType.STRING:
        texts = [_text(item).encode() for item in array.reshape(-1).tolist()]
        ends = np.zeros(len(texts) + 1, np.uint64)
        np.cumsum([len(t) for t in texts], out=ends[1:])
        return ends.tobytes() + b"".join(texts)
    bits = BITS[dtype]
    if bits < 8:
        per = 8 // bits
        items = np.zeros(_round_up(array.size, per), np.uint8)
        items[: array.size] = array.reshape(-1).view(np.uint8) & ((1 << bits) - 1)
        packed = np.zeros(items.size // per, np.uint8)
        for i in range(per):
            packed |= items[i::per] << (bits * i)
        return packed.tobytes()
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _text(item: object) -> str:
    """An item of a string tensor."""
    if isinstance(item, bytes):
        item = item.decode()
    if not isinstance(item, str):
        raise TypeError(f"a string tensor holds {item!r}")
    return item


class _Blobs:
    """The weight segment: which arrays it holds, and where. Arrays of the same bytes share a place; short ones come
    behind all others, where they need not be aligned as those are."""

    def __init__(self):
        self.arrays: list[tuple[np.ndarray, DType]] = []
        self.sizes: list[int] = []
        self._known: dict[tuple[DType, int, int], int] = {}

    def add(self, array: np.ndarray, dtype: DType, where: str) -> tuple[int, int, int]:
        """Number, length and checksum. Raises TypeError for an array that does not hold what `dtype` means."""
        if array.dtype != STORAGE[dtype]:
            raise TypeError(f"{where}: {dtype.name.lower()} is held as {STORAGE[dtype]}, not {array.dtype}")
        if BITS.get(dtype, 8) < 8 and array.size:
            signed = array.dtype.kind == "i"
            low = -(1 << (BITS[dtype] - 1)) if signed else 0
            if array.min() < low or array.max() >= low + (1 << BITS[dtype]):
                raise TypeError(f"{where}: a value is outside {dtype.name.lower()}")
        data = _encode(array, dtype)
        key = (dtype, len(data), xxh64(data))
        known = self._known.get(key)
        if known is not None and _encode(self.arrays[known][0], dtype) == data:
            return known, key[1], key[2]
        number = self._known[key] = len(self.arrays)
        self.arrays.append((array, dtype))
        self.sizes.append(len(data))
        return number, key[1], key[2]

    def places(self) -> dict[int, int]:
        """{number: offset}, by ascending offset."""
        found: dict[int, int] = {}
        end = 0
        for number in sorted(range(len(self.sizes)), key=lambda i: -blob_alignment(self.sizes[i])):
            found[number] = _round_up(end, blob_alignment(self.sizes[number]))
            end = found[number] + self.sizes[number]
        return found


class _Metadata:
    """The FlatBuffer of one model."""

    def __init__(self, model: Model, blobs: _Blobs):
        self.model = model
        self.blobs = blobs
        self.builder = flatbuffers.Builder(1 << 14)
        self.blobs_at: list[tuple[int, int]] = []  # bytes from the end of the buffer, and the blob's number
        self.strings: dict[str, int] = {"": 0}

    def finish(self) -> bytes:
        builder, model = self.builder, self.model
        graph = self._graph(model.graph)
        opsets = self._pairs(fb.CreateOpset, [(self._name(d), v) for d, v in sorted(model.opsets.items())])
        metadata = self._pairs(
            fb.CreateKeyValue, [(self._name(k), self._name(v)) for k, v in sorted(model.metadata.items())]
        )
        producer = self._name(model.producer)
        symbols = self._offsets([self._bounds(name, *model.bounds[name]) for name in sorted(model.bounds)])
        golden = None if model.golden is None else self._golden(model.golden)
        strings = self._offsets([builder.CreateString(text) for text in self.strings])
        root = self._table(
            "Model",
            Strings=strings,
            Graph=graph,
            Producer=producer,
            Opsets=opsets,
            Metadata=metadata,
            Symbols=symbols,
            Golden=golden,
        )
        builder.Finish(root, IDENTIFIER)
        data = builder.Output()  # in which only the blobs' places are still open
        offsets = self.blobs.places()
        for at, number in self.blobs_at:
            struct.pack_into("<Q", data, len(data) - at, offsets[number])
        return bytes(data)

    def _bounds(self, name: str, low: int, high: int) -> int:
        return self._table("Symbol", Name=self._name(name), Min=low, Max=high)

    def _golden(self, golden: Golden) -> int:
        inputs, outputs = (
            self._offsets([
                self._table("NamedArray", Name=self._name(name), Value=self._array(array, f"golden {name!r}"))
                for name, array in sorted(arrays.items())
            ])
            for arrays in (golden.inputs, golden.outputs)
        )  # fmt: skip
        return self._table("Golden", Inputs=inputs, Outputs=outputs, Tolerance=golden.tolerance)

    def _table(self, kind: str, **fields: object) -> int:
        """A table. A field that is None is left out; a callable makes a struct, which must be made in its place."""
        getattr(fb, f"{kind}Start")(self.builder)
        for key, value in fields.items():
            if value is not None:
                getattr(fb, f"{kind}Add{key}")(self.builder, value() if callable(value) else value)
        return getattr(fb, f"{kind}End")(self.builder)

    def _name(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"{text!r} should be a str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TypeError(f"{text!r} cannot be stored as UTF-8: {error.reason}") from None
        return self.strings.setdefault(text, len(self.strings))

    def _offsets(self, offsets: list[int]) -> int | None:
        if not offsets:
            return None
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return self.builder.EndVector()

    def _numbers(self, values: list, dtype: type, keep_empty: bool = False) -> int | None:
        if not values and not keep_empty:
            return None
        try:
            return self.builder.CreateNumpyVector(np.array(values, dtype))
        except OverflowError as error:
            raise TypeError(f"{values!r:.80} cannot be stored as {np.dtype(dtype)}: {error}") from None

    def _names(self, texts: list[str]) -> int | None:
        return self._numbers([self._name(text) for text in texts], np.uint32)

    def _pairs(self, create: object, pairs: list[tuple[int, int]]) -> int | None:
        if not pairs:
            return None
        self.builder.StartVector(8, len(pairs), 4)
        for pair in reversed(pairs):
            create(self.builder, *pair)
        return self.builder.EndVector()

    def _dims(self, shape: tuple[Dim, ...]) -> int | None:
        dims = [d if not isinstance(d, str) else -1 - self._name(d) for d in shape]
        if any(not isinstance(d, str) and d < 0 for d in shape):
            raise TypeError(f"{shape} is no shape")
        return self._numbers(dims, np.int64, keep_empty=True)

    def _blob(self, array: np.ndarray, dtype: DType, where: str) -> object:
        number, length, checksum = self.blobs.add(array, dtype, where)

        def make() -> int:
            offset = fb.CreateBlob(self.builder, 0, length, checksum)
            self.blobs_at.append((self.builder.Offset(), number))
            return offset

        return make

    def _array(self, array: np.ndarray, where: str, dtype: DType | None = None) -> int:
        dtype = dtype_of(array) if dtype is None else dtype
        if array.dtype.kind in "US":
            array = array.astype(object)
        elif array.dtype != STORAGE[dtype]:
            # One of ml_dtypes' kinds of number: integers as such, floats as their bits.
            array = array.astype(STORAGE[dtype]) if "INT" in dtype.name else array.view(STORAGE[dtype])
        shape = self._dims(array.shape) if array.ndim else None
        return self._table("Array", Dtype=int(dtype), Shape=shape, Data=self._blob(array, dtype, where))

    def _graph(self, graph: Graph) -> int:
        tensors = self._offsets([self._tensor(t) for t in graph.tensors.values()])
        nodes = self._offsets([self._node(n) for n in graph.nodes])
        inputs, outputs = self._names(graph.inputs), self._names(graph.outputs)
        name = self._name(graph.name)
        return self._table("Graph", Name=name, Tensors=tensors, Inputs=inputs, Outputs=outputs, Nodes=nodes)

    def _tensor(self, tensor: Tensor) -> int:
        where = f"tensor {tensor.name!r}"
        data = None
        if tensor.data is not None:
            if tensor.sparsity is None and tensor.data.shape != tensor.shape:
                raise TypeError(f"{where}: the data have shape {tensor.data.shape}, not {tensor.shape}")
            data = self._blob(tensor.data, tensor.dtype, where)
        quantization = None if tensor.quant is None else self._quantization(tensor.quant, where)
        sparsity = None if tensor.sparsity is None else self._sparsity(tensor.sparsity, where)
        name = self._name(tensor.name)
        shape = None if tensor.shape is None else self._dims(tensor.shape)
        return self._table(  # in the order that takes least padding
            "Tensor",
            Layout=self._name(tensor.layout),
            Name=name,
            Quantization=quantization,
            Sparsity=sparsity,
            Data=data,
            Dtype=int(tensor.dtype),
            Shape=shape,
        )

    def _quantization(self, q: Quantization, where: str) -> int:
        if q.scheme not in _SCHEMES:
            raise TypeError(f"{where}: there is no quantization scheme {q.scheme!r}; there are {', '.join(_SCHEMES)}")
        scale = self._array(np.asarray(q.scale), f"{where}, scale")
        zero_point = None if q.zero_point is None else self._array(np.asarray(q.zero_point), f"{where}, zero point")
        bounds = q.range
        return self._table(
            "Quantization",
            Scheme=_SCHEMES[q.scheme],
            Bits=q.bits,
            Axis=q.axis,
            Group=q.group,
            Scale=scale,
            ZeroPoint=zero_point,
            Range=None if bounds is None else lambda: fb.CreateRange(self.builder, *bounds),
        )

    def _sparsity(self, sparsity: Sparsity, where: str) -> int:
        if sparsity.kind not in _SPARSE_KINDS:
            raise TypeError(f"{where}: there is no sparsity {sparsity.kind!r}; there are {', '.join(_SPARSE_KINDS)}")
        indices = self._array(np.asarray(sparsity.indices), f"{where}, indices", sparsity.index_type)
        block = self._numbers(list(sparsity.block), np.uint32)
        return self._table("Sparsity", Kind=_SPARSE_KINDS[sparsity.kind], Block=block, Indices=indices)

    def _node(self, node: Node) -> int:
        attributes = self._offsets([self._attribute(key, node.attrs[key], node) for key in sorted(node.attrs)])
        inputs, outputs = self._names(node.inputs), self._names(node.outputs)
        return self._table(
            "Node",
            Op=self._name(node.op),
            Domain=self._name(node.domain),
            Name=self._name(node.name),
            Inputs=inputs,
            Outputs=outputs,
            Attributes=attributes,
        )

    def _attribute(self, key: str, value: Attribute, node: Node) -> int:
        where = f"{node.label()}, attribute {key!r}"
        kind = fb.AttributeType
        if isinstance(value, int | np.integer):
            fields = {"I": int(value), "Type": kind.Int}
        elif isinstance(value, float | np.floating):
            fields = {"F": float(value), "Type": kind.Float}
        elif isinstance(value, str):
            fields = {"S": self._name(value), "Type": kind.String}
        elif isinstance(value, np.ndarray):
            fields = {"Tensor": self._array(value, where), "Type": kind.Tensor}
        elif isinstance(value, Graph):
            fields = {"Graph": self._graph(value), "Type": kind.Graph}
        elif isinstance(value, list | tuple):
            fields = self._list(key, list(value), node, where)
        else:
            raise TypeError(f"{where}: there is no attribute of {type(value).__name__}")
        return self._table("Attribute", Key=self._name(key), **fields)

    def _list(self, key: str, values: list, node: Node, where: str) -> dict[str, object]:
        kind = fb.AttributeType
        if not values:  # what it is a list of, only the operator's definition tells
            definition = find(node.op, node.domain)
            attr = definition.attrs.get(key) if definition else None
            return {"Type": _LIST_TYPES.get(attr.kind, kind.Ints) if attr else kind.Ints}
        if all(isinstance(v, int | np.integer) for v in values):
            return {"Ints": self._numbers(values, np.int64), "Type": kind.Ints}
        if all(isinstance(v, int | float | np.integer | np.floating) for v in values):
            return {"Floats": self._numbers(values, np.float64), "Type": kind.Floats}
        if all(isinstance(v, str) for v in values):
            return {"Strings": self._names(values), "Type": kind.Strings}
        raise TypeError(f"{where}: a list of {', '.join(sorted({type(v).__name__ for v in values}))}")
