"""Operators on two tensors with broadcasting: arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evort.errors import ExecutionError
from evort.ops.activation import activation_attrs, activation_ints_reals, activation_params, apply_reference
from evort.ops.base import Attr, Call, Kernel, Op, op, register
from evort.ops.broadcast import MAX_OPERANDS, broadcast, loops
from evort.types import FLOATS, NUMERIC, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

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
register(_Arithmetic("Add", np.add), "Add", 14)
register(_Arithmetic("Sub", np.subtract), "Sub", 14)
register(_Arithmetic("Mul", np.multiply), "Mul", 14)
register(_Division("Div", _divide), "Div", 14)


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


register(_Mod("Mod", np.mod), "Mod", 28)


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
