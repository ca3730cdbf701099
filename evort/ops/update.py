"""Optimizer steps: parameters and their moments, updated from gradients. Domain `evort`.

A trainer gives the same memory as input and output, so that an update is in place; the drivers allow that. All take the
learning rate as a tensor, which changes from step to step, and the factor that gradient clipping found.
"""

from __future__ import annotations

import numpy as np

from evort.ops.base import Attr, Call, Kernel, Op, op
from evort.types import FLOATS, DType, Spec


class _Update(Op):
    """A parameter W, its gradient, moments of its shape, then lr (a scalar) and the scale of the gradient."""

    moments = 0

    def infer(self, c: Call) -> list[Spec]:
        w = c.ins[0]
        for i in range(1, 2 + self.moments):
            if c.ins[i].shape != w.shape or c.ins[i].dtype != w.dtype:
                raise c.error(f"input {i} must have the parameter's shape and element type")
        for i in range(2 + self.moments, len(c.ins)):
            if c.has(i) and (c.ins[i].size != 1 or c.ins[i].dtype != w.dtype):
                raise c.error(f"input {i} must be a scalar of the parameter's element type")
        return [w, *c.ins[2 : 2 + self.moments]]


@op("MomentumUpdate", domain="evort")
class MomentumUpdate(_Update):
    """Stochastic gradient descent with momentum, or with Nesterov's:

        g = scale * G + decay * W;  V' = momentum * V + g;  W' = W - lr * (nesterov ? g + momentum * V' : V')

    Sutskever et al., "On the importance of initialization and momentum in deep learning" (2013).
    """

    inputs, outputs = ("W", "G", "V", "lr", "scale?"), ("W_new", "V_new")
    attrs = {"momentum": Attr("float", 0.0), "nesterov": Attr("int", 0), "decay": Attr("float", 0.0)}
    dtypes = dict.fromkeys(("W", "G", "V", "lr", "scale"), FLOATS)
    moments = 1

    def reference(self, c: Call, w, g, v, lr, scale=None) -> tuple[np.ndarray, np.ndarray]:
        kind = w.dtype.type
        g = g * (1 if scale is None else scale.reshape(())) + kind(c["decay"]) * w
        v = kind(c["momentum"]) * v + g
        step = g + kind(c["momentum"]) * v if c["nesterov"] else v
        return w - lr.reshape(()) * step, v

    def bind(self, c: Call) -> Kernel | None:
        if c.ins[0].dtype != DType.FLOAT:
            return None
        return Kernel("train.momentum_f32", (c["nesterov"],), (c["momentum"], c["decay"]))


@op("AdamUpdate", domain="evort")
class AdamUpdate(_Update):
    """Adam, and AdamW, whose decay is taken from the weights and not through the gradient:

        g = scale * G (+ decay * W);  M' = b1 M + (1 - b1) g;  V' = b2 V + (1 - b2) g g
        W' = W (- lr * decay * W) - lr * (M' / (1 - b1^t)) / (sqrt(V' / (1 - b2^t)) + epsilon)

    t (a scalar) counts the steps from 1. Kingma and Ba, arXiv:1412.6980; Loshchilov and Hutter, arXiv:1711.05101.
    """

    inputs, outputs = ("W", "G", "M", "V", "lr", "t", "scale?"), ("W_new", "M_new", "V_new")
    attrs = {
        "beta1": Attr("float", 0.9), "beta2": Attr("float", 0.999), "epsilon": Attr("float", 1e-8),
        "decay": Attr("float", 0.0), "decoupled": Attr("int", 0),
    }  # fmt: skip
    dtypes = dict.fromkeys(("W", "G", "M", "V", "lr", "t", "scale"), FLOATS)
    moments = 2

    def reference(self, c: Call, w, g, m, v, lr, t, scale=None) -> tuple[np.ndarray, ...]:
        kind = w.dtype.type
        b1, b2, decay, lr = kind(c["beta1"]), kind(c["beta2"]), kind(c["decay"]), lr.reshape(())
        g = g * (1 if scale is None else scale.reshape(()))
        if not c["decoupled"]:
            g = g + decay * w
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        t = float(t.reshape(()))
        step = m / kind(1 - c["beta1"] ** t) / (np.sqrt(v / kind(1 - c["beta2"] ** t)) + kind(c["epsilon"]))
        if c["decoupled"]:
            step = step + decay * w
        return w - lr * step, m, v

    def bind(self, c: Call) -> Kernel | None:
        if c.ins[0].dtype != DType.FLOAT:
            return None
        reals = (c["beta1"], c["beta2"], c["epsilon"], c["decay"])
        return Kernel("train.adam_f32", (c["decoupled"],), reals)


@op("ClipFactor", domain="evort")
class ClipFactor(Op):
    """min(1, max_norm / n), a scalar: n is the Euclidean norm of all inputs together. norm is n itself.

    Pascanu, Mikolov and Bengio, arXiv:1211.5063.
    """

    inputs, outputs = ("*gradients",), ("factor", "norm?")
    attrs = {"max_norm": Attr("float", 1.0)}
    dtypes = {"gradients": FLOATS}

    def infer(self, c: Call) -> list[Spec | None]:
        if not c.ins or any(s.dtype != c.ins[0].dtype for s in c.ins):
            raise c.error("the gradients must have one element type")
        if not c["max_norm"] > 0:
            raise c.error(f"max_norm must be positive, not {c['max_norm']}")
        one = Spec(c.ins[0].dtype, ())
        return [one, one if c.wants(1) else None]

    def reference(self, c: Call, *gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        norm = np.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in gradients))
        # A norm that is no number is passed on, so that it shows.
        factor = 1.0 if norm <= c["max_norm"] else c["max_norm"] / norm
        kind = gradients[0].dtype
        return np.array(factor, kind), np.array(norm, kind)

    def bind(self, c: Call) -> Kernel | None:
        return Kernel("train.clip_factor_f32", (), (c["max_norm"],)) if c.ins[0].dtype == DType.FLOAT else None
