"""Winograd's convolution along rows: the compiled driver against float64, within a bound that its transforms give."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from support import drivers_of, node_model, run_node

from evort._kernels import core
from evort.session import Session
from evort.tuning import PREFIX, cpu_name, render

EPS = 2.0**-24  # half a unit in the last place of 1, float32
DRIVER = "conv.winograd_line_f32"


def transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T [2, 6], G [6, 5] and B^T [6, 6] of F(2, 5) for the points 0, +-sqrt(1/2), +-sqrt(2) and infinity."""
    points = [0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)]
    at, g, bt = np.zeros((2, 6)), np.zeros((6, 5)), np.zeros((6, 6))
    for j, p in enumerate(points):
        others = [q for q in points if q != p]
        at[:, j] = p ** np.arange(2)
        g[j] = p ** np.arange(5) / np.prod([p - q for q in others])
        bt[j, :5] = np.poly(others)[::-1]
    at[1, 5] = g[5, 4] = 1
    bt[5] = np.poly(points)[::-1]
    return at, g, bt


AT, G, BT = (np.abs(m) for m in transforms())


def test_the_transforms_give_a_convolution() -> None:
    at, g, bt = transforms()
    x, k = np.arange(6.0) ** 2, np.array([1.0, -2.0, 5.0, 3.0, -4.0])
    assert np.allclose(at @ ((g @ k) * (bt @ x)), np.convolve(x, k[::-1], "valid"), rtol=1e-12)


def bound(x: np.ndarray, w: np.ndarray, pads: list[int]) -> np.ndarray:
    """How far the driver may be from the exact result, before the bias. x [N, C, H, W], w [M, C, k, 5].

    The driver's expression with every term replaced by its absolute value, times the number of roundings that a term
    can go through (Higham, Accuracy and Stability of Numerical Algorithms, 3.1): C * k in the sum; 5 for the input's
    transform, 6 for the kernel's and 5 for the output's, factors' own roundings included; 1 for the bias.
    """
    x = np.pad(np.abs(x.astype(float)), [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])])
    out = x.shape[3] - 4
    x = np.pad(x, [(0, 0)] * 3 + [(0, out % 2)])
    tiles = sliding_window_view(x, 6, axis=3)[:, :, :, ::2]
    v = sliding_window_view(tiles @ BT.T, w.shape[2], axis=2)  # [N, C, row, tile, 6, k]
    size = np.einsum("mckj,ncytjk,aj->nmyta", np.abs(w.astype(float)) @ G.T, v, AT, optimize=True)
    return size.reshape(*size.shape[:3], -1)[..., :out] * (w[0, :, :, 0].size + 17) * EPS * 1.01


def session_of(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, attrs: dict, threads: int = 1) -> Session:
    """With weights that are constants, and this driver, whether it is expected to be faster or not."""
    model = node_model("Conv", [x, w] if b is None else [x, w, b], attrs, constants=(1, 2))
    shape = run_node("Conv", [x, w], attrs, device="reference")[0].shape
    model.metadata[PREFIX + cpu_name()] = render({("out0", shape): DRIVER}, [])
    return Session(model, threads=threads)


def check(x: np.ndarray, w: np.ndarray, pads: list[int], threads: int = 1) -> None:
    """Runs it on each instruction set, with and without bias, and with different activations."""
    b = np.random.default_rng(1).standard_normal(w.shape[0]).astype(np.float32)
    exact = run_node("Conv", [x.astype(float), w.astype(float)], {"pads": pads}, device="reference")[0]
    limit = bound(x, w, pads)
    for isa in core.available_isas():
        core.select_isa(isa)
        for bias, activation, f in ((None, "", lambda v: v), (b, "Relu", lambda v: np.maximum(v, 0)),
                                    (b, "HardSwish", lambda v: v * np.clip(v / 6 + 0.5, 0, 1))):  # fmt: skip
            session = session_of(x, w, bias, {"pads": pads, "activation": activation}, threads)
            got = session.run({"in0": x})["out0"]
            assert drivers_of(session) == [DRIVER]
            want = exact if bias is None else exact + b[:, None, None]
            # What the bias adds: its own size, twice rounded, through factors of the outputs that are 1. The slope of
            # hard swish is at most 3/2; four more roundings. Numbers below 2^-126 are rounded to multiples of 2^-149.
            most = 1.5 * (limit + 2 * EPS * np.abs(b[:, None, None])) + 4 * EPS * np.abs(want) + 2.0**-140
            np.testing.assert_array_less(np.abs(got - f(want)), most)
    core.select_isa()


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from([1e-30, 1.0, 1e30]))
def test_matches_float64(data: st.DataObject, scale: float) -> None:
    pads = list(data.draw(st.tuples(*[st.integers(0, 4)] * 4)))
    rows = data.draw(st.integers(1, 6))
    image = (data.draw(st.integers(rows, 13)), data.draw(st.integers(5, 37)))
    x = normal(data.draw(st.integers(1, 2)), data.draw(st.integers(1, 9)), *image)
    w = normal(data.draw(st.sampled_from([16, 32])), x.shape[1], rows, 5)
    check(x * np.float32(scale), w, pads)


@pytest.mark.parametrize(
    ("x", "w", "pads"),
    [
        ((1, 6, 14, 14), (16, 6, 5, 5), [0] * 4),  # LeNet's second
        ((1, 8, 14, 14), (16, 8, 5, 5), [2] * 4),  # mnist_8's second
        ((1, 64, 40, 23), (32, 64, 5, 5), [2, 2, 2, 2]),  # several bands
        ((3, 20, 16, 16), (48, 20, 3, 5), [1, 2, 1, 2]),  # threads take images
    ],
)
def test_bands(x: tuple[int, ...], w: tuple[int, ...], pads: list[int]) -> None:
    xs, ws = normal(*x), normal(*w)
    results = []
    for threads in (1, 2, 3):
        session = Session(node_model("Conv", [xs, ws], {"pads": pads}, constants=(1,)), threads=threads)
        results.append(session.run({"in0": xs})["out0"])
        assert drivers_of(session) == [DRIVER]
    for a, b in pairwise(results):
        assert np.array_equal(a, b)
    check(xs, ws, pads, 2)


def test_what_lies_beside_the_image_is_not_read_as_numbers() -> None:
    """Rows of the image lie side by side: a number that is not finite reaches its own row's tiles only."""
    x, w = normal(1, 4, 9, 11), normal(16, 4, 5, 5)
    x[0, 1, 4, 0] = np.nan
    got = session_of(x, w, None, {"pads": [2] * 4}).run({"in0": x})["out0"]
    reached = np.isnan(got[0]).all(axis=0)
    assert np.array_equal(reached, np.isnan(got[0]).any(axis=0))
    # The first tile's two outputs, and the second's first: the first element of a tile is a term of that alone.
    assert reached[2:7, :3].all() and reached.sum() == 15


def test_only_where_it_can() -> None:
    x = normal(1, 8, 20, 20)
    for kernel, attrs in (
        ((16, 8, 5, 5), {"strides": [1, 2]}),
        ((16, 8, 5, 5), {"dilations": [2, 1]}),
        ((16, 4, 5, 5), {"group": 2}),
        ((24, 8, 5, 5), {}),
        ((16, 8, 5, 4), {}),
        ((16, 8, 5, 5), {"exact": 1}),
    ):
        session = Session(node_model("Conv", [x, normal(*kernel)], attrs, constants=(1,)))
        session.run({"in0": x})
        assert drivers_of(session) != [DRIVER]
    values = [x, normal(16, 8, 5, 5)]
    session = Session(node_model("Conv", values, {}))  # weights that are no constant are not transformed
    session.run({"in0": x, "in1": values[1]})
    assert drivers_of(session) != [DRIVER]


def test_transformed_kernels_are_counted_as_copies() -> None:
    x, w = normal(1, 8, 14, 14), normal(32, 8, 5, 5)
    session = Session(node_model("Conv", [x, w], {"pads": [2] * 4}, constants=(1,)))
    # Six fifths of them, and a line each.
    assert session.memory().weights_copied == 4 * 2 * 6 * (8 * 5 * 16 + 16)
