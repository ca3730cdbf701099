# Drivers that only pick bytes of images that lie channels last: max pools, and nearest pixels. Part of qnhwc.pyx.

# Largest of a window -------------------------------------------------------------------------------------------------

cdef enum:
    M_SIGNED = 0, M_N = 1, M_C = 2, M_H = 3, M_W = 4, M_OUT_H = 5, M_OUT_W = 6, M_KERNEL_H = 7, M_KERNEL_W = 8
    M_STRIDE_H = 9, M_STRIDE_W = 10, M_DILATION_H = 11, M_DILATION_W = 12, M_PAD_H = 13, M_PAD_W = 14
    LINE_BYTES = 4096            # of the largest of a few rows, which stay in L1


cdef int64_t taps_of(const int64_t *v, int64_t left, int64_t from_, int32_t *offset) noexcept nogil:
    """Offsets, from column `from_` on, of the columns of a window that begins at column `left`; how many there are."""
    cdef int64_t i, w, n = 0
    for i in range(v[M_KERNEL_W]):
        w = left + i * v[M_DILATION_W]
        if 0 <= w < v[M_W]:
            offset[n] = <int32_t> ((w - from_) * v[M_C])
            n += 1
    return n


cdef void max_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Rows [begin, end) of the result: the largest of a window's rows first, for a run of the image, then of its columns."""
    cdef const ev_call *c = <const ev_call *> ctx
    cdef const int64_t *v = c.ints
    cdef int64_t item, ow, o, i, j, h, n, m, some, same, left, first, last, channels = v[M_C], step = v[M_STRIDE_W]
    cdef int64_t reach = (v[M_KERNEL_W] - 1) * v[M_DILATION_W] + 1
    cdef int is_signed = <int> v[M_SIGNED]
    cdef const uint8_t *x
    cdef uint8_t *y = <uint8_t *> c.out[0].data + begin * v[M_OUT_W] * channels
    cdef int32_t[MOST_TAPS] rows, taps
    cdef uint8_t[LINE_BYTES + 16] line
    for item in range(begin, end):
        x = <const uint8_t *> c.in_[0].data + item // v[M_OUT_H] * v[M_H] * v[M_W] * channels
        n = 0
        for i in range(v[M_KERNEL_H]):
            h = item % v[M_OUT_H] * v[M_STRIDE_H] - v[M_PAD_H] + i * v[M_DILATION_H]
            if 0 <= h < v[M_H]:
                rows[n] = <int32_t> (h * v[M_W] * channels)
                n += 1
        ow = 0
        while ow < v[M_OUT_W]:
            some = min(v[M_OUT_W] - ow, max(<int64_t> 1, (LINE_BYTES // channels - reach) // step + 1))
            left = ow * step - v[M_PAD_W]
            first = max(<int64_t> 0, left)
            last = min(v[M_W], left + (some - 1) * step + reach)
            if (last - first) * channels > LINE_BYTES:       # under a single pixel: all taps at once
                m = taps_of(v, left, 0, taps)
                for i in range(n - 1, -1, -1):
                    for j in range(m):
                        taps[i * m + j] = taps[j] + rows[i]
                K.nhwc_max(channels, n * m, taps, is_signed, x, 0, 1, y)
            elif last > first:
                K.nhwc_max((last - first) * channels, n, rows, is_signed, x + first * channels, 0, 1, line)
            o = 0
            while o < some and (last - first) * channels <= LINE_BYTES:
                same = 1                                     # those that have all of their columns are done together
                if left + o * step >= 0 and left + o * step + reach <= last:
                    same = min(some - o, (last - reach - left - o * step) // step + 1)
                m = taps_of(v, left + o * step, first, taps)
                K.nhwc_max(channels, m, taps, is_signed, line, step * channels, same, y + o * channels)
                o += same
            y += some * channels
            ow += some


cdef int max_pool(const ev_call *c) noexcept nogil:
    """in: X [N, H, W, C] of bytes; out: Y, the like. ints: see M_*."""
    cdef const int64_t *v = c.ints
    cdef int64_t row = max(1, v[M_OUT_W] * v[M_C] * v[M_KERNEL_H] * v[M_KERNEL_W])
    parallel_for(max_rows, <void *> c, v[M_N] * v[M_OUT_H], max(1, MACS_PER_TASK // row), c.threads)
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
