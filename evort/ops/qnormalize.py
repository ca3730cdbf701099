"""Softmax and normalizations of quantized tensors.

Everything that is summed is an integer, so sums are exact; what follows is in float32, each operation rounded by
itself. (InstanceNormalization of float32 is that of floats.) A result without scale and zero point is float32.
"""

from __future__ import annotations

from math import prod

import numpy as np

from evort.ops.activation import activation_ints_reals, apply_reference
from evort.ops.base import REQUIRED, Attr, Call, Kernel, Op, op
from evort.ops.normalize import InstanceNormalization
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
from evort.types import DType, Spec

_FLOAT = frozenset({DType.FLOAT})
_UNIT = 2.0**23  # of the table of exponentials: its entries are exact in float32
_MOST = 1 << 21  # squares of that many 16-bit numbers add up in 64 bits


def exponentials(x: Quantity) -> np.ndarray:
    """[256] int32: exp(-d x_scale) for the differences d, in units of 2^-23."""
    with np.errstate(all="ignore"):
        return np.rint(np.exp(-np.arange(256) * np.float64(x.scale)) * _UNIT).astype(np.int32)


@op("QLinearSoftmax", domain="com.microsoft")
class QLinearSoftmax(Op):
    """Y = quantize(exp(x) / sum(exp(x))) along `axis`; over the axes from `axis` on where `opset` is below 13.

    With d the difference to the largest number and e[d] = exp(-d X_scale) in whole units of 2^-23, 8-bit X gives
    e[d] (1 / (sum(e) y_scale)). 16-bit and float32 X (quantized as it is read) are computed in float64.
    """

    inputs = ("X", "X_scale", "x_zero_point?", "y_scale?", "y_zero_point?")
    outputs = ("Y",)
    dtypes = {
        "X": SIDES,
        "X_scale": _FLOAT,
        "y_scale": _FLOAT,
        "x_zero_point": INTEGERS,
        "y_zero_point": INTEGERS,
    }
    attrs = {"axis": Attr("int", -1), "opset": Attr("int", REQUIRED)}

    def infer(self, c: Call) -> list[Spec]:
        c.axis(c["axis"], c.ins[0].rank)
        if c.ins[0].rank == 0:
            raise c.error("a scalar has no axis")
        return [c.like(0, result_type(c, 3, operand_type(c, 0)))]

    def split(self, c: Call) -> tuple[int, int, int]:
        """(outer, n, inner): what X is seen as."""
        shape = c.ins[0].shape
        axis = c.axis(c["axis"], len(shape))
        n = shape[axis] if c["opset"] >= 13 else prod(shape[axis:])
        outer = prod(shape[:axis])
        return outer, n, prod(shape[axis + 1 :]) if c["opset"] >= 13 else 1

    def reference(self, c: Call, *given: np.ndarray | None) -> np.ndarray:
        (q,), y = quantities(c, given, 0), result(c, given, 3)
        x = given[0].reshape(self.split(c))
        if x.size == 0:
            return np.zeros(given[0].shape, np.float32 if y is None else y.zero_point.dtype)
        with np.errstate(all="ignore"):
            if c.ins[0].dtype in BYTES:
                e = exponentials(q)[x.max(1, keepdims=True).astype(np.int64) - x]
                unit = np.float32(1) if y is None else y.scale
                real = e.astype(np.float32) * (1 / (e.sum(1, keepdims=True).astype(np.float32) * unit))
                real = real if y is None else y.rounded(real)
            else:
                e = q.real(x).astype(np.float64)
                e = np.exp(e - e.max(1, keepdims=True))
                real = (e / e.sum(1, keepdims=True)).astype(np.float32)
                real = real if y is None else y.quantized(real)
        return real.reshape(given[0].shape)

    def bind(self, c: Call) -> Kernel | None:
        _, n, inner = self.split(c)
        if not c.known(1, 2, 3, 4) or c.ins[0].dtype not in BYTES or c.ins[0].size == 0:
            return None
        x, dtype = Quantity.of(c, 0), c.outs[0].dtype
        y = None if dtype == DType.FLOAT else Quantity.of(c, 2, dtype)
        low, high = (0, 0) if y is None else y.bounds
        return Kernel(
            "qnormalize.softmax",
            ints=(x.dtype, dtype, x.zero, 0 if y is None else y.zero, low, high, n, inner),
            reals=(1 if y is None else y.scale,),
            packed=(("exponentials", lambda: exponentials(x)[::-1].astype(np.float32)),),
            inputs=(0,),
        )


@op("QLinearLayerNormalization", domain="evort")
class QLinearLayerNormalization(Op):
    """Y = quantize((x - mean(x)) / sqrt(var(x) + epsilon) * Scale + B) of the real numbers x that X stands for, over
    the axes from `axis` on. Scale and B are float32 of the shape of those axes.

    Mean and variance are those of the integers, in float64 from exact sums, epsilon in units of X_scale squared; Scale
    and B are divided by Y_scale first. Source: Ba et al., Layer normalization (2016).
    """

    inputs = ("X", "X_scale", "X_zero_point?", "Scale", "B?", "Y_scale?", "Y_zero_point?")
    outputs = ("Y",)
    dtypes = {
        **operand_dtypes("X"),
        "Scale": _FLOAT,
        "B": _FLOAT,
        "Y_scale": _FLOAT,
        "Y_zero_point": INTEGERS,
    }
    attrs = {"axis": Attr("int", -1), "epsilon": Attr("float", 1e-5)}
    inplace = ((0, 0),)

    def infer(self, c: Call) -> list[Spec]:
        x = c.ins[0]
        if x.rank == 0:
            raise c.error("a scalar has no axis")
        axis = c.axis(c["axis"], x.rank)
        for i in (3, 4):
            if c.has(i) and c.ins[i].shape != x.shape[axis:]:
                raise c.error(f"Scale and B must have the shape {list(x.shape[axis:])} of what is normalized")
        if not c["epsilon"] >= 0:
            raise c.error(f"epsilon {c['epsilon']} is negative")
        return [c.like(0, result_type(c, 5, operand_type(c, 0)))]

    def rows(self, c: Call) -> int:
        """How many numbers are normalized together."""
        return prod(c.ins[0].shape[c.axis(c["axis"], c.ins[0].rank) :])

    def epsilon(self, c: Call, x: Quantity) -> float:
        return float(np.float64(np.float32(c["epsilon"])) / np.float64(x.scale) ** 2)

    def weights(self, scale: np.ndarray, bias: np.ndarray | None, y: Quantity | None) -> tuple[np.ndarray, np.ndarray]:
        """Scale and B in units of Y."""
        unit = np.float32(1) if y is None else y.scale
        with np.errstate(all="ignore"):
            return scale.reshape(-1) / unit, (
                np.zeros(scale.size, np.float32) if bias is None else bias.reshape(-1)
            ) / unit

    def reference(self, c: Call, *given: np.ndarray | None) -> np.ndarray:
        (q,), y = quantities(c, given, 0), result(c, given, 5)
        n = self.rows(c)
        scale, bias = self.weights(given[3], given[4] if len(given) > 4 else None, y)
        x = q.centred(given[0])
        if x.size == 0:
            return np.zeros(x.shape, np.float32 if y is None else y.zero_point.dtype)
        x = x.reshape(-1, n)
        wide = x.astype(np.float64)
        with np.errstate(all="ignore"):
            mean = wide.sum(1, keepdims=True) / n
            var = np.maximum(np.square(wide).sum(1, keepdims=True) / n - mean * mean, 0)
            inverse = (1 / np.sqrt(var + self.epsilon(c, q))).astype(np.float32)
            real = (x - mean.astype(np.float32)) * inverse * scale + bias
        return (real if y is None else y.rounded(real)).reshape(given[0].shape)

    def bind(self, c: Call) -> Kernel | None:
        n = self.rows(c)
        if not c.known(1, 2, 3, 4, 5, 6) or c.ins[0].size == 0 or n > _MOST:
            return None
        x, dtype = Quantity.of(c, 0), c.outs[0].dtype
        y = None if dtype == DType.FLOAT else Quantity.of(c, 4, dtype)
        scale, bias = c.ins[3].value, c.ins[4].value if c.has(4) else None
        low, high = (0, 0) if y is None else y.bounds
        return Kernel(
            "qnormalize.layer",
            ints=(c.ins[0].dtype, dtype, x.zero, 0 if y is None else y.zero, low, high, x.dtype, n),
            reals=(self.epsilon(c, x), x.scale),
            packed=(
                ("scale", lambda: self.weights(scale, bias, y)[0]),
                ("bias", lambda: self.weights(scale, bias, y)[1]),
            ),
            inputs=(0,),
        )


@op("QLinearInstanceNormalization", domain="evort")
class QLinearInstanceNormalization(InstanceNormalization):
    """y = quantize(activation(InstanceNormalization(input))): bytes for an integer operator that follows, float32
    without y_scale and y_zero_point. The input is float32, or has 8 bits with a scale (one, or one for each channel)
    and a zero point.

    Moments of integers are those of the integers, in float64 from exact sums, epsilon in units of input_scale squared.
    What becomes of a channel's integers is a table of 256.
    """

    inputs = ("input", "scale", "B", "y_scale?", "y_zero_point?", "input_scale?", "input_zero_point?")
    outputs = ("y",)
    dtypes = {
        "input": BYTES | _FLOAT,
        **dict.fromkeys(("scale", "B", "y_scale", "input_scale"), _FLOAT),
        **dict.fromkeys(("y_zero_point", "input_zero_point"), BYTES),
    }

    def infer(self, c: Call) -> list[Spec]:
        super().infer(c)
        x, scale, zero = c.ins[0], *(c.ins[i] if c.has(i) else None for i in (5, 6))
        if (x.dtype == DType.FLOAT) == (scale is not None) or (scale is None) != (zero is None):
            raise c.error("input_scale and input_zero_point come with an input of integers, and only with one")
        if scale is not None and scale.shape not in ((), (1,), (x.shape[1],)):
            raise c.error(f"input_scale must be a scalar or one for each of {x.shape[1]} channels")
        if scale is not None and not (zero.shape in ((), (1,)) and zero.dtype == x.dtype):
            raise c.error("input_zero_point must be a scalar of the input's element type")
        return [c.like(0, result_type(c, 3, DType.UINT8))]

    def reference(self, c: Call, *given: np.ndarray | None) -> np.ndarray:
        (x, scale, bias), y = given[:3], result(c, given, 3)
        if x.dtype == np.float32:
            real = super().reference(c, x, scale, bias)
        elif x.size == 0:
            real = np.zeros(x.shape, np.float32)
        else:
            rows = x.astype(np.int64).reshape(*x.shape[:2], -1) - int(given[6].reshape(()))
            n = rows.shape[2]
            with np.errstate(all="ignore"):
                mean = rows.sum(2, keepdims=True) / np.float64(n)
                var = np.maximum(np.square(rows).sum(2, keepdims=True) / np.float64(n) - mean * mean, 0)
                inverse = (1 / np.sqrt(var + self.epsilons(c, given[5])[:, None])).astype(np.float32)
                real = (rows.astype(np.float32) - mean.astype(np.float32)) * inverse * scale[:, None] + bias[:, None]
                real = apply_reference(c, real.reshape(x.shape))
        return real if y is None else y.quantized(real)

    def epsilons(self, c: Call, scale: np.ndarray) -> np.ndarray:
        """epsilon in units of each channel's integers squared, [C] float64."""
        wide = np.broadcast_to(scale.reshape(-1), c.ins[0].shape[1:2]).astype(np.float64)
        return np.float64(np.float32(c["epsilon"])) / wide**2

    def bind(self, c: Call) -> Kernel | None:
        dtype = c.outs[0].dtype
        if not c.known(3, 4, 5, 6) or c.ins[0].size == 0:
            return None
        y = None if dtype == DType.FLOAT else Quantity.of(c, 2, dtype)
        if c.ins[0].dtype == DType.FLOAT:
            kernel = super().bind(c)
            if kernel is None or y is None:
                return kernel
            ints, reals = (*kernel.ints[:-2], dtype, y.zero), (*kernel.reals[:-1], y.scale)
            return Kernel(kernel.driver, ints, reals, inputs=(0, 1, 2))
        x, scale = c.ins[0], c.ins[5].value
        act, params = activation_ints_reals(c)
        ints = (x.dtype, dtype, int(c.ins[6].value.reshape(())), 0 if y is None else y.zero, *x.shape[1:2],
                prod(x.shape[2:]), *act)  # fmt: skip
        return Kernel(
            "qnormalize.instance",
            ints=ints,
            reals=(1 if y is None else y.scale, *params),
            packed=(("epsilons", lambda: self.epsilons(c, scale)),),
            inputs=(0, 1, 2),
        )

    gradient = Op.gradient  # none: it rounds
