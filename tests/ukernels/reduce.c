/* Reductions, softmax and normalization, beside double. u: half a unit in the last place of 1, what one rounding costs. */
#include <float.h>
#include <math.h>

#include "check.h"

static const double u = FLT_EPSILON / 2;
static const int64_t LONG[] = {1, 7, 8, 9, 31, 33, 64, 200, 256}, ROWS[] = {1, 2, 7, 8, 9, 17};

/* A float32 sum is off by 20 units of the sum of magnitudes (reduce_body.h), an exp by 1.1 and by what the rounding of its
 * argument, here at most 2, makes of it; squares and products are taken in double. */
void check_reduce(void)
{
    static const double UNITS[] = {20, 20, 1e-5, 25, 1e-5};
    char what[64];
    for (int op = EV_REDUCE_SUM; op <= EV_REDUCE_PROD; op++) EACH(n, LONG) EACH(r, ROWS)
    for (int cols = 0; cols < 2; cols++) {
        const int64_t n = LONG[n_], rows = ROWS[r_], step = n + 3, count = cols ? n : rows;
        float *x = floats((rows - 1) * step + n), *shift = guarded((size_t)count * 4);
        double *acc = guarded((size_t)count * 8);
        if (op == EV_REDUCE_PROD)
            for (int64_t i = 0; i < (rows - 1) * step + n; i++) x[i] = 1 + x[i] / 2;
        if (n_ == 6) x[n / 2] = NAN;
        for (int64_t i = 0; i < count; i++) acc[i] = 0.5, shift[i] = 1;
        if (cols) K->reduce_cols_f32(op, rows, step, n, x, shift, acc);
        else K->reduce_rows_f32(op, rows, step, n, x, shift, acc);
        snprintf(what, sizeof what, "op %d, n=%d, rows=%d", op, (int)n, (int)rows);
        for (int64_t i = 0; i < count; i++) {
            double want = op == EV_REDUCE_PROD ? 1 : 0, size = 0.5; /* of what is there, too */
            for (int64_t p = 0; p < (cols ? rows : n); p++) {
                const double v = x[cols ? p * step + i : i * step + p];
                const double term = op == EV_REDUCE_ABS      ? fabs(v)
                                    : op == EV_REDUCE_SQUARE ? v * v
                                    : op == EV_REDUCE_EXP    ? exp(v - 1)
                                                             : v;
                want = op == EV_REDUCE_PROD ? want * term : want + term, size += fabs(term);
            }
            want = op == EV_REDUCE_PROD ? want * 0.5 : want + 0.5;
            if (op == EV_REDUCE_PROD) size = fabs(want);
            if (!close_to(cols ? "reduce_cols_f32" : "reduce_rows_f32", what, i, acc[i], want,
                          UNITS[op] * u * size)) return;
        }
        release_all();
    }
}

/* Element i as a number, exactly for those that fill() writes. */
static double number(int type, const void *x, int64_t i)
{
    switch (type) {
    case EV_FLOAT: return ((const float *)x)[i];
    case EV_INT8: return ((const int8_t *)x)[i];
    case EV_UINT8: return ((const uint8_t *)x)[i];
    case EV_INT32: return ((const int32_t *)x)[i];
    default: return (double)((const int64_t *)x)[i];
    }
}

/* Few different numbers, so that there are ties, and the ends of the type; the k-th is NaN. */
static void fill(int type, void *x, int64_t n, int64_t k)
{
    for (int64_t i = 0; i < n; i++) {
        const int64_t v = (int64_t)(random_bits() % 6);
        const int end = (int)(random_bits() % 16); /* 0 and 1 are the ends */
        switch (type) {
        case EV_FLOAT: ((float *)x)[i] = i == k ? NAN : end < 2 ? (end ? -INFINITY : INFINITY) : (float)(v - 3); break;
        case EV_INT8: ((int8_t *)x)[i] = (int8_t)(end == 0 ? 127 : end == 1 ? -128 : v - 3); break;
        case EV_UINT8: ((uint8_t *)x)[i] = (uint8_t)(end == 0 ? 255 : end == 1 ? 0 : v); break;
        case EV_INT32: ((int32_t *)x)[i] = (int32_t)(end == 0 ? INT32_MAX : end == 1 ? INT32_MIN : v - 3); break;
        default: ((int64_t *)x)[i] = end == 0 ? INT64_MAX : end == 1 ? INT64_MIN : v - 3;
        }
    }
}

static int beats(int min, double a, double b) { return isnan(a) ? !isnan(b) : min ? a < b : a > b; }

/* The largest and the smallest, of rows and of columns, and where they are. */
void check_extremes(void)
{
    static const int TYPES[] = {EV_FLOAT, EV_INT32, EV_INT64, EV_INT8, EV_UINT8}; /* positions: of the first three */
    char what[64];
    EACH(t, TYPES) EACH(n, LONG) EACH(r, ROWS) for (int kind = 0; kind < 8; kind++) {
        const int type = TYPES[t_], min = kind & 1, last = kind >> 1 & 1, cols = kind >> 2;
        const int64_t n = LONG[n_], rows = ROWS[r_], step = n + 3, count = cols ? n : rows, all = (rows - 1) * step + n;
        const size_t size = (size_t)ev_item_size(type);
        void *x = guarded((size_t)all * size), *acc = guarded((size_t)count * size),
            *given = guarded((size_t)count * size);
        int64_t *at = guarded((size_t)count * 8);
        fill(type, x, all, n_ % 3 ? -1 : n / 2), fill(type, given, count, -1);
        memcpy(acc, given, (size_t)count * size);
        (cols ? K->extreme_cols : K->extreme_rows)(min, type, rows, step, n, x, acc);
        if (t_ < 3) (cols ? K->arg_cols : K->arg_rows)(min, last, type, rows, step, n, x, at);
        snprintf(what, sizeof what, "type %d, n=%d, rows=%d, kind %d", type, (int)n, (int)rows, kind);
        for (int64_t i = 0; i < count; i++) {
            int64_t best = 0;
            const int64_t along = cols ? step : 1, from = cols ? i : i * step;
            for (int64_t p = 1; p < (cols ? rows : n); p++) {
                const double v = number(type, x, from + p * along), now = number(type, x, from + best * along);
                if (beats(min, v, now) || (last && (v == now || (isnan(v) && isnan(now))))) best = p;
            }
            if (t_ < 3 && !same_i32(cols ? "arg_cols" : "arg_rows", what, i, (int32_t)at[i], best)) return;
            const double v = number(type, x, from + best * along), old = number(type, given, i);
            if (!close_to(cols ? "extreme_cols" : "extreme_rows", what, i, number(type, acc, i),
                          beats(min, v, old) ? v : old, 0))
                return;
        }
        release_all();
    }
}

#define CHECK_WRAP(name, T)                                                                                            \
    void check_wrap_##name(void)                                                                                       \
    {                                                                                                                  \
        EACH(n, LONG) EACH(r, ROWS) for (int prod = 0; prod < 2; prod++) {                                             \
            const int64_t n = LONG[n_], rows = ROWS[r_], step = n + 3;                                                 \
            T *x = guarded((size_t)((rows - 1) * step + n) * sizeof(T));                                               \
            T *row = guarded((size_t)rows * sizeof(T)), *column = guarded((size_t)n * sizeof(T));                      \
            T *want_row = guarded((size_t)rows * sizeof(T)), *want_column = guarded((size_t)n * sizeof(T));            \
            for (int64_t i = 0; i < (rows - 1) * step + n; i++)                                                        \
                x[i] = (T)((uint64_t)random_bits() << 32 | random_bits() | 1);                                         \
            for (int64_t r = 0; r < rows; r++) row[r] = want_row[r] = (T)-3;                                           \
            for (int64_t j = 0; j < n; j++) column[j] = want_column[j] = (T)-3;                                        \
            for (int64_t r = 0; r < rows; r++) for (int64_t j = 0; j < n; j++) {                                       \
                const T v = x[r * step + j];                                                                           \
                want_row[r] = prod ? want_row[r] * v : want_row[r] + v;                                                \
                want_column[j] = prod ? want_column[j] * v : want_column[j] + v;                                       \
            }                                                                                                          \
            K->wrap_rows_##name(prod, rows, step, n, x, row), K->wrap_cols_##name(prod, rows, step, n, x, column);     \
            if (!same_bytes("wrap_rows_" #name, prod ? "product" : "sum", row, want_row, (size_t)rows * sizeof(T)) ||  \
                !same_bytes("wrap_cols_" #name, prod ? "product" : "sum", column, want_column, (size_t)n * sizeof(T))) \
                return;                                                                                                \
            release_all();                                                                                             \
        }                                                                                                              \
    }
CHECK_WRAP(u32, uint32_t)
CHECK_WRAP(u64, uint64_t)

/* An exponent is off by as many units as it is large, exp by 2.2, their sum by 20 and its inverse and product by one each.
 * exp(-87) and less is 0. An infinite largest number, or NaN, makes all of a line NaN. */
void check_softmax(void)
{
    EACH(n, LONG) EACH(r, ROWS) for (int kind = 0; kind < 8; kind++) {
        const int log_of = kind & 1, cols = kind & 2, wide = kind & 4;
        const int64_t n = LONG[n_], rows = ROWS[r_], step = cols ? n + 3 : n, size = (rows - 1) * step + n;
        float *x = floats(size), *y = guarded((size_t)size * 4);
        for (int64_t i = 0; i < size; i++) x[i] *= wide ? 60 : 3;
        if (n_ == 4) x[n / 2] = -INFINITY;
        if (n_ == 5) x[n / 2] = r_ % 2 ? INFINITY : NAN;
        if (cols) K->softmax_cols_f32(log_of, rows, step, n, x, y);
        else K->softmax_rows_f32(log_of, rows, n, x, y);
        for (int64_t i = 0; i < (cols ? n : rows); i++) {
            const int64_t lines = cols ? rows : n, along = cols ? step : 1;
            const float *line = x + (cols ? i : i * step);
            double most = -INFINITY, sum = 0;
            for (int64_t p = 0; p < lines; p++)
                most = isnan(line[p * along]) || isnan(most) ? NAN : fmax(most, line[p * along]);
            for (int64_t p = 0; p < lines; p++) sum += exp(line[p * along] - most);
            for (int64_t p = 0; p < lines; p++) {
                const double d = line[p * along] - most,
                    want = isinf(most) ? NAN : log_of ? d - log(sum) : exp(d) / sum;
                const double off = log_of ? (4 * fabs(want) + 40) * u : want * (fabs(d) + 26) * u + 2e-38;
                if (!close_to(cols ? "softmax_cols_f32" : "softmax_rows_f32", log_of ? "log" : "", i * lines + p,
                              y[line - x + p * along], want, isfinite(off) ? off : 0))
                    return;
            }
        }
        release_all();
    }
}

/* Deviations are rounded once, summed as above; squares take two roundings more. In two calls, whose results are merged. */
void check_moments(void)
{
    static const int64_t SIZES[] = {1, 2, 15, 16, 17, 300, 2048, 4100};
    EACH(n, SIZES) for (int shifted = 0; shifted < 2; shifted++) {
        const int64_t n = SIZES[n_], part = n / 3;
        float *x = floats(n);
        double count = 0, mean = 0, m2 = 0, want = 0, size = 0, square = 0, squares = 0;
        for (int64_t i = 0; i < n; i++) x[i] += shifted ? 1000 : 0, want += x[i];
        want /= (double)n;
        for (int64_t i = 0; i < n; i++) {
            const double d = x[i] - want, more = fabs(d) + fabs(want) * u;
            size += more, square += d * d, squares += more * more;
        }
        if (part) K->moments_f32(part, x, &count, &mean, &m2);
        K->moments_f32(n - part, x + part, &count, &mean, &m2);
        if (!close_to("moments_f32", "count", n, count, (double)n, 0) ||
            !close_to("moments_f32", "mean", n, mean, want, 22 * u * size / (double)n) ||
            !close_to("moments_f32", "m2", n, m2, square, 26 * u * squares))
            return;
        release_all();
    }
}

void check_affine(void)
{
    EACH(n, LONG) for (int kind = 0; kind < 2; kind++) {
        const int64_t n = LONG[n_];
        float *x = floats(n), *mean = floats(n), *scale = floats(n), *bias = floats(n), *y = guarded((size_t)n * 4);
        float *each = guarded((size_t)n * 4), *columns = guarded((size_t)n * 4), *divided = guarded((size_t)n * 4);
        float *d = floats(n);
        for (int64_t i = 0; i < n; i += 3) d[i] = i % 2 ? -0.0f : 0.0f;
        memcpy(y, x, (size_t)n * 4); /* in place */
        K->affine_f32(n, y, mean[0], scale[0], bias[0], y);
        K->affine_each_f32(n, x, mean[0], 3, 0.5f, scale, kind ? bias : NULL, each);
        K->affine_cols_f32(n, x, mean, scale, bias, columns);
        K->divide_cols_f32(n, x, d, divided);
        for (int64_t i = 0; i < n; i++) {
            const double all = ((double)x[i] - mean[0]) * scale[0], own = ((double)x[i] - mean[i]) * scale[i];
            const double more = kind ? bias[i] : 0, inner = ((double)x[i] - mean[0]) * 3;
            if (!close_to("affine_f32", "", i, y[i], all + bias[0], 4 * u * (fabs(all) + fabs(bias[0]))) ||
                !close_to("affine_each_f32", "", i, each[i], (inner + 0.5) * scale[i] + more,
                          6 * u * ((fabs(inner) + 0.5) * fabs(scale[i]) + fabs(more))) ||
                !close_to("affine_cols_f32", "", i, columns[i], own + bias[i], 4 * u * (fabs(own) + fabs(bias[i]))) ||
                !close_to("divide_cols_f32", "", i, divided[i], d[i] ? (float)((double)x[i] / d[i]) : 0, 0))
                return;
        }
        release_all();
    }
}

/* The sum of squares, all of one sign, takes as many roundings as there are rows, and three; the power of it beta times
 * that, and by way of log and exp two units of the exponent. */
void check_lrn(void)
{
    static const float BETAS[] = {0.75f, 0.5f, 2};
    static const int64_t SIZES[] = {1, 7, 16, 300};
    EACH(b, BETAS) EACH(n, SIZES) for (int64_t rows = 1; rows < 7; rows += 2) {
        const int64_t n = SIZES[n_], step = n + 1;
        float *x = floats((rows - 1) * step + n), *y = guarded((size_t)n * 4);
        const float *own = x + rows / 2 * step;
        K->lrn_f32(n, rows, step, x, own, 2, 0.7f, BETAS[b_], y);
        for (int64_t i = 0; i < n; i++) {
            double t = 0;
            for (int64_t r = 0; r < rows; r++) t += (double)x[r * step + i] * x[r * step + i];
            t = 2 + (double)0.7f * t;
            const double want = own[i] * pow(t, -BETAS[b_]);
            const double units = BETAS[b_] * ((double)rows + 3 + 2 * log(t)) + 8;
            if (!close_to("lrn_f32", "", i, y[i], want, units * u * fabs(want))) return;
        }
        release_all();
    }
}
