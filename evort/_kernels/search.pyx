"""Drivers that search and sort; the choice of boxes."""
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset
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


cdef struct Rows:
    int64_t *at       # (batch, class, box) after another
    int64_t size, room


cdef int append(Rows *rows, int64_t batch, int64_t kind, int64_t box) noexcept nogil:
    """Returns 0, or -1 where memory lacks."""
    cdef int64_t *larger
    if rows.size == rows.room:
        rows.room = max(<int64_t> 64, 2 * rows.room)
        larger = <int64_t *> realloc(rows.at, <size_t> rows.room * 3 * sizeof(int64_t))
        if larger == NULL:
            return -1
        rows.at = larger
    rows.at[3 * rows.size], rows.at[3 * rows.size + 1], rows.at[3 * rows.size + 2] = batch, kind, box
    rows.size += 1
    return 0


cdef bint overlaps(const float *corners, int64_t n, int64_t a, int64_t b, float threshold) noexcept nogil:
    """Whether the intersection of two boxes is more than a share of their union. corners: least x and y, greatest x and
    y, each of n boxes."""
    cdef float x1 = corners[a], y1 = corners[n + a], x2 = corners[2 * n + a], y2 = corners[3 * n + a]
    cdef float left = corners[b], top = corners[n + b], right = corners[2 * n + b], bottom = corners[3 * n + b]
    cdef float w = min(right, x2) - max(left, x1), h = min(bottom, y2) - max(top, y1)
    cdef float own = (x2 - x1) * (y2 - y1), other = (right - left) * (bottom - top), common = w * h
    cdef float joined = own + other - common
    return w > 0 and h > 0 and own > 0 and other > 0 and joined > 0 and common / joined > threshold


cdef int choose(const float *corners, const float *scores, int64_t n, int64_t most, float threshold, bint floored,
                float floor, int64_t batch, int64_t kind, Entry *order, Rows *rows) noexcept nogil:
    """Appends the boxes of one batch and class that are chosen. Returns 0, or -1 where memory lacks."""
    cdef int64_t i, j, size = 0, first = rows.size
    cdef Entry last
    for i in range(n):
        if floored and not scores[i] > floor:
            continue
        order[size].key = float_key(scores[i]) if scores[i] == scores[i] else <int64_t> -(1 << 40)
        order[size].index = i
        size += 1
    for i in range(size // 2 - 1, -1, -1):
        sift(order, size, i)
    for i in range(size - 1, 0, -1):  # the worst moves to the end, until all are best first
        last = order[i]
        order[i] = order[0]
        order[0] = last
        sift(order, i, 0)
    for i in range(size):
        if rows.size - first >= most:
            break
        for j in range(first, rows.size):
            if overlaps(corners, n, rows.at[3 * j + 2], order[i].index, threshold):
                break
        else:
            if append(rows, batch, kind, order[i].index) != 0:
                return -1
    return 0


def choose_boxes(corners, scores, most: int, threshold: float, floor: float | None) -> bytes:
    """NonMaxSuppression: (batch, class, box) as int64 after another, for each batch and class in falling order of score.

    corners: float32 [batches, 4, boxes], least x and y, greatest x and y; scores: float32 [batches, classes, boxes];
    both C-contiguous. floor: what a score must be above. Releases the GIL.
    """
    cdef int64_t batches = scores.shape[0], kinds = scores.shape[1], n = scores.shape[2], batch, kind
    cdef int64_t limit = min(most, n)
    cdef float at_most = threshold, least = 0 if floor is None else floor
    cdef bint floored = floor is not None
    cdef Py_buffer boxes_view, scores_view
    cdef Rows rows
    cdef Entry *order
    cdef int failed = 0
    if limit <= 0 or batches * kinds == 0:
        return b""
    if corners.nbytes != batches * 4 * n * 4 or scores.nbytes != batches * kinds * n * 4:
        raise ValueError("corners must be float32 [batches, 4, boxes], scores float32 [batches, classes, boxes]")
    memset(&rows, 0, sizeof(rows))
    order = <Entry *> malloc(<size_t> n * sizeof(Entry))
    if order == NULL:
        raise MemoryError
    PyObject_GetBuffer(corners, &boxes_view, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(scores, &scores_view, PyBUF_SIMPLE)
        try:
            with nogil:
                for batch in range(batches):
                    for kind in range(kinds):
                        if failed == 0:
                            failed = choose(<const float *> boxes_view.buf + batch * 4 * n,
                                            <const float *> scores_view.buf + (batch * kinds + kind) * n, n, limit,
                                            at_most, floored, least, batch, kind, order, &rows)
        finally:
            PyBuffer_Release(&scores_view)
        if failed:
            raise MemoryError
        return PyBytes_FromStringAndSize(<const char *> rows.at, rows.size * 3 * sizeof(int64_t))
    finally:
        PyBuffer_Release(&boxes_view)
        free(rows.at)
        free(order)


DRIVERS = {}
register(DRIVERS, "top_k", top_k)
