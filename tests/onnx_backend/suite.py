"""ONNX's own backend suite on evort: each case is converted to `.etm` in memory, loaded, and run.

    python tests/onnx_backend/suite.py            # pass counts by operator, and every failure
    python tests/onnx_backend/suite.py --markdown # the same as the table in docs/onnx_backend.md

`excluded.toml` lists the cases that are not run, with the reason for each.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import tomllib
import warnings
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import onnx
from onnx.backend.test.loader import load_model_tests

import evort
import evort_tools

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from onnx_cases import compare, data_sets, model_of  # noqa: E402  (the tests' folder is no package)

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")


@cache
def exclusions() -> dict[str, str]:
    """Pattern of a case's name -> why it is not run."""
    with open(HERE / "excluded.toml", "rb") as file:
        groups = tomllib.load(file)["group"]
    return {pattern: group["reason"] for group in groups for pattern in group["cases"]}


def excluded(name: str) -> str | None:
    """Why a case is not run, or None."""
    return next((why for pattern, why in exclusions().items() if fnmatch.fnmatchcase(name, pattern)), None)


@cache
def cases() -> list[Any]:
    """All cases of the suite that need no download, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [case for kind in KINDS for case in load_model_tests(kind=kind)]
    return sorted(found, key=lambda case: (case.kind, case.name))


def run_case(case: Any, device: str = "cpu") -> None:
    """Converts, loads and runs a case. Raises AssertionError for a wrong result, evort's errors for what it refuses."""
    model = model_of(case)
    session = evort.load(evort_tools.convert(model), threads=1, device=device)
    count = 0
    for feeds, expected in data_sets(case, model):
        results = session.run(feeds)
        for value, info in zip(expected, session.outputs, strict=True):
            compare(value, results[info.name], case)
        count += 1
    assert count, "the case has no data"


def operator_of(case: Any) -> str:
    """The operator that a node case is about."""
    model = model_of(case)
    ops = [n.op_type for n in model.graph.node if n.op_type != "Constant"]
    return ops[0] if len(set(ops)) == 1 else f"({case.kind} graphs)"


def document(names: list[str], passed: Counter[str], failed: dict[str, int], left_out: Counter[str]) -> str:
    """docs/onnx_backend.md."""
    lines = [
        "# ONNX's backend suite on evort",
        "",
        f"{passed.total()} cases pass, {sum(failed.values())} fail, {left_out.total()} are not run (onnx "
        f"{onnx.__version__}; kinds {', '.join(KINDS)}).",
        "Each case is converted to `.etm` in memory, loaded and run. Made by",
        "`python tests/onnx_backend/suite.py --markdown`; `tests/onnx_backend/test_suite.py` runs the same cases.",
        "",
        "## Not run, and why",
        "",
    ]
    with open(HERE / "excluded.toml", "rb") as file:
        for group in tomllib.load(file)["group"]:
            names_text = ", ".join(f"`{name}`" for name in group["cases"][:5])
            more = f" and {len(group['cases']) - 5} more" if len(group["cases"]) > 5 else ""
            lines.append(f"- {group['reason']}: {names_text}{more}")
    lines += ["", "## By operator", "", "| operator | passed | failed | excluded |", "|---|---|---|---|"]
    lines += [f"| {name} | {passed[name]} | {failed.get(name, 0)} | {left_out[name]} |" for name in names]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="*", help="names of cases to run")
    parser.add_argument("--markdown", action="store_true", help="print the table for the documentation")
    parser.add_argument("--device", default="cpu", help="cpu or reference")
    args = parser.parse_args()
    passed: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    failed: dict[str, list[str]] = {}
    for case in cases():
        if not fnmatch.fnmatchcase(case.name, args.pattern):
            continue
        name = operator_of(case)
        if excluded(case.name):
            left_out[name] += 1
            continue
        try:
            run_case(case, args.device)
            passed[name] += 1
        except Exception as error:
            failed.setdefault(name, []).append(
                f"{case.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            )
    names = sorted({*passed, *left_out, *failed})
    if args.markdown:
        print(document(names, passed, {name: len(lines) for name, lines in failed.items()}, left_out))
    else:
        for name in names:
            print(f"{name:32} {passed[name]:4} passed {len(failed.get(name, ())):4} failed {left_out[name]:4} excluded")
        for lines in failed.values():
            print(*lines, sep="\n")
    total = sum(map(len, failed.values()))
    print(f"{passed.total()} passed, {total} failed, {left_out.total()} excluded", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
