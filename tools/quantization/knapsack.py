"""Choosing one of several precisions for each layer: a multiple-choice knapsack, solved by dynamic programming.

minimise sum of cost[layer][choice] subject to sum of use[layer][choice] <= limit for each resource. Exact where the
partial choices that are no worse than another are few, as they are for few layers. Else what the resources use is
rounded up to a grid, so that a solution never exceeds a limit, and what that leaves unused is given to the layers that
gain most by it, in exact numbers. A test holds the result against exhaustive search.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Grid points in all, and the most of one resource.
_GRID = 1 << 17
_LINE = 1 << 14
_STATES = 1 << 15  # partial choices that are kept at most

Table = Sequence[Sequence[float]]


def solve(cost: Table, resources: Sequence[tuple[Table, float]] = ()) -> list[int] | None:
    """The index of the choice for each layer; None where no choices hold all limits.

    cost: for each layer the cost of each of its choices, all finite. resources: pairs (use, limit), use shaped as
    cost and not negative; an infinite use bars a choice. A limit of zero or less leaves only choices that use nothing.
    """
    if not cost:
        return []
    found, complete = _exact(cost, resources)
    if complete:
        return found
    # With a line of its own for each resource: where that holds the other limits too, nothing is better.
    for alone in ([r] for r in resources) if len(resources) > 1 else ():
        found = _program(cost, alone)
        if found is not None and _holds(found, resources):
            return _improved(found, cost, resources)
    found = _program(cost, resources)
    if found is None:
        found = _frugal(resources)
    return None if found is None else _improved(found, cost, resources)


def _holds(found: Sequence[int], resources: Sequence[tuple[Table, float]]) -> bool:
    return all(sum(u[c] for u, c in zip(use, found, strict=True)) <= max(0.0, limit) for use, limit in resources)


def _exact(cost: Table, resources: Sequence[tuple[Table, float]]) -> tuple[list[int] | None, bool]:
    """(the best choices, or None where there are none; whether the search was completed)."""
    limits = np.array([max(0.0, limit) for _, limit in resources])
    totals = np.zeros((1, 1 + len(resources)))  # cost and uses of each partial choice
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for layer, prices in enumerate(cost):
        added = np.array([prices, *(use[layer] for use, _ in resources)], np.float64).T
        new = (totals[:, None] + added).reshape(-1, totals.shape[1])
        kept = np.flatnonzero((new[:, 1:] <= limits * (1 + 1e-12)).all(1))
        if len(resources) < 2:  # of those that use as much or more, only what costs less is of use
            kept = kept[np.lexsort(new[kept].T)]  # by the last column, then by cost
            costs = new[kept, 0]
            kept = kept[costs < np.append(np.inf, np.minimum.accumulate(costs)[:-1])]
        if len(kept) > _STATES:
            return None, False
        totals = new[kept]
        steps.append((kept // len(prices), kept % len(prices)))
    if not len(totals):
        return None, True
    at = int(np.argmin(totals[:, 0]))
    found = []
    for before, choice in reversed(steps):
        found.append(int(choice[at]))
        at = int(before[at])
    return found[::-1], True


def _frugal(resources: Sequence[tuple[Table, float]]) -> list[int] | None:
    """Choices that hold limits too tight for the grid: those that use least of one resource."""
    for table, _ in resources:
        found = [min(range(len(us)), key=us.__getitem__) for us in table]
        if _holds(found, resources):
            return found
    return None


def _improved(found: list[int], cost: Table, resources: Sequence[tuple[Table, float]]) -> list[int]:
    """Changes the layer that gains most, as long as the limits hold."""
    found = list(found)
    while True:
        left = [limit - sum(u[c] for u, c in zip(use, found, strict=True)) for use, limit in resources]
        best, change = 0.0, None
        for layer, prices in enumerate(cost):
            now = found[layer]
            for choice, price in enumerate(prices):
                gain = prices[now] - price
                if gain > best and all(
                    use[layer][choice] - use[layer][now] <= room for (use, _), room in zip(resources, left, strict=True)
                ):
                    best, change = gain, (layer, choice)
        if change is None:
            return found
        found[change[0]] = change[1]


def _program(cost: Table, resources: Sequence[tuple[Table, float]]) -> list[int] | None:
    """The dynamic program over the grid."""
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
    return [[int(min(points + 1.0, np.ceil(u / limit * points - 1e-9))) for u in choices] for choices in use]
