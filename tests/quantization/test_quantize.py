"""`evort quantize` and `evort_tools.quantize`: options, files, messages, memory."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from onnx import helper, load_model, save_model
from support import ROOT
from tools_support import onnx_model

import evort
import evort_tools
from evort_tools.cli import main
from evort_tools.quantization import data, layers
from evort_tools.quantization.options import Options, from_mapping, read_toml

LENET = ROOT / "models" / "lenet.onnx"
# What makes the other tests fast: one method, and no helpers.
FAST = {"prefer": "size", "method": "minmax", "equalize": "off", "adaround": "off", "bias_correction": "off"}
FLAGS = [part for key, value in FAST.items() for part in (f"--{key.replace('_', '-')}", value)]


@pytest.fixture(scope="module")
def digits():
    found = np.load(ROOT / "models" / "mnist_500.npz")
    return (found["images"][:40, None] / np.float32(255)).astype(np.float32)


@pytest.fixture
def calib(digits, tmp_path):
    path = tmp_path / "calib.npz"
    np.savez(path, image=digits)
    return str(path)


@pytest.mark.parametrize("prefer", ["speed", "size"])
def test_the_plain_call(prefer, calib, digits, tmp_path, capsys):
    out = tmp_path / "lenet.etm"
    flags = [] if prefer == "speed" else ["--prefer", "size"]
    assert main(["quantize", str(LENET), "-o", str(out), "--scheme", "static", "--calib", calib, *flags]) == 0
    text = capsys.readouterr().out
    assert "signal to quantization noise" in text and "ratio" in text
    # What is faster in float stays so: how much that is depends on the machine.
    assert out.stat().st_size < (0.32 if prefer == "size" else 1.03) * LENET.stat().st_size
    got = evort.load(out).run({"image": digits})["logits"]
    expected = evort.load(evort_tools.convert(LENET)).run({"image": digits})["logits"]
    # The 19th digit is a tie: the float model gives 6.16 to one class and 6.11 to the other.
    assert (got.argmax(1) == expected.argmax(1)).sum() >= len(digits) - 1
    assert np.linalg.norm(got - expected) < 0.02 * np.linalg.norm(expected)
    assert [p.name for p in tmp_path.iterdir() if p.suffix not in (".npz", ".etm")] == []


def test_python_gives_the_same_bytes_as_the_command(calib, digits, tmp_path):
    out = tmp_path / "lenet.etm"
    assert main(["quantize", str(LENET), "-o", str(out), "--calib", calib, "--json", *FLAGS]) == 0
    result = evort_tools.quantize(LENET, calib={"image": digits}, **FAST)
    assert result.to_bytes() == out.read_bytes()
    assert result.sqnr["logits"] > 30 and result.encodings["conv1.weight"].axis == 0


def test_a_report(calib, tmp_path, capsys):
    page = tmp_path / "report.html"
    arguments = ["quantize", str(LENET), "-o", str(tmp_path / "o.etm"), "--calib", calib, "--report", str(page)]
    assert main([*arguments, *FLAGS, "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["compared"]}
    assert {"relu1", "relu2", "logits"} <= rows.keys()
    assert all(row["sqnr"] > 20 and row["cosine"] > 0.99 for row in rows.values() if row["encoding"])
    text = page.read_text()
    assert text.startswith("<!doctype html>") and "relu3" not in text.split("</style>")[0] and "latency" in text
    for name in ("relu1", "relu2", "logits"):
        assert name in text
    with pytest.raises(data.CalibrationError, match="report needs calibration data"):
        evort_tools.quantize(LENET, scheme="dynamic", report=page)


def test_the_report_counts_what_rounding_the_weights_costs(digits):
    """Also where AdaRound has put the rounded weights into the graph that encodings are for."""
    result = evort_tools.quantize(LENET, calib=digits, **{**FAST, "adaround": "on", "bias_correction": "on"})
    compared = layers.compare(result.plain, result.model, result.encodings, [{"image": digits[:4]}],
                              fitted=result.real.graph)  # fmt: skip
    products = [layer for layer in compared if layer.alone is not None and layer.op in ("Conv", "Gemm")]
    assert len(products) == 5 and all(20 < layer.alone.sqnr < 65 for layer in products)
    assert all(20 < layer.accumulated.sqnr < 65 for layer in products)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="looks at the page in headless Chromium, which is not installed")
def test_a_browser_shows_the_report_without_a_network(calib, tmp_path):
    from PIL import Image

    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    long = load_model(LENET)
    renamed = {name: f"{name}_{'of_a_long_name' * 12}" for node in long.graph.node for name in node.output}
    renamed["logits"] = "logits"
    for node in long.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed[name] for name in node.output]
    evort_tools.quantize(long, tmp_path / "o.etm", calib=calib, report=page, **FAST)
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|https?://", page.read_text())
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1300,1400"]
    shown = subprocess.run(
        [*command, f"--user-data-dir={tmp_path}/profile", f"--screenshot={picture}", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert picture.exists(), shown.stderr
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert (pixels[:, -12:] == 255).all()  # nothing reaches past the page
    pixels = pixels.reshape(-1, 3)
    for colour in ("bcd2e5", "c0392b", "8fb3d1"):  # bars of layers alone, the accumulated line, histograms
        wanted = [int(colour[i : i + 2], 16) for i in (0, 2, 4)]
        assert np.count_nonzero(np.abs(pixels - wanted).sum(1) < 12) > 100, colour


def test_an_etm_file_as_the_source(calib, tmp_path):
    etm = tmp_path / "float.etm"
    evort_tools.convert(LENET, etm)
    one, other = tmp_path / "a.etm", tmp_path / "b.etm"
    assert main(["quantize", str(etm), "-o", str(one), "--calib", calib, *FLAGS]) == 0
    assert main(["quantize", str(LENET), "-o", str(other), "--calib", calib, *FLAGS]) == 0
    assert one.read_bytes() == other.read_bytes()


def test_json(calib, tmp_path, capsys):
    arguments = ["quantize", str(LENET), "-o", str(tmp_path / "o.etm"), "--calib", calib, "--json", "--exclude", "fc?"]
    assert main([*arguments, *FLAGS]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kept_in_float"] == {"Gemm 'fc3'": "excluded"}
    assert found["sizes"]["file"] == (tmp_path / "o.etm").stat().st_size and len(found["measured"]) == 2


def test_json_is_such_for_any_reader(calib, tmp_path, capsys):
    """What nothing is lost of has an infinite ratio, which JSON cannot say."""

    def refuse(text):
        raise AssertionError(text)

    arguments = ["quantize", str(LENET), "-o", str(tmp_path / "o.etm"), "--calib", calib, "--json", "--exclude", "*"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out, parse_constant=refuse)["sqnr_db"] == {"logits": None}


def test_a_model_in_integers_stays_so_and_it_is_said(tmp_path):
    evort_tools.quantize(LENET, tmp_path / "a.etm", scheme="dynamic", prefer="size")
    again = evort_tools.quantize(tmp_path / "a.etm", scheme="dynamic", prefer="size")
    assert again.integer_nodes == 0
    assert again.notes == [
        "4 operators have weights in integers already, and stay as they are"
    ]  # of conv1 they are floats


def test_options_come_from_flags_toml_and_python(calib, tmp_path, capsys):
    config = tmp_path / "options.toml"
    config.write_text(
        '[quantize]\nmethod = "mse"\nactivations = "int8"\nexclude = ["fc3"]\nsamples = 7\nadaround = "off"\n'
    )
    out = tmp_path / "o.etm"
    arguments = ["quantize", str(LENET), "-o", str(out), "--calib", calib, "--config", str(config), "--json"]
    assert main([*arguments, "--activations", "int16"]) == 0
    options = json.loads(capsys.readouterr().out)["options"]
    assert (options["method"], options["activations"], options["exclude"], options["samples"]) == (
        "mse", "int16", ["fc3"], 7,
    )  # fmt: skip
    again = from_mapping({**read_toml(config), "activations": "int16"})
    assert again == Options(method="mse", activations="int16", exclude=("fc3",), samples=7, adaround="off")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metod": "mse"}, "no option 'metod'; did you mean method"),
        ({"method": "best"}, "'best' is not one of auto, minmax"),
        ({"percentile": "99"}, "percentile = '99' should be like 99.99"),
        ({"per_channel": 1}, "per_channel = 1 should be like True"),
        ({"percentile": 3.0}, "from 50 to 100"),
        ({"smooth_alpha": 2.0}, "from 0 to 1"),
        ({"samples": 0}, "at least 1"),
        ({"bits": 4}, "bits is not for the static scheme; the weight-only scheme has it"),
        ({"scheme": "dynamic", "rounding": "gptq"}, "rounding is not for the dynamic scheme"),
        ({"scheme": "dynamic", "bits": 16, "zero_points": True}, "16 bits have none"),
        ({"std": (1.0, 0.0)}, "std not 0"),
        ({"scale": math.nan}, "must be finite"),
        ({"size": (0, 4)}, "two positive numbers"),
        ({"samples": "many"}, "samples = 'many' should be like a whole number"),
        ({"threads": True}, "threads = True should be"),
        ({"bits": 4.0}, "bits = 4.0 should be"),
        ({"size": "28xq"}, "size = '28xq': write it like HxW"),
        ({"size": [28]}, r"size = \[28\] should be like HxW"),
        ({"mean": ["a"]}, "mean = .* should be like"),
        ({"pin": [1], "scheme": "mixed"}, "pin = .* should be like PATTERN=int8"),
        ({"max_drop": True}, "max_drop = True should be"),
        ({"max_size": "huge", "scheme": "mixed"}, "max_size: 'huge' is no size"),
        ({"max_latency": "2", "scheme": "mixed"}, "max_latency: '2' is no time"),
        ({"scheme": "dynamic", "bits": 16, "activations": "int16"}, "stay float32"),
        ({"scheme": "dynamic", "activations": "int8"}, "uint8, with the range"),
    ],
)
def test_wrong_options(given, message):
    with pytest.raises(ValueError, match=message):
        from_mapping(given)


def test_a_file_has_options_as_flags_write_them():
    given = from_mapping({"size": "28x30", "mean": "0.5,0.25", "std": 2, "isa": "scalar", "exclude": "fc*"})
    assert (given.size, given.mean, given.std) == ((28, 30), (0.5, 0.25), (2,))
    assert (given.isa, given.exclude) == (("scalar",), ("fc*",))


def quantized_with(tmp_path, capsys, *arguments):
    out = tmp_path / "out" / "m.etm"
    out.parent.mkdir(exist_ok=True)
    code = main(["quantize", str(LENET), "-o", str(out), *arguments])
    assert list(out.parent.iterdir()) == []
    return code, capsys.readouterr().err


def test_messages_for_bad_calibration_data(digits, tmp_path, capsys):
    cases = {
        "names": ({"picture": digits}, "'picture'"),
        "shape": ({"image": digits[:, :, :20]}, r"[1, 1, 20, 28]"),
        "nan": ({"image": np.where(digits > 0.9, np.nan, digits)}, "NaN"),
        "empty": ({"image": digits[:0]}, "empty"),
        "constant": ({"image": np.zeros_like(digits)}, "is 0 throughout"),
    }
    for name, (arrays, message) in cases.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        code, error = quantized_with(tmp_path, capsys, "--calib", str(tmp_path / f"{name}.npz"))
        assert code == 2 and message in error and "Traceback" not in error
    assert "needs calibration data" in quantized_with(tmp_path, capsys)[1]
    assert "no such file" in quantized_with(tmp_path, capsys, "--calib", "nowhere.npz")[1]


def test_a_sample_that_reaches_far_beyond_the_others_does_no_harm(digits):
    far = digits.copy()
    far[4] *= 1e5
    made = evort_tools.quantize(LENET, calib=far, **FAST)
    assert made.to_bytes() == evort_tools.quantize(LENET, calib=np.delete(digits, 4, axis=0), **FAST).to_bytes()
    assert "sample 4" in made.notes[0] and "left out" in made.notes[0]
    kept = evort_tools.quantize(LENET, calib=far, outliers="keep", **FAST)
    assert "unless it is typical" in kept.notes[0] and kept.encodings["image"].range[1] > 1e4
    far[::8] *= 1e5  # too many to be chance: they are taken
    assert evort_tools.quantize(LENET, calib=far, **FAST).encodings["image"].range[1] > 1e4


def test_the_model_is_not_written_over_itself(calib, tmp_path, capsys):
    etm = tmp_path / "m.etm"
    evort_tools.convert(LENET, etm)
    assert main(["quantize", str(etm), "--calib", calib]) == 2
    assert "is the model itself" in capsys.readouterr().err
    assert main(["quantize", str(LENET), "-o", str(tmp_path / "no" / "m.etm"), "--calib", calib]) == 2
    assert "no such folder" in capsys.readouterr().err
    here, no = str(tmp_path), str(tmp_path / "no" / "r.html")
    assert main(["quantize", str(LENET), "-o", here, "--calib", calib]) == 2
    assert "is a folder: name a file in it" in capsys.readouterr().err
    assert main(["quantize", str(LENET), "-o", str(tmp_path / "n.etm"), "--calib", calib, "--report", no]) == 2
    assert "no such folder to write r.html" in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == {etm, tmp_path / "calib.npz"}


@pytest.mark.parametrize("samples", [0, 5, 45])
def test_interrupted_it_leaves_nothing(samples, calib, tmp_path, capsys, monkeypatch):
    """Ctrl-C at the start, in the first pass over the data and in the second: exit code 130, no file at all."""
    seen = []
    checked = data.Calibration._checked

    def interrupted(self, given, number):
        if len(seen) == samples:
            raise KeyboardInterrupt
        seen.append(number)
        return checked(self, given, number)

    monkeypatch.setattr(data.Calibration, "_checked", interrupted)
    out = tmp_path / "out"
    out.mkdir()
    assert main(["quantize", str(LENET), "-o", str(out / "m.etm"), "--calib", calib, "--prefer", "size"]) == 130
    assert list(out.iterdir()) == [] and len(seen) == samples and "Traceback" not in capsys.readouterr().err


MEASURE = """
import sys
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
import numpy, evort_tools.quantize, evort_tools.convert, onnx
before = peak()
evort_tools.quantize(sys.argv[1], sys.argv[2], calib=sys.argv[3])
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of resident memory from /proc")
def test_peak_memory_is_below_two_and_a_half_times_the_model(tmp_path):
    rng = np.random.default_rng(0)
    constants = {f"w{i}": (rng.random((1800, 1800), np.float32) - 0.5) / 900 for i in range(4)}
    nodes = [helper.make_node("MatMul", [f"h{i}" if i else "x", f"w{i}"], [f"h{i + 1}"]) for i in range(4)]
    source = tmp_path / "large.onnx"  # 52 MB
    save_model(onnx_model(nodes, {"x": (np.float32, ("N", 1800))}, ["h4"], constants), source)
    np.savez(tmp_path / "c.npz", x=rng.random((3, 1800), np.float32))
    evort_tools.convert(source, tmp_path / "large.etm")
    for model in (source, tmp_path / "large.etm"):
        command = [sys.executable, "-P", "-c", MEASURE, str(model), str(tmp_path / "o.etm"), str(tmp_path / "c.npz")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) < 2.5 * model.stat().st_size


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.float32])
def test_layers_of_any_type_are_observed(dtype: type) -> None:
    layer = layers.Layer("positions", "Cast", "", None)
    layer.observe(np.array([[0, 1], [1, 1]], dtype))
    layer.observe(np.zeros((0, 2), dtype))
    assert (layer.low, layer.high, layer.seen) == (0.0, 1.0, 4)
    assert layer.histogram.sum() == 4


def test_layers_that_read_integers_on_their_way_are_compared():
    """Resize hands integers on, which HardSwish then reads from a table: the layer alone has floats to read."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "v": rng.standard_normal((4, 8, 1, 1)).astype(np.float32),
        "twice": np.array([1, 1, 2, 2], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("Resize", ["c", "", "twice"], ["r"], mode="nearest", nearest_mode="floor",
                         coordinate_transformation_mode="asymmetric"),
        helper.make_node("HardSwish", ["r"], ["h"]),
        helper.make_node("Conv", ["r", "v"], ["y"], kernel_shape=[1, 1]),
    ]  # fmt: skip
    x = rng.standard_normal((4, 3, 9, 9)).astype(np.float32)
    result = evort_tools.quantize(onnx_model(nodes, {"x": (np.float32, ("N", 3, 9, 9))}, ["h", "y"], constants),
                                  calib={"x": x}, **FAST, wide_activations="on")  # fmt: skip
    assert "Lookup" in [node.op for node in result.model.graph.nodes]
    assert min(result.sqnr.values()) > 25
