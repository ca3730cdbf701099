/* Depthwise convolution over the map as one long row, for outputs as wide as the (strided) image: narrow maps fill
 * vectors too.
 *
 * Rows of the image are copied one behind the other, those above and below it as zeros; with a stride, elements of
 * one phase (row % stride, column % stride) go to a plane of their own. A tap of output q is then at q + a fixed
 * distance. Past the left or right end of its row it meets an element of another row: the sum over each column of taps
 * is masked where that happens. Uses the copies of direct_body.h and the vectors of gemm_body.h. */

#define V EV_FN(vf32)
#define VU EV_FN(vf32u)
#define VI EV_FN(vi32)
#define VW (EV_VECTOR_BYTES / 4)

enum { EV_FN(FLAT_FLOATS) = 4096, EV_FN(FLAT_TAPS) = 64 }; /* of the copy, on the stack; most taps */

/* Without a division for the usual strides: there are dozens, for each channel. */
static inline int64_t EV_FN(floor_div)(int64_t a, int64_t b)
{
    if (b == 1) return a;
    if (b == 2) return a >> 1;
    return a >= 0 ? a / b : -((b - 1 - a) / b);
}

/* How the copy for n output rows is laid out; floats is its size. */
typedef struct {
    int64_t low, rows;   /* first row of each plane for output row 0; rows of a plane */
    int64_t margin;      /* what taps read before and after a plane */
    int64_t plane, floats;
} EV_FN(flat);

static EV_FN(flat) EV_FN(flat_layout)(const ev_depthwise *d, int64_t n)
{
    EV_FN(flat) f;
    const int64_t left = -EV_FN(floor_div)(-d->pad_w, d->sw), right = EV_FN(floor_div)((d->kw - 1) * d->dw - d->pad_w, d->sw);
    f.low = EV_FN(floor_div)(-d->pad_h, d->sh);
    f.rows = n + EV_FN(floor_div)((d->kh - 1) * d->dh - d->pad_h, d->sh) - f.low;
    f.margin = (left > right ? left : right) + 2 * VW;
    f.plane = f.rows * d->ow + 2 * f.margin;
    f.floats = d->sh * d->sw * f.plane;
    return f;
}

static int EV_FN(flat_serves)(const ev_depthwise *d)
{
    return d->w <= d->ow * d->sw && d->ow * d->sw < d->w + d->sw && d->kh * d->kw <= EV_FN(FLAT_TAPS)
        && d->kw * d->dw <= 64 && EV_FN(flat_layout)(d, 1).floats <= EV_FN(FLAT_FLOATS);
}

static inline void EV_FN(flat_zero)(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x[i] = 0;
}

/* Output rows [first, last). kh, kw: constants where they are known. */
static inline __attribute__((always_inline)) void EV_FN(flat_rows)(
    const ev_depthwise *d, const float *x, const float *k, float bias, const float *residual, float *y, int64_t first,
    int64_t last, const int64_t kh, const int64_t kw)
{
    const EV_FN(flat) f = EV_FN(flat_layout)(d, last - first);
    const int64_t pitch = d->ow, total = (last - first) * pitch;
    float copy[EV_FN(FLAT_FLOATS)];
    for (int64_t a = 0; a < d->sh; a++)
        for (int64_t b = 0; b < d->sw; b++) {
            float *to = copy + (a * d->sw + b) * f.plane + f.margin;
            const int64_t wide = EV_FN(floor_div)(d->w - b + d->sw - 1, d->sw), n = wide < pitch ? wide : pitch;
            if (d->sh == 1 && d->sw == 1) { /* the rows lie as they should */
                const int64_t above = first + f.low < 0 ? -(first + f.low) : 0, below = d->h - (first + f.low);
                const int64_t end = below < f.rows ? below : f.rows, begin = above < end ? above : end > 0 ? end : 0;
                EV_FN(flat_zero)(to, begin * pitch);
                if (end > begin)
                    EV_FN(direct_row)((end - begin) * pitch, 1, x + (first + f.low + begin) * pitch, to + begin * pitch);
                EV_FN(flat_zero)(to + (end > begin ? end : begin) * pitch, (f.rows - (end > begin ? end : begin)) * pitch);
                continue;
            }
            for (int64_t r = 0; r < f.rows; r++, to += pitch) {
                const int64_t h = (first + f.low + r) * d->sh + a;
                const int inside = h >= 0 && h < d->h;
                if (inside) EV_FN(direct_row)(n, d->sw, x + h * d->w + b, to);
                for (int64_t i = inside ? n : 0; i < pitch; i++) to[i] = 0;
            }
        }
    const float *tap[EV_FN(FLAT_TAPS)];
    V weight[EV_FN(FLAT_TAPS)];
    int32_t shift[EV_FN(FLAT_TAPS)];
#pragma GCC unroll 5
    for (int64_t t = 0; t < kh; t++)
#pragma GCC unroll 5
        for (int64_t u = 0; u < kw; u++) {
            const int64_t v = t * d->dh - d->pad_h, w = u * d->dw - d->pad_w;
            const int64_t down = EV_FN(floor_div)(v, d->sh), aside = EV_FN(floor_div)(w, d->sw);
            shift[u] = (int32_t)aside;
            weight[t * kw + u] = k[t * kw + u] - (V){0};
            tap[t * kw + u] = copy + ((v - down * d->sh) * d->sw + w - aside * d->sw) * f.plane + f.margin
                + (down - f.low) * pitch + aside;
        }
    const V lo = d->lo - (V){0}, hi = d->hi - (V){0};
    VI column0, column1;
    const int32_t width = (int32_t)pitch;
    int32_t step = 0;
    for (int i = 0; i < 2 * VW; i++) {
        if (i < VW) column0[i] = step;
        else column1[i - VW] = step;
        if (++step == width) step = 0;
    }
    for (int64_t q = 0; q < total; q += 2 * VW) {
        V r0 = bias - (V){0}, r1 = r0;
#pragma GCC unroll 5
        for (int64_t u = 0; u < kw; u++) {
            V s0 = {0}, s1 = {0};
#pragma GCC unroll 5
            for (int64_t t = 0; t < kh; t++) {
                const float *from = tap[t * kw + u] + q;
                s0 += *(const VU *)from * weight[t * kw + u];
                s1 += *(const VU *)(from + VW) * weight[t * kw + u];
            }
            if (shift[u] < 0) {
                s0 = (V)((VI)s0 & (column0 >= -shift[u]));
                s1 = (V)((VI)s1 & (column1 >= -shift[u]));
            } else if (shift[u] > 0) {
                s0 = (V)((VI)s0 & (column0 < width - shift[u]));
                s1 = (V)((VI)s1 & (column1 < width - shift[u]));
            }
            r0 += s0;
            r1 += s1;
        }
        column0 += step;
        column1 += step;
        column0 -= (column0 >= width) & width;
        column1 -= (column1 >= width) & width;
        float *to = y + first * pitch + q;
        const float *add = residual ? residual + first * pitch + q : NULL;
        if (q + 2 * VW <= total) {
            if (add) {
                r0 += *(const VU *)add;
                r1 += *(const VU *)(add + VW);
            }
            *(VU *)to = EV_MIN_F32(hi, EV_MAX_F32(lo, r0));
            *(VU *)(to + VW) = EV_MIN_F32(hi, EV_MAX_F32(lo, r1));
        } else {
            float part[2 * VW];
            *(VU *)part = r0;
            *(VU *)(part + VW) = r1;
            for (int64_t i = 0; i < total - q; i++) to[i] = EV_FN(clip)(add ? part[i] + add[i] : part[i], d->lo, d->hi);
        }
    }
}

static __attribute__((noinline)) void EV_FN(flat_3x3)(const ev_depthwise *d, const float *x, const float *k, float bias,
                                                      const float *residual, float *y, int64_t first, int64_t last)
{
    EV_FN(flat_rows)(d, x, k, bias, residual, y, first, last, 3, 3);
}

static __attribute__((noinline)) void EV_FN(flat_5x5)(const ev_depthwise *d, const float *x, const float *k, float bias,
                                                      const float *residual, float *y, int64_t first, int64_t last)
{
    EV_FN(flat_rows)(d, x, k, bias, residual, y, first, last, 5, 5);
}

/* Output rows [first, last) of one channel: y = clamp(x * k + bias + residual). Measured against the tiles of
 * conv_body.h (Zen, GMAC/s): 3x3 25x5 4.2 for 1.2, 14x14 4.7 for 2.3, 56x56 6.8 for 5.7, 112x112 6.7 for 6.8; stride 2
 * 56x56 2.9 for 1.8, 112x112 3.2 for 2.3; 5x5 15x15 5.9 for 4.9, 30x30 7.4 for 7.1, stride 2 60x60 5.0 for 2.9. */
static void EV_FN(depthwise_f32)(const ev_depthwise *d, const float *x, const float *k, float bias,
                                 const float *residual, float *y, int64_t first, int64_t last)
{
    const int strided = d->sh > 1 || d->sw > 1, small = d->kh == 3 && d->kw == 3, large = d->kh == 5 && d->kw == 5;
    if (!(small || large) || !(strided || d->ow <= (small ? 64 : 16)) || !EV_FN(flat_serves)(d)) {
        EV_FN(depthwise_tiles)(d, x, k, bias, residual, y, first, last);
        return;
    }
    const int64_t one = EV_FN(flat_layout)(d, 1).floats, two = EV_FN(flat_layout)(d, 2).floats;
    const int64_t band = 1 + (EV_FN(FLAT_FLOATS) - one) / (two - one);
    for (int64_t oh = first; oh < last; oh += band)
        (small ? EV_FN(flat_3x3) : EV_FN(flat_5x5))(d, x, k, bias, residual, y, oh, oh + band < last ? oh + band : last);
}

#undef V
#undef VU
#undef VI
#undef VW
