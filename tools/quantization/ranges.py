"""From what calibration has seen of a tensor to the range that its integers stand for.

Values beyond the range are clipped, values within it are rounded to steps: a wide range loses in the steps what a
narrow one loses in the clipping. The methods differ in where they see the balance:

    minmax           all that was seen
    moving-average   the average over samples of their extremes (Jacob et al. 2018, with the start corrected)
    percentile       all but a share of the values, half of it on either side
    entropy          least Kullback-Leibler divergence between the histograms before and after (Migacz 2017)
    mse              least mean squared error
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evort.quant import limits, qparams
from evort.types import BITS, DType
from evort_tools.quantization.observers import Row

# Most candidates that the searches try, before they refine the best of them.
_COARSE = 72
_FINE = 16


@dataclass(frozen=True)
class Target:
    """What a range is for: integers of `dtype`, symmetric about zero or not; percentile: the share (in %) of values
    that the method of that name keeps."""

    dtype: DType = DType.UINT8
    symmetric: bool = False
    percentile: float = 99.99


Range = tuple[float, float]


def minmax(row: Row, target: Target) -> Range:
    """All that was seen."""
    return row.extremes


def moving_average(row: Row, target: Target) -> Range:
    """The averages of the samples' extremes."""
    return row.means


def percentile(row: Row, target: Target) -> Range:
    """The range without (100 - percentile) % of the values, half of that share at either end; all of it at one end
    where values have one sign, and of the magnitudes where the target is symmetric."""
    lo, hi = row.extremes
    if not row.width:
        return lo, hi
    share = 1 - target.percentile / 100
    counts = row.counts.copy()
    if target.symmetric:
        counts, first = _magnitudes(row), 0
    else:
        first = row.first
        if lo < 0 < hi:
            share /= 2
    if -first < len(counts):
        counts[-first] += row.zeros  # zeros are at the lower edge of the first bin that is not negative
    below = np.cumsum(counts)
    total = below[-1]
    # The first edge above which no more than `share` of the values lie.
    top = (first + 1 + int(np.searchsorted(below, total * (1 - share)))) * row.width
    if target.symmetric:
        return max(lo, -top), min(hi, top)
    bottom = (first + int(np.searchsorted(below, total * share, side="right"))) * row.width
    return max(lo, min(0.0, bottom)), min(hi, max(0.0, top))


def _magnitudes(row: Row) -> np.ndarray:
    """Counts of |x| in bins from zero on."""
    negative, positive = (
        row.counts[: -row.first or None][::-1] if row.first else row.counts[:0],
        row.counts[-row.first :],
    )
    counts = np.zeros(max(len(negative), len(positive), 1))
    counts[: len(negative)] += negative
    counts[: len(positive)] += positive
    return counts


def entropy(row: Row, target: Target) -> Range:
    """The clipping at which the histogram, merged to the integers' levels, diverges least from what it was.

    Szymon Migacz, "8-bit inference with TensorRT" (GTC 2017). Types of more than 8 bits have more levels than there
    are bins, so nothing is clipped for them. Zeros are left out, as there: they are represented exactly.
    """
    lo, hi = row.extremes
    levels = 1 << BITS[target.dtype]
    if not row.width or levels > 256:
        return lo, hi
    one_sided = lo >= 0 or hi <= 0
    if one_sided:
        counts = _magnitudes(row)
        if target.symmetric:
            levels //= 2
    else:
        half = _magnitudes(row)
        bins = len(half)
        counts = np.zeros(2 * bins)
        counts[bins + row.first : bins + row.first + len(row.counts)] = row.counts
    whole = len(counts)
    if whole <= levels:
        return lo, hi
    least = levels if one_sided else levels // 2
    most = whole if one_sided else whole // 2
    best, bound = np.inf, most
    tried: set[int] = set()
    for step in (-(-(most - least) // _COARSE), max(1, (most - least) // (_COARSE * 8))):
        around = range(least, most + 1, step) if not tried else range(bound - 8 * step, bound + 8 * step + 1, step)
        for bins in sorted({*(b for b in around if least <= b <= most), most} - tried):
            tried.add(bins)
            first, last = (0, bins) if one_sided else (most - bins, most + bins)
            found = _divergence(counts, first, last, levels)
            if found < best:
                best, bound = found, bins
    top = bound * row.width
    return max(lo, -top), min(hi, top)


def _divergence(counts: np.ndarray, first: int, last: int, levels: int) -> float:
    """KL(P || Q): P the counts of [first, last) with all others put to its ends, Q those of [first, last) spread evenly
    over the filled bins of each of `levels` levels."""
    part = counts[first:last]
    p = part.copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    filled = p > 0
    starts = np.arange(levels) * len(part) // levels
    sums = np.add.reduceat(part, starts)
    numbers = np.maximum(np.add.reduceat(filled, starts, dtype=np.float64), 1)
    level = np.repeat(sums / numbers, np.diff(np.append(starts, len(part))))
    p, q = p[filled], level[filled]
    if not q.sum():
        return np.inf
    # A bin that is filled only by what was clipped would make the divergence infinite: it gets a little.
    q = np.maximum(q, 1e-4 * q.sum() / len(q))
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * np.log(p / q)))


def mse(row: Row, target: Target) -> Range:
    """The range of least mean squared error, by the centers of the histogram's bins."""
    lo, hi = row.extremes
    if not row.width:
        return lo, hi
    filled = row.counts > 0
    centers, counts = row.centers[filled], row.counts[filled]
    # Narrow at most to where the steps are as fine as the bins.
    least = max(2.0 ** -BITS[target.dtype], 1 / 256)
    factors = np.geomspace(least, 1, _COARSE)
    found = _least(centers, counts, lo * factors, hi * factors, target)
    factor = factors[found]
    ratio = factors[-1] / factors[-2]
    fine = np.minimum(factor * np.geomspace(1 / ratio, ratio, _FINE), 1)
    factor = fine[_least(centers, counts, lo * fine, hi * fine, target)]
    bottom, top = lo * factor, hi * factor
    if not target.symmetric and lo < 0 < hi:
        # The ends need not narrow alike: one after the other.
        for _ in range(2):
            tops = np.append(np.geomspace(max(top / 4, hi * least), hi, _FINE), top)
            top = tops[_least(centers, counts, np.full(len(tops), bottom), tops, target)]
            bottoms = np.append(-np.geomspace(max(-bottom / 4, -lo * least), -lo, _FINE), bottom)
            bottom = bottoms[_least(centers, counts, bottoms, np.full(len(bottoms), top), target)]
    return float(bottom), float(top)


def _least(centers: np.ndarray, counts: np.ndarray, lo: np.ndarray, hi: np.ndarray, target: Target) -> int:
    """Which of the ranges has the least error; the widest of equals."""
    return len(lo) - 1 - int(np.argmin(squared_error(centers, counts, lo, hi, target)[::-1]))


def squared_error(values: np.ndarray, counts: np.ndarray, lo: np.ndarray, hi: np.ndarray, target: Target) -> np.ndarray:
    """The sum of squared errors that each range makes for `values`, of which there are `counts`."""
    scale, zero = qparams(lo, hi, target.dtype, target.symmetric)
    low, high = limits(target.dtype)
    scale = scale.astype(np.float64)[:, None]
    zero = zero.astype(np.float64)[:, None]
    q = np.clip(np.rint(values / scale), low - zero, high - zero)
    return ((q * scale - values) ** 2) @ counts


METHODS: dict[str, Callable[[Row, Target], Range]] = {
    "minmax": minmax,
    "moving-average": moving_average,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def find(method: str, row: Row, target: Target) -> Range:
    """The range by a method of METHODS, never wider than what was seen, zero included.

    Raises ValueError for an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"no calibration method is named {method!r}; methods: {', '.join(METHODS)}, auto")
    lo, hi = METHODS[method](row, target)
    return min(0.0, lo), max(0.0, hi)
