# Part of conv.pyx: kernels with rows of five elements, by Winograd's F(2, 5) along rows of the image: 6 products for 10.
# ukr/winograd_line_body.h has the transforms.
#
#     transform the kernels, when the plan is made            U[M / 16][6][C][kernel's row][16]
#     for bands of output rows (shared out to threads)        V fits LINE_BYTES
#       transform the image                                   V[6][C][row][tile of a row]
#       for 16 output channels at a time
#         for some rows, each of the 6 elements: a direct convolution over C and the kernel's rows    O[6][row][tile][16]
#           transform O, activation                           Y[row][position][16]
#         transpose Y
#
# Rounding: as for tiles of 4x4 (conv_winograd.pxi), but along one axis. tests/ops/test_conv_winograd_line.py has the
# bound. One element that is not finite may make both outputs of its tiles not finite.

cdef enum:
    LINE_BYTES = 128 * 1024              # of V
    LINE_ROWS = 4                        # of O, which stays in L1
    LINE_APART = 16                      # floats between the elements, so that they do not fall into one set of the cache
    LINE_OPERAND = 5                     # which operand U is

ctypedef struct Line:
    const ev_call *call
    Shape shape
    int64_t k                            # channels times rows of the kernel
    int64_t tiles, pitch                 # of a row of outputs; from a row of V to the next
    int64_t rows, height                 # of V and of outputs, of a band
    int64_t bands
    int64_t step_u, step_v, step_o       # from one of the six elements to the next
    int64_t offset_bytes, v_bytes, o_bytes, slot
    int32_t *offset                      # of each channel and row of the kernel in V
    const float *u
    char *slots


cdef inline int64_t line_step(int64_t k) noexcept nogil:
    return k * EV_DIRECT_LANES + LINE_APART


cdef void plan_line(Line *job, const ev_conv_window *w, int64_t channels, int64_t rows, int64_t images,
                    int32_t threads) noexcept nogil:
    """Sizes for `channels` inputs and `rows` outputs."""
    cdef int64_t most, reach = w.kernel[1] - 1
    job.k, job.tiles = channels * w.kernel[1], (w.out[2] + 1) // 2
    job.pitch = up(job.tiles, 8)         # no instruction set has more in a vector
    most = max(<int64_t> 1, LINE_BYTES // (4 * 6 * channels * job.pitch) - reach)
    if threads > 1 and images < threads and w.out[1] * w.out[2] * 5 * job.k * rows >= 2 * MACS_PER_TASK:
        most = min(most, (w.out[1] + threads - 1) // threads)
    job.height = shared_out(w.out[1], most)
    job.rows = job.height + reach
    job.bands = (w.out[1] + job.height - 1) // job.height
    job.step_u = line_step(job.k)
    job.step_v = up(channels * job.rows * job.pitch, 16) + LINE_APART
    job.step_o = LINE_ROWS * job.tiles * EV_DIRECT_LANES + LINE_APART
    job.offset_bytes, job.v_bytes, job.o_bytes = round64(4 * job.k), 4 * 6 * job.step_v, 4 * 6 * job.step_o
    job.slot = job.v_bytes + job.o_bytes + 4 * EV_DIRECT_LANES * job.height * w.out[2]


cdef void line_panel(const Line *job, const float *v, const float *u, const float *bias, int64_t rows, float *o,
                     float *y) noexcept nogil:
    """Y of EV_DIRECT_LANES output channels and some rows, without activations that are no clamp. bias: NULL, or as many."""
    cdef float[16] none                  # EV_DIRECT_LANES
    cdef int64_t j, row = 0
    cdef float lo, hi
    cdef ev_direct d
    memset(none, 0, sizeof(none))
    memset(&d, 0, sizeof(d))
    clamp_of(job.call, &lo, &hi)
    d.m = d.ldy = EV_DIRECT_LANES
    d.k, d.offset, d.pitch, d.ow = job.k, job.offset, job.pitch, job.tiles
    d.lo, d.hi = -INFINITY, INFINITY
    while row < rows:
        d.rows = min(<int64_t> LINE_ROWS, rows - row)
        for j in range(6):
            d.x, d.w, d.y = v + j * job.step_v + row * job.pitch, u + j * job.step_u, o + j * job.step_o
            d.bias = bias if bias != NULL and j % 5 == 0 else &none[0]  # of each output one of these is a term
            K.direct_lanes_f32(&d)
        K.winograd_line_output_f32(d.rows, job.shape.window.out[2], o, job.step_o, lo, hi,
                                   y + row * job.shape.window.out[2] * EV_DIRECT_LANES)
        row += LINE_ROWS


cdef void line_bands(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const Line *job = <const Line *> ctx
    cdef const Shape *s = &job.shape
    cdef const ev_conv_window *w = &s.window
    cdef int64_t item, image, oh, panel, m, rows, at
    cdef float *v = <float *> (job.slots + worker * job.slot)
    cdef float *o = <float *> (<char *> v + job.v_bytes)
    cdef float *y = <float *> (<char *> o + job.o_bytes)
    cdef ev_epilogue e
    for item in range(begin, end):
        image, oh = item // job.bands, item % job.bands * job.height
        rows = min(job.height, w.out[1] - oh)
        K.winograd_line_input_f32(s.c, w.image[1], w.image[2], s.x + image * s.c * s.inside, oh - w.pad[1], job.rows,
                                  w.pad[2], v, job.pitch, job.step_v)
        for panel in range(s.m // EV_DIRECT_LANES):
            m = panel * EV_DIRECT_LANES
            line_panel(job, v, job.u + panel * 6 * job.step_u, NULL if s.b == NULL else s.b + m, rows, o, y)
            at = (image * s.m + m) * s.outside + oh * w.out[2]
            K.move_transpose(4, EV_DIRECT_LANES, rows * w.out[2], y, EV_DIRECT_LANES, s.y + at, s.outside)
            if not is_clamp(job.call):
                fill_epilogue(job.call, s, image, 0, &e)
                K.activate_f32(&e, EV_DIRECT_LANES, rows * w.out[2], m, s.y + at, s.outside)


cdef int winograd_line_f32(const ev_call *c) noexcept nogil:
    cdef Line job
    cdef Shape *s = &job.shape
    cdef int64_t channel, row
    read_call(c, s)
    if c.out[0].size == 0:
        return EV_OK
    job.call = c
    plan_line(&job, &s.window, s.c, s.m, s.n, c.threads)
    job.u = operand(c, LINE_OPERAND)
    job.offset = <int32_t *> c.scratch
    job.slots = <char *> c.scratch + job.offset_bytes
    for channel in range(s.c):
        for row in range(s.window.kernel[1]):
            job.offset[channel * s.window.kernel[1] + row] = <int32_t> ((channel * job.rows + row) * job.pitch)
    parallel_for(line_bands, &job, s.n * job.bands,
                 max(1, MACS_PER_TASK // (job.height * s.window.out[2] * 3 * job.k * s.m)), c.threads)
    return EV_OK


cdef inline bint line_pays(const Line *job, const ev_conv_window *w) noexcept nogil:
    """Whether it is expected to be faster than any other kernel.

    Measured on 14 shapes (Zen 4, AVX-512 and AVX2), in time of the best other kernel: 0.64 to 0.85 with eight input channels
    and more, 0.9 with outputs of 4 x 4 and 5 x 5 or in one row; with one channel transforms take longer than products (1.0).
    """
    return job.k >= 15 and w.out[2] >= 4


def winograd_line_kernels(w):
    """U of kernels w [M, C, k, 5], float32, as winograd_line_f32 takes it."""
    import numpy

    cdef int64_t i, k = w.shape[1] * w.shape[2], step = line_step(k), panels = w.shape[0] // EV_DIRECT_LANES
    w = numpy.ascontiguousarray(w)
    turned = numpy.empty(5 * k * EV_DIRECT_LANES, numpy.float32)
    array = numpy.zeros(panels * 6 * step + 16, numpy.float32)
    array = array[(64 - <size_t> address(array) % 64) % 64 // 4 :][: panels * 6 * step]  # a vector lies within a line of the cache
    cdef const float *source = <const float *> address(w)
    cdef float *panel = <float *> address(turned)
    cdef float *u = <float *> address(array)
    for i in range(panels):
        K.move_transpose(4, 5 * k, EV_DIRECT_LANES, source + i * EV_DIRECT_LANES * 5 * k, 5 * k, panel, EV_DIRECT_LANES)
        K.winograd_line_kernels_f32(k, panel, u + i * 6 * step, step)
    return array


def winograd_line_scratch(int64_t c, int64_t m, int64_t images, ints, int32_t threads, bint chosen) -> int:
    """Scratch bytes of winograd_line_f32 with c channels in and m out, where it can and pays (or was chosen); else 0.
    `ints` are the driver's."""
    cdef int64_t[20] values
    cdef int i
    cdef Line job
    cdef ev_conv_window w
    for i in range(20):
        values[i] = ints[i]
    read_window(values + 2, &w)
    if c == 0 or m == 0 or images == 0 or values[1] != 1 or m % EV_DIRECT_LANES or w.kernel[2] != 5:
        return 0
    if w.kernel[0] * w.image[0] * w.out[0] * w.dilation[1] * w.dilation[2] * w.stride[1] * w.stride[2] != 1:
        return 0
    plan_line(&job, &w, c, m, images, threads)
    if not (chosen or line_pays(&job, &w)) or job.v_bytes > 2 * LINE_BYTES:
        return 0
    return job.offset_bytes + threads * job.slot
