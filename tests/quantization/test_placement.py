"""What stays in float for speed: the minimum cut against all choices, profiles as files, no cast on its own."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from precision_support import branches, made_up
from support import ROOT

import evort
import evort_tools
from evort import etm
from evort._kernels import core
from evort.session import Session
from evort_tools.cli import main
from evort_tools.convert import convert_model
from evort_tools.quantization import latency, placement, static
from evort_tools.quantization.compare import expected_outputs, output_errors
from evort_tools.quantization.data import open_calibration
from evort_tools.quantization.integers import casts, integer_model
from evort_tools.quantization.latency import BESIDE, Profile
from evort_tools.quantization.placement import Costs, slower_in_integers
from evort_tools.quantization.select import PRODUCTS
from evort_tools.quantization.static import Settings, calibrate, restricted

LENET = ROOT / "models" / "lenet.onnx"
FAST = {"method": "minmax", "equalize": "off", "adaround": "off", "bias_correction": "off", "verify": False}


@pytest.fixture(scope="module")
def calibrated():
    model = convert_model(branches())
    data = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    opened = open_calibration(data, model.graph)
    return model, calibrate(model, opened, Settings(method="minmax")), opened


@pytest.mark.parametrize("seed", range(3))
def test_the_cut_is_the_best_of_all_choices(calibrated, seed):
    model, found, _ = calibrated
    profile = made_up(model, found.selection, seed, sides=seed % 3)
    costs = Costs(found.selection, profile)
    chosen = costs.total(found.selection.without(slower_in_integers(costs)))
    names = [n.outputs[0] for n in found.selection.nodes]
    light = {n.outputs[0] for n in found.selection.nodes if n.op not in PRODUCTS}
    assert len(names) == 13 and light == {"p", "bc", "gated", "sum", "t", "g"}
    every = [
        costs.total(found.selection.without(dict.fromkeys(floats, "")))
        for count in range(len(names) + 1)
        for floats in itertools.combinations(names, count)
    ]
    # Integers are preferred within 2 %, as they are smaller; the whole is never slower than in float.
    assert min(every) - 1e-6 <= chosen <= 1.02 * min(every)
    assert chosen <= profile.total() + 1e-6


def test_what_is_given_stays_in_float(calibrated):
    model, found, _ = calibrated
    costs = Costs(found.selection, made_up(model, found.selection, 1))
    forced = {"h": "because", "d": "because"}
    floats = slower_in_integers(costs, forced)
    assert {k: floats[k] for k in forced} == forced
    assert all(not found.selection.without(floats).integer(n) for n in model.graph.nodes if n.outputs[0] in forced)


@pytest.mark.parametrize("seed", range(10))
def test_no_cast_is_a_pass_of_its_own(calibrated, seed):
    """Whichever layers are in float, the graph has no node that only casts; and it computes the same."""
    model, found, data = calibrated
    rng = np.random.default_rng(seed)
    products = [n.outputs[0] for n in found.selection.nodes if n.op in PRODUCTS]
    floats = {name: "" for name in products if rng.random() < (0.15, 0.5, 0.85)[seed % 3]}
    made, _ = integer_model(model, restricted(found, floats))
    assert casts(made.graph) == []
    integer = {n.outputs[0] for n in made.graph.nodes if n.op.startswith("QLinear")}
    assert {p for p in products if p not in floats} <= integer
    assert not integer & floats.keys()
    samples = data.head(8)
    errors = output_errors(made, samples, expected_outputs(model, samples))
    assert errors["y"].sqnr > 25


def lenet_profile(slow=()):
    """A profile of LeNet in which these layers are slower as integers, and all others much faster."""
    model = convert_model(LENET)
    times = {}
    for n in model.graph.nodes:
        out = n.outputs[0]
        times[out] = {"float32": 10.0, "int8": 30.0 if out in slow else 3.0}
        if n.op in PRODUCTS:
            times[out][BESIDE] = times[out]["int8"] + 1
    nodes = {n.outputs[0]: (n.label(), n.op) for n in model.graph.nodes}
    return Profile(times, nodes, {"isa": "made up", "threads": 1}, {"image": [1, 1, 28, 28]})


@pytest.fixture(scope="module")
def digits():
    found = np.load(ROOT / "models" / "mnist_500.npz")
    return (found["images"][:16, None] / np.float32(255)).astype(np.float32)


def test_static_leaves_in_float_what_is_slower(digits, tmp_path):
    path = tmp_path / "p.json"
    lenet_profile(slow=("relu1", "relu2")).write(path)
    one, other = (
        evort_tools.quantize(LENET, tmp_path / name, calib=digits, profile=str(path), **FAST) for name in ("a", "b")
    )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert [(r["name"], r["operator"]) for r in one.layers] == [("relu3", "Gemm"), ("relu4", "Gemm"), ("fc3", "Gemm")]
    assert one.kept == {f"Conv 'relu{i}'": "faster in float: 10.0 µs; 30.0 µs in integers" for i in (1, 2)}
    # Two convolutions, two pools and the Flatten between the last and a Gemm in float; that Gemm has a side in float.
    assert one.latency == {"float32_us": 80.0, "predicted_us": 5 * 10 + 3 * 3 + 1 / 2, "profile": str(path)}
    noted = json.loads(etm.read(tmp_path / "a").model.metadata["evort.quantization"])
    assert noted["float"] == ["relu1", "relu2"] and noted["isa"] == "made up"
    assert evort.load(tmp_path / "a").run({"image": digits})["logits"].shape == (16, 10)
    size = evort_tools.quantize(LENET, calib=digits, prefer="size", **FAST)
    assert not size.kept and "evort.quantization" not in size.model.metadata and not size.latency
    assert len(size.to_bytes()) < len(other.to_bytes())


def test_time_is_weighed_against_room(digits):
    """Of two layers that win as much in float, the one with many weights stays in integers; and so for all times that
    scatter by some percent."""
    model = convert_model(LENET)
    found = calibrate(model, open_calibration(digits, model.graph), Settings(method="minmax"))
    rng = np.random.default_rng(0)
    for _ in range(10):
        profile = lenet_profile()
        for layer, times in profile.times.items():
            if layer in ("relu1", "relu3"):  # 150 and 48,000 of 61,000 weights
                times |= {"int8": 16.0, BESIDE: 17.0}
            if BESIDE not in times:  # no product: on either side of the cut without a cost
                times["float32"] = times["int8"]
        for times in profile.times.values():
            times |= {p: us * rng.uniform(0.96, 1.04) for p, us in times.items()}
        products = {n.outputs[0] for n in model.graph.nodes if n.op in PRODUCTS}
        assert slower_in_integers(Costs(found.selection, profile, room=0.25)).keys() & products == {"relu1"}
        assert slower_in_integers(Costs(found.selection, profile)).keys() & products == {"relu1", "relu3"}


def test_what_is_all_slower_stays_float(digits, tmp_path):
    path = tmp_path / "p.json"
    lenet_profile(slow=[n.outputs[0] for n in convert_model(LENET).graph.nodes]).write(path)
    found = evort_tools.quantize(LENET, calib=digits, profile=str(path), **FAST)
    assert found.layers == [] and len(found.kept) == 5 and found.latency["predicted_us"] == 80.0


def test_measured_profile_and_its_file(tmp_path, capsys):
    path = tmp_path / "p.json"
    assert main(["profile", str(LENET), "--precisions", "-o", str(path)]) == 0
    assert "relu2" in capsys.readouterr().out
    found = latency.read(path)
    times = found.times
    assert set(times["relu2"]) == {"float32", "float16", "int16", "int8", BESIDE, "int4"}
    assert set(times["maxpool1"]) == {"float32", "int8"} and found.inputs == {"image": [1, 1, 28, 28]}
    assert all(us > 0 for layer in ("relu1", "relu2", "relu3", "relu4") for us in times[layer].values())
    again = tmp_path / "q.json"
    found.write(again)
    assert again.read_bytes() == path.read_bytes()
    # From an .etm file, as on a device: the layers have the same names.
    evort_tools.convert(LENET, tmp_path / "m.etm")
    assert main(["profile", str(tmp_path / "m.etm"), "--precisions", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"].keys() == times.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a latency profile"),
        ('{"evort_latency_profile": 7}', "not a latency profile of version 1"),
        ('{"evort_latency_profile": 1, "machine": {}, "inputs": {}}', "damaged latency profile .KeyError: 'layers'"),
        ('{"evort_latency_profile": 1, "machine": {}, "inputs": {}, "layers": {"a": {"microseconds": 3}}}', "damaged"),
        ('{"evort_latency_profile": 1, "machine": {}, "inputs": {}, "layers": {"a": {"name": "a", "operator": "b", '
         '"microseconds": {"float32": NaN}}}}', "negative or not finite"),
        ('{"evort_latency_profile": 1, "machine": {}, "inputs": {}, "layers": {"a": {"name": "a", "operator": "b", '
         '"microseconds": {"float32": 1}}}}', "nothing on layer 'relu1'.*another model"),
    ],
)  # fmt: skip
def test_wrong_profiles(text, message, digits, tmp_path):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        evort_tools.quantize(LENET, calib=digits, profile=str(path), **FAST)


def test_times_fall_to_the_layers(calibrated):
    """All steps of an integer model are counted, for layers of the float one."""
    model, found, data = calibrated
    profile = latency.measure(model, found, data.head(1)[0])
    assert profile.times.keys() == {n.outputs[0] for n in model.graph.nodes}
    products = [n.outputs[0] for n in found.selection.nodes if n.op in PRODUCTS]
    assert all({"float32", "int8"} <= profile.times[p].keys() for p in products)
    assert any(BESIDE in profile.times[p] for p in products)
    made, _ = integer_model(model, found)
    steps = [s.call.node for s in Session(made).profile(data.head(1)[0])[0][0].steps]
    owner = {o: n.outputs[0] for n in model.graph.nodes for o in n.outputs}
    assert all(latency._layer(owner, n) is not None for n in steps)


def test_restricted_needs_no_data(calibrated):
    """Encodings of what stays in integers are those that calibration found, also where a move has to stay behind."""
    _, found, _ = calibrated
    less = static.restricted(found, {"b": "", "c": ""})
    assert set(less.encodings) < set(found.encodings) | set(found.selection.activations)
    for name, encoding in less.encodings.items():
        root = found.selection.activations.get(name, name)
        assert encoding.same(found.encodings.get(name) or found.encodings[root])


def test_a_whole_that_is_slower_goes_back_to_float(digits, monkeypatch):
    """Where layers measure faster alone and the model is not, nothing is left in integers."""
    monkeypatch.setattr(placement, "measure", lambda *_, **__: lenet_profile())
    asked = []
    monkeypatch.setattr(placement, "ratio", lambda *_: asked.append(1) or 1.5)
    found = evort_tools.quantize(LENET, calib=digits, **FAST)
    assert found.layers == [] and len(found.kept) == 5 and 1 < len(asked) <= 8
    monkeypatch.setattr(placement, "ratio", lambda *_: 0.9)
    assert len(evort_tools.quantize(LENET, calib=digits, **FAST).layers) == 8


def test_several_instruction_sets(digits, monkeypatch):
    """A layer's time is the mean of its shares with each, and the whole model counts where it does worst."""
    own, isas = core.isa(), core.available_isas()[:2]
    slow = core.available_isas()[-1]

    def measured(*_):
        factor, int8 = (10.0, 8.0) if core.isa() == slow else (1.0, 0.4)
        times = {"a": {"float32": factor, "int8": factor * int8}, "b": {"float32": 3 * factor}}
        return Profile(times, {}, {"isa": core.isa()}, {})

    monkeypatch.setattr(latency, "_measure", measured)
    monkeypatch.setattr(latency, "_ratio", lambda *_: 1.5 if core.isa() == slow else 0.5)
    both = latency.measure(None, None, {}, isas=(own, slow))
    assert both.times == {"a": {"float32": 1.0, "int8": pytest.approx(4.2)}, "b": {"float32": 3.0}} or own == slow
    assert both.machine["isa"] == f"{own}, {slow}" and core.isa() == own
    assert latency.ratio(None, None, {}, isas=(own, slow)) == 1.5 and core.isa() == own
    with pytest.raises(ValueError, match="isa: 'z80' is not one that this machine runs"):
        evort_tools.quantize(LENET, calib=digits, isa=("z80",))
    with pytest.raises(ValueError, match="a profile has been measured"):
        evort_tools.quantize(LENET, calib=digits, isa=isas, profile="p.json")
