/* Recurrent cells: what follows the products of a step, for one sequence of a batch. Gates are n elements each, one
 * after the other; inputs of activation functions are clipped to [-clip, clip]. */

static inline float EV_FN(sigmoid_clipped)(float x, float clip) { return EV_FN(sigmoid_f32)(EV_FN(clip)(x, -clip, clip)); }
static inline float EV_FN(tanh_clipped)(float x, float clip) { return EV_FN(tanh_f32)(EV_FN(clip)(x, -clip, clip)); }

static void EV_FN(rnn_cell_f32)(int64_t n, const float *gate, float clip, float *h)
{
    for (int64_t j = 0; j < n; j++) h[j] = EV_FN(tanh_clipped)(gate[j], clip);
}

/* gates: i, o, f, c; p: peepholes i, o, f, or NULL. Updates the cell and the state. */
static void EV_FN(lstm_cell_f32)(int64_t n, const float *gates, const float *p, float clip, int input_forget,
                                 float *cell, float *h)
{
    const float *gi = gates, *go = gates + n, *gf = gates + 2 * n, *gc = gates + 3 * n;
    if (p || input_forget) {
        for (int64_t j = 0; j < n; j++) {
            const float i = EV_FN(sigmoid_clipped)(gi[j] + (p ? p[j] * cell[j] : 0.0f), clip);
            const float f = EV_FN(sigmoid_clipped)(gf[j] + (p ? p[2 * n + j] * cell[j] : 0.0f), clip);
            const float c = (input_forget ? 1.0f - i : f) * cell[j] + i * EV_FN(tanh_clipped)(gc[j], clip);
            const float o = EV_FN(sigmoid_clipped)(go[j] + (p ? p[n + j] * c : 0.0f), clip);
            cell[j] = c;
            h[j] = o * EV_FN(tanh_clipped)(c, clip);
        }
        return;
    }
    for (int64_t j = 0; j < n; j++) {
        const float i = EV_FN(sigmoid_clipped)(gi[j], clip), f = EV_FN(sigmoid_clipped)(gf[j], clip);
        const float c = f * cell[j] + i * EV_FN(tanh_clipped)(gc[j], clip);
        cell[j] = c;
        h[j] = EV_FN(sigmoid_clipped)(go[j], clip) * EV_FN(tanh_clipped)(c, clip);
    }
}

/* linear_before_reset: x and r are the products of the input and of the state, gates z, r, h each. */
static void EV_FN(gru_cell_f32)(int64_t n, const float *x, const float *r, float clip, float *h)
{
    for (int64_t j = 0; j < n; j++) {
        const float z = EV_FN(sigmoid_clipped)(x[j] + r[j], clip);
        const float reset = EV_FN(sigmoid_clipped)(x[n + j] + r[n + j], clip);
        const float g = EV_FN(tanh_clipped)(x[2 * n + j] + reset * r[2 * n + j], clip);
        h[j] = (1.0f - z) * g + z * h[j];
    }
}

/* Otherwise in two parts, as the reset state has to be multiplied in between: kept = sigmoid(r) * h, */
static void EV_FN(gru_reset_f32)(int64_t n, const float *gates, float clip, const float *h, float *kept)
{
    for (int64_t j = 0; j < n; j++) kept[j] = EV_FN(sigmoid_clipped)(gates[n + j], clip) * h[j];
}

/* and the update. */
static void EV_FN(gru_update_f32)(int64_t n, const float *gates, float clip, float *h)
{
    for (int64_t j = 0; j < n; j++) {
        const float z = EV_FN(sigmoid_clipped)(gates[j], clip), g = EV_FN(tanh_clipped)(gates[2 * n + j], clip);
        h[j] = (1.0f - z) * g + z * h[j];
    }
}
