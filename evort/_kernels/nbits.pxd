"""Products of float32 with weights that are stored in fewer bits: 2, 3, 4 or 8 in blocks (nbits.h), float16, bfloat16
or int16. The weights stay as they are in the file's map; what the product needs of them is widened in the cache."""
from evort._kernels.core cimport ev_epilogue, ev_nbits
from libc.stdint cimport int32_t, int64_t

ctypedef struct ev_weights:
    int32_t dtype                # EV_FLOAT16, EV_BFLOAT16 or EV_INT16; EV_UINT8 for `packed`
    bint columns                 # W[k, n] rather than W[n, k]; not for packed ones
    const void *data             # dense, unless they are packed
    const float *scale           # one for each of n, which the numbers are multiplied by, or NULL; not for packed ones
    int64_t n, k
    bint rounded                 # one row of X may be rounded to 16 bits, each few numbers by their own scale
    ev_nbits packed

# Weights of n rows as onnxruntime's MatMulNBits has them; zeros may be NULL.
cdef void packed_weights(ev_weights *w, int64_t n, int64_t k, int32_t bits, int64_t block, const void *q,
                         const void *scales, int32_t scale_type, const void *zeros, int32_t zero_type) noexcept nogil
cdef void narrow_weights(ev_weights *w, int64_t n, int64_t k, bint columns, int32_t dtype,
                         const void *data) noexcept nogil

# Y[m, n] := activation(alpha * X[m, k] W^T + bias + residual), as the epilogue says; rows of X are ldx apart.
cdef int64_t widened_scratch(int64_t m, int64_t n, int64_t k, int64_t padded, int32_t threads) noexcept nogil
cdef void widened_product(const ev_weights *w, int64_t m, float alpha, const float *x, int64_t ldx, float *y,
                          int64_t ldy, const ev_epilogue *e, int32_t threads, void *scratch) noexcept nogil
