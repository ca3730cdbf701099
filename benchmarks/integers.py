"""Measure evort's products of few bits: int8 by int8, and one row by weights of 32, 16, 8 and 4 bits; one thread.

    python benchmarks/integers.py                             # the best instruction set
    python benchmarks/integers.py --isa avx512vnni,avx2 --size 8192 --json integers.json

Square products are given in 10^9 multiplications and additions a second. One row by many weights is bound by memory
where they do not fit the cache: there, time falls as the bits do. What is compared takes turns; the least time counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from evort import blas
from evort._kernels import core

Calls = dict[str, Callable[[], object]]
ENDS = {np.uint8: (0, 256), np.int8: (-128, 128)}
GROUP = 32  # weights of few bits that share a scale


def fastest(calls: Calls, rounds: int) -> dict[str, float]:
    """Seconds of one call of each, the least of many."""
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            end = time.perf_counter() + 0.1
            while time.perf_counter() < end:
                start = time.perf_counter()
                call()
                least[name] = min(least[name], time.perf_counter() - start)
    return least


def square(n: int) -> Calls:
    """C[n, n] = A B for each pair of types of bytes, and in float32."""
    rng = np.random.default_rng(0)
    calls: Calls = {}
    for a_type, b_type in ((np.uint8, np.int8), (np.int8, np.int8), (np.uint8, np.uint8)):
        a, b = rng.integers(*ENDS[a_type], (n, n), a_type), rng.integers(*ENDS[b_type], (n, n), b_type)
        c = np.zeros((n, n), np.int32)
        calls[f"{a.dtype} {b.dtype}"] = lambda a=a, b=b, c=c: blas.gemm_int8(a, b, c, threads=1)
    x, y = rng.standard_normal((n, n), np.float32), np.zeros((n, n), np.float32)
    calls["float32"] = lambda: blas.gemm(x, x, y, threads=1)
    return calls


def one_row(n: int) -> tuple[Calls, dict[str, int]]:
    """y[1, n] = x W^T for weights W[n, n] of several widths, and their bits."""
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((n, n), np.float32), rng.standard_normal((1, n), np.float32)
    y, whole = np.zeros((1, n), np.float32), np.zeros((1, n), np.int32)
    half, narrow = w.astype(np.float16), rng.integers(*ENDS[np.int8], (n, n), np.int8)
    turned, quantized = np.ascontiguousarray(half.T), rng.integers(*ENDS[np.uint8], (1, n), np.uint8)
    calls: Calls = {
        "float32": lambda: blas.gemm(x, w, y, trans_b=True, threads=1),
        "float16": lambda: blas.gemm_half(x, half, y, trans_w=True, threads=1),
        "float16, W^T in memory": lambda: blas.gemm_half(x, turned, y, threads=1),
        "int8, x of uint8": lambda: blas.gemm_int8(quantized, narrow, whole, trans_b=True, threads=1),
    }
    bits = dict(zip(calls, (32, 16, 16, 8), strict=True))
    scales = np.ones((n, n // GROUP), np.float32)
    for width in (8, 4):
        q = rng.integers(*ENDS[np.uint8], (n, n * width // 8), np.uint8)
        for exact in (True, False):
            name = f"int{width} in groups{'' if exact else ', x of int16'}"
            bits[name] = width
            calls[name] = lambda q=q, width=width, exact=exact: blas.gemm_nbits(
                x, q, scales, None, y, bits=width, block=GROUP, exact=exact, threads=1
            )
    return calls, bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default=core.isa(), help="instruction sets, by commas; by default the best one")
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of one row's weights")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    isas = args.isa.split(",")
    if unknown := set(isas) - set(core.available_isas()):
        sys.exit(f"this machine does not run {', '.join(sorted(unknown))}; it runs {', '.join(core.available_isas())}")
    if args.size % GROUP:
        sys.exit(f"--size must be a multiple of {GROUP}")
    squares, vectors = Table(title="square products, GOP/s"), Table(title=f"one row by {args.size}^2 weights")
    for name in ("instruction set", "n", *square(1)):
        squares.add_column(name, justify="right")
    for name in ("instruction set", "weights", "ms", "GB/s", "float32's time / its own"):
        vectors.add_column(name, justify="right")
    rows: list[dict[str, object]] = []
    calls, bits = one_row(args.size)
    for isa in isas:
        core.select_isa(isa)
        for n in (64, 128, 256, 512, 1024):
            rates = {name: 2 * n**3 / s / 1e9 for name, s in fastest(square(n), args.rounds).items()}
            squares.add_row(isa, str(n), *(f"{rate:.0f}" for rate in rates.values()))
            rows.append({"isa": isa, "n": n, "gops": rates})
        seconds = fastest(calls, args.rounds)
        for name, s in seconds.items():
            bandwidth = bits[name] / 8 * args.size**2 / s / 1e9
            vectors.add_row(isa, name, f"{s * 1e3:.2f}", f"{bandwidth:.1f}", f"{seconds['float32'] / s:.2f}")
        rows.append({"isa": isa, "size": args.size, "seconds": seconds})
    console = Console()
    console.print(squares)
    console.print(vectors)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
