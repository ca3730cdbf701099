"""Blocked matrix products over the micro-kernels of ukr/gemm_body.h.

    for columns in blocks of nc (a thread's share of N)         C stays where it is, in the caller's memory
      for p in blocks of kc
        pack B[kc, nc] into panels of NR columns                in L2, at most B_BYTES a thread
        for rows in blocks of mc
          (pack A[mc, kc] where reading it in place is slow)
          for each panel of B                                   in L1: kc x NR
            micro-kernel: all mc rows, MR at a time             A streams from L2
      activation of C[:, nc] while it is in the cache

Bias, residual and clamping activations are applied by the micro-kernel as it stores; the rest by a second pass over
the block. A convolution supplies B through a callback, so that no im2col matrix is ever built.
"""
from evort._kernels.core cimport (EV_ACT_CLIP, EV_ACT_NONE, EV_ACT_RELU, EV_BIAS_COLUMN, EV_BIAS_ROW, EV_MR,
                                  EV_NR_F32, EV_NR_F64, ev_epilogue, ev_tile, ev_ukr, parallel_for, ukernels)
from libc.math cimport INFINITY

cdef const ev_ukr *K = ukernels()

cdef enum:
    KC = 320                     # a panel of B (KC x 64 bytes) and MR rows of A fit a 32 KB L1
    MC = 96                      # MC x KC x 4 bytes of A and B_BYTES of B fit a 512 KB L2
    B_BYTES = 160 * 1024
    MACS_PER_THREAD = 1 << 17    # less work than this (some 5 us) is not worth waking a thread

ctypedef void (*tile_fn)(const ev_tile *) noexcept nogil
ctypedef void (*pack_fn)(int64_t, int64_t, int64_t, int64_t, int64_t, const void *, void *) noexcept nogil

ctypedef struct Plan:
    int64_t kc, nc, mc           # block sizes
    int64_t parts_m, parts_n     # the grid of shares
    int64_t step_m, step_n       # size of a share
    int64_t slot                 # scratch bytes of a thread

ctypedef struct Job:
    const ev_gemm *g
    Plan plan
    int64_t size, nr
    tile_fn tile
    pack_fn pack


cdef inline int64_t ceil_div(int64_t a, int64_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline int64_t even_block(int64_t n, int64_t most, int64_t unit) noexcept nogil:
    """The block size, a multiple of `unit`, that cuts n into equal blocks of at most `most`."""
    if n <= 0:
        return unit
    return ceil_div(ceil_div(n, ceil_div(n, most)), unit) * unit


cdef void make_plan(Plan *plan, int64_t size, int64_t nr, int64_t m, int64_t n, int64_t k,
                    int32_t threads) noexcept nogil:
    cdef int64_t shares = max(1, min(<int64_t> threads, m * n * k // MACS_PER_THREAD))
    cdef int64_t best = -1, cost, parts_m, step_m, step_n
    for parts_m in range(1, shares + 1):
        if shares % parts_m != 0:
            continue
        step_m = ceil_div(ceil_div(m, EV_MR), parts_m) * EV_MR
        step_n = ceil_div(ceil_div(n, nr), shares // parts_m) * nr
        cost = (step_m + 4) * step_n + step_m * 4       # each share packs its own B, which costs like 4 rows
        if best < 0 or cost < best:
            best = cost
            plan.step_m, plan.step_n = step_m, step_n
    plan.step_m = max(plan.step_m, EV_MR)
    plan.step_n = max(plan.step_n, nr)
    plan.parts_m = ceil_div(m, plan.step_m)
    plan.parts_n = ceil_div(n, plan.step_n)
    plan.kc = even_block(k, KC * 4 // size, 4)
    plan.mc = even_block(plan.step_m, MC, EV_MR)
    plan.nc = even_block(plan.step_n, max(nr, B_BYTES // (plan.kc * size)), nr)
    plan.slot = ceil_div((plan.nc + plan.mc) * plan.kc * size, 64) * 64


cdef int64_t gemm_scratch(int64_t size, int64_t m, int64_t n, int64_t k, int32_t threads) noexcept nogil:
    cdef Plan plan
    make_plan(&plan, size, EV_NR_F32 if size == 4 else EV_NR_F64, m, n, k, threads)
    return plan.slot * min(<int64_t> threads, plan.parts_m * plan.parts_n)


cdef void share(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Computes shares [begin, end) of C."""
    cdef Job *job = <Job *> ctx
    cdef Plan *plan = &job.plan
    cdef const ev_gemm *g = job.g
    cdef const ev_epilogue *e = g.epilogue
    cdef const char *a = <const char *> g.a
    cdef const char *b = <const char *> g.b
    cdef char *c = <char *> g.c
    cdef char *packed_b = <char *> g.scratch + worker * plan.slot
    cdef char *packed_a = packed_b + plan.nc * plan.kc * job.size
    cdef int64_t size = job.size, item, i_begin, i_end, j_begin, j_end, i0, j0, p0, nb, kb, j
    cdef bint last, pack_a
    cdef ev_tile t
    t.alpha = g.alpha
    t.ldc = g.ldc
    for item in range(begin, end):
        i_begin = item // plan.parts_n * plan.step_m
        i_end = min(i_begin + plan.step_m, g.m)
        j_begin = item % plan.parts_n * plan.step_n
        j_end = min(j_begin + plan.step_n, g.n)
        pack_a = g.csa != 1 or (g.rsa * size % 1024 == 0 and j_end - j_begin >= 128)
        j0 = j_begin
        while j0 < j_end:
            nb = min(plan.nc, j_end - j0)
            p0 = 0
            last = False
            while not last:                              # once even for k == 0
                kb = min(plan.kc, g.k - p0)
                last = p0 + kb >= g.k
                if g.pack != NULL:
                    g.pack(g.pack_ctx, p0, kb, j0, nb, packed_b)
                else:
                    job.pack(job.nr, nb, kb, g.csb, g.rsb, b + (p0 * g.rsb + j0 * g.csb) * size, packed_b)
                t.k = kb
                t.ldb = job.nr
                i0 = i_begin
                while i0 < i_end:
                    t.m = min(plan.mc, i_end - i0)
                    t.a = a + (i0 * g.rsa + p0 * g.csa) * size
                    t.rsa, t.csa, t.a_step = g.rsa, g.csa, EV_MR * g.rsa
                    if pack_a:
                        job.pack(EV_MR, t.m, kb, g.rsa, g.csa, t.a, packed_a)
                        t.a = packed_a
                        t.rsa, t.csa, t.a_step = 1, EV_MR, EV_MR * kb
                    j = 0
                    while j < nb:
                        t.n = min(job.nr, nb - j)
                        t.b = packed_b + j * kb * size
                        t.c = c + (i0 * g.ldc + j0 + j) * size
                        finish(&t, g, size, i0, j0 + j, p0 == 0, last)
                        job.tile(&t)
                        j += job.nr
                    i0 += plan.mc
                p0 += kb
            if e != NULL and e.activation not in (EV_ACT_NONE, EV_ACT_RELU, EV_ACT_CLIP):
                K.activate_f32(e, i_end - i_begin, nb, i_begin, <float *> g.c + i_begin * g.ldc + j0, g.ldc)
            j0 += plan.nc


cdef inline void finish(ev_tile *t, const ev_gemm *g, int64_t size, int64_t i, int64_t j, bint first,
                        bint last) noexcept nogil:
    """Fills in what a tile adds to its product: C or the residual at first, bias and clamp at last."""
    cdef const ev_epilogue *e = g.epilogue
    t.add, t.ldadd, t.beta = t.c, g.ldc, 1
    t.row_bias = t.col_bias = NULL
    t.lo, t.hi = -INFINITY, INFINITY
    if first:
        t.beta = g.beta
        if g.beta == 0:
            t.add = NULL
        if e != NULL and e.residual != NULL:
            t.add = <const char *> e.residual + (i * e.ldr + j) * size
            t.ldadd, t.beta = e.ldr, 1
    if last and e != NULL:
        if e.bias_axis == EV_BIAS_ROW:
            t.row_bias = <const char *> e.bias + i * size
        elif e.bias_axis == EV_BIAS_COLUMN:
            t.col_bias = <const char *> e.bias + j * size
        if e.activation == EV_ACT_RELU:
            t.lo = 0
        elif e.activation == EV_ACT_CLIP:
            t.lo, t.hi = e.a, e.b


cdef void run(Job *job) noexcept nogil:
    cdef const ev_gemm *g = job.g
    if g.m <= 0 or g.n <= 0:
        return
    make_plan(&job.plan, job.size, job.nr, g.m, g.n, g.k, g.threads)
    cdef int64_t shares = job.plan.parts_m * job.plan.parts_n
    parallel_for(share, job, shares, 1, <int32_t> min(<int64_t> g.threads, shares))


cdef void gemm_f32(const ev_gemm *g) noexcept nogil:
    cdef Job job
    job.g, job.size, job.nr, job.tile, job.pack = g, 4, EV_NR_F32, K.gemm_f32, K.pack_f32
    run(&job)


cdef void gemm_f64(const ev_gemm *g) noexcept nogil:
    cdef Job job
    job.g, job.size, job.nr, job.tile, job.pack = g, 8, EV_NR_F64, K.gemm_f64, K.pack_f64
    run(&job)


cdef void gemm_init(ev_gemm *g, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b,
                    int64_t ldb, void *c, int64_t ldc) noexcept nogil:
    g.m, g.n, g.k = m, n, k
    g.a, g.rsa, g.csa = a, lda, 1
    g.b, g.rsb, g.csb = b, ldb, 1
    g.pack, g.pack_ctx = NULL, NULL
    g.c, g.ldc = c, ldc
    g.alpha, g.beta = 1, 0
    g.epilogue = NULL
    g.threads = 1
    g.scratch = NULL
