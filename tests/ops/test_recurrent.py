"""Recurrent layers: ONNX's cases, and the compiled drivers against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_cases import check_node, node_cases
from support import drivers_of, node_model, run_node

from evort._kernels import core
from evort.errors import EvortError
from evort.session import Session

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("case", node_cases(*GATES), ids=lambda case: case.name)
def test_onnx_case(case: Any, device: str) -> None:
    check_node(case, device)


@st.composite
def layers(draw: st.DrawFn) -> tuple[str, list[np.ndarray | None], dict[str, Any]]:
    """An operator, its inputs and its attributes."""
    op = draw(st.sampled_from(list(GATES)))
    steps, batch, size, hidden = (draw(st.integers(1, n)) for n in (6, 5, 20, 21))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    layout, ways, gates = draw(st.integers(0, 1)), 1 + (direction == "bidirectional"), GATES[op]
    rng = np.random.default_rng(draw(st.integers(0, 99)))

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    state = (ways, batch, hidden) if layout == 0 else (batch, ways, hidden)
    inputs: list[np.ndarray | None] = [
        normal(*((steps, batch) if layout == 0 else (batch, steps)), size),
        normal(ways, gates * hidden, size) / np.float32(size),
        normal(ways, gates * hidden, hidden) / np.float32(hidden),
        normal(ways, 2 * gates * hidden) if draw(st.booleans()) else None,
        rng.integers(0, steps + 1, batch).astype(np.int32) if draw(st.booleans()) else None,
        normal(*state) if draw(st.booleans()) else None,
    ]
    attrs: dict[str, Any] = {"direction": direction, "layout": layout, "hidden_size": hidden}
    if op == "LSTM":
        inputs.append(normal(*state) if draw(st.booleans()) else None)
        inputs.append(normal(ways, 3 * hidden) if draw(st.booleans()) else None)
        attrs["input_forget"] = draw(st.integers(0, 1))
    if op == "GRU":
        attrs["linear_before_reset"] = draw(st.integers(0, 1))
    if draw(st.booleans()):
        attrs["clip"] = 0.5
    return op, inputs, attrs


def tolerance(op: str, inputs: list[np.ndarray | None], attrs: dict[str, Any]) -> float:
    """How far float32 may be after all steps.

    The inputs of an activation function are sums of n = size + hidden + 5 terms, wrong by at most n * 2^-24 times the
    sum of absolute values, s; the functions' slopes are at most 1 and their own errors below 4 * 2^-24. A step adds
    that much error and carries earlier ones on through |R| (rows sum up to rho) and, in an LSTM, through the cell with
    its peepholes; what is carried grows at most by a factor (2 + 4 rho + 3 p) a step.
    """
    x, w, r = (np.abs(v) for v in inputs[:3])
    bias = 0 if inputs[3] is None else 2 * np.abs(inputs[3]).max()
    steps = x.shape[attrs["layout"]]
    start = max([1.0] + [np.abs(v).max() for v in inputs[5:7] if v is not None])
    peep = np.abs(inputs[7]).max() if len(inputs) > 7 and inputs[7] is not None else 0.0
    rho = r.sum(axis=2).max()
    cell = start + steps if op == "LSTM" else start
    s = x.max() * w.sum(axis=2).max() + rho * max(1.0, start) + bias + peep * cell
    new = 2.0**-24 * ((x.shape[2] + r.shape[2] + 5) * s + 4 + 3 * cell) * (1 + cell)
    growth = 2 + (4 * rho + 3 * peep) * (1 + cell)
    return float(new * sum(growth**t for t in range(steps)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(layers(), st.integers(1, 2))
def test_matches_float64(layer: Any, threads: int) -> None:
    op, inputs, attrs = layer
    wide = [v.astype(np.float64) if v is not None and v.dtype == np.float32 else v for v in inputs]
    outputs = 3 if op == "LSTM" else 2
    exact = run_node(op, wide, attrs, outputs, device="reference")
    # The bound above is a worst case that long chains inflate; no honest float32 result comes near 1e-4.
    bound = min(tolerance(op, inputs, attrs), 1e-4)
    for name in core.available_isas():
        core.select_isa(name)
        got = run_node(op, inputs, attrs, outputs, threads=threads)
        for a, b in zip(got, exact, strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=0, atol=bound)
    core.select_isa()


def small(op: str) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    gates = GATES[op]
    return [rng.standard_normal(s).astype(np.float32) for s in ((5, 2, 3), (1, gates * 4, 3), (1, gates * 4, 4))]


@pytest.mark.parametrize("op", list(GATES))
def test_default_functions_are_compiled_and_others_run(op: str) -> None:
    inputs = small(op)
    functions = ["Affine", "ScaledTanh", "Softsign"][: {"RNN": 1, "GRU": 2, "LSTM": 3}[op]]
    for attrs, driver in (({}, f"recurrent.{op.lower()}_f32"), ({"activations": functions}, "numpy")):
        session = Session(node_model(op, inputs, attrs))
        session.run({f"in{i}": v for i, v in enumerate(inputs)})
        assert drivers_of(session) == [driver]


def test_functions_take_their_parameters_in_order() -> None:
    x, w, r = small("RNN")
    attrs = {"activations": ["Affine", "LeakyRelu"], "activation_alpha": [0.5, 0.25], "activation_beta": [2.0],
             "direction": "bidirectional"}  # fmt: skip
    inputs = [x[:1], np.concatenate([w, w]), np.concatenate([r, r]) * 0]
    y = run_node("RNN", inputs, attrs)[0][0]
    product = x[0] @ w[0].T
    np.testing.assert_allclose(y[0], 0.5 * product + 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y[1], np.where(product < 0, 0.25 * product, product), rtol=1e-5, atol=1e-6)


def test_clip_bounds_the_inputs_of_functions() -> None:
    x, w, r = small("RNN")
    y = run_node("RNN", [x * 100, w, r], {"clip": 0.25})[0]
    assert np.abs(y).max() <= np.tanh(0.25) + 1e-6


def test_steps_after_a_sequence_are_zero_and_the_state_is_its_last(device: str = "cpu") -> None:
    inputs = small("LSTM")
    lens = np.array([2, 5], np.int32)
    for direction in ("forward", "reverse"):
        attrs = {"direction": direction}
        y, h, c = run_node("LSTM", [*inputs, None, lens], attrs, 3, device=device)
        alone = run_node("LSTM", [inputs[0][:2, :1], *inputs[1:]], attrs, 3, device=device)
        np.testing.assert_allclose(y[:2, :, :1], alone[0], atol=1e-6)
        assert not y[2:, :, 0].any()
        np.testing.assert_allclose(h[:, :1], alone[1], atol=1e-6)
        np.testing.assert_allclose(c[:, :1], alone[2], atol=1e-6)


BAD = [
    {"direction": "backward"},
    {"layout": 2},
    {"hidden_size": 5},
    {"clip": -1.0},
    {"clip": float("nan")},
    {"activations": ["Sigmoid"]},
    {"activations": ["Sigmoid", "Tanh", "Bogus"]},
    {"direction": "bidirectional"},
]


@pytest.mark.parametrize("attrs", BAD, ids=str)
def test_refuses_attributes(attrs: dict[str, Any]) -> None:
    with pytest.raises(EvortError, match="node"):
        run_node("LSTM", small("LSTM"), attrs)


def test_refuses_operands_that_do_not_fit() -> None:
    x, w, r = small("LSTM")
    state = np.zeros((1, 2, 4), np.float32)
    for inputs in (
        [x[0], w, r],
        [x, w[:, :-1], r],
        [x, w, r[:, :, :-1]],
        [x, w, r, np.zeros((1, 31), np.float32)],
        [x, w, r, None, np.zeros(3, np.int32)],
        [x, w, r, None, None, state[:, :1]],
        [x, w, r, None, None, state, state[:, :, :1]],
        [x, w, r, None, None, None, None, np.zeros((1, 13), np.float32)],
        [x, w.astype(np.float64), r],
    ):
        with pytest.raises(EvortError, match="node"):
            run_node("LSTM", inputs, {})


def test_only_the_outputs_asked_for() -> None:
    inputs = small("LSTM")
    model = node_model("LSTM", inputs, {}, 3)
    want = run_node("LSTM", inputs, {}, 3)
    model.graph.nodes[0].outputs = ["", "", "out2"]
    model.graph.outputs = ["out2"]
    got = Session(model).run({f"in{i}": v for i, v in enumerate(inputs)})
    assert np.array_equal(got["out2"], want[2])


@pytest.mark.parametrize("shape", [(0, 2, 3), (5, 0, 3)])
def test_nothing_to_do(shape: tuple[int, ...]) -> None:
    _, w, r = small("GRU")
    x = np.zeros(shape, np.float32)
    y, h = run_node("GRU", [x, w, r], {}, 2)
    assert y.shape == (shape[0], 1, shape[1], 4)
    assert h.shape == (1, shape[1], 4)
    assert not h.any()
