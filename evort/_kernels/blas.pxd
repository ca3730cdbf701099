"""BLAS on any strides. Pointers are to the first element, element i of a vector is x[i*incx], element (i, j) of a
matrix a[i*rsa + j*csa], and all of these may be negative. evort.blas puts CBLAS's conventions and Python's on top.
"""
from evort._kernels.nbits cimport ev_weights
from libc.stdint cimport int32_t, int64_t

ctypedef fused real:
    float
    double

cdef void axpy(int64_t n, real alpha, const real *x, int64_t incx, real *y, int64_t incy) noexcept nogil
cdef void scal(int64_t n, real alpha, real *x, int64_t incx) noexcept nogil
cdef real dot(int64_t n, const real *x, int64_t incx, const real *y, int64_t incy) noexcept nogil
cdef real nrm2(int64_t n, const real *x, int64_t incx) noexcept nogil
cdef real asum(int64_t n, const real *x, int64_t incx) noexcept nogil
cdef int64_t iamax(int64_t n, const real *x, int64_t incx) noexcept nogil
cdef void copy(int64_t n, const real *x, int64_t incx, real *y, int64_t incy) noexcept nogil
cdef void swap(int64_t n, real *x, int64_t incx, real *y, int64_t incy) noexcept nogil
cdef void ger(int64_t m, int64_t n, real alpha, const real *x, int64_t incx, const real *y, int64_t incy, real *a,
              int64_t rsa, int64_t csa) noexcept nogil

# C := alpha*A*B + beta*C, `count` times, as in ev_gemm; 0, or -1 where no memory for scratch was to be had.
cdef int gemm(int64_t m, int64_t n, int64_t k, real alpha, const real *a, int64_t rsa, int64_t csa, const real *b,
              int64_t rsb, int64_t csb, real beta, real *c, int64_t ldc, int64_t count, int64_t stride_a,
              int64_t stride_b, int64_t stride_c, int32_t threads) noexcept nogil

# y[m] := alpha*A[m, n]*x[n] + beta*y; A has unit stride along its rows (csa == 1) or its columns (rsa == 1).
cdef void gemv(int64_t m, int64_t n, real alpha, const real *a, int64_t rsa, int64_t csa, const real *x, int64_t incx,
               real beta, real *y, int64_t incy, int32_t threads) noexcept nogil

# The same for 8-bit operands with zero points, as in ev_igemm.
cdef int igemm(int64_t m, int64_t n, int64_t k, int32_t alpha, const void *a, int64_t rsa, int64_t csa, bint a_signed,
               const void *a_zero, int64_t a_zero_step, const void *b, int64_t rsb, int64_t csb, bint b_signed,
               const void *b_zero, int64_t b_zero_step, int32_t beta, int32_t *c, int64_t ldc,
               int32_t threads) noexcept nogil

# C[m, n] := alpha * A[m, k] W^T with weights that are widened as they are used; rows of A and C are contiguous.
cdef int widened(const ev_weights *w, int64_t m, float alpha, const float *a, int64_t lda, float *c, int64_t ldc,
                 int32_t threads) noexcept nogil
