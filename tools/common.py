"""What several commands share: opening models, making inputs, sizes in words, tables."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import evort
from evort.errors import EvortError, InputError, ShapeError
from evort.files import write_atomically as write_atomically
from evort.graph import Graph
from evort.session import Session
from evort.types import FLOATS, STORAGE, DType

if TYPE_CHECKING:
    from evort.train import Batches

# progress(what, number of steps or None) starts a stage; what it returns is called after each step.
Progress = Callable[[str, int | None], Callable[[], None]]

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


def parse_size(text: str) -> int:
    """Bytes from "8MB", "512KiB", "4096"; decimal units are powers of 1000. Raises argparse.ArgumentTypeError."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmg]?i?)b?\s*", text.lower())
    if found is None or found[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it like 8MB, 512KiB or 4096")
    return int(float(found[1]) * _UNITS[found[2]])


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """("x", (1, 3, 480, 480)) from "x=1,3,480,480" (or "x=1x3x480x480"). Raises argparse.ArgumentTypeError."""
    name, equals, dims = text.rpartition("=")
    try:
        if not equals:
            raise ValueError
        return name, tuple(int(d) for d in re.split("[,x]", dims) if d)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; write it like x=1,3,480,480") from None


def parse_threads(text: str) -> list[int]:
    """[1, 2] from "1,2". Raises argparse.ArgumentTypeError."""
    try:
        threads = [int(t) for t in text.split(",")]
    except ValueError:
        threads = [0]
    if min(threads) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of thread counts; write it like 1,2")
    return threads


def bytes_text(n: float) -> str:
    """A size for people: "12.3 kB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000 or unit == "GB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    raise AssertionError("unreachable")


def source(path: str) -> str | bytes:
    """What `evort.load` takes: an .etm file's path, or an .onnx model converted in memory."""
    if path.endswith(".onnx"):
        from evort_tools.convert import convert

        return convert(path)
    return path


def open_session(path: str, **options: Any) -> Session:
    """Loads an .etm file, or converts and loads an .onnx one."""
    return evort.load(source(path), **options)


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress]:
    """A progress bar on the terminal; nothing where there is none."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:

        def start(what: str, count: int | None) -> Callable[[], None]:
            task = bar.add_task(what, total=count)
            return lambda: bar.advance(task)

        yield start


def silent(what: str, count: int | None) -> Callable[[], None]:
    """A `Progress` that shows nothing."""
    return lambda: None


def file_size(path: str) -> int:
    return os.stat(path).st_size


def shapes_of(args: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    return dict(args.shape or [])


def add_shape_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shape", type=parse_shape, action="append", metavar="NAME=D,D,...",
        help="an input's shape, where the model leaves dimensions open (repeatable; default: 1 for each open one)",
    )  # fmt: skip


def random_inputs(session: Session, shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Any]:
    """Seeded inputs: floats in [0, 1), small non-negative integers, false."""
    rng = np.random.default_rng(seed)
    unknown = shapes.keys() - {v.name for v in session.inputs}
    if unknown:
        raise ValueError(f"the model has no input {', '.join(sorted(unknown))}; it has {session.inputs}")
    feeds: dict[str, Any] = {}
    for value in session.inputs:
        shape = shapes.get(value.name)
        if shape is None:
            if value.shape is None:
                raise ValueError(f"the rank of input {value.name!r} is unknown: give --shape {value.name}=...")
            shape = tuple(d if isinstance(d, int) else 1 for d in value.shape)
        if value.dtype not in STORAGE or value.dtype == DType.STRING:
            raise ValueError(f"input {value.name!r} is of type {value.dtype.name.lower()}: give it in a file")
        storage = STORAGE[value.dtype]
        if value.dtype in FLOATS and storage.kind == "f":
            feeds[value.name] = rng.random(shape, np.float32).astype(storage)
        elif storage.kind == "b":
            feeds[value.name] = np.zeros(shape, storage)
        else:
            feeds[value.name] = rng.integers(0, 2, shape).astype(storage)
    return feeds


def tried_inputs(
    session: Session, shapes: dict[str, tuple[int, ...]], given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Inputs that the model has run with once: those given, and random ones. Raises what `random_inputs` and the run
    raise; where dimensions were left open and taken as 1, ShapeError names them."""
    given = given or {}
    shapes = shapes | {name: np.shape(value) for name, value in given.items()}
    feeds = random_inputs(session, shapes) | given
    guessed = [v for v in session.inputs if v.name not in shapes and not all(isinstance(d, int) for d in v.shape or ())]
    try:
        session.run(feeds)
    except EvortError as error:
        if not guessed:
            raise
        options = " ".join(f"--shape {v.name}={','.join(map(str, v.shape or ()))}" for v in guessed)
        raise ShapeError(f"{error}\nThe model leaves dimensions open, and 1 for each fails: give {options}") from None
    return feeds


def arrays_of(path: str) -> dict[str, np.ndarray]:
    """The arrays of an npz file, by name. Raises InputError for another file, OSError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: no npz file of arrays ({error})") from None


def batches_of(
    graph: Graph, data: Mapping[str, np.ndarray], *, shuffle: bool, batch_size: int, seed: int, scale: float
) -> Batches:
    """Batches to train a graph on, from an array for each of its inputs and one of targets. shuffle: in another order
    in each epoch, without a last batch that is smaller. scale: a factor of the inputs that are floats in the graph.

    Raises InputError where arrays are missing or too many.
    """
    from evort.train import Batches

    names = list(graph.inputs)
    others = [n for n in data if n not in names]
    if any(n not in data for n in names) or len(others) != 1:
        raise InputError(
            f"the data has arrays {', '.join(data)}; needed are {', '.join(names)} (the model's inputs) and targets"
        )
    floats = [graph.tensors[n].dtype == DType.FLOAT for n in names]

    def scaled(rng: np.random.Generator, *batch: np.ndarray) -> tuple[np.ndarray, ...]:
        inputs = [
            x.astype(np.float32) * np.float32(scale) if real else x for x, real in zip(batch, floats, strict=False)
        ]
        return (*inputs, batch[-1])

    arrays = [np.asarray(data[n]) for n in (*names, *others)]
    size = min(batch_size, len(arrays[0]))
    return Batches(*arrays, batch_size=size, shuffle=shuffle, seed=seed, drop_last=shuffle, transform=scaled)


def check_place(path: str | os.PathLike[str]) -> None:
    """Raises ValueError for a file that cannot be written where it is to go, before the work is done."""
    folder, name = os.path.split(os.path.abspath(path))
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder: name a file in it")
    if not os.path.isdir(folder):
        raise ValueError(f"{folder}: there is no such folder to write {name} to")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder}: no files may be written there, so {name} cannot be")


def print_json(data: Any) -> None:
    """Prints data as JSON that any reader takes: null for numbers that are not finite, text for what JSON lacks."""
    print(json.dumps(_finite(data), indent=2, allow_nan=False, default=str))


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    data = data.item() if isinstance(data, np.generic) else data
    return None if isinstance(data, float) and not math.isfinite(data) else data


def shipped_models() -> Path:
    """The folder models/ of evort's source tree: where this runs, or beside these tools. Raises FileNotFoundError."""
    for folder in (Path("models"), Path(__file__).resolve().parent.parent / "models"):
        if (folder / "lenet.onnx").is_file():
            return folder
    raise FileNotFoundError(
        "models/lenet.onnx is not here: run this in evort's source tree, or name its folder with --models"
    )
