/* Items that are moved, compared, chosen and converted: exact, but for powers. */
#include <float.h>
#include <math.h>

#include "check.h"

static const int64_t COUNTS[] = {1, 2, 3, 7, 8, 15, 16, 17, 33, 100, 300};
static const int ITEMS[] = {1, 2, 4, 8, 16};

static uint8_t *rubbish(int64_t bytes)
{
    uint8_t *p = guarded((size_t)bytes);
    for (int64_t i = 0; i < bytes; i++) p[i] = (uint8_t)random_bits();
    return p;
}

void check_moves(void)
{
    EACH(item, ITEMS) EACH(n, COUNTS) for (int64_t step = 1; step < 8; step++) {
        const int64_t n = COUNTS[n_], item = ITEMS[item_], bytes = n * item;
        uint8_t *x = rubbish(((n - 1) * step + 1) * item), *y = guarded((size_t)bytes), *fill = rubbish(item);
        uint8_t *want = guarded((size_t)(bytes * step)), *repeated = guarded((size_t)(bytes * step));
        int64_t *index = guarded((size_t)n * 8);
        for (int64_t i = 0; i < n; i++) memcpy(want + i * item, x + i * step * item, (size_t)item);
        K->move_step((int)item, n, x, step, y);
        if (!same_bytes("move_step", "", y, want, (size_t)bytes)) return;
        for (int64_t i = 0; i < n * step; i++) memcpy(want + i * item, x + i / step * item, (size_t)item);
        K->move_repeat((int)item, n, step, x, repeated);
        if (!same_bytes("move_repeat", "", repeated, want, (size_t)(bytes * step))) return;
        for (int64_t i = 0; i < n; i++) memcpy(want + i * item, x, (size_t)item);
        K->move_fill((int)item, n, x, y);
        if (!same_bytes("move_fill", "", y, want, (size_t)bytes)) return;
        for (int filled = 0; filled < 2; filled++) {
            for (int64_t i = 0; i < n; i++) {
                index[i] = filled && random_bits() % 4 == 0 ? -1 : (int64_t)(random_bits() % ((n - 1) * step + 1));
                memcpy(want + i * item, index[i] < 0 ? fill : x + index[i] * item, (size_t)item);
            }
            K->move_index((int)item, n, x, index, filled ? fill : NULL, y);
            if (!same_bytes("move_index", filled ? "filled" : "", y, want, (size_t)bytes)) return;
        }
        release_all();
    }
}

/* Runs of bytes; between those of y nothing is written. */
void check_move_rows(void)
{
    static const int64_t BYTES[] = {0, 1, 2, 3, 4, 8, 12, 16, 17, 32, 48, 128, 144};
    EACH(b, BYTES) for (int64_t n = 1; n < 6; n++) {
        const int64_t bytes = BYTES[b_], xs = bytes + 3, ys = bytes + 5;
        uint8_t *x = rubbish((n - 1) * xs + bytes), *y = rubbish((n - 1) * ys + bytes),
            *want = rubbish((n - 1) * ys + bytes);
        memcpy(want, y, (size_t)((n - 1) * ys + bytes));
        for (int64_t i = 0; i < n; i++) memcpy(want + i * ys, x + i * xs, (size_t)bytes);
        K->move_rows(n, bytes, x, xs, y, ys);
        if (!same_bytes("move_rows", "", y, want, (size_t)((n - 1) * ys + bytes))) return;
        release_all();
    }
}

void check_move_transpose(void)
{
    static const int64_t SIZES[] = {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 33, 260};
    char what[64];
    EACH(item, ITEMS) EACH(r, SIZES) EACH(c, SIZES) for (int64_t more = 0; more < 4; more += 3) {
        const int64_t rows = SIZES[r_], cols = SIZES[c_], xs = rows + more, ys = cols + more, item = ITEMS[item_];
        uint8_t *x = rubbish(((cols - 1) * xs + rows) * item), *y = rubbish(((rows - 1) * ys + cols) * item);
        uint8_t *want = guarded((size_t)(((rows - 1) * ys + cols) * item));
        memcpy(want, y, (size_t)(((rows - 1) * ys + cols) * item));
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < cols; j++)
                memcpy(want + (i * ys + j) * item, x + (i + j * xs) * item, (size_t)item);
        K->move_transpose((int)item, rows, cols, x, xs, y, ys);
        snprintf(what, sizeof what, "item %d, %d by %d, apart %d", (int)item, (int)rows, (int)cols, (int)more);
        if (!same_bytes("move_transpose", what, y, want, (size_t)(((rows - 1) * ys + cols) * item))) return;
        release_all();
    }
}

void check_select(void)
{
    EACH(item, ITEMS) EACH(n, COUNTS) for (int kind = 0; kind < 8; kind++) {
        const int64_t n = COUNTS[n_], item = ITEMS[item_], sc = kind & 1, sa = kind >> 1 & 1, sb = kind >> 2;
        if (item > 8) continue;
        uint8_t *c = rubbish(sc ? n : 1), *a = rubbish((sa ? n : 1) * item), *b = rubbish((sb ? n : 1) * item);
        uint8_t *y = guarded((size_t)(n * item)), *want = guarded((size_t)(n * item));
        for (int64_t i = 0; i < (sc ? n : 1); i++) c[i] &= 1;
        for (int64_t i = 0; i < n; i++)
            memcpy(want + i * item, c[sc * i] ? a + sa * i * item : b + sb * i * item, (size_t)item);
        K->select(item, n, c, sc, a, sa, b, sb, y);
        if (!same_bytes("select", "", y, want, (size_t)(n * item))) return;
        release_all();
    }
}

/* a op b of integers of so many bits, whose lowest ones are the result. */
static int64_t integer(int op, int64_t a, int64_t b, int bits)
{
    const uint64_t p = (uint64_t)a, q = (uint64_t)b;
    const int outside = b < 0 || b >= bits;
    const int64_t rest = b == 0 || b == -1 ? 0 : a % b;
    switch (op) {
    case EV_ADD: return (int64_t)(p + q);
    case EV_SUB: return (int64_t)(p - q);
    case EV_MUL: return (int64_t)(p * q);
    case EV_DIV: return b == -1 ? (int64_t)(0 - p) : a / b;
    case EV_MIN: return a < b ? a : b;
    case EV_MAX: return a > b ? a : b;
    case EV_MOD: return rest && (rest < 0) != (b < 0) ? rest + b : rest;
    case EV_FMOD: return rest;
    case EV_BITAND: return a & b;
    case EV_BITOR: return a | b;
    case EV_BITXOR: return a ^ b;
    case EV_SHIFT_LEFT: return outside ? 0 : (int64_t)(p << b);
    case EV_SHIFT_RIGHT: return outside ? (a < 0 ? -1 : 0) : a >> b;
    case EV_EQUAL: return a == b;
    case EV_LESS: return a < b;
    default: return a <= b;
    }
}

#define CHECK_INTEGERS(s, T)                                                                                           \
    void check_binary_##s(void)                                                                                        \
    {                                                                                                                  \
        char what[64];                                                                                                 \
        for (int op = EV_ADD; op <= EV_LESS_OR_EQUAL; op++) EACH(n, COUNTS) for (int kind = 0; kind < 4; kind++) {     \
            const int64_t n = COUNTS[n_], sa = kind & 1, sb = kind >> 1;                                               \
            const size_t size = op >= EV_EQUAL ? 1 : sizeof(T);                                                        \
            if (op == EV_POW || op == EV_PRELU) continue;                                                              \
            T *a = (T *)rubbish((sa ? n : 1) * (int64_t)sizeof(T)), *b = (T *)rubbish((sb ? n : 1) * (int64_t)sizeof(T)); \
            uint8_t *y = guarded((size_t)n * size), *want = guarded((size_t)n * size);                                 \
            for (int64_t i = 0; i < (sa ? n : 1); i += 3) a[i] = (T)((T)-1 < 0 ? (T)1 << (8 * sizeof(T) - 1) : -1);    \
            for (int64_t i = 0; i < (sb ? n : 1); i++) {                                                               \
                if (random_bits() % 4 == 0) b[i] = (T)-1;                                                              \
                if (op == EV_SHIFT_LEFT || op == EV_SHIFT_RIGHT) b[i] = (T)(int8_t)random_bits() / 2;                  \
                if (!b[i]) b[i] = 3; /* no divisor is 0 */                                                             \
                if (op >= EV_EQUAL && i < n && random_bits() % 2) b[i] = a[sa * i];                                    \
            }                                                                                                          \
            for (int64_t i = 0; i < n; i++) {                                                                          \
                const int64_t r = integer(op, a[sa * i], b[sb * i], 8 * (int)sizeof(T));                                 \
                memcpy(want + (size_t)i * size, &r, size);                                                             \
            }                                                                                                          \
            K->binary_##s(op, n, a, sa, b, sb, y);                                                                     \
            snprintf(what, sizeof what, "op %d, n=%d, kind %d", op, (int)n, kind);                                     \
            if (!same_bytes("binary_" #s, what, y, want, (size_t)n * size)) return;                                    \
            release_all();                                                                                             \
        }                                                                                                              \
    }
CHECK_INTEGERS(s8, int8_t)
CHECK_INTEGERS(u8, uint8_t)
CHECK_INTEGERS(s32, int32_t)
CHECK_INTEGERS(s64, int64_t)

static double real(int op, double a, double b)
{
    const double rest = fmod(a, b);
    switch (op) {
    case EV_ADD: return a + b;
    case EV_SUB: return a - b;
    case EV_MUL: return a * b;
    case EV_DIV: return a / b;
    case EV_MIN: return isnan(a) || isnan(b) ? NAN : fmin(a, b);
    case EV_MAX: return isnan(a) || isnan(b) ? NAN : fmax(a, b);
    case EV_MOD: return rest == 0 ? 0 : (rest < 0) != (b < 0) ? rest + b : rest;
    case EV_FMOD: return rest;
    case EV_POW: return pow(a, b);
    case EV_PRELU: return a < 0 ? a * b : a;
    case EV_EQUAL: return a == b;
    case EV_LESS: return a < b;
    default: return a <= b;
    }
}

/* Rounded once; powers of float32 at most twice, or by powf. */
#define CHECK_FLOATS(s, T, EPS)                                                                                        \
    void check_binary_##s(void)                                                                                        \
    {                                                                                                                  \
        static const double EXPONENTS[] = {2, 3, 0.5, -1.5};                                                           \
        char what[64];                                                                                                 \
        for (int op = EV_ADD; op <= EV_LESS_OR_EQUAL; op++) EACH(n, COUNTS) for (int kind = 0; kind < 4; kind++) {     \
            const int64_t n = COUNTS[n_], sa = kind & 1, sb = kind >> 1;                                               \
            if (op >= EV_BITAND && op < EV_EQUAL) continue;                                                            \
            T *a = guarded((size_t)(sa ? n : 1) * sizeof(T)), *b = guarded((size_t)(sb ? n : 1) * sizeof(T));          \
            T *y = guarded((size_t)n * (op >= EV_EQUAL ? 1 : sizeof(T)));                                              \
            for (int64_t i = 0; i < (sa ? n : 1); i++) a[i] = (T)(4 * uniform());                                      \
            for (int64_t i = 0; i < (sb ? n : 1); i++) b[i] = op == EV_POW ? (T)EXPONENTS[n_ % 4] : (T)uniform();      \
            if (n_ % 2) a[0] = op == EV_POW ? -INFINITY : NAN;                                                         \
            if (sb && n > 3) b[2] = op == EV_POW ? (T)0.7 : NAN, b[3] = op >= EV_EQUAL ? a[sa * 3] : b[3];             \
            K->binary_##s(op, n, a, sa, b, sb, y);                                                                     \
            snprintf(what, sizeof what, "op %d, n=%d, kind %d", op, (int)n, kind);                                     \
            for (int64_t i = 0; i < n; i++) {                                                                          \
                const double got = op >= EV_EQUAL ? ((uint8_t *)y)[i] : y[i];                                          \
                const double want = (T)real(op, a[sa * i], b[sb * i]);                                                 \
                if (!close_to("binary_" #s, what, i, got, want, op == EV_POW && isfinite(want) ? EPS * fabs(want) : 0)) return; \
            }                                                                                                          \
            release_all();                                                                                             \
        }                                                                                                              \
    }
CHECK_FLOATS(f32, float, FLT_EPSILON)
CHECK_FLOATS(f64, double, DBL_EPSILON)

void check_ranges(void)
{
    EACH(n, COUNTS) for (int kind = 0; kind < 8; kind++) {
        const int64_t n = COUNTS[n_], each = kind & 1;
        float *x = floats(n), *scale = floats(n), *zero = floats(n), *y = guarded((size_t)n * 4), range[2];
        uint8_t *is = guarded((size_t)n);
        range[0] = 0.25f, range[1] = 0.5f;
        x[random_bits() % n] = 2, x[random_bits() % n] = -2; /* the largest and the smallest in any place */
        for (int64_t i = 0; i < n && kind > 3; i += 4) x[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY;
        K->dequantize_f32(n, x, scale, zero, each, y);
        K->range_f32(n, x, range);
        K->classify_f32(kind, n, x, is);
        double low = 0.25, high = 0.5;
        for (int64_t i = 0; i < n; i++) {
            volatile float apart = x[i] - zero[each * i];
            low = fmin(low, x[i]), high = fmax(high, x[i]);
            if (!close_to("dequantize_f32", "", i, y[i], apart * scale[each * i], 0) ||
                !same_i32("classify_f32", "", i, is[i],
                          isnan(x[i]) ? kind & 1 : isinf(x[i]) ? kind >> (x[i] > 0 ? 1 : 2) & 1 : 0))
                return;
        }
        if (!close_to("range_f32", "smallest", n, range[0], low, 0) ||
            !close_to("range_f32", "largest", n, range[1], high, 0))
            return;
        release_all();
    }
}
