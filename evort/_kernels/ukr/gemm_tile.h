/* The matrix product micro-kernel for one element type; gemm_body.h defines the macros.
 *
 * MR x 2*VW accumulators live in registers: 12 of 16 with AVX2, 12 of 16 with SSE2 (which passes NR/(2*VW) times over
 * a panel). Rows are named variables, as GCC keeps arrays of vectors in memory. */

#define EV_EACH_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5)

/* How many of the 2*VW columns there are. NARROW tiles skip the second vector. */
#ifndef EV_TILE_WIDTHS
#define EV_TILE_WIDTHS
enum { NARROW, PARTIAL, WHOLE }; /* up to VW, fewer than 2*VW, all */
#endif

/* Finishes a tile at the right edge: the same operations in the same order as for whole tiles, so that an element
 * does not depend on where tiles begin. */
static __attribute__((noinline, noclone)) void EV_TYPED(gemm_edge)(const ev_tile *t, T (*acc)[2 * VW], int64_t i0,
                                                                   int64_t j0, int mr)
{
    const T alpha = (T)t->alpha, beta = (T)t->beta, lo = (T)t->lo, hi = (T)t->hi;
    const int64_t n = t->n - j0 < 2 * VW ? t->n - j0 : 2 * VW;
    for (int i = 0; i < mr; i++) {
        const T *add = t->add ? (const T *)t->add + (i0 + i) * t->ldadd + j0 : NULL;
        T *c = (T *)t->c + (i0 + i) * t->ldc + j0;
        for (int64_t j = 0; j < n; j++) {
            T r = t->col_bias ? ((const T *)t->col_bias)[j0 + j] : 0;
            if (t->row_bias) r += ((const T *)t->row_bias)[i0 + i];
            if (add) r += add[j] * beta;
            r += acc[i][j] * alpha;
            r = r < lo ? lo : r;
            c[j] = r > hi ? hi : r;
        }
    }
}

/* mr and width are constants at each call, so every `if` below is resolved by the compiler. */
static inline __attribute__((always_inline)) void EV_TYPED(gemm_rows)(
    const ev_tile *t, const T *a, const T *b, int64_t i0, int64_t j0, const int mr, const int width)
{
    const int64_t rsa = t->rsa, csa = t->csa, ldb = t->ldb;
    const T *a3 = a + 3 * rsa;
#define X(i) V p##i = {0}, q##i = {0};
    EV_EACH_ROW(X)
#undef X
#pragma GCC unroll 4
    for (int64_t k = t->k; k > 0; k--) {
        const V b0 = *(const VU *)b, b1 = width == NARROW ? (V){0} : *(const VU *)(b + VW);
#define X(i)                                             \
        if (mr > i) {                                    \
            const T x = (i < 3 ? a : a3)[(i % 3) * rsa]; \
            MULADD(p##i, b0, x);                         \
            if (width != NARROW) MULADD(q##i, b1, x);    \
        }
        EV_EACH_ROW(X)
#undef X
        a += csa;
        a3 += csa;
        b += ldb;
    }

    if (width != WHOLE) {
        T acc[EV_MR][2 * VW];
#define X(i) *(VU *)acc[i] = p##i, *(VU *)(acc[i] + VW) = q##i;
        EV_EACH_ROW(X)
#undef X
        EV_TYPED(gemm_edge)(t, acc, i0, j0, mr);
        return;
    }
    const T alpha = (T)t->alpha, beta = (T)t->beta;
    const V lo = (T)t->lo - (V){0}, hi = (T)t->hi - (V){0};
    const T *row_bias = t->row_bias ? (const T *)t->row_bias + i0 : NULL;
    const T *col_bias = t->col_bias ? (const T *)t->col_bias + j0 : NULL;
    const T *add = t->add ? (const T *)t->add + i0 * t->ldadd + j0 : NULL;
    T *c = (T *)t->c + i0 * t->ldc + j0;
    V s0 = {0}, s1 = {0};
    if (col_bias) {
        s0 = *(const VU *)col_bias;
        s1 = *(const VU *)(col_bias + VW);
    }
#define X(i)                                                      \
    if (mr > i) {                                                 \
        V r0 = s0, r1 = s1;                                       \
        if (row_bias) {                                           \
            r0 += row_bias[i];                                    \
            r1 += row_bias[i];                                    \
        }                                                         \
        if (add) {                                                \
            r0 += *(const VU *)(add + i * t->ldadd) * beta;       \
            r1 += *(const VU *)(add + i * t->ldadd + VW) * beta;  \
        }                                                         \
        r0 += p##i * alpha;                                       \
        r1 += q##i * alpha;                                       \
        *(VU *)(c + i * t->ldc) = VMIN(hi, VMAX(lo, r0));         \
        *(VU *)(c + i * t->ldc + VW) = VMIN(hi, VMAX(lo, r1));    \
    }
    EV_EACH_ROW(X)
#undef X
}

static void EV_TYPED(gemm)(const ev_tile *t)
{
    for (int64_t j = 0; j < t->n; j += 2 * VW) {
        const T *b = (const T *)t->b + j, *a = t->a;
        const int width = t->n - j >= 2 * VW ? WHOLE : t->n - j > VW ? PARTIAL : NARROW;
        int64_t i = 0;
#define CALL(mr)                                                                       \
        if (width == WHOLE) EV_TYPED(gemm_rows)(t, a, b, i, j, mr, WHOLE);                  \
        else if (width == PARTIAL) EV_TYPED(gemm_rows)(t, a, b, i, j, mr, PARTIAL);         \
        else EV_TYPED(gemm_rows)(t, a, b, i, j, mr, NARROW)
        for (; i + EV_MR <= t->m; i += EV_MR, a += t->a_step) { CALL(6); }
        switch (t->m - i) {
        case 1: CALL(1); break;
        case 2: CALL(2); break;
        case 3: CALL(3); break;
        case 4: CALL(4); break;
        case 5: CALL(5); break;
        }
#undef CALL
    }
}

#undef EV_EACH_ROW
