"""The choice of precisions under limits, against exhaustive search."""

from __future__ import annotations

import itertools
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evort_tools.quantization import knapsack
from evort_tools.quantization.knapsack import solve


def _totals(table, choices):
    return sum(row[c] for row, c in zip(table, choices, strict=True))


def _made(layers, choices, constraints, seed):
    """Random costs and resources, and all choices that hold the limits."""
    rng = np.random.default_rng(seed)
    cost = rng.random((layers, choices)).tolist()
    resources = [(rng.random((layers, choices)).tolist(), rng.uniform(0, layers)) for _ in range(constraints)]
    everything = itertools.product(range(choices), repeat=layers)
    return cost, resources, [c for c in everything if all(_totals(use, c) <= limit for use, limit in resources)]


SIZES = (st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(0, 2**32 - 1))


@settings(deadline=None, max_examples=60)
@given(*SIZES)
def test_best_of_all(layers, choices, constraints, seed):
    cost, resources, feasible = _made(layers, choices, constraints, seed)
    found = solve(cost, resources)
    if not feasible:
        assert found is None
    else:
        assert tuple(found) in feasible
        assert _totals(cost, found) == pytest.approx(min(_totals(cost, c) for c in feasible))


@settings(deadline=None, max_examples=60)
@given(*SIZES)
def test_on_the_grid(layers, choices, constraints, seed):
    """As it is solved where there are too many partial choices: never beyond a limit, and best but for the grid."""
    cost, resources, feasible = _made(layers, choices, constraints, seed)
    with mock.patch.object(knapsack, "_STATES", 0):
        found = solve(cost, resources)
    # Rounding up to the grid (at least 50 points a resource) can only refuse what comes this close to a limit.
    tight = [c for c in feasible if all(_totals(use, c) <= limit * (1 - layers / 50) for use, limit in resources)]
    if found is None:
        assert not tight
        return
    assert tuple(found) in feasible
    if tight:
        assert _totals(cost, found) <= min(_totals(cost, c) for c in tight) + 1e-12


def test_many_layers():
    rng = np.random.default_rng(0)
    size = [[4.0, 2.0, 1.0, 0.5]] * 200
    noise = np.sort(rng.gamma(0.3, 1, (200, 4)), 1).tolist()
    found = solve(noise, [(size, 250.0)])
    assert _totals(size, found) <= 250
    # The relaxation (fractions of layers) bounds what any choice can reach.
    price = np.linspace(0, 50, 2001)
    bound = max(
        sum(min(n + p * s for n, s in zip(ns, ss, strict=True)) for ns, ss in zip(noise, size, strict=True)) - p * 250
        for p in price
    )
    assert bound - 1e-9 <= _totals(noise, found) <= bound + 1.0


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_nothing_left(limit):
    assert solve([[1.0, 2.0]], [([[1.0, 0.0]], limit)]) == [1]
    assert solve([[1.0]], [([[1.0]], limit)]) is None


def test_no_layers():
    assert solve([], []) == []
