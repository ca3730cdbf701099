"""Attention and rotary embedding: ONNX's cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_cases import check_node, node_cases
from support import run_node

from evort.errors import EvortError


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


def test_rotary_embedding_refuses_positions_outside_its_caches() -> None:
    x, cos, sin = arrays((1, 2, 3, 4), (5, 2), (5, 2))
    for at in (-1, 5):
        with pytest.raises(EvortError, match="position_ids"):
            run_node("RotaryEmbedding", [x, cos, sin, np.array([[0, 1, at]])], {})
