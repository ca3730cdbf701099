"""Unary operators: ONNX's cases, and the drivers' errors over the whole range of each float type."""

import math

import numpy as np
import pytest
from onnx_cases import check_node, node_cases
from support import compiled, run_node

from evort.errors import ShapeError, UnsupportedError
from evort.ops.lowp import narrow, widen
from evort.types import DType

CASES = node_cases(
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh "
    "Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_onnx_cases(case, device):
    check_node(case, device)


def erf(x):
    return np.array([math.erf(v) for v in x.tolist()])


def sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def expm1(x):
    return np.expm1(np.minimum(x, 0))


def f32(value):
    return float(np.float32(value))


ALPHA, GAMMA = f32(1.6732631921768188), f32(1.0507010221481323)
C = math.sqrt(2 / math.pi)
U = 2.0**-24
TINY = 2.0**-149

# name: (meaning in float64, error allowed in units in the last place of the exact result, and beside it, as a function
# of x). The first is what every 1021st float shows, rounded up; the second is explained where there is one.
FUNCTIONS = {
    "Abs": (np.abs, 0, None),
    "Neg": (np.negative, 0, None),
    "Sign": (np.sign, 0, None),
    "Floor": (np.floor, 0, None),
    "Ceil": (np.ceil, 0, None),
    "Round": (np.rint, 0, None),
    "Relu": (lambda x: np.maximum(x, 0), 0, None),
    "LeakyRelu": (lambda x: np.where(x < 0, f32(0.01) * x, x), 0.5, None),
    "ThresholdedRelu": (lambda x: np.where(x > 1, x, 0), 0, None),
    "Sqrt": (np.sqrt, 0.5, None),
    "Reciprocal": (lambda x: 1 / x, 0.5, None),
    "Exp": (np.exp, 1.1, None),
    "Log": (np.log, 0.9, None),
    "Sin": (np.sin, 1.6, None),
    "Cos": (np.cos, 1.6, None),
    "Tan": (np.tan, 1.2, None),
    "Asin": (np.arcsin, 1, None),
    "Acos": (np.arccos, 1, None),
    "Atan": (np.arctan, 1, None),
    "Sinh": (np.sinh, 2, None),
    "Cosh": (np.cosh, 2, None),
    "Asinh": (np.arcsinh, 2, None),
    "Acosh": (np.arccosh, 2, None),
    "Atanh": (np.arctanh, 2, None),
    "Tanh": (np.tanh, 2.5, None),
    "Sigmoid": (sigmoid, 2.4, None),
    "Softplus": (softplus, 2.5, None),
    "Erf": (erf, 1.5, None),
    "Elu": (lambda x: np.where(x < 0, expm1(x), x), 1.5, None),
    "Selu": (lambda x: np.where(x < 0, ALPHA * GAMMA * expm1(x), GAMMA * x), 2.5, None),
    "Celu": (lambda x: np.where(x < 0, expm1(x), x), 1.5, None),
    "Softsign": (lambda x: x / (1 + np.abs(x)), 2, None),
    "Shrink": (lambda x: np.where(np.abs(x) > 0.5, x, 0), 0, None),
    # Below -87 the factor is a denormal number, right to half a unit; |x| times that, x being above -105 there.
    "Swish": (lambda x: x * sigmoid(x), 3, lambda x: np.where(x < -87, 105 * TINY, 0)),
    "Mish": (lambda x: x * np.tanh(softplus(x)), 4, lambda x: np.where(x < -87, 105 * TINY, 0)),
    # Near their zeros a sum of numbers below 1 cancels: two roundings of it, U/2 each, times the factor before it.
    "HardSigmoid": (lambda x: np.clip(f32(0.2) * x + 0.5, 0, 1), 1, lambda x: U),
    "HardSwish": (lambda x: x * np.clip(x / 6 + 0.5, 0, 1), 2, lambda x: np.where(np.abs(x) < 3.1, U * np.abs(x), 0)),
    # Of |x| Q, where Q is at most a half: 1.6 U of its polynomial, one of rounding it, 0.7 (ln 2) of its exponent's.
    "Gelu": (lambda x: 0.5 * x * (1 + erf(x * math.sqrt(0.5))), 1, lambda x: 1.7 * U * np.minimum(np.abs(x), 9)),
}


@pytest.fixture(scope="module")
def floats():
    """Every 16,381st float (a prime, so that low bits vary), denormals, infinities and NaN among them, and more of
    those around zero."""
    bits = np.arange(0, 1 << 32, 16381, dtype=np.uint64).astype(np.uint32)
    special = [0, -0.0, 1, -1, 0.5, 1.5, -2.5, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 88.7, -103.9, 2**23 + 1, 3.4e38]
    return np.concatenate([bits.view(np.float32), np.float32(special), np.linspace(-20, 20, 40001, dtype=np.float32)])


def ulp(exact, digits, least):
    """A unit in the last place of a format with `digits` binary digits and normal numbers from 2^least on."""
    exponent = np.frexp(np.where(np.isfinite(exact), exact, 1))[1]
    return np.ldexp(1.0, np.maximum(exponent, least + 1) - digits)


@pytest.mark.parametrize("op", FUNCTIONS)
def test_errors_in_float32(op, floats):
    meaning, units, beside = FUNCTIONS[op]
    with np.errstate(all="ignore"):
        wide = floats.astype(np.float64)
        exact = meaning(wide)
        want = exact.astype(np.float32)
        allowed = units * ulp(exact, 24, -126) + (0 if beside is None else beside(wide))
        finite = np.isfinite(want)
        for (y,) in compiled("elementwise.unary", op, [floats], threads=(1,)):
            np.testing.assert_array_equal(y[~finite], want[~finite])
            excess = np.where(finite, np.abs(y - exact) - allowed, 0)
            worst = np.argmax(excess)
            assert excess[worst] <= 0, f"{op}({floats[worst].item().hex()}) is {y[worst]}, not {want[worst]}"


def test_gelu_by_tanh(floats):
    x = floats[np.abs(floats) < 1e12]  # its cube is a float
    wide = x.astype(np.float64)
    exact = 0.5 * wide * (1 + np.tanh(C * (wide + 0.044715 * wide**3)))
    # 1 + tanh cancels: 2.5 units of tanh, its argument's four roundings weighed by z (1 - tanh(z)^2) < 0.45, the sum.
    allowed = 4 * ulp(exact, 24, -126) + 4 * U * np.minimum(np.abs(wide), 9)
    for (y,) in compiled("elementwise.unary", "Gelu", [x], {"approximate": "tanh"}, threads=(1,)):
        assert np.all(np.abs(y - exact) <= allowed)


def test_signs_of_zero_and_ties():
    zeros = np.float32([0.0, -0.0])
    for op in ("Sin", "Tan", "Tanh", "Asin", "Atan", "Sinh", "Asinh", "Atanh", "Erf", "Floor", "Ceil", "Round", "Sqrt"):
        for (y,) in compiled("elementwise.unary", op, [zeros]):
            assert np.signbit(y).tolist() == [False, True], op
    halves = np.float32([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 8388607.5, -0.2])
    for (y,) in compiled("elementwise.unary", "Round", [halves]):
        np.testing.assert_array_equal(y, np.rint(halves))
        assert np.signbit(y[-1])
    (y,) = compiled("elementwise.unary", "Ceil", [np.float32([-0.5])])[0]
    assert y[0] == 0 and np.signbit(y[0])


# Those above 2 float32 units err by at most 4; a float16 has 13 bits fewer, a bfloat16 16.
HALVES = sorted(set(FUNCTIONS) - {"HardSigmoid", "HardSwish", "Gelu", "Swish", "Mish", "Shrink"})


@pytest.mark.parametrize("op", HALVES)
def test_errors_in_float16_and_bfloat16(op):
    bits = np.arange(1 << 16, dtype=np.uint16)
    for x, dtype, digits, least, spare in (
        (bits.view(np.float16), DType.FLOAT16, 11, -14, 13),
        (bits, DType.BFLOAT16, 8, -126, 16),
    ):
        with np.errstate(all="ignore"):
            wide = x.astype(np.float64) if dtype == DType.FLOAT16 else widen(x, dtype).astype(np.float64)
            exact = FUNCTIONS[op][0](wide)
            want = exact.astype(np.float16) if dtype == DType.FLOAT16 else widen(narrow(exact, dtype), dtype)
            allowed = (0.5 + 4 * 2.0**-spare) * ulp(exact, digits, least)
            finite = np.isfinite(want)
            for (y,) in compiled("elementwise.unary", op, [x], threads=(2,), dtypes={0: dtype}):
                y = y if dtype == DType.FLOAT16 else widen(y, dtype)
                np.testing.assert_array_equal(y[~finite], want[~finite])
                assert np.all(np.abs(y[finite] - exact[finite]) <= allowed[finite])


FLOAT64 = sorted(
    {"Abs", "Neg", "Sign", "Floor", "Ceil", "Round", "Relu", "Sqrt", "Reciprocal", "Exp", "Log", "Sin", "Cos", "Tan"}
    | {"Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "Tanh", "Sigmoid", "Erf"}
)


@pytest.mark.parametrize("op", FLOAT64)
def test_float64_equals_the_reference(op, floats):
    with np.errstate(invalid="ignore"):
        x = floats[::7].astype(np.float64) * 1.0000000123
    (want,) = run_node(op, [x], device="reference")
    for (y,) in compiled("elementwise.unary", op, [x]):
        # Both are elementary functions of libm quality, which is 4 units in the last place for the worst of them.
        np.testing.assert_allclose(y, want, rtol=4 * 2.0**-52, atol=0)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_integers_wrap(dtype):
    info = np.iinfo(dtype)
    x = np.array([0, 1, -1, 7, -7, info.min, info.max, info.min + 1] * 5, dtype)
    for op, meaning in (("Abs", np.abs), ("Neg", np.negative), ("Sign", np.sign), ("Relu", lambda v: np.maximum(v, 0))):
        for (y,) in compiled("elementwise.unary", op, [x]):
            np.testing.assert_array_equal(y, meaning(x), strict=True)
    for kind in (dtype, np.dtype(dtype).str.replace("i", "u")):
        v = x.view(kind)
        for (y,) in compiled("elementwise.unary", "BitwiseNot", [v]):
            np.testing.assert_array_equal(y, ~v, strict=True)


def test_not():
    x = np.arange(77) % 3 == 0
    for (y,) in compiled("elementwise.unary", "Not", [x]):
        np.testing.assert_array_equal(y, ~x, strict=True)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (50000,)])
def test_any_size(shape):
    x = np.full(shape, -2, np.float32)
    for (y,) in compiled("elementwise.unary", "Abs", [x]):
        np.testing.assert_array_equal(y, np.abs(x), strict=True)


def test_activation_parameters():
    x = np.linspace(-3, 3, 61, dtype=np.float32)
    for op, attrs, meaning in (
        ("LeakyRelu", {"alpha": 0.25}, lambda v: np.where(v < 0, 0.25 * v, v)),
        ("Elu", {"alpha": 2.0}, lambda v: np.where(v < 0, 2 * np.expm1(v), v)),
        ("Celu", {"alpha": 2.0}, lambda v: np.where(v < 0, 2 * np.expm1(v / 2), v)),
        ("Selu", {"alpha": 2.0, "gamma": 3.0}, lambda v: np.where(v < 0, 6 * np.expm1(v), 3 * v)),
        ("HardSigmoid", {"alpha": 0.5, "beta": 0.25}, lambda v: np.clip(0.5 * v + 0.25, 0, 1)),
        ("ThresholdedRelu", {"alpha": -1.0}, lambda v: np.where(v > -1, v, 0)),
        ("Shrink", {"bias": 0.5, "lambd": 1.0}, lambda v: np.where(v < -1, v + 0.5, np.where(v > 1, v - 0.5, 0))),
        ("Swish", {"alpha": 2.0}, lambda v: v / (1 + np.exp(-2 * v))),
    ):
        want = meaning(x.astype(np.float64))
        for (y,) in [*compiled("elementwise.unary", op, [x], attrs), run_node(op, [x], attrs, device="reference")]:
            np.testing.assert_allclose(y, want, rtol=4 * 2 * U, atol=2 * U)


def test_clip():
    x = np.float32([-np.inf, -3, -0.5, 0, 0.5, 3, np.inf, np.nan] * 9)
    half, two, nan = np.float32(-0.5), np.float32(2), np.float32(np.nan)
    for low, high in ((half, two), (None, two), (half, None), (two, half)):
        want = x if low is None else np.maximum(x, low)
        want = want if high is None else np.minimum(want, high)
        given = [x, low, high] if high is not None else [x, low]
        for constants in ((), tuple(i for i in (1, 2) if i < len(given) and given[i] is not None)):
            driver = "elementwise.unary" if constants else "elementwise.nary"
            for (y,) in compiled(driver, "Clip", given, constants=constants):
                np.testing.assert_array_equal(y, want)
    for (y,) in compiled("elementwise.nary", "Clip", [x, nan, two], constants=(1, 2)):
        assert np.isnan(y).all()  # as NumPy has it
    (y,) = run_node("Clip", [x])
    np.testing.assert_array_equal(y, x)
    whole = np.arange(-40, 40, dtype=np.int64)
    for kind in (np.int8, np.int32, np.int64, np.float16, np.float64):
        v = whole.astype(kind)
        for (y,) in compiled("elementwise.nary", "Clip", [v, kind(-5), kind(7)]):
            np.testing.assert_array_equal(y, np.clip(v, -5, 7), strict=True)


def test_kinds_of_floats():
    x = np.float32([0, 1, np.nan, np.inf, -np.inf, -np.nan, 6e4, -1e-5] * 70)
    every = [(x, None), (x.astype(np.float16), None), (narrow(x, DType.BFLOAT16), {0: DType.BFLOAT16})]
    for v, dtypes in every:
        wide = x if dtypes else v
        for attrs, want in (
            ({}, np.isinf(wide)),
            ({"detect_negative": 0}, np.isposinf(wide)),
            ({"detect_positive": 0}, np.isneginf(wide)),
            ({"detect_positive": 0, "detect_negative": 0}, np.zeros(x.shape, bool)),
        ):
            for (y,) in compiled("elementwise.classify", "IsInf", [v], attrs, dtypes=dtypes):
                np.testing.assert_array_equal(y, want, strict=True)
        for (y,) in compiled("elementwise.classify", "IsNaN", [v], dtypes=dtypes):
            np.testing.assert_array_equal(y, np.isnan(wide), strict=True)


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "error", "message"),
    [
        ("Gelu", [np.ones(2, np.float32)], {"approximate": "erf"}, ShapeError, "approximate"),
        ("Clip", [np.ones(2, np.float32), np.ones(2, np.float32)], {}, ShapeError, "scalars"),
        ("Clip", [np.ones(2, np.float32), np.ones((), np.float64)], {}, ShapeError, "element type"),
        ("Exp", [np.ones(2, np.int32)], {}, UnsupportedError, "int32"),
        ("Not", [np.ones(2, np.float32)], {}, UnsupportedError, "float"),
        ("Elu", [np.ones(2, np.float32)], {"beta": 1.0}, ShapeError, "beta"),
    ],
)
def test_what_is_refused(op, inputs, attrs, error, message):
    with pytest.raises(error, match=message):
        run_node(op, inputs, attrs)
