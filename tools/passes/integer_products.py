"""Integer products that take what follows or what is proven of their weights: residual sums, and sums of 16 bits."""

from __future__ import annotations

import numpy as np

from evort.graph import Node
from evort.types import DType
from evort_tools.passes.edit import Edit

PRODUCTS = (("", "QLinearConv"), ("", "QLinearMatMul"), ("evort", "QLinearConvTranspose"))
W, Y, RESIDUAL = 3, 6, 9  # where the weights, the output's and the residual's triples begin
# Pair products of uint8 by int8 that are added in 16 bits before they are widened, from so many groups of four.
_PRESUMS = (8, 4, 2, 1)
LIMIT = 128  # 255 * 128 < 2^15


def run(ed: Edit) -> int:
    changes = 0
    for node in list(ed.graph.nodes):
        if (node.domain, node.op) == ("com.microsoft", "QLinearAdd"):
            changes += _residual(ed, node)
    for node in ed.graph.nodes:
        if node.op in ("QLinearConv", "QLinearMatMul") and not node.domain and "presum" not in node.attrs:
            proven = _proven(ed, node)
            if proven:
                node.attrs["presum"] = proven
                changes += 1
    return changes


def _residual(ed: Edit, add: Node) -> bool:
    """QLinearAdd(product, z) is the product with the residual z, and one rounding less."""
    found = []
    for mine, other in ((0, 3), (3, 0)):
        source = ed.writer.get(add.inputs[mine])
        if source is None or (source.domain, source.op) not in PRODUCTS or not ed.single(add.inputs[mine]):
            continue
        if source.attrs.get("activation") or len(source.inputs) > RESIDUAL:
            continue
        z = add.inputs[other : other + 3]
        if ed.value(z[0]) is not None or not ed.shapes.same_shape(z[0], add.outputs[0]):
            continue
        if ed.shapes.same_shape(add.inputs[mine], add.outputs[0]):
            found.append((ed.graph.nodes.index(source), source, z))
    if not found:
        return False
    at, source, z = max(found, key=lambda entry: entry[0])
    # The product moves to the sum: its inputs must not have to live longer for the sake of what comes in between.
    before = ed.writer.get(z[0])
    if before is not None and ed.graph.nodes.index(before) > at:
        return False
    inputs = [*source.inputs, *[""] * (RESIDUAL - len(source.inputs)), *z]
    inputs[Y : Y + 2] = [*add.inputs[Y : Y + 2], "", ""][:2]
    out = ed.insert(add, source.op, inputs, {**source.attrs, **add.attrs}, f"{add.outputs[0]}/sum", source.domain)
    ed.writer[out].name = source.name
    ed.bypass(add, out)
    ed.prune(source.outputs[0])
    return True


def _proven(ed: Edit, node: Node) -> int:
    """How many pair products add up within 16 bits in every output channel, whatever the uint8 input; 0 if not one."""
    w = ed.value(node.inputs[W])
    if w is None or w.dtype != np.int8 or w.ndim < 2 or ed.shapes.dtype(node.inputs[0]) == DType.INT16:
        return 0
    if node.op == "QLinearConv":
        rows, channels = summed(w), w.shape[1] * (node.attrs.get("group", 1) == 1)
        return next((s for s in _PRESUMS if channels % (4 * s) == 0 < channels and fits(rows, s)), 0)
    rows = w if node.attrs.get("transB", 0) else w.T
    return next((s for s in _PRESUMS if w.ndim == 2 and fits(rows, s)), 0)


def summed(w: np.ndarray) -> np.ndarray:
    """The weights [M, C, k...] of a convolution in the order in which they are summed, [M, k... * C]."""
    return np.moveaxis(w, 1, -1).reshape(len(w), -1)


def fits(rows: np.ndarray, presum: int) -> bool:
    """Whether, in each row [M, K], every sum of `presum` successive pair products stays within 16 bits.

    Element k meets lane k % 4 // 2 of group k // 4; groups are summed in runs of `presum`.
    """
    m, k = rows.shape
    run = 4 * presum
    padded = np.zeros((m, -(-k // run) * run), np.int16)
    padded[:, :k] = rows
    for part in (np.maximum(padded, 0), np.minimum(padded, 0)):
        for lane in (0, 2):
            total = np.zeros((m, part.shape[1] // run), np.int16)  # at most 2 * presum * 128
            for at in range(presum):
                total += part[:, 4 * at + lane :: run]
                total += part[:, 4 * at + lane + 1 :: run]
            if max(-total.min(initial=0), total.max(initial=0)) > LIMIT:
                return False
    return True
