"""Targets for accuracy: the user's metric, what may be lost, and static layers that are undone until it holds."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from support import ROOT

import evort_tools
from evort.session import Session
from evort_tools.cli import main
from evort_tools.convert import convert_model
from evort_tools.quantization.metric import Drop, Goal, load

LENET = ROOT / "models" / "lenet.onnx"
FAST = {"method": "minmax", "equalize": "off", "adaround": "off", "bias_correction": "off", "verify": False}


@pytest.fixture(scope="module")
def digits():
    found = np.load(ROOT / "models" / "mnist_500.npz")
    return (found["images"][:32, None] / np.float32(255)).astype(np.float32)


METRIC = '''
import numpy as np
x = np.load({path!r})["x"]
calls = []
def closeness(run):
    """Minus the largest logit's distance from 10: a number that every rounding changes."""
    calls.append(1)
    return -float(abs(run({{"image": x}})["logits"].max() - 10))
def broken(run):
    return x["nothing"]
def nothing(run):
    return float("nan")
number = 3
'''


@pytest.fixture
def file(digits, tmp_path):
    np.savez(tmp_path / "x.npz", x=digits)
    path = tmp_path / "my_metric.py"
    path.write_text(METRIC.format(path=str(tmp_path / "x.npz")))
    return str(path)


def test_a_metric_is_a_function_of_a_file(file, digits):
    metric = load(f"{file}:closeness")
    session = Session(convert_model(LENET))
    assert metric(session.run) == -float(abs(session.run({"image": digits})["logits"].max() - 10))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("top1", "has no function 'top1'; it has closeness, broken, nothing"),
        ("number", "has no function 'number'"),
        ("", "should be a file and a function"),
        ("not a name", "should be a file and a function"),
    ],
)
def test_what_is_no_metric(name, message, file):
    with pytest.raises(ValueError, match=message):
        load(f"{file}:{name}")


def test_files_that_are_no_metrics(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.py: there is no such file"):
        load("nowhere.py:top1")
    (tmp_path / "bad.py").write_text("import nothing_of_that_name")
    with pytest.raises(ValueError, match=r"bad.py failed: ModuleNotFoundError"):
        load(f"{tmp_path}/bad.py:top1")
    (tmp_path / "data.txt").write_text("1")
    with pytest.raises(ValueError, match="is not a Python file"):
        load(f"{tmp_path}/data.txt:top1")


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [("0.5%", 0.005, "%"), ("0.005", 0.005, ""), (0.02, 0.02, ""), ("30dB", 30, "db"), (" 1e-3 ", 0.001, "")],
)
def test_drops(text, number, unit):
    drop = Drop(text)
    assert (drop.number, drop.unit) == (pytest.approx(number), unit)


@pytest.mark.parametrize("text", ["", "%", "-1%", "a lot", "nan", "1 apple", "--", "1e"])
def test_no_drops(text):
    with pytest.raises(ValueError, match="is no drop; write it like"):
        Drop(text)


def test_what_a_goal_allows(digits):
    model, samples = convert_model(LENET), [{"image": digits[:4]}]
    assert Goal(model, lambda run: -40.0, Drop("5%"), samples).limit == pytest.approx(2.0)  # of a metric: relative
    assert Goal(model, lambda run: -40.0, Drop("0.5"), samples).limit == 0.5
    assert Goal(model, None, Drop("20dB"), samples).limit == pytest.approx(0.1)
    assert Goal(model, None, Drop("3%"), samples).limit == pytest.approx(0.03)
    assert Goal(model, None, None, samples).limit == math.inf
    goal = Goal(model, None, Drop("1%"), samples)
    assert goal.loss(model) == 0 and goal.holds(0.0)
    with pytest.raises(ValueError, match="leave --metric out"):
        Goal(model, lambda run: 1.0, Drop("20dB"), samples)


@pytest.mark.parametrize(("name", "message"), [("broken", "the metric failed: IndexError"), ("nothing", "gave nan")])
def test_metrics_that_fail(name, message, file, digits):
    with pytest.raises(ValueError, match=message):
        evort_tools.quantize(LENET, calib=digits, metric=f"{file}:{name}", max_drop="1%", prefer="size", **FAST)


def quantized(digits, **options):
    return evort_tools.quantize(LENET, calib=digits, prefer="size", **FAST, **options)


def test_the_worst_layers_are_undone_until_the_target_holds(digits):
    """The tighter the target, the more layers are float; each result holds it."""
    free = quantized(digits, max_drop="100%")
    assert free.kept == {} and len(free.layers) == 8
    kept = []
    for drop in ("43dB", "46dB", "50dB"):
        found = quantized(digits, max_drop=drop)
        assert found.loss["loss"] <= found.loss["limit"] == pytest.approx(10 ** -(int(drop[:2]) / 20))
        assert all(why.startswith("undone: ") for why in found.kept.values())
        kept.append(len(found.kept))
    assert 0 < kept[0] < kept[1] < kept[2]
    exact = quantized(digits, max_drop="0")
    assert exact.loss["loss"] == 0 and len(exact.kept) == 5 and exact.layers == []


def test_undone_layers_have_their_own_weights(digits):
    """AdaRound and bias correction fit weights and biases to integers: float layers get theirs back."""
    options = FAST | {"adaround": "on", "bias_correction": "on"}
    found = evort_tools.quantize(LENET, calib=digits, prefer="size", max_drop="48dB", **options)
    assert found.kept and found.layers
    real = convert_model(LENET).graph
    floats = [n for n in found.model.graph.nodes if n.op in ("Conv", "Gemm")]
    assert len(floats) == len(found.kept)
    for node in floats:
        for name in node.inputs[1:3]:
            np.testing.assert_array_equal(found.model.graph.constant(name), real.constant(name))


def test_a_metric_by_the_command(file, digits, tmp_path, capsys):
    np.savez(tmp_path / "c.npz", image=digits)
    config = tmp_path / "o.toml"
    config.write_text(
        f'[quantize]\nmetric = "{file}:closeness"\nmax_drop = "0.004"\nprefer = "size"\nadaround = "off"\n'
    )
    arguments = ["quantize", str(LENET), "-o", str(tmp_path / "o.etm"), "--calib", str(tmp_path / "c.npz")]
    assert main([*arguments, "--config", str(config), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    loss = found["loss"]
    assert loss["limit"] == 0.004 and loss["loss"] <= 0.004 and found["kept_in_float"]
    got = load(f"{file}:closeness")(Session(evort_tools.quantize.etm.read(tmp_path / "o.etm").model).run)
    assert loss["float"] - got == pytest.approx(loss["loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "a.py:f"}, "needs a limit to hold"),
        ({"scheme": "dynamic", "max_drop": "1%"}, "max_drop is not for the dynamic scheme"),
        ({"max_size": "10kB"}, "max_size is not for the static scheme"),
        ({"pin": ("a=int8",)}, "pin is not for the static scheme"),
        ({"scheme": "mixed", "sensitivity": "metric", "max_drop": "1%"}, "sensitivity by the metric needs one"),
        ({"profile": "p.json", "prefer": "size"}, "nothing is chosen by latency"),
        ({"profile": "p.json", "scheme": "weight-only"}, "nothing is chosen by latency"),
        ({"scheme": "mixed", "precisions": ("int8", "int5")}, "'int5' is not one of float32"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        evort_tools.quantization.options.from_mapping(options)
