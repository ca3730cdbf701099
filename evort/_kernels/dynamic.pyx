"""Drivers of dynamic quantization: the activation's range is found, and the activation quantized, inside the driver.

    range of X, in parallel                                       read once
    X as integers, into scratch                                   a quarter (16 bits: half) of X
    product with the integer weights (qgemm.pyx), float32 out     bias, residual and activation as it leaves

Quantizing into scratch rather than in the product reads each number once, where the product may read it many times.
"""
from libc.math cimport rint
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t
from libc.string cimport memcpy, memset
from evort._kernels.core cimport (EV_BIAS_COLUMN, EV_BIAS_NONE, EV_BIAS_ROW, EV_FLOAT, EV_INT16, EV_OK, EV_UINT8,
                                  ev_call, ev_conv_window, ev_ukr, parallel_for, register, ukernels)
from evort._kernels.qgemm cimport ev_qgemm, qgemm, qgemm_init, qgemm_scratch

cdef const ev_ukr *K = ukernels()

cdef enum:
    GRAIN = 16384                # numbers that are worth waking a thread
    MACS_PER_TASK = 1 << 18

ctypedef struct Numbers:
    ev_dynamic *d
    const float *x
    char *q
    float *found                 # lowest and highest number, 64 bytes apart for each thread


cdef inline int64_t round64(int64_t bytes) noexcept nogil:
    return (bytes + 63) // 64 * 64


cdef inline int64_t size_of(int64_t bits) noexcept nogil:
    return 2 if bits == 16 else 1


cdef int64_t range_scratch(int32_t threads) noexcept nogil:
    return 64 * threads


cdef void range_part(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const Numbers *job = <const Numbers *> ctx
    K.range_f32(end - begin, job.x + begin, job.found + 16 * worker)


cdef void find_range(ev_dynamic *d, int64_t n, const float *x, int32_t threads, void *scratch) noexcept nogil:
    cdef Numbers job
    cdef float lo = 0, hi = 0, zero
    cdef int32_t i
    job.d, job.x, job.found = d, x, <float *> scratch
    memset(scratch, 0, 64 * threads)
    parallel_for(range_part, &job, n, GRAIN, threads)
    for i in range(threads):
        lo, hi = min(lo, job.found[16 * i]), max(hi, job.found[16 * i + 1])
    d.zero = 0
    if d.dtype == EV_INT16:
        d.scale = max(-lo, hi) / <float> 32767 if lo != hi else 1
        return
    # As ONNX's DynamicQuantizeLinear has it.
    d.scale = (hi - lo if hi != lo else <float> 1) / <float> 255
    zero = -lo / d.scale
    (<uint8_t *> &d.zero)[0] = <uint8_t> rint(zero if zero < 255 else 255) if zero > 0 else 0


cdef void quantize_part(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const Numbers *job = <const Numbers *> ctx
    cdef bint wide = job.d.dtype == EV_INT16
    K.q_quantize(job.d.dtype, end - begin, job.x + begin, &job.d.scale, &job.d.zero, 0, -32768 if wide else 0,
                 32767 if wide else 255, job.q + begin * (2 if wide else 1))


cdef void quantize_all(const ev_dynamic *d, int64_t n, const float *x, void *q, int32_t threads) noexcept nogil:
    cdef Numbers job
    job.d, job.x, job.q = <ev_dynamic *> d, x, <char *> q
    parallel_for(quantize_part, &job, n, GRAIN // 2, threads)


cdef inline const void *operand(const ev_call *c, int64_t i) noexcept nogil:
    return NULL if i >= c.n_in or c.in_[i] == NULL else c.in_[i].data


# Matrix product ------------------------------------------------------------------------------------------------------

def matmul_scratch(int64_t m, int64_t n, int64_t k, int64_t bits, int32_t threads) -> int:
    """Scratch bytes of matmul."""
    return (range_scratch(threads) + round64(m * k * size_of(bits))
            + qgemm_scratch(1, m, n, k, threads, False, bits == 16))


cdef int matmul(const ev_call *c) noexcept nogil:
    """in: A, B [k, n], its scales, its zero points, bias, Z (the last three or NULL); out: Y; ints: (activation, m, n,
    k, bits of A, steps of the scales and zero points); reals: activation parameters."""
    cdef const int64_t *v = c.ints
    cdef int64_t m = v[1], n = v[2], k = v[3]
    cdef ev_dynamic d
    cdef ev_qgemm g
    cdef const float *a = <const float *> c.in_[0].data
    cdef char *q = <char *> c.scratch + range_scratch(c.threads)
    if c.out[0].size == 0:
        return EV_OK
    d.dtype = EV_INT16 if v[4] == 16 else EV_UINT8
    find_range(&d, m * k, a, c.threads, c.scratch)
    quantize_all(&d, m * k, a, q, c.threads)
    qgemm_init(&g, m, n, k, q, d.dtype, c.in_[1].data, c.in_[1].dtype, c.out[0].data, EV_FLOAT)
    g.a.zero, g.a.zero_step = &d.zero, 0
    g.b.zero, g.b.zero_step = operand(c, 3), v[6]
    finish(c, &g, <const float *> c.in_[2].data, v[5] != 0, d.scale, EV_BIAS_COLUMN, <const float *> operand(c, 4),
           <const float *> operand(c, 5), n)
    g.threads, g.scratch = c.threads, q + round64(m * k * size_of(v[4]))
    qgemm(&g)
    return EV_OK


cdef void finish(const ev_call *c, ev_qgemm *g, const float *scale, bint many, float x_scale, int32_t axis,
                 const float *bias, const float *z, int64_t ldz) noexcept nogil:
    """What follows the sums: scales, bias (along the same axis), residual and activation."""
    if many:
        g.q.scale, g.q.scale_axis, g.q.factor = scale, axis, x_scale
    else:
        g.q.scale_axis, g.q.factor = EV_BIAS_NONE, x_scale * scale[0]
    if bias != NULL:
        g.q.bias, g.q.bias_type, g.q.bias_axis = bias, EV_FLOAT, axis
    if z != NULL:
        g.q.residual, g.q.residual_type, g.q.ldr = z, EV_FLOAT, ldz
    g.q.activation, g.q.a, g.q.b = <int32_t> c.ints[0], <float> c.reals[0], <float> c.reals[1]


# Convolution ---------------------------------------------------------------------------------------------------------

ctypedef struct Image:
    const ev_conv_window *window
    const char *x                # a group's channels
    int64_t size                 # bytes of a number
    int64_t zero

ctypedef struct ConvJob:
    const ev_call *call
    ev_conv_window window
    ev_dynamic d
    const char *q                # X in integers
    char *scratch
    int64_t groups, rows, channels, k, inside, outside, m, slot, size
    bint direct                  # X itself is the right operand
    int32_t threads


cdef void pack_image(const void *ctx, int64_t p0, int64_t kc, int64_t j0, int64_t nc, void *dst) noexcept nogil:
    """ev_pack_b: what each tap sees at each position, in panels of 16."""
    cdef const Image *image = <const Image *> ctx
    cdef const ev_conv_window *g = image.window
    cdef int64_t plane = g.image[1] * g.image[2], taps = g.kernel[0] * g.kernel[1] * g.kernel[2], size = image.size
    cdef int64_t p, j, tap, at, od, oh, ow, d, h, w, run, i, end = j0 + nc
    cdef const char *channel
    cdef const char *row
    cdef char *out
    for p in range(kc):
        channel = image.x + (p0 + p) // taps * g.image[0] * plane * size
        tap = (p0 + p) % taps
        j = j0
        while j < end:           # the positions of one output row that are in one panel
            od, at = j // (g.out[1] * g.out[2]), j % (g.out[1] * g.out[2])
            oh, ow = at // g.out[2], at % g.out[2]
            run = min(min(16 - (j - j0) % 16, g.out[2] - ow), end - j)
            out = <char *> dst + (((j - j0) // 16 * kc + p) * 16 + (j - j0) % 16) * size
            d = od * g.stride[0] + tap // (g.kernel[1] * g.kernel[2]) * g.dilation[0] - g.pad[0]
            h = oh * g.stride[1] + tap // g.kernel[2] % g.kernel[1] * g.dilation[1] - g.pad[1]
            w = ow * g.stride[2] + tap % g.kernel[2] * g.dilation[2] - g.pad[2]
            j += run
            if not (0 <= d < g.image[0] and 0 <= h < g.image[1]):
                fill(out, run, size, image.zero)
                continue
            row = channel + (d * plane + h * g.image[2]) * size
            if g.stride[2] == 1 and w >= 0 and w + run <= g.image[2]:
                memcpy(out, row + w * size, run * size)
                continue
            for i in range(run):
                if 0 <= w < g.image[2]:
                    memcpy(out + i * size, row + w * size, size)
                else:
                    fill(out + i * size, 1, size, image.zero)
                w += g.stride[2]


cdef inline void fill(char *out, int64_t n, int64_t size, int64_t zero) noexcept nogil:
    """n zero points; that of 16 bits is 0."""
    memset(out, <int> (zero & 0xff), n * size)


cdef void conv_items(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Images and groups [begin, end), counted together."""
    cdef ConvJob *job = <ConvJob *> ctx
    cdef const ev_call *c = job.call
    cdef int64_t item, first, at, scale_step = c.ints[21], zero_step = c.ints[22]
    cdef ev_qgemm g
    cdef Image image
    cdef const float *scale
    cdef const float *b
    cdef const float *z
    for item in range(begin, end):
        first = item % job.groups * job.rows
        at = (item // job.groups * job.m + first) * job.outside
        image.window, image.size, image.zero = &job.window, job.size, job.d.zero
        image.x = job.q + item * job.channels * job.inside * job.size
        qgemm_init(&g, job.rows, job.outside, job.k, <const char *> c.in_[1].data + first * job.k, c.in_[1].dtype,
                   image.x, job.d.dtype, <float *> c.out[0].data + at, EV_FLOAT)
        if not job.direct:
            g.pack, g.pack_ctx = pack_image, &image
        g.b.zero, g.b.zero_step = &job.d.zero, 0
        if operand(c, 3) != NULL:
            g.a.zero, g.a.zero_step = <const char *> operand(c, 3) + first * zero_step, zero_step
        scale = <const float *> c.in_[2].data + first * scale_step
        b, z = <const float *> operand(c, 4), <const float *> operand(c, 5)
        finish(c, &g, scale, scale_step != 0, job.d.scale, EV_BIAS_ROW, NULL if b == NULL else b + first,
               NULL if z == NULL else z + at, job.outside)
        g.threads, g.scratch = job.threads, job.scratch + worker * job.slot
        qgemm(&g)


cdef inline bint by_items(int64_t items, int32_t threads) noexcept nogil:
    """Whether threads take whole images and groups, rather than share each product."""
    return threads > 1 and items >= threads and (items % threads == 0 or items >= 4 * threads)


def convolution_scratch(int64_t numbers, int64_t items, int64_t m, int64_t n, int64_t k, int64_t bits, bint direct,
                        int32_t threads) -> int:
    """Scratch bytes of convolution for X of so many numbers: `items` (images times groups) products [m, k] x [k, n]."""
    cdef int64_t each = range_scratch(threads) + round64(numbers * size_of(bits))
    if by_items(items, threads):
        return each + threads * round64(qgemm_scratch(1, m, n, k, 1, not direct, bits == 16))
    return each + qgemm_scratch(1, m, n, k, threads, not direct, bits == 16)


cdef int convolution(const ev_call *c) noexcept nogil:
    """in: X, W, its scales, its zero points, B, Z (the last three or NULL); out: Y; ints: (activation, group, the
    window's 18 of evort.ops.conv, bits of X, steps of the scales and zero points, whether it is pointwise with stride
    1); reals: activation parameters."""
    cdef ConvJob job
    cdef const int64_t *v = c.ints
    cdef ev_conv_window *g = &job.window
    cdef int64_t items, numbers = c.in_[0].size
    cdef char *q = <char *> c.scratch + range_scratch(c.threads)
    cdef int i
    if c.out[0].size == 0:
        return EV_OK
    for i in range(3):
        g.image[i], g.out[i], g.kernel[i] = v[2 + i], v[5 + i], v[8 + i]
        g.stride[i], g.dilation[i], g.pad[i] = v[11 + i], v[14 + i], v[17 + i]
    job.call, job.groups, job.m, job.size, job.direct = c, v[1], c.out[0].dims[1], size_of(v[20]), v[23] != 0
    job.rows, job.channels = job.m // v[1], c.in_[0].dims[1] // v[1]
    job.k = job.channels * g.kernel[0] * g.kernel[1] * g.kernel[2]
    job.inside = g.image[0] * g.image[1] * g.image[2]
    job.outside = g.out[0] * g.out[1] * g.out[2]
    job.d.dtype = EV_INT16 if v[20] == 16 else EV_UINT8
    find_range(&job.d, numbers, <const float *> c.in_[0].data, c.threads, c.scratch)
    quantize_all(&job.d, numbers, <const float *> c.in_[0].data, q, c.threads)
    job.q, job.scratch = q, q + round64(numbers * job.size)
    items = c.out[0].dims[0] * v[1]
    if by_items(items, c.threads):
        job.threads = 1
        job.slot = round64(qgemm_scratch(1, job.rows, job.outside, job.k, 1, not job.direct, v[20] == 16))
        parallel_for(conv_items, &job, items, max(1, MACS_PER_TASK // max(1, job.rows * job.outside * job.k)), c.threads)
    else:
        job.threads, job.slot = c.threads, 0
        conv_items(&job, 0, items, 0)
    return EV_OK


DRIVERS = {}
register(DRIVERS, "matmul", matmul)
register(DRIVERS, "convolution", convolution)
