"""Recurrent layers with 8-bit weights: DynamicQuantizeLSTM (com.microsoft) and evort's DynamicQuantizeGRU.

As LSTM and GRU (recurrent.py), but W and R are integers, the other way round, with scales and zero points; the inputs
of all steps together, and the state of each step, become uint8 by their range as in DynamicQuantizeLinear.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from evort.graph import Node
from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.ops.dynamic import dynamic_range
from evort.ops.recurrent import GRU, LSTM
from evort.ops.requantize import quantized
from evort.types import DType, Spec

_BYTES = frozenset({DType.INT8, DType.UINT8})
_FLOAT = frozenset({DType.FLOAT})
_DTYPES = {
    **dict.fromkeys(("W", "R", "W_zero_point", "R_zero_point"), _BYTES),
    **dict.fromkeys(("X", "B", "initial_h", "initial_c", "P", "W_scale", "R_scale"), _FLOAT),
    "sequence_lens": frozenset({DType.INT32}),
}


def _rounded(x: np.ndarray) -> np.ndarray:
    """x as the product with integers sees it: quantized by its range, and back."""
    scale, zero = dynamic_range(x, 8)
    return ((quantized(x, scale, zero).astype(np.float32) - np.float32(zero)) * scale).astype(np.float32)


class _LSTM(LSTM):
    def seen(self, h: np.ndarray) -> np.ndarray:
        return _rounded(h)


class _GRU(GRU):
    def seen(self, h: np.ndarray) -> np.ndarray:
        return _rounded(h)


class _Dynamic(Op):
    """What the two have in common. plain: the float operator; scales: the index of W_scale, which W_zero_point, R_scale
    and R_zero_point follow."""

    plain: ClassVar[LSTM | GRU]
    gates: ClassVar[int]
    scales: ClassVar[int]

    def _call(self, c: Call) -> Call:
        """The node as the float operator sees it. Raises ShapeError for weights that do not fit."""
        w, r = c.ins[1], c.ins[2]
        if w.rank != 3 or r.rank != 3:
            raise c.error("W and R must have three axes")
        for weights, first in ((w, self.scales), (r, self.scales + 2)):
            ways, columns = weights.shape[0], weights.shape[2]
            for index in (first, first + 1):
                if c.has(index) and c.ins[index].shape not in ((ways,), (ways, columns)):
                    raise c.error(f"input {index} must have shape [{ways}] or [{ways}, {columns}]")
            if c.has(first + 1) and c.ins[first + 1].dtype != weights.dtype:
                raise c.error(f"zero point (input {first + 1}) must have the element type of its weights")
        turned = [Spec(DType.FLOAT, (s.shape[0], s.shape[2], s.shape[1])) for s in (w, r)]
        node = Node(self.plain.name, c.node.inputs[: self.scales], c.node.outputs, c.node.attrs, name=c.node.name)
        attrs = {key: c.attrs.get(key, attr.default) for key, attr in self.plain.attrs.items()}
        call = Call(node, attrs, [c.ins[0], *turned, *c.ins[3 : self.scales]], c.threads)
        call.outs = c.outs
        return call

    def infer(self, c: Call) -> list[Spec | None]:
        return list(self.plain.infer(self._call(c)))

    def reference(self, c: Call, x: np.ndarray, w: np.ndarray, r: np.ndarray, *rest: np.ndarray | None):
        rest = (*rest, *(None for _ in range(self.scales + 4 - 3 - len(rest))))
        floats = []
        for q, at in ((w, self.scales - 3), (r, self.scales - 1)):
            scale, zero = rest[at], rest[at + 1]
            wide = q.astype(np.float32)
            if zero is not None:
                wide = wide - zero.astype(np.float32).reshape(len(q), 1, -1)
            floats.append((wide * scale.reshape(len(q), 1, -1)).swapaxes(1, 2))
        return self.plain.reference(self._call(c), _rounded(x), *floats, *rest[: self.scales - 3])

    def bind(self, c: Call) -> Kernel | None:
        call = self._call(c)
        kernel = self.plain.bind(call)
        if kernel is None:
            return None
        from evort._kernels import recurrent

        sizes = kernel.ints[:4]
        each = [int(c.has(i) and c.ins[i].rank == 2) for i in range(self.scales, self.scales + 4)]
        scratch = recurrent.recurrent_scratch(*sizes, self.gates, c.threads, True)
        return Kernel(kernel.driver, (*kernel.ints, *each), kernel.reals, scratch)

    def macs(self, c: Call) -> int:
        return c.ins[0].shape[0] * c.ins[0].shape[1] * (math.prod(c.ins[1].shape) + math.prod(c.ins[2].shape))


def _named(operator: LSTM | GRU, name: str) -> LSTM | GRU:
    operator.name, operator.domain = name, ""
    return operator


def _attrs(operator: type[LSTM] | type[GRU]) -> dict[str, Attr]:
    return {key: attr for key, attr in operator.attrs.items() if key != "layout"}


@op("DynamicQuantizeLSTM", domain="com.microsoft")
class DynamicQuantizeLSTM(_Dynamic):
    """LSTM with W [D, I, 4H] and R [D, H, 4H] of int8 or uint8, gates in the order i, o, f, c; their scales and zero
    points [D] or [D, 4H]. The rest as in LSTM. (Microsoft's operator.)"""

    inputs = ("X", "W", "R", "B?", "sequence_lens?", "initial_h?", "initial_c?", "P?", "W_scale", "W_zero_point?",
              "R_scale", "R_zero_point?")  # fmt: skip
    outputs = ("Y?", "Y_h?", "Y_c?")
    dtypes = _DTYPES
    attrs = _attrs(LSTM)
    plain = _named(_LSTM(), "LSTM")
    gates = 4
    scales = 8


@op("DynamicQuantizeGRU", domain="evort")
class DynamicQuantizeGRU(_Dynamic):
    """GRU with W [D, I, 3H] and R [D, H, 3H] of int8 or uint8, gates in the order z, r, h; their scales and zero points
    [D] or [D, 3H]. The rest as in GRU."""

    inputs = ("X", "W", "R", "B?", "sequence_lens?", "initial_h?", "W_scale", "W_zero_point?", "R_scale",
              "R_zero_point?")  # fmt: skip
    outputs = ("Y?", "Y_h?")
    dtypes = _DTYPES
    attrs = _attrs(GRU)
    plain = _named(_GRU(), "GRU")
    gates = 3
    scales = 6
