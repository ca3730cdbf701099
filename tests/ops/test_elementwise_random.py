"""Random operators: with a seed they draw what NumPy's legacy generator draws, without one they follow the law."""

import numpy as np
import pytest
from onnx_cases import check_node, node_cases
from support import make_model, node_model, run_node

from evort.errors import ExecutionError, ShapeError
from evort.session import Session
from evort.types import DType

# ONNX's cases of Bernoulli hold one draw of another generator.
CASES = node_cases("Dropout")
X = np.zeros((3, 4), np.float32)


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_onnx_cases(case, device):
    check_node(case, device)


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_seeds_fix_what_is_drawn(device):
    def draw():
        return np.random.RandomState(7)

    attrs = {"seed": 7.0}
    (y,) = run_node("RandomUniformLike", [X], {**attrs, "low": -1.0, "high": 3.0}, device=device)
    np.testing.assert_array_equal(y, (draw().random_sample((3, 4)) * 4 - 1).astype(np.float32), strict=True)
    (y,) = run_node("RandomNormalLike", [X], {**attrs, "mean": 2.0, "dtype": int(DType.DOUBLE)}, device=device)
    np.testing.assert_array_equal(y, draw().standard_normal((3, 4)) + 2, strict=True)
    (y,) = run_node("RandomUniform", [], {**attrs, "shape": [2, 5], "dtype": int(DType.FLOAT16)}, device=device)
    np.testing.assert_array_equal(y, draw().random_sample((2, 5)).astype(np.float16), strict=True)
    (y,) = run_node("RandomNormal", [], {**attrs, "shape": [], "scale": 3.0}, device=device)
    np.testing.assert_array_equal(y, np.float32(draw().standard_normal() * 3))
    p = np.linspace(0, 1, 50)
    (y,) = run_node("Bernoulli", [p], {**attrs, "dtype": int(DType.BOOL)}, device=device)
    np.testing.assert_array_equal(y, draw().binomial(1, p).astype(bool), strict=True)
    data = np.arange(1, 41, dtype=np.float32)
    out, mask = run_node("Dropout", [data, np.float32(0.25), np.array(True)], {"seed": 7}, outputs=2, device=device)
    np.testing.assert_array_equal(mask, draw().uniform(0, 1, 40) >= 0.25, strict=True)
    np.testing.assert_allclose(out, data * mask / 0.75, rtol=2.0**-22)


def test_without_a_seed_each_run_draws_anew():
    for op, inputs, attrs in (
        ("RandomUniformLike", [X], {}),
        ("RandomNormal", [], {"shape": [3, 4]}),
        ("Multinomial", [np.zeros((8, 50), np.float32)], {"sample_size": 9}),
    ):
        session = Session(node_model(op, inputs, attrs))
        feeds = {f"in{i}": x for i, x in enumerate(inputs)}
        assert not np.array_equal(session.run(feeds)["out0"], session.run(feeds)["out0"])


def test_constants_do_not_fix_a_draw():
    session = Session(node_model("RandomUniformLike", [X], constants=(0,)))
    assert not np.array_equal(session.run({})["out0"], session.run({})["out0"])


def test_laws():
    n = 200_000
    # Means of n draws are within 5 standard errors of the law's, which a fixed seed makes certain.
    uniform = run_node("RandomUniform", [], {"shape": [n], "low": 2.0, "high": 4.0, "seed": 1.0})[0].astype(float)
    assert uniform.min() >= 2 and uniform.max() <= 4
    assert abs(uniform.mean() - 3) < 5 * (2 / np.sqrt(12)) / np.sqrt(n)
    normal = run_node("RandomNormal", [], {"shape": [n], "mean": -1.0, "scale": 2.0, "seed": 1.0})[0].astype(float)
    assert abs(normal.mean() + 1) < 5 * 2 / np.sqrt(n)
    assert abs(normal.std() - 2) < 5 * 2 / np.sqrt(2 * n)
    share = np.array([[0.1, 0.2, 0.0, 0.7], [0.25, 0.25, 0.25, 0.25]])
    with np.errstate(divide="ignore"):
        logs = np.log(share) + np.array([[3], [-1000]])
    (drawn,) = run_node("Multinomial", [logs], {"sample_size": n, "dtype": int(DType.INT64), "seed": 1.0})
    assert drawn.dtype == np.int64 and drawn.shape == (2, n)
    for row, p in zip(drawn, share, strict=True):
        found = np.bincount(row, minlength=4) / n
        assert np.all(np.abs(found - p) <= 5 * np.sqrt(p * (1 - p) / n))


def test_dropout_in_inference_is_a_view():
    data = np.arange(6, dtype=np.float32)
    model = node_model("Dropout", [data, np.float32(0.5), np.array(False)], constants=(1, 2))
    session = Session(model)
    np.testing.assert_array_equal(session.run({"in0": data})["out0"], data)
    assert all(not plan.steps for plan in session.plans())
    out, mask = run_node("Dropout", [data], outputs=2)
    np.testing.assert_array_equal(out, data)
    assert mask.dtype == bool and mask.all()


def test_random_outputs_are_not_merged_or_folded():
    from evort.graph import Node

    nodes = [
        Node("RandomUniformLike", ["x"], ["a"]),
        Node("RandomUniformLike", ["x"], ["b"]),
        Node("Sub", ["a", "b"], ["y"]),
    ]
    session = Session(make_model(nodes, {"x": (DType.FLOAT, (4, 5))}, ["y"]))
    assert np.any(session.run({"x": np.zeros((4, 5), np.float32)})["y"])


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "error", "message"),
    [
        ("RandomNormal", [], {"shape": [2, -1]}, ShapeError, "negative"),
        ("RandomNormal", [], {"shape": [2], "dtype": 7}, ShapeError, "int64"),
        ("RandomUniform", [], {}, ShapeError, "missing"),
        ("RandomUniformLike", [X.astype(np.int32)], {}, ShapeError, "int32"),
        ("Bernoulli", [X + 2], {}, ExecutionError, "outside"),
        ("Bernoulli", [X * np.nan], {}, ExecutionError, "outside"),
        ("Multinomial", [X[0]], {}, ShapeError, "batch"),
        ("Multinomial", [X[:, :0]], {}, ShapeError, "class"),
        ("Multinomial", [X], {"sample_size": -1}, ShapeError, "sample_size"),
        ("Multinomial", [X], {"dtype": 1}, ShapeError, "float"),
        ("Dropout", [X, np.float32(1.5), np.array(True)], {}, ExecutionError, "ratio"),
        ("Dropout", [X, np.ones(2, np.float32)], {}, ShapeError, "scalars"),
    ],
)
def test_what_is_refused(op, inputs, attrs, error, message):
    with pytest.raises(error, match=message):
        run_node(op, inputs, attrs)
