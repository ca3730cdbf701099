"""The main job, on models/ of evort's source tree: converts LeNet to .etm, loads it, classifies 500 digits, and says
what it took."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import evort
from evort_tools.common import bytes_text, file_size, print_json, shipped_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1, help="threads to use (1)")
    parser.add_argument("--models", type=Path, metavar="DIR", help="folder with lenet.onnx and mnist_500.npz (models/)")
    parser.add_argument("--keep", metavar="FILE.etm", help="keep the converted model")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    from evort_tools.bench import latency, measure_memory
    from evort_tools.convert import convert

    models = args.models or shipped_models()
    with np.load(models / "mnist_500.npz", allow_pickle=False) as digits:
        images = digits["images"].astype(np.float32)[:, None] / 255
        labels = digits["labels"]
    with tempfile.TemporaryDirectory() as folder:
        path = args.keep or str(Path(folder) / "lenet.etm")
        convert(str(models / "lenet.onnx"), path)

        start = time.perf_counter()
        session = evort.load(path, threads=args.threads)
        load_ms = (time.perf_counter() - start) * 1e3
        name = session.inputs[0].name
        right = sum(int(np.argmax(session(image[None])) == label) for image, label in zip(images, labels, strict=True))
        one = {name: images[:1]}
        figures = {
            "accuracy": right / len(labels),
            "digits": len(labels),
            "load_ms": load_ms,
            "latency_ms": latency(session, one, 0.5)["p50_ms"],
            "onnx_bytes": file_size(str(models / "lenet.onnx")),
            "etm_bytes": file_size(path),
            "arena_bytes": session.memory().arena,
            "peak_bytes": measure_memory(path, one, args.threads)["peak"],
        }
    if args.json:
        print_json(figures)
    else:
        print_figures(figures)
    return 0 if figures["accuracy"] >= 0.98 else 1


def print_figures(f: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("LeNet on MNIST digits", "", show_header=True, header_style="bold")
    table.add_row("accuracy", f"{f['accuracy']:.2%} of {f['digits']} digits")
    table.add_row("latency of one digit", f"{f['latency_ms'] * 1e3:.1f} µs (median)")
    table.add_row("load", f"{f['load_ms']:.2f} ms")
    table.add_row("file", f"{bytes_text(f['etm_bytes'])} (ONNX: {bytes_text(f['onnx_bytes'])})")
    table.add_row("arena", f"{f['arena_bytes']:,} bytes")
    table.add_row("peak memory over bare NumPy", bytes_text(f["peak_bytes"]))
    Console().print(table)


if __name__ == "__main__":
    from evort_tools.cli import run_command

    sys.exit(run_command("demo"))
