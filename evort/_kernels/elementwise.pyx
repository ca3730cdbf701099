"""Drivers of the elementwise family: unary functions, broadcast operations, casts.

Broadcasting: bind() has reduced the shapes to a few loops (evort.ops.broadcast.loops). `walk` splits the output among
threads and goes over it in rows, the innermost loop, in which each operand advances by one item or stays; the rows
are the micro-kernels' work. Where rows are short, operands are first gathered into blocks.
"""
from libc.math cimport (acos, acosh, asin, asinh, atan, atanh, ceil, cos, cosh, erf, exp, fabs, floor, log, rint, sin,
                        sinh, sqrt, tan, tanh)
from libc.stdint cimport INT64_MAX, int8_t, int16_t, int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy
from evort._kernels.core cimport (
    EV_ACT_RELU, EV_ACT_SIGMOID, EV_ACT_TANH, EV_BFLOAT16, EV_BOOL, EV_DIVIDE_BY_ZERO, EV_DOUBLE, EV_FLOAT, EV_FLOAT16,
    EV_INT8, EV_INT16, EV_INT32, EV_INT64, EV_OK, EV_UINT8, EV_UINT32, EV_UINT64, EV_UNSUPPORTED, ev_binary, ev_call,
    ev_item_size, ev_tensor, ev_ukr, parallel_for, register, ukernels)

cdef extern from "elementwise.h" nogil:
    enum:
        EV_ABS, EV_NEG, EV_SIGN, EV_FLOOR, EV_CEIL, EV_ROUND, EV_SQRT, EV_RECIPROCAL, EV_EXP, EV_LOG, EV_SIN, EV_COS
        EV_TAN, EV_ASIN, EV_ACOS, EV_ATAN, EV_SINH, EV_COSH, EV_ASINH, EV_ACOSH, EV_ATANH, EV_ERF, EV_NOT
        EV_DIV, EV_MOD, EV_FMOD, EV_EQUAL

cdef const ev_ukr *K = ukernels()


# ---- unary functions -------------------------------------------------------------------------------------------

ctypedef fused integer:
    int8_t
    int16_t
    int32_t
    int64_t


cdef inline void integer_rows(int op, int64_t n, const integer *x, integer *y) noexcept nogil:
    """Negative and absolute values wrap: the smallest number has itself for both."""
    cdef int64_t i
    if op == EV_ABS:
        for i in range(n):
            y[i] = <integer> (0 - <uint64_t> x[i]) if x[i] < 0 else x[i]
    elif op == EV_NEG:
        for i in range(n):
            y[i] = <integer> (0 - <uint64_t> x[i])
    elif op == EV_SIGN:
        for i in range(n):
            y[i] = (x[i] > 0) - (x[i] < 0)
    elif op == EV_ACT_RELU:
        for i in range(n):
            y[i] = x[i] if x[i] > 0 else 0
    elif op == EV_NOT:
        for i in range(n):
            y[i] = ~x[i]


cdef double relu(double x) noexcept nogil:
    return 0.0 if x < 0.0 else x


cdef double sigmoid(double x) noexcept nogil:
    return 1.0 / (1.0 + exp(-x)) if x >= 0.0 else exp(x) / (1.0 + exp(x)) if x < 0.0 else x


cdef double reciprocal(double x) noexcept nogil:
    return 1.0 / x


cdef double negative(double x) noexcept nogil:
    return -x


cdef double sign(double x) noexcept nogil:
    return 1.0 if x > 0.0 else -1.0 if x < 0.0 else x


ctypedef double (*real_function)(double) noexcept nogil


cdef real_function float64_function(int op) noexcept nogil:
    if op == EV_ACT_RELU: return relu
    if op == EV_ACT_SIGMOID: return sigmoid
    if op == EV_ACT_TANH: return tanh
    if op == EV_ABS: return fabs
    if op == EV_NEG: return negative
    if op == EV_SIGN: return sign
    if op == EV_FLOOR: return floor
    if op == EV_CEIL: return ceil
    if op == EV_ROUND: return rint
    if op == EV_SQRT: return sqrt
    if op == EV_RECIPROCAL: return reciprocal
    if op == EV_EXP: return exp
    if op == EV_LOG: return log
    if op == EV_SIN: return sin
    if op == EV_COS: return cos
    if op == EV_TAN: return tan
    if op == EV_ASIN: return asin
    if op == EV_ACOS: return acos
    if op == EV_ATAN: return atan
    if op == EV_SINH: return sinh
    if op == EV_COSH: return cosh
    if op == EV_ASINH: return asinh
    if op == EV_ACOSH: return acosh
    if op == EV_ATANH: return atanh
    if op == EV_ERF: return erf
    return NULL


cdef void unary_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int op = <int> c.ints[0], dtype = <int> c.ints[1]
    cdef int64_t size = ev_item_size(dtype), n = end - begin, block_index, i, m
    cdef const char *x = <const char *> c.in_[0].data + begin * size
    cdef char *y = <char *> c.out[0].data + begin * size
    cdef float block[BLOCK]
    cdef real_function f
    if dtype == EV_FLOAT:
        K.unary_f32(op, n, <const float *> x, <float *> y, <float> c.reals[0], <float> c.reals[1])
    elif dtype == EV_FLOAT16 or dtype == EV_BFLOAT16:
        for block_index in range(blocks(n)):
            i = block_index * BLOCK
            m = min(n - i, <int64_t> BLOCK)
            K.cast(dtype, EV_FLOAT, m, x + 2 * i, block)
            K.unary_f32(op, m, block, block, <float> c.reals[0], <float> c.reals[1])
            K.cast(EV_FLOAT, dtype, m, block, y + 2 * i)
    elif dtype == EV_DOUBLE:
        f = float64_function(op)
        for i in range(n):
            (<double *> y)[i] = f((<const double *> x)[i])
    elif dtype == EV_BOOL:
        for i in range(n):
            y[i] = x[i] == 0
    elif size == 1:
        integer_rows(op, n, <const int8_t *> x, <int8_t *> y)
    elif size == 2:
        integer_rows(op, n, <const int16_t *> x, <int16_t *> y)
    elif size == 4:
        integer_rows(op, n, <const int32_t *> x, <int32_t *> y)
    else:
        integer_rows(op, n, <const int64_t *> x, <int64_t *> y)


cdef int unary(const ev_call *c) noexcept nogil:
    """in: X; out: Y of the same shape and type; ints: (function, element type, grain); reals: (a, b)."""
    if c.ints[1] == EV_DOUBLE and float64_function(<int> c.ints[0]) == NULL:
        return EV_UNSUPPORTED
    parallel_for(unary_chunk, <void *> c, c.out[0].size, c.ints[2], c.threads)
    return EV_OK


cdef void classify_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int dtype = <int> c.ints[1]
    cdef int64_t size = ev_item_size(dtype), block_index, i, m
    cdef float block[BLOCK]
    cdef uint8_t *y = <uint8_t *> c.out[0].data
    if dtype == EV_FLOAT:
        K.classify_f32(<int> c.ints[0], end - begin, <const float *> c.in_[0].data + begin, y + begin)
        return
    for block_index in range(blocks(end - begin)):
        i = begin + block_index * BLOCK
        m = min(end - i, <int64_t> BLOCK)
        K.cast(dtype, EV_FLOAT, m, <const char *> c.in_[0].data + i * size, block)
        K.classify_f32(<int> c.ints[0], m, block, y + i)


cdef int classify(const ev_call *c) noexcept nogil:
    """in: X; out: bool of the same shape; ints: (1 for NaN, 2 for +infinity, 4 for -infinity, or their sum,
    float16, bfloat16 or float32)."""
    parallel_for(classify_chunk, <void *> c, c.out[0].size, 16384, c.threads)
    return EV_OK


cdef void cast_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int source = <int> c.ints[0], target = <int> c.ints[1]
    K.cast(source, target, end - begin, <const char *> c.in_[0].data + begin * ev_item_size(source),
           <char *> c.out[0].data + begin * ev_item_size(target))


cdef int cast(const ev_call *c) noexcept nogil:
    """in: X; out: Y of the same shape; ints: (element type of X, element type of Y)."""
    parallel_for(cast_chunk, <void *> c, c.out[0].size, 16384, c.threads)
    return EV_OK


# ---- broadcasting ----------------------------------------------------------------------------------------------

cdef void gather(const Walk *w, int k, int64_t begin, int64_t n, char *out) noexcept nogil:
    """Items begin.. of operand k, broadcast, into n items at out."""
    cdef int64_t rank = w.loops[0], size = w.size[k], inner = w.loops[rank], position[RANK]
    cdef const int64_t *dims = w.loops + 1
    cdef const int64_t *strides = dims + rank * (k + 1)
    cdef int64_t d, rest = begin, offset = 0, m, i
    cdef const char *source
    for d in range(rank - 1, -1, -1):
        position[d] = rest % dims[d]
        rest //= dims[d]
        offset += position[d] * strides[d]
    while True:
        m = min(n, inner - position[rank - 1])
        source = w.base[k] + offset * size
        if strides[rank - 1]:
            memcpy(out, source, m * size)
        elif size == 4:
            for i in range(m):
                (<int32_t *> out)[i] = (<const int32_t *> source)[0]
        else:
            for i in range(m):
                memcpy(out + i * size, source, size)
        n -= m
        if n == 0:
            return
        out += m * size
        offset -= position[rank - 1] * strides[rank - 1]
        position[rank - 1] = 0
        d = rank - 2
        while d >= 0:
            position[d] += 1
            offset += strides[d]
            if position[d] < dims[d]:
                break
            offset -= dims[d] * strides[d]
            position[d] = 0
            d -= 1


cdef void walk_blocks(const Walk *w, int64_t begin, int64_t end) noexcept nogil:
    """Short rows: operands that are not dense are gathered, block by block."""
    cdef char buffer[OPERANDS][BLOCK * 8]
    cdef const char *p[OPERANDS]
    cdef int64_t s[OPERANDS]
    cdef int64_t rank = w.loops[0], block_index, i, n, d, step
    cdef bint dense[OPERANDS]
    cdef int k
    for k in range(<int> w.operands):
        s[k], dense[k], step = 1, True, 1
        for d in range(rank - 1, -1, -1):
            dense[k] = dense[k] and w.loops[1 + rank * (k + 1) + d] == step
            step *= w.loops[1 + d]
    for block_index in range(blocks(end - begin)):
        i = begin + block_index * BLOCK
        n = min(end - i, <int64_t> BLOCK)
        for k in range(<int> w.operands):
            p[k] = w.base[k] + i * w.size[k] if dense[k] else buffer[k]
            if not dense[k]:
                gather(w, k, i, n, buffer[k])
        w.row(w, n, p, s, <char *> w.call.out[0].data + i * w.size[w.operands])


cdef void walk_rows(const Walk *w, int64_t begin, int64_t end) noexcept nogil:
    cdef const char *p[OPERANDS]
    cdef int64_t s[OPERANDS]
    cdef int64_t position[RANK]
    cdef int64_t rank = w.loops[0], inner = w.loops[rank], rest = begin, at = begin, d, m, n, i, stride
    cdef const int64_t *dims = w.loops + 1
    cdef const int64_t *strides = dims + rank
    cdef char *y = <char *> w.call.out[0].data + begin * w.size[w.operands]
    cdef int k
    for k in range(<int> w.operands):
        p[k] = w.base[k]
        s[k] = strides[k * rank + rank - 1]
    for d in range(rank - 1, -1, -1):
        position[d] = rest % dims[d]
        rest //= dims[d]
        for k in range(<int> w.operands):
            p[k] += position[d] * strides[k * rank + d] * w.size[k]
    while True:
        m = min(end - at, inner - position[rank - 1])
        i = m
        while i > 0:
            n = min(i, w.limit)
            w.row(w, n, p, s, y)
            for k in range(<int> w.operands):
                p[k] += n * s[k] * w.size[k]
            y += n * w.size[w.operands]
            i -= n
        at += m
        if at >= end:
            return
        for k in range(<int> w.operands):
            p[k] -= inner * s[k] * w.size[k]
        position[rank - 1] = 0
        d = rank - 2
        while d >= 0:
            position[d] += 1
            for k in range(<int> w.operands):
                stride = strides[k * rank + d]
                p[k] += (stride if position[d] < dims[d] else stride * (1 - dims[d])) * w.size[k]
            if position[d] < dims[d]:
                break
            position[d] = 0
            d -= 1


cdef void walk_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const Walk *w = <const Walk *> ctx
    cdef int64_t rank = w.loops[0]
    if rank > 1 and w.loops[rank] < SHORT_ROW:
        walk_blocks(w, begin, end)
    else:
        walk_rows(w, begin, end)


cdef void walk_operands(Walk *w, const ev_call *c, const int64_t *loops, row_function row, int64_t limit,
                        int64_t operands, int64_t out_size, int64_t grain) noexcept nogil:
    w.call, w.loops, w.row, w.limit, w.operands = c, loops, row, limit, operands
    w.size[operands] = out_size
    parallel_for(walk_chunk, w, c.out[0].size, grain, c.threads)


cdef void walk(Walk *w, const ev_call *c, const int64_t *loops, row_function row, int64_t limit, int64_t operands,
               int64_t out_size, int64_t grain) noexcept nogil:
    cdef int k
    for k in range(<int> operands):
        w.base[k] = <const char *> c.in_[k].data
    walk_operands(w, c, loops, row, limit, operands, out_size, grain)


# ---- binary and variadic operations ------------------------------------------------------------------------------

cdef enum:
    # Where the integers of `nary` are.
    NARY_DTYPE = 0, NARY_ACTIVATION = 1, NARY_GRAIN = 2, NARY_STEPS = 3, NARY_OPS = 4


cdef ev_binary binary_function(int dtype) noexcept nogil:
    """uint32 and uint64 are bound only to functions that are the same for signed integers."""
    if dtype == EV_FLOAT: return K.binary_f32
    if dtype == EV_DOUBLE: return K.binary_f64
    if dtype == EV_INT8: return K.binary_s8
    if dtype == EV_UINT8 or dtype == EV_BOOL: return K.binary_u8
    if dtype == EV_INT32 or dtype == EV_UINT32: return K.binary_s32
    if dtype == EV_INT64 or dtype == EV_UINT64: return K.binary_s64
    return NULL


cdef void nary_row(const Walk *w, int64_t n, const char **p, const int64_t *s, char *y) noexcept nogil:
    cdef const ev_call *c = w.call
    cdef const int64_t *ops = c.ints + NARY_OPS
    cdef int activation = <int> c.ints[NARY_ACTIVATION], dtype = <int> c.ints[NARY_DTYPE]
    cdef ev_binary f = binary_function(dtype)
    cdef float divisor = <float> c.reals[2]
    cdef double wide = c.reals[2]
    cdef int64_t k
    f(<int> ops[0], n, p[0], s[0], p[1], s[1], y)
    for k in range(1, c.ints[NARY_STEPS]):
        f(<int> ops[k], n, y, 1, p[k + 1], s[k + 1], y)
    if wide != 1.0:
        f(EV_DIV, n, y, 1, <const void *> &wide if dtype == EV_DOUBLE else <const void *> &divisor, 0, y)
    if activation:
        K.unary_f32(activation, n, <const float *> y, <float *> y, <float> c.reals[0], <float> c.reals[1])


cdef void nary_apart_row(const Walk *w, int64_t n, const char **p, const int64_t *s, char *y) noexcept nogil:
    """For Y over an operand that is read again after the first operation, as X is in Sum(X, Z, X)."""
    cdef char block[BLOCK * 8]
    nary_row(w, n, p, s, block)
    memcpy(y, block, n * w.size[w.operands])


cdef void nary_half_row(const Walk *w, int64_t n, const char **p, const int64_t *s, char *y) noexcept nogil:
    """float16 and bfloat16: the same in float32, rounded at the end."""
    cdef const ev_call *c = w.call
    cdef const int64_t *ops = c.ints + NARY_OPS
    cdef int activation = <int> c.ints[NARY_ACTIVATION], dtype = <int> c.ints[NARY_DTYPE]
    cdef float a[BLOCK]
    cdef float b[BLOCK]
    cdef float divisor = <float> c.reals[2]
    cdef int64_t k, stride = s[0]
    K.cast(dtype, EV_FLOAT, n if stride else 1, p[0], a)
    for k in range(c.ints[NARY_STEPS]):
        K.cast(dtype, EV_FLOAT, n if s[k + 1] else 1, p[k + 1], b)
        if ops[k] >= EV_EQUAL:
            K.binary_f32(<int> ops[k], n, a, stride, b, s[k + 1], y)
            return
        K.binary_f32(<int> ops[k], n, a, stride, b, s[k + 1], a)
        stride = 1
    if divisor != 1.0:
        K.binary_f32(EV_DIV, n, a, 1, &divisor, 0, a)
    if activation:
        K.unary_f32(activation, n, a, a, <float> c.reals[0], <float> c.reals[1])
    K.cast(EV_FLOAT, dtype, n, a, y)


cdef bint has_zero(const ev_tensor *t, int64_t size) noexcept nogil:
    cdef int64_t i
    for i in range(t.size):
        if size == 1 and (<const int8_t *> t.data)[i] == 0:
            return True
        if size == 4 and (<const int32_t *> t.data)[i] == 0:
            return True
        if size == 8 and (<const int64_t *> t.data)[i] == 0:
            return True
    return False


cdef int nary(const ev_call *c) noexcept nogil:
    """in: X0, X1, ... of one type; out: Y, of that type, or bool for comparisons.

    Y = activation((X0 op0 X1 op1 X2 ...) / divisor). ints: (element type, activation, grain, number of operations,
    operations..., loops...); reals: (the activation's a, b, divisor).
    """
    cdef Walk w
    cdef int dtype = <int> c.ints[NARY_DTYPE]
    cdef int64_t size = ev_item_size(dtype), steps = c.ints[NARY_STEPS], op = c.ints[NARY_OPS], k
    cdef const int64_t *loops = c.ints + NARY_OPS + steps
    cdef bint half = dtype == EV_FLOAT16 or dtype == EV_BFLOAT16
    if not half and binary_function(dtype) == NULL:
        return EV_UNSUPPORTED
    if (op == EV_DIV or op == EV_MOD or op == EV_FMOD) and not half and dtype != EV_FLOAT and dtype != EV_DOUBLE:
        if c.out[0].size and has_zero(c.in_[1], size):
            return EV_DIVIDE_BY_ZERO
    for k in range(steps + 1):
        w.size[k] = size
    cdef bint apart = False
    for k in range(2, steps + 1):
        apart = apart or c.in_[k].data == c.out[0].data
    # One pass over memory: what follows the first operation finds its block in the cache.
    cdef bint single = steps == 1 and not c.ints[NARY_ACTIVATION] and c.reals[2] == 1.0
    walk(&w, c, loops, nary_half_row if half else nary_apart_row if apart else nary_row,
         BLOCK if half or apart else INT64_MAX if single else 1024, steps + 1, 1 if op >= EV_EQUAL else size,
         c.ints[NARY_GRAIN])
    return EV_OK


cdef void select_row(const Walk *w, int64_t n, const char **p, const int64_t *s, char *y) noexcept nogil:
    K.select(w.size[3], n, <const uint8_t *> p[0], s[0], p[1], s[1], p[2], s[2], y)


cdef int where(const ev_call *c) noexcept nogil:
    """in: condition, X, Y; out: Z, of X's and Y's type; ints: (bytes of an item, loops...)."""
    cdef Walk w
    w.size[0], w.size[1], w.size[2] = 1, c.ints[0], c.ints[0]
    walk(&w, c, c.ints + 1, select_row, INT64_MAX, 3, c.ints[0], 16384)
    return EV_OK


DRIVERS = {}
register(DRIVERS, "unary", unary)
register(DRIVERS, "classify", classify)
register(DRIVERS, "cast", cast)
register(DRIVERS, "nary", nary)
register(DRIVERS, "where", where)
