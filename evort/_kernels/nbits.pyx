"""Drivers of products with weights of few bits, which are widened where they are used: MatMulNBits, ConvNBits,
GatherBlockQuantized, and MatMul, Gemm, Conv and Gather with weights of 16 bits.

    up to VECTOR_ROWS rows of X    the weights stream past, at the speed of memory; a few bits are used in their words
                                   (nbits_body.h), 16 bits widened in registers (narrow_body.h)
    more                           the blocked product of gemm.pyx, to which a callback supplies the widened weights:
                                   as panels of B (MatMul), or as rows of A (Conv)
"""
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy, memset
from evort._kernels.core cimport (EV_ACT_NONE, EV_BAD_INDEX, EV_BIAS_COLUMN, EV_BIAS_NONE, EV_BIAS_ROW, EV_FLOAT, EV_INT16, EV_INT64, EV_NBITS_PAD, EV_NR_F32, EV_OK, EV_UINT8, ev_call,
                                  ev_conv_window, ev_epilogue, ev_nbits, ev_ukr, parallel_for, register, ukernels)
from evort._kernels.gemm cimport ev_gemm, gemm_f32, gemm_init, gemm_scratch

cdef const ev_ukr *K = ukernels()

cdef enum:
    VECTOR_ROWS = 3              # of X: more are a blocked product
    DEPTH = 64                   # of a panel of B that is widened at a time
    SUMS = 256                   # that are held apart from Y
    BYTES_PER_TASK = 1 << 14     # of weights; fewer are not worth waking a thread
    COLUMNS_PER_TASK = 32        # 16 of [k, n]: fewer are read a few bytes at a time
    MACS_PER_TASK = 1 << 17


cdef inline int64_t ceil_div(int64_t a, int64_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline int64_t round64(int64_t bytes) noexcept nogil:
    return ceil_div(bytes, 64) * 64


cdef void packed_weights(ev_weights *w, int64_t n, int64_t k, int32_t bits, int64_t block, const void *q,
                         const void *scales, int32_t scale_type, const void *zeros, int32_t zero_type) noexcept nogil:
    cdef ev_nbits *p = &w.packed
    w.dtype, w.columns, w.data, w.scale, w.n, w.k, w.rounded = EV_UINT8, False, NULL, NULL, n, k, False
    p.q, p.scales, p.scale_type, p.zeros, p.zero_type = <const uint8_t *> q, scales, scale_type, zeros, zero_type
    p.blocks, p.bits = ceil_div(k, block), bits
    p.row_bytes = p.blocks * block * bits // 8
    p.zero_bytes = ceil_div(p.blocks * bits, 8)
    p.log_block = 4
    while (<int64_t> 1) << p.log_block < block:
        p.log_block += 1


cdef void narrow_weights(ev_weights *w, int64_t n, int64_t k, bint columns, int32_t dtype,
                         const void *data) noexcept nogil:
    memset(w, 0, sizeof(ev_weights))
    w.dtype, w.columns, w.data, w.n, w.k = dtype, columns, data, n, k


# Widening ------------------------------------------------------------------------------------------------------------

cdef inline const uint8_t *item(const ev_weights *w, int64_t index) noexcept nogil:
    return <const uint8_t *> w.data + 2 * index


cdef inline void widen(const ev_weights *w, int64_t row, int64_t p0, int64_t count, float *out) noexcept nogil:
    """W[row, p0:p0+count], for weights that are not in columns."""
    if w.dtype == EV_UINT8:
        K.nbits_widen_f32(&w.packed, row, p0, count, out)
    else:
        K.cast(w.dtype, EV_FLOAT, count, item(w, row * w.k + p0), out)
        if w.scale != NULL:
            K.scal_f32(count, w.scale[row], out, 1)


cdef void rows_of_a(const void *ctx, int64_t i0, int64_t mc, int64_t p0, int64_t kc, void *dst) noexcept nogil:
    """ev_supply_a: rows of W."""
    cdef int64_t i
    for i in range(mc):
        widen(<const ev_weights *> ctx, i0 + i, p0, kc, <float *> dst + i * kc)


cdef void panels_of_b(const void *ctx, int64_t p0, int64_t kc, int64_t j0, int64_t nc, void *dst) noexcept nogil:
    """ev_pack_b: W's transpose."""
    cdef const ev_weights *w = <const ev_weights *> ctx
    cdef float[DEPTH * 16] part
    cdef float *panel = <float *> dst
    cdef int64_t j, p, i, some, depth
    if w.columns:
        for p in range(kc):
            j = 0
            while j < nc:
                some = min(<int64_t> DEPTH, nc - j)
                K.cast(w.dtype, EV_FLOAT, some, item(w, (p0 + p) * w.n + j0 + j), part)
                if w.scale != NULL:
                    for i in range(some):
                        part[i] *= w.scale[j0 + j + i]
                memset(part + some, 0, (ceil_div(some, EV_NR_F32) * EV_NR_F32 - some) * sizeof(float))
                i = 0
                while i < some:
                    memcpy(panel + (j + i) * kc + p * EV_NR_F32, part + i, EV_NR_F32 * sizeof(float))
                    i += EV_NR_F32
                j += DEPTH
        return
    j = 0
    while j < nc:
        some = min(<int64_t> EV_NR_F32, nc - j)
        if w.dtype == EV_UINT8:
            K.nbits_panel_f32(&w.packed, j0 + j, some, p0, kc, panel + j * kc)
        p = 0 if w.dtype != EV_UINT8 else kc
        while p < kc:
            depth = min(<int64_t> DEPTH, kc - p)
            for i in range(some):
                widen(w, j0 + j + i, p0 + p, depth, part + i * DEPTH)
            K.pack_f32(EV_NR_F32, some, depth, DEPTH, 1, part, panel + j * kc + p * EV_NR_F32)
            p += DEPTH
        j += EV_NR_F32


# Products ------------------------------------------------------------------------------------------------------------

ctypedef struct VectorJob:
    const ev_weights *w
    int64_t m, ldx, ldy, padded
    float alpha
    const float *x
    const float *spread          # m vectors of `padded` numbers, then their sums
    float *y
    const ev_epilogue *e


cdef inline int64_t padded_depth(const ev_weights *w) noexcept nogil:
    """Numbers of a row that the kernels go through."""
    return w.packed.blocks << w.packed.log_block if w.dtype == EV_UINT8 else 0


cdef inline int64_t spread_size(int64_t padded) noexcept nogil:
    """Floats of one spread vector, and as many sums as there may be lanes."""
    return ceil_div(padded, EV_NBITS_PAD) * EV_NBITS_PAD


cdef void finish_sums(const VectorJob *job, const float *z, int64_t i, int64_t j, int64_t count,
                      float *sums) noexcept nogil:
    """Row i of Y from column j on: sums in units of weights, and Z. Y may lie where Z does, and where `sums` do if there
    is no Z."""
    cdef int64_t p
    if job.w.scale != NULL:          # here, rather than weight by weight
        for p in range(count):
            sums[p] *= job.w.scale[j + p]
    if job.alpha != 1:
        K.scal_f32(count, job.alpha, sums, 1)
    if z != NULL:
        for p in range(count):
            job.y[i * job.ldy + j + p] = sums[p] + z[i * job.e.ldr + j + p]


cdef void vector_part(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Columns [16*begin, 16*end) of Y."""
    cdef const VectorJob *job = <const VectorJob *> ctx
    cdef const ev_weights *w = job.w
    cdef const ev_epilogue *e = job.e
    cdef int64_t j0 = 16 * begin, j1 = min(16 * end, w.n), i, j, some, size = spread_size(job.padded)
    cdef float[SUMS] apart           # where Z may lie in Y's place
    cdef float *y
    cdef const float *bias = NULL if e == NULL or e.bias_axis == EV_BIAS_NONE else <const float *> e.bias
    cdef const float *z = NULL if e == NULL else <const float *> e.residual
    j = j0
    while j < j1:
        # Of packed weights so few rows that they stay in L1 for all rows of X.
        some = min(j1 - j, <int64_t> 16 if w.dtype == EV_UINT8 else j1 - j if z == NULL else <int64_t> SUMS)
        for i in range(job.m):
            y = job.y + i * job.ldy + j if z == NULL else apart
            if w.rounded:
                K.nbits_dot_i16(&w.packed, j, some, job.spread + 2 * i * size, y)
            elif w.dtype == EV_UINT8:
                K.nbits_dot_f32(&w.packed, j, some, job.spread + 2 * i * size, job.spread + (2 * i + 1) * size, y)
            else:
                memset(y, 0, some * sizeof(float))
                if w.columns:
                    K.narrow_rows_f32(w.dtype, some, w.k, job.x + i * job.ldx, item(w, j), w.n, y)
                else:
                    K.narrow_dot_f32(w.dtype, some, w.k, job.x + i * job.ldx, item(w, j * w.k), w.k, y)
            finish_sums(job, z, i, j, some, y)
        j += some
    for i in range(job.m):
        y = job.y + i * job.ldy
        if bias != NULL:
            for j in range(j0, j1):
                y[j] += bias[j]
        if e != NULL and e.activation != EV_ACT_NONE:
            K.activate_f32(e, 1, j1 - j0, i, y + j0, job.ldy)


cdef int64_t widened_scratch(int64_t m, int64_t n, int64_t k, int64_t padded, int32_t threads) noexcept nogil:
    """padded: of packed weights, blocks times their size; else 0."""
    if m <= 0 or n <= 0:
        return 0
    if m > VECTOR_ROWS:
        return gemm_scratch(4, m, n, k, threads)
    return 2 * m * spread_size(padded) * sizeof(float)


cdef void widened_product(const ev_weights *w, int64_t m, float alpha, const float *x, int64_t ldx, float *y,
                          int64_t ldy, const ev_epilogue *e, int32_t threads, void *scratch) noexcept nogil:
    cdef ev_gemm g
    cdef VectorJob job
    cdef int64_t i, bits, size
    cdef float *spread = <float *> scratch
    if m <= 0 or w.n <= 0:
        return
    if m > VECTOR_ROWS:
        gemm_init(&g, m, w.n, w.k, x, ldx, NULL, 0, y, ldy)
        g.pack, g.pack_ctx = panels_of_b, w
        g.alpha, g.epilogue, g.threads, g.scratch = alpha, e, threads, scratch
        gemm_f32(&g)
        return
    job.w, job.m, job.alpha, job.x, job.ldx, job.y, job.ldy, job.e = w, m, alpha, x, ldx, y, ldy, e
    job.padded, job.spread = padded_depth(w), spread
    bits = 16
    if w.dtype == EV_UINT8:
        bits, size = w.packed.bits, spread_size(job.padded)
        for i in range(m):
            if w.rounded:
                K.nbits_spread_i16(w.packed.bits, w.k, job.padded, x + i * ldx, spread + 2 * i * size)
            else:
                K.nbits_spread_f32(w.packed.bits, w.k, job.padded, x + i * ldx, spread + 2 * i * size,
                                   spread + (2 * i + 1) * size)
    parallel_for(vector_part, &job, ceil_div(w.n, 16),
                 max(<int64_t> (COLUMNS_PER_TASK if w.columns else 1), BYTES_PER_TASK // max(1, 2 * w.k * bits)), threads)


# Drivers -------------------------------------------------------------------------------------------------------------

cdef inline const void *operand(const ev_call *c, int64_t i) noexcept nogil:
    return NULL if i >= c.n_in or c.in_[i] == NULL else c.in_[i].data


cdef void weights_of(const ev_call *c, int64_t n, int64_t k, int64_t bits, int64_t block, bint columns,
                     ev_weights *w) noexcept nogil:
    """The node's weights: inputs 1, 2 and 3 where they are packed, input 1 where bits is 16; int16 have scales [n]."""
    if bits == 16:
        narrow_weights(w, n, k, columns, c.in_[1].dtype, c.in_[1].data)
        if c.in_[1].dtype == EV_INT16:
            w.scale = <const float *> c.in_[2].data
    else:
        packed_weights(w, n, k, <int32_t> bits, block, c.in_[1].data, c.in_[2].data, c.in_[2].dtype, operand(c, 3),
                       EV_UINT8 if operand(c, 3) == NULL else c.in_[3].dtype)
        if c.in_[1].rank == 2:
            w.packed.row_bytes = c.in_[1].dims[1]


def product_scratch(int64_t m, int64_t n, int64_t k, int64_t padded, int32_t threads) -> int:
    """Scratch bytes of product; padded: numbers in a packed row, 0 for weights of 16 bits."""
    return widened_scratch(m, n, k, padded, threads)


cdef int product(const ev_call *c) noexcept nogil:
    """in: X, W, (scales, zero points or NULL,) ..., bias [n] or NULL, Z or NULL; out: Y; ints: (activation, m, n, k, bits
    or 16, block, whether W is [k, n], index of the bias, of Z, whether X may be rounded to 16 bits); reals: activation parameters, alpha."""
    cdef const int64_t *v = c.ints
    cdef ev_weights w
    cdef ev_epilogue e
    if c.out[0].size == 0:
        return EV_OK
    weights_of(c, v[2], v[3], v[4], v[5], v[6] != 0, &w)
    w.rounded = v[9] != 0
    memset(&e, 0, sizeof(e))
    e.bias = operand(c, v[7])
    e.bias_axis = EV_BIAS_NONE if e.bias == NULL else EV_BIAS_COLUMN
    e.residual, e.ldr = operand(c, v[8]), v[2]
    e.activation, e.a, e.b = <int32_t> v[0], <float> c.reals[0], <float> c.reals[1]
    widened_product(&w, v[1], <float> c.reals[2], <const float *> c.in_[0].data, v[3], <float *> c.out[0].data, v[2], &e,
                    c.threads, c.scratch)
    return EV_OK


ctypedef struct Image:
    const ev_conv_window *window
    const float *x

ctypedef struct Group:
    const ev_weights *w
    int64_t first                # row of the weights

ctypedef struct ConvJob:
    const ev_call *call
    ev_weights w
    ev_conv_window window
    int64_t groups, rows, channels, k, inside, outside, m
    bint direct                  # X itself is the right operand
    int64_t bias_at
    int32_t threads
    int64_t slot


cdef void image_of_b(const void *ctx, int64_t p0, int64_t kc, int64_t j0, int64_t nc, void *dst) noexcept nogil:
    cdef const Image *image = <const Image *> ctx
    K.im2col_f32(image.window, image.x, p0, kc, j0, nc, <float *> dst)


cdef void group_of_a(const void *ctx, int64_t i0, int64_t mc, int64_t p0, int64_t kc, void *dst) noexcept nogil:
    cdef const Group *group = <const Group *> ctx
    rows_of_a(group.w, group.first + i0, mc, p0, kc, dst)


cdef void conv_items(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Images and groups [begin, end), counted together."""
    cdef ConvJob *job = <ConvJob *> ctx
    cdef const ev_call *c = job.call
    cdef int64_t i, image, at
    cdef ev_gemm g
    cdef ev_epilogue e
    cdef Image source
    cdef Group group
    cdef const float *b = <const float *> operand(c, job.bias_at)
    cdef const float *z = <const float *> operand(c, job.bias_at + 1)
    cdef const float *slope = <const float *> operand(c, job.bias_at + 2)
    source.window, group.w = &job.window, &job.w
    for i in range(begin, end):
        image, group.first = i // job.groups, i % job.groups * job.rows
        at = (image * job.m + group.first) * job.outside
        source.x = <const float *> c.in_[0].data + i * job.channels * job.inside
        gemm_init(&g, job.rows, job.outside, job.k, job.w.data, 0, source.x, job.inside,
                  <float *> c.out[0].data + at, job.outside)
        g.csa = 0
        g.supply, g.supply_ctx = group_of_a, &group
        if not job.direct:
            g.pack, g.pack_ctx = image_of_b, &source
        e.bias = NULL if b == NULL else b + group.first
        e.bias_axis = EV_BIAS_NONE if b == NULL else EV_BIAS_ROW
        e.residual, e.ldr = NULL if z == NULL else z + at, job.outside
        e.slope = NULL if slope == NULL else slope + group.first
        e.activation, e.a, e.b = <int32_t> c.ints[0], <float> c.reals[0], <float> c.reals[1]
        g.epilogue, g.threads = &e, job.threads
        g.scratch = <char *> c.scratch + worker * job.slot
        gemm_f32(&g)


cdef inline bint by_items(int64_t items, int32_t threads) noexcept nogil:
    """Whether threads take whole images and groups, rather than share each product."""
    return threads > 1 and items >= threads and (items % threads == 0 or items >= 4 * threads)


def convolution_scratch(int64_t items, int64_t m, int64_t n, int64_t k, int32_t threads) -> int:
    """Scratch bytes of convolution: `items` (images times groups) products [m, k] x [k, n]."""
    if items <= 0 or m <= 0 or n <= 0:
        return 0
    if by_items(items, threads):
        return threads * round64(gemm_scratch(4, m, n, k, 1))
    return gemm_scratch(4, m, n, k, threads)


cdef int convolution(const ev_call *c) noexcept nogil:
    """in: X, W, (scales, zero points or NULL,) B, Z, slope or NULL each; out: Y; ints: (activation, group, the window's 18
    of evort.ops.conv, bits or 16, block, index of B, whether it is pointwise with stride 1); reals: activation
    parameters."""
    cdef ConvJob job
    cdef const int64_t *v = c.ints
    cdef int i
    cdef int64_t items
    cdef ev_conv_window *g = &job.window
    if c.out[0].size == 0:
        return EV_OK
    for i in range(3):
        g.image[i], g.out[i], g.kernel[i] = v[2 + i], v[5 + i], v[8 + i]
        g.stride[i], g.dilation[i], g.pad[i] = v[11 + i], v[14 + i], v[17 + i]
    job.call, job.groups, job.m = c, v[1], c.out[0].dims[1]
    job.rows, job.channels = job.m // v[1], c.in_[0].dims[1] // v[1]
    job.k = job.channels * g.kernel[0] * g.kernel[1] * g.kernel[2]
    items = c.out[0].dims[0] * v[1]
    job.inside = g.image[0] * g.image[1] * g.image[2]
    job.outside = g.out[0] * g.out[1] * g.out[2]
    job.bias_at, job.direct = v[22], v[23] != 0
    weights_of(c, job.m, job.k, v[20], v[21], False, &job.w)
    if by_items(items, c.threads):
        job.threads, job.slot = 1, round64(gemm_scratch(4, job.rows, job.outside, job.k, 1))
        parallel_for(conv_items, &job, items, max(1, MACS_PER_TASK // max(1, job.rows * job.outside * job.k)), c.threads)
    else:
        job.threads, job.slot = c.threads, 0
        conv_items(&job, 0, items, 0)
    return EV_OK


ctypedef struct GatherJob:
    const ev_call *call
    ev_weights w
    bint strict, bad             # an index outside is an error; there was one


cdef void gather_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef GatherJob *job = <GatherJob *> ctx
    cdef const ev_call *c = job.call
    cdef int64_t i, index, k = job.w.k
    cdef float *y = <float *> c.out[0].data
    for i in range(begin, end):
        if c.in_[2].dtype == EV_INT64:
            index = (<const int64_t *> c.in_[2].data)[i]
        else:
            index = (<const int32_t *> c.in_[2].data)[i]
        if index < 0:
            index += job.w.n
        if 0 <= index < job.w.n:
            widen(&job.w, index, 0, k, y + i * k)
        else:
            memset(y + i * k, 0, k * sizeof(float))
            job.bad = True


cdef int gather(const ev_call *c) noexcept nogil:
    """in: data, scales (unless bits is 16), indices, zero points or NULL; out: rows of floats, zeros for an index outside;
    ints: (rows, k, bits or 16, block, whether an index outside is an error)."""
    cdef GatherJob job
    cdef const int64_t *v = c.ints
    if c.out[0].size == 0:
        return EV_OK
    job.call, job.strict, job.bad = c, v[4] != 0, False
    if v[2] == 16:
        narrow_weights(&job.w, v[0], v[1], False, c.in_[0].dtype, c.in_[0].data)
    else:
        packed_weights(&job.w, v[0], v[1], <int32_t> v[2], v[3], c.in_[0].data, c.in_[1].data, c.in_[1].dtype,
                       operand(c, 3), EV_UINT8)
        job.w.packed.row_bytes = v[1] * v[2] // 8    # rows are not filled up here
    parallel_for(gather_rows, &job, c.out[0].size // v[1], max(1, BYTES_PER_TASK // v[1]), c.threads)
    return EV_BAD_INDEX if job.bad and job.strict else EV_OK


ctypedef struct WidenJob:
    ev_weights w
    float *y


cdef void widen_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef WidenJob *job = <WidenJob *> ctx
    cdef int64_t i, k = job.w.k
    for i in range(begin, end):
        widen(&job.w, i, 0, k, job.y + i * k)


cdef int widen_all(const ev_call *c) noexcept nogil:
    """in: W, scales, zero points or NULL; out: float weights [n, k]; ints: (k, bits, block)."""
    cdef WidenJob job
    cdef const int64_t *v = c.ints
    cdef int64_t n = c.out[0].size // v[0]
    packed_weights(&job.w, n, v[0], <int32_t> v[1], v[2], c.in_[0].data, c.in_[1].data, c.in_[1].dtype, operand(c, 2),
                   EV_UINT8 if c.n_in < 3 or c.in_[2] == NULL else c.in_[2].dtype)
    if c.in_[0].rank == 2:
        job.w.packed.row_bytes = c.in_[0].dims[1]
    job.y = <float *> c.out[0].data
    parallel_for(widen_rows, &job, n, max(1, BYTES_PER_TASK // v[0]), c.threads)
    return EV_OK


DRIVERS = {}
register(DRIVERS, "product", product)
register(DRIVERS, "convolution", convolution)
register(DRIVERS, "gather", gather)
register(DRIVERS, "widen_all", widen_all)
