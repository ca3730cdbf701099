"""What quantization-aware training wins back on MNIST, as a table: LeNet, and a depthwise-separable network.

    python benchmarks/qat.py --data DIR [--epochs 4] [--threads 2] [--json FILE]

Every row is an integer model that evort runs, on the 10,000 test digits. Depthwise networks are what post-training
quantization hurts: few weights a channel, of ranges that differ a hundredfold once BatchNormalization is folded. With
one scale for all channels (as many accelerators want it) static int8 loses most."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from evort import etm, train
from evort.graph import Model
from evort.session import Session
from evort.train import layers as L
from evort_tools.convert import convert_model
from evort_tools.export import export
from evort_tools.qat import qat
from evort_tools.quantize import quantize

LENET = Path(__file__).resolve().parents[1] / "models" / "lenet.onnx"


def separable(seed: int = 0) -> Model:
    """A small MobileNet: a convolution, five depthwise-separable blocks, an average, a product. HardSwish keeps
    channels from being equalized, and the scales of the normalizations begin spread over two orders of magnitude."""
    layers: list[Any] = [L.Conv2d(1, 16, 3, stride=2, padding=1, bias=False), L.BatchNorm(16), L.HardSwish()]
    channels = 16
    for out, stride in ((24, 1), (32, 2), (32, 1), (48, 2), (64, 1)):
        layers += [L.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), L.BatchNorm(channels)]
        layers += [L.HardSwish(), L.Conv2d(channels, out, 1, bias=False), L.BatchNorm(out), L.HardSwish()]
        channels = out
    layers += [L.GlobalAvgPool(), L.Flatten(), L.Linear(channels, 10)]
    model = L.sequential(("N", 1, 28, 28), *layers, seed=seed, input="image", output="logits")
    rng = np.random.default_rng(seed)
    for name, tensor in model.graph.tensors.items():
        if name.startswith("batchnorm") and name.endswith(".scale"):
            tensor.data = np.exp(rng.normal(0, 1.2, tensor.data.shape)).astype(np.float32)
    return model


def accuracy(model: Model, data: dict[str, np.ndarray], threads: int) -> float:
    session, right = Session(model, threads=threads), 0
    for i in range(0, len(data["test_images"]), 500):
        x = data["test_images"][i : i + 500, None].astype(np.float32) / np.float32(255)
        right += int((session(x).argmax(1) == data["test_labels"][i : i + 500]).sum())
    return right / len(data["test_images"])


def trained_separable(data: dict[str, np.ndarray], epochs: int, threads: int) -> Model:
    """The float network, trained here, as the converter leaves it."""
    batches = _batches(data, 128, 2)
    schedule = train.schedules.cosine(epochs * len(batches))
    trainer = train.Trainer(separable(), train.CrossEntropy(), train.AdamW(5e-3), schedule=schedule, threads=threads)
    trainer.fit(batches, epochs)
    return convert_model(export(trainer.model()).SerializeToString())


def _batches(data: dict[str, np.ndarray], size: int, shift: int, seed: int = 0) -> train.Batches:
    return train.Batches(
        data["train_images"], data["train_labels"], batch_size=size, seed=seed, drop_last=True,
        transform=train.shifted_digits(shift),
    )  # fmt: skip


def rows(name: str, real: Model, data: dict[str, np.ndarray], variants: dict[str, dict[str, Any]], epochs: int,
         threads: int) -> list[dict[str, Any]]:  # fmt: skip
    """Float, static int8 and what training makes of it, for each variant."""
    base = accuracy(real, data, threads)
    found = [{"model": name, "scheme": "float32", "accuracy": base, "bytes": len(etm.write(real)), "seconds": 0.0}]
    calib = {"image": data["train_images"][:256, None].astype(np.float32) / np.float32(255)}
    for scheme, options in variants.items():
        kept = {k: v for k, v in options.items() if k in ("per_channel",)}
        if options.get("bits", 8) == 8:
            start = time.perf_counter()
            result = quantize(real, calib=calib, threads=threads, prefer="size", verify=False, **kept)
            found.append(_row(name, f"static {scheme}", result.model, data, threads, start))
        start = time.perf_counter()
        result = qat(real, _batches(data, 128, 2), threads=threads, **{"epochs": epochs, **options})
        found.append(_row(name, f"QAT {scheme}", result.model, data, threads, start))
        print(json.dumps(found[-1]), flush=True)
    return found


def _row(name: str, scheme: str, model: Model, data: dict[str, np.ndarray], threads: int, start: float) -> dict:
    spent = time.perf_counter() - start
    return {"model": name, "scheme": scheme, "accuracy": accuracy(model, data, threads), "bytes": len(etm.write(model)),
            "seconds": round(spent, 1)}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder with MNIST's IDX files")
    parser.add_argument("--epochs", type=int, default=2, help="of quantization-aware training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    data = train.mnist(args.data)
    per_channel = {"int8": {"bits": 8}, "int4 weights": {"bits": 4}, "int2 weights": {"bits": 2}}
    one_scale = {
        "int8": {"lr": 8e-3, "distill": 0.0, "freeze_after": 0.75, "epochs": 4},
        "int8, one scale a layer": {"lr": 1e-3, "per_channel": False},
    }
    found = rows("lenet", convert_model(str(LENET)), data, per_channel, args.epochs, args.threads)
    network = trained_separable(data, 3, args.threads)
    found += rows("separable", network, data, one_scale, args.epochs, args.threads)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1))
    print("| model | scheme | accuracy, % | file, kB | time to make, s |\n|---|---|---|---|---|")
    for row in found:
        print(f"| {row['model']} | {row['scheme']} | {100 * row['accuracy']:.2f} | {row['bytes'] / 1000:.1f} | "
              f"{row['seconds']:.0f} |")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
