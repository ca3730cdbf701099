"""Runs an operator's NumPy reference on arrays in their storage dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from evort.ops.base import Call, DataDependent, NeedsValue, Op
from evort.types import FLOAT8, STORAGE, DType, dtype_of

# Held as bits that stand for a float32.
WIDENED = FLOAT8 | {DType.BFLOAT16, DType.FLOAT4E2M1}
# No tensors of numbers: nodes on these run between the stages of a plan.
OBJECTS = frozenset({DType.STRING, DType.SEQUENCE, DType.OPTIONAL})


def run_reference(definition: Op, c: Call, inputs: list[Any], run: Callable[..., Any] | None = None) -> list[Any]:
    """The outputs of `definition.reference` (or of `run`, which does the same), each in the storage dtype that `c.outs`
    gives (where it is set).

    bfloat16, float8 and float4 operands are widened to float32 for operators that do not handle their bits.
    """
    if not definition.raw_bits and any(s is not None and s.dtype in WIDENED for s in c.ins):
        from evort.ops.lowp import widen

        inputs = [
            widen(x, s.dtype) if s is not None and s.dtype in WIDENED else x for x, s in zip(inputs, c.ins, strict=True)
        ]
    results = (run or definition.reference)(c, *inputs)
    if not isinstance(results, tuple):
        results = (results,)
    if not c.outs:
        return list(results)
    return [
        r if spec is None or r is None else _stored(definition, spec.dtype, r)
        for r, spec in zip(results, c.outs, strict=False)
    ]


def _stored(definition: Op, dtype: DType, result: Any) -> Any:
    if dtype in (DType.SEQUENCE, DType.OPTIONAL):
        return result
    result = np.asarray(result)
    storage = STORAGE[dtype]
    if dtype in WIDENED and not definition.raw_bits and result.dtype != storage:
        from evort.ops.lowp import narrow

        return narrow(result.astype(np.float32, copy=False), dtype)
    return result.astype(storage, copy=False)


def run_dynamic(
    definition: Op, c: Call, inputs: list[Any], run: Callable[..., Any] | None = None
) -> tuple[list[Any], list[DType | None]]:
    """Runs a reference (or `run` in its place) on values of any kind; returns its outputs and their element types, None
    where the NumPy dtype tells or there is none."""
    try:
        c.outs = definition.infer(c)
    except (DataDependent, NeedsValue):
        c.outs = ()
    results = run_reference(definition, c, inputs, run)
    if c.outs:
        return results, [None if s is None else s.dtype for s in c.outs]
    # Held as bits (bfloat16 and the like): what such an operator passes on is of its first operand's type. Positions
    # and counts beside it are what they are.
    first = next((s for s in c.ins if s is not None), None)
    if first is None or first.value is None or dtype_of(first.value) == first.dtype:
        return results, [None] * len(results)
    bits = first.value.dtype
    return results, [first.dtype if getattr(r, "dtype", None) == bits else None for r in results]
