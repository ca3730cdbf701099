"""evort's offline tools, installed as `evort_tools`: ONNX in, `.etm` out, and what helps to look at both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evort_tools.convert import convert as convert
    from evort_tools.prune import prune as prune
    from evort_tools.quantize import quantize as quantize

__all__ = ["convert", "prune", "quantize"]


def __getattr__(name: str) -> Any:
    # The converter imports onnx; commands that only read .etm files start without it.
    if name == "convert":
        from evort_tools.convert import convert

        return convert
    if name == "quantize":
        from evort_tools.quantize import quantize

        return quantize
    if name == "prune":
        from evort_tools.prune import prune

        return prune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
