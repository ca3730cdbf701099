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

/* Four runs of four elements, lds apart, become columns of d. */
static inline __attribute__((always_inline)) void EV_TYPED(transpose)(const T *s, int64_t lds, T *d, int64_t ldd)
{
    typedef T four __attribute__((vector_size(4 * sizeof(T)), may_alias, aligned(sizeof(T))));
    typedef __typeof__(__builtin_choose_expr(sizeof(T) == 4, (int32_t)0, (int64_t)0)) lane;
    typedef lane which __attribute__((vector_size(4 * sizeof(T))));
    const which low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, first = {0, 1, 4, 5}, last = {2, 3, 6, 7};
    const four r0 = *(const four *)s, r1 = *(const four *)(s + lds);
    const four r2 = *(const four *)(s + 2 * lds), r3 = *(const four *)(s + 3 * lds);
    const four x = __builtin_shuffle(r0, r1, low), y = __builtin_shuffle(r2, r3, low);
    const four z = __builtin_shuffle(r0, r1, high), w = __builtin_shuffle(r2, r3, high);
    *(four *)d = __builtin_shuffle(x, y, first);
    *(four *)(d + ldd) = __builtin_shuffle(x, y, last);
    *(four *)(d + 2 * ldd) = __builtin_shuffle(z, w, first);
    *(four *)(d + 3 * ldd) = __builtin_shuffle(z, w, last);
}

/* w >= 4 columns that are each contiguous along p: panels of B with AVX in blocks of eight by eight, others of four by four,
 * a line of four columns at a time, as columns may all fall into one set of L1. Where w is no multiple of four, the last block
 * begins within the one before. */
static void EV_TYPED(pack_transpose)(int64_t w, int64_t k, int64_t sj, const T *src, T *dst)
{
#if defined(__AVX2__)
    if (w == NR)
        for (; k >= 8; k -= 8, src += 8, dst += 8 * NR)
#pragma GCC unroll 1
            for (int64_t j = 0; j < NR; j += 8) EV_FN(transpose_8x8)(sizeof(T), src + j * sj, sj, dst + j, NR);
#endif
    const int64_t line = 64 / sizeof(T);
    for (int64_t p = 0, some; p < k; p += some, src += some, dst += some * w) {
        some = k - p < line ? k - p : line;
        for (int64_t block = 0; block < w; block += 4) {
            const int64_t j = block < w - 4 ? block : w - 4;
            const T *s = src + j * sj;
            T *d = dst + j;
            int64_t i = 0;
            for (; i + 4 <= some; i += 4) EV_TYPED(transpose)(s + i, sj, d + i * w, w);
            for (; i < some; i++)
                for (int l = 0; l < 4; l++) d[i * w + l] = s[l * sj + i];
        }
    }
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
        else
        EV_EACH_WIDTH(X)
#undef X
        {
            panels = 1;
            if (sp == 1) EV_TYPED(pack_transpose)(width, k, sj, src, dst);
            else
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
