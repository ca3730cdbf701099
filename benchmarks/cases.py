"""The models that benchmarks and memory tests run, each with real or seeded inputs in one or several shapes.

`real_cases()` lists `models/lenet.onnx` and every model of the shared folder (`EVORT_SHARED`, by default
`../shared`); `synthetic_cases()` those of `models.py`. A case whose file is absent is left out, which is no error.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

import models

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("EVORT_SHARED", ROOT.parent / "shared"))
Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A model and its inputs by the name of their shape.

    `peer_note` says what was changed for engines that lack an operator of the model (see `peer_model`); `deterministic`
    is false where the network draws random numbers, so that only its speed and memory can be compared.
    """

    name: str
    source: Path | Callable[[], onnx.ModelProto]
    shapes: dict[str, Callable[[], Inputs]]
    deterministic: bool = True
    peer_note: str = ""
    rewrite: Callable[[onnx.ModelProto], onnx.ModelProto] | None = field(default=None, repr=False)

    def model(self) -> onnx.ModelProto:
        """The model as evort converts it."""
        return onnx.load(self.source) if isinstance(self.source, Path) else self.source()

    def peer_model(self) -> onnx.ModelProto:
        """The model for the other engines: weights taken off the list of inputs, where old exporters put them and
        where they keep onnxruntime from folding constants, and custom operators written in standard ones."""
        model = self.rewrite(self.model()) if self.rewrite else self.model()
        weights = {init.name for init in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in weights]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = max(model.ir_version, 4)  # from which on weights need not be inputs
        return model


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def uniform(name: str, *shape: int, low: float = 0, high: float = 1) -> Callable[[], Inputs]:
    """Seeded uniform float32 input."""
    return lambda: {name: seeded().uniform(low, high, shape).astype(np.float32)}


def protobuf(name: str, path: Path) -> Callable[[], Inputs]:
    """An input that the model zoo ships as a serialized TensorProto."""
    return lambda: {name: numpy_helper.to_array(onnx.load_tensor(path))}


def jpeg(name: str, path: Path) -> Callable[[], Inputs]:
    """An RGB image as float32 [1,3,H,W] in 0..1."""

    def load() -> Inputs:
        from PIL import Image

        pixels = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
        return {name: np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])}

    return load


def digits(count: int) -> Callable[[], Inputs]:
    """The first `count` test digits that ship beside LeNet."""

    def load() -> Inputs:
        with np.load(ROOT / "models" / "mnist_500.npz") as data:
            return {"image": data["images"][:count, None].astype(np.float32) / 255}

    return load


def speech(rate: int) -> Callable[[], Inputs]:
    """One 32 ms frame with its 4 ms of context for silero: a hummed 150 Hz tone with harmonics; the state is zero."""

    def load() -> Inputs:
        t = np.arange(rate * 36 // 1000) / rate
        wave = sum(np.sin(2 * np.pi * 150 * k * t) / k for k in range(1, 8)) * 0.1
        return {
            "input": wave[None].astype(np.float32),
            "sr": np.array(rate, np.int64),
            "state": np.zeros((2, 1, 128), np.float32),
        }

    return load


def file_bytes(batch: int) -> Callable[[], Inputs]:
    """Beginning and end of this source file as magika reads them: 1,024 bytes of each."""

    def load() -> Inputs:
        raw = Path(__file__).read_bytes().strip()
        row = np.frombuffer(raw[:1024] + raw[-1024:], np.uint8).astype(np.int32)
        return {"bytes": np.tile(row, (batch, 1))}

    return load


def lut_as_grid_sample(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace every `cus_ops::tri_forward` by 5-D GridSample of opset 20, so that stock engines run the model.

    The operator blends the eight corners around `v / binsize` in LUT[C,D,D,D], where r, g, b index the last, middle and
    first axis. GridSample with aligned corners reads position `(x + 1) / 2 * (D - 1)`, x first, hence the grid
    `2 * v / (binsize * (D - 1)) - 1` with the channel axis moved last; border padding clamps. Holds for batch size 1.
    The other operators of the model mean the same in opset 20 as in its opset 14.
    """
    values = {init.name: numpy_helper.to_array(init) for init in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    nodes = []
    for i, node in enumerate(model.graph.node):
        if node.op_type != "tri_forward":
            nodes.append(node)
            continue
        lut, image, binsize = node.input[0], node.input[1], float(values[node.input[5]].reshape(()))
        size = values[lut].shape[-1]
        names = {k: f"tri{i}_{k}" for k in ("batched", "last", "scaled", "grid", "deep", "wide")}
        consts = {
            "zero": np.array([0], np.int64),
            "one": np.array([1], np.int64),
            "two": np.array([2], np.int64),
            "scale": np.float32(2 / (binsize * (size - 1))),
            "unit": np.float32(1),
        }
        for key, value in consts.items():
            names[key] = f"tri{i}_{key}"
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), names[key]))
        steps = [
            ("Unsqueeze", [lut, names["zero"]], names["batched"], {}),
            ("Transpose", [image], names["last"], {"perm": [0, 2, 3, 1]}),
            ("Mul", [names["last"], names["scale"]], names["scaled"], {}),
            ("Sub", [names["scaled"], names["unit"]], names["grid"], {}),
            ("Unsqueeze", [names["grid"], names["one"]], names["deep"], {}),
            (
                "GridSample",
                [names["batched"], names["deep"]],
                names["wide"],
                {"mode": "linear", "padding_mode": "border", "align_corners": 1},
            ),
            ("Squeeze", [names["wide"], names["two"]], node.output[0], {}),
        ]
        nodes += [helper.make_node(kind, ins, [out], f"{out}_{kind}", **attrs) for kind, ins, out, attrs in steps]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 20))
    model.ir_version = max(model.ir_version, 9)
    return model


def real_cases() -> list[Case]:
    """LeNet and the shared models that are there."""
    zoo = SHARED / "models"
    ocr = zoo / "ppocr"
    cases = [
        Case("lenet", ROOT / "models" / "lenet.onnx", {"1x1x28x28": digits(1), "32x1x28x28": digits(32)}),
        Case(
            "mnist_8",
            zoo / "mnist_8" / "model.onnx",
            {"1x1x28x28": protobuf("Input3", zoo / "mnist_8" / "test_data_set_0" / "input_0.pb")},
        ),
        Case(
            "super_resolution_10",
            zoo / "super_resolution_10" / "model.onnx",
            {"1x1x224x224": protobuf("input", zoo / "super_resolution_10" / "test_data_set_0" / "input_0.pb")},
        ),
        Case(
            "halftone_v1",
            zoo / "halftone_v1" / "model.onnx",
            {"1x1x256x256": uniform("input", 1, 1, 256, 256)},
            deterministic=False,
        ),
        Case(
            "lut3d_96",
            zoo / "lut3d_96" / "model.onnx",
            {"1x3x480x720": jpeg("input0", zoo / "lut3d_96" / "images" / "input_0.jpg")},
            peer_note="tri_forward as GridSample 5-D (opset 20)",
            rewrite=lut_as_grid_sample,
        ),
        Case(
            "ppocr_det",
            ocr / "ppocr_det.onnx",
            {"1x3x480x480": uniform("x", 1, 3, 480, 480, low=-1), "1x3x320x640": uniform("x", 1, 3, 320, 640, low=-1)},
        ),
        Case(
            "ppocr_rec",
            ocr / "ppocr_rec.onnx",
            {"1x3x48x320": uniform("x", 1, 3, 48, 320, low=-1), "2x3x48x160": uniform("x", 2, 3, 48, 160, low=-1)},
        ),
        Case("ppocr_cls", ocr / "ppocr_cls.onnx", {"1x3x48x192": uniform("x", 1, 3, 48, 192, low=-1)}),
        Case(
            "silero_vad",
            zoo / "silero_vad" / "silero_vad_op18_ifless.onnx",
            {"16kHz": speech(16000), "8kHz": speech(8000)},
        ),
        Case("magika", zoo / "magika" / "magika.onnx", {"1x2048": file_bytes(1), "8x2048": file_bytes(8)}),
    ]
    return [case for case in cases if isinstance(case.source, Path) and case.source.is_file()]


def synthetic_cases() -> list[Case]:
    """The networks of `models.py`, named `syn_...` so that they do not collide with the shipped LeNet."""

    def shape(net: models.Synthetic) -> dict[str, Callable[[], Inputs]]:
        first = next(iter(net.example(seeded()).values()))
        return {"x".join(map(str, first.shape)): lambda: net.example(seeded())}

    return [Case(f"syn_{name}", net.build, shape(net)) for name, net in models.MODELS.items()]
