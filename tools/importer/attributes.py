"""Attributes of ONNX nodes as Python values, with those of function calls filled into function bodies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto

from evort.graph import Graph
from evort.types import STORAGE, DType
from evort_tools.importer.source import array, dense, store

if TYPE_CHECKING:
    from evort_tools.importer.importer import Scope

_A = AttributeProto


class Attributes:
    """The attributes of one call of a function, for the references in the function's body.

    outer: those of the call around it, where the call itself is in a function; scope: where graphs among the
    attributes look up names; defaults: the function's own.
    """

    def __init__(self, proto: NodeProto, outer: Attributes | None, scope: Scope):
        self.proto = proto
        self.outer = outer
        self.scope = scope
        self.defaults: dict[str, AttributeProto] = {}

    def resolve(self, attribute: AttributeProto) -> tuple[AttributeProto | None, Scope | None]:
        """What an attribute of the function's body stands for, and the scope of its graph; itself and None where it
        refers to nothing, None where the call leaves it out."""
        wanted = attribute.ref_attr_name
        if not wanted:
            return attribute, None
        for given in self.proto.attribute:
            if given.name == wanted:
                if given.ref_attr_name:
                    return (None, None) if self.outer is None else self.outer.resolve(given)
                return given, self.scope
        default = self.defaults.get(wanted)
        return (None, None) if default is None else (default, None)

    def resolved(self, proto: NodeProto) -> Iterator[AttributeProto]:
        """The attributes of a node of the function's body, references replaced."""
        for attribute in proto.attribute:
            found, _ = self.resolve(attribute)
            if found is not None:
                copy = AttributeProto()
                copy.CopyFrom(found)
                copy.name = attribute.name
                yield copy


def values_of(
    proto: NodeProto,
    call: Attributes | None,
    nested: Callable[[GraphProto, Scope | None], Graph],
    folder: Path | None,
) -> dict[str, Any]:
    """A node's attributes as `evort.graph.Node` holds them. nested: imports a graph, given the scope that owns it.

    Sparse tensors are left to `constant_of`. Raises ValueError for a damaged one.
    """
    values = {}
    for attribute in proto.attribute:
        found, owner = call.resolve(attribute) if call is not None else (attribute, None)
        if found is None or found.type in (_A.SPARSE_TENSOR, _A.TYPE_PROTO):
            continue
        if found.ref_attr_name:
            raise ValueError(f"attribute {attribute.name!r} refers to a function's attribute outside a function")
        try:
            values[attribute.name] = _value(found, owner, nested, folder)
        except ValueError as error:
            raise ValueError(f"attribute {attribute.name!r}: {error}") from None
    return values


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _value(a: AttributeProto, owner: Scope | None, nested: Callable[..., Graph], folder: Path | None) -> Any:
    kind = a.type
    if kind == _A.FLOAT:
        return float(a.f)
    if kind == _A.INT:
        return int(a.i)
    if kind == _A.STRING:
        return _text(a.s)
    if kind == _A.TENSOR:
        return array(a.t, folder)[1]
    if kind == _A.GRAPH:
        return nested(a.g, owner)
    if kind == _A.FLOATS:
        return list(a.floats)
    if kind == _A.INTS:
        return list(a.ints)
    if kind == _A.STRINGS:
        return [_text(s) for s in a.strings]
    raise ValueError(f"kind {_A.AttributeType.Name(kind)} is not supported")


def constant_of(a: AttributeProto, folder: Path | None) -> tuple[DType, np.ndarray]:
    """The value of a Constant node, from whichever of its attributes is there. Raises ValueError."""
    if a.type == _A.TENSOR:
        return array(a.t, folder)
    if a.type == _A.SPARSE_TENSOR:
        return dense(a.sparse_tensor, folder)
    if a.type in (_A.FLOAT, _A.FLOATS):
        return DType.FLOAT, np.array(a.f if a.type == _A.FLOAT else list(a.floats), STORAGE[DType.FLOAT])
    if a.type in (_A.INT, _A.INTS):
        return DType.INT64, np.array(a.i if a.type == _A.INT else list(a.ints), STORAGE[DType.INT64])
    if a.type in (_A.STRING, _A.STRINGS):
        text = _text(a.s) if a.type == _A.STRING else [_text(s) for s in a.strings]
        return DType.STRING, store(np.array(text, object), DType.STRING)
    raise ValueError(f"a constant cannot be of kind {_A.AttributeType.Name(a.type)}")
