"""The fields of the records, for the reader and the planner."""
from libc.stdint cimport int64_t, uint64_t

# What an attribute's value can be: bits, since a kind takes more than one ("float" takes an integer too).
cdef enum:
    A_INT = 1
    A_FLOAT = 2
    A_STR = 4
    A_TENSOR = 8
    A_GRAPH = 16
    A_INTS = 32
    A_FLOATS = 64
    A_STRS = 128
    A_OTHER = 256


cdef class Spec:
    cdef public object dtype, shape, value, sparse
    cdef public bint channels_last
    cdef int64_t items(self) except -1
    cdef int64_t bytes(self) except -1


cdef class Tensor:
    cdef public object name, dtype, shape, data, quant, sparsity, layout


cdef class Node:
    cdef public object op, inputs, outputs, attrs, domain, name
    cdef bint nested(self) except -1


cdef class Graph:
    cdef public object name, nodes, tensors, inputs, outputs, make


cdef class Kernel:
    cdef public object driver, ints, reals, scratch, packed, inputs


cdef class Call:
    cdef public object attrs, ins, node, outs, run_graph, threads, memo, found, kernel


cdef class OpInfo:
    cdef object definition
    cdef int64_t low_in, high_in, low_out, high_out
    cdef uint64_t required
    cdef dict kinds, defaults
    cdef frozenset needed
    cdef list allowed
    cdef bint expands, views, places, lasts, joins, deterministic, anything
    cdef tuple inplace

    cdef bint arity_fits(self, int64_t n_in, int64_t n_out, uint64_t absent) noexcept
    cdef bint dtypes_fit(self, list ins) except -1
    cdef dict complete(self, Node node)


cdef OpInfo info_of(object definition)
