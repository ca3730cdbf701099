"""The table that a user chooses a scheme by: LeNet on all 10,000 digits of MNIST, made in each way that evort has.

    python benchmarks/schemes.py                       # the schemes that need no training: a minute
    python benchmarks/schemes.py --train               # and those that do: some minutes more
    python benchmarks/schemes.py --only 'static*,qat*' --json schemes.json --markdown

accuracy on the test digits; size of the file; latency: median processor time of one run, batch 1, one thread, in turns
with float32; memory: weights and arena; made in: seconds; data: what a user must bring.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import calibration
import numpy as np
from qat import SETTINGS
from rich.console import Console
from rich.table import Table

import evort
import evort_tools
from evort import etm
from evort.train import Batches, shifted_digits
from evort_tools.qat import qat

MODEL = Path(__file__).parent.parent / "models" / "lenet.onnx"
SAMPLES = 256  # for calibration
NONE, UNLABELLED, LABELLED = "none", f"{SAMPLES} inputs", "60,000 with labels"
Digits = tuple[np.ndarray, np.ndarray]
Make = Callable[[Digits], bytes]


def _quantized(**options: Any) -> Make:
    def make(train: Digits) -> bytes:
        needs = options["scheme"] in ("static", "mixed") or options.get("rounding") == "gptq"
        calib = {"image": train[0][:SAMPLES]} if needs else None
        return evort_tools.quantize(MODEL, calib=calib, threads=1, **options).to_bytes()

    return make


def _shifted(train: Digits) -> Batches:
    """Batches for training: digits moved by up to two pixels."""
    images, labels = np.rint(train[0][:, 0] * 255).astype(np.uint8), train[1].astype(np.int64)
    return Batches(images, labels, batch_size=128, drop_last=True, transform=shifted_digits(2))


def _trained(settings: str) -> Make:
    """With settings that were chosen without the test digits: see qat.py."""

    def make(train: Digits) -> bytes:
        return etm.write(qat(MODEL, _shifted(train), threads=1, **SETTINGS["lenet"][settings]).model)

    return make


def _pruned(quantize: str = "static", **options: Any) -> Make:
    def make(train: Digits) -> bytes:
        data = _shifted(train)
        return evort_tools.prune(MODEL, data=data, quantize=quantize, lr=2e-3, threads=1, **options).to_bytes()

    return make


# name: (how, what data, whether it trains)
SCHEMES: dict[str, tuple[Make, str, bool]] = {
    "float32": (lambda train: evort_tools.convert(MODEL), NONE, False),
    "dynamic int8": (_quantized(scheme="dynamic"), NONE, False),
    "dynamic int16": (_quantized(scheme="dynamic", bits=16), NONE, False),
    "weight-only float16": (_quantized(scheme="weight-only", bits=16), NONE, False),
    "weight-only int8": (_quantized(scheme="weight-only", bits=8, block=32), NONE, False),
    "weight-only int4": (_quantized(scheme="weight-only", bits=4, block=32), NONE, False),
    "weight-only int4, for size": (
        _quantized(scheme="weight-only", bits=4, block=32, prefer="size"), NONE, False,
    ),
    "weight-only int4, GPTQ": (_quantized(scheme="weight-only", bits=4, block=32, rounding="gptq"), UNLABELLED, False),
    "static int8": (_quantized(scheme="static", prefer="size"), UNLABELLED, False),
    "static int8, for speed": (_quantized(scheme="static"), UNLABELLED, False),
    "static int8, int16 activations": (
        _quantized(scheme="static", prefer="size", activations="int16"), UNLABELLED, False,
    ),
    "static int8, adaptive": (_quantized(scheme="static", prefer="size", adaptive=True), UNLABELLED, False),
    "mixed, half the size": (_quantized(scheme="mixed", max_size="50%"), UNLABELLED, False),
    "QAT int8": (_trained("int8"), LABELLED, True),
    "QAT int4": (_trained("int4 weights"), LABELLED, True),
    "QAT int2": (_trained("int2 weights"), LABELLED, True),
    "4x1 blocks, 75 % zeros, int8": (_pruned(pattern="4x1", sparsity=0.75, epochs=10), LABELLED, True),
    "4x1 blocks, 75 % zeros, QAT int4": (
        _pruned("qat", pattern="4x1", sparsity=0.75, epochs=5, bits=4), LABELLED, True,
    ),
    "2:4, int8": (_pruned(pattern="2:4", epochs=4), LABELLED, True),
    "channels, half of them, int8": (_pruned(pattern="channels", sparsity=0.5, epochs=10), LABELLED, True),
}  # fmt: skip


def accuracy(session: evort.Session, test: Digits) -> float:
    """In percent."""
    right = 0
    for at in range(0, len(test[0]), 250):
        right += int((session(test[0][at : at + 250]).argmax(1) == test[1][at : at + 250]).sum())
    return 100 * right / len(test[0])


def latency(session: evort.Session, base: evort.Session, image: np.ndarray, rounds: int = 40) -> float:
    """Microseconds of processor time of one run, while the float32 session takes turns: both see the same caches and
    the same minutes of the machine."""
    times: dict[evort.Session, list[float]] = {base: [], session: []}
    for _ in range(rounds):
        for run, spent in times.items():
            start = time.process_time()
            for _ in range(100):
                run(image)
            spent.append((time.process_time() - start) / 100)
    return 1e6 * statistics.median(times[session])


def measure(name: str, train: Digits, test: Digits, base: evort.Session) -> dict[str, Any]:
    """One row of the table."""
    make, data, _ = SCHEMES[name]
    start = time.perf_counter()
    file = make(train)
    seconds = time.perf_counter() - start
    session = evort.load(file, threads=1)
    spent = latency(session, base, test[0][:1])
    memory = session.memory()
    row = {
        "scheme": name, "bytes": len(file), "us": spent, "memory": len(file) + memory.weights_copied + memory.arena,
        "seconds": seconds, "data": data,
    }  # fmt: skip
    return {**row, "accuracy": accuracy(session, test)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="also the schemes that train")
    parser.add_argument("--only", default="*", metavar="NAMES", help="names or patterns, with commas between")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    args = parser.parse_args()
    patterns = args.only.split(",")
    chosen = [
        name
        for name, (_, _, trains) in SCHEMES.items()
        if any(fnmatchcase(name, p) for p in patterns) and (args.train or not trains or args.only != "*")
    ]
    console = Console(stderr=args.markdown)
    train, test = calibration.mnist("train"), calibration.mnist("t10k")
    base = evort.load(evort_tools.convert(MODEL), threads=1)
    rows = []
    for name in chosen:
        with console.status(name):
            rows.append(measure(name, train, test, base))
        if args.json:
            Path(args.json).write_text(json.dumps(rows, indent=1))
    titles = ("scheme", "accuracy, %", "file, kB", "latency, us", "memory, kB", "made in, s", "data")
    cells = [
        (r["scheme"], f"{r['accuracy']:.2f}", f"{r['bytes'] / 1e3:.1f}", f"{r['us']:.1f}", f"{r['memory'] / 1e3:.0f}",
         f"{r['seconds']:.1f}", r["data"])
        for r in rows
    ]  # fmt: skip
    if args.markdown:
        print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
        print("\n".join("| " + " | ".join(row) + " |" for row in cells))
        return
    table = Table(*titles)
    for row in cells:
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
