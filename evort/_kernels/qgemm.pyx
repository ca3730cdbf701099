"""Blocked quantized matrix products over the micro-kernels of ukr/qgemm_body.h.

    for columns in blocks of nc (a thread's share of N)
      for rows in blocks of mi                               sums of [mi, nc] stay in L2; all rows where K is one block
        for p in blocks of kc
          B[kc, nc], less its zero points, to panels of pairs   in L2, a quarter of it or B_BYTES a thread
          for rows in blocks of mc
            A[mc, kc], less its zero points, to rows of pairs
            for each panel of B                                 in L1: kc x 16
              micro-kernel: sums of mc rows (ukr/qgemm_body.h)
              after the last p: requantization (ukr/requant_body.h)

With `presum`, bytes take the place of pairs, four k at a time, where the instruction set has a product of bytes; without
it too where that product is exact whatever the bytes (VNNI, NEON). The
activation's zero point then stays in its elements: sum (x - z) w = sum x w - z sum w.

A product with one row or one column reads the matrix once, as it lies.

int16 operands: a block of kc products of 16 by 8 bits fits int32 (KC), and blocks add up in int64. Their zero point is
not taken off, as the difference may not fit 16 bits: sum (x - z) w = sum x w - z sum w.
"""
from evort._kernels.core cimport (EV_FLOAT, EV_INT8, EV_INT16, EV_INT32, EV_QMC, EV_QMR, EV_QNR, EV_UINT8, ev_qoperand,
                                  ev_requant, ev_sums, ev_ukr, parallel_for, ukernels)
from evort._kernels.gemm cimport l2_bytes
from libc.stdint cimport int8_t, int16_t, uint8_t
from libc.string cimport memset

cdef const ev_ukr *K = ukernels()

cdef float ONE = 1

cdef extern from *:
    """
    static inline const char *ev_fetch(const char *from, const char *end)
    {
        for (; from < end; from += 64) __builtin_prefetch(from, 0, 2);
        return from;
    }
    """
    const char *ev_fetch(const char *begin, const char *end) noexcept nogil    # lines into L2

cdef enum:
    KC = 512
    WIDE_KC = 496                # at most 510, as 255 pairs of products of 16 by 8 bits fit int32
    QUAD_KC = 1024
    VECTOR_K = 4096              # one row or column: elements of it at a time
    VECTOR_N = 4096              # and results, whose sums stay in L1
    VECTOR_MACS_PER_THREAD = 1 << 18     # some 4 us
    B_BYTES = 80 * 1024          # a quarter of L2 where that is more: A is staged anew for each block
    SUM_BYTES = 128 * 1024
    MACS_PER_THREAD = 1 << 20    # some 8 us
    SHARES_PER_THREAD = 3

ctypedef struct Plan:
    int64_t kc, nc, mc, mi       # block sizes
    int64_t parts_m, parts_n     # the grid of shares
    int64_t step_m, step_n       # size of a share
    int64_t at_b, at_a, at_sums, at_wide, at_row_adds, at_col_adds  # of a thread's scratch; the stage is at 0
    int64_t slot                 # scratch bytes of a thread
    bint keeps                   # sums of a whole block [mi, nc] are kept

cdef enum Method:
    PAIRS
    WIDE
    QUADS
    ROW                          # one row of A, times B as it lies
    COLUMN                       # A as it lies, times one column of B

ctypedef struct Job:
    const ev_qgemm *g            # of the first matrix of the batch
    int64_t count, stride_a, stride_b, stride_c
    Plan plan
    Method method


cdef inline int64_t ceil_div(int64_t a, int64_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline int64_t up_to(int64_t n, int64_t unit) noexcept nogil:
    return ceil_div(n, unit) * unit


cdef inline int64_t even_block(int64_t n, int64_t most, int64_t unit) noexcept nogil:
    """The block size, a multiple of `unit`, that cuts n into equal blocks of at most `most`, another multiple."""
    if n <= 0:
        return unit
    return up_to(ceil_div(n, ceil_div(n, most)), unit)


cdef inline int64_t size_of(int32_t dtype) noexcept nogil:
    return 4 if dtype in (EV_FLOAT, EV_INT32) else 2 if dtype == EV_INT16 else 1


cdef void make_plan(Plan *plan, int64_t m, int64_t n, int64_t k, int32_t threads, bint packs,
                    Method method) noexcept nogil:
    cdef int64_t shares = max(1, min(<int64_t> threads, m * n * k // MACS_PER_THREAD))
    cdef int64_t best = -1, cost, parts_m, step_m, step_n, size = 1 if method == QUADS else 2
    cdef int64_t b_bytes = max(<int64_t> B_BYTES, l2_bytes() // 4)
    cdef int64_t most_k = QUAD_KC if method == QUADS else WIDE_KC if method == WIDE else KC
    if shares == threads > 1:    # more where there is much work: processors may be of different speed, or busy
        shares *= max(1, min(<int64_t> SHARES_PER_THREAD, m * n * k // (4 * MACS_PER_THREAD * shares)))
    for parts_m in range(1, shares + 1):
        if shares % parts_m != 0:
            continue
        step_m = up_to(ceil_div(m, parts_m), EV_QMR)
        step_n = up_to(ceil_div(n, shares // parts_m), EV_QNR)
        cost = (step_m + 8) * step_n + step_m * 8       # each share packs its own B and A
        if best < 0 or cost < best:
            best = cost
            plan.step_m, plan.step_n = step_m, step_n
    plan.parts_m = ceil_div(m, plan.step_m)
    plan.parts_n = ceil_div(n, plan.step_n)
    plan.kc = even_block(k, most_k, 16)
    plan.nc = even_block(plan.step_n, max(<int64_t> EV_QNR, b_bytes // (plan.kc * size) // EV_QNR * EV_QNR), EV_QNR)
    plan.mc = even_block(plan.step_m, EV_QMC, EV_QMR)
    plan.mi = plan.mc
    plan.keeps = k > plan.kc or method == WIDE
    if plan.keeps:
        plan.mi = even_block(plan.step_m, max(plan.mc, SUM_BYTES // (4 * plan.nc) // plan.mc * plan.mc), plan.mc)
    plan.at_b = up_to(EV_QNR * plan.kc * 2 if packs else 0, 64)
    plan.at_a = plan.at_b + plan.nc * plan.kc * size
    plan.at_sums = plan.at_a + up_to(plan.mc * plan.kc * size, 64)
    plan.at_wide = plan.at_sums + 4 * (plan.mi * plan.nc if plan.keeps and method != WIDE else plan.mc * EV_QNR)
    plan.at_row_adds = plan.at_wide + (8 * plan.mi * plan.nc if method == WIDE else 0)
    plan.at_col_adds = plan.at_row_adds + (4 * plan.mi if method == QUADS else 0)
    plan.slot = up_to(plan.at_col_adds + (4 * plan.nc if method == QUADS else 0), 64)


cdef int64_t plan_bytes(int64_t count, int64_t m, int64_t n, int64_t k, int32_t threads, bint packs,
                        Method method) noexcept nogil:
    cdef Plan plan
    make_plan(&plan, m, n, k, <int32_t> max(1, threads // count), packs, method)
    return plan.slot * min(<int64_t> threads, count * plan.parts_m * plan.parts_n)


cdef int64_t qgemm_scratch(int64_t count, int64_t m, int64_t n, int64_t k, int32_t threads, bint packs, bint wide,
                           bint as_it_lies) noexcept nogil:
    cdef int64_t bytes
    if m <= 0 or n <= 0 or count <= 0:
        return 0
    if wide:
        return plan_bytes(count, m, n, k, threads, packs, WIDE)
    if as_it_lies and m == 1:
        return threads * vector_slot(m, n, k)
    bytes = max(plan_bytes(count, m, n, k, threads, packs, PAIRS), plan_bytes(count, m, n, k, threads, packs, QUADS))
    return bytes if m > 1 and n > 1 else max(bytes, threads * vector_slot(m, n, k))


cdef inline int64_t vector_slot(int64_t m, int64_t n, int64_t k) noexcept nogil:
    """Scratch bytes of a thread for one row or column: int16 of it, sums, and of a column sums as rows."""
    return (up_to(2 * min(k, <int64_t> VECTOR_K), 64) + 4 * up_to(min(max(m, n), <int64_t> VECTOR_N), EV_QNR)
            + (0 if m == 1 else 4 * EV_QMC * EV_QNR))


cdef inline bint is_bytes(const ev_qoperand *x) noexcept nogil:
    return x.type == EV_UINT8 or x.type == EV_INT8


cdef inline int32_t zero_point(const ev_qoperand *x, int64_t line) noexcept nogil:
    """The zero point of a line of an operand that has, or becomes, 8 bits."""
    if x.zero == NULL:
        return 0
    if (x.as_type if x.type == EV_FLOAT else x.type) == EV_UINT8:
        return (<const uint8_t *> x.zero)[line * x.zero_step]
    return (<const int8_t *> x.zero)[line * x.zero_step]


cdef bint takes_quads(const ev_qgemm *g) noexcept nogil:
    """Whether the instruction set has a product of bytes that is exact for these operands, by the proof of `presum` or
    whatever they are."""
    cdef const ev_qoperand *w = &g.b if g.weights_in_b else &g.a
    cdef const ev_qoperand *x = &g.a if g.weights_in_b else &g.b
    cdef int64_t lines = g.n if g.weights_in_b else g.m, i
    cdef int has = 0
    K.qhas_u8(&has)
    if has < (1 if g.presum > 0 else 2):
        return False
    if w.type != EV_INT8 or x.zero_step != 0 or (g.pack != NULL and g.weights_in_b):
        return False
    for i in range(lines if w.zero_step != 0 else 1):
        if zero_point(w, i) != 0:
            return False
    return True


cdef Method choose(const ev_qgemm *g) noexcept nogil:
    if g.a.type == EV_INT16 or g.b.type == EV_INT16 or is_int16(&g.a) or is_int16(&g.b):
        return WIDE
    if g.pack == NULL and g.m == 1 and is_bytes(&g.b) and (g.b.rs == 1 or g.b.cs == 1):
        return ROW
    if g.pack == NULL and g.n == 1 and is_bytes(&g.a) and (g.a.rs == 1 or g.a.cs == 1):
        return COLUMN
    return QUADS if takes_quads(g) else PAIRS


cdef void shares(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Computes shares [begin, end) of the batch's results."""
    cdef Job *job = <Job *> ctx
    cdef Plan *plan = &job.plan
    cdef int64_t item, index, i, j, per_matrix = plan.parts_m * plan.parts_n, items = job.count * per_matrix
    cdef ev_qgemm g
    for item in range(begin, end):
        index = item // per_matrix
        g = job.g[0]
        g.a.data = <const char *> g.a.data + index * job.stride_a * size_of(g.a.type)
        g.b.data = <const char *> g.b.data + index * job.stride_b * size_of(g.b.type)
        g.c = <char *> g.c + index * job.stride_c * size_of(g.q.type)
        if g.q.residual != NULL:
            g.q.residual = <const char *> g.q.residual + index * job.stride_c * size_of(g.q.residual_type)
        g.ahead_bytes = min(g.ahead_bytes, l2_bytes() // 4) // items
        g.ahead += item * g.ahead_bytes
        i = item % per_matrix // plan.parts_n * plan.step_m
        j = item % plan.parts_n * plan.step_n
        if job.method >= ROW:
            vector_share(job.method, &g, i, i + plan.step_m, <char *> g.scratch + worker * vector_slot(g.m, g.n, g.k))
        elif job.method == QUADS:
            quad_share(plan, &g, i, min(i + plan.step_m, g.m), j, min(j + plan.step_n, g.n),
                       <char *> g.scratch + worker * plan.slot)
        else:
            share(plan, &g, i, min(i + plan.step_m, g.m), j, min(j + plan.step_n, g.n),
                  <char *> g.scratch + worker * plan.slot)


cdef void share(const Plan *plan, const ev_qgemm *g, int64_t i_begin, int64_t i_end, int64_t j_begin, int64_t j_end,
                char *scratch) noexcept nogil:
    """C[i_begin:i_end, j_begin:j_end]."""
    cdef int16_t *b = <int16_t *> (scratch + plan.at_b)
    cdef int16_t *a = <int16_t *> (scratch + plan.at_a)
    cdef int32_t *kept = <int32_t *> (scratch + plan.at_sums)
    cdef int64_t *wide = <int64_t *> (scratch + plan.at_wide)
    cdef int32_t *sums
    cdef bint is_wide = choose(g) == WIDE, keeps = plan.keeps
    cdef int64_t mi = plan.mi if keeps else i_end - i_begin, i1, i0, j0, j, p0, mb, nb, kb, pairs, ii
    cdef bint last
    cdef ev_sums s
    memset(&s, 0, sizeof(s))
    s.c, s.ldc = g.c, g.ldc
    j0 = j_begin
    while j0 < j_end:
        nb = min(plan.nc, j_end - j0)
        i1 = i_begin
        while i1 < i_end:
            p0 = 0
            last = False
            while not last:                              # once even for k == 0
                kb = min(plan.kc, g.k - p0)
                last = p0 + kb >= g.k
                pairs = (kb + 1) // 2
                pack_b(g, p0, kb, j0, nb, scratch, b)
                i0 = i1
                while i0 < min(i1 + mi, i_end):
                    mb = min(plan.mc, min(i1 + mi, i_end) - i0)
                    K.qrows(&g.a, i0, mb, p0, kb, a)
                    j = 0
                    while j < nb:
                        s.i0, s.m, s.j0, s.n = i0, mb, j0 + j, min(<int64_t> EV_QNR, nb - j)
                        ii = (j // EV_QNR * plan.mi + i0 - i1) * EV_QNR if keeps else 0
                        sums = kept if is_wide else kept + ii
                        K.qgemm_i16(mb, s.n, pairs, a, pairs, b + j * pairs * 2, keeps and not is_wide and p0 > 0, sums)
                        if is_wide:
                            add_wide(g, mb, pairs, a, b + j * pairs * 2, sums, p0 > 0, wide + ii)
                            s.wide = wide + ii
                        s.sum = sums
                        if last:
                            K.qfinish(&g.q, &s)
                        j += EV_QNR
                    i0 += plan.mc
                p0 += kb
            i1 += mi
        j0 += plan.nc


cdef inline bint is_int16(const ev_qoperand *x) noexcept nogil:
    return x.type == EV_FLOAT and x.as_type == EV_INT16


cdef inline int64_t zero_of(const ev_qoperand *x) noexcept nogil:
    """The zero point of an int16 operand, which stays in its elements; else 0."""
    if x.zero == NULL or not (x.type == EV_INT16 or is_int16(x)):
        return 0
    return (<const int16_t *> x.zero)[0]


cdef void add_wide(const ev_qgemm *g, int64_t m, int64_t pairs, const int16_t *a, const int16_t *b, const int32_t *sums,
                   bint add, int64_t *wide) noexcept nogil:
    """Adds the sums of a block to those in 64 bits, less what the zero points of int16 operands come to."""
    cdef int64_t za = zero_of(&g.a), zb = zero_of(&g.b), i, j, p, ra
    cdef int64_t[16] of_b      # EV_QNR
    memset(&of_b[0], 0, sizeof(of_b))
    if za != 0:
        for p in range(pairs):
            for j in range(EV_QNR):
                of_b[j] += za * (b[(p * EV_QNR + j) * 2] + b[(p * EV_QNR + j) * 2 + 1])
    for i in range(m):
        ra = 0
        if zb != 0:
            for p in range(2 * pairs):
                ra += a[i * 2 * pairs + p]
            ra *= zb
        for j in range(EV_QNR):
            wide[i * EV_QNR + j] = (wide[i * EV_QNR + j] if add else 0) + sums[i * EV_QNR + j] - of_b[j] - ra


cdef void pack_b(const ev_qgemm *g, int64_t p0, int64_t kb, int64_t j0, int64_t nb, void *stage,
                 int16_t *panels) noexcept nogil:
    """B[p0:p0+kb, j0:j0+nb] as panels of pairs."""
    cdef ev_qoperand x = g.b
    cdef int64_t j = 0
    if g.pack == NULL:
        K.qpanels(&g.b, p0, kb, j0, nb, panels)
        return
    x.data, x.rs, x.cs = stage, EV_QNR, 1
    while j < nb:
        g.pack(g.pack_ctx, p0, kb, j0 + j, min(<int64_t> EV_QNR, nb - j), stage)
        if g.b.zero != NULL:
            x.zero = <const char *> g.b.zero + (j0 + j) * g.b.zero_step * size_of(g.b.type)
        K.qpanels(&x, 0, kb, 0, min(<int64_t> EV_QNR, nb - j), panels)
        panels += (kb + 1) // 2 * 2 * EV_QNR
        j += EV_QNR


cdef void quad_share(const Plan *plan, const ev_qgemm *g, int64_t i_begin, int64_t i_end, int64_t j_begin,
                     int64_t j_end, char *scratch) noexcept nogil:
    """As `share`, in quads: x is the activation, less 128 where it is int8, w the weights."""
    cdef uint8_t *b = <uint8_t *> (scratch + plan.at_b)
    cdef uint8_t *a_stage = <uint8_t *> (scratch + plan.at_a)
    cdef const uint8_t *a
    cdef int32_t *kept = <int32_t *> (scratch + plan.at_sums)
    cdef int32_t *row_adds = <int32_t *> (scratch + plan.at_row_adds)
    cdef int32_t *col_adds = <int32_t *> (scratch + plan.at_col_adds)
    cdef int32_t *sums
    cdef const ev_qoperand *x = &g.a if g.weights_in_b else &g.b
    cdef int flip = 0x80 if (x.as_type if x.type == EV_FLOAT else x.type) == EV_INT8 else 0
    cdef int a_flip = flip if g.weights_in_b else 0, b_flip = 0 if g.weights_in_b else flip
    cdef int32_t zero = zero_point(x, 0) + flip
    cdef int presum = 4 if g.presum % 4 == 0 else 2 if g.presum % 2 == 0 else 1    # groups that fit into those proven
    cdef bint row_sums = zero != 0 and not g.weights_in_b, col_sums = zero != 0 and g.weights_in_b
    cdef int64_t mi = plan.mi if plan.keeps else i_end - i_begin
    cdef int64_t i1, i0, j0, j, p0, mb, nb, kb, quads, lda, r, at
    cdef bint last
    cdef ev_sums s
    cdef const char *ahead = g.ahead
    cdef const char *ahead_end = g.ahead + g.ahead_bytes
    cdef int64_t tiles = ceil_div(i_end - i_begin, plan.mc) * ceil_div(j_end - j_begin, EV_QNR) * ceil_div(g.k, plan.kc)
    cdef int64_t some = g.ahead_bytes // max(1, 2 * tiles)   # more at once would wait for each other
    memset(&s, 0, sizeof(s))
    s.c, s.ldc = g.c, g.ldc
    j0 = j_begin
    while j0 < j_end:
        nb = min(plan.nc, j_end - j0)
        i1 = i_begin
        while i1 < i_end:
            p0 = 0
            last = False
            while not last:                              # once even for k == 0
                kb = min(plan.kc, g.k - p0)
                last = p0 + kb >= g.k
                quads = (kb + 3) // 4
                quads_b(g, p0, kb, j0, nb, b_flip, scratch, b)
                if col_sums:
                    K.qpanel_sums(nb, quads, <const int8_t *> b, p0 > 0, col_adds)
                    for r in range(up_to(nb, EV_QNR) if last else 0):
                        col_adds[r] *= -zero
                i0 = i1
                while i0 < min(i1 + mi, i_end):
                    mb = min(plan.mc, min(i1 + mi, i_end) - i0)
                    if g.a.type != EV_FLOAT and g.a.cs == 1 and a_flip == 0 and kb % 4 == 0:
                        a, lda = <const uint8_t *> g.a.data + i0 * g.a.rs + p0, g.a.rs
                    else:
                        K.qquad_rows(&g.a, i0, mb, p0, kb, a_flip, a_stage)
                        a, lda = a_stage, 4 * quads
                    at = i0 - i1 if plan.keeps else 0
                    if row_sums:
                        K.qrow_sums(mb, kb, <const int8_t *> a, lda, p0 > 0, row_adds + at)
                        for r in range(mb if last else 0):
                            row_adds[at + r] *= -zero
                    j = 0
                    while j < nb:
                        s.i0, s.m, s.j0, s.n = i0, mb, j0 + j, min(<int64_t> EV_QNR, nb - j)
                        sums = kept + ((j // EV_QNR * plan.mi + i0 - i1) * EV_QNR if plan.keeps else 0)
                        ahead = ev_fetch(ahead, min(ahead + some, ahead_end))
                        K.qgemm_u8(mb, s.n, quads, a, lda, b + j * quads * 4, g.weights_in_b, presum, p0 > 0,
                                   sums)
                        ahead = ev_fetch(ahead, min(ahead + some, ahead_end))
                        if last:
                            s.sum = sums
                            s.row_add = row_adds + at if row_sums else NULL
                            s.col_add = col_adds + j if col_sums else NULL
                            K.qfinish(&g.q, &s)
                        j += EV_QNR
                    i0 += plan.mc
                p0 += kb
            i1 += mi
        j0 += plan.nc


cdef void quads_b(const ev_qgemm *g, int64_t p0, int64_t kb, int64_t j0, int64_t nb, int flip, void *stage,
                  uint8_t *panels) noexcept nogil:
    """B[p0:p0+kb, j0:j0+nb] as panels of quads."""
    cdef ev_qoperand x = g.b
    cdef int64_t j = 0
    if g.pack == NULL:
        K.qquad_panels(&g.b, p0, kb, j0, nb, flip, panels)
        return
    x.data, x.rs, x.cs = stage, EV_QNR, 1
    while j < nb:
        g.pack(g.pack_ctx, p0, kb, j0 + j, min(<int64_t> EV_QNR, nb - j), stage)
        K.qquad_panels(&x, 0, kb, 0, min(<int64_t> EV_QNR, nb - j), flip, panels)
        panels += (kb + 3) // 4 * 4 * EV_QNR
        j += EV_QNR


cdef void vector_share(Method method, const ev_qgemm *g, int64_t begin, int64_t end, char *scratch) noexcept nogil:
    """Results [begin, end) of the one row or column."""
    cdef bint by_row = method == ROW
    cdef const ev_qoperand *w = &g.b if by_row else &g.a
    cdef ev_qoperand v = g.a if by_row else g.b          # the vector as a row
    cdef int64_t ks = w.rs if by_row else w.cs, js = w.cs if by_row else w.rs
    cdef int64_t length = g.n if by_row else g.m, j0, j, nb, p0, kb, p, mb
    cdef int16_t *x = <int16_t *> scratch
    cdef int32_t *sums = <int32_t *> (scratch + up_to(2 * min(g.k, <int64_t> VECTOR_K), 64))
    cdef int32_t *rows = sums + up_to(min(length, <int64_t> VECTOR_N), EV_QNR)
    cdef const uint8_t *at
    cdef int32_t total
    cdef bint shifted = w.zero != NULL and (w.zero_step != 0 or zero_point(w, 0) != 0)
    cdef ev_sums s
    memset(&s, 0, sizeof(s))
    s.c, s.ldc, s.m, s.n = g.c, g.ldc, 1, 1
    if not by_row:
        v.rs, v.cs = v.cs, v.rs
    j0 = begin
    while j0 < min(end, length):
        nb = min(<int64_t> VECTOR_N, min(end, length) - j0)
        memset(sums, 0, nb * sizeof(int32_t))
        total = 0
        p0 = 0
        while p0 < g.k:
            kb = min(<int64_t> VECTOR_K, g.k - p0)
            K.qrows(&v, 0, 1, p0, kb, x)
            for p in range(kb if shifted else 0):
                total += x[p]
            at = <const uint8_t *> w.data + p0 * ks + j0 * js
            if ks == 1:
                K.qdot(nb, kb, x, at, js, w.type == EV_INT8, sums, 1)
            else:
                K.qaxpy(nb, kb, x, at, ks, w.type == EV_INT8, sums)
            p0 += kb
        for j in range(nb if shifted else 0):
            sums[j] -= zero_point(w, j0 + j) * total
        j = 0
        if by_row:
            s.j0, s.n, s.sum = j0, nb, sums
            K.qfinish(&g.q, &s)
        else:
            while j < nb:
                mb = min(<int64_t> EV_QMC, nb - j)
                for p in range(mb):
                    rows[p * EV_QNR] = sums[j + p]
                s.i0, s.m, s.sum = j0 + j, mb, rows
                K.qfinish(&g.q, &s)
                j += mb
        j0 += nb


cdef void qgemm_batch(const ev_qgemm *g, int64_t count, int64_t stride_a, int64_t stride_b,
                      int64_t stride_c) noexcept nogil:
    cdef Job job
    cdef Plan *plan = &job.plan
    cdef int64_t items, grain = 1, parts
    if g.m <= 0 or g.n <= 0 or count <= 0:
        return
    job.g, job.count, job.stride_a, job.stride_b, job.stride_c = g, count, stride_a, stride_b, stride_c
    job.method = choose(g)
    if job.method >= ROW:
        parts = max(1, min(<int64_t> g.threads, g.m * g.n * g.k // VECTOR_MACS_PER_THREAD)) if count == 1 else 1
        plan.parts_m, plan.parts_n = parts, 1
        plan.step_m = up_to(ceil_div(g.m * g.n, parts), EV_QNR)
        plan.parts_m = ceil_div(g.m * g.n, plan.step_m)
        grain = max(1, VECTOR_MACS_PER_THREAD // max(1, g.m * g.n * g.k)) if count > 1 else 1
    else:
        make_plan(plan, g.m, g.n, g.k, <int32_t> max(1, g.threads // count), g.pack != NULL, job.method)
        grain = max(1, MACS_PER_THREAD // max(1, plan.step_m * plan.step_n * g.k)) if count > 1 else 1
    items = count * plan.parts_m * plan.parts_n
    parallel_for(shares, &job, items, grain, <int32_t> min(<int64_t> g.threads, items))


cdef void qgemm(const ev_qgemm *g) noexcept nogil:
    qgemm_batch(g, 1, 0, 0, 0)


cdef void qgemm_init(ev_qgemm *g, int64_t m, int64_t n, int64_t k, const void *a, int32_t a_type, const void *b,
                     int32_t b_type, void *c, int32_t c_type) noexcept nogil:
    memset(g, 0, sizeof(ev_qgemm))
    g.m, g.n, g.k = m, n, k
    g.a.data, g.a.rs, g.a.cs, g.a.type = a, k, 1, a_type
    g.b.data, g.b.rs, g.b.cs, g.b.type = b, n, 1, b_type
    g.a.scale = g.b.scale = 1
    g.c, g.ldc = c, n
    g.q.type = c_type
    g.q.scale, g.q.factor, g.q.y_scale, g.q.residual_scale = &ONE, 1, 1, 1
    g.q.ldr = n
    g.q.alpha = 1
    if c_type == EV_UINT8:
        g.q.lo, g.q.hi = 0, 255
    elif c_type == EV_INT8:
        g.q.lo, g.q.hi = -128, 127
    elif c_type == EV_INT16:
        g.q.lo, g.q.hi = -32768, 32767
    g.threads = 1
