/* NEON with dot products (ARMv8.2 and later: Cortex-A55, A75, Neoverse N1): four products of bytes to a lane. */
#pragma GCC target("arch=armv8.2-a+dotprod")
#pragma GCC optimize("no-schedule-insns") /* as in neon.c */
#include "ukr.h"

#define EV_ISA neon_dotprod
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
