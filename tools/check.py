"""Checks a model where it is to run: the file's checksums, then its golden data on this machine's kernels.

`evort convert --golden inputs.npz` puts inputs, and the outputs that they must give, into a file; this command runs
them with each number of threads. Exit code 1: an output is wrong.
"""

from __future__ import annotations

import argparse
import sys

import evort
from evort import etm
from evort_tools.common import parse_threads, print_json
from evort_tools.golden import errors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an .etm file")
    parser.add_argument("--threads", type=parse_threads, default=[1, 2], help="thread counts to try (default: 1,2)")
    parser.add_argument("--json", action="store_true", help="print the errors as JSON")


def run(args: argparse.Namespace) -> int:
    with etm.read(args.model, checksum=True) as file:
        golden = file.model.golden
    rows = []
    if golden is not None:
        for threads in args.threads:
            session = evort.load(args.model, threads=threads)
            found = errors(session, golden, session.run(golden.inputs))
            for name, error in found.items():
                rows.append({"threads": threads, "output": name, "error": error, "ok": error <= golden.tolerance})
    if args.json:
        print_json({"isa": evort.isa(), "tolerance": golden and golden.tolerance, "outputs": rows})
        return int(not all(row["ok"] for row in rows))
    print(f"{args.model}: structure and checksums are right")
    if golden is None:
        print("it has no golden data to run (evort convert --golden inputs.npz puts some in)")
    for row in rows:
        verdict = "right" if row["ok"] else "WRONG"
        print(
            f"{row['output']}, {evort.isa()}, threads {row['threads']}: {verdict}, error {row['error']:.2g} of its "
            f"largest magnitude ({golden.tolerance:.2g} allowed)"
        )
    return int(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    from evort_tools.cli import run_command

    sys.exit(run_command("check"))
