/* Four vectors of integers, plus zero, within [lo, hi] as 64 bytes in order, int8 or uint8. What is too large saturates. */
static inline __attribute__((always_inline)) __m512i EV_FN(q_bytes_64)(__m512i q0, __m512i q1, __m512i q2, __m512i q3,
                                                                       __m512i zero, __m512i lo, __m512i hi,
                                                                       const int is_signed)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i u = _mm512_adds_epi16(_mm512_packs_epi32(q0, q1), zero);
    const __m512i v = _mm512_adds_epi16(_mm512_packs_epi32(q2, q3), zero);
    const __m512i y = is_signed ? _mm512_min_epi8(_mm512_max_epi8(_mm512_packs_epi16(u, v), lo), hi)
                                : _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(u, v), lo), hi);
    return _mm512_permutexvar_epi32(order, y);
}
