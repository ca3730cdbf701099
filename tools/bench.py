"""Measures a model: latency (median of many runs, for each thread count), and memory.

With --memory, a fresh process loads and runs the model, and its peak resident memory over that of a bare NumPy process
is reported; with --budget too, the exit code is 1 where it is over. With --start, fresh processes tell how long a start
takes - importing evort, loading the model, its first answer - without and with a kept plan (`evort.load(..., cache=)`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

import evort
from evort_tools.common import (
    add_shape_argument,
    bytes_text,
    file_size,
    open_session,
    parse_size,
    parse_threads,
    print_json,
    shapes_of,
    source,
    tried_inputs,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an .etm file (or .onnx, converted in memory)")
    add_shape_argument(parser)
    parser.add_argument("--threads", type=parse_threads, default=[1], metavar="N,N", help="thread counts (1)")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long to measure each (1)")
    parser.add_argument("--memory", action="store_true", help="measure memory, in a fresh process, instead of time")
    parser.add_argument("--start", action="store_true", help="measure starts, in fresh processes, instead of time")
    parser.add_argument("--budget", type=parse_size, metavar="SIZE", help="with --memory: most peak memory, like 8MB")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    if args.budget is not None and not args.memory:
        raise ValueError("--budget goes with --memory")
    if args.memory and args.start:
        raise ValueError("--memory and --start are two measurements")
    return run_memory(args) if args.memory else run_start(args) if args.start else run_latency(args)


def run_latency(args: argparse.Namespace) -> int:
    rows = []
    opened = source(args.model)
    for threads in args.threads:
        start = time.perf_counter()
        session = evort.load(opened, threads=threads)
        load = time.perf_counter() - start
        feeds = tried_inputs(session, shapes_of(args))
        rows.append({"threads": threads, "load_ms": load * 1e3, **latency(session, feeds, args.seconds)})
    if args.json:
        print_json({"model": args.model, "file_bytes": file_size(args.model), "latency": rows})
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("threads", "load ms", "p50 ms", "p90 ms", "best ms", "runs", title=args.model)
    for row in rows:
        table.add_row(str(row["threads"]), *(f"{row[k]:.3f}" for k in ("load_ms", "p50_ms", "p90_ms", "best_ms")),
                      str(row["runs"]))  # fmt: skip
    Console().print(table)
    return 0


def latency(session: Any, feeds: dict[str, Any], seconds: float) -> dict[str, float]:
    """Milliseconds of one run: median, 90th percentile, best; warmed up, at least 10 runs."""
    for _ in range(3):
        session.run(feeds)
    times: list[int] = []
    end = time.perf_counter_ns() + int(seconds * 1e9)
    while len(times) < 10 or time.perf_counter_ns() < end:
        start = time.perf_counter_ns()
        session.run(feeds)
        times.append(time.perf_counter_ns() - start)
    spent = np.array(times) / 1e6
    p50, p90 = np.percentile(spent, [50, 90])
    return {"p50_ms": float(p50), "p90_ms": float(p90), "best_ms": float(spent.min()), "runs": len(times)}


_MEMORY = """
import json, sys
import numpy as np
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
with np.load(sys.argv[3], allow_pickle=False) as arrays:
    feeds = {key: arrays[key] for key in arrays.files}
bare = peak()
import evort
imported = peak()
session = evort.load(sys.argv[1], threads=int(sys.argv[2]))
loaded = peak()
session.run(feeds)
session.run(feeds)
most = peak()
memory = session.memory().as_dict()
del memory["buffers"]
print(json.dumps({"peak": most - bare, "import": imported - bare, "load": loaded - bare, **memory}))
"""

_START = """
import json, sys, time
import numpy as np
with np.load(sys.argv[3], allow_pickle=False) as arrays:
    feeds = {key: arrays[key] for key in arrays.files}
times = [time.perf_counter()]
import evort
times.append(time.perf_counter())
session = evort.load(sys.argv[1], threads=int(sys.argv[2]), cache=sys.argv[4])
times.append(time.perf_counter())
session.run(feeds)
times.append(time.perf_counter())
print(json.dumps([(b - a) * 1e3 for a, b in zip(times, times[1:])]))
"""
_STARTS = 7  # of which the median is reported


def _child(code: str, path: str, threads: int, feeds: dict[str, Any], *more: str) -> Any:
    """What a fresh process prints as JSON. path: an .etm file."""
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file, **feeds)
        file.flush()
        # -P: the installed package also where the current directory is a checkout
        command = [sys.executable, "-P", "-c", code, path, str(threads), file.name, *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(f"the measuring process failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout)


def measure_memory(path: str, feeds: dict[str, Any], threads: int = 1) -> dict[str, int]:
    """Bytes that a fresh process takes over bare NumPy at its peak, after import, and after load; and the session's
    own account. path: an .etm file."""
    return _child(_MEMORY, path, threads, feeds)


def measure_start(path: str, feeds: dict[str, Any], threads: int = 1) -> dict[str, dict[str, float]]:
    """Milliseconds of a start, "first" and with a "kept" plan: medians of importing, loading and the first answer, and
    of all of them."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, cache in (("first", ""), ("kept", folder)):
            _child(_START, path, threads, feeds, cache)  # which keeps the plan, and bytecode
            rounds = [_child(_START, path, threads, feeds, cache) for _ in range(_STARTS)]
            steps = np.median([[*times, sum(times)] for times in rounds], axis=0)
            found[name] = dict(zip(("import_ms", "load_ms", "answer_ms", "all_ms"), map(float, steps), strict=True))
    return found


def run_start(args: argparse.Namespace) -> int:
    feeds = _fresh_feeds(args)
    found = measure_start(args.model, feeds, args.threads[0])
    if args.json:
        print_json({"model": args.model, "threads": args.threads[0], "start": found})
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("start", "import ms", "load ms", "answer ms", "all ms", title=args.model)
    for name, text in (("first", "the first time"), ("kept", "with a kept plan (cache=)")):
        table.add_row(text, *(f"{value:.2f}" for value in found[name].values()))
    Console().print(table)
    return 0


def _fresh_feeds(args: argparse.Namespace) -> dict[str, Any]:
    """Inputs for a process that is measured. Raises ValueError for a model that it cannot load as it is."""
    if args.model.endswith(".onnx"):
        raise ValueError("fresh processes measure what a device loads: convert the model to .etm first")
    return tried_inputs(open_session(args.model, threads=args.threads[0]), shapes_of(args))


def run_memory(args: argparse.Namespace) -> int:
    feeds = _fresh_feeds(args)
    found = measure_memory(args.model, feeds, args.threads[0])
    over = args.budget is not None and found["peak"] > args.budget
    if args.json:
        print_json({"model": args.model, "budget": args.budget, "over": over, **found})
        return int(over)
    from rich.console import Console
    from rich.table import Table

    table = Table("memory", "bytes", title=args.model)
    names = {
        "import": "import evort, over bare NumPy", "load": "after load", "peak": "peak after two runs",
        "weights_mapped": "weights mapped from the file", "weights_copied": "weights copied", "arena": "arena",
        "scratch": "scratch, of the arena", "lower_bound": "least arena that liveness allows",
    }  # fmt: skip
    for key, text in names.items():
        table.add_row(text, f"{found[key]:,}")
    console = Console()
    console.print(table)
    if args.budget is not None:
        word = "over" if over else "within"
        console.print(f"peak {bytes_text(found['peak'])}: {word} the budget of {bytes_text(args.budget)}")
    return int(over)


if __name__ == "__main__":
    from evort_tools.cli import run_command

    sys.exit(run_command("bench"))
