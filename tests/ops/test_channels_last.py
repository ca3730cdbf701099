"""Regions of quantized layers whose tensors lie channels last: every driver that takes them, and what happens at their
borders, beside the references, which know nothing of it. Results are equal bit for bit on every instruction set; those
that have no kernels for it run the same graphs with channels first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qconv_operands import every
from support import drivers_of, make_model

from evort._kernels import core, qnhwc
from evort.graph import Graph, Model, Node
from evort.session import Session
from evort.types import DType

pytestmark = pytest.mark.usefixtures("isa")


@pytest.fixture(params=core.available_isas(), scope="module")
def isa(request: pytest.FixtureRequest) -> Any:
    core.select_isa(request.param)
    yield request.param
    core.select_isa()


class Network:
    """Layers over tensors of uint8, each with one scale; constants are drawn from a seed."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.shape = shape
        self.scale = self.constant(np.float32(0.05))
        self.zero = self.constant(np.uint8(117))
        self.scales = [self.scale, self.constant(np.float32(0.03))]
        self.count = 0

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def add(self, op: str, inputs: list[str], attrs: dict[str, Any], domain: str = "") -> str:
        self.count += 1
        self.nodes.append(Node(op, inputs, [f"t{self.count}"], attrs, domain))
        return f"t{self.count}"

    def conv(self, x: str, c: int, m: int, kernel: tuple[int, ...] = (3, 3), z: str = "", group: int = 1,
             w_type: Any = np.int8, y_type: Any = np.uint8, **attrs: Any) -> str:  # fmt: skip
        w = every(w_type, (m, c // group, *kernel), self.rng)
        terms = c // group * int(np.prod(kernel))
        inputs = [x, self.scale, self.zero, self.constant(w)]
        inputs.append(self.constant(self.rng.uniform(0.5, 1.5, m).astype(np.float32) / np.float32(60 * terms**0.5)))
        inputs.append(self.constant(np.full(m, 128 if w_type is np.uint8 else 0, w_type)))
        zero = {
            np.uint8: self.zero,
            np.int8: self.constant(np.int8(-7)),
            np.int16: self.constant(np.int16(9)),
            np.float32: "",
        }
        inputs += [self.scale if zero[y_type] else "", zero[y_type]]
        inputs.append(self.constant(self.rng.integers(-3000, 3000, m).astype(np.int32)))
        if z and y_type is np.float32:
            inputs.append(z)
        elif z:
            inputs += [z, self.constant(np.float32(0.031)), zero[y_type]]
        return self.add("QLinearConv", inputs, {"group": group, **attrs})

    def same(self, x: str, c: int) -> str:
        """A convolution to the same numbers, which lets x lie channels last."""
        inputs = [x, self.scale, self.zero, self.constant(np.eye(c, dtype=np.int8)[:, :, None, None])]
        inputs += [self.constant(np.float32(1)), self.constant(np.int8(0)), self.scale, self.zero]
        return self.add("QLinearConv", inputs, {})

    def conv_transpose(self, x: str, c: int, m: int, kernel: tuple[int, ...], strides: tuple[int, ...] = (),
                       y_type: Any = np.uint8, w_type: Any = np.int8, **attrs: Any) -> str:  # fmt: skip
        """Its strides are its kernel, unless given."""
        w = every(w_type, (c, m, *kernel), self.rng)
        inputs = [x, self.scale, self.zero, self.constant(w)]
        inputs.append(self.constant(self.rng.uniform(0.5, 1.5, m).astype(np.float32) / np.float32(60 * c**0.5)))
        inputs.append(self.constant(np.full(m, 128 if w_type is np.uint8 else 0, w_type)))
        zero = {np.uint8: self.zero, np.int8: self.constant(np.int8(-7)), np.float32: ""}[y_type]
        inputs += [self.scale if zero else "", zero, self.constant(self.rng.integers(-3000, 3000, m).astype(np.int32))]
        return self.add("QLinearConvTranspose", inputs, {"strides": list(strides or kernel), **attrs}, "evort")

    def model(self, *outputs: str) -> Model:
        return make_model(self.nodes, {"x": (DType.UINT8, self.shape)}, list(outputs), self.constants)


def check(network: Network, *outputs: str, threads: int = 1) -> list[str]:
    """Asserts that the drivers give the reference's bits, twice; returns their names."""
    model = network.model(*outputs)
    feeds = {"x": every(np.uint8, network.shape, network.rng)}
    expected = Session(model, device="reference").run(feeds)
    session = Session(model, threads=threads)
    for _ in range(2):  # the second run reuses the arena
        got = session.run(feeds)
        for name, value in expected.items():
            np.testing.assert_array_equal(got[name], value, name)
    return drivers_of(session)


@st.composite
def networks(draw: st.DrawFn) -> tuple[Network, list[str]]:
    """Some convolutions of random windows in a row, with what stands between them in real networks."""
    c = draw(st.sampled_from([1, 3, 4, 8, 20, 32]))
    size = [draw(st.integers(1, 13)), draw(st.integers(5, 18))]
    if (rank := draw(st.integers(0, 4))) < 2:
        size = size[1:] if rank == 0 else [draw(st.integers(1, 5)), *(s // 2 + 1 for s in size)]
    rank = len(size)
    network, x = Network((draw(st.integers(1, 2)), c, *size), draw(st.integers(0, 99))), "x"
    outputs = []
    for _ in range(draw(st.integers(2, 5))):
        m = draw(st.sampled_from([1, 3, 8, 12, 16, 33, 64, 70, 96, 144]))
        act = draw(st.sampled_from(
            [{}, {"activation": "Relu"}, {"activation": "Clip", "activation_alpha": -1.0, "activation_beta": 2.0},
             {"activation": "LeakyRelu", "activation_alpha": 0.125}]
        ))  # fmt: skip
        window: dict[str, Any] = {}
        kernel = tuple(draw(st.sampled_from([1, 1, 2, 3, 5])) for _ in size)
        window["strides"] = [draw(st.sampled_from([1, 1, 2, 3])) for _ in size]
        window["dilations"] = [draw(st.sampled_from([1, 1, 2])) for _ in size]
        window["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * rank)]
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, window["dilations"], strict=True)]
        after = [
            (s + window["pads"][i] + window["pads"][rank + i] - reach[i]) // window["strides"][i] + 1
            for i, s in enumerate(size)
        ]
        if min(after) < 1:
            kernel, after, window = (1,) * rank, size, {}
        kind = draw(
            st.sampled_from(
                [
                    "dense",
                    "dense",
                    "dense",
                    "depthwise",
                    "pool",
                    "add",
                    "scale",
                    "twice",
                    "up",
                    "resize",
                    "linear",
                    "join",
                ]
            )
        )
        if kind == "dense":
            x, c, size = network.conv(x, c, m, kernel, **window, **act), m, after
        elif kind == "depthwise":
            x, size = network.conv(x, c, c, kernel, group=c, **window, **act), after
        elif kind == "up" and rank < 3:
            m = min(m, 70)
            kernel = tuple(draw(st.sampled_from([1, 2, 2, 3])) for _ in size)
            w_type = draw(st.sampled_from([np.int8, np.uint8]))
            x, c = network.conv_transpose(x, c, m, kernel, w_type=w_type, **act), m
            size = [a * k for a, k in zip(size, kernel, strict=True)]
        elif kind in ("resize", "linear"):
            scales = [draw(st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0])) for _ in size]
            operands = ["", network.constant(np.array([1, 1, *scales], np.float32))]
            if kind == "linear":
                quantity = [network.scale, network.zero]
                x = network.add("QLinearResize", [x, *quantity, *quantity, *operands], {"mode": "linear"}, "evort")
            else:
                how = draw(st.sampled_from(["floor", "round_prefer_ceil"]))
                x = network.add("Resize", [x, *operands], {"mode": "nearest", "nearest_mode": how})
            size = [int(a * s) for a, s in zip(size, scales, strict=True)]
            if min(size) == 0:
                return network, [*dict.fromkeys([*outputs, x])]
        elif kind == "pool":
            x, size = network.add("MaxPool", [x], {"kernel_shape": list(kernel), **window}), after
        elif kind == "join":
            others = [network.conv(x, c, m, (1,) * rank), x]
            if draw(st.booleans()):
                x = network.add("Concat", others, {"axis": 1})
            else:
                triples = [v for k, name in enumerate(others) for v in (name, network.scales[k], network.zero)]
                x = network.add("QLinearConcat", [network.scale, network.zero, *triples], {"axis": 1}, "com.microsoft")
            c += m
        elif kind == "add":
            quantity = [network.scale, network.zero]
            other = network.conv(x, c, c, (1,) * rank)
            x = network.add("QLinearAdd", [x, *quantity, other, *quantity, *quantity], {}, "com.microsoft")
        elif kind == "scale":
            quantity = [network.scale, network.zero]
            mean = network.add("QLinearGlobalAveragePool", [x, *quantity, *quantity], {}, "com.microsoft")
            gate = network.conv(mean, c, c, (1,) * rank)
            x = network.add("QLinearMul", [x, *quantity, gate, *quantity, *quantity], {}, "com.microsoft")
        else:
            x = network.conv(x, c, c, (1,) * rank, z=network.conv(x, c, c, (1,) * rank, **act), activation="Relu")
        if draw(st.integers(0, 5)) == 0:
            outputs.append(x)
    return network, [*dict.fromkeys([*outputs, x])]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(networks(), st.integers(1, 3))
def test_regions_equal_the_reference(isa: str, case: Any, threads: int) -> None:
    network, outputs = case
    check(network, *outputs, threads=threads)


def test_what_runs_channels_last(isa: str) -> None:
    network = Network((1, 3, 30, 30))
    quantity = [network.scale, network.zero]
    x = network.conv("x", 3, 32, strides=[2, 2], pads=[1] * 4, activation="Relu")
    x = network.add("MaxPool", [x], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4})
    x = network.conv(network.conv(x, 32, 64, (1, 1)), 64, 64, group=64, pads=[1] * 4)
    x = network.add("QLinearGlobalAveragePool", [x, *quantity, *quantity], {}, "com.microsoft")
    names = check(network, network.conv(x, 64, 10, (1, 1)))
    if core.channels_last():
        assert names[:4] == ["qnhwc.linear", "qnhwc.max_pool", "qnhwc.linear", "qnhwc.depthwise"]
    else:
        assert all("nhwc" not in name for name in names)
    assert bool(core.channels_last()) == (isa != "scalar")


@pytest.mark.parametrize("w_type", [np.int8, np.uint8])
@pytest.mark.parametrize("y_type", [np.int8, np.uint8])
def test_types(isa: str, w_type: Any, y_type: Any) -> None:
    network = Network((1, 8, 9, 11))
    x = network.conv(network.conv("x", 8, 24, w_type=w_type), 24, 40, pads=[1] * 4, w_type=w_type)
    check(network, network.conv(x, 40, 20, w_type=w_type, y_type=y_type, activation="Relu"))


@pytest.mark.parametrize("kernel", [(2, 2), (1, 3), (3, 1), (4,)])
@pytest.mark.parametrize("y_type", [np.uint8, np.int8, np.float32])
def test_transposed_to_one_channel(isa: str, kernel: tuple[int, ...], y_type: Any) -> None:
    """Its result is the same with channels first, and may be of any type."""
    network = Network((2, 4, *(7, 9)[: len(kernel)]))
    x = network.conv_transpose(network.conv("x", 4, 24, (1,) * len(kernel)), 24, 24, kernel, activation="Relu")
    names = check(network, network.conv_transpose(x, 24, 1, kernel, y_type=y_type))
    if core.channels_last():
        assert names == ["qnhwc.linear"] * 3


def test_resize_of_pixels(isa: str) -> None:
    network = Network((2, 4, 7, 9))
    x = network.conv("x", 4, 24)
    x = network.add("Resize", [x, "", network.constant(np.array([1, 1, 2, 3], np.float32))], {"mode": "nearest"})
    names = check(network, network.conv(x, 24, 24), threads=2)
    if core.channels_last():
        assert names[:2] == ["qnhwc.linear", "qnhwc.nearest"] and names[2].startswith("qnhwc.")


def test_volumes(isa: str) -> None:
    """A small U-Net: planes staged in a ring, windows beyond all planes, joins and trilinear resizing in between."""
    network = Network((2, 1, 6, 7, 9))
    pads, quantity = [1] * 6, [network.scale, network.zero]
    skip = network.conv(network.conv("x", 1, 8, (3, 3, 3), pads=pads), 8, 8, (3, 3, 3), pads=pads, activation="Relu")
    x = network.add("MaxPool", [skip], {"kernel_shape": [2, 2, 3], "strides": [2, 2, 3]})
    x = network.conv(x, 8, 16, (3, 2, 2), dilations=[2, 1, 2], strides=[1, 2, 1], pads=[2, 1, 1, 2, 1, 1])
    x = network.conv(x, 16, 20, (1, 1, 1))
    sizes = network.constant(np.array([2, 20, 6, 7, 9], np.int64))
    x = network.add("QLinearResize", [x, *quantity, *quantity, "", "", sizes], {"mode": "linear"}, "evort")
    triples = [x, network.scales[1], network.zero, skip, *quantity]
    x = network.add("QLinearConcat", [*quantity, *triples], {"axis": 1}, "com.microsoft")
    x = network.conv(x, 28, 8, (3, 3, 3), pads=pads, activation="Relu")
    x = network.conv(x, 8, 9, (1, 1, 1), y_type=np.float32)
    for threads in (1, 3):
        names = check(network, x, threads=threads)
    if core.channels_last():
        others = ["qnhwc.max_pool", "qsample.resize", "qelementwise.concat"]
        dense = [name for name in names if name in ("qnhwc.linear", "qnhwc.winograd")]
        assert len(dense) == 6 and sorted(set(names) - set(dense)) == sorted(others)


@pytest.mark.parametrize("y_type", [np.float32, np.int16])
@pytest.mark.parametrize("z", [False, True])
def test_a_region_ends_in_any_type(isa: str, y_type: Any, z: bool) -> None:
    """300 positions: more than are transposed at a time."""
    network = Network((1, 4, 15, 20))
    x = network.conv("x", 4, 24, (1, 1))
    added = network.conv("x", 4, 70, (1, 1), y_type=y_type) if z else ""
    names = check(network, network.conv(x, 24, 70, (1, 1), z=added, y_type=y_type))
    if core.channels_last():
        assert names[-1] == "qnhwc.linear"


@pytest.mark.parametrize("channels", [16, 20, 40])
@pytest.mark.parametrize("size", [(9,), (7, 10), (5, 4, 6)])
def test_a_region_ends_with_a_pool(isa: str, channels: int, size: tuple[int, ...]) -> None:
    """Which reads channels last and writes them first; the other way round is not for it."""
    rank = len(size)
    network = Network((2, 4, *size))
    window = {"kernel_shape": [2] * rank, "strides": [2] * rank, "pads": [1] * rank + [0] * rank}
    x = network.add("MaxPool", ["x"], window)
    x = network.add("MaxPool", [network.conv(x, 4, channels, (2,) * rank, pads=[1] * 2 * rank)], window)
    for threads in (1, 3):
        names = check(network, x, threads=threads)
    if core.channels_last():
        assert names == ["pooling.pool", "qnhwc.linear", "qnhwc.max_pool"]


@pytest.mark.parametrize(("window", "joined"), [((2, 2), True), ((3, 2), True), ((1, 5), True), ((6, 5), False)])
@pytest.mark.parametrize(("channels", "y_type", "activation"), [
    (3, np.uint8, ""), (6, np.int8, "Relu"), (16, np.uint8, "LeakyRelu"), (70, np.uint8, "Clip"),
])  # fmt: skip
def test_largest_results_are_all_that_is_kept(
    isa: str, window: tuple[int, int], joined: bool, channels: int, y_type: Any, activation: str
) -> None:
    """Where the kernel compares sums: of windows of at most 28, that follow one another; the last row is in none."""
    network = Network((2, 1, 14, 17))
    params = {"LeakyRelu": {"activation_alpha": 0.1}, "Clip": {"activation_alpha": 0.1, "activation_beta": 0.9}}
    act = {"activation": activation, **params.get(activation, {})}
    pool = {"kernel_shape": list(window), "strides": list(window)}
    x = network.conv("x", 1, channels, (3, 5), pads=[1, 2, 1, 2], y_type=y_type, **act)
    first = network.add("MaxPool", [x], pool)
    x = network.same(first, channels) if y_type is np.uint8 else first
    kept = network.conv("x", 1, channels, (3, 5), y_type=y_type, **act)
    for threads in (1, 3):
        names = check(network, x, threads=threads)
        assert (names.count("qnhwc.max_pool") + names.count("pooling.pool") == 0) == (
            core.channels_last() and isa == "avx512vnni" and joined and activation != "LeakyRelu" and channels != 3
        )
    assert {"qnhwc.max_pool", "pooling.pool"} & set(check(network, kept, network.add("MaxPool", [kept], pool)))


def test_single_pixels_need_no_region(isa: str) -> None:
    network = Network((2, 20, 1, 1))
    names = check(network, network.conv(network.conv("x", 20, 70, (1, 1)), 70, 16, (3, 3), pads=[1] * 4))
    if core.channels_last():
        assert names == ["qnhwc.linear"] * 2


def test_other_transposed_convolutions_end_a_region(isa: str) -> None:
    network = Network((1, 4, 7, 9))
    x = network.conv("x", 4, 24)
    for more in ({"strides": (1, 1)}, {"pads": [1] * 4}, {"output_padding": [1, 1]}, {"strides": (3, 3)}):
        check(network, network.conv_transpose(x, 24, 24, (2, 2), **more))


def test_sums_wrap_as_everywhere(isa: str) -> None:
    """The deepest sums, of nothing but extremes."""
    network = Network((1, 16384, 2, 2))
    x = network.conv("x", 16384, 16384, (1, 1), group=16384)
    deep = network.conv(x, 16384, 3, (2, 2))
    for name in (network.nodes[0].inputs[3], network.nodes[1].inputs[3]):
        network.constants[name] = np.where(network.constants[name] < 0, -128, 127).astype(np.int8)
    network.constants[network.nodes[1].inputs[3]][0] = -128
    check(network, deep)


@pytest.mark.parametrize("activation", ["HardSwish", "HardSigmoid", "Swish", "Gelu", "Sigmoid"])
@pytest.mark.parametrize("m", [24, 64])
def test_activations(isa: str, activation: str, m: int) -> None:
    """They are rounded more than once on the way, or need an exponential: a step."""
    network = Network((1, 8, 9, 11))
    act: dict[str, Any] = {"activation": activation}
    if activation == "HardSigmoid":
        act |= {"activation_alpha": 0.2, "activation_beta": 0.5}
    x = network.conv("x", 8, m)
    dense = network.conv(x, m, m - 5, (1, 1), **act)
    depthwise = network.conv(x, m, m, group=m, **act)
    added = network.conv(x, m, m, (1, 1), z=network.conv(x, m, m, (1, 1)), **act)
    outputs = [network.same(dense, m - 5), network.same(depthwise, m), network.same(added, m)]
    model = network.model(*outputs)
    feeds = {"x": every(np.uint8, network.shape, network.rng)}
    expected = Session(model, device="reference").run(feeds)
    session = Session(model)
    got = session.run(feeds)
    for name in outputs:
        assert np.abs(got[name].astype(int) - expected[name]).max() <= 1
    if core.channels_last():
        assert {"qnhwc.linear", "qnhwc.depthwise"} == set(drivers_of(session))


def test_a_nested_graph_reads_channels_first(isa: str) -> None:
    network = Network((1, 4, 6, 6))
    x = network.conv("x", 4, 8, pads=[1] * 4)
    branch = Graph("branch")
    branch.nodes = [Node("Flatten", [x], ["inner"])]
    branch.outputs = ["inner"]
    network.conv(x, 8, 8)
    y = network.add("If", [network.constant(np.array(True))], {"then_branch": branch, "else_branch": branch})
    check(network, y, f"t{network.count - 1}")


def wants_winograd() -> bool:
    """Whether this instruction set gains so much by Winograd's convolution that these here take it."""
    return bool(core.channels_last()) and qnhwc.wide()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [(16, 16), (9, 30), (23, 13)])
def test_winograd(isa: str, size: tuple[int, int], threads: int) -> None:
    """Tiles that reach beyond, channels that fill no vector and no block, residuals, images of either layout."""
    network = Network((2, 20, *size))
    pads = {"pads": [1] * 4}
    x = network.conv("x", 20, 96, w_type=np.uint8, **pads, activation="Relu")
    y = network.conv(x, 96, 112, pads=[2, 1, 0, 1])
    y = network.conv(y, 112, 96, z=x, **pads, activation="LeakyRelu", activation_alpha=0.125)
    y = network.conv(y, 96, 36, **pads)
    names = check(network, y, network.conv(y, 36, 16, y_type=np.int8), threads=threads)
    assert names[:3] == ["qnhwc.winograd"] * 3 or not wants_winograd()


@pytest.mark.parametrize("threads", [1, 2])
def test_winograd_of_volumes(isa: str, threads: int) -> None:
    """Planes outside of the image, and results of eight channels and fewer."""
    network = Network((2, 12, 5, 14, 17))
    x = network.conv("x", 12, 48, (3, 3, 3), pads=[1] * 6, activation="Relu")
    y = network.conv(x, 48, 48, (3, 3, 3), z=x, pads=[1] * 6)
    y = network.conv(y, 48, 8, (2, 3, 3), pads=[1, 0, 1, 2, 1, 1])
    names = check(network, network.conv(y, 8, 8, (1, 3, 3)), threads=threads)
    assert names[1:3] == ["qnhwc.winograd"] * 2 or not wants_winograd()


@pytest.mark.parametrize("most", [True, False])
def test_winograd_where_sums_fit(isa: str, most: bool) -> None:
    """Sums of 2^25 and more are left to the direct convolution: many products, or kernels without small ones."""
    network = Network((1, 256, 16, 16))
    x = network.conv("x", 256, 64, pads=[1] * 4)
    weights = network.constants[network.nodes[0].inputs[3]]
    weights[:] = 127 if most else weights // 3
    names = check(network, network.conv(x, 64, 16, (1, 1)))
    assert names[0] == ("qnhwc.linear" if most else "qnhwc.winograd") or not wants_winograd()


@pytest.mark.parametrize("presum", [1, 2])
@pytest.mark.parametrize("c", [24, 40])
def test_weights_that_are_proven_small(isa: str, presum: int, c: int) -> None:
    """The largest that the proof allows, and images of 0 and 255: products of bytes are summed in 16 bits where the
    instruction set is better off with it. Strides, padding and results of other types."""
    network = Network((2, c, 9, 11))
    x = network.conv("x", c, c, (1, 1), presum=presum)
    y = network.conv(x, c, 80, (3, 3), pads=[1] * 4, strides=[2, 2], presum=presum, activation="Relu")
    y = network.conv(y, 80, c, (1, 1), presum=presum)
    outputs = [network.conv(y, c, 33, (3, 1), y_type=kind, presum=presum) for kind in (np.uint8, np.int8, np.float32)]
    for node in network.nodes:
        w = network.constants[node.inputs[3]]
        w[:] = np.where(w % 3 == 0, np.clip(w, -64, 64) // presum, np.where(w > 0, 64, -64) // presum)
    check(network, *outputs)
