/* Elementwise micro-kernels: plain loops that the compiler vectorises for the file's instruction set.
 *
 * The output may be one of the inputs; item i depends on no other item than i of each, which `ivdep` says. The loops
 * take whole vectors, so that they need no other loop for the rest, which is as long and slower: unary_f32 hands what is
 * left of a row over as a vector of its own. */

#if defined(__AVX512F__)
#define EV_WHOLE 16
#elif defined(__AVX2__)
#define EV_WHOLE 8
#else
#define EV_WHOLE 4
#endif

#define EV_MAP(name, T, expression)                                                                          \
    static void EV_FN(map_##name)(int64_t n, const T *in, T *out, T a, T b)                                  \
    {                                                                                                        \
        (void)a, (void)b;                                                                                    \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < (n & -EV_WHOLE); i++)                                   \
        {                                                                                                    \
            const T x = in[i];                                                                               \
            out[i] = expression;                                                                             \
        }                                                                                                    \
    }

/* NaN stays NaN. */
EV_INLINE float EV_FN(clip)(float x, float lo, float hi)
{
    x = x < lo ? lo : x;
    return x > hi ? hi : x;
}

#if defined(__SSE4_1__) || defined(__aarch64__) /* one instruction each */
EV_INLINE float EV_FN(round_f32)(float x) { return rintf(x); }
EV_INLINE float EV_FN(floor_f32)(float x) { return floorf(x); }
EV_INLINE float EV_FN(ceil_f32)(float x) { return ceilf(x); }
#else
/* Adding and taking away 2^23 rounds to an integer, ties to even; larger numbers are integers already. */
EV_INLINE float EV_FN(round_f32)(float x)
{
    const float magnitude = EV_FN(abs)(x);
    const float rounded = EV_FN(copysign)((magnitude + 0x1p23f) - 0x1p23f, x);
    return magnitude < 0x1p23f ? rounded : x;
}

EV_INLINE float EV_FN(floor_f32)(float x)
{
    const float r = EV_FN(round_f32)(x);
    return EV_FN(copysign)(r > x ? r - 1.0f : r, x);
}

EV_INLINE float EV_FN(ceil_f32)(float x) { return -EV_FN(floor_f32)(-x); }
#endif

EV_INLINE float EV_FN(celu_f32)(float x, float a)
{
    const float negative = a * EV_FN(expm1_negative_f32)(x / a < 0.0f ? x / a : 0.0f);
    return x > 0.0f ? x : x <= 0.0f ? negative : x;
}

EV_MAP(relu_f32, float, x < 0.0f ? 0.0f : x)
EV_MAP(clip_f32, float, EV_FN(clip)(x, a, b))
EV_MAP(leaky_f32, float, x < 0.0f ? a * x : x)
EV_MAP(sigmoid_f32, float, EV_FN(sigmoid_f32)(x))
EV_MAP(tanh_f32, float, EV_FN(tanh_f32)(x))
EV_MAP(hard_sigmoid_f32, float, EV_FN(clip)(a * x + b, 0.0f, 1.0f))
#ifdef __aarch64__ /* one instruction each; NaN comes back with the factor x */
EV_MAP(hard_swish_f32, float, x * fminf(fmaxf(x * (1.0f / 6.0f) + 0.5f, 0.0f), 1.0f))
#else
EV_MAP(hard_swish_f32, float, x * EV_FN(clip)(x * (1.0f / 6.0f) + 0.5f, 0.0f, 1.0f))
#endif
EV_MAP(swish_f32, float, x * EV_FN(sigmoid_f32)(a * x))
EV_MAP(softplus_f32, float, EV_FN(softplus_f32)(x))
EV_MAP(elu_f32, float, x < 0.0f ? a * EV_FN(expm1_negative_f32)(x) : x)
EV_MAP(selu_f32, float, x < 0.0f ? (a * b) * EV_FN(expm1_negative_f32)(x) : b * x)
EV_MAP(celu_f32, float, EV_FN(celu_f32)(x, a))
EV_MAP(mish_f32, float, EV_FN(mish_f32)(x))
EV_MAP(gelu_f32, float, EV_FN(gelu_f32)(x))
EV_MAP(gelu_tanh_f32, float,
       0.5f * x * (1.0f + EV_FN(tanh_f32)(0x1.988454p-1f * (x + 0.044715f * x * x * x))))
EV_MAP(thresholded_f32, float, x > a ? x : 0.0f)
EV_MAP(softsign_f32, float, x / (1.0f + EV_FN(abs)(x)))
EV_MAP(shrink_f32, float, x < -b ? x + a : x > b ? x - a : 0.0f)
EV_MAP(abs_f32, float, EV_FN(abs)(x))
EV_MAP(neg_f32, float, -x)
EV_MAP(sign_f32, float, x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x)
EV_MAP(floor_f32, float, EV_FN(floor_f32)(x))
EV_MAP(ceil_f32, float, EV_FN(ceil_f32)(x))
EV_MAP(round_f32, float, EV_FN(round_f32)(x))
EV_MAP(sqrt_f32, float, sqrtf(x))
EV_MAP(reciprocal_f32, float, 1.0f / x)
EV_MAP(exp_f32, float, EV_FN(exp_f32)(x))
EV_MAP(log_f32, float, EV_FN(log_f32)(x))
EV_MAP(erf_f32, float, EV_FN(erf_f32)(x))

/* Sine or cosine: the vector code where its range reduction is exact, libm for a block that goes beyond it. */
#define EV_WAVE(name, vector, libm)                                                                          \
    static void EV_FN(map_##name)(int64_t n, const float *x, float *y)                                       \
    {                                                                                                        \
        n &= -EV_WHOLE;                                                                                      \
        for (int64_t begin = 0; begin < n; begin += 64) {                                                    \
            const int64_t end = begin + 64 < n ? begin + 64 : n;                                             \
            int32_t largest = 0; /* floats without their signs compare as integers do */                     \
            for (int64_t i = begin; i < end; i++) {                                                          \
                const int32_t magnitude = (int32_t)(EV_FN(bits)(x[i]) & 0x7fffffffu);                        \
                largest = magnitude > largest ? magnitude : largest;                                         \
            }                                                                                                \
            if (EV_FN(unbits)((uint32_t)largest) <= EV_SIN_LIMIT) {                                          \
                const int64_t some = (end - begin) & -EV_WHOLE;                                              \
                _Pragma("GCC ivdep") for (int64_t i = 0; i < some; i++) y[begin + i] = vector(x[begin + i]); \
            } else {                                                                                         \
                for (int64_t i = begin; i < end; i++) y[i] = libm(x[i]);                                     \
            }                                                                                                \
        }                                                                                                    \
    }
EV_WAVE(sin_f32, EV_FN(sin_f32), sinf)
EV_WAVE(cos_f32, EV_FN(cos_f32), cosf)
#undef EV_WAVE

static void EV_FN(map_libm_f32)(float (*f)(float), int64_t n, const float *x, float *y)
{
    for (int64_t i = 0; i < n; i++) y[i] = f(x[i]);
}

/* n: a multiple of EV_WHOLE. */
static void EV_FN(unary_vectors_f32)(int op, int64_t n, const float *x, float *y, float a, float b)
{
    switch (op) {
    case EV_ACT_NONE: if (x != y) memcpy(y, x, (size_t)n * sizeof *y); break;
    case EV_ACT_RELU: EV_FN(map_relu_f32)(n, x, y, a, b); break;
    case EV_ACT_CLIP: EV_FN(map_clip_f32)(n, x, y, a, b); break;
    case EV_ACT_LEAKY_RELU: EV_FN(map_leaky_f32)(n, x, y, a, b); break;
    case EV_ACT_SIGMOID: EV_FN(map_sigmoid_f32)(n, x, y, a, b); break;
    case EV_ACT_TANH: EV_FN(map_tanh_f32)(n, x, y, a, b); break;
    case EV_ACT_HARD_SIGMOID: EV_FN(map_hard_sigmoid_f32)(n, x, y, a, b); break;
    case EV_ACT_HARD_SWISH: EV_FN(map_hard_swish_f32)(n, x, y, a, b); break;
    case EV_ACT_SWISH: EV_FN(map_swish_f32)(n, x, y, a, b); break;
    case EV_ACT_GELU: EV_FN(map_gelu_f32)(n, x, y, a, b); break;
    case EV_ACT_GELU_TANH: EV_FN(map_gelu_tanh_f32)(n, x, y, a, b); break;
    case EV_ACT_SOFTPLUS: EV_FN(map_softplus_f32)(n, x, y, a, b); break;
    case EV_ACT_ELU: EV_FN(map_elu_f32)(n, x, y, a, b); break;
    case EV_ACT_MISH: EV_FN(map_mish_f32)(n, x, y, a, b); break;
    case EV_ABS: EV_FN(map_abs_f32)(n, x, y, a, b); break;
    case EV_NEG: EV_FN(map_neg_f32)(n, x, y, a, b); break;
    case EV_SIGN: EV_FN(map_sign_f32)(n, x, y, a, b); break;
    case EV_FLOOR: EV_FN(map_floor_f32)(n, x, y, a, b); break;
    case EV_CEIL: EV_FN(map_ceil_f32)(n, x, y, a, b); break;
    case EV_ROUND: EV_FN(map_round_f32)(n, x, y, a, b); break;
    case EV_SQRT: EV_FN(map_sqrt_f32)(n, x, y, a, b); break;
    case EV_RECIPROCAL: EV_FN(map_reciprocal_f32)(n, x, y, a, b); break;
    case EV_EXP: EV_FN(map_exp_f32)(n, x, y, a, b); break;
    case EV_LOG: EV_FN(map_log_f32)(n, x, y, a, b); break;
    case EV_SIN: EV_FN(map_sin_f32)(n, x, y); break;
    case EV_COS: EV_FN(map_cos_f32)(n, x, y); break;
    case EV_TAN: EV_FN(map_libm_f32)(tanf, n, x, y); break;
    case EV_ASIN: EV_FN(map_libm_f32)(asinf, n, x, y); break;
    case EV_ACOS: EV_FN(map_libm_f32)(acosf, n, x, y); break;
    case EV_ATAN: EV_FN(map_libm_f32)(atanf, n, x, y); break;
    case EV_SINH: EV_FN(map_libm_f32)(sinhf, n, x, y); break;
    case EV_COSH: EV_FN(map_libm_f32)(coshf, n, x, y); break;
    case EV_ASINH: EV_FN(map_libm_f32)(asinhf, n, x, y); break;
    case EV_ACOSH: EV_FN(map_libm_f32)(acoshf, n, x, y); break;
    case EV_ATANH: EV_FN(map_libm_f32)(atanhf, n, x, y); break;
    case EV_ERF: EV_FN(map_erf_f32)(n, x, y, a, b); break;
    case EV_SELU: EV_FN(map_selu_f32)(n, x, y, a, b); break;
    case EV_CELU: EV_FN(map_celu_f32)(n, x, y, a, b); break;
    case EV_THRESHOLDED_RELU: EV_FN(map_thresholded_f32)(n, x, y, a, b); break;
    case EV_SOFTSIGN: EV_FN(map_softsign_f32)(n, x, y, a, b); break;
    case EV_SHRINK: EV_FN(map_shrink_f32)(n, x, y, a, b); break;
    }
}

static void EV_FN(unary_f32)(int op, int64_t n, const float *x, float *y, float a, float b)
{
    const int64_t left = n & (EV_WHOLE - 1), whole = n - left;
    if (whole > 0) EV_FN(unary_vectors_f32)(op, whole, x, y, a, b);
    if (!left) return;
    float part[EV_WHOLE];
    x += whole;
    y += whole;
#if defined(__AVX512F__)
    const __mmask16 first = (__mmask16)((1u << left) - 1);
    _mm512_storeu_ps(part, _mm512_maskz_loadu_ps(first, x));
    EV_FN(unary_vectors_f32)(op, EV_WHOLE, part, part, a, b);
    _mm512_mask_storeu_ps(y, first, _mm512_loadu_ps(part));
#elif defined(__AVX2__)
    const __m256i first = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)left), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    _mm256_storeu_ps(part, _mm256_maskload_ps(x, first));
    EV_FN(unary_vectors_f32)(op, EV_WHOLE, part, part, a, b);
    _mm256_maskstore_ps(y, first, _mm256_loadu_ps(part));
#else
    for (int i = 0; i < EV_WHOLE; i++) part[i] = i < left ? x[i] : 0.0f;
    EV_FN(unary_vectors_f32)(op, EV_WHOLE, part, part, a, b);
    for (int i = 0; i < EV_WHOLE; i++)
        if (i < left) y[i] = part[i];
#endif
}

#undef EV_WHOLE
