"""Shows what is in a model: a summary, its layers with sizes and multiply-adds, and its memory over time."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from evort.plan import Plan, Step
from evort.session import Session
from evort.tuning import cpu_name, parse, records
from evort_tools.common import (
    add_shape_argument,
    bytes_text,
    file_size,
    open_session,
    print_json,
    shapes_of,
    tried_inputs,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an .etm file (or .onnx, converted in memory)")
    add_shape_argument(parser)
    parser.add_argument("--memory", action="store_true", help="show the arena: which tensors live when and where")
    parser.add_argument("--plot", metavar="FILE", help="draw the arena over time (PNG, SVG or PDF; needs matplotlib)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    session = open_session(args.model, threads=1)
    # Shapes that depend on values are only known by running.
    tried_inputs(session, shapes_of(args))
    if args.plot:
        plot_memory(session, args.plot)
    if args.json:
        print_json(describe(session, args.model))
        return 0
    from rich.console import Console

    console = Console()
    print_summary(console, session, args.model)
    if args.memory:
        print_memory(console, session)
    else:
        print_layers(console, session)
    return 0


def layer_rows(session: Session) -> list[dict[str, Any]]:
    """A row for each step: node, operator, driver, what the file says the driver should be here (see evort.tuning),
    output shape and dtype, multiply-adds, bytes of constants."""
    rows = []
    tuned = session.tuned or {}
    for plan in session.plans():
        for step in plan.steps:
            c = step.call
            out = next((s for s in c.outs if s is not None), None)
            rows.append(
                {
                    "name": c.node.name or c.node.outputs[0],
                    "operator": operator_text(step),
                    "kernel": step.driver,
                    "tuned": None if out is None else tuned.get((c.node.outputs[0], out.shape)),
                    "output": "" if out is None else f"{out.dtype.name.lower()}{list(out.shape)}",
                    "macs": step.definition.macs(c),
                    "weights": weight_bytes(plan, step),
                    "scratch": step.scratch,
                }
            )
    return rows


def operator_text(step: Step) -> str:
    """The operator with what is fused into it: "Conv+Relu"."""
    activation = step.call.attrs.get("activation") or ""
    return step.call.node.op + (f"+{activation}" if activation else "")


def weight_bytes(plan: Plan, step: Step) -> int:
    """Bytes of the constants that a step reads."""
    c = step.call
    return sum(s.nbytes for s in c.ins if s is not None and s.value is not None)


def describe(session: Session, path: str) -> dict[str, Any]:
    """All that `evort inspect` tells, for JSON."""
    return {
        "file": path,
        "file_bytes": file_size(path),
        "producer": session.model.producer,
        "opsets": session.model.opsets,
        "metadata": session.metadata,
        "bounds": session.model.bounds,
        "golden": None if session.model.golden is None else {"tolerance": session.model.golden.tolerance},
        "inputs": [{"name": v.name, "dtype": v.dtype.name.lower(), "shape": v.shape} for v in session.inputs],
        "outputs": [{"name": v.name, "dtype": v.dtype.name.lower(), "shape": v.shape} for v in session.outputs],
        "layers": layer_rows(session),
        "tuned": tuned_records(session),
        "memory": session.memory().as_dict(),
    }


def tuned_records(session: Session) -> list[dict[str, Any]]:
    """The file's records of measured kernels: the processor's name, how many layers, and of this processor how many of
    them run here so, and the others of the shapes at hand, as (layer, kernel)."""
    here = cpu_name()
    found = []
    for cpu, text in records(session.metadata).items():
        row: dict[str, Any] = {"cpu": cpu, "layers": len(parse(text)), "here": cpu == here}
        if cpu == here:
            rows = [r for r in layer_rows(session) if r["tuned"]]
            row["followed"] = sum(r["tuned"] == r["kernel"] for r in rows)
            row["ignored"] = [(r["name"], r["tuned"]) for r in rows if r["tuned"] != r["kernel"]]
        found.append(row)
    return found


def print_summary(console: Any, session: Session, path: str) -> None:
    from rich.table import Table

    rows = layer_rows(session)
    memory = session.memory()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("file", f"{path}, {bytes_text(file_size(path))}")
    table.add_row("made by", session.model.producer or "unknown")
    table.add_row("opsets", ", ".join(f"{d or 'ai.onnx'} {v}" for d, v in session.model.opsets.items()))
    for what, values in (("input", session.inputs), ("output", session.outputs)):
        for value in values:
            table.add_row(what, repr(value))
    for name, (low, high) in session.model.bounds.items():
        table.add_row("size", f"{name}: {low} to {high}")
    if "evort.source_sha256" in session.metadata:
        table.add_row("source", f"SHA-256 {session.metadata['evort.source_sha256']}")
    if session.model.golden is not None:
        table.add_row("golden data", f"tolerance {session.model.golden.tolerance:g} (evort check runs them)")
    for row in tuned_records(session):
        text = f"{row['cpu']}: {row['layers']} layers"
        if not row["here"]:
            text += ", not looked at: this processor is " + cpu_name()
        elif row["ignored"]:
            text += f", followed: {row['followed']}, ignored: {', '.join(f'{k} for {n}' for n, k in row['ignored'])}"
        else:
            text += f", followed: {row['followed']}"
        table.add_row("tuned", text)
    table.add_row("steps", f"{len(rows)}, {sum(r['kernel'] == 'numpy' for r in rows)} of them in NumPy")
    table.add_row("multiply-adds", f"{sum(r['macs'] for r in rows) / 1e6:,.2f} million")
    table.add_row("weights", f"{bytes_text(memory.weights_mapped)} mapped, {bytes_text(memory.weights_copied)} copied")
    table.add_row(
        "arena",
        f"{bytes_text(memory.arena)} (liveness demands {bytes_text(memory.lower_bound)}), "
        f"scratch {bytes_text(memory.scratch)} of it",
    )
    console.print(table)


def print_layers(console: Any, session: Session) -> None:
    from rich.table import Table

    table = Table("layer", "operator", "kernel", "output", header_style="bold")
    for column in ("multiply-adds", "weights", "scratch"):
        table.add_column(column, justify="right")
    for row in layer_rows(session):
        numbers = (f"{row['macs']:,}" if row["macs"] else "", *(_size(row[k]) for k in ("weights", "scratch")))
        kernel = row["kernel"] + (" (tuned)" if row["tuned"] == row["kernel"] else "")
        table.add_row(row["name"], row["operator"], kernel, row["output"], *numbers)
    console.print(table)


def _size(n: int) -> str:
    return bytes_text(n) if n else ""


def print_memory(console: Any, session: Session) -> None:
    """The arena as a table and a chart of lifetimes: a row for each buffer, a column for each slice of steps."""
    from rich.table import Table

    memory = session.memory()
    steps = max(len(memory.steps), 1)
    width = max(10, min(60, steps, console.width - 70))
    table = Table("offset", "bytes", "steps", "lives", "holds", header_style="bold")
    for buffer in sorted(memory.buffers, key=lambda b: (b.start, b.offset)):
        first = buffer.start * width // steps
        last = max(first + 1, -(-(min(buffer.end, steps - 1) + 1) * width // steps))
        bar = " " * first + "█" * (last - first) + " " * (width - last)
        names = ", ".join(buffer.names[:3]) + (f" and {len(buffer.names) - 3} more" if len(buffer.names) > 3 else "")
        table.add_row(
            f"{buffer.offset:,}", f"{buffer.nbytes:,}", f"{buffer.start}-{min(buffer.end, steps - 1)}", bar, names
        )
    console.print(table)


def plot_memory(session: Session, path: str) -> None:
    """Draws each buffer of the arena as a rectangle: steps across, bytes up."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    memory = session.memory()
    figure, axes = plt.subplots(figsize=(10, 5))
    colors = plt.get_cmap("tab20").colors
    for i, b in enumerate(memory.buffers):
        width = b.end - b.start + 1
        axes.add_patch(
            plt.Rectangle((b.start, b.offset / 1e3), width, b.nbytes / 1e3, fc=colors[i % 20], ec="black", lw=0.4)
        )
    axes.axhline(memory.lower_bound / 1e3, color="black", ls="--", lw=0.8, label="least that liveness allows")
    axes.set(
        xlim=(0, max(len(memory.steps), 1)), ylim=(0, max(memory.arena, memory.lower_bound, 1) / 1e3 * 1.02),
        xlabel="step", ylabel="arena (kB)", title=f"arena {bytes_text(memory.arena)}",
    )  # fmt: skip
    axes.legend(loc="upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    from evort_tools.cli import run_command

    sys.exit(run_command("inspect"))
