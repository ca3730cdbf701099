# Part of conv.pyx: 3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3), with a quarter of the products.
# ukr/winograd_body.h has the transforms. A kernel of depth d is d times as many channels, from d planes.
#
#     transform the kernels                                     U[depth tap][36][M][C]
#     for blocks of tiles (shared out to threads)
#       transform each plane of the image once                  V[36][panel][C][16 tiles], a ring of as many as d
#       for blocks of output channels
#         36 products of U and V, summed over depth taps        O[36][M block][tiles]
#         transform O, + bias, + residual, activation
#
# Where that takes less memory, as for many channels on a small map, V is kept as a whole, and the kernels are
# transformed block by block (WINOGRAD_KERNELS_LAST).
#
# Transformed kernels would take four times the memory of the kernels, in every session and for every layer at once.
# Transforming them in each call costs 50 cycles for each kernel, against 36 * 16 / 8 for 16 tiles, needs nothing at
# load, and takes scratch that all layers share: so they are not kept.
#
# Rounding: terms of the transforms cancel, which loses about a digit against a plain convolution: 3e-6 of the range with
# 256 channels. tests/ops/test_conv_winograd.py has the bound. One element that is not finite makes all 4x4 outputs of
# its tiles not finite.

cdef enum:
    WINOGRAD_V_BYTES = 768 * 1024        # of V in a block of tiles
    WINOGRAD_O_BYTES = 256 * 1024
    WINOGRAD_U_BYTES = 384 * 1024        # of U in a block, with WINOGRAD_KERNELS_LAST
    WINOGRAD_TAPS = 5                    # of a kernel's depth, at most
    WINOGRAD_SCRATCH = 6 << 20           # more than this in all is not worth the speed

ctypedef struct Winograd:
    const ev_call *call
    Shape shape
    ev_conv_window window
    int64_t channels, rows               # in and out, of a group
    int64_t taps                         # along the depth
    int64_t tiles_h, tiles_w             # of a plane
    int64_t block_h, block_w             # tiles of a block
    int64_t blocks_h, blocks_w
    int64_t depth, bands_d               # output planes of a band
    int64_t tiles                        # of a block, rounded up to panels
    int64_t ldu, block_m
    bint kernels_last
    int64_t u_bytes, v_bytes, o_bytes, copy_bytes
    int64_t group, image                 # of the pass, with kernels_last
    char *shared                         # U; V with kernels_last
    char *slots
    int64_t slot


cdef inline int64_t up(int64_t n, int64_t unit) noexcept nogil:
    return (n + unit - 1) // unit * unit


cdef void plan_winograd(Winograd *job, const ev_conv_window *w, int64_t channels, int64_t rows, int64_t items,
                        int32_t threads) noexcept nogil:
    """Sizes for a group of `channels` inputs and `rows` outputs; items: images and groups."""
    cdef int64_t most, step, blocks, waste, best, total, u_bytes, v_bytes
    job.window, job.channels, job.rows, job.taps = w[0], channels, rows, w.kernel[0]
    job.tiles_h, job.tiles_w = (w.out[1] + 3) // 4, (w.out[2] + 3) // 4
    job.ldu = up(channels, 8) | 8        # rows of U do not fall into the same sets of the cache
    total = up(job.tiles_h * job.tiles_w, 16)
    u_bytes = 4 * 36 * job.ldu * rows * job.taps
    v_bytes = 4 * 36 * channels * total
    job.kernels_last = job.taps == 1 and w.out[0] == 1 and v_bytes + WINOGRAD_U_BYTES < u_bytes
    if job.kernels_last:
        job.block_h, job.block_w = job.tiles_h, job.tiles_w
        job.u_bytes, job.v_bytes = 0, v_bytes
    else:
        most = max(<int64_t> 16, WINOGRAD_V_BYTES // (4 * 36 * channels * job.taps) // 16 * 16)
        job.block_w = job.tiles_w
        job.block_h = 1
        if job.tiles_w > most:
            blocks = (job.tiles_w + most - 1) // most
            job.block_w = min(up((job.tiles_w + blocks - 1) // blocks, 16), job.tiles_w)
        else:                            # the number of rows that fills panels best
            best = -1
            for step in range(1, min(job.tiles_h, most // job.tiles_w) + 1):
                waste = (job.tiles_h + step - 1) // step * up(step * job.tiles_w, 16)
                if best < 0 or waste <= best:
                    best = waste
                    job.block_h = step
        if threads > 1 and items * w.out[0] * (job.tiles_h // job.block_h) < 2 * threads:
            job.block_h = max(<int64_t> 1, min(job.block_h, job.tiles_h // (2 * threads)))
        job.u_bytes = up(4 * 36 * job.ldu * rows * job.taps, 64)
        job.v_bytes = 4 * 36 * channels * up(job.block_h * job.block_w, 16) * job.taps
    job.tiles = up(job.block_h * job.block_w, 16)
    job.blocks_h = (job.tiles_h + job.block_h - 1) // job.block_h
    job.blocks_w = (job.tiles_w + job.block_w - 1) // job.block_w
    blocks = items * job.blocks_h * job.blocks_w
    job.depth = w.out[0]
    if blocks < 2 * threads and threads > 1:
        job.depth = (w.out[0] * blocks + 2 * threads - 1) // (2 * threads)
    job.bands_d = (w.out[0] + job.depth - 1) // job.depth
    job.block_m = max(<int64_t> 6, WINOGRAD_O_BYTES // (4 * 36 * job.tiles) // 6 * 6)
    if job.kernels_last:
        job.block_m = max(<int64_t> 6, min(job.block_m, WINOGRAD_U_BYTES // (4 * 36 * job.ldu) // 6 * 6))
        if threads > 1:
            job.block_m = min(job.block_m, up((rows + threads - 1) // threads, 6))
    job.block_m = min(job.block_m, up(rows, 6))
    job.o_bytes = 4 * 36 * job.block_m * job.tiles
    job.copy_bytes = up(4 * ((4 * job.block_h + 2) * (4 * job.block_w + 4) + 4 * job.block_w + 64), 64)
    job.slot = job.o_bytes + job.copy_bytes
    job.slot += up(4 * 36 * job.ldu * job.block_m, 64) if job.kernels_last else job.v_bytes


cdef int64_t winograd_bytes(const Winograd *job, int64_t groups, int32_t threads) noexcept nogil:
    return (job.v_bytes if job.kernels_last else job.u_bytes * groups) + threads * job.slot


cdef void winograd_plane(const Winograd *job, const float *x, int64_t z, int64_t row, int64_t col, int64_t first,
                         int64_t last, float *copy, float *v) noexcept nogil:
    """V of channels [first, last) of plane z of the image, for the block of tiles at (row, col)."""
    cdef const ev_conv_window *w = &job.window
    cdef int64_t c, inside = w.image[0] * w.image[1] * w.image[2]
    cdef int64_t rows = min(job.block_h, job.tiles_h - row), cols = min(job.block_w, job.tiles_w - col)
    cdef ev_direct_image g
    g.window = w[0]
    g.window.pad[0] = 0
    g.window.pad[2] -= 4 * col
    g.channels = g.planes = g.wrap = 1
    g.period[0] = g.period[1] = g.period[2] = 1
    g.rows, g.pitch = 4 * rows + 2, 4 * cols + 4
    for c in range(first, last):
        K.direct_copy_f32(&g, x + c * inside, z, 4 * row, copy)
        K.winograd_input_f32(rows, cols, copy, g.pitch, v + c * 16, job.channels * 16, job.channels * job.tiles)


cdef void winograd_products(const Winograd *job, const float *u, int64_t u_rows, int64_t m, const float *const *v,
                            float *o) noexcept nogil:
    """O of m output channels: u[depth tap][36][u_rows][ldu] from the first of them on; v: a plane for each depth tap,
    NULL for one outside the image."""
    cdef ev_tile t
    cdef int64_t e, j, z, found = 0
    t.m, t.k = m, job.channels
    t.rsa, t.csa, t.a_step = job.ldu, 1, K.mr * job.ldu
    t.ldb, t.b_step, t.ldc, t.ldadd = 16, 16 * job.channels, job.tiles, job.tiles
    t.row_bias = t.col_bias = NULL
    t.alpha = t.beta = 1
    t.lo, t.hi = -INFINITY, INFINITY
    for z in range(job.taps):
        found += v[z] != NULL
    if found == 0:
        memset(o, 0, 4 * 36 * m * job.tiles)
        return
    for e in range(36):
        for j in range(0, job.tiles, 32):    # as many columns as a kernel takes at a time: sums stay in L1
            t.n = min(<int64_t> 32, job.tiles - j)
            t.c = o + e * m * job.tiles + j
            t.add = NULL
            for z in range(job.taps):
                if v[z] == NULL:
                    continue
                t.a = u + (z * 36 + e) * u_rows * job.ldu
                t.b = v[z] + (e * job.tiles + j) * job.channels
                K.gemm_f32(&t)
                t.add = t.c


cdef void winograd_finish(const Winograd *job, int64_t image, int64_t group, int64_t m0, int64_t m, int64_t od, int64_t row,
                          int64_t col, const float *o) noexcept nogil:
    """Output channels [m0, m0 + m) of a block of tiles of plane od."""
    cdef const Shape *s = &job.shape
    cdef const ev_conv_window *w = &job.window
    cdef int64_t i, r, channel = group * job.rows + m0
    cdef int64_t at = (image * s.m + channel) * s.outside + (od * w.out[1] + 4 * row) * w.out[2] + 4 * col
    cdef ev_winograd_output g
    cdef ev_epilogue e
    g.rows, g.cols = min(job.block_h, job.tiles_h - row), min(job.block_w, job.tiles_w - col)
    g.height, g.width = min(4 * g.rows, w.out[1] - 4 * row), min(4 * g.cols, w.out[2] - 4 * col)
    g.step, g.ldy = m * job.tiles, w.out[2]
    clamp_of(job.call, &g.lo, &g.hi)
    for i in range(m):
        K.winograd_output_f32(&g, o + i * job.tiles, 0 if s.b == NULL else s.b[channel + i],
                              NULL if s.z == NULL else s.z + at + i * s.outside, s.y + at + i * s.outside)
    if is_clamp(job.call):
        return
    fill_epilogue(job.call, s, image, group, &e)
    if g.width == g.ldy:
        K.activate_f32(&e, m, g.height * g.width, m0, s.y + at, s.outside)
    else:
        for r in range(g.height):
            K.activate_f32(&e, m, g.width, m0, s.y + at + r * g.ldy, s.outside)


cdef void winograd_kernels(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """U of output channels [begin, end), over all groups."""
    cdef const Winograd *job = <const Winograd *> ctx
    cdef int64_t i, z, taps = 9 * job.taps, step = job.rows * job.ldu
    cdef float *u
    for i in range(begin, end):
        for z in range(job.taps):
            u = <float *> (job.shared + i // job.rows * job.u_bytes) + z * 36 * step + i % job.rows * job.ldu
            K.winograd_weights_f32(1, job.channels, job.shape.w + i * job.channels * taps + z * 9, 0, taps, u, job.ldu,
                                   step)


cdef void winograd_blocks(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Bands of planes of blocks of tiles, images and groups."""
    cdef const Winograd *job = <const Winograd *> ctx
    cdef const Shape *s = &job.shape
    cdef const ev_conv_window *w = &job.window
    cdef int64_t item, rest, image, group, row, col, od, last, z, ready, m0, m
    cdef int64_t plane = 36 * job.channels * job.tiles
    cdef float *v = <float *> (job.slots + worker * job.slot)
    cdef float *o = <float *> (<char *> v + job.v_bytes)
    cdef float *copy = <float *> (<char *> o + job.o_bytes)
    cdef const float *x
    cdef const float *u
    cdef const float *planes[WINOGRAD_TAPS]
    for item in range(begin, end):
        col = item % job.blocks_w * job.block_w
        row = item // job.blocks_w % job.blocks_h * job.block_h
        rest = item // job.blocks_w // job.blocks_h
        od = rest % job.bands_d * job.depth
        last = min(od + job.depth, w.out[0])
        image, group = rest // job.bands_d // s.groups, rest // job.bands_d % s.groups
        x = s.x + (image * s.c + group * job.channels) * s.inside
        ready = od - w.pad[0]            # the first plane that is not transformed yet
        while od < last:
            while ready < od - w.pad[0] + job.taps:
                if 0 <= ready < w.image[0]:
                    winograd_plane(job, x, ready, row, col, 0, job.channels, copy, v + ready % job.taps * plane)
                ready += 1
            for z in range(job.taps):
                ready = od - w.pad[0] + z
                planes[z] = v + ready % job.taps * plane if 0 <= ready < w.image[0] else NULL
            ready += 1
            m0 = 0
            while m0 < job.rows:
                m = min(job.block_m, job.rows - m0)
                u = <const float *> (job.shared + group * job.u_bytes) + m0 * job.ldu
                winograd_products(job, u, job.rows, m, planes, o)
                winograd_finish(job, image, group, m0, m, od, row, col, o)
                m0 += job.block_m
            od += 1


cdef void winograd_channels(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """V of channels [begin, end) of one image and group."""
    cdef const Winograd *job = <const Winograd *> ctx
    cdef const Shape *s = &job.shape
    winograd_plane(job, s.x + (job.image * s.c + job.group * job.channels) * s.inside, 0, 0, 0, begin, end,
                   <float *> (job.slots + worker * job.slot + job.o_bytes), <float *> job.shared)


cdef void winograd_maps(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Blocks [begin, end) of output channels of one image and group."""
    cdef const Winograd *job = <const Winograd *> ctx
    cdef int64_t block, m0, m
    cdef float *o = <float *> (job.slots + worker * job.slot)
    cdef float *u = <float *> (<char *> o + job.o_bytes + job.copy_bytes)
    cdef const float *plane = <const float *> job.shared
    for block in range(begin, end):
        m0 = block * job.block_m
        m = min(job.block_m, job.rows - m0)
        K.winograd_weights_f32(m, job.channels, job.shape.w + (job.group * job.rows + m0) * job.channels * 9,
                               job.channels * 9, 9, u, job.ldu, m * job.ldu)
        winograd_products(job, u, m, m, &plane, o)
        winograd_finish(job, job.image, job.group, m0, m, 0, 0, 0, o)


cdef int winograd_f32(const ev_call *c) noexcept nogil:
    cdef Winograd job
    cdef Shape *s = &job.shape
    read_call(c, s)
    if c.out[0].size == 0:
        return EV_OK
    job.call = c
    plan_winograd(&job, &s.window, s.c // s.groups, s.m // s.groups, s.n * s.groups, c.threads)
    job.shared = <char *> c.scratch
    if not job.kernels_last:
        job.slots = job.shared + job.u_bytes * s.groups
        parallel_for(winograd_kernels, &job, s.m, max(1, MACS_PER_TASK // (job.channels * job.taps * 400)), c.threads)
        parallel_for(winograd_blocks, &job, s.n * s.groups * job.bands_d * job.blocks_h * job.blocks_w, 1, c.threads)
        return EV_OK
    job.slots = job.shared + job.v_bytes
    for job.image in range(s.n):
        for job.group in range(s.groups):
            parallel_for(winograd_channels, &job, job.channels, max(1, MACS_PER_TASK // (job.tiles * 500)), c.threads)
            parallel_for(winograd_maps, &job, (job.rows + job.block_m - 1) // job.block_m, 1, c.threads)
    return EV_OK


cdef bint winograd_pays(const Winograd *job, int64_t images) noexcept nogil:
    """Whether F(4x4, 3x3) is expected to be faster than the direct convolution, in cycles of 8 multiply-adds."""
    cdef const ev_conv_window *w = &job.window
    cdef int64_t tiles = images * w.out[0] * job.blocks_h * job.blocks_w * job.tiles
    cdef int64_t pairs = job.channels * job.rows * job.taps
    cdef int64_t winograd = tiles * (36 * pairs // 8 + 70 * job.channels + 70 * job.rows)
    winograd += 60 * pairs * (images if job.kernels_last else 1)
    return winograd * 10 < images * w.out[0] * w.out[1] * w.out[2] * 9 * pairs // 8 * 9


def winograd_scratch(int64_t c, int64_t m, int64_t images, ints, int32_t threads) -> int:
    """Scratch bytes of winograd_f32 with c channels in and m out, where it can and pays; else 0. `ints` are the
    driver's."""
    cdef int64_t[20] values
    cdef int i
    cdef Winograd job
    cdef ev_conv_window w
    cdef int64_t groups
    for i in range(20):
        values[i] = ints[i]
    read_window(values + 2, &w)
    groups = values[1]
    if c == 0 or m == 0 or images == 0 or w.kernel[0] > WINOGRAD_TAPS:
        return 0
    for i in range(3):
        if w.stride[i] != 1 or w.dilation[i] != 1 or i > 0 and w.kernel[i] != 3:
            return 0
    # The choice must not depend on the number of threads, as the result would.
    plan_winograd(&job, &w, c // groups, m // groups, images * groups, 1)
    if winograd_bytes(&job, groups, 1) > WINOGRAD_SCRATCH or not winograd_pays(&job, images):
        return 0
    plan_winograd(&job, &w, c // groups, m // groups, images * groups, threads)
    return winograd_bytes(&job, groups, threads)
