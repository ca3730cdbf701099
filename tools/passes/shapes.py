"""Dtypes, shapes and values of all tensors of a graph, symbolic dimensions included.

There is one shape rule for each operator, `Op.infer`, and it takes numbers. So symbolic dimensions are sampled: every
symbol gets a number in each of several samples, the rule runs once for each, and

    a dimension that is the same number in all samples      is that number,
    one that equals the number of a symbol in all of them   is that symbol,
    any other                                               is unknown ("").

Small values (shape arithmetic) are computed in each sample too, by the operators' references. The samples differ in
their prime factors, so that `H // 32 * 32` is not taken for `H`; one in which a rule fails (H was to be a multiple of
32) counts no more. What is not a polynomial in the symbols, such as `max(H, 32)`, could agree in all samples and still
differ elsewhere: it is marked `opaque`, as is all that is computed from it, and nothing is concluded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from evort.errors import EvortError, ShapeError
from evort.graph import Dim, Graph, Node, Tensor
from evort.ops.base import Call, DataDependent, NeedsValue, Op, check_dtypes, complete_attrs, find
from evort.ops.run import OBJECTS, run_reference
from evort.types import DType, Spec
from evort_tools.passes.facts import ALL, SAMPLES, Fact, sizes
from evort_tools.passes.schema import output_dtypes
from evort_tools.passes.shapes_nested import infer_nested

# Values of more elements are not computed while sampling.
MAX_ELEMENTS = 1024

# Operators whose value has thresholds in its operands' values.
_THRESHOLDS = frozenset({
    "And", "Abs", "ArgMax", "ArgMin", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Ceil", "Clip", "Equal",
    "Floor", "Greater", "GreaterOrEqual", "HardSigmoid", "Less", "LessOrEqual", "Max", "Min", "Mod", "NonZero", "Not",
    "Or", "ReduceMax", "ReduceMin", "Relu", "Round", "Sign", "TopK", "Unique", "Xor",
})  # fmt: skip
_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
# Operators that give numbers >= 0 for numbers >= 0.
_KEEPS_SIGN = frozenset({
    "Add", "Cast", "Ceil", "Concat", "Div", "Expand", "Flatten", "Floor", "Gather", "Identity", "Max", "Min", "Mul",
    "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze", "Where",
})  # fmt: skip
# What exporters write to say "to the end" is at least this.
_END = 10**8


class _WatchedCall(Call):
    """A Call that notes which inputs' values the shape rule read."""

    __slots__ = ("read",)

    def __init__(self, node: Node, attrs: dict[str, Any], ins: Sequence[Spec | None]):
        super().__init__(node, attrs, ins)
        self.read: set[int] = set()

    def value(self, index: int) -> np.ndarray:
        self.read.add(index)
        return super().value(index)


class Shapes:
    """Facts by tensor name, for one model; names are unique in all its graphs.

    problems: errors of shape and dtype rules, by the node's id: (error, whether it is certain). One that depends on
    sizes is not, even if all samples met it: the model may take other sizes.
    """

    def __init__(self, symbols: Mapping[str, list[int]] | None = None, doubtful: Iterable[str] = ()) -> None:
        """symbols: sizes to sample them with, where the usual ones do not do; doubtful: symbols of whose sizes only
        one is known to work, so that nothing may be concluded from it (see `fitted`)."""
        self.facts: dict[str, Fact] = {}
        self.symbols: dict[str, list[int]] = dict(symbols or {})
        self.doubtful = frozenset(doubtful)
        self.problems: dict[int, tuple[EvortError, bool]] = {}
        self.live = ALL

    # Questions

    def dtype(self, name: str) -> DType | None:
        fact = self.facts.get(name)
        return None if fact is None else fact.dtype

    def shape(self, name: str) -> tuple[Dim, ...] | None:
        """The dimensions, "" for one that is unknown; None where even the rank is."""
        fact = self.facts.get(name)
        if fact is None or fact.shapes is None:
            return None
        if len(fact.shapes) == 1:
            return fact.shapes[0]
        live = self.counts(fact)
        shapes = [fact.shapes[k] for k in live or ALL]
        if len({len(s) for s in shapes}) != 1:
            return None
        if fact.opaque_shape or len(live) < 2:
            return ("",) * len(shapes[0])
        return tuple(self._dim(numbers, live) for numbers in zip(*shapes, strict=True))

    def rank(self, name: str) -> int | None:
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def counts(self, *facts: Fact) -> tuple[int, ...]:
        """The samples that all these facts hold in."""
        return tuple(k for k in self.live if all(k in f.live for f in facts))

    def _dim(self, numbers: Sequence[int], live: Sequence[int]) -> Dim:
        if len(set(numbers)) == 1:
            return int(numbers[0])
        for symbol, given in self.symbols.items():
            if all(given[k] == n for k, n in zip(live, numbers, strict=True)):
                return symbol
        return ""

    def value(self, name: str) -> np.ndarray | None:
        """The value of a tensor that is the same whatever the inputs are, or None."""
        fact = self.facts.get(name)
        if fact is None or fact.values is None:
            return None
        if len(fact.values) == 1:
            return fact.values[0]
        live = self.counts(fact)
        if fact.opaque_value or len(live) < 2:
            return None
        first, *others = [fact.values[k] for k in live]
        return first if all(np.array_equal(first, v) for v in others) else None

    def elements(self, name: str) -> list[Dim] | None:
        """The elements of a small integer tensor, each a number, a symbol or ""; None where nothing is known."""
        fact = self.facts.get(name)
        if fact is None or fact.values is None or fact.dtype not in (DType.INT64, DType.INT32):
            return None
        if len(fact.values) == 1:
            return fact.values[0].reshape(-1).tolist()
        live = self.counts(fact)
        values = [fact.values[k] for k in live]
        if len({v.size for v in values}) != 1:
            return None
        if fact.opaque_value or len(live) < 2:
            return [""] * values[0].size
        return [self._dim(numbers, live) for numbers in zip(*(v.reshape(-1).tolist() for v in values), strict=True)]

    def sampled_shapes(self, *names: str) -> list[list[tuple[int, ...]]] | None:
        """For each tensor its shapes in the samples in which all are known; None where one is not, or where nothing
        may be concluded from them."""
        facts = [self.facts.get(name) for name in names]
        if any(f is None or f.shapes is None or f.opaque_shape for f in facts):
            return None
        live = self.counts(*facts)
        return None if len(live) < 2 else [[f.shape(k) for k in live] for f in facts]

    def same_shape(self, a: str, b: str) -> bool:
        """Whether two tensors certainly have one shape."""
        found = self.sampled_shapes(a, b)
        return a == b or (found is not None and found[0] == found[1])

    def refused(self) -> bool:
        """Whether some node takes none of the sampled sizes."""
        return any(not certain for _, certain in self.problems.values())

    # Facts

    def constant(self, tensor: Tensor) -> None:
        fact = Fact(tensor.dtype, [tuple(tensor.data.shape)], [tensor.data])
        fact.natural = _natural(tensor.data)
        self.facts[tensor.name] = fact

    def input(self, tensor: Tensor) -> None:
        """An input of the model: its symbols get their sizes."""
        if tensor.shape is None:
            self.facts[tensor.name] = Fact(tensor.dtype)
            return
        given = [self._symbol(d) if isinstance(d, str) else [d] for d in tensor.shape]
        samples = SAMPLES if any(len(g) > 1 for g in given) else 1
        shapes = [tuple(g[k % len(g)] for g in given) for k in range(samples)]
        fact = Fact(tensor.dtype, shapes)
        fact.opaque_shape = any(d in self.doubtful for d in tensor.shape)
        self.facts[tensor.name] = fact

    def _symbol(self, symbol: str) -> list[int]:
        if symbol not in self.symbols:
            self.symbols[symbol] = sizes(len(self.symbols))
        return self.symbols[symbol]

    def graph(self, graph: Graph, top: bool = True) -> None:
        """Facts for a whole graph; those of a nested one's inputs are set before."""
        for tensor in graph.tensors.values():
            if tensor.data is not None:
                self.constant(tensor)
        if top:
            for name in graph.inputs:
                self.input(graph.tensors[name])
        for node in graph.nodes:
            self.infer(node, top)

    def infer(self, node: Node, top: bool = True) -> None:
        """Facts for a node's outputs, from those of its inputs. top: the node is in no nested graph, so that a sample
        in which its rule fails is none that the model takes."""
        self.problems.pop(id(node), None)
        ins = [self.facts.get(name, Fact(None)) if name else None for name in node.inputs]
        definition = find(node.op, node.domain)
        outs: list[Fact] | None = None
        if any(True for _ in node.subgraphs()):
            outs = infer_nested(self, node, ins)
        elif definition is not None and all(f is None or (f.shapes is not None and f.dtype is not None) for f in ins):
            outs = self._sample(definition, node, ins, top)
        if outs is None:
            outs = [Fact(d) for d in output_dtypes(node, [None if f is None else f.dtype for f in ins])]
        for name, fact in zip(node.outputs, outs, strict=False):
            if name:
                self.facts[name] = fact

    def _sample(self, definition: Op, node: Node, ins: list[Fact | None], top: bool) -> list[Fact] | None:
        """Runs the shape rule in each sample that counts, or once where no input varies; None where it cannot tell."""
        try:
            attrs = complete_attrs(definition, node)
        except EvortError:
            return None  # the check reports it
        static = not any(f is not None and f.varies() for f in ins)
        calls: dict[int, _WatchedCall] = {}
        errors: list[EvortError] = []
        live = self.counts(*(f for f in ins if f is not None))
        for k in live[:1] if static else live:
            c = _WatchedCall(node, attrs, [None if f is None else f.spec(k) for f in ins])
            try:
                check_dtypes(definition, c)
                c.outs = list(definition.infer(c))
                if any(s is not None and s.dtype in OBJECTS for s in (*c.ins, *c.outs)):
                    return None
                self._evaluate(definition, c)
            except (NeedsValue, DataDependent):
                return None
            except EvortError as error:
                errors.append(error)
                continue
            except Exception as error:  # a rule that trips over what it should have refused
                errors.append(c.error(f"{type(error).__name__}: {error}"))
                continue
            calls[k] = c
        if not calls:
            if errors:
                self.problems[id(node)] = errors[0], static or not isinstance(errors[0], ShapeError)
            return None
        if not static:
            live = tuple(k for k in live if k in calls)
            if top:
                self.live = live
        outs = self._merge(node, ins, calls, static)
        for fact in outs:
            fact.live = live
        return outs

    def _evaluate(self, definition: Op, c: Call) -> None:
        outs = [s for s in c.outs if s is not None]
        if all(s.value is not None for s in outs) or not definition.deterministic:
            return
        if sum(s.size for s in outs) > MAX_ELEMENTS or any(s is not None and s.value is None for s in c.ins):
            return
        results = run_reference(definition, c, [None if s is None else s.value for s in c.ins])
        for spec, result in zip(c.outs, results, strict=False):
            if spec is not None:
                spec.value = np.ascontiguousarray(result).reshape(spec.shape)

    def _merge(self, node: Node, ins: list[Fact | None], calls: dict[int, _WatchedCall], static: bool) -> list[Fact]:
        read = set().union(*(c.read for c in calls.values()))
        opaque_shape = not static and (
            any(f is not None and (f.opaque_shape or (i in read and f.opaque_value)) for i, f in enumerate(ins))
            or _clamps(node, ins)
        )
        opaque_value = not static and _opaque_value(node, ins, opaque_shape)
        natural = node.op in ("Shape", "Size") or (node.op in _KEEPS_SIGN and all(f is None or f.natural for f in ins))
        outs = []
        for i in range(len(node.outputs)):
            specs = {k: c.outs[i] if i < len(c.outs) else None for k, c in calls.items()}
            first = next(iter(specs.values()))
            if first is None:
                outs.append(Fact(None))
                continue
            fact = Fact(first.dtype)
            samples = range(1 if static else SAMPLES)
            fact.shapes = [tuple(specs.get(k, first).shape) for k in samples]
            if all(s.value is not None for s in specs.values()):
                fact.values = [specs.get(k, first).value for k in samples]
                natural = natural or (node.op == "Range" and all(_natural(v) for v in fact.values))
            fact.opaque_shape = opaque_shape
            fact.opaque_value = opaque_value
            fact.natural = natural
            outs.append(fact)
        return outs


def _natural(value: np.ndarray) -> bool:
    return value.dtype.kind in "iub" and (value.size == 0 or bool(value.min() >= 0))


def _opaque_value(node: Node, ins: Iterable[Fact | None], opaque_shape: bool) -> bool:
    """Whether a node's value may agree in all samples and differ elsewhere."""
    facts = [f for f in ins if f is not None]
    if node.op in ("Shape", "Size") and not node.domain:
        return opaque_shape
    if opaque_shape or any(f.opaque_value for f in facts):
        return True
    varying = [f for f in facts if f.values is not None and len(f.values) > 1]
    if node.op == "Where":
        return any(f is facts[0] for f in varying) and not _alike(facts[0])
    if node.op not in _THRESHOLDS or not varying:
        return False
    if node.op in _COMPARISONS and len(facts) == 2:
        # A natural number against a negative constant: the answer is the same for all sizes.
        a, b = facts
        return not ((a.natural and _negative(b)) or (b.natural and _negative(a)))
    return True


def _alike(fact: Fact) -> bool:
    first, *others = fact.values
    return all(np.array_equal(first, v) for v in others)


def _negative(fact: Fact) -> bool:
    """Whether every element is below zero and the same in all samples."""
    return fact.values is not None and _alike(fact) and bool((fact.values[0] < 0).all())


def _clamps(node: Node, ins: Sequence[Fact | None]) -> bool:
    """Whether an output's size is cut off at a fixed number that the sampled sizes may all exceed, or fall short of."""
    if node.op == "Resize":
        return node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    if node.op != "Slice" or len(ins[0].shapes) == 1:
        return False
    data, starts, ends = ins[:3]
    axes = ins[3].values if len(ins) > 3 and ins[3] is not None else None
    if starts.values is None or ends.values is None or (axes is not None and len(axes) > 1):
        return True
    rank = len(data.shapes[0])
    for at in range(starts.values[0].size):
        axis = int(axes[0].reshape(-1)[at]) % rank if axes is not None else at
        if len({shape[axis] for shape in data.shapes}) == 1:
            continue
        for fact in (starts, ends):
            bounds = {int(v.reshape(-1)[at]) for v in fact.values}
            # 0, 1, -1 and "to the end" mean the same for every size that is not zero.
            if len(bounds) == 1 and not all(abs(bound) <= 1 or abs(bound) >= _END for bound in bounds):
                return True
    return False
