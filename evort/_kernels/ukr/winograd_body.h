/* Winograd's convolution F(4x4, 3x3): a tile of 4x4 outputs from 6x6 inputs with 36 products for 144, by
 *
 *   Y = A^T [ sum over channels (G g G^T) * (B^T d B) ] A          (Lavin and Gray, 2016)
 *
 * where g is the kernel, d the inputs and * takes elements. The interpolation points are 0, +-sqrt(1/2), +-sqrt(2) and
 * infinity: as cheap as the usual 0, +-1, +-2, and a quarter of their rounding errors (measured with 256 channels). For each of the 36 elements the sum over channels is a
 * matrix product, weights [m, c] times tiles [c, t]. The kernels here make its operands and turn its results into
 * outputs; VW tiles (or channels, of the weights) at a time. Uses the vectors of gemm_body.h. */

#define V EV_FN(vf32)
#define VU EV_FN(vf32u)
#define VI EV_FN(vi32)
#define VW (EV_VECTOR_BYTES / 4)

#define EV_SQRT_HALF 0.70710678f
#define EV_SQRT_TWO 1.41421356f

/* The transforms along one axis; element i of the operand and of the result are s apart. */
static inline __attribute__((always_inline)) void EV_FN(winograd_bt)(V *x, const int s)
{
    const V p = x[4 * s] - 2 * x[2 * s], q = (x[3 * s] - 2 * x[s]) * EV_SQRT_HALF;
    const V r = x[4 * s] - 0.5f * x[2 * s], t = (x[3 * s] - 0.5f * x[s]) * EV_SQRT_TWO;
    x[0] = x[0] + (x[4 * s] - 2.5f * x[2 * s]);
    x[5 * s] = x[s] + (x[5 * s] - 2.5f * x[3 * s]);
    x[s] = p + q;
    x[2 * s] = p - q;
    x[3 * s] = r + t;
    x[4 * s] = r - t;
}

static inline __attribute__((always_inline)) void EV_FN(winograd_at)(V *x, const int s)
{
    const V p = x[s] + x[2 * s], q = x[s] - x[2 * s], r = x[3 * s] + x[4 * s], t = x[3 * s] - x[4 * s];
    x[0] = x[0] + p + r;
    x[s] = EV_SQRT_HALF * q + EV_SQRT_TWO * t;
    x[2 * s] = 0.5f * p + 2 * r;
    x[3 * s] = EV_SQRT_HALF / 2 * q + EV_SQRT_TWO * 2 * t + x[5 * s];
}

/* Of x, rows of G but the first and the last, which take x[0] and x[2] as they are: two at a time, and with signs. */
#define EV_G_NEAR(x0, x1, x2, sum, difference)                                                                          \
    do {                                                                                                                \
        const V p_ = ((x0) + 0.5f * (x2)) * (-2.0f / 3), q_ = (x1) * (-2.0f / 3 * EV_SQRT_HALF);                        \
        sum = p_ + q_, difference = p_ - q_;                                                                            \
    } while (0)
#define EV_G_FAR(x0, x1, x2, sum, difference)                                                                           \
    do {                                                                                                                \
        const V p_ = ((x0) + 2 * (x2)) * (1.0f / 6), q_ = (x1) * (1.0f / 6 * EV_SQRT_TWO);                              \
        sum = p_ + q_, difference = p_ - q_;                                                                            \
    } while (0)

/* x G^T, to six elements `step` apart. */
static inline __attribute__((always_inline)) void EV_FN(winograd_g)(const V *x, float *u, int64_t step)
{
    V a, b, c, d;
    EV_G_NEAR(x[0], x[1], x[2], a, b);
    EV_G_FAR(x[0], x[1], x[2], c, d);
    *(VU *)u = x[0];
    *(VU *)(u + step) = a;
    *(VU *)(u + 2 * step) = b;
    *(VU *)(u + 3 * step) = c;
    *(VU *)(u + 4 * step) = d;
    *(VU *)(u + 5 * step) = x[2];
}

/* Four vectors as 4x4 matrices, one in each 128 bits, transposed. */
static inline __attribute__((always_inline)) void EV_FN(transpose_4x4)(V *x)
{
#if EV_VECTOR_BYTES == 32
    const VI low = {0, 8, 1, 9, 4, 12, 5, 13}, high = {2, 10, 3, 11, 6, 14, 7, 15};
    const VI first = {0, 1, 8, 9, 4, 5, 12, 13}, last = {2, 3, 10, 11, 6, 7, 14, 15};
#else
    const VI low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, first = {0, 1, 4, 5}, last = {2, 3, 6, 7};
#endif
    const V a = __builtin_shuffle(x[0], x[1], low), b = __builtin_shuffle(x[0], x[1], high);
    const V c = __builtin_shuffle(x[2], x[3], low), d = __builtin_shuffle(x[2], x[3], high);
    x[0] = __builtin_shuffle(a, c, first);
    x[1] = __builtin_shuffle(a, c, last);
    x[2] = __builtin_shuffle(b, d, first);
    x[3] = __builtin_shuffle(b, d, last);
}

/* Four elements at each of p[0..3] and, where a vector holds eight, of p[4..7]: lane k of vector j is p[k][j]. */
static inline __attribute__((always_inline)) void EV_FN(load_4x4)(const float *const *p, int64_t at, V *to)
{
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
#if EV_VECTOR_BYTES == 32
        to[k] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p[k] + at)), _mm_loadu_ps(p[k + 4] + at), 1);
#else
        to[k] = *(const VU *)(p[k] + at);
#endif
    }
    EV_FN(transpose_4x4)(to);
}

/* Kernels of m output and c input channels to u[element][c][ldu], output channels side by side and, up to a multiple of
 * VW, the last of them again; elements are `step` apart. Four input channels at a time, as they are 36 numbers. */
static void EV_FN(winograd_weights_f32)(int64_t m, int64_t c, const float *w, int64_t stride_m, int64_t stride_c, float *u,
                                        int64_t ldu, int64_t step)
{
    for (int64_t i = 0; i < m; i += VW)
        for (int64_t j = 0; j < c; j += 4) {
            const int64_t some = c - j < 4 ? c - j : 4;
            const float *from[VW];
            float part[VW][36];
            V g[36];
            for (int64_t k = 0; k < VW; k++) {
                from[k] = w + (i + k < m ? i + k : m - 1) * stride_m + j * stride_c;
                /* More streams than the processor follows by itself, where they come from memory. */
                for (int t = 0; t < 3; t++) __builtin_prefetch(from[k] + 256 + t * 16);
                if (some == 4 && stride_c == 9) continue;
                for (int64_t q = 0; q < 4; q++)
                    memcpy(part[k] + q * 9, from[k] + (q < some ? q : 0) * stride_c, 9 * sizeof(float));
                from[k] = part[k];
            }
#pragma GCC unroll 9
            for (int t = 0; t < 9; t++) EV_FN(load_4x4)(from, t * 4, g + t * 4);
            for (int64_t q = 0; q < some; q++) {
                const V *k = g + q * 9;
                float *to = u + (j + q) * ldu + i;
                V sum[3], difference[3];
                EV_FN(winograd_g)(k, to, step);
#pragma GCC unroll 3
                for (int t = 0; t < 3; t++) EV_G_NEAR(k[t], k[t + 3], k[t + 6], sum[t], difference[t]);
                EV_FN(winograd_g)(sum, to + 6 * step, step);
                EV_FN(winograd_g)(difference, to + 12 * step, step);
#pragma GCC unroll 3
                for (int t = 0; t < 3; t++) EV_G_FAR(k[t], k[t + 3], k[t + 6], sum[t], difference[t]);
                EV_FN(winograd_g)(sum, to + 18 * step, step);
                EV_FN(winograd_g)(difference, to + 24 * step, step);
                EV_FN(winograd_g)(k + 6, to + 30 * step, step);
            }
        }
}

/* rows x cols tiles of one channel, from a zero-padded copy, to panels of tiles, `ld` apart: element (i, j) of tile t at
 * v[t / panel * ld + i * step_i + j * step_j + t % panel]. The last vector is filled up with the last tile. */
static void EV_FN(winograd_input_f32)(int64_t rows, int64_t cols, const float *x, int64_t pitch, float *v, int64_t panel,
                                      int64_t ld, int64_t step_i, int64_t step_j)
{
    int64_t row = 0, col = 0;
    for (int64_t t = 0; t < rows * cols; t += VW) {
        const float *from[VW];
        for (int k = 0; k < VW; k++) {
            from[k] = x + 4 * (row * pitch + col);
            if (row * cols + col + 1 == rows * cols) continue;
            if (++col == cols) col = 0, row++;
        }
        V d[36];
#pragma GCC unroll 6
        for (int i = 0; i < 6; i++) {
            V left[4], right[4];
            EV_FN(load_4x4)(from, i * pitch, left);
            EV_FN(load_4x4)(from, i * pitch + 4, right);
            V *to = d + i * 6;
            to[0] = left[0], to[1] = left[1], to[2] = left[2], to[3] = left[3], to[4] = right[0], to[5] = right[1];
            EV_FN(winograd_bt)(to, 1);
        }
        float *to = v + t / panel * ld + t % panel;
#pragma GCC unroll 6
        for (int j = 0; j < 6; j++) {
            EV_FN(winograd_bt)(d + j, 6);
#pragma GCC unroll 6
            for (int i = 0; i < 6; i++) *(VU *)(to + i * step_i + j * step_j) = d[i * 6 + j];
        }
    }
}

/* Four outputs of a row. */
typedef float EV_FN(quad) __attribute__((vector_size(16), may_alias, aligned(4)));

static inline EV_FN(quad) EV_FN(winograd_clip)(EV_FN(quad) r, float lo, float hi)
{
#ifdef __SSE2__
    return (EV_FN(quad))_mm_min_ps(_mm_set1_ps(hi), _mm_max_ps(_mm_set1_ps(lo), (__m128)r));
#else
    for (int j = 0; j < 4; j++) r[j] = EV_FN(clip)(r[j], lo, hi);
    return r;
#endif
}

/* The outputs of the tiles in the lanes of o[element], + bias, clamped where nothing else is added: row i of lane k's is
 * the quad k / 4 of m[i * 6 + k % 4]. */
static inline __attribute__((always_inline)) void EV_FN(winograd_rows)(
    const ev_winograd_output *g, const float *o, V bias, const int clamped, V *m)
{
    const V lo = g->lo - (V){0}, hi = g->hi - (V){0};
#pragma GCC unroll 6
    for (int j = 0; j < 6; j++) {
#pragma GCC unroll 6
        for (int i = 0; i < 6; i++) m[i * 6 + j] = *(const VU *)(o + (i * 6 + j) * g->step);
        EV_FN(winograd_at)(m + j, 6);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        V *r = m + i * 6;
        EV_FN(winograd_at)(r, 1);
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            r[k] += bias;
            if (clamped) r[k] = EV_MIN_F32(hi, EV_MAX_F32(lo, r[k]));
        }
        EV_FN(transpose_4x4)(r);
    }
}

/* Lane k of those, to the tile at (row, col) of y. */
static inline void EV_FN(winograd_tile)(const ev_winograd_output *g, const V *m, int k, int64_t row, int64_t col,
                                        const float *residual, float *y)
{
    const int64_t at = 4 * (row * g->ldy + col), height = g->height - 4 * row, width = g->width - 4 * col;
    const float *from = (const float *)(m + k % 4) + k / 4 * 4;
    y += at;
    residual = residual ? residual + at : NULL;
    if (height >= 4 && width >= 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            EV_FN(quad) r = *(const EV_FN(quad) *)(from + i * 6 * VW);
            if (residual) r = EV_FN(winograd_clip)(*(const EV_FN(quad) *)(residual + i * g->ldy) + r, g->lo, g->hi);
            *(EV_FN(quad) *)(y + i * g->ldy) = r;
        }
        return;
    }
    for (int64_t i = 0; i < 4 && i < height; i++)
        for (int64_t j = 0; j < 4 && j < width; j++) {
            const float r = from[i * 6 * VW + j];
            y[i * g->ldy + j] = residual ? EV_FN(clip)(residual[i * g->ldy + j] + r, g->lo, g->hi) : r;
        }
}

/* The outputs of one channel from o[element][tile], + bias, + residual (NULL, or y itself), clamped. */
static void EV_FN(winograd_output_f32)(const ev_winograd_output *g, const float *o, float bias, const float *residual,
                                       float *y)
{
    const int64_t count = g->rows * g->cols;
    int64_t row = 0, col = 0;
    for (int64_t t = 0; t < count; t += VW) {
        V m[36];
        EV_FN(winograd_rows)(g, o + t, bias - (V){0}, !residual, m);
        for (int k = 0; k < VW && t + k < count; k++) {
            EV_FN(winograd_tile)(g, m, k, row, col, residual, y);
            if (++col == g->cols) col = 0, row++;
        }
    }
}

/* The outputs of n channels, `plane` apart, from o[element][tile][ldo]: channels in the lanes. bias: n, or NULL. */
static void EV_FN(winograd_output_maps_f32)(const ev_winograd_output *g, int64_t n, const float *o, int64_t ldo,
                                            const float *bias, const float *residual, float *y, int64_t plane)
{
    for (int64_t i = 0; i < n; i += VW) {
        float b[VW] = {0};
        for (int k = 0; bias && k < VW && i + k < n; k++) b[k] = bias[i + k];
        for (int64_t row = 0, t = 0; row < g->rows; row++)
            for (int64_t col = 0; col < g->cols; col++, t++) {
                V m[36];
                EV_FN(winograd_rows)(g, o + t * ldo + i, *(const VU *)b, !residual, m);
                for (int k = 0; k < VW && i + k < n; k++)
                    EV_FN(winograd_tile)(g, m, k, row, col, residual ? residual + (i + k) * plane : NULL, y + (i + k) * plane);
            }
    }
}

#undef EV_G_NEAR
#undef EV_G_FAR
#undef EV_SQRT_HALF
#undef EV_SQRT_TWO
#undef V
#undef VU
#undef VI
#undef VW
