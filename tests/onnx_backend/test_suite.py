"""Every case of ONNX's backend suite that `excluded.toml` does not list."""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import suite

CASES = [case for case in suite.cases() if suite.excluded(case.name) is None]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.name}")
def test_case(case):
    suite.run_case(case)


def test_every_exclusion_matches_a_case():
    names = [case.name for case in suite.cases()]
    stale = [p for p in suite.exclusions() if not any(fnmatch.fnmatchcase(n, p) for n in names)]
    assert not stale
