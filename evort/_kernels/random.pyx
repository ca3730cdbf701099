"""Drivers that draw random numbers, by a counter: element i of a draw depends on the seed and on i alone, so that
neither the number of threads nor the instruction set changes it. evort.ops.random has the same in NumPy."""
import os

from libc.math cimport cos, log, sin, sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from evort._kernels.core cimport (EV_BAD_ARGUMENT, EV_DOUBLE, EV_FLOAT, EV_INT32, EV_INT64, EV_OK, ev_call,
                                  parallel_for, register)

cdef extern from *:
    """
    /* How many draws there were without a seed, in all sessions. */
    static uint64_t evort_draws;
    static inline uint64_t next_draw(void) { return __atomic_add_fetch(&evort_draws, 1, __ATOMIC_RELAXED); }
    static inline void raise_flag(int32_t *flag) { __atomic_store_n(flag, 1, __ATOMIC_RELAXED); }
    """
    uint64_t next_draw() noexcept nogil
    void raise_flag(int32_t *flag) noexcept nogil

cdef enum:
    GRAIN = 4096  # blocks of four words that are worth a thread

cdef struct Draw:
    const ev_call *call
    uint64_t key, stream
    int32_t refused

cdef uint64_t process_key


def reseed() -> None:
    """Gives the process a key of its own, for draws without a seed."""
    global process_key
    process_key = int.from_bytes(os.urandom(8), "little")


reseed()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=reseed)


cdef inline void philox(uint64_t block, uint64_t stream, uint64_t key, uint32_t *w) noexcept nogil:
    """Four words: Philox4x32-10 of the counter (block, stream). J. Salmon et al., Parallel random numbers: as easy as
    1, 2, 3 (2011)."""
    cdef uint32_t a = <uint32_t> block, b = <uint32_t> (block >> 32)
    cdef uint32_t c = <uint32_t> stream, d = <uint32_t> (stream >> 32)
    cdef uint32_t k = <uint32_t> key, l = <uint32_t> (key >> 32)
    cdef uint64_t p, q
    cdef int i
    for i in range(10):
        p = <uint64_t> 0xD2511F53 * a
        q = <uint64_t> 0xCD9E8D57 * c
        a, b, c, d = <uint32_t> (q >> 32) ^ b ^ k, <uint32_t> q, <uint32_t> (p >> 32) ^ d ^ l, <uint32_t> p
        k += <uint32_t> 0x9E3779B9
        l += <uint32_t> 0xBB67AE85
    w[0], w[1], w[2], w[3] = a, b, c, d


cdef inline double unit(uint32_t w) noexcept nogil:
    """A number in [0, 1) of 24 bits: its product with a float32 is exact."""
    return (w >> 8) * (1.0 / (1 << 24))


cdef inline void pair(const uint32_t *w, double *z) noexcept nogil:
    """Two numbers of the standard normal distribution from two words, by Box and Muller."""
    cdef double radius = sqrt(-2 * log((<double> w[0] + 1) * (1.0 / 4294967296.0)))
    cdef double angle = <double> w[1] * (6.283185307179586 / 4294967296.0)
    z[0], z[1] = radius * cos(angle), radius * sin(angle)


cdef void uniform_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const Draw *draw = <const Draw *> ctx
    cdef float *y = <float *> draw.call.out[0].data
    cdef double span = draw.call.reals[0], low = draw.call.reals[1]
    cdef int64_t size = draw.call.out[0].size, block, i
    cdef uint32_t w[4]
    for block in range(begin, end):
        philox(block, draw.stream, draw.key, w)
        for i in range(4 * block, min(4 * block + 4, size)):
            y[i] = <float> (unit(w[i & 3]) * span + low)


cdef void normal_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const Draw *draw = <const Draw *> ctx
    cdef float *y = <float *> draw.call.out[0].data
    cdef double scale = draw.call.reals[0], mean = draw.call.reals[1]
    cdef int64_t size = draw.call.out[0].size, block, i
    cdef uint32_t w[4]
    cdef double z[4]
    for block in range(begin, end):
        philox(block, draw.stream, draw.key, w)
        pair(w, z)
        pair(w + 2, z + 2)
        for i in range(4 * block, min(4 * block + 4, size)):
            y[i] = <float> (z[i & 3] * scale + mean)


ctypedef fused item:
    uint8_t
    int32_t
    int64_t
    float
    double


cdef void toss(Draw *draw, item *y, int64_t begin, int64_t end) noexcept nogil:
    cdef const float *p = <const float *> draw.call.in_[0].data
    cdef int64_t size = draw.call.out[0].size, block, i
    cdef uint32_t w[4]
    for block in range(begin, end):
        philox(block, draw.stream, draw.key, w)
        for i in range(4 * block, min(4 * block + 4, size)):
            if not (0 <= p[i] <= 1):
                raise_flag(&draw.refused)
            y[i] = <item> (unit(w[i & 3]) < p[i])


cdef void bernoulli_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef Draw *draw = <Draw *> ctx
    cdef void *y = draw.call.out[0].data
    cdef int dtype = draw.call.out[0].dtype
    if dtype == EV_FLOAT:
        toss(draw, <float *> y, begin, end)
    elif dtype == EV_DOUBLE:
        toss(draw, <double *> y, begin, end)
    elif dtype == EV_INT32:
        toss(draw, <int32_t *> y, begin, end)
    elif dtype == EV_INT64:
        toss(draw, <int64_t *> y, begin, end)
    else:
        toss(draw, <uint8_t *> y, begin, end)


cdef int draw_numbers(const ev_call *c) noexcept nogil:
    """in: nothing that is read, or the probabilities for bernoulli; out: Y. ints: (law: 0 uniform, 1 normal,
    2 bernoulli; seeded?; seed); reals: (factor, a float32; offset) of the first two laws."""
    cdef Draw draw
    cdef int64_t blocks = (c.out[0].size + 3) // 4
    draw.call, draw.refused = c, 0
    draw.key, draw.stream = <uint64_t> c.ints[2], 0
    if not c.ints[1]:
        draw.key, draw.stream = process_key, next_draw()
    if c.ints[0] == 0:
        parallel_for(uniform_chunk, &draw, blocks, GRAIN, c.threads)
    elif c.ints[0] == 1:
        parallel_for(normal_chunk, &draw, blocks, GRAIN // 8, c.threads)
    else:
        parallel_for(bernoulli_chunk, &draw, blocks, GRAIN, c.threads)
    return EV_BAD_ARGUMENT if draw.refused else EV_OK


cdef void dropout_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const Draw *draw = <const Draw *> ctx
    cdef const float *x = <const float *> draw.call.in_[0].data
    cdef float *y = <float *> draw.call.out[0].data
    cdef double ratio = draw.call.reals[0]
    cdef float factor = <float> (1.0 / (1.0 - ratio))
    cdef int64_t size = draw.call.out[0].size, block, i
    cdef uint32_t w[4]
    for block in range(begin, end):
        philox(block, draw.stream, draw.key, w)
        for i in range(4 * block, min(4 * block + 4, size)):
            y[i] = x[i] * (factor if unit(w[i & 3]) >= ratio else 0)


cdef int dropout_f32(const ev_call *c) noexcept nogil:
    """in: X, step (int64); out: Y. ints: (seed,); reals: (ratio,)."""
    cdef Draw draw
    draw.call, draw.key, draw.stream = c, <uint64_t> c.ints[0], <uint64_t> (<int64_t *> c.in_[1].data)[0]
    draw.refused = 0
    parallel_for(dropout_chunk, &draw, (c.out[0].size + 3) // 4, GRAIN, c.threads)
    return EV_OK


DRIVERS = {}
register(DRIVERS, "draw", draw_numbers)
register(DRIVERS, "dropout_f32", dropout_f32)
