"""Drivers of RNN, GRU and LSTM in float32 with the default activation functions.

    for each direction
      products of all inputs with W, and the biases, as one matrix product       gates[T*N, G*H]
      for each step
        += products of the state with R; then the cell, sequence by sequence      (recurrent_body.h)

W and R are read where the file has them. Only where several sequences take several steps, R is transposed into scratch
once, so that no step has to pack it.
"""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset
from evort._kernels.core cimport (EV_ACT_NONE, EV_BIAS_COLUMN, EV_OK, ev_call, ev_epilogue, ev_ukr, register, ukernels)
from evort._kernels.gemm cimport ev_gemm, gemm_f32, gemm_init, gemm_scratch

cdef const ev_ukr *K = ukernels()

cdef enum Cell:
    RNN
    GRU
    LSTM

ctypedef struct Sizes:
    int64_t steps, batch, inputs, hidden, gates

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
    s.turned = take(&at, z.hidden * width) if z.batch > 1 and z.steps > 2 else NULL
    s.gemm = at
    at += max(gemm_scratch(4, z.steps * z.batch, width, z.inputs, threads),
              gemm_scratch(4, z.batch, width, z.hidden, threads))
    return at - base


def recurrent_scratch(int64_t steps, int64_t batch, int64_t inputs, int64_t hidden, int64_t gates,
                      int32_t threads) -> int:
    """Scratch bytes of the drivers."""
    cdef Sizes z = Sizes(steps, batch, inputs, hidden, gates)
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


cdef int run(const ev_call *c, Cell kind, int64_t gates) noexcept nogil:
    """in: X, W, R, B, sequence_lens, initial_h, initial_c, P (NULL where absent); out: Y, Y_h, Y_c (likewise); ints:
    (steps, sequences, inputs, hidden size, direction 0 forward, 1 reverse, 2 both, layout, GRU: linear_before_reset or
    LSTM: input_forget); reals: (clip,)."""
    cdef Sizes z
    cdef Scratch s
    cdef const int64_t *v = c.ints
    z.steps, z.batch, z.inputs, z.hidden, z.gates = v[0], v[1], v[2], v[3], gates
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
        p = NULL if operand(c, 7) == NULL else operand(c, 7) + d * 3 * hidden
        gemm_init(&g, z.steps * z.batch, width, z.inputs, x, z.inputs, w, 1, s.products, width)
        g.rsb, g.csb = 1, z.inputs
        g.threads, g.scratch = c.threads, s.gemm
        e.bias_axis = 0
        if b != NULL:
            for i in range(width):
                s.bias[i] = b[i] if linear_gru else b[i] + b[width + i]
            e.bias, e.bias_axis = s.bias, EV_BIAS_COLUMN
        g.epilogue = &e
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
            first = operand(c, 6)
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
                times_r(c, &z, &s, r, 0, width, s.h, s.state, 0, &e)
            elif kind == GRU:
                times_r(c, &z, &s, r, 0, 2 * hidden, s.h, s.gates, 1, NULL)
                for n in range(z.batch):
                    K.gru_reset_f32(hidden, s.gates + n * width, clip, s.h + n * hidden, s.kept + n * hidden)
                times_r(c, &z, &s, r, 2 * hidden, hidden, s.kept, s.gates, 1, NULL)
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
