"""Weights that a file holds in 8 bits and that are floats when it is loaded."""

from __future__ import annotations

import numpy as np
import pytest
from support import ROOT, make_model

import evort
import evort_tools
from evort import etm
from evort.errors import EvortError
from evort.graph import Node, Tensor
from evort.ops.nbits import pack
from evort.types import DType
from evort.weights import pending, with_floats
from evort_tools.quantization.stored import stored

RNG = np.random.default_rng(0)
W = RNG.normal(size=(16, 8)).astype(np.float32)


def model():
    """Two products by W, of which the second reads it turned, and one by V, whose weights are too few."""
    nodes = [
        Node("Gemm", ["x", "w"], ["a"], {"transB": 1, "activation": "Relu"}),
        Node("MatMul", ["a", "u"], ["b"]),
        Node("MatMul", ["b", "v"], ["y"]),
    ]
    return make_model(nodes, {"x": (DType.FLOAT, ("N", 8))}, ["y"],
                      {"w": W, "u": W.copy(), "v": np.ones((8, 2), np.float32)})  # fmt: skip


def test_weights_are_stored_in_8_bits_and_become_floats_when_loaded(tmp_path):
    real = model()
    made, changed = stored(real, [("a",), ("b",), ("y",)])
    assert changed == ["a", "b"] and real.graph.tensors["w"].dtype == DType.FLOAT
    assert [n.op for n in made.graph.nodes] == ["DequantizeLinear", "DequantizeLinear", "Gemm", "MatMul", "MatMul"]
    assert made.graph.constant("w").dtype == np.int8 and made.graph.constant("v").dtype == np.float32
    etm.write(made, tmp_path / "m.etm")
    session = evort.load(tmp_path / "m.etm", threads=1)
    assert [n.op for n in session.model.graph.nodes] == ["Gemm", "MatMul", "MatMul"]
    assert session.memory().weights_copied >= 2 * W.nbytes
    x = RNG.normal(size=(3, 8)).astype(np.float32)
    # One scale for each output channel: rows of w, columns of u. Half a step of each weight.
    for name, axis in (("w/float", 1), ("u/float", 0)):
        got = session.model.graph.constant(name)
        assert (np.abs(got - W) <= np.abs(W).max(axis, keepdims=True) / 254 * (1 + 1e-5)).all()
        assert got.ctypes.data % 64 == 0  # as in a file
    whole = evort.session.Session(made).run({"x": x})["y"]  # each run makes the floats anew
    np.testing.assert_array_equal(session.run({"x": x})["y"], whole)


def test_weights_of_branches_become_floats_too():
    """silero-vad is an If whose branches have all layers."""
    made, _ = stored(model(), [("a",), ("b",)])
    inner = made.graph
    inner.inputs, inner.tensors["x"] = [], Tensor("x", DType.FLOAT, (3, 8), RNG.normal(size=(3, 8)).astype(np.float32))
    outer = make_model([Node("If", ["c"], ["z"], {"then_branch": inner, "else_branch": inner})],
                       {"c": (DType.BOOL, ())}, ["z"])  # fmt: skip
    got, nbytes = with_floats(outer)
    assert nbytes == 2 * 2 * W.nbytes
    for left, branch in ((1, "then_branch"), (0, "else_branch")):
        graph = got.graph.nodes[0].attrs[branch]
        assert [n.op for n in graph.taken().nodes] == ["Gemm", "MatMul", "MatMul"] and graph.taken() is graph.taken()
        assert pending(got.graph) == left * 2 * W.nbytes
        assert len(outer.graph.nodes[0].attrs[branch].nodes) == 5  # what was given is as it was
    feeds = {"c": np.array(True)}
    both = [evort.session.Session(m).run(feeds)["z"] for m in (outer, got)]
    np.testing.assert_array_equal(*both)
    session = evort.load(etm.write(outer), threads=1)
    before = session.memory().weights_copied
    assert all(n.op != "DequantizeLinear" for plan in session.plans() for n in [s.call.node for s in plan.steps])
    np.testing.assert_array_equal(session.run(feeds)["z"], both[0])
    assert session.memory().weights_copied == before + 2 * W.nbytes  # of the branch that was taken
    assert not any(s.call.node.op == "DequantizeLinear" for plan in session.plans() for s in plan.steps)


def packed(**attrs):
    """A product by weights of 4 bits in two groups of 16, and what these stand for."""
    q, scales = RNG.integers(0, 16, (16, 32)), RNG.random((16, 2), np.float32)
    zeros = RNG.integers(0, 16, (16, 2))
    node = Node("WidenNBits", ["q", "s", "z"], ["w"], {"block_size": 16, "shape": [16, 32], **attrs}, "evort")
    constants = {"q": pack(q, 4).reshape(16, 2, 8), "s": scales, "z": pack(zeros, 4)}
    made = make_model(
        [node, Node("Gemm", ["x", "w"], ["y"], {"transB": 1})], {"x": (DType.FLOAT, ("N", 32))}, ["y"], constants
    )
    return made, (q - zeros.repeat(16, 1)).astype(np.float32) * scales.repeat(16, 1)


def test_packed_weights_become_floats_where_they_say_so():
    made, wanted = packed(once=1)
    got, nbytes = with_floats(made)
    assert [n.op for n in got.graph.nodes] == ["Gemm"] and nbytes == wanted.nbytes
    np.testing.assert_array_equal(got.graph.constant("w"), wanted)
    session = evort.load(etm.write(made), threads=1)
    assert [n.op for n in session.model.graph.nodes] == ["Gemm"]
    x = RNG.normal(size=(2, 32)).astype(np.float32)
    np.testing.assert_allclose(session.run({"x": x})["y"], x @ wanted.T, rtol=1e-5, atol=1e-5)
    kept, _ = packed()
    assert with_floats(kept)[0] is kept


@pytest.mark.parametrize(
    "attrs", [{"shape": [16, 33]}, {"shape": []}, {"block_size": 15}, {"bits": 5}, {"shape": None}]
)
def test_packed_weights_that_do_not_fit_are_refused(attrs):
    made, _ = packed(once=1, **attrs)
    if made.graph.nodes[0].attrs["shape"] is None:
        del made.graph.nodes[0].attrs["shape"]
    with pytest.raises(EvortError, match="WidenNBits"):
        evort.load(etm.write(made))


def test_what_is_no_stored_weight_stays():
    scale = np.float32(0.5)
    nodes = [
        Node("DequantizeLinear", ["q", "s"], ["a"], {"axis": 1, "block_size": 2}),
        Node("DequantizeLinear", ["x", "s0"], ["b"]),
        Node("DequantizeLinear", ["q", "s0"], ["z"]),
        Node("Add", ["a", "b"], ["y"]),
    ]
    q = np.arange(8, dtype=np.int8).reshape(2, 4)
    constants = {"q": q, "s": np.full((2, 2), scale), "s0": scale}
    given = make_model(nodes, {"x": (DType.INT8, (2, 4))}, ["y", "z"], constants)
    # By blocks, of an input, and one that is an output.
    assert with_floats(given) == (given, 0)


def test_layers_that_are_faster_in_float_have_small_weights_too(tmp_path):
    """By a profile in which integers are slower everywhere."""
    lenet = ROOT / "models" / "lenet.onnx"
    with np.load(ROOT / "models" / "mnist_500.npz") as found:
        digits = (found["images"][:40, None] / np.float32(255)).astype(np.float32)
    real = evort_tools.convert(lenet)
    layers = {
        node.outputs[0]: {"name": node.label(), "operator": node.op,
                          "microseconds": {"float32": 1.0, "int8": 9.0, "int8_beside_float": 9.0}}
        for node in etm.read(real).model.graph.nodes
    }  # fmt: skip
    import json

    profile = tmp_path / "p.json"
    profile.write_text(json.dumps({"evort_latency_profile": 1, "machine": {}, "inputs": {}, "layers": layers}))
    result = evort_tools.quantize(lenet, tmp_path / "m.etm", calib=digits, profile=str(profile), method="minmax")
    assert len(result.stored) == 5 and result.sqnr["logits"] > 35
    assert (tmp_path / "m.etm").stat().st_size < 0.28 * len(real)
    session = evort.load(tmp_path / "m.etm", threads=1)
    assert {n.op for n in session.model.graph.nodes} <= {"Conv", "MaxPool", "Flatten", "Gemm"}
    # A limit that 8 bits do not hold leaves the floats.
    strict = evort_tools.quantize(lenet, calib=digits, profile=str(profile), method="minmax", max_drop="70dB")
    assert not strict.stored and strict.loss["loss"] == 0
