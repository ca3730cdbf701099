"""What is added to a layer's result may lie where the result goes (`Op.inplace`): each driver must read it before it
writes there. Every layer with a residual runs twice, with Z kept (it is an input) and with Z in the arena and read for
the last time; the results must have the same bits."""

import numpy as np
import pytest
from support import node_model

from evort.graph import Node
from evort.ops.nbits import pack
from evort.session import Session
from evort.types import DType

MS = "com.microsoft"
RNG = np.random.default_rng(11)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def int8(*shape):
    return RNG.integers(-127, 128, shape).astype(np.int8)


def packed(n, k, bits, block=32):
    """Packed weights and their scales."""
    blocks = -(-k // block)
    q = pack(RNG.integers(0, 1 << bits, (n, blocks * block)), bits).reshape(n, blocks, -1)
    return q, RNG.random((n, blocks), np.float32) + np.float32(0.1)


N, K = 300, 96  # more columns than one task has
SCALE, ZERO, NONE = np.float32(0.1), np.uint8(7), np.int8(0)
WINDOW = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}


def products():
    for bits in (2, 3, 4, 8):
        for level in (0, 4):
            attrs = {"K": K, "N": N, "bits": bits, "block_size": 32, "accuracy_level": level}
            yield "MatMulNBits", MS, [*packed(N, K, bits), None, None, floats(N)], 6, attrs
    for trans in (0, 1):
        w = floats(N, K) if trans else floats(K, N)
        yield "Gemm", "", [w, floats(N)], 3, {"transB": trans}
        yield "Gemm", "", [w.astype(np.float16), floats(N)], 3, {"transB": trans, "alpha": 0.5}
    yield "MatMul", "", [floats(K, N), floats(N)], 3, {}
    yield "MatMul", "", [floats(K, N).astype(np.float16), floats(N)], 3, {}
    scales = RNG.random(N, np.float32)
    yield "DynamicQuantizeMatMul", MS, [int8(K, N), scales, None, floats(N)], 5, {}
    yield "DynamicQuantizeMatMul", MS, [int8(K, N).astype(np.int16), scales, None, floats(N)], 5, {}
    yield "QLinearMatMul", "", [SCALE, ZERO, int8(K, N), scales, NONE, None, None, None], 9, {}


def convolutions():
    for w, attrs in (
        (floats(32, 16, 3, 3), WINDOW),
        (floats(32, 16, 1, 1), {}),
        (floats(16, 1, 3, 3), WINDOW | {"group": 16}),
    ):
        m = len(w)
        yield "Conv", "", [w, floats(m)], 3, attrs, m
        yield "Conv", "", [w.astype(np.float16), floats(m)], 3, attrs, m
        q, scale = int8(*w.shape), RNG.random(m, np.float32)
        yield "DynamicQuantizeConv", "evort", [q, scale, None, floats(m)], 5, attrs, m
        yield "QLinearConv", "", [SCALE, ZERO, q, scale, NONE, None, None, None], 9, attrs, m
    yield "ConvTranspose", "", [floats(16, 32, 3, 3), floats(32)], 3, WINDOW, 32
    few = [*packed(32, 16 * 9, 4), None, floats(32)]
    yield "ConvNBits", "evort", few, 5, {**WINDOW, "block_size": 32, "bits": 4}, 32


def check(op, domain, operands, at, attrs, x, z):
    """Runs a layer on both ways; operands: those after x, Z excepted, which is input `at`."""
    inputs = [x, *operands, *[None] * (at - 1 - len(operands)), z]
    constants = tuple(range(1, at))
    dtypes = {1: DType.FLOAT16} if isinstance(operands[0], np.ndarray) and operands[0].dtype == np.float16 else None
    kept = node_model(op, inputs, attrs, domain=domain, constants=constants, dtypes=dtypes)
    over = node_model(op, inputs, attrs, domain=domain, constants=constants, dtypes=dtypes)
    (node,), given = over.graph.nodes, f"in{at}"
    node.inputs[at], node.outputs[0] = "z", "y"
    over.graph.nodes = [Node("Neg", [given], ["z"]), node, Node("Neg", ["y"], ["out0"])]
    for threads in (1, 2):
        want = Session(kept, threads=threads).run({"in0": x, given: z})["out0"]
        session = Session(over, threads=threads)
        got = -session.run({"in0": x, given: -z})["out0"]
        (plan,) = session.plans()
        assert all(step.driver != "numpy" for step in plan.steps)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 33])
@pytest.mark.parametrize("case", list(products()), ids=lambda case: f"{case[0]}-{case[2][0].dtype}")
def test_products(case, rows):
    check(*case, floats(rows, K), floats(rows, N))


@pytest.mark.parametrize("side", [1, 2, 9])
@pytest.mark.parametrize("case", list(convolutions()), ids=lambda case: f"{case[0]}-{case[2][0].shape}")
def test_convolutions(case, side):
    *layer, channels = case
    check(*layer, floats(1, 16, side, side), floats(1, channels, side, side))
