/* AVX-512 with VNNI (Cascade Lake, Ice Lake, Zen 4 and later): products of 8 and 16 bits summed in 32 bits by one
 * instruction, which does not saturate. The other rows are those of AVX-512. */
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#include <immintrin.h>
#include <string.h>

#include "ukr.h"

extern const ev_ukr ev_ukr_table__avx2;

#define EV_ISA avx512vnni
#include "qvnni_body.h"
#include "qbytes_avx512_body.h"
#include "qnhwc_vnni_body.h"
#define EV_W_BYTES 64
#include "qwinograd_body.h"
#include "qlookup_avx512_body.h"
#include "sparse_body.h"
#include "nbits_vnni_body.h"

const ev_ukr EV_FN(ev_ukr_table) = {
    .isa = EV_STR(EV_ISA),
    .qc_tile = EV_FN(qc_tile),
    .qc_plain = EV_FN(qc_plain),
    .qd_map = EV_FN(qd_map),
    .q_lookup = EV_FN(q_lookup),
    .nhwc_has = EV_FN(nhwc_has),
    .nhwc_conv = EV_FN(nhwc_conv),
    .nhwc_quads = EV_FN(nhwc_quads),
    .nhwc_columns = EV_FN(nhwc_columns),
    .nhwc_winograd_kernels = EV_FN(nhwc_winograd_kernels),
    .nhwc_winograd_results = EV_FN(nhwc_winograd_results),
    .qgemm_i16 = EV_FN(qgemm_i16),
    .qdot = EV_FN(qdot),
    .qaxpy = EV_FN(qaxpy),
    .qgemm_u8 = EV_FN(qgemm_u8),
    .qhas_u8 = EV_FN(qhas_u8),
    .qrow_sums = EV_FN(qrow_sums),
    .qpanel_sums = EV_FN(qpanel_sums),
    .nbits_spread_f32 = EV_FN(nbits_spread_f32),
    .nbits_dot_f32 = EV_FN(nbits_dot_f32),
    .sp_tile_s8 = EV_FN(sp_tile_s8),
    .sp_dot_s8 = EV_FN(sp_dot_s8),
};
