"""Dynamic quantization: the drivers give what the reference gives, bit for bit (sums are exact, and what follows them
is rounded operation by operation), and what onnxruntime gives for its own operators.

Int16 weights are float products: gamma(k) * sum |x||w|, as in test_nbits.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import drivers_of, import_onnxruntime, node_model, run_node

from evort._kernels import core
from evort.errors import EvortError
from evort.ops.dynamic import dynamic_range
from evort.session import Session

MS = "com.microsoft"


def both(op, inputs, attrs, domain, driver, constants=(1, 2, 3, 4)):
    """The reference's output, after the driver gave the same on every instruction set with one thread and two."""
    model = node_model(op, inputs, attrs, domain=domain, constants=constants)
    feeds = {f"in{i}": x for i, x in enumerate(inputs) if x is not None and i not in constants}
    want = Session(model, device="reference").run(feeds)["out0"]
    for isa in core.available_isas():
        core.select_isa(isa)
        try:
            for threads in (1, 2):
                session = Session(model, threads=threads)
                got = session.run(feeds)["out0"]
                assert drivers_of(session) == [driver]
                np.testing.assert_array_equal(got, want)
        finally:
            core.select_isa()
    return want


def weights(rng, shape, kind):
    low, high = (0, 256) if kind == np.uint8 else (-128, 128)
    return rng.integers(low, high, shape).astype(kind)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from([np.int8, np.uint8]), st.integers(0, 9), st.integers(1, 40), st.sampled_from([1, 2, 7, 64, 259]),
       st.booleans(), st.booleans(), st.sampled_from([8, 16]), st.sampled_from(["", "Relu", "LeakyRelu"]),
       st.sampled_from([1.0, 1e-20, 1e20]))  # fmt: skip
def test_matmul(kind, m, n, k, per_column, extras, bits, activation, size):
    rng = np.random.default_rng([m, n, k])
    many = (n,) if per_column else ()
    a = (rng.standard_normal((m, k)) * size + size / 3).astype(np.float32)
    scale = np.asarray(rng.random(many) + 0.01, np.float32)
    zero = weights(rng, many, kind) if extras else None
    bias, z = (rng.standard_normal(n).astype(np.float32), rng.standard_normal((m, n)).astype(np.float32))
    inputs = [a, weights(rng, (k, n), kind), scale, zero, bias if extras else None, z if extras else None]
    both("DynamicQuantizeMatMul", inputs, {"bits": bits, "activation": activation}, MS, "dynamic.matmul")


def test_matmul_of_several_axes_and_odd_values():
    rng = np.random.default_rng(1)
    b, scale = weights(rng, (30, 8), np.int8), rng.random(8).astype(np.float32)
    for shape in ((30,), (2, 3, 30), (4, 0, 30)):
        a = rng.standard_normal(shape).astype(np.float32)
        assert both("DynamicQuantizeMatMul", [a, b, scale], {}, MS, "dynamic.matmul").shape == (*shape[:-1], 8)
    for value in (0.0, -3.0, 2.5, 1e-42, 3e38):
        both("DynamicQuantizeMatMul", [np.full((2, 30), value, np.float32), b, scale], {}, MS, "dynamic.matmul")


def test_matmul_as_onnxruntime():
    ort = import_onnxruntime()
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(2)
    a, bias = rng.standard_normal((5, 40)).astype(np.float32), rng.standard_normal(12).astype(np.float32)
    b, scale = rng.integers(-64, 64, (40, 12)).astype(np.int8), rng.random(12).astype(np.float32)
    zero = np.zeros(12, np.int8)
    node = helper.make_node("DynamicQuantizeMatMul", ["a", "b", "s", "z", "c"], ["y"], domain=MS)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("a", TensorProto.FLOAT, a.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (5, 12))],
        [numpy_helper.from_array(v, name) for name, v in (("b", b), ("s", scale), ("z", zero), ("c", bias))],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    want = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"a": a})[0]
    got = run_node("DynamicQuantizeMatMul", [a, b, scale, zero, bias], domain=MS, constants=(1, 2, 3, 4))[0]
    # One activation may be rounded to the other side of a tie: one step of it times the largest weight.
    step = float(dynamic_range(a, 8)[0])
    assert np.all(np.abs(got - want) <= step * 64 * scale + 1e-4)
    assert np.median(np.abs(got - want)) < 1e-4


CONVS = [
    ((1, 8, 9, 11), 6, (3, 3), {"pads": [1, 1, 1, 1]}),
    ((2, 16, 5, 6), 20, (1, 1), {}),
    ((1, 12, 37), 9, (5,), {"strides": [2], "dilations": [2], "pads": [3, 1]}),
    ((1, 4, 5, 6, 7), 3, (2, 3, 2), {"auto_pad": "SAME_UPPER"}),
    ((4, 12, 7, 7), 8, (3, 3), {"group": 4}),
    ((1, 6, 8, 8), 6, (3, 3), {"group": 6, "strides": [2, 1], "pads": [0, 2, 1, 0]}),
    ((1, 5, 40, 3), 50, (3, 1), {"strides": [1, 2]}),
]


@pytest.mark.parametrize("case", CONVS, ids=str)
@pytest.mark.parametrize("bits", [8, 16])
def test_conv(case, bits):
    shape, m, kernel, attrs = case
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape).astype(np.float32)
    for kind, many, activation in ((np.int8, (m,), "Relu"), (np.uint8, (), "Sigmoid"), (np.int8, (m,), "")):
        w = weights(rng, (m, shape[1] // attrs.get("group", 1), *kernel), kind)
        scale = np.asarray(rng.random(many) * 0.01, np.float32)
        zero = weights(rng, many, kind) if kind == np.uint8 or m % 2 else None
        b = rng.standard_normal(m).astype(np.float32)
        inputs = [x, w, scale, zero, b]
        plain = {**attrs, "bits": bits}
        want = both("DynamicQuantizeConv", inputs, plain, "evort", "dynamic.convolution")
        z = rng.standard_normal(want.shape).astype(np.float32)
        if activation != "Sigmoid":  # whose exp is not the same on every instruction set
            both(
                "DynamicQuantizeConv", [*inputs, z], {**plain, "activation": activation}, "evort", "dynamic.convolution"
            )
        # What it approximates: half a step of x for each weight.
        real = (w.astype(np.float64) - (0 if zero is None else zero.reshape(-1, *(1,) * (w.ndim - 1)))) * (
            scale.reshape(-1, *(1,) * (w.ndim - 1))
        )
        exact = run_node("Conv", [x.astype(np.float64), real, b.astype(np.float64)], attrs, device="reference")[0]
        ones = run_node("Conv", [np.ones(shape), np.abs(real)], attrs, device="reference")[0]
        step = float(dynamic_range(x, bits)[0])
        assert np.all(np.abs(want - exact) <= 0.501 * step * ones + 1e-4)


FEW = [((1, 1, 64), 24, (16,), {"strides": [16]}), ((1, 13, 4), 40, (3,), {"pads": [1, 1]}),
       ((2, 9, 1, 1), 70, (1, 1), {}), ((1, 5, 3, 4), 8, (2, 3), {"dilations": [1, 2], "pads": [0, 1, 1, 1]}),
       ((3, 8, 1, 2, 2), 16, (1, 2, 2), {"pads": [0, 1, 0, 0, 0, 1]})]  # fmt: skip


@pytest.mark.parametrize("case", FEW, ids=str)
def test_conv_of_few_positions(case, monkeypatch):
    """Channels are the lanes where there are fewer positions than those: where bytes are multiplied; told to, where
    they become int16 first."""
    from evort.ops import qconv

    def packs(c, window, found):
        return core.channels_last() and qconv.last_ints(c, window, found) is not None

    shape, m, kernel, attrs = case
    rng = np.random.default_rng(8)
    x = rng.standard_normal(shape).astype(np.float32)
    for kind, many, activation in ((np.int8, (m,), "Relu"), (np.uint8, (), ""), (np.int8, (), "LeakyRelu")):
        w = weights(rng, (m, shape[1], *kernel), kind)
        zero = np.uint8(128) if kind == np.uint8 else None
        given = [x, w, np.asarray(rng.random(many) * 0.01, np.float32), zero, rng.standard_normal(m).astype(np.float32)]
        all_attrs = {
            **attrs,
            "activation": activation,
            **({"activation_alpha": 0.1} if activation == "LeakyRelu" else {}),
        }
        z = run_node("DynamicQuantizeConv", given, all_attrs, domain="evort", device="reference")[0][..., ::-1]
        for inputs in (given, given[:4], [*given, np.ascontiguousarray(z)]):
            model = node_model("DynamicQuantizeConv", inputs, all_attrs, domain="evort", constants=(1, 2, 3, 4))
            feeds = {"in0": x, **({"in5": inputs[5]} if len(inputs) > 5 else {})}
            want = Session(model, device="reference").run(feeds)["out0"]
            for isa in core.available_isas():
                core.select_isa(isa)
                with monkeypatch.context() as patch:
                    for forced in (False, True):
                        if forced:
                            patch.setattr(qconv, "packs", packs)
                        session = Session(model)
                        np.testing.assert_array_equal(session.run(feeds)["out0"], want)
                    taken = core.channels_last()
                core.select_isa()
                assert drivers_of(session) == ["dynamic.convolution_last" if taken else "dynamic.convolution"]


TRANSPOSED = [
    ((1, 8, 5, 6), 6, (3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 0]}),
    ((2, 12, 7), 8, (4,), {"strides": [3], "group": 4}),
    ((1, 4, 3, 4, 5), 3, (2, 1, 2), {"dilations": [2, 1, 1]}),
]


@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
@pytest.mark.parametrize("bits", [8, 16])
def test_conv_transpose(case, bits):
    shape, m, kernel, attrs = case
    rng = np.random.default_rng(6)
    x, group = rng.standard_normal(shape).astype(np.float32), attrs.get("group", 1)
    for kind, many in ((np.int8, (m,)), (np.uint8, ())):
        w = weights(rng, (shape[1], m // group, *kernel), kind)
        scale = np.asarray(rng.random(many) * 0.01, np.float32)
        zero = weights(rng, many, kind) if kind == np.uint8 else None
        inputs = [x, w, scale, zero, rng.standard_normal(m).astype(np.float32)]
        plain = {**attrs, "bits": bits, "activation": "Relu"}
        want = both("DynamicQuantizeConvTranspose", inputs, plain, "evort", "dynamic.convolution")
        z = rng.standard_normal(want.shape).astype(np.float32)
        both("DynamicQuantizeConvTranspose", [*inputs, z], plain, "evort", "dynamic.convolution")


def gamma(k: int) -> float:
    eps = 2.0**-24
    return (k + 8) * eps / (1 - (k + 8) * eps)


@pytest.mark.parametrize("m", [1, 3, 10])
def test_int16_weights_take_activations_as_they_are(m):
    rng = np.random.default_rng(4)
    k, n = 70, 33
    x, bias = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal(n).astype(np.float32)
    w, scale = rng.integers(-32768, 32768, (k, n)).astype(np.int16), (rng.random(n) * 1e-4).astype(np.float32)
    real = w * scale.astype(np.float64)
    model = node_model("DynamicQuantizeMatMul", [x, w, scale, None, bias], domain=MS, constants=(1, 2, 4))
    session = Session(model)
    got = session.run({"in0": x})["out0"]
    assert drivers_of(session) == ["nbits.product"]
    assert np.all(np.abs(got - (x @ real + bias)) <= gamma(k) * (np.abs(x) @ np.abs(real) + np.abs(bias)))
    image, w = (
        rng.standard_normal((1, 4, 6, 7)).astype(np.float32),
        rng.integers(-999, 999, (6, 2, 3, 3)).astype(np.int16),
    )
    scale = rng.random(6).astype(np.float32)
    real = w * scale.astype(np.float64).reshape(-1, 1, 1, 1)
    model = node_model("DynamicQuantizeConv", [image, w, scale], {"group": 2}, domain="evort", constants=(1, 2))
    session = Session(model)
    got = session.run({"in0": image})["out0"]
    assert drivers_of(session) == ["nbits.convolution"]
    want = run_node("Conv", [image.astype(np.float64), real], {"group": 2}, device="reference")[0]
    sizes = run_node("Conv", [np.abs(image).astype(np.float64), np.abs(real)], {"group": 2}, device="reference")[0]
    assert np.all(np.abs(got - want) <= gamma(18) * sizes)


@pytest.mark.parametrize("change", [
    {"attrs": {"bits": 4}}, {2: np.ones(3, np.float32)}, {3: np.zeros(9, np.int8)}, {3: np.zeros(8, np.uint8)},
    {4: np.ones(7, np.float32)}, {5: np.ones((3, 8), np.float32)}, {1: np.ones((31, 8), np.int8)},
    {1: np.ones((30, 8), np.int16), 3: np.zeros(8, np.int8)}, {"attrs": {"activation": "PRelu"}},
])  # fmt: skip
def test_refuses(change):
    inputs = [np.ones((2, 30), np.float32), np.ones((30, 8), np.int8), np.ones(8, np.float32), None, None, None]
    for i, value in change.items():
        if i != "attrs":
            inputs[i] = value
    with pytest.raises(EvortError, match="DynamicQuantizeMatMul"):
        run_node("DynamicQuantizeMatMul", inputs, change.get("attrs"), domain=MS)
