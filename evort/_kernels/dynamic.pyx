"""Drivers of dynamic quantization: the activation's range is found, and the activation quantized, inside the driver.

    range of X, in parallel                                       read once
    X as integers, into scratch                                   a quarter (16 bits: half) of X
    product with the integer weights (qgemm.pyx), float32 out     bias, residual and activation as it leaves

Quantizing into scratch rather than in the product reads each number once, where the product may read it many times. A
convolution is an integer one (qconv.pyx, or qnhwc.pyx for few positions), which is given the scale that was found.
"""
from libc.math cimport rint
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t
from libc.string cimport memset
from evort._kernels.core cimport (EV_ACT_NONE, EV_BIAS_COLUMN, EV_BIAS_NONE, EV_FLOAT, EV_INT16, EV_OK, EV_UINT8, ev_call,
                                  ev_epilogue, ev_tensor, ev_ukr, parallel_for, register, ukernels)
from evort._kernels.qconv cimport linear
from evort._kernels.qgemm cimport ev_qgemm, qgemm, qgemm_init, qgemm_scratch
from evort._kernels.qnhwc cimport linear as linear_last

cdef const ev_ukr *K = ukernels()

cdef enum:
    GRAIN = 16384                # numbers that are worth waking a thread

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
            + qgemm_scratch(1, m, n, k, threads, False, bits == 16, True))


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
    g.weights_in_b = True
    if v[5] != 0:
        g.q.scale, g.q.scale_axis, g.q.factor = <const float *> c.in_[2].data, EV_BIAS_COLUMN, d.scale
    else:
        g.q.scale_axis, g.q.factor = EV_BIAS_NONE, d.scale * (<const float *> c.in_[2].data)[0]
    if operand(c, 4) != NULL:
        g.q.bias, g.q.bias_type, g.q.bias_axis = operand(c, 4), EV_FLOAT, EV_BIAS_COLUMN
    if operand(c, 5) != NULL:
        g.q.residual, g.q.residual_type, g.q.ldr = operand(c, 5), EV_FLOAT, n
    g.q.activation, g.q.a, g.q.b = <int32_t> v[0], <float> c.reals[0], <float> c.reals[1]
    g.threads, g.scratch = c.threads, q + round64(m * k * size_of(v[4]))
    g.ahead, g.ahead_bytes = <const char *> c.ahead, c.ahead_bytes
    qgemm(&g)
    return EV_OK


# Convolution ---------------------------------------------------------------------------------------------------------

ctypedef struct Planes:
    const ev_call *call
    const ev_epilogue *e
    int64_t channels, size       # of Y, and elements of one


cdef void finish_planes(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Bias and activation of channels [begin, end) of all images, counted together; small ones several at a time."""
    cdef const Planes *job = <const Planes *> ctx
    cdef const float *b = <const float *> operand(job.call, 4)
    cdef int64_t item, i, last
    cdef float *y = <float *> job.call.out[0].data + begin * job.size
    cdef float *first
    cdef float bias
    while begin < end:
        last, first = min(end, begin + max(<int64_t> 1, GRAIN // job.size)), y
        for item in range(begin, last):
            bias = 0 if b == NULL else b[item % job.channels]
            for i in range(0 if b == NULL else job.size):
                y[i] += bias
            y += job.size
        K.activate_f32(job.e, 1, y - first, 0, first, 0)
        begin = last


cdef int convolve(const ev_call *c, int (*product)(const ev_call *) noexcept nogil, ev_tensor *packed) noexcept nogil:
    """`product` makes X integers and gives the scaled sums + Z; B and the activation follow, channel by channel."""
    cdef ev_dynamic d
    cdef ev_tensor scale, zero
    cdef ev_tensor *given[13]
    cdef ev_call inner = c[0]
    cdef ev_epilogue e
    cdef Planes planes
    cdef int64_t activation = c.ints[c.n_ints - 1]
    cdef int status, i
    if c.out[0].size == 0:
        return EV_OK
    d.dtype = EV_INT16 if c.ints[c.n_ints - 2] == 16 else EV_UINT8
    find_range(&d, c.in_[0].size, <const float *> c.in_[0].data, c.threads, c.scratch)
    memset(&scale, 0, sizeof(ev_tensor))
    memset(&zero, 0, sizeof(ev_tensor))
    scale.data, scale.size, scale.dtype = &d.scale, 1, EV_FLOAT
    zero.data, zero.size, zero.dtype = &d.zero, 1, d.dtype
    for i in range(12):
        given[i] = NULL
    given[0], given[1], given[2] = c.in_[0], &scale, &zero
    given[3], given[4] = c.in_[1], c.in_[2]
    given[5] = NULL if operand(c, 3) == NULL else c.in_[3]
    given[9] = NULL if operand(c, 5) == NULL else c.in_[5]
    given[12] = packed
    inner.in_, inner.n_in, inner.n_ints = given, 13, c.n_ints - 2
    inner.scratch = <char *> c.scratch + range_scratch(c.threads)
    inner.scratch_bytes = c.scratch_bytes - range_scratch(c.threads)
    status = product(&inner)
    if status != EV_OK or (operand(c, 4) == NULL and activation == EV_ACT_NONE):
        return status
    memset(&e, 0, sizeof(e))
    e.activation, e.a, e.b = <int32_t> activation, <float> c.reals[0], <float> c.reals[1]
    planes.call, planes.e, planes.channels = c, &e, c.out[0].dims[1]
    planes.size = c.out[0].size // (c.out[0].dims[0] * planes.channels)
    parallel_for(finish_planes, &planes, c.out[0].size // planes.size, max(1, GRAIN // planes.size), c.threads)
    return EV_OK


cdef int convolution(const ev_call *c) noexcept nogil:
    """in: X, W, its scales, its zero points, B, Z (the last three or NULL); out: Y; ints: those of qconv.linear, then
    bits of X and the activation; reals: activation parameters. scratch: the range's, then that of qconv.linear."""
    return convolve(c, linear, NULL)


cdef int convolution_last(const ev_call *c) noexcept nogil:
    """The same for qnhwc.linear, the packed weights of which follow the node's inputs."""
    cdef ev_call node = c[0]
    node.n_in -= 1
    return convolve(&node, linear_last, c.in_[c.n_in - 1])


def convolution_scratch(int64_t linear_scratch, int32_t threads) -> int:
    """Scratch bytes of a convolution, given those of the integer one."""
    return linear_scratch + range_scratch(threads)


DRIVERS = {}
register(DRIVERS, "matmul", matmul)
register(DRIVERS, "convolution", convolution)
register(DRIVERS, "convolution_last", convolution_last)
