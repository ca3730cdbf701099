"""evort.blas on NumPy arrays against float64 (for float64: extended precision) references.

Tolerance: a sum of k products, each rounded, in any order, is off by at most gamma(k) * sum |a||b|, where gamma(k) =
k*eps / (1 - k*eps) and eps is half a unit in the last place (Higham, Accuracy and Stability, section 3.1). Scaling by
alpha and beta and adding the old value add four more roundings.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evort import blas
from evort._kernels import core
from evort.ops.nbits import widen

REALS = [np.float32, np.float64]
WIDE = {np.dtype(np.float32): np.float64, np.dtype(np.float64): np.longdouble}


def gamma(k: int, dtype) -> float:
    eps = float(np.finfo(dtype).eps) / 2
    return k * eps / (1 - k * eps)


@pytest.fixture(params=core.available_isas(), autouse=True)
def isa(request):
    core.select_isa(request.param)
    yield request.param
    core.select_isa("")


def strided(rng: np.random.Generator, shape: tuple[int, ...], dtype, steps: tuple[int, ...], order: str = "C"):
    """Random numbers in an array whose axes step over memory by `steps` elements of a larger one; may be negative."""
    whole = rng.standard_normal([n * abs(s) for n, s in zip(shape, steps, strict=True)]).astype(dtype)
    whole = np.asarray(whole, order=order)
    view = whole[tuple(slice(None, None, s) for s in steps)]
    assert view.shape == shape
    return view


def check_product(got, alpha, a, b, beta, c):
    """got == alpha*a@b + beta*c within the bound."""
    wide = WIDE[got.dtype]
    a, b, c = a.astype(wide), b.astype(wide), c.astype(wide)
    want = alpha * (a @ b) + (beta * c if beta != 0 else 0)
    sizes = abs(alpha) * (np.abs(a) @ np.abs(b)) + abs(beta) * np.abs(c)
    assert got.shape == want.shape
    assert np.all(np.abs(got - want) <= gamma(a.shape[-1] + 4, got.dtype) * sizes)


steps = st.sampled_from([1, 1, -1, 2, -3])
orders = st.sampled_from("CF")
lengths = st.one_of(st.integers(0, 40), st.just(530))  # past the 512 elements that gemv gathers at a time
scalars = st.sampled_from([0.0, 1.0, -1.0, 0.7])
sizes = st.one_of(st.integers(0, 20), st.sampled_from([31, 33, 64, 97, 130]))
depths = st.one_of(st.integers(0, 20), st.sampled_from([63, 321, 700]))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.sampled_from(REALS), sizes, sizes, depths, st.tuples(steps, steps), st.tuples(steps, steps), orders, orders,
       orders, st.booleans(), st.booleans(), scalars, scalars, st.integers(1, 3))  # fmt: skip
def test_gemm(dtype, m, n, k, a_steps, b_steps, a_order, b_order, c_order, trans_a, trans_b, alpha, beta, threads):
    rng = np.random.default_rng(m * 1_000_003 + n * 1009 + k)
    a = strided(rng, (k, m) if trans_a else (m, k), dtype, a_steps, a_order)
    b = strided(rng, (n, k) if trans_b else (k, n), dtype, b_steps, b_order)
    c = strided(rng, (m, n), dtype, (3, 1) if c_order == "C" else (1, 3), c_order)
    old = c.copy()
    got = blas.gemm(a, b, c, alpha, beta, trans_a, trans_b, threads)
    assert got is c
    check_product(c, alpha, a.T if trans_a else a, b.T if trans_b else b, beta, old)


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5000, 70), (5000, 1, 70), (1, 3, 3000), (7, 1030, 33), (8, 40, 1300),
                                   (200, 49, 1153), (300, 170, 40), (6, 16, 4), (25, 36, 150), (300, 1, 5), (1, 300, 7),
                                   (70, 3, 9), (3, 90, 40), (33, 17, 20), (130, 70, 66), (40, 70, 1024),
                                   (258, 261, 1024)])  # fmt: skip
@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
def test_gemm_of_every_method(dtype, shape, layout):
    m, n, k = shape
    rng = np.random.default_rng(3)
    a = rng.standard_normal((m, k) if layout[0] == "n" else (k, m)).astype(dtype)
    b = rng.standard_normal((k, n) if layout[1] == "n" else (n, k)).astype(dtype)
    flags = {"trans_a": layout[0] == "t", "trans_b": layout[1] == "t"}
    c = blas.gemm(a, b, threads=1, **flags)
    check_product(c, 1, a.T if flags["trans_a"] else a, b.T if flags["trans_b"] else b, 0, c)
    np.testing.assert_array_equal(blas.gemm(a, b, threads=3, **flags), c)  # the same bits for any number of threads


@pytest.mark.parametrize("dtype", REALS)
def test_columns_by_short_rows(dtype):
    """Rows that are transposed a few hundred at a time, side by side or apart; the last of them end the matrix."""
    rng = np.random.default_rng(4)
    for m in (64, 65, 255, 256, 257, 260, 600):
        for k in range(1, 9):
            for lda in (k, k + 1, 11):
                a = rng.standard_normal(m * lda).astype(dtype)[: (m - 1) * lda + k]
                a = np.lib.stride_tricks.as_strided(a, (m, k), (lda * a.itemsize, a.itemsize))
                x, y = rng.standard_normal((k, 1)).astype(dtype), rng.standard_normal((m, 1)).astype(dtype)
                old = y.copy()
                check_product(blas.gemm(a, x, y, 0.7, -1.0), 0.7, a, x, -1.0, old)
                check_product(blas.gemm(x.T, a, trans_b=True).T, 1, a, x, 0, old)


def test_gemm_does_not_read_what_it_need_not():
    nan = np.full((9, 9), np.nan, np.float32)
    one = np.ones((9, 9), np.float32)
    np.testing.assert_array_equal(blas.gemm(one, one, nan.copy()), 9)
    np.testing.assert_array_equal(blas.gemm(nan, nan, one.copy(), alpha=0, beta=2), 2)
    np.testing.assert_array_equal(blas.gemv(one, one[0], nan[0].copy()), 9)
    np.testing.assert_array_equal(blas.gemv(nan, nan[0], one[0].copy(), alpha=0, beta=2), 2)
    np.testing.assert_array_equal(blas.axpy(0, nan[0], one[0].copy()), 1)
    np.testing.assert_array_equal(blas.ger(nan[0], nan[0], one.copy(), alpha=0), 1)


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("shape", [(3, 20, 5), (40, 20, 30), (1, 300, 10), (50, 1, 50)])
def test_special_values_come_through(dtype, shape):
    m, n, k = shape
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    a[0, 0], a[m - 1, k - 1], b[0, n - 1] = np.inf, np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        want = a.astype(np.float64) @ b.astype(np.float64)
    got = blas.gemm(a, b)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(got[np.isinf(want)], want[np.isinf(want)])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(REALS), st.integers(0, 5), st.integers(0, 40), st.integers(0, 40), st.integers(0, 60),
       st.booleans(), st.booleans(), st.sampled_from(["both", "a", "b", "one a", "one b"]),
       st.integers(1, 4))  # fmt: skip
def test_gemm_batch(dtype, count, m, n, k, trans_a, trans_b, batched, threads):
    rng = np.random.default_rng(count * 7919 + m * 101 + n * 11 + k)
    a = rng.standard_normal((count, k, m) if trans_a else (count, m, k)).astype(dtype)
    b = rng.standard_normal((count, n, k) if trans_b else (count, k, n)).astype(dtype)
    if count:
        a = {"b": a[0], "one a": a[:1]}.get(batched, a)
        b = {"a": b[0], "one b": b[:1]}.get(batched, b)
    c = rng.standard_normal((count, m, n)).astype(dtype)
    old = c.copy()
    blas.gemm_batch(a, b, c, 0.5, 1, trans_a, trans_b, threads)
    check_product(c, 0.5, a.swapaxes(-1, -2) if trans_a else a, b.swapaxes(-1, -2) if trans_b else b, 1, old)


def test_gemm_batch_of_much_work_and_many_threads():
    rng = np.random.default_rng(5)
    a, b = (rng.standard_normal((3, 150, 150)).astype(np.float32) for _ in range(2))
    got = blas.gemm_batch(a, b, threads=8)
    check_product(got, 1, a, b, 0, got)
    np.testing.assert_array_equal(got, np.stack([blas.gemm(x, y, threads=1) for x, y in zip(a, b, strict=True)]))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.sampled_from(REALS), lengths, lengths, st.tuples(steps, steps), orders, steps, steps, scalars, scalars,
       st.booleans(), st.integers(1, 3))  # fmt: skip
def test_gemv(dtype, m, n, a_steps, order, x_step, y_step, alpha, beta, trans, threads):
    rng = np.random.default_rng(m * 1009 + n)
    a = strided(rng, (n, m) if trans else (m, n), dtype, a_steps, order)
    x, y = strided(rng, (n,), dtype, (x_step,)), strided(rng, (m,), dtype, (y_step,))
    old = y.copy()
    assert blas.gemv(a, x, y, alpha, beta, trans, threads) is y
    check_product(y[:, None], alpha, a.T if trans else a, x[:, None], beta, old[:, None])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(REALS), st.integers(0, 50), st.integers(0, 50), st.tuples(steps, steps), orders, steps, steps,
       scalars)  # fmt: skip
def test_ger(dtype, m, n, a_steps, order, x_step, y_step, alpha):
    rng = np.random.default_rng(m * 1009 + n)
    a = strided(rng, (m, n), dtype, a_steps, order)
    x, y = strided(rng, (m,), dtype, (x_step,)), strided(rng, (n,), dtype, (y_step,))
    old = a.copy()
    assert blas.ger(x, y, a, alpha) is a
    check_product(a, alpha, x[:, None], y[None, :], 1, old)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.sampled_from(REALS), st.one_of(st.integers(0, 70), st.just(1001)), steps, steps, scalars)
def test_vectors(dtype, n, x_step, y_step, alpha):
    rng = np.random.default_rng(n)
    x, y = strided(rng, (n,), dtype, (x_step,)), strided(rng, (n,), dtype, (y_step,))
    wide_x, wide_y = x.astype(WIDE[x.dtype]), y.astype(WIDE[x.dtype])
    total = np.abs(wide_x).sum()
    assert abs(blas.dot(x, y) - wide_x @ wide_y) <= gamma(n + 1, dtype) * (np.abs(wide_x) @ np.abs(wide_y))
    assert abs(blas.asum(x) - total) <= gamma(n + 1, dtype) * total
    norm = np.sqrt(wide_x @ wide_x)
    assert abs(blas.nrm2(x) - norm) <= gamma(n + 4, dtype) * norm
    if n:
        assert blas.iamax(x) == np.argmax(np.abs(x))

    z = y.copy()
    assert blas.copy(x, z) is z
    np.testing.assert_array_equal(z, x)
    z = y.copy()
    assert blas.axpy(alpha, x, z) is z
    check_product(z[:, None], alpha, x[:, None], np.ones((1, 1), dtype), 1, y[:, None])
    z = strided(rng, (n,), dtype, (y_step,))
    z[:] = x
    assert blas.scal(alpha, z) is z
    np.testing.assert_array_equal(z, x * dtype(alpha))
    z, w = x.copy(), y.copy()
    blas.swap(z, w)
    np.testing.assert_array_equal(z, y)
    np.testing.assert_array_equal(w, x)


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("n", [1, 7, 8, 1000])
def test_nrm2_neither_overflows_nor_vanishes(dtype, n):
    info = np.finfo(dtype)
    near = {"rel": 4 * float(info.eps), "abs": float(info.smallest_subnormal)}
    for size in (info.max / 1000, info.tiny, info.smallest_subnormal * 4, 1.0):
        x = np.full(n, size, dtype)
        assert blas.nrm2(x) == pytest.approx(float(x[0]) * math.sqrt(n), **near)
    assert blas.nrm2(np.zeros(n, dtype)) == 0
    x = np.ones(n, dtype)
    x[n // 2] = -np.inf
    assert blas.nrm2(x) == np.inf
    x[n - 1] = np.nan
    assert math.isnan(blas.nrm2(x))
    mixed = np.array([info.max / 2, info.tiny, 3, -info.max / 2], dtype)
    assert blas.nrm2(mixed) == pytest.approx(float(info.max) / 2 * math.sqrt(2), **near)


def test_iamax_of_ties_and_nan():
    assert blas.iamax(np.array([1, -3, 3], np.float32)) == 1
    assert blas.iamax(np.array([1, np.nan, np.inf, np.nan])) == 1
    assert blas.iamax(np.array([np.nan, 5])) == 0
    with pytest.raises(ValueError, match="empty"):
        blas.iamax(np.empty(0))


def integers(rng, dtype, shape, extreme):
    info = np.iinfo(dtype)
    if extreme:
        return rng.choice([info.min, info.max], size=shape).astype(dtype)
    return rng.integers(info.min, info.max + 1, size=shape).astype(dtype)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.sampled_from([np.int8, np.uint8]), st.sampled_from([np.int8, np.uint8]), sizes, sizes, depths, orders, orders,
       st.booleans(), st.booleans(), st.booleans(), st.sampled_from(["none", "one", "each"]),
       st.sampled_from([(1, 0), (1, 1), (-3, 2), (0, 5)]), st.integers(1, 3))  # fmt: skip
def test_gemm_int8_is_exact(a_type, b_type, m, n, k, a_order, b_order, trans_a, trans_b, extreme, zeros, scale,
                            threads):  # fmt: skip
    rng = np.random.default_rng(m * 1_000_003 + n * 1009 + k)
    a = np.asarray(integers(rng, a_type, (k, m) if trans_a else (m, k), extreme), order=a_order)
    b = np.asarray(integers(rng, b_type, (n, k) if trans_b else (k, n), extreme), order=b_order)
    each = zeros == "each"
    a_zero = integers(rng, a_type, m if each and m else 1, extreme) if zeros != "none" else 0
    b_zero = integers(rng, b_type, n if each and n else 1, extreme) if zeros != "none" else 0
    c = rng.integers(-1000, 1000, (m, n)).astype(np.int32)
    alpha, beta = scale
    left = (a.T if trans_a else a).astype(np.int64) - np.reshape(a_zero, (-1, 1)).astype(np.int64)
    right = (b.T if trans_b else b).astype(np.int64) - np.asarray(b_zero, np.int64)
    want = (alpha * (left @ right) + beta * c).astype(np.int32)
    blas.gemm_int8(a, b, c, alpha, beta, trans_a, trans_b, a_zero, b_zero, threads)
    np.testing.assert_array_equal(c, want)


@pytest.mark.parametrize("k", [65535, 65536])
def test_gemm_int8_at_the_extremes(k):
    """An 8-bit multiply-add instruction would saturate at these; and sums reach 2^30."""
    low = np.full((7, k), -128, np.int8)
    np.testing.assert_array_equal(blas.gemm_int8(low, low, trans_b=True), 128 * 128 * k)
    high = np.full((7, k), 255, np.uint8)
    np.testing.assert_array_equal(blas.gemm_int8(high, low, trans_b=True), -128 * 255 * k)
    alternating = np.tile(np.array([-128, 127], np.int8), (7, k // 2))
    want = alternating.astype(np.int64) @ alternating.astype(np.int64).T
    np.testing.assert_array_equal(blas.gemm_int8(alternating, alternating, trans_b=True), want)


def test_gemm_int8_wraps_around():
    a = np.full((1, 40000), 255, np.uint8)
    assert blas.gemm_int8(a, a, trans_b=True)[0, 0] == np.array(255 * 255 * 40000).astype(np.int32)


def test_operands_may_be_the_same_but_outputs_may_not():
    a = np.arange(36, dtype=np.float64).reshape(6, 6)
    np.testing.assert_array_equal(blas.gemm(a, a), a @ a)
    np.testing.assert_array_equal(blas.gemm(a, a, trans_b=True), a @ a.T)
    x = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(blas.axpy(2, x, x), [0, 3, 6, 9, 12])
    blas.swap(x, x)
    assert blas.copy(x, x) is x
    whole = np.zeros((6, 12))
    blas.gemm(a, whole[:, :6], whole[:, 6:])  # interleaved in memory, yet apart
    for output, call in {
        "c": lambda: blas.gemm(a, a[:, ::-1], a),
        "y": lambda: blas.axpy(1, x[:-1], x[1:]),
        "a": lambda: blas.ger(a[0], a[1], a),
    }.items():
        with pytest.raises(ValueError, match=f"{output} is an output, but shares memory"):
            call()
    with pytest.raises(ValueError, match="y is an output, but shares memory with x"):
        blas.gemv(a, x := np.ones(6), x)
    with pytest.raises(ValueError, match="shares memory"):
        blas.swap(x, x[::-1])


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "a must be a NumPy array, not list", lambda a, x: blas.gemm([[1.0]], a)),
        (TypeError, "a must be of dtype float32 or float64, not int64", lambda a, x: blas.gemm(a.astype(int), a)),
        (TypeError, "x must be of dtype float32 or float64, not >f4", lambda a, x: blas.nrm2(x.astype(">f4"))),
        (TypeError, "b is float64, but a is float32", lambda a, x: blas.gemm(a.astype(np.float32), a)),
        (TypeError, "y is float32, but x is float64", lambda a, x: blas.dot(x, x.astype(np.float32))),
        (TypeError, "a must be of dtype int8 or uint8, not float64", lambda a, x: blas.gemm_int8(a, a)),
        (TypeError, "must be real number", lambda a, x: blas.scal("2", x)),
        (TypeError, "must be real number", lambda a, x: blas.scal(2j, x)),
        (ValueError, "a must have 2 dimensions, but its shape is (5,)", lambda a, x: blas.gemm(x, a)),
        (ValueError, "x must have 1 dimensions, but its shape is (4, 5)", lambda a, x: blas.asum(a)),
        (ValueError, "a must have 2 or 3 dimensions", lambda a, x: blas.gemm_batch(x, a)),
        (ValueError, "a has 5 columns, but b 4 rows", lambda a, x: blas.gemm(a, a)),
        (ValueError, "a^T has 4 columns, but b^T 5 rows", lambda a, x: blas.gemm(a, a, trans_a=True, trans_b=True)),
        (ValueError, "c has shape (4, 5)", lambda a, x: blas.gemm(a, a, a.copy(), trans_b=True)),
        (ValueError, "y has shape (4,), but the other operands ask for (5,)", lambda a, x: blas.dot(x, x[1:])),
        (ValueError, "x has shape (5,), but the other operands ask for (4,)", lambda a, x: blas.gemv(a, x, trans=True)),
        (ValueError, "batch of 2, but b of 3", lambda a, x: blas.gemm_batch(np.ones((2, 1, 1)), np.ones((3, 1, 1)))),
        (ValueError, "beta is not 0", lambda a, x: blas.gemm(a, a.T, beta=1)),
        (ValueError, "beta is not 0", lambda a, x: blas.gemv(a, x, beta=1)),
        (ValueError, "contiguous rows or contiguous columns",
         lambda a, x: blas.gemm(a, a, np.zeros((8, 8))[::2, ::2], trans_b=True)),
        (ValueError, "its elements share memory",
         lambda a, x: blas.axpy(1, x, np.lib.stride_tricks.as_strided(x.copy(), (5,), (0,)))),
        (ValueError, "its elements share memory",
         lambda a, x: blas.gemm(a, a, np.lib.stride_tricks.as_strided(a.copy(), (4, 4), (8, 8)), trans_b=True)),
        (ValueError, "threads must be at least 1, not 0", lambda a, x: blas.gemm(a, a.T, threads=0)),
        (ValueError, "not aligned",
         lambda a, x: blas.scal(2, np.frombuffer(bytearray(41), np.uint8)[1:].view(np.float64))),
        (ValueError, "a_zero must be one value or 4", lambda a, x: blas.gemm_int8(a8 := a.astype(np.int8), a8,
                                                                               trans_b=True, a_zero=np.zeros(3, int))),
        (ValueError, "a_zero must lie within [-128, 127]",
         lambda a, x: blas.gemm_int8(a8 := a.astype(np.int8), a8, trans_b=True, a_zero=128)),
        (TypeError, "b_zero must be a whole number",
         lambda a, x: blas.gemm_int8(a8 := a.astype(np.int8), a8, trans_b=True, b_zero=0.5)),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(error, message, call):
    with pytest.raises(error) as caught:
        call(np.ones((4, 5)), np.ones(5))
    assert message in str(caught.value)


@pytest.mark.parametrize("call", [
    lambda r: blas.scal(2, r[0]), lambda r: blas.axpy(2, np.ones(3), r[0]), lambda r: blas.swap(r[0], np.ones(3)),
    lambda r: blas.copy(np.ones(3), r[0]), lambda r: blas.ger(np.ones(3), np.ones(3), r),
    lambda r: blas.gemv(np.eye(3), np.ones(3), r[0]), lambda r: blas.gemm(np.eye(3), np.eye(3), r),
])  # fmt: skip
def test_read_only_outputs_are_refused(call):
    r = np.zeros((3, 3))
    r.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        call(r)
    assert not r.any()


def test_concurrent_calls():
    """The GIL is released, so calls really run at once; results do not mix."""
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((2, 90 + i, 90 + i)).astype(np.float32) for i in range(8)]
    want = [blas.gemm(x[0], x[1], threads=1) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            got = pool.map(lambda x: blas.gemm(x[0], x[1], threads=3), inputs)
            for g, w in zip(got, want, strict=True):
                np.testing.assert_array_equal(g, w)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.sampled_from([2, 3, 4, 8]), st.sampled_from([16, 32, 128]), st.integers(0, 6), st.integers(0, 40),
       st.one_of(st.integers(1, 80), st.just(1100)), st.booleans(), st.booleans(), st.booleans(),
       st.integers(1, 3))  # fmt: skip
def test_gemm_nbits(bits, block, m, n, k, with_zeros, half, exact, threads):
    rng = np.random.default_rng([bits, block, m, n, k])
    blocks = -(-k // block)
    q = rng.integers(0, 256, (n, -(-k * bits // 8) if half else blocks * block * bits // 8)).astype(np.uint8)
    scales = (rng.random((n, blocks)) + 0.1).astype(np.float16 if half else np.float32)
    zeros = rng.integers(0, 256, (n, -(-blocks * bits // 8))).astype(np.uint8) if with_zeros else None
    w = widen(q, scales, zeros, bits, block, k).astype(np.float64)
    a = rng.standard_normal((m, k + 3)).astype(np.float32)[:, :k]
    c = np.full((m, n + 2), np.nan, np.float32)[:, :n]
    got = blas.gemm_nbits(a, q, scales, zeros, c, bits, block, exact, threads)
    assert got is c
    # As tests/ops/test_nbits.py: zero points are taken off by a sum of their own; activations may be rounded.
    sizes = np.abs(a).astype(np.float64) @ (np.abs(w) + np.repeat(scales, block, 1)[:, :k] * 2.0**bits).T
    bound = gamma(k + 8, np.float32) * sizes
    if not exact and m:
        bound = bound + np.abs(a).max() / 65000 * np.abs(w).sum(1)
    assert np.all(np.abs(got - a.astype(np.float64) @ w.T) <= bound)


@pytest.mark.parametrize("exponent", [0, 3, 12, 28, 33])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gemm_nbits_of_numbers_far_apart(bits, exponent):
    """Numbers of 10^-exponent to 10^exponent side by side, and zeros: VNNI has 24 bits beside the largest of eight."""
    rng = np.random.default_rng([bits, exponent])
    n, k, block = 21, 300, 32
    q = rng.integers(0, 256, (n, -(-k // block) * block * bits // 8)).astype(np.uint8)
    scales = (rng.random((n, -(-k // block))) * 0.1 + 0.01).astype(np.float32)
    w = widen(q, scales, None, bits, block, k).astype(np.float64)
    a = (rng.standard_normal((3, k)) * 10.0 ** rng.integers(-exponent, exponent + 1, (3, k))).astype(np.float32)
    a[1, 40:90] = 0
    a[2, ::7] = 0
    sizes = np.abs(a).astype(np.float64) @ (np.abs(w) + np.repeat(scales, block, 1)[:, :k] * 2.0**bits).T
    got = blas.gemm_nbits(a, q, scales, None, bits=bits, block=block)
    # The smallest normal number for each term: less may be taken for zero.
    assert np.all(np.abs(got - a.astype(np.float64) @ w.T) <= gamma(k + 8, np.float32) * sizes + k * 1.2e-38 * 2**bits)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("shape", [(1, 5, 3), (3, 40, 600), (4, 530, 33), (20, 17, 65), (0, 3, 4), (2, 0, 5)])
def test_gemm_half(kind, trans, shape):
    m, n, k = shape
    rng = np.random.default_rng(k)
    w = rng.standard_normal((n, k) if trans else (k, n)).astype(np.float32)
    stored = w.astype(np.float16) if kind == "float16" else (w.view(np.uint32) >> 16).astype(np.uint16)
    real = stored.astype(np.float64) if kind == "float16" else (stored.astype(np.uint32) << 16).view(np.float32)
    a = rng.standard_normal((m, k)).astype(np.float32)
    for threads in (1, 2):
        got = blas.gemm_half(a, stored, trans_w=trans, threads=threads)
        check_product(got, 1, a, real.T if trans else real, 0, got)


def test_narrow_weights_are_checked():
    a, q, s = np.ones((2, 32), np.float32), np.zeros((5, 16), np.uint8), np.ones((5, 1), np.float32)
    assert blas.gemm_nbits(a, q, s).shape == (2, 5)
    wrong = [
        (TypeError, {"a": a.astype(np.float64)}), (TypeError, {"q": q.astype(np.int8)}), (ValueError, {"a": a.T}),
        (TypeError, {"scales": s.astype(np.float64)}), (ValueError, {"q": q[:, :15]}), (ValueError, {"scales": s.T}),
        (ValueError, {"bits": 5}), (ValueError, {"block": 8}), (ValueError, {"block": 48}),
        (ValueError, {"q": q[:, ::-1]}),
        (ValueError, {"zeros": np.zeros((5, 2), np.uint8)}), (ValueError, {"c": np.ones((2, 4), np.float32)}),
        (ValueError, {"a": np.ones((32, 2), np.float32).T}), (ValueError, {"threads": 0}),
    ]  # fmt: skip
    for error, change in wrong:
        with pytest.raises(error):
            blas.gemm_nbits(**{"a": a, "q": q, "scales": s, **change})
    for error, w in ((TypeError, np.ones((32, 5), np.float32)), (ValueError, np.ones((31, 5), np.float16)),
                     (ValueError, np.ones((5, 32), np.float16).T)):  # fmt: skip
        with pytest.raises(error):
            blas.gemm_half(a, w)
