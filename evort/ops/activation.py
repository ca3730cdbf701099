"""Activation functions that other operators compute on their way out: `activation` of Conv, Gemm, MatMul, Add, ...

An extension of evort to the standard operators. The fusing passes set three attributes, `activation` (a name of
ACTIVATIONS, "" for none), `activation_alpha` and `activation_beta`; what each function means is what the ONNX operator
of that name means. The numbers are those of `EV_ACT_*` in `ev.h`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from evort.ops.base import Attr, Call

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients


class Activation:
    """One activation function.

    id: its number in the kernels. params: the defaults of `activation_alpha` and `activation_beta`, as many as it has.
    reference: f(x, alpha, beta) in NumPy, float in and out, of the same dtype; for PRelu alpha is the slope.
    slope: its derivative, likewise: a function of f(x) where `of_output`, so that x need not be kept; else of x.
    """

    __slots__ = ("defaults", "id", "of_output", "params", "reference", "slope")

    def __init__(
        self,
        id: int,
        params: tuple[float, ...],
        reference: Callable[..., np.ndarray],
        slope: Callable[..., np.ndarray] | None = None,
        of_output: bool = False,
    ):
        self.id = id
        self.params = params
        self.defaults = (*params, 0.0, 0.0)[:2]  # of both parameters, 0 for one that it does not have
        self.reference = reference
        self.slope = slope
        self.of_output = of_output


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, in x's dtype."""
    out = np.empty(x.shape, x.dtype)
    out.reshape(-1)[:] = [math.erf(v) for v in x.reshape(-1).tolist()]
    return out


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow on either side."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def softplus(x: np.ndarray) -> np.ndarray:
    """log(1 + exp(x)), without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """The tanh approximation of GELU (Hendrycks and Gimpel, 2016)."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _normal(x: np.ndarray) -> np.ndarray:
    """The density of the standard normal distribution."""
    return np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


def _gelu_tanh_slope(x: np.ndarray) -> np.ndarray:
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * (math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x))


def _mish_slope(x: np.ndarray) -> np.ndarray:
    t = np.tanh(softplus(x))
    return t + x * sigmoid(x) * (1 - t * t)


def _swish_slope(x: np.ndarray, a: float) -> np.ndarray:
    s = sigmoid(a * x)
    return s + a * x * s * (1 - s)


# np.maximum and np.minimum hand NaN on, as ONNX's reference does. At a kink, the slope is that of the left side (Relu's
# and Clip's is 0 there).
ACTIVATIONS: dict[str, Activation] = {
    "Relu": Activation(1, (), lambda x, a, b: np.maximum(x, 0), lambda y, a, b: y > 0, True),
    "Clip": Activation(
        2, (-math.inf, math.inf), lambda x, a, b: np.minimum(np.maximum(x, a), b),
        lambda y, a, b: (y > a) & (y < b), True,
    ),
    "LeakyRelu": Activation(
        3, (0.01,), lambda x, a, b: np.where(x < 0, a * x, x), lambda x, a, b: np.where(x < 0, a, 1.0)
    ),
    "Sigmoid": Activation(4, (), lambda x, a, b: sigmoid(x), lambda y, a, b: y * (1 - y), True),
    "Tanh": Activation(5, (), lambda x, a, b: np.tanh(x), lambda y, a, b: 1 - y * y, True),
    "HardSigmoid": Activation(
        6, (0.2, 0.5), lambda x, a, b: np.clip(a * x + b, 0, 1),
        lambda y, a, b: np.where((y > 0) & (y < 1), a, 0.0), True,
    ),
    "HardSwish": Activation(
        7, (), lambda x, a, b: x * np.clip(x / 6 + 0.5, 0, 1),
        lambda x, a, b: np.where(x <= -3, 0.0, np.where(x < 3, x / 3 + 0.5, 1.0)),
    ),
    "Swish": Activation(8, (1.0,), lambda x, a, b: x * sigmoid(a * x), lambda x, a, b: _swish_slope(x, a)),
    "Gelu": Activation(
        9, (), lambda x, a, b: 0.5 * x * (1 + erf(x * math.sqrt(0.5))),
        lambda x, a, b: 0.5 * (1 + erf(x * math.sqrt(0.5))) + x * _normal(x),
    ),
    "GeluTanh": Activation(10, (), lambda x, a, b: gelu_tanh(x), lambda x, a, b: _gelu_tanh_slope(x)),
    # One slope for each row of the product (channel of a convolution), as an extra input: not for Add, Mul, ...
    "PRelu": Activation(11, (), lambda x, slope, b: np.where(x < 0, slope * x, x)),
    "Softplus": Activation(12, (), lambda x, a, b: softplus(x), lambda x, a, b: sigmoid(x)),
    "Elu": Activation(
        13, (1.0,), lambda x, a, b: np.where(x < 0, a * np.expm1(np.minimum(x, 0)), x),
        lambda x, a, b: np.where(x < 0, a * np.exp(np.minimum(x, 0)), 1.0),
    ),
    "Mish": Activation(14, (), lambda x, a, b: x * np.tanh(softplus(x)), lambda x, a, b: _mish_slope(x)),
}  # fmt: skip


def activation_attrs() -> dict[str, Attr]:
    """The three attributes, to be merged into an operator's `attrs`. An absent parameter has the ONNX default."""
    return {"activation": Attr("str", ""), "activation_alpha": Attr("float"), "activation_beta": Attr("float")}


def activation_params(c: Call) -> tuple[float, float]:
    """(alpha, beta) with defaults filled in; 0 where the function has no such parameter.

    Raises ShapeError for an unknown activation, or a parameter that it does not have. Operators with these attributes
    call this in `infer`.
    """
    name = c["activation"]
    if name and name not in ACTIVATIONS:
        raise c.error(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    if c["activation_alpha"] is None and c["activation_beta"] is None:
        return ACTIVATIONS[name].defaults if name else (0.0, 0.0)
    defaults = ACTIVATIONS[name].params if name else ()
    found = []
    for i, key in enumerate(("activation_alpha", "activation_beta")):
        value = c[key]
        if i >= len(defaults):
            if value is not None:
                raise c.error(f"activation {name!r} has no parameter {key}")
            value = 0.0
        found.append(float(defaults[i] if value is None else value))
    return found[0], found[1]


def check_activation(c: Call) -> None:
    """For `infer` of operators whose activation can have no slope input. Raises ShapeError."""
    activation_params(c)
    if c["activation"] == "PRelu":
        raise c.error("activation 'PRelu' needs a slope, which this operator has no input for")


def activation_ints_reals(c: Call) -> tuple[tuple[int], tuple[float, float]]:
    """What a driver gets: ((number,), (alpha, beta)); number 0 for none. Raises as `activation_params` does."""
    name = c["activation"]
    return (ACTIVATIONS[name].id if name else 0,), activation_params(c)


def activation_gradient(g: Gradients, name: str, alpha: float, beta: float, x: str, y: str, dy: str) -> str:
    """The gradient in front of an activation y = f(x); of the two only that is read which the slope is a function
    of."""
    attrs = {"function": name, "alpha": float(alpha), "beta": float(beta)}
    return g.emit("ActivationGrad", [dy, y if ACTIVATIONS[name].of_output else x], attrs, "evort")


def apply_reference(c: Call, y: np.ndarray, slope: np.ndarray | None = None) -> np.ndarray:
    """The node's activation of y, in NumPy, in y's dtype. `slope`: PRelu's, broadcast to y."""
    name = c["activation"]
    if not name:
        return y
    alpha, beta = activation_params(c)
    wide = y.astype(np.float32) if y.dtype == np.float16 else y
    with np.errstate(all="ignore"):
        if name == "PRelu":
            out = ACTIVATIONS[name].reference(wide, slope, beta)
        else:
            out = ACTIVATIONS[name].reference(wide, wide.dtype.type(alpha), wide.dtype.type(beta))
    return out.astype(y.dtype, copy=False)
