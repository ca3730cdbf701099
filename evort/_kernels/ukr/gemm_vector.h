/* Matrix times vector for one float type; gemm_body.h defines the macros. Both kernels read the matrix once, along
 * its rows, at the speed of memory.
 *
 *   gemv_rows  y[j] += alpha * sum_p x[p] * w[p*ld + j]    eight rows at a time, y of unit stride
 *   gemv_dot   y[j] += alpha * sum_p x[p] * w[j*ld + p]    four rows at a time, x of unit stride */

static inline T EV_TYPED(lanes_sum)(V v)
{
    T part[VW];
    *(VU *)part = v;
    for (int width = VW / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) part[i] += part[i + width];
    return part[0];
}

/* The sums of the lanes of four vectors: by shuffles of pairs of them where vectors have as many lanes. */
static inline __attribute__((always_inline)) void EV_TYPED(four_sums)(const V *x, T *to)
{
#if EV_VECTOR_BYTES >= 32
    typedef T quad __attribute__((vector_size(4 * sizeof(T))));
    typedef __typeof__(__builtin_choose_expr(sizeof(T) == 4, (int32_t)0, (int64_t)0)) lane;
    typedef lane which __attribute__((vector_size(EV_VECTOR_BYTES)));
    which low, high, first, last; /* of each four lanes */
    for (int i = 0; i < VW; i += 4) {
        low[i] = i, low[i + 1] = VW + i, low[i + 2] = i + 1, low[i + 3] = VW + i + 1;
        high[i] = i + 2, high[i + 1] = VW + i + 2, high[i + 2] = i + 3, high[i + 3] = VW + i + 3;
        first[i] = i, first[i + 1] = i + 1, first[i + 2] = VW + i, first[i + 3] = VW + i + 1;
        last[i] = i + 2, last[i + 1] = i + 3, last[i + 2] = VW + i + 2, last[i + 3] = VW + i + 3;
    }
    const V ab = __builtin_shuffle(x[0], x[1], low) + __builtin_shuffle(x[0], x[1], high);
    const V cd = __builtin_shuffle(x[2], x[3], low) + __builtin_shuffle(x[2], x[3], high);
    const union { V v; quad part[VW / 4]; } u = {__builtin_shuffle(ab, cd, first) + __builtin_shuffle(ab, cd, last)};
    quad sums = u.part[0];
    for (int j = 1; j < VW / 4; j++) sums += u.part[j];
    memcpy(to, &sums, sizeof sums);
#else
    for (int i = 0; i < 4; i++) to[i] = EV_TYPED(lanes_sum)(x[i]);
#endif
}

/* y[0..n) += sum over eight rows. */
static void EV_TYPED(eight_rows)(int64_t n, const T *x, const T *w, int64_t ld, T *y)
{
    int64_t j = 0;
#define EV_EACH_OF_8(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
    for (; j + 2 * VW <= n; j += 2 * VW) {
        V y0 = *(VU *)(y + j), y1 = *(VU *)(y + j + VW);
#define X(i)                                      \
        y0 += *(const VU *)(w + i * ld + j) * x[i]; \
        y1 += *(const VU *)(w + i * ld + j + VW) * x[i];
        EV_EACH_OF_8(X)
#undef X
        *(VU *)(y + j) = y0;
        *(VU *)(y + j + VW) = y1;
    }
#if defined(__AVX512F__) /* parts cost nothing */
    for (; j < n; j += VW) {
        const int64_t left = n - j;
        V s = PART(y + j, left);
#define X(i) s += PART(w + i * ld + j, left) * x[i];
        EV_EACH_OF_8(X)
#undef X
        SET_PART(y + j, left, s);
    }
#endif
    for (; j < n; j++) {
        T s = y[j];
#define X(i) s += w[i * ld + j] * x[i];
        EV_EACH_OF_8(X)
#undef X
        y[j] = s;
    }
#undef EV_EACH_OF_8
}

static void EV_TYPED(gemv_rows)(int64_t n, int64_t k, double alpha, const void *xv, int64_t incx, const void *wv, int64_t ld,
                        void *yv)
{
    const T *x = xv, *w = wv;
    T *y = yv;
    int64_t p = 0;
    for (; p + 8 <= k; p += 8, w += 8 * ld) {
        T scaled[8];
        for (int i = 0; i < 8; i++) scaled[i] = (T)alpha * x[(p + i) * incx];
        EV_TYPED(eight_rows)(n, scaled, w, ld, y);
    }
    for (; p < k; p++, w += ld) {
        const T s = (T)alpha * x[p * incx];
        for (int64_t j = 0; j < n; j++) y[j] += w[j] * s;
    }
}

/* Adds the products of a row with x from element p on, of fewer than two vectors; whole ones only where parts cost
 * something. */
static inline __attribute__((always_inline)) void EV_TYPED(row_rest)(int64_t k, const T *x, const T *w, int64_t p, V *a, V *b)
{
    if (p + VW <= k) {
        *a += *(const VU *)(x + p) * *(const VU *)(w + p);
        p += VW;
    }
#if defined(__AVX512F__)
    if (p < k) *b += PART(x + p, k - p) * PART(w + p, k - p);
#endif
}

/* The products of a row with x, added up lane by lane. */
static inline __attribute__((always_inline)) V EV_TYPED(row_products)(int64_t k, const T *x, const T *w)
{
    V a = {0}, b = {0};
    int64_t p = 0;
    for (; p + 2 * VW <= k; p += 2 * VW) {
        a += *(const VU *)(x + p) * *(const VU *)(w + p);
        b += *(const VU *)(x + p + VW) * *(const VU *)(w + p + VW);
    }
    EV_TYPED(row_rest)(k, x, w, p, &a, &b);
    return a + b;
}

/* fetch: the next rows are fetched into L2 meanwhile, as the processor follows no stream from page to page by itself: 146
 * instead of 227 us for 5 MB of weights from a file, out of memory. short_rows: one row after the other, which
 * lines that are loaded as a whole come faster by: 2.5 instead of 3.9 us for 512 rows of 512 bytes in L2 (and 3.0 instead of 2.4
 * with vectors of half a line). */
static inline __attribute__((always_inline)) void EV_TYPED(dot_rows)(
    int64_t n, int64_t k, double alpha, const T *x, const T *w, int64_t ld, T *y, int64_t incy, const int fetch,
    const int short_rows)
{
#if defined(__AVX512F__)
    const int64_t done = k;
#else
    const int64_t done = k / VW * VW;
#endif
    int64_t j = 0;
    for (; j + 4 <= n; j += 4, w += 4 * ld) {
        V a0 = {0}, a1 = {0}, a2 = {0}, a3 = {0}, b0 = {0}, b1 = {0}, b2 = {0}, b3 = {0};
        if (short_rows) {
#define ROW(i) a##i = EV_TYPED(row_products)(k, x, w + i * ld);
            ROW(0) ROW(1) ROW(2) ROW(3)
#undef ROW
        } else {
            int64_t p = 0;
            for (; p + 2 * VW <= k; p += 2 * VW) {
                const V x0 = *(const VU *)(x + p), x1 = *(const VU *)(x + p + VW);
#define ROW(i)                                                                                                     \
                if (fetch) __builtin_prefetch(w + (i + 4) * ld + p, 0, 2);                                          \
                if (fetch && 2 * VW * sizeof(T) > 64) __builtin_prefetch(w + (i + 4) * ld + p + VW, 0, 2);          \
                a##i += x0 * *(const VU *)(w + i * ld + p), b##i += x1 * *(const VU *)(w + i * ld + p + VW);
                ROW(0) ROW(1) ROW(2) ROW(3)
#undef ROW
            }
#define ROW(i) EV_TYPED(row_rest)(k, x, w + i * ld, p, &a##i, &b##i);
            ROW(0) ROW(1) ROW(2) ROW(3)
#undef ROW
        }
        const V both[4] = {a0 + b0, a1 + b1, a2 + b2, a3 + b3};
        T sums[4];
        EV_TYPED(four_sums)(both, sums);
        for (int i = 0; i < 4; i++)
            for (int64_t q = done; q < k; q++) sums[i] += x[q] * w[i * ld + q];
        if (incy == 1)
            for (int i = 0; i < 4; i++) y[j + i] += (T)alpha * sums[i];
        else
            for (int i = 0; i < 4; i++) y[(j + i) * incy] += (T)alpha * sums[i];
    }
    for (; j < n; j++, w += ld) {
        T s = EV_TYPED(lanes_sum)(EV_TYPED(row_products)(k, x, w));
        for (int64_t q = done; q < k; q++) s += x[q] * w[q];
        y[j * incy] += (T)alpha * s;
    }
}

static void EV_TYPED(gemv_dot)(int64_t n, int64_t k, double alpha, const void *x, const void *w, int64_t ld, void *y,
                       int64_t incy)
{
    enum { FAR_BYTES = 1 << 20 }; /* less stays in L2 */
    enum { SHORT_BYTES = EV_VECTOR_BYTES == 64 ? 1 << 11 : 0 }; /* of a row */
    const int64_t bytes = k * (int64_t)sizeof(T);
    if (n * bytes > FAR_BYTES) EV_TYPED(dot_rows)(n, k, alpha, x, w, ld, y, incy, 1, 0);
    else if (bytes > SHORT_BYTES) EV_TYPED(dot_rows)(n, k, alpha, x, w, ld, y, incy, 0, 0);
    else EV_TYPED(dot_rows)(n, k, alpha, x, w, ld, y, incy, 0, 1);
}
