"""Operator definitions, one module for each family (the same names as the kernel modules in `evort/_kernels/`).

The families that nearly every model uses come with the package; the others are imported when a model has one of their
operators: `import evort` is to take milliseconds. setup.py writes the table of who defines what.
"""

from evort.ops import binary, conv, elementwise, layout, linear, pool, softmax
from evort.ops.base import (
    Attr,
    Call,
    DataDependent,
    Kernel,
    NeedsValue,
    Op,
    find,
    lookup,
    op,
    registered,
)

__all__ = [
    "Attr",
    "Call",
    "DataDependent",
    "Kernel",
    "NeedsValue",
    "Op",
    "binary",
    "conv",
    "elementwise",
    "find",
    "layout",
    "linear",
    "lookup",
    "op",
    "pool",
    "registered",
    "softmax",
]
