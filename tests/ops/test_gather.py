"""Gather and scatter operators: ONNX's cases, and the drivers against NumPy over shapes, axes and bad indices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_cases import check_node, node_cases
from support import drivers_of, node_model, run_node

from evort.errors import EvortError, ExecutionError, ShapeError
from evort.session import Session

CASES = node_cases("Gather GatherElements GatherND ScatterElements ScatterND Scatter TensorScatter ReverseSequence")
ITEMS = (np.uint8, np.float16, np.float32, np.int64, np.complex128)
few = settings(max_examples=60, deadline=None, derandomize=True)
shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_onnx_case(case, device):
    check_node(case, device)


def numbers(shape, dtype):
    return (np.arange(np.prod(shape, dtype=int)) % 251).astype(dtype).reshape(shape)


def draw_indices(data, shape, size, dtype=np.int64):
    """An index tensor of a given shape with values in [-size, size)."""
    count = int(np.prod(shape, dtype=int))
    values = data.draw(st.lists(st.integers(-size, size - 1), min_size=count, max_size=count))
    return np.array(values, dtype).reshape(shape)


def check(op, inputs, attrs, want, driver, threads=1):
    """Runs a node on its driver; gathers and scatters move elements, so the result is exact."""
    session = Session(node_model(op, inputs, attrs), threads=threads)
    (got,) = session.run({f"in{i}": x for i, x in enumerate(inputs)}).values()
    assert drivers_of(session) == [driver]
    assert got.dtype == want.dtype and got.shape == want.shape
    assert got.tobytes() == np.ascontiguousarray(want).tobytes()


@few
@given(shapes, st.data(), st.sampled_from(ITEMS), st.sampled_from([np.int32, np.int64]), st.sampled_from([1, 2]))
def test_gather(shape, data, dtype, index_type, threads):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = numbers(shape, dtype)
    at = draw_indices(data, data.draw(st.lists(st.integers(0, 4), max_size=2)), shape[axis], index_type)
    check("Gather", [x, at], {"axis": axis}, np.take(x, at, axis), "gather.gather", threads)


@few
@given(shapes, st.data(), st.sampled_from(ITEMS), st.sampled_from([np.int32, np.int64]), st.sampled_from([1, 2]))
def test_gather_and_scatter_elements(shape, data, dtype, index_type, threads):
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = numbers(shape, dtype)
    some = tuple(data.draw(st.integers(0, 5 if i == axis else d)) for i, d in enumerate(shape))
    at = draw_indices(data, some, shape[axis], index_type)
    places = list(np.ogrid[tuple(slice(n) for n in some)])
    places[axis] = at
    name = axis - len(shape) * data.draw(st.booleans())
    check("GatherElements", [x, at], {"axis": name}, x[tuple(places)], "gather.gather_elements", threads)
    updates = numbers(some, dtype)[::-1].copy() if some[0] else numbers(some, dtype)
    want = x.copy()
    for i in np.ndindex(some):
        want[(*i[:axis], at[i], *i[axis + 1 :])] = updates[i]
    check("ScatterElements", [x, at, updates], {"axis": name}, want, "gather.scatter_elements", threads)


@few
@given(shapes, st.data(), st.sampled_from(ITEMS), st.sampled_from([1, 2]))
def test_gather_nd(shape, data, dtype, threads):
    batch = data.draw(st.integers(0, len(shape) - 1))
    k = data.draw(st.integers(1, len(shape) - batch))
    lead = (*shape[:batch], *data.draw(st.lists(st.integers(0, 4), max_size=2)))
    columns = [draw_indices(data, lead, d) for d in shape[batch : batch + k]]
    at = np.stack(columns, -1)
    x = numbers(shape, dtype)
    want = np.empty((*lead, *shape[batch + k :]), dtype)
    for i in np.ndindex(lead):
        want[i] = x[(*i[:batch], *at[i])]
    check("GatherND", [x, at], {"batch_dims": batch}, want, "gather.gather_nd", threads)


REDUCE = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum, "none": None}
NUMBERS = (
    np.float32, np.float64, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64,
)  # fmt: skip


@few
@given(shapes, st.data(), st.sampled_from(NUMBERS), st.sampled_from(list(REDUCE)))
def test_scatter_nd_applies_duplicates_in_order(shape, data, dtype, reduction):
    k = data.draw(st.integers(1, len(shape)))
    lead = tuple(data.draw(st.lists(st.integers(0, 4), max_size=2)))
    at = np.stack([draw_indices(data, lead, d) for d in shape[:k]], -1)
    x = numbers(shape, dtype)
    updates = np.asarray(numbers((*lead, *shape[k:]), dtype) * dtype(37) + dtype(100))
    if np.issubdtype(dtype, np.floating) and updates.size:
        updates.reshape(-1)[0] = np.nan
    want = x.copy()
    with np.errstate(all="ignore"):
        for i in np.ndindex(lead):
            place = tuple(at[i])
            ufunc = REDUCE[reduction]
            want[place] = updates[i] if ufunc is None else ufunc(want[place], updates[i])
    check("ScatterND", [x, at, updates], {"reduction": reduction}, want, "gather.scatter_nd")


@pytest.mark.parametrize("reduction", list(REDUCE))
def test_scatter_elements_reductions(reduction):
    x = np.array([[1, 2, 3]], np.int8)
    at, updates = np.array([[0, 0, -1, 0]]), np.array([[100, 100, -5, 3]], np.int8)
    want = {
        "none": [[3, 2, -5]], "add": [[-52, 2, -2]], "mul": [[48, 2, -15]], "min": [[1, 2, -5]], "max": [[100, 2, 3]],
    }[reduction]  # fmt: skip
    attrs = {"axis": 1, "reduction": reduction}
    check("ScatterElements", [x, at, updates], attrs, np.array(want, np.int8), "gather.scatter_elements")


def test_scatter_reductions_without_a_driver():
    """float16 sums run in the reference."""
    x, at, updates = np.zeros(3, np.float16), np.array([1, 1]), np.array([1, 0.5], np.float16)
    (got,) = run_node("ScatterElements", [x, at, updates], {"reduction": "add"})
    assert got.tolist() == [0, 1.5, 0] and got.dtype == np.float16


@few
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.data(), st.sampled_from(ITEMS))
def test_tensor_scatter(batches, heads, size, data, dtype):
    n = data.draw(st.integers(0, size))
    x, update = numbers((batches, heads, size, 2), dtype), numbers((batches, heads, n, 2), dtype)
    circular = data.draw(st.booleans())
    bound = st.integers(-20, 20) | st.just(2**62) if circular else st.integers(0, size - n)
    at = np.array(data.draw(st.lists(bound, min_size=batches, max_size=batches)), np.int64)
    want = x.copy()
    for b in range(batches):
        for i in range(n):
            want[b, :, (int(at[b]) + i) % size] = update[b, :, i]
    driver = "gather.tensor_scatter" if n else "layout.copy"
    check("TensorScatter", [x, update, at], {"mode": "circular" if circular else "linear"}, want, driver)


@few
@given(st.integers(1, 5), st.integers(1, 5), st.data(), st.sampled_from(ITEMS), st.booleans())
def test_reverse_sequence(steps, batches, data, dtype, time_first):
    lengths = np.array(data.draw(st.lists(st.integers(0, steps), min_size=batches, max_size=batches)), np.int64)
    x = numbers((steps, batches, 3), dtype)
    want = x.copy()
    for b, n in enumerate(lengths):
        want[:n, b] = x[:n, b][::-1]
    if not time_first:
        x, want = (np.ascontiguousarray(v.swapaxes(0, 1)) for v in (x, want))
    attrs = {"time_axis": int(not time_first), "batch_axis": int(time_first)}
    check("ReverseSequence", [x, lengths], attrs, want, "gather.reverse_sequence")


def test_gather_of_known_neighbours_is_a_view():
    x = numbers((6, 4), np.float32)
    for at in (2, [3, 4], [-2, -1], [[0, 1], [2, 3]]):
        at = np.array(at, np.int64)
        session = Session(node_model("Gather", [x, at], constants=(1,)))
        np.testing.assert_array_equal(session(x), x[at])
        assert set(drivers_of(session)) <= {"executor.copy"}
    for at in ([-1, 0], [1, 0], [0, 2]):
        session = Session(node_model("Gather", [x, np.array(at)], constants=(1,)))
        np.testing.assert_array_equal(session(x), x[at])
        assert drivers_of(session) == ["gather.gather"]


F = np.zeros((2, 3), np.float32)


def ints(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("bad", [2, -3, 2**31 - 1, 2**62, -(2**63)])
def test_indices_outside_are_refused(bad, device):
    at = ints(0, bad)
    calls = [
        ("Gather", [F, at], {}),
        ("GatherElements", [F, at.reshape(2, 1)], {}),
        ("GatherND", [F, at.reshape(2, 1)], {}),
        ("ScatterElements", [F, at.reshape(2, 1), np.ones((2, 1), np.float32)], {}),
        ("ScatterND", [F, at.reshape(2, 1), np.ones((2, 3), np.float32)], {}),
    ]
    if abs(bad) < 2**31:
        calls.append(("Gather", [F, at.astype(np.int32)], {}))
    for op, inputs, attrs in calls:
        with pytest.raises(ExecutionError, match=op):
            run_node(op, inputs, attrs, device=device)
        constants = tuple(range(1, len(inputs)))
        with pytest.raises(ExecutionError, match=op):
            run_node(op, inputs, attrs, device=device, constants=constants)
    for at in (ints(0, bad), ints(bad, 0)):
        with pytest.raises(ExecutionError, match="TensorScatter"):
            run_node("TensorScatter", [np.zeros((2, 2, 1)), np.zeros((2, 1, 1)), at], device=device)
        with pytest.raises(ExecutionError, match="ReverseSequence"):
            run_node("ReverseSequence", [np.zeros((1, 2)), at], device=device)


@pytest.mark.parametrize("place", [0, 20_000, 39_999])
def test_one_bad_index_among_good_rows_of_several_threads_is_refused(place):
    at = np.zeros((40_000, 1), np.int64)
    at[place] = 3
    x = np.zeros((40_000, 2), np.float32)
    for op, inputs, attrs in (
        ("Gather", [F, at], {}),
        ("GatherElements", [x, at], {"axis": 1}),
        ("GatherND", [F, at], {}),
    ):
        with pytest.raises(ExecutionError, match=op):
            run_node(op, inputs, attrs, threads=2)


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        ("Gather", [np.float32(0).reshape(()), ints(0)], {}),
        ("Gather", [F, ints(0)], {"axis": 2}),
        ("GatherElements", [F, ints(0)], {}),
        ("GatherElements", [F, np.zeros((1, 4), np.int64)], {}),
        ("GatherND", [F, np.zeros((1, 3), np.int64)], {}),
        ("GatherND", [F, np.zeros((3, 1), np.int64)], {"batch_dims": 1}),
        ("GatherND", [F, np.zeros((2, 1), np.int64)], {"batch_dims": -1}),
        ("ScatterElements", [F, np.zeros((1, 3), np.int64), np.zeros((1, 2), np.float32)], {}),
        ("ScatterElements", [F, np.zeros((1, 3), np.int64), np.zeros((1, 3))], {}),
        ("ScatterElements", [F, np.zeros((1, 3), np.int64), np.zeros((1, 3), np.float32)], {"reduction": "sum"}),
        ("ScatterND", [F, np.zeros((1, 3), np.int64), np.zeros(1, np.float32)], {}),
        ("ScatterND", [F, np.zeros((1, 1), np.int64), np.zeros((1, 2), np.float32)], {}),
        ("TensorScatter", [F, F], {"axis": 0}),
        ("TensorScatter", [F, np.zeros((2, 4), np.float32)], {"axis": 1}),
        ("TensorScatter", [F, F, ints(0)], {"axis": 1}),
        ("TensorScatter", [F, F], {"axis": 1, "mode": "ring"}),
        ("ReverseSequence", [F, ints(1)], {}),
        ("ReverseSequence", [F, ints(1, 1, 1)], {"time_axis": 1}),
    ],
)
def test_what_an_operator_forbids_is_refused(op, inputs, attrs):
    for device in ("cpu", "reference"):
        with pytest.raises(ShapeError, match=op):
            run_node(op, inputs, attrs, device=device)


def test_gather_from_an_empty_axis():
    with pytest.raises(EvortError, match="Gather"):
        run_node("Gather", [np.zeros((0, 3), np.float32), ints(0)])
    (got,) = run_node("Gather", [np.zeros((0, 3), np.float32), ints()])
    assert got.shape == (0, 3)
