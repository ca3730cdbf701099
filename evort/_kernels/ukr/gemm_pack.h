/* Packing into panels for one element type; gemm_body.h defines the macros.
 *
 * Element (j, p) at src[j*sj + p*sp], 0 <= j < n, 0 <= p < k, goes to panel j/width at [p*width + j%width]; the last
 * panel is filled up with zeros. Serves B (width NR) and A (width mr), row-major and transposed. */

/* k rows of `panels` times w contiguous elements; inlined with w constant, so that a row of a panel is a few vector moves.
 * Several panels at a time read longer runs of memory. */
static inline __attribute__((always_inline)) void EV_TYPED(pack_copy)(
    int64_t w, int64_t panels, int64_t k, int64_t sp, const T *src, T *dst)
{
    for (int64_t p = 0; p < k; p++, src += sp, dst += w)
        for (int64_t j = 0; j < panels; j++) memcpy(dst + j * w * k, src + j * w, (size_t)w * sizeof(T));
}

/* w columns that are each contiguous along p: transposed in blocks, of eight by eight with AVX, or of four rows, which the
 * compiler turns into shuffles. */
static inline __attribute__((always_inline)) void EV_TYPED(pack_transpose)(
    int64_t w, int64_t k, int64_t sj, const T *src, T *dst)
{
    int64_t p = 0;
#if defined(__AVX2__)
    if (w == NR)
        for (; p + 8 <= k; p += 8, src += 8, dst += 8 * w)
#pragma GCC unroll 1
            for (int64_t j = 0; j < w; j += 8) EV_FN(transpose_8x8)(sizeof(T), src + j * sj, sj, dst + j, w);
#endif
    for (; p + 4 <= k; p += 4, src += 4, dst += 4 * w)
        for (int64_t j = 0; j < w; j++) {
            const T *s = src + j * sj;
            const T x0 = s[0], x1 = s[1], x2 = s[2], x3 = s[3];
            dst[j] = x0;
            dst[w + j] = x1;
            dst[2 * w + j] = x2;
            dst[3 * w + j] = x3;
        }
    for (; p < k; p++, src++, dst += w)
        for (int64_t j = 0; j < w; j++) dst[j] = src[j * sj];
}

/* The last panel of B where its rows lie in memory, `rest` wide: whole vectors, cut off by masks, of the rows that have
 * so much of B behind them. Returns how many those are. */
static int64_t EV_TYPED(pack_rest)(int64_t rest, int64_t k, int64_t sp, const T *src, T *dst)
{
    typedef __typeof__((V){0} < (V){0}) mask;
    mask keep[NR / VW];
    int64_t p = 0;
    for (int i = 0; i < NR; i++) keep[i / VW][i % VW] = i < rest ? -1 : 0;
    for (; p < k && (k - 1 - p) * sp >= NR - rest; p++, src += sp, dst += NR)
        for (int i = 0; i < NR / VW; i++)
            *(VU *)(dst + i * VW) = (V)((mask) * (const VU *)(src + i * VW) & keep[i]);
    return p;
}

static void EV_TYPED(pack)(int64_t width, int64_t n, int64_t k, int64_t sj, int64_t sp, const void *from, void *to)
{
    const T *src = from;
    T *dst = to;
    int64_t j = 0, panels = 1;
    for (; j + width <= n; j += panels * width, src += panels * width * sj, dst += panels * width * k) {
        panels = sj == 1 ? (n - j) / width : 1;
        if (panels > 8) panels = 8;
#define EV_EACH_WIDTH(X) X(16) X(12) X(8) X(6)
#define X(w)                                                                                \
        if (sj == 1 && width == w) EV_TYPED(pack_copy)(w, panels, k, sp, src, dst);         \
        else if (sp == 1 && width == w) EV_TYPED(pack_transpose)(w, k, sj, src, dst);       \
        else
        EV_EACH_WIDTH(X)
#undef X
        {
            panels = 1;
            for (int64_t p = 0; p < k; p++)
                for (int64_t i = 0; i < width; i++) dst[p * width + i] = src[i * sj + p * sp];
        }
    }
    const int64_t rest = n - j;
    if (rest == 0) return;
    for (int64_t p = sj == 1 && width == NR ? EV_TYPED(pack_rest)(rest, k, sp, src, dst) : 0; p < k; p++) {
        T *row = dst + p * width;
        for (int64_t i = 0; i < rest; i++) row[i] = src[i * sj + p * sp];
        for (int64_t i = rest; i < width; i++) row[i] = 0;
    }
}
