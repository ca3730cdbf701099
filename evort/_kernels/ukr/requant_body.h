/* What follows the sums of a quantized product: scale, bias, residual, activation, and rounding to the output's type.
 * The same bits on every instruction set: no multiplication is fused with an addition. */
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")

/* Without a residual and a float bias, and with an activation that only clamps, an integer result is one product of
 * the sum, rounded and clamped. */
static int EV_FN(qfolds)(const ev_requant *q)
{
    return q->type != EV_FLOAT && !q->residual && (!q->bias || q->bias_type == EV_INT32) &&
           (q->activation == EV_ACT_NONE || q->activation == EV_ACT_RELU || q->activation == EV_ACT_CLIP);
}

static inline float EV_FN(qlowest)(const ev_requant *q, float bound)
{
    return q->activation == EV_ACT_RELU ? 0.0f : q->activation == EV_ACT_CLIP ? q->a : bound;
}

static inline float EV_FN(qhighest)(const ev_requant *q, float bound)
{
    return q->activation == EV_ACT_CLIP ? q->b : bound;
}

/* The smallest and largest result, as integers less the zero point. */
static void EV_FN(qlimits)(const ev_requant *q, float *least, float *most)
{
    *least = (float)(q->lo - q->y_zero), *most = (float)(q->hi - q->y_zero);
    if (!EV_FN(qfolds)(q)) return;
    const float lo = EV_FN(qlowest)(q, -INFINITY) / q->y_scale, hi = EV_FN(qhighest)(q, INFINITY) / q->y_scale;
    const float low = *least, high = *most;
    *least = (float)EV_FN(quantized)(lo, low, high);
    *most = (float)EV_FN(quantized)(hi, low, high);
}

/* n <= EV_QNR results, in whole rows of 16 where they are that many. */
static inline __attribute__((always_inline)) void EV_FN(qstore)(const float *x, int64_t n, const int type,
                                                                const float least, const float most, int32_t zero, void *c)
{
    if (type == EV_FLOAT) {
        if (n == EV_QNR) memcpy(c, x, EV_QNR * sizeof *x);
        else memcpy(c, x, (size_t)n * sizeof *x);
    } else if (type == EV_INT16) {
        int16_t y[EV_QNR];
        for (int j = 0; j < EV_QNR; j++) y[j] = (int16_t)(EV_FN(quantized)(x[j], least, most) + zero);
        if (n == EV_QNR) memcpy(c, y, sizeof y);
        else memcpy(c, y, (size_t)n * sizeof *y);
    } else {
        uint8_t y[EV_QNR];
        for (int j = 0; j < EV_QNR; j++) y[j] = (uint8_t)(EV_FN(quantized)(x[j], least, most) + zero);
        if (n == EV_QNR) memcpy(c, y, sizeof y);
        else memcpy(c, y, (size_t)n);
    }
}

/* Rows whose results are one product each, clamped. */
static inline __attribute__((always_inline)) void EV_FN(qfold_rows)(
    const ev_requant *q, const ev_sums *s, const int32_t *row, const int32_t *col, const float *row_scale,
    const float *col_scale, const float least, const float most, const int type, int64_t size)
{
    char *c = (char *)s->c + (s->i0 * s->ldc + s->j0) * size;
    const int32_t *sum = s->sum;
    for (int64_t i = 0; i < s->m; i++, sum += EV_QNR, c += s->ldc * size) {
        float x[EV_QNR];
        if (row_scale)
            for (int j = 0; j < EV_QNR; j++) x[j] = (float)(sum[j] + row[i] + col[j]) * row_scale[i];
        else
            for (int j = 0; j < EV_QNR; j++) x[j] = (float)(sum[j] + row[i] + col[j]) * col_scale[j];
        EV_FN(qstore)(x, s->n, type, least, most, q->y_zero, c);
    }
}

/* x (n elements of row i) + residual. */
static void EV_FN(qresidual)(const ev_requant *q, int64_t i, int64_t j0, int64_t n, float *x)
{
    const int64_t at = i * q->ldr + j0;
    if (q->residual_type == EV_FLOAT) {
        const float *z = (const float *)q->residual + at;
        for (int64_t j = 0; j < n; j++) x[j] += z[j];
        return;
    }
    float z[EV_QNR];
    if (q->residual_type == EV_UINT8)
        for (int64_t j = 0; j < n; j++) z[j] = (float)(((const uint8_t *)q->residual)[at + j] - q->residual_zero);
    else if (q->residual_type == EV_INT8)
        for (int64_t j = 0; j < n; j++) z[j] = (float)(((const int8_t *)q->residual)[at + j] - q->residual_zero);
    else
        for (int64_t j = 0; j < n; j++) z[j] = (float)(((const int16_t *)q->residual)[at + j] - q->residual_zero);
    for (int64_t j = 0; j < n; j++) x[j] += z[j] * q->residual_scale;
}

static void EV_FN(qactivate)(const ev_requant *q, int64_t i, int64_t n, float *x)
{
    if (q->activation == EV_ACT_NONE) return;
    if (q->activation == EV_ACT_HARD_SIGMOID || q->activation == EV_ACT_HARD_SWISH) { /* as elsewhere, but not fused */
        const int swish = q->activation == EV_ACT_HARD_SWISH;
        for (int64_t j = 0; j < n; j++) {
            float y = swish ? x[j] / 6.0f + 0.5f : q->a * x[j] + q->b;
            y = y < 0.0f ? 0.0f : y;
            y = y > 1.0f ? 1.0f : y;
            x[j] = swish ? x[j] * y : y;
        }
        return;
    }
    if (q->activation == EV_ACT_PRELU) EV_FN(unary_f32)(EV_ACT_LEAKY_RELU, n, x, x, q->slope[i], 0.0f);
    else EV_FN(unary_f32)(q->activation, n, x, x, q->a, q->b);
}

/* Everything else, step by step. */
static void EV_FN(qchain_rows)(const ev_requant *q, const ev_sums *s, const int32_t *row, const int32_t *col,
                               const float *row_scale, const float *col_scale, int folds, float least, float most,
                               int64_t size)
{
    const int float_bias = q->bias && q->bias_type == EV_FLOAT;
    const float *bias = float_bias ? q->bias : NULL;
    for (int64_t i = 0; i < s->m; i++) {
        char *c = (char *)s->c + ((s->i0 + i) * s->ldc + s->j0) * size;
        float x[EV_QNR] = {0};
        for (int64_t j = 0; j < s->n; j++) {
            const float f = s->wide ? (float)(s->wide[i * EV_QNR + j] + row[i] + col[j])
                                    : (float)(s->sum[i * EV_QNR + j] + row[i] + col[j]);
            x[j] = f * (row_scale ? row_scale[i] : col_scale[j]);
        }
        if (!folds) {
            if (float_bias && q->bias_axis == EV_BIAS_ROW)
                for (int64_t j = 0; j < s->n; j++) x[j] += bias[s->i0 + i];
            else if (float_bias)
                for (int64_t j = 0; j < s->n; j++) x[j] += bias[s->j0 + j];
            if (q->residual) EV_FN(qresidual)(q, s->i0 + i, s->j0, s->n, x);
            EV_FN(qactivate)(q, s->i0 + i, s->n, x);
            if (q->type != EV_FLOAT)
                for (int64_t j = 0; j < EV_QNR; j++) x[j] /= q->y_scale;
        }
        EV_FN(qstore)(x, s->n, q->type, least, most, q->y_zero, c);
    }
}

/* int32 results: C := beta*C + alpha*sum + bias. */
static void EV_FN(qraw_rows)(const ev_requant *q, const ev_sums *s, const int32_t *row, const int32_t *col)
{
    for (int64_t i = 0; i < s->m; i++) {
        int32_t *c = (int32_t *)s->c + (s->i0 + i) * s->ldc + s->j0;
        for (int64_t j = 0; j < s->n; j++) {
            const int32_t sum = s->wide ? (int32_t)s->wide[i * EV_QNR + j] : s->sum[i * EV_QNR + j];
            const int32_t r = sum * q->alpha + row[i] + col[j];
            c[j] = q->beta ? r + q->beta * c[j] : r;
        }
    }
}

static void EV_FN(qfinish)(const ev_requant *q, const ev_sums *s)
{
    int32_t row[EV_QMC], col[EV_QNR] = {0};
    const int whole = q->type == EV_INT32, biased = q->bias && q->bias_type == EV_INT32;
    const int32_t *bias = biased ? q->bias : NULL, alpha = whole ? q->alpha : 1;
    for (int64_t i = 0; i < s->m; i++) {
        row[i] = s->row_add ? s->row_add[i] * alpha : 0;
        if (biased && q->bias_axis == EV_BIAS_ROW) row[i] += bias[s->i0 + i];
    }
    for (int64_t j = 0; j < s->n; j++) {
        col[j] = s->col_add ? s->col_add[j] * alpha : 0;
        if (biased && q->bias_axis == EV_BIAS_COLUMN) col[j] += bias[s->j0 + j];
    }
    if (whole) {
        EV_FN(qraw_rows)(q, s, row, col);
        return;
    }
    const int folds = EV_FN(qfolds)(q);
    const float divisor = folds ? q->y_scale : 1.0f;
    float row_scale[EV_QMC], col_scale[EV_QNR] = {0}, least, most;
    EV_FN(qlimits)(q, &least, &most);
    if (q->scale_axis == EV_BIAS_ROW)
        for (int64_t i = 0; i < s->m; i++) row_scale[i] = q->factor * q->scale[s->i0 + i] / divisor;
    else
        for (int64_t j = 0; j < s->n; j++)
            col_scale[j] = q->factor * q->scale[q->scale_axis == EV_BIAS_COLUMN ? s->j0 + j : 0] / divisor;
    const float *rows = q->scale_axis == EV_BIAS_ROW ? row_scale : NULL;
    const int64_t size = q->type == EV_FLOAT ? 4 : q->type == EV_INT16 ? 2 : 1;
    const int plain = folds || (q->type == EV_FLOAT && !q->residual && (!q->bias || biased) && q->activation == EV_ACT_NONE);
    if (s->wide || !plain) EV_FN(qchain_rows)(q, s, row, col, rows, col_scale, folds, least, most, size);
    else if (q->type == EV_FLOAT)
        EV_FN(qfold_rows)(q, s, row, col, rows, col_scale, least, most, EV_FLOAT, 4);
    else if (size == 2)
        EV_FN(qfold_rows)(q, s, row, col, rows, col_scale, least, most, EV_INT16, 2);
    else
        EV_FN(qfold_rows)(q, s, row, col, rows, col_scale, least, most, EV_UINT8, 1);
}
#pragma GCC pop_options
