/* Products with sparse weights: what the drivers (sparse.pyx) tell the micro-kernels (sparse_body.h). */
#ifndef EV_SPARSE_H
#define EV_SPARSE_H

#define EV_SP_MR 4  /* rows of W that are skipped together, or one */
#define EV_SP_NR 64 /* columns of a panel */

#endif
