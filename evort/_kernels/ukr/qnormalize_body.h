/* Quantized tensors: sums, normalizations and pools; after qelementwise_body.h, whose blocks they use. */

/* Sums ---------------------------------------------------------------------------------------------------------- */

/* *largest = the largest of n bytes x ^ flip; *total = the sum of table[255 - *largest + (x ^ flip)], which are whole. */
static void EV_FN(q_exp_sum)(int64_t n, const uint8_t *x, int flip, const float *table, uint8_t *largest,
                             int64_t *total)
{
    uint8_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        const uint8_t u = x[i] ^ (uint8_t)flip;
        most = u > most ? u : most;
    }
    table += 255 - most;
    int64_t sum[4] = {0}, i = 0;
    for (; i + 4 <= n; i += 4)
        for (int k = 0; k < 4; k++) sum[k] += (int32_t)table[x[i + k] ^ flip];
    for (; i < n; i++) sum[0] += (int32_t)table[x[i] ^ flip];
    *largest = most;
    *total = sum[0] + sum[1] + sum[2] + sum[3];
}

/* *sum += x - zero, *square += (x - zero)^2 over n bytes. */
static void EV_FN(q_moments)(int dtype, int64_t n, const void *x, int32_t zero, int64_t *sum, int64_t *square)
{
    const uint8_t *p = x;
    int64_t i = 0;
#ifdef __AVX2__
    const __m256i z = _mm256_set1_epi16((short)zero), one = _mm256_set1_epi16(1);
    while (i + 16 <= n) { /* each lane grows by at most 2 * 255^2 a step: 32 bits hold 16384 steps */
        const int64_t end = i + (n - i < 16 * 8192 ? (n - i) & ~(int64_t)15 : 16 * 8192);
        __m256i s = _mm256_setzero_si256(), q = s;
        for (; i < end; i += 16) {
            const __m128i b = _mm_loadu_si128((const __m128i *)(p + i));
            __m256i v = dtype == EV_UINT8 ? _mm256_cvtepu8_epi16(b) : _mm256_cvtepi8_epi16(b);
            v = _mm256_sub_epi16(v, z);
            s = _mm256_add_epi32(s, _mm256_madd_epi16(v, one));
            q = _mm256_add_epi32(q, _mm256_madd_epi16(v, v));
        }
        int32_t lanes[16];
        _mm256_storeu_si256((__m256i *)lanes, s);
        _mm256_storeu_si256((__m256i *)(lanes + 8), q);
        for (int j = 0; j < 8; j++) {
            *sum += lanes[j];
            *square += lanes[8 + j];
        }
    }
#endif
    while (i < n) {
        const int64_t end = i + (n - i < 8192 ? n - i : 8192);
        int32_t s = 0, q = 0;
        for (; i < end; i++) {
            const int32_t v = (dtype == EV_UINT8 ? p[i] : (int8_t)p[i]) - zero;
            s += v;
            q += v * v;
        }
        *sum += s;
        *square += q;
    }
}

typedef uint16_t EV_FN(q16h) __attribute__((vector_size(32), aligned(1), may_alias));

/* sum[j] += the j-th byte of each of `rows` rows, `step` bytes apart: of 32 columns at a time, the last ones with some before
 * them, sums that fit 16 bits. */
static void EV_FN(q_sum_cols)(int dtype, int64_t rows, int64_t step, int64_t n, const void *x, int32_t *sum)
{
    enum { MOST = 256, COLUMNS = 32 };
    const uint8_t flip = dtype == EV_UINT8 ? 0 : 0x80, *p = x;
    const EV_FN(q16h) flips = (EV_FN(q16h)){0} + (uint16_t)(flip * 0x101);
    if (n < COLUMNS) {
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < n; j++) sum[j] += (int32_t)(p[r * step + j] ^ flip) - flip;
        return;
    }
    for (int64_t j = 0; j < n; j += COLUMNS) {
        const int64_t at = j + COLUMNS <= n ? j : n - COLUMNS;
        for (int64_t r0 = 0; r0 < rows; r0 += MOST) {
            const int64_t some = rows - r0 < MOST ? rows - r0 : MOST;
            const uint8_t *from = p + r0 * step + at;
            EV_FN(q16h) even = {0}, odd = {0};
            for (int64_t r = 0; r < some; r++, from += step) {
                const EV_FN(q16h) two = *(const EV_FN(q16h) *)from ^ flips;
                even += two & 0xff, odd += two >> 8;
            }
            for (int64_t i = j - at; i < COLUMNS; i++)
                sum[at + i] += (i % 2 ? odd : even)[i / 2] - (int32_t)(flip * some);
        }
    }
}

/* y = ((x - mean) * inverse) * scale[j] + bias[j]; y may be x. */
static void EV_FN(q_affine_f32)(int64_t n, const float *x, float mean, float inverse, const float *scale,
                                const float *bias, float *y)
{
    const EV_FN(ef) m = EV_FN(q_allf)(mean), s = EV_FN(q_allf)(inverse);
    int64_t i = 0;
    for (; i + EV_EW <= n; i += EV_EW) {
        EV_FN(ef) v = (*(const EV_FN(ef) *)(x + i) - m) * s * *(const EV_FN(ef) *)(scale + i);
        EV_APART(v);
        *(EV_FN(ef) *)(y + i) = v + *(const EV_FN(ef) *)(bias + i);
    }
    for (; i < n; i++) {
        float v = (x[i] - mean) * inverse * scale[i];
        EV_APART(v);
        y[i] = v + bias[i];
    }
}

EV_INLINE void EV_FN(q_normalize_block)(const int dtype, const int out, const uint8_t *x, int32_t zero, float mean,
                                        float inverse, const float *scale, const float *bias, int32_t zero_out,
                                        int32_t lo, int32_t hi, uint8_t *y)
{
    EV_FN(ei) q[2];
    for (int k = 0; k < 2; k++) {
        const EV_FN(ef) c = EV_FN(q_float)(EV_FN(q_load)(dtype, x, k * EV_EW) - zero);
        EV_FN(ef) v = (c - mean) * inverse * *(const EV_FN(ef) *)(scale + k * EV_EW);
        EV_APART(v);
        q[k] = EV_FN(q_rint)(v + *(const EV_FN(ef) *)(bias + k * EV_EW));
    }
    EV_FN(q_store)(out, q[0], q[1], zero_out, lo, hi, y, 0);
}

/* y = q_affine_f32 of x - zero, rounded, plus zero_out, clamped to [lo, hi]; x and y of 8 bits. */
static void EV_FN(q_normalize)(int dtype, int64_t n, const void *given, int32_t zero, float mean, float inverse,
                               const float *scale, const float *bias, int out, int32_t zero_out, int32_t lo, int32_t hi,
                               void *result)
{
    const uint8_t *x = given;
    uint8_t *y = result;
    int64_t i = 0;
#define EV_BLOCKS(T, U)                                                                                                \
    for (; i + EV_QB <= n; i += EV_QB)                                                                                 \
        EV_FN(q_normalize_block)(T, U, x + i, zero, mean, inverse, scale + i, bias + i, zero_out, lo, hi, y + i)
    if (dtype == EV_UINT8 && out == EV_UINT8) EV_BLOCKS(EV_UINT8, EV_UINT8);
    else if (dtype == EV_UINT8) EV_BLOCKS(EV_UINT8, EV_INT8);
    else if (out == EV_UINT8) EV_BLOCKS(EV_INT8, EV_UINT8);
    else EV_BLOCKS(EV_INT8, EV_INT8);
#undef EV_BLOCKS
    if (i < n) {
        uint8_t bx[EV_QB] = {0}, by[2 * EV_QB]; /* room for what the compiler cannot rule out: 16 bits */
        float bs[EV_QB] = {0}, bb[EV_QB] = {0};
        memcpy(bx, x + i, (size_t)(n - i));
        memcpy(bs, scale + i, (size_t)(n - i) * sizeof(float));
        memcpy(bb, bias + i, (size_t)(n - i) * sizeof(float));
        if (dtype == EV_UINT8)
            EV_FN(q_normalize_block)(EV_UINT8, out, bx, zero, mean, inverse, bs, bb, zero_out, lo, hi, by);
        else
            EV_FN(q_normalize_block)(EV_INT8, out, bx, zero, mean, inverse, bs, bb, zero_out, lo, hi, by);
        memcpy(y + i, by, (size_t)(n - i));
    }
}

/* Pools --------------------------------------------------------------------------------------------------------- */

#define EV_QPLUS(a, b) ((a) + (b))
#define T int32_t
#define NAME ev_along_sum_s32
#define F EV_QPLUS
#include "pool_along.h"
#define T int16_t
#define NAME ev_along_sum_s16
#define F EV_QPLUS
#include "pool_along.h"
#undef EV_QPLUS

#define EV_QDOWN(T, S)                                                                   \
    {                                                                                    \
        const T *a = row[0], *b = row[rows > 1], *c = row[rows > 2 ? 2 : 0];             \
        const S z = (S)zero;                                                             \
        if (rows == 1)                                                                   \
            for (int64_t j = 0; j < n; j++) buf[j] = (S)(a[j] - z);                      \
        else if (rows == 2)                                                              \
            for (int64_t j = 0; j < n; j++) buf[j] = (S)(a[j] + b[j] - 2 * z);           \
        else                                                                             \
            for (int64_t j = 0; j < n; j++) buf[j] = (S)(a[j] + b[j] + c[j] - 3 * z);    \
        for (int64_t r = 3; r < rows; r++) {                                             \
            const T *d = row[r];                                                         \
            for (int64_t j = 0; j < n; j++) buf[j] = (S)(buf[j] + d[j] - z);             \
        }                                                                                \
    }

/* Exact in S: int16 for windows of at most 128 elements, each below 256. */
#define EV_QPOOL(S, s)                                                                                             \
    static void EV_FN(q_pool_##s)(int dtype, int64_t rows, const void *const *row, const ev_window *w, int32_t zero, \
                                  S *restrict buf, float *restrict y)                                              \
    {                                                                                                              \
        const int64_t n = w->width;                                                                                \
        S *restrict sums = buf + n;                                                                                \
        if (dtype == EV_UINT8) EV_QDOWN(uint8_t, S) else EV_QDOWN(int8_t, S)                                       \
        ev_along_sum_##s(w, buf, sums, 0);                                                                         \
        for (int64_t o = 0; o < w->out; o++) y[o] = (float)sums[o];                                                \
    }
EV_QPOOL(int16_t, s16)
EV_QPOOL(int32_t, s32)
#undef EV_QPOOL
#undef EV_QDOWN

/* One row of windows of averages: y = the sum of x - zero over the bytes of the `rows` rows under the window (there may
 * be none), times factor / (how many positions count, of which w->weight has the rows). As pool_row_f32; buf: w->width
 * + w->out numbers of 32 bits. */
static void EV_FN(q_pool_row)(int dtype, int64_t rows, const void *const *row, const ev_window *w, int32_t zero,
                              float factor, void *buf, float *y)
{
    const int64_t lines = (int64_t)w->weight, reach = (w->kernel - 1) * w->dilation;
    if (rows == 0) {
        for (int64_t o = 0; o < w->out; o++) y[o] = 0.0f;
        return;
    }
    if (rows * w->kernel <= 128) EV_FN(q_pool_s16)(dtype, rows, row, w, zero, buf, y);
    else EV_FN(q_pool_s32)(dtype, rows, row, w, zero, buf, y);
    int64_t from = 0, to = w->out; /* [from, to): windows whose positions all count */
    while (from < to && from * w->stride - w->pad < w->count_from) from++;
    while (to > from && (to - 1) * w->stride - w->pad + reach >= w->count_to) to--;
    const int64_t all = lines * w->kernel;
    const float whole = factor / (float)(all > 1 ? all : 1);
    for (int64_t o = from; o < to; o++) y[o] = y[o] * whole;
    for (int64_t o = 0; o < w->out; o++) {
        if (o == from) o = to;
        if (o >= w->out) break;
        int64_t first, count = ev_window_part(w, o, w->count_from, w->count_to, &first);
        count = count > 0 ? lines * count : 0;
        y[o] = y[o] * (factor / (float)(count > 1 ? count : 1));
    }
}
