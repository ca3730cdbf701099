"""Passes that take nodes away: dead code, constants, identities, shape arithmetic, common subexpressions, lookups."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from tools_support import check_pass, imported, node, onnx_model, ops_of, optimized, run

from evort_tools.passes import ORDER, run_passes

F = np.float32
RNG = np.random.default_rng(11)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(F)


# Dead code


def test_dead_code_drops_nodes_optional_outputs_and_constants():
    nodes = [
        node("MaxPool", ["x"], ["y", "where"], kernel_shape=[2]),
        node("Shape", ["where"], ["s"]),
        node("Relu", ["x"], ["unused"]),
        node("Add", ["unused", "w"], ["unused2"]),
    ]
    model = onnx_model(nodes, {"x": (F, [1, 1, 6])}, ["y"], {"w": f32(6)})
    found, shapes = imported(model)
    found.graph.outputs = ["y"]
    run_passes(found, shapes, [name for name in ORDER if name != "dead_code"])
    assert [n.outputs for n in found.graph.nodes] == [["y"]]
    assert "w" not in found.graph.tensors


def test_dead_code_drops_what_the_operator_does_not_read():
    """The tensor that exporters make for the result of the 3-D lookup table, and a number that repeats its shape."""
    lookup = node("tri_forward", ["lut", "x", "o", "", "s", "bin"], ["y"], domain="cus_ops")
    nodes = [node("Exp", ["x"], ["e"]), node("Neg", ["e"], ["o"]), lookup]
    constants = {"lut": f32(2, 3, 3, 3), "bin": np.array([0.5], F), "s": np.array([27])}
    model = onnx_model(nodes, {"x": (F, [1, 3, 4, 4])}, ["y"], constants, domains={"cus_ops": 1})
    after = check_pass(model, "dead_code")
    assert ops_of(after) == ["tri_forward"]
    assert after.graph.nodes[0].inputs == ["lut", "x", "", "", "", "bin"] and "s" not in after.graph.tensors


def test_dead_code_keeps_what_nested_graphs_read():
    then = helper.make_graph([node("Add", ["a", "w"], ["t"])], "t", [], [helper.make_tensor_value_info("t", 1, None)])
    other = helper.make_graph([node("Neg", ["a"], ["e"])], "e", [], [helper.make_tensor_value_info("e", 1, None)])
    nodes = [node("Exp", ["x"], ["a"]), node("If", ["c"], ["y"], then_branch=then, else_branch=other)]
    model = onnx_model(nodes, {"c": (np.bool_, []), "x": (F, [3])}, constants={"w": f32(3)})
    for condition in (True, False):
        check_pass(model, feeds={"c": np.array(condition), "x": f32(3)})


# Branches


@pytest.mark.parametrize("condition", [True, False])
def test_branches_with_a_constant_condition_are_put_in_place(condition):
    then = helper.make_graph([node("Mul", ["x", "k"], ["r"])], "t", [], [helper.make_tensor_value_info("r", 1, None)],
                             [helper.make_tensor("k", 1, [], [3.0])])  # fmt: skip
    other = helper.make_graph([node("Neg", ["x"], ["r"])], "e", [], [helper.make_tensor_value_info("r", 1, None)])
    nodes = [node("If", ["c"], ["y"], then_branch=then, else_branch=other)]
    model = onnx_model(nodes, {"x": (F, [3])}, constants={"c": np.array(condition)})
    after = check_pass(model)
    assert ops_of(after) == (["Mul"] if condition else ["Neg"])


# Constants


def test_constants_are_folded_through_many_operators():
    nodes = [
        node("Transpose", ["w"], ["t"], perm=[1, 0]),
        node("Add", ["t", "b"], ["s"]),
        node("Sqrt", ["s"], ["r"]),
        node("MatMul", ["x", "r"], ["y"]),
    ]
    model = onnx_model(nodes, {"x": (F, [2, 3])}, constants={"w": np.abs(f32(4, 3)), "b": np.abs(f32(4))})
    after = check_pass(model, "constants")
    assert ops_of(after) == ["MatMul"]


def test_constant_outputs_stay_outputs():
    nodes = [node("Add", ["a", "b"], ["y"]), node("Shape", ["x"], ["z"])]
    model = onnx_model(nodes, {"x": (F, [2, 3])}, ["y", "z"], {"a": f32(3), "b": f32(3)})
    after = check_pass(model)
    assert set(ops_of(after)) == {"Identity"}


def test_random_operators_are_not_folded():
    nodes = [node("RandomUniform", [], ["r"], shape=[3], seed=1.0), node("Add", ["x", "r"], ["y"])]
    model = onnx_model(nodes, {"x": (F, [3])})
    assert "RandomUniform" in ops_of(optimized(model))
    twice = [node("RandomUniform", [], ["r"], shape=[3]), node("RandomUniform", [], ["s"], shape=[3]),
             node("Sub", ["r", "s"], ["y"])]  # fmt: skip
    assert ops_of(optimized(onnx_model(twice, {}))).count("RandomUniform") == 2


@pytest.mark.parametrize(("size", "folded"), [(1000, True), (1000000, False)])
def test_fills_are_folded_only_while_they_are_small(size, folded):
    nodes = [node("ConstantOfShape", ["s"], ["c"]), node("Add", ["x", "c"], ["y"])]
    model = onnx_model(nodes, {"x": (F, [size])}, constants={"s": np.array([size])})
    assert ("ConstantOfShape" in ops_of(optimized(model, "constants"))) != folded


def test_weights_are_folded_though_they_are_large():
    nodes = [node("Cast", ["w"], ["c"], to=1), node("Transpose", ["c"], ["t"]), node("MatMul", ["x", "t"], ["y"])]
    model = onnx_model(nodes, {"x": (F, [1, 1024])}, constants={"w": f32(1024, 1024).astype(np.float16)})
    assert ops_of(optimized(model, "constants")) == ["MatMul"]


def test_quantized_weights_are_not_blown_up():
    nodes = [node("DequantizeLinear", ["w", "s"], ["d"]), node("MatMul", ["x", "d"], ["y"])]
    model = onnx_model(nodes, {"x": (F, [1, 2048])},
                       constants={"w": np.ones((2048, 1024), np.int8), "s": np.array(0.5, F)})  # fmt: skip
    assert ops_of(optimized(model)) == ["DequantizeLinear", "MatMul"]


# Identities


def one(op, inputs, constants, shape=(2, 3, 4), kind=F, opset=21, **attrs):
    return onnx_model([node("Abs", ["x"], ["a"]), node(op, inputs, ["b"], **attrs), node("Exp", ["b"], ["y"])],
                      {"x": (kind, shape)}, constants=constants, opset=opset)  # fmt: skip


I64 = np.int64
NOTHING = [
    ("Identity", ["a"], {}, {}),
    ("Dropout", ["a", "r"], {"r": np.array(0.5, F)}, {}),
    ("Cast", ["a"], {}, {"to": 1}),
    ("Reshape", ["a", "s"], {"s": np.array([2, -1, 4])}, {}),
    ("Reshape", ["a", "s"], {"s": np.array([0, 0, 0])}, {}),
    ("Expand", ["a", "s"], {"s": np.array([1, 4])}, {}),
    ("Tile", ["a", "s"], {"s": np.array([1, 1, 1])}, {}),
    ("Transpose", ["a"], {}, {"perm": [0, 1, 2]}),
    ("Pad", ["a", "p"], {"p": np.zeros(6, I64)}, {}),
    ("Slice", ["a", "s", "e"], {"s": np.array([0, -10]), "e": np.array([99, 3])}, {}),
    ("Concat", ["a"], {}, {"axis": 1}),
    ("Sum", ["a"], {}, {}),
    ("Max", ["a"], {}, {}),
    ("Mul", ["a", "k"], {"k": np.array(1, F)}, {}),
    ("Mul", ["k", "a"], {"k": np.ones((3, 1), F)}, {}),
    ("Div", ["a", "k"], {"k": np.ones(1, F)}, {}),
    ("Add", ["k", "a"], {"k": np.zeros((2, 1, 1), F)}, {}),
    ("Sub", ["a", "k"], {"k": np.array(0, F)}, {}),
    ("Pow", ["a", "k"], {"k": np.array(1, F)}, {}),
    ("Clip", ["a"], {}, {}),
    ("Max", ["a", "k"], {"k": np.array(-np.inf, F)}, {}),
    ("Where", ["k", "a", "z"], {"k": np.ones((3, 1), bool), "z": np.zeros((), F)}, {}),
    ("Where", ["k", "z", "a"], {"k": np.array(False), "z": np.zeros((), F)}, {}),
    ("Abs", ["a"], {}, {}),
]


@pytest.mark.parametrize(("op", "inputs", "constants", "attrs"), NOTHING, ids=[f"{c[0]}-{i}" for i, c in
                                                                              enumerate(NOTHING)])  # fmt: skip
def test_what_changes_nothing_goes(op, inputs, constants, attrs):
    after = check_pass(one(op, inputs, constants, **attrs), "identities")
    assert ops_of(after) == ["Abs", "Exp"]


SOMETHING = [
    ("Mul", ["a", "k"], {"k": np.ones((5, 1, 1, 1), F)}, {}),  # makes it larger
    ("Add", ["a", "k"], {"k": np.zeros((1, 1, 1, 1), F)}, {}),  # raises the rank
    ("Sub", ["k", "a"], {"k": np.zeros((), F)}, {}),
    ("Div", ["k", "a"], {"k": np.ones((), F)}, {}),
    ("Mul", ["a", "k"], {"k": np.array([1, 1, 1, 1.0000001], F)}, {}),
    ("Slice", ["a", "s", "e", "x1", "d"], {"s": np.array([-1]), "e": np.array([-99]), "x1": np.array([0]),
                                           "d": np.array([-1])}, {}),
    ("Transpose", ["a"], {}, {"perm": [0, 2, 1]}),
    ("Pad", ["a", "p"], {"p": np.array([0, 0, 1, 0, 0, -1])}, {}),
    ("Expand", ["a", "s"], {"s": np.array([5, 1, 1, 1])}, {}),
    ("Where", ["k", "a", "z"], {"k": np.array([True, False, True, True]), "z": np.zeros((), F)}, {}),
    ("Where", ["k", "z", "a"], {"k": np.array(True), "z": np.zeros((), F)}, {}),
    ("Clip", ["a", "lo"], {"lo": np.array(0.5, F)}, {}),
    ("Cast", ["a"], {}, {"to": 10}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "inputs", "constants", "attrs"), SOMETHING, ids=[f"{c[0]}-{i}" for i, c in
                                                                                enumerate(SOMETHING)])  # fmt: skip
def test_what_changes_something_stays(op, inputs, constants, attrs):
    after = check_pass(one(op, inputs, constants, **attrs), "identities")
    assert len(ops_of(after)) == 3


def test_identities_between_inputs_and_outputs_stay():
    """An output needs a node that writes it; two outputs that are one tensor need two."""
    nodes = [node("Identity", ["x"], ["y"]), node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["z"]),
             node("Identity", ["a"], ["w"])]  # fmt: skip
    model = onnx_model(nodes, {"x": (F, [2])}, ["y", "z", "w"])
    after = check_pass(model)
    assert sorted(ops_of(after)) == ["Identity", "Identity", "Relu"]
    names = [n.outputs[0] for n in after.graph.nodes]
    assert sorted(names) == ["w", "y", "z"]


def test_output_names_move_to_what_computes_them():
    nodes = [node("Relu", ["x"], ["a"]), node("Identity", ["a"], ["y"]), node("Exp", ["a"], ["z"])]
    after = check_pass(onnx_model(nodes, {"x": (F, [2])}, ["y", "z"]))
    assert ops_of(after) == ["Relu", "Exp"] and after.graph.nodes[1].inputs == ["y"]


def test_identity_before_a_nested_graph_that_captures_it():
    then = helper.make_graph([node("Add", ["b", "b"], ["t"])], "t", [], [helper.make_tensor_value_info("t", 1, None)])
    other = helper.make_graph([node("Identity", ["b"], ["e"])], "e", [], [helper.make_tensor_value_info("e", 1, None)])
    nodes = [node("Exp", ["x"], ["a"]), node("Identity", ["a"], ["b"]),
             node("If", ["c"], ["y"], then_branch=then, else_branch=other)]  # fmt: skip
    model = onnx_model(nodes, {"c": (np.bool_, []), "x": (F, [3])})
    for condition in (True, False):
        after = check_pass(model, feeds={"c": np.array(condition), "x": f32(3)})
        assert ops_of(after) == ["Exp", "If"]


def test_views_of_views_are_one():
    nodes = [
        node("Reshape", ["x", "s"], ["a"]),
        node("Unsqueeze", ["a", "u"], ["b"]),
        node("Flatten", ["b"], ["c"], axis=2),
        node("Exp", ["c"], ["y"]),
    ]
    constants = {"s": np.array([0, 6, -1]), "u": np.array([0])}
    model = onnx_model(nodes, {"x": (F, ["N", 2, 3, 4])}, constants=constants)
    after = check_pass(model, sizes={"N": 5})
    assert ops_of(after) == ["Reshape", "Exp"]


def test_casts_are_joined_only_without_loss():
    def casts(*kinds):
        names = ["x", *(f"c{i}" for i in range(len(kinds) - 2)), "y"]
        nodes = [node("Cast", [a], [b], to=helper.np_dtype_to_tensor_dtype(np.dtype(k)))
                 for a, b, k in zip(names, names[1:], kinds[1:], strict=False)]  # fmt: skip
        model = onnx_model(nodes, {"x": (kinds[0], [64])})
        values = np.linspace(-300, 300, 64)
        feeds = {"x": (np.abs(values) if np.dtype(kinds[0]).kind == "u" else values).astype(kinds[0])}
        return ops_of(check_pass(model, "identities", feeds=feeds))

    assert casts(np.int32, np.int64, np.int32) == ["Identity"]
    assert casts(np.uint8, np.int32, np.float32) == ["Cast"]
    assert casts(np.float32, np.float16, np.float32) == ["Cast", "Cast"]
    assert casts(np.int64, np.int32, np.int64) == ["Cast", "Cast"]
    assert casts(np.float32, np.int32, np.float32) == ["Cast", "Cast"]


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        (((0.0, 6.0), (1.0, None)), ["Clip"]),
        (((0.0, None), (-1.0, None)), ["Relu"]),
        (((-1.0, None), (0.0, None)), ["Relu"]),
        (((0.0, 1.0), (2.0, 3.0)), ["Clip"]),
        (((5.0, 1.0), (0.0, 3.0)), ["Clip", "Clip"]),  # the larger bound first: left alone
    ],
)
def test_clips_are_joined(bounds, expected):
    nodes, constants, x = [], {}, "x"
    for i, pair in enumerate(bounds):
        names = []
        for what, bound in zip(("min", "max"), pair, strict=True):
            names.append("" if bound is None else f"{what}{i}")
            if bound is not None:
                constants[names[-1]] = np.array(bound, F)
        nodes.append(node("Clip", [x, *names], [f"c{i}"]))
        x = f"c{i}"
    nodes[-1].output[0] = "y"
    model = onnx_model(nodes, {"x": (F, [200])}, constants=constants)
    feeds = {"x": np.concatenate([np.linspace(-10, 10, 197), [np.nan, np.inf, -np.inf]]).astype(F)}
    assert ops_of(check_pass(model, "identities", feeds=feeds)) == expected


def test_max_and_min_with_numbers_become_relu_and_clip():
    nodes = [node("Max", ["zero", "x"], ["a"]), node("Min", ["a", "six"], ["y"])]
    model = onnx_model(nodes, {"x": (F, [50])}, constants={"zero": np.zeros(1, F), "six": np.array(6, F)})
    feeds = {"x": np.concatenate([np.linspace(-10, 10, 47), [np.nan, np.inf, -np.inf]]).astype(F)}
    assert ops_of(check_pass(model, "identities", feeds=feeds)) == ["Clip"]
    integers = onnx_model([node("Max", ["x", "zero"], ["y"])], {"x": (np.int64, [5])}, constants={"zero": np.array(0)})
    assert ops_of(check_pass(integers, "identities")) == ["Max"]


def test_squares_are_products():
    feeds = {"x": np.array([-3, 0, -0.0, 1e-30, 1e30, np.inf, -np.inf, np.nan], F)}
    model = onnx_model([node("Pow", ["x", "k"], ["y"])], {"x": (F, [8])}, constants={"k": np.array(2, F)})
    assert ops_of(check_pass(model, "identities", feeds=feeds)) == ["Mul"]
    model = onnx_model([node("Pow", ["x", "k"], ["y"])], {"x": (F, [8])}, constants={"k": np.full((1, 1), 2, F)})
    assert ops_of(check_pass(model, "identities", feeds=feeds)) == ["Pow"]


# Shape arithmetic


def test_computed_reshape_targets_become_constants():
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Unsqueeze", ["n", "axes"], ["n1"]),
        node("Concat", ["n1", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    constants = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1, 4])}
    model = onnx_model(nodes, {"x": (F, ["N", "L", 8])}, constants=constants)
    after = check_pass(model, sizes={"N": 3, "L": 5})
    assert ops_of(after) == ["Reshape"]
    np.testing.assert_array_equal(after.graph.constant(after.graph.nodes[0].inputs[1]), [0, -1, 4])


def test_reshape_targets_with_two_unknown_sizes_stay():
    nodes = [node("Shape", ["z"], ["s"]), node("Reshape", ["x", "s"], ["y"])]
    model = onnx_model(nodes, {"x": (F, ["L"]), "z": (F, ["A", "B"])})
    after = check_pass(model, feeds={"x": f32(12), "z": f32(3, 4)})
    assert ops_of(after) == ["Shape", "Reshape"]


def test_shapes_that_are_alike_are_taken_once():
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Shape", ["a"], ["s"]),
        node("Exp", ["a"], ["b"]),
        node("Shape", ["b"], ["t"]),
        node("ConstantOfShape", ["s"], ["c"]),
        node("ConstantOfShape", ["t"], ["d"]),
        node("Shape", ["c"], ["u"]),
        node("Expand", ["k", "u"], ["e"]),
        node("Sum", ["b", "c", "d", "e"], ["y"]),
    ]
    model = onnx_model(nodes, {"x": (F, ["N", 4])}, constants={"k": f32(1, 1)})
    after = check_pass(model, sizes={"N": 3})
    assert ops_of(after).count("Shape") == 1 and ops_of(after).count("ConstantOfShape") == 1
    assert after.graph.nodes[0].op == "Shape" or after.graph.nodes[1].inputs == ["x"]


def test_writing_all_elements_is_a_copy():
    """What PyTorch makes of `a[:, :] = b`: indices from ranges, expanded and stacked, for any size."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["h"]),
        node("Gather", ["s", "one"], ["w"]),
        node("Range", ["zero", "h", "one"], ["r"]),
        node("Range", ["zero", "w", "one"], ["q"]),
        node("Reshape", ["r", "column"], ["r1"]),
        node("Add", ["r1", "q"], ["grid"]),
        node("Shape", ["grid"], ["gs"]),
        node("Expand", ["r1", "gs"], ["r2"]),
        node("Expand", ["q", "gs"], ["q2"]),
        node("Unsqueeze", ["r2", "last"], ["r3"]),
        node("Unsqueeze", ["q2", "last"], ["q3"]),
        node("Concat", ["r3", "q3"], ["i"], axis=-1),
        node("ConstantOfShape", ["s"], ["blank"]),
        node("ScatterND", ["blank", "i", "x"], ["z"]),
        node("Exp", ["z"], ["y"]),
    ]
    constants = {"zero": np.array(0), "one": np.array(1), "column": np.array([-1, 1]), "last": np.array([-1])}
    model = onnx_model(nodes, {"x": (F, ["H", "W"])}, constants=constants)
    after = check_pass(model, sizes={"H": 3, "W": 7})
    assert ops_of(after) == ["Exp"]
    fixed = check_pass(model, input_shapes={"x": (9, 4)})
    assert ops_of(fixed) == ["Exp"]


def test_writing_some_elements_stays():
    for indices in ([[0], [1]], [[1], [0], [2]], [[0], [0], [1]]):
        model = onnx_model([node("ScatterND", ["k", "i", "x"], ["y"])], {"x": (F, [len(indices), 4])},
                           constants={"k": f32(3, 4), "i": np.array(indices)})  # fmt: skip
        assert ops_of(optimized(model)) == ["ScatterND"]


# Common subexpressions and duplicate constants


def test_common_subexpressions_are_merged():
    nodes = [
        node("Exp", ["x"], ["a"]),
        node("Exp", ["x"], ["b"]),
        node("LeakyRelu", ["a"], ["c"], alpha=0.5),
        node("LeakyRelu", ["b"], ["d"], alpha=0.5),
        node("LeakyRelu", ["b"], ["e"], alpha=0.25),
        node("Sum", ["c", "d", "e"], ["y"]),
    ]
    after = check_pass(onnx_model(nodes, {"x": (F, [4])}), "common")
    assert sorted(ops_of(after)) == ["Exp", "LeakyRelu", "LeakyRelu", "Sum"]


def test_equal_outputs_of_the_graph_keep_two_writers():
    nodes = [node("Exp", ["x"], ["y"]), node("Exp", ["x"], ["z"]), node("Exp", ["x"], ["a"]), node("Neg", ["a"], ["w"])]
    after = check_pass(onnx_model(nodes, {"x": (F, [4])}, ["y", "z", "w"]), "common")
    assert sorted(ops_of(after)) == ["Exp", "Exp", "Neg"]


def test_equal_constants_are_kept_once():
    k = f32(100)
    nodes = [node("Add", ["x", "k1"], ["a"]), node("Mul", ["a", "k2"], ["b"]), node("Sub", ["b", "k3"], ["y"])]
    constants = {"k1": k, "k2": k.copy(), "k3": k.reshape(1, 100)}
    after = check_pass(onnx_model(nodes, {"x": (F, [3, 100])}, constants=constants), "duplicates")
    assert sorted(n for n, t in after.graph.tensors.items() if t.data is not None) == ["k1", "k3"]


def test_equal_bits_of_other_types_are_no_duplicates():
    zeros = {"f": np.zeros(4, F), "i": np.zeros(4, np.int32)}
    nodes = [node("Add", ["x", "f"], ["a"]), node("Cast", ["a"], ["b"], to=6), node("Add", ["b", "i"], ["y"])]
    after = check_pass(onnx_model(nodes, {"x": (F, [4])}, constants=zeros), "duplicates")
    assert after.graph.constant("f").dtype == F and after.graph.constant("i").dtype == np.int32


# Lookups


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_one_hot_products_become_lookups(kind):
    """Indices outside the table select nothing: the product is zero there, and so is the row that is read."""
    nodes = [
        node("Unsqueeze", ["i", "last"], ["u"]),
        node("Equal", ["u", "iota"], ["e"]),
        node("Cast", ["e"], ["h"], to=1),
        node("MatMul", ["h", "w"], ["y"]),
    ]
    constants = {"last": np.array([-1]), "iota": np.arange(7, dtype=kind).reshape(1, 1, 7), "w": f32(7, 5)}
    model = onnx_model(nodes, {"i": (kind, ["N", 9])}, constants=constants)
    info = np.iinfo(kind)
    feeds = {"i": np.array([[0, 6, 7, -1, -7, 3, info.max, info.min, 100]], kind)}
    after = check_pass(model, feeds=feeds)
    assert "Gather" in ops_of(after) and "MatMul" not in ops_of(after)


def test_one_hot_with_other_numbers_stays():
    nodes = [node("Equal", ["i", "iota"], ["e"]), node("Cast", ["e"], ["h"], to=1), node("MatMul", ["h", "w"], ["y"])]
    constants = {"iota": np.array([[1, 0, 2]]), "w": f32(3, 5)}
    after = check_pass(onnx_model(nodes, {"i": (np.int64, [4, 1])}, constants=constants))
    assert "MatMul" in ops_of(after)


def test_arithmetic_moves_from_rows_to_the_table():
    nodes = [
        node("Gather", ["w", "i"], ["g"]),
        node("Add", ["b", "g"], ["a"]),
        node("Gelu", ["a"], ["r"]),
        node("Mul", ["r", "s"], ["y"]),
    ]
    constants = {"w": f32(6, 4), "b": f32(1, 1, 4), "s": f32(1)}
    after = check_pass(onnx_model(nodes, {"i": (np.int64, [2, 3])}, constants=constants))
    assert ops_of(after) == ["Gather"]


def test_arithmetic_that_differs_by_row_stays():
    nodes = [node("Gather", ["w", "i"], ["g"]), node("Add", ["g", "b"], ["y"])]
    for b, kept in ((f32(3, 4), True), (f32(2, 3, 4), True), (f32(4), False), (f32(5, 1, 1, 4), True)):
        model = onnx_model(nodes, {"i": (np.int64, [2, 3])}, constants={"w": f32(6, 4), "b": b})
        assert ("Add" in ops_of(check_pass(model))) == kept


def test_tables_that_others_read_stay():
    nodes = [node("Gather", ["w", "i"], ["g"]), node("Exp", ["g"], ["e"]), node("MatMul", ["e", "w"], ["y"])]
    after = check_pass(onnx_model(nodes, {"i": (np.int64, [3])}, constants={"w": f32(5, 5)}))
    assert ops_of(after) == ["Gather", "Exp", "MatMul"]


def test_a_pass_can_be_switched_off():
    model = onnx_model([node("Identity", ["x"], ["a"]), node("Relu", ["a"], ["y"])], {"x": (F, [2])})
    found, shapes = imported(model)
    run_passes(found, shapes, ["identities"])
    assert ops_of(found) == ["Identity", "Relu"]
    with pytest.raises(ValueError, match="no pass is named 'identity'"):
        run_passes(found, shapes, ["identity"])
    assert run(found, {"x": np.array([-1, 2], F)})[0].tolist() == [0, 2]
