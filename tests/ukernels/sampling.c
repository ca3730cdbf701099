/* Images resampled at points of a grid and along lines, and colours looked up in a table. */
#include <float.h>
#include <math.h>

#include "check.h"

static const int64_t COUNTS[] = {1, 2, 3, 4, 5, 7, 8, 9, 17, 64};

void check_interp_place(void)
{
    EACH(n, COUNTS) for (int64_t stride = 1; stride < 4; stride++) for (int align = 0; align < 2; align++) {
        const int64_t n = COUNTS[n_], size = 13;
        float *g = floats((n - 1) * stride + 1), *x = guarded(EV_POINTS * 4);
        K->interp_place_f32(n, g, stride, size, align, x);
        for (int64_t i = 0; i < n; i++) { /* rounded after each operation */
            volatile float one = g[i * stride] + 1, scaled = one * (align ? 0.5f : (float)size), less = scaled - 1;
            if (!close_to("interp_place_f32", "", i, x[i], align ? scaled * (float)(size - 1) : less * 0.5f, 0)) return;
        }
        release_all();
    }
}

/* A coordinate between `low` and `high`, mirrored at either. */
static double mirrored(double x, double low, double high)
{
    if (!(high > low)) return 0;
    for (int turns = 0; turns < 100 && (x < low || x > high); turns++) x = x < low ? 2 * low - x : 2 * high - x;
    return x;
}

/* The index of a tap among `size` elements; -1: it is 0. */
static int64_t tap(const ev_axis *a, int64_t t)
{
    if (a->padding == EV_PAD_ZEROS) return t < 0 || t >= a->size ? -1 : t;
    if (a->padding == EV_PAD_REFLECT && (t < 0 || t >= a->size)) t = (int64_t)mirrored((double)t, a->low, a->high);
    return t < 0 ? 0 : t >= a->size ? a->size - 1 : t;
}

/* Keys' filter with a = -0.75. */
static double cubic(double d)
{
    d = fabs(d);
    return d <= 1 ? (1.25 * d - 2.25) * d * d + 1 : d < 2 ? ((-0.75 * d + 3.75) * d - 6) * d + 3 : 0;
}

/* Coordinates in eighths, so that they are exact however often they are mirrored. */
void check_interp_taps(void)
{
    static const int TAPS[] = {1, 2, 4};
    char what[64];
    EACH(t, TAPS) for (int padding = EV_PAD_ZEROS; padding <= EV_PAD_REGION; padding++)
    for (int size = 1; size < 12; size += 5)
        for (int align = 0; align < 2; align++) {
            const int taps = TAPS[t_];
            if (padding == EV_PAD_REGION && taps != 2) continue;
            const ev_axis a = {size, 4, taps, padding, align ? 0 : -0.5f, (float)size - (align ? 1 : 0.5f)};
            float *x = guarded(EV_POINTS * 4), *given = guarded(EV_POINTS * 4);
            float *w = guarded((size_t)taps * EV_POINTS * 4);
            int32_t *at = guarded((size_t)taps * EV_POINTS * 4);
            for (int i = 0; i < EV_POINTS; i++) x[i] = given[i] = (float)((int)(random_bits() % (unsigned)(8 * (size + 8))) - 32) / 8;
            if (padding != EV_PAD_REFLECT) x[5] = given[5] = NAN, x[6] = given[6] = INFINITY, x[7] = given[7] = -1e20f;
            K->interp_taps_f32(&a, x, at, w);
            snprintf(what, sizeof what, "%d taps, padding %d, size %d, align %d", taps, padding, size, align);
            for (int i = 0; i < EV_POINTS; i++) {
                double v = isnan(given[i]) ? -1e9 : fmin(fmax(given[i], -1e9), 1e9);
                const int gone = padding == EV_PAD_REGION && !(v >= -1 && v <= size);
                if (taps == 1 && padding != EV_PAD_REGION) v = rint(v);
                if (padding == EV_PAD_REFLECT) v = v < a.low || v > a.high ? mirrored(v, a.low, a.high) : v;
                if (padding == EV_PAD_REGION || (padding == EV_PAD_BORDER && (taps == 2 || v < a.low || v > a.high)))
                    v = fmin(fmax(v, 0), size - 1);
                const double base = floor(v), f = v - base;
                for (int k = 0; k < taps; k++) {
                    const int64_t index = gone ? -1 : tap(&a, (int64_t)base + (taps == 4 ? k - 1 : k));
                    const double weight = taps == 1 ? 1 : taps == 2 ? (k ? f : 1 - f) : cubic(f - (k - 1));
                    const int32_t got = at[k * EV_POINTS + i];
                    if (!same_i32("interp_taps_f32", what, i, got < 0 ? -1 : got, index < 0 ? -1 : index * 4)) return;
                    /* of a point outside weights mean nothing; a cubic one is off by a few roundings of at most 6 */
                    if (index >= 0 && fabs(v) < 1e6 &&
                        !close_to("interp_taps_f32", what, i, w[k * EV_POINTS + i], weight,
                                  taps == 4 ? 24 * FLT_EPSILON : 0))
                        return;
                }
            }
            release_all();
        }
}

void check_interp_corners(void)
{
    static const int TAPS[] = {1, 2, 4};
    enum { ZERO = 1000000, FAR = -536870912 };
    EACH(t, TAPS) for (int axes = 1; axes <= 3; axes++) {
        const int taps = TAPS[t_], step = EV_MAX_TAPS * EV_POINTS;
        const int second = axes > 1 ? taps : 1, third = axes > 2 ? taps : 1, corners = taps * second * third;
        int32_t *at = guarded((size_t)(axes * step) * 4);
        float *w = floats(axes * step), *weight = guarded((size_t)(corners * EV_POINTS) * 4);
        uint32_t *offset = guarded((size_t)(corners * EV_POINTS) * 4);
        for (int i = 0; i < axes * step; i++) at[i] = random_bits() % 8 ? (int32_t)(random_bits() % 1000) : FAR;
        K->interp_corners_f32(axes, taps, at, w, ZERO, offset, weight);
        for (int c = 0; c < corners; c++) for (int i = 0; i < EV_POINTS; i++) {
            const int tap[3] = {c / third / second, c / third % second, c % third};
            volatile float product = w[tap[0] * EV_POINTS + i];
            int64_t sum = at[tap[0] * EV_POINTS + i];
            for (int a = 1; a < axes; a++)
                product *= w[a * step + tap[a] * EV_POINTS + i], sum += at[a * step + tap[a] * EV_POINTS + i];
            if (!same_i32("interp_corners_f32", "", i, (int32_t)offset[c * EV_POINTS + i], sum < 0 ? ZERO : sum) ||
                !close_to("interp_corners_f32", "", i, weight[c * EV_POINTS + i], product, 0))
                return;
        }
        release_all();
    }
}

void check_interp_blend(void)
{
    static const int CORNERS[] = {1, 2, 4, 8, 16, 64};
    enum { PIXELS = 50 };
    EACH(c, CORNERS) EACH(n, COUNTS) {
        const int64_t n = COUNTS[n_];
        const int corners = CORNERS[c_];
        float *x = floats(PIXELS * EV_LANES), *weight = floats(corners * EV_POINTS),
            *y = guarded((size_t)n * EV_LANES * 4);
        uint32_t *offset = guarded((size_t)(corners * EV_POINTS) * 4);
        for (int i = 0; i < corners * EV_POINTS; i++) offset[i] = random_bits() % PIXELS * EV_LANES * 4;
        K->interp_blend_f32(n, corners, x, offset, weight, y);
        for (int64_t i = 0; i < n * EV_LANES; i++) {
            double want = 0, size = 0;
            for (int k = 0; k < corners; k++) {
                const int64_t at = k * EV_POINTS + i / EV_LANES;
                const double p = (double)x[offset[at] / 4 + i % EV_LANES] * weight[at];
                want += p, size += fabs(p);
            }
            if (!near("interp_blend_f32", "", i, y[i], want, size, corners)) return;
        }
        release_all();
    }
}

void check_interp_pack(void)
{
    EACH(n, COUNTS) for (int channels = 1; channels <= EV_LANES; channels++) {
        const int64_t n = COUNTS[n_], stride = n + 3, size = (channels - 1) * stride + n;
        float *x = floats(size), *y = guarded((size_t)n * EV_LANES * 4), *z = floats(size);
        K->interp_pack_f32(n, channels, x, stride, y);
        for (int64_t i = 0; i < n * EV_LANES; i++)
            if (!close_to("interp_pack_f32", "", i, y[i],
                          i % EV_LANES < channels ? x[i % EV_LANES * stride + i / EV_LANES] : 0, 0))
                return;
        memcpy(x, z, (size_t)size * 4);
        K->interp_unpack_f32(n, channels, y, z, stride);
        for (int64_t i = 0; i < size; i++) /* between the channels nothing is written */
            if (!close_to("interp_unpack_f32", "", i, z[i],
                          i % stride < n ? y[i % stride * EV_LANES + i / stride] : x[i], 0)) return;
        release_all();
    }
}

/* Rows of a ring, and lines; of quantized images in the order of taps, each operation rounded by itself. */
void check_interp_lines(void)
{
    enum { MOST = 9 };
    EACH(n, COUNTS) for (int64_t taps = 1; taps < MOST; taps++) {
        const int64_t n = COUNTS[n_], slot = n % taps;
        float *ring = floats(taps * n), *w = floats(taps), *y = guarded((size_t)n * 4);
        K->interp_rows_f32(n, taps, ring, slot, w, y);
        for (int64_t i = 0; i < n; i++) {
            double want = 0, size = 0;
            for (int64_t k = 0; k < taps; k++) {
                const double p = (double)w[k] * ring[(slot + k) % taps * n + i];
                want += p, size += fabs(p);
            }
            if (!near("interp_rows_f32", "", i, y[i], want, size, taps)) return;
        }
        release_all();
        for (int64_t inner = 1; inner < 20; inner += 6) {
            float *x = floats(MOST * inner), *v = floats(n * taps), *line = guarded((size_t)(n * inner) * 4);
            float *apart = guarded((size_t)(n * inner) * 4);
            int64_t *first = guarded((size_t)n * 8);
            for (int64_t o = 0; o < n; o++) first[o] = (int64_t)(random_bits() % (unsigned)(MOST - taps + 1));
            K->interp_line_f32(n, taps, inner, x, first, v, line);
            K->q_line_f32(n, taps, inner, x, first, v, apart);
            for (int64_t i = 0; i < n * inner; i++) {
                double want = 0, size = 0;
                volatile float exact = 0;
                for (int64_t k = 0; k < taps; k++) {
                    const int64_t o = i / inner;
                    volatile float q = v[o * taps + k] * x[(first[o] + k) * inner + i % inner];
                    const double p = (double)v[o * taps + k] * x[(first[o] + k) * inner + i % inner];
                    want += p, size += fabs(p), exact = k ? exact + q : q;
                }
                if (!near("interp_line_f32", "", i, line[i], want, size, taps) ||
                    !close_to("q_line_f32", "", i, apart[i], exact, 0))
                    return;
            }
            release_all();
        }
    }
}

/* Each operation rounded by itself. */
void check_colours(void)
{
    enum { SIDE = 5 };
    EACH(n, COUNTS) for (int indexed = 0; indexed < 2; indexed++) {
        const int64_t n = COUNTS[n_];
        float *table = floats(SIDE * SIDE * SIDE * 4), *y = guarded((size_t)n * 16);
        const ev_place *place[3];
        const uint8_t *index[3];
        for (int a = 0; a < 3; a++) {
            const int64_t places = indexed ? 256 : n, stride = a == 0 ? SIDE * SIDE * 16 : a == 1 ? SIDE * 16 : 16;
            float *x = floats(places);
            ev_place *p = guarded((size_t)places * sizeof *p);
            uint8_t *which = guarded((size_t)n);
            for (int64_t i = 0; i < places; i++) x[i] *= 3;
            x[0] = NAN;
            if (n > 1) x[1] = INFINITY;
            K->q_places(places, x, 0.5f, SIDE, stride, p);
            for (int64_t i = 0; i < places; i++) {
                volatile float v = x[i] / 0.5f;
                v = v > 0 ? v : 0, v = v < SIDE - 1 ? v : SIDE - 1;
                const int32_t below = (int32_t)v;
                if (!same_i32("q_places", "at", i, p[i].at, below * stride) ||
                    !same_i32("q_places", "next", i, p[i].next, (below < SIDE - 1 ? below + 1 : below) * stride) ||
                    !close_to("q_places", "part", i, p[i].part, v - (float)below, 0))
                    return;
            }
            for (int64_t i = 0; i < n; i++) which[i] = (uint8_t)random_bits();
            place[a] = p, index[a] = which;
        }
        K->q_colours(n, table, place, indexed ? index : NULL, y);
        for (int64_t i = 0; i < n * 4; i++) {
            volatile float v[8];
            const ev_place *p[3];
            for (int a = 0; a < 3; a++) p[a] = place[a] + (indexed ? index[a][i / 4] : i / 4);
            for (int k = 0; k < 8; k++)
                v[k] = table[((k & 4 ? p[0]->next : p[0]->at) + (k & 2 ? p[1]->next : p[1]->at) + (k & 1 ? p[2]->next : p[2]->at)) / 4 + i % 4];
            for (int a = 2, m = 4; a >= 0; a--, m /= 2)
                for (int k = 0; k < m; k++) {
                    volatile float d = v[2 * k + 1] - v[2 * k], e = d * p[a]->part;
                    v[k] = v[2 * k] + e;
                }
            if (!close_to("q_colours", "", i, y[i], v[0], 0)) return;
        }
        release_all();
    }
}
