"""Passes that fold operators into weights, attributes and products, and where they must not."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from tools_support import check_pass, node, onnx_model, ops_of

F = np.float32
RNG = np.random.default_rng(9)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(F)


def batch_norm(count):
    return {"scale": f32(count), "shift": f32(count), "mean": f32(count), "var": np.abs(f32(count)) + F(0.5)}


def after_product(source, shape, weights, then, constants=None, passes=(), opset=21, outputs=("y",), **attrs):
    """x -> source -> then; returns the graph after the passes."""
    nodes = [node(source, ["x", "w", *(["b"] if "b" in weights else [])], ["a"], **attrs), *then]
    model = onnx_model(nodes, {"x": (F, shape)}, outputs, {**weights, **(constants or {})}, opset)
    sizes = {d: 5 for d in shape if isinstance(d, str)}
    return check_pass(model, *passes, sizes=sizes, rtol=1e-5)


PRODUCTS = [
    ("Conv", ("N", 4, 6, "W"), {"w": f32(8, 4, 3, 3)}, {"pads": [1, 1, 1, 1]}),
    ("Conv", (2, 4, 9), {"w": f32(8, 2, 3), "b": f32(8)}, {"group": 2}),
    ("Conv", (1, 4, 5, 5, 5), {"w": f32(8, 1, 2, 2, 2), "b": f32(8)}, {"group": 4}),
    ("ConvTranspose", (2, 6, 4, 5), {"w": f32(6, 4, 3, 3), "b": f32(8)}, {"group": 2, "strides": [2, 2]}),
    ("ConvTranspose", (2, 6, 4), {"w": f32(6, 8, 3)}, {}),
]


@pytest.mark.parametrize(("op", "shape", "weights", "attrs"), PRODUCTS)
def test_batch_normalization_goes_into_weights(op, shape, weights, attrs):
    then = [node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["y"], epsilon=1e-3)]
    after = after_product(op, shape, weights, then, batch_norm(8), **attrs)
    assert ops_of(after) == [op]


@pytest.mark.parametrize(("op", "shape", "weights", "attrs"), PRODUCTS)
@pytest.mark.parametrize(
    ("arithmetic", "swap"),
    [("Mul", False), ("Mul", True), ("Add", True), ("Sub", False), ("Sub", True), ("Div", False)],
)
@pytest.mark.parametrize("each", [True, False])
def test_arithmetic_goes_into_weights(op, shape, weights, attrs, arithmetic, swap, each):
    rank = len(shape)
    k = f32(8, *(1,) * (rank - 2)) + F(3) if each else f32(1)
    then = [node(arithmetic, ["k", "a"] if swap else ["a", "k"], ["y"])]
    after = after_product(op, shape, weights, then, {"k": k}, **attrs)
    assert ops_of(after) == [op]


MATRICES = [
    ("MatMul", ("N", 6), {"w": f32(6, 8)}, {}),
    ("MatMul", (2, 3, 6), {"w": f32(6, 8)}, {}),
    ("Gemm", (5, 6), {"w": f32(6, 8), "b": f32(8)}, {"alpha": 0.5, "beta": 2.0}),
    ("Gemm", (5, 6), {"w": f32(8, 6)}, {"transB": 1}),
    ("Gemm", (5, 6), {"w": f32(6, 8), "b": f32(5, 1)}, {}),
    ("Gemm", (6, 5), {"w": f32(6, 8), "b": f32(1, 1)}, {"transA": 1}),
]


@pytest.mark.parametrize(("op", "shape", "weights", "attrs"), MATRICES)
@pytest.mark.parametrize("k", [f32(8), f32(1, 8), f32(1), np.array(2.5, F)], ids=lambda v: str(v.shape))
def test_arithmetic_goes_into_matrices(op, shape, weights, attrs, k):
    then = [node("Mul", ["a", "k"], ["m"]), node("Add", ["k", "m"], ["y"])]
    after = after_product(op, shape, weights, then, {"k": k}, **attrs)
    assert ops_of(after) == [op]


@pytest.mark.parametrize(
    "shape", [(1, 8, 1, 8), (8,), (6, 1), (2, 1, 1, 1), (1, 1, 1, 1, 1), (3, 1, 8, 1, 1)], ids=lambda v: str(v)
)
def test_constants_of_another_shape_stay(shape):
    """Not one number for each channel: along the image or the batch, or raising the rank."""
    then = [node("Mul", ["a", "k"], ["y"])]
    after = after_product("Conv", (2, 4, 8, 10), {"w": f32(8, 4, 3, 3)}, then, {"k": f32(*shape)})
    assert ops_of(after) == ["Conv", "Mul"]


def test_products_with_other_readers_keep_their_weights():
    for outputs, then in (
        (("y", "a"), [node("Mul", ["a", "k"], ["y"])]),
        (("y",), [node("Mul", ["a", "k"], ["m"]), node("Sub", ["m", "a"], ["y"])]),
    ):
        after = after_product("Conv", (1, 4, 6, 6), {"w": f32(8, 4, 3, 3)}, then, {"k": f32(8, 1, 1)}, outputs=outputs)
        assert "Mul" in ops_of(after)


def test_weights_captured_by_nested_graphs_are_left_alone():
    then = helper.make_graph([node("Exp", ["a"], ["t"])], "t", [], [helper.make_tensor_value_info("t", 1, None)])
    other = helper.make_graph([node("Identity", ["m"], ["e"])], "e", [], [helper.make_tensor_value_info("e", 1, None)])
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Mul", ["a", "k"], ["m"]),
             node("If", ["c"], ["y"], then_branch=then, else_branch=other)]  # fmt: skip
    model = onnx_model(nodes, {"c": (np.bool_, []), "x": (F, [2, 3])}, constants={"w": f32(3, 4), "k": f32(4)})
    for condition in (True, False):
        after = check_pass(model, feeds={"c": np.array(condition), "x": f32(2, 3)})
        assert "Mul" in ops_of(after)


def test_weights_that_others_share_are_not_changed_for_them():
    w = f32(4, 4)
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Mul", ["a", "k"], ["b"]), node("MatMul", ["b", "w"], ["y"])]
    after = check_pass(onnx_model(nodes, {"x": (F, [2, 4])}, constants={"w": w, "k": f32(4)}), rtol=1e-5)
    assert ops_of(after) == ["MatMul", "MatMul"]


def test_weights_that_are_computed_stay():
    nodes = [node("MatMul", ["x", "z"], ["a"]), node("Mul", ["a", "k"], ["y"])]
    after = check_pass(onnx_model(nodes, {"x": (F, [2, 4]), "z": (F, [4, 4])}, constants={"k": f32(4)}), rtol=1e-5)
    assert ops_of(after) == ["MatMul", "Mul"]


def test_factors_that_overflow_stay():
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Mul", ["a", "k"], ["y"])]
    constants = {"w": np.full((2, 2), 1e30, F), "k": np.array(1e20, F)}
    feeds = {"x": np.full((1, 2), 1e-25, F)}
    after = check_pass(onnx_model(nodes, {"x": (F, [1, 2])}, constants=constants), feeds=feeds)
    assert ops_of(after) == ["MatMul", "Mul"]


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_float_types_keep_their_type(kind):
    constants = {"w": f32(4, 3, 1, 1).astype(kind), **{k: v.astype(kind) for k, v in batch_norm(4).items()}}
    nodes = [node("Conv", ["x", "w"], ["a"]), node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["y"])]
    model = onnx_model(nodes, {"x": (kind, [1, 3, 4, 4])}, constants=constants)
    after = check_pass(model, rtol=4e-3 if kind == np.float16 else 1e-12)
    (conv,) = after.graph.nodes
    assert after.graph.constant(conv.inputs[1]).dtype == kind and after.graph.constant(conv.inputs[2]).dtype == kind


def test_integer_products_stay():
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Mul", ["a", "k"], ["y"])]
    constants = {"w": np.ones((3, 2), np.int32), "k": np.array([2, 3], np.int32)}
    assert ops_of(check_pass(onnx_model(nodes, {"x": (np.int32, [2, 3])}, constants=constants))) == ["MatMul", "Mul"]


# Before the product


def test_scales_before_a_convolution_go_into_its_weights_padding_or_not():
    for attrs in ({"pads": [1, 1, 1, 1]}, {"auto_pad": "SAME_UPPER"}, {}):
        nodes = [node("Div", ["x", "s"], ["a"]), node("Conv", ["a", "w", "b"], ["y"], **attrs)]
        constants = {"s": np.abs(f32(1, 4, 1, 1)) + F(1), "w": f32(6, 4, 3, 3), "b": f32(6)}
        after = check_pass(onnx_model(nodes, {"x": (F, [2, 4, 6, 6])}, constants=constants), rtol=1e-5)
        assert ops_of(after) == ["Conv"]


def test_shifts_before_a_convolution_go_into_its_bias_without_padding():
    nodes = [node("Mul", ["x", "s"], ["m"]), node("Add", ["m", "t"], ["a"]), node("Conv", ["a", "w"], ["y"], group=2)]
    constants = {"s": f32(4, 1, 1), "t": f32(1, 4, 1, 1), "w": f32(6, 2, 3, 3)}
    after = check_pass(onnx_model(nodes, {"x": (F, [2, 4, 6, 6])}, constants=constants), rtol=1e-5)
    assert ops_of(after) == ["Conv"]


def test_shifts_before_padding_stay_but_let_the_scale_pass():
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Mul", ["r", "s"], ["m"]),
        node("Add", ["m", "t"], ["a"]),
        node("Conv", ["a", "w"], ["y"], group=4, pads=[1, 1, 1, 1]),
    ]
    constants = {"s": np.array([0.25], F), "t": np.array([-1.5], F), "w": f32(4, 1, 3, 3)}
    after = check_pass(onnx_model(nodes, {"x": (F, [2, 4, 6, 6])}, constants=constants), rtol=1e-5)
    assert ops_of(after) == ["Relu", "Add", "Conv"]


def test_matrices_take_what_is_before_them():
    nodes = [node("Sub", ["x", "t"], ["a"]), node("Mul", ["a", "s"], ["b"]), node("Gemm", ["b", "w"], ["y"], alpha=0.5)]
    constants = {"s": f32(6), "t": f32(6), "w": f32(6, 3)}
    after = check_pass(onnx_model(nodes, {"x": (F, [4, 6])}, constants=constants), rtol=1e-5)
    assert ops_of(after) == ["Gemm"]


def test_scales_along_other_axes_stay():
    nodes = [node("Mul", ["x", "s"], ["a"]), node("MatMul", ["a", "w"], ["y"])]
    for s in (f32(4, 1), f32(2, 4, 1)):
        after = check_pass(onnx_model(nodes, {"x": (F, [2, 4, 6])}, constants={"s": s, "w": f32(6, 3)}), rtol=1e-5)
        assert ops_of(after) == ["Mul", "MatMul"]


# Pads and strides


def padded(op, pads, weights, attrs, value=None, shape=(1, 3, 6, 7), mode="constant", axes=None):
    constants = {"p": np.array(pads), **weights}
    inputs = ["x", "p", "", ""]
    if value is not None:
        inputs[2], constants["v"] = "v", np.array(value, F)
    if axes is not None:
        inputs[3], constants["ax"] = "ax", np.array(axes)
    nodes = [node("Pad", inputs, ["a"], mode=mode), node(op, ["a", *weights], ["y"], **attrs)]
    return ops_of(check_pass(onnx_model(nodes, {"x": (F, shape)}, constants=constants), rtol=1e-5))


def test_zero_padding_goes_into_convolutions_and_average_pools():
    w = {"w": f32(4, 3, 3, 3)}
    assert padded("Conv", [0, 0, 1, 2, 0, 0, 0, 1], w, {}) == ["Conv"]
    assert padded("Conv", [1, 2, 0, 1], w, {"pads": [0, 1, 1, 0], "strides": [2, 2]}, axes=[-2, 3]) == ["Conv"]
    pool = {"kernel_shape": [3, 3]}
    assert padded("AveragePool", [0, 0, 1, 2, 0, 0, 0, 1], {}, pool) == ["AveragePool"]
    counted = {**pool, "pads": [1, 1, 1, 1], "count_include_pad": 1}
    assert padded("AveragePool", [0, 0, 1, 0, 0, 0, 0, 0], {}, counted) == ["AveragePool"]
    assert padded("MaxPool", [0, 0, 1, 2, 0, 0, 0, 1], {}, pool, value=-np.inf) == ["MaxPool"]


@pytest.mark.parametrize(
    ("op", "pads", "attrs", "options"),
    [
        ("Conv", [0, 0, 1, 2, 0, 0, 0, 1], {}, {"value": 1.0}),
        ("Conv", [0, 0, 1, 2, 0, 0, 0, 1], {}, {"mode": "reflect"}),
        ("Conv", [1, 0, 1, 0, 0, 0, 0, 0], {}, {}),
        ("Conv", [0, 0, -1, 2, 0, 0, 0, 1], {}, {}),
        ("Conv", [0, 0, 1, 2, 0, 0, 0, 1], {"auto_pad": "SAME_UPPER"}, {}),
        ("MaxPool", [0, 0, 1, 2, 0, 0, 0, 1], {"kernel_shape": [3, 3]}, {"value": 0.0}),
        ("AveragePool", [0, 0, 1, 0, 0, 0, 0, 0], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, {}),
        ("AveragePool", [0, 0, 3, 0, 0, 0, 0, 0], {"kernel_shape": [3, 3]}, {}),
    ],
)
def test_padding_that_stays(op, pads, attrs, options):
    weights = {"w": f32(4, 3, 3, 3)} if op == "Conv" else {}
    assert padded(op, pads, weights, attrs, **options) == ["Pad", op]


def sliced(starts, ends, axes, steps, **attrs):
    constants = {"s": np.array(starts), "e": np.array(ends), "ax": np.array(axes), "st": np.array(steps),
                 "w": f32(3, 3, 3, 3)}  # fmt: skip
    nodes = [node("Conv", ["x", "w"], ["a"], **attrs), node("Slice", ["a", "s", "e", "ax", "st"], ["y"])]
    model = onnx_model(nodes, {"x": (F, [1, 3, "H", 11])}, constants=constants)
    return check_pass(model, sizes={"H": 10}, rtol=1e-5)


def test_steps_become_strides():
    after = sliced([0, 0], [2**62, 2**62], [2, -1], [2, 3], strides=[1, 2])
    assert ops_of(after) == ["Conv"] and after.graph.nodes[0].attrs["strides"] == [2, 6]


@pytest.mark.parametrize(
    ("start", "end", "axis", "step"),
    [(1, 2**62, 2, 2), (0, 3, 3, 2), (0, 2**62, 1, 2), (-1, -(2**62), 2, -2), (0, 4, 2, 2)],
)
def test_slices_that_are_no_strides_stay(start, end, axis, step):
    assert ops_of(sliced([start], [end], [axis], [step])) == ["Conv", "Slice"]


def test_interleaved_zeros_become_phases():
    """The enlarging step of a Laplacian pyramid, for fixed and for symbolic sizes."""
    nodes = []

    def stuffed(source, out, height, width):
        nodes.extend([
            node("Shape", [source], [f"{out}s"]),
            node("ConstantOfShape", [f"{out}s"], [f"{out}z"]),
            node("Concat", [source, f"{out}z"], [f"{out}c"], axis=3),
            node("Gather", [f"{out}s", height], [f"{out}h"]),
            node("Mul", [f"{out}h", "two"], [f"{out}h2"]),
            node("Gather", [f"{out}s", width], [f"{out}w"]),
            node("Concat", ["head", f"{out}h2", f"{out}w"], [f"{out}t"], axis=0),
            node("Reshape", [f"{out}c", f"{out}t"], [f"{out}r"]),
            node("Transpose", [f"{out}r"], [out], perm=[0, 1, 3, 2]),
        ])  # fmt: skip

    stuffed("x", "a", "i2", "i3")
    stuffed("a", "b", "i2", "i3")
    nodes.append(node("Pad", ["b", "pads"], ["p"], mode="reflect"))
    nodes.append(node("Conv", ["p", "w"], ["y"], group=3, kernel_shape=[5, 5], dilations=[1, 1]))
    constants = {"i2": np.array([2]), "i3": np.array([3]), "two": np.array([2]), "head": np.array([1, 3]),
                 "pads": np.array([0, 0, 2, 2, 0, 0, 2, 2]), "w": f32(3, 1, 5, 5)}  # fmt: skip
    for shape in ([1, 3, 4, 5], [1, 3, "H", "W"]):
        model = onnx_model(nodes, {"x": (F, shape)}, constants=constants)
        after = check_pass(model, sizes={"H": 2, "W": 7}, rtol=1e-5)
        assert ops_of(after) == ["Pad", "Pad", "Conv", "DepthToSpace"]


# Transposes


def test_transposes_are_joined_and_cancelled():
    nodes = [node("Transpose", ["x"], ["a"], perm=[0, 2, 3, 1]), node("Transpose", ["a"], ["b"], perm=[0, 3, 1, 2]),
             node("Exp", ["b"], ["y"])]  # fmt: skip
    assert ops_of(check_pass(onnx_model(nodes, {"x": (F, [2, 3, 4, 5])}))) == ["Exp"]
    nodes = [node("Transpose", ["x"], ["a"], perm=[2, 0, 1]), node("Transpose", ["a"], ["y"])]
    after = check_pass(onnx_model(nodes, {"x": (F, [2, 3, 4])}))
    assert ops_of(after) == ["Transpose"] and after.graph.nodes[0].attrs["perm"] == [1, 0, 2]


def test_transposes_move_through_elementwise_operators():
    nodes = [
        node("Transpose", ["x"], ["a"], perm=[0, 2, 3, 1]),
        node("Add", ["a", "k"], ["b"]),
        node("Clip", ["b", "lo"], ["c"]),
        node("Mul", ["m", "c"], ["d"]),
        node("Exp", ["d"], ["e"]),
        node("Transpose", ["e"], ["y"], perm=[0, 3, 1, 2]),
    ]
    constants = {"k": f32(3), "lo": np.array(-0.5, F), "m": f32(4, 1, 3)}
    after = check_pass(onnx_model(nodes, {"x": (F, [2, 3, 4, 5])}, constants=constants))
    assert "Transpose" not in ops_of(after)


def test_transposes_of_both_operands_are_one():
    nodes = [node("Transpose", ["x"], ["a"], perm=[1, 0]), node("Transpose", ["z"], ["b"], perm=[1, 0]),
             node("Sub", ["a", "b"], ["y"])]  # fmt: skip
    after = check_pass(onnx_model(nodes, {"x": (F, [2, 3]), "z": (F, [2, 3])}))
    assert ops_of(after) == ["Sub", "Transpose"]


def test_transposes_that_others_read_stay():
    nodes = [node("Transpose", ["x"], ["a"]), node("Exp", ["a"], ["b"]), node("Transpose", ["b"], ["y"])]
    after = check_pass(onnx_model(nodes, {"x": (F, [2, 3])}, ["y", "a"]))
    assert ops_of(after).count("Transpose") == 2


def test_transposes_of_ones_are_reshapes():
    after = check_pass(onnx_model([node("Transpose", ["x"], ["y"], perm=[0, 2, 3, 1])], {"x": (F, ["N", 1, 4, 5])}),
                       sizes={"N": 3})  # fmt: skip
    assert ops_of(after) == ["Reshape"]


# Factors, biases, affine maps


def test_common_factors_are_taken_out():
    nodes = [node("GlobalAveragePool", ["x"], ["p"]), node("Sigmoid", ["p"], ["g"]), node("Mul", ["x", "g"], ["m"]),
             node("Add", ["x", "m"], ["y"])]  # fmt: skip
    after = check_pass(onnx_model(nodes, {"x": (F, ["N", 3, "H", "W"])}), sizes={"N": 2, "H": 6, "W": 5})
    assert ops_of(after) == ["GlobalAveragePool", "Sigmoid", "Add", "Mul"]
    nodes = [node("Sigmoid", ["x"], ["g"]), node("Exp", ["x"], ["e"]), node("Mul", ["e", "g"], ["m"]),
             node("Add", ["e", "m"], ["y"])]  # fmt: skip
    assert ops_of(check_pass(onnx_model(nodes, {"x": (F, [9])}))) == ["Sigmoid", "Exp", "Mul", "Add"]


def test_biases_that_are_computed():
    for op, attrs in (("MatMul", {}), ("Gemm", {"transB": 1})):
        nodes = [node(op, ["x", "w"], ["a"], **attrs), node("Exp", ["z"], ["b"]), node("Add", ["b", "a"], ["y"])]
        model = onnx_model(nodes, {"x": (F, [2, 4]), "z": (F, [4])}, constants={"w": f32(4, 4)})
        after = check_pass(model, rtol=1e-5)
        assert ops_of(after) == ["Exp", op] and len(after.graph.nodes[1].inputs) == 3
    # One number for every row is no bias, and one for all columns would have to be repeated.
    for shape in ([2, 1], [1]):
        model = onnx_model([node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "z"], ["y"])],
                           {"x": (F, [2, 4]), "z": (F, shape)}, constants={"w": f32(4, 4)})  # fmt: skip
        assert ops_of(check_pass(model, rtol=1e-5)) == ["MatMul", "Add"]


def test_transposed_matrices_are_multiplied_where_they_lie():
    nodes = [node("Transpose", ["z"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["y"])]
    after = check_pass(onnx_model(nodes, {"x": (F, [2, 4]), "z": (F, [3, 4])}), rtol=1e-5)
    assert ops_of(after) == ["Gemm"] and after.graph.nodes[0].attrs == {"transB": 1}
    batched = [node("Transpose", ["z"], ["t"], perm=[0, 2, 1]), node("MatMul", ["x", "t"], ["y"])]
    after = check_pass(onnx_model(batched, {"x": (F, [5, 2, 4]), "z": (F, [5, 3, 4])}), rtol=1e-5)
    assert ops_of(after) == ["Transpose", "MatMul"]


def test_affine_maps_are_one_step():
    nodes = [node("Exp", ["x"], ["e"]), node("Mul", ["e", "s"], ["m"]), node("Sub", ["m", "t"], ["y"])]
    for s, t in ((f32(4, 1, 1), f32(1, 4, 1, 1)), (f32(1), np.array(0.5, F)), (f32(4, 1, 1), f32(1))):
        model = onnx_model(nodes, {"x": (F, ["N", 4, 3, 2])}, constants={"s": s, "t": t})
        assert ops_of(check_pass(model, sizes={"N": 2})) == ["Exp", "BatchNormalization"]
    model = onnx_model(nodes, {"x": (F, [2, 4, 3, 2])}, constants={"s": f32(2), "t": f32(1)})
    assert ops_of(check_pass(model)) == ["Exp", "Mul", "Sub"]


# Residuals and activation functions


def residual(nodes, inputs=None, outputs=("y",), constants=None, **options):
    shape = {"x": (F, [2, 4, 5, 5]), **(inputs or {})}
    weights = {"w": f32(4, 4, 3, 3), "b": f32(4), **(constants or {})}
    return check_pass(onnx_model(nodes, shape, outputs, weights), rtol=1e-5, **options)


CONV = {"pads": [1, 1, 1, 1]}


@pytest.mark.parametrize("swap", [True, False])
def test_residuals_and_activation_functions_go_into_products(swap):
    nodes = [
        node("Conv", ["x", "w", "b"], ["a"], **CONV),
        node("Add", ["x", "a"] if swap else ["a", "x"], ["s"]),
        node("Relu", ["s"], ["y"]),
    ]
    after = residual(nodes)
    (conv,) = after.graph.nodes
    assert conv.inputs[3] == "x" and conv.attrs["activation"] == "Relu"


def test_subtracting_a_product_negates_its_weights():
    nodes = [node("Conv", ["x", "w", "b"], ["a"], **CONV), node("Sub", ["x", "a"], ["y"])]
    assert ops_of(residual(nodes)) == ["Conv"]
    nodes = [node("Conv", ["x", "w", "b"], ["a"], **CONV), node("Sub", ["a", "x"], ["y"])]
    assert ops_of(residual(nodes)) == ["Conv", "Sub"]


def test_the_later_of_two_products_takes_the_sum():
    nodes = [
        node("Conv", ["x", "w"], ["a"], **CONV),
        node("Conv", ["x", "v"], ["c"], **CONV),
        node("Add", ["a", "c"], ["y"]),
    ]
    after = residual(nodes, constants={"v": f32(4, 4, 3, 3)})
    assert [n.inputs[1:] for n in after.graph.nodes] == [["w"], ["v", "", "a"]]


def test_products_that_come_before_what_is_added_stay():
    """The product would move behind a long chain, and its input would live as long."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], **CONV),
        node("Exp", ["x"], ["e"]),
        node("Add", ["a", "e"], ["y"]),
    ]
    assert ops_of(residual(nodes)) == ["Conv", "Exp", "Add"]


def test_sums_that_broadcast_or_have_other_readers_stay():
    first = node("Conv", ["x", "w"], ["a"], **CONV)
    assert ops_of(residual([first, node("Add", ["a", "z"], ["y"])], {"z": (F, [2, 1, 5, 5])})) == ["Conv", "Add"]
    assert ops_of(residual([first, node("Add", ["a", "z"], ["y"])], {"z": (F, [3, 2, 4, 5, 5])})) == ["Conv", "Add"]
    assert ops_of(residual([first, node("Add", ["a", "x"], ["y"])], outputs=("y", "a"))) == ["Conv", "Add"]
    assert ops_of(residual([first, node("Add", ["a", "a"], ["y"])])) == ["Conv", "Add"]


ACTIVATIONS = [
    ("Relu", {}, {}, ("Relu", None, None)),
    ("LeakyRelu", {"alpha": 0.125}, {}, ("LeakyRelu", 0.125, None)),
    ("Clip", {}, {"lo": np.array(0, F), "hi": np.array(6, F)}, ("Clip", 0, 6)),
    ("Clip", {}, {"lo": np.array(-1, F)}, ("Clip", -1, None)),
    ("Sigmoid", {}, {}, ("Sigmoid", None, None)),
    ("Tanh", {}, {}, ("Tanh", None, None)),
    ("HardSigmoid", {"alpha": 0.25}, {}, ("HardSigmoid", 0.25, 0.5)),
    ("HardSwish", {}, {}, ("HardSwish", None, None)),
    ("Swish", {}, {}, ("Swish", 1, None)),
    ("Gelu", {}, {}, ("Gelu", None, None)),
    ("Gelu", {"approximate": "tanh"}, {}, ("GeluTanh", None, None)),
    ("Softplus", {}, {}, ("Softplus", None, None)),
    ("Elu", {"alpha": 0.5}, {}, ("Elu", 0.5, None)),
    ("Mish", {}, {}, ("Mish", None, None)),
    ("PRelu", {}, {"slope": f32(4, 1, 1)}, ("PRelu", None, None)),
    ("PRelu", {}, {"slope": np.array([0.25], F)}, ("LeakyRelu", 0.25, None)),
]


@pytest.mark.parametrize(("op", "attrs", "constants", "expected"), ACTIVATIONS)
def test_activation_functions_become_attributes(op, attrs, constants, expected):
    nodes = [node("Conv", ["x", "w", "b"], ["a"], **CONV), node(op, ["a", *constants], ["y"], **attrs)]
    model = onnx_model(nodes, {"x": (F, [2, 4, 5, 5])}, constants={"w": f32(4, 4, 3, 3), "b": f32(4), **constants},
                       opset=24)  # fmt: skip
    after = check_pass(model, rtol=1e-5)
    (conv,) = after.graph.nodes
    assert tuple(conv.attrs.get(k) for k in ("activation", "activation_alpha", "activation_beta")) == expected
    assert (len(conv.inputs) == 5) == (expected[0] == "PRelu")


def test_activation_functions_of_sums_and_products():
    for op in ("Add", "Sub", "Mul", "Div"):
        nodes = [node(op, ["x", "z"], ["a"]), node("Relu", ["a"], ["y"])]
        after = check_pass(onnx_model(nodes, {"x": (F, [4, 3]), "z": (F, [3])}))
        assert ops_of(after) == [op] and after.graph.nodes[0].attrs["activation"] == "Relu"


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([node("Relu", ["a"], ["y"])], ("y", "a")),
        ([node("Relu", ["a"], ["r"]), node("Add", ["r", "a"], ["y"])], ("y",)),
        ([node("Relu", ["a"], ["r"]), node("Shape", ["a"], ["s"]), node("Reshape", ["r", "s"], ["q"]),
          node("MatMul", ["q", "a"], ["y"])], ("y",)),
    ],
)  # fmt: skip
def test_activation_functions_of_what_others_read_stay(nodes, outputs):
    after = residual([node("Conv", ["x", "w"], ["a"], **CONV), *nodes], outputs=outputs)
    assert "Relu" in ops_of(after) and not after.graph.nodes[0].attrs.get("activation")


def test_one_activation_function_for_each_product():
    nodes = [node("Conv", ["x", "w"], ["a"], **CONV), node("Tanh", ["a"], ["t"]), node("LeakyRelu", ["t"], ["y"])]
    after = residual(nodes)
    assert ops_of(after) == ["Conv", "LeakyRelu"]


def test_bounds_that_are_computed_stay():
    nodes = [node("Conv", ["x", "w"], ["a"], **CONV), node("Clip", ["a", "lo"], ["y"])]
    after = residual(nodes, {"lo": (F, [])}, feeds={"x": f32(2, 4, 5, 5), "lo": np.array(-0.5, F)})
    assert ops_of(after) == ["Conv", "Clip"]


def test_slopes_along_the_image_stay():
    nodes = [node("Conv", ["x", "w"], ["a"], **CONV), node("PRelu", ["a", "slope"], ["y"])]
    assert ops_of(residual(nodes, constants={"slope": f32(4, 5, 1)})) == ["Conv", "PRelu"]
