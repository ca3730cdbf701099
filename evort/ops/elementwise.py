"""Elementwise operators: unary, binary, activations, comparisons, casts, quantize and dequantize."""

from __future__ import annotations

import numpy as np

from evort.ops.base import Call, Kernel, Op, op
from evort.types import FLOATS, SIGNED_INTS, DType, Spec


@op("Relu", since=14)
class Relu(Op):
    """Y = max(X, 0)."""

    inputs, outputs = ("X",), ("Y",)
    dtypes = {"X": FLOATS | SIGNED_INTS}
    inplace = ((0, 0),)

    def infer(self, c: Call) -> list[Spec]:
        return [c.like(0)]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        return np.maximum(x, np.zeros((), x.dtype))

    def bind(self, c: Call) -> Kernel | None:
        return Kernel("elementwise.unary_f32", ints=(0,)) if c.ins[0].dtype == DType.FLOAT else None
