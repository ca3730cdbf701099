"""Depthwise convolutions with the pointwise ones around them: the driver against float64, and the planner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import by_reference, drivers_of, make_model, node_model, run_node

from evort._kernels import conv, core
from evort.errors import ShapeError
from evort.graph import Model, Node
from evort.session import Session
from evort.types import DType

EPS = 2.0**-24  # half a unit in the last place of 1, float32
CLIP = {"activations": ["Clip"] * 3, "alphas": [-1.0] * 3, "betas": [2.0] * 3}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + len(shape)).standard_normal(shape).astype(np.float32)


def weights(m: int, c: int, k: int, seed: int) -> list[np.ndarray]:
    return [normal(m, c, k, k, seed=seed) / np.float32(k * np.sqrt(c)), normal(m, seed=seed)]


def expected(x: np.ndarray, parts: list[list[np.ndarray] | None], z: np.ndarray | None,
             geometry: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The result in float64, each convolution clamped to [-1, 2], and how far float32 may be from it.

    A convolution of n terms makes at most (n + 2) eps of the sum of absolute values (as in test_conv.py), and hands on
    errors of its input with the absolute values of its weights; clamping makes them no larger.
    """
    value, error = x.astype(np.float64), np.zeros(x.shape)
    for i, part in enumerate(parts):
        if part is None:
            continue
        w, b = (v.astype(np.float64) for v in part)
        attrs = geometry | {"group": w.shape[0]} if i == 1 else {}
        last = [] if z is None or i < 2 else [z.astype(np.float64)]
        terms = w[0].size + 2 + len(last)
        size = by_reference("Conv", [np.abs(value) + error, np.abs(w), np.abs(b), *map(np.abs, last)], attrs)[0]
        error = by_reference("Conv", [error, np.abs(w)], attrs)[0] + size * terms * EPS * 1.01
        value = np.clip(by_reference("Conv", [value, w, b, *last], attrs)[0], -1, 2)
    return value, error


def by_driver(inputs: list[np.ndarray | None], attrs: dict[str, Any], threads: int) -> Iterator[np.ndarray]:
    """The result of each instruction set whose driver takes the node: nearly all."""
    model = node_model("SeparableConv", inputs, attrs, domain="evort")
    feeds = {f"in{i}": x for i, x in enumerate(inputs) if x is not None}
    try:
        for isa in core.available_isas():
            core.select_isa(isa)
            session = Session(model, threads=threads)
            got = session.run(feeds)["out0"]
            if drivers_of(session) == ["conv.separable_f32"]:
                yield got
    finally:
        core.select_isa()


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, ...]:
    kernel, stride = draw(st.sampled_from([3, 5])), draw(st.sampled_from([(1, 1), (2, 2), (2, 1), (1, 2)]))
    pads = [draw(st.integers(0, kernel // 2)) for _ in range(4)]
    height, width = draw(st.integers(kernel, 30)), draw(st.integers(kernel, 45))
    expands, projects = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    sizes = (
        draw(st.integers(1, 2)),
        draw(st.integers(2, 9)),
        draw(st.sampled_from([7, 130, 260])),
        draw(st.integers(1, 17)),
    )
    return kernel, stride, pads, height, width, expands, projects, sizes, draw(st.booleans())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases())
def test_separable_matches_float64(case: tuple[Any, ...]) -> None:
    kernel, stride, pads, height, width, expands, projects, (n, c, hidden, m), residual = case
    geometry = {"pads": pads, "strides": list(stride)}
    x = normal(n, c if expands else hidden, height, width)
    parts = [weights(hidden, c, 1, 1) if expands else None, weights(hidden, 1, kernel, 2),
             weights(m, hidden, 1, 3) if projects else None]  # fmt: skip
    operands = [x, *(v for part in parts for v in part or (None, None))]
    while operands[-1] is None:
        operands.pop()
    shape = run_node("SeparableConv", operands, geometry, domain="evort", device="reference")[0].shape
    z = normal(*shape, seed=5) if residual and projects else None
    exact, bound = expected(x, parts, z, geometry)
    inputs = operands if z is None else [*operands, z]
    for threads in (1, 3):
        for got in by_driver(inputs, geometry | CLIP, threads):
            np.testing.assert_array_less(np.abs(got - exact), bound + 1e-30)


@pytest.mark.parametrize("stride", [1, 2])
def test_threads_change_no_bit(stride: int) -> None:
    x = normal(2, 8, 31, 48)
    operands = [x, *weights(130, 8, 1, 1), *weights(130, 1, 3, 2), *weights(12, 130, 1, 3)]  # fit where L2 has 256 KB
    attrs = {"pads": [1] * 4, "strides": [stride] * 2, "activations": ["HardSwish", "Swish", ""]}
    results = [list(by_driver(operands, attrs, threads)) for threads in (1, 2, 3)]
    assert len(results[0]) == len(core.available_isas())
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            np.testing.assert_array_equal(one, other)


def test_rows_are_the_same_whichever_thread_makes_them() -> None:
    """Strips whose expansions have 21, 28 and 42 columns: few enough beside whole vectors to be added up along K."""
    operands = [normal(1, 200, 16, 7), *weights(3000, 200, 1, 1), *weights(3000, 1, 3, 2), *weights(12, 3000, 1, 3)]
    attrs = {"pads": [1] * 4, "strides": [1, 1], "activations": ["Relu", "Relu", ""]}
    results = [list(by_driver(operands, attrs, threads)) for threads in (1, 2, 4, 8)]
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            np.testing.assert_array_equal(one, other)


def block(size: int, kept: tuple[str, ...] = ()) -> Model:
    """An inverted residual of 96 channels on a map of that size. kept: what is an output beside the result."""
    names = {"we": (96, 8, 1, 1), "be": (96,), "wd": (96, 1, 3, 3), "wp": (8, 96, 1, 1)}
    constants = {name: normal(*shape) / np.float32(3) for name, shape in names.items()}
    clip = {"activation": "Clip", "activation_alpha": 0.0, "activation_beta": 6.0}
    nodes = [
        Node("Relu", ["in"], ["x"]),
        Node("Conv", ["x", "we", "be"], ["a"], clip),
        Node("Conv", ["a", "wd"], ["b"], {"pads": [1] * 4, "strides": [2, 2], "group": 96, **clip}),
        Node("Conv", ["b", "wp", ""], ["c"], {"activation": "Relu"}),
    ]
    return make_model(nodes, {"in": (DType.FLOAT, (1, 8, size, size))}, ["c", *kept], constants)


def test_planner_joins_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(1, 8, 48, 48)
    apart = ["conv.pointwise_f32", "conv.depthwise_f32", "conv.pointwise_f32"]
    small = Session(block(48))
    plain = small.run({"in": x})["c"]
    assert drivers_of(small)[1:] == apart
    monkeypatch.setattr(conv, "separable_pays", lambda ints: True)
    session = Session(block(48))
    # Sums of at most 98 terms, no larger than 100, in another order.
    np.testing.assert_allclose(session.run({"in": x})["c"], plain, rtol=0, atol=2 * 98 * EPS * 100)
    assert drivers_of(session) == ["elementwise.unary", "conv.separable_f32"]
    # What others read stays: the image between depthwise and projection, or both between.
    half, both = Session(block(48, ("b",))), Session(block(48, ("a", "b")))
    np.testing.assert_allclose(half.run({"in": x})["b"], both.run({"in": x})["b"], rtol=0, atol=2 * 11 * EPS * 100)
    assert drivers_of(half)[1:] == ["conv.separable_f32", "conv.pointwise_f32"]
    assert drivers_of(both)[1:] == apart


@pytest.mark.parametrize("attrs", [{"activations": ["Relu"]}, {"activations": ["Relu", "none", ""]}, {"strides": [1]}])
def test_bad_attributes(attrs: dict[str, Any]) -> None:
    inputs = [normal(1, 4, 8, 8), None, None, normal(4, 1, 3, 3), None, normal(2, 4, 1, 1)]
    with pytest.raises(ShapeError):
        run_node("SeparableConv", inputs, attrs, domain="evort")
