/* Integer products, exact modulo 2^32 whatever the operands. */
#include "check.h"

static const int64_t ROWS[] = {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 25}, COLUMNS[] = {1, 8, 9, 16, 17, 32, 35, 48};

/* Tables may take a faster way where a signed operand has no -128: leaves that out. */
static void narrow(void *p, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (((int8_t *)p)[i] == -128) ((int8_t *)p)[i] = -127;
}

/* Rows [m][k] of int8, lda apart, by panels of quads: [k/4][16][4] of uint8 in some order, `step` bytes apart. */
void check_qc_tile(void)
{
    static const int64_t QUADS[] = {1, 2, 3, 4, 5, 15, 16, 37};
    char what[96];
    int plain = 0;
    K->qc_plain(&plain);
    EACH(m, ROWS) EACH(n, COLUMNS) EACH(q, QUADS) for (int s = 4; s >= 1; s /= 2) {
        const int64_t m = ROWS[m_], n = COLUMNS[n_], k = 4 * QUADS[q_], kp = (k + EV_QC_STEP - 1) / EV_QC_STEP * EV_QC_STEP;
        const int64_t panels = (n + EV_QC_NR - 1) / EV_QC_NR, ld = panels * EV_QC_NR, step = kp * EV_QC_NR;
        if (plain ? s < 4 || m > EV_QC_PLAIN_MR : m > EV_QC_MR) continue;
        const int64_t lda = plain ? k : kp, depth = plain ? k : kp;
        int8_t *a = guarded((size_t)(m * lda)), *as_they_were = guarded((size_t)(m * lda));
        uint8_t *b = guarded((size_t)(panels * step));
        int32_t *sum = guarded((size_t)(m * ld) * 4);
        fill_bytes(a, m * lda, 1);
        fill_bytes(b, panels * step, 0);
        if (n_ % 2) narrow(a, m * lda);
        for (int64_t i = 0; i < m; i++)
            for (int64_t p = k; p < lda; p++) a[i * lda + p] = 0;
        memcpy(as_they_were, a, (size_t)(m * lda));
        ev_qextra *extra = guarded((size_t)(m * kp / 2) * sizeof *extra);
        const ev_qextra *extras[EV_QC_PLAIN_MR];
        int32_t found[EV_QC_PLAIN_MR] = {0};
        int16_t *wide = guarded((size_t)(m * kp) * 2);
        for (int64_t i = 0; i < m && !plain; i++) {
            extras[i] = extra + i * (kp / 2);
            if (s > 1) K->qc_prepare(kp, s, a + i * lda, extra + i * (kp / 2), &found[i]);
            else K->qc_widen(kp, a + i * lda, wide + i * kp);
        }
        int32_t *offset = guarded((size_t)(kp / 4) * 4);
        for (int32_t g = 0; g < kp / 4; g++) offset[g] = 4 * EV_QC_NR * (m % 2 ? g : (int32_t)kp / 4 - 1 - g);
        K->qc_tile(m, n, s, depth, s > 1 ? (const void *)a : wide, lda, b, offset, step, extras, found, sum, ld);
        snprintf(what, sizeof what, "m=%d n=%d k=%d s=%d", (int)m, (int)n, (int)k, s);
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) {
                int64_t want = 0;
                for (int64_t p = 0; p < k; p++)
                    want += as_they_were[i * lda + p] * b[j / EV_QC_NR * step + offset[p / 4] + j % EV_QC_NR * 4 + p % 4];
                if (!same_i32("qc_tile", what, i * ld + j, sum[i * ld + j], want)) return;
            }
        release_all();
    }
}

/* Rows of quads, lda bytes apart, by one panel; one of them unsigned. presum: see qgemm_body.h. */
void check_qgemm_u8(void)
{
    static const int64_t QUADS[] = {1, 2, 3, 4, 7, 16, 33};
    char what[96];
    EACH(m, ROWS) EACH(q, QUADS) for (int64_t n = 1; n <= EV_QNR; n += 5) for (int kind = 0; kind < 12; kind++) {
        const int a_unsigned = kind & 1, add = kind >> 1 & 1, presum = 1 << (kind >> 2);
        const int64_t m = ROWS[m_], quads = QUADS[q_], k = 4 * quads, lda = k + 4 * (n % 2);
        uint8_t *a = guarded((size_t)((m - 1) * lda + k)), *b = guarded((size_t)(64 * quads));
        int32_t *c = guarded((size_t)(m * EV_QNR) * 4), *before = guarded((size_t)(m * EV_QNR) * 4);
        fill_bytes(a, (m - 1) * lda + k, !a_unsigned);
        fill_bytes(b, 64 * quads, a_unsigned);
        if (n % 2) narrow(a_unsigned ? b : a, a_unsigned ? 64 * quads : (m - 1) * lda + k);
#if defined(__x86_64__)
        const int any = 0;
#else
        const int any = n & 1; /* what needs no promise */
#endif
        if (!any) { /* as the driver promises: 2 * presum products of such numbers fit 16 bits */
            int8_t *w = (int8_t *)(a_unsigned ? b : a);
            for (int64_t i = (a_unsigned ? 64 * quads : (m - 1) * lda + k) - 1; i >= 0; i--) w[i] /= (int8_t)(2 * presum);
        }
        for (int64_t i = 0; i < m * EV_QNR; i++) c[i] = (int32_t)random_bits();
        memcpy(before, c, (size_t)(m * EV_QNR) * 4);
        K->qgemm_u8(m, n, quads, a, lda, b, a_unsigned, presum, add, c);
        snprintf(what, sizeof what, "m=%d n=%d k=%d a_unsigned=%d add=%d presum=%d", (int)m, (int)n, (int)k, a_unsigned, add,
                 presum);
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) {
                int64_t want = add ? before[i * EV_QNR + j] : 0;
                for (int64_t p = 0; p < k; p++) {
                    const uint8_t x = a[i * lda + p], y = b[p / 4 * 64 + 4 * j + p % 4];
                    want += a_unsigned ? x * (int8_t)y : (int8_t)x * y;
                }
                if (!same_i32("qgemm_u8", what, i * EV_QNR + j, c[i * EV_QNR + j], want)) return;
            }
        release_all();
    }
}

/* Rows of pairs of int16, lda pairs apart, by one panel [pairs][16][2]. */
void check_qgemm_i16(void)
{
    static const int64_t PAIRS[] = {1, 2, 3, 8, 31};
    char what[96];
    EACH(m, ROWS) EACH(q, PAIRS) for (int64_t n = 1; n <= EV_QNR; n += 3) for (int kind = 0; kind < 4; kind++) {
        const int add = kind & 1;
        const int64_t m = ROWS[m_], pairs = PAIRS[q_], lda = pairs + n % 3, size = (m - 1) * lda + pairs;
        int16_t *a = guarded((size_t)(2 * size) * 2), *b = guarded((size_t)(2 * EV_QNR * pairs) * 2);
        int32_t *c = guarded((size_t)(m * EV_QNR) * 4), *before = guarded((size_t)(m * EV_QNR) * 4);
        fill_i16(a, 2 * size, 32767);
        fill_i16(b, 2 * EV_QNR * pairs, kind & 2 ? 255 : 32767);
        for (int64_t i = 0; i < m * EV_QNR; i++) c[i] = (int32_t)random_bits();
        memcpy(before, c, (size_t)(m * EV_QNR) * 4);
        K->qgemm_i16(m, n, pairs, a, lda, b, add, c);
        snprintf(what, sizeof what, "m=%d n=%d pairs=%d add=%d", (int)m, (int)n, (int)pairs, add);
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) {
                int64_t want = add ? before[i * EV_QNR + j] : 0;
                for (int64_t p = 0; p < 2 * pairs; p++)
                    want += (int64_t)a[2 * i * lda + p] * b[p / 2 * 2 * EV_QNR + 2 * j + p % 2];
                if (!same_i32("qgemm_i16", what, i * EV_QNR + j, c[i * EV_QNR + j], want)) return;
            }
        release_all();
    }
}

/* Panels of quads of columns, of bytes that lie along rows, along columns, and apart. */
void check_qquad_panels(void)
{
    static const int64_t DEPTHS[] = {1, 3, 4, 15, 16, 18, 35};
    char what[64];
    EACH(k, DEPTHS) for (int64_t n = 5; n <= 37; n += 16) for (int kind = 0; kind < 6; kind++) {
        const int64_t k = DEPTHS[k_], rs = kind % 3 == 0 ? n + 1 : kind % 3 == 1 ? 1 : 2, cs = kind % 3 == 0 ? 1 : 2 * k + 1;
        const int64_t panels = (n + EV_QNR - 1) / EV_QNR, quads = (k + 3) / 4, size = (k - 1) * rs + (n - 1) * cs + 1;
        const int flip = kind < 3 ? 0 : 0x80;
        uint8_t *b = guarded((size_t)size), *y = guarded((size_t)(panels * quads * 64));
        fill_bytes(b, size, flip != 0);
        const ev_qoperand given = {.data = b, .rs = rs, .cs = cs, .type = flip ? EV_INT8 : EV_UINT8};
        K->qquad_panels(&given, 0, k, 0, n, flip, y);
        snprintf(what, sizeof what, "k=%d n=%d kind=%d", (int)k, (int)n, kind);
        for (int64_t i = 0; i < panels * quads * 64; i++) {
            const int64_t p = i / 64 % quads * 4 + i % 4, j = i / (64 * quads) * EV_QNR + i % 64 / 4;
            if (p >= k && j < n) continue; /* meets zeros of the other operand */
            if (!same_i32("qquad_panels", what, i, y[i], p < k && j < n ? b[p * rs + j * cs] ^ flip : 0)) return;
        }
        release_all();
    }
}
