/* Convolutions of bytes that lie channels last (NHWC): what the drivers (qnhwc.pyx) tell the micro-kernels
 * (qnhwc_body.h).
 *
 * Channels of the result are the lanes, so weights are packed once, in blocks of 64 channels (the last one of 16, 32, 48
 * or 64), and the image is read as it lies: a quad of a pixel's channels is broadcast.
 *
 *   W [blocks of 64][quads][up to 4 vectors][16 channels][4]          dense
 *   W [quads of the kernel's rows][its columns][channels][4 rows]     depthwise; the image is put in such quads, too
 *
 * Tables without a product of bytes that is exact for all of them take numbers of 16 bits, in pairs (`wide`):
 *
 *   W [blocks of 64][quads][up to 4 vectors][2 pairs][16 channels][2]   dense; the image is staged as int16
 *   W [pairs of the kernel's rows][its columns][channels][2 rows]       depthwise; the image is put in such pairs, too
 *
 * but for dense weights with a proof (`presum`), which are of bytes, as the image is.
 *
 * Winograd's convolution takes them by 16 channels, of a 3x3 kernel each:
 *
 *   W [blocks of 16][depth][pairs][9 taps][16 channels][2] */
#ifndef EV_QNHWC_H
#define EV_QNHWC_H

#include "qconv.h"

/* What nhwc_has says: which form of W; 0: none. The last two are of bytes, too: where their products are no faster than
 * those of 16 bits, and where they are so much faster that Winograd's convolution does not pay. */
enum { EV_NHWC_BYTES = 1, EV_NHWC_WIDE = 2, EV_NHWC_HALVES = 3, EV_NHWC_DOTS = 4 };

#define EV_NHWC_NR 64     /* channels of a block */
#define EV_NHWC_VECTOR 16 /* to a multiple of so many, channels are filled up */

#define EV_NHWC_POOL 28   /* at most so many positions have a result in common */

/* Positions, counted along rows of `width`: that at (row, column) begins at x + row*row_step + column*step, and reads
 * `quads` quads from each of the `segments` offsets on. Tables that say EV_NHWC_BYTES can take several for one: the result
 * of the largest sum of those that begin at the `pooled` places `pool` from there on. */
typedef struct {
    const void *x;            /* uint8, or the same numbers as int16 where `wide`; steps and offsets count elements */
    int64_t wide;
    int64_t presum;           /* 0, or of bytes: so many quads, from each segment's first on, whose products add up in 16
                               * bits, whatever the image is, as lanes of vpmaddubsw do. 1, or 2 where quads are even */
    int64_t row_step, step, width;
    const int32_t *pool;
    int64_t pooled;           /* 1: `pool` is {0} */
    int64_t halves;           /* whether of a vector's channels, at most 8, the second half are the first ones' at another
                               * position, the larger sum counts */
    const int32_t *offset;
    int64_t segments, quads;
    const int8_t *w;          /* the block's */
    const int32_t *add;       /* for each channel, up to a multiple of EV_NHWC_VECTOR: added to sums, */
    const float *scale;       /* multiplied with them */
    int64_t channels;         /* of the block */
    const ev_qfinish *finish; /* of a result of bytes; of activations that do not fold, those of qf_activate. NULL: y
                               * takes the sums, of 32 bits, as ldy counts too */
    const void *z;            /* NULL, or the residual: bytes, at p*ldz for position p */
    int64_t ldz, ldy;
    uint8_t *y;
} ev_nhwc_conv;

/* A band of tiles of 4x4 results by 16 of their channels, see qwinograd_body.h. */
typedef struct {
    int64_t rows, cols;       /* of tiles; `height` and `width` of their results are wanted */
    int64_t height, width;
    const uint8_t *x;         /* the image under them, 4 * rows + 2 rows of 4 * cols + 2 pixels; bytes up to a vector
                               * behind a pixel may be read */
    int64_t c, pitch;         /* channels of a pixel; bytes from a row to the next */
    int16_t *v;               /* [36][tiles][ldv]: tiles, transformed; elements are step_v apart */
    int64_t ldv, step_v;
    const int8_t *w;          /* [pairs][9][16][2] */
    int16_t *u;               /* [36][pairs][16][2]: kernels, transformed */
    int64_t step_u;
    const int32_t *o;         /* [36][tiles][16]: their products */
    int64_t step_o;
    const int32_t *add;       /* the rest as in ev_nhwc_conv, with `finish` */
    const float *scale;
    int64_t channels;
    const ev_qfinish *finish;
    const void *z;
    int64_t ldz, ldy;
    uint8_t *y;
} ev_nhwc_winograd;

/* Depthwise, by quads of rows: n results of `channels` bytes each, y_step apart in y. Byte e of four rows of the image is at
 * q + 4*e, that of the next four group_step further. Or by pairs of rows as int16, which take as much room. No residual. */
typedef struct {
    const uint8_t *q;
    int64_t groups, group_step;
    int64_t first;            /* the kernel's row that meets the first of these rows; below 0: so many rows before it */
    int64_t rows;             /* that there are; others in the last quads weigh nothing */
    int64_t kernel_h, kernel_w; /* groups * kernel_w is at most EV_NHWC_TAPS */
    int64_t tap_step, step;   /* in q: from a column of the kernel, and from a result, to the next */
    const int8_t *w;          /* the first quads of the block's channels, */
    int64_t w_step;           /* and how far the next column's are; all can be read up to a multiple of EV_NHWC_VECTOR */
    const int32_t *add;
    const float *scale;
    int32_t zero;             /* taken off what the rows hold */
    int64_t channels;         /* of the block */
    const ev_qfinish *finish;
    int64_t y_step;
    uint8_t *y;
} ev_nhwc_columns;

#define EV_NHWC_TAPS 64

#if defined(__aarch64__)
/* Results of n positions, `channels` each: of sums `lds` apart, which with scales can be read up to a multiple of 16.
 * At most EV_FINISH_MOST in all. z: NULL, or the residual. */
#define EV_FINISH_MOST (8 * EV_NHWC_NR)
void ev_nhwc_finish(const ev_qfinish *f, int64_t n, int64_t channels, const int32_t *sum, int64_t lds,
                    const float *scale, const char *z, int64_t ldz, uint8_t *y, int64_t ldy);
#endif

#endif
