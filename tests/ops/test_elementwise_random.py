"""Random operators: what a seed fixes, and the laws."""

import subprocess
import sys

import numpy as np
import pytest
from onnx_cases import check_node, node_cases
from support import ROOT, compiled, make_model, node_model, run_node

from evort.errors import ExecutionError, ShapeError
from evort.ops.lowp import widen
from evort.session import Session
from evort.types import DType

# ONNX's cases of Bernoulli hold one draw of another generator.
CASES = node_cases("Dropout")
X = np.zeros((3, 4), np.float32)


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_onnx_cases(case, device):
    check_node(case, device)


def test_the_generator_is_philox():
    """The known answer of Random123 for key and counter 0; seeds that are close have different keys."""
    (y,) = run_node("RandomUniform", [], {"shape": [4], "seed": 0.0})
    words = np.array([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8], np.uint32)
    np.testing.assert_array_equal(y, ((words >> 8) / 2**24).astype(np.float32), strict=True)
    draws = [run_node("RandomUniform", [], {"shape": [4], "seed": seed})[0] for seed in (0.0, 0.25, 1.0, -1.0, 1e30)]
    assert len({y.tobytes() for y in draws}) == len(draws)


P = np.linspace(0, 1, 1003).astype(np.float32).reshape(17, 59)
LAWS = [
    ("RandomUniform", [], {"shape": [3, 5, 7], "low": -1.0, "high": 3.0}, 0),
    ("RandomUniform", [], {"shape": []}, 0),
    ("RandomUniform", [], {"shape": [3, 0]}, 0),
    ("RandomUniformLike", [P], {"high": 1e-3}, 0),
    ("RandomNormal", [], {"shape": [70_001], "scale": 3.0}, 1),
    ("RandomNormalLike", [P.astype(np.int64)], {"dtype": 1, "mean": -2.0}, 1),
    *(("Bernoulli", [P], {"dtype": int(d)}, 0)
      for d in (DType.FLOAT, DType.DOUBLE, DType.INT32, DType.INT64, DType.BOOL, DType.INT8, DType.UINT8)),
]  # fmt: skip


@pytest.mark.parametrize(("op", "inputs", "attrs", "ulps"), LAWS)
def test_a_seed_fixes_what_is_drawn(op, inputs, attrs, ulps):
    """On every instruction set and number of threads, and as in NumPy: normal numbers to the last place, where the C
    library's functions may round otherwise than NumPy's."""
    (want,) = run_node(op, inputs, {**attrs, "seed": 7.5}, device="reference")
    results = compiled("random.draw", op, inputs, {**attrs, "seed": 7.5}, threads=(1, 2, 3))
    for (got,) in results:
        np.testing.assert_array_equal(got, results[0][0], strict=True)
    got = results[0][0]
    assert got.dtype == want.dtype and got.shape == want.shape
    if ulps:
        np.testing.assert_array_max_ulp(got, want, ulps)
    else:
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", [DType.DOUBLE, DType.FLOAT16, DType.BFLOAT16])
def test_other_element_types(dtype):
    """They have no driver: the same generator in NumPy; float64 numbers have 53 bits."""
    (y,) = run_node("RandomUniform", [], {"shape": [1000], "dtype": int(dtype), "seed": 3.0})
    (single,) = run_node("RandomUniform", [], {"shape": [1000], "seed": 3.0})
    if dtype == DType.DOUBLE:
        assert np.any(y * 2**52 % 2**20 != 0) and y.min() >= 0 and y.max() < 1
    elif dtype == DType.FLOAT16:
        np.testing.assert_array_equal(y, single.astype(np.float16), strict=True)
    else:
        np.testing.assert_allclose(widen(y, dtype), single, rtol=2.0**-8)


def test_dropout_draws_as_the_reference_of_onnx():
    data = np.arange(1, 41, dtype=np.float32)
    out, mask = run_node("Dropout", [data, np.float32(0.25), np.array(True)], {"seed": 7}, outputs=2)
    np.testing.assert_array_equal(mask, np.random.RandomState(7).uniform(0, 1, 40) >= 0.25, strict=True)
    np.testing.assert_allclose(out, data * mask / 0.75, rtol=2.0**-22)


def test_without_a_seed_each_run_draws_anew():
    for op, inputs, attrs in (
        ("RandomUniformLike", [X], {}),
        ("RandomNormal", [], {"shape": [3, 4]}),
        ("Bernoulli", [np.full((8, 50), 0.5, np.float32)], {}),
        ("Multinomial", [np.zeros((8, 50), np.float32)], {"sample_size": 9}),
    ):
        session = Session(node_model(op, inputs, attrs))
        feeds = {f"in{i}": x for i, x in enumerate(inputs)}
        assert not np.array_equal(session.run(feeds)["out0"], session.run(feeds)["out0"])


def test_a_forked_process_draws_otherwise():
    """Both have the same number of draws behind them."""
    script = """
import os, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from evort.session import Session
from support import node_model
session = Session(node_model("RandomUniform", [], {"shape": [4]}), threads=1)
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, session.run({})["out0"].tobytes())
    os._exit(0)
print(os.read(read, 16) != session.run({})["out0"].tobytes())
"""
    command = [sys.executable, "-P", "-c", script, str(ROOT / "tests")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"


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
    p = np.full(n, 0.3, np.float32)
    tossed = run_node("Bernoulli", [p], {"seed": 1.0})[0].astype(float)
    assert abs(tossed.mean() - 0.3) < 5 * np.sqrt(0.21 / n)
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
