/* Attention in integers: what lies between its two products. Rows of Q and K have a scale each, columns of V one each,
 * symmetric in [-127, 127]; weights of a row are in units of its largest one / 255.
 *
 * The largest magnitude is found among the bits of floats, which order like integers; a NaN's are the largest, so that
 * its scale is NaN, and with it what it takes part in. */

/* x, which times `inverse` is within 127, as an integer: the low bits of the sum are those of the nearest one. */
EV_INLINE int32_t EV_FN(qa_round)(float x, float inverse)
{
    return (int32_t)EV_FN(bits)(x * inverse + 0x1.8p23f);
}

/* 127 / most; 0 where that is 0 or not finite. */
EV_INLINE float EV_FN(qa_inverse)(float most)
{
    return most > 0.0f && most < INFINITY && 127.0f / most < INFINITY ? 127.0f / most : 0.0f;
}

/* Rows of n numbers as bytes, `flip` 0x80: plus 128; and their scales. */
static void EV_FN(qa_rows)(int64_t rows, int64_t n, const float *x, int64_t ld, int flip, uint8_t *y, int64_t ldy,
                           float *scale)
{
    for (int64_t r = 0; r < rows; r++, x += ld, y += ldy) {
        int32_t bits = 0;
        for (int64_t j = 0; j < n; j++) {
            const int32_t b = (int32_t)(EV_FN(bits)(x[j]) & 0x7fffffffu);
            bits = b > bits ? b : bits;
        }
        const float most = EV_FN(unbits)((uint32_t)bits), inverse = EV_FN(qa_inverse)(most);
        scale[r] = most / 127.0f;
        for (int64_t j = 0; j < n; j++) y[j] = (uint8_t)(EV_FN(qa_round)(x[j], inverse) ^ flip);
    }
}

/* most[j] = the largest magnitude in column j and of what it was; as bits. */
static void EV_FN(qa_most)(int64_t rows, int64_t n, const float *x, int64_t ld, int32_t *restrict most)
{
    for (int64_t r = 0; r < rows; r++, x += ld)
        for (int64_t j = 0; j < n; j++) {
            const int32_t b = (int32_t)(EV_FN(bits)(x[j]) & 0x7fffffffu);
            most[j] = b > most[j] ? b : most[j];
        }
}

/* Rows of n numbers as bytes, by the largest magnitudes of columns. */
static void EV_FN(qa_columns)(int64_t rows, int64_t n, const float *restrict x, int64_t ld, const float *restrict most,
                              int8_t *restrict y)
{
    for (int64_t j = 0; j < n; j += 64) {
        const int64_t m = n - j < 64 ? n - j : 64;
        float inverse[64];
        for (int64_t i = 0; i < m; i++) inverse[i] = EV_FN(qa_inverse)(most[j + i]);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < m; i++) y[r * n + j + i] = (int8_t)EV_FN(qa_round)(x[r * ld + j + i], inverse[i]);
    }
}

/* y = (sum - less[j]) * (row[i] * column[j]) for m rows of EV_QNR sums, of which n count. */
static void EV_FN(qa_real)(int64_t m, int64_t n, const int32_t *restrict sum, const int32_t *restrict less,
                           const float *restrict row, const float *restrict column, float *restrict y, int64_t ld)
{
    for (int64_t i = 0; i < m; i++, sum += EV_QNR, y += ld) {
        const float factor = row[i];
        if (n == EV_QNR)
            for (int64_t j = 0; j < EV_QNR; j++) y[j] = (float)(sum[j] - less[j]) * (factor * column[j]);
        else
            for (int64_t j = 0; j < n; j++) y[j] = (float)(sum[j] - less[j]) * (factor * column[j]);
    }
}

/* Thresholds between 0 and 1, in an order that spreads any few of them in a row: (r + 1/2) / 64 with r the bits of the
 * place from the other end. */
static const float EV_FN(qa_spread)[64] = {
#define EV_A(x) (x + 0.5f) / 64, (x + 32.5f) / 64, (x + 16.5f) / 64, (x + 48.5f) / 64
#define EV_B(x) EV_A(x), EV_A(x + 8), EV_A(x + 4), EV_A(x + 12)
    EV_B(0), EV_B(2), EV_B(1), EV_B(3)
#undef EV_A
#undef EV_B
};

/* y = exp(x - the largest x) in units of 1/255, and the sum of that: 0 where no x is above -infinity, NaN where an x is
 * NaN or infinity. Rounded to the nearest integer; below 1, up or down by the thresholds, key by key: else all that many
 * small weights are together would be lost. */
static void EV_FN(qa_weights)(int64_t n, const float *restrict x, uint8_t *restrict y, float *total)
{
    /* In the order of integers, which -infinity and NaNs have a place in, too. */
    int32_t last = INT32_MIN, size = 0;
    for (int64_t j = 0; j < n; j++) {
        const int32_t b = (int32_t)EV_FN(bits)(x[j]), magnitude = b & 0x7fffffff, place = b ^ (b >> 31 & 0x7fffffff);
        size = magnitude > size ? magnitude : size;
        last = place > last ? place : last;
    }
    const float most = EV_FN(unbits)((uint32_t)(last ^ (last >> 31 & 0x7fffffff)));
    if (size > 0x7f800000 || !(most - most == 0.0f)) {
        memset(y, 0, (size_t)n);
        *total = size <= 0x7f800000 && most < 0.0f ? 0.0f : NAN;
        return;
    }
    int32_t sum = 0;
    for (int64_t j = 0; j < n; j += 64) {
        const int64_t m = n - j < 64 ? n - j : 64;
        for (int64_t i = 0; i < m; i++) {
            const float z = x[j + i] - most;
            uint32_t whole;
            const float e = EV_FN(expm1_reduced)(z < -20.0f ? -20.0f : z, &whole);
            const float w = 255.0f * ((1.0f + e) * EV_FN(exp2i)(whole));
            const int32_t q = (int32_t)(w + (w < 1.0f ? EV_FN(qa_spread)[i] : 0.5f));
            sum += q;
            y[j + i] = (uint8_t)q;
        }
    }
    *total = (float)sum;
}
