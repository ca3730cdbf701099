/* Direct convolution: the padded copy of a band of the image. conv.h has its layout. Uses the vectors of gemm_body.h and the
 * strided loads of conv_body.h. */

#define V EV_FN(vf32)
#define VU EV_FN(vf32u)
#define VW (EV_VECTOR_BYTES / 4)

/* n elements, every s-th of src. Ends with a vector that overlaps the one before, where n allows. */
static inline void EV_FN(direct_row)(int64_t n, int64_t s, const float *src, float *dst)
{
    int64_t i = 0;
    if (s == 1 && n >= VW) {
        for (; i + VW <= n; i += VW) *(VU *)(dst + i) = *(const VU *)(src + i);
        *(VU *)(dst + n - VW) = *(const VU *)(src + n - VW);
    } else if (s == 2 && n > VW) { /* the second load ends one element early: there may be no more */
        for (; i + VW < n; i += VW)
            *(VU *)(dst + i) = EV_FN(in_order)(EV_FN(evens)(*(const VU *)(src + 2 * i), *(const VU *)(src + 2 * i + VW)));
        for (; i < n; i++) dst[i] = src[2 * i];
    } else {
        for (; i < n; i++) dst[i] = src[i * s];
    }
}

static void EV_FN(direct_copy_f32)(const ev_direct_image *g, const float *x, int64_t od, int64_t oh, float *dst)
{
    const ev_conv_window *w = &g->window;
    const int64_t width = w->image[2], inside = w->image[0] * w->image[1] * width, s = w->stride[2];
    for (int64_t c = 0; c < g->channels; c++, x += inside)
        for (int64_t a = 0; a < g->period[0]; a++)
            for (int64_t b = 0; b < g->period[1]; b++)
                for (int64_t e = 0; e < g->period[2]; e++) {
                    /* Column i of this phase is the image's column i * s + from: inside it from `first` to `last`. */
                    const int64_t from = e * w->dilation[2] % g->wrap - w->pad[2];
                    int64_t first = from < 0 ? (-from + s - 1) / s : 0;
                    int64_t last = width - from <= 0 ? 0 : (width - from + s - 1) / s;
                    if (last > g->pitch) last = g->pitch;
                    if (first > last) first = last;
                    for (int64_t p = 0; p < g->planes; p++)
                        for (int64_t r = 0; r < g->rows; r++, dst += g->pitch) {
                            const int64_t z = (od + p) * w->stride[0] + a * w->dilation[0] % w->stride[0] - w->pad[0];
                            const int64_t h = (oh + r) * w->stride[1] + b * w->dilation[1] % w->stride[1] - w->pad[1];
                            if (z < 0 || z >= w->image[0] || h < 0 || h >= w->image[1]) {
                                memset(dst, 0, (size_t)g->pitch * sizeof *dst);
                                continue;
                            }
                            const float *row = x + (z * w->image[1] + h) * width + from;
                            for (int64_t i = 0; i < first; i++) dst[i] = 0;
                            EV_FN(direct_row)(last - first, s, row + first * s, dst + first);
                            for (int64_t i = last; i < g->pitch; i++) dst[i] = 0;
                        }
                }
    memset(dst, 0, (size_t)(g->pitch + 2 * VW) * sizeof *dst); /* what the last row's taps and tiles read past it */
}

#undef V
#undef VU
#undef VW
