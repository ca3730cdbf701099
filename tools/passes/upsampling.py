"""Turns a filter over an image with zeros put between its pixels into one that computes each phase from the image.

This is how Laplacian pyramids enlarge: rows and columns of zeros are interleaved by Concat, Reshape and Transpose, the
result is padded by reflection and filtered by 5x5 taps, of which three in four meet zeros:

    z = zeros except z[2i, 2j] = x[i, j];  y = Conv(Pad(z, 2, reflect), w)

Even rows of y meet the taps w[0], w[2], w[4], odd ones w[1] and w[3], and so do columns. So with
x' = x padded by one (reflected before the first pixel, repeated after the last),

    y[2i + a, 2j + b] = sum over u, v of x'[i + u, j + v] * w_ab[u, v],   w_ab 3x3

which is one convolution with four outputs for each channel, and DepthToSpace.
"""

from __future__ import annotations

import numpy as np

from evort.graph import Graph, Node
from evort.ops.base import find
from evort_tools.passes.edit import Context, Edit


def run(graph: Graph, ctx: Context) -> int:
    if find("DepthToSpace") is None:
        return 0
    ed = Edit(graph, ctx)
    return sum(_rewrite(ed, node) for node in list(graph.nodes) if node.op == "Conv" and not node.domain)


def _rewrite(ed: Edit, conv: Node) -> bool:
    w = ed.real(conv.inputs[1])
    group = conv.attrs.get("group", 1)
    plain = {"group": group, "kernel_shape": [5, 5], "pads": [0] * 4, "strides": [1, 1], "dilations": [1, 1]}
    if w is None or w.shape != (group, 1, 5, 5) or len(conv.inputs) > 3:
        return False
    if any(key not in plain or value != plain[key] for key, value in conv.attrs.items()):
        return False
    pad = ed.producer(conv.inputs[0], "Pad")
    if pad is None or not ed.single(conv.inputs[0]) or pad.attrs.get("mode") != "reflect" or len(pad.inputs) > 2:
        return False
    amounts = ed.value(pad.inputs[1])
    if amounts is None or amounts.tolist() != [0, 0, 2, 2, 0, 0, 2, 2]:
        return False
    columns = _stuffed_rows(ed, pad.inputs[0])
    x = _stuffed_rows(ed, columns) if columns is not None else None
    if x is None:
        return False
    bias = ed.real(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] else None
    if len(conv.inputs) > 2 and conv.inputs[2] and bias is None:
        return False
    before = ed.constant(np.array([0, 0, 1, 1, 0, 0, 0, 0], np.int64), "pads")
    after = ed.constant(np.array([0, 0, 0, 0, 0, 0, 1, 1], np.int64), "pads")
    reflected = ed.insert(conv, "Pad", [x, before], {"mode": "reflect"})
    padded = ed.insert(conv, "Pad", [reflected, after], {"mode": "edge"})
    dtype = ed.shapes.dtype(conv.outputs[0])
    inputs = [padded, ed.constant(_phases(w), f"{conv.outputs[0]}/weights", dtype)]
    if bias is not None:
        inputs.append(ed.constant(np.repeat(bias, 4), f"{conv.outputs[0]}/bias", dtype))
    phases = ed.insert(conv, "Conv", inputs, {"group": group, "kernel_shape": [3, 3]})
    ed.change(conv, "DepthToSpace", [phases], {"blocksize": 2, "mode": "CRD"})
    return True


def _phases(w: np.ndarray) -> np.ndarray:
    """[C, 1, 5, 5] as [4 C, 1, 3, 3], the phases (0, 0), (0, 1), (1, 0), (1, 1) of each channel in turn."""
    out = np.zeros((w.shape[0], 2, 2, 3, 3), w.dtype)
    for a in range(2):
        for b in range(2):
            # Tap t of phase 0 meets x'[t / 2]; of phase 1, x'[(t + 1) / 2].
            out[:, a, b, a:, b:] = w[:, 0, a::2, b::2]
    return out.reshape(-1, 1, 3, 3)


def _stuffed_rows(ed: Edit, name: str) -> str | None:
    """The x of Transpose(Reshape(Concat(x, zeros; axis 3), [N, C, 2 H, W]), [0, 1, 3, 2])."""
    transpose = ed.producer(name, "Transpose")
    if transpose is None or not ed.read_once(name) or transpose.attrs.get("perm") != [0, 1, 3, 2]:
        return None
    reshape = ed.producer(transpose.inputs[0], "Reshape")
    if reshape is None or not ed.read_once(transpose.inputs[0]):
        return None
    concat = ed.producer(reshape.inputs[0], "Concat")
    if concat is None or not ed.read_once(reshape.inputs[0]) or concat.attrs.get("axis") not in (3, -1):
        return None
    x, *others = concat.inputs
    if len(others) != 1 or not _zeros(ed, others[0]) or not ed.shapes.same_shape(x, others[0]):
        return None
    shapes = ed.shapes.sampled_shapes(x, reshape.outputs[0])
    if shapes is None or len(shapes[0][0]) != 4:
        return None
    fits = all(b == (a[0], a[1], 2 * a[2], a[3]) for a, b in zip(*shapes, strict=True))
    return x if fits else None


def _zeros(ed: Edit, name: str) -> bool:
    value = ed.value(name)
    if value is not None:
        return not value.any()
    node = ed.producer(name, "ConstantOfShape", "Expand")
    if node is None:
        return False
    fill = node.attrs.get("value") if node.op == "ConstantOfShape" else ed.value(node.inputs[0])
    return (fill is None and node.op == "ConstantOfShape") or (fill is not None and not fill.any())
