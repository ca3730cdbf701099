"""What the passes on quantized graphs share: the integers behind a float tensor, and tables of 256 entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from evort.graph import Node
from evort.ops.qoperands import BYTES, INTEGERS, Quantity, table
from evort.types import RANGES, STORAGE, DType
from evort_tools.passes.edit import Edit

# (operator, domain, inputs, attributes) of a node to be made
Made = tuple[str, str, list[str], dict[str, Any]]


class Quantized:
    """Integers and what they stand for: scale * (x - zero).

    x, scale, zero: names of tensors (x is "" where it has none yet). axis: None for one scale. dtype: of x.
    node: the DequantizeLinear or QuantizeLinear that says so.
    """

    __slots__ = ("axis", "dtype", "node", "scale", "x", "zero")

    def __init__(self, node: Node, x: str, scale: str, zero: str, dtype: DType, axis: int | None):
        self.node = node
        self.x = x
        self.scale = scale
        self.zero = zero
        self.dtype = dtype
        self.axis = axis

    def scales(self, ed: Edit) -> np.ndarray:
        return ed.value(self.scale).reshape(-1)

    def zeros(self, ed: Edit) -> np.ndarray:
        """The zero points, as int64."""
        return ed.value(self.zero).reshape(-1).astype(np.int64)

    def quantity(self, ed: Edit) -> Quantity:
        """The same, as operators compute with it. One scale only."""
        return Quantity(self.dtype, self.scales(ed), self.zeros(ed))

    def same(self, ed: Edit, other: Quantized) -> bool:
        """Whether both stand for the same numbers, by one scale each."""
        return (
            self.axis is None
            and other.axis is None
            and self.dtype == other.dtype
            and self.scales(ed)[0] == other.scales(ed)[0]
            and self.zeros(ed)[0] == other.zeros(ed)[0]
        )

    def code(self, ed: Edit, number: float) -> int | None:
        """The integer that stands for a number exactly (within float32's rounding), or None. One scale only."""
        scale, zero = float(self.scales(ed)[0]), int(self.zeros(ed)[0])
        code = round(number / scale) + zero if np.isfinite(number) else RANGES[self.dtype][number > 0]
        low, high = RANGES[self.dtype]
        exact = not np.isfinite(number) or abs((code - zero) * scale - number) <= 1e-6 * abs(number)
        return code if low <= code <= high and exact else None


def _parameters(ed: Edit, node: Node, dtype: DType) -> tuple[str, str, int | None] | None:
    """(scale, zero point, axis) of a Q or DQ node with constant float32 scales, not in blocks."""
    scale = ed.value(node.inputs[1])
    zero = node.inputs[2] if len(node.inputs) > 2 else ""
    if scale is None or scale.dtype != np.float32 or node.attrs.get("block_size") or (zero and ed.value(zero) is None):
        return None
    if dtype not in RANGES and dtype != DType.INT32:
        return None
    if not np.all(np.isfinite(scale) & (scale > 0)):
        return None
    if not zero:
        zero = ed.constant(np.zeros(scale.shape, STORAGE[dtype]), f"{node.outputs[0]}/zero_point", dtype)
        ed.set_input(node, 2, zero)
    axis = None
    if scale.size != 1 or scale.ndim > 1:
        rank = ed.shapes.rank(node.inputs[0])
        if rank is None:
            return None
        axis = node.attrs.get("axis", 1) % rank
    return node.inputs[1], zero, axis


def quantized(ed: Edit, name: str) -> Quantized | None:
    """The integers behind a float32 tensor that a DequantizeLinear makes."""
    node = ed.producer(name, "DequantizeLinear") if name else None
    if node is None or ed.shapes.dtype(name) != DType.FLOAT:
        return None
    dtype = ed.shapes.dtype(node.inputs[0])
    found = None if dtype is None else _parameters(ed, node, dtype)
    return None if found is None else Quantized(node, node.inputs[0], *found[:2], dtype, found[2])


def dequantized(ed: Edit, node: Node) -> Quantized | None:
    """What a QuantizeLinear node makes, where it has one scale."""
    dtype = ed.shapes.dtype(node.outputs[0])
    if dtype is None or ed.shapes.dtype(node.inputs[0]) != DType.FLOAT or node.attrs.get("precision", 0) > 1:
        return None
    found = _parameters(ed, node, dtype)
    if found is None or found[2] is not None:
        return None
    return Quantized(node, node.outputs[0], *found[:2], dtype, None)


def followed(ed: Edit, name: str) -> Quantized | None:
    """The QuantizeLinear that is the only reader of a tensor."""
    node = ed.only_user(name)
    if node is None or node.op != "QuantizeLinear" or node.domain or node.inputs[0] != name:
        return None
    return dequantized(ed, node)


def lookup(
    ed: Edit, hint: str, source: Quantized, function: Callable[[np.ndarray], np.ndarray], target: Quantized | None
) -> Made | None:
    """The table of a function of one number, for the 256 numbers that `source` can be: to integers as `target` says, or
    to float32. None where source is not of 8 bits and one scale."""
    if source.dtype not in BYTES or source.axis is not None or (target is not None and target.dtype not in INTEGERS):
        return None
    made = table(source.quantity(ed), None if target is None else target.quantity(ed), function)
    name = ed.constant(made, f"{hint}/table", DType.FLOAT if target is None else target.dtype)
    return "Lookup", "evort", [source.x, name], {}
