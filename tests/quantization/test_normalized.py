"""Bytes between a convolution and the InstanceNormalization behind it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from tools_support import onnx_model

import evort
import evort_tools
from evort import etm
from evort.graph import Model
from evort.session import Session
from evort_tools.convert import convert_model
from evort_tools.quantization import layers
from evort_tools.quantization.integers import casts

node = helper.make_node


def model(activation: str = "LeakyRelu") -> Model:
    """Two convolutions with normalizations behind. The first has channels of widely different size, and many: its
    result is what the arena is for."""
    rng = np.random.default_rng(0)
    constants = {
        "W": rng.normal(0, 0.3, (16, 3, 3, 3)) * np.geomspace(1e-3, 10, 16).reshape(-1, 1, 1, 1),
        "V": rng.normal(0, 0.1, (3, 16, 3, 3)),
        "U": rng.normal(0, 0.1, (3, 3, 1, 1)),
        "scale1": rng.uniform(0.5, 2, 16),
        "shift1": rng.normal(0, 0.1, 16),
        "scale2": rng.uniform(0.5, 2, 3),
        "shift2": rng.normal(0, 0.1, 3),
    }
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", ["x", "W"], ["a"], **same), node(activation, ["a"], ["b"]),
        node("InstanceNormalization", ["b", "scale1", "shift1"], ["c"], epsilon=1e-5),
        node("Conv", ["c", "V"], ["d"], **same), node(activation, ["d"], ["e"]),
        node("InstanceNormalization", ["e", "scale2", "shift2"], ["f"]),
        node("Conv", ["f", "U"], ["y"]),
    ]  # fmt: skip
    constants["W"][5] = 0  # a channel of which nothing is left
    constants = {name: value.astype(np.float32) for name, value in constants.items()}
    return convert_model(onnx_model(nodes, {"x": (np.float32, (1, 3, 40, 40))}, ["y"], constants))


def samples(count: int, seed: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(0.3, 1, (1, 3, 40, 40)).astype(np.float32)} for _ in range(count)]


def of(made: Model, op: str) -> list:
    return [n for n in made.graph.nodes if n.op == op]


def test_the_largest_result_is_bytes(tmp_path):
    real = model()
    result = evort_tools.quantize(real, calib=samples(12, 1), prefer="size")
    made = result.model
    large, small = of(made, "QLinearInstanceNormalization")
    scale = made.graph.constant(large.inputs[5])
    assert scale.shape == (16,) and scale[5] == 1 and np.isfinite(scale).all()
    assert len(small.inputs) == 5 and not casts(made.graph)  # it reads float32
    # One scale for all of the first one's channels would be 10^4 times too coarse for its smallest: 0 dB of that.
    session, full = Session(made, threads=1), Session(real, threads=1)
    (feeds,) = samples(1, 2)
    got, want = (s.run(feeds)["y"] for s in (session, full))
    assert 10 * np.log10(np.square(want).sum() / np.square(got - want).sum()) > 30
    assert session.memory().lower_bound < 0.6 * full.memory().lower_bound
    # What watches the model in production knows the scale of each channel.
    files = [tmp_path / "real.etm", tmp_path / "made.etm"]
    for file, m in zip(files, (real, made), strict=True):
        etm.write(m, file)
    with_shadow = evort.load(files[1], threads=1, shadow=1, shadow_model=files[0])
    with_shadow.run(feeds)
    count = with_shadow.shadow.layers[large.inputs[0]]
    assert count.sqnr > 35 and count.saturation < 0.01
    found = layers.compare(result.real, made, result.encodings, samples(2, 3))
    assert next(layer for layer in found if layer.name == large.inputs[0]).accumulated.sqnr > 30


def test_what_an_activation_bends_stays_in_float():
    """Tanh of a scaled number is not the scaled Tanh."""
    made = evort_tools.quantize(model("Tanh"), calib=samples(12, 1), prefer="size").model
    assert all(len(n.inputs) == 5 for n in of(made, "QLinearInstanceNormalization"))


@pytest.mark.parametrize("limit, bytes_", [("20dB", True), ("200dB", False)])
def test_a_limit_is_held(limit, bytes_):
    made = evort_tools.quantize(model(), calib=samples(12, 1), prefer="size", max_drop=limit).model
    assert any(len(n.inputs) > 5 for n in of(made, "QLinearInstanceNormalization")) == bytes_
