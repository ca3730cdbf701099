"""Det."""

from __future__ import annotations

import numpy as np

from evort.ops.base import Call, Op, op, wide
from evort.types import FLOATS, Spec


@op("Det", since=22)
class Det(Op):
    """Determinants of the matrices in the last two axes."""

    inputs, outputs = ("X",), ("Y",)
    dtypes = {"X": FLOATS}

    def infer(self, c: Call) -> list[Spec]:
        x = c.ins[0]
        if x.rank < 2 or x.shape[-1] != x.shape[-2]:
            raise c.error("the last two axes must be square matrices")
        return [Spec(x.dtype, x.shape[:-2])]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(np.linalg.det(wide(x))).astype(x.dtype)
