/* Convolutions of bytes, channels last, by vpmaddwd. An image of int16 meets weights that are widened as they are read:
 * the sum of two products is exact. A quad of the image, broadcast, by four channels of weights gives two sums of each
 * channel, which are added up at the end; six positions by eight channels of these stay in registers. */

static void EV_FN(nhwc_has)(int *has)
{
    *has = EV_NHWC_WIDE;
}

#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")

/* Eight sums as integers of the result, in its bounds. there: how many are wanted; z: what is added to so many. */
static inline __attribute__((always_inline)) __m256i EV_FN(nhwc_round)(const ev_qfinish *f, __m256i sum, __m256 scale,
                                                                       int64_t there, const void *z)
{
    __m256 r = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale);
    char bytes[8] = {0};
    int done;
    if (!f->folds) {
        if (z) r = _mm256_add_ps(r, EV_FN(qf_residual)(f, there < 8 ? memcpy(bytes, z, (size_t)there) : z, 0));
        r = EV_FN(qf_activate)(f, r, &done);
    }
    if (f->range) {
        float seen[8];
        _mm256_storeu_ps(seen, f->folds ? _mm256_mul_ps(r, _mm256_set1_ps(f->unit)) : r);
        EV_FN(qf_note)(f->range, there < 8 ? there : 8, seen);
    }
    if (!f->folds) r = _mm256_mul_ps(r, _mm256_set1_ps(1.0f / f->unit));
    r = _mm256_max_ps(r, _mm256_set1_ps((float)(f->lo - f->zero)));
    r = _mm256_min_ps(r, _mm256_set1_ps((float)(f->hi - f->zero)));
    return _mm256_add_epi32(_mm256_cvtps_epi32(r), _mm256_set1_epi32(f->zero));
}

/* n results of a position, at most 32; as many sums and scales can be read. */
static inline __attribute__((always_inline)) void EV_FN(nhwc_finish)(const ev_qfinish *f, int64_t n, const int32_t *sum,
                                                                     const float *scale, const char *z, uint8_t *y)
{
    __m256i v[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    uint8_t some[32];
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++)
        if (n > 8 * q)
            v[q] = EV_FN(nhwc_round)(f, _mm256_loadu_si256((const __m256i *)(sum + 8 * q)), _mm256_loadu_ps(scale + 8 * q),
                                     n - 8 * q, z ? z + 8 * q : NULL);
    const __m256i low = _mm256_packs_epi32(v[0], v[1]), high = _mm256_packs_epi32(v[2], v[3]);
    __m256i b = f->type == EV_UINT8 ? _mm256_packus_epi16(low, high) : _mm256_packs_epi16(low, high);
    b = _mm256_permutevar8x32_epi32(b, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    if (n >= 32) {
        _mm256_storeu_si256((__m256i *)y, b);
    } else if (n == 16) {
        _mm_storeu_si128((__m128i *)y, _mm256_castsi256_si128(b));
    } else {
        _mm256_storeu_si256((__m256i *)some, b);
        memcpy(y, some, (size_t)n);
    }
}
#pragma GCC pop_options

typedef int64_t EV_FN(four) __attribute__((aligned(1), may_alias));

/* Eight channels of six positions; W's quads are `step` bytes apart. */
#define EV_POSITIONS(X) X(0) X(1) X(2) X(3) X(4) X(5)
static void EV_FN(nhwc_dots)(const ev_nhwc_conv *g, const int16_t *const *x, const int8_t *w, int64_t step,
                             const int32_t *add, int32_t *sum)
{
#define X(i)                      \
    const int16_t *x##i = x[i]; \
    __m256i p##i = _mm256_setzero_si256(), q##i = p##i;
    EV_POSITIONS(X)
#undef X
    const int32_t *offset = g->offset;
    for (int64_t left = g->segments; left > 0; left--, offset++)
        for (int64_t at = *offset, end = at + 4 * g->quads; at < end; at += 4, w += step) {
            const __m256i w0 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w));
            const __m256i w1 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + 16)));
#define X(i)                                                                                               \
    {                                                                                                      \
        __m256i s, t;                                                                                      \
        __asm__("vpbroadcastq %[x], %[t]\n\tvpmaddwd %[w0], %[t], %[s]\n\tvpmaddwd %[w1], %[t], %[t]\n\t"  \
                "vpaddd %[s], %[p], %[p]\n\tvpaddd %[t], %[q], %[q]"                                       \
                : [s] "=&x"(s), [t] "=&x"(t), [p] "+x"(p##i), [q] "+x"(q##i)                               \
                : [x] "m"(*(const EV_FN(four) *)(x##i + at)), [w0] "x"(w0), [w1] "x"(w1));                 \
    }
            EV_POSITIONS(X)
#undef X
        }
    const __m256i more = _mm256_loadu_si256((const __m256i *)add);
#define X(i) /* pairs of sums, of channels 0 1 4 5 2 3 6 7 */                                                    \
    _mm256_store_si256((__m256i *)(sum + i * EV_NHWC_NR),                                                        \
                       _mm256_add_epi32(more, _mm256_permute4x64_epi64(_mm256_hadd_epi32(p##i, q##i), 0xd8)));
    EV_POSITIONS(X)
#undef X
}
#undef EV_POSITIONS

static void EV_FN(nhwc_conv)(const ev_nhwc_conv *g, int64_t begin, int64_t end)
{
    enum { MR = 6 };
    int32_t sum[MR * EV_NHWC_NR] __attribute__((aligned(32)));
    const int16_t *x[MR];
    const int64_t lanes = (g->channels + EV_NHWC_VECTOR - 1) / EV_NHWC_VECTOR * EV_NHWC_VECTOR;
    float scale[EV_NHWC_NR] = {0};
    int64_t row = begin / g->width, column = begin % g->width;
    if (!g->wide) { /* planned for another table */
        ev_ukr_table__scalar.nhwc_conv(g, begin, end);
        return;
    }
    memcpy(scale, g->scale, (size_t)lanes * 4);
    for (int64_t p = begin; p < end; p += MR) {
        const int64_t n = end - p < MR ? end - p : MR;
        for (int64_t i = 0; i < MR; i++) { /* beyond the last, it again */
            x[i] = i < n ? (const int16_t *)g->x + row * g->row_step + column * g->step : x[n - 1];
            if (++column == g->width) column = 0, row++;
        }
        for (int64_t c = 0; c < g->channels; c += 8)
            EV_FN(nhwc_dots)(g, x, g->w + 4 * c, 4 * lanes, g->add + c, sum + c);
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = 0; c < g->channels; c += 32)
                EV_FN(nhwc_finish)(g->finish, g->channels - c, sum + i * EV_NHWC_NR + c, scale + c,
                                   g->z ? (const char *)g->z + (p + i) * g->ldz + c : NULL, g->y + (p + i) * g->ldy + c);
    }
}

/* Sixteen channels at a time: four taps are interleaved, and widened. */
static void EV_FN(nhwc_depthwise)(const ev_nhwc_depthwise *g, int64_t n)
{
    for (int64_t c = 0; c < g->channels; c += 16) {
        const int64_t part = g->channels - c < 16 ? g->channels - c : 16, lane = c / 4;
        int32_t sum[32] __attribute__((aligned(32))) = {0};
        float scale[32] = {0};
        __m128i add[4];
        for (int v = 0; v < 4; v++) {
            add[v] = _mm_loadu_si128((const __m128i *)(g->add + 16 * v + lane));
            memcpy(scale + 4 * v, g->scale + 16 * v + lane, 16);
        }
        for (int64_t i = 0; i < n; i++) {
            const uint8_t *x = g->x + i * g->step + c;
            const int8_t *w = g->w + 4 * lane;
            const int32_t *offset = g->offset;
            __m256i a0 = _mm256_setzero_si256(), a1 = a0, a2 = a0, a3 = a0;
            for (int64_t q = 0; q < g->quads; q++, w += 256, offset += 4) {
                __m128i t[4];
#pragma GCC unroll 4
                for (int k = 0; k < 4; k++) {
                    if (part == 16) {
                        t[k] = _mm_loadu_si128((const __m128i *)(x + offset[k]));
                    } else {
                        t[k] = _mm_setzero_si128();
                        memcpy(&t[k], x + offset[k], (size_t)part);
                    }
                }
                const __m128i low01 = _mm_unpacklo_epi8(t[0], t[1]), high01 = _mm_unpackhi_epi8(t[0], t[1]);
                const __m128i low23 = _mm_unpacklo_epi8(t[2], t[3]), high23 = _mm_unpackhi_epi8(t[2], t[3]);
#define DOT(sum, taps, v)                                                                                           \
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_cvtepu8_epi16(taps), _mm256_cvtepi8_epi16(_mm_loadu_si128( \
                                                                                  (const __m128i *)(w + 64 * v)))))
                DOT(a0, _mm_unpacklo_epi16(low01, low23), 0);
                DOT(a1, _mm_unpackhi_epi16(low01, low23), 1);
                DOT(a2, _mm_unpacklo_epi16(high01, high23), 2);
                DOT(a3, _mm_unpackhi_epi16(high01, high23), 3);
#undef DOT
            }
            const __m256i low = _mm256_permute4x64_epi64(_mm256_hadd_epi32(a0, a1), 0xd8);
            const __m256i high = _mm256_permute4x64_epi64(_mm256_hadd_epi32(a2, a3), 0xd8);
            _mm256_store_si256((__m256i *)sum, _mm256_add_epi32(low, _mm256_set_m128i(add[1], add[0])));
            _mm256_store_si256((__m256i *)(sum + 8), _mm256_add_epi32(high, _mm256_set_m128i(add[3], add[2])));
            EV_FN(nhwc_finish)(g->finish, part, sum, scale, NULL, g->y + i * g->y_step + c);
        }
    }
}
