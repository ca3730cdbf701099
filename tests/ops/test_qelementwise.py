"""Quantized elementwise operators: drivers equal to the references bit for bit, both near onnxruntime's kernels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qsupport import TYPES, by_onnxruntime, everywhere, numbers, scale, zero
from support import drivers_of, make_model, node_model, run_node

from evort.errors import ShapeError
from evort.graph import Node
from evort.session import Session
from evort.types import DType

SEEDS = st.integers(0, 2**32 - 1)
BYTES = st.sampled_from([np.uint8, np.int8])
ACTIVATIONS = [{}, {"activation": "Relu"}, {"activation": "Clip", "activation_alpha": -1.5, "activation_beta": 2.25}]


@st.composite
def broadcasts(draw):
    """Two shapes that broadcast."""
    out = draw(st.lists(st.integers(1, 5), min_size=0, max_size=4))
    if out and draw(st.booleans()):
        out[draw(st.integers(0, len(out) - 1))] = draw(st.integers(30, 600))
    shapes = []
    for _ in range(2):
        kept = draw(st.integers(0, len(out)))
        shapes.append(tuple(d if draw(st.integers(0, 3)) else 1 for d in out[len(out) - kept :]))
    return shapes


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(broadcasts(), BYTES, st.sampled_from(ACTIVATIONS), SEEDS)
def test_sums_and_products_of_bytes(op, shapes, dtype, attrs, seed):
    rng = np.random.default_rng(seed)
    a, b = (numbers(rng, dtype, s) for s in shapes)
    operands = [a, scale(rng), zero(rng, dtype), b, scale(rng), zero(rng, dtype), scale(rng), zero(rng, dtype)]
    y = everywhere("qelementwise.binary", op, operands, attrs, feeds=(0, 3))
    if not attrs:
        peer = by_onnxruntime(op, operands)
        assert np.abs(y.astype(int) - peer).max(initial=0) <= 1


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    broadcasts(),
    st.tuples(*[st.sampled_from([*TYPES.values(), np.float32])] * 3),
    st.sampled_from(["", "Relu", "LeakyRelu", "Clip"]),
    SEEDS,
)
def test_sums_and_products_of_other_types(op, shapes, types, activation, seed):
    """float32 operands are quantized as they are read; without a scale the result is float32."""
    rng = np.random.default_rng(seed)
    operands = []
    for shape, kind in zip(shapes, types, strict=False):
        if kind == np.float32:
            x = (rng.standard_normal(shape) * 3).astype(np.float32)
            if x.size > 3:
                x.reshape(-1)[:4] = [np.nan, np.inf, -np.inf, -0.0]
            operands += [x, scale(rng), zero(rng, rng.choice([np.uint8, np.int16]))]
        else:
            operands += [numbers(rng, kind, shape), scale(rng), zero(rng, kind)]
    operands += [None, None] if types[2] == np.float32 else [scale(rng), zero(rng, types[2])]
    y = everywhere("qelementwise.binary", op, operands, {"activation": activation}, feeds=(0, 3))
    assert y.dtype == types[2]


def test_the_result_is_that_of_real_numbers():
    """Within half a step of the exact sum, and what float32 rounds: 4 roundings of numbers below 2^9 steps."""
    rng = np.random.default_rng(0)
    a, b = numbers(rng, np.uint8, (257,)), numbers(rng, np.uint8, (257,))
    sa, sb, sy = np.float32(0.031), np.float32(0.017), np.float32(0.055)
    y = run_node("QLinearAdd", [a, sa, np.uint8(120), b, sb, np.uint8(7), sy, np.uint8(30)], domain="com.microsoft")[0]
    exact = ((a.astype(float) - 120) * sa + (b.astype(float) - 7) * sb) / np.float64(sy) + 30
    assert np.abs(np.clip(exact, 0, 255) - y).max() <= 0.5 + 4 * 2**9 * 2.0**-24


def test_extreme_scales_saturate():
    big, small = np.float32(1e15), np.float32(1e-15)
    a, z = np.uint8([0, 1, 128, 255] * 9), np.uint8(1)
    y = everywhere("qelementwise.binary", "QLinearAdd", [a, big, z, a, big, z, small, np.uint8(9)], feeds=(0, 3))
    assert y[:4].tolist() == [0, 9, 255, 255]
    y = everywhere("qelementwise.binary", "QLinearMul", [a, small, z, a, small, z, big, np.uint8(9)], feeds=(0, 3))
    assert (y == 9).all()


def test_operands_known_only_at_run_time_take_the_reference():
    rng = np.random.default_rng(1)
    operands = [
        numbers(rng, np.int8, (40,)),
        scale(rng),
        None,
        numbers(rng, np.int8, (40,)),
        scale(rng),
        None,
        scale(rng),
    ]
    model = node_model("QLinearAdd", operands, domain="com.microsoft")
    session = Session(model)
    (got,) = session.run({f"in{i}": x for i, x in enumerate(operands) if x is not None}).values()
    assert drivers_of(session) == ["numpy"]
    want = everywhere("qelementwise.binary", "QLinearAdd", operands, feeds=(0, 3))
    np.testing.assert_array_equal(got, want, strict=True)


def test_the_sum_may_be_written_over_an_operand():
    rng = np.random.default_rng(2)
    constants = {"s": np.float32(0.1), "z": np.uint8(3)}
    add = Node("QLinearAdd", ["a", "s", "z", "b", "s", "z", "s", "z"], ["t"], {}, "com.microsoft")
    twice = Node("QLinearAdd", ["t", "s", "z", "t", "s", "z", "s", "z"], ["y"], {}, "com.microsoft")
    model = make_model([add, twice], dict.fromkeys("ab", (DType.UINT8, (1001,))), ["y"], constants)
    feeds = {k: numbers(rng, np.uint8, (1001,)) for k in "ab"}
    t = np.clip(feeds["a"].astype(int) + feeds["b"] - 3, 0, 255)
    np.testing.assert_array_equal(Session(model).run(feeds)["y"], np.clip(2 * t - 3, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("op", ["QLinearLeakyRelu", "QLinearSigmoid"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("n", [1, 31, 255, 256, 1000])
def test_functions_by_table(op, dtype, n):
    rng = np.random.default_rng(n)
    operands = [numbers(rng, dtype, (n,)), scale(rng), zero(rng, dtype), scale(rng), zero(rng, dtype)]
    y = everywhere("qelementwise.lookup", op, operands)
    assert np.abs(y.astype(int) - by_onnxruntime(op, operands)).max() <= 1
    everywhere("qelementwise.lookup", op, operands[:3])  # to float32
    everywhere("qelementwise.lookup", op, [(rng.standard_normal(n) * 4).astype(np.float32), *operands[1:]])


@pytest.mark.parametrize("entry", [np.uint8, np.int8, np.int16, np.float32])
@pytest.mark.parametrize("index", [np.uint8, np.int8, np.float32])
@pytest.mark.parametrize("n", [0, 1, 300, 5000])
def test_lookup(entry, index, n):
    rng = np.random.default_rng(n)
    table = rng.standard_normal(256).astype(np.float32) if entry == np.float32 else numbers(rng, entry, (256,))
    if index == np.float32:
        x, zp = (rng.standard_normal(n) * 9).astype(np.float32), np.int8(-3)
        operands = [x, table, np.float32(0.25), zp]
        bits = np.clip(np.rint(x / np.float32(0.25)) - 3, -128, 127).astype(np.int8).view(np.uint8)
    else:
        operands = [numbers(rng, index, (n,)), table]
        bits = operands[0].view(np.uint8)
    y = everywhere("qelementwise.lookup", "Lookup", operands, domain="evort")
    np.testing.assert_array_equal(y, table[bits], strict=True)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(0, 2), BYTES, st.booleans(), SEEDS)
def test_concat(sizes, axis, dtype, to_float, seed):
    rng = np.random.default_rng(seed)
    unit = [scale(rng), zero(rng, dtype)]
    operands = [None, None] if to_float else list(unit)
    tensors = []
    for size in sizes:
        shape = [2, 3, 5]
        shape[axis] = size
        tensors.append(len(operands))
        operands.append(numbers(rng, dtype, tuple(shape)))
        operands += unit if rng.integers(2) else [scale(rng), zero(rng, dtype)]
    y = everywhere("qelementwise.concat", "QLinearConcat", operands, {"axis": axis - 3}, feeds=tuple(tensors))
    if not to_float and y.size:
        assert np.abs(y.astype(int) - by_onnxruntime("QLinearConcat", operands, {"axis": axis})).max() <= 1


def test_concat_quantizes_float_operands():
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((3, 700)) * 5).astype(np.float32)
    unit, other = [np.float32(0.05), np.uint8(100)], [np.float32(0.02), np.int8(-4)]
    operands = [*unit, x, *unit, x, *other]
    y = everywhere("qelementwise.concat", "QLinearConcat", operands, {"axis": 1}, feeds=(2, 5))
    np.testing.assert_array_equal(y[:, :700], np.clip(np.rint(x / unit[0]) + 100, 0, 255))


def test_operands_of_the_results_scale_are_computed_in_their_place():
    rng = np.random.default_rng(6)
    constants = {"s": np.float32(0.1), "z": np.uint8(3), "t": np.float32(0.2)}
    nodes = [
        Node("QLinearAdd", ["a", "s", "z", "b", "s", "z", "s", "z"], ["p"], {}, "com.microsoft"),
        Node("QLinearAdd", ["b", "s", "z", "b", "s", "z", "t", "z"], ["q"], {}, "com.microsoft"),
        Node("QLinearConcat", ["s", "z", "p", "s", "z", "q", "t", "z"], ["y"], {"axis": 0}, "com.microsoft"),
    ]
    model = make_model(nodes, dict.fromkeys("ab", (DType.UINT8, (640,))), ["y"], constants)
    feeds = {k: numbers(rng, np.uint8, (640,)) for k in "ab"}
    want = Session(model, device="reference").run(feeds)["y"]
    np.testing.assert_array_equal(Session(model).run(feeds)["y"], want, strict=True)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(broadcasts(), BYTES, st.booleans(), st.booleans(), SEEDS)
def test_where(shapes, dtype, same, to_float, seed):
    rng = np.random.default_rng(seed)
    x, y = (numbers(rng, dtype, s) for s in shapes)
    condition = rng.integers(0, 2, np.broadcast_shapes(*shapes)).astype(bool)
    z = [scale(rng), zero(rng, dtype)]
    operands = [condition, x, *(z if same else [scale(rng), zero(rng, dtype)]), y, scale(rng), zero(rng, dtype)]
    got = everywhere("qelementwise.where", "QLinearWhere", operands if to_float else [*operands, *z], feeds=(0, 1, 4))
    if not to_float and got.size:
        assert np.abs(got.astype(int) - by_onnxruntime("QLinearWhere", [*operands, *z])).max() <= 1


def test_what_does_not_fit_is_refused():
    a, s, z = np.zeros(4, np.uint8), np.float32(1), np.uint8(0)
    for operands, message in (
        ([a, np.ones(2, np.float32), z, a, s, z, s, z], "must be a scalar"),
        ([a, np.float32(0), z, a, s, z, s, z], "not a positive number"),
        ([a, np.float32(np.nan), z, a, s, z, s, z], "not a positive number"),
        ([a, s, np.int8(0), a, s, z, s, z], "zero point"),
        ([a.astype(np.float32), s, None, a, s, z, s, z], "needs a zero point"),
        ([a, s, z, a, s, z, None, z], "comes with a scale"),
        ([a, s, z, np.zeros(3, np.uint8), s, z, s, z], "broadcast"),
    ):
        with pytest.raises(ShapeError, match=message):
            run_node("QLinearAdd", operands, domain="com.microsoft", constants=(1, 4, 6))
    with pytest.raises(ShapeError, match="triples"):
        run_node("QLinearConcat", [s, z, a], {"axis": 0}, domain="com.microsoft")
    with pytest.raises(ShapeError, match="256"):
        run_node("Lookup", [a, np.zeros(255, np.uint8)], domain="evort")
