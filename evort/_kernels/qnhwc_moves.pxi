# Drivers that only pick bytes of images that lie channels last: max pools, and nearest pixels. Part of qnhwc.pyx.

# Largest of a window -------------------------------------------------------------------------------------------------

cdef enum:
    M_SIGNED = 0, M_N = 1, M_C = 2, M_H = 3, M_W = 4, M_OUT_H = 5, M_OUT_W = 6, M_KERNEL_H = 7, M_KERNEL_W = 8
    M_STRIDE_H = 9, M_STRIDE_W = 10, M_DILATION_H = 11, M_DILATION_W = 12, M_PAD_H = 13, M_PAD_W = 14


cdef void max_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef const int64_t *v = c.ints
    cdef int64_t item, oh, ow, i, j, h, w, n, channels = v[M_C]
    cdef const uint8_t *x
    cdef uint8_t *y = <uint8_t *> c.out[0].data + begin * v[M_OUT_W] * channels
    cdef int32_t[MOST_TAPS] offset
    for item in range(begin, end):
        oh = item % v[M_OUT_H]
        x = <const uint8_t *> c.in_[0].data + item // v[M_OUT_H] * v[M_H] * v[M_W] * channels
        for ow in range(v[M_OUT_W]):
            n = 0
            for i in range(v[M_KERNEL_H]):
                h = oh * v[M_STRIDE_H] - v[M_PAD_H] + i * v[M_DILATION_H]
                if h < 0 or h >= v[M_H]:
                    continue
                for j in range(v[M_KERNEL_W]):
                    w = ow * v[M_STRIDE_W] - v[M_PAD_W] + j * v[M_DILATION_W]
                    if 0 <= w < v[M_W]:
                        offset[n] = <int32_t> ((h * v[M_W] + w) * channels)
                        n += 1
            K.nhwc_max(channels, n, offset, <int> v[M_SIGNED], x, y)
            y += channels


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
