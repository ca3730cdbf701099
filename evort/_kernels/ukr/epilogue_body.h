/* The activations that follow a matrix product or convolution, over the block of C that was just written. */

#define EV_ROW(name, expression)                                                                             \
    static void EV_FN(name)(int64_t n, float *y, float a, float b)                                           \
    {                                                                                                        \
        (void)a, (void)b;                                                                                    \
        for (int64_t j = 0; j < n; j++) {                                                                    \
            const float x = y[j];                                                                            \
            y[j] = expression;                                                                               \
        }                                                                                                    \
    }

static inline float EV_FN(clip)(float x, float lo, float hi)
{
    x = x < lo ? lo : x;
    return x > hi ? hi : x;
}

EV_ROW(row_clip, EV_FN(clip)(x, a, b))
EV_ROW(row_leaky, x < 0.0f ? a * x : x)
EV_ROW(row_sigmoid, EV_FN(sigmoid_f32)(x))
EV_ROW(row_tanh, EV_FN(tanh_f32)(x))
EV_ROW(row_hard_sigmoid, EV_FN(clip)(a * x + b, 0.0f, 1.0f))
EV_ROW(row_hard_swish, x * EV_FN(clip)(x * (1.0f / 6.0f) + 0.5f, 0.0f, 1.0f))
EV_ROW(row_swish, x * EV_FN(sigmoid_f32)(a * x))
EV_ROW(row_softplus, EV_FN(softplus_f32)(x))
EV_ROW(row_elu, x < 0.0f ? a * EV_FN(expm1_negative_f32)(x) : x)
EV_ROW(row_mish, EV_FN(mish_f32)(x))
EV_ROW(row_gelu, 0.5f * x * (1.0f + EV_FN(erf_f32)(x * 0x1.6a09e6p-1f)))
EV_ROW(row_gelu_tanh, 0.5f * x * (1.0f + EV_FN(tanh_f32)(0x1.988454p-1f * (x + 0.044715f * x * x * x))))
#undef EV_ROW

static void EV_FN(activate_f32)(const ev_epilogue *e, int64_t m, int64_t n, int64_t i0, float *c, int64_t ldc)
{
    for (int64_t i = 0; i < m; i++, c += ldc) {
        switch (e->activation) {
        case EV_ACT_NONE: return;
        case EV_ACT_RELU: EV_FN(row_clip)(n, c, 0.0f, INFINITY); break;
        case EV_ACT_CLIP: EV_FN(row_clip)(n, c, e->a, e->b); break;
        case EV_ACT_LEAKY_RELU: EV_FN(row_leaky)(n, c, e->a, 0.0f); break;
        case EV_ACT_PRELU: EV_FN(row_leaky)(n, c, e->slope[i0 + i], 0.0f); break;
        case EV_ACT_SIGMOID: EV_FN(row_sigmoid)(n, c, 0.0f, 0.0f); break;
        case EV_ACT_TANH: EV_FN(row_tanh)(n, c, 0.0f, 0.0f); break;
        case EV_ACT_HARD_SIGMOID: EV_FN(row_hard_sigmoid)(n, c, e->a, e->b); break;
        case EV_ACT_HARD_SWISH: EV_FN(row_hard_swish)(n, c, 0.0f, 0.0f); break;
        case EV_ACT_SWISH: EV_FN(row_swish)(n, c, e->a, 0.0f); break;
        case EV_ACT_SOFTPLUS: EV_FN(row_softplus)(n, c, 0.0f, 0.0f); break;
        case EV_ACT_ELU: EV_FN(row_elu)(n, c, e->a, 0.0f); break;
        case EV_ACT_MISH: EV_FN(row_mish)(n, c, 0.0f, 0.0f); break;
        case EV_ACT_GELU: EV_FN(row_gelu)(n, c, 0.0f, 0.0f); break;
        case EV_ACT_GELU_TANH: EV_FN(row_gelu_tanh)(n, c, 0.0f, 0.0f); break;
        }
    }
}
