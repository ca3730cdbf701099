/* Interpolation: taps of coordinates, blends of corners, and the passes of a separable resize. See interpolate.pyx. */
#include "interpolate.h"

/* 2^29: coordinates are clipped to it, and taps outside are marked by it (the sum of three still fits 32 bits). */
#define EV_FAR 536870912

typedef float EV_FN(f4) __attribute__((vector_size(16), aligned(4), may_alias));
/* As many lanes as a register has: what is wider, GCC takes apart element by element. */
#ifdef __AVX2__
#define EV_WIDE 8
#else
#define EV_WIDE 4
#endif
typedef float EV_FN(fv) __attribute__((vector_size(4 * EV_WIDE), aligned(4), may_alias));
typedef int32_t EV_FN(iv) __attribute__((vector_size(4 * EV_WIDE), aligned(4), may_alias));
typedef uint32_t EV_FN(uv) __attribute__((vector_size(4 * EV_WIDE), aligned(4), may_alias));
#define EV_SELECT(type, mask, a, b) ((type)(((EV_FN(iv))(a) & (mask)) | ((EV_FN(iv))(b) & ~(mask))))
/* The larger and the smaller of a and b; b where a is NaN. */
#ifdef __AVX2__
#define EV_MAX(a, b) ((EV_FN(fv))_mm256_max_ps((__m256)(a), (__m256)(b)))
#define EV_MIN(a, b) ((EV_FN(fv))_mm256_min_ps((__m256)(a), (__m256)(b)))
#define EV_MIN_U(a, b) ((EV_FN(iv))_mm256_min_epu32((__m256i)(a), (__m256i)(b)))
#else
#define EV_MAX(a, b) EV_SELECT(EV_FN(fv), (a) > (b), a, b)
#define EV_MIN(a, b) EV_SELECT(EV_FN(fv), (a) < (b), a, b)
#define EV_MIN_U(a, b) EV_SELECT(EV_FN(iv), (EV_FN(iv))((EV_FN(uv))(a) < (EV_FN(uv))(b)), a, b)
#endif

/* Points: always whole blocks of EV_POINTS, so that there are no ends to treat ------------------------------------- */

/* x[i] = where grid coordinate g[i * stride] in [-1, 1] lies among `size` elements, i < n; the rest of the block is 0.
 * In two passes, so that no fused multiply-add makes one instruction set round differently from another. */
static void EV_FN(interp_place_f32)(int64_t n, const float *g, int64_t stride, int64_t size, int align, float *x)
{
    const float last = (float)(size - 1), all = (float)size;
    for (int64_t i = 0; i < n; i++) x[i] = (g[i * stride] + 1.0f) * (align ? 0.5f : all);
    for (int64_t i = n; i < EV_POINTS; i++) x[i] = 0;
    __asm__ volatile("" ::: "memory");
    if (align)
        for (int64_t i = 0; i < EV_POINTS; i++) x[i] *= last;
    else
        for (int64_t i = 0; i < EV_POINTS; i++) x[i] = (x[i] - 1.0f) * 0.5f;
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

/* at[i] = the offset of the tap at index at[i]. */
static void EV_FN(mirror_taps)(const ev_axis *a, int32_t *at)
{
    for (int i = 0; i < EV_POINTS; i++) {
        int32_t t = at[i];
        if (t < 0 || t >= a->size) t = (int32_t)EV_FN(mirror)((float)t, a->low, a->high);
        t = t < 0 ? 0 : t;
        at[i] = (t < a->size ? t : a->size - 1) * a->stride;
    }
}

static inline __attribute__((always_inline)) void EV_FN(taps)(const ev_axis *a, const int taps, const int padding,
                                                              const float *x, int32_t *at, float *w)
{
    const EV_FN(fv) zero = {0}, far = zero + EV_FAR, low = zero + a->low, high = zero + a->high;
    const EV_FN(fv) last = zero + (float)(a->size - 1), size_f = zero + (float)a->size;
    const EV_FN(iv) none = {0}, size = none + a->size, end = none + (a->size - 1), outside = none - EV_FAR;
    const EV_FN(iv) stride = none + a->stride;
    for (int i = 0; i < EV_POINTS; i += EV_WIDE) {
        EV_FN(fv) v = *(const EV_FN(fv) *)(x + i);
        EV_FN(iv) gone = none;
        if (padding == EV_PAD_REGION) {
            gone = (v < zero - 1.0f) | (v > size_f) | (v != v);
            v = EV_MIN(EV_MAX(v, zero), last);
        } else if (padding == EV_PAD_BORDER && taps == 2) {
            v = EV_MIN(EV_MAX(v, zero), last);
        } else if (padding != EV_PAD_REFLECT) {
            v = EV_MIN(EV_MAX(v, -far), far);
            if (taps == 1)
                for (int j = 0; j < EV_WIDE; j++) v[j] = rintf(v[j]);
            if (padding == EV_PAD_BORDER)
                v = EV_SELECT(EV_FN(fv), (v < low) | (v > high), EV_MIN(EV_MAX(v, zero), last), v);
        }
        EV_FN(iv) base = __builtin_convertvector(v, EV_FN(iv));
        if (!(padding == EV_PAD_REGION || (padding == EV_PAD_BORDER && taps == 2)))
            base += __builtin_convertvector(base, EV_FN(fv)) > v;
        const EV_FN(fv) f = v - __builtin_convertvector(base, EV_FN(fv)), g = 1.0f - f;
        if (taps == 2 && (padding == EV_PAD_REGION || padding == EV_PAD_BORDER)) {
            /* base is inside already; where it is the last element, so is the next. */
            EV_FN(iv) k = base * stride;
            EV_FN(iv) next = k + ((base < end) & stride);
            if (padding == EV_PAD_REGION) {
                k = EV_SELECT(EV_FN(iv), gone, outside, k);
                next = EV_SELECT(EV_FN(iv), gone, outside, next);
            }
            *(EV_FN(iv) *)(at + i) = k;
            *(EV_FN(iv) *)(at + EV_POINTS + i) = next;
        } else {
            for (int t = 0; t < taps; t++) {
                EV_FN(iv) k = base + (taps == 4 ? t - 1 : t);
                if (padding == EV_PAD_ZEROS)
                    k = EV_SELECT(EV_FN(iv), (k >= none) & (k < size), k * stride, outside);
                else if (padding == EV_PAD_BORDER)
                    k = EV_SELECT(EV_FN(iv), k > none, EV_SELECT(EV_FN(iv), k < end, k, end), none) * stride;
                *(EV_FN(iv) *)(at + t * EV_POINTS + i) = k;
            }
        }
        if (taps == 1) {
            *(EV_FN(fv) *)(w + i) = zero + 1.0f;
        } else if (taps == 2) {
            *(EV_FN(fv) *)(w + i) = g;
            *(EV_FN(fv) *)(w + EV_POINTS + i) = f;
        } else {
            /* Keys' filter with a = -0.75 at distances f + 1, f, g and g + 1. */
            const float q = -0.75f;
            *(EV_FN(fv) *)(w + i) = ((q * (f + 1) - 5 * q) * (f + 1) + 8 * q) * (f + 1) - 4 * q;
            *(EV_FN(fv) *)(w + EV_POINTS + i) = ((q + 2) * f - (q + 3)) * f * f + 1;
            *(EV_FN(fv) *)(w + 2 * EV_POINTS + i) = ((q + 2) * g - (q + 3)) * g * g + 1;
            *(EV_FN(fv) *)(w + 3 * EV_POINTS + i) = ((q * (g + 1) - 5 * q) * (g + 1) + 8 * q) * (g + 1) - 4 * q;
        }
    }
    if (padding == EV_PAD_REFLECT)
        for (int t = 0; t < taps; t++) EV_FN(mirror_taps)(a, at + t * EV_POINTS);
}

/* The taps of a block of coordinates x: tap t of point i has offset at[t * EV_POINTS + i] and weight
 * w[t * EV_POINTS + i]; a tap outside has a negative offset, near -EV_FAR. NaN is far below the first element. x is
 * overwritten. */
static void EV_FN(interp_taps_f32)(const ev_axis *a, float *x, int32_t *at, float *w)
{
    if (a->padding == EV_PAD_REFLECT)
        for (int i = 0; i < EV_POINTS; i++) {
            float v = x[i] > -EV_FAR ? x[i] : -EV_FAR;
            v = v < EV_FAR ? v : EV_FAR;
            v = a->taps == 1 ? rintf(v) : v;
            x[i] = v < a->low || v > a->high ? EV_FN(mirror)(v, a->low, a->high) : v;
        }
    switch (a->taps * 4 + a->padding) {
    case 4 + EV_PAD_ZEROS: EV_FN(taps)(a, 1, EV_PAD_ZEROS, x, at, w); break;
    case 4 + EV_PAD_BORDER: EV_FN(taps)(a, 1, EV_PAD_BORDER, x, at, w); break;
    case 4 + EV_PAD_REFLECT: EV_FN(taps)(a, 1, EV_PAD_REFLECT, x, at, w); break;
    case 8 + EV_PAD_ZEROS: EV_FN(taps)(a, 2, EV_PAD_ZEROS, x, at, w); break;
    case 8 + EV_PAD_BORDER: EV_FN(taps)(a, 2, EV_PAD_BORDER, x, at, w); break;
    case 8 + EV_PAD_REFLECT: EV_FN(taps)(a, 2, EV_PAD_REFLECT, x, at, w); break;
    case 8 + EV_PAD_REGION: EV_FN(taps)(a, 2, EV_PAD_REGION, x, at, w); break;
    case 16 + EV_PAD_ZEROS: EV_FN(taps)(a, 4, EV_PAD_ZEROS, x, at, w); break;
    case 16 + EV_PAD_BORDER: EV_FN(taps)(a, 4, EV_PAD_BORDER, x, at, w); break;
    case 16 + EV_PAD_REFLECT: EV_FN(taps)(a, 4, EV_PAD_REFLECT, x, at, w); break;
    }
}

static inline __attribute__((always_inline)) void EV_FN(corners)(const int axes, const int taps, const int32_t *at,
                                                                 const float *w, int32_t zero, uint32_t *offset,
                                                                 float *weight)
{
    const EV_FN(iv) zeros = (EV_FN(iv)){0} + zero;
    const int step = EV_MAX_TAPS * EV_POINTS, second = axes > 1 ? taps : 1, third = axes > 2 ? taps : 1;
    for (int i = 0; i < EV_POINTS; i += EV_WIDE) {
        uint32_t *to = offset + i;
        float *weigh = weight + i;
        for (int t = 0; t < taps; t++)
            for (int u = 0; u < second; u++)
                for (int v = 0; v < third; v++) {
                    EV_FN(iv) o = *(const EV_FN(iv) *)(at + t * EV_POINTS + i);
                    EV_FN(fv) p = *(const EV_FN(fv) *)(w + t * EV_POINTS + i);
                    if (axes > 1) {
                        o += *(const EV_FN(iv) *)(at + step + u * EV_POINTS + i);
                        p *= *(const EV_FN(fv) *)(w + step + u * EV_POINTS + i);
                    }
                    if (axes > 2) {
                        o += *(const EV_FN(iv) *)(at + 2 * step + v * EV_POINTS + i);
                        p *= *(const EV_FN(fv) *)(w + 2 * step + v * EV_POINTS + i);
                    }
                    /* Negative offsets are the largest without a sign. */
                    *(EV_FN(iv) *)to = EV_MIN_U(o, zeros);
                    *(EV_FN(fv) *)weigh = p;
                    to += EV_POINTS;
                    weigh += EV_POINTS;
                }
    }
}

/* The corners of a block of points, each a combination of one tap of every axis: offsets add, weights multiply.
 * at, w: the taps of axis 0, then of axis 1, ..., EV_MAX_TAPS * EV_POINTS apart. offset[c * EV_POINTS + i] and weight
 * likewise; a corner with a tap outside gets offset `zero`, which lies behind all others. */
static void EV_FN(interp_corners_f32)(int axes, int taps, const int32_t *at, const float *w, int32_t zero,
                                      uint32_t *offset, float *weight)
{
    if (axes == 2 && taps == 2)
        EV_FN(corners)(2, 2, at, w, zero, offset, weight);
    else if (axes == 3 && taps == 2)
        EV_FN(corners)(3, 2, at, w, zero, offset, weight);
    else
        EV_FN(corners)(axes, taps, at, w, zero, offset, weight);
}

static inline __attribute__((always_inline)) void EV_FN(blend)(int64_t n, int corners, const char *x,
                                                               const uint32_t *offset, const float *weight, float *y)
{
    for (int64_t i = 0; i < n; i++) {
        EV_FN(f4) sum = *(const EV_FN(f4) *)(x + offset[i]) * weight[i];
        for (int c = 1; c < corners; c++)
            sum += *(const EV_FN(f4) *)(x + offset[c * EV_POINTS + i]) * weight[c * EV_POINTS + i];
        ((EV_FN(f4) *)y)[i] = sum;
    }
}

/* y[i] = the sum over corners of weight * x[offset]; x and y have EV_LANES channels interleaved. */
static void EV_FN(interp_blend_f32)(int64_t n, int corners, const float *image, const uint32_t *offset,
                                    const float *weight, float *y)
{
    const char *x = (const char *)image;
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
