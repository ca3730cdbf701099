"""Drivers that move elements to or from places given by an index tensor.

Every index is checked before it is used: one outside its axis ends the driver with EV_BAD_INDEX. Gathers split their
output rows between threads; scatters run in order on one thread, as updates may meet.
"""
from libc.stdint cimport (
    int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from libc.string cimport memcpy
from evort._kernels.core cimport (
    EV_BAD_ARGUMENT, EV_BAD_INDEX, EV_DOUBLE, EV_FLOAT, EV_INT8, EV_INT16, EV_INT32, EV_INT64, EV_OK,
    EV_UINT8, EV_UINT16, EV_UINT32, EV_UINT64, ev_call, ev_tensor, ev_ukr, parallel_for, register,
    ukernels,
)

cdef const ev_ukr *K = ukernels()

cdef enum:
    BLOCK = 256  # indices that are checked before they are used
    GRAIN_BYTES = 65536
    # As REDUCTIONS in evort.ops.gather.
    R_NONE = 0
    R_ADD = 1
    R_MUL = 2
    R_MIN = 3
    R_MAX = 4

# A call, and whether a thread met a bad index.
cdef struct Job:
    const ev_call *c
    bint bad


cdef inline int64_t in_axis(int64_t index, int64_t size) noexcept nogil:
    """The index in [0, size), or -1 where it is outside."""
    if index < 0:
        index += size
    return index if 0 <= index < size else -1


cdef inline void move(const char *x, char *y, int64_t n) noexcept nogil:
    """memcpy, in line for single elements."""
    if n == 4:
        memcpy(y, x, 4)
    elif n == 8:
        memcpy(y, x, 8)
    elif n == 1:
        y[0] = x[0]
    elif n == 2:
        memcpy(y, x, 2)
    else:
        memcpy(y, x, <size_t> n)


cdef bint places(const ev_tensor *indices, int64_t first, int64_t n, int64_t size, int64_t stride, int64_t step,
                 int64_t *to) noexcept nogil:
    """to[i] = (index number first + i) * stride + i * step. Returns whether all indices are in [-size, size)."""
    cdef const int64_t *wide = <const int64_t *> indices.data + first
    cdef const int32_t *narrow = <const int32_t *> indices.data + first
    cdef bint is_wide = indices.dtype == EV_INT64, good = True
    cdef int64_t i, index
    for i in range(n):
        index = wide[i] if is_wide else narrow[i]
        index += size if index < 0 else 0
        good &= 0 <= index < size
        to[i] = index * stride + i * step
    return good


cdef int gathered(void (*fn)(void *, int64_t, int64_t, int32_t) noexcept nogil, const ev_call *c, int64_t rows,
                  int64_t row_bytes) noexcept nogil:
    cdef Job job
    job.c = c
    job.bad = False
    parallel_for(fn, &job, rows, GRAIN_BYTES // (row_bytes + 8) + 1, c.threads)
    return EV_BAD_INDEX if job.bad else EV_OK


cdef inline bint is_item(int64_t nbytes) noexcept nogil:
    return nbytes == 1 or nbytes == 2 or nbytes == 4 or nbytes == 8 or nbytes == 16


# Gather ----------------------------------------------------------------------------------------------------------

cdef void gather_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef Job *job = <Job *> ctx
    cdef const ev_call *c = job.c
    cdef int64_t n = c.in_[1].size, size = c.ints[1], inner = c.ints[2], k = begin, some, i
    cdef const char *x
    cdef char *y = <char *> c.out[0].data + begin * inner
    cdef int64_t at[BLOCK]
    while k < end:
        some = n - k % n
        some = some if some < end - k else end - k
        some = some if some < BLOCK else BLOCK
        if not places(c.in_[1], k % n, some, size, 1, 0, at):
            job.bad = True
            return
        x = <const char *> c.in_[0].data + k // n * size * inner
        if is_item(inner):
            K.move_index(<int> inner, some, x, at, NULL, y)
        else:
            for i in range(some):
                memcpy(y + i * inner, x + at[i] * inner, <size_t> inner)
        y += some * inner
        k += some


cdef int gather(const ev_call *c) noexcept nogil:
    """in: X, indices; out: Y. ints: (rows: product of the sizes before the axis, size of the axis, bytes of the slice
    behind it)."""
    return gathered(gather_chunk, c, c.ints[0] * c.in_[1].size, c.ints[2])


cdef void gather_elements_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef Job *job = <Job *> ctx
    cdef const ev_call *c = job.c
    cdef const ev_tensor *indices = c.in_[1]
    cdef int64_t item = c.ints[0], rank = c.ints[1], axis = c.ints[2], size = c.ints[3]
    cdef const int64_t *dims = c.ints + 4
    cdef const int64_t *strides = dims + rank
    cdef int64_t n = dims[rank - 1], k, j, i, rest, base, some
    cdef const char *x = <const char *> c.in_[0].data
    cdef char *y = <char *> c.out[0].data + begin * n * item
    cdef int64_t at[BLOCK]
    cdef bint good
    for k in range(begin, end):
        rest = k
        base = 0
        for i in range(rank - 2, -1, -1):
            if i != axis:
                base += rest % dims[i] * strides[i]
            rest //= dims[i]
        j = 0
        while j < n:
            some = n - j if n - j < BLOCK else BLOCK
            if axis == rank - 1:
                good = places(indices, k * n + j, some, size, 1, 0, at)
            else:
                good = places(indices, k * n + j, some, size, strides[axis], 1, at)
            if not good:
                job.bad = True  # never reset: another thread may have set it
                return
            K.move_index(<int> item, some, x + (base + (0 if axis == rank - 1 else j)) * item, at, NULL, y)
            y += some * item
            j += some


cdef int gather_elements(const ev_call *c) noexcept nogil:
    """in: X, indices; out: Y. ints: (item bytes, rank, axis, size of X's axis, sizes of indices, strides of X in
    items)."""
    cdef int64_t n = c.ints[4 + c.ints[1] - 1]
    if c.in_[1].size == 0:
        return EV_OK
    return gathered(gather_elements_chunk, c, c.in_[1].size // n, n * c.ints[0])


cdef inline int64_t tuple_at(const int64_t *index, int64_t k, const int64_t *sizes) noexcept nogil:
    """The row-major place of an index tuple, or -1 where one is outside."""
    cdef int64_t i, at = 0, one
    for i in range(k):
        one = in_axis(index[i], sizes[i])
        if one < 0:
            return -1
        at = at * sizes[i] + one
    return at


cdef void gather_nd_chunk(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef Job *job = <Job *> ctx
    cdef const ev_call *c = job.c
    cdef int64_t per_batch = c.ints[1], inner = c.ints[2], k = c.ints[3], i, at, slices = 1
    cdef const int64_t *sizes = c.ints + 4
    cdef const int64_t *indices = <const int64_t *> c.in_[1].data
    cdef const char *x = <const char *> c.in_[0].data
    cdef char *y = <char *> c.out[0].data
    for i in range(k):
        slices *= sizes[i]
    for i in range(begin, end):
        at = tuple_at(indices + i * k, k, sizes)
        if at < 0:
            job.bad = True
            return
        move(x + (i // per_batch * slices + at) * inner, y + i * inner, inner)


cdef int gather_nd(const ev_call *c) noexcept nogil:
    """in: X, indices (int64); out: Y. ints: (batches, index tuples of each, bytes of a slice, k, k sizes)."""
    return gathered(gather_nd_chunk, c, c.ints[0] * c.ints[1], c.ints[2])


# Scatter ---------------------------------------------------------------------------------------------------------

ctypedef fused number:
    float
    double
    int8_t
    int16_t
    int32_t
    int64_t
    uint8_t
    uint16_t
    uint32_t
    uint64_t


cdef inline number folded(int64_t op, number a, number b) noexcept nogil:
    if op == R_ADD:
        return a + b
    if op == R_MUL:
        return a * b
    if number is float or number is double:  # NaN where either is
        if b != b:
            return b
    if op == R_MIN:
        return b if b < a else a
    return b if b > a else a


cdef inline void combine(int64_t op, int64_t n, const number *x, const int64_t *at, number *y) noexcept nogil:
    """y[at[i]] = y[at[i]] op x[i]; y[i] where `at` is NULL."""
    cdef int64_t i
    if at == NULL:
        for i in range(n):
            y[i] = folded(op, y[i], x[i])
    else:
        for i in range(n):
            y[at[i]] = folded(op, y[at[i]], x[i])


cdef void reduce_into(int64_t op, int32_t dtype, int64_t n, const char *x, const int64_t *at, char *y) noexcept nogil:
    if dtype == EV_FLOAT:
        combine(op, n, <const float *> x, at, <float *> y)
    elif dtype == EV_DOUBLE:
        combine(op, n, <const double *> x, at, <double *> y)
    elif dtype == EV_INT8:
        combine(op, n, <const int8_t *> x, at, <int8_t *> y)
    elif dtype == EV_INT16:
        combine(op, n, <const int16_t *> x, at, <int16_t *> y)
    elif dtype == EV_INT32:
        combine(op, n, <const int32_t *> x, at, <int32_t *> y)
    elif dtype == EV_INT64:
        combine(op, n, <const int64_t *> x, at, <int64_t *> y)
    elif dtype == EV_UINT8:
        combine(op, n, <const uint8_t *> x, at, <uint8_t *> y)
    elif dtype == EV_UINT16:
        combine(op, n, <const uint16_t *> x, at, <uint16_t *> y)
    elif dtype == EV_UINT32:
        combine(op, n, <const uint32_t *> x, at, <uint32_t *> y)
    elif dtype == EV_UINT64:
        combine(op, n, <const uint64_t *> x, at, <uint64_t *> y)


cdef void start_from(const ev_call *c, int64_t nbytes) noexcept nogil:
    """The output begins as input 0, which may be in its place already."""
    if c.out[0].data != c.in_[0].data and nbytes > 0:
        memcpy(c.out[0].data, c.in_[0].data, <size_t> nbytes)


cdef int scatter_elements(const ev_call *c) noexcept nogil:
    """in: X, indices, updates; out: Y. ints: (reduction, then as gather_elements)."""
    cdef int64_t op = c.ints[0], item = c.ints[1], rank = c.ints[2], axis = c.ints[3], size = c.ints[4]
    cdef const int64_t *dims = c.ints + 5
    cdef const int64_t *strides = dims + rank
    cdef const char *x = <const char *> c.in_[2].data
    cdef char *y
    cdef int64_t at[BLOCK]
    cdef int64_t n = dims[rank - 1], rows, k, i, j, rest, base, some
    start_from(c, c.out[0].size * item)
    rows = c.in_[1].size // n if n > 0 else 0
    for k in range(rows):
        rest = k
        base = 0
        for i in range(rank - 2, -1, -1):
            if i != axis:
                base += rest % dims[i] * strides[i]
            rest //= dims[i]
        j = 0
        while j < n:
            some = n - j if n - j < BLOCK else BLOCK
            if axis == rank - 1:
                if not places(c.in_[1], k * n + j, some, size, 1, 0, at):
                    return EV_BAD_INDEX
                y = <char *> c.out[0].data + base * item
            else:
                if not places(c.in_[1], k * n + j, some, size, strides[axis], 1, at):
                    return EV_BAD_INDEX
                y = <char *> c.out[0].data + (base + j) * item
            if op != R_NONE:
                reduce_into(op, c.out[0].dtype, some, x, at, y)
            else:
                for i in range(some):
                    move(x + i * item, y + at[i] * item, item)
            x += some * item
            j += some
    return EV_OK


cdef int scatter_nd(const ev_call *c) noexcept nogil:
    """in: X, indices (int64), updates; out: Y. ints: (reduction, item bytes, index tuples, items of a slice, k,
    k sizes)."""
    cdef int64_t op = c.ints[0], item = c.ints[1], n = c.ints[2], inner = c.ints[3], k = c.ints[4], i, at
    cdef const int64_t *indices = <const int64_t *> c.in_[1].data
    cdef const char *x
    cdef char *y
    start_from(c, c.out[0].size * item)
    for i in range(n):
        at = tuple_at(indices + i * k, k, c.ints + 5)
        if at < 0:
            return EV_BAD_INDEX
        x = <const char *> c.in_[2].data + i * inner * item
        y = <char *> c.out[0].data + at * inner * item
        if op == R_NONE:
            move(x, y, inner * item)
        else:
            reduce_into(op, c.out[0].dtype, inner, x, NULL, y)
    return EV_OK


cdef int tensor_scatter(const ev_call *c) noexcept nogil:
    """in: X, update, write indices (int64) or NULL; out: Y. ints: (circular, batches, rows between batch and axis,
    size of X's axis, of the update's, bytes of the slice behind the axis)."""
    cdef bint circular = c.ints[0] != 0
    cdef int64_t rows = c.ints[2], size = c.ints[3], n = c.ints[4], inner = c.ints[5], b, r, i, at
    cdef const int64_t *starts = NULL
    cdef const char *x = <const char *> c.in_[1].data
    cdef char *y = <char *> c.out[0].data
    if c.n_in > 2 and c.in_[2] != NULL:
        starts = <const int64_t *> c.in_[2].data
    start_from(c, c.ints[1] * rows * size * inner)
    for b in range(c.ints[1]):
        at = 0 if starts == NULL else starts[b]
        if circular:
            at = (at % size + size) % size
        elif at < 0 or at > size - n:
            return EV_BAD_INDEX
        for r in range(b * rows, (b + 1) * rows):
            for i in range(n):
                memcpy(y + (r * size + (at + i) % size) * inner, x + (r * n + i) * inner, <size_t> inner)
    return EV_OK


# Others ----------------------------------------------------------------------------------------------------------

cdef int reverse_sequence(const ev_call *c) noexcept nogil:
    """in: X, lengths (int64); out: Y. ints: (time axis: 0 or 1, sizes of axes 0 and 1, bytes of the slice behind)."""
    cdef int64_t time = c.ints[0], n = c.ints[1], m = c.ints[2], inner = c.ints[3], i, j, length
    cdef const int64_t *lengths = <const int64_t *> c.in_[1].data
    cdef const char *x = <const char *> c.in_[0].data
    cdef char *y = <char *> c.out[0].data
    for i in range(c.in_[1].size):
        if lengths[i] < 0 or lengths[i] > (n if time == 0 else m):
            return EV_BAD_ARGUMENT
    for i in range(n):
        for j in range(m):
            if time == 0:
                length = lengths[j]
                move(x + ((length - 1 - i if i < length else i) * m + j) * inner, y, inner)
            else:
                length = lengths[i]
                move(x + (i * m + (length - 1 - j if j < length else j)) * inner, y, inner)
            y += inner
    return EV_OK


cdef int one_hot(const ev_call *c) noexcept nogil:
    """in: indices, values (off, on); out: Y [rows, depth, inner]. ints: (item bytes, rows, depth, inner)."""
    cdef int64_t item = c.ints[0], depth = c.ints[2], inner = c.ints[3], i, index
    cdef const int64_t *wide = <const int64_t *> c.in_[0].data
    cdef const int32_t *narrow = <const int32_t *> c.in_[0].data
    cdef bint is_wide = c.in_[0].dtype == EV_INT64
    cdef const char *values = <const char *> c.in_[1].data
    cdef char *y = <char *> c.out[0].data
    K.move_fill(<int> item, c.out[0].size, values, y)
    for i in range(c.in_[0].size):
        index = wide[i] if is_wide else narrow[i]
        index = in_axis(index, depth)
        if index >= 0:
            move(values + item, y + ((i // inner * depth + index) * inner + i % inner) * item, item)
    return EV_OK


DRIVERS = {}
register(DRIVERS, "gather", gather)
register(DRIVERS, "gather_elements", gather_elements)
register(DRIVERS, "gather_nd", gather_nd)
register(DRIVERS, "scatter_elements", scatter_elements)
register(DRIVERS, "scatter_nd", scatter_nd)
register(DRIVERS, "tensor_scatter", tensor_scatter)
register(DRIVERS, "reverse_sequence", reverse_sequence)
register(DRIVERS, "one_hot", one_hot)
