/* What the quantized elementwise drivers and their micro-kernels share. */
#ifndef EV_QELEMENTWISE_H
#define EV_QELEMENTWISE_H

#include <stdint.h>

enum { EV_QADD = 0, EV_QMUL = 1 };
enum { EV_QTILE = 1024 }; /* bytes of what repeats, at most */

/* A sum or a product of 8-bit tensors: round(f(a - zero_a, b - zero_b)) + zero, clamped to [lo, hi], with
 * f(a, b) = a * scale_a + b * scale_b, or a * b * scale_a. */
typedef struct {
    float scale_a, scale_b;
    int32_t zero_a, zero_b, zero, lo, hi;
} ev_qbinary;

/* A coordinate among the elements of an axis: byte offsets of the neighbours, and how far it is from one to the other. */
typedef struct {
    int32_t at, next;
    float part;
    int32_t unused;
} ev_place;

#endif
