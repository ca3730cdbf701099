# Drivers that only pick bytes of images that lie channels last: max pools, and nearest pixels. Part of qnhwc.pyx.

# Largest of a window -------------------------------------------------------------------------------------------------

cdef enum:
    M_SIGNED = 0, M_N = 1, M_C = 2, M_ROW = 3, M_SCRATCH = 4, M_TURNED = 5, M_AXES = 6

ctypedef struct PoolAxis:        # as in pooling.pyx
    int64_t size, out, kernel, stride, dilation, pad, count_from, count_to


cdef int64_t places(const PoolAxis *a, int64_t o, int64_t step, int64_t n, int32_t *offset) noexcept nogil:
    """Appends to each of n offsets those of the elements under output o that are there, `step` apart: n * so many."""
    cdef int64_t k, j, at, count = 0
    cdef int32_t[MOST_TAPS] given
    memcpy(given, offset, n * sizeof(int32_t))
    for k in range(a.kernel):
        at = o * a.stride - a.pad + k * a.dilation
        if 0 <= at < a.size:
            for j in range(n):
                offset[count] = given[j] + <int32_t> (at * step)
                count += 1
    return count


cdef void max_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Rows of results: first the largest of the rows under one, then of neighbours among those. Where results are to lie
    channels first, a row of them is turned."""
    cdef const ev_call *c = <const ev_call *> ctx
    cdef const int64_t *v = c.ints
    cdef const PoolAxis *D = <const PoolAxis *> (v + M_AXES)
    cdef const PoolAxis *H = D + 1
    cdef const PoolAxis *W = D + 2
    cdef int64_t item, ow, n, rows, some, left, right, channels = v[M_C], row = W.size * channels, lines = D.out * H.out
    cdef int sign = <int> v[M_SIGNED]
    cdef const uint8_t *x
    cdef uint8_t *results = <uint8_t *> c.out[0].data
    cdef uint8_t *line = <uint8_t *> c.scratch + worker * v[M_SCRATCH]
    cdef uint8_t *y = line + v[M_ROW] if v[M_TURNED] else results + begin * W.out * channels
    cdef int32_t[MOST_TAPS] offset
    # Windows of columns from `left` to `right` lie inside.
    left = min(W.out, ceil_div(W.pad, W.stride))
    right = W.size + W.pad - (W.kernel - 1) * W.dilation
    right = max(left, min(W.out, ceil_div(right, W.stride))) if right > 0 else left
    for item in range(begin, end):
        offset[0] = 0
        n = places(D, item // H.out % D.out, H.size * row, 1, offset)
        n = rows = places(H, item % H.out, row, n, offset)
        x = <const uint8_t *> c.in_[0].data + item // H.out // D.out * D.size * H.size * row
        if n > 0:
            K.nhwc_max(row, n, offset, sign, x, 0, 1, line)
        ow = 0
        while ow < W.out:
            offset[0] = 0
            n = places(W, ow, channels, 1, offset) if rows > 0 else 0
            some = right - left if ow == left < right else 1
            K.nhwc_max(channels, n, offset, sign, line, W.stride * channels, some, y + ow * channels)
            ow += some
        if v[M_TURNED]:
            K.move_transpose(1, channels, W.out, y, channels, results + (item // lines * channels * lines + item % lines) * W.out,
                             lines * W.out)
        else:
            y += W.out * channels


cdef int max_pool(const ev_call *c) noexcept nogil:
    """in: X [N, D..., C] of bytes; out: Y, the like, or [N, C, D...]; ints: see M_*, from M_AXES on three axes as in
    pooling.pyx."""
    cdef const PoolAxis *a = <const PoolAxis *> (c.ints + M_AXES)
    cdef int64_t row = max(1, a[2].out * c.ints[M_C] * a[0].kernel * a[1].kernel)
    parallel_for(max_rows, <void *> c, c.ints[M_N] * a[0].out * a[1].out, max(1, MACS_PER_TASK // row), c.threads)
    return EV_OK


# Nearest pixels ------------------------------------------------------------------------------------------------------

cdef enum:
    T_N = 0, T_C = 1, T_H = 2, T_W = 3, T_OUT_H = 4, T_OUT_W = 5, T_TABLES = 6


cdef void nearest_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef const int64_t *v = c.ints
    cdef const int64_t *rows = v + T_TABLES
    cdef const int64_t *columns = rows + v[T_OUT_H]
    cdef int64_t item, w, oh, channels = v[T_C], row = v[T_OUT_W] * channels
    cdef const uint8_t *x
    cdef uint8_t *y = <uint8_t *> c.out[0].data + begin * row
    for item in range(begin, end):
        oh = item % v[T_OUT_H]
        if item > begin and oh > 0 and rows[oh] == rows[oh - 1]:
            memcpy(y, y - row, row)
        else:
            x = <const uint8_t *> c.in_[0].data + (item // v[T_OUT_H] * v[T_H] + rows[oh]) * v[T_W] * channels
            for w in range(v[T_OUT_W]):
                memcpy(y + w * channels, x + columns[w] * channels, channels)
        y += row


cdef int nearest(const ev_call *c) noexcept nogil:
    """in: X [N, H, W, C] of bytes; out: Y, its pixels taken by rows and columns. ints: see T_*; then the tables, the
    rows' first."""
    cdef const int64_t *v = c.ints
    parallel_for(nearest_rows, <void *> c, v[T_N] * v[T_OUT_H], max(1, MACS_PER_TASK // max(1, v[T_OUT_W] * v[T_C])),
                 c.threads)
    return EV_OK
