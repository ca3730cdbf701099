"""Operands of attention for property tests."""

from __future__ import annotations

from typing import Any

import numpy as np

# Batch, heads, key heads, queries, keys, keys of the past, and what a head of keys and of values has. With rests of the
# blocks of queries and of keys, grouped heads, and a cache.
SHAPES = [
    (2, 4, 2, 5, 7, 3, 8, 6),
    (1, 2, 2, 130, 300, 0, 16, 16),
    (1, 6, 3, 1, 515, 258, 7, 33),
    (3, 1, 1, 64, 64, 0, 4, 1),
]
# Attributes, and which mask of `operands`.
VARIANTS = [
    ({}, None), ({"is_causal": 1}, None), ({"scale": 0.25, "softcap": 1.5}, None), ({}, "float"), ({}, "bool"),
    ({"is_causal": 1, "left_window_size": 2}, "bool"), ({"left_window_size": 3, "right_window_size": 1}, None),
    ({"right_window_size": 0, "left_window_size": 2**62}, "short"), ({"is_causal": 1}, "heads"),
]  # fmt: skip


def operands(
    sizes: tuple[int, ...], attrs: dict[str, Any], mask: str | None, heads_last: bool
) -> tuple[list[np.ndarray | None], dict[str, Any]]:
    """Inputs and attributes. heads_last: Q, K and V of three axes. Masks broadcast."""
    batch, heads, kv, queries, keys, past, e, ev = sizes
    rng = np.random.default_rng(keys)
    q, k, v, pk, pv = (
        rng.standard_normal(s).astype(np.float32)
        for s in ((batch, heads, queries, e), (batch, kv, keys, e), (batch, kv, keys, ev), (batch, kv, past, e),
                  (batch, kv, past, ev))
    )  # fmt: skip
    if heads_last:
        q, k, v = (x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1).copy() for x in (q, k, v))
        attrs = {**attrs, "q_num_heads": heads, "kv_num_heads": kv}
    total = past + keys
    masks = {
        None: None,
        "float": rng.standard_normal((batch, 1, queries, total)).astype(np.float32),
        "bool": rng.random((queries, total)) < 0.5,
        "short": rng.random((1, 1, 1, total - 3)) < 0.7,
        "heads": np.where(rng.random((heads, 1, total)) < 0.5, 0, -np.inf).astype(np.float32),
    }
    inputs = [q, k, v, masks[mask], *((pk, pv) if past else (None, None))]
    return inputs, attrs
