"""Drivers of the integer convolutions: products with panels of bytes, depthwise, transposed.

An image is first staged: copied to scratch as uint8 (int8 with the highest bit flipped, float32 quantized on the way)
or int16, with its padding, and with the elements that a strided window skips in planes of their own. Then every row of
the im2col matrix is a run of successive elements of the staged image, from offset[channel, tap] on, whatever strides,
dilations and pads there are. An image without padding and strides is read where it lies.

Where it saves work (takes_quads), it is staged in quads of channels, and every tap reads it in place: qconv_quads.pxi.

    for each band of output positions            staged, at most STAGE_BYTES
      for blocks of columns                      panels of B packed, PANEL_BYTES
        for a few rows of W                      as they lie, or made safe for 16-bit sums (qconv_body.h)
          tiles -> int32 sums -> scale, residual, activation, rounding -> y

A transposed convolution is one such product for each of its phases (output positions a stride apart meet the same
taps), whose results are put at their places. With x' = x + 128 for int8, w' = w - 128 for uint8:
    sum (x - x_zero)(w - w_zero) = sum x'w' - x_zero' sum(w' - w_zero') - w_zero' sum x'.
"""
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t
from libc.string cimport memcpy, memmove, memset
from evort._kernels.core cimport (EV_INT8, EV_OK, EV_QC_MR, EV_QC_NR, EV_QC_PLAIN_MR, EV_QC_STEP, ev_call, ev_item_size,
                                  ev_qextra, ev_qrun, ev_ukr, parallel_for, register, ukernels)
from evort._kernels.qwindow cimport (MACS_PER_TASK, WIDE_K, WIDE_ROWS, Axis, Job, Plan, list_taps, make_plan, operand,
                                     read_operands, row_add, row_scale, stage, take_linear, zero_of)

cdef const ev_ukr *K = ukernels()

cdef enum:
    FEW_4 = 20                   # groups of 16 weights in a hundred that have something taken out
    FEW_2 = 30
    FEW_COLUMNS = 48             # not worth looking at the rows for


cdef inline int64_t ceil_div(int64_t a, int64_t b) noexcept nogil:
    return (a + b - 1) // b


# Positions of one phase in a band, and where they lie.
ctypedef struct Block:
    int64_t image, group, first          # first: position along the cut axis
    int64_t phase[3]
    int64_t count[3]                     # positions along each axis
    int64_t taps, k, kp                  # rows of B, also rounded up
    int64_t m0, m1                       # rows of W
    int64_t j0, n                        # columns that are being computed
    const char *source                   # the image
    int64_t limit                        # its elements that can be read
    int64_t furthest                     # the greatest offset
    int plain                            # rows of W are used as they lie
    char *scratch


cdef int find_runs(const Plan *p, const Block *k, int64_t j, int64_t n, ev_qrun *run) noexcept nogil:
    """The runs of columns [j, j+n), n <= EV_QC_NR."""
    cdef const Axis *a = &p.axis[0]
    cdef int64_t at = 0, row, w, some, d, h
    cdef int count = 0
    while at < n:
        row, w = (j + at) // k.count[2], (j + at) % k.count[2]
        some = min(n - at, k.count[2] - w)
        d, h = row // k.count[1], row % k.count[1]
        if p.direct:
            if p.cut == 0:
                d += k.first
            elif p.cut == 1:
                h += k.first
            else:
                w += k.first
        run[count].from_ = (d * a[1].length + h) * a[2].length + w
        run[count].at, run[count].n = at, some
        at += some
        count += 1
    return count


cdef void pack_columns(const Job *job, const Block *k) noexcept nogil:
    cdef const Plan *p = &job.plan
    cdef ev_qrun run[17]
    cdef int runs, i
    cdef int64_t j = 0, panel = k.kp * EV_QC_NR * p.size, far
    cdef const int32_t *offset = <const int32_t *> (k.scratch + p.at_offset)
    cdef char *to = k.scratch + p.at_panel
    cdef char *rows = k.scratch + p.at_rows
    cdef int flip = 0x80 if p.direct and job.x_type == EV_INT8 else 0
    cdef bint careful
    while j < k.n:
        runs = find_runs(p, k, k.j0 + j, min(<int64_t> EV_QC_NR, k.n - j), run)
        far = 0
        for i in range(runs):
            far = max(far, run[i].from_)
        careful = far + k.furthest + EV_QC_NR > k.limit
        if p.size == 1:
            K.qc_pack(k.kp, <const uint8_t *> k.source, offset, run, runs, careful, flip, <uint8_t *> rows,
                      <uint8_t *> to)
        else:
            K.qc_pack_i16(k.kp, <const int16_t *> k.source, offset, run, runs, careful, <int16_t *> rows,
                          <int16_t *> to)
        to += panel
        j += EV_QC_NR


cdef int32_t weights_row(const Job *job, const Block *k, int64_t m, int8_t *to) noexcept nogil:
    """Row m of W as int8, filled up with zeros; returns its sum."""
    cdef const Plan *p = &job.plan
    cdef const uint8_t *w = <const uint8_t *> job.o.w.data
    cdef const int32_t *tap = <const int32_t *> (k.scratch + p.at_tap)
    cdef int32_t total = 0
    cdef int64_t c, t
    if not p.transposed:
        K.qc_weights(k.k, 1, job.w_flip, w + (k.group * p.rows + m) * p.k, to, &total)
    elif k.taps == p.taps and p.taps == 1:
        K.qc_weights(k.k, p.rows, job.w_flip, w + k.group * p.channels * p.rows + m, to, &total)
    else:
        for c in range(p.channels):
            for t in range(k.taps):
                to[c * k.taps + t] = <int8_t> (
                    w[((k.group * p.channels + c) * p.rows + m) * p.taps + tap[t]] ^ job.w_flip)
                total += to[c * k.taps + t]
    memset(to + k.k, 0, k.kp - k.k)
    return total


cdef int32_t quad_row(const Job *job, const Block *k, int64_t m, int8_t *to) noexcept nogil:
    """The same in quads of channels: four channels of a tap side by side. 64 bytes behind the row are overwritten."""
    cdef const Plan *p = &job.plan
    cdef const uint8_t *w = <const uint8_t *> job.o.w.data + (k.group * p.rows + m) * p.channels * p.taps
    cdef int8_t *row = <int8_t *> (k.scratch + p.at_rows)
    cdef int32_t total = 0
    cdef int64_t c
    K.qc_weights(p.channels * p.taps, 1, job.w_flip, w, row, &total)
    memset(row + p.channels * p.taps, 0, k.k - p.channels * p.taps)
    for c in range(p.fours):
        K.qc_interleave(p.taps, <const uint8_t *> row + 4 * c * p.taps, p.taps, <uint8_t *> to + 4 * c * p.taps)
    memset(to + k.k, 0, k.kp - k.k)
    return total


cdef inline void spread(int64_t n, int64_t size, const char *src, int64_t step, char *dst, int64_t to) noexcept nogil:
    """n elements of `size` bytes, from every step-th to every to-th place."""
    cdef int64_t i
    if size == 1:
        for i in range(n):
            dst[i * to] = src[i * step]
    elif size == 2:
        for i in range(n):
            (<int16_t *> dst)[i * to] = (<const int16_t *> src)[i * step]
    else:
        for i in range(n):
            (<int32_t *> dst)[i * to] = (<const int32_t *> src)[i * step]


cdef void put_row(const Job *job, const Block *k, int64_t m, const int32_t *sum, const int64_t *wide, int64_t add,
                  float scale) noexcept nogil:
    """The results of row m, columns [j0, j0 + n), at their places."""
    cdef const Plan *p = &job.plan
    cdef const Axis *a = &p.axis[0]
    cdef int64_t channel = (k.image * p.m + k.group * p.rows + m) * a[0].out * a[1].out * a[2].out
    cdef int64_t y_size = ev_item_size(job.finish.type), z_size = 0, j, row, at, d, h, w
    cdef char *y = <char *> job.o.y.data
    cdef const char *z = NULL
    cdef char *line = k.scratch + p.at_line
    cdef char *z_line = line + 4 * p.columns
    if job.o.z != NULL:
        z, z_size = <const char *> job.o.z.data, ev_item_size(job.o.z.dtype)
    if not p.transposed:
        at = channel + k.j0
        if p.cut == 0:
            at += k.first * a[1].out * a[2].out
        elif p.cut == 1:
            at += k.first * a[2].out
        else:
            at += k.first
        K.qc_finish(&job.finish, k.n, sum, wide, add, scale, NULL if z == NULL else z + at * z_size, y + at * y_size)
        return
    cdef int move
    cdef int64_t some
    for move in range(2):
        if move == 1:
            K.qc_finish(&job.finish, k.n, sum, wide, add, scale, NULL if z == NULL else z_line, line)
        elif z == NULL:
            continue
        j = 0
        while j < k.n:                   # the positions of a row are `stride` apart
            row, w = (k.j0 + j) // k.count[2], (k.j0 + j) % k.count[2]
            some = min(k.n - j, k.count[2] - w)
            d, h = row // k.count[1], row % k.count[1]
            if p.cut == 0:
                d += k.first
            elif p.cut == 1:
                h += k.first
            else:
                w += k.first
            at = channel + (((d * a[0].stride + k.phase[0]) * a[1].out + h * a[1].stride + k.phase[1]) * a[2].out
                            + w * a[2].stride + k.phase[2])
            if move == 0:
                spread(some, z_size, z + at * z_size, a[2].stride, z_line + j * z_size, 1)
            else:
                spread(some, y_size, line + j * y_size, 1, y + at * y_size, a[2].stride)
            j += some


cdef bint column_sums(const Job *job, const Block *k) noexcept nogil:
    """sum x' of each column, where a zero point of W asks for them."""
    cdef const Plan *p = &job.plan
    cdef int64_t m
    cdef bint needed = False
    cdef int8_t *ones = <int8_t *> (k.scratch + p.at_a)
    cdef const uint8_t *panel = <const uint8_t *> (k.scratch + p.at_panel)
    cdef int32_t none = 0
    cdef const ev_qextra *extra = NULL
    for m in range(p.rows):
        if zero_of(job.o.w_zero, k.group * p.rows + m) != job.w_shift:
            needed = True
            break
    if not needed:
        return False
    memset(ones, 1, k.k)
    memset(ones + k.k, 0, k.kp - k.k)
    K.qc_tile(1, k.n, 4, k.kp, ones, k.kp, panel, <const int32_t *> (k.scratch + p.at_quad), k.kp * EV_QC_NR, &extra,
              &none, <int32_t *> (k.scratch + p.at_column), p.columns)
    return True


cdef int choose_groups(const Block *k, int64_t rows, int8_t *a) noexcept nogil:
    """How many quads a group has: as many as leave little to be taken out of the rows."""
    cdef int s = 4
    cdef int64_t i, groups
    cdef int32_t found
    if k.n < FEW_COLUMNS:
        return 1
    while s > 1:
        groups = 0
        for i in range(rows):
            K.qc_prepare(k.kp, s, a + i * k.kp, NULL, &found)
            groups += found
        if 100 * EV_QC_STEP * groups <= (FEW_4 if s == 4 else FEW_2) * rows * k.kp:
            break
        s = s // 2
    return s


cdef void put_rows(const Job *job, const Block *k, int64_t m, int64_t count, const int32_t *total,
                   bint shifted) noexcept nogil:
    """The results of rows [m, m + count), whose weights sum up to total[i], from their sums."""
    cdef const Plan *p = &job.plan
    cdef int32_t *sum = <int32_t *> (k.scratch + p.at_sum)
    cdef int64_t i, channel, w_zero
    for i in range(count):
        channel = k.group * p.rows + m + i
        w_zero = zero_of(job.o.w_zero, channel) - job.w_shift
        if shifted:
            K.qc_shift(k.n, <int32_t> w_zero, <const int32_t *> (k.scratch + p.at_column), sum)
        put_row(job, k, m + i, sum, NULL, row_add(job, channel, total[i] - k.k * w_zero), row_scale(job, channel))
        sum += p.columns


# Rows of W as a tile takes them.
ctypedef struct Rows:
    const void *a
    int64_t lda, k               # bytes or int16 from one to the next, and of one
    int s                        # quads of a group
    int32_t total[12]            # EV_QC_PLAIN_MR: their sums
    int32_t found[4]             # EV_QC_MR: what was taken out
    const ev_qextra *extra[4]


cdef void take_rows(const Job *job, const Block *k, int64_t m, int64_t count, Rows *r) noexcept nogil:
    """Rows [m, m + count): as they lie, copied, or prepared for sums of 16 bits."""
    cdef const Plan *p = &job.plan
    cdef int8_t *a = <int8_t *> (k.scratch + p.at_a)
    cdef int16_t *wide = <int16_t *> (a + EV_QC_MR * k.kp)
    cdef ev_qextra *extra = <ev_qextra *> (k.scratch + p.at_extra)
    cdef int64_t i
    r.a, r.lda, r.k, r.s = a, k.kp, ceil_div(k.k, 4) * 4, 4
    if k.plain and not p.transposed and not p.quads and job.w_flip == 0 and k.k % 4 == 0:
        r.a, r.lda = <const int8_t *> job.o.w.data + (k.group * p.rows + m) * p.k, k.k
        memset(r.total, 0, sizeof(r.total))
        if job.x_zero != 0:
            K.qrow_sums(count, k.k, <const int8_t *> r.a, r.lda, False, r.total)
        return
    for i in range(count):
        r.total[i] = quad_row(job, k, m + i, a + i * k.kp) if p.quads else weights_row(job, k, m + i, a + i * k.kp)
    if k.plain:
        return
    r.s = choose_groups(k, count, a)
    if r.s == 1:
        r.a = wide
        for i in range(count):
            K.qc_widen(k.kp, a + i * k.kp, wide + i * k.kp)
    else:
        r.k = k.kp
        for i in range(count):
            r.extra[i] = extra + i * (k.kp // 2)
            K.qc_prepare(k.kp, r.s, a + i * k.kp, extra + i * (k.kp // 2), &r.found[i])


cdef void rows_of_bytes(const Job *job, const Block *k) noexcept nogil:
    cdef const Plan *p = &job.plan
    cdef int64_t m = k.m0, some
    cdef Rows r
    cdef bint shifted = column_sums(job, k)
    while m < k.m1:
        some = min(<int64_t> (EV_QC_PLAIN_MR if k.plain else EV_QC_MR), k.m1 - m)
        take_rows(job, k, m, some, &r)
        K.qc_tile(some, k.n, r.s, r.k, r.a, r.lda, <const uint8_t *> (k.scratch + p.at_panel),
                  <const int32_t *> (k.scratch + p.at_quad), k.kp * EV_QC_NR, r.extra, r.found,
                  <int32_t *> (k.scratch + p.at_sum), p.columns)
        put_rows(job, k, m, some, r.total, shifted)
        m += some


cdef void rows_of_i16(const Job *job, const Block *k) noexcept nogil:
    """Some rows of W at a time, in blocks of WIDE_K; where there are several, their sums are added up in 64 bits."""
    cdef const Plan *p = &job.plan
    cdef int8_t *narrow = <int8_t *> (k.scratch + p.at_rows)
    cdef int16_t *a = <int16_t *> (k.scratch + p.at_a)
    cdef int16_t *row
    cdef const int16_t *panel = <const int16_t *> (k.scratch + p.at_panel)
    cdef int32_t *sum = <int32_t *> (k.scratch + p.at_sum)
    cdef int64_t *long_sum = <int64_t *> sum
    cdef bint is_long = k.kp > WIDE_K
    cdef int32_t part[WIDE_ROWS * 16]
    cdef int64_t total[WIDE_ROWS]
    cdef int64_t m = k.m0, rows, i, j, r, q, w_zero, channel, kb
    while m < k.m1:
        rows = min(<int64_t> WIDE_ROWS, k.m1 - m)
        for r in range(rows):
            w_zero = zero_of(job.o.w_zero, k.group * p.rows + m + r) - job.w_shift
            total[r] = weights_row(job, k, m + r, narrow) - k.k * w_zero
            row = a + r * k.kp
            for i in range(k.kp):
                row[i] = <int16_t> (narrow[i] - w_zero) if i < k.k else 0
        j = 0
        while j < k.n:
            q = 0
            while q < k.kp:
                kb = min(<int64_t> WIDE_K, k.kp - q)
                K.qgemm_i16(rows, EV_QC_NR, kb // 2, a + q, k.kp // 2, panel + j * k.kp + q * EV_QC_NR, 0, part)
                for r in range(rows):
                    if not is_long:
                        memcpy(sum + r * p.columns + j, part + r * EV_QC_NR, EV_QC_NR * sizeof(int32_t))
                        continue
                    for i in range(EV_QC_NR):
                        long_sum[r * p.columns + j + i] = (part[r * EV_QC_NR + i]
                                                           + (0 if q == 0 else long_sum[r * p.columns + j + i]))
                q += kb
            j += EV_QC_NR
        for r in range(rows):
            channel = k.group * p.rows + m + r
            put_row(job, k, m + r, NULL if is_long else sum + r * p.columns,
                    long_sum + r * p.columns if is_long else NULL, row_add(job, channel, total[r]), row_scale(job, channel))
        m += rows


cdef void phase_of_band(const Job *job, Block *k, int64_t last) noexcept nogil:
    """All positions of a phase in a band that ends at `last`."""
    cdef const Plan *p = &job.plan
    cdef const Axis *a = &p.axis[0]
    cdef int32_t *offset = <int32_t *> (k.scratch + p.at_offset)
    cdef int64_t c, t, i, total = 1
    for i in range(3):
        k.count[i] = (max(0, ceil_div(a[i].out - k.phase[i], a[i].stride))) if p.transposed else a[i].count
        if i == p.cut:
            k.count[i] = max(0, min(k.count[i], last) - k.first)
        total *= k.count[i]
    if total == 0:
        return
    k.taps = list_taps(p, k.phase, offset, <int32_t *> (k.scratch + p.at_tap))
    k.k = p.channels * k.taps
    k.kp = ceil_div(k.k, EV_QC_STEP) * EV_QC_STEP
    c = p.channels - 1
    while c >= 0:                        # the first channel last, as the others are made from it
        for t in range(k.taps):
            offset[c * k.taps + t] = <int32_t> (
                offset[t] + c * p.plane * a[0].planes * a[1].planes * a[2].planes)
        c -= 1
    k.furthest = 0
    for i in range(k.k):
        k.furthest = max(k.furthest, <int64_t> offset[i])
    for i in range(k.k, k.kp):
        offset[i] = offset[0]
    for i in range(k.kp // 4):
        (<int32_t *> (k.scratch + p.at_quad))[i] = <int32_t> (4 * EV_QC_NR * i)
    k.j0 = 0
    while k.j0 < total:
        k.n = min(p.columns, total - k.j0)
        pack_columns(job, k)
        if p.size == 1:
            rows_of_bytes(job, k)
        else:
            rows_of_i16(job, k)
        k.j0 += p.columns


include "qconv_quads.pxi"


cdef void products(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Items [begin, end): shares of rows, bands, groups and images, the first fastest."""
    cdef const Job *job = <const Job *> ctx
    cdef const Plan *p = &job.plan
    cdef const Axis *a = &p.axis[0]
    cdef int64_t item, part, inside = a[0].size * a[1].size * a[2].size, last, share = ceil_div(p.rows, p.parts)
    cdef int64_t phases[3]
    cdef int64_t d, h, w
    cdef int i
    cdef const char *x
    cdef Block k
    k.scratch = <char *> job.call.scratch + worker * p.slot
    K.qc_plain(&k.plain)
    for i in range(3):
        phases[i] = min(a[i].stride, a[i].out) if p.transposed else 1
    for item in range(begin, end):
        part = item % p.parts
        k.first = item // p.parts % p.bands * p.band
        last = min(k.first + p.band, a[p.cut].count)
        k.group = item // p.parts // p.bands % p.group
        k.image = item // p.parts // p.bands // p.group
        k.m0, k.m1 = part * share, min(p.rows, (part + 1) * share)
        x = <const char *> job.o.x.data + ev_item_size(job.o.x.dtype) * (
            (k.image * p.c + k.group * p.channels) * inside)
        if p.quads:
            quads_of_band(job, &k, x, last)
            continue
        if p.direct:
            k.source, k.limit = x, (p.n * p.c - k.image * p.c - k.group * p.channels) * inside
        else:
            stage(job, x, p.channels, k.first, k.scratch)
            k.source, k.limit = k.scratch, 1 << 62
        for d in range(phases[0]):
            for h in range(phases[1]):
                for w in range(phases[2]):
                    k.phase[0], k.phase[1], k.phase[2] = d, h, w
                    phase_of_band(job, &k, last)


cdef int run_products(Job *job) noexcept nogil:
    cdef const ev_call *c = job.call
    cdef Plan *p = &job.plan
    if job.o.y.size == 0:
        return EV_OK
    make_plan(p, c.ints, c.threads, False)
    cdef int64_t items = p.n * p.group * p.bands * p.parts, macs = job.o.y.size * p.k // items
    parallel_for(products, job, items, max(1, MACS_PER_TASK // max(1, macs)), c.threads)
    return EV_OK


cdef int linear(const ev_call *c) noexcept nogil:
    """in, out: those of QLinearConv and QLinearConvTranspose; ints: see I_*; reals: activation parameters."""
    cdef Job job
    take_linear(c, &job)
    return run_products(&job)


cdef int integer(const ev_call *c) noexcept nogil:
    """in, out: those of ConvInteger; ints: see I_*."""
    cdef Job job
    memset(&job.o, 0, sizeof(job.o))
    job.o.x, job.o.w, job.o.x_zero, job.o.w_zero = operand(c, 0), operand(c, 1), operand(c, 2), operand(c, 3)
    job.o.y = c.out[0]
    read_operands(c, &job)
    return run_products(&job)


DRIVERS = {}
register(DRIVERS, "linear", linear)
register(DRIVERS, "integer", integer)
