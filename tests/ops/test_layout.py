"""Layout operators: ONNX's cases, and the compiled copies against NumPy. Moves are exact, so every comparison is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_cases import check_node, node_cases
from support import drivers_of, node_model, run_node

from evort._kernels import core
from evort.errors import EvortError, ShapeError
from evort.session import Session

CASES = node_cases(
    "Identity Reshape Squeeze Unsqueeze Flatten Transpose Concat Split Slice Pad Expand Tile ConstantOfShape "
    "Shape Size EyeLike Trilu SpaceToDepth DepthToSpace Compress CenterCropPad Range OneHot"
)

# One for each item size: 1, 2, 4, 8 and 16 bytes.
ITEMS = (np.uint8, np.float16, np.float32, np.int64, np.complex128)
COPIES = ("layout.strided", "executor.copy")  # where it is a view, only the result is copied out
few = settings(max_examples=60, deadline=None, derandomize=True)
shapes = st.lists(st.integers(1, 9), min_size=1, max_size=5).map(tuple)


@pytest.fixture(params=core.available_isas())
def isa(request):
    core.select_isa(request.param)
    yield request.param
    core.select_isa()


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_onnx_case(case, device):
    check_node(case, device)


def numbers(shape, dtype=np.float32):
    """Distinct elements, as far as the type has them, the first few extreme where it is a float."""
    x = (np.arange(np.prod(shape, dtype=int)) % 251).astype(dtype)
    if x.dtype.kind == "f":
        x[:3] = [np.nan, -0.0, np.inf][: x.size]
    return x.reshape(shape)


def same(got, want):
    """Equal bit by bit."""
    want = np.ascontiguousarray(want).reshape(np.shape(want))
    assert got.dtype == want.dtype and got.shape == want.shape
    assert got.tobytes() == want.tobytes()


def check(op, x, operands, attrs, want, driver, threads=1):
    """Runs a node with constant operands on the drivers, and holds the result to `want`."""
    inputs = [x, *operands]
    constants = tuple(range(1, len(inputs)))
    session = Session(node_model(op, inputs, attrs, constants=constants), threads=threads)
    (got,) = session.run({"in0": x}).values()
    assert set(drivers_of(session)) <= set(driver)
    same(got, want)


@few
@given(shapes, st.randoms(use_true_random=False), st.sampled_from(ITEMS), st.sampled_from([1, 2]))
def test_transpose_of_any_permutation(shape, random, dtype, threads):
    perm = list(range(len(shape)))
    random.shuffle(perm)
    x = numbers(shape, dtype)
    check("Transpose", x, [], {"perm": perm}, x.transpose(perm), COPIES, threads)


@pytest.mark.parametrize("shape", [(64, 64), (67, 130), (3, 1000), (1000, 3), (2, 33, 17), (8, 8), (15, 9), (1, 7)])
@pytest.mark.parametrize("dtype", ITEMS)
def test_transpose_of_matrices(isa, shape, dtype):
    x = numbers(shape, dtype)
    perm = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    for threads in (1, 2):
        check("Transpose", x, [], {"perm": perm}, x.transpose(perm), COPIES, threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_copies_large_enough_for_threads(isa, threads):
    x = numbers((5, 120, 130), np.float32)
    check("Transpose", x, [], {"perm": [0, 2, 1]}, x.transpose(0, 2, 1), COPIES, threads)
    check("Transpose", x, [], {"perm": [1, 0, 2]}, x.transpose(1, 0, 2), COPIES, threads)
    pads = np.array([0, 1, 2, 0, 3, 4], np.int64)
    want = np.pad(x, [(0, 0), (1, 3), (2, 4)], "reflect")
    check("Pad", x, [pads], {"mode": "reflect"}, want, ("layout.take",), threads)
    repeats = np.array([2, 1, 3], np.int64)
    check("Tile", x, [repeats], {}, np.tile(x, repeats), COPIES, threads)
    for axis in (0, 1, 2):
        same(run_node("Concat", [x, x, x], {"axis": axis}, threads=threads)[0], np.concatenate([x, x, x], axis))


def test_transpose_of_unit_axes_is_a_view():
    x = numbers((1, 5, 1, 3))
    check("Transpose", x, [], {"perm": [1, 2, 0, 3]}, x.transpose(1, 2, 0, 3), ("executor.copy",))


@few
@given(shapes, st.data(), st.sampled_from(ITEMS))
def test_slice(shape, data, dtype):
    bound = st.integers(-12, 12) | st.sampled_from([2**63 - 1, -(2**63)])
    step = st.integers(-3, 3).filter(bool) | st.sampled_from([2**63 - 1, -(2**63)])
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True, min_size=1))
    rows = [(data.draw(bound), data.draw(bound), data.draw(step)) for _ in axes]
    at = [slice(None)] * len(shape)
    for axis, row in zip(axes, rows, strict=True):
        at[axis] = slice(*row)
    x = numbers(shape, dtype)
    starts, ends, steps = (np.array(v, np.int64) for v in zip(*rows, strict=True))
    names = np.array([a - len(shape) * data.draw(st.booleans()) for a in axes], np.int64)
    operands = [starts, ends, names, steps]
    check("Slice", x, operands, {}, x[tuple(at)], ("layout.strided", "layout.copy", "executor.copy"))


def test_contiguous_slice_and_split_are_views():
    x = numbers((6, 4))
    operands = [np.array([2], np.int64), np.array([5], np.int64)]
    check("Slice", x, operands, {}, x[2:5], ("executor.copy",))
    split = Session(node_model("Split", [x], {"axis": 0}, outputs=3))
    for got, want in zip(split.run({"in0": x}).values(), np.split(x, 3), strict=True):
        same(got, want)
    assert set(drivers_of(split)) <= {"executor.copy"}


@few
@given(shapes, st.data(), st.sampled_from(ITEMS), st.sampled_from([1, 2]))
def test_expand_and_tile(shape, data, dtype, threads):
    x = numbers(shape, dtype)
    repeats = [data.draw(st.integers(0, 3)) for _ in shape]
    check("Tile", x, [np.array(repeats, np.int64)], {}, np.tile(x, repeats), (*COPIES, "layout.copy"), threads)
    ones = tuple(1 if data.draw(st.booleans()) else d for d in shape)
    y = numbers(ones, dtype)
    target = (*data.draw(st.lists(st.integers(1, 3), max_size=2)), *shape)
    check("Expand", y, [np.array(target, np.int64)], {}, np.broadcast_to(y, target), COPIES, threads)


@few
@given(shapes, st.data(), st.sampled_from(ITEMS), st.sampled_from([1, 2]))
def test_concat_and_split(shape, data, dtype, threads):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    sizes = data.draw(st.lists(st.integers(0, 5), min_size=2, max_size=4).filter(any))
    shape = list(shape)
    shape[axis] = sum(sizes)
    whole = numbers(shape, dtype)
    parts = np.split(whole, np.cumsum(sizes)[:-1], axis)
    (got,) = run_node("Concat", parts, {"axis": axis}, threads=threads)
    same(got, whole)
    split = np.array(sizes, np.int64)
    found = run_node("Split", [whole, split], {"axis": axis}, len(sizes), constants=(1,), threads=threads)
    for one, want in zip(found, parts, strict=True):
        same(one, want)


MODES = ("constant", "edge", "reflect", "wrap")


@few
@given(shapes, st.data(), st.sampled_from(ITEMS), st.sampled_from(MODES), st.sampled_from([1, 2]))
def test_pad(shape, data, dtype, mode, threads):
    x = numbers(shape, dtype)
    pads = [(data.draw(st.integers(0, 7)), data.draw(st.integers(0, 7))) for _ in shape]
    operands = [np.array([p[0] for p in pads] + [p[1] for p in pads], np.int64)]
    value = {}
    if mode == "constant" and data.draw(st.booleans()):
        operands.append(np.array(7, dtype))
        value = {"constant_values": operands[-1]}
    want = np.pad(x, pads, mode, **value)
    check("Pad", x, operands, {"mode": mode}, want, ("layout.take", "executor.copy"), threads)


@pytest.mark.parametrize("mode", MODES)
def test_negative_pads_crop_first(mode):
    x = numbers((5, 6), np.int64)
    pads = np.array([-1, 2, 1, -3], np.int64)
    want = np.pad(x[1:, :3], [(0, 1), (2, 0)], mode)
    check("Pad", x, [pads], {"mode": mode}, want, ("layout.take",))


def test_pad_of_chosen_axes_with_a_value():
    x = numbers((2, 3, 4), np.int64)
    operands = [np.array([1, 2], np.int64), np.array(-5), np.array([-1], np.int32)]
    check("Pad", x, operands, {}, np.pad(x, [(0, 0), (0, 0), (1, 2)], constant_values=-5), ("layout.take",))


@few
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.sampled_from(["DCR", "CRD"]))
def test_depth_and_space_are_inverses(n, h, w, b, mode):
    x = numbers((n, 2 * b * b, h, w), np.int64)
    (space,) = run_node("DepthToSpace", [x], {"blocksize": b, "mode": mode})
    assert space.shape == (n, 2, h * b, w * b)
    (back,) = run_node("SpaceToDepth", [space], {"blocksize": b, "mode": mode})
    same(back, x)


@few
@given(st.integers(1, 7), st.integers(1, 7), st.integers(-9, 9), st.booleans(), st.sampled_from(ITEMS))
def test_triangles(n, m, k, upper, dtype):
    x = numbers((2, n, m), dtype)
    for diagonal in (k, k * 2**58):
        want = np.triu(x, diagonal) if upper else np.tril(x, diagonal)
        check("Trilu", x, [np.array(diagonal)], {"upper": int(upper)}, want, ("layout.triangle",))


@pytest.mark.parametrize("value", [np.float32(np.nan), np.uint8(3), np.float16(-0.0), np.int64(-(2**63))])
def test_fills_too_large_to_fold(value):
    shape = np.array([130, 1000], np.int64)
    session = Session(node_model("ConstantOfShape", [shape], {"value": np.array([value])}, constants=(0,)))
    same(session.run({})["out0"], np.full(shape, value, value.dtype))
    assert drivers_of(session) == ["layout.fill"]


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.float32, np.float64])
def test_range_is_counted_exactly(dtype):
    step = 0.25 if dtype in (np.float32, np.float64) else 1
    operands = [np.array(v, dtype) for v in (-32768, 32767, step)]
    session = Session(node_model("Range", operands, constants=(0, 1, 2)))
    got = session.run({})["out0"]
    assert drivers_of(session) == ["layout.arange"]
    same(got, (-32768 + np.arange(int(65535 / step)) * step).astype(dtype))


@few
@given(st.lists(st.integers(-9, 9), max_size=12), st.integers(0, 6), st.integers(-2, 1), st.sampled_from(ITEMS))
def test_one_hot(indices, depth, axis, dtype):
    values = np.array([3, 5], dtype)
    at = np.array(indices, np.int32).reshape(-1)
    (got,) = run_node("OneHot", [at, np.array(depth), values], {"axis": axis}, constants=(1,))
    want = np.where(np.arange(depth) == np.where(at < 0, at + depth, at)[:, None], values[1], values[0])
    same(got, want if axis in (-1, 1) else want.T)


def test_eye_of_every_diagonal():
    for k in (-4, -1, 0, 2, 5, 2**62, -(2**62)):
        session = Session(node_model("EyeLike", [np.zeros((3, 5), np.float32)], {"k": k, "dtype": 7}))
        same(session(np.ones((3, 5), np.float32)), np.eye(3, 5, max(-9, min(9, k)), np.int64))
        assert drivers_of(session) == ["layout.eye"]


def test_empty_tensors():
    x = np.zeros((0, 4), np.float32)
    same(run_node("Transpose", [x])[0], x.T)
    same(run_node("Concat", [x, x], {"axis": 1})[0], np.zeros((0, 8), np.float32))
    same(run_node("Pad", [x, np.array([1, 0, 0, 1], np.int64)], constants=(1,))[0], np.zeros((1, 5), np.float32))
    same(run_node("Tile", [x, np.array([3, 2], np.int64)], constants=(1,))[0], np.zeros((0, 8), np.float32))
    same(run_node("Reshape", [x, np.array([2, 0], np.int64)], {"allowzero": 1}, constants=(1,))[0], x.reshape(2, 0))
    same(run_node("Trilu", [x])[0], x)


def test_scalars():
    x = np.float32(3).reshape(())
    same(run_node("Transpose", [x])[0], x)
    same(run_node("Expand", [x, np.array([2, 2], np.int64)], constants=(1,))[0], np.full((2, 2), x))
    same(run_node("Unsqueeze", [x, np.array([0, -1], np.int64)], constants=(1,))[0], x.reshape(1, 1))


F = np.zeros((2, 3), np.float32)


def ints(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        ("Reshape", [F, ints(4, -1)], {}),
        ("Reshape", [F, ints(-1, -1)], {}),
        ("Reshape", [F, ints(2, 3, 0)], {}),
        ("Reshape", [F, ints(-2, 3)], {}),
        ("Squeeze", [F, ints(0)], {}),
        ("Unsqueeze", [F, ints(0, 0)], {}),
        ("Unsqueeze", [F, ints(4)], {}),
        ("Flatten", [F], {"axis": 3}),
        ("Transpose", [F], {"perm": [0, 0]}),
        ("Transpose", [F], {"perm": [0]}),
        ("Concat", [F, F], {"axis": 2}),
        ("Concat", [F, np.zeros((3, 3), np.float32)], {"axis": 1}),
        ("Concat", [F, F.astype(np.int32)], {"axis": 0}),
        ("Split", [F, ints(3)], {"axis": 0}),
        ("Split", [F, ints(-1)], {"axis": 0}),
        ("Split", [F], {"axis": 0, "num_outputs": 2}),
        ("Slice", [F, ints(0), ints(1), ints(0), ints(0)], {}),
        ("Slice", [F, ints(0), ints(1), ints(5)], {}),
        ("Slice", [F, ints(0, 0), ints(1, 1), ints(0, -2)], {}),
        ("Slice", [F, ints(0), ints(1, 1)], {}),
        ("Pad", [F, ints(0, 0, 0)], {}),
        ("Pad", [F, ints(-3, 0, 0, 0)], {}),
        ("Pad", [F, ints(2**62, 0, 0, 0)], {}),
        ("Pad", [F, ints(0, 0, 0, 0)], {"mode": "mirror"}),
        ("Pad", [np.zeros((0,), np.float32), ints(1, 1)], {"mode": "edge"}),
        ("Pad", [F, ints(0, 0, 0, 0), np.zeros(2, np.float32)], {}),
        ("Expand", [F, ints(4, 3)], {}),
        ("Expand", [F, ints(-1, 3)], {}),
        ("Tile", [F, ints(1)], {}),
        ("Tile", [F, ints(1, -1)], {}),
        ("SpaceToDepth", [np.zeros((1, 1, 3, 4), np.float32)], {"blocksize": 2}),
        ("SpaceToDepth", [np.zeros((1, 1, 4, 4), np.float32)], {"blocksize": 0}),
        ("DepthToSpace", [np.zeros((1, 3, 4, 4), np.float32)], {"blocksize": 2}),
        ("DepthToSpace", [np.zeros((1, 4, 4, 4), np.float32)], {"blocksize": 2, "mode": "RDC"}),
        ("ConstantOfShape", [ints(-1)], {}),
        ("ConstantOfShape", [ints(1)], {"value": np.zeros(2)}),
        ("Range", [ints(0), ints(4), ints(0)], {}),
        ("Range", [np.float32([0]), np.float32([np.nan]), np.float32([1])], {}),
        ("Range", [np.float64([0]), np.float64([1e308]), np.float64([1e-308])], {}),
        ("OneHot", [ints(0), np.float32([np.nan]), ints(0, 1)], {}),
        ("OneHot", [ints(0), ints(-1), ints(0, 1)], {}),
        ("OneHot", [ints(0), ints(2), ints(0)], {}),
        ("Trilu", [ints(0)], {}),
        ("EyeLike", [ints(0)], {}),
        ("EyeLike", [F], {"dtype": 8}),
        ("EyeLike", [F], {"dtype": 999}),
        ("CenterCropPad", [F, ints(1)], {}),
        ("CenterCropPad", [F, ints(1, -1)], {}),
        ("CenterCropPad", [F, ints(1)], {"axes": [2]}),
        ("Compress", [F, np.ones(3, bool)], {"axis": 0}),
    ],
)
def test_what_an_operator_forbids_is_refused(op, inputs, attrs):
    for device in ("cpu", "reference"):
        with pytest.raises(ShapeError, match=op):
            run_node(op, inputs, attrs, 1, constants=tuple(range(1, len(inputs))), device=device)


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("Expand", [F, ints(2**62, 1, 1)]),
        ("Tile", [F, ints(2**40, 2**40)]),
        ("ConstantOfShape", [ints(2**31, 2**31)]),
        ("Range", [ints(0), ints(2**62), ints(1)]),
        ("OneHot", [ints(0), ints(2**62), ints(0, 1)]),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(op, inputs):
    with pytest.raises(EvortError, match=op):
        run_node(op, inputs, constants=tuple(range(len(inputs))))
