/* Convolutions of bytes, channels last, in plain C: what qnhwc.h says. Tables that are faster with it say so in
 * nhwc_has; the others' drivers take images with channels first. */

/* n bytes as int16. */
static void EV_FN(nhwc_widen)(int64_t n, const uint8_t *x, int16_t *y)
{
    for (int64_t i = 0; i < n; i++) y[i] = x[i];
}

/* One result. */
static void EV_FN(nhwc_put)(const ev_qfinish *f, int32_t sum, float scale, const void *z, uint8_t *y)
{
    const int32_t sums[32] = {sum}; /* as many as qc_finish may read */
    EV_FN(qc_finish)(f, 1, sums, NULL, 0, scale, z, y);
}

/* q[e] = byte e of four rows, 0 for those that are NULL. */
static void EV_FN(nhwc_quads)(int64_t n, const uint8_t *const *rows, uint8_t *q)
{
    for (int64_t e = 0; e < n; e++)
        for (int r = 0; r < 4; r++) q[4 * e + r] = rows[r] ? rows[r][e] : 0;
}

/* Sums by items of `each` rows: 4, of bytes, or 2, of int16. */
EV_INLINE void EV_FN(nhwc_by_rows)(const ev_nhwc_columns *g, int64_t n, const int each)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < g->channels; c++) {
            uint32_t sum = (uint32_t)g->add[c];
            for (int64_t r = 0; r < g->rows; r++) {
                const int64_t k = r + g->first;
                if (k < 0 || k >= g->kernel_h) continue;
                const int8_t *w = g->w + k / each * g->kernel_w * g->w_step + 4 * c;
                const uint8_t *q = g->q + r / each * g->group_step + i * g->step + 4 * c;
                for (int64_t j = 0; j < g->kernel_w; j++, w += g->w_step, q += g->tap_step)
                    sum += (uint32_t)(each == 4 ? (q[r % 4] - g->zero) * w[k % 4]
                                                : (((const int16_t *)q)[r % 2] - g->zero) * ((const int16_t *)w)[k % 2]);
            }
            EV_FN(nhwc_put)(g->finish, (int32_t)sum, g->scale[c], NULL, g->y + i * g->y_step + c);
        }
}

static void EV_FN(nhwc_columns)(const ev_nhwc_columns *g, int64_t n)
{
    EV_FN(nhwc_by_rows)(g, n, 4);
}

#if !defined(__AVX2__)
static void EV_FN(nhwc_has)(int *has)
{
    *has = 0;
}

/* Results of positions [begin, end). */
static void EV_FN(nhwc_conv)(const ev_nhwc_conv *g, int64_t begin, int64_t end)
{
    const int64_t vectors = (g->channels + EV_NHWC_VECTOR - 1) / EV_NHWC_VECTOR;
    for (int64_t p = begin; p < end; p++) {
        const int64_t from = p / g->width * g->row_step + p % g->width * g->step;
        for (int64_t c = 0; c < g->channels; c++) {
            const int8_t *w = g->w + 4 * c;
            uint32_t sum = (uint32_t)g->add[c];
            for (int64_t s = 0; s < g->segments; s++)
                for (int64_t q = 0; q < g->quads; q++, w += 4 * EV_NHWC_VECTOR * vectors)
                    for (int t = 0; t < 4; t++) {
                        const int64_t at = from + g->offset[s] + 4 * q + t;
                        if (g->wide) sum += (uint32_t)(((const int16_t *)g->x)[at] * w[t / 2 * 32 - 2 * (c % 16) + t % 2]);
                        else sum += (uint32_t)(((const uint8_t *)g->x)[at] * w[t]);
                    }
            if (!g->finish) {
                ((int32_t *)g->y)[p * g->ldy + c] = (int32_t)sum;
                continue;
            }
            EV_FN(nhwc_put)(g->finish, (int32_t)sum, g->scale[c], g->z ? (const char *)g->z + p * g->ldz + c : NULL,
                            g->y + p * g->ldy + c);
        }
    }
}

/* q[e] = number e of two rows, 0 for those that are NULL. */
static void EV_FN(nhwc_pairs)(int64_t n, const uint8_t *const *rows, int16_t *q)
{
    for (int64_t e = 0; e < n; e++)
        for (int r = 0; r < 2; r++) q[2 * e + r] = rows[r] ? rows[r][e] : 0;
}

static void EV_FN(nhwc_pair_columns)(const ev_nhwc_columns *g, int64_t n)
{
    EV_FN(nhwc_by_rows)(g, n, 2);
}

#endif

/* y[p*n + c] = the largest x[p*step + offset[t] + c] of all taps, for c < n and `pixels` pixels p. is_signed: int8. Where
 * pixels of fewer than 16 bytes are several, so many bytes behind them may be read. */
static void EV_FN(nhwc_max)(int64_t n, int64_t taps, const int32_t *offset, int is_signed, const uint8_t *x, int64_t step,
                            int64_t pixels, uint8_t *y)
{
    const uint8_t flip = is_signed ? 0x80 : 0;
    for (int64_t p = 0; p < pixels; p++, x += step, y += n) {
#if defined(__SSE2__) || defined(__aarch64__)
        if (n >= 16 || (pixels - p) * n >= 16) {
            for (int64_t c = 0; c < n; c += 16) {
                if (c + 16 > n && n >= 16) c = n - 16;
#if defined(__SSE2__)
                const __m128i f = _mm_set1_epi8((char)flip);
                __m128i v = _mm_setzero_si128();
                for (int64_t t = 0; t < taps; t++)
                    v = _mm_max_epu8(v, _mm_xor_si128(f, _mm_loadu_si128((const __m128i *)(x + offset[t] + c))));
                _mm_storeu_si128((__m128i *)(y + c), _mm_xor_si128(f, v));
#else
                const uint8x16_t f = vdupq_n_u8(flip);
                uint8x16_t v = vdupq_n_u8(0);
                for (int64_t t = 0; t < taps; t++) v = vmaxq_u8(v, veorq_u8(f, vld1q_u8(x + offset[t] + c)));
                vst1q_u8(y + c, veorq_u8(f, v));
#endif
            }
            continue;
        }
#endif
        for (int64_t c = 0; c < n; c++) {
            uint8_t v = 0;
            for (int64_t t = 0; t < taps; t++) {
                const uint8_t u = x[offset[t] + c] ^ flip;
                v = v > u ? v : u;
            }
            y[c] = v ^ flip;
        }
    }
}
