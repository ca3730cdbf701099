"""Drivers of normalizations. Moments are in double and merged over blocks (ukr/normalize_body.h); memory is read once
for them and once for the result. X and Y may be the same memory (not for lrn_f32)."""
from libc.math cimport sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t
from evort._kernels.core cimport (EV_FLOAT, EV_INT8, EV_OK, EV_REDUCE_ABS, EV_REDUCE_SQUARE, ev_call, ev_epilogue, ev_ukr,
                                  parallel_for, register, ukernels)

cdef const ev_ukr *K = ukernels()

cdef enum:
    GRAIN = 65536  # elements that are worth a thread
    BLOCK = 2048   # an activation follows while its input is in the first cache
    TILE = 256     # EV_REDUCE_TILE
    ROWS = 16      # of a layer's, whose moments are found together


cdef int64_t grain_of(int64_t items, int64_t elements) noexcept nogil:
    """Work items that make a chunk worth a thread, where all items together have so many elements."""
    return max(1, GRAIN * items // max(elements, 1))


cdef ev_epilogue epilogue(int64_t activation, const double *params) noexcept nogil:
    cdef ev_epilogue e
    e.bias, e.residual, e.ldr, e.slope, e.bias_axis = NULL, NULL, 0, NULL, 0
    e.activation, e.a, e.b = <int32_t> activation, <float> params[0], <float> params[1]
    return e


cdef void scale_row(const ev_epilogue *e, int64_t n, const float *x, double mean, double scale, double bias,
                    float *y) noexcept nogil:
    """y = activation((x - mean) * scale + bias). The float nearest to the mean is subtracted, and what it is off goes
    into the bias: so a large mean costs no accuracy."""
    cdef float about = <float> mean
    cdef int64_t i = 0, m
    bias -= (mean - <double> about) * scale
    if not e.activation:
        K.affine_f32(n, x, about, <float> scale, <float> bias, y)
        return
    while i < n:
        m = min(<int64_t> BLOCK, n - i)
        K.affine_f32(m, x + i, about, <float> scale, <float> bias, y + i)
        K.activate_f32(e, 1, m, 0, y + i, m)
        i += m


cdef void batch_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int64_t channels = c.ints[0], inner = c.ints[1], item, k, width
    cdef ev_epilogue e = epilogue(c.ints[2], c.reals + 1)
    cdef const float *x = <const float *> c.in_[0].data
    cdef const float *bias = <const float *> c.in_[2].data
    cdef const float *mean = <const float *> c.in_[3].data
    cdef const float *scale = <const float *> c.scratch
    cdef float *y = <float *> c.out[0].data
    width = channels if inner == 1 else inner
    for item in range(begin, end):
        if inner == 1:
            K.affine_cols_f32(width, x + item * width, mean, scale, bias, y + item * width)
            if e.activation:
                K.activate_f32(&e, 1, width, 0, y + item * width, width)
        else:
            k = item % channels
            scale_row(&e, width, x + item * width, mean[k], scale[k], bias[k], y + item * width)


cdef int batch_f32(const ev_call *c) noexcept nogil:
    """in: X, scale, B, mean, var; out: Y. ints: (channels, inner, activation); reals: (epsilon, alpha, beta);
    scratch: channels floats."""
    cdef int64_t channels = c.ints[0], k, items
    cdef const float *scale = <const float *> c.in_[1].data
    cdef const float *var = <const float *> c.in_[4].data
    cdef float *factor = <float *> c.scratch
    for k in range(channels):
        factor[k] = <float> (scale[k] / sqrt(<double> var[k] + c.reals[0]))
    items = c.in_[0].size // (channels if c.ints[1] == 1 else c.ints[1])
    parallel_for(batch_chunk, <void *> c, items, grain_of(items, c.in_[0].size), c.threads)
    return EV_OK


cdef void quantized_row(const ev_call *c, const ev_epilogue *e, int64_t n, const float *x, double mean, double scale, double bias,
                        uint8_t *y) noexcept nogil:
    """What scale_row gives, quantized as bytes: see group_f32."""
    cdef float[BLOCK] real
    cdef int dtype = <int> c.ints[4]
    cdef uint8_t zero = <uint8_t> c.ints[5]
    cdef float unit = <float> c.reals[3]
    cdef int64_t i = 0, m
    while i < n:
        m = min(<int64_t> BLOCK, n - i)
        scale_row(e, m, x + i, mean, scale, bias, real)
        K.q_quantize(dtype, m, real, &unit, &zero, 0, -128 if dtype == EV_INT8 else 0, 127 if dtype == EV_INT8 else 255, y + i)
        i += m


cdef void group_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int64_t groups = c.ints[0], each = c.ints[1], inner = c.ints[2], item, k, channel, at
    cdef ev_epilogue e = epilogue(c.ints[3], c.reals + 1)
    cdef const float *scale = <const float *> c.in_[1].data
    cdef const float *bias = <const float *> c.in_[2].data
    cdef const float *x = <const float *> c.in_[0].data
    cdef double count, mean, m2, inverse
    for item in range(begin, end):
        count, mean, m2 = 0.0, 0.0, 0.0
        K.moments_f32(each * inner, x + item * each * inner, &count, &mean, &m2)
        inverse = 1.0 / sqrt(m2 / count + c.reals[0])
        for k in range(each):
            channel = item % groups * each + k
            at = (item * each + k) * inner
            if c.ints[4] == EV_FLOAT:
                scale_row(&e, inner, x + at, mean, inverse * scale[channel], bias[channel], <float *> c.out[0].data + at)
            else:
                quantized_row(c, &e, inner, x + at, mean, inverse * scale[channel], bias[channel],
                              <uint8_t *> c.out[0].data + at)


cdef int group_f32(const ev_call *c) noexcept nogil:
    """in: X, scale, bias; out: Y. ints: (groups, channels in a group, inner, activation, type of Y, its zero point); reals:
    (epsilon, alpha, beta, Y's scale). Y is of bytes or float32."""
    cdef int64_t items = c.in_[0].size // (c.ints[1] * c.ints[2])
    parallel_for(group_chunk, <void *> c, items, grain_of(items, c.in_[0].size), c.threads)
    return EV_OK


cdef void layer_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int64_t n = c.ints[0], period = c.ints[1], bias_period = c.ints[2], item, i, first, rows, r
    cdef bint centred = c.ints[3]
    cdef ev_epilogue e = epilogue(c.ints[4], c.reals + 1)
    cdef const float *scale = <const float *> c.in_[1].data
    cdef const float *bias = <const float *> c.in_[2].data if bias_period else NULL
    cdef const float *x
    cdef float *y
    cdef float about
    cdef double count, m2
    cdef double mean[ROWS]
    cdef double inverse[ROWS]
    first = begin
    while first < end:
        # The moments of a few rows, then these rows: else each row would wait for its own square root and division.
        rows = min(end - first, max(<int64_t> 1, min(<int64_t> ROWS, BLOCK * 2 // n)))
        for r in range(rows):
            x = <const float *> c.in_[0].data + (first + r) * n
            count, mean[r], m2 = 0.0, 0.0, 0.0
            if centred:
                K.moments_f32(n, x, &count, &mean[r], &m2)
            else:
                K.reduce_rows_f32(EV_REDUCE_SQUARE, 1, n, n, x, NULL, &m2)
            inverse[r] = 1.0 / sqrt(m2 / <double> n + c.reals[0])
        for r in range(rows):
            item = first + r
            x = <const float *> c.in_[0].data + item * n
            y = <float *> c.out[0].data + item * n
            about = <float> mean[r]
            i = 0
            while i < n:
                K.affine_each_f32(period, x + i, about, <float> inverse[r], <float> ((about - mean[r]) * inverse[r]), scale,
                                  bias if bias == NULL else bias + i % bias_period, y + i)
                i += period
            if e.activation:
                K.activate_f32(&e, 1, n, 0, y, n)
            if c.n_out > 1 and c.out[1] != NULL:
                (<float *> c.out[1].data)[item] = about
            if c.n_out > 2 and c.out[2] != NULL:
                (<float *> c.out[2].data)[item] = <float> inverse[r]
        first += rows


cdef int layer_f32(const ev_call *c) noexcept nogil:
    """in: X, scale, bias?; out: Y, mean?, inverse deviation?. ints: (n: elements of a row, period of the scale, of the
    bias (0: none), centred? (else RMS), activation); reals: (epsilon, alpha, beta). The period of the scale divides
    n and that of the bias; the bias's divides n."""
    cdef int64_t items = c.in_[0].size // c.ints[0]
    parallel_for(layer_chunk, <void *> c, items, grain_of(items, c.in_[0].size), c.threads)
    return EV_OK


cdef void norm_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int op = EV_REDUCE_ABS if c.ints[0] == 1 else EV_REDUCE_SQUARE
    cdef int64_t n = c.ints[1], inner = c.ints[2], tiles = (inner + TILE - 1) // TILE, item, i, j, count, at
    cdef double acc[TILE]
    cdef float norm[TILE]
    cdef float divisor
    cdef const float *x
    cdef float *y
    for item in range(begin, end):
        at = item // tiles * n * inner + item % tiles * TILE
        x, y = <const float *> c.in_[0].data + at, <float *> c.out[0].data + at
        count = min(<int64_t> TILE, inner - item % tiles * TILE)
        for j in range(count):
            acc[j] = 0.0
        if inner == 1:
            K.reduce_rows_f32(op, 1, n, n, x, NULL, acc)
        else:
            K.reduce_cols_f32(op, n, inner, count, x, NULL, acc)
        for j in range(count):
            norm[j] = <float> (acc[j] if op == EV_REDUCE_ABS else sqrt(acc[j]))
        if inner == 1:
            divisor = norm[0]
            for i in range(n):
                y[i] = x[i] / divisor if divisor != 0.0 else 0.0
        else:
            for i in range(n):
                K.divide_cols_f32(count, x + i * inner, norm, y + i * inner)


cdef int norm_f32(const ev_call *c) noexcept nogil:
    """in: X [outer, n, inner]; out: Y. ints: (p: 1 or 2, n, inner)."""
    cdef int64_t items = c.in_[0].size // (c.ints[1] * c.ints[2]) * ((c.ints[2] + TILE - 1) // TILE)
    parallel_for(norm_chunk, <void *> c, items, grain_of(items, c.in_[0].size), c.threads)
    return EV_OK


cdef void lrn_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int64_t size = c.ints[0], channels = c.ints[1], inner = c.ints[2], item, k, first, last
    cdef const float *x = <const float *> c.in_[0].data
    cdef float *y = <float *> c.out[0].data
    for item in range(begin, end):
        k = item % channels
        first, last = max(0, k - (size - 1) // 2), min(channels - 1, k + size // 2)
        K.lrn_f32(inner, last - first + 1, inner, x + (item - k + first) * inner, x + item * inner,
                  <float> c.reals[0], <float> c.reals[1], <float> c.reals[2], y + item * inner)


cdef int lrn_f32(const ev_call *c) noexcept nogil:
    """in: X [outer, channels, inner]; out: Y. ints: (size, channels, inner); reals: (bias, alpha / size, beta)."""
    cdef int64_t items = c.in_[0].size // c.ints[2]
    parallel_for(lrn_chunk, <void *> c, items, grain_of(items, c.in_[0].size * 4), c.threads)
    return EV_OK


DRIVERS = {}
register(DRIVERS, "batch_f32", batch_f32)
register(DRIVERS, "group_f32", group_f32)
register(DRIVERS, "layer_f32", layer_f32)
register(DRIVERS, "norm_f32", norm_f32)
register(DRIVERS, "lrn_f32", lrn_f32)
