"""Golden data and bounds: from the converter through the file to `evort check` and the session."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import evort
import evort_tools
from evort import etm
from evort.errors import ConversionError, InputError, MemoryBudgetError
from evort.session import Session
from evort_tools import cli
from evort_tools.golden import errors

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def relu_model(op: str = "Relu", **attrs: object) -> onnx.ModelProto:
    """y = op(x) of [n, 4], and k = x > 0."""
    nodes = [helper.make_node(op, ["x"], ["y"], **attrs), helper.make_node("Greater", ["x", "zero"], ["k"])]
    zero = onnx.numpy_helper.from_array(np.zeros((), np.float32), "zero")
    values = [helper.make_tensor_value_info(n, t, ["n", 4]) for n, t in (("y", 1), ("k", TensorProto.BOOL))]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, ["n", 4])], values, [zero])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def test_golden_outputs_are_those_of_the_reference(tmp_path, capsys):
    np.savez(tmp_path / "in.npz", x=X)
    onnx.save(relu_model(), tmp_path / "m.onnx")
    path = tmp_path / "m.etm"
    argv = ["convert", tmp_path / "m.onnx", "-o", path, "--golden", tmp_path / "in.npz", "--tolerance", "0.001"]
    assert cli.main([str(a) for a in argv]) == 0
    golden = etm.read(path).model.golden
    assert golden.tolerance == 0.001
    np.testing.assert_array_equal(golden.inputs["x"], X)
    np.testing.assert_array_equal(golden.outputs["y"], np.maximum(X, 0))
    np.testing.assert_array_equal(golden.outputs["k"], X > 0)
    assert path.read_bytes() == evort_tools.convert(tmp_path / "m.onnx", golden={"x": X}, tolerance=0.001)
    capsys.readouterr()
    assert cli.main(["check", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(r["threads"], r["output"], r["error"]) for r in told["outputs"]] == [
        (1, "y", 0.0), (1, "k", 0.0), (2, "y", 0.0), (2, "k", 0.0),
    ]  # fmt: skip


def test_check_finds_a_wrong_result(tmp_path, capsys):
    """A file whose expected output is not what the model gives: as where a kernel were wrong."""
    model = etm.read(evort_tools.convert(relu_model(), golden={"x": X})).model
    wrong = np.array(model.golden.outputs["y"])
    wrong[0, 0] += 2e-4 * wrong.max()
    model.golden.outputs["y"] = wrong
    etm.write(model, tmp_path / "m.etm")
    assert cli.main(["check", str(tmp_path / "m.etm"), "--threads", "1"]) == 1
    out = capsys.readouterr().out
    assert "y, " in out and "WRONG" in out and "k, " in out and "right" in out


def test_check_without_golden_data_says_so(tmp_path, capsys):
    evort_tools.convert(relu_model(), tmp_path / "m.etm")
    assert cli.main(["check", str(tmp_path / "m.etm")]) == 0
    assert "no golden data" in capsys.readouterr().out


def test_outputs_known_from_elsewhere_are_held_to():
    data = evort_tools.convert(relu_model(), golden={"x": X, "y": np.maximum(X, 0) * np.float32(1 + 5e-5)})
    assert etm.read(data).model.golden.outputs["y"].max() > X.max()
    with pytest.raises(ConversionError, match=r"output 'y' is wrong by .*: the expected output is not this model's"):
        evort_tools.convert(relu_model(), golden={"x": X, "y": X})
    with pytest.raises(ConversionError, match="output 'k' is wrong by inf"):
        evort_tools.convert(relu_model(), golden={"x": X, "k": (X > 0).astype(np.uint8)})


@pytest.mark.parametrize(
    ("golden", "tolerance", "message"),
    [
        ({}, 1e-4, "input 'x' is missing"),
        ({"x": X, "w": X}, 1e-4, "unknown input 'w'"),
        ({"x": X.astype(np.float64)}, 1e-4, "float64"),
        ({"x": X}, -1.0, "a tolerance is finite and not negative"),
    ],
)
def test_what_golden_data_must_be(golden, tolerance, message):
    with pytest.raises(InputError, match=message):
        evort_tools.convert(relu_model(), golden=golden, tolerance=tolerance)


def test_random_results_are_not_golden():
    with pytest.raises(ConversionError, match="draws random numbers without a seed"):
        evort_tools.convert(relu_model("RandomUniformLike"), golden={"x": X})
    seeded = evort_tools.convert(relu_model("RandomUniformLike", seed=3.0), golden={"x": X})
    assert etm.read(seeded).model.golden.outputs["y"].min() >= 0


def test_errors_of_floats():
    """In parts of the largest finite magnitude; NaN and infinities must meet their like."""
    model = etm.read(evort_tools.convert(relu_model(), golden={"x": X})).model
    session = Session(model, threads=1)
    want = np.array([[0, -4, np.nan, np.inf]], np.float32)
    model.golden.outputs = {"y": want, "k": np.zeros((1, 4), bool)}

    def error(y: np.ndarray) -> float:
        return errors(session, model.golden, {"y": y, "k": np.zeros((1, 4), bool)})["y"]

    assert error(want) == 0
    assert error(want + np.float32([1, 0, 0, 0])) == 0.25
    for other in (np.abs(np.nan_to_num(want)), -want, want.astype(np.float64), want[0]):
        assert error(other) == np.inf


def test_bounds_are_kept_and_held_to(tmp_path, capsys):
    onnx.save(relu_model(), tmp_path / "m.onnx")
    path = tmp_path / "m.etm"
    assert cli.main(["convert", str(tmp_path / "m.onnx"), "-o", str(path), "--bounds", "n=2..8"]) == 0
    session = evort.load(path)
    assert session.model.bounds == {"n": (2, 8)}
    for n in (2, 8):
        assert session(x=np.ones((n, 4), np.float32))[0].shape == (n, 4)
    for n in (0, 1, 9):
        with pytest.raises(InputError, match=f"the size 'n' of the inputs is {n}; the model takes 2 to 8"):
            session(x=np.ones((n, 4), np.float32))
    # A budget is held against the largest shape at load: 8 rows of four floats, and their truth values.
    with pytest.raises(MemoryBudgetError):
        evort.load(path, max_memory=1)
    assert len(evort.load(path, max_memory=1 << 20).plans()) == 1
    assert cli.main(["inspect", str(path), "--shape", "x=2,4"]) == 0
    assert "n: 2 to 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"m": (1, 2)}, "no size 'm' to bound; the symbolic sizes of the inputs: n"),
        ({"n": (3, 2)}, "3 to 2 are no bounds"),
    ],
)
def test_bounds_must_make_sense(bounds, message):
    with pytest.raises(ConversionError, match=message):
        evort_tools.convert(relu_model(), bounds=bounds)


@pytest.mark.parametrize("text", ["n=1", "n=1..", "=1..2", "n=-1..2", "1..2"])
def test_bounds_are_written_in_one_way(text, capsys):
    assert cli.main(["convert", "m.onnx", "--bounds", text]) == 2
    assert "is not of the form NAME=1..8" in capsys.readouterr().err
