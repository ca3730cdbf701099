/* Tiles of the integer convolutions: rows of W by a panel of 16 columns, whose quad q is at offset[q]. qconv_body.h says
 * how sums stay exact. */


#if defined(__AVX2__)
/* One quad (S of them) of a row with eight columns. In assembler, as compilers keep all broadcasts at once and spill. */
#define EV_QC_FIRST "vpbroadcastd %[w0], %[s]\n\tvpmaddubsw %[s], %[b0], %[s]\n\t"
#define EV_QC_NEXT(w, b) "vpbroadcastd %[" w "], %[t]\n\tvpmaddubsw %[t], %[" b "], %[t]\n\tvpaddw %[t], %[s], %[s]\n\t"
#define EV_QC_LAST "vpmaddwd %[one], %[s], %[s]\n\tvpaddd %[s], %[acc], %[acc]"
#define EV_QC_2(acc_, p)                                                                                          \
    do {                                                                                                          \
        __m256i s_, t_;                                                                                           \
        __asm__(EV_QC_FIRST EV_QC_NEXT("w1", "b1") EV_QC_LAST                                                     \
                : [s] "=&x"(s_), [t] "=&x"(t_), [acc] "+x"(acc_)                                                  \
                : [w0] "m"(*(const int32_t *)(p)), [w1] "m"(*(const int32_t *)((p) + 4)), [b0] "x"(b0),           \
                  [b1] "x"(b1), [one] "m"(one));                                                                  \
    } while (0)
#define EV_QC_4(acc_, p)                                                                                          \
    do {                                                                                                          \
        __m256i s_, t_;                                                                                           \
        __asm__(EV_QC_FIRST EV_QC_NEXT("w1", "b1") EV_QC_NEXT("w2", "b2") EV_QC_NEXT("w3", "b3") EV_QC_LAST       \
                : [s] "=&x"(s_), [t] "=&x"(t_), [acc] "+x"(acc_)                                                  \
                : [w0] "m"(*(const int32_t *)(p)), [w1] "m"(*(const int32_t *)((p) + 4)),                         \
                  [w2] "m"(*(const int32_t *)((p) + 8)), [w3] "m"(*(const int32_t *)((p) + 12)), [b0] "x"(b0),    \
                  [b1] "x"(b1), [b2] "x"(b2), [b3] "x"(b3), [one] "m"(one));                                      \
    } while (0)
#define EV_QC_LOAD(q, i) _mm256_loadu_si256((const __m256i *)(panel + from[q] + (i)))

static inline __attribute__((always_inline)) void EV_FN(qc_rows)(
    const int s, int64_t k, const int8_t *a, int64_t lda, const uint8_t *panel, const int32_t *offset,
    const ev_qextra *const *extra, const int32_t *extras, int32_t *sum, int64_t ld, const int mr)
{
    static const int16_t one[16] __attribute__((aligned(32))) = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
#define EACH(X) X(0) X(1) X(2) X(3)
#define X(i) __m256i p##i = _mm256_setzero_si256(), q##i = p##i;
    EACH(X)
#undef X
    const int32_t *from = offset;
    for (; k > 0; k -= 4 * s, a += 4 * s, from += s) {
        if (s == 2) {
            {
                const __m256i b0 = EV_QC_LOAD(0, 0), b1 = EV_QC_LOAD(1, 0);
#define X(i) if (mr > i) EV_QC_2(p##i, a + i * lda);
                EACH(X)
#undef X
            }
            const __m256i b0 = EV_QC_LOAD(0, 32), b1 = EV_QC_LOAD(1, 32);
#define X(i) if (mr > i) EV_QC_2(q##i, a + i * lda);
            EACH(X)
#undef X
        } else {
            {
                const __m256i b0 = EV_QC_LOAD(0, 0), b1 = EV_QC_LOAD(1, 0);
                const __m256i b2 = EV_QC_LOAD(2, 0), b3 = EV_QC_LOAD(3, 0);
#define X(i) if (mr > i) EV_QC_4(p##i, a + i * lda);
                EACH(X)
#undef X
            }
            const __m256i b0 = EV_QC_LOAD(0, 32), b1 = EV_QC_LOAD(1, 32);
            const __m256i b2 = EV_QC_LOAD(2, 32), b3 = EV_QC_LOAD(3, 32);
#define X(i) if (mr > i) EV_QC_4(q##i, a + i * lda);
            EACH(X)
#undef X
        }
    }
    const __m256i ones = _mm256_load_si256((const __m256i *)one);
#define X(i)                                                                                                      \
    if (mr > i) {                                                                                                 \
        for (int32_t e = 0; e < extras[i]; e++) {                                                                 \
            int32_t four;                                                                                         \
            memcpy(&four, extra[i][e].w, 4);                                                                      \
            const __m256i w = _mm256_set1_epi32(four);                                                            \
            const uint8_t *at = panel + offset[extra[i][e].quad];                                                 \
            const __m256i u = _mm256_loadu_si256((const __m256i *)at), v = _mm256_loadu_si256((const __m256i *)(at + 32)); \
            p##i = _mm256_add_epi32(p##i, _mm256_madd_epi16(_mm256_maddubs_epi16(u, w), ones));                   \
            q##i = _mm256_add_epi32(q##i, _mm256_madd_epi16(_mm256_maddubs_epi16(v, w), ones));                   \
        }                                                                                                         \
        _mm256_storeu_si256((__m256i *)(sum + i * ld), p##i);                                                     \
        _mm256_storeu_si256((__m256i *)(sum + i * ld + 8), q##i);                                                 \
    }
    EACH(X)
#undef X
#undef EACH
}

#define EV_QC_1(acc_, p)                                                                                          \
    do {                                                                                                          \
        __m256i s_, t_;                                                                                           \
        __asm__("vpbroadcastd %[w0], %[s]\n\tvpmaddwd %[s], %[b0], %[s]\n\tvpbroadcastd %[w1], %[t]\n\t"           \
                "vpmaddwd %[t], %[b1], %[t]\n\tvpaddd %[s], %[acc], %[acc]\n\tvpaddd %[t], %[acc], %[acc]"        \
                : [s] "=&x"(s_), [t] "=&x"(t_), [acc] "+x"(acc_)                                                  \
                : [w0] "m"(*(const int32_t *)(p)), [w1] "m"(*(const int32_t *)((p) + 2)), [b0] "x"(b0),           \
                  [b1] "x"(b1));                                                                                  \
    } while (0)

/* The same for widened rows. */
static inline __attribute__((always_inline)) void EV_FN(qc_wide_rows)(
    int64_t k, const int16_t *a, int64_t lda, const uint8_t *panel, const int32_t *from, int32_t *sum, int64_t ld,
    const int mr, const int narrow)
{
    const __m256i low = _mm256_set1_epi16(0xff);
#define EACH(X) X(0) X(1) X(2) X(3)
#define X(i) __m256i p##i = _mm256_setzero_si256(), q##i = p##i;
    EACH(X)
#undef X
    for (; k > 0; k -= 4, a += 4, from++) {
        const __m256i u = EV_QC_LOAD(0, 0);
        {
            const __m256i b0 = _mm256_and_si256(u, low), b1 = _mm256_srli_epi16(u, 8);
#define X(i) if (mr > i) EV_QC_1(p##i, a + i * lda);
            EACH(X)
#undef X
        }
        if (narrow) continue;
        const __m256i v = EV_QC_LOAD(0, 32);
        const __m256i b0 = _mm256_and_si256(v, low), b1 = _mm256_srli_epi16(v, 8);
#define X(i) if (mr > i) EV_QC_1(q##i, a + i * lda);
        EACH(X)
#undef X
    }
#define X(i)                                                      \
    if (mr > i) {                                                 \
        _mm256_storeu_si256((__m256i *)(sum + i * ld), p##i);     \
        _mm256_storeu_si256((__m256i *)(sum + i * ld + 8), q##i); \
    }
    EACH(X)
#undef X
#undef EACH
}

/* m rows by one panel, of which n columns are wanted. */
static void EV_FN(qc_panel)(int64_t m, int64_t n, int s, int64_t k, const void *a_, int64_t lda, const uint8_t *b,
                            const int32_t *offset, const ev_qextra *const *extra, const int32_t *extras, int32_t *sum,
                            int64_t ld)
{
    const int8_t *a = a_;
#define CALL(mr)                                                                                                  \
    if (s == 1 && n <= EV_QC_NR / 2) EV_FN(qc_wide_rows)(k, (const int16_t *)a, lda, b, offset, sum, ld, mr, 1);  \
    else if (s == 1) EV_FN(qc_wide_rows)(k, (const int16_t *)a, lda, b, offset, sum, ld, mr, 0);                  \
    else if (s == 4) EV_FN(qc_rows)(4, k, a, lda, b, offset, extra, extras, sum, ld, mr);                                 \
    else EV_FN(qc_rows)(2, k, a, lda, b, offset, extra, extras, sum, ld, mr)
    switch (m) {
    case 1: CALL(1); break;
    case 2: CALL(2); break;
    case 3: CALL(3); break;
    default: CALL(4); break;
    }
#undef CALL
}
#else
/* Without vpmaddubsw: products and sums in 32 bits, nothing to take out. */
static void EV_FN(qc_panel)(int64_t m, int64_t n, int s, int64_t k, const void *a, int64_t lda, const uint8_t *b,
                            const int32_t *offset, const ev_qextra *const *extra, const int32_t *extras, int32_t *sum,
                            int64_t ld)
{
    (void)n, (void)extra, (void)extras;
    for (int64_t i = 0; i < m; i++, sum += ld) {
        const int8_t *row = (const int8_t *)a + i * lda;
        const int16_t *wide = s > 1 ? NULL : (const int16_t *)a + i * lda;
#if defined(__SSE2__)
        __m128i acc[8];
        for (int j = 0; j < 8; j++) acc[j] = _mm_setzero_si128();
        const __m128i zero = _mm_setzero_si128();
        for (int64_t p = 0; p < k; p += 4) {
            __m128i x;
            if (wide) {
                x = _mm_shufflelo_epi16(_mm_loadl_epi64((const __m128i *)(wide + p)), 0xd8);
            } else {
                int32_t four;
                memcpy(&four, row + p, 4);
                x = _mm_srai_epi16(_mm_unpacklo_epi8(zero, _mm_cvtsi32_si128(four)), 8);
            }
            const __m128i w = _mm_unpacklo_epi64(x, x);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                const __m128i v = _mm_loadu_si128((const __m128i *)(b + offset[p / 4] + j * 16));
                acc[2 * j] = _mm_add_epi32(acc[2 * j], _mm_madd_epi16(_mm_unpacklo_epi8(v, zero), w));
                acc[2 * j + 1] = _mm_add_epi32(acc[2 * j + 1], _mm_madd_epi16(_mm_unpackhi_epi8(v, zero), w));
            }
        }
        int32_t halves[32];
        memcpy(halves, acc, sizeof halves);
        for (int j = 0; j < EV_QC_NR; j++) sum[j] = halves[2 * j] + halves[2 * j + 1];
#else
        static const int place[4] = {0, 2, 1, 3}; /* in a widened quad */
        for (int j = 0; j < EV_QC_NR; j++) sum[j] = 0;
        for (int64_t p = 0; p < k; p += 4)
            for (int j = 0; j < EV_QC_NR; j++)
                for (int t = 0; t < 4; t++) 
                    sum[j] += (wide ? wide[p + place[t]] : row[p + t]) * b[offset[p / 4] + j * 4 + t];
#endif
    }
}
#endif

/* sum[i][j] = row i of W times column j: m rows of k weights, lda apart, n columns, of which sums up to a multiple of
 * EV_QC_NR are written. Quad q of 16 columns is at b + offset[q], that of the next 16 `step` bytes on. Rows are prepared
 * for groups of s quads; with s = 1, they are of int16, from qc_widen. m <= EV_QC_MR; where rows are used as they lie,
 * any. */
static void EV_FN(qc_tile)(int64_t m, int64_t n, int s, int64_t k, const void *a, int64_t lda, const uint8_t *b,
                           const int32_t *offset, int64_t step, const ev_qextra *const *extra, const int32_t *extras,
                           int32_t *sum, int64_t ld)
{
    for (; n > 0; n -= EV_QC_NR, b += step, sum += EV_QC_NR)
        EV_FN(qc_panel)(m, n, s, k, a, lda, b, offset, extra, extras, sum, ld);
}

/* Whether rows of W are used as they lie: nothing in a sum can overflow, whatever the weights. */
static void EV_FN(qc_plain)(int *plain)
{
#if defined(__AVX2__)
    *plain = 0;
#else
    *plain = 1;
#endif
}
