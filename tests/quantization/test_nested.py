"""Layers in the branches of an If: quantized by every scheme, on what calibration samples bring to them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tools_support import onnx_model

import evort
import evort_tools
from evort.graph import Model, Tensor
from evort.session import Session
from evort.types import DType
from evort_tools.convert import convert_model
from evort_tools.passes import graphs_of
from evort_tools.quantization.latency import both

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


def test_a_branch_that_no_sample_takes_has_ranges_of_the_run_where_size_counts():
    real = model()
    result = evort_tools.quantize(real, calib=samples(1, 1, 2, 3), prefer="size")
    assert sorted(operators(result.model)) == ["DynamicQuantizeMatMul"] + 3 * ["QLinearMatMul"]
    assert not result.kept and noise(result.model, real, -1) < 1e-3
    result = evort_tools.quantize(real, calib=samples(1, 1, 2, 3), prefer="size", exclude=("last",))
    assert sorted(operators(result.model)) == ["MatMul"] + 3 * ["QLinearMatMul"]


def test_a_branch_that_no_sample_takes_stays_in_float_where_a_limit_is_to_be_held():
    real = model()
    result = evort_tools.quantize(real, calib=samples(1, 1, 2, 3), prefer="size", max_drop="20dB")
    assert sorted(operators(result.model)) == ["MatMul", "QLinearMatMul", "QLinearMatMul", "QLinearMatMul"]
    assert list(result.kept.values()) == ["no calibration sample takes this branch"]
    assert noise(result.model, real, -1) < 1e-3


def test_a_branch_that_no_sample_takes_has_its_weights_in_8_bits_where_speed_counts():
    """They are floats once it is taken, and nothing else changes."""
    real = model()
    result = evort_tools.quantize(real, calib=samples(1, 1, 2, 3))
    (other,) = (n.attrs["else_branch"] for n in result.model.graph.nodes if n.op == "If")
    assert [n.op for n in other.nodes] == ["DequantizeLinear", "MatMul"]
    assert "last" in result.stored and "no calibration sample takes this branch" in result.kept.values()
    assert noise(result.model, real, -1) < 1e-3
    result = evort_tools.quantize(real, calib=samples(1, 1, 2, 3), exclude=("last",))
    (other,) = (n.attrs["else_branch"] for n in result.model.graph.nodes if n.op == "If")
    assert [n.op for n in other.nodes] == ["MatMul"]


def test_branches_with_equal_names_are_told_apart():
    """Of two products with one output's name, one excluded and one in a branch that no sample takes, only the latter's
    weights are stored in 8 bits."""
    rng = np.random.default_rng(0)
    constants = {name: rng.normal(size=(32, 32)).astype(np.float32) / 6 for name in ("W", "V", "U")}
    constants["zero"] = np.array(0.0, np.float32)
    output = [helper.make_empty_tensor_value_info("t")]
    then, other = (
        helper.make_graph([node("MatMul", ["h", w], ["t"], name=name)], name, [], output)
        for name, w in (("taken", "V"), ("other", "U"))
    )
    nodes = [node("MatMul", ["x", "W"], ["h"]), node("Greater", ["flag", "zero"], ["cond"]),
             node("If", ["cond"], ["y"], then_branch=then, else_branch=other)]  # fmt: skip
    inputs = {"x": (np.float32, ("N", 32)), "flag": (TensorProto.FLOAT, ())}
    real = convert_model(onnx_model(nodes, inputs, ["y"], constants))
    (branches,) = (n for n in real.graph.nodes if n.op == "If")
    for graph in branches.subgraphs():  # the importer has made their names different
        (product,) = graph.nodes
        graph.tensors.pop(graph.outputs[0], None)
        graph.add(Tensor("t", DType.FLOAT, None))
        product.outputs, graph.outputs = ["t"], ["t"]
    result = evort_tools.quantize(real, calib=samples(1, 1, 2, 3), exclude=("taken",))
    (made,) = (n for n in result.model.graph.nodes if n.op == "If")
    assert [n.op for n in made.attrs["then_branch"].nodes] == ["MatMul"]
    assert [n.op for n in made.attrs["else_branch"].nodes] == ["DequantizeLinear", "MatMul"]
    assert "other" in result.stored and "taken" not in result.stored


def test_exclude_reaches_into_branches():
    result = evort_tools.quantize(model(), calib=samples(1, -1, 1, -1), prefer="size", exclude=("last",))
    assert operators(result.model).count("MatMul") == 1
    with pytest.raises(ValueError, match="nothing in the model is named 'nobody'"):
        evort_tools.quantize(model(), calib=samples(1, -1), exclude=("nobody",))


@pytest.mark.parametrize(("options", "operator", "most"), [
    ({"scheme": "dynamic", "prefer": "size"}, "DynamicQuantizeMatMul", 1e-3),
    ({"scheme": "dynamic", "bits": 16, "prefer": "size"}, "DynamicQuantizeMatMul", 1e-7),
    ({"scheme": "weight-only", "block": 32}, "MatMulNBits", 3e-2),
])  # fmt: skip
@pytest.mark.parametrize("outer_reads", [True, False])
def test_schemes_by_layer(options, operator, most, outer_reads):
    real = model(outer_reads)
    result = evort_tools.quantize(real, **options)
    assert operators(result.model) == [operator] * (3 + outer_reads)
    assert noise(result.model, real, 1) < most and noise(result.model, real, -1) < most
    evort.load(result.to_bytes()).run(samples(1)[0])


def test_times_are_those_of_branches_too():
    real = model()
    made = evort_tools.quantize(real, scheme="dynamic", prefer="size").model
    for flag, layers in ((1, 2), (-1, 1)):
        times = both(real, made, samples(flag)[0])
        inside = [n.outputs[0] for graph in graphs_of(real.graph) if graph is not real.graph for n in graph.nodes]
        products = {n.outputs[0] for graph in graphs_of(made.graph) for n in graph.nodes if n.domain}
        assert len(products & times.keys() & set(inside)) == layers
        assert all(us > 0 for pair in times.values() for us in pair)


def test_dynamic_says_where_nothing_can_be_measured():
    """Sizes other than how many samples there are, that the model leaves open."""
    real = model()
    real.graph.tensors["x"].shape = ("N", "M")
    found = evort_tools.quantize(real, scheme="dynamic")
    assert "the shape of 'x' is open" in found.notes[0] and len(found.layers) == 4


def test_layers_in_branches_are_rounded_to_nearest_beside_gptq():
    result = evort_tools.quantize(model(), calib=samples(1, -1), scheme="weight-only", block=32)
    assert operators(result.model) == ["MatMulNBits"] * 4 and not result.kept


def loop_model(scan: bool = False) -> Model:
    """A state [N, 32] that goes through tanh(h W) V + u three times, or once for each slice of a sequence; each state
    comes out, too. V lies in the outer graph, which computes u as well."""
    rng = np.random.default_rng(0)
    constants = {name: rng.normal(size=(32, 32)).astype(np.float32) / 6 for name in ("V", "U")}
    constants |= {"three": np.array(3, np.int64)}
    weight = numpy_helper.from_array(rng.normal(size=(32, 32)).astype(np.float32) / 5, "W")
    info = helper.make_tensor_value_info
    state = [info(n, TensorProto.FLOAT, ("N", 32)) for n in ("h", "next", "seen", "part")]
    steps = [node("MatMul", ["h", "W"], ["a"]), node("Tanh", ["a"], ["b"]), node("MatMul", ["b", "V"], ["c"]),
             node("Add", ["c", "part" if scan else "u"], ["next"]), node("Identity", ["next"], ["seen"])]  # fmt: skip
    counted = [info("i", TensorProto.INT64, ()), info("going", TensorProto.BOOL, ()), state[0]]
    going = [] if scan else [node("Identity", ["going"], ["goes_on"])]
    body = helper.make_graph(
        [*going, *steps], "body", [state[0], state[3]] if scan else counted,
        [*([] if scan else [info("goes_on", TensorProto.BOOL, ())]), *state[1:3]], [weight],
    )  # fmt: skip
    if scan:
        last = node("Scan", ["x", "parts"], ["y", "all"], body=body, num_scan_inputs=1, scan_output_axes=[1])
    else:
        last = node("Loop", ["three", "", "x"], ["y", "all"], body=body)
    nodes = [*([] if scan else [node("MatMul", ["x", "U"], ["u"])]), last]
    inputs = {"x": (np.float32, ("N", 32)), **({"parts": (np.float32, ("T", "N", 32))} if scan else {})}
    return convert_model(onnx_model(nodes, inputs, ["y", "all"], constants))


@pytest.mark.parametrize("scan", [False, True])
def test_bodies_of_loops(scan):
    """A body's iterations are its calibration samples."""
    real = loop_model(scan)
    rng = np.random.default_rng(1)

    def feeds(count):
        for _ in range(count):
            sample = {"x": rng.normal(size=(4, 32)).astype(np.float32)}
            yield {**sample, "parts": rng.normal(size=(5, 4, 32)).astype(np.float32)} if scan else sample

    result = evort_tools.quantize(real, calib=list(feeds(16)), prefer="size")
    assert operators(result.model) == ["QLinearMatMul"] * (2 if scan else 3) and not result.kept
    test = next(feeds(1))
    wanted = Session(real).run(test)
    for name, got in evort.load(result.to_bytes()).run(test).items():
        assert np.square(got - wanted[name]).sum() < 1e-3 * np.square(wanted[name]).sum()


def test_a_body_that_never_runs_has_ranges_of_the_run():
    model = loop_model()
    model.graph.tensors["three"].data = np.array(0, np.int64)
    feeds = [{"x": s["x"]} for s in samples(1, 1)]
    result = evort_tools.quantize(model, calib=feeds, prefer="size", verify=False)
    assert sorted(operators(result.model)) == ["DynamicQuantizeMatMul", "DynamicQuantizeMatMul", "QLinearMatMul"]
    result = evort_tools.quantize(model, calib=feeds, prefer="size", verify=False, max_drop="20dB")
    assert sorted(operators(result.model)) == ["MatMul", "MatMul", "QLinearMatMul"]
    assert set(result.kept.values()) == {"no calibration sample runs this body"}


def test_a_body_whose_state_grows_is_not_calibrated():
    """Its iterations cannot be captured as scan outputs, which have one shape."""
    info = helper.make_tensor_value_info
    going = [info(n, TensorProto.BOOL, ()) for n in ("going", "goes_on")]
    state = [info(n, TensorProto.FLOAT, (None, 32)) for n in ("h", "next")]
    steps = [
        node("Identity", ["going"], ["goes_on"]),
        node("MatMul", ["h", "W"], ["a"]),
        node("Concat", ["h", "a"], ["next"], axis=0),
    ]
    inputs = [info("i", TensorProto.INT64, ()), going[0], state[0]]
    body = helper.make_graph(steps, "body", inputs, [going[1], state[1]])
    constants = {"W": np.eye(32, dtype=np.float32), "three": np.array(3, np.int64)}
    nodes = [node("Loop", ["three", "", "x"], ["y"], body=body)]
    real = convert_model(onnx_model(nodes, {"x": (np.float32, ("N", 32))}, ["y"], constants))
    feeds = [{"x": np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)}] * 2
    result = evort_tools.quantize(real, calib=feeds, prefer="size", max_drop="20dB")
    assert operators(result.model) == ["MatMul"]
    assert "cannot be told" in next(iter(result.kept.values()))
    assert Session(result.model).run(feeds[0])["y"].shape == (16, 32)
    result = evort_tools.quantize(real, calib=feeds, prefer="size")
    assert operators(result.model) == ["DynamicQuantizeMatMul"]
    assert Session(result.model).run(feeds[0])["y"].shape == (16, 32)


FAST = {"method": "minmax", "equalize": "off", "adaround": "off", "bias_correction": "off", "wide_activations": "off"}


def loops(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(4, 32)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("made", [model, loop_model])
def test_a_limit_on_the_loss_holds_with_nested_graphs(made):
    """Layers of nested graphs are undone like others, by what the whole model loses, until the limit holds."""
    real = made()
    calib = samples(*[1, 1, -1, -1] * 4) if made is model else loops(16)
    integer = []
    for drop in ("25dB", "45dB", "140dB"):
        result = evort_tools.quantize(real, calib=calib, prefer="size", max_drop=drop, **FAST)
        integer.append(operators(result.model).count("QLinearMatMul"))
        assert result.loss["loss"] <= result.loss["limit"]
        evort.load(result.to_bytes()).run(calib[0])
        if drop == "140dB":
            assert set(result.kept) == {n.label() for g in graphs_of(real.graph) for n in g.nodes if n.op == "MatMul"}
    assert integer == sorted(integer, reverse=True)
    assert integer[0] == len(operators(real)) > integer[1] >= integer[2] == 0


@pytest.mark.parametrize("made", [model, loop_model])
def test_mixed_precision_of_nested_graphs(made):
    """A nested graph's layers are a candidate as a whole."""
    real = made()
    calib = samples(*[1, 1, -1, -1] * 4) if made is model else loops(16)
    name = next(n.name or n.outputs[0] for n in real.graph.nodes if any(True for _ in n.subgraphs()))

    def quantized(**options):
        result = evort_tools.quantize(real, calib=calib, scheme="mixed", prefer="size", **FAST, **options)
        evort.load(result.to_bytes()).run(calib[0])
        (row,) = (row for row in result.layers if row["name"] == name)
        return result, row

    inside = {"int8": "QLinearMatMul", "int4": "MatMulNBits", "int16": "DynamicQuantizeMatMul", "float32": "MatMul"}
    for precision, operator in inside.items():
        result, row = quantized(pin=(f"{name}=" + precision,), max_drop="10dB")
        assert row["precision"] == precision and row["bytes"]["int8"] < 0.4 * row["bytes"]["float32"]
        nested = [n.op for g in graphs_of(result.model.graph) if g is not result.model.graph for n in g.nodes]
        assert {op for op in nested if "MatMul" in op} == {operator}
    small, row = quantized(max_size="40%")
    assert row["precision"] in ("int8", "int4") and len(small.to_bytes()) <= 0.4 * small.sizes["weights_before"] * 1.3
    fine, row = quantized(max_drop="60dB")
    assert row["precision"] in ("int16", "float16", "float32") and fine.loss["loss"] <= fine.loss["limit"]
    if made is model:  # a name inside it names it, too
        assert quantized(exclude=("last",))[1]["precision"] == "float32"


def test_adaptive_levels_need_a_model_without_nested_graphs():
    with pytest.raises(ValueError, match=r"adaptive: If .* holds nested graphs"):
        evort_tools.quantize(model(), calib=samples(1, -1), prefer="size", adaptive=True, **FAST)
