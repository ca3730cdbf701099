"""Operator definitions, one module for each family (the same names as the kernel modules in `evort/_kernels/`).

The families that nearly every model uses come with the package; the others are imported, in this order, when a model
has an operator that is not among those read so far: `import evort` is to take milliseconds.
"""

from evort.ops import binary, conv, elementwise, layout, linear, pool, reduce
from evort.ops.base import (
    Attr,
    Call,
    DataDependent,
    Kernel,
    NeedsValue,
    Op,
    find,
    import_later,
    lookup,
    op,
    registered,
)

import_later(
    *(
        f"{__name__}.{family}"
        for family in (
            "gather",
            "normalize",
            "pad",
            "cast",
            "interpolate",
            "recurrent",
            "control",
            "generate",
            "quantize",
            "search",
            "sample",
            "random",
            "attention",
            "sequence",
            "deform",
            "signal",
            "loss",
        )
    )
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
    "reduce",
    "registered",
]
