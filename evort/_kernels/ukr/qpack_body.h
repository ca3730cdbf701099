/* Operands of quantized products, as qgemm_body.h takes them: rows and panels of pairs (int16, less the zero points) or
 * of quads (bytes). */

/* The zero point of line l: what is taken off an element of 8 bits as it is widened. 16-bit elements stay as they are,
 * as the difference might not fit; the driver sees to their zero points. */
static inline int32_t EV_FN(qzero)(const ev_qoperand *x, int64_t l)
{
    if (!x->zero) return 0;
    switch (x->type == EV_FLOAT ? x->as_type : x->type) {
    case EV_UINT8: return ((const uint8_t *)x->zero)[l * x->zero_step];
    case EV_INT8: return ((const int8_t *)x->zero)[l * x->zero_step];
    default: return ((const int16_t *)x->zero)[l * x->zero_step];
    }
}

/* Element x of float32 as an integer less its zero point: rounded to nearest even, saturated. NaN is the lowest. */
EV_INLINE int16_t EV_FN(qread_f32)(float x, float scale, float least, float most, int32_t back)
{
    return (int16_t)(EV_FN(quantized)(x / scale, least, most) + back);
}

/* The bounds of x / scale for a type and a zero point; *back is what is added after rounding: 0, but for 16 bits. */
static inline void EV_FN(qbounds)(int32_t type, int32_t zero, float *least, float *most, int32_t *back)
{
    const int32_t lo = type == EV_UINT8 ? 0 : type == EV_INT8 ? -128 : -32768;
    const int32_t hi = type == EV_UINT8 ? 255 : type == EV_INT8 ? 127 : 32767;
    *least = (float)(lo - zero), *most = (float)(hi - zero);
    *back = type == EV_INT16 ? zero : 0;
}

/* One line of n elements, `step` apart, to int16 at dst[i*to]. */
#define EV_QLINE(expression)                                                        \
    do {                                                                            \
        if (step == 1 && to == 1)                                                   \
            for (int64_t i = 0; i < n; i++) dst[i] = (int16_t)(expression);         \
        else                                                                        \
            for (int64_t i = 0, at = 0; i < n; i++, at += to) dst[at] = (int16_t)(expression); \
    } while (0)
static void EV_FN(qline)(const ev_qoperand *x, int64_t line, int64_t n, const void *src, int64_t step, int16_t *dst,
                         int64_t to)
{
    const int32_t z = EV_FN(qzero)(x, line);
    if (x->type == EV_UINT8) {
        const uint8_t *s = src;
        EV_QLINE(s[i * step] - z);
    } else if (x->type == EV_INT8) {
        const int8_t *s = src;
        EV_QLINE(s[i * step] - z);
    } else if (x->type == EV_INT16) {
        const int16_t *s = src;
        EV_QLINE(s[i * step]);
    } else {
        const float *s = src, scale = x->scale;
        float least, most;
        int32_t back;
        EV_FN(qbounds)(x->as_type, z, &least, &most, &back);
        EV_QLINE(EV_FN(qread_f32)(s[i * step], scale, least, most, back));
    }
}
#undef EV_QLINE

static inline int64_t EV_FN(qsize)(int32_t type)
{
    return type == EV_FLOAT ? 4 : type == EV_INT16 ? 2 : 1;
}

/* Rows [i0, i0+m), columns [p0, p0+k) of A as rows of pairs, ceil(k/2) each; an odd last element is paired with 0. */
static void EV_FN(qrows)(const ev_qoperand *a, int64_t i0, int64_t m, int64_t p0, int64_t k, int16_t *dst)
{
    const int64_t size = EV_FN(qsize)(a->type);
    for (int64_t i = 0; i < m; i++) {
        const char *src = (const char *)a->data + ((i0 + i) * a->rs + p0 * a->cs) * size;
        EV_FN(qline)(a, i0 + i, k, src, a->cs, dst, 1);
        dst += k;
        if (k & 1) *dst++ = 0;
    }
}

#if defined(__AVX2__)
/* 8 vectors of 8 int16, transposed. */
static inline __attribute__((always_inline)) void EV_FN(qtranspose_8x8)(__m128i *r)
{
    __m128i t[8], u[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm_unpacklo_epi16(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        u[4 * i] = _mm_unpacklo_epi32(t[4 * i], t[4 * i + 2]);
        u[4 * i + 1] = _mm_unpackhi_epi32(t[4 * i], t[4 * i + 2]);
        u[4 * i + 2] = _mm_unpacklo_epi32(t[4 * i + 1], t[4 * i + 3]);
        u[4 * i + 3] = _mm_unpackhi_epi32(t[4 * i + 1], t[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[2 * i] = _mm_unpacklo_epi64(u[i], u[i + 4]);
        r[2 * i + 1] = _mm_unpackhi_epi64(u[i], u[i + 4]);
    }
}

/* As many k of a panel of 16 columns of bytes as whole vectors make up; returns how many. zero: each column's, twice. */
static int64_t EV_FN(qpanel_fast)(const uint8_t *src, int is_signed, int64_t rs, int64_t cs, int64_t k,
                                  const int16_t *zero, int16_t *dst)
{
    enum { W = EV_QNR };
    int64_t p = 0;
#define WIDEN(x) (is_signed ? _mm256_cvtepi8_epi16(x) : _mm256_cvtepu8_epi16(x))
#define STORE(at, x, z) _mm256_storeu_si256((__m256i *)(at), _mm256_sub_epi16(WIDEN(x), z))
    const __m256i z0 = _mm256_loadu_si256((const __m256i *)zero), z1 = _mm256_loadu_si256((const __m256i *)(zero + W));
    if (cs == 1) {
        for (; p + 2 <= k; p += 2, src += 2 * rs, dst += 2 * W) {
            const __m128i r0 = _mm_loadu_si128((const __m128i *)src), r1 = _mm_loadu_si128((const __m128i *)(src + rs));
            STORE(dst, _mm_unpacklo_epi8(r0, r1), z0);
            STORE(dst + W, _mm_unpackhi_epi8(r0, r1), z1);
        }
    } else if (rs == 1) {
        for (; p + 16 <= k; p += 16, src += 16, dst += 16 * W)
            for (int half = 0; half < 2; half++) {
                __m128i r[8];
#pragma GCC unroll 8
                for (int j = 0; j < 8; j++) r[j] = _mm_loadu_si128((const __m128i *)(src + (half * 8 + j) * cs));
                EV_FN(qtranspose_8x8)(r);
#pragma GCC unroll 8
                for (int j = 0; j < 8; j++) STORE(dst + j * 2 * W + half * W, r[j], half ? z1 : z0);
            }
    }
#undef STORE
#undef WIDEN
    return p;
}
#else
static int64_t EV_FN(qpanel_fast)(const uint8_t *src, int is_signed, int64_t rs, int64_t cs, int64_t k,
                                  const int16_t *zero, int16_t *dst)
{
    enum { W = EV_QNR };
    int64_t p = 0;
    if (cs != 1) return 0;
    for (; p + 2 <= k; p += 2, src += 2 * rs, dst += 2 * W)
        for (int j = 0; j < W; j++) {
            const int16_t x0 = is_signed ? (int8_t)src[j] : src[j], x1 = is_signed ? (int8_t)src[rs + j] : src[rs + j];
            dst[2 * j] = (int16_t)(x0 - zero[2 * j]);
            dst[2 * j + 1] = (int16_t)(x1 - zero[2 * j]);
        }
    return p;
}
#endif

/* Rows [p0, p0+k), columns [j0, j0+n) of B as panels of pairs; columns past n are 0. */
static void EV_FN(qpanels)(const ev_qoperand *b, int64_t p0, int64_t k, int64_t j0, int64_t n, int16_t *dst)
{
    enum { W = EV_QNR };
    const int64_t size = EV_FN(qsize)(b->type), length = (k + 1) / 2 * 2 * W;
    for (int64_t j = 0; j < n; j += W, dst += length) {
        const int64_t width = n - j < W ? n - j : W;
        const char *src = (const char *)b->data + (p0 * b->rs + (j0 + j) * b->cs) * size;
        int64_t done = 0;
        if (width == W && size == 1) {
            int16_t zero[2 * W];
            for (int64_t i = 0; i < W; i++)
                zero[2 * i] = zero[2 * i + 1] = (int16_t)EV_FN(qzero)(b, j0 + j + i);
            done = EV_FN(qpanel_fast)((const uint8_t *)src, b->type == EV_INT8, b->rs, b->cs, k, zero, dst);
        }
        if (done == k) continue;
        const int64_t left = k - done;
        int16_t *to = dst + done * W;
        if (width < W || left & 1) memset(to, 0, (size_t)(length - done * W) * sizeof *to);
        src += done * b->rs * size;
        for (int64_t i = 0; i < width; i++, src += b->cs * size) {
            EV_FN(qline)(b, j0 + j + i, (left + 1) / 2, src, 2 * b->rs, to + 2 * i, 2 * W);
            EV_FN(qline)(b, j0 + j + i, left / 2, src + b->rs * size, 2 * b->rs, to + 2 * i + 1, 2 * W);
        }
    }
}

/* n elements of a line, `step` apart, as bytes at dst[i*to]; `flip` is 0x80 to make int8 uint8. */
static void EV_FN(qbytes)(const ev_qoperand *x, int64_t line, int64_t n, const void *src, int64_t step, int flip,
                          uint8_t *dst, int64_t to)
{
    if (x->type != EV_FLOAT) {
        const uint8_t *s = src;
        for (int64_t i = 0; i < n; i++) dst[i * to] = (uint8_t)(s[i * step] ^ flip);
        return;
    }
    const int32_t zero = EV_FN(qzero)(x, line);
    int16_t part[64];
    for (int64_t i = 0; i < n; i += 64) {
        const int64_t some = n - i < 64 ? n - i : 64;
        EV_FN(qline)(x, line, some, (const float *)src + i * step, step, part, 1);
        for (int64_t j = 0; j < some; j++) dst[(i + j) * to] = (uint8_t)((part[j] + zero) ^ flip);
    }
}

/* As qrows: rows of ceil(k/4) quads. */
static void EV_FN(qquad_rows)(const ev_qoperand *a, int64_t i0, int64_t m, int64_t p0, int64_t k, int flip, uint8_t *dst)
{
    const int64_t size = EV_FN(qsize)(a->type), length = (k + 3) / 4 * 4;
    for (int64_t i = 0; i < m; i++, dst += length) {
        EV_FN(qbytes)(a, i0 + i, k, (const char *)a->data + ((i0 + i) * a->rs + p0 * a->cs) * size, a->cs, flip, dst, 1);
        for (int64_t p = k; p < length; p++) dst[p] = 0;
    }
}

#if defined(__AVX2__)
/* Quads of `panels` panels whose rows lie side by side, as many k as whole quads make up; returns how many. Panels share
 * the lines of the rows, which may lie so far apart that the cache cannot hold one for each. */
static inline __attribute__((always_inline)) int64_t EV_FN(qquad_rows_of)(const uint8_t *src, int64_t rs, int64_t k, int flip,
                                                                          int64_t length, const int panels, uint8_t *dst)
{
    const __m128i f = _mm_set1_epi8((char)flip);
    int64_t p = 0;
    for (; p + 4 <= k; p += 4, src += 4 * rs, dst += 4 * EV_QNR) {
        for (int i = 0; i < 4; i++) __builtin_prefetch(src + (16 + i) * rs);
        for (int g = 0; g < panels; g++) {
            __m128i r[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                r[i] = _mm_xor_si128(_mm_loadu_si128((const __m128i *)(src + i * rs) + g), f);
            const __m128i a0 = _mm_unpacklo_epi8(r[0], r[1]), a1 = _mm_unpackhi_epi8(r[0], r[1]);
            const __m128i b0 = _mm_unpacklo_epi8(r[2], r[3]), b1 = _mm_unpackhi_epi8(r[2], r[3]);
            __m128i *to = (__m128i *)(dst + g * length);
            _mm_storeu_si128(to, _mm_unpacklo_epi16(a0, b0));
            _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(a0, b0));
            _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(a1, b1));
            _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(a1, b1));
        }
    }
    return p;
}
#endif

/* As qpanels: panels of quads. */
static void EV_FN(qquad_panels)(const ev_qoperand *b, int64_t p0, int64_t k, int64_t j0, int64_t n, int flip,
                                uint8_t *dst)
{
    enum { W = EV_QNR, SIDE = 4 }; /* panels side by side: a line of the cache */
    const int64_t size = EV_FN(qsize)(b->type), length = (k + 3) / 4 * 4 * W;
#if defined(__AVX2__)
    int64_t ready = 0; /* k of panels that were packed with one before them, or -1 */
#endif
    for (int64_t j = 0; j < n; j += W, dst += length) {
        const int64_t width = n - j < W ? n - j : W;
        const char *src = (const char *)b->data + (p0 * b->rs + (j0 + j) * b->cs) * size;
        int64_t p = 0;
#if defined(__AVX2__)
        const uint8_t *bytes = (const uint8_t *)src;
        if (width == W && size == 1 && b->cs == 1) {
            const int64_t at = j / W % SIDE;
            if (at == 0 && n - j >= SIDE * W) ready = EV_FN(qquad_rows_of)(bytes, b->rs, k, flip, length, SIDE, dst);
            else if (at == 0) ready = -1;
            p = ready >= 0 ? ready : EV_FN(qquad_rows_of)(bytes, b->rs, k, flip, length, 1, dst);
        } else if (width == W && size == 1 && b->rs == 1) {
            const __m128i f = _mm_set1_epi8((char)flip);
            for (; p + 16 <= k; p += 16)
                for (int g = 0; g < 4; g++) {
                    __m128i r[4], t[4];
#pragma GCC unroll 4
                    for (int i = 0; i < 4; i++)
                        r[i] = _mm_xor_si128(_mm_loadu_si128((const __m128i *)(src + p + (4 * g + i) * b->cs)), f);
                    t[0] = _mm_unpacklo_epi32(r[0], r[1]), t[1] = _mm_unpackhi_epi32(r[0], r[1]);
                    t[2] = _mm_unpacklo_epi32(r[2], r[3]), t[3] = _mm_unpackhi_epi32(r[2], r[3]);
                    __m128i *to = (__m128i *)(dst + p * W) + g;
                    _mm_storeu_si128(to, _mm_unpacklo_epi64(t[0], t[2]));
                    _mm_storeu_si128(to + 4, _mm_unpackhi_epi64(t[0], t[2]));
                    _mm_storeu_si128(to + 8, _mm_unpacklo_epi64(t[1], t[3]));
                    _mm_storeu_si128(to + 12, _mm_unpackhi_epi64(t[1], t[3]));
                }
        }
#elif defined(__aarch64__)
        const uint8x16_t f = vdupq_n_u8((uint8_t)flip);
        if (width == W && size == 1 && b->cs == 1)
            for (; p + 4 <= k; p += 4) {
                uint8x16x4_t r;
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) r.val[i] = veorq_u8(vld1q_u8((const uint8_t *)src + (p + i) * b->rs), f);
                vst4q_u8(dst + p * W, r);
            }
        else if (width == W && size == 1 && b->rs == 1)
            for (; p + 16 <= k; p += 16)
                for (int g = 0; g < 4; g++) { /* columns as quads, transposed */
                    uint32x4_t r[4];
#pragma GCC unroll 4
                    for (int i = 0; i < 4; i++)
                        r[i] = vreinterpretq_u32_u8(veorq_u8(vld1q_u8((const uint8_t *)src + p + (4 * g + i) * b->cs), f));
                    const uint32x4x2_t low = vzipq_u32(r[0], r[2]), high = vzipq_u32(r[1], r[3]);
#pragma GCC unroll 2
                    for (int i = 0; i < 2; i++) {
                        const uint32x4x2_t t = vzipq_u32(low.val[i], high.val[i]);
                        vst1q_u8(dst + p * W + 16 * g + 128 * i, vreinterpretq_u8_u32(t.val[0]));
                        vst1q_u8(dst + p * W + 16 * g + 128 * i + 64, vreinterpretq_u8_u32(t.val[1]));
                    }
                }
#endif
        if (p == k) continue;
        memset(dst + p * W, 0, (size_t)(length - p * W));
        for (int64_t i = 0; i < width; i++)
            for (int64_t r = 0; r < 4; r++) /* element r of each quad */
                EV_FN(qbytes)(b, j0 + j + i, (k - p - r + 3) / 4, src + (i * b->cs + (p + r) * b->rs) * size, 4 * b->rs,
                              flip, dst + p * W + 4 * i + r, 4 * W);
    }
}

/* sums[i] (+)= the sum of k int8 of row i. */
static void EV_FN(qrow_sums)(int64_t m, int64_t k, const int8_t *a, int64_t lda, int add, int32_t *sums)
{
    for (int64_t i = 0; i < m; i++, a += lda) {
        int32_t sum = add ? sums[i] : 0;
        for (int64_t p = 0; p < k; p++) sum += a[p];
        sums[i] = sum;
    }
}

/* sums[j] (+)= the sums of the columns of panels of int8 quads, all of whole panels. */
static void EV_FN(qpanel_sums)(int64_t n, int64_t quads, const int8_t *b, int add, int32_t *sums)
{
    for (int64_t j = 0; j < n; j += EV_QNR, sums += EV_QNR) {
        int32_t sum[EV_QNR] = {0};
        for (int64_t p = 0; p < quads; p++, b += 4 * EV_QNR)
            for (int i = 0; i < EV_QNR; i++) sum[i] += b[4 * i] + b[4 * i + 1] + b[4 * i + 2] + b[4 * i + 3];
        for (int i = 0; i < EV_QNR; i++) sums[i] = sum[i] + (add ? sums[i] : 0);
    }
}
