"""Export to ONNX: what onnx.checker accepts and onnxruntime computes alike."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support import ROOT, import_onnxruntime, node_model

from evort import etm, train
from evort.errors import ConversionError
from evort.session import Session
from evort.train import layers as L
from evort_tools.cli import main
from evort_tools.convert import convert, convert_model
from evort_tools.export import export


def _same(model, proto, feeds, atol=1e-5):
    session = import_onnxruntime().InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = Session(model).run(feeds)
    for name, value in zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True):
        np.testing.assert_allclose(value, expected[name], atol=atol)


def test_a_trained_model_runs_alike_in_onnxruntime(tmp_path):
    model = L.sequential(
        ("N", 2, 8, 8), L.Conv2d(2, 4, 3, padding=1, bias=False), L.BatchNorm(4), L.HardSwish(), L.MaxPool(2),
        L.Dropout(0.2), L.Flatten(), L.Linear(64, 3), input="x", output="y",
    )  # fmt: skip
    t = train.Trainer(model, train.CrossEntropy(), train.SGD(0.1), threads=1)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 2, 8, 8)).astype(np.float32)
    for _ in range(3):
        t.step((x, np.arange(6) % 3))
    path = tmp_path / "m.onnx"
    proto = export(t.model(), path)
    assert onnx.load(path) == proto
    _same(t.model(), proto, {"x": x})


def test_fused_operators_are_taken_apart(tmp_path):
    """LeNet as the converter leaves it, with activations in its Convs and Gemms."""
    source = ROOT / "models/lenet.onnx"
    model = convert_model(str(source))
    assert any(node.attrs.get("activation") for node in model.graph.nodes)
    x = np.random.default_rng(1).random((3, 1, 28, 28), np.float32)
    _same(model, export(model), {"image": x}, atol=1e-4)
    etm_path = tmp_path / "lenet.etm"
    convert(str(source), etm_path)
    assert main(["export", str(etm_path), "-o", str(tmp_path / "lenet.onnx")]) == 0
    _same(model, onnx.load(tmp_path / "lenet.onnx"), {"image": x}, atol=1e-4)


@pytest.mark.parametrize("activation", ["Clip", "LeakyRelu", "Gelu", "Swish"])
def test_activations_with_a_residual(activation):
    rng = np.random.default_rng(2)
    x, w, b, z = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, 5), (5, 4), (4,), (2, 3, 4)))
    attrs = {
        "activation": activation,
        **({"activation_alpha": -0.5, "activation_beta": 0.7} if activation == "Clip" else {}),
    }
    model = node_model("MatMul", [x, w, b, z], attrs, constants=(1, 2))
    if activation == "Swish":  # ONNX has it from opset 24 on, onnxruntime may not
        assert [n.op_type for n in export(model).graph.node] == ["MatMul", "Add", "Add", "Swish"]
        return
    _same(model, export(model), {"in0": x, "in3": z})


def test_what_onnx_lacks_is_refused(tmp_path):
    model = node_model("RandomDropout", [np.ones(3, np.float32), np.array(1)], domain="evort")
    with pytest.raises(ConversionError, match="domain 'evort'"):
        export(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    assert etm.write(model)
