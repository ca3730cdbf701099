"""Quantized operands: a tensor followed by its scale and its zero point among a node's inputs.

What the quantized operators other than products share. An operand may be float32, and is then quantized as it is read;
a result without a scale is float32. Scales are scalars or [1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from evort.graph import Node
from evort.ops.base import Call, find
from evort.ops.requantize import plain_scale, rounded
from evort.types import RANGES, STORAGE, DType

BYTES = frozenset({DType.UINT8, DType.INT8})
INTEGERS = BYTES | {DType.UINT16, DType.INT16}
_FLOAT = frozenset({DType.FLOAT})
SIDES = INTEGERS | _FLOAT


def operand_dtypes(*names: str, zero: str = "_zero_point", scale: str = "_scale") -> dict[str, frozenset[DType]]:
    """The element types allowed of operands and of what describes them."""
    found = {}
    for name in names:
        found |= {name: SIDES, name + scale: _FLOAT, name + zero: INTEGERS}
    return found


def check_few_bits(c: Call, index: int) -> None:
    """Weights of 4 bits come as sparse constants, which their kernels pack in any case. Raises ShapeError."""
    if c.ins[index].dtype == DType.INT4 and c.ins[index].sparse is None:
        raise c.error(f"int4 weights (input {index}) must be a sparse constant; cast others to int8")


def check_scale(c: Call, index: int) -> None:
    """A scale is one positive number. Raises ShapeError."""
    spec = c.ins[index]
    if spec.shape not in ((), (1,)):
        raise c.error(f"scale (input {index}) must be a scalar")
    if spec.value is not None and not 0 < float(spec.value.reshape(())) < np.inf:
        raise c.error(f"scale (input {index}) is {spec.value.reshape(())}, not a positive number")


def operand_type(c: Call, index: int) -> DType:
    """The integer type of the operand at `index`, whose scale and zero point follow it. Raises ShapeError."""
    spec, zero = c.ins[index], index + 2
    check_scale(c, index + 1)
    if c.has(zero) and c.ins[zero].shape not in ((), (1,)):
        raise c.error(f"zero point (input {zero}) must be a scalar")
    if spec.dtype == DType.FLOAT:
        if not c.has(zero):
            raise c.error(f"a float operand (input {index}) needs a zero point, which says what to quantize it to")
        return c.ins[zero].dtype
    if c.has(zero) and c.ins[zero].dtype != spec.dtype:
        raise c.error(f"zero point (input {zero}) must have the element type of input {index}")
    return spec.dtype


def result_type(c: Call, scale: int, default: DType) -> DType:
    """The element type of a result whose scale is input `scale` and whose zero point follows: the zero point's, or
    `default` where there is only a scale, or float32 where there is neither. Raises ShapeError."""
    zero = scale + 1
    if not c.has(scale):
        if c.has(zero):
            raise c.error("a result's zero point comes with a scale")
        return DType.FLOAT
    check_scale(c, scale)
    if c.has(zero) and c.ins[zero].shape not in ((), (1,)):
        raise c.error(f"zero point (input {zero}) must be a scalar")
    return c.ins[zero].dtype if c.has(zero) else default


def scaled_operands(node: Node) -> Iterator[tuple[int, int, int]]:
    """Which operands of a node have a scale: (index of the operand, or -1 for output 0, index of its scale, and of its
    zero point). Indices may be beyond those that the node has.

    Quantized operators name such operands alike: `x, x_scale, x_zero_point`, and `y_scale, y_zero_point` for output y.
    """
    definition = find(node.op, node.domain)
    names = [] if definition is None else [name.strip("?*").lower() for name in definition.inputs]
    for i, name in enumerate(names):
        owner = name.removesuffix("_scale")
        if owner != name:
            zero = owner + "_zero_point"
            yield names.index(owner) if owner in names else -1, i, names.index(zero) if zero in names else len(names)
    for i in range(len(names) - 1, len(node.inputs), 3) if node.op == "QLinearConcat" else ():
        yield i, i + 1, i + 2


class Quantity:
    """What turns integers into real numbers: real = scale * (q - zero), q of integer type `dtype`."""

    __slots__ = ("dtype", "scale", "zero")

    def __init__(self, dtype: DType, scale: np.ndarray, zero: np.ndarray | None):
        self.dtype = dtype
        self.scale = plain_scale(scale)
        self.zero = 0 if zero is None else int(zero.reshape(()))

    @classmethod
    def of(cls, c: Call, index: int, dtype: DType | None = None) -> Quantity:
        """That of the operand at `index`, or of a result of that type whose scale is at `index + 1`; constants."""
        scale, zero = c.ins[index + 1].value, c.ins[index + 2].value if c.has(index + 2) else None
        return cls(operand_type(c, index) if dtype is None else dtype, scale, zero)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quantity) and (self.dtype, float(self.scale), self.zero) == (
            other.dtype, float(other.scale), other.zero,
        )  # fmt: skip

    __hash__ = None  # type: ignore[assignment]

    @property
    def zero_point(self) -> np.ndarray:
        return np.array(self.zero, STORAGE[self.dtype])

    @property
    def bounds(self) -> tuple[int, int]:
        return RANGES[self.dtype]

    def centred(self, x: np.ndarray) -> np.ndarray:
        """q - zero as float32, in which it is exact; float x is quantized."""
        if x.dtype == np.float32:
            x = self.quantized(x)
        return x.astype(np.float32) - np.float32(self.zero)

    def real(self, x: np.ndarray) -> np.ndarray:
        """The real numbers, float32."""
        with np.errstate(all="ignore"):
            return self.centred(x) * self.scale

    def quantized(self, x: np.ndarray, low: int | None = None, high: int | None = None) -> np.ndarray:
        """saturate(round(x / scale) + zero) of float32 x."""
        with np.errstate(all="ignore"):
            return rounded(x / self.scale, self.zero_point, low, high)

    def rounded(self, x: np.ndarray) -> np.ndarray:
        """saturate(round(x) + zero)."""
        return rounded(x, self.zero_point)

    def every(self) -> np.ndarray:
        """All 256 numbers of an 8-bit type, in the order of their bits."""
        return np.arange(256, dtype=np.uint8).view(STORAGE[self.dtype])


def quantities(c: Call, given: tuple[np.ndarray | None, ...], *indices: int) -> list[Quantity]:
    """Those of the operands at `indices`, from the values of the node's inputs."""
    values = [*given, None, None]
    return [Quantity(operand_type(c, i), values[i + 1], values[i + 2]) for i in indices]


def result(c: Call, given: tuple[np.ndarray | None, ...], scale: int) -> Quantity | None:
    """That of the result, None for a float one."""
    values = [*given, None, None]
    dtype = c.outs[0].dtype
    return None if dtype == DType.FLOAT else Quantity(dtype, values[scale], values[scale + 1])


def table(x: Quantity, y: Quantity | None, function: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
    """[256]: for every number of 8-bit x, in the order of the bits, f(real) quantized as y; float32 where y is None."""
    real = x.real(x.every())
    if function is not None:
        with np.errstate(all="ignore"):
            real = function(real).astype(np.float32, copy=False)
    return real if y is None else y.quantized(real)
