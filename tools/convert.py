"""Converts ONNX models to `.etm` files.

    python tools/convert.py model.onnx -o model.etm          (also: evort convert)
    evort_tools.convert("model.onnx", "model.etm")
    data = evort_tools.convert(model_proto)                   (the file's bytes)

An ONNX model of any opset from 7 on becomes a graph of newest operators (`evort_tools.importer`), which the passes
make smaller (`evort_tools.passes`). What evort cannot run is reported here, all of it at once, never when it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from evort._version import __version__
from evort.errors import ConversionError
from evort.graph import Dim, Model, Tensor
from evort_tools.importer import import_model, read
from evort_tools.importer.check import problems_of, unsound
from evort_tools.passes import graphs_of, node_count, passes, run_passes
from evort_tools.passes.fitting import fitted
from evort_tools.passes.shapes import Shapes

if TYPE_CHECKING:
    import onnx


@dataclass
class Options:
    """How to convert.

    input_shapes: shapes to use instead of the declared ones, by input name; a string in one names a symbolic
        dimension, so {"image": (1, 3, "H", "W")} lets a model that was exported for one size take others, where its
        graph does.
    optimize: whether to run passes at all.
    disable: names of passes to leave out (`evort convert --list-passes` shows them).
    fold_limit: the most bytes that one folded constant may add to the file, unless it replaces about as many.
    metadata: text to add to the model's metadata.
    bounds: the smallest and largest size of symbolic dimensions of the inputs, {"batch": (1, 8)}; others are refused
        when the model runs, and `max_memory` is held against the largest when it is loaded.
    golden: an npz file or arrays by name, kept in the file with the outputs that they must give; see
        `evort_tools.golden.record`. `evort check` runs them.
    tolerance: how far golden outputs of floats may be off, in parts of their largest magnitude.
    """

    input_shapes: Mapping[str, Sequence[Dim]] = field(default_factory=dict)
    optimize: bool = True
    disable: Sequence[str] = ()
    fold_limit: int = 1 << 20
    metadata: Mapping[str, str] = field(default_factory=dict)
    bounds: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    golden: str | os.PathLike[str] | Mapping[str, np.ndarray] | None = None
    tolerance: float = 1e-4


def convert_model(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    options: Options | None = None,
    report: Callable[[str], None] | None = None,
) -> Model:
    """Reads an ONNX model and returns the graph that goes into the file. report: gets lines on what was done.

    Raises ConversionError with everything that keeps the model from running; OSError for files.
    """
    options = options or Options()
    source = read(model)
    result, shapes = import_model(source, options.input_shapes)
    shapes = fitted(result.graph, shapes)
    problems = unsound(result, shapes.symbols)
    if problems:
        raise ConversionError(problems)
    before = node_count(result.graph)
    if options.optimize:
        log = run_passes(result, shapes, options.disable, options.fold_limit)
    else:
        log = run_passes(result, shapes, [name for name in passes() if name != "dead_code"])
    if report is not None:
        for name, changes in log:
            report(f"{name}: {changes}")
        report(f"{before} nodes became {node_count(result.graph)}")
    problems = problems_of(result, shapes.symbols)
    if problems:
        raise ConversionError(problems)
    _annotate(result, shapes)
    result.metadata.update(_provenance(source.sha256, options))
    result.bounds = _bounds(result, options.bounds)
    if options.golden is not None:
        from evort_tools.golden import record

        arrays = options.golden
        if not isinstance(arrays, Mapping):
            with np.load(arrays, allow_pickle=False) as file:
                arrays = dict(file)
        result.golden = record(result, arrays, options.tolerance)
    return result


def convert(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    output: str | os.PathLike[str] | None = None,
    **options: object,
) -> bytes | None:
    """Converts an ONNX model: a path, its bytes or a ModelProto. options: the fields of `Options`.

    Writes the `.etm` to `output`, or returns its bytes where that is None. The same input and options give the same
    bytes. Raises ConversionError with everything that keeps the model from running.
    """
    known = [f.name for f in fields(Options)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"unknown option {', '.join(unknown)}; options: {', '.join(known)}")
    from evort import etm

    return etm.write(convert_model(model, Options(**options)), output)


def _annotate(model: Model, shapes: Shapes) -> None:
    """Notes inferred types on the inputs of nested graphs and the outputs of all. Raises ConversionError for inputs
    of whose type nothing is known."""
    unknown = []
    for graph in graphs_of(model.graph):
        for name in graph.inputs:
            if name not in graph.tensors:
                dtype = shapes.dtype(name)
                if dtype is None:
                    unknown.append(f"nothing tells the element type of {name!r}, an input of the graph {graph.name!r}")
                else:
                    graph.add(Tensor(name, dtype, shapes.shape(name)))
        for name in graph.outputs:
            tensor = graph.tensors.get(name)
            dtype, dims = shapes.dtype(name), shapes.shape(name)
            if tensor is not None and tensor.data is not None:
                continue
            if tensor is None and dtype is not None:
                graph.add(Tensor(name, dtype, dims))
            elif tensor is not None and dtype is not None:
                tensor.dtype = dtype
                if dims is not None and tensor.shape is not None and len(dims) == len(tensor.shape):
                    # What inference could not tell, the exporter may have named.
                    tensor.shape = tuple(d if d != "" else e for d, e in zip(dims, tensor.shape, strict=True))
                elif dims is not None:
                    tensor.shape = dims
    if unknown:
        raise ConversionError(unknown)


def _bounds(model: Model, bounds: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The bounds, checked. Raises ConversionError."""
    inputs = [model.graph.tensors[name] for name in model.graph.inputs]
    names = {d for tensor in inputs for d in tensor.shape or () if isinstance(d, str) and d}
    known = ", ".join(sorted(names)) or "none"
    problems = []
    for name, (low, high) in bounds.items():
        if name not in names:
            problems.append(f"there is no size {name!r} to bound; the symbolic sizes of the inputs: {known}")
        elif not 0 <= low <= high:
            problems.append(f"{low} to {high} are no bounds for {name!r}")
    if problems:
        raise ConversionError(problems)
    return {name: (int(low), int(high)) for name, (low, high) in bounds.items()}


# What the file tells elsewhere, or must not depend on.
_OWN_PLACE = {"metadata": {}, "bounds": {}, "golden": None, "tolerance": Options.tolerance}


def _provenance(sha256: str, options: Options) -> dict[str, str]:
    plain, given = (
        json.loads(json.dumps(asdict(replace(o, **_OWN_PLACE)), default=list)) for o in (Options(), options)
    )
    given = {k: v for k, v in given.items() if v != plain[k]}
    found = {"evort.version": __version__, "evort.source_sha256": sha256, **options.metadata}
    if given:
        found["evort.options"] = json.dumps(given, sort_keys=True)
    return found


# Command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="the ONNX model")
    parser.add_argument("-o", "--output", help="the .etm file to write (default: the model's name with .etm)")
    parser.add_argument(
        "--shape", action="append", default=[], metavar="INPUT=1,3,H,W",
        help="use this shape for an input; letters name sizes that may vary (repeatable)",
    )  # fmt: skip
    parser.add_argument("--disable", action="append", default=[], metavar="PASS", help="leave a pass out (repeatable)")
    parser.add_argument("--no-optimize", action="store_true", help="run no passes")
    parser.add_argument(
        "--fold-limit", type=int, default=Options.fold_limit, metavar="BYTES",
        help="the most that one folded constant may add to the file (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--bounds", action="append", default=[], metavar="NAME=1..8",
        help="sizes that a symbolic dimension may have (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--golden", metavar="FILE.npz",
        help="inputs (and outputs, where they are known from elsewhere) to keep for `evort check`",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", type=float, default=Options.tolerance,
        help="how far golden outputs may be off, in parts of their largest magnitude (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--list-passes", action="store_true", help="list the passes in order, and stop")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what each pass changed")


def parse_shape(text: str) -> tuple[str, tuple[Dim, ...]]:
    """("x", (1, 3, "H", "W")) from "x=1,3,H,W". Raises ValueError."""
    name, found, dims = text.rpartition("=")
    if not found or not name:
        raise ValueError(f"{text!r} is not of the form INPUT=1,3,H,W")
    shape: list[Dim] = []
    for part in filter(None, map(str.strip, dims.split(","))):
        if part.isdecimal():
            shape.append(int(part))
        elif part.isidentifier():
            shape.append(part)
        else:
            raise ValueError(f"{part!r} in {text!r} is neither a number nor a name")
    return name, tuple(shape)


def parse_bounds(text: str) -> tuple[str, tuple[int, int]]:
    """("batch", (1, 8)) from "batch=1..8". Raises ValueError."""
    name, _, sizes = text.rpartition("=")
    low, _, high = sizes.partition("..")
    if not name or not low.isdecimal() or not high.isdecimal():
        raise ValueError(f"{text!r} is not of the form NAME=1..8")
    return name, (int(low), int(high))


def run(args: argparse.Namespace) -> int:
    if args.list_passes:
        for name, (_, what) in passes().items():
            print(f"{name:18} {what}")
        return 0
    if not args.model:
        print("evort convert: name a model (or --list-passes)", file=sys.stderr)
        return 2
    from evort import etm

    output = Path(args.output) if args.output else Path(args.model).with_suffix(".etm")
    options = Options(
        input_shapes=dict(parse_shape(text) for text in args.shape),
        optimize=not args.no_optimize,
        disable=args.disable,
        fold_limit=args.fold_limit,
        bounds=dict(map(parse_bounds, args.bounds)),
        golden=args.golden,
        tolerance=args.tolerance,
    )
    model = convert_model(args.model, options, print if args.verbose else None)
    etm.write(model, output)
    print(f"{output}: {node_count(model.graph)} nodes, {output.stat().st_size:,} bytes")
    return 0


class _Callable(ModuleType):
    """Importing this module binds it to the name of the function, `evort_tools.convert`, so calling it converts too."""

    def __call__(self, *args: Any, **options: Any) -> bytes | None:
        return convert(*args, **options)


sys.modules[__name__].__class__ = _Callable


if __name__ == "__main__":
    from evort_tools.cli import run_command

    sys.exit(run_command("convert"))
