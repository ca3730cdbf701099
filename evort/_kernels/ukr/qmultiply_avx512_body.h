/* Products of bytes by a row of factors that repeats, with AVX-512: to the bit those of q_binary. As numbers less their zero
 * points they have 9 bits, so that floats, and a multiplication that is fused with an addition, hold products exactly. */

typedef struct {
    __m512 scale;
    __m512i zero, lo, hi;
    int is_signed;
} EV_FN(q_known);

/* 64 products, by * a + back before they are scaled. */
static inline __attribute__((always_inline)) __m512i EV_FN(q_products)(const EV_FN(q_known) *p, __m512i a, const float *by,
                                                                       const float *back)
{
    __m512i q[4];
#define PART(k, part)                                                                                          \
    do {                                                                                                       \
        const __m128i bytes = part;                                                                            \
        const __m512i whole = p->is_signed ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes);        \
        const __m512 x = _mm512_loadu_ps(by + 16 * k), z = _mm512_loadu_ps(back + 16 * k);                     \
        q[k] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), x, z), p->scale)); \
    } while (0)
    PART(0, _mm512_castsi512_si128(a));
    PART(1, _mm512_extracti32x4_epi32(a, 1));
    PART(2, _mm512_extracti32x4_epi32(a, 2));
    PART(3, _mm512_extracti32x4_epi32(a, 3));
#undef PART
    return EV_FN(q_bytes_64)(q[0], q[1], q[2], q[3], p->zero, p->lo, p->hi, p->is_signed);
}

/* y = a * b for n bytes a and factors b that repeat after `tile` <= EV_QTILE. y may be a. */
static void EV_FN(q_binary_tiled)(int dtype, int op, int64_t n, const void *a, int64_t tile, const void *b,
                                  const ev_qbinary *p, void *y)
{
    if (op != EV_QMUL || !(p->scale_a >= 0.0f && p->scale_a <= 32.0f)) { /* larger products may not fit an integer */
        ev_ukr_table__avx2.q_binary_tiled(dtype, op, n, a, tile, b, p, y);
        return;
    }
    const int is_signed = dtype == EV_INT8;
    float by[EV_QTILE + 64] __attribute__((aligned(64))), back[EV_QTILE + 64] __attribute__((aligned(64))); /* factors, and what the zero point of a becomes by them */
    for (int64_t j = 0; j < tile; j += 64)
        for (int64_t k = j; k < j + 64; k += 16) {
            const __mmask16 there = (__mmask16)(tile - k >= 16 ? 0xffff : k < tile ? (1u << (tile - k)) - 1 : 0);
            const __m128i bytes = _mm_maskz_loadu_epi8(there, (const uint8_t *)b + k);
            const __m512i whole = is_signed ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes);
            const __m512 v = _mm512_cvtepi32_ps(_mm512_sub_epi32(whole, _mm512_set1_epi32(p->zero_b)));
            _mm512_storeu_ps(by + k, v);
            _mm512_storeu_ps(back + k, _mm512_mul_ps(v, _mm512_set1_ps((float)-p->zero_a)));
        }
    const EV_FN(q_known) known = {_mm512_set1_ps(p->scale_a), _mm512_set1_epi16((int16_t)p->zero),
                                  _mm512_set1_epi8((char)p->lo), _mm512_set1_epi8((char)p->hi), is_signed};
    for (int64_t i = 0; i < n; i += tile) {
        const uint8_t *x = (const uint8_t *)a + i;
        uint8_t *to = (uint8_t *)y + i;
        const int64_t end = n - i < tile ? n - i : tile;
        int64_t j = 0;
        for (; j + 64 <= end; j += 64)
            _mm512_storeu_si512(to + j, EV_FN(q_products)(&known, _mm512_loadu_si512(x + j), by + j, back + j));
        if (j == end) continue;
        const __mmask64 there = ~0ULL >> (64 - (end - j));
        const __m512i last = _mm512_maskz_loadu_epi8(there, x + j);
        _mm512_mask_storeu_epi8(to + j, there, EV_FN(q_products)(&known, last, by + j, back + j));
    }
}
