"""The driver of QLinearConv for operands that lie channels last, for others that find its scales first."""
from evort._kernels.core cimport ev_call

cdef int linear(const ev_call *c) noexcept nogil
