"""The integer forms of float operators between DequantizeLinear and QuantizeLinear.

    form(ed, node, quantize) -> (operator, domain, inputs, attributes), or None where there is none

`quantize` says how the output becomes integers; None where it stays float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evort.graph import Node
from evort.ops.base import Call, complete_attrs, find
from evort.ops.run import run_reference
from evort.types import STORAGE, DType, Spec
from evort_tools.passes.edit import Edit
from evort_tools.passes.quantized import BYTES, Made, Quantized, lookup, quantized

Form = Callable[[Edit, Node, Quantized | None], Made | None]
FORMS: dict[tuple[str, str], Form] = {}
_ACTIVATIONS = BYTES | {DType.INT16}
_WEIGHTS = BYTES
MICROSOFT = "com.microsoft"


def form(*ops: str, domain: str = "") -> Callable[[Form], Form]:
    """Registers the form of these operators."""

    def decorate(function: Form) -> Form:
        FORMS.update({(domain, op): function for op in ops})
        return function

    return decorate


def operand(node: Node, index: int) -> str:
    return node.inputs[index] if index < len(node.inputs) else ""


def activation(ed: Edit, name: str) -> Quantized | None:
    """An operand of 8 or 16 bits with one scale."""
    found = quantized(ed, name)
    return found if found is not None and found.axis is None and found.dtype in _ACTIVATIONS else None


def triple(q: Quantized) -> list[str]:
    return [q.x, q.scale, q.zero]


def target_of(q: Quantized | None) -> list[str] | None:
    """(scale, zero point) operands of the output; None where its type has no kernel."""
    if q is None:
        return ["", ""]
    return [q.scale, q.zero] if q.dtype in _ACTIVATIONS else None


def fused_of(node: Node) -> dict[str, object] | None:
    """The activation attributes of a float operator; None for PRelu, which has an operand for each channel."""
    attrs = {k: v for k, v in node.attrs.items() if k.startswith("activation")}
    return None if attrs.get("activation") == "PRelu" else attrs


# Products: operands x, w (triples), output (pair), bias, residual (triple) --------------------------------------------


_MOST_BIAS = 2.0**30  # sums are added to it: half of the range is theirs
_DEEPEST = 1 << 14  # terms of a sum for which the argument of `_coarser` holds


def _bias(
    ed: Edit, node: Node, name: str, x: Quantized, w: Quantized, axis: int, scales: np.ndarray, count: int
) -> str | None:
    """The bias in units of a sum, int32; None where it cannot be told or does not fit. axis: of the output channels of
    the weights `w`, which take coarser units where that makes it fit."""
    if not name:
        return ""
    given = quantized(ed, name)
    value = ed.real(name)
    if given is not None:
        stored = ed.value(given.x)
        value = None if stored is None else (stored.astype(np.float64) - given.zeros(ed)) * given.scales(ed)
    if value is None or value.size not in (1, count) or (value.ndim and value.shape[-1] != value.size):
        return None
    unit = x.scales(ed)[0].astype(np.float64) * scales
    value = np.broadcast_to(value.reshape(-1), (count,))
    if not np.all(np.abs(value) <= _MOST_BIAS * unit):
        factor = _coarser(ed, node, w, axis, np.abs(value) / unit)
        if factor is None:
            return None
        unit = unit * factor
    return ed.constant(np.rint(value / unit).astype(np.int32), f"{node.outputs[0]}/bias")


def _coarser(ed: Edit, node: Node, w: Quantized, axis: int, bias: np.ndarray) -> np.ndarray | None:
    """Gives channels whose bias has no room in int32, in units of a sum, weights in larger units; how much larger they
    are, a power of two for each channel. None where weights have one scale, or are too many.

    Such channels are as good as constant (onnxruntime's quantizer leaves them with a bias of 2^31): rounding K weights
    anew changes a sum by at most K 255 / 2^30 of the bias, so that for K up to 2^14 it is less than a step of 8 bits.
    """
    stored = ed.value(w.x)
    if w.axis is None or w.zeros(ed).any() or stored.size // stored.shape[axis] > _DEEPEST:
        return None
    if not np.isfinite(bias).all():
        return None
    factor = 2.0 ** np.ceil(np.log2(np.maximum(bias / _MOST_BIAS, 1.0)))
    along = [1] * stored.ndim
    along[axis] = -1
    rounded = np.rint(stored / factor.reshape(along)).astype(stored.dtype)
    scale = (w.scales(ed) * factor).astype(np.float32)
    w.x = ed.constant(rounded, f"{node.outputs[0]}/weights", w.dtype)
    w.scale = ed.constant(scale, f"{node.outputs[0]}/weights/scale")
    return factor


def _product(
    ed: Edit, node: Node, target: Quantized | None, operands: tuple[Quantized, Quantized], bias: str, residual: str
) -> list[str] | None:
    out = target_of(target)
    if out is None:
        return None
    z = ["", "", ""]
    if residual:
        other = quantized(ed, residual)
        z = [residual, "", ""] if other is None or other.axis is not None or other.dtype not in BYTES else triple(other)
    w = operands[1]
    if not w.zeros(ed).any():  # one zero for all channels is enough, and all weights can share it
        w.zero = ed.constant(np.zeros((), STORAGE[w.dtype]), f"{node.outputs[0]}/zero", w.dtype)
    return [*triple(operands[0]), *triple(w), *out, bias, *z]


def _channels(ed: Edit, w: Quantized, axis: int, rank: int, groups: int = 1) -> tuple[np.ndarray, int] | None:
    """(scale of each output channel, their number) of weights whose output channels lie along `axis`."""
    stored = ed.value(w.x)
    if stored is None or w.dtype not in _WEIGHTS or stored.ndim != rank:
        return None
    if w.axis is not None and w.axis != axis % rank:
        return None
    count = stored.shape[axis]
    return np.tile(np.broadcast_to(w.scales(ed).astype(np.float64), (count,)), groups), count * groups


@form("Conv", "ConvTranspose")
def _conv(ed: Edit, node: Node, target: Quantized | None) -> Made | None:
    x, w, fused = activation(ed, node.inputs[0]), quantized(ed, node.inputs[1]), fused_of(node)
    rank = ed.shapes.rank(node.inputs[1])
    if x is None or w is None or fused is None or rank is None:
        return None
    transposed = node.op == "ConvTranspose"
    groups = node.attrs.get("group", 1) if transposed else 1
    if groups > 1 and w.axis is not None:
        return None  # one scale for the same channel of several groups
    found = _channels(ed, w, 1 if transposed else 0, rank, groups)
    if found is None:
        return None
    bias = _bias(ed, node, operand(node, 2), x, w, int(transposed), *found)
    inputs = None if bias is None else _product(ed, node, target, (x, w), bias, operand(node, 3))
    if inputs is None:
        return None
    return (
        ("QLinearConvTranspose", "evort", inputs, node.attrs) if transposed else ("QLinearConv", "", inputs, node.attrs)
    )


@form("MatMul")
def _matmul(ed: Edit, node: Node, target: Quantized | None) -> Made | None:
    a, b, fused = activation(ed, node.inputs[0]), quantized(ed, node.inputs[1]), fused_of(node)
    if a is None or b is None or fused is None or b.dtype not in _WEIGHTS:
        return None
    bias = ""
    if ed.value(b.x) is not None:
        found = _channels(ed, b, -1, ed.shapes.rank(b.x) or 0)
        bias = None if found is None else _bias(ed, node, operand(node, 2), a, b, -1, *found)
    elif b.axis is not None or operand(node, 2):
        return None
    inputs = None if bias is None else _product(ed, node, target, (a, b), bias, operand(node, 3))
    return None if inputs is None else ("QLinearMatMul", "", inputs, fused)


@form("Gemm")
def _gemm(ed: Edit, node: Node, target: Quantized | None) -> Made | None:
    a, b, fused = activation(ed, node.inputs[0]), quantized(ed, node.inputs[1]), fused_of(node)
    attrs = node.attrs
    if a is None or b is None or fused is None or attrs.get("transA", 0) or attrs.get("alpha", 1.0) != 1.0:
        return None
    transposed = attrs.get("transB", 0)
    found = _channels(ed, b, 0 if transposed else 1, 2)
    if found is None or (operand(node, 2) and attrs.get("beta", 1.0) != 1.0):
        return None
    bias = _bias(ed, node, operand(node, 2), a, b, 0 if transposed else 1, *found)
    inputs = None if bias is None else _product(ed, node, target, (a, b), bias, operand(node, 3))
    return None if inputs is None else ("QLinearMatMul", "", inputs, {**fused, **({"transB": 1} if transposed else {})})


# Functions of one number ---------------------------------------------------------------------------------------------

_UNARY = (
    "Abs", "Ceil", "Celu", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu",
    "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign",
    "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
)  # fmt: skip


@form(*_UNARY, "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu")
def _function(ed: Edit, node: Node, target: Quantized | None) -> Made | None:
    """A function of one quantized tensor and numbers: a table."""
    sources = [quantized(ed, name) for name in node.inputs]
    values = [ed.real(name) if name else None for name in node.inputs]
    varying = [i for i, v in enumerate(values) if v is None and node.inputs[i]]
    numbers = all(v is None or v.size == 1 for v in values)
    if not numbers or len(varying) != 1 or sources[varying[0]] is None:
        return _BINARY[node.op](ed, node, target) if node.op in _BINARY else None
    at = varying[0]
    source = sources[at]
    if not ed.shapes.same_shape(node.inputs[at], node.outputs[0]):
        return None
    definition = find(node.op)
    given = [None if v is None else v.reshape(()) for v in values]

    def function(x: np.ndarray) -> np.ndarray:
        operands = [x if i == at else v for i, v in enumerate(given)]
        c = Call(
            node,
            complete_attrs(definition, node),
            [None if v is None else Spec(DType.FLOAT, v.shape, v) for v in operands],
        )
        c.outs = definition.infer(c)
        return run_reference(definition, c, operands)[0]

    return lookup(ed, node.outputs[0], source, function, target)


def _pointwise(op: str) -> Form:
    def make(ed: Edit, node: Node, target: Quantized | None) -> Made | None:
        a, b, out, fused = *(quantized(ed, name) for name in node.inputs[:2]), target_of(target), fused_of(node)
        if a is None or b is None or out is None or fused is None or a.axis is not None or b.axis is not None:
            return None
        if a.dtype not in BYTES or b.dtype != a.dtype or (target is not None and target.dtype != a.dtype):
            return None
        return op, MICROSOFT, [*triple(a), *triple(b), *out], fused

    return make


_BINARY: dict[str, Form] = {"Add": _pointwise("QLinearAdd"), "Mul": _pointwise("QLinearMul")}
