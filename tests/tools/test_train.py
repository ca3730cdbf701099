"""`evort train`."""

from __future__ import annotations

import json

import numpy as np
from support import ROOT, import_onnxruntime

import evort
from evort_tools.cli import main

LENET = str(ROOT / "models/lenet.onnx")


def _data(tmp_path, name: str, part: slice) -> str:
    """Digits with other labels than the network was trained for: 9 - digit."""
    with np.load(ROOT / "models/mnist_500.npz") as file:
        path = tmp_path / f"{name}.npz"
        np.savez(path, image=file["images"][part, None], labels=9 - file["labels"][part].astype(np.int64))
    return str(path)


def test_fine_tuning_a_model(tmp_path, capsys):
    data, test = _data(tmp_path, "train", slice(400)), _data(tmp_path, "test", slice(400, 500))
    out = tmp_path / "out.etm"
    arguments = [
        "train", LENET, "--data", data, "--validation", test, "-o", str(out), "--onnx", str(tmp_path / "out.onnx"),
        "--epochs", "6", "--batch-size", "10", "--lr", "2e-3", "--scale", "0.00392157",
        "--freeze", "conv*", "--threads", "1", "--json",
        "--log", str(tmp_path / "log.csv"), "--checkpoint", str(tmp_path / "c.npz"), "--clip-norm", "5", "--recompute",
    ]  # fmt: skip
    assert main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)["history"]
    assert rows[-1]["val_accuracy"] > 0.85 > 0.5 > rows[0]["accuracy"]
    with np.load(test) as file:
        x = file["image"].astype(np.float32) * np.float32(0.00392157)
    mine = evort.load(out, threads=1)(x)
    (theirs,) = import_onnxruntime().InferenceSession(tmp_path / "out.onnx").run(None, {"image": x})
    np.testing.assert_allclose(mine, theirs, atol=1e-3)
    before = evort.load(ROOT / "models/lenet.etm").model.graph.tensors["conv1.weight"].data
    np.testing.assert_array_equal(evort.load(out).model.graph.tensors["conv1.weight"].data, before)
    assert main([*arguments, "--epochs", "7"]) == 0  # goes on with the checkpoint's seventh epoch
    assert len(json.loads(capsys.readouterr().out)["history"]) == 7


def test_what_is_refused(tmp_path, capsys):
    out = str(tmp_path / "o.etm")
    np.savez(tmp_path / "d.npz", image=np.zeros((4, 1, 28, 28), np.float32))
    assert main(["train", LENET, "--data", str(tmp_path / "d.npz"), "-o", out]) == 2
    assert "targets" in capsys.readouterr().err
    (tmp_path / "e.npz").write_bytes(b"no archive")
    assert main(["train", LENET, "--data", str(tmp_path / "e.npz"), "-o", out]) == 2
    assert "no npz file" in capsys.readouterr().err
    data = _data(tmp_path, "t", slice(20))
    assert main(["train", LENET, "--data", data, "-o", out, "--patience", "2"]) == 2
    assert "--validation" in capsys.readouterr().err
    assert not (tmp_path / "o.etm").exists()
