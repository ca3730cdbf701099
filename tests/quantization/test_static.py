"""Static quantization: what is selected, what ranges and weights become, accuracy on MNIST, memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from onnx import helper
from support import ROOT
from tools_support import onnx_model

import evort
import evort_tools
from evort.graph import Graph, Model, Node, Tensor
from evort.session import Session
from evort.types import DType
from evort_tools.convert import convert_model
from evort_tools.passes.fitting import shapes_of
from evort_tools.quantization import auto
from evort_tools.quantization.capture import Capture
from evort_tools.quantization.compare import expected_outputs, output_errors
from evort_tools.quantization.data import open_calibration
from evort_tools.quantization.integers import integer_model
from evort_tools.quantization.qdq import fake_quantized
from evort_tools.quantization.select import Selection
from evort_tools.quantization.static import METHODS, Settings, calibrate

node = helper.make_node


def weights(*shape, seed=0):
    rng = np.random.default_rng(seed + int(np.prod(shape)))
    return (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def samples(*shape, count=8, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def calibrated(onnx, data, **settings):
    model = convert_model(onnx)
    return model, calibrate(model, open_calibration(data, model.graph), Settings(**settings))


def sqnr(model, found, data):
    feeds = open_calibration(data, model.graph).head(16)
    errors = output_errors(fake_quantized(model, found.encodings), feeds, expected_outputs(model, feeds))
    return {name: error.sqnr for name, error in errors.items()}


def branches():
    """Convolutions, a pool, a Concat, an Add of computed tensors, a Softmax at the end."""
    nodes = [
        node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["ra"]),
        node("MaxPool", ["ra"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "w2"], ["b"], pads=[1, 1, 1, 1]),
        node("Conv", ["p", "w2b"], ["c"], pads=[1, 1, 1, 1]),
        node("Concat", ["b", "c"], ["bc"], axis=1),
        node("Conv", ["bc", "w3"], ["d"]),
        node("Sigmoid", ["d"], ["gate"]),
        node("Mul", ["p", "gate"], ["gated"]),
        node("Conv", ["gated", "w4"], ["e"]),
        node("GlobalAveragePool", ["e"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "w5", "b5"], ["h"], transB=1),
        node("Softmax", ["h"], ["y"]),
    ]
    constants = {
        "w1": weights(8, 3, 3, 3), "w2": weights(8, 8, 3, 3), "w2b": weights(8, 8, 3, 3, seed=1) * 3,
        "w3": weights(8, 16, 1, 1), "w4": weights(6, 8, 1, 1), "w5": weights(5, 6), "b5": weights(5, 1).reshape(5),
    }  # fmt: skip
    return onnx_model(nodes, {"x": (np.float32, ("N", 3, 8, 8))}, ["y"], constants)


def test_what_runs_in_integers_and_what_shares_a_scale():
    model, found = calibrated(branches(), samples(3, 8, 8), method="minmax")
    ops = [n.op for n in found.selection.nodes]
    assert ops == ["Conv", "MaxPool", "Conv", "Conv", "Concat", "Conv", "Mul", "Conv", "GlobalAveragePool", "Flatten",
                   "Gemm"]  # fmt: skip
    e = found.encodings
    # The pool's result has the scale of what it pools; the parts that are only joined have that of the whole.
    assert e["p"].same(e["ra"]) and e["b"].same(e["bc"]) and e["c"].same(e["bc"])
    # The Softmax is the last: its input is written in float. Sigmoid's range is known.
    assert "h" not in e and "y" not in e
    assert e["gate"].method == "fixed" and e["gate"].scale == pytest.approx(1 / 255)
    assert e["w1"].axis == 0 and e["w5"].axis == 0 and np.abs(e["w1"].quantize(model.graph.constant("w1"))).max() == 127
    assert sqnr(model, found, samples(3, 8, 8))["y"] > 30


def test_a_normalization_between_integers_runs_in_them():
    nodes = [
        node("Conv", ["x", "w1"], ["a"]),
        node("HardSwish", ["a"], ["h"]),
        node("BatchNormalization", ["h", "scale", "shift", "mean", "variance"], ["n"]),
        node("Conv", ["n", "w2"], ["b"], pads=[1, 1, 1, 1]),
        node("Conv", ["n", "w3"], ["c"]),
        node("Add", ["b", "c"], ["y"]),
    ]
    constants = {
        "w1": weights(8, 3, 3, 3), "w2": weights(8, 8, 3, 3), "w3": weights(8, 8, 1, 1),
        "scale": weights(8) + 1, "shift": weights(8), "mean": weights(8), "variance": weights(8) ** 2 + 0.5,
    }  # fmt: skip
    model, found = calibrated(
        onnx_model(nodes, {"x": (np.float32, ("N", 3, 8, 8))}, ["y"], constants), samples(3, 8, 8)
    )
    assert [n.op for n in found.selection.nodes] == ["Conv", "BatchNormalization", "Conv", "Conv"]
    assert sqnr(model, found, samples(3, 8, 8))["y"] > 30


def transformer():
    """A feed-forward block between normalizations, attention-like, and what is resized on the way."""
    nodes = [
        node("MatMul", ["x", "w1"], ["a"]),
        node("LayerNormalization", ["a", "scale", "shift"], ["n"]),
        node("MatMul", ["n", "w2"], ["b"]),
        node("Softmax", ["b"], ["s"]),
        node("MatMul", ["s", "w3"], ["c"]),
        node("Resize", ["c", "", "scales"], ["r"], mode="linear"),
        node("MatMul", ["r", "w4"], ["y"]),
    ]
    constants = {
        "w1": weights(16, 16), "w2": weights(16, 16), "w3": weights(16, 16), "w4": weights(16, 4),
        "scale": weights(16) + 1, "shift": weights(16), "scales": np.array([1, 1, 2, 1], np.float32),
    }  # fmt: skip
    return onnx_model(nodes, {"x": (np.float32, ("N", 3, 6, 16))}, ["y"], constants)


def test_normalizations_and_resampling_between_products_are_integers():
    model, found = calibrated(transformer(), samples(3, 6, 16), method="minmax")
    ops = [n.op for n in found.selection.nodes]
    assert ops == ["MatMul", "LayerNormalization", "MatMul", "Softmax", "MatMul", "Resize", "MatMul"]
    made, _ = integer_model(model, found)
    assert [n.op for n in made.graph.nodes] == [
        "QLinearMatMul", "QLinearLayerNormalization", "QLinearMatMul", "QLinearSoftmax", "QLinearMatMul",
        "QLinearResize", "QLinearMatMul",
    ]  # fmt: skip
    feeds = open_calibration(samples(3, 6, 16), model.graph).head(8)
    assert output_errors(made, feeds, expected_outputs(model, feeds))["y"].sqnr > 25
    # Of computed scales it is no operator of integers.
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("LayerNormalization", ["a", "a1"], ["n"]),
             node("MatMul", ["n", "w"], ["y"])]  # fmt: skip
    inputs = {"x": (np.float32, ("N", 16)), "a1": (np.float32, (16,))}
    other = convert_model(onnx_model(nodes, inputs, ["y"], {"w": weights(16, 16)}))
    assert [n.op for n in Selection(other.graph, shapes_of(other.graph)).nodes] == ["MatMul", "MatMul"]


def test_delicate_operators_go_back_to_float_where_8_bits_are_too_few():
    """A LayerNormalization of values of which all but one are small."""
    w = weights(16, 16)
    w[:, 0] *= 3000
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("LayerNormalization", ["a", "scale"], ["n"], axis=-1),
             node("MatMul", ["n", "v"], ["y"])]  # fmt: skip
    v = weights(16, 4)
    v[0] = 0
    constants = {"w": w, "v": v * 1000, "scale": np.ones(16, np.float32)}
    model = onnx_model(nodes, {"x": (np.float32, ("N", 16))}, ["y"], constants)
    result = evort_tools.quantize(model, calib={"x": samples(16, count=32)}, prefer="size", wide_activations="off")
    assert [n.op for n in result.model.graph.nodes] == ["QLinearMatMul", "LayerNormalization", "QLinearMatMul"]


def test_tables_of_lookups_are_integers():
    table = np.random.default_rng(0).random((4, 9, 9, 9), np.float32) * 2 - 0.5
    graph = Graph("lut")
    graph.inputs, graph.outputs = ["x"], ["y"]
    graph.add(Tensor("x", DType.FLOAT, (1, 3, 8, 8)))
    for name, value in {"table": table, "step": np.float32(1 / 8)}.items():
        value = np.asarray(value, np.float32)
        graph.add(Tensor(name, DType.FLOAT, value.shape, value))
    inputs = ["table", "x", "", "", "", "step"]
    graph.nodes = [Node("tri_forward", inputs, ["y"], {}, "cus_ops", "lookup")]
    model = Model(graph, {"": 20, "cus_ops": 1})
    x = np.random.default_rng(1).random((4, 3, 8, 8), np.float32)
    result = evort_tools.quantize(model, calib=x)
    assert [n.op for n in result.model.graph.nodes] == ["QLinearTriForward"]
    assert result.sizes["weights_after"] < 0.27 * result.sizes["weights_before"]
    got, want = (Session(m).run({"x": x[:1]})["y"] for m in (result.model, model))
    assert np.abs(got - want).max() <= np.ptp(table) / 255 * 0.51
    kept = evort_tools.quantize(model, calib=x, exclude=("lookup",))
    assert [n.op for n in kept.model.graph.nodes] == ["tri_forward"]


def test_excluded_nodes_stay_in_float():
    model, found = calibrated(branches(), samples(3, 8, 8), method="minmax", exclude=("Gemm", "b"))
    assert "w5" not in found.encodings and "w2" not in found.encodings and "f" not in found.encodings
    assert sorted(found.selection.kept.values()) == ["excluded", "excluded"]
    assert sqnr(model, found, samples(3, 8, 8))["y"] > 30
    with pytest.raises(ValueError, match="nothing in the model is named 'nobody'"):
        calibrated(branches(), samples(3, 8, 8), exclude=("nobody",))


def linear(w, b=None, infinite=False):
    nodes = [node("Gemm", ["x", "w", "b"] if b is not None else ["x", "w"], ["h"], transB=1)]
    constants = {"w": w} if b is None else {"w": w, "b": b}
    if infinite:
        nodes += [node("Log", ["h"], ["l"]), node("Gemm", ["l", "v"], ["y"])]
        constants["v"] = weights(w.shape[0], 3)
    else:
        nodes += [node("Gemm", ["h", "v"], ["y"])]
        constants["v"] = weights(w.shape[0], 3)
    return onnx_model(nodes, {"x": (np.float32, ("N", w.shape[1]))}, ["y"], constants)


@pytest.mark.parametrize("method", METHODS)
def test_channels_of_zero_and_of_next_to_nothing_keep_their_bias(method):
    w, b = weights(6, 16), np.array([0.3, 1e4, 0, 2, -7, 1], np.float32)
    w[0] = w[2] = 0
    w[1] *= 1e-6  # its bias is 1e10 times its products: beyond int32 in units of those
    model, found = calibrated(linear(w, b), samples(16), method=method)
    e, x = found.encodings["w"], found.encodings["x"]
    sums = np.abs(b) / (e.scale.astype(np.float64) * x.scale)
    assert sums.max() < 2**31 and np.isfinite(e.scale).all() and (e.scale > 0).all()
    # In units of the sums the bias is at least as exact as float32, where it is more than the products.
    assert (np.abs(np.rint(sums) - sums)[[0, 1]] <= sums[[0, 1]] * 2.0**-23).all()
    assert sqnr(model, found, samples(16))["y"] > 30


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 3.5, -1e-20, 1e20])
def test_constant_inputs_give_a_sound_result(method, value):
    data = np.full((4, 16), value, np.float32)
    model, found = calibrated(linear(weights(6, 16)), data, method=method)
    assert all(np.isfinite(e.scale).all() and (e.scale > 0).all() for e in found.encodings.values())
    # mse places the end of the range to within half of a histogram's bin.
    assert sqnr(model, found, data)["y"] > 30 or value == 0


def test_tensors_with_infinities_stay_in_float():
    """Log of a negative number is NaN, of zero -inf: what reads it is no operator for integers."""
    _, found = calibrated(linear(weights(6, 16), infinite=True), samples(16), method="auto")
    assert list(found.selection.kept.values()) == ["'l' takes values that are NaN or infinite"]
    assert "w" in found.encodings and "v" not in found.encodings and "l" not in found.encodings


def test_huge_outliers_cost_least_with_auto():
    data = samples(16, count=64)
    data[3, 2] = 1e4
    _, found = calibrated(linear(weights(6, 16)), data, method="auto")
    assert found.ratios["auto"] <= 1.02 * min(found.ratios.values())
    assert found.ratios["minmax"] > 0 and np.isfinite(list(found.ratios.values())).all()


@pytest.mark.parametrize("activations", ["uint8", "int8", "int8-symmetric", "int16"])
def test_kinds_of_activations(activations):
    model, found = calibrated(branches(), samples(3, 8, 8), method="minmax", activations=activations)
    # int16 leaves the error of the 8-bit weights alone.
    assert sqnr(model, found, samples(3, 8, 8))["y"] > (38 if activations == "int16" else 28)


def mnist():
    digits = np.load(ROOT / "models" / "mnist_500.npz")
    return (digits["images"][:, None] / np.float32(255)).astype(np.float32), digits["labels"]


@pytest.mark.parametrize("method", METHODS)
def test_lenet_loses_at_most_one_digit_in_500(method):
    images, labels = mnist()
    model, found = calibrated(ROOT / "models" / "lenet.onnx", images[:64], method=method)
    right = []
    for each in (model, fake_quantized(model, found.encodings)):
        out = Session(each).run({"image": images})["logits"]
        right.append(int((out.argmax(1) == labels).sum()))
    assert right[1] >= right[0] - (3 if method == "moving-average" else 1)


def test_memory_does_not_grow_with_the_samples():
    peaks = []
    for count in (10, 200):
        model = convert_model(branches())
        rng = np.random.default_rng(0)
        made = [rng.normal(size=(1, 3, 8, 8)).astype(np.float32) for _ in range(10)]
        data = open_calibration(lambda made=made, count=count: (made[i % 10] for i in range(count)), model.graph)
        settings = Settings(method="mse")
        calibrate(model, open_calibration(made, model.graph), settings)  # imports and plans
        tracemalloc.start()
        calibrate(model, data, settings)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The activations of 190 more samples would be 190 * 8 kB.
    assert peaks[1] < 1.05 * peaks[0] + 20_000


def test_the_float_model_is_not_changed():
    model = convert_model(branches())
    before = evort.etm.write(model)
    found = calibrate(model, open_calibration(samples(3, 8, 8), model.graph), Settings())
    fake_quantized(model, found.encodings)
    assert evort.etm.write(model) == before


def test_an_output_that_is_another_output_seen_in_another_shape():
    # Such an output is copied at the end of a run, by a step that the observing plan has, too.
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Relu", ["a"], ["y"]), node("Flatten", ["y"], ["flat"])]
    x = samples(3, 6, 6)
    onnx = onnx_model(nodes, {"x": (np.float32, x[:1].shape)}, ["y", "flat"], {"w": weights(4, 3, 3, 3)})
    result = evort_tools.quantize(onnx, calib={"x": x}, prefer="size")
    got = Session(result.model).run({"x": x[:1]})
    assert result.integer_nodes and got["flat"].tobytes() == got["y"].tobytes()


def test_a_model_in_stages_gives_what_it_gives_as_a_whole():
    """Tensors that later stages read, residuals among them, are handed on."""
    model = convert_model(branches())
    graph = model.graph
    x = samples(1, 3, 8, 8)[0]
    names = [o for n in graph.nodes for o in n.outputs]
    whole = Capture(model, names)
    want = whole.run({"x": x})
    assert len(whole._stages) == 1
    for limit in (1, 1500, 3000):
        parts = Capture(model, names, limit=limit)
        got = parts.run({"x": x})
        assert len(parts._stages) > 1 and got.keys() == want.keys()
        assert sorted(n.outputs[0] for s in parts._stages for n in s.session.model.graph.nodes) == sorted(
            n.outputs[0] for n in graph.nodes
        )  # each node runs once
        for name in names:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)
    groups = [["x", names[-1]], [names[0]], [names[0], names[1]]]
    found = dict(Capture(model, {n for g in groups for n in g}, limit=1).together({"x": x}, groups))
    assert {i: set(v) for i, v in found.items()} == {i: set(g) for i, g in enumerate(groups)}
    np.testing.assert_array_equal(found[0]["x"], x)


def test_a_window_of_a_large_image_tells_the_ranges_that_the_whole_tells(monkeypatch):
    """Of operators that look at neighbours alone; others are given all that they read."""
    model = convert_model(branches())
    data = open_calibration(samples(3, 8, 8), model.graph)
    whole = calibrate(model, data, Settings())
    monkeypatch.setattr(auto, "_WINDOW", 64)
    monkeypatch.setattr(auto, "_SIDE", 3)
    seen = []
    window = auto.Probe.window
    monkeypatch.setattr(auto.Probe, "window", lambda *a: seen.append(window(*a)) or seen[-1])
    part = calibrate(model, data, Settings())
    assert {v.shape[2:] for given in seen for v in given.values()} >= {(5, 5), (3, 3)}
    assert sqnr(model, part, data)["y"] > sqnr(model, whole, data)["y"] - 1.0
