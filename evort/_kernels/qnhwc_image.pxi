# Part of qnhwc.pyx: the image, staged or where it lies.

cdef void stage(const Job *job, const Geometry *g, int64_t image, int64_t d, int64_t first, int64_t rows, char *to,
                char *scratch) noexcept nogil:
    """What `rows` rows of positions from `first` on read of plane d, with padding, channels last."""
    cdef int64_t h, top = first * g.pool_h * g.stride_h - g.pad_h, begin, n, c, size = ev_item_size(job.o.x.dtype)
    cdef int64_t row = g.pitch * g.c, area = g.h * g.w, all_ = g.d * area
    cdef const char *x = <const char *> job.o.x.data + (image * g.c * all_ + d * area * (g.c if g.x_last else 1)) * size
    cdef char *line = scratch + g.at_line
    cdef char *made = scratch + g.at_row
    begin = min(g.pad_w, g.pitch)
    n = max(<int64_t> 0, min(g.w, g.pitch - begin))
    h = reach_h(g, rows)
    if (n == g.w == g.pitch and 0 <= d < g.d and top >= 0 and top + h <= g.h and job.o.x.dtype == EV_UINT8
            and not g.widens):
        if g.x_last:
            memcpy(to, x + top * row, h * row)
        else:
            K.move_transpose(1, h * n, g.c, x + top * n, all_, to, g.c)
        return
    if g.whole and job.o.x.dtype != EV_UINT8:
        K.qc_stage(job.o.x.dtype, g.c * all_, 1, x, job.stage, line)
        x = line
    if g.c == 1 and not g.widens and 0 <= d < g.d and (x == line or job.o.x.dtype == EV_UINT8):
        memset(to, <int> job.x_zero, reach_h(g, rows) * row)     # short rows: what is around them is set at once
        for h in range(max(<int64_t> 0, top), min(g.h, top + reach_h(g, rows))):
            memcpy(to + (h - top) * row + begin, x + h * g.w, n)
        return
    for h in range(top, top + reach_h(g, rows)):
        if not g.widens:
            made = to
        if h < 0 or h >= g.h or d < 0 or d >= g.d:
            memset(made, <int> job.x_zero, row)
        else:
            memset(made, <int> job.x_zero, begin * g.c)
            if g.x_last:
                memcpy(made + begin * g.c, x + h * g.w * g.c, n * g.c)
            elif x == line or job.o.x.dtype == EV_UINT8:
                K.move_transpose(1, n, g.c, x + h * g.w, all_, made + begin * g.c, g.c)
            else:
                for c in range(g.c):
                    K.qc_stage(job.o.x.dtype, n, 1, x + (c * all_ + h * g.w) * size, job.stage, line + c * n)
                K.move_transpose(1, n, g.c, line, n, made + begin * g.c, g.c)
            memset(made + (begin + n) * g.c, <int> job.x_zero, (g.pitch - begin - n) * g.c)
        if g.widens:
            K.nhwc_widen(row, <const uint8_t *> made, <int16_t *> to)
            to += row
        to += row


ctypedef struct Ring:
    int64_t begin, end           # planes that are staged; plane d has slot d % kernel_d, where taps follow one another


cdef const char *image_of(const Job *job, const Geometry *g, int64_t image, int64_t plane, int64_t first, int64_t rows,
                          Ring *ring, int32_t *offset, char *scratch) noexcept nogil:
    """Where the taps of position (plane, first, 0) begin, and the offsets of its segments from there."""
    cdef int64_t top = plane * g.stride_d - g.pad_d, k, d, i, at, slot, each = g.segments // g.kernel_d
    for k in range(g.kernel_d):
        slot = k if g.staged else k * g.dilation_d
        if g.staged:
            d = top + k * g.dilation_d
            if g.dilation_d == 1:
                slot = (d % g.kernel_d + g.kernel_d) % g.kernel_d
            if g.dilation_d != 1 or d < ring.begin or d >= ring.end:
                stage(job, g, image, d, first, rows, scratch + g.at_stage + slot * g.plane * (2 if g.widens else 1), scratch)
        for i in range(each):
            at = i * g.dilation_h * g.pitch
            if not g.rows:
                at = i // g.kernel_w * g.dilation_h * g.pitch + i % g.kernel_w * g.dilation_w
            offset[k * each + i] = <int32_t> (slot * g.plane + at * g.c)
    ring.begin, ring.end = top, top + g.kernel_d
    if g.staged:
        return scratch + g.at_stage
    return <const char *> job.o.x.data + ((image * g.d + top) * g.h + first * g.pool_h * g.stride_h) * g.w * g.c
