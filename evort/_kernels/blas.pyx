"""BLAS on any strides, for the two interfaces of evort.blas: see blas.pxd."""
from evort._kernels.core cimport EV_INT8, EV_INT32, EV_UINT8, ev_ukr, ukernels
from evort._kernels.gemm cimport ev_gemm, gemm_batch_f32, gemm_batch_f64, gemm_batch_scratch, gemm_init, gemm_packs
from evort._kernels.qgemm cimport ev_qgemm, qgemm, qgemm_init, qgemm_scratch
from evort._kernels.nbits cimport ev_weights, widened_product, widened_scratch
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free
from libc.string cimport memset

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **memory, size_t alignment, size_t size)

cdef const ev_ukr *K = ukernels()

cdef enum:
    CHUNK = 512                  # elements of a strided vector that gemv gathers at a time, on the stack
    STACK = 16 * 1024            # bytes of scratch that small products take from there, too
    EXCHANGED_BYTES = 4 << 20    # of C, at most, where it is computed transposed
    EXCHANGED_DEPTH = 8          # from which that pays for the copy
    SHORT = 8                    # elements of a row, at most, that is transposed with others,
    SHORT_FROM = 64              # if there are so many,
    SHORT_PART = 256             # so many at a time,
    SHORT_ELEMENTS = 1 << 15     # and no work for a second thread


cdef void axpy(int64_t n, real alpha, const real *x, int64_t incx, real *y, int64_t incy) noexcept nogil:
    if alpha == 0:
        return
    if real is float:
        K.axpy_f32(n, alpha, x, incx, y, incy)
    else:
        K.axpy_f64(n, alpha, x, incx, y, incy)


cdef void scal(int64_t n, real alpha, real *x, int64_t incx) noexcept nogil:
    if real is float:
        K.scal_f32(n, alpha, x, incx)
    else:
        K.scal_f64(n, alpha, x, incx)


cdef real dot(int64_t n, const real *x, int64_t incx, const real *y, int64_t incy) noexcept nogil:
    cdef double result = 0
    if real is float:
        K.dot_f32(n, x, incx, y, incy, &result)
    else:
        K.dot_f64(n, x, incx, y, incy, &result)
    return <real> result


cdef real nrm2(int64_t n, const real *x, int64_t incx) noexcept nogil:
    cdef double result = 0
    if real is float:
        K.nrm2_f32(n, x, incx, &result)
    else:
        K.nrm2_f64(n, x, incx, &result)
    return <real> result


cdef real asum(int64_t n, const real *x, int64_t incx) noexcept nogil:
    cdef double result = 0
    if real is float:
        K.asum_f32(n, x, incx, &result)
    else:
        K.asum_f64(n, x, incx, &result)
    return <real> result


cdef int64_t iamax(int64_t n, const real *x, int64_t incx) noexcept nogil:
    cdef int64_t index = 0
    if n <= 0:
        return 0
    if real is float:
        K.iamax_f32(n, x, incx, &index)
    else:
        K.iamax_f64(n, x, incx, &index)
    return index


cdef void copy(int64_t n, const real *x, int64_t incx, real *y, int64_t incy) noexcept nogil:
    cdef int64_t i
    for i in range(n):
        y[i * incy] = x[i * incx]


cdef void swap(int64_t n, real *x, int64_t incx, real *y, int64_t incy) noexcept nogil:
    cdef int64_t i
    cdef real t
    for i in range(n):
        t = x[i * incx]
        x[i * incx] = y[i * incy]
        y[i * incy] = t


cdef void ger(int64_t m, int64_t n, real alpha, const real *x, int64_t incx, const real *y, int64_t incy, real *a,
              int64_t rsa, int64_t csa) noexcept nogil:
    cdef int64_t i
    for i in range(m if alpha != 0 else 0):
        axpy(n, alpha * x[i * incx], y, incy, a + i * rsa, csa)


cdef void product(ev_gemm *g, real *unused, int64_t count, int64_t stride_a, int64_t stride_b,
                  int64_t stride_c) noexcept nogil:
    if real is float:
        gemm_batch_f32(g, count, stride_a, stride_b, stride_c)
    else:
        gemm_batch_f64(g, count, stride_a, stride_b, stride_c)


cdef inline int64_t halves(int64_t n, int64_t size) noexcept nogil:
    """Halves of vectors of 64 bytes that n elements fill."""
    return (n * size + 31) // 32


cdef bint exchanges(int64_t m, int64_t n, int64_t k, int64_t size, int64_t rsa, int64_t csa, int64_t rsb,
                    int64_t csb) noexcept nogil:
    """Whether op(B)ᵀ op(A)ᵀ is the faster product, its copy to C included."""
    cdef bint a = csa != 1 and rsa == 1, b = csb != 1 and rsb == 1
    if m == 1 or m * n * size > EXCHANGED_BYTES or 4 < n < 8 and k <= 32:
        return False
    if a and b and n > 1:        # which leaves nothing transposed: B would be packed by blocks
        if k > 16 and 2 * k >= max(m, min(n, <int64_t> 64)) or n <= min(<int64_t> 16, 2 * k):
            return True
    if a:                        # where few columns fill a vector less than A's rows
        return n <= 4 < m or ((K.masks or m > n) and k >= EXCHANGED_DEPTH and
                              7 * m * halves(n, size) > 8 * n * halves(m, size))
    return b and K.masks and m <= 3 and n >= 16 and k >= 2 * EXCHANGED_DEPTH    # rows of B four at a time


cdef int exchanged(int64_t m, int64_t n, int64_t k, real alpha, const real *a, int64_t rsa, int64_t csa, const real *b,
                   int64_t rsb, int64_t csb, real *c, int64_t ldc, int32_t threads) noexcept nogil:
    cdef char[STACK + 64] small
    cdef void *memory = NULL
    cdef real *turned = c
    cdef int status
    if n > 1 or ldc > 1:
        if m * n * <int64_t> sizeof(real) <= STACK:
            turned = <real *> (&small[0] + (64 - <uintptr_t> &small[0] % 64))
        elif posix_memalign(&memory, 64, m * n * sizeof(real)) != 0:
            return -1
        else:
            turned = <real *> memory
    status = multiply(n, m, k, alpha, b, csb, rsb, a, csa, rsa, <real> 0, turned, m, 1, 0, 0, 0, threads)
    if status == 0 and turned != c:
        K.move_transpose(sizeof(real), m, n, turned, m, c, ldc)
    free(memory)
    return status


cdef bint is_short(int64_t m, int64_t k, int64_t lda) noexcept nogil:
    return SHORT_FROM <= m and 1 < k <= min(<int64_t> SHORT, lda) and m * k <= SHORT_ELEMENTS


cdef void short_rows(int64_t m, int64_t k, real alpha, const real *a, int64_t lda, const real *x, int64_t incx, real beta,
                     real *y) noexcept nogil:
    """y := alpha A x + beta y, rows of A so short that transposing them takes less than adding up lanes for each."""
    cdef real[SHORT * SHORT_PART] turned
    cdef int64_t wide = k if k == lda and k <= 4 else <int64_t> SHORT    # what is of the next rows is not used,
    cdef int64_t narrow = m - (wide - k + lda - 1) // lda                 # which from here on may not be there
    cdef int64_t first = 0, rows, some
    if beta == 0:
        memset(y, 0, <size_t> (m * sizeof(real)))
    elif beta != 1:
        scal(m, beta, y, 1)
    while first < m:
        rows = min(<int64_t> SHORT_PART, m - first)
        some = max(<int64_t> 0, min(rows, narrow - first))
        K.move_transpose(sizeof(real), wide, some, a + first * lda, lda, &turned[0], SHORT_PART)
        K.move_transpose(sizeof(real), k, rows - some, a + (first + some) * lda, lda, &turned[some], SHORT_PART)
        gemv_rows(rows, k, alpha, x, incx, &turned[0], SHORT_PART, y + first)
        first += rows


cdef int gemm(int64_t m, int64_t n, int64_t k, real alpha, const real *a, int64_t rsa, int64_t csa, const real *b,
              int64_t rsb, int64_t csb, real beta, real *c, int64_t ldc, int64_t count, int64_t stride_a,
              int64_t stride_b, int64_t stride_c, int32_t threads) noexcept nogil:
    if count == 1 and alpha != 0:
        if n == 1 and ldc == 1 and csa == 1 and is_short(m, k, rsa):
            short_rows(m, k, alpha, a, rsa, b, rsb, beta, c)
            return 0
        if m == 1 and rsb == 1 and is_short(n, k, csb):
            short_rows(n, k, alpha, b, csb, a, csa, beta, c)
            return 0
        if (csa != 1 or csb != 1) and beta == 0 and exchanges(m, n, k, sizeof(real), rsa, csa, rsb, csb):
            return exchanged(m, n, k, alpha, a, rsa, csa, b, rsb, csb, c, ldc, threads)
    return multiply(m, n, k, alpha, a, rsa, csa, b, rsb, csb, beta, c, ldc, count, stride_a, stride_b, stride_c, threads)


cdef int multiply(int64_t m, int64_t n, int64_t k, real alpha, const real *a, int64_t rsa, int64_t csa, const real *b,
                  int64_t rsb, int64_t csb, real beta, real *c, int64_t ldc, int64_t count, int64_t stride_a,
                  int64_t stride_b, int64_t stride_c, int32_t threads) noexcept nogil:
    cdef ev_gemm g
    cdef char[STACK + 64] small
    cdef void *scratch = NULL
    cdef int64_t needed = 0
    gemm_init(&g, m, n, k if alpha != 0 else 0, a, rsa, b, rsb, c, ldc)   # alpha == 0: A and B are not read
    g.csa, g.csb, g.alpha, g.beta = csa, csb, alpha, beta
    g.threads = threads if threads > 1 else 1
    if gemm_packs(&g, sizeof(real)):
        needed = gemm_batch_scratch(sizeof(real), count, m, n, k, g.threads)
    if needed <= STACK:
        g.scratch = &small[0] + (64 - <uintptr_t> &small[0] % 64)
    elif posix_memalign(&scratch, 64, needed) != 0:
        return -1
    else:
        g.scratch = scratch
    product(&g, c, count, stride_a, stride_b, stride_c)
    free(scratch)
    return 0


cdef void gemv_dot(int64_t n, int64_t k, real alpha, const real *x, const real *w, int64_t ld, real *y,
                   int64_t incy) noexcept nogil:
    if real is float:
        K.gemv_dot_f32(n, k, alpha, x, w, ld, y, incy)
    else:
        K.gemv_dot_f64(n, k, alpha, x, w, ld, y, incy)


cdef void gemv_rows(int64_t n, int64_t k, real alpha, const real *x, int64_t incx, const real *w, int64_t ld,
                    real *y) noexcept nogil:
    if real is float:
        K.gemv_rows_f32(n, k, alpha, x, incx, w, ld, y)
    else:
        K.gemv_rows_f64(n, k, alpha, x, incx, w, ld, y)


cdef void gemv(int64_t m, int64_t n, real alpha, const real *a, int64_t rsa, int64_t csa, const real *x, int64_t incx,
               real beta, real *y, int64_t incy, int32_t threads) noexcept nogil:
    """See blas.pxd. Products that the driver can do without scratch go to it; the others gather their vector."""
    cdef ev_gemm g
    cdef real[CHUNK] part
    cdef int64_t i, p, some
    if alpha == 0:               # A and x are not read
        n = 0
    if n <= 1:
        csa = 1
    elif m <= 1 and csa != 1:
        rsa = 1
    if (csa == 1 and incx == 1) or (csa != 1 and rsa == 1 and incy == 1):
        gemm_init(&g, m, 1, n, a, rsa, x, incx, y, incy)     # methods that need no scratch
        g.csa, g.alpha, g.beta = csa, alpha, beta
        g.threads = threads if threads > 1 else 1
        product(&g, y, 1, 0, 0, 0)
        return
    scal(m, beta, y, incy)
    if csa == 1:
        p = 0
        while p < n:
            some = min(<int64_t> CHUNK, n - p)
            for i in range(some):
                part[i] = x[(p + i) * incx]
            gemv_dot(m, some, alpha, &part[0], a + p, rsa, y, incy)
            p += some
    else:
        p = 0
        while p < m:
            some = min(<int64_t> CHUNK, m - p)
            for i in range(some):
                part[i] = 0
            gemv_rows(some, n, alpha, x, incx, a + p, csa, &part[0])
            for i in range(some):
                y[(p + i) * incy] += part[i]
            p += some


cdef int igemm(int64_t m, int64_t n, int64_t k, int32_t alpha, const void *a, int64_t rsa, int64_t csa, bint a_signed,
               const void *a_zero, int64_t a_zero_step, const void *b, int64_t rsb, int64_t csb, bint b_signed,
               const void *b_zero, int64_t b_zero_step, int32_t beta, int32_t *c, int64_t ldc,
               int32_t threads) noexcept nogil:
    cdef ev_qgemm g
    cdef void *scratch = NULL
    qgemm_init(&g, m, n, k if alpha != 0 else 0, a, EV_INT8 if a_signed else EV_UINT8, b,
               EV_INT8 if b_signed else EV_UINT8, c, EV_INT32)
    g.a.rs, g.a.cs, g.a.zero, g.a.zero_step = rsa, csa, a_zero, a_zero_step
    g.b.rs, g.b.cs, g.b.zero, g.b.zero_step = rsb, csb, b_zero, b_zero_step
    g.ldc, g.q.alpha, g.q.beta = ldc, alpha, beta
    g.weights_in_b = b_signed and not a_signed
    g.threads = threads if threads > 1 else 1
    if posix_memalign(&scratch, 64, qgemm_scratch(1, m, n, k, g.threads, False, False, False) + 64) != 0:
        return -1
    g.scratch = scratch
    qgemm(&g)
    free(scratch)
    return 0


cdef int widened(const ev_weights *w, int64_t m, float alpha, const float *a, int64_t lda, float *c, int64_t ldc,
                 int32_t threads) noexcept nogil:
    cdef void *scratch = NULL
    cdef int64_t padded = w.packed.blocks << w.packed.log_block if w.data == NULL else 0
    threads = threads if threads > 1 else 1
    if posix_memalign(&scratch, 64, widened_scratch(m, w.n, w.k, padded, threads) + 64) != 0:
        return -1
    widened_product(w, m, alpha, a, lda, c, ldc, NULL, threads, scratch)
    free(scratch)
    return 0
