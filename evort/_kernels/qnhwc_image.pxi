# Part of qnhwc.pyx: the image, staged or where it lies.

ctypedef struct Task:
    Job job
    Geometry g
    const int32_t *sums          # of the weights of each channel
    const int8_t *w
    int64_t[2] zero              # what stands for zero in the image, or in the lower and the upper bytes


cdef const char *bytes_of(const Job *job, const Geometry *g, const char *x, int limb, char *line) noexcept nogil:
    """A whole image as bytes with channels first: of one of 16 bits the lower or the upper ones."""
    cdef int64_t n = g.c * g.h * g.w
    cdef int16_t zero = <int16_t> (job.x_zero - 32768)
    if not g.limbs:
        K.qc_stage(job.o.x.dtype, n, 1, x, job.stage, line)
        return line
    if job.o.x.dtype == EV_FLOAT:
        if limb == 0:
            K.q_quantize(EV_INT16, n, <const float *> x, &job.x_scale, &zero, 0, -32768, 32767, line)
        x = line
    K.qc_stage(EV_INT8 if limb else EV_UINT8, n, 2, x + limb, job.stage, line + 2 * n)
    return line + 2 * n


cdef void stage(const Task *t, int limb, int64_t image, int64_t d, int64_t top, int64_t bottom, char *to,
                char *scratch) noexcept nogil:
    """Rows [top, bottom) of plane d, with padding, channels last. limb: 1 for the upper bytes of an image of 16 bits."""
    cdef const Job *job = &t.job
    cdef const Geometry *g = &t.g
    cdef int zero = <int> t.zero[limb]
    cdef bint bytes_ = job.o.x.dtype == EV_UINT8
    cdef int64_t h, begin, n, c, size = ev_item_size(job.o.x.dtype)
    cdef int64_t row = g.pitch * g.c, area = g.h * g.w, all_ = g.d * area
    cdef const char *x = <const char *> job.o.x.data + (image * g.c * all_ + d * area * (g.c if g.x_last else 1)) * size
    cdef char *line = scratch + g.at_line
    cdef char *made = scratch + g.at_row
    begin = min(g.pad_w, g.pitch)
    n = max(<int64_t> 0, min(g.w, g.pitch - begin))
    if n == g.w == g.pitch and 0 <= d < g.d and top >= 0 and bottom <= g.h and bytes_ and not g.widens:
        if g.x_last:
            memcpy(to, x + top * row, (bottom - top) * row)
        else:
            K.move_transpose(1, (bottom - top) * n, g.c, x + top * n, all_, to, g.c)
        return
    if g.whole and not bytes_:
        x = bytes_of(job, g, x, limb, line)
        bytes_ = True
    if g.c == 1 and not g.widens and 0 <= d < g.d and bytes_:
        memset(to, zero, (bottom - top) * row)       # short rows: what is around them is set at once
        for h in range(max(<int64_t> 0, top), min(g.h, bottom)):
            memcpy(to + (h - top) * row + begin, x + h * g.w, n)
        return
    for h in range(top, bottom):
        if not g.widens:
            made = to
        if h < 0 or h >= g.h or d < 0 or d >= g.d:
            memset(made, zero, row)
        else:
            memset(made, zero, begin * g.c)
            if g.x_last:
                memcpy(made + begin * g.c, x + h * g.w * g.c, n * g.c)
            elif bytes_:
                K.move_transpose(1, n, g.c, x + h * g.w, all_, made + begin * g.c, g.c)
            else:
                for c in range(g.c):
                    K.qc_stage(job.o.x.dtype, n, 1, x + (c * all_ + h * g.w) * size, job.stage, line + c * n)
                K.move_transpose(1, n, g.c, line, n, made + begin * g.c, g.c)
            memset(made + (begin + n) * g.c, zero, (g.pitch - begin - n) * g.c)
        if g.widens:
            K.nhwc_widen(row, <const uint8_t *> made, <int16_t *> to)
            to += row
        to += row


ctypedef struct Ring:
    int64_t begin, end           # planes that are staged; plane d has slot d % kernel_d, where taps follow one another
    int64_t plane, top, bottom   # with a kernel of one plane: the one that rows [top, bottom) are staged of, counted
                                 # through all images


cdef void stage_band(const Task *t, int64_t image, int64_t d, int64_t top, int64_t bottom, Ring *ring,
                     char *scratch) noexcept nogil:
    """A band of a kernel of one plane. Rows that it has in common with the one before are moved."""
    cdef const Geometry *g = &t.g
    cdef char *to = scratch + g.at_stage
    cdef int64_t row = g.pitch * g.c * (2 if g.widens else 1), have = 0
    cdef int limb
    cdef int64_t plane = image * g.d + d if 0 <= d < g.d and not g.limbs else -1
    if plane >= 0 and ring.plane == plane and ring.top <= top < ring.bottom:
        have = min(ring.bottom, bottom) - top
        if ring.top < top:
            memmove(to, to + (top - ring.top) * row, have * row)
    for limb in range(2 if g.limbs else 1):
        if top + have < bottom:
            stage(t, limb, image, d, top + have, bottom, to + limb * g.limb + have * row, scratch)
    ring.plane, ring.top, ring.bottom = plane, top, bottom


cdef const char *image_of(const Task *t, int64_t image, int64_t plane, int64_t first, int64_t rows, Ring *ring,
                          int32_t *offset, char *scratch) noexcept nogil:
    """Where the taps of position (plane, first, 0) begin, and the offsets of its segments from there. Those of the upper
    bytes of an image of 16 bits begin Geometry.limb behind."""
    cdef const Job *job = &t.job
    cdef const Geometry *g = &t.g
    cdef int64_t top = plane * g.stride_d - g.pad_d, k, d, i, at, slot, each = g.segments // g.kernel_d
    cdef int64_t row = first * g.pool_h * g.stride_h - g.pad_h, bottom = row + reach_h(g, rows)
    cdef int limb
    if g.staged and g.kernel_d == 1:
        stage_band(t, image, top, row, bottom, ring, scratch)
    for k in range(g.kernel_d):
        slot = k if g.staged else k * g.dilation_d
        if g.staged and g.kernel_d > 1:
            d = top + k * g.dilation_d
            if g.dilation_d == 1:
                slot = (d % g.kernel_d + g.kernel_d) % g.kernel_d
            if g.dilation_d != 1 or d < ring.begin or d >= ring.end:
                for limb in range(2 if g.limbs else 1):
                    stage(t, limb, image, d, row, bottom,
                          scratch + g.at_stage + limb * g.limb + slot * g.plane * (2 if g.widens else 1), scratch)
        for i in range(each):
            at = i * g.dilation_h * g.pitch
            if not g.rows:
                at = i // g.kernel_w * g.dilation_h * g.pitch + i % g.kernel_w * g.dilation_w
            offset[k * each + i] = <int32_t> (slot * g.plane + at * g.c)
    ring.begin, ring.end = top, top + g.kernel_d
    if g.staged:
        return scratch + g.at_stage
    return <const char *> job.o.x.data + ((image * g.d + top) * g.h + first * g.pool_h * g.stride_h) * g.w * g.c
