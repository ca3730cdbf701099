"""Operators that read an image at points given as numbers: GridSample, RoiAlign, AffineGrid and the 3-D lookup table.

A point's coordinate along each axis gives 1 (nearest), 2 (linear) or 4 (cubic) taps, an index and a weight each; the
point's value is the sum over all combinations of taps. `taps` says it in NumPy for the references, `interp_taps_f32`
in C for the drivers (see `evort/_kernels/interpolate.pyx`, which describes what they share).
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from evort.errors import ExecutionError
from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.ops.interpolate import cubic
from evort.ops.views import INT64
from evort.types import FLOATS, INTS, STORAGE, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

ZEROS, BORDER, REFLECT, REGION = 0, 1, 2, 3  # EV_PAD_* in interpolate.h
TAPS = {"nearest": 1, "linear": 2, "cubic": 4}
FAR = 2.0**29  # coordinates are clipped to [-FAR, FAR]; NaN is -FAR
MAX_PIXELS = (1 << 25) - 1  # of one image plane: byte offsets into four channels are below 2**29
LANES = 4  # channels that are blended together
GROUPS = 4  # groups of channels that share one calculation of taps
MAX_BINS = 1 << 11  # sampling points of a RoiAlign bin along one axis


def taps(
    x: np.ndarray, size: int, count: int, padding: int, align: bool = True
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """(index in [0, size), weight, whether the tap is inside or None) of each tap at coordinates x.

    align: whether the borders, at which REFLECT mirrors, are the centres of the outermost elements or their edges.
    """
    x = np.where(x > -FAR, np.minimum(x, FAR), -FAR)
    if count == 1:
        x = np.rint(x)
    low, high = (0.0, size - 1.0) if align else (-0.5, size - 0.5)
    beyond = (x < low) | (x > high)
    if padding == REGION:
        beyond = (x < -1) | (x > size)
        x = np.clip(x, 0, size - 1)
    elif padding == BORDER:
        x = np.where(beyond, np.clip(x, 0, size - 1), x)
    elif padding == REFLECT:
        x = np.where(beyond, mirrored(x, low, high), x)
    base = np.floor(x)
    f = x - base
    base = base.astype(np.int64)
    if count == 4:
        weights = {k: cubic(f - k, -0.75).astype(x.dtype) for k in (-1, 0, 1, 2)}
    else:
        weights = {0: 1 - f, 1: f} if count == 2 else {0: np.ones_like(x)}
    found = []
    for k, weight in weights.items():
        at = base + k
        inside = None
        if padding == ZEROS:
            inside = (at >= 0) & (at < size)
        elif padding == REGION:
            inside = ~beyond
        elif padding == REFLECT:
            at = np.where((at < 0) | (at >= size), mirrored(at.astype(np.float64), low, high), at).astype(np.int64)
        found.append((np.clip(at, 0, size - 1), weight, inside))
    return found


def mirrored(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Coordinates reflected at low and high until they lie between them."""
    width = high - low
    if width <= 0:
        return np.zeros_like(x)
    away = np.where(x < low, low - x, x - high)
    turns = np.floor(away / width)
    rest = away - turns * width
    from_low = (x < low) == (turns % 2 == 0)
    return np.where(from_low, low + rest, high - rest).astype(x.dtype)


def blend(x: np.ndarray, axes: list[list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]]) -> np.ndarray:
    """x [C, D1, ..., Dr] at points [...]: the sum over combinations of taps, [C, ...]."""
    total = 0
    for combination in product(*axes):
        value = x[(slice(None), *(at for at, _, _ in combination))]
        for _, weight, inside in combination:
            if inside is not None:
                value = np.where(inside, value, np.zeros((), x.dtype))
            value = value * weight if len(axes[0]) > 1 else value
        total = total + value
    return total


def plane_ints(c: Call, dims: tuple[int, ...], count: int, padding: int, align: bool) -> tuple[int, ...]:
    """The shared parameters of the drivers: axes, taps, padding, align and the sizes of the sampled axes."""
    return len(dims), count, padding, int(align), *dims


def scratch_bytes(channels: int, pixels: int) -> int:
    """What the drivers need for the interleaved copy of `channels` planes, each with one element of zeros."""
    groups = min(-(-channels // LANES), GROUPS)
    return 4 * LANES * groups * (pixels + 1)


@op("GridSample", since=22)
class GridSample(Op):
    """Y[n, c, ...] = X[n, c] at the points grid[n, ..., :], X [N, C, D1, ..., Dr], grid [N, O1, ..., Or, r].

    A point lists its coordinates from the innermost axis outwards, -1 and 1 being the borders: the centres of the
    outermost elements where `align_corners`, else their edges. mode: "linear", "nearest" (half to even), "cubic".
    padding_mode: "zeros", "border", "reflection". A NaN coordinate counts as far before the first element.
    """

    inputs, outputs = ("X", "grid"), ("Y",)
    untrained = (1,)
    attrs = {
        "align_corners": Attr("int", 0),
        "mode": Attr("str", "linear"),
        "padding_mode": Attr("str", "zeros"),
    }
    dtypes = {"grid": FLOATS}

    def choices(self, c: Call) -> tuple[int, int]:
        """(number of taps, padding)."""
        pads = {"zeros": ZEROS, "border": BORDER, "reflection": REFLECT}
        if c["mode"] not in TAPS or c["padding_mode"] not in pads:
            raise c.error(f"mode must be one of {', '.join(TAPS)}, padding_mode one of {', '.join(pads)}")
        return TAPS[c["mode"]], pads[c["padding_mode"]]

    def infer(self, c: Call) -> list[Spec]:
        x, grid = c.ins
        if x.rank < 3 or grid.rank != x.rank or grid.shape[-1] != x.rank - 2 or grid.shape[0] != x.shape[0]:
            raise c.error("X must be [N, C, D1, ..., Dr] and grid [N, O1, ..., Or, r]")
        if prod(grid.shape[:-1]) and not prod(x.shape[2:]):
            raise c.error("there is nothing to sample")
        if self.choices(c)[0] > 1 and x.dtype in (DType.BOOL, DType.STRING):
            raise c.error(f"mode {c['mode']!r} needs numbers")
        return [Spec(x.dtype, (*x.shape[:2], *grid.shape[1:-1]))]

    def reference(self, c: Call, x: np.ndarray, grid: np.ndarray) -> np.ndarray:
        count, padding = self.choices(c)
        align = bool(c["align_corners"])
        out = np.empty((*x.shape[:2], *grid.shape[1:-1]), x.dtype)
        grid = grid.astype(np.float64 if grid.dtype == np.float64 else np.float32)
        wide = x if count == 1 or x.dtype.kind in "fc" else x.astype(np.float64)
        with np.errstate(all="ignore"):
            for n in range(len(x)):
                axes = []
                for i, size in enumerate(x.shape[2:]):
                    v = grid[n, ..., -1 - i] + 1
                    place = v / 2 * (size - 1) if align else (v * size - 1) / 2
                    axes.append(taps(place, size, count, padding, align))
                out[n] = blend(wide[n], axes)
        return out

    def bind(self, c: Call) -> Kernel | None:
        x, grid = c.ins
        dims = x.shape[2:]
        if x.dtype != DType.FLOAT or grid.dtype != DType.FLOAT or len(dims) > 3 or prod(dims) > MAX_PIXELS:
            return None
        count, padding = self.choices(c)
        ints = plane_ints(c, dims, count, padding, bool(c["align_corners"]))
        points = prod(grid.shape[1:-1])
        return Kernel(
            "interpolate.grid_sample",
            ints=(*x.shape[:2], points if c.outs[0].size else 0, *ints),
            scratch=scratch_bytes(x.shape[1], prod(dims)),
        )

    def lower(self, g: Gradients, c: Call) -> list[str] | None:
        if c.ins[0].dtype not in FLOATS:
            return None
        from evort.ops.sample_lower import grid_sample

        return [grid_sample(g, *c.node.inputs, *self.choices(c), bool(c["align_corners"]))]


@op("tri_forward", since=1, domain="cus_ops")
class LookupTable3D(Op):
    """A colour table [C, D, D, D] applied to an image [N, 3, H, W]: Y [N, C, H, W], trilinear.

    The image's three channels index the table's last, middle and first axis: index = floor(v / binsize), fraction =
    (v mod binsize) / binsize. Values outside the table take its border, NaN its first entry. `dim`, `shift`, W, H and
    N repeat what the shapes say and may be absent, as may `out`, a tensor that an exporter passed for the result;
    exporters are known to give W and H in either order.
    Source: H. Zeng et al., Learning image-adaptive 3D lookup tables (2020).
    """

    inputs = ("LUT", "image", "out?", "dim?", "shift?", "binsize", "W?", "H?", "N?")
    outputs = ("output",)
    dtypes = {
        "LUT": FLOATS, "image": FLOATS, "binsize": FLOATS, "dim": INTS, "shift": INTS, "W": INTS, "H": INTS, "N": INTS,
    }  # fmt: skip
    inplace = ((0, 2),)
    unread = frozenset({"out?", "shift?"})
    untrained = (5,)

    def infer(self, c: Call) -> list[Spec]:
        table, image = c.ins[:2]
        if table.rank != 4 or len(set(table.shape[1:])) != 1 or table.shape[1] < 1:
            raise c.error("the table must be [C, D, D, D]")
        if image.rank != 4 or image.shape[1] != 3:
            raise c.error("the image must be [N, 3, H, W]")
        if image.dtype != table.dtype or c.ins[5].size != 1:
            raise c.error("table and image must be of one element type, binsize a scalar")
        n, _, h, w = image.shape
        repeated = {3: ("dim", table.shape[1:2]), 6: ("W", (h, w)), 7: ("H", (h, w)), 8: ("N", (n,))}
        for i, (name, expected) in repeated.items():
            given = c.ins[i].value if c.has(i) else None
            if given is not None and (given.size != 1 or given.reshape(()).item() not in expected):
                raise c.error(f"{name} is {given.tolist()}, but the shapes say {' or '.join(map(str, expected))}")
        return [Spec(table.dtype, (n, table.shape[0], h, w))]

    def reference(self, c: Call, table: np.ndarray, image: np.ndarray, *others: np.ndarray | None) -> np.ndarray:
        size = others[3].reshape(()).item()
        if not 0 < size < np.inf:
            raise ExecutionError(f"{c.node.label()}: binsize {size} is not a positive number")
        with np.errstate(all="ignore"):
            at = image / np.asarray(size, image.dtype)
            axes = [taps(at[:, i], table.shape[1], 2, BORDER) for i in (2, 1, 0)]
            return np.moveaxis(blend(table, axes), 0, 1).astype(table.dtype)

    def bind(self, c: Call) -> Kernel | None:
        table, image, binsize = (c.ins[i] for i in (0, 1, 5))
        dims = table.shape[1:]
        if table.dtype != DType.FLOAT or binsize.dtype != DType.FLOAT or prod(dims) > MAX_PIXELS:
            return None
        points = image.shape[2] * image.shape[3]
        return Kernel(
            "interpolate.lookup_table",
            ints=(image.shape[0], table.shape[0], points, *plane_ints(c, dims, 2, BORDER, True)),
            scratch=scratch_bytes(table.shape[0], prod(dims)),
            inputs=(0, 1, 5),
        )

    def lower(self, g: Gradients, c: Call) -> list[str]:
        from evort.ops.sample_lower import lookup_table

        return [lookup_table(g, *(c.node.inputs[i] for i in (0, 1, 5)))]


@op("RoiAlign", since=22)
class RoiAlign(Op):
    """For each region (x1, y1, x2, y2) of image X[batch_indices[r]], bins of linearly sampled points, averaged (mode
    "avg") or the largest of their weighted corners ("max"): Y [regions, C, output_height, output_width].

    sampling_ratio: points along each side of a bin, 0 for as many as the bin has pixels. Source: K. He et al., Mask
    R-CNN (2017).
    """

    inputs, outputs = ("X", "rois", "batch_indices"), ("Y",)
    untrained = (1,)
    attrs = {
        "coordinate_transformation_mode": Attr("str", "half_pixel"),
        "mode": Attr("str", "avg"),
        "output_height": Attr("int", 1),
        "output_width": Attr("int", 1),
        "sampling_ratio": Attr("int", 0),
        "spatial_scale": Attr("float", 1.0),
    }
    dtypes = {"X": FLOATS, "rois": FLOATS, "batch_indices": INT64}

    def infer(self, c: Call) -> list[Spec]:
        x, rois, batch = c.ins
        if x.rank != 4 or rois.rank != 2 or rois.shape[1] != 4 or batch.shape != rois.shape[:1]:
            raise c.error("X must be [N, C, H, W], rois [R, 4] and batch_indices [R]")
        if c["mode"] not in ("avg", "max"):
            raise c.error(f"mode {c['mode']!r} is neither avg nor max")
        if c["coordinate_transformation_mode"] not in ("half_pixel", "output_half_pixel"):
            raise c.error("coordinate_transformation_mode must be half_pixel or output_half_pixel")
        h, w, ratio = c["output_height"], c["output_width"], c["sampling_ratio"]
        if h < 1 or w < 1 or not 0 <= ratio <= MAX_BINS:
            raise c.error(f"output sizes {h} and {w} must be positive, sampling_ratio {ratio} in [0, {MAX_BINS}]")
        if rois.shape[0] and not prod(x.shape[2:]):
            raise c.error("there is nothing to sample")
        return [Spec(x.dtype, (rois.shape[0], x.shape[1], h, w))]

    def reference(self, c: Call, x: np.ndarray, rois: np.ndarray, batch: np.ndarray) -> np.ndarray:
        height, width = c["output_height"], c["output_width"]
        out = np.zeros((len(rois), x.shape[1], height, width), x.dtype)
        if ((batch < 0) | (batch >= len(x))).any():
            raise ExecutionError(f"{c.node.label()}: a batch index is outside [0, {len(x)})")
        for r in range(len(rois)):
            rows = self.points(c, *rois[r, 1::2].tolist(), height)
            columns = self.points(c, *rois[r, 0::2].tolist(), width)
            if not rows.size or not columns.size:
                continue
            ys = taps(rows[:, :, None, None], x.shape[2], 2, REGION)
            xs = taps(columns, x.shape[3], 2, REGION)
            image = x[batch[r]].astype(np.float64)
            if c["mode"] == "avg":
                out[r] = blend(image, [ys, xs]).mean((2, 4))
            else:
                corners = [blend(image, [[a], [b]]) * a[1] * b[1] for a in ys for b in xs]
                out[r] = np.max(corners, 0).max((2, 4))
        return out

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        """Of the image; regions have none here, as in other frameworks."""
        attrs = {name: c[name] for name in self.attrs}
        return [g.emit("RoiAlignGrad", [dy, *c.node.inputs], attrs, "evort"), None, None]

    def points(self, c: Call, start: float, end: float, bins: int) -> np.ndarray:
        """Coordinates [bins, points of a bin] along one axis."""
        half = c["coordinate_transformation_mode"] == "half_pixel"
        start, end = (v * c["spatial_scale"] - (0.5 if half else 0.0) for v in (start, end))
        length = end - start if half else max(end - start, 1.0)
        if not np.isfinite(length) or length / bins > MAX_BINS:
            raise ExecutionError(f"{c.node.label()}: region [{start}, {end}] is not a number or too large")
        count = c["sampling_ratio"] or max(int(np.ceil(length / bins)), 0)
        step = length / bins
        return start + np.arange(bins)[:, None] * step + (np.arange(count) + 0.5) * (step / max(count, 1))

    def bind(self, c: Call) -> Kernel | None:
        x = c.ins[0]
        if x.dtype != DType.FLOAT or c.ins[1].dtype != DType.FLOAT or prod(x.shape[2:]) > MAX_PIXELS:
            return None
        half = c["coordinate_transformation_mode"] == "half_pixel"
        ints = plane_ints(c, x.shape[2:], 2, REGION, True)
        head = (*x.shape[:2], c.ins[1].shape[0], c["output_height"], c["output_width"], c["sampling_ratio"])
        return Kernel(
            "interpolate.roi_align",
            ints=(*head, int(half), int(c["mode"] == "max"), *ints),
            reals=(c["spatial_scale"],),
            scratch=x.shape[0] * scratch_bytes(x.shape[1], prod(x.shape[2:])),
        )


@op("AffineGrid", since=20)
class AffineGrid(Op):
    """Sampling points for GridSample: theta [N, r, r + 1] applied to the evenly spaced points of an image of shape
    size = (N, C, D1, ..., Dr), r 2 or 3: [N, D1, ..., Dr, r]. An axis of size 1 has its point at 0 with
    `align_corners`."""

    inputs, outputs = ("theta", "size"), ("grid",)
    attrs = {"align_corners": Attr("int", 0)}
    dtypes = {"theta": FLOATS, "size": INT64}

    def dims(self, c: Call, size: np.ndarray) -> tuple[int, ...]:
        theta = c.ins[0]
        n, _, *dims = size.tolist() if size.size > 2 else (0, 0)
        r = len(dims)
        if r not in (2, 3) or theta.shape != (n, r, r + 1) or min(dims) < 0:
            raise c.error(f"theta does not suit an image of shape {size.tolist()}")
        if max(dims) > MAX_PIXELS:
            raise c.error(f"an image of shape {size.tolist()} is too large")
        return tuple(dims)

    def infer(self, c: Call) -> list[Spec]:
        dims = self.dims(c, c.value(1))
        return [Spec(c.ins[0].dtype, (c.ins[0].shape[0], *dims, len(dims)))]

    def base(self, c: Call, dims: tuple[int, ...]) -> np.ndarray:
        """[prod(dims), r + 1]: the points before theta, and ones."""
        lines = []
        for d in dims:
            at = np.arange(d, dtype=np.float64)
            if c["align_corners"]:
                lines.append(np.zeros(d) if d == 1 else -1 + at * (2 / (d - 1)))
            else:
                lines.append((2 * at + 1) / d - 1)
        axes = np.meshgrid(*lines, indexing="ij")[::-1]
        return np.stack([*axes, np.ones_like(axes[0])], -1).reshape(-1, len(dims) + 1)

    def reference(self, c: Call, theta: np.ndarray, size: np.ndarray) -> np.ndarray:
        dims = self.dims(c, size)
        with np.errstate(all="ignore"):
            grid = self.base(c, dims) @ theta.astype(np.float64).transpose(0, 2, 1)
            return grid.reshape(len(theta), *dims, len(dims)).astype(theta.dtype)

    def bind(self, c: Call) -> Kernel | None:
        if c.ins[0].dtype != DType.FLOAT:
            return None
        dims = self.dims(c, c.value(1))
        rows = prod(dims[:-1]) * c.ins[0].shape[0] if c.outs[0].size else 0
        ints = (rows, len(dims), int(c["align_corners"] != 0), *dims)
        return Kernel("interpolate.affine_grid", ints=ints, inputs=(0,))

    def lower(self, g: Gradients, c: Call) -> list[str]:
        out = c.outs[0]
        base = g.constant(self.base(c, out.shape[1:-1]).astype(STORAGE[out.dtype]))
        return [g.reshape(g.emit("MatMul", [base, g.swapped(c.node.inputs[0])]), out.shape)]
