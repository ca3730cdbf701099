"""Measures the memory of one model in a fresh process: `python _child.py MODEL.etm INPUTS.npz`, one JSON line out.

The peak counts from the moment when NumPy and the inputs are there and evort is not, to the end of the second run, so
that it holds evort itself, its maps, copies and arena, and the results of one run.
"""

from __future__ import annotations

import gc
import json
import sys
import tracemalloc
from pathlib import Path

import numpy as np


def peak_kib() -> int:
    """Peak resident memory of this process so far (`VmHWM`)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def thread_count() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def main(model: str, inputs: str) -> dict[str, int]:
    with np.load(inputs) as data:
        feeds = {name: data[name] for name in data.files}
    start, threads = peak_kib(), thread_count()
    import evort

    imported = peak_kib()
    session = evort.load(model, threads=1)
    for _ in range(2):
        outputs = session.run(feeds)
    peak = peak_kib()
    memory = session.memory()

    import native_allocations

    native = -1
    session.run_into(feeds, outputs)
    if native_allocations.supported():
        with native_allocations.counting(Path(evort.__file__).parent) as counts:
            session.run_into(feeds, outputs)
        if not counts.libraries:
            raise RuntimeError("no native library of evort is loaded: nothing was counted")
        native = counts.total
    tracemalloc.start()
    session.run_into(feeds, outputs)
    gc.collect()
    gc.disable()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    session.run_into(feeds, outputs)
    most = tracemalloc.get_traced_memory()[1]
    gc.collect()  # empties the interpreter's lists of free tuples and the like, which count as allocated
    after = tracemalloc.get_traced_memory()[0]
    return {
        "import_kib": imported - start,
        "peak_kib": peak - start,
        "mapped": memory.weights_mapped,
        "copied": memory.weights_copied,
        "arena": memory.arena,
        "scratch": memory.scratch,
        "native_calls": native,
        "python_bytes": most - before,
        "python_kept": after - before,
        "threads_started": thread_count() - threads,
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
