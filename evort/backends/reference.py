"""Interprets a graph node by node with the operators' NumPy references: slow, simple, and the oracle of the tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from evort.graph import Graph
from evort.ops.base import Call, Op
from evort.ops.run import run_dynamic
from evort.plan import Bound
from evort.sparse import expand
from evort.types import DType, spec_of


def interpret(graph: Graph, feeds: dict[str, Any], outer: dict[str, tuple[Any, DType | None]] | None = None):
    """The graph's outputs, as a list. feeds: values of its inputs by name; outer: those of the graphs around it."""
    values: dict[str, tuple[Any, DType | None]] = dict(outer or {})
    for name, tensor in graph.tensors.items():
        if tensor.data is not None:
            sparsity = tensor.sparsity
            data = tensor.data if sparsity is None else expand(tensor.data, sparsity, tensor.shape)
            values[name] = (data, tensor.dtype)
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
        # What has a meaning of its own is not taken apart.
        expanded = bound.definition.expand(c) if type(bound.definition).reference is Op.reference else None
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
