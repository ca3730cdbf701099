/* AVX-512 F, BW, DQ and VL (Skylake-X, Ice Lake, Zen 4 and later): the rows that wider registers, masks or more of
 * them make faster. The others are AVX2's. */
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#include "ukr.h"

#define EV_ISA avx512
#include <immintrin.h>
#include <math.h>
#include <string.h>

extern const ev_ukr ev_ukr_table__avx2;

#include "math_body.h"
#include "elementwise_body.h"
#include "gemm_body.h"
#include "epilogue_body.h"
#include "nbits_body.h"
#include "direct_body.h"
#include "depthwise_rows_body.h"
#include "winograd_row_body.h"
#include "requant_avx512_body.h"
#include "qbytes_avx512_body.h"
#include "qmultiply_avx512_body.h"
#include "attention_body.h"
#include "sparse_body.h"
#include "sparse_float_body.h"

const ev_ukr EV_FN(ev_ukr_table) = {
    .isa = EV_STR(EV_ISA),
    .mr = EV_MR,
    .masks = 1,
    .unary_f32 = EV_FN(unary_f32),
    .activate_f32 = EV_FN(activate_f32),
    .gemm_f32 = EV_FN(gemm_f32),
    .gemm_f64 = EV_FN(gemm_f64),
    .gemm_packing_f32 = EV_FN(gemm_packing_f32),
    .gemm_packing_f64 = EV_FN(gemm_packing_f64),
    .gemm_few_f32 = EV_FN(gemm_few_f32),
    .gemm_few_f64 = EV_FN(gemm_few_f64),
    .gemv_rows_f32 = EV_FN(gemv_rows_f32),
    .gemv_rows_f64 = EV_FN(gemv_rows_f64),
    .gemv_dot_f32 = EV_FN(gemv_dot_f32),
    .gemv_dot_f64 = EV_FN(gemv_dot_f64),
    .depthwise_rows_f32 = EV_FN(depthwise_rows_f32),
    .winograd_row_f32 = EV_FN(winograd_row_f32),
    .direct_f32 = EV_FN(direct_f32),
    .direct_lanes_f32 = EV_FN(direct_lanes_f32),
    .softmax_part_f32 = EV_FN(softmax_part_f32),
    .q_binary_tiled = EV_FN(q_binary_tiled),
    .qfinish = EV_FN(qfinish),
    .qquad_rows = EV_FN(qquad_rows),
    .qc_stage = EV_FN(qc_stage),
    .qa_rows = EV_FN(qa_rows),
    .qa_columns = EV_FN(qa_columns),
    .qa_real = EV_FN(qa_real),
    .qa_weights = EV_FN(qa_weights),
    .nbits_spread_f32 = EV_FN(nbits_spread_f32),
    .nbits_dot_f32 = EV_FN(nbits_dot_f32),
    .nbits_spread_i16 = EV_FN(nbits_spread_i16),
    .nbits_dot_i16 = EV_FN(nbits_dot_i16),
    .sp_gather = EV_FN(sp_gather),
    .sp_tile_f32 = EV_FN(sp_tile_f32),
};
