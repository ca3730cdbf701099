"""The same results in a smaller arena."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from tools_support import onnx_model

import evort_tools
from evort.graph import Model
from evort.session import Session
from evort_tools.convert import convert_model
from evort_tools.quantization.memory import smaller

node = helper.make_node


def model(pool: str, moved: bool, biased: bool) -> Model:
    """y = pool(gelu(conv(Transpose(x) or x) + shift)), as text classifiers have it."""
    rng = np.random.default_rng(0)
    constants = {
        "W": rng.normal(0, 0.1, (256, 32, 3)),
        "b": rng.normal(0, 0.1, 256),
        "s": rng.normal(1, 1, (1, 256, 1)),
    }
    nodes = [node("Transpose", ["x"], ["t"], perm=[0, 2, 1])] if moved else []
    nodes += [
        node("Conv", ["t" if moved else "x", "W", *["b"] * biased], ["c"]), node("Mul", ["c", "s"], ["d"]),
        node("HardSwish", ["d"], ["e"]), node(pool, ["e"], ["y"]),
    ]  # fmt: skip
    constants = {name: value.astype(np.float32) for name, value in constants.items() if name != "b" or biased}
    shape = (1, 130, 32) if moved else (1, 32, 130)
    return convert_model(onnx_model(nodes, {"x": (np.float32, shape)}, ["y"], constants))


@pytest.mark.parametrize("pool", ["GlobalMaxPool", "GlobalAveragePool"])
@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_results_are_the_same(pool, moved, biased):
    real = model(pool, moved, biased)
    made = evort_tools.quantize(real, scheme="dynamic", prefer="size").model
    shape = (1, 130, 32) if moved else (1, 32, 130)
    feeds = {"x": np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)}
    small = smaller(real, made, feeds)
    kinds = [n.op for n in small.graph.nodes]
    assert kinds.count(pool) == 4 and kinds[-1] == "Concat"
    assert ("DynamicQuantizeLinear" in kinds) == moved and "DynamicQuantizeConv" in [n.op for n in made.graph.nodes]
    before, after = (Session(m, threads=1) for m in (made, small))
    # Sums are the same integers; an activation in another driver may round its last bit differently.
    np.testing.assert_allclose(after.run(feeds)["y"], before.run(feeds)["y"], rtol=3e-7, atol=1e-7)
    assert after.memory().arena < 0.6 * before.memory().arena
    names = {name for n in small.graph.nodes for name in n.inputs}
    assert all(name in names for name, t in small.graph.tensors.items() if t.data is not None)  # nothing is kept twice


def test_what_others_read_stays_whole():
    real = model("GlobalMaxPool", False, True)
    real.graph.outputs.append("e")
    made = evort_tools.quantize(real, scheme="dynamic", prefer="size").model
    assert smaller(real, made, {"x": np.zeros((1, 32, 130), np.float32)}) is made
