"""Drivers of the convolutions in float32.

    pointwise_f32   1x1, stride 1: the image is the product's right operand as it lies
    direct_f32      a padded copy of a band of the image is the right operand, read at each tap's offset;
                    direct_lanes_f32: with output channels, not positions, in the lanes
    winograd_f32    3x3, stride 1, enough channels: a quarter of the products
    winograd_line_f32  rows of the kernel of five elements, stride 1: 0.6 of the products
    few_f32         a few output positions: each row of weights times all columns of the im2col matrix
    im2col_f32      any other: the right operand is packed from the image, panel by panel, never built as a whole
    depthwise_f32   one input channel a group: no product, a stencil over the image: 3x3 and 5x5 along rows, others some
                    channels at a time (where rows are very long, channel by channel)
    separable_f32   a depthwise convolution and the pointwise ones before and after it, in strips of rows
    transpose_f32   ConvTranspose: products in blocks, then their sums row by row of the output

Weights are read where the file has them. All take ints (activation, groups, then a Window of evort/ops/conv.py) and
reals (activation parameters a, b); in: X, W, B or NULL, Z or NULL, slope or NULL.
"""
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memmove, memset
from evort._kernels.core cimport (EV_ACT_CLIP, EV_ACT_NONE, EV_ACT_RELU, EV_BIAS_NONE, EV_BIAS_ROW, EV_DEPTHWISE_CHANNELS, EV_DIRECT_LANES, EV_OK, EV_WINOGRAD_MAPS, address, ev_call,
                                  ev_conv_window, ev_depthwise, ev_depthwise_floats, ev_depthwise_rows, ev_direct, ev_direct_image,
                                  ev_epilogue, ev_tile, ev_ukr, ev_winograd_output, ev_winograd_row, parallel_for, register, ukernels)
from evort._kernels.gemm cimport ev_gemm, gemm_f32, gemm_init, gemm_scratch, gemm_scratch_within, l2_bytes

cdef const ev_ukr *K = ukernels()

cdef enum:
    MACS_PER_TASK = 1 << 19      # about 35 us: less is not worth waking a thread, which takes 20 to 40
    DEPTHWISE_FLOATS = 12 * 1024 # of a band of some channels, which stays in L1 and L2
    DEPTHWISE_LONG = 64
    COL_BYTES = 192 * 1024       # of products in a block of a transposed convolution: they stay in L2

ctypedef struct Shape:
    int64_t n, c, m, groups      # images, channels in and out
    int64_t inside, outside      # elements of a channel of X and of Y
    int64_t taps
    ev_conv_window window
    float *x
    float *w
    float *b
    float *z
    float *slope
    float *y


cdef inline int64_t round64(int64_t bytes) noexcept nogil:
    return (bytes + 63) // 64 * 64


cdef inline float *operand(const ev_call *c, int i) noexcept nogil:
    return NULL if i >= c.n_in or c.in_[i] == NULL else <float *> c.in_[i].data


cdef void read_window(const int64_t *ints, ev_conv_window *g) noexcept nogil:
    cdef int i
    for i in range(3):
        g.image[i], g.out[i], g.kernel[i] = ints[i], ints[3 + i], ints[6 + i]
        g.stride[i], g.dilation[i], g.pad[i] = ints[9 + i], ints[12 + i], ints[15 + i]


cdef void read_call(const ev_call *c, Shape *s) noexcept nogil:
    s.groups = c.ints[1]
    read_window(c.ints + 2, &s.window)
    s.n, s.c, s.m = c.in_[0].dims[0], c.in_[0].dims[1], c.out[0].dims[1]
    s.inside = c.in_[0].size // max(1, s.n * s.c)
    s.outside = c.out[0].size // max(1, s.n * s.m)
    s.taps = s.window.kernel[0] * s.window.kernel[1] * s.window.kernel[2]
    s.x, s.w = operand(c, 0), operand(c, 1)
    s.b, s.z, s.slope = operand(c, 2), operand(c, 3), operand(c, 4)
    s.y = <float *> c.out[0].data


cdef void fill_epilogue(const ev_call *c, const Shape *s, int64_t image, int64_t group, ev_epilogue *e) noexcept nogil:
    """What follows the product of one image and group: an [M/groups, positions] block of Y."""
    cdef int64_t rows = s.m // s.groups
    e.bias = NULL if s.b == NULL else s.b + group * rows
    e.bias_axis = EV_BIAS_NONE if s.b == NULL else EV_BIAS_ROW
    e.residual = NULL if s.z == NULL else s.z + (image * s.m + group * rows) * s.outside
    e.ldr = s.outside
    e.slope = NULL if s.slope == NULL else s.slope + group * rows
    e.activation = <int32_t> c.ints[0]
    e.a, e.b = <float> c.reals[0], <float> c.reals[1]


cdef void as_clamp(int64_t activation, double a, double b, float *lo, float *hi) noexcept nogil:
    """An activation as a clamp, where it is one."""
    lo[0], hi[0] = -INFINITY, INFINITY
    if activation == EV_ACT_RELU:
        lo[0] = 0
    elif activation == EV_ACT_CLIP:
        lo[0], hi[0] = <float> a, <float> b


cdef inline void clamp_of(const ev_call *c, float *lo, float *hi) noexcept nogil:
    as_clamp(c.ints[0], c.reals[0], c.reals[1], lo, hi)


cdef inline bint clamps(int64_t activation) noexcept nogil:
    return activation in (EV_ACT_NONE, EV_ACT_RELU, EV_ACT_CLIP)


cdef inline bint is_clamp(const ev_call *c) noexcept nogil:
    return clamps(c.ints[0])


# Products ------------------------------------------------------------------------------------------------------------

ctypedef struct Image:
    const ev_conv_window *window
    float *x

ctypedef struct Job:
    const ev_call *call
    Shape shape
    bint direct                  # X itself is the right operand
    int32_t threads              # for each product
    int64_t slot                 # scratch bytes of one product


cdef void pack_image(const void *ctx, int64_t p0, int64_t kc, int64_t j0, int64_t nc, void *dst) noexcept nogil:
    cdef const Image *image = <const Image *> ctx
    K.im2col_f32(image.window, image.x, p0, kc, j0, nc, <float *> dst)


cdef bint split_items(int64_t items, int64_t macs, int32_t threads) noexcept nogil:
    """Whether threads take whole images and groups, rather than share each product."""
    return threads > 1 and items >= threads and (items % threads == 0 or items >= 4 * threads
                                                 or macs < threads * MACS_PER_TASK)


cdef void products(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Images and groups [begin, end), counted together."""
    cdef Job *job = <Job *> ctx
    cdef const Shape *s = &job.shape
    cdef int64_t item, image, group, rows = s.m // s.groups, channels = s.c // s.groups, k = channels * s.taps
    cdef ev_gemm g
    cdef ev_epilogue e
    cdef Image source
    source.window = &s.window
    for item in range(begin, end):
        image, group = item // s.groups, item % s.groups
        source.x = s.x + (image * s.c + group * channels) * s.inside
        gemm_init(&g, rows, s.outside, k, s.w + group * rows * k, k, source.x, s.inside,
                  s.y + (image * s.m + group * rows) * s.outside, s.outside)
        if not job.direct:
            g.pack, g.pack_ctx = pack_image, &source
        fill_epilogue(job.call, s, image, group, &e)
        g.epilogue = &e
        g.threads = job.threads
        g.scratch = <char *> job.call.scratch + worker * job.slot
        gemm_f32(&g)


cdef int run_products(const ev_call *c, bint direct) noexcept nogil:
    cdef Job job
    cdef Shape *s = &job.shape
    read_call(c, s)
    if c.out[0].size == 0:
        return EV_OK
    cdef int64_t items = s.n * s.groups, rows = s.m // s.groups, k = s.c // s.groups * s.taps
    job.call, job.direct = c, direct
    if split_items(items, rows * s.outside * k, c.threads):
        job.threads, job.slot = 1, gemm_scratch(4, rows, s.outside, k, 1)
        parallel_for(products, &job, items, max(1, MACS_PER_TASK // max(1, rows * s.outside * k)), c.threads)
    else:
        job.threads, job.slot = c.threads, 0
        products(&job, 0, items, 0)
    return EV_OK


def products_scratch(int64_t items, int64_t m, int64_t n, int64_t k, int32_t threads) -> int:
    """Scratch bytes of pointwise_f32 and im2col_f32: `items` products [m, k] x [k, n]."""
    if m == 0 or n == 0 or items == 0:
        return 0
    if split_items(items, m * n * k, threads):
        return threads * gemm_scratch(4, m, n, k, 1)
    return gemm_scratch(4, m, n, k, threads)


cdef int pointwise_f32(const ev_call *c) noexcept nogil:
    return run_products(c, True)


cdef int im2col_f32(const ev_call *c) noexcept nogil:
    return run_products(c, False)


# Depthwise -----------------------------------------------------------------------------------------------------------

ctypedef struct Depthwise:
    const ev_call *call
    Shape shape
    ev_depthwise stencil
    int64_t channels, blocks     # channels of a block
    int64_t bands, band_rows     # each block in bands of so many output rows
    bint along_rows              # by depthwise_rows_f32
    int64_t floats               # scratch of a thread for depthwise_block_f32; 0 where it is not used


cdef void set_stencil(ev_depthwise *d, const ev_conv_window *g, int64_t multiplier) noexcept nogil:
    d.h, d.w, d.oh, d.ow, d.kh, d.kw = g.image[1], g.image[2], g.out[1], g.out[2], g.kernel[1], g.kernel[2]
    d.sh, d.sw, d.dh, d.dw = g.stride[1], g.stride[2], g.dilation[1], g.dilation[2]
    d.pad_h, d.pad_w, d.multiplier, d.plane = g.pad[1], g.pad[2], multiplier, d.h * d.w


cdef void plan_depthwise(Depthwise *job, const ev_conv_window *g, int64_t c, int64_t m, int64_t items, bint clamp,
                         int32_t threads) noexcept nogil:
    """Sizes for c channels in and m out; items: images. clamp: no other activation follows."""
    cdef ev_depthwise *d = &job.stencil
    cdef int64_t rows
    set_stencil(d, g, max(<int64_t> 1, m // max(<int64_t> 1, c)))
    job.along_rows = ev_depthwise_rows(d)
    if job.along_rows:
        job.floats = 0
        # Without a second pass over them, the more channels the better; else as many as stay in L1.
        job.channels = max(1, min(m, (DEPTHWISE_FLOATS if clamp else DEPTHWISE_FLOATS // 4) // (d.oh * d.ow)))
        if threads > 1:    # channels rather than rows are shared out
            job.channels = max(1, min(job.channels, (items * m + 4 * threads - 1) // (4 * threads)))
    else:
        rows = d.oh
        while rows > 1 and ev_depthwise_floats(d, rows) > DEPTHWISE_FLOATS:
            rows = (rows + 1) // 2
        job.floats = round64(4 * ev_depthwise_floats(d, rows)) // 4
        # Rows too long even one by one; and of one row, as of sound, a channel goes along it (0.6 of the time).
        if job.floats > 2 * DEPTHWISE_FLOATS or d.kh == d.h == d.sw == 1 and d.ow >= DEPTHWISE_LONG:
            job.floats = 0
        job.channels = EV_DEPTHWISE_CHANNELS if job.floats else 1
    job.blocks = (m + job.channels - 1) // job.channels
    # Bands stay in the cache for the activation that follows; with few blocks they also give every thread its share.
    job.band_rows = d.oh if clamp else max(4, 4096 // d.ow)
    if items * job.blocks < 4 * threads and threads > 1:
        job.band_rows = min(job.band_rows, max(4, (d.oh + threads - 1) // threads))
    job.band_rows = min(job.band_rows, d.oh)
    job.bands = (d.oh + job.band_rows - 1) // job.band_rows


cdef void depthwise_bands(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef Depthwise *job = <Depthwise *> ctx
    cdef const Shape *s = &job.shape
    cdef int64_t item, image, block, channel, first, last, at, to, some
    cdef float *scratch = <float *> job.call.scratch + worker * job.floats
    cdef const float *x
    cdef const float *z
    cdef ev_epilogue e
    memset(&e, 0, sizeof(e))
    e.activation, e.slope = <int32_t> job.call.ints[0], s.slope
    e.a, e.b = <float> job.call.reals[0], <float> job.call.reals[1]
    for item in range(begin, end):
        image, block = item // job.bands // job.blocks, item // job.bands % job.blocks
        first = item % job.bands * job.band_rows
        last = min(first + job.band_rows, job.stencil.oh)
        x, to = s.x + image * s.c * s.inside, image * s.m * s.outside
        z = NULL if s.z == NULL else s.z + to
        channel = block * job.channels
        some = min(job.channels, s.m - channel)
        at = to + channel * s.outside
        if job.along_rows:
            K.depthwise_rows_f32(&job.stencil, channel, channel + some, x, s.w, s.b, z, s.y + to, first, last)
        elif job.floats:
            K.depthwise_block_f32(&job.stencil, channel, channel + some, x, s.w, s.b, z, s.y + to, first, last, scratch,
                                  job.floats)
        else:
            K.depthwise_f32(&job.stencil, x + channel // job.stencil.multiplier * s.inside, s.w + channel * s.taps,
                            0 if s.b == NULL else s.b[channel], NULL if z == NULL else s.z + at, s.y + at, first, last)
        if not is_clamp(job.call):
            K.activate_f32(&e, some, (last - first) * job.stencil.ow, channel, s.y + at + first * job.stencil.ow, s.outside)


cdef int depthwise_f32(const ev_call *c) noexcept nogil:
    cdef Depthwise job
    cdef Shape *s = &job.shape
    read_call(c, s)
    if c.out[0].size == 0:
        return EV_OK
    job.call = c
    plan_depthwise(&job, &s.window, s.c, s.m, s.n, is_clamp(c), c.threads)
    clamp_of(c, &job.stencil.lo, &job.stencil.hi)
    parallel_for(depthwise_bands, &job, s.n * job.blocks * job.bands,
                 max(1, MACS_PER_TASK // (job.channels * job.band_rows * job.stencil.ow * s.taps)), c.threads)
    return EV_OK


def depthwise_scratch(int64_t c, int64_t m, ints, int32_t threads) -> int:
    """Scratch bytes of depthwise_f32 with c channels in and m out. `ints` are the driver's."""
    cdef int64_t[20] values
    cdef int i
    cdef ev_conv_window w
    cdef Depthwise job
    for i in range(20):
        values[i] = ints[i]
    read_window(values + 2, &w)
    if c == 0 or m == 0:
        return 0
    plan_depthwise(&job, &w, c, m, 1, True, threads)
    return 4 * job.floats * threads


# Transposed ----------------------------------------------------------------------------------------------------------

ctypedef struct Blocks:
    int64_t chunk, chunks        # output channels of a block
    int64_t axis                 # the axis that is cut, depth or height
    int64_t step, blocks         # output rows (along the axis) of a block
    int64_t rows_in              # most input rows of a block, over depth and height
    int64_t col_bytes, tmp_bytes, slot

ctypedef struct Transposed:
    const ev_call *call
    Shape shape
    Blocks blocks


cdef inline int64_t first_in(const ev_conv_window *g, int64_t axis, int64_t o) noexcept nogil:
    """The first input position along an axis that reaches output o or one after it."""
    cdef int64_t reach = o + g.pad[axis] - (g.kernel[axis] - 1) * g.dilation[axis]
    return 0 if reach <= 0 else min((reach + g.stride[axis] - 1) // g.stride[axis], g.out[axis])


cdef inline int64_t end_in(const ev_conv_window *g, int64_t axis, int64_t o) noexcept nogil:
    """One past the last input position that reaches output o or one before it."""
    cdef int64_t reach = o + g.pad[axis]
    return 0 if reach < 0 else min(reach // g.stride[axis] + 1, g.out[axis])


cdef void make_blocks(Blocks *k, const ev_conv_window *g, int64_t rows, int64_t channels) noexcept nogil:
    """rows, channels: output and input channels of a group."""
    cdef int64_t taps = g.kernel[0] * g.kernel[1] * g.kernel[2], first, fit, most = 0
    k.chunk = max(1, min(rows, 48 // taps))
    k.chunks = (rows + k.chunk - 1) // k.chunk
    k.axis = 0 if g.image[0] > 1 else 1
    fit = COL_BYTES // (4 * k.chunk * taps * g.out[2] * (g.out[1] if k.axis == 0 else 1))
    k.step = min(max(1, fit) * g.stride[k.axis], g.image[k.axis])
    k.blocks = (g.image[k.axis] + k.step - 1) // k.step
    first = 0
    while first < g.image[k.axis]:
        most = max(most, end_in(g, k.axis, min(first + k.step, g.image[k.axis]) - 1) - first_in(g, k.axis, first))
        first += k.step
    k.rows_in = max(0, most) * (g.out[1] if k.axis == 0 else 1)
    k.col_bytes = round64(4 * k.chunk * taps * k.rows_in * g.out[2])
    k.tmp_bytes = round64(4 * g.image[2])
    k.slot = k.col_bytes + k.tmp_bytes
    if k.rows_in > 0:
        k.slot += gemm_scratch_within(4, k.chunk * taps, k.rows_in * g.out[2], channels)


cdef void transposed_blocks(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef Transposed *job = <Transposed *> ctx
    cdef const Shape *s = &job.shape
    cdef const ev_conv_window *w = &s.window
    cdef const Blocks *k = &job.blocks
    cdef int64_t rows = s.m // s.groups, channels = s.c // s.groups, inner = w.out[1] if k.axis == 0 else 1
    cdef int64_t item, block, group, image, m0, m, count, first, last, in0, in1, ld, od, oh, at, channel, row0
    cdef int64_t row
    cdef float *col = <float *> (<char *> job.call.scratch + worker * k.slot)
    cdef float *tmp = <float *> (<char *> col + k.col_bytes)
    cdef float lo, hi
    cdef ev_gemm g
    cdef ev_epilogue e
    clamp_of(job.call, &lo, &hi)
    for item in range(begin, end):
        block = item % k.blocks
        m0 = item // k.blocks % k.chunks * k.chunk
        group = item // k.blocks // k.chunks % s.groups
        image = item // k.blocks // k.chunks // s.groups
        count = min(k.chunk, rows - m0)
        first = block * k.step
        last = min(first + k.step, w.image[k.axis])
        in0, in1 = first_in(w, k.axis, first), end_in(w, k.axis, last - 1)
        row0 = in0 * inner
        ld = max(0, in1 - in0) * inner * w.out[2]
        # The gemm gives col[(m, tap), position]; weights are [channel, (m, tap)].
        gemm_init(&g, count * s.taps, ld, channels, s.w + (group * channels * rows + m0) * s.taps, 0,
                  s.x + (image * s.c + group * channels) * s.inside + row0 * w.out[2], s.inside, col, ld)
        g.rsa, g.csa = 1, rows * s.taps
        g.scratch = <char *> tmp + k.tmp_bytes
        gemm_f32(&g)
        fill_epilogue(job.call, s, image, group, &e)
        for m in range(count):
            channel = group * rows + m0 + m
            at = (image * s.m + channel) * s.outside
            for od in range(first if k.axis == 0 else 0, last if k.axis == 0 else w.image[0]):
                for oh in range(first if k.axis == 1 else 0, last if k.axis == 1 else w.image[1]):
                    row = at + (od * w.image[1] + oh) * w.image[2]
                    K.transposed_row_f32(w, col + m * s.taps * ld, ld, row0, od, oh,
                                         0 if s.b == NULL else s.b[channel], NULL if s.z == NULL else s.z + row,
                                         lo, hi, tmp, s.y + row)
            if not is_clamp(job.call):
                K.activate_f32(&e, 1, (last - first) * (s.outside // w.image[k.axis]), m0 + m,
                               s.y + at + first * (s.outside // w.image[k.axis]), 0)


cdef int transpose_f32(const ev_call *c) noexcept nogil:
    cdef Transposed job
    cdef Shape *s = &job.shape
    read_call(c, s)
    if c.out[0].size == 0:
        return EV_OK
    job.call = c
    make_blocks(&job.blocks, &s.window, s.m // s.groups, s.c // s.groups)
    parallel_for(transposed_blocks, &job, s.n * s.groups * job.blocks.chunks * job.blocks.blocks, 1, c.threads)
    return EV_OK


def transpose_scratch(int64_t c, int64_t m, ints, int32_t threads) -> int:
    """Scratch bytes of transpose_f32 with c channels in and m out."""
    cdef int64_t[20] values
    cdef int i
    cdef ev_conv_window g
    cdef Blocks blocks
    for i in range(20):
        values[i] = ints[i]
    read_window(values + 2, &g)
    if c == 0 or m == 0:
        m = c = values[1]
    make_blocks(&blocks, &g, m // values[1], c // values[1])
    return threads * blocks.slot


include "conv_direct.pxi"
include "conv_few.pxi"
include "conv_separable.pxi"
include "conv_winograd.pxi"
include "conv_winograd_line.pxi"

DRIVERS = {}
register(DRIVERS, "pointwise_f32", pointwise_f32)
register(DRIVERS, "im2col_f32", im2col_f32)
register(DRIVERS, "few_f32", few_f32)
register(DRIVERS, "direct_f32", direct_f32)
register(DRIVERS, "direct_lanes_f32", direct_lanes_f32)
register(DRIVERS, "winograd_f32", winograd_f32)
register(DRIVERS, "winograd_line_f32", winograd_line_f32)
register(DRIVERS, "depthwise_f32", depthwise_f32)
register(DRIVERS, "separable_f32", separable_f32)
register(DRIVERS, "transpose_f32", transpose_f32)
