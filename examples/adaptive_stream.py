"""A quantized model on a stream that drifts, and int8 that follows it.

    pip install '.[examples,plot]'
    python examples/adaptive_stream.py --plot adaptive.png
    python examples/adaptive_stream.py --stream sensor

Two streams: `digits`, seen by a camera whose exposure and noise change (LeNet; `--digits FILE.npz` takes others than
the 500 of models/: arrays `images`, uint8 [N, 28, 28], and `labels`); and `sensor`, vibrations of a machine
whose amplitude grows with wear and load (a 1-D convolution that tells eight tones apart). Each runs in float32, in
static int8, and in int8 with `adaptive=True`; accuracy and time are printed, and can be drawn over time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

import evort
import evort_tools

MODELS = Path(__file__).resolve().parent.parent / "models"
# (model, calibration samples, the frames of the stream, their classes)
Stream = tuple[Any, np.ndarray, np.ndarray, np.ndarray]


def digits(path: Path = MODELS / "mnist_500.npz", frames: int | None = None) -> Stream:
    """Digits as a camera sees them whose exposure goes up by a factor of 12 and back, twice, while the noise of its
    amplifier goes with the exposure."""
    with np.load(path) as file:
        images = file["images"].reshape(-1, 1, 1, 28, 28)[:frames].astype(np.float32) / 255
        labels = file["labels"][:frames]
    rng = np.random.default_rng(0)
    at = (np.arange(len(images)) / len(images)).reshape(-1, 1, 1, 1, 1)
    exposure = 12.0 ** np.sin(2 * np.pi * at) ** 2
    noise = 0.12 * exposure * np.sin(np.pi * at) ** 2
    seen = images * exposure + noise * rng.standard_normal(images.shape)
    return MODELS / "lenet.onnx", images[:200, 0], seen.astype(np.float32), labels


def sensor(frames: int | None = None) -> Stream:
    """Windows of 256 readings of a vibration sensor: one of eight tones in noise, whose amplitude drifts from 1 to 40
    and down to 1/10."""
    tones = 0.05 + 0.012 * np.arange(8)  # periods in a reading
    rng = np.random.default_rng(0)

    def windows(classes: np.ndarray, amplitude: np.ndarray) -> np.ndarray:
        phase = rng.uniform(0, 2 * np.pi, (len(classes), 1))
        clean = np.sin(2 * np.pi * tones[classes][:, None] * np.arange(256) + phase)
        noisy = clean + 0.7 * rng.standard_normal(clean.shape)
        return (noisy * amplitude.reshape(-1, 1)).astype(np.float32).reshape(-1, 1, 256)

    count = frames or 500
    calib = windows(rng.integers(0, 8, 200), np.ones(200))
    classes = rng.integers(0, 8, count)
    at = np.arange(count) / count
    seen = windows(classes, np.where(at < 0.5, 40.0, 0.1) ** np.sin(2 * np.pi * at) ** 2)
    return _tone_model(tones), calib, seen[:, None], classes


def _tone_model(tones: np.ndarray) -> onnx.ModelProto:
    """Filters of 64 readings for each tone, at two phases; the class is the tone whose rectified mean is largest."""
    t = np.arange(64)
    waves = [f(2 * np.pi * tone * t) * np.hanning(64) for tone in tones for f in (np.cos, np.sin)]
    filters = np.array([w - w.mean() for w in waves], np.float32).reshape(16, 1, 64)
    add_up = np.repeat(np.eye(8, dtype=np.float32), 2, axis=1)
    nodes = [
        helper.make_node("Conv", ["x", "filters"], ["tones"], kernel_shape=[64], strides=[4]),
        helper.make_node("Relu", ["tones"], ["rectified"]),
        helper.make_node("GlobalAveragePool", ["rectified"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "add_up"], ["logits"], transB=1),
    ]
    shapes = {"x": [1, 1, 256], "logits": [1, 8]}
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    weights = [onnx.numpy_helper.from_array(w, name) for w, name in ((filters, "filters"), (add_up, "add_up"))]
    graph = helper.make_graph(nodes, "tones", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(stream: Stream) -> dict[str, Any]:
    """Accuracy (%), microseconds a frame, frames by level and changes of a range; what was right and the level at each
    frame."""
    model, calib, seen, labels = stream
    file = evort_tools.quantize(model, calib=calib, adaptive=True, prefer="size").to_bytes()
    sessions = {
        "float32": evort.load(evort_tools.convert(model), threads=1),
        "static int8": evort.load(file, threads=1),
        "adaptive int8": evort.load(file, threads=1, adaptive=True),
    }
    right = {name: np.zeros(len(seen), bool) for name in sessions}
    times = {name: np.zeros(len(seen)) for name in sessions}
    levels = np.zeros(len(seen), int)
    adaptive = sessions["adaptive int8"].default
    for i, frame in enumerate(seen):
        for name, session in sessions.items():
            start = perf_counter()
            logits = session(frame)
            times[name][i] = perf_counter() - start
            right[name][i] = logits.argmax() == labels[i]
        levels[i] = adaptive.level
    return {
        "frames": len(seen),
        "accuracy": {name: 100 * float(r.mean()) for name, r in right.items()},
        "microseconds": {name: 1e6 * float(np.median(t)) for name, t in times.items()},
        "levels": np.bincount(levels, minlength=4).tolist(),
        "changes": adaptive.changes,
        "right": right,
        "level": levels,
    }


def plot(found: dict[str, Any], path: str) -> None:
    """Accuracy over a moving window, and the level of precision, over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    window = max(10, found["frames"] // 20)
    figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(9, 5), height_ratios=(3, 1))
    for name, right in found["right"].items():
        top.plot(np.arange(window - 1, found["frames"]), 100 * np.convolve(right, np.ones(window) / window, "valid"),
                 label=name)  # fmt: skip
    top.set_ylabel(f"accuracy over {window} frames, %")
    top.legend()
    bottom.step(np.arange(found["frames"]), found["level"], linewidth=0.7)
    bottom.set_yticks(range(4), ["int8", "some int16", "int16", "+ float32"])
    bottom.set_xlabel("frame")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


STREAMS: dict[str, Callable[..., Stream]] = {"digits": digits, "sensor": sensor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", choices=STREAMS, default="digits")
    parser.add_argument("--digits", type=Path, default=MODELS / "mnist_500.npz", metavar="FILE.npz")
    parser.add_argument("--frames", type=int, help="how many frames")
    parser.add_argument("--plot", metavar="FILE.png")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = run(digits(args.digits, args.frames) if args.stream == "digits" else sensor(args.frames))
    if args.plot:
        plot(found, args.plot)
    if args.json:
        print(json.dumps({k: v for k, v in found.items() if k not in ("right", "level")}))
        return
    for name, accuracy in found["accuracy"].items():
        print(f"{name:14}{accuracy:6.2f} %  {found['microseconds'][name]:7.1f} us a frame")
    print(f"{found['changes']} changes of a range; frames by level of precision: {found['levels']}")


if __name__ == "__main__":
    main()
