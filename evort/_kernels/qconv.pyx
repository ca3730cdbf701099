"""Drivers of the integer convolutions: products with panels of bytes, depthwise, transposed.

An image is first staged: copied to scratch as uint8 (int8 with the highest bit flipped, float32 quantized on the way)
or int16, with its padding, and with the elements that a strided window skips in planes of their own. Then every row of
the im2col matrix is a run of successive elements of the staged image, from offset[channel, tap] on, whatever strides,
dilations and pads there are. An image without padding and strides is read where it lies.

    for each band of output positions            staged, at most STAGE_BYTES
      for blocks of columns                      panels of B packed, PANEL_BYTES
        for 4 rows of W                          made safe for 16-bit sums (qconv_body.h)
          tiles -> int32 sums -> scale, residual, activation, rounding -> y

A transposed convolution is one such product for each of its phases (output positions a stride apart meet the same
taps), whose results are put at their places. With x' = x + 128 for int8, w' = w - 128 for uint8:
    sum (x - x_zero)(w - w_zero) = sum x'w' - x_zero' sum(w' - w_zero') - w_zero' sum x'.
"""
from libc.math cimport INFINITY, rint
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t
from libc.string cimport memcpy, memset
from evort._kernels.core cimport (EV_ACT_CLIP, EV_ACT_NONE, EV_ACT_RELU, EV_FLOAT, EV_INT8, EV_INT16, EV_INT32,
                                  EV_OK, EV_QC_MR, EV_QC_NR, EV_QC_STEP, EV_QD_LANES, EV_UINT8, ev_call,
                                  ev_item_size, ev_qextra, ev_qfinish, ev_qrun, ev_qtaps, ev_tensor, ev_ukr,
                                  parallel_for, register, ukernels)

cdef const ev_ukr *K = ukernels()

cdef enum:
    STAGE_BYTES = 192 * 1024     # of a staged band
    PANEL_BYTES = 96 * 1024      # of packed columns, which stay in L2
    MOST_COLUMNS = 512           # whose sums stay in L1
    WIDE_K = 256                 # products of int16 and the difference of bytes that 32 bits hold
    LARGEST = 1 << 30            # bytes of a staged image
    CHUNK = 2048                 # depthwise sums at a time
    MACS_PER_TASK = 1 << 18      # less work than this is not worth waking a thread
    PHASES = 1024                # the largest stride

# Parameters of the drivers, in order.
cdef enum:
    I_ACTIVATION, I_GROUP
    I_WINDOW                     # image, out, kernel, strides, dilations, pads of three axes (as Window.ints)
    I_TRANSPOSED = 20
    I_N, I_C, I_M                # images, channels in and out
    I_SIZE                       # bytes of an element of the staged image
    I_FLOAT                      # x is float32

# One spatial axis. Position j of the output (of a phase) and tap t meet element j + shift of plane `plane`.
ctypedef struct Axis:
    int64_t size, count          # elements of x; positions of the output (of the first phase)
    int64_t out, kernel, stride, dilation, pad
    int64_t step                 # from an element of a plane to the next, in x
    int64_t low, high            # least and greatest place of a tap
    int64_t length               # elements of a staged plane
    int32_t planes
    int16_t plane_of[PHASES]
    int16_t phase_of[PHASES]

ctypedef struct Plan:
    int64_t n, c, m, group, channels, rows, taps
    int64_t size                 # bytes of a staged element
    bint transposed, direct      # direct: x is read where it lies
    Axis axis[3]
    int cut                      # the axis that bands cut
    int64_t band, bands, parts   # positions along it; shares of the rows of W
    int64_t plane                # elements of a staged plane
    int64_t k, kp, columns       # most rows of B, rounded up; columns of a block
    # Offsets into a thread's scratch.
    int64_t at_offset, at_tap, at_panel, at_rows, at_a, at_extra, at_sum, at_column, at_line, slot

ctypedef struct Operands:
    ev_tensor *x
    ev_tensor *x_scale
    ev_tensor *x_zero
    ev_tensor *w
    ev_tensor *w_scale
    ev_tensor *w_zero
    ev_tensor *y_scale
    ev_tensor *y_zero
    ev_tensor *b
    ev_tensor *z
    ev_tensor *z_scale
    ev_tensor *z_zero
    ev_tensor *y

ctypedef struct Job:
    const ev_call *call
    Plan plan
    Operands o
    ev_qfinish finish
    int32_t x_type               # of its integers
    int64_t x_zero               # as the staged image has it
    float x_scale
    float stage[5]               # parameters of qc_stage
    int32_t w_flip
    int64_t w_shift              # what w_flip takes off
    const ev_qtaps *taps         # depthwise: pairs of taps, those of channel m from starts[m] on
    const int32_t *starts


cdef inline int64_t round64(int64_t bytes) noexcept nogil:
    return (bytes + 63) // 64 * 64


cdef inline int64_t ceil_div(int64_t a, int64_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline int64_t floor_div(int64_t a, int64_t b) noexcept nogil:
    return a // b if a >= 0 else -((b - 1 - a) // b)


# Geometry ------------------------------------------------------------------------------------------------------------

cdef inline bint tap_place(const Axis *a, bint transposed, int64_t phase, int64_t tap, int64_t *place,
                           int64_t *rest) noexcept nogil:
    """Where a tap lies for the positions of a phase: element position + place of the plane of `rest`."""
    cdef int64_t v
    if transposed:
        v = phase + a.pad - tap * a.dilation
        place[0] = floor_div(v, a.stride)
        rest[0] = 0
        return v == place[0] * a.stride
    v = tap * a.dilation - a.pad
    place[0] = floor_div(v, a.stride)
    rest[0] = v - place[0] * a.stride
    return True


cdef void plan_axis(Axis *a, bint transposed) noexcept nogil:
    cdef int64_t phase, tap, place = 0, rest = 0, phases = min(a.stride, a.out) if transposed else 1
    cdef bint any_tap = False
    a.planes = 1 if transposed else 0
    a.step = 1 if transposed else a.stride
    a.count = ceil_div(a.out, a.stride) if transposed else a.out
    memset(a.plane_of, 0, sizeof(a.plane_of))
    memset(a.phase_of, 0, sizeof(a.phase_of))
    if not transposed:
        for phase in range(PHASES):
            a.plane_of[phase] = -1
    a.low, a.high = 0, 0
    for phase in range(phases):
        for tap in range(a.kernel):
            if not tap_place(a, transposed, phase, tap, &place, &rest):
                continue
            a.low = min(a.low, place) if any_tap else place
            a.high = max(a.high, place) if any_tap else place
            any_tap = True
            if a.plane_of[rest] < 0:
                a.plane_of[rest] = <int16_t> a.planes
                a.phase_of[a.planes] = <int16_t> rest
                a.planes += 1


cdef void make_plan(Plan *p, const int64_t *v, int32_t threads, bint depthwise) noexcept nogil:
    cdef const int64_t *g = v + I_WINDOW
    cdef Axis *a
    cdef int i
    cdef int64_t items, fixed, unit, positions = 1
    p.n, p.c, p.m, p.group, p.size = v[I_N], v[I_C], v[I_M], v[I_GROUP], v[I_SIZE]
    p.transposed = v[I_TRANSPOSED]
    p.channels, p.rows = p.c // p.group, p.m // p.group
    p.taps = g[6] * g[7] * g[8]
    p.direct = not p.transposed and not v[I_FLOAT] and not depthwise
    for i in range(3):
        a = &p.axis[i]
        a.size = g[3 + i] if p.transposed else g[i]
        a.out = g[i] if p.transposed else g[3 + i]
        a.kernel, a.stride, a.dilation, a.pad = g[6 + i], g[9 + i], g[12 + i], g[15 + i]
        plan_axis(a, p.transposed)
        if a.stride != 1 and (a.count > 1 or a.kernel > 1) or a.low < 0 or a.count + a.high > a.size:
            p.direct = False
    p.direct = p.direct and p.axis[0].size * p.axis[1].size * p.axis[2].size * p.channels < (1 << 30)
    p.cut = 0
    while p.cut < 2 and p.axis[p.cut].count == 1:
        p.cut += 1
    # Bands: what is staged stays in L2, and every thread gets its share.
    a = &p.axis[p.cut]
    fixed = p.size * (1 if depthwise else p.channels)
    for i in range(3):
        fixed *= p.axis[i].planes
        if i != p.cut:
            fixed *= p.axis[i].count + p.axis[i].high - p.axis[i].low
            positions *= p.axis[i].count
    p.band = a.count
    if not p.direct:
        p.band = min(p.band, max(1, STAGE_BYTES // max(1, fixed) - (a.high - a.low)))
    items = p.n * (p.m if depthwise else p.group)
    if threads > 1 and items < 2 * threads:
        unit = max(1, min(max(1, 64 // positions), a.count))
        p.band = min(p.band, ceil_div(ceil_div(a.count, ceil_div(2 * threads, items)), unit) * unit)
    p.bands = ceil_div(a.count, p.band)
    p.band = ceil_div(a.count, p.bands)
    p.parts = 1
    if threads > 1 and items * p.bands < threads and not depthwise:
        p.parts = max(1, min(ceil_div(threads, items * p.bands), p.rows // 8))
    p.plane = 1
    for i in range(3):
        a = &p.axis[i]
        a.length = a.size if p.direct else (p.band if i == p.cut else a.count) + a.high - a.low
        p.plane *= a.length
    p.k = p.channels * p.taps
    p.kp = ceil_div(p.k, EV_QC_STEP) * EV_QC_STEP
    positions *= p.band
    p.columns = max(1, min(MOST_COLUMNS, PANEL_BYTES // max(1, p.kp * p.size)) // EV_QC_NR) * EV_QC_NR
    p.columns = min(p.columns, ceil_div(positions, EV_QC_NR) * EV_QC_NR)
    # The staged image first; reads may go beyond its end by two vectors.
    cdef int64_t at = 0 if p.direct else round64(fixed * (p.band + p.axis[p.cut].high - p.axis[p.cut].low)
                                                 + 2 * EV_QD_LANES * p.size)
    p.at_offset = at
    at += round64(4 * max(p.taps, 0 if depthwise else p.kp))
    p.at_tap = at
    at += round64(4 * p.taps)
    p.at_sum = at
    if depthwise:
        at += 4 * (CHUNK + max(CHUNK, p.axis[2].length) + EV_QD_LANES)
        p.at_a = at
        p.slot = round64(at + 2 * p.taps)
        return
    at += round64(EV_QC_MR * p.columns * 4)  # or one row of 64 bits
    p.at_panel = at
    at += round64(p.kp * p.columns * p.size)
    p.at_rows = at
    at += round64((p.kp + 1) * EV_QC_NR * p.size)
    p.at_a = at
    at += round64(EV_QC_MR * p.kp * p.size)
    p.at_extra = at
    at += round64(EV_QC_MR * p.kp * 4) if p.size == 1 else 0
    p.at_column = at
    at += round64(4 * p.columns)
    p.at_line = at
    at += round64(8 * p.columns) if p.transposed else 0
    p.slot = at


# Operands ------------------------------------------------------------------------------------------------------------

cdef inline ev_tensor *operand(const ev_call *c, int i) noexcept nogil:
    return NULL if i >= c.n_in else c.in_[i]


cdef inline float scale_of(const ev_tensor *t, int64_t i) noexcept nogil:
    if t == NULL:
        return 1
    return (<const float *> t.data)[i if t.size > 1 else 0]


cdef inline int64_t zero_of(const ev_tensor *t, int64_t i) noexcept nogil:
    if t == NULL:
        return 0
    i = i if t.size > 1 else 0
    if t.dtype == EV_UINT8:
        return (<const uint8_t *> t.data)[i]
    if t.dtype == EV_INT8:
        return (<const int8_t *> t.data)[i]
    return (<const int16_t *> t.data)[i]


cdef inline int64_t step_of(float bound, float unit, int64_t zero, int64_t lo, int64_t hi) noexcept nogil:
    """A bound of the activation as a number of the result's type."""
    cdef double v = bound / unit, least = <double> (lo - zero), most = <double> (hi - zero)
    v = v if v > least else least
    v = v if v < most else most
    return <int64_t> rint(v) + zero


cdef void read_operands(const ev_call *c, Job *job) noexcept nogil:
    """All of the job but its plan and, for ConvInteger, what comes after the sums."""
    cdef Operands *o = &job.o
    cdef ev_qfinish *f = &job.finish
    cdef int64_t lo, hi
    job.call = c
    job.x_type = o.x.dtype if o.x.dtype != EV_FLOAT else o.x_zero.dtype
    job.x_zero = zero_of(o.x_zero, 0) + (128 if job.x_type == EV_INT8 else 0)
    job.x_scale = scale_of(o.x_scale, 0)
    job.stage[0], job.stage[1] = job.x_scale, <float> job.x_zero
    job.stage[2], job.stage[3], job.stage[4] = 0, 255, 1
    if job.x_type == EV_INT16:
        job.stage[2], job.stage[3], job.stage[4] = -32768, 32767, 2
    job.w_flip = 0x80 if o.w.dtype == EV_UINT8 else 0
    job.w_shift = 128 if o.w.dtype == EV_UINT8 else 0
    memset(f, 0, sizeof(ev_qfinish))
    f.type = o.y.dtype
    f.activation = <int32_t> c.ints[I_ACTIVATION]
    if c.n_reals > 1:
        f.a, f.b = <float> c.reals[0], <float> c.reals[1]
    f.unit = scale_of(o.y_scale, 0)
    f.zero = <int32_t> zero_of(o.y_zero, 0)
    lo, hi = 0, 255
    if f.type == EV_INT8:
        lo, hi = -128, 127
    elif f.type == EV_INT16:
        lo, hi = -32768, 32767
    if o.z != NULL:
        f.z_type, f.z_zero, f.z_scale = o.z.dtype, <int32_t> zero_of(o.z_zero, 0), scale_of(o.z_scale, 0)
    f.folds = o.z == NULL and f.activation in (EV_ACT_NONE, EV_ACT_RELU, EV_ACT_CLIP) and f.type != EV_FLOAT
    f.lo, f.hi = <int32_t> lo, <int32_t> hi
    if f.folds and f.type != EV_INT32 and f.activation != EV_ACT_NONE:
        if f.activation == EV_ACT_RELU:
            f.a, f.b = 0, INFINITY
        f.lo = <int32_t> step_of(f.a, f.unit, f.zero, lo, hi)
        f.hi = <int32_t> step_of(f.b, f.unit, f.zero, lo, hi)
    if f.type == EV_FLOAT and f.activation == EV_ACT_NONE and o.z == NULL:
        f.folds = True


cdef inline float row_scale(const Job *job, int64_t m) noexcept nogil:
    cdef float s = job.x_scale * scale_of(job.o.w_scale, m)
    return s / job.finish.unit if job.finish.folds and job.finish.type != EV_FLOAT else s


cdef inline int64_t row_add(const Job *job, int64_t m, int64_t weights) noexcept nogil:
    """What is added to the sums of channel m; weights: the sum of its weights, less their zero points."""
    cdef int64_t b = 0 if job.o.b == NULL else (<const int32_t *> job.o.b.data)[m]
    return b - job.x_zero * weights


# Staging -------------------------------------------------------------------------------------------------------------

cdef void fill(char *to, int64_t n, int64_t size, int64_t value) noexcept nogil:
    cdef int64_t i
    if size == 1:
        memset(to, <int> value, n)
    else:
        for i in range(n):
            (<int16_t *> to)[i] = <int16_t> value


cdef void stage(const Job *job, const char *x, int64_t channels, int64_t first, char *to) noexcept nogil:
    """The planes of `channels` channels for positions from `first` of the cut axis on."""
    cdef const Plan *p = &job.plan
    cdef const Axis *a = &p.axis[0]
    cdef int64_t c, d, h, base[3], begin, end, row, from_, inside = a[0].size * a[1].size * a[2].size
    cdef int64_t item = ev_item_size(job.o.x.dtype)
    cdef int i, pd, ph, pw
    for i in range(3):
        base[i] = a[i].low + (first if i == p.cut else 0)
    for c in range(channels):
        for pd in range(a[0].planes):
            for ph in range(a[1].planes):
                for pw in range(a[2].planes):
                    # Elements begin..end of each row lie inside x.
                    from_ = a[2].phase_of[pw] + base[2] * a[2].step
                    begin = 0 if from_ >= 0 else min(a[2].length, ceil_div(-from_, a[2].step))
                    end = 0 if from_ >= a[2].size else min(a[2].length, ceil_div(a[2].size - from_, a[2].step))
                    end = max(begin, end)
                    for d in range(a[0].length):
                        for h in range(a[1].length):
                            row = (d + base[0]) * a[0].step + a[0].phase_of[pd]
                            if row < 0 or row >= a[0].size:
                                row = -1
                            else:
                                row = row * a[1].size
                                from_ = (h + base[1]) * a[1].step + a[1].phase_of[ph]
                                row = -1 if from_ < 0 or from_ >= a[1].size else row + from_
                            if row < 0:
                                fill(to, a[2].length, p.size, job.x_zero)
                            else:
                                fill(to, begin, p.size, job.x_zero)
                                from_ = (c * inside + row * a[2].size + a[2].phase_of[pw]
                                         + (base[2] + begin) * a[2].step)
                                K.qc_stage(job.o.x.dtype, end - begin, a[2].step, x + from_ * item, job.stage,
                                           to + begin * p.size)
                                fill(to + end * p.size, a[2].length - end, p.size, job.x_zero)
                            to += a[2].length * p.size


cdef int64_t list_taps(const Plan *p, const int64_t *phase, int32_t *offset, int32_t *tap) noexcept nogil:
    """The taps that a phase meets: their places in the staged image and their numbers. Returns how many."""
    cdef const Axis *a = &p.axis[0]
    cdef int64_t d, h, w, place[3], rest[3], at[3], found = 0, plane
    cdef int i
    for d in range(a[0].kernel):
        if not tap_place(&a[0], p.transposed, phase[0], d, &place[0], &rest[0]):
            continue
        for h in range(a[1].kernel):
            if not tap_place(&a[1], p.transposed, phase[1], h, &place[1], &rest[1]):
                continue
            for w in range(a[2].kernel):
                if not tap_place(&a[2], p.transposed, phase[2], w, &place[2], &rest[2]):
                    continue
                plane = 0
                for i in range(3):
                    at[i] = place[i] if p.direct else place[i] - a[i].low
                    plane = 0 if p.direct else plane * a[i].planes + a[i].plane_of[rest[i]]
                offset[found] = <int32_t> (plane * p.plane + (at[0] * a[1].length + at[1]) * a[2].length + at[2])
                tap[found] = <int32_t> ((d * a[1].kernel + h) * a[2].kernel + w)
                found += 1
    return found


# Products ------------------------------------------------------------------------------------------------------------

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
    for move in range(2):
        if move == 1:
            K.qc_finish(&job.finish, k.n, sum, wide, add, scale, NULL if z == NULL else z_line, line)
        elif z == NULL:
            continue
        for j in range(k.n):
            row, w = (k.j0 + j) // k.count[2], (k.j0 + j) % k.count[2]
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
                memcpy(z_line + j * z_size, z + at * z_size, z_size)
            elif y_size == 1:
                y[at] = line[j]
            else:
                memcpy(y + at * y_size, line + j * y_size, y_size)


cdef bint column_sums(const Job *job, const Block *k) noexcept nogil:
    """sum x' of each column, where a zero point of W asks for them."""
    cdef const Plan *p = &job.plan
    cdef int64_t m, j = 0
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
    while j < k.n:
        K.qc_tile(1, 4, k.kp, ones, k.kp, panel + j * k.kp, &extra, &none,
                  <int32_t *> (k.scratch + p.at_column) + j, p.columns)
        j += EV_QC_NR
    return True


cdef void rows_of_bytes(const Job *job, const Block *k) noexcept nogil:
    cdef const Plan *p = &job.plan
    cdef int8_t *a = <int8_t *> (k.scratch + p.at_a)
    cdef const uint8_t *panel = <const uint8_t *> (k.scratch + p.at_panel)
    cdef int32_t *sum = <int32_t *> (k.scratch + p.at_sum)
    cdef ev_qextra *extra = <ev_qextra *> (k.scratch + p.at_extra)
    cdef const ev_qextra *extras[4]
    cdef int32_t found[4]
    cdef int32_t total[4]
    cdef int64_t m, i, j, some, w_zero, channel, moved
    cdef int s
    cdef bint shifted = column_sums(job, k)
    m = k.m0
    while m < k.m1:
        some = min(<int64_t> EV_QC_MR, k.m1 - m)
        s, moved = 4, 0
        for i in range(some):
            total[i] = weights_row(job, k, m + i, a + i * k.kp)
            extras[i] = extra + i * (k.kp // 2)
            K.qc_prepare(k.kp, 4, a + i * k.kp, extra + i * (k.kp // 2), &found[i])
            moved += found[i]
        if 40 * moved > some * k.kp:
            s = 2
            for i in range(some):
                weights_row(job, k, m + i, a + i * k.kp)
                K.qc_prepare(k.kp, 2, a + i * k.kp, extra + i * (k.kp // 2), &found[i])
        j = 0
        while j < k.n:
            K.qc_tile(some, s, k.kp, a, k.kp, panel + j * k.kp, extras, found, sum + j, p.columns)
            j += EV_QC_NR
        for i in range(some):
            channel = k.group * p.rows + m + i
            w_zero = zero_of(job.o.w_zero, channel) - job.w_shift
            if shifted:
                K.qc_shift(k.n, <int32_t> w_zero, <const int32_t *> (k.scratch + p.at_column), sum + i * p.columns)
            put_row(job, k, m + i, sum + i * p.columns, NULL, row_add(job, channel, total[i] - k.k * w_zero),
                    row_scale(job, channel))
        m += some


cdef void rows_of_i16(const Job *job, const Block *k) noexcept nogil:
    """One row of W at a time, in blocks of WIDE_K, whose sums are added up in 64 bits."""
    cdef const Plan *p = &job.plan
    cdef int8_t *narrow = <int8_t *> (k.scratch + p.at_a)
    cdef int16_t *a = <int16_t *> (narrow + k.kp)
    cdef const int16_t *panel = <const int16_t *> (k.scratch + p.at_panel)
    cdef int64_t *sum = <int64_t *> (k.scratch + p.at_sum)
    cdef int32_t part[16]
    cdef int64_t m, i, j, q, w_zero, channel, total, kb
    for m in range(k.m0, k.m1):
        channel = k.group * p.rows + m
        w_zero = zero_of(job.o.w_zero, channel) - job.w_shift
        total = weights_row(job, k, m, narrow) - k.k * w_zero
        for i in range(k.kp):
            a[i] = <int16_t> (narrow[i] - w_zero) if i < k.k else 0
        j = 0
        while j < k.n:
            for i in range(EV_QC_NR):
                sum[j + i] = 0
            q = 0
            while q < k.kp:
                kb = min(<int64_t> WIDE_K, k.kp - q)
                K.qc_tile_i16(1, kb, a + q, k.kp, panel + j * k.kp + q * EV_QC_NR, part, EV_QC_NR)
                for i in range(EV_QC_NR):
                    sum[j + i] += part[i]
                q += kb
            j += EV_QC_NR
        put_row(job, k, m, NULL, sum, row_add(job, channel, total), row_scale(job, channel))


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
    k.j0 = 0
    while k.j0 < total:
        k.n = min(p.columns, total - k.j0)
        pack_columns(job, k)
        if p.size == 1:
            rows_of_bytes(job, k)
        else:
            rows_of_i16(job, k)
        k.j0 += p.columns


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


cdef void take_linear(const ev_call *c, Job *job) noexcept nogil:
    cdef Operands *o = &job.o
    o.x, o.x_scale, o.x_zero = operand(c, 0), operand(c, 1), operand(c, 2)
    o.w, o.w_scale, o.w_zero = operand(c, 3), operand(c, 4), operand(c, 5)
    o.y_scale, o.y_zero, o.b = operand(c, 6), operand(c, 7), operand(c, 8)
    o.z, o.z_scale, o.z_zero = operand(c, 9), operand(c, 10), operand(c, 11)
    o.y = c.out[0]
    read_operands(c, job)


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


def scratch_bytes(ints, int32_t threads, bint depthwise) -> int:
    """Scratch bytes of these drivers, or -1 where the window is too far spread or its strides are too large."""
    cdef int64_t[26] values
    cdef int i
    cdef Plan plan
    cdef double size = 1
    for i in range(26):
        values[i] = ints[i]
    if values[I_M] == 0 or values[I_C] == 0:
        return 0
    for i in range(3):
        if values[I_WINDOW + 9 + i] > PHASES:
            return -1
    make_plan(&plan, values, threads, depthwise)
    for i in range(3):
        size *= <double> plan.axis[i].length * max(1, plan.axis[i].planes)
    return threads * plan.slot if size * plan.channels * plan.size < LARGEST else -1


DRIVERS = {}
register(DRIVERS, "linear", linear)
register(DRIVERS, "integer", integer)
