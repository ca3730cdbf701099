/* Between float32 and bytes with AVX-512, 16 numbers at a time: what follows the sums of a quantized product (qfinish of
 * requant_body.h), rows of A that are quantized as they are packed (qquad_rows of qpack_body.h), and images (qc_stage of
 * qconv_body.h). The same bits as there; what is rare is left to AVX2's. */
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")

#include "requant_limits_body.h"

/* As qgelu. */
static inline __attribute__((always_inline)) __m512 EV_FN(qgelu)(__m512 x)
{
    static const float terms[] = EV_QGELU_TERMS;
    __m512 p[7];
#pragma GCC unroll 7
    for (int i = 0; i < 7; i++) p[i] = _mm512_set1_ps(terms[i]);
    const __m512 most = _mm512_set1_ps(EV_QGELU_MOST), least = _mm512_set1_ps(-EV_QGELU_MOST);
    const __m512 t = _mm512_min_ps(_mm512_max_ps(x, least), most), s = t * t, s2 = s * s, s4 = s2 * s2;
    const __m512 low = (p[0] + p[1] * s) + (p[2] + p[3] * s) * s2, high = (p[4] + p[5] * s) + p[6] * s2;
    return x * (t * (low + high * s4) + _mm512_set1_ps(0.5f));
}

/* As qresidual: of 16 numbers those that are there. */
static inline __m512 EV_FN(qresidual)(const ev_requant *q, int64_t at, __mmask16 there)
{
    if (q->residual_type == EV_FLOAT) return _mm512_maskz_loadu_ps(there, (const float *)q->residual + at);
    const __m512i z = q->residual_type == EV_INT16
                          ? _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(there, (const int16_t *)q->residual + at))
                      : q->residual_type == EV_INT8
                          ? _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(there, (const int8_t *)q->residual + at))
                          : _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(there, (const uint8_t *)q->residual + at));
    const __m512i centred = _mm512_sub_epi32(z, _mm512_set1_epi32(q->residual_zero));
    return _mm512_cvtepi32_ps(centred) * _mm512_set1_ps(q->residual_scale);
}

/* n <= 16 columns. raw: of int32. */
static inline __attribute__((always_inline)) void EV_FN(qfinish_columns)(const ev_requant *q, const ev_sums *s,
                                                                         const float least, const float most,
                                                                         const int raw, const int folds, const int gelu)
{
    const __mmask16 there = (__mmask16)((1u << s->n) - 1);
    const int whole_bias = q->bias && q->bias_type == EV_INT32, bias_rows = whole_bias && q->bias_axis == EV_BIAS_ROW;
    const int64_t size = raw || q->type == EV_FLOAT ? 4 : q->type == EV_INT16 ? 2 : 1;
    const int32_t alpha = raw ? q->alpha : 1;
    const float divisor = folds ? q->y_scale : 1.0f;
    __m512i col = s->col_add ? _mm512_loadu_si512(s->col_add) : _mm512_setzero_si512();
    if (raw) col = _mm512_mullo_epi32(col, _mm512_set1_epi32(alpha));
    if (whole_bias && !bias_rows)
        col = _mm512_add_epi32(col, _mm512_maskz_loadu_epi32(there, (const int32_t *)q->bias + s->j0));
    __m512 bias = _mm512_setzero_ps(), scale = bias, inverse = bias;
    if (!raw) {
        if (q->bias && !whole_bias) bias = _mm512_maskz_loadu_ps(there, (const float *)q->bias + s->j0);
        if (q->scale_axis == EV_BIAS_COLUMN) scale = _mm512_maskz_loadu_ps(there, q->scale + s->j0);
        else scale = _mm512_set1_ps(q->scale[0]);
        scale = _mm512_set1_ps(q->factor) * scale / _mm512_set1_ps(divisor);
        inverse = _mm512_set1_ps(1.0f / q->y_scale);
    }
    const __m512i zero = _mm512_set1_epi32(q->y_zero);
    char *c = (char *)s->c + (s->i0 * s->ldc + s->j0) * size;
    for (int64_t i = 0; i < s->m; i++, c += s->ldc * size) {
        const int32_t row = (s->row_add ? s->row_add[i] * alpha : 0) + (bias_rows ? ((const int32_t *)q->bias)[s->i0 + i] : 0);
        __m512i sum = _mm512_loadu_si512(s->sum + i * EV_QNR);
        if (raw && alpha != 1) sum = _mm512_mullo_epi32(sum, _mm512_set1_epi32(alpha));
        sum = _mm512_add_epi32(_mm512_add_epi32(sum, _mm512_set1_epi32(row)), col);
        if (raw) {
            if (q->beta) {
                const __m512i was = _mm512_maskz_loadu_epi32(there, c);
                sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(was, _mm512_set1_epi32(q->beta)));
            }
            _mm512_mask_storeu_epi32(c, there, sum);
            continue;
        }
        if (q->scale_axis == EV_BIAS_ROW) scale = _mm512_set1_ps(q->factor * q->scale[s->i0 + i] / divisor);
        __m512 x = _mm512_cvtepi32_ps(sum) * scale;
        if (!folds) {
            x += bias;
            if (q->residual) x += EV_FN(qresidual)(q, (s->i0 + i) * q->ldr + s->j0, there);
            if (q->activation == EV_ACT_RELU) x = _mm512_max_ps(_mm512_setzero_ps(), x); /* NaN: the second operand */
            if (gelu) x = EV_FN(qgelu)(x);
            if (q->type == EV_FLOAT) {
                _mm512_mask_storeu_ps(c, there, x);
                continue;
            }
            x *= inverse;
        }
        x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(least)), _mm512_set1_ps(most));
        const __m512i y = _mm512_add_epi32(_mm512_cvtps_epi32(x), zero);
        if (size == 2) _mm256_mask_storeu_epi16(c, there, _mm512_cvtepi32_epi16(y));
        else if (there == 0xffff) _mm_storeu_si128((__m128i *)c, _mm512_cvtepi32_epi8(y));
        else _mm_mask_storeu_epi8(c, there, _mm512_cvtepi32_epi8(y));
    }
}

static void EV_FN(qfinish)(const ev_requant *q, const ev_sums *s)
{
    const int raw = q->type == EV_INT32, folds = EV_FN(qfolds)(q), gelu = q->activation == EV_ACT_GELU && q->type != EV_INT16;
    const int simple = q->activation == EV_ACT_NONE || (q->type != EV_FLOAT && (q->activation == EV_ACT_RELU || gelu));
    const int rows = q->bias && q->bias_type == EV_FLOAT && q->bias_axis == EV_BIAS_ROW;
    if (s->wide || !(raw || (!q->range && !rows && (folds || simple)))) {
        ev_ukr_table__avx2.qfinish(q, s);
        return;
    }
    float least = 0.0f, most = 0.0f;
    if (!raw) EV_FN(qlimits)(q, &least, &most);
    ev_sums part = *s;
    for (int64_t j = 0; j < s->n; j += EV_QNR, part.j0 += EV_QNR, part.sum += EV_QNR) {
        part.n = s->n - j < EV_QNR ? s->n - j : EV_QNR;
        if (raw) EV_FN(qfinish_columns)(q, &part, least, most, 1, 0, 0);
        else if (folds) EV_FN(qfinish_columns)(q, &part, least, most, 0, 1, 0);
        else if (gelu) EV_FN(qfinish_columns)(q, &part, least, most, 0, 0, 1);
        else EV_FN(qfinish_columns)(q, &part, least, most, 0, 0, 0);
    }
}
#pragma GCC pop_options

/* x / scale, rounded to nearest even within [least, most] (NaN: least), plus zero. Multiplied by the inverse, x is less
 * than 2^-14 off the quotient, so that both round alike but near the middle between two integers. */
static inline __m128i EV_FN(qbytes_16)(__m512 x, __m512 scale, __m512 inverse, __m512 least, __m512 most, __m512i zero)
{
    __m512 t = _mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(x, inverse), least), most);
    const __m512 off = _mm512_abs_ps(_mm512_reduce_ps(t, _MM_FROUND_TO_NEAREST_INT));
    if (__builtin_expect(_mm512_cmp_ps_mask(off, _mm512_set1_ps(0.5f - 0x1p-13f), _CMP_GT_OQ), 0))
        t = _mm512_min_ps(_mm512_max_ps(_mm512_div_ps(x, scale), least), most);
    return _mm512_cvtepi32_epi8(_mm512_add_epi32(_mm512_cvtps_epi32(t), zero));
}

/* Images of float32 as bytes, where they lie side by side. */
static void EV_FN(qc_stage)(int type, int64_t n, int64_t step, const void *src, const void *params, void *dst)
{
    const float *x = src, *p = params;
    if (type != EV_FLOAT || step != 1 || p[4] == 2 || p[4] == 4 || !(p[0] > 0x1p-100f && p[0] < 0x1p100f)) {
        ev_ukr_table__avx2.qc_stage(type, n, step, src, params, dst);
        return;
    }
    const __m512 scale = _mm512_set1_ps(p[0]), inverse = _mm512_set1_ps(1.0f / p[0]);
    const __m512 least = _mm512_set1_ps(p[2] - p[1]), most = _mm512_set1_ps(p[3] - p[1]);
    const __m512i zero = _mm512_set1_epi32((int32_t)p[1]);
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 there = (__mmask16)(n - i >= 16 ? 0xffff : (1u << (n - i)) - 1);
        const __m128i bytes = EV_FN(qbytes_16)(_mm512_maskz_loadu_ps(there, x + i), scale, inverse, least, most, zero);
        if (n - i >= 16) _mm_storeu_si128((__m128i *)((uint8_t *)dst + i), bytes);
        else _mm_mask_storeu_epi8((uint8_t *)dst + i, there, bytes);
    }
}

static void EV_FN(qquad_rows)(const ev_qoperand *a, int64_t i0, int64_t m, int64_t p0, int64_t k, int flip, uint8_t *dst)
{
    if (a->type != EV_FLOAT || a->cs != 1 || !(a->scale > 0x1p-100f && a->scale < 0x1p100f)) {
        ev_ukr_table__avx2.qquad_rows(a, i0, m, p0, k, flip, dst);
        return;
    }
    const __m512 scale = _mm512_set1_ps(a->scale), inverse = _mm512_set1_ps(1.0f / a->scale);
    const int is_signed = a->as_type == EV_INT8;
    const int64_t length = (k + 3) / 4 * 4;
    for (int64_t i = i0; i < i0 + m; i++, dst += length) {
        const float *src = (const float *)a->data + i * a->rs + p0;
        const int64_t at = i * a->zero_step;
        const int32_t z = !a->zero ? 0 : is_signed ? ((const int8_t *)a->zero)[at] : ((const uint8_t *)a->zero)[at];
        const __m512 least = _mm512_set1_ps((float)((is_signed ? -128 : 0) - z));
        const __m512 most = _mm512_set1_ps((float)((is_signed ? 127 : 255) - z));
        const __m512i zero = _mm512_set1_epi32(z + flip);
        int64_t p = 0;
        for (; p + 16 <= k; p += 16) {
            const __m512 x = _mm512_loadu_ps(src + p);
            _mm_storeu_si128((__m128i *)(dst + p), EV_FN(qbytes_16)(x, scale, inverse, least, most, zero));
        }
        if (p == k) continue;
        const __mmask16 there = (__mmask16)((1u << (k - p)) - 1), kept = (__mmask16)((1u << (length - p)) - 1);
        const __m512 x = _mm512_maskz_loadu_ps(there, src + p);
        const __m128i bytes = EV_FN(qbytes_16)(x, scale, inverse, least, most, zero);
        _mm_mask_storeu_epi8(dst + p, kept, _mm_maskz_mov_epi8(there, bytes));
    }
}
