"""Resizing quantized images, and colours through a three-dimensional table."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qsupport import everywhere, numbers, scale, zero
from support import run_node

from evort.errors import ExecutionError, ShapeError

SEEDS = st.integers(0, 2**32 - 1)
TYPES = [np.uint8, np.int8, np.int16]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 20)), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from(["linear", "cubic"]),
    st.sampled_from(["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"]),
    st.integers(0, 1),
    st.sampled_from(TYPES),
    st.sampled_from([*TYPES, np.float32]),
    SEEDS,
)
def test_resize(sizes, last, mode, coordinates, antialias, kind, out, seed):
    rng = np.random.default_rng(seed)
    shape, wanted = [2, *(a for a, _ in sizes)], [2, *(b for _, b in sizes)]
    if last:
        shape.append(3)
        wanted.append(3)
    if shape == wanted:
        wanted[1] += 1
    attrs = {"mode": mode, "coordinate_transformation_mode": coordinates, "antialias": antialias}
    x = numbers(rng, kind, tuple(shape))
    unit = [None, None] if out == np.float32 else [scale(rng), zero(rng, out)]
    operands = [x, scale(rng), zero(rng, kind), *unit, None, None, np.array(wanted, np.int64)]
    y = everywhere("qsample.resize", "QLinearResize", operands, attrs, "evort")
    if out == np.float32:
        real = (x.astype(np.float64) - operands[2]) * operands[1]
        want = run_node("Resize", [real, None, None, operands[7]], attrs, device="reference")[0]
        # Three axes, each off by a few roundings of numbers below 2^16 steps (cubic: weights add up to 1.5 at most).
        assert np.abs(y - want).max() <= np.abs(real).max(initial=0) * 1.5**3 * 3 * 20 * 2.0**-24 + 1e-6


def test_resize_by_two_is_within_a_step_of_the_real_numbers():
    rng = np.random.default_rng(0)
    x = numbers(rng, np.uint8, (1, 5, 17, 23))
    scales = np.float32([1, 1, 2, 2])
    operands = [x, np.float32(0.05), np.uint8(7), np.float32(0.04), np.uint8(30), None, scales]
    y = everywhere("qsample.resize", "QLinearResize", operands, {}, "evort")
    want = run_node("Resize", [(x.astype(np.float32) - 7) * np.float32(0.05), None, scales], {"mode": "linear"})[0]
    assert y.shape == (1, 5, 34, 46)
    assert np.abs(np.clip(want / np.float32(0.04) + 30, 0, 255) - y).max() <= 0.5 + 1e-3


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(1, 700),
    st.sampled_from([np.uint8, np.int16, np.float32]),
    st.sampled_from([np.uint8, np.int8, np.int16, np.float32, "plain"]),
    st.sampled_from([np.uint8, np.int8, np.int16, np.float32]),
    SEEDS,
)
def test_lookup_table(size, channels, width, table_kind, image_kind, out, seed):
    rng = np.random.default_rng(seed)
    dims = (channels, size, size, size)
    table = rng.uniform(0, 1, dims).astype(np.float32) if table_kind == np.float32 else numbers(rng, table_kind, dims)
    table_side = [None, None] if table_kind == np.float32 else [np.float32(1 / 255), zero(rng, table_kind)]
    shape = (2, 3, 1, width)
    if image_kind in (np.float32, "plain"):
        image = rng.uniform(-0.1, 1.1, shape).astype(np.float32)
        image.reshape(-1)[:3] = [np.nan, np.inf, -np.inf]
        side = [None, None] if image_kind == "plain" else [np.float32(1 / 255), np.uint8(0)]
    else:
        image = numbers(rng, image_kind, shape)
        side = [np.float32(1 / 255), zero(rng, image_kind)]
    step = np.float32(1.000001 / max(size - 1, 1))
    unit = [None, None] if out == np.float32 else [np.float32(1 / 255), zero(rng, out)]
    operands = [table, *table_side, image, *side, step, *unit]
    y = everywhere("qsample.lookup_table", "QLinearTriForward", operands, {}, "evort", feeds=(0, 3, 6))
    assert y.dtype == out and y.shape == (2, channels, 1, width)


def test_lookup_table_is_that_of_real_numbers():
    """Bytes in and out against tri_forward: half a step, and float32's roundings."""
    rng = np.random.default_rng(1)
    table = rng.uniform(0, 1, (3, 17, 17, 17)).astype(np.float32)
    image = numbers(rng, np.uint8, (1, 3, 20, 31))
    step = np.float32(1.000001 / 16)
    operands = [table, None, None, image, np.float32(1 / 255), np.uint8(0), step, np.float32(1 / 255), np.uint8(0)]
    y = everywhere("qsample.lookup_table", "QLinearTriForward", operands, {}, "evort", feeds=(0, 3))
    real = image.astype(np.float32) * np.float32(1 / 255)
    want = run_node("tri_forward", [table, real, None, None, None, step], domain="cus_ops")[0]
    assert np.abs(want * 255 - y).max() <= 0.5 + 1e-3


def test_what_does_not_fit_is_refused():
    x, s, z = np.zeros((1, 1, 4, 4), np.uint8), np.float32(1), np.uint8(0)
    sizes = np.array([1, 1, 8, 8])
    with pytest.raises(ShapeError, match="linear or cubic"):
        run_node(
            "QLinearResize", [x, s, z, s, z, None, None, sizes], {"mode": "nearest"}, domain="evort", constants=(7,)
        )
    table, image = np.zeros((3, 2, 2, 2), np.float32), np.zeros((1, 3, 4, 4), np.uint8)
    with pytest.raises(ShapeError, match="scale of input 3 is missing"):
        run_node("QLinearTriForward", [table, None, None, image, None, None, s], domain="evort")
    with pytest.raises(ExecutionError):
        run_node("QLinearTriForward", [table, None, None, image, s, z, np.float32(0)], domain="evort", constants=(4, 5))
