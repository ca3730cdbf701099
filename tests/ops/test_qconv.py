"""Integer convolutions: ONNX's cases; the compiled drivers against exact NumPy references, which they equal bit for
bit, over odd windows, types and extremes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conv_windows import windows
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_cases import check_node, node_cases
from qconv_operands import every, operands, residual
from qsupport import everywhere, numbers
from support import drivers_of, node_model, run_node

from evort._kernels import core, qnhwc
from evort.errors import EvortError
from evort.ops import qconv
from evort.session import Session

CONSTANTS = (*range(1, 9), 10, 11)
RANGE_OF_RUN = CONSTANTS[2:]  # without x_scale and x_zero_point


@pytest.fixture(params=core.available_isas())
def isa(request: pytest.FixtureRequest) -> Any:
    core.select_isa(request.param)
    yield request.param
    core.select_isa()


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("case", node_cases("ConvInteger", "QLinearConv"), ids=lambda case: case.name)
def test_onnx_case(case: Any, device: str) -> None:
    check_node(case, device)


def same(
    op: str,
    inputs: list[Any],
    attrs: dict[str, Any],
    threads: int = 1,
    domain: str = "",
    constants: tuple[int, ...] = CONSTANTS,
) -> str:
    """Asserts that the driver gives the reference's bits, or, where an activation rounds more than once, as good as
    those; returns the driver's name."""
    shape = np.array(run_node(op, inputs, attrs, device="reference", domain=domain, constants=constants)[0])
    session = Session(node_model(op, inputs, attrs, domain=domain, constants=constants), threads=threads)
    feeds = {f"in{i}": v for i, v in enumerate(inputs) if v is not None and i not in constants}
    got = session.run(feeds)["out0"]
    assert got.dtype == shape.dtype
    # Several roundings of numbers as large as the result, or one step. HardSwish multiplies x up to 3 with x/6 +
    # 1/2, which may cancel after two roundings of numbers of up to 1/2 and one of up to 1.
    if attrs.get("activation") in ("HardSwish", "Swish"):
        floats = got.dtype.kind == "f"
        atol = (3 * 2 * 2.0**-24 if attrs["activation"] == "HardSwish" else 0) if floats else 1
        np.testing.assert_allclose(got, shape, rtol=5 * 2.0**-24 if floats else 0, atol=atol)
    else:
        np.testing.assert_array_equal(got, shape)
    return drivers_of(session)[0]


ACTIVATIONS = (
    {},
    {"activation": "Relu"},
    {"activation": "Clip", "activation_alpha": -1.5, "activation_beta": 2.25},
    {"activation": "LeakyRelu", "activation_alpha": 0.125},
    {"activation": "HardSwish"},
)


@st.composite
def setups(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "types": " ".join(
            draw(st.sampled_from(names)) for names in (["u8", "s8"], ["s8", "s8", "u8"], ["u8", "s8", "f"])
        ),
        "float_x": draw(st.booleans()),
        "many": draw(st.booleans()),
        "zeros": draw(st.sampled_from(["any", "none", "low", "high"])),
    }


@settings(max_examples=100, deadline=None, derandomize=True)
@given(windows(), setups(), st.sampled_from(ACTIVATIONS), st.sampled_from(["", "", "f", "u8", "s8"]), st.integers(1, 3))
def test_conv_equals_the_reference(window: Any, setup: Any, act: Any, z: str, threads: int) -> None:
    attrs, x, w = window
    inputs = operands(x, w, w[0], 0, **setup)
    attrs = {**attrs, **act}
    inputs = residual(inputs, attrs, z, "QLinearConv", "")
    for name in core.available_isas():
        core.select_isa(name)
        assert same("QLinearConv", inputs, attrs, threads).startswith("q")
    core.select_isa()


def moves(c: Any, window: Any) -> bool:
    """Whether kernels for operands that lie channels last take a dense convolution."""
    last = qconv.last_ints(c, window) if core.channels_last() and c["group"] == 1 else None
    return last is not None and not last[1]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    windows(),
    setups(),
    st.sampled_from(ACTIVATIONS),
    st.sampled_from(["", "f", "u8"]),
    st.integers(1, 2),
    st.booleans(),
)
def test_conv_that_moves_its_operands(window: Any, setup: Any, act: Any, z: str, threads: int, of_run: bool) -> None:
    """Kernels for operands that lie channels last, of operands that do not, of any types, and where the range of x is
    that of the run."""
    attrs, x, w = window
    inputs = operands(x, w, w[0], 0, **{**setup, "zeros": "none"})
    attrs = {**attrs, **act}
    inputs = residual(inputs, attrs, z, "QLinearConv", "")
    for name in core.available_isas():
        core.select_isa(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(qconv, "packs", moves)
            driver = same("QLinearConv", inputs, attrs, threads, constants=RANGE_OF_RUN if of_run else CONSTANTS)
        taken = core.channels_last() and attrs["group"] == 1 and w[0] in (8, 16)
        taken = taken and setup["types"].split()[1] == "s8" and not (of_run and setup["float_x"])
        assert driver.startswith("qnhwc") or not taken
    core.select_isa()


@pytest.mark.parametrize("window", [
    ((1, 13, 5), (40, 13, 3), {"pads": [1, 1]}), ((2, 70, 1, 1), (24, 70, 1, 1), {}),
    ((1, 1, 90), (8, 1, 30), {"strides": [20]}),
    ((1, 6, 3, 4), (70, 6, 2, 3), {"pads": [0, 1, 1, 1], "dilations": [2, 1]}), ((1, 1100, 2), (16, 1100, 1), {}),
    ((1, 4, 1, 3, 2), (20, 4, 2, 2, 2), {"pads": [1, 0, 0, 0, 1, 1]}),
])  # fmt: skip
@pytest.mark.parametrize("types", ["s16 s8 f", "s16 u8 u8", "s16 s8 s8", "s16 s8 s16"])
@pytest.mark.parametrize("float_x", [False, True])
def test_conv_of_two_bytes(isa: str, window: Any, types: str, float_x: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of 16 bits with few positions is two of bytes, where all sums fit 32 bits."""
    x, w, attrs = window
    given = operands(x, w, w[0], 1, types, float_x)
    given[2], given[5] = np.zeros_like(given[2]), np.full_like(given[5], 128 if given[3].dtype == np.uint8 else 0)
    fits = np.abs(given[3].astype(int) - given[5].flat[0]).reshape(w[0], -1).sum(1).max() < 1 << 16
    assert fits == (w[1] < 1000)
    for act in ({}, {"activation": "Relu"}, {"activation": "LeakyRelu", "activation_alpha": 0.1}):
        for z in ("", "f", "s8"):
            all_attrs = {**attrs, **act}
            inputs = residual(given, all_attrs, z, "QLinearConv", "")
            driver = same("QLinearConv", inputs, all_attrs)
            if isa.startswith("avx512vnni"):
                assert driver == ("qnhwc.linear" if fits else "qconv.linear")
            with monkeypatch.context() as patch:
                patch.setattr(qconv, "packs", moves)
                for threads in (1, 3):
                    driver = same("QLinearConv", inputs, all_attrs, threads)
            assert driver == ("qnhwc.linear" if fits and core.channels_last() else "qconv.linear")


@pytest.mark.parametrize("x", [(1, 7, 9, 9), (1, 14, 9, 9), (1, 15, 40, 40), (1, 16, 1, 1)])
@pytest.mark.parametrize("types", ["u8 s8 u8", "s8 s8 u8", "u8 s8 f"])
@pytest.mark.parametrize("float_x", [False, True])
@pytest.mark.parametrize("of_run", [False, True])
def test_conv_that_moves_what_pays(isa: str, x: tuple[int, ...], types: str, float_x: bool, of_run: bool) -> None:
    """Results of bytes, single pixels, many products for a float, and what is a case for Winograd's convolution."""
    w = (16, x[1], 3, 3) if x[2] > 1 else (16, x[1], 1, 1)
    inputs = operands(x, w, w[0], 3, types, float_x, zeros="none")
    constants = RANGE_OF_RUN if of_run else CONSTANTS
    driver = same("QLinearConv", inputs, {"pads": [w[2] // 2] * 4}, 1, constants=constants)
    if not core.channels_last() or (of_run and float_x):
        return
    products = x[1] * w[2] * w[3]
    many = products >= 64 if qnhwc.wide() else products >= 128 and float_x
    pays = many or not types.endswith("f") or x[2] == 1
    assert driver in ({"qnhwc.linear", "qnhwc.winograd"} if pays else {"qconv.linear", "qnhwc.winograd"})


@pytest.mark.parametrize("window", [
    ((2, 24, 7, 1500), (8, 24, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((2, 24, 9, 1500), (8, 24, 3, 1), {"strides": [2, 1], "pads": [2, 0, 0, 0]}),
    ((1, 16, 9, 2100), (8, 16, 2, 2), {"dilations": [2, 1], "pads": [0, 1, 1, 0]}),
    ((2, 16, 2, 5, 2100), (8, 16, 1, 3, 1), {"pads": [1, 1, 0, 1, 1, 0]}),
])  # fmt: skip
@pytest.mark.parametrize("float_x", [False, True])
def test_bands_share_rows(isa: str, window: Any, float_x: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the image that two bands read are staged once."""
    x, w, attrs = window
    monkeypatch.setattr(qconv, "packs", moves)
    for threads in (1, 2):
        driver = same("QLinearConv", operands(x, w, w[0], 2, "u8 s8 u8", float_x, zeros="none"), attrs, threads)
        assert driver.startswith("qnhwc") or not core.channels_last()


@pytest.mark.parametrize("y", ["f", "u8"])
@pytest.mark.parametrize(
    "x, w, stride", [((1, 1, 40), (70, 1, 16), 8), ((2, 6, 7), (130, 6, 3), 2), ((1, 1, 70), (9, 1, 7), 4)]
)
def test_conv_of_few_positions(isa: str, x: tuple[int, ...], w: tuple[int, ...], stride: int, y: str) -> None:
    """Whose channels fill vectors, not its positions; of one channel, the taps are a run of bytes."""
    inputs = operands(x, w, w[0], 0, f"u8 s8 {y}", True, zeros="none")
    for act in ({}, {"activation": "Relu"}):
        driver = same("QLinearConv", inputs, {"strides": [stride], **act}, 1)
        few = not qnhwc.wide() and (x[2] - w[2]) // stride < 15
        assert driver == ("qnhwc.linear" if few or y == "u8" else "qconv.linear") or not core.channels_last()


@pytest.mark.parametrize("kernel, channels", [(1, 65536), (3, 7281), (4, 4096)])  # K up to 65,536
@pytest.mark.parametrize("x_value, w_value", [(255, 127), (255, -128), (-128, -128), (127, -128), (255, 255)])
def test_extremes_of_any_depth(isa: str, kernel: int, channels: int, x_value: int, w_value: int) -> None:
    """One value all over: the largest sums that there are; 255 * 255 * 65,536 wraps around, as int32 does."""
    x = np.full((1, channels, kernel, kernel + 4), x_value, np.uint8 if x_value > 127 else np.int8)
    w = np.full((3, channels, kernel, kernel), w_value, np.uint8 if w_value > 127 else np.int8)
    got = Session(node_model("ConvInteger", [x, w], {}, constants=(1,)), threads=2).run({"in0": x})["out0"]
    want = np.array(x_value * w_value * channels * kernel * kernel).astype(np.int32)
    assert got.shape == (1, 3, 1, 5) and np.all(got == want)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(windows(), st.sampled_from(["s8", "u8"]), st.sampled_from(["s16", "u8", "f"]), st.booleans(),
       st.sampled_from(ACTIVATIONS), st.sampled_from(["", "s16"]))  # fmt: skip
def test_conv_of_int16_equals_the_reference(window: Any, w_type: str, y: str, float_x: bool, act: Any, z: str) -> None:
    attrs, x, w = window
    attrs = {**attrs, **act}
    inputs = operands(x, w, w[0], 0, f"s16 {w_type} {y}", float_x)
    inputs = residual(inputs, attrs, z, "QLinearConv", "")
    for name in core.available_isas():
        core.select_isa(name)
        assert same("QLinearConv", inputs, attrs, 2).startswith("q")
    core.select_isa()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(windows(transposed=True), setups(), st.sampled_from(ACTIVATIONS), st.sampled_from(["", "f", "u8"]),
       st.integers(1, 2))  # fmt: skip
def test_transposed_conv_equals_the_reference(window: Any, setup: Any, act: Any, z: str, threads: int) -> None:
    attrs, x, w = window
    inputs = operands(x, w, w[1] * attrs["group"], 0, **setup)
    attrs = {**attrs, **act}
    inputs = residual(inputs, attrs, z, "QLinearConvTranspose", "evort")
    for name in core.available_isas():
        core.select_isa(name)
        assert same("QLinearConvTranspose", inputs, attrs, threads, "evort") == "qconv.linear"
    core.select_isa()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(windows(), st.sampled_from([np.uint8, np.int8]), st.sampled_from([np.uint8, np.int8]), st.booleans())
def test_conv_integer_is_exact(window: Any, x_type: Any, w_type: Any, many: bool) -> None:
    attrs, x_shape, w_shape = window
    rng = np.random.default_rng(0)
    x, w = every(x_type, x_shape, rng), every(w_type, w_shape, rng)
    x_zero = np.array(rng.integers(0, 128), x_type)
    w_zero = rng.integers(0, 128, w_shape[0] if many else ()).astype(w_type)
    per_map = w_zero.reshape(-1, *(1,) * (w.ndim - 1)) if many else w_zero
    exact = run_node("Conv", [x.astype(float) - float(x_zero), w.astype(float) - per_map], attrs, device="reference")[0]
    for name in core.available_isas():
        core.select_isa(name)
        got = run_node("ConvInteger", [x, w, x_zero, w_zero], attrs)[0]
        assert got.dtype == np.int32
        assert np.array_equal(got, exact)
    core.select_isa()


@pytest.mark.parametrize("x_type", ["u8", "s8"])
@pytest.mark.parametrize("w_type", ["s8", "u8"])
@pytest.mark.parametrize("zeros", ["low", "high", "none"])
@pytest.mark.parametrize("ends", [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)])
def test_extremes_do_not_saturate(isa: str, x_type: str, w_type: str, zeros: str, ends: tuple[int, int]) -> None:
    """Every product at its largest, K = 65,536; weights all of one sign, or turn by turn (2)."""
    inputs = operands((1, 16384, 2, 3), (5, 16384, 2, 2), 5, 0, f"{x_type} {w_type} f", zeros=zeros)
    span = [np.iinfo(inputs[i].dtype) for i in (0, 3)]
    inputs[0][:] = (span[0].min, span[0].max)[ends[0]]
    inputs[3][:] = (span[1].min, span[1].max, span[1].max)[ends[1]]
    if ends[1] == 2:
        inputs[3][:, 1::3] = span[1].min
    same("QLinearConv", inputs, {})


@pytest.mark.parametrize("zeros", ["low", "high"])
def test_depthwise_differences_that_are_no_bytes(isa: str, zeros: str) -> None:
    """Weights 255 from their zero point, which take three bytes each in the program, with as many taps as it has."""
    inputs = operands((1, 3, 20, 20), (6, 1, 16, 16), 6, 0, "u8 u8 f", zeros=zeros)
    inputs[3][:] = 255 if zeros == "low" else 0
    assert same("QLinearConv", inputs, {"group": 3}) == "qdepthwise.linear"


def test_threads_change_no_bit(isa: str) -> None:
    for x, w, attrs in (
        ((1, 16, 40, 41), (24, 16, 3, 3), {"pads": [1, 1, 1, 1]}),
        ((1, 64, 7, 7), (64, 64, 1, 1), {}),
        ((1, 512, 1, 1), (64, 512, 1, 1), {}),
        ((3, 8, 30, 30), (16, 1, 3, 3), {"group": 8, "strides": [2, 2]}),
    ):
        inputs = operands(x, w, w[0], 3)
        one = run_node("QLinearConv", inputs, attrs, threads=1)[0]
        for threads in (2, 3, 8):
            assert np.array_equal(one, run_node("QLinearConv", inputs, attrs, threads=threads)[0])


def test_large_images_are_staged_in_bands(isa: str) -> None:
    for x, w, attrs in (
        ((1, 64, 90, 90), (3, 64, 3, 3), {"pads": [1, 1, 1, 1], "strides": [1, 2]}),
        ((1, 8, 70000), (2, 8, 9), {"pads": [4, 4], "strides": [3]}),
        ((1, 2, 30, 60, 60), (3, 2, 3, 3, 3), {"pads": [1] * 6}),
        ((1, 2, 300, 300), (4, 1, 5, 5), {"pads": [2] * 4, "group": 2}),
    ):
        same("QLinearConv", operands(x, w, w[0], 0), attrs)


def test_nothing_to_do() -> None:
    for x, w in (((0, 3, 5, 5), (3, 3, 3, 3)), ((1, 0, 5, 5), (2, 0, 3, 3)), ((2, 4, 5, 5), (0, 4, 3, 3))):
        same("QLinearConv", operands(x, w, w[0], 0), {})


BAD: list[tuple[dict[int, Any], dict[str, Any], str]] = [
    ({8: np.zeros(2, np.int32)}, {}, "B must have shape"),
    ({1: np.ones(2, np.float32)}, {}, "scale"),
    ({2: np.int8(0)}, {}, "element type of input 0"),
    ({4: np.ones(2, np.float32)}, {}, "one for each channel"),
    ({6: None}, {}, "come together"),
    ({7: None}, {}, "come together"),
    ({9: np.zeros((1, 3, 4, 4), np.float32)}, {}, "Z must have shape"),
    ({9: np.zeros((1, 3, 3, 3), np.uint8)}, {}, "z_scale"),
    ({9: np.zeros((1, 3, 3, 3), np.float32), 10: np.float32(1)}, {}, "z_scale"),
    ({10: np.float32(1)}, {}, "absent"),
    ({}, {"activation": "PRelu"}, "slope"),
    ({}, {"presum": -1}, "presum"),
    ({}, {"strides": [0, 1]}, "strides"),
    ({}, {"group": 2}, "groups"),
]


@pytest.mark.parametrize(("change", "attrs", "message"), BAD)
def test_refuses(change: dict[int, Any], attrs: dict[str, Any], message: str) -> None:
    inputs: list[Any] = [*operands((1, 3, 5, 5), (3, 3, 3, 3), 3, 0), None, None, None]
    for i, value in change.items():
        inputs[i] = None if value is None else np.asarray(value)
    with pytest.raises(EvortError, match=message):
        run_node("QLinearConv", inputs, attrs)


@pytest.mark.parametrize(
    ("x", "w", "attrs"),
    [
        ((1, 8, 20, 21), (9, 8, 3, 3), {"pads": [1, 1, 1, 1]}),
        ((2, 5, 24, 40), (13, 5, 3, 5), {"strides": [2, 2], "pads": [1, 2, 0, 1]}),
        ((1, 7, 30, 600), (4, 7, 3, 3), {"dilations": [2, 3], "pads": [2, 0, 2, 0]}),
        ((1, 6, 9, 10, 11), (8, 6, 3, 3, 3), {"pads": [1, 1, 1, 1, 1, 1]}),
        ((1, 12, 1500), (8, 6, 7), {"group": 2, "pads": [3, 3]}),
        ((1, 4, 16, 500), (26, 4, 1, 2), {}),
    ],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize(("types", "zeros"), [("u8 s8 u8", "none"), ("s8 s8 s8", "none"), ("u8 u8 f", "any")])
@pytest.mark.parametrize("threads", [1, 2])
def test_wide_maps(
    isa: str, x: Any, w: Any, attrs: Any, types: str, zeros: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of many positions, which are staged in quads of channels where weights have no zero point."""
    monkeypatch.setattr("evort.ops.qconv.packs", lambda c, window: False)
    inputs = operands(x, w, w[0], 3, types, zeros=zeros)
    assert same("QLinearConv", inputs, attrs, threads) == "qconv.linear"


@pytest.mark.parametrize(
    ("size", "kernel", "attrs"),
    [
        ((7, 7), (3, 3), {"pads": [1, 1, 1, 1]}),
        ((1, 1), (3, 3), {"pads": [1, 1, 1, 1]}),
        ((40, 67), (3, 3), {"pads": [0, 2, 1, 1]}),
        ((40, 67), (3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ((2, 96), (5, 5), {"pads": [2, 2, 2, 2]}),
        ((9, 130), (5, 7), {"strides": [1, 3], "pads": [4, 6, 4, 6]}),
        ((20, 90), (9, 13), {"strides": [3, 4]}),
        ((20, 90), (2, 17), {"strides": [1, 2]}),
        ((5, 2100), (3, 4), {}),
        ((30, 33), (3, 3), {"dilations": [2, 1]}),
        ((30,), (3,), {"pads": [1, 1]}),
    ],
    ids=str,
)
@pytest.mark.parametrize(("types", "maps"), [("u8 s8 u8", 3), ("s8 s8 s8", 6), ("u8 u8 f", 3)])
def test_depthwise_windows(isa: str, size: Any, kernel: Any, attrs: Any, types: str, maps: int) -> None:
    """Depthwise convolutions, read where they lie or staged, beyond every edge."""
    inputs = operands((2, 3, *size), (maps, 1, *kernel), maps, 4, types, zeros="none")
    assert same("QLinearConv", inputs, {**attrs, "group": 3}, 2) == "qdepthwise.linear"


@pytest.mark.parametrize("z", ["", "u8", "s8", "s16", "f"])
@pytest.mark.parametrize("attrs", [*ACTIVATIONS, {"activation": "HardSigmoid"}, {"activation": "Swish"}], ids=str)
def test_what_follows_the_sums(isa: str, z: str, attrs: Any) -> None:
    """Residuals and activations, over numbers that no vector divides."""
    inputs = operands((1, 3, 17, 23), (5, 3, 1, 1), 5, 5)
    same("QLinearConv", residual(inputs, attrs, z, "QLinearConv", ""), attrs)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("depthwise", [False, True])
def test_the_range_of_x_may_be_that_of_the_run(dtype, depthwise):
    """As DynamicQuantizeLinear finds it: scale and zero point are no constants."""
    rng = np.random.default_rng(3)
    x = numbers(rng, dtype, (1, 8 if depthwise else 4, 9, 11))
    w = numbers(rng, np.int8, (8, 1, 3, 3) if depthwise else (20, 4, 3, 3))
    scales = [rng.uniform(1e-3, 1e-2, w.shape[0]).astype(np.float32), np.int8(0)]
    inputs = [x, np.float32(0.03), dtype(7), w, *scales]
    attrs = {"pads": [1, 1, 1, 1], "group": 8 if depthwise else 1}
    driver = "qdepthwise.linear" if depthwise else "qconv.linear"
    y = everywhere(driver, "QLinearConv", inputs, attrs, "", feeds=(0, 1, 2))
    assert y.dtype == np.float32
