"""Drivers of RNN, GRU and LSTM in float32 with the default activation functions; of GRU and LSTM with 8-bit weights too.

    for each direction
      products of all inputs with W, and the biases, as one matrix product       gates[T*N, G*H]
      for each step
        += products of the state with R; then the cell, sequence by sequence      (recurrent_body.h)

With 8-bit weights, the inputs (all steps together) and each state are quantized by their range as the products read
them; the weights lie the other way round, [I, G*H] and [H, G*H].

W and R are read where the file has them. Only where several sequences take several steps, R is transposed into scratch
once, so that no step has to pack it.
"""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset
from evort._kernels.core cimport (EV_ACT_NONE, EV_BIAS_COLUMN, EV_BIAS_NONE, EV_FLOAT, EV_OK, EV_UINT8, ev_call, ev_epilogue, ev_ukr, register, ukernels)
from evort._kernels.dynamic cimport ev_dynamic, find_range, range_scratch
from evort._kernels.qgemm cimport ev_qgemm, qgemm, qgemm_init, qgemm_scratch
from evort._kernels.gemm cimport ev_gemm, gemm_f32, gemm_init, gemm_scratch

cdef const ev_ukr *K = ukernels()

cdef enum Cell:
    RNN
    GRU
    LSTM

ctypedef struct Sizes:
    int64_t steps, batch, inputs, hidden, gates
    bint whole                   # weights of 8 bits

ctypedef struct Scratch:
    float *products              # [T*N, G*H] of the inputs, in X's order
    float *gates                 # [N, G*H] of one step
    float *state                 # [N, G*H] of the state alone (GRU)
    float *kept                  # [N, H] the reset state (GRU)
    float *h
    float *cell
    float *bias                  # [G*H]
    float *turned                # R transposed, [H, G*H], or NULL
    void *gemm
    void *range                  # for find_range


cdef inline float *operand(const ev_call *c, int i) noexcept nogil:
    return NULL if i >= c.n_in or c.in_[i] == NULL else <float *> c.in_[i].data


cdef inline float *result(const ev_call *c, int i) noexcept nogil:
    return NULL if i >= c.n_out or c.out[i] == NULL else <float *> c.out[i].data


cdef inline float *take(char **at, int64_t count) noexcept nogil:
    cdef float *p = <float *> at[0]
    at[0] += (4 * count + 63) // 64 * 64
    return p


cdef int64_t lay_out(Scratch *s, char *base, const Sizes *z, int32_t threads) noexcept nogil:
    """Places the parts of the scratch memory; returns its bytes."""
    cdef char *at = base
    cdef int64_t width = z.gates * z.hidden
    s.products = take(&at, z.steps * z.batch * width)
    s.gates = take(&at, z.batch * width)
    s.state = take(&at, z.batch * width)
    s.kept = take(&at, z.batch * z.hidden)
    s.h = take(&at, z.batch * z.hidden)
    s.cell = take(&at, z.batch * z.hidden)
    s.bias = take(&at, width)
    s.turned = take(&at, z.hidden * width) if z.batch > 1 and z.steps > 2 and not z.whole else NULL
    s.gemm = at
    if z.whole:
        at += max(qgemm_scratch(1, z.steps * z.batch, width, z.inputs, threads, False, False, True),
                  qgemm_scratch(1, z.batch, width, z.hidden, threads, False, False, True))
        at = base + (at - base + 63) // 64 * 64
        s.range = at
        return at + range_scratch(threads) - base
    at += max(gemm_scratch(4, z.steps * z.batch, width, z.inputs, threads),
              gemm_scratch(4, z.batch, width, z.hidden, threads))
    return at - base


def recurrent_scratch(int64_t steps, int64_t batch, int64_t inputs, int64_t hidden, int64_t gates, int32_t threads,
                      bint whole=False) -> int:
    """Scratch bytes of the drivers; whole: with weights of 8 bits."""
    cdef Sizes z = Sizes(steps, batch, inputs, hidden, gates, whole)
    cdef Scratch s
    return lay_out(&s, NULL, &z, threads)


cdef void times_r(const ev_call *c, const Sizes *z, const Scratch *s, const float *r, int64_t first, int64_t count,
                  const float *h, float *to, double beta, const ev_epilogue *e) noexcept nogil:
    """to[:, first:first+count] := beta * itself + h R^T[:, first:first+count], for all sequences."""
    cdef ev_gemm g
    cdef int64_t width = z.gates * z.hidden
    gemm_init(&g, z.batch, count, z.hidden, h, z.hidden, NULL, 0, to + first, width)
    if s.turned != NULL:
        g.b, g.rsb, g.csb = s.turned + first, width, 1
    else:
        g.b, g.rsb, g.csb = r + first * z.hidden, 1, z.hidden
    g.beta = beta
    g.epilogue, g.threads, g.scratch = e, c.threads, s.gemm
    gemm_f32(&g)


ctypedef struct Weights:
    const char *data             # [depth, G*H], of one direction
    int32_t dtype
    const float *scale
    const char *zero             # or NULL
    bint scales, zeros           # one for each column


cdef void read_weights(const ev_call *c, int32_t index, int32_t scale, int64_t d, int64_t width, int64_t depth,
                       const int64_t *each, Weights *w) noexcept nogil:
    w.scales, w.zeros = each[0] != 0, each[1] != 0
    w.data, w.dtype = <const char *> c.in_[index].data + d * depth * width, c.in_[index].dtype
    w.scale = operand(c, scale) + d * (width if w.scales else 1)
    w.zero = <const char *> operand(c, scale + 1)
    if w.zero != NULL:
        w.zero += d * (width if w.zeros else 1)


cdef void times_whole(const ev_call *c, const Scratch *s, const Weights *w, int64_t m, int64_t k, int64_t width,
                      int64_t first, int64_t count, const float *x, float *to, bint add,
                      const float *bias) noexcept nogil:
    """to[:, first:first+count] := (add: itself) + x W[:, first:first+count] + bias, with x[m, k] quantized."""
    cdef ev_dynamic d
    cdef ev_qgemm g
    d.dtype = EV_UINT8
    find_range(&d, m * k, x, c.threads, s.range)
    qgemm_init(&g, m, count, k, x, EV_FLOAT, w.data + first, w.dtype, to + first, EV_FLOAT)
    g.a.as_type, g.a.scale, g.a.zero, g.a.zero_step = EV_UINT8, d.scale, &d.zero, 0
    g.b.rs, g.b.cs = width, 1
    if w.zero != NULL:
        g.b.zero, g.b.zero_step = w.zero + (first if w.zeros else 0), 1 if w.zeros else 0
    g.ldc = width
    if w.scales:
        g.q.scale, g.q.scale_axis, g.q.factor = w.scale + first, EV_BIAS_COLUMN, d.scale
    else:
        g.q.scale_axis, g.q.factor = EV_BIAS_NONE, d.scale * w.scale[0]
    if bias != NULL:
        g.q.bias, g.q.bias_type, g.q.bias_axis = bias, EV_FLOAT, EV_BIAS_COLUMN
    if add:
        g.q.residual, g.q.residual_type, g.q.ldr = to + first, EV_FLOAT, width
    g.threads, g.scratch = c.threads, s.gemm
    qgemm(&g)


cdef int run(const ev_call *c, Cell kind, int64_t gates) noexcept nogil:
    """in: X, W, R, B, sequence_lens, initial_h, initial_c, P (NULL where absent); out: Y, Y_h, Y_c (likewise); ints:
    (steps, sequences, inputs, hidden size, direction 0 forward, 1 reverse, 2 both, layout, GRU: linear_before_reset or
    LSTM: input_forget); reals: (clip,).

    With weights of 8 bits: also in: scale and zero points (or NULL) of W and of R, from index 8 (GRU: 6) on; ints: whether
    each of these four has one number for each column."""
    cdef Sizes z
    cdef Scratch s
    cdef const int64_t *v = c.ints
    cdef Weights ww, rw
    cdef int32_t scales = 8 if kind == LSTM else 6
    z.steps, z.batch, z.inputs, z.hidden, z.gates = v[0], v[1], v[2], v[3], gates
    z.whole = c.in_[1].dtype != EV_FLOAT
    cdef int64_t ways = 2 if v[4] == 2 else 1, layout = v[5], width = gates * z.hidden, hidden = z.hidden
    cdef int64_t d, t, n, at, length, i, index, bytes = hidden * <int64_t> sizeof(float)
    cdef bint flag = v[6] != 0, reverse, linear_gru = kind == GRU and flag
    cdef float clip = <float> c.reals[0]
    cdef float *x = operand(c, 0)
    cdef float *w
    cdef float *r
    cdef float *b
    cdef float *p
    cdef float *y = result(c, 0)
    cdef float *first
    cdef const int32_t *lens = <const int32_t *> operand(c, 4)
    cdef ev_gemm g
    cdef ev_epilogue e
    memset(&e, 0, sizeof(e))
    e.activation = EV_ACT_NONE
    lay_out(&s, <char *> c.scratch, &z, c.threads)
    if z.batch == 0 or hidden == 0:
        return EV_OK
    for d in range(ways):
        reverse = v[4] == 1 or d == 1
        w, r = operand(c, 1) + d * width * z.inputs, operand(c, 2) + d * width * hidden
        b = NULL if operand(c, 3) == NULL else operand(c, 3) + d * 2 * width
        p = NULL if kind != LSTM or operand(c, 7) == NULL else operand(c, 7) + d * 3 * hidden
        gemm_init(&g, z.steps * z.batch, width, z.inputs, x, z.inputs, w, 1, s.products, width)
        g.rsb, g.csb = 1, z.inputs
        g.threads, g.scratch = c.threads, s.gemm
        e.bias_axis = 0
        if b != NULL:
            for i in range(width):
                s.bias[i] = b[i] if linear_gru else b[i] + b[width + i]
            e.bias, e.bias_axis = s.bias, EV_BIAS_COLUMN
        g.epilogue = &e
        if z.whole:
            read_weights(c, 1, scales, d, width, z.inputs, v + 7, &ww)
            read_weights(c, 2, scales + 2, d, width, hidden, v + 9, &rw)
            times_whole(c, &s, &ww, z.steps * z.batch, z.inputs, width, 0, width, x, s.products, False,
                        NULL if b == NULL else s.bias)
        else:
            gemm_f32(&g)
        if s.turned != NULL:
            K.move_transpose(4, hidden, width, r, hidden, s.turned, width)
        for n in range(z.batch):
            at = (n * ways + d if layout else d * z.batch + n) * hidden
            first = operand(c, 5)
            if first != NULL:
                memcpy(s.h + n * hidden, first + at, bytes)
            else:
                memset(s.h + n * hidden, 0, bytes)
            first = operand(c, 6) if kind == LSTM else NULL
            if first != NULL:
                memcpy(s.cell + n * hidden, first + at, bytes)
            else:
                memset(s.cell + n * hidden, 0, bytes)
        for t in range(z.steps):
            for n in range(z.batch):
                length = min(max(<int64_t> lens[n], 0), z.steps) if lens != NULL else z.steps
                index = max(0, length - 1 - t) if reverse else t
                index = n * z.steps + index if layout else index * z.batch + n
                memcpy(s.gates + n * width, s.products + index * width, width * sizeof(float))
            if linear_gru:
                e.bias, e.bias_axis = NULL if b == NULL else b + width, EV_BIAS_COLUMN if b != NULL else 0
                if z.whole:
                    times_whole(c, &s, &rw, z.batch, hidden, width, 0, width, s.h, s.state, False,
                                NULL if b == NULL else b + width)
                else:
                    times_r(c, &z, &s, r, 0, width, s.h, s.state, 0, &e)
            elif kind == GRU:
                if z.whole:
                    times_whole(c, &s, &rw, z.batch, hidden, width, 0, 2 * hidden, s.h, s.gates, True, NULL)
                else:
                    times_r(c, &z, &s, r, 0, 2 * hidden, s.h, s.gates, 1, NULL)
                for n in range(z.batch):
                    K.gru_reset_f32(hidden, s.gates + n * width, clip, s.h + n * hidden, s.kept + n * hidden)
                if z.whole:
                    times_whole(c, &s, &rw, z.batch, hidden, width, 2 * hidden, hidden, s.kept, s.gates, True, NULL)
                else:
                    times_r(c, &z, &s, r, 2 * hidden, hidden, s.kept, s.gates, 1, NULL)
            elif z.whole:
                times_whole(c, &s, &rw, z.batch, hidden, width, 0, width, s.h, s.gates, True, NULL)
            else:
                times_r(c, &z, &s, r, 0, width, s.h, s.gates, 1, NULL)
            for n in range(z.batch):
                length = min(max(<int64_t> lens[n], 0), z.steps) if lens != NULL else z.steps
                index = length - 1 - t if reverse and t < length else t
                if t < length:
                    if kind == LSTM:
                        K.lstm_cell_f32(hidden, s.gates + n * width, p, clip, flag, s.cell + n * hidden,
                                        s.h + n * hidden)
                    elif linear_gru:
                        K.gru_cell_f32(hidden, s.gates + n * width, s.state + n * width, clip, s.h + n * hidden)
                    elif kind == GRU:
                        K.gru_update_f32(hidden, s.gates + n * width, clip, s.h + n * hidden)
                    else:
                        K.rnn_cell_f32(hidden, s.gates + n * width, clip, s.h + n * hidden)
                if y != NULL:
                    at = (n * z.steps + index) * ways + d if layout else (index * ways + d) * z.batch + n
                    if t < length:
                        memcpy(y + at * hidden, s.h + n * hidden, bytes)
                    else:
                        memset(y + at * hidden, 0, bytes)
        for n in range(z.batch):
            at = (n * ways + d if layout else d * z.batch + n) * hidden
            if result(c, 1) != NULL:
                memcpy(result(c, 1) + at, s.h + n * hidden, bytes)
            if result(c, 2) != NULL:
                memcpy(result(c, 2) + at, s.cell + n * hidden, bytes)
    return EV_OK


cdef int rnn_f32(const ev_call *c) noexcept nogil:
    return run(c, RNN, 1)


cdef int gru_f32(const ev_call *c) noexcept nogil:
    return run(c, GRU, 3)


cdef int lstm_f32(const ev_call *c) noexcept nogil:
    return run(c, LSTM, 4)


DRIVERS = {}
register(DRIVERS, "rnn_f32", rnn_f32)
register(DRIVERS, "gru_f32", gru_f32)
register(DRIVERS, "lstm_f32", lstm_f32)
