"""The pass `integers`: quantized graphs (QDQ) become integer operators, with the same numbers and without casts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from evort.graph import Model
from evort.session import Session
from evort_tools.convert import Options, convert_model
from evort_tools.passes.integer_products import fits

CASTS = ("QuantizeLinear", "DequantizeLinear")


class Net:
    """Builds a QDQ model of one float input `x` and one float output `y`."""

    def __init__(self, *shape: int):
        self.rng = np.random.default_rng(0)
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def const(self, value: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, kind: str, *inputs: str, **attrs: object) -> str:
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attrs))
        return out

    def cast(self, x: str, scale: float = 0.02, zero: int = 120, dtype: type = np.uint8) -> str:
        """A tensor quantized and made real again."""
        pair = self.const(np.float32(scale)), self.const(dtype(zero))
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, *pair), *pair)

    def weights(self, *shape: int, axis: int = 0, scale: float = 0.004) -> str:
        """int8 weights with a scale for each index of an axis."""
        w = self.rng.integers(-127, 128, shape).astype(np.int8)
        scales = (scale * self.rng.uniform(0.5, 2, shape[axis])).astype(np.float32)
        zeros = self.const(np.zeros(shape[axis], np.int8))
        return self.op("DequantizeLinear", self.const(w), self.const(scales), zeros, axis=axis)

    def bias(self, count: int) -> str:
        return self.const(self.rng.normal(0, 0.5, count).astype(np.float32))

    def model(self, y: str) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [y], ["y"]))
        graph = helper.make_graph(
            self.nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], self.constants,
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def ops(model: Model) -> list[str]:
    return [node.op for node in model.graph.nodes]


def check(net: Net, y: str, step: float, steps: float = 1.01, threads: int = 1) -> Model:
    """Converts with and without the pass; both must agree within `steps` of the output's quantization (`step`)."""
    proto = net.model(y)
    lowered = convert_model(proto)
    plain = convert_model(proto, Options(disable=["integers"]))
    x = np.random.default_rng(1).normal(0, 1, net.shape).astype(np.float32)
    expected = Session(plain, device="reference").run({"x": x})["y"]
    for session in (Session(lowered, device="reference"), Session(lowered, threads=threads)):
        got = session.run({"x": x})["y"]
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=0, atol=steps * step)
    assert np.ptp(expected) > 4 * step
    return lowered


def no_casts(model: Model) -> None:
    assert not set(ops(model)) & set(CASTS), ops(model)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("activation", ["", "Relu", "HardSwish"])
def test_convolution(dtype, activation):
    zero = 120 if dtype == np.uint8 else -8
    net = Net(2, 3, 9, 8)
    y = net.op("Conv", net.cast("x", 0.03, zero, dtype), net.weights(6, 3, 3, 3), net.bias(6), pads=[1, 1, 1, 1])
    if activation:
        y = net.op(activation, y)
    # Wide enough that nothing is cut off: what follows HardSwish is not, where the last rounding is left out.
    model = check(net, net.cast(y, 0.08, zero, dtype), 0.08)
    assert ops(model) == ["QLinearConv"]


@pytest.mark.parametrize("op", ["Conv", "MatMul", "Gemm"])
def test_a_bias_without_room_in_units_of_a_sum(op):
    """Channels of weights that are next to nothing beside their bias, as onnxruntime's quantizer leaves them."""
    net = Net(2, 40, 7) if op == "Conv" else Net(7, 40)
    x, shape, axis = net.cast("x", 0.03), {"Conv": (6, 40, 3), "MatMul": (40, 6), "Gemm": (6, 40)}[op], op == "MatMul"
    scales = np.array([0.004, 1e-35, 0.003, 2e-10, 0.9e-10, 0.004], np.float32)
    w, zeros = net.rng.integers(-127, 128, shape).astype(np.int8), net.const(np.zeros(6, np.int8))
    w = net.op("DequantizeLinear", net.const(w), net.const(scales), zeros, axis=int(axis))
    b = net.const(np.array([0.5, -3, 0, 6.4, -5.8, 1], np.float32))
    if op == "MatMul":
        y = net.op("Add", net.op("MatMul", x, w), b)
    else:
        y = net.op(op, x, w, b, **({"transB": 1} if op == "Gemm" else {"pads": [1, 1]}))
    model = check(net, net.cast(y, 0.08, 120), 0.08)
    assert ops(model) == ["QLinearConv" if op == "Conv" else "QLinearMatMul"]


def test_ends_of_the_range_stay():
    """A QuantizeLinear whose range ends at 0 is a Relu, though its rounding is left out."""
    net = Net(1, 3, 9, 8)
    y = net.op("Conv", net.cast("x", 0.03), net.weights(6, 3, 3, 3), net.bias(6))
    model = check(net, net.cast(y, 0.004, 0), 0.004)
    assert ops(model) == ["QLinearConv"]


@pytest.mark.parametrize("op", ["Concat", "AveragePool", "GlobalAveragePool"])
def test_ends_of_the_range_stay_where_the_operator_has_no_activation(op):
    """A range that ends at 0 clips what a Concat or an average gives: it has to keep its rounding."""

    def lowered(scale: float, zero: int) -> list[str]:
        net = Net(1, 3, 9, 8)
        x = net.op("Conv", net.cast("x", 0.03), net.weights(6, 3, 1, 1), net.bias(6))
        x, other = net.cast(x, 0.05, 110), net.cast(net.op("Conv", "x", net.weights(6, 3, 1, 1)), 0.04, 120)
        if op == "Concat":
            y = net.op(op, x, other, axis=1)
        else:
            y = net.op(op, x, **({"kernel_shape": [2, 2]} if op == "AveragePool" else {}))
        # The convolution may round a tie the other way: one step of 0.05, and one of the result.
        return ops(check(net, net.cast(y, scale, zero), 0.05 + scale))

    assert lowered(0.004, 0)[-2:] == [f"QLinear{op}", "DequantizeLinear"]
    assert lowered(0.06, 110)[-1:] == [f"QLinear{op}"]  # all that it reads fits


def test_two_outputs_that_are_one():
    """Both DequantizeLinear read the same integers, and both give an output of the graph."""
    net = Net(1, 3, 4, 4)
    q = net.op("Conv", net.cast("x", 0.03), net.weights(6, 3, 1, 1), net.bias(6))
    y = net.cast(q, 0.02)
    proto = net.model(y)
    first = next(n for n in proto.graph.node if n.output[0] == y)
    other = proto.graph.node.add()
    other.CopyFrom(first)
    other.name, other.output[0] = "other", "other"
    proto.graph.output.add().CopyFrom(helper.make_tensor_value_info("other", TensorProto.FLOAT, None))
    x = np.random.default_rng(1).normal(0, 1, net.shape).astype(np.float32)
    got = Session(convert_model(proto)).run({"x": x})
    np.testing.assert_array_equal(got["y"], got["other"])


def test_depthwise_and_grouped_convolutions():
    net = Net(1, 8, 10, 10)
    x = net.op("Conv", net.cast("x"), net.weights(8, 1, 3, 3, scale=0.01), net.bias(8), group=8, pads=[1, 1, 1, 1])
    x = net.op("Conv", net.cast(x, 0.03), net.weights(16, 2, 1, 1, scale=0.01), group=4)
    model = check(net, net.cast(x, 0.03), 0.03, 2)
    assert ops(model) == ["QLinearConv", "QLinearConv"]


@pytest.mark.parametrize("readers", ["integers", "both"])
def test_instance_normalization_writes_bytes(readers):
    """Of float32, for a convolution; float32 where something else reads it as well."""
    net = Net(1, 8, 6, 6)
    n = net.op("InstanceNormalization", "x", net.const(np.linspace(0.5, 2, 8, dtype=np.float32)), net.bias(8))
    q = net.cast(n, 0.03, 100)
    y = net.op("Conv", q, net.weights(8, 8, 3, 3), net.bias(8), pads=[1, 1, 1, 1])
    y = net.op("Div", y, net.op("Exp", q)) if readers == "both" else y
    lowered = check(net, y, 0.03, 2)
    assert "QLinearInstanceNormalization" in ops(lowered) and not set(CASTS) & set(ops(lowered))
    norm = next(n for n in lowered.graph.nodes if n.op == "QLinearInstanceNormalization")
    assert len([name for name in norm.inputs if name]) == 5


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_batch_normalization_is_a_convolution(dtype):
    """With scales of any sign and size, and of zero with and without a shift."""
    net = Net(2, 8, 5, 6)
    scale = np.array([1.5, -0.7, 0, 0, 1e-6, 0.02, 3e-3, 1], np.float32)
    shift = np.array([0.3, 0.4, -0.5, 0, 0.9, 40, 0, -1], np.float32)
    mean, variance = net.rng.normal(0, 1, 8).astype(np.float32), net.rng.uniform(0.5, 2, 8).astype(np.float32)
    x = net.cast("x", zero=3, dtype=dtype)
    y = net.op("BatchNormalization", x, *(net.const(v) for v in (scale, shift, mean, variance)))
    lowered = check(net, net.cast(y, 0.03, 5, dtype), 0.03)
    assert ops(lowered) == ["QLinearConv"] and lowered.graph.nodes[0].attrs["group"] == 8


def test_transposed_convolution():
    net = Net(1, 3, 5, 6)
    y = net.op("ConvTranspose", net.cast("x"), net.weights(3, 4, 3, 3, axis=1), net.bias(4), strides=[2, 2])
    model = check(net, net.cast(y), 0.02)
    assert ops(model) == ["QLinearConvTranspose"]


def test_residual_joins_the_convolution():
    net = Net(1, 4, 8, 8)
    x = net.cast("x")
    a = net.cast(net.op("Conv", x, net.weights(4, 4, 3, 3), net.bias(4), pads=[1, 1, 1, 1]), 0.05)
    b = net.cast(net.op("Conv", x, net.weights(4, 4, 1, 1), net.bias(4)), 0.05)
    y = net.cast(net.op("Relu", net.op("Add", a, b)), 0.02, 0)
    # One rounding, of at most half a step of 0.05, is left out; nothing is cut off at the ends of its range.
    model = check(net, y, 0.02, 1 + 0.5 * 0.05 / 0.02)
    assert ops(model) == ["QLinearConv", "QLinearConv"]


def test_products():
    net = Net(5, 32)
    x = net.op("MatMul", net.cast("x"), net.weights(32, 24, axis=1))
    x = net.op("Gemm", net.cast(net.op("Relu", x), 0.02, 0), net.weights(10, 24), net.bias(10), transB=1)
    model = check(net, net.cast(x, 0.03), 0.03, 2)
    assert ops(model) == ["QLinearMatMul", "QLinearMatMul"]


def test_product_of_two_activations():
    net = Net(3, 6, 5)
    x = net.cast("x")
    model = check(net, net.cast(net.op("MatMul", x, net.op("Transpose", x, perm=[0, 2, 1])), 0.08), 0.08)
    assert "QLinearMatMul" in ops(model)


def test_moves_work_on_integers():
    net = Net(1, 4, 8, 8)
    x = net.cast("x")
    x = net.cast(net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))
    x = net.cast(net.op("Transpose", x, perm=[0, 2, 3, 1]))
    x = net.cast(net.op("Reshape", x, net.const(np.array([1, 4, 16]))))
    x = net.cast(net.op("Concat", x, x, axis=1))
    x = net.cast(net.op("Pad", x, net.const(np.array([0, 1, 0, 0, 0, 2]))))
    x = net.cast(net.op("Slice", x, net.const(np.array([1])), net.const(np.array([9])), net.const(np.array([1]))))
    model = check(net, x, 0.02, 0.01)
    assert ops(model).count("QuantizeLinear") == ops(model).count("DequantizeLinear") == 1


@pytest.mark.parametrize("kind", ["Sigmoid", "Tanh", "HardSwish", "Exp", "Erf", "Neg"])
def test_functions_become_tables(kind):
    net = Net(3, 50)
    x = net.op("MatMul", net.cast("x"), net.weights(50, 20, axis=1))
    y = net.op(kind, net.cast(x, 0.03))
    # The same float32 arithmetic on the same 256 numbers; the product may round to the other side at a tie.
    model = check(net, net.cast(y, 0.012, 100), 0.012, 1 + 0.03 / 0.012 * (12 if kind == "Exp" else 1.2))
    assert ops(model) == ["QLinearMatMul", "Lookup"]


def test_function_with_numbers():
    net = Net(3, 50)
    x = net.cast("x")
    y = net.op("Mul", net.op("Add", x, net.const(np.float32(3))), net.const(np.float32(0.2)))
    model = check(net, net.cast(y, 0.01), 0.01, 1.01)
    assert "Lookup" in ops(model)
    assert "Add" not in ops(model)


def test_change_of_scale_is_a_table():
    net = Net(4, 30)
    x = net.cast(net.op("MatMul", net.cast("x"), net.weights(30, 30, axis=1)), 0.02)
    x = net.cast(x, 0.031, 90)
    x = net.op("MatMul", x, net.weights(30, 30, axis=1))
    model = check(net, net.cast(x, 0.02), 0.02, 4)
    no_casts(model)


def test_sum_and_product_of_two():
    net = Net(2, 3, 10)
    x = net.cast("x")
    a = net.cast(net.op("Sigmoid", x), 1 / 255, 0)
    y = net.cast(net.op("Mul", x, a), 0.02)
    y = net.cast(net.op("Add", y, x), 0.03)
    model = check(net, y, 0.03, 2)
    assert {"QLinearMul", "QLinearAdd", "Lookup"} <= set(ops(model))


def test_float_consumer_reads_float():
    """A tensor that both integers and floats read is float32, and is quantized by those who want integers."""
    net = Net(2, 4, 6, 6)
    x = net.cast(net.op("Conv", net.cast("x"), net.weights(4, 4, 3, 3), pads=[1, 1, 1, 1]))
    a = net.cast(net.op("Conv", x, net.weights(4, 4, 1, 1)))
    b = net.op("Softmax", x, axis=1)
    model = check(net, net.op("Add", a, b), 0.02, 2)
    no_casts(model)
    assert ops(model).count("QLinearConv") == 2


def test_float_residual_is_added_as_it_is():
    """A residual that floats read too is float32; it comes without a scale, and is not quantized again."""
    net = Net(2, 4, 6, 6)
    x = net.cast(net.op("Conv", net.cast("x"), net.weights(4, 4, 3, 3), pads=[1, 1, 1, 1]))
    a = net.cast(net.op("Add", net.cast(net.op("Conv", x, net.weights(4, 4, 1, 1))), x))
    b = net.op("Softmax", x, axis=1)
    model = check(net, net.op("Add", a, b), 0.02, 2.51)
    no_casts(model)
    assert ops(model).count("QLinearConv") == 2


def test_unquantized_model_is_left_alone():
    net = Net(2, 8)
    proto = net.model(net.op("MatMul", "x", net.const(np.ones((8, 3), np.float32))))
    assert ops(convert_model(proto)) == ["MatMul"]


def test_weights_stay_integers():
    net = Net(1, 64)
    y = net.cast(net.op("MatMul", net.cast("x"), net.weights(64, 64, axis=1)))
    model = convert_model(net.model(y))
    assert sum(t.data.nbytes for t in model.graph.tensors.values() if t.data is not None) < 64 * 64 + 64 * 8


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3), st.integers(1, 40), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**32 - 1))
def test_proof_of_presum(m, k, presum, seed):
    """`fits` says yes exactly where no uint8 input can overflow 16 bits."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(-128 // presum - 3, 128 // presum + 4, (m, k)).clip(-128, 127).astype(np.int8)
    worst = True
    run = 4 * presum
    for row in rows:
        for start in range(0, k, run):
            for lane in (0, 1):
                members = [row[i] for i in range(start, min(start + run, k)) if i % 4 // 2 == lane]
                high = 255 * sum(int(w) for w in members if w > 0)
                low = 255 * sum(int(w) for w in members if w < 0)
                worst = worst and high <= 32767 and low >= -32768
    assert fits(rows, presum) == worst


@pytest.mark.parametrize(
    ("channels", "largest", "proven"), [(16, 32, 4), (16, 33, 1), (12, 32, 1), (16, 65, 0), (6, 1, 0)]
)
def test_presum_of_a_convolution(channels, largest, proven):
    """Groups are of successive channels at one place of the kernel."""
    net = Net(1, channels, 6, 6)
    w = np.zeros((5, channels, 3, 3), np.int8)
    w[:, :4] = w[:, 4 : 4 + 4 * (channels > 12)] = largest
    w = net.op(
        "DequantizeLinear",
        net.const(w),
        net.const(np.full(5, 0.001, np.float32)),
        net.const(np.zeros(5, np.int8)),
        axis=0,
    )
    y = net.cast(net.op("Conv", net.cast("x"), w))
    node = next(n for n in convert_model(net.model(y)).graph.nodes if n.op == "QLinearConv")
    assert node.attrs.get("presum", 0) == proven
