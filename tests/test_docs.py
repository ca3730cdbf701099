"""The generated documents are current."""

from __future__ import annotations

import re
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


def test_operator_index_is_complete():
    """setup.py's table names each operator that evort itself defines, and no other."""
    from evort.ops import registered
    from evort.ops.base import index

    own = {key for key, op in registered().items() if type(op).__module__.startswith("evort.ops.")}
    assert own == set(index())


def test_documents_name_files_that_exist():
    """Links of the documents, and paths from the top of the tree in their text."""
    missing = []
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        text = page.read_text()
        links = [page.parent / link for link in re.findall(r"\]\(([^)#:]+)[^):]*\)", text)]
        paths = [ROOT / path for path in re.findall(r"`((?:evort|tools|tests|benchmarks|examples)/[\w/.]+)`", text)]
        missing += [f"{page.name}: {path}" for path in (*links, *paths) if not path.exists()]
    assert not missing
