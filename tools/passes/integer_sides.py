"""Joins what is left of QuantizeLinear and DequantizeLinear with the integer operators beside them.

Integer operators have float sides: they quantize an operand that is float32 as they read it, and leave out the last
rounding where no scale is given for the output. So a cast is never a pass over memory of its own. A rounding is left
out only where what it cuts off at the ends of its range (quantizers fold Relu and Clip into that) is cut off all the
same: by the operator's activation, or because its operands cannot give more. (Behind another activation than a clamp
nothing is cut off, and the result is the more exact one.)
"""

from __future__ import annotations

from typing import Any

from evort.graph import Node
from evort.ops.base import find
from evort.ops.qoperands import Quantity
from evort.types import RANGES
from evort_tools.passes.edit import Edit
from evort_tools.passes.integer_products import PRODUCTS, RESIDUAL
from evort_tools.passes.quantized import BYTES, Quantized, dequantized, quantized

# Operators whose drivers quantize float32 operands as they read them; each operand is followed by its scale and zero
# point.
READS = frozenset({
    ("", "QLinearConv"), ("", "QLinearMatMul"), ("evort", "QLinearConvTranspose"), ("com.microsoft", "QLinearAdd"),
    ("com.microsoft", "QLinearMul"), ("com.microsoft", "QLinearConcat"), ("evort", "QLinearLayerNormalization"),
    ("evort", "QLinearTriForward"),
})  # fmt: skip
# Where the scale of the output is; its zero point follows. Without both, the output is float32.
WRITES = {
    ("", "QLinearConv"): 6,
    ("", "QLinearMatMul"): 6,
    ("evort", "QLinearConvTranspose"): 6,
    ("evort", "QLinearInstanceNormalization"): 3,
    ("evort", "QLinearLayerNormalization"): 5,
    ("evort", "QLinearResize"): 3,
    ("evort", "QLinearTriForward"): 7,
    ("com.microsoft", "QLinearAdd"): 6,
    ("com.microsoft", "QLinearMul"): 6,
    ("com.microsoft", "QLinearConcat"): 0,
    ("com.microsoft", "QLinearSoftmax"): 3,
    ("com.microsoft", "QLinearAveragePool"): 3,
    ("com.microsoft", "QLinearGlobalAveragePool"): 3,
    ("com.microsoft", "QLinearReduceMean"): 3,
}
LOOKUP = ("evort", "Lookup")
# Whose results lie between the ends of their operands, each with its scale and zero point, from this index on.
_BETWEEN = {
    ("evort", "QLinearResize"): 0, ("com.microsoft", "QLinearConcat"): 2, ("com.microsoft", "QLinearAveragePool"): 0,
    ("com.microsoft", "QLinearGlobalAveragePool"): 0, ("com.microsoft", "QLinearReduceMean"): 0,
}  # fmt: skip


def run(ed: Edit) -> int:
    changes = 0
    for node in list(ed.graph.nodes):
        if node.domain or not node.outputs or ed.writer.get(node.outputs[0]) is not node:
            continue
        if node.op == "DequantizeLinear":
            changes += _into_producer(ed, node)
        elif node.op == "QuantizeLinear":
            changes += _into_consumers(ed, node)
    return changes


def _readers(ed: Edit, x: str, users: list[Node], q: Quantized) -> bool:
    """Whether all these users of an integer tensor could read float32 instead."""
    for user in users:
        kind = (user.domain, user.op)
        places = [i for i, name in enumerate(user.inputs) if name == x]
        if kind == LOOKUP:
            if places != [0] or q.dtype not in BYTES:
                return False
        elif kind not in READS or not all(_same_scale(ed, user, i, q) for i in places):
            return False
    return True


def _same_scale(ed: Edit, user: Node, index: int, q: Quantized) -> bool:
    if index + 2 >= len(user.inputs):
        return False
    scale, zero = ed.value(user.inputs[index + 1]), ed.value(user.inputs[index + 2])
    return (
        scale is not None and zero is not None and scale.size == zero.size == 1
        and scale.reshape(-1)[0] == q.scales(ed)[0] and int(zero.reshape(-1)[0]) == q.zeros(ed)[0]
    )  # fmt: skip


def _read_float(ed: Edit, x: str, users: list[Node], source: str, q: Quantized) -> None:
    for user in users:
        if (user.domain, user.op) == LOOKUP:
            ed.set_input(user, 2, q.scale)
            ed.set_input(user, 3, q.zero)
        for index, name in enumerate(list(user.inputs)):
            if name == x:
                ed.set_input(user, index, source)
                if (user.domain, user.op) in PRODUCTS and index == RESIDUAL:  # added as it is, not quantized
                    ed.set_input(user, index + 1, "")
                    ed.set_input(user, index + 2, "")


def _into_consumers(ed: Edit, node: Node) -> bool:
    q = dequantized(ed, node)
    out = node.outputs[0]
    if q is None or out in ed.outputs or out in ed.captured:
        return False
    users = list(dict.fromkeys(ed.users(out)))
    if not users or not _readers(ed, out, users, q):
        return False
    _read_float(ed, out, users, node.inputs[0], q)
    return True


def _into_producer(ed: Edit, node: Node) -> bool:
    """The producer of integers that float operators read gives float32; integer operators quantize it again."""
    q = quantized(ed, node.outputs[0])
    if q is None or q.axis is not None:
        return False
    x = q.x
    producer = ed.writer.get(x)
    if producer is None or x in ed.outputs or x in ed.captured:
        return False
    casts, others = [], []
    for user in dict.fromkeys(ed.users(x)):
        other = quantized(ed, user.outputs[0]) if user.op == "DequantizeLinear" and not user.domain else None
        (casts if other is not None and other.same(ed, q) else others).append(user)
    inputs = _float_output(ed, producer, q) if _readers(ed, x, others, q) else None
    attrs = None if inputs is None else _clamped(ed, producer, q)
    if attrs is None:
        return False
    real = ed.insert(producer, producer.op, inputs, attrs, hint=f"{x}/real", domain=producer.domain)
    made = ed.writer[real]
    made.name = producer.name
    _read_float(ed, x, others, real, q)
    for cast in casts:
        ed.bypass(cast, made.outputs[0])  # its name is another where the cast before gave one of the graph's outputs
    ed.prune(x)
    ed.rename(made.outputs[0], x)
    return True


def _float_output(ed: Edit, producer: Node, q: Quantized) -> list[str] | None:
    """The inputs with which an operator gives float32; None where it cannot."""
    inputs = list(producer.inputs)
    kind = (producer.domain, producer.op)
    if kind == LOOKUP:
        table = ed.value(inputs[1])
        if table is None or table.dtype.kind == "f":
            return None
        inputs[1] = ed.constant(q.quantity(ed).real(table), f"{producer.outputs[0]}/table")
        return inputs
    at = WRITES.get(kind)
    if at is None or at + 1 >= len(inputs):
        return None
    inputs[at] = inputs[at + 1] = ""
    return inputs


def _clamped(ed: Edit, producer: Node, q: Quantized) -> dict[str, Any] | None:
    """The producer's attributes, its activation cut off where the integers end; None where more could come out."""
    attrs = dict(producer.attrs)
    kind = (producer.domain, producer.op)
    low, high = _ends(q.quantity(ed))
    definition = find(producer.op, producer.domain)
    if kind == LOOKUP:
        return attrs  # the table has what is left
    if "activation" not in definition.attrs:
        return attrs if _within(ed, producer, low, high) else None
    activation = attrs.get("activation", "")
    if activation == "Clip":
        low, high = max(low, attrs.get("activation_alpha", low)), min(high, attrs.get("activation_beta", high))
    elif activation == "Relu":
        low = max(low, 0.0)
    elif activation:
        return attrs  # a quantizer that folds clamps into a range has them alone before it
    return {**attrs, "activation": "Clip", "activation_alpha": low, "activation_beta": high}


def _ends(quantity: Quantity) -> tuple[float, float]:
    """The smallest and the largest number that integers stand for."""
    low, high = ((end - quantity.zero) * float(quantity.scale) for end in RANGES[quantity.dtype])
    return low, high


def _within(ed: Edit, producer: Node, low: float, high: float) -> bool:
    """Whether an operator without an activation gives nothing outside [low, high], to half a step of 256: averages,
    and what moves elements, stay between the ends of what they read."""
    kind = (producer.domain, producer.op)
    if kind == ("com.microsoft", "QLinearSoftmax"):
        ranges = [(0.0, 1.0)]
    elif kind in _BETWEEN:
        ranges = []
        for at in range(_BETWEEN[kind], len(producer.inputs) if producer.op == "QLinearConcat" else 3, 3):
            names = producer.inputs[at + 1 : at + 3]
            scale, zero = (ed.value(name) if name else None for name in names)
            dtype = ed.shapes.dtype(names[1])  # of what is read, also where that is float32 and quantized on the way
            if dtype not in RANGES or scale is None or zero is None or scale.size != 1:
                return False
            ranges.append(_ends(Quantity(dtype, scale, zero)))
    else:
        return False
    slack = (high - low) / 510
    return all(low - slack <= least and most <= high + slack for least, most in ranges)
