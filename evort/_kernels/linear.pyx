"""Drivers of the matrix products: MatMul, Einsum of two operands and Gemm in float32."""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset
from evort._kernels.core cimport EV_BIAS_COLUMN, EV_BIAS_ROW, EV_OK, ev_call, ev_epilogue, register
from evort._kernels.gemm cimport ev_gemm, gemm_batch_f32, gemm_batch_scratch, gemm_f32, gemm_init, gemm_packs

cdef inline float *operand(const ev_call *c, int i) noexcept nogil:
    return NULL if i >= c.n_in or c.in_[i] == NULL else <float *> c.in_[i].data


def matmul_scratch(int64_t items, int64_t m, int64_t n, int64_t k, a, b, int64_t ldc, int32_t threads) -> int:
    """Scratch bytes of matmul_f32 and gemm_f32: products [m, k] x [k, n], `items` at a time; a, b: row and column
    strides, ldc: row stride of the result."""
    cdef ev_gemm g
    gemm_init(&g, m, n, k, NULL, a[0], NULL, b[0], NULL, ldc)
    g.csa, g.csb = a[1], b[1]
    return gemm_batch_scratch(4, items, m, n, k, threads) if gemm_packs(&g, 4) else 0


cdef int matmul_f32(const ev_call *c) noexcept nogil:
    """in: A, B, bias [N] or NULL, Z or NULL; out: Y; ints: (activation, m, n, k, row and column stride of A, of B, row
    stride of Y, then count, stride of A, of B, of Y for each batch axis); reals: activation parameters."""
    cdef ev_gemm g
    cdef ev_epilogue e
    cdef const int64_t *v = c.ints
    cdef const int64_t *axis = v + 9
    cdef int32_t axes = (c.n_ints - 9) // 4, i
    cdef int64_t items, item, a, b, y
    cdef const float *z = operand(c, 3)
    if c.out[0].size == 0:
        return EV_OK
    gemm_init(&g, v[1], v[2], v[3], c.in_[0].data, v[4], c.in_[1].data, v[6], c.out[0].data, v[8])
    g.csa, g.csb = v[5], v[7]
    g.threads, g.scratch, g.epilogue = c.threads, c.scratch, &e
    memset(&e, 0, sizeof(e))
    if operand(c, 2) != NULL:
        e.bias, e.bias_axis = operand(c, 2), EV_BIAS_COLUMN
    e.residual, e.ldr = z, v[8]
    e.activation, e.a, e.b = <int32_t> v[0], <float> c.reals[0], <float> c.reals[1]
    if axes == 0:
        gemm_f32(&g)
        return EV_OK
    # The last axis is one batch; the others are walked.
    items = batch_items(axis, axes - 1)
    for item in range(items):
        batch_item(axis, axes - 1, item, &a, &b, &y)
        g.a = <const float *> c.in_[0].data + a
        g.b = <const float *> c.in_[1].data + b
        g.c = <float *> c.out[0].data + y
        if z != NULL:
            e.residual = z + y
        i = 4 * (axes - 1)
        gemm_batch_f32(&g, axis[i], axis[i + 1], axis[i + 2], axis[i + 3])
    return EV_OK


cdef int gemm_driver(const ev_call *c) noexcept nogil:
    """in: A, B, C or NULL, Z or NULL; out: Y [m, n]; ints: (activation, m, n, k, row and column stride of A, of B, of C
    broadcast to [m, n]); reals: activation parameters, alpha, beta."""
    cdef ev_gemm g
    cdef ev_epilogue e
    cdef const int64_t *v = c.ints
    cdef int64_t m = v[1], n = v[2], row = v[8], column = v[9], i, j
    cdef const float *bias = operand(c, 2)
    cdef const float *z = operand(c, 3)
    cdef float *y = <float *> c.out[0].data
    cdef float beta = <float> c.reals[3]
    if m == 0 or n == 0:
        return EV_OK
    gemm_init(&g, m, n, v[3], c.in_[0].data, v[4], c.in_[1].data, v[6], y, n)
    g.csa, g.csb = v[5], v[7]
    g.alpha = c.reals[2]
    g.threads, g.scratch, g.epilogue = c.threads, c.scratch, &e
    memset(&e, 0, sizeof(e))
    e.activation, e.a, e.b = <int32_t> v[0], <float> c.reals[0], <float> c.reals[1]
    e.residual, e.ldr = z, n
    if beta == 0:
        bias = NULL
    if bias != NULL:
        if beta == 1 and row == 0 and column == 1:
            e.bias, e.bias_axis = bias, EV_BIAS_COLUMN
        elif beta == 1 and row == 1 and column == 0:
            e.bias, e.bias_axis = bias, EV_BIAS_ROW
        elif beta == 1 and row == n and column == 1 and z == NULL:
            e.residual = bias
        else:                    # Y starts as beta*C + Z
            for i in range(m):
                for j in range(n):
                    y[i * n + j] = beta * bias[i * row + j * column] + (0 if z == NULL else z[i * n + j])
            e.residual, g.beta = NULL, 1
    gemm_f32(&g)
    return EV_OK


DRIVERS = {}
register(DRIVERS, "matmul_f32", matmul_f32)
register(DRIVERS, "gemm_f32", gemm_driver)
