"""Quantizing a whole tensor by the range that it turns out to have, for the drivers of dynamic quantization."""
from libc.stdint cimport int32_t, int64_t

# How a float tensor becomes integers: real = scale * (q - zero). The zero point is one number of the integer type.
ctypedef struct ev_dynamic:
    int32_t dtype                # EV_UINT8, with the zero point anywhere, or EV_INT16, with it at 0
    float scale
    int64_t zero                 # its low bytes are the zero point in `dtype`

cdef int64_t range_scratch(int32_t threads) noexcept nogil
# The encoding of n numbers; dtype is set. scratch: range_scratch() bytes, 64-byte aligned.
cdef void find_range(ev_dynamic *d, int64_t n, const float *x, int32_t threads, void *scratch) noexcept nogil
cdef void quantize_all(const ev_dynamic *d, int64_t n, const float *x, void *q, int32_t threads) noexcept nogil
