"""Quantized tensors, element by element: sums, products, joins, choices, and functions by table.

Sources: the com.microsoft operators of the same names. Beyond those, operands may be of 16 bits or float32 (quantized
as it is read), and a result without scale and zero point is float32; see `evort.ops.qoperands`. In float32, each
operation rounded by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from evort.ops.activation import (
    ACTIVATIONS,
    activation_attrs,
    activation_params,
    apply_reference,
    check_activation,
)
from evort.ops.base import REQUIRED, Attr, Call, Kernel, Op, op
from evort.ops.broadcast import MAX_LOOPS, broadcast, channels_last, loops
from evort.ops.copies import joined_shapes
from evort.ops.qoperands import (
    BYTES,
    INTEGERS,
    SIDES,
    Quantity,
    operand_dtypes,
    operand_type,
    quantities,
    result,
    result_type,
    table,
)
from evort.ops.requantize import clamp_bounds, rounded
from evort.types import STORAGE, DType, Spec

_FLOAT = frozenset({DType.FLOAT})
_CLAMPS = ("", "Relu", "Clip")
_ADD, _MUL = 0, 1  # EV_QADD, EV_QMUL
_COPY, _TABLE, _QUANTIZE = 0, 1, 2  # how an operand of QLinearConcat gets into its place


class _Binary(Op):
    """C = quantize(activation(A op B)) with broadcasting."""

    inputs = ("A", "A_scale", "A_zero_point?", "B", "B_scale", "B_zero_point?", "C_scale?", "C_zero_point?")
    outputs = ("C",)
    dtypes = {**operand_dtypes("A", "B"), "C_scale": _FLOAT, "C_zero_point": INTEGERS}
    attrs = activation_attrs()
    inplace = ((0, 0), (0, 3))
    operation: int

    def infer(self, c: Call) -> list[Spec]:
        first = operand_type(c, 0)
        operand_type(c, 3)
        check_activation(c)
        return [Spec(result_type(c, 6, first), broadcast(c, c.ins[0].shape, c.ins[3].shape))]

    def factors(self, a: Quantity, b: Quantity, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the operands (a product: the first factor alone) are multiplied by, in units of the result."""
        if self.operation == _MUL:
            return a.scale * b.scale / unit, np.float32(0)
        return a.scale / unit, b.scale / unit

    def reference(self, c: Call, *given: np.ndarray | None) -> np.ndarray:
        a, b = quantities(c, given, 0, 3)
        y = result(c, given, 6)
        folds = y is not None and c["activation"] in _CLAMPS
        with np.errstate(all="ignore"):
            p, q = a.centred(given[0]), b.centred(given[3])
            for_a, for_b = self.factors(a, b, y.scale if folds else np.float32(1))
            real = p * q * for_a if self.operation == _MUL else p * for_a + q * for_b
            if folds:
                return rounded(real, y.zero_point, *clamp_bounds(c, float(y.scale), y.zero, y.zero_point.dtype))
            real = apply_reference(c, real)
            return real if y is None else y.quantized(real)

    def channels_last(self, c: Call) -> Sequence[tuple[int, ...]]:
        rank = c.outs[0].rank
        for spec in (c.ins[0], c.ins[3]):  # of a lower rank: a vector along one axis
            if spec.rank != rank and sum(d != 1 for d in spec.shape) > 1:
                return ()
        return ((0, 3, ~0),) if rank > 2 and c.known(1, 2, 4, 5, 6, 7) else ()

    def bind(self, c: Call) -> Kernel | None:
        if not c.known(1, 2, 4, 5, 6, 7):
            return None
        a, b, out = Quantity.of(c, 0), Quantity.of(c, 3), c.outs[0]
        y = None if out.dtype == DType.FLOAT else Quantity.of(c, 5, out.dtype)
        shapes = [out.shape, c.ins[0].shape, c.ins[3].shape]
        if out.channels_last:
            shapes = [channels_last(shape, out.rank) for shape in shapes]
        walk = loops(shapes[0], shapes[1:])
        if walk[0] > MAX_LOOPS:
            return None
        folds = y is not None and c["activation"] in _CLAMPS
        with np.errstate(all="ignore"):
            for_a, for_b = self.factors(a, b, y.scale if folds else np.float32(1))
        activation = 0 if folds or not c["activation"] else ACTIVATIONS[c["activation"]].id
        low, high = (0, 0) if y is None else y.bounds
        if folds:
            low, high = clamp_bounds(c, float(y.scale), y.zero, y.zero_point.dtype)
        types = (c.ins[0].dtype, c.ins[3].dtype, out.dtype, a.dtype, b.dtype)
        zeros = (a.zero, b.zero, 0 if y is None else y.zero)
        return Kernel(
            "qelementwise.binary",
            ints=(self.operation, *types, *zeros, low, high, int(folds), activation, *walk),
            reals=(for_a, for_b, a.scale, b.scale, 1 if y is None else y.scale, *activation_params(c)),
            inputs=(0, 3),
        )


@op("QLinearAdd", domain="com.microsoft")
class QLinearAdd(_Binary):
    """C = quantize(activation((A - A_zero_point) A_scale + (B - B_zero_point) B_scale)), broadcast. With activation
    none, Relu or Clip both scales are divided by C_scale first."""

    operation = _ADD


@op("QLinearMul", domain="com.microsoft")
class QLinearMul(_Binary):
    """C = quantize(activation((A - A_zero_point) (B - B_zero_point) (A_scale B_scale))), broadcast. With activation
    none, Relu or Clip the scale of the product is divided by C_scale first."""

    operation = _MUL


def lookup_kernel(c: Call, x: Quantity, make: Callable[[], np.ndarray] | None) -> Kernel | None:
    """The driver that replaces every 8-bit number of input 0 (of float32 numbers, as x quantizes them) by its entry of
    a table: what `make` makes, or the node's input 1 where that is None."""
    if x.dtype not in BYTES:
        return None
    scale = x.scale if c.ins[0].dtype == DType.FLOAT else 0
    return Kernel(
        "qelementwise.lookup",
        ints=(STORAGE[c.outs[0].dtype].itemsize, x.dtype, x.zero),
        reals=(scale,),
        packed=() if make is None else (("table", make),),
        inputs=(0, 1) if make is None else (0,),
    )


class _Function(Op):
    """Y = quantize(f(X)), elementwise."""

    inputs = ("X", "X_scale", "X_zero_point?", "Y_scale?", "Y_zero_point?")
    outputs = ("Y",)
    dtypes = {**operand_dtypes("X"), "Y_scale": _FLOAT, "Y_zero_point": INTEGERS}
    inplace = ((0, 0),)

    def infer(self, c: Call) -> list[Spec]:
        return [c.like(0, result_type(c, 3, operand_type(c, 0)))]

    def function(self, c: Call, x: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def reference(self, c: Call, *given: np.ndarray | None) -> np.ndarray:
        (x,), y = quantities(c, given, 0), result(c, given, 3)
        with np.errstate(all="ignore"):
            real = self.function(c, x.real(given[0]))
        return real if y is None else y.quantized(real)

    def channels_last(self, c: Call) -> Sequence[tuple[int, ...]]:
        return ((0, ~0),) if c.known(1, 2, 3, 4) and c.ins[0].dtype in BYTES else ()

    def bind(self, c: Call) -> Kernel | None:
        if not c.known(1, 2, 3, 4):
            return None
        x, dtype = Quantity.of(c, 0), c.outs[0].dtype
        y = None if dtype == DType.FLOAT else Quantity.of(c, 2, dtype)
        return lookup_kernel(c, x, lambda: table(x, y, lambda v: self.function(c, v)))


@op("QLinearLeakyRelu", domain="com.microsoft")
class QLinearLeakyRelu(_Function):
    """Y = quantize(x < 0 ? alpha x : x) of the real numbers x that X stands for."""

    attrs = {"alpha": Attr("float", 0.01)}

    def function(self, c: Call, x: np.ndarray) -> np.ndarray:
        return np.where(x < 0, np.float32(c["alpha"]) * x, x)


@op("QLinearSigmoid", domain="com.microsoft")
class QLinearSigmoid(_Function):
    """Y = quantize(1 / (1 + exp(-x))) of the real numbers x that X stands for."""

    def function(self, c: Call, x: np.ndarray) -> np.ndarray:
        from evort.ops import activation_functions

        return activation_functions.sigmoid(x)


@op("Lookup", domain="evort")
class Lookup(Op):
    """Y = table[X], the table's 256 entries in the order of X's bits: any function between 8-bit tensors, or from one
    to 16 bits or float32. Float32 X is quantized by X_scale and X_zero_point as it is read."""

    inputs, outputs = ("X", "table", "X_scale?", "X_zero_point?"), ("Y",)
    dtypes = {"X": BYTES | _FLOAT, "table": SIDES, "X_scale": _FLOAT, "X_zero_point": BYTES}
    inplace = ((0, 0),)

    def quantity(self, c: Call, scale: np.ndarray | None, zero: np.ndarray | None) -> Quantity:
        if c.ins[0].dtype != DType.FLOAT:
            return Quantity(c.ins[0].dtype, np.float32(1), None)
        return Quantity(c.ins[3].dtype, scale, zero)

    def infer(self, c: Call) -> list[Spec]:
        if c.ins[1].shape != (256,):
            raise c.error("the table must have 256 entries")
        if c.ins[0].dtype == DType.FLOAT:
            if not c.has(2) or not c.has(3):
                raise c.error("a float X needs X_scale and X_zero_point")
            result_type(c, 2, DType.UINT8)
        elif c.has(2) or c.has(3):
            raise c.error("X_scale and X_zero_point are for a float X")
        return [c.like(0, c.ins[1].dtype)]

    def reference(self, c: Call, x: np.ndarray, table: np.ndarray, *given: np.ndarray | None) -> np.ndarray:
        if c.ins[0].dtype == DType.FLOAT:
            x = self.quantity(c, *given).quantized(x)
        return table[x.view(np.uint8)]

    def channels_last(self, c: Call) -> Sequence[tuple[int, ...]]:
        return ((0, ~0),) if c.ins[0].dtype in BYTES else ()

    def bind(self, c: Call) -> Kernel | None:
        if not c.known(2, 3):
            return None
        scale, zero = (c.ins[i].value if c.has(i) else None for i in (2, 3))
        return lookup_kernel(c, self.quantity(c, scale, zero), None)


@op("QLinearConcat", domain="com.microsoft")
class QLinearConcat(Op):
    """Joins quantized tensors along `axis`, each requantized to the result's scale and zero point; `inputs` are
    triples of tensor, scale and zero point. Float32 without Y_scale and Y_zero_point."""

    inputs, outputs = ("Y_scale?", "Y_zero_point?", "*inputs"), ("Y",)
    attrs = {"axis": Attr("int", REQUIRED)}
    dtypes = {"Y_scale": _FLOAT, "Y_zero_point": INTEGERS, "inputs": SIDES}

    def tensors(self, c: Call) -> range:
        """Indices of the tensors among the inputs."""
        return range(2, len(c.ins), 3)

    def joined(self, c: Call) -> int:
        return c.axis(c["axis"], c.ins[2].rank)

    def fits(self, a: tuple[int, ...], b: tuple[int, ...], axis: int) -> bool:
        return all(m == n for i, (m, n) in enumerate(zip(a, b, strict=True)) if i != axis)

    def infer(self, c: Call) -> list[Spec]:
        there = all(c.has(i) and c.has(i + 1) for i in self.tensors(c))
        if len(c.ins) < 4 or len(c.ins) % 3 == 0 or not there:
            raise c.error("inputs must be triples of tensor, scale and zero point")
        first = c.ins[2]
        if first.rank == 0:
            raise c.error("scalars have no axis to join along")
        axis, shape = self.joined(c), list(first.shape)
        shape[axis] = 0
        for i in self.tensors(c):
            spec = c.ins[i]
            operand_type(c, i)
            if c.ins[i + 1].dtype != DType.FLOAT:
                raise c.error(f"scale (input {i + 1}) must be float32")
            if c.has(i + 2) and c.ins[i + 2].dtype == DType.FLOAT:
                raise c.error(f"zero point (input {i + 2}) must be an integer")
            if spec.rank != first.rank or not self.fits(spec.shape, first.shape, axis):
                raise c.error(f"the inputs' shapes differ in more than axis {axis}")
            shape[axis] += spec.shape[axis]
        return [Spec(result_type(c, 0, operand_type(c, 2)), tuple(shape))]

    def reference(self, c: Call, *given: np.ndarray | None) -> np.ndarray:
        y = result(c, given, 0)
        parts = []
        for i, q in zip(self.tensors(c), quantities(c, given, *self.tensors(c)), strict=True):
            x = q.quantized(given[i]) if given[i].dtype == np.float32 else given[i]
            parts.append(x if q == y else q.real(x) if y is None else y.quantized(q.real(x)))
        return np.concatenate(parts, c["axis"])

    def whole(self, c: Call) -> Quantity | None:
        """That of the result, None for float32; its scale and zero point are constants."""
        dtype = c.outs[0].dtype
        return None if dtype == DType.FLOAT else Quantity.of(c, -1, dtype)

    def constant(self, c: Call) -> bool:
        """Whether all scales and zero points are."""
        return c.known(0, 1, *(i + k for i in self.tensors(c) for k in (1, 2)))

    def channels_last(self, c: Call) -> Sequence[tuple[int, ...]]:
        out = c.outs[0]
        bytes_ = out.size > 0 and all(spec.dtype in BYTES for spec in (out, *(c.ins[i] for i in self.tensors(c))))
        takes = bytes_ and self.constant(c) and self.joined(c) == 1 and out.rank > 2
        return ((*self.tensors(c), ~0),) if takes else ()

    def bind(self, c: Call) -> Kernel | None:
        if not self.constant(c):
            return None
        out, y = c.outs[0], self.whole(c)
        axis, (shape, *shapes) = joined_shapes(c, self.joined(c), out, *(c.ins[i] for i in self.tensors(c)))
        ints, reals, tables = [], [], []
        for i in self.tensors(c):
            spec, q = c.ins[i], Quantity.of(c, i)
            kind = _QUANTIZE if spec.dtype == DType.FLOAT else _COPY if q == y else _TABLE
            if q != y and q.dtype not in BYTES:
                return None
            at = -1
            if q != y:
                at = len(tables)
                tables.append((f"table {at}", lambda q=q: table(q, y)))
            items = prod(shapes[len(reals)][axis:])
            ints += [kind, items, STORAGE[spec.dtype].itemsize, at, q.dtype, q.zero]
            reals.append(q.scale)
        rows = prod(shape[:axis]) if out.size else 0
        ints = [rows, prod(shape[axis:]), STORAGE[out.dtype].itemsize, *ints]
        return Kernel("qelementwise.concat", ints=ints, reals=reals, packed=tables, inputs=tuple(self.tensors(c)))

    def placement(self, c: Call) -> dict[int, int] | None:
        axis, (shape,) = joined_shapes(c, self.joined(c), c.outs[0])
        if prod(shape[:axis]) != 1 or not self.constant(c):
            return None
        y, places, offset = self.whole(c), {}, 0
        for i in self.tensors(c):
            if c.ins[i].dtype != DType.FLOAT and Quantity.of(c, i) == y:
                places[i] = offset
            offset += c.ins[i].size * STORAGE[c.outs[0].dtype].itemsize
        return places or None


@op("QLinearWhere", domain="com.microsoft")
class QLinearWhere(Op):
    """Z = X where condition, else Y, requantized to z_scale and z_zero_point; all three are broadcast. Float32 without
    those."""

    inputs = (
        "condition", "X", "x_scale", "x_zero_point?", "Y", "y_scale", "y_zero_point?", "z_scale?", "z_zero_point?",
    )  # fmt: skip
    outputs = ("Z",)
    dtypes = {
        "condition": frozenset({DType.BOOL}),
        **dict.fromkeys(("X", "Y"), SIDES),
        **dict.fromkeys(("x_scale", "y_scale", "z_scale"), _FLOAT),
        **dict.fromkeys(("x_zero_point", "y_zero_point", "z_zero_point"), INTEGERS),
    }

    def infer(self, c: Call) -> list[Spec]:
        first = operand_type(c, 1)
        operand_type(c, 4)
        return [Spec(result_type(c, 7, first), broadcast(c, c.ins[0].shape, c.ins[1].shape, c.ins[4].shape))]

    def reference(self, c: Call, *given: np.ndarray | None) -> np.ndarray:
        z, sides = result(c, given, 7), []
        for q, v in zip(quantities(c, given, 1, 4), (given[1], given[4]), strict=True):
            v = q.quantized(v) if v.dtype == np.float32 else v
            sides.append(v if q == z else q.real(v) if z is None else z.quantized(q.real(v)))
        return np.where(given[0], *sides)

    def bind(self, c: Call) -> Kernel | None:
        if not c.known(2, 3, 5, 6, 7, 8) or c.ins[1].dtype not in BYTES or c.ins[4].dtype not in BYTES:
            return None
        dtype = c.outs[0].dtype
        z = None if dtype == DType.FLOAT else Quantity.of(c, 6, dtype)
        walk = loops(c.outs[0].shape, [c.ins[i].shape for i in (0, 1, 4)])
        if walk[0] > MAX_LOOPS:
            return None
        places, tables = [], []
        for i, name in ((1, "table X"), (4, "table Y")):
            q = Quantity.of(c, i)
            places.append(-1 if q == z else len(tables))
            if q != z:
                tables.append((name, lambda q=q: table(q, z)))
        return Kernel(
            "qelementwise.where",
            ints=(STORAGE[dtype].itemsize, *places, *walk),
            packed=tables,
            inputs=(0, 1, 4),
        )
