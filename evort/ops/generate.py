"""Operators that make a tensor from a few numbers or from another's shape: Constant, Range, OneHot, Shape, ...

Sources: the ONNX operators of the same names.
"""

from __future__ import annotations

from math import ceil, isfinite, prod
from typing import TYPE_CHECKING

import numpy as np

from evort.ops.base import Attr, Call, Kernel, Op, element_type, op
from evort.ops.copies import itemsize
from evort.ops.views import INDEX, INT64
from evort.types import FLOATS, INTS, STORAGE, DType, Spec, dtype_of

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients


def pattern(value: np.ndarray) -> int:
    """The bytes of one element (8 at most), as the 64-bit integer that begins with them in memory."""
    return int(np.frombuffer(value.tobytes().ljust(8, b"\0"), np.int64)[0])


@op("Constant", since=13)
class Constant(Op):
    """A value given as an attribute. (The importer turns these into constants of the graph.)

    `dtype` is evort's own: the element type of `value` where NumPy has none (bfloat16 and the like, given as bits).
    """

    outputs = ("output",)
    attrs = {
        "value": Attr("tensor"),
        "value_float": Attr("float"),
        "value_floats": Attr("floats"),
        "value_int": Attr("int"),
        "value_ints": Attr("ints"),
        "value_string": Attr("str"),
        "value_strings": Attr("strs"),
        "dtype": Attr("int"),
    }
    raw_bits = True

    def value(self, c: Call) -> np.ndarray:
        given = {k: v for k, v in c.attrs.items() if v is not None and k != "dtype"}
        if len(given) != 1:
            raise c.error(f"exactly one value must be given, not {len(given)}")
        ((key, value),) = given.items()
        if key == "value":
            return value
        kind = {"float": np.float32, "int": np.int64, "string": object}[key[6:].rstrip("s")]
        return np.array(value, kind)

    def infer(self, c: Call) -> list[Spec]:
        value = self.value(c)
        return [Spec(dtype_of(value) if c["dtype"] is None else element_type(c, c["dtype"]), value.shape, value)]

    def reference(self, c: Call) -> np.ndarray:
        return self.value(c)


@op("ConstantOfShape", since=9)
class ConstantOfShape(Op):
    """A tensor of the given shape, filled with the one element of `value` (float 0 where absent).

    `dtype` is evort's own, as in Constant.
    """

    inputs, outputs = ("input",), ("output",)
    attrs = {"value": Attr("tensor"), "dtype": Attr("int")}
    dtypes = {"input": INT64}
    raw_bits = True

    def value(self, c: Call) -> np.ndarray:
        value = np.zeros(1, np.float32) if c["value"] is None else c["value"]
        if value.size != 1:
            raise c.error(f"value has {value.size} elements, not one")
        return value.reshape(1)

    def infer(self, c: Call) -> list[Spec]:
        if c.ins[0].rank != 1:
            raise c.error("the shape must be a vector")
        value, shape = self.value(c), c.ints(0)
        if any(d < 0 for d in shape):
            raise c.error(f"shape {list(shape)} has a negative dimension")
        return [Spec(dtype_of(value) if c["dtype"] is None else element_type(c, c["dtype"]), shape)]

    def reference(self, c: Call, shape: np.ndarray) -> np.ndarray:
        value = self.value(c)
        return np.full(tuple(shape.tolist()), value[0], value.dtype)

    def bind(self, c: Call) -> Kernel | None:
        item = itemsize(c.outs[0])
        return Kernel("layout.fill", ints=(item, pattern(self.value(c))), inputs=()) if item <= 8 else None


@op("Range", since=11)
class Range(Op):
    """start, start + delta, ... before limit: max(ceil((limit - start) / delta), 0) numbers.

    float16 and bfloat16 are computed in float32 (`stash_type` 1, the only one that differs from the element type).
    """

    inputs, outputs = ("start", "limit", "delta"), ("output",)
    attrs = {"stash_type": Attr("int", 1)}
    dtypes = {
        name: FLOATS | {DType.INT16, DType.INT32, DType.INT64} for name in ("start", "limit", "delta")
    }  # fmt: skip

    def numbers(self, c: Call) -> tuple[float, float, int]:
        """(start, delta, count)."""
        if any(s.size != 1 or s.dtype != c.ins[0].dtype for s in c.ins):
            raise c.error("start, limit and delta must be scalars of one element type")
        return self.count(c, *(c.value(i) for i in range(3)))

    def count(self, c: Call, *operands: np.ndarray) -> tuple[float, float, int]:
        if c.ins[0].dtype == DType.BFLOAT16 and operands[0].dtype != np.float32:
            from evort.ops.lowp import widen

            operands = tuple(widen(v, DType.BFLOAT16) for v in operands)
        start, limit, delta = (v.reshape(()).item() for v in operands)
        if not delta or not all(isfinite(v) for v in (start, limit, delta)):
            raise c.error(f"cannot count from {start} to {limit} by {delta}")
        if isinstance(delta, int):
            return start, delta, max(-(-(limit - start) // delta), 0)
        n = (limit - start) / delta
        if not isfinite(n):
            raise c.error(f"cannot count from {start} to {limit} by {delta}")
        return start, delta, max(ceil(n), 0)

    def infer(self, c: Call) -> list[Spec]:
        return [Spec(c.ins[0].dtype, (self.numbers(c)[2],))]

    def reference(self, c: Call, start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> np.ndarray:
        first, step, n = self.count(c, start, limit, delta)
        # Integers are counted exactly, the others in float64.
        steps = np.arange(n, dtype=np.int64 if isinstance(step, int) else np.float64)
        return (first + steps * step).astype(start.dtype)

    def bind(self, c: Call) -> Kernel | None:
        first, step, _ = self.numbers(c)
        if c.outs[0].dtype in (DType.INT16, DType.INT32, DType.INT64):
            return Kernel("layout.arange", ints=(first, step), inputs=())
        if c.outs[0].dtype in (DType.FLOAT, DType.DOUBLE):
            return Kernel("layout.arange", reals=(first, step), inputs=())
        return None


@op("Shape", since=15)
class Shape(Op):
    """The input's shape, or its part [start:end]."""

    inputs, outputs = ("data",), ("shape",)
    attrs = {"start": Attr("int", 0), "end": Attr("int")}
    raw_bits = True

    def infer(self, c: Call) -> list[Spec]:
        found = c.ins[0].shape[c["start"] : c["end"]]
        return [Spec(DType.INT64, (len(found),), np.array(found, np.int64))]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        return np.array(x.shape[c["start"] : c["end"]], np.int64)


@op("Size", since=13)
class Size(Op):
    """The input's number of elements, a scalar."""

    inputs, outputs = ("data",), ("size",)
    raw_bits = True

    def infer(self, c: Call) -> list[Spec]:
        return [Spec(DType.INT64, (), np.array(c.ins[0].size, np.int64))]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        return np.array(x.size, np.int64)


@op("EyeLike", since=9)
class EyeLike(Op):
    """Ones on the k-th diagonal and zeros elsewhere, in the input's shape [n, m] and in element type `dtype` (the
    input's where absent)."""

    inputs, outputs = ("input",), ("output",)
    attrs = {"dtype": Attr("int"), "k": Attr("int", 0)}

    def infer(self, c: Call) -> list[Spec]:
        if c.ins[0].rank != 2:
            raise c.error("the input must be a matrix")
        dtype = c.ins[0].dtype if c["dtype"] is None else element_type(c, c["dtype"])
        if dtype not in FLOATS | INTS | {DType.BOOL}:
            raise c.error(f"dtype {dtype.name.lower()} is not numeric")
        return [Spec(dtype, c.ins[0].shape)]

    def diagonal(self, c: Call, shape: tuple[int, ...]) -> int:
        """k, brought into the range in which it matters."""
        return max(-shape[0], min(shape[1], c["k"]))

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        dtype = c.ins[0].dtype if c["dtype"] is None else DType(c["dtype"])
        number = np.float32 if dtype == DType.BFLOAT16 else STORAGE[dtype]
        return np.eye(*x.shape, self.diagonal(c, x.shape), number)

    def bind(self, c: Call) -> Kernel:
        out = c.outs[0]
        one = np.array(0x3F80, np.uint16) if out.dtype == DType.BFLOAT16 else np.ones((), STORAGE[out.dtype])
        return Kernel("layout.eye", ints=(one.itemsize, pattern(one), self.diagonal(c, out.shape)), inputs=())


@op("Trilu", since=14)
class Trilu(Op):
    """The upper (or lower) triangle of each matrix [..., n, m], from (or up to) the k-th diagonal; zeros elsewhere."""

    inputs, outputs = ("input", "k?"), ("output",)
    attrs = {"upper": Attr("int", 1)}
    dtypes = {"k": INT64}
    inplace = ((0, 0),)
    raw_bits = True

    def infer(self, c: Call) -> list[Spec]:
        if c.ins[0].rank < 2:
            raise c.error("the input must be of rank 2 or higher")
        if c.has(1) and c.ins[1].size != 1:
            raise c.error("k must be a scalar")
        return [c.like(0)]

    def reference(self, c: Call, x: np.ndarray, k: np.ndarray | None = None) -> np.ndarray:
        n, m = x.shape[-2:]
        k = 0 if k is None else max(-n, min(m, k.reshape(()).item()))
        keep = np.tri(n, m, k - 1, bool) ^ True if c["upper"] else np.tri(n, m, k, bool)
        return np.where(keep, x, "" if x.dtype == object else np.zeros((), x.dtype))

    def bind(self, c: Call) -> Kernel | None:
        x = c.ins[0]
        if c.has(1) and c.ins[1].value is None:
            return None
        n, m = x.shape[-2:]
        k = max(-n, min(m, c.ints(1)[0])) if c.has(1) else 0
        return Kernel("layout.triangle", ints=(itemsize(x), int(c["upper"] != 0), k, n, m), inputs=(0,))

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        return [g.replay("Trilu", c, [dy, *c.node.inputs[1:]]), None]


@op("OneHot", since=11)
class OneHot(Op):
    """values[1] where the new axis's index (of `depth`) is the number in `indices` (negative ones count from the
    end), values[0] elsewhere and for numbers outside [-depth, depth)."""

    inputs, outputs = ("indices", "depth", "values"), ("output",)
    attrs = {"axis": Attr("int", -1)}
    dtypes = {"indices": FLOATS | INTS, "depth": FLOATS | INTS}

    def place(self, c: Call, rank: int) -> int:
        return c.axis(c["axis"], rank + 1)

    def infer(self, c: Call) -> list[Spec]:
        indices, depth, values = c.ins
        if depth.size != 1 or values.shape != (2,):
            raise c.error("depth must be a scalar and values a pair")
        number = c.value(1).reshape(()).item()
        if not isfinite(number) or number < 0:
            raise c.error(f"depth {number} is negative or not a number")
        axis = self.place(c, indices.rank)
        return [Spec(values.dtype, (*indices.shape[:axis], int(number), *indices.shape[axis:]))]

    def reference(self, c: Call, indices: np.ndarray, depth: np.ndarray, values: np.ndarray) -> np.ndarray:
        n, axis = int(depth.reshape(()).item()), self.place(c, indices.ndim)
        with np.errstate(invalid="ignore"):
            at = np.expand_dims(indices.astype(np.int64), axis)
        at = np.where((at < 0) & (at >= -n), at + n, at)
        columns = np.arange(n).reshape((n,) + (1,) * (indices.ndim - axis))
        return np.where(at == columns, values[1], values[0])

    def bind(self, c: Call) -> Kernel | None:
        indices, _, values = c.ins
        if indices.dtype not in INDEX:
            return None
        axis = self.place(c, indices.rank)
        ints = (itemsize(values), prod(indices.shape[:axis]), c.outs[0].shape[axis], prod(indices.shape[axis:]))
        return Kernel("gather.one_hot", ints=ints, inputs=(0, 2))
