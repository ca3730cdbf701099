# Convolutions of an image that is staged in quads of channels: byte i of quad e is channel 4*c + i at element e. A tap is
# then an offset, and 16 successive positions are read as they lie: nothing is packed for each tap. A few output rows at
# a time are one run of sums, the few columns between two rows included.


cdef void quads_of_band(const Job *job, Block *k, const char *x, int64_t last) noexcept nogil:
    """All positions of a band that ends at `last`."""
    cdef const Plan *p = &job.plan
    cdef const Axis *a = &p.axis[0]
    cdef int32_t *offset = <int32_t *> (k.scratch + p.at_offset)
    cdef int32_t *quad = <int32_t *> (k.scratch + p.at_quad)
    cdef int32_t *sum = <int32_t *> (k.scratch + p.at_sum)
    cdef char *four = k.scratch + p.at_four
    cdef int64_t channel = p.plane * a[0].planes * a[1].planes * a[2].planes, inside, c, t, i, r, m, d, h, some, rows
    cdef int64_t width, pitch = a[2].length
    cdef int64_t[3] none
    cdef Rows w
    none[0] = none[1] = none[2] = 0
    inside = a[0].size * a[1].size * a[2].size * ev_item_size(job.o.x.dtype)
    for c in range(p.fours):
        some = min(<int64_t> 4, p.channels - 4 * c)
        memset(four + some * channel, 0, (4 - some) * channel)
        stage(job, x + 4 * c * inside, some, k.first, four)
        K.qc_interleave(channel, <const uint8_t *> four, channel, <uint8_t *> k.scratch + 4 * c * channel)
    k.taps, k.k, k.kp = list_taps(p, none, offset, <int32_t *> (k.scratch + p.at_tap)), p.k, p.kp
    for c in range(p.fours):
        for t in range(p.taps):
            quad[c * p.taps + t] = <int32_t> (4 * (c * channel + offset[t]))
    for i in range(p.fours * p.taps, p.kp // 4):
        quad[i] = 0
    for i in range(3):
        k.count[i] = a[i].count if i != p.cut else last - k.first
    width = k.count[2]
    m = k.m0
    while m < k.m1:
        rows = min(<int64_t> (EV_QC_PLAIN_MR if k.plain else EV_QC_MR), k.m1 - m)
        k.n = k.count[0] * k.count[1] * width
        take_rows(job, k, m, rows, &w)
        for d in range(k.count[0]):
            h = 0
            while h < k.count[1]:
                some = min(k.count[1] - h, (p.columns - width) // pitch + 1)
                K.qc_tile(rows, (some - 1) * pitch + width, w.s, w.k, w.a, w.lda,
                          <const uint8_t *> k.scratch + 4 * (d * a[1].length + h) * pitch, quad, 4 * EV_QC_NR, w.extra,
                          w.found, sum, p.columns)
                for i in range(rows if pitch > width else 0):
                    for r in range(1, some):
                        memmove(sum + i * p.columns + r * width, sum + i * p.columns + r * pitch,
                                width * sizeof(int32_t))
                k.j0, k.n = (d * k.count[1] + h) * width, some * width
                put_rows(job, k, m, rows, w.total, False)
                h += some
        m += rows
