"""Operators that write at indices given as a tensor; indices are those of gather.py. Updates are applied in order.

Sources: the ONNX operators of the same names.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from evort.errors import ExecutionError
from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.ops.copies import copy_kernel, itemsize
from evort.ops.gather import along_axis, elements, elements_kernel, inside
from evort.ops.views import INDEX, INT64
from evort.types import DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

REDUCTIONS = ("none", "add", "mul", "min", "max")  # R_NONE, ... in gather.pyx
# Element types that the compiled reductions take.
REDUCED = frozenset(
    {DType.FLOAT, DType.DOUBLE, DType.INT8, DType.UINT8, DType.INT16, DType.UINT16, DType.INT32, DType.UINT32,
     DType.INT64, DType.UINT64}
)  # fmt: skip


class ScatterBase(Op):
    """What ScatterElements, Scatter and ScatterND share: the output is `data` with `updates` written, or combined by
    `reduction`, at `indices`."""

    inputs, outputs = ("data", "indices", "updates"), ("output",)
    inplace = ((0, 0),)

    def reduction(self, c: Call) -> str:
        """The name of the reduction, validated."""
        name = c.attrs.get("reduction", "none")
        if name not in REDUCTIONS:
            raise c.error(f"reduction {name!r} is none of {', '.join(REDUCTIONS)}")
        return name

    def check(self, c: Call) -> None:
        """Raises ShapeError where the operands do not fit."""
        raise NotImplementedError

    def places(self, c: Call, x: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        """Where the updates go, for NumPy's indexing."""
        raise NotImplementedError

    def infer(self, c: Call) -> list[Spec]:
        if c.ins[2].dtype != c.ins[0].dtype:
            raise c.error("data and updates differ in element type")
        self.reduction(c)
        self.check(c)
        return [c.like(0)]

    def reference(self, c: Call, x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
        out = x.copy()
        at = self.places(c, x, indices)
        name = self.reduction(c)
        if name == "none":
            out[at] = updates
        else:
            ufunc = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}[name]
            with np.errstate(all="ignore"):
                ufunc.at(out, at, updates)
        return out

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        """Of data and updates. Without reduction, two updates of one element have no defined gradient (as ONNX has it,
        there are none); of equal extremes each gets its share."""
        data, indices, updates = c.node.inputs
        name = self.reduction(c)

        def taken(x: str) -> str:
            return self.take(g, c, x)

        def scattered(base: str, x: str, reduction: str) -> str:
            return g.emit(c.node.op, [base, indices, x], {**c.node.attrs, "reduction": reduction})

        zeros, few = g.expand(g.scalar(0, dy), c.ins[0].shape), g.expand(g.scalar(0, dy), c.ins[2].shape)
        if name == "none":
            return [g.emit(c.node.op, [dy, indices, few], dict(c.node.attrs)), None, taken(dy)]
        if name == "add":
            return [dy, None, taken(dy)]
        if name == "mul":
            # The product of all other factors, where any may be 0: that of all but the zeros, unless there are more.
            ones, one = g.expand(g.scalar(1, dy), c.ins[0].shape), g.scalar(1, dy)
            is_zero = g.emit("Equal", [updates, g.scalar(0, updates)])
            count = scattered(zeros, g.cast(is_zero, c.ins[0].dtype), "add")
            rest = scattered(ones, g.emit("Where", [is_zero, one, updates]), "mul")
            whole = g.mask(g.emit("Less", [count, one]), rest)
            left = g.mul(dy, data)
            others = g.emit("Where", [is_zero, taken(g.mask(g.emit("Less", [count, g.scalar(2, dy)]), rest)),
                                      g.div(taken(whole), g.emit("Where", [is_zero, one, updates]))])  # fmt: skip
            return [g.mul(dy, whole), None, g.mul(taken(left), others)]
        y = c.node.outputs[0]
        mine = g.cast(g.emit("Equal", [data, y]), c.ins[0].dtype)
        theirs = g.cast(g.emit("Equal", [updates, taken(y)]), c.ins[0].dtype)
        share = g.div(dy, scattered(mine, theirs, "add"))
        return [g.mul(share, mine), None, g.mul(taken(share), theirs)]

    def take(self, g: Gradients, c: Call, x: str) -> str:
        """What stands at the indices: the operator that gathers where this one scatters."""
        raise NotImplementedError

    def mode(self, c: Call) -> int | None:
        """The reduction's number, or None where no driver has it for this element type."""
        mode = REDUCTIONS.index(self.reduction(c))
        return mode if mode == 0 or c.ins[0].dtype in REDUCED else None


@op("ScatterElements", since=18)
class ScatterElements(ScatterBase):
    """output[indices[i][j]][j] = updates[i][j] for axis 0, and likewise for the others."""

    attrs = {"axis": Attr("int", 0), "reduction": Attr("str", "none")}
    dtypes = {"indices": INDEX}

    def check(self, c: Call) -> None:
        along_axis(c, c.ins[1].shape)
        if c.ins[2].shape != c.ins[1].shape:
            raise c.error("updates and indices differ in shape")

    def places(self, c: Call, x: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        return elements(c, x.shape, indices)

    def take(self, g: Gradients, c: Call, x: str) -> str:
        return g.emit("GatherElements", [x, c.node.inputs[1]], {"axis": c["axis"]})

    def bind(self, c: Call) -> Kernel | None:
        mode = self.mode(c)
        return None if mode is None else elements_kernel(c, "gather.scatter_elements", (mode,))


@op("Scatter", since=11)
class Scatter(ScatterElements):
    """The old name of ScatterElements, without reductions."""

    attrs = {"axis": Attr("int", 0)}


@op("ScatterND", since=18)
class ScatterND(ScatterBase):
    """Writes updates[i] to the slice (or element) of `data` at the index tuple indices[i]."""

    attrs = {"reduction": Attr("str", "none")}
    dtypes = {"indices": INT64}

    def check(self, c: Call) -> None:
        x, indices, updates = c.ins
        k = indices.shape[-1] if indices.rank else -1
        if not 0 <= k <= x.rank or updates.shape != indices.shape[:-1] + x.shape[k:]:
            raise c.error("indices and updates do not fit the data's shape")

    def places(self, c: Call, x: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.moveaxis(inside(c, indices, np.array(x.shape[: indices.shape[-1]])), -1, 0))

    def take(self, g: Gradients, c: Call, x: str) -> str:
        return g.emit("GatherND", [x, c.node.inputs[1]])

    def bind(self, c: Call) -> Kernel | None:
        x, indices, _ = c.ins
        mode, k = self.mode(c), indices.shape[-1]
        if mode is None or k == 0:
            return None
        inner = prod(x.shape[k:])
        tuples = indices.size // k if inner else 0
        return Kernel("gather.scatter_nd", ints=(mode, itemsize(x), tuples, inner, k, *x.shape[:k]))


@op("TensorScatter", since=24)
class TensorScatter(Op):
    """A cache [batch, ..., length, ...] with `update` written from write_indices[batch] on (0 where absent) along
    `axis`; mode "circular" goes round at the end, "linear" must not reach it."""

    inputs, outputs = ("past_cache", "update", "write_indices?"), ("present_cache",)
    attrs = {"axis": Attr("int", -2), "mode": Attr("str", "linear")}
    dtypes = {"write_indices": INT64}
    inplace = ((0, 0),)
    raw_bits = True

    def place(self, c: Call) -> int:
        axis = c.axis(c["axis"], c.ins[0].rank)
        if axis == 0 or not c.ins[0].rank:
            raise c.error("axis must not be the batch axis")
        return axis

    def infer(self, c: Call) -> list[Spec]:
        x, update = c.ins[:2]
        axis = self.place(c)
        if c["mode"] not in ("linear", "circular"):
            raise c.error(f"mode {c['mode']!r} is neither linear nor circular")
        if update.dtype != x.dtype or update.rank != x.rank or update.shape[axis] > x.shape[axis]:
            raise c.error("the update does not fit the cache")
        if any(a != b for i, (a, b) in enumerate(zip(x.shape, update.shape, strict=True)) if i != axis):
            raise c.error(f"update and cache differ in shape beside axis {axis}")
        if c.has(2) and c.ins[2].shape != x.shape[:1]:
            raise c.error("write_indices must be one number for each batch")
        return [c.like(0)]

    def reference(self, c: Call, x: np.ndarray, update: np.ndarray, at: np.ndarray | None = None) -> np.ndarray:
        axis, out = self.place(c), x.copy()
        size, n = x.shape[axis], update.shape[axis]
        for b in range(x.shape[0]):
            rows = (0 if at is None else int(at[b])) + np.arange(n)
            if c["mode"] == "circular" and size:
                rows %= size
            elif n and (rows[0] < 0 or rows[-1] >= size):
                raise ExecutionError(f"{c.node.label()}: the update reaches outside the cache at batch {b}")
            out[b][(*[slice(None)] * (axis - 1), rows)] = update[b]
        return out

    def bind(self, c: Call) -> Kernel | None:
        x, axis, n = c.ins[0], self.place(c), c.ins[1].shape[self.place(c)]
        if x.size == 0 or n == 0:
            return copy_kernel(c.outs[0])
        inner = prod(x.shape[axis + 1 :]) * itemsize(x)
        circular = int(c["mode"] == "circular")
        return Kernel(
            "gather.tensor_scatter",
            ints=(circular, x.shape[0], prod(x.shape[1:axis]), x.shape[axis], n, inner),
        )

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        axis, update = self.place(c), c.ins[1]
        rows = g.constant(np.arange(update.shape[axis], dtype=np.int64))
        if c.has(2):
            rows = g.add(g.reshape(c.node.inputs[2], (update.shape[0], 1)), rows)
        if c["mode"] == "circular":
            rows = g.emit("Mod", [rows, g.ints(c.ins[0].shape[axis])])
        shape = [1] * update.rank
        shape[0], shape[axis] = g.shape(rows)[0] if c.has(2) else 1, update.shape[axis]
        at = g.expand(g.reshape(rows, shape), update.shape)
        zeros = g.expand(g.scalar(0, dy), update.shape)
        past = g.emit("TensorScatter", [dy, zeros, *c.node.inputs[2:3]], dict(c.node.attrs))
        return [past, g.emit("GatherElements", [dy, at], {"axis": axis}), None]
