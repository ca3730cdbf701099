/* Pools, and what convolutions of floats do beside their products: im2col, depthwise and transposed ones, copies of bands,
 * and Winograd's transforms. */
#include <float.h>
#include <math.h>

#include "check.h"

static const double u = FLT_EPSILON / 2;

/* Windows of one row, with what lies wholly in it. */
static ev_window window(int64_t width, int64_t kernel, int64_t stride, int64_t dilation, int64_t pad, int counts_pads)
{
    const int64_t reach = (kernel - 1) * dilation;
    ev_window w = {.width = width, .kernel = kernel, .stride = stride, .dilation = dilation, .pad = pad};
    w.out = (width + 2 * pad - reach - 1) / stride + 1;
    while (w.from < w.out && w.from * stride < pad) w.from++;
    w.to = w.from;
    while (w.to < w.out && w.to * stride - pad + reach < width) w.to++;
    w.count_from = counts_pads ? -pad : 0, w.count_to = counts_pads ? width + pad : width;
    return w;
}

static const struct {
    int64_t kernel, stride, dilation, pad;
} WINDOWS[] = {{1, 1, 1, 0}, {2, 2, 1, 0}, {3, 2, 1, 1}, {3, 3, 1, 0},
               {3, 1, 1, 1}, {2, 1, 3, 1}, {5, 4, 2, 3}, {7, 1, 1, 3}};
static const int64_t WIDTHS[] = {11, 15, 16, 17, 40};

/* What of window o is in [from, to). */
#define EACH_TAP(w, o, from, to, j)                                     \
    for (int64_t t_ = 0, j; t_ < (w).kernel; t_++)                       \
        if ((j = (o) * (w).stride - (w).pad + t_ * (w).dilation) >= (from) && j < (to))

void check_pools(void)
{
    EACH(k, WINDOWS) EACH(n, WIDTHS) for (int64_t rows = 1; rows < 6; rows++)
    for (int op = EV_POOL_MAX; op <= EV_POOL_ABS; op++) {
        const int64_t n = WIDTHS[n_];
        ev_window w = window(n, WINDOWS[k_].kernel, WINDOWS[k_].stride, WINDOWS[k_].dilation, WINDOWS[k_].pad,
                             (int)(rows & 1));
        w.weight = (double)rows;
        const float *row[5];
        float *buf = guarded((size_t)n * 4), *y = guarded((size_t)w.out * 4);
        for (int64_t r = 0; r < rows; r++) {
            float *x = floats(n);
            if (n_ == 3 && op == EV_POOL_MAX) x[r + 2] = NAN;
            row[r] = x;
        }
        K->pool_row_f32(op, rows, row, &w, buf, y);
        for (int64_t o = 0; o < w.out; o++) {
            double most = -INFINITY, sum = 0, size = 0;
            int64_t count = 0;
            EACH_TAP(w, o, w.count_from, w.count_to, j) count++;
            EACH_TAP(w, o, 0, n, j) for (int64_t r = 0; r < rows; r++) {
                const double v = row[r][j];
                most = isnan(v) || isnan(most) ? NAN : fmax(most, v);
                sum += op == EV_POOL_SQUARE ? v * v : op == EV_POOL_ABS ? fabs(v) : v;
                size += op == EV_POOL_SQUARE ? v * v : fabs(v);
            }
            const double all = (double)(count * rows), more = (double)(rows * w.kernel + 4) * u;
            const double want = op == EV_POOL_MAX      ? most
                                : op == EV_POOL_SUM    ? sum / all
                                : op == EV_POOL_SQUARE ? sqrt(sum)
                                                       : sum;
            const double off = op == EV_POOL_MAX ? 0 : op == EV_POOL_SUM ? size / all : op == EV_POOL_SQUARE ? sqrt(size) : size;
            if (!close_to("pool_row_f32", op == EV_POOL_MAX ? "largest" : "", o, y[o], want, more * off)) return;
        }
        release_all();
    }
}

#define CHECK_POOL_MAX(s, T)                                                                                          \
    void check_pool_max_##s(void)                                                                                      \
    {                                                                                                                  \
        EACH(k, WINDOWS) EACH(n, WIDTHS) for (int64_t rows = 1; rows < 6; rows++) {                                    \
            const int64_t n = WIDTHS[n_];                                                                              \
            const ev_window w = window(n, WINDOWS[k_].kernel, WINDOWS[k_].stride, WINDOWS[k_].dilation, WINDOWS[k_].pad, 0); \
            const T *row[5];                                                                                           \
            T *buf = guarded((size_t)n * sizeof(T)), *y = guarded((size_t)w.out * sizeof(T));                          \
            for (int64_t r = 0; r < rows; r++) {                                                                       \
                T *x = guarded((size_t)n * sizeof(T));                                                                 \
                for (int64_t j = 0; j < n; j++) x[j] = (T)random_bits();                                               \
                row[r] = x;                                                                                            \
            }                                                                                                          \
            K->pool_max_row_##s(rows, row, &w, buf, y);                                                                \
            for (int64_t o = 0; o < w.out; o++) {                                                                      \
                T most = (T)-1 < 0 ? (T)((T)1 << (8 * sizeof(T) - 1)) : 0;                                             \
                EACH_TAP(w, o, 0, n, j) for (int64_t r = 0; r < rows; r++) most = row[r][j] > most ? row[r][j] : most; \
                if (!same_i32("pool_max_row_" #s, "", o, y[o], most)) return;                                          \
            }                                                                                                          \
            release_all();                                                                                             \
        }                                                                                                              \
    }
CHECK_POOL_MAX(i8, int8_t)
CHECK_POOL_MAX(i16, int16_t)
CHECK_POOL_MAX(u8, uint8_t)

/* Sums are exact; the products with a factor are rounded once. */
void check_q_pool(void)
{
    static const int64_t ROWS[] = {0, 1, 2, 3, 5, 29}; /* the sums of 29 take more than 16 bits */
    EACH(k, WINDOWS) EACH(n, WIDTHS) EACH(r, ROWS) for (int kind = 0; kind < 4; kind++) {
        const int64_t n = WIDTHS[n_], rows = ROWS[r_], lines = rows + 1;
        const int is_signed = kind & 1, zero = is_signed ? -128 : 255;
        ev_window w = window(n, WINDOWS[k_].kernel, WINDOWS[k_].stride, WINDOWS[k_].dilation, WINDOWS[k_].pad,
                             kind >> 1);
        w.weight = (double)lines;
        const void *row[29];
        uint8_t *x = guarded((size_t)(rows * n));
        float *y = guarded((size_t)w.out * 4);
        int32_t *buf = guarded((size_t)(n + w.out) * 4);
        fill_bytes(x, rows * n, is_signed);
        for (int64_t r = 0; r < rows; r++) row[r] = x + r * n;
        K->q_pool_row(is_signed ? EV_INT8 : EV_UINT8, rows, row, &w, zero, 0.3f, buf, y);
        for (int64_t o = 0; o < w.out; o++) {
            int32_t sum = 0, count = 0;
            EACH_TAP(w, o, w.count_from, w.count_to, j) count += (int32_t)lines;
            EACH_TAP(w, o, 0, n, j) for (int64_t r = 0; r < rows; r++)
                sum += (is_signed ? (int8_t)x[r * n + j] : x[r * n + j]) - zero;
            volatile float each = 0.3f / (float)(count > 1 ? count : 1);
            if (!close_to("q_pool_row", "", o, y[o], (float)sum * each, 0)) return;
        }
        release_all();
    }
}

void check_pool_2x2(void)
{
    static const int64_t OUT[] = {4, 5, 7, 8, 9, 17};
    EACH(out, OUT) for (int64_t lines = 1; lines < 4; lines++) for (int odd = 0; odd < 2; odd++)
    for (int nan = 0; nan < 2; nan++) {
        const int64_t out = OUT[out_], width = 2 * out + odd;
        float *x = floats(2 * lines * width), *y = guarded((size_t)(lines * out) * 4);
        int done = -1;
        if (nan) x[(2 * lines - 1) * width + 2 * out - 1] = NAN;
        K->pool_2x2_f32(lines, out, width, x, y, &done);
        if (!same_i32("pool_2x2_f32", "done", out, done, !nan)) return;
        for (int64_t i = 0; i < lines * out && !nan; i++) {
            const float *a = x + i / out * 2 * width + i % out * 2;
            if (!close_to("pool_2x2_f32", "", i, y[i], fmax(fmax(a[0], a[1]), fmax(a[width], a[width + 1])), 0)) return;
        }
        release_all();
    }
}

/* Windows of convolutions over three axes: the image of each tap of each output, or 0 outside. */
static const ev_conv_window CONVS[] = {
    {{1, 6, 9}, {0}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}},
    {{1, 9, 11}, {0}, {1, 3, 3}, {1, 2, 2}, {1, 1, 1}, {0, 1, 1}},
    {{1, 1, 40}, {0}, {1, 1, 5}, {1, 1, 1}, {1, 1, 2}, {0, 0, 4}},
    {{3, 4, 7}, {0}, {2, 3, 2}, {1, 1, 1}, {2, 1, 1}, {1, 2, 0}},
    {{1, 8, 23}, {0}, {1, 2, 3}, {1, 1, 3}, {1, 2, 2}, {0, 0, 2}},
    {{2, 5, 5}, {0}, {1, 5, 5}, {2, 2, 1}, {1, 1, 1}, {0, 2, 2}},
    {{1, 5, 40}, {0}, {1, 3, 9}, {1, 2, 2}, {1, 1, 1}, {0, 1, 4}},
};

static void set_out(ev_conv_window *g)
{
    for (int a = 0; a < 3; a++)
        g->out[a] = (g->image[a] + 2 * g->pad[a] - g->dilation[a] * (g->kernel[a] - 1) - 1) / g->stride[a] + 1;
}

static float tap(const ev_conv_window *g, const float *x, int64_t channel, const int64_t *out, const int64_t *k)
{
    int64_t at = channel;
    for (int a = 0; a < 3; a++) {
        const int64_t i = out[a] * g->stride[a] - g->pad[a] + k[a] * g->dilation[a];
        if (i < 0 || i >= g->image[a]) return 0;
        at = at * g->image[a] + i;
    }
    return x[at];
}

void check_im2col(void)
{
    enum { CHANNELS = 3, NR = EV_NR_F32 };
    char what[64];
    EACH(c, CONVS) for (int part = 0; part < 4; part++) {
        ev_conv_window g = CONVS[c_];
        set_out(&g);
        const int64_t taps = g.kernel[0] * g.kernel[1] * g.kernel[2], positions = g.out[0] * g.out[1] * g.out[2];
        const int64_t p0 = part & 1 ? 2 : 0, kc = taps * CHANNELS - 2 * p0, j0 = part & 2 ? NR : 0, nc = positions - j0;
        if (nc < 1) continue;
        float *x = floats(CHANNELS * g.image[0] * g.image[1] * g.image[2]);
        float *y = guarded((size_t)((nc + NR - 1) / NR * NR * kc) * 4);
        K->im2col_f32(&g, x, p0, kc, j0, nc, y);
        snprintf(what, sizeof what, "window %d, part %d", (int)c_, part);
        for (int64_t i = 0; i < (nc + NR - 1) / NR * NR * kc; i++) {
            const int64_t j = i / (NR * kc) * NR + i % NR, p = p0 + i / NR % kc, t = p % taps, o = j0 + j;
            const int64_t out[] = {o / g.out[2] / g.out[1], o / g.out[2] % g.out[1], o % g.out[2]};
            const int64_t k[] = {t / g.kernel[2] / g.kernel[1], t / g.kernel[2] % g.kernel[1], t % g.kernel[2]};
            if (!close_to("im2col_f32", what, i, y[i], j < nc ? tap(&g, x, p / taps, out, k) : 0, 0)) return;
        }
        release_all();
    }
}

/* The band of an image, split by phase, as conv.h has it. */
void check_direct_copy(void)
{
    enum { CHANNELS = 2, BEHIND = 8 };
    char what[64];
    EACH(c, CONVS) for (int own = 0; own < 2; own++) {
        ev_direct_image g = {.window = CONVS[c_], .channels = CHANNELS};
        ev_conv_window *w = &g.window;
        set_out(w);
        for (int a = 0; a < 3; a++) {
            for (int64_t k = g.period[a] = 1; k < w->kernel[a]; k++) /* phases repeat with k, from some of them on */
                if (k * w->dilation[a] % w->stride[a]) g.period[a] = k + 1 > w->stride[a] ? w->stride[a] : k + 1;
            g.shift[a] = (w->kernel[a] - 1) * w->dilation[a] / w->stride[a];
        }
        g.wrap = own ? w->stride[2] * w->image[2] : w->stride[2]; /* own: a phase for each tap along the width */
        if (own) g.period[2] = w->kernel[2], g.shift[2] = 0;
        g.depth = w->out[0], g.height = w->out[1] > 1 ? w->out[1] - 1 : 1;
        g.planes = g.depth + g.shift[0], g.rows = g.height + g.shift[1], g.pitch = w->out[2] + g.shift[2];
        const int64_t oh = w->out[1] - g.height,
            size = CHANNELS * g.period[0] * g.period[1] * g.period[2] * g.planes * g.rows * g.pitch;
        float *x = floats(CHANNELS * w->image[0] * w->image[1] * w->image[2]);
        float *y = guarded((size_t)(size + g.pitch + 2 * BEHIND) * 4);
        K->direct_copy_f32(&g, x, 0, oh, y);
        snprintf(what, sizeof what, "window %d, own phases %d", (int)c_, own);
        for (int64_t i = 0; i < size + g.pitch; i++) {
            const int64_t row = i / g.pitch, plane = row / g.rows, e = plane / g.planes, b = e / g.period[2],
                a = b / g.period[1];
            const int64_t column = i % g.pitch * w->stride[2] + e % g.period[2] * w->dilation[2] % g.wrap - w->pad[2];
            const int64_t line = (oh + row % g.rows) * w->stride[1] + b % g.period[1] * w->dilation[1] % w->stride[1] - w->pad[1];
            const int64_t z = plane % g.planes * w->stride[0] + a % g.period[0] * w->dilation[0] % w->stride[0] - w->pad[0];
            const int inside = column >= 0 && column < w->image[2] && line >= 0 && line < w->image[1] && z >= 0 &&
                z < w->image[0];
            const int64_t channel = a / g.period[0];
            if (!close_to("direct_copy_f32", what, i, y[i], inside && i < size ?
                          x[((channel * w->image[0] + z) * w->image[1] + line) * w->image[2] + column] : 0, 0))
                return;
        }
        release_all();
    }
}

/* Channels in the lanes, in bands as high as the scratch allows. */
void check_depthwise_block(void)
{
    static const ev_depthwise SHAPES[] = {{.h = 7, .w = 9, .kh = 3, .kw = 3, .sh = 1, .sw = 1, .dh = 1, .dw = 1,
                                           .pad_h = 1, .pad_w = 1},
                                          {.h = 9, .w = 6, .kh = 3, .kw = 3, .sh = 2, .sw = 2, .dh = 1, .dw = 1,
                                           .pad_h = 1, .pad_w = 1},
                                          {.h = 8, .w = 13, .kh = 5, .kw = 5, .sh = 2, .sw = 1, .dh = 1, .dw = 1,
                                           .pad_h = 2, .pad_w = 2},
                                          {.h = 10, .w = 5, .kh = 2, .kw = 4, .sh = 1, .sw = 3, .dh = 3, .dw = 2,
                                           .pad_h = 0, .pad_w = 3}};
    EACH(s, SHAPES) for (int64_t channels = 1; channels < 20; channels += 6) for (int kind = 0; kind < 8; kind++) {
        ev_depthwise d = SHAPES[s_];
        d.oh = (d.h + 2 * d.pad_h - d.dh * (d.kh - 1) - 1) / d.sh + 1,
            d.ow = (d.w + 2 * d.pad_w - d.dw * (d.kw - 1) - 1) / d.sw + 1;
        d.multiplier = kind & 1 ? 2 : 1, d.plane = d.h * d.w, d.lo = -0.5f, d.hi = kind & 2 ? 0.75f : INFINITY;
        const int64_t c = channels * d.multiplier, planes = d.oh * d.ow;
        const int64_t spare = ev_depthwise_floats(&d, kind & 4 ? 1 : d.oh);
        float *x = floats(channels * d.plane), *k = floats(c * d.kh * d.kw), *bias = floats(c),
            *residual = floats(c * planes);
        float *y = guarded((size_t)(c * planes) * 4), *scratch = guarded((size_t)spare * 4);
        K->depthwise_block_f32(&d, 0, c, x, k, kind & 2 ? bias : NULL, kind & 4 ? residual : NULL, y, 0, d.oh,
                               scratch, spare);
        for (int64_t i = 0; i < c * planes; i++) {
            const int64_t m = i / planes, oh = i % planes / d.ow, ow = i % d.ow;
            double want = (kind & 2 ? bias[m] : 0) + (kind & 4 ? residual[i] : 0), size = 2;
            for (int64_t t = 0; t < d.kh * d.kw; t++) {
                const int64_t h = oh * d.sh - d.pad_h + t / d.kw * d.dh, w = ow * d.sw - d.pad_w + t % d.kw * d.dw;
                if (h < 0 || h >= d.h || w < 0 || w >= d.w) continue;
                const double p = (double)x[m / d.multiplier * d.plane + h * d.w + w] * k[m * d.kh * d.kw + t];
                want += p, size += fabs(p);
            }
            if (!near("depthwise_block_f32", "", i, y[i], fmin(fmax(want, d.lo), d.hi), size, d.kh * d.kw)) return;
        }
        release_all();
    }
}

/* A row of a transposed convolution: here the window's image is the output. */
void check_transposed(void)
{
    char what[64];
    EACH(c, CONVS) for (int with = 0; with < 2; with++) {
        ev_conv_window g = CONVS[c_];
        set_out(&g);
        const int64_t taps = g.kernel[0] * g.kernel[1] * g.kernel[2], positions = g.out[0] * g.out[1] * g.out[2];
        float *col = floats(taps * positions), *residual = floats(g.image[2]), *y = guarded((size_t)g.image[2] * 4);
        float *tmp = guarded((size_t)(g.image[2] + g.stride[2]) * 4);
        snprintf(what, sizeof what, "window %d", (int)c_);
        for (int64_t row = 0; row < g.image[0] * g.image[1]; row++) {
            const int64_t od = row / g.image[1], oh = row % g.image[1];
            K->transposed_row_f32(&g, col, positions, 0, od, oh, 0.25f, with ? residual : NULL, -1,
                                  with ? 1 : INFINITY, tmp, y);
            for (int64_t ow = 0; ow < g.image[2]; ow++) {
                double want = 0.25 + (with ? residual[ow] : 0), size = 2;
                for (int64_t i = 0; i < taps * positions; i++) {
                    const int64_t t = i / positions, o = i % positions;
                    const int64_t k[] = {t / g.kernel[2] / g.kernel[1], t / g.kernel[2] % g.kernel[1], t % g.kernel[2]};
                    const int64_t out[] = {o / g.out[2] / g.out[1], o / g.out[2] % g.out[1], o % g.out[2]},
                        at[] = {od, oh, ow};
                    int meets = 1;
                    for (int a = 0; a < 3; a++) meets &= out[a] * g.stride[a] - g.pad[a] + k[a] * g.dilation[a] == at[a];
                    if (meets) want += col[i], size += fabs(col[i]);
                }
                if (!near("transposed_row_f32", what, ow, y[ow], fmin(fmax(want, -1), with ? 1 : INFINITY), size,
                          taps)) return;
            }
        }
        release_all();
    }
}

/* Winograd's matrices for the points 0, +-sqrt(1/2), +-sqrt(2) and infinity. */
#define S M_SQRT1_2
#define Q M_SQRT2
static const double G[6][3] = {{1, 0, 0},
                               {-2.0 / 3, -2.0 / 3 * S, -1.0 / 3},
                               {-2.0 / 3, 2.0 / 3 * S, -1.0 / 3},
                               {1.0 / 6, Q / 6, 1.0 / 3},
                               {1.0 / 6, -Q / 6, 1.0 / 3},
                               {0, 0, 1}};
static const double BT[6][6] = {{1, 0, -2.5, 0, 1, 0},    {0, -2 * S, -2, S, 1, 0},   {0, 2 * S, -2, -S, 1, 0},
                                {0, -Q / 2, -0.5, Q, 1, 0}, {0, Q / 2, -0.5, -Q, 1, 0}, {0, 1, 0, -2.5, 0, 1}};
static const double AT[4][6] = {{1, 1, 1, 1, 1, 0},
                                {0, S, -S, Q, -Q, 0},
                                {0, 0.5, 0.5, 2, 2, 0},
                                {0, S / 2, -S / 2, 2 * Q, -2 * Q, 1}};

/* Element (i, j) of M x M^T, and the sum of its terms' sizes. */
static double transformed(const double *m, int n, int i, int j, const double *x, double *size)
{
    double sum = *size = 0;
    for (int a = 0; a < n; a++) for (int b = 0; b < n; b++) {
        const double term = m[i * n + a] * m[j * n + b] * x[a * n + b];
        sum += term, *size += fabs(term);
    }
    return sum;
}

/* Each axis of a transform takes six roundings, matrices' numbers included. */
void check_winograd_weights(void)
{
    for (int64_t m = 1; m < 20; m += 3) for (int64_t c = 1; c < 10; c += 2) for (int apart = 0; apart < 2; apart++) {
        const int64_t stride_c = 9 + apart, stride_m = c * stride_c + apart, ldu = (m + 7) / 8 * 8, step = c * ldu + 8;
        float *w = floats((m - 1) * stride_m + (c - 1) * stride_c + 9), *v = guarded((size_t)(36 * step) * 4);
        K->winograd_weights_f32(m, c, w, stride_m, stride_c, v, ldu, step);
        for (int64_t e = 0; e < 36; e++) for (int64_t p = 0; p < c; p++) for (int64_t i = 0; i < m; i++) {
            double x[9], size;
            for (int t = 0; t < 9; t++) x[t] = w[i * stride_m + p * stride_c + t];
            const double want = transformed(G[0], 3, (int)(e / 6), (int)(e % 6), x, &size);
            if (!close_to("winograd_weights_f32", "", e, v[e * step + p * ldu + i], want, 12 * u * size)) return;
        }
        release_all();
    }
}

void check_winograd_input(void)
{
    for (int64_t rows = 1; rows < 4; rows++) for (int64_t cols = 1; cols < 8; cols += 2)
    for (int64_t panel = 8; panel <= 16; panel += 8) {
        const int64_t pitch = 4 * cols + 4, tiles = rows * cols, panels = (tiles + panel - 1) / panel;
        const int64_t step_j = panel + 8, step_i = 6 * step_j, ld = 6 * step_i + 8;
        float *x = floats((4 * rows + 2) * pitch), *v = guarded((size_t)(panels * ld) * 4);
        K->winograd_input_f32(rows, cols, x, pitch, v, panel, ld, step_i, step_j);
        for (int64_t t = 0; t < tiles; t++) for (int i = 0; i < 6; i++) for (int j = 0; j < 6; j++) {
            double d[36], size;
            for (int e = 0; e < 36; e++) d[e] = x[(t / cols * 4 + e / 6) * pitch + t % cols * 4 + e % 6];
            const double want = transformed(BT[0], 6, i, j, d, &size);
            if (!close_to("winograd_input_f32", "", t * 36 + i * 6 + j,
                          v[t / panel * ld + i * step_i + j * step_j + t % panel],
                          want, 12 * u * size))
                return;
        }
        release_all();
    }
}

/* Outputs of one channel, and of several in the lanes; some tiles reach beyond them. */
void check_winograd_output(void)
{
    for (int64_t rows = 1; rows < 4; rows++) for (int64_t cols = 1; cols < 8; cols += 3)
    for (int64_t n = 1; n < 12; n += 5)
        for (int kind = 0; kind < 8; kind++) {
            const int maps = kind & 1, beside = kind & 2;
            const int64_t tiles = rows * cols, height = 4 * rows - (kind & 4 ? 3 : 0),
                width = 4 * cols - (kind & 4 ? 2 : 0);
            const int64_t ldy = width + 1, plane = height * ldy, channels = maps ? n : 1, ldo = (n + 7) / 8 * 8;
            const int64_t step = maps ? tiles * ldo : (tiles + 7) / 8 * 8;
            const ev_winograd_output g = {rows, cols, height, width, step, ldy, -0.5f, kind & 4 ? 1 : INFINITY};
            float *o = floats(36 * step), *bias = floats(channels), *y = floats(channels * plane - 1);
            float *residual = guarded((size_t)(channels * plane - 1) * 4);
            memcpy(residual, y, (size_t)(channels * plane - 1) * 4);
            if (maps) K->winograd_output_maps_f32(&g, n, o, ldo, beside ? NULL : bias, beside ? y : NULL, y, plane);
            else K->winograd_output_f32(&g, o, bias[0], beside ? residual : NULL, y);
            for (int64_t i = 0; i < channels * plane - 1; i++) {
                const int64_t c = i / plane, h = i % plane / ldy, w = i % ldy, t = h / 4 * cols + w / 4;
                double x[36], size, want = residual[i];
                if (w < width) {
                    for (int e = 0; e < 36; e++) x[e] = o[e * step + (maps ? t * ldo + c : t)];
                    want = 0, size = 2;
                    for (int a = 0; a < 6; a++) for (int b = 0; b < 6; b++) {
                        const double term = AT[h % 4][a] * AT[w % 4][b] * x[a * 6 + b];
                        want += term, size += fabs(term);
                    }
                    want += (maps && beside ? 0 : bias[c]) + (beside ? residual[i] : 0);
                    want = fmin(fmax(want, g.lo), g.hi);
                }
                if (!close_to(maps ? "winograd_output_maps_f32" : "winograd_output_f32",
                              w < width ? "" : "between rows", i, y[i],
                              want, w < width ? 14 * u * size : 0))
                    return;
            }
            release_all();
        }
}

/* Element i of M x, and the sum of its terms' sizes. */
static double along(const double *m, int n, int i, const double *x, double *size)
{
    double sum = *size = 0;
    for (int a = 0; a < n; a++) sum += m[i * n + a] * x[a], *size += fabs(m[i * n + a] * x[a]);
    return sum;
}

/* The transforms along one axis, F(2, 5): six roundings, matrices' numbers included. */
void check_winograd_line(void)
{
    enum { L = EV_DIRECT_LANES };
    static const double G5[6][5] = {{1, 0, 0, 0, 0},
                                    {-2.0 / 3, -2.0 / 3 * S, -1.0 / 3, -1.0 / 3 * S, -1.0 / 6},
                                    {-2.0 / 3, 2.0 / 3 * S, -1.0 / 3, 1.0 / 3 * S, -1.0 / 6},
                                    {1.0 / 6, Q / 6, 1.0 / 3, Q / 3, 2.0 / 3},
                                    {1.0 / 6, -Q / 6, 1.0 / 3, -Q / 3, 2.0 / 3},
                                    {0, 0, 0, 0, 1}};
    static const double A2[2][6] = {{1, 1, 1, 1, 1, 0}, {0, S, -S, Q, -Q, 1}};
    double x[6], size;
    for (int64_t n = 1; n < 12; n += 5) {
        const int64_t step = (n + 1) * L;
        float *w = floats(n * 5 * L), *v = guarded((size_t)(5 * step + n * L) * 4);
        K->winograd_line_kernels_f32(n, w, v, step);
        for (int64_t k = 0; k < n; k++) for (int j = 0; j < 6; j++) for (int i = 0; i < L; i++) {
            for (int t = 0; t < 5; t++) x[t] = w[(k * 5 + t) * L + i];
            const double want = along(G5[0], 5, j, x, &size);
            if (!close_to("winograd_line_kernels_f32", "", (k * 6 + j) * L + i, v[j * step + k * L + i], want, 6 * u * size))
                return;
        }
        release_all();
    }
    for (int64_t width = 1; width < 45; width += 4) for (int64_t pad = 0; pad < 5; pad++) for (int64_t top = -2; top < 3; top++) {
        const int64_t c = 3, height = 4, rows = 5, pitch = 8 * (1 + (width > 12)), step = c * rows * pitch + 8;
        float *image = floats(c * height * width), *v = guarded((size_t)(6 * step) * 4);
        K->winograd_line_input_f32(c, height, width, image, top, rows, pad, v, pitch, step);
        for (int64_t e = 0; e < c * rows * pitch; e++) for (int j = 0; j < 6; j++) {
            const int64_t row = top + e / pitch % rows, at = 2 * (e % pitch) - pad;
            for (int i = 0; i < 6; i++) {
                const int inside = row >= 0 && row < height && at + i >= 0 && at + i < width;
                x[i] = inside ? image[(e / pitch / rows * height + row) * width + at + i] : 0;
            }
            const double want = along(BT[0], 6, j, x, &size);
            if (!close_to("winograd_line_input_f32", "", e * 6 + j, v[j * step + e], want, 6 * u * size)) return;
        }
        release_all();
    }
    for (int64_t rows = 1; rows < 4; rows++) for (int64_t ow = 1; ow < 8; ow++) {
        const int64_t tiles = (ow + 1) / 2, step = (rows * tiles + 1) * L;
        float *o = floats(6 * step), *y = guarded((size_t)(rows * ow * L) * 4);
        const float hi = rows == 1 ? 1 : INFINITY;
        K->winograd_line_output_f32(rows, ow, o, step, -0.5f, hi, y);
        for (int64_t e = 0; e < rows * ow * L; e++) {
            const int64_t at = e / L % ow, tile = e / L / ow * tiles + at / 2;
            for (int j = 0; j < 6; j++) x[j] = o[j * step + tile * L + e % L];
            const double want = fmin(fmax(along(A2[0], 6, (int)(at % 2), x, &size), -0.5), hi);
            if (!close_to("winograd_line_output_f32", "", e, y[e], want, 6 * u * size)) return;
        }
        release_all();
    }
}
