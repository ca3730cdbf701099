/* Convolutions of floats where they lie: direct ones and depthwise ones, beside sums in double. */
#include <math.h>

#include "check.h"

static double clamped(double x, double lo, double hi) { return x < lo ? lo : x > hi ? hi : x; }

void check_direct(void)
{
    static const int64_t MAPS[] = {1, 5, 6, 7, 12, 13, 16, 32}, DEPTHS[] = {1, 3, 4, 9, 18};
    static const int64_t BANDS[][3] = {{1, 1, 1}, {3, 5, 7}, {2, 16, 17},
                                       {5, 3, 3}, {4, 2, 6}, {1, 33, 40}}; /* rows, ow, pitch */
    char what[96];
    EACH(m, MAPS)
        EACH(k, DEPTHS)
            EACH(b, BANDS)
                for (int with = 0; with < 8; with++) {
                    const int64_t m = MAPS[m_], k = DEPTHS[k_], rows = BANDS[b_][0], ow = BANDS[b_][1],
                                  pitch = BANDS[b_][2];
                    const int64_t reach = 30 + (rows - 1) * pitch + ow, ldw = k + 2, size = rows * ow, ldy = size + 3;
                    const int lanes = with == 7 && m % EV_DIRECT_LANES == 0;
                    float *w = guarded((size_t)(m * ldw - 2) * 4),
                          *x = guarded((size_t)(reach + 32) * 4); /* as the copy has room for */
                    float *y = guarded((size_t)((m - 1) * ldy + size) * 4),
                          *add = guarded((size_t)((m - 1) * ldy + size) * 4);
                    float *panels = guarded((size_t)(m * k + 16) * 4), *maps = guarded((size_t)(size * m) * 4),
                          *bias = guarded((size_t)m * 4);
                    int32_t *offset = guarded((size_t)k * 4);
                    fill_floats(w, m * ldw - 2), fill_floats(x, reach + 32), fill_floats(bias, m),
                        fill_floats(add, (m - 1) * ldy + size);
                    for (int64_t p = 0; p < k; p++) offset[p] = (int32_t)(random_bits() % 31);
                    ev_direct d = {m,
                                   k,
                                   w,
                                   ldw,
                                   x,
                                   offset,
                                   rows,
                                   pitch,
                                   ow,
                                   y,
                                   ldy,
                                   with & 1 ? bias : NULL,
                                   with & 2 ? add : NULL,
                                   with & 4 ? -0.5f : -INFINITY,
                                   with & 4 ? 0.75f : INFINITY};
                    if (lanes) {
                        for (int64_t i = 0; i < m; i++)
                            for (int64_t p = 0; p < k; p++)
                                panels[(i / EV_DIRECT_LANES * k + p) * EV_DIRECT_LANES + i % EV_DIRECT_LANES] =
                                    w[i * ldw + p];
                        d.w = panels, d.y = maps, d.ldy = m, d.residual = NULL;
                        K->direct_lanes_f32(&d);
                    } else {
                        K->direct_f32(&d);
                    }
                    snprintf(what, sizeof what, "m=%d k=%d rows=%d of %d with %d", (int)m, (int)k, (int)rows, (int)ow,
                             with);
                    for (int64_t i = 0; i < m; i++)
                        for (int64_t j = 0; j < size; j++) {
                            double want = d.bias ? bias[i] : 0, all = fabs(want);
                            if (d.residual) want += add[i * ldy + j], all += fabs(add[i * ldy + j]);
                            for (int64_t p = 0; p < k; p++) {
                                const double v = (double)w[i * ldw + p] * x[offset[p] + j / ow * pitch + j % ow];
                                want += v, all += fabs(v);
                            }
                            if (!near(lanes ? "direct_lanes_f32" : "direct_f32", what, i * size + j,
                                      lanes ? maps[j * m + i] : y[i * ldy + j], clamped(want, d.lo, d.hi), all, k))
                                return;
                        }
                    for (int64_t i = 0; !lanes && i + 1 < m; i++) /* between the maps nothing was written */
                        if (memcmp(y + i * ldy + size, "ZZZZZZZZZZZZ", 12)) {
                            failures++;
                            printf("%s direct_f32: %s writes behind a map\n", K->isa, what);
                            return;
                        }
                    release_all();
                }
}

void check_depthwise(void)
{
    static const int64_t SIZES[][2] = {{1, 1}, {3, 4}, {5, 7}, {8, 8}, {9, 17}, {4, 33}, {2, 50}};
    enum { CHANNELS = 3 };
    char what[96];
    EACH(s, SIZES)
        for (int64_t kernel = 2; kernel < 6; kernel++)
            for (int64_t sh = 1; sh < 3; sh++)
                for (int64_t sw = 1; sw < 3; sw++)
                    for (int with = 0; with < 4; with++) {
                        const int64_t h = SIZES[s_][0], w = SIZES[s_][1], pad = kernel / 2 - (with & 1 && kernel > 3);
                        ev_depthwise d = {.h = h,
                                          .w = w,
                                          .kh = kernel,
                                          .kw = kernel,
                                          .sh = sh,
                                          .sw = sw,
                                          .dh = 1,
                                          .dw = 1,
                                          .pad_h = pad,
                                          .pad_w = pad,
                                          .multiplier = 1,
                                          .plane = h * w,
                                          .lo = with & 2 ? -0.5f : -INFINITY,
                                          .hi = with & 2 ? 0.75f : INFINITY};
                        if (h + 2 * pad < kernel || w + 2 * pad < kernel) continue;
                        d.oh = (h + 2 * pad - kernel) / sh + 1, d.ow = (w + 2 * pad - kernel) / sw + 1;
                        const int64_t out = d.oh * d.ow, taps = kernel * kernel;
                        float *x = guarded((size_t)(CHANNELS * h * w) * 4), *k = guarded((size_t)(CHANNELS * taps) * 4),
                              *bias = guarded(CHANNELS * 4);
                        float *add = guarded((size_t)(CHANNELS * out) * 4), *y = guarded((size_t)(CHANNELS * out) * 4);
                        fill_floats(x, CHANNELS * h * w), fill_floats(k, CHANNELS * taps), fill_floats(bias, CHANNELS),
                            fill_floats(add, CHANNELS * out);
                        const float *residual = with == 3 ? add : NULL;
                        for (int rows = 0; rows <= ev_depthwise_rows(&d); rows++) {
                            memset(y, 0x5a, (size_t)(CHANNELS * out) * 4);
                            if (rows) K->depthwise_rows_f32(&d, 0, CHANNELS, x, k, bias, residual, y, 0, d.oh);
                            for (int64_t c = 0; !rows && c < CHANNELS; c++)
                                K->depthwise_f32(&d, x + c * h * w, k + c * taps, bias[c],
                                                 residual ? residual + c * out : NULL, y + c * out, 0, d.oh);
                            snprintf(what, sizeof what, "%d x %d, kernel %d, strides %d %d, with %d", (int)h, (int)w,
                                     (int)kernel, (int)sh, (int)sw, with);
                            for (int64_t i = 0; i < CHANNELS * out; i++) {
                                const int64_t c = i / out, row = i % out / d.ow * sh - pad,
                                              column = i % out % d.ow * sw - pad;
                                double want = bias[c], all = fabs(bias[c]);
                                if (residual) want += residual[i], all += fabs(residual[i]);
                                for (int64_t t = 0; t < taps; t++) {
                                    const int64_t at = row + t / kernel, on = column + t % kernel;
                                    if (at < 0 || at >= h || on < 0 || on >= w) continue;
                                    const double v = (double)k[c * taps + t] * x[(c * h + at) * w + on];
                                    want += v, all += fabs(v);
                                }
                                if (!near(rows ? "depthwise_rows_f32" : "depthwise_f32", what, i, y[i],
                                          clamped(want, d.lo, d.hi), all, taps))
                                    return;
                            }
                        }
                        release_all();
                    }
}
