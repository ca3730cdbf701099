/* BLAS level 1, products of matrices and vectors, packing into panels, and what follows a product. Sums of k products are
 * off by gamma(k) times the sum of their sizes (see floats.c). */
#include <float.h>
#include <math.h>

#include "check.h"

static const int64_t COUNTS[] = {0, 1, 3, 4, 7, 8, 16, 31, 33, 67};

/* Room for n elements, `inc` apart, and where the first of them lies: BLAS's vectors may run backwards. */
#define VECTOR(T, n, inc)                                                                      \
    ((T *)guarded((size_t)((n) > 0 ? ((n) - 1) * llabs(inc) + 1 : 0) * sizeof(T)) +            \
     ((inc) < 0 && n ? (1 - (n)) * (inc) : 0))

#define CHECK_BLAS1(s, T, EPS, SMALL, LARGE)                                                                           \
    void check_blas1_##s(void)                                                                                         \
    {                                                                                                                  \
        static const int64_t INCREMENTS[] = {1, 2, -1, -3};                                                            \
        static const double SIZES[] = {1, SMALL, LARGE}, ALPHAS[] = {0, 1, -0.75};                                     \
        EACH(n, COUNTS) EACH(ix, INCREMENTS) EACH(iy, INCREMENTS) EACH(a, ALPHAS) {                                    \
            const int64_t n = COUNTS[n_], ix = INCREMENTS[ix_], iy = INCREMENTS[iy_];                                  \
            const double alpha = ALPHAS[a_], x_size = SIZES[(n_ + a_) % 3], gamma = (double)(2 * n + 8) * EPS / 2;     \
            T *x = VECTOR(T, n, ix), *y = VECTOR(T, n, iy), *z = VECTOR(T, n, ix);                                     \
            double dot = 0, sum = 0, size = 0, square = 0, got;                                                        \
            int64_t most = 0, at = 0;                                                                                  \
            for (int64_t i = 0; i < n; i++) {                                                                          \
                x[i * ix] = z[i * ix] = (T)(x_size * uniform()), y[i * iy] = (T)uniform();                             \
                const double v = x[i * ix] / x_size, p = (double)x[i * ix] * y[i * iy];                                \
                dot += p, size += fabs(p), sum += fabs(x[i * ix]), square += v * v;                                    \
                if (fabs(x[i * ix]) > fabs(x[most * ix])) most = i;                                                    \
            }                                                                                                          \
            const double norm = sqrt(square) * x_size;                                                                 \
            K->dot_##s(n, x, ix, y, iy, &got);                                                                         \
            if (!close_to("dot_" #s, "", n, got, dot, gamma * size)) return;                                           \
            K->asum_##s(n, x, ix, &got);                                                                               \
            if (!close_to("asum_" #s, "", n, got, sum, gamma * sum)) return;                                           \
            K->nrm2_##s(n, x, ix, &got);                                                                               \
            if (!close_to("nrm2_" #s, "", n, got, norm, (double)(n + 8) * DBL_EPSILON * norm)) return;                 \
            K->scal_##s(n, alpha, z, ix);                                                                              \
            for (int64_t i = 0; i < n; i++)                                                                            \
                if (!close_to("scal_" #s, "", i, z[i * ix], (T)(alpha * (double)x[i * ix]), 0)) return;                \
            for (int64_t i = 0; i < n; i++) z[i * ix] = x[i * ix] = (T)uniform();                                      \
            K->axpy_##s(n, alpha, y, iy, z, ix);                                                                       \
            for (int64_t i = 0; i < n; i++) {                                                                          \
                const double p = alpha * y[i * iy], want = x[i * ix] + p;                                              \
                if (!close_to("axpy_" #s, "", i, z[i * ix], want, EPS * (fabs(p) + fabs(want)))) return;               \
            }                                                                                                          \
            for (int64_t i = 0; i < n; i++) x[i * ix] = (T)(int)(3 * uniform()); /* ties: the first */                 \
            if (n > 4 && a_) x[4 * ix] = (T)NAN;                                                                       \
            for (int64_t i = most = 0; i < n; i++)                                                                     \
                if (!isnan(x[most * ix]) && !(fabs(x[i * ix]) <= fabs(x[most * ix]))) most = i;                        \
            if (n) K->iamax_##s(n, x, ix, &at);                                                                        \
            if (!same_i32("iamax_" #s, "", n, (int32_t)at, most)) return;                                              \
            release_all();                                                                                             \
        }                                                                                                              \
    }
CHECK_BLAS1(f32, float, FLT_EPSILON, 1e-30, 1e30)
CHECK_BLAS1(f64, double, DBL_EPSILON, 1e-280, 1e280)

/* The last size is of a matrix that does not stay in L2. */
#define CHECK_GEMV(s, T, EPS)                                                                                          \
    void check_gemv_##s(void)                                                                                          \
    {                                                                                                                  \
        static const int64_t SIZES[] = {1, 2, 3, 4, 5, 8, 9, 15, 16, 31, 37, 67, 523};                                 \
        EACH(n, SIZES) EACH(k, SIZES) {                                                                                \
            const int64_t n = SIZES[n_], k = SIZES[k_], inc = 1 + (n_ + k_) % 3;                                       \
            const double alpha = (n_ + k_) % 2 ? 1 : -0.75;                                                            \
            if ((n > 500) != (k > 500)) continue;                                                                      \
            T *x = VECTOR(T, k, 1), *spread = VECTOR(T, k, inc), *y = VECTOR(T, n, 1), *z = VECTOR(T, n, inc);         \
            T *by_rows = guarded((size_t)(k * (n + 1) - 1) * sizeof(T));                                               \
            T *dots = guarded((size_t)(n * (k + 1) - 1) * sizeof(T));                                                  \
            for (int64_t i = 0; i < k; i++) x[i] = spread[i * inc] = (T)uniform();                                     \
            for (int64_t i = 0; i < k * (n + 1) - 1; i++) by_rows[i] = (T)uniform();                                   \
            for (int64_t i = 0; i < n * (k + 1) - 1; i++) dots[i] = (T)uniform();                                      \
            for (int64_t j = 0; j < n; j++) y[j] = z[j * inc] = 0.5;                                                   \
            K->gemv_rows_##s(n, k, alpha, spread, inc, by_rows, n + 1, y);                                             \
            K->gemv_dot_##s(n, k, alpha, x, dots, k + 1, z, inc);                                                      \
            for (int64_t j = 0; j < n; j++) {                                                                          \
                double rows = 0.5, row_size = 0.5, dot = 0.5, dot_size = 0.5;                                          \
                for (int64_t p = 0; p < k; p++) {                                                                      \
                    const double v = alpha * x[p] * by_rows[p * (n + 1) + j];                                          \
                    const double w = alpha * x[p] * dots[j * (k + 1) + p];                                             \
                    rows += v, dot += w, row_size += fabs(v), dot_size += fabs(w);                                     \
                }                                                                                                      \
                const double gamma = (double)(2 * k + 8) * EPS / 2;                                                    \
                if (!close_to("gemv_rows_" #s, "", j, y[j], rows, gamma * row_size) ||                                 \
                    !close_to("gemv_dot_" #s, "", j, z[j * inc], dot, gamma * dot_size))                               \
                    return;                                                                                            \
            }                                                                                                          \
            release_all();                                                                                             \
        }                                                                                                              \
    }
CHECK_GEMV(f32, float, FLT_EPSILON)
CHECK_GEMV(f64, double, DBL_EPSILON)

/* Panels of B and of A, from rows, from columns and from what lies apart. */
#define CHECK_PACK(s, T, NR)                                                                                           \
    void check_pack_##s(void)                                                                                          \
    {                                                                                                                  \
        static const int64_t SIZES[] = {1, 2, 3, 5, 6, 8, 12, 15, 16, 17, 33, 150};                                    \
        EACH(n, SIZES) EACH(k, SIZES) for (int kind = 0; kind < 6; kind++) {                                           \
            const int64_t n = SIZES[n_], k = SIZES[k_], width = kind < 3 ? NR : K->mr;                                 \
            const int64_t sj = kind % 3 == 0 ? 1 : kind % 3 == 1 ? k + 1 : 2;                                          \
            const int64_t sp = kind % 3 == 0 ? n + 2 : kind % 3 == 1 ? 1 : 2 * n;                                      \
            const int64_t panels = (n + width - 1) / width;                                                            \
            T *x = guarded((size_t)((n - 1) * sj + (k - 1) * sp + 1) * sizeof(T));                                     \
            T *y = guarded((size_t)(panels * width * k) * sizeof(T));                                                  \
            for (int64_t i = 0; i < (n - 1) * sj + (k - 1) * sp + 1; i++) x[i] = (T)(1 + i);                           \
            K->pack_##s(width, n, k, sj, sp, x, y);                                                                    \
            for (int64_t i = 0; i < panels * width * k; i++) {                                                         \
                const int64_t j = i / (width * k) * width + i % width, p = i / width % k;                              \
                if (!close_to("pack_" #s, "", i, y[i], j < n ? x[j * sj + p * sp] : 0, 0)) return;                     \
            }                                                                                                          \
            release_all();                                                                                             \
        }                                                                                                              \
    }
CHECK_PACK(f32, float, EV_NR_F32)
CHECK_PACK(f64, double, EV_NR_F64)

/* Activations that take one operation: the others are unary_f32's. */
void check_activate(void)
{
    static const int OPS[] = {EV_ACT_NONE, EV_ACT_RELU, EV_ACT_CLIP, EV_ACT_LEAKY_RELU, EV_ACT_PRELU};
    static const int64_t SIZES[] = {1, 3, 8, 9, 31};
    EACH(o, OPS) EACH(m, SIZES) EACH(n, SIZES) for (int64_t more = 0; more < 3; more += 2) {
        const int64_t m = SIZES[m_], n = SIZES[n_], ld = n + more, size = (m - 1) * ld + n;
        float *c = floats(size), *given = guarded((size_t)size * 4), *slope = floats(m + 2);
        c[n / 2] = n_ % 2 ? NAN : -INFINITY;
        memcpy(given, c, (size_t)size * 4);
        const ev_epilogue e = {.activation = OPS[o_], .a = -0.25f, .b = 0.5f, .slope = slope};
        K->activate_f32(&e, m, n, 2, c, ld);
        for (int64_t i = 0; i < size; i++) {
            const float x = given[i], a = OPS[o_] == EV_ACT_PRELU ? slope[2 + i / ld] : e.a;
            const float y = OPS[o_] == EV_ACT_NONE || i % ld >= n ? x
                            : OPS[o_] == EV_ACT_RELU              ? (x < 0 ? 0 : x)
                            : OPS[o_] == EV_ACT_CLIP              ? (x < e.a ? e.a : x > e.b ? e.b : x)
                                                                  : (x < 0 ? a * x : x);
            if (!close_to("activate_f32", i % ld < n ? "" : "between rows", i, c[i], y, 0)) return;
        }
        release_all();
    }
}
