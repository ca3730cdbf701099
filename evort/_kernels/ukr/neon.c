/* NEON by hand (every aarch64 processor has it): the rows that the compiler does not make of plain C as well. */
#pragma GCC optimize("no-schedule-insns") /* loads where they are used: earlier ones push sums out of the registers */
#include "ukr.h"

#define EV_ISA neon
#define EV_32_REGISTERS
#include <math.h>
#include <string.h>

#include "gemm_body.h"
#include "winograd_row_body.h"
#include "direct_body.h"
#include "qneon_body.h"
#include "qnhwc_neon_body.h"
#include "qneon_pairs_body.h"

const ev_ukr EV_FN(ev_ukr_table) = {
    .isa = EV_STR(EV_ISA),
    .mr = EV_MR,
    .packs_a = 1, /* 31 instructions for 24 multiplications of vectors, 45 where each number of A is loaded by itself */
    .gemm_f32 = EV_FN(gemm_f32),
    .gemm_f64 = EV_FN(gemm_f64),
    .gemm_packing_f32 = EV_FN(gemm_packing_f32), /* rows that read panels of `mr` go together */
    .gemm_packing_f64 = EV_FN(gemm_packing_f64),
    .gemm_few_f32 = EV_FN(gemm_few_f32),
    .gemm_few_f64 = EV_FN(gemm_few_f64),
    .winograd_row_f32 = EV_FN(winograd_row_f32),
    .direct_f32 = EV_FN(direct_f32),
    .direct_lanes_f32 = EV_FN(direct_lanes_f32),
    .qc_tile = EV_FN(qc_tile),
    .qc_plain = EV_FN(qc_plain),
    .qgemm_u8 = EV_FN(qgemm_u8),
    .qhas_u8 = EV_FN(qhas_u8),
    .nhwc_has = EV_FN(nhwc_has),
    .nhwc_conv = EV_FN(nhwc_conv),
    .nhwc_quads = EV_FN(nhwc_quads),
    .nhwc_columns = EV_FN(nhwc_columns),
    .qgemm_i16 = EV_FN(qgemm_i16),
};
