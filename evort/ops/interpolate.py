"""Resize and Upsample: every output coordinate is a place in the input, given axis by axis.

Along one axis, output element o is the weighted sum of a window of the input: sum(weights[o, k] * x[first[o] + k]).
`Table` holds windows and weights for every coordinate transformation, filter and border rule; the reference and the
drivers apply the same tables, one axis after the other. Nearest neighbours are a plain index for each o, and move any
element type. Sources: ONNX Resize-19 and its reference implementation; R. G. Keys, Cubic convolution interpolation
(1981). Points that lie anywhere (GridSample, 3-D lookup tables) are in `evort.ops.sample`.
"""

from __future__ import annotations

from math import isclose
from typing import TYPE_CHECKING

import numpy as np

from evort.graph import Graph, Node
from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.ops.copies import itemsize, take_kernel
from evort.ops.qoperands import BYTES
from evort.ops.views import ALL_VIEW, INT64
from evort.types import FLOATS, DType, Spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evort.ops.gradients import Gradients

COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize",
)  # fmt: skip
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
MAX_SIZE = 1 << 23  # of an axis: its table is listed while planning
MAX_TAPS = 1 << 25  # of a table's windows together


class Axis:
    """How one axis is resized: input and output size, scale, real-valued output width, region (start, end)."""

    __slots__ = ("out", "roi", "scale", "size", "width")

    def __init__(self, size: int, out: int, scale: float, width: float, roi: tuple[float, float]):
        self.size = size
        self.out = out
        self.scale = scale
        self.width = width
        self.roi = roi

    @property
    def same(self) -> bool:
        """Whether the output is the input along this axis."""
        whole = isclose(self.roi[0], 0, abs_tol=1e-9) and isclose(self.roi[1], 1)
        return self.out == self.size and isclose(self.scale, 1) and whole

    def places(self, how: str) -> np.ndarray:
        """Where each output element lies in the input, float64."""
        o, size, scale = np.arange(self.out, dtype=np.float64), self.size, self.scale
        one = self.width == 1
        if how == "align_corners":
            return np.zeros_like(o) if one else o * (size - 1) / (self.width - 1)
        if how == "asymmetric":
            return o / scale
        if how == "tf_crop_and_resize":
            start, end = self.roi
            if one:
                return np.full_like(o, (end - start) * (size - 1) / 2) + start * (size - 1)
            return o * (end - start) * (size - 1) / (self.width - 1) + start * (size - 1)
        if how == "pytorch_half_pixel" and one:
            return np.full_like(o, -0.5)
        shift = size / 2 * (1 - self.out / self.width) if how == "half_pixel_symmetric" else 0.0
        return shift + (o + 0.5) / scale - 0.5


class Table:
    """Windows and weights of one axis: first [out] and weights [out, taps]; every window lies inside the input."""

    __slots__ = ("first", "size", "weights")

    def __init__(self, first: np.ndarray, weights: np.ndarray, size: int):
        """first may begin before the input and windows may end behind it: such taps read the border."""
        at = np.clip(first[:, None] + np.arange(weights.shape[1]), 0, size - 1)
        start = at[:, 0]
        taps = int((at[:, -1] - start).max()) + 1
        start = np.minimum(start, size - taps)
        self.size = size
        self.first = start
        self.weights = np.zeros((len(first), taps))
        np.add.at(self.weights, (np.arange(len(first))[:, None], at - start[:, None]), weights)

    def apply(self, x: np.ndarray, axis: int) -> np.ndarray:
        """The table along one axis of an array."""
        shape = (-1,) + (1,) * (x.ndim - 1 - axis)
        return sum(
            np.take(x, self.first + k, axis) * self.weights[:, k].reshape(shape) for k in range(self.weights.shape[1])
        )


def linear(x: np.ndarray) -> np.ndarray:
    """The triangle filter."""
    return np.clip(1 - np.abs(x), 0, 1)


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' filter with coefficient a."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def nearest(places: np.ndarray, size: int, how: str) -> np.ndarray:
    """The input index of each place."""
    below = np.floor(places)
    rest = places - below
    up = {
        "round_prefer_floor": rest > 0.5,
        "round_prefer_ceil": rest >= 0.5,
        "floor": np.zeros(len(rest), bool),
        "ceil": rest > 0,
    }[how]
    return np.clip(below + up, 0, size - 1).astype(np.int64)


@op("Resize", since=19)
class Resize(Op):
    """The input resampled along `axes` (all where absent) to `sizes`, or by `scales` (output floor(size * scale)).

    All modes, coordinate transformations and filters of ONNX; exclude_outside concerns linear and cubic. Integers
    are rounded half to even and clipped, as in ONNX's reference implementation.
    """

    inputs, outputs = ("X", "roi?", "scales?", "sizes?"), ("Y",)
    attrs = {
        "antialias": Attr("int", 0),
        "axes": Attr("ints"),
        "coordinate_transformation_mode": Attr("str", "half_pixel"),
        "cubic_coeff_a": Attr("float", -0.75),
        "exclude_outside": Attr("int", 0),
        "extrapolation_value": Attr("float", 0.0),
        "keep_aspect_ratio_policy": Attr("str", "stretch"),
        "mode": Attr("str", "nearest"),
        "nearest_mode": Attr("str", "round_prefer_floor"),
    }
    dtypes = {"roi": FLOATS - {DType.BFLOAT16}, "scales": frozenset({DType.FLOAT}), "sizes": INT64}

    def values(self, c: Call) -> list[np.ndarray | None]:
        roi = c.value(1) if c.has(1) and c["coordinate_transformation_mode"] == "tf_crop_and_resize" else None
        return [roi, *(c.value(i) if c.has(i) else None for i in (2, 3))]

    def resized(self, c: Call, shape: tuple[int, ...], *operands: np.ndarray | None) -> list[Axis]:
        roi, scales, sizes = (*(None if v is None or v.size == 0 else v for v in operands), None, None, None)[:3]
        names = range(len(shape)) if c["axes"] is None else [c.axis(a, len(shape)) for a in c["axes"]]
        if len(set(names)) != len(names):
            raise c.error(f"axes {c['axes']} name one axis twice")
        if (scales is None) == (sizes is None):
            raise c.error("needs either scales or sizes")
        if len(scales if sizes is None else sizes) != len(names):
            raise c.error(f"scales or sizes must be {len(names)} numbers")
        regions = dict.fromkeys(names, (0.0, 1.0))
        if c["coordinate_transformation_mode"] == "tf_crop_and_resize":
            if roi is None or roi.size != 2 * len(names) or not np.isfinite(roi).all():
                raise c.error(f"tf_crop_and_resize needs a roi of {2 * len(names)} numbers")
            starts, ends = roi.astype(np.float64).reshape(2, -1).tolist()
            regions = dict(zip(names, zip(starts, ends, strict=True), strict=True))
        found = [Axis(d, d, 1.0, float(d), (0.0, 1.0)) for d in shape]
        for a, axis in self.scaled(c, shape, names, scales, sizes).items():
            size, scale, out, width = axis
            found[a] = Axis(size, out, scale, width, regions[a])
        return found

    def scaled(
        self, c: Call, shape: tuple[int, ...], names: range | list[int], scales: np.ndarray | None,
        sizes: np.ndarray | None,
    ) -> dict[int, tuple[int, float, int, float]]:  # fmt: skip
        """(size, scale, output size, real-valued output width) of each axis that may change."""
        if sizes is None:
            if not (np.isfinite(scales).all() and (scales > 0).all()):
                raise c.error(f"scales {scales.tolist()} must be positive")
            # ONNX's shape inference multiplies in float32.
            with np.errstate(over="ignore"):
                outs = np.minimum(np.floor(np.float32([shape[a] for a in names]) * scales), MAX_SIZE + 1).tolist()
            return {
                a: (shape[a], s, int(out), s * shape[a]) for a, s, out in zip(names, scales.tolist(), outs, strict=True)
            }
        wanted = dict(zip(names, sizes.tolist(), strict=True))
        policy = c["keep_aspect_ratio_policy"]
        if policy not in ("stretch", "not_larger", "not_smaller"):
            raise c.error(f"keep_aspect_ratio_policy {policy!r} is none of stretch, not_larger and not_smaller")
        if any(n < 0 or (n and not shape[a]) for a, n in wanted.items()):
            raise c.error(f"sizes {sizes.tolist()} do not suit the input")
        ratios = {a: n / shape[a] if shape[a] else 1.0 for a, n in wanted.items()}
        if policy == "stretch" or not ratios:
            return {a: (shape[a], ratios[a] or 1.0, n, float(n)) for a, n in wanted.items()}
        scale = (min if policy == "not_larger" else max)(ratios.values())
        return {a: (shape[a], scale or 1.0, int(scale * shape[a] + 0.5), scale * shape[a]) for a in names}

    def table(self, c: Call, axis: Axis) -> Table:
        """The windows and weights of an axis (mode linear or cubic)."""
        places = axis.places(c["coordinate_transformation_mode"])
        stretch = min(axis.scale, 1.0) if c["antialias"] else 1.0
        reach = (1 if c["mode"] == "linear" else 2) / stretch
        if axis.out * (2 * reach + 2) > MAX_TAPS:
            raise c.error(f"scale {axis.scale} of an axis of size {axis.size} takes too many weights")
        # Beyond the filter's reach of the border nothing changes any more.
        places = np.clip(places, -reach - 2, axis.size + reach + 2)
        base = np.ceil(places).astype(np.int64) - 1
        ratio = places - base  # in (0, 1]
        start = int(np.floor(-reach)) + 1
        x = (np.arange(start, 2 - start) - ratio[:, None]) * stretch
        weights = linear(x) if c["mode"] == "linear" else cubic(x, c["cubic_coeff_a"])
        first = base + start
        if c["exclude_outside"]:
            at = first[:, None] + np.arange(weights.shape[1])
            weights = np.where((at < 0) | (at >= axis.size), 0.0, weights)
        if c["exclude_outside"] or c["antialias"]:
            total = weights.sum(1, keepdims=True)
            weights = weights / np.where(total == 0, 1.0, total)
        return Table(first, weights, axis.size)

    def outside(self, c: Call, axis: Axis) -> np.ndarray | None:
        """Which output elements lie outside the input and take the extrapolation value; None for none."""
        if c["coordinate_transformation_mode"] != "tf_crop_and_resize" or axis.same:
            return None
        places = axis.places("tf_crop_and_resize")
        found = (places < 0) | (places > axis.size - 1)
        return found if found.any() else None

    def indices(self, c: Call, axes: list[Axis]) -> list[np.ndarray | None]:
        """The index table of each axis (mode nearest); None for one that stays as it is."""
        how = c["coordinate_transformation_mode"]
        return [None if a.same else nearest(a.places(how), a.size, c["nearest_mode"]) for a in axes]

    def infer(self, c: Call) -> list[Spec]:
        x = c.ins[0]
        for key, allowed in (
            ("mode", ("nearest", "linear", "cubic")),
            ("coordinate_transformation_mode", COORDINATES),
            ("nearest_mode", NEAREST),
        ):
            if c[key] not in allowed:
                raise c.error(f"{key} {c[key]!r} is none of {', '.join(allowed)}")
        if c["mode"] != "nearest" and x.dtype in (DType.BOOL, DType.STRING):
            raise c.error(f"mode {c['mode']!r} needs numbers")
        if c["antialias"] and c["mode"] == "nearest":
            raise c.error("antialias needs mode linear or cubic")
        axes = self.resized(c, x.shape, *self.values(c))
        for a in axes:
            if not 0 <= a.out <= MAX_SIZE or (a.out and not a.size):
                raise c.error(f"an axis of size {a.size} cannot be resized to {a.out} (at most {MAX_SIZE})")
        return [Spec(x.dtype, tuple(a.out for a in axes))]

    def reference(self, c: Call, x: np.ndarray, *operands: np.ndarray | None) -> np.ndarray:
        axes = self.resized(c, x.shape, *operands)
        if 0 in (a.out for a in axes):
            return np.empty(tuple(a.out for a in axes), x.dtype)
        if c["mode"] == "nearest":
            y = x
            for i, at in enumerate(self.indices(c, axes)):
                y = y if at is None else np.take(y, at, i)
        else:
            y = x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)
            with np.errstate(all="ignore"):
                for i, a in enumerate(axes):
                    y = y if a.same else self.table(c, a).apply(y, i)
        for i, a in enumerate(axes):
            mask = self.outside(c, a)
            if mask is not None:
                y = np.where(mask.reshape((-1,) + (1,) * (x.ndim - 1 - i)), c["extrapolation_value"], y)
        if x.dtype.kind in "iu" and y.dtype != x.dtype:
            limits = np.iinfo(x.dtype)
            # float64 has no 2**63 - 1: the clip of 64-bit integers ends at the next number below.
            high = np.nextafter(2.0**63, 0) if x.dtype == np.int64 else limits.max
            high = np.nextafter(2.0**64, 0) if x.dtype == np.uint64 else high
            y = np.clip(np.round(y), limits.min, high)
        with np.errstate(over="ignore"):
            return y.astype(x.dtype, copy=False)

    def view(self, c: Call) -> dict[int, tuple[int, int]] | None:
        return ALL_VIEW if all(a.same for a in self.resized(c, c.ins[0].shape, *self.values(c))) else None

    def channels_last(self, c: Call) -> Sequence[tuple[int, ...]]:
        x = c.ins[0]
        if c["mode"] != "nearest" or x.dtype not in BYTES or x.rank not in (3, 4) or c.outs[0].size == 0:
            return ()
        axes = self.resized(c, x.shape, *self.values(c))
        pixels = axes[0].same and axes[1].same and not any(self.outside(c, a) is not None for a in axes)
        return ((0, ~0),) if pixels else ()

    def nearest_pixels(self, c: Call) -> Kernel:
        """The driver for channels last."""
        x, axes = c.ins[0], self.resized(c, c.ins[0].shape, *self.values(c))
        images = (1, *x.shape[2:])[-2:]
        given = self.indices(c, axes)[2:]
        tables = [np.arange(n) if at is None else at for n, at in zip(images, [None, *given][-2:], strict=True)]
        ints = np.concatenate([[*x.shape[:2], *images, *(len(t) for t in tables)], *tables])
        return Kernel("qnhwc.nearest", ints=ints, inputs=(0,))

    def bind(self, c: Call) -> Kernel | None:
        x = c.ins[0]
        if x.channels_last or c.outs[0].channels_last:
            return self.nearest_pixels(c)
        axes = self.resized(c, x.shape, *self.values(c))
        if any(self.outside(c, a) is not None for a in axes):
            return None
        if c["mode"] == "nearest" or c.outs[0].size == 0:
            empty = [np.zeros(a.out, np.int64) for a in axes]
            return take_kernel(itemsize(x), x.shape, self.indices(c, axes) if c.outs[0].size else empty)
        if x.dtype != DType.FLOAT:
            return None
        return self.separable(c, axes)

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        """The transposes of what was applied to each axis."""
        from evort.ops.pad import along

        axes = self.resized(c, c.ins[0].shape, *self.values(c))
        if any(self.outside(c, a) is not None for a in axes):
            return super().gradient(g, c, dy)
        tables = self.indices(c, axes) if c["mode"] == "nearest" else [None] * len(axes)
        for i, (a, at) in enumerate(zip(axes, tables, strict=True)):
            if a.same:
                continue
            eye = np.eye(a.size)
            matrix = np.take(eye, at, 0) if c["mode"] == "nearest" else self.table(c, a).apply(eye, 0)
            dy = along(g, matrix.T, dy, i)
        return [dy, *[None] * (len(c.ins) - 1)]

    def separable(self, c: Call, axes: list[Axis]) -> Kernel:
        """The driver that applies a table to each axis from the first that is resized to the last."""
        changed = [i for i, a in enumerate(axes) if not a.same]
        outer = inner = 1
        for a in axes[: changed[0]]:
            outer *= a.size
        for a in axes[changed[-1] + 1 :]:
            inner *= a.size
        sizes: list[int] = []
        firsts: list[np.ndarray] = []
        weights: list[np.ndarray] = []
        rings, behind = 0, inner
        for a in reversed(axes[changed[0] : changed[-1] + 1]):
            t = Table(np.arange(a.size), np.ones((a.size, 1)), a.size) if a.same else self.table(c, a)
            taps = t.weights.shape[1]
            sizes = [a.size, a.out, taps, *sizes]
            firsts.insert(0, t.first)
            weights.insert(0, t.weights.reshape(-1))
            if len(firsts) > 1:
                rings += taps * behind
            behind *= a.out
        reals = np.concatenate(weights)
        return Kernel(
            "interpolate.resize",
            ints=np.concatenate([[len(firsts), outer, inner, rings, *sizes], *firsts]),
            reals=reals,
            scratch=4 * (len(reals) + 16 + c.threads * (rings + 16)),
            inputs=(0,),
        )


@op("Upsample", since=9)
class Upsample(Op):
    """Resize by `scales` with asymmetric coordinates, rounding down; deprecated in ONNX since 10."""

    inputs, outputs = ("X", "scales"), ("Y",)
    attrs = {"mode": Attr("str", "nearest")}
    dtypes = {"scales": frozenset({DType.FLOAT})}

    def expand(self, c: Call) -> Graph:
        graph = Graph("Upsample")
        graph.inputs, graph.outputs = ["X", "scales"], ["Y"]
        attrs = {"mode": c["mode"], "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        graph.nodes = [Node("Resize", ["X", "", "scales"], ["Y"], attrs, name=c.node.name)]
        return graph
