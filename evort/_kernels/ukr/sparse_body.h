/* Products with sparse weights: tiles of 4 rows (or one) by 64 columns.
 *
 * A group of rows lists the indices k at which any of its weights is not zero; only those rows of B are read. B is a
 * panel [K][64] or, in integers, 64 positions of an image for each of K taps, where they lie:
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
    const int rows, int64_t quads, const uint16_t *index, const int32_t *offset, const int8_t *w, const uint8_t *b,
    uint64_t lanes, int32_t *sum, int64_t ld)
{
#define EACH(X) X(0) X(1) X(2) X(3)
#define X(i) __m512i p##i = _mm512_setzero_si512(), q##i = p##i, r##i = p##i, s##i = p##i;
    EACH(X)
#undef X
    for (; quads > 0; quads--, index += 4, w += 4 * rows) {
        const __m512i v0 = _mm512_loadu_si512(b + offset[index[0]]), v1 = _mm512_loadu_si512(b + offset[index[1]]);
        const __m512i v2 = _mm512_loadu_si512(b + offset[index[2]]), v3 = _mm512_loadu_si512(b + offset[index[3]]);
        const __m512i lo01 = _mm512_unpacklo_epi8(v0, v1), hi01 = _mm512_unpackhi_epi8(v0, v1);
        const __m512i lo23 = _mm512_unpacklo_epi8(v2, v3), hi23 = _mm512_unpackhi_epi8(v2, v3);
        const __m512i b0 = _mm512_unpacklo_epi16(lo01, lo23), b1 = _mm512_unpackhi_epi16(lo01, lo23);
        const __m512i b2 = _mm512_unpacklo_epi16(hi01, hi23), b3 = _mm512_unpackhi_epi16(hi01, hi23);
#define X(i)                                       \
    if (rows > i) {                                \
        int32_t four;                              \
        memcpy(&four, w + 4 * i, 4);               \
        const __m512i a = _mm512_set1_epi32(four); \
        p##i = _mm512_dpbusd_epi32(p##i, b0, a);   \
        q##i = _mm512_dpbusd_epi32(q##i, b1, a);   \
        r##i = _mm512_dpbusd_epi32(r##i, b2, a);   \
        s##i = _mm512_dpbusd_epi32(s##i, b3, a);   \
    }
        EACH(X)
#undef X
    }
    /* 128 bits i of p, q, r, s are columns 16i to 16i + 3, 16i + 4 ..., 16i + 8 ..., 16i + 12 ... */
    const int all = !(lanes & (lanes + 1));
#define X(i)                                                                                               \
    if (rows > i) {                                                                                        \
        const __m512i pq0 = _mm512_shuffle_i32x4(p##i, q##i, 0x44);                                        \
        const __m512i rs0 = _mm512_shuffle_i32x4(r##i, s##i, 0x44);                                        \
        const __m512i pq1 = _mm512_shuffle_i32x4(p##i, q##i, 0xEE);                                        \
        const __m512i rs1 = _mm512_shuffle_i32x4(r##i, s##i, 0xEE);                                        \
        const __m512i v[4] = {_mm512_shuffle_i32x4(pq0, rs0, 0x88), _mm512_shuffle_i32x4(pq0, rs0, 0xDD),  \
                              _mm512_shuffle_i32x4(pq1, rs1, 0x88), _mm512_shuffle_i32x4(pq1, rs1, 0xDD)}; \
        int32_t *to = sum + i * ld;                                                                        \
        if (all) {                                                                                         \
            _mm512_storeu_si512(to, v[0]);                                                                 \
            _mm512_storeu_si512(to + 16, v[1]);                                                            \
            _mm512_storeu_si512(to + 32, v[2]);                                                            \
            _mm512_storeu_si512(to + 48, v[3]);                                                            \
        } else {                                                                                           \
            _mm512_storeu_si512(to, _mm512_maskz_compress_epi32((__mmask16)lanes, v[0]));                  \
            to += __builtin_popcountll(lanes & 0xFFFF);                                                    \
            _mm512_storeu_si512(to, _mm512_maskz_compress_epi32((__mmask16)(lanes >> 16), v[1]));          \
            to += __builtin_popcountll(lanes >> 16 & 0xFFFF);                                              \
            _mm512_storeu_si512(to, _mm512_maskz_compress_epi32((__mmask16)(lanes >> 32), v[2]));          \
            to += __builtin_popcountll(lanes >> 32 & 0xFFFF);                                              \
            _mm512_storeu_si512(to, _mm512_maskz_compress_epi32((__mmask16)(lanes >> 48), v[3]));          \
        }                                                                                                  \
    }
    EACH(X)
#undef X
#undef EACH
}
#else
/* Sums [rows][64] without the lanes that are not set. */
static inline void EV_FN(sp_keep)(int rows, uint64_t lanes, int32_t *sum, int64_t ld)
{
    if (!(lanes & (lanes + 1))) return;
    for (; rows > 0; rows--, sum += ld) {
        int32_t line[EV_SP_NR + 8];
        memcpy(line, sum, EV_SP_NR * sizeof *sum);
        memset(line + EV_SP_NR, 0, 8 * sizeof *sum);
        int at = 0, from, n;
        for (uint64_t left = lanes; left; left = from + n < 64 ? left >> (from + n) << (from + n) : 0, at += n) {
            from = __builtin_ctzll(left);
            n = __builtin_ctzll(~(left >> from));
            for (int j = 0; j < n; j += 8)
                memcpy(sum + at + j, line + from + j, (at + j + 8 <= EV_SP_NR ? 8 : (size_t)(n - j)) * sizeof *sum);
        }
    }
}

#if defined(__AVX2__)
static inline __attribute__((always_inline)) void EV_FN(sp_rows)(
    const int rows, int64_t quads, const uint16_t *index, const int32_t *offset, const int8_t *w, const uint8_t *b,
    uint64_t lanes, int32_t *sum, int64_t ld)
{
    enum { QUADS = 320 }; /* whose weights, in 16 bits, and places are looked up at a time, for all columns */
    struct {
        int16_t w[4 * EV_SP_MR];
        int32_t at[4];
    } quad[QUADS];
#define EACH(X) X(0) X(1) X(2) X(3)
    for (int j = 0; j < EV_SP_NR; j += 16) {
#define X(i) __m256i p##i = _mm256_setzero_si256(), q##i = p##i;
        EACH(X)
#undef X
        for (int64_t first = 0; first < quads; first += QUADS) {
            const int64_t some = quads - first < QUADS ? quads - first : QUADS;
            for (int64_t t = 0; t < some && (j == 0 || quads > QUADS); t++) {
                const uint16_t *at = index + 4 * (first + t);
                const int8_t *from = w + 4 * rows * (first + t);
                if (rows == EV_SP_MR)
                    _mm256_storeu_si256((__m256i *)quad[t].w,
                                        _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)from)));
                else
                    for (int i = 0; i < 4; i++) quad[t].w[i] = from[i];
                for (int i = 0; i < 4; i++) quad[t].at[i] = offset[at[i]];
            }
            for (int64_t t = 0; t < some; t++)
#pragma GCC unroll 2
                for (int h = 0; h < 2; h++) {
                    const __m128i x = _mm_loadu_si128((const __m128i *)(b + j + quad[t].at[2 * h]));
                    const __m128i y = _mm_loadu_si128((const __m128i *)(b + j + quad[t].at[2 * h + 1]));
                    const __m256i lo = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(x, y));
                    const __m256i hi = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(x, y));
#define X(i)                                                     \
    if (rows > i) {                                              \
        int32_t two;                                             \
        memcpy(&two, quad[t].w + 4 * i + 2 * h, 4);              \
        const __m256i a = _mm256_set1_epi32(two);                \
        p##i = _mm256_add_epi32(p##i, _mm256_madd_epi16(lo, a)); \
        q##i = _mm256_add_epi32(q##i, _mm256_madd_epi16(hi, a)); \
    }
                    EACH(X)
#undef X
                }
        }
#define X(i)                                                          \
    if (rows > i) {                                                   \
        _mm256_storeu_si256((__m256i *)(sum + i * ld + j), p##i);     \
        _mm256_storeu_si256((__m256i *)(sum + i * ld + j + 8), q##i); \
    }
        EACH(X)
#undef X
    }
#undef EACH
    EV_FN(sp_keep)(rows, lanes, sum, ld);
}
#else
static inline void EV_FN(sp_rows)(const int rows, int64_t quads, const uint16_t *index, const int32_t *offset,
                                  const int8_t *w, const uint8_t *b, uint64_t lanes, int32_t *sum, int64_t ld)
{
    for (int i = 0; i < rows; i++) memset(sum + i * ld, 0, EV_SP_NR * sizeof *sum);
    for (int64_t t = 0; t < 4 * quads; t++) {
        const uint8_t *x = b + offset[index[t]];
        for (int i = 0; i < rows; i++) {
            const int16_t a = w[(t / 4 * rows + i) * 4 + t % 4]; /* 16 bits hold a product of bytes */
            for (int j = 0; j < EV_SP_NR; j++) sum[i * ld + j] += (int16_t)(x[j] * a);
        }
    }
    EV_FN(sp_keep)(rows, lanes, sum, ld);
}
#endif
#endif

/* sum[i][] = row i of the group times B, for `rows` rows: EV_SP_MR or 1. Row p of B lies at b + offset[p], 64 bytes, of
 * which the results of the lanes that are set are kept, one after the other. */
static void EV_FN(sp_tile_s8)(int rows, int64_t quads, const uint16_t *index, const int32_t *offset, const int8_t *w,
                              const uint8_t *b, uint64_t lanes, int32_t *sum, int64_t ld)
{
    if (rows == 1) EV_FN(sp_rows)(1, quads, index, offset, w, b, lanes, sum, ld);
    else EV_FN(sp_rows)(EV_SP_MR, quads, index, offset, w, b, lanes, sum, ld);
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
