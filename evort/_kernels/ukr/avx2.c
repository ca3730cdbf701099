/* AVX2 + FMA + F16C (Haswell, Zen and later). */
#pragma GCC target("avx2,fma,f16c")
#include "ukr.h"

#define EV_ISA avx2
#include "bodies.h"
