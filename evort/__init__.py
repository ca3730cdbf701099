"""evort: a small neural-network inference runtime.

import evort
session = evort.load("lenet.etm")
logits = session(image)
"""

from evort._kernels.core import available_isas, isa
from evort._version import __version__
from evort.errors import (
    ConversionError,
    EtmFormatError,
    EvortError,
    ExecutionError,
    InputError,
    MemoryBudgetError,
    ShapeError,
    UnsupportedError,
)
from evort.session import Session, load

__all__ = [
    "ConversionError",
    "EtmFormatError",
    "EvortError",
    "ExecutionError",
    "InputError",
    "MemoryBudgetError",
    "Session",
    "ShapeError",
    "UnsupportedError",
    "__version__",
    "available_isas",
    "isa",
    "load",
]
