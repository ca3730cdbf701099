"""Operators that read their input at a table of indices for each axis: Pad, CenterCropPad, Compress.

Sources: the ONNX operators of the same names.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from evort.ops.base import Attr, Call, DataDependent, Kernel, Op, op
from evort.ops.copies import itemsize, take_kernel
from evort.ops.views import ALL_VIEW, INDEX, INT64, as_ints, optional_ints
from evort.types import STORAGE, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

MAX_AXIS = 1 << 27  # an axis longer than this would make planning itself, which lists its indices, a burden


def along(g: Gradients, matrix: np.ndarray, x: str, axis: int) -> str:
    """The constant matrix [m, n] applied to an axis of size n, which becomes m."""
    shape = g.shape(x)
    flat = g.reshape(x, (prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])))
    product = g.emit("MatMul", [g.constant(matrix.astype(STORAGE[g.specs[x].dtype])), flat])
    return g.reshape(product, (*shape[:axis], len(matrix), *shape[axis + 1 :]))


class Take(Op):
    """Base class of operators whose output is the input at one table of indices for each axis, -1 standing for a fill
    value."""

    raw_bits = True
    fill: int | None = None  # the input that holds the fill value; zero where that is absent

    def tables(self, c: Call, dims: tuple[int, ...], *operands: tuple[int, ...] | None) -> list[np.ndarray | None]:
        """The table of each axis; None for one taken as it is."""
        raise NotImplementedError

    def values(self, c: Call) -> list[tuple[int, ...] | None]:
        """The operands of `tables`, known ones."""
        raise NotImplementedError

    def known(self, c: Call) -> list[np.ndarray | None]:
        """The tables for the node's operands, made once until `bind` has used them."""
        if c.memo is None:
            c.memo = self.tables(c, c.ins[0].shape, *self.values(c))
        return c.memo

    def infer(self, c: Call) -> list[Spec]:
        x, tables = c.ins[0], self.known(c)
        return [Spec(x.dtype, tuple(d if t is None else len(t) for d, t in zip(x.shape, tables, strict=True)))]

    def take(self, x: np.ndarray, tables: list[np.ndarray | None], fill: object) -> np.ndarray:
        """What the tables give, in NumPy."""
        shape = tuple(d if t is None else len(t) for d, t in zip(x.shape, tables, strict=True))
        out = np.full(shape, fill, x.dtype)
        tables = [np.arange(d) if t is None else t for d, t in zip(x.shape, tables, strict=True)]
        inside = [np.flatnonzero(t >= 0) for t in tables]
        out[np.ix_(*inside)] = x[np.ix_(*(t[i] for t, i in zip(tables, inside, strict=True)))]
        return out

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        """Each element's gradients are added up, axis by axis: where an axis is only cut or filled, by a Pad."""
        for axis, table in enumerate(self.known(c)):
            if table is None:
                continue
            size = c.ins[0].shape[axis]
            inside = np.flatnonzero(table >= 0)
            kept = table[inside]
            if kept.size and (kept == np.arange(kept[0], kept[0] + kept.size)).all():
                first = int(inside[0])
                if first + kept.size == int(inside[-1]) + 1:
                    begin, end = int(kept[0]) - first, size - int(kept[-1]) - (len(table) - int(inside[-1]))
                    dy = g.emit("Pad", [dy, g.ints(begin, end), None, g.ints(axis)])
                    continue
            matrix = np.zeros((size, len(table)))
            matrix[kept, inside] = 1
            dy = along(g, matrix, dy, axis)
        return [dy, *[None] * (len(c.ins) - 1)]

    def bind(self, c: Call) -> Kernel | None:
        x = c.ins[0]
        fill = self.fill if self.fill is not None and c.has(self.fill) else None
        return take_kernel(itemsize(x), x.shape, self.known(c), fill)

    def view(self, c: Call) -> dict[int, tuple[int, int]] | None:
        return ALL_VIEW if all(t is None for t in self.known(c)) else None


@op("Pad", since=18)
class Pad(Take):
    """Adds elements before and after along `axes` (all where absent), or removes them where `pads` is negative.

    mode: "constant" adds `constant_value`; "edge" repeats the border; "reflect" mirrors without repeating the border;
    "wrap" goes round. Shape rule: size + begin + end along each axis.
    """

    inputs, outputs = ("data", "pads", "constant_value?", "axes?"), ("output",)
    attrs = {"mode": Attr("str", "constant")}
    dtypes = {"pads": INT64, "axes": INDEX}
    fill = 2

    def tables(self, c: Call, dims: tuple[int, ...], *operands: tuple[int, ...] | None) -> list[np.ndarray | None]:
        pads, axes = operands
        mode = c["mode"]
        if mode not in ("constant", "reflect", "edge", "wrap"):
            raise c.error(f"mode {mode!r} is none of constant, reflect, edge and wrap")
        if axes is None:
            axes = tuple(range(len(dims)))
        if len(pads) != 2 * len(axes):
            raise c.error(f"{len(pads)} pads given for {len(axes)} axes: each needs a begin and an end")
        c.axes(axes, len(dims))
        tables: list[np.ndarray | None] = [None] * len(dims)
        for i, axis in enumerate(axes):
            n, begin, end = dims[axis], pads[i], pads[len(axes) + i]
            size = n + begin + end
            if not 0 <= size <= MAX_AXIS:
                raise c.error(f"pads {begin} and {end} make axis {axis} of size {size}, outside [0, {MAX_AXIS}]")
            if begin == end == 0:
                continue
            at = np.arange(-begin, n + end)
            # Negative pads crop first; what is added mirrors, repeats or continues what is left.
            low, high = max(0, -begin), min(n, n + end)
            if mode == "constant":
                tables[axis] = np.where((at < low) | (at >= high), -1, at)
                continue
            if size and high <= low:
                raise c.error(f"mode {mode!r} has nothing to repeat along axis {axis} of size {n}")
            tables[axis] = low + _extend(mode, at - low, high - low)
        return tables

    def values(self, c: Call) -> list[tuple[int, ...] | None]:
        return [c.ints(1), optional_ints(c, 3)]

    def infer(self, c: Call) -> list[Spec]:
        if c.has(2) and (c.ins[2].size != 1 or c.ins[2].dtype != c.ins[0].dtype):
            raise c.error("constant_value must be one element of the data's type")
        return super().infer(c)

    def reference(
        self, c: Call, x: np.ndarray, pads: np.ndarray, value: np.ndarray | None = None, axes: np.ndarray | None = None
    ) -> np.ndarray:
        empty = "" if x.dtype == object else np.zeros((), x.dtype)
        return self.take(
            x, self.tables(c, x.shape, as_ints(pads), as_ints(axes)), empty if value is None else value.reshape(())[()]
        )


def _extend(mode: str, at: np.ndarray, n: int) -> np.ndarray:
    """Indices outside [0, n) brought inside."""
    if n == 0:
        return at[:0]
    if mode == "edge":
        return at.clip(0, n - 1)
    if mode == "wrap":
        return at % n
    if n == 1:
        return np.zeros_like(at)
    at = at % (2 * n - 2)
    return np.minimum(at, 2 * n - 2 - at)


@op("CenterCropPad", since=18)
class CenterCropPad(Take):
    """Crops or pads with zeros, evenly on both sides, to `shape` along `axes` (all where absent). An odd element goes
    from, or to, the end."""

    inputs, outputs = ("input_data", "shape"), ("output_data",)
    attrs = {"axes": Attr("ints")}
    dtypes = {"shape": INDEX}

    def tables(self, c: Call, dims: tuple[int, ...], *operands: tuple[int, ...] | None) -> list[np.ndarray | None]:
        axes = tuple(range(len(dims))) if c["axes"] is None else tuple(c["axes"])
        (shape,) = operands
        if len(shape) != len(axes) or not all(0 <= n <= MAX_AXIS for n in shape):
            raise c.error(f"shape {list(shape)} must be {len(axes)} sizes of at most {MAX_AXIS}")
        c.axes(axes, len(dims))
        tables: list[np.ndarray | None] = [None] * len(dims)
        for axis, n in zip(axes, shape, strict=True):
            d = dims[axis]
            if n != d:
                at = np.arange(n) + ((d - n) // 2 if n < d else -((n - d) // 2))
                tables[axis] = np.where((at < 0) | (at >= d), -1, at)
        return tables

    def values(self, c: Call) -> list[tuple[int, ...] | None]:
        return [c.ints(1)]

    def reference(self, c: Call, x: np.ndarray, shape: np.ndarray) -> np.ndarray:
        return self.take(x, self.tables(c, x.shape, as_ints(shape)), "" if x.dtype == object else 0)


@op("Compress", since=11)
class Compress(Take):
    """The slices along `axis` (elements of the flattened input where it is absent) at which `condition` is true; it
    may be shorter than the axis, the rest then is dropped."""

    inputs, outputs = ("input", "condition"), ("output",)
    attrs = {"axis": Attr("int")}
    dtypes = {"condition": frozenset({DType.BOOL})}

    def infer(self, c: Call) -> list[Spec]:
        x, condition = c.ins
        size = x.size if c["axis"] is None else x.shape[c.axis(c["axis"], x.rank)] if x.rank else 1
        if condition.rank != 1 or condition.shape[0] > size:
            raise c.error(f"condition must be a vector of at most {size} elements")
        if condition.value is None:
            raise DataDependent
        shape = self.flat(c, x.shape)
        (table,) = (t for t in self.tables(c, shape, condition.value) if t is not None)
        axis = 0 if c["axis"] is None else c.axis(c["axis"], x.rank)
        return [Spec(x.dtype, (*shape[:axis], len(table), *shape[axis + 1 :]))]

    def flat(self, c: Call, dims: tuple[int, ...]) -> tuple[int, ...]:
        return (prod(dims),) if c["axis"] is None else dims

    def tables(self, c: Call, dims: tuple[int, ...], *operands: np.ndarray) -> list[np.ndarray | None]:
        tables: list[np.ndarray | None] = [None] * len(dims)
        tables[0 if c["axis"] is None else c.axis(c["axis"], len(dims))] = np.flatnonzero(operands[0])
        return tables

    def values(self, c: Call) -> list[np.ndarray]:
        return [c.value(1)]

    def reference(self, c: Call, x: np.ndarray, condition: np.ndarray) -> np.ndarray:
        return np.compress(condition, x, c["axis"])

    def bind(self, c: Call) -> Kernel | None:
        shape = self.flat(c, c.ins[0].shape)
        return take_kernel(itemsize(c.ins[0]), shape, self.tables(c, shape, c.value(1)))

    def view(self, c: Call) -> dict[int, tuple[int, int]] | None:
        return None
