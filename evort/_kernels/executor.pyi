from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

CONST: int
INPUT: int
OUTPUT: int
ARENA: int
DRIVERS: dict[str, object]

def shapes_of(
    inputs: dict[str, Any], plain: list[tuple[str, np.dtype | None]]
) -> tuple[tuple[int, ...], ...] | None: ...
def run_ready(
    ready: list[Ready],
    plain: list[tuple[str, np.dtype | None]],
    inputs: dict[str, Any],
    into: dict[str, np.ndarray] | None,
) -> dict[str, Any] | None: ...
def apart(inputs: dict[str, Any], outputs: dict[str, Any]) -> bool: ...
def driver_capsule(name: str) -> object: ...

class StepFailed(Exception):
    step: int
    status: int

class Program:
    @property
    def arena(self) -> np.ndarray: ...
    def __init__(
        self,
        tensors: list[tuple[int, int, int, int, np.dtype, tuple[int, ...]]],
        steps: list[
            tuple[
                object | None,
                Callable[[list[Any]], Sequence[Any]] | None,
                list[int],
                list[int],
                Sequence[int],
                Sequence[float],
                int,
                int,
            ]
        ],
        constants: list[np.ndarray],
        arena_bytes: int,
        threads: int,
    ) -> None: ...
    def watch(self, ranges: np.ndarray | None) -> None: ...
    def pause(self, paused: bool) -> None: ...
    def rebind(self, step: int, ints: tuple[int, ...], reals: tuple[float, ...]) -> None: ...
    def view(self, i: int, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> np.ndarray: ...
    def run(self, inputs: list[np.ndarray], outputs: list[np.ndarray], times: np.ndarray | None = None) -> int: ...
    def call(
        self, feeds: dict[str, Any], reads: list[str], writes: list[tuple[str, tuple[int, ...], np.dtype]]
    ) -> dict[str, np.ndarray]: ...

class Programs:
    plan: Any
    reads: list[str]
    writes: list[tuple[str, tuple[int, ...], np.dtype]]
    free: list[Program]
    alone: bool
    made: int
    def __init__(
        self, plan: Any, writes: list[tuple[str, tuple[int, ...], np.dtype]], alone: bool, threads: int
    ) -> None: ...
    def take(self) -> Program: ...
    def call_into(self, feeds: dict[str, Any], into: dict[str, np.ndarray]) -> None: ...
    def fits(self, into: dict[str, np.ndarray]) -> bool: ...
    def error(self, failure: StepFailed) -> Exception: ...

class Ready:
    key: tuple[Any, ...]
    def __init__(
        self,
        shapes: tuple[tuple[int, ...], ...],
        programs: Programs | None,
        names: list[str],
        values: dict[str, bytes],
        given: dict[str, np.ndarray],
        stages: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None: ...
