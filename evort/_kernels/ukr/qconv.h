/* Convolutions of 8- and 16-bit integers: what the drivers (qconv.pyx) tell the micro-kernels (qconv_body.h). */
#ifndef EV_QCONV_H
#define EV_QCONV_H

#include <stdint.h>

#define EV_QC_MR 4    /* rows of W that a tile takes, at most, */
#define EV_QC_PLAIN_MR 12 /* where they are used as they lie, */
#define EV_QC_NR 16   /* and columns: positions of the output */
#define EV_QC_STEP 16 /* rows of W are filled up with zeros to a multiple of this */
#define EV_QD_LANES 32 /* positions of a step of the depthwise convolution */

/* Weights taken out of a row as their sums could overflow: they meet the four bytes of B's quad again, by themselves. */
typedef struct {
    int32_t quad;
    int8_t w[4];
} ev_qextra;

/* Columns [at, at + n) of a panel: successive elements from `from` on, of each row of the image. */
typedef struct {
    int64_t from, at, n;
} ev_qrun;

/* Two taps of a depthwise channel; `last` of those whose sums fit 16 bits together. */
typedef struct {
    int16_t a, b;
    int8_t wa, wb;
    int16_t last;
} ev_qtaps;

/* A depthwise convolution of one map, where it lies: dense taps; outside of the image is `zero`, to which x is compared
 * after its bits `flip` are turned over. */
typedef struct {
    int64_t h, w, out_w, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
    int32_t zero, flip;
} ev_qdmap;

/* What becomes of the sums of a row; see evort/ops/requantize.py. */
typedef struct {
    int32_t type;            /* of the result: EV_UINT8, EV_INT8, EV_INT16, EV_FLOAT, EV_INT32 (the sums themselves) */
    int32_t zero, lo, hi;    /* zero point and bounds of the result, activation included where it `folds` */
    int32_t folds;           /* one product and a clamp do */
    int32_t activation;
    float a, b;              /* its parameters */
    float unit;              /* scale of the result */
    int32_t z_type, z_zero;  /* of the residual: EV_UINT8, EV_INT8, EV_INT16, EV_FLOAT */
    float z_scale;
    float *range;            /* NULL, or where to note the real results (ev_widen) */
} ev_qfinish;

#endif
