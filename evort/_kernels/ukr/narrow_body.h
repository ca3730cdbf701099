/* Vector times matrix with weights of 16 bits (float16, bfloat16, int16), widened in registers:
 *
 *   narrow_dot_f32    y[j] += sum_p x[p] * w[j*ld + p]    four rows at a time
 *   narrow_rows_f32   y[j] += sum_p x[p] * w[p*ld + j]    eight rows at a time */
#if defined(__AVX2__)
#define EV_NARROW static inline __attribute__((always_inline)) void
EV_INLINE __m256 EV_FN(narrow_eight)(const int dtype, const uint16_t *w)
{
    const __m128i v = _mm_loadu_si128((const __m128i *)w);
    if (dtype == EV_FLOAT16) return _mm256_cvtph_ps(v);
    if (dtype == EV_BFLOAT16) return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
    return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(v));
}

EV_NARROW EV_FN(narrow_dots)(const int dtype, int64_t k, const float *x, const uint16_t *w, int64_t ld, float *y,
                             const int rows)
{
    __m256 sum[4], also[4];
    for (int i = 0; i < rows; i++) sum[i] = also[i] = _mm256_setzero_ps();
    int64_t p = 0;
    for (; p + 16 <= k; p += 16) {
        const __m256 x0 = _mm256_loadu_ps(x + p), x1 = _mm256_loadu_ps(x + p + 8);
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            sum[i] = _mm256_fmadd_ps(x0, EV_FN(narrow_eight)(dtype, w + i * ld + p), sum[i]);
            also[i] = _mm256_fmadd_ps(x1, EV_FN(narrow_eight)(dtype, w + i * ld + p + 8), also[i]);
        }
    }
    for (int i = 0; i < rows; i++) {
        float part[16], total = 0;
        EV_FN(cast)(dtype, EV_FLOAT, k - p, w + i * ld + p, part);
        for (int64_t q = p; q < k; q++) total += x[q] * part[q - p];
        _mm256_storeu_ps(part, _mm256_add_ps(sum[i], also[i]));
        for (int q = 0; q < 8; q++) total += part[q];
        y[i] += total;
    }
}

EV_NARROW EV_FN(narrow_axpys)(const int dtype, int64_t n, const float *x, const uint16_t *w, int64_t ld, float *y,
                              const int rows)
{
    int64_t j = 0;
    for (; j + 8 <= n; j += 8) {
        __m256 sum = _mm256_loadu_ps(y + j);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++)
            sum = _mm256_fmadd_ps(_mm256_set1_ps(x[i]), EV_FN(narrow_eight)(dtype, w + i * ld + j), sum);
        _mm256_storeu_ps(y + j, sum);
    }
    for (int i = 0; i < rows && j < n; i++) {
        float part[8];
        EV_FN(cast)(dtype, EV_FLOAT, n - j, w + i * ld + j, part);
        for (int64_t q = j; q < n; q++) y[q] += x[i] * part[q - j];
    }
}

EV_NARROW EV_FN(narrow_dot)(const int dtype, int64_t n, int64_t k, const float *x, const uint16_t *w, int64_t ld,
                            float *y)
{
    for (; n >= 4; n -= 4, w += 4 * ld, y += 4) EV_FN(narrow_dots)(dtype, k, x, w, ld, y, 4);
    for (; n > 0; n--, w += ld, y++) EV_FN(narrow_dots)(dtype, k, x, w, ld, y, 1);
}

EV_NARROW EV_FN(narrow_rows)(const int dtype, int64_t n, int64_t k, const float *x, const uint16_t *w, int64_t ld,
                             float *y)
{
    for (; k >= 8; k -= 8, w += 8 * ld, x += 8) EV_FN(narrow_axpys)(dtype, n, x, w, ld, y, 8);
    for (; k > 0; k--, w += ld, x++) EV_FN(narrow_axpys)(dtype, n, x, w, ld, y, 1);
}
#undef EV_NARROW
#else
/* A tile of 8 rows by 512 numbers is widened at a time. */
enum { EV_FN(NARROW_ROWS) = 8, EV_FN(NARROW_TILE) = 512 };
static void EV_FN(narrow_tile)(int dtype, int64_t rows, int64_t count, const uint16_t *w, int64_t ld, float *tile)
{
    for (int64_t r = 0; r < rows; r++)
        EV_FN(cast)(dtype, EV_FLOAT, count, w + r * ld, tile + r * EV_FN(NARROW_TILE));
}

static void EV_FN(narrow_dot)(int dtype, int64_t n, int64_t k, const float *x, const uint16_t *w, int64_t ld, float *y)
{
    enum { ROWS = EV_FN(NARROW_ROWS), TILE = EV_FN(NARROW_TILE) };
    float tile[ROWS * TILE];
    for (int64_t j = 0; j < n; j += ROWS)
        for (int64_t p = 0; p < k; p += TILE) {
            const int64_t some = n - j < ROWS ? n - j : ROWS, count = k - p < TILE ? k - p : TILE;
            EV_FN(narrow_tile)(dtype, some, count, w + j * ld + p, ld, tile);
            EV_FN(gemv_dot_f32)(some, count, 1, x + p, tile, TILE, y + j, 1);
        }
}

static void EV_FN(narrow_rows)(int dtype, int64_t n, int64_t k, const float *x, const uint16_t *w, int64_t ld, float *y)
{
    enum { ROWS = EV_FN(NARROW_ROWS), TILE = EV_FN(NARROW_TILE) };
    float tile[ROWS * TILE];
    for (int64_t j = 0; j < n; j += TILE)
        for (int64_t p = 0; p < k; p += ROWS) {
            const int64_t some = k - p < ROWS ? k - p : ROWS, count = n - j < TILE ? n - j : TILE;
            EV_FN(narrow_tile)(dtype, some, count, w + p * ld + j, ld, tile);
            EV_FN(gemv_rows_f32)(count, some, 1, x + p, 1, tile, TILE, y + j);
        }
}
#endif

static void EV_FN(narrow_dot_f32)(int dtype, int64_t n, int64_t k, const float *x, const void *w, int64_t ld, float *y)
{
    switch (dtype) {
    case EV_FLOAT16: EV_FN(narrow_dot)(EV_FLOAT16, n, k, x, w, ld, y); break;
    case EV_BFLOAT16: EV_FN(narrow_dot)(EV_BFLOAT16, n, k, x, w, ld, y); break;
    default: EV_FN(narrow_dot)(EV_INT16, n, k, x, w, ld, y);
    }
}

static void EV_FN(narrow_rows_f32)(int dtype, int64_t n, int64_t k, const float *x, const void *w, int64_t ld, float *y)
{
    enum { BLOCK = 4096 }; /* results that stay in L1 */
    for (int64_t j = 0; j < n; j += BLOCK, y += BLOCK) {
        const int64_t some = n - j < BLOCK ? n - j : BLOCK;
        const uint16_t *from = (const uint16_t *)w + j;
        switch (dtype) {
        case EV_FLOAT16: EV_FN(narrow_rows)(EV_FLOAT16, some, k, x, from, ld, y); break;
        case EV_BFLOAT16: EV_FN(narrow_rows)(EV_BFLOAT16, some, k, x, from, ld, y); break;
        default: EV_FN(narrow_rows)(EV_INT16, some, k, x, from, ld, y);
        }
    }
}
