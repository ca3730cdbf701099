"""Rare relatives of the convolution, in NumPy: DeformConv and Col2Im."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from evort.ops.base import Attr, Call, Op, op
from evort.ops.conv import Window, check_kernel, conv_window, same_dtype
from evort.types import FLOATS, NUMERIC, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients


def _sample(x: np.ndarray, at: list[np.ndarray]) -> np.ndarray:
    """Multilinear interpolation of x [N, G, C, D...] at fractional indices, one array [N, G, P] for each axis of D;
    gives [N, G, C, P]. Elements outside x (and at NaN) count as zero."""
    n, groups, channels = x.shape[:3]
    flat = x.reshape(n, groups, channels, math.prod(x.shape[3:]))
    total = np.zeros((n, groups, channels, at[0].shape[-1]), x.dtype)
    floors = [np.floor(a) for a in at]
    for corner in np.ndindex(*(2,) * len(at)):
        index = np.zeros(at[0].shape, np.int64)
        weight = np.ones(at[0].shape, x.dtype)
        for a, low, step, size in zip(at, floors, corner, x.shape[3:], strict=True):
            place = low + step
            inside = (place >= 0) & (place < size)
            index = index * size + np.where(inside, place, 0).astype(np.int64)
            weight = weight * np.where(inside, 1 - np.abs(a - place), 0).astype(x.dtype)
        if flat.shape[-1]:
            total += np.take_along_axis(flat, index[:, :, None], axis=-1) * weight[:, :, None]
    return total


@op("DeformConv", since=22)
class DeformConv(Op):
    """Deformable convolution v2 (Dai et al. 2017, Zhu et al. 2019): each tap of the kernel reads X at its place plus an
    offset, by linear interpolation, times a mask. X [N, C, D...], W [M, C/group, k...], B [M],
    offset [N, offset_group * prod(k) * rank, D'...], mask [N, offset_group * prod(k), D'...], Y [N, M, D'...]."""

    inputs, outputs = ("X", "W", "offset", "B?", "mask?"), ("Y",)
    dtypes = dict.fromkeys(("X", "W", "offset", "B", "mask"), FLOATS)
    attrs = {
        "dilations": Attr("ints"),
        "group": Attr("int", 1),
        "kernel_shape": Attr("ints"),
        "offset_group": Attr("int", 1),
        "pads": Attr("ints"),
        "strides": Attr("ints"),
    }

    def infer(self, c: Call) -> list[Spec]:
        same_dtype(c, 0, 1, 2, 3, 4)
        x, w = c.ins[0], c.ins[1]
        if x.rank < 3 or w.rank != x.rank:
            raise c.error("X must be [N, C, D1, ...] and W [M, C/group, k1, ...] with at least one spatial axis")
        group, offset_group = c["group"], c["offset_group"]
        if group < 1 or w.shape[1] * group != x.shape[1] or w.shape[0] % group:
            raise c.error(f"{x.shape[1]} channels in and {w.shape[0]} out do not fit {group} groups of the weights")
        if offset_group < 1 or x.shape[1] % offset_group:
            raise c.error(f"offset_group {offset_group} does not divide {x.shape[1]} channels")
        check_kernel(c, w.shape[2:])
        window = conv_window(c, x.shape[2:], w.shape[2:])
        taps = offset_group * math.prod(window.kernel)
        for index, shape in (
            (2, (x.shape[0], taps * len(window.kernel), *window.out)),
            (3, (w.shape[0],)),
            (4, (x.shape[0], taps, *window.out)),
        ):
            if c.has(index) and c.ins[index].shape != shape:
                raise c.error(f"input {self.inputs[index].strip('?')} must have shape {list(shape)}")
        return [Spec(x.dtype, (x.shape[0], w.shape[0], *window.out))]

    def reference(self, c: Call, x: np.ndarray, w: np.ndarray, offset: np.ndarray, b: np.ndarray | None = None,
                  mask: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
        window = conv_window(c, x.shape[2:], w.shape[2:])
        dtype = np.dtype(np.float64) if x.dtype == np.float64 else np.dtype(np.float32)
        n, channels, m, rank = x.shape[0], x.shape[1], w.shape[0], len(window.kernel)
        group, groups, count = c["group"], c["offset_group"], math.prod(window.out)
        parts = x.astype(dtype).reshape(n, groups, channels // groups, *window.image)
        w = w.astype(dtype).reshape(group, m // group, channels // group, math.prod(window.kernel))
        offset = offset.astype(dtype).reshape(n, groups, -1, rank, count)
        if mask is not None:
            mask = mask.astype(dtype).reshape(n, groups, -1, 1, count)
        grid = _places(window)
        y = np.zeros((n, group, m // group, count), dtype)
        with np.errstate(invalid="ignore"):
            for t in range(w.shape[-1]) if w.size else ():
                at = [grid[i][t] + offset[:, :, t, i] for i in range(rank)]
                found = _sample(parts, at)
                if mask is not None:
                    found = found * mask[:, :, t]
                y += w[..., t] @ found.reshape(n, group, channels // group, count)
        y = y.reshape(n, m, *window.out)
        if b is not None:
            y = y + b.reshape(-1, *(1,) * rank)
        return y.astype(x.dtype, copy=False)

    def lower(self, g: Gradients, c: Call) -> list[str]:
        from evort.ops.sample_lower import deform_conv

        window = conv_window(c, c.ins[0].shape[2:], c.ins[1].shape[2:])
        given = [c.node.inputs[i] if c.has(i) else None for i in range(5)]
        return [deform_conv(g, *given, _places(window), window.out, c["group"], c["offset_group"])]

    def macs(self, c: Call) -> int:
        return c.outs[0].size * math.prod(c.ins[1].shape[1:])


def _places(window: Window) -> list[np.ndarray]:
    """For each axis [taps, positions]: where a tap of the kernel lies in the image, at each of its positions."""
    found = []
    for i, tap in enumerate(np.indices(window.kernel).reshape(len(window.kernel), -1)):
        starts = np.indices(window.out)[i].reshape(-1) * window.strides[i] - window.pads[i]
        found.append(tap[:, None] * window.dilations[i] + starts)
    return found


@op("Col2Im", since=18)
class Col2Im(Op):
    """Adds up columns of blocks into an image, the transpose of im2col: input [N, C * prod(block), L] gives
    [N, C, image...], where L counts the positions of the block."""

    inputs, outputs = ("input", "image_shape", "block_shape"), ("output",)
    dtypes = {
        "input": NUMERIC | {DType.BOOL, DType.COMPLEX64, DType.COMPLEX128},
        "image_shape": frozenset({DType.INT64}),
        "block_shape": frozenset({DType.INT64}),
    }
    attrs = {"dilations": Attr("ints"), "pads": Attr("ints"), "strides": Attr("ints")}

    def infer(self, c: Call) -> list[Spec]:
        x = c.ins[0]
        window = self._window(c, c.ints(1), c.ints(2))
        block = math.prod(window.kernel)
        if x.rank != 3 or x.shape[1] % block or x.shape[2] != math.prod(window.out):
            raise c.error(f"input must be [N, C * {block}, {math.prod(window.out)}]")
        return [Spec(x.dtype, (x.shape[0], x.shape[1] // block, *window.image))]

    @staticmethod
    def _window(c: Call, image: tuple[int, ...], block: tuple[int, ...]) -> Window:
        if not image or len(image) != len(block) or min(image) < 1 or min(block) < 1:
            raise c.error(f"image_shape {list(image)} and block_shape {list(block)} must be positive, of equal length")
        return conv_window(c, image, block)

    def reference(self, c: Call, x: np.ndarray, image_shape: np.ndarray, block_shape: np.ndarray) -> np.ndarray:
        window = self._window(c, tuple(image_shape.tolist()), tuple(block_shape.tolist()))
        block = math.prod(window.kernel)
        x = x.reshape(x.shape[0], x.shape[1] // block, *window.kernel, *window.out)
        y = np.zeros((*x.shape[:2], *window.image), x.dtype)
        for tap, positions, elements in window.taps() if y.size else ():
            y[(..., *elements)] += x[(slice(None), slice(None), *tap, *positions)]
        return y

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        window = self._window(c, c.ints(1), c.ints(2))
        n, channels, *image = g.shape(dy)
        pixels = math.prod(image)
        at = np.full((*window.kernel, *window.out), pixels)  # a zero, where a tap lies in the padding
        for tap, positions, elements in window.taps():
            at[(*tap, *positions)] = np.arange(pixels).reshape(image)[elements]
        flat = g.emit("Pad", [g.reshape(dy, (n, channels, pixels)), g.ints(0, 0, 0, 0, 0, 1)])
        taken = g.emit("Gather", [flat, g.constant(at.reshape(-1))], {"axis": 2})
        return [g.reshape(taken, c.ins[0].shape), None, None]
