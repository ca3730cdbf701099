"""Measure evort's matrix product beside NumPy's (OpenBLAS), on square matrices and on shapes of real networks.

    python benchmarks/gemm.py                         # float32, 1 and 2 threads
    python benchmarks/gemm.py --threads 1 --only square --json gemm.json
    python benchmarks/gemm.py --clock cpu             # processor time: for one thread on a busy machine

The two take turns: each round times a few hundred milliseconds' share of both, and the table shows the median over the
rounds of each one's GFLOP/s and of evort's time divided by NumPy's (below 1: evort is faster). Each number of threads
has a process of its own, as OpenBLAS reads its number once. Results are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

# (M, N, K): C[M, N] = A[M, K] B[K, N]. A convolution has M output channels, N output pixels, K = input channels x
# kernel; a linear layer has M rows (tokens, steps), N outputs, K inputs.
SHAPES: dict[str, list[tuple[int, int, int]]] = {
    "square": [(n, n, n) for n in (8, 16, 32, 64, 128, 192, 256, 384, 512, 768, 1024)],
    "convolution": [(16, 25600, 27), (32, 12544, 27), (64, 3136, 64), (64, 3136, 576), (128, 784, 1152),
                    (256, 196, 2304), (512, 49, 4608), (256, 49, 1024), (24, 784, 144)],
    "linear": [(25, 480, 64), (40, 480, 120), (40, 480, 480), (40, 6625, 120), (6, 1000, 512), (128, 768, 768)],
    "vector": [(1, 1000, 1280), (1, 512, 128), (1, 4096, 4096), (4096, 1, 4096)],
}  # fmt: skip
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def measure(threads: int, dtype: str, rounds: int, clock: str, only: list[str]) -> list[dict]:
    """One row for each shape, in this process."""
    import numpy as np

    from evort import blas

    now = CLOCKS[clock]
    rng = np.random.default_rng(0)
    rows = []
    for group, (m, n, k) in [(g, s) for g in only for s in SHAPES[g]]:
        a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
        ours, theirs = np.empty((m, n), dtype), np.empty((m, n), dtype)
        calls = {
            "evort": lambda a=a, b=b, c=ours: blas.gemm(a, b, c, threads=threads),
            "numpy": lambda a=a, b=b, c=theirs: np.matmul(a, b, out=c),
        }
        for call in calls.values():
            call()
        bound = 2 * (k + 2) * np.finfo(dtype).eps * (np.abs(a) @ np.abs(b))
        if np.any(np.abs(ours - theirs) > bound):
            raise SystemExit(f"results differ at {m} x {n} x {k}")
        flops = 2 * m * n * k
        repeats = max(1, min(20_000, int(2e8 / flops)))
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                start = now()
                for _ in range(repeats):
                    call()
                seconds[name].append((now() - start) / repeats)
        ratios = [x / y for x, y in zip(seconds["evort"], seconds["numpy"], strict=True)]
        rows.append(
            {
                "group": group,
                "m": m,
                "n": n,
                "k": k,
                "threads": threads,
                "dtype": dtype,
                "evort_gflops": flops / statistics.median(seconds["evort"]) / 1e9,
                "numpy_gflops": flops / statistics.median(seconds["numpy"]) / 1e9,
                "time_ratio": statistics.median(ratios),
            }
        )
    return rows


def table(rows: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    view = Table(title=f"matrix product, {rows[0]['dtype']}")
    for name in ("shape", "M", "N", "K", "threads", "evort GFLOP/s", "NumPy GFLOP/s", "evort / NumPy time"):
        view.add_column(name, justify="left" if name == "shape" else "right")
    for i, row in enumerate(rows):
        style = "green" if row["time_ratio"] <= 1 else "" if row["time_ratio"] <= 1.15 else "red"
        view.add_row(row["group"], *(str(row[x]) for x in ("m", "n", "k", "threads")), f"{row['evort_gflops']:.1f}",
                     f"{row['numpy_gflops']:.1f}", f"{row['time_ratio']:.2f}", style=style,
                     end_section=i + 1 < len(rows) and rows[i + 1]["group"] != row["group"])  # fmt: skip
    Console().print(view)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to try")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--only", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="groups of shapes")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        json.dump(measure(options.threads[0], options.dtype, options.rounds, options.clock, options.only), sys.stdout)
        return
    rows = []
    for threads in options.threads:
        command = [sys.executable, __file__, "--worker", "--threads", str(threads), "--dtype", options.dtype,
                   "--rounds", str(options.rounds), "--clock", options.clock, "--only", *options.only]  # fmt: skip
        env = {**os.environ, "OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # OpenBLAS is to pick its best kernels
            env.pop(name, None)
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise SystemExit(done.returncode)
        rows += json.loads(done.stdout)
    table(sorted(rows, key=lambda row: (list(SHAPES).index(row["group"]), row["threads"])))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
