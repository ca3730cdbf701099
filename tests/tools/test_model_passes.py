"""Passes on the real models: results stay what they are, with all passes and without each; and how far they get."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from support import SHARED

from evort.graph import Model
from evort.session import Session
from evort_tools.convert import Options, convert_model
from evort_tools.passes import ORDER, node_count

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder with the real models is not there")

RNG = np.random.default_rng(0)


def image(*shape: int) -> np.ndarray:
    return RNG.random(shape).astype(np.float32)


# Model: (its path, what is fed, shapes given, most nodes after the passes). Small sizes keep this quick.
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "mnist_8": ("mnist_8/model.onnx", {"Input3": image(1, 1, 28, 28)}, {}, 6),
    "super_resolution_10": ("super_resolution_10/model.onnx", {"input": image(1, 1, 224, 224)}, {}, 7),
    "lut3d_96": ("lut3d_96/model.onnx", {"input0": image(1, 3, 32, 48)}, {"input0": (1, 3, 32, 48)}, 90),
    "lut3d_96 symbolic": ("lut3d_96/model.onnx", {"input0": image(1, 3, 32, 48)}, {"input0": (1, 3, "H", "W")}, 100),
    "magika": ("magika/magika.onnx", {"bytes": RNG.integers(0, 257, (2, 2048)).astype(np.int32)}, {}, 45),
    "silero_vad": ("silero_vad/silero_vad_op18_ifless.onnx",
                   {"input": image(2, 576) - 0.5, "sr": np.array(16000), "state": image(2, 2, 128)}, {}, 80),
    "ppocr_cls": ("ppocr/ppocr_cls.onnx", {"x": image(1, 3, 48, 96)}, {}, 80),
    "ppocr_det": ("ppocr/ppocr_det.onnx", {"x": image(1, 3, 64, 96)}, {}, 125),
    "ppocr_rec": ("ppocr/ppocr_rec.onnx", {"x": image(1, 3, 48, 96)}, {}, 120),
}  # fmt: skip

# Sums in another order, over some 50 layers (the bound that tests/models derives); the passes themselves keep to less.
TOLERANCE = 1e-4


@cache
def source(name: str) -> onnx.ModelProto:
    path = MODELS[name][0]
    return onnx.load(SHARED / "models" / path)


def results(model: Model, feeds: dict[str, Any]) -> dict[str, np.ndarray]:
    return Session(model, threads=2).run(feeds)


@cache
def plain(name: str) -> dict[str, np.ndarray]:
    _, feeds, shapes, _ = MODELS[name]
    return results(convert_model(source(name), Options(input_shapes=shapes, optimize=False)), feeds)


def check(name: str, disable: tuple[str, ...]) -> Model:
    _, feeds, shapes, _ = MODELS[name]
    model = convert_model(source(name), Options(input_shapes=shapes, disable=disable))
    found = results(model, feeds)
    for key, want in plain(name).items():
        got = found[key]
        assert got.shape == want.shape and got.dtype == want.dtype
        spread = float(want.max() - want.min()) or 1.0
        assert np.abs(got - want).max() <= TOLERANCE * spread, key
    return model


@pytest.mark.parametrize("name", MODELS)
def test_all_passes(name):
    model = check(name, ())
    assert node_count(model.graph) <= MODELS[name][3]


@pytest.mark.parametrize("left_out", ORDER)
def test_each_pass_may_be_left_out(left_out):
    for name in ("mnist_8", "lut3d_96 symbolic", "magika", "silero_vad"):
        check(name, (left_out,))


@pytest.mark.parametrize("left_out", ["activations", "normalizations", "scales", "shape_arithmetic"])
def test_transformers_without_the_passes_that_others_build_on(left_out):
    check("ppocr_rec", (left_out,))


@pytest.mark.parametrize("only", ORDER)
def test_each_pass_alone(only):
    check("silero_vad", tuple(p for p in ORDER if p not in (only, "dead_code")))
