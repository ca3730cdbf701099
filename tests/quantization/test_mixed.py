"""Mixed precision: the choice against exhaustive search, limits and pins that hold, no cast on its own, messages."""

from __future__ import annotations

import copy
import gzip
import itertools
import json

import numpy as np
import pytest
from precision_support import branches, made_up
from support import ROOT, SHARED, make_model

import evort
import evort_tools
from evort import etm
from evort.graph import Node
from evort.session import Session
from evort.types import DType
from evort_tools.cli import main
from evort_tools.convert import convert_model
from evort_tools.quantization.compare import expected_outputs, output_errors
from evort_tools.quantization.data import open_calibration
from evort_tools.quantization.integers import casts
from evort_tools.quantization.limits import latency_limit, size_limit
from evort_tools.quantization.metric import Drop, Goal
from evort_tools.quantization.options import PRECISIONS, Options
from evort_tools.quantization.placement import Costs
from evort_tools.quantization.precisions import Layer, build, layers_of, pins_of, variants
from evort_tools.quantization.search import Search, sensitivities
from evort_tools.quantization.static import Settings, calibrate

LENET = ROOT / "models" / "lenet.onnx"
# What makes the tests fast: one method, no helpers, weights rounded to nearest.
FAST = {
    "scheme": "mixed", "method": "minmax", "equalize": "off", "adaround": "off", "bias_correction": "off",
    "rounding": "nearest",
}  # fmt: skip


class Ready:
    """A model with everything that a search needs, and made-up times."""

    def __init__(self, source, data, seed=0):
        self.model = convert_model(source)
        self.data = open_calibration(data, self.model.graph)
        self.found = calibrate(self.model, self.data, Settings(method="minmax"))
        self.models = variants(self.model, PRECISIONS, Options(scheme="mixed", block=16))
        self.layers = layers_of(self.model, self.found, self.models)
        self.samples = self.data.head(4)
        self.profile = made_up(self.model, self.found.selection, seed)
        rng = np.random.default_rng(seed)
        for layer in self.layers:
            for p in sorted(layer.bytes.keys() - {"float32", "int8"}):
                for out in layer.outputs:
                    self.profile.times[out][p] = round(float(rng.uniform(1, 10)), 3)
        goal = Goal(self.model, None, None, self.samples)
        self.noise = sensitivities(self.model, self.found, self.models, self.layers, goal, False, lambda: None)[0]

    def search(self, drop=None, timed=True, pins=(), wanted=PRECISIONS):
        goal = Goal(self.model, None, None if drop is None else Drop(drop), self.samples)
        costs = Costs(self.found.selection, self.profile) if timed else None
        pinned = pins_of(self.model.graph, self.layers, pins, ())
        return Search(self.model, self.found, self.models, self.layers, self.noise, None, costs, goal, pinned, wanted)


@pytest.fixture(scope="module")
def digits():
    found = np.load(ROOT / "models" / "mnist_500.npz")
    return (found["images"][:32, None] / np.float32(255)).astype(np.float32)


@pytest.fixture(scope="module")
def lenet(digits):
    return Ready(LENET, digits)


@pytest.fixture(scope="module")
def branched():
    return Ready(branches(), np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32))


def silent(what, count):
    return lambda: None


@pytest.mark.parametrize("seed", range(12))
def test_no_cast_is_a_pass_of_its_own(branched, lenet, seed):
    """Whatever precisions stand beside each other, no node only casts, and the model computes the same."""
    ready = (branched, lenet)[seed % 2]
    rng = np.random.default_rng(seed)
    chosen = [str(rng.choice([p for p in layer.bytes if p != "int4"])) for layer in ready.layers]
    made, _ = build(ready.model, ready.found, ready.models, ready.layers, chosen)
    assert casts(made.graph) == [] and not any(n.op == "Cast" for n in made.graph.nodes)
    operators = {n.outputs[0]: n.op for n in made.graph.nodes}
    for layer, p in zip(ready.layers, chosen, strict=True):
        plain = all(operators[o] == layer.op for o in layer.outputs)
        assert plain == (p in ("float32", "float16"))
    read = {name for n in made.graph.nodes for name in n.inputs} | set(made.graph.outputs)
    assert {name for name, t in made.graph.tensors.items() if t.data is not None} <= read
    errors = output_errors(made, ready.samples, expected_outputs(ready.model, ready.samples))
    assert all(error.sqnr > 25 for error in errors.values())
    again = etm.read(etm.write(made)).model  # and its file runs
    assert output_errors(again, ready.samples, expected_outputs(made, ready.samples)).popitem()[1].noise == 0


def every_choice(ready):
    return list(itertools.product(*[list(layer.bytes) for layer in ready.layers]))


def bytes_of(ready, chosen):
    return sum(layer.bytes[p] for layer, p in zip(ready.layers, chosen, strict=True))


def noise_of(ready, chosen):
    return sum(row[p] for row, p in zip(ready.noise, chosen, strict=True))


@pytest.mark.parametrize("share", [0.18, 0.2, 0.27, 0.5, 0.9])
def test_least_noise_under_a_size_is_that_of_exhaustive_search(lenet, share):
    search = lenet.search(timed=False)
    limit = share * bytes_of(lenet, ["float32"] * 5)
    best = min(noise_of(lenet, c) for c in every_choice(lenet) if search._sum("bytes", c) <= limit)
    found = search.choose("noise", np.inf, limit)
    assert bytes_of(lenet, found) <= search._sum("bytes", found) <= limit and noise_of(lenet, found) == pytest.approx(
        best
    )


@pytest.mark.parametrize("seed", range(4))
def test_with_times_that_depend_on_neighbours_it_comes_close(digits, lenet, seed, monkeypatch):
    """Least noise under a latency that half of all choices hold, and least time under a size: at most a tenth off the
    best of all in time, and in noise the best that a tenth less time would leave."""
    ready = lenet
    monkeypatch.setattr(ready, "profile", Ready(LENET, digits[:1], seed).profile)
    search = ready.search()
    every = {c: search.time(c) for c in every_choice(ready)}
    search.limit(max_us=float(np.median(list(every.values()))))
    found = tuple(search.choose("noise", np.inf, np.inf))
    assert every[found] <= search.max_us
    held = [c for c in every if every[c] <= 0.9 * search.max_us]
    assert noise_of(ready, found) <= min(noise_of(ready, c) for c in held) + 1e-12
    search.limit(max_us=1e9)
    room = 0.3 * bytes_of(ready, ["float32"] * 5)
    found = tuple(search.choose("us", np.inf, room))
    assert every[found] <= 1.1 * min(t for c, t in every.items() if search._sum("bytes", c) <= room)


@pytest.mark.parametrize("which", ["lenet", "branched"])
def test_limits_hold(which, request):
    ready = request.getfixturevalue(which)
    whole = len(etm.write(ready.model))
    search = ready.search()
    # The file itself, names and scales included.
    search.limit(max_bytes=0.75 * whole)
    found = search.run(silent)
    assert len(etm.write(found.model)) == found.bytes <= 0.75 * whole and found.us <= search.max_us
    # The loss, measured with the model itself; and what is not limited is less than in float.
    for drop in ("25dB", "38dB"):
        search = ready.search(drop)
        search.limit()
        found = search.run(silent)
        errors = output_errors(found.model, ready.samples, expected_outputs(ready.model, ready.samples))
        noise = sum(e.ratio for e in errors.values()) / len(errors)
        assert np.sqrt(noise) == pytest.approx(found.loss) and found.loss <= search.goal.limit
        assert found.bytes < whole and found.us <= search.float_us + 1e-9
    # The latency.
    search = ready.search()
    fastest = search.fastest()
    search.limit(max_us=1.05 * fastest)
    found = search.run(silent)
    assert search.time(found.chosen) == found.us <= 1.05 * fastest < search.float_us
    # All at once.
    search = ready.search("20dB")
    search.limit(0.8 * whole, search.float_us)
    found = search.run(silent)
    assert found.bytes <= 0.8 * whole and found.us <= search.float_us and found.loss <= 0.1


def test_tighter_limits_cost_more(lenet):
    sizes = []
    for drop in ("20dB", "30dB", "45dB", "60dB", "80dB"):
        search = lenet.search(drop, timed=False)
        search.limit()
        sizes.append(search.run(silent).bytes)
    assert sizes == sorted(sizes) and sizes[0] < 0.2 * len(etm.write(lenet.model)) and sizes[-1] > 2 * sizes[0]


def test_what_cannot_be_reached_says_what_can(lenet):
    whole = len(etm.write(lenet.model))
    search = lenet.search(timed=False)
    search.limit(max_bytes=0.05 * whole)
    with pytest.raises(ValueError, match=r"max_size: 12\.\d kB cannot be reached: the smallest file is 4\d\.\d kB"):
        search.run(silent)
    search = lenet.search()
    search.limit(max_us=1.0)
    with pytest.raises(ValueError, match=r"max_latency: 0\.001 ms cannot be reached: the fastest .* take 0\.0\d+ ms"):
        search.run(silent)
    search = lenet.search()
    search.limit(0.18 * whole, 0.9 * search.float_us)
    with pytest.raises(
        ValueError, match=r"max_size and max_latency cannot be held together: 4\d\.\d kB takes at least 0\.0"
    ):
        search.run(silent)
    search = lenet.search("60dB", pins=("relu*=int4",))
    search.limit()
    with pytest.raises(ValueError, match=r"max_drop: with what is pinned .* is [\d.]+ % .* the limit is 0\.1 %"):
        search.run(silent)


def test_a_size_may_cost_time_and_says_so(lenet, monkeypatch):
    """Nothing but int4 is small enough, and all of it is slow: the size was asked for, the time was not."""
    monkeypatch.setattr(lenet.profile, "times", copy.deepcopy(lenet.profile.times))
    for layer in lenet.layers:
        for out in layer.outputs:
            lenet.profile.times[out]["int4"] = 100.0
    search = lenet.search()
    search.limit(max_bytes=0.18 * search.float_bytes)
    found = search.run(silent)
    assert found.bytes <= 0.18 * search.float_bytes and found.us > search.float_us
    assert "max_size costs time" in search.notes[0]


def test_pins_hold(branched):
    pins = ("l*=float16", "Conv=int8", "last=int4", "ra=float32")
    search = branched.search("3dB", timed=False, pins=("product=int16", "left=float32", "late=int8"))
    search.limit()
    named = dict(zip((layer.name for layer in branched.layers), search.run(silent).chosen, strict=True))
    assert (named["product"], named["left"], named["late"]) == ("int16", "float32", "int8")
    found = pins_of(branched.model.graph, branched.layers, pins, ())
    named = {branched.layers[i].name: p for i, p in found.items()}
    # Names, operators and outputs; of several that fit, the last.
    assert named["ra"] == "float32" and named["late"] == "int8" and named["last"] == "int4"
    assert pins_of(branched.model.graph, branched.layers, (), ("l*",)).keys() == {
        i for i, layer in enumerate(branched.layers) if layer.name in ("left", "late", "last")
    }


@pytest.mark.parametrize(
    ("pin", "message"),
    [
        ("nobody=int8", "no layer is named 'nobody'; the model's layers are relu1, relu2, relu3, relu4, fc3"),
        ("relu1", "should be a layer or pattern and a precision, like conv1=int8"),
        ("relu1=int7", "'int7' is not one of float32, float16, int16, int8, int4"),
    ],
)
def test_wrong_pins(pin, message, digits):
    with pytest.raises(ValueError, match=message):
        evort_tools.quantize(LENET, calib=digits, prefer="size", pin=(pin,), **FAST)


def test_a_precision_that_a_layer_does_not_have(branched):
    """A product of two activations has no weights."""
    layer = Layer(branched.model.graph.nodes[0])
    layer.outputs, layer.bytes = [branched.model.graph.nodes[0].outputs[0]], {"float32": 8, "int8": 2}
    with pytest.raises(ValueError, match=r"layer 'ra' \(Conv\) has no int4; it has float32, int8"):
        pins_of(branched.model.graph, [layer], ("ra=int4",), ())


@pytest.mark.parametrize(
    ("precision", "share", "least"), [("float16", 0.55, 60), ("int4", 0.25, 12), ("int8", 0.4, 30)]
)
def test_a_transposed_convolution_in_each_precision(precision, share, least):
    """Its floats of few bits are made by a node of their own, which goes with it."""
    rng = np.random.default_rng(0)
    up = Node("ConvTranspose", ["x", "w"], ["y"], {"strides": [2, 2]}, name="up")
    weights = rng.normal(size=(16, 32, 3, 3)).astype(np.float32)
    model = make_model([up], {"x": (DType.FLOAT, ("N", 16, 5, 5))}, ["y"], {"w": weights})
    data = rng.normal(size=(8, 16, 5, 5)).astype(np.float32)
    how = {"prefer": "size", "pin": (f"up={precision}",), "max_drop": "5dB", **FAST}
    result = evort_tools.quantize(model, calib=data, **how)
    assert result.sqnr["y"] > least
    assert result.sizes["weights_after"] < share * result.sizes["weights_before"]
    assert result.layers[0]["bytes"][precision] < share * result.layers[0]["bytes"]["float32"]


def test_the_command(digits, tmp_path, capsys):
    np.savez(tmp_path / "c.npz", image=digits)
    profile = tmp_path / "p.json"
    assert main(["profile", str(LENET), "--precisions", "-o", str(profile), "--json"]) == 0
    capsys.readouterr()
    config = tmp_path / "o.toml"
    lines = [f"{k} = {json.dumps(v)}" for k, v in FAST.items()]
    config.write_text("\n".join([*lines, 'pin = ["relu1=float32"]', f'profile = "{profile}"']))
    out, page = tmp_path / "o.etm", tmp_path / "r.html"
    arguments = ["quantize", str(LENET), "--calib", str(tmp_path / "c.npz"), "--config", str(config)]
    assert main([*arguments, "-o", str(out), "--max-size", "30%", "--json", "--report", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sizes"]["file"] == out.stat().st_size <= 0.3 * len(etm.write(convert_model(LENET)))
    rows = {row["name"]: row for row in found["layers"]}
    assert rows["relu1"]["pinned"] and rows["relu1"]["precision"] == "float32" and not rows["relu2"]["pinned"]
    assert all(row["bytes"][row["precision"]] <= row["bytes"]["float32"] for row in rows.values())
    noted = json.loads(etm.read(out).model.metadata["evort.quantization"])
    assert {name: p for p in PRECISIONS for name in noted.get(p, ())} == {n: r["precision"] for n, r in rows.items()}
    text = page.read_text()
    assert "<h2>Precisions</h2>" in text and "float32 (pinned)" in text
    # The same profile gives the same file; in Python too.
    options = {**FAST, "pin": ("relu1=float32",), "profile": str(profile), "max_size": "30%"}
    assert evort_tools.quantize(LENET, calib={"image": digits}, **options).to_bytes() == out.read_bytes()
    # Without limits: within 30 dB; a table.
    assert main([*arguments, "-o", str(out)]) == 0
    assert "precisions; alone" in capsys.readouterr().out
    got = evort.load(out).run({"image": digits})["logits"]
    want = Session(convert_model(LENET)).run({"image": digits})["logits"]
    assert np.linalg.norm(got - want) < 0.04 * np.linalg.norm(want)


def test_sensitivity_by_the_metric(digits):
    calls = []

    def closeness(run):
        calls.append(1)
        return -float(abs(run({"image": digits})["logits"].max() - 10))

    found = evort_tools.quantize(
        LENET, calib=digits, metric=closeness, max_drop="0.02", sensitivity="metric", prefer="size", **FAST
    )
    assert found.loss["loss"] <= 0.02 and len(calls) > 5 * 3
    assert all(row["metric_lost_alone"].keys() == row["noise_alone"].keys() for row in found.layers)


@pytest.mark.parametrize(
    ("call", "text", "value"),
    [
        (size_limit, "30%", 300.0), (size_limit, "200kB", 2e5), (size_limit, "1MiB", 2.0**20),
        (latency_limit, "50%", 500.0), (latency_limit, "2.5ms", 2500.0), (latency_limit, "80us", 80.0),
        (latency_limit, "1 s", 1e6),
    ],
)  # fmt: skip
def test_limits(call, text, value):
    assert call(text, 1000) == value


@pytest.mark.parametrize(("call", "text"), [(size_limit, "large"), (latency_limit, "2"), (latency_limit, "fast")])
def test_no_limits(call, text):
    with pytest.raises(ValueError, match=r"is no (size|time); write it like"):
        call(text, 1000)


def mnist(name, kind):
    folder = SHARED / "data" / "mnist"
    if not folder.is_dir():
        pytest.skip(f"MNIST is not in {folder}: the full test set cannot be run")
    with gzip.open(folder / f"{name}-{kind}-ubyte.gz") as file:
        return np.frombuffer(file.read(), np.uint8, offset=16 if kind.startswith("images") else 8)


def test_a_metric_on_mnist_holds(tmp_path):
    """LeNet loses at most 0.1 points on the first 2,000 test digits, at less than a fifth of the size."""
    images = (mnist("t10k", "images-idx3")[: 2000 * 784].reshape(-1, 1, 28, 28) / np.float32(255)).astype(np.float32)
    labels = mnist("t10k", "labels-idx1")[:2000]
    train = (mnist("train", "images-idx3")[: 64 * 784].reshape(-1, 1, 28, 28) / np.float32(255)).astype(np.float32)

    def top1(run):
        return float((run({"image": images})["logits"].argmax(1) == labels).mean())

    out = tmp_path / "o.etm"
    found = evort_tools.quantize(LENET, out, calib=train, metric=top1, max_drop="0.001", prefer="size", **FAST)
    assert top1(Session(convert_model(LENET)).run) - top1(evort.load(out).run) <= 0.001
    assert found.sizes["file"] < 0.2 * LENET.stat().st_size


def test_a_tiny_model_stays_in_float32_where_that_is_the_smallest():
    """Names and scales of integers take more than 64 weights gain."""
    w = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    nodes = [Node("MatMul", ["x", "w"], ["y"], name="only")]
    model = make_model(nodes, {"x": (DType.FLOAT, ("N", 8))}, ["y"], {"w": w})
    whole = len(etm.write(model))
    calib = {"x": np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)}
    how = {**FAST, "prefer": "size", "precisions": ("float32", "int8", "int4")}
    for limits in ({}, {"max_drop": "20dB"}, {"max_size": "100%"}):
        result = evort_tools.quantize(model, calib=calib, **how, **limits)
        assert len(result.to_bytes()) <= whole
        assert [n.op for n in result.model.graph.nodes] == ["MatMul"]
        assert limits == {"max_size": "100%"} or any("float32 is the smallest file" in note for note in result.notes)
    with pytest.raises(
        ValueError, match=r"cannot be reached: the smallest file is .*, that in float32: names and scales"
    ):
        evort_tools.quantize(model, calib=calib, max_size="50%", **how)
    # What is pinned is held all the same.
    result = evort_tools.quantize(model, calib=calib, pin=("only=int8",), **how)
    assert not result.notes
    assert [n.op for n in result.model.graph.nodes] == ["QLinearMatMul"]
