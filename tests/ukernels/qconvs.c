/* What convolutions of integers do beside their products: rows of weights, staged images, panels, depthwise sums. */
#include <math.h>

#include "check.h"

static const int64_t COUNTS[] = {1, 3, 8, 9, 15, 16, 17, 24, 31, 33, 64, 100};

/* What leaves a row of weights stays in its extra ones. */
void check_qc_weights(void)
{
    static const int64_t DEPTHS[] = {16, 32, 48, 160};
    EACH(k, DEPTHS) for (int s = 2; s <= 4; s += 2) for (int kind = 0; kind < 4; kind++) {
        const int64_t k = DEPTHS[k_], step = 1 + kind % 2;
        int8_t *row = guarded((size_t)k), *given = guarded((size_t)k);
        int16_t *wide = guarded((size_t)k * 2);
        ev_qextra *extra = guarded((size_t)(k / 2) * sizeof *extra);
        int32_t count = -1, total = 7;
        const int flip = kind & 2 ? 0x80 : 0;
        uint8_t *src = guarded((size_t)((k - 1) * step + 1));
        fill_bytes(src, (k - 1) * step + 1, 0);
        K->qc_weights(k, step, flip, src, row, &total);
        for (int64_t i = 0, want = 7; i < k; i++) {
            want += (int8_t)(src[i * step] ^ flip);
            if (!same_i32("qc_weights", "", i, row[i], (int8_t)(src[i * step] ^ flip))) return;
            if (i == k - 1 && !same_i32("qc_weights", "sum", k, total, want)) return;
        }
        memcpy(given, row, (size_t)k);
        K->qc_prepare(k, s, row, NULL, &count);
        if (!same_bytes("qc_prepare", "counting", row, given, (size_t)k) ||
            !same_i32("qc_prepare", "count", k, count < 0 || count > k / 16, 0))
            return;
        K->qc_prepare(k, s, row, extra, &count);
        for (int64_t i = 0; i < k; i++) {
            int64_t all = row[i];
            for (int32_t e = 0; e < count; e++) all += extra[e].quad == i / 4 ? extra[e].w[i % 4] : 0;
            if (!same_i32("qc_prepare", "with extras", i, (int32_t)all, given[i])) return;
        }
        K->qc_widen(k, given, wide);
        for (int64_t i = 0; i < k; i++)
            if (!same_i32("qc_widen", "", i, wide[i],
                          given[i / 4 * 4 + (i % 4 == 1 ? 2 : i % 4 == 2 ? 1 : i % 4)])) return;
        release_all();
    }
}

/* Panels of 16 columns, from runs of the rows of an image. */
void check_qc_pack(void)
{
    enum { NR = EV_QC_NR };
    static const int64_t DEPTHS[] = {4, 8, 20};
    EACH(k, DEPTHS) for (int runs = 1; runs < 5; runs++) for (int careful = 0; careful < 2; careful++)
    for (int wide = 0; wide < 2; wide++) {
        const int64_t k = DEPTHS[k_], size = 1 + wide;
        const int flip = !wide && runs % 2 ? 0x80 : 0;
        ev_qrun run[4];
        int64_t far = 0;
        for (int64_t i = 0, at = 0; i < runs; at += run[i++].n) {
            run[i] = (ev_qrun){(int64_t)(random_bits() % 60), at,
                               i == runs - 1 ? NR - at - (runs == 4) : 1 + (int64_t)(random_bits() % 5)};
            const int64_t reach = run[i].from + (careful ? run[i].n : NR);
            far = reach > far ? reach : far;
        }
        uint8_t *image = guarded((size_t)((far + 30) * size)), *rows = guarded((size_t)(NR * (k + 1) * size)),
            *y = guarded((size_t)(NR * k * size));
        int32_t *offset = guarded((size_t)k * 4);
        fill_bytes(image, (far + 30) * size, 0);
        for (int64_t p = 0; p < k; p++) offset[p] = p ? (int32_t)(random_bits() % 31) : 30;
        if (wide) K->qc_pack_i16(k, (int16_t *)image, offset, run, runs, careful, (int16_t *)rows, (int16_t *)y);
        else K->qc_pack(k, image, offset, run, runs, careful, flip, rows, y);
        const int64_t group = wide ? 2 : 4; /* pairs of int16, or quads of bytes */
        for (int64_t p = 0; p < k; p++) for (int i = 0; i < runs; i++) for (int64_t j = 0; j < run[i].n; j++) {
            const int64_t at = (p / group * NR + run[i].at + j) * group + p % group, from = run[i].from + offset[p] + j;
            const int type = wide ? EV_INT16 : EV_UINT8;
            if (!same_i32(wide ? "qc_pack_i16" : "qc_pack", careful ? "careful" : "", at, item(type, y, at),
                          item(type, image, from) ^ flip))
                return;
        }
        release_all();
    }
    EACH(n, COUNTS) {
        const int64_t n = (COUNTS[n_] + NR - 1) / NR * NR, step = n + 5;
        uint8_t *x = guarded((size_t)(3 * step + n)), *y = guarded((size_t)(4 * n));
        fill_bytes(x, 3 * step + n, 0);
        K->qc_interleave(COUNTS[n_], x, step, y);
        for (int64_t i = 0; i < 4 * n; i++)
            if (!same_i32("qc_interleave", "", i, y[i], x[i % 4 * step + i / 4])) return;
        release_all();
    }
}

/* Elements of an image's rows, every so many of them, as they are staged; floats quantized to bytes or int16, or as they are. */
void check_qc_stage(void)
{
    static const int TYPES[] = {EV_UINT8, EV_INT8, EV_INT16, EV_FLOAT, EV_FLOAT, EV_FLOAT};
    static const float PARAMS[][5] = {
        {0}, {0}, {0}, {0.1f, 128, 3, 250, 1}, {0.1f, -300, -32768, 32767, 2}, {0, 0, 0, 0, 4}};
    enum { ROWS = 3 };
    EACH(t, TYPES) EACH(n, COUNTS) for (int64_t step = 1; step < 5; step++) {
        const int type = TYPES[t_],
            to = type != EV_FLOAT ? (type == EV_INT16 ? EV_INT16 : EV_UINT8) : PARAMS[t_][4] == 1 ? EV_UINT8 : EV_INT16;
        const int64_t n = COUNTS[n_], row = (n - 1) * step + 3, ld = n + 2, from = ev_item_size(type);
        const int64_t size = t_ == 5 ? 4 : ev_item_size(to), all = (ROWS - 1) * row + (n - 1) * step + 1;
        uint8_t *x = guarded((size_t)(all * from)), *y = guarded((size_t)(((ROWS - 1) * ld + n) * size)),
            *line = guarded((size_t)(n * size));
        fill_bytes(x, all * from, 0);
        for (int64_t i = 0; type == EV_FLOAT && i < all; i++) ((float *)x)[i] = provoking();
        K->qc_stage(type, n, step, x, PARAMS[t_], line);
        K->qc_stage_rows(type, ROWS, n, step, x, row, PARAMS[t_], y, ld);
        for (int64_t i = 0; i < ROWS * n; i++) {
            const int64_t at = i / n * row + i % n * step, out = i / n * ld + i % n;
            if (t_ == 5) {
                if (!close_to("qc_stage_rows", "floats", i, ((float *)y)[out], ((float *)x)[at], 0) ||
                    (i < n && !close_to("qc_stage", "floats", i, ((float *)line)[i], ((float *)x)[at], 0)))
                    return;
                continue;
            }
            const float *p = PARAMS[t_];
            const int32_t want = type == EV_FLOAT  ? whole(((float *)x)[at] / p[0], (int32_t)p[1], (int32_t)p[2],
                                                           (int32_t)p[3])
                                 : type == EV_INT8 ? x[at] ^ 0x80
                                                   : item(type, x, at);
            if (!same_i32("qc_stage_rows", "", i, item(to, y, out), want)) return;
            if (i < n && !same_i32("qc_stage", "", i, item(to, line, i), want)) return;
        }
        release_all();
    }
}

/* Taps of a depthwise channel in pairs, whose weights up to one with `last` add up to at most 128; and of int16. */
void check_qd_taps(void)
{
    enum { REACH = 40 };
    for (int64_t n = EV_QD_LANES; n <= 3 * EV_QD_LANES; n += EV_QD_LANES)
    for (int64_t pairs = 1; pairs < 14; pairs += 4) for (int together = 1; together < 4; together++) {
        uint8_t *x = guarded((size_t)(n + REACH));
        int16_t *wide = guarded((size_t)(n + REACH) * 2), *w = guarded((size_t)(2 * pairs) * 2);
        int32_t *offset = guarded((size_t)(2 * pairs) * 4), *sum = guarded((size_t)n * 4);
        ev_qtaps *taps = guarded((size_t)pairs * sizeof *taps);
        fill_bytes(x, n + REACH, 0), fill_i16(wide, n + REACH, 32767), fill_i16(w, 2 * pairs, 255);
        const int64_t most = 64 / together;
        for (int i = 0; i < 2 * pairs; i++) offset[i] = i ? (int32_t)(random_bits() % (REACH + 1)) : REACH;
        for (int i = 0; i < pairs; i++)
            taps[i] = (ev_qtaps){(int16_t)(2 * i), (int16_t)(2 * i + 1), (int8_t)extreme(-most, most),
                                 (int8_t)extreme(-most, most),
                                 (i + 1) % together == 0 || i == pairs - 1};
        K->qd_taps(n, x, offset, taps, pairs, sum);
        for (int64_t j = 0; j < n; j++) {
            int64_t want = 0;
            for (int i = 0; i < pairs; i++) want += taps[i].wa * x[offset[2 * i] + j] + taps[i].wb * x[offset[2 * i + 1] + j];
            if (!same_i32("qd_taps", "", j, sum[j], want)) return;
        }
        K->qd_taps_i16(n, wide, offset, w, 2 * pairs - together % 2, sum);
        for (int64_t j = 0; j < n; j++) {
            int64_t want = 0;
            for (int i = 0; i < 2 * pairs - together % 2; i++) want += (int64_t)w[i] * wide[offset[i] + j];
            if (!same_i32("qd_taps_i16", "", j, sum[j], want)) return;
        }
        release_all();
    }
    EACH(n, COUNTS) {
        int32_t *column = guarded((size_t)COUNTS[n_] * 4), *sum = guarded((size_t)COUNTS[n_] * 4);
        for (int64_t j = 0; j < COUNTS[n_]; j++) column[j] = (int32_t)random_bits(), sum[j] = (int32_t)j;
        K->qc_shift(COUNTS[n_], -129, column, sum);
        for (int64_t j = 0; j < COUNTS[n_]; j++)
            if (!same_i32("qc_shift", "", j, sum[j], j + 129 * (int64_t)column[j])) return;
        float *scales = floats(COUNTS[n_]), *to = guarded((size_t)COUNTS[n_] * 4);
        K->qc_scales(COUNTS[n_], 0.37f, scales, 0.011f, to);
        for (int64_t j = 0; j < COUNTS[n_]; j++) {
            volatile float scaled = 0.37f * scales[j];
            if (!close_to("qc_scales", "", j, to[j], scaled / 0.011f, 0)) return;
        }
        release_all();
    }
}

/* A map where it lies, by those tables that have such a kernel for its window. */
void check_qd_map(void)
{
    static const ev_qdmap MAPS[] = {{5, 9, 9, 3, 3, 1, 1, 1, 1, 0, 0},  {8, 40, 20, 3, 3, 2, 2, 1, 1, 130, 0x80}, {6,
            17, 17, 5, 5, 1, 1, 2, 2, 7, 0},
                                    {9, 20, 5, 2, 7, 3, 4, 0, 3, 255, 0x80}, {4, 33, 17, 1, 1, 1, 2, 0, 0, 0, 0}, {12,
                                            12, 3, 20, 20, 2, 5, 8, 8, 9, 0}};
    EACH(m, MAPS) for (int64_t first = 0; first < 2; first++) {
        const ev_qdmap *g = &MAPS[m_];
        const int64_t out_h = (g->h + 2 * g->pad_h - g->kernel_h) / g->stride_h + 1, rows = out_h - first;
        uint8_t *x = guarded((size_t)(g->h * g->w));
        int8_t *w = guarded((size_t)(g->kernel_h * g->kernel_w));
        int32_t *sum = guarded((size_t)(rows > 0 ? rows * g->out_w : 1) * 4);
        int done = -1;
        fill_bytes(x, g->h * g->w, 0), fill_bytes(w, g->kernel_h * g->kernel_w, 1);
        K->qd_map(g, x, w, first, rows > 0 ? rows : 0, sum, &done);
        if (!same_i32("qd_map", "done", (int64_t)m_, done != 0 && done != 1, 0)) return;
        for (int64_t i = 0; done && i < rows * g->out_w; i++) {
            int64_t want = 0;
            for (int64_t t = 0; t < g->kernel_h * g->kernel_w; t++) {
                const int64_t h = (first + i / g->out_w) * g->stride_h - g->pad_h + t / g->kernel_w,
                    v = i % g->out_w * g->stride_w - g->pad_w + t % g->kernel_w;
                want += w[t] * (h < 0 || h >= g->h || v < 0 || v >= g->w ? g->zero : x[h * g->w + v] ^ g->flip);
            }
            if (!same_i32("qd_map", "", i, sum[i], want)) return;
        }
        release_all();
    }
}
