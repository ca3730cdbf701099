/* Products with sparse weights beside sums in double and in int64. A sum of k products is off by at most gamma(k) times the
 * sum of their sizes, as in floats.c. */
#include "check.h"

void check_sparse_f32(void)
{
    static const int64_t COUNTS[] = {0, 1, 2, 7, 32};
    char what[64];
    EACH(n, COUNTS) for (int rows = 1; rows <= EV_SP_MR; rows += EV_SP_MR - 1) {
        const int64_t n = COUNTS[n_], depth = 50, ld = EV_SP_NR + 16;
        uint16_t *index = guarded((size_t)n * 2);
        float *w = guarded((size_t)(n * rows) * 4), *b = guarded((size_t)(depth * EV_SP_NR) * 4), *x = guarded((size_t)depth * 4);
        float *sum = guarded((size_t)((rows - 1) * ld + EV_SP_NR) * 4), dots[EV_SP_MR];
        for (int64_t i = 0; i < n; i++) index[i] = (uint16_t)(random_bits() % depth);
        fill_floats(w, n * rows), fill_floats(b, depth * EV_SP_NR), fill_floats(x, depth);
        K->sp_tile_f32(rows, n, index, w, b, sum, ld);
        K->sp_dot_f32(rows, n, index, w, x, dots);
        snprintf(what, sizeof what, "%d rows of %d", rows, (int)n);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j <= EV_SP_NR; j++) { /* the last one: the vector */
                double want = 0, size = 0;
                for (int64_t t = 0; t < n; t++) {
                    const double v = (double)w[t * rows + i] * (j < EV_SP_NR ? b[index[t] * EV_SP_NR + j] : x[index[t]]);
                    want += v, size += fabs(v);
                }
                if (!near(j < EV_SP_NR ? "sp_tile_f32" : "sp_dot_f32", what, i * ld + j, j < EV_SP_NR ? sum[i * ld + j] : dots[i], want,
                          size, n)) return;
            }
        release_all();
    }
}

void check_sparse_s8(void)
{
    static const int64_t QUADS[] = {1, 2, 5, 16};
    char what[64];
    EACH(q, QUADS) for (int rows = 1; rows <= EV_SP_MR; rows += EV_SP_MR - 1) for (int holes = 0; holes < 3; holes++) {
        const int64_t quads = QUADS[q_], n = 4 * quads, depth = 50, ld = EV_SP_NR + 16;
        const uint64_t lanes = holes == 0 ? ~0ull : ((uint64_t)random_bits() << 32 | random_bits()) | 1;
        uint16_t *index = guarded((size_t)n * 2);
        int8_t *w = guarded((size_t)(n * rows));
        uint8_t *b = guarded((size_t)(depth * EV_SP_NR)), *x = guarded((size_t)depth);
        int32_t *offset = guarded((size_t)depth * 4), *sum = guarded((size_t)((rows - 1) * ld + EV_SP_NR) * 4), dots[EV_SP_MR];
        for (int64_t i = 0; i < n; i++) index[i] = (uint16_t)(random_bits() % depth);
        for (int64_t p = 0; p < depth; p++) offset[p] = (int32_t)((depth - 1 - p) * EV_SP_NR);
        fill_bytes(w, n * rows, 1), fill_bytes(b, depth * EV_SP_NR, 0), fill_bytes(x, depth, 0);
        K->sp_tile_s8(rows, quads, index, offset, w, b, lanes, sum, ld);
        K->sp_dot_s8(rows, quads, index, w, x, dots);
        snprintf(what, sizeof what, "%d rows of %d quads, holes %d", rows, (int)quads, holes);
        for (int64_t i = 0; i < rows; i++) {
            int64_t at = 0, want = 0;
            for (int64_t j = 0; j < EV_SP_NR; j++) {
                if (!(lanes >> j & 1)) continue;
                want = 0;
                for (int64_t t = 0; t < n; t++)
                    want += w[(t / 4 * rows + i) * 4 + t % 4] * b[offset[index[t]] + j];
                if (!same_i32("sp_tile_s8", what, i * ld + at, sum[i * ld + at], want)) return;
                at++;
            }
            want = 0;
            for (int64_t t = 0; t < n; t++) want += w[(t / 4 * rows + i) * 4 + t % 4] * x[index[t]];
            if (!same_i32("sp_dot_s8", what, i, dots[i], want)) return;
        }
        release_all();
    }
}
