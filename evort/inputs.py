"""What a model takes and gives - names, element types, shapes - and whether arrays are that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evort.errors import InputError
from evort.types import STORAGE, SUBBYTE_INTS, DType, dtype_of

if TYPE_CHECKING:
    from evort.graph import Graph
    from evort.plan import Plan


class Value:
    """An input or output of a model: name, element type, and shape with symbolic dimensions by name."""

    __slots__ = ("dtype", "name", "shape")

    def __init__(self, name: str, dtype: DType, shape: tuple[int | str, ...] | None):
        self.name = name
        self.dtype = dtype
        self.shape = shape

    def __repr__(self) -> str:
        shape = "unknown rank" if self.shape is None else list(self.shape)
        return f"{self.name}: {self.dtype.name.lower()} {shape}"


def values(graph: Graph, names: Sequence[str]) -> list[Value]:
    """The inputs or outputs of a graph."""
    found = []
    for name in names:
        tensor = graph.tensors.get(name)
        found.append(Value(name, DType.FLOAT, None) if tensor is None else Value(name, tensor.dtype, tensor.shape))
    return found


def checked(
    wanted: Sequence[Value], bounds: Mapping[str, tuple[int, int]], inputs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, DType]]:
    """The inputs, checked, contiguous, in storage dtypes; and their element types. bounds: least and most of symbolic
    dimensions. Raises InputError."""
    feeds: dict[str, Any] = {}
    dtypes: dict[str, DType] = {}
    symbols: dict[str, int] = {}
    for value in wanted:
        name = value.name
        if name not in inputs:
            raise InputError(f"input {name!r} is missing; the model takes {_text(wanted)}")
        given = inputs[name]
        if value.dtype not in STORAGE:
            feeds[name] = given
            continue
        array = given if isinstance(given, np.ndarray) else np.asarray(given)
        storage = STORAGE[value.dtype]
        if array.dtype != storage:
            array = _converted(value, array, storage)
        if not array.flags.c_contiguous:
            array = np.ascontiguousarray(array)
        _check_shape(value, array.shape, symbols)
        feeds[name] = array
        dtypes[name] = value.dtype
    for name, (low, high) in bounds.items():
        if not low <= symbols.get(name, low) <= high:
            raise InputError(f"the size {name!r} of the inputs is {symbols[name]}; the model takes {low} to {high}")
    if len(inputs) > len(feeds):
        unknown = ", ".join(repr(n) for n in inputs if n not in feeds)
        raise InputError(f"unknown input {unknown}; the model takes {_text(wanted)}")
    return feeds, dtypes


def _text(wanted: Sequence[Value]) -> str:
    return "; ".join(map(repr, wanted)) or "none"


def _converted(value: Value, array: np.ndarray, storage: np.dtype) -> np.ndarray:
    """An array of another NumPy dtype that stands for the same element type (ml_dtypes' bfloat16 as its bits, text as
    objects, Python numbers). Raises InputError for any other."""
    if value.dtype == DType.STRING and array.dtype.kind in "USO":
        return array.astype(object)
    try:
        same = dtype_of(array) == value.dtype
    except TypeError:
        same = False
    if same and value.dtype in SUBBYTE_INTS:  # ml_dtypes leaves the upper bits open
        return array.astype(storage)
    if same and array.dtype.itemsize == storage.itemsize:
        return np.ascontiguousarray(array).view(storage)
    wanted = f"{value.dtype.name.lower()} ({storage})"
    raise InputError(f"input {value.name!r} is {array.dtype}; the model takes {wanted}")


def _check_shape(value: Value, shape: tuple[int, ...], symbols: dict[str, int]) -> None:
    expected = value.shape
    if expected is None or expected == shape:
        return
    good = len(expected) == len(shape)
    if good:
        for want, got in zip(expected, shape, strict=True):
            if isinstance(want, int):
                good = good and want == got
            elif want:
                good = good and symbols.setdefault(want, got) == got
    if not good:
        named = f" with {symbols}" if symbols else ""
        raise InputError(f"input {value.name!r} has shape {list(shape)}; the model takes {list(expected)}{named}")


def named(wanted: Sequence[str], args: Sequence[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs by position and by name, all by name. Raises InputError for too many, and for one given twice."""
    if len(args) > len(wanted):
        raise InputError(f"{len(args)} inputs given; the model takes {len(wanted)}")
    for name in wanted[: len(args)]:
        if name in given:
            raise InputError(f"input {name!r} is given twice")
    return {**dict(zip(wanted, args, strict=False)), **given}


def check_targets(inputs: Mapping[str, Any], outputs: Mapping[str, np.ndarray]) -> None:
    """Raises InputError for arrays that results cannot be written to while these inputs are read."""
    for name, array in outputs.items():
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous or not array.flags.writeable:
            raise InputError(f"output {name!r} must be a writeable, C-contiguous NumPy array")
        for value in inputs.values():
            if isinstance(value, np.ndarray) and np.may_share_memory(array, value):
                raise InputError(f"output {name!r} overlaps an input")


def check_outputs(wanted: Sequence[Value], plan: Plan, into: Mapping[str, np.ndarray]) -> None:
    """Raises InputError for arrays that are not what a plan gives."""
    names = {v.name for v in wanted}
    for name, array in into.items():
        if name not in names:
            raise InputError(f"unknown output {name!r}; the model gives {', '.join(names)}")
        spec = plan.specs.get(name)
        if spec is not None and (array.shape != spec.shape or array.dtype != STORAGE[spec.dtype]):
            raise InputError(f"output {name!r} is given as {array.dtype}{list(array.shape)}; the model gives {spec!r}")


__all__ = ["Value", "check_outputs", "check_targets", "checked", "named", "values"]
