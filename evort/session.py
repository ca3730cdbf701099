"""Loading a model and running it: `evort.load`, `Session`."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from evort._kernels import core
from evort._kernels.executor import shapes_of
from evort._records import Uncollected
from evort.backends import CpuBackend
from evort.errors import InputError, UnsupportedError
from evort.etm import read
from evort.graph import Graph, Model
from evort.plan import Plan
from evort.runner import MAX_PLANS, Planned, Runner
from evort.types import STORAGE, SUBBYTE_INTS, DType, Spec, dtype_of

DEVICES = ("cpu", "reference")
_STORES = frozenset({"DequantizeLinear", "If", "Loop", "Scan"})  # itself, or in a graph that it holds


class Value:
    """An input or output of a model: name, element type, and shape with symbolic dimensions by name."""

    __slots__ = ("dtype", "name", "shape")

    def __init__(self, name: str, dtype: DType, shape: tuple[int | str, ...] | None):
        self.name = name
        self.dtype = dtype
        self.shape = shape

    def __repr__(self) -> str:
        shape = "unknown rank" if self.shape is None else list(self.shape)
        return f"{self.name}: {self.dtype.name.lower()} {shape}"


class Memory:
    """Bytes that a session takes.

    weights_mapped: constants used straight from the file's map (shared between processes); weights_copied: constants
    and packed weights in memory of their own; arena: of the largest plan; arenas: of all programs (one for each plan
    and each concurrent caller); scratch: the largest step's, part of the arena; lower_bound: what liveness alone
    demands of the largest plan's arena. buffers: the largest plan's arena over time.
    """

    __slots__ = ("arena", "arenas", "buffers", "lower_bound", "scratch", "steps", "weights_copied", "weights_mapped")

    def __init__(self, plans: list[Any], mapped: int, copied: int):
        self.weights_mapped = mapped
        self.weights_copied = copied
        largest = max((p.plan for p in plans), key=lambda plan: plan.arena_bytes, default=None)
        self.arena = largest.arena_bytes if largest else 0
        self.arenas = sum(p.plan.arena_bytes * p.programs for p in plans)
        self.scratch = largest.scratch_bytes if largest else 0
        self.lower_bound = largest.lower_bound if largest else 0
        self.buffers = largest.buffers if largest else []
        self.steps = [s.call.node.label() for s in largest.steps] if largest else []

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = ("weights_mapped", "weights_copied", "arena", "arenas", "scratch", "lower_bound")
        buffers = [
            {"tensors": b.names, "bytes": b.nbytes, "offset": b.offset, "start": b.start, "end": b.end}
            for b in self.buffers
        ]
        return {**{key: getattr(self, key) for key in plain}, "buffers": buffers}

    def __repr__(self) -> str:
        return (
            f"weights {self.weights_mapped:,} mapped + {self.weights_copied:,} copied, arena {self.arena:,} "
            f"(liveness demands {self.lower_bound:,}; scratch {self.scratch:,} of it)"
        )


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
            raise UnsupportedError(f"device {device!r} is not one of {', '.join(DEVICES)}")
        if threads is None:
            threads = core.default_threads()
        if not isinstance(threads, int) or not 1 <= threads <= 1024:
            raise ValueError(f"threads must be an int from 1 to 1024, not {threads!r}")
        self.model = model
        self.threads = threads
        self.device = device
        self._source = source
        self._options = {"threads": threads, "device": device, "max_memory": max_memory, "shapes": shapes}
        self._mapped, self._copied = mapped, copied
        self._file = file
        graph = model.graph
        self.inputs = [_value(graph, name) for name in graph.inputs]
        self.outputs = [_value(graph, name) for name in graph.outputs]
        self._by_name = {v.name: v for v in self.inputs}
        self._backend = CpuBackend()
        if "evort.tuning." in "".join(model.metadata):  # quicker than to look at each
            from evort.tuning import for_this_cpu

            self._backend.tuned = for_this_cpu(model.metadata)
        self._runner = Runner(graph, self._backend, threads, None, max_memory, mapped + copied)
        # Plans of the first stage, by the shapes of the inputs: the short way of `_run`.
        self._ready: dict[tuple[tuple[int, ...], ...], Planned] = {}
        self._plain = [(v.name, STORAGE.get(v.dtype)) for v in self.inputs]
        self._dtypes = {v.name: v.dtype for v in self.inputs}
        if device == "cpu":
            self._plan_ahead(shapes)

    def _plan_ahead(self, shapes: dict[str, tuple[int, ...]] | None) -> None:
        """Plans the first stage at load where all input shapes are numbers (or given)."""
        shapes = dict(shapes or {})
        # The largest sizes are what a budget is held against, where the model bounds them.
        largest = {} if self._options["max_memory"] is None else self.model.bounds
        for name in shapes:
            if name not in self._by_name:
                raise InputError(f"shapes names {name!r}; the inputs are {', '.join(self._by_name)}")
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
        for name, array in outputs.items():
            if not isinstance(array, np.ndarray) or not array.flags.c_contiguous or not array.flags.writeable:
                raise InputError(f"output {name!r} must be a writeable, C-contiguous NumPy array")
            for value in inputs.values():
                if isinstance(value, np.ndarray) and np.may_share_memory(array, value):
                    raise InputError(f"output {name!r} overlaps an input")
        self._run(inputs, outputs)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Runs the model on inputs by position or name; returns the output, or a tuple of them."""
        if len(args) > len(self.inputs):
            raise InputError(f"{len(args)} inputs given; the model takes {len(self.inputs)}")
        feeds = {v.name: x for v, x in zip(self.inputs, args, strict=False)}
        for name in named:
            if name in feeds:
                raise InputError(f"input {name!r} is given twice")
        results = self._run({**feeds, **named}, None)
        outs = tuple(results[v.name] for v in self.outputs)
        return outs[0] if len(outs) == 1 else outs

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
        return Memory(self._runner.planned(), self._mapped, self._copied + self._backend.packed_bytes)

    def _run(self, inputs: dict[str, Any], into: dict[str, np.ndarray] | None) -> dict[str, Any]:
        """The short way for arrays that need no conversion, of shapes that have been run before; else the long one."""
        planned = self._ready.get(shapes_of(inputs, self._plain))
        if planned is not None:
            feeds = inputs
            if not planned.alone:
                follower = planned.follower(inputs)
                if follower is not None:
                    planned, feeds = follower
            if planned.alone:
                if into is None:
                    return self._runner.run_planned(planned, feeds)
                if planned.fits(into):
                    self._runner.run_planned_into(planned, feeds, into)
                    return into
            elif into is None:
                return self._runner.run(inputs, None, self._dtypes, None, planned)
        return self._run_checked(inputs, into)

    def _run_checked(self, inputs: dict[str, Any], into: dict[str, np.ndarray] | None) -> dict[str, Any]:
        feeds, dtypes = self._feeds(inputs)
        if self.device == "reference":
            return self._interpret(feeds, into)
        runner, stage = self._runner, self._runner.root
        planned = runner.plan(stage, runner.specs(stage, feeds, dtypes))
        if into:
            self._check_outputs(planned.plan, into)
        results = runner.run(feeds, into, dtypes, None, planned)
        if len(self._ready) >= MAX_PLANS:
            self._ready.clear()
        self._ready[tuple([feeds[v.name].shape for v in self.inputs if v.dtype in STORAGE])] = planned
        return results if len(results) == len(self.outputs) else {v.name: results[v.name] for v in self.outputs}

    def _interpret(self, feeds: dict[str, Any], into: dict[str, np.ndarray] | None) -> dict[str, Any]:
        from evort.backends.reference import interpret

        results = dict(zip((v.name for v in self.outputs), interpret(self.model.graph, feeds), strict=True))
        for name, array in (into or {}).items():
            array[...] = results[name]
            results[name] = array
        return results

    def _feeds(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, DType]]:
        """The inputs, checked, contiguous, in storage dtypes; and their element types."""
        feeds: dict[str, Any] = {}
        dtypes: dict[str, DType] = {}
        symbols: dict[str, int] = {}
        for value in self.inputs:
            name = value.name
            if name not in inputs:
                raise InputError(f"input {name!r} is missing; the model takes {self._inputs_text()}")
            given = inputs[name]
            if value.dtype not in STORAGE:
                feeds[name] = given
                continue
            array = given if isinstance(given, np.ndarray) else np.asarray(given)
            storage = STORAGE[value.dtype]
            if array.dtype != storage:
                array = self._converted(value, array, storage)
            if not array.flags.c_contiguous:
                array = np.ascontiguousarray(array)
            self._check_shape(value, array.shape, symbols)
            feeds[name] = array
            dtypes[name] = value.dtype
        for name, (low, high) in self.model.bounds.items():
            if not low <= symbols.get(name, low) <= high:
                raise InputError(f"the size {name!r} of the inputs is {symbols[name]}; the model takes {low} to {high}")
        if len(inputs) > len(feeds):
            unknown = ", ".join(repr(n) for n in inputs if n not in feeds)
            raise InputError(f"unknown input {unknown}; the model takes {self._inputs_text()}")
        return feeds, dtypes

    def _inputs_text(self) -> str:
        return "; ".join(map(repr, self.inputs)) or "none"

    @staticmethod
    def _converted(value: Value, array: np.ndarray, storage: np.dtype) -> np.ndarray:
        """An array of another NumPy dtype that stands for the same element type (ml_dtypes' bfloat16 as its bits, text
        as objects, Python numbers). Raises InputError for any other."""
        if value.dtype == DType.STRING and array.dtype.kind in "USO":
            return array.astype(object)
        try:
            same = dtype_of(array) == value.dtype
        except TypeError:
            same = False
        if same and value.dtype in SUBBYTE_INTS:  # ml_dtypes leaves the upper bits open
            return array.astype(storage)
        if same and array.dtype.itemsize == storage.itemsize:
            return np.ascontiguousarray(array).view(storage)
        wanted = f"{value.dtype.name.lower()} ({storage})"
        raise InputError(f"input {value.name!r} is {array.dtype}; the model takes {wanted}")

    @staticmethod
    def _check_shape(value: Value, shape: tuple[int, ...], symbols: dict[str, int]) -> None:
        expected = value.shape
        if expected is None or expected == shape:
            return
        good = len(expected) == len(shape)
        if good:
            for want, got in zip(expected, shape, strict=True):
                if isinstance(want, int):
                    good = good and want == got
                elif want:
                    good = good and symbols.setdefault(want, got) == got
        if not good:
            named = f" with {symbols}" if symbols else ""
            raise InputError(f"input {value.name!r} has shape {list(shape)}; the model takes {list(expected)}{named}")

    def _check_outputs(self, plan: Plan, into: dict[str, np.ndarray]) -> None:
        names = {v.name for v in self.outputs}
        for name, array in into.items():
            if name not in names:
                raise InputError(f"unknown output {name!r}; the model gives {', '.join(names)}")
            spec = plan.specs.get(name)
            if spec is not None and (array.shape != spec.shape or array.dtype != STORAGE[spec.dtype]):
                raise InputError(
                    f"output {name!r} is given as {array.dtype}{list(array.shape)}; the model gives {spec!r}"
                )


def _value(graph: Graph, name: str) -> Value:
    tensor = graph.tensors.get(name)
    return Value(name, DType.FLOAT, None) if tensor is None else Value(name, tensor.dtype, tensor.shape)


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

    Raises EtmFormatError for a damaged file, UnsupportedError for an operator that evort lacks, MemoryBudgetError where
    a plan needs more than `max_memory` (at load if planned then, else at the first run of a shape), OSError where the
    file cannot be read.
    """
    if shadow is not None and adaptive:
        raise ValueError("shadow compares with ranges that stay; adaptive moves them")
    with Uncollected():
        file = read(source, checksum=checksum)
        make = Session
        if shadow is not None:
            from evort.shadow import ShadowedSession as make
        elif adaptive:
            from evort.adaptive import AdaptiveSession as make
        model, widened = file.model, 0
        if _may_store(model.graph):
            from evort.weights import with_floats

            model, widened = with_floats(model)
        session = make(
            model,
            source=os.fspath(source) if isinstance(source, str | os.PathLike) else bytes(source),
            threads=threads,
            device=device,
            max_memory=max_memory,
            shapes=shapes,
            mapped=file.nbytes_mapped,
            copied=file.nbytes_copied + widened,
            file=file,
        )
        if shadow is not None:
            session.watch(shadow, shadow_model, alarm_sqnr, alarm_saturation)
        elif adaptive:
            session.adapt(adaptive)
        return session


def _may_store(graph: Graph) -> bool:
    """Whether a graph, or one nested in it, may hold weights that become floats at loading, see `evort.weights`."""
    for node in graph.nodes:
        if node.op in _STORES and (node.op == "DequantizeLinear" or any(map(_may_store, node.subgraphs()))):
            return True
    return False


def _reload(source: str | bytes, options: dict[str, Any]) -> Session:
    return load(source, **options)


__all__ = ["DEVICES", "Memory", "Session", "Value", "load"]
