"""Walking operands that are broadcast, for the drivers of other families too; elementwise.pyx says how."""
from libc.stdint cimport int64_t
from evort._kernels.core cimport ev_call

cdef enum:
    OPERANDS = 8     # most that are walked at once; MAX_OPERANDS of evort/ops/broadcast.py
    RANK = 8
    BLOCK = 512      # items that pass through a buffer on the stack at a time
    SHORT_ROW = 16   # rows below this are gathered into blocks


cdef inline int64_t blocks(int64_t n) noexcept nogil:
    return (n + BLOCK - 1) // BLOCK


cdef struct Walk
ctypedef void (*row_function)(const Walk *w, int64_t n, const char **p, const int64_t *s, char *y) noexcept nogil

# What `walk` goes over. row: called for n items: operand k at p[k], advancing by s[k] items (0 or 1), and output y.
# limit: most items that row takes at once. size: of an item of each operand, and of the output last. context: for row.
cdef struct Walk:
    const ev_call *call
    const int64_t *loops
    row_function row
    const void *context
    int64_t limit
    int64_t operands
    const char *base[OPERANDS]
    int64_t size[OPERANDS + 1]

# Calls row for all of output 0, w.base being inputs 0, 1, ... Sizes of the operands' items are in w.size already.
cdef void walk(Walk *w, const ev_call *c, const int64_t *loops, row_function row, int64_t limit, int64_t operands,
               int64_t out_size, int64_t grain) noexcept nogil
# The same for operands that w.base has already.
cdef void walk_operands(Walk *w, const ev_call *c, const int64_t *loops, row_function row, int64_t limit,
                        int64_t operands, int64_t out_size, int64_t grain) noexcept nogil
