/* Attention: what lies between its two products. */

/* The largest of n numbers, by the order of integers, in which -infinity has its place; NaN where one is NaN. */
EV_INLINE float EV_FN(attention_most)(int64_t n, const float *x)
{
    int32_t last = INT32_MIN, size = 0;
    for (int64_t j = 0; j < n; j++) {
        const int32_t b = (int32_t)EV_FN(bits)(x[j]), magnitude = b & 0x7fffffff, place = b ^ (b >> 31 & 0x7fffffff);
        size = magnitude > size ? magnitude : size;
        last = place > last ? place : last;
    }
    return size > 0x7f800000 ? NAN : EV_FN(unbits)((uint32_t)(last ^ (last >> 31 & 0x7fffffff)));
}

/* A part of a softmax over rows of n scores, `ld` apart, n a multiple of 16 (online softmax, Milakov and Gimelshein 2018).
 * For each row: most becomes the largest score so far, x = exp(x - most), keep = what exp is to be multiplied by of the
 * scores before, total = total * keep + the sum of x. Nothing but -infinity so far gives 0, and NaN is handed on. */
static void EV_FN(softmax_part_f32)(int64_t rows, int64_t n, float *restrict x, int64_t ld, float *restrict most,
                                    float *restrict total, float *restrict keep)
{
    for (int64_t r = 0; r < rows; r++, x += ld) {
        const float before = most[r], here = EV_FN(attention_most)(n, x);
        const float largest = here != here || before != before ? NAN : before > here ? before : here;
        const float base = largest == -INFINITY ? 0.0f : largest;
        for (int64_t j = 0; j < n; j++) {
            uint32_t whole;
            const float z = x[j] - base;
            const float e = EV_FN(expm1_reduced)(z < -87.3f ? -87.3f : z, &whole), scale = EV_FN(exp2i)(whole);
            x[j] = z < -87.0f ? 0.0f : e * scale + scale;
        }
        float part[16] = {0}, sum = 0.0f;
        for (int64_t j = 0; j < n; j += 16)
            for (int i = 0; i < 16; i++) part[i] += x[j + i];
        for (int i = 0; i < 16; i++) sum += part[i];
        keep[r] = before == -INFINITY ? 0.0f : expf(before - base);
        total[r] = total[r] * keep[r] + sum;
        most[r] = largest;
    }
}

/* In integers rows of Q and K have a scale each, columns of V one each,
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

/* Loops that compute floats and write bytes vectorize by as many as bytes fill a vector, and take what is left one by one.
 * So integers are written to EV_PART of int32 first, and these, zeros behind them, to as many bytes. */
#define EV_PART 64

/* Rows of n numbers as bytes, `flip` 0x80: plus 128; and their scales. Up to EV_PART - 1 bytes more are written behind a row,
 * which may be those of the next. */
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
        for (int64_t j = 0; j < n; j += EV_PART) {
            const int64_t m = n - j < EV_PART ? n - j : EV_PART;
            int32_t q[EV_PART];
            for (int64_t i = m; i < EV_PART; i++) q[i] = 0;
            for (int64_t i = 0; i < m; i++) q[i] = EV_FN(qa_round)(x[j + i], inverse);
            for (int64_t i = 0; i < EV_PART; i++) y[j + i] = (uint8_t)(q[i] ^ flip);
        }
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

/* Rows of n numbers as bytes, by the largest magnitudes of columns; what is written behind as in qa_rows. */
static void EV_FN(qa_columns)(int64_t rows, int64_t n, const float *restrict x, int64_t ld, const float *restrict most,
                              int8_t *restrict y)
{
    for (int64_t j = 0; j < n; j += EV_PART) {
        const int64_t m = n - j < EV_PART ? n - j : EV_PART, bytes = n < EV_PART ? EV_PART : m;
        float inverse[EV_PART];
        for (int64_t i = 0; i < m; i++) inverse[i] = EV_FN(qa_inverse)(most[j + i]);
        for (int64_t r = 0; r < rows; r++) {
            const float *from = x + r * ld + j;
            int8_t *to = y + r * n + j;
            int32_t q[EV_PART];
            for (int64_t i = m; i < EV_PART; i++) q[i] = 0;
            for (int64_t i = 0; i < m; i++) q[i] = EV_FN(qa_round)(from[i], inverse[i]);
            for (int64_t i = 0; i < bytes; i++) to[i] = (int8_t)q[i];
        }
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
static const float EV_FN(qa_spread)[EV_PART] = {
#define EV_A(x) (x + 0.5f) / 64, (x + 32.5f) / 64, (x + 16.5f) / 64, (x + 48.5f) / 64
#define EV_B(x) EV_A(x), EV_A(x + 8), EV_A(x + 4), EV_A(x + 12)
    EV_B(0), EV_B(2), EV_B(1), EV_B(3)
#undef EV_A
#undef EV_B
};

/* y = exp(x - the largest x) in units of 1/255, and the sum of that: 0 where no x is above -infinity, NaN where an x is
 * NaN or infinity. Rounded to the nearest integer; below 1, up or down by the thresholds, key by key: else all that many
 * small weights are together would be lost. What is written behind as in qa_rows. */
static void EV_FN(qa_weights)(int64_t n, const float *restrict x, uint8_t *restrict y, float *total)
{
    const float most = EV_FN(attention_most)(n, x);
    if (!(most - most == 0.0f)) {
        memset(y, 0, (size_t)n);
        *total = most == -INFINITY ? 0.0f : NAN;
        return;
    }
    int32_t sum = 0;
    for (int64_t j = 0; j < n; j += EV_PART) {
        const int64_t m = n - j < EV_PART ? n - j : EV_PART;
        int32_t q[EV_PART];
        for (int64_t i = m; i < EV_PART; i++) q[i] = 0;
        for (int64_t i = 0; i < m; i++) {
            const float z = x[j + i] - most;
            uint32_t whole;
            const float e = EV_FN(expm1_reduced)(z < -20.0f ? -20.0f : z, &whole);
            const float w = 255.0f * ((1.0f + e) * EV_FN(exp2i)(whole)), spread = EV_FN(qa_spread)[i];
            q[i] = (int32_t)(w + (w < 1.0f ? spread : 0.5f));
            sum += q[i];
        }
        for (int64_t i = 0; i < EV_PART; i++) y[j + i] = (uint8_t)q[i];
    }
    *total = (float)sum;
}
