"""The cases of `instructions.py`; this program runs under Callgrind, one process for each instruction set.

    _instructions_worker.py LIBRARY FOLDER

LIBRARY has the client requests of instructions.py (absent: the cases run, uncounted), FOLDER the models. Nothing but
NumPy and evort is imported, and what a case prepares is not counted.
"""

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class Counter:
    """`counter(name, call)` runs `call` between "zero" and "dump" of Callgrind, with instrumentation on."""

    def __init__(self, library: str) -> None:
        self.requests = ctypes.PyDLL(library) if library else None  # keeps the GIL: nothing of it is counted

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        gc.collect()
        if not self.requests:
            return call()
        self.requests.start()
        result = call()
        self.requests.stop(name.encode())
        return result


def work(library: str, folder: Path) -> None:
    gc.disable()
    count = Counter(library)
    for _ in range(2):  # what counting itself costs, the second time: taken off every case
        count("nothing", lambda: None)

    def imported() -> Any:
        import evort

        return evort.load, evort.Session

    count("import", imported)
    import evort

    # A start with the plan that the uncounted process has kept, where nothing else is loaded yet.
    with np.load(folder / "lenet.npz") as data:
        feeds = {key: data[key] for key in data.files}
    kept = {"threads": 1, "cache": folder / "plans"}
    session = count("load kept lenet", lambda: evort.load(folder / "lenet.etm", **kept))
    count("run_first kept lenet", lambda: session.run(feeds))

    # Start-up: a model with every family that it needs to import, then the same again, and its first answer.
    rng = np.random.default_rng(0)
    for name in ("lenet", "lenet_int8", "ds_cnn"):
        with np.load(folder / f"{name}.npz") as data:
            feeds = {key: data[key] for key in data.files}
        if name == "lenet":
            count(f"load_first {name}", lambda: evort.load(folder / "lenet.etm", threads=1))
        session = count(f"load {name}", lambda file=folder / f"{name}.etm": evort.load(file, threads=1))
        count(f"run_first {name}", lambda s=session, f=feeds: s.run(f))
        count(f"run {name}", lambda s=session, f=feeds: s.run(f))

    # The cost of a node: two chains, of which one has 512 nodes more.
    one = np.ones(1, np.float32)
    for nodes in (64, 576):
        session = evort.load(folder / f"chain{nodes}.etm", threads=1)
        if len(session.plans()[0].steps) != nodes:
            raise SystemExit(f"the chain of {nodes} nodes runs in {len(session.plans()[0].steps)} steps")
        session.run({"x": one})
        count(f"chain {nodes}", lambda s=session: s.run({"x": one}))

    from evort import blas

    for n in (8, 48, 96):
        a, b = rng.standard_normal((2, n, n))
        for dtype in (np.float32, np.float64):
            x, y, z = a.astype(dtype), b.astype(dtype), np.empty((n, n), dtype)
            blas.gemm(x, y, z, threads=1)
            count(f"gemm {np.dtype(dtype)} {n}", lambda x=x, y=y, z=z: blas.gemm(x, y, z, threads=1))
        bytes_ = rng.integers(-128, 128, (2, n, n), np.int8)
        sums = np.empty((n, n), np.int32)
        blas.gemm_int8(bytes_[0], bytes_[1], sums, threads=1)
        count(f"gemm int8 {n}", lambda x=bytes_, z=sums: blas.gemm_int8(x[0], x[1], z, threads=1))
    matrix, x, y = (rng.standard_normal(shape).astype(np.float32) for shape in ((256, 256), 256, 256))
    count("gemv float32 256", lambda: blas.gemv(matrix, x, y, threads=1))


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]))
