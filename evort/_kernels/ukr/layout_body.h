/* Moving items of 1, 2, 4, 8 or 16 bytes. Items may lie at any address. */
#ifdef __SSE2__
#include <immintrin.h>
#endif

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
    if (item == 4 && times == 2)
        for (; i + 4 <= n; i += 4) {
            const __m128i v = _mm_loadu_si128((const __m128i *)((const uint32_t *)x + i));
            _mm_storeu_si128((__m128i *)((uint32_t *)y + 2 * i), _mm_unpacklo_epi32(v, v));
            _mm_storeu_si128((__m128i *)((uint32_t *)y + 2 * i + 4), _mm_unpackhi_epi32(v, v));
        }
    if (item == 4 && times % 4 == 0)
        for (; i < n; i++) {
            const __m128i v = _mm_set1_epi32((int)((const EV_FN(item4) *)x)[i]);
            for (int64_t j = 0; j < times; j += 4)
                _mm_storeu_si128((__m128i *)((uint32_t *)y + i * times + j), v);
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

/* 8 x 8 items of 4 bytes: y[i * ys + j] = x[i + j * xs]. */
#ifdef __AVX2__
static inline void EV_FN(transpose_8x8)(const void *x0, int64_t xs, void *y0, int64_t ys)
{
    const float *x = x0;
    float *y = y0;
    /* Pairs of 4x4 blocks: columns j and j + 4 share a register, so that what is left stays within 128-bit lanes. */
    __m256 r[8], t[8];
    for (int h = 0; h < 2; h++)
        for (int j = 0; j < 4; j++)
            r[4 * h + j] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(x + 4 * h + j * xs)),
                                                _mm_loadu_ps(x + 4 * h + (j + 4) * xs), 1);
    for (int h = 0; h < 8; h += 4) {
        t[h] = _mm256_unpacklo_ps(r[h], r[h + 1]);
        t[h + 1] = _mm256_unpackhi_ps(r[h], r[h + 1]);
        t[h + 2] = _mm256_unpacklo_ps(r[h + 2], r[h + 3]);
        t[h + 3] = _mm256_unpackhi_ps(r[h + 2], r[h + 3]);
        _mm256_storeu_ps(y + h * ys, _mm256_shuffle_ps(t[h], t[h + 2], 0x44));
        _mm256_storeu_ps(y + (h + 1) * ys, _mm256_shuffle_ps(t[h], t[h + 2], 0xee));
        _mm256_storeu_ps(y + (h + 2) * ys, _mm256_shuffle_ps(t[h + 1], t[h + 3], 0x44));
        _mm256_storeu_ps(y + (h + 3) * ys, _mm256_shuffle_ps(t[h + 1], t[h + 3], 0xee));
    }
}
#else
static inline void EV_FN(transpose_8x8)(const void *x, int64_t xs, void *y, int64_t ys)
{
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j++) ((EV_FN(item4) *)y)[i * ys + j] = ((const EV_FN(item4) *)x)[i + j * xs];
}
#endif

/* y[i * ys + j] = x[i + j * xs], i < rows, j < cols; strides in items. 16 rows (one cache line of the input) at a time. */
static void EV_FN(move_transpose)(int item, int64_t rows, int64_t cols, const void *x, int64_t xs, void *y, int64_t ys)
{
    for (int64_t i0 = 0, i1; i0 < rows; i0 = i1) {
        i1 = i0 + 16 < rows ? i0 + 16 : rows;
        int64_t j0 = 0;
        if (item == 4 && (i1 - i0) % 8 == 0)
            for (; j0 + 8 <= cols; j0 += 8)
                for (int64_t i = i0; i < i1; i += 8)
                    EV_FN(transpose_8x8)((const uint32_t *)x + i + j0 * xs, xs, (uint32_t *)y + i * ys + j0, ys);
#define BODY(T) \
    for (int64_t j = j0; j < cols; j++) \
        for (int64_t i = i0; i < i1; i++) ((T *)y)[i * ys + j] = ((const T *)x)[i + j * xs]
        EV_BY_ITEM(item, BODY)
#undef BODY
    }
}
