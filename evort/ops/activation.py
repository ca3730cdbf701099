"""Activation functions that other operators compute on their way out: `activation` of Conv, Gemm, MatMul, Add, ...

An extension of evort to the standard operators. The fusing passes set three attributes, `activation` (a name of
ACTIVATIONS, "" for none), `activation_alpha` and `activation_beta`; what each function means is what the ONNX operator
of that name means, in NumPy in activation_functions.py. The numbers are those of `EV_ACT_*` in `ev.h`.
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
    of_output: whether its slope is a function of its result, so that what it was computed of need not be kept.
    """

    __slots__ = ("defaults", "id", "name", "of_output", "params")

    def __init__(self, name: str, id: int, params: tuple[float, ...] = (), of_output: bool = False):
        self.name = name
        self.id = id
        self.params = params
        self.defaults = (*params, 0.0, 0.0)[:2]  # of both parameters, 0 for one that it does not have
        self.of_output = of_output

    @property
    def reference(self) -> Callable[..., np.ndarray]:
        """f(x, alpha, beta) in NumPy, float in and out, of the same dtype; for PRelu alpha is the slope."""
        from evort.ops import activation_functions

        return activation_functions.FUNCTIONS[self.name][0]

    @property
    def slope(self) -> Callable[..., np.ndarray] | None:
        """Its derivative, likewise: a function of f(x) where `of_output`, else of x."""
        from evort.ops import activation_functions

        return activation_functions.FUNCTIONS[self.name][1]


ACTIVATIONS = {
    a.name: a
    for a in (
        Activation("Relu", 1, (), True),
        Activation("Clip", 2, (-math.inf, math.inf), True),
        Activation("LeakyRelu", 3, (0.01,)),
        Activation("Sigmoid", 4, (), True),
        Activation("Tanh", 5, (), True),
        Activation("HardSigmoid", 6, (0.2, 0.5), True),
        Activation("HardSwish", 7),
        Activation("Swish", 8, (1.0,)),
        Activation("Gelu", 9),
        Activation("GeluTanh", 10),
        # One slope for each row of the product (channel of a convolution), as an extra input: not for Add, Mul, ...
        Activation("PRelu", 11),
        Activation("Softplus", 12),
        Activation("Elu", 13, (1.0,)),
        Activation("Mish", 14),
    )
}


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
