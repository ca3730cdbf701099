"""What `evort tune` gains: for each model of the set, the latency with the cost model's kernels and with the measured
best ones, and the layers where they differ.

    python benchmarks/tune.py                        every model, float32, one thread
    python benchmarks/tune.py --threads 2 lenet mnist_8
    python benchmarks/tune.py --etm a.etm b.etm      files as they are, with their fixed shapes

A layer that shows up for several models is one that the cost model is wrong about.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cases

import evort_tools
from evort import etm
from evort.session import Session
from evort_tools.common import progress_bar, tried_inputs
from evort_tools.tune import tune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="models (all)")
    parser.add_argument("--etm", nargs="*", default=[], metavar="FILE", help="files to look at instead")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each model (10)")
    parser.add_argument("--json", metavar="FILE", help="write everything there")
    args = parser.parse_args()
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "ms before", "after", "ratio", "layers", "changed", title=f"{args.threads} threads")
    changes = Table("model", "layer", "operator", "output", "cost model", "best", "µs before", "after")
    everything = {}
    for name, model, feeds in chosen(args):
        with progress_bar(quiet=False) as progress:
            found = tune(model, feeds, args.threads, args.seconds, progress=progress)
        everything[name] = found.as_dict()
        changed = [x for x in found.layers if x.winner != x.kernels[0]]
        table.add_row(name, f"{found.before:.4g}", f"{found.after:.4g}", f"{found.after / found.before:.3f}",
                      str(len(found.layers)), str(len(changed)))  # fmt: skip
        for x in changed:
            shape = "x".join(map(str, x.key[1]))
            changes.add_row(name, x.key[0][-24:], x.operator, shape, x.kernels[0], x.winner, f"{x.before:.1f}",
                            f"{x.after:.1f}")  # fmt: skip
    console = Console()
    console.print(changes)
    console.print(table)
    if args.json:
        Path(args.json).write_text(json.dumps(everything, indent=1))


def chosen(args: argparse.Namespace):
    """(name, model, inputs) of each model."""
    for path in args.etm:
        model = etm.read(path).model
        yield Path(path).stem, model, tried_inputs(Session(model, threads=args.threads), {})
    if args.etm:
        return
    for case in [*cases.real_cases(), *cases.synthetic_cases()]:
        if not args.names or case.name in args.names:
            model = etm.read(evort_tools.convert(case.model())).model
            shape, make = next(iter(case.shapes.items()))
            yield f"{case.name} {shape}", model, make()


if __name__ == "__main__":
    main()
