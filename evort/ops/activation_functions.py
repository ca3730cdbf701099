"""What activation functions mean, in NumPy: value and slope of each in evort.ops.activation, by name.

Apart from what a model needs to load: only references and gradients compute them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, in x's dtype."""
    out = np.empty(x.shape, x.dtype)
    out.reshape(-1)[:] = [math.erf(v) for v in x.reshape(-1).tolist()]
    return out


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow on either side."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def softplus(x: np.ndarray) -> np.ndarray:
    """log(1 + exp(x)), without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """The tanh approximation of GELU (Hendrycks and Gimpel, 2016)."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _normal(x: np.ndarray) -> np.ndarray:
    """The density of the standard normal distribution."""
    return np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


def _gelu_tanh_slope(x: np.ndarray) -> np.ndarray:
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * (math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x))


def _mish_slope(x: np.ndarray) -> np.ndarray:
    t = np.tanh(softplus(x))
    return t + x * sigmoid(x) * (1 - t * t)


def _swish_slope(x: np.ndarray, a: float) -> np.ndarray:
    s = sigmoid(a * x)
    return s + a * x * s * (1 - s)


# np.maximum and np.minimum hand NaN on, as ONNX's reference does. At a kink, the slope is that of the left side (Relu's
# and Clip's is 0 there).
FUNCTIONS: dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray] | None]] = {
    "Relu": (lambda x, a, b: np.maximum(x, 0), lambda y, a, b: y > 0),
    "Clip": (lambda x, a, b: np.minimum(np.maximum(x, a), b), lambda y, a, b: (y > a) & (y < b)),
    "LeakyRelu": (lambda x, a, b: np.where(x < 0, a * x, x), lambda x, a, b: np.where(x < 0, a, 1.0)),
    "Sigmoid": (lambda x, a, b: sigmoid(x), lambda y, a, b: y * (1 - y)),
    "Tanh": (lambda x, a, b: np.tanh(x), lambda y, a, b: 1 - y * y),
    "HardSigmoid": (
        lambda x, a, b: np.clip(a * x + b, 0, 1),
        lambda y, a, b: np.where((y > 0) & (y < 1), a, 0.0),
    ),
    "HardSwish": (
        lambda x, a, b: x * np.clip(x / 6 + 0.5, 0, 1),
        lambda x, a, b: np.where(x <= -3, 0.0, np.where(x < 3, x / 3 + 0.5, 1.0)),
    ),
    "Swish": (lambda x, a, b: x * sigmoid(a * x), lambda x, a, b: _swish_slope(x, a)),
    "Gelu": (
        lambda x, a, b: 0.5 * x * (1 + erf(x * math.sqrt(0.5))),
        lambda x, a, b: 0.5 * (1 + erf(x * math.sqrt(0.5))) + x * _normal(x),
    ),
    "GeluTanh": (lambda x, a, b: gelu_tanh(x), lambda x, a, b: _gelu_tanh_slope(x)),
    "PRelu": (lambda x, slope, b: np.where(x < 0, slope * x, x), None),
    "Softplus": (lambda x, a, b: softplus(x), lambda x, a, b: sigmoid(x)),
    "Elu": (
        lambda x, a, b: np.where(x < 0, a * np.expm1(np.minimum(x, 0)), x),
        lambda x, a, b: np.where(x < 0, a * np.exp(np.minimum(x, 0)), 1.0),
    ),
    "Mish": (lambda x, a, b: x * np.tanh(softplus(x)), lambda x, a, b: _mish_slope(x)),
}
