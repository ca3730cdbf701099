"""Measure evort's quantizer beside onnxruntime's: accuracy, file size, memory and latency of what they make.

    python benchmarks/quantization.py                             # everything, for LeNet and ../shared/models
    python benchmarks/quantization.py lenet ppocr_cls --parts accuracy
    python benchmarks/quantization.py --json results.json         # goes on where an earlier run stopped

accuracy  each scheme of both tools, with the same calibration samples, judged on the same test samples; beside it what
          evort's own tool tells its user. Agreement has its 95 % confidence interval, and is missed where it is less
          than onnxruntime's by more than chance
memory    a static int8 model beside evort's float32 weights and arena: its own, and the peak of resident memory that a
          session of it adds to a process: a first one (with the pages of evort's code that it touches), a second, and
          a second one that starts from a kept plan
latency   static int8 / evort float32 / onnxruntime's int8 (the faster of static and dynamic), alternating, one thread
tool      peak memory of `evort quantize` on a model of 67 MB, in parts of its size

Red is a bar missed (docs/quantization-measured.md). Every job is a process of its own (`_quantizers.py`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cases
import numpy as np
from _quantizers import WAYS, Job, Way, measure
from _worker import environment
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

UNCHANGED = 0.95  # of the float file's size, or the other way round: a tool has quantized next to nothing
PARTS = ("accuracy", "memory", "latency", "tool")
STATIC = WAYS[0]
BEST = ("sqnr", "agreement")  # in which each scheme is to be no worse than onnxruntime's best
PEERS = tuple(way for way in WAYS if way.tool != "evort")
LATENCY_BAR, MEMORY_BAR, TOOL_BAR, LUT_PSNR, LUT_SIZE = 0.6, 0.35, 2.5, 40.0, 0.36
# LeNet: scheme -> points of accuracy that may be lost, and the share of float32's file; None where there is no bar.
LENET = {"static int8": (0.05, 0.27), "dynamic int8": (0.05, 0.27), "dynamic int16": (0.05, None),
         "int4 groups of 32": (0.2, None), "int4 groups of 64": (0.2, 0.16)}  # fmt: skip
# Told that size matters; else layers that are faster in float stay in float, and so large.
SMALLEST = Way("static int8", "evort", "smallest", {"prefer": "size"})
EXTRA = {
    "lenet": (SMALLEST, Way("int4 groups of 64", "evort", options={"scheme": "weight-only", "block": 64})),
    "lut3d_96": (SMALLEST,),
}


@dataclass
class Store:
    """Results by key, kept in a file after each job where one is named."""

    path: Path | None
    again: bool

    def __post_init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}
        if self.path is not None and self.path.exists() and not self.again:
            self.found = json.loads(self.path.read_text())["results"]

    def get(self, key: str, make: Any) -> dict[str, Any]:
        if key not in self.found:
            self.found[key] = make()
            self.save()
        return self.found[key]

    def save(self) -> None:
        if self.path is not None:
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps({"results": self.found}, indent=1) + "\n")
            os.replace(temporary, self.path)


def ways_for(name: str) -> tuple[Way, ...]:
    return *WAYS, *EXTRA.get(name, ())


def file_of(folder: Path, name: str, way: Way) -> Path:
    label = way.label.replace(" ", "_")
    return folder / f"{name}.{label}.{'etm' if way.tool == 'evort' else 'onnx'}"


def accuracy(name: str, way: Way, folder: Path, store: Store, timeout: float) -> dict[str, Any]:
    job, key = Job(name, way, str(file_of(folder, name, way)), timeout), f"accuracy/{name}/{way.label}"
    known = store.found.get(key, {})
    if known.get("agreement") is not None and "decisions" not in known:  # from before they were counted
        del store.found[key]
    return store.get(key, lambda: measure(job))


def quantized(name: str, way: Way, folder: Path, store: Store, timeout: float) -> Path | None:
    """The quantized model's file, made again where only the figures are known; None where the tool fails."""
    file = file_of(folder, name, way)
    if not file.exists():
        if "error" in accuracy(name, way, folder, store, timeout):
            return None
        if not file.exists():
            measure(Job(name, way, str(file), timeout))
    return file if file.exists() else None


def float_files(name: str, folder: Path) -> tuple[Path, Path, Path]:
    """(evort's float model, onnxruntime's, an input as npz)."""
    import onnx
    from _quantizers import model_of, samples

    from evort import etm
    from evort_tools.convert import Options, convert_model

    own, peer = model_of(name)
    mine, theirs, feeds = folder / f"{name}.float.etm", folder / f"{name}.float.onnx", folder / f"{name}.npz"
    etm.write(convert_model(own, Options()), mine)
    onnx.save(peer, theirs)
    np.savez(feeds, **samples(name, 1, True, own)[0])
    return mine, theirs, feeds


RESIDENT = """
import sys
import numpy, evort
def now(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))
def forget():  # the peak so far
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
with numpy.load(sys.argv[1]) as data:
    feeds = {key: data[key] for key in data.files}
kept = []
for path in sys.argv[3:]:
    forget()
    before = now("VmRSS")
    session = evort.load(path, threads=1, cache=sys.argv[2] or None)
    for _ in range(2):
        session.run(feeds)
    print(now("VmHWM") - before)
    kept.append(session)
"""


def resident(file: Path, feeds: Path, folder: Path) -> dict[str, int]:
    """Bytes of resident memory that a first and a second session of a model add to a process, at their peaks; results
    of a run among them; and a second one from a plan that a process before has kept. Each has a file of its own, so
    that nothing is shared."""
    copies = [folder / f"resident{i}.etm" for i in range(2)]
    for copy in copies:
        shutil.copy(file, copy)

    def measured(plans: str) -> list[int]:
        command = [sys.executable, "-P", "-c", RESIDENT, feeds, plans, *copies]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
        return [int(number) for number in done.stdout.split()]

    first, second = measured("")
    with tempfile.TemporaryDirectory() as plans:
        measured(plans)
        _, kept = measured(plans)
    for copy in copies:
        copy.unlink()
    return {"resident": first, "second": second, "kept": kept}


def memory(name: str, folder: Path, store: Store, timeout: float) -> dict[str, Any]:
    """Planned bytes of both sessions, and what running either model adds to a process in which evort is loaded."""

    def make() -> dict[str, Any]:
        import evort

        file = quantized(name, STATIC, folder, store, timeout)
        if file is None:
            return {"error": "no int8 model"}
        real, _, feeds = float_files(name, folder)
        found = {}
        with np.load(feeds) as data:
            given = {key: data[key] for key in data.files}
        for what, path in (("float32", real), ("int8", file)):
            session = evort.load(path, threads=1)
            session.run(given)
            used = session.memory()
            found[what] = {"arena": used.arena, "weights": os.stat(path).st_size}
            found[what] |= resident(path, feeds, folder)
        return found

    return store.get(f"memory/{name}", make)


def latency(name: str, folder: Path, store: Store, timeout: float, seconds: float) -> dict[str, Any]:
    """Milliseconds of processor time (the least of many turns, each of as many runs as take a millisecond, so that the
    clock, and what other engines leave in the caches, do not count) by engine."""

    def make() -> dict[str, Any]:
        from _quantizers import runner

        real, peer, feeds = float_files(name, folder)
        files = {"evort float32": (real, "evort"), "onnxruntime float32": (peer, "onnxruntime")}
        for label, way in (("evort int8", STATIC), *((f"onnxruntime {w.label}", w) for w in PEERS
                           if w.method in ("minmax", "dynamic"))):  # fmt: skip
            file = quantized(name, way, folder, store, timeout)
            if file is not None:
                files[label] = file, way.tool
        with np.load(feeds) as data:
            given = {key: data[key] for key in data.files}
        runs = {label: runner(str(file), tool) for label, (file, tool) in files.items()}
        times: dict[str, list[float]] = {label: [] for label in runs}
        counts = {}
        for label, run in runs.items():
            run(given)
            start = time.perf_counter()
            run(given)
            counts[label] = math.ceil(1e-3 / (time.perf_counter() - start))
        end = time.perf_counter() + seconds * len(runs)
        while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
            for label, run in runs.items():
                start = time.process_time()
                for _ in range(counts[label]):
                    run(given)
                times[label].append((time.process_time() - start) / counts[label])
        return {label: 1e3 * min(values) for label, values in times.items()}

    return store.get(f"latency/{name}", make)


TOOL = """
import sys
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
import numpy, evort_tools.quantize, evort_tools.convert, onnx
before = peak()
evort_tools.quantize(sys.argv[1], sys.argv[2], calib=sys.argv[3])
print(peak() - before)
"""


def tool(folder: Path, store: Store) -> dict[str, Any]:
    """Peak memory of the quantizer over that of its imports, on four products of 2048 x 2048."""

    def make() -> dict[str, Any]:
        import onnx
        from onnx import helper, numpy_helper

        rng = np.random.default_rng(0)
        weights = [numpy_helper.from_array((rng.random((2048, 2048), np.float32) - 0.5) / 900, f"w{i}")
                   for i in range(4)]  # fmt: skip
        nodes = [helper.make_node("MatMul", [f"h{i}" if i else "x", f"w{i}"], [f"h{i + 1}"]) for i in range(4)]
        info = [helper.make_tensor_value_info(n, 1, ["N", 2048]) for n in ("x", "h4")]
        graph = helper.make_graph(nodes, "large", info[:1], info[1:], weights)
        source = folder / "large.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), source)
        np.savez(folder / "large.npz", x=rng.random((3, 2048), np.float32))
        command = [sys.executable, "-P", "-c", TOOL, source, folder / "large.etm", folder / "large.npz"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
        return {"model": source.stat().st_size, "peak": int(done.stdout.split()[-1])}

    return store.get("tool", make)


# Tables


def mark(text: str, good: bool) -> str:
    return text if good else f"[red]{text}[/]"


def number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def half_width(share: float, decisions: int) -> float:
    """Half the width of a share's 95 % confidence interval (Wilson), as if decisions were independent."""
    z = 1.96
    spread = share * (1 - share) / decisions + (z / (2 * decisions)) ** 2
    return z * math.sqrt(spread) / (1 + z * z / decisions)


def as_good(mine: Mapping[str, Any], peer: Mapping[str, Any]) -> bool:
    """Whether a share of agreement is no less than another beyond what chance makes of as many decisions."""
    spread = sum(row["agreement"] * (1 - row["agreement"]) / row["decisions"] for row in (mine, peer))
    return mine["agreement"] >= peer["agreement"] - 1.96 * math.sqrt(spread) - 1e-9


def unchanged(row: Mapping[str, Any]) -> bool:
    """Whether a tool has quantized next to nothing, as the size of its file tells."""
    return UNCHANGED <= row["file"] / row["float_file"] <= 1 / UNCHANGED


def best_peer(store: Store, name: str, scheme: str, key: str) -> dict[str, Any] | None:
    """The row of onnxruntime's method that has the best SQNR, or agreement, in a scheme; None where it has none."""
    rows = [store.found.get(f"accuracy/{name}/{w.label}", {}) for w in PEERS if w.scheme == scheme]
    rows = [row for row in rows if "file" in row and not unchanged(row)]
    return max((row for row in rows if row.get(key) is not None), key=lambda row: row[key], default=None)


def accuracy_table(store: Store, names: list[str]) -> Table:
    table = Table("model", "scheme", "tool", title="quantized models on test samples, against float32")
    for head in ("SQNR, dB", "the tool says", "agreement, %", "file / float32's", "tool's cpu s"):
        table.add_column(head, justify="right")
    for name in names:
        for way in ways_for(name):
            row = store.found.get(f"accuracy/{name}/{way.label}")
            if row is None:
                continue
            label = (name, way.scheme, f"{way.tool} {way.method}".strip())
            if "error" in row:
                table.add_row(*label, f"[dim]fails: {row['error'][:60]}[/]", "", "", "", "")
                continue
            if way.tool != "evort" and unchanged(row):
                table.add_row(*label, "[dim]quantizes nothing[/]", "", "", "", "")
                continue
            best = {k: best_peer(store, name, way.scheme, k) if way.tool == "evort" else None for k in BEST}
            share, agrees = row["agreement"], ""
            if share is not None:
                text = f"{100 * share:.2f} ± {100 * half_width(share, row['decisions']):.2f}"
                agrees = mark(text, best["agreement"] is None or as_good(row, best["agreement"]))
            good = best["sqnr"] is None or row["sqnr"] >= best["sqnr"]["sqnr"]
            table.add_row(*label, mark(number(row["sqnr"]), good), number(row.get("told")),
                          agrees, f"{row['file'] / row['float_file']:.3f}", number(row["cpu_seconds"]))  # fmt: skip
        table.add_section()
    return table


def lenet_table(store: Store) -> Table | None:
    table = Table("scheme", "tool", "accuracy, %", "lost", "file / float32's", title="LeNet, all 10,000 test digits")
    for way in ways_for("lenet"):
        row = store.found.get(f"accuracy/lenet/{way.label}", {})
        if "accuracy" not in row:
            continue
        lost, ratio = row["float_accuracy"] - row["accuracy"], row["file"] / row["float_file"]
        most, largest = LENET.get(way.scheme, (None, None)) if way.tool == "evort" else (None, None)
        if way == STATIC:
            largest = None  # made for speed; the smallest one is below
        table.add_row(way.scheme, f"{way.tool} {way.method}".strip(), f"{row['accuracy']:.2f}",
                      mark(f"{lost:.2f}", most is None or lost <= most + 1e-9),
                      mark(f"{ratio:.4f}", largest is None or ratio <= largest))  # fmt: skip
    return table if table.row_count else None


def speed_table(store: Store, names: list[str]) -> Table | None:
    table = Table("model", title="static int8, one thread, processor time; memory in parts of float32's")
    for head in (
        "evort int8, ms",
        "/ evort float32",
        "/ onnxruntime int8",
        "weights + arena",
        "a session adds",
        "with a kept plan",
        "the first adds",
    ):
        table.add_column(head, justify="right")
    for name in names:
        times, used = store.found.get(f"latency/{name}", {}), store.found.get(f"memory/{name}", {})
        cells = ["", "", ""]
        if "evort int8" in times:
            mine = times["evort int8"]
            real = mine / times["evort float32"]
            peers = [t for label, t in times.items() if label.startswith("onnxruntime") and "int8" in label]
            cells = [f"{mine:.3f}", mark(f"{real:.2f}", real <= LATENCY_BAR)]
            cells.append(mark(f"{mine / min(peers):.2f}", mine < min(peers)) if peers else "")
        cells += ["", "", "", ""]
        if "int8" in used:
            whole = used["float32"]["arena"] + used["float32"]["weights"]
            planned = (used["int8"]["arena"] + used["int8"]["weights"]) / whole
            added = [used["int8"].get(key) for key in ("second", "kept")]
            shares = [planned, *(None if n is None else n / whole for n in added)]
            cells[3:6] = ["" if share is None else mark(f"{share:.2f}", share <= MEMORY_BAR) for share in shares]
            cells[6] = f"{used['int8']['resident'] / whole:.2f}"
        if any(cells):
            table.add_row(name, *cells)
    return table if table.row_count else None


def show(store: Store, names: list[str], console: Console) -> None:
    console.print(accuracy_table(store, names))
    for table in (lenet_table(store) if "lenet" in names else None, speed_table(store, names)):
        if table is not None:
            console.print(table)
    for way in (STATIC, SMALLEST) if "lut3d_96" in names else ():
        row = store.found.get(f"accuracy/lut3d_96/{way.label}", {})
        if "psnr" in row:
            ratio, psnr = row["file"] / row["float_file"], row["psnr"]
            size = mark(f"{ratio:.3f}", way != SMALLEST or ratio <= LUT_SIZE)
            console.print(f"lut3d_96 {way.label}: PSNR {mark(number(psnr), psnr >= LUT_PSNR)} dB against the shipped "
                          f"pictures, file {size} of float32's")  # fmt: skip
    if "tool" in store.found:
        ratio = store.found["tool"]["peak"] / store.found["tool"]["model"]
        console.print(f"peak memory of the tool: {mark(f'{ratio:.2f}', ratio <= TOOL_BAR)} x the model's size")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names of cases; by default every real one")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results so far are read from it and kept in it")
    parser.add_argument("--again", action="store_true", help="measures all anew, whatever the JSON file has")
    parser.add_argument("--show", action="store_true", help="only shows what the JSON file has")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where quantized models stay, to be used again")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each engine's latency loop")
    parser.add_argument("--timeout", type=float, default=900, help="seconds after which a tool has failed")
    args = parser.parse_args()
    import calibration

    every = (*cases.real_cases(), *cases.synthetic_cases())
    known = {case.name: case for case in every if calibration.known(case.name)}
    names = args.models or [c.name for c in cases.real_cases() if calibration.known(c.name)]
    parts = args.parts.split(",")
    if unknown := [n for n in names if n not in known] + [p for p in parts if p not in PARTS]:
        sys.exit(f"unknown: {', '.join(unknown)}; models: {', '.join(known)}; parts: {', '.join(PARTS)}")
    store = Store(args.json, args.again)
    console = Console() if sys.stdout.isatty() else Console(width=160)
    if not args.show:
        with tempfile.TemporaryDirectory() as temporary, Progress(console=console, transient=True) as progress:
            folder = args.keep or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            steps = [(part, name) for part in PARTS if part in parts for name in (names if part != "tool" else [""])]
            bar = progress.add_task("", total=len(steps))
            for part, name in steps:
                progress.update(bar, description=f"{part} {name}")
                if part == "accuracy":
                    for way in ways_for(name):
                        progress.update(bar, description=f"{name}: {way.label}")
                        accuracy(name, way, folder, store, args.timeout)
                elif part == "memory":
                    memory(name, folder, store, args.timeout)
                elif part == "latency":
                    latency(name, folder, store, args.timeout, args.seconds)
                else:
                    tool(folder, store)
                progress.advance(bar)
    show(store, names, console)


if __name__ == "__main__":
    main()
