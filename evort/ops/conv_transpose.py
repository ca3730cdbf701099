"""ConvTranspose; its window is in conv.py, with those of all convolutions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from evort.ops.activation import activation_attrs, activation_ints_reals, activation_params
from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.ops.conv import (
    conv_attrs,
    expect,
    finish,
    same_dtype,
    transposed_shapes,
    transposed_window,
    unconvolve,
    widened,
)
from evort.types import FLOATS, DType, Spec

if TYPE_CHECKING:
    from evort.ops.gradients import Gradients


@op("ConvTranspose", since=22)
class ConvTranspose(Op):
    """The transpose of a convolution: each element of X adds a kernel to Y. X [N, C, D...], W [C, M/group, k...],
    B [M], Z and Y [N, M, D'...]. Z and the activation are extensions of evort."""

    inputs, outputs = ("X", "W", "B?", "Z?"), ("Y",)
    dtypes = dict.fromkeys(("X", "W", "B", "Z"), FLOATS)
    attrs = {
        **conv_attrs(),
        "output_padding": Attr("ints"),
        "output_shape": Attr("ints"),
        **activation_attrs(),
    }
    inplace = ((0, 3),)

    def infer(self, c: Call) -> list[Spec]:
        same_dtype(c, 0, 1, 2, 3)
        _, out = transposed_shapes(c, c.ins[0], c.ins[1])
        expect(c, 2, (out.shape[1],), "B")
        expect(c, 3, out.shape, "Z")
        activation_params(c)
        if c["activation"] == "PRelu":
            raise c.error("activation PRelu is for Conv only")
        return [out]

    def reference(self, c: Call, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None,
                  z: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
        window = transposed_window(c, x.shape[2:], w.shape[2:])
        y = unconvolve(widened(x), widened(w), window, c["group"])
        return finish(c, y, x.dtype, b, z)

    def bind(self, c: Call) -> Kernel | None:
        x = c.ins[0]
        window, out = transposed_shapes(c, x, c.ins[1])
        place = window.ints()
        if x.dtype != DType.FLOAT or not place:
            return None
        from evort._kernels import conv

        number, reals = activation_ints_reals(c)
        ints = (*number, c["group"], *place)
        scratch = conv.transpose_scratch(x.shape[1], out.shape[1], ints, c.threads)
        return Kernel("conv.transpose_f32", ints, reals, scratch)

    def macs(self, c: Call) -> int:
        return c.ins[0].size * math.prod(c.ins[1].shape[1:])

    def gradient(self, g: Gradients, c: Call, dy: str) -> list[str | None]:
        x, w = c.node.inputs[:2]
        window, _ = transposed_shapes(c, c.ins[0], c.ins[1])
        # dY is the larger side now, which a convolution of the same geometry reads.
        after = [
            max(0, (o - 1) * s + (k - 1) * d + 1 - p - i)
            for o, s, k, d, p, i in zip(
                window.out, window.strides, window.kernel, window.dilations, window.pads, window.image, strict=True
            )
        ]
        attrs = {
            "strides": list(window.strides), "dilations": list(window.dilations), "group": c["group"],
            "pads": [*window.pads, *after],
        }  # fmt: skip
        places = [
            (i + p + a - (k - 1) * d - 1) // s + 1
            for i, p, a, k, d, s in zip(
                window.image, window.pads, after, window.kernel, window.dilations, window.strides, strict=True
            )
        ]
        if tuple(places) != window.out:
            raise c.error("an output that is padded by a whole stride has no gradient in evort")
        dx = g.emit("Conv", [dy, w], attrs) if g.wants(0) else None
        dw = None
        if g.wants(1):
            attrs["kernel_shape"] = list(window.kernel)
            dw = g.emit("ConvWeightGrad", [dy, x], attrs, "evort", [True, False])[0]
        axes = [i for i in range(c.outs[0].rank) if i != 1]
        return [dx, dw, g.sum(dy, axes, False) if g.wants(2) else None, dy]
