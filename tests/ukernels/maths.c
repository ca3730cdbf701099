/* Elementary functions, softmax, and weights of few bits, beside double. */
#include <float.h>
#include <math.h>

#include "check.h"

/* The bounds of math_body.h in units in the last place, of functions alone; those that combine them have a few more. */
static const struct {
    int op;
    const char *name;
    double units;
} FUNCTIONS[] = {{EV_EXP, "exp", 1.1},       {EV_LOG, "log", 0.9},
                 {EV_ACT_TANH, "tanh", 2.5}, {EV_ACT_SIGMOID, "sigmoid", 2.4},
                 {EV_ERF, "erf", 1.5},       {EV_ACT_SOFTPLUS, "softplus", 2.5},
                 {EV_ACT_RELU, "relu", 0},   {EV_ACT_HARD_SWISH, "hard_swish", 4},
                 {EV_SQRT, "sqrt", 0.5},     {EV_FLOOR, "floor", 0},
                 {EV_ROUND, "round", 0}};

static double exactly(int op, double x)
{
    switch (op) {
    case EV_EXP: return exp(x);
    case EV_LOG: return log(x);
    case EV_ACT_TANH: return tanh(x);
    case EV_ACT_SIGMOID: return 1 / (1 + exp(-x));
    case EV_ERF: return erf(x);
    case EV_ACT_SOFTPLUS: return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
    case EV_ACT_RELU: return x < 0 ? 0 : x;
    case EV_ACT_HARD_SWISH: return isnan(x) ? x : x * fmin(1, fmax(0, x / 6 + 0.5));
    case EV_SQRT: return sqrt(x);
    case EV_FLOOR: return floor(x);
    default: return rint(x);
    }
}

void check_unary(void)
{
    EACH(f, FUNCTIONS)
        for (int64_t n = 1; n < 12; n += 1)
            for (int at = 0; at < 40; at++) {
                float *x = guarded((size_t)n * 4), *y = guarded((size_t)n * 4);
                for (int64_t i = 0; i < n; i++) {
                    x[i] = (float)(uniform() * (at % 4 == 0 ? 100 : at % 4 == 1 ? 8 : 1));
                    if (at == 39 && i == n - 1) x[i] = NAN;
                    if (at == 38) x[i] = i & 1 ? INFINITY : 0;
                }
                if (FUNCTIONS[f_].op == EV_ACT_HARD_SWISH && at == 38) x[0] = 1;
                K->unary_f32(FUNCTIONS[f_].op, n, x, y, 0, 0);
                for (int64_t i = 0; i < n; i++) {
                    const double real = exactly(FUNCTIONS[f_].op, x[i]), want = real > FLT_MAX ? INFINITY : real,
                                 unit = fmax(fabs(want) * FLT_EPSILON, 1e-43);
                    /* near -3, where it is none, hard_swish is what 1/6 was rounded to times x */
                    const double most =
                        FUNCTIONS[f_].units * (FUNCTIONS[f_].op == EV_ACT_HARD_SWISH ? fabs(x[i]) * FLT_EPSILON : unit);
                    if (!close_to("unary_f32", FUNCTIONS[f_].name, i, y[i], want,
                                  isnan(most) || isinf(most) ? 0 : most))
                        return;
                }
                release_all();
            }
}

/* exp is off by 1.1 units, and by what the rounding of its argument, at most 32 units, makes of it. */
void check_softmax_part(void)
{
    enum { ROWS = 2 };
    for (int64_t n = 16; n < 100; n += 32)
        for (int kind = 0; kind < 5; kind++) {
            const int64_t ld = n + 1;
            float *x = guarded((size_t)((ROWS - 1) * ld + n) * 4), *given = guarded((size_t)((ROWS - 1) * ld + n) * 4);
            float most[ROWS] = {-INFINITY, 0.25f}, total[ROWS] = {0, 3}, keep[ROWS];
            for (int64_t i = 0; i < (ROWS - 1) * ld + n; i++)
                given[i] = x[i] = kind == 3 ? -INFINITY : (float)(uniform() * (kind ? 40 : 2));
            if (kind == 4) given[3] = x[3] = NAN;
            K->softmax_part_f32(ROWS, n, x, ld, most, total, keep);
            for (int64_t r = 0; r < ROWS; r++) {
                const double before = r ? 0.25 : -INFINITY;
                double largest = before, sum = 0;
                for (int64_t j = 0; j < n; j++)
                    largest = isnan(largest) || isnan(given[r * ld + j]) ? NAN : fmax(largest, given[r * ld + j]);
                if (!close_to("softmax_part_f32", "largest", r, most[r], largest, 0)) return;
                if (isnan(largest)) continue;
                const double base = isinf(largest) ? 0 : largest;
                for (int64_t j = 0; j < n; j++) {
                    const double want = exp(given[r * ld + j] - base);
                    sum += want;
                    if (!close_to("softmax_part_f32", "exp", r * ld + j, x[r * ld + j], want,
                                  want * 64 * FLT_EPSILON + 2e-38))
                        return;
                }
                const double kept = isinf(before) ? 0 : exp(before - base);
                if (!close_to("softmax_part_f32", "keep", r, keep[r], kept, kept * 64 * FLT_EPSILON)) return;
                sum += kept * (r ? 3 : 0);
                if (!close_to("softmax_part_f32", "total", r, total[r], sum, sum * (double)(64 + n) * FLT_EPSILON))
                    return;
            }
            release_all();
        }
}

static float half(uint16_t h)
{
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    const double size = exponent == 31 ? (fraction ? NAN : INFINITY)
                        : exponent     ? ldexp(1024 + fraction, exponent - 25)
                                       : ldexp(fraction, -24);
    return (float)(h & 0x8000 ? -size : size);
}

/* All numbers of 16 bits, there and back; and those halfway between two, which go to the even one. */
void check_half(void)
{
    uint16_t *h = guarded(65536 * 2), *again = guarded(65536 * 2);
    float *x = guarded(65536 * 4);
    for (int i = 0; i < 65536; i++) h[i] = (uint16_t)i;
    K->cast(EV_FLOAT16, EV_FLOAT, 65536, h, x);
    K->cast(EV_FLOAT, EV_FLOAT16, 65536, x, again);
    for (int i = 0; i < 65536; i++) {
        if (!close_to("cast", "float16 to float32", i, x[i], half((uint16_t)i), 0)) return;
        if (!isnan(x[i]) && !same_i32("cast", "float32 to float16", i, again[i], i)) return;
    }
    for (int i = 0; i < 0x7bff; i++) x[i] = (float)(((double)half((uint16_t)i) + half((uint16_t)(i + 1))) / 2);
    K->cast(EV_FLOAT, EV_FLOAT16, 0x7bff, x, again);
    for (int i = 0; i < 0x7bff; i++)
        if (!same_i32("cast", "halfway to float16", i, again[i], i + (i & 1))) return;
}

void check_narrow(void)
{
    static const int64_t SIZES[] = {1, 3, 8, 9, 17, 40};
    static const int NARROW[] = {EV_FLOAT16, EV_BFLOAT16, EV_INT16};
    EACH(t, NARROW)
        EACH(n, SIZES)
            EACH(k, SIZES) {
                const int64_t n = SIZES[n_], k = SIZES[k_];
                float *wide = guarded((size_t)(n * k) * 4), *x = guarded((size_t)k * 4), *y = guarded((size_t)n * 4),
                      *z = guarded((size_t)n * 4);
                uint16_t *w = guarded((size_t)(n * k) * 2);
                for (int64_t i = 0; i < n * k; i++) /* numbers of any sign around 1, whatever the type */
                    w[i] = (uint16_t)((random_bits() & 0x80ff) | (NARROW[t_] == EV_FLOAT16 ? 0x3c00 : 0x3f00));
                K->cast(NARROW[t_], EV_FLOAT, n * k, w, wide);
                fill_floats(x, k);
                for (int64_t i = 0; i < n; i++) y[i] = z[i] = 1;
                K->narrow_dot_f32(NARROW[t_], n, k, x, w, k, y);
                K->narrow_rows_f32(NARROW[t_], n, k, x, w, n, z);
                for (int64_t j = 0; j < n; j++) {
                    double rows = 1, columns = 1, size_r = 1, size_c = 1;
                    for (int64_t p = 0; p < k; p++) {
                        const double u = (double)x[p] * wide[j * k + p], v = (double)x[p] * wide[p * n + j];
                        rows += u, columns += v, size_r += fabs(u), size_c += fabs(v);
                    }
                    if (!near("narrow_dot_f32", "", j, y[j], rows, size_r, k) ||
                        !near("narrow_rows_f32", "", j, z[j], columns, size_c, k))
                        return;
                }
                release_all();
            }
}

/* Rows of weights of few bits times a vector: in floats, and with the vector in 16 bits, where each of its numbers is
 * off by at most half of a 32767th of the largest one nearby. */
void check_nbits(void)
{
    static const int BITS[] = {2, 3, 4, 8};
    enum { ROWS = 5 };
    char what[64];
    EACH(b, BITS)
        for (int log_block = 4; log_block < 8; log_block++)
            for (int64_t k = 16; k < 400; k += 171) {
                const int bits = BITS[b_];
                const int64_t blocks = (k + (1 << log_block) - 1) >> log_block,
                              padded = (k + EV_NBITS_PAD - 1) / EV_NBITS_PAD * EV_NBITS_PAD;
                const int64_t row_bytes = (blocks << log_block) * bits / 8;
                uint8_t *q = guarded((size_t)(ROWS * row_bytes));
                float *scales = guarded((size_t)(ROWS * blocks) * 4), *x = guarded((size_t)k * 4),
                      *y = guarded(ROWS * 4);
                float *spread = guarded((size_t)padded * 2 * 4), *sums = guarded((size_t)padded * 4);
                for (int64_t i = 0; i < ROWS * row_bytes; i++) q[i] = (uint8_t)random_bits();
                fill_floats(scales, ROWS * blocks), fill_floats(x, k);
                const ev_nbits w = {q, row_bytes, scales, NULL, 0, blocks, bits, log_block, EV_FLOAT, EV_UINT8};
                for (int integers = 0; integers < 2; integers++) {
                    if (integers)
                        K->nbits_spread_i16(bits, k, padded, x, spread), K->nbits_dot_i16(&w, 0, ROWS, spread, y);
                    else
                        K->nbits_spread_f32(bits, k, padded, x, spread, sums),
                            K->nbits_dot_f32(&w, 0, ROWS, spread, sums, y);
                    snprintf(what, sizeof what, "%d bits, blocks of %d, k=%d", bits, 1 << log_block, (int)k);
                    for (int64_t r = 0; r < ROWS; r++) {
                        double want = 0, size = 0, weights = 0;
                        for (int64_t p = 0; p < k; p++) {
                            int number = 0;
                            for (int t = 0; t < bits; t++)
                                number |= (q[r * row_bytes + (p * bits + t) / 8] >> (p * bits + t) % 8 & 1) << t;
                            const double weight =
                                (number - (1 << (bits - 1))) * (double)scales[r * blocks + (p >> log_block)];
                            want += weight * x[p],
                                size += fabs(weight * x[p]) + (1 << bits) * fabs(scales[r * blocks + (p >> log_block)]);
                            weights += fabs(weight);
                        }
                        if (!integers && !near("nbits_dot_f32", what, r, y[r], want, size, k)) return;
                        if (integers && !close_to("nbits_dot_i16", what, r, y[r], want,
                                                  weights / 65534 + size * (double)k * FLT_EPSILON))
                            return;
                    }
                }
                release_all();
            }
}
