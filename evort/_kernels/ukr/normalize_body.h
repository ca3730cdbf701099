/* Normalization over contiguous rows: moments in one pass over memory, then an affine map. */

/* Sums of x - about and of its square, over at most 2048 elements. */
static void ev_deviations(int64_t n, const float *x, float about, double *sum, double *square)
{
    ev_v4d s0 = {0}, s1 = {0}, q0 = {0}, q1 = {0};
    int64_t i = 0;
    while (n - i >= 16) {
        const int64_t end = i + (n - i < 256 ? (n - i) & ~(int64_t)15 : 256);
        ev_v8f a0 = {0}, a1 = {0}, b0 = {0}, b1 = {0};
        for (; i < end; i += 16) {
            const ev_v8f d0 = EV_LOAD8(x + i) - about, d1 = EV_LOAD8(x + i + 8) - about;
            a0 += d0;
            a1 += d1;
            b0 += d0 * d0;
            b1 += d1 * d1;
        }
        EV_ADD_WIDE(s0, s1, a0 + a1);
        EV_ADD_WIDE(q0, q1, b0 + b1);
    }
    *sum = ev_sum_lanes(s0 + s1);
    *square = ev_sum_lanes(q0 + q1);
    for (; i < n; i++) {
        const double d = (double)x[i] - (double)about;
        *sum += d;
        *square += d * d;
    }
}

/* Mean and sum of squared deviations of n more elements, merged into those of *count elements.
 *
 * Blocks that stay in the first cache get two passes: a first mean, then the sums of the deviations from it, which
 * correct it. Blocks are merged in double by Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
 * computing sample variances" (1979). So the errors are in proportion to the deviation, however large the mean, and
 * memory is read once. */
static void EV_FN(moments_f32)(int64_t n, const float *x, double *count, double *mean, double *m2)
{
    for (int64_t i = 0; i < n; i += 2048) {
        const double m = (double)(n - i < 2048 ? n - i : 2048);
        const float about = (float)(ev_sum_row((int64_t)m, x + i) / m);
        double sum, square;
        ev_deviations((int64_t)m, x + i, about, &sum, &square);
        const double delta = (double)about + sum / m - *mean, all = *count + m;
        *mean += delta * (m / all);
        *m2 += square - sum * (sum / m) + delta * delta * (*count * m / all);
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
