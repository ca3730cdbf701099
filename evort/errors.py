"""Everything that evort raises on purpose. All derive from `EvortError`, so one `except` catches them."""

from __future__ import annotations


class EvortError(Exception):
    """Base class of evort's errors."""


class EtmFormatError(EvortError, ValueError):
    """A `.etm` file is damaged, hostile or of an unsupported version; the message names the field or byte offset."""


class UnsupportedError(EvortError, NotImplementedError):
    """An operator, dtype, attribute or feature that evort cannot run."""


class ShapeError(EvortError, ValueError):
    """Shapes, dtypes or attributes that an operator's definition forbids."""


class InputError(EvortError, ValueError):
    """A caller's input: unknown or missing name, wrong dtype, wrong shape."""


class MemoryBudgetError(EvortError, MemoryError):
    """A plan needs more memory than the caller allowed; `needed` and `allowed` are in bytes."""

    def __init__(self, message: str, needed: int, allowed: int):
        super().__init__(message)
        self.needed = needed
        self.allowed = allowed


class ExecutionError(EvortError, RuntimeError):
    """A kernel refused its operands at run time, such as an index outside its axis."""


class ConversionError(UnsupportedError):
    """A model cannot be converted; `problems` lists every reason, one line each with its node's name."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        count = f"{len(problems)} problem" + ("s" if len(problems) != 1 else "")
        super().__init__(f"cannot convert, {count}:\n" + "\n".join(f"  - {p}" for p in problems))
