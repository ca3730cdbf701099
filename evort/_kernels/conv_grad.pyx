"""The weight gradient of convolutions in float32.

    dW[m, c, tap] = sum over images and positions o of dY[m, o] * X[c, image(o, tap)]

No im2col matrix is built. The padded image is copied once, elements of one phase (position modulo the stride) to a plane
of their own, and dY to rows as wide as the planes' with zeros between; then each tap's operand is the same plane from
another offset on, and every element of dW is an inner product of long contiguous rows (`inner_products_f32`). Threads
take fixed shares of the images and their sums are added in order: a result depends on the number of threads alone.
"""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset
from evort._kernels.core cimport (EV_OK, EV_REDUCE_SUM, ev_call, ev_conv_window, ev_ukr, parallel_for, register,
                                  ukernels)

cdef const ev_ukr *K = ukernels()

cdef enum:
    BLOCK_BYTES = 192 * 1024     # of images and gradients that are worked on together: they stay in L2
    MOST_STRIDE = 16
    LANES = 16

ctypedef struct Layout:
    ev_conv_window window
    int64_t groups, n, c, m      # c, m: channels in and out of one group
    int64_t inside, outside, taps
    int64_t plane[3]             # sizes of a phase's plane
    int64_t phases[3]            # planes along each axis
    int64_t phase_at[3][MOST_STRIDE]
    int64_t size                 # elements of a plane
    int64_t row                  # elements of one channel of dY, spread out: a multiple of LANES
    int64_t channel              # elements of one channel of X: all its planes
    int64_t parts, images        # shares of the images, images of a block
    int64_t offsets_bytes, x_bytes, dy_bytes, dw_bytes, db_bytes, part_bytes

ctypedef struct Job:
    const ev_call *call
    Layout layout


cdef inline int64_t round64(int64_t bytes) noexcept nogil:
    return (bytes + 63) // 64 * 64


cdef bint lay_out(Layout *s, int64_t n, int64_t c, int64_t m, const int64_t *ints, int32_t threads) noexcept nogil:
    """Fills in a layout. False where the driver does not take the geometry."""
    cdef int64_t i, k, phase, reach, tail = 0, room
    cdef ev_conv_window *g = &s.window
    s.groups = ints[0]
    for i in range(3):
        g.image[i], g.out[i], g.kernel[i] = ints[1 + i], ints[4 + i], ints[7 + i]
        g.stride[i], g.dilation[i], g.pad[i] = ints[10 + i], ints[13 + i], ints[16 + i]
    s.n, s.c, s.m = n, c // s.groups, m // s.groups
    s.inside, s.outside, s.taps, s.size, s.channel = 1, 1, 1, 1, 1
    for i in range(3):
        if g.stride[i] > MOST_STRIDE or g.kernel[i] > 4096:
            return False
        s.inside *= g.image[i]
        s.outside *= g.out[i]
        s.taps *= g.kernel[i]
        reach = (g.kernel[i] - 1) * g.dilation[i] // g.stride[i]
        s.plane[i] = g.out[i] + reach
        s.size *= s.plane[i]
        s.phases[i] = 0
        for phase in range(g.stride[i]):
            s.phase_at[i][phase] = -1
        for k in range(g.kernel[i]):
            phase = k * g.dilation[i] % g.stride[i]
            if s.phase_at[i][phase] < 0:
                s.phase_at[i][phase] = s.phases[i]
                s.phases[i] += 1
        s.channel *= s.phases[i]
    if s.taps > 1 << 16 or s.size > 1 << 28:
        return False
    s.channel *= s.size
    # The last row's positions end at out; what follows up to whole vectors is zero.
    s.row = (((g.out[0] - 1) * s.plane[1] + g.out[1] - 1) * s.plane[2] + g.out[2] + LANES - 1) // LANES * LANES
    tail = s.row                 # a tap's row may leave its channel: the next one's elements meet zeros, or these
    s.parts = max(1, min(<int64_t> threads, n))
    room = BLOCK_BYTES // (4 * max(1, s.c * s.channel + s.m * s.row))
    s.images = max(1, min(room, (n + s.parts - 1) // s.parts))
    s.offsets_bytes = round64(8 * s.c * s.taps)
    s.x_bytes = round64(4 * (s.images * s.c * s.channel + tail))
    s.dy_bytes = round64(4 * s.images * s.m * s.row)
    s.dw_bytes = round64(4 * m * s.c * s.taps)
    s.db_bytes = round64(8 * m)
    s.part_bytes = s.x_bytes + s.dy_bytes + s.dw_bytes + s.db_bytes
    return True


def weight_grad_scratch(int64_t n, int64_t c, int64_t m, ints, int32_t threads) -> int:
    """Scratch bytes of weight_grad_f32 for n images, c channels in and m out; 0 where it does not take the geometry."""
    cdef Layout s
    cdef int64_t values[19]
    cdef int i
    for i in range(19):
        values[i] = ints[i]
    return s.offsets_bytes + s.parts * s.part_bytes if lay_out(&s, n, c, m, values, threads) else 0


cdef void copy_image(const Layout *s, const float *x, float *planes) noexcept nogil:
    """One channel's image to its phases' planes; elements that are padding keep the zeros that are there."""
    cdef const ev_conv_window *g = &s.window
    cdef int64_t d, h, w, id, ih, iw, first, last, rd, rh, rw, at = 0, step = g.stride[2], i
    cdef float *row
    cdef const float *source
    for rd in range(g.stride[0]):
        for rh in range(g.stride[1]):
            for rw in range(g.stride[2]):
                if s.phase_at[0][rd] < 0 or s.phase_at[1][rh] < 0 or s.phase_at[2][rw] < 0:
                    continue
                at = ((s.phase_at[0][rd] * s.phases[1] + s.phase_at[1][rh]) * s.phases[2] + s.phase_at[2][rw]) * s.size
                # Columns of the plane that lie in the image.
                first = max(<int64_t> 0, (g.pad[2] - rw + step - 1) // step) if g.pad[2] > rw else 0
                last = min(s.plane[2], (g.image[2] - 1 + g.pad[2] - rw) // step + 1 if g.image[2] + g.pad[2] > rw else 0)
                for d in range(s.plane[0]):
                    id = d * g.stride[0] + rd - g.pad[0]
                    if id < 0 or id >= g.image[0]:
                        continue
                    for h in range(s.plane[1]):
                        ih = h * g.stride[1] + rh - g.pad[1]
                        if ih < 0 or ih >= g.image[1] or last <= first:
                            continue
                        row = planes + at + (d * s.plane[1] + h) * s.plane[2]
                        source = x + (id * g.image[1] + ih) * g.image[2] + first * step + rw - g.pad[2]
                        if step == 1:
                            memcpy(row + first, source, 4 * (last - first))
                        else:
                            for i in range(last - first):
                                row[first + i] = source[i * step]


cdef void spread_gradient(const Layout *s, const float *dy, float *row) noexcept nogil:
    """One channel of dY to rows as wide as the planes'."""
    cdef const ev_conv_window *g = &s.window
    cdef int64_t d, h
    for d in range(g.out[0]):
        for h in range(g.out[1]):
            memcpy(row + (d * s.plane[1] + h) * s.plane[2], dy + (d * g.out[1] + h) * g.out[2], 4 * g.out[2])


cdef void parts(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef Job *job = <Job *> ctx
    cdef const Layout *s = &job.layout
    cdef const int64_t *offsets = <const int64_t *> job.call.scratch
    cdef const float *x = <const float *> job.call.in_[0].data
    cdef const float *dy = <const float *> job.call.in_[1].data
    cdef bint bias = job.call.n_out > 1 and job.call.out[1] != NULL
    cdef int64_t part, group, image, first, last, count, i, j
    cdef char *base
    cdef float *planes
    cdef float *rows
    cdef float *dw
    cdef double *db
    for part in range(begin, end):
        base = <char *> job.call.scratch + s.offsets_bytes + part * s.part_bytes
        planes, rows = <float *> base, <float *> (base + s.x_bytes)
        dw = <float *> (base + s.x_bytes + s.dy_bytes)
        db = <double *> (base + s.x_bytes + s.dy_bytes + s.dw_bytes)
        memset(base, 0, s.part_bytes)
        first, last = part * s.n // s.parts, (part + 1) * s.n // s.parts
        for group in range(s.groups):
            image = first
            while image < last:
                count = min(s.images, last - image)
                for i in range(count):
                    for j in range(s.c):
                        copy_image(s, x + (((image + i) * s.groups + group) * s.c + j) * s.inside,
                                   planes + (i * s.c + j) * s.channel)
                    for j in range(s.m):
                        spread_gradient(s, dy + (((image + i) * s.groups + group) * s.m + j) * s.outside,
                                        rows + (i * s.m + j) * s.row)
                    if bias:
                        K.reduce_rows_f32(EV_REDUCE_SUM, s.m, s.outside, s.outside,
                                          dy + ((image + i) * s.groups + group) * s.m * s.outside, NULL,
                                          db + group * s.m)
                K.inner_products_f32(s.m, s.c * s.taps, count, s.row, rows, s.row, s.m * s.row, planes, offsets,
                                     s.c * s.channel, dw + group * s.m * s.c * s.taps, s.c * s.taps)
                image += count


cdef int weight_grad_f32(const ev_call *c) noexcept nogil:
    """in: X, dY; out: dW, dB or NULL; ints: (groups, then a Window of evort/ops/conv.py)."""
    cdef Job job
    cdef Layout *s = &job.layout
    cdef ev_conv_window *g = &job.layout.window
    cdef int64_t i, j, kd, kh, kw, plane, part, channels = c.in_[1].dims[1]
    cdef int64_t *offsets = <int64_t *> c.scratch
    cdef float *dw = <float *> c.out[0].data
    cdef const float *share
    cdef double total
    job.call = c
    lay_out(s, c.in_[0].dims[0], c.in_[0].dims[1], channels, c.ints, c.threads)
    i = 0
    for j in range(s.c):
        for kd in range(g.kernel[0]):
            for kh in range(g.kernel[1]):
                for kw in range(g.kernel[2]):
                    plane = s.phase_at[0][kd * g.dilation[0] % g.stride[0]]
                    plane = plane * s.phases[1] + s.phase_at[1][kh * g.dilation[1] % g.stride[1]]
                    plane = plane * s.phases[2] + s.phase_at[2][kw * g.dilation[2] % g.stride[2]]
                    offsets[i] = j * s.channel + plane * s.size + (
                        (kd * g.dilation[0] // g.stride[0] * s.plane[1] + kh * g.dilation[1] // g.stride[1])
                        * s.plane[2] + kw * g.dilation[2] // g.stride[2])
                    i += 1
    parallel_for(parts, &job, s.parts, 1, c.threads)
    for part in range(s.parts):
        share = <const float *> (<char *> c.scratch + s.offsets_bytes + part * s.part_bytes + s.x_bytes + s.dy_bytes)
        if part == 0:
            memcpy(dw, share, 4 * channels * s.c * s.taps)
        else:
            K.axpy_f32(channels * s.c * s.taps, 1.0, share, 1, dw, 1)
    if c.n_out > 1 and c.out[1] != NULL:
        for i in range(channels):
            total = 0
            for part in range(s.parts):
                total += (<const double *> (<char *> c.scratch + s.offsets_bytes + part * s.part_bytes + s.x_bytes
                                            + s.dy_bytes + s.dw_bytes))[i]
            (<float *> c.out[1].data)[i] = <float> total
    return EV_OK


DRIVERS = {}
register(DRIVERS, "weight_grad_f32", weight_grad_f32)
