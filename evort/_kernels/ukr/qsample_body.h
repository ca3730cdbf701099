/* Quantized images resampled: lines of a grid, and colours through a table; after qelementwise_body.h. */

/* Interpolation ------------------------------------------------------------------------------------------------- */

/* One line resampled: y[o][j] = the sum over k < taps of w[o * taps + k] * x[first[o] + k][j], j < inner, added up in
 * the order of k. */
static void EV_FN(q_line_f32)(int64_t n, int64_t taps, int64_t inner, const float *restrict x, const int64_t *first,
                              const float *w, float *restrict y)
{
    if (inner == 1 && taps == 2) {
        int64_t o = 0;
#ifdef __SSE3__
        for (; o + 4 <= n; o += 4) {
            __m128 a = _mm_setzero_ps(), b = a;
            a = _mm_loadh_pi(_mm_loadl_pi(a, (const __m64 *)(x + first[o])), (const __m64 *)(x + first[o + 1]));
            b = _mm_loadh_pi(_mm_loadl_pi(b, (const __m64 *)(x + first[o + 2])), (const __m64 *)(x + first[o + 3]));
            _mm_storeu_ps(y + o, _mm_hadd_ps(_mm_mul_ps(a, _mm_loadu_ps(w + 2 * o)),
                                             _mm_mul_ps(b, _mm_loadu_ps(w + 2 * o + 4))));
        }
#endif
        for (; o < n; o++) {
            float p = x[first[o]] * w[2 * o], q = x[first[o] + 1] * w[2 * o + 1];
            EV_APART(p);
            EV_APART(q);
            y[o] = p + q;
        }
        return;
    }
    for (int64_t o = 0; o < n; o++)
        for (int64_t k = 0; k < taps; k++) {
            const float *a = x + (first[o] + k) * inner;
            const float u = w[o * taps + k];
            int64_t j = 0;
            for (; j + EV_EW <= inner; j += EV_EW) {
                EV_FN(ef) *sum = (EV_FN(ef) *)(y + o * inner + j), p = *(const EV_FN(ef) *)(a + j) * EV_FN(q_allf)(u);
                EV_APART(p);
                if (k) p = *sum + p;
                *sum = p;
            }
            for (; j < inner; j++) {
                float p = a[j] * u;
                EV_APART(p);
                y[o * inner + j] = k ? y[o * inner + j] + p : p;
            }
        }
}

typedef float EV_FN(q4) __attribute__((vector_size(16), aligned(4), may_alias));

/* n colours through a three-dimensional table of 4 interleaved channels: y[4 * i ..] is blended from the 8 corners
 * around place[a][index[a][i]] on every axis a (place[a][i] without an index). Axis by axis, from the last. */
static void EV_FN(q_colours)(int64_t n, const float *table, const ev_place *const *place, const uint8_t *const *index,
                             float *y)
{
    const char *t = (const char *)table;
    for (int64_t i = 0; i < n; i++) {
        const ev_place *p[3];
        for (int a = 0; a < 3; a++) p[a] = place[a] + (index ? index[a][i] : i);
        EV_FN(q4) v[8];
        for (int k = 0; k < 8; k++)
            v[k] = *(const EV_FN(q4) *)(t + (k & 4 ? p[0]->next : p[0]->at) + (k & 2 ? p[1]->next : p[1]->at) +
                                        (k & 1 ? p[2]->next : p[2]->at));
        for (int a = 2, m = 4; a >= 0; a--, m /= 2) {
            const EV_FN(q4) w = (EV_FN(q4)){0} + p[a]->part;
            for (int k = 0; k < m; k++) {
                EV_FN(q4) d = (v[2 * k + 1] - v[2 * k]) * w;
                EV_APART(d);
                v[k] = v[2 * k] + d;
            }
        }
        ((EV_FN(q4) *)y)[i] = v[0];
    }
}

/* Where x[i] / step lies among `size` elements `stride` bytes apart; beyond the borders it is the border, NaN the
 * first. */
static void EV_FN(q_places)(int64_t n, const float *x, float step, int64_t size, int64_t stride, ev_place *place)
{
    const float last = (float)(size - 1);
    for (int64_t i = 0; i < n; i++) {
        float v = x[i] / step;
        v = v > 0.0f ? v : 0.0f;
        v = v < last ? v : last;
        const int32_t below = (int32_t)v;
        place[i].at = below * (int32_t)stride;
        place[i].next = (below < size - 1 ? below + 1 : below) * (int32_t)stride;
        place[i].part = v - (float)below;
    }
}

#undef EV_QTYPES
#undef EV_QSIZE
