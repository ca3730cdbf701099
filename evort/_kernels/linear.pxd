"""How drivers of batched matrix products walk their batch axes."""
from libc.stdint cimport int32_t, int64_t

# A batch axis is four numbers: its count, and the strides of A, of B and of Y along it.

cdef inline int64_t batch_items(const int64_t *axis, int32_t axes) noexcept nogil:
    cdef int64_t items = 1
    cdef int32_t i
    for i in range(axes):
        items *= axis[4 * i]
    return items


cdef inline void batch_item(const int64_t *axis, int32_t axes, int64_t item, int64_t *a, int64_t *b,
                            int64_t *y) noexcept nogil:
    """Where the matrices of one item of the batch are, in elements."""
    cdef int64_t index
    cdef int32_t i
    a[0] = b[0] = y[0] = 0
    for i in range(axes - 1, -1, -1):
        index = item % axis[4 * i]
        item = item // axis[4 * i]
        a[0] += index * axis[4 * i + 1]
        b[0] += index * axis[4 * i + 2]
        y[0] += index * axis[4 * i + 3]
