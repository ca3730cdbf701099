"""A model whose layers part and meet, and made-up times of its layers, for tests of what stays in float."""

from __future__ import annotations

import numpy as np
from onnx import helper
from tools_support import onnx_model

from evort_tools.quantization.latency import BESIDE, Profile

node = helper.make_node


def weights(*shape, seed=0):
    rng = np.random.default_rng(seed + int(np.prod(shape)))
    return (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def branches():
    """Ways that part and meet: a pool read by integers and floats, an Add, a Concat, a gate, moves, an average."""
    nodes = [
        node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1], name="first"),
        node("Relu", ["a"], ["ra"]),
        node("MaxPool", ["ra"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "w2"], ["b"], pads=[1, 1, 1, 1], name="left"),
        node("Conv", ["p", "w2b"], ["c"], pads=[1, 1, 1, 1], name="right"),
        node("Softmax", ["p"], ["soft"], axis=1),
        node("Concat", ["b", "c"], ["bc"], axis=1),
        node("Conv", ["bc", "w3"], ["d"], name="joined"),
        node("Sigmoid", ["d"], ["gate"]),
        node("Mul", ["p", "gate"], ["gated"]),
        node("Add", ["gated", "p"], ["sum"]),
        node("Conv", ["sum", "w4"], ["e"], name="late"),
        node("Transpose", ["e"], ["t"], perm=[0, 2, 3, 1]),
        node("MatMul", ["t", "w6"], ["m"], name="product"),
        node("ReduceMean", ["m", "axes"], ["g"], keepdims=0),
        node("Gemm", ["g", "w5", "b5"], ["h"], transB=1, name="last"),
        node("Softmax", ["h"], ["y"]),
    ]
    constants = {
        "w1": weights(8, 3, 3, 3), "w2": weights(8, 8, 3, 3), "w2b": weights(8, 8, 3, 3, seed=1) * 3,
        "w3": weights(8, 16, 1, 1), "w4": weights(6, 8, 1, 1), "w5": weights(5, 16), "b5": weights(5, 1).reshape(5),
        "w6": weights(6, 16), "axes": np.array([1, 2]),
    }  # fmt: skip
    return onnx_model(nodes, {"x": (np.float32, ("N", 3, 8, 8))}, ["y", "soft"], constants)


def made_up(model, selection, seed, sides=1.0):
    """A profile with random times."""
    rng = np.random.default_rng(seed)
    times = {}
    for n in model.graph.nodes:
        times[n.outputs[0]] = {"float32": round(float(rng.uniform(1, 10)), 3)}
    for n in selection.nodes:
        whole = float(rng.uniform(1, 10))
        times[n.outputs[0]] |= {"int8": round(whole, 3), BESIDE: round(whole + sides * float(rng.uniform(0, 4)), 3)}
    nodes = {n.outputs[0]: (n.label(), n.op) for n in model.graph.nodes}
    return Profile(times, nodes, {"isa": "made up", "threads": 1}, {"x": [1, 3, 8, 8]})
