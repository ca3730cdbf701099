"""The gradient of a convolution's weights and bias. (That of its image is a ConvTranspose.) Domain `evort`."""

from __future__ import annotations

import math

import numpy as np

from evort.ops.base import REQUIRED, Attr, Call, Kernel, Op, op
from evort.ops.conv import Window, conv_window, same_dtype
from evort.types import FLOATS, DType, Spec


def weight_gradient(x: np.ndarray, dy: np.ndarray, window: Window, group: int) -> np.ndarray:
    """dW[m, c, tap] = sum over n and o of dY[n, m, o] * X[n, c, image(o, tap)], in the dtype of both."""
    n, channels, m = x.shape[0], x.shape[1], dy.shape[1]
    x = x.reshape(n, group, channels // group, *window.image)
    dy = dy.reshape(n, group, m // group, *window.out)
    dw = np.zeros((group, m // group, channels // group, *window.kernel), x.dtype)
    for tap, positions, elements in window.taps() if x.size and dy.size else ():
        part, grad = x[(..., *elements)], dy[(..., *positions)]
        count = math.prod(part.shape[3:])
        part, grad = part.reshape(*part.shape[:3], count), grad.reshape(*grad.shape[:3], count)
        dw[(..., *tap)] = np.einsum("ngmo,ngco->gmc", grad, part, optimize=True)
    return dw.reshape(m, channels // group, *window.kernel)


@op("ConvWeightGrad", domain="evort")
class ConvWeightGrad(Op):
    """dW [M, C/group, k...] and dB [M] of a Conv of X [N, C, D...] with the attributes given, from dY [N, M, D'...].

    dB is the sum of dY over all but the channels.
    """

    inputs, outputs = ("X", "dY"), ("dW", "dB?")
    attrs = {
        "dilations": Attr("ints"),
        "group": Attr("int", 1),
        "kernel_shape": Attr("ints", REQUIRED),
        "pads": Attr("ints"),
        "strides": Attr("ints"),
    }
    dtypes = {"X": FLOATS, "dY": FLOATS}

    def window(self, c: Call) -> Window:
        return conv_window(c, c.ins[0].shape[2:], tuple(c["kernel_shape"]))

    def infer(self, c: Call) -> list[Spec | None]:
        same_dtype(c, 0, 1)
        x, dy = c.ins
        if x.rank < 3 or dy.rank != x.rank or len(c["kernel_shape"]) != x.rank - 2 or x.shape[0] != dy.shape[0]:
            raise c.error("X must be [N, C, D1, ...] and dY [N, M, D1', ...] with a kernel of as many axes")
        window, group = self.window(c), c["group"]
        if dy.shape[2:] != window.out:
            raise c.error(f"dY must have the spatial shape {list(window.out)}")
        if group < 1 or x.shape[1] % group or dy.shape[1] % group:
            raise c.error(f"{x.shape[1]} channels of X and {dy.shape[1]} of dY do not fit {group} groups")
        dw = Spec(x.dtype, (dy.shape[1], x.shape[1] // group, *window.kernel))
        return [dw, Spec(x.dtype, (dy.shape[1],))] if c.wants(1) else [dw]

    def reference(self, c: Call, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        window = self.window(c)
        db = dy.sum(axis=(0, *range(2, dy.ndim)), dtype=np.float64).astype(dy.dtype)
        return weight_gradient(x, dy, window, c["group"]), db

    def bind(self, c: Call) -> Kernel | None:
        x, dy = c.ins
        window = self.window(c)
        place = window.ints()
        if x.dtype != DType.FLOAT or not place or 0 in (x.size, dy.size):
            return None
        from evort._kernels import conv_grad

        ints = (c["group"], *place)
        scratch = conv_grad.weight_grad_scratch(x.shape[0], x.shape[1], dy.shape[1], ints, c.threads)
        return Kernel("conv_grad.weight_grad_f32", ints, (), scratch)

    def macs(self, c: Call) -> int:
        return c.ins[1].size * math.prod(c.outs[0].shape[1:])
