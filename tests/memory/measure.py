"""Measure the memory of the shipped and the real models, and keep the table of budgets.

    python tests/memory/measure.py                      # show what every model takes beside its budget
    python tests/memory/measure.py lenet silero_vad     # some of them
    python tests/memory/measure.py --update             # write budgets.toml anew from what is measured now

`test_budgets.py` holds every model to its row. `evort bench --memory --budget SIZE` does the like for one's own model.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import numpy as np
import onnx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))
import cases  # noqa: E402  (a folder of scripts, not a package)
from _worker import environment  # noqa: E402

BUDGETS = HERE / "budgets.toml"
Row = dict[str, int]
LIMITED = ("peak_kib", "arena", "copied", "python_bytes", "native_calls")

HEADER = """\
# What each model may take, one thread. Written by `python tests/memory/measure.py --update`; tests/memory holds to it.
#
# peak_kib      peak resident memory over a process with NumPy and the same inputs: 10% + 512 KiB above the measurement,
#               since pages are counted in batches and differ between kernels and C libraries
# arena         bytes of the planned arena, scratch of the steps included: 5% above, for other instruction sets
# copied        bytes of weights that are copied or packed instead of used from the map: 5% above
# python_bytes  Python objects alive at the same time during `run_into` (tracemalloc): 2 KiB above, for other Pythons
# native_calls  calls of evort's libraries to malloc, mmap, pthread_create and the like during `run_into`: as measured
"""


def budget(figures: Row) -> Row:
    """The limits for a model that was measured to take `figures`."""
    return {
        "peak_kib": math.ceil(figures["peak_kib"] * 1.1) + 512,
        "arena": math.ceil(figures["arena"] * 1.05),
        "copied": math.ceil(figures["copied"] * 1.05),
        "python_bytes": figures["python_bytes"] + 2048,
        "native_calls": figures["native_calls"],
    }


@functools.cache
def keep_bytecode() -> None:
    """Let Python compile evort's modules once, as an installation does, so that no measured process has to."""
    subprocess.run([sys.executable, "-P", "-c", "import evort, evort.etm"], check=True, timeout=60, env=environment())


def measure(case: cases.Case, shape: str, folder: Path) -> Row:
    """Convert the model, run it in a child process and return what that process took."""
    from evort_tools import convert

    keep_bytecode()
    etm, inputs = folder / f"{case.name}.etm", folder / f"{case.name}.{shape}.npz"
    if not etm.exists():
        onnx_file = folder / f"{case.name}.onnx"
        onnx.save(case.model(), onnx_file)
        convert(onnx_file, etm)
    np.savez(inputs, **case.shapes[shape]())
    command = [sys.executable, str(HERE / "_child.py"), str(etm), str(inputs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
    if done.returncode:
        raise RuntimeError(f"{case.name} {shape}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def read_budgets() -> dict[str, dict[str, Row]]:
    """Budgets by model and shape."""
    return tomllib.loads(BUDGETS.read_text())


def write_budgets(budgets: dict[str, dict[str, Row]]) -> None:
    """One line a model and shape."""
    lines = [HEADER]
    for name, shapes in budgets.items():
        lines.append(f"[{name}]")
        for shape, row in shapes.items():
            cells = ", ".join(f"{key} = {row[key]:_}" for key in LIMITED)
            lines.append(f'"{shape}" = {{ {cells} }}')
        lines.append("")
    BUDGETS.write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--update", action="store_true", help="write the budgets of the measured models anew")
    args = parser.parse_args()
    known = {case.name: case for case in cases.real_cases()}
    if unknown := set(args.models) - set(known):
        sys.exit(f"unknown model {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    budgets = read_budgets() if BUDGETS.exists() else {}
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models or known:
            for shape in known[name].shapes:
                try:
                    figures = measure(known[name], shape, Path(folder))
                except RuntimeError as error:
                    print(error, file=sys.stderr)
                    failed = True
                    continue
                row = budgets.get(name, {}).get(shape, {})
                cells = [f"{key} {figures[key]:,}" + (f" of {row[key]:,}" if key in row else "") for key in LIMITED]
                rest = [f"{key} {value:,}" for key, value in figures.items() if key not in LIMITED]
                print(f"{name} {shape}: {', '.join(cells)} ({', '.join(rest)})", flush=True)
                budgets.setdefault(name, {})[shape] = budget(figures)
    if args.update:
        write_budgets({name: budgets[name] for name in (*known, *sorted(budgets.keys() - known)) if name in budgets})
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
