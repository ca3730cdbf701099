"""Matrix products for the kernels: C := activation(beta*C + alpha*A*B + bias + residual).

    cdef ev_gemm g
    gemm_init(&g, m, n, k, a, lda, b, ldb, c, ldc)   # dense row-major, alpha = 1, beta = 0, one thread
    g.epilogue = &e                                  # and whatever else differs
    g.scratch = call.scratch                         # gemm_scratch(4, m, n, k, threads) bytes, 64-byte aligned
    gemm_f32(&g)
"""
from evort._kernels.core cimport ev_epilogue
from libc.stdint cimport int32_t, int64_t

# Packs rows [p0, p0+kc) x columns [j0, j0+nc) of B to dst: ceil(nc/NR) panels of kc rows of NR elements, columns past
# nc zero. (j0 is a multiple of NR, p0 of 16.) Called from several threads at once, with disjoint dst.
ctypedef void (*ev_pack_b)(const void *ctx, int64_t p0, int64_t kc, int64_t j0, int64_t nc, void *dst) noexcept nogil

# Writes rows [i0, i0+mc) x columns [p0, p0+kc) of A to dst, row-major without gaps. As ev_pack_b.
ctypedef void (*ev_supply_a)(const void *ctx, int64_t i0, int64_t mc, int64_t p0, int64_t kc, void *dst) noexcept nogil

ctypedef struct ev_gemm:
    int64_t m, n, k
    const void *a                # element (i, p) at a[i*rsa + p*csa]
    int64_t rsa, csa
    const void *b                # element (p, j) at b[p*rsb + j*csb], unless `pack` is given
    int64_t rsb, csb
    ev_pack_b pack               # a function that supplies B in panels, or NULL
    const void *pack_ctx
    ev_supply_a supply           # a function that supplies A in blocks (rsa, csa unused), or NULL
    const void *supply_ctx
    void *c                      # row-major, row stride ldc
    int64_t ldc
    bint in_order                # columns have the same bits in a product with more or fewer others
    double alpha, beta           # beta == 0: C is not read
    const ev_epilogue *epilogue  # or NULL; with a residual, beta must be 0
    int32_t threads
    void *scratch

cdef void gemm_init(ev_gemm *g, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b,
                    int64_t ldb, void *c, int64_t ldc) noexcept nogil

# Scratch bytes for elements of `size` bytes (4: float32, 8: float64), any strides and any pack function.
cdef int64_t gemm_scratch(int64_t size, int64_t m, int64_t n, int64_t k, int32_t threads) noexcept nogil
# The most that one thread needs for products of up to m rows and n columns.
cdef int64_t gemm_scratch_within(int64_t size, int64_t m, int64_t n, int64_t k) noexcept nogil
cdef void gemm_f32(const ev_gemm *g) noexcept nogil
cdef void gemm_f64(const ev_gemm *g) noexcept nogil

# `count` products of one shape; a, b and c (with a residual, which is laid out like c) move on by the strides, in
# elements. A stride of 0 uses the same matrix again.
cdef int64_t gemm_batch_scratch(int64_t size, int64_t count, int64_t m, int64_t n, int64_t k,
                                int32_t threads) noexcept nogil
cdef void gemm_batch_f32(const ev_gemm *g, int64_t count, int64_t stride_a, int64_t stride_b,
                         int64_t stride_c) noexcept nogil
cdef void gemm_batch_f64(const ev_gemm *g, int64_t count, int64_t stride_a, int64_t stride_b,
                         int64_t stride_c) noexcept nogil
cdef bint gemm_packs(const ev_gemm *g, int64_t size) noexcept nogil

# Bytes of the second cache of a core; 0 or -1 where the system does not tell.
cdef int64_t l2_bytes() noexcept nogil
