/* Matrix products: what the blocking driver (gemm.pyx) and the micro-kernels (gemm_body.h) tell each other.
 *
 *   C[m,n] := activation(beta * add + alpha * A[m,k] * B[k,n] + bias)
 *
 * A is read where it lies, element (i, p) at a[i*rsa + p*csa], or from panels of `mr` rows (a constant of the table of
 * an instruction set, as the kernel likes it). B comes in panels of EV_NR columns (f32 16, f64 8; a kernel may take
 * several panels at a time), packed by the driver, or is read where it lies when its rows are wide (b_step = NR):
 *
 *        B panels (ldb = NR, b_step = NR*k)   A panels (rsa = 1, csa = mr, a_step = mr*k)
 *        p=0  b00 b01 ... b0,15               p=0  a00 a10 ... a50
 *        p=1  b10 b11 ... b1,15               p=1  a01 a11 ... a51
 *        ...  columns past n are 0            ...  rows past m are 0
 *
 * A kernel does all m rows for a panel (or a few) of B before it goes on to the next, so that they stay in L1 while A
 * streams past. Edges (m not a multiple of mr, n of NR) are the kernel's business. Sums run over p in order with one
 * accumulator for each element (the last columns, unless `in_order`, with one for each lane of a vector), so a result depends
 * neither on the number of threads nor on where a tile lies. */
#ifndef EV_GEMM_H
#define EV_GEMM_H

#include <stdint.h>

#define EV_NR_F32 16
#define EV_NR_F64 8
#define EV_MR_UNIT 12 /* a multiple of every table's mr: what the drivers cut rows by, whatever the instruction set */

/* One product. Pointers have the kernel's element type; strides count elements. */
typedef struct {
    int64_t m, n, k;
    const void *a;
    int64_t rsa, csa;
    int64_t a_step;                 /* from one group of mr rows to the next */
    const void *next;               /* the rows of A to come, fetched into L2 meanwhile, or NULL */
    int64_t ldnext;
    int in_order;                   /* the last columns are added up as the others are */
    const void *b;                  /* row p of a panel at p*ldb, NR readable elements each */
    int64_t ldb;
    int64_t b_step;                 /* from one panel to the next */
    void *c;
    int64_t ldc;
    const void *add;                /* NULL for zero; may be c itself */
    int64_t ldadd;
    const void *row_bias, *col_bias; /* m and n elements, or NULL */
    double alpha, beta;
    double lo, hi;                  /* the result is clamped to [lo, hi]; NaN stays NaN */
} ev_tile;

enum { EV_BIAS_NONE = 0, EV_BIAS_ROW, EV_BIAS_COLUMN };

/* What happens to C after the product, in this order: + bias, + residual, activation (EV_ACT_* of ev.h with its
 * parameters a and b; float64: EV_ACT_NONE, _RELU and _CLIP only). All zero means nothing. */
typedef struct {
    const void *bias;               /* m elements (EV_BIAS_ROW) or n (EV_BIAS_COLUMN) of C's type */
    const void *residual;           /* [m, n] of C's type with row stride ldr, or NULL; may be C itself */
    int64_t ldr;
    const float *slope;             /* m elements, for EV_ACT_PRELU */
    int32_t bias_axis;
    int32_t activation;
    float a, b;
} ev_epilogue;

#endif
