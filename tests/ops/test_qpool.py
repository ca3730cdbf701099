"""Averages of quantized tensors: drivers equal to the references bit for bit, both near onnxruntime's kernels."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from qsupport import by_onnxruntime, everywhere, numbers, scale, steps, zero
from support import run_node

from evort.errors import ShapeError

SEEDS = st.integers(0, 2**32 - 1)
BYTES = st.sampled_from([np.uint8, np.int8])


@st.composite
def pools(draw):
    """(shape, attributes): one to three spatial axes, windows that may hang over the edges."""
    n = draw(st.integers(1, 3))
    spatial = [draw(st.integers(1, 9)) for _ in range(n)]
    spatial[-1] = draw(st.one_of(st.integers(1, 9), st.integers(13, 70)))
    kernel = [draw(st.integers(1, 4)) for _ in range(n)]
    pads = [draw(st.integers(0, kernel[i % n] - 1)) for i in range(2 * n)]
    assume(all(d + pads[i] + pads[n + i] >= kernel[i] for i, d in enumerate(spatial)))
    attrs = {
        "kernel_shape": kernel,
        "strides": [draw(st.integers(1, 3)) for _ in range(n)],
        "pads": pads,
        "count_include_pad": draw(st.integers(0, 1)),
    }
    return (draw(st.integers(1, 2)), draw(st.integers(1, 3)), *spatial), attrs


@settings(max_examples=50, deadline=None, derandomize=True)
@given(pools(), BYTES, st.booleans(), SEEDS)
def test_average_pool(case, dtype, to_float, seed):
    shape, attrs = case
    rng = np.random.default_rng(seed)
    operands = [numbers(rng, dtype, shape), scale(rng), zero(rng, dtype)]
    if to_float:
        y = everywhere("pooling.quantized_average", "QLinearAveragePool", operands, attrs)
        real = (operands[0].astype(np.float32) - np.float32(operands[2])) * operands[1]
        want = run_node("AveragePool", [real], attrs)[0]
        # Sums of at most 64 numbers below 256 steps; four roundings on either side.
        assert np.abs(y - want).max() <= 256 * operands[1] * 8 * 2.0**-24 * 64
        return
    operands += [scale(rng), zero(rng, dtype)]
    y = everywhere("pooling.quantized_average", "QLinearAveragePool", operands, attrs)
    assert np.abs(y.astype(int) - by_onnxruntime("QLinearAveragePool", operands, attrs)).max() <= 1


def test_average_pool_of_the_padding_alone_is_zero():
    x = np.full((1, 1, 2, 2), 200, np.uint8)
    operands = [x, np.float32(0.1), np.uint8(10), np.float32(0.2), np.uint8(33)]
    attrs = {"kernel_shape": [1, 1], "pads": [1, 1, 1, 1]}
    y = everywhere("pooling.quantized_average", "QLinearAveragePool", operands, attrs)
    assert y[0, 0, 0].tolist() == [33] * 4 and y[0, 0, 1].tolist() == [33, 128, 128, 33]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 30), min_size=3, max_size=5), BYTES, SEEDS)
def test_global_average_pool(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    operands = [numbers(rng, dtype, tuple(shape)), scale(rng), zero(rng, dtype), scale(rng), zero(rng, dtype)]
    y = everywhere("qnormalize.mean", "QLinearGlobalAveragePool", operands)
    assert np.abs(y.astype(int) - by_onnxruntime("QLinearGlobalAveragePool", operands, {"channels_last": 0})).max() <= 1
    everywhere("qnormalize.mean", "QLinearGlobalAveragePool", operands[:3])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.integers(1, 400),
    st.integers(0, 9),
    st.integers(1, 4),
    BYTES,
    st.integers(0, 1),
    SEEDS,
)
def test_reduce_mean(shape, long, first, count, dtype, keepdims, seed):
    rng = np.random.default_rng(seed)
    shape[rng.integers(len(shape))] = long
    first %= len(shape)
    axes = list(range(first, min(first + count, len(shape))))
    operands = [numbers(rng, dtype, tuple(shape)), scale(rng), zero(rng, dtype), scale(rng), zero(rng, dtype)]
    attrs = {"axes": [a - len(shape) for a in axes], "keepdims": keepdims}
    y = everywhere("qnormalize.mean", "QLinearReduceMean", operands, attrs)
    real = (operands[0].astype(np.float64) - operands[2]) * operands[1]
    want = steps(real.mean(tuple(axes), keepdims=bool(keepdims)), operands[3], operands[4])
    # Half a step, and three roundings of numbers below 2^14 steps (a scale is at most 20 times another).
    assert y.shape == want.shape and np.abs(y - want).max() <= 0.5 + 3 * 2**14 * 2.0**-24


def test_means_of_axes_that_lie_apart_take_the_reference():
    rng = np.random.default_rng(0)
    operands = [numbers(rng, np.int8, (4, 5, 6)), scale(rng), None, scale(rng)]
    attrs = {"axes": [0, 2], "keepdims": 0}
    y = everywhere("numpy", "QLinearReduceMean", operands, attrs)
    exact = operands[0].astype(float).mean((0, 2)) * operands[1] / operands[3]
    assert np.abs(np.clip(exact, -128, 127) - y).max() <= 0.5 + 1e-3


def test_long_sums_are_exact():
    x = np.full((1, 1, 1 << 20), 255, np.uint8)
    operands = [x, np.float32(0.5), np.uint8(0)]
    y = everywhere("qnormalize.mean", "QLinearGlobalAveragePool", operands)
    assert y.item() == 127.5
    y = everywhere(
        "qnormalize.mean", "QLinearReduceMean", [x.reshape(-1, 2), *operands[1:]], {"axes": [0], "keepdims": 0}
    )
    assert y.tolist() == [127.5, 127.5]


def test_what_does_not_fit_is_refused():
    x, s, z = np.zeros((1, 2, 3), np.uint8), np.float32(1), np.uint8(0)
    with pytest.raises(ShapeError, match="channels_last"):
        run_node("QLinearGlobalAveragePool", [x, s, z, s, z], {"channels_last": 1}, domain="com.microsoft")
    with pytest.raises(ShapeError, match="axis 3"):
        run_node("QLinearReduceMean", [x, s, z, s, z], {"axes": [3], "keepdims": 1}, domain="com.microsoft")
