/* What the interpolation drivers and their micro-kernels share; interpolate.pyx describes how they work together. */
#ifndef EV_INTERPOLATE_H
#define EV_INTERPOLATE_H

#include <stdint.h>

#define EV_POINTS 64        /* points of a block: the stride of the arrays of taps and corners */
#define EV_LANES 4          /* channels interleaved in a sampled image */
#define EV_MAX_TAPS 4
#define EV_MAX_CORNERS 64   /* cubic in three dimensions */

/* Where a coordinate or a tap leaves the axis. */
enum {
    EV_PAD_ZEROS = 0,       /* the tap is 0 */
    EV_PAD_BORDER = 1,      /* the outermost element */
    EV_PAD_REFLECT = 2,     /* mirrored at `low` and `high` */
    EV_PAD_REGION = 3       /* RoiAlign's: 0 more than one element away, else the outermost element */
};

typedef struct {
    int32_t size;           /* elements along the axis */
    int32_t stride;         /* bytes from one to the next in an interleaved image */
    int32_t taps;           /* 1: nearest, half to even; 2: linear; 4: cubic */
    int32_t padding;
    float low, high;        /* the borders: 0 and size - 1, or -0.5 and size - 0.5 */
} ev_axis;

#endif
