/* Reductions, positions of extremes, softmax.
 *
 * Each comes in two forms over a matrix of `rows` rows, `step` elements apart, of n contiguous elements:
 *   _rows  reduces along each row: one result a row
 *   _cols  reduces down the columns: one result a column
 * and folds into the results that are there already, so that a driver can reduce any set of axes piecewise.
 *
 * Accuracy: float32 sums run in 8 lanes over at most 16 additions, which are then added in double; the error is at
 * most 20 units of rounding (2^-24) of the sum of magnitudes, whatever the length (pairwise summation: log2 n + 8). */

/* 32 bytes on every instruction set: the compiler splits them where registers are narrower. */
typedef float ev_v8f __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t ev_v8i __attribute__((vector_size(32), aligned(4), may_alias));
typedef float ev_v4f __attribute__((vector_size(16), aligned(4), may_alias));
typedef double ev_v4d __attribute__((vector_size(32), aligned(8), may_alias));

/* Elements i .. i+7 of a pointer. */
#define EV_LOAD8(p) (*(const ev_v8f *)(p))

/* d += s, lane by lane, in double. */
#define EV_ADD_WIDE(d0, d1, s)                                            \
    do {                                                                  \
        const ev_v8f s_ = (s);                                            \
        d0 += __builtin_convertvector(((const ev_v4f *)&s_)[0], ev_v4d);  \
        d1 += __builtin_convertvector(((const ev_v4f *)&s_)[1], ev_v4d);  \
    } while (0)

static inline double ev_sum_lanes(ev_v4d d) { return (d[0] + d[1]) + (d[2] + d[3]); }

/* Sum over a row of LANES(8 elements) or ONE(element). */
#define EV_SUM_ROW(head, LANES, ONE)                                                  \
    static double head                                                                \
    {                                                                                 \
        ev_v4d d0 = {0}, d1 = {0};                                                    \
        int64_t i = 0;                                                                \
        while (n - i >= 32) {                                                         \
            const int64_t end = i + (n - i < 512 ? (n - i) & ~(int64_t)31 : 512);     \
            ev_v8f a0 = {0}, a1 = {0}, a2 = {0}, a3 = {0};                            \
            for (; i < end; i += 32) {                                                \
                a0 += LANES(EV_LOAD8(x + i));                                         \
                a1 += LANES(EV_LOAD8(x + i + 8));                                     \
                a2 += LANES(EV_LOAD8(x + i + 16));                                    \
                a3 += LANES(EV_LOAD8(x + i + 24));                                    \
            }                                                                         \
            EV_ADD_WIDE(d0, d1, (a0 + a1) + (a2 + a3));                               \
        }                                                                             \
        for (; n - i >= 8; i += 8) EV_ADD_WIDE(d0, d1, LANES(EV_LOAD8(x + i)));       \
        double total = ev_sum_lanes(d0 + d1);                                         \
        for (; i < n; i++) total += (double)ONE(x[i]);                                \
        return total;                                                                 \
    }

#define EV_SAME(x) (x)
#define EV_ABS8(x) ((ev_v8f)((ev_v8i)(x) & 0x7fffffff))
EV_SUM_ROW(ev_sum_row(int64_t n, const float *x), EV_SAME, EV_SAME)
EV_SUM_ROW(ev_abs_row(int64_t n, const float *x), EV_ABS8, fabsf)
#undef EV_ABS8
#undef EV_SUM_ROW

/* Squares and products are taken in double: exact squares, and no overflow on the way to a result that has none. */
static double ev_square_row(int64_t n, const float *x)
{
    ev_v4d d0 = {0}, d1 = {0};
    int64_t i = 0;
    for (; n - i >= 8; i += 8) {
        const ev_v4d a = __builtin_convertvector(*(const ev_v4f *)(x + i), ev_v4d);
        const ev_v4d b = __builtin_convertvector(*(const ev_v4f *)(x + i + 4), ev_v4d);
        d0 += a * a;
        d1 += b * b;
    }
    double total = ev_sum_lanes(d0 + d1);
    for (; i < n; i++) total += (double)x[i] * x[i];
    return total;
}

static double ev_product_row(int64_t n, const float *x)
{
    ev_v4d d0 = {1, 1, 1, 1}, d1 = {1, 1, 1, 1};
    int64_t i = 0;
    for (; n - i >= 8; i += 8) {
        d0 *= __builtin_convertvector(*(const ev_v4f *)(x + i), ev_v4d);
        d1 *= __builtin_convertvector(*(const ev_v4f *)(x + i + 4), ev_v4d);
    }
    d0 *= d1;
    double total = (d0[0] * d0[1]) * (d0[2] * d0[3]);
    for (; i < n; i++) total *= x[i];
    return total;
}

/* exp(x) for x <= 0, as exp_f32 but for results below 1.7e-38, which are 0: half the steps of the whole range. */
static inline float ev_exp_below_0(float x)
{
    uint32_t n;
    const float q = EV_FN(expm1_reduced)(x < -87.3f ? -87.3f : x, &n), scale = EV_FN(exp2i)(n);
    return x < -87.0f ? 0.0f : q * scale + scale;
}

/* y = exp(x - shift), where shift is no less than any x; x and y may be the same memory. Returns the sum of y. */
static double ev_exp_row(int64_t n, const float *x, float shift, float *y)
{
    double total = 0.0;
    for (int64_t i = 0; i < n; i += 1024) {
        const int64_t m = n - i < 1024 ? n - i : 1024;
#pragma GCC ivdep
        for (int64_t j = 0; j < m; j++) y[i + j] = ev_exp_below_0(x[i + j] - shift);
        total += ev_sum_row(m, y + i);
    }
    return total;
}

static double ev_exp_sum_row(int64_t n, const float *x, float shift)
{
    float y[1024];
    double total = 0.0;
    for (int64_t i = 0; i < n; i += 1024) total += ev_exp_row(n - i < 1024 ? n - i : 1024, x + i, shift, y);
    return total;
}

static void EV_FN(reduce_rows_f32)(int op, int64_t rows, int64_t step, int64_t n, const float *x, const float *shift,
                                   double *acc)
{
    for (int64_t r = 0; r < rows; r++, x += step) {
        switch (op) {
        case EV_REDUCE_SUM: acc[r] += ev_sum_row(n, x); break;
        case EV_REDUCE_ABS: acc[r] += ev_abs_row(n, x); break;
        case EV_REDUCE_SQUARE: acc[r] += ev_square_row(n, x); break;
        case EV_REDUCE_PROD: acc[r] *= ev_product_row(n, x); break;
        case EV_REDUCE_EXP: acc[r] += ev_exp_sum_row(n, x, shift[r]); break;
        }
    }
}

/* Eight rows at a time where they can be added in pairs first. */
#define EV_SUM_COLS(F)                                                                              \
    for (; rows - r >= 8; r += 8, x += 8 * step)                                                    \
        for (int64_t j = 0; j < n; j++)                                                             \
            acc[j] += (double)(((F(x[j]) + F(x[j + step])) + (F(x[j + 2 * step]) + F(x[j + 3 * step]))) + \
                               ((F(x[j + 4 * step]) + F(x[j + 5 * step])) +                         \
                                (F(x[j + 6 * step]) + F(x[j + 7 * step]))));                        \
    for (; r < rows; r++, x += step)                                                                \
        for (int64_t j = 0; j < n; j++) acc[j] += (double)F(x[j]);

static void EV_FN(reduce_cols_f32)(int op, int64_t rows, int64_t step, int64_t n, const float *restrict x,
                                   const float *restrict shift, double *restrict acc)
{
    int64_t r = 0;
    switch (op) {
    case EV_REDUCE_SUM: EV_SUM_COLS(EV_SAME) break;
    case EV_REDUCE_ABS: EV_SUM_COLS(fabsf) break;
    case EV_REDUCE_SQUARE:
        for (; r < rows; r++, x += step)
            for (int64_t j = 0; j < n; j++) acc[j] += (double)x[j] * (double)x[j];
        break;
    case EV_REDUCE_PROD:
        for (; r < rows; r++, x += step)
            for (int64_t j = 0; j < n; j++) acc[j] *= (double)x[j];
        break;
    case EV_REDUCE_EXP:
        for (; r < rows; r++, x += step)
            for (int64_t j = 0; j < n; j++) acc[j] += (double)ev_exp_below_0(x[j] - shift[j]);
        break;
    }
}
#undef EV_SUM_COLS

/* Extremes and their positions, for each element type; LESS is < for the largest, > for the smallest. A NaN wins
 * over every number. */

#if defined(__AVX2__)
#define EV_MAX8(x, m) ((ev_v8f)_mm256_max_ps((__m256)(x), (__m256)(m))) /* m where either is NaN */
#define EV_MIN8(x, m) ((ev_v8f)_mm256_min_ps((__m256)(x), (__m256)(m)))
#else
#define EV_PICK8(mask, a, b) ((ev_v8f)(((mask) & (ev_v8i)(a)) | (~(mask) & (ev_v8i)(b))))
#define EV_MAX8(x, m) EV_PICK8((x) > (m), x, m)
#define EV_MIN8(x, m) EV_PICK8((x) < (m), x, m)
#endif

#define EV_EXTREME_ROW_F32(name, PICK8, LESS, WORST)                   \
    static float name(int64_t n, const float *x)                       \
    {                                                                  \
        ev_v8f m0 = {0}, m1;                                           \
        ev_v8i bad = {0};                                              \
        m1 = m0 += WORST;                                              \
        int64_t i = 0;                                                 \
        for (; n - i >= 16; i += 16) {                                 \
            const ev_v8f a = EV_LOAD8(x + i), b = EV_LOAD8(x + i + 8); \
            bad |= (a != a) | (b != b);                                \
            m0 = PICK8(a, m0);                                         \
            m1 = PICK8(b, m1);                                         \
        }                                                              \
        m0 = PICK8(m1, m0);                                            \
        float best = WORST;                                            \
        int32_t nan = 0;                                               \
        for (int j = 0; j < 8; j++) {                                  \
            best = best LESS m0[j] ? m0[j] : best;                     \
            nan |= bad[j];                                             \
        }                                                              \
        for (; i < n; i++) {                                           \
            best = best LESS x[i] ? x[i] : best;                       \
            nan |= x[i] != x[i];                                       \
        }                                                              \
        return nan ? NAN : best;                                       \
    }
EV_EXTREME_ROW_F32(ev_max_row_f32, EV_MAX8, <, -INFINITY)
EV_EXTREME_ROW_F32(ev_min_row_f32, EV_MIN8, >, INFINITY)
#undef EV_EXTREME_ROW_F32
#undef EV_MIN8

#define EV_EXTREME_ROW_INT(name, T, LESS)                                        \
    static T name(int64_t n, const T *x)                                         \
    {                                                                            \
        T best = x[0];                                                           \
        for (int64_t i = 1; i < n; i++) best = best LESS x[i] ? x[i] : best;     \
        return best;                                                             \
    }

/* For one element type and one direction: the four functions. n and rows are at least 1. */
#define EV_EXTREMES(S, T, LESS)                                                                                \
    static void ev_rows_##S(int64_t rows, int64_t step, int64_t n, const T *x, T *acc)                         \
    {                                                                                                          \
        for (int64_t r = 0; r < rows; r++, x += step) {                                                        \
            const T best = ev_##S(n, x);                                                                       \
            acc[r] = (acc[r] LESS best) | (best != best) ? best : acc[r];                                      \
        }                                                                                                      \
    }                                                                                                          \
    static void ev_cols_##S(int64_t rows, int64_t step, int64_t n, const T *restrict x, T *restrict acc)       \
    {                                                                                                          \
        for (int64_t r = 0; r < rows; r++, x += step)                                                          \
            for (int64_t j = 0; j < n; j++) acc[j] = (acc[j] LESS x[j]) | (x[j] != x[j]) ? x[j] : acc[j];      \
    }

#define EV_ARGS(S, T, LESS)                                                                                     \
    static void ev_arg_rows_##S(int last, int64_t rows, int64_t step, int64_t n, const T *x, int64_t *out)     \
    {                                                                                                          \
        for (int64_t r = 0; r < rows; r++, x += step) {                                                        \
            const T best = ev_##S(n, x);                                                                       \
            const int nan = best != best;                                                                      \
            int64_t i = last ? n - 1 : 0;                                                                      \
            if (last)                                                                                          \
                while (x[i] != best && !(nan && x[i] != x[i])) i--;                                            \
            else {                                                                                             \
                for (int hit = 0; n - i > 64; i += 64) { /* skip what does not hold it, vectorised */          \
                    for (int j = 0; j < 64; j++) hit |= (x[i + j] == best) | (x[i + j] != x[i + j]);           \
                    if (hit) break;                                                                            \
                }                                                                                              \
                while (x[i] != best && !(nan && x[i] != x[i])) i++;                                            \
            }                                                                                                  \
            out[r] = i;                                                                                        \
        }                                                                                                      \
    }                                                                                                          \
    static void ev_arg_cols_##S(int last, int64_t rows, int64_t step, int64_t n, const T *restrict x,          \
                                int64_t *restrict out)                                                         \
    {                                                                                                          \
        T best[EV_REDUCE_TILE];                                                                                \
        int32_t at[EV_REDUCE_TILE];                                                                            \
        for (int64_t j = 0; j < n; j++) best[j] = x[j], at[j] = 0;                                             \
        for (int32_t r = 1; r < rows; r++) {                                                                   \
            x += step;                                                                                         \
            for (int64_t j = 0; j < n; j++) {                                                                  \
                const T a = best[j], b = x[j];                                                                 \
                const int take = (a LESS b) | (last & (a == b)) | ((b != b) & (last | (a == a)));              \
                best[j] = take ? b : a;                                                                        \
                at[j] = take ? r : at[j];                                                                      \
            }                                                                                                  \
        }                                                                                                      \
        for (int64_t j = 0; j < n; j++) out[j] = at[j];                                                        \
    }

#define EV_BOTH(WHAT, S, T) WHAT(max_row_##S, T, <) WHAT(min_row_##S, T, >)
#define EV_EXTREMES_INT(S, T)                \
    EV_EXTREME_ROW_INT(ev_max_row_##S, T, <) \
    EV_EXTREME_ROW_INT(ev_min_row_##S, T, >) \
    EV_BOTH(EV_EXTREMES, S, T)

EV_BOTH(EV_EXTREMES, f32, float)
EV_EXTREMES_INT(i8, int8_t)
EV_EXTREMES_INT(u8, uint8_t)
EV_EXTREMES_INT(i32, int32_t)
EV_EXTREMES_INT(i64, int64_t)
EV_BOTH(EV_ARGS, f32, float)
EV_BOTH(EV_ARGS, i32, int32_t)
EV_BOTH(EV_ARGS, i64, int64_t)
#undef EV_BOTH
#undef EV_EXTREMES_INT
#undef EV_EXTREMES
#undef EV_ARGS
#undef EV_EXTREME_ROW_INT

#define EV_CASE(FAMILY, S, ...) (min ? FAMILY##_min_row_##S : FAMILY##_max_row_##S)(__VA_ARGS__); break
#define EV_WIDE_CASES(FAMILY, ...)                    \
    case EV_FLOAT: EV_CASE(FAMILY, f32, __VA_ARGS__); \
    case EV_INT32: EV_CASE(FAMILY, i32, __VA_ARGS__); \
    case EV_INT64: EV_CASE(FAMILY, i64, __VA_ARGS__);

static void EV_FN(extreme_rows)(int min, int dtype, int64_t rows, int64_t step, int64_t n, const void *x, void *acc)
{
    switch (dtype) {
        EV_WIDE_CASES(ev_rows, rows, step, n, x, acc)
    case EV_INT8: EV_CASE(ev_rows, i8, rows, step, n, x, acc);
    case EV_UINT8: case EV_BOOL: EV_CASE(ev_rows, u8, rows, step, n, x, acc);
    }
}

static void EV_FN(extreme_cols)(int min, int dtype, int64_t rows, int64_t step, int64_t n, const void *x, void *acc)
{
    switch (dtype) {
        EV_WIDE_CASES(ev_cols, rows, step, n, x, acc)
    case EV_INT8: EV_CASE(ev_cols, i8, rows, step, n, x, acc);
    case EV_UINT8: case EV_BOOL: EV_CASE(ev_cols, u8, rows, step, n, x, acc);
    }
}

/* The first or the last position of the extreme. Columns: n is at most EV_REDUCE_TILE. */
static void EV_FN(arg_rows)(int min, int last, int dtype, int64_t rows, int64_t step, int64_t n, const void *x,
                            int64_t *out)
{
    switch (dtype) {
        EV_WIDE_CASES(ev_arg_rows, last, rows, step, n, x, out)
    }
}

static void EV_FN(arg_cols)(int min, int last, int dtype, int64_t rows, int64_t step, int64_t n, const void *x,
                            int64_t *out)
{
    switch (dtype) {
        EV_WIDE_CASES(ev_arg_cols, last, rows, step, n, x, out)
    }
}
#undef EV_WIDE_CASES
#undef EV_CASE

/* Sums and products of integers wrap around, as in NumPy. */
#define EV_WRAP(S, T)                                                                                            \
    static void EV_FN(wrap_rows_##S)(int prod, int64_t rows, int64_t step, int64_t n, const T *x, T *acc)        \
    {                                                                                                            \
        for (int64_t r = 0; r < rows; r++, x += step) {                                                          \
            T a = acc[r];                                                                                        \
            if (prod)                                                                                            \
                for (int64_t j = 0; j < n; j++) a *= x[j];                                                       \
            else                                                                                                 \
                for (int64_t j = 0; j < n; j++) a += x[j];                                                       \
            acc[r] = a;                                                                                          \
        }                                                                                                        \
    }                                                                                                            \
    static void EV_FN(wrap_cols_##S)(int prod, int64_t rows, int64_t step, int64_t n, const T *restrict x,       \
                                     T *restrict acc)                                                            \
    {                                                                                                            \
        for (int64_t r = 0; r < rows; r++, x += step)                                                            \
            if (prod)                                                                                            \
                for (int64_t j = 0; j < n; j++) acc[j] *= x[j];                                                  \
            else                                                                                                 \
                for (int64_t j = 0; j < n; j++) acc[j] += x[j];                                                  \
    }
EV_WRAP(u32, uint32_t)
EV_WRAP(u64, uint64_t)
#undef EV_WRAP

/* Softmax or its logarithm; x and y may be the same memory. An infinite maximum or a NaN makes the lane NaN. */
static void EV_FN(softmax_rows_f32)(int log_of, int64_t rows, int64_t n, const float *x, float *y)
{
    for (int64_t r = 0; r < rows; r++, x += n, y += n) {
        const float most = ev_max_row_f32(n, x);
        if (log_of) {
            const float all = (float)log(ev_exp_sum_row(n, x, most));
#pragma GCC ivdep
            for (int64_t j = 0; j < n; j++) y[j] = (x[j] - most) - all;
        } else {
            const float scale = (float)(1.0 / ev_exp_row(n, x, most, y));
            for (int64_t j = 0; j < n; j++) y[j] *= scale;
        }
    }
}

/* The same down columns that are n wide and `step` apart; n is at most EV_REDUCE_TILE. */
static void EV_FN(softmax_cols_f32)(int log_of, int64_t rows, int64_t step, int64_t n, const float *x, float *y)
{
    float most[EV_REDUCE_TILE], scale[EV_REDUCE_TILE];
    double all[EV_REDUCE_TILE];
    for (int64_t j = 0; j < n; j++) most[j] = -INFINITY, all[j] = 0.0;
    ev_cols_max_row_f32(rows, step, n, x, most);
    for (int64_t r = 0; r < rows; r++) {
        const float *xr = x + r * step;
        float *yr = y + r * step, e[EV_REDUCE_TILE];
        for (int64_t j = 0; j < n; j++) e[j] = ev_exp_below_0(xr[j] - most[j]);
        for (int64_t j = 0; j < n; j++) all[j] += (double)e[j];
        if (!log_of) memcpy(yr, e, (size_t)n * sizeof *e);
    }
    for (int64_t j = 0; j < n; j++) scale[j] = log_of ? (float)log(all[j]) : (float)(1.0 / all[j]);
    for (int64_t r = 0; r < rows; r++) {
        const float *xr = x + r * step;
        float *yr = y + r * step;
        if (log_of) {
#pragma GCC ivdep
            for (int64_t j = 0; j < n; j++) yr[j] = (xr[j] - most[j]) - scale[j];
        } else
            for (int64_t j = 0; j < n; j++) yr[j] *= scale[j];
    }
}
