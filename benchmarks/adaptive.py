"""What following the ranges costs: static int8 beside `adaptive=True` on an input that stays.

    python benchmarks/adaptive.py [--models lenet,mobilenet_v2,resnet18] [--json FILE]

Both run in one process and take turns; the medians of their processor time are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from time import process_time
from typing import Any

import numpy as np

import evort
import evort_tools
import models


def measure(name: str, seconds: float) -> dict[str, Any]:
    """Microseconds of processor time of one run, static and adaptive, and their ratio."""
    network = models.MODELS[name]
    samples = [network.example(np.random.default_rng(seed)) for seed in range(8)]
    file = evort_tools.quantize(
        network.build(), calib=samples, equalize="off", adaround="off", bias_correction="off", prefer="size"
    ).to_bytes()  # fmt: skip
    feeds = samples[0]
    static = evort.load(file, threads=1)
    follows = evort.load(file, threads=1, adaptive=True)
    runs: dict[str, Callable[[], Any]] = {"static": lambda: static.run(feeds), "adaptive": lambda: follows.run(feeds)}
    for _ in range(30):  # ranges settle
        for run in runs.values():
            run()
    start = process_time()
    runs["static"]()
    # A multiple of `every`, so that runs that are looked at have their share.
    each = follows.options.every * max(1, int(0.01 / max(1e-6, process_time() - start)))
    times: dict[str, list[float]] = {key: [] for key in runs}
    begin = process_time()
    while process_time() - begin < seconds or len(times["static"]) < 5:
        for key, run in runs.items():
            start = process_time()
            for _ in range(each):
                run()
            times[key].append((process_time() - start) / each)
    found = {key: 1e6 * statistics.median(values) for key, values in times.items()}
    return {"model": name, **found, "ratio": found["adaptive"] / found["static"], "changes": follows.default.changes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="lenet,ds_cnn,mobilenet_v2,resnet18")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each model (5)")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    rows = [measure(name, args.seconds) for name in args.models.split(",")]
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)
    for row in rows:
        print(
            f"{row['model']:14}static {row['static']:9.1f} us  adaptive {row['adaptive']:9.1f} us  {row['ratio']:.3f}"
        )


if __name__ == "__main__":
    main()
