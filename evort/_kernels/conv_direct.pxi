# Part of conv.pyx: direct convolution. ukr/conv.h has the layout of the copy that it works on.
#
#     for bands of output planes and rows (shared out to threads)      the copy fits DIRECT_COPY_BYTES
#       copy the image under the band: padded, split by phase          once for all output channels
#       for blocks of output channels                                  weights fit DIRECT_WEIGHT_BYTES, in L2
#         for 16 columns of the band                                   their taps stay in L1
#           for up to 6 output channels: all channels and taps         12 vectors of sums in registers
#
# Along short rows vectors of columns would be partly idle: there the lanes are 16 output channels, whose weights are packed
# side by side, and sums are transposed band by band. Without padding and strides the image is read where it lies.

cdef enum:
    DIRECT_COPY_BYTES = 128 * 1024
    DIRECT_MOST = 160 * 1024     # of scratch for a thread, beyond which it is not worth the memory
    DIRECT_WEIGHT_BYTES = 96 * 1024
    DIRECT_WEIGHTS = 5 << 19     # of all output channels: what L3 can be expected to keep from band to band
    DIRECT_SHORT_SUM = 200       # channels times taps of what is worth it with strides, too

ctypedef struct Direct:
    const ev_call *call
    Shape shape
    ev_direct_image image
    int64_t bands_d, bands_h, block_m
    bint lanes                   # output channels in the lanes
    bint in_place                # the image serves as its copy
    int32_t *offset              # for all threads, with the panels of weights; then each has its copy and its sums
    float *panels                # of weights, then the bias
    int64_t offset_bytes, panel_bytes, copy_bytes, slot


cdef inline int64_t shared_out(int64_t n, int64_t most) noexcept nogil:
    """The size of equal parts of n that are at most `most`."""
    cdef int64_t parts = (n + most - 1) // most
    return (n + parts - 1) // parts


cdef inline bint lanes_pay(const ev_conv_window *w, int64_t m) noexcept nogil:
    """Whether output channels go into the lanes (direct_lanes_f32), rather than positions, where there is no residual.

    Measured on 140 shapes (Zen 4, AVX-512 and AVX2), beside positions in the lanes, with 16 and 32 channels: 0.6 to 0.9 of
    the time along rows of 5 to 14 outputs, 0.9 to 1.0 up to 28. More where channels do not fill the lanes (24: 1.0 to 1.3),
    or where there are fewer positions than it takes to make up for the packing of the weights.
    """
    return m <= 32 and 4 <= w.out[2] <= 28 and w.out[0] * w.out[1] * w.out[2] >= 24


cdef void plan_direct(Direct *job, const ev_conv_window *w, int64_t channels, int64_t rows, int64_t items,
                      int32_t threads, bint lanes) noexcept nogil:
    """Sizes for a group of `channels` inputs and `rows` outputs; items: images and groups. lanes: as lanes_pay."""
    cdef ev_direct_image *g = &job.image
    cdef int64_t i, e, a, b, begin, natural, row_bytes, k, most, end = 0, lead = w.pad[2]
    cdef int64_t places = items * w.out[0] * w.out[1] * w.out[2]
    if places * rows * channels * w.kernel[0] * w.kernel[1] * w.kernel[2] < 2 * MACS_PER_TASK:
        threads = 1  # one thread does all, and bands that overlap would only cost it time
    g.window, g.channels = w[0], channels
    for i in range(3):
        a, b = w.stride[i], w.dilation[i] % w.stride[i]
        while b != 0:
            a, b = b, a % b
        g.period[i] = min(w.kernel[i], w.stride[i] // a)
        g.shift[i] = (w.kernel[i] - 1) * w.dilation[i] // w.stride[i]
    for e in range(g.period[2]):
        begin = e * w.dilation[2] % w.stride[2] - w.pad[2]
        lead = min(lead, 0 if begin > 0 else (-begin + w.stride[2] - 1) // w.stride[2])
        end = max(end, (w.image[2] - begin + w.stride[2] - 1) // w.stride[2])
    natural = w.out[2] + g.shift[2]
    g.pitch = min(natural, max(w.out[2], max(end, natural - lead)))
    g.wrap = w.stride[2]
    # Measured on LeNet's 5x5 over 14 columns without padding, 10 of 14 columns: a fifth less time in all.
    if not lanes and w.out[2] * 8 <= g.pitch * 7 and w.kernel[2] <= 8:
        g.pitch, g.period[2], g.shift[2], g.wrap = w.out[2], w.kernel[2], 0, w.kernel[2] * w.dilation[2]
    row_bytes = 4 * max(<int64_t> 1, channels) * g.period[0] * g.period[1] * g.period[2] * g.pitch
    g.depth, g.height = 1, w.out[1]
    most = DIRECT_COPY_BYTES // row_bytes
    if (1 + g.shift[0]) * (w.out[1] + g.shift[1]) > most:
        g.height = shared_out(w.out[1], max(<int64_t> 1, most // (1 + g.shift[0]) - g.shift[1]))
    else:
        g.depth = shared_out(w.out[0], max(<int64_t> 1, most // (w.out[1] + g.shift[1]) - g.shift[0]))
    if items < 2 * threads and threads > 1:
        g.depth = min(g.depth, (w.out[0] * items + 2 * threads - 1) // (2 * threads))
        if w.out[0] * items < 2 * threads:
            g.height = min(g.height, (w.out[1] + 2 * threads - 1) // (2 * threads))
    if lanes:
        g.height = min(g.height, max(<int64_t> 1, DIRECT_COPY_BYTES // (4 * rows * w.out[2])))
    g.planes, g.rows = g.depth + g.shift[0], g.height + g.shift[1]
    job.bands_d = (w.out[0] + g.depth - 1) // g.depth
    job.bands_h = (w.out[1] + g.height - 1) // g.height
    k = max(<int64_t> 1, channels * w.kernel[0] * w.kernel[1] * w.kernel[2])
    job.block_m = max(<int64_t> 6, DIRECT_WEIGHT_BYTES // (4 * k) // 6 * 6)
    job.offset_bytes = round64(4 * k)
    job.copy_bytes = round64(g.planes * g.rows * row_bytes + 4 * (g.pitch + 32))
    job.slot, job.lanes, job.in_place, job.panel_bytes = job.copy_bytes, lanes, False, 0
    if lanes:
        job.in_place = channels * w.image[0] * w.image[1] * w.image[2] < <int64_t> 1 << 31  # offsets have 32 bits
        for i in range(3):
            job.in_place = job.in_place and w.stride[i] == 1 and w.pad[i] == 0
        if job.in_place:
            g.planes, g.rows, g.pitch, job.copy_bytes = w.image[0], w.image[1], w.image[2], 0
        job.panel_bytes = round64(4 * rows * (k + 1))
        job.slot = job.copy_bytes + round64(4 * rows * g.height * w.out[2])


cdef void direct_offsets(const Direct *job) noexcept nogil:
    """Where the elements of each channel and tap begin, in the order of the weights."""
    cdef const ev_direct_image *g = &job.image
    cdef const ev_conv_window *w = &g.window
    cdef int64_t z, y, x, phase, i, at, taps = w.kernel[0] * w.kernel[1] * w.kernel[2]
    cdef int64_t plane = g.planes * g.rows * g.pitch, channel = g.period[0] * g.period[1] * g.period[2] * plane
    cdef int32_t *to = job.offset
    if g.channels == 0:
        return
    for z in range(w.kernel[0]):
        for y in range(w.kernel[1]):
            phase = (z % g.period[0] * g.period[1] + y % g.period[1]) * g.period[2]
            at = phase * plane + (z * w.dilation[0] // w.stride[0] * g.rows + y * w.dilation[1] // w.stride[1]) * g.pitch
            for x in range(w.kernel[2]):
                to[0] = <int32_t> (at + x % g.period[2] * plane
                                   + (0 if g.shift[2] == 0 else x * w.dilation[2] // w.stride[2]))
                to += 1
    for i in range((g.channels - 1) * taps):  # divisions for every channel would take a tenth of small convolutions
        to[i] = to[i - taps] + <int32_t> channel


cdef void direct_panels(const Direct *job) noexcept nogil:
    """The weights as direct_lanes_f32 takes them, and the bias."""
    cdef const Shape *s = &job.shape
    cdef int64_t k = s.c * s.taps, i, panel = EV_DIRECT_LANES * k
    for i in range(s.m // EV_DIRECT_LANES):
        K.move_transpose(4, k, EV_DIRECT_LANES, s.w + i * panel, k, job.panels + i * panel, EV_DIRECT_LANES)
    if s.b != NULL:
        memcpy(job.panels + s.m * k, s.b, 4 * s.m)
    else:
        memset(job.panels + s.m * k, 0, 4 * s.m)


cdef void direct_lanes(const Direct *job, ev_direct *d, int64_t image, int64_t position, float *sums) noexcept nogil:
    """The rows of d of an image, from output `position` on."""
    cdef const Shape *s = &job.shape
    cdef ev_epilogue e
    cdef float *y = s.y + image * s.m * s.outside + position
    d.m, d.w, d.bias, d.residual, d.y, d.ldy = s.m, job.panels, job.panels + s.m * d.k, NULL, sums, s.m
    K.direct_lanes_f32(d)
    K.move_transpose(4, s.m, d.rows * d.ow, sums, s.m, y, s.outside)
    if not is_clamp(job.call):
        fill_epilogue(job.call, s, image, 0, &e)
        K.activate_f32(&e, s.m, d.rows * d.ow, 0, y, s.outside)


cdef void direct_bands(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const Direct *job = <const Direct *> ctx
    cdef const Shape *s = &job.shape
    cdef const ev_direct_image *g = &job.image
    cdef const ev_conv_window *w = &g.window
    cdef int64_t item, band, image, group, od, oh, p, planes, m0, at, rows = s.m // s.groups
    cdef float *copy = <float *> (<char *> job.panels + job.panel_bytes + worker * job.slot)
    cdef float *sums = <float *> (<char *> copy + job.copy_bytes)
    cdef ev_direct d
    cdef ev_epilogue e
    d.k = g.channels * s.taps
    d.ldw = d.k
    d.offset = job.offset
    d.pitch, d.ow, d.ldy = g.pitch, w.out[2], s.outside
    clamp_of(job.call, &d.lo, &d.hi)
    for item in range(begin, end):
        band = item % (job.bands_d * job.bands_h)
        image, group = item // (job.bands_d * job.bands_h) // s.groups, item // (job.bands_d * job.bands_h) % s.groups
        od, oh = band // job.bands_h * g.depth, band % job.bands_h * g.height
        planes, d.rows = min(g.depth, w.out[0] - od), min(g.height, w.out[1] - oh)
        if job.in_place:
            copy = s.x + image * s.c * s.inside + (od * g.rows + oh) * g.pitch
        else:
            K.direct_copy_f32(g, s.x + (image * s.c + group * g.channels) * s.inside, od, oh, copy)
        if job.lanes:
            for p in range(planes):
                d.x = copy + p * g.rows * g.pitch
                direct_lanes(job, &d, image, ((od + p) * w.out[1] + oh) * w.out[2], sums)
            continue
        m0 = 0
        while m0 < rows:
            d.m = min(job.block_m, rows - m0)
            d.w = s.w + (group * rows + m0) * d.k
            d.bias = NULL if s.b == NULL else s.b + group * rows + m0
            for p in range(planes):
                at = (image * s.m + group * rows + m0) * s.outside + ((od + p) * w.out[1] + oh) * w.out[2]
                d.x = copy + p * g.rows * g.pitch
                d.y = s.y + at
                d.residual = NULL if s.z == NULL else s.z + at
                K.direct_f32(&d)
                if not is_clamp(job.call):
                    fill_epilogue(job.call, s, image, group, &e)
                    K.activate_f32(&e, d.m, d.rows * d.ow, m0, d.y, d.ldy)
            m0 += job.block_m


cdef int run_direct(const ev_call *c, bint lanes) noexcept nogil:
    cdef Direct job
    cdef Shape *s = &job.shape
    cdef int64_t macs
    read_call(c, s)
    if c.out[0].size == 0:
        return EV_OK
    job.call = c
    plan_direct(&job, &s.window, s.c // s.groups, s.m // s.groups, s.n * s.groups, c.threads, lanes)
    job.offset = <int32_t *> c.scratch
    job.panels = <float *> (<char *> c.scratch + job.offset_bytes)
    direct_offsets(&job)
    if job.lanes:
        direct_panels(&job)
    macs = s.m // s.groups * job.image.depth * job.image.height * s.window.out[2] * s.c // s.groups * s.taps
    parallel_for(direct_bands, &job, s.n * s.groups * job.bands_d * job.bands_h, max(1, MACS_PER_TASK // max(1, macs)),
                 c.threads)
    return EV_OK


cdef int direct_f32(const ev_call *c) noexcept nogil:
    return run_direct(c, False)


cdef int direct_lanes_f32(const ev_call *c) noexcept nogil:
    return run_direct(c, True)


cdef bint direct_pays(const Direct *job, int64_t rows) noexcept nogil:
    """Whether the direct convolution is expected to be faster than im2col_f32; `rows`: output channels of a group.

    Measured on some forty shapes of real networks (Zen 4, AVX-512 and AVX2, direct / im2col time): 0.6 to 0.95 with up to
    32 output channels, where packing 16 columns for each tap costs im2col as much as 8 rows of the product; with more,
    0.8 to 1.0 along wide rows of stride 1, and wherever channels times taps are few; 1.1 to 1.5 with strides and many
    channels, as the copy is read from many places at once, and along rows shorter than a vector. Slower, too (Zen), where
    the image is cut so thin that bands overlap by half, or the weights do not stay in the caches from band to band.
    """
    cdef const ev_direct_image *g = &job.image
    cdef const ev_conv_window *w = &g.window
    cdef int64_t taps = w.kernel[0] * w.kernel[1] * w.kernel[2]
    if taps == 1 or w.out[0] * w.out[1] * w.out[2] < 12:
        return False
    if rows <= 32:
        return True
    if g.channels * taps > DIRECT_SHORT_SUM and (w.stride[2] > 1 or w.out[2] < 16):
        return False
    return g.height >= min(w.out[1], 2 * g.shift[1]) and 4 * rows * g.channels * taps <= DIRECT_WEIGHTS


def direct_scratch(int64_t c, int64_t m, int64_t images, ints, int32_t threads, lanes, bint chosen) -> tuple:
    """(whether direct_lanes_f32, scratch bytes) of direct_f32 or direct_lanes_f32 with c channels in and m out; 0 bytes
    where it cannot, or, unless it was chosen, does not pay. lanes: which of the two, None for the better one. `ints` are
    the driver's."""
    cdef int64_t[20] values
    cdef int i
    cdef Direct job
    cdef ev_conv_window w
    cdef bint put
    for i in range(20):
        values[i] = ints[i]
    read_window(values + 2, &w)
    put = (lanes is None or lanes) and values[1] == 1 and m % EV_DIRECT_LANES == 0 and (chosen or lanes_pay(&w, m))
    if c == 0 or m == 0 or images == 0 or lanes and not put:
        return False, 0
    # The choice must not depend on the number of threads, as the result would.
    plan_direct(&job, &w, c // values[1], m // values[1], images * values[1], 1, False)
    if job.slot > DIRECT_MOST or not (chosen or direct_pays(&job, m // values[1])):
        return False, 0
    plan_direct(&job, &w, c // values[1], m // values[1], images * values[1], threads, put)
    return put, job.offset_bytes + job.panel_bytes + threads * job.slot
