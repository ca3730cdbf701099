# Part of conv.pyx: 3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3), with a quarter of the products.
# ukr/winograd_body.h and winograd_row_body.h have the transforms. A kernel of depth d is d times as many channels, from
# d planes.
#
# With 16 output channels and more, they lie in the lanes (lanes):
#
#     kernels, 16 output channels side by side                W[M / 16][C][depth tap][9][16]
#     for blocks of tiles (shared out to threads)
#       transform each plane of the image once                V[6][panel][C][6][panel's tiles], a ring of as many as d
#       for 16 output channels at a time
#         for each row of the 6x6 elements
#           transform the kernels, and multiply               O[36][tiles][16]
#         transform O, + bias, + residual, activation
#
# Where that takes less memory, as for many channels on a small map, V is kept as a whole, and W is made 16 output
# channels at a time (whole). Kernels are transformed anew for each block of tiles: for four tiles, with which that costs
# most, a kernel takes 13 cycles instead of 9, and transformed ones would be four times as much to read from memory.
#
# With fewer output channels tiles lie in the lanes, and kernels are transformed first:
#
#     transform the kernels                                   U[depth tap][36][C][M]
#     for blocks of tiles: V[36][panel][C][16 tiles], and for blocks of output channels 36 products O[36][M block][tiles]
#
# Rounding: terms of the transforms cancel, which loses about a digit against a plain convolution: 3e-6 of the range with
# 256 channels. tests/ops/test_conv_winograd.py has the bound. One element that is not finite makes all 4x4 outputs of
# its tiles not finite.

cdef enum:
    WINOGRAD_V_BYTES = 768 * 1024        # of V in a block of tiles
    WINOGRAD_O_BYTES = 256 * 1024
    WINOGRAD_MAPS = 24                   # output channels of a block: a multiple of this, two times the rows of a product
    WINOGRAD_DEEP = 512                  # input channels that are summed up at a time, with lanes
    WINOGRAD_TAPS = 5                    # of a kernel's depth, at most
    WINOGRAD_SCRATCH = 6 << 20           # more than this in all is not worth the speed
    WINOGRAD_APART = 16                  # floats between the elements, so that they do not fall into one set of the cache

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
    bint lanes, whole
    int64_t tiles                        # of a block, rounded up: to panels, or to four with lanes
    int64_t panel, ldv, step_panel       # tiles of a panel of V; from a channel and a panel to the next
    int64_t step_i, step_j               # from a row and a column of the 6x6 elements of V to the next
    int64_t plane                        # elements of V in all
    int64_t ldu, step_u                  # without lanes: from a channel and one of the 36 elements of U to the next
    int64_t block_m
    int64_t u_bytes                      # of U or W of a group; of W of a block with `whole`
    int64_t v_bytes, o_bytes, rest_bytes # rest: a padded copy of a channel, or a row of transformed kernels
    int64_t group, image                 # of the pass, with `whole`
    char *shared                         # U or W; V with `whole`
    char *slots
    int64_t slot


cdef inline int64_t up(int64_t n, int64_t unit) noexcept nogil:
    return (n + unit - 1) // unit * unit


cdef inline bint lanes_fill(int64_t rows, int64_t tiles) noexcept nogil:
    """Whether output channels fill lanes as well as tiles would."""
    return rows >= 16 and up(rows, 16) * up(tiles, 4) <= rows * up(tiles, 16)


cdef void block_tiles(Winograd *job, int64_t most, int64_t unit, int64_t items, int32_t threads) noexcept nogil:
    """Blocks of at most `most` tiles, of which a multiple of `unit` costs nothing more."""
    cdef const ev_conv_window *w = &job.window
    cdef int64_t step, blocks, waste, best = -1
    job.block_w = job.tiles_w
    job.block_h = 1
    if job.tiles_w > most:
        blocks = (job.tiles_w + most - 1) // most
        job.block_w = min(up((job.tiles_w + blocks - 1) // blocks, unit), job.tiles_w)
    else:                                # the number of rows that fills panels best
        for step in range(1, min(job.tiles_h, most // job.tiles_w) + 1):
            waste = (job.tiles_h + step - 1) // step * up(step * job.tiles_w, unit)
            if best < 0 or waste <= best:
                best = waste
                job.block_h = step
    if threads > 1 and items * w.out[0] * (job.tiles_h // job.block_h) < 2 * threads:
        best = -1                        # the number of rows with which the last thread is through first
        for step in range(job.block_h, 0, -1):
            blocks = (job.tiles_h + step - 1) // step * ((job.tiles_w + job.block_w - 1) // job.block_w)
            blocks *= items * w.out[0]
            waste = (blocks + threads - 1) // threads * up(step * job.block_w, unit)
            if best < 0 or waste < best:
                best = waste
                job.block_h = step


cdef void plan_winograd(Winograd *job, const ev_conv_window *w, int64_t channels, int64_t rows, int64_t items,
                        int32_t threads) noexcept nogil:
    """Sizes for a group of `channels` inputs and `rows` outputs; items: images and groups."""
    cdef int64_t most, blocks, panels, all_tiles, unit
    job.window, job.channels, job.rows, job.taps = w[0], channels, rows, w.kernel[0]
    job.tiles_h, job.tiles_w = (w.out[1] + 3) // 4, (w.out[2] + 3) // 4
    all_tiles = job.tiles_h * job.tiles_w
    job.lanes = lanes_fill(rows, all_tiles)
    most = WINOGRAD_V_BYTES // (4 * 36 * channels * job.taps)
    if job.lanes:
        unit = 4
        most = max(<int64_t> 16, min(most, <int64_t> (WINOGRAD_O_BYTES // (4 * 36 * EV_WINOGRAD_MAPS))) // 8 * 8)
        job.u_bytes = 4 * up(rows, EV_WINOGRAD_MAPS) * channels * job.taps * 9
        blocks = 4 * EV_WINOGRAD_MAPS * channels * 9
        job.whole = (job.taps == 1 and w.out[0] == 1
                     and 4 * 36 * channels * up(all_tiles, 8) + blocks * threads < job.u_bytes)
        if job.whole:
            most = all_tiles
            job.u_bytes = blocks
    else:
        unit = 16
        most = max(<int64_t> 16, most // 16 * 16)
        job.whole = False
        job.ldu = (up(rows, 16) // 16 | 1) * 16  # an odd number of lines: rows of U do not fall into one set of the cache
        job.step_u = channels * job.ldu + WINOGRAD_APART
        job.u_bytes = up(4 * 36 * job.step_u * job.taps, 64)
    block_tiles(job, most, unit, items, 1 if job.whole else threads)
    if job.whole:
        job.block_h = job.tiles_h
    job.tiles = up(job.block_h * job.block_w, unit)
    job.blocks_h = (job.tiles_h + job.block_h - 1) // job.block_h
    job.blocks_w = (job.tiles_w + job.block_w - 1) // job.block_w
    blocks = items * job.blocks_h * job.blocks_w
    job.depth = w.out[0]
    if blocks < 2 * threads and threads > 1:
        job.depth = (w.out[0] * blocks + 2 * threads - 1) // (2 * threads)
    job.bands_d = (w.out[0] + job.depth - 1) // job.depth
    if job.lanes:
        job.panel = 4 if job.tiles <= 4 else 8
        job.ldv = 6 * job.panel + (4 if job.panel == 4 else 0)    # what a vector of eight tiles writes behind four
        job.step_j, job.step_panel = job.panel, job.ldv * channels
        job.step_i = job.step_panel * (up(job.tiles, job.panel) // job.panel) + WINOGRAD_APART
        job.plane = 6 * job.step_i
        job.block_m = EV_WINOGRAD_MAPS
        job.rest_bytes = 4 * 6 * EV_WINOGRAD_MAPS * min(channels, <int64_t> WINOGRAD_DEEP)
    else:
        job.panel = job.ldv = 16
        job.step_panel = 16 * channels
        job.step_j = job.step_panel * (job.tiles // 16) + WINOGRAD_APART
        job.step_i, job.plane = 6 * job.step_j, 36 * job.step_j
        job.block_m = WINOGRAD_O_BYTES // (4 * 36 * job.tiles) // WINOGRAD_MAPS * WINOGRAD_MAPS
        job.block_m = min(max(job.block_m, <int64_t> WINOGRAD_MAPS), up(rows, 8))
        job.rest_bytes = 0
    job.v_bytes = up(4 * job.plane * job.taps, 64)
    job.o_bytes = up(4 * 36 * (job.block_m * job.tiles + WINOGRAD_APART), 64)
    job.rest_bytes = up(max(job.rest_bytes, 4 * ((4 * job.block_h + 2) * (4 * job.block_w + 4) + 4 * job.block_w + 64)), 64)
    job.slot = job.o_bytes + job.rest_bytes
    job.slot += job.u_bytes if job.whole else job.v_bytes


cdef int64_t winograd_bytes(const Winograd *job, int64_t groups, int32_t threads) noexcept nogil:
    return (job.v_bytes if job.whole else job.u_bytes * groups) + threads * job.slot


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
        K.winograd_input_f32(rows, cols, copy, g.pitch, v + c * job.ldv, job.panel, job.step_panel, job.step_i, job.step_j)


cdef void winograd_lanes(const Winograd *job, int64_t tiles, const float *w, const float *const *v, const float *after,
                         float *u, float *o) noexcept nogil:
    """O[36][job.tiles][EV_WINOGRAD_MAPS] of as many output channels, whose kernels are w[C][depth tap][9]. after: as many
    numbers as w has, that will be read then."""
    cdef ev_winograd_row g
    cdef int64_t i, z, c
    g.tiles, g.panel, g.ldv, g.step_v = up(tiles, 4), job.panel, job.ldv, job.step_panel
    g.ldw, g.u, g.step = 9 * EV_WINOGRAD_MAPS * job.taps, u, job.tiles * EV_WINOGRAD_MAPS + WINOGRAD_APART
    for i in range(6):
        g.row, g.first, g.o = i, True, o + 6 * i * g.step
        for z in range(job.taps):
            c = 0 if v[z] != NULL else job.channels
            while c < job.channels:
                g.c = min(<int64_t> WINOGRAD_DEEP, job.channels - c)
                g.w = w + c * g.ldw + z * 9 * EV_WINOGRAD_MAPS
                g.v = v[z] + i * job.step_i + c * job.ldv
                g.next = after + ((i * job.taps + z) * job.channels + c) * (9 * EV_WINOGRAD_MAPS // 6)
                K.winograd_row_f32(&g)
                g.first = False
                c += WINOGRAD_DEEP
        if g.first:
            memset(g.o, 0, 4 * 6 * g.step)


cdef void winograd_products(const Winograd *job, const float *u, int64_t m, const float *const *v, float *o) noexcept nogil:
    """O[36][m][tiles] of m output channels, from U of the first of them on."""
    cdef ev_tile t
    cdef int64_t e, j, z
    t.m, t.k = m, job.channels
    t.rsa, t.csa, t.a_step, t.next = 1, job.ldu, K.mr, NULL
    t.ldb, t.b_step, t.ldc, t.ldadd = 16, job.step_panel, job.tiles, job.tiles
    t.row_bias = t.col_bias = NULL
    t.alpha = t.beta = 1
    t.in_order = True
    t.lo, t.hi = -INFINITY, INFINITY
    for e in range(36):
        for j in range(0, job.tiles, 32):    # as many columns as a kernel takes at a time: sums stay in L1
            t.n = min(<int64_t> 32, job.tiles - j)
            t.c = o + e * (m * job.tiles + WINOGRAD_APART) + j
            t.add = NULL
            for z in range(job.taps):
                if v[z] == NULL:
                    continue
                t.a = u + (z * 36 + e) * job.step_u
                t.b = v[z] + e * job.step_j + j * job.channels
                K.gemm_f32(&t)
                t.add = t.c
        if t.add == NULL:
            memset(o + e * (m * job.tiles + WINOGRAD_APART), 0, 4 * m * job.tiles)


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
    g.step = (job.block_m if job.lanes else m) * job.tiles + WINOGRAD_APART
    if job.lanes:
        K.winograd_output_maps_f32(&g, m, o, EV_WINOGRAD_MAPS, NULL if s.b == NULL else s.b + channel,
                                   NULL if s.z == NULL else s.z + at, s.y + at, s.outside)
    for i in range(0 if job.lanes else m):
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


cdef void winograd_panel(const Winograd *job, const float *w, int64_t m, float *to) noexcept nogil:
    """W of m output channels, at most EV_WINOGRAD_MAPS."""
    cdef int64_t k = job.channels * job.taps * 9
    if m < EV_WINOGRAD_MAPS:
        memset(to, 0, 4 * k * EV_WINOGRAD_MAPS)
    K.move_transpose(4, k, m, w, k, to, EV_WINOGRAD_MAPS)


cdef void winograd_kernels(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """U or W of blocks [begin, end) of 16 output channels, over all groups."""
    cdef const Winograd *job = <const Winograd *> ctx
    cdef int64_t item, group, m0, m, z, taps = 9 * job.taps, blocks = (job.rows + 15) // 16
    cdef const float *w
    cdef float *u
    for item in range(begin, end):
        group, m0 = item // blocks, item % blocks * 16
        m = min(<int64_t> 16, job.rows - m0)
        w = job.shape.w + (group * job.rows + m0) * job.channels * taps
        u = <float *> (job.shared + group * job.u_bytes)
        if job.lanes:
            winograd_panel(job, w, m, u + m0 * job.channels * taps)
        for z in range(0 if job.lanes else job.taps):
            K.winograd_weights_f32(m, job.channels, w + z * 9, job.channels * taps, taps, u + z * 36 * job.step_u + m0,
                                   job.ldu, job.step_u)


cdef void winograd_blocks(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Bands of planes of blocks of tiles, images and groups."""
    cdef const Winograd *job = <const Winograd *> ctx
    cdef const Shape *s = &job.shape
    cdef const ev_conv_window *w = &job.window
    cdef int64_t item, rest, image, group, row, col, od, last, z, ready, m0, m
    cdef float *v = <float *> (job.slots + worker * job.slot)
    cdef float *o = <float *> (<char *> v + job.v_bytes)
    cdef float *scratch = <float *> (<char *> o + job.o_bytes)
    cdef const float *x
    cdef const float *u
    cdef const float *kernels
    cdef const float *planes[WINOGRAD_TAPS]
    for item in range(begin, end):
        col = item % job.blocks_w * job.block_w
        row = item // job.blocks_w % job.blocks_h * job.block_h
        rest = item // job.blocks_w // job.blocks_h
        od = rest % job.bands_d * job.depth
        last = min(od + job.depth, w.out[0])
        image, group = rest // job.bands_d // s.groups, rest // job.bands_d % s.groups
        x = s.x + (image * s.c + group * job.channels) * s.inside
        u = <const float *> (job.shared + group * job.u_bytes)
        ready = od - w.pad[0]            # the first plane that is not transformed yet
        while od < last:
            while ready < od - w.pad[0] + job.taps:
                if 0 <= ready < w.image[0]:
                    winograd_plane(job, x, ready, row, col, 0, job.channels, scratch, v + ready % job.taps * job.plane)
                ready += 1
            for z in range(job.taps):
                ready = od - w.pad[0] + z
                planes[z] = v + ready % job.taps * job.plane if 0 <= ready < w.image[0] else NULL
            ready += 1
            m0 = 0
            while m0 < job.rows:
                m = min(job.block_m, job.rows - m0)
                if job.lanes:
                    kernels = u + m0 * job.channels * 9 * job.taps
                    winograd_lanes(job, min(job.block_h, job.tiles_h - row) * min(job.block_w, job.tiles_w - col), kernels,
                                   planes, kernels + EV_WINOGRAD_MAPS * job.channels * 9 * job.taps, scratch, o)
                else:
                    winograd_products(job, u + m0, m, planes, o)
                winograd_finish(job, image, group, m0, m, od, row, col, o)
                m0 += job.block_m
            od += 1


cdef void winograd_channels(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """V of channels [begin, end) of one image and group, as a whole."""
    cdef const Winograd *job = <const Winograd *> ctx
    cdef const Shape *s = &job.shape
    winograd_plane(job, s.x + (job.image * s.c + job.group * job.channels) * s.inside, 0, 0, 0, begin, end,
                   <float *> (job.slots + worker * job.slot + job.o_bytes), <float *> job.shared)


cdef void winograd_maps(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Blocks [begin, end) of output channels of one image and group, from V as a whole."""
    cdef const Winograd *job = <const Winograd *> ctx
    cdef int64_t block, m0, m
    cdef float *o = <float *> (job.slots + worker * job.slot)
    cdef float *u = <float *> (<char *> o + job.o_bytes)
    cdef float *w = <float *> (<char *> u + job.rest_bytes)
    cdef const float *v = <const float *> job.shared
    cdef const float *kernels
    for block in range(begin, end):
        m0 = block * job.block_m
        m = min(job.block_m, job.rows - m0)
        kernels = job.shape.w + (job.group * job.rows + m0) * job.channels * 9
        winograd_panel(job, kernels, m, w)
        winograd_lanes(job, job.tiles, w, &v, kernels + EV_WINOGRAD_MAPS * job.channels * 9, u, o)
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
    if not job.whole:
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
    cdef int64_t tiles = images * w.out[0] * job.blocks_h * job.blocks_w * job.tiles, rows = max(<int64_t> 3, job.rows)
    cdef int64_t pairs = job.channels * job.rows * job.taps
    cdef int64_t winograd = tiles * (36 * pairs // 8 + 55 * job.channels + 55 * job.rows)
    winograd += 16 * pairs * (images if job.whole else 1)
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
