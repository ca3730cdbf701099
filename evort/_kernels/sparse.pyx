"""Drivers of convolutions and matrix products with sparse weights: evort/ops/sparse.py.

Weights are packed when the plan is made (`pack`): for each group of EV_SP_MR rows, or for each row, the indices k at which
any weight of the group is not zero, and those weights, as sparse_body.h takes them. Where weights are zero, nothing is
read and nothing computed.

    convolution: image staged (qwindow.pyx)
      for 64 positions of the output             K runs of the image -> panel [K][64]; or, where they are near each
                                                 other in an image of bytes, for 4 times 64, read where they lie
        for each group of rows                   tiles -> sums [rows][64 or 256] -> scale, residual, ... -> y
    product: rows of A, 64 at a time             transposed -> panel [K][64]
      for 16 columns of the result               tiles -> sums [16][64], transposed -> ... -> Y
    product of few rows                          each row of A by each group
"""
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from evort._kernels.core cimport (EV_BIAS_COLUMN, EV_FLOAT, EV_INT8, EV_OK, EV_QMC, EV_QNR, EV_SP_MR,
                                  EV_SP_NR, EV_UINT8, ev_call, ev_epilogue, ev_item_size, ev_qrun, ev_sums, ev_tensor,
                                  ev_ukr, parallel_for, register, ukernels)
from evort._kernels.qgemm cimport ev_qgemm, qgemm_init
from evort._kernels.qwindow cimport (I_SHIFTED, MACS_PER_TASK, N_INTS, Axis, Job, Plan, list_taps,
                                     make_plan, operand, read_operands, row_add, row_scale, stage)

cdef const ev_ukr *K = ukernels()

cdef enum:
    RUNS = 65                    # of one panel, at most
    FEW_ROWS = 8                 # of A: a panel is not worth its columns
    TILES = 4                    # of an image that is read where it lies, whose sums are finished at once
    SLACK = 128                  # bytes that kernels may touch behind their results


cdef inline int64_t ceil_div(int64_t a, int64_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline int64_t round64(int64_t bytes) noexcept nogil:
    return (bytes + 63) // 64 * 64


# Weights -------------------------------------------------------------------------------------------------------------

# Where the parts of packed weights lie. A part of the rows (of a convolution's group) starts a new group of rows.
ctypedef struct Weights:
    int64_t height, parts, rows  # rows of a group; parts, rows of each
    int64_t per                  # groups of a part
    int64_t unit                 # indices that are taken together: 4 of int8, 1 of float32
    const int32_t *starts        # [parts*per + 1]: units before each group
    const int32_t *totals        # [parts*rows]: the sum of each row's int8 weights
    const uint16_t *index        # [units][unit]
    const char *w                # [units][height][unit]


cdef int64_t weights_layout(Weights *v, const char *base, int64_t units) noexcept nogil:
    """Fills in the places; returns the bytes of all."""
    cdef int64_t at = round64(4 * (v.parts * v.per + 1))
    v.starts, v.totals = <const int32_t *> base, <const int32_t *> (base + at)
    at += round64(4 * v.parts * v.rows)
    v.index = <const uint16_t *> (base + at)
    at += round64(2 * v.unit * units)
    v.w = base + at
    return at + units * v.height * 4   # four bytes either way: of four weights, or of one


cdef void set_weights(Weights *v, const char *base, int64_t height, int64_t parts, int64_t rows, int64_t size) noexcept nogil:
    v.height, v.parts, v.rows, v.per, v.unit = height, parts, rows, ceil_div(rows, height), 4 if size == 1 else 1
    weights_layout(v, base, 0)
    weights_layout(v, base, v.starts[v.parts * v.per])


cdef bint any_weight(const char *w, int64_t pitch, int64_t rows, int64_t size) noexcept nogil:
    cdef int64_t i
    for i in range(rows):
        if size == 1:
            if w[i * pitch] != 0:
                return True
        elif (<const float *> w)[i * pitch] != 0:
            return True
    return False


cdef void pack_groups(Weights *v, const char *w, int64_t k, int64_t size, int32_t *starts, int32_t *totals,
                      uint16_t *index, char *to) noexcept nogil:
    """Counts the units of each group into `starts`; where `to` is not NULL, fills in the rest from those."""
    cdef int64_t part, g, i, p, row, found, some, at = 0
    for part in range(v.parts):
        for g in range(v.per):
            row = part * v.rows + g * v.height
            some = min(v.height, v.rows - g * v.height)
            found = 0
            for p in range(k):
                if not any_weight(w + (row * k + p) * size, k, some, size):
                    continue
                if to != NULL:
                    index[at * v.unit + found] = <uint16_t> p
                    for i in range(some):
                        if size == 1:
                            to[((at + found // 4) * v.height + i) * 4 + found % 4] = w[(row + i) * k + p]
                            totals[row + i] += <int8_t> w[(row + i) * k + p]
                        else:
                            (<float *> to)[(at + found) * v.height + i] = (<const float *> w)[(row + i) * k + p]
                found += 1
            starts[part * v.per + g] = <int32_t> at
            at += ceil_div(found, v.unit)
    starts[v.parts * v.per] = <int32_t> at


def pack(bytes w, int size, int64_t height, int64_t parts, int64_t rows, int64_t k) -> bytes:
    """Weights [parts*rows, k], k < 2**16, of int8 (size 1) or float32 (4), packed in groups of `height` rows."""
    cdef Weights v
    cdef int64_t total
    v.height, v.parts, v.rows, v.per, v.unit = height, parts, rows, ceil_div(rows, height), 4 if size == 1 else 1
    count = PyBytes_FromStringAndSize(NULL, weights_layout(&v, NULL, 0))
    cdef int32_t *starts = <int32_t *> PyBytes_AS_STRING(count)
    cdef const char *source = PyBytes_AS_STRING(w)
    pack_groups(&v, source, k, size, starts, NULL, NULL, NULL)
    total = weights_layout(&v, NULL, starts[v.parts * v.per])
    packed = PyBytes_FromStringAndSize(NULL, total)
    cdef char *base = PyBytes_AS_STRING(packed)
    memset(base, 0, total)
    weights_layout(&v, base, starts[v.parts * v.per])
    pack_groups(&v, source, k, size, <int32_t *> v.starts, <int32_t *> v.totals, <uint16_t *> v.index, <char *> v.w)
    return packed


cdef void list_panel(int64_t k, int32_t *offset) noexcept nogil:
    """Where the rows of a panel of bytes lie."""
    cdef int64_t p
    for p in range(k):
        offset[p] = <int32_t> (p * EV_SP_NR)


cdef inline void tile(const Weights *v, int64_t group, const char *panel, const int32_t *offset, uint64_t lanes,
                      void *sum, int64_t ld) noexcept nogil:
    """sum[height][64] of int32 or float32; offset: of the rows of bytes, of whose products `lanes` are kept."""
    cdef int64_t at = v.starts[group], n = v.starts[group + 1] - at
    if v.unit == 4:
        K.sp_tile_s8(<int> v.height, n, v.index + 4 * at, offset, <const int8_t *> v.w + 4 * v.height * at,
                     <const uint8_t *> panel, lanes, <int32_t *> sum, ld)
    else:
        K.sp_tile_f32(<int> v.height, n, v.index + at, <const float *> v.w + v.height * at, <const float *> panel,
                      <float *> sum, ld)


cdef inline void dot(const Weights *v, int64_t group, const char *x, void *sum) noexcept nogil:
    cdef int64_t at = v.starts[group], n = v.starts[group + 1] - at
    if v.unit == 4:
        K.sp_dot_s8(<int> v.height, n, v.index + 4 * at, <const int8_t *> v.w + 4 * v.height * at, <const uint8_t *> x,
                    <int32_t *> sum)
    else:
        K.sp_dot_f32(<int> v.height, n, v.index + at, <const float *> v.w + v.height * at, <const float *> x,
                     <float *> sum)


# Convolutions --------------------------------------------------------------------------------------------------------

ctypedef struct Convolution:
    Job job
    Weights w
    bint flat                    # positions are read where they lie in the image
    int64_t slot, at_rows, at_panel, at_sum
    int64_t inside, outside      # elements of an image's and of a result's channel
    const float *bias            # of float32
    const float *residual
    ev_epilogue activation


cdef void plan_of(Plan *p, const int64_t *ints, int32_t threads) noexcept nogil:
    """The geometry, with an image that is staged channel by channel, as it is for weights with zero points."""
    cdef int64_t[N_INTS] values
    memcpy(values, ints, sizeof(values))
    values[I_SHIFTED] = 1
    make_plan(p, values, threads, False)


cdef void scratch_layout(Convolution *f) noexcept nogil:
    cdef const Plan *p = &f.job.plan
    cdef const Axis *a = &p.axis[0]
    cdef int64_t count[3]
    cdef int i
    for i in range(3):
        count[i] = p.band if i == p.cut else a[i].count
    # From the first position to the last, those between rows included, against those that are wanted.
    cdef int64_t span = ((count[0] - 1) * a[1].length + count[1] - 1) * a[2].length + count[2]
    f.flat = p.size == 1 and 7 * ceil_div(span, EV_SP_NR) <= 8 * ceil_div(count[0] * count[1] * count[2], EV_SP_NR)
    # Offsets of a panel's rows, and the panel, which an image that has room behind it can be without.
    f.at_rows = p.at_offset + round64(4 * p.k)
    f.at_panel = f.at_rows + round64(4 * p.k)
    f.at_sum = f.at_panel + (0 if f.flat and not p.direct else round64(p.k * EV_SP_NR * p.size + SLACK))
    f.slot = f.at_sum + round64(EV_SP_MR * TILES * EV_SP_NR * 4 + SLACK)


cdef inline int64_t place_of(const Plan *p, const int64_t *count, int64_t first, int64_t j) noexcept nogil:
    """Where position j of a band that starts at `first` lies in the (staged) image."""
    cdef const Axis *a = &p.axis[0]
    cdef int64_t row = j // count[2]
    cdef int64_t place[3]
    place[0], place[1], place[2] = row // count[1], row % count[1], j % count[2]
    if p.direct:
        place[p.cut] += first
    return (place[0] * a[1].length + place[1]) * a[2].length + place[2]


cdef int find_runs(const Plan *p, const int64_t *count, int64_t first, int64_t j, int64_t n, ev_qrun *run) noexcept nogil:
    """The runs of positions [j, j+n): where they lie in the image."""
    cdef int64_t at = 0, some
    cdef int found = 0
    while at < n:
        some = min(n - at, count[2] - (j + at) % count[2])
        run[found].from_ = place_of(p, count, first, j + at)
        run[found].at, run[found].n = at, some
        at += some
        found += 1
    return found


cdef int64_t find_lanes(const Plan *p, const int64_t *count, int64_t first, int64_t j, int64_t total,
                        uint64_t *lanes) noexcept nogil:
    """Positions from j on that lie in the 64 bytes which begin with it: their number, and which bytes are theirs."""
    cdef int64_t start = place_of(p, count, first, j), n = 0, lane, some
    lanes[0] = 0
    while j + n < total:
        lane = place_of(p, count, first, j + n) - start
        if lane >= EV_SP_NR:
            break
        some = min(count[2] - (j + n) % count[2], EV_SP_NR - lane)
        lanes[0] |= (~<uint64_t> 0 >> (64 - some)) << lane
        n += some
    return n


cdef void finish_row(const Convolution *f, int64_t image, int64_t channel, int64_t at, int64_t n, void *sum) noexcept nogil:
    """Results [at, at+n) of a channel."""
    cdef const Job *job = &f.job
    cdef int64_t place = (image * job.plan.m + channel) * f.outside + at, j
    cdef float *y
    cdef float *s = <float *> sum
    cdef float b
    if f.w.unit == 4:
        K.qc_finish(&job.finish, n, <const int32_t *> sum, NULL, row_add(job, channel, f.w.totals[channel]),
                    row_scale(job, channel),
                    NULL if job.o.z == NULL else <const char *> job.o.z.data + place * ev_item_size(job.o.z.dtype),
                    <char *> job.o.y.data + place * ev_item_size(job.o.y.dtype))
        return
    y = <float *> job.o.y.data + place
    b = 0 if f.bias == NULL else f.bias[channel]
    if f.residual == NULL:
        for j in range(n):
            y[j] = s[j] + b
    else:
        for j in range(n):
            y[j] = s[j] + b + f.residual[place + j]
    K.activate_f32(&f.activation, 1, n, channel, y, 0)


cdef void conv_items(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Items [begin, end): shares of rows, bands, groups and images, the first fastest."""
    cdef const Convolution *f = <const Convolution *> ctx
    cdef const Job *job = &f.job
    cdef const Plan *p = &job.plan
    cdef const Axis *a = &p.axis[0]
    cdef char *scratch = <char *> job.call.scratch + worker * f.slot
    cdef int32_t *offset = <int32_t *> (scratch + p.at_offset)
    cdef int32_t *rows = <int32_t *> (scratch + f.at_rows)
    cdef const int32_t *offsets
    cdef char *panel = scratch + f.at_panel
    cdef char *sum = scratch + f.at_sum
    cdef int64_t item, share = ceil_div(f.w.per, p.parts), part, first, last, group, image, i, j, n, c, t, g, row, far
    cdef int64_t furthest, limit, total, at, flip = 0x80 if p.direct and job.x_type == EV_INT8 and p.size == 1 else 0
    cdef int64_t none[3]
    cdef int64_t count[3]
    cdef ev_qrun run[RUNS]
    cdef int runs, r
    cdef const char *source
    cdef int tiles
    cdef const char *b[TILES]
    cdef uint64_t lanes[TILES]
    cdef int64_t column[TILES]   # of its first sum
    none[0] = none[1] = none[2] = 0
    for item in range(begin, end):
        part = item % p.parts
        first = item // p.parts % p.bands * p.band
        last = min(first + p.band, a[p.cut].count)
        group = item // p.parts // p.bands % p.group
        image = item // p.parts // p.bands // p.group
        source = <const char *> job.o.x.data + ev_item_size(job.o.x.dtype) * (image * p.c + group * p.channels) * f.inside
        limit = (p.n * p.c - image * p.c - group * p.channels) * f.inside
        if not p.direct:
            stage(job, source, p.channels, first, scratch)
            source, limit = scratch, 1 << 62
        list_taps(p, none, offset, rows)         # taps' numbers, which nobody needs
        list_panel(p.k, rows)
        furthest = 0
        c = p.channels - 1
        while c >= 0:                            # the first channel last, as the others are made from it
            for t in range(p.taps):
                offset[c * p.taps + t] = <int32_t> (
                    offset[t] + c * p.plane * a[0].planes * a[1].planes * a[2].planes)
                furthest = max(furthest, <int64_t> offset[c * p.taps + t])
            c -= 1
        total = 1
        for i in range(3):
            count[i] = last - first if i == p.cut else a[i].count
            total *= count[i]
        at = first
        for i in range(p.cut + 1, 3):
            at *= a[i].count
        j = 0
        while j < total:
            n = tiles = 0
            while f.flat and flip == 0 and tiles < TILES and j + n < total:
                far = place_of(p, count, first, j + n)
                if far + furthest + EV_SP_NR > limit:
                    break
                b[tiles], column[tiles] = source + far, n
                n += find_lanes(p, count, first, j + n, total, &lanes[tiles])
                tiles += 1
            offsets = offset
            if tiles == 0:
                n = min(<int64_t> EV_SP_NR, total - j)
                runs = find_runs(p, count, first, j, n, run)
                far = 0
                for r in range(runs):
                    far = max(far, run[r].from_)
                K.sp_gather(p.k, p.size, source, offset, run, runs, far + furthest + EV_SP_NR + 16 > limit, <int> flip,
                            panel)
                tiles, b[0], column[0], lanes[0], offsets = 1, panel, 0, ~<uint64_t> 0, rows
            for g in range(part * share, min((part + 1) * share, f.w.per)):
                for t in range(tiles):
                    tile(&f.w, group * f.w.per + g, b[t], offsets, lanes[t], sum + column[t] * 4,
                         TILES * EV_SP_NR)
                for i in range(min(f.w.height, p.rows - g * f.w.height)):
                    row = group * p.rows + g * f.w.height + i
                    finish_row(f, image, row, at + j, n, sum + i * TILES * EV_SP_NR * 4)
            j += n


cdef int run_convolution(Convolution *f, const ev_call *c, const char *weights, int64_t height) noexcept nogil:
    cdef Plan *p = &f.job.plan
    cdef Axis *a = &p.axis[0]
    cdef int64_t items
    if c.out[0].size == 0:
        return EV_OK
    plan_of(p, c.ints, c.threads)
    set_weights(&f.w, weights, height, p.group, p.rows, p.size)
    p.parts = min(p.parts, f.w.per)
    scratch_layout(f)
    f.inside = a[0].size * a[1].size * a[2].size
    f.outside = a[0].out * a[1].out * a[2].out
    items = p.n * p.group * p.bands * p.parts
    # A good deal of the work is left out: a quarter stands for it.
    parallel_for(conv_items, f, items, max(1, 4 * MACS_PER_TASK // max(1, c.out[0].size * p.k // items)), c.threads)
    return EV_OK


def convolution_scratch(ints, int32_t threads) -> int:
    """Scratch bytes of the convolutions; -1 for a window that they do not take."""
    cdef int64_t[N_INTS] values
    cdef int i
    cdef Convolution f
    from evort._kernels.qwindow import scratch_bytes

    if scratch_bytes(ints[:N_INTS], threads, False) < 0:
        return -1
    for i in range(N_INTS):
        values[i] = ints[i]
    plan_of(&f.job.plan, values, threads)
    scratch_layout(&f)
    return threads * f.slot


cdef int convolution_s8(const ev_call *c) noexcept nogil:
    """in: x, x_scale, x_zero_point, w_scale, y_scale, y_zero_point, B, Z, z_scale, z_zero_point, packed weights; out: y;
    ints: see I_* of qwindow.pxd, then the rows of a group; reals: activation parameters."""
    cdef Convolution f
    cdef ev_tensor w             # what is left of it: its type, and zero points of 0
    memset(&f.job.o, 0, sizeof(f.job.o))
    memset(&w, 0, sizeof(w))
    w.dtype = EV_INT8
    f.job.o.x, f.job.o.x_scale, f.job.o.x_zero, f.job.o.w = operand(c, 0), operand(c, 1), operand(c, 2), &w
    f.job.o.w_scale, f.job.o.y_scale, f.job.o.y_zero = operand(c, 3), operand(c, 4), operand(c, 5)
    f.job.o.b, f.job.o.z, f.job.o.z_scale = operand(c, 6), operand(c, 7), operand(c, 8)
    f.job.o.z_zero, f.job.o.y = operand(c, 9), c.out[0]
    read_operands(c, &f.job)
    return run_convolution(&f, c, <const char *> c.in_[10].data, c.ints[N_INTS])


cdef int convolution_f32(const ev_call *c) noexcept nogil:
    """in: X, B, Z, slope, packed weights; out: Y; ints and reals: the same."""
    cdef Convolution f
    cdef ev_tensor *b = operand(c, 1)
    cdef ev_tensor *z = operand(c, 2)
    memset(&f.job.o, 0, sizeof(f.job.o))
    f.job.call, f.job.o.x, f.job.o.y = c, c.in_[0], c.out[0]
    f.job.x_type, f.job.x_zero, f.job.stage[4] = EV_FLOAT, 0, 4
    f.job.stage[0] = 1
    f.job.stage[1] = f.job.stage[2] = f.job.stage[3] = 0
    f.bias = NULL if b == NULL else <const float *> b.data
    f.residual = NULL if z == NULL else <const float *> z.data
    set_activation(c, &f.activation)
    f.activation.slope = NULL if operand(c, 3) == NULL else <const float *> operand(c, 3).data
    return run_convolution(&f, c, <const char *> c.in_[4].data, c.ints[N_INTS])


cdef void set_activation(const ev_call *c, ev_epilogue *e) noexcept nogil:
    memset(e, 0, sizeof(ev_epilogue))
    e.activation, e.a, e.b = <int32_t> c.ints[0], <float> c.reals[0], <float> c.reals[1]


# Products ------------------------------------------------------------------------------------------------------------

# Parameters of the drivers: activation, rows of A and their length, columns of Y, rows of a group.
cdef enum:
    P_ACTIVATION, P_M, P_K, P_N, P_HEIGHT

ctypedef struct Product:
    const ev_call *call
    Weights w
    int64_t m, k, n, size        # size: of an element of the panel
    int64_t block, shares        # rows of A at a time; shares of the columns
    int64_t slot, at_panel, at_offset, at_sum, at_turned
    const ev_tensor *a
    float params[5]              # of qc_stage
    ev_qgemm g                   # operands and epilogue of int8
    int32_t a_zero               # as A is staged
    const float *bias            # of float32
    const float *residual
    ev_epilogue activation


cdef void product_layout(Product *f, int32_t threads) noexcept nogil:
    f.block = 1 if f.m < FEW_ROWS else EV_SP_NR
    # Rows of A as they are staged; their transpose, and where its rows lie; sums of 16 columns; those transposed.
    f.at_panel = round64(f.k * f.block * f.size)
    f.at_offset = f.at_panel + round64(f.k * f.block * f.size + SLACK)
    f.at_sum = f.at_offset + (round64(4 * f.k) if f.block > 1 else 0)
    f.at_turned = f.at_sum + round64(EV_QNR * f.block * 4 + SLACK)
    f.slot = f.at_turned + round64(EV_QNR * f.block * 4 + SLACK)
    f.shares = max(1, min(ceil_div(f.n, EV_QNR), ceil_div(threads * f.block, f.m)))


cdef void product_items(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Items [begin, end): shares of the columns and blocks of A's rows, the first faster."""
    cdef Product *f = <Product *> ctx
    cdef char *rows = <char *> f.call.scratch + worker * f.slot
    cdef char *panel = rows + f.at_panel
    cdef int32_t *offset = <int32_t *> (rows + f.at_offset)
    cdef char *sum = rows + f.at_sum
    cdef char *turned = rows + f.at_turned
    cdef const char *x
    cdef int64_t item, i0, m, i, n0, n, g, share = ceil_div(ceil_div(f.n, EV_QNR), f.shares) * EV_QNR, staged = -1
    if f.block > 1:
        list_panel(f.k, offset)
    for item in range(begin, end):
        i0 = item // f.shares * f.block
        m = min(f.block, f.m - i0)
        if i0 != staged:
            staged = i0
            x = <const char *> f.a.data + i0 * f.k * ev_item_size(f.a.dtype)
            if f.size == 1:
                K.qc_stage(f.a.dtype, m * f.k, 1, x, f.params, rows)
                x = rows
            if f.block > 1:
                K.move_transpose(<int> f.size, f.k, m, x, f.k, panel, EV_SP_NR)
                x = panel
        n0 = item % f.shares * share
        while n0 < min(f.n, (item % f.shares + 1) * share):
            n = min(<int64_t> EV_QNR, f.n - n0)
            for g in range(ceil_div(n, f.w.height)):
                if f.block > 1:
                    tile(&f.w, n0 // f.w.height + g, x, offset, ~<uint64_t> 0,
                         sum + g * f.w.height * EV_SP_NR * 4, EV_SP_NR)
                else:
                    dot(&f.w, n0 // f.w.height + g, x, turned + g * f.w.height * 4)
            if f.block > 1:
                K.move_transpose(4, m, EV_QNR, sum, EV_SP_NR, turned, EV_QNR)
            finish_columns(f, i0, m, n0, n, turned)
            n0 += EV_QNR


cdef void finish_columns(Product *f, int64_t i0, int64_t m, int64_t n0, int64_t n, char *sums) noexcept nogil:
    """Rows [i0, i0+m), columns [n0, n0+n) of Y, from sums [m][16]."""
    cdef ev_sums s
    cdef int32_t add[16]
    cdef int64_t i, j
    cdef float *y
    if f.size == 1:
        memset(&s, 0, sizeof(s))
        memset(add, 0, sizeof(add))
        for j in range(n):
            add[j] = -f.a_zero * f.w.totals[n0 + j]
        s.c, s.ldc, s.j0, s.n, s.col_add = f.g.c, f.n, n0, n, add
        i = 0
        while i < m:
            s.i0, s.m, s.sum = i0 + i, min(<int64_t> EV_QMC, m - i), <const int32_t *> sums + i * EV_QNR
            K.qfinish(&f.g.q, &s)
            i += EV_QMC
        return
    for i in range(m):
        y = <float *> f.call.out[0].data + (i0 + i) * f.n + n0
        for j in range(n):
            y[j] = (<const float *> sums)[i * EV_QNR + j]
        if f.bias != NULL:
            for j in range(n):
                y[j] += f.bias[n0 + j]
        if f.residual != NULL:
            for j in range(n):
                y[j] += f.residual[(i0 + i) * f.n + n0 + j]
        K.activate_f32(&f.activation, 1, n, 0, y, 0)


cdef void run_product(Product *f, const ev_call *c, const char *weights) noexcept nogil:
    cdef int64_t items
    f.call = c
    f.m, f.k, f.n, f.a = c.ints[P_M], c.ints[P_K], c.ints[P_N], c.in_[0]
    product_layout(f, c.threads)
    set_weights(&f.w, weights, c.ints[P_HEIGHT], 1, f.n, f.size)
    items = ceil_div(f.m, f.block) * f.shares
    parallel_for(product_items, f, items, max(1, 4 * MACS_PER_TASK // max(1, f.m * f.n * f.k // items)), c.threads)


def product_scratch(int64_t m, int64_t k, int64_t n, int64_t size, int32_t threads) -> int:
    """Scratch bytes of the products; size: 1 for int8, 4 for float32."""
    cdef Product f
    if m == 0 or n == 0:
        return 0
    f.m, f.k, f.n, f.size = m, k, n, size
    product_layout(&f, threads)
    return threads * f.slot


cdef float number(const ev_tensor *t) noexcept nogil:
    """A scale, 1 where it is absent; or a zero point of bytes or int16."""
    if t.dtype == EV_FLOAT:
        return (<const float *> t.data)[0]
    if t.dtype == EV_UINT8:
        return (<const uint8_t *> t.data)[0]
    return (<const int8_t *> t.data)[0] if t.dtype == EV_INT8 else (<const int16_t *> t.data)[0]


cdef int product_s8(const ev_call *c) noexcept nogil:
    """in: a, a_scale, a_zero_point, b_scale, y_scale, y_zero_point, B, Z, z_scale, z_zero_point, packed weights; out: y;
    ints: see P_*; reals: activation parameters."""
    cdef Product f
    cdef ev_tensor *zero = operand(c, 2)
    cdef ev_tensor *z = operand(c, 7)
    cdef ev_tensor *y = c.out[0]
    cdef int32_t kind
    if y.size == 0:
        return EV_OK
    f.size = 1
    kind = zero.dtype if c.in_[0].dtype == EV_FLOAT else c.in_[0].dtype
    f.a_zero = (0 if zero == NULL else <int32_t> number(zero)) + (128 if kind == EV_INT8 else 0)
    f.params[0], f.params[1], f.params[2], f.params[3], f.params[4] = number(operand(c, 1)), f.a_zero, 0, 255, 1
    qgemm_init(&f.g, c.ints[P_M], c.ints[P_N], c.ints[P_K], NULL, EV_UINT8, NULL, EV_INT8, y.data, y.dtype)
    f.g.q.activation, f.g.q.a, f.g.q.b = <int32_t> c.ints[P_ACTIVATION], <float> c.reals[0], <float> c.reals[1]
    f.g.q.scale, f.g.q.factor = <const float *> operand(c, 3).data, number(operand(c, 1))
    f.g.q.scale_axis = 0 if operand(c, 3).size == 1 else EV_BIAS_COLUMN
    if operand(c, 4) != NULL:
        f.g.q.y_scale, f.g.q.y_zero = number(operand(c, 4)), <int32_t> number(operand(c, 5))
    if operand(c, 6) != NULL:
        f.g.q.bias, f.g.q.bias_type, f.g.q.bias_axis = operand(c, 6).data, operand(c, 6).dtype, EV_BIAS_COLUMN
    if z != NULL:
        f.g.q.residual, f.g.q.residual_type = z.data, z.dtype
        if operand(c, 8) != NULL:
            f.g.q.residual_scale = number(operand(c, 8))
        if operand(c, 9) != NULL:
            f.g.q.residual_zero = <int32_t> number(operand(c, 9))
    f.g.q.range = c.range
    run_product(&f, c, <const char *> c.in_[10].data)
    return EV_OK


cdef int product_f32(const ev_call *c) noexcept nogil:
    """in: A, bias [n], Z, packed weights; out: Y; ints and reals: the same."""
    cdef Product f
    if c.out[0].size == 0:
        return EV_OK
    f.size = 4
    f.bias = NULL if operand(c, 1) == NULL else <const float *> operand(c, 1).data
    f.residual = NULL if operand(c, 2) == NULL else <const float *> operand(c, 2).data
    set_activation(c, &f.activation)
    run_product(&f, c, <const char *> c.in_[3].data)
    return EV_OK


DRIVERS = {}
register(DRIVERS, "convolution_s8", convolution_s8)
register(DRIVERS, "convolution_f32", convolution_f32)
register(DRIVERS, "product_s8", product_s8)
register(DRIVERS, "product_f32", product_f32)
