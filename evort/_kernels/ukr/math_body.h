/* Elementary functions in float32, branch-free, so that a plain loop over them vectorises for the file's
 * instruction set. Every input is allowed, NaN and infinities included. Error bounds in units in the last place of
 * the exact result, found by trying every 37th float (tests/test_math.py tries fewer):
 *
 *   exp 1.1   log 0.9   tanh 2.5   sigmoid 2.4   erf 1.5   softplus 2.5   mish 4.5 (and 1e-43)   expm1_negative 1.5
 *   sin, cos 1.6 (|x| <= EV_SIN_LIMIT)
 *
 * Coefficients: our own minimax fits by reweighted least squares, each rounded to float32 before the next is fitted. */

/* Inlined for certain, as a loop with a call in it does not vectorise. */
#define EV_INLINE static inline __attribute__((always_inline))

#define EV_SIN_LIMIT 1.6e6f /* beyond it the reduction of sin_f32 and cos_f32 loses bits: use libm */

EV_INLINE uint32_t EV_FN(bits)(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

EV_INLINE float EV_FN(unbits)(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

/* Clamped, then rounded to nearest even by adding 1.5 * 2^23, which leaves the integer in the low bits. NaN becomes the
 * least. */
EV_INLINE int32_t EV_FN(quantized)(float x, float least, float most)
{
    x = x > least ? x : least;
    x = x < most ? x : most;
    return (int32_t)(EV_FN(bits)(x + 0x1.8p23f) - 0x4b400000u);
}

/* 2^n for n in [-126, 127]. */
EV_INLINE float EV_FN(exp2i)(uint32_t n) { return EV_FN(unbits)((n + 127u) << 23); }

/* x = n ln 2 + r with |r| <= ln 2 / 2; returns exp(r) - 1 to within 1e-8 of itself. Adding 1.5 * 2^23 rounds to the
 * nearest integer and leaves it in the low bits. */
EV_INLINE float EV_FN(expm1_reduced)(float x, uint32_t *n)
{
    const float shifted = x * 0x1.715476p0f + 0x1.8p23f, whole = shifted - 0x1.8p23f;
    *n = EV_FN(bits)(shifted) - 0x4b400000u;
    const float r = (x - whole * 0x1.63p-1f) - whole * -0x1.bd0106p-13f; /* 0x1.63p-1: products with n are exact */
    /* In pairs, not by Horner's rule: the loops around are bound by the length of this chain. */
    const float r2 = r * r;
    const float high = 0x1.6b9caap-10f * r2 + (0x1.122560p-7f * r + 0x1.5556f2p-5f);
    const float p = high * r2 + (0x1.5554b4p-3f * r + 0x1.fffffep-2f);
    return r2 * p + r;
}

EV_INLINE float EV_FN(exp_f32)(float x)
{
    uint32_t n;
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    const float q = EV_FN(expm1_reduced)(x, &n);
    const uint32_t half = (uint32_t)((int32_t)n >> 1); /* two factors, as 2^n alone may not be a float */
    return (1.0f + q) * EV_FN(exp2i)(half) * EV_FN(exp2i)(n - half);
}

/* For x <= 0, at fewer operations; results may be denormal. */
EV_INLINE float EV_FN(exp_negative_f32)(float x)
{
    uint32_t n;
    x = x < -104.0f ? -104.0f : x;
    const float q = EV_FN(expm1_reduced)(x, &n);
    return (1.0f + q) * EV_FN(exp2i)(n + 64u) * 0x1p-64f;
}

EV_INLINE float EV_FN(log_f32)(float x)
{
    const int tiny = x < 0x1p-126f;
    const float scaled = tiny ? x * 0x1p23f : x;
    const uint32_t offset = EV_FN(bits)(scaled) - 0x3f3504f3u; /* bits of sqrt(1/2) */
    const float f = EV_FN(unbits)((offset & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
    const float e = (float)((int32_t)offset >> 23) - (tiny ? 23.0f : 0.0f);
    float p = -0x1.38d8f4p-4f;
    p = p * f + 0x1.056b30p-3f;
    p = p * f - 0x1.0d858ap-3f;
    p = p * f + 0x1.22d7bep-3f;
    p = p * f - 0x1.54720ap-3f;
    p = p * f + 0x1.99a026p-3f;
    p = p * f - 0x1.000228p-2f;
    p = p * f + 0x1.555554p-2f;
    const float f2 = f * f;
    float y = f2 * f * p + e * -0x1.bd0106p-13f;
    y = y - 0.5f * f2;
    y = (f + y) + e * 0x1.63p-1f;
    y = x == 0.0f ? -INFINITY : y;
    y = x < 0.0f ? NAN : y;
    return x < INFINITY ? y : x; /* infinity and NaN */
}

EV_INLINE float EV_FN(copysign)(float x, float sign)
{
    return EV_FN(unbits)((EV_FN(bits)(x) & 0x7fffffffu) | (EV_FN(bits)(sign) & 0x80000000u));
}

EV_INLINE float EV_FN(abs)(float x) { return EV_FN(unbits)(EV_FN(bits)(x) & 0x7fffffffu); }

/* With u = exp(2|x|) - 1: tanh |x| = u / (u + 2), without cancellation for small x. */
EV_INLINE float EV_FN(tanh_f32)(float x)
{
    uint32_t n;
    float y = EV_FN(abs)(x) * 2.0f;
    y = y > 18.2f ? 18.2f : y;
    const float q = EV_FN(expm1_reduced)(y, &n), scale = EV_FN(exp2i)(n);
    const float u = q * scale + (scale - 1.0f);
    return EV_FN(copysign)(u / (u + 2.0f), x);
}

/* With t = exp(-|x|): t / (1 + t) for negative x, 1 / (1 + t) for the rest; nothing overflows. */
EV_INLINE float EV_FN(sigmoid_f32)(float x)
{
    const float t = EV_FN(exp_negative_f32)(-EV_FN(abs)(x));
    return (x < 0.0f ? t : 1.0f) / (1.0f + t);
}

/* exp(x) - 1 for x <= 0. */
EV_INLINE float EV_FN(expm1_negative_f32)(float x)
{
    uint32_t n;
    x = x < -25.0f ? -25.0f : x;
    const float q = EV_FN(expm1_reduced)(x, &n), scale = EV_FN(exp2i)(n);
    return q * scale + (scale - 1.0f);
}

/* log(1 + exp(x)) as max(x, 0) + log(1 + t), t = exp(-|x|); the last term mends the rounding of u = 1 + t. */
EV_INLINE float EV_FN(softplus_f32)(float x)
{
    const float t = EV_FN(exp_negative_f32)(-EV_FN(abs)(x)), u = 1.0f + t;
    return (x < 0.0f ? 0.0f : x) + (EV_FN(log_f32)(u) + (t - (u - 1.0f)) / u);
}

/* x tanh(softplus(x)): with e = exp(x), tanh(log(1 + e)) = (e^2 + 2e) / (e^2 + 2e + 2). */
EV_INLINE float EV_FN(mish_f32)(float x)
{
    const float e = EV_FN(exp_f32)(x > 20.0f ? 20.0f : x), n = e * (e + 2.0f);
    return x * (n / (n + 2.0f));
}

/* An odd polynomial up to 0.95; beyond it 1 - exp(-t + t*q(t)). */
EV_INLINE float EV_FN(erf_f32)(float x)
{
    float t = EV_FN(abs)(x);
    const float s = t * t;
    float p = -0x1.2f700ap-11f;
    p = p * s + 0x1.448704p-8f;
    p = p * s - 0x1.b6112ep-6f;
    p = p * s + 0x1.ce11b4p-4f;
    p = p * s - 0x1.8126aep-2f;
    p = p * s + 0x1.06eba4p-3f;
    const float small = p * t + t;
    const int is_small = t < 0.95f;
    t = t > 3.95f ? 3.95f : t;
    float q = 0x1.c20782p-13f;
    q = q * t - 0x1.a60b88p-9f;
    q = q * t + 0x1.774a98p-6f;
    q = q * t - 0x1.af4134p-4f;
    q = q * t - 0x1.457a64p-1f;
    q = q * t - 0x1.073578p-3f;
    uint32_t n; /* the exponent is above -17, so that 2^n is a float */
    const float e = EV_FN(expm1_reduced)(q * t - t, &n), scale = EV_FN(exp2i)(n);
    const float large = (1.0f - scale) - e * scale;
    return EV_FN(copysign)(is_small ? small : large, x);
}

/* x times the normal distribution up to x, as max(x, 0) - u Q(u): u = |x|, and Q(u), what the distribution has beyond u, is 2 to
 * the power of a polynomial. Errors are at most a unit in the last place and 1.7 * 2^-24 |x|; beyond 5.8 what is taken off
 * is less than 2e-8. Of minus infinity it is NaN, as by the formula with erf. */
EV_INLINE float EV_FN(gelu_f32)(float x)
{
    float u = EV_FN(abs)(x);
    u = u > 5.8f ? 5.8f : u;
    const float u2 = u * u;
    const float high = (-0x1.7d73e0p-19f * u + 0x1.4b0a00p-15f) * u2 + (-0x1.874cb0p-13f * u - 0x1.1d1a96p-13f);
    const float low = (0x1.ced284p-8f * u - 0x1.ae0a82p-5f) * u2 + (-0x1.d63ac2p-2f * u - 0x1.26aed4p+0f);
    const float y = (high * (u2 * u2) + low) * u - 1.0f;
    const float shifted = y + 0x1.8p23f, r = y - (shifted - 0x1.8p23f), r2 = r * r; /* as in expm1_reduced */
    const float p = ((0x1.5bda96p-10f * r + 0x1.3ce8b2p-7f) * r2 + (0x1.c6b6d8p-5f * r + 0x1.ebf9c2p-3f)) * r2
                    + (0x1.62e42ap-1f * r + 1.0f);
    return (x < 0.0f ? x * 0.0f : x) - u * EV_FN(unbits)(EV_FN(bits)(p) + (EV_FN(bits)(shifted) << 23));
}

/* sin(x + quarters * pi/2). The reduction is in double: exact products up to 2^20 quarters. */
EV_INLINE float EV_FN(sin_quarter)(float x, uint32_t quarters)
{
    const double shifted = (double)x * 0x1.45f306dc9c883p-1 + 0x1.8p52, whole = shifted - 0x1.8p52;
    const float r = (float)(((double)x - whole * 0x1.921fb544p0) - whole * 0x1.0b4611a626331p-34);
    uint64_t low;
    memcpy(&low, &shifted, 8);
    const uint32_t quadrant = (uint32_t)low + quarters;
    const float s = r * r;
    float p = -0x1.991e08p-13f;
    p = p * s + 0x1.1106cap-7f;
    p = p * s - 0x1.555544p-3f;
    const float sine = p * s * r + r;
    float c = 0x1.99de6ep-16f;
    c = c * s - 0x1.6c0c14p-10f;
    c = c * s + 0x1.55554ap-5f;
    const float cosine = c * s * s + (1.0f - 0.5f * s);
    const float y = quadrant & 1u ? cosine : sine;
    return EV_FN(unbits)(EV_FN(bits)(y) ^ ((quadrant & 2u) << 30));
}

EV_INLINE float EV_FN(sin_f32)(float x)
{
    const float y = EV_FN(sin_quarter)(x, 0);
    return x == 0.0f ? x : y; /* the sum above loses the sign of -0 */
}

EV_INLINE float EV_FN(cos_f32)(float x) { return EV_FN(sin_quarter)(x, 1); }
