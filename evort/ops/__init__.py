"""Operator definitions, one module for each family (the same names as the kernel modules in `evort/_kernels/`).

The families of the smallest networks come with the package, so that loading one does not wait for them; the others are
imported when a model has one of their operators: `import evort` is to take milliseconds, and an empty module takes a
tenth of one. setup.py writes the table of who defines what.
"""

from evort.ops import conv, linear, pool, views
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
    "conv",
    "find",
    "linear",
    "lookup",
    "op",
    "pool",
    "registered",
    "views",
]
