"""Matrix products of integers: ONNX's cases, Microsoft's operators against onnxruntime, and the compiled driver against
the reference, bit for bit, over every side that may be float32, 8 or 16 bits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_cases import check_node, node_cases
from support import drivers_of, import_onnxruntime, node_model, run_node

from evort._kernels import core
from evort.errors import EvortError
from evort.session import Session


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("case", node_cases("MatMulInteger QLinearMatMul"), ids=lambda case: case.name)
def test_onnx_case(case: Any, device: str) -> None:
    check_node(case, device)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 70), st.sampled_from([(), (2,), (2, 3)]),
       st.sampled_from([np.uint8, np.int8]), st.sampled_from([np.uint8, np.int8]), st.sampled_from("snd"),
       st.sampled_from("snd"))  # fmt: skip
def test_integer_products_are_exact(m: int, n: int, k: int, batch: tuple[int, ...], a_type: Any, b_type: Any,
                                    a_zero_shape: str, b_zero_shape: str) -> None:  # fmt: skip
    rng = np.random.default_rng(0)

    def whole(dtype: Any, *shape: int) -> np.ndarray:
        return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, shape).astype(dtype)

    a, b = whole(a_type, *batch, m, k), whole(b_type, *batch, k, n)
    a_zero = whole(a_type, *{"s": (), "n": (m,), "d": (*batch, m, 1)}[a_zero_shape])
    b_zero = whole(b_type, *{"s": (), "n": (n,), "d": (*batch, 1, n)}[b_zero_shape])
    exact = np.matmul(a.astype(int) - (a_zero[:, None] if a_zero_shape == "n" else a_zero), b.astype(int) - b_zero)
    for name in core.available_isas():
        core.select_isa(name)
        got = run_node("MatMulInteger", [a, b, a_zero, b_zero], {}, threads=2)[0]
        assert got.dtype == np.int32
        assert np.array_equal(got, exact)
    core.select_isa()

    scales = [rng.uniform(0.001, 0.02, zero.shape).astype(np.float32) for zero in (a_zero, b_zero)]
    y_zero = whole(a_type)
    y_scale = np.float32(0.7)
    got = run_node("QLinearMatMul", [a, scales[0], a_zero, b, scales[1], b_zero, y_scale, y_zero], {})[0]
    a_scale = scales[0][:, None] if a_zero_shape == "n" else scales[0]
    real = exact * (a_scale.astype(float) * scales[1] / y_scale) + y_zero
    limits = np.iinfo(a_type)
    # Half of one for rounding; float32 scales and sums move a tie by far less than 1/100.
    assert np.abs(got - np.clip(real, limits.min, limits.max)).max() <= 0.51


def test_integer_sums_wrap_around() -> None:
    a, b = np.full((1, 70000), 255, np.uint8), np.full((70000, 1), 255, np.uint8)
    assert run_node("MatMulInteger", [a, b], {})[0].item() == 255 * 255 * 70000 - 2**32


BYTES = (np.uint8, np.int8)
LENGTH = st.one_of(st.integers(1, 9), st.sampled_from([16, 33, 70]))


def whole(rng: np.random.Generator, dtype: Any, *shape: int) -> np.ndarray:
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def both(op: str, inputs: list[np.ndarray | None], attrs: dict[str, Any], domain: str = "") -> np.ndarray:
    """The reference's result, after making sure that the driver gives the same bits on every instruction set and
    with one and two threads."""
    want = run_node(op, inputs, attrs, domain=domain, device="reference")[0]
    model = node_model(op, inputs, attrs, domain=domain)
    feeds = {f"in{i}": x for i, x in enumerate(inputs) if x is not None}
    for name in core.available_isas():
        core.select_isa(name)
        for threads in (1, 2):
            session = Session(model, threads=threads)
            got = session.run(feeds)["out0"]
            assert drivers_of(session) == ["qlinear.product"]
            assert got.dtype == want.dtype
            np.testing.assert_array_equal(got, want)
    core.select_isa()
    return want


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.data())
def test_qlinear_matmul_gives_the_references_bits(data: st.DataObject) -> None:
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    m, n, k = draw(LENGTH), draw(LENGTH), draw(LENGTH)
    lead_a, lead_b = draw(st.sampled_from([((), ()), ((3,), ()), ((3,), (3,)), ((2, 1), (2, 3)), ((), (2,))]))
    a_type = draw(st.sampled_from([*BYTES, np.int16]))
    b_type = draw(st.sampled_from(BYTES))
    trans = draw(st.booleans())
    a, b = whole(rng, a_type, *lead_a, m, k), whole(rng, b_type, *lead_b, *((n, k) if trans else (k, n)))
    a_zero, a_scale = whole(rng, a_type), np.float32(0.013)
    each = draw(st.booleans())
    b_zero, b_scale = whole(rng, b_type, *((n,) if each else ())), rng.uniform(0.01, 0.05, (n,) if each else ())
    if draw(st.booleans()):
        a = ((a.astype(np.float32) - a_zero) * a_scale + rng.normal(0, 0.01, a.shape)).astype(np.float32)
    elif draw(st.booleans()) and not each:
        b = ((b.astype(np.float32) - b_zero) * np.float32(b_scale)).astype(np.float32)
    y_type = draw(st.sampled_from([*BYTES, np.int16, None]))
    shape = np.matmul(np.zeros((*lead_a, m, k)), np.zeros((*lead_b, k, n))).shape
    z_type = draw(st.sampled_from([*BYTES, np.int16, np.float32, None]))
    z = [None] * 3
    if z_type is np.float32:
        z[0] = rng.normal(0, 5, shape).astype(np.float32)
    elif z_type:
        z = [whole(rng, z_type, *shape), np.float32(0.07), whole(rng, z_type)]
    inputs = [
        a, a_scale, a_zero, b, b_scale.astype(np.float32) if each else np.float32(b_scale), b_zero,
        None if y_type is None else np.float32(0.4), None if y_type is None else whole(rng, y_type),
        rng.integers(-9999, 9999, n).astype(np.int32) if draw(st.booleans()) else None, *z,
    ]  # fmt: skip
    while inputs[-1] is None:
        inputs.pop()
    activation = draw(st.sampled_from(["", "Relu", "Clip", "LeakyRelu", "HardSwish"]))
    attrs: dict[str, Any] = {"transB": int(trans), "activation": activation}
    if activation == "Clip":
        attrs |= {"activation_alpha": -3.3, "activation_beta": 21.7}
    both("QLinearMatMul", inputs, attrs)


@pytest.mark.parametrize("activation", ["Sigmoid", "Gelu", "Tanh"])
def test_activations_with_exp_differ_by_a_step_at_most(activation: str) -> None:
    rng = np.random.default_rng(0)
    a, b = whole(rng, np.uint8, 40, 30), whole(rng, np.int8, 30, 50)
    inputs = [a, np.float32(0.01), np.uint8(120), b, np.float32(0.01), np.int8(0), np.float32(1 / 128), np.int8(0)]
    want = run_node("QLinearMatMul", inputs, {"activation": activation}, device="reference")[0]
    for name in core.available_isas():
        core.select_isa(name)
        got = run_node("QLinearMatMul", inputs, {"activation": activation})[0]
        assert np.abs(got.astype(int) - want).max() <= 1
    core.select_isa()


@pytest.mark.parametrize("step", [1e-4, 1e-2, 1.0])
def test_gelu_of_bytes_is_the_same_everywhere(step: float) -> None:
    """From next to nothing to far outside of what its polynomial covers (4.4); that is within 4.6e-5 of GELU."""
    rng = np.random.default_rng(1)
    a, b = whole(rng, np.uint8, 50, 3), whole(rng, np.int8, 3, 37)
    unit = np.float32(step * 255 * 128 * 3 / 255)
    inputs = [a, np.float32(step), np.uint8(128), b, np.float32(1), np.int8(0), unit, np.uint8(20)]
    x = (a.astype(int) - 128) @ b.astype(int) * step
    y = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    found = []
    for name in core.available_isas():
        core.select_isa(name)
        found.append(run_node("QLinearMatMul", inputs, {"activation": "Gelu"})[0])
        assert (found[-1] == found[0]).all(), name
    core.select_isa()
    off = np.abs((found[0].astype(int) - 20) * float(unit) - np.clip(y, -20 * unit, 235 * unit))
    # Half a step, the polynomial, and 1.2e-6 of x where that is cut off (what it misses 1 by at 4.4).
    assert (off <= float(unit) / 2 + 4.6e-5 + 2e-6 * np.abs(x)).all()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(LENGTH, LENGTH, LENGTH, st.booleans(), st.booleans(), st.sampled_from(["", "n", "1n", "m1", "mn", "11"]),
       st.booleans(), st.sampled_from(BYTES), st.sampled_from(BYTES))  # fmt: skip
def test_qgemm(m: int, n: int, k: int, left: bool, right: bool, c: str, quantized: bool, a_type: Any,
               b_type: Any) -> None:  # fmt: skip
    rng = np.random.default_rng(m * n * k)
    a, b = whole(rng, a_type, *((k, m) if left else (m, k))), whole(rng, b_type, *((n, k) if right else (k, n)))
    shape = tuple({"m": m, "n": n, "1": 1}[x] for x in c)
    inputs = [
        a, np.float32(0.02), whole(rng, a_type),
        b, rng.uniform(0.01, 0.02, n).astype(np.float32), whole(rng, b_type, n),
        rng.integers(-9999, 9999, shape).astype(np.int32) if c else None,
        np.float32(0.3) if quantized else None, whole(rng, a_type) if quantized else None,
    ]  # fmt: skip
    attrs = {"transA": int(left), "transB": int(right), "alpha": 0.75}
    if c in ("", "n", "1n"):
        both("QGemm", inputs, attrs, "com.microsoft")
    want = run_node("QGemm", inputs, attrs, domain="com.microsoft", device="reference")[0]
    got = run_node("QGemm", inputs, attrs, domain="com.microsoft")[0]
    np.testing.assert_array_equal(got, want)
    total = (a.T if left else a).astype(int) - int(inputs[2])
    total = total @ ((b.T if right else b).astype(int) - inputs[5]) + (0 if inputs[6] is None else inputs[6])
    real = total * 0.75 * float(inputs[1]) * inputs[4]
    if quantized:
        info = np.iinfo(a_type)
        real = np.clip(real / 0.3 + int(inputs[8]), info.min, info.max)
    # Half of one for rounding where there is any; three float32 roundings of the scale, one of the sum, one product.
    np.testing.assert_allclose(got, real, rtol=6 * 2.0**-24, atol=0.5001 if quantized else 0)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(LENGTH, LENGTH, LENGTH, st.booleans(), st.booleans(), st.booleans(), st.sampled_from(["", "Relu", "HardSwish"]))
def test_matmul_integer_to_float(m: int, n: int, k: int, rows: bool, columns: bool, bias: bool, act: str) -> None:
    rng = np.random.default_rng(m * n * k)
    a, b = whole(rng, np.uint8, m, k), whole(rng, np.int8, k, n)
    columns = columns and not rows
    inputs = [
        a, b, rng.uniform(0.01, 0.02, m if rows else 1).astype(np.float32),
        rng.uniform(0.01, 0.02, n if columns else 1).astype(np.float32), whole(rng, np.uint8, m if rows else 1),
        whole(rng, np.int8, n if columns else 1), rng.normal(size=n).astype(np.float32) if bias else None,
    ]  # fmt: skip
    if not bias:
        inputs.pop()
    want = both("MatMulIntegerToFloat", inputs, {"activation": act}, "com.microsoft")
    if not act:
        total = (a.astype(int) - (inputs[4][:, None] if rows else inputs[4])) @ (b.astype(int) - inputs[5])
        real = total * (inputs[2][:, None] if rows else inputs[2]).astype(float) * inputs[3]
        real = real + (inputs[6] if bias else 0)
        np.testing.assert_allclose(want, real, rtol=4 * 2.0**-24, atol=1e-4)


REFUSED = [
    ("one element for each column", {5: np.int8([1, 2])}, {}),
    ("must have the element type of", {2: np.int8(0)}, {}),
    ("come together", {7: None}, {}),
    ("must have shape", {8: np.zeros(3, np.int32)}, {}),
    ("must have shape", {9: np.zeros((3, 3), np.float32)}, {}),
    ("are for Z, which is absent", {10: np.float32(1)}, {}),
    ("z_scale comes with", {9: np.zeros((3, 4), np.uint8)}, {}),
    ("presum must not be negative", {}, {"presum": -1}),
    ("do not meet", {}, {"transB": 1}),
    ("needs an operand of two", {3: np.zeros(5, np.int8), 8: None}, {"transB": 1}),
    ("needs a slope", {}, {"activation": "PRelu"}),
    ("must be a scalar", {6: np.zeros(4, np.float32)}, {}),
]


@pytest.mark.parametrize("message, change, attrs", REFUSED)
def test_refuses(message: str, change: dict[int, Any], attrs: dict[str, Any]) -> None:
    one = np.float32(1)
    inputs = [np.zeros((3, 5), np.uint8), one, np.uint8(0), np.zeros((5, 4), np.int8), one, np.int8(0),
              one, np.uint8(0), np.zeros(4, np.int32), None, None, None]  # fmt: skip
    for i, x in change.items():
        inputs[i] = x
    while inputs[-1] is None:
        inputs.pop()
    with pytest.raises(EvortError, match=message):
        run_node("QLinearMatMul", inputs, attrs)


@pytest.mark.parametrize("op", ["QGemm", "MatMulIntegerToFloat"])
def test_as_onnxruntime(op: str) -> None:
    """Microsoft's operators as its runtime computes them; it multiplies scales in another order, so that a result may
    be one step off."""
    onnx = pytest.importorskip("onnx")
    ort = import_onnxruntime()
    rng = np.random.default_rng(0)
    m, n, k = 7, 19, 40
    # 7 bits each, as some of its kernels saturate.
    a, b = rng.integers(0, 128, (m, k)).astype(np.uint8), rng.integers(-64, 64, (k, n)).astype(np.int8)
    scales = np.float32(0.02), rng.uniform(0.01, 0.02, n).astype(np.float32)
    zeros = np.uint8(60), np.zeros(n, np.int8)
    if op == "QGemm":
        bias = rng.integers(-9999, 9999, n).astype(np.int32)
        inputs = [a, scales[0], zeros[0], b, scales[1], zeros[1], bias, np.float32(0.3), np.uint8(100)]
        kind, tolerance = onnx.TensorProto.UINT8, 1
    else:
        inputs = [a, b, *scales, *zeros, rng.normal(size=n).astype(np.float32)]
        kind, tolerance = onnx.TensorProto.FLOAT, 1e-4
    names = [f"in{i}" for i in range(len(inputs))]
    known = [onnx.numpy_helper.from_array(np.asarray(x), name) for x, name in zip(inputs, names, strict=True)][1:]
    node = onnx.helper.make_node(op, names, ["y"], domain="com.microsoft")
    graph = onnx.helper.make_graph(
        [node], "g", [onnx.helper.make_tensor_value_info("in0", onnx.TensorProto.UINT8, [m, k])],
        [onnx.helper.make_tensor_value_info("y", kind, [m, n])], known,
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 13), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    want = ort.InferenceSession(model.SerializeToString()).run(None, {"in0": a})[0]
    got = run_node(op, inputs, {}, domain="com.microsoft")[0]
    assert np.abs(got.astype(float) - want).max() <= tolerance
