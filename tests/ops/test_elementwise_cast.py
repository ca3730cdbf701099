"""Casts between all element types, linear quantization: ONNX's cases, ml_dtypes as a second opinion, and drivers
against the references, which are exact."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_cases import check_node, node_cases
from support import compiled, drivers_of, node_model, run_node

from evort.errors import ExecutionError, ShapeError, UnsupportedError
from evort.ops.cast import convert
from evort.ops.lowp import narrow, truncate, widen
from evort.session import Session
from evort.types import RANGES, STORAGE, DType

CASES = node_cases("BitCast Cast CastLike DequantizeLinear DynamicQuantizeLinear QuantizeLinear")


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_onnx_cases(case, device):
    check_node(case, device)


# ---- types that NumPy lacks ------------------------------------------------------------------------------------

EIGHT_BITS = {
    DType.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
    DType.FLOAT8E4M3FNUZ: ml_dtypes.float8_e4m3fnuz,
    DType.FLOAT8E5M2: ml_dtypes.float8_e5m2,
    DType.FLOAT8E5M2FNUZ: ml_dtypes.float8_e5m2fnuz,
    DType.FLOAT8E8M0: ml_dtypes.float8_e8m0fnu,
    DType.FLOAT4E2M1: ml_dtypes.float4_e2m1fn,
}


@pytest.fixture(scope="module")
def floats():
    """Floats of all magnitudes, those that the small types distinguish, and the midpoints between them."""
    bits = np.arange(0, 1 << 32, 65521, dtype=np.uint64).astype(np.uint32)
    found = [bits.view(np.float32), np.float32([0, -0.0, np.inf, -np.inf, np.nan])]
    for dtype in EIGHT_BITS:
        exact = widen(np.arange(16 if dtype == DType.FLOAT4E2M1 else 256, dtype=np.uint8), dtype)
        exact = np.unique(exact[np.isfinite(exact)])
        middle = ((exact[1:].astype(np.float64) + exact[:-1]) / 2).astype(np.float32)
        found += [exact, middle, np.nextafter(middle, np.float32(9e9)), np.nextafter(middle, np.float32(-9e9))]
    return np.concatenate(found)


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_widening_small_floats(dtype):
    codes = np.arange(16 if dtype == DType.FLOAT4E2M1 else 256, dtype=np.uint8)
    want = codes.view(EIGHT_BITS[dtype]).astype(np.float32)
    got = widen(codes, dtype)
    np.testing.assert_array_equal(got, want, strict=True)
    np.testing.assert_array_equal(np.signbit(got[got == 0]), np.signbit(want[want == 0]))
    finite = ~np.isnan(got)
    np.testing.assert_array_equal(narrow(got, dtype, saturate=False)[finite], codes[finite])


@pytest.mark.parametrize("dtype", [d for d in EIGHT_BITS if d not in (DType.FLOAT8E8M0, DType.FLOAT4E2M1)])
def test_narrowing_to_float8(floats, dtype):
    kind = EIGHT_BITS[dtype]
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(narrow(floats, dtype, saturate=False), floats.astype(kind).view(np.uint8))
        top = ml_dtypes.finfo(kind).max.astype(np.float32)
        clipped = np.clip(floats, -top, top).astype(kind)
        np.testing.assert_array_equal(narrow(floats, dtype), clipped.view(np.uint8))


def test_narrowing_to_float4_and_powers_of_two(floats):
    numbers = floats[~np.isnan(floats)]
    with np.errstate(all="ignore"):
        want = numbers.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    np.testing.assert_array_equal(narrow(numbers, DType.FLOAT4E2M1), want)
    assert narrow(np.float32([np.nan]), DType.FLOAT4E2M1).tolist() == [8]
    x = np.float32([1, 1.25, 1.5, 1.75, 2, 0.75, 3e38, 2.0**-127, 2.0**-130])
    e8m0 = DType.FLOAT8E8M0
    assert narrow(x, e8m0, round_mode="up").tolist() == [127, 128, 128, 128, 128, 127, 254, 0, 0]
    assert narrow(x, e8m0, round_mode="down").tolist() == [127, 127, 127, 127, 128, 126, 254, 0, 0]
    assert narrow(x, e8m0, round_mode="nearest").tolist() == [127, 127, 128, 128, 128, 127, 254, 0, 0]
    special = np.float32([0, np.inf, np.nan])
    assert narrow(special, e8m0).tolist() == [0, 254, 255]
    assert narrow(special, e8m0, saturate=False).tolist() == [255, 255, 255]
    assert narrow(x, e8m0, False, "nearest").tolist() == [127, 127, 128, 128, 128, 127, 255, 0, 255]


def test_bfloat16(floats):
    codes = np.arange(1 << 16, dtype=np.uint16)
    np.testing.assert_array_equal(widen(codes, DType.BFLOAT16), codes.view(ml_dtypes.bfloat16).astype(np.float32))
    with np.errstate(invalid="ignore"):
        want = floats.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(narrow(floats, DType.BFLOAT16), want)


def test_small_integers_keep_the_low_bits(floats):
    names = {DType.INT4: "int4", DType.UINT4: "uint4", DType.INT2: "int2", DType.UINT2: "uint2"}
    for dtype, name in names.items():
        kind = getattr(ml_dtypes, name)
        whole = np.arange(-300, 300, dtype=np.int16)
        np.testing.assert_array_equal(narrow(whole, dtype), whole.astype(kind).astype(STORAGE[dtype]), strict=True)
        fits = np.abs(floats) < 2.0**31
        want = floats[fits].astype(kind).astype(STORAGE[dtype])
        np.testing.assert_array_equal(narrow(floats[fits], dtype), want, strict=True)
        # Others are the smallest integer on every processor, where those make of them what they like.
        assert not narrow(floats[~fits], dtype).any()


# ---- Cast ------------------------------------------------------------------------------------------------------

NATIVE = [d for d in DType if d in (*range(1, 8), *range(9, 14), DType.BFLOAT16)]


def held(x, dtype):
    """Numbers in an element type, however many of them it has."""
    with np.errstate(all="ignore"):
        if dtype == DType.BFLOAT16:
            return narrow(x, dtype)
        if x.dtype.kind == "f" and STORAGE[dtype].kind in "iu":
            return truncate(x, 64).astype(STORAGE[dtype])
        return x.astype(STORAGE[dtype])


SMALL = [0, -0.0, 1, -1, 0.5, -0.5, 1.5, 2.5, -2.7, 127, 128, -128, -129, 255, 256, -1.9, 32767.9, 32768, 65504]
LARGE = [65519, 65520, 65535, 65536, 2.0**31 - 1, 2.0**31, -(2.0**31), -(2.0**31) - 1, 2.0**32, 2.0**53 + 1, 2.0**63]
ODD = [-(2.0**63), 2.0**64, 1e30, -1e30, 1e300, 1e-45, 6e-8, 2.9e-8, 1 + 2.0**-11, 1 + 2.0**-11 + 2.0**-40]
EXTREMES = np.array([*SMALL, *LARGE, *ODD, np.inf, -np.inf, np.nan])


@pytest.mark.parametrize("source", NATIVE, ids=lambda d: d.name)
def test_casts_equal_the_reference(source):
    rng = np.random.default_rng(0)
    numbers = np.concatenate([EXTREMES, rng.standard_normal(700) * 10.0 ** rng.integers(-9, 20, 700)])
    x = held(numbers, source)
    if STORAGE[source].kind in "iu" and source != DType.BFLOAT16:
        info = np.iinfo(x.dtype)
        x = np.concatenate([x, np.array([info.min, info.max, info.max - 1], x.dtype)])
    for to in NATIVE:
        model = node_model("Cast", [x], {"to": int(to)}, dtypes={0: source})
        want = convert(x, source, to)
        session = Session(model, threads=1)
        got = session.run({"in0": x})["out0"]
        np.testing.assert_array_equal(got, want, err_msg=to.name, strict=True)
        if drivers_of(session):  # no step where the bits stay as they are
            for (y,) in compiled("elementwise.cast", "Cast", [x], {"to": int(to)}, dtypes={0: source}):
                np.testing.assert_array_equal(y, want, err_msg=to.name, strict=True)


def test_casts_in_range_equal_numpy():
    rng = np.random.default_rng(1)
    x = rng.uniform(-100, 100, 1000)
    for source in ("int8", "int16", "int32", "int64", "float32", "float64", "float16"):
        for target in ("int8", "int16", "int32", "int64", "float32", "float64", "float16", "bool"):
            v = x.astype(source)
            to = next(int(d) for d, s in STORAGE.items() if s == target and d in NATIVE)
            (y,) = run_node("Cast", [v], {"to": to})
            np.testing.assert_array_equal(y, v.astype(target), strict=True)


def test_every_float16():
    codes = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    for (y,) in compiled("elementwise.cast", "Cast", [codes], {"to": int(DType.FLOAT)}):
        np.testing.assert_array_equal(y, codes.astype(np.float32), strict=True)
    exact = np.sort(codes[np.isfinite(codes)]).astype(np.float64)
    middle = (exact[1:] + exact[:-1]) / 2
    x = np.concatenate([exact, middle, np.nextafter(middle, 9e9), np.nextafter(middle, -9e9), [65519.99, 65520]])
    for v in (x, x.astype(np.float32)):
        with np.errstate(over="ignore"):
            want = v.astype(np.float16)
        for (y,) in compiled("elementwise.cast", "Cast", [v], {"to": int(DType.FLOAT16)}):
            np.testing.assert_array_equal(y.view(np.uint16), want.view(np.uint16))


def test_large_casts_split_among_threads():
    x = np.arange(100000, dtype=np.float32)
    for (y,) in compiled("elementwise.cast", "Cast", [x], {"to": int(DType.FLOAT16)}, threads=(1, 2, 3)):
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(y, x.astype(np.float16), strict=True)


def test_casts_of_strings():
    words = np.array(["1.5", "-INF", "+inf", "NaN", "1e-5", "100"], object)
    (y,) = run_node("Cast", [words], {"to": int(DType.FLOAT)})
    np.testing.assert_array_equal(y, np.float32([1.5, -np.inf, np.inf, np.nan, 1e-5, 100]), strict=True)
    (y,) = run_node("Cast", [words[[0, 5]]], {"to": int(DType.INT32)})
    np.testing.assert_array_equal(y, np.array([1, 100], np.int32), strict=True)
    big = np.array(["9007199254740993", "-5"], object)
    assert run_node("Cast", [big], {"to": int(DType.INT64)})[0].tolist() == [2**53 + 1, -5]
    (y,) = run_node("Cast", [np.float32([0.1, 2, -np.inf])], {"to": int(DType.STRING)})
    assert y.tolist() == ["0.1", "2.0", "-inf"]
    (y,) = run_node("CastLike", [words, np.zeros(1, np.float16)])
    assert y.dtype == np.float16
    with pytest.raises(ExecutionError, match="hello"):
        run_node("Cast", [np.array(["hello"], object)], {"to": 1})


def test_cast_like_takes_the_element_type_alone():
    x = np.float32([1.5, -2.5, 300])
    for (y,) in compiled("elementwise.cast", "CastLike", [x, np.zeros((2, 0), np.int16)]):
        np.testing.assert_array_equal(y, x.astype(np.int16), strict=True)


def test_bits_stay():
    for source, to in ((np.float32, DType.INT32), (np.uint8, DType.INT8), (np.float64, DType.UINT64)):
        x = np.array([1, 2, 200], source)
        (y,) = run_node("BitCast", [x], {"to": int(to)})
        np.testing.assert_array_equal(y, x.view(STORAGE[to]), strict=True)
    nibbles = np.array([-8, -1, 0, 7], np.int8)
    for device in ("cpu", "reference"):
        (y,) = run_node("BitCast", [nibbles], {"to": int(DType.UINT4)}, dtypes={0: DType.INT4}, device=device)
        assert y.tolist() == [8, 15, 0, 7]
        (z,) = run_node("BitCast", [y], {"to": int(DType.INT4)}, dtypes={0: DType.UINT4}, device=device)
        assert z.tolist() == nibbles.tolist()
    (y,) = run_node("BitCast", [np.array([0, 1, 2], np.uint8)], {"to": int(DType.BOOL)})
    assert y.dtype == bool and y.view(np.uint8).tolist() == [0, 1, 1]


# ---- QuantizeLinear and its kin ---------------------------------------------------------------------------------


@st.composite
def quantized(draw):
    """(x's shape, scale's shape, attributes): per tensor, per axis or in blocks."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    axis = draw(st.integers(0, len(shape) - 1))
    if draw(st.booleans()):
        shape[draw(st.integers(0, len(shape) - 1))] = draw(st.integers(20, 600))
    kind = draw(st.sampled_from(["tensor", "axis", "block"]))
    given_axis = axis - len(shape) if draw(st.booleans()) else axis
    if kind == "tensor":
        return tuple(shape), (), {}
    if kind == "axis":
        return tuple(shape), (shape[axis],), {"axis": given_axis}
    block = draw(st.integers(1, 4))
    shape[axis] = min(shape[axis], 40) * block
    scale = [*shape]
    scale[axis] //= block
    return tuple(shape), tuple(scale), {"axis": given_axis, "block_size": block}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(quantized(), st.sampled_from(sorted(RANGES)), st.booleans(), st.integers(0, 2**32 - 1))
def test_quantize_and_dequantize(case, dtype, has_zero, seed):
    shape, scales, attrs = case
    rng = np.random.default_rng(seed)
    low, high = RANGES[dtype]
    scale = rng.uniform(0.01, 2, scales).astype(np.float32)
    zero = rng.integers(low, high + 1, scales).astype(STORAGE[dtype]) if has_zero else None
    x = (rng.standard_normal(shape) * rng.choice([0.5, 30, 1e5], shape)).astype(np.float32)
    x.reshape(-1)[:: max(1, x.size // 5)] = rng.choice(np.float32([np.nan, np.inf, -np.inf, 0, 2.5]))

    full = np.broadcast_to(scale, ()) if not scales else scale
    zeros = np.zeros(scales) if zero is None else zero
    if scales:
        axis = attrs["axis"] % len(shape)
        if "block_size" in attrs:
            full, zeros = (np.repeat(v, attrs["block_size"], axis) for v in (full, zeros))
        else:
            view = [-1 if i == axis else 1 for i in range(len(shape))]
            full, zeros = full.reshape(view), zeros.reshape(view)
    with np.errstate(all="ignore"):
        ratio = np.rint(x / full).astype(np.float64) + zeros
    want = np.where(np.isnan(ratio), low, np.clip(ratio, low, high)).astype(STORAGE[dtype])
    given_ = [x, scale] if zero is None else [x, scale, zero]
    attrs_q = {**attrs, "output_dtype": int(dtype)}
    types = {2: dtype} if has_zero else {}
    results = compiled("quantize.quantize", "QuantizeLinear", given_, attrs_q, dtypes=types, threads=(1,))
    for (q,) in [*results, run_node("QuantizeLinear", given_, attrs_q, dtypes=types, device="reference")]:
        np.testing.assert_array_equal(q, want, strict=True)

    given_ = [want, *given_[1:]]
    types = {0: dtype, **types}
    back = (want.astype(np.float32) - zeros.astype(np.float32)) * full
    results = compiled("quantize.dequantize", "DequantizeLinear", given_, attrs, dtypes=types, threads=(1,))
    for (y,) in [*results, run_node("DequantizeLinear", given_, attrs, dtypes=types, device="reference")]:
        np.testing.assert_array_equal(y, back, strict=True)


def test_large_tensors_split_among_threads():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((64, 1000)).astype(np.float32)
    scale = rng.uniform(0.01, 0.1, 64).astype(np.float32)
    want = np.clip(np.rint(x / scale[:, None]), -128, 127).astype(np.int8)
    zero = np.zeros(64, np.int8)
    for (q,) in compiled("quantize.quantize", "QuantizeLinear", [x, scale, zero], {"axis": 0}, threads=(1, 2, 3)):
        np.testing.assert_array_equal(q, want, strict=True)
    bias = rng.integers(-(2**31), 2**31, (64, 1000)).astype(np.int32)
    for (y,) in compiled("quantize.dequantize", "DequantizeLinear", [bias, scale], {"axis": 0}, threads=(1, 2)):
        np.testing.assert_array_equal(y, bias.astype(np.float32) * scale[:, None], strict=True)


def test_last_block_may_be_short():
    x = np.arange(10, dtype=np.float32)
    scale = np.float32([1, 2, 4])
    (q,) = run_node("QuantizeLinear", [x, scale], {"axis": 0, "block_size": 4, "output_dtype": int(DType.INT8)})
    assert q.tolist() == [0, 1, 2, 3, 2, 2, 3, 4, 2, 2]
    (y,) = run_node("DequantizeLinear", [q, scale], {"axis": 0, "block_size": 4})
    assert y.tolist() == [0, 1, 2, 3, 4, 4, 6, 8, 8, 8]


def test_precision_of_the_division():
    x, scale = np.float32([1000.5]), np.float32([0.1])
    (q,) = run_node("QuantizeLinear", [x, scale], {"output_dtype": int(DType.UINT16)})
    assert q.tolist() == [10005]
    (q,) = run_node("QuantizeLinear", [x, scale], {"output_dtype": int(DType.UINT16), "precision": int(DType.FLOAT16)})
    assert q.tolist() == [int(np.rint(np.float16(1000.5) / np.float16(0.1)))]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 3000), st.sampled_from([1.0, -1.0, 0.0]), st.integers(0, 2**32 - 1))
def test_dynamic_quantization(n, sign, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n).astype(np.float32)
    x = np.float32(sign) * np.abs(x) if sign else x
    top, bottom = max(0, x.max(initial=0)), min(0, x.min(initial=0))
    scale = np.float32(top - bottom if top != bottom else 1) / np.float32(255)
    zero = np.rint(np.clip(-bottom / scale, 0, 255))
    want = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.uint8)
    results = compiled("quantize.dynamic_quantize", "DynamicQuantizeLinear", [x], outputs=3)
    for q, s, z in [*results, run_node("DynamicQuantizeLinear", [x], outputs=3, device="reference")]:
        assert s == scale and s.shape == () and s.dtype == np.float32
        assert z == zero and z.shape == () and z.dtype == np.uint8
        np.testing.assert_array_equal(q, want, strict=True)


def test_dynamic_quantization_of_large_and_odd_tensors():
    x = np.linspace(-1, 3, 100001, dtype=np.float32)
    first, *rest = compiled("quantize.dynamic_quantize", "DynamicQuantizeLinear", [x], outputs=3, threads=(1, 2, 3))
    for other in rest:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b, strict=True)
    odd = np.float32([np.nan, 1, -1, np.inf])
    for q, s, z in compiled("quantize.dynamic_quantize", "DynamicQuantizeLinear", [odd], outputs=3):
        want = run_node("DynamicQuantizeLinear", [odd], outputs=3, device="reference")
        assert s == np.inf and [q.tolist(), z.tolist()] == [want[0].tolist(), want[2].tolist()]


F = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "error", "message"),
    [
        ("Cast", [F], {"to": 99}, ShapeError, "99"),
        ("Cast", [F], {"to": 0}, ShapeError, "0 is the number"),
        ("Cast", [F], {"to": int(DType.COMPLEX64)}, ShapeError, "complex"),
        ("Cast", [F], {}, ShapeError, "missing"),
        ("Cast", [F], {"to": 24, "round_mode": "odd"}, ShapeError, "round_mode"),
        ("BitCast", [F], {"to": int(DType.DOUBLE)}, ShapeError, "bits"),
        ("BitCast", [F], {"to": int(DType.STRING)}, ShapeError, "bits"),
        ("QuantizeLinear", [F, F[0]], {"axis": 0}, ShapeError, "axis 0"),
        ("QuantizeLinear", [F, F[0]], {"axis": 2}, ShapeError, "axis 2"),
        ("QuantizeLinear", [F, F[0], np.zeros(2, np.uint8)], {}, ShapeError, "one shape"),
        ("QuantizeLinear", [F, F[0], np.zeros(3, np.uint8)], {"output_dtype": 3}, ShapeError, "output_dtype"),
        ("QuantizeLinear", [F, F[0]], {"output_dtype": 7}, ShapeError, "int64"),
        ("QuantizeLinear", [F, F[0]], {"precision": 11}, ShapeError, "precision"),
        ("QuantizeLinear", [F, F], {"block_size": -1}, ShapeError, "negative"),
        ("QuantizeLinear", [F, F], {"block_size": 2}, ShapeError, "block"),
        ("QuantizeLinear", [F.astype(float), F], {}, UnsupportedError, "double"),
        ("DequantizeLinear", [F.astype(np.int8), F[0, 0], np.uint8(1)], {}, ShapeError, "one element type"),
        ("DequantizeLinear", [F.astype(np.int8), F[0]], {"output_dtype": 6}, ShapeError, "output_dtype"),
    ],
)
def test_what_is_refused(op, inputs, attrs, error, message):
    with pytest.raises(error, match=message):
        run_node(op, inputs, attrs)
