"""Measure evort beside other inference engines on the same models and inputs.

    python benchmarks/compare.py                                  # LeNet and every model of ../shared/models
    python benchmarks/compare.py lenet silero_vad --threads 1     # some of them
    python benchmarks/compare.py --synthetic --engines evort,onnxruntime,openvino
    python benchmarks/compare.py --json figures.json --plot figures.png

Every figure comes from a fresh process that does nothing else (`_worker.py`), pinned to as many processors as it has
threads. The engines take turns, round after round, so that a slow minute of the machine hits them all; the table shows
medians over the rounds. Peak memory is `VmHWM` less that of a process with NumPy and the same input but no engine.
Before anything is timed, the engines' results are compared. `docs/benchmarks.md` explains the columns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

import cases
import numpy as np
import onnx
from _engines import ENGINES, Evort
from _worker import Job, measure
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

FIGURES = ("import_ms", "load_ms", "first_ms", "p50_ms", "cpu_ms", "peak_mib")
STEPS_CPU = ("import_cpu_ms", "load_cpu_ms", "first_cpu_ms")  # the processor time of these steps, in the JSON file only
RATIOS = ("load_ms", "first_ms", "p50_ms", "cpu_ms", "peak_mib")
BARS = {"p50_ms": 1.5, "peak_mib": 0.5, "load_ms": 0.2}  # what evort / onnxruntime may be at most
LENET_SIZED = {"lenet", "mnist_8", "syn_lenet"}  # held to a latency ratio of 1
VARIANTS = {"onnxruntime": ("onnxruntime", "onnxruntime-nospin")}  # of several threads; the faster one counts
PEER = "onnxruntime"  # the engine that the bars and the check of results refer to


@dataclass
class Row:
    """One engine on one model, shape and number of threads: the figures of every round, and their medians."""

    case: str
    shape: str
    threads: int
    engine: str
    file_kib: float = 0
    variant: str = ""
    error: str = ""
    difference: float | None = None
    rounds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in FIGURES + STEPS_CPU})

    def median(self, figure: str) -> float | None:
        values = self.rounds[figure]
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class Plan:
    """What is to be measured."""

    engines: list[str]
    threads: list[int]
    rounds: int
    seconds: float


def prepare(case: cases.Case, shape: str, folder: Path, engines: list[str]) -> tuple[Path, dict[str, Path | str]]:
    """Write the input and the files that the engines load; an engine that cannot convert the model gets a message."""
    feeds = case.shapes[shape]()
    feeds_file = folder / f"{case.name}.{shape}.npz"
    np.savez(feeds_file, **feeds)
    files: dict[str, Path | str] = {}
    for engine in engines:
        own = ENGINES[engine].own_model
        source = folder / f"{case.name}{'' if own else '.peer'}.onnx"
        if not source.exists():
            onnx.save(case.model() if own else case.peer_model(), source)
        try:
            files[engine] = ENGINES[engine]().prepare(source, feeds)
        except Exception as error:  # whatever the engine's converter raises is that row's result
            files[engine] = f"conversion: {type(error).__name__}: {error}"
    return feeds_file, files


def check_results(rows: dict[str, Row], files: dict[str, Path | str], feeds: Path, folder: Path) -> None:
    """Set every row's `difference`: the largest deviation from onnxruntime's results, in parts of their range."""
    results: dict[str, list[np.ndarray]] = {}
    for engine, row in rows.items():
        out = folder / f"out.{engine}.npz"
        try:
            measure(Job(engine, str(files[engine]), str(feeds), row.threads, 0, str(out)))
        except RuntimeError as error:
            row.error = str(error)
            continue
        with np.load(out) as data:
            results[engine] = [data[name] for name in data.files]
    for engine in set(results) - {PEER} if PEER in results else ():
        pairs = zip(results[engine], results[PEER], strict=False)  # by position: some converters rename outputs
        rows[engine].difference = max(
            float(np.max(np.abs(a.astype(float).reshape(b.shape) - b)) / (np.ptp(b) or 1))
            if a.size == b.size
            else float("inf")
            for a, b in pairs
        )


def run_case(case: cases.Case, shape: str, threads: int, plan: Plan, folder: Path) -> Iterator[Row | None]:
    """Measure one model at one shape; yields None after every process and at the end the rows."""
    feeds, files = prepare(case, shape, folder, plan.engines)
    rows = {engine: Row(case.name, shape, threads, engine) for engine in plan.engines}
    for engine, file in files.items():
        if isinstance(file, str):
            rows[engine].error = file
        else:
            sizes = (
                [part.stat().st_size for part in file.parent.glob(f"{file.stem}.*")]
                if engine == "ncnn"
                else [file.stat().st_size]
            )
            rows[engine].file_kib = sum(sizes) / 1024
    if case.deterministic:
        check_results({e: r for e, r in rows.items() if not r.error}, files, feeds, folder)
    variants = {e: VARIANTS.get(e, (e,)) if threads > 1 else (e,) for e in plan.engines}
    samples: dict[str, list[dict]] = {}
    for _ in range(plan.rounds):
        bare = measure(Job("bare", "", str(feeds), threads, 0))["memory_kib"]["end"]["VmHWM"]
        for engine in plan.engines:
            for variant in () if rows[engine].error else variants[engine]:
                try:
                    sample = measure(Job(variant, str(files[engine]), str(feeds), threads, plan.seconds))
                except RuntimeError as error:
                    rows[engine].error = str(error)
                    break
                sample["peak_mib"] = (sample["memory_kib"]["end"]["VmHWM"] - bare) / 1024
                samples.setdefault(variant, []).append(sample)
            yield None
    for engine, row in rows.items():
        if not row.error:
            row.variant = min(variants[engine], key=lambda v: statistics.median(s["p50_ms"] for s in samples[v]))
            row.rounds = {figure: [sample[figure] for sample in samples[row.variant]] for figure in row.rounds}
    yield from rows.values()


def over_bar(figure: str, ratio: float, case: str) -> bool:
    """Whether evort misses the project's aim for `figure`."""
    bar = 1.0 if figure == "p50_ms" and case in LENET_SIZED else BARS.get(figure, float("inf"))
    return ratio > bar


def ratios(rows: list[Row]) -> dict[int, dict[str, float]]:
    """For every peer's row (by its index) evort's figures divided by the peer's."""
    ours = {(r.case, r.shape, r.threads): r for r in rows if r.engine == "evort" and r.rounds["p50_ms"]}
    found = {}
    for i, row in enumerate(rows):
        own = ours.get((row.case, row.shape, row.threads))
        if row.engine != "evort" and own and row.rounds["p50_ms"]:
            found[i] = {f: own.median(f) / max(row.median(f), 1e-6) for f in RATIOS}
    return found


def show(rows: list[Row], console: Console) -> None:
    """The table, geometric means of the ratios, and the bars that are missed."""
    table = Table(title="medians; ratios are evort / engine, red where evort misses its bar", show_lines=False)
    for name in ("model", "thr", "engine"):
        table.add_column(name, no_wrap=True)
    for name in (
        "import ms",
        "load ms",
        "first ms",
        "p50 ms",
        "cpu ms",
        "peak MiB",
        "file KiB",
        "load /",
        "first /",
        "p50 /",
        "cpu /",
        "peak /",
        "differs",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    quotients, missed, previous = ratios(rows), [], None
    for i, row in enumerate(rows):
        key = (row.case, row.shape, row.threads)
        if previous and previous[:2] != key[:2]:
            table.add_section()
        label = (f"{row.case} {row.shape}", str(row.threads)) if previous != key else ("", "")
        previous = key
        if row.error:
            table.add_row(*label, row.engine, "[red]failed")
            continue
        cells = [f"{row.median(f):.3g}" if row.median(f) < 100 else f"{row.median(f):.0f}" for f in FIGURES]
        marks = []
        for figure in RATIOS if i in quotients else ():
            ratio = quotients[i][figure]
            red = row.engine == PEER and over_bar(figure, ratio, row.case)
            marks.append(f"[red]{ratio:.2f}[/]" if red else f"{ratio:.2f}")
            if red:
                missed.append((ratio, figure, key))
        differs = "" if row.difference is None else f"{row.difference:.0e}"
        marks = marks or [""] * len(RATIOS)
        table.add_row(*label, row.variant or row.engine, *cells, f"{row.file_kib:.0f}", *marks, differs)
    console.print(table)
    for engine in dict.fromkeys(rows[i].engine for i in quotients):
        for figure in RATIOS:
            values = [q[figure] for i, q in quotients.items() if rows[i].engine == engine and q[figure] > 0]
            if values:
                console.print(
                    f"evort / {engine}, {figure}: geometric mean {statistics.geometric_mean(values):.3f} of "
                    f"{len(values)}, {min(values):.3f} to {max(values):.3f}"
                )
    for row in rows:
        if row.error:
            console.print(
                f"[red]failed[/] {row.engine}, {row.case} {row.shape}: {escape(' '.join(row.error.split())[:300])}",
                soft_wrap=True,
            )
    for ratio, figure, (case, shape, threads) in sorted(missed, reverse=True):
        console.print(f"[red]bar missed[/] {figure} {ratio:.2f} x {PEER}: {case} {shape}, {threads} threads")


def environment() -> dict[str, object]:
    """The machine and the versions, for the JSON file."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    versions = {}
    for package in ("evort", "numpy", "onnx", "onnxruntime", "openvino", "MNN", "ncnn"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": model,
        "processors": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def plot(rows: list[Row], file: Path) -> None:
    """Bars of evort / peer for latency and peak memory (and, without evort, of the latency itself)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    quotients = ratios(rows)
    panels = [("p50_ms", "latency, evort / engine"), ("peak_mib", "peak memory, evort / engine")]
    picks = [(rows[i], q) for i, q in quotients.items()]
    if not picks:
        panels = [("p50_ms", "latency, ms"), ("peak_mib", "peak memory over NumPy, MiB")]
        picks = [(r, {f: r.median(f) for f in FIGURES}) for r in rows if r.rounds["p50_ms"]]
    labels = [f"{r.case} {r.shape} t{r.threads} {r.engine}" for r, _ in picks]
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 1 + 0.28 * len(picks)), sharey=True, layout="constrained")
    for axis, (name, title) in zip(axes, panels, strict=True):
        values = [max(q[name], 1e-3) for _, q in picks]
        axis.barh(labels, values, color=["tab:green" if v <= 1 else "tab:red" for v in values] if quotients else None)
        axis.set_xscale("log")
        axis.set_title(title)
        axis.grid(axis="x", alpha=0.4)
        if quotients:
            axis.axvline(1, color="black", linewidth=0.8)
            axis.axvline(BARS[name], color="black", linewidth=0.8, linestyle="--")
    axes[0].invert_yaxis()
    figure.savefig(file, dpi=110)


def choose(names: list[str], synthetic: bool) -> list[cases.Case]:
    """The cases of these names, or all real (or synthetic) ones."""
    known = {case.name: case for case in (*cases.real_cases(), *cases.synthetic_cases())}
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"unknown model {', '.join(unknown)}; there are {', '.join(known)}")
    if names:
        return [known[name] for name in names]
    return cases.synthetic_cases() if synthetic else cases.real_cases()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names of cases; by default every real one")
    parser.add_argument("--synthetic", action="store_true", help="the networks of models.py instead of the real ones")
    parser.add_argument(
        "--engines",
        default="",
        help=f"of {', '.join(list(ENGINES)[1:])}; by default evort, "
        "onnxruntime and whichever of the others are installed",
    )
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of each latency measurement")
    parser.add_argument("--first-shape", action="store_true", help="only the first shape of every model")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    args = parser.parse_args()

    usual = ("evort", "onnxruntime", "openvino", "mnn", "ncnn")
    engines = [e for e in args.engines.split(",") if e] or [e for e in usual if not ENGINES[e].missing()]
    for engine in engines:
        if engine not in ENGINES:
            sys.exit(f"unknown engine {engine}; there are {', '.join(ENGINES)}")
        if missing := ENGINES[engine].missing():
            sys.exit(f"{engine} needs {', '.join(missing)}, which is not installed")
    plan = Plan(engines, [int(t) for t in args.threads.split(",")], args.rounds, args.seconds)
    if max(plan.threads) > len(os.sched_getaffinity(0)):
        sys.exit(f"more threads than processors ({len(os.sched_getaffinity(0))}) would measure the scheduler")

    todo = [
        (case, shape, threads)
        for case in choose(args.models, args.synthetic)
        for shape in list(case.shapes)[: 1 if args.first_shape else None]
        for threads in plan.threads
    ]
    rows: list[Row] = []
    console = Console() if sys.stdout.isatty() else Console(width=200)
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, transient=True) as progress:
        total = progress.add_task("", total=len(todo) * len(engines) * plan.rounds)
        for case, shape, threads in todo:
            progress.update(total, description=f"{case.name} {shape}, {threads} threads")
            for row in run_case(case, shape, threads, plan, Path(folder)):
                if row:
                    rows.append(row)
                else:
                    progress.advance(total)
    show(rows, console)
    for note in dict.fromkeys(f"{c.name}: for the other engines {c.peer_note}" for c, _, _ in todo if c.peer_note):
        console.print(note)
    if args.json:
        medians = [asdict(r) | {f: r.median(f) for f in r.rounds} for r in rows]
        args.json.write_text(json.dumps({"environment": environment(), "rows": medians}, indent=1) + "\n")
    if args.plot:
        plot(rows, args.plot)
    if any(row.error for row in rows if row.engine == Evort.module):
        sys.exit("evort failed on some models")


if __name__ == "__main__":
    main()
