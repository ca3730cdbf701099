"""Drivers of pools over one to three spatial axes; fewer are led by axes of length 1. A work item is one row of the
output; ukr/pool_body.h computes it from the input rows under it."""
from libc.math cimport INFINITY
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t
from libc.string cimport memcpy
from evort._kernels.core cimport (EV_FLOAT, EV_OK, EV_POOL_MAX, EV_POOL_SUM, ev_call, ev_epilogue, ev_item_size, ev_ukr,
                                  ev_window, note, parallel_for, register, ukernels)

cdef const ev_ukr *K = ukernels()

cdef enum:
    GRAIN = 65536  # input elements that are worth a thread


# One spatial axis: eight numbers of the drivers' ints.
cdef struct Axis:
    int64_t size, out, kernel, stride, dilation, pad, count_from, count_to

cdef enum:
    AXIS_INTS = 8


cdef inline int64_t steps(int64_t distance, int64_t step) noexcept nogil:
    return distance if step == 1 else (distance + step - 1) // step  # divisions are slow, and rare this way


cdef int64_t part(const Axis *a, int64_t o, int64_t begin, int64_t end, int64_t *first) noexcept nogil:
    """How many positions of window o lie in [begin, end), and the first of them."""
    cdef int64_t start = o * a.stride - a.pad
    cdef int64_t skip = steps(begin - start, a.dilation) if start < begin else 0
    cdef int64_t stop = steps(end - start, a.dilation) if end > start else 0
    first[0] = start + skip * a.dilation
    return max(0, min(stop, a.kernel) - skip)


cdef ev_window window_of(const Axis *a) noexcept nogil:
    cdef ev_window w
    cdef int64_t room = a.size + a.pad - (a.kernel - 1) * a.dilation  # windows that begin below it end in the row
    w.out, w.width, w.kernel, w.stride, w.dilation, w.pad = a.out, a.size, a.kernel, a.stride, a.dilation, a.pad
    w.count_from, w.count_to, w.weight = a.count_from, a.count_to, 1.0
    w.from_ = min(steps(a.pad, a.stride), a.out)
    w.to = max(w.from_, min(steps(room, a.stride), a.out)) if room > 0 else w.from_
    return w


cdef inline bint is_paired(const Axis *a) noexcept nogil:
    """Whether windows of two lie side by side, all of them inside the image."""
    return a.kernel == 2 == a.stride and a.dilation == 1 and a.pad == 0 and 2 * a.out <= a.size


cdef void pool_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int op = <int> c.ints[0]
    cdef int64_t size = c.ints[1], item, row = 0, i, j, nd = 0, nh, d0, h0, wide = 0
    cdef const Axis *D = <const Axis *> (c.ints + 4)
    cdef const Axis *H = D + 1
    cdef ev_window w = window_of(D + 2)
    cdef int64_t line = w.width * size
    cdef char *scratch = <char *> c.scratch + worker * c.ints[3]
    cdef const void **rows = <const void **> scratch
    cdef char *buf = scratch + c.ints[2]
    cdef const char *x = NULL
    cdef char *y = <char *> c.out[0].data + begin * w.out * size
    cdef ev_epilogue e
    cdef bint pairs = op == EV_POOL_MAX and w.out >= 4 and is_paired(D + 2) and is_paired(H) and D.size == D.kernel == 1
    cdef int done = 0
    e.activation, e.a, e.b = <int32_t> c.ints[4 + 3 * AXIS_INTS], <float> c.reals[0], <float> c.reals[1]
    if pairs and H.size == 2 * H.out and D.out == 1:  # all rows at once
        K.pool_2x2_f32(end - begin, w.out, w.width, <const float *> c.in_[0].data + begin * 2 * w.width, <float *> y, &done)
        if done:
            if e.activation:
                K.activate_f32(&e, 1, (end - begin) * w.out, 0, <float *> y, 0)
            return
    for item in range(begin, end):
        if row == 0 or row == H.out:  # another plane
            row, i = item % H.out, item // H.out
            x = <const char *> c.in_[0].data + i // D.out * D.size * H.size * line
            nd = part(D, i % D.out, 0, D.size, &d0)
            wide = part(D, i % D.out, D.count_from, D.count_to, &j)
        nh = part(H, row, 0, H.size, &h0)
        for i in range(nd):
            for j in range(nh):
                rows[i * nh + j] = x + ((d0 + i * D.dilation) * H.size + h0 + j * H.dilation) * line
        if nd * nh == 0:  # windows that lie in the padding
            for i in range(w.out):
                if size == 4:
                    (<float *> y)[i] = -INFINITY if op == EV_POOL_MAX else 0.0
                elif size == 2:
                    (<int16_t *> y)[i] = -32768
                else:
                    (<int8_t *> y)[i] = -128 if op == INT8 else 0
        elif op == INT8:
            K.pool_max_row_i8(nd * nh, <const int8_t **> rows, &w, <int8_t *> buf, <int8_t *> y)
        elif op == INT16:
            K.pool_max_row_i16(nd * nh, <const int16_t **> rows, &w, <int16_t *> buf, <int16_t *> y)
        elif op == UINT8:
            K.pool_max_row_u8(nd * nh, <const uint8_t **> rows, &w, <uint8_t *> buf, <uint8_t *> y)
        else:
            w.weight = <double> (wide * part(H, row, H.count_from, H.count_to, &j))
            done = 0
            if pairs and nd == 1:
                K.pool_2x2_f32(1, w.out, w.width, <const float *> rows[0], <float *> y, &done)
            if not done:
                K.pool_row_f32(op, nd * nh, <const float **> rows, &w, <float *> buf, <float *> y)
        if e.activation:
            K.activate_f32(&e, 1, w.out, 0, <float *> y, w.out)
        y += w.out * size
        row += 1


# Values of `op` beside EV_POOL_*: the maximum of integers.
cdef enum:
    INT8 = 8
    UINT8 = 9
    INT16 = 10


cdef int pool(const ev_call *c) noexcept nogil:
    """in: X [planes, depth, height, width]; out: Y. ints: (op, item size, bytes of row pointers, scratch bytes of a
    thread, three axes, activation); an axis is (size, outputs, kernel, stride, dilation, pad, first and last position
    + 1 that counts for averages); reals: (alpha, beta)."""
    cdef const Axis *D = <const Axis *> (c.ints + 4)
    cdef int64_t items = c.out[0].size // D[2].out
    cdef int64_t work = min(D[0].kernel, D[0].size) * min(D[1].kernel, D[1].size) * D[2].size
    parallel_for(pool_chunk, <void *> c, items, max(1, GRAIN // work), c.threads)
    return EV_OK


cdef enum:
    # Where the integers of `quantized_average` are.
    Q_DTYPE = 0, Q_OUT = 1, Q_ZERO = 2, Q_ZERO_OUT = 3, Q_LOW = 4, Q_HIGH = 5, Q_POINTERS = 6, Q_SCRATCH = 7, Q_AXES = 8


cdef void quantized_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int dtype = <int> c.ints[Q_DTYPE], out = <int> c.ints[Q_OUT]
    cdef int64_t item, row, i, j, nd, nh, d0, h0, lines, plane, size = ev_item_size(out)
    cdef const Axis *D = <const Axis *> (c.ints + Q_AXES)
    cdef const Axis *H = D + 1
    cdef ev_window w = window_of(D + 2)
    cdef char *scratch = <char *> c.scratch + worker * c.ints[Q_SCRATCH]
    cdef const void **rows = <const void **> scratch
    cdef char *buf = scratch + c.ints[Q_POINTERS]
    cdef float *means = <float *> (buf + 4 * (w.width + w.out))
    cdef const char *x
    cdef char *y = <char *> c.out[0].data + begin * w.out * size
    for item in range(begin, end):
        row, plane = item % H.out, item // H.out
        x = <const char *> c.in_[0].data + plane // D.out * D.size * H.size * w.width
        nd, nh = part(D, plane % D.out, 0, D.size, &d0), part(H, row, 0, H.size, &h0)
        lines = part(D, plane % D.out, D.count_from, D.count_to, &i) * part(H, row, H.count_from, H.count_to, &j)
        for i in range(nd):
            for j in range(nh):
                rows[i * nh + j] = x + ((d0 + i * D.dilation) * H.size + h0 + j * H.dilation) * w.width
        w.weight = <double> lines
        K.q_pool_row(dtype, nd * nh, rows, &w, <int32_t> c.ints[Q_ZERO], <float> c.reals[0], buf, means)
        if c.range != NULL:
            note(K, c.range, w.out, means, 1)
        if out == EV_FLOAT:
            memcpy(y, means, w.out * sizeof(float))
        else:
            K.q_round(out, w.out, means, 1.0, <int32_t> c.ints[Q_ZERO_OUT], <int32_t> c.ints[Q_LOW],
                      <int32_t> c.ints[Q_HIGH], y)
        y += w.out * size


cdef int quantized_average(const ev_call *c) noexcept nogil:
    """in: X [planes, depth, height, width] of bytes; out: Y. ints: (types of X and Y, zero points of X and Y, smallest
    and largest Y, bytes of row pointers, scratch bytes of a thread, three axes as for `pool`); reals: (X's scale, in
    units of Y's)."""
    cdef const Axis *D = <const Axis *> (c.ints + Q_AXES)
    cdef int64_t work = min(D[0].kernel, D[0].size) * min(D[1].kernel, D[1].size) * D[2].size
    parallel_for(quantized_chunk, <void *> c, c.out[0].size // D[2].out, max(1, GRAIN // work), c.threads)
    return EV_OK


ctypedef fused element:
    float
    int8_t
    int16_t
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
    elif c.ints[0] == INT16:
        find_max(c, <const int16_t *> c.in_[0].data, <int16_t *> c.out[0].data, begin, end, -32768)
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
register(DRIVERS, "quantized_average", quantized_average)
