# Part of conv.pyx: direct convolution. ukr/conv.h has the layout of the copy that it works on.
#
#     for bands of output planes and rows (shared out to threads)      the copy fits DIRECT_COPY_BYTES
#       copy the image under the band: padded, split by phase          once for all output channels
#       for blocks of output channels                                  weights fit DIRECT_WEIGHT_BYTES, in L2
#         for 16 columns of the band                                   their taps stay in L1
#           for up to 6 output channels: all channels and taps         12 vectors of sums in registers

cdef enum:
    DIRECT_COPY_BYTES = 128 * 1024
    DIRECT_WEIGHT_BYTES = 96 * 1024
    DIRECT_WEIGHTS = 5 << 19     # of all output channels: what L3 can be expected to keep from band to band
    DIRECT_SHORT_SUM = 200       # channels times taps of what is worth it with strides, too

ctypedef struct Direct:
    const ev_call *call
    Shape shape
    ev_direct_image image
    int64_t bands_d, bands_h, block_m
    int32_t *offset              # for all threads; then each has its copy
    int64_t offset_bytes, slot


cdef inline int64_t shared_out(int64_t n, int64_t most) noexcept nogil:
    """The size of equal parts of n that are at most `most`."""
    cdef int64_t parts = (n + most - 1) // most
    return (n + parts - 1) // parts


cdef void plan_direct(Direct *job, const ev_conv_window *w, int64_t channels, int64_t rows, int64_t items,
                      int32_t threads) noexcept nogil:
    """Sizes for a group of `channels` inputs and `rows` outputs; items: images and groups."""
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
    if w.out[2] * 8 <= g.pitch * 7 and w.kernel[2] <= 8:
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
    g.planes, g.rows = g.depth + g.shift[0], g.height + g.shift[1]
    job.bands_d = (w.out[0] + g.depth - 1) // g.depth
    job.bands_h = (w.out[1] + g.height - 1) // g.height
    k = max(<int64_t> 1, channels * w.kernel[0] * w.kernel[1] * w.kernel[2])
    job.block_m = max(<int64_t> 6, DIRECT_WEIGHT_BYTES // (4 * k) // 6 * 6)
    job.offset_bytes = round64(4 * k)
    job.slot = round64(g.planes * g.rows * row_bytes + 4 * (g.pitch + 16))


cdef void direct_offsets(const Direct *job) noexcept nogil:
    """Where the elements of each channel and tap begin, in the order of the weights."""
    cdef const ev_direct_image *g = &job.image
    cdef const ev_conv_window *w = &g.window
    cdef int64_t c, z, y, x, phase, plane = g.planes * g.rows * g.pitch, phases = g.period[0] * g.period[1] * g.period[2]
    cdef int32_t *to = job.offset
    for c in range(g.channels):
        for z in range(w.kernel[0]):
            for y in range(w.kernel[1]):
                for x in range(w.kernel[2]):
                    phase = (z % g.period[0] * g.period[1] + y % g.period[1]) * g.period[2] + x % g.period[2]
                    to[0] = <int32_t> (
                        (c * phases + phase) * plane
                        + (z * w.dilation[0] // w.stride[0] * g.rows + y * w.dilation[1] // w.stride[1]) * g.pitch
                        + (0 if g.shift[2] == 0 else x * w.dilation[2] // w.stride[2]))
                    to += 1


cdef void direct_bands(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const Direct *job = <const Direct *> ctx
    cdef const Shape *s = &job.shape
    cdef const ev_direct_image *g = &job.image
    cdef const ev_conv_window *w = &g.window
    cdef int64_t item, band, image, group, od, oh, p, planes, m0, at, rows = s.m // s.groups
    cdef float *copy = <float *> (<char *> job.offset + job.offset_bytes + worker * job.slot)
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
        K.direct_copy_f32(g, s.x + (image * s.c + group * g.channels) * s.inside, od, oh, copy)
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


cdef int direct_f32(const ev_call *c) noexcept nogil:
    cdef Direct job
    cdef Shape *s = &job.shape
    cdef int64_t macs
    read_call(c, s)
    if c.out[0].size == 0:
        return EV_OK
    job.call = c
    plan_direct(&job, &s.window, s.c // s.groups, s.m // s.groups, s.n * s.groups, c.threads)
    job.offset = <int32_t *> c.scratch
    direct_offsets(&job)
    macs = s.m // s.groups * job.image.depth * job.image.height * s.window.out[2] * s.c // s.groups * s.taps
    parallel_for(direct_bands, &job, s.n * s.groups * job.bands_d * job.bands_h, max(1, MACS_PER_TASK // max(1, macs)),
                 c.threads)
    return EV_OK


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
    if taps == 1 or w.out[0] * w.out[1] * w.out[2] < 12 or job.slot > DIRECT_COPY_BYTES * 5 // 4:
        return False
    if rows <= 32:
        return True
    if g.channels * taps > DIRECT_SHORT_SUM and (w.stride[2] > 1 or w.out[2] < 16):
        return False
    return g.height >= min(w.out[1], 2 * g.shift[1]) and 4 * rows * g.channels * taps <= DIRECT_WEIGHTS


def direct_scratch(int64_t c, int64_t m, int64_t images, ints, int32_t threads) -> int:
    """Scratch bytes of direct_f32 with c channels in and m out, where it pays; else 0. `ints` are the driver's."""
    cdef int64_t[20] values
    cdef int i
    cdef Direct job
    cdef ev_conv_window w
    for i in range(20):
        values[i] = ints[i]
    read_window(values + 2, &w)
    if c == 0 or m == 0 or images == 0:
        return 0
    # The choice must not depend on the number of threads, as the result would.
    plan_direct(&job, &w, c // values[1], m // values[1], images * values[1], 1)
    if not direct_pays(&job, m // values[1]):
        return 0
    plan_direct(&job, &w, c // values[1], m // values[1], images * values[1], threads)
    return job.offset_bytes + threads * job.slot
