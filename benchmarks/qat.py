"""What quantization-aware training wins back on MNIST, as a table: LeNet, and a depthwise-separable network.

    python benchmarks/qat.py --data DIR [--seeds 3] [--threads 2] [--only lenet] [--json FILE]
    python benchmarks/qat.py --data DIR --choose            # how SETTINGS were found

Every row is an integer model that evort runs, on the 10,000 test digits, with the mean of some seeds. SETTINGS were
chosen without these: `--choose` trains the float networks on the first 50,000 training digits, tries CANDIDATES on the
same, and shows what each gets right of the other 10,000. Depthwise networks are what post-training quantization hurts:
few weights a channel, of ranges that differ a hundredfold once BatchNormalization is folded. With one scale for all
channels (as many accelerators want it) static int8 loses most."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from fnmatch import fnmatchcase
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

ROOT = Path(__file__).resolve().parents[1]
LENET = ROOT / "models" / "lenet.onnx"
HELD_OUT = 10_000  # training digits, the last ones, by which settings are chosen
BATCH = 128
STATIC = ("per_channel",)  # options that static quantization has, too

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "lenet": {
        "int8": {"bits": 8, "epochs": 6, "distill": 0.0, "lr": 1e-3},
        "int4 weights": {"bits": 4, "epochs": 6, "distill": 0.0, "lr": 2e-3},
        "int2 weights": {"bits": 2, "epochs": 12, "distill": 0.0, "lr": 2e-3},
    },
    "separable": {
        "int8": {"epochs": 8, "distill": 0.0, "lr": 8e-3, "freeze_after": 0.75},
        "int8, one scale a layer": {"epochs": 3, "distill": 0.0, "lr": 3e-3, "per_channel": False},
    },
}


def _grid(epochs: int, distill: tuple[float, ...], lr: tuple[float, ...]) -> list[dict[str, Any]]:
    return [{"epochs": epochs, "distill": d, "lr": rate} for d in distill for rate in lr]


CANDIDATES: dict[str, dict[str, list[dict[str, Any]]]] = {
    "lenet": {
        "int8": _grid(6, (0.9, 0.5, 0.0), (1e-4, 3e-4, 1e-3)),
        "int4 weights": _grid(6, (0.9, 0.0), (5e-4, 1e-3, 2e-3)),
        "int2 weights": _grid(12, (0.5, 0.0), (1e-3, 2e-3, 4e-3)),
    },
    "separable": {
        "int8": [*_grid(3, (0.0,), (3e-3, 8e-3)), *_grid(8, (0.0,), (8e-3,))],
        "int8, one scale a layer": _grid(3, (0.0,), (1e-3, 3e-3)),
    },
}


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


def accuracy(model: Model, digits: tuple[np.ndarray, np.ndarray], threads: int) -> float:
    session, right = Session(model, threads=threads), 0
    images, labels = digits
    for i in range(0, len(images), 500):
        x = images[i : i + 500, None].astype(np.float32) / np.float32(255)
        right += int((session(x).argmax(1) == labels[i : i + 500]).sum())
    return 100 * right / len(images)


def network(name: str, digits: tuple[np.ndarray, np.ndarray], threads: int, epochs: int) -> Model:
    """A float network trained on digits, as the converter leaves it."""
    batches = _batches(digits)
    if name == "lenet":
        sys.path.insert(0, str(ROOT / "examples"))
        from train_lenet import lenet

        made, optimizer = lenet(1), train.AdamW(3e-3, weight_decay=0.03)
    else:
        made, optimizer = separable(), train.AdamW(5e-3)
    schedule = train.schedules.warm_up(len(batches), train.schedules.cosine(epochs * len(batches)))
    trainer = train.Trainer(made, train.CrossEntropy(), optimizer, schedule=schedule, threads=threads, seed=1)
    trainer.fit(batches, epochs)
    return convert_model(export(trainer.model()).SerializeToString())


def _batches(digits: tuple[np.ndarray, np.ndarray], seed: int = 0) -> train.Batches:
    return train.Batches(*digits, batch_size=BATCH, seed=seed, drop_last=True, transform=train.shifted_digits(2))


def _calibration(digits: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    return {"image": digits[0][:256, None].astype(np.float32) / np.float32(255)}


def choose(name: str, data: dict[str, np.ndarray], patterns: str, epochs: int, seeds: int, threads: int) -> None:
    """Prints what each candidate gets right of the training digits that were held out."""
    images, labels = data["train_images"], data["train_labels"]
    seen, unseen = (images[:-HELD_OUT], labels[:-HELD_OUT]), (images[-HELD_OUT:], labels[-HELD_OUT:])
    real = network(name, seen, threads, epochs)
    print(
        f"{name}, float32: {accuracy(real, unseen, threads):.2f} % of {HELD_OUT} training digits held out", flush=True
    )
    for scheme, candidates in CANDIDATES[name].items():
        if not fnmatchcase(scheme, patterns):
            continue
        for tried in candidates:
            options = {**SETTINGS[name][scheme], **tried}
            found = []
            for seed in range(seeds):
                result = qat(real, _batches(seen, seed), threads=threads, seed=seed, **options)
                found.append(accuracy(result.model, unseen, threads))
            print(f"  {scheme}: {statistics.mean(found):.3f} % {found} {tried}", flush=True)


def rows(name: str, data: dict[str, np.ndarray], epochs: int, seeds: int, threads: int) -> list[dict[str, Any]]:
    """Float, static int8 and what training makes of it, for each of SETTINGS."""
    digits, test = (data["train_images"], data["train_labels"]), (data["test_images"], data["test_labels"])
    real = convert_model(str(LENET)) if name == "lenet" else network(name, digits, threads, epochs)
    found: list[dict[str, Any]] = []

    def note(scheme: str, models: list[Model], seconds: float, data: str) -> None:
        right = [accuracy(model, test, threads) for model in models]
        row = {
            "model": name, "scheme": scheme, "accuracy": statistics.mean(right), "least": min(right),
            "most": max(right), "bytes": len(etm.write(models[0])), "seconds": seconds / len(models), "data": data,
        }  # fmt: skip
        found.append(row)
        print(json.dumps(row), flush=True)

    note("float32", [real], 0.0, "")
    for scheme, options in SETTINGS[name].items():
        if options.get("bits", 8) == 8:
            kept = {k: v for k, v in options.items() if k in STATIC}
            start = time.perf_counter()
            calib = _calibration(digits)
            made = quantize(real, calib=calib, threads=threads, prefer="size", verify=False, **kept).model
            note(f"static {scheme}", [made], time.perf_counter() - start, "256 digits, no labels")
        start = time.perf_counter()
        models = [
            qat(real, _batches(digits, seed), threads=threads, seed=seed, **options).model for seed in range(seeds)
        ]
        note(f"QAT {scheme}", models, time.perf_counter() - start, f"60,000 with labels, {options['epochs']} epochs")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder with MNIST's IDX files")
    parser.add_argument("--choose", action="store_true", help="try CANDIDATES; the test digits are not looked at")
    parser.add_argument("--only", choices=tuple(SETTINGS), help="one of the networks")
    parser.add_argument("--scheme", default="*", metavar="PATTERN", help="with --choose: which to try")
    parser.add_argument("--epochs", type=int, default=5, help="of float training, for networks that are trained here")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    data = train.mnist(args.data)
    names = [args.only] if args.only else list(SETTINGS)
    if args.choose:
        for name in names:
            choose(name, data, args.scheme, args.epochs, args.seeds, args.threads)
        return 0
    found = [row for name in names for row in rows(name, data, args.epochs, args.seeds, args.threads)]
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1))
    print("| model | scheme | accuracy, % | seeds | file, kB | time to make, s | data |\n|---|---|---|---|---|---|---|")
    for row in found:
        spread = f"{row['least']:.2f} to {row['most']:.2f}" if row["scheme"].startswith("QAT") else ""
        print(f"| {row['model']} | {row['scheme']} | {row['accuracy']:.2f} | {spread} | {row['bytes'] / 1000:.1f} | "
              f"{row['seconds']:.0f} | {row['data']} |")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
