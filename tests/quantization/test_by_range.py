"""Embeddings and recurrent layers in the static scheme."""

from __future__ import annotations

import numpy as np
import pytest

import evort
import evort_tools
from evort.graph import Graph, Model, Node, Tensor
from evort.session import Session
from evort.types import DType
from evort_tools.quantization.latency import Profile
from evort_tools.quantization.layers import compare
from evort_tools.quantization.trials import Judge

FAST = {"method": "minmax", "equalize": "off", "adaround": "off", "bias_correction": "off"}


def model() -> Model:
    """y = GRU(LSTM(embedded x)) P, of tokens [T, N]."""
    rng = np.random.default_rng(0)
    g = Graph("recurrent")

    def constant(name: str, *shape: int) -> None:
        value = rng.normal(size=shape).astype(np.float32) / np.float32(np.sqrt(shape[-1]))
        g.add(Tensor(name, DType.FLOAT, shape, value))

    g.add(Tensor("x", DType.INT64, ("T", "N")))
    for name, *shape in (("table", 100, 32), ("lw", 1, 128, 32), ("lr", 1, 128, 32), ("gw", 1, 96, 32),
                         ("gr", 1, 96, 32), ("p", 32, 16)):  # fmt: skip
        constant(name, *shape)
    g.add(Tensor("one", DType.INT64, (1,), np.array([1], np.int64)))
    g.nodes = [
        Node("Gather", ["table", "x"], ["e"], name="embed"),
        Node("LSTM", ["e", "lw", "lr"], ["l4"], {"hidden_size": 32}, name="lstm"),
        Node("Squeeze", ["l4", "one"], ["l"]),
        Node("GRU", ["l", "gw", "gr"], ["g4"], {"hidden_size": 32}, name="gru"),
        Node("Squeeze", ["g4", "one"], ["g"]),
        Node("MatMul", ["g", "p"], ["y"], name="project"),
    ]
    g.inputs, g.outputs = ["x"], ["y"]
    return Model(g, {"": 22})


def tokens(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.integers(0, 100, (7, 2))} for _ in range(count)]


def operators(made: Model) -> dict[str, str]:
    return {n.name: n.op for n in made.graph.nodes if n.name}


def test_static_has_integer_weights():
    real = model()
    result = evort_tools.quantize(real, calib=tokens(8), prefer="size", **FAST)
    assert operators(result.model) == {
        "embed": "GatherBlockQuantized", "lstm": "DynamicQuantizeLSTM", "gru": "DynamicQuantizeGRU",
        "project": "QLinearMatMul",
    }  # fmt: skip
    assert not result.kept and {row["name"] for row in result.layers} >= {"embed", "lstm", "gru", "project"}
    assert result.sizes["weights_after"] < 0.3 * result.sizes["weights_before"]
    test = tokens(9)[-1]
    got, wanted = evort.load(result.to_bytes()).run(test)["y"], Session(real).run(test)["y"]
    assert np.square(got - wanted).sum() < 1e-3 * np.square(wanted).sum()


def test_what_is_excluded_or_slower_stays_in_float(tmp_path):
    real = model()
    result = evort_tools.quantize(real, calib=tokens(4), prefer="size", exclude=("lstm", "Gather"), **FAST)
    assert operators(result.model) == {
        "embed": "Gather", "lstm": "LSTM", "gru": "DynamicQuantizeGRU", "project": "QLinearMatMul",
    }  # fmt: skip
    assert list(result.kept.values()) == ["excluded", "excluded"]
    times = {n.outputs[0]: {"float32": 10.0, "int8": 30.0 if n.op == "LSTM" else 5.0} for n in real.graph.nodes}
    nodes = {n.outputs[0]: (n.label(), n.op) for n in real.graph.nodes}
    Profile(times, nodes, {}, {}).write(tmp_path / "p.json")
    result = evort_tools.quantize(real, calib=tokens(4), profile=str(tmp_path / "p.json"), **FAST)
    assert operators(result.model)["lstm"] == "LSTM" and operators(result.model)["gru"] == "DynamicQuantizeGRU"
    assert result.kept == {"LSTM 'lstm'": "faster in float: 10.0 µs; 30.0 µs in integers"}


@pytest.mark.parametrize(("drop", "operator"), [("20dB", "DynamicQuantizeLSTM"), ("80dB", "LSTM")])
def test_a_limit_on_the_loss_holds(drop, operator):
    result = evort_tools.quantize(model(), calib=tokens(8), prefer="size", max_drop=drop, **FAST)
    assert operators(result.model)["lstm"] == operator
    assert result.loss["loss"] <= result.loss["limit"]


def test_weights_that_are_not_finite_stay_in_float():
    real = model()
    real.graph.tensors["table"].data[99] = np.nan
    feeds = [{"x": s["x"] % 99} for s in tokens(4)]
    result = evort_tools.quantize(real, calib=feeds, prefer="size", **FAST)
    assert operators(result.model)["embed"] == "Gather" and operators(result.model)["lstm"] == "DynamicQuantizeLSTM"


def between() -> Model:
    """y = Conv(Sin x), global maximum: a product that reads and gives float32, and does not bear what is cut off."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(64, 32, 3)).astype(np.float32)
    g = Graph("between")
    g.add(Tensor("x", DType.FLOAT, (1, 32, 256)))
    g.add(Tensor("w", DType.FLOAT, w.shape, w))
    g.nodes = [Node("Sinh", ["x"], ["s"]), Node("Conv", ["s", "w"], ["c"]), Node("Cosh", ["c"], ["y"])]
    g.inputs, g.outputs = ["x"], ["y"]
    return Model(g, {"": 22})


def test_a_product_between_operators_in_float_takes_the_range_of_each_run():
    rng = np.random.default_rng(2)
    seen = [{"x": rng.normal(size=(1, 32, 256)).astype(np.float32) / 4} for _ in range(16)]
    plain = {key: value for key, value in FAST.items() if key != "method"} | {"prefer": "size"}
    result = evort_tools.quantize(between(), calib=seen, **plain)
    assert [n.op for n in result.model.graph.nodes] == ["Sinh", "DynamicQuantizeConv", "Cosh"]
    assert not result.kept and [row["operator"] for row in result.layers] == ["Conv"]
    # What calibration has not seen is not cut off.
    further = {"x": np.float32(3) * seen[0]["x"]}
    wanted, got = (np.arccosh(Session(m).run(further)["y"]) for m in (between(), result.model))
    assert np.linalg.norm(got - wanted) < 0.03 * np.linalg.norm(wanted)
    # A report says what the layer costs by itself: here all that there is.
    [layer] = [found for found in compare(between(), result.model, {}, seen) if found.after == "DynamicQuantizeConv"]
    assert layer.alone.ratio == layer.accumulated.ratio > 0
    calibrated = evort_tools.quantize(between(), calib=seen, **plain, method="minmax")
    assert [n.op for n in calibrated.model.graph.nodes] == ["Sinh", "QLinearConv", "Cosh"]


def test_products_have_calibrated_ranges_where_that_is_better_for_the_whole_model(monkeypatch):
    rng = np.random.default_rng(2)
    seen = [{"x": rng.normal(size=(1, 32, 256)).astype(np.float32) / 4} for _ in range(16)]
    plain = {key: value for key, value in FAST.items() if key != "method"} | {"prefer": "size"}
    ratios = []

    def operators_of(noise: float) -> list[str]:
        def of_integers(judge: Judge, made: Model) -> float:
            by_range = any(node.op == "DynamicQuantizeConv" for node in made.graph.nodes)
            ratios.append(Judge.real(judge, made))
            return noise if by_range else 1.0

        monkeypatch.setattr(Judge, "of_integers", of_integers)
        return [n.op for n in evort_tools.quantize(between(), calib=seen, **plain).model.graph.nodes]

    monkeypatch.setattr(Judge, "real", Judge.of_integers, raising=False)
    assert operators_of(1.05) == ["Sinh", "DynamicQuantizeConv", "Cosh"]
    assert operators_of(1.2) == ["Sinh", "QLinearConv", "Cosh"]
    assert len(ratios) == 4 and all(0 < ratio < 1 for ratio in ratios)
