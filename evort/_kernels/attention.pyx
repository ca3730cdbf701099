"""Attention in float32 and in integers; rotary embedding.

In float32 (as FlashAttention, Dao et al. 2022, has it):

    for keys in tiles of KEYS                    K transposed, so that products read it as it lies
      for queries in blocks of ROWS
        scores = scale Q K^T; cap, masks          in L2: nothing of the size of queries x keys is ever held
        weights = exp(scores - the largest so far), and what is in Y so far to the new scale
        Y += weights V
    Y /= sums of the weights
"""
from libc.math cimport INFINITY
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t
from libc.string cimport memcpy, memset
from evort._kernels.core cimport (EV_ACT_TANH, EV_BAD_INDEX, EV_INT8, EV_OK, EV_QNR, EV_UINT8, ev_call, ev_qoperand,
                                  ev_ukr, parallel_for, register, ukernels)
from evort._kernels.gemm cimport ev_gemm, gemm_f32, gemm_init, gemm_scratch

cdef extern from "elementwise.h" nogil:
    enum:
        EV_ADD, EV_DIV, EV_MUL

cdef const ev_ukr *K = ukernels()

cdef enum:
    ROWS = 64              # queries of a block
    KEYS = 256             # of a tile, a multiple of 16
    KEY_PAD = 16           # between rows of K^T, which would fall into few sets of a cache if 1024 bytes apart
    TURNED_FROM = 16       # queries from which on K is transposed


cdef struct Sizes:
    int64_t batch, q_heads, kv_heads, queries, keys, past, head, v_head
    int64_t heads_last                # are Q, K, V and Y [batch, position, head, item]? Else [batch, head, position, item]
    int64_t causal, left, right       # left, right: -1 for no window
    int64_t mask                      # 0: none, 1: bool, 2: float32
    int64_t mask_b, mask_h, mask_q    # its strides
    int64_t mask_keys                 # keys that it speaks of; those beyond do not take part
    int64_t slot                      # scratch bytes of a thread


cdef inline void *operand(const ev_call *c, int i) noexcept nogil:
    return NULL if i >= c.n_in or c.in_[i] == NULL else c.in_[i].data


cdef inline int64_t padded(int64_t nbytes) noexcept nogil:
    return (nbytes + 63) // 64 * 64


def thread_scratch(int64_t queries, int64_t keys, int64_t head, int64_t v_head) -> int:
    """Scratch bytes of a thread: of all queries the largest score and the sum of weights; of a block what these change
    by, and its scores; a tile of K^T; and what products need. keys: with those of the past."""
    cdef int64_t m = min(<int64_t> ROWS, queries), n, found = 0
    for n in range(16, tile_of(keys) + 1, 16):
        found = max(found, gemm_scratch(4, m, n, head, 1), gemm_scratch(4, m, v_head, n, 1))
    return at_gemm(queries, keys, head) + padded(found)


cdef inline int64_t tile_of(int64_t keys) noexcept nogil:
    """Keys of a tile's rows."""
    return min(<int64_t> KEYS, (keys + 15) // 16 * 16)


cdef inline int64_t at_keep(int64_t queries) noexcept nogil:
    return 2 * padded(4 * queries)


cdef inline int64_t at_scores(int64_t queries) noexcept nogil:
    return at_keep(queries) + 4 * ROWS


cdef inline int64_t at_turned(int64_t queries, int64_t keys) noexcept nogil:
    return at_scores(queries) + 4 * tile_of(keys) * min(<int64_t> ROWS, queries)


cdef inline int64_t at_gemm(int64_t queries, int64_t keys, int64_t head) noexcept nogil:
    return at_turned(queries, keys) + (padded(4 * (tile_of(keys) + KEY_PAD) * head) if queries >= TURNED_FROM else 0)


cdef struct Segment:
    const float *k
    const float *v
    int64_t n, ldk, ldv


cdef struct Block:
    int64_t b, h, q0, m               # m queries from q0 on, of a head
    const float *q
    float *y
    int64_t ldq, ldy
    int64_t start, count              # where query q0 stands among the keys; how many keys count
    int64_t low, high                 # the keys that any of the queries sees


cdef void segments(const ev_call *c, const Sizes *z, int64_t b, int64_t kv, Segment *s) noexcept nogil:
    """Keys and values of a head: those of the past, and the new ones."""
    s[0].n, s[0].ldk, s[0].ldv = z.past, z.head, z.v_head
    s[1].n = z.keys
    if z.past:
        s[0].k = <const float *> c.in_[4].data + (b * z.kv_heads + kv) * z.past * z.head
        s[0].v = <const float *> c.in_[5].data + (b * z.kv_heads + kv) * z.past * z.v_head
    if z.heads_last:
        s[1].ldk, s[1].ldv = z.kv_heads * z.head, z.kv_heads * z.v_head
        s[1].k = <const float *> c.in_[1].data + b * z.keys * s[1].ldk + kv * z.head
        s[1].v = <const float *> c.in_[2].data + b * z.keys * s[1].ldv + kv * z.v_head
    else:
        s[1].ldk, s[1].ldv = z.head, z.v_head
        s[1].k = <const float *> c.in_[1].data + (b * z.kv_heads + kv) * z.keys * z.head
        s[1].v = <const float *> c.in_[2].data + (b * z.kv_heads + kv) * z.keys * z.v_head


cdef void place(const ev_call *c, const Sizes *z, int64_t item, int64_t rows, Block *w) noexcept nogil:
    """The block of number `item`, of at most `rows` queries."""
    cdef int64_t blocks = (z.queries + rows - 1) // rows
    w.q0 = item % blocks * rows
    w.h = item // blocks % z.q_heads
    w.b = item // blocks // z.q_heads
    w.m = min(rows, z.queries - w.q0)
    w.q, w.y = <const float *> c.in_[0].data, <float *> c.out[0].data
    if z.heads_last:
        w.ldq, w.ldy = z.q_heads * z.head, z.q_heads * z.v_head
        w.q += (w.b * z.queries + w.q0) * w.ldq + w.h * z.head
        w.y += (w.b * z.queries + w.q0) * w.ldy + w.h * z.v_head
    else:
        w.ldq, w.ldy = z.head, z.v_head
        w.q += ((w.b * z.q_heads + w.h) * z.queries + w.q0) * w.ldq
        w.y += ((w.b * z.q_heads + w.h) * z.queries + w.q0) * w.ldy
    w.start = start_of(c, z, w.b) + w.q0
    w.count = count_of(c, z, w.b)
    if z.mask:
        w.count = min(w.count, z.mask_keys)
    w.low, w.high = first_key(z, w.start), end_key(z, w.start + w.m - 1, w.count)


cdef inline int64_t start_of(const ev_call *c, const Sizes *z, int64_t b) noexcept nogil:
    """Where query 0 stands among the keys."""
    return z.past if operand(c, 6) == NULL else count_of(c, z, b) - z.queries


cdef inline int64_t count_of(const ev_call *c, const Sizes *z, int64_t b) noexcept nogil:
    """How many keys count."""
    cdef const int64_t *lens = <const int64_t *> operand(c, 6)
    cdef int64_t total = z.past + z.keys
    return total if lens == NULL else max(<int64_t> 0, min(lens[b], total))


cdef inline int64_t first_key(const Sizes *z, int64_t at) noexcept nogil:
    return 0 if z.left < 0 else max(<int64_t> 0, at - z.left)


cdef inline int64_t end_key(const Sizes *z, int64_t at, int64_t count) noexcept nogil:
    if z.causal:
        count = min(count, at + 1)
    if z.right >= 0:
        count = min(count, at + z.right + 1)
    return max(<int64_t> 0, count)


cdef void bound(const ev_call *c, const Sizes *z, const Block *w, int64_t i, int64_t first, int64_t n,
                float *x) noexcept nogil:
    """The scores of query i of a block with n keys from `first` on: capped, and with what the mask adds."""
    cdef float cap = <float> c.reals[1]
    cdef int64_t at = w.b * z.mask_b + w.h * z.mask_h + (w.q0 + i) * z.mask_q + first
    cdef float hidden = -INFINITY
    if cap > 0:
        K.binary_f32(EV_DIV, n, x, 1, &cap, 0, x)
        K.unary_f32(EV_ACT_TANH, n, x, x, 0, 0)
        K.binary_f32(EV_MUL, n, x, 1, &cap, 0, x)
    if z.mask == 1:
        K.select(4, n, <const uint8_t *> operand(c, 3) + at, 1, x, 1, &hidden, 0, x)
    elif z.mask == 2:
        K.binary_f32(EV_ADD, n, x, 1, <const float *> operand(c, 3) + at, 1, x)


cdef inline int64_t shares_of(const Sizes *z, int32_t threads) noexcept nogil:
    """Parts of a head's queries that threads take."""
    cdef int64_t heads = z.batch * z.q_heads, blocks = (z.queries + ROWS - 1) // ROWS
    return 1 if threads == 1 else max(<int64_t> 1, min(blocks, (3 * threads + heads - 1) // heads))


cdef void attend(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Shares [begin, end) of the heads' queries."""
    cdef const ev_call *c = <const ev_call *> ctx
    cdef const Sizes *z = <const Sizes *> c.ints
    cdef int64_t total = z.past + z.keys, blocks = (z.queries + ROWS - 1) // ROWS, parts = shares_of(z, c.threads)
    cdef int64_t item, share, b0, b1, i, t0, t1, b
    cdef char *scratch = <char *> c.scratch + worker * z.slot
    cdef float *most = <float *> scratch
    cdef float *sums = <float *> (scratch + padded(4 * z.queries))
    cdef float factor
    cdef bint turned
    cdef Block w
    cdef Segment segment[2]
    for item in range(begin, end):
        share = item % parts
        b0, b1 = share * blocks // parts, (share + 1) * blocks // parts
        for i in range(b0 * ROWS, min(b1 * ROWS, z.queries)):
            most[i], sums[i] = -INFINITY, 0
        t0 = 0
        while t0 < total:
            t1 = min(t0 + KEYS, total)
            turned = False
            for b in range(b0, b1):
                place(c, z, item // parts * blocks + b, ROWS, &w)
                if t1 <= w.low or t0 >= w.high:
                    continue
                segments(c, z, w.b, w.h // (z.q_heads // z.kv_heads), segment)
                if z.queries >= TURNED_FROM and not turned:
                    turned = True
                    turn(z, segment, t0, t1, <float *> (scratch + at_turned(z.queries, total)))
                attend_tile(c, z, &w, segment, t0, min(t1, w.high), turned, scratch)
            t0 += KEYS
        for b in range(b0, b1):
            place(c, z, item // parts * blocks + b, ROWS, &w)
            for i in range(w.m):
                factor = 1 / sums[w.q0 + i] if sums[w.q0 + i] != 0 else 0
                if w.low >= w.high:
                    memset(w.y + i * w.ldy, 0, <size_t> z.v_head * 4)
                else:
                    K.binary_f32(EV_MUL, z.v_head, w.y + i * w.ldy, 1, &factor, 0, w.y + i * w.ldy)


cdef void turn(const Sizes *z, const Segment *segment, int64_t t0, int64_t t1, float *to) noexcept nogil:
    """Keys [t0, t1) as columns."""
    cdef int64_t first, last
    cdef int s
    for s in range(2):
        first, last = max(t0, s * z.past), min(t1, s * z.past + segment[s].n)
        if first < last:
            K.move_transpose(4, z.head, last - first, segment[s].k + (first - s * z.past) * segment[s].ldk,
                             segment[s].ldk, to + first - t0, tile_of(z.past + z.keys) + KEY_PAD)


cdef void attend_tile(const ev_call *c, const Sizes *z, const Block *w, const Segment *segment, int64_t t0, int64_t t1,
                      bint turned, char *scratch) noexcept nogil:
    """What keys [t0, t1) add to a block of queries."""
    cdef float *most = <float *> scratch + w.q0
    cdef float *sums = <float *> (scratch + padded(4 * z.queries)) + w.q0
    cdef float *keep = <float *> (scratch + at_keep(z.queries))
    cdef float *scores = <float *> (scratch + at_scores(z.queries))
    cdef float *row
    cdef int64_t total = z.past + z.keys, ld = tile_of(total), n = t1 - t0, wide = (n + 15) // 16 * 16, i, j, left, right, first, last
    cdef bint begun = t0 > w.low // KEYS * KEYS      # Y has something of the tiles before
    cdef ev_gemm g
    cdef int s
    for s in range(1 if turned else 2):
        first, last = (t0, t1) if turned else (max(t0, s * z.past), min(t1, s * z.past + segment[s].n))
        if first >= last:
            continue
        gemm_init(&g, w.m, last - first, z.head, w.q, w.ldq, scratch + at_turned(z.queries, total), ld + KEY_PAD,
                  scores + first - t0, ld)
        if not turned:
            g.b, g.rsb, g.csb = segment[s].k + (first - s * z.past) * segment[s].ldk, 1, segment[s].ldk
        g.alpha, g.scratch = c.reals[0], scratch + at_gemm(z.queries, total, z.head)
        gemm_f32(&g)
    for i in range(w.m):
        row = scores + i * ld
        left = min(max(first_key(z, w.start + i), t0), t1) - t0
        right = max(left, min(end_key(z, w.start + i, w.count), t1) - t0)
        bound(c, z, w, i, t0 + left, right - left, row + left)
        for j in range(left):
            row[j] = -INFINITY
        for j in range(right, wide):
            row[j] = -INFINITY
    K.softmax_part_f32(w.m, wide, scores, ld, most, sums, keep)
    for i in range(w.m if begun else 0):
        if keep[i] != 1:
            K.binary_f32(EV_MUL, z.v_head, w.y + i * w.ldy, 1, keep + i, 0, w.y + i * w.ldy)
    for s in range(2):
        first, last = max(t0, s * z.past), min(t1, s * z.past + segment[s].n)
        if first < last:
            gemm_init(&g, w.m, z.v_head, last - first, scores + first - t0, ld,
                      segment[s].v + (first - s * z.past) * segment[s].ldv, segment[s].ldv, w.y, w.ldy)
            g.beta, g.scratch = begun or first > t0, scratch + at_gemm(z.queries, total, z.head)
            gemm_f32(&g)


include "attention_integer.pxi"


cdef void keep(const Sizes *z, const char *past, const char *x, int64_t size, char *y) noexcept nogil:
    """present = past and new keys (or values), [batch, head, position, item]; items of `size` bytes a position."""
    cdef int64_t b, h, t, item
    for b in range(z.batch):
        for h in range(z.kv_heads):
            item = b * z.kv_heads + h
            if z.past:
                memcpy(y, past + item * z.past * size, <size_t> (z.past * size))
                y += z.past * size
            if z.heads_last:
                for t in range(z.keys):
                    memcpy(y + t * size, x + ((b * z.keys + t) * z.kv_heads + h) * size, <size_t> size)
            else:
                memcpy(y, x + item * z.keys * size, <size_t> (z.keys * size))
            y += z.keys * size


cdef void keep_all(const ev_call *c, const Sizes *z) noexcept nogil:
    """What is asked for of the present keys and values."""
    if c.n_out > 1 and c.out[1] != NULL:
        keep(z, <const char *> operand(c, 4), <const char *> c.in_[1].data, z.head * 4, <char *> c.out[1].data)
    if c.n_out > 2 and c.out[2] != NULL:
        keep(z, <const char *> operand(c, 5), <const char *> c.in_[2].data, z.v_head * 4, <char *> c.out[2].data)


cdef int attention(const ev_call *c) noexcept nogil:
    """in: Q, K, V, mask, past keys, past values, key counts (absent ones NULL); out: Y, and present keys and values or
    NULL; ints: Sizes; reals: (scale, softcap)."""
    cdef const Sizes *z = <const Sizes *> c.ints
    keep_all(c, z)
    parallel_for(attend, <void *> c, z.batch * z.q_heads * shares_of(z, c.threads), 1, c.threads)
    return EV_OK


cdef int dynamic(const ev_call *c) noexcept nogil:
    """As `attention`, with its products in integers; ints: Sizes, Packing."""
    cdef const Sizes *z = <const Sizes *> c.ints
    cdef const Packing *p = <const Packing *> (c.ints + sizeof(Sizes) // 8)
    keep_all(c, z)
    parallel_for(pack_heads, <void *> c, z.batch * z.kv_heads, 1, c.threads)
    parallel_for(attend_integer, <void *> c, z.batch * z.q_heads * ((z.queries + p.rows - 1) // p.rows), 1, c.threads)
    return EV_OK


cdef struct Rotation:
    int64_t steps, heads, head, rotated
    int64_t heads_last   # is X [batch, position, head, item]? Else [batch, head, position, item]
    int64_t interleaved
    int64_t rows         # of the caches, where positions index them


cdef void rotate(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef const Rotation *z = <const Rotation *> c.ints
    cdef int64_t item, b, h, s, at, i, half = z.rotated // 2
    cdef int64_t step = 2 if z.interleaved else 1, other = 1 if z.interleaved else half
    cdef const int64_t *positions = <const int64_t *> operand(c, 3)
    cdef const float *x
    cdef const float *co
    cdef const float *si
    cdef float *y
    cdef float p, q
    for item in range(begin, end):  # a head's items at a position
        if z.heads_last:
            b, s = item // z.heads // z.steps, item // z.heads % z.steps
        else:
            b, s = item // z.steps // z.heads, item % z.steps
        at = b * z.steps + s
        if positions != NULL:
            at = positions[at]
        co, si = <const float *> c.in_[1].data + at * half, <const float *> c.in_[2].data + at * half
        x, y = <const float *> c.in_[0].data + item * z.head, <float *> c.out[0].data + item * z.head
        for i in range(half):
            p, q = x[i * step], x[i * step + other]
            y[i * step] = co[i] * p - si[i] * q
            y[i * step + other] = si[i] * p + co[i] * q
        memcpy(y + z.rotated, x + z.rotated, <size_t> (z.head - z.rotated) * 4)


cdef int rotary(const ev_call *c) noexcept nogil:
    """in: X, cos, sin, positions or NULL; out: Y; ints: Rotation."""
    cdef const Rotation *z = <const Rotation *> c.ints
    cdef const int64_t *positions = <const int64_t *> operand(c, 3)
    cdef int64_t i
    if positions != NULL:
        for i in range(c.in_[3].size):
            if positions[i] < 0 or positions[i] >= z.rows:
                return EV_BAD_INDEX
    if c.out[0].size:
        parallel_for(rotate, <void *> c, c.out[0].size // z.head, max(<int64_t> 1, 16384 // z.head), c.threads)
    return EV_OK


DRIVERS = {}
register(DRIVERS, "attention", attention)
register(DRIVERS, "dynamic", dynamic)
register(DRIVERS, "rotary", rotary)
