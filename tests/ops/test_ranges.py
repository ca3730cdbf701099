"""What integer products note of their real results (ev_call.range): the range before anything is cut off, the same on
every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import node_model, run_node

from evort._kernels import core
from evort._kernels.executor import Program
from evort.session import Session

# Sums below 2^24 are exact as floats; a result is then one or two float32 products of three factors: 4 roundings.
TOLERANCE = 4 * 2.0**-24


def noted(
    op: str, inputs: list[np.ndarray | None], attrs: dict[str, Any], threads: int, domain: str = ""
) -> np.ndarray:
    constants = tuple(range(1, len(inputs)))
    session = Session(node_model(op, inputs, attrs, 1, domain, constants), threads=threads)
    (plan,) = session.plans()
    program = Program(plan.tensors, plan.rows, plan.constants, plan.arena_bytes, threads)
    ranges = np.array([[np.inf, -np.inf]] * len(plan.rows), np.float32)
    program.watch(ranges)
    out = [np.empty(s.shape, np.uint8) for s in plan.write_specs]
    program.run([inputs[0]], out)
    program.watch(None)
    seen = ranges.copy()
    program.run([inputs[0]], out)
    np.testing.assert_array_equal(ranges, seen)
    return seen[0]


def conv_inputs(x: tuple[int, ...], w: tuple[int, ...], z: bool) -> list[np.ndarray | None]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, x, np.uint8)
    weights = rng.integers(-128, 128, w).astype(np.int8)
    scale = rng.uniform(0.001, 0.01, w[0]).astype(np.float32)
    bias = rng.integers(-5000, 5000, w[0]).astype(np.int32)
    ins = [image, np.float32(0.02), np.uint8(7), weights, scale, np.zeros(w[0], np.int8), np.float32(0.01),
           np.uint8(100), bias]  # fmt: skip
    if z:
        shape = (x[0], w[0], x[2] - w[2] + 1, x[3] - w[3] + 1)
        ins += [rng.integers(0, 256, shape, np.uint8), np.float32(0.05), np.uint8(128)]
    return [np.asarray(i) for i in ins]


CASES = {
    "pointwise": ((2, 32, 7, 9), (5, 32, 1, 1), 1, False, ""),
    "window": ((1, 3, 19, 21), (6, 3, 3, 3), 1, False, "Relu"),
    "residual": ((1, 8, 9, 9), (8, 8, 3, 3), 1, True, "Relu"),
    "depthwise": ((1, 6, 70, 70), (6, 1, 3, 3), 6, False, ""),
    "narrow depthwise": ((1, 6, 9, 9), (6, 1, 3, 3), 6, False, "HardSwish"),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_convolution(case: str, threads: int) -> None:
    x, w, group, z, activation = CASES[case]
    inputs = conv_inputs(x, w, z)
    attrs = {"group": group, "activation": activation}
    clamps = activation in ("", "Relu") and not z  # then the range is of what is clamped
    free = dict(attrs, activation="" if clamps else activation)
    real = run_node("QLinearConv", [*inputs[:6], None, None, *inputs[8:]], free, device="reference")[0]
    try:
        for isa in core.available_isas():
            core.select_isa(isa)
            low, high = noted("QLinearConv", inputs, attrs, threads)
            np.testing.assert_allclose([low, high], [real.min(), real.max()], rtol=TOLERANCE, err_msg=isa)
    finally:
        core.select_isa()


@pytest.mark.parametrize("shape", [(1, 40, 17), (70, 300, 33), (5, 700, 1), (64, 64, 64)])
def test_matmul(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    rng = np.random.default_rng(1)
    ins: list[Any] = [rng.integers(0, 256, (m, k), np.uint8), np.float32(0.02), np.uint8(3),
                      rng.integers(-128, 128, (k, n)).astype(np.int8), rng.uniform(0.001, 0.01, n).astype(np.float32),
                      np.zeros(n, np.int8), np.float32(0.01), np.uint8(99)]  # fmt: skip
    ins = [np.asarray(i) for i in ins]
    total = (ins[0].astype(np.int64) - 3) @ ins[3].astype(np.int64)
    real = total * ins[4].astype(np.float64) * np.float64(ins[1])
    try:
        for isa in core.available_isas():
            core.select_isa(isa)
            got = noted("QLinearMatMul", ins, {}, 2)
            np.testing.assert_allclose(got, [real.min(), real.max()], rtol=TOLERANCE, err_msg=isa)
    finally:
        core.select_isa()


def bytes_of(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape, np.uint8)


def scalars(*pairs: tuple[float, int]) -> list[np.ndarray]:
    return [v for scale, zero in pairs for v in (np.float32(scale).reshape(()), np.uint8(zero).reshape(()))]


RNG = np.random.default_rng(2)
X = [bytes_of(RNG, 3, 700), *scalars((0.1, 5))]
IMAGE = [bytes_of(RNG, 2, 3, 19, 17), *scalars((0.1, 5), (0.001, 3))]
SUM = [*X, bytes_of(RNG, 700), *scalars((0.3, 9), (0.01, 3))]
# (operator, inputs, attributes); the scale of the result is input -2.
IN_STEPS = {
    "add": ("QLinearAdd", SUM, {}),
    "swish": ("QLinearAdd", SUM, {"activation": "HardSwish"}),
    "mul": ("QLinearMul", SUM, {}),
    "pool": ("QLinearAveragePool", IMAGE, {"kernel_shape": [3, 3]}),
    "global": ("QLinearGlobalAveragePool", IMAGE, {}),
    "mean": ("QLinearReduceMean", IMAGE, {"axes": [1], "keepdims": 0}),
}


@pytest.mark.parametrize("case", IN_STEPS)
def test_sums_and_means_in_units_of_the_result(case: str) -> None:
    op, inputs, attrs = IN_STEPS[case]
    real = run_node(op, inputs[:-2], attrs, domain="com.microsoft", device="reference")[0]
    unit = float(inputs[-2])
    try:
        for isa in core.available_isas():
            core.select_isa(isa)
            low, high = noted(op, inputs, attrs, 2, "com.microsoft")
            np.testing.assert_allclose([low * unit, high * unit], [real.min(), real.max()], rtol=TOLERANCE, err_msg=isa)
    finally:
        core.select_isa()
