"""Unary operators: elementary functions, activations, clipping, tests for NaN and infinity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from evort.ops.activation import ACTIVATIONS, activation_gradient
from evort.ops.base import Attr, Call, Kernel, Op, op, register
from evort.types import FLOAT8, FLOATS, INTS, NUMERIC, SIGNED_INTS, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

_F = DType.FLOAT
_HALVES = frozenset({DType.FLOAT16, DType.BFLOAT16})
_SIGNED = FLOATS | SIGNED_INTS

# Numbers of functions in the kernels, beside those of ACTIVATIONS: EV_ABS and on in ukr/elementwise.h.
_NAMES = (
    "Abs", "Neg", "Sign", "Floor", "Ceil", "Round", "Sqrt", "Reciprocal", "Exp", "Log", "Sin", "Cos", "Tan", "Asin",
    "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "Erf", "Selu", "Celu", "ThresholdedRelu", "Softsign",
    "Shrink", "Not",
)  # fmt: skip
FUNCTIONS = {name: 32 + i for i, name in enumerate(_NAMES)}
# Compiled for these types beside float32, float16 and bfloat16.
_FLOAT64 = frozenset(FUNCTIONS) - {"Selu", "Celu", "ThresholdedRelu", "Softsign", "Shrink", "Not"} | {
    "Relu", "Sigmoid", "Tanh",
}  # fmt: skip
_INTEGER = frozenset({"Abs", "Neg", "Sign", "Relu"})
_CHEAP = _INTEGER | {"Floor", "Ceil", "Round", "LeakyRelu", "Clip", "HardSigmoid", "HardSwish", "Not", "BitwiseNot"}


def unary_kernel(
    name: str, dtype: DType, a: float = 0.0, b: float = 0.0, inputs: tuple[int, ...] | None = None
) -> Kernel | None:
    """The driver of a unary function for an element type, or None where there is none."""
    compiled = (
        dtype == _F
        or dtype in _HALVES
        or (dtype == DType.DOUBLE and name in _FLOAT64)
        or (dtype in SIGNED_INTS and name in _INTEGER)
        or (dtype in INTS and name == "BitwiseNot")
        or (dtype == DType.BOOL and name == "Not")
    )
    if not compiled:
        return None
    number = ACTIVATIONS[name].id if name in ACTIVATIONS else FUNCTIONS[name.removeprefix("Bitwise")]
    # Below that many items a second thread costs more than it saves.
    grain = 32768 if name in _CHEAP else 4096
    return Kernel("elementwise.unary", ints=(number, dtype, grain), reals=(a, b), inputs=inputs)


class Unary(Op):
    """Y = f(X), elementwise."""

    inplace = ((0, 0),)

    def __init__(
        self,
        function: Callable[..., np.ndarray],
        dtypes: frozenset[DType] = FLOATS,
        operands: tuple[str, str] = ("X", "Y"),
        **attrs: float,
    ):
        """function: what it means, in NumPy, called with floating-point errors ignored; attrs: the operator's float
        attributes with their defaults, in the order that function and kernel take them."""
        self.function = function
        self.inputs, self.outputs = operands[:1], operands[1:]
        self.dtypes = {operands[0]: dtypes}
        self.attrs = {key: Attr("float", value) for key, value in attrs.items()}
        self.parameters = tuple(attrs)

    def infer(self, c: Call) -> list[Spec]:
        return [c.like(0)]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        # float16 is computed in float32, as compiled kernels do.
        wide = x.astype(np.float32) if x.dtype == np.float16 else x
        kind = wide.dtype.type if wide.dtype.kind == "f" else float
        with np.errstate(all="ignore"):
            return self.function(wide, *(kind(c[p]) for p in self.parameters)).astype(x.dtype, copy=False)

    def bind(self, c: Call) -> Kernel | None:
        a, b = (*(c[p] for p in self.parameters), 0.0, 0.0)[:2]
        return unary_kernel(self.name, c.ins[0].dtype, a, b)

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        x, y = c.node.inputs[0], c.node.outputs[0]
        if self.name in ACTIVATIONS:
            a, b = (*(c[p] for p in self.parameters), 0.0, 0.0)[:2]
            return [activation_gradient(g, self.name, a, b, x, y, dy)]
        if self.name in _FLAT:
            return [None]
        if self.name not in _SLOPES:
            return super().gradient(g, c, dy)
        return [_SLOPES[self.name](g, c, x, y, dy)]


def _over_root(g: Gradients, dy: str, x: str, sign: float, offset: float) -> str:
    """dy / sqrt(sign * x * x + offset)."""
    return g.div(dy, g.emit("Sqrt", [g.add(g.scale(g.mul(x, x), sign), g.scalar(offset, x))]))


def _one_minus_square(g: Gradients, x: str) -> str:
    return g.sub(g.scalar(1, x), g.mul(x, x))


def _exponential_slope(g: Gradients, x: str, y: str, dy: str, left: float, shift: float, right: float) -> str:
    """For y = shift (exp(...) - 1) left of 0 and right * x beyond: its slope there is (y + shift) * left."""
    slope = g.scale(g.add(y, g.scalar(shift, y)), left)
    return g.mul(dy, g.emit("Where", [g.emit("Less", [x, g.scalar(0, x)]), slope, g.scalar(right, x)]))


# Their slope is 0 wherever there is one.
_FLAT = frozenset({"Sign", "Floor", "Ceil", "Round"})
# dX of the functions that are no activations, given (g, c, X, Y, dY).
_SLOPES: dict[str, Callable[..., str]] = {
    "Abs": lambda g, c, x, y, dy: g.mul(dy, g.emit("Sign", [x])),
    "Neg": lambda g, c, x, y, dy: g.neg(dy),
    "Sqrt": lambda g, c, x, y, dy: g.div(g.scale(dy, 0.5), y),
    "Reciprocal": lambda g, c, x, y, dy: g.neg(g.mul(dy, g.mul(y, y))),
    "Exp": lambda g, c, x, y, dy: g.mul(dy, y),
    "Log": lambda g, c, x, y, dy: g.div(dy, x),
    "Sin": lambda g, c, x, y, dy: g.mul(dy, g.emit("Cos", [x])),
    "Cos": lambda g, c, x, y, dy: g.neg(g.mul(dy, g.emit("Sin", [x]))),
    "Tan": lambda g, c, x, y, dy: g.mul(dy, g.add(g.mul(y, y), g.scalar(1, y))),
    "Asin": lambda g, c, x, y, dy: _over_root(g, dy, x, -1, 1),
    "Acos": lambda g, c, x, y, dy: g.neg(_over_root(g, dy, x, -1, 1)),
    "Atan": lambda g, c, x, y, dy: g.div(dy, g.add(g.mul(x, x), g.scalar(1, x))),
    "Sinh": lambda g, c, x, y, dy: g.mul(dy, g.emit("Cosh", [x])),
    "Cosh": lambda g, c, x, y, dy: g.mul(dy, g.emit("Sinh", [x])),
    "Asinh": lambda g, c, x, y, dy: _over_root(g, dy, x, 1, 1),
    "Acosh": lambda g, c, x, y, dy: _over_root(g, dy, x, 1, -1),
    "Atanh": lambda g, c, x, y, dy: g.div(dy, _one_minus_square(g, x)),
    "Erf": lambda g, c, x, y, dy: g.scale(g.mul(dy, g.emit("Exp", [g.neg(g.mul(x, x))])), 2 / math.sqrt(math.pi)),
    "Selu": lambda g, c, x, y, dy: _exponential_slope(g, x, y, dy, 1.0, c["alpha"] * c["gamma"], c["gamma"]),
    "Celu": lambda g, c, x, y, dy: _exponential_slope(g, x, y, dy, 1 / c["alpha"], c["alpha"], 1.0),
    "ThresholdedRelu": lambda g, c, x, y, dy: g.mask(g.emit("Greater", [x, g.scalar(c["alpha"], x)]), dy),
    "Softsign": lambda g, c, x, y, dy: g.mul(dy, _one_minus_abs_square(g, y)),
    "Shrink": lambda g, c, x, y, dy: g.mask(g.emit("Greater", [g.emit("Abs", [x]), g.scalar(c["lambd"], x)]), dy),
}


def _one_minus_abs_square(g: Gradients, y: str) -> str:
    """(1 - |y|)^2."""
    rest = g.sub(g.scalar(1, y), g.emit("Abs", [y]))
    return g.mul(rest, rest)


def _erf(x: np.ndarray) -> np.ndarray:
    from evort.ops.activation_functions import erf

    return erf(x)


def _selu(x: np.ndarray, alpha: float, gamma: float) -> np.ndarray:
    return np.where(x > 0, gamma * x, gamma * alpha * np.expm1(np.minimum(x, 0)))


def _celu(x: np.ndarray, alpha: float) -> np.ndarray:
    return np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(x / alpha))


def _shrink(x: np.ndarray, bias: float, lambd: float) -> np.ndarray:
    return np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0))


def _unary(name: str, since: int, *args: Any, **attrs: float) -> None:
    """Registers a unary operator. One class for all of them: making a class takes as long as all of Unary.__init__ ten
    times over, and `import evort` makes these."""
    register(Unary(*args, **attrs), name, since)


def _activation(name: str, since: int, operands: tuple[str, str] = ("X", "Y"), **attrs: float) -> None:
    """Registers an operator that is also an activation of others: one meaning for both."""
    activation = ACTIVATIONS[name]
    _unary(name, since, lambda x, a=0.0, b=0.0: activation.reference(x, a, b), FLOATS, operands, **attrs)


_IO = ("input", "output")
_unary("Abs", 13, np.abs, NUMERIC)
_unary("Neg", 13, np.negative, _SIGNED)
_unary("Sign", 13, np.sign, NUMERIC, _IO)
_unary("Floor", 13, np.floor)
_unary("Ceil", 13, np.ceil)
_unary("Round", 22, np.rint)
_unary("Relu", 14, lambda x: np.maximum(x, x.dtype.type(0)), _SIGNED)
_unary("Sqrt", 13, np.sqrt)
_unary("Reciprocal", 13, lambda x: 1 / x)
_unary("Exp", 13, np.exp, FLOATS, _IO)
_unary("Log", 13, np.log, FLOATS, _IO)
_unary("Sin", 22, np.sin, FLOATS, _IO)
_unary("Cos", 22, np.cos, FLOATS, _IO)
_unary("Tan", 22, np.tan, FLOATS, _IO)
_unary("Asin", 22, np.arcsin, FLOATS, _IO)
_unary("Acos", 22, np.arccos, FLOATS, _IO)
_unary("Atan", 22, np.arctan, FLOATS, _IO)
_unary("Sinh", 22, np.sinh, FLOATS, _IO)
_unary("Cosh", 22, np.cosh, FLOATS, _IO)
_unary("Asinh", 22, np.arcsinh, FLOATS, _IO)
_unary("Acosh", 22, np.arccosh, FLOATS, _IO)
_unary("Atanh", 22, np.arctanh, FLOATS, _IO)
_unary("Erf", 13, _erf, FLOATS, _IO)
_unary("Selu", 22, _selu, alpha=1.6732631921768188, gamma=1.0507010221481323)
_unary("Celu", 28, _celu, alpha=1.0)
_unary("ThresholdedRelu", 22, lambda x, alpha: np.where(x > alpha, x, 0), alpha=1.0)
_unary("Softsign", 22, lambda x: x / (1 + np.abs(x)), FLOATS, _IO)
_unary("Shrink", 9, _shrink, NUMERIC - {DType.BFLOAT16}, _IO, bias=0.0, lambd=0.5)
_unary("BitwiseNot", 18, np.invert, INTS)
_unary("Not", 1, np.logical_not, frozenset({DType.BOOL}))
_activation("LeakyRelu", 16, alpha=0.009999999776482582)
_activation("Elu", 22, alpha=1.0)
_activation("HardSigmoid", 22, alpha=0.20000000298023224, beta=0.5)
_activation("HardSwish", 22)
_activation("Sigmoid", 13)
_activation("Tanh", 13, _IO)
_activation("Softplus", 22)
_activation("Mish", 22)
_activation("Swish", 24, alpha=1.0)


@op("Gelu", since=20)
class Gelu(Op):
    """Y = X/2 (1 + erf(X / sqrt 2)), or its approximation by tanh (Hendrycks and Gimpel, 2016)."""

    inputs, outputs = ("X",), ("Y",)
    attrs = {"approximate": Attr("str", "none")}
    dtypes = {"X": FLOATS}
    inplace = ((0, 0),)

    def infer(self, c: Call) -> list[Spec]:
        if c["approximate"] not in ("none", "tanh"):
            raise c.error(f"approximate must be 'none' or 'tanh', not {c['approximate']!r}")
        return [c.like(0)]

    def _activation(self, c: Call) -> str:
        return "GeluTanh" if c["approximate"] == "tanh" else "Gelu"

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        wide = x.astype(np.float32) if x.dtype == np.float16 else x
        with np.errstate(all="ignore"):
            return ACTIVATIONS[self._activation(c)].reference(wide, 0, 0).astype(x.dtype, copy=False)

    def bind(self, c: Call) -> Kernel | None:
        return unary_kernel(self._activation(c), c.ins[0].dtype)

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        return [activation_gradient(g, self._activation(c), 0, 0, c.node.inputs[0], c.node.outputs[0], dy)]


@op("Clip", since=13)
class Clip(Op):
    """Y = min(max(X, min), max); NaN in any operand gives NaN. min and max are scalars."""

    inputs, outputs = ("input", "min?", "max?"), ("output",)
    dtypes = {"input": NUMERIC, "min": NUMERIC, "max": NUMERIC}
    untrained = (1, 2)
    inplace = ((0, 0),)

    def infer(self, c: Call) -> list[Spec]:
        for i in (1, 2):
            if c.has(i):
                bound = c.ins[i]
                if bound.size != 1 or bound.dtype != c.ins[0].dtype:
                    raise c.error("min and max must be scalars of the input's element type")
        return [c.like(0)]

    def reference(self, c: Call, x: np.ndarray, low: Any = None, high: Any = None) -> np.ndarray:
        if low is not None:
            x = np.maximum(x, low.reshape(()))
        return x if high is None else np.minimum(x, high.reshape(()))

    def bind(self, c: Call) -> Kernel | None:
        from evort.ops.binary import nary_kernel

        dtype = c.ins[0].dtype
        bounds = [i for i in (1, 2) if c.has(i)]
        if not bounds:
            return None  # a view
        if dtype == _F and all(c.ins[i].value is not None for i in bounds):
            low, high = (c.ins[i].value.item() if i in bounds else sign * math.inf for i, sign in ((1, -1), (2, 1)))
            if low == low and high == high:
                return unary_kernel("Clip", dtype, low, high, inputs=(0,))
        return nary_kernel(c, ["Max" if i == 1 else "Min" for i in bounds], inputs=(0, *bounds))

    def view(self, c: Call) -> dict[int, tuple[int, int]] | None:
        return None if c.has(1) or c.has(2) else {0: (0, 0)}

    def lower(self, g: Gradients, c: Call) -> list[str] | None:
        """With bounds that are computed, which have gradients, too."""
        bounds = {"Max": 1, "Min": 2}
        if all(not c.has(i) or c.ins[i].value is not None for i in bounds.values()):
            return None
        y = c.node.inputs[0]
        for name, i in bounds.items():
            if c.has(i):
                y = g.emit(name, [y, g.reshape(c.node.inputs[i], ())])
        return [y]

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        bounds = [c.ins[i].value if c.has(i) else np.array(end) for i, end in ((1, -math.inf), (2, math.inf))]
        low, high = (float(b.reshape(())) for b in bounds)
        return [activation_gradient(g, "Clip", low, high, c.node.inputs[0], c.node.outputs[0], dy), None, None]


class _Test(Op):
    """A bool for each element."""

    inputs, outputs = ("X",), ("Y",)
    dtypes = {"X": FLOATS | FLOAT8}
    inplace = ((0, 0),)

    def infer(self, c: Call) -> list[Spec]:
        return [c.like(0, DType.BOOL)]

    def kinds(self, c: Call) -> int:
        """What is looked for: the sum of 1 for NaN, 2 for +infinity and 4 for -infinity."""
        raise NotImplementedError

    def bind(self, c: Call) -> Kernel | None:
        dtype = c.ins[0].dtype
        if dtype != _F and dtype not in _HALVES:
            return None
        return Kernel("elementwise.classify", ints=(self.kinds(c), dtype))


@op("IsNaN", since=20)
class IsNaN(_Test):
    """Whether an element is NaN."""

    def kinds(self, c: Call) -> int:
        return 1

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        return np.isnan(x)


@op("IsInf", since=20)
class IsInf(_Test):
    """Whether an element is infinite, of either sign or of one."""

    attrs = {"detect_negative": Attr("int", 1), "detect_positive": Attr("int", 1)}

    def kinds(self, c: Call) -> int:
        return 2 * bool(c["detect_positive"]) + 4 * bool(c["detect_negative"])

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        found = np.zeros(x.shape, bool)
        if c["detect_positive"]:
            found |= np.isposinf(x)
        if c["detect_negative"]:
            found |= np.isneginf(x)
        return found


@op("RoundThrough", domain="evort")
class RoundThrough(Op):
    """Y = X rounded half to even; its gradient is handed on as if it had not been rounded (the straight-through
    estimator of Bengio, Leonard and Courville, arXiv:1308.3432)."""

    inputs, outputs = ("X",), ("Y",)
    dtypes = {"X": FLOATS}
    inplace = ((0, 0),)

    def infer(self, c: Call) -> list[Spec]:
        return [c.like(0)]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        return np.rint(x)

    def bind(self, c: Call) -> Kernel | None:
        return unary_kernel("Round", c.ins[0].dtype)

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        return [dy]
