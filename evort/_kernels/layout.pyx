"""Drivers of the layout family: moving elements without looking at them.

Elements are items of 1, 2, 4, 8 or 16 bytes. `evort.ops.copies` describes strided copies and takes, already
simplified; here they are walks over output rows (the innermost axis), split between threads by rows. Gather and
scatter are in gather.pyx.
"""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset
from evort._kernels.core cimport (
    EV_DOUBLE, EV_FLOAT, EV_INT16, EV_INT32, EV_INT64, EV_OK, EV_UNSUPPORTED, ev_call, ev_ukr, parallel_for, register,
    ukernels,
)

cdef const ev_ukr *K = ukernels()

cdef enum:
    MAX_AXES = 16
    # As in evort.ops.copies.
    K_RUN = 0
    K_FILL = 1
    K_STEP = 2
    K_TRANSPOSE = 3
    BY_INDEX = 0
    BY_INDEX_OR_FILL = 1
    BY_SEGMENT = 2
    BY_REPEAT = 3
    # Work that is worth a thread.
    GRAIN_BYTES = 65536
    TRANSPOSE_ROWS = 256


cdef int64_t rows_per_grain(int64_t row_bytes) noexcept nogil:
    return GRAIN_BYTES // row_bytes + 1


cdef struct Move:
    const char *x
    char *y
    int64_t a, b, c


cdef void copy_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef Move *m = <Move *> ctx
    memcpy(m.y + begin, m.x + begin, <size_t> (end - begin))


cdef void copy_bytes(const void *x, void *y, int64_t n, int32_t threads) noexcept nogil:
    cdef Move m
    if n > 0 and x != y:
        m.x, m.y = <const char *> x, <char *> y
        parallel_for(copy_chunk, &m, n, 4 * GRAIN_BYTES, threads)


cdef int copy(const ev_call *c) noexcept nogil:
    """in: X; out: the same bytes; ints: (bytes,)."""
    copy_bytes(c.in_[0].data, c.out[0].data, c.ints[0], c.threads)
    return EV_OK


# Strided copies --------------------------------------------------------------------------------------------------

cdef inline int64_t inner_axes(int64_t kind, int64_t n) noexcept nogil:
    """How many of the last axes one step of the walk covers."""
    return 2 if kind == K_TRANSPOSE or (kind == K_RUN and n > 1) else 1


cdef void strided_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int64_t kind = c.ints[0], item = c.ints[1], n = c.ints[3]
    cdef const int64_t *dims = c.ints + 4
    cdef const int64_t *xs = dims + n
    cdef const int64_t *ys = xs + n
    cdef int64_t outer = n - inner_axes(kind, n)
    cdef int64_t at[MAX_AXES]
    cdef int64_t i, k, rest, blocks = 1, block = 0, rows = 0, last = dims[n - 1], step = xs[n - 1]
    cdef const char *x = <const char *> c.in_[0].data + c.ints[2] * item
    cdef char *y = <char *> c.out[0].data
    if kind == K_TRANSPOSE:
        blocks = (dims[n - 2] + TRANSPOSE_ROWS - 1) // TRANSPOSE_ROWS
        block = begin % blocks
    rest = begin // blocks
    for i in range(outer - 1, -1, -1):
        at[i] = rest % dims[i]
        rest //= dims[i]
        x += at[i] * xs[i] * item
        y += at[i] * ys[i] * item
    for k in range(begin, end):
        if kind == K_RUN:
            if n == 1:
                memcpy(y, x, <size_t> (last * item))
            else:
                K.move_rows(dims[n - 2], last * item, x, xs[n - 2] * item, y, last * item)
        elif kind == K_FILL:
            K.move_fill(<int> item, last, x, y)
        elif kind == K_STEP:
            K.move_step(<int> item, last, x, step, y)
        else:
            rows = dims[n - 2] - block * TRANSPOSE_ROWS
            K.move_transpose(<int> item, rows if rows < TRANSPOSE_ROWS else TRANSPOSE_ROWS, last,
                             x + block * TRANSPOSE_ROWS * item, step, y + block * TRANSPOSE_ROWS * ys[n - 2] * item,
                             ys[n - 2])
            block += 1
            if block < blocks:
                continue
            block = 0
        for i in range(outer - 1, -1, -1):
            at[i] += 1
            x += xs[i] * item
            y += ys[i] * item
            if at[i] < dims[i]:
                break
            x -= dims[i] * xs[i] * item
            y -= dims[i] * ys[i] * item
            at[i] = 0


cdef int strided(const ev_call *c) noexcept nogil:
    """in: X; out: Y, dense. ints: (kind, item bytes, offset, axes n, n sizes, n strides of X, n strides of Y); the
    strides and the offset in items. K_TRANSPOSE: X has stride 1 in the last axis but one."""
    cdef int64_t kind = c.ints[0], item = c.ints[1], n = c.ints[3], rows = 1, i
    cdef const int64_t *dims = c.ints + 4
    cdef int64_t row_bytes = dims[n - 1] * item
    if n > MAX_AXES:
        return EV_UNSUPPORTED
    for i in range(n - inner_axes(kind, n)):
        rows *= dims[i]
    if kind == K_TRANSPOSE:
        rows *= (dims[n - 2] + TRANSPOSE_ROWS - 1) // TRANSPOSE_ROWS
        row_bytes *= TRANSPOSE_ROWS
    elif kind == K_RUN and n > 1:
        row_bytes *= dims[n - 2]
    parallel_for(strided_chunk, <void *> c, rows, rows_per_grain(row_bytes), c.threads)
    return EV_OK


# Takes: an index table for each axis -----------------------------------------------------------------------------

cdef char ZEROS[16]  # as all C globals, zero


cdef void take_row(const ev_call *c, int64_t kind, int64_t item, const char *x, const char *fill, char *y) noexcept nogil:
    cdef int64_t n = c.ints[2], n_last = c.ints[3]
    cdef const int64_t *last = c.ints + 4 + 3 * n - 1
    cdef int64_t i
    if kind == BY_REPEAT:
        K.move_repeat(<int> item, c.ints[4 + n - 1] // last[0], last[0], x, y)
        return
    if kind != BY_SEGMENT:
        if kind == BY_INDEX:
            fill = NULL
        K.move_index(<int> item, c.ints[4 + n - 1], x, last, fill, y)
        return
    for i in range(0, n_last, 3):
        if last[i] < 0:
            K.move_fill(<int> item, last[i + 2], fill, y)
        elif last[i + 1] == 1:
            memcpy(y, x + last[i] * item, <size_t> (last[i + 2] * item))
        elif last[i + 1] == 0:
            K.move_fill(<int> item, last[i + 2], x + last[i] * item, y)
        else:
            K.move_step(<int> item, last[i + 2], x + last[i] * item, -1, y)
        y += last[i + 2] * item


cdef void take_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int64_t kind = c.ints[0], item = c.ints[1], n = c.ints[2]
    cdef const int64_t *dims = c.ints + 4
    cdef const int64_t *strides = dims + n
    cdef const int64_t *places = strides + n
    cdef const int64_t *indices = places + n - 1
    cdef const char *x = <const char *> c.in_[0].data
    cdef const char *fill = ZEROS
    cdef const char *row
    cdef const char *before = NULL
    cdef int64_t row_bytes = dims[n - 1] * item
    cdef char *y = <char *> c.out[0].data + begin * row_bytes
    cdef int64_t at[MAX_AXES]
    cdef int64_t i, k, index, rest = begin
    if c.n_in > 1 and c.in_[1] != NULL:
        fill = <const char *> c.in_[1].data
    for i in range(n - 2, -1, -1):
        at[i] = rest % dims[i]
        rest //= dims[i]
    for k in range(begin, end):
        row = x
        for i in range(n - 1):
            index = at[i] if places[i] < 0 else indices[places[i] + at[i]]
            if index < 0:
                row = NULL
                break
            row += index * strides[i] * item
        if row == NULL:
            K.move_fill(<int> item, dims[n - 1], fill, y)
        elif row == before:
            memcpy(y, y - row_bytes, <size_t> row_bytes)
        else:
            take_row(c, kind, item, row, fill, y)
        before = row
        y += row_bytes
        for i in range(n - 2, -1, -1):
            at[i] += 1
            if at[i] < dims[i]:
                break
            at[i] = 0


cdef int take(const ev_call *c) noexcept nogil:
    """in: X, and the fill value where it is not zero; out: Y[i0, i1, ...] = X[t0[i0], t1[i1], ...].

    ints: (how the last axis is given, item bytes, axes n, length m of the last axis's table or segments, n sizes of Y,
    n strides of X in items, n - 1 places of the outer axes' tables or -1 for none, tables: the last axis's first)."""
    cdef int64_t n = c.ints[2], rows = 1, i
    if n > MAX_AXES:
        return EV_UNSUPPORTED
    for i in range(n - 1):
        rows *= c.ints[4 + i]
    parallel_for(take_chunk, <void *> c, rows, rows_per_grain(c.ints[4 + n - 1] * c.ints[1]), c.threads)
    return EV_OK


# Concat and Split ------------------------------------------------------------------------------------------------

cdef void join_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef const int64_t *parts = c.ints + 2
    cdef int64_t row = c.ints[1], i, offset = 0
    for i in range(c.n_in):
        K.move_rows(end - begin, parts[i], <const char *> c.in_[i].data + begin * parts[i], parts[i],
                    <char *> c.out[0].data + begin * row + offset, row)
        offset += parts[i]


cdef int concat(const ev_call *c) noexcept nogil:
    """in: X0, X1, ...; out: Y. ints: (rows: product of the sizes before the axis, bytes of a row of Y, bytes of a row
    of each input). An input that lies in its place already is left there."""
    cdef int64_t i, offset = 0
    if c.ints[0] == 1:
        for i in range(c.n_in):
            copy_bytes(c.in_[i].data, <char *> c.out[0].data + offset, c.ints[2 + i], c.threads)
            offset += c.ints[2 + i]
    else:
        parallel_for(join_chunk, <void *> c, c.ints[0], rows_per_grain(c.ints[1]), c.threads)
    return EV_OK


cdef void split_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef const int64_t *parts = c.ints + 2
    cdef int64_t row = c.ints[1], i, offset = 0
    for i in range(c.n_out):
        if c.out[i] != NULL:
            K.move_rows(end - begin, parts[i], <const char *> c.in_[0].data + begin * row + offset, row,
                        <char *> c.out[i].data + begin * parts[i], parts[i])
        offset += parts[i]


cdef int split(const ev_call *c) noexcept nogil:
    """in: X; out: Y0, Y1, ... (NULL where unwanted). ints: as those of concat."""
    parallel_for(split_chunk, <void *> c, c.ints[0], rows_per_grain(c.ints[1]), c.threads)
    return EV_OK


# Making tensors --------------------------------------------------------------------------------------------------

cdef void fill_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    K.move_fill(<int> c.ints[0], end - begin, c.ints + 1, <char *> c.out[0].data + begin * c.ints[0])


cdef int fill(const ev_call *c) noexcept nogil:
    """out: Y, each element the same. ints: (item bytes, 8 bytes that begin with the element)."""
    parallel_for(fill_chunk, <void *> c, c.out[0].size, rows_per_grain(c.ints[0]), c.threads)
    return EV_OK


cdef int eye(const ev_call *c) noexcept nogil:
    """out: Y [n, m] of zeros and, at [i, i + k], the element. ints: (item bytes, 8 bytes that begin with it, k)."""
    cdef int64_t item = c.ints[0], k = c.ints[2], n = c.out[0].dims[0], m = c.out[0].dims[1], i
    memset(c.out[0].data, 0, <size_t> (n * m * item))
    for i in range(0 if k > 0 else -k, n if n < m - k else m - k):
        memcpy(<char *> c.out[0].data + (i * m + i + k) * item, c.ints + 1, <size_t> item)
    return EV_OK


cdef void triangle_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int64_t item = c.ints[0], n = c.ints[3], m = c.ints[4], k = c.ints[2], i, edge
    cdef char *y
    cdef const char *x
    for i in range(begin, end):
        # The first column above the triangle's edge: those before it are "lower", it and those after "upper".
        edge = i % n + k + (0 if c.ints[1] else 1)
        edge = 0 if edge < 0 else m if edge > m else edge
        x = <const char *> c.in_[0].data + i * m * item
        y = <char *> c.out[0].data + i * m * item
        if c.ints[1]:
            memset(y, 0, <size_t> (edge * item))
            if x != y:
                memcpy(y + edge * item, x + edge * item, <size_t> ((m - edge) * item))
        else:
            if x != y:
                memcpy(y, x, <size_t> (edge * item))
            memset(y + edge * item, 0, <size_t> ((m - edge) * item))


cdef int triangle(const ev_call *c) noexcept nogil:
    """in: X [..., n, m]; out: Y, X above (upper) or below the k-th diagonal, else zero.
    ints: (item bytes, upper, k, n, m)."""
    if c.out[0].size > 0:
        parallel_for(triangle_chunk, <void *> c, c.out[0].size // c.ints[4], rows_per_grain(c.ints[4] * c.ints[0]),
                     c.threads)
    return EV_OK


cdef int arange(const ev_call *c) noexcept nogil:
    """out: Y[i] = start + i * step. ints: (start, step) for integers, reals: (start, step) for the others."""
    cdef void *y = c.out[0].data
    cdef int64_t n = c.out[0].size, i
    if c.out[0].dtype == EV_FLOAT:
        for i in range(n):
            (<float *> y)[i] = <float> (c.reals[0] + <double> i * c.reals[1])
    elif c.out[0].dtype == EV_DOUBLE:
        for i in range(n):
            (<double *> y)[i] = c.reals[0] + <double> i * c.reals[1]
    elif c.out[0].dtype == EV_INT64:
        for i in range(n):
            (<int64_t *> y)[i] = c.ints[0] + i * c.ints[1]
    elif c.out[0].dtype == EV_INT32:
        for i in range(n):
            (<int32_t *> y)[i] = <int32_t> (c.ints[0] + i * c.ints[1])
    elif c.out[0].dtype == EV_INT16:
        for i in range(n):
            (<short *> y)[i] = <short> (c.ints[0] + i * c.ints[1])
    else:
        return EV_UNSUPPORTED
    return EV_OK


DRIVERS = {}
register(DRIVERS, "copy", copy)
register(DRIVERS, "strided", strided)
register(DRIVERS, "take", take)
register(DRIVERS, "concat", concat)
register(DRIVERS, "split", split)
register(DRIVERS, "fill", fill)
register(DRIVERS, "eye", eye)
register(DRIVERS, "triangle", triangle)
register(DRIVERS, "arange", arange)
