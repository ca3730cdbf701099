"""Geometry, scratch and staging of the integer convolutions; qconv.pyx says how they work.

An image is staged in planes: element e of a plane of an axis is element step*(e + low + first) + phase of x. A window
of stride s has a plane for each phase (remainder by s) that one of its taps meets.
"""
from libc.math cimport INFINITY, rint
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t
from libc.string cimport memcpy, memset
from evort._kernels.core cimport (EV_ACT_CLIP, EV_ACT_NONE, EV_ACT_RELU, EV_FLOAT, EV_INT8, EV_INT16, EV_INT32,
                                  EV_QC_MR, EV_QC_NR, EV_QC_PLAIN_MR, EV_QC_STEP, EV_QD_LANES, EV_UINT8, address, ev_item_size, ev_ukr,
                                  ukernels)

cdef const ev_ukr *K = ukernels()

cdef enum:
    STAGE_BYTES = 192 * 1024     # of a staged band
    LARGEST = 1 << 30            # the same, at most, however little is in it
    PANEL_BYTES = 192 * 1024     # of packed columns, which stay in L2
    FEWEST_COLUMNS = 64          # of a block, as each block reads the weights again
    MOST_COLUMNS = 512           # whose sums stay in L1
    PACK_CYCLES = 12             # to pack a quad of 16 columns
    WEIGHT_CYCLES = 48           # to put the weights of 16 quads in order


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
    for phase in range(1 if transposed else a.stride):
        a.plane_of[phase], a.phase_of[phase] = 0 if transposed else -1, 0
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


cdef bint takes_quads(const Plan *p, bint shifted) noexcept nogil:
    """Whether a convolution is better off with an image staged in quads of channels, from which every tap is read, than
    with panels packed for each tap; in cycles for 16 positions, about."""
    cdef const Axis *a = &p.axis[0]
    cdef double positions = <double> (a[0].count * a[1].count * a[2].count)
    cdef double panels, quads
    if shifted or p.transposed or p.size != 1 or p.taps <= 1 or a[2].count + a[2].high - a[2].low > MOST_COLUMNS:
        return False
    panels = ceil_div(p.channels * p.taps, 4) * (p.rows + PACK_CYCLES)
    quads = p.fours * p.taps * p.rows * ((a[2].count + a[2].high - a[2].low) / <double> a[2].count
                                         + WEIGHT_CYCLES / positions) + p.fours * PACK_CYCLES
    return quads < panels


cdef void make_plan(Plan *p, const int64_t *v, int32_t threads, bint depthwise) noexcept nogil:
    cdef const int64_t *g = v + I_WINDOW
    cdef Axis *a
    cdef int i
    cdef int64_t items, fixed, unit, positions = 1
    p.n, p.c, p.m, p.group, p.size = v[I_N], v[I_C], v[I_M], v[I_GROUP], v[I_SIZE]
    p.transposed = v[I_TRANSPOSED]
    p.channels, p.rows = p.c // p.group, p.m // p.group
    p.taps = g[6] * g[7] * g[8]
    if v[I_N] * v[I_M] * g[3] * g[4] * g[5] * p.channels * p.taps < 2 * MACS_PER_TASK and not p.transposed:
        threads = 1
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
    p.fours = ceil_div(p.channels, 4)
    p.quads = not depthwise and takes_quads(p, v[I_SHIFTED])
    p.direct = p.direct and not p.quads
    # Bands: what is staged stays in L2, and every thread gets its share.
    a = &p.axis[p.cut]
    fixed = p.size * (1 if depthwise else 4 * p.fours if p.quads else p.channels)
    for i in range(3):
        fixed *= p.axis[i].planes
        if i != p.cut:
            fixed *= p.axis[i].count + p.axis[i].high - p.axis[i].low
            positions *= p.axis[i].count
    p.band = a.count
    if not p.direct:
        p.band = min(p.band, max(<int64_t> (2 if p.quads else 1), STAGE_BYTES // max(1, fixed) - (a.high - a.low)))
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
    p.k = (4 * p.fours if p.quads else p.channels) * p.taps
    p.kp = ceil_div(p.k, EV_QC_STEP) * EV_QC_STEP
    positions *= p.band
    p.columns = max(<int64_t> FEWEST_COLUMNS, min(<int64_t> MOST_COLUMNS, PANEL_BYTES // max(1, p.kp * p.size)))
    p.columns = p.columns // EV_QC_NR * EV_QC_NR
    p.columns = min(p.columns, ceil_div(positions, EV_QC_NR) * EV_QC_NR)
    if p.quads:
        p.columns = MOST_COLUMNS
    # The staged image first; reads may go beyond its end by two vectors.
    fixed *= p.band + p.axis[p.cut].high - p.axis[p.cut].low
    cdef int64_t at = 0 if p.direct else round64(fixed + 2 * EV_QD_LANES * (4 if p.quads else p.size))
    p.at_four = at
    at += round64(fixed // p.fours + 2 * EV_QD_LANES) if p.quads else 0
    p.at_offset = at
    at += round64(4 * max(p.taps, 0 if depthwise else p.kp))
    p.at_tap = at
    at += round64(4 * p.taps)
    p.at_quad = at
    at += 0 if depthwise else round64(p.kp)
    p.at_sum = at
    if depthwise:
        at += round64(4 * (CHUNK + 2 * EV_QD_LANES))
        p.at_column = at         # the sums in 64 bits
        at += 0 if p.size == 1 else 8 * CHUNK
        p.at_a = at
        p.slot = round64(at + 2 * p.taps)
        return
    at += round64((max(<int64_t> EV_QC_PLAIN_MR, 2 * WIDE_ROWS * (p.size - 1)) * p.columns + EV_QD_LANES) * 4)
    p.at_panel = at
    at += 0 if p.quads else round64(p.kp * p.columns * p.size)
    p.at_rows = at               # or a row of W
    at += round64(p.kp + 64 if p.quads else (p.kp + 1) * EV_QC_NR * p.size)
    p.at_a = at
    at += round64(max(<int64_t> 3 * EV_QC_MR, <int64_t> EV_QC_PLAIN_MR, 2 * WIDE_ROWS * (p.size - 1)) * p.kp + 64)
    p.at_extra = at
    at += round64(EV_QC_MR * p.kp * 4) if p.size == 1 else 0
    p.at_column = at
    at += round64(4 * p.columns)
    p.at_line = at
    at += round64(8 * p.columns) if p.transposed else 0
    p.slot = at


# Operands ------------------------------------------------------------------------------------------------------------

cdef ev_tensor *operand(const ev_call *c, int i) noexcept nogil:
    return NULL if i >= c.n_in else c.in_[i]


cdef inline float scale_of(const ev_tensor *t, int64_t i) noexcept nogil:
    if t == NULL:
        return 1
    return (<const float *> t.data)[i if t.size > 1 else 0]


cdef int64_t zero_of(const ev_tensor *t, int64_t i) noexcept nogil:
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
    f.range = c.range
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


cdef float row_scale(const Job *job, int64_t m) noexcept nogil:
    cdef float s = job.x_scale * scale_of(job.o.w_scale, m)
    return s / job.finish.unit if job.finish.folds and job.finish.type != EV_FLOAT else s


cdef int64_t row_add(const Job *job, int64_t m, int64_t weights) noexcept nogil:
    cdef int64_t b = 0 if job.o.b == NULL else (<const int32_t *> job.o.b.data)[m]
    return b - job.x_zero * weights


cdef void row_factors(const Job *job, int64_t n, const int32_t *weights, int32_t *add, float *scale) noexcept nogil:
    cdef const float *scales = NULL if job.o.w_scale == NULL else <const float *> job.o.w_scale.data
    cdef float unit = job.finish.unit if job.finish.folds and job.finish.type != EV_FLOAT else 1
    cdef int64_t m
    if job.o.b == NULL:
        memset(add, 0, n * sizeof(int32_t))
    else:
        memcpy(add, job.o.b.data, n * sizeof(int32_t))
    if weights != NULL:
        K.qc_shift(n, <int32_t> job.x_zero, weights, add)
    if scales != NULL and job.o.w_scale.size > 1:
        K.qc_scales(n, job.x_scale, scales, unit, scale)
        return
    for m in range(n):
        scale[m] = job.x_scale * (1 if scales == NULL else scales[0]) / unit


cdef void take_linear(const ev_call *c, Job *job) noexcept nogil:
    cdef Operands *o = &job.o
    cdef ev_tensor *given[12]
    cdef int i
    for i in range(12):          # what follows the node's inputs is not for here
        given[i] = operand(c, i) if i < c.ints[I_INPUTS] else NULL
    o.x, o.x_scale, o.x_zero = given[0], given[1], given[2]
    o.w, o.w_scale, o.w_zero = given[3], given[4], given[5]
    o.y_scale, o.y_zero, o.b = given[6], given[7], given[8]
    o.z, o.z_scale, o.z_zero = given[9], given[10], given[11]
    o.y = c.out[0]
    read_operands(c, job)


# Staging -------------------------------------------------------------------------------------------------------------

cdef void fill(char *to, int64_t n, int64_t size, int64_t value) noexcept nogil:
    cdef int64_t i
    if size != 2:                # float32 is filled with zeros
        memset(to, <int> value, n * size)
    else:
        for i in range(n):
            (<int16_t *> to)[i] = <int16_t> value


cdef inline void find_inside(const Axis *a, int64_t from_, int64_t *begin, int64_t *end) noexcept nogil:
    """Elements begin..end of a plane's axis, the first of which is element from_ of x, lie inside x."""
    begin[0] = 0 if from_ >= 0 else min(a.length, ceil_div(-from_, a.step))
    end[0] = max(begin[0], 0 if from_ >= a.size else min(a.length, ceil_div(a.size - from_, a.step)))


cdef void stage(const Job *job, const char *x, int64_t channels, int64_t first, char *to) noexcept nogil:
    cdef const Plan *p = &job.plan
    cdef const Axis *a = &p.axis[0]
    cdef int64_t c, d, base[3], begin, end, above, below, row, rows, from_, inside = a[0].size * a[1].size * a[2].size
    cdef int64_t item = ev_item_size(job.o.x.dtype)
    cdef int i, pd, ph, pw
    for i in range(3):
        base[i] = a[i].low + (first if i == p.cut else 0)
    for c in range(channels):
        for pd in range(a[0].planes):
            for ph in range(a[1].planes):
                for pw in range(a[2].planes):
                    # Elements begin..end of rows above..below lie inside x.
                    find_inside(&a[1], a[1].phase_of[ph] + base[1] * a[1].step, &above, &below)
                    find_inside(&a[2], a[2].phase_of[pw] + base[2] * a[2].step, &begin, &end)
                    if begin > 0 or end < a[2].length:   # padding, which the rows leave as it is
                        fill(to, p.plane, p.size, job.x_zero)
                    for d in range(a[0].length):
                        row = (d + base[0]) * a[0].step + a[0].phase_of[pd]
                        rows = below - above if 0 <= row < a[0].size else 0
                        if begin == 0 and end == a[2].length:
                            fill(to, (above if rows > 0 else a[1].length) * a[2].length, p.size, job.x_zero)
                            if rows > 0:
                                fill(to + below * a[2].length * p.size, (a[1].length - below) * a[2].length, p.size,
                                     job.x_zero)
                        if rows > 0:
                            row = row * a[1].size + (above + base[1]) * a[1].step + a[1].phase_of[ph]
                            from_ = c * inside + row * a[2].size + a[2].phase_of[pw] + (base[2] + begin) * a[2].step
                            K.qc_stage_rows(job.o.x.dtype, rows, end - begin, a[2].step, x + from_ * item,
                                            a[1].step * a[2].size, job.stage,
                                            to + (above * a[2].length + begin) * p.size, a[2].length)
                        to += a[1].length * a[2].length * p.size


cdef int64_t list_taps(const Plan *p, const int64_t *phase, int32_t *offset, int32_t *tap) noexcept nogil:
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


def scratch_bytes(ints, int32_t threads, bint depthwise) -> int:
    """Scratch bytes of these drivers, or -1 where there is no channel to add up, the window is too far spread or its
    strides are too large."""
    cdef int64_t[N_INTS] values
    cdef int i
    cdef Plan plan
    cdef double size = 1
    for i in range(N_INTS):
        values[i] = ints[i]
    if values[I_C] == 0:
        return -1
    if values[I_M] == 0:
        return 0
    for i in range(3):
        if values[I_WINDOW + 9 + i] > PHASES:
            return -1
    make_plan(&plan, values, threads, depthwise)
    for i in range(3):
        size *= <double> plan.axis[i].length * max(1, plan.axis[i].planes)
    size *= <double> (4 * plan.fours if plan.quads else plan.channels)
    return threads * plan.slot if size * plan.size < LARGEST else -1


def positive(scale) -> bool:
    """Whether all of a scale, float32 and C-contiguous, are positive and finite."""
    cdef const float *at = <const float *> address(scale)
    cdef int64_t i
    for i in range(<int64_t> scale.size):
        if not 0 < at[i] < INFINITY:
            return False
    return True
