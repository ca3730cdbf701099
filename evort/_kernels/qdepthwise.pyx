"""Driver of depthwise integer convolutions: one channel in, staged as qwindow.pyx has it, one or more maps out.

A few output rows at a time are one run of sums, the few columns between two rows included, so that narrow images fill
the vectors too; then the rows are moved together. With bytes, the taps of each map come as a program made ahead: pairs
of them in groups whose products add up within 16 bits.
"""
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memmove
from evort._kernels.core cimport (EV_FLOAT, EV_INT8, EV_OK, EV_QD_LANES, ev_call, ev_item_size, ev_qdmap, ev_qtaps, ev_ukr, parallel_for, register,
                                  ukernels)
from evort._kernels.qwindow cimport (CHUNK, I_INPUTS, MACS_PER_TASK, WIDE_K, Axis, Job, Plan, list_taps, make_plan,
                                     row_add, row_scale, stage, take_linear, zero_of)

cdef const ev_ukr *K = ukernels()

cdef enum:
    LIMIT = 128                  # weights of one sign in a group add up to this at most: 128 * 255 < 2^15
    MOST_TAPS = WIDE_K
    PIECES = 3                   # bytes that add up to any difference of two, of a weight and its zero point
    APART = 48                   # rows of so many results are finished where they lie


cdef int64_t weights_of(const Job *job, int64_t m, int16_t *to) noexcept nogil:
    """The weights of a map less their zero point; returns their sum."""
    cdef int64_t taps = job.plan.taps, zero = zero_of(job.o.w_zero, m) - job.w_shift, t, total = 0
    cdef const uint8_t *w = <const uint8_t *> job.o.w.data + m * taps
    for t in range(taps):
        to[t] = <int16_t> (<int8_t> (w[t] ^ job.w_flip) - zero)
        total += to[t]
    return total


cdef void rows(const Job *job, int64_t image, int64_t m, char *scratch, int64_t base, int64_t at, int64_t count,
               int64_t width) noexcept nogil:
    """`count` rows of results of a map, from element `base` of the staged image and `at` of the map's results on."""
    cdef const Plan *p = &job.plan
    cdef const Axis *a = &p.axis[0]
    cdef int64_t pitch = a[2].length, n = (count - 1) * pitch + width, i, total, add
    cdef int64_t whole = (n + EV_QD_LANES - 1) // EV_QD_LANES * EV_QD_LANES
    cdef const int32_t *offset = <const int32_t *> (scratch + p.at_offset)
    cdef int32_t *sum = <int32_t *> (scratch + p.at_sum)
    cdef int64_t *wide = NULL
    cdef int16_t *w = <int16_t *> (scratch + p.at_a)
    cdef int64_t y = (image * p.m + m) * a[0].out * a[1].out * a[2].out + at
    cdef const char *z = NULL
    cdef int64_t z_size = 0
    total = weights_of(job, m, w)
    if p.size == 1:
        K.qd_taps(whole, <const uint8_t *> scratch + base, offset, job.taps + job.starts[m],
                  job.starts[m + 1] - job.starts[m], sum)
    else:
        K.qd_taps_i16(whole, <const int16_t *> scratch + base, offset, w, p.taps, sum)
    add = row_add(job, m, total)
    if width < pitch and (width < APART or p.size == 2):
        for i in range(1, count):
            memmove(sum + i * width, sum + i * pitch, width * sizeof(int32_t))
        width, count = count * width, 1
    elif width == pitch:
        width, count = count * width, 1
    if p.size == 2 and p.taps * (255 << 15) + (add if add > 0 else -add) >= (<int64_t> 1 << 31):
        wide = <int64_t *> (scratch + p.at_column)
        for i in range(width):
            wide[i] = sum[i]
    if job.o.z != NULL:
        z, z_size = <const char *> job.o.z.data, ev_item_size(job.o.z.dtype)
    for i in range(count):
        K.qc_finish(&job.finish, width, sum + i * pitch, wide, add, row_scale(job, m),
                    NULL if z == NULL else z + (y + i * width) * z_size,
                    <char *> job.o.y.data + (y + i * width) * ev_item_size(job.finish.type))


cdef bint as_it_lies(const Job *job, int64_t image, int64_t channel, int64_t begin, int64_t end,
                     char *scratch) noexcept nogil:
    """Rows [begin, end) of the maps of a channel of bytes, from x where it lies; false where no kernel does that."""
    cdef const Plan *p = &job.plan
    cdef const Axis *a = &p.axis[0]
    cdef int32_t *sum = <int32_t *> (scratch + p.at_sum)
    cdef int64_t map_, m, i, row, rows, total, y, size = ev_item_size(job.finish.type), z_size = 0
    cdef const char *z = NULL
    cdef const int8_t *w
    cdef int done = 0
    cdef ev_qdmap g
    g.h, g.w, g.out_w = a[1].size, a[2].size, a[2].out
    g.kernel_h, g.kernel_w = a[1].kernel, a[2].kernel
    g.stride_h, g.stride_w, g.pad_h, g.pad_w = a[1].stride, a[2].stride, a[1].pad, a[2].pad
    g.zero, g.flip = <int32_t> job.x_zero, 0x80 if job.x_type == EV_INT8 else 0
    if job.o.z != NULL:
        z, z_size = <const char *> job.o.z.data, ev_item_size(job.o.z.dtype)
    for map_ in range(p.rows):
        m = channel * p.rows + map_
        if zero_of(job.o.w_zero, m) != 0:
            return False
    for map_ in range(p.rows):
        m = channel * p.rows + map_
        w = <const int8_t *> job.o.w.data + m * p.taps
        total = 0
        for i in range(p.taps if job.x_zero != 0 else 0):
            total += w[i]
        row = begin
        while row < end:
            rows = max(<int64_t> 1, min(end - row, CHUNK // g.out_w))
            K.qd_map(&g, <const uint8_t *> job.o.x.data + (image * p.c + channel) * g.h * g.w, w, row, rows, sum, &done)
            if not done:
                return False
            y = ((image * p.m + m) * a[1].out + row) * g.out_w
            K.qc_finish(&job.finish, rows * g.out_w, sum, NULL, row_add(job, m, total), row_scale(job, m),
                        NULL if z == NULL else z + y * z_size, <char *> job.o.y.data + y * size)
            row += rows
    return True


cdef bint lies(const Job *job) noexcept nogil:
    """Whether as_it_lies takes such images, weights and windows."""
    cdef const Plan *p = &job.plan
    cdef const Axis *a = &p.axis[0]
    return (p.size == 1 and job.o.x.dtype != EV_FLOAT and job.w_flip == 0 and a[0].size == a[0].kernel == a[0].out == 1
            and (a[1].dilation == 1 or a[1].kernel == 1) and (a[2].dilation == 1 or a[2].kernel == 1)
            and a[2].out <= CHUNK and (p.cut == 1 or p.bands == 1) and a[0].pad == 0)


cdef void channels(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Items [begin, end): bands, channels and images, the first fastest."""
    cdef const Job *job = <const Job *> ctx
    cdef const Plan *p = &job.plan
    cdef const Axis *a = &p.axis[0]
    cdef int64_t item, image, channel, first, d, h, w, some, width, m, map_, i
    cdef int64_t none[3]
    cdef int64_t count[3]
    cdef int64_t start[3]
    cdef char *scratch = <char *> job.call.scratch + worker * p.slot
    cdef const char *x
    cdef bint in_place = lies(job)
    none[0] = none[1] = none[2] = 0
    list_taps(p, none, <int32_t *> (scratch + p.at_offset), <int32_t *> (scratch + p.at_tap))
    for item in range(begin, end):
        first = item % p.bands * p.band
        channel = item // p.bands % p.c
        image = item // p.bands // p.c
        for i in range(3):
            count[i] = a[i].count if i != p.cut else min(p.band, a[i].count - first)
            start[i] = first if i == p.cut else 0
        in_place = in_place and as_it_lies(job, image, channel, start[1], start[1] + count[1], scratch)
        if in_place:
            continue
        x = <const char *> job.o.x.data + ev_item_size(job.o.x.dtype) * (
            (image * p.c + channel) * a[0].size * a[1].size * a[2].size)
        stage(job, x, 1, first, scratch)
        for map_ in range(p.rows):
            m = channel * p.rows + map_
            for d in range(count[0]):
                h = 0
                while h < count[1]:
                    some = max(1, min(count[1] - h, CHUNK // a[2].length))
                    w = 0
                    while w < count[2]:      # once, but for rows of more than a chunk
                        width = count[2] if some * a[2].length <= CHUNK else min(count[2] - w, <int64_t> CHUNK)
                        rows(job, image, m, scratch, (d * a[1].length + h) * a[2].length + w,
                             ((d + start[0]) * a[1].out + h + start[1]) * a[2].out + w + start[2], some, width)
                        w += width
                    h += some


cdef int depthwise(const ev_call *c) noexcept nogil:
    """in: those of QLinearConv, then the program of depthwise_program where the staged image is of bytes; out: y;
    ints: see I_*; reals: activation parameters."""
    cdef Job job
    cdef Plan *p = &job.plan
    take_linear(c, &job)
    if job.o.y.size == 0:
        return EV_OK
    make_plan(p, c.ints, c.threads, True)
    if p.size == 1:
        job.starts = <const int32_t *> c.in_[c.ints[I_INPUTS]].data
        job.taps = <const ev_qtaps *> (job.starts + p.m + 1)
    cdef int64_t items = p.n * p.c * p.bands
    parallel_for(channels, &job, items, max(1, MACS_PER_TASK // max(1, job.o.y.size // items * p.taps)), c.threads)
    return EV_OK


cdef int64_t program_of(const int16_t *w, int64_t taps, ev_qtaps *to) noexcept nogil:
    """The program of one map: taps in groups by first fit, the largest first. Returns its pairs."""
    cdef int16_t[PIECES * MOST_TAPS] weight, tap, group
    cdef int32_t[PIECES * MOST_TAPS] up, down
    cdef int64_t n = 0, i, j, groups = 0, pairs = 0, t
    cdef int16_t v, rest
    cdef bint odd
    for t in range(taps):
        rest = w[t]
        while rest != 0:                     # once, but for differences of bytes that are no bytes
            v = min(max(rest, -128), 127)
            rest -= v
            j = n
            while j > 0 and abs(<int> weight[j - 1]) < abs(<int> v):
                weight[j], tap[j] = weight[j - 1], tap[j - 1]
                j -= 1
            weight[j], tap[j] = v, <int16_t> t
            n += 1
    for i in range(n):
        v = weight[i]
        j = 0
        while j < groups and (up[j] + max(v, 0) > LIMIT or down[j] - min(v, 0) > LIMIT):
            j += 1
        if j == groups:
            up[j] = down[j] = 0
            groups += 1
        up[j] += max(v, 0)
        down[j] -= min(v, 0)
        group[i] = <int16_t> j
    for j in range(groups):
        odd = False
        for i in range(n):
            if group[i] != j:
                continue
            if odd:
                to[pairs - 1].b, to[pairs - 1].wb = tap[i], <int8_t> weight[i]
            else:
                to[pairs].a = to[pairs].b = tap[i]
                to[pairs].wa, to[pairs].wb, to[pairs].last = <int8_t> weight[i], 0, 0
                pairs += 1
            odd = not odd
        to[pairs - 1].last = 1
    return pairs


def depthwise_program(bytes weights, int64_t maps, int64_t taps) -> bytes:
    """What the driver needs beside the weights: how the taps of each map are added up in 16 bits.

    weights: int16 [maps, taps], less their zero points. Result: int32 [maps + 1], at which pair each map begins, then
    the pairs (ev_qtaps of ukr/qconv.h). Raises MemoryError.
    """
    cdef const int16_t *w = <const int16_t *> <const char *> weights
    cdef int64_t at = 0, m
    cdef char *buffer = <char *> malloc(4 * (maps + 1) + sizeof(ev_qtaps) * PIECES * maps * max(1, taps))
    cdef int32_t *starts = <int32_t *> buffer
    if buffer == NULL:
        raise MemoryError()
    try:
        for m in range(maps):
            starts[m] = <int32_t> at
            at += program_of(w + m * taps, taps, <ev_qtaps *> (starts + maps + 1) + at)
        starts[maps] = <int32_t> at
        return buffer[:4 * (maps + 1) + sizeof(ev_qtaps) * at]
    finally:
        free(buffer)


DRIVERS = {}
register(DRIVERS, "linear", depthwise)
