/* Normalization over contiguous rows: moments in one pass over memory, then an affine map. */

/* Mean and sum of squared deviations of n more elements, merged into those of *count elements.
 *
 * Blocks that stay in the first cache get two passes (mean, then deviations from it); blocks are merged in double by
 * Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979). So
 * nothing cancels, whatever the ratio of mean to deviation, and memory is read once. */
static void EV_FN(moments_f32)(int64_t n, const float *x, double *count, double *mean, double *m2)
{
    for (int64_t i = 0; i < n; i += 2048) {
        const int64_t m = n - i < 2048 ? n - i : 2048;
        const double block_mean = ev_sum_row(m, x + i) / (double)m;
        const float about = (float)block_mean; /* differences from a float are exact where it matters */
        const double off = block_mean - (double)about;
        const double block_m2 = ev_square_row_about(m, x + i, about) - (double)m * off * off;
        const double delta = block_mean - *mean, all = *count + (double)m;
        *mean += delta * ((double)m / all);
        *m2 += block_m2 + delta * delta * (*count * (double)m / all);
        *count = all;
    }
}

/* y = (x - mean) * scale + bias. x and y may be the same memory, here and below. */
static void EV_FN(affine_f32)(int64_t n, const float *x, float mean, float scale, float bias, float *y)
{
#pragma GCC ivdep
    for (int64_t j = 0; j < n; j++) y[j] = (x[j] - mean) * scale + bias;
}

/* y = ((x - mean) * inverse + shift) * scale[j] + bias[j]; bias may be NULL. */
static void EV_FN(affine_each_f32)(int64_t n, const float *x, float mean, float inverse, float shift,
                                   const float *scale, const float *bias, float *y)
{
    if (bias) {
#pragma GCC ivdep
        for (int64_t j = 0; j < n; j++) y[j] = ((x[j] - mean) * inverse + shift) * scale[j] + bias[j];
    } else {
#pragma GCC ivdep
        for (int64_t j = 0; j < n; j++) y[j] = ((x[j] - mean) * inverse + shift) * scale[j];
    }
}

/* y = (x - mean[j]) * scale[j] + bias[j]. */
static void EV_FN(affine_cols_f32)(int64_t n, const float *x, const float *mean, const float *scale,
                                   const float *bias, float *y)
{
#pragma GCC ivdep
    for (int64_t j = 0; j < n; j++) y[j] = (x[j] - mean[j]) * scale[j] + bias[j];
}

/* y = x / d[j], and 0 where d[j] is 0. */
static void EV_FN(divide_cols_f32)(int64_t n, const float *x, const float *d, float *y)
{
#pragma GCC ivdep
    for (int64_t j = 0; j < n; j++) {
        const float q = x[j] / d[j];
        y[j] = d[j] == 0.0f ? 0.0f : q;
    }
}

/* Local response normalization of n elements of one channel: y = x[own] / t^beta with t = bias + alpha * (sum of the
 * squares of `rows` channels that lie `step` apart). */
static void EV_FN(lrn_f32)(int64_t n, int64_t rows, int64_t step, const float *restrict x, const float *restrict own,
                           float bias, float alpha, float beta, float *restrict y)
{
    float t[EV_REDUCE_TILE];
    for (int64_t i = 0; i < n; i += EV_REDUCE_TILE) {
        const int64_t m = n - i < EV_REDUCE_TILE ? n - i : EV_REDUCE_TILE;
        for (int64_t j = 0; j < m; j++) t[j] = 0.0f;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < m; j++) t[j] += x[r * step + i + j] * x[r * step + i + j];
        for (int64_t j = 0; j < m; j++) t[j] = bias + alpha * t[j];
        if (beta == 0.75f)
            for (int64_t j = 0; j < m; j++) y[i + j] = own[i + j] / (sqrtf(t[j]) * sqrtf(sqrtf(t[j])));
        else
            for (int64_t j = 0; j < m; j++) y[i + j] = own[i + j] * EV_FN(exp_f32)(-beta * EV_FN(log_f32)(t[j]));
    }
}
