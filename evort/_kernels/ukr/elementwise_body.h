/* Elementwise micro-kernels: plain loops that the compiler vectorises for the file's instruction set. */

static void EV_FN(unary_f32)(int op, int64_t n, const float *x, float *y, float a, float b)
{
    (void)op;
    (void)a;
    (void)b;
    for (int64_t i = 0; i < n; i++) y[i] = x[i] > 0.0f ? x[i] : 0.0f;
}
