/* Convolutions: what the drivers (conv.pyx) tell the micro-kernels (conv_body.h). */
#ifndef EV_CONV_H
#define EV_CONV_H

#include <stdint.h>

/* A window over up to three spatial axes (depth, height, width; absent ones have size 1):
 * image = stride * out + dilation * tap - pad. */
typedef struct {
    int64_t image[3], out[3], kernel[3], stride[3], dilation[3], pad[3];
} ev_conv_window;

/* A depthwise convolution over height and width; `multiplier` channels of Y come from each of X. The result is clamped
 * to [lo, hi]. */
typedef struct {
    int64_t h, w, oh, ow, kh, kw, sh, sw, dh, dw, pad_h, pad_w;
    int64_t multiplier;
    int64_t plane;                    /* from one channel of x to the next, for depthwise_rows_f32 */
    float lo, hi;
} ev_depthwise;

/* Whether depthwise_rows_f32 takes it: 3x3 or 5x5, padded by half a kernel at most. */
static inline int ev_depthwise_rows(const ev_depthwise *d)
{
    return d->kh == d->kw && (d->kw == 3 || d->kw == 5) && d->dh == 1 && d->dw == 1 && d->pad_w <= d->kw / 2
           && (d->sh == 1 || d->sh == 2) && (d->sw == 1 || d->sw == 2)
           && (d->ow - 1) * d->sw + d->kw - d->pad_w <= d->w + d->kw / 2;
}

/* Channels to hand to depthwise_block_f32 in multiples of: no instruction set takes more at a time. */
#define EV_DEPTHWISE_CHANNELS 8

/* Columns of a row of its band, and the scratch that bands of so many output rows take. */
static inline int64_t ev_depthwise_pitch(const ev_depthwise *d)
{
    const int64_t reach = (d->ow - 1) * d->sw + (d->kw - 1) * d->dw + 1, padded = d->pad_w + d->w;
    return reach > padded ? reach : padded;
}

static inline int64_t ev_depthwise_floats(const ev_depthwise *d, int64_t rows)
{
    const int64_t high = (d->kh - 1) * d->dh + 1 + (rows - 1) * d->sh;
    return EV_DEPTHWISE_CHANNELS * (d->kh * d->kw + high * ev_depthwise_pitch(d) + rows * d->ow + 8);
}

/* Direct convolution of any stride and dilation, as a matrix product whose right operand is never built.
 *
 * The band of the image that some output rows need is copied with its padding, and split by phase: with
 * padded position = stride * index + phase, the elements of one phase lie side by side, so that every tap reads
 * consecutive elements, at a fixed distance from the output's position:
 *
 *   copy[channel][depth phase][height phase][width phase][plane][row][pitch]
 *   x[tap of output (d, h, w)] = copy[offset[channel, tap] + (d * rows + h) * pitch + w]
 *
 * `pitch` is at least the output's width; the columns between them are computed and left out. Rows share their
 * padding: what a tap reads past the end of a row are the zeros in front of the next. Where that still leaves many
 * columns out, each tap has a phase of its own along the width (shift[2] is 0), whose pitch is the output's width. */
typedef struct {
    ev_conv_window window;
    int64_t channels;                 /* of the group */
    int64_t period[3], shift[3];      /* number of phases in use; largest index of a tap */
    int64_t wrap;                     /* column i of width phase e is padded column i*stride + e*dilation % wrap */
    int64_t planes, rows, pitch;      /* of one phase */
    int64_t depth, height;            /* output rows of a band: planes - shift[0], rows - shift[1] */
} ev_direct_image;

/* Output channels of a panel of weights of direct_lanes_f32. */
#define EV_DIRECT_LANES 16

/* One plane of output rows of a band, for m output channels. direct_lanes_f32 has output channels in the lanes: w is
 * [m / EV_DIRECT_LANES][k][EV_DIRECT_LANES], y is [rows * ow][ldy], m a multiple of that; there is a
 * bias and no residual. */
typedef struct {
    int64_t m, k;
    const float *w;                   /* [m][k], row stride ldw */
    int64_t ldw;
    const float *x;                   /* the copy, from the first output position on */
    const int32_t *offset;            /* k */
    int64_t rows, pitch, ow;
    float *y;                         /* rows * ow elements for each output channel, ldy apart */
    int64_t ldy;
    const float *bias;                /* m, or NULL */
    const float *residual;            /* laid out like y (and may be y), or NULL */
    float lo, hi;
} ev_direct;

/* Output channels in the lanes of Winograd's convolution. */
#define EV_WINOGRAD_MAPS 16

/* Row `row` of the 6x6 elements of Winograd's convolution, for EV_WINOGRAD_MAPS output channels (winograd_row_body.h):
 * o[j][tile] := sum over c channels of U * v, where U is made of the kernels w[c][9]. o and w have output channels last. */
typedef struct {
    int64_t row, c, tiles;            /* tiles: a multiple of four */
    const float *w;
    int64_t ldw;                      /* from a channel to the next */
    const float *v;                   /* tile t of channel c at v[t / panel * step_v + c * ldv + j * panel + t % panel] */
    int64_t panel, ldv, step_v;       /* panel: a multiple of four */
    float *u;                         /* scratch of c * 6 * EV_WINOGRAD_MAPS */
    float *o;
    int64_t step;                     /* from o's j to the next */
    int32_t first;                    /* else o is added to */
    const float *next;                /* what is read later, fetched into L2: a part of 9 * EV_WINOGRAD_MAPS / 6 for each channel */
} ev_winograd_row;

/* Where the tiles of a block of Winograd's convolution go (winograd_body.h). */
typedef struct {
    int64_t rows, cols;               /* of tiles */
    int64_t height, width;            /* of outputs that are wanted: the last tiles may reach beyond */
    int64_t step;                     /* from one of the 36 elements to the next */
    int64_t ldy;                      /* row stride of y and of the residual */
    float lo, hi;
} ev_winograd_output;

#endif
