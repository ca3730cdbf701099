/* Depthwise convolution of VW channels at a time: maps too narrow to fill vectors with columns, and strides above 1.
 *
 * Rows of the channels are transposed into a padded band, so that a position's VW channels are one vector; a tap of any
 * stride and dilation is then a plain load. The sums of a band are transposed back as they are finished.
 *
 *   band[row][pitch][VW]     the image's rows under some output rows, with their padding; those that the next band
 *                            needs too are moved to its front
 *   sums[position][VW]       of those output rows
 *
 * Uses the vectors of gemm_body.h and the transposition of winograd_body.h. */

#define V EV_FN(vf32)
#define VU EV_FN(vf32u)
#define VW (EV_VECTOR_BYTES / 4)

/* Where the planes of channels c.. of n lie, `share` channels in a plane; lanes past the last channel are that one. */
typedef struct {
    int64_t at[VW];
    int64_t n;
} EV_FN(planes);

static inline EV_FN(planes) EV_FN(make_planes)(int64_t c, int64_t n, int64_t share, int64_t step)
{
    EV_FN(planes) p = {.n = n - c < VW ? n - c : VW};
    for (int i = 0; i < VW; i++) p.at[i] = (c + (i < p.n ? i : p.n - 1)) / share * step;
    return p;
}

/* Four positions of VW planes, the first `some` of them in memory, as four vectors of VW channels. */
static inline void EV_FN(planes_load)(const EV_FN(planes) *p, const float *x, int64_t some, V *to)
{
    const float *from[VW];
    float part[VW][4];
    for (int i = 0; i < VW; i++) {
        from[i] = x + p->at[i];
        if (some == 4) continue;
        for (int j = 0; j < 4; j++) part[i][j] = j < some ? from[i][j] : 0;
        from[i] = part[i];
    }
    EV_FN(load_4x4)(from, 0, to);
}

/* Rows [low, high) of the image, the first of them at to[0]; columns before 0 and past the width are zero. */
static void EV_FN(block_rows)(const ev_depthwise *d, const EV_FN(planes) *planes, const float *x, int64_t low, int64_t high,
                              int64_t pitch, float *to)
{
    for (int64_t h = low; h < high; h++, to += pitch * VW) {
        const int64_t inside = h >= 0 && h < d->h ? d->w : 0;
        memset(to, 0, (size_t)(inside ? d->pad_w : pitch) * VW * sizeof *to);
        if (!inside) continue;
        float *at = to + d->pad_w * VW;
        /* Past the row's end the next row begins: its elements are overwritten with zeros. */
        const int64_t readable = (d->h - h) * d->w;
        for (int64_t i = 0; i < inside; i += 4, at += 4 * VW) {
            V v[4];
            EV_FN(planes_load)(planes, x + h * d->w + i, readable - i < 4 ? readable - i : 4, v);
            for (int j = 0; j < 4; j++) *(VU *)(at + j * VW) = v[j];
        }
        const int64_t end = d->pad_w + inside;
        memset(to + end * VW, 0, (size_t)(pitch - end) * VW * sizeof *to);
    }
}

/* n outputs of a row from column 0 of `row` on; n, kw: constants where they are known. */
static inline __attribute__((always_inline)) void EV_FN(block_tile)(
    const ev_depthwise *d, const float *row, int64_t pitch, const float *k, V bias, float *sums, const int n, const int64_t kw)
{
    V acc[8];
#pragma GCC unroll 8
    for (int j = 0; j < n; j++) acc[j] = bias;
    const int64_t step = d->sw * VW;
    for (int64_t r = 0; r < d->kh; r++, row += d->dh * pitch * VW) {
        const float *x = row;
#pragma GCC unroll 5
        for (int64_t t = 0; t < kw; t++, k += VW, x += d->dw * VW) {
            const V w = *(const VU *)k;
#pragma GCC unroll 8
            for (int j = 0; j < n; j++) acc[j] += *(const VU *)(x + j * step) * w;
        }
    }
#pragma GCC unroll 8
    for (int j = 0; j < n; j++) *(VU *)(sums + j * VW) = acc[j];
}

/* A row of outputs in even shares of at most 8. */
static void EV_FN(block_row)(const ev_depthwise *d, const float *row, int64_t pitch, const float *k, V bias, float *sums)
{
    int64_t groups = (d->ow + 7) / 8;
    for (int64_t i = 0, n; i < d->ow; i += n, groups--, row += n * d->sw * VW, sums += n * VW) {
        n = (d->ow - i + groups - 1) / groups;
        switch (n) {
#define X(n)                                                                                        \
        case n:                                                                                     \
            if (d->kw == 3) EV_FN(block_tile)(d, row, pitch, k, bias, sums, n, 3);                  \
            else EV_FN(block_tile)(d, row, pitch, k, bias, sums, n, d->kw);                         \
            break;
        X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8)
#undef X
        }
    }
}

/* n positions of sums to the planes of y. */
static void EV_FN(block_store)(const ev_depthwise *d, const EV_FN(planes) *planes, const float *sums, int64_t n,
                               const float *residual, float *y)
{
    const V lo = d->lo - (V){0}, hi = d->hi - (V){0};
    for (int64_t at = 0; at < n; at += 4) {
        const int64_t some = n - at < 4 ? n - at : 4;
        V v[4], z[4] = {{0}};
        if (residual) EV_FN(planes_load)(planes, residual + at, some, z);
        for (int j = 0; j < 4; j++) {
            v[j] = *(const VU *)(sums + (at + j) * VW) + z[j];
            v[j] = EV_MIN_F32(hi, EV_MAX_F32(lo, v[j]));
        }
        EV_FN(transpose_4x4)(v);
        for (int i = 0; i < planes->n; i++) {
            const float *from = (const float *)&v[i % 4] + i / 4 * 4;
            float *to = y + planes->at[i] + at;
            if (some == 4) memcpy(to, from, 4 * sizeof *to);
            else
                for (int64_t j = 0; j < some; j++) to[j] = from[j];
        }
    }
}

/* Output rows [first, last) of channels [begin, end). bias: one for each channel, or NULL; residual: laid out like y (and
 * may be y), or NULL. scratch: `floats` elements, ev_depthwise_floats(d, 1) at least. */
static void EV_FN(depthwise_block_f32)(const ev_depthwise *d, int64_t begin, int64_t end, const float *x, const float *k,
                                       const float *bias, const float *residual, float *y, int64_t first, int64_t last,
                                       float *scratch, int64_t floats)
{
    const int64_t taps = d->kh * d->kw, pitch = ev_depthwise_pitch(d), reach = (d->kh - 1) * d->dh + 1;
    const int64_t row = pitch * VW;
    /* Rows of a band: reach + (most - 1) * sh of the image and as many of sums, and what is stored past the last ones. */
    int64_t most = (floats / VW - taps - 8 - (reach - d->sh) * pitch) / (d->sh * pitch + d->ow);
    if (most > last - first) most = last - first;
    float *weights = scratch, *band = weights + taps * VW, *sums = band + (reach + (most - 1) * d->sh) * row;
    for (int64_t c = begin; c < end; c += VW) {
        const EV_FN(planes) in = EV_FN(make_planes)(c, end, d->multiplier, d->h * d->w);
        const EV_FN(planes) out = EV_FN(make_planes)(c, end, 1, d->oh * d->ow);
        V b = {0};
        for (int i = 0; i < VW; i++) {
            if (bias && i < in.n) b[i] = bias[c + i];
            for (int64_t t = 0; t < taps; t++) weights[t * VW + i] = i < in.n ? k[(c + i) * taps + t] : 0;
        }
        int64_t ready = first * d->sh - d->pad_h; /* the first row of the image that is not in the band */
        for (int64_t oh = first, n; oh < last; oh += n) {
            n = last - oh < most ? last - oh : most;
            const int64_t low = oh * d->sh - d->pad_h, high = low + reach + (n - 1) * d->sh;
            const int64_t kept = ready > low ? ready - low : 0;
            if (kept) memmove(band, band + most * d->sh * row, (size_t)(kept * row) * sizeof *band);
            EV_FN(block_rows)(d, &in, x, low + kept, high, pitch, band + kept * row);
            ready = high;
            for (int64_t i = 0; i < n; i++)
                EV_FN(block_row)(d, band + i * d->sh * row, pitch, weights, b, sums + i * d->ow * VW);
            EV_FN(block_store)(d, &out, sums, n * d->ow, residual ? residual + oh * d->ow : NULL, y + oh * d->ow);
        }
    }
}

#undef V
#undef VU
#undef VW
