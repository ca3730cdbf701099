/* Sums of products of int16 in pairs (see qgemm_body.h) on NEON: ld2 takes the pairs of eight columns apart, smlal
 * multiplies four columns by one number of a row. 6 rows by 16 columns are 24 of 32 registers. */
#include <arm_neon.h>

#define EV_EACH_ROW_Q(X) X(0) X(1) X(2) X(3) X(4) X(5)
typedef int32_t EV_FN(pair) __attribute__((may_alias, aligned(2)));

static inline __attribute__((always_inline)) void EV_FN(pair_rows)(int64_t pairs, const int16_t *a, int64_t lda,
                                                                   const int16_t *b, int add, int32_t *sum, const int mr)
{
#define X(i) int32x4_t p##i = vdupq_n_s32(0), q##i = p##i, r##i = p##i, s##i = p##i;
    EV_EACH_ROW_Q(X)
#undef X
    for (; pairs > 0; pairs--, a += 2, b += 2 * EV_QNR) {
        const int16x8x2_t low = vld2q_s16(b), high = vld2q_s16(b + EV_QNR);
#define ONE_K(i, t)                                                                  \
            p##i = vmlal_lane_s16(p##i, vget_low_s16(low.val[t]), x, t);             \
            q##i = vmlal_high_lane_s16(q##i, low.val[t], x, t);                      \
            r##i = vmlal_lane_s16(r##i, vget_low_s16(high.val[t]), x, t);            \
            s##i = vmlal_high_lane_s16(s##i, high.val[t], x, t);
#define X(i)                                                                         \
        if (mr > i) {                                                                \
            const int16x4_t x = vreinterpret_s16_s32(vdup_n_s32(*(const EV_FN(pair) *)(a + 2 * i * lda))); \
            ONE_K(i, 0)                                                              \
            ONE_K(i, 1)                                                              \
        }
        EV_EACH_ROW_Q(X)
#undef X
#undef ONE_K
    }
#define PUT(to, v) vst1q_s32(to, add ? vaddq_s32(v, vld1q_s32(to)) : v);
#define X(i)                                                                         \
    if (mr > i) {                                                                    \
        int32_t *to = sum + i * EV_QNR;                                              \
        PUT(to, p##i) PUT(to + 4, q##i) PUT(to + 8, r##i) PUT(to + 12, s##i)         \
    }
    EV_EACH_ROW_Q(X)
#undef X
#undef PUT
}
#undef EV_EACH_ROW_Q

static void EV_FN(qgemm_i16)(int64_t m, int64_t n, int64_t pairs, const int16_t *a, int64_t lda, const int16_t *b,
                             int add, int32_t *c)
{
    (void)n;
#define CALL(mr)                                                                     \
    for (; m >= mr; m -= mr, a += 2 * mr * lda, c += mr * EV_QNR)                    \
        EV_FN(pair_rows)(pairs, a, lda, b, add, c, mr);
    CALL(6)
    CALL(2)
    CALL(1)
#undef CALL
}
