"""What an operator is to evort: one class that holds all of its meaning.

    @op("Relu", since=14)
    class Relu(Op):
        inputs, outputs = ("X",), ("Y",)
        dtypes = {"X": FLOATS | SIGNED_INTS}
        inplace = ((0, 0),)

        def infer(self, c):                      # dtype and shape of the outputs
            return [c.like(0)]

        def reference(self, c, x):               # what it means, in NumPy: the oracle
            return np.maximum(x, 0)

        def bind(self, c):                       # the compiled driver, or None: then the reference runs
            return Kernel("elementwise.unary", ints=(RELU,)) if c.ins[0].dtype == DType.FLOAT else None

The importer, the file reader, the planner, the documentation and the tests all read these classes; adding an operator
is one such class, one driver in `evort/_kernels/` where speed matters, and one row of test cases. Each operator has
one form, that of its newest ONNX version (`since` is the opset that introduced that form); the importer rewrites older
ones. Users register their own in the same way, with a `domain` of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from evort._kernels import preload
from evort._records import REQUIRED, Call, Kernel, NeedsValue
from evort.errors import ShapeError, UnsupportedError
from evort.graph import Graph, Node
from evort.types import ANY, STORAGE, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients


class DataDependent(Exception):
    """Raised by `infer` where only running the operator tells its outputs' shapes (NonZero), or where its operands
    are no tensors (sequences, strings). The planner ends the stage, runs the operator's reference, and goes on."""


class Attr:
    """An attribute's kind ("int", "float", "str", "ints", "floats", "strs", "tensor", "graph") and its default;
    REQUIRED where there is none, None where it may be absent."""

    __slots__ = ("default", "kind")

    def __init__(self, kind: str, default: Any = None):
        self.kind = kind
        self.default = default


class Op:
    """Base class of operator definitions; one instance each is registered by `@op`.

    inputs, outputs: names from the ONNX operator; a trailing "?" marks an optional one, a leading "*" (the last only)
      any number of them.
    attrs: the attributes, by name.
    dtypes: the element types allowed, by input name; all where a name is missing.
    inplace: pairs (output, input): the driver may write the output over the input where both have the same shape
      and item size (element i of the output depends on no other element of that input than i).
    unread: optional inputs that change nothing, so that the converter need not compute them.
    deterministic: false for random operators (never folded, never merged).
    joins: the operator whose only reader a node may be for `join` to see both; "" for chains of its own.
    choices: drivers of which more than one may take a node, for `evort tune` to time; `bind` chooses among them by what
      it expects of their speed, unless `Call.kernel` names one.
    untrained: indices of float inputs that are no parameters to train (statistics, bounds, scales).
    """

    name: ClassVar[str]
    domain: ClassVar[str]
    since: ClassVar[int]
    # (fewest inputs, most inputs, fewest outputs, most outputs); None for any number.
    arity: ClassVar[tuple[int, int | None, int, int | None]]
    inputs: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[tuple[str, ...]] = ()
    attrs: ClassVar[dict[str, Attr]] = {}
    dtypes: ClassVar[dict[str, frozenset[DType]]] = {}
    inplace: ClassVar[tuple[tuple[int, int], ...]] = ()
    unread: ClassVar[frozenset[str]] = frozenset()
    deterministic: ClassVar[bool] = True
    untrained: ClassVar[tuple[int, ...]] = ()
    joins: ClassVar[str] = ""
    choices: ClassVar[tuple[str, ...]] = ()
    # The reference gets bfloat16, float8 and float4 operands as their bits. Where false, they are widened to float32
    # before and rounded after.
    raw_bits: ClassVar[bool] = False

    def infer(self, c: Call) -> Sequence[Spec | None]:
        """Specifications of the outputs. Raises ShapeError, NeedsValue or DataDependent."""
        raise NotImplementedError

    def reference(self, c: Call, *inputs: Any) -> Any:
        """The outputs for NumPy inputs (None where absent): an array, or a tuple of them for several outputs.
        Results may be views of the inputs; inputs must not be changed."""
        raise NotImplementedError

    def compute(self, c: Call, *inputs: Any) -> Any:
        """As `reference`: what a session runs where no driver can, since the results' shapes depend on values.
        Operators for which that is slow compute it in another way."""
        return self.reference(c, *inputs)

    def bind(self, c: Call) -> Kernel | None:
        """The compiled driver for these dtypes and shapes, or None where there is none."""
        return None

    def view(self, c: Call) -> dict[int, tuple[int, int]] | None:
        """Outputs that are contiguous parts of inputs, as {output: (input, byte offset)}, so that no copy is made
        (Reshape, contiguous Slice); None where there are none. All outputs or none."""
        return None

    def placement(self, c: Call) -> dict[int, int] | None:
        """Inputs that are contiguous parts of output 0, as {input: byte offset}, so that their producers may write
        into it (Concat); its driver skips operands that are in place already. None where there are none."""
        return None

    def channels_last(self, c: Call) -> Sequence[tuple[int, ...] | dict[int, int]]:
        """Operands whose memory may be [N, D..., C] where their shape is [N, C, D...], in groups: all of a tuple are so
        or none; {a: b}: a may be where b is. An input has its index, output i is ~i. The planner decides, over whole
        regions of a graph, and marks the specifications (`Spec.channels_last`) before `bind`, which must then give a
        driver."""
        return ()

    def join(self, calls: Sequence[Call]) -> tuple[int, Node] | None:
        """For a chain of nodes of this operator, up to three, each the only reader of the one before it (as its first
        input), where they hand on more than some caches hold, or for two nodes, that of the operator `joins` and its
        only reader: how many of the last of them are better done at once, and the node that does it; None to keep
        them. Its inputs are among theirs, its outputs the last one's."""
        return None

    def expand(self, c: Call) -> Graph | None:
        """A graph that replaces the node at planning time: its inputs are the node's inputs, its outputs the node's.
        (If, when its condition is known.) None to keep the node."""
        return None

    def gradient(self, g: Gradients, c: Call, *dys: str | None) -> Sequence[str | None]:
        """The gradient rule, for training: emits ordinary operators and returns the gradient of each input, by name;
        None where there is none (an index, an axis) or where the loss does not depend on it.

        g: what operators are emitted with, see evort.ops.gradients. c: the node, with `outs` filled in. dys: the
        gradients of the outputs, None for those that nothing uses. Raises UnsupportedError where there is no rule.
        """
        raise UnsupportedError(f"{c.node.label()}: {self.name} has no gradient")

    def lower(self, g: Gradients, c: Call) -> Sequence[str] | None:
        """For training: the outputs by simpler operators, whose gradients are known (LSTM, Attention), by name; None
        to keep the node."""
        return None

    def macs(self, c: Call) -> int:
        """Multiply-accumulates of one run; 0 where an operator is not counted in those."""
        return 0


def _arity(names: tuple[str, ...]) -> tuple[int, int | None]:
    variadic = bool(names) and names[-1].startswith("*")
    fixed = names[:-1] if variadic else names
    fewest = len(fixed)
    while fewest and fixed[fewest - 1].endswith("?"):
        fewest -= 1
    return fewest, None if variadic else len(fixed)


_REGISTRY: dict[tuple[str, str], Op] = {}
_INDEX: dict[tuple[str, str], str] = {}


def op(name: str, since: int = 1, domain: str = "") -> Callable[[type[Op]], type[Op]]:
    """Class decorator: registers an operator definition under its ONNX name and domain.

    A later registration of the same name replaces the earlier one, so that an application may override an operator.
    """

    def decorate(cls: type[Op]) -> type[Op]:
        register(cls(), name, since, domain)
        return cls

    return decorate


def register(definition: Op, name: str, since: int = 1, domain: str = "") -> None:
    """Registers a definition, as `op` does; for families whose operators are instances of one class."""
    definition.name, definition.domain, definition.since = name, domain, since
    definition.arity = (*_arity(definition.inputs), *_arity(definition.outputs))
    # A family that is imported late must not undo what an application has overridden before.
    if (domain, name) not in _REGISTRY or not type(definition).__module__.startswith("evort."):
        _REGISTRY[domain, name] = definition


def _tables() -> ModuleType:
    """What setup.py wrote of families and imports."""
    preload(("evort.ops._index",))
    return import_module("evort.ops._index")


def index() -> dict[tuple[str, str], str]:
    """The module of evort.ops that defines an operator, by (domain, name); imported when its operator is asked for."""
    if not _INDEX:
        families = _tables().FAMILIES.items()
        _INDEX.update({tuple(name.split("::")): module for module, names in families for name in names.split()})
    return _INDEX


def import_family(module: str) -> ModuleType:
    """A module of evort.ops, imported where it was not yet. Raises ImportError where there is none of that name."""
    names = (*_tables().NEEDS.get(module, "").split(), module)
    preload(tuple([f"evort.ops.{name}" for name in names]))  # quicker than an import statement, where it does it
    return import_module(f"evort.ops.{module}")


def family(name: str, domain: str) -> str | None:
    """The module that defines an operator, as `index` says; quicker where only a few are asked for."""
    full = f"{domain}::{name}"
    return next(
        (module for module, names in _tables().FAMILIES.items() if full in names and full in names.split()), None
    )


def find(name: str, domain: str = "") -> Op | None:
    """The definition of an operator, or None. The domains "" and "ai.onnx" are the same."""
    key = "" if domain == "ai.onnx" else domain, name
    found = _REGISTRY.get(key)
    if found is None:
        module = family(name, key[0])
        if module is not None:
            import_family(module)
            found = _REGISTRY.get(key)
    return found


def lookup(node: Node) -> Op:
    """The definition of a node's operator. Raises UnsupportedError, naming near ones."""
    found = find(node.op, node.domain)
    if found is None:
        import difflib

        near = difflib.get_close_matches(node.op, [n for d, n in registered() if d == node.domain], 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UnsupportedError(f"{node.label()}: evort has no such operator{hint} (evort.ops.op registers your own)")
    return found


def registered() -> dict[tuple[str, str], Op]:
    """All definitions, by (domain, name)."""
    for module in sorted(set(index().values())):
        import_family(module)
    return dict(sorted(_REGISTRY.items()))


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (float, int), "str": (str,), "tensor": (np.ndarray,), "graph": (Graph,),
}  # fmt: skip


def complete_attrs(definition: Op, node: Node) -> dict[str, Any]:
    """A node's attributes with defaults filled in. Raises ShapeError for one unknown, missing or of a wrong kind."""
    given = node.attrs
    known = definition.attrs
    full = {}
    for key, attr in known.items():
        value = given.get(key, attr.default)
        if value is REQUIRED:
            raise ShapeError(f"{node.label()}: attribute {key!r} is missing")
        if value is not None and key in given:
            kind = attr.kind
            if kind.endswith("s"):
                item = _KINDS[kind[:-1]]
                good = isinstance(value, list | tuple) and all(isinstance(v, item) for v in value)
            else:
                good = isinstance(value, _KINDS[kind])
            if not good:
                raise ShapeError(f"{node.label()}: attribute {key!r} must be of kind {kind}, not {value!r:.80}")
        full[key] = value
    if len(given) > len(known) or any(key not in known for key in given):
        unknown = ", ".join(sorted(k for k in given if k not in known))
        raise ShapeError(f"{node.label()}: unknown attribute {unknown}; known: {', '.join(known) or 'none'}")
    return full


def check_arity(definition: Op, node: Node) -> None:
    """Raises ShapeError where a node has too few or too many operands, or lacks one that is not optional."""
    low_in, high_in, low_out, high_out = definition.arity
    n_in, n_out = len(node.inputs), len(node.outputs)
    few = n_in < low_in or n_out < low_out
    many = (high_in is not None and n_in > high_in) or (high_out is not None and n_out > high_out)
    if not few and not many and "" not in node.inputs:
        return
    for what, names, params, low, high in (
        ("input", node.inputs, definition.inputs, low_in, high_in),
        ("output", node.outputs, definition.outputs, low_out, high_out),
    ):
        if len(names) < low or (high is not None and len(names) > high):
            most = "any number" if high is None else high
            raise ShapeError(f"{node.label()}: {len(names)} {what}s, expected {low} to {most}")
        for param, operand in zip(params, names, strict=False):
            if not operand and what == "input" and not param.endswith("?") and not param.startswith("*"):
                raise ShapeError(f"{node.label()}: input {param} is missing")


def check_dtypes(definition: Op, c: Call) -> None:
    """Raises UnsupportedError where an input has an element type that the operator does not take."""
    names = definition.inputs
    for i, spec in enumerate(c.ins):
        if spec is None or not definition.dtypes:
            continue
        allowed = definition.dtypes.get(names[min(i, len(names) - 1)].strip("?*"), ANY)
        if spec.dtype not in allowed:
            can = ", ".join(sorted(d.name.lower() for d in allowed))
            raise UnsupportedError(
                f"{c.node.label()}: input {i} has element type {spec.dtype.name.lower()}; it takes {can}"
            )


def element_type(c: Call, number: int) -> DType:
    """The element type of that number. Raises ShapeError where there is none."""
    if number not in STORAGE:
        raise c.error(f"{number} is the number of no element type")
    return DType(number)


def wide(x: np.ndarray) -> np.ndarray:
    """Floats as float64, for references that sum or exponentiate; anything else as it is."""
    return x.astype(np.float64) if x.dtype.kind == "f" else x


__all__ = [
    "REQUIRED", "Attr", "Call", "DataDependent", "Kernel", "NeedsValue", "Op", "check_arity", "check_dtypes",
    "complete_attrs", "element_type", "find", "index", "lookup", "op", "register", "registered", "wide",
]  # fmt: skip
