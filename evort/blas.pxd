"""BLAS for Cython: CBLAS without the layout argument (matrices are row-major), free of the GIL.

    from evort.blas cimport sgemm
    sgemm(False, True, m, n, k, 1.0, a, lda, b, ldb, 0.0, c, ldc, threads)

Increments and leading dimensions count elements; a vector with a negative increment starts, as in CBLAS, at its last
element in memory. `trans` is True for the transpose. With beta == 0 the output is not read. The matrix products return
0, or -1 where no memory for their packing buffer was to be had (they then did nothing); they use up to `threads`
threads. Operands may not overlap outputs. Arguments are not checked: evort.blas's Python functions do that.
"""
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t

cdef void saxpy(int64_t n, float alpha, const float *x, int64_t incx, float *y, int64_t incy) noexcept nogil
cdef void daxpy(int64_t n, double alpha, const double *x, int64_t incx, double *y, int64_t incy) noexcept nogil
cdef float sdot(int64_t n, const float *x, int64_t incx, const float *y, int64_t incy) noexcept nogil
cdef double ddot(int64_t n, const double *x, int64_t incx, const double *y, int64_t incy) noexcept nogil
cdef void scopy(int64_t n, const float *x, int64_t incx, float *y, int64_t incy) noexcept nogil
cdef void dcopy(int64_t n, const double *x, int64_t incx, double *y, int64_t incy) noexcept nogil
cdef void sswap(int64_t n, float *x, int64_t incx, float *y, int64_t incy) noexcept nogil
cdef void dswap(int64_t n, double *x, int64_t incx, double *y, int64_t incy) noexcept nogil

# As in CBLAS, these five do nothing (or return 0) where incx <= 0.
cdef void sscal(int64_t n, float alpha, float *x, int64_t incx) noexcept nogil
cdef void dscal(int64_t n, double alpha, double *x, int64_t incx) noexcept nogil
cdef float snrm2(int64_t n, const float *x, int64_t incx) noexcept nogil
cdef double dnrm2(int64_t n, const double *x, int64_t incx) noexcept nogil
cdef float sasum(int64_t n, const float *x, int64_t incx) noexcept nogil
cdef double dasum(int64_t n, const double *x, int64_t incx) noexcept nogil
cdef int64_t isamax(int64_t n, const float *x, int64_t incx) noexcept nogil      # the first NaN, if there is one
cdef int64_t idamax(int64_t n, const double *x, int64_t incx) noexcept nogil

# y := alpha*op(A)*x + beta*y, A[m, n]
cdef void sgemv(bint trans, int64_t m, int64_t n, float alpha, const float *a, int64_t lda, const float *x,
                int64_t incx, float beta, float *y, int64_t incy, int32_t threads) noexcept nogil
cdef void dgemv(bint trans, int64_t m, int64_t n, double alpha, const double *a, int64_t lda, const double *x,
                int64_t incx, double beta, double *y, int64_t incy, int32_t threads) noexcept nogil

# A += alpha * x * y^T, A[m, n]
cdef void sger(int64_t m, int64_t n, float alpha, const float *x, int64_t incx, const float *y, int64_t incy,
               float *a, int64_t lda) noexcept nogil
cdef void dger(int64_t m, int64_t n, double alpha, const double *x, int64_t incx, const double *y, int64_t incy,
               double *a, int64_t lda) noexcept nogil

# C := alpha*op(A)*op(B) + beta*C, op(A)[m, k], op(B)[k, n]
cdef int sgemm(bint trans_a, bint trans_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
               const float *b, int64_t ldb, float beta, float *c, int64_t ldc, int32_t threads) noexcept nogil
cdef int dgemm(bint trans_a, bint trans_b, int64_t m, int64_t n, int64_t k, double alpha, const double *a,
               int64_t lda, const double *b, int64_t ldb, double beta, double *c, int64_t ldc,
               int32_t threads) noexcept nogil

# `count` such products; the matrices of a batch lie stride_a, stride_b, stride_c elements apart (0: the same one).
cdef int sgemm_batch(bint trans_a, bint trans_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                     int64_t lda, int64_t stride_a, const float *b, int64_t ldb, int64_t stride_b, float beta,
                     float *c, int64_t ldc, int64_t stride_c, int64_t count, int32_t threads) noexcept nogil
cdef int dgemm_batch(bint trans_a, bint trans_b, int64_t m, int64_t n, int64_t k, double alpha, const double *a,
                     int64_t lda, int64_t stride_a, const double *b, int64_t ldb, int64_t stride_b, double beta,
                     double *c, int64_t ldc, int64_t stride_c, int64_t count, int32_t threads) noexcept nogil

# The same for int8 operands; sums are exact in int32 and wrap around where they do not fit.
cdef int igemm(bint trans_a, bint trans_b, int64_t m, int64_t n, int64_t k, int32_t alpha, const int8_t *a,
               int64_t lda, const int8_t *b, int64_t ldb, int32_t beta, int32_t *c, int64_t ldc,
               int32_t threads) noexcept nogil

# C := alpha*A*W^T, A[m, k], W[n, k] of 2, 3, 4 or 8 bits in blocks: weight = (q - zero) * scale. A row of q is one
# stream of bits, low bits first, of row_bytes bytes (at least ceil(k*bits/8)); scales[n, ceil(k/block)] are float16
# bits where half_scales, else float32; zeros are packed rows of ceil(blocks*bits/8) bytes, or NULL for 2^(bits-1).
# block is a power of two, 16 or more. rounded: up to three rows of A may be rounded to 16 bits, with a scale for each
# 16 columns or fewer, which is faster.
cdef int nbits_gemm(int64_t m, int64_t n, int64_t k, int32_t bits, int64_t block, float alpha, const float *a,
                    int64_t lda, const uint8_t *q, int64_t row_bytes, const void *scales, bint half_scales,
                    const uint8_t *zeros, bint rounded, float *c, int64_t ldc, int32_t threads) noexcept nogil

# C := alpha*A*op(W), A[m, k], W dense [k, n] (trans: [n, k]) of float16, or of bfloat16 where brain.
cdef int half_gemm(bint trans, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                   const uint16_t *w, bint brain, float *c, int64_t ldc, int32_t threads) noexcept nogil
