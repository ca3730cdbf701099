"""Layout operators: the same elements in another order; `evort.ops.views` has those that only change the shape.

What picks a contiguous part (many a Slice and Split) is a view and costs nothing; the rest are strided copies and takes
(see `evort.ops.copies`). Sources: the ONNX operators of the same names.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from evort.ops.base import REQUIRED, Attr, Call, Kernel, Op, op
from evort.ops.copies import itemsize, joined_shapes, row_major, strided_kernel
from evort.ops.views import ALL_VIEW, INDEX, INT64, as_ints, optional_ints
from evort.types import DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients


class StridedCopy(Op):
    """Base class of operators whose output is `view_of(x)` in NumPy's sense: a reshape of a strided view."""

    raw_bits = True

    def strides(self, c: Call) -> tuple[Sequence[int], Sequence[int], int]:
        """(sizes, strides, offset) in elements of the input, in the output's order; several axes of these may make
        one of the output."""
        raise NotImplementedError

    def bind(self, c: Call) -> Kernel | None:
        return strided_kernel(itemsize(c.ins[0]), *self.strides(c))

    def view(self, c: Call) -> dict[int, tuple[int, int]] | None:
        sizes, strides, offset = self.strides(c)
        if prod(sizes) == 0:
            return None
        run = 1
        for d, s in zip(reversed(sizes), reversed(strides), strict=True):
            if d > 1:
                if s != run:
                    return None
                run *= d
        return {0: (0, offset * itemsize(c.ins[0]))}


@op("Transpose", since=13)
class Transpose(StridedCopy):
    """Permutes the axes: axis i of the output is axis perm[i] of the input (reversed where perm is absent)."""

    inputs, outputs = ("data",), ("transposed",)
    attrs = {"perm": Attr("ints")}

    def perm(self, c: Call, rank: int) -> tuple[int, ...]:
        if c["perm"] is None:
            return tuple(range(rank))[::-1]
        if sorted(c["perm"]) != list(range(rank)):
            raise c.error(f"perm {list(c['perm'])} does not permute the axes of a tensor of rank {rank}")
        return tuple(c["perm"])

    def infer(self, c: Call) -> list[Spec]:
        x = c.ins[0]
        return [Spec(x.dtype, tuple(x.shape[p] for p in self.perm(c, x.rank)))]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        return x.transpose(self.perm(c, x.ndim))

    def strides(self, c: Call) -> tuple[Sequence[int], Sequence[int], int]:
        dims = c.ins[0].shape
        steps, perm = row_major(dims), self.perm(c, len(dims))
        return [dims[p] for p in perm], [steps[p] for p in perm], 0

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        return [g.transpose(dy, np.argsort(self.perm(c, c.ins[0].rank)).tolist())]


class BlockMove(StridedCopy):
    """Base class of SpaceToDepth and DepthToSpace: reshape to 6 axes, permute them, reshape."""

    inputs, outputs = ("input",), ("output",)
    attrs = {"blocksize": Attr("int", REQUIRED), "mode": Attr("str", "DCR")}

    def moves(self, c: Call, dims: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(the 6 sizes, the permutation) for an input of shape `dims`, which is validated."""
        if len(dims) != 4:
            raise c.error("the input must be of rank 4")
        if c["blocksize"] < 1:
            raise c.error(f"blocksize {c['blocksize']} is not positive")
        if c["mode"] not in ("DCR", "CRD"):
            raise c.error(f"mode {c['mode']!r} is neither DCR nor CRD")
        return self.blocks(c, dims, c["blocksize"])

    def blocks(self, c: Call, dims: tuple[int, ...], b: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        raise NotImplementedError

    def result(self, dims: tuple[int, ...], b: int) -> tuple[int, ...]:
        """The output's shape."""
        raise NotImplementedError

    def infer(self, c: Call) -> list[Spec]:
        self.moves(c, c.ins[0].shape)
        return [Spec(c.ins[0].dtype, self.result(c.ins[0].shape, c["blocksize"]))]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        sizes, perm = self.moves(c, x.shape)
        return x.reshape(sizes).transpose(perm).reshape(self.result(x.shape, c["blocksize"]))

    def strides(self, c: Call) -> tuple[Sequence[int], Sequence[int], int]:
        sizes, perm = self.moves(c, c.ins[0].shape)
        steps = row_major(sizes)
        return [sizes[p] for p in perm], [steps[p] for p in perm], 0

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        back = "DepthToSpace" if self.name == "SpaceToDepth" else "SpaceToDepth"
        return [g.emit(back, [dy], {"blocksize": c["blocksize"], "mode": c["mode"]})]


@op("SpaceToDepth", since=13)
class SpaceToDepth(BlockMove):
    """[N, C, H, W] to [N, C b b, H / b, W / b]: b x b blocks become channels, the old channel varying fastest (mode
    "DCR") or slowest ("CRD")."""

    def blocks(self, c: Call, dims: tuple[int, ...], b: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        n, channels, h, w = dims
        if h % b or w % b:
            raise c.error(f"blocksize {b} does not divide the {h} x {w} input")
        return (n, channels, h // b, b, w // b, b), (0, 3, 5, 1, 2, 4) if c["mode"] == "DCR" else (0, 1, 3, 5, 2, 4)

    def result(self, dims: tuple[int, ...], b: int) -> tuple[int, ...]:
        return dims[0], dims[1] * b * b, dims[2] // b, dims[3] // b


@op("DepthToSpace", since=13)
class DepthToSpace(BlockMove):
    """[N, C, H, W] to [N, C / (b b), H b, W b]: the reverse of SpaceToDepth."""

    def blocks(self, c: Call, dims: tuple[int, ...], b: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        n, channels, h, w = dims
        if channels % (b * b):
            raise c.error(f"{channels} channels are not a multiple of blocksize {b} squared")
        if c["mode"] == "DCR":
            return (n, b, b, channels // (b * b), h, w), (0, 3, 4, 1, 5, 2)
        return (n, channels // (b * b), b, b, h, w), (0, 1, 4, 2, 5, 3)

    def result(self, dims: tuple[int, ...], b: int) -> tuple[int, ...]:
        return dims[0], dims[1] // (b * b), dims[2] * b, dims[3] * b


@op("Slice", since=13)
class Slice(StridedCopy):
    """data[starts:ends:steps] along `axes` (the first ones where absent), out-of-range bounds clamped as in Python."""

    inputs, outputs = ("data", "starts", "ends", "axes?", "steps?"), ("output",)
    dtypes = {"starts": INDEX, "ends": INDEX, "axes": INDEX, "steps": INDEX}

    def ranges(self, c: Call, dims: tuple[int, ...], *operands: tuple[int, ...] | None) -> list[tuple[int, int, int]]:
        """(first index, how many, step) for each axis."""
        starts, ends, axes, steps = (*operands, None, None)[:4]
        axes = tuple(range(len(starts))) if axes is None else axes
        steps = (1,) * len(starts) if steps is None else steps
        if not len(starts) == len(ends) == len(axes) == len(steps) <= len(dims):
            raise c.error(
                f"{len(starts)} starts, {len(ends)} ends, {len(axes)} axes and {len(steps)} steps do not agree, or are "
                f"more than the tensor's rank {len(dims)}"
            )
        c.axes(axes, len(dims))
        found = [(0, d, 1) for d in dims]
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            if step == 0:
                raise c.error("a step is 0")
            picked = range(dims[axis])[start:end:step]
            found[axis] = (picked.start if len(picked) else 0, len(picked), step)
        return found

    def infer(self, c: Call) -> list[Spec]:
        operands = [optional_ints(c, i) for i in range(1, 5)]
        return [Spec(c.ins[0].dtype, tuple(n for _, n, _ in self.ranges(c, c.ins[0].shape, *operands)))]

    def reference(self, c: Call, x: np.ndarray, *operands: np.ndarray | None) -> np.ndarray:
        ranges = self.ranges(c, x.shape, *map(as_ints, operands))
        ends = [start + n * step for start, n, step in ranges]
        return x[
            tuple(
                slice(start, end if end >= 0 else None, step) if n else slice(0)
                for (start, n, step), end in zip(ranges, ends, strict=True)
            )
        ]

    def strides(self, c: Call) -> tuple[Sequence[int], Sequence[int], int]:
        dims = c.ins[0].shape
        ranges = self.ranges(c, dims, *(optional_ints(c, i) for i in range(1, 5)))
        steps = row_major(dims)
        offset = sum(start * s for (start, _, _), s in zip(ranges, steps, strict=True))
        # The step of a single element says nothing, and may be beyond 64 bits.
        strides = [s * step if n > 1 else s for (_, n, step), s in zip(ranges, steps, strict=True)]
        return c.outs[0].shape, strides, offset

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        dims = c.ins[0].shape
        ranges = self.ranges(c, dims, *(optional_ints(c, i) for i in range(1, 5)))
        if all(step == 1 for _, n, step in ranges if n > 1):
            after = [d - start - n for d, (start, n, _) in zip(dims, ranges, strict=True)]
            return [g.emit("Pad", [dy, g.ints(*(start for start, _, _ in ranges), *after)])]
        index = np.arange(prod(dims)).reshape(dims)[np.ix_(*(np.arange(n) * step + start for start, n, step in ranges))]
        zeros = g.emit("Expand", [g.scalar(0, dy), g.ints(prod(dims))])
        flat = g.reshape(dy, (index.size,))
        return [g.reshape(g.emit("ScatterElements", [zeros, g.ints(*index.reshape(-1).tolist()), flat]), dims)]


@op("Expand", since=13)
class Expand(StridedCopy):
    """The input broadcast with `shape`, both ways."""

    inputs, outputs = ("input", "shape"), ("output",)
    dtypes = {"shape": INT64}

    def target(self, c: Call, dims: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
        rank = max(len(dims), len(shape))
        a, b = (1,) * (rank - len(dims)) + dims, (1,) * (rank - len(shape)) + shape
        if any(y < 0 or (x != y and x != 1 and y != 1) for x, y in zip(a, b, strict=True)):
            raise c.error(f"shape {list(dims)} does not broadcast with {list(shape)}")
        return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))

    def infer(self, c: Call) -> list[Spec]:
        return [Spec(c.ins[0].dtype, self.target(c, c.ins[0].shape, c.ints(1)))]

    def reference(self, c: Call, x: np.ndarray, shape: np.ndarray) -> np.ndarray:
        return np.broadcast_to(x, self.target(c, x.shape, as_ints(shape)))

    def strides(self, c: Call) -> tuple[Sequence[int], Sequence[int], int]:
        dims, target = c.ins[0].shape, c.outs[0].shape
        dims = (1,) * (len(target) - len(dims)) + dims
        return target, [0 if d == 1 else s for d, s in zip(dims, row_major(dims), strict=True)], 0

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        return [g.reduced_to(dy, c.ins[0].shape), None]


@op("Tile", since=13)
class Tile(StridedCopy):
    """The input repeated repeats[i] times along each axis i."""

    inputs, outputs = ("input", "repeats"), ("output",)
    dtypes = {"repeats": INT64}

    def repeats(self, c: Call, dims: tuple[int, ...], repeats: tuple[int, ...]) -> tuple[int, ...]:
        if len(repeats) != len(dims) or min(repeats, default=0) < 0:
            raise c.error(f"repeats {list(repeats)} must be {len(dims)} numbers of at least 0")
        return repeats

    def infer(self, c: Call) -> list[Spec]:
        x = c.ins[0]
        repeats = self.repeats(c, x.shape, c.ints(1))
        return [Spec(x.dtype, tuple(d * r for d, r in zip(x.shape, repeats, strict=True)))]

    def reference(self, c: Call, x: np.ndarray, repeats: np.ndarray) -> np.ndarray:
        return np.tile(x, self.repeats(c, x.shape, as_ints(repeats)))

    def strides(self, c: Call) -> tuple[Sequence[int], Sequence[int], int]:
        dims = c.ins[0].shape
        sizes, strides = [], []
        for d, s, r in zip(dims, row_major(dims), c.ints(1), strict=True):
            sizes += r, d
            strides += 0, s
        return sizes, strides, 0

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        sizes, _, _ = self.strides(c)
        return [g.sum(g.reshape(dy, sizes), range(0, len(sizes), 2), False), None]


@op("Concat", since=13)
class Concat(Op):
    """Joins tensors along `axis`; their other sizes are equal."""

    inputs, outputs = ("*inputs",), ("concat_result",)
    attrs = {"axis": Attr("int", REQUIRED)}
    raw_bits = True

    def infer(self, c: Call) -> list[Spec]:
        if not c.ins or any(s is None for s in c.ins):
            raise c.error("an input is missing")
        first = c.ins[0]
        axis = self.joined(c)
        shape = list(first.shape)
        for spec in c.ins[1:]:
            if spec.dtype != first.dtype:
                raise c.error("the inputs differ in element type")
            if spec.rank != first.rank or any(
                a != b for i, (a, b) in enumerate(zip(spec.shape, first.shape, strict=True)) if i != axis
            ):
                raise c.error(f"the inputs' shapes differ in more than axis {axis}")
            shape[axis] += spec.shape[axis]
        return [Spec(first.dtype, tuple(shape))]

    def joined(self, c: Call) -> int:
        if c.ins[0].rank == 0:
            raise c.error("scalars have no axis to join along")
        return c.axis(c["axis"], c.ins[0].rank)

    def reference(self, c: Call, *inputs: np.ndarray) -> np.ndarray:
        return np.concatenate(inputs, c["axis"])

    def channels_last(self, c: Call) -> Sequence[tuple[int, ...]]:
        bytes_ = c.outs[0].dtype in (DType.INT8, DType.UINT8) and c.outs[0].size > 0
        return ((*range(len(c.ins)), ~0),) if bytes_ and self.joined(c) == 1 and c.outs[0].rank > 2 else ()

    def bind(self, c: Call) -> Kernel:
        out = c.outs[0]
        axis, (shape, *shapes) = joined_shapes(c, self.joined(c), out, *c.ins)
        rows = prod(shape[:axis])
        item = itemsize(out)
        parts = [prod(s[axis:]) * item for s in shapes]
        return Kernel("layout.concat", ints=(rows if out.size else 0, prod(shape[axis:]) * item, *parts))

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        axis = self.joined(c)
        sizes = [s.shape[axis] for s in c.ins]
        if len(sizes) == 1:
            return [dy]
        return g.emit("Split", [dy, g.ints(*sizes)], {"axis": axis}, outputs=len(sizes))

    def view(self, c: Call) -> dict[int, tuple[int, int]] | None:
        return ALL_VIEW if len(c.ins) == 1 else None

    def placement(self, c: Call) -> dict[int, int] | None:
        axis, (shape,) = joined_shapes(c, self.joined(c), c.outs[0])
        if prod(shape[:axis]) != 1:
            return None
        places, offset = {}, 0
        for i, spec in enumerate(c.ins):
            places[i] = offset
            offset += spec.nbytes
        return places


@op("Split", since=18)
class Split(Op):
    """Cuts a tensor along `axis` into parts of the sizes `split`, or into `num_outputs` parts of equal size (the last
    may be smaller)."""

    inputs, outputs = ("input", "split?"), ("*outputs",)
    attrs = {"axis": Attr("int", 0), "num_outputs": Attr("int")}
    dtypes = {"split": INT64}
    raw_bits = True

    def parts(self, c: Call, dims: tuple[int, ...], split: tuple[int, ...] | None) -> tuple[int, tuple[int, ...]]:
        """(the axis, the size of each part)."""
        axis, n = c.axis(c["axis"], len(dims)), len(c.node.outputs)
        if not dims:
            raise c.error("a scalar has no axis to split")
        if split is None:
            if n == 0 or c["num_outputs"] not in (None, n):
                raise c.error(f"num_outputs is {c['num_outputs']}, but the node has {n} outputs")
            size = -(-dims[axis] // n)
            split = (size,) * (n - 1) + (dims[axis] - size * (n - 1),)
        elif c["num_outputs"] is not None:
            raise c.error("both the input split and num_outputs are given")
        if len(split) != n or min(split, default=0) < 0 or sum(split) != dims[axis]:
            raise c.error(f"{n} parts of sizes {list(split)} do not make up axis {axis} of size {dims[axis]}")
        return axis, split

    def infer(self, c: Call) -> list[Spec]:
        x = c.ins[0]
        axis, sizes = self.parts(c, x.shape, optional_ints(c, 1))
        return [Spec(x.dtype, (*x.shape[:axis], n, *x.shape[axis + 1 :])) for n in sizes]

    def reference(self, c: Call, x: np.ndarray, split: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        axis, sizes = self.parts(c, x.shape, as_ints(split))
        return tuple(np.split(x, np.cumsum(sizes)[:-1], axis))

    def gradient(self, g: Gradients, c: Call, *dys: str | None) -> list[str | None]:
        parts = [
            g.expand(g.scalar(0, c.node.inputs[0]), s.shape) if dy is None else dy
            for dy, s in zip(dys, c.outs, strict=True)
        ]
        return [g.emit("Concat", parts, {"axis": c["axis"]}), None]

    def bind(self, c: Call) -> Kernel:
        x = c.ins[0]
        axis, sizes = self.parts(c, x.shape, optional_ints(c, 1))
        inner = prod(x.shape[axis + 1 :]) * itemsize(x)
        rows = prod(x.shape[:axis]) if x.size else 0
        return Kernel("layout.split", ints=(rows, x.shape[axis] * inner, *(n * inner for n in sizes)), inputs=(0,))

    def view(self, c: Call) -> dict[int, tuple[int, int]] | None:
        x = c.ins[0]
        axis, sizes = self.parts(c, x.shape, optional_ints(c, 1))
        if prod(x.shape[:axis]) != 1:
            return None
        inner = prod(x.shape[axis + 1 :]) * itemsize(x)
        return {i: (0, sum(sizes[:i]) * inner) for i in range(len(sizes))}
