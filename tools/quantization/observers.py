"""What calibration keeps of a tensor: extremes, their moving average, and a histogram that widens as data comes.

One pass over the data is enough for every method of `ranges`, and memory does not depend on how much data comes.
"""

from __future__ import annotations

import numpy as np

# Bins on either side of zero. The larger side always fills more than half of its bins, so that its range is cut into
# at least 2048.
BINS = 4096
CHANNEL_BINS = 1024
# Larger tensors are counted in the histogram by a part of their elements; extremes are always those of all.
MOST = 1 << 20
_MOMENTUM = 0.99
_LEAST_EXPONENT = -140  # of a bin's width: with fewer bits float32 values are denormal


class Histogram:
    """Counts of a tensor's values in bins of equal width, and their extremes; for the tensor, or for each channel.

    A bin's width is a power of two, and zero is a boundary. A value beyond the last bin doubles the width until it
    fits: pairs of bins are merged, which loses no count. Width and counts are those of each row: one row for the whole
    tensor, or one for each index of `axis`.

    counts: int64 [rows, 2 * bins]; bin i holds values in [(i - bins) * width, (i - bins + 1) * width), zeros excepted,
    which `zeros` counts. low, high: the extremes; mean_low, mean_high: of the samples' extremes, recent ones counting
    most (an exponential average, corrected for its start). values, nonfinite: how many came, and how many of them were
    NaN or infinite, which count nowhere else.
    """

    def __init__(self, axis: int | None = None, bins: int = 0):
        self.axis = axis
        self.bins = bins or (BINS if axis is None else CHANNEL_BINS)
        self.samples = 0
        self.values = 0
        self.nonfinite = 0
        self._exponent = np.zeros(0, np.int64)
        self.counts = np.zeros((0, 2 * self.bins), np.int64)
        self.zeros = np.zeros(0, np.int64)
        self.low = np.zeros(0)
        self.high = np.zeros(0)
        self._sums = np.zeros((2, 0))

    @property
    def rows(self) -> int:
        return len(self.low)

    @property
    def width(self) -> np.ndarray:
        """The bins' width in each row; 0 where only zeros came."""
        return np.where(self._exponent > _LEAST_EXPONENT, np.ldexp(1.0, self._exponent), 0.0)

    @property
    def mean_low(self) -> np.ndarray:
        return self._sums[0] / (1 - _MOMENTUM**self.samples) if self.samples else self.low

    @property
    def mean_high(self) -> np.ndarray:
        return self._sums[1] / (1 - _MOMENTUM**self.samples) if self.samples else self.high

    def observe(self, value: np.ndarray) -> None:
        """Takes the values of one sample. Raises ValueError where the number of channels changes."""
        value = np.asarray(value)
        if value.size == 0:
            return
        if self.axis is None:
            x = value.reshape(1, -1)
        else:
            x = np.moveaxis(value, self.axis, 0).reshape(value.shape[self.axis], -1)
        if x.dtype != np.float32:
            x = x.astype(np.float32)
        self._open(len(x))
        self.values += x.size
        low, high = x.min(axis=1), x.max(axis=1)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            bad = ~np.isfinite(x)
            self.nonfinite += int(np.count_nonzero(bad))
            x = np.where(bad, np.float32(0), x)
            low, high = x.min(axis=1), x.max(axis=1)
        low, high = low.astype(np.float64), high.astype(np.float64)
        first = self.samples == 0
        self.low = low if first else np.minimum(self.low, low)
        self.high = high if first else np.maximum(self.high, high)
        self._sums = _MOMENTUM * self._sums + (1 - _MOMENTUM) * np.stack([low, high])
        self.samples += 1
        self._widen(np.maximum(-low, high))
        self._count(x)

    def _open(self, rows: int) -> None:
        if self.samples == 0 and self.rows != rows:
            self._exponent = np.full(rows, _LEAST_EXPONENT, np.int64)
            self.counts = np.zeros((rows, 2 * self.bins), np.int64)
            self.zeros = np.zeros(rows, np.int64)
            self.low = np.zeros(rows)
            self.high = np.zeros(rows)
            self._sums = np.zeros((2, rows))
        elif self.rows != rows:
            raise ValueError(f"a tensor that had {self.rows} channels along axis {self.axis} now has {rows}")

    def _widen(self, largest: np.ndarray) -> None:
        """Makes room for magnitudes up to `largest`, in each row."""
        exponent = np.frexp(largest / self.bins)[1]  # largest / bins < 2**exponent
        for row in np.nonzero((exponent > self._exponent) & (largest > 0))[0]:
            steps = int(exponent[row] - self._exponent[row])
            self._exponent[row] = exponent[row]
            counts = self.counts[row]
            if not counts.any():
                continue
            # Beyond log2(bins) doublings, all of a side has come together in its first bin.
            merged = counts.reshape(-1, min(1 << min(steps, 62), self.bins)).sum(axis=1)
            counts[:] = 0
            start = self.bins - len(merged) // 2
            counts[start : start + len(merged)] = merged

    def _count(self, x: np.ndarray) -> None:
        if x.size > MOST:
            step = -(-x.size // MOST) | 1  # odd, so that it goes through images of even width in all columns
            x = x[:, ::step] if x.shape[1] >= 4 * step else x
        rows, size = x.shape
        scale = np.ldexp(np.float32(1), np.clip(-self._exponent, -126, 127).astype(np.int32)).astype(np.float32)
        at = np.floor(x * scale[:, None])
        np.clip(at, -self.bins, self.bins - 1, out=at)  # only where 1 / width is beyond float32
        index = at.astype(np.int32)
        index += self.bins
        if rows > 1:
            index += (np.arange(rows, dtype=np.int32) * (2 * self.bins))[:, None]
        self.counts += np.bincount(index.reshape(-1), minlength=self.counts.size).reshape(self.counts.shape)
        zeros = size - np.count_nonzero(x, axis=1)
        self.zeros += zeros
        self.counts[:, self.bins] -= zeros

    def row(self, index: int = 0) -> Row:
        """One row, with its empty ends cut off."""
        counts = self.counts[index]
        filled = np.nonzero(counts)[0]
        first, last = (filled[0], filled[-1] + 1) if len(filled) else (self.bins, self.bins)
        # Zero stays a boundary of the part that is kept.
        first, last = min(first, self.bins), max(last, self.bins)
        return Row(
            counts[first:last].astype(np.float64),
            int(first) - self.bins,
            float(self.width[index]),
            int(self.zeros[index]),
            (float(self.low[index]), float(self.high[index])),
            (float(self.mean_low[index]), float(self.mean_high[index])),
        )


class Row:
    """A histogram as `ranges` reads it: bin i holds values in [(first + i) * width, (first + i + 1) * width).

    zeros: how many values were exactly zero (they are in no bin). extremes: the smallest and largest value; means: the
    moving averages of the samples' extremes.
    """

    __slots__ = ("counts", "extremes", "first", "means", "width", "zeros")

    def __init__(
        self,
        counts: np.ndarray,
        first: int,
        width: float,
        zeros: int,
        extremes: tuple[float, float],
        means: tuple[float, float],
    ):
        self.counts = counts
        self.first = first
        self.width = width
        self.zeros = zeros
        self.extremes = extremes
        self.means = means

    @property
    def centers(self) -> np.ndarray:
        """The middle of each bin."""
        return (np.arange(len(self.counts)) + (self.first + 0.5)) * self.width

    @property
    def edges(self) -> np.ndarray:
        """The boundaries of the bins, one more than there are bins."""
        return (np.arange(len(self.counts) + 1) + float(self.first)) * self.width

    @property
    def total(self) -> float:
        """How many values were counted."""
        return float(self.counts.sum()) + self.zeros
