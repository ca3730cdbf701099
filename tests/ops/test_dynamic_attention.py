"""Attention in integers: the drivers against the reference, and against attention in float32.

Sums are exact and the same everywhere; a weight may differ by one step of 255 where exp differs in its last bits and
the weight lies between two. It moves Y by 1/255 of V's largest number, in a row whose weights add up to one step (the
largest is 255).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attention_operands import SHAPES, VARIANTS, operands
from support import drivers_of, node_model, run_node

from evort._kernels import core
from evort.errors import EvortError
from evort.session import Session

OP, DOMAIN = "DynamicQuantizeAttention", "evort"


def everywhere(inputs: list[Any], attrs: dict[str, Any], outputs: int = 1) -> list[list[np.ndarray]]:
    """The outputs on every instruction set with one thread and two."""
    model = node_model(OP, inputs, attrs, outputs, DOMAIN)
    feeds = {f"in{i}": x for i, x in enumerate(inputs) if x is not None}
    found = []
    try:
        for isa in core.available_isas():
            core.select_isa(isa)
            for threads in (1, 2):
                session = Session(model, threads=threads)
                got = session.run(feeds)
                assert drivers_of(session) == ["attention.dynamic"]
                found.append([got[name] for name in model.graph.outputs])
    finally:
        core.select_isa()
    return found


def snr(want: np.ndarray, got: np.ndarray) -> float:
    return 10 * np.log10((want**2).sum() / ((want - got) ** 2).sum())


@pytest.mark.parametrize("heads_last", [False, True])
@pytest.mark.parametrize(("attrs", "mask"), VARIANTS)
@pytest.mark.parametrize("sizes", SHAPES)
def test_the_driver_against_the_reference(sizes, attrs, mask, heads_last) -> None:
    inputs, attrs = operands(sizes, attrs, mask, heads_last)
    attrs = {**attrs, "min_queries": 0}
    want = run_node(OP, inputs, attrs, 3, DOMAIN, device="reference")
    for got in everywhere(inputs, attrs, 3):
        np.testing.assert_allclose(got[0], want[0], rtol=0, atol=np.abs(inputs[2]).max() / 255)
        # Few weights, if any, lie between two steps.
        assert ((got[0] - want[0]) ** 2).sum() <= 1e-7 * (want[0] ** 2).sum()
        np.testing.assert_array_equal(got[1], want[1])
        np.testing.assert_array_equal(got[2], want[2])


def test_it_is_near_attention_in_float() -> None:
    """Each of Q, K, V and the weights is off by half a step of 127 (255) at most, of which each product averages many:
    36 dB at least on normal numbers, whose sums are far smaller than their largest."""
    rng = np.random.default_rng(0)
    inputs: list[Any] = [rng.standard_normal((2, 4, 128, 64)).astype(np.float32) for _ in range(3)]
    for extra in ({}, {"is_causal": 1}):
        (want,) = run_node("Attention", inputs, extra)
        (got,) = run_node(OP, inputs, {**extra, "min_queries": 0}, domain=DOMAIN)
        assert snr(want, got) > 36
    # Ranges are those of a query, a key and a column: large ones elsewhere do no harm.
    inputs[0] *= 10.0 ** rng.integers(-3, 0, (2, 4, 128, 1))
    inputs[1][:, :, ::7] *= 30
    inputs[2] *= 10.0 ** rng.integers(-4, 4, 64)
    inputs = [x.astype(np.float32) for x in inputs]
    (want,) = run_node("Attention", inputs)
    (got,) = run_node(OP, inputs, {"min_queries": 0}, domain=DOMAIN)
    assert min(snr(want[..., j], got[..., j]) for j in range(64)) > 30


def test_sums_of_the_most_keys_are_exact() -> None:
    """65536 products of 255 by 127, and of 127 by 127 over the longest head."""
    keys = 1 << 16
    q, k = np.full((1, 1, 2, 4), -1, np.float32), np.full((1, 1, keys, 4), 1, np.float32)
    v = np.full((1, 1, keys, 3), -2, np.float32)
    for (got,) in everywhere([q, k, v], {"min_queries": 0}):
        np.testing.assert_array_equal(got, -2)


def test_queries_without_keys_and_numbers_that_are_none() -> None:
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((1, 2, 20, 8)).astype(np.float32) for _ in range(3))
    mask = np.ones((20, 20), np.bool_)
    mask[3] = False
    q[0, 0, 5, 2] = np.nan
    k[0, 1, 6, 0] = np.nan
    mask[7, 6] = False
    v[0, 0, 0, 3] = np.nan
    attrs = {"min_queries": 0}
    want = run_node("Attention", [q, k, v, mask], {})[0]
    got = everywhere([q, k, v, mask], attrs)
    (reference,) = run_node(OP, [q, k, v, mask], attrs, domain=DOMAIN, device="reference")
    for y in [*(y for (y,) in got), reference]:
        assert np.isnan(y[0, 0, 5]).all() and np.isnan(y[0, 0, :, 3]).all()
        assert np.isnan(y[0, 1, 4]).all() and np.isnan(y[0, 1, 8]).all()
        clean = ~np.isnan(want) & ~np.isnan(y)
        clean[:, :, 3] = False
        assert clean[0, 0, :, 0].sum() == 18  # but for queries 3 and 5
        np.testing.assert_allclose(y[clean], want[clean], rtol=0, atol=0.2)
        assert not y[0, 0, 3, 0].any() and not y[0, 1, 3].any()
    zeros = [np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)]
    for (y,) in everywhere(zeros, attrs):
        assert not y.any()


def test_few_queries_are_in_float() -> None:
    rng = np.random.default_rng(2)
    for queries, heads in ((7, 2), (8, 2), (4, 4)):
        driver = "attention.dynamic" if queries * heads >= 16 else "attention.attention"
        shapes = ((1, heads, queries, 8), (1, 1, 9, 8), (1, 1, 9, 8))
        inputs = [rng.standard_normal(s).astype(np.float32) for s in shapes]
        attrs = {"min_queries": 16}
        session = Session(node_model(OP, inputs, attrs, domain=DOMAIN))
        (got,) = session.run({f"in{i}": x for i, x in enumerate(inputs)}).values()
        assert drivers_of(session) == [driver]
        (plain,) = run_node("Attention", inputs)
        assert np.array_equal(got, plain) == (driver == "attention.attention")
        (want,) = run_node(OP, inputs, attrs, domain=DOMAIN, device="reference")
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("shapes", "attrs"),
    [
        ([(1, 2, 3, 4), (1, 2, 5, 3), (1, 2, 5, 6)], {}),
        ([(1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 6), (3, 6)], {}),
        ([(1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 6)], {"min_queries": -1}),
    ],
)
def test_it_refuses(shapes, attrs) -> None:
    with pytest.raises(EvortError, match="node"):
        run_node(OP, [np.zeros(s, np.float32) for s in shapes], attrs, domain=DOMAIN)
