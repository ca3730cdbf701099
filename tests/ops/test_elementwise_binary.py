"""Operators with broadcasting: ONNX's cases, and the drivers against NumPy over odd shapes and extreme values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_cases import check_node, node_cases
from support import compiled, drivers_of, make_model, run_node

from evort.errors import ExecutionError, ShapeError, UnsupportedError
from evort.graph import Node
from evort.ops.activation import ACTIVATIONS
from evort.ops.broadcast import loops
from evort.ops.lowp import narrow, widen
from evort.session import Session
from evort.types import STORAGE, DType

CASES = node_cases(
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean "
    "Min Mod Mul Or PRelu Pow Sub Sum Where Xor"
)
NARY = "elementwise.nary"


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_onnx_cases(case, device):
    check_node(case, device)


@st.composite
def operands(draw, count):
    """Shapes that broadcast: of rank up to 5, with axes of length 0 and 1, and one axis long enough for whole vectors
    and their tails."""
    out = draw(st.lists(st.integers(0, 5) | st.just(3), max_size=5))
    if out and draw(st.booleans()):
        out[draw(st.integers(0, len(out) - 1))] = draw(st.integers(6, 90))
    shapes = []
    for _ in range(count):
        shape = [1 if draw(st.booleans()) else d for d in out]
        shapes.append(tuple(shape[draw(st.integers(0, len(shape))) :] if draw(st.booleans()) else shape))
    return shapes


SPECIAL = np.float32([0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-45, 1e-40, 2, 0.5, 7.25])


def numbers(rng, shape, dtype):
    """Random numbers with extreme ones among them."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind == "f":
        x = (rng.standard_normal(shape) * 4).astype(np.float32)
        special = rng.choice(SPECIAL, shape)
        with np.errstate(over="ignore"):
            return np.where(rng.random(shape) < 0.2, special, x).astype(dtype)
    info = np.iinfo(dtype)
    x = rng.integers(-9, 9, shape).astype(dtype)
    return np.where(rng.random(shape) < 0.2, rng.choice(np.array([info.min, info.max, 1], dtype), shape), x)


FLOATS = ("float32", "float64")
INTS = ("int8", "uint8", "int32", "int64")
WORDS = ("uint32", "uint64")
MEANING = {
    "Add": (np.add, (*FLOATS, *INTS, *WORDS)),
    "Sub": (np.subtract, (*FLOATS, *INTS, *WORDS)),
    "Mul": (np.multiply, (*FLOATS, *INTS, *WORDS)),
    "Div": (np.divide, FLOATS),
    "Min": (np.minimum, (*FLOATS, *INTS)),
    "Max": (np.maximum, (*FLOATS, *INTS)),
    "Mod": (np.mod, FLOATS),
    "Equal": (np.equal, (*FLOATS, *INTS, *WORDS, "bool")),
    "Less": (np.less, (*FLOATS, *INTS)),
    "LessOrEqual": (np.less_equal, (*FLOATS, *INTS)),
    "Greater": (np.greater, (*FLOATS, *INTS)),
    "GreaterOrEqual": (np.greater_equal, (*FLOATS, *INTS)),
    "And": (np.logical_and, ("bool",)),
    "Or": (np.logical_or, ("bool",)),
    "Xor": (np.logical_xor, ("bool",)),
    "BitwiseAnd": (np.bitwise_and, (*INTS, *WORDS)),
    "BitwiseOr": (np.bitwise_or, (*INTS, *WORDS)),
    "BitwiseXor": (np.bitwise_xor, (*INTS, *WORDS)),
}


@pytest.mark.parametrize("op", MEANING)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(operands(2), st.integers(0, 2**32 - 1), st.data())
def test_equal_to_numpy(op, shapes, seed, data):
    meaning, dtypes = MEANING[op]
    rng = np.random.default_rng(seed)
    dtype = data.draw(st.sampled_from(dtypes))
    a, b = (numbers(rng, s, dtype) for s in shapes)
    with np.errstate(all="ignore"):
        want = np.asarray(meaning(a, b))
    for (y,) in compiled(NARY, op, [a, b], threads=(1,)):
        np.testing.assert_array_equal(y, want, strict=True)


@pytest.mark.parametrize(
    "shapes",
    [
        [(70000,), (70000,)],
        [(300, 300), (300, 1)],
        [(300, 300), (300,)],
        [(20000, 3), (3,)],
        [(20000, 3), (20000, 1)],
        [(2, 3, 100, 7, 30), (3, 1, 7, 1)],
        [(), (70000,)],
        [(40, 1, 40, 1), (1, 40, 1, 40)],
        [(9, 1, 1, 50, 60), (1, 8, 1, 1, 60)],
    ],
    ids=str,
)
def test_large_operands_split_among_threads(shapes):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in shapes)
    for given_, want in (([a, b], a - b), ([b, a], b - a)):
        for (y,) in compiled(NARY, "Sub", given_, threads=(1, 2, 3)):
            np.testing.assert_array_equal(y, want, strict=True)


def test_loops_are_few():
    assert loops((2, 3, 4, 5), [(2, 3, 4, 5), (2, 3, 4, 5)]) == (1, 120, 1, 1)
    assert loops((1, 8, 6, 7), [(1, 8, 6, 7), (1, 8, 1, 1)]) == (2, 8, 42, 42, 1, 1, 0)
    assert loops((2, 8, 6, 7), [(2, 8, 6, 7), (8, 1, 1)]) == (3, 2, 8, 42, 336, 42, 1, 0, 1, 0)
    assert loops((5, 1, 7), [(), (5, 1, 7)]) == (1, 35, 0, 1)
    assert loops((), [(), (1, 1)]) == (1, 1, 0, 0)


@pytest.mark.parametrize("dtype", INTS)
def test_integer_division_truncates_and_wraps(dtype):
    info = np.iinfo(dtype)
    values = np.unique(np.array([info.min, info.min + 1, -7, -3, -1, 0, 1, 3, 7, info.max - 1, info.max], object))
    values = [int(v) for v in values if v >= info.min]
    a = np.array([[x for _ in values if _] for x in values], dtype)
    b = np.array([[y for y in values if y] for _ in values], dtype)

    def table(f):
        whole = [[f(int(x), int(y)) for x, y in zip(r, s, strict=True)] for r, s in zip(a, b, strict=True)]
        bits = info.bits
        wrapped = [[(v + (1 << bits)) % (1 << bits) for v in row] for row in whole]
        return np.array(wrapped, f"uint{bits}").view(dtype)

    def quotient(x, y):
        return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)

    for op, attrs, f in (
        ("Div", {}, quotient),
        ("Mod", {}, lambda x, y: x % y),
        ("Mod", {"fmod": 1}, lambda x, y: x - quotient(x, y) * y),
    ):
        want = table(f)
        for (y,) in [*compiled(NARY, op, [a, b], attrs), run_node(op, [a, b], attrs, device="reference")]:
            np.testing.assert_array_equal(y, want, strict=True)


@pytest.mark.parametrize("dtype", [*INTS, "int16", "uint16", *WORDS])
@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_integer_division_by_zero_is_an_error(op, device, dtype):
    a, b = np.arange(5).astype(dtype), np.array([1, 2, 0, 1, 1], dtype)
    with pytest.raises(ExecutionError, match="node"):
        run_node(op, [a, b], device=device)
    (y,) = run_node(op, [a[:0], b[2:3]], device=device)  # nothing is divided
    assert y.shape == (0,)


@pytest.mark.parametrize("dtype", [*INTS, "int16", *WORDS])
def test_shifts(dtype):
    info = np.iinfo(dtype)
    x = np.array([info.min, info.max, 1, 5, 0, max(info.min, -6)], dtype)[:, None]
    amounts = [0, 1, 3, info.bits - 1, info.bits, info.bits + 9, info.max] + ([-1, info.min] if info.min else [])
    y = np.array(amounts, dtype)

    def shifted(v, n, left):
        if left:
            return (v << n) if 0 <= n < info.bits else 0
        return v >> (n if 0 <= n < info.bits else info.bits)

    for direction in ("LEFT", "RIGHT"):
        want = np.array(
            [[shifted(int(v), int(n), direction == "LEFT") % (1 << info.bits) for n in y] for v in x[:, 0]],
            f"uint{info.bits}",
        ).view(dtype)
        attrs = {"direction": direction}
        (z,) = run_node("BitShift", [x, y], attrs, device="reference")
        np.testing.assert_array_equal(z, want, strict=True)
        if dtype in INTS or (dtype in WORDS and direction == "LEFT"):
            for (z,) in compiled(NARY, "BitShift", [x, y], attrs):
                np.testing.assert_array_equal(z, want, strict=True)


def test_fmod_of_floats():
    rng = np.random.default_rng(1)
    for dtype in FLOATS:
        a, b = numbers(rng, (40, 50), dtype), numbers(rng, (40, 50), dtype)
        with np.errstate(all="ignore"):
            want = np.fmod(a, b)
        for (y,) in compiled(NARY, "Mod", [a, b], {"fmod": 1}):
            np.testing.assert_array_equal(y, want, strict=True)


def ulps(y, exact):
    return np.abs(y - exact) / np.ldexp(1.0, np.maximum(np.frexp(exact)[1], -125) - 24)


@pytest.mark.parametrize("exponent", [2, 3, 0.5, -0.5, 1, 0, -1, 2.2, -7, np.inf, -np.inf, np.nan, "array"])
def test_powers(exponent):
    rng = np.random.default_rng(2)
    x = np.concatenate([numbers(rng, 500, "float32"), np.exp(rng.uniform(-100, 88, 3000)).astype(np.float32), SPECIAL])
    y = numbers(rng, x.shape, "float32") if exponent == "array" else np.float32(exponent)
    with np.errstate(all="ignore"):
        # An exponent for each element: NumPy takes a square root for a single 1/2, which differs for -0 and -inf.
        exact = np.power(x.astype(np.float64), np.full(x.shape, y, np.float64))
        want = exact.astype(np.float32)
        finite = np.isfinite(want)
    for (z,) in compiled(NARY, "Pow", [x, y]):
        np.testing.assert_array_equal(z[~finite], want[~finite])
        # x * x * x rounds twice; the others are exact, rounded once, or good to a unit.
        assert np.all(ulps(z[finite], exact[finite]) <= 1.5)


def test_powers_of_integers_and_mixed_types():
    x = np.array([-3, -1, 0, 1, 2, 9], np.int32)
    for device in ("cpu", "reference"):
        (y,) = run_node("Pow", [x, np.array(3, np.int64)], device=device)
        np.testing.assert_array_equal(y, x**3, strict=True)
        (y,) = run_node("Pow", [x[x != 0], np.array(-3, np.int32)], device=device)
        np.testing.assert_array_equal(y, np.array([0, -1, 1, 0, 0], np.int32), strict=True)
        (y,) = run_node("Pow", [x[2:], np.array(0.5, np.float32)], device=device)
        np.testing.assert_array_equal(y, np.array([0, 1, 1, 3], np.int32), strict=True)
        (y,) = run_node("Pow", [x.astype(np.float32), np.array(2, np.int64)], device=device)
        np.testing.assert_array_equal(y, np.float32(x) ** 2, strict=True)
        with pytest.raises(ExecutionError, match="negative power"):
            run_node("Pow", [x, np.array(-1, np.int32)], device=device)


def test_prelu():
    x = np.float32([[-1, 2, -0.0, np.nan, -np.inf, 3]] * 50).reshape(2, 5, 30)
    for shape in ((), (30,), (5, 1), (2, 5, 30), (1, 5, 1)):
        slope = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
        with np.errstate(invalid="ignore"):
            want = np.where(x < 0, x * slope, x)
        for (y,) in compiled(NARY, "PRelu", [x, slope]):
            np.testing.assert_array_equal(y, want, strict=True)
    (y,) = run_node("PRelu", [np.array([-3, 2], np.int64), np.array(4, np.int64)])
    assert y.tolist() == [-12, 2]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(2, 6), st.data(), st.integers(0, 2**32 - 1))
def test_variadic(count, data, seed):
    shapes = data.draw(operands(count))
    rng = np.random.default_rng(seed)
    items = [numbers(rng, s, "float32") for s in shapes]
    for op, meaning in (("Max", np.maximum), ("Min", np.minimum), ("Sum", np.add), ("Mean", np.add)):
        want = items[0]
        with np.errstate(all="ignore"):
            for x in items[1:]:
                want = meaning(want, x)
            want = want / np.float32(count) if op == "Mean" else want
        for (y,) in compiled(NARY, op, items, threads=(1,)):
            np.testing.assert_array_equal(y, want, strict=True)


def test_one_operand_and_many():
    x = np.arange(6, dtype=np.float32)
    for op in ("Max", "Min", "Sum", "Mean"):
        np.testing.assert_array_equal(run_node(op, [x])[0], x)
    np.testing.assert_array_equal(run_node("Sum", [x] * 11)[0], x * 11)


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_halves_are_computed_in_float32(dtype):
    rng = np.random.default_rng(3)

    def halves(shape):
        x = rng.standard_normal(shape).astype(np.float32)
        return x.astype(np.float16) if dtype == DType.FLOAT16 else narrow(x, dtype)

    def wide(x):
        return x.astype(np.float32) if dtype == DType.FLOAT16 else widen(x, dtype)

    for shapes in ([(600,), (600,)], [(4, 5, 600), (5, 1)], [(700, 3), (3,)], [(), (300,)]):
        a, b = map(halves, shapes)
        dtypes = {0: dtype, 1: dtype}
        for op, f in (("Add", np.add), ("Mul", np.multiply), ("Div", np.divide), ("Max", np.maximum)):
            exact = f(wide(a), wide(b))
            want = exact.astype(np.float16) if dtype == DType.FLOAT16 else narrow(exact, dtype)
            for (y,) in compiled(NARY, op, [a, b], dtypes=dtypes):
                np.testing.assert_array_equal(y, want, strict=True)
        for (y,) in compiled(NARY, "Less", [a, b], dtypes=dtypes):
            np.testing.assert_array_equal(y, wide(a) < wide(b), strict=True)
        attrs = {"activation": "Relu"}
        want = np.maximum(wide(a) + wide(b), 0)
        want = want.astype(np.float16) if dtype == DType.FLOAT16 else narrow(want, dtype)
        for (y,) in compiled(NARY, "Add", [a, b], attrs, dtypes=dtypes):
            np.testing.assert_array_equal(y, want, strict=True)


PARAMETERS = {"Clip": (-0.5, 0.75), "LeakyRelu": (0.3,), "HardSigmoid": (0.3, 0.4), "Swish": (1.5,), "Elu": (0.7,)}


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "PRelu"])
def test_fused_activations(op, name):
    rng = np.random.default_rng(4)
    parameters = PARAMETERS.get(name, ())
    attrs = {"activation": name, **dict(zip(("activation_alpha", "activation_beta"), parameters, strict=False))}
    for shapes in ([(3000,), (3000,)], [(7, 450), (7, 1)], [(500, 3), (3,)]):
        a, b = (rng.standard_normal(s).astype(np.float32) for s in shapes)
        b = b + np.copysign(np.float32(0.1), b)
        y = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[op](a, b)
        full = (*parameters, *ACTIVATIONS[name].params[len(parameters) :], 0.0, 0.0)
        exact = ACTIVATIONS[name].reference(y.astype(np.float64), *full[:2])
        # Errors of the functions: see test_elementwise. |x| 2^-22 covers what cancels in GELU and HardSwish.
        allowed = 4 * 2.0**-24 * np.abs(exact) + 2.0**-22 * np.minimum(np.abs(y), 9) + 2.0**-23
        for (z,) in [*compiled(NARY, op, [a, b], attrs), run_node(op, [a, b], attrs, device="reference")]:
            assert z.dtype == np.float32
            assert np.all(np.abs(z - exact) <= allowed)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(operands(3), st.integers(0, 2**32 - 1), st.sampled_from(["int8", "float16", "float32", "int64", "float64"]))
def test_where(shapes, seed, dtype):
    rng = np.random.default_rng(seed)
    condition = numbers(rng, shapes[0], bool)
    x, y = (numbers(rng, s, dtype) for s in shapes[1:])
    want = np.where(condition, x, y)
    for (z,) in compiled("elementwise.where", "Where", [condition, x, y], threads=(1,)):
        np.testing.assert_array_equal(z, want, strict=True)


def test_where_of_long_rows_and_strings():
    rng = np.random.default_rng(5)
    rows = rng.integers(0, 2, (50, 1)).astype(bool)
    x, y = rng.standard_normal((50, 3000)), np.float64(7)
    for (z,) in compiled("elementwise.where", "Where", [rows, x, y]):
        np.testing.assert_array_equal(z, np.where(rows, x, y), strict=True)
    words = np.array([["a", "b"], ["c", "d"]], object)
    (z,) = run_node("Where", [np.array([True, False]), words, np.array("?", object)])
    assert z.tolist() == [["a", "?"], ["c", "?"]]
    (z,) = run_node("Equal", [words, np.array(["a", "d"], object)])
    assert z.tolist() == [[True, False], [False, True]]


def test_results_are_written_over_operands():
    """A chain in which the first operand, the second, and a broadcast one die: nothing is read after it is lost."""
    nodes = [
        Node("Exp", ["x"], ["a"]),
        Node("Sub", ["row", "a"], ["b"]),  # over its second operand
        Node("Mul", ["b", "b"], ["c"]),  # over both
        Node("Max", ["c", "x", "row"], ["d"]),
        Node("Less", ["d", "x"], ["e"]),
        Node("Where", ["e", "x", "d"], ["f"]),
        Node("Neg", ["row"], ["g"]),
        Node("Add", ["g", "f"], ["h"]),
    ]
    model = make_model(nodes, {"x": (DType.FLOAT, (50, 70)), "row": (DType.FLOAT, (70,))}, ["h"])
    rng = np.random.default_rng(6)
    feeds = {"x": rng.standard_normal((50, 70)).astype(np.float32), "row": np.arange(70, dtype=np.float32)}
    session = Session(model, threads=2)
    got = session.run(feeds)["h"]
    x, row = feeds["x"].astype(np.float64), feeds["row"].astype(np.float64)
    d = np.maximum((row - np.exp(x)) ** 2, np.maximum(x, row))
    np.testing.assert_allclose(got, np.where(d < x, x, d) - row, rtol=1e-5, atol=1e-4)
    assert set(drivers_of(session)) == {"elementwise.unary", NARY, "elementwise.where"}
    assert session.memory().arena < 3 * 50 * 70 * 4


@pytest.mark.parametrize("dtype", [DType.FLOAT, DType.DOUBLE, DType.FLOAT16])
def test_an_operand_may_be_written_over_and_read_again(dtype):
    nodes = [Node("Neg", ["x"], ["a"]), Node("Sum", ["a", "x", "a", "x", "a"], ["y"])]
    model = make_model(nodes, {"x": (dtype, (3000,))}, ["y"])
    x = np.arange(3000).astype(STORAGE[dtype]) / 16
    for threads in (1, 2):
        np.testing.assert_array_equal(Session(model, threads=threads).run({"x": x})["y"], -x)


F2, F3 = np.ones(2, np.float32), np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "error", "message"),
    [
        ("Add", [F2, F3], {}, ShapeError, "do not broadcast"),
        ("Add", [F2, np.ones(2)], {}, ShapeError, "one element type"),
        ("Add", [F2, F2], {"activation": "Wave"}, ShapeError, "unknown activation 'Wave'; known: Relu"),
        ("Add", [F2, F2], {"activation": "PRelu"}, ShapeError, "other operators"),
        ("Add", [F2, F2], {"activation": "Relu", "activation_alpha": 1.0}, ShapeError, "no parameter"),
        ("Add", [F2.astype(int), F2.astype(int)], {"activation": "Relu"}, ShapeError, "element types"),
        ("Sum", [F2, F3, F2], {}, ShapeError, "do not broadcast"),
        ("Mod", [F2, F2], {"fmod": 2}, ShapeError, "fmod"),
        ("PRelu", [F2, np.ones((2, 2), np.float32)], {}, ShapeError, "slope"),
        ("BitShift", [F2.astype(int), F2.astype(int)], {"direction": "UP"}, ShapeError, "direction"),
        ("BitShift", [F2.astype(int), F2.astype(int)], {}, ShapeError, "missing"),
        ("And", [F2, F2], {}, UnsupportedError, "float"),
        ("Where", [F2 > 0, F2, np.ones(2)], {}, ShapeError, "one element type"),
        ("Where", [F2, F2, F2], {}, UnsupportedError, "float"),
    ],
)
def test_what_is_refused(op, inputs, attrs, error, message):
    with pytest.raises(error, match=message):
        run_node(op, inputs, attrs)
