/* The portable table: plain C for the compiler's baseline (SSE2 on x86-64, NEON on aarch64). */
#include "ukr.h"

#define EV_ISA scalar
#include "bodies.h"
