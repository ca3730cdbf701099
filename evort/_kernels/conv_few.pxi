# Convolutions with few output positions (1-D networks over short windows, the last layers of small maps): their columns
# of the im2col matrix are built one by one, contiguous, and each row of weights is multiplied with all of them as it
# streams past. Part of conv.pyx.

cdef enum:
    FEW = 4                      # EV_TAIL_COLUMNS of ukr/gemm_tile.h


cdef inline int64_t column_floats(int64_t k) noexcept nogil:
    return round64(4 * k) // 4


cdef void fill_column(const ev_conv_window *w, const float *x, int64_t channels, int64_t inside, int64_t position,
                      float *column) noexcept nogil:
    """The image under all taps of an output position: [channels, taps], zero outside the image."""
    cdef int64_t taps = w.kernel[0] * w.kernel[1] * w.kernel[2], step = w.dilation[2]
    cdef int64_t d0 = position // w.out[2] // w.out[1] * w.stride[0] - w.pad[0]
    cdef int64_t h0 = position // w.out[2] % w.out[1] * w.stride[1] - w.pad[1]
    cdef int64_t w0 = position % w.out[2] * w.stride[2] - w.pad[2]
    # Taps [first, last) of a row of the kernel meet the image.
    cdef int64_t first = 0 if w0 >= 0 else (-w0 + step - 1) // step
    cdef int64_t last = min(w.kernel[2], (w.image[2] - w0 + step - 1) // step) if w0 < w.image[2] else 0
    cdef int64_t kd, kh, d, h, c, t, count = max(<int64_t> 0, last - first)
    cdef bint whole = True
    cdef const float *source
    cdef float *to
    for kd in range(w.kernel[0]):
        d = d0 + kd * w.dilation[0]
        for kh in range(w.kernel[1]):
            h = h0 + kh * w.dilation[1]
            if not (0 <= d < w.image[0] and 0 <= h < w.image[1] and count == w.kernel[2]):
                whole = False
    if not whole:
        memset(column, 0, <size_t> (4 * channels * taps))
    for kd in range(w.kernel[0]):
        d = d0 + kd * w.dilation[0]
        for kh in range(w.kernel[1]):
            h = h0 + kh * w.dilation[1]
            if not (0 <= d < w.image[0] and 0 <= h < w.image[1]):
                continue
            source = x + (d * w.image[1] + h) * w.image[2] + w0 + first * step
            to = column + (kd * w.kernel[1] + kh) * w.kernel[2] + first
            copy_taps(channels, inside, source, taps, to, count, step)


cdef inline void copy_taps(int64_t channels, int64_t inside, const float *source, int64_t taps, float *to, int64_t count,
                           int64_t step) noexcept nogil:
    """`count` elements of each channel, `step` apart, to the taps of a row of the kernel."""
    cdef int64_t c, t
    if step == 1 and count > 8:
        for c in range(channels):
            memcpy(to + c * taps, source + c * inside, <size_t> (4 * count))
    elif step == 1 and count == 3:  # most convolutions of this kind
        for c in range(channels):
            memcpy(to + c * taps, source + c * inside, 12)
    elif step == 1 and count == 2:
        for c in range(channels):
            memcpy(to + c * taps, source + c * inside, 8)
    else:
        for c in range(channels):
            for t in range(count):
                to[c * taps + t] = source[c * inside + t * step]


def few_scratch(int64_t m, int64_t n, int64_t k, bint chosen) -> int:
    """Scratch bytes of few_f32 for products [m, k] x [k, n]; 0 where it cannot, or, unless it was chosen, another driver does
    better."""
    return 4 * n * column_floats(k) if m > 0 and 0 < n <= FEW and (k >= 64 or chosen and k > 0) else 0


cdef int few_f32(const ev_call *c) noexcept nogil:
    """As read_call says. With six operands, the last one has the weights, without taps that never meet the image."""
    cdef Shape s
    cdef ev_tile t
    cdef ev_epilogue e
    cdef float lo, hi
    cdef int64_t image, group, position, rows, channels, k
    cdef float *columns = <float *> c.scratch
    cdef const float *x
    read_call(c, &s)
    clamp_of(c, &lo, &hi)
    if c.n_in > 5:
        s.w = operand(c, 5)
    rows, channels = s.m // s.groups, s.c // s.groups
    k = channels * s.taps
    memset(&t, 0, sizeof(t))
    t.m, t.n, t.k, t.alpha, t.beta, t.lo, t.hi = rows, s.outside, k, 1, 1, lo, hi
    t.rsa, t.csa, t.b, t.b_step = k, 1, columns, column_floats(k)
    t.ldc = t.ldadd = s.outside
    for image in range(s.n):
        for group in range(s.groups):
            x = s.x + (image * s.c + group * channels) * s.inside
            for position in range(s.outside):
                fill_column(&s.window, x, channels, s.inside, position, columns + position * t.b_step)
            fill_epilogue(c, &s, image, group, &e)
            t.a, t.row_bias, t.add = s.w + group * rows * k, e.bias, e.residual
            t.c = s.y + (image * s.m + group * rows) * s.outside
            K.gemm_few_f32(&t)
            if not is_clamp(c):
                K.activate_f32(&e, rows, s.outside, 0, <float *> t.c, s.outside)
    return EV_OK
