"""The commands: what they print, what they write, their exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from support import ROOT

import evort
import evort_tools
from evort_tools import cli
from evort_tools.common import parse_shape, parse_size

LENET = ROOT / "models" / "lenet.onnx"


@pytest.fixture(scope="module")
def lenet(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "lenet.etm"
    evort_tools.convert(str(LENET), str(path))
    return path


def run(capsys, *argv):
    """(exit code, standard output) of a command."""
    code = cli.main([str(a) for a in argv])
    return code, capsys.readouterr().out


def test_help_teaches():
    done = subprocess.run(
        [sys.executable, "-P", "-m", "evort_tools.cli", "--help"], capture_output=True, text=True, check=True
    )
    for name in cli.COMMANDS:
        assert name in done.stdout
    assert "evort convert model.onnx -o model.etm" in done.stdout


def test_config_tells_what_is_in_use(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--config"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    facts = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert facts["evort"] == evort.__version__ and facts["isa"] == evort.isa() and facts["numpy"] == np.__version__
    assert facts["isas"].split(", ") == list(evort.available_isas()) and int(facts["threads"]) >= 1
    evort.show_config()
    assert capsys.readouterr().out == out


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help_and_runs_as_a_script(name):
    module = cli.COMMANDS[name][0]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / f"{module}.py"), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"evort {name}" in done.stdout


def test_convert_writes_what_the_function_returns(tmp_path, capsys, lenet):
    code, _ = run(capsys, "convert", LENET, "-o", tmp_path / "a.etm")
    assert code == 0
    assert (tmp_path / "a.etm").read_bytes() == lenet.read_bytes() == evort_tools.convert(str(LENET))


def test_demo(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, out = run(capsys, "demo", "--json")
    figures = json.loads(out)
    assert code == 0
    assert figures["accuracy"] >= 0.9866 and figures["digits"] == 500
    assert figures["etm_bytes"] < figures["onnx_bytes"] * 1.02
    assert 0 < figures["arena_bytes"] < 100_000 and figures["peak_bytes"] > 0
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "demo")[0] == 2
    code, out = run(capsys, "demo", "--json", "--models", ROOT / "models")
    assert code == 0
    assert json.loads(out)["accuracy"] == figures["accuracy"]


def test_inspect(capsys, lenet, tmp_path):
    code, out = run(capsys, "inspect", lenet)
    assert code == 0 and "Conv" in out and "multiply-adds" in out
    code, out = run(capsys, "inspect", lenet, "--memory", "--shape", "image=4,1,28,28", "--plot", tmp_path / "m.png")
    assert code == 0 and "█" in out
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    code, out = run(capsys, "inspect", lenet, "--json")
    told = json.loads(out)
    assert told["memory"]["arena"] >= told["memory"]["lower_bound"] > 0
    assert sum(layer["macs"] for layer in told["layers"]) > 100_000
    assert all(layer["kernel"] != "numpy" for layer in told["layers"])


@pytest.mark.parametrize("command", ["inspect", "bench", "profile"])
def test_open_dimensions_that_cannot_be_1_are_asked_for(capsys, tmp_path, command):
    pool = onnx.helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 1, "h", "w"]), ("y", [1, 1, "i", "j"]))
    )
    graph = onnx.helper.make_graph([pool], "g", [x], [y])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "pool.onnx")
    assert cli.main([command, str(tmp_path / "pool.onnx")]) == 2
    assert "give --shape x=1,1,h,w" in capsys.readouterr().err
    code, _ = run(capsys, command, tmp_path / "pool.onnx", "--shape", "x=1,1,4,6")
    assert code == 0


def test_run_on_arrays_and_images(capsys, lenet, tmp_path):
    from PIL import Image

    with np.load(ROOT / "models" / "mnist_500.npz") as digits:
        pixels, label = digits["images"][0], int(digits["labels"][0])
    x = pixels.astype(np.float32)[None, None] / 255
    np.savez(tmp_path / "in.npz", image=x)
    np.save(tmp_path / "in.npy", x)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    for file in ("in.npz", "in.npy", "in.png"):
        code, _ = run(capsys, "run", lenet, "-i", tmp_path / file, "-o", tmp_path / "out.npz")
        assert code == 0
        with np.load(tmp_path / "out.npz") as out:
            (name,) = out.files
            assert out[name].argmax() == label
            np.testing.assert_allclose(out[name], evort.load(lenet)(x), rtol=1e-4, atol=1e-4)


def test_bench_and_budget(capsys, lenet):
    code, out = run(capsys, "bench", lenet, "--threads", "1,2", "--seconds", "0.05", "--json")
    rows = json.loads(out)["latency"]
    assert code == 0 and [r["threads"] for r in rows] == [1, 2] and all(r["p50_ms"] > 0 for r in rows)
    code, out = run(capsys, "bench", lenet, "--memory", "--budget", "500MB")
    assert code == 0 and "within" in out
    code, out = run(capsys, "bench", lenet, "--memory", "--budget", "1kB", "--json")
    assert code == 1 and json.loads(out)["over"]
    code, out = run(capsys, "bench", lenet, "--start", "--json")
    start = json.loads(out)["start"]
    assert code == 0 and list(start) == ["first", "kept"] and all(v > 0 for row in start.values() for v in row.values())
    code, out = run(capsys, "bench", lenet, "--start")
    assert code == 0 and "kept plan" in out


def test_profile_and_trace(capsys, lenet, tmp_path):
    code, out = run(capsys, "profile", lenet, "--runs", "2", "--trace", tmp_path / "t.json", "--json")
    assert code == 0 and {row["operator"].split("+")[0] for row in json.loads(out)} >= {"Conv"}
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert all(e["ph"] == "X" and e["dur"] >= 0 for e in events)
    ends = [e["ts"] + e["dur"] for e in events]
    assert all(later["ts"] >= end - 1e-6 for end, later in zip(ends, events[1:], strict=False))
    code, out = run(capsys, "profile", lenet, "--runs", "2", "--by", "operator")
    assert code == 0 and "nodes" in out


def test_profile_of_given_inputs(capsys, tmp_path):
    """Which branch of an If is timed is decided by an input; the other one is random."""
    make = onnx.helper.make_node
    info = [onnx.helper.make_tensor_value_info(n, t, s) for n, t, s in (
        ("x", onnx.TensorProto.FLOAT, [1, "n"]), ("c", onnx.TensorProto.BOOL, []), ("y", onnx.TensorProto.FLOAT, None)
    )]  # fmt: skip
    branches = {
        f"{key}_branch": onnx.helper.make_graph([make(op, ["x"], [key])], key, [], [
            onnx.helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, None)
        ]) for key, op in (("then", "Exp"), ("else", "Tanh"))
    }  # fmt: skip
    graph = onnx.helper.make_graph([make("If", ["c"], ["y"], **branches)], "g", info[:2], info[2:])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "if.onnx")
    np.save(tmp_path / "c.npy", np.array(True))
    for given, wanted in (((), "Tanh"), (("-i", f"c={tmp_path / 'c.npy'}"), "Exp")):
        code, out = run(capsys, "profile", tmp_path / "if.onnx", "--shape", "x=1,5", "--runs", "1", "--json", *given)
        assert code == 0 and wanted in {row["operator"] for row in json.loads(out)}
    assert cli.main(["profile", str(tmp_path / "if.onnx"), "--precisions", "-i", str(tmp_path / "c.npy")]) == 2


def test_diff(capsys, lenet, tmp_path):
    assert run(capsys, "diff", lenet, lenet)[0] == 0
    other = tmp_path / "plain.etm"
    evort_tools.convert(str(LENET), str(other), disable=["activations"])
    code, out = run(capsys, "diff", lenet, other, "--json")
    assert code == 1 and json.loads(out)
    code, out = run(capsys, "diff", lenet, other)
    assert code == 1 and "absent" in out and "None" not in out


def test_errors_are_one_line_and_exit_2(capsys, tmp_path):
    (tmp_path / "bad.etm").write_bytes(b"not a model")
    for argv in (
        ["inspect", tmp_path / "bad.etm"],
        ["run", tmp_path / "none.etm", "-i", "x.npy"],
        ["bench", LENET, "--memory"],
        ["bench", LENET, "--start", "--memory"],
        ["inspect", LENET, "--shape", "nothing=1,2"],
    ):
        assert cli.main([str(a) for a in argv]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"evort {argv[0]}: ") and "Traceback" not in error


def test_sizes_and_shapes():
    assert [parse_size(t) for t in ("8MB", "512KiB", "4096", "1.5k")] == [8_000_000, 524_288, 4096, 1500]
    assert parse_shape("a:0=1,3x4") == ("a:0", (1, 3, 4))
