"""Convolutions: ONNX's cases, and the compiled drivers against float64 over odd windows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from conv_windows import windows
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_cases import check_node, node_cases
from support import drivers_of, make_model, node_model, run_node

from evort._kernels import conv, core
from evort.errors import EvortError
from evort.graph import Node
from evort.session import Session
from evort.types import DType

EPS = 2.0**-24  # half a unit in the last place of 1, float32
OPERATORS = ("Conv", "ConvTranspose", "DeformConv", "Col2Im")


@pytest.fixture(params=core.available_isas())
def isa(request: pytest.FixtureRequest) -> Any:
    core.select_isa(request.param)
    yield request.param
    core.select_isa()


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("case", node_cases(*OPERATORS), ids=lambda case: case.name)
def test_onnx_case(case: Any, device: str) -> None:
    check_node(case, device)


def bounds(op: str, x: np.ndarray, w: np.ndarray, b: np.ndarray, z: np.ndarray | None,
           attrs: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The result in float64, without activation, and how far float32 may be from it.

    A sum of n products, bias and residual has at most n + 2 roundings on each term (Higham, Accuracy and Stability of
    Numerical Algorithms, 3.1), whatever their order: |error| <= (n + 2) eps / (1 - (n + 2) eps) times the sum of
    absolute values. n is at most the weights' size over the output channels.
    """
    wide = [v.astype(np.float64) for v in (x, w, b)]
    extra = [] if z is None else [z.astype(np.float64)]
    exact = run_node(op, [*wide, *extra], attrs, device="reference")[0]
    size = run_node(op, [np.abs(v) for v in (*wide, *extra)], attrs, device="reference")[0]
    terms = w[0].size + w.shape[0] + 2 if op == "ConvTranspose" else w[0].size + 2
    return exact, size * terms * EPS * 1.01


def operands(x: tuple[int, ...], w: tuple[int, ...], maps: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in (x, w, (maps,))]


def check_driver(op: str, values: list[np.ndarray], attrs: dict[str, Any], threads: int, residual: bool) -> None:
    x, w, b = values
    shape = run_node(op, values, attrs, device="reference")[0].shape
    z = np.random.default_rng(1).standard_normal(shape).astype(np.float32) if residual else None
    inputs = [*values, z] if residual else values
    exact, bound = bounds(op, x, w, b, z, attrs)
    got = run_node(op, inputs, {**attrs, "activation": "Clip", "activation_alpha": -1.0, "activation_beta": 2.0},
                   threads=threads)[0]  # fmt: skip
    np.testing.assert_array_less(np.abs(got - np.clip(exact, -1, 2)), bound + 1e-30)  # clipping adds no error
    got = run_node(op, inputs, {**attrs, "activation": "HardSwish"}, threads=threads)[0]
    exact = exact * np.clip(exact / 6 + 0.5, 0, 1)
    # The slope of x * clip(x/6 + 1/2, 0, 1) is at most 3/2; four more roundings.
    np.testing.assert_array_less(np.abs(got - exact), 1.5 * bound + 4 * EPS * np.abs(exact) + 1e-30)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(windows(), st.integers(1, 2), st.booleans())
def test_conv_matches_float64(window: Any, threads: int, residual: bool) -> None:
    attrs, x, w = window
    for name in core.available_isas():
        core.select_isa(name)
        check_driver("Conv", operands(x, w, w[0], 0), attrs, threads, residual)
    core.select_isa()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(windows(), st.integers(1, 2), st.booleans())
def test_im2col_matches_float64(window: Any, threads: int, residual: bool) -> None:
    attrs, x, w = window
    with pytest.MonkeyPatch.context() as patch:
        for driver, none in (("few", 0), ("direct", (False, 0)), ("winograd", 0)):
            patch.setattr(conv, f"{driver}_scratch", lambda *args, none=none: none)
        for name in core.available_isas():
            core.select_isa(name)
            check_driver("Conv", operands(x, w, w[0], 0), attrs, threads, residual)
    core.select_isa()


@pytest.mark.parametrize(
    ("x", "w", "attrs"),
    [
        ((2, 1, 640), (25, 1, 256), {"strides": [128]}),
        ((1, 43, 4), (13, 43, 3), {"pads": [1, 1]}),
        ((1, 60, 4), (8, 30, 3), {"pads": [2, 1], "strides": [3], "group": 2}),
        ((1, 20, 9), (6, 20, 4), {"dilations": [3], "pads": [2, 0], "strides": [2]}),
        ((1, 11, 3, 3), (5, 11, 3, 3), {"pads": [1, 1, 0, 0], "strides": [1, 2]}),
        ((1, 3, 2, 4, 20), (9, 3, 3, 2, 17), {"pads": [1, 0, 0, 1, 0, 1], "strides": [1, 2, 5]}),
        ((1, 70, 3), (6, 70, 1), {}),
        ((1, 66, 2), (1, 66, 1), {"pads": [4, 0], "strides": [4]}),  # a position that sees nothing of the image
    ],
)
@pytest.mark.parametrize("residual", [False, True])
def test_few_positions(isa: str, x: tuple[int, ...], w: tuple[int, ...], attrs: dict[str, Any], residual: bool) -> None:
    values = operands(x, w, w[0], 0)
    session = Session(node_model("Conv", values, attrs))
    session.run({f"in{i}": v for i, v in enumerate(values)})
    assert drivers_of(session) == ["conv.few_f32"]
    for threads in (1, 2):
        check_driver("Conv", values, attrs, threads, residual)


@pytest.mark.parametrize(
    ("x", "w", "attrs", "taps"),
    [
        ((2, 64, 1), (7, 64, 3), {"pads": [1, 1]}, 1),
        ((1, 66, 2), (6, 33, 3), {"pads": [1, 1], "strides": [2], "group": 2}, 2),
        ((1, 40, 1, 2), (5, 40, 3, 3), {"pads": [1, 1, 1, 1]}, 3),
        ((1, 70, 2), (5, 70, 3), {"pads": [1, 2], "dilations": [2]}, 1),  # whose tap is inside: less than no padding
        ((1, 70, 2), (4, 70, 3), {"pads": [1, 1]}, None),
    ],
)
def test_taps_that_never_meet_the_image_are_left_out(x, w, attrs, taps, isa) -> None:
    """taps: that are left of constant weights, where some are left out."""
    x, w, b = operands(x, w, w[0], 0)
    session = Session(node_model("Conv", [x, w, b], attrs, constants=(1,)), threads=1)
    got = session.run({"in0": x, "in2": b})["out0"]
    exact, bound = bounds("Conv", x, w, b, None, attrs)
    np.testing.assert_array_less(np.abs(got - exact), bound + 1e-30)
    assert drivers_of(session) == ["conv.few_f32"]
    copied = 0 if taps is None else w.nbytes // math.prod(w.shape[2:]) * taps
    assert session.memory().weights_copied == copied


@pytest.mark.parametrize(
    ("x", "w", "attrs"),
    [
        ((1, 64, 40, 90), (20, 64, 3, 3), {"pads": [1, 1, 1, 1]}),  # several bands of rows, blocks of weights
        ((1, 48, 61, 90), (20, 24, 3, 3), {"pads": [2, 0, 1, 1], "strides": [2, 2], "group": 2}),
        ((1, 32, 12, 20, 20), (7, 32, 3, 3, 3), {"pads": [1] * 6}),  # several bands of planes
        ((1, 4, 9, 40, 200), (7, 4, 3, 3, 3), {"strides": [2, 1, 3], "pads": [2, 0, 1, 0, 3, 2]}),
        ((3, 6, 14, 14), (18, 6, 5, 5), {}),  # a phase for each tap
        ((3, 6, 14, 14), (16, 6, 5, 5), {}),  # channels in the lanes, the image where it lies
        ((1, 2, 7, 9, 12), (32, 2, 2, 3, 4), {}),
        ((2, 8, 14, 14), (16, 8, 5, 5), {"pads": [2, 2, 2, 2]}),  # channels in the lanes of a copy
        ((1, 5, 41, 19), (32, 5, 3, 2), {"strides": [2, 3], "pads": [2, 1, 0, 1], "dilations": [1, 2]}),
        ((1, 2, 90, 28), (32, 2, 3, 3), {"pads": [0, 1, 2, 1]}),  # bands, as sums are many
        ((1, 2, 14, 9), (5, 2, 3, 8), {"dilations": [2, 1]}),
        ((1, 9, 5, 5), (25, 9, 3, 3), {"pads": [1, 1, 1, 1]}),  # rows shorter than a vector
        ((1, 1, 49, 10), (64, 1, 10, 4), {"strides": [2, 2], "pads": [4, 1, 5, 1]}),
    ],
)
@pytest.mark.parametrize("residual", [False, True])
def test_direct(monkeypatch: pytest.MonkeyPatch, isa: str, x: tuple[int, ...], w: tuple[int, ...],
                attrs: dict[str, Any], residual: bool) -> None:  # fmt: skip
    monkeypatch.setattr(conv, "winograd_scratch", lambda *args: 0)
    values = operands(x, w, w[0], 0)
    session = Session(node_model("Conv", values, attrs))
    session.run({f"in{i}": v for i, v in enumerate(values)})
    assert drivers_of(session)[0] in ("conv.direct_f32", "conv.direct_lanes_f32")
    for threads in (1, 2):
        check_driver("Conv", values, attrs, threads, residual)
    zeros = np.zeros_like(values[2])
    np.testing.assert_array_equal(
        run_node("Conv", values[:2], attrs)[0], run_node("Conv", [*values[:2], zeros], attrs)[0]
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(windows(transposed=True), st.integers(1, 2), st.booleans())
def test_transposed_conv_matches_float64(window: Any, threads: int, residual: bool) -> None:
    attrs, x, w = window
    for name in core.available_isas():
        core.select_isa(name)
        check_driver("ConvTranspose", operands(x, w, w[1] * attrs["group"], 0), attrs, threads, residual)
    core.select_isa()


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (25, 5), (15, 15), (12, 40), (1, 33), (33, 1), (30, 31), (9, 130)])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (7, 7), (1, 3), (3, 1), (2, 4)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 1), (1, 2), (3, 3)])
def test_depthwise(isa: str, size: tuple[int, int], kernel: tuple[int, int], strides: tuple[int, int]) -> None:
    pads = [k // 2 for k in kernel]
    attrs = {"group": 4, "strides": list(strides), "pads": pads * 2}
    check_driver("Conv", operands((2, 4, *size), (8, 1, *kernel), 8, 3), attrs, 2, True)


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [3, 1, 0, 2]])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 1), (1, 2)])
def test_depthwise_along_rows_of_any_padding(isa: str, pads: list[int], kernel: int, strides: tuple[int, int]) -> None:
    for size in ((6, 6), (7, 16), (8, 37), (40, 5)):
        attrs = {"group": 3, "strides": list(strides), "pads": pads}
        check_driver("Conv", operands((1, 3, *size), (3, 1, kernel, kernel), 3, 3), attrs, 1, False)


def test_depthwise_along_a_long_row(isa: str) -> None:
    for width, kernel, dilation, pads in ((64, 5, 4, [16, 0]), (131, 3, 1, [1, 1]), (90, 7, 30, [100, 90])):
        attrs = {"group": 3, "dilations": [dilation], "pads": pads}
        check_driver("Conv", operands((2, 3, width), (6, 1, kernel), 6, 3), attrs, 2, True)


def test_depthwise_with_a_kernel_beyond_its_strips(isa: str) -> None:
    attrs = {"group": 2, "dilations": [40, 40], "pads": [100, 100, 100, 100]}
    check_driver("Conv", operands((1, 2, 30, 20), (2, 1, 5, 5), 2, 3), attrs, 1, True)


@pytest.mark.parametrize(
    ("attrs", "x", "w", "driver"),
    [
        ({}, (1, 4, 5, 5), (6, 4, 1, 1), "conv.pointwise_f32"),
        ({"pads": [1, 1, 1, 1]}, (1, 4, 5, 5), (6, 4, 3, 3), "conv.direct_f32"),
        ({"strides": [2, 2]}, (1, 300, 9, 9), (300, 300, 3, 3), "conv.im2col_f32"),
        ({}, (1, 30, 18, 18), (30, 30, 3, 3), "conv.winograd_f32"),
        ({"pads": [1, 1, 1, 1]}, (1, 128, 8, 120), (3, 128, 3, 3), "conv.winograd_f32"),  # im2col would pack all
        ({"strides": [2, 2]}, (1, 4, 5, 5), (6, 4, 1, 1), "conv.im2col_f32"),
        ({"group": 4}, (1, 4, 5, 5), (8, 1, 3, 3), "conv.depthwise_f32"),
        ({"group": 4}, (1, 4, 5), (8, 1, 3), "conv.depthwise_f32"),
        ({"group": 4}, (1, 4, 5, 5, 5), (8, 1, 3, 3, 3), "conv.direct_f32"),
        ({"pads": [1, 0, 0, 1, 0, 0]}, (1, 4, 1, 5, 5), (8, 4, 1, 1, 1), "conv.im2col_f32"),
    ],
)
def test_driver(attrs: dict[str, Any], x: tuple[int, ...], w: tuple[int, ...], driver: str) -> None:
    values = operands(x, w, w[0], 0)
    session = Session(node_model("Conv", values, attrs))
    session.run({f"in{i}": v for i, v in enumerate(values)})
    assert drivers_of(session) == [driver]
    if driver != "conv.winograd_f32":  # whose bound is in test_conv_winograd.py
        check_driver("Conv", values, attrs, 1, False)


def test_prelu_has_a_slope_for_each_channel(isa: str) -> None:
    rng = np.random.default_rng(0)
    x, w, b = operands((2, 6, 9, 9), (6, 1, 3, 3), 6, 0)
    slope = rng.standard_normal(6).astype(np.float32)
    for weights, group in ((w, 6), (np.repeat(w, 6, axis=1), 1), (np.repeat(w, 3, axis=1), 2)):
        attrs = {"group": group, "pads": [1, 1, 1, 1]}
        exact, bound = bounds("Conv", x, weights, b, None, attrs)
        got = run_node("Conv", [x, weights, b, None, slope], {**attrs, "activation": "PRelu"})[0]
        steep = np.maximum(1, np.abs(slope)).reshape(-1, 1, 1).astype(np.float64)
        want = np.where(exact < 0, exact * slope.reshape(-1, 1, 1).astype(np.float64), exact)
        # One more rounding; where the sign itself is in doubt, both branches are within steep * bound of zero.
        np.testing.assert_array_less(np.abs(got - want), 2 * steep * bound + EPS * np.abs(want))


@pytest.mark.parametrize(
    ("x", "w", "attrs"),
    [
        ((1, 16, 40, 40), (16, 16, 5, 5), {}),  # direct
        ((4, 8, 24, 24), (12, 8, 5, 5), {}),  # direct, whole images
        ((1, 64, 30, 30), (64, 64, 1, 1), {}),  # pointwise
        ((1, 384, 14, 14), (62, 384, 1, 1), {}),  # with four last columns, cut by columns
        ((1, 150, 7, 7), (161, 150, 1, 1), {}),  # with one, cut by rows
        ((1, 32, 30, 30), (64, 32, 3, 3), {"strides": [2, 2]}),  # im2col
        ((1, 64, 70, 70), (64, 1, 3, 3), {"group": 64}),  # depthwise
        ((1, 64, 120, 9), (64, 1, 5, 5), {"group": 64}),  # depthwise, a narrow map
    ],
)
def test_same_result_with_any_number_of_threads(
    isa: str, x: tuple[int, ...], w: tuple[int, ...], attrs: dict[str, Any]
) -> None:
    """Shapes with work for several threads: smaller ones run on one whatever is asked for."""
    values = operands(x, w, w[0], 0)
    one = run_node("Conv", values, attrs, threads=1)[0]
    exact, bound = bounds("Conv", *values, None, attrs)
    assert np.all(np.abs(one - exact) <= bound)
    for threads in (2, 3, 6):
        assert np.array_equal(one, run_node("Conv", values, attrs, threads=threads)[0])


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize(
    "shapes", [((0, 3, 5, 5), (3, 3, 3, 3)), ((1, 0, 5, 5), (0, 0, 3, 3)), ((2, 4, 5, 5), (4, 0, 3, 3))]
)
def test_nothing_to_do(op: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    x, w = (np.ones(shape, np.float32) for shape in shapes)
    if op == "Conv" and w.shape[1] != x.shape[1]:
        w = np.ones((0, 4, 3, 3), np.float32)
    got = run_node(op, [x, w], {})[0]
    want = run_node(op, [x, w], {}, device="reference")[0]
    assert got.shape == want.shape
    assert got.size == 0


def test_no_input_channels_leave_the_bias() -> None:
    x, w, b = np.ones((1, 0, 4, 4), np.float32), np.ones((2, 0, 3, 3), np.float32), np.array([1, 2], np.float32)
    got = run_node("Conv", [x, w, b], {})[0]
    assert np.array_equal(got, np.broadcast_to(b.reshape(1, 2, 1, 1), (1, 2, 2, 2)))


def test_nan_and_infinity_go_through(isa: str) -> None:
    x, w, b = operands((1, 2, 8, 20), (2, 1, 3, 3), 2, 0)
    x[0, 0, 4, 4], x[0, 1, 4, 4] = np.nan, np.inf
    got = run_node("Conv", [x, np.abs(w), b], {"group": 2, "activation": "Relu"})[0]
    assert np.isnan(got[0, 0, 2:5, 2:5]).all()
    assert np.isposinf(got[0, 1, 2:5, 2:5]).all()
    assert np.isfinite(got).sum() == got.size - 18


BAD = [
    ("Conv", (1, 3, 5, 5), (2, 4, 3, 3), {}),
    ("Conv", (1, 3, 5, 5), (2, 3, 3), {}),
    ("Conv", (3, 5), (2, 3), {}),
    ("Conv", (1, 3, 5, 5), (2, 3, 3, 3), {"group": 0}),
    ("Conv", (1, 4, 5, 5), (3, 2, 3, 3), {"group": 2}),
    ("Conv", (1, 3, 5, 5), (2, 3, 3, 3), {"strides": [0, 1]}),
    ("Conv", (1, 3, 5, 5), (2, 3, 3, 3), {"strides": [1]}),
    ("Conv", (1, 3, 5, 5), (2, 3, 3, 3), {"dilations": [1, -1]}),
    ("Conv", (1, 3, 5, 5), (2, 3, 3, 3), {"dilations": [1 << 40, 1]}),
    ("Conv", (1, 3, 5, 5), (2, 3, 3, 3), {"pads": [0, 0, -1, 0]}),
    ("Conv", (1, 3, 5, 5), (2, 3, 3, 3), {"pads": [1, 1]}),
    ("Conv", (1, 3, 5, 5), (2, 3, 3, 3), {"kernel_shape": [3, 4]}),
    ("Conv", (1, 3, 5, 5), (2, 3, 3, 3), {"auto_pad": "SAME"}),
    ("Conv", (1, 3, 5, 5), (2, 3, 6, 3), {}),
    ("Conv", (1, 3, 5, 5), (2, 3, 0, 3), {}),
    ("Conv", (1, 3, 5, 5), (2, 3, 3, 3), {"activation": "Bogus"}),
    ("Conv", (1, 3, 5, 5), (2, 3, 3, 3), {"activation": "PRelu"}),
    ("ConvTranspose", (1, 3, 5, 5), (4, 2, 3, 3), {}),
    ("ConvTranspose", (1, 3, 5, 5), (3, 2, 3, 3), {"group": 2}),
    ("ConvTranspose", (1, 3, 5, 5), (3, 2, 3, 3), {"output_padding": [1, 0]}),
    ("ConvTranspose", (1, 3, 1, 1), (3, 2, 3, 3), {"pads": [2, 2, 2, 2]}),
    ("ConvTranspose", (1, 3, 5, 5), (3, 2, 3, 3), {"output_shape": [0, 5]}),
    ("ConvTranspose", (1, 3, 5, 5), (3, 2, 3, 3), {"activation": "PRelu"}),
]


@pytest.mark.parametrize(("op", "x", "w", "attrs"), BAD)
def test_refuses(op: str, x: tuple[int, ...], w: tuple[int, ...], attrs: dict[str, Any]) -> None:
    with pytest.raises(EvortError, match="node"):
        run_node(op, [np.zeros(x, np.float32), np.zeros(w, np.float32)], attrs)


def test_refuses_operands_that_do_not_fit() -> None:
    x, w, b = operands((1, 3, 5, 5), (2, 3, 3, 3), 2, 0)
    for inputs in ([x, w, b[:1]], [x, w.astype(np.float64), b], [x, w, b, x], [x, w, b, None, b]):
        with pytest.raises(EvortError, match="node"):
            run_node("Conv", inputs, {})


@pytest.mark.parametrize(
    ("op", "x", "w", "attrs"),
    [
        ("Conv", (2, 3, 7, 19), (8, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
        ("Conv", (2, 400, 5, 5), (8, 400, 1, 1), {}),  # several blocks of the sum
        ("Conv", (2, 8, 7, 19), (8, 1, 3, 3), {"pads": [1, 1, 1, 1], "group": 8}),
        ("Conv", (2, 8, 30, 39), (8, 1, 5, 5), {"pads": [2, 2, 2, 2], "group": 8, "strides": [2, 2]}),
        ("ConvTranspose", (2, 3, 7, 9), (3, 8, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ],
)
def test_residual_that_the_result_overwrites(
    isa: str, op: str, x: tuple[int, ...], w: tuple[int, ...], attrs: dict[str, Any]
) -> None:
    values = operands(x, w, 8, 0)
    shape = run_node(op, values, attrs, device="reference")[0].shape
    z = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    specs = {"x": (DType.FLOAT, x), "z": (DType.FLOAT, shape)}
    nodes = [
        Node("Relu", ["z"], ["dying"]),
        Node(op, ["x", "w", "b", "dying"], ["sum"], attrs),
        Node("Transpose", ["sum"], ["y"], {"perm": [3, 2, 1, 0]}),
    ]
    session = Session(make_model(nodes, specs, ["y"], {"w": values[1], "b": values[2]}))
    got = session.run({"x": values[0], "z": z})["y"]
    want = run_node(op, [*values, np.maximum(z, 0)], attrs)[0]
    assert np.array_equal(got, want.transpose(3, 2, 1, 0))
    assert any({"dying", "sum"} <= set(b.names) for b in session.plans()[0].buffers)
