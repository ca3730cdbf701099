"""Element types that NumPy lacks: bfloat16, float8, float4 and the 4- and 2-bit integers, to and from float32.

Arrays of these types are held as `evort.types.STORAGE` says: floats as their bits, one element an item, integers
widened. Rounding and saturation are those of ONNX's Cast (opset 25).

A float of 8 bits or fewer is a sign, `exponent` bits and `mantissa` bits; with e and m their values,

    (-1)^sign * 2^(e - bias) * (1 + m / 2^mantissa)      for e > 0,
    (-1)^sign * 2^(1 - bias) * m / 2^mantissa            for e = 0,

so codes without the sign grow with the value, and rounding is done on the code: value / (spacing of the codes there).
"""

from __future__ import annotations

import numpy as np

from evort.types import DType


class _Format:
    """exponent, mantissa: bits of the fields. largest: the code of the largest finite number. infinity: its code, or
    None. nan: its code, or None. nan_sign: whether the sign bit stays beside it. negative_zero: whether there is
    one."""

    __slots__ = ("bias", "exponent", "infinity", "largest", "mantissa", "nan", "nan_sign", "negative_zero", "sign")

    def __init__(self, exponent, mantissa, bias, largest, infinity, nan, nan_sign=True, negative_zero=True):
        self.exponent, self.mantissa, self.bias = exponent, mantissa, bias
        self.largest, self.infinity, self.nan = largest, infinity, nan
        self.nan_sign, self.negative_zero = nan_sign, negative_zero
        self.sign = 1 << (exponent + mantissa)


_FORMATS = {
    DType.FLOAT8E4M3FN: _Format(4, 3, 7, 0x7E, None, 0x7F),
    DType.FLOAT8E4M3FNUZ: _Format(4, 3, 8, 0x7F, None, 0x80, nan_sign=False, negative_zero=False),
    DType.FLOAT8E5M2: _Format(5, 2, 15, 0x7B, 0x7C, 0x7E),
    DType.FLOAT8E5M2FNUZ: _Format(5, 2, 16, 0x7F, None, 0x80, nan_sign=False, negative_zero=False),
    # No NaN: it becomes -0.
    DType.FLOAT4E2M1: _Format(2, 1, 1, 0x7, None, 0x8, nan_sign=False),
}

# Bits, and whether signed.
_INTS = {DType.INT4: (4, True), DType.UINT4: (4, False), DType.INT2: (2, True), DType.UINT2: (2, False)}

_tables: dict[DType, np.ndarray] = {}


def widen(bits: np.ndarray, dtype: DType) -> np.ndarray:
    """The numbers that an array of bfloat16, float8 or float4 bits, or of 4- or 2-bit integers, stands for: float32.

    Every one of them is a float32. Raises KeyError for an element type that NumPy has.
    """
    if dtype == DType.BFLOAT16:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    if dtype in _INTS:
        return bits.astype(np.float32)
    table = _tables.get(dtype)
    if table is None:
        table = _tables[dtype] = _decode_all(dtype)
    return table[bits]


def narrow(values: np.ndarray, dtype: DType, saturate: bool = True, round_mode: str = "up") -> np.ndarray:
    """Numbers rounded to the nearest (ties to even) of an element type that NumPy lacks, in its storage.

    saturate: whether what is too large for a float8 becomes its largest number, and not infinity or NaN.
    round_mode: for FLOAT8E8M0 (powers of two) only: "up", "down" or "nearest" (ties up).
    4- and 2-bit integers: truncated toward zero, then all but the low bits are dropped.
    Raises KeyError for an element type that NumPy has.
    """
    if dtype in _INTS:
        return _wrap(values, *_INTS[dtype])
    if dtype == DType.BFLOAT16:
        return _to_bfloat16(values)
    if dtype == DType.FLOAT8E8M0:
        return _to_e8m0(values, saturate, round_mode)
    return _encode(values, _FORMATS[dtype], saturate)


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        wide = np.ascontiguousarray(values, np.float32)
    bits = wide.view(np.uint32).reshape(wide.shape)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    nan = ((bits >> 16) & 0x8000) | 0x7FC0
    return np.where(np.isnan(wide), nan, rounded).astype(np.uint16).reshape(np.shape(values))


def _decode_all(dtype: DType) -> np.ndarray:
    codes = np.arange(256)
    if dtype == DType.FLOAT8E8M0:
        table = np.ldexp(1.0, codes - 127)
        table[255] = np.nan
        return table.astype(np.float32)
    f = _FORMATS[dtype]
    magnitude = codes & (f.sign - 1)
    e, m = magnitude >> f.mantissa, magnitude & ((1 << f.mantissa) - 1)
    hidden = np.where(e > 0, 1 << f.mantissa, 0)
    table = np.ldexp((hidden + m).astype(np.float64), np.maximum(e, 1) - f.bias - f.mantissa)
    if f.infinity is not None:
        table[magnitude == f.infinity] = np.inf
        table[magnitude > f.infinity] = np.nan
    table = np.where(codes & f.sign, -table, table).astype(np.float32)
    if f.nan is not None and dtype != DType.FLOAT4E2M1:
        table[f.nan] = np.nan
        if f.nan_sign:
            table[f.nan | f.sign] = np.nan
    return table


def _encode(values: np.ndarray, f: _Format, saturate: bool) -> np.ndarray:
    x = np.asarray(values, np.float64)
    magnitude = np.abs(x)
    nan, large = np.isnan(x), np.isinf(x)
    magnitude = np.where(nan | large, 0.0, magnitude)
    least = 1 - f.bias  # exponent of the smallest normal number, and of all below it
    exponent = np.where(magnitude > 0, np.maximum(np.frexp(magnitude)[1] - 1, least), least)
    # Codes from the one of 2^exponent on are `spacing` apart: no code is larger than 2^(mantissa + 1) spacings.
    steps = np.rint(np.ldexp(magnitude, f.mantissa - exponent)).astype(np.int64)
    code = ((exponent - least).astype(np.int64) << f.mantissa) + steps
    large |= code > f.largest
    negative = np.signbit(x)
    beyond = f.largest if saturate else f.nan if f.infinity is None else f.infinity
    if f is _FORMATS[DType.FLOAT4E2M1]:
        beyond = f.largest
    signed = np.where(negative & ((code != 0) | f.negative_zero), code | f.sign, code)
    keep_sign = f.nan_sign or beyond == f.largest
    signed = np.where(large, np.where(negative & keep_sign, beyond | f.sign, beyond), signed)
    signed = np.where(nan, np.where(negative & f.nan_sign, f.nan | f.sign, f.nan), signed)
    return signed.astype(np.uint8)


def _to_e8m0(values: np.ndarray, saturate: bool, round_mode: str) -> np.ndarray:
    x = np.asarray(values, np.float64)
    finite = np.isfinite(x) & (x > 0)
    fraction, exponent = np.frexp(np.where(finite, x, 1.0))  # fraction in [0.5, 1): x = 2 fraction * 2^(exponent - 1)
    above = {"up": fraction > 0.5, "down": np.zeros_like(finite), "nearest": fraction >= 0.75}[round_mode]
    code = exponent - 1 + above + 127
    if saturate:
        code = np.clip(code, 0, 254)
        code = np.where(x == 0, 0, np.where(np.isposinf(x), 254, np.where(np.isnan(x) | (x < 0), 255, code)))
    else:
        code = np.where(finite & (code >= 0) & (code <= 254), code, 255)
    return code.astype(np.uint8)


def truncate(values: np.ndarray, bits: int) -> np.ndarray:
    """Floats truncated toward zero to int32 (`bits` = 32) or int64; all that is outside, and NaN, becomes the
    smallest integer."""
    if values.dtype == np.float16:
        values = values.astype(np.float32)  # which the limit fits
    limit = 2.0 ** (bits - 1)
    good = (values >= -limit) & (values < limit)
    least = -(1 << (bits - 1))
    return np.where(good, np.where(good, values, 0).astype(np.int64), least).astype(
        np.int32 if bits == 32 else np.int64
    )


def _wrap(values: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    whole = truncate(values, 32) if values.dtype.kind == "f" else values
    low = whole.astype(np.int64) & ((1 << bits) - 1)
    if not signed:
        return low.astype(np.uint8)
    return (low - ((low >> (bits - 1)) << bits)).astype(np.int8)
