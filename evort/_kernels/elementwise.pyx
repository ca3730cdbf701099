"""Drivers of the elementwise family."""
from libc.stdint cimport int32_t, int64_t
from evort._kernels.core cimport EV_OK, ev_call, ev_ukr, parallel_for, register, ukernels

cdef const ev_ukr *K = ukernels()


cdef void unary_f32_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    K.unary_f32(<int> c.ints[0], end - begin, (<const float *> c.in_[0].data) + begin,
                (<float *> c.out[0].data) + begin, 0, 0)


cdef int unary_f32(const ev_call *c) noexcept nogil:
    """in: X; out: Y of the same shape; ints: (which function,)."""
    parallel_for(unary_f32_chunk, <void *> c, c.out[0].size, 16384, c.threads)
    return EV_OK


DRIVERS = {}
register(DRIVERS, "unary_f32", unary_f32)
