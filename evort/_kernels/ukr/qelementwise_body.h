/* Quantized tensors, element by element: to and from float, sums and products of two, tables of 256 entries.
 *
 * Element types are EV_UINT8, EV_INT8, EV_UINT16 and EV_INT16. Every float operation is rounded by itself (EV_APART
 * keeps the compiler from fusing a multiplication with an addition), so results are the same on every instruction set.
 * Numbers are rounded to nearest even; NaN becomes the smallest integer. */
#include "qelementwise.h"

#ifdef __AVX2__
#define EV_EW 8
#else
#define EV_EW 4
#endif
#define EV_QB (2 * EV_EW) /* items of a block: the loops treat an incomplete one in a buffer */
typedef float EV_FN(ef) __attribute__((vector_size(4 * EV_EW), aligned(4), may_alias));
typedef int32_t EV_FN(ei) __attribute__((vector_size(4 * EV_EW), aligned(4), may_alias));

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

/* Items i .. i + EV_EW - 1. */
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
#elif defined(__aarch64__)
    const int size = dtype == EV_UINT8 || dtype == EV_INT8 ? 1 : 2;
    uint64_t items = 0;
    memcpy(&items, (const uint8_t *)x + i * size, 4 * size);
    const uint8x8_t bytes = vcreate_u8(items);
    switch (dtype) {
    case EV_UINT8: return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))));
    case EV_INT8: return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(bytes))));
    case EV_UINT16: return vreinterpretq_s32_u32(vmovl_u16(vreinterpret_u16_u8(bytes)));
    default: return vmovl_s16(vreinterpret_s16_u8(bytes));
    }
#else
    EV_FN(ei) v;
    for (int j = 0; j < EV_EW; j++)
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
#elif defined(__aarch64__)
    return vcvtnq_s32_f32(vminq_f32(vmaxnmq_f32(v, vdupq_n_f32(-EV_QMOST)), vdupq_n_f32(EV_QMOST)));
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
#elif defined(__aarch64__)
    if (dtype == EV_UINT8 || dtype == EV_INT8) {
        const int16x8_t v = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(a), b), vdupq_n_s16((int16_t)zero));
        if (dtype == EV_UINT8)
            vst1_u8((uint8_t *)y + i, vmin_u8(vmax_u8(vqmovun_s16(v), vdup_n_u8((uint8_t)lo)), vdup_n_u8((uint8_t)hi)));
        else
            vst1_s8((int8_t *)y + i, vmin_s8(vmax_s8(vqmovn_s16(v), vdup_n_s8((int8_t)lo)), vdup_n_s8((int8_t)hi)));
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
        for (int j = 0; j < EV_EW; j++) {
            const int64_t at = i + k * EV_EW + j;
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
    for (; i + EV_EW <= n; i += EV_EW) {
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
        const EV_FN(ef) v = *(const EV_FN(ef) *)(x + k * EV_EW);
        const EV_FN(ef) s = each ? *(const EV_FN(ef) *)(scale + k * EV_EW) : EV_FN(q_allf)(*scale);
        q[k] = EV_FN(q_rint)(divide ? v / s : v * s);
        if (each) {
            const EV_FN(ei) below = q[k] < least;
            q[k] = ((least & below) | (q[k] & ~below)) + EV_FN(q_load)(dtype, zeros, k * EV_EW);
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
        const EV_FN(ei) va = sa ? EV_FN(q_load)(dtype, a, k * EV_EW) : EV_FN(q_all)(EV_FN(q_item)(dtype, a, 0));
        const EV_FN(ei) vb = sb ? EV_FN(q_load)(dtype, b, k * EV_EW) : EV_FN(q_all)(EV_FN(q_item)(dtype, b, 0));
        q[k] = EV_FN(q_rint)(EV_FN(q_combine)(op, EV_FN(q_float)(va - p->zero_a), EV_FN(q_float)(vb - p->zero_b),
                                              scale_a, scale_b));
    }
    EV_FN(q_store)(dtype, q[0], q[1], p->zero, p->lo, p->hi, y, 0);
}

#ifdef __AVX2__
/* Eight products, rounded. */
EV_INLINE __m256i EV_FN(q_product)(__m256i whole, float scale)
{
    return (__m256i)EV_FN(q_rint)((EV_FN(ef))_mm256_cvtepi32_ps(whole) * scale);
}

/* 32 products of bytes; flip: 0x80 for int8, which then counts from -128. Factors less their zero points have 16 bits, their
 * products two halves of so many; all stays in its half of a vector. */
EV_INLINE __m256i EV_FN(q_products)(__m256i a, __m256i b, const ev_qbinary *p, const int flip)
{
    const __m256i none = _mm256_setzero_si256(), f = _mm256_set1_epi8((char)flip);
    const __m256i za = _mm256_set1_epi16((short)(p->zero_a + flip)), zb = _mm256_set1_epi16((short)(p->zero_b + flip));
    __m256i y[2];
    a = _mm256_xor_si256(a, f), b = _mm256_xor_si256(b, f);
    for (int h = 0; h < 2; h++) {
        const __m256i u = _mm256_sub_epi16(h ? _mm256_unpackhi_epi8(a, none) : _mm256_unpacklo_epi8(a, none), za);
        const __m256i v = _mm256_sub_epi16(h ? _mm256_unpackhi_epi8(b, none) : _mm256_unpacklo_epi8(b, none), zb);
        const __m256i low = _mm256_mullo_epi16(u, v), high = _mm256_mulhi_epi16(u, v);
        const __m256i q = EV_FN(q_product)(_mm256_unpacklo_epi16(low, high), p->scale_a);
        const __m256i r = EV_FN(q_product)(_mm256_unpackhi_epi16(low, high), p->scale_a);
        y[h] = _mm256_adds_epi16(_mm256_packs_epi32(q, r), _mm256_set1_epi16((short)p->zero));
    }
    const __m256i lo = _mm256_set1_epi8((char)p->lo), hi = _mm256_set1_epi8((char)p->hi);
    return flip ? _mm256_min_epi8(_mm256_max_epi8(_mm256_packs_epi16(y[0], y[1]), lo), hi)
                : _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(y[0], y[1]), lo), hi);
}

/* y = a * b for tensors of 8 bits, as q_binary. */
EV_INLINE void EV_FN(q_multiply)(const int flip, int64_t n, const uint8_t *a, int64_t sa, const uint8_t *b, int64_t sb,
                                 const ev_qbinary *given, uint8_t *y)
{
    enum { STEP = 32 };
    const ev_qbinary p = *given;
    uint8_t ends[2][STEP], same[2][STEP];
    int64_t i = 0;
    if (!sa) a = memset(same[0], *a, STEP);
    if (!sb) b = memset(same[1], *b, STEP);
#define EV_PRODUCTS(a, b) \
    EV_FN(q_products)(_mm256_loadu_si256((const __m256i *)(a)), _mm256_loadu_si256((const __m256i *)(b)), &p, flip)
    const int64_t left = n % STEP; /* of the last ones, a copy: before y, which may be a or b, is written */
    memcpy(ends[0], sa ? a + n - left : a, (size_t)left);
    memcpy(ends[1], sb ? b + n - left : b, (size_t)left);
    for (; i + STEP <= n; i += STEP) _mm256_storeu_si256((__m256i *)(y + i), EV_PRODUCTS(a + i * sa, b + i * sb));
    if (!left) return;
    _mm256_storeu_si256((__m256i *)ends[0], EV_PRODUCTS(ends[0], ends[1]));
    memcpy(y + i, ends[0], (size_t)left);
#undef EV_PRODUCTS
}
#endif

EV_INLINE void EV_FN(q_binary_rows)(const int dtype, const int op, int64_t n, const uint8_t *a, const int sa,
                                    const uint8_t *b, const int sb, const ev_qbinary *given, uint8_t *y)
{
    const ev_qbinary p = *given;
    const int64_t last = n - EV_QB;
    int64_t i = 0;
    uint8_t end[EV_QB]; /* the last ones, some of them again: before y, which may be a or b, is written */
    if (last > 0) EV_FN(q_binary_block)(dtype, op, a + last * sa, sa, b + last * sb, sb, &p, end);
    for (; i + EV_QB <= n; i += EV_QB)
        EV_FN(q_binary_block)(dtype, op, a + i * sa, sa, b + i * sb, sb, &p, y + i);
    if (last > 0) {
        memcpy(y + last, end, EV_QB);
    } else if (i < n) {
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
#ifdef EV_LEAN
#define EV_STRIDES(T, OP) EV_FN(q_binary_rows)(T, OP, n, a, sa != 0, b, sb != 0, p, y)
#else
#define EV_STRIDES(T, OP)                                               \
    if (sa && sb) EV_FN(q_binary_rows)(T, OP, n, a, 1, b, 1, p, y);     \
    else if (sa) EV_FN(q_binary_rows)(T, OP, n, a, 1, b, 0, p, y);      \
    else if (sb) EV_FN(q_binary_rows)(T, OP, n, a, 0, b, 1, p, y);      \
    else EV_FN(q_binary_rows)(T, OP, n, a, 0, b, 0, p, y)
#endif
#ifdef __AVX2__
    if (op == EV_QMUL) {
        if (dtype == EV_UINT8) EV_FN(q_multiply)(0, n, a, sa, b, sb, p, y);
        else EV_FN(q_multiply)(0x80, n, a, sa, b, sb, p, y);
        return;
    }
#endif
    if (dtype == EV_UINT8) {
        if (op == EV_QADD) { EV_STRIDES(EV_UINT8, EV_QADD); } else { EV_STRIDES(EV_UINT8, EV_QMUL); }
    } else {
        if (op == EV_QADD) { EV_STRIDES(EV_INT8, EV_QADD); } else { EV_STRIDES(EV_INT8, EV_QMUL); }
    }
#undef EV_STRIDES
}

/* The same for n bytes a and bytes b that repeat after `tile` <= EV_QTILE. */
static void EV_FN(q_binary_tiled)(int dtype, int op, int64_t n, const void *a, int64_t tile, const void *b,
                                  const ev_qbinary *p, void *y)
{
    for (int64_t i = 0; i < n; i += tile)
        EV_FN(q_binary)(dtype, op, n - i < tile ? n - i : tile, (const uint8_t *)a + i, 1, b, 1, p, (uint8_t *)y + i);
}

/* y = a * scale_a + b * scale_b, or a * b * scale_a, for numbers that are float32 already. y may be a or b. */
static void EV_FN(q_combine_f32)(int op, int64_t n, const float *a, const float *b, float scale_a, float scale_b,
                                 float *y)
{
    const EV_FN(ef) ra = EV_FN(q_allf)(scale_a), rb = EV_FN(q_allf)(scale_b);
    int64_t i = 0;
    for (; i + EV_EW <= n; i += EV_EW)
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
#elif defined(__aarch64__)
        if (n >= 64) { /* four tables of 64 entries; an index beyond one leaves what was found before */
            uint8x16x4_t part[4];
            for (int k = 0; k < 16; k++) part[k / 4].val[k % 4] = vld1q_u8((const uint8_t *)table + 16 * k);
            for (; i + 16 <= n; i += 16) {
                const uint8x16_t at = vld1q_u8(x + i);
                uint8x16_t v = vqtbl4q_u8(part[0], at);
                v = vqtbx4q_u8(v, part[1], vsubq_u8(at, vdupq_n_u8(64)));
                v = vqtbx4q_u8(v, part[2], vsubq_u8(at, vdupq_n_u8(128)));
                v = vqtbx4q_u8(v, part[3], vsubq_u8(at, vdupq_n_u8(192)));
                vst1q_u8((uint8_t *)y + i, v);
            }
        }
#endif
        for (; i < n; i++) ((uint8_t *)y)[i] = ((const uint8_t *)table)[x[i]];
    }
}
