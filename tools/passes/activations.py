"""Recognises activation functions that exporters write out: GELU, Swish, HardSwish, HardSigmoid, Mish, Softplus."""

from __future__ import annotations

import math

from evort.graph import Graph, Node
from evort.ops.base import find
from evort_tools.passes.edit import Context, Edit
from evort_tools.passes.identities import bounds
from evort_tools.passes.patterns import Product, close, offset, product, unary


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    changes = 0
    for node in ed.nodes():
        if node.attrs.get("activation"):
            continue
        if not ed.is_real(node.outputs[0]):
            continue
        if node.op in ("Mul", "Div"):
            changes += _product(ed, node)
        elif node.op == "Clip":
            changes += _clip(ed, node)
        elif node.op == "Log":
            changes += _softplus(ed, node)
    return changes


def _become(ed: Edit, node: Node, op: str, x: str, attrs: dict[str, object] | None = None) -> bool:
    """Makes a node an activation of x, if it has x's shape and evort has the operator."""
    if find(op) is None or not ed.shapes.same_shape(x, node.outputs[0]):
        return False
    ed.change(node, op, [x], attrs)
    return True


def _product(ed: Edit, node: Node) -> bool:
    p = product(ed, node.outputs[0], inner=False)
    if len(p.tensors) == 1:
        return _hard_sigmoid(ed, node, p)
    if len(p.tensors) != 2:
        return False
    return any(_gated(ed, node, p, x, gate) for x, gate in (p.tensors, p.tensors[::-1]))


def _gated(ed: Edit, node: Node, p: Product, x: str, gate: str) -> bool:
    """factor * x * gate(x)."""
    if close(p.factor, 1):
        sigmoid = unary(ed, gate, "Sigmoid")
        if sigmoid is not None:
            inside = product(ed, sigmoid.inputs[0])
            if sigmoid.inputs[0] == x:
                return _become(ed, node, "Swish", x)
            if inside.tensors == [x]:
                return _become(ed, node, "Swish", x, {"alpha": inside.factor})
        tanh = unary(ed, gate, "Tanh")
        softplus = unary(ed, tanh.inputs[0], "Softplus") if tanh is not None else None
        if softplus is not None and softplus.inputs[0] == x:
            return _become(ed, node, "Mish", x)
        hard = unary(ed, gate, "HardSigmoid")
        if hard is not None and hard.inputs[0] == x:
            alpha, beta = hard.attrs.get("alpha", 0.2), hard.attrs.get("beta", 0.5)
            return close(alpha, 1 / 6) and close(beta, 0.5) and _become(ed, node, "HardSwish", x)
    clip = unary(ed, gate, "Clip")
    if clip is not None:
        return _is_relu6(ed, clip, x) and close(p.factor, 1 / 6) and _become(ed, node, "HardSwish", x)
    number, rest = offset(ed, gate)
    if number == 0 and ed.producer(gate, "Add") is not None:
        return False
    # factor * x * (1 + f(...)), where the factor may have gone into the sum: x * (0.5 + 0.5 * f(...)).
    scaled = product(ed, rest)
    if len(scaled.tensors) != 1 or not close(p.factor * number, 0.5) or not close(p.factor * scaled.factor, 0.5):
        return False
    erf = unary(ed, scaled.tensors[0], "Erf")
    if erf is not None:
        inside = product(ed, erf.inputs[0])
        return inside.tensors == [x] and close(inside.factor, math.sqrt(0.5)) and _become(ed, node, "Gelu", x)
    tanh = unary(ed, scaled.tensors[0], "Tanh")
    if tanh is not None and _is_gelu_tanh(ed, tanh.inputs[0], x):
        return _become(ed, node, "Gelu", x, {"approximate": "tanh"})
    return False


def _is_relu6(ed: Edit, clip: Node, x: str) -> bool:
    """Clip(x + 3, 0, 6)."""
    limits = bounds(ed, clip)
    number, rest = offset(ed, clip.inputs[0])
    return limits == (0.0, 6.0) and close(number, 3) and rest == x


def _is_gelu_tanh(ed: Edit, name: str, x: str) -> bool:
    """sqrt(2/pi) * (x + 0.044715 * x**3), or sqrt(2/pi) * x * (1 + 0.044715 * x**2)."""
    p = product(ed, name)
    if not close(p.factor, math.sqrt(2 / math.pi)):
        return False
    if len(p.tensors) == 2 and x in p.tensors:
        other = p.tensors[1 - p.tensors.index(x)]
        number, rest = offset(ed, other)
        square = product(ed, rest)
        return close(number, 1) and _is_power(ed, square, x, 2, 0.044715)
    if len(p.tensors) != 1:
        return False
    add = unary(ed, p.tensors[0], "Add")
    if add is None or x not in add.inputs:
        return False
    cube = add.inputs[1 - add.inputs.index(x)]
    return _is_power(ed, product(ed, cube), x, 3, 0.044715)


def _is_power(ed: Edit, p: Product, x: str, exponent: int, factor: float) -> bool:
    """factor * x**exponent, with Pow or as a product."""
    if not close(p.factor, factor):
        return False
    found = 0
    for name in p.tensors:
        power = unary(ed, name, "Pow")
        if power is not None and power.inputs[0] == x:
            number = ed.scalar(power.inputs[1])
            if number is None or number != int(number):
                return False
            found += int(number)
        elif name == x:
            found += 1
        else:
            return False
    return found == exponent


def _hard_sigmoid(ed: Edit, node: Node, p: Product) -> bool:
    """factor * Clip(x + b, 0, 1 / factor)."""
    clip = unary(ed, p.tensors[0], "Clip")
    limits = bounds(ed, clip) if clip is not None else None
    if limits is None or limits[0] != 0 or math.isinf(limits[1]) or p.factor <= 0:
        return False
    number, rest = offset(ed, clip.inputs[0])
    if rest == clip.inputs[0] or not close(p.factor * limits[1], 1):
        return False
    return _become(ed, node, "HardSigmoid", rest, {"alpha": p.factor, "beta": number * p.factor})


def _clip(ed: Edit, node: Node) -> bool:
    """Clip(alpha * x + beta, 0, 1)."""
    if bounds(ed, node) != (0.0, 1.0):
        return False
    number, rest = offset(ed, node.inputs[0])
    p = product(ed, rest)
    if rest == node.inputs[0] or len(p.tensors) != 1:
        return False
    return _become(ed, node, "HardSigmoid", p.tensors[0], {"alpha": p.factor, "beta": number})


def _softplus(ed: Edit, node: Node) -> bool:
    """Log(1 + Exp(x)), which overflows where Softplus does not."""
    number, rest = offset(ed, node.inputs[0])
    exp = unary(ed, rest, "Exp")
    return number == 1 and exp is not None and _become(ed, node, "Softplus", exp.inputs[0])
