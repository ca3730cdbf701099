"""Where the time of a model goes: every layer's time beside the least that this core could take for it.

    python benchmarks/roofline.py syn_resnet18                       # a case of cases.py,
    python benchmarks/roofline.py model.etm --top 15                 # or a file
    python benchmarks/roofline.py ppocr_det --int8                   # quantized first, with samples of calibration.py
    python benchmarks/roofline.py syn_bert_mini --json r.json --plot r.png
    python benchmarks/roofline.py                                    # what the core can do, only

First the core itself is measured, with loops of evort's own (`_peaks.c`, built by the C compiler for this machine):
float32 multiply-adds and products of bytes in registers, and reading from each cache and from memory. A layer's bound
is the larger of two times:

    compute   its multiply-adds at the core's peak (bytes: layers that run in integers)
    traffic   its inputs and outputs once, from the smallest cache that holds them together, and its weights once, from
              the smallest that holds all of the model's weights and its arena, since that much is touched between two
              runs

"reached" is bound / time. Winograd convolutions need fewer multiply-adds than are counted and may pass 100%; so may
layers whose data lies closer than assumed. Times are the least of many runs on one thread, which disturbances of a
shared machine change least.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cases
import numpy as np
from compare import environment, prepare
from rich.console import Console
from rich.table import Table

import evort
from evort._kernels import core as kernels
from evort_tools.common import write_atomically
from evort_tools.inspection import weight_bytes
from evort_tools.profiling import rows_of

SOURCE = Path(__file__).with_name("_peaks.c")
INTEGER = ("q", "dynamic")  # families of drivers whose multiply-adds are of integers
USUAL_CACHES = {"L1": 32 << 10, "L2": 512 << 10, "L3": 8 << 20}


@dataclass(frozen=True)
class Core:
    """What a core can do. macs: float32 and int8 in 10^9 per second; levels: (name, bytes it holds, GB/s), smallest
    first; the last is memory, which holds everything."""

    macs: dict[str, float]
    instruction: str
    levels: list[tuple[str, int, float]]

    def level(self, size: int) -> tuple[str, int, float]:
        """The smallest level that holds `size` bytes."""
        return next(level for level in self.levels if size <= level[1])


@dataclass
class Layer:
    """A step of the plan: microseconds it took, and could take by compute and by traffic. level: of the slower part of
    the traffic."""

    name: str
    operator: str
    kernel: str
    output: str
    macs: int
    activation_bytes: int
    weight_bytes: int
    kind: str
    us: float
    compute_us: float
    traffic_us: float
    level: str

    @property
    def bound_us(self) -> float:
        return max(self.compute_us, self.traffic_us)

    @property
    def bound_by(self) -> str:
        return f"{self.kind} multiply-adds" if self.compute_us >= self.traffic_us else self.level


def build(folder: Path) -> ctypes.CDLL:
    """The loops of _peaks.c for this processor, or for AVX2 where that is in use. Exits with what the compiler said
    where it cannot."""
    target = folder / "peaks.so"
    compiler = shlex.split(os.environ.get("CC", "cc"))
    held = {"avx2": ["-mavx2", "-mfma"]}.get(kernels.isa())  # by EVORT_ISA, or by the processor
    for native in [held] if held else (["-march=native"], ["-mcpu=native"], []):  # a cross-compiler has neither
        command = [*compiler, "-O3", *native, "-ffp-contract=fast", "-shared", "-fPIC", "-o", target, SOURCE]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            break
    else:
        sys.exit(f"{SOURCE.name} does not compile: {done.stderr}")
    library = ctypes.CDLL(str(target))
    for name in ("fma_f32_macs", "dot_i8_macs"):
        getattr(library, name).restype = ctypes.c_int64
        getattr(library, name).argtypes = [ctypes.c_int64]
    for name, result in (("fma_f32", ctypes.c_float), ("dot_i8", ctypes.c_int32)):
        getattr(library, name).restype = result
        getattr(library, name).argtypes = [ctypes.c_int64]
    library.read_all.restype = ctypes.c_float
    library.read_all.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    library.dot_i8_name.restype = ctypes.c_char_p
    return library


def least(call: Callable[[], object], rounds: int) -> float:
    """The least seconds of `rounds` calls."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def caches() -> dict[str, int]:
    """Bytes of the data caches of the first processor, from Linux; usual ones where it does not tell."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (index / "type").read_text().strip() in ("Data", "Unified"):
            size = (index / "size").read_text().strip()
            found[f"L{(index / 'level').read_text().strip()}"] = int(size.rstrip("KM")) << (20 if "M" in size else 10)
    return found or USUAL_CACHES


def measure_core(library: ctypes.CDLL) -> Core:
    macs = {}
    for kind, name in (("float32", "fma_f32"), ("int8", "dot_i8")):
        n = 200_000
        run = getattr(library, name)
        macs[kind] = getattr(library, f"{name}_macs")(n) / least(lambda run=run, n=n: run(n), 60) / 1e9
    sizes = caches()
    levels = []
    for name, holds in sizes.items():
        data = np.ones(holds // 2 // 1024 * 256, np.float32)
        repeats = max(1, (8 << 20) // data.nbytes)
        seconds = least(lambda d=data, r=repeats: library.read_all(d.ctypes.data, d.nbytes, r), 40)
        levels.append((name, holds, data.nbytes * repeats / seconds / 1e9))
    # Memory: pieces of more than the caches hold, one after the other. The fastest tenth may have been near, slow
    # ones were disturbed.
    pieces = np.ones((4 * max(sizes.values()) >> 20, 1 << 18), np.float32)
    times = [least(lambda p=p: library.read_all(p.ctypes.data, p.nbytes, 1), 1) for _ in range(4) for p in pieces]
    levels.append(("memory", 1 << 62, pieces[0].nbytes / float(np.quantile(times, 0.1)) / 1e9))
    return Core(macs, library.dot_i8_name().decode(), levels)


def measure_layers(session: evort.Session, feeds: dict[str, np.ndarray], core: Core, seconds: float) -> list[Layer]:
    """Every step of the model, with the least time of the runs of about `seconds` seconds (at least five)."""
    session.run(feeds)
    runs, end = [], time.perf_counter() + seconds
    while len(runs) < 5 or time.perf_counter() < end:
        runs.append(session.profile(feeds))
    steps = [step for plan, _ in runs[0] for step in plan.steps]
    rows = [row for row in rows_of(runs[:1]) if row["kernel"] != "executor.copy"]
    nanoseconds = [
        np.min([profile[stage][1][: len(plan.steps)] for profile in runs if profile[stage][0] is plan], axis=0)
        for stage, (plan, _) in enumerate(runs[0])
    ]
    plans = [plan for plan, _ in runs[0] for _ in plan.steps]
    weights = [weight_bytes(plan, step) for plan, step in zip(plans, steps, strict=True)]
    footprint = sum(weights) + sum(plan.arena_bytes for plan, _ in runs[0])
    # What does not compute with its constants (Gather) reads of them what it writes.
    weights = [
        w if row["macs"] else min(w, sum(s.nbytes for s in step.call.outs if s is not None))
        for w, row, step in zip(weights, rows, steps, strict=True)
    ]
    layers = []
    for row, step, plan_weights, ns in zip(rows, steps, weights, np.concatenate(nanoseconds), strict=True):
        c = step.call
        activations = sum(s.nbytes for s in (*c.ins, *c.outs) if s is not None and s.value is None)
        kind = "int8" if (row["kernel"] or "").startswith(INTEGER) else "float32"
        near, far = core.level(activations + plan_weights), core.level(footprint)
        parts = [(activations / near[2] / 1e3, near[0]), (plan_weights / far[2] / 1e3, far[0])]
        layers.append(
            Layer(
                row["name"], row["operator"], row["kernel"] or "NumPy", row["output"], row["macs"], activations,
                plan_weights, kind, float(ns) / 1e3, row["macs"] / core.macs[kind] / 1e3, sum(us for us, _ in parts),
                max(parts)[1],
            )
        )  # fmt: skip
    return layers


def show_core(core: Core, console: Console) -> None:
    machine = environment()
    table = Table(title=f"one core of {machine['cpu']}")
    for name in ("what", "measured"):
        table.add_column(name, justify="right" if name == "measured" else "left")
    table.add_row(
        "float32 multiply-adds", f"{core.macs['float32']:.1f} GMAC/s = {2 * core.macs['float32']:.0f} GFLOP/s"
    )
    table.add_row(f"int8 multiply-adds ({core.instruction})", f"{core.macs['int8']:.1f} GMAC/s")
    for name, holds, speed in core.levels:
        size = "" if holds >= 1 << 62 else f" of {holds >> 10} KiB"
        table.add_row(f"reading from {name}{size}", f"{speed:.1f} GB/s")
    console.print(table)


def show_layers(layers: list[Layer], title: str, top: int, console: Console) -> None:
    """The layers that lose most time, then the sums by operator."""
    total, bound = sum(x.us for x in layers), sum(x.bound_us for x in layers)
    table = Table(title=f"{title}: {total / 1e3:.3f} ms, bound {bound / 1e3:.3f} ms, reached {bound / total:.0%}")
    for name in ("layer", "operator", "kernel", "output"):
        table.add_column(name, overflow="fold")
    for name in ("µs", "share", "GMAC/s", "bound µs", "reached", "lost"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("bound by")

    def row(cells: tuple[str, ...], us: float, macs: int, bound_us: float, by: str) -> None:
        rate = f"{macs / us / 1e3:.1f}" if macs and us else ""
        reached = f"{bound_us / us:.0%}" if us else ""
        table.add_row(*cells, f"{us:.1f}", f"{us / total:.1%}", rate, f"{bound_us:.1f}", reached,
                      f"{max(us - bound_us, 0) / total:.1%}", by)  # fmt: skip

    for x in sorted(layers, key=lambda x: x.bound_us - x.us)[: top or None]:
        row((x.name, x.operator, x.kernel, x.output), x.us, x.macs, x.bound_us, x.bound_by)
    table.add_section()
    groups: dict[tuple[str, str], list[Layer]] = {}
    for x in layers:
        groups.setdefault((x.operator, x.kernel), []).append(x)
    for (operator, kernel), group in sorted(groups.items(), key=lambda g: -sum(x.us for x in g[1])):
        cells = (f"{len(group)} layers", operator, kernel, "")
        row(cells, sum(x.us for x in group), sum(x.macs for x in group), sum(x.bound_us for x in group), "")
    console.print(table)


def plot(layers: list[Layer], core: Core, title: str, file: Path) -> None:
    """Multiply-adds per second over multiply-adds per byte, under the core's roofs; areas are shares of the time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    counted = [x for x in layers if x.macs]
    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    intensity = np.geomspace(0.05, 5000, 200)
    kinds = sorted({x.kind for x in counted}) or ["float32"]
    for kind in kinds:
        axes.axhline(core.macs[kind], color="black", linewidth=0.8)
        axes.text(5000, core.macs[kind], f"{kind} {core.macs[kind]:.0f} GMAC/s ", ha="right", va="bottom", fontsize=8)
    for name, _, speed in core.levels:
        roof = np.minimum(intensity * speed, max(core.macs[k] for k in kinds))
        axes.plot(intensity, roof, linewidth=0.8, label=f"{name} {speed:.0f} GB/s")
    total = sum(x.us for x in layers)
    for kernel in sorted({x.kernel for x in counted}):
        some = [x for x in counted if x.kernel == kernel]
        x = [p.macs / max(p.activation_bytes + p.weight_bytes, 1) for p in some]
        share = [2000 * p.us / total for p in some]
        axes.scatter(x, [p.macs / p.us / 1e3 for p in some], share, alpha=0.5, label=kernel, edgecolors="none")
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("multiply-adds per byte of inputs, outputs and weights")
    axes.set_ylabel("10^9 multiply-adds per second")
    axes.set_title(f"{title}, one thread; areas: share of the time")
    axes.grid(alpha=0.3)
    legend = axes.legend(fontsize=8, loc="lower right")
    for handle in legend.legend_handles:
        if hasattr(handle, "set_sizes"):
            handle.set_sizes([40])
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def open_case(name: str, shape: str | None, int8: bool, folder: Path) -> tuple[Path, dict[str, np.ndarray], str]:
    """The .etm file of a case, its inputs and a title."""
    known = {case.name: case for case in (*cases.real_cases(), *cases.synthetic_cases())}
    if name not in known:
        sys.exit(f"unknown model {name}; a file, or one of {', '.join(known)}")
    case = known[name]
    shape = shape or next(iter(case.shapes))
    if shape not in case.shapes:
        sys.exit(f"{name} has no shape {shape}; it has {', '.join(case.shapes)}")
    engine = "evort-int8" if int8 else "evort"
    _, files = prepare(case, shape, folder, [engine])
    if isinstance(files[engine], str):
        sys.exit(files[engine])
    return files[engine], case.shapes[shape](), f"{name} {shape}{' int8' if int8 else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", nargs="?", help="a case of cases.py or an .etm file; without it, only the core is measured"
    )
    parser.add_argument("--shape", help="of the case; by default its first")
    parser.add_argument("--int8", action="store_true", help="quantize the case first (static)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for the runs that are profiled (2)")
    parser.add_argument(
        "--top", type=int, default=20, help="layers to show, those that lose most first; 0 for all (20)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    options = parser.parse_args()
    console = Console() if sys.stdout.isatty() else Console(width=180)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        core = measure_core(build(folder))
        show_core(core, console)
        layers: list[Layer] = []
        if options.model and options.model.endswith(".etm"):
            from evort_tools.common import random_inputs

            session = evort.load(options.model, threads=1)
            feeds, title = random_inputs(session, {}), Path(options.model).name
        elif options.model:
            file, feeds, title = open_case(options.model, options.shape, options.int8, folder)
            session = evort.load(file, threads=1)
        if options.model:
            layers = measure_layers(session, feeds, core, options.seconds)
            show_layers(layers, title, options.top, console)
    if options.json:
        rows: list[dict[str, Any]] = [asdict(x) | {"bound_us": x.bound_us, "bound_by": x.bound_by} for x in layers]
        report = {"environment": environment() | {"isa": kernels.isa()}, "core": asdict(core), "layers": rows}
        write_atomically(options.json, (json.dumps(report, indent=1) + "\n").encode())
    if options.plot:
        if not layers:
            sys.exit("--plot needs a model")
        plot(layers, core, title, options.plot)


if __name__ == "__main__":
    main()
