/* Convolutions of bytes that lie channels last, beside plain loops and a plain finish. Nothing but what positions and
 * channels ask for is read or written: buffers end at a page that nobody may touch. */
#include <math.h>

#include "check.h"

/* What a sum becomes, by the definition in evort/ops/requantize.py. */
static int32_t finished(const ev_qfinish *f, int32_t sum, float scale, const int8_t *z)
{
    volatile float r = (float)sum * scale; /* rounded before it is added to */
    if (!f->folds) {
        if (z) {
            volatile float add = (float)((f->z_type == EV_UINT8 ? (uint8_t)*z : *z) - f->z_zero) * f->z_scale;
            r = r + add;
        }
        if (f->activation == EV_ACT_RELU) r = r < 0 ? 0 : r;
        else if (f->activation == EV_ACT_LEAKY_RELU) r = r < 0 ? f->a * r : r;
        r = r * (1.0f / f->unit);
    }
    const double y = rint((double)r) + f->zero;
    return (int32_t)(y < f->lo ? f->lo : y > f->hi ? f->hi : y);
}

static ev_qfinish some_finish(int kind)
{
    ev_qfinish f = {.type = kind & 1 ? EV_INT8 : EV_UINT8, .folds = !(kind & 2), .unit = 0.37f};
    f.lo = kind & 1 ? -128 : 0, f.hi = kind & 1 ? 127 : 255;
    f.zero = (int32_t)extreme(f.lo, f.hi);
    f.activation = f.folds ? EV_ACT_NONE : kind & 4 ? EV_ACT_RELU : EV_ACT_LEAKY_RELU;
    f.a = 0.125f;
    if (f.folds && kind & 4) f.lo = f.zero; /* Relu */
    f.z_type = kind & 8 ? EV_INT8 : EV_UINT8, f.z_zero = 3, f.z_scale = 0.21f;
    return f;
}

/* Sums are spread over some hundred steps, and now and then far beyond all. */
static void fill_finish(int64_t n, int64_t channels, int64_t products, int32_t *add, float *scale)
{
    for (int64_t c = 0; c < n; c++) {
        add[c] = c < channels ? (int32_t)extreme(-100000, 100000) : 0;
        scale[c] = c < channels ? (float)(0.0001 + 0.01 * fabs(uniform()) / (double)products) * (random_bits() % 64 ? 1 : 1e7f) : 0;
    }
}

void check_nhwc_conv(void)
{
    static const int64_t CHANNELS[] = {1, 15, 16, 17, 24, 32, 40, 48, 63, 64}, QUADS[] = {1, 2, 5}, ENDS[] = {1, 3, 6, 7, 8, 15};
    static const int32_t pool[] = {0};
    char what[96];
    EACH(c, CHANNELS) EACH(q, QUADS) EACH(e, ENDS) for (int kind = 0; kind < 16; kind++) {
        const int64_t channels = CHANNELS[c_], quads = QUADS[q_], end = ENDS[e_], begin = end > 8 ? 3 : 0, segments = 1 + kind % 3;
        const int64_t vectors = (channels + 15) / 16, lanes = 16 * vectors, width = 1 + end / 2, ldy = channels + kind % 2 * 5;
        const int64_t step = 4 * quads - kind % 4, row = width * step + 7, apart = 2 * row;
        const int64_t size = (end - 1) / width * row + (width - 1) * step + (segments - 1) * apart + 4 * quads;
        uint8_t *x = guarded((size_t)size), *y = guarded((size_t)((end - 1) * ldy + channels));
        int8_t *w = guarded((size_t)(segments * quads * 64 * vectors)), *z = guarded((size_t)((end - 1) * ldy + channels));
        int32_t *offset = guarded((size_t)segments * 4), *add = guarded((size_t)lanes * 4);
        float *scale = guarded((size_t)lanes * 4);
        fill_bytes(x, size, 0), fill_bytes(w, segments * quads * 64 * vectors, 1), fill_bytes(z, (end - 1) * ldy + channels, 1);
        for (int64_t i = 0; kind & 4 && i < segments * quads * 64 * vectors; i++)
            if (w[i] == -128) w[i] = -127; /* products of which go in pairs where -128 is left out */
        for (int64_t s = 0; s < segments; s++) offset[s] = (int32_t)(s * apart);
        fill_finish(lanes, channels, segments * quads, add, scale);
        const ev_qfinish f = some_finish(kind);
        const int wide = kind % 5 == 0, presum = kind % 5 < 3 ? 0 : quads % 2 ? 1 : kind % 5 - 2;
        for (int64_t i = 0; presum && i < segments * quads * 64 * vectors; i++) /* as small as has to be, or 0 */
            w[i] = (int8_t)(presum == 2 ? w[i] >> 2 : w[i] < 0 ? w[i] / 2 : w[i] / 2 + w[i] % 2);
        int16_t *x16 = guarded((size_t)size * 2);
        K->nhwc_widen(size, x, x16);
        const ev_nhwc_conv g = {wide ? (const void *)x16 : x, wide, presum, row, step, width, pool, 1, 0, offset, segments, quads, w, add, scale, channels, &f,
                                f.folds || channels % 2 ? NULL : z, ldy, ldy, y};
        memset(y, 0x5a, (size_t)((end - 1) * ldy + channels));
        K->nhwc_conv(&g, begin, end);
        snprintf(what, sizeof what, "channels=%d quads=%d positions=%d to %d kind=%d", (int)channels, (int)quads, (int)begin,
                 (int)end, kind);
        int32_t *sums = guarded((size_t)((end - 1) * ldy + channels) * 4);
        ev_nhwc_conv plain = g;
        plain.finish = NULL, plain.y = (uint8_t *)sums;
        K->nhwc_conv(&plain, begin, end);
        for (int64_t p = 0; p < end; p++)
            for (int64_t c = 0; c < ldy && p * ldy + c < (end - 1) * ldy + channels; c++) {
                const uint8_t *from = x + p / width * row + p % width * step;
                uint32_t sum = 0x5a;
                if (p >= begin && c < channels) {
                    sum = (uint32_t)add[c];
                    for (int64_t s = 0; s < segments; s++)
                        for (int64_t k = 0; k < 4 * quads; k++)
                            sum += (uint32_t)(from[offset[s] + k] *
                                              w[((s * quads + k / 4) * vectors + c / 16) * 64 +
                                                (wide ? k % 4 / 2 * 32 + c % 16 * 2 + k % 2 : c % 16 * 4 + k % 4)]);
                    if (!same_i32("nhwc_conv, sums", what, p * ldy + c, sums[p * ldy + c], (int32_t)sum)) return;
                    sum = (uint32_t)finished(&f, (int32_t)sum, scale[c], g.z ? z + p * ldy + c : NULL);
                }
                if (!same_i32("nhwc_conv", what, p * ldy + c, y[p * ldy + c], (uint8_t)sum)) return;
            }
        release_all();
    }
}

/* The largest of several positions' sums, which check_nhwc_conv looks at, as one result. */
void check_nhwc_pooled(void)
{
    static const int64_t CHANNELS[] = {1, 6, 8, 16, 17, 40, 64}, WINDOWS[][2] = {{1, 2}, {2, 2}, {3, 3}, {5, 1}, {4, 7}};
    int has = 0;
    char what[96];
    K->nhwc_has(&has);
    if (has != EV_NHWC_BYTES) return;
    EACH(c, CHANNELS) EACH(p, WINDOWS) for (int64_t width = 1; width < 12; width += 5) for (int kind = 0; kind < 16; kind++) {
        const int64_t channels = CHANNELS[c_], lanes = (channels + 15) / 16 * 16, high = WINDOWS[p_][0], wide = WINDOWS[p_][1];
        const int64_t pooled = high * wide, rows = 2, columns = width * wide, step = 1 + kind % 3, row = columns * step + 5;
        const int64_t quads = 2, n = rows * width, ldy = channels + kind % 2 * 5, size = rows * high * row + 8 * quads;
        uint8_t *x = guarded((size_t)size), *y = guarded((size_t)((n - 1) * ldy + channels));
        int8_t *w = guarded((size_t)(quads * 4 * lanes));
        int32_t *offset = guarded(4), *add = guarded((size_t)lanes * 4), *pool = guarded((size_t)pooled * 4);
        int32_t *sums = guarded((size_t)(rows * high * columns * channels) * 4);
        float *scale = guarded((size_t)lanes * 4);
        fill_bytes(x, size, 0), fill_bytes(w, quads * 4 * lanes, 1);
        fill_finish(lanes, channels, quads, add, scale);
        offset[0] = 0;
        const int halves = channels <= 8 && wide == 2; /* the next column's taps, a step further */
        int8_t *w2 = guarded((size_t)(2 * quads * 4 * lanes));
        memset(w2, 0, (size_t)(2 * quads * 4 * lanes));
        for (int64_t i = 0; halves && i < 4 * quads; i++) for (int64_t c = 0; c < 8; c++) {
            w2[i / 4 * 64 + 4 * c + i % 4] = w[i / 4 * 64 + 4 * c + i % 4];
            w2[(i + step) / 4 * 64 + 32 + 4 * c + (i + step) % 4] = w[i / 4 * 64 + 4 * c + i % 4];
            add[8 + c] = add[c];
        }
        const int64_t across = halves ? 1 : wide;
        for (int64_t i = 0; i < high * across; i++) pool[i] = (int32_t)(i / across * row + i % across * step);
        const ev_qfinish f = some_finish(kind);
        ev_nhwc_conv g = {x, 0, 0, row, step, columns, offset, 1, 0, offset, 1, quads, w, add, scale, channels, NULL,
                          NULL, channels, channels, (uint8_t *)sums};
        K->nhwc_conv(&g, 0, rows * high * columns);
        memset(y, 0x5a, (size_t)((n - 1) * ldy + channels));
        g.row_step = high * row, g.step = wide * step, g.width = width, g.pool = pool, g.pooled = high * across;
        if (halves) g.halves = 1, g.quads = 2 * quads, g.w = w2;
        g.finish = &f, g.y = y, g.ldy = ldy;
        K->nhwc_conv(&g, 0, n);
        snprintf(what, sizeof what, "channels=%d, %d x %d, kind=%d", (int)channels, (int)high, (int)wide, kind);
        for (int64_t at = 0; at < (n - 1) * ldy + channels; at++) {
            const int64_t p = at / ldy, c = at % ldy;
            int32_t most = INT32_MIN;
            for (int64_t i = 0; c < channels && i < pooled; i++) {
                const int32_t sum = sums[((p / width * high + i / wide) * columns + p % width * wide + i % wide) * channels + c];
                most = sum > most ? sum : most;
            }
            const int32_t want = c < channels ? finished(&f, most, scale[c], NULL) : 0x5a;
            if (!same_i32("nhwc_conv, pooled", what, at, y[at], (uint8_t)want)) return;
        }
        release_all();
    }
}

/* All of a band, with the products between: kernels of 112 channels, whose sums just fit, among them. */
void check_nhwc_winograd(void)
{
    static const int64_t IN[] = {2, 12, 16, 22, 112}, OUT[] = {1, 15, 16, 33}, HEIGHTS[] = {1, 4, 6}, WIDTHS[] = {2, 8, 27};
    char what[96];
    EACH(i, IN) EACH(o, OUT) EACH(h, HEIGHTS) EACH(w, WIDTHS) for (int kind = 0; kind < 12; kind += 5) {
        const int64_t c = IN[i_], channels = OUT[o_], height = HEIGHTS[h_], width = WIDTHS[w_], rows = (height + 3) / 4;
        const int64_t cols = (width + 3) / 4, pitch = (4 * cols + 2) * c + kind, tiles = rows * cols, ldv = (c + 15) / 16 * 16;
        const int64_t lanes = (channels + 15) / 16 * 16, ldy = channels + kind % 2 * 5, size = (4 * rows + 2) * pitch;
        const int64_t block = 8; /* pairs of U */
        uint8_t *x = guarded((size_t)(size + 16)), *y = guarded((size_t)((height * width - 1) * ldy + channels));
        int8_t *weights = guarded((size_t)(9 * c * lanes)), *z = guarded((size_t)((height * width - 1) * ldy + channels));
        int32_t *add = guarded((size_t)lanes * 4), *products = guarded((size_t)(36 * tiles * 16) * 4);
        int16_t *v = guarded((size_t)(36 * tiles * ldv) * 2), *u = guarded((size_t)(36 * block * 32) * 2);
        float *scale = guarded((size_t)lanes * 4);
        fill_bytes(x, size + 16, 0), fill_bytes(weights, 9 * c * lanes, 1);
        fill_bytes(z, (height * width - 1) * ldy + channels, 1);
        if (kind == 5) memset(x, 255, (size_t)size), memset(weights, 127, (size_t)(9 * c * lanes));
        fill_finish(lanes, channels, 9 * c, add, scale);
        const ev_qfinish f = some_finish(kind);
        memset(y, 0x5a, (size_t)((height * width - 1) * ldy + channels));
        ev_nhwc_winograd g = {rows, cols, height, width, x, c, pitch, v, ldv, tiles * ldv, weights, u, block * 32,
                              products, tiles * 16, add, scale, 0, &f, NULL, ldy, ldy, y};
        K->nhwc_winograd_image(&g);
        for (int64_t m = 0; m < channels; m += 16) {
            g.w = weights + 9 * c * m, g.add = add + m, g.scale = scale + m, g.y = y + m, g.channels = channels - m < 16 ? channels - m : 16;
            g.z = f.folds || channels % 2 ? NULL : z + m;
            for (int64_t p = 0; p < c / 2; p += block) {
                const int64_t pairs = c / 2 - p < block ? c / 2 - p : block;
                K->nhwc_winograd_kernels(&g, p, pairs);
                for (int64_t e = 0; e < 36; e++)
                    K->qgemm_i16(tiles, 16, pairs, v + e * g.step_v + 2 * p, ldv / 2, u + e * g.step_u, p > 0,
                                 products + e * g.step_o);
            }
            K->nhwc_winograd_results(&g);
        }
        snprintf(what, sizeof what, "%d to %d channels, %d x %d, kind=%d", (int)c, (int)channels, (int)height, (int)width, kind);
        for (int64_t at = 0; at < (height * width - 1) * ldy + channels; at++) {
            const int64_t p = at / ldy, m = at % ldy;
            uint32_t sum = 0x5a;
            if (m < channels) {
                sum = (uint32_t)add[m];
                for (int64_t t = 0; t < 9; t++)
                    for (int64_t k = 0; k < c; k++)
                        sum += (uint32_t)(x[(p / width + t / 3) * pitch + (p % width + t % 3) * c + k] *
                                          weights[m / 16 * 144 * c + (k / 2 * 9 + t) * 32 + m % 16 * 2 + k % 2]);
                sum = (uint32_t)finished(&f, (int32_t)sum, scale[m], g.z ? z + at : NULL);
            }
            if (!same_i32("nhwc_winograd", what, at, y[at], (uint8_t)sum)) return;
        }
        release_all();
    }
}

/* Depthwise sums by quads, or pairs, of rows, from where a block of rows begins before, in and behind the kernel's. */
void check_nhwc_columns(void)
{
    static const int64_t CHANNELS[] = {1, 8, 16, 17, 40, 64}, KERNELS[][2] = {{1, 3}, {3, 3}, {5, 5}, {4, 1}, {9, 2}};
    char what[96];
    EACH(c, CHANNELS) EACH(k, KERNELS) for (int64_t n = 1; n < 20; n += 5) for (int kind = 0; kind < 16; kind++) {
        const int64_t each = kind < 8 ? 4 : 2, channels = CHANNELS[c_], high = KERNELS[k_][0], width = KERNELS[k_][1], lanes = (channels + 15) / 16 * 16;
        const int64_t rows = 1 + (int64_t)(random_bits() % 8), groups = (rows + each - 1) / each, first = (int64_t)(random_bits() % 12) - 4;
        const int64_t pixel = channels + kind % 8, packed = (high + each - 1) / each * width * 4 * lanes, tap = 4 * pixel, step = tap * (1 + kind % 2), length = ((n - 1) * (1 + kind % 2) + width) * pixel;
        uint8_t *y = guarded((size_t)((n - 1) * pixel + channels)), *q = guarded((size_t)(groups * 4 * length + 64));
        int8_t *w = guarded((size_t)packed);
        int32_t *add = guarded((size_t)lanes * 4);
        float *scale = guarded((size_t)lanes * 4);
        const uint8_t *x[8] = {NULL};
        for (int64_t r = 0; r < rows; r++) {
            uint8_t *row = guarded((size_t)length);
            fill_bytes(row, length, 0);
            x[r] = row;
        }
        for (int64_t g = 0; g < groups; g++) {
            uint8_t *some = guarded((size_t)(4 * length));
            if (each == 4) K->nhwc_quads(length, x + 4 * g, some);
            else K->nhwc_pairs(length, x + 2 * g, (int16_t *)some);
            for (int64_t i = 0; i < each * length; i++) {
                const uint8_t *row = x[each * g + i % each];
                const int32_t is = each == 4 ? some[i] : ((const int16_t *)some)[i];
                if (!same_i32(each == 4 ? "nhwc_quads" : "nhwc_pairs", "", i, is, row ? row[i / each] : 0)) return;
            }
            memcpy(q + g * 4 * length, some, (size_t)(4 * length));
        }
        memset(w, 0, (size_t)packed);
        for (int64_t i = 0; i < high; i++)
            for (int64_t j = 0; j < width; j++)
                for (int64_t c = 0; c < channels; c++) {
                    const int64_t at = each * ((i / each * width + j) * lanes + c) + i % each;
                    if (each == 4) w[at] = (int8_t)extreme(-128, 127);
                    else ((int16_t *)w)[at] = (int16_t)extreme(-128, 127);
                }
        fill_finish(lanes, channels, high * width, add, scale);
        const ev_qfinish f = some_finish(kind % 8);
        const ev_nhwc_columns g = {q, groups, 4 * length, first, rows, high, width, tap, step, w, 4 * lanes, add, scale,
                                   (int32_t)extreme(0, 255), channels, &f, pixel, y};
        memset(y, 0x5a, (size_t)((n - 1) * pixel + channels));
        if (each == 4) K->nhwc_columns(&g, n);
        else K->nhwc_pair_columns(&g, n);
        snprintf(what, sizeof what, "channels=%d kernel=%dx%d rows=%d first=%d n=%d kind=%d", (int)channels, (int)high, (int)width,
                 (int)rows, (int)first, (int)n, kind);
        for (int64_t i = 0; i < (n - 1) * pixel + channels; i++) {
            const int64_t p = i / pixel, c = i % pixel;
            uint32_t sum = 0x5a;
            if (c < channels) {
                sum = (uint32_t)add[c];
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t j = 0; j < width; j++)
                        if (r + first >= 0 && r + first < high) {
                            const int64_t at = each * (((r + first) / each * width + j) * lanes + c) + (r + first) % each;
                            sum += (uint32_t)((x[r][p * step / 4 + j * pixel + c] - g.zero) *
                                              (each == 4 ? w[at] : ((const int16_t *)w)[at]));
                        }
                sum = (uint32_t)finished(&f, (int32_t)sum, scale[c], NULL);
            }
            if (!same_i32(each == 4 ? "nhwc_columns" : "nhwc_pair_columns", what, i, y[i], (uint8_t)sum)) return;
        }
        release_all();
    }
}
