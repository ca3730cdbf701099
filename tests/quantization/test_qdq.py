"""Encodings written into a graph, and tensors captured from one."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from tools_support import onnx_model

from evort.session import Session
from evort.types import DType
from evort_tools.convert import convert_model
from evort_tools.quantization.capture import Capture, observe
from evort_tools.quantization.encodings import Encoding
from evort_tools.quantization.qdq import fake_quantized

RNG = np.random.default_rng(0)
W1 = RNG.normal(size=(6, 3, 3, 3)).astype(np.float32)
W2 = RNG.normal(size=(6, 6, 3, 3)).astype(np.float32)
B = RNG.normal(size=6).astype(np.float32)
X = RNG.normal(size=(1, 3, 8, 8)).astype(np.float32)


def residual():
    """Two convolutions; the second adds the first's output, which is the graph's second output."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["a"]),
        helper.make_node("Conv", ["a", "w2", "b"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "a"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    shapes = {"x": (np.float32, ("N", 3, 8, 8))}
    return convert_model(onnx_model(nodes, shapes, ["y", "a"], {"w1": W1, "w2": W2, "b": B}))


def test_fused_nodes_stay_fused_and_outputs_keep_their_names():
    model = residual()
    convs = [n for n in model.graph.nodes if n.op == "Conv"]
    assert [n.attrs.get("activation") for n in convs] == ["Relu", "Relu"] and convs[1].inputs[3] == "a"
    encodings = {
        "x": Encoding.of_range(-4, 4, DType.UINT8),
        "a": Encoding.of_range(0, 20, DType.UINT8),
        convs[0].inputs[1]: Encoding.of_weights(W1, 0),
        convs[1].inputs[1]: Encoding.of_weights(W2, 0),
    }
    made = fake_quantized(model, encodings)
    assert made.graph.outputs == ["y", "a"] and [n.op for n in model.graph.nodes] == ["Conv", "Conv"]
    first, second = (n for n in made.graph.nodes if n.op == "Conv")
    assert second.inputs[0] == second.inputs[3] == "a" and first.outputs == ["a/float"]
    assert all(made.graph.constant(n.inputs[1]) is None for n in (first, second))
    got = Session(made).run({"x": X})
    # By hand, in float64: each operand replaced by what is left of it.
    x, w1, w2 = encodings["x"].fake(X), Encoding.of_weights(W1, 0).fake(W1), Encoding.of_weights(W2, 0).fake(W2)
    float_model = residual()
    float_model.graph.tensors[convs[0].inputs[1]].data = w1
    a = encodings["a"].fake(Session(float_model).run({"x": x})["a"])
    # A sum that lies within float32's error of the middle between two steps may round either way.
    off = np.abs(got["a"] - a) > 1e-6
    assert np.abs(got["a"] - a).max() <= encodings["a"].scale * 1.001 and off.mean() < 0.005
    float_model = residual()
    float_model.graph.tensors[convs[1].inputs[1]].data = w2
    y = Session(float_model).run({"x": X})["y"]
    assert got["y"].shape == y.shape
    # 8-bit steps of about 0.08 in 54 products of weights below 4: far less than the outputs' own size.
    assert np.linalg.norm(got["y"] - Session(residual()).run({"x": X})["y"]) < 0.03 * np.linalg.norm(y)


def test_weights_are_stored_as_integers_within_half_a_step():
    model = residual()
    name = next(n for n in model.graph.nodes if n.op == "Conv").inputs[1]
    made = fake_quantized(model, {name: Encoding.of_weights(W1, 0)})
    node = next(n for n in made.graph.nodes if n.op == "DequantizeLinear")
    q, scale = made.graph.constant(node.inputs[0]), made.graph.constant(node.inputs[1])
    assert q.dtype == np.int8 and q.min() >= -127 and node.attrs == {"axis": 0} and name not in made.graph.tensors
    step = scale.reshape(-1, 1, 1, 1)
    # Half a step, and float32's rounding of the product.
    assert (np.abs(q * step - W1) <= step * (0.5 + 1e-5)).all()


@pytest.mark.parametrize(
    ("name", "error"), [("nothing", KeyError), ("shape", ValueError)], ids=["unknown", "not a float"]
)
def test_what_cannot_be_quantized(name, error):
    nodes = [helper.make_node("Shape", ["x"], ["shape"]), helper.make_node("Relu", ["x"], ["y"])]
    model = convert_model(onnx_model(nodes, {"x": (np.float32, ("N", 3))}, ["y", "shape"]))
    model.graph.tensors["shape"].dtype = DType.INT64
    with pytest.raises(error):
        fake_quantized(model, {name: Encoding.of_range(0, 1, DType.UINT8)})


class Keep:
    def __init__(self):
        self.values = []

    def observe(self, value):
        self.values.append(value.copy())


@pytest.mark.parametrize("limit", [1, 1 << 28])
def test_capture_gives_what_the_model_computes(limit):
    model = residual()
    whole = Session(model).run({"x": X})
    found = Capture(model, ["y", "x", "a"], limit=limit).run({"x": X})
    assert set(found) == {"y", "x", "a"}
    for name in ("y", "a"):
        np.testing.assert_array_equal(found[name], whole[name])
    keep = {"a": Keep(), "x": Keep()}
    assert observe(model, ({"x": X * k} for k in (1, 2)), keep, limit=limit) == 2
    np.testing.assert_array_equal(keep["x"].values[1], X * 2)
    np.testing.assert_array_equal(keep["a"].values[1], Session(model).run({"x": X * 2})["a"])
    with pytest.raises(KeyError, match="no node"):
        Capture(model, ["w1x"])
