"""Drivers of reductions, positions of extremes, cumulative sums and softmax.

evort/ops/reduce.py collapses shapes: neighbouring axes that are all reduced or all kept become one, axes of length 1
vanish. What is left alternates, and its last axis is contiguous:

    rows form, last axis reduced:  x[keep..., lead, loop..., n] -> y[keep..., lead]     a row of n gives one number
    cols form, last axis kept:     x[keep..., loop..., lead, n] -> y[keep..., n]        a column of `lead` gives one

(keep and loop axes may be interleaved in memory; each has its own stride.) The micro-kernels do the `lead` and `n`
axes; the drivers walk the others. A work item is a chunk of one line of y, at most EV_REDUCE_TILE numbers.
"""
from libc.math cimport INFINITY, isfinite, log, sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from evort._kernels.core cimport (EV_FLOAT, EV_OK, EV_REDUCE_EXP, EV_REDUCE_PROD, EV_REDUCE_TILE, ev_call, ev_ukr,
                                  parallel_for, register, ukernels)

cdef const ev_ukr *K = ukernels()

cdef enum:
    GRAIN = 131072  # elements that are worth a thread
    TILE = 256      # EV_REDUCE_TILE
    WIDE = 0        # accumulates float32 in double: EV_REDUCE_*
    EXTREME = 1     # op 0 maximum, 1 minimum, of any type
    WRAP = 2        # op 0 sum, 1 product, of 4- or 8-byte integers
    POST_DIVIDE = 1
    POST_SQRT = 2
    POST_LOG = 3
    POST_SHIFTED_LOG = 4


cdef struct Reduction:
    int kind, op, post, dtype, size
    bint cols
    int64_t n, lead, step, chunk, chunks, keeps, loops
    const int64_t *keep_dims
    const int64_t *keep_strides
    const int64_t *loop_dims
    const int64_t *loop_strides


cdef Reduction parse(const int64_t *p) noexcept nogil:
    cdef Reduction r
    r.kind, r.op, r.post, r.dtype, r.size, r.cols = <int> p[0], <int> p[1], <int> p[2], <int> p[3], <int> p[4], p[5]
    r.n, r.lead, r.step, r.chunk, r.keeps, r.loops = p[6], p[7], p[8], p[9], p[10], p[11]
    r.keep_dims = p + 12
    r.keep_strides = r.keep_dims + r.keeps
    r.loop_dims = r.keep_strides + r.keeps
    r.loop_strides = r.loop_dims + r.loops
    r.chunks = ((r.n if r.cols else r.lead) + r.chunk - 1) // r.chunk
    return r


cdef void fold_all(const Reduction *r, int kind, int op, const char *x, int64_t count, void *acc,
                   const float *shift) noexcept nogil:
    """Folds all that goes into `count` neighbouring numbers of y into acc."""
    cdef int64_t index[8]
    cdef int64_t d, rows = r.lead if r.cols else count, n = count if r.cols else r.n
    for d in range(r.loops):
        index[d] = 0
    while True:
        if kind == WIDE:
            (K.reduce_cols_f32 if r.cols else K.reduce_rows_f32)(op, rows, r.step, n, <const float *> x, shift,
                                                                 <double *> acc)
        elif kind == EXTREME:
            (K.extreme_cols if r.cols else K.extreme_rows)(op, r.dtype, rows, r.step, n, x, acc)
        elif r.size == 4:
            (K.wrap_cols_u32 if r.cols else K.wrap_rows_u32)(op, rows, r.step, n, <const uint32_t *> x,
                                                             <uint32_t *> acc)
        else:
            (K.wrap_cols_u64 if r.cols else K.wrap_rows_u64)(op, rows, r.step, n, <const uint64_t *> x,
                                                             <uint64_t *> acc)
        d = r.loops - 1
        while d >= 0:
            index[d] += 1
            x += r.loop_strides[d] * r.size
            if index[d] < r.loop_dims[d]:
                break
            x -= r.loop_dims[d] * r.loop_strides[d] * r.size
            index[d] = 0
            d -= 1
        if d < 0:
            return


cdef void first_elements(const Reduction *r, const char *x, int64_t count, char *acc) noexcept nogil:
    """Starts an extreme at one of its own elements."""
    cdef int64_t i
    if r.cols:
        memcpy(acc, x, <size_t> (count * r.size))
    else:
        for i in range(count):
            memcpy(acc + i * r.size, x + i * r.step * r.size, <size_t> r.size)


cdef void reduce_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef Reduction r = parse(c.ints)
    cdef double acc[TILE]
    cdef float shift[TILE]
    cdef int64_t item, rest, line, at, count, d, i, length = r.n if r.cols else r.lead
    cdef const char *x
    cdef char *y
    cdef float *yf
    cdef double value
    for item in range(begin, end):
        line, at = item // r.chunks, (item % r.chunks) * r.chunk
        count = min(r.chunk, length - at)
        x = <const char *> c.in_[0].data + at * (1 if r.cols else r.step) * r.size
        y = <char *> c.out[0].data + (line * length + at) * r.size
        rest = line
        for d in range(r.keeps - 1, -1, -1):
            x += (rest % r.keep_dims[d]) * r.keep_strides[d] * r.size
            rest //= r.keep_dims[d]
        if r.kind == EXTREME:
            first_elements(&r, x, count, y)
            fold_all(&r, EXTREME, r.op, x, count, y, NULL)
            continue
        if r.kind == WRAP:
            for i in range(count):
                if r.size == 4:
                    (<uint32_t *> y)[i] = r.op
                else:
                    (<uint64_t *> y)[i] = r.op
            fold_all(&r, WRAP, r.op, x, count, y, NULL)
            continue
        if r.op == EV_REDUCE_EXP:
            first_elements(&r, x, count, <char *> shift)
            fold_all(&r, EXTREME, 0, x, count, shift, NULL)
        for i in range(count):
            acc[i] = 1.0 if r.op == EV_REDUCE_PROD else 0.0
        fold_all(&r, WIDE, r.op, x, count, acc, shift)
        yf = <float *> y
        for i in range(count):
            value = acc[i]
            if r.post == POST_DIVIDE:
                value /= c.reals[0]
            elif r.post == POST_SQRT:
                value = sqrt(value)
            elif r.post == POST_LOG:
                value = log(value)
            elif r.post == POST_SHIFTED_LOG:
                value = log(value) + shift[i] if isfinite(shift[i]) else shift[i]
            yf[i] = <float> value


cdef int64_t grain_of(int64_t items, int64_t elements) noexcept nogil:
    """Work items that make a chunk worth a thread, where all items together read so many elements."""
    return max(1, GRAIN * items // max(elements, 1))


cdef int reduce_any(const ev_call *c) noexcept nogil:
    """in: X; out: Y. ints: (kind, op, post, dtype, item size, cols form?, n, lead, step, chunk, number of keep axes,
    number of loop axes, keep dims, keep strides, loop dims, loop strides), strides in elements, all dims at least 1;
    reals: (count,) for means."""
    cdef Reduction r = parse(c.ints)
    cdef int64_t items = r.chunks, d
    for d in range(r.keeps):
        items *= r.keep_dims[d]
    parallel_for(reduce_chunk, <void *> c, items, grain_of(items, c.in_[0].size), c.threads)
    return EV_OK


# Over one axis: X is [outer, n, inner], dense. A work item is a row where inner is 1, else up to TILE columns.

cdef void arg_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int minimum = <int> c.ints[0], last = <int> c.ints[1], dtype = c.in_[0].dtype
    cdef int64_t n = c.ints[2], inner = c.ints[3], size = c.ints[4], tiles = (inner + TILE - 1) // TILE, item, at, outer
    cdef const char *x = <const char *> c.in_[0].data
    cdef int64_t *y = <int64_t *> c.out[0].data
    if inner == 1:
        K.arg_rows(minimum, last, dtype, end - begin, n, n, x + begin * n * size, y + begin)
        return
    for item in range(begin, end):
        outer, at = item // tiles, (item % tiles) * TILE
        K.arg_cols(minimum, last, dtype, n, inner, min(<int64_t> TILE, inner - at), x + (outer * n * inner + at) * size,
                   y + outer * inner + at)


cdef int arg_extreme(const ev_call *c) noexcept nogil:
    """in: X; out: Y, int64 positions; ints: (minimum?, last?, n, inner, item size of X), n at least 1."""
    cdef int64_t tiles = (c.ints[3] + TILE - 1) // TILE, items = c.out[0].size // max(c.ints[3], 1) * tiles
    parallel_for(arg_chunk, <void *> c, items, grain_of(items, c.in_[0].size), c.threads)
    return EV_OK


cdef void softmax_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int log_of = <int> c.ints[0]
    cdef int64_t n = c.ints[1], inner = c.ints[2], tiles = (inner + TILE - 1) // TILE, item, at
    cdef const float *x = <const float *> c.in_[0].data
    cdef float *y = <float *> c.out[0].data
    if inner == 1:
        K.softmax_rows_f32(log_of, end - begin, n, x + begin * n, y + begin * n)
        return
    for item in range(begin, end):
        at = item // tiles * n * inner + (item % tiles) * TILE
        K.softmax_cols_f32(log_of, n, inner, min(<int64_t> TILE, inner - (item % tiles) * TILE), x + at, y + at)


cdef int softmax_f32(const ev_call *c) noexcept nogil:
    """in: X; out: Y, may be the same memory; ints: (logarithm?, n, inner), both at least 1."""
    cdef int64_t n = c.ints[1], inner = c.ints[2], items = c.in_[0].size // (n * inner) * ((inner + TILE - 1) // TILE)
    parallel_for(softmax_chunk, <void *> c, items, max(1, grain_of(items, c.in_[0].size) // 8), c.threads)
    return EV_OK


ctypedef fused number:
    float
    uint32_t
    uint64_t

ctypedef fused total:
    double
    uint64_t


cdef void running(const number *x, number *y, total *acc, int64_t n, int64_t inner, int64_t count, bint product,
                  bint exclusive, bint reverse) noexcept nogil:
    """Down `count` columns."""
    cdef int64_t i, j, at
    cdef total before, one
    if count == 1:
        one = 1 if product else 0
        for i in range(n):
            at = (n - 1 - i if reverse else i) * inner
            before = one
            one = before * <total> x[at] if product else before + <total> x[at]
            y[at] = <number> (before if exclusive else one)
        return
    for j in range(count):
        acc[j] = 1 if product else 0
    for i in range(n):
        at = (n - 1 - i if reverse else i) * inner
        for j in range(count):
            before = acc[j]
            acc[j] = before * <total> x[at + j] if product else before + <total> x[at + j]
            y[at + j] = <number> (before if exclusive else acc[j])


cdef void running_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int64_t n = c.ints[3], inner = c.ints[4], size = c.ints[5], tiles = (inner + TILE - 1) // TILE, item, at, count
    cdef const char *x
    cdef char *y
    cdef double wide[TILE]
    cdef uint64_t whole[TILE]
    for item in range(begin, end):
        count = min(<int64_t> TILE, inner - (item % tiles) * TILE)
        at = (item // tiles * n * inner + (item % tiles) * TILE) * size
        x, y = <const char *> c.in_[0].data + at, <char *> c.out[0].data + at
        if c.in_[0].dtype == EV_FLOAT:
            running(<const float *> x, <float *> y, wide, n, inner, count, c.ints[0], c.ints[1], c.ints[2])
        elif size == 4:
            running(<const uint32_t *> x, <uint32_t *> y, whole, n, inner, count, c.ints[0], c.ints[1], c.ints[2])
        else:
            running(<const uint64_t *> x, <uint64_t *> y, whole, n, inner, count, c.ints[0], c.ints[1], c.ints[2])


cdef int cumulative(const ev_call *c) noexcept nogil:
    """in: X (float32, or integers of 4 or 8 bytes); out: Y, may be the same memory; ints: (product?, exclusive?,
    reverse?, n, inner, item size), n and inner at least 1. float32 runs in double."""
    cdef int64_t n = c.ints[3], inner = c.ints[4], items = c.in_[0].size // (n * inner) * ((inner + TILE - 1) // TILE)
    parallel_for(running_chunk, <void *> c, items, grain_of(items, c.in_[0].size), c.threads)
    return EV_OK


DRIVERS = {}
register(DRIVERS, "reduce", reduce_any)
register(DRIVERS, "arg_extreme", arg_extreme)
register(DRIVERS, "softmax_f32", softmax_f32)
register(DRIVERS, "cumulative", cumulative)
