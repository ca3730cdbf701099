/* NEON with matrix products of bytes (ARMv8.6: Cortex-A510, A710, Neoverse V1, Apple M2): 2 x 8 by 8 x 2 at once. */
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#pragma GCC optimize("no-schedule-insns") /* as in neon.c */
#include "ukr.h"

#define EV_ISA neon_i8mm
#include "qneon_body.h"
#include "qnhwc_neon_body.h"

const ev_ukr EV_FN(ev_ukr_table) = {
    .isa = EV_STR(EV_ISA),
    .qc_tile = EV_FN(qc_tile),
    .qc_plain = EV_FN(qc_plain),
    .qgemm_u8 = EV_FN(qgemm_u8),
    .qhas_u8 = EV_FN(qhas_u8),
    .nhwc_has = EV_FN(nhwc_has),
    .nhwc_conv = EV_FN(nhwc_conv),
    .nhwc_columns = EV_FN(nhwc_columns),
};
