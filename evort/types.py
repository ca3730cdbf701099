"""Element types and tensor specifications."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from evort._records import Spec, set_item_sizes


class _Listed(type):
    def __iter__(cls) -> Iterator[DType]:
        return iter(_BY_NUMBER.values())


class DType(int, metaclass=_Listed):
    """Element types, numbered as in ONNX's TensorProto.DataType (and `ev.h`).

    Used as an IntEnum is: `DType.FLOAT`, `DType(1)`, `.name`, iteration. Making one of those takes a millisecond at
    import, and looking a member up in a dictionary or set goes through Python code.
    """

    name: str

    def __new__(cls, number: int) -> DType:
        found = _BY_NUMBER.get(number)
        if found is None:
            raise ValueError(f"{number!r} is not the number of an element type")
        return found

    def __repr__(self) -> str:
        return f"DType.{self.name}"

    __str__ = int.__repr__

    def __reduce__(self):
        return DType, (int(self),)

    FLOAT = 1
    UINT8 = 2
    INT8 = 3
    UINT16 = 4
    INT16 = 5
    INT32 = 6
    INT64 = 7
    STRING = 8
    BOOL = 9
    FLOAT16 = 10
    DOUBLE = 11
    UINT32 = 12
    UINT64 = 13
    COMPLEX64 = 14
    COMPLEX128 = 15
    BFLOAT16 = 16
    FLOAT8E4M3FN = 17
    FLOAT8E4M3FNUZ = 18
    FLOAT8E5M2 = 19
    FLOAT8E5M2FNUZ = 20
    UINT4 = 21
    INT4 = 22
    FLOAT4E2M1 = 23
    FLOAT8E8M0 = 24
    UINT2 = 25
    INT2 = 26
    # Not tensors: ONNX sequences and optionals, held as Python lists or None between the steps of a plan.
    SEQUENCE = 100
    OPTIONAL = 101


_BY_NUMBER: dict[int, DType] = {}
for _name, _number in list(vars(DType).items()):
    if _name.isupper():
        _member = int.__new__(DType, _number)
        _member.name = _name
        setattr(DType, _name, _member)
        _BY_NUMBER[_number] = _member

_D = DType

# The NumPy dtype that holds each element type at run time. Types that NumPy lacks are held as their bits, one element
# an item: bfloat16 as uint16, float8 and float4 as uint8, 4- and 2-bit integers widened to int8/uint8.
STORAGE: dict[DType, np.dtype] = {
    key: np.dtype(value)
    for key, value in {
        _D.FLOAT: np.float32,
        _D.UINT8: np.uint8,
        _D.INT8: np.int8,
        _D.UINT16: np.uint16,
        _D.INT16: np.int16,
        _D.INT32: np.int32,
        _D.INT64: np.int64,
        _D.STRING: object,
        _D.BOOL: np.bool_,
        _D.FLOAT16: np.float16,
        _D.DOUBLE: np.float64,
        _D.UINT32: np.uint32,
        _D.UINT64: np.uint64,
        _D.COMPLEX64: np.complex64,
        _D.COMPLEX128: np.complex128,
        _D.BFLOAT16: np.uint16,
        _D.FLOAT8E4M3FN: np.uint8,
        _D.FLOAT8E4M3FNUZ: np.uint8,
        _D.FLOAT8E5M2: np.uint8,
        _D.FLOAT8E5M2FNUZ: np.uint8,
        _D.UINT4: np.uint8,
        _D.INT4: np.int8,
        _D.FLOAT4E2M1: np.uint8,
        _D.FLOAT8E8M0: np.uint8,
        _D.UINT2: np.uint8,
        _D.INT2: np.int8,
    }.items()
}

set_item_sizes({key: value.itemsize for key, value in STORAGE.items()})

# Bits of one element in a file.
BITS: dict[DType, int] = {key: value.itemsize * 8 for key, value in STORAGE.items() if key != _D.STRING}
BITS.update({_D.UINT4: 4, _D.INT4: 4, _D.FLOAT4E2M1: 4, _D.UINT2: 2, _D.INT2: 2})

# The element type of a plain NumPy array.
FROM_NUMPY: dict[np.dtype, DType] = {
    STORAGE[d]: d
    for d in (
        _D.FLOAT, _D.UINT8, _D.INT8, _D.UINT16, _D.INT16, _D.INT32, _D.INT64, _D.STRING, _D.BOOL, _D.FLOAT16,
        _D.DOUBLE, _D.UINT32, _D.UINT64, _D.COMPLEX64, _D.COMPLEX128,
    )
}  # fmt: skip

FLOATS = frozenset({_D.FLOAT, _D.DOUBLE, _D.FLOAT16, _D.BFLOAT16})
SIGNED_INTS = frozenset({_D.INT8, _D.INT16, _D.INT32, _D.INT64})
UNSIGNED_INTS = frozenset({_D.UINT8, _D.UINT16, _D.UINT32, _D.UINT64})
INTS = SIGNED_INTS | UNSIGNED_INTS
NUMERIC = FLOATS | INTS
FLOAT8 = frozenset({_D.FLOAT8E4M3FN, _D.FLOAT8E4M3FNUZ, _D.FLOAT8E5M2, _D.FLOAT8E5M2FNUZ, _D.FLOAT8E8M0})
SUBBYTE_INTS = frozenset({_D.UINT4, _D.INT4, _D.UINT2, _D.INT2})
SUBBYTE = SUBBYTE_INTS | {_D.FLOAT4E2M1}
ANY = frozenset(DType)

# Smallest and largest number of each integer type that tensors are quantized to.
RANGES: dict[DType, tuple[int, int]] = {
    _D.UINT8: (0, 255),
    _D.INT8: (-128, 127),
    _D.UINT16: (0, 65535),
    _D.INT16: (-32768, 32767),
    _D.UINT4: (0, 15),
    _D.INT4: (-8, 7),
    _D.UINT2: (0, 3),
    _D.INT2: (-2, 1),
}

MAX_RANK = 8  # EV_MAX_RANK of ev.h: tensors of higher rank run in NumPy


def dtype_of(array: np.ndarray) -> DType:
    """The element type of a NumPy array; ml_dtypes' bfloat16 and the like are known by name.

    Raises TypeError for an array that ONNX has no type for.
    """
    found = FROM_NUMPY.get(array.dtype)
    if found is None:
        if array.dtype.kind in "US":
            return DType.STRING
        found = _BY_NAME.get(array.dtype.name)
        if found is None:
            raise TypeError(f"NumPy dtype {array.dtype} has no ONNX element type")
    return found


_BY_NAME = {
    "bfloat16": _D.BFLOAT16,
    "float8_e4m3fn": _D.FLOAT8E4M3FN,
    "float8_e4m3fnuz": _D.FLOAT8E4M3FNUZ,
    "float8_e5m2": _D.FLOAT8E5M2,
    "float8_e5m2fnuz": _D.FLOAT8E5M2FNUZ,
    "float8_e8m0fnu": _D.FLOAT8E8M0,
    "float4_e2m1fn": _D.FLOAT4E2M1,
    "int4": _D.INT4,
    "uint4": _D.UINT4,
    "int2": _D.INT2,
    "uint2": _D.UINT2,
}


def spec_of(value: Any, dtype: DType | None = None) -> Spec:
    """The specification of a run-time value, the value included; lists are sequences, None an empty optional."""
    if value is None:
        return Spec(DType.OPTIONAL, ())
    if isinstance(value, list):
        return Spec(DType.SEQUENCE, (len(value),))
    return Spec(dtype_of(value) if dtype is None else dtype, value.shape, value)


__all__ = [
    "ANY", "BITS", "FLOAT8", "FLOATS", "FROM_NUMPY", "INTS", "MAX_RANK", "NUMERIC", "RANGES", "SIGNED_INTS", "STORAGE",
    "SUBBYTE", "SUBBYTE_INTS", "UNSIGNED_INTS", "DType", "Spec", "dtype_of", "spec_of",
]  # fmt: skip
