"""Models of quantized operators as onnxruntime writes them (QOperator form): read, and equal within one step."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
import quantized_nodes
from onnx import TensorProto, helper, numpy_helper
from support import import_onnxruntime

import evort
import evort_tools
from evort.errors import ConversionError
from evort.session import Session
from evort_tools.convert import convert_model

onnxruntime, quantization = import_onnxruntime(), import_onnxruntime("onnxruntime.quantization")


class Samples(quantization.CalibrationDataReader):
    def __init__(self, samples):
        self.left = iter(samples)

    def get_next(self):
        return next(self.left, None)


def network(rng: np.random.Generator) -> onnx.ModelProto:
    """Convolutions, a residual sum, a join, pools, activations and a classifier."""

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        fan = np.prod(shape[1:]) if len(shape) > 1 else 16
        return numpy_helper.from_array((rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32), name)

    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("LeakyRelu", ["c1"], ["r1"], alpha=0.1),
        node("MaxPool", ["r1"], ["m1"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["m1", "w2", "b2"], ["c2"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Add", ["c2", "m1"], ["s"]),
        node("Sigmoid", ["s"], ["g"]),
        node("Mul", ["g", "s"], ["h"]),
        node("Concat", ["h", "m1"], ["j"], axis=1),
        node("AveragePool", ["j"], ["a"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["a", "w3", "b3"], ["c3"], kernel_shape=[1, 1]),
        node("Relu", ["c3"], ["r3"]),
        node("GlobalAveragePool", ["r3"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "w4", "b4"], ["l"], transB=1),
        node("Softmax", ["l"], ["y"], axis=-1),
    ]
    weights = [
        weight("w1", 8, 3, 3, 3), weight("b1", 8), weight("w2", 8, 8, 3, 3), weight("b2", 8),
        weight("w3", 16, 16, 1, 1), weight("b3", 16), weight("w4", 10, 16), weight("b4", 10),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def quantize(folder, seed, count, skip=0, **options):
    """(path of a network that onnxruntime quantized, `count` samples); the first `skip` are not calibrated on."""
    rng = np.random.default_rng(seed)
    onnx.save(network(rng), folder / "float.onnx")
    samples = [{"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(count)]
    logging.disable(logging.WARNING)
    quantization.quantize_static(
        str(folder / "float.onnx"),
        str(folder / "quantized.onnx"),
        Samples(samples[skip:]),
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        **options,
    )
    logging.disable(logging.NOTSET)
    return folder / "quantized.onnx", samples


@pytest.fixture(
    scope="module", params=[quantization.QuantType.QUInt8, quantization.QuantType.QInt8], ids=["uint8", "int8"]
)
def quantized(request, tmp_path_factory):
    """(path of the quantized model, samples). Weights of 7 bits: the peer's sums of wider ones may saturate."""
    folder = tmp_path_factory.mktemp("qoperator")
    return quantize(
        folder,
        seed=0,
        count=16,
        quant_format=quantization.QuantFormat.QOperator,
        activation_type=request.param,
        reduce_range=True,
    )


def test_the_whole_model_is_equal_within_one_step(quantized):
    path, samples = quantized
    proto = onnx.load(path)
    operators = {n.op_type for n in proto.graph.node}
    assert {"QLinearConv", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearAveragePool", "QLinearSigmoid",
            "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearSoftmax", "QGemm"} <= operators  # fmt: skip
    last = next(n for n in proto.graph.node if n.output[0] == "y")
    step = next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == last.input[1]).item()
    peer = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    session = evort.load(evort_tools.convert(path))
    for feeds in samples:
        (want,) = peer.run(None, feeds)
        got = session.run(feeds)["y"]
        assert np.abs(got - want).max() <= step * (1 + 1e-5)
    slow = {step.call.node.op for plan in session.plans() for step in plan.steps if step.driver == "numpy"}
    assert slow <= {"QLinearConv"}, "every other quantized operator has a compiled driver"


def test_each_operator_is_equal_within_one_step(quantized):
    """Every node of its own, on the tensors that the peer's model has there."""
    path, samples = quantized
    proto = onnx.load(path)
    known = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    inner = [o for n in proto.graph.node for o in n.output]
    typed = onnx.load(path)
    del typed.graph.output[:]
    typed.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in inner)
    values = dict(
        zip(inner, onnxruntime.InferenceSession(typed.SerializeToString()).run(None, samples[0]), strict=True)
    )
    values.update(samples[0])
    checked = 0
    for node in proto.graph.node:
        if not node.op_type.startswith(("QLinear", "QGemm")):
            continue
        fed = [n for n in node.input if n in values]
        graph = helper.make_graph(
            [node],
            "one",
            [
                helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(values[n].dtype), values[n].shape)
                for n in fed
            ],
            [helper.make_empty_tensor_value_info(node.output[0])],
            [numpy_helper.from_array(known[n], n) for n in node.input if n in known],
        )
        model = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=9)
        got = Session(convert_model(model)).run({n: values[n] for n in fed})[node.output[0]]
        want = values[node.output[0]]
        assert got.dtype == want.dtype
        assert np.abs(got.astype(int) - want).max() <= 1, node.op_type
        checked += 1
    assert checked >= 12


def test_each_operator_between_pairs_is_equal_within_one_step(tmp_path):
    """The same of the QDQ form; `benchmarks/quantized_nodes.py` does so for real models. Weights of 8 bits, as the peer
    runs these in float."""
    path, samples = quantize(
        tmp_path,
        seed=1,
        count=8,
        skip=1,
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
    )
    found = quantized_nodes.outcomes(onnx.load(path), samples[0])
    operators = {outcome.operators for outcome in found}
    assert {"Conv", "MaxPool", "Add", "Mul", "Sigmoid", "Concat", "AveragePool", "Gemm", "Softmax"} <= operators
    bad = [outcome for outcome in found if not outcome.good or outcome.floats]
    assert not bad and sum(outcome.values for outcome in found) > 8_000


def test_an_operator_that_is_off_is_found():
    """What the peer gives with another scale of the output is not what evort gives."""
    given = {"s": np.float32(0.05), "t": np.float32(0.05), "z": np.uint8(128)}
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("Relu", ["d"], ["r"]),
        node("QuantizeLinear", ["r", "t", "z"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])
    y = helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 64])
    graph = helper.make_graph(nodes, "one", [x], [y], [numpy_helper.from_array(v, n) for n, v in given.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    feeds = {"x": np.linspace(-6, 6, 64, dtype=np.float32)[None]}
    assert [outcome.steps for outcome in quantized_nodes.outcomes(model, feeds)] == [0, 0]
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.float32(0.055), "t"))
    values = {**feeds, **quantized_nodes.tensors_of(other, feeds, ["q", "y"])}
    found = {o.name: o for o in (quantized_nodes.compared(model, p, values) for p in quantized_nodes.parts(model))}
    assert found["q"].good and not found["y"].good and found["y"].more > 10


def test_unknown_operators_of_the_domain_are_named():
    node = helper.make_node("QLinearTeleport", ["x"], ["y"], domain="com.microsoft")
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", TensorProto.UINT8, [3])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [3])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    with pytest.raises(ConversionError, match="QLinearTeleport"):
        evort_tools.convert(helper.make_model(graph, opset_imports=opsets))


def test_a_layout_that_evort_lacks_is_refused_when_it_is_converted():
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 4, 4, 3])
    y = helper.make_tensor_value_info("y", TensorProto.UINT8, None)
    constants = [numpy_helper.from_array(np.float32(0.5), "s"), numpy_helper.from_array(np.uint8(0), "z")]
    node = helper.make_node(
        "QLinearGlobalAveragePool", ["x", "s", "z", "s", "z"], ["y"], domain="com.microsoft", channels_last=1
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    with pytest.raises(ConversionError, match="channels_last"):
        evort_tools.convert(
            helper.make_model(helper.make_graph([node], "one", [x], [y], constants), opset_imports=opsets)
        )
