"""Resampling quantized images: QLinearResize, and QLinearTriForward, the three-dimensional lookup table.

Numbers are blended in float32, each operation rounded by itself, then multiplied by the input's scale in units of the
result's, and rounded. A result without scale and zero point is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from evort.errors import ExecutionError
from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.ops.interpolate import Axis, Resize
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
)
from evort.ops.sample import LANES, MAX_PIXELS
from evort.ops.views import INT64
from evort.types import FLOATS, DType, Spec

_FLOAT = frozenset({DType.FLOAT})


def _unit(x: np.ndarray, y: Quantity | None) -> np.float32:
    """A scale in units of y's."""
    with np.errstate(all="ignore"):
        return np.float32(x if y is None else x / y.scale)


def _leave(real: np.ndarray, unit: np.float32, y: Quantity | None) -> np.ndarray:
    with np.errstate(all="ignore"):
        real = real * unit
        return real if y is None else y.rounded(real)


@op("QLinearResize", domain="evort")
class QLinearResize(Resize):
    """Resize in mode linear or cubic (`evort.ops.interpolate`) of a quantized tensor: each axis is resampled in
    float32, from the last to the first, taps added up in order. tf_crop_and_resize is not supported; mode nearest needs
    no arithmetic: Resize has it."""

    inputs = ("X", "x_scale", "x_zero_point?", "y_scale?", "y_zero_point?", "roi?", "scales?", "sizes?")
    outputs = ("Y",)
    attrs = {**Resize.attrs, "mode": Attr("str", "linear")}
    dtypes = {
        "X": SIDES,
        **dict.fromkeys(("x_scale", "y_scale"), _FLOAT),
        **dict.fromkeys(("x_zero_point", "y_zero_point"), INTEGERS),
        "roi": FLOATS,
        "scales": _FLOAT,
        "sizes": INT64,
    }

    def values(self, c: Call) -> list[np.ndarray | None]:
        return [None, *(c.value(i) if c.has(i) else None for i in (6, 7))]

    def infer(self, c: Call) -> list[Spec]:
        if c["mode"] == "nearest" or c["coordinate_transformation_mode"] == "tf_crop_and_resize":
            raise c.error("a quantized resize is linear or cubic, and not of mode tf_crop_and_resize")
        return [Spec(result_type(c, 3, operand_type(c, 0)), super().infer(c)[0].shape)]

    def reference(self, c: Call, *given: np.ndarray | None) -> np.ndarray:
        (q,), y = quantities(c, given, 0), result(c, given, 3)
        operands = [None, *([*given, None, None, None][6:8])]
        axes = self.resized(c, given[0].shape, *operands)
        real = q.centred(given[0])
        if 0 in (a.out for a in axes):
            real = np.empty(tuple(a.out for a in axes), np.float32)
        else:
            for i in range(len(axes) - 1, -1, -1):
                if not axes[i].same:
                    real = self.along(c, axes[i], real, i)
        return _leave(real, _unit(q.scale, y), y)

    def along(self, c: Call, axis: Axis, x: np.ndarray, i: int) -> np.ndarray:
        """One axis, in float32."""
        t = self.table(c, axis)
        shape = (-1,) + (1,) * (x.ndim - 1 - i)
        total = None
        for k in range(t.weights.shape[1]):
            part = np.take(x, t.first + k, i) * t.weights[:, k].astype(np.float32).reshape(shape)
            total = part if total is None else total + part
        return total

    def view(self, c: Call) -> dict[int, tuple[int, int]] | None:
        return None

    def channels_last(self, c: Call) -> Sequence[tuple[int, ...]]:
        x, out = c.ins[0], c.outs[0]
        if not c.known(1, 2, 3, 4) or not {x.dtype, out.dtype} <= BYTES or x.rank < 3 or out.size == 0:
            return ()
        axes = self.resized(c, x.shape, *self.values(c))
        return ((0, ~0),) if not all(a.same for a in axes) else ()

    def bind(self, c: Call) -> Kernel | None:
        x, out = c.ins[0], c.outs[0]
        if not c.known(1, 2, 3, 4) or x.dtype not in INTEGERS or out.size == 0:
            return None
        axes = self.resized(c, x.shape, *self.values(c))
        if all(a.same for a in axes):
            return None
        if out.channels_last:
            axes = [axes[0], *axes[2:], axes[1]]
        q = Quantity.of(c, 0)
        y = None if out.dtype == DType.FLOAT else Quantity.of(c, 2, out.dtype)
        low, high = (0, 0) if y is None else y.bounds
        plain = self.separable(c, axes)
        levels, _, inner, rings = (int(v) for v in plain.ints[:4])
        sizes = [int(v) for v in plain.ints[4 : 4 + 3 * levels]]
        behind = inner * prod(sizes[1::3]) // (1 if levels == 1 else sizes[1])
        worker = -(-(sizes[-3] * inner + behind + rings) // 16) * 16 + 16
        head = [q.dtype, q.zero, out.dtype, 0 if y is None else y.zero, low, high, worker]
        return Kernel(
            "qsample.resize",
            ints=np.concatenate([head, plain.ints]),
            reals=np.concatenate([[_unit(q.scale, y)], plain.reals]),
            scratch=4 * (len(plain.reals) + worker * c.threads),
            inputs=(0,),
        )


@op("QLinearTriForward", domain="evort")
class QLinearTriForward(Op):
    """tri_forward (`evort.ops.sample.LookupTable3D`) with a quantized table, image or result, each float32 without its
    scale and zero point: a colour table [C, D, D, D] applied to an image [N, 3, H, W] gives Y [N, C, H, W], trilinear.
    Beyond the table is its border, NaN is its first entry. The eight corners are blended along the last axis first."""

    inputs = (
        "LUT", "LUT_scale?", "LUT_zero_point?", "image", "image_scale?", "image_zero_point?", "binsize", "y_scale?",
        "y_zero_point?",
    )  # fmt: skip
    outputs = ("output",)
    dtypes = {**operand_dtypes("LUT", "image"), "binsize": _FLOAT, "y_scale": _FLOAT, "y_zero_point": INTEGERS}

    def side(self, c: Call, index: int) -> DType:
        """The integer type of the table or the image, FLOAT where its numbers are real ones."""
        if c.has(index + 1):
            return operand_type(c, index)
        if c.ins[index].dtype != DType.FLOAT or c.has(index + 2):
            raise c.error(f"the scale of input {index} is missing")
        return DType.FLOAT

    def infer(self, c: Call) -> list[Spec]:
        table, image = c.ins[0], c.ins[3]
        if table.rank != 4 or len(set(table.shape[1:])) != 1 or table.shape[1] < 1:
            raise c.error("the table must be [C, D, D, D]")
        if image.rank != 4 or image.shape[1] != 3:
            raise c.error("the image must be [N, 3, H, W]")
        if c.ins[6].size != 1:
            raise c.error("binsize must be a scalar")
        if self.side(c, 0) != table.dtype:
            raise c.error("a float table is not quantized: it needs no scale")
        shape = (image.shape[0], table.shape[0], *image.shape[2:])
        image_type = self.side(c, 3)
        return [Spec(result_type(c, 7, DType.UINT8 if image_type == DType.FLOAT else image_type), shape)]

    def reference(self, c: Call, *given: np.ndarray | None) -> np.ndarray:
        table, image, y = given[0], given[3], result(c, given, 7)
        scale = np.float32(1)
        if c.has(1):
            (q,) = quantities(c, given, 0)
            table, scale = q.centred(table), q.scale
        if c.has(4):
            image = quantities(c, given, 3)[0].real(image)
        step = given[6].reshape(()).item()
        if not 0 < step < np.inf:
            raise ExecutionError(f"{c.node.label()}: binsize {step} is not a positive number")
        last = np.float32(table.shape[1] - 1)
        with np.errstate(all="ignore"):
            at = image / np.float32(step)
            at = np.where(at > 0, np.minimum(at, last), np.float32(0))
            below = np.floor(at)
            part = at - below
            below = below.astype(np.int64)
            above = np.minimum(below + 1, table.shape[1] - 1)
            corners = []
            for k in range(8):
                u, v, w = ((above if k & bit else below)[:, channel] for bit, channel in ((4, 2), (2, 1), (1, 0)))
                corners.append(table[:, u, v, w])
            for channel in range(3):
                w = part[:, channel]
                corners = [a + (b - a) * w for a, b in zip(corners[::2], corners[1::2], strict=True)]
        return _leave(np.moveaxis(corners[0], 0, 1), _unit(scale, y), y)

    def bind(self, c: Call) -> Kernel | None:
        table, image, out = c.ins[0], c.ins[3], c.outs[0]
        dims = table.shape[1:]
        if not c.known(1, 2, 4, 5, 7, 8) or prod(dims) > MAX_PIXELS or out.size == 0:
            return None
        q = Quantity.of(c, 0) if c.has(1) else None
        p = Quantity.of(c, 3) if c.has(4) else None
        y = None if out.dtype == DType.FLOAT else Quantity.of(c, 6, out.dtype)
        low, high = (0, 0) if y is None else y.bounds
        groups = -(-table.shape[0] // LANES)
        return Kernel(
            "qsample.lookup_table",
            ints=(
                image.shape[0], table.shape[0], image.shape[2] * image.shape[3], dims[0], table.dtype,
                0 if q is None else q.zero, image.dtype, 0 if p is None else p.dtype, 0 if p is None else p.zero,
                out.dtype, 0 if y is None else y.zero, low, high,
            ),
            reals=(_unit(np.float32(1) if q is None else q.scale, y), 1 if p is None else p.scale),
            scratch=4 * LANES * groups * (prod(dims) + 1),
            inputs=(0, 3, 6),
        )  # fmt: skip
