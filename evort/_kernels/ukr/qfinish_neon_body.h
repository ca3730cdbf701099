/* Convolutions of bytes, channels last: what becomes of the sums (ev_qfinish of qconv.h), on NEON. scalar.c has it for
 * all tables. */

#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")

/* 16 numbers, in vectors of four; the smallest and largest so far, four of each. */
typedef struct {
    float32x4_t v[4];
} EV_FN(real16);
typedef struct {
    float32x4_t lo, hi;
} EV_FN(range4);

#define EV_EACH_FOUR _Pragma("GCC unroll 4") for (int q = 0; q < 4; q++)

/* Adds n bytes of a residual, or the first 16. */
static inline __attribute__((always_inline)) void EV_FN(neon_residual)(const ev_qfinish *f, const char *z, int64_t n,
                                                                       EV_FN(real16) *r)
{
    char some[16] = {0};
    if (n < 16) z = memcpy(some, z, (size_t)n);
    const uint8x16_t bytes = vld1q_u8((const uint8_t *)z);
    const int16x8_t zero = vdupq_n_s16((int16_t)f->z_zero);
    const int unsigned_ = f->z_type == EV_UINT8;
    const int16x8_t low = vsubq_s16(unsigned_ ? vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes)))
                                              : vmovl_s8(vreinterpret_s8_u8(vget_low_u8(bytes))), zero);
    const int16x8_t high = vsubq_s16(unsigned_ ? vreinterpretq_s16_u16(vmovl_high_u8(bytes))
                                               : vmovl_high_s8(vreinterpretq_s8_u8(bytes)), zero);
    const int32x4_t v[4] = {vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)),
                            vmovl_high_s16(high)};
    EV_EACH_FOUR r->v[q] = vaddq_f32(r->v[q], vmulq_n_f32(vcvtq_f32_s32(v[q]), f->z_scale));
}

/* Activations that are a few instructions; whether this is one. NaN stays NaN. */
static inline __attribute__((always_inline)) int EV_FN(neon_activate)(const ev_qfinish *f, EV_FN(real16) *r)
{
    const float32x4_t none = vdupq_n_f32(0), one = vdupq_n_f32(1), a = vdupq_n_f32(f->a), b = vdupq_n_f32(f->b);
    switch (f->activation) {
    case EV_ACT_NONE: return 1;
    case EV_ACT_RELU: EV_EACH_FOUR r->v[q] = vmaxq_f32(r->v[q], none); return 1;
    case EV_ACT_LEAKY_RELU:
        EV_EACH_FOUR r->v[q] = vbslq_f32(vcltzq_f32(r->v[q]), vmulq_f32(a, r->v[q]), r->v[q]);
        return 1;
    case EV_ACT_HARD_SIGMOID:
        EV_EACH_FOUR r->v[q] = vminq_f32(one, vmaxq_f32(none, vaddq_f32(vmulq_f32(a, r->v[q]), b)));
        return 1;
    case EV_ACT_HARD_SWISH:
        EV_EACH_FOUR {
            const float32x4_t y = vaddq_f32(vmulq_n_f32(r->v[q], 1.0f / 6.0f), vdupq_n_f32(0.5f));
            r->v[q] = vmulq_f32(r->v[q], vminq_f32(one, vmaxq_f32(none, y)));
        }
        return 1;
    default: return 0;
    }
}

/* n results, or the first 16 of them, from numbers in units of the result: NaN becomes the least, and what is too large
 * is saturated by and by. */
static inline __attribute__((always_inline)) void EV_FN(neon_bytes)(const EV_FN(real16) *r, float32x4_t least,
                                                                    int16x8_t zero, int8x16_t most, int64_t n,
                                                                    uint8_t *y, const int is_unsigned)
{
    int32x4_t i[4];
    EV_EACH_FOUR i[q] = vcvtnq_s32_f32(vmaxnmq_f32(r->v[q], least));
    const int16x8_t low = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(i[0]), i[1]), zero);
    const int16x8_t high = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(i[2]), i[3]), zero);
    uint8x16_t bytes;
    if (is_unsigned) bytes = vminq_u8(vqmovun_high_s16(vqmovun_s16(low), high), vreinterpretq_u8_s8(most));
    else bytes = vreinterpretq_u8_s8(vminq_s8(vqmovn_high_s16(vqmovn_s16(low), high), most));
    if (n >= 16) {
        vst1q_u8(y, bytes);
    } else {
        uint8_t some[16];
        vst1q_u8(some, bytes);
        memcpy(y, some, (size_t)n);
    }
}

/* Notes the range of n numbers, or the first 16. NaN counts for nothing. */
static inline __attribute__((always_inline)) void EV_FN(neon_note)(const EV_FN(real16) *r, int64_t n,
                                                                   EV_FN(range4) *seen)
{
    const int32x4_t places = {0, 1, 2, 3};
    EV_EACH_FOUR {
        const uint32x4_t there = vcgtq_s32(vdupq_n_s32((int32_t)n - 4 * q), places);
        const float32x4_t x = vbslq_f32(there, r->v[q], vdupq_n_f32(NAN));
        seen->lo = vminnmq_f32(seen->lo, x);
        seen->hi = vmaxnmq_f32(seen->hi, x);
    }
}

/* folds: of `finish`; notes: its range is wanted. */
static inline __attribute__((always_inline)) void EV_FN(neon_finish)(
    const ev_qfinish *finish, int64_t n, int64_t channels, const int32_t *sum, int64_t lds, const float *scale,
    const char *z, int64_t ldz, uint8_t *y, int64_t ldy, const int is_unsigned, const int folds, const int notes)
{
    const ev_qfinish f = *finish; /* which stores to y do not change */
    const int64_t lanes = (channels + 15) / 16 * 16;
    const float32x4_t least = vdupq_n_f32((float)(f.lo - f.zero)), inverse = vdupq_n_f32(1.0f / f.unit);
    const int16x8_t zero = vdupq_n_s16((int16_t)f.zero);
    const int8x16_t most = vdupq_n_s8((int8_t)f.hi);
    EV_FN(range4) seen = {vdupq_n_f32(INFINITY), vdupq_n_f32(-INFINITY)};
    float real[EV_FINISH_MOST];
    int whole = 1; /* one pass does */
    for (int pass = 0; pass < 2 - whole; pass++) {
        if (pass) ev_ukr_table__scalar.unary_f32(f.activation, n * lanes, real, real, f.a, f.b);
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = 0; c < channels; c += 16) {
                const int32_t *s = sum + i * lds + c;
                float *at = real + i * lanes + c;
                EV_FN(real16) r;
                if (pass) {
                    EV_EACH_FOUR r.v[q] = vld1q_f32(at + 4 * q);
                } else {
                    const float *factor = scale + c;
                    EV_EACH_FOUR r.v[q] = vmulq_f32(vcvtq_f32_s32(vld1q_s32(s + 4 * q)), vld1q_f32(factor + 4 * q));
                    if (!folds && z) EV_FN(neon_residual)(&f, z + i * ldz + c, channels - c, &r);
                    if (!folds) whole = EV_FN(neon_activate)(&f, &r);
                    if (!whole) {
                        EV_EACH_FOUR vst1q_f32(at + 4 * q, r.v[q]);
                        continue;
                    }
                }
                if (notes) EV_FN(neon_note)(&r, channels - c, &seen);
                if (!folds) EV_EACH_FOUR r.v[q] = vmulq_f32(r.v[q], inverse);
                EV_FN(neon_bytes)(&r, least, zero, most, channels - c, y + i * ldy + c, is_unsigned);
            }
    }
    if (!notes) return;
    const float unit = folds ? f.unit : 1;
    ev_widen(f.range, vminnmvq_f32(seen.lo) * unit, vmaxnmvq_f32(seen.hi) * unit);
}

void ev_nhwc_finish(const ev_qfinish *f, int64_t n, int64_t channels, const int32_t *sum, int64_t lds,
                    const float *scale, const char *z, int64_t ldz, uint8_t *y, int64_t ldy)
{
    const int is_unsigned = f->type == EV_UINT8;
#define CALL(type, folds, notes) \
    EV_FN(neon_finish)(f, n, channels, sum, lds, scale, z, ldz, y, ldy, type, folds, notes)
    if (f->range && f->folds) CALL(is_unsigned, 1, 1);
    else if (f->range) CALL(is_unsigned, 0, 1);
    else if (!f->folds) CALL(is_unsigned, 0, 0);
    else if (is_unsigned) CALL(1, 1, 0);
    else CALL(0, 1, 0);
#undef CALL
}
#undef EV_EACH_FOUR
#pragma GCC pop_options
