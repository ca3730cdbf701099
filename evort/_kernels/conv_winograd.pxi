# Part of conv.pyx: 3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3), with a quarter of the products.
# ukr/winograd_body.h has the transforms. A kernel of depth d is d times as many channels, from d planes.
#
#     transform the kernels                                     U[depth tap][36][C][M]
#     for blocks of tiles (shared out to threads)
#       transform each plane of the image once                  V[36][panel][C][16 tiles], a ring of as many as d
#       for blocks of output channels
#         36 products of U and V, summed over depth taps        O[36][M block][tiles]
#         transform O, + bias, + residual, activation
#
# Where that takes less memory, as for many channels on a small map, V is kept as a whole, and the kernels are
# transformed block by block (kernels_last). Up to 16 tiles then are the rows of the products, and output channels the
# columns, as there are too few tiles to fill vectors with: O[36][tiles][M block] (few_tiles).
#
# Transformed kernels would take four times the memory of the kernels, in every session and for every layer at once.
# Transforming them in each call takes 14 cycles for each kernel (17 from memory), against 36 for the products of 16 tiles
# and 15 to 20 for reading a transformed kernel from memory. So they are not kept.
#
# Rounding: terms of the transforms cancel, which loses about a digit against a plain convolution: 3e-6 of the range with
# 256 channels. tests/ops/test_conv_winograd.py has the bound. One element that is not finite makes all 4x4 outputs of
# its tiles not finite.

cdef enum:
    WINOGRAD_V_BYTES = 768 * 1024        # of V in a block of tiles
    WINOGRAD_O_BYTES = 256 * 1024
    WINOGRAD_U_BYTES = 384 * 1024        # of U in a block, with kernels_last
    WINOGRAD_FEW_TILES = 16
    WINOGRAD_FEW_MAPS = 32               # output channels of a block with few_tiles: what a kernel takes at a time
    WINOGRAD_MAPS = 24                   # and else a multiple of this, two times the rows that it takes
    WINOGRAD_TAPS = 5                    # of a kernel's depth, at most
    WINOGRAD_SCRATCH = 6 << 20           # more than this in all is not worth the speed
    WINOGRAD_APART = 16                  # floats between the 36 elements, so that they do not fall into one set of the cache

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
    int64_t ldu, block_m, block_c        # block_c: input channels of a block of U
    int64_t ldv                          # from a channel of V to the next
    int64_t step_u, step_v               # from one of the 36 elements to the next
    bint kernels_last, few_tiles
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
    cdef int64_t most, step, blocks, waste, best, total, u_bytes, v_bytes, all_tiles
    job.window, job.channels, job.rows, job.taps = w[0], channels, rows, w.kernel[0]
    job.tiles_h, job.tiles_w = (w.out[1] + 3) // 4, (w.out[2] + 3) // 4
    job.ldu = (up(rows, 16) // 16 | 1) * 16  # an odd number of lines: rows of U do not fall into the same sets of the cache
    all_tiles = job.tiles_h * job.tiles_w
    total = up(all_tiles, 16)
    job.ldv, job.block_c = 16, channels
    u_bytes = 4 * 36 * (channels * job.ldu + WINOGRAD_APART) * job.taps
    v_bytes = 4 * 36 * (channels * total + WINOGRAD_APART)
    job.few_tiles = False
    job.kernels_last = job.taps == 1 and w.out[0] == 1 and v_bytes + WINOGRAD_U_BYTES < u_bytes
    if job.kernels_last:
        job.block_h, job.block_w = job.tiles_h, job.tiles_w
        job.u_bytes = 0
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
            best = -1                    # the number of rows with which the last thread is through first
            for step in range(job.block_h, 0, -1):
                blocks = (job.tiles_h + step - 1) // step * ((job.tiles_w + job.block_w - 1) // job.block_w)
                blocks *= items * w.out[0]
                waste = (blocks + threads - 1) // threads * up(step * job.block_w, 16)
                if best < 0 or waste < best:
                    best = waste
                    job.block_h = step
        job.u_bytes = up(u_bytes, 64)
    job.tiles = up(job.block_h * job.block_w, 16)
    job.blocks_h = (job.tiles_h + job.block_h - 1) // job.block_h
    job.blocks_w = (job.tiles_w + job.block_w - 1) // job.block_w
    blocks = items * job.blocks_h * job.blocks_w
    job.depth = w.out[0]
    if blocks < 2 * threads and threads > 1:
        job.depth = (w.out[0] * blocks + 2 * threads - 1) // (2 * threads)
    job.bands_d = (w.out[0] + job.depth - 1) // job.depth
    job.block_m = max(<int64_t> WINOGRAD_MAPS, WINOGRAD_O_BYTES // (4 * 36 * job.tiles) // WINOGRAD_MAPS * WINOGRAD_MAPS)
    job.block_m = min(job.block_m, up(rows, 8))
    if job.kernels_last:
        job.few_tiles = all_tiles <= WINOGRAD_FEW_TILES
        if job.few_tiles:
            job.block_m = WINOGRAD_FEW_MAPS
            job.ldv = up(all_tiles, 8)
        else:
            job.block_m = min(job.block_m, <int64_t> (WINOGRAD_MAPS if threads > 1 else 2 * WINOGRAD_MAPS))
        job.ldu = up(job.block_m, 16)
        # Sums are added up block by block: the same for any number of threads.
        most = WINOGRAD_U_BYTES // (4 * 36 * (WINOGRAD_FEW_MAPS if job.few_tiles else 2 * WINOGRAD_MAPS))
        job.block_c = up(shared_out(channels, most), 4)
    job.step_u = job.block_c * job.ldu + WINOGRAD_APART
    job.step_v = channels * (job.ldv if job.few_tiles else job.tiles) + WINOGRAD_APART
    job.v_bytes = up(4 * 36 * job.step_v * job.taps, 64)
    job.o_bytes = up(4 * 36 * (up(job.block_m, 16) * (all_tiles if job.few_tiles else job.tiles) + WINOGRAD_APART), 64)
    job.copy_bytes = up(4 * ((4 * job.block_h + 2) * (4 * job.block_w + 4) + 4 * job.block_w + 64), 64)
    job.slot = job.o_bytes + job.copy_bytes
    job.slot += up(4 * 36 * job.step_u, 64) if job.kernels_last else job.v_bytes


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
        K.winograd_input_f32(rows, cols, copy, g.pitch, v + c * job.ldv, job.channels * 16, job.step_v)


cdef void winograd_products(const Winograd *job, const float *u, int64_t m, const float *const *v, int64_t c0, int64_t c,
                            float *o) noexcept nogil:
    """Adds input channels [c0, c0 + c) to O of m output channels (the first of all: sets it). u[depth tap][36][c][ldu]
    from the first of them on; v: a plane for each depth tap, NULL for one outside the image."""
    cdef ev_tile t
    cdef int64_t e, j, z, found = 0
    t.m, t.k = m, c
    t.rsa, t.csa, t.a_step = 1, job.ldu, K.mr
    t.ldb, t.b_step, t.ldc, t.ldadd = 16, 16 * job.channels, job.tiles, job.tiles
    t.row_bias = t.col_bias = NULL
    t.alpha = t.beta = 1
    t.lo, t.hi = -INFINITY, INFINITY
    for z in range(job.taps):
        found += v[z] != NULL
    if found == 0:
        memset(o, 0, 4 * 36 * (m * job.tiles + WINOGRAD_APART))
        return
    for e in range(36):
        for j in range(0, job.tiles, 32):    # as many columns as a kernel takes at a time: sums stay in L1
            t.n = min(<int64_t> 32, job.tiles - j)
            t.c = o + e * (m * job.tiles + WINOGRAD_APART) + j
            t.add = NULL if c0 == 0 else t.c
            for z in range(job.taps):
                if v[z] == NULL:
                    continue
                t.a = u + (z * 36 + e) * job.step_u
                t.b = v[z] + e * job.step_v + j * job.channels + c0 * 16
                K.gemm_f32(&t)
                t.add = t.c


cdef void winograd_few_tiles(const Winograd *job, const float *u, int64_t m, const float *v, int64_t c0, int64_t c,
                             float *o) noexcept nogil:
    """The same with tiles as rows and output channels as columns, up to a multiple of 16."""
    cdef ev_tile t
    cdef int64_t e
    t.m, t.n, t.k = job.tiles_h * job.tiles_w, up(m, 16), c
    t.rsa, t.csa, t.a_step = 1, job.ldv, K.mr
    t.ldb, t.b_step, t.ldc, t.ldadd = job.ldu, 16, job.ldu, job.ldu
    t.row_bias = t.col_bias = NULL
    t.alpha = t.beta = 1
    t.lo, t.hi = -INFINITY, INFINITY
    for e in range(36):
        t.a = v + e * job.step_v + c0 * job.ldv
        t.b = u + e * job.step_u
        t.c = o + e * (t.m * job.ldu + WINOGRAD_APART)
        t.add = NULL if c0 == 0 else t.c
        K.gemm_f32(&t)


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
    g.ldy = w.out[2]
    clamp_of(job.call, &g.lo, &g.hi)
    if job.few_tiles:
        g.step = g.rows * g.cols * job.ldu + WINOGRAD_APART
        K.winograd_output_maps_f32(&g, m, o, job.ldu, NULL if s.b == NULL else s.b + channel,
                                   NULL if s.z == NULL else s.z + at, s.y + at, s.outside)
    g.step = m * job.tiles + WINOGRAD_APART
    for i in range(0 if job.few_tiles else m):
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
    """U of blocks [begin, end) of 16 output channels, over all groups."""
    cdef const Winograd *job = <const Winograd *> ctx
    cdef int64_t item, group, m0, z, taps = 9 * job.taps, blocks = (job.rows + 15) // 16
    cdef float *u
    for item in range(begin, end):
        group, m0 = item // blocks, item % blocks * 16
        for z in range(job.taps):
            u = <float *> (job.shared + group * job.u_bytes) + z * 36 * job.step_u + m0
            K.winograd_weights_f32(min(<int64_t> 16, job.rows - m0), job.channels,
                                   job.shape.w + (group * job.rows + m0) * job.channels * taps + z * 9, job.channels * taps,
                                   taps, u, job.ldu, job.step_u)


cdef void winograd_blocks(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Bands of planes of blocks of tiles, images and groups."""
    cdef const Winograd *job = <const Winograd *> ctx
    cdef const Shape *s = &job.shape
    cdef const ev_conv_window *w = &job.window
    cdef int64_t item, rest, image, group, row, col, od, last, z, ready, m0, m
    cdef int64_t plane = 36 * job.step_v
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
                u = <const float *> (job.shared + group * job.u_bytes) + m0
                winograd_products(job, u, m, planes, 0, job.channels, o)
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
    cdef int64_t block, m0, m, c0, c
    cdef float *o = <float *> (job.slots + worker * job.slot)
    cdef float *u = <float *> (<char *> o + job.o_bytes + job.copy_bytes)
    cdef const float *plane = <const float *> job.shared
    for block in range(begin, end):
        m0 = block * job.block_m
        m = min(job.block_m, job.rows - m0)
        c0 = 0
        while c0 < job.channels:
            c = min(job.block_c, job.channels - c0)
            K.winograd_weights_f32(m, c, job.shape.w + ((job.group * job.rows + m0) * job.channels + c0) * 9,
                                   job.channels * 9, 9, u, job.ldu, job.step_u)
            if job.few_tiles:
                winograd_few_tiles(job, u, m, plane, c0, c, o)
            else:
                winograd_products(job, u, m, &plane, c0, c, o)
            c0 += c
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
        parallel_for(winograd_kernels, &job, s.groups * ((job.rows + 15) // 16),
                     max(1, MACS_PER_TASK // (job.channels * job.taps * 16 * 100)), c.threads)
        parallel_for(winograd_blocks, &job, s.n * s.groups * job.bands_d * job.blocks_h * job.blocks_w, 1, c.threads)
        return EV_OK
    job.slots = job.shared + job.v_bytes
    for job.image in range(s.n):
        for job.group in range(s.groups):
            parallel_for(winograd_channels, &job, job.channels, max(1, MACS_PER_TASK // (job.tiles * 500)), c.threads)
            parallel_for(winograd_maps, &job, (job.rows + job.block_m - 1) // job.block_m, 1, c.threads)
    return EV_OK


cdef bint winograd_pays(const Winograd *job, int64_t images) noexcept nogil:
    """Whether F(4x4, 3x3) is expected to be faster than the direct convolution, in cycles of 8 multiply-adds.

    What transforms cost was fitted to 180 shapes (Zen 4, AVX-512). Without Winograd, one or two output channels take
    the time of three; where the image of a band does not fit the direct convolution, im2col packs it, for which eight
    channels could be computed: 0.35 of the time for 3 and 4 channels of 64 and 128.
    """
    cdef const ev_conv_window *w = &job.window
    cdef int64_t tiles = images * w.out[0] * (job.tiles_h * job.tiles_w if job.few_tiles else
                                              job.blocks_h * job.blocks_w * job.tiles)
    cdef int64_t pairs = job.channels * job.rows * job.taps, rows = max(<int64_t> 3, job.rows)
    cdef int64_t winograd = tiles * (36 * pairs // 8 + 55 * job.channels + 55 * job.rows)
    winograd += 16 * pairs * (images if job.kernels_last else 1)
    if 4 * job.channels * job.taps * 3 * (w.out[2] + 2) > DIRECT_MOST:
        rows += 8
    return winograd * 10 < images * w.out[0] * w.out[1] * w.out[2] * 9 * job.channels * job.taps * rows // 8 * 9


def winograd_scratch(int64_t c, int64_t m, int64_t images, ints, int32_t threads, bint chosen) -> int:
    """Scratch bytes of winograd_f32 with c channels in and m out, where it can and pays (or was chosen); else 0. `ints`
    are the driver's."""
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
    if winograd_bytes(&job, groups, 1) > WINOGRAD_SCRATCH or not (chosen or winograd_pays(&job, images)):
        return 0
    plan_winograd(&job, &w, c // groups, m // groups, images * groups, threads)
    return winograd_bytes(&job, groups, threads)
