"""Drivers of pools over one to three spatial axes; fewer are led by axes of length 1. A work item is one row of the
output; ukr/pool_body.h computes it from the input rows under it."""
from libc.math cimport INFINITY
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t
from evort._kernels.core cimport (EV_OK, EV_POOL_MAX, EV_POOL_SUM, ev_call, ev_epilogue, ev_ukr, ev_window,
                                  parallel_for, register, ukernels)

cdef const ev_ukr *K = ukernels()

cdef enum:
    GRAIN = 16384  # input elements that are worth a thread


# One spatial axis: eight numbers of the drivers' ints.
cdef struct Axis:
    int64_t size, out, kernel, stride, dilation, pad, count_from, count_to

cdef enum:
    AXIS_INTS = 8


cdef int64_t part(const Axis *a, int64_t o, int64_t begin, int64_t end, int64_t *first) noexcept nogil:
    """How many positions of window o lie in [begin, end), and the first of them."""
    cdef int64_t start = o * a.stride - a.pad
    cdef int64_t skip = (begin - start + a.dilation - 1) // a.dilation if start < begin else 0
    cdef int64_t stop = (end - start + a.dilation - 1) // a.dilation if end > start else 0
    first[0] = start + skip * a.dilation
    return max(0, min(stop, a.kernel) - skip)


cdef void pool_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int op = <int> c.ints[0]
    cdef int64_t size = c.ints[1], item, row, plane, i, j, d, h, nd, nh, d0, h0
    cdef const Axis *D = <const Axis *> (c.ints + 4)
    cdef const Axis *H = D + 1
    cdef const Axis *W = D + 2
    cdef char *scratch = <char *> c.scratch + worker * c.ints[3]
    cdef const void **rows = <const void **> scratch
    cdef char *buf = scratch + c.ints[2]
    cdef const char *x
    cdef char *y
    cdef ev_window w
    cdef ev_epilogue e
    e.activation, e.a, e.b = <int32_t> c.ints[4 + 3 * AXIS_INTS], <float> c.reals[0], <float> c.reals[1]
    w.out, w.width, w.kernel, w.stride, w.dilation, w.pad = W.out, W.size, W.kernel, W.stride, W.dilation, W.pad
    w.count_from, w.count_to = W.count_from, W.count_to
    for item in range(begin, end):
        row, plane = item % H.out, item // H.out
        nd = part(D, plane % D.out, 0, D.size, &d0)
        nh = part(H, row, 0, H.size, &h0)
        x = <const char *> c.in_[0].data + plane // D.out * D.size * H.size * W.size * size
        y = <char *> c.out[0].data + item * W.out * size
        for i in range(nd):
            for j in range(nh):
                d, h = d0 + i * D.dilation, h0 + j * H.dilation
                rows[i * nh + j] = x + (d * H.size + h) * W.size * size
        if nd * nh == 0:  # windows that lie in the padding
            for i in range(W.out):
                if size == 4:
                    (<float *> y)[i] = -INFINITY if op == EV_POOL_MAX else 0.0
                else:
                    (<int8_t *> y)[i] = -128 if op == INT8 else 0
        elif op == INT8:
            K.pool_max_row_i8(nd * nh, <const int8_t **> rows, &w, <int8_t *> buf, <int8_t *> y)
        elif op == UINT8:
            K.pool_max_row_u8(nd * nh, <const uint8_t **> rows, &w, <uint8_t *> buf, <uint8_t *> y)
        else:
            if op == EV_POOL_SUM:
                w.weight = <double> (part(D, plane % D.out, D.count_from, D.count_to, &d)
                                     * part(H, row, H.count_from, H.count_to, &h))
            K.pool_row_f32(op, nd * nh, <const float **> rows, &w, <float *> buf, <float *> y)
        if e.activation:
            K.activate_f32(&e, 1, W.out, 0, <float *> y, W.out)


# Values of `op` beside EV_POOL_*: the maximum of bytes.
cdef enum:
    INT8 = 8
    UINT8 = 9


cdef int pool(const ev_call *c) noexcept nogil:
    """in: X [planes, depth, height, width]; out: Y. ints: (op, item size, bytes of row pointers, scratch bytes of a
    thread, three axes, activation); an axis is (size, outputs, kernel, stride, dilation, pad, first and last position
    + 1 that counts for averages); reals: (alpha, beta)."""
    cdef const Axis *D = <const Axis *> (c.ints + 4)
    cdef int64_t items = c.out[0].size // D[2].out
    cdef int64_t work = min(D[0].kernel, D[0].size) * min(D[1].kernel, D[1].size) * D[2].size
    parallel_for(pool_chunk, <void *> c, items, max(1, GRAIN // work), c.threads)
    return EV_OK


ctypedef fused element:
    float
    int8_t
    uint8_t


cdef void find_max(const ev_call *c, const element *x, element *y, int64_t begin, int64_t end,
                   element least) noexcept nogil:
    cdef const Axis *D = <const Axis *> (c.ints + 2)
    cdef const Axis *H = D + 1
    cdef const Axis *W = D + 2
    cdef int64_t *at = <int64_t *> c.out[1].data
    cdef int64_t item, plane, od, oh, ow, nd, nh, nw, i, j, k, d0, h0, w0, d, h, w, found, base
    cdef bint columns = c.ints[1]
    cdef element best, v
    for item in range(begin, end):
        oh, od, plane = item % H.out, item // H.out % D.out, item // (H.out * D.out)
        base = plane * D.size * H.size * W.size
        nd, nh = part(D, od, 0, D.size, &d0), part(H, oh, 0, H.size, &h0)
        for ow in range(W.out):
            nw = part(W, ow, 0, W.size, &w0)
            best, found = least, -1
            for i in range(nd):
                d = d0 + i * D.dilation
                for j in range(nh):
                    h = h0 + j * H.dilation
                    for k in range(nw):
                        w = w0 + k * W.dilation
                        v = x[base + (d * H.size + h) * W.size + w]
                        if found < 0 or v > best or (v != v and best == best):
                            best = v
                            found = d + D.size * (h + H.size * w) if columns else (d * H.size + h) * W.size + w
            y[item * W.out + ow] = best
            at[item * W.out + ow] = base + found if found >= 0 else -1


cdef void find_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    if c.ints[0] == INT8:
        find_max(c, <const int8_t *> c.in_[0].data, <int8_t *> c.out[0].data, begin, end, -128)
    elif c.ints[0] == UINT8:
        find_max(c, <const uint8_t *> c.in_[0].data, <uint8_t *> c.out[0].data, begin, end, 0)
    else:
        find_max(c, <const float *> c.in_[0].data, <float *> c.out[0].data, begin, end, -INFINITY)


cdef int max_with_indices(const ev_call *c) noexcept nogil:
    """in: X [planes, depth, height, width]; out: Y, int64 positions in X. ints: (op, positions in column-major order?,
    three axes as for `pool`)."""
    cdef const Axis *D = <const Axis *> (c.ints + 2)
    cdef int64_t items = c.out[0].size // D[2].out
    cdef int64_t work = min(D[0].kernel, D[0].size) * min(D[1].kernel, D[1].size) * D[2].size
    parallel_for(find_chunk, <void *> c, items, max(1, GRAIN // 8 // work), c.threads)
    return EV_OK


DRIVERS = {}
register(DRIVERS, "pool", pool)
register(DRIVERS, "max_with_indices", max_with_indices)
