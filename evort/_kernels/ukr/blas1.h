/* BLAS level 1 for one float type; gemm_body.h defines the macros. Increments may have any sign: element i is x[i*incx].
 * Sums use several accumulators, so their error bound is that of pairwise-like summation, well under n*eps. */

static void EV_TYPED(axpy)(int64_t n, double alpha, const void *xv, int64_t incx, void *yv, int64_t incy)
{
    const T *x = xv, a = (T)alpha;
    T *y = yv;
    int64_t i = 0;
    if (incx == 1 && incy == 1)
        for (; i + VW <= n; i += VW) *(VU *)(y + i) += *(const VU *)(x + i) * a;
    for (; i < n; i++) y[i * incy] += x[i * incx] * a;
}

/* alpha == 0 stores zeros, as beta == 0 does in the higher levels, whatever x holds. */
static void EV_TYPED(scal)(int64_t n, double alpha, void *xv, int64_t incx)
{
    T *x = xv;
    const T a = (T)alpha;
    int64_t i = 0;
    if (alpha == 0) {
        for (; i < n; i++) x[i * incx] = 0;
        return;
    }
    if (incx == 1)
        for (; i + VW <= n; i += VW) *(VU *)(x + i) *= a;
    for (; i < n; i++) x[i * incx] *= a;
}

static void EV_TYPED(dot)(int64_t n, const void *xv, int64_t incx, const void *yv, int64_t incy, double *result)
{
    const T *x = xv, *y = yv;
    T s = 0;
    int64_t i = 0;
    if (incx == 1 && incy == 1) {
        V s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        for (; i + 4 * VW <= n; i += 4 * VW) {
            s0 += *(const VU *)(x + i) * *(const VU *)(y + i);
            s1 += *(const VU *)(x + i + VW) * *(const VU *)(y + i + VW);
            s2 += *(const VU *)(x + i + 2 * VW) * *(const VU *)(y + i + 2 * VW);
            s3 += *(const VU *)(x + i + 3 * VW) * *(const VU *)(y + i + 3 * VW);
        }
        s = EV_TYPED(lanes_sum)((s0 + s1) + (s2 + s3));
    }
    for (; i < n; i++) s += x[i * incx] * y[i * incy];
    *result = (double)s;
}

static void EV_TYPED(asum)(int64_t n, const void *xv, int64_t incx, double *result)
{
    const T *x = xv;
    T part[4 * VW] = {0};
    int64_t i = 0;
    for (; i + 4 * VW <= n; i += 4 * VW)
        for (int l = 0; l < 4 * VW; l++) part[l] += ABS(x[(i + l) * incx]);
    for (int l = 0; i < n; i++, l++) part[l] += ABS(x[i * incx]);
    T s = 0;
    for (int l = 0; l < 4 * VW; l++) s += part[l];
    *result = (double)s;
}

/* The index of the first NaN, or else of the first element of the largest absolute value. */
static void EV_TYPED(iamax)(int64_t n, const void *xv, int64_t incx, int64_t *index)
{
    const T *x = xv;
    int64_t at = 0;
    T most = ABS(x[0]);
    for (int64_t i = 1; i < n && most == most; i++) {
        const T v = ABS(x[i * incx]);
        if (!(v <= most)) most = v, at = i;
    }
    *index = at;
}

/* Squares are of doubles: those of float32 neither overflow nor vanish; float64 is first scaled by a power of two. */
static void EV_TYPED(nrm2)(int64_t n, const void *xv, int64_t incx, double *result)
{
    const T *x = xv;
    double part[8] = {0}, scale = 1.0, back = 1.0, s = 0;
    int64_t i = 0;
    if (sizeof(T) == 8 && n > 0) {
        int64_t at;
        EV_TYPED(iamax)(n, x, incx, &at);
        const double most = (double)ABS(x[at * incx]);
        if (!(most > 0 && most < INFINITY)) {
            *result = most;
            return;
        }
        const int e = most < 0x1p-500 ? 600 : most > 0x1p480 ? -600 : 0;
        scale = ldexp(1.0, e);
        back = ldexp(1.0, -e);
    }
    for (; i + 8 <= n; i += 8)
        for (int l = 0; l < 8; l++) {
            const double v = (double)x[(i + l) * incx] * scale;
            part[l] += v * v;
        }
    for (int l = 0; i < n; i++, l++) {
        const double v = (double)x[i * incx] * scale;
        part[l] += v * v;
    }
    for (int l = 0; l < 8; l++) s += part[l];
    *result = sqrt(s) * back;
}
