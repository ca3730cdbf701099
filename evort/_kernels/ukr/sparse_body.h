/* Products with sparse weights: tiles of 4 rows (or one) by 64 columns.
 *
 * A group of rows lists the indices k at which any of its weights is not zero; only those rows of the panel
 * B [K][64] are read:
 *
 *   int8     4 indices at a time (a quad): index[q][4], w[q][rows][4]; the last quad is filled up with weights of zero
 *   float32  one at a time:                index[i],    w[i][rows]
 *
 * Four rows of B are interleaved in registers, so that one instruction multiplies a quad of weights with those of a
 * column: that costs 8 shuffles for 64 columns, whatever indices there are, and serves all rows of the group. Integer
 * sums are exact in 32 bits: with VNNI a product of four is added up in 32 bits, elsewhere bytes are widened to 16. */

/* Rows of a panel: offset[p] in the image and on, along the runs; elements of 1 (flip: 0x80 for int8) or 4 bytes. Where
 * `careful`, nothing beyond a run is read; else up to 15 bytes are. So many are written behind the panel. */
#if defined(__AVX512BW__)
static void EV_FN(sp_gather)(int64_t k, int64_t size, const char *image, const int32_t *offset, const ev_qrun *run,
                             int runs, int careful, int flip, char *dst)
{
    /* The runs that meet each of the row's vectors, by masked loads: other bytes are neither read nor needed. */
    struct {
        const char *from;
        __mmask64 mask;
    } part[4][EV_SP_NR];
    int parts[4] = {0, 0, 0, 0};
    (void)careful;
    for (int64_t v = 0; v < size; v++)
        for (int i = 0; i < runs; i++) {
            const int64_t low = run[i].at * size - 64 * v, high = low + run[i].n * size;
            if (high <= 0 || low >= 64) continue;
            const uint64_t below = low > 0 ? ~0ull << low : ~0ull, above = high < 64 ? ~0ull >> (64 - high) : ~0ull;
            part[v][parts[v]].from = image + (run[i].from - run[i].at) * size + 64 * v;
            part[v][parts[v]++].mask = below & above;
        }
    const __m512i f = _mm512_set1_epi8((char)flip);
    for (int64_t p = 0; p < k; p++)
        for (int64_t v = 0; v < size; v++, dst += 64) {
            __m512i x = _mm512_setzero_si512();
            for (int i = 0; i < parts[v]; i++)
                x = _mm512_mask_loadu_epi8(x, part[v][i].mask, part[v][i].from + offset[p] * size);
            _mm512_storeu_si512(dst, _mm512_xor_si512(x, f));
        }
}
#else
static void EV_FN(sp_gather)(int64_t k, int64_t size, const char *image, const int32_t *offset, const ev_qrun *run,
                             int runs, int careful, int flip, char *dst)
{
    const uint64_t mask = 0x0101010101010101u * (uint8_t)flip;
    for (int64_t p = 0; p < k; p++, dst += EV_SP_NR * size)
        for (int i = 0; i < runs; i++) {
            const char *from = image + (run[i].from + offset[p]) * size;
            char *to = dst + run[i].at * size;
            const int64_t n = run[i].n * size;
            int64_t b = 0;
            for (; b < (careful ? n - 15 : n); b += 16) {
                uint64_t v[2];
                memcpy(v, from + b, 16);
                v[0] ^= mask;
                v[1] ^= mask;
                memcpy(to + b, v, 16);
            }
            for (; b < n; b++) to[b] = (char)(from[b] ^ flip);
        }
}
#endif

#if defined(__AVX512VNNI__)
static inline __attribute__((always_inline)) void EV_FN(sp_rows)(
    const int rows, int64_t quads, const uint16_t *index, const int8_t *w, const uint8_t *b, int32_t *sum, int64_t ld)
{
#define EACH(X) X(0) X(1) X(2) X(3)
#define X(i) __m512i p##i = _mm512_setzero_si512(), q##i = p##i, r##i = p##i, s##i = p##i;
    EACH(X)
#undef X
    for (; quads > 0; quads--, index += 4, w += 4 * rows) {
        const __m512i v0 = _mm512_loadu_si512(b + index[0] * 64), v1 = _mm512_loadu_si512(b + index[1] * 64);
        const __m512i v2 = _mm512_loadu_si512(b + index[2] * 64), v3 = _mm512_loadu_si512(b + index[3] * 64);
        const __m512i lo01 = _mm512_unpacklo_epi8(v0, v1), hi01 = _mm512_unpackhi_epi8(v0, v1);
        const __m512i lo23 = _mm512_unpacklo_epi8(v2, v3), hi23 = _mm512_unpackhi_epi8(v2, v3);
        const __m512i b0 = _mm512_unpacklo_epi16(lo01, lo23), b1 = _mm512_unpackhi_epi16(lo01, lo23);
        const __m512i b2 = _mm512_unpacklo_epi16(hi01, hi23), b3 = _mm512_unpackhi_epi16(hi01, hi23);
#define X(i)                                                \
    if (rows > i) {                                         \
        int32_t four;                                       \
        memcpy(&four, w + 4 * i, 4);                        \
        const __m512i a = _mm512_set1_epi32(four);          \
        p##i = _mm512_dpbusd_epi32(p##i, b0, a);            \
        q##i = _mm512_dpbusd_epi32(q##i, b1, a);            \
        r##i = _mm512_dpbusd_epi32(r##i, b2, a);            \
        s##i = _mm512_dpbusd_epi32(s##i, b3, a);            \
    }
        EACH(X)
#undef X
    }
    /* 128 bits i of p, q, r, s are columns 16i to 16i + 3, 16i + 4 ..., 16i + 8 ..., 16i + 12 ... */
#define STORE(i, lane)                                                                                     \
    _mm_storeu_si128((__m128i *)(sum + i * ld + 16 * lane), _mm512_extracti32x4_epi32(p##i, lane));        \
    _mm_storeu_si128((__m128i *)(sum + i * ld + 16 * lane + 4), _mm512_extracti32x4_epi32(q##i, lane));    \
    _mm_storeu_si128((__m128i *)(sum + i * ld + 16 * lane + 8), _mm512_extracti32x4_epi32(r##i, lane));    \
    _mm_storeu_si128((__m128i *)(sum + i * ld + 16 * lane + 12), _mm512_extracti32x4_epi32(s##i, lane));
#define X(i)            \
    if (rows > i) {     \
        STORE(i, 0)     \
        STORE(i, 1)     \
        STORE(i, 2)     \
        STORE(i, 3)     \
    }
    EACH(X)
#undef X
#undef STORE
#undef EACH
}
#elif defined(__AVX2__)
static inline __attribute__((always_inline)) void EV_FN(sp_rows)(
    const int rows, int64_t quads, const uint16_t *index, const int8_t *w, const uint8_t *b, int32_t *sum, int64_t ld)
{
#define EACH(X) X(0) X(1) X(2) X(3)
    for (int j = 0; j < EV_SP_NR; j += 16) {
#define X(i) __m256i p##i = _mm256_setzero_si256(), q##i = p##i;
        EACH(X)
#undef X
        for (int64_t t = 0; t < quads; t++) {
            int16_t wide[4 * EV_SP_MR] __attribute__((aligned(32)));
            if (rows == EV_SP_MR)
                _mm256_store_si256((__m256i *)wide,
                                   _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + t * 16))));
            else
                for (int i = 0; i < 4; i++) wide[i] = w[t * 4 + i];
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                const uint8_t *x = b + index[4 * t + 2 * h] * 64 + j, *y = b + index[4 * t + 2 * h + 1] * 64 + j;
                const __m256i u = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)x));
                const __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)y));
                const __m256i lo = _mm256_unpacklo_epi16(u, v), hi = _mm256_unpackhi_epi16(u, v);
#define X(i)                                                              \
    if (rows > i) {                                                       \
        int32_t two;                                                      \
        memcpy(&two, wide + 4 * i + 2 * h, 4);                            \
        const __m256i a = _mm256_set1_epi32(two);                         \
        p##i = _mm256_add_epi32(p##i, _mm256_madd_epi16(lo, a));          \
        q##i = _mm256_add_epi32(q##i, _mm256_madd_epi16(hi, a));          \
    }
                EACH(X)
#undef X
            }
        }
#define X(i)                                                                                                        \
    if (rows > i) {                                                                                                 \
        _mm256_storeu_si256((__m256i *)(sum + i * ld + j), _mm256_permute2x128_si256(p##i, q##i, 0x20));            \
        _mm256_storeu_si256((__m256i *)(sum + i * ld + j + 8), _mm256_permute2x128_si256(p##i, q##i, 0x31));        \
    }
        EACH(X)
#undef X
    }
#undef EACH
}
#else
static inline void EV_FN(sp_rows)(const int rows, int64_t quads, const uint16_t *index, const int8_t *w,
                                  const uint8_t *b, int32_t *sum, int64_t ld)
{
    for (int i = 0; i < rows; i++) memset(sum + i * ld, 0, EV_SP_NR * sizeof *sum);
    for (int64_t t = 0; t < 4 * quads; t++) {
        const uint8_t *x = b + index[t] * EV_SP_NR;
        for (int i = 0; i < rows; i++) {
            const int16_t a = w[(t / 4 * rows + i) * 4 + t % 4]; /* 16 bits hold a product of bytes */
            for (int j = 0; j < EV_SP_NR; j++) sum[i * ld + j] += (int16_t)(x[j] * a);
        }
    }
}
#endif

/* sum[i][0..64) = row i of the group times the panel, for `rows` rows: EV_SP_MR or 1. */
static void EV_FN(sp_tile_s8)(int rows, int64_t quads, const uint16_t *index, const int8_t *w, const uint8_t *b,
                              int32_t *sum, int64_t ld)
{
    if (rows == 1) EV_FN(sp_rows)(1, quads, index, w, b, sum, ld);
    else EV_FN(sp_rows)(EV_SP_MR, quads, index, w, b, sum, ld);
}

/* sum[i] = row i of the group times the vector x. */
static void EV_FN(sp_dot_s8)(int rows, int64_t quads, const uint16_t *index, const int8_t *w, const uint8_t *x,
                             int32_t *sum)
{
    int64_t t = 0;
    for (int i = 0; i < rows; i++) sum[i] = 0;
#if defined(__AVX2__)
    if (rows == EV_SP_MR) {
#if defined(__AVX512VNNI__)
        __m128i total = _mm_setzero_si128();
#else
        __m256i acc = _mm256_setzero_si256();
#endif
        for (; t < quads; t++) {
            const uint8_t four[4] = {x[index[4 * t]], x[index[4 * t + 1]], x[index[4 * t + 2]], x[index[4 * t + 3]]};
            const __m128i a = _mm_loadu_si128((const __m128i *)(w + 16 * t));
            int32_t b;
            memcpy(&b, four, 4);
#if defined(__AVX512VNNI__)
            total = _mm_dpbusd_epi32(total, _mm_set1_epi32(b), a);
#else
            const __m256i wide = _mm256_cvtepu8_epi16(_mm_set1_epi32(b));
            acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_cvtepi8_epi16(a), wide));
#endif
        }
#if !defined(__AVX512VNNI__)
        const __m256i pairs = _mm256_hadd_epi32(acc, acc); /* rows 0 1 0 1 | 2 3 2 3 */
        const __m128i total = _mm_unpacklo_epi64(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
#endif
        _mm_storeu_si128((__m128i *)sum, total);
        return;
    }
#endif
    for (; t < quads; t++)
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < 4; v++) sum[i] += w[(t * rows + i) * 4 + v] * x[index[4 * t + v]];
}
