/* Convolutions: what the drivers (conv.pyx) tell the micro-kernels (conv_body.h). */
#ifndef EV_CONV_H
#define EV_CONV_H

#include <stdint.h>

/* A window over up to three spatial axes (depth, height, width; absent ones have size 1):
 * image = stride * out + dilation * tap - pad. */
typedef struct {
    int64_t image[3], out[3], kernel[3], stride[3], dilation[3], pad[3];
} ev_conv_window;

/* One channel of a depthwise convolution over height and width. The result is clamped to [lo, hi]. */
typedef struct {
    int64_t h, w, oh, ow, kh, kw, sh, sw, dh, dw, pad_h, pad_w;
    float lo, hi;
} ev_depthwise;

#endif
