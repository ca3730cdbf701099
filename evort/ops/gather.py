"""Operators that read at indices given as a tensor: the Gather family, ReverseSequence. scatter.py writes.

An index in [-n, 0) counts from the end of its axis of size n; any other outside [0, n) is an error. Sources: the ONNX
operators of the same names.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from evort.errors import ExecutionError
from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.ops.copies import itemsize, row_major
from evort.ops.views import INDEX, INT64
from evort.types import MAX_RANK, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients


def inside(c: Call, indices: np.ndarray, sizes: int | np.ndarray) -> np.ndarray:
    """Indices in [-size, size) brought into [0, size). Raises ExecutionError for one outside."""
    if ((indices < -sizes) | (indices >= sizes)).any():
        raise ExecutionError(f"{c.node.label()}: an index is outside its axis of size {sizes}")
    return np.where(indices < 0, indices + sizes, indices)


@op("Gather", since=13)
class Gather(Op):
    """data[..., indices, ...] along `axis`: the axis is replaced by those of `indices`. output_dtype, an extension of
    evort: FLOAT widens data of float16 or bfloat16."""

    inputs, outputs = ("data", "indices"), ("output",)
    attrs = {"axis": Attr("int", 0), "output_dtype": Attr("int", 0)}
    dtypes = {"indices": INDEX}
    raw_bits = True

    def place(self, c: Call) -> int:
        if c.ins[0].rank == 0:
            raise c.error("a scalar has no axis to gather from")
        return c.axis(c["axis"], c.ins[0].rank)

    def infer(self, c: Call) -> list[Spec]:
        x, axis, wanted = c.ins[0], self.place(c), c["output_dtype"]
        if wanted and (wanted != DType.FLOAT or x.dtype not in (DType.FLOAT16, DType.BFLOAT16)):
            raise c.error(f"output_dtype {wanted} must be float ({DType.FLOAT}), and the data float16 or bfloat16")
        dtype = DType.FLOAT if wanted else x.dtype
        return [Spec(dtype, x.shape[:axis] + c.ins[1].shape + x.shape[axis + 1 :])]

    def reference(self, c: Call, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
        y = np.take(x, inside(c, indices, x.shape[c["axis"]]), c["axis"])
        if not c["output_dtype"]:
            return y
        if c.ins[0].dtype == DType.FLOAT16:
            return y.astype(np.float32)
        from evort.ops.lowp import widen

        return widen(y, DType.BFLOAT16)

    def bind(self, c: Call) -> Kernel | None:
        x, axis = c.ins[0], self.place(c)
        if c["output_dtype"]:
            ints = (x.shape[0], prod(x.shape[1:]), 16, 0, 1)
            return Kernel("nbits.gather", ints, inputs=(0, 0, 1)) if axis == 0 else None
        inner = prod(x.shape[axis + 1 :]) * itemsize(x)
        rows = prod(x.shape[:axis]) if c.outs[0].size else 0
        return Kernel("gather.gather", ints=(rows, x.shape[axis], inner))

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        x, axis, rank = c.ins[0], self.place(c), c.ins[1].rank
        # With the gathered axis first, each index adds a row.
        perm = [*range(axis, axis + rank), *range(axis), *range(axis + rank, x.rank - 1 + rank)]
        rows = g.transpose(dy, perm)
        others = (*x.shape[:axis], *x.shape[axis + 1 :])
        at = g.reshape(g.cast(c.node.inputs[1], DType.INT64), (*c.ins[1].shape, 1))
        zeros = g.expand(g.scalar(0, dy), (x.shape[axis], *others))
        total = g.emit("ScatterND", [zeros, at, rows], {"reduction": "add"})
        return [g.cast(g.transpose(total, [*range(1, axis + 1), 0, *range(axis + 1, x.rank)]), x.dtype), None]

    def view(self, c: Call) -> dict[int, tuple[int, int]] | None:
        """Known indices that follow each other pick a contiguous part of the first axis, or all of any."""
        x, axis, at = c.ins[0], self.place(c), c.ins[1].value
        if at is None or at.size == 0 or c["output_dtype"]:
            return None
        at, n = at.reshape(-1), x.shape[axis]
        if at.size != n and prod(x.shape[:axis]) != 1:
            return None
        first = int(at[0])
        if not -n <= first < n or (at != np.arange(first, first + at.size)).any() or first < 0 <= int(at[-1]):
            return None
        if int(at[-1]) >= n:
            return None
        return {0: (0, first % n * prod(x.shape[axis + 1 :]) * itemsize(x))}


@op("GatherElements", since=13)
class GatherElements(Op):
    """output[i][j] = data[indices[i][j]][j] for axis 0, and likewise for the others; `indices` has the output's
    shape."""

    inputs, outputs = ("data", "indices"), ("output",)
    attrs = {"axis": Attr("int", 0)}
    dtypes = {"indices": INDEX}
    raw_bits = True

    def infer(self, c: Call) -> list[Spec]:
        along_axis(c, c.ins[1].shape)
        return [Spec(c.ins[0].dtype, c.ins[1].shape)]

    def reference(self, c: Call, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
        return x[elements(c, x.shape, indices)]

    def bind(self, c: Call) -> Kernel | None:
        return elements_kernel(c, "gather.gather_elements", ())

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        zeros = g.expand(g.scalar(0, dy), c.ins[0].shape)
        operands = [zeros, c.node.inputs[1], dy]
        return [g.emit("ScatterElements", operands, {"axis": c["axis"], "reduction": "add"}), None]


def along_axis(c: Call, shape: tuple[int, ...]) -> int:
    """The axis of GatherElements or ScatterElements, with indices of the given shape, which is validated."""
    x = c.ins[0]
    if x.rank == 0 or len(shape) != x.rank:
        raise c.error(f"indices must be of the data's rank, {x.rank}, and that at least 1")
    axis = c.axis(c["axis"], x.rank)
    if any(n > d for i, (n, d) in enumerate(zip(shape, x.shape, strict=True)) if i != axis):
        raise c.error(f"indices of shape {list(shape)} reach outside the data beside axis {axis}")
    return axis


def elements(c: Call, dims: tuple[int, ...], indices: np.ndarray) -> tuple[np.ndarray, ...]:
    """For NumPy's indexing: each index in its axis, and the elements' own places in the others."""
    axis = along_axis(c, indices.shape)
    grid = list(np.ogrid[tuple(slice(n) for n in indices.shape)])
    grid[axis] = inside(c, indices, dims[axis])
    return tuple(grid)


def elements_kernel(c: Call, driver: str, first: tuple[int, ...]) -> Kernel | None:
    """GatherElements' or ScatterElements' driver; `first` are the parameters before the shared ones."""
    x, shape = c.ins[0], c.ins[1].shape
    axis = along_axis(c, shape)
    if x.rank > MAX_RANK:
        return None
    strides = row_major(x.shape)
    return Kernel(driver, ints=(*first, itemsize(x), x.rank, axis, x.shape[axis], *shape, *strides))


@op("GatherND", since=13)
class GatherND(Op):
    """The slices (or elements) of `data` at the index tuples that are the last axis of `indices`; the first
    `batch_dims` axes of both go side by side."""

    inputs, outputs = ("data", "indices"), ("output",)
    attrs = {"batch_dims": Attr("int", 0)}
    dtypes = {"indices": INT64}
    raw_bits = True

    def infer(self, c: Call) -> list[Spec]:
        x, indices = c.ins
        b = c["batch_dims"]
        if not 0 <= b < min(x.rank, indices.rank):
            raise c.error(f"batch_dims {b} is not below both ranks")
        k = indices.shape[-1]
        if not 1 <= k <= x.rank - b or x.shape[:b] != indices.shape[:b]:
            raise c.error("the indices do not fit the data's shape")
        return [Spec(x.dtype, indices.shape[:-1] + x.shape[b + k :])]

    def reference(self, c: Call, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
        b, k = c["batch_dims"], indices.shape[-1]
        at = np.moveaxis(inside(c, indices, np.array(x.shape[b : b + k])), -1, 0)
        batch = np.ogrid[tuple(slice(n) for n in indices.shape[:b])] if b else ()
        batch = tuple(g.reshape(g.shape + (1,) * (indices.ndim - 1 - b)) for g in batch)
        return x[(*batch, *at)]

    def bind(self, c: Call) -> Kernel:
        x, indices = c.ins
        b, k = c["batch_dims"], indices.shape[-1]
        per_batch = prod(indices.shape[b:-1]) if c.outs[0].size else 0
        sizes = x.shape[b : b + k]
        inner = prod(x.shape[b + k :]) * itemsize(x)
        return Kernel("gather.gather_nd", ints=(prod(x.shape[:b]), per_batch, inner, k, *sizes))

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        (x, indices), b, at = c.ins, c["batch_dims"], c.node.inputs[1]
        if b:  # ScatterND has no batch axes: they become the first numbers of each index
            lead = np.stack(np.indices(indices.shape[:-1])[:b], -1)
            at = g.emit("Concat", [g.constant(lead.astype(np.int64)), at], {"axis": indices.rank - 1})
        zeros = g.expand(g.scalar(0, dy), x.shape)
        return [g.emit("ScatterND", [zeros, at, dy], {"reduction": "add"}), None]


@op("ReverseSequence", since=10)
class ReverseSequence(Op):
    """Along `time_axis`, the first sequence_lens[b] elements of each batch b in reverse order, the others as they
    are."""

    inputs, outputs = ("input", "sequence_lens"), ("Y",)
    attrs = {"batch_axis": Attr("int", 1), "time_axis": Attr("int", 0)}
    dtypes = {"sequence_lens": INT64}
    raw_bits = True

    def infer(self, c: Call) -> list[Spec]:
        x, axes = c.ins[0], (c["batch_axis"], c["time_axis"])
        if x.rank < 2 or sorted(axes) != [0, 1]:
            raise c.error("the batch and time axes must be 0 and 1 of a tensor of rank 2 or higher")
        if c.ins[1].shape != (x.shape[c["batch_axis"]],):
            raise c.error("sequence_lens must be one length for each batch")
        return [c.like(0)]

    def reference(self, c: Call, x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        steps, batches = x.shape[c["time_axis"]], x.shape[c["batch_axis"]]
        if ((lengths < 0) | (lengths > steps)).any():
            raise ExecutionError(f"{c.node.label()}: a sequence length is outside [0, {steps}]")
        t, b = np.ogrid[:steps, :batches]
        at = np.where(t < lengths, lengths - 1 - t, t)
        return x[at, b] if c["time_axis"] == 0 else x[b.T, at.T]

    def bind(self, c: Call) -> Kernel:
        x = c.ins[0]
        inner = prod(x.shape[2:]) * itemsize(x)
        return Kernel("gather.reverse_sequence", ints=(c["time_axis"], x.shape[0], x.shape[1], inner))

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        return [g.replay("ReverseSequence", c, [dy, c.node.inputs[1]]), None]
