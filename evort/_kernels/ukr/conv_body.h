/* Convolutions: im2col for the matrix product, and the depthwise convolution. Uses the vectors of gemm_body.h. */

#define V EV_FN(vf32)
#define VU EV_FN(vf32u)
#define VW (EV_VECTOR_BYTES / 4)

/* Copies n floats, every s-th of src; n is small. */
static inline void EV_FN(copy_strided)(int64_t n, int64_t s, const float *src, float *dst)
{
    int64_t i = 0;
    if (s == 1) {
        for (; i + 4 <= n; i += 4) memcpy(dst + i, src + i, 16);
        for (; i < n; i++) dst[i] = src[i];
    } else {
        for (; i < n; i++) dst[i] = src[i * s];
    }
}

/* A run of columns of a panel that lie in one row of the output. */
typedef struct {
    int64_t at, n;          /* first column of the panel, number of columns */
    int64_t d, h, w;        /* the image's element for the first tap */
} EV_FN(run);

static int EV_FN(find_runs)(const ev_conv_window *g, int64_t j, int64_t n, EV_FN(run) *runs)
{
    int count = 0;
    for (int64_t at = 0; at < n; count++) {
        const int64_t row = (j + at) / g->out[2], ow = (j + at) % g->out[2], left = g->out[2] - ow;
        EV_FN(run) *r = runs + count;
        r->at = at;
        r->n = n - at < left ? n - at : left;
        r->d = row / g->out[1] * g->stride[0] - g->pad[0];
        r->h = row % g->out[1] * g->stride[1] - g->pad[1];
        r->w = ow * g->stride[2] - g->pad[2];
        at += r->n;
    }
    return count;
}

/* The part of one row of the im2col matrix that a run covers: elements w, w + s, ... of an image row (NULL: outside). */
static inline void EV_FN(fill_run)(const float *row, int64_t width, int64_t s, int64_t w, int64_t n, float *dst)
{
    if (!row) {
        memset(dst, 0, (size_t)n * sizeof *dst);
        return;
    }
    int64_t first = w < 0 ? (-w + s - 1) / s : 0, last = width - w <= 0 ? 0 : (width - w + s - 1) / s;
    last = last < n ? last : n;
    first = first < last ? first : last;
    for (int64_t i = 0; i < first; i++) dst[i] = 0;
    EV_FN(copy_strided)(last - first, s, row + w + first * s, dst + first);
    for (int64_t i = last; i < n; i++) dst[i] = 0;
}

#if defined(__AVX2__)
/* A panel's row is put together from its runs by masked loads, which take care of borders, row ends and the last
 * columns at once. The masks of a panel are made once; they depend on the tap's column only. */
enum { EV_FN(RUNS) = 4, EV_FN(TAPS) = 8 };
typedef struct {
    __m256i mask[EV_FN(TAPS)][EV_FN(RUNS)][4]; /* stride 2 needs four vectors of the image for two of the panel */
    int whole[EV_FN(TAPS)];                    /* every lane is inside: plain loads do */
} EV_FN(masks);

static inline __attribute__((always_inline)) void EV_FN(make_masks)(
    const ev_conv_window *g, const EV_FN(run) *runs, int count, const int step, EV_FN(masks) *m)
{
    const __m256i iota = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), one = _mm256_set1_epi32(1);
    for (int t = 0; t < (int)g->kernel[2]; t++) {
        m->whole[t] = 0;
        for (int i = 0; i < count; i++) {
            const EV_FN(run) *r = runs + i;
            /* Image elements lie at index from the run's first lane on: valid from `low` up to `high`. */
            const int64_t w = r->w + t * g->dilation[2], right = g->image[2] - w;
            const int64_t low = w < 0 ? -w : 0, high = right < r->n * step ? right : r->n * step;
            if (r->n == EV_NR_F32 && low == 0 && right >= EV_NR_F32 * step) m->whole[t] = 1;
            for (int v = 0; v < 2 * step; v++) {
                const __m256i at = _mm256_add_epi32(iota, _mm256_set1_epi32((int)(v * 8 - r->at * step)));
                __m256i ok = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)low), at),
                                                 _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(high < 0 ? 0 : high)), at));
                if (step == 2) /* even places only; r->at * step is even */
                    ok = _mm256_andnot_si256(_mm256_cmpeq_epi32(_mm256_and_si256(at, one), one), ok);
                m->mask[t][i][v] = ok;
            }
        }
    }
}

/* The taps of one kernel row, from column tx on. rows[i]: where lane 0 of run i would lie for tap 0, or NULL. */
static inline __attribute__((always_inline)) void EV_FN(fill_taps)(
    const ev_conv_window *g, const EV_FN(masks) *m, const float *const *rows, int count, int64_t tx, int64_t taps,
    const int step, float *to)
{
    for (int64_t t = tx; t < tx + taps; t++, to += EV_NR_F32) {
        const int64_t shift = t * g->dilation[2];
        V lo = {0}, hi = {0};
        if (m->whole[t] && rows[0]) {
            const float *from = rows[0] + shift;
            lo = *(const VU *)from;
            hi = *(const VU *)(from + 8);
            if (step == 2) {
                lo = _mm256_shuffle_ps(lo, hi, 0x88);
                hi = _mm256_shuffle_ps(*(const VU *)(from + 16), *(const VU *)(from + 24), 0x88);
            }
        } else {
            for (int i = 0; i < count; i++) {
                if (!rows[i]) continue;
                const float *from = rows[i] + shift;
                const __m256i *k = m->mask[t][i];
                V a = _mm256_maskload_ps(from, k[0]), b = _mm256_maskload_ps(from + 8, k[1]);
                if (step == 2) {
                    a = _mm256_shuffle_ps(a, b, 0x88);
                    b = _mm256_shuffle_ps(_mm256_maskload_ps(from + 16, k[2]), _mm256_maskload_ps(from + 24, k[3]), 0x88);
                }
                lo = _mm256_or_ps(lo, a);
                hi = _mm256_or_ps(hi, b);
            }
        }
        if (step == 2) {
            lo = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(lo), 0xd8));
            hi = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(hi), 0xd8));
        }
        *(VU *)to = lo;
        *(VU *)(to + 8) = hi;
    }
}
#endif

/* Rows [p0, p0+kc) of one panel of the im2col matrix. step: the stride where masked loads serve it, else 0. */
static inline __attribute__((always_inline)) void EV_FN(fill_panel)(
    const ev_conv_window *g, const float *x, int64_t p0, int64_t kc, const EV_FN(run) *runs, int count, int64_t n,
    const int step, float *dst)
{
    enum { NR = EV_NR_F32 };
    const int64_t kd = g->kernel[0], kh = g->kernel[1], kw = g->kernel[2];
    const int64_t depth = g->image[0], height = g->image[1], width = g->image[2], s = g->stride[2];
    int64_t tx = p0 % kw, ty = p0 / kw % kh, tz = p0 / kw / kh % kd, channel = p0 / kw / kh / kd;
#if defined(__AVX2__)
    EV_FN(masks) m;
    if (step) EV_FN(make_masks)(g, runs, count, step, &m);
#endif
    for (int64_t p = 0; p < kc; channel++, tz = 0)
        for (; tz < kd && p < kc; tz++, ty = 0)
            for (; ty < kh && p < kc; ty++, tx = 0) {
                const int64_t taps = kw - tx < kc - p ? kw - tx : kc - p;
                const float *rows[NR];
                for (int i = 0; i < count; i++) {
                    const int64_t d = runs[i].d + tz * g->dilation[0], h = runs[i].h + ty * g->dilation[1];
                    const int inside = d >= 0 && d < depth && h >= 0 && h < height;
                    rows[i] = inside ? x + ((channel * depth + d) * height + h) * width : NULL;
                }
#if defined(__AVX2__)
                if (step) {
                    for (int i = 0; i < count; i++)
                        if (rows[i]) rows[i] += runs[i].w - runs[i].at * step;
                    EV_FN(fill_taps)(g, &m, rows, count, tx, taps, step, dst + p * NR);
                    p += taps;
                    continue;
                }
#endif
                for (int i = 0; i < count; i++) {
                    float *to = dst + p * NR + runs[i].at;
                    for (int64_t t = tx; t < tx + taps; t++, to += NR)
                        EV_FN(fill_run)(rows[i], width, s, runs[i].w + t * g->dilation[2], runs[i].n, to);
                }
                for (int64_t t = 0; t < taps; t++, p++)
                    if (n < NR) memset(dst + p * NR + n, 0, (NR - n) * sizeof *dst);
            }
}

/* Rows [p0, p0+kc) x columns [j0, j0+nc) of the im2col matrix of x, in panels of EV_NR_F32 columns as the matrix
 * product takes them. Row p is a channel and a tap, column j a position of the window. */
static void EV_FN(im2col_f32)(const ev_conv_window *g, const float *x, int64_t p0, int64_t kc, int64_t j0, int64_t nc,
                              float *dst)
{
    enum { NR = EV_NR_F32 };
    for (int64_t j = 0; j < nc; j += NR, dst += kc * NR) {
        EV_FN(run) runs[NR];
        const int64_t n = nc - j < NR ? nc - j : NR;
        const int count = EV_FN(find_runs)(g, j0 + j, n, runs);
#if defined(__AVX2__)
        if (count <= EV_FN(RUNS) && g->kernel[2] <= EV_FN(TAPS) && g->stride[2] <= 2) {
            if (g->stride[2] == 1) EV_FN(fill_panel)(g, x, p0, kc, runs, count, n, 1, dst);
            else EV_FN(fill_panel)(g, x, p0, kc, runs, count, n, 2, dst);
            continue;
        }
#endif
        EV_FN(fill_panel)(g, x, p0, kc, runs, count, n, 0, dst);
    }
}

/* Depthwise convolution -------------------------------------------------------------------------------------------
 *
 * For rows that are too long for depthwise_block_body.h, and kernels that depthwise_rows_body.h does not take.
 *
 * A tile of VT * VW outputs is kept in registers while the input rows under it pass by once. Tiles at the
 * left and right border read a strip: a small zero-padded copy of the columns under them, so that there is one inner
 * loop without bounds along the width and no padded copy of the image. The last tile of a row is moved left to end
 * with the row; where that is not possible (a narrow row, or a residual that the result overwrites) it stores fewer
 * lanes. */

enum { EV_FN(STRIP) = 3072 }; /* floats of a strip, on the stack */

#if defined(__AVX2__)
/* Even elements of two vectors, out of order; EV_FN(in_order) mends that. */
static inline V EV_FN(evens)(V a, V b) { return _mm256_shuffle_ps(a, b, 0x88); }
static inline V EV_FN(in_order)(V a)
{
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(a), 0xd8));
}
#else
typedef int32_t EV_FN(vi32) __attribute__((vector_size(EV_VECTOR_BYTES)));
static inline V EV_FN(evens)(V a, V b) { return __builtin_shuffle(a, b, (EV_FN(vi32)){0, 2, 4, 6}); }
static inline V EV_FN(in_order)(V a) { return a; }
#endif

/* What a tile reads: row h of the image, column w, at rows + h*stride + w. */
typedef struct {
    const float *rows;
    int64_t stride;
} EV_FN(source);

/* Elements w, w + s, ... of a row, with zeros outside it. */
static inline V EV_FN(gather)(const float *row, int64_t w, int64_t s, int64_t width)
{
    V r = {0};
    for (int i = 0; i < VW; i++)
        if (w + i * s >= 0 && w + i * s < width) r[i] = row[w + i * s];
    return r;
}

/* One tile. STEP: 1 where that is the stride along the width; else 0, and every load checks its bounds. VT, STEP, and kw,
 * dw where they are known, are constants, and the loops over them unroll. */
static inline __attribute__((always_inline)) void EV_FN(depthwise_tile)(
    const ev_depthwise *d, EV_FN(source) x, const float *k, float bias, const float *residual, float *y, int64_t oh,
    int64_t ow, int64_t lanes, const int64_t kh, const int64_t kw, const int64_t dw, const int VT, const int STEP)
{
    V acc[4];
#pragma GCC unroll 4
    for (int v = 0; v < VT; v++) acc[v] = bias - (V){0};
    const int64_t w0 = ow * d->sw - d->pad_w, h0 = oh * d->sh - d->pad_h;
    for (int64_t r = 0; r < kh; r++) {
        const int64_t h = h0 + r * d->dh;
        if ((uint64_t)h >= (uint64_t)d->h) continue;
        const float *row = x.rows + h * x.stride;
#pragma GCC unroll 5
        for (int64_t t = 0; t < kw; t++) {
#pragma GCC unroll 4
            for (int v = 0; v < VT; v++) {
                const int64_t w = w0 + t * dw + v * VW * (STEP ? 1 : d->sw);
                acc[v] += (STEP ? *(const VU *)(row + w) : EV_FN(gather)(row, w, d->sw, d->w)) * k[r * kw + t];
            }
        }
    }
    const V lo = d->lo - (V){0}, hi = d->hi - (V){0};
#pragma GCC unroll 4
    for (int v = 0; v < VT; v++) {
        V r = acc[v];
        const int64_t at = oh * d->ow + ow + v * VW;
        if (lanes >= (v + 1) * VW) {
            if (residual) r += *(const VU *)(residual + at);
            *(VU *)(y + at) = EV_MIN_F32(hi, EV_MAX_F32(lo, r));
        } else {
            float part[VW];
            if (residual)
                for (int64_t i = 0; i < lanes - v * VW; i++) r[i] += residual[at + i];
            *(VU *)part = EV_MIN_F32(hi, EV_MAX_F32(lo, r));
            for (int64_t i = 0; i < lanes - v * VW; i++) y[at + i] = part[i];
        }
    }
}

/* Columns [w0, w0 + span) of rows [h0, h0 + n) of the image, those outside it zero, as a source. */
static EV_FN(source) EV_FN(make_strip)(const ev_depthwise *d, const float *x, int64_t h0, int64_t n, int64_t w0,
                                       int64_t span, float *strip)
{
    const int64_t first = w0 < 0 ? -w0 : 0, last = d->w - w0 < span ? d->w - w0 : span;
    for (int64_t r = 0; r < n; r++) {
        float *to = strip + r * span;
        if ((uint64_t)(h0 + r) >= (uint64_t)d->h) continue;
        const float *from = x + (h0 + r) * d->w + w0;
        for (int64_t i = 0; i < first && i < span; i++) to[i] = 0;
        if (first < last) EV_FN(copy_strided)(last - first, 1, from + first, to + first);
        for (int64_t i = last < first ? first : last; i < span; i++) to[i] = 0;
    }
    return (EV_FN(source)){strip - h0 * span - w0, span};
}

/* Output rows [first, last) of one channel. */
static inline __attribute__((always_inline)) void EV_FN(depthwise_rows)(
    const ev_depthwise *d, const float *x, const float *k, float bias, const float *residual, float *y, int64_t first,
    int64_t last, const int64_t kh, const int64_t kw, const int64_t dw, const int VT, const int STEP)
{
    const EV_FN(source) image = {x, d->w};
    const int64_t wide = VT * VW, tiles = (d->ow + wide - 1) / wide, reach = (kh - 1) * d->dh + 1;
    const int64_t span = wide + (kw - 1) * dw; /* elements that a tile loads from a row */
    const int shift = d->ow >= wide && residual != y;
    int64_t begin = 0, end = tiles; /* tiles [begin, end) lie inside the image */
#define OW(i) (shift && (i) == tiles - 1 ? d->ow - wide : (i) * wide)
#define LANES(i) (d->ow - OW(i) < wide ? d->ow - OW(i) : wide)
#define TILE(source, i) \
    EV_FN(depthwise_tile)(d, source, k, bias, residual, y, oh, OW(i), LANES(i), kh, kw, dw, VT, STEP)
    if (STEP) {
        float strip[EV_FN(STRIP)];
        while (begin < tiles && OW(begin) * d->sw - d->pad_w < 0) begin++;
        while (end > begin && OW(end - 1) * d->sw - d->pad_w + span > d->w) end--;
        for (int64_t i = 0; i < tiles; i++) {
            if (i == begin) i = end;
            if (i == tiles) break;
            const EV_FN(source) padded = EV_FN(make_strip)(d, x, first * d->sh - d->pad_h,
                (last - 1 - first) * d->sh + reach, OW(i) * d->sw - d->pad_w, span, strip);
            for (int64_t oh = first; oh < last; oh++) TILE(padded, i);
        }
    }
    for (int64_t oh = first; oh < last; oh++)
        for (int64_t i = begin; i < end; i++) TILE(image, i);
#undef OW
#undef LANES
#undef TILE
}

#define EV_DEPTHWISE_ARGS                                                                                              \
    const ev_depthwise *d, const float *x, const float *k, float bias, const float *residual, float *y, int64_t first, \
        int64_t last
#define EV_DEPTHWISE(name, kh, kw, dw, vt, step)                                                                \
    static __attribute__((noinline)) void EV_FN(name)(EV_DEPTHWISE_ARGS)                                        \
    {                                                                                                           \
        EV_FN(depthwise_rows)(d, x, k, bias, residual, y, first, last, kh, kw, dw, vt, step);                   \
    }
EV_DEPTHWISE(depthwise_3, d->kh, 3, d->dw, 2, 1)
EV_DEPTHWISE(depthwise_5, d->kh, 5, d->dw, 2, 1)
EV_DEPTHWISE(depthwise_step1, d->kh, d->kw, d->dw, 2, 1)
EV_DEPTHWISE(depthwise_any, d->kh, d->kw, d->dw, 1, 0)

/* Output rows [first, last) of one channel: y = clamp(x * k + bias + residual). */
static void EV_FN(depthwise_f32)(EV_DEPTHWISE_ARGS)
{
    void (*fn)(EV_DEPTHWISE_ARGS) = EV_FN(depthwise_any);
    if (d->sw == 1) fn = d->kw == 3 ? EV_FN(depthwise_3) : d->kw == 5 ? EV_FN(depthwise_5) : EV_FN(depthwise_step1);
    /* Bands of rows whose strips fit; where not even one row does, loads check their bounds. */
    const int64_t span = 2 * VW + (d->kw - 1) * d->dw, reach = (d->kh - 1) * d->dh + 1;
    const int64_t fit = (EV_FN(STRIP) / span - reach) / d->sh + 1;
    int64_t band = last - first;
    if (span > EV_FN(STRIP) || EV_FN(STRIP) / span < reach) fn = EV_FN(depthwise_any);
    else if (fit < band) band = fit < 4 ? fit : fit - fit % 4;
    for (int64_t oh = first; oh < last; oh += band)
        fn(d, x, k, bias, residual, y, oh, oh + band < last ? oh + band : last);
}
#undef EV_DEPTHWISE
#undef EV_DEPTHWISE_ARGS

/* Transposed convolution -------------------------------------------------------------------------------------------
 *
 * One row (od, oh) of one output channel from the products col[tap][position]: row-major with leading dimension ld,
 * positions from input row `row0` on (rows counted over depth and height). Here `image` is the output and `out` the
 * input of the window. Outputs that are stride[2] apart meet the same taps, at neighbouring positions: they are added
 * up in tmp (image[2] + stride[2] elements) and interleaved at last.
 * residual: the row to add, or NULL; may be y. */
static void EV_FN(transposed_row_f32)(const ev_conv_window *g, const float *col, int64_t ld, int64_t row0, int64_t od,
                                      int64_t oh, float bias, const float *residual, float lo, float hi, float *tmp,
                                      float *y)
{
    const int64_t s = g->stride[2], width = g->image[2], in = g->out[2];
    float *acc = tmp;
    for (int64_t phase = 0; phase < s && phase < width; phase++) {
        const int64_t n = (width - phase + s - 1) / s;
        for (int64_t i = 0; i < n; i++) acc[i] = bias;
        if (residual)
            for (int64_t i = 0; i < n; i++) acc[i] += residual[phase + i * s];
        for (int64_t tz = 0; tz < g->kernel[0]; tz++) {
            const int64_t d = od + g->pad[0] - tz * g->dilation[0], z = d / g->stride[0];
            if (d < 0 || d % g->stride[0] || z >= g->out[0]) continue;
            for (int64_t ty = 0; ty < g->kernel[1]; ty++) {
                const int64_t h = oh + g->pad[1] - ty * g->dilation[1], r = h / g->stride[1];
                if (h < 0 || h % g->stride[1] || r >= g->out[1]) continue;
                for (int64_t tx = 0; tx < g->kernel[2]; tx++) {
                    const int64_t w = phase + g->pad[2] - tx * g->dilation[2];
                    if (w % s) continue;
                    const int64_t tap = (tz * g->kernel[1] + ty) * g->kernel[2] + tx, shift = w / s;
                    const int64_t from = shift < 0 ? -shift : 0, to = in - shift < n ? in - shift : n;
                    const float *src = col + tap * ld + (z * g->out[1] + r - row0) * in + shift;
                    for (int64_t i = from; i < to; i++) acc[i] += src[i];
                }
            }
        }
        for (int64_t i = 0; i < n; i++) acc[i] = EV_FN(clip)(acc[i], lo, hi);
        acc += n;
    }
    if (s == 1) {
        memcpy(y, tmp, (size_t)width * sizeof *y);
    } else if (s == 2) {
        const float *odd = tmp + (width + 1) / 2;
        for (int64_t i = 0; i < width / 2; i++) {
            y[2 * i] = tmp[i];
            y[2 * i + 1] = odd[i];
        }
        if (width % 2) y[width - 1] = tmp[width / 2];
    } else {
        for (int64_t phase = 0; phase < s && phase < width; phase++)
            for (int64_t i = phase; i < width; i += s) y[i] = *tmp++;
    }
}
#undef V
#undef VU
#undef VW
