"""The driver of the integer matrix products of evort/ops/qlinear.py."""
from evort._kernels.core cimport (EV_BIAS_ROW, EV_FLOAT, EV_INT8, EV_INT32, EV_OK, EV_UINT8, ev_call, ev_qoperand,
                                  ev_tensor, register)
from evort._kernels.linear cimport batch_item, batch_items
from evort._kernels.qgemm cimport ev_qgemm, qgemm_batch, qgemm_init, qgemm_scratch
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t

cdef enum Role:
    A, A_SCALE, A_ZERO, B, B_SCALE, B_ZERO, Y_SCALE, Y_ZERO, BIAS, Z, Z_SCALE, Z_ZERO, ROLES


cdef inline ev_tensor *operand(const ev_call *c, Role role) noexcept nogil:
    return NULL if c.ints[<int> role] < 0 else c.in_[c.ints[<int> role]]


cdef inline float scale_of(const ev_call *c, Role role) noexcept nogil:
    cdef ev_tensor *t = operand(c, role)
    return 1 if t == NULL else (<const float *> t.data)[0]


cdef inline int32_t integer_of(const ev_call *c, Role role) noexcept nogil:
    cdef ev_tensor *t = operand(c, role)
    if t == NULL:
        return 0
    if t.dtype == EV_UINT8:
        return (<const uint8_t *> t.data)[0]
    return (<const int8_t *> t.data)[0] if t.dtype == EV_INT8 else (<const int16_t *> t.data)[0]


cdef void set_operand(const ev_call *c, ev_qoperand *x, Role scale, Role zero, int64_t rs, int64_t cs,
                      int64_t zero_step) noexcept nogil:
    cdef ev_tensor *z = operand(c, zero)
    x.rs, x.cs = rs, cs
    if x.type == EV_FLOAT:
        x.as_type, x.scale = z.dtype, scale_of(c, scale)
    if z != NULL:
        x.zero, x.zero_step = z.data, zero_step


cdef inline int64_t item(int32_t dtype) noexcept nogil:
    return 4 if dtype in (EV_FLOAT, EV_INT32) else 1 if dtype in (EV_UINT8, EV_INT8) else 2


def product_scratch(int64_t count, int64_t m, int64_t n, int64_t k, int32_t threads, bint wide, bint whole) -> int:
    """Scratch bytes of `product`: `count` products [m, k] x [k, n] at a time; wide: with an int16 operand; whole: B has
    integers in memory."""
    return qgemm_scratch(count, m, n, k, threads, False, wide, whole)


cdef int product(const ev_call *c) noexcept nogil:
    """in: any; out: Y. ints: the input that has each role (-1: none), activation, m, n, k, row and column stride of A,
    of B, row stride of Y, the scale's axis (EV_BIAS_*), steps of the zero points of A and B, the bias's axis, presum,
    then count, stride of A, of B, of Y for each batch axis. reals: activation parameters, a factor of the scale."""
    cdef ev_qgemm g
    cdef const int64_t *v = c.ints + <int> ROLES
    cdef const int64_t *axis = v + 14
    cdef int32_t axes = (c.n_ints - <int> ROLES - 14) // 4
    cdef int64_t items, one, at_a, at_b, at_y
    cdef ev_tensor *a = operand(c, A)
    cdef ev_tensor *b = operand(c, B)
    cdef ev_tensor *bias = operand(c, BIAS)
    cdef ev_tensor *z = operand(c, Z)
    cdef ev_tensor *y = c.out[0]
    if y.size == 0:
        return EV_OK
    qgemm_init(&g, v[1], v[2], v[3], a.data, a.dtype, b.data, b.dtype, y.data, y.dtype)
    set_operand(c, &g.a, A_SCALE, A_ZERO, v[4], v[5], v[10])
    set_operand(c, &g.b, B_SCALE, B_ZERO, v[6], v[7], v[11])
    g.ldc = g.q.ldr = v[8]
    g.presum = <int32_t> v[13]
    g.weights_in_b = b.dtype == EV_INT8
    g.q.activation, g.q.a, g.q.b = <int32_t> v[0], <float> c.reals[0], <float> c.reals[1]
    g.q.scale_axis = <int32_t> v[9]
    g.q.range = c.range
    if operand(c, A_SCALE) != NULL:
        if v[9] == EV_BIAS_ROW:
            g.q.scale = <const float *> operand(c, A_SCALE).data
            g.q.factor = scale_of(c, B_SCALE) * <float> c.reals[2]
        else:
            g.q.scale = <const float *> operand(c, B_SCALE).data
            g.q.factor = scale_of(c, A_SCALE) * <float> c.reals[2]
    if bias != NULL:
        g.q.bias, g.q.bias_type, g.q.bias_axis = bias.data, bias.dtype, <int32_t> v[12]
    g.q.y_scale, g.q.y_zero = scale_of(c, Y_SCALE), integer_of(c, Y_ZERO)
    if z != NULL:
        g.q.residual, g.q.residual_type = z.data, z.dtype
        g.q.residual_scale, g.q.residual_zero = scale_of(c, Z_SCALE), integer_of(c, Z_ZERO)
    g.threads, g.scratch = c.threads, c.scratch
    g.ahead, g.ahead_bytes = <const char *> c.ahead, c.ahead_bytes
    if axes == 0:
        qgemm_batch(&g, 1, 0, 0, 0)
        return EV_OK
    items = batch_items(axis, axes - 1)     # the last axis is one batch; the others are walked
    axis += 4 * (axes - 1)
    for one in range(items):
        batch_item(c.ints + <int> ROLES + 14, axes - 1, one, &at_a, &at_b, &at_y)
        g.a.data = <const char *> a.data + at_a * item(a.dtype)
        g.b.data = <const char *> b.data + at_b * item(b.dtype)
        g.c = <char *> y.data + at_y * item(y.dtype)
        if z != NULL:
            g.q.residual = <const char *> z.data + at_y * item(z.dtype)
        qgemm_batch(&g, axis[0], axis[1], axis[2], axis[3])
    return EV_OK


DRIVERS = {}
register(DRIVERS, "product", product)
