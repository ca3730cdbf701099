"""What gradient rules are written with: `Gradients` emits ordinary operators behind a graph's own.

A rule (`Op.gradient`) sees one node with concrete shapes, and gives for each input the name of its gradient:

    def gradient(self, g, c, dy):                # of Y = exp(X)
        return [g.mul(dy, c.node.outputs[0])]

Loaded when something is differentiated, and not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evort.graph import Node
from evort.ops.base import Call, complete_attrs, lookup
from evort.types import STORAGE, DType, Spec, dtype_of


class Gradients:
    """A growing list of nodes over tensors of known shape.

    nodes: what was emitted, in order. specs: every tensor's specification, with the value where it is a constant.
    wanted: for the node that a rule is asked about, which inputs' gradients are used; others may be left out.
    """

    def __init__(self, specs: dict[str, Spec], prefix: str = "grad"):
        self.nodes: list[Node] = []
        self.calls: list[Call] = []
        self.specs = specs
        self.constants: dict[str, np.ndarray] = {}
        self.wanted: Sequence[bool] = ()
        self._prefix = prefix
        self._count = 0
        self._known: dict[tuple[Any, ...], str] = {}

    # Building blocks -------------------------------------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        """A name that no tensor has."""
        while True:
            self._count += 1
            name = f"{self._prefix}/{hint}_{self._count}"
            if name not in self.specs:
                return name

    def emit(
        self,
        op: str,
        inputs: Sequence[str | None],
        attrs: dict[str, Any] | None = None,
        domain: str = "",
        outputs: int | Sequence[bool] = 1,
    ) -> Any:
        """Appends a node; returns its output's name, or a list of them for several.

        outputs: how many there are, or which are wanted (the others are None). Raises ShapeError for operands that the
        operator refuses.
        """
        which = [True] * outputs if isinstance(outputs, int) else list(outputs)
        names = [self.fresh(op.lower()) if wanted else "" for wanted in which]
        node = Node(op, [n or "" for n in inputs], names, attrs or {}, domain, names[0] or names[-1])
        self.append(node)
        return names[0] if outputs == 1 else [n or None for n in names]

    def append(self, node: Node) -> Call:
        """Appends a node that is there already, and infers its outputs."""
        definition = lookup(node)
        c = Call(node, complete_attrs(definition, node), [self.specs[n] if n else None for n in node.inputs])
        c.outs = list(definition.infer(c))
        for name, spec in zip(node.outputs, c.outs, strict=False):
            if name:
                self.specs[name] = spec
        self.nodes.append(node)
        self.calls.append(c)
        return c

    def constant(self, value: np.ndarray, hint: str = "constant") -> str:
        """A constant tensor; equal ones are one."""
        value = np.ascontiguousarray(value).reshape(np.shape(value))
        key = (value.dtype.str, value.shape, value.tobytes())
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self.fresh(hint)
            self.constants[found] = value
            self.specs[found] = Spec(dtype_of(value), value.shape, value)
        return found

    def scalar(self, value: float, like: str) -> str:
        """A constant without axes, of the element type of a tensor."""
        return self.constant(np.array(value, STORAGE[self.specs[like].dtype]), "scalar")

    def ints(self, *values: int) -> str:
        """A constant vector of int64."""
        return self.constant(np.array(values, np.int64), "ints")

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.specs[name].shape)

    def wants(self, index: int) -> bool:
        """Whether the gradient of an input of the node at hand is used."""
        return index < len(self.wanted) and self.wanted[index]

    # Shorthands ------------------------------------------------------------------------------------------------------

    def add(self, a: str, b: str) -> str:
        return self.emit("Add", [a, b])

    def sub(self, a: str, b: str) -> str:
        return self.emit("Sub", [a, b])

    def mul(self, a: str, b: str) -> str:
        """a * b; the other operand where one is the constant 1, such as the gradient of the loss itself."""
        for one, other in ((a, b), (b, a)):
            spec = self.specs[one]
            if (
                spec.value is not None
                and spec.shape == ()
                and spec.value == 1
                and spec.dtype == self.specs[other].dtype
            ):
                return other
        return self.emit("Mul", [a, b])

    def div(self, a: str, b: str) -> str:
        return self.emit("Div", [a, b])

    def neg(self, a: str) -> str:
        return self.emit("Neg", [a])

    def scale(self, a: str, factor: float) -> str:
        """factor * a."""
        return a if factor == 1 else self.neg(a) if factor == -1 else self.mul(a, self.scalar(factor, a))

    def reshape(self, a: str, shape: Sequence[int]) -> str:
        if self.shape(a) == tuple(shape):
            return a
        return self.emit("Reshape", [a, self.ints(*shape)], {"allowzero": 1})

    def transpose(self, a: str, perm: Sequence[int]) -> str:
        return a if list(perm) == list(range(len(perm))) else self.emit("Transpose", [a], {"perm": list(perm)})

    def swapped(self, a: str) -> str:
        """The last two axes exchanged."""
        rank = len(self.shape(a))
        return self.transpose(a, [*range(rank - 2), rank - 1, rank - 2])

    def sum(self, a: str, axes: Sequence[int], keepdims: bool = True) -> str:
        """The sum over axes; the tensor itself for none."""
        return self.emit("ReduceSum", [a, self.ints(*axes)], {"keepdims": int(keepdims)}) if len(axes) else a

    def mean(self, a: str, axes: Sequence[int]) -> str:
        """The mean over axes, which are kept with size 1."""
        return self.emit("ReduceMean", [a, self.ints(*axes)])

    def expand(self, a: str, shape: Sequence[int]) -> str:
        return a if self.shape(a) == tuple(shape) else self.emit("Expand", [a, self.ints(*shape)])

    def cast(self, a: str, dtype: DType) -> str:
        return a if self.specs[a].dtype == dtype else self.emit("Cast", [a], {"to": int(dtype)})

    def mask(self, condition: str, a: str) -> str:
        """a where a condition of its shape holds, else 0."""
        return self.emit("Where", [condition, a, self.scalar(0, a)])

    def of_extremes(self, x: str, y: str, dy: str, axes: Sequence[int]) -> str:
        """That of the largest or smallest y of x over axes (kept with size 1, as in dy): equal ones share it, so that
        copies of one number get together what that would alone."""
        same = self.emit("Equal", [x, y])
        return self.mask(same, self.div(dy, self.sum(self.cast(same, self.specs[x].dtype), axes)))

    def lp_share(self, y: str, dy: str, p: int) -> str:
        """dY Y^(1-p); 0 where Y is 0."""
        if p == 1:
            return dy
        zero = self.emit("Equal", [y, self.scalar(0, y)])
        power = y if p == 2 else self.emit("Pow", [y, self.scalar(p - 1, y)])
        share = self.div(dy, self.emit("Where", [zero, self.scalar(1, y), power]))
        return self.emit("Where", [zero, self.scalar(0, dy), share])

    def lp_slope(self, x: str, p: int) -> str:
        """sign(X) |X|^(p-1)."""
        if p == 2:
            return x
        sign = self.emit("Sign", [x])
        return sign if p == 1 else self.mul(sign, self.emit("Pow", [self.emit("Abs", [x]), self.scalar(p - 1, x)]))

    def reduced_to(self, dy: str, shape: Sequence[int]) -> str:
        """The gradient of a tensor of `shape` that was broadcast to dy's shape: sums over what was repeated."""
        full = self.shape(dy)
        lead = len(full) - len(shape)
        axes = [i for i, d in enumerate(full) if i < lead or (shape[i - lead] == 1 and d != 1)]
        return self.reshape(self.sum(dy, axes), shape)

    def total(self, terms: Sequence[str]) -> str:
        """The sum of gradients that flow back to one tensor."""
        terms = list(terms)
        while len(terms) > 1:
            terms = [self.emit("Sum", terms[:8]) if len(terms) > 2 else self.add(*terms), *terms[8:]]
        return terms[0]

    def replay(self, op: str, c: Call, inputs: Sequence[str | None], outputs: int = 1, **attrs: Any) -> Any:
        """Emits an operator with the attributes that the node at hand has, some of them changed (None: left out)."""
        kept = {k: v for k, v in {**c.node.attrs, **attrs}.items() if v is not None}
        return self.emit(op, inputs, kept, c.node.domain, outputs)


__all__ = ["Gradients"]
