"""TopK, NonMaxSuppression, Unique, NonZero: ONNX's cases, the driver, onnxruntime where the choice of boxes counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_cases import check_node, node_cases
from support import compiled, import_onnxruntime, run_node

from evort.errors import ShapeError
from evort.types import DType

CASES = node_cases("TopK", "NonMaxSuppression", "Unique", "NonZero")


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_onnx_cases(case, device):
    check_node(case, device)


def numbers(rng, shape, dtype, distinct):
    """Random numbers with repeats, some the extremes of the type."""
    if dtype == np.float32:
        special = np.array([np.inf, -np.inf, np.nan, -0.0, 0.0], np.float32)
        x = rng.integers(-distinct, distinct, shape).astype(np.float32) / 3
    else:
        special = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max], dtype)
        x = rng.integers(-distinct, distinct, shape).astype(dtype)
    return np.where(rng.random(shape) < 0.05, rng.choice(special, shape), x)


def check_top_k(x, k, axis, largest):
    attrs = {"axis": axis, "largest": largest}
    inputs = [x, np.array([k])]
    want = run_node("TopK", inputs, attrs, 2, device="reference")
    for values, index in compiled("search.top_k", "TopK", inputs, attrs, 2, constants=(1,)):
        assert values.dtype == x.dtype and index.dtype == np.int64
        np.testing.assert_array_equal(values, want[0])
        np.testing.assert_array_equal(index, want[1])


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int64])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_top_k(dtype, data):
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    shape[axis] = data.draw(st.integers(1, 600))
    k = data.draw(st.one_of(st.just(1), st.just(shape[axis]), st.integers(1, shape[axis])))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    check_top_k(
        numbers(rng, shape, dtype, data.draw(st.sampled_from([3, 10**6]))), k, axis, data.draw(st.integers(0, 1))
    )


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
@pytest.mark.parametrize("largest", [0, 1])
def test_top_k_of_sorted_rows(dtype, largest):
    """The worst case of the heap."""
    x = np.arange(5000).astype(dtype)
    check_top_k(np.stack([x, x[::-1]]), 100, 1, largest)


def by_sorting(x, k, largest):
    """Rows of indices, by Python's own stable sort."""
    rows = [sorted(range(len(row)), key=lambda i: -row[i] if largest else row[i])[:k] for row in x.tolist()]
    return np.array(rows)


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8, np.uint16, np.float64])
@pytest.mark.parametrize("largest", [0, 1])
def test_equals_keep_their_order(dtype, largest):
    x = np.random.default_rng(0).integers(0, 5, (4, 50)).astype(dtype)
    values, index = run_node("TopK", [x, np.array([20])], {"largest": largest}, 2)
    want = by_sorting(x, 20, largest)
    np.testing.assert_array_equal(index, want)
    np.testing.assert_array_equal(values, np.take_along_axis(x, want, 1))


@pytest.mark.parametrize("k", [[-1], [4], [1, 1]])
def test_wrong_k_is_refused(k):
    with pytest.raises(ShapeError, match="K must be"):
        run_node("TopK", [np.ones((2, 3), np.float32), np.array(k)], {}, 2)


def test_top_0():
    values, index = run_node("TopK", [np.ones((2, 3), np.float32), np.array([0])], {}, 2)
    assert values.shape == index.shape == (2, 0)


@pytest.mark.parametrize("centred", [0, 1])
@pytest.mark.parametrize("most, overlap, least", [(5, 0.3, 0.4), (100, 0.0, None), (100, 0.7, 0.0), (0, 0.5, 0.1)])
def test_boxes_as_onnxruntime(centred, most, overlap, least):
    import onnx

    runtime = import_onnxruntime()
    rng = np.random.default_rng(1)
    boxes = rng.uniform(0, 10, (2, 60, 4)).astype(np.float32)
    boxes[:, ::7] = boxes[:, 1::7][:, : boxes[:, ::7].shape[1]]  # identical boxes
    boxes[:, 5, 2:] = boxes[:, 5, :2] if not centred else 0  # a box without area
    scores = (rng.integers(0, 20, (2, 3, 60)) / 20).astype(np.float32)  # with equal scores
    inputs = [boxes, scores, np.array([most]), np.array([overlap], np.float32)]
    if least is not None:
        inputs.append(np.array([least], np.float32))
    names = ["boxes", "scores", "most", "overlap", "least"][: len(inputs)]
    node = onnx.helper.make_node("NonMaxSuppression", names, ["y"], center_point_box=centred)
    infos = [onnx.helper.make_tensor_value_info(n, int(DType.INT64 if n == "most" else 1), x.shape)
             for n, x in zip(names, inputs, strict=True)]  # fmt: skip
    graph = onnx.helper.make_graph([node], "g", infos, [onnx.helper.make_tensor_value_info("y", 7, None)])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, dict(zip(names, inputs, strict=True)))
    for device in ("cpu", "reference"):
        (got,) = run_node("NonMaxSuppression", inputs, {"center_point_box": centred}, device=device)
        np.testing.assert_array_equal(got, want)
    assert len(want) > 0 or most == 0


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(0, 3), st.integers(0, 4), st.integers(0, 40), st.integers(-1, 50))
def test_boxes_as_the_reference(seed, batches, kinds, n, most):
    """Few different coordinates and scores, so that boxes coincide, touch and tie; NaN and infinity among both."""
    rng = np.random.default_rng(seed)
    boxes = rng.integers(-2, 6, (batches, n, 4)).astype(np.float32)
    scores = rng.integers(-2, 5, (batches, kinds, n)).astype(np.float32) / 4
    for x in (boxes, scores):
        x.reshape(-1)[rng.integers(0, max(x.size, 1), x.size // 20)] = rng.choice([np.nan, np.inf, -np.inf, -0.0])
    inputs = [boxes, scores, np.array(most), np.array([rng.choice([0, 0.25, 0.5, 1])], np.float32)]
    if rng.integers(2):
        inputs.append(np.array([rng.choice([-np.inf, 0, 0.5, np.nan])], np.float32))
    attrs = {"center_point_box": int(rng.integers(2))}
    (want,) = run_node("NonMaxSuppression", inputs, attrs, device="reference")
    (got,) = run_node("NonMaxSuppression", inputs, attrs)
    np.testing.assert_array_equal(got, want, strict=True)


def test_no_limit_means_no_boxes():
    boxes, scores = np.ones((1, 2, 4), np.float32), np.ones((1, 1, 2), np.float32)
    assert run_node("NonMaxSuppression", [boxes, scores])[0].shape == (0, 3)


@pytest.mark.parametrize("boxes, scores", [((1, 2, 3), (1, 1, 2)), ((1, 2, 4), (2, 1, 2)), ((1, 2, 4), (1, 2))])
def test_wrong_boxes_are_refused(boxes, scores):
    with pytest.raises(ShapeError, match="boxes"):
        run_node("NonMaxSuppression", [np.ones(boxes, np.float32), np.ones(scores, np.float32)])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(-3, 3), max_size=30), st.booleans())
def test_unique(numbers, in_order):
    x = np.array(numbers, np.int32)
    y, first, inverse, counts = run_node("Unique", [x], {"sorted": int(not in_order)}, 4)
    assert y.dtype == x.dtype and first.dtype == inverse.dtype == counts.dtype == np.int64
    assert y.tolist() == (list(dict.fromkeys(numbers)) if in_order else sorted(set(numbers)))
    assert first.tolist() == [numbers.index(v) for v in y]
    assert [y[i] for i in inverse] == numbers
    assert counts.tolist() == [numbers.count(v) for v in y]


def test_unique_strings_and_slices():
    words = np.array([["b", "a"], ["b", "a"], ["a", "b"]], object)
    y, first = run_node("Unique", [words], {"axis": 0}, 2)
    assert y.tolist() == [["a", "b"], ["b", "a"]] and first.tolist() == [2, 0]
    (y,) = run_node("Unique", [words], {"sorted": 0})
    assert y.tolist() == ["b", "a"]


def test_the_axis_of_unique_is_checked():
    with pytest.raises(ShapeError, match="axis 2"):
        run_node("Unique", [np.ones((2, 2), np.float32)], {"axis": 2})


@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 2), (0, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.bool_, np.int8])
def test_non_zero(shape, dtype):
    x = np.random.default_rng(0).integers(0, 2, shape).astype(dtype) if shape else np.array(1, dtype)
    (y,) = run_node("NonZero", [x])
    assert y.dtype == np.int64 and y.shape == (len(shape), np.count_nonzero(x))
    np.testing.assert_array_equal(y.T, np.argwhere(x))


def test_bfloat16_negative_zero_is_zero():
    x = np.array([0x0000, 0x8000, 0x3F80], np.uint16)  # 0, -0, 1
    assert run_node("NonZero", [x], dtypes={0: DType.BFLOAT16})[0].tolist() == [[2]]
