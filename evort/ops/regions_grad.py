"""Gradients of the images that pools over regions read. Domain `evort`; the regions themselves have none."""

from __future__ import annotations

from itertools import product

import numpy as np

from evort.ops.base import Call, Op, op
from evort.ops.regions import MaxRoiPool
from evort.ops.sample import REGION, RoiAlign, taps
from evort.types import Spec


class _RegionGrad(Op):
    """inputs: dY, then those of the operator `forward`."""

    forward: Op

    def inner(self, c: Call) -> Call:
        """The call of the operator whose gradient this is."""
        return Call(c.node, c.attrs, c.ins[1:])

    def infer(self, c: Call) -> list[Spec]:
        (y,) = self.forward.infer(self.inner(c))
        if c.ins[0].dtype != y.dtype or c.ins[0].shape != y.shape:
            raise c.error("dY must have the element type and shape of the pool's output")
        return [c.like(1)]


@op("RoiAlignGrad", domain="evort")
class RoiAlignGrad(_RegionGrad):
    """dX of a RoiAlign with the attributes given: each point's share of its bin's gradient goes to the elements that it
    is interpolated from, by their weights; with mode "max" all of it to the first of the largest weighted corners."""

    inputs, outputs = ("dY", "X", "rois", "batch_indices"), ("dX",)
    attrs, dtypes = RoiAlign.attrs, {"dY": RoiAlign.dtypes["X"], **RoiAlign.dtypes}
    forward = RoiAlign()

    def reference(self, c: Call, dy: np.ndarray, x: np.ndarray, rois: np.ndarray, batch: np.ndarray) -> np.ndarray:
        dx = np.zeros(x.shape, np.float64)
        for region, image, grad in zip(rois, batch, dy.astype(np.float64), strict=True):
            rows = self.forward.points(c, *region[1::2].tolist(), dy.shape[2])
            columns = self.forward.points(c, *region[0::2].tolist(), dy.shape[3])
            if not rows.size or not columns.size:
                continue
            ys = taps(rows[:, :, None, None], x.shape[2], 2, REGION)
            xs = taps(columns, x.shape[3], 2, REGION)
            corners = [
                (np.broadcast_arrays(a[0], b[0]), a[1] * b[1] * (a[2] & b[2])) for a, b in product(ys, xs)
            ]  # ((row, column), weight), each [H, points, W, points]
            if c["mode"] == "avg":
                share = grad[:, :, None, :, None] / (rows.shape[1] * columns.shape[1])
                for at, weight in corners:
                    np.add.at(dx[image], (slice(None), *at), share * weight)
            else:
                _to_largest(dx[image], x[image], corners, grad)
        return dx.astype(x.dtype)


def _to_largest(dx: np.ndarray, x: np.ndarray, corners: list, grad: np.ndarray) -> None:
    """Adds a bin's gradient [C, H, W] to the corner whose weighted value is its largest."""
    channels, height, width = grad.shape

    def by_bin(values: np.ndarray) -> np.ndarray:
        """[corners, (C,) H, points, W, points] as [(C,) H, W, all]."""
        values = np.moveaxis(values, (0, -3, -1), (-3, -2, -1))
        return values.reshape(*values.shape[:-3], -1)

    rows, columns, weights = (by_bin(np.stack(v)) for v in zip(*[(*at, w) for at, w in corners], strict=True))
    values = by_bin(np.stack([x[:, at[0], at[1]] * weight for at, weight in corners]))
    best = values.argmax(-1)
    h, w = np.ogrid[:height, :width]
    at = np.arange(channels)[:, None, None], rows[h, w, best], columns[h, w, best]
    np.add.at(dx, at, grad * weights[h, w, best])


@op("MaxRoiPoolGrad", domain="evort")
class MaxRoiPoolGrad(_RegionGrad):
    """dX of a MaxRoiPool with the attributes given: each bin's gradient goes to the first of its largest elements."""

    inputs, outputs = ("dY", "X", "rois"), ("dX",)
    attrs, dtypes = MaxRoiPool.attrs, {"dY": MaxRoiPool.dtypes["X"], **MaxRoiPool.dtypes}
    forward = MaxRoiPool()

    def reference(self, c: Call, dy: np.ndarray, x: np.ndarray, rois: np.ndarray) -> np.ndarray:
        dx = np.zeros(x.shape, np.float64)
        channels = np.arange(x.shape[1])
        for r, i, j, image, (top, bottom), (left, right) in self.forward.bins(c, x.shape, rois):
            part = x[image, :, top:bottom, left:right].reshape(len(channels), -1)
            row, column = np.divmod(part.argmax(1), right - left)
            np.add.at(dx[image], (channels, top + row, left + column), dy[r, :, i, j])
        return dx.astype(x.dtype)
