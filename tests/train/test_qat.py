"""Quantization-aware training: the trained graph and the deployed integer model give the same bits."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from onnx import helper
from support import ROOT
from tools_support import onnx_model

import evort
from evort import train
from evort.errors import InputError
from evort.graph import Tensor, with_outputs
from evort.quant import limits
from evort.session import Session
from evort.train import layers as L
from evort.types import DType
from evort_tools.cli import main
from evort_tools.convert import convert_model
from evort_tools.export import export
from evort_tools.qat import Options, qat
from evort_tools.quantization.qat_graph import weight_encoding

_RNG = np.random.default_rng(5)


def blobs(count: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Images of four classes that a small network tells apart: where the bright square is."""
    labels = _RNG.integers(0, 4, count)
    x = _RNG.normal(0, 0.3, (count, 1, 12, 12)).astype(np.float32)
    for i, k in enumerate(labels):
        x[i, 0, 6 * (k // 2) : 6 * (k // 2) + 6, 6 * (k % 2) : 6 * (k % 2) + 6] += 1
    return x, labels


X, Y = blobs()


def network(kind: str):
    """A float model as the converter leaves it, trained a little."""
    if kind == "separable":
        layers = [L.Conv2d(1, 8, 3, padding=1, bias=False), L.BatchNorm(8), L.Relu()]
        layers += [
            L.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False),
            L.BatchNorm(8),
            L.Relu(),
            L.Conv2d(8, 12, 1),
            L.Relu(),
        ]
        layers += [L.GlobalAvgPool(), L.Flatten(), L.Linear(12, 4)]
        model = L.sequential(("N", 1, 12, 12), *layers, seed=2, input="x", output="y")
    elif kind == "plain":
        layers = [L.Conv2d(1, 6, 5, padding=2), L.Relu(), L.MaxPool(2), L.Conv2d(6, 16, 3, padding=1), L.Relu()]
        layers += [L.MaxPool(2), L.Flatten(), L.Linear(144, 16), L.Relu(), L.Linear(16, 4)]
        model = L.sequential(("N", 1, 12, 12), *layers, seed=2, input="x", output="y")
    elif kind in ("table", "float beside"):
        # A function by table, a sum and a product of two tensors, averages, Concat, a gate; Softsign stays in float,
        # and what reads it with it.
        act = "Erf" if kind == "table" else "Softsign"
        build = L.Builder(seed=2)
        h = build.emit(act, [L.Conv2d(1, 8, 3, padding=1)(build.input("x", ("N", 1, 12, 12)))])
        h = L.MaxPool(2)(h) + L.AvgPool(2)(h)
        h = h * build.emit("Sigmoid", [L.Conv2d(8, 8, 1)(h)])
        h = (L.Conv2d(8, 8, 3, padding=1)(h) + h).relu()
        h = build.emit("Concat", [h, build.emit("Gelu", [L.MaxPool(3, 1, 1)(h)])], {"axis": 1})
        h = build.emit("Swish", [L.Conv2d(16, 8, 3, stride=2, padding=1)(h)])
        h = h * build.emit("HardSigmoid", [L.Conv2d(8, 8, 1)(L.GlobalAvgPool()(h))])
        model = build.model(y=L.Linear(8, 4)(L.Flatten()(L.GlobalAvgPool()(h))))
    else:  # residual
        build = L.Builder(seed=2)
        h = L.Conv2d(1, 8, 3, padding=1)(build.input("x", ("N", 1, 12, 12))).relu()
        h = (L.Conv2d(8, 8, 3, padding=1)(h) + h).relu()
        h = L.HardSwish()(L.Conv2d(8, 8, 3, stride=2, padding=1)(h))
        model = build.model(y=L.Linear(288, 4)(L.Flatten()(h)))
    t = train.Trainer(model, train.CrossEntropy(), train.Adam(1e-2), threads=1)
    t.fit(train.Batches(X, Y, batch_size=32), 15 if kind == "separable" else 3)
    return convert_model(export(t.model()).SerializeToString())


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("kind", ["plain", "separable"])
def test_the_trained_graph_gives_the_bits_of_the_integer_model(kind, bits, tmp_path):
    """Float sums of whole numbers below 2^24 are exact, so nothing may differ: not the outputs, which are sums in
    units of a scale, and so no integer on the way."""
    real = network(kind)
    layers = {"Gemm": 8} if bits == 2 else {}
    result = qat(
        real, {"x": X, "labels": Y}, tmp_path / "m.etm", bits=bits, layers=layers, epochs=2, threads=1, batch_size=32
    )
    assert len(result.history.rows) == 2
    session = evort.load(tmp_path / "m.etm", threads=2)
    ops = {step.call.node.op for plan in session.plans() for step in plan.steps}
    session(X[:64])
    ops |= {step.call.node.op for plan in session.plans() for step in plan.steps}
    integers = {"QLinearConv", "QLinearConvMaxPool", "QLinearMatMul", "QLinearGlobalAveragePool", "MaxPool", "Flatten"}
    assert ops <= integers | {"QuantizeLinear"}
    for x in (X[:64], _RNG.normal(0, 2, (32, 1, 12, 12)).astype(np.float32)):
        np.testing.assert_array_equal(session(x), Session(result.trained, threads=1)(x))


def compared_integers(result: Any, x: np.ndarray) -> int:
    """Holds every quantized tensor of the deployed graph to the training graph's; how many there were."""
    integers = [
        n for node in result.model.graph.nodes for n in node.outputs
        if n in result.graph.integers and n not in result.model.graph.outputs
    ]  # fmt: skip
    trained = with_outputs(result.trained, [result.graph.integers[n] for n in integers])
    for name in integers:
        result.model.graph.tensors.setdefault(name, Tensor(name, DType.UINT8, None))
    deployed = with_outputs(result.model, integers)
    mine, theirs = Session(trained, threads=1).run({"x": x}), Session(deployed, threads=1).run({"x": x})
    integers = [name for name in integers if theirs[name].dtype != np.float32]  # others are left in float
    for name in integers:
        zero = result.graph.found.encodings[name].zero_point.astype(np.float32)
        np.testing.assert_array_equal(mine[result.graph.integers[name]] + zero, theirs[name].astype(np.float32), name)
    return len(integers)


def test_whole_numbers_inside_are_those_of_the_integer_operators():
    result = qat(network("plain"), {"x": X, "labels": Y}, epochs=1, threads=1, distill=0.0)
    assert compared_integers(result, X) >= 4


@pytest.mark.parametrize("kind", ["residual", "table", "float beside"])
def test_residuals_tables_sums_and_averages_give_the_same_bits(kind):
    """Outputs, and the integers of every tensor that the deployed model has in integers."""
    result = qat(network(kind), {"x": X, "labels": Y}, epochs=1, threads=1, batch_size=32)
    ops = {node.op for node in result.model.graph.nodes}
    assert kind != "table" or ops >= {"Lookup", "QLinearAdd", "QLinearMul", "QLinearAveragePool"}
    x = np.concatenate([X, _RNG.normal(0, 2, (128, 1, 12, 12)).astype(np.float32)])
    trained, deployed = Session(result.trained, threads=1), Session(result.model, threads=2)
    np.testing.assert_array_equal(deployed(x), trained(x))
    assert compared_integers(result, x) >= (4 if kind == "residual" else 2)


def test_training_wins_back_what_few_bits_lose_and_scales_are_frozen():
    real = network("separable")
    base = (Session(real)(X).argmax(1) == Y).mean()
    result = qat(
        real, {"x": X, "labels": Y}, bits=2, epochs=6, lr=2e-3, threads=1, validation={"x": X, "labels": Y},
        freeze_after=0.5,
    )  # fmt: skip
    assert result.before["accuracy"] < base - 0.02
    assert result.after["accuracy"] > base - 0.5 * (base - result.before["accuracy"])
    assert result.sizes["after"] < 0.5 * result.sizes["before"]


def test_gradients_of_scales_are_those_of_lsq():
    """d/ds of s * round(clip(x/s)): round(v) - v inside, the bound outside (Esser et al., equation 3)."""
    from evort.graph import Graph, Model, Node, Tensor
    from evort.types import Spec

    x, s = np.array([0.31, -0.2, 5.0, -7.0, 0.05], np.float32), np.array([0.1], np.float32)
    graph = Graph()
    for name, value in {"x": x, "s": s}.items():
        graph.inputs.append(graph.add(Tensor(name, DType.FLOAT, value.shape)))
    low, high = limits(DType.INT4, True)
    for name, value in (("low", low), ("high", high)):
        graph.add(Tensor(name, DType.FLOAT, (), np.array(value, np.float32)))
    graph.nodes = [
        Node("Div", ["x", "s"], ["v"]), Node("Clip", ["v", "low", "high"], ["c"]),
        Node("RoundThrough", ["c"], ["n"], None, "evort"), Node("Mul", ["n", "s"], ["y"]),
        Node("ReduceSum", ["y"], ["loss"], {"keepdims": 0}),
    ]  # fmt: skip
    g = train.trace(graph, {n: Spec(DType.FLOAT, v.shape) for n, v in (("x", x), ("s", s))})
    found = train.differentiate(g, "loss", ["x", "s"])
    out = Graph()
    out.nodes, out.inputs, out.outputs = g.nodes, graph.inputs, [found["x"], found["s"]]
    out.tensors = dict(graph.tensors)
    for name, value in g.constants.items():
        out.add(Tensor(name, g.specs[name].dtype, value.shape, value))
    got = Session(Model(out), threads=1).run({"x": x, "s": s})
    v = (x / s).astype(np.float64)
    inside = (v > low) & (v < high)
    np.testing.assert_allclose(got[found["x"]], inside, atol=1e-6)
    expected = np.where(inside, np.rint(v) - v, np.clip(v, low, high)).sum()
    np.testing.assert_allclose(got[found["s"]], [expected], rtol=1e-5)


def test_weights_of_few_bits_take_the_scale_of_least_error():
    w = _RNG.normal(size=(5, 40)).astype(np.float32)
    for bits, dtype in ((4, DType.INT4), (2, DType.INT2)):
        best = weight_encoding(w, 0, bits)
        plain = type(best).of_weights(w, 0, dtype)
        errors = [np.square(e.fake(w) - w).sum(1) for e in (best, plain)]
        assert (errors[0] <= errors[1]).all() and errors[0].sum() < 0.9 * errors[1].sum()
        assert set(np.unique(best.quantize(w))) <= set(range(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1)))


def test_the_command(tmp_path, capsys):
    with np.load(ROOT / "models/mnist_500.npz") as file:
        np.savez(tmp_path / "d.npz", image=file["images"][:200, None], labels=file["labels"][:200])
    out, data = tmp_path / "o.etm", str(tmp_path / "d.npz")
    arguments = [
        "qat", str(ROOT / "models/lenet.onnx"), "--data", data, "--validation", data, "-o", str(out), "--epochs", "1",
        "--scale", "0.00392157", "--bits", "4", "--layer", "conv1=8", "--layer", "fc3=8", "--threads", "1", "--json",
    ]  # fmt: skip
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["after"]["accuracy"] > 0.97
    assert found["sizes"]["file"] == out.stat().st_size < 45_000


def test_what_is_refused(tmp_path):
    real = network("plain")
    with pytest.raises(InputError, match="targets"):
        qat(real, {"x": X})
    with pytest.raises(ValueError, match="2, 4 or 8 bits"):
        Options(bits=3)
    with pytest.raises(InputError):
        qat(real, {"x": X, "labels": Y[:-1]}, tmp_path / "m.etm")
    assert not list(tmp_path.iterdir())


def test_products_of_attention_are_trained():
    """Written out, as exporters do: both are integers in the model deployed, with the numbers that were trained."""
    rng = np.random.default_rng(5)
    node = helper.make_node
    nodes = [
        *(node("MatMul", ["x", f"w{n}"], [n]) for n in "qkv"),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["scores"]),
        node("Mul", ["scores", "factor"], ["scaled"]),
        node("Softmax", ["scaled"], ["p"], axis=-1),
        node("MatMul", ["p", "v"], ["heads"]),
        node("MatMul", ["heads", "wo"], ["joined"]),
        node("ReduceMean", ["joined", "axes"], ["logits"], keepdims=0),
    ]
    constants = {f"w{n}": (rng.normal(size=(16, 16)) / 4).astype(np.float32) for n in "qkvo"}
    constants |= {"factor": np.array(0.25, np.float32), "axes": np.array([1])}
    model = onnx_model(nodes, {"x": (np.float32, ("N", 8, 16))}, ["logits"], constants)
    x = rng.normal(size=(64, 8, 16)).astype(np.float32)
    labels = x.mean(axis=(1, 2)).argsort().argsort() % 16
    result = qat(model, {"x": x, "labels": labels}, epochs=1, threads=1, distill=0.0, batch_size=32)
    written = {n.outputs[0]: n.op for n in result.model.graph.nodes}
    assert written["scores"] == written["heads"] == "QLinearMatMul"
    got, trained = (Session(m, threads=1)(x) for m in (result.model, result.trained))
    # Softmax is no sum of whole numbers: some of its results are rounded to the next one.
    assert np.square(got - trained).mean() < 1e-4 * np.square(trained).mean()
    assert "scores" in result.graph.integers and "p" in result.graph.integers
