"""Softmax and normalizations of quantized tensors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qsupport import by_onnxruntime, everywhere, numbers, scale, zero
from support import drivers_of, node_model, run_node

from evort._kernels import core
from evort.errors import ShapeError
from evort.ops.qoperands import Quantity
from evort.session import Session
from evort.types import DType

SEEDS = st.integers(0, 2**32 - 1)
BYTES = st.sampled_from([np.uint8, np.int8])
LENGTHS = st.one_of(st.integers(1, 20), st.sampled_from([255, 256, 257, 1000]))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(LENGTHS, st.integers(0, 2), st.sampled_from([11, 13]), BYTES, st.booleans(), SEEDS)
def test_softmax(n, axis, opset, dtype, to_float, seed):
    rng = np.random.default_rng(seed)
    shape = [3, 2, 4]
    shape[axis] = n
    low = 0 if dtype == np.uint8 else -128
    operands = [numbers(rng, dtype, tuple(shape)), scale(rng), zero(rng, dtype)]
    out = [np.float32(1 / 256), np.array(low, dtype)]
    attrs = {"axis": axis - 3 if opset == 13 else axis, "opset": opset}
    y = everywhere("qnormalize.softmax", "QLinearSoftmax", operands if to_float else operands + out, attrs)
    if to_float:
        x = operands[0].astype(np.float64) * operands[1]
        x = x if opset == 13 else x.reshape(*shape[:axis], -1)
        x = np.exp(x - x.max(axis, keepdims=True))
        count = x.shape[axis]
        want = (x / x.sum(axis, keepdims=True)).reshape(shape)
        # Each exponential is off by up to 2^-24 of the largest, of which the sum has at least one.
        assert np.abs(y - want).max() <= (count + 2) * 2.0**-24 + 4 * 2.0**-24
    elif opset == 13:
        assert np.abs(y.astype(int) - by_onnxruntime("QLinearSoftmax", operands + out, attrs)).max() <= 1


def test_softmax_of_other_types_takes_the_reference():
    rng = np.random.default_rng(0)
    x = numbers(rng, np.int16, (5, 40))
    y = everywhere(
        "numpy", "QLinearSoftmax", [x, np.float32(1e-4), np.int16(0), np.float32(1 / 256), np.uint8(0)], {"opset": 13}
    )
    real = np.exp(x * 1e-4)
    assert np.abs(y / 256 - real / real.sum(1, keepdims=True)).max() <= 0.5 / 256 + 1e-6


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 6),
    LENGTHS,
    st.sampled_from([np.uint8, np.int8, np.int16, np.float32]),
    st.sampled_from([np.uint8, np.int8, np.int16, np.float32]),
    st.booleans(),
    SEEDS,
)
def test_layer_normalization(rows, n, kind, out, has_bias, seed):
    rng = np.random.default_rng(seed)
    integer = np.int8 if kind == np.float32 else kind
    x = rng.standard_normal((rows, n)).astype(np.float32) if kind == np.float32 else numbers(rng, kind, (rows, n))
    weight = rng.standard_normal(n).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32) if has_bias else None
    unit = [None, None] if out == np.float32 else [np.float32(0.03), zero(rng, out)]
    operands = [x, np.float32(0.02), zero(rng, integer), weight, bias, *unit]
    y = everywhere("qnormalize.layer", "QLinearLayerNormalization", operands, {"epsilon": 1e-5}, "evort")
    assert y.dtype == out
    if kind == np.float32 or out == np.int16:
        return
    real = (x.astype(np.float64) - operands[2]) * np.float64(0.02)
    centred = real - real.mean(1, keepdims=True)
    want = centred / np.sqrt(np.square(centred).mean(1, keepdims=True) + 1e-5) * weight + (0 if bias is None else bias)
    if out == np.float32:
        # Normalized numbers are below sqrt(n) <= 32; their mean, taken off in float32, is off by 2^-25 of at most 2^16
        # steps, which the smallest deviation, sqrt(1e-5) / 0.02 steps, makes 16 times larger.
        np.testing.assert_allclose(y, want, atol=32 * 5 * 8 * 2.0**-24 + 5 * 2.0**-9, rtol=0)
    else:
        info = np.iinfo(out)
        steps = np.clip(want / np.float64(np.float32(0.03)) + unit[1], info.min, info.max)
        assert np.abs(steps - y).max() <= 0.5 + 0.35


def test_rows_of_one_number_many_times():
    x = np.full((2, 64), 200, np.uint8)
    ones = np.ones(64, np.float32)
    y = everywhere(
        "qnormalize.layer", "QLinearLayerNormalization", [x, np.float32(0.1), np.uint8(3), ones], {}, "evort"
    )
    assert (y == 0).all()


def test_what_does_not_fit_is_refused():
    x, s, z = np.zeros((2, 3), np.uint8), np.float32(1), np.uint8(0)
    with pytest.raises(ShapeError, match="shape \\[3\\]"):
        run_node("QLinearLayerNormalization", [x, s, z, np.ones(2, np.float32)], domain="evort")
    with pytest.raises(ShapeError, match="axis 2"):
        run_node("QLinearSoftmax", [x, s, z, s, z], {"axis": 2, "opset": 13}, domain="com.microsoft")


@pytest.mark.parametrize("isa", core.available_isas())
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("shape", [(2, 3, 7), (1, 2, 70, 61), (2, 4, 3, 5, 7), (0, 2, 3)])
@pytest.mark.parametrize("attrs", [{}, {"activation": "LeakyRelu", "activation_alpha": 0.25, "epsilon": 1e-3}], ids=str)
def test_instance_normalization(isa, threads, dtype, shape, attrs):
    """Bytes of what the float operator gives on the same instruction set; NaN is the smallest."""
    rng = np.random.default_rng(len(shape))
    x = rng.normal(3, 2, shape).astype(np.float32)
    if x.size:
        x[0, 0, 0] = np.nan
    operands = [x, *(rng.normal(0, 1, shape[1]).astype(np.float32) for _ in range(2))]
    q = Quantity(DType.UINT8 if dtype == np.uint8 else DType.INT8, np.float32(0.02), zero(rng, dtype))
    core.select_isa(isa)
    try:
        inputs = [*operands, q.scale, q.zero_point]
        model = node_model("QLinearInstanceNormalization", inputs, attrs, 1, "evort", (1, 2, 3, 4))
        session = Session(model, threads=threads)
        (got,) = session.run({"in0": x}).values()
        assert not x.size or drivers_of(session) == ["normalize.group_f32"]
        (real,) = run_node("InstanceNormalization", operands, attrs, device="cpu")
        np.testing.assert_array_equal(got, q.quantized(real), strict=True)
        (same,) = run_node("QLinearInstanceNormalization", operands, attrs, domain="evort", device="cpu")
        np.testing.assert_array_equal(same, real)
    finally:
        core.select_isa()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from([(2, 3, 7), (1, 2, 70, 61), (2, 4, 3, 5, 7), (1, 3, 1), (1, 1, 300, 301)]),
    BYTES,
    st.sampled_from([np.uint8, np.int8, np.float32]),
    st.booleans(),
    st.sampled_from([{}, {"activation": "LeakyRelu", "activation_alpha": 0.25, "epsilon": 1e-3}]),
    SEEDS,
)
def test_instance_normalization_of_bytes(shape, dtype, out, each, attrs, seed):
    """A scale for each channel decides only what epsilon is beside the variance; constant channels give B."""
    rng = np.random.default_rng(seed)
    x = numbers(rng, dtype, shape)
    x[0, 0] = rng.choice([np.iinfo(dtype).min, np.iinfo(dtype).max])
    unit = rng.uniform(1e-3, 0.1, shape[1] if each else ()).astype(np.float32)
    weights = [rng.normal(0, 1, shape[1]).astype(np.float32) for _ in range(2)]
    y = [None, None] if out == np.float32 else [np.float32(0.02), zero(rng, out)]
    operands = [x, *weights, *y, unit, zero(rng, dtype)]
    got = everywhere("qnormalize.instance", "QLinearInstanceNormalization", operands, attrs, "evort")
    units = np.broadcast_to(unit, shape[1:2]).reshape(-1, *(1,) * (len(shape) - 2))
    real = (x.astype(np.float64) - operands[6]) * units
    (want,) = run_node("InstanceNormalization", [real.astype(np.float32), *weights], attrs, device="reference")
    if out == np.float32:
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)  # `real` is rounded before the mean is taken
    else:
        q = Quantity(DType.UINT8 if out == np.uint8 else DType.INT8, *y)
        assert np.abs(got.astype(int) - q.quantized(want)).max() <= 1


def test_instance_normalization_needs_a_scale_for_integers():
    x, c, s, z = np.zeros((1, 3, 4), np.uint8), np.ones(3, np.float32), np.float32(1), np.uint8(0)
    for operands, what in (
        ([x, c, c], "come with an input of integers"),
        ([x.astype(np.float32), c, c, None, None, s, z], "come with an input of integers"),
        ([x, c, c, None, None, np.ones(2, np.float32), z], "one for each of 3 channels"),
        ([x, c, c, None, None, s, np.int8(0)], "element type"),
    ):
        with pytest.raises(ShapeError, match=what):
            run_node("QLinearInstanceNormalization", operands, domain="evort")
