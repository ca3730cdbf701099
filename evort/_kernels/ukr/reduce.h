/* What the reduce, pool and normalize micro-kernels and their drivers agree on. */
#ifndef EV_REDUCE_H
#define EV_REDUCE_H

/* What reduce_rows_f32 and reduce_cols_f32 add up in double: x, |x|, x*x, exp(x - shift) with
 * shift the largest x; or multiply: x. */
enum { EV_REDUCE_SUM = 0, EV_REDUCE_ABS = 1, EV_REDUCE_SQUARE = 2, EV_REDUCE_EXP = 3, EV_REDUCE_PROD = 4 };

/* Most columns that a driver hands to a _cols kernel at a time: their accumulators stay in the first cache. */
enum { EV_REDUCE_TILE = 256 };

/* What a pool takes of its window: the maximum, the sum, the sum of squares, the sum of magnitudes. */
enum { EV_POOL_MAX = 0, EV_POOL_SUM = 1, EV_POOL_SQUARE = 2, EV_POOL_ABS = 3 };

/* One row of pooling windows, horizontally: window o covers the elements o*stride - pad + k*dilation, k in
 * [0, kernel), of a row of `width` elements, as far as they exist. */
typedef struct {
    int64_t out, width, kernel, stride, dilation, pad;
    int64_t from, to; /* windows in [from, to) lie wholly in the row */
    /* For averages: positions in [count_from, count_to) count, times `weight` (the rows that count). */
    int64_t count_from, count_to;
    double weight;
} ev_window;

#endif
