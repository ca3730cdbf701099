"""Drivers of integer convolutions and pools whose image, result or both lie channels last (NHWC).

Where the operands' memory is so (evort.ops.base.Op.channels_last), nothing is packed between two layers: a pixel's
channels follow one another, and so do those of the weights, which are packed once when the plan is made.

    for each band of output rows                 the image staged, or where it lies
      for each block of 64 output channels       W block stays in L2
        positions, seven at a time               sums in registers, finished while in L1 (ukr/qnhwc_vnni_body.h)

An image with padding, or with channels first, is staged: copied to scratch with its padding, channels last, as uint8,
or as int16 where the instruction set has no product of bytes that is exact for these weights. A row of the kernel is then one run (a
segment) of it, where taps follow one another. Of volumes, a plane of the result is computed at a time; the planes that it
reads stay where they were staged as long as one needs them, in a ring of as many as the kernel has. A result with
channels first is computed block by block into scratch, and transposed from there; where it is not of bytes, its sums are.
A small image of 16 bits is two of bytes, the lower and the upper ones, whose sums are added up (`limbs`).

A transposed convolution whose kernel is its stride is a convolution of single pixels for each row of the kernel: what one
pixel gives to a row of the result, [kernel's width][channels], are the channels of that, and lie side by side.
"""
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset
from evort._kernels.core cimport (EV_BIAS_COLUMN, EV_FLOAT, EV_NHWC_BYTES, EV_NHWC_DOTS, EV_NHWC_HALVES,
                                  EV_INT8, EV_INT16, EV_NHWC_NR, EV_NHWC_TAPS, EV_NHWC_VECTOR, EV_NHWC_WIDE, EV_OK,
                                  EV_UINT8, address, ev_call, ev_item_size, ev_nhwc_columns, ev_nhwc_conv,
                                  ev_nhwc_winograd, ev_qfinish, ev_requant, ev_sums, ev_ukr, parallel_for, register, ukernels)
from evort._kernels.qwindow cimport (I_FLOAT, I_GROUP, I_INPUTS, I_N, I_C, I_M, I_SIZE, I_WINDOW, MACS_PER_TASK, N_INTS,
                                     Job, row_factors, take_linear)

cdef const ev_ukr *K = ukernels()

cdef enum:
    I_X_LAST = N_INTS            # whether x, and y with the residual, lie channels last
    I_Y_LAST
    I_WIDE                       # whether weights are in pairs, and images of dense ones staged as int16
    I_TURNS                      # rows of a transposed convolution's kernel; the window and I_M are those of one row. Else 1
    I_RESULT                     # channels of the result
    I_ANY                        # whether the result, or its residual, is not of bytes: they have channels first
    I_SMALL                      # whether all sums of products fit 25 bits and a sign: Winograd's convolution takes them
    I_PRESUM                     # the operator's attribute; where it is used, I_WIDE is 0
    I_POOL_H                     # rows and columns of positions, the largest result of which is wanted; else 1
    I_POOL_W
    ALL_INTS
    BAND_BYTES = 160 * 1024      # of the image that a band reads: it stays in L2, beside a block of weights
    WHOLE_BYTES = 32 * 1024
    SLACK = 64                   # bytes behind a staged image that may be read
    MOST_SEGMENTS = 1 << 12
    MOST_TAPS = 256
    MOST_POOL = 28               # EV_NHWC_POOL
    BLOCK = 64                   # EV_NHWC_NR
    POSITIONS = 252              # whose sums are transposed at a time
    FEW = 16                     # positions: no bands of them, whose taps would not be one run of bytes; no rows of floats


cdef inline int64_t ceil_div(int64_t a, int64_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline int64_t up_to(int64_t a, int64_t b) noexcept nogil:
    return (a + b - 1) // b * b


ctypedef struct Geometry:
    int64_t n, c, m              # images, channels in and out
    int64_t turns, result        # see I_TURNS, I_RESULT
    bint sums                    # of one channel: sums are finished by the row
    bint any_type                # see I_ANY
    int64_t d, out_d, kernel_d, stride_d, dilation_d, pad_d
    int64_t h, w, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_h, pad_w
    int64_t pool_h, pool_w       # see I_POOL_H; out_h and out_w count what is wanted
    bint halves                  # the other half of a vector's channels are those of the next column, where quads have room
    bint x_last, y_last, staged, wide, widens
    int64_t presum               # of ev_nhwc_conv
    bint whole                   # an image with channels first is made bytes of at once
    bint limbs                   # which has 16 bits, of which the lower and the upper ones are an image each
    int64_t segments, quads      # runs of bytes that a position reads, and quads of each
    bint rows                    # a segment is a row of the kernel, else a tap
    int64_t pitch                # pixels of a row of what is read
    int64_t band, bands, parts   # output rows; shares of the blocks of channels
    int64_t chunk, chunks        # output planes
    int64_t plane                # elements from a plane of what is read to the next
    bint winograd
    int64_t ldv, step_v, step_u, step_o
    # Offsets into scratch: shared, then of each thread.
    int64_t each, at_add, at_scale, shared, at_stage, at_line, at_row, at_y, at_z, at_sums, at_v, at_u, at_o, slot
    int64_t limb, at_upper       # from the staged lower bytes to the upper ones; the sums of these


cdef bint take_window(Geometry *g, const int64_t *v, bint columns) noexcept nogil:
    """The window. columns: depthwise, by columns; False for three axes, and a single axis is that of columns."""
    cdef const int64_t *a = v + I_WINDOW
    g.n, g.c, g.m = v[I_N], v[I_C], v[I_M]
    g.x_last, g.y_last, g.wide, g.any_type = v[I_X_LAST], v[I_Y_LAST], v[I_WIDE], v[I_ANY]
    g.turns, g.result = v[I_TURNS], v[I_RESULT]
    g.sums = g.result == 1       # convolutions to one channel, which fill no vector, are not for here
    g.d, g.out_d, g.kernel_d, g.stride_d, g.dilation_d, g.pad_d = a[0], a[3], a[6], a[9], a[12], a[15]
    g.h, g.out_h, g.kernel_h, g.stride_h, g.dilation_h, g.pad_h = a[1], a[4], a[7], a[10], a[13], a[16]
    g.w, g.out_w, g.kernel_w, g.stride_w, g.dilation_w, g.pad_w = a[2], a[5], a[8], a[11], a[14], a[17]
    g.pool_h, g.pool_w = v[I_POOL_H], v[I_POOL_W]
    g.out_h, g.out_w = g.out_h // g.pool_h, g.out_w // g.pool_w
    if columns and (g.d != 1 or g.out_d != 1 or g.kernel_d != 1 or g.pad_d != 0):
        return False
    if (g.d == g.out_d == g.kernel_d == g.h == g.out_h == g.kernel_h == 1 and g.pad_h == 0 and g.turns == 1
            and not g.sums and not columns
            and (g.c % 4 == 0 or g.dilation_w > 1 or g.out_w >= FEW)):   # one axis: bands cut it
        g.h, g.out_h, g.kernel_h, g.stride_h, g.dilation_h, g.pad_h = (
            g.w, g.out_w, g.kernel_w, g.stride_w, g.dilation_w, g.pad_w)
        g.pool_h = g.pool_w
        g.w = g.out_w = g.kernel_w = g.stride_w = g.dilation_w = g.pool_w = 1
        g.pad_w = 0
    return True


cdef inline int64_t reach_h(const Geometry *g, int64_t rows) noexcept nogil:
    """Rows of the image under so many rows of results."""
    return (rows * g.pool_h - 1) * g.stride_h + (g.kernel_h - 1) * g.dilation_h + 1


cdef inline int64_t reach_w(const Geometry *g) noexcept nogil:
    """Columns of the image under a row of results."""
    return (g.out_w * g.pool_w - 1) * g.stride_w + (g.kernel_w - 1) * g.dilation_w + 1


cdef inline int64_t common(int64_t a, int64_t b) noexcept nogil:
    """The greatest common divisor."""
    while b != 0:
        a, b = b, a % b
    return a


cdef inline int64_t longest(int64_t n, int64_t h, int64_t band, int64_t threads) noexcept nogil:
    """Rows, of n times h in bands, of the thread that has the most."""
    return ceil_div(n * ceil_div(h, band), threads) * band


cdef int64_t share(Geometry *g, int64_t h, int64_t band, int64_t threads) noexcept nogil:
    """Rows of a band, at most `band` of h, for so many threads: two bands for each, or one where that is more even. Sets
    `parts`: where those are more even, or as even and there are more weights than pixels, which each band reads anew,
    threads share the blocks of channels instead."""
    cdef int64_t n = g.n * g.chunks, blocks = ceil_div(g.m, EV_NHWC_NR), parts = min(threads, blocks), rows, few, most
    cdef bint heavy = g.m * g.kernel_d * g.kernel_h * g.kernel_w > g.h * g.w
    g.parts = 1
    if threads <= 1 or n * ceil_div(h, band) >= 2 * threads:
        return band
    rows = min(band, ceil_div(h, ceil_div(2 * threads, n)))
    few = min(band, ceil_div(h, ceil_div(threads, n)))
    if longest(n, h, few, threads) < longest(n, h, rows, threads):
        rows = few
    most = longest(n, h, rows, threads) * blocks
    if n * ceil_div(h, band) < threads and ceil_div(blocks, parts) * n * h < most + heavy:
        g.parts = parts
        return band
    return rows


cdef bint make_geometry(Geometry *g, const int64_t *v, int32_t threads) noexcept nogil:
    """False where `linear` does not take the window."""
    cdef int64_t row, at, size, positions, lanes
    take_window(g, v, False)
    g.rows = g.dilation_w == 1 or g.kernel_w == 1
    g.segments = g.kernel_d * g.kernel_h * (1 if g.rows else g.kernel_w)
    g.quads = ceil_div(g.c * (g.kernel_w if g.rows else 1), 4)
    g.halves = (g.pool_w == 2 and 2 * g.m <= EV_NHWC_VECTOR and g.rows and not g.any_type
                and g.c * (g.kernel_w + g.stride_w) <= 4 * g.quads)
    g.presum = min(v[I_PRESUM], <int64_t> (1 if g.quads % 2 else 2))
    g.staged = not (g.x_last and not g.wide and g.pad_d == g.pad_h == g.pad_w == 0
                    and g.c % 4 == 0 and (g.out_d - 1) * g.stride_d + (g.kernel_d - 1) * g.dilation_d < g.d
                    and reach_h(g, g.out_h) <= g.h and reach_w(g) <= g.w)
    if g.n * g.out_d * g.out_h * g.pool_h * g.out_w * g.pool_w * g.turns * g.m * 4 * g.quads * g.segments < 2 * MACS_PER_TASK:
        threads = 1
    g.winograd = v[I_SMALL] and takes_winograd(g)
    g.limbs = v[I_SIZE] == 2
    g.staged = g.staged or g.winograd            # whole tiles, of bytes
    g.pitch = reach_w(g) if g.staged else g.w
    if g.winograd:
        g.pitch = up_to(g.out_w, 4) + 2
    g.widens = g.wide and not g.winograd
    size = 2 if g.widens else 1
    row = g.pitch * g.c * size
    if row * g.stride_h * g.pool_h > (1 << 24) or reach_h(g, 1) * row > (1 << 28) or g.segments > MOST_SEGMENTS:
        return False
    g.band = min(g.out_h, max(<int64_t> 1, (BAND_BYTES // (g.kernel_d * row) - reach_h(g, 1)) // (g.stride_h * g.pool_h) + 1))
    g.chunks = min(g.out_d, ceil_div(2 * threads, g.n * ceil_div(g.out_h, g.band))) if threads > 1 else 1
    g.chunk = ceil_div(g.out_d, g.chunks)
    g.chunks = ceil_div(g.out_d, g.chunk)
    if not g.winograd:
        g.band = share(g, g.out_h, g.band, threads)
    g.bands = ceil_div(g.out_h, g.band)
    g.band = ceil_div(g.out_h, g.bands)
    if g.winograd:
        plan_winograd(g, threads)
    g.plane = (reach_h(g, g.band) * g.pitch if g.staged else g.h * g.w) * g.c
    if g.kernel_d * g.dilation_d * g.plane * size > (1 << 30):
        return False
    g.at_add = 0
    g.each = up_to(g.m, EV_NHWC_VECTOR)
    g.at_scale = up_to(4 * g.each * g.turns, 64)
    g.shared = 2 * g.at_scale
    g.at_stage = 0
    at = up_to(g.kernel_d * g.plane * size + SLACK, 64) if g.staged else 0
    g.limb = at
    at += at if g.limbs else 0
    g.at_line = at
    g.whole = not g.x_last and g.d == g.bands == 1 and g.h * g.w * g.c <= WHOLE_BYTES
    if g.limbs and not g.whole:
        return False
    at += up_to((g.h if g.whole else 1) * g.w * g.c * (4 if g.limbs else 1), 64) if g.staged and not g.x_last else 0
    g.at_row = at
    at += up_to(g.pitch * g.c, 64) if g.widens else 0
    g.at_y = at
    positions = up_to(g.band * g.out_w if g.winograd else min(g.band * g.out_w, <int64_t> POSITIONS), 8)
    lanes = EV_NHWC_NR if g.winograd else min(<int64_t> EV_NHWC_NR, g.each)
    at += 0 if g.y_last else positions * lanes * (4 if g.any_type else 1)
    g.at_upper = at
    at += positions * lanes * 4 if g.limbs else 0
    g.at_z = at
    if g.any_type:               # sums in rows, behind which 31 more are read
        at += (positions + 32) * lanes * 4
    elif not g.y_last:
        at += positions * lanes
    g.at_sums = at
    at += up_to(4 * (g.out_w * g.m + SLACK), 64) if g.sums else 0
    if g.winograd:
        g.at_v = up_to(at, 64)
        g.at_u = up_to(g.at_v + 72 * g.kernel_d * g.step_v, 64)
        g.at_o = up_to(g.at_u + 72 * g.step_u, 64)
        at = up_to(g.at_o + 144 * g.step_o, 64)
    g.slot = at
    return True


include "qnhwc_image.pxi"
include "qnhwc_dense.pxi"
include "qnhwc_winograd.pxi"


cdef int linear(const ev_call *c) noexcept nogil:
    """in: those of QLinearConv (or QLinearConvTranspose, see I_TURNS), then what pack_dense gives; out: y; ints: those
    of qwindow.pxd, then from I_X_LAST on; reals: activation parameters."""
    cdef Task t
    cdef Geometry *g = &t.g
    cdef int64_t turn, m, i, items
    cdef int32_t *add = <int32_t *> c.scratch
    cdef float *scale
    take_linear(c, &t.job)
    if t.job.o.y.size == 0:
        return EV_OK
    make_geometry(g, c.ints, c.threads)
    scale = <float *> (<char *> c.scratch + g.at_scale)
    t.zero[0] = t.job.x_zero
    if g.limbs:                  # as unsigned numbers: 256 * upper + lower - 32768
        t.job.x_zero += 32768
        t.zero[0], t.zero[1] = t.job.x_zero & 255, t.job.x_zero >> 8
    t.sums = <const int32_t *> c.in_[c.ints[I_INPUTS]].data
    t.w = <const int8_t *> (t.sums + g.turns * g.each)
    memset(c.scratch, 0, g.shared)
    for turn in range(g.turns):
        for m in range(g.m // g.result):
            i = turn * g.each + m * g.result
            row_factors(&t.job, g.result, t.sums + i, add + i, scale + i)
    if g.halves:
        memcpy(add + EV_NHWC_VECTOR // 2, add, g.m * sizeof(int32_t))
    items = g.n * g.chunks * g.bands * g.parts
    i = MACS_PER_TASK // max(1, t.job.o.y.size * 4 * g.quads * g.segments // items)
    parallel_for(winograd_items if g.winograd else dense_items, &t, items, max(1, i), c.threads)
    return EV_OK


include "qnhwc_columns.pxi"


include "qnhwc_moves.pxi"


# At load time --------------------------------------------------------------------------------------------------------

def wide() -> bool:
    """Whether this instruction set wants images as int16."""
    cdef int has = 0
    K.nhwc_has(&has)
    return has == EV_NHWC_WIDE


def pools(int64_t positions) -> bool:
    """Whether `linear` gives the largest result of so many positions, whose results are not kept."""
    cdef int has = 0
    K.nhwc_has(&has)
    return has == EV_NHWC_BYTES and positions <= MOST_POOL


cdef int read_ints(ints, int64_t *values) except -1:
    cdef int i
    for i in range(ALL_INTS):
        values[i] = ints[i]
    return 0


def small_sums(weights, int flip) -> bool:
    """Whether sums of products of these weights (as for pack_dense) with bytes are below 2^25, for any bytes."""
    import numpy

    cdef int64_t m = weights.shape[0], k = weights.size // max(1, m), first = 0, rows, i
    cdef int64_t step = max(1, 32768 // max(1, k))  # what is made of weights stays in the core's nearest cache
    if 255 * 128 * k < 1 << 25:
        return True
    matrix = weights.reshape(m, k)
    zeros = numpy.zeros((step, k), numpy.int8)  # a matrix, with which NumPy compares by vectors
    found = numpy.empty((2, step), numpy.int32)
    cdef int32_t *above = <int32_t *> address(found)
    cdef int32_t *all_ = above + step
    while first < m:
        part = matrix[first : first + step]
        part = (part ^ flip).view(numpy.int8) if flip else part
        rows = part.shape[0]
        positive = numpy.maximum(part, zeros[:rows])
        K.qrow_sums(rows, k, <const int8_t *> address(positive), k, False, above)
        K.qrow_sums(rows, k, <const int8_t *> address(part), k, False, all_)
        for i in range(rows):
            if 255 * max(<int64_t> above[i], <int64_t> above[i] - all_[i]) >= 1 << 25:
                return False
        first += rows
    return True


def winograd(ints) -> bool:
    """Whether `linear` is Winograd's convolution for these, with weights in pairs."""
    cdef int64_t[ALL_INTS] values
    cdef Geometry g
    read_ints(ints, values)
    make_geometry(&g, values, 1)
    return g.winograd


def scratch_bytes(ints, int32_t threads, bint depthwise) -> int:
    """Scratch bytes of `linear` or `depthwise`, or -1 where they do not take the window."""
    cdef int64_t[ALL_INTS] values
    cdef Geometry g
    cdef Columns by_columns
    read_ints(ints, values)
    if values[I_C] == 0 or values[I_M] == 0:
        return -1
    if depthwise:
        return by_columns.shared + threads * by_columns.slot if make_columns(&by_columns, values, threads) else -1
    if not make_geometry(&g, values, threads):
        return -1
    return g.shared + threads * g.slot


cdef void pack_rows(const Geometry *g, const uint8_t *w, int flip, int32_t *sums, int8_t *to, int8_t *lines) noexcept nogil:
    """The dense weights [m, c, kernel]. lines: zeros for what lies side by side in a vector, EV_NHWC_VECTOR channels in
    quads, and behind it room for twice a channel's weights."""
    cdef int64_t m, block, vectors, step, s, q, i, n, taps = g.kernel_d * g.kernel_h * g.kernel_w, length = 4 * g.quads
    cdef int64_t run = g.c * (g.kernel_w if g.rows else 1), all_ = g.c * taps, pitch = length * g.segments
    cdef int8_t *packed = lines + EV_NHWC_VECTOR * pitch
    cdef int8_t *at
    cdef int8_t *from_
    for m in range(g.m):
        i = m % EV_NHWC_VECTOR
        K.qc_weights(all_, 1, flip, w + m * all_, packed if taps == 1 else packed + all_, &sums[m])
        if taps > 1:
            K.move_transpose(1, taps, g.c, packed + all_, taps, packed, g.c)
        for s in range(g.segments):
            memcpy(lines + i * pitch + s * length, packed + s * run, run)
        if i + 1 < EV_NHWC_VECTOR and m + 1 < g.m:
            continue
        n = i + 1
        block = m // EV_NHWC_NR
        vectors = min(<int64_t> 4, ceil_div(g.m - block * EV_NHWC_NR, EV_NHWC_VECTOR))
        step = 4 * EV_NHWC_VECTOR * vectors
        at = to + block * EV_NHWC_NR * pitch + m % EV_NHWC_NR // EV_NHWC_VECTOR * 4 * EV_NHWC_VECTOR
        for s in range(g.segments):
            from_ = lines + s * length
            if g.wide:                   # pairs, and those that follow them half a vector on
                for q in range(g.quads):
                    for i in range(n):
                        memcpy(at + q * step + 2 * i, from_ + i * pitch + 4 * q, 2)
                        memcpy(at + q * step + 2 * i + 2 * EV_NHWC_VECTOR, from_ + i * pitch + 4 * q + 2, 2)
            else:
                K.move_transpose(4, g.quads, n, from_, pitch // 4, at, step // 4)
            at += g.quads * step


cdef void pack_halves(const Geometry *g, int8_t *w) noexcept nogil:
    """The packed weights of the first half of channels, as the positions of the next column meet them, to the second."""
    cdef int64_t s, i, m, to
    for s in range(g.segments):
        for i in range(g.c * g.kernel_w):
            to = i + g.c * g.stride_w
            for m in range(g.m):
                w[to // 4 * 4 * EV_NHWC_VECTOR + 2 * EV_NHWC_VECTOR + 4 * m + to % 4] = (
                    w[i // 4 * 4 * EV_NHWC_VECTOR + 4 * m + i % 4])
        w += 4 * EV_NHWC_VECTOR * g.quads


def pack_dense(weights, int flip, ints):
    """What `linear` needs of the weights, [M, C, kernel...] of bytes (flip: 0x80 for uint8; of a transposed convolution
    [kernel's rows, columns, M, C]): sums of each channel, then blocks as in ukr/qnhwc.h, as int8 at an address that is
    a multiple of 64. Raises MemoryError."""
    import numpy

    cdef int64_t[ALL_INTS] values
    cdef Geometry g
    read_ints(ints, values)
    make_geometry(&g, values, 1)
    cdef int64_t turn, each = g.each * (9 * g.kernel_d * g.c if g.winograd else 4 * g.quads * g.segments), bytes_ = g.turns * (4 * g.each + each)
    cdef int64_t all_ = g.c * g.kernel_d * g.kernel_h * g.kernel_w
    found = _aligned(numpy, bytes_)
    weights = numpy.ascontiguousarray(weights)
    cdef char *to = <char *> address(found)
    cdef const uint8_t *w = <const uint8_t *> address(weights)
    cdef int64_t side = EV_NHWC_VECTOR * 4 * g.quads * g.segments  # channels side by side
    cdef int8_t *line = <int8_t *> malloc(side + 2 * all_ + 64)
    if line == NULL:
        raise MemoryError()
    memset(to, 0, bytes_)
    memset(line, 0, side)
    if g.winograd:
        pack_kernels(&g, w, flip, <int32_t *> to, <int8_t *> (to + 4 * g.each), line)
    for turn in range(0 if g.winograd else g.turns):
        pack_rows(&g, w + turn * g.m * all_, flip, <int32_t *> to + turn * g.each,
                  <int8_t *> (to + 4 * g.turns * g.each) + turn * each, line)
    if g.halves:
        pack_halves(&g, <int8_t *> (to + 4 * g.each))
    free(line)
    return found


def cycle_of(ints) -> int:
    """After how many bytes the weights of pack_depthwise repeat: plans for images of other sizes may differ in that."""
    cdef int64_t[ALL_INTS] values
    cdef Columns g
    read_ints(ints, values)
    make_columns(&g, values, 1)
    return g.cycle


def pack_depthwise(weights, int flip, ints):
    """The same for `depthwise`, from [C, 1, kernel...], without the sums."""
    import numpy

    cdef int64_t[ALL_INTS] values
    cdef Columns g
    read_ints(ints, values)
    make_columns(&g, values, 1)
    weights = numpy.ascontiguousarray(weights)
    found = _aligned(numpy, g.items * g.w.kernel_w * g.cycle * 4)
    found[:] = 0
    pack_columns(&g, <const uint8_t *> address(weights), flip, <int8_t *> address(found))
    return found


def _aligned(numpy, int64_t bytes_):
    """An int8 array at an address that is a multiple of 64."""
    array = numpy.empty(bytes_ + 63, numpy.int8)
    first = (64 - <size_t> address(array) % 64) % 64
    return array[first : first + bytes_]


DRIVERS = {}
register(DRIVERS, "linear", linear)
register(DRIVERS, "winograd", linear)
register(DRIVERS, "depthwise", depthwise)
register(DRIVERS, "max_pool", max_pool)
register(DRIVERS, "nearest", nearest)
