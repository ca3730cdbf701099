# Part of qnhwc.pyx: dense convolutions.

cdef void turned_rows(const Task *t, ev_nhwc_conv *k, int64_t image, int64_t first, int64_t rows, int64_t block,
                      char *scratch) noexcept nogil:
    """The rows of a transposed convolution's result that `rows` rows of the image from `first` on give: one for each row
    of the kernel."""
    cdef const Job *job = &t.job
    cdef const Geometry *g = &t.g
    cdef int64_t turn, row, at, size = ev_item_size(job.o.y.dtype)
    cdef const char *x = <const char *> k.x
    cdef const int8_t *w = k.w
    cdef const int32_t *add = k.add
    cdef int32_t *sums = <int32_t *> (scratch + g.at_sums)
    for turn in range(g.turns):
        k.w = w + turn * g.each * 4 * g.quads
        k.add = add + turn * g.each
        for row in range(rows):
            k.x = x + row * k.row_step * (2 if g.wide else 1)
            at = ((image * g.out_h + first + row) * g.turns + turn) * g.out_w * g.m
            k.y = <uint8_t *> sums if g.sums else <uint8_t *> job.o.y.data + at + block * EV_NHWC_NR
            K.nhwc_conv(k, 0, g.out_w)
            if g.sums:
                K.qc_finish(&job.finish, g.out_w * g.m, sums, NULL, 0, k.scale[0], NULL, <char *> job.o.y.data + at * size)
    k.x = x


cdef void leave_few(const Job *job, const ev_nhwc_conv *k, int64_t n, const int32_t *sums, char *rows, char *y,
                    int64_t ld) noexcept nogil:
    """Results of n positions' sums, position by position, as rows of so few numbers would take a call each: floats, or
    integers that are a product each."""
    cdef const ev_qfinish *f = &job.finish
    cdef ev_requant q
    cdef ev_sums s
    cdef int64_t p, size = ev_item_size(f.type)
    memset(&q, 0, sizeof(q))
    memset(&s, 0, sizeof(s))
    q.type, q.scale, q.scale_axis, q.factor, q.range = f.type, k.scale, EV_BIAS_COLUMN, 1, f.range
    q.y_scale, q.y_zero, q.lo, q.hi = 1, f.zero, f.lo, f.hi   # the scales have that of y, and the bounds the activation's
    if not f.folds:
        q.activation, q.a, q.b = f.activation, f.a, f.b
    s.m, s.n = 1, k.channels
    for p in range(n):
        s.sum = sums + p * k.ldy
        s.c = rows + p * k.ldy * size
        K.qfinish(&q, &s)
    K.move_transpose(size, k.channels, n, rows, k.ldy, y, ld)


cdef void add_upper(const Geometry *g, const ev_nhwc_conv *k, int64_t p, int64_t n, int32_t *sums,
                    int32_t *upper) noexcept nogil:
    """Adds the sums of the upper bytes to n positions' sums of the lower ones, from position p on."""
    cdef int32_t[BLOCK] none
    cdef ev_nhwc_conv given = k[0]
    cdef int64_t i
    memset(none, 0, sizeof(none))
    given.x, given.add = <const char *> k.x + g.limb, none
    given.y = <uint8_t *> (upper - p * k.ldy)
    K.nhwc_conv(&given, p, p + n)
    for i in range(n * k.ldy):
        sums[i] = <int32_t> (<uint32_t> sums[i] + (<uint32_t> upper[i] << 8))


cdef void leave_any(const Task *t, ev_nhwc_conv *k, int64_t n, int64_t at, int64_t m, char *scratch) noexcept nogil:
    """Results of any type for n positions of k's channels, from channel m of the result on, the first at `at`."""
    cdef const Job *job = &t.job
    cdef const Geometry *g = &t.g
    cdef int64_t p = 0, c, some, to, pitch = up_to(min(n, <int64_t> POSITIONS), 8) + 32
    cdef int64_t ldy = up_to(k.channels, EV_NHWC_VECTOR), all_ = g.out_d * g.out_h * g.out_w
    cdef int64_t size = ev_item_size(job.o.y.dtype), z_size = 0 if job.o.z == NULL else ev_item_size(job.o.z.dtype)
    cdef int32_t *turned = <int32_t *> (scratch + g.at_z)
    cdef const char *z = NULL if job.o.z == NULL else <const char *> job.o.z.data
    k.finish, k.z, k.ldy = NULL, NULL, ldy
    while p < n:
        some = min(n - p, <int64_t> POSITIONS)
        k.y = <uint8_t *> (scratch + g.at_y) - p * 4 * ldy
        K.nhwc_conv(k, p, p + some)
        if g.limbs:
            add_upper(g, k, p, some, <int32_t *> (scratch + g.at_y), <int32_t *> (scratch + g.at_upper))
        if n < FEW and z == NULL and (job.finish.type == EV_FLOAT or job.finish.folds):
            leave_few(job, k, n, <int32_t *> (scratch + g.at_y), <char *> turned,
                      <char *> job.o.y.data + (at + m * all_) * size, all_)
            return
        K.move_transpose(4, k.channels, some, scratch + g.at_y, ldy, turned, pitch)
        for c in range(k.channels):
            to = at + (m + c) * all_ + p
            K.qc_finish(&job.finish, some, turned + c * pitch, NULL, 0, k.scale[c], z + to * z_size,
                        <char *> job.o.y.data + to * size)
        p += some


cdef void leave_rows(const Task *t, ev_nhwc_conv *k, int64_t n, int64_t at, char *scratch) noexcept nogil:
    """Bytes of n positions of k's channels, each channel a row, the first at `at`."""
    cdef const Job *job = &t.job
    cdef const Geometry *g = &t.g
    cdef int64_t p = 0, some, ld = up_to(k.channels, EV_NHWC_VECTOR), all_ = g.out_d * g.out_h * g.out_w
    cdef char *y = scratch + g.at_y
    cdef char *z = scratch + g.at_z
    k.ldy = k.ldz = ld
    while p < n:
        some = min(n - p, <int64_t> POSITIONS)
        k.y = <uint8_t *> (y - p * ld)
        if job.o.z != NULL:
            k.z = z - p * ld
            K.move_transpose(1, some, k.channels, <const char *> job.o.z.data + at + p, all_, z, ld)
        K.nhwc_conv(k, p, p + some)
        K.move_transpose(1, k.channels, some, y, ld, <char *> job.o.y.data + at + p, all_)
        p += some


cdef void dense_rows(const Task *t, ev_nhwc_conv *k, int64_t image, int64_t plane, int64_t first, int64_t rows, int64_t part,
                     char *scratch) noexcept nogil:
    """A share of the blocks of channels, for `rows` rows of a plane."""
    cdef const Job *job = &t.job
    cdef const Geometry *g = &t.g
    cdef char *shared = <char *> job.call.scratch
    cdef int64_t i, at, n = rows * g.out_w, row = (plane * g.out_h + first) * g.out_w, all_ = g.out_d * g.out_h * g.out_w
    cdef int64_t blocks = ceil_div(g.m, EV_NHWC_NR), block = part * ceil_div(blocks, g.parts)
    cdef int64_t last = min(blocks, block + ceil_div(blocks, g.parts))
    while block < last:
        i = block * EV_NHWC_NR
        k.channels = min(<int64_t> EV_NHWC_NR, g.m - i)
        k.w = t.w + i * 4 * g.quads * g.segments
        k.add, k.scale = <const int32_t *> (shared + g.at_add) + i, <const float *> (shared + g.at_scale) + i
        if g.turns > 1 or g.sums:
            k.ldy = g.m
            turned_rows(t, k, image, first, rows, block, scratch)
        elif g.any_type:
            leave_any(t, k, n, image * g.m * all_ + row, i, scratch)
        elif g.y_last:
            at = (image * all_ + row) * g.m + i
            k.y, k.ldy, k.ldz = <uint8_t *> job.o.y.data + at, g.m, g.m
            k.z = NULL if job.o.z == NULL else <const char *> job.o.z.data + at
            K.nhwc_conv(k, 0, n)
        else:
            leave_rows(t, k, n, (image * g.m + i) * all_ + row, scratch)
        block += 1


cdef void dense_items(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Items [begin, end): shares of the blocks, bands, chunks and images, the first fastest."""
    cdef Task *t = <Task *> ctx
    cdef const Job *job = &t.job
    cdef const Geometry *g = &t.g
    cdef char *scratch = <char *> job.call.scratch + g.shared + worker * g.slot
    cdef int32_t[MOST_SEGMENTS] offset
    cdef int32_t[MOST_POOL] pool
    cdef int64_t item, image, plane, first, rows, chunk, columns
    cdef ev_nhwc_conv k
    cdef Ring ring
    ring.plane = -1
    memset(&k, 0, sizeof(k))
    k.offset, k.segments, k.quads, k.wide, k.presum = offset, g.segments, g.quads, g.wide, g.presum
    k.finish = NULL if g.sums else &job.finish
    k.width, k.step, k.row_step = g.out_w, g.pool_w * g.stride_w * g.c, g.pool_h * g.stride_h * g.pitch * g.c
    k.halves, columns = g.halves, 1 if g.halves else g.pool_w
    k.pool, k.pooled = pool, g.pool_h * columns
    for item in range(k.pooled):
        pool[item] = <int32_t> ((item // columns * g.stride_h * g.pitch + item % columns * g.stride_w) * g.c)
    for item in range(begin, end):
        first = item // g.parts % g.bands * g.band
        chunk = item // g.parts // g.bands % g.chunks
        image = item // g.parts // g.bands // g.chunks
        rows = min(g.band, g.out_h - first)
        ring.begin = ring.end = 0
        for plane in range(chunk * g.chunk, min(g.out_d, (chunk + 1) * g.chunk)):
            k.x = image_of(t, image, plane, first, rows, &ring, offset, scratch)
            dense_rows(t, &k, image, plane, first, rows, item % g.parts, scratch)
