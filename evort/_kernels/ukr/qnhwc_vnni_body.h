/* Convolutions of bytes, channels last, by vpdpbusd: 16 channels are a vector, and seven positions by four vectors of sums
 * stay in registers. Results are those of qnhwc_body.h, to the bit. */
#include <math.h>

extern const ev_ukr ev_ukr_table__avx512;

static void EV_FN(nhwc_has)(int *has)
{
    *has = EV_NHWC_BYTES;
}

#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")

typedef int32_t EV_FN(quad) __attribute__((aligned(1), may_alias));

/* The smallest and largest results so far, in each lane: in units of the result where that is folded. */
typedef struct {
    __m512 lo, hi;
} EV_FN(nhwc_seen);

static inline __attribute__((always_inline)) void EV_FN(nhwc_note)(EV_FN(nhwc_seen) *seen, __mmask16 there, __m512 r)
{
    seen->lo = _mm512_mask_min_ps(seen->lo, there, seen->lo, r);
    seen->hi = _mm512_mask_max_ps(seen->hi, there, seen->hi, r);
}

static void EV_FN(nhwc_note_range)(const ev_qfinish *f, const EV_FN(nhwc_seen) *seen)
{
    const float unit = f->folds ? f->unit : 1.0f;
    ev_widen(f->range, _mm512_reduce_min_ps(seen->lo) * unit, _mm512_reduce_max_ps(seen->hi) * unit);
}

static inline __attribute__((always_inline)) EV_FN(nhwc_seen) EV_FN(nhwc_nothing)(void)
{
    return (EV_FN(nhwc_seen)){_mm512_set1_ps(INFINITY), _mm512_set1_ps(-INFINITY)};
}

/* What becomes of sums, in registers: stores of bytes might change what a pointer to ev_qfinish leads to. */
typedef struct {
    __m512 a, b, per_unit, lo, hi, z_scale;
    __m512i zero, z_zero;
    int folds, activation, noting, z_unsigned;
} EV_FN(nhwc_known);

static inline __attribute__((always_inline)) EV_FN(nhwc_known) EV_FN(nhwc_know)(const ev_qfinish *f)
{
    return (EV_FN(nhwc_known)){_mm512_set1_ps(f->a), _mm512_set1_ps(f->b), _mm512_set1_ps(1.0f / f->unit),
                               _mm512_set1_ps((float)(f->lo - f->zero)), _mm512_set1_ps((float)(f->hi - f->zero)),
                               _mm512_set1_ps(f->z_scale), _mm512_set1_epi32(f->zero), _mm512_set1_epi32(f->z_zero),
                               f->folds, f->activation, f->range != NULL, f->z_type == EV_UINT8};
}

/* A vector of sums times its scales; z: what is to be added, as it is stored. */
static inline __attribute__((always_inline)) __m512 EV_FN(nhwc_real)(const EV_FN(nhwc_known) k, __m512i sum, __m512 scale,
                                                                     __mmask16 there, const void *z)
{
    const __m512 r = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
    if (k.folds || !z) return r;
    /* eight bytes by themselves: what was stored to eight before them is not waited for */
    const __m128i bytes = there == 0xff ? _mm_loadl_epi64(z) : _mm_maskz_loadu_epi8(there, z);
    const __m512i wide = k.z_unsigned ? _mm512_cvtepu8_epi32(bytes) : _mm512_cvtepi8_epi32(bytes);
    return _mm512_add_ps(r, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(wide, k.z_zero)), k.z_scale));
}

/* Of such numbers, the integers of the result, in its bounds. */
static inline __attribute__((always_inline)) __m512i EV_FN(nhwc_whole)(const EV_FN(nhwc_known) k, __m512 r,
                                                                       __mmask16 there, EV_FN(nhwc_seen) *seen)
{
    const __m512 none = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f);
    if (!k.folds)
        switch (k.activation) {
        case EV_ACT_RELU: r = _mm512_max_ps(none, r); break;
        case EV_ACT_LEAKY_RELU: r = _mm512_mask_mul_ps(r, _mm512_cmp_ps_mask(r, none, _CMP_LT_OQ), k.a, r); break;
        case EV_ACT_HARD_SIGMOID:
            r = _mm512_add_ps(_mm512_mul_ps(k.a, r), k.b);
            r = _mm512_min_ps(one, _mm512_max_ps(none, r));
            break;
        case EV_ACT_HARD_SWISH: {
            const __m512 y = _mm512_add_ps(_mm512_mul_ps(r, _mm512_set1_ps(1.0f / 6.0f)), _mm512_set1_ps(0.5f));
            r = _mm512_mul_ps(r, _mm512_min_ps(one, _mm512_max_ps(none, y)));
            break;
        }
        }
    if (k.noting) EV_FN(nhwc_note)(seen, there, r);
    if (!k.folds) r = _mm512_mul_ps(r, k.per_unit);
    r = _mm512_min_ps(_mm512_max_ps(r, k.lo), k.hi);
    return _mm512_add_epi32(_mm512_cvtps_epi32(r), k.zero);
}

/* Both. */
static inline __attribute__((always_inline)) __m512i EV_FN(nhwc_round)(const EV_FN(nhwc_known) k, __m512i sum,
                                                                       __m512 scale, __mmask16 there, const void *z,
                                                                       EV_FN(nhwc_seen) *seen)
{
    return EV_FN(nhwc_whole)(k, EV_FN(nhwc_real)(k, sum, scale, there, z), there, seen);
}

/* Which lanes of a vector there are, where `left` are left. */
static inline __mmask16 EV_FN(nhwc_there)(int64_t left)
{
    return (__mmask16)(left >= 16 ? 0xffff : (1u << left) - 1);
}

/* Whether an activation takes a pass of its own. */
static inline int EV_FN(nhwc_passes)(const ev_qfinish *f)
{
    return !f->folds && f->activation != EV_ACT_NONE && f->activation != EV_ACT_RELU &&
           f->activation != EV_ACT_LEAKY_RELU && f->activation != EV_ACT_HARD_SIGMOID &&
           f->activation != EV_ACT_HARD_SWISH;
}

/* nhwc_column's work for all channels of n positions, with such a one. */
static __attribute__((noinline)) void EV_FN(nhwc_pass)(const ev_nhwc_conv *g, EV_FN(nhwc_known) k, const int32_t *sum,
                                                       int64_t n, int64_t first, EV_FN(nhwc_seen) *noted)
{
    const ev_qfinish *f = g->finish;
    enum { MOST = 8 };
    float real[MOST * EV_NHWC_NR] __attribute__((aligned(64))), *r = real;
    const char *z = g->z ? (const char *)g->z + first * g->ldz : NULL;
    uint8_t *y = g->y + first * g->ldy;
    EV_FN(nhwc_seen) seen = *noted;
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < g->channels; c += EV_NHWC_VECTOR, r += EV_NHWC_VECTOR)
            _mm512_store_ps(r, EV_FN(nhwc_real)(k, _mm512_load_si512(sum + i * EV_NHWC_NR + c), _mm512_loadu_ps(g->scale + c),
                                                EV_FN(nhwc_there)(g->channels - c), z ? z + i * g->ldz + c : NULL));
    ev_ukr_table__avx512.unary_f32(f->activation, r - real, real, real, f->a, f->b);
    k.activation = EV_ACT_NONE;
    r = real;
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < g->channels; c += EV_NHWC_VECTOR, r += EV_NHWC_VECTOR) {
            const __mmask16 there = EV_FN(nhwc_there)(g->channels - c);
            const __m512i v = EV_FN(nhwc_whole)(k, _mm512_load_ps(r), there, &seen);
            __m128i b = _mm512_cvtepi32_epi8(v);
            __asm__("" : "+v"(b)); /* as in nhwc_column */
            _mm_mask_storeu_epi8(y + i * g->ldy + c, there, b);
        }
    *noted = seen;
}

/* n positions of a vector of channels. */
static inline __attribute__((always_inline)) void EV_FN(nhwc_column)(const ev_nhwc_conv *g, const EV_FN(nhwc_known) k,
                                                                     const char *z, const int32_t *sum, int64_t n,
                                                                     int64_t c, int64_t first, EV_FN(nhwc_seen) *noted)
{
    const int64_t left = g->channels - c, ldy = g->ldy, ldz = z ? g->ldz : 0;
    const __mmask16 there = EV_FN(nhwc_there)(left);
    const __m512 scale = _mm512_loadu_ps(g->scale + c);
    uint8_t *y = g->y + first * ldy + c;
    if (z) z += first * ldz + c;
    EV_FN(nhwc_seen) seen = *noted;
    if (left >= 16)
        for (int64_t i = 0; i < n; i++, y += ldy, z += ldz)
            _mm_storeu_si128((__m128i *)y, _mm512_cvtepi32_epi8(EV_FN(nhwc_round)(
                k, _mm512_load_si512(sum + i * EV_NHWC_NR + c), scale, there, z, &seen)));
    else
        for (int64_t i = 0; i < n; i++, y += ldy, z += ldz) {
            __m128i v = _mm512_cvtepi32_epi8(EV_FN(nhwc_round)(k, _mm512_load_si512(sum + i * EV_NHWC_NR + c), scale, there, z, &seen));
            __asm__("" : "+v"(v)); /* not one instruction with the store, which takes longer */
            if (there == 0xff) _mm_storel_epi64((__m128i *)y, v);
            else _mm_mask_storeu_epi8(y, there, v);
        }
    *noted = seen;
}

/* The smaller one of each lane, where those of b are positive, and the larger of it and zero: as integers, which floats of
 * one sign are ordered like. The units that multiply have no part in it. */
static inline __attribute__((always_inline)) __m512 EV_FN(nhwc_least)(__m512 a, __m512 b)
{
    return (__m512)_mm512_min_epi32((__m512i)a, (__m512i)b);
}

static inline __attribute__((always_inline)) __m512 EV_FN(nhwc_positive)(__m512 a)
{
    return (__m512)_mm512_max_epi32((__m512i)a, _mm512_setzero_si512());
}

/* Four vectors of results, as what is rounded: 64 bytes in order. */
static inline __attribute__((always_inline)) __m512i EV_FN(nhwc_bytes)(const ev_qfinish *f, __m512 s0, __m512 s1, __m512 s2,
                                                                       __m512 s3)
{
    const __m512 top = _mm512_set1_ps(65536.0f);
    const __m512i zero = _mm512_set1_epi16((int16_t)f->zero);
    const __m512i lo = _mm512_set1_epi8((char)f->lo), hi = _mm512_set1_epi8((char)f->hi);
    const __m512i r0 = _mm512_cvtps_epi32(EV_FN(nhwc_least)(s0, top)), r1 = _mm512_cvtps_epi32(EV_FN(nhwc_least)(s1, top));
    const __m512i r2 = _mm512_cvtps_epi32(EV_FN(nhwc_least)(s2, top)), r3 = _mm512_cvtps_epi32(EV_FN(nhwc_least)(s3, top));
    return EV_FN(q_bytes_64)(r0, r1, r2, r3, zero, lo, hi, f->type != EV_UINT8);
}

/* What nhwc_bytes takes: a vector of sums whose result folds (swish: 0), or becomes HardSwish. */
static inline __attribute__((always_inline)) __m512 EV_FN(nhwc_scaled)(__m512i sum, __m512 scale, const int swish, __m512 per_unit)
{
    const __m512 r = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
    if (!swish) return r;
    const __m512 y = _mm512_add_ps(_mm512_mul_ps(r, _mm512_set1_ps(1.0f / 6.0f)), _mm512_set1_ps(0.5f));
    return _mm512_mul_ps(_mm512_mul_ps(r, EV_FN(nhwc_least)(EV_FN(nhwc_positive)(y), _mm512_set1_ps(1.0f))), per_unit);
}

/* n positions of nv vectors (half: of half a one), as many of which as fill four vectors at a time: `step`. Sums of up to
 * `step` - 1 positions more are read. */
static inline __attribute__((always_inline)) void EV_FN(nhwc_some)(const ev_nhwc_conv *g, const ev_qfinish *f, const int32_t *sum,
                                                                   int64_t n, uint8_t *y, const int swish, const int nv,
                                                                   const int half)
{
    const int step = half ? 8 : 4 / nv;
    const int64_t c = g->channels, ldy = g->ldy;
    const __m512 per_unit = _mm512_set1_ps(1.0f / f->unit);
    const __mmask64 there = c >= 64 ? ~0ull : (1ull << c) - 1;
    const int run = step > 1 && c == 64 / step && ldy == c; /* positions are one run of bytes */
#define SCALE(v) _mm512_maskz_loadu_ps(EV_FN(nhwc_there)(c > 16 * (v) ? c - 16 * (v) : 0), g->scale + 16 * (v))
    const __m512 s0 = half ? _mm512_broadcast_f32x8(_mm512_castps512_ps256(SCALE(0))) : SCALE(0);
    const __m512 s1 = nv > 1 ? SCALE(1) : s0, s2 = nv > 2 ? SCALE(2) : s0, s3 = nv > 2 ? SCALE(3) : s1;
#undef SCALE
#pragma GCC unroll 1
    for (int64_t i = 0; i < n; i += step, sum += step * EV_NHWC_NR, y += step * ldy) {
#define SUM(v)                                                                                                         \
    (half ? _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_load_si256((const __m256i *)(sum + 2 * v * EV_NHWC_NR))), \
                               _mm256_load_si256((const __m256i *)(sum + (2 * v + 1) * EV_NHWC_NR)), 1)                \
          : _mm512_load_si512(sum + v / nv * EV_NHWC_NR + v % nv * 16))
        __m512i b = EV_FN(nhwc_bytes)(f, EV_FN(nhwc_scaled)(SUM(0), s0, swish, per_unit),
                                      EV_FN(nhwc_scaled)(SUM(1), s1, swish, per_unit),
                                      EV_FN(nhwc_scaled)(SUM(2), s2, swish, per_unit),
                                      EV_FN(nhwc_scaled)(SUM(3), s3, swish, per_unit));
#undef SUM
        const int64_t some = n - i < step ? n - i : step;
        if (step == 1) {
            if (c == 64) _mm512_storeu_si512(y, b);
            else _mm512_mask_storeu_epi8(y, there, b);
        } else if (run) {
            _mm512_mask_storeu_epi8(y, some == step ? ~0ull : (1ull << some * c) - 1, b);
        } else if (step == 2) {
            _mm256_mask_storeu_epi8(y, (__mmask32)there, _mm512_castsi512_si256(b));
            if (some > 1) _mm256_mask_storeu_epi8(y + ldy, (__mmask32)there, _mm512_extracti64x4_epi64(b, 1));
        } else {
            uint8_t bytes[64 + 8] __attribute__((aligned(64)));
            _mm512_store_si512(bytes, b);
            for (int64_t k = 0; k < some; k++) {
                /* where the next pixel follows, what is written beyond this one is written again */
                if (half && (c == 8 || (ldy == c && 2 * c >= 8 && i + k + 1 < n))) memcpy(y + k * ldy, bytes + 8 * k, 8);
                else _mm_mask_storeu_epi8(y + k * ldy, (__mmask16)there, _mm_loadu_si128((const __m128i *)(bytes + 64 / step * k)));
            }
        }
    }
}

/* The same by how many there are. */
static inline __attribute__((always_inline)) void EV_FN(nhwc_together)(const ev_nhwc_conv *g, const ev_qfinish *f,
                                                                       const int32_t *sum, int64_t n, int64_t first,
                                                                       const int swish)
{
    uint8_t *y = g->y + first * g->ldy;
    if (g->channels > 32) EV_FN(nhwc_some)(g, f, sum, n, y, swish, 4, 0);
    else if (g->channels > 16) EV_FN(nhwc_some)(g, f, sum, n, y, swish, 2, 0);
    else if (g->channels > 8) EV_FN(nhwc_some)(g, f, sum, n, y, swish, 1, 0);
    else EV_FN(nhwc_some)(g, f, sum, n, y, swish, 1, 1);
}

/* n positions of up to four vectors of sums, 64 apart; those of up to seven positions more can be read. */
static __attribute__((noinline)) void EV_FN(nhwc_finish)(const ev_nhwc_conv *g, const int32_t *sum, int64_t n,
                                                         int64_t first, EV_FN(nhwc_seen) *noted)
{
    if (!g->finish) {
        int32_t *y = (int32_t *)g->y + first * g->ldy;
        for (int64_t i = 0; i < n; i++, sum += EV_NHWC_NR, y += g->ldy)
            for (int64_t c = 0, left = g->channels; c < g->channels; c += EV_NHWC_VECTOR, left -= EV_NHWC_VECTOR)
                _mm512_mask_storeu_epi32(y + c, EV_FN(nhwc_there)(left), _mm512_load_si512(sum + c));
        return;
    }
    const ev_qfinish own = *g->finish, *f = &own; /* which stores to y do not change */
    const char *z = g->z;
    if (!f->range && !z && f->folds) {
        EV_FN(nhwc_together)(g, f, sum, n, first, 0);
        return;
    }
    if (!f->range && !z && f->activation == EV_ACT_HARD_SWISH) {
        EV_FN(nhwc_together)(g, f, sum, n, first, 1);
        return;
    }
    EV_FN(nhwc_known) k = EV_FN(nhwc_know)(f);
    if (EV_FN(nhwc_passes)(f)) {
        for (int64_t i = 0; i < n; i += 8)
            EV_FN(nhwc_pass)(g, k, sum + i * EV_NHWC_NR, n - i < 8 ? n - i : 8, first + i, noted);
        return;
    }
#define COLUMNS(z)                                                         \
    for (int64_t c = 0; c < g->channels; c += EV_NHWC_VECTOR)              \
        EV_FN(nhwc_column)(g, k, z, sum, n, c, first, noted);
    if (k.noting || z) {
        COLUMNS(z)
    } else { /* a loop for itself, without what it has not */
        k.noting = k.folds = 0;
        COLUMNS(NULL)
    }
#undef COLUMNS
}

/* mr positions by nv vectors; half: of the last one (nv 1 or 2) the first half, which takes half the time. Sums are named
 * variables, as GCC keeps arrays of vectors in memory; the last of four vectors of weights is an operand in memory, as 28
 * sums, three of weights and one of the image are all registers. */
#define EV_POSITIONS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6)
static inline __attribute__((always_inline)) void EV_FN(nhwc_dots)(const ev_nhwc_conv *g, const uint8_t *const *x,
                                                                   int32_t *sum, const int nv, const int half, const int mr)
{
#define X(i) const uint8_t *x##i = x[i < mr ? i : 0];
    EV_POSITIONS(X)
#undef X
    const int8_t *w = g->w;
    const int32_t *offset = g->offset;
    const __m512i s0 = _mm512_loadu_si512(g->add), s1 = nv > 1 ? _mm512_loadu_si512(g->add + 16) : s0;
    const __m512i s2 = nv > 2 ? _mm512_loadu_si512(g->add + 32) : s0, s3 = nv > 3 ? _mm512_loadu_si512(g->add + 48) : s0;
#define X(i)                                              \
    __m512i a##i = s0, b##i = s1, c##i = s2, d##i = s3; \
    __m256i h##i = _mm512_castsi512_si256(nv > 1 ? s1 : s0);
    EV_POSITIONS(X)
#undef X
    for (int64_t left = g->segments; left > 0; left--, offset++)
        for (int64_t at = *offset, end = at + 4 * g->quads; at < end; at += 4, w += 64 * nv) {
            const __m512i w0 = _mm512_loadu_si512(w), w1 = nv > 1 ? _mm512_loadu_si512(w + 64) : w0;
            const __m512i w2 = nv > 2 ? _mm512_loadu_si512(w + 128) : w0;
#define X(i)                                                                                                      \
    if (i >= mr) {                                                                                                \
    } else if (nv == 4) {                                                                                         \
        __m512i t;                                                                                                \
        __asm__("vpbroadcastd %[x], %[t]\n\tvpdpbusd %[w0], %[t], %[a]\n\tvpdpbusd %[w1], %[t], %[b]\n\t"         \
                "vpdpbusd %[w2], %[t], %[c]\n\tvpdpbusd %[w3], %[t], %[d]"                                        \
                : [t] "=&v"(t), [a] "+v"(a##i), [b] "+v"(b##i), [c] "+v"(c##i), [d] "+v"(d##i)                    \
                : [x] "m"(*(const EV_FN(quad) *)(x##i + at)), [w0] "v"(w0), [w1] "v"(w1), [w2] "v"(w2),           \
                  [w3] "m"(*(const __m512i_u *)(w + 192)));                                                       \
    } else {                                                                                                      \
        int32_t four;                                                                                             \
        memcpy(&four, x##i + at, 4);                                                                              \
        const __m512i t = _mm512_set1_epi32(four);                                                                \
        if (!half || nv > 1) a##i = _mm512_dpbusd_epi32(a##i, t, w0);                                             \
        const __m256i u = nv > 1 ? _mm512_castsi512_si256(t) : _mm256_set1_epi32(four); /* one broadcast is enough */  \
        if (half) h##i = _mm256_dpbusd_epi32(h##i, u, _mm512_castsi512_si256(w1));                                \
        else if (nv > 1) b##i = _mm512_dpbusd_epi32(b##i, t, w1);                                                 \
        if (nv > 2) c##i = _mm512_dpbusd_epi32(c##i, t, w2);                                                      \
    }
            EV_POSITIONS(X)
#undef X
        }
#define X(i)                                                                  \
    if (half && nv == 1) a##i = _mm512_zextsi256_si512(h##i);                 \
    if (mr > i) _mm512_store_si512(sum + i * EV_NHWC_NR, a##i);               \
    if (half) b##i = _mm512_zextsi256_si512(h##i);                            \
    if (nv > 1 && mr > i) _mm512_store_si512(sum + i * EV_NHWC_NR + 16, b##i); \
    if (nv > 2 && mr > i) _mm512_store_si512(sum + i * EV_NHWC_NR + 32, c##i); \
    if (nv > 3 && mr > i) _mm512_store_si512(sum + i * EV_NHWC_NR + 48, d##i);
    EV_POSITIONS(X)
#undef X
}
#undef EV_POSITIONS

/* The largest of every `pooled` successive of n positions' sums, and of `halves`. */
static __attribute__((noinline)) void EV_FN(nhwc_largest)(const ev_nhwc_conv *g, int32_t *sum, int64_t n)
{
    for (const int32_t *from = sum; n > 0; n -= g->pooled, from += g->pooled * EV_NHWC_NR, sum += EV_NHWC_NR)
        for (int64_t c = 0; c < g->channels; c += EV_NHWC_VECTOR) {
            __m512i most = _mm512_load_si512(from + c);
            for (int64_t i = 1; i < g->pooled; i++)
                most = _mm512_max_epi32(most, _mm512_load_si512(from + i * EV_NHWC_NR + c));
            if (g->halves) most = _mm512_max_epi32(most, _mm512_shuffle_i64x2(most, most, 0x4e));
            _mm512_store_si512(sum + c, most);
        }
}

static void EV_FN(nhwc_conv)(const ev_nhwc_conv *g, int64_t begin, int64_t end)
{
    enum { MR = 7, MOST = 4 * MR }; /* positions in registers, and those that are finished together */
    int32_t sums[(MOST + 7) * EV_NHWC_NR] __attribute__((aligned(64)));
    const uint8_t *x[MR];
    int64_t column = begin % g->width, place = 0;
    const int64_t wrap = g->row_step - g->width * g->step, pooled = g->pooled, together = MOST / pooled;
    const uint8_t *from = (const uint8_t *)g->x + begin / g->width * g->row_step + column * g->step;
    EV_FN(nhwc_seen) seen = EV_FN(nhwc_nothing)();
    if (g->wide) { /* planned for another table */
        ev_ukr_table__scalar.nhwc_conv(g, begin, end);
        return;
    }
    for (int64_t p = begin; p < end; p += together) {
        const int64_t results = end - p < together ? end - p : together, n = results * pooled;
        for (int64_t at = 0; at < n; at += MR) {
            int32_t *sum = sums + at * EV_NHWC_NR;
#pragma GCC unroll 7
            for (int64_t i = 0; i < MR; i++) { /* beyond the last, it again */
                if (pooled > 1) {
                    x[i] = at + i < n ? from + g->pool[place] : x[i - 1];
                    if (at + i >= n || ++place < pooled) continue;
                    place = 0;
                } else {
                    x[i] = at + i < n ? from : x[i - 1];
                }
                from += g->step;
                if (++column == g->width) column = 0, from += wrap;
            }
            switch (g->halves ? 2 : (g->channels + 7) / 8) {
            case 1: EV_FN(nhwc_dots)(g, x, sum, 1, 1, MR); break;
            case 2: EV_FN(nhwc_dots)(g, x, sum, 1, 0, MR); break;
            case 3: EV_FN(nhwc_dots)(g, x, sum, 2, 1, MR); break;
            case 4: EV_FN(nhwc_dots)(g, x, sum, 2, 0, MR); break;
            case 5:
            case 6: EV_FN(nhwc_dots)(g, x, sum, 3, 0, MR); break;
            default: /* few positions leave no time to multiply by what is not there, as the weights come from L2 */
                if (n - at == 1) EV_FN(nhwc_dots)(g, x, sum, 4, 0, 1);
                else if (n - at <= 4) EV_FN(nhwc_dots)(g, x, sum, 4, 0, 4);
                else EV_FN(nhwc_dots)(g, x, sum, 4, 0, MR);
            }
        }
        if (pooled > 1 || g->halves) EV_FN(nhwc_largest)(g, sums, n);
        EV_FN(nhwc_finish)(g, sums, results, p, &seen);
    }
    if (g->finish && g->finish->range) EV_FN(nhwc_note_range)(g->finish, &seen);
}

/* Sixty-four bytes of four rows at a time: dwords are dealt out to lanes first, so that quads come out in order. */
static void EV_FN(nhwc_quads)(int64_t n, const uint8_t *const *rows, uint8_t *q)
{
    const __m512i deal = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int64_t e = 0; e < n; e += 64, q += 256) {
        const __mmask64 there = n - e >= 64 ? ~0ull : (1ull << (n - e)) - 1;
        __m512i t[4];
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++)
            t[r] = rows[r] ? _mm512_permutexvar_epi32(deal, _mm512_maskz_loadu_epi8(there, rows[r] + e)) : _mm512_setzero_si512();
        const __m512i low01 = _mm512_unpacklo_epi8(t[0], t[1]), high01 = _mm512_unpackhi_epi8(t[0], t[1]);
        const __m512i low23 = _mm512_unpacklo_epi8(t[2], t[3]), high23 = _mm512_unpackhi_epi8(t[2], t[3]);
        const __m512i v[4] = {_mm512_unpacklo_epi16(low01, low23), _mm512_unpackhi_epi16(low01, low23),
                              _mm512_unpacklo_epi16(high01, high23), _mm512_unpackhi_epi16(high01, high23)};
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            if (n - e >= 64) _mm512_storeu_si512(q + 64 * i, v[i]);
            else _mm512_mask_storeu_epi32(q + 64 * i, (__mmask16)(there >> 16 * i), v[i]);
        }
    }
}

/* The weights of a vector of channels as the quads of rows meet them, and what is added to their sums. */
static void EV_FN(nhwc_shifted)(const ev_nhwc_columns *g, int64_t c, int8_t *to, int32_t *add)
{
    const __m512i ones = _mm512_set1_epi8(1);
    const int64_t quads = (g->kernel_h + 3) / 4, first = g->first;
    __m512i total = _mm512_setzero_si512();
    for (int64_t group = 0; group < g->groups; group++) {
        const int64_t from = 4 * group + first, above = from >= 0 ? from / 4 : -((3 - from) / 4), left = g->rows - 4 * group;
        const __m128i down = _mm_cvtsi64_si128(8 * (from - 4 * above)), up = _mm_cvtsi64_si128(32 - 8 * (from - 4 * above));
        const __m512i there = _mm512_set1_epi32(left >= 4 ? -1 : left <= 0 ? 0 : (int32_t)((1u << 8 * left) - 1));
        const int8_t *w = g->w + above * g->kernel_w * g->w_step + 4 * c;
        for (int64_t j = 0; j < g->kernel_w; j++, w += g->w_step, to += 4 * EV_NHWC_NR) {
            __m512i v = _mm512_setzero_si512();
            if (above >= 0 && above < quads) v = _mm512_srl_epi32(_mm512_loadu_si512(w), down);
            if (above >= -1 && above + 1 < quads)
                v = _mm512_or_si512(v, _mm512_sll_epi32(_mm512_loadu_si512(w + g->kernel_w * g->w_step), up));
            v = _mm512_and_si512(v, there);
            total = _mm512_dpbusd_epi32(total, ones, v);
            _mm512_store_si512(to, v);
        }
    }
    total = _mm512_mullo_epi32(total, _mm512_set1_epi32(g->zero));
    _mm512_store_si512(add, _mm512_sub_epi32(_mm512_loadu_si512(g->add + c), total));
}

/* Eight results of 16 channels. */
#define EV_RESULTS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
static inline __attribute__((always_inline)) void EV_FN(nhwc_eight)(const uint8_t *const *x, const int64_t *offset, int64_t taps,
                                                                    const int8_t *w, __m512i add, int32_t *sum)
{
#define X(i)                    \
    const uint8_t *x##i = x[i]; \
    __m512i a##i = add;
    EV_RESULTS(X)
#undef X
    for (int64_t t = 0; t < taps; t++, w += 4 * EV_NHWC_NR) {
        const __m512i v = _mm512_load_si512(w);
        const int64_t at = offset[t];
#define X(i) a##i = _mm512_dpbusd_epi32(a##i, _mm512_loadu_si512(x##i + at), v);
        EV_RESULTS(X)
#undef X
    }
#define X(i) _mm512_store_si512(sum + i * EV_NHWC_NR, a##i);
    EV_RESULTS(X)
#undef X
}
#undef EV_RESULTS

static void EV_FN(nhwc_columns)(const ev_nhwc_columns *g, int64_t n)
{
    enum { MR = 8, TOGETHER = 4 * MR };
    int8_t w[EV_NHWC_TAPS * 4 * EV_NHWC_NR] __attribute__((aligned(64)));
    int32_t sums[TOGETHER * EV_NHWC_NR] __attribute__((aligned(64))), add[EV_NHWC_NR] __attribute__((aligned(64)));
    int64_t offset[EV_NHWC_TAPS];
    const int64_t taps = g->groups * g->kernel_w;
    const ev_nhwc_conv k = {.scale = g->scale, .channels = g->channels, .finish = g->finish, .ldy = g->y_step, .y = g->y};
    EV_FN(nhwc_seen) seen = EV_FN(nhwc_nothing)();
    for (int64_t t = 0; t < taps; t++) offset[t] = t / g->kernel_w * g->group_step + t % g->kernel_w * g->tap_step;
    for (int64_t c = 0; c < g->channels; c += EV_NHWC_VECTOR) EV_FN(nhwc_shifted)(g, c, w + 4 * c, add + c);
    for (int64_t p = 0; p < n; p += TOGETHER) {
        const int64_t some = n - p < TOGETHER ? n - p : TOGETHER;
        for (int64_t c = 0; c < g->channels; c += EV_NHWC_VECTOR)
            for (int64_t at = 0; at < some; at += MR) {
                const uint8_t *x[MR];
                for (int64_t i = 0; i < MR; i++) /* beyond the last, it again */
                    x[i] = g->q + (p + (at + i < some ? at + i : some - 1)) * g->step + 4 * c;
                EV_FN(nhwc_eight)(x, offset, taps, w + 4 * c, _mm512_load_si512(add + c), sums + at * EV_NHWC_NR + c);
            }
        EV_FN(nhwc_finish)(&k, sums, some, p, &seen);
    }
    if (g->finish->range) EV_FN(nhwc_note_range)(g->finish, &seen);
}
#pragma GCC pop_options
