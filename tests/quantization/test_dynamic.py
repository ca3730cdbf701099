"""The dynamic scheme on models: which layers change, what it costs."""

import numpy as np
import pytest
from support import ROOT, drivers_of, make_model

from evort.graph import Model, Node
from evort.session import Session
from evort.types import DType
from evort_tools.quantization.dynamic import DynamicOptions, dynamic
from evort_tools.quantization.weights import snr

rng = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def network() -> Model:
    nodes = [
        Node("Gather", ["table", "ids"], ["e"], name="embed"),
        Node("LSTM", ["e", "lw", "lr", "lb"], ["l4"], {"hidden_size": 32, "direction": "bidirectional"}, name="lstm"),
        Node("Transpose", ["l4"], ["l4t"], {"perm": [0, 2, 1, 3]}),
        Node("Reshape", ["l4t", "shape3"], ["l"]),
        Node("GRU", ["l", "gw", "gr"], ["g4"], {"hidden_size": 32, "linear_before_reset": 1}, name="gru"),
        Node("Reshape", ["g4", "shape2"], ["g"]),
        Node("MatMul", ["g", "w1", "b1"], ["h"], {"activation": "Relu"}, name="up"),
        Node("Gemm", ["h", "w2", "b2"], ["i0"], {"transB": 1}, name="down"),
        Node("Reshape", ["i0", "shape4"], ["i"]),
        Node("Conv", ["i", "w3", "b3"], ["c"], {"pads": [1, 1, 1, 1]}, name="conv"),
        Node("Conv", ["c", "w4"], ["d"], {"group": 24}, name="depthwise"),
        Node("Conv", ["d", "w5"], ["y"], name="few"),
    ]
    constants = {
        "table": normal(50, 40), "lw": normal(2, 128, 40) * 0.2, "lr": normal(2, 128, 32) * 0.2, "lb": normal(2, 256),
        "gw": normal(1, 96, 64) * 0.2, "gr": normal(1, 96, 32) * 0.2, "shape3": np.array([6, 3, 64]),
        "shape2": np.array([18, 32]), "w1": normal(32, 96), "b1": normal(96), "w2": normal(64, 96),
        "b2": normal(1, 64), "shape4": np.array([-1, 4, 4, 4]), "w3": normal(24, 4, 3, 3), "b3": normal(24),
        "w4": normal(24, 1, 3, 3), "w5": normal(3, 24, 1, 1),
    }  # fmt: skip
    return make_model(nodes, {"ids": (DType.INT64, (6, 3))}, ["y"], constants)


def size(model: Model) -> int:
    return sum(t.data.nbytes for t in model.graph.tensors.values() if t.data is not None)


def run(model: Model, ids: np.ndarray) -> np.ndarray:
    return Session(model).run({"ids": ids})["y"]


IDS = rng.integers(0, 50, (6, 3))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("activations", [8, 16])
def test_8_bits(symmetric, activations):
    model = network()
    report: list[dict[str, object]] = []
    small = dynamic(model, DynamicOptions(8, symmetric, activations), report)
    assert [n.op.removeprefix("DynamicQuantize") for n in small.graph.nodes] == [
        "GatherBlockQuantized", "LSTM", "Transpose", "Reshape", "GRU", "Reshape", "MatMul", "MatMul", "Reshape", "Conv",
        "Conv", "Conv",
    ]  # fmt: skip
    kept = [n.name for n in small.graph.nodes if n.op == "Conv"]
    assert kept == ["depthwise", "few"]
    assert [row["name"] for row in report] == ["embed", "lstm", "gru", "up", "down", "conv"]
    assert all(row["snr"] > 38 for row in report)  # a normal distribution over 8 bits
    assert "numpy" not in drivers_of(Session(small, shapes={"ids": (6, 3)}))
    assert size(small) < 0.32 * size(model)
    # Eight roundings of activations at about 40 dB each, and the weights'.
    assert snr(run(model, IDS), run(small, IDS)) > 25


def test_16_bits():
    model = network()
    small = dynamic(model, DynamicOptions(16))
    assert [n.op for n in small.graph.nodes].count("DynamicQuantizeMatMul") == 2
    assert [n.op for n in small.graph.nodes].count("DynamicQuantizeConv") == 1
    assert "numpy" not in drivers_of(Session(small, shapes={"ids": (6, 3)}))
    assert snr(run(model, IDS), run(small, IDS)) > 80


def test_conv_transpose():
    w, b = normal(8, 12, 3, 3), normal(24)
    nodes = [Node("ConvTranspose", ["x", "w", "b"], ["y"], {"strides": [2, 2], "group": 2})]
    model = make_model(nodes, {"x": (DType.FLOAT, (1, 8, 5, 6))}, ["y"], {"w": w, "b": b})
    small = dynamic(model, DynamicOptions())
    assert [n.op for n in small.graph.nodes] == ["DynamicQuantizeConvTranspose"]
    x = normal(1, 8, 5, 6)
    assert snr(Session(model).run({"x": x})["y"], Session(small).run({"x": x})["y"]) > 35


def test_skips_and_refuses():
    model = network()
    small = dynamic(model, DynamicOptions(skip=lambda name: name in ("up", "lstm", "embed")))
    ops = {n.name: n.op for n in small.graph.nodes if n.name}
    assert (ops["up"], ops["lstm"], ops["embed"], ops["gru"]) == ("MatMul", "LSTM", "Gather", "DynamicQuantizeGRU")
    for bad in ({"bits": 4}, {"activations": 32}):
        with pytest.raises(ValueError):
            DynamicOptions(**bad)
    for name, layer in (("w1", "up"), ("lr", "lstm")):
        broken = network()
        broken.graph.tensors[name].data.flat[5] = np.inf
        with pytest.raises(ValueError, match=layer):
            dynamic(broken, DynamicOptions())


def test_layers_that_stay():
    nodes = [
        Node("LSTM", ["x", "w", "r"], ["y"], {"hidden_size": 8, "activations": ["Relu", "Tanh", "Tanh"]}),
        Node("MatMul", ["a", "b"], ["z"]),
        Node("Conv", ["i", "k", "", "", "s"], ["p"], {"activation": "PRelu"}),
    ]
    inputs = {
        "x": (DType.FLOAT, (2, 1, 5)), "a": (DType.FLOAT, (4, 20)), "b": (DType.FLOAT, (20, 30)),
        "i": (DType.FLOAT, (1, 2, 5, 5)),
    }  # fmt: skip
    constants = {"w": normal(1, 32, 5), "r": normal(1, 32, 8), "k": normal(20, 2, 3, 3), "s": normal(20)}
    model = make_model(nodes, inputs, ["y", "z", "p"], constants)
    assert dynamic(model, DynamicOptions()).graph.nodes == nodes


def test_zero_and_constant_channels():
    w = normal(12, 20)
    w[:, 3], w[:, 4] = 0, 1e-30
    model = make_model([Node("MatMul", ["x", "w"], ["y"])], {"x": (DType.FLOAT, (2, 12))}, ["y"], {"w": w})
    x = normal(2, 12)
    for symmetric in (True, False):
        got = Session(dynamic(model, DynamicOptions(symmetric=symmetric))).run({"x": x})["y"]
        assert np.isfinite(got).all() and not got[:, 3].any()
        assert snr(x @ w, got) > 35


def test_lenet():
    from evort_tools.convert import convert_model

    model = convert_model(ROOT / "models" / "lenet.onnx")
    with np.load(ROOT / "models" / "mnist_500.npz") as file:
        images, labels = file["images"].astype(np.float32)[:, None] / 255, file["labels"]
    right = []
    for m in (model, dynamic(model, DynamicOptions(8)), dynamic(model, DynamicOptions(16))):
        logits = Session(m).run({"image": images})["logits"]
        right.append(int((logits.argmax(1) == labels).sum()))
    assert min(right[1:]) >= right[0] - 1  # one digit of 500 is 0.2 points; the full test set is for the benchmark
