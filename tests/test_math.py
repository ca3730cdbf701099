"""The elementary functions of ukr/math_body.h: their stated error bounds, over a sample of all floats."""

import math

import numpy as np
import pytest

from evort._kernels import core

SOURCE = """
# cython: language_level=3
from evort._kernels.core cimport ukernels
cdef extern from "ev.h":
    enum: EV_ACT_TANH, EV_ACT_SIGMOID, EV_ACT_SOFTPLUS, EV_ACT_MISH, EV_ACT_ELU
cdef extern from "elementwise.h":
    enum: EV_EXP, EV_LOG, EV_ERF, EV_SIN, EV_COS

OPS = {"exp": EV_EXP, "log": EV_LOG, "erf": EV_ERF, "sin": EV_SIN, "cos": EV_COS, "tanh": EV_ACT_TANH,
       "sigmoid": EV_ACT_SIGMOID, "softplus": EV_ACT_SOFTPLUS, "mish": EV_ACT_MISH, "elu": EV_ACT_ELU}

def apply(str name, float[::1] x, float[::1] y):
    ukernels().unary_f32(OPS[name], len(x), &x[0], &y[0], 1, 0)
"""


def softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


# name: float64 reference and bound in units in the last place, as stated in math_body.h
FUNCTIONS = {
    "exp": (np.exp, 1.1),
    "log": (np.log, 0.9),
    "tanh": (np.tanh, 2.5),
    "sigmoid": (lambda x: np.where(x < 0, np.exp(-np.abs(x)), 1) / (1 + np.exp(-np.abs(x))), 2.4),
    "erf": (lambda x: np.array([math.erf(v) for v in x.tolist()]), 1.5),
    "softplus": (softplus, 2.5),
    "mish": (lambda x: x * np.tanh(softplus(x)), 4.5),
    "elu": (lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x), 1.5),
    "sin": (np.sin, 1.6),
    "cos": (np.cos, 1.6),
}


@pytest.fixture(scope="module")
def client(native):
    return native("math_client", SOURCE)


@pytest.fixture(scope="module")
def floats() -> np.ndarray:
    """Every 16,381st float (a prime, so that low bits vary), denormals, infinities and NaN among them."""
    bits = np.arange(0, 1 << 32, 16381, dtype=np.uint64).astype(np.uint32)
    special = np.array([0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 88.7, 88.8, -103.9, -104.1], np.float32)
    near = np.linspace(-20, 20, 40001, dtype=np.float32)
    return np.concatenate([bits.view(np.float32), special, near])


@pytest.mark.parametrize("isa", core.available_isas())
@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_bound(client, floats, isa, name):
    reference, bound = FUNCTIONS[name]
    got = np.empty_like(floats)
    core.select_isa(isa)
    try:
        client.apply(name, floats, got)
    finally:
        core.select_isa("")
    with np.errstate(all="ignore"):
        want = reference(floats.astype(np.float64))
        rounded = want.astype(np.float32)
        ulp = np.ldexp(1.0, np.maximum(np.frexp(np.where(np.isfinite(want), want, 1))[1], -125) - 24)
        error = np.abs(got.astype(np.float64) - want) / ulp
        if name == "mish":  # below -87 its exponential is a denormal number
            error[np.abs(got - want) <= 1e-43] = 0
    special = ~np.isfinite(rounded)
    np.testing.assert_array_equal(got[special], rounded[special])
    worst = np.argmax(np.where(special, 0, error))
    assert error[worst] <= bound, f"{name}({floats[worst].item().hex()}) is off by {error[worst]:.2f} units"
