/* Interpolation: taps of coordinates, blends of corners, and the passes of a separable resize. See interpolate.pyx. */
#include "interpolate.h"

/* 2^29: coordinates are clipped to it, and taps outside are marked by it (three of them still fit 32 bits). */
#define EV_FAR 536870912

typedef float EV_FN(f4) __attribute__((vector_size(16), aligned(4), may_alias));

/* Points ---------------------------------------------------------------------------------------------------------- */

/* x[i] = where grid coordinate g[i * stride] in [-1, 1] lies among `size` elements. In two passes, so that no fused
 * multiply-add makes one instruction set round differently from another. */
static void EV_FN(interp_place_f32)(int64_t n, const float *g, int64_t stride, int64_t size, int align, float *x)
{
    const float last = (float)(size - 1), all = (float)size;
    if (align) {
        for (int64_t i = 0; i < n; i++) x[i] = (g[i * stride] + 1.0f) * 0.5f * last;
        return;
    }
    for (int64_t i = 0; i < n; i++) x[i] = (g[i * stride] + 1.0f) * all;
    __asm__ volatile("" ::: "memory");
    for (int64_t i = 0; i < n; i++) x[i] = (x[i] - 1.0f) * 0.5f;
}

static float EV_FN(mirror)(float x, float low, float high)
{
    const float width = high - low;
    if (!(width > 0)) return 0;
    const int below = x < low;
    const float away = below ? low - x : x - high;
    const float turns = floorf(away / width);
    const float rest = away - turns * width;
    const int even = fmodf(turns, 2.0f) == 0;
    return below == even ? low + rest : high - rest;
}

/* at[i] = the offset of the tap at index at[i] + shift, or -EV_FAR where it reads zero. */
static inline void EV_FN(tap_offsets)(const ev_axis *a, int64_t n, const int32_t *base, int32_t shift, int32_t *at)
{
    const int32_t size = a->size, stride = a->stride;
    switch (a->padding) {
    case EV_PAD_ZEROS:
        for (int64_t i = 0; i < n; i++) {
            const int32_t t = base[i] + shift;
            at[i] = (t >= 0) & (t < size) ? t * stride : -EV_FAR;
        }
        break;
    case EV_PAD_BORDER:
        for (int64_t i = 0; i < n; i++) {
            int32_t t = base[i] + shift;
            t = t < 0 ? 0 : t;
            at[i] = (t < size ? t : size - 1) * stride;
        }
        break;
    case EV_PAD_REFLECT:
        for (int64_t i = 0; i < n; i++) {
            int32_t t = base[i] + shift;
            if (t < 0 || t >= size) t = (int32_t)EV_FN(mirror)((float)t, a->low, a->high);
            t = t < 0 ? 0 : t;
            at[i] = (t < size ? t : size - 1) * stride;
        }
        break;
    default:
        for (int64_t i = 0; i < n; i++) {
            const int32_t t = base[i] + shift;
            at[i] = t < 0 ? -EV_FAR : (t < size ? t : size - 1) * stride;
        }
    }
}

/* The taps of n (at most EV_POINTS) coordinates x, which are overwritten: tap t of point i has offset
 * at[t * EV_POINTS + i] and weight w[t * EV_POINTS + i]. NaN is far below the first element. */
static void EV_FN(interp_taps_f32)(const ev_axis *a, int64_t n, float *x, int32_t *at, float *w)
{
    const float far = EV_FAR, low = a->low, high = a->high, last = (float)(a->size - 1);
    int32_t base[EV_POINTS];
    for (int64_t i = 0; i < n; i++) {
        const float v = x[i] > -far ? x[i] : -far;
        x[i] = v < far ? v : far;
    }
    if (a->taps == 1)
        for (int64_t i = 0; i < n; i++) x[i] = rintf(x[i]);
    if (a->padding == EV_PAD_BORDER) {
        for (int64_t i = 0; i < n; i++) {
            const float v = x[i] < 0 ? 0 : x[i];
            const float inside = v > last ? last : v;
            x[i] = (x[i] < low) | (x[i] > high) ? inside : x[i];
        }
    } else if (a->padding == EV_PAD_REFLECT) {
        for (int64_t i = 0; i < n; i++)
            if (x[i] < low || x[i] > high) x[i] = EV_FN(mirror)(x[i], low, high);
    } else if (a->padding == EV_PAD_REGION) {
        for (int64_t i = 0; i < n; i++) {
            const float v = x[i] < 0 ? 0 : x[i];
            const float inside = v > last ? last : v;
            x[i] = (x[i] < -1.0f) | (x[i] > last + 1.0f) ? -far : inside;
        }
    }
    for (int64_t i = 0; i < n; i++) {
        const float below = floorf(x[i]);
        base[i] = (int32_t)below;
        x[i] -= below;
    }
    switch (a->taps) {
    case 1:
        EV_FN(tap_offsets)(a, n, base, 0, at);
        for (int64_t i = 0; i < n; i++) w[i] = 1;
        break;
    case 2:
        EV_FN(tap_offsets)(a, n, base, 0, at);
        EV_FN(tap_offsets)(a, n, base, 1, at + EV_POINTS);
        for (int64_t i = 0; i < n; i++) {
            w[i] = 1.0f - x[i];
            w[EV_POINTS + i] = x[i];
        }
        break;
    default:
        for (int t = 0; t < 4; t++) EV_FN(tap_offsets)(a, n, base, t - 1, at + t * EV_POINTS);
        for (int64_t i = 0; i < n; i++) {
            /* Keys' filter with a = -0.75 at distances f + 1, f, 1 - f and 2 - f. */
            const float k = -0.75f, f = x[i], g = 1.0f - f;
            w[i] = ((k * (f + 1) - 5 * k) * (f + 1) + 8 * k) * (f + 1) - 4 * k;
            w[EV_POINTS + i] = ((k + 2) * f - (k + 3)) * f * f + 1;
            w[2 * EV_POINTS + i] = ((k + 2) * g - (k + 3)) * g * g + 1;
            w[3 * EV_POINTS + i] = ((k * (g + 1) - 5 * k) * (g + 1) + 8 * k) * (g + 1) - 4 * k;
        }
    }
}

/* The corners of n points, each a combination of one tap of every axis: offsets add, weights multiply.
 * at, w: the taps of axis 0, then of axis 1, ..., EV_MAX_TAPS * EV_POINTS apart. offset[c * EV_POINTS + i], weight
 * likewise; a corner with a tap outside gets offset `zero`. */
static void EV_FN(interp_corners_f32)(int axes, int taps, int64_t n, const int32_t *at, const float *w, int32_t zero,
                                      int32_t *offset, float *weight)
{
    int corners = taps;
    memcpy(offset, at, sizeof(int32_t) * (size_t)taps * EV_POINTS);
    memcpy(weight, w, sizeof(float) * (size_t)taps * EV_POINTS);
    for (int axis = 1; axis < axes; axis++) {
        at += EV_MAX_TAPS * EV_POINTS;
        w += EV_MAX_TAPS * EV_POINTS;
        /* From the last, so that each corner so far is read before it is overwritten. */
        for (int c = corners - 1; c >= 0; c--)
            for (int t = taps - 1; t >= 0; t--)
                for (int64_t i = 0; i < n; i++) {
                    offset[(c * taps + t) * EV_POINTS + i] = offset[c * EV_POINTS + i] + at[t * EV_POINTS + i];
                    weight[(c * taps + t) * EV_POINTS + i] = weight[c * EV_POINTS + i] * w[t * EV_POINTS + i];
                }
        corners *= taps;
    }
    for (int c = 0; c < corners; c++)
        for (int64_t i = 0; i < n; i++) {
            const int32_t o = offset[c * EV_POINTS + i];
            offset[c * EV_POINTS + i] = o < 0 ? zero : o;
        }
}

static inline __attribute__((always_inline)) void EV_FN(blend)(int64_t n, int corners, const float *x,
                                                               const int32_t *offset, const float *weight, float *y)
{
    const EV_FN(f4) *pixels = (const EV_FN(f4) *)x;
    for (int64_t i = 0; i < n; i++) {
        EV_FN(f4) sum = pixels[offset[i]] * weight[i];
        for (int c = 1; c < corners; c++) sum += pixels[offset[c * EV_POINTS + i]] * weight[c * EV_POINTS + i];
        ((EV_FN(f4) *)y)[i] = sum;
    }
}

/* y[i] = the sum over corners of weight * x[offset]; x and y have EV_LANES channels interleaved. */
static void EV_FN(interp_blend_f32)(int64_t n, int corners, const float *x, const int32_t *offset, const float *weight,
                                    float *y)
{
    switch (corners) {
    case 1: EV_FN(blend)(n, 1, x, offset, weight, y); break;
    case 2: EV_FN(blend)(n, 2, x, offset, weight, y); break;
    case 4: EV_FN(blend)(n, 4, x, offset, weight, y); break;
    case 8: EV_FN(blend)(n, 8, x, offset, weight, y); break;
    default: EV_FN(blend)(n, corners, x, offset, weight, y);
    }
}

/* y[i * EV_LANES + c] = x[c * stride + i] for c < channels, else 0. */
static void EV_FN(interp_pack_f32)(int64_t n, int channels, const float *x, int64_t stride, float *y)
{
    int64_t i = 0;
#ifdef __SSE2__
    if (channels == 4)
        for (; i + 4 <= n; i += 4) {
            __m128 a = _mm_loadu_ps(x + i), b = _mm_loadu_ps(x + stride + i);
            __m128 c = _mm_loadu_ps(x + 2 * stride + i), d = _mm_loadu_ps(x + 3 * stride + i);
            _MM_TRANSPOSE4_PS(a, b, c, d);
            _mm_storeu_ps(y + 4 * i, a);
            _mm_storeu_ps(y + 4 * i + 4, b);
            _mm_storeu_ps(y + 4 * i + 8, c);
            _mm_storeu_ps(y + 4 * i + 12, d);
        }
#endif
    for (; i < n; i++)
        for (int c = 0; c < EV_LANES; c++) y[i * EV_LANES + c] = c < channels ? x[c * stride + i] : 0;
}

/* y[c * stride + i] = x[i * EV_LANES + c] for c < channels. */
static void EV_FN(interp_unpack_f32)(int64_t n, int channels, const float *x, float *y, int64_t stride)
{
    int64_t i = 0;
#ifdef __SSE2__
    if (channels >= 3)
        for (; i + 4 <= n; i += 4) {
            __m128 a = _mm_loadu_ps(x + 4 * i), b = _mm_loadu_ps(x + 4 * i + 4);
            __m128 c = _mm_loadu_ps(x + 4 * i + 8), d = _mm_loadu_ps(x + 4 * i + 12);
            _MM_TRANSPOSE4_PS(a, b, c, d);
            _mm_storeu_ps(y + i, a);
            _mm_storeu_ps(y + stride + i, b);
            _mm_storeu_ps(y + 2 * stride + i, c);
            if (channels == 4) _mm_storeu_ps(y + 3 * stride + i, d);
        }
#endif
    for (; i < n; i++)
        for (int c = 0; c < channels; c++) y[c * stride + i] = x[i * EV_LANES + c];
}

/* Separable passes ------------------------------------------------------------------------------------------------ */

/* y[i] = the sum over k < taps of w[k] * row(k)[i]; row(k) is in slot (slot + k) % taps of a ring of rows. */
static void EV_FN(interp_rows_f32)(int64_t n, int64_t taps, const float *ring, int64_t slot, const float *w, float *y)
{
    for (int64_t k = 0; k < taps; k += 2) {
        const float *restrict a = ring + (slot + k) % taps * n;
        const float u = w[k];
        if (k + 1 == taps) {
            if (k == 0)
                for (int64_t i = 0; i < n; i++) y[i] = u * a[i];
            else
                for (int64_t i = 0; i < n; i++) y[i] += u * a[i];
            return;
        }
        const float *restrict b = ring + (slot + k + 1) % taps * n;
        const float v = w[k + 1];
        if (k == 0)
            for (int64_t i = 0; i < n; i++) y[i] = u * a[i] + v * b[i];
        else
            for (int64_t i = 0; i < n; i++) y[i] += u * a[i] + v * b[i];
    }
}

static inline float EV_FN(window)(int64_t taps, const float *x, const float *w)
{
    float sum = 0;
    int64_t k = 0;
    if (taps >= 4) {
        EV_FN(f4) part = {0, 0, 0, 0};
        for (; k + 4 <= taps; k += 4) part += *(const EV_FN(f4) *)(x + k) * *(const EV_FN(f4) *)(w + k);
        sum = (part[0] + part[1]) + (part[2] + part[3]);
    }
    for (; k < taps; k++) sum += x[k] * w[k];
    return sum;
}

/* One line resampled: y[o][j] = the sum over k < taps of w[o * taps + k] * x[first[o] + k][j], j < inner. */
static void EV_FN(interp_line_f32)(int64_t n, int64_t taps, int64_t inner, const float *x, const int64_t *first,
                                   const float *w, float *y)
{
    int64_t o = 0;
    if (inner == 1) {
#ifdef __SSE3__
        if (taps == 2)
            for (; o + 4 <= n; o += 4) {
                __m128 a = _mm_setzero_ps(), b = a;
                a = _mm_loadh_pi(_mm_loadl_pi(a, (const __m64 *)(x + first[o])), (const __m64 *)(x + first[o + 1]));
                b = _mm_loadh_pi(_mm_loadl_pi(b, (const __m64 *)(x + first[o + 2])), (const __m64 *)(x + first[o + 3]));
                a = _mm_mul_ps(a, _mm_loadu_ps(w + 2 * o));
                b = _mm_mul_ps(b, _mm_loadu_ps(w + 2 * o + 4));
                _mm_storeu_ps(y + o, _mm_hadd_ps(a, b));
            }
        if (taps == 4)
            for (; o + 4 <= n; o += 4) {
                __m128 p[4];
                for (int i = 0; i < 4; i++)
                    p[i] = _mm_mul_ps(_mm_loadu_ps(x + first[o + i]), _mm_loadu_ps(w + 4 * (o + i)));
                _mm_storeu_ps(y + o, _mm_hadd_ps(_mm_hadd_ps(p[0], p[1]), _mm_hadd_ps(p[2], p[3])));
            }
#endif
        for (; o < n; o++) y[o] = EV_FN(window)(taps, x + first[o], w + o * taps);
        return;
    }
    for (; o < n; o++)
        EV_FN(interp_rows_f32)(inner, taps, x + first[o] * inner, 0, w + o * taps, y + o * inner);
}
