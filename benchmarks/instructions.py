"""Count the instructions of fixed cases under Callgrind, and hold them to the table that the repository has.

    python benchmarks/instructions.py                 # the counts, beside the recorded ones
    python benchmarks/instructions.py --check         # for CI: exit code 1 where one grew past its tolerance
    python benchmarks/instructions.py --update        # write the counts into benchmarks/instructions.json
    python benchmarks/instructions.py --repeat 5      # and how much they differ from run to run

Times on a shared machine differ by tens of percent from minute to minute, instructions do not: this is what guards
against a loop that lost its vectors or a check that joined a hot path. It does not see caches, ports or latencies.

Every count is of one call, in a process of its own for each instruction set, with client requests of Callgrind around
the call; a fixed hash seed, a search path of only NumPy, flatbuffers and evort, one thread, and the garbage collector
off. Valgrind 3.19 to 3.24 know AVX2, not AVX-512.

The table has a column for each combination of what counts depend on: compiler, CPython, NumPy, architecture. One that
is not recorded is compared with the first of a like compiler and architecture, in compiled code only and loosely (see
`limit`); `--update` adds a column.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from evort_tools.common import write_atomically

TABLE = Path(__file__).with_suffix(".json")
WORKER = Path(__file__).with_name("_instructions_worker.py")
ISAS = ("avx2", "scalar")
ANOTHER_COMPILER = 1.05

REQUESTS = """
#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void stop(const char *name) { CALLGRIND_DUMP_STATS_AT(name); CALLGRIND_STOP_INSTRUMENTATION; }
"""


class Unavailable(Exception):
    """What counting needs is not here; the message says what."""


def prepare(folder: Path) -> None:
    """The models and inputs that the worker reads, its search path (`path/`) and the library of client requests."""
    sys.path.insert(0, str(WORKER.parent))
    import flatbuffers
    import numpy as np
    import onnx

    import evort
    import evort_tools
    import models

    root = WORKER.parent.parent / "models"
    with np.load(root / "mnist_500.npz") as data:
        images = data["images"][:64, None].astype(np.float32) / 255
    net = models.MODELS["ds_cnn"]
    sources = {"ds_cnn": net.build(), **{f"chain{nodes}": chain(nodes) for nodes in (64, 576)}}
    for name, model in sources.items():
        onnx.save(model, folder / f"{name}.onnx")
        evort_tools.convert(folder / f"{name}.onnx", folder / f"{name}.etm")
    evort_tools.convert(root / "lenet.onnx", folder / "lenet.etm")
    # Neither what is measured nor what is tried on samples decides, so that every machine makes the same model.
    plain = {"method": "minmax", "prefer": "size", "equalize": "off", "adaround": "off", "bias_correction": "off"}
    evort_tools.quantize(root / "lenet.onnx", folder / "lenet_int8.etm", calib={"image": images}, **plain)
    for name in ("lenet", "lenet_int8"):
        np.savez(folder / f"{name}.npz", image=images[:1])
    np.savez(folder / "ds_cnn.npz", **net.example(np.random.default_rng(0)))

    (folder / "path").mkdir()
    for module in (evort, flatbuffers, np):
        (folder / "path" / module.__name__).symlink_to(Path(module.__file__).parent)
    (folder / "requests.c").write_text(REQUESTS)
    command = [*shlex.split(os.environ.get("CC", "cc")), "-O1", "-shared", "-fPIC", "-o", "requests.so", "requests.c"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"the client requests do not compile (Debian: apt install gcc valgrind): {done.stderr}")


def chain(nodes: int) -> object:
    """A model that negates and clips one number in turn: all it costs is what a node costs."""
    from onnx import TensorProto, helper

    steps = [helper.make_node(("Neg", "Relu")[i % 2], [f"x{i}" if i else "x"], [f"x{i + 1}"]) for i in range(nodes)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", f"x{nodes}")]
    graph = helper.make_graph(steps, "chain", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def count(folder: Path, isa: str) -> dict[str, int]:
    """The instructions of each case on one instruction set."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(folder / "path"),
        "PYTHONHASHSEED": "0",
        "EVORT_ISA": isa,
        "EVORT_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    program = [sys.executable, "-S", str(WORKER)]
    # Uncounted first: it compiles what Python compiles once, and says what is wrong at full speed.
    subprocess.run([*program, "", str(folder)], env=environment, check=True)
    out = folder / isa
    out.mkdir(exist_ok=True)
    valgrind = ["valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}/count"]
    subprocess.run([*valgrind, *program, str(folder / "requests.so"), str(folder)], env=environment, check=True)
    totals = {}
    for file in sorted(out.glob("count.*"), key=lambda f: int(f.suffix[1:])):
        lines = dict(line.partition(": ")[::2] for line in file.read_text().splitlines())  # the last `desc` is the name
        totals[lines["desc"].rpartition("Request: ")[2]] = int(lines["totals"])
        file.unlink()
    nothing = totals.pop("nothing")
    found = {name: total - nothing for name, total in totals.items()}
    found["512 nodes"] = found.pop("chain 576") - found.pop("chain 64")
    return {f"{isa} {name}": value for name, value in found.items() if isa == ISAS[0] or compiled(name)}


def compiled(name: str) -> bool:
    """Whether a case spends its instructions in evort's compiled code, on which the instruction set has a say."""
    return not name.startswith(("import", "load", "run_first"))


def column() -> str:
    """What counts depend on, beside evort: the compiler of the installed kernels, CPython, NumPy and the machine."""
    import numpy

    from evort._kernels import core

    found = re.search(rb"(GCC): \([^)]*\) ([0-9.]+)|(clang) version ([0-9.]+)", Path(core.__file__).read_bytes())
    compiler = " ".join(part.decode() for part in found.groups() if part).lower() if found else "unknown compiler"
    versions = [("cpython", platform.python_version()), ("numpy", numpy.__version__)]
    return ", ".join([compiler, *(f"{name} {'.'.join(v.split('.')[:2])}" for name, v in versions), platform.machine()])


def limit(recorded: int, same: bool) -> float:
    """The most that a count may be.

    From run to run a count moves by what depends on addresses and lengths of paths: in runs from folders of different
    names by at most 850 instructions, where there are more than a million by at most 0.2%. Twice that is allowed. GCC
    11.3 and 12.2 (same: False) differ by at most 2.3% in compiled code; twice that, too, and room for the calls from
    Python, which another CPython makes in another number of instructions (not measured).
    """
    return recorded * 1.004 + 1700 if same else recorded * ANOTHER_COMPILER + 20_000


def read_table() -> dict[str, dict[str, int]]:
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def reference(table: dict[str, dict[str, int]], here: str) -> tuple[str, bool]:
    """The column to compare with, and whether it was recorded with the very compiler, CPython and NumPy of `here`."""
    if here in table:
        return here, True

    def like(name: str) -> tuple[str, str]:
        return name.split()[0], name.split()[-1]  # GCC or Clang; the architecture

    near = next((name for name in table if like(name) == like(here)), "")
    return near, False


def grown(counts: dict[str, int], recorded: dict[str, int], same: bool) -> list[str]:
    """The cases that are over their limit, or have none."""
    found = []
    for name, value in counts.items():
        if not same and not compiled(name.partition(" ")[2]):
            continue
        if name not in recorded:
            found.append(f"{name} is not in the table: record it with --update")
        elif value > limit(recorded[name], same):
            found.append(f"{name}: {value:,} instructions, {value / recorded[name] - 1:+.2%} of {recorded[name]:,}")
    return found


def show(counts: dict[str, int], recorded: dict[str, int], spread: dict[str, int], title: str) -> None:
    table = Table(title=title)
    table.add_column("case")
    for name in ("instructions", "recorded", "change", *(["spread"] if spread else [])):
        table.add_column(name, justify="right")
    for name, value in counts.items():
        old = recorded.get(name)
        change = f"{value / old - 1:+.2%}" if old else ""
        table.add_row(name, f"{value:,}", f"{old:,}" if old else "", change, *([f"{spread[name]:,}"] if spread else []))
    (Console() if sys.stdout.isatty() else Console(width=120)).print(table)


def measure(repeat: int) -> tuple[dict[str, int], dict[str, int]]:
    """The least count of each case over `repeat` runs in folders of different names, and how far they spread.

    Raises Unavailable where Valgrind or a compiler is missing, or the processor lacks AVX2.
    """
    from evort._kernels import core

    if not shutil.which("valgrind"):
        raise Unavailable("valgrind is not installed (Debian: apt install valgrind)")
    if missing := [isa for isa in ISAS if isa not in core.available_isas()]:
        raise Unavailable(f"this processor has no {', '.join(missing)}")
    runs: list[dict[str, int]] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for i in progress.track(range(repeat), description="counting"):
            with tempfile.TemporaryDirectory(prefix="x" * (1 + 7 * i)) as name:
                prepare(Path(name))
                runs.append({case: n for isa in ISAS for case, n in count(Path(name), isa).items()})
    least = {name: min(run[name] for run in runs) for name in runs[0]}
    return least, {name: max(run[name] for run in runs) - n for name, n in least.items()} if repeat > 1 else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="exit with 1 where a count is over its limit")
    what.add_argument("--update", action="store_true", help=f"write the counts into {TABLE.name}")
    parser.add_argument("--repeat", type=int, default=1, help="count several times, and show the spread")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON instead of a table")
    options = parser.parse_args()
    here = column()
    try:
        counts, spread = measure(options.repeat)
    except Unavailable as reason:
        print(f"instructions: not counted, as {reason}", file=sys.stderr)
        return 0 if options.check else 1
    table = read_table()
    near, same = reference(table, here)
    recorded = table.get(near, {})
    if options.json:
        print(json.dumps({"column": here, "compared with": near, "counts": counts, "spread": spread}, indent=1))
    else:
        show(counts, recorded, spread, f"{here}\nbeside {near or 'nothing: no column of this architecture'}")
    if options.update:
        table[here] = counts
        write_atomically(TABLE, (json.dumps(table, indent=1) + "\n").encode())
        return 0
    if not near:
        print(
            f"instructions: {TABLE.name} has no column for {platform.machine()}; add one with --update", file=sys.stderr
        )
        return 0
    over = grown(counts, recorded, same)
    for line in over:
        print(f"instructions: {line}", file=sys.stderr)
    if over and options.check:
        print("instructions: if that is meant: python benchmarks/instructions.py --update", file=sys.stderr)
    return 1 if over and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
