"""Blocked matrix products over the micro-kernels of ukr/gemm_body.h.

    for columns in blocks of nc (a thread's share of N)         C stays where it is, in the caller's memory
      for p in blocks of kc
        B[kc, nc] becomes panels of NR columns                  in L2, at most B_BYTES a thread
        for rows in blocks of mc
          (pack A[mc, kc] where its columns are what is contiguous, copy or pack where its rows are ALIASED_A bytes apart)
          micro-kernel: each panel of B (or two),               in L1: kc x NR
                        all mc rows, mr at a time               A streams from L2
      activation of C[:, nc] while it is in the cache

Where rows of B lie in memory, the first mr rows of A meet them there, and the micro-kernel fills the panels as it goes.

A product with one row or one column is a matrix-vector product, done without packing as W streams past once; with
few rows, B is read where it lies, as packing it would cost as much as using it: by rows, or as products of rows with
columns where columns are what is contiguous.

Bias, residual and clamping activations are applied by the micro-kernel as it stores; the rest by a second pass over
the block. A convolution supplies B through a callback, so that no im2col matrix is ever built.
"""
from evort._kernels.core cimport (EV_ACT_CLIP, EV_ACT_NONE, EV_ACT_RELU, EV_BIAS_COLUMN, EV_BIAS_NONE, EV_BIAS_ROW,
                                  EV_MR_UNIT, EV_NR_F32, EV_NR_F64, ev_epilogue, ev_tile, ev_ukr, parallel_for, ukernels)
from libc.math cimport INFINITY
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #include <unistd.h>
    #ifdef _SC_LEVEL2_CACHE_SIZE
    #define EV_L2_BYTES sysconf(_SC_LEVEL2_CACHE_SIZE)
    #else
    #define EV_L2_BYTES 0
    #endif
    /* Copies rows while the next ones, which lie on other pages, are fetched. */
    static void copy_rows(int64_t rows, int64_t bytes, const char *from, int64_t ldf, char *to, int64_t ldt)
    {
        for (; rows > 0; rows--, from += ldf, to += ldt) {
            for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + 2 * ldf + at, 0, 2);
            memcpy(to, from, (size_t)bytes);
        }
    }
    """
    const int64_t EV_L2_BYTES    # 0 or -1 where the system does not tell
    void copy_rows(int64_t rows, int64_t nbytes, const char *source, int64_t ldf, char *to, int64_t ldt) noexcept nogil

cdef const ev_ukr *K = ukernels()
cdef int64_t L2_BYTES = EV_L2_BYTES    # asked once: some C libraries ask the processor each time

cdef enum:
    KC = 320                     # a panel of B (KC x 64 bytes) and MR rows of A fit a 32 KB L1
    MC = 96                      # MC x KC x 4 bytes of A and B_BYTES of B fit a 256 KB L2
    PACKED_MC = 24               # the same where A is packed, which takes scratch
    ALIASED_A = 4096             # bytes between rows that fall into one set of L1, too small for mr of them: copied,
    COPY_PAD = 64                # as many bytes further apart,
    COPY_COLUMNS = 64            # if that many columns make use of it, or, where A is big and so many
    ALIASED_COLUMNS = 256        # columns do, packed
    PACK_COLUMNS = 32            # the same for packing A where the micro-kernel is faster with that
    B_BYTES = 80 * 1024          # larger measures no faster, unless A has to come from memory each time:
    BIG_A_BYTES = 3 << 20        # beyond this, so much
    BIG_A_B_BYTES = 160 * 1024
    ROOMY_L2_BYTES = 1 << 20     # With an L2 of this size panels come from there fast enough to be deeper than L1, and
    ROOMY_KC = 512               # C is read and written less often; and
    ROOMY_B_BYTES = 160 * 1024
    ROOMY_BIG_A_BYTES = 1 << 20
    ROOMY_BIG_A_B_BYTES = 640 * 1024
    HUGE_A_BYTES = 8 << 20       # Beyond this, or where a big A is packed for each block of columns, so many
    WIDE_COLUMNS = 1024          # columns of B, which then come from L3,
    WIDE_MC = 48                 # for so many rows of A at a time, which stay in L2
    FEW_ROWS = 16                # products of up to so many rows read B in place,
    SHALLOW_ROWS = 64            # or of up to so many where K is at most
    SHALLOW_K = 64               # columns of A that are contiguous are read where they lie, of so many rows or so few,
    IN_PLACE_KC = 160            # the rows of B that they take at a time,
    NEAR_ROWS = 96               # or so many
    NEAR_B_BYTES = 40 * 1024     # where B is no larger
    ALIASED_ROWS = 8             # Less where rows of B are ALIAS bytes apart or multiples, as they then
    ALIASED_KC = 32              # fall into few sets of the cache.
    ALIAS = 1024
    DOTS_ROWS = 40               # products of up to so many rows with columns of B that are contiguous, or
    DOTS_COLUMNS = 8             # so many columns, take those as they are,
    DOTS_BYTES = 64              # from so long rows on, and from
    DOTS_K_A_ROW = 3             # so many elements of K for each row, as adding up lanes costs like 48 multiplications
    IN_PLACE_TILE = 1 << 16      # elements of C that they finish at a time, which stay in L2
    VECTOR_COLUMNS = 4096        # of y at a time, which stay in L1
    MACS_PER_THREAD = 1 << 17    # less work than this (some 5 us) is not worth waking a thread
    VECTOR_MACS_PER_THREAD = 1 << 15
    SHARES_PER_THREAD = 3
    ROW_UNIT = 4                 # shares have multiples of it: the rows that micro-kernels of one column take together
    B_ROWS = 4                   # each share makes panels of its own B, which costs like so many rows,
    SUPPLIED_B_ROWS = 32         # or, where a function supplies them (im2col), so many

cdef enum Method:
    BLOCKED                      # B is packed
    IN_PLACE                     # B is read where it lies
    DOTS                         # and its columns are contiguous
    ROW_TIMES_ROWS               # m == 1, rows of B contiguous
    ROW_TIMES_COLUMNS            # m == 1, columns of B contiguous
    ROWS_TIMES_COLUMN            # n == 1, rows of A contiguous
    COLUMNS_TIMES_COLUMN         # n == 1, columns of A contiguous

ctypedef void (*tile_fn)(const ev_tile *) noexcept nogil
ctypedef void (*packing_fn)(const ev_tile *, const void *, int64_t) noexcept nogil
ctypedef void (*pack_fn)(int64_t, int64_t, int64_t, int64_t, int64_t, const void *, void *) noexcept nogil
ctypedef void (*gemv_rows_fn)(int64_t, int64_t, double, const void *, int64_t, const void *, int64_t,
                              void *) noexcept nogil
ctypedef void (*gemv_dot_fn)(int64_t, int64_t, double, const void *, const void *, int64_t, void *,
                             int64_t) noexcept nogil

ctypedef struct Plan:
    int64_t kc, nc, mc           # block sizes
    int64_t packed_mc            # that of packed rows
    int64_t most_nc              # of all products with no more columns
    int64_t parts_m, parts_n     # the grid of shares
    int64_t most_m, most_n       # size of the largest share
    int64_t slot                 # scratch bytes of a thread

ctypedef struct Job:
    const ev_gemm *g             # of the first matrix of the batch
    int64_t stride_a, stride_b, stride_c
    Plan plan
    Method method
    int64_t size, nr
    tile_fn tile, dots
    packing_fn packing
    pack_fn pack
    gemv_rows_fn gemv_rows
    gemv_dot_fn gemv_dot


cdef int64_t l2_bytes() noexcept nogil:
    return L2_BYTES


cdef inline int64_t ceil_div(int64_t a, int64_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline int64_t round_up(int64_t n, int64_t unit) noexcept nogil:
    return ceil_div(n, unit) * unit


cdef inline int64_t even_block(int64_t n, int64_t most, int64_t unit) noexcept nogil:
    """The block size, a multiple of `unit`, that cuts n into equal blocks of at most `most`, another multiple."""
    if n <= most:                # small products feel each division
        return max(unit, round_up(n, unit))
    return round_up(ceil_div(n, ceil_div(n, most)), unit)


cdef inline int64_t cut(int64_t n, int64_t unit, int64_t part, int64_t parts) noexcept nogil:
    """Where one of so many parts of n begins. They differ by a unit at most, the last one also by what n lacks of units."""
    if part == 0:                # small products feel each division
        return 0
    return n if part == parts else ceil_div(n, unit) * part // parts * unit


cdef inline int64_t largest(int64_t n, int64_t unit, int64_t parts) noexcept nogil:
    """The largest of these parts, which is one of the last two."""
    cdef int64_t last = cut(n, unit, parts - 1, parts)
    return n if parts == 1 else max(n - last, last - cut(n, unit, parts - 2, parts))


cdef void make_grid(Plan *plan, int64_t nr, int64_t m, int64_t n, int64_t k, int32_t threads,
                    bint supplied) noexcept nogil:
    """Shares: a grid of one for each thread, whose columns are cut further where there is much work, as processors may be
    of different speed, or busy. Those of a thread follow each other in a row of the grid, so that each has as much to do."""
    cdef int64_t macs = m * n * k, rows = ceil_div(m, ROW_UNIT), panels = ceil_div(n, nr)
    cdef int64_t b_rows = SUPPLIED_B_ROWS if supplied else B_ROWS, best = -1, cost, parts_m, parts_n, most, more
    cdef int64_t workers = min(<int64_t> threads,
                               macs // (VECTOR_MACS_PER_THREAD if m == 1 or n == 1 else MACS_PER_THREAD))
    plan.parts_m = plan.parts_n = 1
    if workers <= 1:
        return
    for parts_m in range(1, min(workers, rows) + 1):
        if workers % parts_m != 0:
            continue
        parts_n = min(workers // parts_m, panels)
        most = largest(m, ROW_UNIT, parts_m)
        cost = (most + b_rows) * largest(n, nr, parts_n) + most * 4
        if best < 0 or cost < best:
            best = cost
            plan.parts_m, plan.parts_n = parts_m, parts_n
    if workers == threads:
        more = max(<int64_t> 1, min(<int64_t> SHARES_PER_THREAD, macs // (4 * MACS_PER_THREAD * workers)))
        if panels < 4:           # cut in pairs of panels, which the widest tiles take
            plan.parts_m = min(plan.parts_m * more, rows)
        else:
            plan.parts_n *= max(<int64_t> 1, min(more, panels // (2 * plan.parts_n)))


cdef void make_plan(Plan *plan, int64_t size, int64_t nr, int64_t m, int64_t n, int64_t k, int32_t threads,
                    bint supplied) noexcept nogil:
    make_grid(plan, nr, m, n, k, threads, supplied)
    plan.most_m = max(round_up(ceil_div(m, plan.parts_m), ROW_UNIT), ROW_UNIT)
    plan.most_n = max(round_up(ceil_div(n, plan.parts_n), nr), nr)
    cdef bint roomy = L2_BYTES >= ROOMY_L2_BYTES
    cdef int64_t a_bytes = m * k * size
    plan.kc = even_block(k, ROOMY_KC if roomy else KC if size == 4 else KC // 2, 16)   # pack functions rely on the 16
    plan.mc = even_block(plan.most_m, MC, EV_MR_UNIT)
    plan.packed_mc = min(plan.mc, <int64_t> PACKED_MC)
    cdef int64_t b_bytes = ROOMY_B_BYTES if roomy else B_BYTES
    if a_bytes > (ROOMY_BIG_A_BYTES if roomy else BIG_A_BYTES):
        b_bytes = ROOMY_BIG_A_B_BYTES if roomy else BIG_A_B_BYTES
    plan.nc = plan.most_nc = plan.most_n
    if plan.nc * plan.kc * size > b_bytes:
        # (Rows with gaps between them may be ALIASED_A bytes apart in other cases, which are slower for it.)
        if roomy and (a_bytes > HUGE_A_BYTES or a_bytes > ROOMY_BIG_A_BYTES and k * size % ALIASED_A == 0):
            b_bytes = WIDE_COLUMNS * plan.kc * size
            plan.packed_mc = min(plan.mc, <int64_t> WIDE_MC)
        plan.most_nc = max(nr, b_bytes // (plan.kc * size) // nr * nr)
        plan.nc = even_block(plan.most_n, plan.most_nc, nr)
    plan.slot = slot_of(plan, size, plan.nc)


cdef inline int64_t slot_of(const Plan *plan, int64_t size, int64_t nc) noexcept nogil:
    return round_up((nc + plan.packed_mc) * plan.kc * size + plan.packed_mc * COPY_PAD, 64)


cdef Method choose(const ev_gemm *g, int64_t size) noexcept nogil:
    if g.pack != NULL or g.supply != NULL:
        return BLOCKED
    if g.in_order:               # all blocks of K are the same, or there is one
        return IN_PLACE if g.k <= IN_PLACE_KC and in_place_kc(g, size) > 0 else BLOCKED
    if g.m == 1 and g.rsb == 1 and g.csa == 1:
        return ROW_TIMES_COLUMNS
    if g.m == 1 and g.csb == 1 and not (K.masks and is_narrow(g, size)):
        return ROW_TIMES_ROWS
    if g.n == 1 and g.rsa == 1 and g.ldc == 1:
        return COLUMNS_TIMES_COLUMN
    if g.n == 1 and g.csa == 1 and g.rsb == 1:
        return ROWS_TIMES_COLUMN
    if (g.csa == 1 and g.rsb == 1 and g.csb != 1 and g.k * size >= DOTS_BYTES and
            (g.n <= DOTS_COLUMNS or g.m <= DOTS_ROWS and g.k >= DOTS_K_A_ROW * g.m)):
        return DOTS
    return IN_PLACE if in_place_kc(g, size) > 0 else BLOCKED


cdef bint gemm_packs(const ev_gemm *g, int64_t size) noexcept nogil:
    """Whether a product may use scratch: with a vector none does, nor where masks read the last columns of B in place."""
    cdef Method method = choose(g, size)
    return method == BLOCKED or method == IN_PLACE and not K.masks


cdef bint is_narrow(const ev_gemm *g, int64_t size) noexcept nogil:
    """Whether B is one panel at most: packing it would be a mere copy."""
    return g.n * size <= EV_NR_F32 * 4


cdef int64_t in_place_kc(const ev_gemm *g, int64_t size) noexcept nogil:
    """Rows of B to take at a time, 0 where packing B pays: with many rows of A, or with long columns of B."""
    cdef bint aliased = g.rsb * size % ALIAS == 0
    if K.masks and g.csb == 1 and not aliased and g.rsa * size % ALIASED_A != 0 and is_narrow(g, size):
        return even_block(g.k, ROOMY_KC, 4)
    cdef int64_t kc = ALIASED_KC if aliased else IN_PLACE_KC
    cdef int64_t shallow = NEAR_ROWS if g.n * g.k * size <= NEAR_B_BYTES else SHALLOW_ROWS
    if g.csb != 1 or g.m > (ALIASED_ROWS if aliased else FEW_ROWS) and (g.m > shallow or g.k > kc):
        return 0
    return even_block(g.k, kc, 4)


cdef void shares(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Computes shares [begin, end) of the batch's results."""
    cdef Job *job = <Job *> ctx
    cdef Plan *plan = &job.plan
    cdef int64_t item, index, i, j, i_begin, i_end, j_begin, j_end, per_matrix = plan.parts_m * plan.parts_n
    cdef char *scratch = <char *> job.g.scratch + worker * plan.slot
    cdef ev_gemm g
    cdef ev_epilogue e
    for item in range(begin, end):
        index = item // per_matrix
        g = job.g[0]
        g.a = <const char *> g.a + index * job.stride_a * job.size
        g.b = <const char *> g.b + index * job.stride_b * job.size
        g.c = <char *> g.c + index * job.stride_c * job.size
        if g.epilogue != NULL and g.epilogue.residual != NULL:
            e = g.epilogue[0]
            e.residual = <const char *> e.residual + index * job.stride_c * job.size
            g.epilogue = &e
        i, j = item % per_matrix // plan.parts_n, item % plan.parts_n
        i_begin, i_end = cut(g.m, ROW_UNIT, i, plan.parts_m), cut(g.m, ROW_UNIT, i + 1, plan.parts_m)
        j_begin, j_end = cut(g.n, job.nr, j, plan.parts_n), cut(g.n, job.nr, j + 1, plan.parts_n)
        if job.method >= ROW_TIMES_ROWS:
            vector_share(job, &g, i_begin, i_end, j_begin, j_end)
        elif job.method == DOTS:
            dots_share(job, &g, i_begin, i_end, j_begin, j_end)
        else:
            matrix_share(job, &g, i_begin, i_end, j_begin, j_end, scratch)


cdef void matrix_share(const Job *job, const ev_gemm *g, int64_t i_begin, int64_t i_end, int64_t j_begin,
                       int64_t j_end, char *packed_b) noexcept nogil:
    """C[i_begin:i_end, j_begin:j_end] as blocks of packed panels (or, IN_PLACE, of B itself)."""
    cdef const Plan *plan = &job.plan
    cdef const ev_epilogue *e = g.epilogue
    cdef bint in_place = job.method == IN_PLACE
    cdef int64_t size = job.size, nr = job.nr
    cdef int64_t kc = in_place_kc(g, size) if in_place else plan.kc
    cdef int64_t nc = max(nr, IN_PLACE_TILE // g.m // nr * nr) if in_place else plan.nc
    cdef char *packed_a = packed_b + plan.nc * plan.kc * size
    cdef bint aliased = g.rsa * size % ALIASED_A == 0
    # By all columns, not by those of a share: a few last ones are added up in another order where A is as it lies.
    cdef bint pack_a = not in_place and (g.csa != 1 and (g.m > SHALLOW_ROWS and g.k > SHALLOW_K or g.rsa != 1) or
                                         g.supply != NULL or K.packs_a and g.n >= PACK_COLUMNS or
                                         aliased and g.n >= ALIASED_COLUMNS and g.m * g.k * size > ROOMY_BIG_A_BYTES)
    cdef bint copy_a = not in_place and not pack_a and aliased and j_end - j_begin >= COPY_COLUMNS
    cdef int64_t mc = plan.packed_mc if pack_a or copy_a else plan.mc
    cdef bint as_it_goes = not in_place and g.pack == NULL and g.csb == 1 and min(mc, i_end - i_begin) >= K.mr
    cdef int64_t i0, j0, p0, nb, kb, packed, whole
    cdef const char *b
    cdef bint last
    cdef ev_tile t
    t.alpha, t.in_order = g.alpha, g.in_order
    j0 = j_begin
    while j0 < j_end:
        nb = min(nc, j_end - j0)
        packed = nb if in_place and K.masks else nb // nr * nr if in_place else 0    # the first column in packed panels
        whole = nb // (2 * nr) * (2 * nr) if as_it_goes else packed    # the first that is packed before the product
        p0 = 0
        last = False
        while not last:                                      # once even for k == 0
            kb = min(kc, g.k - p0)
            last = p0 + kb >= g.k
            b = <const char *> g.b + (p0 * g.rsb + j0 * g.csb) * size
            if g.pack != NULL:
                g.pack(g.pack_ctx, p0, kb, j0, nb, packed_b)
            else:
                job.pack(nr, nb - whole, kb, g.csb, g.rsb, b + whole * size, packed_b + (whole - packed) * kb * size)
            t.k = kb
            i0 = i_begin
            while i0 < i_end:
                t.m = min(mc, i_end - i0)
                t.a = <const char *> g.a + (i0 * g.rsa + p0 * g.csa) * size
                t.rsa, t.csa, t.a_step = g.rsa, g.csa, K.mr * g.rsa
                t.next, t.ldnext = NULL, g.rsa
                if g.csa == 1 and g.supply == NULL:          # with tiles to meet before, or copied when it comes
                    t.next = <const char *> t.a + (t.m if copy_a or pack_a else <int64_t> K.mr) * g.rsa * size
                if g.supply != NULL:
                    g.supply(g.supply_ctx, i0, t.m, p0, kb, packed_a)
                    t.a = packed_a
                    t.rsa, t.csa, t.a_step = kb, 1, K.mr * kb
                elif pack_a:
                    job.pack(K.mr, t.m, kb, g.rsa, g.csa, t.a, packed_a)
                    t.a = packed_a
                    t.rsa, t.csa, t.a_step = 1, K.mr, K.mr * kb
                elif copy_a:
                    t.rsa = kb + COPY_PAD // size
                    t.a_step = K.mr * t.rsa
                    copy_rows(t.m, kb * size, <const char *> t.a, g.rsa * size, packed_a, t.rsa * size)
                    t.a = packed_a
                if packed > 0:
                    t.n, t.b, t.ldb, t.b_step = packed, b, g.rsb, nr
                    add_and_finish(&t, g, size, i0, j0, p0 == 0, last, last)
                    job.tile(&t)
                t.ldb, t.b_step = nr, nr * kb
                if i0 == i_begin and as_it_goes and whole > 0:
                    t.n, t.b = whole, packed_b
                    add_and_finish(&t, g, size, i0, j0, p0 == 0, last, last)
                    job.packing(&t, b, g.rsb)
                    if whole < nb:
                        t.n, t.b = nb - whole, packed_b + whole * kb * size
                        add_and_finish(&t, g, size, i0, j0 + whole, p0 == 0, last, last)
                        job.tile(&t)
                elif packed < nb:
                    t.n, t.b = nb - packed, packed_b
                    add_and_finish(&t, g, size, i0, j0 + packed, p0 == 0, last, last)
                    job.tile(&t)
                i0 += mc
            p0 += kb
        if e != NULL and e.activation not in (EV_ACT_NONE, EV_ACT_RELU, EV_ACT_CLIP):
            K.activate_f32(e, i_end - i_begin, nb, i_begin, <float *> g.c + i_begin * g.ldc + j0, g.ldc)
        j0 += nc


cdef inline void add_and_finish(ev_tile *t, const ev_gemm *g, int64_t size, int64_t i, int64_t j, bint first,
                                bint bias, bint clamp) noexcept nogil:
    """Where a tile's result goes and what it adds: C or the residual at first, later C as it is; bias; clamp."""
    cdef const ev_epilogue *e = g.epilogue
    t.c = <char *> g.c + (i * g.ldc + j) * size
    t.ldc = g.ldc
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
    if e == NULL:
        return
    if bias and e.bias_axis == EV_BIAS_ROW:
        t.row_bias = <const char *> e.bias + i * size
    elif bias and e.bias_axis == EV_BIAS_COLUMN:
        t.col_bias = <const char *> e.bias + j * size
    if clamp and e.activation == EV_ACT_RELU:
        t.lo = 0
    elif clamp and e.activation == EV_ACT_CLIP:
        t.lo, t.hi = e.a, e.b


cdef void dots_share(const Job *job, const ev_gemm *g, int64_t i_begin, int64_t i_end, int64_t j_begin,
                     int64_t j_end) noexcept nogil:
    """C[i_begin:i_end, j_begin:j_end], rows of A and columns of B as they are."""
    cdef const ev_epilogue *e = g.epilogue
    cdef ev_tile t
    t.m, t.n, t.k, t.alpha = i_end - i_begin, j_end - j_begin, g.k, g.alpha
    t.a, t.rsa, t.csa = <const char *> g.a + i_begin * g.rsa * job.size, g.rsa, 1
    t.b, t.b_step = <const char *> g.b + j_begin * g.csb * job.size, g.csb
    add_and_finish(&t, g, job.size, i_begin, j_begin, True, True, True)
    job.dots(&t)
    if e != NULL and e.activation not in (EV_ACT_NONE, EV_ACT_RELU, EV_ACT_CLIP):
        K.activate_f32(e, t.m, t.n, i_begin, <float *> t.c, g.ldc)


cdef void without_product(const Job *job, const ev_gemm *g, int64_t i_begin, int64_t i_end, int64_t j_begin,
                          int64_t j_end, bint first) noexcept nogil:
    """What add_and_finish says, for a share: addend and bias before the product, or the clamp after it."""
    cdef ev_tile t
    t.m, t.n, t.k, t.alpha = i_end - i_begin, j_end - j_begin, 0, 1
    t.a = t.b = t.next = NULL
    t.rsa = t.csa = t.a_step = t.ldb = t.b_step = 0
    add_and_finish(&t, g, job.size, i_begin, j_begin, first, first, not first)
    if t.n == 1 and t.ldc == 1 and (t.add == NULL or t.ldadd == 1):
        t.m, t.n = 1, t.m        # a column as a row
        t.row_bias, t.col_bias = t.col_bias, t.row_bias
    job.tile(&t)


cdef bint begin_vector(const ev_gemm *g, int64_t size, int64_t first, int64_t count) noexcept nogil:
    """Makes `count` elements of C, one row or one column from `first` on, what a product is added to, where that is C as it
    is, zeros or the bias; else returns False."""
    cdef const ev_epilogue *e = g.epilogue
    cdef bint row = g.m == 1
    cdef char *c = <char *> g.c + first * size
    if not row and g.ldc != 1 or e != NULL and e.residual != NULL or g.beta != 0 and g.beta != 1:
        return False
    if e == NULL or e.bias_axis == EV_BIAS_NONE:
        if g.beta == 0:
            memset(c, 0, <size_t> (count * size))
        return True
    if g.beta != 0 or e.bias_axis != (EV_BIAS_COLUMN if row else EV_BIAS_ROW):
        return False
    memcpy(c, <const char *> e.bias + first * size, <size_t> (count * size))
    return True


cdef void vector_share(const Job *job, const ev_gemm *g, int64_t i_begin, int64_t i_end, int64_t j_begin,
                       int64_t j_end) noexcept nogil:
    """C[i_begin:i_end, j_begin:j_end], one row or one column."""
    cdef const ev_epilogue *e = g.epilogue
    cdef int64_t size = job.size, i, j, step
    cdef const char *a = <const char *> g.a
    cdef const char *b = <const char *> g.b
    cdef char *c = <char *> g.c
    if not begin_vector(g, size, i_begin + j_begin, (i_end - i_begin) * (j_end - j_begin)):
        without_product(job, g, i_begin, i_end, j_begin, j_end, True)
    if job.method == ROW_TIMES_ROWS:
        j = j_begin
        while j < j_end:
            step = min(<int64_t> VECTOR_COLUMNS, j_end - j)
            job.gemv_rows(step, g.k, g.alpha, a, g.csa, b + j * size, g.rsb, c + j * size)
            j += step
    elif job.method == ROW_TIMES_COLUMNS:
        job.gemv_dot(j_end - j_begin, g.k, g.alpha, a, b + j_begin * g.csb * size, g.csb, c + j_begin * size, 1)
    elif job.method == ROWS_TIMES_COLUMN:
        job.gemv_dot(i_end - i_begin, g.k, g.alpha, b, a + i_begin * g.rsa * size, g.rsa,
                     c + i_begin * g.ldc * size, g.ldc)
    else:
        i = i_begin
        while i < i_end:
            step = min(<int64_t> VECTOR_COLUMNS, i_end - i)
            job.gemv_rows(step, g.k, g.alpha, b, g.rsb, a + i * size, g.csa, c + i * size)
            i += step
    if e == NULL or e.activation == EV_ACT_NONE:
        return
    if e.activation in (EV_ACT_RELU, EV_ACT_CLIP):
        without_product(job, g, i_begin, i_end, j_begin, j_end, False)
    else:
        K.activate_f32(e, i_end - i_begin, j_end - j_begin, i_begin, <float *> (c + (i_begin * g.ldc + j_begin) * size),
                       g.ldc)


cdef int64_t threads_each(int64_t count, int32_t threads) noexcept nogil:
    """Threads for each matrix of a batch."""
    return max(1, threads // max(1, count))


cdef void run(Job *job, int64_t count) noexcept nogil:
    cdef const ev_gemm *g = job.g
    if g.m <= 0 or g.n <= 0 or count <= 0:
        return
    job.method = choose(g, job.size)
    make_plan(&job.plan, job.size, job.nr, g.m, g.n, g.k, <int32_t> threads_each(count, g.threads), g.pack != NULL)
    cdef int64_t items = count * job.plan.parts_m * job.plan.parts_n
    cdef int64_t grain = 1
    if count > 1:
        grain = max(1, MACS_PER_THREAD // max(1, job.plan.most_m * job.plan.most_n * g.k))
    parallel_for(shares, job, items, grain, <int32_t> min(<int64_t> g.threads, items))


cdef void gemm_batch_f32(const ev_gemm *g, int64_t count, int64_t stride_a, int64_t stride_b,
                         int64_t stride_c) noexcept nogil:
    cdef Job job
    job.g, job.size, job.nr = g, 4, EV_NR_F32
    job.stride_a, job.stride_b, job.stride_c = stride_a, stride_b, stride_c
    job.tile, job.dots, job.packing, job.pack = K.gemm_f32, K.gemm_few_f32, K.gemm_packing_f32, K.pack_f32
    job.gemv_rows, job.gemv_dot = K.gemv_rows_f32, K.gemv_dot_f32
    run(&job, count)


cdef void gemm_batch_f64(const ev_gemm *g, int64_t count, int64_t stride_a, int64_t stride_b,
                         int64_t stride_c) noexcept nogil:
    cdef Job job
    job.g, job.size, job.nr = g, 8, EV_NR_F64
    job.stride_a, job.stride_b, job.stride_c = stride_a, stride_b, stride_c
    job.tile, job.dots, job.packing, job.pack = K.gemm_f64, K.gemm_few_f64, K.gemm_packing_f64, K.pack_f64
    job.gemv_rows, job.gemv_dot = K.gemv_rows_f64, K.gemv_dot_f64
    run(&job, count)


cdef void gemm_f32(const ev_gemm *g) noexcept nogil:
    gemm_batch_f32(g, 1, 0, 0, 0)


cdef void gemm_f64(const ev_gemm *g) noexcept nogil:
    gemm_batch_f64(g, 1, 0, 0, 0)


cdef int64_t gemm_batch_scratch(int64_t size, int64_t count, int64_t m, int64_t n, int64_t k,
                                int32_t threads) noexcept nogil:
    cdef Plan plan
    cdef int64_t most = 0
    cdef int supplied
    if m <= 0 or n <= 0 or count <= 0:
        return 0
    for supplied in range(2):
        make_plan(&plan, size, EV_NR_F32 if size == 4 else EV_NR_F64, m, n, k, <int32_t> threads_each(count, threads),
                  supplied)
        most = max(most, plan.slot * min(<int64_t> threads, count * plan.parts_m * plan.parts_n))
        if threads <= 1:         # one plan, then
            break
    return most


cdef int64_t gemm_scratch(int64_t size, int64_t m, int64_t n, int64_t k, int32_t threads) noexcept nogil:
    return gemm_batch_scratch(size, 1, m, n, k, threads)


cdef int64_t gemm_scratch_within(int64_t size, int64_t m, int64_t n, int64_t k) noexcept nogil:
    cdef Plan plan
    if m <= 0 or n <= 0:
        return 0
    make_plan(&plan, size, EV_NR_F32 if size == 4 else EV_NR_F64, m, n, k, 1, False)
    return slot_of(&plan, size, plan.most_nc)    # fewer columns may be a single block that is wider than those of n


cdef void gemm_init(ev_gemm *g, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b,
                    int64_t ldb, void *c, int64_t ldc) noexcept nogil:
    g.m, g.n, g.k = m, n, k
    g.a, g.rsa, g.csa = a, lda, 1
    g.b, g.rsb, g.csb = b, ldb, 1
    g.pack, g.pack_ctx = NULL, NULL
    g.supply, g.supply_ctx = NULL, NULL
    g.c, g.ldc = c, ldc
    g.alpha, g.beta = 1, 0
    g.in_order = False
    g.epilogue = NULL
    g.threads = 1
    g.scratch = NULL
