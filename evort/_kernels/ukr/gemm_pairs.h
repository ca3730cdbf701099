/* 8-bit operands of the integer product to int16 pairs, less their zero points.
 *
 * `flip` is 0x80 for int8, which makes it uint8 with 128 more, and 0 for uint8. The zero point of row or column j is
 * zeros[j*step], of the same type; zeros may be NULL. An odd last p is paired with zero. */

static inline int16_t EV_FN(zero_point)(int flip, const uint8_t *zeros, int64_t j)
{
    return (int16_t)((zeros ? zeros[j] : 0) ^ flip);
}

/* A: element (i, p) at src[i*rs + p*cs] goes to dst[i*ceil2(k) + p]; pairs lie along the row as they are. */
static void EV_FN(pair_rows_u8)(int64_t m, int64_t k, int64_t rs, int64_t cs, int flip, const uint8_t *zeros,
                                int64_t step, const uint8_t *src, int16_t *dst)
{
    for (int64_t i = 0; i < m; i++, src += rs) {
        const int16_t zero = EV_FN(zero_point)(flip, zeros, i * step);
        const uint8_t f = (uint8_t)flip;
        if (cs == 1)
            for (int64_t p = 0; p < k; p++) dst[p] = (int16_t)((src[p] ^ f) - zero);
        else
            for (int64_t p = 0; p < k; p++) dst[p] = (int16_t)((src[p * cs] ^ f) - zero);
        dst += k;
        if (k & 1) *dst++ = 0;
    }
}

/* B: element (p, j) at src[p*sp + j*sj] goes to panel j/16, pair p/2: dst[(p/2*16 + j%16)*2 + p%2]. */
static void EV_FN(pair_panels_u8)(int64_t n, int64_t k, int64_t sj, int64_t sp, int flip, const uint8_t *zeros,
                                  int64_t step, const uint8_t *src, int16_t *dst)
{
    enum { W = EV_NR_S8 };
    const uint8_t f = (uint8_t)flip;
    for (int64_t j0 = 0; j0 < n; j0 += W, src += W * sj) {
        const int64_t width = n - j0 < W ? n - j0 : W;
        int16_t zero[W];
        for (int64_t j = 0; j < W; j++) zero[j] = EV_FN(zero_point)(flip, zeros, j < width ? (j0 + j) * step : 0);
        for (int64_t p = 0; p < k; p += 2, dst += 2 * W) {
            const uint8_t *s = src + p * sp;
            const int pair = p + 1 < k;
            if (width == W && sj == 1 && pair)
                for (int64_t j = 0; j < W; j++) {
                    dst[2 * j] = (int16_t)((s[j] ^ f) - zero[j]);
                    dst[2 * j + 1] = (int16_t)((s[sp + j] ^ f) - zero[j]);
                }
            else
                for (int64_t j = 0; j < W; j++) {
                    dst[2 * j] = j < width ? (int16_t)((s[j * sj] ^ f) - zero[j]) : 0;
                    dst[2 * j + 1] = j < width && pair ? (int16_t)((s[j * sj + sp] ^ f) - zero[j]) : 0;
                }
        }
    }
}
