/* All shared bodies, then the table of this instruction set. Included once by each of scalar.c, avx2.c, ... after
 * EV_ISA is defined and the target pragma is set. */
#include <math.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "math_body.h"
#include "elementwise_body.h"
#include "reduce_body.h"
#include "normalize_body.h"
#include "pool_body.h"
#ifdef EV_LEAN
/* The bodies from here on write most of their vectors themselves. */
#pragma GCC optimize("vect-cost-model=very-cheap", "no-unswitch-loops", "no-version-loops-for-strides")
#endif
#include "binary_body.h"
#include "cast_body.h"
#include "gemm_body.h"
#include "epilogue_body.h"
#include "qpack_body.h"
#include "qgemm_body.h"
#include "requant_body.h"
#include "attention_body.h"
#include "layout_body.h"
#include "conv_body.h"
#include "direct_copy_body.h"
#include "direct_body.h"
#include "winograd_body.h"
#include "winograd_row_body.h"
#include "depthwise_rows_body.h"
#include "depthwise_block_body.h"
#include "qconv_body.h"
#include "qfinish_body.h"
#include "qconv_tile_body.h"
#include "recurrent_body.h"
#ifdef EV_LEAN
/* And these are seldom waited for there. */
#pragma GCC optimize("Os")
#endif
#include "qnhwc_body.h"
#if defined(__AVX2__)
#include "qnhwc_avx2_body.h"
#elif defined(__aarch64__)
#include "qfinish_neon_body.h"
#endif
#include "qwinograd_body.h"
#include "winograd_line_body.h"
#include "interpolate_body.h"
#include "nbits_body.h"
#include "narrow_body.h"
#include "qelementwise_body.h"
#include "qnormalize_body.h"
#include "qsample_body.h"
#include "sparse_body.h"
#include "sparse_float_body.h"
#include "train_body.h"

const ev_ukr EV_FN(ev_ukr_table) = {
    .isa = EV_STR(EV_ISA),
    .mr = EV_MR,
#define EV_UKERNEL(name, args) .name = EV_FN(name),
#include "ukernels.inc"
#undef EV_UKERNEL
};
