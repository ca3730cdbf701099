/* Convolutions of integers, after the sums: what becomes of them on their way to the result (ev_qfinish of qconv.h). */

/* After the sums --------------------------------------------------------------------------------------------------- */

#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")

/* sum[j] -= factor * column[j]. */
static void EV_FN(qc_shift)(int64_t n, int32_t factor, const int32_t *column, int32_t *sum)
{
    for (int64_t j = 0; j < n; j++) sum[j] -= factor * column[j];
}

/* to[j] = x_scale * scales[j] / unit. */
static void EV_FN(qc_scales)(int64_t n, float x_scale, const float *restrict scales, float unit, float *restrict to)
{
    for (int64_t j = 0; j < n; j++) to[j] = x_scale * scales[j] / unit;
}

/* n results, quantized as bytes from r (n <= 256 elements). */
static void EV_FN(qf_store)(const ev_qfinish *f, int64_t n, const float *r, void *y)
{
    const float least = (float)(f->lo - f->zero), most = (float)(f->hi - f->zero);
    const int32_t zero = f->zero;
    if (f->type == EV_INT16) {
        int16_t *to = y;
        for (int64_t j = 0; j < n; j++) to[j] = (int16_t)(EV_FN(quantized)(r[j], least, most) + zero);
    } else {
        uint8_t *to = y;
        for (int64_t j = 0; j < n; j++) to[j] = (uint8_t)(EV_FN(quantized)(r[j], least, most) + zero);
    }
}

/* Notes the range of n numbers. */
static void EV_FN(qf_note)(float *range, int64_t n, const float *r)
{
    float lo = INFINITY, hi = -INFINITY;
    for (int64_t j = 0; j < n; j++) {
        lo = r[j] < lo ? r[j] : lo;
        hi = r[j] > hi ? r[j] : hi;
    }
    ev_widen(range, lo, hi);
}

#if defined(__AVX2__)
/* Eight numbers of a residual as they are added. */
static inline __m256 EV_FN(qf_residual)(const ev_qfinish *f, const void *z, int64_t i)
{
    if (f->z_type == EV_FLOAT) return _mm256_loadu_ps((const float *)z + i);
    const __m128i *at = (const __m128i *)((const char *)z + (f->z_type == EV_INT16 ? 2 * i : i));
    const __m256i x = f->z_type == EV_UINT8  ? _mm256_cvtepu8_epi32(_mm_loadl_epi64(at))
                      : f->z_type == EV_INT8 ? _mm256_cvtepi8_epi32(_mm_loadl_epi64(at))
                                             : _mm256_cvtepi16_epi32(_mm_loadu_si128(at));
    const __m256 centred = _mm256_cvtepi32_ps(_mm256_sub_epi32(x, _mm256_set1_epi32(f->z_zero)));
    return _mm256_mul_ps(centred, _mm256_set1_ps(f->z_scale));
}

/* Activations that are a few instructions, on eight numbers; *done is whether this is one. NaN stays NaN. */
static inline __m256 EV_FN(qf_activate)(const ev_qfinish *f, __m256 x, int *done)
{
    const __m256 none = _mm256_setzero_ps(), one = _mm256_set1_ps(1.0f), a = _mm256_set1_ps(f->a);
    *done = 1;
    switch (f->activation) {
    case EV_ACT_NONE: return x;
    case EV_ACT_RELU: return _mm256_max_ps(none, x); /* NaN: the second operand */
    case EV_ACT_LEAKY_RELU: return _mm256_blendv_ps(x, _mm256_mul_ps(a, x), _mm256_cmp_ps(x, none, _CMP_LT_OQ));
    case EV_ACT_HARD_SIGMOID:
        return _mm256_min_ps(one, _mm256_max_ps(none, _mm256_add_ps(_mm256_mul_ps(a, x), _mm256_set1_ps(f->b))));
    case EV_ACT_HARD_SWISH: {
        const __m256 y = _mm256_add_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.0f / 6.0f)), _mm256_set1_ps(0.5f));
        return _mm256_mul_ps(x, _mm256_min_ps(one, _mm256_max_ps(none, y)));
    }
    default: *done = 0; return x;
    }
}

/* Of eight lanes, those below n. */
static inline __m256i EV_FN(qf_there)(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* Bytes with a residual or an activation, or float32. Up to 31 sums more than n are read. */
static void EV_FN(qf_chain)(const ev_qfinish *f, int64_t n, const int32_t *sum, int32_t add, float scale, const void *z,
                            uint8_t *y)
{
    enum { BLOCK = 256 };
    float *real = f->type == EV_FLOAT ? (float *)(void *)y : NULL;
    const int64_t z_size = f->z_type == EV_FLOAT ? 4 : f->z_type == EV_INT16 ? 2 : 1;
    const __m256i add8 = _mm256_set1_epi32(add), zero = _mm256_set1_epi32(f->zero);
    const __m256 scale8 = _mm256_set1_ps(scale), inverse = _mm256_set1_ps(1.0f / f->unit);
    const __m256 least = _mm256_set1_ps((float)(f->lo - f->zero)), most = _mm256_set1_ps((float)(f->hi - f->zero));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256 seen[2] = {_mm256_set1_ps(INFINITY), _mm256_set1_ps(-INFINITY)};
    for (int64_t j = 0; j < n; j += BLOCK) {
        const int64_t m = n - j < BLOCK ? n - j : BLOCK;
        float buf[BLOCK];
        char rest[32 * 4];
        int done = 1;
        for (int pass = 0; pass < 2 - done; pass++) {
            if (pass) EV_FN(unary_f32)(f->activation, m, buf, buf, f->a, f->b);
            for (int64_t i = 0; i < m; i += 32) {
                __m256i v[4];
                const char *from = (const char *)z + (j + i) * z_size;
                if (z && m - i < 32) {
                    memset(rest, 0, sizeof rest);
                    from = memcpy(rest, from, (size_t)((m - i) * z_size));
                }
#pragma GCC unroll 4
                for (int q = 0; q < 4; q++) {
                    __m256 r;
                    if (pass) {
                        r = _mm256_loadu_ps(buf + i + 8 * q);
                    } else {
                        const __m256i s = _mm256_loadu_si256((const __m256i *)(sum + j + i + 8 * q));
                        r = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(s, add8)), scale8);
                        if (z) r = _mm256_add_ps(r, EV_FN(qf_residual)(f, from, 8 * q));
                        r = EV_FN(qf_activate)(f, r, &done);
                        if (!done) _mm256_storeu_ps(buf + i + 8 * q, r);
                    }
                    if (f->range && (pass || done)) { /* of those that are there; NaN: the second operand */
                        const __m256 there = (__m256)EV_FN(qf_there)(m - i - 8 * q);
                        seen[0] = _mm256_min_ps(_mm256_blendv_ps(seen[0], r, there), seen[0]);
                        seen[1] = _mm256_max_ps(_mm256_blendv_ps(seen[1], r, there), seen[1]);
                    }
                    if (real) {
                        if (m - i >= 32) _mm256_storeu_ps(real + j + i + 8 * q, r);
                        else _mm256_maskstore_ps(real + j + i + 8 * q, EV_FN(qf_there)(m - i - 8 * q), r);
                        continue;
                    }
                    r = _mm256_min_ps(_mm256_max_ps(_mm256_mul_ps(r, inverse), least), most); /* NaN: the second */
                    v[q] = _mm256_add_epi32(_mm256_cvtps_epi32(r), zero);
                }
                if (real || (!done && !pass)) continue;
                const __m256i low = _mm256_packs_epi32(v[0], v[1]), high = _mm256_packs_epi32(v[2], v[3]);
                __m256i b = f->type == EV_UINT8 ? _mm256_packus_epi16(low, high) : _mm256_packs_epi16(low, high);
                b = _mm256_permutevar8x32_epi32(b, order);
                if (m - i >= 32) _mm256_storeu_si256((__m256i *)(y + j + i), b);
                else {
                    uint8_t some[32];
                    _mm256_storeu_si256((__m256i *)some, b);
                    memcpy(y + j + i, some, (size_t)(m - i));
                }
            }
        }
    }
    if (f->range) {
        __m128 lo = _mm_min_ps(_mm256_castps256_ps128(seen[0]), _mm256_extractf128_ps(seen[0], 1));
        __m128 hi = _mm_max_ps(_mm256_castps256_ps128(seen[1]), _mm256_extractf128_ps(seen[1], 1));
        lo = _mm_min_ps(lo, _mm_movehl_ps(lo, lo));
        hi = _mm_max_ps(hi, _mm_movehl_ps(hi, hi));
        ev_widen(f->range, _mm_cvtss_f32(_mm_min_ss(lo, _mm_movehdup_ps(lo))),
                 _mm_cvtss_f32(_mm_max_ss(hi, _mm_movehdup_ps(hi))));
    }
}
#endif

/* Notes the range of n results that are one product each: that of the sums. */
static void EV_FN(qf_note_sums)(const ev_qfinish *f, int64_t n, const int32_t *sum, const int64_t *wide, int64_t add,
                                float scale)
{
    int64_t lo, hi;
    if (wide) {
        lo = hi = wide[0];
        for (int64_t j = 1; j < n; j++) {
            lo = wide[j] < lo ? wide[j] : lo;
            hi = wide[j] > hi ? wide[j] : hi;
        }
    } else {
        int32_t low = sum[0], high = sum[0];
        for (int64_t j = 1; j < n; j++) {
            low = sum[j] < low ? sum[j] : low;
            high = sum[j] > high ? sum[j] : high;
        }
        lo = low, hi = high;
    }
    const float unit = scale * f->unit;
    ev_widen(f->range, (float)(lo + add) * unit, (float)(hi + add) * unit);
}

#if defined(__AVX2__)
/* Eight sums times scale, rounded; too large ones stay below 2^31. */
#define EV_QF_EIGHT(t) \
    _mm256_cvtps_epi32(_mm256_min_ps(top, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(t, add8)), scale8)))

/* Bytes where one product does. Up to 31 sums more than n are read. seen: NULL, or [smallest, largest] of the sums,
 * eight each. */
static inline __attribute__((always_inline)) void EV_FN(qf_fold_noting)(const ev_qfinish *f, int64_t n,
                                                                        const int32_t *sum, int32_t add, float scale,
                                                                        uint8_t *y, __m256i *seen)
{
    const __m256i add8 = _mm256_set1_epi32(add), zero = _mm256_set1_epi16((int16_t)f->zero);
    const __m256 scale8 = _mm256_set1_ps(scale), top = _mm256_set1_ps(65536.0f);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i lo = _mm256_set1_epi8((char)f->lo), hi = _mm256_set1_epi8((char)f->hi);
    for (int64_t j = 0; j < n; j += 32, sum += 32) {
        const __m256i *s = (const __m256i *)sum;
        const __m256i s0 = _mm256_loadu_si256(s), s1 = _mm256_loadu_si256(s + 1);
        const __m256i s2 = _mm256_loadu_si256(s + 2), s3 = _mm256_loadu_si256(s + 3);
        if (seen && n - j >= 32) {
            const __m256i low = _mm256_min_epi32(_mm256_min_epi32(s0, s1), _mm256_min_epi32(s2, s3));
            const __m256i high = _mm256_max_epi32(_mm256_max_epi32(s0, s1), _mm256_max_epi32(s2, s3));
            seen[0] = _mm256_min_epi32(seen[0], low);
            seen[1] = _mm256_max_epi32(seen[1], high);
        } else if (seen) { /* those that are there; a first sum stands for the others */
            const __m256i some[4] = {s0, s1, s2, s3}, first = _mm256_set1_epi32(sum[0]);
            const __m256i at = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++) {
                const __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n - j - 8 * q)), at);
                const __m256i s8 = _mm256_blendv_epi8(first, some[q], there);
                seen[0] = _mm256_min_epi32(seen[0], s8);
                seen[1] = _mm256_max_epi32(seen[1], s8);
            }
        }
        /* Saturated to int16 and then to the result's type, in the order 0-3 8-11 16-19 24-27 | 4-7 ... */
        const __m256i u = _mm256_adds_epi16(_mm256_packs_epi32(EV_QF_EIGHT(s0), EV_QF_EIGHT(s1)), zero);
        const __m256i v = _mm256_adds_epi16(_mm256_packs_epi32(EV_QF_EIGHT(s2), EV_QF_EIGHT(s3)), zero);
        __m256i r;
        if (f->type == EV_UINT8)
            r = _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(u, v), lo), hi);
        else
            r = _mm256_min_epi8(_mm256_max_epi8(_mm256_packs_epi16(u, v), lo), hi);
        r = _mm256_permutevar8x32_epi32(r, order);
        if (n - j >= 32) _mm256_storeu_si256((__m256i *)(y + j), r);
        else {
            uint8_t some[32];
            _mm256_storeu_si256((__m256i *)some, r);
            memcpy(y + j, some, (size_t)(n - j));
        }
    }
}

static void EV_FN(qf_fold)(const ev_qfinish *f, int64_t n, const int32_t *sum, int32_t add, float scale, uint8_t *y)
{
    if (!f->range) {
        EV_FN(qf_fold_noting)(f, n, sum, add, scale, y, NULL);
        return;
    }
    __m256i seen[2] = {_mm256_set1_epi32(INT32_MAX), _mm256_set1_epi32(INT32_MIN)};
    EV_FN(qf_fold_noting)(f, n, sum, add, scale, y, seen);
    __m128i lo = _mm_min_epi32(_mm256_castsi256_si128(seen[0]), _mm256_extracti128_si256(seen[0], 1));
    __m128i hi = _mm_max_epi32(_mm256_castsi256_si128(seen[1]), _mm256_extracti128_si256(seen[1], 1));
    lo = _mm_min_epi32(lo, _mm_shuffle_epi32(lo, 0x4E));
    hi = _mm_max_epi32(hi, _mm_shuffle_epi32(hi, 0x4E));
    lo = _mm_min_epi32(lo, _mm_shuffle_epi32(lo, 0xB1));
    hi = _mm_max_epi32(hi, _mm_shuffle_epi32(hi, 0xB1));
    const float unit = scale * f->unit;
    ev_widen(f->range, (float)((int64_t)_mm_cvtsi128_si32(lo) + add) * unit,
             (float)((int64_t)_mm_cvtsi128_si32(hi) + add) * unit);
}
#endif

/* n results from sums (or `wide` ones, where that is not NULL) + add, times scale; z: the residual, or NULL. Behind the
 * sums, 31 more can be read. */
static void EV_FN(qc_finish)(const ev_qfinish *f, int64_t n, const int32_t *sum, const int64_t *wide, int64_t add,
                             float scale, const void *z, void *y)
{
    enum { BLOCK = 256 };
    const int64_t size = f->type == EV_FLOAT || f->type == EV_INT32 ? 4 : f->type == EV_INT16 ? 2 : 1;
    const float inverse = 1.0f / f->unit;
    int64_t j = 0;
    if (f->type == EV_INT32) {
        int32_t *to = y;
        for (; j < n; j++) to[j] = sum[j] + (int32_t)add;
        return;
    }
#if defined(__AVX2__)
    if (f->folds && size == 1 && !wide) {
        EV_FN(qf_fold)(f, n, sum, (int32_t)add, scale, y);
        return;
    }
    if ((size == 1 || (f->type == EV_FLOAT && !f->folds)) && !wide && f->activation != EV_ACT_CLIP) {
        EV_FN(qf_chain)(f, n, sum, (int32_t)add, scale, z, y);
        return;
    }
#endif
    if (f->range && f->folds && f->type != EV_FLOAT) EV_FN(qf_note_sums)(f, n, sum, wide, add, scale);
    for (; j < n; j += BLOCK) {
        float r[BLOCK];
        const int64_t m = n - j < BLOCK ? n - j : BLOCK;
        if (wide)
            for (int64_t i = 0; i < m; i++) r[i] = (float)(wide[j + i] + add) * scale;
        else
            for (int64_t i = 0; i < m; i++) r[i] = (float)(sum[j + i] + (int32_t)add) * scale;
        if (!f->folds) {
            if (z && f->z_type == EV_FLOAT) {
                for (int64_t i = 0; i < m; i++) r[i] += ((const float *)z)[j + i];
            } else if (z) {
                const int32_t zero = f->z_zero;
                const float step = f->z_scale;
                if (f->z_type == EV_UINT8)
                    for (int64_t i = 0; i < m; i++) r[i] += (float)(((const uint8_t *)z)[j + i] - zero) * step;
                else if (f->z_type == EV_INT8)
                    for (int64_t i = 0; i < m; i++) r[i] += (float)(((const int8_t *)z)[j + i] - zero) * step;
                else
                    for (int64_t i = 0; i < m; i++) r[i] += (float)(((const int16_t *)z)[j + i] - zero) * step;
            }
            if (f->activation != EV_ACT_NONE) EV_FN(unary_f32)(f->activation, m, r, r, f->a, f->b);
            if (f->range) EV_FN(qf_note)(f->range, m, r);
            if (f->type != EV_FLOAT)
                for (int64_t i = 0; i < m; i++) r[i] *= inverse;
        }
        if (f->type == EV_FLOAT) memcpy((float *)y + j, r, (size_t)m * 4);
        else EV_FN(qf_store)(f, m, r, (char *)y + j * size);
    }
}
#pragma GCC pop_options
