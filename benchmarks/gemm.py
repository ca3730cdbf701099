"""Measure evort's matrix product beside NumPy's (OpenBLAS), on square matrices and on shapes of real networks.

    python benchmarks/gemm.py                         # float32, 1 and 2 threads
    python benchmarks/gemm.py --threads 1 --only square --json gemm.json
    python benchmarks/gemm.py --clock cpu             # processor time: for one thread on a busy machine
    python benchmarks/gemm.py --sweep --trans b --threads 1 --json sweep.json

The two take turns: each round times a few hundred milliseconds' share of both, and the table shows the median over the
rounds of each one's GFLOP/s and of evort's time divided by NumPy's (below 1: evort is faster). Each number of threads
has a process of its own, as OpenBLAS reads its number once. Results are compared before anything is timed.

--sweep takes small squares and a grid of odd shapes instead, hundreds of them for a few milliseconds each, compares
least times, and shows the shapes where evort is slower, the worst first. Those are measured several times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
import timeit
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
ODD = (1, 2, 3, 5, 7, 8, 10, 16, 17, 33, 64, 100, 300, 500)
SWEEPS: dict[str, list[tuple[int, int, int]]] = {
    "small": [(n, n, n) for n in range(8, 81)],
    "odd": [shape for shape in itertools.product(ODD, repeat=3) if shape[0] * shape[1] * shape[2] <= 2_000_000],
}
ALL = SHAPES | SWEEPS
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
SWEEP_FLOPS = 2e7  # of a batch of calls in a sweep, which stands for a third of a millisecond
SWEEP_AGAIN = 3  # how often shapes are measured again that were slower


class Timing:
    """One shape: seconds of a call of each library, a batch at a time by turns. Raises SystemExit where they differ."""

    def __init__(self, options: argparse.Namespace, group: str, shape: tuple[int, int, int]) -> None:
        import numpy as np

        from evort import blas

        m, n, k = self.shape = shape
        self.group, self.dtype, self.threads, self.trans = group, options.dtype, options.threads[0], options.trans
        rng = np.random.default_rng(0)
        a, b = rng.standard_normal((m, k)).astype(self.dtype), rng.standard_normal((k, n)).astype(self.dtype)
        if "a" in self.trans:
            a = np.asfortranarray(a)
        if "b" in self.trans:
            b = np.asfortranarray(b)
        names = {"gemm": blas.gemm, "dot": np.dot, "a": a, "b": b, "threads": self.threads}
        names["c"], names["d"] = np.empty((m, n), self.dtype), np.empty((m, n), self.dtype)
        calls = {"evort": "gemm(a, b, c, threads=threads)", "numpy": "dot(a, b, out=d)"}
        now = CLOCKS[options.clock]
        self.timers = {name: timeit.Timer(call, timer=now, globals=names) for name, call in calls.items()}
        for timer in self.timers.values():
            timer.timeit(1)
        bound = 2 * (k + 2) * np.finfo(self.dtype).eps * (np.abs(a) @ np.abs(b))
        if np.any(np.abs(names["c"] - names["d"]) > bound):
            raise SystemExit(f"results differ at {m} x {n} x {k}")
        self.flops = 2 * m * n * k
        self.repeats = max(
            1, min(500, int(SWEEP_FLOPS / self.flops)) if options.sweep else min(20_000, int(2e8 / self.flops))
        )
        self.seconds: dict[str, list[float]] = {name: [] for name in calls}

    def measure(self, rounds: int) -> None:
        for _ in range(rounds):
            for name, timer in self.timers.items():
                self.seconds[name].append(timer.timeit(self.repeats) / self.repeats)

    def least(self) -> dict[str, float]:
        return {name: min(seconds) for name, seconds in self.seconds.items()}

    def slower(self) -> bool:
        return self.least()["evort"] > self.least()["numpy"]

    def row(self, least: bool) -> dict:
        """What the table shows, by least times, or by medians and that of the ratio of each round."""
        times = {name: statistics.median(seconds) for name, seconds in self.seconds.items()}
        ratio = statistics.median(x / y for x, y in zip(self.seconds["evort"], self.seconds["numpy"], strict=True))
        if least:
            times = self.least()
            ratio = times["evort"] / times["numpy"]
        return {
            **dict(zip("mnk", self.shape, strict=True)),
            "group": self.group,
            "threads": self.threads,
            "dtype": self.dtype,
            "trans": self.trans,
            **{f"{name}_us": seconds * 1e6 for name, seconds in times.items()},
            **{f"{name}_gflops": self.flops / seconds / 1e9 for name, seconds in times.items()},
            "time_ratio": ratio,
        }


def measure(options: argparse.Namespace) -> list[dict]:
    """One row for each shape, in this process."""
    shapes = [(group, shape) for group in options.only for shape in ALL[group]]
    if not options.sweep:
        timings = (Timing(options, *shape) for shape in shapes)
        rows = []
        for timing in timings:
            timing.measure(options.rounds)
            rows.append(timing.row(least=False))
        return rows
    sweep = [Timing(options, *shape) for shape in shapes]
    for timing in sweep:
        timing.measure(options.rounds)
    for _ in range(SWEEP_AGAIN):
        for timing in sweep:
            if timing.slower():
                timing.measure(options.rounds)
    return [timing.row(least=True) for timing in sweep]


def table(rows: list[dict], sweep: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    view = Table(
        title=f"matrix product, {rows[0]['dtype']}" + (f", transposed {rows[0]['trans']}" if rows[0]["trans"] else "")
    )
    unit = "us" if sweep else "gflops"
    for name in ("shape", "M", "N", "K", "threads"):
        view.add_column(name, justify="left" if name == "shape" else "right")
    for name in ("evort", "NumPy"):
        view.add_column(f"{name} {'us' if sweep else 'GFLOP/s'}", justify="right")
    view.add_column("evort / NumPy time", justify="right")
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        style = "green" if row["time_ratio"] <= 1 else "" if row["time_ratio"] <= 1.15 else "red"
        view.add_row(row["group"], *(str(row[x]) for x in ("m", "n", "k", "threads")),
                     *(f"{row[f'{name}_{unit}']:.{2 if sweep else 1}f}" for name in ("evort", "numpy")),
                     f"{row['time_ratio']:.2f}", style=style,
                     end_section=after is not None and after["group"] != row["group"])  # fmt: skip
    Console().print(view)


def show_sweep(rows: list[dict]) -> None:
    """The shapes where evort is slower, the worst first, and for each group how many those are."""
    from rich import print

    slower = [row for row in rows if row["time_ratio"] > 1]
    if slower:
        table(sorted(slower, key=lambda row: (row["group"], -row["time_ratio"])), sweep=True)
    for group in dict.fromkeys(row["group"] for row in rows):
        ratios = sorted(row["time_ratio"] for row in rows if row["group"] == group)
        counts = ", ".join(
            f"{sum(x > bar for x in ratios)} by more than {bar - 1:.0%}" for bar in (1.02, 1.05, 1.1, 1.2)
        )
        print(f"{group}: of {len(ratios)} shapes evort is slower in {sum(x > 1 for x in ratios)} ({counts}); "
              f"median {statistics.median(ratios):.2f}, worst {ratios[-1]:.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to try")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument(
        "--trans", choices=("", "a", "b", "ab"), default="", help="operands whose columns are contiguous"
    )
    parser.add_argument("--sweep", action="store_true", help="small squares and odd shapes: where evort is slower")
    parser.add_argument("--only", nargs="+", choices=list(ALL), help="groups of shapes")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.only = options.only or list(SWEEPS if options.sweep else SHAPES)
    if options.worker:
        json.dump(measure(options), sys.stdout)
        return
    rows = []
    for threads in options.threads:
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", "--threads", str(threads)]
        env = {**os.environ, "OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # OpenBLAS is to pick its best kernels
            env.pop(name, None)
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise SystemExit(done.returncode)
        rows += json.loads(done.stdout)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)
    if options.sweep:
        show_sweep(rows)
    else:
        table(sorted(rows, key=lambda row: (list(ALL).index(row["group"]), row["threads"])), sweep=False)


if __name__ == "__main__":
    main()
