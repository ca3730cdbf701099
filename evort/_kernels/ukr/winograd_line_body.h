/* Winograd's convolution along rows, F(2, 5): a tile of 2 outputs from 6 inputs with 6 products for 10, by
 *
 *   y = A^T [ sum over channels and rows of the kernel (G g) * (B^T d) ]
 *
 * where g is a row of the kernel and d one of the image. The interpolation points, and so B^T, are those of
 * winograd_body.h. Each of the 6 elements of the sum is a direct convolution over [channels, rows of the kernel, 1], whose
 * output channels are in the lanes (direct_body.h). Uses the vectors of gemm_body.h. */

#define V EV_FN(vf32)
#define VU EV_FN(vf32u)
#define VI EV_FN(vi32)
#define VW (EV_VECTOR_BYTES / 4)

#define EV_SQRT_HALF 0.70710678f
#define EV_SQRT_TWO 1.41421356f

/* Rows of kernels w[n][5][EV_DIRECT_LANES], output channels last, to u[6][step]. */
static void EV_FN(winograd_line_kernels_f32)(int64_t n, const float *w, float *u, int64_t step)
{
    enum { L = EV_DIRECT_LANES };
    for (int64_t k = 0; k < n; k++, w += 5 * L, u += L)
        for (int i = 0; i < L; i += VW) {
            const V g0 = *(const VU *)(w + i), g1 = *(const VU *)(w + L + i), g2 = *(const VU *)(w + 2 * L + i);
            const V g3 = *(const VU *)(w + 3 * L + i), g4 = *(const VU *)(w + 4 * L + i);
            const V p = (g0 + 0.5f * g2 + 0.25f * g4) * (-2.0f / 3), q = (g1 + 0.5f * g3) * (-2.0f / 3 * EV_SQRT_HALF);
            const V r = (g0 + 2 * g2 + 4 * g4) * (1.0f / 6), t = (g1 + 2 * g3) * (1.0f / 6 * EV_SQRT_TWO);
            const V to[6] = {g0, p + q, p - q, r + t, r - t, g4};
#pragma GCC unroll 6
            for (int j = 0; j < 6; j++) *(VU *)(u + j * step + i) = to[j];
        }
}

/* Elements [at, at + VW) of a row of the image, with zeros outside it. */
static inline V EV_FN(load_inside)(const float *row, int64_t at, int64_t width)
{
#if defined(__AVX2__)
    const VI i = EV_FN(iota)() + (int)at;
    return _mm256_maskload_ps(row + at, (__m256i)((i >= 0) & (i < (int)width)));
#else
    V r = {0};
    for (int i = 0; i < VW; i++)
        if (at + i >= 0 && at + i < width) r[i] = row[at + i];
    return r;
#endif
}

/* Rows [top, top + rows) of each channel of the image x[c][height][width], zero outside it, to tiles v[j][c][row][pitch],
 * j every `step`; the first tile of a row begins `pad` to the left of it, and pitch is a multiple of VW. */
static void EV_FN(winograd_line_input_f32)(int64_t c, int64_t height, int64_t width, const float *x, int64_t top, int64_t rows,
                                           int64_t pad, float *v, int64_t pitch, int64_t step)
{
#if EV_VECTOR_BYTES == 32
    const VI even = {0, 2, 4, 6, 8, 10, 12, 14};
#else
    const VI even = {0, 2, 4, 6};
#endif
    for (int64_t i = 0; i < c; i++, x += height * width)
        for (int64_t row = top; row < top + rows; row++, v += pitch)
            for (int64_t t = 0; t < pitch; t += VW) {
                V d[6] = {{0}};
                if (row >= 0 && row < height) {
#pragma GCC unroll 3
                    for (int j = 0; j < 6; j += 2) {
                        const V low = EV_FN(load_inside)(x + row * width, 2 * t - pad + j, width);
                        const V high = EV_FN(load_inside)(x + row * width, 2 * t - pad + j + VW, width);
                        d[j] = __builtin_shuffle(low, high, even);
                        d[j + 1] = __builtin_shuffle(low, high, even + 1);
                    }
                    EV_FN(winograd_bt)(d, 1);
                }
#pragma GCC unroll 6
                for (int j = 0; j < 6; j++) *(VU *)(v + j * step + t) = d[j];
            }
}

/* Rows of ow outputs y[row][output][EV_DIRECT_LANES], clamped, from o[6][step], which has (ow + 1) / 2 tiles for each. */
static void EV_FN(winograd_line_output_f32)(int64_t rows, int64_t ow, const float *o, int64_t step, float lo, float hi, float *y)
{
    enum { L = EV_DIRECT_LANES };
    const V low = lo - (V){0}, high = hi - (V){0};
    for (int64_t row = 0; row < rows; row++)
        for (int64_t left = ow; left > 0; left -= 2, o += L, y += left >= 0 ? 2 * L : L)
            for (int i = 0; i < L; i += VW) {
                V m[6];
#pragma GCC unroll 6
                for (int j = 0; j < 6; j++) m[j] = *(const VU *)(o + j * step + i);
                const V even = m[0] + (m[1] + m[2]) + (m[3] + m[4]);
                const V odd = m[5] + EV_SQRT_HALF * (m[1] - m[2]) + EV_SQRT_TWO * (m[3] - m[4]);
                *(VU *)(y + i) = EV_MIN_F32(high, EV_MAX_F32(low, even));
                if (left > 1) *(VU *)(y + L + i) = EV_MIN_F32(high, EV_MAX_F32(low, odd));
            }
}

#undef EV_SQRT_HALF
#undef EV_SQRT_TWO
#undef V
#undef VU
#undef VI
#undef VW
