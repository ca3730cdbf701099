/* Convolutions of bytes, channels last, on NEON: what qnhwc.h says, with W in quads on every table. How products join a
 * lane is told in qneon_body.h; here the image is the unsigned operand, and four of its bytes are broadcast (or eight of
 * two positions put together), so that nothing is packed.
 *
 *   i8mm     usmmla: two positions by two channels, eight products each; two quads of W are woven into one operand
 *   dotprod  sdot: the image is taken less 128, and sums start at 128 times those of the weights
 *   else     smull and smlal of bytes, two products to a lane of 16 bits, which hold them unless weights are -128: then
 *            smlal of numbers widened to 16 bits, by lane. The image as with sdot
 *
 * A table defines all of it: the rows of the one below know other instructions. */
#include <arm_neon.h>
#include <string.h>

#if defined(__ARM_FEATURE_DOTPROD)
#define EV_NHWC_FORM EV_NHWC_DOTS
enum { EV_FN(NHWC_MR) = 6 };
#else
#define EV_NHWC_FORM EV_NHWC_HALVES
enum { EV_FN(NHWC_MR) = 4 };
#endif
enum { EV_FN(NHWC_SUMS) = EV_FN(NHWC_MR) * EV_NHWC_NR };

static void EV_FN(nhwc_has)(int *has)
{
    *has = EV_NHWC_FORM;
}
#undef EV_NHWC_FORM

/* Dense ------------------------------------------------------------------------------------------------------------- */

typedef int32_t EV_FN(four) __attribute__((may_alias, aligned(1)));

#if defined(__ARM_FEATURE_MATMUL_INT8)

/* Sums of 16 channels at mr positions; W's quads are `step` bytes apart. */
#define EV_PAIRS(X) X(0) X(1) X(2)
static inline __attribute__((always_inline)) void EV_FN(nhwc_dots)(const ev_nhwc_conv *g, const uint8_t *const *x,
                                                                   const int8_t *w, int64_t step, const int32_t *add,
                                                                   int32_t *sum, const int mr)
{
#define START(v) vcombine_s32(vld1_s32(add + 2 * v), vld1_s32(add + 2 * v))
#define X(i)                                                                                                     \
    const uint8_t *x##i = x[mr > 2 * i ? 2 * i : 0], *y##i = x[mr > 2 * i + 1 ? 2 * i + 1 : 0];                   \
    int32x4_t c##i##0 = START(0), c##i##1 = START(1), c##i##2 = START(2), c##i##3 = START(3), c##i##4 = START(4), \
              c##i##5 = START(5), c##i##6 = START(6), c##i##7 = START(7);
    EV_PAIRS(X)
#undef X
#undef START
#define MMLA(c, b, i) \
    if (mr > 2 * i) c = vusmmlaq_s32(c, a##i, vreinterpretq_s8_s32(b));
#define FOUR(v, u)                                                                                               \
    {                                                                                                            \
        const int32x4_t p = vreinterpretq_s32_s8(vld1q_s8(w + 8 * v));                                           \
        const int32x4_t q = half ? vdupq_n_s32(0) : vreinterpretq_s32_s8(vld1q_s8(w + step + 8 * v));            \
        const int32x4_t low = vzip1q_s32(p, q), high = vzip2q_s32(p, q);                                         \
        MMLA(c0##v, low, 0) MMLA(c1##v, low, 1) MMLA(c2##v, low, 2)                                              \
        MMLA(c0##u, high, 0) MMLA(c1##u, high, 1) MMLA(c2##u, high, 2)                                           \
    }
#define BYTES(from)                                                                                              \
    (half ? vreinterpret_u8_s32(vset_lane_s32(*(const EV_FN(four) *)(from), vdup_n_s32(0), 0)) : vld1_u8(from))
#define X(i) const uint8x16_t a##i = mr > 2 * i ? vcombine_u8(BYTES(x##i + at), BYTES(y##i + at)) : vdupq_n_u8(0);
#define STEP(is_half)                                                                                            \
    {                                                                                                            \
        const int half = is_half;                                                                                \
        EV_PAIRS(X)                                                                                              \
        FOUR(0, 1) FOUR(2, 3) FOUR(4, 5) FOUR(6, 7)                                                              \
    }
    const int32_t *offset = g->offset;
    for (int64_t left = g->segments; left > 0; left--, offset++) {
        int64_t at = *offset, quads = g->quads;
        for (; quads > 1; quads -= 2, at += 8, w += 2 * step) STEP(0)
        if (quads) {
            STEP(1)
            w += step;
        }
    }
#undef STEP
#undef X
#undef BYTES
#undef FOUR
#undef MMLA
#define WIDE(c) vreinterpretq_s64_s32(c)
#define PUT(i, v, u)                                                                                             \
    if (mr > 2 * i) vst1q_s32(sum + 2 * i * EV_NHWC_NR + 2 * v, vreinterpretq_s32_s64(vzip1q_s64(WIDE(c##i##v), WIDE(c##i##u)))); \
    if (mr > 2 * i + 1)                                                                                          \
        vst1q_s32(sum + (2 * i + 1) * EV_NHWC_NR + 2 * v, vreinterpretq_s32_s64(vzip2q_s64(WIDE(c##i##v), WIDE(c##i##u))));
#define X(i) PUT(i, 0, 1) PUT(i, 2, 3) PUT(i, 4, 5) PUT(i, 6, 7)
    EV_PAIRS(X)
#undef X
#undef PUT
#undef WIDE
}
#undef EV_PAIRS

#else
#if defined(__ARM_FEATURE_DOTPROD)
#define EV_POSITIONS(X) X(0) X(1) X(2) X(3) X(4) X(5)
#else
#define EV_POSITIONS(X) X(0) X(1) X(2) X(3)
#endif

/* Sums of 16 channels at mr positions; W's quads are `step` bytes apart. */
static inline __attribute__((always_inline)) void EV_FN(nhwc_dots)(const ev_nhwc_conv *g, const uint8_t *const *x,
                                                                   const int8_t *w, int64_t step, const int32_t *add,
                                                                   int32_t *sum, const int mr)
{
#define X(i)                                                                                              \
    const uint8_t *x##i = x[mr > i ? i : 0];                                                              \
    int32x4_t p##i = vld1q_s32(add), q##i = vld1q_s32(add + 4), r##i = vld1q_s32(add + 8), s##i = vld1q_s32(add + 12);
    EV_POSITIONS(X)
#undef X
    const int32_t *offset = g->offset;
    for (int64_t left = g->segments; left > 0; left--, offset++)
        for (int64_t at = *offset, end = at + 4 * g->quads; at < end; at += 4, w += step) {
#if defined(__ARM_FEATURE_DOTPROD)
            const int8x16_t flip = vdupq_n_s8(-128);
            const int8x16_t w0 = vld1q_s8(w), w1 = vld1q_s8(w + 16), w2 = vld1q_s8(w + 32), w3 = vld1q_s8(w + 48);
#define X(i)                                                                                              \
    if (mr > i) {                                                                                         \
        const int8x16_t t = veorq_s8(vreinterpretq_s8_s32(vdupq_n_s32(*(const EV_FN(four) *)(x##i + at))), flip); \
        p##i = vdotq_s32(p##i, w0, t);                                                                    \
        q##i = vdotq_s32(q##i, w1, t);                                                                    \
        r##i = vdotq_s32(r##i, w2, t);                                                                    \
        s##i = vdotq_s32(s##i, w3, t);                                                                    \
    }
            EV_POSITIONS(X)
#undef X
#else
            const int8x16x4_t columns = vld4q_s8(w);
#define X(i)                                                                                              \
    const int16x4_t t##i = vreinterpret_s16_u16(vget_low_u16(                                             \
        vmovl_u8(vreinterpret_u8_s32(vdup_n_s32(*(const EV_FN(four) *)(x##i + at))))));
            EV_POSITIONS(X)
#undef X
#define X(i)                                                                                              \
    if (mr > i) {                                                                                         \
        p##i = vmlal_lane_s16(p##i, vget_low_s16(low), t##i, LANE);                                       \
        q##i = vmlal_high_lane_s16(q##i, low, t##i, LANE);                                                \
        r##i = vmlal_lane_s16(r##i, vget_low_s16(high), t##i, LANE);                                      \
        s##i = vmlal_high_lane_s16(s##i, high, t##i, LANE);                                               \
    }
#define ONE_K(k)                                                                                          \
    {                                                                                                     \
        enum { LANE = k };                                                                                \
        const int16x8_t low = vmovl_s8(vget_low_s8(columns.val[k])), high = vmovl_high_s8(columns.val[k]); \
        EV_POSITIONS(X)                                                                                   \
    }
            ONE_K(0) ONE_K(1) ONE_K(2) ONE_K(3)
#undef ONE_K
#undef X
#endif
        }
#define X(i)                                                                                              \
    if (mr > i) {                                                                                         \
        vst1q_s32(sum + i * EV_NHWC_NR, p##i);                                                            \
        vst1q_s32(sum + i * EV_NHWC_NR + 4, q##i);                                                        \
        vst1q_s32(sum + i * EV_NHWC_NR + 8, r##i);                                                        \
        vst1q_s32(sum + i * EV_NHWC_NR + 12, s##i);                                                       \
    }
    EV_POSITIONS(X)
#undef X
}
#undef EV_POSITIONS
#endif

#if !defined(__ARM_FEATURE_DOTPROD)
/* The same, of `mr` <= 2 positions, for weights above -128 and images less 128: of two quads at a time, two products of bytes
 * are added in 16 bits. Lanes of 32 bits take every other pair of a channel's. */
#define EV_POSITIONS(X) X(0) X(1)
#define EV_FOURS(X, i) X(i, 0) X(i, 1) X(i, 2) X(i, 3)
static inline __attribute__((always_inline)) void EV_FN(nhwc_pairs)(const ev_nhwc_conv *g, const uint8_t *const *x,
                                                                    const int8_t *w, int64_t step, const int32_t *add,
                                                                    int32_t *sum, const int mr)
{
#define START(i, v) int32x4_t a##i##v = vdupq_n_s32(0), b##i##v = a##i##v;
#define X(i) EV_FOURS(START, i)
    EV_POSITIONS(X)
#undef X
#define BYTES(i) veorq_s8(vreinterpretq_s8_s32(vdupq_n_s32(*(const EV_FN(four) *)(x[mr > i ? i : 0] + at))), vdupq_n_s8(-128))
#define ADD(i, v)                                                                                         \
    if (mr > i) {                                                                                         \
        int16x8_t low = vmull_s8(vget_low_s8(w##v), vget_low_s8(t##i)), high = vmull_high_s8(w##v, t##i); \
        if (two) {                                                                                        \
            low = vmlal_s8(low, vget_low_s8(u##v), vget_low_s8(s##i));                                    \
            high = vmlal_high_s8(high, u##v, s##i);                                                       \
        }                                                                                                 \
        a##i##v = vpadalq_s16(a##i##v, low);                                                              \
        b##i##v = vpadalq_s16(b##i##v, high);                                                             \
    }
#define X(i) EV_FOURS(ADD, i)
#define STEP(pairs)                                                                                       \
    {                                                                                                     \
        const int two = pairs;                                                                            \
        const int8x16_t w0 = vld1q_s8(w), w1 = vld1q_s8(w + 16), w2 = vld1q_s8(w + 32), w3 = vld1q_s8(w + 48); \
        const int8_t *next = two ? w + step : w;                                                          \
        const int8x16_t u0 = vld1q_s8(next), u1 = vld1q_s8(next + 16), u2 = vld1q_s8(next + 32), u3 = vld1q_s8(next + 48); \
        const int8x16_t t0 = BYTES(0), t1 = BYTES(1);                                                     \
        at += two ? 4 : 0;                                                                                \
        const int8x16_t s0 = BYTES(0), s1 = BYTES(1);                                                     \
        EV_POSITIONS(X)                                                                                   \
        at += 4;                                                                                          \
        w = next + step;                                                                                  \
    }
    const int32_t *offset = g->offset;
    for (int64_t left = g->segments; left > 0; left--, offset++) {
        int64_t at = *offset, quads = g->quads;
        for (; quads > 1; quads -= 2) STEP(1)
        if (quads) STEP(0)
    }
#undef STEP
#undef X
#undef ADD
#undef BYTES
#undef START
#define PUT(i, v)                                                                                         \
    if (mr > i) vst1q_s32(sum + i * EV_NHWC_NR + 4 * v, vaddq_s32(vpaddq_s32(a##i##v, b##i##v), vld1q_s32(add + 4 * v)));
#define X(i) EV_FOURS(PUT, i)
    EV_POSITIONS(X)
#undef X
#undef PUT
}
#undef EV_FOURS
#undef EV_POSITIONS
#endif

static void EV_FN(nhwc_conv)(const ev_nhwc_conv *g, int64_t begin, int64_t end)
{
    enum { MR = EV_FN(NHWC_MR) };
    int32_t sum[EV_FN(NHWC_SUMS)];
    const uint8_t *x[MR];
    const int64_t step = (g->channels + EV_NHWC_VECTOR - 1) / EV_NHWC_VECTOR * 64;
    int64_t row = begin / g->width, column = begin % g->width;
    if (g->wide) { /* planned for another table */
        ev_ukr_table__scalar.nhwc_conv(g, begin, end);
        return;
    }
    const int32_t *add = g->add;
#if !defined(__ARM_FEATURE_MATMUL_INT8)
    int32_t more[EV_NHWC_NR]; /* for images less 128 */
    int8x16_t smallest = vdupq_n_s8(127);
    for (int64_t c = 0; c < g->channels; c += 16) {
        int32x4_t sums[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
        const int8_t *w = g->w + 4 * c;
        for (int64_t q = g->segments * g->quads; q > 0; q--, w += step)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) {
                const int8x16_t four = vld1q_s8(w + 16 * v);
#if defined(__ARM_FEATURE_DOTPROD)
                sums[v] = vdotq_s32(sums[v], four, vdupq_n_s8(1));
#else
                sums[v] = vpadalq_s16(sums[v], vpaddlq_s8(four));
                smallest = vminq_s8(smallest, four);
#endif
            }
        for (int v = 0; v < 4; v++)
            vst1q_s32(more + c + 4 * v, vaddq_s32(vld1q_s32(add + c + 4 * v), vshlq_n_s32(sums[v], 7)));
    }
    const int pairs = vminvq_s8(smallest) > -128; /* with dot products all weights do */
    if (pairs) add = more;
#endif
    for (int64_t p = begin; p < end; p += MR) {
        const int64_t n = end - p < MR ? end - p : MR;
        for (int64_t i = 0; i < MR; i++) { /* beyond the last, it again */
            x[i] = i < n ? (const uint8_t *)g->x + row * g->row_step + column * g->step : x[n - 1];
            if (++column == g->width) column = 0, row++;
        }
        for (int64_t c = 0; c < g->channels; c += 16) {
#if !defined(__ARM_FEATURE_DOTPROD)
            if (pairs) {
                for (int64_t i = 0; i < n; i += 2)
                    if (n - i == 1) EV_FN(nhwc_pairs)(g, x + i, g->w + 4 * c, step, add + c, sum + i * EV_NHWC_NR + c, 1);
                    else EV_FN(nhwc_pairs)(g, x + i, g->w + 4 * c, step, add + c, sum + i * EV_NHWC_NR + c, 2);
                continue;
            }
#endif
            if (n == 1) EV_FN(nhwc_dots)(g, x, g->w + 4 * c, step, add + c, sum + c, 1);
            else if (n == 2) EV_FN(nhwc_dots)(g, x, g->w + 4 * c, step, add + c, sum + c, 2);
            else EV_FN(nhwc_dots)(g, x, g->w + 4 * c, step, add + c, sum + c, MR);
        }
        if (!g->finish) {
            int32_t *y = (int32_t *)g->y + p * g->ldy;
            for (int64_t i = 0; i < n; i++, y += g->ldy) memcpy(y, sum + i * EV_NHWC_NR, (size_t)g->channels * 4);
            continue;
        }
        ev_nhwc_finish(g->finish, n, g->channels, sum, EV_NHWC_NR, g->scale,
                       g->z ? (const char *)g->z + p * g->ldz : NULL, g->ldz, g->y + p * g->ldy, g->ldy);
    }
}

/* Depthwise --------------------------------------------------------------------------------------------------------- */

#if !defined(__ARM_FEATURE_DOTPROD)
/* q[e] = byte e of four rows, 0 for those that are NULL. */
static void EV_FN(nhwc_quads)(int64_t n, const uint8_t *const *rows, uint8_t *q)
{
    int64_t e = 0;
    for (; e + 16 <= n; e += 16) {
        uint8x16x4_t v;
        for (int r = 0; r < 4; r++) v.val[r] = rows[r] ? vld1q_u8(rows[r] + e) : vdupq_n_u8(0);
        vst4q_u8(q + 4 * e, v);
    }
    for (; e < n; e++)
        for (int r = 0; r < 4; r++) q[4 * e + r] = rows[r] ? rows[r][e] : 0;
}
#endif

/* The weights of four channels as the quads of rows meet them, 4 * EV_NHWC_NR bytes apart, and what is added to their
 * sums. */
static void EV_FN(nhwc_shifted)(const ev_nhwc_columns *g, int64_t c, int8_t *to, int32_t *add)
{
    const int64_t quads = (g->kernel_h + 3) / 4, first = g->first;
    int32x4_t total = vdupq_n_s32(0);
    for (int64_t group = 0; group < g->groups; group++) {
        const int64_t from = 4 * group + first, above = from >= 0 ? from / 4 : -((3 - from) / 4), left = g->rows - 4 * group;
        const int32_t shift = (int32_t)(8 * (from - 4 * above));
        const int32x4_t down = vdupq_n_s32(-shift), up = vdupq_n_s32(32 - shift);
        const uint32x4_t there = vdupq_n_u32(left >= 4 ? ~0u : left <= 0 ? 0 : (1u << 8 * left) - 1);
        const int8_t *w = g->w + above * g->kernel_w * g->w_step + 4 * c;
        for (int64_t j = 0; j < g->kernel_w; j++, w += g->w_step, to += 4 * EV_NHWC_NR) {
            uint32x4_t v = vdupq_n_u32(0);
            if (above >= 0 && above < quads) v = vshlq_u32(vreinterpretq_u32_s8(vld1q_s8(w)), down);
            if (above >= -1 && above + 1 < quads)
                v = vorrq_u32(v, vshlq_u32(vreinterpretq_u32_s8(vld1q_s8(w + g->kernel_w * g->w_step)), up));
            v = vandq_u32(v, there);
            total = vpadalq_s16(total, vpaddlq_s8(vreinterpretq_s8_u32(v)));
            vst1q_s8(to, vreinterpretq_s8_u32(v));
        }
    }
#if defined(__ARM_FEATURE_DOTPROD) && !defined(__ARM_FEATURE_MATMUL_INT8)
    vst1q_s32(add, vmlaq_n_s32(vld1q_s32(g->add + c), total, 128 - g->zero));
#else
    vst1q_s32(add, vmlsq_n_s32(vld1q_s32(g->add + c), total, g->zero));
#endif
}

/* Eight results of four channels. */
#define EV_RESULTS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
static inline __attribute__((always_inline)) void EV_FN(nhwc_eight)(const uint8_t *const *x, const int64_t *offset,
                                                                    int64_t taps, const int8_t *w, const int32_t *add,
                                                                    int32_t *sum)
{
#if defined(__ARM_FEATURE_DOTPROD)
#define X(i) int32x4_t a##i = vld1q_s32(add);
    EV_RESULTS(X)
#undef X
    for (int64_t t = 0; t < taps; t++, w += 4 * EV_NHWC_NR) {
        const int8x16_t v = vld1q_s8(w);
        const int64_t at = offset[t];
#if defined(__ARM_FEATURE_MATMUL_INT8)
#define X(i) a##i = vusdotq_s32(a##i, vld1q_u8(x[i] + at), v);
#else
        const uint8x16_t flip = vdupq_n_u8(128);
#define X(i) a##i = vdotq_s32(a##i, vreinterpretq_s8_u8(veorq_u8(vld1q_u8(x[i] + at), flip)), v);
#endif
        EV_RESULTS(X)
#undef X
    }
#define X(i) vst1q_s32(sum + i * EV_NHWC_NR, a##i);
    EV_RESULTS(X)
#undef X
#else /* two of a quad's products are a pair of lanes each; pairs are added at the end */
#define X(i) int32x4_t a##i = vdupq_n_s32(0), b##i = a##i;
    EV_RESULTS(X)
#undef X
    for (int64_t t = 0; t < taps; t++, w += 4 * EV_NHWC_NR) {
        const int16x8_t v = vreinterpretq_s16_s8(vld1q_s8(w)), odd = vshrq_n_s16(v, 8), even = vshrq_n_s16(vshlq_n_s16(v, 8), 8);
        const int64_t at = offset[t];
#define X(i)                                                                                              \
    {                                                                                                     \
        const uint16x8_t u = vreinterpretq_u16_u8(vld1q_u8(x[i] + at));                                   \
        const int16x8_t low = vreinterpretq_s16_u16(vandq_u16(u, vdupq_n_u16(255)));                      \
        const int16x8_t high = vreinterpretq_s16_u16(vshrq_n_u16(u, 8));                                  \
        a##i = vmlal_s16(a##i, vget_low_s16(low), vget_low_s16(even));                                    \
        b##i = vmlal_high_s16(b##i, low, even);                                                           \
        a##i = vmlal_s16(a##i, vget_low_s16(high), vget_low_s16(odd));                                    \
        b##i = vmlal_high_s16(b##i, high, odd);                                                           \
    }
        EV_RESULTS(X)
#undef X
    }
    const int32x4_t more = vld1q_s32(add);
#define X(i) vst1q_s32(sum + i * EV_NHWC_NR, vaddq_s32(vpaddq_s32(a##i, b##i), more));
    EV_RESULTS(X)
#undef X
#endif
}
#undef EV_RESULTS

static void EV_FN(nhwc_columns)(const ev_nhwc_columns *g, int64_t n)
{
    enum { MR = 8 };
    int8_t w[EV_NHWC_TAPS * 4 * EV_NHWC_NR];
    int32_t sum[MR * EV_NHWC_NR], add[EV_NHWC_NR];
    int64_t offset[EV_NHWC_TAPS];
    const int64_t taps = g->groups * g->kernel_w, lanes = (g->channels + 15) / 16 * 16;
    for (int64_t t = 0; t < taps; t++) offset[t] = t / g->kernel_w * g->group_step + t % g->kernel_w * g->tap_step;
    for (int64_t c = 0; c < lanes; c += 4) EV_FN(nhwc_shifted)(g, c, w + 4 * c, add + c);
    for (int64_t p = 0; p < n; p += MR) {
        const int64_t some = n - p < MR ? n - p : MR;
        for (int64_t c = 0; c < lanes; c += 4) {
            const uint8_t *x[MR];
            for (int64_t i = 0; i < MR; i++) /* beyond the last, it again */
                x[i] = g->q + (p + (i < some ? i : some - 1)) * g->step + 4 * c;
            EV_FN(nhwc_eight)(x, offset, taps, w + 4 * c, add + c, sum + c);
        }
        for (int64_t i = 0; i < some; i += EV_FN(NHWC_MR))
            ev_nhwc_finish(g->finish, some - i < EV_FN(NHWC_MR) ? some - i : EV_FN(NHWC_MR), g->channels,
                           sum + i * EV_NHWC_NR, EV_NHWC_NR, g->scale, NULL, 0, g->y + (p + i) * g->y_step, g->y_step);
    }
}
