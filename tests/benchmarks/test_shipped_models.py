"""The shipped LeNet is what its README says, and every synthetic network is valid and runs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import import_onnxruntime

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import models  # noqa: E402  (a folder of scripts, not a package)


def onnxruntime_session(model: bytes):
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def test_lenet_reads_the_shipped_digits() -> None:
    model = onnx.load(ROOT / "models" / "lenet.onnx")
    onnx.checker.check_model(model, full_check=True)
    said = {entry.key: float(entry.value) for entry in model.metadata_props if entry.key.startswith("accuracy")}
    with np.load(ROOT / "models" / "mnist_500.npz") as data:
        images, labels = data["images"], data["labels"]
    assert images.shape == (500, 28, 28) and labels.shape == (500,)
    logits = onnxruntime_session(model.SerializeToString()).run(None, {"image": images[:, None] / np.float32(255)})[0]
    # The smallest gap between the two largest logits of a digit is 0.055, so rounding (some 1e-5) turns none.
    assert np.mean(logits.argmax(1) == labels) == pytest.approx(said["accuracy_mnist_500"], abs=1e-9)
    assert said["accuracy_mnist_test_10000"] >= 0.9866


@pytest.mark.parametrize("name", models.MODELS)
def test_synthetic_network_runs_and_is_reproducible(name: str) -> None:
    net = models.MODELS[name]
    model = net.build()  # build() runs onnx.checker with full type inference
    raw = model.SerializeToString(deterministic=True)
    assert raw == net.build().SerializeToString(deterministic=True)
    session = onnxruntime_session(raw)
    inputs = net.example(np.random.default_rng(0))
    assert set(inputs) == {value.name for value in session.get_inputs()}
    (result,) = session.run(None, inputs)
    expected = session.get_outputs()[0].shape
    assert len(result.shape) == len(expected)
    assert all(want == got for want, got in zip(expected, result.shape, strict=True) if isinstance(want, int))
    assert np.isfinite(result).all() and result.std() > 1e-3
