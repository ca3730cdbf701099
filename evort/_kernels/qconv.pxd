"""The driver of QLinearConv and QLinearConvTranspose, for others that find its scales first."""
from evort._kernels.core cimport ev_call

cdef int linear(const ev_call *c) noexcept nogil
