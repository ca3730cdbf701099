"""Drivers that search and sort."""
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.string cimport memcpy
from evort._kernels.core cimport EV_FLOAT, EV_INT32, EV_OK, ev_call, parallel_for, register

cdef enum:
    GRAIN = 8192  # elements that are worth a thread
    CHUNK = 256


# Elements are compared as int64 keys: the larger the better, and of equals the one that comes first.

cdef int64_t float_key(float x) noexcept nogil:
    """An integer that orders as the float does: -0 as 0, NaN above infinity."""
    cdef uint32_t bits
    cdef int32_t key
    if x != x:
        return 0x7fffffff
    x += 0.0
    memcpy(&bits, &x, 4)
    key = <int32_t> bits
    return key ^ 0x7fffffff if key < 0 else key


cdef void load_keys(int dtype, const void *x, int64_t stride, int64_t n, bint smallest, int64_t *keys) noexcept nogil:
    cdef int64_t i
    if dtype == EV_FLOAT:
        for i in range(n):
            keys[i] = float_key((<const float *> x)[i * stride])
    elif dtype == EV_INT32:
        for i in range(n):
            keys[i] = (<const int32_t *> x)[i * stride]
    else:
        for i in range(n):
            keys[i] = (<const int64_t *> x)[i * stride]
    if smallest:
        for i in range(n):
            keys[i] = ~keys[i]  # reverses the order, without overflow


cdef struct Entry:
    int64_t key, index


cdef bint worse(const Entry *a, const Entry *b) noexcept nogil:
    return a.key < b.key or (a.key == b.key and a.index > b.index)


cdef void sift(Entry *heap, int64_t size, int64_t at) noexcept nogil:
    """Restores the heap, whose root is its worst entry, below `at`."""
    cdef Entry moved = heap[at]
    cdef int64_t child = 2 * at + 1
    while child < size:
        if child + 1 < size and worse(&heap[child + 1], &heap[child]):
            child += 1
        if not worse(&heap[child], &moved):
            break
        heap[at] = heap[child]
        at = child
        child = 2 * at + 1
    heap[at] = moved


cdef void top_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef const ev_call *c = <const ev_call *> ctx
    cdef int64_t k = c.ints[0], n = c.ints[1], inner = c.ints[2], size = c.ints[3], lane, i, j, m, at, from_, to
    cdef bint smallest = c.ints[4]
    cdef Entry *heap = <Entry *> (<char *> c.scratch + worker * c.ints[5])
    cdef Entry last
    cdef int64_t keys[CHUNK]
    cdef const char *x
    cdef char *values
    cdef int64_t *indices
    for lane in range(begin, end):
        from_ = lane // inner * n * inner + lane % inner
        to = lane // inner * k * inner + lane % inner
        x = <const char *> c.in_[0].data + from_ * size
        i = 0
        while i < n:
            m = min(<int64_t> CHUNK, n - i)
            load_keys(c.in_[0].dtype, x + i * inner * size, inner, m, smallest, keys)
            for j in range(m):
                if i + j < k:
                    heap[i + j].key, heap[i + j].index = keys[j], i + j
                    if i + j == k - 1:
                        for at in range(k // 2 - 1, -1, -1):
                            sift(heap, k, at)
                elif keys[j] > heap[0].key:
                    heap[0].key, heap[0].index = keys[j], i + j
                    sift(heap, k, 0)
            i += m
        for i in range(k - 1, 0, -1):
            last = heap[i]
            heap[i] = heap[0]
            heap[0] = last
            sift(heap, i, 0)
        values, indices = <char *> c.out[0].data + to * size, <int64_t *> c.out[1].data + to
        for i in range(k):
            memcpy(values + i * inner * size, x + heap[i].index * inner * size, <size_t> size)
            indices[i * inner] = heap[i].index


cdef int top_k(const ev_call *c) noexcept nogil:
    """in: X [outer, n, inner] of float32, int32 or int64; out: values and positions [outer, k, inner], best first.
    ints: (k, n, inner, item size, smallest?, scratch bytes of a thread: 16 k); k is in [1, n]."""
    cdef int64_t lanes = c.in_[0].size // c.ints[1]
    parallel_for(top_chunk, <void *> c, lanes, max(1, GRAIN // c.ints[1]), c.threads)
    return EV_OK


DRIVERS = {}
register(DRIVERS, "top_k", top_k)
