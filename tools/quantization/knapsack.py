"""Choosing one of several precisions for each layer: a multiple-choice knapsack, solved by dynamic programming.

minimise sum of cost[layer][choice] subject to sum of use[layer][choice] <= limit for each resource. What the resources
use is rounded up to a grid, so that a solution never exceeds a limit; the grid is fine enough that what is lost to
rounding is small against one layer's share (a test measures it against exhaustive search).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Grid points in all, and the most of one resource.
_GRID = 1 << 17
_LINE = 1 << 14


def solve(
    cost: Sequence[Sequence[float]], resources: Sequence[tuple[Sequence[Sequence[float]], float]] = ()
) -> list[int] | None:
    """The index of the choice for each layer; None where no choices hold all limits.

    cost: for each layer the cost of each of its choices, all finite. resources: pairs (use, limit), use shaped as
    cost and not negative. A limit of zero or less leaves only choices that use nothing.
    """
    if not cost:
        return []
    points = min(_LINE, int(_GRID ** (1 / max(1, len(resources)))))
    shape = (points + 1,) * len(resources)
    steps = [_steps(use, limit, points) for use, limit in resources]
    # best[a, b, ...]: the least cost of the layers so far with at most a, b, ... grid points used.
    best = np.zeros(shape)
    taken: list[np.ndarray] = []
    for layer, choices in enumerate(cost):
        total = np.full(shape, np.inf)
        chosen = np.full(shape, -1, np.int16)
        for choice, price in enumerate(choices):
            moved = [line[layer][choice] for line in steps]
            if any(m > points for m in moved):
                continue
            to = tuple(slice(m, None) for m in moved)
            candidate = best[tuple(slice(None, points + 1 - m) for m in moved)] + price
            better = candidate < total[to]
            total[to] = np.where(better, candidate, total[to])
            chosen[to] = np.where(better, choice, chosen[to])
        best = total
        taken.append(chosen)
    at = [points] * len(resources)
    if not np.isfinite(best[tuple(at)]):
        return None
    found = []
    for layer in range(len(cost) - 1, -1, -1):
        choice = int(taken[layer][tuple(at)])
        found.append(choice)
        at = [a - line[layer][choice] for a, line in zip(at, steps, strict=True)]
    return found[::-1]


def _steps(use: Sequence[Sequence[float]], limit: float, points: int) -> list[list[int]]:
    """What each choice uses in grid points, rounded up; more than `points` where it alone is too much."""
    if limit <= 0:
        return [[0 if u <= 0 else points + 1 for u in choices] for choices in use]
    return [[min(points + 1, int(np.ceil(u / limit * points - 1e-9))) for u in choices] for choices in use]
