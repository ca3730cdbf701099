/* The tile of gemm_tile.h for up to VW columns in vectors of type W, one a row, two elements of k at a time. Included
 * for each width by gemm_tile.h, which defines
 *   W            the vector of a row's sums
 *   W_PART       the first n elements of a row of B as such
 *   W_WIDEN      a V of one, the rest zero
 *   VECTOR_ROWS  the name of the function */
static inline __attribute__((always_inline)) void VECTOR_ROWS(
    const ev_tile *t, int plain, const T *a, const T *b, int64_t i0, int64_t j0, const int mr)
{
    const int64_t rsa = t->rsa, csa = t->csa, ldb = t->ldb, lanes = sizeof(W) / sizeof(T);
    const int64_t n = t->n - j0 < lanes ? t->n - j0 : lanes; /* what is left may be gemm_tail's */
    const T *a3 = a + 3 * rsa, *a6 = a + 6 * rsa, *a9 = a + 9 * rsa; /* as x86 addresses reach three rows each */
    int64_t k = t->k;
#define X(i) W p##i = {0};
    EV_EACH_ROW(X)
#undef X
#define AT(i, p) ((i < 3 ? a : i < 6 ? a3 : i < 9 ? a6 : a9) + (p) * csa)[(i % 3) * rsa]
    for (; k > 1; k -= 2) {
        const W b0 = W_PART(b, n), b1 = W_PART(b + ldb, n);
#define X(i)                        \
        if (mr > i) {               \
            p##i += b0 * AT(i, 0);  \
            p##i += b1 * AT(i, 1);  \
        }
        EV_EACH_ROW(X)
#undef X
        a += 2 * csa;
        a3 += 2 * csa;
        a6 += 2 * csa;
        a9 += 2 * csa;
        b += 2 * ldb;
    }
    if (k > 0) {
        const W b0 = W_PART(b, n);
#define X(i) if (mr > i) p##i += b0 * AT(i, 0);
        EV_EACH_ROW(X)
#undef X
    }
#undef AT
    if (plain) {
        T *c = (T *)t->c + i0 * t->ldc + j0;
#define X(i) if (mr > i) SET_PART(c + i * t->ldc, n, W_WIDEN(p##i));
        EV_EACH_ROW(X)
#undef X
        return;
    }
#define X(i) W_WIDEN(p##i),
    const V sums[] = {EV_EACH_ROW(X)};
#undef X
    EV_TYPED(vector_finish)(t, sums, i0, j0, mr, n);
}
