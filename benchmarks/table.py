"""The table of evort beside its peers: latency in float32 and int8, memory and start, on the models of the set.

    python benchmarks/table.py                                # every model, 1 and 2 threads: an hour or two
    python benchmarks/table.py lenet syn_bert_mini --rounds 3 # some of them
    python benchmarks/table.py --json table.json --plot table.png --markdown table.md
    python benchmarks/table.py --read table.json --markdown - # the same tables from figures that were kept

Figures are made as compare.py makes them: fresh processes, taking turns, medians over the rounds. The best peer of a
row is bold; ratios are evort / best peer, so below 1 evort is better. In int8, the best peer is the best int8 of any,
or the best float32 where that is better. A peer whose float32 results are off by more than 1% of their range counts as
wrong. Start is import, loading and first answer together, without and with a plan that an earlier process has kept
(`evort.load(..., cache=...)`); OpenVINO keeps what it compiles, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import compare
from _engines import ENGINES
from compare import Row, environment
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from evort_tools.common import write_atomically

MODELS = {
    "lenet": "LeNet 28x28",
    "mnist_8": "mnist_8 28x28",
    "syn_mobilenet_v2": "MobileNetV2 224",
    "syn_resnet18": "ResNet-18 224",
    "syn_unet3d": "3-D U-Net 32x64x64",
    "syn_bert_mini": "BERT-mini, 128 tokens",
    "ppocr_det": "PP-OCR det 480x480",
    "ppocr_rec": "PP-OCR rec 48x320",
    "ppocr_cls": "PP-OCR cls 48x192",
    "silero_vad": "silero-vad",
    "magika": "magika",
}
FLOAT = {
    "evort": "evort",
    "evort-kept": "evort, kept plan",
    "onnxruntime": "onnxruntime",
    "openvino": "OpenVINO",
    "mnn": "MNN",
    "ncnn": "ncnn",
}
INT8 = {
    "evort-int8": "evort int8",
    "evort-int8-kept": "evort int8, kept plan",
    "onnxruntime-int8": "onnxruntime int8",
    "openvino-int8": "OpenVINO int8",
    "openvino-nncf": "OpenVINO NNCF",
}
WRONG = 0.01  # of the results' range
# evort's engines and what they are called; those with a kept plan differ in their start, and are shown there only.
OWN = {
    "evort": "float32",
    "evort-kept": "float32, kept plan",
    "evort-int8": "int8",
    "evort-int8-kept": "int8, kept plan",
}


def latency_ms(row: Row, cpu: bool) -> float:
    return row.median("cpu_ms" if cpu else "p50_ms")


def peak_mib(row: Row, cpu: bool) -> float:
    return row.median("peak_mib")


def start_ms(row: Row, cpu: bool) -> float:
    return sum(row.median(f"{step}_{'cpu_' * cpu}ms") for step in ("import", "load", "first"))


def peers_of(own: str) -> tuple[str, ...]:
    """Whom one of evort's engines is held against."""
    engines = (*INT8, *FLOAT) if "int8" in own else tuple(FLOAT)
    return tuple(engine for engine in engines if engine not in OWN)


def shown(engine: str, what: str) -> bool:
    return what == "start" or not engine.endswith("-kept")


# What a table shows: its title, the figure of a row, and the bars for the geometric means of evort's ratios in float32
# and int8.
FIGURES = {
    "latency": ("latency, ms", latency_ms, (0.75, 0.70)),
    "memory": ("peak memory over a NumPy process, MiB", peak_mib, (0.6, 0.6)),
    "start": ("start: import, load and first answer, ms", start_ms, (0.5, 0.5)),
}


def state(row: Row | None) -> str:
    """Why a row has no figure: "" where it has one."""
    if row is None:
        return "-"
    if row.error or not row.rounds["p50_ms"]:
        return "fails"
    if row.engine in FLOAT and row.difference is not None and not row.difference <= WRONG:
        return "wrong"
    return ""


def number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def figures(rows: list[Row], threads: int, what: str, cpu: bool) -> list[dict[str, Any]]:
    """For each model: the cells by engine, the best peers and evort's ratios to them, in float32 and int8."""
    value = FIGURES[what][1]
    found = []
    for case in dict.fromkeys(row.case for row in rows):
        mine = {row.engine: row for row in rows if row.case == case and row.threads == threads}
        known = {engine: value(row, cpu) for engine, row in mine.items() if not state(row)}
        best: dict[str, str] = {}
        for own in OWN:
            others = {engine: known[engine] for engine in peers_of(own) if engine in known}
            if others and shown(own, what):
                best[own] = min(others, key=others.get)
        ratios = {own: known[own] / max(known[peer], 1e-6) for own, peer in best.items() if own in known}
        cells = {e: number(known[e]) if e in known else state(mine.get(e)) for e in (*FLOAT, *INT8)}
        found.append({"case": case, "cells": cells, "best": best, "ratios": ratios})
    return found


def summary(rows: list[Row], threads: int, what: str, cpu: bool) -> list[str]:
    """Geometric means of the ratios beside the bars, and the models above the best peer."""
    found = []
    lines = figures(rows, threads, what, cpu)
    for own, kind in OWN.items():
        bar = FIGURES[what][2]["int8" in own]
        ratios = {line["case"]: line["ratios"][own] for line in lines if own in line["ratios"]}
        if not ratios:
            continue
        over = [f"{MODELS.get(case, case)} {r:.2f}" for case, r in ratios.items() if r > 1]
        found.append(
            f"{what}, {kind}, {threads} thread{'s' * (threads > 1)}: geometric mean "
            f"{statistics.geometric_mean(ratios.values()):.2f} of {len(ratios)} models (bar {bar:.2f})"
            + (f"; behind the best peer: {', '.join(over)}" if over else "; never behind the best peer")
        )
    return found


def scaling(rows: list[Row]) -> str:
    """How much faster evort is with two threads than with one."""
    one, two = ({row.case: row for row in rows if row.engine == "evort" and row.threads == t} for t in (1, 2))
    both = [case for case in one if case in two and not state(one[case]) and not state(two[case])]
    parts = [f"{MODELS.get(case, case)} {one[case].median('p50_ms') / two[case].median('p50_ms'):.2f}" for case in both]
    return f"speed-up by a second thread: {', '.join(parts)}" if parts else ""


def grid(rows: list[Row], threads: int, what: str, cpu: bool, bold: str) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; the best peer between two `bold` marks."""
    columns = {e: name for e, name in (FLOAT | INT8).items() if shown(e, what) and any(row.engine == e for row in rows)}
    head = ["model"]
    for engine, name in columns.items():
        head += [name, "ratio"] if engine.startswith("evort") else [name]
    body = []
    for line in figures(rows, threads, what, cpu):
        cells = [MODELS.get(line["case"], line["case"])]
        bests = set(line["best"].values())
        for engine in columns:
            cell = line["cells"][engine]
            cells.append(f"{bold}{cell}{bold}" if engine in bests else cell)
            if engine.startswith("evort"):
                ratio = line["ratios"].get(engine)
                cells.append("" if ratio is None else f"{ratio:.2f}")
        body.append(cells)
    return head, body


def about() -> str:
    machine = environment()
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['cpu']}, {machine['processors']} processors; Python {machine['python']}, {versions}"


def markdown(rows: list[Row], cpu: bool, where: str, when: str) -> str:
    """Everything as text for docs/benchmarks.md."""
    parts = [f"{when}, {where}{'; processor time' * cpu}.\n"]
    for threads in sorted({row.threads for row in rows}):
        for what, (title, _, _) in FIGURES.items():
            head, body = grid(rows, threads, what, cpu, "**")
            parts.append(f"{title}, {threads} thread{'s' * (threads > 1)}:\n")
            parts.append(
                "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body)) + "\n"
            )
            parts.append("\n".join(f"- {line}" for line in summary(rows, threads, what, cpu)) + "\n")
    if text := scaling(rows):
        parts.append(f"- {text}\n")
    return "\n".join(parts)


def show(rows: list[Row], cpu: bool, console: Console) -> None:
    for threads in sorted({row.threads for row in rows}):
        for what, (title, _, _) in FIGURES.items():
            head, body = grid(rows, threads, what, cpu, "\0")
            table = Table(title=f"{title}, {threads} thread{'s' * (threads > 1)}")
            for i, name in enumerate(head):
                table.add_column(name, justify="right" if i else "left")
            for cells in body:
                table.add_row(*(f"[bold]{c.strip(chr(0))}[/]" if "\0" in c else c for c in cells))
            console.print(table)
            for line in summary(rows, threads, what, cpu):
                console.print(line, soft_wrap=True)
    console.print(scaling(rows), soft_wrap=True)
    for row in rows:
        if row.error:
            console.print(
                f"{row.engine}, {row.case}: {' '.join(row.error.split())[-200:]}", soft_wrap=True, markup=False
            )


def plot(rows: list[Row], cpu: bool, file: Path) -> None:
    """Ratios to the best peer: latency, memory and start; float32 and int8."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    threads = min(row.threads for row in rows)
    figure, panels = pyplot.subplots(1, len(FIGURES), figsize=(13, 5), sharey=True, layout="constrained")
    for axis, (what, (_, _, bars)) in zip(panels, FIGURES.items(), strict=True):
        lines = figures(rows, threads, what, cpu)
        labels = [MODELS.get(line["case"], line["case"]) for line in lines]
        kept = "-kept" * any(row.engine == "evort-kept" and what == "start" for row in rows)
        for offset, own, kind, colour in (
            (-0.2, f"evort{kept}", "float32", "tab:blue"),
            (0.2, f"evort-int8{kept}", "int8", "tab:orange"),
        ):
            values = [line["ratios"].get(own, 0) for line in lines]
            axis.barh([i + offset for i in range(len(lines))], values, 0.4, label=kind, color=colour)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.axvline(bars[0], color="black", linewidth=0.8, linestyle="--")
        axis.set_yticks(range(len(lines)), labels)
        axis.set_title(f"{what}{', kept plan' * bool(kept)}: evort / best peer")
        axis.grid(axis="x", alpha=0.4)
    panels[0].invert_yaxis()
    panels[-1].legend()
    figure.suptitle(f"{threads} thread{'s' * (threads > 1)}; left of the solid line evort is better, dashed: its aim")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def measure(options: argparse.Namespace, engines: list[str], console: Console) -> list[Row]:
    """The rows of every model and number of threads."""
    plan = compare.Plan(engines, [int(t) for t in options.threads.split(",")], options.rounds, options.seconds)
    if max(plan.threads) > len(os.sched_getaffinity(0)):
        sys.exit(f"more threads than processors ({len(os.sched_getaffinity(0))}) would measure the scheduler")
    todo = [(case, t) for case in compare.choose(options.models or list(MODELS), False) for t in plan.threads]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, transient=True) as progress:
        files = options.files or Path(folder)
        files.mkdir(parents=True, exist_ok=True)
        total = progress.add_task("", total=len(todo) * len(engines) * plan.rounds)
        for case, threads in todo:
            progress.update(total, description=f"{case.name}, {threads} threads")
            for row in compare.run_case(case, next(iter(case.shapes)), threads, plan, files):
                if row:
                    rows.append(row)
                else:
                    progress.advance(total)
            if options.json:  # kept as far as it got
                keep(rows, options.json)
    return rows


def keep(rows: list[Row], file: Path) -> None:
    report = {"date": date.today().isoformat(), "about": about(), "environment": environment(),
              "rows": [asdict(row) for row in rows]}  # fmt: skip
    write_atomically(file, (json.dumps(report, indent=1) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; by default all")
    parser.add_argument("--engines", default="", help="by default evort in both precisions, and every peer installed")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of each latency measurement")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for 1 thread on a busy machine")
    parser.add_argument("--files", type=Path, metavar="FOLDER", help="keep converted and quantized models there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--read", type=Path, metavar="FILE", help="show the figures of this file, and measure nothing")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables as Markdown; - for standard output")
    options = parser.parse_args()
    console = Console() if sys.stdout.isatty() else Console(width=180)
    cpu = options.clock == "cpu"
    if options.read:
        kept = json.loads(options.read.read_text())
        rows, where, when = [Row(**row) for row in kept["rows"]], kept["about"], kept["date"]
    else:
        usual = (*FLOAT, *INT8)
        engines = [e for e in options.engines.split(",") if e] or [e for e in usual if not ENGINES[e].missing()]
        if unknown := [e for e in engines if e not in usual or ENGINES[e].missing()]:
            sys.exit(f"not an engine of this table, or not installed: {', '.join(unknown)}")
        rows, where, when = measure(options, engines, console), about(), date.today().isoformat()
    if options.markdown == "-":
        print(markdown(rows, cpu, where, when))
    else:
        show(rows, cpu, console)
        if options.markdown:
            write_atomically(options.markdown, markdown(rows, cpu, where, when).encode())
    if options.plot:
        plot(rows, cpu, options.plot)


if __name__ == "__main__":
    main()
