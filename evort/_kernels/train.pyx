"""Drivers that training adds: gradients of activations, pools, batch normalization and the loss, optimizer steps. All in
float32."""
from libc.math cimport exp, log, pow, sqrt
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset
from evort._kernels.core cimport (EV_BAD_INDEX, EV_OK, EV_REDUCE_SUM, ev_adam, ev_call, ev_ukr, parallel_for,
                                  register, ukernels)

cdef const ev_ukr *K = ukernels()

cdef enum:
    CHEAP = 16384    # elements of a loop of few operations that are worth a thread


cdef inline float *data(const ev_call *c, int i) noexcept nogil:
    return NULL if i >= c.n_in or c.in_[i] == NULL else <float *> c.in_[i].data


cdef inline float *result(const ev_call *c, int i) noexcept nogil:
    return NULL if i >= c.n_out or c.out[i] == NULL else <float *> c.out[i].data


# Activations ---------------------------------------------------------------------------------------------------------

cdef void activation_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    K.activation_grad_f32(<int> c.ints[0], end - begin, data(c, 0) + begin, data(c, 1) + begin, <float> c.reals[0],
                          <float> c.reals[1], result(c, 0) + begin)


cdef int activation_grad_f32(const ev_call *c) noexcept nogil:
    """in: dY, V; out: dX. ints: (number of the activation,); reals: (alpha, beta)."""
    parallel_for(activation_chunk, <void *> c, c.out[0].size, CHEAP, c.threads)
    return EV_OK


# Pools ---------------------------------------------------------------------------------------------------------------

# One spatial axis, as in pooling.pyx.
cdef struct Axis:
    int64_t size, out, kernel, stride, dilation, pad, count_from, count_to


cdef inline int64_t counted(const Axis *a, int64_t o) noexcept nogil:
    """How many positions of window o count for an average."""
    cdef int64_t k, at, n = 0
    for k in range(a.kernel):
        at = o * a.stride - a.pad + k * a.dilation
        n += a.count_from <= at < a.count_to
    return max(n, 1)


cdef void window_grad(const ev_call *c, const Axis *D, int64_t od, int64_t oh, int64_t ow, float dy, const float *x,
                      float *dx) noexcept nogil:
    """One window's gradient: to its first largest element (x given), or shared by all."""
    cdef const Axis *H = D + 1
    cdef const Axis *W = D + 2
    cdef int64_t i, j, k, d, h, w, at, best = -1
    if x == NULL:
        dy = dy / <float> (counted(D, od) * counted(H, oh) * counted(W, ow))
    for i in range(D.kernel):
        d = od * D.stride - D.pad + i * D.dilation
        if d < 0 or d >= D.size:
            continue
        for j in range(H.kernel):
            h = oh * H.stride - H.pad + j * H.dilation
            if h < 0 or h >= H.size:
                continue
            for k in range(W.kernel):
                w = ow * W.stride - W.pad + k * W.dilation
                if w < 0 or w >= W.size:
                    continue
                at = (d * H.size + h) * W.size + w
                if x == NULL:
                    dx[at] += dy
                elif best < 0 or x[at] > x[best] or (x[at] != x[at] and x[best] == x[best]):
                    best = at
    if best >= 0:
        dx[best] += dy


cdef void pool_planes(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef const Axis *D = <const Axis *> (c.ints + 1)
    cdef const Axis *H = D + 1
    cdef const Axis *W = D + 2
    cdef int64_t plane, od, oh, ow, size = D.size * H.size * W.size, out = D.out * H.out * W.out, at
    cdef const float *x
    cdef const float *dy
    cdef float *dx
    cdef bint halves = (c.ints[0] == 0 and D.size == 1 and D.kernel == 1 and H.kernel == 2 and W.kernel == 2
                        and H.stride == 2 and W.stride == 2 and H.dilation == 1 and W.dilation == 1 and D.pad == 0
                        and H.pad == 0 and W.pad == 0 and H.size == 2 * H.out and W.size == 2 * W.out)
    for plane in range(begin, end):
        dy, dx = data(c, 0) + plane * out, result(c, 0) + plane * size
        x = NULL if c.ints[0] else data(c, 1) + plane * size
        if halves:
            for oh in range(H.out):
                at = 2 * oh * W.size
                K.max_pool_grad_2x2_f32(W.out, x + at, x + at + W.size, dy + oh * W.out, dx + at, dx + at + W.size)
            continue
        memset(dx, 0, 4 * size)
        for od in range(D.out):
            for oh in range(H.out):
                for ow in range(W.out):
                    window_grad(c, D, od, oh, ow, dy[(od * H.out + oh) * W.out + ow], x, dx)


cdef int pool_grad_f32(const ev_call *c) noexcept nogil:
    """in: dY, X (of a maximum); out: dX. ints: (0 maximum, 1 average; three axes of eight numbers, as pooling.pool's)."""
    cdef const Axis *D = <const Axis *> (c.ints + 1)
    cdef int64_t size = D[0].size * D[1].size * D[2].size
    parallel_for(pool_planes, <void *> c, c.out[0].size // size, max(1, CHEAP // size), c.threads)
    return EV_OK


# Batch normalization -------------------------------------------------------------------------------------------------

cdef struct Channel:
    int64_t images, channels, inner
    double mean, inverse, var


cdef void moments(Channel *s, const float *x, int64_t channel, double epsilon) noexcept nogil:
    cdef double count = 0, mean = 0, m2 = 0
    cdef int64_t i
    for i in range(s.images):
        K.moments_f32(s.inner, x + (i * s.channels + channel) * s.inner, &count, &mean, &m2)
    s.mean, s.var = mean, m2 / count
    s.inverse = 1 / sqrt(s.var + epsilon)


cdef void batch_channels(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef Channel s
    cdef int64_t k, i, at
    cdef double keep = c.reals[1], factor
    s.images, s.channels, s.inner = c.ints[0], c.ints[1], c.ints[2]
    for k in range(begin, end):
        moments(&s, data(c, 0), k, c.reals[0])
        factor = s.inverse * data(c, 1)[k]
        for i in range(s.images):
            at = (i * s.channels + k) * s.inner
            K.affine_f32(s.inner, data(c, 0) + at, <float> s.mean, <float> factor, data(c, 2)[k], result(c, 0) + at)
            if c.ints[3]:
                K.unary_f32(<int> c.ints[3], s.inner, result(c, 0) + at, result(c, 0) + at, <float> c.reals[2],
                            <float> c.reals[3])
        if result(c, 1) != NULL:
            result(c, 1)[k] = <float> (data(c, 3)[k] * keep + s.mean * (1 - keep))
        if result(c, 2) != NULL:
            result(c, 2)[k] = <float> (data(c, 4)[k] * keep + s.var * (1 - keep))


cdef int batch_norm_f32(const ev_call *c) noexcept nogil:
    """in: X, scale, B, running mean, running var; out: Y, and the new running ones or NULL (which may be the old ones).
    ints: (images, channels, inner, activation); reals: (epsilon, momentum, alpha, beta)."""
    parallel_for(batch_channels, <void *> c, c.ints[1], max(1, CHEAP // max(1, c.ints[0] * c.ints[2])), c.threads)
    return EV_OK


cdef void batch_grad_channels(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef const float *dy = data(c, 0)
    cdef const float *x = data(c, 1)
    cdef Channel s
    cdef int64_t k, i, at
    cdef double total, product, one, n, a, b
    s.images, s.channels, s.inner = c.ints[0], c.ints[1], c.ints[2]
    n = <double> (s.images * s.inner)
    for k in range(begin, end):
        moments(&s, x, k, c.reals[0])
        total, product = 0, 0
        for i in range(s.images):
            at = (i * s.channels + k) * s.inner
            K.reduce_rows_f32(EV_REDUCE_SUM, 1, s.inner, s.inner, dy + at, NULL, &total)
            K.dot_f32(s.inner, dy + at, 1, x + at, 1, &one)
            product += one
        product = (product - s.mean * total) * s.inverse    # the sum of dY * standardized X
        result(c, 1)[k], result(c, 2)[k] = <float> product, <float> total
        # dX = scale * inverse * (dY - mean(dY) - standardized X * mean(dY * standardized X))
        a = data(c, 2)[k] * s.inverse
        b = -a * product / n * s.inverse
        for i in range(s.images):
            at = (i * s.channels + k) * s.inner
            K.combine_f32(s.inner, <float> a, dy + at, <float> b, x + at, <float> (-a * total / n - b * s.mean),
                          result(c, 0) + at)


cdef int batch_norm_grad_f32(const ev_call *c) noexcept nogil:
    """in: dY, X, scale; out: dX, dscale, dB. ints: (images, channels, inner); reals: (epsilon,)."""
    parallel_for(batch_grad_channels, <void *> c, c.ints[1], max(1, CHEAP // max(1, c.ints[0] * c.ints[2])), c.threads)
    return EV_OK


# Loss ----------------------------------------------------------------------------------------------------------------

cdef int cross_entropy_f32(const ev_call *c) noexcept nogil:
    """in: scores [..., C], labels (int64); out: loss, gradient, how many are right or NULL. ints: (C, is there a label
    to ignore?, that label); reals: (label smoothing,). Sums are in double."""
    cdef int64_t classes = c.ints[0], rows = c.in_[1].size, i, j, best, label, count = 0, right = 0
    cdef const int64_t *labels = <const int64_t *> c.in_[1].data
    cdef const float *x = data(c, 0)
    cdef float *dx = result(c, 1)
    cdef double smooth = c.reals[0], share = c.reals[0] / classes, loss = 0, most, total, logs, one, scale
    for i in range(rows):
        label = labels[i]
        if c.ints[1] and label == c.ints[2]:
            continue
        if label < 0 or label >= classes:
            return EV_BAD_INDEX
        count += 1
    scale = 1.0 / max(1, count)
    for i in range(rows):
        label = labels[i]
        if c.ints[1] and label == c.ints[2]:
            memset(dx, 0, 4 * classes)
        else:
            best = 0
            for j in range(1, classes):
                if x[j] > x[best]:
                    best = j
            right += best == label
            most, total = x[best], 0
            for j in range(classes):
                total += exp(x[j] - most)
            logs = most + log(total)
            for j in range(classes):
                one = x[j] - logs
                dx[j] = <float> ((exp(one) - share - (1 - smooth if j == label else 0)) * scale)
                if smooth != 0:
                    loss -= share * one
            loss -= (1 - smooth) * (x[label] - logs)
        x += classes
        dx += classes
    result(c, 0)[0] = <float> (loss * scale)
    if c.n_out > 2 and c.out[2] != NULL:
        (<int64_t *> c.out[2].data)[0] = right
    return EV_OK


# Optimizers ----------------------------------------------------------------------------------------------------------

cdef void momentum_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef float scale = 1.0 if data(c, 4) == NULL else data(c, 4)[0]
    K.momentum_f32(end - begin, <int> c.ints[0], data(c, 3)[0], <float> c.reals[0], <float> c.reals[1], scale,
                   data(c, 0) + begin, data(c, 1) + begin, data(c, 2) + begin, result(c, 0) + begin,
                   result(c, 1) + begin)


cdef int momentum_f32(const ev_call *c) noexcept nogil:
    """in: W, G, V, lr, scale or NULL; out: W', V'. ints: (nesterov?,); reals: (momentum, decay)."""
    parallel_for(momentum_chunk, <void *> c, c.out[0].size, CHEAP, c.threads)
    return EV_OK


cdef struct Adam:
    const ev_call *call
    ev_adam step


cdef void adam_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const Adam *job = <const Adam *> ctx
    cdef const ev_call *c = job.call
    K.adam_f32(end - begin, &job.step, data(c, 0) + begin, data(c, 1) + begin, data(c, 2) + begin, data(c, 3) + begin,
               result(c, 0) + begin, result(c, 1) + begin, result(c, 2) + begin)


cdef int adam_f32(const ev_call *c) noexcept nogil:
    """in: W, G, M, V, lr, t, scale or NULL; out: W', M', V'. ints: (decoupled decay?,); reals: (beta1, beta2, epsilon,
    decay)."""
    cdef Adam job
    cdef double t = data(c, 5)[0]
    job.call = c
    job.step.lr, job.step.decoupled = data(c, 4)[0], <int32_t> c.ints[0]
    job.step.beta1, job.step.beta2 = <float> c.reals[0], <float> c.reals[1]
    job.step.rest1, job.step.rest2 = 1 - job.step.beta1, 1 - job.step.beta2
    job.step.unbias1, job.step.unbias2 = <float> (1 / (1 - pow(c.reals[0], t))), <float> (1 / (1 - pow(c.reals[1], t)))
    job.step.epsilon, job.step.decay = <float> c.reals[2], <float> c.reals[3]
    job.step.scale = 1.0 if data(c, 6) == NULL else data(c, 6)[0]
    parallel_for(adam_chunk, &job, c.out[0].size, CHEAP // 2, c.threads)
    return EV_OK


cdef int clip_factor_f32(const ev_call *c) noexcept nogil:
    """in: gradients; out: factor, norm or NULL. reals: (largest norm,)."""
    cdef double total = 0, one
    cdef int i
    for i in range(c.n_in):
        K.nrm2_f32(c.in_[i].size, c.in_[i].data, 1, &one)
        total += one * one
    total = sqrt(total)
    result(c, 0)[0] = <float> (1.0 if total <= c.reals[0] else c.reals[0] / total)
    if result(c, 1) != NULL:
        result(c, 1)[0] = <float> total
    return EV_OK


DRIVERS = {}
register(DRIVERS, "activation_grad_f32", activation_grad_f32)
register(DRIVERS, "adam_f32", adam_f32)
register(DRIVERS, "batch_norm_f32", batch_norm_f32)
register(DRIVERS, "batch_norm_grad_f32", batch_norm_grad_f32)
register(DRIVERS, "clip_factor_f32", clip_factor_f32)
register(DRIVERS, "cross_entropy_f32", cross_entropy_f32)
register(DRIVERS, "momentum_f32", momentum_f32)
register(DRIVERS, "pool_grad_f32", pool_grad_f32)
