# The functions that blas.pxd declares, over the drivers of _kernels/blas.pyx; included by blas.pyx.

cdef inline const real *first(const real *x, int64_t n, int64_t inc) noexcept nogil:
    """The first element of a CBLAS vector, which has the highest address where the increment is negative."""
    return x - (n - 1) * inc if inc < 0 else x


cdef void saxpy(int64_t n, float alpha, const float *x, int64_t incx, float *y, int64_t incy) noexcept nogil:
    core.axpy[float](n, alpha, first(x, n, incx), incx, <float *> first(<const float *> y, n, incy), incy)


cdef void daxpy(int64_t n, double alpha, const double *x, int64_t incx, double *y, int64_t incy) noexcept nogil:
    core.axpy[double](n, alpha, first(x, n, incx), incx, <double *> first(<const double *> y, n, incy), incy)


cdef float sdot(int64_t n, const float *x, int64_t incx, const float *y, int64_t incy) noexcept nogil:
    return core.dot[float](n, first(x, n, incx), incx, first(y, n, incy), incy)


cdef double ddot(int64_t n, const double *x, int64_t incx, const double *y, int64_t incy) noexcept nogil:
    return core.dot[double](n, first(x, n, incx), incx, first(y, n, incy), incy)


cdef void scopy(int64_t n, const float *x, int64_t incx, float *y, int64_t incy) noexcept nogil:
    core.copy[float](n, first(x, n, incx), incx, <float *> first(<const float *> y, n, incy), incy)


cdef void dcopy(int64_t n, const double *x, int64_t incx, double *y, int64_t incy) noexcept nogil:
    core.copy[double](n, first(x, n, incx), incx, <double *> first(<const double *> y, n, incy), incy)


cdef void sswap(int64_t n, float *x, int64_t incx, float *y, int64_t incy) noexcept nogil:
    core.swap[float](n, <float *> first(<const float *> x, n, incx), incx, <float *> first(<const float *> y, n, incy),
                 incy)


cdef void dswap(int64_t n, double *x, int64_t incx, double *y, int64_t incy) noexcept nogil:
    core.swap[double](n, <double *> first(<const double *> x, n, incx), incx,
                  <double *> first(<const double *> y, n, incy), incy)


cdef void sscal(int64_t n, float alpha, float *x, int64_t incx) noexcept nogil:
    if incx > 0:
        core.scal[float](n, alpha, x, incx)


cdef void dscal(int64_t n, double alpha, double *x, int64_t incx) noexcept nogil:
    if incx > 0:
        core.scal[double](n, alpha, x, incx)


cdef float snrm2(int64_t n, const float *x, int64_t incx) noexcept nogil:
    return core.nrm2[float](n if incx > 0 else 0, x, incx)


cdef double dnrm2(int64_t n, const double *x, int64_t incx) noexcept nogil:
    return core.nrm2[double](n if incx > 0 else 0, x, incx)


cdef float sasum(int64_t n, const float *x, int64_t incx) noexcept nogil:
    return core.asum[float](n if incx > 0 else 0, x, incx)


cdef double dasum(int64_t n, const double *x, int64_t incx) noexcept nogil:
    return core.asum[double](n if incx > 0 else 0, x, incx)


cdef int64_t isamax(int64_t n, const float *x, int64_t incx) noexcept nogil:
    return core.iamax[float](n if incx > 0 else 0, x, incx)


cdef int64_t idamax(int64_t n, const double *x, int64_t incx) noexcept nogil:
    return core.iamax[double](n if incx > 0 else 0, x, incx)


cdef void sgemv(bint trans, int64_t m, int64_t n, float alpha, const float *a, int64_t lda, const float *x,
                int64_t incx, float beta, float *y, int64_t incy, int32_t threads) noexcept nogil:
    cdef int64_t rows = n if trans else m, columns = m if trans else n
    core.gemv[float](rows, columns, alpha, a, 1 if trans else lda, lda if trans else 1, first(x, columns, incx), incx,
                 beta, <float *> first(<const float *> y, rows, incy), incy, threads)


cdef void dgemv(bint trans, int64_t m, int64_t n, double alpha, const double *a, int64_t lda, const double *x,
                int64_t incx, double beta, double *y, int64_t incy, int32_t threads) noexcept nogil:
    cdef int64_t rows = n if trans else m, columns = m if trans else n
    core.gemv[double](rows, columns, alpha, a, 1 if trans else lda, lda if trans else 1, first(x, columns, incx), incx,
                  beta, <double *> first(<const double *> y, rows, incy), incy, threads)


cdef void sger(int64_t m, int64_t n, float alpha, const float *x, int64_t incx, const float *y, int64_t incy,
               float *a, int64_t lda) noexcept nogil:
    core.ger[float](m, n, alpha, first(x, m, incx), incx, first(y, n, incy), incy, a, lda, 1)


cdef void dger(int64_t m, int64_t n, double alpha, const double *x, int64_t incx, const double *y, int64_t incy,
               double *a, int64_t lda) noexcept nogil:
    core.ger[double](m, n, alpha, first(x, m, incx), incx, first(y, n, incy), incy, a, lda, 1)


cdef int sgemm(bint trans_a, bint trans_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
               const float *b, int64_t ldb, float beta, float *c, int64_t ldc, int32_t threads) noexcept nogil:
    return sgemm_batch(trans_a, trans_b, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c, ldc, 0, 1, threads)


cdef int dgemm(bint trans_a, bint trans_b, int64_t m, int64_t n, int64_t k, double alpha, const double *a,
               int64_t lda, const double *b, int64_t ldb, double beta, double *c, int64_t ldc,
               int32_t threads) noexcept nogil:
    return dgemm_batch(trans_a, trans_b, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c, ldc, 0, 1, threads)


cdef int sgemm_batch(bint trans_a, bint trans_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                     int64_t lda, int64_t stride_a, const float *b, int64_t ldb, int64_t stride_b, float beta,
                     float *c, int64_t ldc, int64_t stride_c, int64_t count, int32_t threads) noexcept nogil:
    return core.gemm[float](m, n, k, alpha, a, 1 if trans_a else lda, lda if trans_a else 1, b, 1 if trans_b else ldb,
                        ldb if trans_b else 1, beta, c, ldc, count, stride_a, stride_b, stride_c, threads)


cdef int dgemm_batch(bint trans_a, bint trans_b, int64_t m, int64_t n, int64_t k, double alpha, const double *a,
                     int64_t lda, int64_t stride_a, const double *b, int64_t ldb, int64_t stride_b, double beta,
                     double *c, int64_t ldc, int64_t stride_c, int64_t count, int32_t threads) noexcept nogil:
    return core.gemm[double](m, n, k, alpha, a, 1 if trans_a else lda, lda if trans_a else 1, b, 1 if trans_b else ldb,
                         ldb if trans_b else 1, beta, c, ldc, count, stride_a, stride_b, stride_c, threads)


cdef int igemm(bint trans_a, bint trans_b, int64_t m, int64_t n, int64_t k, int32_t alpha, const int8_t *a,
               int64_t lda, const int8_t *b, int64_t ldb, int32_t beta, int32_t *c, int64_t ldc,
               int32_t threads) noexcept nogil:
    return core.igemm(m, n, k, alpha, a, 1 if trans_a else lda, lda if trans_a else 1, True, NULL, 0, b,
                  1 if trans_b else ldb, ldb if trans_b else 1, True, NULL, 0, beta, c, ldc, threads)


cdef int nbits_gemm(int64_t m, int64_t n, int64_t k, int32_t bits, int64_t block, float alpha, const float *a,
                    int64_t lda, const uint8_t *q, int64_t row_bytes, const void *scales, bint half_scales,
                    const uint8_t *zeros, bint rounded, float *c, int64_t ldc, int32_t threads) noexcept nogil:
    cdef ev_weights w
    packed_weights(&w, n, k, bits, block, q, scales, EV_FLOAT16 if half_scales else EV_FLOAT, zeros, EV_UINT8)
    w.packed.row_bytes, w.rounded = row_bytes, rounded
    return core.widened(&w, m, alpha, a, lda, c, ldc, threads)


cdef int half_gemm(bint trans, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                   const uint16_t *w, bint brain, float *c, int64_t ldc, int32_t threads) noexcept nogil:
    cdef ev_weights weights
    narrow_weights(&weights, n, k, not trans, EV_BFLOAT16 if brain else EV_FLOAT16, w)
    return core.widened(&weights, m, alpha, a, lda, c, ldc, threads)
