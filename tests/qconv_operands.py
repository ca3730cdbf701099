"""Operands of quantized convolutions for property tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from support import run_node

TYPES = {"u8": np.uint8, "s8": np.int8, "s16": np.int16}


def every(dtype: Any, shape: Any, rng: np.random.Generator) -> np.ndarray:
    """Numbers over the whole of a type, its ends more often than others."""
    limits = np.iinfo(dtype)
    x = rng.integers(limits.min, limits.max + 1, shape)
    ends = rng.random(np.shape(x))
    return np.where(ends < 0.1, limits.min, np.where(ends > 0.9, limits.max, x)).astype(dtype)


def operands(
    x: tuple[int, ...],
    w: tuple[int, ...],
    maps: int,
    seed: int,
    types: str = "u8 s8 u8",
    float_x: bool = False,
    many: bool = True,
    zeros: str = "any",
) -> list[np.ndarray | None]:
    """Inputs of QLinearConv from x to B. types: of x, w and y ("f" for a float y). zeros: of x, w and y, "any", "none"
    (of w), "low" or "high" (ends of the type)."""
    rng = np.random.default_rng(seed)
    x_type, w_type, y_type = (TYPES.get(name) for name in types.split())

    def zero(dtype: Any, shape: Any = ()) -> np.ndarray:
        limits = np.iinfo(dtype)
        if zeros in ("low", "high"):
            return np.full(shape, limits.min if zeros == "low" else limits.max, dtype)
        return rng.integers(limits.min // 2, limits.max // 2, shape).astype(dtype)

    image = every(x_type, x, rng)
    x_scale = np.float32(rng.uniform(0.001, 0.1))
    x_zero = zero(x_type)
    channels = (maps,) if many else ()
    w_scale = rng.uniform(0.001, 0.02, channels).astype(np.float32)
    w_zero = np.zeros(channels, w_type) if zeros == "none" else zero(w_type, channels)
    terms = max(1, int(np.prod(w)) // max(1, w[0]))
    size = np.sqrt(terms) * 150 * (150 if x_type is not np.int16 else 3e4)
    y_scale = np.float32(size * float(x_scale) * 0.01 / (100 if y_type is not np.int16 else 25000))
    bias = rng.integers(-(1 << 14), 1 << 14, maps).astype(np.int32)
    values = [image, x_scale, x_zero, every(w_type, w, rng), w_scale, w_zero]
    if float_x:
        span = np.iinfo(x_type)
        values[0] = (x_scale * rng.uniform(span.min - span.max, span.max - span.min, x)).astype(np.float32)
    return [*values, *((None, None) if y_type is None else (y_scale, zero(y_type))), bias]


def residual(inputs: list[Any], attrs: dict[str, Any], kind: str, op: str, domain: str) -> list[Any]:
    if not kind:
        return inputs
    shape = run_node(op, inputs, attrs, device="reference", domain=domain)[0].shape
    rng = np.random.default_rng(1)
    if kind == "f":
        return [*inputs, rng.standard_normal(shape).astype(np.float32)]
    dtype = TYPES[kind]
    return [*inputs, every(dtype, shape, rng), np.float32(0.013), np.array(rng.integers(0, 100), dtype)]
