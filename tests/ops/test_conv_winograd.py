"""Winograd's convolution: the compiled driver against float64, within a bound derived from its transforms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from support import drivers_of, node_model, run_node

from evort._kernels import conv, core
from evort.session import Session

EPS = 2.0**-24  # half a unit in the last place of 1, float32


def transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T [4, 6], G [6, 3] and B^T [6, 6] of F(4, 3) for the points 0, +-sqrt(1/2), +-sqrt(2) and infinity."""
    points = [0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)]
    at, g, bt = np.zeros((4, 6)), np.zeros((6, 3)), np.zeros((6, 6))
    for j, p in enumerate(points):
        others = [q for q in points if q != p]
        at[:, j] = p ** np.arange(4)
        g[j] = p ** np.arange(3) / np.prod([p - q for q in others])
        bt[j, :5] = np.poly(others)[::-1]
    at[3, 5] = g[5, 2] = 1
    bt[5] = np.poly(points)[::-1]
    return at, g, bt


AT, G, BT = (np.abs(m) for m in transforms())


def test_the_transforms_give_a_convolution() -> None:
    at, g, bt = transforms()
    x, k = np.arange(6.0) ** 2, np.array([1.0, -2.0, 5.0])
    assert np.allclose(at @ ((g @ k) * (bt @ x)), np.convolve(x, k[::-1], "valid"), rtol=1e-12)


def bound(x: np.ndarray, w: np.ndarray, pads: list[int], group: int) -> np.ndarray:
    """How far the driver may be from the exact result, before bias and residual. x [N, C, D, H, W], w [M, C/group, d,
    3, 3], pads of three axes.

    The driver's expression with every term replaced by its absolute value, times the number of roundings that a term
    can go through (Higham, Accuracy and Stability of Numerical Algorithms, 3.1): C/group * d in the sum; along each of
    two axes 5 for the input's transform, 6 for the kernel's and 5 for the output's, factors' own roundings included;
    2 for bias and residual.
    """
    x = np.pad(np.abs(x.astype(float)), [(0, 0), (0, 0), *zip(pads[:3], pads[3:], strict=True)])
    out = [n - k + 1 for n, k in zip(x.shape[2:], w.shape[2:], strict=True)]
    high, wide = (-(-n // 4) * 4 + 2 for n in out[1:])
    x = np.pad(x, [(0, 0)] * 3 + [(0, high - x.shape[3]), (0, wide - x.shape[4])])
    tiles = sliding_window_view(x, (6, 6), axis=(3, 4))[:, :, :, ::4, ::4]
    v = np.einsum("ia,jb,nczyxab->nczyxij", BT, BT, tiles, optimize=True)
    u = np.einsum("ia,jb,mctab->mctij", G, G, np.abs(w.astype(float)), optimize=True)
    maps, channels = w.shape[0] // group, w.shape[1]
    size = np.zeros((x.shape[0], w.shape[0], *out))
    for part in range(group):
        vs, us = v[:, part * channels : (part + 1) * channels], u[part * maps : (part + 1) * maps]
        for d in range(out[0]):
            o = np.einsum("mctij,nctyxij->nmyxij", us, vs[:, :, d : d + w.shape[2]], optimize=True)
            y = np.einsum("ai,bj,nmyxij->nmyaxb", AT, AT, o, optimize=True)
            y = y.reshape(*y.shape[:2], high - 2, wide - 2)[:, :, : out[1], : out[2]]
            size[:, part * maps : (part + 1) * maps, d] = y
    return size * (channels * w.shape[2] + 34) * EPS * 1.01


def check(x: np.ndarray, w: np.ndarray, pads: list[int], group: int, threads: int, residual: bool) -> None:
    """Runs x [N, C, D, H, W] or [N, C, H, W] through the driver, twice with different activations."""
    rng = np.random.default_rng(1)
    attrs = {"pads": pads, "group": group}
    inputs = [x, w, rng.standard_normal(w.shape[0]).astype(np.float32)]
    exact = run_node("Conv", [v.astype(float) for v in inputs], attrs, device="reference")[0]
    if residual:
        inputs.append(rng.standard_normal(exact.shape).astype(np.float32))
        exact = exact + inputs[3]
    if x.ndim == 5:
        limit = bound(x, w, pads, group)
    else:
        limit = bound(x[:, :, None], w[:, :, None], [0, *pads[:2], 0, *pads[2:]], group)[:, :, 0]
    limit = limit + 4 * EPS * np.abs(exact) + 8 * EPS  # what bias and residual, of a few units, add
    for activation, f in (("", lambda v: v), ("Relu", lambda v: np.maximum(v, 0)),
                          ("HardSwish", lambda v: v * np.clip(v / 6 + 0.5, 0, 1))):  # fmt: skip
        got = run_node("Conv", inputs, {**attrs, "activation": activation}, threads=threads)[0]
        # The slope of hard swish is at most 3/2; four more roundings.
        np.testing.assert_array_less(np.abs(got - f(exact)), 1.5 * limit + 4 * EPS * np.abs(exact))


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 2), st.booleans())
def test_matches_float64(data: st.DataObject, threads: int, residual: bool) -> None:
    rank, group = data.draw(st.sampled_from([2, 2, 2, 3])), data.draw(st.sampled_from([1, 1, 2]))
    channels, maps = data.draw(st.integers(20, 40)), data.draw(st.integers(20, 40))
    image = data.draw(st.tuples(*[st.integers(11, 30 if rank == 2 else 14)] * rank))
    kernel = (data.draw(st.integers(1, 3)), 3, 3)[-rank:] if rank == 3 else (3, 3)
    pads = list(data.draw(st.tuples(*[st.integers(0, 2)] * (2 * rank))))
    x = normal(data.draw(st.integers(1, 2)), channels * group, *image)
    w = normal(maps * group, channels, *kernel)
    session = Session(node_model("Conv", [x, w], {"pads": pads, "group": group}))
    session.run({"in0": x, "in1": w})
    assume(drivers_of(session) == ["conv.winograd_f32"])
    for isa in core.available_isas():
        core.select_isa(isa)
        check(x, w, pads, group, threads, residual)
    core.select_isa()


@pytest.mark.parametrize(
    ("x", "w", "pads", "group"),
    [
        ((1, 32, 60, 150), (20, 32, 3, 3), [1] * 4, 1),  # several blocks of tiles and of output channels
        ((1, 40, 12, 600), (16, 40, 3, 3), [1, 0, 1, 2], 1),  # rows of tiles are cut
        ((2, 160, 14, 14), (170, 160, 3, 3), [1] * 4, 1),  # kernels are transformed in blocks; few tiles
        ((1, 320, 14, 15), (320, 160, 3, 3), [1] * 4, 2),
        ((1, 150, 7, 7), (70, 150, 3, 3), [1] * 4, 1),
        ((2, 131, 10, 9), (65, 131, 3, 3), [1] * 4, 1),
        ((1, 256, 18, 18), (41, 256, 3, 3), [1] * 4, 1),  # more tiles than are few
        ((1, 16, 7, 19, 18), (16, 16, 3, 3, 3), [1] * 6, 1),
        ((1, 16, 2, 19, 18), (16, 16, 5, 3, 3), [4, 1, 1, 4, 1, 1], 1),  # most planes are outside
    ],
)
def test_blocks(x: tuple[int, ...], w: tuple[int, ...], pads: list[int], group: int) -> None:
    xs, ws = normal(*x), normal(*w)
    results = []
    for threads in (1, 2, 3):
        session = Session(node_model("Conv", [xs, ws], {"pads": pads, "group": group}), threads=threads)
        results.append(session.run({"in0": xs, "in1": ws})["out0"])
        assert drivers_of(session) == ["conv.winograd_f32"]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])
    for isa in core.available_isas():
        core.select_isa(isa)
        check(xs, ws, pads, group, 1, True)
    core.select_isa()


def test_only_where_it_can() -> None:
    x = normal(1, 64, 20, 20)
    for kernel, attrs in (((3, 3), {"strides": [2, 2]}), ((3, 3), {"dilations": [2, 1]}), ((5, 5), {}), ((1, 3), {})):
        session = Session(node_model("Conv", [x, normal(64, 64, *kernel)], attrs))
        session.run({"in0": x, "in1": normal(64, 64, *kernel)})
        assert drivers_of(session) != ["conv.winograd_f32"]
    place = [0, 1, 1, 400, 400, 1, 400, 400, 1, 3, 3, 1, 1, 1, 1, 1, 1, 0, 1, 1]
    assert conv.winograd_scratch(64, 64, 1, place, 1, False) > 0
    assert conv.winograd_scratch(2048, 2048, 1, place, 1, False) == 0  # takes more memory than it is worth
