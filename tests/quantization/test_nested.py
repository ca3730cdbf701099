"""Layers in the branches of an If: quantized by every scheme, on what calibration samples bring to them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from tools_support import onnx_model

import evort
import evort_tools
from evort.graph import Model
from evort.session import Session
from evort_tools.convert import convert_model
from evort_tools.passes import graphs_of

node = helper.make_node


def model(outer_reads: bool = True) -> Model:
    """y = If(flag, relu(h W) V, h U) of h = x W; both branches' weights lie in the outer graph."""
    rng = np.random.default_rng(0)
    constants = {name: rng.normal(size=(32, 32)).astype(np.float32) / 6 for name in ("W", "V", "U")}
    constants["zero"] = np.array(0.0, np.float32)

    def branch(nodes, output):
        return helper.make_graph(nodes, "branch", [], [helper.make_empty_tensor_value_info(output)])

    then = branch(
        [node("MatMul", ["h", "W"], ["t"]), node("Relu", ["t"], ["r"]), node("MatMul", ["r", "V"], ["u"])], "u"
    )
    other = branch([node("MatMul", ["h", "U"], ["v"], name="last")], "v")
    first = node("MatMul", ["x", "W"], ["h"]) if outer_reads else node("Identity", ["x"], ["h"])
    nodes = [first, node("Greater", ["flag", "zero"], ["cond"]),
             node("If", ["cond"], ["y"], then_branch=then, else_branch=other)]  # fmt: skip
    inputs = {"x": (np.float32, ("N", 32)), "flag": (TensorProto.FLOAT, ())}
    return convert_model(onnx_model(nodes, inputs, ["y"], constants))


def samples(*flags: float) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(4, 32)).astype(np.float32), "flag": np.array(f, np.float32)} for f in flags]


def operators(made: Model) -> list[str]:
    return [n.op for graph in graphs_of(made.graph) for n in graph.nodes if "MatMul" in n.op]


def noise(made: Model, real: Model, flag: float) -> float:
    feeds = samples(flag)[0]
    got, want = (Session(m).run(feeds)["y"] for m in (made, real))
    return float(np.square(got - want).sum() / np.square(want).sum())


@pytest.mark.parametrize("outer_reads", [True, False])
def test_static(outer_reads):
    real = model(outer_reads)
    result = evort_tools.quantize(real, calib=samples(*[1, -1] * 8), prefer="size")
    assert set(operators(result.model)) == {"QLinearMatMul"} and len(operators(result.model)) == 3 + outer_reads
    assert not result.kept and len(result.layers) >= 3
    assert noise(result.model, real, 1) < 1e-3 and noise(result.model, real, -1) < 1e-3
    again = evort.load(result.to_bytes()).run(samples(1)[0])["y"]  # the file is valid: no name is there twice
    assert np.array_equal(again, Session(result.model).run(samples(1)[0])["y"])
    assert result.sizes["weights_after"] < 0.4 * result.sizes["weights_before"]


def test_a_branch_that_no_sample_takes_stays_in_float():
    real = model()
    result = evort_tools.quantize(real, calib=samples(1, 1, 2, 3), prefer="size")
    assert sorted(operators(result.model)) == ["MatMul", "QLinearMatMul", "QLinearMatMul", "QLinearMatMul"]
    assert list(result.kept.values()) == ["no calibration sample takes this branch"]
    assert noise(result.model, real, -1) < 1e-3


def test_exclude_reaches_into_branches():
    result = evort_tools.quantize(model(), calib=samples(1, -1, 1, -1), prefer="size", exclude=("last",))
    assert operators(result.model).count("MatMul") == 1
    with pytest.raises(ValueError, match="nothing in the model is named 'nobody'"):
        evort_tools.quantize(model(), calib=samples(1, -1), exclude=("nobody",))


@pytest.mark.parametrize(("options", "operator", "most"), [
    ({"scheme": "dynamic"}, "DynamicQuantizeMatMul", 1e-3),
    ({"scheme": "dynamic", "bits": 16}, "DynamicQuantizeMatMul", 1e-7),
    ({"scheme": "weight-only", "block": 32}, "MatMulNBits", 3e-2),
])  # fmt: skip
@pytest.mark.parametrize("outer_reads", [True, False])
def test_schemes_by_layer(options, operator, most, outer_reads):
    real = model(outer_reads)
    result = evort_tools.quantize(real, **options)
    assert operators(result.model) == [operator] * (3 + outer_reads)
    assert noise(result.model, real, 1) < most and noise(result.model, real, -1) < most
    evort.load(result.to_bytes()).run(samples(1)[0])
