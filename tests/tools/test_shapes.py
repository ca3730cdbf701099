"""Symbolic shape inference by sampling, and what it must not conclude."""

from __future__ import annotations

import numpy as np
import pytest
from tools_support import imported, node, onnx_model

from evort.graph import Graph, Node, Tensor
from evort.types import DType
from evort_tools.passes.facts import SAMPLES, sizes
from evort_tools.passes.shapes import Shapes

F = np.float32


def infer(nodes, inputs, constants=None, opset=21):
    return imported(onnx_model(nodes, inputs, [nodes[-1].output[0]], constants, opset))[1]


def test_no_two_symbols_share_a_size():
    for k in range(SAMPLES - 1):
        found = [sizes(i)[k] for i in range(120)]
        assert len(set(found)) == len(found)


def test_dimensions_that_are_constant_symbolic_or_unknown():
    w = np.zeros((8, 3, 3, 3), F)
    nodes = [node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]), node("MaxPool", ["a"], ["y"], kernel_shape=[2, 2],
             strides=[2, 2])]  # fmt: skip
    shapes = infer(nodes, {"x": (F, ["N", 3, "H", 48])}, {"w": w})
    assert shapes.shape("a") == ("N", 8, "H", 48)
    assert shapes.shape("y") == ("N", 8, "", 24)


def test_arithmetic_on_shapes_is_followed():
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Gather", ["s", "one"], ["c"]),
        node("Mul", ["c", "four"], ["c4"]),
        node("Unsqueeze", ["n", "axes"], ["n1"]),
        node("Unsqueeze", ["c4", "axes"], ["c1"]),
        node("Concat", ["n1", "minus", "c1"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    constants = {"zero": np.array(0), "one": np.array(1), "four": np.array(4), "axes": np.array([0]),
                 "minus": np.array([-1])}  # fmt: skip
    shapes = infer(nodes, {"x": (F, ["N", 6, "L", 4])}, constants)
    assert shapes.elements("target") == ["N", -1, 24]
    assert shapes.shape("y") == ("N", "L", 24)


def test_floor_division_is_not_taken_for_the_identity():
    """L // 32 * 32 is L in some samples only."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Div", ["s", "k"], ["d"]),
        node("Mul", ["d", "k"], ["m"]),
        node("ConstantOfShape", ["m"], ["y"]),
    ]
    shapes = infer(nodes, {"x": (F, ["L"])}, {"k": np.array([32])})
    assert shapes.elements("m") == [""] and shapes.shape("y") == ("",)


@pytest.mark.parametrize(
    ("op", "limit"), [("Max", 3), ("Min", 5000), ("Clip", 1), ("Mod", 100000)], ids=lambda v: str(v)
)
def test_nothing_is_concluded_from_values_with_thresholds(op, limit):
    """max(L, 3) is L in every sample, and 3 for L = 2."""
    second = node(op, ["s", "k"], ["m"]) if op != "Clip" else node("Clip", ["s", "", "k"], ["m"])
    constants = {"k": np.array([limit]) if op != "Clip" else np.array(limit * 5000)}
    nodes = [node("Shape", ["x"], ["s"]), second, node("ConstantOfShape", ["m"], ["y"])]
    shapes = infer(nodes, {"x": (F, ["L"])}, constants)
    assert shapes.value("m") is None and shapes.elements("m") == [""]
    assert shapes.shape("y") == ("",) and not shapes.same_shape("x", "y")


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, 3, ""), (0, 1, 1), (0, 2**62, "L"), (1, 2**62, ""), (-1, 2**62, 1), (0, -1, ""), (5, 8, "")],
)
def test_slices_with_fixed_ends(start, end, expected):
    nodes = [node("Slice", ["x", "b", "e"], ["y"])]
    shapes = infer(nodes, {"x": (F, ["L"])}, {"b": np.array([start]), "e": np.array([end])})
    assert shapes.shape("y") == (expected,)


def test_comparing_sizes_with_negative_numbers():
    """Where(shape == -1, ones, shape), as exporters guard Expand, is the shape."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Equal", ["s", "minus"], ["e"]),
        node("Where", ["e", "ones", "s"], ["t"]),
        node("Expand", ["k", "t"], ["y"]),
    ]
    constants = {"minus": np.array([-1, -1]), "ones": np.array([1, 1]), "k": np.zeros((1, 1), F)}
    shapes = infer(nodes, {"x": (F, ["N", "L"])}, constants)
    np.testing.assert_array_equal(shapes.value("e"), [False, False])
    assert shapes.shape("y") == ("N", "L") and shapes.same_shape("x", "y")


def test_comparing_sizes_with_positive_numbers_tells_nothing():
    nodes = [node("Shape", ["x"], ["s"]), node("Equal", ["s", "k"], ["y"])]
    assert infer(nodes, {"x": (F, ["L"])}, {"k": np.array([1000000])}).value("y") is None


def test_samples_that_a_model_does_not_take_are_dropped():
    """Halving and doubling fits only even sizes: then the sum has the input's."""
    nodes = [
        node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Resize", ["p", "", "scales"], ["u"]),
        node("Add", ["x", "u"], ["y"]),
    ]
    shapes = infer(nodes, {"x": (F, [1, 2, "H", "W"])}, {"scales": np.array([1, 1, 2, 2], F)})
    assert shapes.shape("y") == (1, 2, "H", "W") and shapes.same_shape("u", "x")
    assert not shapes.refused() and len(shapes.live) < SAMPLES


def test_sizes_that_only_one_value_fits():
    """Rows of 7 refuse most sizes of L. 56 fits, and so does 7: nothing is concluded, and nothing reported."""
    nodes = [node("Reshape", ["x", "s"], ["r"]), node("Add", ["r", "k"], ["y"])]
    shapes = infer(nodes, {"x": (F, ["N", "L"])}, {"s": np.array([0, -1, 7]), "k": np.zeros((1, 8, 7), F)})
    assert not shapes.refused()
    assert shapes.shape("y") == ("", "", "") and shapes.elements("s") == [0, -1, 7]


def test_a_fixed_shape_error_is_certain_and_a_symbolic_one_is_not():
    fixed = infer([node("Add", ["x", "k"], ["y"])], {"x": (F, [3])}, {"k": np.zeros(4, F)})
    assert [certain for _, certain in fixed.problems.values()] == [True]
    nodes = [node("MatMul", ["x", "k"], ["a"]), node("MatMul", ["x", "j"], ["b"]), node("Add", ["a", "b"], ["y"])]
    symbolic = infer(nodes, {"x": (F, ["L"])}, {"k": np.zeros((4, 2), F), "j": np.zeros((5, 2), F)})
    assert {certain for _, certain in symbolic.problems.values()} == {False}


def test_branches_of_if_agree_or_are_unknown():
    from onnx import helper

    def branch(name, op, shape):
        out = helper.make_tensor_value_info(name, 1, None)
        return helper.make_graph([node("ConstantOfShape", [shape], [name])], name, [], [out])

    for shapes_of, expected in ((("a", "a"), (2, 3)), (("a", "b"), None)):
        nodes = [node("If", ["c"], ["y"], then_branch=branch("t", "", shapes_of[0]),
                      else_branch=branch("e", "", shapes_of[1]))]  # fmt: skip
        shapes = infer(nodes, {"c": (np.bool_, [])}, {"a": np.array([2, 3]), "b": np.array([4])})
        assert shapes.shape("y") == expected and shapes.dtype("y") == DType.FLOAT


def test_element_types_without_shapes_come_from_the_schema():
    nodes = [node("NonZero", ["x"], ["i"]), node("Cast", ["i"], ["f"], to=1), node("Mul", ["f", "f"], ["m"]),
             node("Shape", ["m"], ["y"])]  # fmt: skip
    shapes = infer(nodes, {"x": (F, ["N"])})
    assert [shapes.dtype(n) for n in "ifmy"] == [DType.INT64, DType.FLOAT, DType.FLOAT, DType.INT64]


def test_unknown_operators_stop_nothing():
    graph = Graph()
    graph.add(Tensor("x", DType.FLOAT, (2,)))
    graph.inputs = ["x"]
    graph.nodes = [Node("Mystery", ["x"], ["a"], domain="d"), Node("Relu", ["x"], ["y"])]
    shapes = Shapes()
    shapes.graph(graph)
    assert shapes.dtype("a") is None and shapes.shape("a") is None and shapes.shape("y") == (2,)
