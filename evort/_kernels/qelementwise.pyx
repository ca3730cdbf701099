"""Drivers of quantized elementwise operators. Tables have 256 entries, in the order of the index's bits."""
from libc.stdint cimport INT64_MAX, int16_t, int32_t, int64_t, uint8_t
from libc.string cimport memcpy
from evort._kernels.core cimport (EV_FLOAT, EV_INT8, EV_INT16, EV_OK, EV_UINT8, EV_UINT16, ev_call, ev_item_size,
                                  ev_qbinary, ev_ukr, note, parallel_for, register, ukernels)
from evort._kernels.elementwise cimport BLOCK, Walk, blocks, walk

cdef const ev_ukr *K = ukernels()

cdef enum:
    GRAIN = 16384  # items that are worth a thread
    TILE = 1024    # bytes of a row that is repeated, EV_QTILE


cdef inline int32_t lowest(int dtype) noexcept nogil:
    return -128 if dtype == EV_INT8 else -32768 if dtype == EV_INT16 else 0


cdef inline int32_t highest(int dtype) noexcept nogil:
    return 127 if dtype == EV_INT8 else 255 if dtype == EV_UINT8 else 32767 if dtype == EV_INT16 else 65535


# ---- two operands ------------------------------------------------------------------------------------------------

cdef enum:
    # Where the integers and the reals of `binary` are.
    B_OP = 0, B_TYPE = 1, B_OUT = 3, B_INTEGER = 4, B_ZERO = 6, B_ZERO_OUT = 8, B_LOW = 9, B_HIGH = 10, B_FOLDS = 11
    B_ACTIVATION = 12, B_LOOPS = 13
    B_FACTOR = 0, B_SCALE = 2, B_SCALE_OUT = 4, B_ALPHA = 5, B_BETA = 6


cdef void binary_row(const Walk *w, int64_t n, const char **p, const int64_t *s, char *y) noexcept nogil:
    """8-bit operands and result of one type."""
    cdef const ev_call *c = w.call
    K.q_binary(<int> c.ints[B_OUT], <int> c.ints[B_OP], n, p[0], s[0], p[1], s[1], <const ev_qbinary *> w.context, y)


cdef void centre(const ev_call *c, int k, int64_t n, const char *x, int64_t stride, float *y) noexcept nogil:
    """Operand k without its zero point; one item of it for all where the stride is 0."""
    cdef int64_t m = n if stride else 1, i
    cdef int16_t q[BLOCK]
    cdef int dtype = <int> c.ints[B_TYPE + k], integer = <int> c.ints[B_INTEGER + k]
    cdef int32_t zero = <int32_t> c.ints[B_ZERO + k]
    cdef float scale = <float> c.reals[B_SCALE + k], one = 1.0
    if dtype == EV_FLOAT:
        K.q_quantize(integer, m, <const float *> x, &scale, &zero, 0, lowest(integer), highest(integer), q)
        x = <const char *> q
    K.q_dequantize(integer, m, x, &one, &zero, 0, y)
    for i in range(m, n):
        y[i] = y[0]


cdef void binary_mixed_row(const Walk *w, int64_t n, const char **p, const int64_t *s, char *y) noexcept nogil:
    """Any types, with an activation: at most BLOCK items."""
    cdef const ev_call *c = w.call
    cdef float a[BLOCK]
    cdef float b[BLOCK]
    cdef int out = <int> c.ints[B_OUT]
    cdef int32_t zero = <int32_t> c.ints[B_ZERO_OUT], low = <int32_t> c.ints[B_LOW], high = <int32_t> c.ints[B_HIGH]
    cdef float scale = <float> c.reals[B_SCALE_OUT]
    centre(c, 0, n, p[0], s[0], a)
    centre(c, 1, n, p[1], s[1], b)
    K.q_combine_f32(<int> c.ints[B_OP], n, a, b, <float> c.reals[B_FACTOR], <float> c.reals[B_FACTOR + 1], a)
    if c.ints[B_ACTIVATION]:
        K.unary_f32(<int> c.ints[B_ACTIVATION], n, a, a, <float> c.reals[B_ALPHA], <float> c.reals[B_BETA])
    if c.range != NULL:
        note(K, c.range, n, a, 1 if c.ints[B_FOLDS] or out == EV_FLOAT else 1 / scale)
    if out == EV_FLOAT:
        memcpy(y, a, n * sizeof(float))
    elif c.ints[B_FOLDS]:
        K.q_round(out, n, a, 1.0, zero, low, high, y)
    else:
        K.q_quantize(out, n, a, &scale, &zero, 0, low, high, y)


cdef void binary_tiled_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Rows [begin, end) of A by one short row B, of which a few follow one another here."""
    cdef const Walk *w = <const Walk *> ctx
    cdef const ev_call *c = w.call
    cdef int64_t n = c.ints[B_LOOPS + 2], tile = min(TILE // n, end - begin), i
    cdef char b[TILE]
    for i in range(tile):
        memcpy(b + i * n, c.in_[1].data, n)
    K.q_binary_tiled(<int> c.ints[B_OUT], <int> c.ints[B_OP], (end - begin) * n, <const char *> c.in_[0].data + begin * n,
                     tile * n, b, <const ev_qbinary *> w.context, <char *> c.out[0].data + begin * n)


cdef bint is_tiled(const int64_t *loops) noexcept nogil:
    """Whether A is many rows, and B a short one for all of them."""
    return (loops[0] == 2 and 0 < loops[2] <= TILE // 4 and loops[3] == loops[2] and loops[4] == loops[6] == 1
            and loops[5] == 0)


cdef int binary(const ev_call *c) noexcept nogil:
    """in: A, B; out: C. ints: (EV_QADD or EV_QMUL, types of A, B and C, integer types of A and B, which say what a
    float operand is quantized to, zero points of A, B and C, smallest and largest C, does the activation only clamp C?,
    activation, loops...); reals: (factors of A and B (of the product, and 0), scales of A, B and C, the activation's
    parameters). Where it only clamps, the factors are in units of C."""
    cdef Walk w
    cdef ev_qbinary q
    cdef int a = <int> c.ints[B_TYPE], b = <int> c.ints[B_TYPE + 1], out = <int> c.ints[B_OUT]
    cdef bint plain = c.range == NULL and c.ints[B_FOLDS] and a == out and b == out and (out == EV_UINT8 or out == EV_INT8)
    q.scale_a, q.scale_b = <float> c.reals[B_FACTOR], <float> c.reals[B_FACTOR + 1]
    q.zero_a, q.zero_b = <int32_t> c.ints[B_ZERO], <int32_t> c.ints[B_ZERO + 1]
    q.zero, q.lo, q.hi = <int32_t> c.ints[B_ZERO_OUT], <int32_t> c.ints[B_LOW], <int32_t> c.ints[B_HIGH]
    w.context = &q
    if plain and is_tiled(c.ints + B_LOOPS):
        w.call = c
        parallel_for(binary_tiled_rows, &w, c.ints[B_LOOPS + 1], max(1, GRAIN // c.ints[B_LOOPS + 2]), c.threads)
        return EV_OK
    w.size[0], w.size[1] = ev_item_size(a), ev_item_size(b)
    walk(&w, c, c.ints + B_LOOPS, binary_row if plain else binary_mixed_row, INT64_MAX if plain else BLOCK, 2,
         ev_item_size(out), GRAIN)
    return EV_OK


# ---- tables ------------------------------------------------------------------------------------------------------

cdef void look_up(int dtype, float scale, int32_t zero, int64_t size, int64_t n, const char *x, const char *table,
                  char *y) noexcept nogil:
    """y = table[x], entries of `size` bytes. With a scale, x is float32 and quantized first."""
    cdef uint8_t q[BLOCK]
    cdef int64_t block_index, i, m
    if scale == 0.0:
        K.q_lookup(size, n, <const uint8_t *> x, table, y)
        return
    for block_index in range(blocks(n)):
        i = block_index * BLOCK
        m = min(n - i, <int64_t> BLOCK)
        K.q_quantize(dtype, m, <const float *> x + i, &scale, &zero, 0, lowest(dtype), highest(dtype), q)
        K.q_lookup(size, m, q, table, y + i * size)


cdef void lookup_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int64_t size = c.ints[0], item = 1 if c.reals[0] == 0.0 else 4
    look_up(<int> c.ints[1], <float> c.reals[0], <int32_t> c.ints[2], size, end - begin,
            <const char *> c.in_[0].data + begin * item, <const char *> c.in_[1].data,
            <char *> c.out[0].data + begin * size)


cdef int lookup(const ev_call *c) noexcept nogil:
    """in: X (8 bits, or float32), table; out: Y. ints: (bytes of an entry, X's integer type, zero point); reals: (0,
    or the scale by which float32 X is quantized)."""
    parallel_for(lookup_chunk, <void *> c, c.out[0].size, GRAIN, c.threads)
    return EV_OK


cdef enum:
    # Of `concat`: where its integers are, how many each operand has, and the kinds.
    C_ROWS = 0, C_ROW = 1, C_SIZE = 2, C_OPERANDS = 3
    OPERAND_INTS = 6
    COPY = 0, TABLE = 1, QUANTIZE = 2

# An operand of `concat`, in the order of its integers.
cdef struct Part:
    int64_t kind, items, size, table, dtype, zero

cdef struct Joining:
    const ev_call *c
    int64_t operand, offset


cdef void place(const ev_call *c, int64_t k, int64_t n, const char *x, char *y) noexcept nogil:
    """n items of operand k, as they are in the result."""
    cdef const Part *part = <const Part *> (c.ints + C_OPERANDS) + k
    cdef int64_t operands = c.n_in - tables_of(c)
    cdef int dtype = <int> part.dtype
    cdef float scale = <float> c.reals[k]
    cdef int32_t zero = <int32_t> part.zero
    if part.kind == COPY:
        if x != y:
            memcpy(y, x, n * part.size)
    elif part.kind == QUANTIZE and part.table < 0:
        K.q_quantize(dtype, n, <const float *> x, &scale, &zero, 0, lowest(dtype), highest(dtype), y)
    else:
        look_up(dtype, scale if part.kind == QUANTIZE else 0.0, zero, c.ints[C_SIZE], n, x,
                <const char *> c.in_[operands + part.table].data, y)


cdef inline int64_t tables_of(const ev_call *c) noexcept nogil:
    """How many of the inputs are tables."""
    return c.n_in - (c.n_ints - C_OPERANDS) // OPERAND_INTS


cdef void join_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = (<const Joining *> ctx).c
    cdef const Part *parts = <const Part *> (c.ints + C_OPERANDS)
    cdef int64_t k, row, some, each, n, size = c.ints[C_SIZE], pitch = c.ints[C_ROW] * size, offset = 0
    cdef const char *x
    cdef char *y
    cdef char block[TILE]
    for k in range(c.n_in - tables_of(c)):
        n, y = parts[k].items, <char *> c.out[0].data + begin * pitch + offset
        x, each = <const char *> c.in_[k].data + begin * n * parts[k].size, n * size
        offset += each
        if parts[k].kind == COPY:
            K.move_rows(end - begin, each, x, each, y, pitch)
            continue
        row, some = begin, TILE // max(1, each)
        while row < end:             # short rows by the block, long ones each where it belongs
            if some <= 1:
                place(c, k, n, x, y)
            else:
                some = min(some, end - row)
                place(c, k, some * n, x, block)
                K.move_rows(some, each, block, each, y, pitch)
            x, y, row = x + max(1, some) * n * parts[k].size, y + max(1, some) * pitch, row + max(1, some)


cdef void join_part(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const Joining *j = <const Joining *> ctx
    cdef const ev_call *c = j.c
    cdef const Part *part = <const Part *> (c.ints + C_OPERANDS) + j.operand
    place(c, j.operand, end - begin, <const char *> c.in_[j.operand].data + begin * part.size,
          <char *> c.out[0].data + (j.offset + begin) * c.ints[C_SIZE])


cdef int concat(const ev_call *c) noexcept nogil:
    """in: X0, X1, ..., then the tables; out: Y. ints: (rows: product of the sizes before the axis, items of a row of
    Y, bytes of an item of Y, then for each operand: COPY, TABLE or QUANTIZE, items of a row, bytes of an item, number
    of its table or -1, integer type, zero point); reals: each operand's scale. An operand that lies in its place
    already is left there."""
    cdef Joining j
    cdef const Part *parts = <const Part *> (c.ints + C_OPERANDS)
    cdef int64_t k
    j.c, j.offset = c, 0
    if c.ints[C_ROWS] != 1:
        parallel_for(join_rows, &j, c.ints[C_ROWS], 1 + GRAIN // (c.ints[C_ROW] + 1), c.threads)
        return EV_OK
    for k in range(c.n_in - tables_of(c)):
        j.operand = k
        parallel_for(join_part, &j, parts[k].items, GRAIN, c.threads)
        j.offset += parts[k].items
    return EV_OK


cdef void where_row(const Walk *w, int64_t n, const char **p, const int64_t *s, char *y) noexcept nogil:
    cdef const ev_call *c = w.call
    cdef int32_t found[2][BLOCK]
    cdef const void *side[2]
    cdef int64_t size = c.ints[0]
    cdef int k
    for k in range(2):
        side[k] = p[1 + k]
        if c.ints[1 + k] >= 0:
            K.q_lookup(size, n if s[1 + k] else 1, <const uint8_t *> p[1 + k], c.in_[3 + c.ints[1 + k]].data, found[k])
            side[k] = found[k]
    K.select(size, n, <const uint8_t *> p[0], s[0], side[0], s[1], side[1], s[2], y)


cdef int where(const ev_call *c) noexcept nogil:
    """in: condition, X, Y (8 bits), tables; out: Z. ints: (bytes of an item of Z, number of X's table or -1, number of
    Y's, loops...)."""
    cdef Walk w
    w.size[0], w.size[1], w.size[2] = 1, 1, 1
    walk(&w, c, c.ints + 3, where_row, BLOCK, 3, c.ints[0], GRAIN)
    return EV_OK


DRIVERS = {}
register(DRIVERS, "binary", binary)
register(DRIVERS, "lookup", lookup)
register(DRIVERS, "concat", concat)
register(DRIVERS, "where", where)
