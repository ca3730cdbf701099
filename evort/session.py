"""Loading a model and running it: `evort.load`, `Session`."""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock  # importing threading takes longer than all of this module
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from evort._kernels import core, preload
from evort._kernels.executor import Ready, apart, run_ready

if TYPE_CHECKING:
    from evort._kernels.core import Mapping
    from evort.cache import Place
    from evort.etm import File
    from evort.graph import Graph, Model
    from evort.memory import Memory
    from evort.plan import Plan
    from evort.types import DType

DEVICES = ("cpu", "reference")
MAX_SHAPES = 16  # whose plans are found the short way
_STORES = frozenset({"DequantizeLinear", "WidenNBits"})
_HOLDS = frozenset({"If", "Loop", "Scan"})  # graphs

_KEPT = ("evort.files", "evort.cache")  # what running a kept plan takes
# What reading and planning a model takes, in the order that `preload` wants (tests/test_imports.py). A session with a
# kept plan (evort.cache) does without all of it.
_PLANNING = (
    "evort.errors", "evort._records", "evort.types", "evort.graph", "evort.ops.", "evort.ops.base",
    "evort.ops.activation", "evort.ops.conv", "evort.ops.linear", "evort.ops.pool", "evort.ops.views", "evort.files",
    "evort.etm._reader", "evort.etm.", "evort.backends.", "evort.plan._planner", "evort.plan.", "evort.runner",
    "evort.inputs",
)  # fmt: skip
_importing = allocate_lock()


class Session:
    """A loaded model. Made by `evort.load`.

    Any number of threads may run it at once: each gets an arena of its own, the weights are shared, and the GIL is
    released while kernels run. Pickling a session stores its path (or bytes) and options; unpickling loads it again.
    """

    def __init__(
        self,
        model: Model,
        *,
        source: Any = None,
        threads: int | None = None,
        device: str = "cpu",
        max_memory: int | None = None,
        shapes: dict[str, tuple[int, ...]] | None = None,
        mapped: int = 0,
        copied: int = 0,
        file: Any = None,
    ):
        if device not in DEVICES:
            from evort.errors import UnsupportedError

            raise UnsupportedError(f"device {device!r} is not one of {', '.join(DEVICES)}")
        self.threads = threads = _threads(threads)
        self.device = device
        self._source = source
        self._options = {"threads": threads, "device": device, "max_memory": max_memory, "shapes": shapes}
        self._place: Place | None = None
        self._ready: list[Ready] = []  # the short way of `_run`
        self._open(model, mapped, copied, file)

    def _open(self, model: Model, mapped: int, copied: int, file: Any) -> None:
        """Sets up what is of the model."""
        from evort.backends import CpuBackend
        from evort.inputs import values
        from evort.runner import Runner
        from evort.types import STORAGE

        graph, max_memory = model.graph, self._options["max_memory"]
        self._mapped, self._copied, self._file = mapped, copied, file
        self.inputs, self.outputs = values(graph, graph.inputs), values(graph, graph.outputs)
        self._plain = [(v.name, STORAGE.get(v.dtype)) for v in self.inputs]
        self._dtypes, self._gives = {v.name: v.dtype for v in self.inputs}, graph.outputs
        self._backend = CpuBackend()
        if "evort.tuning." in "".join(model.metadata):  # quicker than to look at each
            from evort.tuning import for_this_cpu

            self._backend.tuned = for_this_cpu(model.metadata)
        self._runner = Runner(graph, self._backend, self.threads, None, max_memory, mapped + copied)
        self.model = model
        if self.device == "cpu":
            self._plan_ahead(self._options["shapes"])

    def _plan_ahead(self, shapes: dict[str, tuple[int, ...]] | None) -> None:
        """Plans the first stage at load where all input shapes are numbers (or given)."""
        from evort.types import STORAGE, Spec

        shapes = dict(shapes or {})
        # The largest sizes are what a budget is held against, where the model bounds them.
        largest = {} if self._options["max_memory"] is None else self.model.bounds
        names = [v.name for v in self.inputs]
        for name in shapes:
            if name not in names:
                from evort.errors import InputError

                raise InputError(f"shapes names {name!r}; the inputs are {', '.join(names)}")
        specs = {}
        for value in self.inputs:
            shape = shapes.get(value.name, value.shape)
            if largest and shape is not None:
                shape = [largest[d][1] if d in largest else d for d in shape]
            if shape is None or not all(isinstance(d, int) for d in shape) or value.dtype not in STORAGE:
                return
            specs[value.name] = Spec(value.dtype, tuple(shape))
        stage = self._runner.root
        if all(n in specs for n in stage.reads):
            self._runner.plan(stage, {n: specs[n] for n in stage.reads})

    def __reduce__(self):
        if self._source is None:
            raise TypeError("a session made from a model in memory cannot be pickled; write it to a file and load that")
        return _reload, (self._source, self._options)

    def __repr__(self) -> str:
        ins = ", ".join(map(repr, self.inputs))
        outs = ", ".join(map(repr, self.outputs))
        return f"Session({ins} -> {outs}; {self.device}, {self.threads} thread{'s' if self.threads > 1 else ''})"

    @property
    def metadata(self) -> dict[str, str]:
        """The model's free-text metadata."""
        return dict(self.model.metadata)

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Runs the model; returns its outputs by name, in arrays that the caller owns.

        inputs: an array for each input, of its dtype and shape. Raises InputError for one missing, unknown or of a
        wrong dtype or shape, ExecutionError where a kernel refuses its operands.
        """
        return self._run(inputs, None)

    def run_into(self, inputs: dict[str, Any], outputs: dict[str, np.ndarray]) -> None:
        """Runs the model and writes its outputs to arrays of the caller's: C-contiguous, writeable, of the right dtype
        and shape, overlapping no input. Once the shapes are planned, nothing is allocated.

        Raises InputError as `run` does.
        """
        if type(inputs) is not dict or type(outputs) is not dict or not apart(inputs, outputs):
            from evort.inputs import check_targets

            check_targets(inputs, outputs)
        self._run(inputs, outputs)

    def __call__(self, *args: Any, **given: Any) -> Any:
        """Runs the model on inputs by position or name; returns the output, or a tuple of them."""
        if len(args) == 1 and len(self._plain) == 1 and not given:
            feeds = {self._plain[0][0]: args[0]}
        else:
            from evort.inputs import named

            feeds = named([name for name, _ in self._plain], args, given)
        results = self._run(feeds, None)
        if len(self._gives) == 1:
            return results[self._gives[0]]
        return tuple([results[name] for name in self._gives])

    def profile(self, inputs: dict[str, Any]) -> list[tuple[Plan, np.ndarray]]:
        """Runs the model once, timed: for each stage, its plan and the nanoseconds of each of its rows (its steps,
        then the copies of outputs)."""
        times: list[tuple[Plan, np.ndarray]] = []
        feeds, dtypes = self._feeds(inputs)
        self._runner.run(feeds, None, dtypes, times)
        return times

    @property
    def tuned(self) -> dict[tuple[str, tuple[int, ...]], str] | None:
        """The kernels that the file has for this processor (see evort.tuning), by the name and shape of a layer's first
        output; None where it has none."""
        return self._backend.tuned

    def plans(self) -> list[Plan]:
        """The plans made so far."""
        return [p.plan for p in self._runner.planned()]

    def memory(self) -> Memory:
        """What the session takes, by the plans made so far."""
        from evort.memory import Memory
        from evort.weights import pending

        copied = self._copied - pending(self.model.graph) + self._backend.packed_bytes
        return Memory(self._runner.planned(), self._mapped, copied)

    def _run(self, inputs: dict[str, Any], into: dict[str, np.ndarray] | None) -> dict[str, Any]:
        """The short way for arrays that need no conversion, of shapes that have been run before; else the long one."""
        results = run_ready(self._ready, self._plain, inputs, into)
        return self._run_checked(inputs, into) if results is None else results

    def _run_checked(self, inputs: dict[str, Any], into: dict[str, np.ndarray] | None) -> dict[str, Any]:
        feeds, dtypes = self._feeds(inputs)
        if self.device == "reference":
            return self._interpret(feeds, into)
        runner, stage = self._runner, self._runner.root
        planned = runner.plan(stage, runner.specs(stage, feeds, dtypes))
        if into:
            from evort.inputs import check_outputs

            check_outputs(self.outputs, planned.plan, into)
        results = runner.run(feeds, into, dtypes, None, planned)
        if all(type(array) is np.ndarray and inputs[name] is array for name, array in feeds.items()):
            names = [name for name, _ in self._plain]
            ready = planned.ready(feeds, names, lambda given: runner.run(given, None, dtypes, None, planned))
            if all(other.key != ready.key for other in self._ready):
                if len(self._ready) >= MAX_SHAPES:
                    self._ready.clear()
                self._ready.append(ready)
        place, self._place = self._place, None
        if place is not None:
            place.keep(self, planned, feeds)
        return results if len(results) == len(self._gives) else {name: results[name] for name in self._gives}

    def _feeds(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, DType]]:
        """The inputs, checked, contiguous, in storage dtypes; and their element types. Raises InputError."""
        from evort.inputs import checked

        return checked(self.inputs, self.model.bounds, inputs)

    def _interpret(self, feeds: dict[str, Any], into: dict[str, np.ndarray] | None) -> dict[str, Any]:
        from evort.backends.reference import interpret

        results = dict(zip(self._gives, interpret(self.model.graph, feeds), strict=True))
        for name, array in (into or {}).items():
            array[...] = results[name]
            results[name] = array
        return results


def load(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview,
    *,
    threads: int | None = None,
    device: str = "cpu",
    max_memory: int | None = None,
    shapes: dict[str, tuple[int, ...]] | None = None,
    checksum: bool = False,
    shadow: int | None = None,
    shadow_model: str | os.PathLike[str] | bytes | None = None,
    alarm_sqnr: float = 20.0,
    alarm_saturation: float = 0.05,
    adaptive: Any = None,
    cache: str | os.PathLike[str] | None = None,
) -> Session:
    """Loads a `.etm` model from a path (memory-mapped) or from bytes.

    threads: how many threads a run may use; the default is EVORT_NUM_THREADS, or the processors that the process may
    use. A session of one thread starts none. device: "cpu", or "reference" (NumPy, slow, for checking).
    max_memory: bytes that weights and arena may take together. shapes: input shapes to plan for now; models whose
    input shapes are all numbers (or bounded, where `max_memory` is given) are planned at load in any case. checksum:
    verify the weights too (the structure always is). shadow: repeat one run in so many in float32, with the float model
    `shadow_model` that a quantized one was made from, and count how far each layer is off (`session.shadow`, see
    `evort.shadow`); alarm_sqnr (dB), alarm_saturation (share): what is too far. adaptive: True, or options (a dict,
    or an `evort.adaptive.Adaptive`): a quantized model's ranges and precision follow its inputs; see `evort.adaptive`.
    cache: a folder of this user's own, by default what EVORT_CACHE says, in which the plan of the first run is kept, so
    that the next start needs neither graph nor planner; see `evort.cache`. Models from bytes, `checksum`, `shadow`,
    `adaptive` and other devices do without.

    Raises EtmFormatError for a damaged file, UnsupportedError for an operator that evort lacks, MemoryBudgetError where
    a plan needs more than `max_memory` (at load if planned then, else at the first run of a shape), OSError where the
    file cannot be read, PermissionError for a cache that others may write to.
    """
    if shadow is not None and adaptive:
        raise ValueError("shadow compares with ranges that stay; adaptive moves them")
    options = {"threads": _threads(threads), "device": device, "max_memory": max_memory, "shapes": shapes}
    path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    folder = os.environ.get("EVORT_CACHE") if cache is None else cache
    place = mapped = None
    if folder and path is not None and device == "cpu" and shadow is None and not adaptive and not checksum:
        if "evort.cache" not in sys.modules:
            preload(_KEPT)
        from evort.cache import KeptSession, Place
        from evort.files import map_file

        mapped, status = map_file(path)
        place = Place(folder, path, status, options["threads"], shapes, max_memory)
        kept = place.find(mapped)
        if kept is not None:
            return KeptSession(kept, path, {**options, "cache": cache})
    import_planning()
    with core.Uncollected():
        make = Session
        if shadow is not None:
            from evort.shadow import ShadowedSession as make
        elif adaptive:
            from evort.adaptive import AdaptiveSession as make
        file, model, copied = read_model(source if path is None else path, checksum, mapped)
        session = make(
            model,
            source=bytes(source) if path is None else path,
            mapped=file.nbytes_mapped,
            copied=copied,
            file=file,
            **options,
        )
        session._options["cache"] = cache
        session._place = place
        if shadow is not None:
            session.watch(shadow, shadow_model, alarm_sqnr, alarm_saturation)
        elif adaptive:
            session.adapt(adaptive)
        return session


def import_planning() -> None:
    """Imports what planning takes, where that was not done before: one thread at a time, since Python gives up where
    one imports a package and another a module of it."""
    with _importing:
        if "evort.runner" in sys.modules:
            return
        with core.Uncollected():
            preload(_PLANNING)
            # Where it did not, packages first: others may import a package while its modules are imported here.
            for name in sorted(_PLANNING, key=lambda name: not name.endswith(".")):
                import_module(name.rstrip("."))


def _threads(threads: int | None) -> int:
    if threads is None:
        threads = core.default_threads()
    if not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise ValueError(f"threads must be an int from 1 to 1024, not {threads!r}")
    return threads


def read_model(source: Any, checksum: bool, mapped: Mapping | None) -> tuple[File, Model, int]:
    """A file, its model with the floats that it stores otherwise, and the bytes of it that are copies."""
    from evort.etm import read

    file = read(source, checksum=checksum, mapped=mapped)
    if not _may_store(file.model.graph):
        return file, file.model, file.nbytes_copied
    from evort.weights import with_floats

    model, widened = with_floats(file.model)
    return file, model, file.nbytes_copied + widened


def _may_store(graph: Graph) -> bool:
    """Whether a graph, or one nested in it, may hold weights that become floats at loading, see `evort.weights`."""
    for node in graph.nodes:
        if node.op in _STORES or (node.op in _HOLDS and any(map(_may_store, node.subgraphs()))):
            return True
    return False


def _reload(source: str | bytes, options: dict[str, Any]) -> Session:
    return load(source, **options)


__all__ = ["DEVICES", "Session", "import_planning", "load", "read_model"]
