"""Reductions, ArgMax, CumSum and the softmax family: ONNX's cases, and the drivers against float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_cases import check_node, node_cases
from support import by_reference, compiled, node_model, run_node

from evort.errors import ShapeError, UnsupportedError

CASES = node_cases(
    "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp "
    "ReduceSumSquare ArgMax ArgMin CumSum CumProd Softmax LogSoftmax Hardmax Det"
)
U = 2.0**-24  # unit of rounding of float32
TINY = 2.0**-149
FLUSHED = 1.7e-38  # softmax gives 0 for what is smaller


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_onnx_cases(case, device):
    check_node(case, device)


shapes = st.lists(st.integers(1, 7), min_size=1, max_size=5).map(tuple)


@st.composite
def reductions(draw):
    shape = list(draw(shapes))
    if draw(st.booleans()):  # one long axis: whole vectors, blocks and their tails
        shape[draw(st.integers(0, len(shape) - 1))] = draw(st.integers(30, 700))
    axes = [i for i in range(len(shape)) if draw(st.booleans())]
    axes = [a - len(shape) if draw(st.booleans()) else a for a in axes]
    return tuple(shape), axes, draw(st.integers(0, 1)), draw(st.integers(0, 2**32 - 1))


def plain(shape, axes):
    """Whether nothing is reduced but axes of length 1, so that the planner makes a view."""
    return all(shape[a] == 1 for a in (axes or range(len(shape))))


def check_against_float64(op, x, axes, keepdims, bound):
    """bound: the largest error allowed, element by element; a function of float64 x and the exact result."""
    over = tuple(axes) or None
    feeds = [x, np.array(axes, np.int64)]
    (exact,) = by_reference(op, feeds, {"keepdims": keepdims})
    allowed = bound(x.astype(np.float64), exact, {"axis": over, "keepdims": bool(keepdims)})
    for (y,) in compiled("reduce.reduce", op, feeds, {"keepdims": keepdims}, constants=(1,)):
        assert y.dtype == np.float32 and y.shape == exact.shape
        assert np.all(np.abs(y - exact) <= allowed + TINY)


# A sum has at most 20 roundings on the way to any term, and one at the end (reduce_body.h).
BOUNDS = {
    "ReduceSum": lambda x, y, kw: 20 * U * np.sum(np.abs(x), **kw) + U * np.abs(y),
    "ReduceMean": lambda x, y, kw: 20 * U * np.mean(np.abs(x), **kw) + U * np.abs(y),
    "ReduceL1": lambda x, y, kw: 21 * U * y,
    # In double throughout: rounded once.
    "ReduceL2": lambda x, y, kw: 1.001 * U * y,
    "ReduceSumSquare": lambda x, y, kw: 1.001 * U * y,
    "ReduceProd": lambda x, y, kw: 1.001 * U * np.abs(y),
    # The sum's relative error, and the rounding of x - max by U * |x - max|, which weighs exp(x - max): at most 0.37;
    # exp is good to 1.1 units in the last place, 2.2 U; the result is rounded once.
    "ReduceLogSumExp": lambda x, y, kw: 24 * U + U * np.abs(y),
}


@pytest.mark.parametrize("op", BOUNDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(reductions())
def test_reductions_stay_within_their_error_bounds(op, case):
    shape, axes, keepdims, seed = case
    if plain(shape, axes) and op in ("ReduceSum", "ReduceMean", "ReduceProd"):
        return
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    check_against_float64(op, x, axes, keepdims, BOUNDS[op])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(reductions())
def test_log_sum_of_positive_numbers(case):
    shape, axes, keepdims, seed = case
    x = np.random.default_rng(seed).uniform(1.0, 2.0, shape).astype(np.float32)
    check_against_float64("ReduceLogSum", x, axes, keepdims, lambda x, y, kw: 20 * U + U * np.abs(y))


@pytest.mark.parametrize("shape, axis", [((3, 1_000_003), 1), ((1_000_003, 3), 0), ((5, 65537, 3), 1)])
def test_long_sums_of_cancelling_numbers(shape, axis):
    """Terms of 1e6 that cancel to noise: the bound is in terms of their magnitudes, and does not grow with length."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape)
    half = np.moveaxis(x, axis, 0)
    half[::2] += 1e6
    half[1::2] -= 1e6
    x = x.astype(np.float32)
    check_against_float64("ReduceSum", x, [axis], 1, BOUNDS["ReduceSum"])
    check_against_float64("ReduceMean", np.abs(x), [axis], 1, BOUNDS["ReduceMean"])


def test_l2_and_logsumexp_do_not_overflow_on_the_way():
    x = np.full((4, 33), 3e30, np.float32)
    for axis in (0, 1):
        for (y,) in compiled("reduce.reduce", "ReduceL2", [x, np.array([axis])], constants=(1,)):
            np.testing.assert_allclose(y, 3e30 * np.sqrt(x.shape[axis]), rtol=2 * U)
        for (y,) in compiled("reduce.reduce", "ReduceLogSumExp", [x, np.array([axis])], constants=(1,)):
            np.testing.assert_allclose(y, 3e30, rtol=2 * U)


EXTREME_TYPES = [np.float32, np.int8, np.uint8, np.bool_, np.int32, np.int64]


def numbers(rng, shape, dtype):
    """Random numbers with repeats, and now and then the extremes of the type."""
    if dtype == np.bool_:
        return rng.random(shape) < 0.5
    if dtype == np.float32:
        special = np.array([np.inf, -np.inf, np.nan, -0.0, 0.0], np.float32)
        x = rng.integers(-9, 9, shape).astype(np.float32)
        return np.where(rng.random(shape) < 0.02, rng.choice(special, shape), x)
    info = np.iinfo(dtype)
    x = rng.integers(max(info.min, -9), 9, shape).astype(dtype)
    return np.where(rng.random(shape) < 0.02, rng.choice(np.array([info.min, info.max], dtype), shape), x)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("dtype", EXTREME_TYPES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(reductions())
def test_extremes_are_exact_and_hand_nan_on(op, dtype, case):
    shape, axes, keepdims, seed = case
    if plain(shape, axes):
        return
    x = numbers(np.random.default_rng(seed), shape, dtype)
    feeds = [x, np.array(axes, np.int64)]
    (want,) = run_node(op, feeds, {"keepdims": keepdims}, device="reference")
    for (y,) in compiled("reduce.reduce", op, feeds, {"keepdims": keepdims}, constants=(1,)):
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceProd"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32, np.uint64])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(reductions())
def test_integer_sums_and_products_wrap(op, dtype, case):
    shape, axes, keepdims, seed = case
    if plain(shape, axes):
        return
    info = np.iinfo(dtype)
    x = np.random.default_rng(seed).integers(info.min, info.max, shape, dtype, endpoint=True)
    feeds = [x, np.array(axes, np.int64)]
    over = tuple(axes) or None
    want = (np.sum if op == "ReduceSum" else np.prod)(x, over, dtype, keepdims=bool(keepdims))
    for (y,) in compiled("reduce.reduce", op, feeds, {"keepdims": keepdims}, constants=(1,)):
        np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint64])
def test_rare_types_run_in_numpy(dtype):
    x = np.arange(24).reshape(2, 3, 4).astype(dtype)
    (y,) = run_node("ReduceSumSquare", [x, np.array([1])])
    np.testing.assert_array_equal(y, np.sum(x.astype(np.float64) ** 2, 1, keepdims=True).astype(dtype))


def test_means_of_integers_are_rounded_towards_zero():
    x = np.array([[-3, -4], [3, 4], [2**31 - 1, 2**31 - 1]], np.int32)
    (y,) = run_node("ReduceMean", [x, np.array([1])], {"keepdims": 0})
    assert y.tolist() == [-3, 3, 2**31 - 1]


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMax", "ReduceMean", "ReduceL1"])
def test_empty_axes_with_noop_reduce_nothing(op):
    x = np.array([[1.0, -2.0]], np.float32)
    (y,) = run_node(op, [x, np.zeros(0, np.int64)], {"noop_with_empty_axes": 1})
    np.testing.assert_array_equal(y, np.abs(x) if op == "ReduceL1" else x)
    (y,) = run_node(op, [x, None], {"noop_with_empty_axes": 0, "keepdims": 0})
    assert y.shape == ()


@pytest.mark.parametrize("axes", [[2], [-3], [0, 0], [0, -2]])
def test_wrong_axes_are_refused(axes):
    with pytest.raises(ShapeError, match=r"axis|axes"):
        run_node("ReduceSum", [np.ones((2, 3), np.float32), np.array(axes)])


def test_unsupported_types_are_refused():
    with pytest.raises(UnsupportedError, match="bool"):
        run_node("ReduceSum", [np.ones((2, 3), np.bool_), None])


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int64])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(reductions(), st.booleans())
def test_arg_finds_the_first_or_last_of_equals(op, dtype, case, last):
    shape, _, keepdims, seed = case
    x = numbers(np.random.default_rng(seed), shape, dtype)
    attrs = {"axis": seed % len(shape), "keepdims": keepdims, "select_last_index": int(last)}
    (want,) = run_node(op, [x], attrs, device="reference")
    for (y,) in compiled("reduce.arg_extreme", op, [x], attrs):
        assert y.dtype == np.int64
        np.testing.assert_array_equal(y, want)


def test_arg_of_nothing_is_refused():
    with pytest.raises(ShapeError, match="empty"):
        run_node("ArgMax", [np.zeros((2, 0), np.float32)], {"axis": 1})


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int64, np.uint32, np.uint64])
@pytest.mark.parametrize("op", ["CumSum", "CumProd"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(reductions(), st.booleans(), st.booleans())
def test_cumulative(op, dtype, case, exclusive, reverse):
    """Integers wrap as NumPy's; floats run in double, so that each result is rounded once."""
    shape, _, _, seed = case
    rng = np.random.default_rng(seed)
    if dtype == np.float32:
        x = rng.standard_normal(shape).astype(dtype)
    else:
        x = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype)
    axis = np.array(seed % len(shape) - len(shape))
    attrs = {"exclusive": int(exclusive), "reverse": int(reverse)}
    (want,) = by_reference(op, [x, axis], attrs)
    slack = 1e-13 * np.abs(x, dtype=np.float64).sum() if dtype == np.float32 and op == "CumSum" else 0
    for (y,) in compiled("reduce.cumulative", op, [x, axis], attrs, constants=(1,)):
        if dtype == np.float32:
            assert np.all(np.abs(y - want) <= 1.001 * U * np.abs(want) + slack + TINY)
        else:
            np.testing.assert_array_equal(y, want)


@st.composite
def lanes(draw):
    shape = list(draw(shapes))
    axis = draw(st.integers(0, len(shape) - 1))
    if draw(st.booleans()):
        shape[draw(st.integers(0, len(shape) - 1))] = draw(st.integers(30, 1500))
    return tuple(shape), axis - (len(shape) if draw(st.booleans()) else 0), draw(st.integers(0, 2**32 - 1))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(lanes(), st.sampled_from([1.0, 30.0]))
def test_softmax_is_accurate(case, spread):
    """Roundings: x - max (|x - max| U in the exponent), exp twice (2.2 U: here and in the sum), the sum (20 U), its
    inverse, the product."""
    shape, axis, seed = case
    x = (np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32)
    (want,) = by_reference("Softmax", [x], {"axis": axis})
    below = x.max(axis, keepdims=True) - x.astype(np.float64)
    for (y,) in compiled("reduce.softmax_f32", "Softmax", [x], {"axis": axis}):
        assert np.all(np.abs(y - want) <= want * (27 + below) * U + FLUSHED)
    (want,) = by_reference("LogSoftmax", [x], {"axis": axis})
    # x - max and the result are rounded to U of themselves, the logarithm of the sum likewise.
    for (y,) in compiled("reduce.softmax_f32", "LogSoftmax", [x], {"axis": axis}):
        assert np.all(np.abs(y - want) <= (24 + below + np.abs(want) + np.log(x.shape[axis])) * U)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [0, 1])
def test_softmax_of_extremes(op, axis):
    rows = np.array(
        [
            [1.6e38, -1.6e38, 0.0],
            [-np.inf, 1.0, 2.0],
            [-np.inf, -np.inf, -np.inf],
            [np.inf, 1.0, 2.0],
            [np.nan, 1.0, 2.0],
            [-200.0, -100.0, 0.0],
        ],
        np.float32,
    )
    x = np.ascontiguousarray(rows if axis == 1 else rows.T)
    (want,) = by_reference(op, [x], {"axis": axis})
    for (y,) in compiled("reduce.softmax_f32", op, [x], {"axis": axis}):
        np.testing.assert_allclose(y, want, rtol=1e-6, atol=FLUSHED)


def test_softmax_may_overwrite_its_input():
    """In a chain the planner gives both the same memory."""
    from evort.graph import Node
    from evort.session import Session

    x = np.random.default_rng(0).standard_normal((5, 300)).astype(np.float32)
    for axis in (0, 1):
        model = node_model("Softmax", [x], {"axis": axis})
        graph = model.graph
        graph.nodes.append(Node("Softmax", ["out0"], ["out1"], {"axis": 1 - axis}))
        graph.nodes.append(Node("LogSoftmax", ["out1"], ["out2"], {"axis": axis}))
        graph.outputs = ["out2"]
        session = Session(model)
        got = session.run({"in0": x})["out2"]
        want = session_reference(model, x)
        np.testing.assert_allclose(got, want, atol=1e-5)


def session_reference(model, x):
    from evort.backends.reference import interpret

    return interpret(model.graph, {"in0": x})[0]


@pytest.mark.parametrize(
    "op, attrs",
    [
        ("ReduceSum", {}),
        ("ReduceMax", {}),
        ("Softmax", {"axis": 1}),
        ("LogSoftmax", {"axis": 0}),
        ("Hardmax", {"axis": 1}),
        ("CumSum", {}),
    ],
)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty_tensors(op, attrs, shape):
    inputs = [np.zeros(shape, np.float32)]
    if op in ("ReduceSum", "ReduceMax", "CumSum"):
        inputs.append(np.array([1]) if op != "CumSum" else np.array(1))
    (y,) = run_node(op, inputs, attrs)
    (want,) = run_node(op, inputs, attrs, device="reference")
    np.testing.assert_array_equal(y, want)
    if op == "ReduceMax" and shape == (3, 0):
        assert np.all(y == -np.inf)


def test_det_of_something_not_square_is_refused():
    with pytest.raises(ShapeError, match="square"):
        run_node("Det", [np.ones((2, 3), np.float32)])
