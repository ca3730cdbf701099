"""Optimizers: how a parameter moves against its gradient. Each emits one operator for each parameter, which updates it
and its moments in place (`evort.ops.update` has the formulas)."""

from __future__ import annotations

from evort.ops.gradients import Gradients


class Optimizer:
    """Base class. lr: the learning rate that a schedule's factor multiplies. slots: names of the moments kept for each
    parameter, of its shape, zero at the start. weight_decay: of parameters with two axes or more; biases and scales
    have none."""

    slots: tuple[str, ...] = ()

    def __init__(self, lr: float, weight_decay: float = 0.0):
        if not lr > 0 or not weight_decay >= 0:
            raise ValueError(f"lr must be positive and weight_decay not negative, not {lr} and {weight_decay}")
        self.lr, self.weight_decay = lr, weight_decay

    def decay_of(self, shape: tuple[int, ...]) -> float:
        return float(self.weight_decay) if len(shape) > 1 else 0.0

    def build(
        self, g: Gradients, w: str, gradient: str, slots: list[str], lr: str, t: str, scale: str | None
    ) -> list[str]:
        """Emits the update; returns the names of the new parameter and of its new slots. lr, t: scalars, the learning
        rate and the number of the step from 1 on; scale: a factor of the gradient."""
        raise NotImplementedError


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, or Nesterov's."""

    slots = ("velocity",)

    def __init__(self, lr: float = 0.01, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0):
        super().__init__(lr, weight_decay)
        if not 0 <= momentum < 1 or (nesterov and momentum == 0):
            raise ValueError(f"momentum must be in [0, 1), and positive for Nesterov's, not {momentum}")
        self.momentum, self.nesterov = momentum, nesterov

    def build(self, g, w, gradient, slots, lr, t, scale):
        attrs = {
            "momentum": float(self.momentum),
            "nesterov": int(self.nesterov),
            "decay": self.decay_of(g.shape(w)),
        }
        return g.emit("MomentumUpdate", [w, gradient, *slots, lr, scale], attrs, "evort", 2)


class Adam(Optimizer):
    """Adam. Weight decay goes through the gradient, as an L2 penalty."""

    slots = ("mean", "square")
    decoupled = False

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(lr, weight_decay)
        if not all(0 <= b < 1 for b in betas) or not epsilon > 0:
            raise ValueError(f"betas must be in [0, 1) and epsilon positive, not {betas} and {epsilon}")
        self.betas, self.epsilon = betas, epsilon

    def build(self, g, w, gradient, slots, lr, t, scale):
        attrs = {
            "beta1": float(self.betas[0]), "beta2": float(self.betas[1]), "epsilon": float(self.epsilon),
            "decay": self.decay_of(g.shape(w)), "decoupled": int(self.decoupled),
        }  # fmt: skip
        return g.emit("AdamUpdate", [w, gradient, *slots, lr, t, scale], attrs, "evort", 3)


class AdamW(Adam):
    """Adam with decoupled weight decay."""

    decoupled = True

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        super().__init__(lr, betas, epsilon, weight_decay)


__all__ = ["SGD", "Adam", "AdamW", "Optimizer"]
