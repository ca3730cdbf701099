"""What other compiled code builds on: evort.blas through cimport, and the gemm core with its epilogue and callbacks."""

import numpy as np
import pytest

from evort import blas
from evort._kernels import core
from evort.ops.activation import ACTIVATIONS
from evort.ops.nbits import widen

SOURCE = """
# cython: language_level=3
from evort.blas cimport *
from evort._kernels.core cimport ev_epilogue, EV_BIAS_ROW, EV_BIAS_COLUMN
from evort._kernels.gemm cimport ev_gemm, gemm_f32, gemm_f64, gemm_init, gemm_scratch, gemm_scratch_within
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t, uintptr_t
from libc.string cimport memset

# One call of each function of evort.blas, all without the GIL; ints and reals are its arguments in order.
def call(str name, str t, tuple arrays, tuple ints, tuple reals=(0, 0)):
    cdef float *f[3]
    cdef double *d[3]
    cdef int8_t *a8
    cdef int64_t i[12]
    cdef double r[2]
    cdef double result = 0
    cdef uintptr_t address
    cdef int k
    cdef bint single = t == "s"
    cdef str key = name
    for k in range(len(arrays)):
        address = arrays[k].ctypes.data
        f[k], d[k] = <float *> address, <double *> address
    for k in range(len(ints)):
        i[k] = ints[k]
    r[0], r[1] = reals
    cdef int which = ["axpy", "dot", "copy", "swap", "scal", "nrm2", "asum", "iamax", "gemv", "ger", "gemm",
                      "gemm_batch", "igemm"].index(key)
    with nogil:
        if single:
            if which == 0: saxpy(i[0], <float> r[0], f[0], i[1], f[1], i[2])
            elif which == 1: result = sdot(i[0], f[0], i[1], f[1], i[2])
            elif which == 2: scopy(i[0], f[0], i[1], f[1], i[2])
            elif which == 3: sswap(i[0], f[0], i[1], f[1], i[2])
            elif which == 4: sscal(i[0], <float> r[0], f[0], i[1])
            elif which == 5: result = snrm2(i[0], f[0], i[1])
            elif which == 6: result = sasum(i[0], f[0], i[1])
            elif which == 7: result = isamax(i[0], f[0], i[1])
            elif which == 8: sgemv(i[0], i[1], i[2], <float> r[0], f[0], i[3], f[1], i[4], <float> r[1], f[2], i[5], 2)
            elif which == 9: sger(i[0], i[1], <float> r[0], f[0], i[2], f[1], i[3], f[2], i[4])
            elif which == 10: result = sgemm(i[0], i[1], i[2], i[3], i[4], <float> r[0], f[0], i[5], f[1], i[6],
                                             <float> r[1], f[2], i[7], 2)
            elif which == 11: result = sgemm_batch(i[0], i[1], i[2], i[3], i[4], <float> r[0], f[0], i[5], i[8], f[1],
                                                   i[6], i[9], <float> r[1], f[2], i[7], i[10], i[11], 2)
            else: result = igemm(i[0], i[1], i[2], i[3], i[4], <int32_t> r[0], <int8_t *> f[0], i[5], <int8_t *> f[1],
                                 i[6], <int32_t> r[1], <int32_t *> f[2], i[7], 2)
        else:
            if which == 0: daxpy(i[0], r[0], d[0], i[1], d[1], i[2])
            elif which == 1: result = ddot(i[0], d[0], i[1], d[1], i[2])
            elif which == 2: dcopy(i[0], d[0], i[1], d[1], i[2])
            elif which == 3: dswap(i[0], d[0], i[1], d[1], i[2])
            elif which == 4: dscal(i[0], r[0], d[0], i[1])
            elif which == 5: result = dnrm2(i[0], d[0], i[1])
            elif which == 6: result = dasum(i[0], d[0], i[1])
            elif which == 7: result = idamax(i[0], d[0], i[1])
            elif which == 8: dgemv(i[0], i[1], i[2], r[0], d[0], i[3], d[1], i[4], r[1], d[2], i[5], 2)
            elif which == 9: dger(i[0], i[1], r[0], d[0], i[2], d[1], i[3], d[2], i[4])
            elif which == 10: result = dgemm(i[0], i[1], i[2], i[3], i[4], r[0], d[0], i[5], d[1], i[6], r[1], d[2],
                                             i[7], 2)
            elif which == 11: result = dgemm_batch(i[0], i[1], i[2], i[3], i[4], r[0], d[0], i[5], i[8], d[1], i[6],
                                                   i[9], r[1], d[2], i[7], i[10], i[11], 2)
    return result

# B comes from a callback: element (p, j) is b[p + j*stride], as in an unrolled convolution of one dimension.
ctypedef struct Windows:
    const void *b
    int64_t stride

cdef void pack_windows(const void *ctx, int64_t p0, int64_t kc, int64_t j0, int64_t nc, void *dst) noexcept nogil:
    cdef const Windows *w = <const Windows *> ctx
    cdef float *out = <float *> dst
    cdef int64_t j, p, i
    for j in range(0, nc, 16):
        for p in range(kc):
            for i in range(16):
                out[p * 16 + i] = (<const float *> w.b)[p0 + p + (j0 + j + i) * w.stride] if j + i < nc else 0
        out += kc * 16

def windows(float[:, ::1] a, float[::1] b, int64_t stride, float[:, ::1] c, int activation, double alpha, double beta,
            float[::1] bias, bint by_row, float[:, ::1] residual, float[::1] slope, uint8_t[::1] scratch, int threads,
            bint packed):
    cdef ev_gemm g
    cdef ev_epilogue e
    cdef Windows w
    cdef int64_t m = a.shape[0], k = a.shape[1], n = c.shape[1]
    assert len(scratch) >= gemm_scratch(4, m, n, k, threads)
    memset(&e, 0, sizeof(e))
    e.activation, e.a, e.b = activation, alpha, beta
    e.bias, e.bias_axis = &bias[0], EV_BIAS_ROW if by_row else EV_BIAS_COLUMN
    e.slope = &slope[0]
    if residual is not None:
        e.residual, e.ldr = &residual[0, 0], n
    gemm_init(&g, m, n, k, &a[0, 0], k, &b[0], 0, &c[0, 0], n)
    g.rsb, g.csb = 1, stride
    if packed:
        w.b, w.stride = &b[0], stride
        g.pack, g.pack_ctx = pack_windows, &w
    g.epilogue, g.threads, g.scratch = &e, threads, &scratch[0]
    with nogil:
        gemm_f32(&g)

def narrow(float[:, ::1] a, uint8_t[:, ::1] q, float[:, ::1] scales, uint16_t[:, ::1] half, float[:, ::1] c,
           float[:, ::1] d, int bits, int64_t block, float alpha):
    cdef int64_t m = a.shape[0], k = a.shape[1], n = c.shape[1]
    cdef int status
    with nogil:
        status = nbits_gemm(m, n, k, bits, block, alpha, &a[0, 0], k, &q[0, 0], q.shape[1], &scales[0, 0], False, NULL,
                            False, &c[0, 0], n, 2)
        status += half_gemm(False, m, n, k, alpha, &a[0, 0], k, &half[0, 0], True, &d[0, 0], n, 2)
    return status

def scratch_bytes(int64_t m, int64_t n, int64_t k, int threads, int64_t size=4):
    return gemm_scratch(size, m, n, k, threads)


def scratch_within(int64_t m, int64_t n, int64_t k, int64_t size):
    return gemm_scratch_within(size, m, n, k)

# c := a b, with columns in order. a is contiguous, rows of b are.
ctypedef fused real:
    float
    double

def in_order(real[:, ::1] a, real[:, :] b, real[:, ::1] c, uint8_t[::1] scratch):
    cdef ev_gemm g
    cdef int64_t m = a.shape[0], n = b.shape[1], k = a.shape[1]
    assert len(scratch) >= gemm_scratch(sizeof(real), m, n, k, 1)
    gemm_init(&g, m, n, k, &a[0, 0], k, &b[0, 0], b.strides[0] // sizeof(real), &c[0, 0], n)
    g.in_order, g.scratch = True, &scratch[0]
    with nogil:
        if real is float:
            gemm_f32(&g)
        else:
            gemm_f64(&g)
"""


@pytest.fixture(scope="module")
def client(native):
    return native("blas_client", SOURCE)


@pytest.fixture(params=core.available_isas(), autouse=True)
def isa(request):
    core.select_isa(request.param)
    yield request.param
    core.select_isa("")


def cblas(x: np.ndarray, n: int, inc: int) -> np.ndarray:
    """The view of buffer x that a CBLAS vector (n, inc) denotes: from the last element back where inc < 0."""
    view = x[: (n - 1) * abs(inc) + 1 : abs(inc)]
    return view if inc > 0 else view[::-1]


TYPES = {"s": np.float32, "d": np.float64}


@pytest.mark.parametrize("t", TYPES)
@pytest.mark.parametrize(("incx", "incy"), [(1, 1), (2, -1), (-3, 2), (-1, -1)])
def test_level_1(client, t, incx, incy):
    rng = np.random.default_rng(1)
    n = 37
    x, y = (rng.integers(-9, 10, 200).astype(TYPES[t]) for _ in range(2))  # whole numbers: every sum is exact
    vx, vy = cblas(x, n, incx).copy(), cblas(y, n, incy).copy()
    assert client.call("dot", t, (x, y), (n, incx, incy)) == vx @ vy

    def after(name, *args):
        u, v = x.copy(), y.copy()
        client.call(name, t, (u, v), (n, incx, incy), *args)
        return cblas(u, n, incx), cblas(v, n, incy), u, v

    _, got, _, whole = after("axpy", (3, 0))
    np.testing.assert_array_equal(got, 3 * vx + vy)
    assert (whole != y).sum() <= n
    np.testing.assert_array_equal(after("copy")[1], vx)
    swapped = after("swap")
    np.testing.assert_array_equal(swapped[0], vy)
    np.testing.assert_array_equal(swapped[1], vx)

    if incx > 0:
        assert client.call("asum", t, (x,), (n, incx)) == np.abs(vx).sum()
        assert client.call("iamax", t, (x,), (n, incx)) == np.abs(vx).argmax()
        assert client.call("nrm2", t, (x,), (n, incx)) == TYPES[t](np.sqrt(vx.astype(float) @ vx))
        client.call("scal", t, (x,), (n, incx), (2, 0))
        np.testing.assert_array_equal(cblas(x, n, incx), 2 * vx)
    else:
        before = x.copy()
        client.call("scal", t, (x,), (n, incx), (2, 0))
        np.testing.assert_array_equal(x, before)
        for name in ("asum", "iamax", "nrm2"):
            assert client.call(name, t, (x,), (n, incx)) == 0


@pytest.mark.parametrize("t", TYPES)
@pytest.mark.parametrize(("incx", "incy"), [(1, 1), (2, -1), (-3, 2), (1, -2)])
@pytest.mark.parametrize("trans", [False, True])
def test_level_2(client, t, incx, incy, trans):
    rng = np.random.default_rng(2)
    m, n, lda = 13, 21, 25
    a, x, y = (rng.integers(-9, 10, shape).astype(TYPES[t]) for shape in ((m, lda), 100, 100))
    rows, columns = (n, m) if trans else (m, n)
    op = a[:, :n].T if trans else a[:, :n]
    want = 2 * op @ cblas(x, columns, incx) + 3 * cblas(y, rows, incy)
    got = y.copy()
    client.call("gemv", t, (a, x, got), (trans, m, n, lda, incx, incy), (2, 3))
    np.testing.assert_array_equal(cblas(got, rows, incy), want)
    if not trans:
        want = a.copy()
        want[:, :n] += 2 * np.outer(cblas(x, m, incx), cblas(y, n, incy))
        client.call("ger", t, (x, y, a), (m, n, incx, incy, lda), (2, 0))
        np.testing.assert_array_equal(a, want)


@pytest.mark.parametrize("t", ["s", "d", "i"])
@pytest.mark.parametrize("trans_a", [False, True])
@pytest.mark.parametrize("trans_b", [False, True])
def test_level_3(client, t, trans_a, trans_b):
    rng = np.random.default_rng(3)
    m, n, k, spare, count = 19, 35, 27, 3, 4
    operand, output = (np.int8, np.int32) if t == "i" else (TYPES[t], TYPES[t])
    a = rng.integers(-9, 10, (count, k, m + spare) if trans_a else (count, m, k + spare)).astype(operand)
    b = rng.integers(-9, 10, (count, n, k + spare) if trans_b else (count, k, n + spare)).astype(operand)
    c = rng.integers(-9, 10, (count, m, n + spare)).astype(output)
    wide_a, wide_b = a[..., :-spare].astype(output), b[..., :-spare].astype(output)
    want = c.copy()
    want[..., :n] = 2 * (wide_a.swapaxes(1, 2) if trans_a else wide_a) @ (wide_b.swapaxes(1, 2) if trans_b else wide_b)
    want[..., :n] += 3 * c[..., :n]
    ints = (trans_a, trans_b, m, n, k, a.shape[2], b.shape[2], c.shape[2])
    got = c.copy()
    if t == "i":
        assert client.call("igemm", "s", (a, b, got), ints, (2, 3)) == 0
        np.testing.assert_array_equal(got[0], want[0])
        return
    assert client.call("gemm", t, (a, b, got), ints, (2, 3)) == 0
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1:], c[1:])
    got = c.copy()
    strides = (a[0].size, b[0].size, c[0].size, count)
    assert client.call("gemm_batch", t, (a, b, got), (*ints, *strides), (2, 3)) == 0
    np.testing.assert_array_equal(got, want)


PARAMETERS = {"Clip": (-0.5, 1.5), "LeakyRelu": (0.1, 0.0), "HardSigmoid": (0.25, 0.4), "Elu": (1.5, 0.0),
              "Swish": (1.25, 0.0), "PRelu": (0.0, 0.0)}  # fmt: skip
EPS = 2.0**-24


@pytest.mark.parametrize("name", ["", *ACTIVATIONS])
@pytest.mark.parametrize("shape", [(23, 75, 400), (64, 33, 9), (1, 200, 50), (70, 1, 300), (5, 40, 33)])
def test_epilogue(client, name, shape):
    """Bias, residual and activation, over a B that lies in memory and over one that a callback supplies.

    The sum before the activation has the error bound of test_blas.py; an activation passes it on with a slope of less
    than 1.6, and adds its own error of a few units in the last place of its value or, for those of the form x * f(x),
    of x.
    """
    m, n, k = shape
    rng = np.random.default_rng(m)
    a = rng.standard_normal((m, k)).astype(np.float32) / np.float32(np.sqrt(k))
    stride = 3
    b = rng.standard_normal(k + (n - 1) * stride).astype(np.float32)
    matrix = np.lib.stride_tricks.sliding_window_view(b, k)[::stride].T
    alpha, beta = PARAMETERS.get(name, (1.0, 0.0))
    slope = rng.uniform(-1, 1, m).astype(np.float32)
    scratch = aligned(client.scratch_bytes(m, n, k, 3))
    for by_row in (True, False):
        for residual in (None, "apart", "in place"):
            bias = rng.standard_normal(m if by_row else n).astype(np.float32)
            c = rng.standard_normal((m, n)).astype(np.float32)
            added = {None: None, "apart": rng.standard_normal((m, n)).astype(np.float32), "in place": c}[residual]
            spread = bias[:, None] if by_row else bias
            terms = [] if added is None else [added.astype(np.float64)]
            x = a.astype(np.float64) @ matrix + spread + sum(terms)
            size = np.abs(a).astype(np.float64) @ np.abs(matrix) + np.abs(spread) + sum(np.abs(t) for t in terms)
            want = x
            if name:
                p = slope[:, None].astype(np.float64) if name == "PRelu" else np.float64(np.float32(alpha))
                want = ACTIVATIONS[name].reference(x, p, np.float64(np.float32(beta)))
            bound = 1.6 * (k + 4) * EPS / (1 - (k + 4) * EPS) * size + 8 * EPS * (np.abs(want) + np.abs(x))
            results = []
            for packed in (False, True):
                for threads in (1, 3):
                    out = c.copy()
                    client.windows(a, b, stride, out, ACTIVATIONS[name].id if name else 0, alpha, beta, bias, by_row,
                                   out if residual == "in place" else added, slope, scratch, threads,
                                   packed)  # fmt: skip
                    assert np.all(np.abs(out - want) <= bound)
                    results.append(out)
            np.testing.assert_array_equal(results[0], results[1])
            np.testing.assert_array_equal(results[2], results[3])


def aligned(size: int) -> np.ndarray:
    memory = np.empty(size + 64, np.uint8)
    return memory[-memory.ctypes.data % 64 :]


@pytest.mark.parametrize("size", [4, 8])
def test_smaller_products_fit_the_scratch_of_larger_ones(client, size):
    """As strips of a convolution do, the last of which is narrower: it may be one block where they are several."""
    cut = False
    for m in (1, 30, 97, 700):
        for k in (1, 46, 161, 400, 1500):
            exact = [client.scratch_bytes(m, n, k, 1, size) for n in range(1, 400)]
            cut |= exact != sorted(exact)
            for n in range(1, 400):
                within = client.scratch_within(m, n, k, size)
                assert within >= max(exact[:n])
                assert within >= client.scratch_bytes(m // 2 + 1, n, k, 1, size)
    assert cut


@pytest.mark.parametrize("t", TYPES)
def test_columns_in_order_do_not_depend_on_the_others(client, t):
    """Each column of a product has the same bits in products with more or fewer columns beside it, wherever strips end.

    Depths are those around the limits at which methods, blocks of K and sums along K change.
    """
    rng = np.random.default_rng(0)
    for m in (1, 2, 7, 9, 17, 30, 97):
        for k in (1, 30, 46, 100, 159, 161, 400, 530):
            n = int(rng.integers(2, 90))
            a, b = (rng.standard_normal(shape).astype(TYPES[t]) for shape in ((m, k), (k, n)))
            scratch = aligned(client.scratch_within(m, n, k, a.itemsize))
            whole = np.empty((m, n), TYPES[t])
            client.in_order(a, b, whole, scratch)
            for _ in range(8):
                begin = int(rng.integers(0, n))
                end = int(rng.integers(begin, min(n, begin + int(rng.choice([8, 16, 90]))))) + 1
                part = np.empty((m, end - begin), TYPES[t])
                client.in_order(a, b[:, begin:end], part, scratch)
                np.testing.assert_array_equal(part, whole[:, begin:end], err_msg=f"{m} x {n} x {k}: {begin} to {end}")


@pytest.mark.parametrize("dtype", TYPES.values())
def test_threads_change_no_bit(dtype):
    """Shares end at columns and rows that differ with their number; products of any order of their operands."""
    rng = np.random.default_rng(1)
    for _ in range(60):
        m, n = (int(x) for x in rng.choice([1, 2, 5, 17, 30, 64, 71, 150, 301], 2))
        k = int(rng.choice([3, 20, 50, 130, 200, 400, 600]))
        a, b = (rng.standard_normal(shape).astype(dtype, order=rng.choice(["C", "F"])) for shape in ((m, k), (k, n)))
        one = blas.gemm(a, b)
        for threads in (2, 3, 5):
            np.testing.assert_array_equal(blas.gemm(a, b, threads=threads), one, err_msg=f"{m} x {n} x {k}, {threads}")


def test_scratch_is_modest(client, isa):
    """Scratch counts towards a model's memory: with an L2 of 1 MB at most 212 KB for each thread, 690 where A is over
    1 MB, and 2147 (1024 columns of B) where it is over 8 MB or its rows are multiples of 4 KB; with less 128, and 192
    where A is over 3 MB."""
    for m, n, k in [
        *[(1, 1, 1), (64, 12544, 27), (512, 49, 4608), (10, 10**7, 10**4)],
        *[(1000, 1000, 1000), (2048, 2048, 2048), (2100, 2100, 2100)],
    ]:
        size = 4 * m * k
        kib = 212 if size <= 1 << 20 else 2147 if size > 8 << 20 or k % 1024 == 0 else 690
        for threads in (1, 2, 8):
            assert client.scratch_bytes(m, n, k, threads) <= 1024 * threads * kib


@pytest.mark.parametrize("m", [1, 6])
def test_narrow_weights(client, m):
    rng = np.random.default_rng(m)
    n, k, bits, block = 9, 70, 3, 16
    a = rng.standard_normal((m, k)).astype(np.float32)
    q = rng.integers(0, 256, (n, -(-k * bits // 8))).astype(np.uint8)
    scales = rng.random((n, -(-k // block))).astype(np.float32)
    half = (rng.standard_normal((k, n)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    c, d = np.empty((m, n), np.float32), np.empty((m, n), np.float32)
    assert client.narrow(a, q, scales, half, c, d, bits, block, 0.5) == 0
    real = (half.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    for got, w in ((c, widen(q, scales, None, bits, block, k).T.astype(np.float64)), (d, real)):
        bound = (k + 16) * EPS / (1 - (k + 16) * EPS) * (np.abs(a) @ np.abs(w))
        assert np.all(np.abs(got - 0.5 * (a @ w)) <= bound)
