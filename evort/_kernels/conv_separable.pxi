# Part of conv.pyx: a depthwise convolution with the pointwise ones around it, strip by strip of its output rows, so that
# what they hand on never leaves the cache (the inverted residuals of MobileNetV2, arXiv:1801.04381, and the depthwise
# separable convolutions before them).
#
#     for strips of output rows (shared out to threads)              what lies between the three fits STRIP_BYTES
#       expand: a product, for the image rows that are new           hidden [channels][rows][w], rows that two strips
#       depthwise: along rows                                        need moved up; between [channels][step * ow]
#       project: a product                                           into Y
#
# Either pointwise convolution may be absent. Strips do not depend on the number of threads: the first one that a thread
# takes makes all of its image rows, of which other threads make a few as well. They are of an even number, so that two
# threads have as many each.

cdef enum:
    LAST_BYTES = 64              # of a thread's scratch, where the number of the last strip that it made comes first
    STRIP_ROWS = 4               # tiles of the depthwise convolution have up to so many, with stride 2 half of them

ctypedef struct Separable:
    const ev_call *call
    int64_t n, c, hidden, m      # images, channels in, between and out
    int64_t unit, step, strips   # strips of so many output rows, at most, in multiples of a unit
    int64_t rows, plane          # image rows that a strip reads, and elements of a channel of `hidden`
    bint expands, projects
    ev_depthwise stencil
    int64_t hidden_bytes, between_bytes, slot


cdef inline int64_t cache_bytes() noexcept nogil:
    return max(<int64_t> 256 * 1024, l2_bytes())


cdef inline int64_t strip_begin(const Separable *job, int64_t strip) noexcept nogil:
    """The first output row of a strip."""
    cdef int64_t oh = job.stencil.oh
    return min(oh, (oh + job.unit - 1) // job.unit * strip // job.strips * job.unit)


cdef inline void strip_rows(const Separable *job, int64_t strip, int64_t *low, int64_t *top) noexcept nogil:
    """The image rows that a strip reads: [low, top)."""
    cdef const ev_depthwise *d = &job.stencil
    low[0] = max(<int64_t> 0, strip_begin(job, strip) * d.sh - d.pad_h)
    top[0] = min(d.h, (strip_begin(job, strip + 1) - 1) * d.sh - d.pad_h + d.kh)


cdef void plan_separable(Separable *job, const int64_t *ints) noexcept nogil:
    """Sizes, from the ints of the driver; no strips where it does not take the convolutions."""
    cdef ev_depthwise *d = &job.stencil
    cdef ev_conv_window g
    cdef int64_t row, units, most
    job.n, job.c, job.hidden, job.m = ints[0], ints[1], ints[2], ints[3]
    job.expands, job.projects, job.strips = ints[4] != 0, ints[5] != 0, 0
    read_window(ints + 9, &g)
    set_stencil(d, &g, 1)
    if not ev_depthwise_rows(d) or min(job.n, job.c) < 1 or min(job.hidden, job.m) < 1 or min(d.oh, d.ow) < 1:
        return
    if d.pad_h > d.kh // 2 or (d.oh - 1) * d.sh - d.pad_h >= d.h:    # windows that see no row of the image
        return
    # What a strip reads and hands on fits half of L2.
    row = 4 * job.hidden * (d.sh * d.w * job.expands + d.ow * job.projects)
    job.step = (cache_bytes() // 2 - 4 * job.hidden * (d.kh - d.sh) * d.w * job.expands) // row
    if job.step < 1:
        return
    job.unit = min(job.step, <int64_t> STRIP_ROWS // d.sh)
    units = (d.oh + job.unit - 1) // job.unit
    most = min(job.step // job.unit, units)
    job.strips = (units + most - 1) // most
    if job.strips > 1:
        job.strips = min(units, (job.strips + 1) // 2 * 2)
    job.step = min(d.oh, (units + job.strips - 1) // job.strips * job.unit)
    job.rows = (job.step - 1) * d.sh + d.kh
    if job.expands:
        d.plane = job.plane = job.rows * d.w + (16 if job.rows * d.w % 1024 == 0 else 0)
    job.hidden_bytes = round64(4 * job.hidden * job.plane) if job.expands else 0
    job.between_bytes = round64(4 * job.hidden * job.step * d.ow) if job.projects else 0
    job.slot = LAST_BYTES + job.hidden_bytes + job.between_bytes + round64(max(
        gemm_scratch_within(4, job.hidden, job.rows * d.w, job.c) if job.expands else 0,
        gemm_scratch_within(4, job.m, job.step * d.ow, job.hidden) if job.projects else 0))


cdef void part_epilogue(const ev_call *c, int32_t part, ev_epilogue *e) noexcept nogil:
    """Bias and activation of the expanding, the depthwise or the projecting convolution."""
    memset(e, 0, sizeof(e[0]))
    e.bias = operand(c, 2 * part + 2)
    e.bias_axis = EV_BIAS_NONE if e.bias == NULL else EV_BIAS_ROW
    e.activation = <int32_t> c.ints[6 + part]
    e.a, e.b = <float> c.reals[2 * part], <float> c.reals[2 * part + 1]


cdef void separable_strips(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Strips [begin, end), those of all images counted together."""
    cdef const Separable *job = <const Separable *> ctx
    cdef const ev_call *c = job.call
    cdef const ev_depthwise *whole = &job.stencil
    cdef ev_depthwise d = whole[0]
    cdef int64_t inside = d.h * d.w, outside = d.oh * d.ow
    cdef int64_t item, image, first, count, low, top, fresh, i, kept_low, kept_top
    cdef int64_t *last = <int64_t *> (<char *> c.scratch + worker * job.slot)
    cdef float *hidden = <float *> (<char *> last + LAST_BYTES)
    cdef float *between = <float *> (<char *> hidden + job.hidden_bytes)
    cdef void *scratch = <char *> between + job.between_bytes
    cdef float *x
    cdef float *y
    cdef float *to
    cdef ev_epilogue expand, depthwise, project
    cdef ev_gemm g
    part_epilogue(c, 0, &expand)
    part_epilogue(c, 1, &depthwise)
    part_epilogue(c, 2, &project)
    as_clamp(depthwise.activation, depthwise.a, depthwise.b, &d.lo, &d.hi)
    for item in range(begin, end):
        image, first = item // job.strips, strip_begin(job, item % job.strips)
        count = strip_begin(job, item % job.strips + 1) - first
        strip_rows(job, item % job.strips, &low, &top)
        x = <float *> c.in_[0].data + image * job.c * inside + low * d.w
        y = <float *> c.out[0].data + image * job.m * outside + first * d.ow
        if job.expands:
            fresh = low
            if item % job.strips > 0 and last[0] == item - 1:
                strip_rows(job, item % job.strips - 1, &kept_low, &kept_top)
                if kept_top > low:
                    fresh = kept_top
                    for i in range(job.hidden):
                        to = hidden + i * job.plane
                        memmove(to, to + (low - kept_low) * d.w, <size_t> (4 * (fresh - low) * d.w))
            last[0] = item
            gemm_init(&g, job.hidden, (top - fresh) * d.w, job.c, operand(c, 1), job.c, x + (fresh - low) * d.w, inside,
                      hidden + (fresh - low) * d.w, job.plane)
            g.in_order, g.epilogue, g.scratch = True, &expand, scratch    # rows are the same whichever thread makes them
            gemm_f32(&g)
            x = hidden
        # The strip as an image of its own, whose padding is what the image's first strip has left of it.
        d.h, d.pad_h, d.oh = top - low, whole.pad_h - first * d.sh + low, job.step if job.projects else whole.oh
        to = between if job.projects else y
        K.depthwise_rows_f32(&d, 0, job.hidden, x, operand(c, 3), operand(c, 4), NULL, to, 0, count)
        if not clamps(depthwise.activation):
            K.activate_f32(&depthwise, job.hidden, count * d.ow, 0, to, d.oh * d.ow)
        if job.projects:
            gemm_init(&g, job.m, count * d.ow, job.hidden, operand(c, 5), job.hidden, between, job.step * d.ow, y, outside)
            if operand(c, 7) != NULL:
                project.residual, project.ldr = operand(c, 7) + image * job.m * outside + first * d.ow, outside
            g.epilogue, g.scratch = &project, scratch
            gemm_f32(&g)


cdef int separable_f32(const ev_call *c) noexcept nogil:
    """in: X, then W and B of each of the three convolutions (NULL where absent), then Z or NULL; ints: those of
    separable_scratch; reals: the parameters of the three activations."""
    cdef Separable job
    cdef int64_t i
    if c.out[0].size == 0:
        return EV_OK
    job.call = c
    plan_separable(&job, c.ints)
    for i in range(min(<int64_t> c.threads, job.n * job.strips)):
        (<int64_t *> (<char *> c.scratch + i * job.slot))[0] = -1
    parallel_for(separable_strips, &job, job.n * job.strips, 1, c.threads)
    return EV_OK


cdef bint read_separable(Separable *job, ints):
    """Sizes from the driver's ints: images, channels in, between and out, whether there is an expanding and a projecting
    convolution, the three activations, then the Window of the depthwise one. Returns whether the driver takes them."""
    cdef int64_t[27] values
    cdef int i
    for i in range(27):
        values[i] = ints[i]
    plan_separable(job, values)
    return job.strips > 0


def separable_scratch(ints, int32_t threads) -> int:
    """Scratch bytes of separable_f32; 0 where it does not take the convolutions."""
    cdef Separable job
    return job.slot * min(<int64_t> threads, job.n * job.strips) if read_separable(&job, ints) else 0


def separable_pays(ints) -> bool:
    """Whether separable_f32 is expected to be faster than its convolutions one after another.

    Measured on MobileNetV2's and PP-OCR's (Zen 4, 1 MB of L2): 0.85 to 1.0 where what is handed on is more than half as
    much again as L2; with less, or where many rows are moved for each that is made, up to 1.2.
    """
    cdef Separable job
    cdef const ev_depthwise *d = &job.stencil
    if not read_separable(&job, ints) or job.step < min(<int64_t> STRIP_ROWS, d.oh):
        return False
    return (4 * job.hidden * (d.h * d.w * job.expands + d.oh * d.ow * job.projects) >= cache_bytes() * 3 // 2
            and (not job.expands or 8 * (d.kh - d.sh) <= job.step * d.sh))
