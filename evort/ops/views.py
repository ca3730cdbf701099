"""Operators that only change a shape: views, which cost nothing. Sources: the ONNX operators of the same names."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.types import DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

INT64 = frozenset({DType.INT64})
INDEX = frozenset({DType.INT32, DType.INT64})
ALL_VIEW = {0: (0, 0)}  # output 0 is input 0


def as_ints(values: Iterable[int] | np.ndarray | None) -> tuple[int, ...] | None:
    """An integer operand as a tuple of ints; None where it is absent."""
    if values is None:
        return None
    return tuple(np.asarray(values).reshape(-1).tolist())


def optional_ints(c: Call, index: int) -> tuple[int, ...] | None:
    """The value of an optional integer input, None where it is absent. Raises NeedsValue."""
    return c.ints(index) if c.has(index) else None


class View(Op):
    """Base class of operators whose output is the input with another shape."""

    raw_bits = True

    def shape(self, c: Call, dims: tuple[int, ...], operand: tuple[int, ...] | None) -> tuple[int, ...]:
        """The output's shape, for an input of shape `dims` and the value of the second operand."""
        raise NotImplementedError

    def infer(self, c: Call) -> list[Spec]:
        return [Spec(c.ins[0].dtype, self.shape(c, c.ins[0].shape, optional_ints(c, 1)))]

    def reference(self, c: Call, x: np.ndarray, operand: np.ndarray | None = None) -> np.ndarray:
        return x.reshape(self.shape(c, x.shape, as_ints(operand)))

    def bind(self, c: Call) -> Kernel:
        from evort.ops import copies  # where the output cannot share its input's memory

        return copies.copy_kernel(c.outs[0])

    def view(self, c: Call) -> dict[int, tuple[int, int]]:
        return ALL_VIEW

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        return [g.reshape(dy, c.ins[0].shape), None]


@op("Identity", since=25)
class Identity(View):
    """The input itself, which may be a sequence or an optional."""

    inputs, outputs = ("input",), ("output",)

    def infer(self, c: Call) -> list[Spec]:
        return [c.like(0)]

    def reference(self, c: Call, x: Any, operand: None = None) -> Any:
        return x


@op("Reshape", since=14)
class Reshape(View):
    """The same elements in shape `shape`: -1 (once) is what is left, 0 the input's size unless `allowzero`."""

    inputs, outputs = ("data", "shape"), ("reshaped",)
    attrs = {"allowzero": Attr("int", 0)}
    dtypes = {"shape": INT64}

    def shape(self, c: Call, dims: tuple[int, ...], operand: tuple[int, ...] | None) -> tuple[int, ...]:
        wanted = list(operand)
        for i, d in enumerate(wanted):
            if d == 0 and not c["allowzero"]:
                if i >= len(dims):
                    raise c.error(f"shape {list(operand)} copies dimension {i} of a tensor of rank {len(dims)}")
                wanted[i] = dims[i]
            elif d < -1:
                raise c.error(f"shape {list(operand)} has a negative dimension")
        if wanted.count(-1) > 1:
            raise c.error(f"shape {list(operand)} leaves more than one dimension open")
        size = prod(dims)
        if -1 in wanted:
            rest = prod(d for d in wanted if d != -1)
            if rest == 0 or size % rest:
                raise c.error(f"{size} elements do not fit shape {list(operand)}")
            wanted[wanted.index(-1)] = size // rest
        if prod(wanted) != size:
            raise c.error(f"{size} elements do not fit shape {list(operand)}")
        return tuple(wanted)


@op("Squeeze", since=13)
class Squeeze(View):
    """Drops axes of size 1: those of `axes`, or all."""

    inputs, outputs = ("data", "axes?"), ("squeezed",)
    dtypes = {"axes": INT64}

    def shape(self, c: Call, dims: tuple[int, ...], operand: tuple[int, ...] | None) -> tuple[int, ...]:
        if operand is None:
            return tuple(d for d in dims if d != 1)
        # An axis named twice is dropped once, as NumPy does.
        axes = {c.axis(a, len(dims)) for a in operand}
        if any(dims[a] != 1 for a in axes):
            raise c.error(f"axes {list(operand)} of shape {list(dims)} are not all of size 1")
        return tuple(d for i, d in enumerate(dims) if i not in axes)


@op("Unsqueeze", since=13)
class Unsqueeze(View):
    """Adds axes of size 1; `axes` counts in the output."""

    inputs, outputs = ("data", "axes"), ("expanded",)
    dtypes = {"axes": INT64}

    def shape(self, c: Call, dims: tuple[int, ...], operand: tuple[int, ...] | None) -> tuple[int, ...]:
        rank = len(dims) + len(operand)
        axes = c.axes(operand, rank)
        kept = iter(dims)
        return tuple(1 if i in axes else next(kept) for i in range(rank))


@op("Flatten", since=13)
class Flatten(View):
    """A matrix: the axes before `axis` are its rows, those from it on its columns."""

    inputs, outputs = ("input",), ("output",)
    attrs = {"axis": Attr("int", 1)}

    def shape(self, c: Call, dims: tuple[int, ...], operand: tuple[int, ...] | None) -> tuple[int, ...]:
        axis, rank = c["axis"], len(dims)
        if not -rank <= axis <= rank:
            raise c.error(f"axis {axis} is outside [-{rank}, {rank}]")
        axis += rank if axis < 0 else 0
        return prod(dims[:axis]), prod(dims[axis:])
