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

/* w columns that are each contiguous along p: transposed in blocks of four rows, which the compiler turns into
 * shuffles. */
static inline __attribute__((always_inline)) void EV_TYPED(pack_transpose)(
    int64_t w, int64_t k, int64_t sj, const T *src, T *dst)
{
    int64_t p = 0;
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
    for (int64_t p = 0; rest > 0 && p < k; p++, dst += width) {
        for (int64_t i = 0; i < rest; i++) dst[i] = src[i * sj + p * sp];
        for (int64_t i = rest; i < width; i++) dst[i] = 0;
    }
}
