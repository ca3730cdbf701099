/* What follows the sums of a quantized product, beyond instruction sets: when it is one product, and its bounds. */

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
