"""Lists the operators that evort runs: form, element types, what is compiled, what shares memory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from evort.ops import Op, registered
from evort.types import ANY
from evort_tools.common import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="print docs/operators.md")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def run(args: argparse.Namespace) -> int:
    rows = list(table())
    if args.json:
        print_json(rows)
    elif args.markdown:
        print(markdown(rows), end="")
    else:
        from rich.console import Console
        from rich.table import Table

        view = Table("operator", "opset", "inputs", "compiled", "in place", header_style="bold")
        for row in rows:
            view.add_row(row["name"], str(row["since"]), row["inputs"], row["compiled"], row["memory"])
        Console().print(view)
    return 0


def table() -> Iterator[dict[str, Any]]:
    """A row for each registered operator."""
    for (domain, name), definition in registered().items():
        own = type(definition)
        yield {
            "name": f"{domain}::{name}" if domain else name,
            "domain": domain,
            "family": own.__module__.rpartition(".")[2],
            "since": definition.since,
            "inputs": ", ".join(definition.inputs) or "none",
            "dtypes": dtypes_text(definition),
            "compiled": "yes" if own.bind is not Op.bind else "NumPy",
            "memory": memory_text(own),
        }


def dtypes_text(definition: Op) -> str:
    """Element types of the first input that is restricted."""
    for allowed in definition.dtypes.values():
        if allowed != ANY:
            return ", ".join(d.name.lower() for d in sorted(allowed))
    return "any"


def memory_text(own: type[Op]) -> str:
    """How the planner saves memory for an operator."""
    notes = []
    if own.view is not Op.view:
        notes.append("view")
    if own.placement is not Op.placement:
        notes.append("parts in place")
    if own.inplace:
        notes.append("overwrites its input")
    if own.expand is not Op.expand:
        notes.append("replaced while planning")
    return ", ".join(notes)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The document."""
    lines = [
        "# Operators",
        "",
        f"{len(rows)} operators, each in the form of its newest ONNX version (the importer rewrites older ones, from",
        "opset 7 on). Made from the registry by `evort operators --markdown`; a test holds this page to it.",
        "",
        "*compiled*: a driver exists for the common element types and shapes; others run the NumPy reference, which",
        "`evort inspect` shows as kernel `numpy`. An input with `?` is optional, with `*` repeated.",
        "",
        "| operator | opset | family | inputs | compiled | memory |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        cells = (r["name"], r["since"], r["family"], r["inputs"].replace("*", "\\*"), r["compiled"], r["memory"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from evort_tools.cli import run_command

    sys.exit(run_command("operators"))
