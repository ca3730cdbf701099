"""The CPU backend: finds the compiled driver of each node, else runs the operator's NumPy reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evort._kernels import core
from evort._kernels.executor import driver_capsule
from evort.ops.base import Call, Kernel, Op
from evort.types import MAX_RANK, Spec


class CpuBackend:
    """Binds nodes to drivers; holds the packed weights that its sessions share.

    packed_bytes: bytes of weights copied into another layout, sparse ones with their zeros among them. tuned: kernels
    that were measured to be best (see evort.tuning), or None.
    """

    name = "cpu"
    joins = True  # nodes that one driver does better at once

    def __init__(self) -> None:
        self.tuned: dict[tuple[str, tuple[int, ...]], str] | None = None
        # By id of what it was made from (which is kept, so that its id stays its own), and a name.
        self._packed: dict[tuple[int, str], tuple[object, np.ndarray]] = {}

    @property
    def packed_bytes(self) -> int:
        return sum(array.nbytes for _, array in self._packed.values())

    @property
    def channels_last(self) -> bool:
        return core.channels_last() != 0

    def bind(self, definition: Op, c: Call) -> tuple[Kernel | None, Callable[[list[Any]], Sequence[Any]] | None]:
        """The kernel, or a function that runs the reference."""
        if c.most_axes() <= MAX_RANK:
            kernel = definition.bind(c)
            if c.kernel is not None and (kernel is None or kernel.driver != c.kernel):
                c.kernel = None  # it does not take this node: the choice is bind's
                kernel = definition.bind(c)
            if kernel is not None:
                return kernel, None
        from evort.ops import run

        return None, lambda arrays: run.run_reference(definition, c, arrays)

    def capsule(self, kernel: Kernel) -> object:
        return driver_capsule(kernel.driver) if isinstance(kernel.driver, str) else kernel.driver

    def packed(self, c: Call, key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        weights = [s.value for s in c.ins if s is not None and s.value is not None]
        return self._once(c.node, key, make, weights)

    def dense(self, spec: Spec) -> np.ndarray:
        return self._once(spec.sparse, "dense", spec.dense)

    def _once(
        self, owner: object, key: str, make: Callable[[], np.ndarray], sources: Sequence[np.ndarray] = ()
    ) -> np.ndarray:
        found = self._packed.get((id(owner), key))
        if found is None:
            found = self._packed[id(owner), key] = (owner, np.ascontiguousarray(make()))
            for array in sources:  # the copy is read from now on: both need not be in memory
                core.release(array)
        return found[1]
