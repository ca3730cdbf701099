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
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

import evort
import evort_tools
from evort.ops.lowp import widen
from evort.types import DType, dtype_of

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")
HERE = Path(__file__).parent


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


def read_value(path: Path, kind: onnx.TypeProto) -> Any:
    """A protobuf test value as NumPy array, list or None."""
    proto = onnx.TensorProto()
    if kind.HasField("sequence_type"):
        proto = onnx.SequenceProto()
    elif kind.HasField("optional_type"):
        proto = onnx.OptionalProto()
    proto.ParseFromString(path.read_bytes())
    return plain(proto)


def plain(value: Any) -> Any:
    """A test value as NumPy array, list or None."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return numpy_helper.to_optional(value)
    return [plain(v) for v in value] if isinstance(value, list) else value


def data_sets(case: Any, model: onnx.ModelProto) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """(inputs by name, expected outputs) of each data set of a case."""
    constants = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    for given, expected in case.data_sets or ():
        yield dict(zip((x.name for x in inputs), map(plain, given), strict=True)), [plain(y) for y in expected]
    if case.data_sets is None:
        for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
            feeds = {x.name: read_value(folder / f"input_{i}.pb", x.type) for i, x in enumerate(inputs)}
            yield feeds, [read_value(folder / f"output_{i}.pb", y.type) for i, y in enumerate(model.graph.output)]


def run_case(case: Any, device: str = "cpu") -> None:
    """Converts, loads and runs a case. Raises AssertionError for a wrong result, evort's errors for what it refuses."""
    model = case.model if case.model is not None else onnx.load(Path(case.model_dir) / "model.onnx")
    session = evort.load(evort_tools.convert(model), threads=1, device=device)
    count = 0
    for feeds, expected in data_sets(case, model):
        results = session.run(feeds)
        for value, info in zip(expected, session.outputs, strict=True):
            compare(value, results[info.name], info.dtype, case)
        count += 1
    assert count, "the case has no data"


def compare(expected: Any, got: Any, dtype: DType, case: Any) -> None:
    """Holds a result to the expected one, with the case's own tolerances."""
    if expected is None or got is None:
        assert expected is got, f"{got} instead of {expected}"
    elif isinstance(expected, list):
        assert isinstance(got, list) and len(got) == len(expected)
        for e, g in zip(expected, got, strict=True):
            compare(e, g, dtype_of(e) if isinstance(e, np.ndarray) else dtype, case)
    else:
        expected = np.asarray(expected)
        kind = dtype_of(expected)
        assert got.shape == expected.shape, f"shape {got.shape} instead of {expected.shape}"
        if expected.dtype.kind in "OUS":
            np.testing.assert_array_equal(got.astype(str), expected.astype(str))
        elif kind in (DType.INT4, DType.UINT4, DType.INT2, DType.UINT2):
            np.testing.assert_array_equal(got, expected.astype(got.dtype))
        elif got.dtype != expected.dtype:
            assert got.dtype.itemsize == expected.dtype.itemsize, f"{got.dtype} instead of {expected.dtype}"
            np.testing.assert_allclose(
                widen(got, kind), expected.astype(np.float32), rtol=max(case.rtol, 2e-2), atol=case.atol
            )
        elif expected.dtype.kind in "fc":
            # float16: two units in the last place, where the suite's 1e-3 is less than that.
            rtol = max(case.rtol, 2**-9) if expected.dtype == np.float16 else case.rtol
            np.testing.assert_allclose(got, expected, rtol=rtol, atol=case.atol)
        else:
            np.testing.assert_array_equal(got, expected)


def operator_of(case: Any) -> str:
    """The operator that a node case is about."""
    model = case.model if case.model is not None else onnx.load(Path(case.model_dir) / "model.onnx")
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
