"""Conversions between element types: Cast, CastLike, BitCast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from evort.errors import ExecutionError
from evort.ops.base import REQUIRED, Attr, Call, Kernel, Op, element_type, op
from evort.ops.run import WIDENED
from evort.types import BITS, FLOATS, INTS, STORAGE, SUBBYTE, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients

_D = DType
# What the compiled driver converts; 4- and 2-bit integers are held as int8 or uint8.
_NATIVE = FLOATS | INTS | {_D.BOOL}
_HELD: dict[DType, DType] = {_D.INT4: _D.INT8, _D.UINT4: _D.UINT8, _D.INT2: _D.INT8, _D.UINT2: _D.UINT8}
_COMPLEX = frozenset({_D.COMPLEX64, _D.COMPLEX128})


def convert(x: np.ndarray, source: DType, to: DType, saturate: bool = True, round_mode: str = "up") -> np.ndarray:
    """An array in its storage, converted as ONNX's Cast does.

    Floats become integers by truncation; what is outside int32 (int64 for the targets uint32, int64 and uint64), and
    NaN, becomes the smallest int32 (int64), and narrower targets keep the low bits: ONNX leaves it open, x86 does it.
    Raises ValueError for a string that is no number.
    """
    from evort.ops import lowp

    if source == _D.STRING:
        return x if to == _D.STRING else convert(*_parse(x, to), to, saturate, round_mode)
    if source in WIDENED:
        x, source = lowp.widen(x, source), _D.FLOAT
    if to == _D.STRING:
        return np.array([str(v) for v in x.reshape(-1)], object).reshape(x.shape)
    if to in WIDENED or to in SUBBYTE:
        return lowp.narrow(x, to, saturate, round_mode)
    target = STORAGE[to]
    with np.errstate(all="ignore"):
        if x.dtype.kind != "f" or to in FLOATS or to == _D.BOOL:
            return x.astype(target)
        if to == _D.UINT64:
            large = (x >= 2.0**63) & (x < 2.0**64)
            return np.where(large, np.where(large, x, 0).astype(target), lowp.truncate(x, 64).astype(target))
        return lowp.truncate(x, 64 if to in (_D.UINT32, _D.INT64) else 32).astype(target)


def _parse(x: np.ndarray, to: DType) -> tuple[np.ndarray, DType]:
    """Strings as int64 or uint64 where the target is an integer type and they say so, else as float64."""
    words = [str(s.decode() if isinstance(s, bytes) else s).strip() for s in x.reshape(-1)]
    if to in INTS or to in SUBBYTE:
        try:
            kind = _D.UINT64 if to == _D.UINT64 else _D.INT64
            return np.array([int(w) for w in words], STORAGE[kind]).reshape(x.shape), kind
        except (ValueError, OverflowError):
            pass  # "2.5", "1e3"
    return np.array([float(w) for w in words], np.float64).reshape(x.shape), _D.DOUBLE


class _Conversion(Op):
    """Y = X in another element type."""

    raw_bits = True
    inplace = ((0, 0),)

    def target(self, c: Call) -> DType:
        """The element type of the output."""
        raise NotImplementedError

    def infer(self, c: Call) -> list[Spec]:
        to = self.target(c)
        if to in _COMPLEX or c.ins[0].dtype in _COMPLEX:
            raise c.error("complex numbers cannot be cast")
        if c["round_mode"] not in ("up", "down", "nearest"):
            raise c.error(f"round_mode must be 'up', 'down' or 'nearest', not {c['round_mode']!r}")
        return [c.like(0, to)]

    def reference(self, c: Call, x: np.ndarray, *_: Any) -> np.ndarray:
        try:
            return convert(x, c.ins[0].dtype, self.target(c), bool(c["saturate"]), c["round_mode"])
        except ValueError as error:
            raise ExecutionError(f"{c.node.label()}: {error}") from None

    def view(self, c: Call) -> dict[int, tuple[int, int]] | None:
        source, to = c.ins[0].dtype, c.outs[0].dtype
        source = _HELD.get(source, source)
        same = source == to or (
            source in INTS and to in INTS and BITS[source] == BITS[to]  # two's complement keeps the bits
        )
        return {0: (0, 0)} if same or (source == _D.BOOL and to in (_D.UINT8, _D.INT8)) else None

    def bind(self, c: Call) -> Kernel | None:
        source, to = c.ins[0].dtype, c.outs[0].dtype
        source = _HELD.get(source, source)
        if source not in _NATIVE or to not in _NATIVE:
            return None
        return Kernel("elementwise.cast", ints=(source, to), inputs=(0,))

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        return [g.cast(dy, c.ins[0].dtype), *[None] * (len(c.ins) - 1)]


_RULES = {"saturate": Attr("int", 1), "round_mode": Attr("str", "up")}


@op("Cast", since=28)
class Cast(_Conversion):
    """output = input in the element type `to`. See `convert` for what ONNX leaves open."""

    inputs, outputs = ("input",), ("output",)
    attrs = {"to": Attr("int", REQUIRED), **_RULES}

    def target(self, c: Call) -> DType:
        return element_type(c, c["to"])


@op("CastLike", since=25)
class CastLike(_Conversion):
    """output = input in the element type of target_type."""

    inputs, outputs = ("input", "target_type"), ("output",)
    attrs = _RULES

    def target(self, c: Call) -> DType:
        return c.ins[1].dtype


@op("BitCast", since=26)
class BitCast(Op):
    """output = the bits of input, read as the element type `to` of the same width."""

    inputs, outputs = ("input",), ("output",)
    attrs = {"to": Attr("int", REQUIRED)}
    raw_bits = True

    def infer(self, c: Call) -> list[Spec]:
        source, to = c.ins[0].dtype, element_type(c, c["to"])
        if BITS.get(source) is None or BITS.get(source) != BITS.get(to):
            raise c.error(f"{source.name.lower()} and {to.name.lower()} do not have the same number of bits")
        return [c.like(0, to)]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        source, to = c.ins[0].dtype, element_type(c, c["to"])
        if source not in SUBBYTE:
            return x != 0 if to == _D.BOOL else x.view(STORAGE[to])
        # Held widened: the bits are the low ones, extended by the sign where the type is signed.
        bits = BITS[to]
        low = x.astype(np.uint8) & np.uint8((1 << bits) - 1)
        if to not in (_D.INT4, _D.INT2):
            return low
        return (low.astype(np.int16) - ((low.astype(np.int16) >> (bits - 1)) << bits)).astype(np.int8)

    def view(self, c: Call) -> dict[int, tuple[int, int]] | None:
        source, to = c.ins[0].dtype, c.outs[0].dtype
        return {0: (0, 0)} if source == to or (source not in SUBBYTE and to != _D.BOOL) else None
