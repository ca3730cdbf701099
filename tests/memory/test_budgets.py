"""Every shipped and every real model, in a fresh process, stays within its row of `budgets.toml`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import measure  # noqa: E402  (scripts beside the test, not a package)
import native_allocations  # noqa: E402

BUDGETS = measure.read_budgets()
CASES = {case.name: case for case in measure.cases.real_cases()}
IMPORT_KIB = 4096  # what `import evort` may add to a process that has NumPy


def test_every_model_has_a_budget() -> None:
    there = {(name, shape) for name, case in CASES.items() for shape in case.shapes}
    missing = there - {(name, shape) for name, shapes in BUDGETS.items() for shape in shapes}
    assert not missing, f"run `python tests/memory/measure.py --update` for {sorted(missing)}"


@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name, shapes in BUDGETS.items() for shape in shapes])
def test_model_stays_within_its_budget(name: str, shape: str, tmp_path: Path) -> None:
    if name not in CASES:
        pytest.skip(f"{measure.cases.SHARED}/models has no {name}")
    figures, limits = measure.measure(CASES[name], shape, tmp_path), BUDGETS[name][shape]
    over = {key: (figures[key], limit) for key, limit in limits.items() if figures[key] > limit}
    assert not over, f"over budget (measured, allowed): {over}"
    assert figures["import_kib"] <= IMPORT_KIB
    assert figures["threads_started"] == 0, "a session of one thread started another"
    # A run keeps nothing but a number or two that statistics of the interpreter hold on to: no result and no buffer.
    assert figures["python_kept"] <= 256


@pytest.mark.skipif(not native_allocations.supported(), reason="counts through ELF tables of 64-bit glibc Linux")
def test_counter_sees_native_allocations() -> None:
    """NumPy's FFT works in memory from `malloc`, of at least the input's size; adding in place takes none."""
    folder = Path(np.__file__).parent
    values = np.linspace(0, 1, 4099)
    np.fft.rfft(values)  # imports what it needs
    with native_allocations.counting(folder) as counts:
        np.fft.rfft(values)
    assert counts.libraries and counts.calls["malloc"] >= 1 and counts.bytes >= values.nbytes
    before = counts.total
    np.fft.rfft(values)
    assert counts.total == before, "still counting after the block"
    with native_allocations.counting(folder) as counts:
        np.add(values, 1, out=values)
    assert counts.bytes < values.nbytes
