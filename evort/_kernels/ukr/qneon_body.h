/* Sums of products of bytes on NEON: rows of A by panels of 16 columns of B, both in quads of four successive k.
 *
 *     A rows: a0 a1 a2 a3 | a4 ...        B panel: b00 b10 b20 b30, b01 b11 b21 b31, ... of 16 columns | b40 ...
 *
 * One of the two is unsigned. How products join an int32 lane, exactly and whatever the bytes:
 *   i8mm     usmmla: two rows by two columns, eight products each; two quads of B are woven into one operand
 *   dotprod  sdot, of signed by signed: the unsigned operand is taken less 128 (its highest bit flipped), and sums start
 *            at 128 times the sum of the signed one
 *   else     smull and smlal of signed bytes, as with sdot: two products to a lane of 16 bits, which hold them unless
 *            both factors of both are -128. Where a signed operand has one, or few rows are not worth looking for it:
 *            smlal of numbers widened to 16 bits, one k of four columns at a time (ld4 takes the quads apart)
 *
 * Rows and columns are named variables, as GCC keeps arrays of vectors in memory. */
#include <arm_neon.h>
#include <string.h>

/* Quad g of a panel. */
#define EV_QUAD(g) (panel + (offset ? offset[g] : 64 * (g)))

#if defined(__ARM_FEATURE_MATMUL_INT8)
#define EV_EACH_PAIR(X) X(0) X(1) X(2)
enum { EV_FN(QMR) = 6 };

/* Eight bytes of two rows; of each four and zeros: `half`; of one row and zeros: not `both`. */
static inline __attribute__((always_inline)) int8x16_t EV_FN(two_rows)(const uint8_t *a, int64_t lda, const int both,
                                                                       const int half)
{
    uint64_t u = 0, v = 0;
    memcpy(&u, a, half ? 4 : 8);
    if (both) memcpy(&v, a + lda, half ? 4 : 8);
    return vreinterpretq_s8_u64(vcombine_u64(vcreate_u64(u), vcreate_u64(v)));
}

/* sum[i][0..16) (+)= row i of A times the panel, for mr rows. Lanes of an accumulator: A unsigned r0c0 r0c1 r1c0 r1c1,
 * else r0c0 r1c0 r0c1 r1c1. */
static inline __attribute__((always_inline)) void EV_FN(q_rows)(int64_t quads, const uint8_t *a, int64_t lda,
                                                                const uint8_t *panel, const int32_t *offset, int add,
                                                                int32_t *sum, int64_t ld, const int mr,
                                                                const int a_unsigned)
{
#define X(i)                                                                                                        \
    int32x4_t c##i##0 = vdupq_n_s32(0), c##i##1 = c##i##0, c##i##2 = c##i##0, c##i##3 = c##i##0, c##i##4 = c##i##0, \
              c##i##5 = c##i##0, c##i##6 = c##i##0, c##i##7 = c##i##0;
    EV_EACH_PAIR(X)
#undef X
#define MMLA(c, x, i)                                                                                               \
    if (mr > 2 * i)                                                                                                 \
        c = a_unsigned ? vusmmlaq_s32(c, vreinterpretq_u8_s8(a##i), vreinterpretq_s8_s32(x))                        \
                       : vusmmlaq_s32(c, vreinterpretq_u8_s32(x), a##i);
#define FOUR(v, w)                                                                                                  \
    {                                                                                                               \
        const int32x4_t y = vreinterpretq_s32_u8(vld1q_u8(b + 8 * v));                                              \
        const int32x4_t z = half ? vdupq_n_s32(0) : vreinterpretq_s32_u8(vld1q_u8(next + 8 * v));                   \
        const int32x4_t low = vzip1q_s32(y, z), high = vzip2q_s32(y, z);                                            \
        MMLA(c0##v, low, 0) MMLA(c1##v, low, 1) MMLA(c2##v, low, 2)                                                 \
        MMLA(c0##w, high, 0) MMLA(c1##w, high, 1) MMLA(c2##w, high, 2)                                              \
    }
#define STEP(is_half)                                                                                               \
    {                                                                                                               \
        const int half = is_half;                                                                                   \
        const int8x16_t a0 = EV_FN(two_rows)(a, lda, mr > 1, half);                                                 \
        const int8x16_t a1 = mr > 2 ? EV_FN(two_rows)(a + 2 * lda, lda, mr > 3, half) : a0;                         \
        const int8x16_t a2 = mr > 4 ? EV_FN(two_rows)(a + 4 * lda, lda, mr > 5, half) : a0;                         \
        FOUR(0, 1) FOUR(2, 3) FOUR(4, 5) FOUR(6, 7)                                                                 \
    }
    int64_t g = 0;
    for (; g + 1 < quads; g += 2, a += 8) {
        const uint8_t *b = EV_QUAD(g), *next = EV_QUAD(g + 1);
        STEP(0)
    }
    if (g < quads) {
        const uint8_t *b = EV_QUAD(g), *next = b;
        STEP(1)
    }
#undef STEP
#undef FOUR
#undef MMLA
#define PUT(i, v, first, second)                                                                                    \
    if (mr > i) {                                                                                                   \
        int32_t *to = sum + (i) * ld + 2 * v;                                                                       \
        const int32x4_t r = a_unsigned ? vreinterpretq_s32_s64(first) : second;                                     \
        vst1q_s32(to, add ? vaddq_s32(r, vld1q_s32(to)) : r);                                                       \
    }
#define WIDE(c) vreinterpretq_s64_s32(c)
#define FOUR(i, v, w)                                                                                               \
    PUT(2 * i, v, vzip1q_s64(WIDE(c##i##v), WIDE(c##i##w)), vuzp1q_s32(c##i##v, c##i##w))                           \
    PUT(2 * i + 1, v, vzip2q_s64(WIDE(c##i##v), WIDE(c##i##w)), vuzp2q_s32(c##i##v, c##i##w))
#define X(i) FOUR(i, 0, 1) FOUR(i, 2, 3) FOUR(i, 4, 5) FOUR(i, 6, 7)
    EV_EACH_PAIR(X)
#undef X
#undef FOUR
#undef WIDE
#undef PUT
}
#undef EV_EACH_PAIR

#else
#if defined(__ARM_FEATURE_DOTPROD)
#define EV_EACH_ROW_Q(X) X(0) X(1) X(2) X(3) X(4) X(5)
enum { EV_FN(QMR) = 6 };
#else
#define EV_EACH_ROW_Q(X) X(0) X(1) X(2) X(3)
enum { EV_FN(QMR) = 4 };
#endif
typedef int32_t EV_FN(quad) __attribute__((may_alias, aligned(1)));

#if defined(__ARM_FEATURE_DOTPROD)
/* 128 times the sum of a row, in every lane. */
static inline int32x4_t EV_FN(q_row_sum)(int64_t quads, const uint8_t *a)
{
    const int8x16_t one = vdupq_n_s8(1);
    int32x4_t sum = vdupq_n_s32(0);
    for (; quads > 3; quads -= 4, a += 16) sum = vdotq_s32(sum, vreinterpretq_s8_u8(vld1q_u8(a)), one);
    int32_t total = vaddvq_s32(sum);
    for (int64_t p = 0; p < 4 * quads; p++) total += (int8_t)a[p];
    return vdupq_n_s32((int32_t)((uint32_t)total << 7));
}
#endif

static inline __attribute__((always_inline)) void EV_FN(q_rows)(int64_t quads, const uint8_t *a, int64_t lda,
                                                                const uint8_t *panel, const int32_t *offset, int add,
                                                                int32_t *sum, int64_t ld, const int mr,
                                                                const int a_unsigned)
{
#define X(i) int32x4_t p##i = vdupq_n_s32(0), q##i = p##i, r##i = p##i, s##i = p##i;
    EV_EACH_ROW_Q(X)
#undef X
#if defined(__ARM_FEATURE_DOTPROD)
    const int8x16_t flip = vdupq_n_s8(-128);
    if (a_unsigned) { /* 128 times the sums of B's columns, once for all rows */
        const int8x16_t one = vdupq_n_s8(1);
        for (int64_t g = 0; g < quads; g++) {
            const uint8_t *at = EV_QUAD(g);
            p0 = vdotq_s32(p0, vreinterpretq_s8_u8(vld1q_u8(at)), one);
            q0 = vdotq_s32(q0, vreinterpretq_s8_u8(vld1q_u8(at + 16)), one);
            r0 = vdotq_s32(r0, vreinterpretq_s8_u8(vld1q_u8(at + 32)), one);
            s0 = vdotq_s32(s0, vreinterpretq_s8_u8(vld1q_u8(at + 48)), one);
        }
        p0 = vshlq_n_s32(p0, 7), q0 = vshlq_n_s32(q0, 7), r0 = vshlq_n_s32(r0, 7), s0 = vshlq_n_s32(s0, 7);
#define X(i) p##i = p0, q##i = q0, r##i = r0, s##i = s0;
        EV_EACH_ROW_Q(X)
#undef X
    } else { /* 128 times the sums of A's rows */
#define X(i) if (mr > i) p##i = q##i = r##i = s##i = EV_FN(q_row_sum)(quads, a + i * lda);
        EV_EACH_ROW_Q(X)
#undef X
    }
#define B(at) veorq_s8(vreinterpretq_s8_u8(vld1q_u8(b + (at))), a_unsigned ? vdupq_n_s8(0) : flip)
    for (int64_t g = 0; g < quads; g++, a += 4) {
        const uint8_t *b = EV_QUAD(g);
        const int8x16_t b0 = B(0), b1 = B(16), b2 = B(32), b3 = B(48);
#define X(i)                                                                                                        \
        if (mr > i) {                                                                                               \
            int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(*(const EV_FN(quad) *)(a + i * lda)));                   \
            if (a_unsigned) x = veorq_s8(x, flip);                                                                  \
            p##i = vdotq_s32(p##i, b0, x);                                                                          \
            q##i = vdotq_s32(q##i, b1, x);                                                                          \
            r##i = vdotq_s32(r##i, b2, x);                                                                          \
            s##i = vdotq_s32(s##i, b3, x);                                                                          \
        }
        EV_EACH_ROW_Q(X)
#undef X
    }
#undef B
#else
#define WIDE(x, is_unsigned)                                                                                        \
    ((is_unsigned) ? vreinterpretq_s16_u16(vmovl_u8(x)) : vmovl_s8(vreinterpret_s8_u8(x)))
    for (int64_t g = 0; g < quads; g++, a += 4) {
        const uint8x16x4_t columns = vld4q_u8(EV_QUAD(g));
#define X(i)                                                                                                        \
        const int16x4_t x##i = vget_low_s16(WIDE(vreinterpret_u8_s32(                                               \
            vdup_n_s32(*(const EV_FN(quad) *)(a + (mr > i ? i : 0) * lda))), a_unsigned));
        EV_EACH_ROW_Q(X)
#undef X
#define ONE_K(t)                                                                                                    \
        {                                                                                                           \
            const int16x8_t low = WIDE(vget_low_u8(columns.val[t]), !a_unsigned);                                   \
            const int16x8_t high = WIDE(vget_high_u8(columns.val[t]), !a_unsigned);                                 \
            EV_EACH_ROW_Q(X)                                                                                        \
        }
#define X(i)                                                                                                        \
            if (mr > i) {                                                                                           \
                p##i = vmlal_lane_s16(p##i, vget_low_s16(low), x##i, LANE);                                         \
                q##i = vmlal_high_lane_s16(q##i, low, x##i, LANE);                                                  \
                r##i = vmlal_lane_s16(r##i, vget_low_s16(high), x##i, LANE);                                        \
                s##i = vmlal_high_lane_s16(s##i, high, x##i, LANE);                                                 \
            }
#define LANE 0
        ONE_K(0)
#undef LANE
#define LANE 1
        ONE_K(1)
#undef LANE
#define LANE 2
        ONE_K(2)
#undef LANE
#define LANE 3
        ONE_K(3)
#undef LANE
#undef X
#undef ONE_K
    }
#undef WIDE
#endif
#define PUT(to, v) vst1q_s32(to, add ? vaddq_s32(v, vld1q_s32(to)) : v);
#define X(i)                                                                                                        \
    if (mr > i) {                                                                                                   \
        int32_t *to = sum + i * ld;                                                                                 \
        PUT(to, p##i) PUT(to + 4, q##i) PUT(to + 8, r##i) PUT(to + 12, s##i)                                        \
    }
    EV_EACH_ROW_Q(X)
#undef X
#undef PUT
}
#undef EV_EACH_ROW_Q
#endif

#if !defined(__ARM_FEATURE_DOTPROD) && !defined(__ARM_FEATURE_MATMUL_INT8)
#define EV_HAS_PAIRS
enum { EV_FN(PAIR_ROWS) = 8 }; /* so many rows pay for a look at a signed panel */

/* 128 times the sum of n signed bytes, a multiple of 4; *smallest: of those it has seen, in lanes. */
static inline int32_t EV_FN(q_sum)(int64_t n, const int8_t *a, int8x16_t *smallest)
{
    int32x4_t sum = vdupq_n_s32(0);
    for (; n >= 16; n -= 16, a += 16) {
        const int8x16_t v = vld1q_s8(a);
        sum = vpadalq_s16(sum, vpaddlq_s8(v));
        *smallest = vminq_s8(*smallest, v);
    }
    int8_t rest[16] = {0};
    memcpy(rest, a, (size_t)n);
    const int8x16_t v = vld1q_s8(rest);
    *smallest = vminq_s8(*smallest, v);
    return (int32_t)((uint32_t)vaddvq_s32(vpadalq_s16(sum, vpaddlq_s8(v))) << 7);
}

/* As q_rows, of two rows, with both operands signed and `start` added: [2][16]. */
#define EV_FOURS(X, i) X(i, 0) X(i, 1) X(i, 2) X(i, 3)
static inline __attribute__((always_inline)) void EV_FN(q_two_rows)(int64_t quads, const uint8_t *a, int64_t lda,
                                                                    const uint8_t *panel, const int32_t *offset, int add,
                                                                    int32_t *sum, int64_t ld, const int32_t *start,
                                                                    const int a_unsigned)
{
    const int8x16_t flip_a = vdupq_n_s8(a_unsigned ? -128 : 0), flip_b = vdupq_n_s8(a_unsigned ? 0 : -128);
#define START(i, v) int32x4_t c##i##v = vdupq_n_s32(0), d##i##v = c##i##v;
    EV_FOURS(START, 0) EV_FOURS(START, 1)
#undef START
#define B(at) veorq_s8(vreinterpretq_s8_u8(vld1q_u8(at)), flip_b)
#define A(at) veorq_s8(vreinterpretq_s8_s32(vdupq_n_s32(*(const EV_FN(quad) *)(at))), flip_a)
#define ADD(i, v)                                                                                                   \
    {                                                                                                               \
        int16x8_t low = vmull_s8(vget_low_s8(b##v), vget_low_s8(x##i)), high = vmull_high_s8(b##v, x##i);           \
        if (two) {                                                                                                  \
            low = vmlal_s8(low, vget_low_s8(n##v), vget_low_s8(y##i));                                              \
            high = vmlal_high_s8(high, n##v, y##i);                                                                 \
        }                                                                                                           \
        c##i##v = vpadalq_s16(c##i##v, low);                                                                        \
        d##i##v = vpadalq_s16(d##i##v, high);                                                                       \
    }
#define STEP(pair)                                                                                                  \
    {                                                                                                               \
        const int two = pair;                                                                                       \
        const uint8_t *b = EV_QUAD(g), *next = two ? EV_QUAD(g + 1) : b;                                            \
        const int8x16_t b0 = B(b), b1 = B(b + 16), b2 = B(b + 32), b3 = B(b + 48);                                  \
        const int8x16_t n0 = B(next), n1 = B(next + 16), n2 = B(next + 32), n3 = B(next + 48);                      \
        const int8x16_t x0 = A(a), x1 = A(a + lda);                                                                 \
        a += two ? 4 : 0;                                                                                           \
        const int8x16_t y0 = A(a), y1 = A(a + lda);                                                                 \
        a += 4;                                                                                                     \
        EV_FOURS(ADD, 0) EV_FOURS(ADD, 1)                                                                           \
    }
    int64_t g = 0;
    for (; g + 1 < quads; g += 2) STEP(1)
    if (g < quads) STEP(0)
#undef STEP
#undef ADD
#undef A
#undef B
#define PUT(i, v)                                                                                                   \
    {                                                                                                               \
        int32_t *to = sum + i * ld + 4 * v;                                                                         \
        const int32x4_t r = vaddq_s32(vpaddq_s32(c##i##v, d##i##v), vld1q_s32(start + 16 * i + 4 * v));             \
        vst1q_s32(to, add ? vaddq_s32(r, vld1q_s32(to)) : r);                                                       \
    }
    EV_FOURS(PUT, 0) EV_FOURS(PUT, 1)
#undef PUT
}
#undef EV_FOURS

/* As many pairs of rows as go that way; returns their number. */
static inline __attribute__((always_inline)) int64_t EV_FN(q_pairs)(int64_t m, int64_t quads, const uint8_t *a, int64_t lda,
                                                                    const uint8_t *panel, const int32_t *offset, int add,
                                                                    int32_t *sum, int64_t ld, const int a_unsigned)
{
    int32_t start[32];
    int64_t i = 0;
    if (m < (a_unsigned ? EV_FN(PAIR_ROWS) : 2)) return 0;
    if (a_unsigned) { /* the sums of B's columns */
        int32x4_t columns[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
        int8x16_t smallest = vdupq_n_s8(0);
        for (int64_t g = 0; g < quads; g++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) {
                const int8x16_t b = vreinterpretq_s8_u8(vld1q_u8(EV_QUAD(g) + 16 * v));
                columns[v] = vpadalq_s16(columns[v], vpaddlq_s8(b));
                smallest = vminq_s8(smallest, b);
            }
        if (vminvq_s8(smallest) == -128) return 0;
        for (int v = 0; v < 8; v++) vst1q_s32(start + 4 * v, vshlq_n_s32(columns[v % 4], 7));
    }
    for (; i + 2 <= m; i += 2, a += 2 * lda, sum += 2 * ld) {
        if (!a_unsigned) { /* the sums of A's rows */
            int8x16_t smallest = vdupq_n_s8(0);
            const int32_t more[2] = {EV_FN(q_sum)(4 * quads, (const int8_t *)a, &smallest),
                                     EV_FN(q_sum)(4 * quads, (const int8_t *)a + lda, &smallest)};
            if (vminvq_s8(smallest) == -128) break;
            for (int v = 0; v < 8; v++) vst1q_s32(start + 4 * v, vdupq_n_s32(more[v / 4]));
        }
        EV_FN(q_two_rows)(quads, a, lda, panel, offset, add, sum, ld, start, a_unsigned);
    }
    return i;
}
#endif

/* Any number of rows by one panel. */
static inline __attribute__((always_inline)) void EV_FN(q_panel)(int64_t m, int64_t quads, const uint8_t *a, int64_t lda,
                                                                 const uint8_t *b, const int32_t *offset, int add,
                                                                 int32_t *sum, int64_t ld, const int a_unsigned)
{
    enum { MR = EV_FN(QMR) };
#if defined(EV_HAS_PAIRS)
    const int64_t done = EV_FN(q_pairs)(m, quads, a, lda, b, offset, add, sum, ld, a_unsigned);
    m -= done, a += done * lda, sum += done * ld;
#endif
#define CALL(mr)                                                          \
    for (; m >= mr; m -= mr, a += mr * lda, sum += mr * ld)               \
        EV_FN(q_rows)(quads, a, lda, b, offset, add, sum, ld, mr, a_unsigned);
    CALL(MR)
    CALL(2)
    CALL(1)
#undef CALL
}

/* See qconv_tile_body.h: rows of W are used as they lie, whatever s. */
static void EV_FN(qc_tile)(int64_t m, int64_t n, int s, int64_t k, const void *a, int64_t lda, const uint8_t *b,
                           const int32_t *offset, int64_t step, const ev_qextra *const *extra, const int32_t *extras,
                           int32_t *sum, int64_t ld)
{
    (void)s, (void)extra, (void)extras;
    for (; n > 0; n -= EV_QC_NR, b += step, sum += EV_QC_NR) EV_FN(q_panel)(m, k / 4, a, lda, b, offset, 0, sum, ld, 0);
}

static void EV_FN(qc_plain)(int *plain)
{
    *plain = 1;
}

/* See qgemm_body.h. */
static void EV_FN(qgemm_u8)(int64_t m, int64_t n, int64_t quads, const uint8_t *a, int64_t lda, const uint8_t *b,
                            int a_unsigned, int presum, int add, int32_t *c)
{
    (void)n, (void)presum;
    if (a_unsigned) EV_FN(q_panel)(m, quads, a, lda, b, NULL, add, c, EV_QNR, 1);
    else EV_FN(q_panel)(m, quads, a, lda, b, NULL, add, c, EV_QNR, 0);
}

static void EV_FN(qhas_u8)(int *has)
{
    *has = 2;
}
