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
