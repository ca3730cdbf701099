/* Quantized tensors, element by element: to and from float, sums and products of two, tables of 256 entries.
 *
 * Element types are EV_UINT8, EV_INT8, EV_UINT16 and EV_INT16. Every float operation is rounded by itself (EV_APART
 * keeps the compiler from fusing a multiplication with an addition), so results are the same on every instruction set.
 * Numbers are rounded to nearest even; NaN becomes the smallest integer. */
#include "qelementwise.h"

#ifdef __AVX2__
#define EV_QW 8
#else
#define EV_QW 4
#endif
#define EV_QB (2 * EV_QW) /* items of a block: the loops treat an incomplete one in a buffer */
typedef float EV_FN(ef) __attribute__((vector_size(4 * EV_QW), aligned(4), may_alias));
typedef int32_t EV_FN(ei) __attribute__((vector_size(4 * EV_QW), aligned(4), may_alias));

/* Makes v a number of its own, rounded to float32. */
#ifdef __aarch64__
#define EV_APART(v) __asm__("" : "+w"(v))
#else
#define EV_APART(v) __asm__("" : "+x"(v))
#endif

/* No integer type that is quantized to reaches it, and adding 1.5 * 2^23 to what does not rounds it. */
#define EV_QMOST 0x1p21f

EV_INLINE EV_FN(ef) EV_FN(q_allf)(float v) { return (EV_FN(ef)){0} + v; }
EV_INLINE EV_FN(ei) EV_FN(q_all)(int32_t v) { return (EV_FN(ei)){0} + v; }

/* Items i .. i + EV_QW - 1. */
EV_INLINE EV_FN(ei) EV_FN(q_load)(const int dtype, const void *x, int64_t i)
{
#ifdef __AVX2__
    const uint8_t *p = (const uint8_t *)x + i * (dtype == EV_UINT8 || dtype == EV_INT8 ? 1 : 2);
    switch (dtype) {
    case EV_UINT8: return (EV_FN(ei))_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    case EV_INT8: return (EV_FN(ei))_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
    case EV_UINT16: return (EV_FN(ei))_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    default: return (EV_FN(ei))_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)p));
    }
#else
    EV_FN(ei) v;
    for (int j = 0; j < EV_QW; j++)
        v[j] = dtype == EV_UINT8    ? ((const uint8_t *)x)[i + j]
               : dtype == EV_INT8   ? ((const int8_t *)x)[i + j]
               : dtype == EV_UINT16 ? ((const uint16_t *)x)[i + j]
                                    : ((const int16_t *)x)[i + j];
    return v;
#endif
}

EV_INLINE int32_t EV_FN(q_item)(const int dtype, const void *x, int64_t i)
{
    return dtype == EV_UINT8    ? ((const uint8_t *)x)[i]
           : dtype == EV_INT8   ? ((const int8_t *)x)[i]
           : dtype == EV_UINT16 ? ((const uint16_t *)x)[i]
                                : ((const int16_t *)x)[i];
}

/* Rounded; beyond EV_QMOST anything that saturates to the same side, NaN to the lower one. */
EV_INLINE EV_FN(ei) EV_FN(q_rint)(EV_FN(ef) v)
{
#ifdef __AVX2__
    return (EV_FN(ei))_mm256_cvtps_epi32(_mm256_min_ps(_mm256_set1_ps(EV_QMOST), (__m256)v));
#else
    const EV_FN(ef) most = EV_FN(q_allf)(EV_QMOST), magic = EV_FN(q_allf)(0x1.8p23f);
    const EV_FN(ei) low = v > -most;
    v = (EV_FN(ef))(((EV_FN(ei))v & low) | ((EV_FN(ei))-most & ~low));
    const EV_FN(ei) high = v < most;
    v = (EV_FN(ef))(((EV_FN(ei))v & high) | ((EV_FN(ei))most & ~high));
    v = v + magic;
    return (EV_FN(ei))v - 0x4b400000;
#endif
}

/* y[i ..] = a, then b, plus zero, clamped to [lo, hi]. */
EV_INLINE void EV_FN(q_store)(const int dtype, EV_FN(ei) a, EV_FN(ei) b, int32_t zero, int32_t lo, int32_t hi, void *y,
                              int64_t i)
{
#ifdef __AVX2__
    const __m256i p = (__m256i)a, q = (__m256i)b;
    if (dtype == EV_UINT8 || dtype == EV_INT8) {
        const __m128i z = _mm_set1_epi16((short)zero);
        const __m128i s = _mm_adds_epi16(_mm_packs_epi32(_mm256_castsi256_si128(p), _mm256_extracti128_si256(p, 1)), z);
        const __m128i t = _mm_adds_epi16(_mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1)), z);
        const __m128i l = _mm_set1_epi8((char)lo), h = _mm_set1_epi8((char)hi);
        __m128i v = dtype == EV_UINT8 ? _mm_packus_epi16(s, t) : _mm_packs_epi16(s, t);
        v = dtype == EV_UINT8 ? _mm_min_epu8(_mm_max_epu8(v, l), h) : _mm_min_epi8(_mm_max_epi8(v, l), h);
        _mm_storeu_si128((__m128i *)((uint8_t *)y + i), v);
        return;
    }
#endif
    for (int k = 0; k < 2; k++) {
        EV_FN(ei) v = k ? b : a;
        const EV_FN(ei) l = EV_FN(q_all)(lo - zero), h = EV_FN(q_all)(hi - zero);
#ifdef __AVX2__
        v = (EV_FN(ei))_mm256_min_epi32(_mm256_max_epi32((__m256i)v, (__m256i)l), (__m256i)h) + zero;
        const __m128i low = _mm256_castsi256_si128((__m256i)v), high = _mm256_extracti128_si256((__m256i)v, 1);
        const __m128i s = dtype == EV_UINT16 ? _mm_packus_epi32(low, high) : _mm_packs_epi32(low, high);
        _mm_storeu_si128((__m128i *)((uint16_t *)y + i) + k, s);
#else
        const EV_FN(ei) below = v < l, above = v > h;
        v = (l & below) | (v & ~below);
        v = ((h & above) | (v & ~above)) + zero;
        for (int j = 0; j < EV_QW; j++) {
            const int64_t at = i + k * EV_QW + j;
            if (dtype == EV_UINT8 || dtype == EV_INT8) ((uint8_t *)y)[at] = (uint8_t)v[j];
            else ((uint16_t *)y)[at] = (uint16_t)v[j];
        }
#endif
    }
}

EV_INLINE EV_FN(ef) EV_FN(q_float)(EV_FN(ei) v)
{
#ifdef __AVX2__
    return (EV_FN(ef))_mm256_cvtepi32_ps((__m256i)v);
#else
    return __builtin_convertvector(v, EV_FN(ef));
#endif
}

#define EV_QSIZE(dtype) ((dtype) == EV_UINT8 || (dtype) == EV_INT8 ? 1 : 2)

/* Calls CASE(dtype) with a constant. */
#define EV_QTYPES(dtype, CASE)           \
    switch (dtype) {                     \
    case EV_UINT8: CASE(EV_UINT8); break; \
    case EV_INT8: CASE(EV_INT8); break;   \
    case EV_UINT16: CASE(EV_UINT16); break; \
    case EV_INT16: CASE(EV_INT16); break; \
    }

/* To float ---------------------------------------------------------------------------------------------------- */

EV_INLINE void EV_FN(q_dequantize_rows)(const int dtype, const int each, int64_t n, const void *x, const float *scale,
                                        const void *zero, float *y)
{
    const EV_FN(ei) z0 = EV_FN(q_all)(EV_FN(q_item)(dtype, zero, 0));
    const EV_FN(ef) s0 = EV_FN(q_allf)(*scale);
    int64_t i = 0;
    for (; i + EV_QW <= n; i += EV_QW) {
        const EV_FN(ei) z = each ? EV_FN(q_load)(dtype, zero, i) : z0;
        const EV_FN(ef) s = each ? *(const EV_FN(ef) *)(scale + i) : s0;
        *(EV_FN(ef) *)(y + i) = EV_FN(q_float)(EV_FN(q_load)(dtype, x, i) - z) * s;
    }
    for (; i < n; i++) {
        const int64_t j = each ? i : 0;
        y[i] = (float)(EV_FN(q_item)(dtype, x, i) - EV_FN(q_item)(dtype, zero, j)) * scale[j];
    }
}

/* y = (x - zero) * scale; with `stride` 0 one scale and zero point serve all. */
static void EV_FN(q_dequantize)(int dtype, int64_t n, const void *x, const float *scale, const void *zero,
                                int64_t stride, float *y)
{
#define EV_CASE(T)                                                    \
    if (stride) EV_FN(q_dequantize_rows)(T, 1, n, x, scale, zero, y); \
    else EV_FN(q_dequantize_rows)(T, 0, n, x, scale, zero, y)
    EV_QTYPES(dtype, EV_CASE)
#undef EV_CASE
}

/* From float -------------------------------------------------------------------------------------------------- */

/* A block: x / scale (divide) or x * scale, rounded, plus zero; `each`: a scale and zero point for each item. */
EV_INLINE void EV_FN(q_quantize_block)(const int dtype, const int each, const int divide, const float *x,
                                       const float *scale, const void *zeros, int32_t zero, int32_t lo, int32_t hi,
                                       void *y)
{
    const EV_FN(ei) least = EV_FN(q_all)(-(int32_t)EV_QMOST);
    EV_FN(ei) q[2];
    for (int k = 0; k < 2; k++) {
        const EV_FN(ef) v = *(const EV_FN(ef) *)(x + k * EV_QW);
        const EV_FN(ef) s = each ? *(const EV_FN(ef) *)(scale + k * EV_QW) : EV_FN(q_allf)(*scale);
        q[k] = EV_FN(q_rint)(divide ? v / s : v * s);
        if (each) {
            const EV_FN(ei) below = q[k] < least;
            q[k] = ((least & below) | (q[k] & ~below)) + EV_FN(q_load)(dtype, zeros, k * EV_QW);
        }
    }
    EV_FN(q_store)(dtype, q[0], q[1], each ? 0 : zero, lo, hi, y, 0);
}

EV_INLINE void EV_FN(q_quantize_rows)(const int dtype, const int each, const int divide, int64_t n, const float *x,
                                      const float *scale, const void *zeros, int32_t zero, int32_t lo, int32_t hi,
                                      void *y)
{
    const int64_t size = EV_QSIZE(dtype);
    int64_t i = 0;
    for (; i + EV_QB <= n; i += EV_QB)
        EV_FN(q_quantize_block)(dtype, each, divide, x + i, each ? scale + i : scale, (const char *)zeros + i * size,
                                zero, lo, hi, (char *)y + i * size);
    if (i < n) {
        float bx[EV_QB] = {0}, bs[EV_QB];
        uint16_t bz[EV_QB] = {0}, by[EV_QB];
        const int m = (int)(n - i);
        memcpy(bx, x + i, (size_t)m * sizeof(float));
        for (int j = 0; j < EV_QB; j++) bs[j] = each && j < m ? scale[i + j] : *scale;
        if (each) memcpy(bz, (const char *)zeros + i * size, (size_t)(m * size));
        EV_FN(q_quantize_block)(dtype, each, divide, bx, bs, bz, zero, lo, hi, by);
        memcpy((char *)y + i * size, by, (size_t)(m * size));
    }
}

/* y = x / scale + zero, rounded and clamped to [lo, hi]; with `stride` 0 one scale and zero point serve all. */
static void EV_FN(q_quantize)(int dtype, int64_t n, const float *x, const float *scale, const void *zero,
                              int64_t stride, int32_t lo, int32_t hi, void *y)
{
#define EV_CASE(T)                                                                     \
    if (stride) EV_FN(q_quantize_rows)(T, 1, 1, n, x, scale, zero, 0, lo, hi, y);      \
    else EV_FN(q_quantize_rows)(T, 0, 1, n, x, scale, zero, EV_FN(q_item)(T, zero, 0), lo, hi, y)
    EV_QTYPES(dtype, EV_CASE)
#undef EV_CASE
}

/* y = x * factor + zero, rounded and clamped to [lo, hi]. */
static void EV_FN(q_round)(int dtype, int64_t n, const float *x, float factor, int32_t zero, int32_t lo, int32_t hi,
                           void *y)
{
#define EV_CASE(T) EV_FN(q_quantize_rows)(T, 0, 0, n, x, &factor, y, zero, lo, hi, y)
    EV_QTYPES(dtype, EV_CASE)
#undef EV_CASE
}

/* Two operands ------------------------------------------------------------------------------------------------- */

EV_INLINE EV_FN(ef) EV_FN(q_combine)(const int op, EV_FN(ef) a, EV_FN(ef) b, EV_FN(ef) scale_a, EV_FN(ef) scale_b)
{
    if (op == EV_QMUL) return a * b * scale_a;
    EV_FN(ef) p = a * scale_a, q = b * scale_b;
    EV_APART(p);
    EV_APART(q);
    return p + q;
}

EV_INLINE void EV_FN(q_binary_block)(const int dtype, const int op, const void *a, const int sa, const void *b,
                                     const int sb, const ev_qbinary *p, void *y)
{
    const EV_FN(ef) scale_a = EV_FN(q_allf)(p->scale_a), scale_b = EV_FN(q_allf)(p->scale_b);
    EV_FN(ei) q[2];
    for (int k = 0; k < 2; k++) {
        const EV_FN(ei) va = sa ? EV_FN(q_load)(dtype, a, k * EV_QW) : EV_FN(q_all)(EV_FN(q_item)(dtype, a, 0));
        const EV_FN(ei) vb = sb ? EV_FN(q_load)(dtype, b, k * EV_QW) : EV_FN(q_all)(EV_FN(q_item)(dtype, b, 0));
        q[k] = EV_FN(q_rint)(EV_FN(q_combine)(op, EV_FN(q_float)(va - p->zero_a), EV_FN(q_float)(vb - p->zero_b),
                                              scale_a, scale_b));
    }
    EV_FN(q_store)(dtype, q[0], q[1], p->zero, p->lo, p->hi, y, 0);
}

EV_INLINE void EV_FN(q_binary_rows)(const int dtype, const int op, int64_t n, const uint8_t *a, const int sa,
                                    const uint8_t *b, const int sb, const ev_qbinary *given, uint8_t *y)
{
    const ev_qbinary p = *given;
    int64_t i = 0;
    for (; i + EV_QB <= n; i += EV_QB)
        EV_FN(q_binary_block)(dtype, op, a + i * sa, sa, b + i * sb, sb, &p, y + i);
    if (i < n) {
        uint8_t ba[EV_QB] = {0}, bb[EV_QB] = {0}, by[EV_QB];
        memcpy(ba, a + i * sa, sa ? (size_t)(n - i) : 1);
        memcpy(bb, b + i * sb, sb ? (size_t)(n - i) : 1);
        EV_FN(q_binary_block)(dtype, op, ba, sa, bb, sb, &p, by);
        memcpy(y + i, by, (size_t)(n - i));
    }
}

/* Tensors of 8 bits; a and b advance by sa and sb, 0 or 1. y may be a or b. */
static void EV_FN(q_binary)(int dtype, int op, int64_t n, const void *a, int64_t sa, const void *b, int64_t sb,
                            const ev_qbinary *p, void *y)
{
#define EV_STRIDES(T, OP)                                               \
    if (sa && sb) EV_FN(q_binary_rows)(T, OP, n, a, 1, b, 1, p, y);     \
    else if (sa) EV_FN(q_binary_rows)(T, OP, n, a, 1, b, 0, p, y);      \
    else if (sb) EV_FN(q_binary_rows)(T, OP, n, a, 0, b, 1, p, y);      \
    else EV_FN(q_binary_rows)(T, OP, n, a, 0, b, 0, p, y)
    if (dtype == EV_UINT8) {
        if (op == EV_QADD) { EV_STRIDES(EV_UINT8, EV_QADD); } else { EV_STRIDES(EV_UINT8, EV_QMUL); }
    } else {
        if (op == EV_QADD) { EV_STRIDES(EV_INT8, EV_QADD); } else { EV_STRIDES(EV_INT8, EV_QMUL); }
    }
#undef EV_STRIDES
}

/* y = a * scale_a + b * scale_b, or a * b * scale_a, for numbers that are float32 already. y may be a or b. */
static void EV_FN(q_combine_f32)(int op, int64_t n, const float *a, const float *b, float scale_a, float scale_b,
                                 float *y)
{
    const EV_FN(ef) ra = EV_FN(q_allf)(scale_a), rb = EV_FN(q_allf)(scale_b);
    int64_t i = 0;
    for (; i + EV_QW <= n; i += EV_QW)
        *(EV_FN(ef) *)(y + i) = EV_FN(q_combine)(op, *(const EV_FN(ef) *)(a + i), *(const EV_FN(ef) *)(b + i), ra, rb);
    for (; i < n; i++) {
        float p = op == EV_QMUL ? a[i] * b[i] : a[i] * scale_a, q = b[i] * scale_b;
        EV_APART(p);
        EV_APART(q);
        y[i] = op == EV_QMUL ? p * scale_a : p + q;
    }
}

/* Tables ------------------------------------------------------------------------------------------------------- */

/* y = table[x], entries of `size` bytes: 1, 2 or 4. y may be x where size is 1. */
static void EV_FN(q_lookup)(int64_t size, int64_t n, const uint8_t *x, const void *table, void *y)
{
    int64_t i = 0;
    if (size == 4) {
        for (; i < n; i++) ((uint32_t *)y)[i] = ((const uint32_t *)table)[x[i]];
    } else if (size == 2) {
        for (; i < n; i++) ((uint16_t *)y)[i] = ((const uint16_t *)table)[x[i]];
    } else {
#ifdef __AVX2__
        /* Sixteen tables of sixteen entries, all looked up by the lower half of x; its upper bits, one after the
         * other at the top of each byte, choose between pairs. */
        if (n >= 64) {
            __m256i part[16];
            for (int k = 0; k < 16; k++)
                part[k] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table + k));
            const __m256i lower = _mm256_set1_epi8(15);
            for (; i + 32 <= n; i += 32) {
                const __m256i v = _mm256_loadu_si256((const __m256i *)(x + i)), at = _mm256_and_si256(v, lower);
                const __m256i b4 = _mm256_slli_epi16(v, 3), b5 = _mm256_slli_epi16(v, 2), b6 = _mm256_slli_epi16(v, 1);
                __m256i half[2];
                for (int h = 0; h < 2; h++) {
                    __m256i quarter[2];
                    for (int k = 0; k < 2; k++) {
                        const __m256i *t = part + 8 * h + 4 * k;
                        __m256i e[4];
                        for (int j = 0; j < 4; j++) e[j] = _mm256_shuffle_epi8(t[j], at);
                        quarter[k] = _mm256_blendv_epi8(_mm256_blendv_epi8(e[0], e[1], b4),
                                                        _mm256_blendv_epi8(e[2], e[3], b4), b5);
                    }
                    half[h] = _mm256_blendv_epi8(quarter[0], quarter[1], b6);
                }
                _mm256_storeu_si256((__m256i *)((uint8_t *)y + i), _mm256_blendv_epi8(half[0], half[1], v));
            }
        }
#endif
        for (; i < n; i++) ((uint8_t *)y)[i] = ((const uint8_t *)table)[x[i]];
    }
}

/* Sums ---------------------------------------------------------------------------------------------------------- */

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

/* sum[j] += the j-th byte of each of `rows` rows, `step` bytes apart. */
static void EV_FN(q_sum_cols)(int dtype, int64_t rows, int64_t step, int64_t n, const void *x, int32_t *sum)
{
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t *p = (const uint8_t *)x + r * step;
        if (dtype == EV_UINT8)
            for (int64_t j = 0; j < n; j++) sum[j] += p[j];
        else
            for (int64_t j = 0; j < n; j++) sum[j] += (int8_t)p[j];
    }
}

/* y = ((x - mean) * inverse) * scale[j] + bias[j]; y may be x. */
static void EV_FN(q_affine_f32)(int64_t n, const float *x, float mean, float inverse, const float *scale,
                                const float *bias, float *y)
{
    const EV_FN(ef) m = EV_FN(q_allf)(mean), s = EV_FN(q_allf)(inverse);
    int64_t i = 0;
    for (; i + EV_QW <= n; i += EV_QW) {
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
        const EV_FN(ef) c = EV_FN(q_float)(EV_FN(q_load)(dtype, x, k * EV_QW) - zero);
        EV_FN(ef) v = (c - mean) * inverse * *(const EV_FN(ef) *)(scale + k * EV_QW);
        EV_APART(v);
        q[k] = EV_FN(q_rint)(v + *(const EV_FN(ef) *)(bias + k * EV_QW));
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
        uint8_t bx[EV_QB] = {0}, by[EV_QB];
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

/* Interpolation ------------------------------------------------------------------------------------------------- */

/* One line resampled: y[o][j] = the sum over k < taps of w[o * taps + k] * x[first[o] + k][j], j < inner, added up in
 * the order of k. */
static void EV_FN(q_line_f32)(int64_t n, int64_t taps, int64_t inner, const float *restrict x, const int64_t *first,
                              const float *w, float *restrict y)
{
    if (inner == 1 && taps == 2) {
        int64_t o = 0;
#ifdef __SSE3__
        for (; o + 4 <= n; o += 4) {
            __m128 a = _mm_setzero_ps(), b = a;
            a = _mm_loadh_pi(_mm_loadl_pi(a, (const __m64 *)(x + first[o])), (const __m64 *)(x + first[o + 1]));
            b = _mm_loadh_pi(_mm_loadl_pi(b, (const __m64 *)(x + first[o + 2])), (const __m64 *)(x + first[o + 3]));
            _mm_storeu_ps(y + o, _mm_hadd_ps(_mm_mul_ps(a, _mm_loadu_ps(w + 2 * o)),
                                             _mm_mul_ps(b, _mm_loadu_ps(w + 2 * o + 4))));
        }
#endif
        for (; o < n; o++) {
            float p = x[first[o]] * w[2 * o], q = x[first[o] + 1] * w[2 * o + 1];
            EV_APART(p);
            EV_APART(q);
            y[o] = p + q;
        }
        return;
    }
    for (int64_t o = 0; o < n; o++)
        for (int64_t k = 0; k < taps; k++) {
            const float *a = x + (first[o] + k) * inner;
            const float u = w[o * taps + k];
            int64_t j = 0;
            for (; j + EV_QW <= inner; j += EV_QW) {
                EV_FN(ef) *sum = (EV_FN(ef) *)(y + o * inner + j), p = *(const EV_FN(ef) *)(a + j) * EV_FN(q_allf)(u);
                EV_APART(p);
                if (k) p = *sum + p;
                *sum = p;
            }
            for (; j < inner; j++) {
                float p = a[j] * u;
                EV_APART(p);
                y[o * inner + j] = k ? y[o * inner + j] + p : p;
            }
        }
}

typedef float EV_FN(q4) __attribute__((vector_size(16), aligned(4), may_alias));

/* n colours through a three-dimensional table of 4 interleaved channels: y[4 * i ..] is blended from the 8 corners
 * around place[a][index[a][i]] on every axis a (place[a][i] without an index). Axis by axis, from the last. */
static void EV_FN(q_colours)(int64_t n, const float *table, const ev_place *const *place, const uint8_t *const *index,
                             float *y)
{
    const char *t = (const char *)table;
    for (int64_t i = 0; i < n; i++) {
        const ev_place *p[3];
        for (int a = 0; a < 3; a++) p[a] = place[a] + (index ? index[a][i] : i);
        EV_FN(q4) v[8];
        for (int k = 0; k < 8; k++)
            v[k] = *(const EV_FN(q4) *)(t + (k & 4 ? p[0]->next : p[0]->at) + (k & 2 ? p[1]->next : p[1]->at) +
                                        (k & 1 ? p[2]->next : p[2]->at));
        for (int a = 2, m = 4; a >= 0; a--, m /= 2) {
            const EV_FN(q4) w = (EV_FN(q4)){0} + p[a]->part;
            for (int k = 0; k < m; k++) {
                EV_FN(q4) d = (v[2 * k + 1] - v[2 * k]) * w;
                EV_APART(d);
                v[k] = v[2 * k] + d;
            }
        }
        ((EV_FN(q4) *)y)[i] = v[0];
    }
}

/* Where x[i] / step lies among `size` elements `stride` bytes apart; beyond the borders it is the border, NaN the
 * first. */
static void EV_FN(q_places)(int64_t n, const float *x, float step, int64_t size, int64_t stride, ev_place *place)
{
    const float last = (float)(size - 1);
    for (int64_t i = 0; i < n; i++) {
        float v = x[i] / step;
        v = v > 0.0f ? v : 0.0f;
        v = v < last ? v : last;
        const int32_t below = (int32_t)v;
        place[i].at = below * (int32_t)stride;
        place[i].next = (below < size - 1 ? below + 1 : below) * (int32_t)stride;
        place[i].part = v - (float)below;
    }
}

#undef EV_QTYPES
#undef EV_QSIZE
