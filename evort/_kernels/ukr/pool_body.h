/* Pooling, one output row at a time: first down the rows of the window into a buffer (contiguous), then along it.
 * So a window of kh x kw costs kh + kw operations an element, not kh * kw. */

static inline int64_t ev_steps(int64_t distance, int64_t step)
{
    return step == 1 ? distance : (distance + step - 1) / step; /* divisions are slow, and rare this way */
}

/* How many positions of window o lie in [from, to), and the first of them. */
static inline int64_t ev_window_part(const ev_window *w, int64_t o, int64_t from, int64_t to, int64_t *first)
{
    const int64_t start = o * w->stride - w->pad;
    const int64_t skip = start < from ? ev_steps(from - start, w->dilation) : 0;
    const int64_t end = to > start ? ev_steps(to - start, w->dilation) : 0;
    *first = start + skip * w->dilation;
    return (end < w->kernel ? end : w->kernel) - skip;
}

#define EV_LARGER(a, b) ((a) > (b) ? (a) : (b)) /* b where either is NaN: only for numbers */
#define EV_LARGER_OR_NAN(a, b) (((a) > (b)) | ((a) != (a)) ? (a) : (b))
#define EV_PLUS(a, b) ((a) + (b))

#define T float
#define NAME ev_along_max
#define F EV_LARGER
#define F8 EV_MAX8
#include "pool_along.h"

#define T float
#define NAME ev_along_max_nan
#define F EV_LARGER_OR_NAN
#include "pool_along.h"

#define T float
#define NAME ev_along_sum
#define F EV_PLUS
#define F8 EV_PLUS
#include "pool_along.h"

#define T int8_t
#define NAME ev_along_max_i8
#define F EV_LARGER
#include "pool_along.h"

#define T int16_t
#define NAME ev_along_max_i16
#define F EV_LARGER
#include "pool_along.h"

#define T uint8_t
#define NAME ev_along_max_u8
#define F EV_LARGER
#include "pool_along.h"

/* buf = the rows merged by F, element by element; with ONE applied to each element first. */
#define EV_DOWN(T, F, ONE)                                                                                          \
    do {                                                                                                            \
        if (rows == 1) {                                                                                            \
            for (int64_t j = 0; j < n; j++) buf[j] = ONE(row[0][j]);                                                \
        } else if (rows == 2) {                                                                                     \
            const T *a = row[0], *b = row[1];                                                                       \
            for (int64_t j = 0; j < n; j++) buf[j] = F(ONE(a[j]), ONE(b[j]));                                       \
        } else {                                                                                                    \
            const T *a = row[0], *b = row[1], *c = row[2];                                                          \
            for (int64_t j = 0; j < n; j++) buf[j] = F(F(ONE(a[j]), ONE(b[j])), ONE(c[j]));                         \
            for (int64_t r = 3; r < rows; r++) {                                                                    \
                const T *d = row[r];                                                                                \
                for (int64_t j = 0; j < n; j++) buf[j] = F(buf[j], ONE(d[j]));                                      \
            }                                                                                                       \
        }                                                                                                           \
    } while (0)

/* buf = the largest of each column, where all are numbers. Returns whether there is a NaN. */
static int ev_max_down(int64_t rows, const float *const *row, int64_t n, float *buf)
{
    int32_t any = 0;
    if (n < 8) {
        for (int64_t j = 0; j < n; j++) {
            float m = row[0][j];
            for (int64_t r = 0; r < rows; r++) {
                any |= row[r][j] != row[r][j];
                m = EV_LARGER(row[r][j], m);
            }
            buf[j] = m;
        }
        return any;
    }
    ev_v8i bad = {0};
    for (int64_t i = 0; i < n; i += 8) {
        const int64_t j = i < n - 8 ? i : n - 8; /* the last eight may overlap those before */
        ev_v8f m = EV_LOAD8(row[0] + j);
        bad |= m != m;
        for (int64_t r = 1; r < rows; r++) {
            const ev_v8f v = EV_LOAD8(row[r] + j);
            bad |= v != v;
            m = EV_MAX8(v, m);
        }
        *(ev_v8f *)(buf + j) = m;
    }
    for (int j = 0; j < 8; j++) any |= bad[j];
    return any;
}

/* The largest of each 2 x 2 numbers of a0 over b0, and of a1 over b1; their sum is added to sums. */
static inline ev_v8f ev_max_pairs(ev_v8f a0, ev_v8f a1, ev_v8f b0, ev_v8f b1, ev_v8f *sums)
{
    const ev_v8f m0 = EV_MAX8(a0, b0), m1 = EV_MAX8(a1, b1);
    *sums += (a0 + b0) + (a1 + b1);
    return EV_MAX8(__builtin_shuffle(m0, m1, (ev_v8i){0, 2, 4, 6, 8, 10, 12, 14}),
                   __builtin_shuffle(m0, m1, (ev_v8i){1, 3, 5, 7, 9, 11, 13, 15}));
}

/* Maximum of windows of 2 x 2 side by side: y[lines][out] from x[2 * lines][width], 4 <= out, 2 * out <= width. `done`
 * is 0 where there may be a NaN, after which y is to be computed in another way. */
static void EV_FN(pool_2x2_f32)(int64_t lines, int64_t out, int64_t width, const float *x, float *y, int *done)
{
    ev_v8f sums = {0}; /* NaN where any is, or where infinities meet */
    for (int64_t r = 0; r < lines; r++, x += 2 * width, y += out) {
        if (out < 8) { /* the first four and the last four */
            const float *a = x + 2 * (out - 4);
            const ev_v8f z = ev_max_pairs(EV_LOAD8(x), EV_LOAD8(a), EV_LOAD8(x + width), EV_LOAD8(a + width), &sums);
            memcpy(y, &z, 16);
            memcpy(y + out - 4, (const float *)&z + 4, 16);
            continue;
        }
        for (int64_t i = 0; i < out; i += 8) {
            const int64_t o = i < out - 8 ? i : out - 8; /* the last eight may overlap those before */
            const float *a = x + 2 * o, *b = a + width;
            *(ev_v8f *)(y + o) = ev_max_pairs(EV_LOAD8(a), EV_LOAD8(a + 8), EV_LOAD8(b), EV_LOAD8(b + 8), &sums);
        }
    }
    *done = 1;
    for (int j = 0; j < 8; j++) *done &= sums[j] == sums[j];
}

#define EV_SQUARE1(x) ((x) * (x))

/* Divides sums by how many positions of their window count, and by w->weight. */
static void ev_average_row(const ev_window *w, float *y)
{
    const int64_t reach = (w->kernel - 1) * w->dilation;
    int64_t from = 0, to = w->out; /* [from, to): windows whose positions all count */
    while (from < to && from * w->stride - w->pad < w->count_from) from++;
    while (to > from && (to - 1) * w->stride - w->pad + reach >= w->count_to) to--;
    const float whole = (float)(w->weight * (double)w->kernel);
    for (int64_t o = from; o < to; o++) y[o] = y[o] / whole;
    for (int64_t o = 0; o < w->out; o++) {
        if (o == from) o = to;
        if (o >= w->out) break;
        int64_t first, count = ev_window_part(w, o, w->count_from, w->count_to, &first);
        y[o] = count > 0 ? y[o] / (float)(w->weight * (double)count) : 0.0f;
    }
}

/* One row of windows of the maximum, average, root of the sum of squares, or sum of magnitudes (EV_POOL_*). `row`:
 * the `rows` input rows under it, at least 1; buf: w->width elements of scratch. */
static void EV_FN(pool_row_f32)(int op, int64_t rows, const float *const *row, const ev_window *w, float *restrict buf,
                                float *restrict y)
{
    const int64_t n = w->width;
    switch (op) {
    case EV_POOL_MAX: {
        if (ev_max_down(rows, row, n, buf)) {
            EV_DOWN(float, EV_LARGER_OR_NAN, EV_SAME);
            ev_along_max_nan(w, buf, y, -INFINITY);
        } else {
            ev_along_max(w, buf, y, -INFINITY);
        }
        return;
    }
    case EV_POOL_SUM: EV_DOWN(float, EV_PLUS, EV_SAME); break;
    case EV_POOL_SQUARE: EV_DOWN(float, EV_PLUS, EV_SQUARE1); break;
    case EV_POOL_ABS: EV_DOWN(float, EV_PLUS, fabsf); break;
    }
    ev_along_sum(w, buf, y, 0.0f);
    if (op == EV_POOL_SQUARE)
        for (int64_t o = 0; o < w->out; o++) y[o] = sqrtf(y[o]);
    if (op == EV_POOL_SUM) ev_average_row(w, y);
}

#define EV_MAX_ROW_INT(S, T, LEAST)                                                                              \
    static void EV_FN(pool_max_row_##S)(int64_t rows, const T *const *row, const ev_window *w, T *restrict buf,  \
                                        T *restrict y)                                                           \
    {                                                                                                            \
        const int64_t n = w->width;                                                                              \
        EV_DOWN(T, EV_LARGER, EV_SAME);                                                                          \
        ev_along_max_##S(w, buf, y, LEAST);                                                                      \
    }
EV_MAX_ROW_INT(i8, int8_t, INT8_MIN)
EV_MAX_ROW_INT(i16, int16_t, INT16_MIN)
EV_MAX_ROW_INT(u8, uint8_t, 0)
#undef EV_MAX_ROW_INT
#undef EV_DOWN
#undef EV_SQUARE1
#undef EV_LARGER
#undef EV_LARGER_OR_NAN
#undef EV_PLUS
#undef EV_MAX8
#undef EV_PICK8
