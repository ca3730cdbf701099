"""The gradient in front of an activation function, for all of them. Domain `evort`."""

from __future__ import annotations

import numpy as np

from evort.ops.activation import ACTIVATIONS
from evort.ops.base import REQUIRED, Attr, Call, Kernel, Op, op
from evort.types import FLOATS, DType, Spec


@op("ActivationGrad", domain="evort")
class ActivationGrad(Op):
    """dX = dY * f'(V) for the activation `function` of evort.ops.activation, V being its output where the slope is a
    function of that (Relu, Sigmoid, ...), else its input."""

    inputs, outputs = ("dY", "V"), ("dX",)
    attrs = {"function": Attr("str", REQUIRED), "alpha": Attr("float", 0.0), "beta": Attr("float", 0.0)}
    dtypes = {"dY": FLOATS, "V": FLOATS}
    inplace = ((0, 0), (0, 1))

    def infer(self, c: Call) -> list[Spec]:
        known = ACTIVATIONS.get(c["function"])
        if known is None or known.slope is None:
            raise c.error(f"{c['function']!r} is no activation with a slope")
        if c.ins[0].shape != c.ins[1].shape or c.ins[0].dtype != c.ins[1].dtype:
            raise c.error("dY and V must have one shape and element type")
        return [c.like(0)]

    def reference(self, c: Call, dy: np.ndarray, v: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return dy * ACTIVATIONS[c["function"]].slope(v, c["alpha"], c["beta"])

    def bind(self, c: Call) -> Kernel | None:
        if c.ins[0].dtype != DType.FLOAT:
            return None
        return Kernel("train.activation_grad_f32", (ACTIVATIONS[c["function"]].id,), (c["alpha"], c["beta"]))
