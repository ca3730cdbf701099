/* What follows the sums of integers, in products and in convolutions: exact, each operation of floats rounded by itself, but
 * for activations of several operations. */
#include <float.h>
#include <math.h>

#include "check.h"

/* Activations after sums; the first four are exact. */
static const int ACTIVATIONS[] = {EV_ACT_NONE, EV_ACT_RELU, EV_ACT_CLIP, EV_ACT_LEAKY_RELU, EV_ACT_HARD_SIGMOID,
                                  EV_ACT_HARD_SWISH, EV_ACT_GELU, EV_ACT_SIGMOID};

static float activated(int op, float x, float a, float b)
{
    switch (op) {
    case EV_ACT_RELU: return x < 0 ? 0 : x;
    case EV_ACT_CLIP: return x < a ? a : x > b ? b : x;
    case EV_ACT_LEAKY_RELU: return x < 0 ? a * x : x;
    case EV_ACT_HARD_SIGMOID: return fminf(1, fmaxf(0, a * x + b));
    case EV_ACT_HARD_SWISH: return x * fminf(1, fmaxf(0, x / 6 + 0.5f));
    case EV_ACT_GELU: return (float)(x / 2 * (1 + erf(x * M_SQRT1_2)));
    case EV_ACT_SIGMOID: return (float)(1 / (1 + exp(-x)));
    default: return x;
    }
}

/* Whether y, an item of that type, is `real` in units; where that is not exact, at most `off` units beside it. */
static int finished(const char *row, const char *what, int64_t i, int type, const void *y, float real, float scaled,
                    int32_t zero,
                    int32_t lo, int32_t hi, int exact, double off)
{
    if (type == EV_FLOAT) return close_to(row, what, i, ((const float *)y)[i], real, exact ? 0 : 1e-6);
    if (exact) return same_i32(row, what, i, item(type, y, i), whole(scaled, zero, lo, hi));
    return close_to(row, what, i, item(type, y, i), fmin(fmax(scaled + zero, lo), hi), 0.5 + off);
}

/* GELU of bytes is within 1.7e-4 and 9e-7 of its argument (requant_body.h). */
void check_qfinish(void)
{
    static const int TYPES[] = {EV_UINT8, EV_INT8, EV_INT16, EV_FLOAT};
    static const int Z_TYPES[] = {0, EV_UINT8, EV_INT8, EV_INT16, EV_FLOAT};
    static const int64_t COUNTS[] = {5, EV_QNR, 2 * EV_QNR + 5};
    enum { ROWS = 5, I0 = 2, J0 = 3 };
    char what[96];
    EACH(t, TYPES) EACH(z, Z_TYPES) EACH(a, ACTIVATIONS) EACH(n, COUNTS) for (int kind = 0; kind < 18; kind++) {
        const int64_t n = COUNTS[n_], rows = n > EV_QNR ? 1 : ROWS; /* one row may be of any length */
        if (n > EV_QNR && kind >= 9) continue;
        const int type = TYPES[t_], z_type = Z_TYPES[z_], axis = kind % 3, bias = kind / 3 % 3, wide = kind / 9,
            noted = (kind + a_) % 2;
        const int bias_axis = (kind + z_) % 2 ? EV_BIAS_ROW : EV_BIAS_COLUMN;
        const int64_t ld = J0 + n, size = (I0 + ROWS) * ld, lines = I0 + ROWS > ld ? I0 + ROWS : ld;
        float range[2] = {INFINITY, -INFINITY}, *scale = floats(lines), *real_bias = floats(lines);
        int32_t *sum = guarded(ROWS * EV_QNR * 4), *whole_bias = guarded((size_t)lines * 4), row_add[ROWS],
            col_add[EV_QNR];
        int64_t *wides = guarded(ROWS * EV_QNR * 8);
        uint8_t *y = guarded((size_t)(size * ev_item_size(type))),
            *residual = guarded((size_t)(size * ev_item_size(z_type)));
        for (int i = 0; i < ROWS * EV_QNR; i++) wides[i] = sum[i] = (int32_t)extreme(-3000, 3000);
        for (int64_t i = 0; i < lines; i++) whole_bias[i] = (int32_t)extreme(-500, 500),
            scale[i] = 0.5f + fabsf(scale[i]);
        for (int i = 0; i < ROWS; i++) row_add[i] = (int32_t)extreme(-200, 200);
        for (int i = 0; i < EV_QNR; i++) col_add[i] = (int32_t)extreme(-200, 200);
        fill_bytes(residual, size * ev_item_size(z_type), 0);
        for (int64_t i = 0; z_type == EV_FLOAT && i < size; i++) ((float *)residual)[i] = (float)uniform();
        const ev_requant q = {.scale = scale, .scale_axis = axis, .factor = 0.001f,
                              .bias = bias == 1 ? (void *)whole_bias : bias ? real_bias : NULL,
                              .bias_axis = bias ? bias_axis : 0, .bias_type = bias == 1 ? EV_INT32 : EV_FLOAT,
                              .residual = z_type ? residual : NULL, .ldr = ld, .residual_type = z_type, .residual_zero = 3,
                              .residual_scale = z_type == EV_INT16 ? 1e-4f : 0.01f,
                              .activation = ACTIVATIONS[a_], .a = 0.25f, .b = 0.5f,
                              .type = type, .y_scale = type == EV_INT16 ? 2e-4f : 0.02f, .y_zero = type == EV_UINT8 ? 100 : -5,
                              .lo = type == EV_FLOAT ? 0 : lowest(type), .hi = type == EV_FLOAT ? 0 : highest(type) - 3,
                              .range = noted ? range : NULL};
        if (n > EV_QNR) memset(col_add, 0, sizeof col_add);
        const ev_sums s = {I0, J0, rows, n, sum, wide ? wides : NULL, row_add, n > EV_QNR ? NULL : col_add, y, ld};
        K->qfinish(&q, &s);
        const int folds = type != EV_FLOAT && !z_type && bias < 2 && a_ < 3, exact = a_ < 4;
        double low = INFINITY, high = -INFINITY;
        snprintf(what, sizeof what, "type %d, residual %d, activation %d, n=%d, kind %d", type, z_type, q.activation,
                 (int)n, kind);
        for (int64_t i = 0; i < rows; i++) for (int64_t j = 0; j < n; j++) {
            const int64_t row = I0 + i, column = J0 + j, at = row * ld + column,
                line = bias_axis == EV_BIAS_ROW ? row : column;
            const int32_t total = sum[i * EV_QNR + j] + row_add[i] + col_add[j % EV_QNR] + (bias == 1 ? whole_bias[line] : 0);
            volatile float factor = q.factor * scale[axis == EV_BIAS_ROW ? row : axis == EV_BIAS_COLUMN ? column : 0];
            if (folds) factor = factor / q.y_scale;
            volatile float x = (float)total * factor, z;
            if (folds) {
                const int32_t lo = a_ == 1 ? q.y_zero : a_ == 2 ? whole(q.a / q.y_scale, q.y_zero, q.lo, q.hi) : q.lo;
                const int32_t hi = a_ == 2 ? whole(q.b / q.y_scale, q.y_zero, q.lo, q.hi) : q.hi;
                low = fmin(low, x * q.y_scale), high = fmax(high, x * q.y_scale);
                if (!same_i32("qfinish", what, at, item(type, y, at), whole(x, q.y_zero, lo > q.lo ? lo : q.lo, hi)))
                    return;
                continue;
            }
            if (bias == 2) x = x + real_bias[line];
            if (z_type == EV_FLOAT) x = x + ((float *)residual)[at];
            else if (z_type) z = (float)(item(z_type, residual, at) - q.residual_zero) * q.residual_scale, x = x + z;
            x = activated(q.activation, x, q.a, q.b);
            volatile float inverse = 1 / q.y_scale, scaled = x * inverse;
            low = fmin(low, x), high = fmax(high, x);
            if (!finished("qfinish", what, at, type, y, x, scaled, q.y_zero, q.lo, q.hi, exact,
                          type == EV_INT16 ? 0.01 : 1.7e-4 / 0.02 + 1e-4))
                return;
        }
        if (noted && (!close_to("qfinish", "smallest", 0, range[0], low, 1.8e-4) || !close_to("qfinish", "largest", 0,
                range[1], high, 1.8e-4))) return;
        release_all();
    }
}

/* The sums themselves: beta * C + alpha * sum + bias, modulo 2^32. */
void check_qfinish_raw(void)
{
    enum { ROWS = 3 };
    for (int64_t n = 5; n <= EV_QNR; n += 11) for (int kind = 0; kind < 12; kind++) {
        int32_t *sum = guarded(ROWS * EV_QNR * 4), *bias = guarded(EV_QNR * 4), *c = guarded((size_t)(ROWS * n) * 4),
            was[ROWS * EV_QNR];
        int32_t row_add[ROWS] = {5, -6, 7};
        int64_t wide[ROWS * EV_QNR];
        for (int i = 0; i < ROWS * EV_QNR; i++) wide[i] = sum[i] = (int32_t)extreme(INT32_MIN, INT32_MAX);
        for (int64_t i = 0; i < ROWS * n; i++) was[i] = c[i] = (int32_t)random_bits();
        for (int i = 0; i < EV_QNR; i++) bias[i] = (int32_t)random_bits();
        const ev_requant q = {.type = EV_INT32, .alpha = kind & 1 ? -3 : 1, .beta = kind & 2 ? 2 : 0,
                              .bias = kind > 3 ? bias : NULL,
                              .bias_type = EV_INT32, .bias_axis = kind > 7 ? EV_BIAS_ROW : EV_BIAS_COLUMN};
        const ev_sums s = {0, 0, ROWS, n, sum, kind % 3 ? NULL : wide, row_add, NULL, c, n};
        K->qfinish(&q, &s);
        for (int64_t i = 0; i < ROWS * n; i++) {
            const int64_t added = q.bias ? bias[kind > 7 ? i / n : i % n] : 0,
                total = (int64_t)sum[i / n * EV_QNR + i % n] + row_add[i / n];
            if (!same_i32("qfinish", "int32", i, c[i], (int64_t)q.beta * was[i] + q.alpha * total + added)) return;
        }
        release_all();
    }
}

/* As qfinish, for n sums of a row that share what is added and the scale. */
void check_qc_finish(void)
{
    static const int TYPES[] = {EV_UINT8, EV_INT8, EV_INT16, EV_FLOAT, EV_INT32};
    static const int Z_TYPES[] = {0, EV_UINT8, EV_INT8, EV_INT16, EV_FLOAT};
    static const int64_t COUNTS[] = {1, 7, 31, 32, 45, 300};
    enum { BEHIND = 31 };
    char what[96];
    EACH(t, TYPES) EACH(z, Z_TYPES) EACH(a, ACTIVATIONS) EACH(n, COUNTS) for (int kind = 0; kind < 4; kind++) {
        const int type = TYPES[t_], z_type = Z_TYPES[z_], noted = kind & 1, wide = kind >> 1 && type != EV_INT32;
        const int folds = !z_type && !a_ && type != EV_FLOAT;
        const int64_t n = COUNTS[n_];
        float range[2] = {INFINITY, -INFINITY};
        int32_t *sum = guarded((size_t)(n + BEHIND) * 4);
        int64_t *wides = guarded((size_t)n * 8);
        uint8_t *y = guarded((size_t)(n * ev_item_size(type))), *residual = guarded((size_t)(n * ev_item_size(z_type)));
        for (int64_t i = 0; i < n + BEHIND; i++) sum[i] = (int32_t)extreme(-3000, 3000);
        for (int64_t i = 0; i < n; i++) wides[i] = sum[i];
        fill_bytes(residual, n * ev_item_size(z_type), 0);
        for (int64_t i = 0; z_type == EV_FLOAT && i < n; i++) ((float *)residual)[i] = (float)uniform();
        const int32_t top = type == EV_FLOAT || type == EV_INT32 ? 0 : highest(type);
        const ev_qfinish f = {.type = type, .zero = type == EV_UINT8 ? 100 : -5, .lo = type == EV_UINT8 ? 0 : -top - 1,
                              .hi = top - 3, .folds = folds, .activation = ACTIVATIONS[a_], .a = 0.25f, .b = 0.5f,
                              .unit = type == EV_INT16 ? 2e-4f : 0.02f, .z_type = z_type, .z_zero = 3,
                              .z_scale = z_type == EV_INT16 ? 1e-4f : 0.01f, .range = noted ? range : NULL};
        const float factor = folds ? 0.001f / f.unit : 0.001f;
        K->qc_finish(&f, n, sum, wide ? wides : NULL, -70, factor, z_type ? residual : NULL, y);
        double low = INFINITY, high = -INFINITY;
        snprintf(what, sizeof what, "type %d, residual %d, activation %d, n=%d, kind %d", type, z_type, f.activation,
                 (int)n, kind);
        for (int64_t i = 0; i < n; i++) {
            if (type == EV_INT32) {
                if (!same_i32("qc_finish", what, i, ((int32_t *)y)[i], sum[i] - 70)) return;
                continue;
            }
            volatile float x = (float)(sum[i] - 70) * factor, more, inverse = 1 / f.unit, scaled = x;
            if (folds) low = fmin(low, x * f.unit), high = fmax(high, x * f.unit);
            else {
                if (z_type == EV_FLOAT) x = x + ((float *)residual)[i];
                else if (z_type) more = (float)(item(z_type, residual, i) - f.z_zero) * f.z_scale, x = x + more;
                x = activated(f.activation, x, f.a, f.b);
                low = fmin(low, x), high = fmax(high, x), scaled = x * inverse;
            }
            if (!finished("qc_finish", what, i, type, y, x, scaled, f.zero, f.lo, f.hi, a_ < 4,
                          type == EV_INT16 ? 0.01 : 1e-4)) return;
        }
        if (noted && type != EV_INT32 &&
            (!close_to("qc_finish", "smallest", n, range[0], low, 1e-6) ||
             !close_to("qc_finish", "largest", n, range[1], high, 1e-6)))
            return;
        release_all();
    }
}
