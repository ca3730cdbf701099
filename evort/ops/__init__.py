"""Operator definitions, one module for each family (the same names as the kernel modules in `evort/_kernels/`)."""

from evort.ops import control, elementwise, gather, generate, layout, normalize, pad, reduce, sequence
from evort.ops.base import Attr, Call, DataDependent, Kernel, NeedsValue, Op, find, lookup, op, registered

__all__ = [
    "Attr",
    "Call",
    "DataDependent",
    "Kernel",
    "NeedsValue",
    "Op",
    "control",
    "elementwise",
    "find",
    "gather",
    "generate",
    "layout",
    "lookup",
    "normalize",
    "op",
    "pad",
    "reduce",
    "registered",
    "sequence",
]
