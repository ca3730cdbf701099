"""Reading ONNX models: names, constants, nested graphs, functions, external data, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tools_support import imported, node, onnx_model, ops_of, run

import evort
from evort.errors import ConversionError
from evort.ops import base
from evort.types import DType
from evort_tools.convert import convert
from evort_tools.importer import read

F = np.float32


def value_info(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


# Inputs and constants


def test_weights_listed_as_inputs_are_constants():
    model = onnx_model([node("Add", ["x", "w"], ["y"])], {"w": (F, [3]), "x": (F, [2, 3])},
                       constants={"w": np.arange(3, dtype=F)})  # fmt: skip
    graph = imported(model)[0].graph
    assert graph.inputs == ["x"]
    np.testing.assert_array_equal(graph.constant("w"), np.arange(3))


def test_symbolic_dimensions_keep_their_names_and_anonymous_ones_get_some():
    model = onnx_model([node("Relu", ["x"], ["y"])], {"x": (F, ["batch", 3, None, "?"])})
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims.add().dim_value = -1
    found, shapes = imported(model)
    assert found.graph.tensors["x"].shape == ("batch", 3, "x_dim_2", "x_dim_3", "x_dim_4")
    assert shapes.shape("y") == ("batch", 3, "x_dim_2", "x_dim_3", "x_dim_4")


def test_input_shapes_override_the_declared_ones():
    model = onnx_model([node("Relu", ["x"], ["y"])], {"x": (F, [1, 3, 480, 720])})
    _, shapes = imported(model, {"x": (1, 3, "H", 64)})
    assert shapes.shape("y") == (1, 3, "H", 64)
    with pytest.raises(ConversionError, match=r"rank 4.*2"):
        imported(model, {"x": (1, 3)})
    with pytest.raises(ConversionError, match="no input is named 'z'"):
        imported(model, {"z": (1, 3)})


CONSTANTS = {
    "value": numpy_helper.from_array(np.array([[1, 2], [3, 4]], F)),
    "value_float": 2.5,
    "value_floats": [1.0, 2.5],
    "value_int": 7,
    "value_ints": [1, 2, 3],
    "value_string": "text",
    "value_strings": ["a", "bc"],
}


@pytest.mark.parametrize(("key", "value"), CONSTANTS.items(), ids=CONSTANTS.keys())
def test_constant_nodes_become_constants(key, value):
    model = onnx_model([node("Constant", [], ["c"], **{key: value}), node("Identity", ["c"], ["y"])], {})
    graph = imported(model)[0].graph
    assert [n.op for n in graph.nodes] == ["Identity"]
    want = numpy_helper.to_array(value) if key == "value" else np.array(value, object if "string" in key else None)
    got = graph.constant("c")
    assert got.shape == want.shape
    np.testing.assert_array_equal(got, want)
    kinds = {"value": DType.FLOAT, "value_i": DType.INT64, "value_f": DType.FLOAT, "value_s": DType.STRING}
    assert graph.tensors["c"].dtype == kinds[key[:7] if len(key) > 5 else key]


@pytest.mark.parametrize("flat", [True, False])
def test_sparse_constants_become_dense(flat):
    dense = np.zeros((3, 4), F)
    dense[0, 1], dense[2, 3] = 5, -1
    indices = np.array([1, 11]) if flat else np.array([[0, 1], [2, 3]])
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("s", TensorProto.FLOAT, [2], [5, -1]),
        helper.make_tensor("i", TensorProto.INT64, indices.shape, indices.reshape(-1)),
        [3, 4],
    )
    model = onnx_model([node("Constant", [], ["c"], sparse_value=sparse), node("Add", ["c", "s"], ["y"])], {})
    model.graph.sparse_initializer.append(sparse)
    np.testing.assert_array_equal(run(imported(model)[0], {})[0], 2 * dense)


@pytest.mark.parametrize(
    ("kind", "values", "stored"),
    [
        (TensorProto.BFLOAT16, [1.0, -2.5], np.array([0x3F80, 0xC020], np.uint16)),
        (TensorProto.FLOAT8E4M3FN, [1.0, -2.0], np.array([0x38, 0xC0], np.uint8)),
        (TensorProto.INT4, [-8, 7], np.array([-8, 7], np.int8)),
        (TensorProto.UINT4, [0, 15], np.array([0, 15], np.uint8)),
        (TensorProto.FLOAT16, [0.5, -1.0], np.array([0.5, -1.0], np.float16)),
        (TensorProto.BOOL, [1, 0], np.array([True, False])),
    ],
)
def test_element_types_are_held_in_their_storage_types(kind, values, stored):
    tensor = helper.make_tensor("c", kind, [2], values)
    model = onnx_model([node("Identity", ["c"], ["y"])], {})
    model.graph.initializer.append(tensor)
    found = imported(model)[0].graph.tensors["c"]
    assert found.dtype == kind and found.data.dtype == stored.dtype
    np.testing.assert_array_equal(found.data, stored)


def test_constant_of_shape_of_a_type_that_numpy_lacks():
    """Its value attribute would lose its type: it becomes a constant that is expanded."""
    value = helper.make_tensor("v", TensorProto.BFLOAT16, [1], [3.0])
    model = onnx_model([node("ConstantOfShape", ["s"], ["y"], value=value)], {}, constants={"s": np.array([2, 2])})
    found, shapes = imported(model)
    assert ops_of(found) == ["Expand"]
    assert shapes.dtype("y") == DType.BFLOAT16 and shapes.shape("y") == (2, 2)


# Order and names


def test_nodes_are_sorted():
    model = onnx_model([node("Relu", ["a"], ["y"]), node("Neg", ["x"], ["a"])], {"x": (F, [2])})
    assert ops_of(imported(model)[0]) == ["Neg", "Relu"]


def test_cycles_duplicates_and_unknown_names_are_reported_together():
    nodes = [
        node("Add", ["a", "b"], ["b"], name="loop"),
        node("Relu", ["nowhere"], ["c"], name="lost"),
        node("Relu", ["x"], ["d"]),
        node("Neg", ["x"], ["d"], name="twice"),
        node("Sum", ["b", "c", "d"], ["y"]),
    ]
    with pytest.raises(ConversionError) as caught:
        imported(onnx_model(nodes, {"x": (F, [2])}, ["y", "missing"]))
    text = str(caught.value)
    for part in ("'loop': it needs its own result", "'lost'", "'nowhere'", "'d' is defined twice", "'missing'"):
        assert part in text, part
    assert len(caught.value.problems) >= 5


def test_dead_nodes_are_not_looked_at():
    nodes = [node("NoSuchOperator", ["x"], ["unused"]), node("Relu", ["x"], ["y"])]
    assert ops_of(imported(onnx_model(nodes, {"x": (F, [2])}))[0]) == ["Relu"]


@pytest.mark.parametrize("wanted", ["values", "indices"])
@pytest.mark.parametrize("optimize", [True, False])
def test_results_that_nothing_reads_need_not_be_there(wanted, optimize):
    x = np.random.default_rng(0).random((3, 8), F)
    model = onnx_model(
        [node("TopK", ["x", "k"], ["values", "indices"])], {"x": (F, [3, 8])}, [wanted], {"k": np.array([2])}
    )
    (got,) = evort.load(convert(model, optimize=optimize)).run({"x": x}).values()
    order = np.argsort(-x, axis=1)[:, :2]
    np.testing.assert_array_equal(got, order if wanted == "indices" else np.take_along_axis(x, order, 1))


# Nested graphs


def if_model():
    then = helper.make_graph(
        [node("Mul", ["x", "two"], ["t"])], "then", [], [value_info("t", [2])],
        [numpy_helper.from_array(np.array(2, F), "two")],
    )  # fmt: skip
    other = helper.make_graph([node("Softmax", ["x"], ["t"])], "else", [], [value_info("t", [2])])
    return onnx_model([node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
                      {"c": (np.bool_, []), "x": (F, [1, 2])}, opset=11)  # fmt: skip


def test_nested_graphs_see_outer_names_and_their_own_become_unique():
    model = imported(if_model())[0]
    (cond,) = model.graph.nodes
    then, other = cond.attrs["then_branch"], cond.attrs["else_branch"]
    assert then.outputs != other.outputs  # both were called t
    assert then.free_names() == ["x"]
    x = np.array([[1, -3]], F)
    np.testing.assert_array_equal(run(model, {"c": np.array(True), "x": x})[0], 2 * x)
    # Opset 11's Softmax is rewritten in the branch too.
    assert other.nodes[0].op == "Softmax" and other.nodes[0].attrs.get("axis", -1) in (1, -1)


def test_loop_body_shapes_come_from_what_is_carried():
    body = helper.make_graph(
        [node("Identity", ["c"], ["again"]), node("Add", ["v", "k"], ["w"]), node("Mul", ["v", "v"], ["s"])],
        "body",
        [value_info("i", [], TensorProto.INT64), value_info("c", [], TensorProto.BOOL), value_info("v", None)],
        [value_info("again", [], TensorProto.BOOL), value_info("w", None), value_info("s", None)],
    )
    nodes = [node("Loop", ["n", "", "x"], ["last", "all"], body=body)]
    model = onnx_model(nodes, {"x": (F, ["N", 2])}, ["last", "all"], {"n": np.array(3), "k": np.array([[1, 2]], F)})
    found, shapes = imported(model)
    assert shapes.shape("last") == ("N", 2) and shapes.shape("s") == ("N", 2)
    assert shapes.dtype("all") == DType.FLOAT and shapes.shape("all") is None
    x = np.ones((4, 2), F)
    last, everything = run(found, {"x": x})
    np.testing.assert_array_equal(last, x + 3 * np.array([[1, 2]]))
    assert everything.shape == (3, 4, 2)


def test_loop_that_grows_what_it_carries_has_no_shape():
    body = helper.make_graph(
        [node("Identity", ["c"], ["again"]), node("Concat", ["v", "v"], ["w"], axis=0)],
        "body",
        [value_info("i", [], TensorProto.INT64), value_info("c", [], TensorProto.BOOL), value_info("v", None)],
        [value_info("again", [], TensorProto.BOOL), value_info("w", None)],
    )
    model = onnx_model([node("Loop", ["n", "", "x"], ["y"], body=body)], {"x": (F, [2])}, constants={"n": np.array(3)})
    found, shapes = imported(model)
    assert shapes.shape("y") is None and shapes.dtype("y") == DType.FLOAT
    assert run(found, {"x": np.zeros(2, F)})[0].shape == (16,)


# Functions


def test_model_functions_are_expanded_with_attributes_and_defaults():
    function = helper.make_function(
        "own", "scaled", ["a", "b"], ["r"],
        [
            helper.make_node("LeakyRelu", ["a"], ["t"]),
            helper.make_node("Gemm", ["t", "b"], ["r"]),
        ],
        [helper.make_opsetid("", 13)], ["slope"],
        [helper.make_attribute("factor", 3.0)],
    )  # fmt: skip
    for proto, key, ref in ((function.node[0], "alpha", "slope"), (function.node[1], "alpha", "factor")):
        attribute = proto.attribute.add(name=key, ref_attr_name=ref, type=onnx.AttributeProto.FLOAT)
        assert attribute.ref_attr_name == ref
    nodes = [
        node("scaled", ["x", "w"], ["m"], domain="own", slope=0.5),
        node("scaled", ["m", "w"], ["y"], domain="own", slope=0.25, factor=1.0),
    ]
    w = np.array([[1, 2], [3, -4]], F)
    model = onnx_model(nodes, {"x": (F, [2, 2])}, constants={"w": w}, domains={"own": 1}, functions=[function])
    x = np.array([[1, -1], [-2, 3]], F)
    leaky = lambda v, a: np.where(v < 0, a * v, v)  # noqa: E731
    expected = leaky(3 * leaky(x, 0.5) @ w, 0.25) @ w
    found = imported(model)[0]
    np.testing.assert_allclose(run(found, {"x": x})[0], expected, rtol=1e-6)
    assert sorted(set(ops_of(found))) == ["Gemm", "Identity", "LeakyRelu"]


def test_functions_have_opsets_of_their_own():
    """A function of opset 11 in a model of opset 18: its Squeeze has its axes as an attribute."""
    function = helper.make_function("own", "f", ["a"], ["r"], [helper.make_node("Squeeze", ["a"], ["r"], axes=[0])],
                                    [helper.make_opsetid("", 11)])  # fmt: skip
    model = onnx_model([node("f", ["x"], ["y"], domain="own")], {"x": (F, [1, 3])}, opset=18, domains={"own": 1},
                       functions=[function])  # fmt: skip
    assert run(imported(model)[0], {"x": np.zeros((1, 3), F)})[0].shape == (3,)


def test_functions_that_call_themselves_are_refused():
    function = helper.make_function("own", "f", ["a"], ["r"], [helper.make_node("f", ["a"], ["r"], domain="own")],
                                    [helper.make_opsetid("", 13), helper.make_opsetid("own", 1)])  # fmt: skip
    model = onnx_model([node("f", ["x"], ["y"], domain="own")], {"x": (F, [3])}, domains={"own": 1},
                       functions=[function])  # fmt: skip
    with pytest.raises(ConversionError, match="call each other"):
        imported(model)


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        ("SoftmaxCrossEntropyLoss", {"x": (F, [3, 5]), "l": (np.int64, [3])}, {}),
        ("CenterCropPad", {"x": (F, [5, 6])}, {}),
        ("AffineGrid", {"x": (F, [2, 2, 3])}, {}),
        ("ReduceSumSquare", {"x": (F, [5, 6])}, {}),
    ],
)
def test_operators_that_onnx_defines_by_others(op, inputs, attrs, monkeypatch):
    """Bodies from ONNX's schemas, plain and depending on types, equal ONNX's reference of the operator itself."""
    constants = {"CenterCropPad": np.array([3, 8]), "AffineGrid": np.array([2, 3, 4, 5])}
    extra = {"size": constants[op]} if op in constants else {}
    base.registered()  # imports all families, which would otherwise register in the copy only
    registry = {key: value for key, value in base._REGISTRY.items() if key != ("", op)}
    monkeypatch.setattr(base, "_REGISTRY", registry)
    model = onnx_model([node(op, [*inputs, *extra], ["y"], **attrs)], inputs, constants=extra, opset=20)
    rng = np.random.default_rng(3)
    feeds = {n: (rng.standard_normal(s) if t is F else rng.integers(0, 5, s)).astype(t) for n, (t, s) in inputs.items()}
    found = imported(model)[0]
    assert op not in ops_of(found)
    (expected,) = ReferenceEvaluator(model).run(None, feeds)
    np.testing.assert_allclose(run(found, feeds)[0], expected, rtol=1e-5, atol=1e-6)


# Files


def external_model(folder, **changes):
    """A model whose weight lies in weights.bin from byte 64 on."""
    w = np.arange(12, dtype=F).reshape(3, 4)
    (folder / "weights.bin").write_bytes(bytes(64) + w.tobytes())
    model = onnx_model([node("MatMul", ["x", "w"], ["y"])], {"x": (F, [2, 3])})
    tensor = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=w.shape,
                                         data_location=TensorProto.EXTERNAL)  # fmt: skip
    entries = {"location": "weights.bin", "offset": "64", "length": "48", **changes}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path, w


def test_external_data_is_mapped(tmp_path):
    path, w = external_model(tmp_path)
    found = imported(path)[0]
    assert isinstance(found.graph.constant("w"), np.memmap)
    x = np.ones((2, 3), F)
    np.testing.assert_array_equal(run(found, {"x": x})[0], x @ w)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"location": "gone.bin"}, "missing"),
        ({"location": "../weights.bin"}, "outside"),
        ({"location": "/etc/hostname"}, "outside"),
        ({"offset": "1000"}, "exceed"),
        ({"offset": "-4"}, "exceed"),
        ({"length": "44"}, "needs 48 bytes"),
        ({"offset": "many"}, "no number"),
    ],
)
def test_external_data_that_is_not_there(tmp_path, changes, problem):
    path, _ = external_model(tmp_path, **changes)
    with pytest.raises(ConversionError, match=f"'w'.*{problem}"):
        imported(path)


def test_external_data_of_bytes_has_no_folder(tmp_path):
    path, _ = external_model(tmp_path)
    with pytest.raises(ConversionError, match="convert from the model's path"):
        imported(path.read_bytes())


def test_path_bytes_and_proto_give_one_graph(tmp_path):
    model = onnx_model([node("Relu", ["x"], ["y"])], {"x": (F, [2])})
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    hashes = {read(source).sha256 for source in (path, str(path), path.read_bytes(), model)}
    assert len(hashes) == 1
    assert all(ops_of(imported(source)[0]) == ["Relu"] for source in (path, path.read_bytes(), model))


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x00" * 64])
def test_what_is_no_model_is_refused(data):
    with pytest.raises(ConversionError, match="not an ONNX model"):
        imported(data)


def test_damaged_weights_are_reported_by_name():
    model = onnx_model([node("Add", ["x", "w"], ["y"])], {"x": (F, [3])}, constants={"w": np.ones(3, F)})
    model.graph.initializer[0].raw_data = b"\x00" * 5
    with pytest.raises(ConversionError, match="weight 'w'"):
        imported(model)
    model.graph.initializer[0].data_type = 77
    with pytest.raises(ConversionError, match="element type 77 is unknown"):
        imported(model)


def test_metadata_is_kept():
    model = onnx_model([node("Relu", ["x"], ["y"])], {"x": (F, [2])}, opset=17, domains={"own": 3})
    model.producer_name, model.producer_version, model.doc_string = "exporter", "1.2", "what it is for"
    model.metadata_props.add(key="character", value="abc")
    found = imported(model)[0]
    assert found.producer == "exporter 1.2"
    assert found.metadata["character"] == "abc"
    assert found.metadata["onnx.doc_string"] == "what it is for"
    assert found.metadata["onnx.opset_import"] == "ai.onnx 17, own 3"
    assert found.opsets["own"] == 3


def test_domains_that_are_not_imported_are_reported():
    model = onnx_model([node("Op", ["x"], ["y"], domain="elsewhere", name="n")], {"x": (F, [2])})
    with pytest.raises(ConversionError, match=r"'n'.*no opset of the domain 'elsewhere'"):
        imported(model)
