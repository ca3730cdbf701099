/* The activations that follow a matrix product or convolution, over the block of C that was just written. */

static void EV_FN(activate_f32)(const ev_epilogue *e, int64_t m, int64_t n, int64_t i0, float *c, int64_t ldc)
{
    if (e->activation == EV_ACT_NONE) return;
    if (ldc == n && e->activation != EV_ACT_PRELU) { /* one row: whole vectors, even where n is 1 */
        n *= m;
        m = 1;
    }
    for (int64_t i = 0; i < m; i++, c += ldc) {
        if (e->activation == EV_ACT_PRELU) EV_FN(unary_f32)(EV_ACT_LEAKY_RELU, n, c, c, e->slope[i0 + i], 0.0f);
        else EV_FN(unary_f32)(e->activation, n, c, c, e->a, e->b);
    }
}
