"""Reads ONNX models: from a path, bytes or a ModelProto, with weights inside the file or beside it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from evort.errors import ConversionError
from evort.types import STORAGE, DType

# Element types whose raw bytes in an ONNX file are those of the NumPy array (little-endian), so that external data can
# be mapped instead of read.
_PLAIN = frozenset({
    DType.FLOAT, DType.UINT8, DType.INT8, DType.UINT16, DType.INT16, DType.INT32, DType.INT64, DType.BOOL,
    DType.FLOAT16, DType.DOUBLE, DType.UINT32, DType.UINT64, DType.COMPLEX64, DType.COMPLEX128, DType.BFLOAT16,
})  # fmt: skip


class Source:
    """A model to convert: the proto, the folder of its external data (None where there is none) and the SHA-256 of
    what was read (the file's bytes, or the proto's deterministic serialization)."""

    def __init__(self, proto: onnx.ModelProto, folder: Path | None, sha256: str):
        self.proto = proto
        self.folder = folder
        self.sha256 = sha256


def read(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Source:
    """Loads a model. External data stays where it is until `array` maps it.

    Raises ConversionError for something that is no ONNX model, OSError for a file that cannot be read.
    """
    if isinstance(model, onnx.ModelProto):
        return Source(model, None, _hash_proto(model))
    if isinstance(model, bytes | bytearray | memoryview):
        data, folder, what = bytes(model), None, "the bytes given"
    else:
        path = Path(model)
        data, folder, what = path.read_bytes(), path.parent, str(path)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ConversionError([f"{what}: not an ONNX model ({error})"]) from None
    if not proto.HasField("graph"):
        raise ConversionError([f"{what}: not an ONNX model (it has no graph)"])
    return Source(proto, folder, hashlib.sha256(data).hexdigest())


def _hash_proto(proto: onnx.ModelProto) -> str:
    try:
        return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
    except Exception:  # protobuf's own limit of 2 GB: hash the pieces, each below it
        digest = hashlib.sha256()
        for piece in (*proto.graph.initializer, *proto.graph.node, *proto.graph.input, *proto.graph.output):
            digest.update(piece.SerializeToString(deterministic=True))
        return digest.hexdigest()


def array(tensor: TensorProto, folder: Path | None) -> tuple[DType, np.ndarray]:
    """The value of a TensorProto as (element type, array in `STORAGE[dtype]`). Raises ValueError where it is damaged.

    External data of plain types is mapped, not read; its file must lie in the model's folder.
    """
    try:
        dtype = DType(tensor.data_type)
    except ValueError:
        raise ValueError(f"element type {tensor.data_type} is unknown") from None
    if dtype not in STORAGE:
        raise ValueError(f"element type {tensor.data_type} is no tensor's")
    if any(d < 0 for d in tensor.dims):
        raise ValueError(f"negative dimension in {list(tensor.dims)}")
    if tensor.data_location == TensorProto.EXTERNAL:
        return dtype, _external(tensor, dtype, folder)
    return dtype, store(numpy_helper.to_array(tensor), dtype)


def store(value: np.ndarray, dtype: DType) -> np.ndarray:
    """An array of NumPy's or ml_dtypes' types as `STORAGE[dtype]` holds it, C-contiguous."""
    storage = STORAGE[dtype]
    value = np.asarray(value)
    if value.dtype == storage:
        pass
    elif dtype == DType.STRING:
        value = np.array([v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else str(v)
                          for v in value.reshape(-1)], object).reshape(value.shape)  # fmt: skip
    elif value.dtype.itemsize == storage.itemsize and dtype not in (DType.INT4, DType.UINT4, DType.INT2, DType.UINT2):
        value = value.view(storage)
    else:
        value = value.astype(storage)
    return value if value.flags.c_contiguous else np.ascontiguousarray(value).reshape(value.shape)


def _external(tensor: TensorProto, dtype: DType, folder: Path | None) -> np.ndarray:
    entry = {e.key: e.value for e in tensor.external_data}
    location = entry.get("location", "")
    if folder is None:
        raise ValueError(f"its data is in the file {location!r}: convert from the model's path, not from bytes")
    base = folder.resolve()
    path = (base / location).resolve()
    if not location or base not in path.parents:
        raise ValueError(f"its data file {location!r} lies outside the model's folder")
    if not path.is_file():
        raise ValueError(f"its data file {location!r} is missing from {base}")
    try:
        offset, length = int(entry.get("offset", 0)), int(entry.get("length", -1))
    except ValueError:
        raise ValueError(f"its place in {location!r} is no number") from None
    size = path.stat().st_size
    if length < 0:
        length = size - offset
    if offset < 0 or offset + length > size:
        raise ValueError(f"its {length} bytes at {offset} exceed the {size} bytes of {location!r}")
    shape = tuple(tensor.dims)
    if dtype in _PLAIN:
        storage = STORAGE[dtype].newbyteorder("<")
        want = int(np.prod(shape, dtype=object)) * storage.itemsize
        if want != length:
            raise ValueError(f"shape {list(shape)} needs {want} bytes, {location!r} has {length}")
        if not want:
            return np.zeros(shape, storage)
        return np.memmap(path, storage, "r", offset, shape)
    filled = TensorProto()
    filled.data_type = tensor.data_type
    filled.dims.extend(tensor.dims)
    with path.open("rb") as file:
        file.seek(offset)
        filled.raw_data = file.read(length)
    return store(numpy_helper.to_array(filled), dtype)


def dense(sparse: onnx.SparseTensorProto, folder: Path | None) -> tuple[DType, np.ndarray]:
    """A sparse tensor's value with its zeros. Raises ValueError where it is damaged."""
    dtype, values = array(sparse.values, folder)
    _, indices = array(sparse.indices, folder)
    shape = tuple(sparse.dims)
    if any(d < 0 for d in shape):
        raise ValueError(f"negative dimension in {list(shape)}")
    full = np.zeros(shape, STORAGE[dtype])
    if indices.ndim == 2:
        if indices.shape[1] != len(shape):
            raise ValueError(f"indices of shape {indices.shape} do not fit a tensor of rank {len(shape)}")
        flat = np.ravel_multi_index(tuple(indices.T), shape) if len(indices) else indices.reshape(-1)
    else:
        flat = indices.reshape(-1)
    if len(flat) != values.size or (len(flat) and not 0 <= int(flat.min()) <= int(flat.max()) < full.size):
        raise ValueError(f"{values.size} values with {len(flat)} indices do not fit shape {list(shape)}")
    full.reshape(-1)[flat] = values.reshape(-1)
    return dtype, full
