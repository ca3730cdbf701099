"""Drivers that resample quantized images: a regular grid (as `resize` in interpolate.pyx), and colours through a
three-dimensional table. Numbers are blended in float32, each operation rounded by itself."""
from libc.math cimport isfinite
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t
from evort._kernels.core cimport (EV_BAD_ARGUMENT, EV_FLOAT, EV_INT8, EV_INT16, EV_OK, EV_QADD, EV_UINT8, EV_UINT16,
                                  EV_UNSUPPORTED, ev_call, ev_item_size, ev_place, ev_ukr, parallel_for, register,
                                  ukernels)

cdef const ev_ukr *K = ukernels()

cdef enum:
    POINTS = 256    # of a block
    LANES = 4       # channels that are blended together
    GRAIN = 16384


cdef inline int32_t lowest(int dtype) noexcept nogil:
    return -128 if dtype == EV_INT8 else -32768 if dtype == EV_INT16 else 0


cdef inline int32_t highest(int dtype) noexcept nogil:
    return 127 if dtype == EV_INT8 else 255 if dtype == EV_UINT8 else 32767 if dtype == EV_INT16 else 65535


# The result's type, zero point and bounds, and what a number is multiplied by on its way out.
cdef struct Out:
    int dtype
    int32_t zero, low, high
    float factor


cdef Out out_of(const int64_t *ints, double factor) noexcept nogil:
    """From (type, zero point, smallest, largest)."""
    cdef Out o
    o.dtype, o.zero, o.low, o.high = <int> ints[0], <int32_t> ints[1], <int32_t> ints[2], <int32_t> ints[3]
    o.factor = <float> factor
    return o


cdef void leave(const Out *o, int64_t n, const float *x, char *y) noexcept nogil:
    cdef int64_t i
    if o.dtype == EV_FLOAT:
        for i in range(n):
            (<float *> y)[i] = x[i] * o.factor
    else:
        K.q_round(o.dtype, n, x, o.factor, o.zero, o.low, o.high, y)


# Regular grids ---------------------------------------------------------------------------------------------------

include "resize_levels.pxi"

cdef struct Resize:
    int64_t levels, inner, item, line, worker
    int dtype
    int32_t zero
    Out out
    Level level[MAX_LEVELS]
    const char *x
    char *y
    float *scratch


cdef void resampled(const Resize *r, int64_t at, const char *x, float *ring, float *line, float *y) noexcept nogil:
    """Axis `at` and those behind it, for one input slice."""
    cdef const Level *v = &r.level[at]
    cdef int64_t o, window = -1
    cdef float one = 1.0
    if at == r.levels - 1:
        K.q_dequantize(r.dtype, v.size * r.inner, x, &one, &r.zero, 0, line)
        K.q_line_f32(v.out, v.taps, r.inner, line, v.first, v.w, y)
        return
    for o in range(v.out):
        window = blended(r, at, x, o, window, ring, line, y + o * v.behind)


cdef int64_t blended(const Resize *r, int64_t at, const char *x, int64_t o, int64_t window, float *ring, float *line,
                     float *y) noexcept nogil:
    """Output index o of axis `at`, which is not the last: the weighted sum of the window's slices.

    Slice i, once resampled, lies in slot i % taps of the axis's ring; those of the window that begins at `window` (-1
    for none) are there already. Returns where the new window begins."""
    cdef const Level *v = &r.level[at]
    cdef const float *w = v.w + o * v.taps
    cdef int64_t first = v.first[o], i, n = v.behind
    cdef float *slots = ring + v.ring
    for i in range(first, first + v.taps):
        if window < 0 or i < window or i >= window + v.taps:
            resampled(r, at + 1, x + i * v.source * r.item, ring, line, slots + i % v.taps * n)
    if v.taps == 1:
        K.q_combine_f32(EV_QADD, n, slots, slots, w[0], 0.0, y)
        return first
    K.q_combine_f32(EV_QADD, n, slots + first % v.taps * n, slots + (first + 1) % v.taps * n, w[0], w[1], y)
    for i in range(2, v.taps):
        K.q_combine_f32(EV_QADD, n, y, slots + (first + i) % v.taps * n, 1.0, w[i], y)
    return first


cdef void resize_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const Resize *r = <const Resize *> ctx
    cdef const Level *v = &r.level[0]
    cdef float *line = r.scratch + worker * r.worker
    cdef float *real = line + r.line
    cdef float *ring = real + (v.behind * v.out if r.levels == 1 else v.behind)
    cdef int64_t k, o, window = -1, size = ev_item_size(r.out.dtype)
    for k in range(begin, end):
        if r.levels == 1:
            resampled(r, 0, r.x + k * v.size * v.source * r.item, ring, line, real)
            leave(&r.out, v.out * v.behind, real, r.y + k * v.out * v.behind * size)
            continue
        o = k % v.out
        window = blended(r, 0, r.x + k // v.out * v.size * v.source * r.item, o, window if o > 0 else -1, ring, line,
                         real)
        leave(&r.out, v.behind, real, r.y + k * v.behind * size)


cdef int resize(const ev_call *c) noexcept nogil:
    """in: X [outer, axes, inner]; out: Y, resampled along each axis.

    ints: (type of X, zero point of X, type and zero point of Y, smallest and largest Y, floats of a worker, then as
    `resize` in interpolate.pyx); reals: (X's scale in units of Y's, then the windows' weights). scratch: the weights as
    float32, then for every worker a line of X, a slice of Y and the rings."""
    cdef Resize r
    cdef const int64_t *ints = c.ints + 7
    cdef int64_t n = ints[0], k
    r.scratch = read_levels(ints, c.reals + 1, <float *> c.scratch, r.level)
    if r.scratch == NULL:
        return EV_UNSUPPORTED
    r.dtype, r.zero, r.out = <int> c.ints[0], <int32_t> c.ints[1], out_of(c.ints + 2, c.reals[0])
    r.levels, r.inner, r.item, r.worker = n, ints[2], ev_item_size(r.dtype), c.ints[6]
    r.x, r.y = <const char *> c.in_[0].data, <char *> c.out[0].data
    r.line = r.level[n - 1].size * r.inner
    k = ints[1] if n == 1 else ints[1] * r.level[0].out
    parallel_for(resize_chunk, &r, k, GRAIN // max(1, c.out[0].size // max(1, k)) + 1, c.threads)
    return EV_OK


# Colours ---------------------------------------------------------------------------------------------------------

cdef enum:
    # Where the integers of `lookup_table` are.
    T_N = 0, T_CHANNELS = 1, T_POINTS = 2, T_SIZE = 3, T_TABLE = 4, T_TABLE_ZERO = 5, T_IMAGE = 6, T_INTEGER = 7
    T_ZERO = 8, T_OUT = 9
    PLAIN = 0       # T_INTEGER of a float image whose numbers are taken as they are

# One run of `lookup_table`. bytes: places of all 256 numbers, for each axis; for images of bytes.
cdef struct Colours:
    const ev_call *c
    Out out
    const float *table
    float step
    int64_t blocks
    ev_place bytes[3][256]


cdef void pack_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """The table's channels, interleaved by fours, as numbers less the zero point."""
    cdef const Colours *q = <const Colours *> ctx
    cdef const ev_call *c = q.c
    cdef int64_t pixels = c.ints[T_SIZE] * c.ints[T_SIZE] * c.ints[T_SIZE], at, m, g, k
    cdef int dtype = <int> c.ints[T_TABLE], channels
    cdef int32_t zero = <int32_t> c.ints[T_TABLE_ZERO]
    cdef const char *x = <const char *> c.in_[0].data
    cdef float *y = <float *> c.scratch
    cdef float one = 1.0
    cdef float planes[LANES * POINTS]
    for g in range((c.ints[T_CHANNELS] + LANES - 1) // LANES):
        channels = <int> min(<int64_t> LANES, c.ints[T_CHANNELS] - g * LANES)
        at = begin
        while at < end:
            m = min(<int64_t> POINTS, end - at)
            if dtype == EV_FLOAT:
                K.interp_pack_f32(m, channels, <const float *> x + g * LANES * pixels + at, pixels,
                                  y + (g * pixels + at) * LANES)
            else:
                for k in range(channels):
                    K.q_dequantize(dtype, m, x + ((g * LANES + k) * pixels + at) * ev_item_size(dtype), &one, &zero, 0,
                                   planes + k * POINTS)
                K.interp_pack_f32(m, channels, planes, POINTS, y + (g * pixels + at) * LANES)
            at += m


cdef void places_of(const Colours *q, int64_t n, const char *x, int64_t stride, ev_place *place) noexcept nogil:
    """Those of n numbers of an image that is not of bytes."""
    cdef const ev_call *c = q.c
    cdef int image = <int> c.ints[T_IMAGE], integer = <int> c.ints[T_INTEGER]
    cdef int32_t zero = <int32_t> c.ints[T_ZERO]
    cdef float scale = <float> c.reals[1]
    cdef float real[POINTS]
    cdef int16_t quantized[POINTS]
    if integer == PLAIN:
        K.q_places(n, <const float *> x, q.step, c.ints[T_SIZE], stride, place)
        return
    if image == EV_FLOAT:
        K.q_quantize(integer, n, <const float *> x, &scale, &zero, 0, lowest(integer), highest(integer), quantized)
        x = <const char *> quantized
    K.q_dequantize(integer, n, x, &scale, &zero, 0, real)
    K.q_places(n, real, q.step, c.ints[T_SIZE], stride, place)


cdef void colour_blocks(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const Colours *q = <const Colours *> ctx
    cdef const ev_call *c = q.c
    cdef int64_t points = c.ints[T_POINTS], channels = c.ints[T_CHANNELS], size = c.ints[T_SIZE], block, image, at, n
    cdef int64_t g, item = ev_item_size(<int> c.ints[T_IMAGE]), pixels = size * size * size
    cdef int64_t out_item = ev_item_size(q.out.dtype)
    cdef bint plain = item == 1
    cdef int some, a
    cdef int64_t stride
    cdef ev_place found[3 * POINTS]
    cdef const ev_place *place[3]
    cdef const uint8_t *index[3]
    cdef const char *x
    cdef char *y
    cdef float colour[LANES * POINTS]
    cdef float planes[LANES * POINTS]
    for block in range(begin, end):
        image, at = block // q.blocks, block % q.blocks * POINTS
        n = min(<int64_t> POINTS, points - at)
        stride = LANES * sizeof(float)
        for a in range(2, -1, -1):  # the image's first channel is the place along the table's last axis
            x = <const char *> c.in_[1].data + ((image * 3 + 2 - a) * points + at) * item
            place[a] = &q.bytes[a][0] if plain else &found[a * POINTS]
            index[a] = <const uint8_t *> x
            if not plain:
                places_of(q, n, x, stride, found + a * POINTS)
            stride *= size
        for g in range((channels + LANES - 1) // LANES):
            some = <int> min(<int64_t> LANES, channels - g * LANES)
            K.q_colours(n, q.table + g * pixels * LANES, place, index if plain else NULL, colour)
            K.interp_unpack_f32(n, some, colour, planes, POINTS)
            for a in range(some):
                y = <char *> c.out[0].data + ((image * channels + g * LANES + a) * points + at) * out_item
                leave(&q.out, n, planes + a * POINTS, y)


cdef int lookup_table(const ev_call *c) noexcept nogil:
    """in: table [C, D, D, D], image [N, 3, points], bin size; out: Y [N, C, points]; scratch: the table interleaved.

    ints: (N, C, points, D, type and zero point of the table, type of the image, its integer type (PLAIN where float
    numbers are not quantized), its zero point, type and zero point of Y, smallest and largest Y); reals: (the table's
    scale in units of Y's, the image's scale)."""
    cdef Colours q
    cdef int64_t size = c.ints[T_SIZE], i, stride
    cdef int32_t zero = <int32_t> c.ints[T_ZERO]
    cdef int integer = <int> c.ints[T_INTEGER], a
    cdef float scale = <float> c.reals[1]
    cdef float real[256]
    cdef uint8_t every[256]
    q.c, q.out, q.table = c, out_of(c.ints + T_OUT, c.reals[0]), <const float *> c.scratch
    q.step = (<const float *> c.in_[2].data)[0]
    if not (q.step > 0 and isfinite(q.step)):
        return EV_BAD_ARGUMENT
    if ev_item_size(<int> c.ints[T_IMAGE]) == 1:
        for i in range(256):
            every[i] = <uint8_t> i
        K.q_dequantize(integer, 256, every, &scale, &zero, 0, real)
        stride = LANES * sizeof(float)
        for a in range(2, -1, -1):
            K.q_places(256, real, q.step, size, stride, q.bytes[a])
            stride *= size
    parallel_for(pack_chunk, &q, size * size * size, GRAIN, c.threads)
    q.blocks = (c.ints[T_POINTS] + POINTS - 1) // POINTS
    parallel_for(colour_blocks, &q, c.ints[T_N] * q.blocks, 4, c.threads)
    return EV_OK


DRIVERS = {}
register(DRIVERS, "resize", resize)
register(DRIVERS, "lookup_table", lookup_table)
