"""Operator definitions, one module for each family (the same names as the kernel modules in `evort/_kernels/`)."""

from evort.ops import (
    control,
    conv,
    deform,
    elementwise,
    gather,
    generate,
    layout,
    linear,
    normalize,
    pad,
    pool,
    reduce,
    sequence,
)
from evort.ops.base import Attr, Call, DataDependent, Kernel, NeedsValue, Op, find, lookup, op, registered

__all__ = [
    "Attr",
    "Call",
    "DataDependent",
    "Kernel",
    "NeedsValue",
    "Op",
    "control",
    "conv",
    "deform",
    "elementwise",
    "find",
    "gather",
    "generate",
    "layout",
    "linear",
    "lookup",
    "normalize",
    "op",
    "pad",
    "pool",
    "reduce",
    "registered",
    "sequence",
]
