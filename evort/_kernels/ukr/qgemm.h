/* Quantized matrix products: what the driver (qgemm.pyx) and the micro-kernels (qgemm_body.h, requant_body.h) tell
 * each other. The contract of the operands and of the epilogue is in qgemm.pxd. */
#ifndef EV_QGEMM_H
#define EV_QGEMM_H

#include <stdint.h>

#define EV_QMR 6  /* rows and columns of a tile of sums in registers */
#define EV_QNR 16
#define EV_QMC 48 /* rows of A that are staged at a time */

/* GELU for results of 8 bits: x * (0.5 + t P(t^2)), t = x within [-3.94, 3.94], where the sum is 0 or 1; P, of these terms, is
 * our own minimax fit, with which GELU is within 1.7e-4 (and 9e-7 |x|). */
#define EV_QGELU_MOST 3.94f
#define EV_QGELU_TERMS \
    {0x1.978d4cp-2f, -0x1.092f34p-4f, 0x1.22126ep-7f, -0x1.b3b936p-11f, 0x1.a186d8p-15f, -0x1.c66bc6p-20f, 0x1.a7ee1ep-26f}

/* An operand where it lies: element (i, j) at data[i*rs + j*cs]. */
typedef struct {
    const void *data;
    int64_t rs, cs;
    int32_t type;       /* EV_UINT8, EV_INT8, EV_INT16; EV_FLOAT: it is quantized as it is read, */
    int32_t as_type;    /* to this of the three, */
    float scale;        /* by this scale */
    const void *zero;   /* zero point of A's row i, B's column j: zero[i*zero_step], of `type` (as_type); NULL for 0 */
    int64_t zero_step;
} ev_qoperand;

/* What happens to the sums; see qgemm.pxd. */
typedef struct {
    const float *scale;
    const void *bias;
    const void *residual;
    int64_t ldr;
    const float *slope;
    float factor;
    int32_t scale_axis;
    int32_t bias_axis, bias_type;
    int32_t residual_type, residual_zero;
    float residual_scale;
    int32_t activation;
    float a, b;
    int32_t type;
    float y_scale;
    int32_t y_zero, lo, hi;
    int32_t alpha, beta;
    float *range;           /* NULL, or where to note the real results (ev_widen) */
} ev_requant;

/* A block of sums to finish: m <= EV_QMC rows, n <= EV_QNR columns from (i0, j0) on, or one row of any length, without
 * `wide` and what is added. */
typedef struct {
    int64_t i0, j0, m, n;
    const int32_t *sum;     /* EV_QNR in a row */
    const int64_t *wide;    /* in place of `sum` where it is not NULL */
    const int32_t *row_add; /* m integers to be added to the rows' sums, or NULL */
    const int32_t *col_add; /* EV_QNR integers to be added to the columns', or NULL */
    void *c;                /* element (0, 0) of the result */
    int64_t ldc;
} ev_sums;

#endif
