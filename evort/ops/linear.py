"""Matrix products: Gemm, MatMul."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evort.ops.activation import activation_attrs, activation_ints_reals, activation_params, apply_reference
from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.ops.conv import weights_dtype
from evort.types import FLOATS, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

_PRODUCT = FLOATS | {DType.INT32, DType.INT64, DType.UINT32, DType.UINT64}


class Layout:
    """Operands of a batch of products C = A B where they lie: element strides, as the driver `linear.matmul_f32`
    takes them. batch: (count, stride of A, of B, of C) for each batch axis, outermost first. C's columns are dense.
    swapped: A is the node's second input and B its first."""

    __slots__ = ("batch", "csa", "csb", "k", "ldc", "m", "n", "rsa", "rsb", "swapped")

    def __init__(self, m: int, n: int, k: int, a: tuple[int, int], b: tuple[int, int], ldc: int,
                 batch: Sequence[tuple[int, int, int, int]], swapped: bool = False):  # fmt: skip
        self.m, self.n, self.k = m, n, k
        self.rsa, self.csa = a
        self.rsb, self.csb = b
        self.ldc = ldc
        self.batch = batch
        self.swapped = swapped

    def bind(self, c: Call, activation: tuple[int, ...], reals: Sequence[float]) -> Kernel:
        from evort._kernels import linear

        sizes = (self.m, self.n, self.k, self.rsa, self.csa, self.rsb, self.csb, self.ldc)
        ints = (*activation, *sizes, *(v for axis in self.batch for v in axis))
        count = self.batch[-1][0] if self.batch else 1
        a, b = (self.rsa, self.csa), (self.rsb, self.csb)
        scratch = linear.matmul_scratch(count, self.m, self.n, self.k, a, b, self.ldc, c.threads)
        return Kernel("linear.matmul_f32", ints, reals, scratch, inputs=(1, 0) if self.swapped else None)


def _no_prelu(c: Call) -> None:
    activation_params(c)
    if c["activation"] == "PRelu":
        raise c.error("activation PRelu is for Conv only")


def _float_only(c: Call, dtype: DType) -> None:
    if c["activation"] and dtype not in FLOATS:
        raise c.error("an activation needs a float element type")


@op("Gemm", since=13)
class Gemm(Op):
    """Y = activation(alpha * A' B' + beta * C + Z) with A' [M, K], B' [K, N], each transposed where transA, transB say;
    C broadcast to [M, N]. Z [M, N], the activation, and B of float16 or bfloat16 beside float32 are extensions of
    evort."""

    inputs, outputs = ("A", "B", "C?", "Z?"), ("Y",)
    dtypes = dict.fromkeys(("A", "B", "C", "Z"), _PRODUCT)
    attrs = {
        "alpha": Attr("float", 1.0),
        "beta": Attr("float", 1.0),
        "transA": Attr("int", 0),
        "transB": Attr("int", 0),
        **activation_attrs(),
    }
    inplace = ((0, 3), (0, 2))
    choices = ("linear.gemm_f32", "sparse.product_f32")

    def infer(self, c: Call) -> list[Spec]:
        weights_dtype(c, 2, 3)
        _no_prelu(c)
        a, b = c.ins[0], c.ins[1]
        _float_only(c, a.dtype)
        if a.rank != 2 or b.rank != 2:
            raise c.error("A and B must be matrices")
        m, k = a.shape[::-1] if c["transA"] else a.shape
        kb, n = b.shape[::-1] if c["transB"] else b.shape
        if k != kb:
            raise c.error(f"A has {k} columns and B {kb} rows")
        if c.has(2):
            shape = (1, 1, *c.ins[2].shape)[-2:]
            if c.ins[2].rank > 2 or shape[0] not in (1, m) or shape[1] not in (1, n):
                raise c.error(f"C does not broadcast to [{m}, {n}]")
        if c.has(3) and c.ins[3].shape != (m, n):
            raise c.error(f"Z must have shape [{m}, {n}]")
        return [Spec(a.dtype, (m, n))]

    def reference(self, c: Call, a: np.ndarray, b: np.ndarray, bias: np.ndarray | None = None,
                  z: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
        dtype = a.dtype
        if dtype == np.float16:
            a, b = a.astype(np.float32), b.astype(np.float32)
        y = (a.T if c["transA"] else a) @ (b.T if c["transB"] else b)
        y = _scaled(y, c["alpha"])
        if bias is not None and c["beta"] != 0:
            y = y + _scaled(bias.astype(y.dtype), c["beta"])
        if z is not None:
            y = y + z
        return apply_reference(c, y).astype(dtype, copy=False)

    def bind(self, c: Call) -> Kernel | None:
        a = c.ins[0]
        if a.dtype != DType.FLOAT:
            return None
        from evort._kernels import linear

        m, n = c.outs[0].shape
        k = a.shape[0] if c["transA"] else a.shape[1]
        if c.ins[1].dtype != DType.FLOAT:
            from evort.ops import nbits

            simple = not c["transA"] and (not c.has(2) or (c["beta"] == 1 and c.ins[2].shape in ((n,), (1, n))))
            return nbits.bind_product(c, m, n, k, not c["transB"], c["alpha"]) if simple else None
        if c.ins[1].sparse is not None:
            from evort.ops import sparse

            simple = not c["transA"] and c["alpha"] == 1
            if simple and (not c.has(2) or (c["beta"] == 1 and c.ins[2].shape in ((n,), (1, n)))):
                kernel = sparse.bind_product(c, m, 1, not c["transB"], (0, 2, 3), "product_f32")
                if kernel is not None:
                    return kernel
        number, reals = activation_ints_reals(c)
        row, column = 0, 0  # strides of C along M and N
        if c.has(2):
            rows, columns = (1, 1, *c.ins[2].shape)[-2:]
            row, column = columns if rows != 1 else 0, 1 if columns != 1 else 0
        left, right = (1, m) if c["transA"] else (k, 1), (1, k) if c["transB"] else (n, 1)
        return Kernel(
            "linear.gemm_f32",
            (*number, m, n, k, *left, *right, row, column),
            (*reals, c["alpha"], c["beta"]),
            linear.matmul_scratch(1, m, n, k, left, right, n, c.threads),
        )

    def macs(self, c: Call) -> int:
        return c.outs[0].size * c.ins[0].shape[0 if c["transA"] else 1]

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        a, b = c.node.inputs[:2]
        ta, tb, alpha = c["transA"], c["transB"], c["alpha"]
        da = db = dc = None

        def product(left: str, right: str, t_left: int, t_right: int) -> str:
            return g.emit("Gemm", [left, right], {"alpha": alpha, "transA": int(t_left), "transB": int(t_right)})

        if g.wants(0):
            da = product(b, dy, tb, 1) if ta else product(dy, b, 0, not tb)
        if g.wants(1):
            db = product(dy, a, 1, ta) if tb else product(a, dy, not ta, 0)
        if g.wants(2):
            dc = g.scale(g.reduced_to(dy, c.ins[2].shape), c["beta"])
        return [da, db, dc, dy]


def _scaled(x: np.ndarray, factor: float) -> np.ndarray:
    """factor * x in x's dtype; for integers the product is cut towards zero."""
    return x if factor == 1 else (x * factor).astype(x.dtype)


def matmul_shape(c: Call, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of numpy.matmul. Raises ShapeError."""
    if not a or not b:
        raise c.error("operands must have at least one axis")
    wide_a = a if len(a) > 1 else (1, *a)
    wide_b = b if len(b) > 1 else (*b, 1)
    if wide_a[-1] != wide_b[-2]:
        raise c.error(f"{wide_a[-1]} columns do not meet {wide_b[-2]} rows")
    batch = _broadcast(wide_a[:-2], wide_b[:-2])
    if batch is None:
        raise c.error("batch axes do not broadcast")
    return (*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    rank = max(len(a), len(b))
    out = []
    for x, y in zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True):
        if x != y and 1 not in (x, y):
            return None
        out.append(y if x == 1 else x)
    return tuple(out)


def merge(batch: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Joins neighbouring batch axes that every operand steps through evenly."""
    merged: list[tuple[int, int, int, int]] = []
    for axis in batch:
        if axis[0] == 1:
            continue
        if merged and all(outer == inner * axis[0] for outer, inner in zip(merged[-1][1:], axis[1:], strict=True)):
            merged[-1] = (merged[-1][0] * axis[0], *axis[1:])
        else:
            merged.append(axis)
    return merged


def matmul_layout(a: tuple[int, ...], b: tuple[int, ...]) -> Layout:
    """The layout of numpy.matmul for dense operands of these shapes, with as few and as large products as can be."""
    a = a if len(a) > 1 else (1, *a)
    b = b if len(b) > 1 else (*b, 1)
    (m, k), n = a[-2:], b[-1]
    outer = _broadcast(a[:-2], b[:-2])
    rank = len(outer)
    batch = []
    step_a, step_b, step_c = m * k, k * n, m * n
    for i in range(1, rank + 1):
        size_a = a[-2 - i] if i <= len(a) - 2 else 1
        size_b = b[-2 - i] if i <= len(b) - 2 else 1
        batch.append((outer[rank - i], step_a if size_a != 1 else 0, step_b if size_b != 1 else 0, step_c))
        step_a, step_b, step_c = step_a * size_a, step_b * size_b, step_c * outer[rank - i]
    batch = merge(batch[::-1])
    if batch and batch[-1][1:] == (m * k, 0, m * n):  # one B for all: the batch is only more rows
        m *= batch.pop()[0]
    return Layout(m, n, k, (k, 1), (n, 1), n, batch)


@op("MatMul", since=13)
class MatMul(Op):
    """Y = activation(numpy.matmul(A, B) + bias + Z). bias [N], Z (of Y's shape), the activation, and B of float16 or
    bfloat16 beside float32 are extensions of evort."""

    inputs, outputs = ("A", "B", "bias?", "Z?"), ("Y",)
    dtypes = dict.fromkeys(("A", "B", "bias", "Z"), _PRODUCT)
    attrs = activation_attrs()
    inplace = ((0, 3),)
    choices = ("linear.matmul_f32", "sparse.product_f32")

    def infer(self, c: Call) -> list[Spec]:
        weights_dtype(c, 2, 3)
        _no_prelu(c)
        a, b = c.ins[0], c.ins[1]
        _float_only(c, a.dtype)
        shape = matmul_shape(c, a.shape, b.shape)
        columns = b.shape[-1] if b.rank > 1 else 1
        if c.has(2) and c.ins[2].shape != (columns,):
            raise c.error(f"bias must have shape [{columns}]")
        if c.has(3) and c.ins[3].shape != shape:
            raise c.error(f"Z must have shape {list(shape)}")
        return [Spec(a.dtype, shape)]

    def reference(self, c: Call, a: np.ndarray, b: np.ndarray, bias: np.ndarray | None = None,
                  z: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
        dtype = a.dtype
        if dtype == np.float16:
            a, b = a.astype(np.float32), b.astype(np.float32)
        y = np.asarray(np.matmul(a, b))
        if bias is not None:
            y = y + (bias if b.ndim > 1 else bias.reshape(()))
        if z is not None:
            y = y + z
        return apply_reference(c, y).astype(dtype, copy=False)

    def bind(self, c: Call) -> Kernel | None:
        if c.ins[0].dtype != DType.FLOAT:
            return None
        if c.ins[1].dtype != DType.FLOAT:
            from evort.ops import nbits

            a, b = c.ins[0].shape, c.ins[1].shape
            return nbits.bind_product(c, math.prod(a[:-1]), b[1], b[0], True) if len(b) == 2 else None
        if c.ins[1].sparse is not None and c.ins[1].rank == 2:
            from evort.ops import sparse

            kernel = sparse.bind_product(c, math.prod(c.ins[0].shape[:-1]), 1, True, (0, 2, 3), "product_f32")
            if kernel is not None:
                return kernel
        number, reals = activation_ints_reals(c)
        return matmul_layout(c.ins[0].shape, c.ins[1].shape).bind(c, number, reals)

    def macs(self, c: Call) -> int:
        return c.outs[0].size * c.ins[0].shape[-1]

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        a, b = c.node.inputs[:2]
        shape_a, shape_b = c.ins[0].shape, c.ins[1].shape
        wide_a = shape_a if len(shape_a) > 1 else (1, *shape_a)
        wide_b = shape_b if len(shape_b) > 1 else (*shape_b, 1)
        batch = _broadcast(wide_a[:-2], wide_b[:-2])
        dwide = g.reshape(dy, (*batch, wide_a[-2], wide_b[-1]))
        a, b = g.reshape(a, wide_a), g.reshape(b, wide_b)
        da = db = bias = None
        if g.wants(0):
            da = g.reshape(g.reduced_to(g.emit("MatMul", [dwide, g.swapped(b)]), wide_a), shape_a)
        if g.wants(1):
            if len(wide_b) == 2 and len(wide_a) > 2:  # one B for all: the batch is only more rows
                rows = math.prod(wide_a[:-1])
                a, dwide = g.reshape(a, (rows, wide_a[-1])), g.reshape(dwide, (rows, wide_b[-1]))
            if len(wide_b) == 2:
                db = g.emit("Gemm", [a, dwide], {"transA": 1})
            else:
                db = g.reduced_to(g.emit("MatMul", [g.swapped(a), dwide]), wide_b)
            db = g.reshape(db, shape_b)
        if g.wants(2):
            bias = g.reduced_to(dy, c.ins[2].shape)
        return [da, db, bias, dy]
