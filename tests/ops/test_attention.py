"""Attention and rotary embedding: ONNX's cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attention_operands import SHAPES, VARIANTS, operands
from onnx_cases import check_node, node_cases
from support import by_reference, compiled, node_model, run_node

from evort.errors import EvortError
from evort.session import Session


@pytest.mark.parametrize("case", node_cases("Attention", "RotaryEmbedding"), ids=lambda case: case.name)
def test_onnx_case(case: Any) -> None:
    check_node(case, "reference")
    check_node(case, "cpu")


def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def test_a_query_without_keys_gives_zeros() -> None:
    q, k, v = arrays((1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 6))
    mask = np.ones((3, 5), np.bool_)
    mask[1] = False
    y = run_node("Attention", [q, k, v, mask], {})[0]
    assert not y[:, :, 1].any()
    assert np.isfinite(y).all()
    assert y[:, :, 0].all()


# A score is a sum of E products of normal numbers, times 1/sqrt(E): up to about 6, with an error of some E * 2^-24 of
# its terms' magnitudes, so a weight is off by 1e-5 of itself at most, and with it each of the weighted values.
TOLERANCE = 3e-5


@pytest.mark.parametrize("heads_last", [False, True])
@pytest.mark.parametrize(("attrs", "mask"), VARIANTS)
@pytest.mark.parametrize("sizes", SHAPES)
def test_the_driver_against_the_reference(sizes, attrs, mask, heads_last) -> None:
    """Blocks of queries and of keys with rests, grouped heads, a cache, masks that broadcast."""
    inputs, attrs = operands(sizes, attrs, mask, heads_last)
    want = by_reference("Attention", inputs, attrs, 3)
    for got in compiled("attention.attention", "Attention", inputs, attrs, 3, threads=(1, 2)):
        np.testing.assert_allclose(got[0], want[0], rtol=0, atol=TOLERANCE * np.abs(inputs[2]).max())
        np.testing.assert_array_equal(got[1], want[1])
        np.testing.assert_array_equal(got[2], want[2])


@pytest.mark.parametrize("lens", [[4, 9], [0, 1], [-(2**63), 2**63 - 1]])
def test_counted_keys(lens) -> None:
    """A count outside of the keys is one of them at most: it reads nothing else."""
    q, k, v = arrays((2, 2, 3, 4), (2, 2, 9, 4), (2, 2, 9, 5))
    counts = np.array(lens, np.int64)
    inputs = [q, k, v, None, None, None, counts]
    for attrs in ({}, {"is_causal": 1}):
        (want,) = by_reference("Attention", [*inputs[:6], counts.clip(0, 9)], attrs)
        for (got,) in compiled("attention.attention", "Attention", inputs, attrs):
            np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(v).max())


def test_only_a_tile_of_scores_is_held() -> None:
    held = []
    for tokens in (1024, 4096):
        q, k, v = arrays((1, 4, tokens, 32), (1, 4, tokens, 32), (1, 4, tokens, 32))
        held.append(Session(node_model("Attention", [q, k, v]), threads=1).memory().scratch)
    assert held[0] < 1 << 18  # all scores are 16 MiB
    assert held[1] - held[0] == 8 * 3072  # two numbers of each query, whatever the keys


def test_large_scores_in_any_order_of_tiles() -> None:
    """Weights of the tiles before are brought to the scale of a larger score in a later one, or the other way round."""
    q, k, v = arrays((1, 1, 70, 8), (1, 1, 900, 8), (1, 1, 900, 5))
    for factors in (
        np.linspace(0.01, 30, 900),
        np.linspace(30, 0.01, 900),
        np.where(np.arange(900) % 300 < 2, 40, 1e-3),
    ):
        keys = (k * factors[:, None]).astype(np.float32)
        (want,) = by_reference("Attention", [q, keys, v])
        for (got,) in compiled("attention.attention", "Attention", [q, keys, v]):
            # Scores go up to 200, with an error of 2^-24 of that for each of 8 terms.
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-3 * np.abs(v).max())


def test_numbers_that_are_none_stay_in_their_rows() -> None:
    q, k, v = arrays((1, 1, 80, 4), (1, 1, 600, 4), (1, 1, 600, 3))
    mask = np.zeros((80, 600), np.float32)
    mask[3], mask[4, 500:], mask[5, :300] = -np.inf, -np.inf, -np.inf
    mask[6, 400], mask[7, 10], mask[8, 10] = np.nan, np.inf, np.nan
    (want,) = run_node("Attention", [q, k, v, mask], device="reference")
    for (got,) in compiled("attention.attention", "Attention", [q, k, v, mask]):
        assert np.isnan(got[0, 0, 6:9]).all() and not got[0, 0, 3].any()
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(v).max())


BAD = [
    ([(1, 2, 3, 4), (1, 2, 5, 3), (1, 2, 5, 6)], {}),
    ([(1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 4, 6)], {}),
    ([(1, 3, 3, 4), (1, 2, 5, 4), (1, 2, 5, 6)], {}),
    ([(1, 3, 4), (1, 2, 5, 4), (1, 2, 5, 6)], {}),
    ([(1, 3, 8), (1, 5, 8), (1, 5, 8)], {}),
    ([(1, 3, 8), (1, 5, 8), (1, 5, 8)], {"q_num_heads": 3, "kv_num_heads": 1}),
    ([(1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 6), (3, 6)], {}),
    ([(1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 6), (2, 5)], {}),
    ([(1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 6)], {"left_window_size": -2}),
    ([(1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 6)], {"qk_matmul_output_mode": 4}),
    ([(1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 6)], {"softmax_precision": 7}),
]


@pytest.mark.parametrize(("shapes", "attrs"), BAD)
def test_attention_refuses(shapes: list[tuple[int, ...]], attrs: dict[str, Any]) -> None:
    with pytest.raises(EvortError, match="node"):
        run_node("Attention", arrays(*shapes), attrs)


@pytest.mark.parametrize("attrs", [{}, {"interleaved": 1}, {"rotary_embedding_dim": 4}])
@pytest.mark.parametrize("heads_last", [False, True])
@pytest.mark.parametrize("indexed", [False, True])
def test_the_rotary_driver_against_the_reference(attrs, heads_last, indexed) -> None:
    rng = np.random.default_rng(2)
    half = attrs.get("rotary_embedding_dim", 6) // 2
    x, cos, sin = arrays((2, 3, 700, 6), *([(9, half)] if indexed else [(2, 700, half)]) * 2)
    if heads_last:
        x, attrs = x.swapaxes(1, 2).reshape(2, 700, 18).copy(), {**attrs, "num_heads": 3}
    inputs = [x, cos, sin, rng.integers(0, 9, (2, 700)) if indexed else None]
    (want,) = run_node("RotaryEmbedding", inputs, attrs, device="reference")
    for (got,) in compiled("attention.rotary", "RotaryEmbedding", inputs, attrs):
        # Two products and a sum in float32, here and there, on some machines with one rounding less.
        np.testing.assert_allclose(got, want, rtol=0, atol=2.0**-22 * np.abs(x).max() * np.abs([cos, sin]).max())


def test_rotary_embedding_refuses_positions_outside_its_caches() -> None:
    x, cos, sin = arrays((1, 2, 3, 4), (5, 2), (5, 2))
    for at in (-1, 5, -(2**63), 2**63 - 1):
        for device in ("cpu", "reference"):
            with pytest.raises(EvortError, match=r"position_ids|index points outside"):
                run_node("RotaryEmbedding", [x, cos, sin, np.array([[0, 1, at]])], {}, device=device)
