"""One measurement in a fresh process: `measure(job)` starts it, this file run as a program is it.

The job is a JSON object on the command line, the result one JSON line on standard output. The order inside the process
is that of a small application: NumPy, the input, then the engine is imported (`import_ms`), the model loaded
(`load_ms`), run once (`first_ms`), warmed up and measured (`p50_ms`). Memory is read after each step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MIN_RUNS, MAX_RUNS = 3, 100_000


@dataclass(frozen=True)
class Job:
    """What one process does. `feeds` and `outputs` are `.npz` files; `seconds` is the length of the latency loop."""

    engine: str
    file: str
    feeds: str
    threads: int
    seconds: float
    outputs: str = ""
    timeout: float = 600


def measure(job: Job) -> dict:
    """Run `job` in its own process and return the figures; RuntimeError with the end of its messages if it fails."""
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, __file__, json.dumps(asdict(job))]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=job.timeout, env=environment()
        )
        errors.seek(0)
        tail = errors.read().strip()[-600:]
    if done.returncode:
        raise RuntimeError(f"{job.engine} exited with {done.returncode}: {tail}")
    return json.loads(done.stdout.splitlines()[-1])


def environment() -> dict[str, str]:
    """For measuring processes: they may keep bytecode, as an installed package does, so that none compiles it anew."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def memory_kib() -> dict[str, int]:
    """`VmHWM` (peak resident), `VmRSS`, `RssAnon`, `RssFile` of this process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    wanted = ("VmHWM", "VmRSS", "RssAnon", "RssFile")
    return {key: int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in lines) if key in wanted}


def pin(threads: int) -> None:
    """Keep the process on as many processors as it has threads: the last ones, since interrupts favour the first."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[-threads:])


def latency(run: Callable[[], object], seconds: float, times: Any) -> tuple[int, float]:
    """Warm up for a fifth of the time, then repeat for `seconds` (at least three runs), with a run's time in each of
    `times`. That array is there before memory is first measured: a list would grow with the speed of the engine.
    Returns how many runs there were, and the processor time of them all in all threads, which tells more than the clock
    on a busy machine."""
    clock = time.perf_counter
    end = clock() + seconds / 5
    while clock() < end:
        run()
    count, end, busy = 0, clock() + seconds, time.process_time()
    while count < MIN_RUNS or (clock() < end and count < MAX_RUNS):
        start = clock()
        run()
        times[count] = clock() - start
        count += 1
    return count, time.process_time() - busy


def work(job: Job) -> dict:
    """The measurement itself; runs in the child."""
    pin(job.threads)
    import numpy as np  # after pinning, so that its BLAS starts as many threads as there are processors
    from _engines import ENGINES

    with np.load(job.feeds) as data:
        feeds = {name: data[name] for name in data.files}
    engine = ENGINES[job.engine]()
    times = np.full(MAX_RUNS, -1.0)
    figures: dict[str, float] = {}
    memory = {"start": memory_kib()}

    def step(name: str, action: Callable[[], object]) -> object:
        wall, busy = time.perf_counter(), time.process_time()
        value = action()
        figures[f"{name}_ms"] = (time.perf_counter() - wall) * 1e3
        figures[f"{name}_cpu_ms"] = (time.process_time() - busy) * 1e3
        memory[name] = memory_kib()
        return value

    step("import", engine.start)
    step("load", lambda: engine.load(job.file, job.threads, feeds))
    result = step("first", lambda: engine.run(feeds))
    if job.outputs:
        np.savez(job.outputs, **result)
    del result
    count = 0
    if job.seconds and job.engine != "bare":
        count, busy = latency(lambda: engine.run(feeds), job.seconds, times)
    memory["end"] = memory_kib()
    if count:
        times = np.sort(times[:count])
        figures |= {"p50_ms": float(times[count // 2]) * 1e3, "min_ms": float(times[0]) * 1e3}
        figures |= {"cpu_ms": busy / count * 1e3, "runs": count}
    return figures | {"memory_kib": memory}


if __name__ == "__main__":
    results = os.dup(1)
    os.dup2(2, 1)  # engines that print do so on standard error
    answer = work(Job(**json.loads(sys.argv[1])))
    os.write(results, (json.dumps(answer) + "\n").encode())
