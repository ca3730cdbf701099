"""Histograms that widen, and the ranges found from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evort.types import DType
from evort_tools.quantization.encodings import Encoding
from evort_tools.quantization.observers import Histogram
from evort_tools.quantization.ranges import METHODS, Target, find

TARGETS = [Target(DType.UINT8), Target(DType.INT8, True), Target(DType.INT8), Target(DType.INT16, True)]


def observed(*parts, **options):
    h = Histogram(**options)
    for part in parts:
        h.observe(np.asarray(part, np.float32))
    return h


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=20), min_size=1, max_size=6))
def test_widening_loses_no_count_and_puts_each_value_into_its_bin(parts):
    # Numbers that vanish beside the width are put to the wrong side of zero, of which nothing takes notice.
    parts = [[v if abs(v) > 2.0**-60 else 0.0 for v in part] for part in parts]
    h = observed(*parts, bins=64)
    row = h.row()
    values = np.concatenate([np.asarray(p, np.float32) for p in parts]).astype(np.float64)
    assert h.values == len(values) == row.total
    assert (row.extremes[0], row.extremes[1]) == (values.min(), values.max())
    values = values[values != 0]
    if row.width:
        inside = np.floor(values / row.width) - row.first
        expected = np.bincount(inside.astype(int), minlength=len(row.counts))
        np.testing.assert_array_equal(row.counts, expected)
        # Zero is a boundary, and the larger side fills more than half of its bins.
        assert np.abs(values).max() >= 32 * row.width * (1 - 1e-12)


def test_one_pass_in_any_order_gives_one_histogram():
    rng = np.random.default_rng(1)
    parts = [rng.normal(size=1000) * 10.0**k for k in range(-3, 4)]
    one, other = observed(*parts), observed(*parts[::-1])
    np.testing.assert_array_equal(one.counts, other.counts)
    assert one.width == other.width


def test_channels_have_rows_of_their_own():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(4, 3, 50)).astype(np.float32) * np.array([1, 0, 1000], np.float32)[:, None]
    h = observed(x, axis=1)
    for c in range(3):
        alone = observed(x[:, c], bins=h.bins)
        np.testing.assert_array_equal(h.counts[c], alone.counts[0])
        assert h.low[c] == alone.low[0] and h.high[c] == alone.high[0] and h.zeros[c] == alone.zeros[0]
    with pytest.raises(ValueError, match="3 channels"):
        h.observe(np.ones((1, 4, 2), np.float32))


def test_moving_average_of_equal_samples_is_their_extremes():
    h = observed(*[[-1.0, 3.0]] * 5)
    assert h.mean_low[0] == pytest.approx(-1) and h.mean_high[0] == pytest.approx(3)


def test_nan_and_infinity_are_counted_apart():
    h = observed([1.0, np.nan, -np.inf, 2.0])
    assert h.nonfinite == 2 and h.high[0] == 2 and h.low[0] == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.dtype.name}-{t.symmetric}")
@pytest.mark.parametrize("sign", [1, -1])
def test_ranges_hold_zero_and_stay_within_what_was_seen(method, target, sign):
    rng = np.random.default_rng(3)
    cases = [rng.normal(size=2000), np.abs(rng.normal(size=2000)), np.zeros(4), np.full(9, 5.0), [1e-42], [3e38, 1.0],
             np.append(rng.normal(size=2000), 1e6)]  # fmt: skip
    for values in cases:
        row = observed(np.asarray(values) * sign).row()
        lo, hi = find(method, row, target)
        assert min(0, row.extremes[0]) <= lo <= 0 <= hi <= max(0, row.extremes[1])
        e = Encoding.of_range(lo, hi, target.dtype, target.symmetric)
        assert np.isfinite(e.scale) and e.scale > 0
        assert e.fake(np.zeros(1, np.float32)) == 0


@pytest.mark.parametrize("constant", [5.0, -3.25, 1e-6])
def test_a_constant_is_represented_within_rounding(constant):
    row = observed(np.full(10, constant)).row()
    for method in METHODS:
        e = Encoding.of_range(*find(method, row, Target()), DType.UINT8)
        # mse may trade the end of the range for a center of the bin: half a bin of 1/2048 of the range.
        assert e.fake(np.float32([constant]))[0] == pytest.approx(constant, rel=1 / 2048)


def test_percentile_keeps_its_share():
    values = np.random.default_rng(4).normal(size=200_000)
    row = observed(values).row()
    lo, hi = find("percentile", row, Target(percentile=99.0))
    # Half a percent on either side, to within a bin (of which there are 2048 at least for the larger side).
    assert lo == pytest.approx(np.percentile(values, 0.5), abs=2 * row.width)
    assert hi == pytest.approx(np.percentile(values, 99.5), abs=2 * row.width)
    lo, hi = find("percentile", row, Target(DType.INT8, True, 99.0))
    assert hi == pytest.approx(np.percentile(np.abs(values), 99.0), abs=2 * row.width) and lo == pytest.approx(-hi)


def errors(values, target):
    """Mean squared error after quantizing with each method's range."""
    row = observed(values).row()
    found = {}
    for method in METHODS:
        e = Encoding.of_range(*find(method, row, target), target.dtype, target.symmetric)
        found[method] = float(np.mean((e.fake(values) - values) ** 2))
    return found


@pytest.mark.parametrize("target", TARGETS[:3], ids=lambda t: f"{t.dtype.name}-{t.symmetric}")
def test_mse_has_the_least_squared_error(target):
    rng = np.random.default_rng(5)
    for values in (rng.laplace(size=50_000), np.maximum(rng.normal(size=50_000), 0), rng.standard_t(4, size=50_000)):
        found = errors(values.astype(np.float32), target)
        # The search goes by the centers of bins and in steps of some percent of the range.
        assert found["mse"] <= 1.02 * min(found.values()), found


def test_clipping_helps_where_few_values_are_large():
    """Migacz 2017: a few outliers make the extremes a bad range; KL divergence finds the bulk."""
    rng = np.random.default_rng(6)
    values = np.abs(rng.normal(size=100_000)).astype(np.float32)
    values[:5] = 60
    row = observed(values).row()
    lo, hi = find("entropy", row, Target())
    assert lo == 0 and 3 < hi < 12
    bulk = values[5:]
    wide, narrow = (Encoding.of_range(0, top, DType.UINT8) for top in (60, hi))
    assert np.mean((narrow.fake(bulk) - bulk) ** 2) < 0.1 * np.mean((wide.fake(bulk) - bulk) ** 2)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"'best'.*minmax"):
        find("best", observed([1.0]).row(), Target())
