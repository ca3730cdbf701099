"""Matrix products of integers: MatMulInteger, MatMulIntegerToFloat, QLinearMatMul, QGemm.

Sums of products are exact; what follows them is defined in requantize.py. One driver, `qlinear.product`, computes them
all: an operator says which of its inputs plays which role in

    y = quantize(activation((A - a_zero)(B - b_zero) a_scale b_scale + bias + (Z - z_zero) z_scale))
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from evort.ops.activation import activation_attrs, activation_ints_reals, check_activation
from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.ops.conv import same_dtype
from evort.ops.linear import matmul_layout, matmul_shape
from evort.ops.qoperands import check_few_bits
from evort.ops.requantize import finish, quantized, to_int32
from evort.types import DType, Spec

_BYTES = frozenset({DType.INT8, DType.UINT8})
_INTS = _BYTES | {DType.INT16}
_FLOAT = frozenset({DType.FLOAT})
_SPARSE = frozenset({DType.INT8, DType.INT4})
_SCALES = frozenset({DType.FLOAT, DType.FLOAT16, DType.BFLOAT16})

# Roles, in the order in which the driver takes them.
_A, _A_SCALE, _A_ZERO, _B, _B_SCALE, _B_ZERO, _Y_SCALE, _Y_ZERO, _BIAS, _Z, _Z_SCALE, _Z_ZERO = range(12)

# Axes of scales and biases (EV_BIAS_* of gemm.h).
_ONE, _ROW, _COLUMN = range(3)


def _along(v: np.ndarray, rank: int, rows: bool) -> np.ndarray:
    """A scale or zero point, shaped to broadcast with its operand: a vector is one for each row, or each column."""
    if v.size == 1:
        return v.reshape(())
    return v.reshape(-1, 1) if rows and v.ndim == 1 and rank > 1 else v


def _centred(x: np.ndarray, zero_point: np.ndarray | None, rows: bool) -> np.ndarray:
    """x - zero_point as float64 (exact sums of products); a vector is one for each row of x, or for each column."""
    x = x.astype(np.float64)
    return x if zero_point is None else x - _along(zero_point, x.ndim, rows)


class _Product(Op):
    """What the operators share. roles: for each role the index of the input that has it, -1 where none can."""

    choices = ("qlinear.product", "sparse.product_s8")

    roles: ClassVar[tuple[int, ...]]

    def _index(self, c: Call, role: int) -> int:
        """The input with a role, -1 where there is none."""
        index = self.roles[role]
        return index if index >= 0 and c.has(index) else -1

    def _spec(self, c: Call, role: int) -> Spec | None:
        index = self._index(c, role)
        return None if index < 0 else c.ins[index]

    def _shapes(self, c: Call) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of A and B, transposed where an attribute says so."""
        shapes = [c.ins[self.roles[role]].shape for role in (_A, _B)]
        for i, name in enumerate(("transA", "transB")):
            if name in self.attrs and c[name]:
                if len(shapes[i]) < 2:
                    raise c.error(f"{name} needs an operand of two or more axes")
                shapes[i] = (*shapes[i][:-2], shapes[i][-1], shapes[i][-2])
        return shapes[0], shapes[1]

    def _check_along(self, c: Call, role: int, shape: tuple[int, ...], rows: bool) -> None:
        """A scale or zero point is one number, one for each row (column), or of the operand's shape with 1 across."""
        spec = self._spec(c, role)
        if spec is None:
            return
        length = shape[-2 if rows else -1] if len(shape) > 1 else -1
        across = (*shape[:-1], 1) if rows else (*shape[:-2], 1, shape[-1])
        if spec.shape not in ((), (1,), (length,)) and (len(shape) < 2 or spec.shape != across):
            which = "row" if rows else "column"
            raise c.error(f"{self._name(role)} must be a scalar or have one element for each {which}")

    def _name(self, role: int) -> str:
        index = self.roles[role]
        return f"{self.inputs[index].strip('?')} (input {index})"

    def infer(self, c: Call) -> list[Spec]:
        check_few_bits(c, self.roles[_B])
        a, b = self._shapes(c)
        out = matmul_shape(c, a, b)
        columns = b[-1] if len(b) > 1 else 1
        rows = a[-2] if len(a) > 1 else 1
        for role, of in ((_A_ZERO, _A), (_B_ZERO, _B), (_Z_ZERO, _Z)):
            zero, like = self._spec(c, role), self._spec(c, of)
            if zero is not None and (like is None or like.dtype not in (zero.dtype, DType.FLOAT)):
                raise c.error(f"{self._name(role)} must have the element type of {self._name(of)}")
        for role, shape, is_rows in (
            (_A_SCALE, a, True), (_A_ZERO, a, True), (_B_SCALE, b, False), (_B_ZERO, b, False),
        ):  # fmt: skip
            self._check_along(c, role, shape, is_rows)
        for role in (_Y_SCALE, _Y_ZERO, _Z_SCALE, _Z_ZERO):
            spec = self._spec(c, role)
            if spec is not None and spec.shape not in ((), (1,)):
                raise c.error(f"{self._name(role)} must be a scalar")
        y_scale, y_zero = self._spec(c, _Y_SCALE), self._spec(c, _Y_ZERO)
        if (y_scale is None) != (y_zero is None):
            raise c.error("y_scale and y_zero_point come together; a float32 result has neither")
        bias, z, z_scale = self._spec(c, _BIAS), self._spec(c, _Z), self._spec(c, _Z_SCALE)
        self._check_bias(c, bias, rows, columns)
        if z is not None and z.shape != out:
            raise c.error(f"Z must have shape {list(out)}")
        if z is None and (z_scale is not None or self._spec(c, _Z_ZERO) is not None):
            raise c.error("z_scale and z_zero_point are for Z, which is absent")
        if z is not None and (z.dtype == DType.FLOAT) == (z_scale is not None):
            raise c.error("z_scale comes with a quantized Z, and only with one")
        if "presum" in self.attrs and c["presum"] < 0:
            raise c.error("presum must not be negative")
        if "activation" in self.attrs:
            check_activation(c)
        return [Spec(self._result(y_zero), out)]

    def _check_bias(self, c: Call, bias: Spec | None, rows: int, columns: int) -> None:
        if bias is not None and bias.shape != (columns,):
            raise c.error(f"{self._name(_BIAS)} must have shape [{columns}]")

    def _result(self, y_zero: Spec | None) -> DType:
        """The result's element type."""
        return DType.FLOAT if y_zero is None else y_zero.dtype

    def reference(self, c: Call, *inputs: np.ndarray | None) -> np.ndarray:
        ins = [inputs[i] if 0 <= i < len(inputs) else None for i in self.roles]
        a = quantized(ins[_A], ins[_A_SCALE], ins[_A_ZERO]) if ins[_A].dtype == np.float32 else ins[_A]
        b = quantized(ins[_B], ins[_B_SCALE], ins[_B_ZERO]) if ins[_B].dtype == np.float32 else ins[_B]
        a = a.swapaxes(-1, -2) if self.attrs.get("transA") and c["transA"] else a
        b = b.swapaxes(-1, -2) if self.attrs.get("transB") and c["transB"] else b
        total = np.asarray(np.matmul(_centred(a, ins[_A_ZERO], True), _centred(b, ins[_B_ZERO], False)))
        bias = ins[_BIAS]
        if bias is not None and bias.dtype == np.int32:
            total = total + (bias if b.ndim > 1 else bias.reshape(()))
        if np.int16 not in (a.dtype, b.dtype):
            total = to_int32(total)
        if ins[_A_SCALE] is None:
            return total
        a_scale, b_scale = (ins[i].astype(np.float32) for i in (_A_SCALE, _B_SCALE))
        scale = _along(a_scale, a.ndim, True) * np.float32(self._alpha(c)) * _along(b_scale, b.ndim, False)
        real_bias = None if bias is None or bias.dtype == np.int32 else bias.astype(np.float32)
        return finish(c, total, scale, ins[_Y_SCALE], ins[_Y_ZERO], ins[_Z], ins[_Z_SCALE], ins[_Z_ZERO], real_bias)

    def _alpha(self, c: Call) -> float:
        return c["alpha"] if "alpha" in self.attrs else 1.0

    def _bias_axis(self, shape: tuple[int, ...], m: int, n: int) -> int | None:
        return _COLUMN

    def bind(self, c: Call) -> Kernel | None:
        a, b = self._shapes(c)
        layout = matmul_layout(a, b)
        if any((s := self._spec(c, role)) is not None and s.dtype != DType.FLOAT
               for role in (_A_SCALE, _B_SCALE, _Y_SCALE, _Z_SCALE)):  # fmt: skip
            return None
        types = [self._type(c, role, zero) for role, zero in ((_A, _A_ZERO), (_B, _B_ZERO))]
        if types == [DType.INT16, DType.INT16]:
            return None
        steps = []  # how many numbers: scales of A and B, zero points of A and B
        for role, many in ((_A_SCALE, layout.m), (_B_SCALE, layout.n), (_A_ZERO, layout.m), (_B_ZERO, layout.n)):
            spec = self._spec(c, role)
            size = 1 if spec is None else spec.size
            if size != 1 and (size != many or (role in (_A_SCALE, _A_ZERO) and many != a[-2])):
                return None
            steps.append(0 if size == 1 else 1)
        rows_scaled, columns_scaled, a_step, b_step = steps
        if (
            (rows_scaled and columns_scaled)
            or (types[0] == DType.INT16 and a_step)
            or (types[1] == DType.INT16 and b_step)
        ):
            return None
        bias = self._spec(c, _BIAS)
        bias_axis = _ONE if bias is None else self._bias_axis(bias.shape, layout.m, layout.n)
        if bias_axis is None:
            return None
        sparse = self._bind_sparse(c, types, steps, bias_axis)
        if sparse is not None or DType.INT4 in types:
            return sparse
        from evort._kernels import qlinear

        trans_a, trans_b = (bool(c[name]) if name in self.attrs else False for name in ("transA", "transB"))
        number, reals = activation_ints_reals(c) if "activation" in self.attrs else ((0,), (0.0, 0.0))
        ints = (
            *(self._index(c, role) for role in range(12)), *number, layout.m, layout.n, layout.k,
            *((1, layout.m) if trans_a else (layout.k, 1)), *((1, layout.k) if trans_b else (layout.n, 1)), layout.ldc,
            _ROW if rows_scaled else _COLUMN if columns_scaled else _ONE, a_step, b_step, bias_axis,
            c["presum"] if "presum" in self.attrs else 0, *(v for axis in layout.batch for v in axis),
        )  # fmt: skip
        count = layout.batch[-1][0] if layout.batch else 1
        whole = self._spec(c, _B).dtype != DType.FLOAT
        scratch = qlinear.product_scratch(count, layout.m, layout.n, layout.k, c.threads, DType.INT16 in types, whole)
        return Kernel("qlinear.product", ints, (*reals, self._alpha(c)), scratch)

    def _bind_sparse(self, c: Call, types: list[DType], steps: list[int], bias_axis: int) -> Kernel | None:
        """The driver where B is a sparse constant that is used as it is stored, without zero points."""
        b, zero = self._spec(c, _B), self._spec(c, _B_ZERO)
        if (
            b.sparse is None or b.dtype not in _SPARSE or b.rank != 2 or types[0] == DType.INT16 or steps[0] or steps[2]
            or self._spec(c, _A_SCALE) is None or self._alpha(c) != 1 or bias_axis == _ROW
            or ("transA" in self.attrs and c["transA"])
            or (zero is not None and (zero.value is None or zero.value.any()))
        ):  # fmt: skip
            return None
        from evort.ops import sparse

        transposed = not ("transB" in self.attrs and c["transB"])
        m = c.outs[0].size // max(1, b.shape[int(transposed)])
        given = (_A, _A_SCALE, _A_ZERO, _B_SCALE, _Y_SCALE, _Y_ZERO, _BIAS, _Z, _Z_SCALE, _Z_ZERO)
        places = tuple(self.roles[r] if self.roles[r] >= 0 else len(self.inputs) for r in given)
        return sparse.bind_product(c, m, self.roles[_B], transposed, places, "product_s8")

    def _type(self, c: Call, role: int, zero: int) -> DType:
        """The integer type of an operand; float32 becomes that of its zero point."""
        dtype = self._spec(c, role).dtype
        return self._spec(c, zero).dtype if dtype == DType.FLOAT else dtype

    def macs(self, c: Call) -> int:
        return c.outs[0].size * (self._shapes(c)[0][-1])


@op("MatMulInteger", since=10)
class MatMulInteger(_Product):
    """Y = numpy.matmul(A - a_zero_point, B - b_zero_point) in int32; zero points are scalars, or one for each row of A
    and each column of B."""

    inputs, outputs = ("A", "B", "a_zero_point?", "b_zero_point?"), ("Y",)
    dtypes = dict.fromkeys(("A", "B", "a_zero_point", "b_zero_point"), _BYTES)
    roles = (0, -1, 2, 1, -1, 3, *(-1,) * 6)

    def _result(self, y_zero: Spec | None) -> DType:
        return DType.INT32


@op("MatMulIntegerToFloat", domain="com.microsoft")
class MatMulIntegerToFloat(_Product):
    """Y = (A - a_zero_point)(B - b_zero_point) * a_scale * b_scale + bias in float32, batched as numpy.matmul; scale
    and zero point of A for each row or one, of B for each column or one; bias [N] in float32. The activation is an
    extension of evort. (Microsoft's operator.)"""

    inputs = ("A", "B", "a_scale", "b_scale", "a_zero_point?", "b_zero_point?", "bias?")
    outputs = ("Y",)
    dtypes = {
        **dict.fromkeys(("A", "B", "a_zero_point", "b_zero_point"), _BYTES),
        **dict.fromkeys(("a_scale", "b_scale", "bias"), _FLOAT),
    }
    attrs = activation_attrs()
    roles = (0, 2, 4, 1, 3, 5, -1, -1, 6, -1, -1, -1)


@op("QLinearMatMul", since=21)
class QLinearMatMul(_Product):
    """y = quantize(activation((matmul(a, b) + B) * a_scale * b_scale + (Z - z_zero_point) * z_scale)), with zero points
    taken off a and b; scale and zero point of a for each row or one, of b for each column or one.

    Extensions of evort: a or b float32, which is quantized as it is read; y float32 without y_scale and y_zero_point;
    a, b, y and Z may be int16; a sparse constant b may be int4; B [N] int32; Z (float32, or quantized with z_scale) of
    y's shape; transB exchanges b's last two axes; the activation; presum: so many successive sums of two products, of
    an unsigned a and b's weights (or of an unsigned b and the weights a), fit 16 bits together in every column (row) -
    0 where that is not known."""

    inputs = (
        "a", "a_scale", "a_zero_point", "b", "b_scale", "b_zero_point", "y_scale?", "y_zero_point?", "B?", "Z?",
        "z_scale?", "z_zero_point?",
    )  # fmt: skip
    outputs = ("y",)
    dtypes = {
        **dict.fromkeys(("a", "Z"), _INTS | _FLOAT),
        "b": _INTS | _FLOAT | _SPARSE,
        **dict.fromkeys(("a_zero_point", "y_zero_point", "z_zero_point"), _INTS),
        "b_zero_point": _INTS | _SPARSE,
        **dict.fromkeys(("a_scale", "b_scale", "y_scale"), _SCALES),
        "z_scale": _FLOAT,
        "B": frozenset({DType.INT32}),
    }
    attrs = {"transB": Attr("int", 0), "presum": Attr("int", 0), **activation_attrs()}
    inplace = ((0, 9),)
    roles = tuple(range(12))

    def infer(self, c: Call) -> list[Spec]:
        same_dtype(c, 1, 4, 6)
        return super().infer(c)


@op("QGemm", domain="com.microsoft")
class QGemm(_Product):
    """Y = quantize(activation(alpha * a_scale * b_scale * (A' B' + C))) with A' [M, K], B' [K, N], each transposed
    where transA, transB say so, zero points taken off; C int32, broadcast to [M, N]; Y float32 without y_scale and
    y_zero_point. The activation is an extension of evort. (Microsoft's operator.)"""

    inputs = ("A", "a_scale", "a_zero_point", "B", "b_scale", "b_zero_point", "C?", "y_scale?", "y_zero_point?")
    outputs = ("Y",)
    dtypes = {
        **dict.fromkeys(("A", "a_zero_point", "B", "b_zero_point", "y_zero_point"), _BYTES),
        **dict.fromkeys(("a_scale", "b_scale", "y_scale"), _FLOAT),
        "C": frozenset({DType.INT32}),
    }
    attrs = {"transA": Attr("int", 0), "transB": Attr("int", 0), "alpha": Attr("float", 1.0), **activation_attrs()}
    roles = (0, 1, 2, 3, 4, 5, 7, 8, 6, -1, -1, -1)

    def infer(self, c: Call) -> list[Spec]:
        if c.ins[0].rank != 2 or c.ins[3].rank != 2:
            raise c.error("A and B must be matrices")
        return super().infer(c)

    def _check_bias(self, c: Call, bias: Spec | None, rows: int, columns: int) -> None:
        if bias is None:
            return
        shape = (1, 1, *bias.shape)[-2:]
        if bias.rank > 2 or shape[0] not in (1, rows) or shape[1] not in (1, columns):
            raise c.error(f"C does not broadcast to [{rows}, {columns}]")

    def _bias_axis(self, shape: tuple[int, ...], m: int, n: int) -> int | None:
        shape = (1, 1, *shape)[-2:]
        return _COLUMN if shape == (1, n) else _ROW if shape == (m, 1) else None
