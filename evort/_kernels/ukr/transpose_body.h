/* Blocks that products and layouts transpose; included by both. */
#ifndef EV_TRANSPOSE_BODY_H
#define EV_TRANSPOSE_BODY_H

/* 8 x 8 items of 1, 2, 4 or (with AVX) 8 bytes: y[i * ys + j] = x[i + j * xs]. Returns 0 where there is no fast way. */
static inline __attribute__((always_inline)) int EV_FN(transpose_8x8)(
    int item, const void *x0, int64_t xs, void *y0, int64_t ys)
{
#ifdef __SSE2__
    if (item == 1) {
        const uint8_t *x = x0;
        uint8_t *y = y0;
        __m128i r[4], t[4];
        for (int j = 0; j < 4; j++)
            r[j] = _mm_unpacklo_epi8(_mm_loadl_epi64((const void *)(x + j * xs)),
                                     _mm_loadl_epi64((const void *)(x + (j + 4) * xs)));
        for (int j = 0; j < 2; j++) {
            t[2 * j] = _mm_unpacklo_epi8(r[j], r[j + 2]);
            t[2 * j + 1] = _mm_unpackhi_epi8(r[j], r[j + 2]);
        }
        for (int j = 0; j < 2; j++) {
            r[2 * j] = _mm_unpacklo_epi8(t[j], t[j + 2]);
            r[2 * j + 1] = _mm_unpackhi_epi8(t[j], t[j + 2]);
        }
        for (int j = 0; j < 4; j++) {
            _mm_storel_epi64((void *)(y + 2 * j * ys), r[j]);
            _mm_storel_epi64((void *)(y + (2 * j + 1) * ys), _mm_unpackhi_epi64(r[j], r[j]));
        }
        return 1;
    }
    if (item == 2) {
        const uint16_t *x = x0;
        uint16_t *y = y0;
        __m128i r[8], t[8];
        for (int j = 0; j < 8; j++) r[j] = _mm_loadu_si128((const void *)(x + j * xs));
        for (int stage = 0; stage < 3; stage++) { /* each interleaves the first four with the last four */
            for (int j = 0; j < 4; j++) {
                t[2 * j] = _mm_unpacklo_epi16(r[j], r[j + 4]);
                t[2 * j + 1] = _mm_unpackhi_epi16(r[j], r[j + 4]);
            }
            for (int j = 0; j < 8; j++) r[j] = t[j];
        }
        for (int j = 0; j < 8; j++) _mm_storeu_si128((void *)(y + j * ys), r[j]);
        return 1;
    }
#endif
#ifdef __AVX2__
    if (item == 4) {
        const float *x = x0;
        float *y = y0;
        /* Columns j and j + 4 share a register, so that what is left stays within 128-bit lanes. */
        __m256 r[8], t[8];
        for (int h = 0; h < 2; h++)
            for (int j = 0; j < 4; j++)
                r[4 * h + j] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(x + 4 * h + j * xs)),
                                                    _mm_loadu_ps(x + 4 * h + (j + 4) * xs), 1);
        for (int h = 0; h < 8; h += 4) {
            t[h] = _mm256_unpacklo_ps(r[h], r[h + 1]);
            t[h + 1] = _mm256_unpackhi_ps(r[h], r[h + 1]);
            t[h + 2] = _mm256_unpacklo_ps(r[h + 2], r[h + 3]);
            t[h + 3] = _mm256_unpackhi_ps(r[h + 2], r[h + 3]);
            _mm256_storeu_ps(y + h * ys, _mm256_shuffle_ps(t[h], t[h + 2], 0x44));
            _mm256_storeu_ps(y + (h + 1) * ys, _mm256_shuffle_ps(t[h], t[h + 2], 0xee));
            _mm256_storeu_ps(y + (h + 2) * ys, _mm256_shuffle_ps(t[h + 1], t[h + 3], 0x44));
            _mm256_storeu_ps(y + (h + 3) * ys, _mm256_shuffle_ps(t[h + 1], t[h + 3], 0xee));
        }
        return 1;
    }
    if (item == 8) {
        for (int h = 0; h < 8; h += 4)
            for (int j = 0; j < 8; j += 4) {
                const double *x = (const double *)x0 + h + j * xs;
                double *y = (double *)y0 + h * ys + j;
                const __m256d a = _mm256_loadu_pd(x), b = _mm256_loadu_pd(x + xs);
                const __m256d c = _mm256_loadu_pd(x + 2 * xs), d = _mm256_loadu_pd(x + 3 * xs);
                const __m256d e = _mm256_unpacklo_pd(a, b), f = _mm256_unpackhi_pd(a, b);
                const __m256d g = _mm256_unpacklo_pd(c, d), i = _mm256_unpackhi_pd(c, d);
                _mm256_storeu_pd(y, _mm256_permute2f128_pd(e, g, 0x20));
                _mm256_storeu_pd(y + ys, _mm256_permute2f128_pd(f, i, 0x20));
                _mm256_storeu_pd(y + 2 * ys, _mm256_permute2f128_pd(e, g, 0x31));
                _mm256_storeu_pd(y + 3 * ys, _mm256_permute2f128_pd(f, i, 0x31));
            }
        return 1;
    }
#endif
    (void)item, (void)x0, (void)xs, (void)y0, (void)ys;
    return 0;
}

#endif
