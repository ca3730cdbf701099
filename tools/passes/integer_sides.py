"""Joins what is left of QuantizeLinear and DequantizeLinear with the integer operators beside them.

Integer operators have float sides: they quantize an operand that is float32 as they read it, and leave out the last
rounding where no scale is given for the output. So a cast is never a pass over memory of its own. What a rounding that
is left out would have cut off at the ends of its range is still cut off, where the operator's activation is a clamp.
"""

from __future__ import annotations

from typing import Any

from evort.graph import Node
from evort.ops.base import find
from evort.ops.quantize import RANGES
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
    if inputs is None:
        return False
    real = ed.insert(producer, producer.op, inputs, _clamped(ed, producer, q), hint=f"{x}/real", domain=producer.domain)
    ed.writer[real].name = producer.name
    _read_float(ed, x, others, real, q)
    for cast in casts:
        ed.bypass(cast, real)
    ed.prune(x)
    ed.rename(real, x)
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


def _clamped(ed: Edit, producer: Node, q: Quantized) -> dict[str, Any]:
    """The producer's attributes, its activation cut off where the integers end."""
    attrs = dict(producer.attrs)
    kind = attrs.get("activation", "")
    definition = find(producer.op, producer.domain)
    if definition is None or "activation" not in definition.attrs or kind not in ("", "Relu", "Clip"):
        return attrs
    scale, zero = float(q.scales(ed)[0]), int(q.zeros(ed)[0])
    low, high = ((end - zero) * scale for end in RANGES[q.dtype])
    if kind == "Clip":
        low, high = max(low, attrs.get("activation_alpha", low)), min(high, attrs.get("activation_beta", high))
    elif kind == "Relu":
        low = max(low, 0.0)
    return {**attrs, "activation": "Clip", "activation_alpha": low, "activation_beta": high}
