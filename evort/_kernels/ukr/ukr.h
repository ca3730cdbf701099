/* Micro-kernels: small loops over contiguous memory, one build for each instruction set, chosen at run time.
 *
 *   ukernels.inc (the table)  ->  struct ev_ukr (a pointer for each row)
 *   scalar.c, avx2.c, ...     ->  one struct each:  EV_ISA + target pragma + shared bodies (some or all)
 *   dispatch.c                ->  ev_active, the struct that the processor (or EVORT_ISA) selects; rows that it leaves
 *                                 empty are those of the next lower instruction set
 *
 * To add a micro-kernel: a row in ukernels.inc and a body in the family's *_body.h. To add an instruction set: one
 * file like avx512.c, a line in dispatch.c and its name in setup.py. */
#ifndef EV_UKR_H
#define EV_UKR_H

#include <stdint.h>

#include "ev.h"
#include "conv.h"
#include "elementwise.h"
#include "gemm.h"
#include "interpolate.h"
#include "nbits.h"
#include "qelementwise.h"
#include "qconv.h"
#include "qgemm.h"
#include "qnhwc.h"
#include "reduce.h"
#include "sparse.h"
#include "train.h"

typedef struct ev_ukr {
    const char *isa;
    int64_t mr; /* rows that gemm_f32 and gemm_f64 take at a time: the width of packed panels of A, */
    int packs_a; /* which are faster than rows of A where they lie, whatever the packing costs */
    int masks;   /* whether they read no more of rows of B than its n columns */
#define EV_UKERNEL(name, args) void (*name) args;
#include "ukernels.inc"
#undef EV_UKERNEL
} ev_ukr;

/* The portable table, which takes whatever another one does not. */
extern const ev_ukr ev_ukr_table__scalar;

/* The selected table. Its address never changes; ev_select() overwrites its contents. */
extern ev_ukr ev_active;

/* Selects the table named `isa`, or the best one for this processor where isa is NULL or empty. Returns 0, or -1
 * where the name is unknown or the processor (or the operating system) lacks it. */
int ev_select(const char *isa);

/* The i-th instruction set that this machine can run, best first; NULL past the end. */
const char *ev_available(int i);

/* Function name of this instruction set: EV_FN(foo) is foo__avx2 in avx2.c. */
#define EV_CAT_(a, b) a##__##b
#define EV_CAT(a, b) EV_CAT_(a, b)
#define EV_FN(name) EV_CAT(name, EV_ISA)

#define EV_STR_(x) #x
#define EV_STR(x) EV_STR_(x)

#endif
