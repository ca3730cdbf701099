"""Sparse weights: the compiled drivers against the same nodes with dense weights, over patterns, odd shapes, types.

Integers are equal bit for bit on every instruction set. float32: a sum of k products in any order is off by gamma(k) *
sum |x||w|, gamma(k) = k*eps/(1 - k*eps), eps = 2^-24, and bias, residual and activation (Relu) round twice more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conv_windows import windows
from hypothesis import given, settings
from hypothesis import strategies as st
from qconv_operands import operands, residual
from support import drivers_of, node_model, run_node

from evort import etm
from evort._kernels import core
from evort.errors import ShapeError
from evort.graph import Graph, Model, Node, Tensor
from evort.ops import sparse
from evort.session import Session
from evort.sparse import compress, expand
from evort.types import DType

WORTH = sparse.worth
PATTERNS = [
    ("block", (4, 1)), ("block", (8, 1)), ("block", (16, 1)), ("block", (1, 4)), ("block", (3, 2)), ("n:m", (2, 4)),
    ("n:m", (1, 4)), ("n:m", (3, 5)),
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def skips_always():
    """Also where that is slower."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "worth", lambda *_: True)
        yield


def prune(w: np.ndarray, kind: str, block: tuple[int, int], rng: np.random.Generator, density: float) -> np.ndarray:
    """w [rows, ...] with zeros of a pattern."""
    matrix = w.reshape(w.shape[0], -1)
    a, b = block
    if kind == "block":
        keep = rng.random((-(-matrix.shape[0] // a), -(-matrix.shape[1] // b))) < density
        mask = np.kron(keep, np.ones(block, bool))
    else:
        rank = rng.random((matrix.shape[0], -(-matrix.shape[1] // b), b)).argsort(axis=2)
        mask = ((rank < a) & (rng.random(rank.shape) < density)).reshape(matrix.shape[0], -1)
    return (matrix * mask[: matrix.shape[0], : matrix.shape[1]]).reshape(w.shape).astype(w.dtype)


def sparse_model(model: Model, index: int, kind: str, block: tuple[int, int]) -> Model:
    """The model of one node with input `index` stored without its zeros."""
    t = model.graph.tensors[f"in{index}"]
    data, sparsity = compress(t.data, kind, block)
    model.graph.add(Tensor(t.name, t.dtype, t.shape, data, None, sparsity))
    return model


def run_sparse(op: str, inputs: list[Any], attrs: dict[str, Any], weights: int, pattern: tuple, constants: tuple,
               threads: int = 1, domain: str = "") -> tuple[np.ndarray, str]:  # fmt: skip
    model = sparse_model(node_model(op, inputs, attrs, domain=domain, constants=constants), weights, *pattern)
    session = Session(model, threads=threads)
    feeds = {f"in{i}": v for i, v in enumerate(inputs) if v is not None and i not in constants}
    return session.run(feeds)["out0"], drivers_of(session)[0]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(PATTERNS), st.integers(1, 40), st.integers(1, 60), st.sampled_from([0, 0.02, 0.3, 1]),
       st.integers(0, 9))  # fmt: skip
def test_compressing_loses_nothing(pattern: Any, rows: int, columns: int, density: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = prune(rng.integers(-9, 9, (rows, columns)).astype(np.int8), *pattern, rng, density)
    data, sparsity = compress(w, *pattern)
    np.testing.assert_array_equal(expand(data, sparsity, w.shape), w)
    if pattern[0] == "block":
        assert all(block.any() for block in data)


def test_long_gaps_are_several_indices() -> None:
    w = np.zeros((1, 2000), np.float32)
    w[0, [0, 15, 31, 300, 1999]] = 1
    data, sparsity = compress(w, "block", (1, 1))
    assert sparsity.index_type == DType.UINT8
    np.testing.assert_array_equal(sparsity.indices, [0, 14, 15, 255, 13] + [255] * 6 + [168])
    np.testing.assert_array_equal(expand(data, sparsity, w.shape), w)


def test_compress_refuses_too_many() -> None:
    with pytest.raises(ValueError, match="more than 2 of 4"):
        compress(np.ones((2, 8), np.int8), "n:m", (2, 4))


CONSTANTS = (*range(1, 9), 10, 11)
Z = st.sampled_from(["", "", "f", "u8", "s8"])


@settings(max_examples=120, deadline=None, derandomize=True)
@given(windows(), st.sampled_from(PATTERNS), st.sampled_from(["u8 s8 u8", "s8 s8 s8", "u8 s8 f"]), st.booleans(), Z,
       st.sampled_from([0, 0.25, 0.7, 1]), st.integers(1, 3))  # fmt: skip
def test_integer_convolution_equals_dense(window: Any, pattern: Any, types: str, float_x: bool, z: str, density: float,
                                          threads: int) -> None:  # fmt: skip
    attrs, x, w = window
    inputs = operands(x, w, w[0], 0, types, float_x, zeros="none")
    inputs[3] = prune(inputs[3], *pattern, np.random.default_rng(1), density)
    attrs = {**attrs, "activation": "Relu"}
    inputs = residual(inputs, attrs, z, "QLinearConv", "")
    expected = run_node("QLinearConv", inputs, attrs, device="reference", constants=CONSTANTS)[0]
    for isa in core.available_isas():
        core.select_isa(isa)
        got, driver = run_sparse("QLinearConv", inputs, attrs, 3, pattern, CONSTANTS, threads)
        np.testing.assert_array_equal(got, expected)
        rows = w[0] // attrs["group"]
        whole = rows >= (4 if pattern[1][0] % 4 == 0 else 1) and not (attrs["group"] > 1 and w[1] == 1)
        assert driver == "sparse.convolution_s8" or not whole
    core.select_isa()


@pytest.mark.parametrize(("x", "w", "stride", "pad"), [
    ((2, 5, 19, 33), (9, 5, 3, 3), 1, 1),      # several tiles of 64 in an image, and lanes between its rows
    ((1, 5, 21, 90), (8, 5, 1, 1), 1, 0),      # read from the input, which ends with the last position
    ((1, 3, 23, 7), (8, 3, 3, 1), 1, 3),       # positions too far apart: a panel
    ((1, 150, 5, 6), (8, 150, 3, 3), 1, 1),    # more quads than are looked up at a time
    ((1, 3, 4, 9, 11), (5, 3, 3, 3, 3), 1, 1),
    ((2, 3, 500), (8, 3, 5), 1, 2),
    *(((1, 3, 7, n), (8, 3, 3, 3), 2, 1) for n in (5, 8, 15, 16, 17, 18, 24, 31, 32, 33, 34, 48, 49, 65, 66)),
])  # fmt: skip
@pytest.mark.parametrize("types", ["u8 s8 u8", "s8 s8 s8"])
def test_larger_convolutions_equal_dense(
    x: tuple[int, ...], w: tuple[int, ...], stride: int, pad: int, types: str
) -> None:
    attrs = {"strides": [stride] * len(x[2:]), "pads": [pad] * 2 * len(x[2:]), "activation": "Relu"}
    inputs = operands(x, w, w[0], 0, types, zeros="none")
    inputs[3] = prune(inputs[3], "block", (4, 1), np.random.default_rng(1), 1 if w[1] > 100 else 0.4)
    inputs = residual(inputs, attrs, "u8", "QLinearConv", "")
    expected = run_node("QLinearConv", inputs, attrs, device="reference", constants=CONSTANTS)[0]
    for isa in core.available_isas():
        core.select_isa(isa)
        for threads in (1, 2):
            got, driver = run_sparse("QLinearConv", inputs, attrs, 3, ("block", (4, 1)), CONSTANTS, threads)
            assert driver == "sparse.convolution_s8"
            np.testing.assert_array_equal(got, expected)
    core.select_isa()


@pytest.mark.parametrize("types", ["u8 s8 f", "s8 s8 f"])
@pytest.mark.parametrize("block", [(4, 1), (1, 1)])
def test_extremes_do_not_saturate(types: str, block: tuple[int, int]) -> None:
    """Every product at its largest, 65,532 of them in a sum."""
    for x_end, w_end in ((0, 0), (0, 1), (1, 0), (1, 1)):
        inputs = operands((1, 16383, 2, 3), (5, 16383, 2, 2), 5, 0, types, zeros="none")
        span = [np.iinfo(inputs[i].dtype) for i in (0, 3)]
        inputs[0][:] = (span[0].min, span[0].max)[x_end]
        inputs[3][:] = (span[1].min, span[1].max)[w_end]
        expected = run_node("QLinearConv", inputs, {}, constants=CONSTANTS)[0]
        for isa in core.available_isas():
            core.select_isa(isa)
            got, driver = run_sparse("QLinearConv", inputs, {}, 3, ("block", block), CONSTANTS)
            assert driver == "sparse.convolution_s8"
            np.testing.assert_array_equal(got, expected)
        core.select_isa()


def gamma(k: int) -> float:
    eps = 2.0**-24
    return (k + 4) * eps / (1 - (k + 4) * eps)


def assert_close(got: np.ndarray, expected: np.ndarray, magnitude: np.ndarray, k: int) -> None:
    assert (np.abs(got - expected) <= gamma(k) * magnitude).all()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(windows(), st.sampled_from(PATTERNS), st.booleans(), st.booleans(), st.sampled_from([0, 0.25, 1]),
       st.integers(1, 3))  # fmt: skip
def test_float_convolution(window: Any, pattern: Any, b: bool, z: bool, density: float, threads: int) -> None:
    attrs, x_shape, w_shape = window
    rng = np.random.default_rng(2)
    x = rng.standard_normal(x_shape).astype(np.float32)
    w = prune(rng.standard_normal(w_shape).astype(np.float32), *pattern, rng, density)
    wide, size = (run_node("Conv", [f(x), f(w)], attrs, device="reference")[0]
                  for f in (np.float64, lambda v: np.abs(v).astype(np.float64)))  # fmt: skip
    inputs = [x, w, rng.standard_normal(w_shape[0]).astype(np.float32) if b else None]
    bias = inputs[2].reshape(-1, *(1,) * (x.ndim - 2)) if b else np.float32(0)
    inputs.append(rng.standard_normal(wide.shape).astype(np.float32) if z else None)
    rest = inputs[3] if z else np.float32(0)
    expected, size = np.maximum(wide + bias + rest, 0), size + abs(bias) + abs(rest)
    for isa in core.available_isas():
        core.select_isa(isa)
        got, _ = run_sparse("Conv", inputs, {**attrs, "activation": "Relu"}, 1, pattern, (1, 2), threads)
        assert_close(got, expected, size, w[0].size)
    core.select_isa()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.sampled_from(PATTERNS), st.sampled_from([1, 2, 7, 8, 9, 64, 150]), st.integers(1, 50), st.integers(1, 90),
       st.booleans(), st.sampled_from(["u8 s8 u8", "s8 s8 s8", "u8 s8 f"]), Z, st.booleans(),
       st.integers(1, 3))  # fmt: skip
def test_integer_product_equals_dense(pattern: Any, m: int, n: int, k: int, trans_b: bool, types: str, z: str,
                                      float_a: bool, threads: int) -> None:  # fmt: skip
    # The convolution's operands: x [m, k], w [n, k], a bias.
    inputs = operands((m, k, 1), (n, k, 1), n, 0, types, float_a, zeros="none")
    shape = pattern[1] if trans_b or pattern[0] != "block" else pattern[1][::-1]
    weights = inputs[3].reshape(n, k) if trans_b else np.ascontiguousarray(inputs[3].reshape(n, k).T)
    weights = prune(weights, pattern[0], shape, np.random.default_rng(1), 0.4)
    inputs[0], inputs[3] = inputs[0].reshape(m, k), weights
    attrs = {"transB": int(trans_b), "activation": "Relu"}
    if inputs[6] is None:
        inputs[6:8] = [None, None]
    inputs = residual(inputs, attrs, z, "QLinearMatMul", "")
    expected = run_node("QLinearMatMul", inputs, attrs, device="reference", constants=CONSTANTS)[0]
    for isa in core.available_isas():
        core.select_isa(isa)
        got, driver = run_sparse("QLinearMatMul", inputs, attrs, 3, (pattern[0], shape), CONSTANTS, threads)
        assert driver == "sparse.product_s8"
        np.testing.assert_array_equal(got, expected)
    core.select_isa()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(["Gemm", "MatMul"]), st.sampled_from(PATTERNS), st.sampled_from([1, 3, 8, 64, 130]),
       st.integers(1, 40), st.integers(1, 90), st.booleans(), st.booleans(), st.integers(1, 3))  # fmt: skip
def test_float_product(op: str, pattern: Any, m: int, n: int, k: int, trans_b: bool, z: bool, threads: int) -> None:
    rng = np.random.default_rng(3)
    trans_b = trans_b and op == "Gemm"
    w = prune(rng.standard_normal((n, k) if trans_b else (k, n)).astype(np.float32), *pattern, rng, 0.4)
    a, bias = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal(n).astype(np.float32)
    b = w.T if trans_b else w
    rest = rng.standard_normal((m, n)).astype(np.float32) if z else None
    expected = np.maximum(a.astype(float) @ b + bias + (rest if z else 0), 0)
    size = np.abs(a).astype(float) @ np.abs(b) + np.abs(bias) + (np.abs(rest) if z else 0)
    attrs = {"activation": "Relu", **({"transB": int(trans_b)} if op == "Gemm" else {})}
    for isa in core.available_isas():
        core.select_isa(isa)
        got, driver = run_sparse(op, [a, w, bias, rest], attrs, 1, pattern, (1, 2), threads)
        assert driver == "sparse.product_f32"
        assert_close(got, expected, size, k)
    core.select_isa()


def test_what_reads_zeros_gets_them() -> None:
    """A sparse constant that no driver takes as it is: as a graph output, through a view, in NumPy, as a shape."""
    w = np.zeros((4, 8), np.float32)
    w[1, 2], w[3, 7] = 5, 6
    shape = np.array([[2, 16]], np.int64)
    graph = Graph()
    for name, value in (("w", w), ("s", shape)):
        data, sparsity = compress(value, "block", (1, 1))
        graph.add(Tensor(name, DType.FLOAT if name == "w" else DType.INT64, value.shape, data, None, sparsity))
    graph.add(Tensor("x", DType.FLOAT, (4, 8)))
    graph.add(Tensor("one", DType.INT64, (1,), np.array([-1])))
    graph.inputs, graph.outputs = ["x"], ["y", "r", "t", "w", "c"]
    graph.nodes = [
        Node("Add", ["x", "w"], ["y"]),
        Node("Reshape", ["s", "one"], ["flat"]),
        Node("Reshape", ["w", "flat"], ["r"]),
        Node("Conv", ["r3", "w3"], ["c"]),
        Node("Transpose", ["w"], ["t"]),
    ]
    graph.nodes[3:4] = [Node("MatMul", ["x", "t"], ["c"])]
    graph.nodes[3], graph.nodes[4] = graph.nodes[4], graph.nodes[3]
    x = np.arange(32, dtype=np.float32).reshape(4, 8)
    for device in ("cpu", "reference"):
        got = Session(Model(graph), device=device).run({"x": x})
        np.testing.assert_array_equal(got["y"], x + w)
        np.testing.assert_array_equal(got["r"], w.reshape(2, 16))
        np.testing.assert_array_equal(got["t"], w.T)
        np.testing.assert_array_equal(got["w"], w)
        np.testing.assert_array_equal(got["c"], x @ w.T)


def test_weights_of_4_bits() -> None:
    """int4 weights with int8 activations: the same numbers as int8 ones; dense ones are refused."""
    inputs = operands((1, 8, 9, 9), (8, 8, 3, 3), 8, 0, "u8 s8 u8", zeros="none")
    inputs[3] = prune(inputs[3] >> 4, "block", (4, 1), np.random.default_rng(0), 0.3)
    expected = run_node("QLinearConv", inputs, {}, device="reference", constants=CONSTANTS)[0]
    few = {3: DType.INT4, 5: DType.INT4}
    model = node_model("QLinearConv", inputs, {}, constants=CONSTANTS, dtypes=few)
    with pytest.raises(ShapeError, match="must be a sparse constant"):
        Session(model).run({"in0": inputs[0]})
    session = Session(etm.read(etm.write(sparse_model(model, 3, "block", (4, 1)))).model)
    np.testing.assert_array_equal(session.run({"in0": inputs[0]})["out0"], expected)
    assert drivers_of(session) == ["sparse.convolution_s8"]
    a, b = inputs[0].reshape(8, 81), np.ascontiguousarray(inputs[3].reshape(8, 72)[:, :72])
    given = [np.ascontiguousarray(a[:, :72]), inputs[1], inputs[2], b, inputs[4], inputs[5], inputs[6], inputs[7]]
    expected = run_node("QLinearMatMul", given, {"transB": 1}, device="reference", constants=tuple(range(1, 8)))[0]
    model = node_model("QLinearMatMul", given, {"transB": 1}, constants=tuple(range(1, 8)), dtypes=few)
    with pytest.raises(ShapeError, match="must be a sparse constant"):
        Session(model).run({"in0": given[0]})
    session = Session(sparse_model(model, 3, "block", (4, 1)))
    np.testing.assert_array_equal(session.run({"in0": given[0]})["out0"], expected)
    assert drivers_of(session) == ["sparse.product_s8"]


def test_weights_are_held_once_and_without_zeros() -> None:
    rng = np.random.default_rng(0)
    w = prune(rng.standard_normal((64, 64, 3, 3)).astype(np.float32), "block", (4, 1), rng, 0.25)
    x = np.zeros((1, 64, 8, 8), np.float32)
    model = sparse_model(node_model("Conv", [x, w], {}, constants=(1,)), 1, "block", (4, 1))
    session = Session(model)
    session.run({"in0": x})
    assert session.memory().weights_copied < 0.4 * w.nbytes


def test_what_is_slower_runs_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """2:4 on a CPU, and single rows by weights that are looked up one by one."""
    rng = np.random.default_rng(3)
    monkeypatch.setattr(sparse, "worth", WORTH)
    for rows, pattern, driver in (
        (32, ("block", (4, 1)), "sparse.product_f32"), (32, ("n:m", (2, 4)), "linear.gemm"),
        (1, ("n:m", (1, 4)), "linear.gemm"), (32, ("n:m", (1, 4)), "sparse.product_f32"),
    ):  # fmt: skip
        w = prune(rng.normal(size=(16, 64)), *pattern, rng, 1 if pattern[0] == "n:m" else 0.25).astype(np.float32)
        x = rng.normal(size=(rows, 64)).astype(np.float32)
        got, used = run_sparse("Gemm", [x, w], {"transB": 1}, 1, pattern, (1,))
        assert used.startswith(driver)
        np.testing.assert_allclose(got, x @ w.T, rtol=1e-4, atol=1e-5)
