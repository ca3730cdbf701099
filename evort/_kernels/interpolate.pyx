"""Drivers of the interpolation family, on one core.

A coordinate along one axis gives *taps*: 1, 2 or 4 elements and the weight of each. There are two ways to go on:

    points anywhere                               a regular grid
    (GridSample, lookup table, RoiAlign)          (Resize)

    coordinates --interp_taps--> taps of an axis  taps of every output index, from evort.ops.interpolate.Table
    taps --interp_corners--> corners: the         one pass an axis: innermost lines by interp_line, the others by
        combinations of taps, an offset and a         interp_rows over a ring of the lines, planes, ... that the
        weight each                                   current window holds
    corners --interp_blend--> 4 channels of
        a point at once

Blends read an image whose channels are interleaved by fours (interp_pack, into scratch), so that a corner is one
16-byte load whatever the order of the points; behind its last pixel lies one of zeros, which corners outside the
image point to. Points go in blocks of EV_POINTS. An operator only says where its coordinates come from and what
becomes of the blended values (interp_unpack into planes, or RoiAlign's average and maximum).
"""
from libc.math cimport INFINITY, ceilf, isfinite
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.string cimport memset
from evort._kernels.core cimport (
    EV_BAD_ARGUMENT, EV_BAD_INDEX, EV_OK, EV_UNSUPPORTED, ev_axis, ev_call, ev_ukr, parallel_for, register, ukernels,
)

cdef const ev_ukr *K = ukernels()

cdef enum:
    # As in interpolate.h.
    POINTS = 64
    LANES = 4
    PIXEL_BYTES = 16
    MAX_TAPS = 4
    MAX_CORNERS = 64
    # As in evort.ops.sample.
    BATCH = 16  # GROUPS * LANES
    MAX_BINS = 2048
    GRAIN_BLOCKS = 16


# Points anywhere -------------------------------------------------------------------------------------------------

cdef struct Sampler:
    int axes, taps, align, corners
    int64_t pixels          # of an image plane; also the number of the pixel of zeros
    ev_axis axis[3]         # from the outermost

# The corners of a block of points, and room for what leads to them.
cdef struct Block:
    float x[3 * POINTS]     # coordinates: axis by axis
    int32_t at[3 * MAX_TAPS * POINTS]
    float w[3 * MAX_TAPS * POINTS]
    uint32_t offset[MAX_CORNERS * POINTS]
    float weight[MAX_CORNERS * POINTS]
    float y[LANES * POINTS]
    float other[LANES * POINTS]


cdef int sampler(Sampler *s, const int64_t *ints) noexcept nogil:
    """From (axes, taps, padding, align, sizes). Returns 0, or -1 where there is no such sampler."""
    cdef int i
    cdef ev_axis *a
    s.axes, s.taps, s.align = <int> ints[0], <int> ints[1], <int> ints[3]
    if s.axes < 1 or s.axes > 3 or s.taps < 1 or s.taps > MAX_TAPS:
        return -1
    s.pixels = 1
    s.corners = 1
    for i in range(s.axes - 1, -1, -1):
        a = &s.axis[i]
        a.size = <int32_t> ints[4 + i]
        a.stride = <int32_t> s.pixels * PIXEL_BYTES
        a.taps = s.taps
        a.padding = <int32_t> ints[2]
        a.low = 0 if s.align else <float> -0.5
        a.high = <float> (a.size - 1) if s.align else <float> (a.size - 0.5)
        s.pixels *= a.size
        s.corners *= s.taps
    return 0


cdef void find_corners(const Sampler *s, Block *b) noexcept nogil:
    """Corners of the points whose coordinates are in b.x."""
    cdef int i
    for i in range(s.axes):
        K.interp_taps_f32(&s.axis[i], b.x + i * POINTS, b.at + i * MAX_TAPS * POINTS, b.w + i * MAX_TAPS * POINTS)
    K.interp_corners_f32(s.axes, s.taps, b.at, b.w, <int32_t> s.pixels * PIXEL_BYTES, b.offset, b.weight)


cdef inline int lanes_of(int64_t channels, int64_t group) noexcept nogil:
    cdef int64_t left = channels - group * LANES
    return <int> (left if left < LANES else LANES)


# Planes to interleave: x [channels, pixels] to y [groups, pixels + 1, LANES].
cdef struct Packing:
    const float *x
    float *y
    int64_t channels, pixels


cdef void pack_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef Packing *p = <Packing *> ctx
    cdef int64_t g
    for g in range((p.channels + LANES - 1) // LANES):
        K.interp_pack_f32(end - begin, lanes_of(p.channels, g), p.x + g * LANES * p.pixels + begin, p.pixels,
                          p.y + (g * (p.pixels + 1) + begin) * LANES)


cdef void pack(const float *x, float *y, int64_t channels, int64_t pixels, int32_t threads) noexcept nogil:
    cdef Packing p
    cdef int64_t g
    p.x, p.y, p.channels, p.pixels = x, y, channels, pixels
    parallel_for(pack_chunk, &p, pixels, 8192, threads)
    for g in range((channels + LANES - 1) // LANES):
        memset(y + (g * (pixels + 1) + pixels) * LANES, 0, LANES * sizeof(float))


# Points of one image and up to BATCH of its channels.
cdef struct Sampling:
    Sampler s
    const float *source     # interleaved
    const float *points     # GridSample: [points, axes], the innermost axis first; lookup table: [axes, points]
    float *y                # [channels, points]
    int64_t channels, n_points
    float bin_size          # lookup table; 0 for GridSample


cdef void sample_blocks(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef Sampling *q = <Sampling *> ctx
    cdef const Sampler *s = &q.s
    cdef Block b
    cdef int64_t k, i, n, first, g
    cdef int axis
    cdef float *x
    cdef const float *from_
    cdef float per_bin = 1 / q.bin_size if q.bin_size != 0 else 0
    for k in range(begin, end):
        first = k * POINTS
        n = q.n_points - first
        n = n if n < POINTS else POINTS
        for axis in range(s.axes):
            x = b.x + (s.axes - 1 - axis) * POINTS
            if q.bin_size == 0:
                K.interp_place_f32(n, q.points + first * s.axes + axis, s.axes, s.axis[s.axes - 1 - axis].size,
                                   s.align, x)
            else:
                from_ = q.points + axis * q.n_points + first
                for i in range(n):
                    x[i] = from_[i] * per_bin
                for i in range(n, POINTS):
                    x[i] = 0
        find_corners(s, &b)
        for g in range((q.channels + LANES - 1) // LANES):
            K.interp_blend_f32(n, s.corners, q.source + g * (s.pixels + 1) * LANES, b.offset, b.weight, b.y)
            K.interp_unpack_f32(n, lanes_of(q.channels, g), b.y, q.y + g * LANES * q.n_points + first, q.n_points)


cdef void sample(Sampling *q, const float *points, float *y, int64_t channels, int32_t threads) noexcept nogil:
    q.points, q.y, q.channels = points, y, channels
    parallel_for(sample_blocks, q, (q.n_points + POINTS - 1) // POINTS, GRAIN_BLOCKS, threads)


cdef int grid_sample(const ev_call *c) noexcept nogil:
    """in: X [N, C, D1, ..., Dr], grid [N, points, r]; out: Y [N, C, points]; scratch: interleaved channels.
    ints: (N, C, points, r, taps, padding, align, r sizes)."""
    cdef int64_t channels = c.ints[1], n, batch, done, some
    cdef const float *x = <const float *> c.in_[0].data
    cdef float *y = <float *> c.out[0].data
    cdef Sampling q
    q.n_points = c.ints[2]
    q.bin_size = 0
    q.source = <float *> c.scratch
    if sampler(&q.s, c.ints + 3) != 0:
        return EV_UNSUPPORTED
    if q.n_points == 0:
        return EV_OK
    for n in range(c.ints[0]):
        for batch in range((channels + BATCH - 1) // BATCH):
            done = batch * BATCH
            some = channels - done
            some = some if some < BATCH else BATCH
            pack(x + (n * channels + done) * q.s.pixels, <float *> c.scratch, some, q.s.pixels, c.threads)
            sample(&q, <const float *> c.in_[1].data + n * q.n_points * q.s.axes,
                   y + (n * channels + done) * q.n_points, some, c.threads)
    return EV_OK


cdef int lookup_table(const ev_call *c) noexcept nogil:
    """in: table [C, D, D, D], image [N, 3, points], bin size; out: Y [N, C, points]; scratch: interleaved table.
    ints: (N, C, points, then as grid_sample)."""
    cdef int64_t channels = c.ints[1], n, batch, done, some
    cdef const float *table = <const float *> c.in_[0].data
    cdef float *y = <float *> c.out[0].data
    cdef Sampling q
    q.n_points = c.ints[2]
    q.bin_size = (<const float *> c.in_[2].data)[0]
    q.source = <float *> c.scratch
    if not (q.bin_size > 0 and isfinite(q.bin_size)):
        return EV_BAD_ARGUMENT
    if sampler(&q.s, c.ints + 3) != 0:
        return EV_UNSUPPORTED
    for batch in range((channels + BATCH - 1) // BATCH):
        done = batch * BATCH
        some = channels - done
        some = some if some < BATCH else BATCH
        pack(table + done * q.s.pixels, <float *> c.scratch, some, q.s.pixels, c.threads)
        for n in range(c.ints[0]):
            sample(&q, <const float *> c.in_[1].data + n * 3 * q.n_points,
                   y + (n * channels + done) * q.n_points, some, c.threads)
    return EV_OK


# RoiAlign --------------------------------------------------------------------------------------------------------

# Up to BATCH channels of all images, from number `first` on.
cdef struct Regions:
    const ev_call *c
    Sampler s
    int64_t first, channels
    int status

# Along one axis of a region: where it starts, the length of a bin, and how many points sample it.
cdef struct Side:
    float start, step
    int64_t points


cdef int side(float start, float end, const ev_call *c, int64_t bins, Side *found) noexcept nogil:
    cdef float scale = <float> c.reals[0], length
    cdef bint half = c.ints[6] != 0
    start = start * scale - (<float> 0.5 if half else <float> 0)
    end = end * scale - (<float> 0.5 if half else <float> 0)
    length = end - start
    if not half and length < 1:
        length = 1
    if not isfinite(start) or not isfinite(length) or length / bins > MAX_BINS:
        return -1
    found.start = start
    found.step = length / bins
    found.points = c.ints[5]
    if found.points == 0:
        found.points = <int64_t> ceilf(found.step) if found.step > 0 else 0
    return 0


cdef inline float point(const Side *s, int64_t bin, int64_t k) noexcept nogil:
    return s.start + bin * s.step + (k + <float> 0.5) * s.step / s.points


cdef void pool_region(const Regions *q, const float *source, const Side *tall, const Side *wide,
                      float *y) noexcept nogil:
    """The bins of one region, y [channels, height, width]. Points go bin by bin, so that one sum is open at a time."""
    cdef int64_t height = q.c.ints[3], width = q.c.ints[4], groups = (q.channels + LANES - 1) // LANES
    cdef int64_t in_bin = tall.points * wide.points, total = in_bin * height * width
    cdef int64_t n, i, k, row = 0, column = 0, bin = 0, done = 0, g
    cdef bint largest = q.c.ints[7] != 0
    cdef int corner, lane
    cdef float open_[BATCH]
    cdef float value
    cdef float *into
    cdef Block b
    if in_bin == 0:
        memset(y, 0, <size_t> (q.channels * height * width) * sizeof(float))
        return
    for i in range(BATCH):
        open_[i] = -INFINITY if largest else 0
    while done < total:
        n = total - done
        n = n if n < POINTS else POINTS
        for i in range(POINTS):
            b.x[i] = point(tall, bin // width, row) if i < n else 0
            b.x[POINTS + i] = point(wide, bin % width, column) if i < n else 0
            column += 1
            if column == wide.points:
                column = 0
                row += 1
                if row == tall.points:
                    row = 0
                    bin += 1
        find_corners(&q.s, &b)
        for g in range(groups):
            k = done
            if largest:  # ONNX takes the largest of the weighted corners, not of the points
                for corner in range(4):
                    into = b.y
                    if corner > 0:
                        into = b.other
                    K.interp_blend_f32(n, 1, source + g * (q.s.pixels + 1) * LANES, b.offset + corner * POINTS,
                                       b.weight + corner * POINTS, into)
                    if corner > 0:
                        for i in range(n * LANES):
                            value = b.other[i]
                            b.y[i] = value if value > b.y[i] or value != value else b.y[i]
            else:
                K.interp_blend_f32(n, 4, source + g * (q.s.pixels + 1) * LANES, b.offset, b.weight, b.y)
            for i in range(n):
                for lane in range(LANES):
                    value = b.y[i * LANES + lane]
                    if not largest:
                        open_[g * LANES + lane] += value
                    elif value > open_[g * LANES + lane] or value != value:
                        open_[g * LANES + lane] = value
                k += 1
                if k % in_bin == 0:
                    for lane in range(LANES):
                        if g * LANES + lane < q.channels:
                            value = open_[g * LANES + lane]
                            y[(g * LANES + lane) * height * width + k // in_bin - 1] = (
                                value if largest else value / in_bin)
                        open_[g * LANES + lane] = -INFINITY if largest else 0
        done += n


cdef void regions_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef Regions *q = <Regions *> ctx
    cdef const ev_call *c = q.c
    cdef int64_t height = c.ints[3], width = c.ints[4], r, image
    cdef int64_t image_items = (q.channels + LANES - 1) // LANES * (q.s.pixels + 1) * LANES
    cdef const float *roi
    cdef Side tall, wide
    for r in range(begin, end):
        roi = <const float *> c.in_[1].data + 4 * r
        image = (<const int64_t *> c.in_[2].data)[r]
        if image < 0 or image >= c.ints[0]:
            q.status = EV_BAD_INDEX
            return
        if side(roi[0], roi[2], c, width, &wide) != 0 or side(roi[1], roi[3], c, height, &tall) != 0:
            q.status = EV_BAD_ARGUMENT
            return
        pool_region(q, <const float *> c.scratch + image * image_items, &tall, &wide,
                    <float *> c.out[0].data + (r * c.ints[1] + q.first) * height * width)


cdef int roi_align(const ev_call *c) noexcept nogil:
    """in: X [N, C, H, W], regions [R, 4], image numbers [R] (int64); out: Y [R, C, height, width].
    ints: (N, C, R, height, width, points of a bin's side or 0, half pixels, maximum, then as grid_sample from r on);
    reals: (spatial scale,); scratch: interleaved channels of all images."""
    cdef Regions q
    cdef int64_t n, batch, channels = c.ints[1]
    cdef const float *x = <const float *> c.in_[0].data
    q.c = c
    q.status = EV_OK
    if sampler(&q.s, c.ints + 8) != 0:
        return EV_UNSUPPORTED
    if c.out[0].size == 0:
        return EV_OK
    for batch in range((channels + BATCH - 1) // BATCH):
        q.first = batch * BATCH
        q.channels = channels - q.first
        q.channels = q.channels if q.channels < BATCH else BATCH
        for n in range(c.ints[0]):
            pack(x + (n * channels + q.first) * q.s.pixels,
                 <float *> c.scratch + n * ((q.channels + LANES - 1) // LANES * (q.s.pixels + 1) * LANES), q.channels,
                 q.s.pixels, c.threads)
        parallel_for(regions_chunk, &q, c.ints[2], 4, c.threads)
        if q.status != EV_OK:
            return q.status
    return EV_OK


cdef int affine_grid(const ev_call *c) noexcept nogil:
    """in: theta [N, r, r + 1]; out: points [N, D1, ..., Dr, r]. ints: (N * D1 * ... lines, r, align, r sizes)."""
    cdef int64_t lines = c.ints[0], r = c.ints[1], line, i, j, k, rest, per_image = 1
    cdef bint align = c.ints[2] != 0
    cdef const int64_t *dims = c.ints + 3
    cdef const float *theta
    cdef float *y = <float *> c.out[0].data
    cdef double at[3]
    cdef double sum_
    if r < 2 or r > 3:
        return EV_UNSUPPORTED
    for i in range(r - 1):
        per_image *= dims[i]
    for line in range(lines):
        theta = <const float *> c.in_[0].data + line // per_image * r * (r + 1)
        rest = line % per_image
        for i in range(r - 2, -1, -1):
            at[r - 1 - i] = even(rest % dims[i], dims[i], align)
            rest //= dims[i]
        for j in range(dims[r - 1]):
            at[0] = even(j, dims[r - 1], align)
            for i in range(r):
                sum_ = theta[i * (r + 1) + r]
                for k in range(r):
                    sum_ += theta[i * (r + 1) + k] * at[k]
                y[i] = <float> sum_
            y += r
    return EV_OK


cdef inline double even(int64_t i, int64_t size, bint align) noexcept nogil:
    """The i-th of `size` evenly spaced points of [-1, 1]."""
    if align:
        return -1 + i * (2.0 / (size - 1)) if size > 1 else 0
    return (2 * i + 1.0) / size - 1


# Regular grids ---------------------------------------------------------------------------------------------------

include "resize_levels.pxi"

cdef struct Resize:
    int64_t levels, inner, rings
    Level level[MAX_LEVELS]
    const float *x
    float *y
    float *scratch


cdef void resampled(const Resize *r, int64_t at, const float *x, float *ring, float *y) noexcept nogil:
    """Axis `at` and those behind it, for one input slice."""
    cdef const Level *v = &r.level[at]
    cdef int64_t o, window = -1
    if at == r.levels - 1:
        K.interp_line_f32(v.out, v.taps, r.inner, x, v.first, v.w, y)
        return
    for o in range(v.out):
        window = blended(r, at, x, o, window, ring, y + o * v.behind)


cdef int64_t blended(const Resize *r, int64_t at, const float *x, int64_t o, int64_t window, float *ring,
                     float *y) noexcept nogil:
    """Output index o of axis `at`, which is not the last: the weighted sum of the window's slices.

    Slice i, once resampled, lies in slot i % taps of the axis's ring; those of the window that begins at `window` (-1
    for none) are there already. Returns where the new window begins."""
    cdef const Level *v = &r.level[at]
    cdef int64_t first = v.first[o], i
    for i in range(first, first + v.taps):
        if window < 0 or i < window or i >= window + v.taps:
            resampled(r, at + 1, x + i * v.source, ring, ring + v.ring + i % v.taps * v.behind)
    K.interp_rows_f32(v.behind, v.taps, ring + v.ring, first % v.taps, v.w + o * v.taps, y)
    return first


cdef void resize_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const Resize *r = <const Resize *> ctx
    cdef const Level *v = &r.level[0]
    cdef float *ring = r.scratch + worker * (r.rings + 16)
    cdef int64_t k = begin, o, n, window = -1
    cdef const float *x
    while k < end:
        o = k % v.out
        x = r.x + k // v.out * v.size * v.source
        if r.levels == 1:
            n = v.out - o if v.out - o < end - k else end - k
            K.interp_line_f32(n, v.taps, r.inner, x, v.first + o, v.w + o * v.taps, r.y + k * v.behind)
            k += n
            continue
        window = blended(r, 0, x, o, window if o > 0 else -1, ring, r.y + k * v.behind)
        k += 1


cdef int resize(const ev_call *c) noexcept nogil:
    """in: X [outer, axes, inner]; out: Y, resampled along each axis.

    ints: (axes n, outer, inner, elements of a worker's rings, n times (size, output size, taps), then for each axis
    where its windows begin); reals: the windows' weights, axis by axis. scratch: the weights as float32, then the
    rings of every worker: for each axis but the last, the slices of a window, resampled behind it."""
    cdef Resize r
    r.scratch = read_levels(c.ints, c.reals, <float *> c.scratch, r.level)
    if r.scratch == NULL:
        return EV_UNSUPPORTED
    r.levels, r.inner, r.rings = c.ints[0], c.ints[2], c.ints[3]
    r.x, r.y = <const float *> c.in_[0].data, <float *> c.out[0].data
    parallel_for(resize_chunk, &r, c.ints[1] * r.level[0].out, 16384 // r.level[0].behind + 1, c.threads)
    return EV_OK


DRIVERS = {}
register(DRIVERS, "grid_sample", grid_sample)
register(DRIVERS, "lookup_table", lookup_table)
register(DRIVERS, "roi_align", roi_align)
register(DRIVERS, "affine_grid", affine_grid)
register(DRIVERS, "resize", resize)
