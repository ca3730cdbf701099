# Depthwise convolutions of bytes that lie channels last, by quads of rows, or by pairs of int16. Part of qnhwc.pyx.
#
# Byte e of four (two) rows of the image becomes an item of four bytes, once for all columns of the kernel and for every row
# of the result that reads these rows: those of a block, as many as `groups` items allow, or all where the image has no more.
# The weights are shifted to where a row of the result meets them. Rows of padding are neither made nor multiplied.

cdef enum:
    QUAD_BYTES = 32 * 1024       # of a band of columns, about
    FEWEST_BYTES = 2048          # of a row of the result in a thread's band
    PRODUCTS_PER_TASK = MACS_PER_TASK // 4  # which take as long as so many of a dense convolution

ctypedef struct Columns:
    Geometry w                   # the window only
    int64_t cycle                # bytes of the result after which weights repeat; a multiple of a vector
    bint run                     # the pixels of a row are one run of bytes; else a pixel at a time
    int64_t each                 # rows of an item: 4, or 2
    int64_t groups               # of so many rows, at most
    int64_t block, blocks        # rows of the result that share them
    int64_t band, bands, pitch   # columns of the result, and of the image under them
    int64_t items                # of a kernel's column
    int64_t at_scale, shared, slot


ctypedef struct ColumnsTask:
    Job job
    Columns g
    const int8_t *w


cdef bint make_columns(Columns *g, const int64_t *v, int32_t threads) noexcept nogil:
    """False where this driver does not take the window."""
    cdef Geometry *w = &g.w
    cdef int64_t some, reach
    if not take_window(w, v, True):
        return False
    if w.n * w.c * w.out_h * w.out_w * w.kernel_h * w.kernel_w < 2 * PRODUCTS_PER_TASK:
        threads = 1
    g.each = 2 if w.wide else 4
    g.items = g.groups = ceil_div(w.kernel_h, g.each)
    g.block = 1
    if w.h <= g.each * g.groups and w.dilation_h == 1:
        g.block, g.groups = w.out_h, ceil_div(w.h, g.each)
    elif w.dilation_h == 1:
        g.block = (g.each * g.groups - w.kernel_h) // w.stride_h + 1
    g.blocks = ceil_div(w.out_h, g.block)
    if g.groups * w.kernel_w > EV_NHWC_TAPS or w.h * w.w * w.c > <int64_t> 1 << 40:
        return False
    g.run = w.stride_w == 1 and w.out_w > 1
    g.cycle = w.c * EV_NHWC_VECTOR // common(w.c, EV_NHWC_VECTOR) if g.run else up_to(w.c, EV_NHWC_VECTOR)
    reach = (w.kernel_w - 1) * w.dilation_w + 1
    g.band = max(<int64_t> 1, min(w.out_w, (QUAD_BYTES // (4 * g.groups * w.c) - reach) // w.stride_w + 1))
    some = w.n * g.blocks * ceil_div(w.out_w, g.band)
    if threads > 1 and some < 2 * threads:
        g.band = min(g.band, max(ceil_div(w.out_w, ceil_div(2 * threads, some)), ceil_div(FEWEST_BYTES, w.c)))
    g.bands = ceil_div(w.out_w, g.band)
    g.band = ceil_div(w.out_w, g.bands)
    g.pitch = (g.band - 1) * w.stride_w + reach
    g.at_scale = up_to(4 * g.cycle, 64)
    g.shared = 2 * g.at_scale
    g.slot = up_to(4 * g.groups * g.pitch * w.c + SLACK, 64)
    return True


cdef void fill_items(uint32_t item, int64_t n, uint32_t *to) noexcept nogil:
    cdef int64_t i
    for i in range(n):
        to[i] = item


cdef void make_items(const Job *job, const Columns *g, const uint8_t *x, int64_t top, int64_t rows, int64_t left,
                     char *to) noexcept nogil:
    """Rows top, top + dilation, ... of the image, columns from `left` on, padding with what stands for zero."""
    cdef const Geometry *w = &g.w
    cdef int64_t row, r, begin = min(max(<int64_t> 0, -left), g.pitch), end = max(begin, min(g.pitch, w.w - left))
    cdef const uint8_t *four[4]
    cdef uint32_t pad
    row = 0
    while row == 0 or row < rows:
        pad = 0
        for r in range(g.each):
            four[r] = NULL
            if row + r < rows:
                four[r] = x + ((top + (row + r) * w.dilation_h) * w.w + left + begin) * w.c
                pad |= <uint32_t> job.x_zero << <uint32_t> (32 // g.each * r)
        fill_items(pad, begin * w.c, <uint32_t *> to)
        if g.each == 2:
            K.nhwc_pairs((end - begin) * w.c, four, <int16_t *> to + 2 * begin * w.c)
        else:
            K.nhwc_quads((end - begin) * w.c, four, <uint8_t *> to + 4 * begin * w.c)
        fill_items(pad, (g.pitch - end) * w.c, <uint32_t *> to + end * w.c)
        to += 4 * g.pitch * w.c
        row += g.each


cdef void columns_items(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    """Items [begin, end): bands of columns, blocks of rows and images, the first fastest."""
    cdef ColumnsTask *t = <ColumnsTask *> ctx
    cdef const Job *job = &t.job
    cdef const Columns *g = &t.g
    cdef const Geometry *w = &g.w
    cdef char *shared = <char *> job.call.scratch
    cdef char *made = shared + g.shared + worker * g.slot
    cdef int64_t item, image, row, first, last, top, rows, left, width, at, length, lanes, whole
    cdef const uint8_t *x
    cdef uint8_t *y
    cdef void (*multiply)(const ev_nhwc_columns *given, int64_t n) noexcept nogil
    cdef ev_nhwc_columns k
    multiply = K.nhwc_pair_columns if g.each == 2 else K.nhwc_columns
    memset(&k, 0, sizeof(k))
    k.kernel_h, k.kernel_w, k.group_step = w.kernel_h, w.kernel_w, 4 * g.pitch * w.c
    k.tap_step, k.step = 4 * w.dilation_w * w.c, 4 * (g.cycle if g.run else w.stride_w * w.c)
    k.y_step, k.w_step, k.zero, k.finish = g.cycle if g.run else w.c, 4 * g.cycle, <int32_t> job.x_zero, &job.finish
    for item in range(begin, end):
        left = item % g.bands * g.band
        width = min(g.band, w.out_w - left)
        first = item // g.bands % g.blocks * g.block
        last = min(first + g.block, w.out_h)
        image = item // g.bands // g.blocks
        x = <const uint8_t *> job.o.x.data + image * w.h * w.w * w.c
        # The rows of the image that there are under rows [first, last).
        top = first * w.stride_h - w.pad_h
        rows = (last - 1 - first) * w.stride_h + w.kernel_h
        rows = min(rows, ceil_div(w.h - top, w.dilation_h))
        at = ceil_div(-top, w.dilation_h) if top < 0 else 0
        top += at * w.dilation_h
        rows = max(<int64_t> 0, rows - at)
        make_items(job, g, x, top, rows, left * w.stride_w - w.pad_w, made)
        k.groups, k.rows = max(<int64_t> 1, ceil_div(rows, g.each)), rows
        length = (width if g.run else 1) * w.c
        at = 0
        while at < min(g.cycle, length):
            lanes = min(<int64_t> EV_NHWC_NR, g.cycle - at)
            if not g.run:
                lanes = min(lanes, w.c - at)
            k.w = t.w + 4 * at
            k.add, k.scale = <const int32_t *> shared + at, <const float *> (shared + g.at_scale) + at
            whole = ((length - at - lanes) // g.cycle + 1 if length - at >= lanes else 0) if g.run else width
            for row in range(first, last):
                y = <uint8_t *> job.o.y.data + ((image * w.out_h + row) * w.out_w + left) * w.c + at
                k.first = (top - row * w.stride_h + w.pad_h) // w.dilation_h if w.dilation_h > 1 else (
                    top - row * w.stride_h + w.pad_h)
                k.q, k.y, k.channels = <const uint8_t *> made + 4 * at, y, lanes
                if whole > 0:
                    multiply(&k, whole)
                if g.run and at + whole * g.cycle < length:
                    k.q += whole * k.step
                    k.y += whole * k.y_step
                    k.channels = length - at - whole * g.cycle
                    multiply(&k, 1)
            at += EV_NHWC_NR


cdef int depthwise(const ev_call *c) noexcept nogil:
    """in: those of QLinearConv, then what pack_depthwise gives; out: y; the rest as for `linear`."""
    cdef ColumnsTask t
    cdef Columns *g = &t.g
    cdef int64_t m, items
    cdef int32_t *add = <int32_t *> c.scratch
    cdef float *scale
    take_linear(c, &t.job)
    if t.job.o.y.size == 0:
        return EV_OK
    make_columns(g, c.ints, c.threads)
    t.w = <const int8_t *> c.in_[c.ints[I_INPUTS]].data
    scale = <float *> (<char *> c.scratch + g.at_scale)
    memset(c.scratch, 0, g.shared)
    row_factors(&t.job, g.w.c, NULL, add, scale)
    for m in range(g.w.c, g.cycle if g.run else 0):
        add[m], scale[m] = add[m - g.w.c], scale[m - g.w.c]
    items = g.w.n * g.blocks * g.bands
    parallel_for(columns_items, &t, items,
                 max(1, PRODUCTS_PER_TASK // max(1, t.job.o.y.size // items * g.w.kernel_h * g.w.kernel_w)), c.threads)
    return EV_OK


cdef void pack_columns(const Columns *g, const uint8_t *w, int flip, int8_t *to) noexcept nogil:
    """[items][kernel_w][cycle][each] from [C, kernel]; `to` is of zeros. Plans of one cycle share them, whether they run or
    not."""
    cdef int8_t v
    cdef int64_t e, channel, r, item, j, width = g.w.kernel_w, taps = g.w.kernel_h * width
    for item in range(g.items):
        for j in range(width):
            channel = 0
            for e in range(g.cycle):
                for r in range(min(g.each, g.w.kernel_h - item * g.each)):
                    v = <int8_t> (w[channel * taps + (item * g.each + r) * width + j] ^ flip)
                    if g.each == 2:
                        (<int16_t *> to)[r] = v
                    else:
                        to[r] = v
                to += 4
                channel = channel + 1 if channel + 1 < g.w.c else 0
