"""Matrix products: ONNX's cases, and the compiled drivers against float64 over odd shapes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_cases import check_node, node_cases
from support import drivers_of, node_model, run_node

from evort._kernels import core
from evort.errors import EvortError
from evort.session import Session

EPS = 2.0**-24  # half a unit in the last place of 1, float32
OPERATORS = ("Gemm", "MatMul", "Einsum")


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("case", node_cases(*OPERATORS), ids=lambda case: case.name)
def test_onnx_case(case: Any, device: str) -> None:
    check_node(case, device)


def normal(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def check_driver(op: str, inputs: list[np.ndarray | None], attrs: dict[str, Any], terms: int, threads: int) -> None:
    """Results within (terms + 4) roundings of each term (Higham, Accuracy and Stability of Numerical Algorithms, 3.1):
    the sum's, and those of alpha, beta, bias and residual. Relu adds none."""
    wide = [None if x is None else x.astype(np.float64) for x in inputs]
    exact = run_node(op, wide, attrs, device="reference")[0]
    positive = {**attrs, **{key: abs(attrs[key]) for key in ("alpha", "beta") if key in attrs}}
    size = run_node(op, [None if x is None else np.abs(x) for x in wide], positive, device="reference")[0]
    bound = (terms + 4) * EPS * 1.01 * size + 1e-30
    for name in core.available_isas():
        core.select_isa(name)
        got = run_node(op, inputs, attrs, threads=threads)[0]
        assert got.shape == exact.shape
        np.testing.assert_array_less(np.abs(got - exact), bound)
        if op != "Einsum":
            got = run_node(op, inputs, {**attrs, "activation": "Relu"}, threads=threads)[0]
            np.testing.assert_array_less(np.abs(got - np.maximum(exact, 0)), bound)
    core.select_isa()


SIZE = st.one_of(st.integers(1, 20), st.sampled_from([0, 1, 16, 33, 64, 100]))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(SIZE, SIZE, SIZE, st.booleans(), st.booleans(), st.sampled_from(["", "s", "n", "1n", "m1", "mn", "11"]),
       st.booleans(), st.sampled_from([1.0, -0.5]), st.sampled_from([1.0, 0.0, 2.5]), st.integers(1, 2))  # fmt: skip
def test_gemm_matches_float64(m: int, n: int, k: int, left: bool, right: bool, c: str, residual: bool, alpha: float,
                              beta: float, threads: int) -> None:  # fmt: skip
    shape = tuple({"m": m, "n": n, "1": 1}[x] for x in c if x != "s")
    a, b, bias, z = normal((k, m) if left else (m, k), (n, k) if right else (k, n), shape, (m, n))
    inputs = [a, b, bias if c else None, z if residual else None]
    attrs = {"transA": int(left), "transB": int(right), "alpha": alpha, "beta": beta}
    check_driver("Gemm", inputs, attrs, k, threads)


@st.composite
def batched(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of two operands of MatMul."""
    m, n, k = draw(SIZE), draw(SIZE), draw(SIZE)
    rank = draw(st.integers(0, 3))
    full = draw(st.tuples(*[st.integers(1, 3)] * rank))
    shapes = []
    for last in ((m, k), (k, n)):
        skip = draw(st.integers(0, rank))
        shapes.append((*(draw(st.sampled_from([d, 1])) for d in full[skip:]), *last))
    a, b = shapes
    if draw(st.integers(0, 5)) == 0:
        a = a[-1:]
    if draw(st.integers(0, 5)) == 0:
        b = b[-2:-1]
    return a, b


@settings(max_examples=120, deadline=None, derandomize=True)
@given(batched(), st.booleans(), st.booleans(), st.integers(1, 2))
def test_matmul_matches_float64(shapes: Any, bias: bool, residual: bool, threads: int) -> None:
    a, b = shapes
    columns = b[-1] if len(b) > 1 else 1
    y = np.matmul(np.zeros(a), np.zeros(b)).shape
    a, b, extra, z = normal(a, b, (columns,), y)
    check_driver("MatMul", [a, b, extra if bias else None, z if residual else None], {}, a.shape[-1], threads)


EINSUMS = [
    ("ij,jk->ik", (5, 7), (7, 9), True),
    ("ij,kj->ik", (5, 7), (9, 7), True),
    ("ji,jk", (7, 5), (7, 9), True),
    ("ij,jk->ki", (5, 7), (7, 9), True),
    ("bij,bjk->bik", (3, 5, 7), (3, 7, 9), True),
    ("bhid,bhjd->bhij", (2, 3, 5, 7), (2, 3, 6, 7), True),
    ("bihd,bjhd->bhij", (2, 5, 3, 7), (2, 6, 3, 7), True),
    ("bhij,bjhd->bihd", (2, 3, 5, 6), (2, 6, 3, 7), True),
    ("...ij,...jk->...ik", (2, 1, 5, 7), (3, 7, 9), True),
    ("...ij,jk", (2, 3, 5, 7), (7, 9), True),
    ("abc,bcd->ad", (4, 3, 5), (3, 5, 6), True),
    ("abc,cbd->ad", (4, 3, 5), (5, 3, 6), False),
    ("i,i->", (9,), (9,), True),
    ("i,j->ij", (9,), (4,), True),
    ("i,j->ji", (9,), (4,), True),
    ("bi,bi->b", (3, 8), (3, 8), True),
    ("bi,bi->bi", (3, 8), (3, 8), True),
    ("ij,jk->k", (5, 7), (7, 9), False),
    ("ii,ij->j", (5, 5), (5, 7), False),
    ("ij,kl->ijkl", (2, 3), (4, 5), True),
    ("iAj,jA->iA", (2, 3, 4), (4, 3), True),
    ("i...,j...->ij...", (2, 3), (4, 3), False),
    ("ab,bc->ac", (1, 1), (1, 1), True),
    ("ab,bc->ac", (5, 0), (0, 4), True),
]


@pytest.mark.parametrize(("equation", "a", "b", "compiled"), EINSUMS)
def test_einsum_matches_float64(equation: str, a: tuple[int, ...], b: tuple[int, ...], compiled: bool) -> None:
    inputs = normal(a, b)
    terms = math.prod(set(a) | set(b))
    check_driver("Einsum", inputs, {"equation": equation}, terms, 2)
    session = Session(node_model("Einsum", inputs, {"equation": equation}))
    session.run({"in0": inputs[0], "in1": inputs[1]})
    assert drivers_of(session) == ["linear.matmul_f32" if compiled else "numpy"]


@pytest.mark.parametrize("equation", ["i j k -> k j i", "iij->j", "ijk->", "...->...", "ij...", "Za->aZ"])
def test_einsum_of_one_operand(equation: str) -> None:
    x = np.arange(27.0).reshape(3, 3, 3)[..., : len(equation)]
    x = x if len(equation.replace(" ", "").partition("->")[0].replace(".", "")) > 2 or "." in equation else x[0]
    got = run_node("Einsum", [x], {"equation": equation})[0]
    assert np.array_equal(got, np.einsum(equation, x))


def test_einsum_of_three_operands() -> None:
    inputs = [x.astype(np.float64) for x in normal((2, 3), (3, 4), (4, 5))]
    got = run_node("Einsum", inputs, {"equation": "ij,jk,kl->il"})[0]
    np.testing.assert_allclose(got, inputs[0] @ inputs[1] @ inputs[2], rtol=1e-13)


BAD = [
    ("Gemm", [(2, 3), (4, 5)], {}),
    ("Gemm", [(2, 3, 1), (3, 5)], {}),
    ("Gemm", [(2, 3), (3, 5), (3, 5)], {}),
    ("Gemm", [(2, 3), (3, 5), (1, 2, 5)], {}),
    ("Gemm", [(2, 3), (3, 5), (5,), (5,)], {}),
    ("Gemm", [(2, 3), (3, 5)], {"activation": "PRelu"}),
    ("MatMul", [(2, 3), (4, 5)], {}),
    ("MatMul", [(), (4, 5)], {}),
    ("MatMul", [(2, 3, 4), (3, 4, 5)], {}),
    ("MatMul", [(2, 3), (3, 5), (2,)], {}),
    ("MatMul", [(2, 3), (3, 5), (5,), (5,)], {}),
    ("Einsum", [(2, 3), (3, 5)], {"equation": "ij->ij"}),
    ("Einsum", [(2, 3), (4, 5)], {"equation": "ij,jk->ik"}),
    ("Einsum", [(2, 3), (3, 5)], {"equation": "ijk,jk->ik"}),
    ("Einsum", [(2, 3), (3, 5)], {"equation": "ij,jk->il"}),
    ("Einsum", [(2, 3), (3, 5)], {"equation": "ij,jk->ii"}),
    ("Einsum", [(2, 3), (3, 5)], {"equation": "ij,j1->i1"}),
    ("Einsum", [(2, 3), (3, 5)], {"equation": "......,...->..."}),
    ("Einsum", [(2, 3), (3, 5)], {"equation": ""}),
]


@pytest.mark.parametrize(("op", "shapes", "attrs"), BAD)
def test_refuses(op: str, shapes: list[tuple[int, ...]], attrs: dict[str, Any]) -> None:
    with pytest.raises(EvortError, match="node"):
        run_node(op, [np.zeros(shape, np.float32) for shape in shapes], attrs)


def test_refuses_mixed_element_types() -> None:
    a, b = normal((2, 3), (3, 4))
    for op, attrs in (("MatMul", {}), ("Gemm", {}), ("Einsum", {"equation": "ij,jk"})):
        with pytest.raises(EvortError, match="one element type"):
            run_node(op, [a, b.astype(np.float64)], attrs)
