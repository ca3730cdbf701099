"""Learning-rate schedules: functions from the number of a step (from 0) to a factor of the optimizer's rate."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def constant() -> Schedule:
    """1, always."""
    return lambda step: 1.0


def step_decay(every: int, factor: float = 0.1) -> Schedule:
    """Times `factor` after every so many steps."""
    if every < 1:
        raise ValueError(f"every must be at least 1, not {every}")
    return lambda step: factor ** (step // every)


def cosine(total: int, final: float = 0.0) -> Schedule:
    """From 1 down to `final` along half a cosine over `total` steps, and `final` after. Loshchilov and Hutter,
    arXiv:1608.03983."""
    if total < 1:
        raise ValueError(f"total must be at least 1, not {total}")
    return lambda step: final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(step, total) / total))


def warm_up(steps: int, after: Schedule | None = None) -> Schedule:
    """Linearly from 1/steps to 1 over the first steps, times another schedule (which counts from the same start)."""
    after = after or constant()
    return lambda step: min(1.0, (step + 1) / max(1, steps)) * after(step)


__all__ = ["Schedule", "constant", "cosine", "step_decay", "warm_up"]
