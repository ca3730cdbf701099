/* Recurrent cells and what training adds, beside double. u: what one rounding of a number of at most 1 costs. */
#include <float.h>
#include <math.h>

#include "check.h"

static const double u = FLT_EPSILON / 2;
static const int64_t COUNTS[] = {1, 3, 4, 7, 8, 9, 16, 31, 65};

static double bounded(double x, double clip) { return x < -clip ? -clip : x > clip ? clip : x; }
static double sigmoid(double x, double clip) { return 1 / (1 + exp(-bounded(x, clip))); }
static double tangent(double x, double clip) { return tanh(bounded(x, clip)); }

/* Gates are at most 3, states, cells and peepholes 1. A sigmoid is off by 2.4 u and a quarter of what its argument is off
 * by, here 2 u for each of at most 4 that is added up: 4.4 u; a tanh by 2.5 u and all of its argument's. So a cell of
 * two products is off by 4.4 + 4.4 + 2.5 and 2 u for each product and the sum, under 20 u; the output's gate, which may
 * see the cell, by 2.4 + (10 + 20) / 4 and the state by that and 2.5 + 20 + 1: under 36 u. GRU's candidate has 4.4 * 3 + 12
 * in its argument, and 2.5: its state is off by that and 2 * 4.4 + 3, under 44 u. */
void check_recurrent(void)
{
    EACH(n, COUNTS) for (int kind = 0; kind < 8; kind++) {
        const int64_t n = COUNTS[n_];
        const int forget = kind & 1;
        const double clip = kind & 4 ? 1.5 : INFINITY;
        float *gates = floats(4 * n), *r = floats(3 * n), *peepholes = floats(3 * n), *cell = floats(n), *h = floats(n);
        float *before = guarded((size_t)n * 4), *state = guarded((size_t)n * 4), *p = kind & 2 ? peepholes : NULL;
        float *kept = guarded((size_t)n * 4), *updated = guarded((size_t)n * 4), *simple = guarded((size_t)n * 4);
        for (int64_t i = 0; i < 4 * n; i++) gates[i] *= 3;
        for (int64_t i = 0; i < 3 * n; i++) r[i] *= 3;
        memcpy(before, cell, (size_t)n * 4), memcpy(state, h, (size_t)n * 4), memcpy(updated, h, (size_t)n * 4);
        K->rnn_cell_f32(n, gates, (float)clip, simple);
        K->gru_reset_f32(n, gates, (float)clip, state, kept), K->gru_update_f32(n, gates, (float)clip, updated);
        K->gru_cell_f32(n, gates, r, (float)clip, state);
        for (int64_t j = 0; j < n; j++) {
            const double z = sigmoid(gates[j], clip), both = sigmoid((double)gates[j] + r[j], clip);
            const double reset = sigmoid((double)gates[n + j] + r[n + j], clip);
            const double g = tangent(gates[2 * n + j] + reset * r[2 * n + j], clip);
            if (!close_to("rnn_cell_f32", "", j, simple[j], tangent(gates[j], clip), 2.5 * u) ||
                !close_to("gru_reset_f32", "", j, kept[j], sigmoid(gates[n + j], clip) * h[j], 4 * u) ||
                !close_to("gru_update_f32", "", j, updated[j], (1 - z) * tangent(gates[2 * n + j], clip) + z * h[j],
                          11 * u) ||
                !close_to("gru_cell_f32", "", j, state[j], (1 - both) * g + both * h[j], 44 * u))
                return;
        }
        K->lstm_cell_f32(n, gates, p, (float)clip, forget, cell, h);
        for (int64_t j = 0; j < n; j++) {
            const double old = before[j], i = sigmoid(gates[j] + (p ? p[j] * old : 0), clip);
            const double f = forget ? 1 - i : sigmoid(gates[2 * n + j] + (p ? p[2 * n + j] * old : 0), clip);
            const double c = f * old + i * tangent(gates[3 * n + j], clip);
            const double o = sigmoid(gates[n + j] + (p ? p[n + j] * c : 0), clip);
            if (!close_to("lstm_cell_f32", "cell", j, cell[j], c, 20 * u) ||
                !close_to("lstm_cell_f32", "state", j, h[j], o * tangent(c, clip), 36 * u))
                return;
        }
        release_all();
    }
}

/* The slope of an activation, given its argument, or its result (sigmoid, tanh, hard sigmoid). */
static double slope(int op, double v, double a, double b)
{
    const double s = 1 / (1 + exp(-v)), q = sqrt(2 / M_PI), t = tanh(q * (v + 0.044715 * v * v * v)),
        m = tanh(log1p(exp(v)));
    switch (op) {
    case EV_ACT_RELU: return v > 0;
    case EV_ACT_CLIP: return v > a && v < b;
    case EV_ACT_LEAKY_RELU: return v < 0 ? a : 1;
    case EV_ACT_SIGMOID: return v * (1 - v);
    case EV_ACT_TANH: return 1 - v * v;
    case EV_ACT_HARD_SIGMOID: return v > 0 && v < 1 ? a : 0;
    case EV_ACT_HARD_SWISH: return v <= -3 ? 0 : v < 3 ? v / 3 + 0.5 : 1;
    case EV_ACT_SWISH: {
        const double w = 1 / (1 + exp(-a * v));
        return w + a * v * w * (1 - w);
    }
    case EV_ACT_GELU: return 0.5 * (1 + erf(v * M_SQRT1_2)) + v * exp(-v * v / 2) / sqrt(2 * M_PI);
    case EV_ACT_GELU_TANH: return 0.5 * (1 + t) + 0.5 * v * (1 - t * t) * q * (1 + 3 * 0.044715 * v * v);
    case EV_ACT_SOFTPLUS: return s;
    case EV_ACT_ELU: return v < 0 ? a * exp(v) : 1;
    default: return m + v * s * (1 - m * m);
    }
}

/* Of the functions that slopes are made of each is off by 2.5 units, times v or its square where it is multiplied with one;
 * differences of numbers of at most 1, by two units. */
void check_activation_grad(void)
{
    EACH(n, COUNTS) for (int op = EV_ACT_RELU; op <= EV_ACT_MISH; op++) {
        const int64_t n = COUNTS[n_];
        if (op == EV_ACT_PRELU) continue;
        float *dy = floats(n), *v = floats(n), *dx = guarded((size_t)n * 4);
        const int of_result = op == EV_ACT_SIGMOID || op == EV_ACT_TANH || op == EV_ACT_HARD_SIGMOID;
        for (int64_t i = 0; i < n; i++) v[i] *= of_result ? 1 : 4;
        if (n > 3) v[1] = 0, v[2] = 0.5f, v[3] = -0.25f;
        K->activation_grad_f32(op, n, dy, v, -0.25f, 0.5f, dx);
        for (int64_t i = 0; i < n; i++)
            if (!close_to("activation_grad_f32", "", i, dx[i], dy[i] * slope(op, v[i], -0.25, 0.5),
                          8 * u * (1 + (double)v[i] * v[i]) * fabs(dy[i])))
                return;
        release_all();
    }
}

/* Rows of A by rows of B that overlap, in segments. */
void check_inner_products(void)
{
    static const int64_t LENGTHS[] = {16, 48, 80};
    EACH(n, LENGTHS) for (int64_t m = 1; m < 7; m++) for (int64_t taps = 1; taps < 6; taps++)
    for (int64_t count = 1; count < 4; count++) {
        const int64_t n = LENGTHS[n_], sa = n + 5, sb = n + 9, lda = count * sa, ldc = taps + 1;
        float *a = floats((m - 1) * lda + (count - 1) * sa + n), *b = floats(2 * taps + (count - 1) * sb + n);
        float *c = guarded((size_t)(m * ldc - 1) * 4);
        int64_t *offset = guarded((size_t)taps * 8);
        for (int64_t j = 0; j < taps; j++) offset[j] = 2 * (taps - j);
        for (int64_t i = 0; i < m * ldc - 1; i++) c[i] = 0.5f;
        K->inner_products_f32(m, taps, count, n, a, lda, sa, b, offset, sb, c, ldc);
        for (int64_t i = 0; i < m; i++) for (int64_t j = 0; j < ldc - (i == m - 1); j++) {
            double want = 0.5, size = 0.5;
            for (int64_t l = 0; l < count * n && j < taps; l++) {
                const double p = (double)a[i * lda + l / n * sa + l % n] * b[offset[j] + l / n * sb + l % n];
                want += p, size += fabs(p);
            }
            if (!near("inner_products_f32", j < taps ? "" : "between rows", i * ldc + j, c[i * ldc + j], want, size,
                      count * n))
                return;
        }
        release_all();
    }
}

/* The gradient goes to the first of the largest of four. */
void check_max_pool_grad(void)
{
    EACH(n, COUNTS) {
        const int64_t n = COUNTS[n_];
        float *x[2] = {floats(2 * n), floats(2 * n)}, *dy = floats(n), *dx[2] = {floats(2 * n), floats(2 * n)};
        for (int64_t i = 0; i < 4 * n; i++) x[i & 1][i / 2] = (float)(int)(3 * x[i & 1][i / 2]); /* ties */
        K->max_pool_grad_2x2_f32(n, x[0], x[1], dy, dx[0], dx[1]);
        for (int64_t i = 0; i < n; i++) {
            int best = 0;
            for (int q = 1; q < 4; q++)
                if (x[q / 2][2 * i + q % 2] > x[best / 2][2 * i + best % 2]) best = q;
            for (int q = 0; q < 4; q++)
                if (!close_to("max_pool_grad_2x2_f32", "", 4 * i + q, dx[q / 2][2 * i + q % 2], q == best ? dy[i] : 0,
                              0)) return;
        }
        release_all();
    }
}

/* Each result is off by a few roundings of what is added up on the way to it; results may be the operands. */
void check_optimizers(void)
{
    EACH(n, COUNTS) for (int kind = 0; kind < 4; kind++) {
        const int64_t n = COUNTS[n_];
        const size_t bytes = (size_t)n * 4;
        float *w = floats(n), *g = floats(n), *m = floats(n), *v = floats(n), *w_new, *m_new, *v_new,
            *z = guarded(bytes);
        for (int64_t i = 0; i < n; i++) v[i] = fabsf(v[i]);
        float *was[3] = {guarded(bytes), guarded(bytes), guarded(bytes)};
        memcpy(was[0], w, bytes), memcpy(was[1], m, bytes), memcpy(was[2], v, bytes);
        const int inside = kind & 1, nesterov = kind >> 1;
        w_new = inside ? w : guarded(bytes), m_new = inside ? m : guarded(bytes), v_new = inside ? v : guarded(bytes);
        K->combine_f32(n, 0.75f, w, -3, g, 0.1f, z);
        for (int64_t i = 0; i < n; i++)
            if (!close_to("combine_f32", "", i, z[i], 0.75 * w[i] - 3.0 * g[i] + 0.1f, 3 * u * (1 + 3 + 0.1))) return;
        K->momentum_f32(n, nesterov, 0.1f, 0.9f, 0.01f, 0.5f, w, g, m, w_new, m_new);
        for (int64_t i = 0; i < n; i++) { /* all sizes are at most 2 */
            const double d = (double)0.5f * g[i] + (double)0.01f * was[0][i], s = (double)0.9f * was[1][i] + d;
            const double step = (double)0.1f * (nesterov ? d + (double)0.9f * s : s);
            if (!close_to("momentum_f32", "momentum", i, m_new[i], s, 6 * u * 2) ||
                !close_to("momentum_f32", "weight", i, w_new[i], was[0][i] - step, 2 * u + 12 * u * 0.2 * 2))
                return;
        }
        memcpy(w, was[0], bytes), memcpy(m, was[1], bytes);
        const ev_adam p = {0.01f, 0.9f, 0.99f, 0.1f, 0.01f, 2, 5, 1e-3f, 0.02f, 0.5f, nesterov};
        K->adam_f32(n, &p, w, g, m, v, w_new, m_new, v_new);
        for (int64_t i = 0; i < n; i++) {
            const double x = was[0][i], d = (double)p.scale * g[i] + (p.decoupled ? 0 : p.decay * x);
            const double mean = (double)p.beta1 * was[1][i] + p.rest1 * d,
                square = (double)p.beta2 * was[2][i] + p.rest2 * d * d;
            const double size = (double)p.beta1 * fabs(was[1][i]) + p.rest1,
                root = sqrt(square * p.unbias2) + p.epsilon;
            const double step = mean * p.unbias1 / root + (p.decoupled ? p.decay * x : 0);
            if (!close_to("adam_f32", "mean", i, m_new[i], mean, 6 * u * size) ||
                !close_to("adam_f32", "square", i, v_new[i], square, 10 * u * (square + p.rest2)) ||
                !close_to("adam_f32", "weight", i, w_new[i], x - p.lr * step,
                          2 * u + 20 * u * p.lr * (size * p.unbias1 / root + p.decay)))
                return;
        }
        release_all();
    }
}
