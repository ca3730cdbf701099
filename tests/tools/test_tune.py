"""`evort tune`: every kernel that can be chosen computes the same, choices go through the file to the planner, and what
does not apply changes nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support import ROOT, drivers_of, make_model, node_model, run_node

import evort
from evort import etm, tuning
from evort._kernels import core
from evort.graph import Model, Node
from evort.session import Session
from evort.types import DType
from evort_tools import tune
from evort_tools.cli import main

RNG = np.random.default_rng(0)
LENET = str(ROOT / "models/lenet.etm")


def floats(*shape: int) -> np.ndarray:
    return RNG.uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture
def use_isa():
    yield core.select_isa
    core.select_isa()


def with_record(model: Model, tuned: tuning.Tuned, cpu: str | None = None) -> Model:
    metadata = {tuning.PREFIX + (cpu or tuning.cpu_name()): tuning.render(tuned, ["threads 1"])}
    return Model(model.graph, model.opsets, metadata, model.producer, model.bounds)


CONVOLUTIONS = {
    # shapes of x and w, attributes: the kernels that take it
    "3x3": ((2, 5, 13, 11), (16, 5, 3, 3), {"pads": [1, 1, 1, 1]}, "winograd direct direct_lanes im2col"),
    "5x5": ((2, 5, 13, 11), (16, 5, 5, 5), {"pads": [2, 2, 1, 2]}, "winograd_line direct direct_lanes im2col"),
    "many": ((1, 24, 9, 9), (80, 24, 3, 3), {"pads": [1, 0, 1, 2]}, "winograd direct direct_lanes im2col"),
    "strided": ((1, 7, 10, 33), (6, 7, 3, 2), {"strides": [2, 3], "dilations": [1, 2]}, "direct im2col"),
    "grouped": ((1, 8, 6, 7), (12, 4, 3, 3), {"group": 2}, "winograd direct im2col"),
    "pointwise": ((1, 40, 9, 8), (48, 40, 1, 1), {}, "direct direct_lanes pointwise"),
    "few": ((2, 9, 4), (5, 9, 3), {"pads": [1, 0]}, "few direct im2col"),
    "depthwise": ((1, 6, 9, 12), (12, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}, "depthwise winograd direct im2col"),
    "volume": ((1, 3, 5, 6, 7), (16, 3, 3, 3, 3), {"pads": [1] * 6}, "winograd direct direct_lanes im2col"),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("isa", core.available_isas())
def test_every_kernel_of_a_convolution_computes_the_same(name, residual, isa, use_isa):
    use_isa(isa)
    x, w, attrs, kernels = CONVOLUTIONS[name]
    values = [floats(*x), floats(*w), floats(w[0])]
    attrs = {**attrs, "activation": "HardSwish"}
    want = run_node("Conv", values, attrs, device="reference")[0]
    if residual:
        values.append(floats(*want.shape))
        want = run_node("Conv", values, attrs, device="reference")[0]
    model = node_model("Conv", values, attrs, constants=(1, 2))
    base = Session(model, threads=1)
    feeds = {f"in{i}": v for i, v in enumerate(values) if i not in (1, 2)}
    base.run(feeds)
    (layer,) = tune.found_layers(base.plans())
    expected = {f"conv.{k}_f32" for k in kernels.split() if not (residual and k in ("direct_lanes", "winograd_line"))}
    assert set(layer.kernels) == expected
    # Of sums of k products of numbers in [-1, 1]; Winograd's transforms lose a digit (tests/ops/test_conv_winograd.py).
    k = int(np.prod(w[1:]))
    for kernel in layer.kernels:
        for threads in (1, 2):
            session = Session(with_record(model, {layer.key: kernel}), threads=threads)
            got = session.run(feeds)["out0"]
            assert drivers_of(session) == [kernel]
            most = (16 if "winograd" in kernel else 1) * (k + 8) * np.finfo(np.float32).eps
            np.testing.assert_allclose(got, want, rtol=0, atol=most * 2)


@pytest.mark.parametrize("isa", core.available_isas())
def test_regions_with_channels_last_are_left_as_a_whole(isa, use_isa):
    """Two integer convolutions and a pool between them, whose windows overlap, so that it is no part of the first: with
    channels first they give the same integers."""
    constants = {
        "s": np.float32(0.1), "z": np.uint8(3), "sw": np.float32(0.02), "zw": np.int8(0),
        **{w: RNG.integers(-127, 128, (16, 16, 3, 3)).astype(np.int8) for w in ("w0", "w1")},
    }  # fmt: skip
    nodes = [
        Node("QLinearConv", ["x", "s", "z", "w0", "sw", "zw", "s", "z"], ["a"], {"pads": [1, 1, 1, 1]}),
        Node("MaxPool", ["a"], ["b"], {"kernel_shape": [3, 3], "strides": [2, 2]}),
        Node("QLinearConv", ["b", "s", "z", "w1", "sw", "zw", "s", "z"], ["y"], {"pads": [1, 1, 1, 1]}),
    ]
    model = make_model(
        nodes, {"x": (DType.UINT8, (1, 16, 12, 12))}, ["y"], {k: np.asarray(v) for k, v in constants.items()}
    )
    use_isa(isa)
    base = Session(model, threads=1)
    x = RNG.integers(0, 256, (1, 16, 12, 12)).astype(np.uint8)
    want = base.run({"x": x})["y"]
    layers = tune.found_layers(base.plans())
    if not core.channels_last():
        assert all(layer.region < 0 for layer in layers)
        return
    assert {layer.region for layer in layers} != {-1}
    chosen = {layer.key: layer.kernels[1] for layer in layers if len(layer.kernels) > 1}
    assert set(chosen.values()) == {"qconv.linear"}
    session = Session(with_record(model, chosen), threads=1)
    np.testing.assert_array_equal(session.run({"x": x})["y"], want)
    assert {"qconv.linear", "pooling.pool"} <= set(drivers_of(session))
    assert not any(out.channels_last for plan in session.plans() for step in plan.steps for out in step.call.outs)


def test_the_command_writes_what_the_planner_follows(tmp_path, capsys, monkeypatch):
    out = tmp_path / "tuned.etm"
    assert main(["tune", LENET, "-o", str(out), "--seconds", "0.05", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cpu"] == tuning.cpu_name() and told["threads"] == 1 and told["before_ms"] >= told["after_ms"] > 0
    assert {x["layer"] for x in told["layers"]} == {"relu1", "relu2"}
    session = evort.load(out, threads=1)
    assert session.tuned == {(x["layer"], tuple(x["output"])): x["winner"] for x in told["layers"]}
    x = np.zeros((1, 1, 28, 28), np.float32)
    np.testing.assert_allclose(session(x), evort.load(LENET, threads=1)(x), atol=1e-4)
    # A second processor's record joins the first.
    monkeypatch.setenv("EVORT_CPU", "another")
    assert evort.load(out, threads=1).tuned is None
    assert main(["tune", str(out), "-o", str(out), "--seconds", "0.05"]) == 0
    assert "of 2 layers" in capsys.readouterr().out
    assert set(tuning.records(evort.load(out).metadata)) == {told["cpu"], "another"}
    assert evort.load(out, threads=1).tuned.keys() == session.tuned.keys()
    assert main(["inspect", str(out), "--json"]) == 0
    rows = {row["cpu"]: row for row in json.loads(capsys.readouterr().out)["tuned"]}
    assert not rows[told["cpu"]]["here"] and rows["another"]["followed"] == 2 and rows["another"]["ignored"] == []


def test_what_does_not_apply_changes_nothing(tmp_path, capsys):
    """Other shapes, kernels that are unknown or do not take the layer, lines that are none: the cost model decides, and
    `evort inspect` says so."""
    model = etm.read(LENET).model
    plain = Session(model, threads=1)
    kernels = drivers_of(plain)
    tuned = {
        ("relu1", (1, 6, 28, 28)): "conv.quantum_f32",
        ("relu2", (1, 16, 10, 10)): "conv.winograd_f32",  # 5x5
        ("relu3", (1, 120)): "conv.direct_f32",  # a product
        ("relu1", (2, 6, 28, 28)): "conv.im2col_f32",
    }
    text = tuning.render(tuned, []) + "\nrelu1\tlots\tconv.im2col_f32\nrelu1\t\n\n\x00"
    assert tuning.parse(text) == tuned
    other = with_record(model, {})
    other.metadata[tuning.PREFIX + tuning.cpu_name()] = text
    etm.write(other, tmp_path / "m.etm")
    session = evort.load(tmp_path / "m.etm", threads=1)
    assert drivers_of(session) == kernels
    assert main(["inspect", str(tmp_path / "m.etm")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "conv.quantum_f32" in shown and "ignored" in shown


def test_names_of_processors(monkeypatch):
    monkeypatch.delenv("EVORT_CPU", raising=False)
    assert tuning.cpu_name().endswith(core.isa())
    monkeypatch.setenv("EVORT_CPU", "board 7")
    assert tuning.cpu_name() == "board 7"
    assert tuning.parse(tuning.render({("a\tb", (1,)): "k", ("c", ()): "k"}, [])) == {("c", ()): "k"}


def test_what_is_faster_beyond_noise_is_chosen():
    def decided(second: np.ndarray) -> str:
        layer = tune.Layer(("x", (1,)), "Conv", ["first", "second"])
        tune.decide([layer], {layer.key: [np.full(100, 100.0), second]})
        return layer.winner

    assert decided(np.full(100, 90.0)) == "second"
    assert decided(np.full(100, 98.0)) == "first"
    assert decided(np.r_[np.full(70, 90.0), np.full(30, 120.0)]) == "first"  # not in three rounds of four
    assert decided(np.full(100, 110.0)) == "first"


def test_bad_usage(tmp_path, capsys):
    assert main(["tune", LENET, "-o", str(tmp_path / "o.etm"), "--threads", "0"]) == 2
    assert "--threads" in capsys.readouterr().err
    assert not (tmp_path / "o.etm").exists()
