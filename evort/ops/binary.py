"""Operators on two or more tensors with broadcasting: arithmetic, comparison, logic, bits, selection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evort.errors import ExecutionError
from evort.ops.activation import activation_attrs, activation_ints_reals, activation_params, apply_reference
from evort.ops.base import REQUIRED, Attr, Call, Kernel, Op, op, register
from evort.ops.broadcast import MAX_OPERANDS, broadcast, loops
from evort.types import ANY, BITS, FLOATS, INTS, NUMERIC, STORAGE, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

_BOOL = frozenset({DType.BOOL})
_TENSORS = ANY - {DType.SEQUENCE, DType.OPTIONAL}

# Numbers of operations in the kernels: EV_ADD and on in ukr/elementwise.h.
_NAMES = (
    "Add", "Sub", "Mul", "Div", "Min", "Max", "Mod", "Fmod", "Pow", "PRelu", "BitwiseAnd", "BitwiseOr", "BitwiseXor",
    "ShiftLeft", "ShiftRight", "Equal", "Less", "LessOrEqual",
)  # fmt: skip
OPERATIONS = {name: i for i, name in enumerate(_NAMES)}
_COMPARISONS = frozenset({"Equal", "Less", "LessOrEqual"})
_FLOAT_OPERATIONS = frozenset(_NAMES[:10]) | _COMPARISONS
_INT_OPERATIONS = frozenset(_NAMES) - {"Pow", "PRelu"}
# The same for signed and unsigned integers of one size.
_SIGNLESS = frozenset({"Add", "Sub", "Mul", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "ShiftLeft", "Equal"})
_COSTLY = frozenset({"Mod", "Fmod", "Pow"})


def _compiled(name: str, dtype: DType) -> bool:
    if dtype in FLOATS:
        return name in _FLOAT_OPERATIONS
    if dtype in (DType.INT8, DType.UINT8, DType.INT32, DType.INT64):
        return name in _INT_OPERATIONS
    if dtype in (DType.UINT32, DType.UINT64):
        return name in _SIGNLESS
    return dtype == DType.BOOL and name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal")


def nary_kernel(
    c: Call,
    operations: Sequence[str],
    inputs: Sequence[int] | None = None,
    activation: tuple[int, tuple[float, float]] = (0, (0.0, 0.0)),
    divisor: float = 1.0,
) -> Kernel | None:
    """The driver of activation((X0 op0 X1 op1 X2 ...) / divisor) with broadcasting, or None where there is none.

    operations: names in OPERATIONS; inputs: which inputs of the node X0, X1, ... are, all where None.
    """
    specs = c.ins if inputs is None else [c.ins[i] for i in inputs]
    dtype = specs[0].dtype
    number, (alpha, beta) = activation
    if len(specs) > MAX_OPERANDS or not all(_compiled(name, dtype) for name in operations):
        return None
    if number and dtype == DType.DOUBLE:
        return None
    grain = 2048 if number or any(name in _COSTLY for name in operations) else 16384
    steps = [OPERATIONS[name] for name in operations]
    walk = loops(c.outs[0].shape, [s.shape for s in specs])
    return Kernel(
        "elementwise.nary",
        ints=(dtype, number, grain, len(steps), *steps, *walk),
        reals=(alpha, beta, divisor),
        inputs=inputs,
    )


def same_dtype(c: Call) -> DType:
    """The one element type of all inputs. Raises ShapeError where they differ."""
    dtype = c.ins[0].dtype
    if any(s.dtype != dtype for s in c.ins):
        raise c.error("the inputs must have one element type")
    return dtype


class Binary(Op):
    """C = A op B with broadcasting."""

    inputs, outputs = ("A", "B"), ("C",)
    dtypes = {"A": NUMERIC, "B": NUMERIC}
    inplace = ((0, 0), (0, 1))

    def __init__(self, operation: str, function: Callable[..., np.ndarray], dtypes: frozenset[DType] | None = None):
        """operation: a name in OPERATIONS; function: what it means, in NumPy; dtypes: of both operands."""
        self.operation, self.function = operation, function
        if dtypes is not None:
            self.dtypes = dict.fromkeys(self.inputs, dtypes)

    def infer(self, c: Call) -> list[Spec]:
        return [Spec(same_dtype(c), broadcast(c, c.ins[0].shape, c.ins[1].shape))]

    def reference(self, c: Call, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return self.function(a, b)

    def bind(self, c: Call) -> Kernel | None:
        return nary_kernel(c, (self.operation,))


def _binary(name: str, since: int, definition: Op) -> None:
    """Registers an operator. Most are instances of few classes, since making a class takes its time at import."""
    register(definition, name, since)


def refuse_zero(c: Call, a: np.ndarray, b: np.ndarray) -> None:
    """Raises ExecutionError where a / b divides an integer by zero."""
    if b.dtype.kind in "iu" and a.size and not np.all(b):
        raise ExecutionError(f"{c.node.label()}: integer division by zero")


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Integer quotients are truncated toward zero; the smallest number divided by -1 wraps to itself."""
    if a.dtype.kind == "f":
        return np.divide(a, b)
    if a.dtype.kind == "u":
        return a // b
    # abs of the smallest number wraps to itself, and is right again as an unsigned number.
    kind = f"u{a.dtype.itemsize}"
    quotient = np.abs(a).astype(kind) // np.abs(b).astype(kind)
    return np.where((a < 0) != (b < 0), np.negative(quotient), quotient).astype(a.dtype)


class _Arithmetic(Binary):
    """C = activation(A op B). `activation` is an extension of evort, for floats: see evort.ops.activation."""

    attrs = activation_attrs()

    def infer(self, c: Call) -> list[Spec]:
        name = c["activation"]
        activation_params(c)
        if name and (c.ins[0].dtype not in FLOATS or name == "PRelu"):
            raise c.error(f"activation {name!r} is for other operators or element types")
        return super().infer(c)

    def reference(self, c: Call, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return apply_reference(c, super().reference(c, a, b))

    def bind(self, c: Call) -> Kernel | None:
        (number,), reals = activation_ints_reals(c)
        return nary_kernel(c, (self.operation,), activation=(number, reals))

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        a, b = c.node.inputs
        if self.operation in ("Add", "Sub"):
            found = (lambda: dy), (lambda: g.neg(dy) if self.operation == "Sub" else dy)
        elif self.operation == "Mul":
            found = (lambda: g.mul(dy, b)), (lambda: g.mul(dy, a))
        else:
            found = (lambda: g.div(dy, b)), (lambda: g.neg(g.mul(dy, g.div(g.div(a, b), b))))
        return [g.reduced_to(rule(), c.ins[i].shape) if g.wants(i) else None for i, rule in enumerate(found)]


class _Division(_Arithmetic):
    """C = A / B; of integers truncated toward zero. Integer division by zero is an ExecutionError."""

    def reference(self, c: Call, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        refuse_zero(c, a, b)
        return super().reference(c, a, b)


# Integers wrap.
_binary("Add", 14, _Arithmetic("Add", np.add))
_binary("Sub", 14, _Arithmetic("Sub", np.subtract))
_binary("Mul", 14, _Arithmetic("Mul", np.multiply))
_binary("Div", 14, _Division("Div", _divide))


class _Mod(Binary):
    """C = A - floor(A / B) B with the sign of B, or with fmod=1 A - trunc(A / B) B with the sign of A.

    Of integers by zero it is an ExecutionError.
    """

    attrs = {"fmod": Attr("int", 0)}

    def infer(self, c: Call) -> list[Spec]:
        if c["fmod"] not in (0, 1):
            raise c.error(f"fmod must be 0 or 1, not {c['fmod']}")
        return super().infer(c)

    def reference(self, c: Call, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        refuse_zero(c, a, b)
        with np.errstate(all="ignore"):
            return np.fmod(a, b) if c["fmod"] else self.function(a, b)

    def bind(self, c: Call) -> Kernel | None:
        return nary_kernel(c, ("Fmod" if c["fmod"] else "Mod",))

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        a, b = c.node.inputs
        quotient = g.div(g.sub(a, c.node.outputs[0]), b)  # a whole number
        return [g.reduced_to(dy, c.ins[0].shape), g.reduced_to(g.neg(g.mul(dy, quotient)), c.ins[1].shape)]


_binary("Mod", 28, _Mod("Mod", np.mod))


@op("Pow", since=15)
class Pow(Op):
    """Z = X^Y in X's element type. Of integers: 0 to a negative power is an ExecutionError; other integers to
    negative powers, and powers that are no integers, are truncated."""

    inputs, outputs = ("X", "Y"), ("Z",)
    dtypes = {"X": FLOATS | {DType.INT32, DType.INT64}, "Y": NUMERIC}
    inplace = ((0, 0),)

    def infer(self, c: Call) -> list[Spec]:
        return [Spec(c.ins[0].dtype, broadcast(c, c.ins[0].shape, c.ins[1].shape))]

    def reference(self, c: Call, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            if x.dtype.kind == "f":
                # In the wider of both types; float32 for an integer exponent that a float32 holds.
                kind = np.float64 if np.float64 in (x.dtype, y.dtype) or y.dtype.itemsize > 4 else np.float32
                # An exponent for each element: a single 1/2 would be a square root, which differs for -0 and -inf.
                exponents = np.full(np.broadcast_shapes(x.shape, y.shape), y, kind)
                return np.power(x.astype(kind), exponents).astype(x.dtype)
            if y.dtype.kind == "f":
                return _to_int(np.power(x.astype(np.float64), y), x.dtype)
            x, y = np.broadcast_arrays(x, y)
            negative = y < 0
            if np.any(negative & (x == 0)):
                raise ExecutionError(f"{c.node.label()}: 0 to a negative power")
            # 1 and -1 are their own inverses; all others to a negative power are below 1.
            unit = np.abs(x) == 1
            power = np.power(x, np.where(negative, y & 1, y).astype(np.int64))
            return np.where(negative & ~unit, 0, power).astype(x.dtype)

    def bind(self, c: Call) -> Kernel | None:
        x, y = c.ins
        return nary_kernel(c, ("Pow",)) if x.dtype == y.dtype else None

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        x, y = c.node.inputs
        y = g.cast(y, c.ins[0].dtype)
        dx = dp = None
        if g.wants(0):
            dx = g.mul(dy, g.mul(y, g.emit("Pow", [x, g.sub(y, g.scalar(1, x))])))
            dx = g.reduced_to(dx, c.ins[0].shape)
        if g.wants(1):  # where x is 0, the power is 0 whatever its exponent
            power = c.node.outputs[0]
            zero = g.emit("Equal", [x, g.scalar(0, x)])
            log = g.emit("Log", [g.emit("Where", [zero, g.scalar(1, x), x])])
            dp = g.reduced_to(g.mul(dy, g.mul(power, log)), c.ins[1].shape)
        return [dx, dp]


def _to_int(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    from evort.ops.lowp import truncate

    return truncate(x, dtype.itemsize * 8)


@op("PRelu", since=16)
class PRelu(Op):
    """Y = slope X for X < 0, else X; the slope is broadcast to X's shape."""

    inputs, outputs = ("X", "slope"), ("Y",)
    dtypes = {
        "X": FLOATS | {DType.INT32, DType.INT64, DType.UINT32, DType.UINT64},
        "slope": FLOATS | {DType.INT32, DType.INT64, DType.UINT32, DType.UINT64},
    }
    inplace = ((0, 0),)

    def infer(self, c: Call) -> list[Spec]:
        same_dtype(c)
        x, slope = c.ins
        if broadcast(c, x.shape, slope.shape) != x.shape:
            raise c.error("slope does not broadcast to X's shape")
        return [c.like(0)]

    def reference(self, c: Call, x: np.ndarray, slope: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.where(x < 0, x * slope, x)

    def bind(self, c: Call) -> Kernel | None:
        return nary_kernel(c, ("PRelu",))

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        x, slope = c.node.inputs
        negative = g.emit("Less", [x, g.scalar(0, x)])
        dx = g.mul(dy, g.emit("Where", [negative, slope, g.scalar(1, x)])) if g.wants(0) else None
        ds = g.reduced_to(g.mask(negative, g.mul(dy, x)), c.ins[1].shape) if g.wants(1) else None
        return [dx, ds]


class _Variadic(Op):
    """Y = X0 op X1 op ... with broadcasting."""

    inputs = ("*data_0",)
    inplace = ((0, 0), (0, 1))  # later ones are read after the first result is written

    def __init__(self, operation: str, function: Callable[..., np.ndarray], output: str, dtypes: frozenset[DType]):
        self.operation, self.function = operation, function
        self.outputs = (output,)
        self.dtypes = {"data_0": dtypes}

    def infer(self, c: Call) -> list[Spec]:
        return [Spec(same_dtype(c), broadcast(c, *(s.shape for s in c.ins)))]

    def reference(self, c: Call, *data: np.ndarray) -> np.ndarray:
        found = data[0]
        with np.errstate(all="ignore"):
            for x in data[1:]:
                found = self.function(found, x)
        return found

    def bind(self, c: Call) -> Kernel | None:
        return nary_kernel(c, (self.operation,) * (len(c.ins) - 1)) if len(c.ins) > 1 else None

    def view(self, c: Call) -> dict[int, tuple[int, int]] | None:
        return {0: (0, 0)} if len(c.ins) == 1 else None

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        if self.operation == "Add":
            return [g.reduced_to(dy, s.shape) if g.wants(i) else None for i, s in enumerate(c.ins)]
        # The gradient goes to the first operand that is the extreme.
        found, taken = [], None
        for i, name in enumerate(c.node.inputs):
            here = g.emit("Equal", [name, c.node.outputs[0]])
            free = here if taken is None else g.emit("And", [here, g.emit("Not", [taken])])
            taken = here if taken is None else g.emit("Or", [taken, here])
            found.append(g.reduced_to(g.mask(free, dy), c.ins[i].shape) if g.wants(i) else None)
        return found


class _Mean(_Variadic):
    """Elementwise mean."""

    def reference(self, c: Call, *data: np.ndarray) -> np.ndarray:
        total = super().reference(c, *data)
        return total / total.dtype.type(len(data))

    def bind(self, c: Call) -> Kernel | None:
        n = len(c.ins)
        return nary_kernel(c, ("Add",) * (n - 1), divisor=float(n)) if n > 1 else None

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        return super().gradient(g, c, g.scale(dy, 1 / len(c.ins)))


# A NaN in any operand of Min and Max gives NaN.
_binary("Min", 13, _Variadic("Min", np.minimum, "min", NUMERIC))
_binary("Max", 13, _Variadic("Max", np.maximum, "max", NUMERIC))
_binary("Sum", 13, _Variadic("Add", np.add, "sum", FLOATS))
_binary("Mean", 13, _Mean("Add", np.add, "mean", FLOATS))


class _Comparison(Binary):
    """C = A op B, a bool."""

    def __init__(self, operation: str, function: Callable[..., np.ndarray], dtypes: frozenset[DType] = NUMERIC,
                 swapped: bool = False):  # fmt: skip
        """swapped: whether the kernel gets B first."""
        super().__init__(operation, function, dtypes)
        self.swapped = swapped

    def infer(self, c: Call) -> list[Spec]:
        same_dtype(c)
        return [Spec(DType.BOOL, broadcast(c, c.ins[0].shape, c.ins[1].shape))]

    def bind(self, c: Call) -> Kernel | None:
        return nary_kernel(c, (self.operation,), inputs=(1, 0) if self.swapped else None)


_binary("Equal", 19, _Comparison("Equal", np.equal, NUMERIC | {DType.BOOL, DType.STRING}))
_binary("Less", 13, _Comparison("Less", np.less))
_binary("LessOrEqual", 16, _Comparison("LessOrEqual", np.less_equal))
_binary("Greater", 13, _Comparison("Less", np.greater, swapped=True))
_binary("GreaterOrEqual", 16, _Comparison("LessOrEqual", np.greater_equal, swapped=True))

# On bits, and on truth values, which are the bits 0 and 1.
_binary("And", 7, Binary("BitwiseAnd", np.logical_and, _BOOL))
_binary("Or", 7, Binary("BitwiseOr", np.logical_or, _BOOL))
_binary("Xor", 7, Binary("BitwiseXor", np.logical_xor, _BOOL))
_binary("BitwiseAnd", 18, Binary("BitwiseAnd", np.bitwise_and, INTS))
_binary("BitwiseOr", 18, Binary("BitwiseOr", np.bitwise_or, INTS))
_binary("BitwiseXor", 18, Binary("BitwiseXor", np.bitwise_xor, INTS))


@op("BitShift", since=28)
class BitShift(Op):
    """Z = X shifted by Y bits; to the right, the sign is extended. A shift by fewer than 0 or by all bits leaves that
    extension alone: -1 for a right shift of a negative number, else 0."""

    inputs, outputs = ("X", "Y"), ("Z",)
    dtypes = {"X": INTS, "Y": INTS}
    inplace = ((0, 0), (0, 1))
    attrs = {"direction": Attr("str", REQUIRED)}

    def infer(self, c: Call) -> list[Spec]:
        if c["direction"] not in ("LEFT", "RIGHT"):
            raise c.error(f"direction must be 'LEFT' or 'RIGHT', not {c['direction']!r}")
        return [Spec(same_dtype(c), broadcast(c, c.ins[0].shape, c.ins[1].shape))]

    def reference(self, c: Call, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        bits = x.dtype.itemsize * 8
        outside = (y < 0) | (y >= bits)
        if c["direction"] == "RIGHT":
            return np.right_shift(x, np.where(outside, bits - 1, y).astype(x.dtype)) * ~(outside & (x > 0))
        return np.where(outside, 0, np.left_shift(x, np.where(outside, 0, y).astype(x.dtype))).astype(x.dtype)

    def bind(self, c: Call) -> Kernel | None:
        return nary_kernel(c, ("ShiftLeft" if c["direction"] == "LEFT" else "ShiftRight",))


@op("Where", since=16)
class Where(Op):
    """output = X where condition, else Y; all three are broadcast."""

    inputs, outputs = ("condition", "X", "Y"), ("output",)
    dtypes = {"condition": _BOOL, "X": _TENSORS, "Y": _TENSORS}
    inplace = ((0, 1), (0, 2))
    raw_bits = True

    def infer(self, c: Call) -> list[Spec]:
        condition, x, y = c.ins
        if x.dtype != y.dtype:
            raise c.error("X and Y must have one element type")
        return [Spec(x.dtype, broadcast(c, condition.shape, x.shape, y.shape))]

    def reference(self, c: Call, condition: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.where(condition, x, y)

    def bind(self, c: Call) -> Kernel | None:
        dtype = c.outs[0].dtype
        if dtype not in BITS or STORAGE[dtype].itemsize > 8:
            return None
        walk = loops(c.outs[0].shape, [s.shape for s in c.ins])
        return Kernel("elementwise.where", ints=(STORAGE[dtype].itemsize, *walk))

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        condition, zero = c.node.inputs[0], g.scalar(0, dy)
        found: list[str | None] = [None, None, None]
        for i, operands in ((1, [condition, dy, zero]), (2, [condition, zero, dy])):
            if g.wants(i):
                found[i] = g.reduced_to(g.emit("Where", operands), c.ins[i].shape)
        return found
