/* Moving items of 1, 2, 4, 8 or 16 bytes. Items may lie at any address. */
#ifdef __SSE2__
#include <immintrin.h>
#endif
#include "transpose_body.h"

typedef uint16_t EV_FN(item2) __attribute__((aligned(1), may_alias));
typedef uint32_t EV_FN(item4) __attribute__((aligned(1), may_alias));
typedef uint64_t EV_FN(item8) __attribute__((aligned(1), may_alias));
typedef uint64_t EV_FN(item16) __attribute__((vector_size(16), aligned(1), may_alias));

#define EV_BY_ITEM(item, BODY) \
    switch (item) { \
    case 1: BODY(uint8_t); break; \
    case 2: BODY(EV_FN(item2)); break; \
    case 4: BODY(EV_FN(item4)); break; \
    case 8: BODY(EV_FN(item8)); break; \
    case 16: BODY(EV_FN(item16)); break; \
    }

/* y[i] = x[i * step] */
static void EV_FN(move_step)(int item, int64_t n, const void *x, int64_t step, void *y)
{
#define BODY(T) for (int64_t i = 0; i < n; i++) ((T *)y)[i] = ((const T *)x)[i * step]
    EV_BY_ITEM(item, BODY)
#undef BODY
}

/* n runs of `bytes` bytes; xs and ys are the bytes from one run to the next. */
static void EV_FN(move_rows)(int64_t n, int64_t bytes, const void *x, int64_t xs, void *y, int64_t ys)
{
#define BODY(T) for (int64_t i = 0; i < n; i++) *(T *)((char *)y + i * ys) = *(const T *)((const char *)x + i * xs)
    switch (bytes) {
    case 0: return;
    case 1: case 2: case 4: case 8: case 16: EV_BY_ITEM(bytes, BODY) return;
    }
#undef BODY
    if (bytes % 16 == 0 && bytes <= 128) /* shorter than a call of memcpy takes */
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = 0; k < bytes; k += 16)
                *(EV_FN(item16) *)((char *)y + i * ys + k) = *(const EV_FN(item16) *)((const char *)x + i * xs + k);
    else
        for (int64_t i = 0; i < n; i++) memcpy((char *)y + i * ys, (const char *)x + i * xs, (size_t)bytes);
}

/* y[i] = x[0] */
static void EV_FN(move_fill)(int item, int64_t n, const void *x, void *y)
{
#define BODY(T) { const T v = *(const T *)x; for (int64_t i = 0; i < n; i++) ((T *)y)[i] = v; }
    EV_BY_ITEM(item, BODY)
#undef BODY
}

/* y[i * times + j] = x[i] for j < times */
static void EV_FN(move_repeat)(int item, int64_t n, int64_t times, const void *x, void *y)
{
    int64_t i = 0;
#ifdef __SSE2__
    if (times == 2 && item <= 8) {
        const int64_t lanes = 16 / item;
        for (; i + lanes <= n; i += lanes) {
            const __m128i v = _mm_loadu_si128((const void *)((const char *)x + i * item));
            __m128i low, high;
            switch (item) {
            case 1: low = _mm_unpacklo_epi8(v, v), high = _mm_unpackhi_epi8(v, v); break;
            case 2: low = _mm_unpacklo_epi16(v, v), high = _mm_unpackhi_epi16(v, v); break;
            case 4: low = _mm_unpacklo_epi32(v, v), high = _mm_unpackhi_epi32(v, v); break;
            default: low = _mm_unpacklo_epi64(v, v), high = _mm_unpackhi_epi64(v, v);
            }
            _mm_storeu_si128((void *)((char *)y + 2 * i * item), low);
            _mm_storeu_si128((void *)((char *)y + 2 * i * item + 16), high);
        }
    }
    if (item == 4 && times % 4 == 0)
        for (; i < n; i++) {
            const __m128i v = _mm_set1_epi32((int)((const EV_FN(item4) *)x)[i]);
            for (int64_t j = 0; j < times; j += 4)
                _mm_storeu_si128((void *)((uint32_t *)y + i * times + j), v);
        }
#endif
#define BODY(T) \
    for (; i < n; i++) \
        for (int64_t j = 0; j < times; j++) ((T *)y)[i * times + j] = ((const T *)x)[i]
    EV_BY_ITEM(item, BODY)
#undef BODY
}

/* y[i] = x[index[i]]; where fill is given, a negative index gives fill[0]. */
static void EV_FN(move_index)(int item, int64_t n, const void *x, const int64_t *index, const void *fill, void *y)
{
    if (!fill) {
#define BODY(T) for (int64_t i = 0; i < n; i++) ((T *)y)[i] = ((const T *)x)[index[i]]
        EV_BY_ITEM(item, BODY)
#undef BODY
        return;
    }
#define BODY(T) \
    for (int64_t i = 0; i < n; i++) ((T *)y)[i] = index[i] < 0 ? *(const T *)fill : ((const T *)x)[index[i]]
    EV_BY_ITEM(item, BODY)
#undef BODY
}

#if defined(__SSE2__)
/* y[i * ys + j] = x[i + j * xs] for 16 x 16 bytes: a byte's row and column, written together as eight bits, rotate by one
 * in each round. */
static inline void EV_FN(transpose_16x16)(const uint8_t *x, int64_t xs, uint8_t *y, int64_t ys)
{
    __m128i r[16], t[16];
#define ROUND(to, from)                                                \
    _Pragma("GCC unroll 8") for (int k = 0; k < 8; k++)                 \
    {                                                                  \
        to[2 * k] = _mm_unpacklo_epi8(from[k], from[k + 8]);           \
        to[2 * k + 1] = _mm_unpackhi_epi8(from[k], from[k + 8]);       \
    }
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) r[j] = _mm_loadu_si128((const __m128i *)(x + j * xs));
    ROUND(t, r)
    ROUND(r, t)
    ROUND(t, r)
    ROUND(r, t)
#undef ROUND
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) _mm_storeu_si128((__m128i *)(y + i * ys), r[i]);
}
#endif

/* One tile of a transpose: few enough columns that their cache lines and pages stay at hand from rows to rows. */
static inline __attribute__((always_inline)) void EV_FN(transpose_tile)(
    int item, int64_t rows, int64_t cols, const char *x, int64_t xs, char *y, int64_t ys)
{
#if defined(__SSE2__)
    if (item == 1 && rows >= 16 && cols >= 16) { /* the last ones overlap those before */
        for (int64_t i = 0; i < rows; i += 16)
            for (int64_t j = 0; j < cols; j += 16) {
                const int64_t i0 = i + 16 <= rows ? i : rows - 16, j0 = j + 16 <= cols ? j : cols - 16;
                EV_FN(transpose_16x16)((const uint8_t *)x + i0 + j0 * xs, xs, (uint8_t *)y + i0 * ys + j0, ys);
            }
        return;
    }
#endif
    for (int64_t i0 = 0, i1; i0 < rows; i0 = i1) {
        int64_t j0 = 0;
        i1 = i0 + 8 < rows ? i0 + 8 : rows;
        if (i1 - i0 < 8 && rows >= 8) i0 = rows - 8; /* some again */
        if (i1 - i0 == 8)
            while (j0 + 8 <= cols &&
                   EV_FN(transpose_8x8)(item, x + (i0 + j0 * xs) * item, xs, y + (i0 * ys + j0) * item, ys))
                j0 += 8 < cols - j0 && cols - j0 < 16 ? cols - j0 - 8 : 8; /* the last block may overlap the one before */
#define BODY(T) \
    for (int64_t j = j0; j < cols; j++) \
        for (int64_t i = i0; i < i1; i++) ((T *)y)[i * ys + j] = ((const T *)x)[i + j * xs]
        EV_BY_ITEM(item, BODY)
#undef BODY
    }
}

/* Interleaved rows, as the channels of an image are: y[i * ys + j] = x[i + j * rows], and the other way round,
 * y[i * cols + j] = x[i + j * xs]. Written out for few rows, so that GCC vectorises the loops. */
#define EV_INTERLEAVE(T, suffix) \
    static void EV_FN(split_##suffix)(int64_t rows, int64_t n, const T *restrict x, T *restrict y, int64_t ys) \
    { \
        T *restrict a = y, *restrict b = y + ys, *restrict c = y + 2 * ys, *restrict d = y + 3 * ys; \
        if (rows == 2) \
            for (int64_t j = 0; j < n; j++) a[j] = x[2 * j], b[j] = x[2 * j + 1]; \
        else if (rows == 3) \
            for (int64_t j = 0; j < n; j++) a[j] = x[3 * j], b[j] = x[3 * j + 1], c[j] = x[3 * j + 2]; \
        else \
            for (int64_t j = 0; j < n; j++) \
                a[j] = x[4 * j], b[j] = x[4 * j + 1], c[j] = x[4 * j + 2], d[j] = x[4 * j + 3]; \
    } \
    static void EV_FN(join_##suffix)(int64_t cols, int64_t n, const T *restrict x, int64_t xs, T *restrict y) \
    { \
        const T *restrict a = x, *restrict b = x + xs, *restrict c = x + 2 * xs, *restrict d = x + 3 * xs; \
        if (cols == 2) \
            for (int64_t i = 0; i < n; i++) y[2 * i] = a[i], y[2 * i + 1] = b[i]; \
        else if (cols == 3) \
            for (int64_t i = 0; i < n; i++) y[3 * i] = a[i], y[3 * i + 1] = b[i], y[3 * i + 2] = c[i]; \
        else \
            for (int64_t i = 0; i < n; i++) \
                y[4 * i] = a[i], y[4 * i + 1] = b[i], y[4 * i + 2] = c[i], y[4 * i + 3] = d[i]; \
    }
EV_INTERLEAVE(uint8_t, 1)
EV_INTERLEAVE(EV_FN(item2), 2)
EV_INTERLEAVE(EV_FN(item4), 4)
EV_INTERLEAVE(EV_FN(item8), 8)

/* y[i * ys + j] = x[i + j * xs], i < rows, j < cols; strides in items. */
static void EV_FN(move_transpose)(int item, int64_t rows, int64_t cols, const void *x, int64_t xs, void *y, int64_t ys)
{
    if (rows == xs && rows >= 2 && rows <= 4 && item <= 4) {
        switch (item) {
        case 1: EV_FN(split_1)(rows, cols, x, y, ys); return;
        case 2: EV_FN(split_2)(rows, cols, x, y, ys); return;
        case 4: EV_FN(split_4)(rows, cols, x, y, ys); return;
        }
    }
    if (cols == ys && cols >= 2 && cols <= 4 && item <= 8) {
        switch (item) {
        case 1: EV_FN(join_1)(cols, rows, x, xs, y); return;
        case 2: EV_FN(join_2)(cols, rows, x, xs, y); return;
        case 4: EV_FN(join_4)(cols, rows, x, xs, y); return;
        case 8: EV_FN(join_8)(cols, rows, x, xs, y); return;
        }
    }
    for (int64_t j = 0; j < cols; j += 256) {
        const char *from = (const char *)x + j * xs * item;
        char *to = (char *)y + j * item;
        const int64_t n = cols - j < 256 ? cols - j : 256;
        if (item == 4) EV_FN(transpose_tile)(4, rows, n, from, xs, to, ys); /* a block takes less than asking what it is of */
        else EV_FN(transpose_tile)(item, rows, n, from, xs, to, ys);
    }
}
