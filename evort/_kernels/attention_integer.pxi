# Attention whose products are sums of integers.
#
#     keys and values of a head -> panels of bytes, once          a scale for each key, one for each column of V
#     for queries in blocks of `rows`
#       queries -> bytes                                          a scale for each query
#       scores = sums of bytes, as floats; cap and mask
#       weights = exp(scores - the largest) in units of 1/255     so that the largest is 255, whatever it is
#       Y = sums of weights by values / sum of the weights        a row's weights add up to 1 as they were rounded
#
# Where the instruction set has no product of bytes that is exact, bytes are widened and multiplied as pairs of int16.

cdef enum:
    MOST_ROWS = 48                # queries of a block: a multiple of the micro-kernels' rows
    LEAST_ROWS = 12
    SCORE_BYTES = 128 * 1024      # of a block
    PACKED_KEYS = 64              # values that are packed at a time
    SPREAD = 64                   # period of the thresholds of small weights, which follow the keys


cdef struct Packing:
    int64_t rows                  # queries of a block
    int64_t size                  # 1: bytes in quads, 2: int16 in pairs
    int64_t depth                 # of rows of Q and K: whole quads or pairs
    int64_t keys, columns         # in whole panels
    int64_t at_scale, at_less, at_v, at_v_scale, bytes            # of a packed head: at 0, panels of K; at_v those of V
    int64_t at_q_scale, at_scores, at_weights, at_sums, at_wide   # of a thread's scratch: at 0, rows of Q


def packing(int64_t queries, int64_t keys, int64_t head, int64_t v_head) -> tuple:
    """(Packing, scratch bytes of a thread, bytes of a packed head); keys: with those of the past."""
    cdef Packing p
    cdef int has = 0
    cdef int64_t i, slot
    K.qhas_u8(&has)
    p.size = 1 if has > 1 else 2
    p.keys, p.columns = (keys + EV_QNR - 1) // EV_QNR * EV_QNR, (v_head + EV_QNR - 1) // EV_QNR * EV_QNR
    p.depth = (head + 3) // 4 * 4
    p.rows = max(<int64_t> LEAST_ROWS, min(<int64_t> MOST_ROWS, SCORE_BYTES // (4 * p.keys) // LEAST_ROWS * LEAST_ROWS))
    p.rows = min(p.rows, queries)
    p.at_scale = p.keys * p.depth * p.size
    p.at_less = p.at_scale + 4 * p.keys
    p.at_v = p.at_less + 4 * p.keys
    p.at_v_scale = p.at_v + p.columns * p.keys * p.size
    p.bytes = padded(p.at_v_scale + 4 * p.columns)
    # Rows of bytes are written in parts of 64.
    p.at_q_scale = padded(max(p.rows * p.depth, PACKED_KEYS * max(p.depth, v_head)) + 63)
    p.at_scores = p.at_q_scale + padded(4 * p.rows)
    p.at_weights = p.at_scores + padded(4 * p.rows * p.keys)
    p.at_sums = p.at_weights + padded(p.rows * p.keys + 63)
    p.at_wide = p.at_sums + padded(4 * p.rows * EV_QNR)
    slot = p.at_wide + (padded(2 * p.rows * max(p.depth, p.keys)) if p.size == 2 else 0)
    return tuple([(<int64_t *> &p)[i] for i in range(sizeof(Packing) // 8)]), slot, p.bytes


cdef void panels(const Packing *p, const void *x, int64_t rs, int64_t cs, int64_t k, int64_t n, void *to) noexcept nogil:
    """The matrix [k, n] of int8 as a panel, n <= EV_QNR."""
    cdef ev_qoperand b
    memset(&b, 0, sizeof(b))
    b.data, b.rs, b.cs, b.type = x, rs, cs, EV_INT8
    if p.size == 1:
        K.qquad_panels(&b, 0, k, 0, n, 0, <uint8_t *> to)
    else:
        K.qpanels(&b, 0, k, 0, n, <int16_t *> to)


cdef const void *widened(const Packing *p, const void *x, int32_t type, int64_t m, int64_t ld, int64_t k,
                         char *scratch) noexcept nogil:
    """m rows of k bytes, `ld` apart, as products take them: as they lie, or as int16 in the scratch, without gaps."""
    cdef ev_qoperand a
    if p.size == 1:
        return x
    memset(&a, 0, sizeof(a))
    a.data, a.rs, a.cs, a.type = x, ld, 1, type
    K.qrows(&a, 0, m, 0, k, <int16_t *> (scratch + p.at_wide))
    return scratch + p.at_wide


cdef inline void multiply(const Packing *p, int64_t m, int64_t k, const void *a, int64_t ld, const void *b,
                          int32_t *sums) noexcept nogil:
    """Sums of m rows of k bytes, or int16, by a panel."""
    if p.size == 1:
        K.qgemm_u8(m, EV_QNR, k // 4, <const uint8_t *> a, ld, <const uint8_t *> b, 1, 1, 0, sums)
    else:
        K.qgemm_i16(m, EV_QNR, k // 2, <const int16_t *> a, k // 2, <const int16_t *> b, 0, sums)


cdef void pack_heads(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef const Sizes *z = <const Sizes *> c.ints
    cdef const Packing *p = <const Packing *> (c.ints + sizeof(Sizes) // 8)
    cdef uint8_t *rows = <uint8_t *> c.scratch + z.batch * z.kv_heads * p.bytes + worker * z.slot
    cdef Segment segment[2]
    cdef char *to
    cdef float *scale
    cdef int32_t *less
    cdef int64_t item, at, i, j, n
    cdef int s
    for item in range(begin, end):
        segments(c, z, item // z.kv_heads, item % z.kv_heads, segment)
        to = <char *> c.scratch + item * p.bytes
        scale, less = <float *> (to + p.at_scale), <int32_t *> (to + p.at_less)
        memset(scale, 0, p.keys * 4)
        # Panels of keys and of values may hold some of the past and some new ones: they are filled row by row.
        at = 0
        while at < p.keys:
            memset(rows, 0, EV_QNR * p.depth)
            for s in range(2):
                i = max(at, s * z.past)                      # the segment's keys are those from s * past on
                n = min(at + EV_QNR, s * z.past + segment[s].n) - i
                if n > 0:
                    K.qa_rows(n, z.head, segment[s].k + (i - s * z.past) * segment[s].ldk, segment[s].ldk, 0,
                              rows + (i - at) * p.depth, p.depth, scale + i)
            panels(p, rows, 1, p.depth, p.depth, EV_QNR, to + at * p.depth * p.size)
            at += EV_QNR
        if p.size == 1:
            K.qpanel_sums(p.keys, p.depth // 4, <const int8_t *> to, 0, less)
            for i in range(p.keys):
                less[i] *= 128
        else:
            memset(less, 0, p.keys * 4)

        scale = <float *> (to + p.at_v_scale)
        memset(scale, 0, p.columns * 4)
        for s in range(2):
            if segment[s].n:
                K.qa_most(segment[s].n, z.v_head, segment[s].v, segment[s].ldv, <int32_t *> scale)
        at = 0
        while at < p.keys:
            memset(rows, 0, PACKED_KEYS * z.v_head)
            for s in range(2):
                i = max(at, s * z.past)
                n = min(at + PACKED_KEYS, s * z.past + segment[s].n) - i
                if n > 0:
                    K.qa_columns(n, z.v_head, segment[s].v + (i - s * z.past) * segment[s].ldv, segment[s].ldv, scale,
                                 <int8_t *> rows + (i - at) * z.v_head)
            j = 0
            while j < z.v_head:
                panels(p, rows + j, z.v_head, 1, min(<int64_t> PACKED_KEYS, p.keys - at),
                       min(<int64_t> EV_QNR, z.v_head - j), to + p.at_v + (j * p.keys + at * EV_QNR) * p.size)
                j += EV_QNR
            at += PACKED_KEYS
        for j in range(z.v_head):
            scale[j] /= 127


cdef void attend_integer(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef const Sizes *z = <const Sizes *> c.ints
    cdef const Packing *p = <const Packing *> (c.ints + sizeof(Sizes) // 8)
    cdef int64_t heads = z.batch * z.kv_heads, item, i, j, at, first, last, left, right, begins, ends
    cdef char *scratch = <char *> c.scratch + heads * p.bytes + worker * z.slot
    cdef uint8_t *q = <uint8_t *> scratch
    cdef float *row_scale = <float *> (scratch + p.at_q_scale)
    cdef float *scores = <float *> (scratch + p.at_scores)
    cdef uint8_t *weights = <uint8_t *> (scratch + p.at_weights)
    cdef int32_t *sums = <int32_t *> (scratch + p.at_sums)
    cdef int32_t[16] nothing          # EV_QNR
    cdef float scale = <float> c.reals[0], total
    cdef const char *packed
    cdef const void *rows
    cdef Block w
    memset(&nothing[0], 0, sizeof(nothing))
    for item in range(begin, end):
        place(c, z, item, p.rows, &w)
        packed = <const char *> c.scratch + (w.b * z.kv_heads + w.h // (z.q_heads // z.kv_heads)) * p.bytes
        first, last = w.low // EV_QNR * EV_QNR, (w.high + EV_QNR - 1) // EV_QNR * EV_QNR   # in whole panels
        if w.low >= w.high:
            for i in range(w.m):
                memset(w.y + i * w.ldy, 0, <size_t> z.v_head * 4)
            continue
        K.qa_rows(w.m, z.head, w.q, w.ldq, 0x80 if p.size == 1 else 0, q, p.depth, row_scale)
        for i in range(w.m):
            row_scale[i] *= scale
        rows = widened(p, q, EV_INT8, w.m, p.depth, p.depth, scratch)
        at = first
        while at < last:
            multiply(p, w.m, p.depth, rows, p.depth, packed + at * p.depth * p.size, sums)
            K.qa_real(w.m, EV_QNR, sums, <const int32_t *> (packed + p.at_less) + at, row_scale,
                      <const float *> (packed + p.at_scale) + at, scores + at, p.keys)
            at += EV_QNR
        for i in range(w.m):
            at = i * p.keys
            left = max(first, first_key(z, w.start + i))
            right = max(left, min(last, end_key(z, w.start + i, w.count)))
            bound(c, z, &w, i, left, right - left, scores + at + left)
            total = 0
            begins = left // SPREAD * SPREAD
            for j in range(begins, left):
                scores[at + j] = -INFINITY
            if right > left:
                ends = (right + 15) // 16 * 16
                for j in range(right, ends):
                    scores[at + j] = -INFINITY
                K.qa_weights(ends - begins, scores + at + begins, weights + at + begins, &total)
            row_scale[i] = 1 / total if total != 0 else 0
            if left > first:
                memset(weights + at + first, 0, left - first)
            memset(weights + at + right, 0, last - right)
        rows = widened(p, weights + first, EV_UINT8, w.m, p.keys, last - first, scratch)
        j = 0
        while j < z.v_head:
            multiply(p, w.m, last - first, rows, p.keys, packed + p.at_v + (j * p.keys + first * EV_QNR) * p.size, sums)
            K.qa_real(w.m, min(<int64_t> EV_QNR, z.v_head - j), sums, &nothing[0], row_scale,
                      <const float *> (packed + p.at_v_scale) + j, w.y + j, w.ldy)
            j += EV_QNR
