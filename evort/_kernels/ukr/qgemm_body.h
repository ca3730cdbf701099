/* Quantized matrix products: sums of products of 8-bit (and 16 by 8 bit) integers, exact for every operand.
 *
 *     A, B less their zero points  ->  int16, two successive k side by side (a pair, an int32)
 *     A    rows of pairs                         B    panels of EV_QNR columns, pair by pair
 *          a00a01 a02a03 ...                          b00b10 b01b11 ... b0,15b1,15
 *          a10a11 a12a13 ...                          b20b30 b21b31 ...
 *
 * One instruction (vpmaddwd) multiplies and adds the pairs of 8 columns into int32 lanes, with nothing lost: the 8-bit
 * form of that instruction would saturate. */
#if defined(__AVX2__)
#define EV_QBYTES 32
#define EV_QMADD(x, y) ((EV_FN(qv))_mm256_madd_epi16((__m256i)(x), (__m256i)(y)))
#elif defined(__SSE2__)
#define EV_QBYTES 16
#define EV_QMADD(x, y) ((EV_FN(qv))_mm_madd_epi16((__m128i)(x), (__m128i)(y)))
#else
#define EV_QBYTES 16
#define EV_QMADD(x, y) (((x) << 16 >> 16) * ((y) << 16 >> 16) + ((x) >> 16) * ((y) >> 16))
#endif
typedef int32_t EV_FN(qv) __attribute__((vector_size(EV_QBYTES), may_alias));
typedef int32_t EV_FN(qvu) __attribute__((vector_size(EV_QBYTES), may_alias, aligned(2)));
typedef int32_t EV_FN(qpair) __attribute__((may_alias, aligned(2)));

/* mr rows by 2 vectors (1: `narrow`). Rows are named variables, as GCC keeps arrays of vectors in memory. */
static inline __attribute__((always_inline)) void EV_FN(qtile_i16)(
    int64_t pairs, const EV_FN(qpair) *a, int64_t lda, const int16_t *b, int add, int32_t *c, const int mr,
    const int narrow)
{
    enum { W = EV_QBYTES / 4 };
    const EV_FN(qpair) *a3 = a + 3 * lda;
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5)
#define X(i) EV_FN(qv) p##i = {0}, q##i = {0};
    EACH(X)
#undef X
    for (; pairs > 0; pairs--, a++, a3++, b += 2 * EV_QNR) {
        const EV_FN(qv) b0 = *(const EV_FN(qvu) *)b, b1 = narrow ? b0 : *(const EV_FN(qvu) *)(b + 2 * W);
#define X(i)                                                                       \
        if (mr > i) {                                                              \
            const EV_FN(qv) x = (i < 3 ? a : a3)[(i % 3) * lda] - (EV_FN(qv)){0};  \
            p##i += EV_QMADD(b0, x);                                               \
            if (!narrow) q##i += EV_QMADD(b1, x);                                  \
        }
        EACH(X)
#undef X
    }
#define X(i)                                                                       \
    if (mr > i) {                                                                  \
        EV_FN(qvu) *to = (EV_FN(qvu) *)(c + i * EV_QNR);                           \
        if (add) p##i += to[0];                                                    \
        to[0] = p##i;                                                              \
        if (!narrow && add) q##i += to[1];                                         \
        if (!narrow) to[1] = q##i;                                                 \
    }
    EACH(X)
#undef X
#undef EACH
}

/* C (+)= A B for m rows of A, `pairs` long and lda pairs apart, and one panel of B with n columns. C has EV_QNR in a
 * row; of those from n on, nothing is to be expected. */
static void EV_FN(qgemm_i16)(int64_t m, int64_t n, int64_t pairs, const int16_t *a, int64_t lda, const int16_t *b, int add,
                             int32_t *c)
{
    enum { STEP = EV_QBYTES / 2 }; /* columns of two vectors */
    for (int64_t j = 0; j < n; j += STEP, b += 2 * STEP, c += STEP) {
        const EV_FN(qpair) *x = (const EV_FN(qpair) *)a;
        int32_t *y = c;
        int64_t i = m;
#define CALL(mr)                                                                   \
        if (n - j > STEP / 2) EV_FN(qtile_i16)(pairs, x, lda, b, add, y, mr, 0);   \
        else EV_FN(qtile_i16)(pairs, x, lda, b, add, y, mr, 1)
        for (; i >= EV_QMR; i -= EV_QMR, x += EV_QMR * lda, y += EV_QMR * EV_QNR) { CALL(6); }
        switch (i) {
        case 1: CALL(1); break;
        case 2: CALL(2); break;
        case 3: CALL(3); break;
        case 4: CALL(4); break;
        case 5: CALL(5); break;
        }
#undef CALL
    }
}

/* Quads: four successive k of bytes side by side, one operand unsigned, the other (the weights) signed. Products of
 * bytes are summed to 16 bits, two at a time (vpmaddubsw), PRESUM such sums are added up there and only then widened;
 * whoever made the weights has proven that nothing of this overflows. */
#if defined(__AVX2__)
static inline __attribute__((always_inline)) void EV_FN(qtile_u8)(
    int64_t quads, const uint8_t *a, int64_t lda, const uint8_t *b, const int a_unsigned, const int presum, int add,
    int32_t *c, const int mr, const int narrow)
{
    const uint8_t *a3 = a + 3 * lda;
    const __m256i one = _mm256_set1_epi16(1);
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5)
#define X(i) __m256i p##i = _mm256_setzero_si256(), q##i = p##i;
    EACH(X)
#undef X
#define LOADB(at) _mm256_loadu_si256((const __m256i *)(b + (at)))
#define QUAD(x, y) (a_unsigned ? _mm256_maddubs_epi16(x, y) : _mm256_maddubs_epi16(y, x))
#define STEP(count)                                                                                    \
    _Pragma("GCC unroll 1") for (; quads >= (count); quads -= (count), a += 4 * (count), a3 += 4 * (count), \
                                 b += 64 * (count)) {                                                  \
        EACH(X)                                                                                        \
    }
#define X(i)                                                                                           \
        if (mr > i) {                                                                                  \
            __m256i s, t;                                                                              \
            int32_t w;                                                                                 \
            _Pragma("GCC unroll 4") for (int g = 0; g < COUNT; g++) {                                  \
                memcpy(&w, (i < 3 ? a : a3) + (i % 3) * lda + 4 * g, 4);                               \
                const __m256i x = _mm256_set1_epi32(w);                                                \
                const __m256i sg = QUAD(x, LOADB(64 * g));                                             \
                s = g ? _mm256_add_epi16(s, sg) : sg;                                                  \
                if (!narrow) {                                                                         \
                    const __m256i tg = QUAD(x, LOADB(64 * g + 32));                                    \
                    t = g ? _mm256_add_epi16(t, tg) : tg;                                              \
                }                                                                                      \
            }                                                                                          \
            p##i = _mm256_add_epi32(p##i, _mm256_madd_epi16(s, one));                                  \
            if (!narrow) q##i = _mm256_add_epi32(q##i, _mm256_madd_epi16(t, one));                     \
        }
#define COUNT presum
    STEP(presum)
#undef COUNT
#define COUNT 1
    STEP(1)
#undef COUNT
#undef X
#define X(i)                                                                                           \
    if (mr > i) {                                                                                      \
        __m256i *to = (__m256i *)(c + i * EV_QNR);                                                     \
        if (add) p##i = _mm256_add_epi32(p##i, _mm256_loadu_si256(to));                                \
        _mm256_storeu_si256(to, p##i);                                                                 \
        if (!narrow && add) q##i = _mm256_add_epi32(q##i, _mm256_loadu_si256(to + 1));                 \
        if (!narrow) _mm256_storeu_si256(to + 1, q##i);                                                \
    }
    EACH(X)
#undef X
#undef EACH
#undef STEP
#undef QUAD
#undef LOADB
}

static inline __attribute__((always_inline)) void EV_FN(qrows_u8)(
    int64_t m, int64_t n, int64_t quads, const uint8_t *a, int64_t lda, const uint8_t *b, const int a_unsigned,
    const int presum, int add, int32_t *c)
{
#define CALL(mr)                                                                                       \
    if (n > EV_QNR / 2) EV_FN(qtile_u8)(quads, a, lda, b, a_unsigned, presum, add, c, mr, 0);          \
    else EV_FN(qtile_u8)(quads, a, lda, b, a_unsigned, presum, add, c, mr, 1)
    for (; m >= EV_QMR; m -= EV_QMR, a += EV_QMR * lda, c += EV_QMR * EV_QNR) { CALL(6); }
    for (; m >= 2; m -= 2, a += 2 * lda, c += 2 * EV_QNR) { CALL(2); }
    if (m) { CALL(1); }
#undef CALL
}
#endif

/* As qgemm_i16; the rows of A are lda bytes apart. presum: 1, 2 or 4. */
static void EV_FN(qgemm_u8)(int64_t m, int64_t n, int64_t quads, const uint8_t *a, int64_t lda, const uint8_t *b,
                            int a_unsigned, int presum, int add, int32_t *c)
{
#if defined(__AVX2__)
#define CALL(u) \
    if (presum >= 4) EV_FN(qrows_u8)(m, n, quads, a, lda, b, u, 4, add, c); \
    else if (presum >= 2) EV_FN(qrows_u8)(m, n, quads, a, lda, b, u, 2, add, c); \
    else EV_FN(qrows_u8)(m, n, quads, a, lda, b, u, 1, add, c)
    if (a_unsigned) { CALL(1); }
    else { CALL(0); }
#undef CALL
#else
    for (int64_t i = 0; i < m; i++, a += lda, c += EV_QNR)
        for (int64_t j = 0; j < n; j++) {
            int32_t sum = add ? c[j] : 0;
            for (int64_t p = 0; p < 4 * quads; p++) {
                const uint8_t x = a[p], y = b[p / 4 * 4 * EV_QNR + 4 * j + p % 4];
                sum += a_unsigned ? x * (int8_t)y : (int8_t)x * y;
            }
            c[j] = sum;
        }
#endif
}

/* Whether this instruction set has a product of bytes that is worth using: 1 where a proof of `presum` comes with the
 * weights, 2 whatever they are. */
static void EV_FN(qhas_u8)(int *has)
{
#if defined(__AVX2__)
    *has = 1;
#else
    *has = 0;
#endif
}

#if defined(__AVX2__)
/* The sums over [0, k), in steps of 16, of x with each of four rows, `add` to them. */
static inline __attribute__((always_inline)) void EV_FN(qdot_4)(int64_t k, const int16_t *x, const uint8_t *const *r,
                                                                const int is_signed, __m256i *add)
{
    __m256i s0 = add[0], s1 = add[1], s2 = add[2], s3 = add[3];
    for (int64_t p = 0; p < k; p += 16) {
        const __m256i v = _mm256_loadu_si256((const __m256i *)(x + p));
#define X(i) { \
        const __m128i w = _mm_loadu_si128((const __m128i *)(r[i] + p)); \
        s##i = _mm256_add_epi32(s##i, _mm256_madd_epi16(v, is_signed ? _mm256_cvtepi8_epi16(w) : _mm256_cvtepu8_epi16(w))); \
    }
        X(0) X(1) X(2) X(3)
#undef X
    }
    add[0] = s0, add[1] = s1, add[2] = s2, add[3] = s3;
}
#endif

/* One row or column: sums[j*inc] += the sum over k of x[p] w[j*ld + p], for n rows of W. */
static void EV_FN(qdot)(int64_t n, int64_t k, const int16_t *x, const uint8_t *w, int64_t ld, int is_signed,
                        int32_t *sums, int64_t inc)
{
#if defined(__AVX2__)
    const int64_t whole = k / 16 * 16, left = k - whole;
    const uint8_t *end = w + (n - 1) * ld + k;
    int16_t rest[16] = {0};
    memcpy(rest, x + whole, 2 * left);
    for (int64_t j = 0; j < n; j += 4, w += 4 * ld) {
        const int64_t rows = n - j < 4 ? n - j : 4;
        const uint8_t *r[4];
        uint8_t last[4][16];
        __m256i s[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
        for (int i = 0; i < 4; i++) r[i] = w + (i < rows ? i : 0) * ld;
        if (is_signed) EV_FN(qdot_4)(whole, x, r, 1, s);
        else EV_FN(qdot_4)(whole, x, r, 0, s);
        if (left) {
            const int copied = w + (rows - 1) * ld + whole + 16 > end; /* nothing can be read behind W */
            for (int i = 0; i < 4; i++) r[i] = copied ? memcpy(last[i], r[i] + whole, left) : r[i] + whole;
            if (is_signed) EV_FN(qdot_4)(16, rest, r, 1, s);
            else EV_FN(qdot_4)(16, rest, r, 0, s);
        }
        const __m256i pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
        int32_t total[4];
        _mm_storeu_si128((__m128i *)total, _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
        for (int64_t i = 0; i < rows; i++, sums += inc) *sums += total[i];
    }
#else
    for (int64_t j = 0; j < n; j++, w += ld) {
        int32_t total = 0;
        if (is_signed)
            for (int64_t p = 0; p < k; p++) total += x[p] * ((const int8_t *)w)[p];
        else
            for (int64_t p = 0; p < k; p++) total += x[p] * w[p];
        sums[j * inc] += total;
    }
#endif
}

#if defined(__AVX2__)
/* Eight rows' part of 16 sums, from their column `at` on. x: pairs of rows. */
static inline __attribute__((always_inline)) void EV_FN(qaxpy_16)(const __m256i *x, const uint8_t *const *r, int64_t at,
                                                                  const int is_signed, int32_t *sums)
{
    __m256i s = _mm256_loadu_si256((const __m256i *)sums), t = _mm256_loadu_si256((const __m256i *)(sums + 8));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const __m128i u = _mm_loadu_si128((const __m128i *)(r[2 * i] + at));
        const __m128i v = _mm_loadu_si128((const __m128i *)(r[2 * i + 1] + at));
        const __m128i low = _mm_unpacklo_epi8(u, v), high = _mm_unpackhi_epi8(u, v);
        s = _mm256_add_epi32(s, _mm256_madd_epi16(is_signed ? _mm256_cvtepi8_epi16(low) : _mm256_cvtepu8_epi16(low), x[i]));
        t = _mm256_add_epi32(t, _mm256_madd_epi16(is_signed ? _mm256_cvtepi8_epi16(high) : _mm256_cvtepu8_epi16(high), x[i]));
    }
    _mm256_storeu_si256((__m256i *)sums, s);
    _mm256_storeu_si256((__m256i *)(sums + 8), t);
}
#endif

/* sums[j] += the sum over k of x[p] w[p*ld + j], for n columns of W; up to a multiple of EV_QNR sums are overwritten. */
static void EV_FN(qaxpy)(int64_t n, int64_t k, const int16_t *x, const uint8_t *w, int64_t ld, int is_signed,
                         int32_t *sums)
{
    enum { ROWS = 8 };
#if defined(__AVX2__)
    const uint8_t *end = w + (k - 1) * ld + n;
#endif
    for (int64_t p = 0; p < k; p += ROWS, w += ROWS * ld) {
        int16_t y[ROWS];
        const uint8_t *r[ROWS]; /* rows past the last: that one, times 0 */
        for (int64_t i = 0; i < ROWS; i++) {
            y[i] = p + i < k ? x[p + i] : 0;
            r[i] = w + (p + i < k ? i : k - 1 - p) * ld;
        }
#if defined(__AVX2__)
        uint8_t last[ROWS][EV_QNR];
        __m256i xs[ROWS / 2];
        for (int i = 0; i < ROWS / 2; i++)
            xs[i] = _mm256_set1_epi32((int32_t)((uint16_t)y[2 * i] | (uint32_t)(uint16_t)y[2 * i + 1] << 16));
        int64_t j = 0, at;
        if (is_signed)
            for (; j + EV_QNR <= n; j += EV_QNR) EV_FN(qaxpy_16)(xs, r, j, 1, sums + j);
        else
            for (; j + EV_QNR <= n; j += EV_QNR) EV_FN(qaxpy_16)(xs, r, j, 0, sums + j);
        if (j == n) continue;
        at = j;
        if (r[ROWS - 1] + j + EV_QNR > end) { /* nothing can be read behind W */
            for (int i = 0; i < ROWS; i++) r[i] = memcpy(last[i], r[i] + j, n - j);
            at = 0;
        }
        if (is_signed) EV_FN(qaxpy_16)(xs, r, at, 1, sums + j);
        else EV_FN(qaxpy_16)(xs, r, at, 0, sums + j);
#else
        for (int i = 0; i < ROWS; i++)
            if (is_signed)
                for (int64_t q = 0; q < n; q++) sums[q] += y[i] * ((const int8_t *)r[i])[q];
            else
                for (int64_t q = 0; q < n; q++) sums[q] += y[i] * r[i][q];
#endif
    }
}
