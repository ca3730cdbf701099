"""The pass that makes one Attention of a product, scale, mask, Softmax and a product; and what only looks like that."""

from __future__ import annotations

import numpy as np
import pytest
from tools_support import check_pass, node, onnx_model, ops_of

RNG = np.random.default_rng(0)
# A weight is off by what its score is, a sum of products of projected numbers: some 1e-6 of numbers below 10.
RTOL = 1e-5


def normal(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def tokens(length: int) -> dict[str, np.ndarray]:
    return normal({"x": (2, length, 24)})


def written_out(heads_last=True, scale="scores", mask=None, turned=(0, 2, 3, 1), softmax=-1, **change):
    """Attention of 3 heads of 8 numbers as exporters have it, over x [N, L, 24]."""
    nodes, constants = [], {"split": np.array([0, 0, 3, 8]), "merge": np.array([0, 0, 24])}
    for name, perm in (("q", [0, 2, 1, 3]), ("k", list(turned)), ("v", [0, 2, 1, 3])):
        constants[f"w{name}"] = RNG.standard_normal((24, 24)).astype(np.float32) / 4
        nodes += [node("MatMul", ["x", f"w{name}"], [f"{name}0"]), node("Reshape", [f"{name}0", "split"], [f"{name}1"])]
        nodes.append(node("Transpose", [f"{name}1"], [f"{name}2"], perm=perm))
    q, k, scores = "q2", "k2", "s0"
    if turned == (0, 2, 1, 3):
        nodes.append(node("Transpose", ["k2"], ["k3"], perm=[0, 1, 3, 2]))
        k = "k3"
    constants["root"] = np.float32(8**0.5)
    if scale == "query":
        nodes.append(node("Div", [q, "root"], ["q3"]))
        q = "q3"
    nodes.append(node("MatMul", [q, k], [scores]))
    if scale == "scores":
        nodes.append(node("Div", ["s0", "root"], ["s1"]))
        scores = "s1"
    if mask is not None:
        constants["mask"] = mask
        nodes.append(node("Add", [scores, "mask"], ["s2"]))
        scores = "s2"
    nodes.append(node("Softmax", [scores], ["p"], axis=softmax))
    nodes.append(node("MatMul", ["p", change.get("values", "v2")], ["y0"]))
    outputs = ["y", *change.get("outputs", ())]
    if heads_last:
        nodes += [node("Transpose", ["y0"], ["y1"], perm=[0, 2, 1, 3]), node("Reshape", ["y1", "merge"], ["y"])]
    else:
        nodes.append(node("Relu", ["y0"], ["y"]))
    length = change.get("length", "L")
    return onnx_model(nodes, {"x": (np.float32, ("N", length, 24))}, outputs, constants)


KEYS = np.where(RNG.random((1, 1, 1, 6)) < 0.3, -1e4, 0).astype(np.float32)


@pytest.mark.parametrize(
    ("how", "transposes"),
    [
        ({}, 0),
        ({"scale": "query"}, 0),
        ({"scale": ""}, 0),
        ({"mask": KEYS, "length": 6}, 0),
        ({"mask": RNG.standard_normal((6, 6)).astype(np.float32), "length": 6}, 0),
        ({"heads_last": False}, 3),
        ({"turned": (0, 2, 1, 3)}, 4),
    ],
)
def test_attention_is_found(how, transposes) -> None:
    model = written_out(**how)
    after = check_pass(model, feeds=tokens(how.get("length", 5)), rtol=RTOL)
    ops = ops_of(after)
    assert ops.count("Attention") == 1 and "Softmax" not in ops
    assert ops.count("Transpose") <= transposes
    attention = next(n for n in after.graph.nodes if n.op == "Attention")
    assert len(attention.inputs) == (4 if "mask" in how else 3)


@pytest.mark.parametrize(
    "how",
    [
        {"outputs": ["p"]},  # the weights are asked for
        {"outputs": ["s0"]},
        {"softmax": 2, "length": 6},
        {"mask": RNG.standard_normal((6, 1)).astype(np.float32), "length": 6},  # Attention's would end after a key
        {"values": "k2", "length": 8},  # values that are K^T
    ],
)
def test_what_is_no_attention_stays(how) -> None:
    model = written_out(**{"heads_last": "values" not in how, **how})
    ops = ops_of(check_pass(model, feeds=tokens(how.get("length", 5)), rtol=RTOL))
    assert ("Attention" in ops) == ("values" in how) and (ops.count("Softmax") == 1) == ("values" not in how)


def test_products_of_three_axes_are_one_head() -> None:
    nodes = [
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["s"]),
        node("Softmax", ["s"], ["p"]),
        node("MatMul", ["p", "v"], ["y"]),
    ]
    shapes = {"q": ("B", "S", 8), "k": ("B", "T", 8), "v": ("B", "T", 5)}
    model = onnx_model(nodes, {name: (np.float32, shape) for name, shape in shapes.items()})
    feeds = {"q": (2, 4, 8), "k": (2, 7, 8), "v": (2, 7, 5)}
    assert ops_of(check_pass(model, feeds=normal(feeds), rtol=RTOL)) == ["Attention"]
    # Of one batch of keys for several of queries it is no Attention.
    shapes["k"] = shapes["v"] = (1, "T", 8)
    model = onnx_model(nodes, {name: (np.float32, shape) for name, shape in shapes.items()})
    feeds = {"q": (2, 4, 8), "k": (1, 7, 8), "v": (1, 7, 8)}
    assert "Softmax" in ops_of(check_pass(model, feeds=normal(feeds), rtol=RTOL))
