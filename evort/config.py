"""What this installation is and uses: versions, instruction sets, processors."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np

from evort._kernels import core
from evort._version import __version__
from evort.etm import VERSION
from evort.tuning import cpu_name

_VARIABLES = ("EVORT_CACHE", "EVORT_CPU", "EVORT_ISA", "EVORT_NUM_THREADS", "EVORT_SPIN_US")


def config() -> dict[str, object]:
    """The installation's facts by name: for reports of problems, and to check what a device offers."""
    return {
        "evort": __version__,
        "format": ".".join(map(str, VERSION)),
        "path": str(Path(__file__).parent),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "isa": core.isa(),
        "isas": list(core.available_isas()),
        "processors": core.cpu_count(),
        "quota": core.cpu_quota() or None,
        "threads": core.default_threads(),
        "pool_threads": core.pool_threads(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def show_config() -> None:
    """Prints `config()`.

    cpu: the processor, as `evort tune` names it. isa: the instruction set in use, of `isas` that this machine can run.
    processors: those that affinity and the container's quota (in processors) allow; threads: what a session uses unless
    told otherwise; pool_threads: those started so far.
    """
    for name, value in config().items():
        if isinstance(value, list):
            value = ", ".join(value)
        elif isinstance(value, dict):
            value = ", ".join(f"{k}={v}" for k, v in value.items()) or "nothing set"
        print(f"{name:13} {'none' if value is None else value}")
