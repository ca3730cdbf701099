"""Says what differs between two .etm files: header, metadata, nodes, attributes, constants. Exit code 1 where any."""

from __future__ import annotations

import argparse
import sys

from evort_tools.common import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", help="an .etm file")
    parser.add_argument("b", help="another")
    parser.add_argument("--json", action="store_true", help="print the differences as JSON")


def run(args: argparse.Namespace) -> int:
    from evort.etm.diff import diff

    found = diff(args.a, args.b)
    if args.json:
        print_json([d.as_dict() for d in found])
        return int(bool(found))
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not found:
        console.print(f"{args.a} and {args.b} are equal")
        return 0
    table = Table("where", "what", args.a, args.b, header_style="bold")
    for d in found:
        table.add_row(d.where, d.what, *("[dim]absent[/]" if x is None else escape(str(x)) for x in (d.a, d.b)))
    console.print(table)
    return 1


if __name__ == "__main__":
    from evort_tools.cli import run_command

    sys.exit(run_command("diff"))
