"""The real models, end to end: converted, loaded, run, and equal to what they ship or to onnxruntime."""

from __future__ import annotations

from functools import cache

import cases
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support import SHARED, import_onnxruntime

import evort
import evort_tools

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder with the real models is not there")
ort = import_onnxruntime()

CASES = {case.name: case for case in cases.real_cases() + cases.synthetic_cases()}
# Within this part of the output's range: float32 sums of up to 5,000 products in another order differ by about
# sqrt(5000) * 2^-24 = 4e-6 of their magnitude per layer, over some 50 layers.
TOLERANCE = 1e-4


def without_random(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the output of each RandomUniformLike node as an input, so that both sides see the same noise."""
    kept = []
    for node in model.graph.node:
        if node.op_type == "RandomUniformLike":
            shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
            model.graph.input.append(helper.make_tensor_value_info(node.output[0], 1, shape))
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


@cache
def models(name: str) -> tuple[bytes, bytes]:
    """(the model as evort's bytes, the same for onnxruntime)."""
    case = CASES[name]
    own, peer = case.model(), case.peer_model()
    if name == "halftone_v1":
        own, peer = without_random(own), without_random(peer)
    return evort_tools.convert(own), peer.SerializeToString()


def inputs_of(name: str, shape: str) -> dict[str, np.ndarray]:
    feeds = CASES[name].shapes[shape]()
    if name == "halftone_v1":
        noise = next(v.name for v in evort.load(models(name)[0], threads=1).inputs if v.name not in feeds)
        feeds[noise] = np.random.default_rng(5).random((1, 1, 256, 256), np.float32)
    return feeds


def assert_close(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], slack: float = 0.0) -> None:
    """Equal within TOLERANCE of the output's range, or within `slack` where that is more."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].shape == value.shape and got[name].dtype == value.dtype
        spread = float(value.max() - value.min()) or 1.0
        assert np.abs(got[name] - value).max() <= max(TOLERANCE * spread, slack), name


def rounding_of(name: str, peer: bytes, feeds: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """How much rounding moves the output of a network that amplifies it: twice the difference between onnxruntime
    with and without its own optimisations. Only halftone_v1 does (a softmax of large logits at near ties: against
    float64, onnxruntime's error is 2.9e-4 to 3.4e-4 and evort's 3.1e-4).

    On lut3d_96 it is onnxruntime that rounds: its InstanceNormalization over 345,600 values is off by 7.6e-4 of 45
    against float64, which moves the output by 1.4e-4. The shipped pictures hold evort to more, see below."""
    if name == "lut3d_96":
        return 3e-4
    if name != "halftone_v1":
        return 0.0
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = ort.InferenceSession(peer, options, providers=["CPUExecutionProvider"]).run(None, feeds)
    return 2 * max(float(np.abs(a - b).max()) for a, b in zip(plain, expected.values(), strict=True))


@pytest.mark.parametrize(("name", "shape"), [(c.name, shape) for c in CASES.values() for shape in c.shapes])
@pytest.mark.parametrize("threads", [1, 2])
def test_equals_onnxruntime(tmp_path, name, shape, threads):
    if threads == 2 and shape != next(iter(CASES[name].shapes)):
        pytest.skip("one shape is enough for two threads")
    own, peer = models(name)
    feeds = inputs_of(name, shape)
    session = ort.InferenceSession(peer, providers=["CPUExecutionProvider"])
    expected = dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))
    slack = rounding_of(name, peer, feeds, expected)
    mine = evort.load(own, threads=threads)
    assert_close(mine.run(feeds), expected, slack)
    # Once more, on the arena that the first run left dirty; and by a plan that is kept for the next start.
    got = mine.run(feeds)
    assert_close(got, expected, slack)
    (tmp_path / "m.etm").write_bytes(own)
    evort.load(tmp_path / "m.etm", threads=threads, cache=tmp_path / "plans").run(feeds)
    again = evort.load(tmp_path / "m.etm", threads=threads, cache=tmp_path / "plans")
    for key, value in again.run(feeds).items():
        np.testing.assert_array_equal(value, got[key])
    assert "model" not in vars(again)  # which was not needed


@needs_shared
@pytest.mark.parametrize("name", ["mnist_8", "super_resolution_10"])
def test_shipped_protobufs(name):
    """The model zoo's own inputs and outputs, within 1e-4 relative (of the largest output)."""
    session = evort.load(evort_tools.convert(str(SHARED / "models" / name / "model.onnx")), threads=1)
    folders = sorted((SHARED / "models" / name).glob("test_data_set_*"))
    assert folders
    for folder in folders:
        x = numpy_helper.to_array(onnx.load_tensor(folder / "input_0.pb"))
        y = numpy_helper.to_array(onnx.load_tensor(folder / "output_0.pb"))
        got = session(x)
        assert np.abs(got - y).max() <= 1e-4 * np.abs(y).max()


@needs_shared
@pytest.mark.parametrize("index", [0, 2])
def test_lut3d_gives_the_shipped_cmyk(index):
    """RGB / 255 in, clip(0, 1) * 255 truncated out: at least 99.98 % of the bytes equal, none off by more than 2."""
    from PIL import Image

    folder = SHARED / "models" / "lut3d_96"
    session = evort.load(evort_tools.convert(str(folder / "model.onnx")), threads=2)
    rgb = np.asarray(Image.open(folder / "images" / f"input_{index}.jpg").convert("RGB"), np.float32) / 255
    out = session(np.ascontiguousarray(rgb.transpose(2, 0, 1)[None]))
    got = (np.clip(out[0], 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    with Image.open(folder / "images" / f"output_{index}.tiff") as tiff:
        expected = np.asarray(tiff)
    difference = np.abs(got.astype(int) - expected.astype(int))
    assert difference.max() <= 2
    assert (difference == 0).mean() >= 0.9998


@needs_shared
def test_silero_carries_its_state():
    """Ten frames of a voice-like signal, the state of each call fed to the next: equal to onnxruntime throughout."""
    path = SHARED / "models" / "silero_vad" / "silero_vad_op18_ifless.onnx"
    mine = evort.load(evort_tools.convert(str(path)), threads=1)
    peer = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rate in (16000, 8000):
        states = [np.zeros((2, 1, 128), np.float32)] * 2
        rng = np.random.default_rng(rate)
        for frame in range(10):
            feeds = {"input": (rng.standard_normal((1, rate * 36 // 1000)) * 0.1 * frame).astype(np.float32),
                     "sr": np.array(rate, np.int64)}  # fmt: skip
            got = mine.run({**feeds, "state": states[0]})
            expected = dict(zip(("output", "stateN"), peer.run(None, {**feeds, "state": states[1]}), strict=True))
            assert_close(got, expected)
            states = [got["stateN"], expected["stateN"]]
