"""An integer convolution together with the largest of windows of its result, which the planner makes of the two.

Scales are positive, so that the largest result is that of the largest sum: only that one is rounded and stored.
"""

from __future__ import annotations

from math import prod

import numpy as np

from evort.graph import Node
from evort.ops.base import REQUIRED, Attr, Call, Kernel, op
from evort.ops.conv import Window, conv_shapes
from evort.ops.pool import windows
from evort.ops.qconv import QLinearConv, bind_last, last_ints
from evort.ops.qoperands import BYTES
from evort.types import Spec

_RISING = ("", "Relu", "Clip")  # activations under which the largest stays the largest


@op("QLinearConvMaxPool", domain="evort")
class QLinearConvMaxPool(QLinearConv):
    """y = the largest of every `pool` rows and columns of QLinearConv's result; rows and columns that are left are in
    none. Inputs and attributes are QLinearConv's, but for Z. The planner makes it of QLinearConv and MaxPool."""

    inputs = QLinearConv.inputs[:9]
    attrs = {**QLinearConv.attrs, "pool": Attr("ints", REQUIRED)}
    inplace = ()

    def infer(self, c: Call) -> list[Spec]:
        (y,) = super().infer(c)
        return [Spec(y.dtype, (*y.shape[:2], *(n // k for n, k in zip(y.shape[2:], c["pool"], strict=True))))]

    def reference(self, c: Call, *ins: np.ndarray | None) -> np.ndarray:
        y, (rows, columns) = super().reference(c, *ins), c["pool"]
        n, m, height, width = (*y.shape[:2], y.shape[2] // rows, y.shape[3] // columns)
        return y[:, :, : height * rows, : width * columns].reshape(n, m, height, rows, width, columns).max((3, 5))

    def bind(self, c: Call) -> Kernel | None:
        return bind_last(c, conv_shapes(c, c.ins[0], c.ins[3])[0], False)

    def macs(self, c: Call) -> int:
        return super().macs(c) * prod(c["pool"])


def _joins(conv: Call, pool: Call, window: Window) -> bool:
    from evort._kernels import qnhwc

    axes = windows(pool)
    if (
        len(axes) != 2
        or window.ints()[3:6] != (1, *window.out)
        or any(w.kernel != w.stride or w.dilation != 1 or w.pad or w.out * w.kernel > w.size for w in axes)
        or pool.wants(1)
        or not qnhwc.pools(prod(w.kernel for w in axes))
        or conv.kernel
        or conv.has(9)  # Z
        or conv["activation"] not in _RISING
        or not {conv.ins[2].dtype, conv.outs[0].dtype} <= BYTES  # x's zero point, as x may be float32
    ):
        return False
    found = last_ints(conv, window)
    return found is not None and not found[1] and not qnhwc.winograd(found[0])


def join(conv: Call, pool: Call) -> tuple[int, Node] | None:
    """For MaxPool's `Op.join`: the node that does both, or None where no driver does."""
    window, _ = conv_shapes(conv, conv.ins[0], conv.ins[3])
    if not _joins(conv, pool, window):
        return None
    attrs = {**conv.node.attrs, "pool": list(pool["kernel_shape"])}
    return 2, Node("QLinearConvMaxPool", conv.node.inputs, pool.node.outputs, attrs, "evort", conv.node.name)
