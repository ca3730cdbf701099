"""Limits on a file's size and a run's time as users write them: with a unit, or as a share of the float model's."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from typing import Any

from evort_tools.common import parse_size


def size_limit(text: str | float, whole: int) -> float:
    """Bytes from "200kB", 200000, or "30%" of the float file. Raises ValueError."""
    share = _share(text)
    if share is not None:
        return share * whole
    try:
        return parse_size(str(text))
    except ArgumentTypeError as error:
        raise ValueError(f"max_size: {error}, or 30% of the float file") from None


def latency_limit(text: str, whole: float) -> float:
    """Microseconds from "2.5ms", "800us", or "60%" of the float model's. Raises ValueError."""
    share = _share(text)
    if share is not None:
        return share * whole
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(us|µs|ms|s)\s*", str(text).lower())
    if found is None:
        raise ValueError(f"max_latency: {text!r} is no time; write it like 2.5ms, 800us, or 60% of the float model's")
    return float(found[1]) * {"us": 1.0, "µs": 1.0, "ms": 1e3, "s": 1e6}[found[2]]


def _share(text: Any) -> float | None:
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*%\s*", str(text))
    return None if found is None else float(found[1]) / 100
