"""Joins what is left of QuantizeLinear and DequantizeLinear with the integer operators beside them.

Integer operators have float sides: they quantize an operand that is float32 as they read it, and leave out the last
rounding where no scale is given for the output. So a cast is never a pass over memory of its own. What a rounding that
is left out would have cut off at the ends of its range is still cut off, where the operator's activation is a clamp.
"""

from __future__ import annotations

from typing import Any

from evort.graph import Node
from evort.ops.quantize import RANGES
from evort_tools.passes.edit import Edit
from evort_tools.passes.quantized import Quantized, dequantized, quantized

# Where operators take float32, and where the scale and zero point of their output are.
READS = {
    ("", "QLinearConv"): (0,),
    ("", "QLinearMatMul"): (0, 3),
    ("evort", "QLinearConvTranspose"): (0,),
}
WRITES = {
    ("", "QLinearConv"): 6,
    ("", "QLinearMatMul"): 6,
    ("evort", "QLinearConvTranspose"): 6,
    ("com.microsoft", "QLinearAdd"): 6,
    ("com.microsoft", "QLinearMul"): 6,
}


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


def _reading(ed: Edit, x: str, q: Quantized) -> list[tuple[Node, int]] | None:
    """Where the users of an integer tensor could read float32 instead; None if one of them could not."""
    found = []
    for user in dict.fromkeys(ed.users(x)):
        places = [i for i, name in enumerate(user.inputs) if name == x]
        able = READS.get((user.domain, user.op), ())
        if not all(i in able and _same_scale(ed, user, i, q) for i in places):
            return None
        found += [(user, i) for i in places]
    return found


def _same_scale(ed: Edit, user: Node, index: int, q: Quantized) -> bool:
    scale, zero = ed.value(user.inputs[index + 1]), ed.value(user.inputs[index + 2])
    return (
        scale is not None and zero is not None and scale.size == zero.size == 1
        and scale.reshape(-1)[0] == q.scales(ed)[0] and int(zero.reshape(-1)[0]) == q.zeros(ed)[0]
    )  # fmt: skip


def _into_consumers(ed: Edit, node: Node) -> bool:
    q = dequantized(ed, node)
    out = node.outputs[0]
    if q is None or out in ed.outputs or out in ed.captured:
        return False
    places = _reading(ed, out, q)
    if not places:
        return False
    source = node.inputs[0]
    for user, index in places:
        ed.set_input(user, index, source)
    return True


def _into_producer(ed: Edit, node: Node) -> bool:
    """The producer of integers that float operators read gives float32; integer operators quantize it again."""
    q = quantized(ed, node.outputs[0])
    if q is None or q.axis is not None:
        return False
    x = q.x
    producer = ed.writer.get(x)
    at = None if producer is None else WRITES.get((producer.domain, producer.op))
    if at is None or x in ed.outputs or x in ed.captured:
        return False
    casts, others = [], []
    for user in dict.fromkeys(ed.users(x)):
        other = quantized(ed, user.outputs[0]) if user.op == "DequantizeLinear" and not user.domain else None
        if other is not None and other.same(ed, q):
            casts.append(user)
        else:
            others.append(user)
    places = []
    for user in others:
        indices = [i for i, name in enumerate(user.inputs) if name == x]
        able = READS.get((user.domain, user.op), ())
        if not all(i in able and _same_scale(ed, user, i, q) for i in indices):
            return False
        places += [(user, i) for i in indices]
    inputs = list(producer.inputs)
    inputs[at] = inputs[at + 1] = ""
    real = ed.insert(producer, producer.op, inputs, _clamped(ed, producer, q), hint=f"{x}/real", domain=producer.domain)
    ed.writer[real].name = producer.name
    for user, index in places:
        ed.set_input(user, index, real)
    for cast in casts:
        ed.bypass(cast, real)
    ed.prune(x)
    ed.rename(real, x)
    return True


def _clamped(ed: Edit, producer: Node, q: Quantized) -> dict[str, Any]:
    """The producer's attributes, its activation cut off where the integers end."""
    attrs = dict(producer.attrs)
    kind = attrs.get("activation", "")
    if kind not in ("", "Relu", "Clip"):
        return attrs
    scale, zero = float(q.scales(ed)[0]), int(q.zeros(ed)[0])
    low, high = ((end - zero) * scale for end in RANGES[q.dtype])
    if kind == "Clip":
        low, high = max(low, attrs.get("activation_alpha", low)), min(high, attrs.get("activation_beta", high))
    elif kind == "Relu":
        low = max(low, 0.0)
    return {**attrs, "activation": "Clip", "activation_alpha": low, "activation_beta": high}
