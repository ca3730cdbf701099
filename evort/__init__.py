"""evort: a small neural-network inference runtime.

import evort
session = evort.load("lenet.etm")
logits = session(image)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

try:
    from evort._kernels import SHARED_OBJECT, preload
    from evort._kernels.core import Uncollected, available_isas, isa

    __path__ += SHARED_OBJECT  # for evort._records
    with Uncollected():
        preload(("evort._kernels.executor", "evort.session"))
    from evort.session import Session, load
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("evort."):
        raise
    raise ImportError(
        f"{error}: this is evort's source tree, whose kernels are not built. Install it (pip install .) and run from "
        "another folder, or build in place (python setup.py build_ext --inplace)"
    ) from error

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
    "show_config",
]


def __getattr__(name: str) -> Any:
    """The errors and `evort.__version__`, made when asked for: a class takes its time at import, however small."""
    if name == "__version__":
        from evort._version import __version__

        return __version__
    if name in __all__:
        from evort import errors

        return getattr(errors, name)
    raise AttributeError(f"module 'evort' has no attribute {name!r}")


def show_config() -> None:
    """Prints what this installation is and uses: versions, instruction sets, processors (`evort.config.config()`)."""
    from evort.config import show_config as show

    show()
