/* Matrix products against sums in double. A sum of k products is off by at most gamma(k) times the sum of the products'
 * sizes (Higham, Accuracy and Stability, section 3.1); scaling, adding and both biases round four times more. The sums of
 * float64 that results are compared with are off by as much again. */
#include <float.h>
#include <math.h>

#include "check.h"

enum { PANELS, ROW_MAJOR, COLUMN_MAJOR, LAYOUTS };

#define CHECK_GEMM(name, T, NR, EPS)                                                                                \
    void check_##name(void)                                                                                         \
    {                                                                                                               \
        static const int64_t ROWS[] = {1, 2, 5, 6, 7, 11, 12, 13, 24, 29}, DEPTHS[] = {0, 1, 2, 3, 4, 17, 66};      \
        static const int64_t COLUMNS[] = {1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33};                      \
        const int64_t mr = K->mr;                                                                                   \
        for (int m_ = 0; m_ < 10; m_++) for (int n_ = 0; n_ < 15; n_++) for (int k_ = 0; k_ < 7; k_++) {            \
            const int64_t m = ROWS[m_], n = COLUMNS[n_], k = DEPTHS[k_], groups = (m + mr - 1) / mr;                \
            const int64_t panels = (n + NR - 1) / NR, ldc = n + 1;                                                  \
            const int layout = (m_ + n_ + k_) % LAYOUTS, with = (int)(random_bits() % 16);                          \
            const int lies = K->masks && random_bits() % 2; /* rows of B in memory, the last of which ends it */    \
            const int64_t ldb = lies ? n : NR, b_step = lies ? NR : NR * k, b_size = lies ? n * k : panels * NR * k; \
            ev_tile t = {.m = m, .n = n, .k = k, .alpha = with & 1 ? 1 : 0.75, .beta = with & 1 ? 1 : -0.5};        \
            const int64_t a_size = layout == PANELS ? groups * mr * k : m * k;                                    \
            T *a = guarded((size_t)a_size * sizeof(T)), *b = guarded((size_t)b_size * sizeof(T));                   \
            T *c = guarded((size_t)(m * ldc - 1) * sizeof(T)), *add = guarded((size_t)(m * n) * sizeof(T));         \
            T *row_bias = guarded((size_t)m * sizeof(T)), *col_bias = guarded((size_t)n * sizeof(T));               \
            for (int64_t i = 0; i < a_size; i++) a[i] = (T)uniform();                                               \
            for (int64_t i = 0; i < b_size; i++) b[i] = (T)uniform();                                               \
            for (int64_t i = 0; i < m * n; i++) add[i] = (T)uniform();                                              \
            for (int64_t i = 0; i < m; i++) row_bias[i] = (T)uniform();                                             \
            for (int64_t i = 0; i < n; i++) col_bias[i] = (T)uniform();                                             \
            if (with == 5) add[m * n - 1] = (T)NAN;                                                                 \
            t.a = a, t.b = b, t.c = c, t.ldb = ldb, t.b_step = b_step, t.ldc = ldc, t.ldadd = n;                    \
            t.rsa = layout == ROW_MAJOR ? k : 1;                                                                    \
            t.csa = layout == PANELS ? mr : layout == ROW_MAJOR ? 1 : m;                                            \
            t.a_step = layout == PANELS ? mr * k : mr * t.rsa;                                                      \
            t.add = with & 1 ? add : NULL;                                                                          \
            t.row_bias = with & 2 ? row_bias : NULL, t.col_bias = with & 4 ? col_bias : NULL;                       \
            t.lo = with & 8 ? -0.25 : -INFINITY, t.hi = with & 8 ? 0.5 : INFINITY;                                  \
            K->name(&t);                                                                                            \
            for (int64_t i = 0; i < m; i++)                                                                         \
                for (int64_t j = 0; j < n; j++) {                                                                   \
                    double sum = 0, size = 0;                                                                       \
                    const T *row = a + (layout == PANELS ? i / mr * mr * k + i % mr : i * t.rsa);                   \
                    for (int64_t p = 0; p < k; p++) {                                                               \
                        const double x = (double)row[p * t.csa] * b[j / NR * b_step + p * ldb + j % NR];            \
                        sum += x, size += fabs(x);                                                                  \
                    }                                                                                               \
                    double want = t.alpha * sum;                                                                    \
                    size *= fabs(t.alpha);                                                                          \
                    if (t.add) want += t.beta * add[i * n + j], size += fabs(t.beta * add[i * n + j]);              \
                    if (t.row_bias) want += row_bias[i], size += fabs(row_bias[i]);                                 \
                    if (t.col_bias) want += col_bias[j], size += fabs(col_bias[j]);                                 \
                    want = want < t.lo ? t.lo : want > t.hi ? t.hi : want;                                          \
                    const double got = c[i * ldc + j], unit = EPS / 2;                                              \
                    const double most = (double)(2 * k + 8) * unit / (1 - (double)(k + 4) * unit) * size;           \
                    checks++;                                                                                       \
                    if (isnan(want) ? isnan(got) : fabs(got - want) <= most) continue;                              \
                    if (failures++ < 20)                                                                            \
                        printf("%s " #name ": m=%d n=%d k=%d layout %d with %d, [%d, %d] is %.9g, not %.9g +- %.2g\n", \
                               K->isa, (int)m, (int)n, (int)k, layout, with, (int)i, (int)j, got, want, most);      \
                    return;                                                                                         \
                }                                                                                                   \
            for (int64_t i = 0; i + 1 < m; i++) /* between the rows nothing was written */                          \
                if (memcmp(c + i * ldc + n, "ZZZZZZZZ", sizeof(T))) {                                               \
                    failures++;                                                                                     \
                    printf("%s " #name ": m=%d n=%d k=%d writes behind a row\n", K->isa, (int)m, (int)n, (int)k);   \
                    return;                                                                                         \
                }                                                                                                   \
            release_all();                                                                                          \
        }                                                                                                           \
    }

CHECK_GEMM(gemm_f32, float, EV_NR_F32, FLT_EPSILON)
CHECK_GEMM(gemm_f64, double, EV_NR_F64, DBL_EPSILON)

/* B from its rows, and from panels: the same bits, and the panels as the packer fills them. */
#define CHECK_PACKING(name, gemm, packer, T, NR)                                                                    \
    void check_##name(void)                                                                                         \
    {                                                                                                               \
        static const int64_t MORE_ROWS[] = {0, 1, 5, 12, 17}, DEPTHS[] = {1, 2, 7, 40}, PAIRS[] = {1, 3};           \
        for (int m_ = 0; m_ < 5; m_++) for (int k_ = 0; k_ < 4; k_++) for (int n_ = 0; n_ < 2; n_++) {              \
            const int64_t mr = K->mr, m = mr + MORE_ROWS[m_], k = DEPTHS[k_], n = PAIRS[n_] * 2 * NR, ldb = n + 3;  \
            const int panels = (m_ + k_ + n_) % 2, groups = (int)((m + mr - 1) / mr);                               \
            ev_tile t = {.m = m, .n = n, .k = k, .alpha = 1, .lo = -INFINITY, .hi = 0.5};                           \
            T *a = guarded((size_t)(groups * mr * k) * sizeof(T));                                                  \
            T *b = guarded((size_t)((k - 1) * ldb + n) * sizeof(T)), *bias = guarded((size_t)n * sizeof(T));        \
            T *packed = guarded((size_t)(n * k) * sizeof(T)), *filled = guarded((size_t)(n * k) * sizeof(T));       \
            T *want = guarded((size_t)(m * n) * sizeof(T)), *got = guarded((size_t)(m * n) * sizeof(T));            \
            for (int64_t i = 0; i < groups * mr * k; i++) a[i] = (T)uniform();                                      \
            for (int64_t i = 0; i < (k - 1) * ldb + n; i++) b[i] = (T)uniform();                                    \
            for (int64_t i = 0; i < n; i++) bias[i] = (T)uniform();                                                 \
            t.a = a, t.rsa = panels ? 1 : k, t.csa = panels ? mr : 1, t.a_step = mr * k;                            \
            t.ldb = NR, t.b_step = NR * k, t.ldc = n, t.col_bias = bias;                                            \
            K->packer(NR, n, k, 1, ldb, b, packed);                                                                 \
            t.b = packed, t.c = want, K->gemm(&t);                                                                  \
            t.b = filled, t.c = got, K->name(&t, b, ldb);                                                           \
            checks++;                                                                                               \
            const size_t c_bytes = (size_t)(m * n) * sizeof(T), b_bytes = (size_t)(n * k) * sizeof(T);              \
            if (memcmp(want, got, c_bytes) || memcmp(packed, filled, b_bytes)) {                                    \
                failures++;                                                                                         \
                printf("%s " #name ": m=%d n=%d k=%d differs\n", K->isa, (int)m, (int)n, (int)k);                   \
                return;                                                                                             \
            }                                                                                                       \
            release_all();                                                                                          \
        }                                                                                                           \
    }

CHECK_PACKING(gemm_packing_f32, gemm_f32, pack_f32, float, EV_NR_F32)
CHECK_PACKING(gemm_packing_f64, gemm_f64, pack_f64, double, EV_NR_F64)

/* Columns of B that are contiguous. */
#define CHECK_FEW(name, T, EPS)                                                                                        \
    void check_##name(void)                                                                                            \
    {                                                                                                                  \
        char what[64];                                                                                                 \
        static const int64_t DEPTHS[] = {0, 1, 3, 15, 16, 17, 64, 99};                                                 \
        for (int64_t m = 1; m < 10; m++) for (int64_t n = 1; n < 10; n++) for (int k_ = 0; k_ < 8; k_++) {             \
            const int64_t k = DEPTHS[k_], step = k + 3;                                                                \
            T *a = guarded((size_t)(m * k) * sizeof(T)), *b = guarded((size_t)(n * step - 3) * sizeof(T));             \
            T *c = guarded((size_t)(m * n) * sizeof(T)), *add = guarded((size_t)(m * n) * sizeof(T));                  \
            T *bias = guarded((size_t)m * sizeof(T)), *col_bias = guarded((size_t)n * sizeof(T));                      \
            for (int64_t i = 0; i < m * k; i++) a[i] = (T)uniform();                                                   \
            for (int64_t i = 0; i < n * step - 3; i++) b[i] = (T)uniform();                                            \
            for (int64_t i = 0; i < m * n; i++) add[i] = (T)uniform();                                                 \
            for (int64_t i = 0; i < m; i++) bias[i] = (T)uniform();                                                    \
            for (int64_t i = 0; i < n; i++) col_bias[i] = (T)uniform();                                                \
            const int with = (int)(random_bits() % 16);                                                                \
            ev_tile t = {.m = m, .n = n, .k = k, .alpha = 1, .beta = 1, .a = a, .rsa = k, .csa = 1, .b = b, .b_step = step, \
                         .c = c, .ldc = n, .ldadd = n};                                                                \
            t.add = with & 1 ? add : NULL, t.row_bias = with & 2 ? bias : NULL;                                        \
            t.col_bias = with & 8 ? col_bias : NULL;                                                                   \
            t.lo = with & 4 ? -0.25 : -INFINITY, t.hi = with & 4 ? 0.5 : INFINITY;                                     \
            snprintf(what, sizeof what, "m=%d n=%d k=%d with %d", (int)m, (int)n, (int)k, with);                       \
            K->name(&t);                                                                                               \
            for (int64_t i = 0; i < m; i++) for (int64_t j = 0; j < n; j++) {                                          \
                double want = 0, size = 0;                                                                             \
                for (int64_t p = 0; p < k; p++) {                                                                      \
                    const double x = (double)a[i * k + p] * b[j * step + p];                                           \
                    want += x, size += fabs(x);                                                                        \
                }                                                                                                      \
                if (t.add) want += add[i * n + j], size += fabs(add[i * n + j]);                                       \
                if (t.row_bias) want += bias[i], size += fabs(bias[i]);                                                \
                if (t.col_bias) want += col_bias[j], size += fabs(col_bias[j]);                                        \
                want = want < t.lo ? t.lo : want > t.hi ? t.hi : want;                                                 \
                const double unit = EPS / 2, most = (double)(2 * k + 8) * unit / (1 - (double)(k + 4) * unit) * size;  \
                if (!close_to(#name, what, i * n + j, c[i * n + j], want, most)) return;                               \
            }                                                                                                          \
            release_all();                                                                                             \
        }                                                                                                              \
    }

CHECK_FEW(gemm_few_f32, float, FLT_EPSILON)
CHECK_FEW(gemm_few_f64, double, DBL_EPSILON)

/* Winograd's sums against double: a kernel's element goes through 12 roundings, its product through c more, and three are
 * for the factor and what is added to. */
void check_winograd_row(void)
{
    static const double G[6][3] = {{1, 0, 0},
                                   {-2.0 / 3, -2.0 / 3 * M_SQRT1_2, -1.0 / 3},
                                   {-2.0 / 3, 2.0 / 3 * M_SQRT1_2, -1.0 / 3},
                                   {1.0 / 6, M_SQRT2 / 6, 1.0 / 3},
                                   {1.0 / 6, -M_SQRT2 / 6, 1.0 / 3},
                                   {0, 0, 1}};
    static const int64_t CHANNELS[] = {1, 2, 7, 33}, TILES[] = {4, 8, 12, 20};
    enum { MAPS = EV_WINOGRAD_MAPS };
    for (int c_ = 0; c_ < 4; c_++) for (int t_ = 0; t_ < 4; t_++) for (int row = 0; row < 6; row++) {
        const int64_t c = CHANNELS[c_], tiles = TILES[t_], panel = tiles == 4 ? 4 : 8, ldv = 6 * panel + panel % 8;
        const int64_t panels = (tiles + panel - 1) / panel, step = tiles * MAPS + 3, ldw = (9 + row % 2) * MAPS;
        float *w = guarded((size_t)(c * ldw) * sizeof *w), *v = guarded((size_t)(panels * c * ldv) * sizeof *v);
        float *u = guarded((size_t)(c * 6 * MAPS) * sizeof *u), *o = guarded((size_t)(6 * step) * sizeof *o);
        float *old = guarded((size_t)(6 * step) * sizeof *old);
        for (int64_t i = 0; i < c * ldw; i++) w[i] = (float)uniform();
        for (int64_t i = 0; i < panels * c * ldv; i++) v[i] = (float)uniform();
        for (int64_t i = 0; i < 6 * step; i++) o[i] = old[i] = (float)uniform();
        const int first = (row + t_) % 2;
        ev_winograd_row g = {.row = row, .c = c, .tiles = tiles, .w = w, .ldw = ldw, .v = v, .panel = panel, .ldv = ldv,
                             .step_v = ldv * c, .u = u, .o = o, .step = step, .first = first};
        K->winograd_row_f32(&g);
        for (int j = 0; j < 6; j++) for (int64_t t = 0; t < tiles; t++) for (int m = 0; m < MAPS; m++) {
            const int64_t at = j * step + t * MAPS + m;
            double want = first ? 0 : old[at], size = fabs(want);
            for (int64_t p = 0; p < c; p++) {
                const double x = v[t / panel * g.step_v + p * ldv + j * panel + t % panel];
                for (int a = 0; a < 3; a++) for (int b = 0; b < 3; b++) {
                    const double term = G[row][a] * G[j][b] * w[p * ldw + (a * 3 + b) * MAPS + m] * x;
                    want += term, size += fabs(term);
                }
            }
            checks++;
            if (fabs(o[at] - want) <= (double)(c + 15) * FLT_EPSILON / 2 * 1.001 * size) continue;
            if (failures++ < 20)
                printf("%s winograd_row_f32: row %d, c=%d, tiles=%d, [%d, %d, %d] is %.9g, not %.9g\n", K->isa, row, (int)c,
                       (int)tiles, j, (int)t, m, o[at], want);
        }
        release_all();
    }
}
