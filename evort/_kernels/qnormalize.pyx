"""Drivers of means, softmax, layer and instance normalization of quantized tensors. Sums are of integers and exact, so that
neither the instruction set nor the number of threads changes a bit."""
from libc.math cimport sqrt
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t
from libc.string cimport memcpy, memset
from evort._kernels.core cimport (EV_FLOAT, EV_INT8, EV_INT16, EV_OK, EV_UINT8, EV_UINT16, ev_call, ev_epilogue, ev_item_size,
                                  ev_ukr, note, parallel_for, register, ukernels)

cdef const ev_ukr *K = ukernels()

cdef enum:
    GRAIN = 65536  # elements that are worth a thread
    BLOCK = 512    # of a row, that pass through a buffer
    TILE = 256     # columns that are summed at a time
    ROW = 256      # numbers of a softmax that are looked up one by one; of more, what each byte becomes


cdef int64_t grain_of(int64_t items, int64_t elements) noexcept nogil:
    return max(1, GRAIN * items // max(elements, 1))


cdef inline int32_t lowest(int dtype) noexcept nogil:
    return -128 if dtype == EV_INT8 else -32768 if dtype == EV_INT16 else 0


cdef inline int32_t highest(int dtype) noexcept nogil:
    return 127 if dtype == EV_INT8 else 255 if dtype == EV_UINT8 else 32767 if dtype == EV_INT16 else 65535


# What comes first among the integers of `mean` and `softmax`.
cdef struct Kinds:
    int64_t dtype, out, zero, zero_out, low, high

cdef enum:
    KINDS = 6


cdef void finish(const Kinds *k, int64_t n, const float *x, float factor, float *seen, char *y) noexcept nogil:
    """y = x * factor, as it leaves; seen: NULL, or where the range of that is noted."""
    cdef int64_t i
    if seen != NULL:
        note(K, seen, n, x, factor)
    if k.out == EV_FLOAT:
        for i in range(n):
            (<float *> y)[i] = x[i] * factor
    else:
        K.q_round(<int> k.out, n, x, factor, <int32_t> k.zero_out, <int32_t> k.low, <int32_t> k.high, y)


# Mean ------------------------------------------------------------------------------------------------------------

cdef void sum_columns(int dtype, int64_t n, int64_t inner, int64_t m, const uint8_t *x, int32_t *sums) noexcept nogil:
    """sums[j] = the sum of n bytes, `inner` apart, from x[j] on, for j < m. Where there are few columns, several rows are
    one."""
    cdef int64_t together = min(n, TILE // inner) if m == inner <= TILE // 4 else 1, rest = n // together * together, i, j
    cdef int32_t[TILE] wide
    memset(sums, 0, m * sizeof(int32_t))
    if together == 1:
        K.q_sum_cols(dtype, n, inner, m, x, sums)
        return
    memset(wide, 0, sizeof(wide))
    K.q_sum_cols(dtype, n // together, inner * together, inner * together, x, wide)
    for i in range(together):
        for j in range(m):
            sums[j] += wide[i * inner + j]
    K.q_sum_cols(dtype, n - rest, inner, m, x + rest * inner, sums)


cdef void mean_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef const Kinds *k = <const Kinds *> c.ints
    cdef int64_t n = c.ints[KINDS], inner = c.ints[KINDS + 1], tiles = (inner + TILE - 1) // TILE, item, at, j, m, size
    cdef int64_t total, square
    cdef int32_t sums[TILE]
    cdef float real[TILE]
    cdef const uint8_t *x = <const uint8_t *> c.in_[0].data
    cdef char *y = <char *> c.out[0].data
    size = ev_item_size(<int> k.out)
    item = begin
    while inner == 1 and item < end:
        m = min(<int64_t> TILE, end - item)
        for j in range(m):
            total = square = 0
            K.q_moments(<int> k.dtype, n, x + (item + j) * n, <int32_t> k.zero, &total, &square)
            real[j] = <float> total
        finish(k, m, real, <float> c.reals[0], c.range, y + item * size)
        item += m
    for item in range(item, end):
        at = item % tiles * TILE
        m = min(<int64_t> TILE, inner - at)
        sum_columns(<int> k.dtype, n, inner, m, x + item // tiles * n * inner + at, sums)
        for j in range(m):
            real[j] = <float> (sums[j] - n * k.zero)
        finish(k, m, real, <float> c.reals[0], c.range, y + (item // tiles * inner + at) * size)


cdef int mean(const ev_call *c) noexcept nogil:
    """in: X [outer, n, inner] of bytes; out: Y [outer, inner]. ints: (types of X and Y, zero points of X and Y,
    smallest and largest Y, n, inner); reals: (what sums are multiplied by,)."""
    cdef int64_t n = c.ints[KINDS], inner = c.ints[KINDS + 1]
    cdef int64_t items = c.in_[0].size // (n * inner) * ((inner + TILE - 1) // TILE)
    parallel_for(mean_chunk, <void *> c, items, grain_of(items, c.in_[0].size), c.threads)
    return EV_OK


# Softmax ---------------------------------------------------------------------------------------------------------

cdef void softmax_row(const ev_call *c, int64_t n, int64_t step, const uint8_t *x, char *y) noexcept nogil:
    """n bytes, and as many results, `step` apart.

    The exponential of byte u where `largest` is the largest is table[255 - largest + u]; bytes of a signed type are
    taken from the middle of the table on."""
    cdef const Kinds *k = <const Kinds *> c.ints
    cdef const float *table = <const float *> c.in_[1].data
    cdef int flip = 0x80 if k.dtype == EV_INT8 else 0
    cdef uint8_t largest = 0
    cdef int64_t total = 0, i, size = ev_item_size(<int> k.out)
    cdef float factor
    cdef float real[ROW]
    cdef uint8_t order[ROW]
    cdef char every[256 * 4]
    cdef char found[256 * 4]
    if step == 1:
        K.q_exp_sum(n, x, flip, table, &largest, &total)
        table += 255 - largest
    else:
        for i in range(n):
            largest = max(largest, x[i * step] ^ <uint8_t> flip)
        table += 255 - largest
        for i in range(n):
            total += <int32_t> table[x[i * step] ^ <uint8_t> flip]
    factor = <float> 1.0 / (<float> total * <float> c.reals[0])
    if n <= ROW and step == 1:
        if flip:
            for i in range(n):
                order[i] = x[i] ^ 0x80
            x = order
        K.q_lookup(4, n, x, table, real)
        finish(k, n, real, factor, NULL, y)
        return
    memset(found, 0, 256 * 4)
    finish(k, 1 + largest, table, factor, NULL, found)
    if flip:  # in the order of the bits of x
        memcpy(every, found + 128 * size, 128 * size)
        memcpy(every + 128 * size, found, 128 * size)
    else:
        memcpy(every, found, 256 * size)
    if step == 1:
        K.q_lookup(size, n, x, every, y)
        return
    for i in range(n):
        memcpy(y + i * step * size, every + x[i * step] * size, size)


cdef void softmax_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int64_t n = c.ints[KINDS], inner = c.ints[KINDS + 1], item, at, size = ev_item_size(<int> c.ints[1])
    for item in range(begin, end):
        at = item // inner * n * inner + item % inner
        softmax_row(c, n, inner, <const uint8_t *> c.in_[0].data + at, <char *> c.out[0].data + at * size)


cdef int softmax(const ev_call *c) noexcept nogil:
    """in: X [outer, n, inner] of bytes, table [256] (float32) of exp((i - 255) X_scale) in whole units of 2^-23; out: Y.
    ints: (types of X and Y, zero points of X and Y, smallest and largest Y, n, inner); reals: (Y's scale, or 1)."""
    cdef int64_t items = c.in_[0].size // c.ints[KINDS]
    parallel_for(softmax_chunk, <void *> c, items, grain_of(items, c.in_[0].size * 4), c.threads)
    return EV_OK


# Layer normalization ---------------------------------------------------------------------------------------------

cdef enum:
    # Where the integers of `layer` are.
    L_DTYPE = 0, L_OUT = 1, L_ZERO = 2, L_ZERO_OUT = 3, L_LOW = 4, L_HIGH = 5, L_INTEGER = 6, L_N = 7


cdef void centre(const ev_call *c, int64_t n, const char *x, float *y) noexcept nogil:
    """x less its zero point; at most BLOCK numbers."""
    cdef int16_t q[BLOCK]
    cdef int integer = <int> c.ints[L_INTEGER]
    cdef int32_t zero = <int32_t> c.ints[L_ZERO]
    cdef float one = 1.0, scale = <float> c.reals[1]
    if c.ints[L_DTYPE] == EV_FLOAT:
        K.q_quantize(integer, n, <const float *> x, &scale, &zero, 0, lowest(integer), highest(integer), q)
        x = <const char *> q
    K.q_dequantize(integer, n, x, &one, &zero, 0, y)


cdef void layer_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int dtype = <int> c.ints[L_DTYPE], out = <int> c.ints[L_OUT]
    cdef int64_t n = c.ints[L_N], item, i, j, m, total, square, size = ev_item_size(dtype), out_size = ev_item_size(out)
    cdef const float *scale = <const float *> c.in_[1].data
    cdef const float *bias = <const float *> c.in_[2].data
    cdef const char *x
    cdef char *y
    cdef float real[BLOCK]
    cdef double average, variance
    cdef float inverse
    cdef bint bytes = (dtype == EV_UINT8 or dtype == EV_INT8) and (out == EV_UINT8 or out == EV_INT8)
    for item in range(begin, end):
        x, y = <const char *> c.in_[0].data + item * n * size, <char *> c.out[0].data + item * n * out_size
        total = square = 0
        if dtype == EV_UINT8 or dtype == EV_INT8:
            K.q_moments(dtype, n, x, <int32_t> c.ints[L_ZERO], &total, &square)
        else:
            i = 0
            while i < n:
                m = min(n - i, <int64_t> BLOCK)
                centre(c, m, x + i * size, real)
                for j in range(m):
                    total += <int64_t> real[j]
                    square += <int64_t> real[j] * <int64_t> real[j]
                i += m
        average = <double> total / <double> n
        variance = <double> square / <double> n - average * average
        inverse = <float> (1.0 / sqrt((variance if variance > 0 else 0) + c.reals[0]))
        i = 0
        while i < n:
            m = min(n - i, <int64_t> BLOCK)
            if bytes:
                K.q_normalize(dtype, m, x + i, <int32_t> c.ints[L_ZERO], <float> average, inverse, scale + i, bias + i,
                              out, <int32_t> c.ints[L_ZERO_OUT], <int32_t> c.ints[L_LOW], <int32_t> c.ints[L_HIGH],
                              y + i)
                i += m
                continue
            centre(c, m, x + i * size, real)
            K.q_affine_f32(m, real, <float> average, inverse, scale + i, bias + i, real)
            if out == EV_FLOAT:
                memcpy(y + i * 4, real, m * sizeof(float))
            else:
                K.q_round(out, m, real, 1.0, <int32_t> c.ints[L_ZERO_OUT], <int32_t> c.ints[L_LOW],
                          <int32_t> c.ints[L_HIGH], y + i * out_size)
            i += m


cdef int layer(const ev_call *c) noexcept nogil:
    """in: X [rows, n], scale [n], bias [n], both in units of Y; out: Y. ints: (types of X and Y, zero points of X and
    Y, smallest and largest Y, X's integer type, n); reals: (epsilon in units of X's scale squared, X's scale)."""
    cdef int64_t items = c.in_[0].size // c.ints[L_N]
    parallel_for(layer_chunk, <void *> c, items, grain_of(items, c.in_[0].size * 2), c.threads)
    return EV_OK


# Instance normalization ------------------------------------------------------------------------------------------

cdef enum:
    # Where the integers of `instance` are.
    I_DTYPE = 0, I_OUT = 1, I_ZERO = 2, I_ZERO_OUT = 3, I_CHANNELS = 4, I_N = 5, I_ACTIVATION = 6


cdef void instance_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int dtype = <int> c.ints[I_DTYPE], out = <int> c.ints[I_OUT]
    cdef int64_t n = c.ints[I_N], item, channel, i, total, square, size = ev_item_size(out)
    cdef const uint8_t *x
    cdef float real[256]
    cdef float scale[256]
    cdef float bias[256]
    cdef char table[256 * 4]
    cdef float unit = <float> c.reals[0]
    cdef uint8_t zero_out = <uint8_t> c.ints[I_ZERO_OUT]
    cdef double average, variance
    cdef ev_epilogue e
    e.bias, e.residual, e.ldr, e.slope, e.bias_axis = NULL, NULL, 0, NULL, 0
    e.activation, e.a, e.b = <int32_t> c.ints[I_ACTIVATION], <float> c.reals[1], <float> c.reals[2]
    for item in range(begin, end):
        channel, x = item % c.ints[I_CHANNELS], <const uint8_t *> c.in_[0].data + item * n
        total = square = 0
        K.q_moments(dtype, n, x, <int32_t> c.ints[I_ZERO], &total, &square)
        average = <double> total / <double> n
        variance = <double> square / <double> n - average * average
        variance = (variance if variance > 0 else 0) + (<const double *> c.in_[3].data)[channel]
        for i in range(256):  # in the order of the bits of x
            real[i] = <float> ((i if dtype == EV_UINT8 or i < 128 else i - 256) - c.ints[I_ZERO])
            scale[i] = (<const float *> c.in_[1].data)[channel]
            bias[i] = (<const float *> c.in_[2].data)[channel]
        K.q_affine_f32(256, real, <float> average, <float> (1.0 / sqrt(variance)), scale, bias, real)
        if e.activation:
            K.activate_f32(&e, 1, 256, 0, real, 256)
        if out == EV_FLOAT:
            memcpy(table, real, sizeof(real))
        else:
            K.q_quantize(out, 256, real, &unit, &zero_out, 0, lowest(out), highest(out), table)
        K.q_lookup(size, n, x, table, <char *> c.out[0].data + item * n * size)


cdef int instance(const ev_call *c) noexcept nogil:
    """in: X [N, channels, n] of bytes, scale, bias, and epsilon in units of X squared, float64 (each [channels]); out: Y.
    ints: (types of X and Y, zero points of X and Y, channels, n, activation); reals: (Y's scale, or 1, alpha, beta)."""
    cdef int64_t items = c.in_[0].size // c.ints[I_N]
    parallel_for(instance_chunk, <void *> c, items, grain_of(items, c.in_[0].size), c.threads)
    return EV_OK


DRIVERS = {}
register(DRIVERS, "instance", instance)
register(DRIVERS, "mean", mean)
register(DRIVERS, "softmax", softmax)
register(DRIVERS, "layer", layer)
