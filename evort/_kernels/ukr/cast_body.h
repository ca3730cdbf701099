/* Conversions between element types; ranges.
 *
 * Floats become integers by truncation. What lies outside int32 (int64 for the targets uint32, int64 and uint64), and
 * NaN, becomes the smallest int32 (int64), as x86 has it; narrower targets keep the low bits. float16 and bfloat16 go
 * through float32, in blocks. */

#define EV_CAST_BLOCK 256

EV_INLINE float EV_FN(half_to_float)(uint16_t h)
{
    /* Normal numbers by a shift and a new exponent; the multiplication does that for denormals too. */
    const uint32_t magnitude = (uint32_t)(h & 0x7fffu) << 13, sign = (uint32_t)(h & 0x8000u) << 16;
    const float scaled = EV_FN(unbits)(magnitude) * 0x1p112f;
    const uint32_t special = magnitude | 0x7f800000u;
    return EV_FN(unbits)((magnitude >= 0x0f800000u ? special : EV_FN(bits)(scaled)) | sign);
}

EV_INLINE uint16_t EV_FN(float_to_half)(float f)
{
    const uint32_t u = EV_FN(bits)(f), magnitude = u & 0x7fffffffu, sign = (u >> 16) & 0x8000u;
    const uint32_t odd = (magnitude >> 13) & 1u;
    const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + odd) >> 13;
    /* Below 2^-14: adding 0.5 leaves the denormal's bits, rounded to nearest even, in the low end of the sum. */
    const uint32_t denormal = EV_FN(bits)(EV_FN(unbits)(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t h = magnitude < 0x38800000u ? denormal : normal;
    h = magnitude >= 0x477ff000u ? 0x7c00u : h;
    h = magnitude > 0x7f800000u ? 0x7e00u | ((magnitude >> 13) & 0x3ffu) : h;
    return (uint16_t)(h | sign);
}

/* Widened and narrowed by half of the float's bits, rounded to nearest even. */
EV_INLINE float EV_FN(brain_to_float)(uint16_t h) { return EV_FN(unbits)((uint32_t)h << 16); }

EV_INLINE uint16_t EV_FN(float_to_brain)(float f)
{
    const uint32_t u = EV_FN(bits)(f);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const uint32_t nan = ((u >> 16) & 0x8000u) | 0x7fc0u;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

/* Rounded to odd, so that rounding again to a float16 gives what rounding once does. */
EV_INLINE float EV_FN(narrow_odd)(double x)
{
    const float f = (float)x;
    uint32_t u = EV_FN(bits)(f);
    const int inexact = (double)f != x && x == x && (u & 0x7fffffffu) != 0x7f800000u;
    const double ax = x < 0 ? -x : x, af = f < 0 ? -f : f;
    u -= (uint32_t)(inexact && af > ax);
    u |= (uint32_t)inexact;
    return EV_FN(unbits)(u);
}

EV_INLINE int32_t EV_FN(to_int32)(double x)
{
    return x > -2147483649.0 && x < 2147483648.0 ? (int32_t)x : INT32_MIN;
}

EV_INLINE int32_t EV_FN(float_to_int32)(float x)
{
    return x >= -0x1p31f && x < 0x1p31f ? (int32_t)x : INT32_MIN;
}

/* x86's instruction gives the smallest integer by itself. */
EV_INLINE int64_t EV_FN(to_int64)(double x)
{
#ifdef __x86_64__
    return _mm_cvttsd_si64(_mm_set_sd(x));
#else
    return x >= -0x1p63 && x < 0x1p63 ? (int64_t)x : INT64_MIN;
#endif
}

EV_INLINE uint64_t EV_FN(to_uint64)(double x)
{
    return x >= 0x1p63 && x < 0x1p64 ? (uint64_t)x : (uint64_t)EV_FN(to_int64)(x);
}

#define EV_CONVERT(name, S, D, expression)                                                                   \
    static void EV_FN(convert_##name)(int64_t n, const S *in, D *out)                                        \
    {                                                                                                        \
        for (int64_t i = 0; i < n; i++) {                                                                    \
            const S x = in[i];                                                                               \
            out[i] = (D)(expression);                                                                        \
        }                                                                                                    \
    }

/* From one type to all: 8, 16, 32 and 64 bits, uint64 for floats beyond int64, floats and bool. */
#define EV_CONVERT_ALL(S, s, int32, int64, uint64)                                                           \
    EV_CONVERT(s##_w8, S, uint8_t, int32)                                                                    \
    EV_CONVERT(s##_w16, S, uint16_t, int32)                                                                  \
    EV_CONVERT(s##_s32, S, int32_t, int32)                                                                   \
    EV_CONVERT(s##_u32, S, uint32_t, int64)                                                                  \
    EV_CONVERT(s##_s64, S, int64_t, int64)                                                                   \
    EV_CONVERT(s##_u64, S, uint64_t, uint64)                                                                 \
    EV_CONVERT(s##_f32, S, float, x)                                                                         \
    EV_CONVERT(s##_f64, S, double, x)                                                                        \
    EV_CONVERT(s##_bool, S, uint8_t, x != 0)                                                                 \
    static void EV_FN(cast_##s)(int to, int64_t n, const void *x, void *y)                                   \
    {                                                                                                        \
        switch (to) {                                                                                        \
        case EV_INT8: case EV_UINT8: EV_FN(convert_##s##_w8)(n, x, y); break;                                \
        case EV_INT16: case EV_UINT16: EV_FN(convert_##s##_w16)(n, x, y); break;                             \
        case EV_INT32: EV_FN(convert_##s##_s32)(n, x, y); break;                                             \
        case EV_UINT32: EV_FN(convert_##s##_u32)(n, x, y); break;                                            \
        case EV_INT64: EV_FN(convert_##s##_s64)(n, x, y); break;                                             \
        case EV_UINT64: EV_FN(convert_##s##_u64)(n, x, y); break;                                            \
        case EV_FLOAT: EV_FN(convert_##s##_f32)(n, x, y); break;                                             \
        case EV_DOUBLE: EV_FN(convert_##s##_f64)(n, x, y); break;                                            \
        case EV_BOOL: EV_FN(convert_##s##_bool)(n, x, y); break;                                             \
        }                                                                                                    \
    }

EV_CONVERT_ALL(float, f32, EV_FN(float_to_int32)(x), EV_FN(to_int64)(x), EV_FN(to_uint64)(x))
EV_CONVERT_ALL(double, f64, EV_FN(to_int32)(x), EV_FN(to_int64)(x), EV_FN(to_uint64)(x))
EV_CONVERT_ALL(int8_t, s8, x, x, x)
EV_CONVERT_ALL(uint8_t, u8, x, x, x)
EV_CONVERT_ALL(int16_t, s16, x, x, x)
EV_CONVERT_ALL(uint16_t, u16, x, x, x)
EV_CONVERT_ALL(int32_t, s32, x, x, x)
EV_CONVERT_ALL(uint32_t, u32, x, x, x)
EV_CONVERT_ALL(int64_t, s64, x, x, x)
EV_CONVERT_ALL(uint64_t, u64, x, x, x)
EV_CONVERT(bf16_f32, uint16_t, float, EV_FN(brain_to_float)(x))
EV_CONVERT(f32_bf16, float, uint16_t, EV_FN(float_to_brain)(x))
EV_CONVERT(f64_odd, double, float, EV_FN(narrow_odd)(x))

static void EV_FN(convert_f16_f32)(int64_t n, const uint16_t *in, float *out)
{
    int64_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(in + i))));
#endif
    for (; i < n; i++) out[i] = EV_FN(half_to_float)(in[i]);
}

static void EV_FN(convert_f32_f16)(int64_t n, const float *in, uint16_t *out)
{
    int64_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < n; i++) out[i] = EV_FN(float_to_half)(in[i]);
}

/* y = (type `to`) x for n items of type `from`; y may be x where the items have one size. */
static void EV_FN(cast)(int from, int to, int64_t n, const void *x, void *y)
{
    if (from == EV_FLOAT && to == EV_FLOAT16) {
        EV_FN(convert_f32_f16)(n, x, y);
    } else if (from == EV_FLOAT && to == EV_BFLOAT16) {
        EV_FN(convert_f32_bf16)(n, x, y);
    } else if (from == EV_FLOAT16 && to == EV_FLOAT) {
        EV_FN(convert_f16_f32)(n, x, y);
    } else if (from == EV_BFLOAT16 && to == EV_FLOAT) {
        EV_FN(convert_bf16_f32)(n, x, y);
    } else if (from == EV_FLOAT16 || from == EV_BFLOAT16 || to == EV_FLOAT16 || to == EV_BFLOAT16) {
        float block[EV_CAST_BLOCK];
        const int64_t from_size = ev_item_size(from), to_size = ev_item_size(to);
        for (int64_t i = 0; i < n; i += EV_CAST_BLOCK) {
            const int64_t m = n - i < EV_CAST_BLOCK ? n - i : EV_CAST_BLOCK;
            const char *source = (const char *)x + i * from_size;
            if (from == EV_DOUBLE && to == EV_FLOAT16) EV_FN(convert_f64_odd)(m, (const double *)source, block);
            else EV_FN(cast)(from, EV_FLOAT, m, source, block);
            EV_FN(cast)(EV_FLOAT, to, m, block, (char *)y + i * to_size);
        }
    } else {
        switch (from) {
        case EV_FLOAT: EV_FN(cast_f32)(to, n, x, y); break;
        case EV_DOUBLE: EV_FN(cast_f64)(to, n, x, y); break;
        case EV_INT8: EV_FN(cast_s8)(to, n, x, y); break;
        case EV_BOOL: case EV_UINT8: EV_FN(cast_u8)(to, n, x, y); break;
        case EV_INT16: EV_FN(cast_s16)(to, n, x, y); break;
        case EV_UINT16: EV_FN(cast_u16)(to, n, x, y); break;
        case EV_INT32: EV_FN(cast_s32)(to, n, x, y); break;
        case EV_UINT32: EV_FN(cast_u32)(to, n, x, y); break;
        case EV_INT64: EV_FN(cast_s64)(to, n, x, y); break;
        case EV_UINT64: EV_FN(cast_u64)(to, n, x, y); break;
        }
    }
}

/* y = (x - zero) * scale. */
static void EV_FN(dequantize_f32)(int64_t n, const float *x, const float *scale, const float *zero, int64_t stride,
                                  float *y)
{
    if (stride) {
        for (int64_t i = 0; i < n; i++) y[i] = (x[i] - zero[i]) * scale[i];
    } else {
        const float s = *scale, z = *zero;
        for (int64_t i = 0; i < n; i++) y[i] = (x[i] - z) * s;
    }
}

/* The smallest and largest of n numbers and of what `range` holds already. NaN is passed over. In as many lanes as
 * make a loop that the compiler vectorises. */
static void EV_FN(range_f32)(int64_t n, const float *x, float *range)
{
    enum { LANES = 64 };
    float lo[LANES], hi[LANES];
    for (int64_t j = 0; j < LANES; j++) lo[j] = range[0], hi[j] = range[1];
    for (int64_t i = 0; i < n; i += LANES, x += LANES) {
        const int64_t m = n - i < LANES ? n - i : LANES;
        for (int64_t j = 0; j < m; j++) {
            lo[j] = x[j] < lo[j] ? x[j] : lo[j];
            hi[j] = x[j] > hi[j] ? x[j] : hi[j];
        }
    }
    for (int64_t j = 0; j < LANES; j++) {
        range[0] = lo[j] < range[0] ? lo[j] : range[0];
        range[1] = hi[j] > range[1] ? hi[j] : range[1];
    }
}

/* What a float is, as bool: `kinds` is the sum of 1 for NaN, 2 for +infinity and 4 for -infinity. */
static void EV_FN(classify_f32)(int kinds, int64_t n, const float *x, uint8_t *y)
{
    const float top = kinds & 2 ? INFINITY : NAN, bottom = kinds & 4 ? -INFINITY : NAN;
    const int nan = kinds & 1;
    for (int64_t i = 0; i < n; i++) y[i] = (uint8_t)((x[i] == top) | (x[i] == bottom) | (nan & (x[i] != x[i])));
}

#undef EV_CAST_BLOCK
#undef EV_CONVERT
#undef EV_CONVERT_ALL
