"""The generated documents are current."""

from __future__ import annotations

import subprocess
import sys

from support import ROOT


def test_operator_table_is_current():
    done = subprocess.run(
        [sys.executable, "-P", "-m", "evort_tools.operators", "--markdown"], capture_output=True, text=True, check=True
    )
    assert (ROOT / "docs" / "operators.md").read_text() == done.stdout, (
        "run: evort operators --markdown > docs/operators.md"
    )
