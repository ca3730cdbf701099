"""`evort_tools.convert` as a whole: what it reports, what it writes, its options and its command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from tools_support import node, onnx_model

import evort
import evort_tools
from evort.errors import ConversionError
from evort.ops import base
from evort.types import DType, Spec
from evort_tools.cli import main
from evort_tools.convert import Options, convert_model, parse_shape
from evort_tools.passes import ORDER, passes

F = np.float32
ROOT = Path(__file__).resolve().parents[2]


def small_model(**options):
    constants = {"w": np.arange(12, dtype=F).reshape(4, 3), "b": np.ones(3, F)}
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "b"], ["s"]), node("Relu", ["s"], ["y"])]
    return onnx_model(nodes, {"x": (F, ["N", 4])}, constants=constants, **options)


def test_all_problems_are_reported_at_once():
    nodes = [
        node("Teleport", ["x"], ["a"], name="unknown operator"),
        node("Other", ["x"], ["b"], name="unknown domain", domain="elsewhere"),
        node("Relu", ["x"], ["c"], name="unknown attribute", sharpness=3),
        node("Relu", ["x", "x"], ["d"], name="too many inputs"),
        node("BitwiseNot", ["x"], ["e"], name="wrong type"),
        node("Add", ["x", "k"], ["f"], name="wrong shape"),
        node("Concat", ["x", "x"], ["g"], name="missing attribute"),
        node("Conv", ["x", "k"], ["h"], name="wrong kind", group=1.5),
        node("Sum", list("abcdefgh"), ["y"]),
    ]
    model = onnx_model(nodes, {"x": (F, [2, 3])}, constants={"k": np.ones((4, 5), F)}, domains={"elsewhere": 1})
    with pytest.raises(ConversionError) as caught:
        evort_tools.convert(model)
    for name in ("unknown operator", "unknown domain", "unknown attribute", "too many inputs", "wrong type",
                 "wrong shape", "missing attribute", "wrong kind"):  # fmt: skip
        assert sum(f"'{name}'" in p for p in caught.value.problems) == 1, name


def test_problems_in_nested_graphs_are_reported():
    branch = helper.make_graph([node("Teleport", ["x"], ["t"], name="deep")], "b", [],
                               [helper.make_tensor_value_info("t", 1, None)])  # fmt: skip
    other = helper.make_graph([node("Relu", ["x"], ["e"])], "e", [], [helper.make_tensor_value_info("e", 1, None)])
    model = onnx_model([node("If", ["c"], ["y"], then_branch=branch, else_branch=other)],
                       {"c": (np.bool_, []), "x": (F, [2])})  # fmt: skip
    with pytest.raises(ConversionError, match="'deep'"):
        evort_tools.convert(model)


def test_what_a_pass_removes_is_no_problem():
    """A branch that a constant condition rules out is not there to be run."""
    branch = helper.make_graph([node("Teleport", ["x"], ["t"])], "b", [], [helper.make_tensor_value_info("t", 1, None)])
    other = helper.make_graph([node("Relu", ["x"], ["e"])], "e", [], [helper.make_tensor_value_info("e", 1, None)])
    model = onnx_model([node("If", ["c"], ["y"], then_branch=branch, else_branch=other)], {"x": (F, [2])},
                       constants={"c": np.array(False)})  # fmt: skip
    session = evort.load(evort_tools.convert(model))
    np.testing.assert_array_equal(session(np.array([-1, 2], F)), [0, 2])


def test_sizes_that_the_usual_samples_miss_are_no_problem():
    """A size called symbolic that must be 77: it converts, and runs for 77."""
    k = np.ones((77, 2), F)
    model = onnx_model([node("MatMul", ["x", "k"], ["y"])], {"x": (F, ["N", "C"])}, constants={"k": k})
    session = evort.load(evort_tools.convert(model))
    assert session(np.ones((3, 77), F)).shape == (3, 2)


def test_operators_of_ones_own():
    @base.op("TwiceForTest", domain="own.test")
    class Twice(base.Op):
        inputs, outputs = ("x",), ("y",)

        def infer(self, c: base.Call) -> list[Spec]:
            return [c.like(0)]

        def reference(self, c: base.Call, x: np.ndarray) -> np.ndarray:
            return 2 * x

    try:
        nodes = [node("TwiceForTest", ["x"], ["a"], domain="own.test"), node("Relu", ["a"], ["y"])]
        model = onnx_model(nodes, {"x": (F, [2])}, domains={"own.test": 1})
        session = evort.load(evort_tools.convert(model))
        np.testing.assert_array_equal(session(np.array([-1, 2], F)), [0, 4])
    finally:
        del base._REGISTRY["own.test", "TwiceForTest"]


# What is written


def test_same_input_and_options_give_the_same_bytes(tmp_path):
    model = small_model()
    data = evort_tools.convert(model)
    assert data == evort_tools.convert(model.SerializeToString(deterministic=True))
    path = tmp_path / "m.etm"
    assert evort_tools.convert(model, path) is None
    assert path.read_bytes() == data
    assert data != evort_tools.convert(model, optimize=False)


def test_bytes_do_not_depend_on_the_hash_seed():
    """Sets of names must not decide the order of anything."""
    script = "import sys, hashlib, evort_tools as t; print(hashlib.sha256(t.convert(sys.argv[1])).hexdigest())"
    digests = set()
    for seed in ("0", "1"):
        command = [sys.executable, "-P", "-c", script, str(ROOT / "models" / "lenet.onnx")]
        seeded = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(command, capture_output=True, text=True, env=seeded, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1


def test_provenance_is_in_the_metadata():
    plain = convert_model(small_model())
    assert plain.metadata["evort.version"] == evort.__version__
    assert len(plain.metadata["evort.source_sha256"]) == 64
    assert "evort.options" not in plain.metadata
    given = convert_model(small_model(), Options(input_shapes={"x": (2, 4)}, disable=["residuals"],
                                                 metadata={"note": "mine"}))  # fmt: skip
    assert json.loads(given.metadata["evort.options"]) == {"input_shapes": {"x": [2, 4]}, "disable": ["residuals"]}
    assert given.metadata["note"] == "mine"
    assert given.metadata["evort.source_sha256"] == plain.metadata["evort.source_sha256"]


def test_outputs_are_annotated():
    model = small_model()
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, ["rows", "columns"]))
    found = convert_model(model).graph.tensors["y"]
    assert found.dtype == DType.FLOAT and found.shape == ("N", 3)


def test_what_inference_cannot_tell_keeps_its_declared_name():
    model = onnx_model([node("NonZero", ["x"], ["y"])], {"x": (F, ["N"])})
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 7, [1, "count"]))
    assert convert_model(model).graph.tensors["y"].shape == (1, "count")


# Options and command


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match=r"unknown option speed; options: .*input_shapes"):
        evort_tools.convert(small_model(), speed=11)


def test_passes_have_names_and_descriptions():
    found = passes()
    assert tuple(found) == ORDER
    for name, (_, what) in found.items():
        assert what.endswith(".") and len(what) < 120, name


def test_shapes_on_the_command_line():
    assert parse_shape("x=1,3,H,W") == ("x", (1, 3, "H", "W"))
    assert parse_shape("a=b=2") == ("a=b", (2,))
    for wrong in ("x", "=1,2", "x=1,-3", "x=1,2.5"):
        with pytest.raises(ValueError):
            parse_shape(wrong)


def test_script_of_a_checkout(tmp_path):
    source = tmp_path / "m.onnx"
    source.write_bytes(small_model().SerializeToString())
    script = [sys.executable, str(ROOT / "tools" / "convert.py"), "m.onnx", "-o", "out.etm"]
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.etm").read_bytes() == evort_tools.convert(small_model())


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").write_bytes(small_model().SerializeToString())
    assert main(["convert", "m.onnx", "--shape", "x=2,4", "-v"]) == 0
    said = capsys.readouterr().out
    assert "m.etm: 1 nodes" in said and "3 nodes became 1" in said
    assert evort.load("m.etm").inputs[0].shape == (2, 4)
    assert main(["convert", "--list-passes"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(ORDER)
    for wrong in (["gone.onnx"], [], ["m.onnx", "--disable", "nothing"], ["m.onnx", "--shape", "x"]):
        assert main(["convert", *wrong]) == 2
        assert capsys.readouterr().err.startswith("evort convert: ")
