"""`evort quantize` with the schemes that replace layers one by one."""

import json

import numpy as np
import pytest
from support import ROOT

import evort
import evort_tools
from evort_tools.cli import main
from evort_tools.quantization import schemes
from evort_tools.quantization.options import Options
from evort_tools.quantization.schemes import as_static

LENET = ROOT / "models" / "lenet.onnx"


@pytest.fixture(scope="module")
def digits():
    found = np.load(ROOT / "models" / "mnist_500.npz")
    return (found["images"][:60, None] / np.float32(255)).astype(np.float32)


@pytest.mark.parametrize("flags, most", [
    (["--scheme", "dynamic", "--prefer", "size"], 0.31),
    (["--scheme", "dynamic", "--bits", "16", "--prefer", "size"], 0.54),
    (["--scheme", "weight-only"], 0.165),
    (["--scheme", "weight-only", "--bits", "3", "--zero-points", "--prefer", "size"], 0.14),
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
    found = evort_tools.quantize(str(LENET), scheme="dynamic", prefer="size", exclude=("Conv",))
    assert "excluded" in found.kept.values()
    assert not any(n.op == "DynamicQuantizeConv" for n in found.model.graph.nodes)
    for wrong in ({"exclude": ("nothing*",)}, {"bits": 4}, {"scheme": "weight-only", "bits": 5},
                  {"scheme": "weight-only", "rounding": "gptq"}, {"scheme": "weight-only", "block": 24}):  # fmt: skip
        with pytest.raises(ValueError):
            evort_tools.quantize(str(LENET), **{"scheme": "dynamic", **wrong})


@pytest.mark.parametrize(("bits", "most"), [(8, 0.31), (16, 0.54)])
@pytest.mark.parametrize("slow", ["one", "all"])
def test_dynamic_leaves_in_float_what_is_slower_in_integers(bits, most, slow, digits, tmp_path, monkeypatch):
    """Such layers have integers in the file all the same, of which loading makes floats."""
    whole = evort_tools.quantize(str(LENET), scheme="dynamic", bits=bits, prefer="size")
    names = [row["name"] for row in whole.layers]
    (first, *rest) = [n.outputs[0] for n in whole.model.graph.nodes if n.op.startswith("DynamicQuantize")]
    monkeypatch.setattr(schemes, "both", lambda *_: {first: (1.0, 2.0), **dict.fromkeys(rest, (1.0, 0.5))})
    monkeypatch.setattr(schemes, "ratio", lambda *_: 0.9 if slow == "one" else 1.5)  # then all have to stay in float
    found = evort_tools.quantize(str(LENET), tmp_path / "m.etm", scheme="dynamic", bits=bits)
    assert found.stored == (names[:1] if slow == "one" else names)
    assert [row["name"] for row in found.layers] == (names[1:] if slow == "one" else [])
    assert sum("faster in float: 1.0 µs" in why for why in found.kept.values()) == len(found.stored)
    assert (tmp_path / "m.etm").stat().st_size < most * LENET.stat().st_size
    want = evort.load(evort_tools.convert(str(LENET))).run({"image": digits})["logits"]
    session = evort.load(tmp_path / "m.etm")
    assert sum(n.op == "DynamicQuantizeConv" for n in session.model.graph.nodes) < 2
    assert not any(n.op == "DequantizeLinear" for n in session.model.graph.nodes)
    got = session.run({"image": digits})["logits"]
    # Weights of a layer alone, and activations too, are rounded to so many bits.
    assert np.square(got - want).sum() < 10.0 ** (-3 if bits == 8 else -6) * np.square(want).sum()


@pytest.mark.parametrize("options", [{}, {"bits": 3, "zero_points": True}, {"bits": 8, "block": 64}], ids=str)
def test_loading_makes_floats_of_packed_weights_that_are_slower(options, digits, tmp_path, monkeypatch):
    """The file and the results are those of packed weights; of a tenth more time they stay packed."""
    packed = evort_tools.quantize(str(LENET), tmp_path / "p.etm", scheme="weight-only", prefer="size", **options)
    products = [n for n in packed.model.graph.nodes if n.op in ("ConvNBits", "MatMulNBits")]
    slow = {n.outputs[0]: (1.0, 1.05 if i % 2 else 2.0) for i, n in enumerate(products)}
    monkeypatch.setattr(schemes, "both", lambda *_: slow)
    found = evort_tools.quantize(str(LENET), tmp_path / "m.etm", scheme="weight-only", **options)
    assert found.stored == [n.name or n.outputs[0] for n in products[::2]] and len(products) >= 4
    assert len(found.layers) == len(packed.layers) and not found.notes
    assert (tmp_path / "m.etm").stat().st_size < (tmp_path / "p.etm").stat().st_size + 2000
    session, other = evort.load(tmp_path / "m.etm"), evort.load(tmp_path / "p.etm")
    operators = [n.op for n in session.model.graph.nodes]
    assert "WidenNBits" not in operators and operators.count("Conv") + operators.count("Gemm") == len(products[::2])
    got, want = (s.run({"image": digits})["logits"] for s in (session, other))
    # The same numbers, added up in another order and where X may be rounded to 16 bits.
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())


def test_the_static_part_of_the_mixed_scheme_has_what_static_has():
    given = Options(scheme="mixed", block=16, rounding="nearest", max_size="1MB", pin=("a=int8",), activations="int8")
    assert as_static(given) == Options(activations="int8")
