"""Pools: ONNX's cases, and the drivers against the NumPy reference over odd windows."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx_cases import check_node, node_cases
from support import by_reference, compiled, import_onnxruntime, run_node

from evort.errors import ExecutionError, ShapeError

CASES = node_cases("MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool MaxUnpool")
U = 2.0**-24  # unit of rounding of float32


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_onnx_cases(case, device):
    check_node(case, device)


@st.composite
def pools(draw):
    """(shape, attributes, seed): one to three spatial axes, windows that may hang over the edges."""
    n = draw(st.integers(1, 3))
    spatial = [draw(st.integers(1, 12)) for _ in range(n)]
    spatial[-1] = draw(st.one_of(st.integers(1, 12), st.integers(13, 70)))
    kernel = [draw(st.integers(1, 4)) for _ in range(n)]
    attrs = {
        "kernel_shape": kernel,
        "strides": [draw(st.integers(1, 4)) for _ in range(n)],
        "dilations": [draw(st.integers(1, 3)) for _ in range(n)],
        "ceil_mode": draw(st.integers(0, 1)),
    }
    auto = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto == "NOTSET":
        attrs["pads"] = [draw(st.integers(0, 3)) for _ in range(2 * n)]
    else:
        attrs["auto_pad"] = auto
    pads = attrs.get("pads", [0] * (2 * n))
    for i in range(n):
        extent = (kernel[i] - 1) * attrs["dilations"][i] + 1
        assume(auto.startswith("SAME") or spatial[i] + pads[i] + pads[n + i] >= extent)
    return (draw(st.integers(1, 2)), draw(st.integers(1, 3)), *spatial), attrs, draw(st.integers(0, 2**32 - 1))


common = pytest.mark.parametrize(
    "kernel, strides, pads",
    [
        ([2, 2], [2, 2], [0, 0, 0, 0]),
        ([3, 3], [2, 2], [1, 1, 1, 1]),
        ([3, 3], [1, 1], [1, 1, 1, 1]),
        ([3, 3], [3, 3], [0, 0, 0, 0]),
        ([5, 5], [1, 1], [2, 2, 2, 2]),
        ([3, 2], [3, 2], [0, 0, 0, 0]),
        ([7, 7], [4, 4], [3, 3, 3, 3]),
    ],
)


def numbers(rng, shape, dtype):
    if dtype == np.float32:
        x = rng.integers(-9, 9, shape).astype(np.float32)
        return np.where(rng.random(shape) < 0.02, rng.choice(np.float32([np.inf, -np.inf, np.nan, -0.0]), shape), x)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def check_max(shape, attrs, seed, dtype):
    check_max_of(numbers(np.random.default_rng(seed), shape, dtype), attrs)


def check_max_of(x, attrs):
    (want,) = run_node("MaxPool", [x], attrs, device="reference")
    for (y,) in compiled("pooling.pool", "MaxPool", [x], attrs):
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8, np.int16])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(pools())
def test_max_pool_is_exact(dtype, case):
    check_max(*case, dtype)


@pytest.mark.parametrize("width", [7, 8, 9, 10, 13, 15, 16, 17, 18, 28, 35])
@pytest.mark.parametrize("height", [1, 2, 8, 9])
def test_windows_side_by_side(width, height):
    attrs = {"kernel_shape": [min(height, 2), 2], "strides": [2, 2]}
    x = np.random.default_rng(0).standard_normal((2, 3, height, width), np.float32)
    check_max_of(x, attrs)  # without infinities and NaN, which take another way
    check_max_of(x, {**attrs, "ceil_mode": 1, "activation": "Relu"})
    for seed in range(4):
        check_max((2, 3, height, width), attrs, seed, np.float32)


@common
@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8, np.int16])
def test_common_max_pools(kernel, strides, pads, dtype):
    check_max((2, 3, 37, 53), {"kernel_shape": kernel, "strides": strides, "pads": pads}, 0, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8, np.int16])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(pools(), st.integers(0, 1))
def test_positions_of_the_maximum(dtype, case, order):
    shape, attrs, seed = case
    x = numbers(np.random.default_rng(seed), shape, dtype)
    attrs = {**attrs, "storage_order": order}
    want = run_node("MaxPool", [x], attrs, 2, device="reference")
    for y, index in compiled("pooling.max_with_indices", "MaxPool", [x], attrs, 2):
        np.testing.assert_array_equal(y, want[0])
        np.testing.assert_array_equal(index, want[1])
        planes = x.reshape(-1, *shape[2:])
        flat = np.concatenate([p.ravel("F" if order else "C") for p in planes])
        inside = index >= 0
        np.testing.assert_array_equal(flat[index[inside]], y[inside])


def check_average(shape, attrs, seed):
    x = (np.random.default_rng(seed).standard_normal(shape) + 1).astype(np.float32)
    (want,) = by_reference("AveragePool", [x], attrs)
    (size,) = by_reference("AveragePool", [np.abs(x)], attrs)
    # At most as many roundings as the window has elements, and that of the quotient.
    bound = U * ((np.prod(attrs["kernel_shape"]) - 1) * size + np.abs(want)) + 1e-45
    for (y,) in compiled("pooling.pool", "AveragePool", [x], attrs):
        assert y.dtype == np.float32 and np.all(np.abs(y - want) <= bound)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(pools(), st.integers(0, 1))
def test_average_pool(case, include):
    shape, attrs, seed = case
    check_average(shape, {**attrs, "count_include_pad": include}, seed)


@common
@pytest.mark.parametrize("include", [0, 1])
def test_common_average_pools(kernel, strides, pads, include):
    attrs = {"kernel_shape": kernel, "strides": strides, "pads": pads, "count_include_pad": include, "ceil_mode": 1}
    check_average((2, 3, 37, 53), attrs, 0)


def test_the_average_of_a_constant_is_the_constant():
    x = np.full((1, 1, 9, 9), 0.1, np.float32)
    attrs = {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]}
    for (y,) in compiled("pooling.pool", "AveragePool", [x], attrs):
        np.testing.assert_array_equal(y, np.float32(0.1))


@pytest.mark.parametrize("p", [1, 2])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(pools())
def test_lp_pool(p, case):
    shape, attrs, seed = case
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    attrs = {**attrs, "p": p}
    (want,) = by_reference("LpPool", [x], attrs)
    # The powers, their sums (halved by the root), the root.
    for (y,) in compiled("pooling.pool", "LpPool", [x], attrs):
        assert np.all(np.abs(y - want) <= np.abs(want) * U * (np.prod(attrs["kernel_shape"]) + 2))


def test_other_powers_run_in_numpy():
    x = np.random.default_rng(0).standard_normal((1, 2, 6)).astype(np.float32)
    (y,) = run_node("LpPool", [x], {"kernel_shape": [6], "p": 3})
    np.testing.assert_allclose(y, (np.abs(x) ** 3).sum(2, keepdims=True) ** (1 / 3), rtol=1e-6)
    np.testing.assert_allclose(run_node("GlobalLpPool", [x], {"p": 3})[0], y, rtol=1e-6)


@pytest.mark.parametrize(
    "op, attrs", [("MaxPool", {}), ("AveragePool", {}), ("AveragePool", {"count_include_pad": 1}), ("LpPool", {})]
)
@pytest.mark.parametrize("activation", ["Relu", "HardSwish", "Sigmoid"])
def test_an_activation_follows(op, attrs, activation):
    x = np.random.default_rng(0).standard_normal((1, 3, 9, 40)).astype(np.float32)
    attrs = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], **attrs, "activation": activation}
    (want,) = by_reference(op, [x], attrs)
    for (y,) in compiled("pooling.pool", op, [x], attrs):
        np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 4, 13, 17), (1, 64, 7, 7), (2, 1, 3, 4, 5), (1, 1, 1000)])
def test_global_pools(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    axes, wide = tuple(range(2, x.ndim)), x.astype(np.float64)
    for (y,) in compiled("reduce.reduce", "GlobalAveragePool", [x]):
        # The bound of ReduceMean.
        bound = U * (20 * np.abs(wide).mean(axes, keepdims=True) + np.abs(y))
        assert np.all(np.abs(y - wide.mean(axes, keepdims=True)) <= bound)
    for (y,) in compiled("reduce.reduce", "GlobalMaxPool", [x]):
        np.testing.assert_array_equal(y, x.max(axes, keepdims=True))
    for (y,) in compiled("reduce.reduce", "GlobalLpPool", [x]):
        np.testing.assert_allclose(y, np.sqrt(np.square(wide).sum(axes, keepdims=True)), rtol=1.1 * U)


def test_unpool_undoes_pool():
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 6)).astype(np.float32)
    attrs = {"kernel_shape": [2, 2], "strides": [2, 2]}
    y, index = run_node("MaxPool", [x], attrs, 2)
    (undone,) = run_node("MaxUnpool", [y, index], attrs)
    np.testing.assert_array_equal(undone, np.where(np.isin(np.arange(x.size).reshape(x.shape), index), x, 0))
    (larger,) = run_node("MaxUnpool", [y, index, np.array([2, 3, 9, 7])], attrs)
    np.testing.assert_array_equal(larger[:, :, :8, :6], undone)
    assert not larger[:, :, 8:].any() and not larger[..., 6:].any()


def test_unpool_refuses_wrong_positions():
    x = np.ones((1, 1, 1, 2), np.float32)
    attrs = {"kernel_shape": [2, 2], "strides": [2, 2]}
    with pytest.raises(ExecutionError, match="outside"):
        run_node("MaxUnpool", [x, np.array([[[[0, 8]]]])], attrs)
    with pytest.raises(ShapeError, match="extend"):
        run_node("MaxUnpool", [x, np.array([[[[0, 7]]]]), np.array([1, 1, 2, 3])], attrs)


def test_regions_of_interest_as_onnxruntime():
    import onnx

    runtime = import_onnxruntime()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 11, 13)).astype(np.float32)
    corners = np.sort(rng.uniform(-3, 30, (9, 2, 2)), 1).reshape(9, 4)  # some reach outside the image
    rois = np.concatenate([rng.integers(0, 2, (9, 1)), corners], 1).astype(np.float32)
    attrs = {"pooled_shape": [3, 2], "spatial_scale": 0.5}
    node = onnx.helper.make_node("MaxRoiPool", ["x", "rois"], ["y"], **attrs)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "g", [info("x", 1, x.shape), info("rois", 1, rois.shape)], [info("y", 1, None)]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"x": x, "rois": rois})
    np.testing.assert_array_equal(run_node("MaxRoiPool", [x, rois], attrs)[0], want)
    for wrong in ([2, 0, 0, 1, 1], [0, np.nan, 0, 1, 1], [0, 0, 0, np.inf, 1]):
        with pytest.raises(ExecutionError, match="region"):
            run_node("MaxRoiPool", [x, np.array([wrong], np.float32)], attrs)


X = np.ones((1, 2, 5, 5), np.float32)


@pytest.mark.parametrize(
    "op, x, attrs, message",
    [
        ("MaxPool", X, {"kernel_shape": [2]}, "kernel_shape has 1 numbers, expected 2"),
        ("MaxPool", X, {"kernel_shape": [2, 0]}, "at least 1"),
        ("MaxPool", X, {"kernel_shape": [2, 1 << 40]}, "below 2"),
        ("MaxPool", X, {"kernel_shape": [2, 2], "strides": [0, 1]}, "strides"),
        ("MaxPool", X, {"kernel_shape": [2, 2], "dilations": [1, -1]}, "dilations"),
        ("MaxPool", X, {"kernel_shape": [2, 2], "pads": [0, 0, 0, -1]}, "pads"),
        ("MaxPool", X, {"kernel_shape": [2, 2], "pads": [0, 0]}, "pads has 2"),
        ("MaxPool", X, {"kernel_shape": [6, 2]}, "does not fit"),
        ("MaxPool", X, {"kernel_shape": [2, 2], "auto_pad": "SAME"}, "auto_pad"),
        ("MaxPool", X, {"kernel_shape": [2, 2], "storage_order": 2}, "storage_order"),
        ("MaxPool", X, {"kernel_shape": [2, 2], "activation": "PRelu"}, "slope"),
        ("MaxPool", X[0, 0], {"kernel_shape": [2]}, "spatial axis"),
        ("MaxPool", X.astype(np.int8), {"kernel_shape": [2, 2], "activation": "Relu"}, "floats"),
        ("LpPool", X, {"kernel_shape": [2, 2], "p": 0}, "p must be"),
        ("GlobalMaxPool", np.ones((1, 2, 0, 3), np.float32), {}, "without pixels"),
        ("GlobalAveragePool", X[0, 0], {}, "spatial axis"),
    ],
)
def test_what_is_wrong_is_refused(op, x, attrs, message):
    with pytest.raises(ShapeError, match=message):
        run_node(op, [x], attrs)


def test_an_absurd_window_costs_no_time():
    """Only the elements that exist are visited, whatever the attributes say."""
    x = np.ones((1, 1, 3, 3), np.float32)
    big = (1 << 30) + 1
    attrs = {"kernel_shape": [big, big], "pads": [big - 3] * 4, "strides": [1 << 29, 1 << 29]}
    for op in ("AveragePool", "MaxPool"):
        for (y,) in compiled("pooling.pool", op, [x], attrs):
            assert set(y.ravel().tolist()) <= {1.0, 0.0, -np.inf}


def test_no_images():
    x = np.zeros((0, 2, 5, 5), np.float32)
    assert run_node("MaxPool", [x], {"kernel_shape": [2, 2]})[0].shape == (0, 2, 4, 4)
    assert run_node("GlobalAveragePool", [x])[0].shape == (0, 2, 1, 1)
