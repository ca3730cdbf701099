"""Drivers of QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear; scales and zero points are broadcast."""
from libc.math cimport rint
from libc.stdint cimport INT64_MAX, int16_t, int32_t, int64_t, uint8_t
from libc.string cimport memset
from evort._kernels.core cimport (EV_FLOAT, EV_INT32, EV_OK, EV_UINT8, ev_call, ev_item_size, ev_ukr, parallel_for,
                                  register, ukernels)
from evort._kernels.elementwise cimport BLOCK, Walk, walk

cdef const ev_ukr *K = ukernels()

cdef enum:
    # Where the integers of `quantize` and `dequantize` are.
    Q_DTYPE = 0, Q_LOOPS = 1


cdef inline bint has_zero_point(const ev_call *c) noexcept nogil:
    return c.n_in > 2 and c.in_[2] != NULL


cdef void quantize_row(const Walk *w, int64_t n, const char **p, const int64_t *s, char *y) noexcept nogil:
    cdef const ev_call *c = w.call
    cdef int16_t none[BLOCK]
    cdef const void *zero = p[2] if w.operands == 3 else <const char *> none
    if w.operands == 2:
        memset(none, 0, (n if s[1] else 1) * sizeof(int16_t))
    K.q_quantize(<int> c.ints[Q_DTYPE], n, <const float *> p[0], <const float *> p[1], zero, s[1],
                 <int32_t> c.reals[0], <int32_t> c.reals[1], y)


cdef int quantize(const ev_call *c) noexcept nogil:
    """in: X (float32), scale (float32), zero point (as Y; absent for 0); out: Y, integers of 8 or 16 bits.

    ints: (element type that holds Y, loops...); reals: (smallest Y, largest Y). Scale and zero point have one shape.
    """
    cdef Walk w
    cdef int64_t size = ev_item_size(<int> c.ints[Q_DTYPE])
    cdef bint zero = has_zero_point(c)
    w.size[0], w.size[1], w.size[2] = 4, 4, size
    walk(&w, c, c.ints + Q_LOOPS, quantize_row, INT64_MAX if zero else BLOCK, 3 if zero else 2, size, 8192)
    return EV_OK


cdef void dequantize_row(const Walk *w, int64_t n, const char **p, const int64_t *s, char *y) noexcept nogil:
    cdef int16_t none[BLOCK]
    cdef const void *zero = p[2] if w.operands == 3 else <const char *> none
    if w.operands == 2:
        memset(none, 0, (n if s[1] else 1) * sizeof(int16_t))
    K.q_dequantize(<int> w.call.ints[Q_DTYPE], n, p[0], <const float *> p[1], zero, s[1], <float *> y)


cdef void dequantize_wide_row(const Walk *w, int64_t n, const char **p, const int64_t *s, char *y) noexcept nogil:
    """int32, as biases are."""
    cdef float zero[BLOCK]
    if w.operands == 3:
        K.cast(EV_INT32, EV_FLOAT, n if s[1] else 1, p[2], zero)
    else:
        memset(zero, 0, (n if s[1] else 1) * sizeof(float))
    K.cast(EV_INT32, EV_FLOAT, n, p[0], y)
    K.dequantize_f32(n, <const float *> y, <const float *> p[1], zero, s[1], <float *> y)


cdef int dequantize(const ev_call *c) noexcept nogil:
    """in: X (integers), scale (float32), zero point (as X; absent for 0); out: Y (float32).

    ints: (element type that holds X, loops...). X has the shape of Y.
    """
    cdef Walk w
    cdef int dtype = <int> c.ints[Q_DTYPE]
    cdef int64_t size = ev_item_size(dtype)
    cdef bint zero = has_zero_point(c), wide = dtype == EV_INT32
    w.size[0], w.size[1], w.size[2] = size, 4, size
    walk(&w, c, c.ints + Q_LOOPS, dequantize_wide_row if wide else dequantize_row,
         INT64_MAX if zero and not wide else BLOCK, 3 if zero else 2, 4, 8192)
    return EV_OK


cdef void range_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    K.range_f32(end - begin, <const float *> c.in_[0].data + begin, <float *> c.scratch + 16 * worker)


cdef void dynamic_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    K.q_quantize(EV_UINT8, end - begin, <const float *> c.in_[0].data + begin, <const float *> c.out[1].data,
                 c.out[2].data, 0, 0, 255, <uint8_t *> c.out[0].data + begin)


cdef int dynamic_quantize(const ev_call *c) noexcept nogil:
    """in: X (float32); out: Y (uint8), scale (float32), zero point (uint8); scratch: 64 bytes for each thread."""
    cdef float *found = <float *> c.scratch
    cdef float lo, hi, scale, zero
    cdef int32_t i
    for i in range(16 * c.threads):
        found[i] = 0
    parallel_for(range_chunk, <void *> c, c.in_[0].size, 16384, c.threads)
    lo = hi = 0
    for i in range(c.threads):
        lo = min(lo, found[16 * i])
        hi = max(hi, found[16 * i + 1])
    scale = (hi - lo if hi != lo else <float> 1) / <float> 255
    zero = -lo / scale
    zero = <float> rint(zero if zero < 255 else 255) if zero > 0 else 0
    (<float *> c.out[1].data)[0] = scale
    (<uint8_t *> c.out[2].data)[0] = <uint8_t> zero
    parallel_for(dynamic_chunk, <void *> c, c.in_[0].size, 8192, c.threads)
    return EV_OK


DRIVERS = {}
register(DRIVERS, "quantize", quantize)
register(DRIVERS, "dequantize", dequantize)
register(DRIVERS, "dynamic_quantize", dynamic_quantize)
