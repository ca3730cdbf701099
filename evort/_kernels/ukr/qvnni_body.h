/* Sums of products of bytes by vpdpbusd (VNNI): four products of uint8 by int8 are added to an int32 lane, and nothing
 * saturates. A panel's quad of 16 columns is one vector. */

/* mr rows by nv panels. Rows are named variables, as GCC keeps arrays of vectors in memory. */
#define EV_ROWS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
static inline __attribute__((always_inline)) void EV_FN(qc_dots)(
    int64_t quads, const int8_t *a, int64_t lda, const uint8_t *b, int64_t step, int32_t *sum, int64_t ld, const int mr,
    const int nv)
{
    const int8_t *a4 = a + 4 * lda, *a8 = a + 8 * lda;
#define X(i) __m512i p##i = _mm512_setzero_si512(), q##i = p##i;
    EV_ROWS(X)
#undef X
    for (; quads > 0; quads--, a += 4, a4 += 4, a8 += 4, b += 64) {
        const __m512i b0 = _mm512_loadu_si512(b), b1 = nv > 1 ? _mm512_loadu_si512(b + step) : b0;
#define X(i)                                                                                    \
        if (mr > i) {                                                                           \
            int32_t four;                                                                       \
            memcpy(&four, (i < 4 ? a : i < 8 ? a4 : a8) + (i % 4) * lda, 4);                    \
            const __m512i w = _mm512_set1_epi32(four);                                          \
            p##i = _mm512_dpbusd_epi32(p##i, b0, w);                                            \
            if (nv > 1) q##i = _mm512_dpbusd_epi32(q##i, b1, w);                                \
        }
        EV_ROWS(X)
#undef X
    }
#define X(i)                                                                                    \
    if (mr > i) {                                                                               \
        _mm512_storeu_si512(sum + i * ld, p##i);                                                \
        if (nv > 1) _mm512_storeu_si512(sum + i * ld + EV_QC_NR, q##i);                         \
    }
    EV_ROWS(X)
#undef X
}

static void EV_FN(qc_tile)(int64_t m, int64_t n, int s, int64_t k, const void *a, int64_t lda, const uint8_t *b,
                           int64_t step, const ev_qextra *const *extra, const int32_t *extras, int32_t *sum, int64_t ld)
{
    (void)s, (void)extra, (void)extras;
    for (; n > 0; n -= 2 * EV_QC_NR, b += 2 * step, sum += 2 * EV_QC_NR) {
        const int8_t *w = a;
        int32_t *to = sum;
        int64_t i = m;
#define CALL(mr)                                                                                \
        for (; i >= mr; i -= mr, w += mr * lda, to += mr * ld)                                  \
            if (n > EV_QC_NR) EV_FN(qc_dots)(k / 4, w, lda, b, step, to, ld, mr, 2);            \
            else EV_FN(qc_dots)(k / 4, w, lda, b, step, to, ld, mr, 1)
        CALL(12);
        CALL(4);
        CALL(1);
#undef CALL
    }
}
#undef EV_ROWS

/* Rows of W are used as they lie. */
static void EV_FN(qc_plain)(int *plain)
{
    *plain = 1;
}
