"""Interprets a graph node by node with the operators' NumPy references: slow, simple, and the oracle of the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from evort.graph import Graph
from evort.ops.base import Call, DataDependent, NeedsValue, Op
from evort.ops.run import run_reference
from evort.plan import Bound
from evort.types import DType, Spec, dtype_of


def spec_of(value: Any, dtype: DType | None = None) -> Spec:
    """The specification of a run-time value, the value included; lists are sequences, None an empty optional."""
    if value is None:
        return Spec(DType.OPTIONAL, ())
    if isinstance(value, list):
        return Spec(DType.SEQUENCE, (len(value),))
    return Spec(dtype_of(value) if dtype is None else dtype, value.shape, value)


def interpret(graph: Graph, feeds: dict[str, Any], outer: dict[str, tuple[Any, DType | None]] | None = None):
    """The graph's outputs, as a list. feeds: values of its inputs by name; outer: those of the graphs around it."""
    values: dict[str, tuple[Any, DType | None]] = dict(outer or {})
    for name, tensor in graph.tensors.items():
        if tensor.data is not None:
            values[name] = (tensor.data, tensor.dtype)
    for name in graph.inputs:
        tensor = graph.tensors.get(name)
        dtype = tensor.dtype if tensor is not None and isinstance(feeds[name], np.ndarray) else None
        values[name] = (feeds[name], dtype)
    for node in graph.nodes:
        bound = Bound(node)
        inputs = [values[n] if n else None for n in node.inputs]
        ins = [None if v is None else spec_of(*v) for v in inputs]
        c = Call(node, bound.attrs, ins)
        c.run_graph = lambda sub, sub_feeds: interpret(sub, sub_feeds, values)
        expanded = bound.definition.expand(c)
        if expanded is not None:
            named = dict(zip(expanded.inputs, (v[0] for v in inputs), strict=False))
            results = interpret(expanded, named, values)
            dtypes: list[DType | None] = [None] * len(results)
        else:
            results, dtypes = run_dynamic(bound.definition, c, [None if v is None else v[0] for v in inputs])
        for name, result, dtype in zip(node.outputs, results, dtypes, strict=False):
            if name:
                plain = isinstance(result, np.ndarray | np.generic)
                values[name] = (np.asarray(result) if plain else result, dtype if plain else None)
    return [values[name][0] for name in graph.outputs]


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
