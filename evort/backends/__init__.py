"""Where a plan runs. `cpu` binds compiled drivers; `reference` interprets a graph with the operators' own NumPy."""

from evort.backends.cpu import CpuBackend
from evort.backends.reference import interpret

__all__ = ["CpuBackend", "interpret"]
