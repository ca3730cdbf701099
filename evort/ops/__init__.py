"""Operator definitions, one module for each family (the same names as the kernel modules in `evort/_kernels/`).

The families of the smallest networks come with the package, so that loading one does not wait for them; the others are
imported when a model has one of their operators: `import evort` is to take milliseconds, and an empty module takes a
tenth of one. setup.py writes the table of who defines what.
"""

from types import ModuleType

from evort.ops import conv, linear, pool, views
from evort.ops.base import (
    Attr,
    Call,
    DataDependent,
    Kernel,
    NeedsValue,
    Op,
    find,
    import_family,
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


def __getattr__(name: str) -> ModuleType:
    """The module of that name, imported when `from evort.ops import name` asks for it first."""
    if not name.startswith("__"):
        try:
            return import_family(name)
        except ModuleNotFoundError:
            pass
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
