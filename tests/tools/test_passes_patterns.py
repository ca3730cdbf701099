"""Passes that recognise what exporters write out: activation functions and normalizations, and what only looks so."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import helper
from tools_support import check_pass, node, onnx_model, ops_of

F = np.float32
RNG = np.random.default_rng(5)
EXTREMES = np.concatenate([np.linspace(-12, 12, 240), [0.0, -0.0, 1e-30, -1e-30]]).astype(F)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(F)


class Writer:
    """Writes formulas: w.mul(a, b) adds a node and returns its output; numbers become constants."""

    def __init__(self, kind=F, rank=0):
        self.nodes, self.constants, self.kind, self.rank = [], {}, kind, rank

    def name(self, value):
        if isinstance(value, str):
            return value
        key = f"k{len(self.constants)}"
        self.constants[key] = np.full((1,) * self.rank, value, self.kind)
        return key

    def __getattr__(self, op):
        def add(*inputs, **attrs):
            out = f"t{len(self.nodes)}"
            self.nodes.append(node(op, [self.name(i) for i in inputs], [out], **attrs))
            return out

        return add

    def model(self, last, shape=(244,), opset=21, **others):
        self.nodes.append(node("Identity", [last], ["y"]))
        inputs = {"x": (self.kind, shape), **others}
        return onnx_model(self.nodes, inputs, constants=self.constants, opset=opset)


def activation(build, *expected, rank=0, feeds=None, rtol=2e-6, kind=F, passes=()):
    w = Writer(kind, rank)
    model = w.model(build(w))
    feeds = {"x": EXTREMES.astype(kind)} if feeds is None else feeds
    after = check_pass(model, *passes, feeds=feeds, rtol=rtol)
    assert ops_of(after) == list(expected)
    return after


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "build",
    [
        lambda w: w.Mul(w.Mul("x", w.Add(w.Erf(w.Div("x", math.sqrt(2))), 1)), 0.5),
        lambda w: w.Mul(w.Mul(0.5, "x"), w.Add(1, w.Erf(w.Mul("x", math.sqrt(0.5))))),
        lambda w: w.Mul("x", w.Mul(w.Add(w.Erf(w.Div("x", math.sqrt(2))), 1), 0.5)),
        lambda w: w.Mul("x", w.Add(w.Mul(w.Erf(w.Mul("x", math.sqrt(0.5))), 0.5), 0.5)),
    ],
)
def test_gelu(build, rank):
    assert activation(build, "Gelu", rank=rank).graph.nodes[0].attrs == {}


@pytest.mark.parametrize(
    "build",
    [
        lambda w: w.Mul(w.Mul("x", 0.5), w.Add(w.Tanh(w.Mul(w.Add("x", w.Mul(w.Pow("x", 3), 0.044715)),
                                                            math.sqrt(2 / math.pi))), 1)),
        lambda w: w.Mul("x", w.Mul(0.5, w.Add(1, w.Tanh(w.Mul(math.sqrt(2 / math.pi), w.Add(
            "x", w.Mul("x", w.Mul("x", w.Mul(0.044715, "x"))))))))),
        lambda w: w.Mul(w.Mul("x", w.Add(1, w.Tanh(w.Mul(w.Mul("x", math.sqrt(2 / math.pi)),
                                                         w.Add(1, w.Mul(w.Mul("x", 0.044715), "x")))))), 0.5),
    ],
)  # fmt: skip
def test_gelu_by_tanh(build):
    assert activation(build, "Gelu").graph.nodes[0].attrs == {"approximate": "tanh"}


@pytest.mark.parametrize(
    "build",
    [
        lambda w: w.Mul("x", w.Add(1, w.Erf(w.Mul("x", math.sqrt(0.5))))),  # twice GELU
        lambda w: w.Mul(0.5, w.Mul("x", w.Add(1, w.Erf("x")))),
        lambda w: w.Mul(0.5, w.Mul("x", w.Add(1.1, w.Erf(w.Mul("x", math.sqrt(0.5)))))),
        lambda w: w.Mul(w.Exp("x"), w.Mul(0.5, w.Add(1, w.Erf(w.Mul("x", math.sqrt(0.5)))))),
        lambda w: w.Mul("x", w.Sigmoid(w.Exp("x"))),
        lambda w: w.Mul("x", w.Tanh(w.Softplus(w.Exp("x")))),
        lambda w: w.Div(w.Mul("x", w.Clip(w.Add("x", 3.0), 0.0, 5.0)), 6.0),
        lambda w: w.Div(w.Mul("x", w.Clip(w.Add("x", 2.0), 0.0, 6.0)), 6.0),
        lambda w: w.Mul("x", w.HardSigmoid("x", alpha=0.2)),
        lambda w: w.Log(w.Add(2.0, w.Exp("x"))),
    ],
)
def test_what_is_nearly_an_activation_function(build):
    w = Writer()
    feeds = {"x": np.linspace(-3, 3, 244).astype(F)}
    after = check_pass(w.model(build(w)), feeds=feeds)
    assert not {"Gelu", "Swish", "Mish", "HardSwish", "Softplus"} & set(ops_of(after)[-1:])


def test_swish_and_its_slope():
    assert activation(lambda w: w.Mul("x", w.Sigmoid("x")), "Swish").graph.nodes[0].attrs == {}
    quick = activation(lambda w: w.Mul(w.Sigmoid(w.Mul("x", 1.702)), "x"), "Swish")
    assert quick.graph.nodes[0].attrs["alpha"] == pytest.approx(1.702)
    # Paddle multiplies with one first.
    activation(lambda w: w.Mul("x", w.Sigmoid(w.Mul("x", 1.0))), "Swish", rank=1)


@pytest.mark.parametrize(
    "build",
    [
        lambda w: w.Div(w.Mul("x", w.Clip(w.Add("x", 3.0), 0.0, 6.0)), 6.0),
        lambda w: w.Mul("x", w.Div(w.Clip(w.Add(3.0, "x"), 0.0, 6.0), 6.0)),
        lambda w: w.Mul(w.Mul("x", w.Clip(w.Add("x", 3.0), 0.0, 6.0)), 1 / 6),
        lambda w: w.Mul("x", w.HardSigmoid("x", alpha=1 / 6, beta=0.5)),
        lambda w: w.Mul("x", w.Min(w.Max(w.Add("x", 3.0), 0.0), 6.0)) and w.Div(w.nodes[-1].output[0], 6.0),
    ],
)
def test_hard_swish(build):
    # Six times a clipped sum, rounded, against a clipped sum of sixths: two more roundings of numbers up to 12.
    activation(build, "HardSwish", rtol=4e-7)


def test_hard_swish_times_a_factor_keeps_the_factor():
    activation(lambda w: w.Mul(0.25, w.Div(w.Mul("x", w.Clip(w.Add("x", 3.0), 0.0, 6.0)), 6.0)), "HardSwish", "Mul")


def test_hard_sigmoid():
    after = activation(lambda w: w.Div(w.Clip(w.Add("x", 3.0), 0.0, 6.0), 6.0), "HardSigmoid")
    assert after.graph.nodes[0].attrs["alpha"] == pytest.approx(1 / 6)
    activation(lambda w: w.Clip(w.Add(w.Mul("x", 0.3), 0.4), 0.0, 1.0), "HardSigmoid")
    activation(lambda w: w.Clip(w.Mul("x", 0.3), 0.0, 1.0), "Mul")  # no sum: a Mul that clips on its way out


def test_mish_and_softplus():
    activation(lambda w: w.Mul("x", w.Tanh(w.Softplus("x"))), "Mish")
    activation(lambda w: w.Mul(w.Tanh(w.Log(w.Add(w.Exp("x"), 1.0))), "x"), "Mish")
    activation(lambda w: w.Log(w.Add(1.0, w.Exp("x"))), "Softplus")


def test_patterns_with_other_readers_stay():
    """The gate is an output too: it must be computed anyway."""
    nodes = [node("Sigmoid", ["x"], ["s"]), node("Mul", ["x", "s"], ["y"])]
    after = check_pass(onnx_model(nodes, {"x": (F, [9])}, ["y", "s"]))
    assert ops_of(after) == ["Sigmoid", "Mul"]


def test_patterns_that_broadcast_stay():
    """x * sigmoid(x) of [3, 1] and [1, 3] is an outer product."""
    nodes = [node("Reshape", ["x", "s"], ["c"]), node("Sigmoid", ["c"], ["g"]), node("Mul", ["x", "g"], ["y"])]
    after = check_pass(onnx_model(nodes, {"x": (F, [1, 3])}, constants={"s": np.array([3, 1])}))
    assert "Swish" not in ops_of(after)


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_float_types(kind):
    # float16 has 11 bits: a few roundings of numbers up to 12.
    tolerance = 4e-3 if kind == np.float16 else 1e-12
    activation(lambda w: w.Mul("x", w.Sigmoid("x")), "Swish", kind=kind, rtol=tolerance)
    activation(lambda w: w.Div(w.Mul("x", w.Clip(w.Add("x", 3.0), 0.0, 6.0)), 6.0), "HardSwish", kind=kind,
               rtol=tolerance)  # fmt: skip


def test_integers_have_no_activation_functions():
    nodes = [node("Add", ["x", "k"], ["a"]), node("Clip", ["a", "lo", "hi"], ["c"]), node("Mul", ["x", "c"], ["m"]),
             node("Div", ["m", "hi"], ["y"])]  # fmt: skip
    constants = {"k": np.array(3), "lo": np.array(0), "hi": np.array(6)}
    after = check_pass(onnx_model(nodes, {"x": (np.int64, [9])}, constants=constants))
    assert ops_of(after) == ["Add", "Clip", "Mul", "Div"]


# Normalizations


def layer_norm(w, axes, form, epsilon=1e-5):
    """(x - mean) / sqrt(var + eps), as different exporters write it."""
    mean = w.ReduceMean("x", axes, keepdims=1)
    centered = w.Sub("x", mean)
    if form == "moments":
        squares = w.ReduceMean(w.Mul("x", "x"), axes, keepdims=1)
        variance = w.Max(w.Sub(squares, w.Mul(mean, mean)), 0.0)
    else:
        square = w.Pow(centered, 2.0) if form == "pow" else w.Mul(centered, centered)
        variance = w.ReduceMean(square, axes, keepdims=1)
    deviation = w.Sqrt(w.Add(variance, epsilon))
    if form == "reciprocal":
        return w.Mul(centered, w.Reciprocal(deviation))
    if form == "power":
        return w.Mul(centered, w.Pow(w.Add(variance, epsilon), -0.5))
    return w.Div(centered, deviation)


def axes_of(w, axes):
    w.constants["axes"] = np.array(axes)
    return "axes"


# The variance is a difference of squares in one form: cancellation costs it a few bits.
FORMS = ["pow", "mul", "reciprocal", "power", "moments"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("affine", [True, False])
def test_layer_normalization(form, affine):
    w = Writer()
    last = layer_norm(w, axes_of(w, [-1]), form)
    if affine:
        w.constants.update(gamma=f32(16), beta=f32(1, 16))
        last = w.Add(w.Mul(last, "gamma"), "beta")
    after = check_pass(w.model(last, ("N", 3, 16)), sizes={"N": 4}, rtol=1e-5)
    assert ops_of(after) == ["LayerNormalization"]
    (norm,) = after.graph.nodes
    assert norm.attrs.get("axis", -1) == -1 and len(norm.inputs) == (3 if affine else 2)


def test_layer_normalization_over_two_axes():
    w = Writer()
    w.constants.update(gamma=f32(3, 16))
    last = w.Mul("gamma", layer_norm(w, axes_of(w, [1, 2]), "mul"))
    after = check_pass(w.model(last, (4, 3, 16)), rtol=1e-5)
    assert ops_of(after) == ["LayerNormalization"] and after.graph.nodes[0].attrs["axis"] == -2


def test_instance_normalization():
    w = Writer()
    w.constants.update(gamma=f32(3, 1, 1), beta=f32(1, 3, 1, 1))
    last = w.Add(w.Mul(layer_norm(w, axes_of(w, [2, 3]), "pow"), "gamma"), "beta")
    after = check_pass(w.model(last, (2, 3, 8, 9)), rtol=1e-5)
    # Over the trailing axes it could be a LayerNormalization, but for the scales of channels.
    assert ops_of(after) == ["InstanceNormalization"]


def test_shift_behind_an_activation_of_a_normalization_stays():
    w = Writer()
    w.constants.update(one=np.ones(3, np.float32), zero=np.zeros(3, np.float32), shift=f32(3, 1, 1))
    last = w.Add(w.Relu(w.InstanceNormalization("x", "one", "zero")), "shift")
    after = check_pass(w.model(last, (2, 3, 4, 5)), rtol=1e-5)
    assert ops_of(after) == ["InstanceNormalization", "Add"]


def test_normalization_of_other_axes_stays():
    w = Writer()
    after = check_pass(w.model(layer_norm(w, axes_of(w, [1]), "mul"), (2, 8, 5)), rtol=1e-5)
    assert "ReduceMean" in ops_of(after)


def test_normalization_of_other_axes_keeps_nothing_of_its_size():
    """As Flax writes it: squares are averaged as they are read, and scale and deviation multiplied in one by one."""
    w = Writer()
    w.constants.update(axis=np.array([1]), gamma=f32(1, 8, 1), one=np.array(1.0, np.float32))
    mean, squares = w.ReduceMean("x", "axis"), w.ReduceMean(w.Mul("x", "x"), "axis")
    inverse = w.Div("one", w.Sqrt(w.Add(w.Relu(w.Sub(squares, w.Mul(mean, mean))), 1e-3)))
    last = w.Mul(w.Sub("x", mean), w.Mul(inverse, "gamma"))
    after = check_pass(w.model(last, (2, 8, 40)), rtol=1e-5)
    assert "ReduceSumSquare" in ops_of(after)
    by_output = {n.outputs[0]: n for n in after.graph.nodes}
    sizes = [n for n in after.graph.nodes if n.op == "Mul" and after.graph.constant(n.inputs[1]) is not None]
    last = by_output[after.graph.outputs[0]]
    assert last in sizes and after.graph.constant(last.inputs[1]).shape == (1, 8, 1)
    assert by_output[last.inputs[0]].op == "Mul"


def test_factors_as_large_as_what_they_multiply_stay():
    w = Writer()
    w.constants.update(gamma=f32(1, 8, 4))
    last = w.Mul("x", w.Mul(w.Relu("x"), "gamma"))
    assert ops_of(check_pass(w.model(last, (2, 8, 4)), rtol=1e-5)).count("Mul") == 2


def test_mean_and_variance_of_different_axes_are_no_normalization():
    w = Writer()
    w.constants.update(a=np.array([2]), b=np.array([1, 2]))
    centered = w.Sub("x", w.ReduceMean("x", "a"))
    last = w.Div(centered, w.Sqrt(w.Add(w.ReduceMean(w.Mul(centered, centered), "b"), 1e-5)))
    assert "LayerNormalization" not in ops_of(check_pass(w.model(last, (2, 8, 5)), rtol=1e-5))


def test_scales_of_another_shape_are_not_taken_in():
    w = Writer()
    w.constants.update(gamma=f32(4, 1, 16))
    last = w.Mul(layer_norm(w, axes_of(w, [-1]), "mul"), "gamma")
    after = check_pass(w.model(last, (4, 3, 16)), rtol=1e-5)
    assert ops_of(after) == ["LayerNormalization", "Mul"]


def test_intermediate_outputs_are_still_computed():
    w = Writer()
    last = layer_norm(w, axes_of(w, [-1]), "mul")
    mean = w.nodes[0].output[0]
    model = w.model(last, (4, 16))
    model.graph.output.append(helper.make_empty_tensor_value_info(mean))
    after = check_pass(model, rtol=1e-5)
    assert sorted(ops_of(after)) == ["LayerNormalization", "ReduceMean"]


def test_rms_normalization():
    for form in ("div", "mul"):
        w = Writer()
        w.constants.update(gamma=f32(16))
        root = w.Sqrt(w.Add(w.ReduceMean(w.Pow("x", 2.0), axes_of(w, [-1])), 1e-6))
        last = w.Div("x", root) if form == "div" else w.Mul("x", w.Reciprocal(root))
        after = check_pass(w.model(w.Mul(last, "gamma"), (2, 3, 16)), rtol=1e-5)
        assert ops_of(after) == ["RMSNormalization"]


def test_group_normalization_by_reshapes():
    nodes = [
        node("Reshape", ["x", "split"], ["g"]),
        node("InstanceNormalization", ["g", "ones", "zeros"], ["n"], epsilon=1e-5),
        node("Shape", ["x"], ["s"]),
        node("Reshape", ["n", "s"], ["r"]),
        node("Mul", ["r", "gamma"], ["m"]),
        node("Add", ["m", "beta"], ["y"]),
    ]
    constants = {"split": np.array([0, 2, -1]), "ones": np.ones(2, F), "zeros": np.zeros(2, F),
                 "gamma": f32(6, 1, 1), "beta": f32(6, 1, 1)}  # fmt: skip
    model = onnx_model(nodes, {"x": (F, ["N", 6, "H", "W"])}, constants=constants)
    after = check_pass(model, sizes={"N": 2, "H": 4, "W": 5}, rtol=1e-5)
    assert ops_of(after) == ["GroupNormalization"] and after.graph.nodes[0].attrs["num_groups"] == 2


@pytest.mark.parametrize("keep", [0, 1])
def test_softmax(keep):
    """As JAX writes it: reductions without kept axes, given back by Reshape and Expand."""
    w = Writer()
    w.constants.update(back=np.array([-1, 1]), axes=np.array([1]))
    most = w.ReduceMax("x", "axes", keepdims=keep)
    most = most if keep else w.Expand(w.Reshape(w.Max(-np.inf, most), "back"), "back1")
    w.constants["back1"] = np.array([1, 1])
    powers = w.Exp(w.Sub("x", most))
    total = w.ReduceSum(powers, "axes", keepdims=keep)
    total = total if keep else w.Reshape(total, "back")
    after = check_pass(w.model(w.Div(powers, total), ("N", 10)), sizes={"N": 7})
    assert ops_of(after) == ["Softmax"]


def test_softmax_of_rows():
    """Opset 11 over the last axis of a tensor whose rank only the passes learn."""
    nodes = [node("Reshape", ["x", "s"], ["r"]), node("Softmax", ["r"], ["y"], axis=2)]
    model = onnx_model(nodes, {"x": (F, ["N", 12]), "s": (np.int64, [3])}, opset=11)
    feeds = {"x": f32(2, 12), "s": np.array([2, 3, 4])}
    check_pass(model, feeds=feeds)
    flat = [node("Flatten", ["x"], ["f"], axis=2), node("Softmax", ["f"], ["p"], axis=-1), node("Shape", ["x"], ["s"]),
            node("Reshape", ["p", "s"], ["y"])]  # fmt: skip
    after = check_pass(onnx_model(flat, {"x": (F, ["A", "B", 5])}), sizes={"A": 2, "B": 3})
    assert ops_of(after) == ["Softmax"]


def test_sums_over_a_count_are_means():
    w = Writer()
    w.constants["axes"] = np.array([1])
    last = w.Mul(w.ReduceSum("x", "axes"), 1 / 8)
    assert ops_of(check_pass(w.model(last, (3, 8, 2)))) == ["ReduceMean"]
    w = Writer()
    w.constants["axes"] = np.array([1])
    last = w.Mul(w.ReduceSum("x", "axes"), 1 / 7)
    assert ops_of(check_pass(w.model(last, (3, 8, 2)))) == ["ReduceSum", "Mul"]
