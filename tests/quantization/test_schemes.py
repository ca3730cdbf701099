"""`evort quantize` with the schemes that replace layers one by one."""

import json

import numpy as np
import pytest
from support import ROOT

import evort
import evort_tools
from evort_tools.cli import main
from evort_tools.quantization.options import Options
from evort_tools.quantization.schemes import as_static

LENET = ROOT / "models" / "lenet.onnx"


@pytest.fixture(scope="module")
def digits():
    found = np.load(ROOT / "models" / "mnist_500.npz")
    return (found["images"][:60, None] / np.float32(255)).astype(np.float32)


@pytest.mark.parametrize("flags, most", [
    (["--scheme", "dynamic"], 0.31), (["--scheme", "dynamic", "--bits", "16"], 0.54),
    (["--scheme", "weight-only"], 0.165), (["--scheme", "weight-only", "--bits", "3", "--zero-points"], 0.14),
    (["--scheme", "weight-only", "--bits", "16", "--storage", "bfloat16"], 0.53),
])  # fmt: skip
def test_command(flags, most, digits, tmp_path, capsys):
    out = tmp_path / "lenet.etm"
    assert main(["quantize", str(LENET), "-o", str(out), "--json", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert out.stat().st_size < most * LENET.stat().st_size
    assert len(found["layers"]) == found["integer_nodes"] >= 3
    plain = evort_tools.convert(str(LENET))
    want = evort.load(plain).run({"image": digits})["logits"]
    got = evort.load(out).run({"image": digits})["logits"]
    assert (got.argmax(1) == want.argmax(1)).mean() > 0.96


def test_calibration_data_brings_gptq_and_a_figure(digits):
    near = evort_tools.quantize(str(LENET), scheme="weight-only", bits=3, rounding="nearest", calib=digits)
    found = evort_tools.quantize(str(LENET), scheme="weight-only", bits=3, calib=digits)
    assert found.sqnr["logits"] > near.sqnr["logits"] + 1


def test_exclude_and_options_that_do_not_fit():
    found = evort_tools.quantize(str(LENET), scheme="dynamic", exclude=("Conv",))
    assert "excluded" in found.kept.values()
    assert not any(n.op == "DynamicQuantizeConv" for n in found.model.graph.nodes)
    for wrong in ({"exclude": ("nothing*",)}, {"bits": 4}, {"scheme": "weight-only", "bits": 5},
                  {"scheme": "weight-only", "rounding": "gptq"}, {"scheme": "weight-only", "block": 24}):  # fmt: skip
        with pytest.raises(ValueError):
            evort_tools.quantize(str(LENET), **{"scheme": "dynamic", **wrong})


def test_the_static_part_of_the_mixed_scheme_has_what_static_has():
    given = Options(scheme="mixed", block=16, rounding="nearest", max_size="1MB", pin=("a=int8",), activations="int8")
    assert as_static(given) == Options(activations="int8")
