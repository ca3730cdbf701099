/* Parameters of training's micro-kernels (train_body.h). */
#ifndef EV_TRAIN_H
#define EV_TRAIN_H

#include <stdint.h>

/* One step of Adam. rest1, rest2: 1 - beta; unbias1, unbias2: 1 / (1 - beta^t); scale: of the gradient. */
typedef struct {
    float lr, beta1, beta2, rest1, rest2, unbias1, unbias2, epsilon, decay, scale;
    int32_t decoupled;
} ev_adam;

#endif
