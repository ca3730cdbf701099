"""Pooling over regions of interest, and the partial inverse of pooling."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from evort.errors import ExecutionError
from evort.ops.base import REQUIRED, Attr, Call, Op, op, wide
from evort.ops.pool import LIMIT, listed, spatial_axes
from evort.types import FLOATS, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

Bin = tuple[int, int, int, int, tuple[int, int], tuple[int, int]]


@op("MaxUnpool", since=22)
class MaxUnpool(Op):
    """Zeros with X at the positions I of a MaxPool: I counts in the shape that undoes the pool, which `output_shape`
    may extend at the end of each axis."""

    inputs, outputs = ("X", "I", "output_shape?"), ("output",)
    attrs = {"kernel_shape": Attr("ints", REQUIRED), "strides": Attr("ints"), "pads": Attr("ints")}
    dtypes = {"X": FLOATS, "I": frozenset({DType.INT64}), "output_shape": frozenset({DType.INT64})}

    def undone(self, c: Call) -> tuple[int, ...]:
        """The shape in which I counts."""
        spatial = spatial_axes(c)
        n = len(spatial)
        kernel, strides = listed(c, "kernel_shape", n, 0, 1), listed(c, "strides", n, 1, 1)
        pads = listed(c, "pads", 2 * n, 0, 0)
        found = tuple(
            (d - 1) * s - pads[i] - pads[n + i] + k
            for i, (d, s, k) in enumerate(zip(spatial, strides, kernel, strict=True))
        )
        if any(d < 1 for d in found):
            raise c.error(f"the unpooled image would have shape {found}")
        return (*c.ins[0].shape[:2], *found)

    def infer(self, c: Call) -> list[Spec]:
        shape = self.undone(c)
        if c.ins[1].shape != c.ins[0].shape:
            raise c.error("X and I must have the same shape")
        if c.has(2):
            given = c.ints(2)
            if len(given) != len(shape) or given[:2] != shape[:2] or any(map(int.__lt__, given, shape)):
                raise c.error(f"output_shape {given} does not extend {shape}")
            shape = given
        return [Spec(c.ins[0].dtype, shape)]

    def reference(self, c: Call, x: np.ndarray, index: np.ndarray, output_shape: np.ndarray | None = None):
        inner = self.undone(c)
        if index.size and (index.min() < 0 or index.max() >= prod(inner)):
            raise ExecutionError(f"{c.node.label()}: an index is outside the unpooled image of {prod(inner)} elements")
        flat = np.zeros(prod(inner), x.dtype)
        flat[index.reshape(-1)] = x.reshape(-1)
        y = flat.reshape(inner)
        if output_shape is not None:
            y = np.pad(y, [(0, int(d) - n) for d, n in zip(output_shape, inner, strict=True)])
        return y

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        inner = self.undone(c)
        if g.shape(dy) != inner:
            dy = g.emit("Slice", [dy, g.ints(*[0] * len(inner)), g.ints(*inner)])
        return [g.emit("Gather", [g.reshape(dy, (prod(inner),)), c.node.inputs[1]]), None]


@op("MaxRoiPool", since=22)
class MaxRoiPool(Op):
    """Y[r] = largest elements of region r in a grid of `pooled_shape` bins.

    A region (image, x1, y1, x2, y2) is scaled by `spatial_scale` and rounded, both ends included; bins share their
    border pixels; 0 for a bin outside the image. Girshick, "Fast R-CNN", arXiv:1504.08083.
    """

    inputs, outputs = ("X", "rois"), ("Y",)
    untrained = (1,)
    attrs = {"pooled_shape": Attr("ints", REQUIRED), "spatial_scale": Attr("float", 1.0)}
    dtypes = {"X": FLOATS, "rois": FLOATS}

    def infer(self, c: Call) -> list[Spec]:
        x, rois = c.ins
        if x.rank != 4 or rois.rank != 2 or rois.shape[1] != 5:
            raise c.error("X must have shape (N, C, H, W), rois (R, 5)")
        return [Spec(x.dtype, (rois.shape[0], x.shape[1], *listed(c, "pooled_shape", 2, 0, 1)))]

    def reference(self, c: Call, x: np.ndarray, rois: np.ndarray) -> np.ndarray:
        y = np.zeros((len(rois), x.shape[1], *c["pooled_shape"]), x.dtype)
        for r, i, j, image, (top, bottom), (left, right) in self.bins(c, x.shape, rois):
            y[r, :, i, j] = x[image, :, top:bottom, left:right].max((1, 2))
        return y

    def bins(self, c: Call, shape: tuple[int, ...], rois: np.ndarray) -> Iterator[Bin]:
        """Those with elements: (region, row, column, image, (top, bottom), (left, right)). Raises ExecutionError."""
        corners = np.trunc(wide(rois)[:, 1:] * c["spatial_scale"] + np.copysign(0.5, rois[:, 1:]))
        images = rois[:, 0]
        # Beyond 2^31 the corners of a region are no longer exact in every float type.
        if not np.all(np.abs(corners) < LIMIT) or not np.all((images >= 0) & (images < shape[0])):
            raise ExecutionError(f"{c.node.label()}: a region has no finite corners, or is of no image in the batch")
        corners = corners.astype(int).tolist()
        for r, (image, (x1, y1, x2, y2)) in enumerate(zip(images.astype(int).tolist(), corners, strict=True)):
            tops = _bins(y1, y2, c["pooled_shape"][0], shape[2])
            sides = _bins(x1, x2, c["pooled_shape"][1], shape[3])
            for i, (top, bottom) in enumerate(tops):
                for j, (left, right) in enumerate(sides):
                    if bottom > top and right > left:
                        yield r, i, j, image, (top, bottom), (left, right)

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        attrs = {name: c[name] for name in self.attrs}
        return [g.emit("MaxRoiPoolGrad", [dy, *c.node.inputs], attrs, "evort"), None]


def _bins(first: int, last: int, count: int, size: int) -> list[tuple[int, int]]:
    """[begin, end) of each of `count` bins over pixels first..last, within `size`."""
    length = max(last - first + 1, 1)
    return [
        (min(max(first + i * length // count, 0), size), min(max(first - (-(i + 1) * length // count), 0), size))
        for i in range(count)
    ]
