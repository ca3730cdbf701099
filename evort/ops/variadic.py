"""Operators on any number of tensors with broadcasting: Min, Max, Sum, Mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from evort.ops.base import Call, Kernel, Op, register
from evort.ops.binary import nary_kernel, same_dtype
from evort.ops.broadcast import broadcast
from evort.types import FLOATS, NUMERIC, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients


class _Variadic(Op):
    """Y = X0 op X1 op ... with broadcasting."""

    inputs = ("*data_0",)
    inplace = ((0, 0), (0, 1))  # later ones are read after the first result is written

    def __init__(self, operation: str, function: Callable[..., np.ndarray], output: str, dtypes: frozenset[DType]):
        self.operation, self.function = operation, function
        self.outputs = (output,)
        self.dtypes = {"data_0": dtypes}

    def infer(self, c: Call) -> list[Spec]:
        return [Spec(same_dtype(c), broadcast(c, *(s.shape for s in c.ins)))]

    def reference(self, c: Call, *data: np.ndarray) -> np.ndarray:
        found = data[0]
        with np.errstate(all="ignore"):
            for x in data[1:]:
                found = self.function(found, x)
        return found

    def bind(self, c: Call) -> Kernel | None:
        return nary_kernel(c, (self.operation,) * (len(c.ins) - 1)) if len(c.ins) > 1 else None

    def view(self, c: Call) -> dict[int, tuple[int, int]] | None:
        return {0: (0, 0)} if len(c.ins) == 1 else None

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        if self.operation == "Add":
            return [g.reduced_to(dy, s.shape) if g.wants(i) else None for i, s in enumerate(c.ins)]
        # The gradient goes to the first operand that is the extreme.
        found, taken = [], None
        for i, name in enumerate(c.node.inputs):
            here = g.emit("Equal", [name, c.node.outputs[0]])
            free = here if taken is None else g.emit("And", [here, g.emit("Not", [taken])])
            taken = here if taken is None else g.emit("Or", [taken, here])
            found.append(g.reduced_to(g.mask(free, dy), c.ins[i].shape) if g.wants(i) else None)
        return found


class _Mean(_Variadic):
    """Elementwise mean."""

    def reference(self, c: Call, *data: np.ndarray) -> np.ndarray:
        total = super().reference(c, *data)
        return total / total.dtype.type(len(data))

    def bind(self, c: Call) -> Kernel | None:
        n = len(c.ins)
        return nary_kernel(c, ("Add",) * (n - 1), divisor=float(n)) if n > 1 else None

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        return super().gradient(g, c, g.scale(dy, 1 / len(c.ins)))


# A NaN in any operand of Min and Max gives NaN.
register(_Variadic("Min", np.minimum, "min", NUMERIC), "Min", 13)
register(_Variadic("Max", np.maximum, "max", NUMERIC), "Max", 13)
register(_Variadic("Add", np.add, "sum", FLOATS), "Sum", 13)
register(_Mean("Add", np.add, "mean", FLOATS), "Mean", 13)
