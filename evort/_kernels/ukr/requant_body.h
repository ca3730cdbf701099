/* What follows the sums of a quantized product: scale, bias, residual, activation, and rounding to the output's type.
 * The same bits on every instruction set: no multiplication is fused with an addition. */
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")

#include "requant_limits_body.h"

/* A row of EV_QNR numbers, as vectors. Explicitly so: of loops over 16 elements GCC makes vectors of 8, 4, 2 and 1. */
typedef float EV_FN(qf) __attribute__((vector_size(EV_QBYTES), may_alias));
typedef float EV_FN(qfu) __attribute__((vector_size(EV_QBYTES), may_alias, aligned(4)));
typedef int32_t EV_FN(qi) __attribute__((vector_size(EV_QBYTES), may_alias));
typedef int32_t EV_FN(qiu) __attribute__((vector_size(EV_QBYTES), may_alias, aligned(4)));
#define EV_QW (EV_QBYTES / 4)
#define EV_QV (EV_QNR / EV_QW)
#define EV_EACH_QV _Pragma("GCC unroll 4") for (int v = 0; v < EV_QV; v++)

typedef struct {
    EV_FN(qf) v[EV_QV];
} EV_FN(qrow);

/* n <= EV_QNR results to memory, of 16 that were computed. */
static inline __attribute__((always_inline)) void EV_FN(qcopy)(void *c, const void *x, int64_t n, const int size)
{
    if (n == EV_QNR) memcpy(c, x, EV_QNR * size);
    else memcpy(c, x, (size_t)(n * size));
}

#define EV_QPICK(mask, x, y) ((EV_FN(qf))(((mask) & (EV_FN(qi))(x)) | (~(mask) & (EV_FN(qi))(y))))

/* x within [lo, hi]; NaN becomes lo. */
static inline EV_FN(qf) EV_FN(qwithin)(EV_FN(qf) x, EV_FN(qf) lo, EV_FN(qf) hi)
{
#if defined(__AVX2__)
    return _mm256_min_ps(_mm256_max_ps(x, lo), hi); /* NaN: the second operand */
#else
    x = EV_QPICK(x > lo, x, lo);
    return EV_QPICK(x < hi, x, hi);
#endif
}

/* x clamped, rounded to nearest even (by adding 1.5 * 2^23, which leaves the integer in the low bits), plus zero, as
 * `type`; NaN becomes `least`. */
static inline __attribute__((always_inline)) void EV_FN(qstore)(EV_FN(qrow) x, int64_t n, const int type,
                                                                const float least, const float most, int32_t zero,
                                                                void *c)
{
    union {
        EV_FN(qi) v[EV_QV];
        EV_FN(qf) f[EV_QV];
        int32_t i[EV_QNR];
    } y;
    if (type == EV_FLOAT) {
        if (n == EV_QNR) {
            EV_EACH_QV ((EV_FN(qfu) *)c)[v] = x.v[v];
        } else {
            EV_EACH_QV y.f[v] = x.v[v];
            memcpy(c, &y, (size_t)n * 4);
        }
        return;
    }
    const EV_FN(qf) lo = least - (EV_FN(qf)){0}, hi = most - (EV_FN(qf)){0};
    EV_EACH_QV {
        y.v[v] = (EV_FN(qi))(EV_FN(qwithin)(x.v[v], lo, hi) + 0x1.8p23f) + (zero - 0x4b400000);
    }
#if defined(__AVX2__)
    const __m256i packed = _mm256_packs_epi32((__m256i)y.v[0], (__m256i)y.v[1]);
    const __m256i shorts = _mm256_permute4x64_epi64(packed, 0xd8);
    if (type == EV_INT16) {
        if (n == EV_QNR) _mm256_storeu_si256(c, shorts);
        else memcpy(c, &shorts, (size_t)n * 2);
        return;
    }
    const __m128i low = _mm256_castsi256_si128(shorts), high = _mm256_extracti128_si256(shorts, 1);
    const __m128i bytes = type == EV_UINT8 ? _mm_packus_epi16(low, high) : _mm_packs_epi16(low, high);
    if (n == EV_QNR) _mm_storeu_si128(c, bytes);
    else memcpy(c, &bytes, (size_t)n);
#else
    if (type == EV_INT16) {
        int16_t shorts[EV_QNR];
        for (int j = 0; j < EV_QNR; j++) shorts[j] = (int16_t)y.i[j];
        EV_FN(qcopy)(c, shorts, n, 2);
    } else {
        uint8_t bytes[EV_QNR];
        for (int j = 0; j < EV_QNR; j++) bytes[j] = (uint8_t)y.i[j];
        EV_FN(qcopy)(c, bytes, n, 1);
    }
#endif
}

/* Row i of the sums, with what is added, as floats times the scale. */
static inline __attribute__((always_inline)) EV_FN(qrow) EV_FN(qscaled)(
    const ev_sums *s, int64_t i, const int32_t *row, const int32_t *col, const float *row_scale, const float *col_scale)
{
    EV_FN(qrow) x;
    const EV_FN(qi) add = row[i] - (EV_FN(qi)){0};
    const EV_FN(qiu) *sum = (const EV_FN(qiu) *)(s->sum + i * EV_QNR);
    EV_EACH_QV {
        const EV_FN(qi) t = sum[v] + add + ((const EV_FN(qiu) *)col)[v];
#if defined(__AVX2__)
        x.v[v] = (EV_FN(qf))_mm256_cvtepi32_ps((__m256i)t);
#else
        x.v[v] = __builtin_convertvector(t, EV_FN(qf));
#endif
        if (row_scale) x.v[v] *= row_scale[i];
        else x.v[v] *= ((const EV_FN(qfu) *)col_scale)[v];
    }
    return x;
}

/* n numbers of a quantized residual, less its zero point; the others are anything. */
static inline __attribute__((always_inline)) EV_FN(qrow) EV_FN(qresidual)(const ev_requant *q, int64_t at, int64_t n)
{
    const int size = q->residual_type == EV_FLOAT ? 4 : q->residual_type == EV_INT16 ? 2 : 1;
    const char *from = (const char *)q->residual + at * size;
    char part[EV_QNR * 4] __attribute__((aligned(64)));
    EV_FN(qrow) z;
    if (n < EV_QNR) {
        memset(part, 0, sizeof part);
        memcpy(part, from, (size_t)(n * size));
        from = part;
    }
    if (q->residual_type == EV_FLOAT) {
        EV_EACH_QV z.v[v] = ((const EV_FN(qfu) *)from)[v];
        return z;
    }
    EV_FN(qi) r[EV_QV];
#if defined(__AVX2__)
    EV_EACH_QV {
        const __m128i bytes = _mm_loadl_epi64((const __m128i *)(from + v * 8 * size));
        if (q->residual_type == EV_UINT8) r[v] = (EV_FN(qi))_mm256_cvtepu8_epi32(bytes);
        else if (q->residual_type == EV_INT8) r[v] = (EV_FN(qi))_mm256_cvtepi8_epi32(bytes);
        else r[v] = (EV_FN(qi))_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(from + v * 16)));
        z.v[v] = (EV_FN(qf))_mm256_cvtepi32_ps((__m256i)(r[v] - q->residual_zero));
    }
#else
    for (int j = 0; j < EV_QNR; j++)
        ((int32_t *)r)[j] = q->residual_type == EV_UINT8  ? ((const uint8_t *)from)[j]
                            : q->residual_type == EV_INT8 ? ((const int8_t *)from)[j]
                                                          : ((const int16_t *)from)[j];
    EV_EACH_QV z.v[v] = __builtin_convertvector(r[v] - q->residual_zero, EV_FN(qf));
#endif
    EV_EACH_QV z.v[v] *= q->residual_scale;
    return z;
}

/* Rows whose results are one product each, clamped; or floats, to which a bias for each column and a residual are added. */
static inline __attribute__((always_inline)) void EV_FN(qfold_rows)(
    const ev_requant *q, const ev_sums *s, const int32_t *row, const int32_t *col, const float *row_scale,
    const float *col_scale, const float *col_bias, const float least, const float most, const int type, int64_t size)
{
    char *c = (char *)s->c + (s->i0 * s->ldc + s->j0) * size;
    const int32_t zero = q->y_zero;
    for (int64_t i = 0; i < s->m; i++, c += s->ldc * size) {
        EV_FN(qrow) x = EV_FN(qscaled)(s, i, row, col, row_scale, col_scale);
        if (type == EV_FLOAT) {
            EV_EACH_QV x.v[v] += ((const EV_FN(qfu) *)col_bias)[v];
            if (q->residual) {
                const EV_FN(qrow) z = EV_FN(qresidual)(q, (s->i0 + i) * q->ldr + s->j0, s->n);
                EV_EACH_QV x.v[v] += z.v[v];
            }
        }
        EV_FN(qstore)(x, s->n, type, least, most, zero, c);
    }
}

/* GELU for results of 8 bits (qgemm.h). NaN stays. */
static inline __attribute__((always_inline)) EV_FN(qrow) EV_FN(qgelu)(EV_FN(qrow) x)
{
    static const float p[] = EV_QGELU_TERMS;
    EV_EACH_QV {
        const EV_FN(qf) most = (EV_FN(qf)){0} + EV_QGELU_MOST, t = EV_FN(qwithin)(x.v[v], -most, most);
        /* By pairs of terms (Estrin), which wait for each other less than Horner's. */
        const EV_FN(qf) s = t * t, s2 = s * s, s4 = s2 * s2;
        const EV_FN(qf) low = (p[0] + p[1] * s) + (p[2] + p[3] * s) * s2, high = (p[4] + p[5] * s) + p[6] * s2;
        x.v[v] *= t * (low + high * s4) + 0.5f;
    }
    return x;
}

/* m rows from row i on, all at once: one row alone would wait for each step of the function. */
static void EV_FN(qactivate)(const ev_requant *q, int64_t i, int64_t m, float *x)
{
    const int64_t n = m * EV_QNR;
    switch (q->activation) {
    case EV_ACT_HARD_SIGMOID: /* these two as elsewhere, but not fused */
        for (int64_t j = 0; j < n; j++) {
            float y = q->a * x[j] + q->b;
            y = y < 0.0f ? 0.0f : y;
            x[j] = y > 1.0f ? 1.0f : y;
        }
        break;
    case EV_ACT_HARD_SWISH:
        for (int64_t j = 0; j < n; j++) {
            float y = x[j] / 6.0f + 0.5f;
            y = y < 0.0f ? 0.0f : y;
            x[j] *= y > 1.0f ? 1.0f : y;
        }
        break;
    case EV_ACT_PRELU:
        for (int64_t r = 0; r < m; r++, x += EV_QNR)
            EV_FN(unary_f32)(EV_ACT_LEAKY_RELU, EV_QNR, x, x, q->slope[i + r], 0.0f);
        break;
    default:
        EV_FN(unary_f32)(q->activation, n, x, x, q->a, q->b);
    }
}

/* Notes the range of n numbers of a row, times unit. */
static inline void EV_FN(qnote)(float *range, const float *r, int64_t n, float unit)
{
    float lo = r[0], hi = r[0];
    for (int64_t j = 1; j < n; j++) {
        lo = r[j] < lo ? r[j] : lo;
        hi = r[j] > hi ? r[j] : hi;
    }
    ev_widen(range, lo * unit, hi * unit);
}

/* Everything else, step by step. */
static void EV_FN(qchain_rows)(const ev_requant *q, const ev_sums *s, const int32_t *row, const int32_t *col,
                               const float *row_scale, const float *col_scale, const float *col_bias, int folds,
                               float least, float most, int64_t size)
{
    const float *bias = q->bias && q->bias_type == EV_FLOAT ? q->bias : NULL;
    const float inverse = 1.0f / q->y_scale;
    EV_FN(qrow) real[EV_QMC]; /* written by whole vectors: the parts of a copy would hold up who reads them */
    for (int64_t i = 0; i < s->m; i++) {
        EV_FN(qf) *x = real[i].v;
        if (s->wide) {
            for (int j = 0; j < EV_QNR; j++)
                ((float *)x)[j] = (float)(s->wide[i * EV_QNR + j] + row[i] + col[j]) * (row_scale ? row_scale[i] : col_scale[j]);
        } else {
            const EV_FN(qrow) scaled = EV_FN(qscaled)(s, i, row, col, row_scale, col_scale);
            EV_EACH_QV x[v] = scaled.v[v];
        }
        if (folds) continue;
        if (bias && q->bias_axis == EV_BIAS_ROW) EV_EACH_QV x[v] += bias[s->i0 + i];
        else if (bias) EV_EACH_QV x[v] += ((const EV_FN(qfu) *)col_bias)[v];
        if (q->residual) {
            const EV_FN(qrow) z = EV_FN(qresidual)(q, (s->i0 + i) * q->ldr + s->j0, s->n);
            EV_EACH_QV x[v] += z.v[v];
        }
        if (q->activation == EV_ACT_RELU) EV_EACH_QV x[v] = EV_QPICK(x[v] < 0.0f, (EV_FN(qf)){0}, x[v]); /* NaN stays */
    }
    const int gelu = q->activation == EV_ACT_GELU && size == 1;
    if (!folds && !gelu && q->activation != EV_ACT_NONE && q->activation != EV_ACT_RELU)
        EV_FN(qactivate)(q, s->i0, s->m, (float *)real);
    for (int64_t i = 0; i < s->m; i++) {
        char *c = (char *)s->c + ((s->i0 + i) * s->ldc + s->j0) * size;
        EV_FN(qrow) x;
        EV_EACH_QV x.v[v] = real[i].v[v];
        if (gelu) x = EV_FN(qgelu)(x);
        if (q->range) EV_FN(qnote)(q->range, (const float *)&x, s->n, folds ? q->y_scale : 1.0f);
        if (!folds && q->type != EV_FLOAT) EV_EACH_QV x.v[v] *= inverse;
        switch (q->type) {
        case EV_FLOAT: EV_FN(qstore)(x, s->n, EV_FLOAT, least, most, 0, c); break;
        case EV_INT16: EV_FN(qstore)(x, s->n, EV_INT16, least, most, q->y_zero, c); break;
        case EV_INT8: EV_FN(qstore)(x, s->n, EV_INT8, least, most, q->y_zero, c); break;
        default: EV_FN(qstore)(x, s->n, EV_UINT8, least, most, q->y_zero, c);
        }
    }
}

/* int32 results: C := beta*C + alpha*sum + bias. */
static void EV_FN(qraw_rows)(const ev_requant *q, const ev_sums *s, const int32_t *row, const int32_t *col)
{
    const int32_t alpha = q->alpha, beta = q->beta;
    for (int64_t i = 0; i < s->m; i++) {
        int32_t *c = (int32_t *)s->c + (s->i0 + i) * s->ldc + s->j0, y[EV_QNR];
        EV_FN(qiu) *to = (EV_FN(qiu) *)(s->n == EV_QNR ? c : y);
        const EV_FN(qi) add = row[i] - (EV_FN(qi)){0};
        if (s->wide)
            for (int j = 0; j < EV_QNR; j++) y[j] = (int32_t)s->wide[i * EV_QNR + j];
        const EV_FN(qiu) *sum = (const EV_FN(qiu) *)(s->wide ? y : s->sum + i * EV_QNR);
        if (beta && s->n == EV_QNR)
            EV_EACH_QV to[v] = sum[v] * alpha + add + ((const EV_FN(qiu) *)col)[v] + beta * to[v];
        else
            EV_EACH_QV to[v] = sum[v] * alpha + add + ((const EV_FN(qiu) *)col)[v];
        if (s->n == EV_QNR) continue;
        if (beta)
            for (int64_t j = 0; j < s->n; j++) y[j] += beta * c[j];
        memcpy(c, y, (size_t)s->n * 4);
    }
}

/* Of each column, one number. */
typedef union {
    EV_FN(qf) v[EV_QV];
    int32_t i[EV_QNR];
    float f[EV_QNR];
} EV_FN(qlane);

/* n of them; all by whole vectors, as the parts of a copy would hold up who reads them. */
static inline __attribute__((always_inline)) void EV_FN(qtake)(EV_FN(qlane) *to, const void *from, int64_t n)
{
    if (n == EV_QNR) EV_EACH_QV to->v[v] = ((const EV_FN(qfu) *)from)[v];
    else memcpy(to, from, (size_t)n * 4);
}

static void EV_FN(qfinish)(const ev_requant *q, const ev_sums *sums)
{
    ev_sums block = *sums, *s = &block;
    int32_t row[EV_QMC] = {0};
    const int whole = q->type == EV_INT32, biased = q->bias && q->bias_type == EV_INT32;
    const int32_t *bias = biased ? q->bias : NULL, alpha = whole ? q->alpha : 1;
    const int folds = EV_FN(qfolds)(q);
    const float divisor = folds ? q->y_scale : 1.0f;
    float row_scale[EV_QMC], least, most;
    if (s->row_add)
        for (int64_t i = 0; i < s->m; i++) row[i] = s->row_add[i] * alpha;
    if (biased && q->bias_axis == EV_BIAS_ROW)
        for (int64_t i = 0; i < s->m; i++) row[i] += bias[s->i0 + i];
    EV_FN(qlimits)(q, &least, &most);
    if (q->scale_axis == EV_BIAS_ROW)
        for (int64_t i = 0; i < s->m; i++) row_scale[i] = q->factor * q->scale[s->i0 + i] / divisor;
    const float *rows = q->scale_axis == EV_BIAS_ROW ? row_scale : NULL;
    const int64_t size = q->type == EV_FLOAT ? 4 : q->type == EV_INT16 ? 2 : 1;
    const int added = q->bias && !biased && q->bias_axis == EV_BIAS_COLUMN;
    const int plain = folds || (q->type == EV_FLOAT && (!q->bias || biased || added) && q->activation == EV_ACT_NONE);
    for (int64_t j = 0; j < sums->n; j += EV_QNR, s->j0 += EV_QNR, s->sum += EV_QNR) {
        EV_FN(qlane) col = {.i = {0}}, col_bias = col, col_scale = col;
        s->n = sums->n - j < EV_QNR ? sums->n - j : EV_QNR;
        if (biased && q->bias_axis == EV_BIAS_COLUMN) EV_FN(qtake)(&col, bias + s->j0, s->n);
        if (s->col_add)
            for (int64_t i = 0; i < EV_QNR; i++) col.i[i] += s->col_add[i] * alpha;
        if (whole) {
            EV_FN(qraw_rows)(q, s, row, col.i);
            continue;
        }
        if (added) EV_FN(qtake)(&col_bias, (const float *)q->bias + s->j0, s->n);
        if (q->scale_axis == EV_BIAS_COLUMN) EV_FN(qtake)(&col_scale, q->scale + s->j0, s->n);
        else EV_EACH_QV col_scale.v[v] += q->scale[0];
        EV_EACH_QV col_scale.v[v] = q->factor * col_scale.v[v] / divisor;
        if (s->wide || !plain || q->range)
            EV_FN(qchain_rows)(q, s, row, col.i, rows, col_scale.f, col_bias.f, folds, least, most, size);
#define FOLD(type, size) EV_FN(qfold_rows)(q, s, row, col.i, rows, col_scale.f, col_bias.f, least, most, type, size)
        else if (q->type == EV_FLOAT) FOLD(EV_FLOAT, 4);
        else if (q->type == EV_INT16) FOLD(EV_INT16, 2);
        else if (q->type == EV_INT8) FOLD(EV_INT8, 1);
        else FOLD(EV_UINT8, 1);
#undef FOLD
    }
}
#pragma GCC pop_options
