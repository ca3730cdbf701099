"""What reads images at points, in operators with gradients: for training. The NumPy form of the same is in
`evort.ops.sample`, whose names are used here.

Elements are gathered as rows of all channels, and weighted by what the points' fractions say; so gradients flow to the
image (rows are added up where points share them) and to the points (through the weights).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from evort.ops.copies import row_major
from evort.ops.sample import BORDER, FAR, REFLECT, ZEROS
from evort.types import STORAGE, DType

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

Tap = tuple[str, str | None]  # index in [0, size), and weight; None for the only tap of a point


def sampled(g: Gradients, x: str, places: Sequence[str], count: int, padding: int, align: bool = True) -> str:
    """x [N, C, D1, ..., Dr] at points: [N, C, O]. places: for each axis [N, O], in elements. count, padding, align: see
    `sample.taps`."""
    n, channels, *dims = g.shape(x)
    rank, pixels = len(dims), prod(dims)
    rows = g.reshape(g.transpose(x, [0, *range(2, 2 + rank), 1]), (n * pixels, channels))
    first = g.constant((np.arange(n, dtype=np.int64) * pixels)[:, None])
    axes = [_taps(g, place, size, count, padding, align) for place, size in zip(places, dims, strict=True)]
    terms = []
    for combination in product(*axes):
        index, weight = first, None
        for (at, share), step in zip(combination, row_major(dims), strict=True):
            index = g.add(index, at if step == 1 else g.mul(at, g.constant(np.array(step, np.int64))))
            weight = share if weight is None or share is None else g.mul(weight, share)
        value = g.emit("Gather", [rows, index])
        terms.append(value if weight is None else g.mul(value, g.reshape(weight, (*g.shape(weight), 1))))
    return g.transpose(g.total(terms), [0, 2, 1])


def _taps(g: Gradients, x: str, size: int, count: int, padding: int, align: bool) -> list[Tap]:
    """The taps along one axis, as `sample.taps`."""
    x = _clip(g, x, -FAR, FAR)
    if count == 1:
        x = g.emit("Round", [x])
    low, high = (0.0, size - 1.0) if align else (-0.5, size - 0.5)
    if padding in (BORDER, REFLECT):
        beyond = _outside(g, x, low, high)
        x = g.emit("Where", [beyond, _clip(g, x, 0, size - 1) if padding == BORDER else _mirrored(g, x, low, high), x])
    base = g.emit("Floor", [x])
    weights: dict[int, str | None] = {0: None}
    if count > 1:
        f = g.sub(x, base)
        rest = g.sub(g.scalar(1, f), f)
        weights = {0: rest, 1: f}
        if count == 4:
            one, two = g.scalar(1, f), g.scalar(2, f)
            weights = {-1: _far(g, g.add(f, one)), 0: _near(g, f), 1: _near(g, rest), 2: _far(g, g.sub(two, f))}
    found: list[Tap] = []
    for k, weight in weights.items():
        at = g.add(base, g.scalar(k, base)) if k else base
        if padding == ZEROS:
            inside = g.emit("Not", [_outside(g, at, 0, size - 1)])
            weight = g.cast(inside, g.specs[x].dtype) if weight is None else g.mask(inside, weight)
        elif padding == REFLECT:
            at = g.emit("Where", [_outside(g, at, 0, size - 1), _mirrored(g, at, low, high), at])
        found.append((g.cast(_clip(g, at, 0, size - 1), DType.INT64), weight))
    return found


def _clip(g: Gradients, x: str, low: float, high: float) -> str:
    return g.emit("Clip", [x, g.scalar(low, x), g.scalar(high, x)])


def _outside(g: Gradients, x: str, low: float, high: float) -> str:
    return g.emit("Or", [g.emit("Less", [x, g.scalar(low, x)]), g.emit("Greater", [x, g.scalar(high, x)])])


def _mirrored(g: Gradients, x: str, low: float, high: float) -> str:
    """Coordinates reflected at low and high: a triangle wave of period 2 (high - low)."""
    width = high - low
    if width <= 0:
        return g.expand(g.scalar(0, x), g.shape(x))
    away = g.sub(x, g.scalar(low, x))
    turns = g.emit("Floor", [g.div(away, g.scalar(2 * width, x))])
    away = g.sub(away, g.mul(turns, g.scalar(2 * width, x)))
    return g.sub(g.scalar(high, x), g.emit("Abs", [g.sub(away, g.scalar(width, x))]))


def _near(g: Gradients, d: str) -> str:
    """Keys' filter with coefficient -3/4 for a distance below 1 (`interpolate.cubic`)."""
    inner = g.sub(g.scale(d, 1.25), g.scalar(2.25, d))
    return g.add(g.mul(inner, g.mul(d, d)), g.scalar(1, d))


def _far(g: Gradients, d: str) -> str:
    """The same for a distance from 1 to 2."""
    inner = g.add(g.mul(g.sub(d, g.scalar(5, d)), d), g.scalar(8, d))
    return g.scale(g.sub(g.mul(inner, d), g.scalar(4, d)), -0.75)


def parts(g: Gradients, x: str, axis: int) -> list[str]:
    """x cut along an axis into parts without that axis."""
    shape = g.shape(x)
    rest = (*shape[:axis], *shape[axis + 1 :])
    if shape[axis] == 1:
        return [g.reshape(x, rest)]
    found = g.emit("Split", [x, g.ints(*[1] * shape[axis])], {"axis": axis}, outputs=shape[axis])
    return [g.reshape(part, rest) for part in found]


def grid_sample(g: Gradients, x: str, grid: str, count: int, padding: int, align: bool) -> str:
    """GridSample."""
    n, channels, *dims = g.shape(x)
    shape = g.shape(grid)
    grid = g.reshape(g.cast(grid, g.specs[x].dtype), (n, prod(shape[1:-1]), len(dims)))
    places = []
    for v, size in zip(parts(g, grid, 2)[::-1], dims, strict=True):
        v = g.add(v, g.scalar(1, v))
        places.append(
            g.scale(v, (size - 1) / 2) if align else g.scale(g.sub(g.scale(v, size), g.scalar(1, v)), 0.5)
        )  # fmt: skip
    return g.reshape(sampled(g, x, places, count, padding, align), (n, channels, *shape[1:-1]))


def lookup_table(g: Gradients, table: str, image: str, binsize: str) -> str:
    """cus_ops::tri_forward."""
    n, _, height, width = g.shape(image)
    pixels = n * height * width
    at = g.div(image, g.reshape(binsize, ()))
    places = [g.reshape(part, (1, pixels)) for part in parts(g, at, 1)][::-1]
    y = sampled(g, g.reshape(table, (1, *g.shape(table))), places, 2, BORDER)
    channels = g.shape(table)[0]
    return g.transpose(g.reshape(y, (channels, n, height, width)), [1, 0, 2, 3])


def deform_conv(
    g: Gradients, x: str, w: str, offset: str, b: str | None, mask: str | None, grid: Sequence[np.ndarray], out:
    tuple[int, ...], group: int, groups: int
) -> str:  # fmt: skip
    """DeformConv. grid: where each tap of each position lies along each axis without an offset, [taps, positions]; out:
    the spatial shape; group: of the weights; groups: of the offsets."""
    n, channels, *dims = g.shape(x)
    m, positions, rank = g.shape(w)[0], prod(out), len(dims)
    taps = prod(g.shape(w)[2:])
    dtype = STORAGE[g.specs[x].dtype]
    offset = g.reshape(offset, (n * groups, taps, rank, positions))
    places = [
        g.reshape(g.add(part, g.constant(at.astype(dtype))), (n * groups, taps * positions))
        for part, at in zip(parts(g, offset, 2), grid, strict=True)
    ]
    x = g.reshape(x, (n * groups, channels // groups, *dims))
    columns = sampled(g, x, places, 2, ZEROS)
    if mask is not None:
        columns = g.mul(columns, g.reshape(mask, (n * groups, 1, taps * positions)))
    columns = g.reshape(columns, (n, group, channels // group * taps, positions))
    weights = g.reshape(w, (group, m // group, channels // group * taps))
    y = g.reshape(g.emit("MatMul", [weights, columns]), (n, m, *out))
    return y if b is None else g.add(y, g.reshape(b, (m, *[1] * rank)))


__all__ = ["deform_conv", "grid_sample", "lookup_table", "parts", "sampled"]
