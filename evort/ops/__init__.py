"""Operator definitions, one module for each family (the same names as the kernel modules in `evort/_kernels/`).

A family is imported when a model has one of its operators: `import evort` is to take milliseconds, and an empty module
takes a tenth of one. setup.py writes the table of who defines what. This module imports none of them either, until one
is asked for: Python gives up where one thread imports a package that imports a module of it, and another that module.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    "find",
    "lookup",
    "op",
    "registered",
]


def __getattr__(name: str) -> Any:
    """What `base` has under that name, or the module of that name, imported when it is asked for first."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    base = import_module("evort.ops.base")
    if name in __all__:
        return getattr(base, name)
    try:
        return base.import_family(name)
    except ModuleNotFoundError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
