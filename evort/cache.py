"""Plans that are kept from one start of a program to the next: `evort.load(path, cache=folder)`.

What a plan is to `executor.Program` - tensors, drivers with their parameters, the size of the arena - goes to a file,
with the constants that the model's file does not have as drivers want them, such as packed weights. The next start maps
both files and runs: no graph, no operator's definition and no planner is loaded, which is what a start consists of.

    magic, hash of the structure, its length | structure (marshal) | constants, each at a multiple of 64 bytes

A plan holds for one file (inode, size and times), one build of evort and Python, one instruction set and number of
threads; where anything has changed it is made and written anew. Drivers do what it says, so it must be trusted as
Python's own bytecode is: the folder has to belong to the user and be writable for nobody else.
"""

from __future__ import annotations

import os
import stat
import sys
from _imp import source_hash  # of 64 bits, and there already
from _thread import allocate_lock
from collections.abc import Iterator
from functools import cached_property
from marshal import dumps, loads
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from evort._kernels import SHARED_OBJECT, core, preload
from evort._kernels.executor import CONST, Programs, Ready, StepFailed, driver_capsule
from evort.files import map_file, write_atomically
from evort.session import Session, import_planning, read_model

if TYPE_CHECKING:
    from evort._kernels.core import Mapping
    from evort.inputs import Value
    from evort.plan import Plan
    from evort.runner import Planned

_MAGIC = b"evortplan\x01\r\n\x00\x00\x00\x00"
_HEADER = 32  # the magic, and 8 bytes each of hash and length
_ALIGN = 64
_KEY = 1


class _DTypes(dict):
    """NumPy dtypes by their text; those of an equal text are the same object, as run time looks for."""

    def __missing__(self, text: str) -> np.dtype:
        found = self[text] = np.dtype(text)
        return found


class Kept:
    """What a file has.

    file: the model's map. inputs, outputs: name, number of the element type, and shape with symbolic dimensions; plain:
    name and NumPy dtype of the inputs; shapes: theirs that the plan is for; ready: what runs inputs of these
    shapes, and values where it is for some.
    """

    __slots__ = ("file", "inputs", "outputs", "plain", "ready", "shapes")

    def __init__(self, found: dict[str, Any], file: Mapping, own: memoryview, threads: int):
        self.file = file
        self.inputs, self.outputs, self.shapes = found["inputs"], found["outputs"], found["shapes"]
        dtypes = _DTypes()
        self.plain = [(name, dtypes[text]) for name, text in found["plain"]]
        names = dict.fromkeys([row[0] for row in found["rows"]])
        families = dict.fromkeys(["evort._kernels." + name.partition(".")[0] for name in names])
        preload(tuple(families))
        drivers = {name: driver_capsule(name) for name in names}
        plan = SimpleNamespace(
            tensors=[
                (number, kind, i, at, dtypes[text], shape) for number, kind, i, at, text, shape in found["tensors"]
            ],
            rows=[(drivers[row[0]], None, *row[1:]) for row in found["rows"]],
            constants=[file, own],
            arena_bytes=found["arena_bytes"],
            reads=found["reads"],
        )
        writes = [(name, shape, dtypes[text]) for name, shape, text in found["writes"]]
        programs, names = Programs(plan, writes, True, threads), [name for name, _ in self.plain]
        given = {n: np.frombuffer(data, text).reshape(shape) for n, text, shape, data in found["given"]}
        self.ready = Ready(self.shapes, programs, names, dict(found["switch"]), given)


class _OfModel:
    """An attribute of a session that only the model tells, which is read when one is asked for. What a session has set
    itself comes first."""

    def __set_name__(self, owner: type, name: str):
        self.name = name

    def __get__(self, session: KeptSession, owner: type) -> Any:
        session.read_model()
        return session.__dict__[self.name]


class KeptSession(Session):
    """A session that runs a kept plan. The model is read where more than that is asked for."""

    model, _backend, _runner, _dtypes, _mapped, _copied, _file = [_OfModel() for _ in range(7)]

    def __init__(self, kept: Kept, source: str, options: dict[str, Any]):
        self.threads, self.device = options["threads"], "cpu"
        self._source, self._options = source, options
        self._kept: Kept | None = kept
        self._place = None
        self._ready, self._plain = [kept.ready], kept.plain
        self._gives = [name for name, *_ in kept.outputs]
        self._lock = allocate_lock()

    @cached_property
    def inputs(self) -> list[Value]:
        return self._values(self._kept.inputs)

    @cached_property
    def outputs(self) -> list[Value]:
        return self._values(self._kept.outputs)

    @staticmethod
    def _values(found: list[tuple[str, int, Any]]) -> list[Value]:
        from evort.inputs import Value
        from evort.types import DType

        return [Value(name, DType(number), shape) for name, number, shape in found]

    def read_model(self) -> None:
        """Reads the model; the session goes on as any other."""
        with self._lock:
            kept = self._kept
            if kept is not None:
                import_planning()
                with core.Uncollected():
                    file, model, copied = read_model(self._source, False, kept.file)
                    self._open(model, file.nbytes_mapped, copied, file)
                    self._plan_ahead({name: shape for (name, _), shape in zip(kept.plain, kept.shapes, strict=True)})
                self._ready, self._kept = [], None

    def _run(self, inputs: dict[str, Any], into: dict[str, np.ndarray] | None) -> dict[str, Any]:
        try:
            return super()._run(inputs, into)
        except StepFailed:  # the model has the words for it
            self.read_model()
            return self._run_checked(inputs, into)


class Place:
    """Where the plan of a model is kept, and what it must be for.

    folder: made where there is none. model: the model's path, and status: what the system says of it; the others are
    options of `evort.load`. Raises PermissionError for a folder that others may write to, and OSError.
    """

    __slots__ = ("max_memory", "path", "stamp", "threads")

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: str,
        status: os.stat_result,
        threads: int,
        shapes: dict[str, tuple[int, ...]] | None,
        max_memory: int | None,
    ):
        # With a budget, the largest shapes were planned as well.
        options = core.isa(), threads, repr(shapes or {}), max_memory is not None, os.environ.get("EVORT_CPU", "")
        name = repr((os.path.abspath(model), *options)).encode(errors="surrogateescape")
        stem = os.path.splitext(os.path.basename(model))[0]
        self.path = os.path.join(_private(os.fspath(folder)), f"{stem}-{source_hash(_KEY, name).hex()}.plan")
        self.stamp = (sys.implementation.cache_tag, *options, _identity(status), _identity(os.stat(SHARED_OBJECT[0])))
        self.threads, self.max_memory = threads, max_memory

    def find(self, file: Mapping) -> Kept | None:
        """The plan that is kept here, where it is whole, of this very model and build, and takes no more memory than is
        allowed. file: the model's map."""
        try:
            data = memoryview(map_file(self.path)[0])
        except (OSError, ValueError):
            return None
        end = _HEADER + int.from_bytes(data[24:_HEADER], "little")
        structure = data[_HEADER:end]
        if data[:16] != _MAGIC or source_hash(_KEY, structure) != data[16:24]:
            return None
        found = loads(structure)
        start = end + -end % _ALIGN
        if found["stamp"] != self.stamp or len(data) != start + found["nbytes"]:
            return None
        if self.max_memory is not None and found["needed"] > self.max_memory:
            return None  # planning says so in words
        return Kept(found, file, data[start:], self.threads)

    def keep(self, session: Session, planned: Planned, feeds: dict[str, Any]) -> None:
        """Writes what runs inputs of these shapes, where that is one plan of drivers alone: no Python functions, text
        or sequences. A folder that cannot be written to is a warning, since the model runs without."""
        from evort.types import STORAGE  # not to run a plan

        switch: tuple[tuple[str, bytes], ...] = ()
        given: dict[str, np.ndarray] = {}
        if planned.switched:
            values, (following, given) = next(iter(planned.switched.items()))
            switch, planned = tuple(zip(planned.switch, values, strict=True)), following
        plan, plain = planned.plan, [(v.name, STORAGE.get(v.dtype)) for v in session.inputs]
        rows = list(_rows(plan))
        if not planned.alone or None in rows or any(dtype is None or dtype.hasobject for _, dtype in plain):
            return
        parts = _Parts()
        tensors = []
        for number, kind, index, at, dtype, shape in plan.tensors:
            if kind == CONST:
                index, start = parts.place(plan.constants[index])
                at += start
            tensors.append((number, kind, index, at, dtype.str, shape))
        memory = session.memory()
        structure = dumps(
            {
                "stamp": self.stamp,
                "nbytes": parts.nbytes,
                "needed": memory.weights_mapped + memory.weights_copied + memory.arena,
                "inputs": [(v.name, int(v.dtype), v.shape) for v in session.inputs],
                "outputs": [(v.name, int(v.dtype), v.shape) for v in session.outputs],
                "plain": [(name, dtype.str) for name, dtype in plain],
                "shapes": tuple([feeds[name].shape for name, _ in plain]),
                "switch": switch,
                "given": [(name, array.dtype.str, array.shape, array.tobytes()) for name, array in given.items()],
                "tensors": tensors,
                "rows": rows,
                "arena_bytes": plan.arena_bytes,
                "reads": plan.reads,
                "writes": [(name, shape, dtype.str) for name, shape, dtype in planned.writes],
            }
        )
        head = _MAGIC + source_hash(_KEY, structure) + len(structure).to_bytes(8, "little")
        try:
            write_atomically(self.path, [head, structure, bytes(-(_HEADER + len(structure)) % _ALIGN), *parts.data])
        except OSError as error:
            from warnings import warn

            warn(f"evort cannot keep the plan of a model: {error}", RuntimeWarning, stacklevel=4)


class _Parts:
    """The constants that go to the file of a plan, one after another. data: their bytes and what is between them."""

    def __init__(self) -> None:
        self.data: list[bytes | memoryview] = []
        self.nbytes = 0
        self._places: dict[int, int] = {}

    def place(self, array: np.ndarray) -> tuple[int, int]:
        """Which of the two files has a constant (0: the model's), and where."""
        mapped = core.place_in(array)
        if mapped is not None:
            return 0, mapped[1]
        found = self._places.get(id(array))
        if found is None:
            found = self._places[id(array)] = self.nbytes
            self.data += [memoryview(array).cast("B") if array.size else b"", bytes(-array.nbytes % _ALIGN)]
            self.nbytes += array.nbytes + -array.nbytes % _ALIGN
        return 1, found


def _rows(plan: Plan) -> Iterator[tuple[Any, ...] | None]:
    """A plan's rows, with their drivers by name; None for one that no name stands for."""
    for i, (_, function, ins, outs, ints, reals, scratch, nbytes) in enumerate(plan.rows):
        driver = plan.steps[i].driver if i < len(plan.steps) else "executor.copy"
        if function is not None or "." not in driver:
            yield None
        else:
            numbers = tuple(map(int, ints)), tuple(map(float, reals))
            yield (driver, tuple(ins), tuple(outs), *numbers, int(scratch), int(nbytes))


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """What changes where a file is written, replaced or restored."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _private(folder: str) -> str:
    """The folder, made where there is none. Raises PermissionError where others than the user may write to it."""
    try:
        status = os.stat(folder)
    except FileNotFoundError:
        os.makedirs(folder, 0o700)
        status = os.stat(folder)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{folder}: the cache must be a folder")
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            f"{folder}: plans are run as they are, so the cache must belong to this user and be writable for nobody "
            "else (chmod go-w)"
        )
    return folder


__all__ = ["Kept", "KeptSession", "Place"]
