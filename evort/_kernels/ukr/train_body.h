/* What training adds: slopes of activations, the weight gradient of convolutions, gradients of pools, optimizer steps.
 * Uses the vectors of gemm_body.h and the functions of math_body.h. */

#define V EV_FN(vf32)
#define VU EV_FN(vf32u)
#define VW (EV_VECTOR_BYTES / 4)

/* Activations --------------------------------------------------------------------------------------------------- */

/* dx = dy * slope, the slope given v, a and b. Operands may be one memory. */
#define EV_SLOPE(name, slope)                                                                                        \
    static void EV_FN(slope_##name)(int64_t n, const float *dy, const float *u, float a, float b, float *dx)         \
    {                                                                                                                \
        (void)a, (void)b;                                                                                            \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) {                                                       \
            const float v = u[i];                                                                                    \
            dx[i] = dy[i] * (slope);                                                                                 \
        }                                                                                                            \
    }
static inline __attribute__((always_inline)) float EV_FN(swish_slope)(float v, float a)
{
    const float s = EV_FN(sigmoid_f32)(a * v);
    return s + a * v * s * (1.0f - s);
}
static inline __attribute__((always_inline)) float EV_FN(gelu_slope)(float v)
{
    return 0.5f * (1.0f + EV_FN(erf_f32)(v * 0x1.6a09e6p-1f)) + v * 0x1.988454p-2f * EV_FN(exp_f32)(-0.5f * v * v);
}
static inline __attribute__((always_inline)) float EV_FN(gelu_tanh_slope)(float v)
{
    const float k = 0x1.988454p-1f, t = EV_FN(tanh_f32)(k * (v + 0.044715f * v * v * v));
    return 0.5f * (1.0f + t) + 0.5f * v * (1.0f - t * t) * (k * (1.0f + 3 * 0.044715f * v * v));
}
static inline __attribute__((always_inline)) float EV_FN(mish_slope)(float v)
{
    const float t = EV_FN(tanh_f32)(EV_FN(softplus_f32)(v));
    return t + v * EV_FN(sigmoid_f32)(v) * (1.0f - t * t);
}
EV_SLOPE(relu, v > 0.0f ? 1.0f : 0.0f)
EV_SLOPE(clip, v > a && v < b ? 1.0f : 0.0f)
EV_SLOPE(leaky, v < 0.0f ? a : 1.0f)
EV_SLOPE(sigmoid, v * (1.0f - v))
EV_SLOPE(tanh, 1.0f - v * v)
EV_SLOPE(hard_sigmoid, v > 0.0f && v < 1.0f ? a : 0.0f)
EV_SLOPE(hard_swish, v <= -3.0f ? 0.0f : v < 3.0f ? v * (1.0f / 3.0f) + 0.5f : 1.0f)
EV_SLOPE(swish, EV_FN(swish_slope)(v, a))
EV_SLOPE(gelu, EV_FN(gelu_slope)(v))
EV_SLOPE(gelu_tanh, EV_FN(gelu_tanh_slope)(v))
EV_SLOPE(softplus, EV_FN(sigmoid_f32)(v))
EV_SLOPE(elu, v < 0.0f ? a * EV_FN(exp_f32)(v) : 1.0f)
EV_SLOPE(mish, EV_FN(mish_slope)(v))
#undef EV_SLOPE

static void EV_FN(activation_grad_f32)(int op, int64_t n, const float *dy, const float *v, float a, float b, float *dx)
{
    switch (op) {
    case EV_ACT_RELU: EV_FN(slope_relu)(n, dy, v, a, b, dx); break;
    case EV_ACT_CLIP: EV_FN(slope_clip)(n, dy, v, a, b, dx); break;
    case EV_ACT_LEAKY_RELU: EV_FN(slope_leaky)(n, dy, v, a, b, dx); break;
    case EV_ACT_SIGMOID: EV_FN(slope_sigmoid)(n, dy, v, a, b, dx); break;
    case EV_ACT_TANH: EV_FN(slope_tanh)(n, dy, v, a, b, dx); break;
    case EV_ACT_HARD_SIGMOID: EV_FN(slope_hard_sigmoid)(n, dy, v, a, b, dx); break;
    case EV_ACT_HARD_SWISH: EV_FN(slope_hard_swish)(n, dy, v, a, b, dx); break;
    case EV_ACT_SWISH: EV_FN(slope_swish)(n, dy, v, a, b, dx); break;
    case EV_ACT_GELU: EV_FN(slope_gelu)(n, dy, v, a, b, dx); break;
    case EV_ACT_GELU_TANH: EV_FN(slope_gelu_tanh)(n, dy, v, a, b, dx); break;
    case EV_ACT_SOFTPLUS: EV_FN(slope_softplus)(n, dy, v, a, b, dx); break;
    case EV_ACT_ELU: EV_FN(slope_elu)(n, dy, v, a, b, dx); break;
    case EV_ACT_MISH: EV_FN(slope_mish)(n, dy, v, a, b, dx); break;
    }
}

/* Convolutions ---------------------------------------------------------------------------------------------------
 *
 * c[i*ldc + j] += sum over segments s < count and l < n of a[i*lda + s*sa + l] * b[offset[j] + s*sb + l]
 *
 * Inner products of m rows with `taps` rows that may overlap (the same image, shifted), n a multiple of 16. Four rows
 * by three taps live in registers over all segments; what is added across lanes is so only once. */

/* r and t are constants at each call. */
static inline __attribute__((always_inline)) void EV_FN(inner_tile)(
    const int r, const int t, int64_t count, int64_t n, const float *a, int64_t lda, int64_t sa, const float *b,
    const int64_t *offset, int64_t sb, float *c, int64_t ldc)
{
    const float *b0 = b + offset[0], *b1 = b + offset[t > 1 ? 1 : 0], *b2 = b + offset[t > 2 ? 2 : 0];
#define EV_EACH_ROW_OF_4(X) X(0) X(1) X(2) X(3)
#define X(i) V p##i = {0}, q##i = {0}, s##i = {0};
    EV_EACH_ROW_OF_4(X)
#undef X
    for (int64_t s = 0; s < count; s++) {
        for (int64_t l = 0; l < n; l += VW) {
            const V x0 = *(const VU *)(b0 + l);
            const V x1 = t > 1 ? *(const VU *)(b1 + l) : x0, x2 = t > 2 ? *(const VU *)(b2 + l) : x0;
#define X(i)                                                \
            if (r > i) {                                    \
                const V y = *(const VU *)(a + i * lda + l); \
                p##i += y * x0;                             \
                if (t > 1) q##i += y * x1;                  \
                if (t > 2) s##i += y * x2;                  \
            }
            EV_EACH_ROW_OF_4(X)
#undef X
        }
        a += sa;
        b0 += sb;
        b1 += sb;
        b2 += sb;
    }
#define X(i)                                                            \
    if (r > i) {                                                        \
        c[i * ldc] += EV_FN(lanes_sum_f32)(p##i);                       \
        if (t > 1) c[i * ldc + 1] += EV_FN(lanes_sum_f32)(q##i);        \
        if (t > 2) c[i * ldc + 2] += EV_FN(lanes_sum_f32)(s##i);        \
    }
    EV_EACH_ROW_OF_4(X)
#undef X
#undef EV_EACH_ROW_OF_4
}

static void EV_FN(inner_products_f32)(int64_t m, int64_t taps, int64_t count, int64_t n, const float *a, int64_t lda,
                                      int64_t sa, const float *b, const int64_t *offset, int64_t sb, float *c, int64_t ldc)
{
    for (int64_t j = 0; j < taps; j += 3)
        for (int64_t i = 0; i < m; i += 4) {
            const float *rows = a + i * lda;
            float *out = c + i * ldc + j;
#define EV_TILE(r, t) EV_FN(inner_tile)(r, t, count, n, rows, lda, sa, b, offset + j, sb, out, ldc)
#define EV_TILES(t)                        \
            switch (m - i) {               \
            case 1: EV_TILE(1, t); break;  \
            case 2: EV_TILE(2, t); break;  \
            case 3: EV_TILE(3, t); break;  \
            default: EV_TILE(4, t); break; \
            }
            switch (taps - j) {
            case 1: EV_TILES(1) break;
            case 2: EV_TILES(2) break;
            default: EV_TILES(3) break;
            }
#undef EV_TILES
#undef EV_TILE
        }
}

/* Pools ----------------------------------------------------------------------------------------------------------
 *
 * One row of n windows of 2 x 2, side by side: the gradient goes to the first of the largest elements. */
static void EV_FN(max_pool_grad_2x2_f32)(int64_t n, const float *x0, const float *x1, const float *dy, float *dx0, float *dx1)
{
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) {
        const float a = x0[2 * i], b = x0[2 * i + 1], c = x1[2 * i], d = x1[2 * i + 1], g = dy[i];
        const float top = b > a ? b : a, low = d > c ? d : c;
        const int below = low > top;
        const float gt = below ? 0.0f : g, gl = below ? g : 0.0f;
        dx0[2 * i] = b > a ? 0.0f : gt;
        dx0[2 * i + 1] = b > a ? gt : 0.0f;
        dx1[2 * i] = d > c ? 0.0f : gl;
        dx1[2 * i + 1] = d > c ? gl : 0.0f;
    }
}

/* z = a*x + b*y + c; z may be x or y. */
static void EV_FN(combine_f32)(int64_t n, float a, const float *x, float b, const float *y, float c, float *z)
{
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) z[i] = a * x[i] + b * y[i] + c;
}

/* Optimizers; outputs may be the inputs --------------------------------------------------------------------------- */

static void EV_FN(momentum_f32)(int64_t n, int nesterov, float lr, float momentum, float decay, float scale, const float *w,
                                const float *g, const float *v, float *w_new, float *v_new)
{
    const float ahead = nesterov ? momentum : 0.0f;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) {
        const float d = scale * g[i] + decay * w[i], u = momentum * v[i] + d;
        v_new[i] = u;
        w_new[i] = w[i] - lr * (nesterov ? d + ahead * u : u);
    }
}

/* unbias1, unbias2: 1 / (1 - beta^t). */
static void EV_FN(adam_f32)(int64_t n, const ev_adam *p, const float *w, const float *g, const float *m, const float *v,
                            float *w_new, float *m_new, float *v_new)
{
    const float b1 = p->beta1, b2 = p->beta2, r1 = p->rest1, r2 = p->rest2, inside = p->decoupled ? 0.0f : p->decay;
    const float outside = p->decoupled ? p->decay : 0.0f, scale = p->scale, lr = p->lr, epsilon = p->epsilon;
    const float u1 = p->unbias1, u2 = p->unbias2;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) {
        const float x = w[i], d = scale * g[i] + inside * x;
        const float mean = b1 * m[i] + r1 * d, square = b2 * v[i] + r2 * d * d;
        m_new[i] = mean;
        v_new[i] = square;
        w_new[i] = x - lr * (mean * u1 / (sqrtf(square * u2) + epsilon) + outside * x);
    }
}

#undef V
#undef VU
#undef VW
