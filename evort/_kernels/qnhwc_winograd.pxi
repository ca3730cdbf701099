# Part of qnhwc.pyx: dense 3x3 (or deeper) convolutions of stride 1 by Winograd's F(4x4, 3x3) in 16 bits, which gives the same bits with a
# quarter of the products. ukr/qwinograd_body.h has the transforms and says why nothing is lost.
#
#     for each band of rows of tiles
#       transform planes of the staged image once             V[36][tiles][channels], a ring of as many as the kernel has
#       for each 16 output channels
#         for blocks of input channels
#           transform kernels                                 U[36][pairs][16][2]
#           36 products, summed over blocks and depth         O[36][tiles][16]
#         transform O, finish                                 y
#
# Kernels take 8 times their bytes when they are transformed, so that they are not kept: it takes some 3 cycles for each,
# products of 16 bits 36 for 32 tiles.

cdef enum:
    WINOGRAD_BYTES = 640 * 1024          # of V, O and U together, which stay in L2, more or less
    WINOGRAD_PAIRS = 32                  # of input channels in a block of U
    WINOGRAD_APART = 32                  # bytes between the 36 elements, so that they do not fall into one set of the cache
    # Cycles, about: of a tile's image, for each channel; of a kernel. Where those of bytes are made in pairs, and with VNNI:
    # of a tile's results, for each channel, beyond those of a direct convolution; products in a cycle, Winograd's, and those
    # of a direct convolution.
    IMAGE_CYCLES = 5
    KERNEL_CYCLES = 4
    RESULT_WIDE = 16
    RESULT_VNNI = 6
    WINOGRAD_WIDE = 22
    WINOGRAD_VNNI = 27
    DIRECT_WIDE = 23
    DIRECT_PRESUM = 8                    # more of them for each quad of `presum`
    DIRECT_VNNI = 63


cdef bint takes_winograd(const Geometry *g) noexcept nogil:
    """Whether it is faster than the direct convolution, in a call."""
    cdef int64_t tiles = ceil_div(g.out_h, 4) * ceil_div(g.out_w, 4), channels = up_to(g.m, EV_NHWC_VECTOR)
    cdef double here, direct, products
    cdef int has = 0
    cdef bint wide
    if g.kernel_h != 3 or g.kernel_w != 3 or g.c % 2 != 0 or g.turns > 1 or g.sums or g.pool_h * g.pool_w > 1:
        return False
    if g.stride_d * g.stride_h * g.stride_w * g.dilation_d * g.dilation_h * g.dilation_w != 1:
        return False
    K.nhwc_has(&has)
    if has == EV_NHWC_DOTS:
        return False
    wide = has == EV_NHWC_WIDE or has == EV_NHWC_HALVES
    products = 36.0 * g.c * (up_to(g.m, EV_NHWC_VECTOR // 2) if wide else channels)
    products /= WINOGRAD_WIDE if wide else WINOGRAD_VNNI
    here = (tiles * (products * g.kernel_d + IMAGE_CYCLES * g.c + (RESULT_WIDE if wide else RESULT_VNNI) * channels)
            + <double> KERNEL_CYCLES * g.kernel_d * g.c * channels * ceil_div(tiles, winograd_tiles(g)))
    direct = 9.0 * g.kernel_d * g.c * up_to(g.m, EV_NHWC_VECTOR // 2) * g.out_h * g.out_w
    direct /= DIRECT_WIDE + (DIRECT_PRESUM * g.presum if has == EV_NHWC_WIDE else 0) if wide else DIRECT_VNNI
    return here < 0.95 * direct


cdef int64_t winograd_tiles(const Geometry *g) noexcept nogil:
    """Of a band, at most."""
    return max(<int64_t> 1, (WINOGRAD_BYTES - 36 * 64 * min(<int64_t> WINOGRAD_PAIRS, g.c // 2)) // (36 * (2 * g.kernel_d * g.c + 64)))


cdef void plan_winograd(Geometry *g, int64_t threads) noexcept nogil:
    """Bands, and what they take of the scratch."""
    cdef int64_t across = ceil_div(g.out_w, 4), down = ceil_div(g.out_h, 4), tiles, rows
    rows = min(down, max(<int64_t> 1, winograd_tiles(g) // across))
    g.bands = ceil_div(down, share(g, down, rows, threads))
    rows = ceil_div(down, g.bands)
    g.bands = ceil_div(down, rows)
    g.band = 4 * rows
    tiles = rows * across
    g.ldv = up_to(g.c, EV_NHWC_VECTOR)
    g.step_v = tiles * g.ldv + WINOGRAD_APART // 2
    g.step_u = min(<int64_t> WINOGRAD_PAIRS, g.c // 2) * 2 * EV_NHWC_VECTOR + WINOGRAD_APART // 2
    g.step_o = tiles * EV_NHWC_VECTOR + WINOGRAD_APART // 4


cdef void winograd_products(const Geometry *g, ev_nhwc_winograd *k, int64_t top, int32_t *o) noexcept nogil:
    """O of up to 16 channels, from V of the planes from `top` on and their kernels."""
    cdef int64_t tap, p0, pairs, e
    cdef const int8_t *w = k.w
    cdef int16_t *v = k.v
    for tap in range(g.kernel_d):
        k.w = w + tap * 9 * EV_NHWC_VECTOR * g.c
        k.v = v + slot_of(g, top + tap) * 36 * g.step_v
        p0 = 0
        while p0 < g.c // 2:
            pairs = min(<int64_t> WINOGRAD_PAIRS, g.c // 2 - p0)
            K.nhwc_winograd_kernels(k, p0, pairs)
            for e in range(36):
                K.qgemm_i16(k.rows * k.cols, k.channels, pairs, k.v + e * g.step_v + 2 * p0, g.ldv // 2, k.u + e * g.step_u,
                            tap + p0 > 0, o + e * g.step_o)
            p0 += pairs
    k.w, k.v = w, v


cdef inline int64_t slot_of(const Geometry *g, int64_t d) noexcept nogil:
    """Where V of plane d of the image is, of as many as the kernel has."""
    return (d % g.kernel_d + g.kernel_d) % g.kernel_d


cdef void winograd_plane(const Task *t, ev_nhwc_winograd *k, int64_t image, int64_t od, int64_t first, int64_t part,
                         char *scratch) noexcept nogil:
    """A band of plane od of the result, of a share of the blocks of channels."""
    cdef const Job *job = &t.job
    cdef const Geometry *g = &t.g
    cdef const char *shared = <const char *> job.call.scratch
    cdef int64_t i, c, channels, at, blocks = ceil_div(g.m, EV_NHWC_NR), block = part * ceil_div(blocks, g.parts)
    cdef int64_t last = min(blocks, block + ceil_div(blocks, g.parts)), plane = g.out_h * g.out_w, all_ = g.out_d * plane
    cdef int64_t n = k.height * g.out_w
    cdef int32_t *o = <int32_t *> (scratch + g.at_o)
    cdef char *y
    cdef const char *z
    while block < last:
        i = block * EV_NHWC_NR
        channels = min(<int64_t> EV_NHWC_NR, g.m - i)
        z = NULL
        if g.y_last:
            at = ((image * g.out_d + od) * g.out_h + first) * g.out_w * g.m + i
            y, k.ldy, k.ldz = <char *> job.o.y.data + at, g.m, g.m
            if job.o.z != NULL:
                z = <const char *> job.o.z.data + at
        else:
            at = (image * g.m + i) * all_ + od * plane + first * g.out_w
            y, k.ldy, k.ldz = scratch + g.at_y, EV_NHWC_NR, EV_NHWC_NR
            if job.o.z != NULL:
                z = scratch + g.at_z
                K.move_transpose(1, n, channels, <const char *> job.o.z.data + at, all_, scratch + g.at_z, EV_NHWC_NR)
        c = 0
        while c < channels:
            k.channels = min(<int64_t> EV_NHWC_VECTOR, channels - c)
            k.w = t.w + (i + c) * 9 * g.kernel_d * g.c
            k.add = <const int32_t *> (shared + g.at_add) + i + c
            k.scale = <const float *> (shared + g.at_scale) + i + c
            k.y, k.z = <uint8_t *> y + c, NULL if z == NULL else z + c
            winograd_products(g, k, od - g.pad_d, o)
            K.nhwc_winograd_results(k)
            c += EV_NHWC_VECTOR
        if not g.y_last:
            K.move_transpose(1, channels, n, y, EV_NHWC_NR, <char *> job.o.y.data + at, all_)
        block += 1


cdef void winograd_items(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Items [begin, end): shares of the blocks, bands, chunks and images, the first fastest."""
    cdef Task *t = <Task *> ctx
    cdef const Job *job = &t.job
    cdef const Geometry *g = &t.g
    cdef char *scratch = <char *> job.call.scratch + g.shared + worker * g.slot
    cdef int64_t item, image, first, od, d, ready
    cdef int16_t *v = <int16_t *> (scratch + g.at_v)
    cdef ev_nhwc_winograd k
    cdef Ring ring
    ring.plane = -1
    memset(&k, 0, sizeof(k))
    k.cols, k.width = ceil_div(g.out_w, 4), g.out_w
    k.c, k.pitch = g.c, g.pitch * g.c
    k.x, k.ldv, k.step_v = <const uint8_t *> (scratch + g.at_stage), g.ldv, g.step_v
    k.u, k.step_u = <int16_t *> (scratch + g.at_u), g.step_u
    k.o, k.step_o = <const int32_t *> (scratch + g.at_o), g.step_o
    k.finish = &job.finish
    for item in range(begin, end):
        first = item // g.parts % g.bands * g.band
        od = item // g.parts // g.bands % g.chunks * g.chunk
        image = item // g.parts // g.bands // g.chunks
        k.height = min(g.band, g.out_h - first)
        k.rows = ceil_div(k.height, 4)
        ready = od - g.pad_d             # the first plane that is not transformed
        for od in range(od, min(g.out_d, od + g.chunk)):
            for d in range(ready, od - g.pad_d + g.kernel_d):
                if g.kernel_d == 1:
                    stage_band(t, image, d, first - g.pad_h, first - g.pad_h + 4 * k.rows + 2, &ring, scratch)
                else:
                    stage(t, 0, image, d, first - g.pad_h, first - g.pad_h + 4 * k.rows + 2, scratch + g.at_stage, scratch)
                k.v = v + slot_of(g, d) * 36 * g.step_v
                K.nhwc_winograd_image(&k)
            ready = od - g.pad_d + g.kernel_d
            k.v = v
            winograd_plane(t, &k, image, od, first, item % g.parts, scratch)


cdef void pack_kernels(const Geometry *g, const uint8_t *w, int flip, int32_t *sums, int8_t *to, int8_t *line) noexcept nogil:
    """The weights [m, c, depth, 3, 3] as pack_dense gives them; `line` holds those of a channel."""
    cdef int64_t m, c, d, t, all_ = 9 * g.kernel_d * g.c
    cdef int8_t *at
    for m in range(g.m):
        K.qc_weights(all_, 1, flip, w + m * all_, line, &sums[m])
        at = to + m // EV_NHWC_VECTOR * EV_NHWC_VECTOR * all_ + m % EV_NHWC_VECTOR * 2
        for d in range(g.kernel_d):
            for c in range(g.c):
                for t in range(9):
                    at[((d * g.c // 2 + c // 2) * 9 + t) * 2 * EV_NHWC_VECTOR + c % 2] = line[(c * g.kernel_d + d) * 9 + t]
