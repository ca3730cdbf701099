"""Removing channels: the smaller model gives what the large one does without those channels' part in what reads
them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from random_graphs import RandomGraph
from support import SHARED, make_model

from evort.graph import Model, Node
from evort.session import Session
from evort.types import DType
from evort_tools.convert import convert_model
from evort_tools.prune import prune
from evort_tools.pruning.channels import Channels, Space
from evort_tools.pruning.patterns import Pattern
from evort_tools.pruning.surgery import least, remove, saliency, separated
from evort_tools.quantization.qdq import copy_model

RNG = np.random.default_rng(0)


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def without(model: Model, analysis: Channels, gone: set[int]) -> Model:
    """The model with zeros where removed channels are read: in weights, along the axis that they are summed over."""
    made = {(name, axis) for _, name, axis in analysis._made}
    copied = copy_model(model)
    for space in analysis.groups():
        for channel in space.channels:
            for (name, axis), indices in space.places[channel].items() if channel in gone else ():
                tensor = copied.graph.tensors[name]
                if tensor.data.ndim >= 2 and (name, axis) not in made:
                    data = tensor.data.copy()
                    np.moveaxis(data, axis, 0)[indices] = 0
                    tensor.data = data
    return copied


def least_channels(model: Model, share: float, text: str) -> tuple[Channels, list[Space], set[int]]:
    """The analysis, and which channels have the least magnitude."""
    analysis = Channels(model)
    spaces = analysis.groups()
    floats = {n: np.square(t.data) for n, t in model.graph.tensors.items() if t.data is not None}
    return analysis, spaces, {c for s in spaces for c in least(s, saliency(s, floats), Pattern.parse(text), share)}


def check(
    model: Model, feeds: dict[str, np.ndarray], share: float = 0.5, text: str = "channels"
) -> tuple[Model, Channels]:
    """Removes the channels of least magnitude, and compares. Returns the smaller model."""
    analysis, spaces, gone = least_channels(model, share, text)
    assert gone
    small = remove(model, analysis, spaces, gone)
    expected = Session(without(model, analysis, gone)).run(feeds)
    got = Session(small).run(feeds)
    for name, value in expected.items():
        assert got[name].shape == value.shape
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-4 * np.abs(value).max())
    return small, analysis


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    return {n: t.data.shape for n, t in model.graph.tensors.items() if t.data is not None}


X = {"x": (DType.FLOAT, (1, 3, 12, 12))}
FEED = {"x": RNG.standard_normal((1, 3, 12, 12)).astype(np.float32)}
PAD = {"pads": [1, 1, 1, 1]}


def conv(x: str, w: str, y: str, b: str = "", z: str = "", **attrs: Any) -> Node:
    inputs = [x, w, b, z]
    while not inputs[-1]:
        inputs.pop()
    return Node("Conv", inputs, [y], {**PAD, **attrs})


HEAD = [Node("GlobalAveragePool", ["t"], ["p"]), Node("Flatten", ["p"], ["f"]), Node("Gemm", ["f", "wf", "bf"], ["y"])]
HEAD_CONSTANTS = {"wf": weight(8, 5), "bf": weight(5)}


def test_residual_ties_branch_and_trunk() -> None:
    """Both ways of an addition: an Add, and the Z operand of a convolution."""
    constants = {**HEAD_CONSTANTS, "w0": weight(8, 3, 3, 3), "b0": weight(8), "w1": weight(6, 8, 3, 3),
                 "w2": weight(8, 6, 3, 3), "w3": weight(8, 8, 3, 3), "b3": weight(8)}  # fmt: skip
    nodes = [
        conv("x", "w0", "a", "b0", activation="Relu"), conv("a", "w1", "b", activation="Relu"), conv("b", "w2", "c"),
        Node("Add", ["a", "c"], ["d"]), Node("Relu", ["d"], ["e"]), conv("e", "w3", "t", "b3", "e", activation="Relu"),
        *HEAD,
    ]  # fmt: skip
    small, analysis = check(make_model(nodes, X, ["y"], constants), FEED)
    found = shapes(small)
    assert found["w0"] == (4, 3, 3, 3) and found["w1"] == (3, 4, 3, 3) and found["w2"] == (4, 3, 3, 3)
    assert found["w3"] == (4, 4, 3, 3) and found["wf"] == (4, 5) and found["bf"] == (5,)
    assert sorted(s.makers for s in analysis.groups() if s.channels) == [("w0", "w2", "w3"), ("w1",)]


def test_concat_lines_up() -> None:
    constants = {**HEAD_CONSTANTS, "w0": weight(6, 3, 3, 3), "w1": weight(4, 3, 3, 3), "w2": weight(8, 10, 3, 3),
                 "s": weight(10), "o": weight(10), "m": weight(10), "v": np.square(weight(10)) + 1}  # fmt: skip
    nodes = [
        conv("x", "w0", "a"), conv("x", "w1", "b"), Node("Concat", ["a", "b"], ["c"], {"axis": 1}),
        Node("BatchNormalization", ["c", "s", "o", "m", "v"], ["n"]), conv("n", "w2", "t"), *HEAD,
    ]  # fmt: skip
    small, _ = check(make_model(nodes, X, ["y"], constants), FEED)
    found = shapes(small)
    assert found["w0"] == (3, 3, 3, 3) and found["w1"] == (2, 3, 3, 3) and found["w2"] == (4, 5, 3, 3)
    assert found["s"] == found["v"] == (5,)


def test_depthwise_grouped_and_scaled() -> None:
    """A depthwise convolution follows its input, grouped ones lose the same of every group, a gate its trunk."""
    constants = {
        **HEAD_CONSTANTS, "w0": weight(12, 3, 1, 1), "wd": weight(12, 1, 3, 3), "bd": weight(12),
        "wg": weight(16, 3, 3, 3), "g1": weight(4, 16), "g2": weight(16, 4), "w3": weight(8, 16, 1, 1), "scale":
        weight(16, 1, 1),
    }  # fmt: skip
    nodes = [
        Node("Conv", ["x", "w0"], ["a"], {}), conv("a", "wd", "b", "bd", group=12), conv("b", "wg", "c", group=4),
        Node("Mul", ["c", "scale"], ["d"]), Node("ReduceMean", ["d", "hw"], ["m"], {"keepdims": 0}),
        Node("Gemm", ["m", "g1"], ["q"], {"transB": 1}), Node("Relu", ["q"], ["r"]),
        Node("Gemm", ["r", "g2"], ["g"], {"transB": 1}), Node("Sigmoid", ["g"], ["h"]), Node("Unsqueeze", ["h", "hw"],
        ["i"]), Node("Mul", ["d", "i"], ["j"]), Node("Conv", ["j", "w3"], ["t"], {}), *HEAD,
    ]  # fmt: skip
    model = make_model(nodes, X, ["y"], {**constants, "hw": np.array([2, 3])})
    analysis = Channels(model)
    found = {s.makers: (len(s.channels), s.count) for s in analysis.groups()}
    assert found[("w0", "wd")] == (3, 3)  # the convolution of 4 groups ties every third channel
    small, _ = check(model, FEED)
    sizes = shapes(small)
    assert sizes["w0"][0] == sizes["wd"][0] == 4 * sizes["wg"][1] < 12
    assert next(n for n in small.graph.nodes if n.inputs[1] == "wd").attrs["group"] == sizes["wd"][0]
    assert sizes["scale"][0] == sizes["g1"][1] == sizes["g2"][0] == sizes["w3"][1] < 16


@pytest.mark.parametrize("shape", [[1, 8 * 36], [1, -1], [-1, 8 * 36]])
def test_reshape_into_gemm(shape: list[int]) -> None:
    constants = {"w0": weight(8, 3, 3, 3), "wf": weight(4, 8 * 36), "s": np.array(shape), "wl": weight(4, 3)}
    nodes = [
        conv("x", "w0", "a", strides=[2, 2]), Node("Reshape", ["a", "s"], ["f"]),
        Node("Gemm", ["f", "wf"], ["g"], {"transB": 1}), Node("MatMul", ["g", "wl"], ["y"]),
    ]  # fmt: skip
    small, _ = check(make_model(nodes, X, ["y"], constants), FEED)
    assert shapes(small)["wf"] == (2, 4 * 36) and shapes(small)["wl"] == (2, 3)


def test_what_is_needed_as_it_is_stays() -> None:
    """Outputs, operators that are not known, constants that two nodes read."""
    constants = {"w0": weight(8, 3, 3, 3), "w1": weight(8, 8, 3, 3), "w2": weight(8, 8, 3, 3), "b": weight(8)}
    nodes = [
        conv("x", "w0", "a", "b"), conv("a", "w1", "y", "b"), conv("a", "w2", "c"),
        Node("DepthToSpace", ["c"], ["z"], {"blocksize": 2}),
    ]  # fmt: skip
    assert not any(s.channels for s in Channels(make_model(nodes, X, ["y", "z"], constants)).groups())


def test_shared_constants_are_cut_apart() -> None:
    """A bias and a scale that two layers share keep those elements that each of them needs."""
    constants = {**HEAD_CONSTANTS, "w0": weight(8, 3, 3, 3), "w1": weight(8, 8, 3, 3), "b": weight(8)}
    constants["k"] = weight(8, 1, 1)
    nodes = [
        conv("x", "w0", "a", "b"), Node("Mul", ["a", "k"], ["c"]), conv("c", "w1", "d", "b"),
        Node("Mul", ["d", "k"], ["t"]), *HEAD,
    ]  # fmt: skip
    model = make_model(nodes, X, ["y"], constants)
    assert not any(s.channels for s in Channels(model).groups() if "wf" not in s.makers)
    small, _ = check(separated(model), FEED)
    assert [small.graph.tensors[n.inputs[1]].data.shape for n in small.graph.nodes if n.op == "Mul"] == [(4, 1, 1)] * 2


def test_groups_go_together() -> None:
    constants = {**HEAD_CONSTANTS, "w0": weight(32, 3, 3, 3), "w1": weight(8, 32, 3, 3)}
    model = make_model([conv("x", "w0", "a"), conv("a", "w1", "t"), *HEAD], X, ["y"], constants)
    small, _ = check(model, FEED, 0.5, "groups:8")
    kept = [i for i in range(32) if any(np.array_equal(constants["w0"][i], w) for w in small.graph.tensors["w0"].data)]
    assert len(kept) == 16 and all(i // 8 * 8 in kept for i in kept)
    assert shapes(small)["w1"] == (8 - 8 // 2 // 8 * 8, 16, 3, 3)


@pytest.mark.parametrize("text", ["channels", "groups:2"])
def test_random_graphs(text: str) -> None:
    """Matrix products along rows of images, pools over what is channels elsewhere, and the like."""
    checked = 0
    for seed in range(300):
        graph = RandomGraph(seed)
        if not graph.outputs:
            continue
        model = convert_model(graph.model)
        if least_channels(model, 0.5, text)[2]:
            check(model, graph.input(), text=text)
            checked += 1
    assert checked > 5


def test_one_channel_stays() -> None:
    constants = {**HEAD_CONSTANTS, "w0": weight(4, 3, 3, 3), "w1": weight(8, 4, 3, 3)}
    model = make_model([conv("x", "w0", "a"), conv("a", "w1", "t"), *HEAD], X, ["y"], constants)
    small, _ = check(model, FEED, 0.99)
    assert shapes(small)["w0"][0] == 1 and shapes(small)["wf"][0] == 1


REAL = [
    ("ppocr/ppocr_cls.onnx", (1, 3, 48, 192)),
    ("ppocr/ppocr_det.onnx", (1, 3, 64, 64)),
    ("ppocr/ppocr_rec.onnx", (1, 3, 48, 96)),
    ("super_resolution_10/model.onnx", (1, 1, 224, 224)),
    ("mnist_8/model.onnx", (1, 1, 28, 28)),
]


@pytest.mark.parametrize(("path", "shape"), REAL)
def test_real_models(path: str, shape: tuple[int, ...]) -> None:
    if not (SHARED / "models" / path).is_file():
        pytest.skip("the real models are not there")
    model = convert_model(SHARED / "models" / path)
    name = model.graph.inputs[0]
    check(model, {name: RNG.random(shape, np.float32)}, 0.25)


def test_lenet_by_the_command_line(tmp_path: Any) -> None:
    from support import ROOT

    result = prune(ROOT / "models" / "lenet.onnx", tmp_path / "l.etm", pattern="channels", sparsity=0.5)
    found = {row["tensor"]: row["shape"] for row in result.layers}
    assert found["conv1.weight"] == [3, 1, 5, 5]
    assert found["fc1.weight"] == [60, 200] and found["fc3.weight"] == [10, 42]
    assert result.sizes["file"] < 0.4 * result.sizes["dense"]
