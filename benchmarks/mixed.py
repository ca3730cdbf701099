"""Measure what mixed precision and the choice by speed give: size, latency and accuracy beside float32's.

    python benchmarks/mixed.py                                    # LeNet and models of ../shared
    python benchmarks/mixed.py lenet ppocr_cls --samples 32 --json mixed.json

Each way is quantized with the same calibration samples (16; LeNet's accuracy is that on the 10,000 test digits) and
judged on others. Latency is evort's own, one thread, in parts of the float32 model's: the shortest runs of both, which
take turns.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any

import cases
import numpy as np
from calibration import mnist, samples
from rich.console import Console
from rich.progress import track
from rich.table import Table

import evort_tools
from evort import etm
from evort.graph import Model
from evort.session import Session
from evort_tools.convert import convert_model
from evort_tools.quantization.compare import expected_outputs, output_errors, total_ratio
from evort_tools.quantization.latency import ratio

MODELS = ("lenet", "super_resolution_10", "ppocr_cls", "ppocr_rec", "ppocr_det")
WAYS: dict[str, dict[str, Any]] = {
    "static, --prefer size": {"prefer": "size"},
    "static": {},
    "mixed": {"scheme": "mixed"},
    "mixed, --max-drop 40dB": {"scheme": "mixed", "max_drop": "40dB"},
    "mixed, --max-size 30%": {"scheme": "mixed", "max_size": "30%"},
}


def row_of(name: str, real: Model, made: Model, options: dict[str, Any], way: str, result: Any) -> dict[str, Any]:
    """What one way gives for one model."""
    test = list(samples(name, 8, test=True))
    errors = output_errors(made, test, expected_outputs(real, test))
    found = {
        "model": name,
        "way": way,
        "options": options,
        "size": len(etm.write(made)) / len(etm.write(real)),
        "latency": ratio(real, made, test[0], 1),
        "predicted": result.latency.get("predicted_us", math.nan) / result.latency.get("float32_us", math.nan),
        "sqnr": -10 * math.log10(max(total_ratio(errors), 1e-30)),
        "notes": result.notes,
    }
    if result.options.scheme == "mixed":
        chosen = [row["precision"] for row in result.layers]
        found["precisions"] = {p: chosen.count(p) for p in sorted(set(chosen))}
    else:
        found["precisions"] = {"int8": sum(r["operator"] in ("Conv", "ConvTranspose", "Gemm", "MatMul")
                                           for r in result.layers), "float32": len(result.kept)}  # fmt: skip
    if name == "lenet":
        images, labels = mnist("t10k")
        (logits,) = Session(made).run({"image": images}).values()
        found["accuracy"] = float(np.mean(logits.argmax(1) == labels)) * 100
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, help=f"which ({', '.join(MODELS)})")
    parser.add_argument("--samples", type=int, default=16, help="calibration samples (16)")
    parser.add_argument("--json", metavar="FILE", help="also write the rows as JSON")
    args = parser.parse_args()
    known = {case.name: case for case in cases.real_cases()}
    absent = [name for name in args.models if name not in known]
    if absent:
        print(f"not there: {', '.join(absent)} (known: {', '.join(known)})", file=sys.stderr)
    rows = []
    jobs = [(name, way) for name in args.models if name in known for way in WAYS]
    for name, way in track(jobs, "quantizing", console=Console(stderr=True)):
        real = convert_model(known[name].source)
        options = {**WAYS[way], "threads": 1}
        try:
            result = evort_tools.quantize(real, calib=list(samples(name, args.samples)), **options)
        except ValueError as error:  # a limit that cannot be held
            print(f"{name}, {way}: {error}", file=sys.stderr)
            continue
        rows.append(row_of(name, real, result.model, options, way, result))
    table = Table("model", "options", "size", "latency", "SQNR, dB", "accuracy, %", "layers", title="of float32's")
    for row in rows:
        layers = ", ".join(f"{count} {p}" for p, count in row["precisions"].items() if count)
        accuracy = f"{row['accuracy']:.2f}" if "accuracy" in row else ""
        numbers = (f"{row[k]:.{digits}f}" for k, digits in (("size", 3), ("latency", 2), ("sqnr", 1)))
        table.add_row(row["model"], row["way"], *numbers, accuracy, layers)
    Console().print(table)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
