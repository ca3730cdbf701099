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

/* The zero point of line l: what is taken off an element of 8 bits as it is widened. 16-bit elements stay as they are,
 * as the difference might not fit; the driver sees to their zero points. */
static inline int32_t EV_FN(qzero)(const ev_qoperand *x, int64_t l)
{
    if (!x->zero) return 0;
    switch (x->type == EV_FLOAT ? x->as_type : x->type) {
    case EV_UINT8: return ((const uint8_t *)x->zero)[l * x->zero_step];
    case EV_INT8: return ((const int8_t *)x->zero)[l * x->zero_step];
    default: return ((const int16_t *)x->zero)[l * x->zero_step];
    }
}

/* Element x of float32 as an integer less its zero point: rounded to nearest even, saturated. NaN is the lowest. */
EV_INLINE int16_t EV_FN(qread_f32)(float x, float scale, float least, float most, int32_t back)
{
    return (int16_t)(EV_FN(quantized)(x / scale, least, most) + back);
}

/* The bounds of x / scale for a type and a zero point; *back is what is added after rounding: 0, but for 16 bits. */
static inline void EV_FN(qbounds)(int32_t type, int32_t zero, float *least, float *most, int32_t *back)
{
    const int32_t lo = type == EV_UINT8 ? 0 : type == EV_INT8 ? -128 : -32768;
    const int32_t hi = type == EV_UINT8 ? 255 : type == EV_INT8 ? 127 : 32767;
    *least = (float)(lo - zero), *most = (float)(hi - zero);
    *back = type == EV_INT16 ? zero : 0;
}

/* One line of n elements, `step` apart, to int16 at dst[i*to]. */
#define EV_QLINE(expression)                                                        \
    do {                                                                            \
        if (step == 1 && to == 1)                                                   \
            for (int64_t i = 0; i < n; i++) dst[i] = (int16_t)(expression);         \
        else                                                                        \
            for (int64_t i = 0, at = 0; i < n; i++, at += to) dst[at] = (int16_t)(expression); \
    } while (0)
static void EV_FN(qline)(const ev_qoperand *x, int64_t line, int64_t n, const void *src, int64_t step, int16_t *dst,
                         int64_t to)
{
    const int32_t z = EV_FN(qzero)(x, line);
    if (x->type == EV_UINT8) {
        const uint8_t *s = src;
        EV_QLINE(s[i * step] - z);
    } else if (x->type == EV_INT8) {
        const int8_t *s = src;
        EV_QLINE(s[i * step] - z);
    } else if (x->type == EV_INT16) {
        const int16_t *s = src;
        EV_QLINE(s[i * step]);
    } else {
        const float *s = src, scale = x->scale;
        float least, most;
        int32_t back;
        EV_FN(qbounds)(x->as_type, z, &least, &most, &back);
        EV_QLINE(EV_FN(qread_f32)(s[i * step], scale, least, most, back));
    }
}
#undef EV_QLINE

static inline int64_t EV_FN(qsize)(int32_t type)
{
    return type == EV_FLOAT ? 4 : type == EV_INT16 ? 2 : 1;
}

/* Rows [i0, i0+m), columns [p0, p0+k) of A as rows of pairs, ceil(k/2) each; an odd last element is paired with 0. */
static void EV_FN(qrows)(const ev_qoperand *a, int64_t i0, int64_t m, int64_t p0, int64_t k, int16_t *dst)
{
    const int64_t size = EV_FN(qsize)(a->type);
    for (int64_t i = 0; i < m; i++) {
        const char *src = (const char *)a->data + ((i0 + i) * a->rs + p0 * a->cs) * size;
        EV_FN(qline)(a, i0 + i, k, src, a->cs, dst, 1);
        dst += k;
        if (k & 1) *dst++ = 0;
    }
}

/* Rows [p0, p0+k), columns [j0, j0+n) of B as panels of pairs; columns past n are 0. */
static void EV_FN(qpanels)(const ev_qoperand *b, int64_t p0, int64_t k, int64_t j0, int64_t n, int16_t *dst)
{
    enum { W = EV_QNR };
    const int64_t size = EV_FN(qsize)(b->type), each = b->zero ? b->zero_step : 0;
    for (int64_t j = 0; j < n; j += W) {
        const int64_t width = n - j < W ? n - j : W;
        const char *src = (const char *)b->data + (p0 * b->rs + (j0 + j) * b->cs) * size;
        if (b->cs == 1 && b->type != EV_FLOAT) { /* rows of up to 16 columns */
            int16_t z[W], row[2][W];
            for (int64_t i = 0; i < W; i++)
                z[i] = b->type == EV_INT16 || i >= width ? 0 : (int16_t)EV_FN(qzero)(b, j0 + j + (each ? i : 0));
            for (int64_t p = 0; p < k; p += 2, dst += 2 * W) {
                for (int64_t r = 0; r < 2; r++) {
                    const char *from = src + (p + r) * b->rs * size;
                    if (p + r >= k) {
                        for (int64_t i = 0; i < W; i++) row[r][i] = 0;
                    } else if (width < W) {
                        for (int64_t i = 0; i < W; i++) row[r][i] = 0;
                        for (int64_t i = 0; i < width; i++)
                            row[r][i] = (int16_t)((b->type == EV_UINT8 ? ((const uint8_t *)from)[i]
                                                   : b->type == EV_INT8 ? ((const int8_t *)from)[i]
                                                                        : ((const int16_t *)from)[i]) - z[i]);
                    } else if (b->type == EV_UINT8) {
                        for (int64_t i = 0; i < W; i++) row[r][i] = (int16_t)(((const uint8_t *)from)[i] - z[i]);
                    } else if (b->type == EV_INT8) {
                        for (int64_t i = 0; i < W; i++) row[r][i] = (int16_t)(((const int8_t *)from)[i] - z[i]);
                    } else {
                        for (int64_t i = 0; i < W; i++) row[r][i] = ((const int16_t *)from)[i];
                    }
                }
                for (int64_t i = 0; i < W; i++) {
                    dst[2 * i] = row[0][i];
                    dst[2 * i + 1] = row[1][i];
                }
            }
            continue;
        }
        memset(dst, 0, (size_t)((k + 1) / 2 * 2 * W) * sizeof *dst);
        for (int64_t i = 0; i < width; i++, src += b->cs * size) {
            EV_FN(qline)(b, j0 + j + i, (k + 1) / 2, src, 2 * b->rs, dst + 2 * i, 2 * W);
            EV_FN(qline)(b, j0 + j + i, k / 2, src + b->rs * size, 2 * b->rs, dst + 2 * i + 1, 2 * W);
        }
        dst += (k + 1) / 2 * 2 * W;
    }
}
