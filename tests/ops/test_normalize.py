"""Normalizations: ONNX's cases, and the drivers against float64 with derived error bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_cases import check_node, node_cases
from support import by_reference, compiled, run_node

from evort.errors import ShapeError

CASES = node_cases(
    "BatchNormalization InstanceNormalization LayerNormalization GroupNormalization RMSNormalization "
    "LpNormalization LRN MeanVarianceNormalization"
)
U = 2.0**-24  # unit of rounding of float32
RNG = np.random.default_rng


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_onnx_cases(case, device):
    check_node(case, device)


def f32(x):
    return np.asarray(x, np.float32)


def affine_bound(y, z, scale, bias):
    """What (x - mean) / deviation * scale + bias may be off, z being the standardized value.

    The mean is off by at most 20 U of the mean deviation, the variance by 20 U of itself and its root by half of that;
    x - mean, the inverse, two products and the sum are rounded.
    """
    return U * (np.abs(scale) * (21 + 15 * np.abs(z)) + 2 * np.abs(bias) + np.abs(y))


ACTIVATIONS = [{}, {"activation": "LeakyRelu", "activation_alpha": 0.2}, {"activation": "Relu"}]


@st.composite
def images(draw):
    """Shape (N, C, ...), a mean that may be far larger than the deviation, a seed."""
    spatial = draw(st.lists(st.integers(1, 9), max_size=3))
    if draw(st.booleans()):
        spatial.append(draw(st.sampled_from([64, 2048, 2049, 5000])))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 6)), *spatial)
    return shape, draw(st.sampled_from([0.0, -3.0, 1e3, 1e5])), draw(st.integers(0, 2**32 - 1))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(images(), st.sampled_from(ACTIVATIONS))
def test_batch_normalization(case, activation):
    shape, offset, seed = case
    rng, c = RNG(seed), shape[1]
    x = f32(rng.standard_normal(shape) + offset)
    scale, bias = f32(rng.standard_normal(c)), f32(rng.standard_normal(c))
    mean, var = f32(rng.standard_normal(c) + offset), f32(rng.uniform(0, 4, c))
    attrs = {"epsilon": 1e-3, **activation}
    (want,) = by_reference("BatchNormalization", [x, scale, bias, mean, var], attrs)
    full = (c,) + (1,) * (len(shape) - 2)
    factor = scale / np.sqrt(var.astype(np.float64) + 1e-3)
    product = (x.astype(np.float64) - mean.reshape(full)) * factor.reshape(full)
    # x - mean, the factor, the product and the sum are rounded.
    bound = U * (3.1 * np.abs(product) + np.abs(product + bias.reshape(full)))
    for (y,) in compiled("normalize.batch_f32", "BatchNormalization", [x, scale, bias, mean, var], attrs):
        assert np.all(np.abs(y - want) <= bound)


def test_batch_normalization_of_a_vector():
    x = f32(np.arange(5))
    one = f32([2.0])
    for (y,) in compiled("normalize.batch_f32", "BatchNormalization", [x, one, one, one, one], {"epsilon": 0.0}):
        np.testing.assert_allclose(y, (x - 2) / np.sqrt(2) * 2 + 2, rtol=4 * U, atol=4 * U)


def test_batch_normalization_in_training():
    rng = RNG(0)
    x = f32(rng.standard_normal((4, 3, 5)) + 2)
    params = [f32(rng.uniform(1, 2, 3)) for _ in range(4)]
    attrs = {"training_mode": 1, "momentum": 0.75}
    y, mean, var = run_node("BatchNormalization", [x, *params], attrs, 3)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mean, 0.75 * params[2] + 0.25 * wide.mean((0, 2)), rtol=2 * U)
    np.testing.assert_allclose(var, 0.75 * params[3] + 0.25 * wide.var((0, 2)), rtol=2 * U)
    np.testing.assert_allclose(((y - params[1][:, None]) / params[0][:, None]).mean((0, 2)), 0, atol=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(images(), st.sampled_from(ACTIVATIONS), st.booleans())
def test_instance_and_group_normalization(case, activation, grouped):
    shape, offset, seed = case
    rng, c = RNG(seed), shape[1]
    x = f32(rng.standard_normal(shape) + offset)
    scale, bias = f32(rng.standard_normal(c)), f32(rng.standard_normal(c))
    groups = int(rng.choice([g for g in range(1, c + 1) if c % g == 0])) if grouped else c
    op, attrs = ("GroupNormalization", {"num_groups": groups}) if grouped else ("InstanceNormalization", {})
    attrs = {**attrs, "epsilon": 1e-5, **activation}
    (want,) = by_reference(op, [x, scale, bias], attrs)
    rows = x.astype(np.float64).reshape(shape[0], groups, -1)
    z = (rows - rows.mean(2, keepdims=True)) / np.sqrt(rows.var(2, keepdims=True) + 1e-5)
    full = (c,) + (1,) * (len(shape) - 2)
    bound = affine_bound(want, z.reshape(shape), scale.reshape(full), bias.reshape(full))
    for (y,) in compiled("normalize.group_f32", op, [x, scale, bias], attrs):
        assert np.all(np.abs(y - want) <= bound)


@st.composite
def rows(draw):
    lead = draw(st.lists(st.integers(1, 4), max_size=2))
    last = draw(st.lists(st.one_of(st.integers(1, 20), st.sampled_from([33, 64, 768])), min_size=1, max_size=2))
    return tuple(lead), tuple(last), draw(st.sampled_from([0.0, 50.0, 1e5])), draw(st.integers(0, 2**32 - 1))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows(), st.sampled_from(ACTIVATIONS), st.booleans(), st.booleans())
def test_layer_normalization(case, activation, biased, inner_scale):
    lead, last, offset, seed = case
    rng = RNG(seed)
    x = f32(rng.standard_normal(lead + last) + offset)
    own = last[1:] if inner_scale and len(last) > 1 and last[1] > 1 else last
    scale = f32(rng.standard_normal((1,) * len(lead) + own if len(own) == len(last) else own))
    bias = f32(rng.standard_normal(last)) if biased else None
    attrs = {"axis": -len(last), "epsilon": 1e-5, **activation}
    want = by_reference("LayerNormalization", [x, scale, bias], attrs, 3)
    axes = tuple(range(len(lead), x.ndim))
    wide = x.astype(np.float64)
    z = (wide - wide.mean(axes, keepdims=True)) / np.sqrt(wide.var(axes, keepdims=True) + 1e-5)
    for y, mean, inverse in compiled("normalize.layer_f32", "LayerNormalization", [x, scale, bias], attrs, 3):
        # One rounding more than elsewhere: what the float32 mean is off is added to the standardized value.
        shift = np.abs(scale) * U * (1 + np.abs(z))
        assert np.all(np.abs(y - want[0]) <= affine_bound(want[0], z, scale, 0 if bias is None else bias) + shift)
        deviation = np.sqrt(wide.var(axes, keepdims=True))
        assert mean.dtype == np.float32
        assert np.all(np.abs(mean - wide.mean(axes, keepdims=True)) <= U * (20 * deviation + np.abs(mean)))
        np.testing.assert_allclose(inverse, 1 / np.sqrt(deviation**2 + 1e-5), rtol=12 * U)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(rows(), st.sampled_from(ACTIVATIONS))
def test_rms_normalization(case, activation):
    lead, last, offset, seed = case
    rng = RNG(seed)
    x, scale = f32(rng.standard_normal(lead + last) + offset), f32(rng.standard_normal(last))
    attrs = {"axis": -len(last), "epsilon": 1e-5, **activation}
    (want,) = by_reference("RMSNormalization", [x, scale], attrs)
    for (y,) in compiled("normalize.layer_f32", "RMSNormalization", [x, scale], attrs):
        # The mean square is in double; the inverse and two products are rounded.
        np.testing.assert_allclose(y, want, rtol=3.1 * U, atol=1e-44)


def test_scales_that_vary_with_the_row_run_in_numpy():
    rng = RNG(3)
    x, scale = f32(rng.standard_normal((2, 3, 4))), f32(rng.standard_normal((2, 1, 4)))
    (y,) = run_node("LayerNormalization", [x, scale], {"axis": -1})
    (want,) = by_reference("LayerNormalization", [x, scale], {"axis": -1})
    np.testing.assert_allclose(y, want, rtol=2 * U)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(images(), st.sampled_from([1, 2]), st.integers(-2, 1))
def test_lp_normalization(case, p, axis):
    shape, offset, seed = case
    x = f32(RNG(seed).standard_normal(shape) + offset)
    x[0] = 0.0
    (want,) = by_reference("LpNormalization", [x], {"p": p, "axis": axis})
    for (y,) in compiled("normalize.norm_f32", "LpNormalization", [x], {"p": p, "axis": axis}):
        # L1: the sum (20 U) and its rounding; both: the norm's rounding, the quotient's.
        assert np.all(np.abs(y - want) <= np.abs(want) * U * (23 if p == 1 else 2.1))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(images(), st.integers(1, 8), st.sampled_from([0.75, 0.5, 1.3]))
def test_lrn(case, size, beta):
    shape, offset, seed = case
    x = f32(RNG(seed).standard_normal(shape) + min(offset, 1e3))
    attrs = {"size": size, "alpha": 0.1, "beta": beta, "bias": 2.0}
    (want,) = by_reference("LRN", [x], attrs)
    for (y,) in compiled("normalize.lrn_f32", "LRN", [x], attrs):
        # t: `size` squares, sums and the affine map, (size + 4) U; t^beta: beta (size + 4) U, the rounding of
        # beta log t (below 20), exp and log to about an ulp (2 U) each, or three roots; the quotient.
        assert np.all(np.abs(y - want) <= np.abs(want) * U * (beta * (size + 4) + 20 * beta + 10))


@pytest.mark.parametrize("op", ["InstanceNormalization", "LayerNormalization"])
def test_not_a_number_stays_in_its_row(op):
    x = f32(RNG(0).standard_normal((1, 3, 40)))
    x[0, 1, 7] = np.nan
    scale = f32(np.ones(3)) if op == "InstanceNormalization" else f32(np.ones(40))
    for isa in compiled(f"normalize.{'group' if op[0] == 'I' else 'layer'}_f32", op, [x, scale, scale]):
        assert np.isnan(isa[0][0, 1]).all() and np.isfinite(isa[0][0, [0, 2]]).all()


def test_constant_rows_give_the_bias():
    x = f32(np.full((1, 2, 5000), 12345.678))
    bias = f32([0.25, -0.5])
    for (y,) in compiled("normalize.group_f32", "InstanceNormalization", [x, f32([1, 1]), bias]):
        np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None], x.shape))


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (2, 0, 4)])
def test_empty_tensors(shape):
    x, c = np.zeros(shape, np.float32), np.ones(shape[1], np.float32)
    assert run_node("BatchNormalization", [x, c, c, c, c])[0].shape == shape
    assert run_node("InstanceNormalization", [x, c, c])[0].shape == shape
    last = np.ones(shape[2], np.float32)
    assert run_node("LayerNormalization", [x, last])[0].shape == shape
    assert run_node("LpNormalization", [x])[0].shape == shape
    assert run_node("LRN", [x], {"size": 3})[0].shape == shape


X = np.ones((2, 4, 3), np.float32)
C4, C3 = np.ones(4, np.float32), np.ones(3, np.float32)


@pytest.mark.parametrize(
    "op, inputs, attrs, outputs, message",
    [
        ("BatchNormalization", [X, C4, C4, C4, C3], {}, 1, "shape \\(4,\\)"),
        ("BatchNormalization", [X, C4, C4, C4, C4], {}, 3, "training_mode"),
        ("InstanceNormalization", [X, C3, C4], {}, 1, "one number for each channel"),
        ("InstanceNormalization", [C4, C4, C4], {}, 1, "channel axis"),
        ("InstanceNormalization", [X, C4, C4], {"activation": "PRelu"}, 1, "slope"),
        ("InstanceNormalization", [X, C4, C4], {"activation": "Nope"}, 1, "unknown activation"),
        ("GroupNormalization", [X, C4, C4], {"num_groups": 3}, 1, "3 groups"),
        ("GroupNormalization", [X, C4, C4], {"num_groups": -2}, 1, "groups"),
        ("LayerNormalization", [X, C4], {}, 1, "broadcast"),
        ("LayerNormalization", [X, C3], {"axis": 3}, 1, "axis 3"),
        ("LayerNormalization", [X, C3], {"stash_type": 7}, 1, "stash_type"),
        ("RMSNormalization", [X, C4], {}, 1, "broadcast"),
        ("LpNormalization", [X], {"p": 3}, 1, "p must be"),
        ("LRN", [X], {"size": 0}, 1, "size"),
        ("MeanVarianceNormalization", [X], {"axes": [0, 3]}, 1, "axis 3"),
    ],
)
def test_what_is_wrong_is_refused(op, inputs, attrs, outputs, message):
    with pytest.raises(ShapeError, match=message):
        run_node(op, inputs, attrs, outputs)
