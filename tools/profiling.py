"""Times each operator of a model: a table by layer or by operator, and a Chrome trace that opens in Perfetto.

Inputs that no file is given for are random numbers; where branches depend on one, as on silero-vad's sampling rate, it
decides what is timed: -i sr=rate.npy.

With --precisions it times the layers of a float model in float32, float16, int16, int8 and int4 instead, and writes
what `evort quantize --profile` takes: run it on the device that the model is for.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from evort import etm
from evort.plan import Plan
from evort_tools.common import (
    add_shape_argument,
    open_session,
    print_json,
    progress_bar,
    shapes_of,
    source,
    tried_inputs,
    write_atomically,
)
from evort_tools.inspection import operator_text
from evort_tools.run import add_input_arguments, given_inputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an .etm file (or .onnx, converted in memory)")
    add_shape_argument(parser)
    add_input_arguments(parser)
    parser.add_argument("--threads", type=int, default=1, help="threads to use (1)")
    parser.add_argument("--runs", type=int, default=20, help="runs to measure; medians are shown (20)")
    parser.add_argument("--by", choices=("layer", "operator"), default="layer", help="one row for each (layer)")
    parser.add_argument("--top", type=int, default=30, help="rows to show, slowest first; 0 for all (30)")
    parser.add_argument("--trace", metavar="FILE.json", help="write one run as a Chrome trace")
    parser.add_argument("--precisions", action="store_true", help="time the layers in all precisions (see above)")
    parser.add_argument("-o", "--output", metavar="FILE.json", help="with --precisions: the latency profile to write")
    parser.add_argument("--json", action="store_true", help="print the rows (or the latency profile) as JSON")


def run(args: argparse.Namespace) -> int:
    if args.runs < 1:
        raise ValueError("--runs must be at least 1")
    if args.precisions and args.input:
        raise ValueError("--precisions times layers on inputs of its own: it takes --shape, but no --input")
    if args.precisions:
        return run_precisions(args)
    if args.output:
        raise ValueError("--output goes with --precisions; a run is written with --trace")
    session = open_session(args.model, threads=args.threads)
    feeds = tried_inputs(session, shapes_of(args), given_inputs(session, args))
    runs = [session.profile(feeds) for _ in range(args.runs)]
    if args.trace:
        write_trace(args.trace, runs[-1])
    rows = rows_of(runs)
    if args.by == "operator":
        rows = by_operator(rows)
    rows.sort(key=lambda row: -row["us"])
    if args.json:
        print_json(rows)
        return 0
    from rich.console import Console
    from rich.table import Table

    total = sum(row["us"] for row in rows)
    table = Table("what", "operator", "kernel", "output", title=f"{args.model}: {total / 1e3:.3f} ms")
    for column in ("µs", "share", "GMAC/s"):
        table.add_column(column, justify="right")
    for row in rows[: args.top or None]:
        rate = f"{row['macs'] / row['us'] / 1e3:.1f}" if row["macs"] and row["us"] else ""
        table.add_row(row["name"], row["operator"], row["kernel"], row["output"], f"{row['us']:.1f}",
                      f"{row['us'] / total:.1%}" if total else "", rate)  # fmt: skip
    Console().print(table)
    return 0


def run_precisions(args: argparse.Namespace) -> int:
    """Measures a latency profile, and writes or shows it."""
    from evort_tools.quantization.mixed import measure_profile
    from evort_tools.quantization.options import PRECISIONS

    model = etm.read(source(args.model)).model
    with progress_bar(quiet=args.json) as progress:
        profile = measure_profile(model, shapes_of(args), args.threads, progress)
    if args.output:
        profile.write(args.output)
    if args.json:
        print_json(profile.as_dict())
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("layer", title=f"{args.model}: µs by precision ({profile.machine['isa']})")
    for precision in PRECISIONS:
        table.add_column(precision, justify="right")
    rows = sorted(profile.times.items(), key=lambda row: -row[1]["float32"])
    for layer, times in rows[: args.top or None]:
        table.add_row(profile.nodes[layer][0], *(f"{times[p]:.1f}" if p in times else "" for p in PRECISIONS))
    table.add_row("all", *(f"{profile.total(p):.1f}" for p in PRECISIONS))
    Console().print(table)
    if args.output:
        print(f"written to {args.output}: evort quantize --profile {args.output}")
    return 0


def rows_of(runs: Sequence[Sequence[tuple[Plan, np.ndarray]]]) -> list[dict[str, Any]]:
    """A row for each step, with the median of its microseconds over the runs."""
    rows = []
    for stage, (plan, _) in enumerate(runs[0]):
        spent = np.median([profile[stage][1] for profile in runs if profile[stage][0] is plan], axis=0) / 1e3
        for i, us in enumerate(spent):
            if i >= len(plan.steps):
                row = {"name": "copy to output", "operator": "", "kernel": "executor.copy", "output": "", "macs": 0}
            else:
                step = plan.steps[i]
                c = step.call
                out = next((s for s in c.outs if s is not None), None)
                row = {
                    "name": c.node.name or c.node.outputs[0],
                    "operator": operator_text(step),
                    "kernel": step.driver,
                    "output": "" if out is None else f"{out.dtype.name.lower()}{list(out.shape)}",
                    "macs": step.definition.macs(c),
                }
            rows.append({**row, "us": float(us)})
    return rows


def by_operator(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows summed by operator and kernel."""
    sums: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = row["operator"], row["kernel"]
        if key not in sums:
            sums[key] = {"name": 0, "operator": key[0], "kernel": key[1], "output": "", "macs": 0, "us": 0.0}
        sums[key]["name"] += 1
        sums[key]["macs"] += row["macs"]
        sums[key]["us"] += row["us"]
    for row in sums.values():
        row["name"] = f"{row['name']} nodes"
    return list(sums.values())


def write_trace(path: str, profile: Sequence[tuple[Plan, np.ndarray]]) -> None:
    """Writes one run in Chrome's trace event format, which Perfetto opens."""
    events: list[dict[str, Any]] = []
    at = 0.0
    for row in rows_of([profile]):
        details = {k: row[k] for k in ("kernel", "output", "macs")}
        event = {"name": f"{row['operator']} {row['name']}", "cat": row["operator"] or "copy", "args": details}
        events.append({**event, "ph": "X", "pid": 1, "tid": 1, "ts": at, "dur": row["us"]})
        at += row["us"]
    write_atomically(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}).encode())


if __name__ == "__main__":
    from evort_tools.cli import run_command

    sys.exit(run_command("profile"))
