"""Keeps one of several constants that are the same."""

from __future__ import annotations

import hashlib

from evort.graph import Graph, Tensor
from evort.types import DType
from evort_tools.passes.edit import Context, Edit


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    seen: dict[object, str] = {}
    changes = 0
    for name, tensor in list(graph.tensors.items()):
        if tensor.data is None or tensor.quant is not None or tensor.sparsity is not None or name in ed.outputs:
            continue
        first = seen.setdefault(_key(tensor), name)
        if first != name:
            ed.replace_uses(name, first)
            del graph.tensors[name]
            changes += 1
    return changes


def _key(tensor: Tensor) -> object:
    data = tensor.data
    if tensor.dtype == DType.STRING:
        return tensor.dtype, data.shape, tuple(data.reshape(-1).tolist())
    content = data.tobytes() if data.nbytes <= 256 else hashlib.sha256(data).digest()
    return tensor.dtype, data.shape, content
