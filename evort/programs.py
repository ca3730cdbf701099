"""Plans that run: the programs of a plan, one for each caller at a time, and the drivers that plans name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from evort._kernels.executor import Program, StepFailed

# Those that were asked for, by "module.name".
_DRIVERS: dict[str, object] = {}


def driver_capsule(name: str) -> object:
    """The driver "module.name" of `evort._kernels`. Raises UnsupportedError where there is none."""
    found = _DRIVERS.get(name)
    if found is None:
        module, _, short = name.rpartition(".")
        try:
            found = import_module(f"evort._kernels.{module}").DRIVERS[short]
        except (ImportError, KeyError):
            from evort.errors import UnsupportedError

            raise UnsupportedError(f"evort._kernels has no driver {name!r}") from None
        _DRIVERS[name] = found
    return found


class Programs:
    """A plan, and the programs that wait for their next run: a run takes one, or makes one, and puts it back.

    plan: has tensors, rows, constants, arena_bytes and reads, as an `evort.plan.Plan` does. reads: names of its inputs;
    writes: name, shape and NumPy dtype of what it computes; alone: whether that is all outputs of its graph. made: how
    many programs there are.
    """

    __slots__ = ("alone", "free", "made", "plan", "reads", "threads", "writes")

    def __init__(self, plan: Any, writes: list[tuple[str, tuple[int, ...], np.dtype]], alone: bool, threads: int):
        self.plan = plan
        self.reads: list[str] = plan.reads
        self.writes = writes
        self.alone = alone
        self.threads = threads
        self.free: list[Program] = []
        self.made = 0

    def take(self) -> Program:
        """A program that nobody runs."""
        try:
            return self.free.pop()
        except IndexError:
            plan = self.plan
            self.made += 1
            return Program(plan.tensors, plan.rows, plan.constants, plan.arena_bytes, self.threads)

    def call(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """Runs the plan on checked, C-contiguous feeds; gives new arrays by name. Raises what `error` makes."""
        try:
            program = self.free.pop()
        except IndexError:
            program = self.take()
        try:
            return program.call(feeds, self.reads, self.writes)
        except StepFailed as failure:
            raise self.error(failure) from None
        finally:
            self.free.append(program)

    def call_into(self, feeds: dict[str, Any], into: dict[str, np.ndarray]) -> None:
        """The same, into arrays that fit."""
        program = self.take()
        try:
            program.run([feeds[n] for n in self.reads], [into[w[0]] for w in self.writes])
        except StepFailed as failure:
            raise self.error(failure) from None
        finally:
            self.free.append(program)

    def fits(self, into: dict[str, np.ndarray]) -> bool:
        """Whether arrays are given for all outputs, of their shapes and dtypes."""
        if len(into) != len(self.writes):
            return False
        for name, shape, dtype in self.writes:
            array = into.get(name)
            if array is None or array.shape != shape or array.dtype is not dtype:
                return False
        return True

    def error(self, failure: StepFailed) -> Exception:
        """What is raised where a driver refuses its operands."""
        return failure


__all__ = ["Programs", "driver_capsule"]
