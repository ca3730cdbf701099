/* The portable table: plain C for the compiler's baseline (SSE2 on x86-64, NEON on aarch64). */
#include "ukr.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EV_LEAN /* here it serves processors of before AVX2 only, and would weigh as much as AVX2's */
#endif
#define EV_ISA scalar
#include "bodies.h"
