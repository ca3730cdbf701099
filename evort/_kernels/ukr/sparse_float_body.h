/* Products with sparse weights in float32; sparse_body.h says how. */

#if defined(__AVX512F__)
#define EV_SP_BYTES 64
#define EV_SP_VECTORS 4 /* of columns at a time: the sums of 4 rows fit the registers */
#elif defined(__AVX2__)
#define EV_SP_BYTES 32
#define EV_SP_VECTORS 2
#else
#define EV_SP_BYTES 16
#define EV_SP_VECTORS 2
#endif

typedef float EV_FN(spv) __attribute__((vector_size(EV_SP_BYTES), may_alias, aligned(4)));

static inline __attribute__((always_inline)) void EV_FN(sp_rows_f32)(
    const int rows, int64_t n, const uint16_t *index, const float *w, const float *b, float *sum, int64_t ld)
{
    enum { W = EV_SP_BYTES / 4, V = EV_SP_VECTORS };
    for (int j = 0; j < EV_SP_NR; j += V * W) {
        EV_FN(spv) acc[EV_SP_MR][V];
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < V; v++) acc[i][v] = (EV_FN(spv)){0};
        for (int64_t t = 0; t < n; t++) {
            const float *x = b + index[t] * EV_SP_NR + j;
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) {
                const float a = w[t * rows + i];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) acc[i][v] += *(const EV_FN(spv) *)(x + v * W) * a;
            }
        }
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < V; v++) *(EV_FN(spv) *)(sum + i * ld + j + v * W) = acc[i][v];
    }
}

/* sum[i][0..64) = row i of the group times the panel [K][64]. */
static void EV_FN(sp_tile_f32)(int rows, int64_t n, const uint16_t *index, const float *w, const float *b, float *sum,
                               int64_t ld)
{
    if (rows == 1) EV_FN(sp_rows_f32)(1, n, index, w, b, sum, ld);
    else EV_FN(sp_rows_f32)(EV_SP_MR, n, index, w, b, sum, ld);
}

/* sum[i] = row i of the group times the vector x. */
static void EV_FN(sp_dot_f32)(int rows, int64_t n, const uint16_t *index, const float *w, const float *x, float *sum)
{
    float acc[EV_SP_MR] = {0};
    if (rows == EV_SP_MR)
        for (int64_t t = 0; t < n; t++, w += EV_SP_MR)
            for (int i = 0; i < EV_SP_MR; i++) acc[i] += w[i] * x[index[t]];
    else
        for (int64_t t = 0; t < n; t++) acc[0] += w[t] * x[index[t]];
    for (int i = 0; i < rows; i++) sum[i] = acc[i];
}
