/* Convolutions of bytes, channels last, by vpmaddwd: a pair of an image of int16, broadcast, by pairs of weights, which
 * are widened as they are read. Sums of two such products are exact; six positions by 16 channels stay in registers.
 * Weights that are proven to be small enough take vpmaddubsw: twice as many products, summed in 16 bits first. */

static void EV_FN(nhwc_has)(int *has)
{
    *has = EV_NHWC_WIDE;
}

#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")

/* Eight sums times their scales. there: how many are wanted; z: what is added to so many. */
static inline __attribute__((always_inline)) __m256 EV_FN(nhwc_real)(const ev_qfinish *f, __m256i sum, __m256 scale,
                                                                     int64_t there, const void *z)
{
    const __m256 r = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale);
    char bytes[8] = {0};
    if (f->folds || !z) return r;
    return _mm256_add_ps(r, EV_FN(qf_residual)(f, there < 8 ? memcpy(bytes, z, (size_t)there) : z, 0));
}

/* Of such numbers, activated, the integers of the result, in its bounds. */
static inline __attribute__((always_inline)) __m256i EV_FN(nhwc_whole)(const ev_qfinish *f, __m256 r, int64_t there)
{
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

/* n bytes, at most 32. */
static inline void EV_FN(nhwc_store)(uint8_t *y, __m256i x, int64_t n)
{
    __m128i b = _mm256_castsi256_si128(x);
    if (n >= 32) {
        _mm256_storeu_si256((__m256i *)y, x);
        return;
    }
    if (n & 16) {
        _mm_storeu_si128((__m128i *)y, b);
        y += 16, b = _mm256_extracti128_si256(x, 1);
    }
    if (n & 8) {
        _mm_storel_epi64((__m128i *)y, b);
        y += 8, b = _mm_srli_si128(b, 8);
    }
    if (n & 7) memcpy(y, &b, (size_t)(n & 7));
}

/* n results of a position, at most 32; as many sums and scales can be read. */
static inline __attribute__((always_inline)) void EV_FN(nhwc_finish)(const ev_qfinish *f, int64_t n, const int32_t *sum,
                                                                     const float *scale, const char *z, uint8_t *y)
{
    __m256i v[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    __m256 r[4];
    int done = 1;
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++)
        if (n > 8 * q) {
            r[q] = EV_FN(nhwc_real)(f, _mm256_loadu_si256((const __m256i *)(sum + 8 * q)), _mm256_loadu_ps(scale + 8 * q),
                                    n - 8 * q, z ? z + 8 * q : NULL);
            if (!f->folds) r[q] = EV_FN(qf_activate)(f, r[q], &done);
        }
    if (!done) { /* it takes a pass of its own */
        float real[32] = {0};
        memcpy(real, r, (size_t)(n < 32 ? (n + 7) / 8 * 8 : 32) * 4);
        EV_FN(unary_f32)(f->activation, n < 32 ? n : 32, real, real, f->a, f->b);
        memcpy(r, real, sizeof r);
    }
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++)
        if (n > 8 * q) v[q] = EV_FN(nhwc_whole)(f, r[q], n - 8 * q);
    const __m256i low = _mm256_packs_epi32(v[0], v[1]), high = _mm256_packs_epi32(v[2], v[3]);
    __m256i b = f->type == EV_UINT8 ? _mm256_packus_epi16(low, high) : _mm256_packs_epi16(low, high);
    b = _mm256_permutevar8x32_epi32(b, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    EV_FN(nhwc_store)(y, b, n);
}

/* Results of n positions whose activation is a clamp at most, from sums EV_NHWC_NR apart; adds: with a residual of
 * bytes; swish: which become HardSwish. What is constant stays in registers, which stores of bytes, that may be anything,
 * would have read anew. */
static inline __attribute__((always_inline)) void EV_FN(nhwc_clamped)(
    const ev_qfinish *f, int64_t n, int64_t channels, const int32_t *sum, const float *scale, const char *z, int64_t ldz,
    uint8_t *y, int64_t ldy, const int adds, const int swish)
{
    const int is_signed = f->type == EV_INT8;
    const __m256i zero = _mm256_set1_epi16((int16_t)f->zero);
    const __m256i lo = _mm256_set1_epi8((char)f->lo), hi = _mm256_set1_epi8((char)f->hi);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256 top = _mm256_set1_ps(65536.0f), inverse = _mm256_set1_ps(1.0f / f->unit);
    const __m256 sixth = _mm256_set1_ps(1.0f / 6.0f);
    const __m256 least = _mm256_set1_ps(f->activation == EV_ACT_RELU ? 0.0f : -INFINITY), z_scale = _mm256_set1_ps(f->z_scale);
    const int64_t flip = f->z_type == EV_INT8 ? (int64_t)0x8080808080808080u : 0; /* to uint8, 128 more */
    const __m256i z_zero = _mm256_set1_epi32(f->z_zero + (flip ? 128 : 0));
    for (int64_t c = 0; c < channels; c += 32) {
        const int64_t there = channels - c;
        for (int64_t i = 0; i < n; i++) {
            __m256i v[4] = {zero, zero, zero, zero};
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++)
                if (there > 8 * q) {
                    const int64_t at = c + 8 * q;
                    const __m256i s = _mm256_loadu_si256((const __m256i *)(sum + i * EV_NHWC_NR + at));
                    __m256 r = _mm256_mul_ps(_mm256_cvtepi32_ps(s), _mm256_loadu_ps(scale + at));
                    if (adds) {
                        int64_t b = 0;
                        if (there >= 8 * q + 8) memcpy(&b, z + i * ldz + at, 8);
                        else memcpy(&b, z + i * ldz + at, (size_t)(there - 8 * q));
                        const __m256i x = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(b ^ flip));
                        r = _mm256_add_ps(r, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(x, z_zero)), z_scale));
                        r = _mm256_mul_ps(_mm256_max_ps(r, least), inverse);
                    }
                    if (swish) { /* clamped as integers, which floats of one sign are ordered like */
                        const __m256i gate = (__m256i)_mm256_add_ps(_mm256_mul_ps(r, sixth), _mm256_set1_ps(0.5f));
                        const __m256i up = _mm256_max_epi32(gate, _mm256_setzero_si256());
                        r = _mm256_mul_ps(_mm256_mul_ps(r, (__m256)_mm256_min_epi32(up, (__m256i)_mm256_set1_ps(1.0f))), inverse);
                    }
                    v[q] = _mm256_cvtps_epi32(_mm256_min_ps(r, top)); /* what is below -2^31 becomes that */
                }
            const __m256i low = _mm256_adds_epi16(_mm256_packs_epi32(v[0], v[1]), zero);
            const __m256i high = _mm256_adds_epi16(_mm256_packs_epi32(v[2], v[3]), zero);
            __m256i b;
            if (is_signed) b = _mm256_min_epi8(_mm256_max_epi8(_mm256_packs_epi16(low, high), lo), hi);
            else b = _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(low, high), lo), hi);
            EV_FN(nhwc_store)(y + i * ldy + c, _mm256_permutevar8x32_epi32(b, order), there);
        }
    }
}

/* Results of n positions. */
static void EV_FN(nhwc_results)(const ev_qfinish *f, int64_t n, int64_t channels, const int32_t *sum, const float *scale,
                                const char *z, int64_t ldz, uint8_t *y, int64_t ldy)
{
    const int clamps = f->activation == EV_ACT_NONE || f->activation == EV_ACT_RELU;
    if (f->folds && !f->range) {
        EV_FN(nhwc_clamped)(f, n, channels, sum, scale, NULL, 0, y, ldy, 0, 0);
    } else if (!f->range && clamps && z && f->z_type != EV_INT16 && f->z_type != EV_FLOAT) {
        EV_FN(nhwc_clamped)(f, n, channels, sum, scale, z, ldz, y, ldy, 1, 0);
    } else if (!f->range && !z && f->activation == EV_ACT_HARD_SWISH) {
        EV_FN(nhwc_clamped)(f, n, channels, sum, scale, NULL, 0, y, ldy, 0, 1);
    } else {
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = 0; c < channels; c += 32)
                EV_FN(nhwc_finish)(f, channels - c, sum + i * EV_NHWC_NR + c, scale + c, z ? z + i * ldz + c : NULL,
                                   y + i * ldy + c);
    }
}
#pragma GCC pop_options

typedef int32_t EV_FN(pair) __attribute__((aligned(1), may_alias));

/* Sixteen channels of six positions; W's quads are `step` bytes apart. */
#define EV_POSITIONS(X) X(0) X(1) X(2) X(3) X(4) X(5)
#define EV_LEAVE(i)                                                   \
    _mm256_store_si256((__m256i *)(sum + i * EV_NHWC_NR), p##i);     \
    _mm256_store_si256((__m256i *)(sum + i * EV_NHWC_NR + 8), q##i);
static void EV_FN(nhwc_dots)(const ev_nhwc_conv *g, const int16_t *const *x, const int8_t *w, int64_t step,
                             const int32_t *add, int32_t *sum)
{
    const __m256i more0 = _mm256_loadu_si256((const __m256i *)add), more1 = _mm256_loadu_si256((const __m256i *)add + 1);
#define X(i)                    \
    const int16_t *x##i = x[i]; \
    __m256i p##i = more0, q##i = more1;
    EV_POSITIONS(X)
#undef X
    const int32_t *offset = g->offset;
    for (int64_t left = g->segments; left > 0; left--, offset++)
        for (int64_t at = *offset, end = at + 4 * g->quads; at < end; at += 4, w += step) {
#define X(i)                                                                                               \
    {                                                                                                      \
        __m256i s, t;                                                                                      \
        __asm__("vpbroadcastd %[x], %[t]\n\tvpmaddwd %[w0], %[t], %[s]\n\tvpmaddwd %[w1], %[t], %[t]\n\t"  \
                "vpaddd %[s], %[p], %[p]\n\tvpaddd %[t], %[q], %[q]"                                       \
                : [s] "=&x"(s), [t] "=&x"(t), [p] "+x"(p##i), [q] "+x"(q##i)                               \
                : [x] "m"(*(const EV_FN(pair) *)(x##i + at + K)), [w0] "x"(w0), [w1] "x"(w1));             \
    }
#define PAIR(k)                                                                                    \
    {                                                                                              \
        enum { K = k };                                                                            \
        const __m256i w0 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + 16 * k)));      \
        const __m256i w1 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + 16 * k + 16))); \
        EV_POSITIONS(X)                                                                            \
    }
            PAIR(0)
            PAIR(2)
#undef PAIR
#undef X
        }
    EV_POSITIONS(EV_LEAVE)
}

/* The same of bytes, for weights of which `presum` quads add up in 16 bits. */
static inline __attribute__((always_inline)) void EV_FN(nhwc_small_dots)(
    const ev_nhwc_conv *g, const uint8_t *const *x, const int8_t *w, int64_t step, const int32_t *add, int32_t *sum,
    const int presum)
{
    const __m256i more0 = _mm256_loadu_si256((const __m256i *)add), more1 = _mm256_loadu_si256((const __m256i *)add + 1);
    const __m256i one = _mm256_set1_epi16(1);
#define X(i)                    \
    const uint8_t *x##i = x[i]; \
    __m256i p##i = more0, q##i = more1;
    EV_POSITIONS(X)
#undef X
    const int32_t *offset = g->offset;
    for (int64_t left = g->segments; left > 0; left--, offset++)
        for (int64_t at = *offset, end = at + 4 * g->quads; at < end; at += 4 * presum, w += presum * step) {
#define DOT(x, k, half) \
    _mm256_maddubs_epi16(_mm256_set1_epi32(*(const EV_FN(pair) *)(x + at + 4 * k)), \
                         _mm256_loadu_si256((const __m256i *)(w + k * step) + half))
#define X(i)                                                              \
    {                                                                     \
        __m256i s = DOT(x##i, 0, 0), t = DOT(x##i, 0, 1);                 \
        if (presum > 1) {                                                 \
            s = _mm256_add_epi16(s, DOT(x##i, 1, 0));                     \
            t = _mm256_add_epi16(t, DOT(x##i, 1, 1));                     \
        }                                                                 \
        p##i = _mm256_add_epi32(p##i, _mm256_madd_epi16(s, one));         \
        q##i = _mm256_add_epi32(q##i, _mm256_madd_epi16(t, one));         \
    }
            EV_POSITIONS(X)
#undef X
#undef DOT
        }
    EV_POSITIONS(EV_LEAVE)
}
#undef EV_POSITIONS

static __attribute__((noinline)) void EV_FN(nhwc_dots_1)(const ev_nhwc_conv *g, const uint8_t *const *x, const int8_t *w,
                                                         int64_t step, const int32_t *add, int32_t *sum)
{
    EV_FN(nhwc_small_dots)(g, x, w, step, add, sum, 1);
}

static __attribute__((noinline)) void EV_FN(nhwc_dots_2)(const ev_nhwc_conv *g, const uint8_t *const *x, const int8_t *w,
                                                         int64_t step, const int32_t *add, int32_t *sum)
{
    EV_FN(nhwc_small_dots)(g, x, w, step, add, sum, 2);
}

static void EV_FN(nhwc_conv)(const ev_nhwc_conv *g, int64_t begin, int64_t end)
{
    enum { MR = 6 };
    int32_t sum[MR * EV_NHWC_NR] __attribute__((aligned(32)));
    const void *x[MR];
    const int64_t size = g->wide ? 2 : 1;
    const int64_t lanes = (g->channels + EV_NHWC_VECTOR - 1) / EV_NHWC_VECTOR * EV_NHWC_VECTOR;
    float scale[EV_NHWC_NR] = {0};
    int64_t row = begin / g->width, column = begin % g->width;
    if (!g->wide && !g->presum) { /* planned for another table */
        ev_ukr_table__scalar.nhwc_conv(g, begin, end);
        return;
    }
    memcpy(scale, g->scale, (size_t)lanes * 4);
    for (int64_t p = begin; p < end; p += MR) {
        const int64_t n = end - p < MR ? end - p : MR;
        for (int64_t i = 0; i < MR; i++) { /* beyond the last, it again */
            x[i] = i < n ? (const char *)g->x + (row * g->row_step + column * g->step) * size : x[n - 1];
            if (++column == g->width) column = 0, row++;
        }
        for (int64_t c = 0; c < g->channels; c += 16) {
            const int8_t *w = g->w + 4 * c;
            if (g->wide) EV_FN(nhwc_dots)(g, (const int16_t *const *)x, w, 4 * lanes, g->add + c, sum + c);
            else if (g->presum > 1) EV_FN(nhwc_dots_2)(g, (const uint8_t *const *)x, w, 4 * lanes, g->add + c, sum + c);
            else EV_FN(nhwc_dots_1)(g, (const uint8_t *const *)x, w, 4 * lanes, g->add + c, sum + c);
        }
        if (!g->finish) {
            int32_t *y = (int32_t *)g->y + p * g->ldy;
            for (int64_t i = 0; i < n; i++, y += g->ldy)
                for (int64_t c = 0; c < g->channels; c++) y[c] = sum[i * EV_NHWC_NR + c];
            continue;
        }
        EV_FN(nhwc_results)(g->finish, n, g->channels, sum, scale, g->z ? (const char *)g->z + p * g->ldz : NULL, g->ldz,
                            g->y + p * g->ldy, g->ldy);
    }
}

/* Sixteen numbers of two rows at a time, the last ones with some before them. */
static void EV_FN(nhwc_pairs)(int64_t n, const uint8_t *const *rows, int16_t *q)
{
    if (n < 16) {
        for (int64_t e = 0; e < n; e++)
            for (int r = 0; r < 2; r++) q[2 * e + r] = rows[r] ? rows[r][e] : 0;
        return;
    }
    for (int64_t i = 0; i < n; i += 16) {
        const int64_t e = i + 16 <= n ? i : n - 16;
        const __m128i a = rows[0] ? _mm_loadu_si128((const __m128i *)(rows[0] + e)) : _mm_setzero_si128();
        const __m128i b = rows[1] ? _mm_loadu_si128((const __m128i *)(rows[1] + e)) : _mm_setzero_si128();
        _mm256_storeu_si256((__m256i *)(q + 2 * e), _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b)));
        _mm256_storeu_si256((__m256i *)(q + 2 * e + 16), _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b)));
    }
}

/* The weights of eight channels as the pairs of rows meet them, 4 * EV_NHWC_NR bytes apart, and what is added to their
 * sums. */
static void EV_FN(nhwc_shifted)(const ev_nhwc_columns *g, int64_t c, int8_t *to, int32_t *add)
{
    const int64_t pairs = (g->kernel_h + 1) / 2, first = g->first;
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i total = _mm256_setzero_si256();
    for (int64_t group = 0; group < g->groups; group++) {
        const int64_t from = 2 * group + first, above = from >= 0 ? from / 2 : -((1 - from) / 2), left = g->rows - 2 * group;
        const int odd = (int)(from - 2 * above);
        const __m128i down = _mm_cvtsi32_si128(16 * odd), up = _mm_cvtsi32_si128(32 - 16 * odd);
        const __m256i there = _mm256_set1_epi32(left >= 2 ? -1 : left == 1 ? 0xffff : 0);
        const int8_t *w = g->w + above * g->kernel_w * g->w_step + 4 * c;
        for (int64_t j = 0; j < g->kernel_w; j++, w += g->w_step, to += 4 * EV_NHWC_NR) {
            __m256i v = _mm256_setzero_si256();
            if (above >= 0 && above < pairs) v = _mm256_srl_epi32(_mm256_loadu_si256((const __m256i *)w), down);
            if (above >= -1 && above + 1 < pairs) {
                const __m256i next = _mm256_loadu_si256((const __m256i *)(w + g->kernel_w * g->w_step));
                v = _mm256_or_si256(v, _mm256_sll_epi32(next, up));
            }
            v = _mm256_and_si256(v, there);
            total = _mm256_add_epi32(total, _mm256_madd_epi16(v, ones));
            _mm256_store_si256((__m256i *)to, v);
        }
    }
    total = _mm256_mullo_epi32(total, _mm256_set1_epi32(g->zero));
    _mm256_store_si256((__m256i *)add, _mm256_sub_epi32(_mm256_loadu_si256((const __m256i *)(g->add + c)), total));
}

/* Four results of sixteen channels. */
#define EV_RESULTS(X) X(0) X(1) X(2) X(3)
static void EV_FN(nhwc_four)(const uint8_t *const *x, const int64_t *offset, int64_t taps, const int8_t *w, const int32_t *add,
                             int32_t *sum)
{
    const __m256i add0 = _mm256_load_si256((const __m256i *)add), add1 = _mm256_load_si256((const __m256i *)add + 1);
#define X(i)                    \
    const uint8_t *x##i = x[i]; \
    __m256i p##i = add0, q##i = add1;
    EV_RESULTS(X)
#undef X
    for (int64_t t = 0; t < taps; t++, w += 4 * EV_NHWC_NR) {
        const __m256i w0 = _mm256_load_si256((const __m256i *)w), w1 = _mm256_load_si256((const __m256i *)w + 1);
        const int64_t at = offset[t];
#define X(i)                                                                                                  \
    p##i = _mm256_add_epi32(p##i, _mm256_madd_epi16(w0, _mm256_loadu_si256((const __m256i *)(x##i + at))));   \
    q##i = _mm256_add_epi32(q##i, _mm256_madd_epi16(w1, _mm256_loadu_si256((const __m256i *)(x##i + at) + 1)));
        EV_RESULTS(X)
#undef X
    }
    EV_RESULTS(EV_LEAVE)
}
#undef EV_LEAVE
#undef EV_RESULTS

static void EV_FN(nhwc_pair_columns)(const ev_nhwc_columns *g, int64_t n)
{
    enum { MR = 4, TOGETHER = 4 * MR };
    int8_t w[EV_NHWC_TAPS * 4 * EV_NHWC_NR] __attribute__((aligned(32)));
    int32_t sums[TOGETHER * EV_NHWC_NR] __attribute__((aligned(32))), add[EV_NHWC_NR] __attribute__((aligned(32)));
    int64_t offset[EV_NHWC_TAPS];
    const int64_t taps = g->groups * g->kernel_w, lanes = (g->channels + 15) / 16 * 16;
    for (int64_t t = 0; t < taps; t++) offset[t] = t / g->kernel_w * g->group_step + t % g->kernel_w * g->tap_step;
    for (int64_t c = 0; c < lanes; c += 8) EV_FN(nhwc_shifted)(g, c, w + 4 * c, add + c);
    for (int64_t p = 0; p < n; p += TOGETHER) {
        const int64_t some = n - p < TOGETHER ? n - p : TOGETHER;
        for (int64_t at = 0; at < some; at += MR)
            for (int64_t c = 0; c < lanes; c += 16) {
                const uint8_t *x[MR];
                for (int64_t i = 0; i < MR; i++) /* beyond the last, it again */
                    x[i] = g->q + (p + (at + i < some ? at + i : some - 1)) * g->step + 4 * c;
                EV_FN(nhwc_four)(x, offset, taps, w + 4 * c, add + c, sums + at * EV_NHWC_NR + c);
            }
        EV_FN(nhwc_results)(g->finish, some, g->channels, sums, g->scale, NULL, 0, g->y + p * g->y_step, g->y_step);
    }
}
