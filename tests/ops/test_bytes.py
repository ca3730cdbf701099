"""What moves 8-bit tensors or compares them does so with compiled drivers, on the integers as they are."""

import numpy as np
import pytest
from qsupport import everywhere, numbers
from support import drivers_of, node_model

from evort.session import Session

X = (2, 6, 9, 11)

# operator: (inputs after X, attributes, driver)
CASES = {
    "MaxPool": ([], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 0]}, "pooling.pool"),
    "Transpose": ([], {"perm": [0, 2, 3, 1]}, "layout.strided"),
    "Slice": ([np.array([1]), np.array([8]), np.array([3]), np.array([2])], {}, "layout.strided"),
    "Concat": (["like", "like"], {"axis": 1}, "layout.concat"),
    "Gather": ([np.array([3, -1, 0])], {"axis": 2}, "gather.gather"),
    "Pad": ([np.array([0, 0, 1, 2, 0, 0, 0, 1]), "scalar"], {"mode": "constant"}, "layout.take"),
    "Resize": ([None, np.float32([1, 1, 2, 2])], {"mode": "nearest"}, "layout.take"),
    "Clip": (["scalar", "top"], {}, "elementwise.nary"),
    "Max": (["like"], {}, "elementwise.nary"),
    "Min": (["like"], {}, "elementwise.nary"),
    "Expand": ([np.array([3, 2, 6, 9, 11])], {}, "layout.strided"),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("op", CASES)
def test_drivers(op, dtype):
    rng = np.random.default_rng(0)
    others, attrs, driver = CASES[op]
    x = numbers(rng, dtype, X)
    values = {"scalar": dtype(20), "top": dtype(90)}
    inputs, feeds = [x], [0]
    for i, other in enumerate(others, 1):
        if isinstance(other, str) and other == "like":
            feeds.append(i)
            other = numbers(rng, dtype, X)
        inputs.append(values[other] if isinstance(other, str) else other)
    everywhere(driver, op, inputs, attrs, "", feeds=tuple(feeds))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_where(dtype):
    rng = np.random.default_rng(1)
    operands = [rng.integers(0, 2, X[2:]).astype(bool), numbers(rng, dtype, X), numbers(rng, dtype, X[1:])]
    everywhere("elementwise.where", "Where", operands, {}, "", feeds=(0, 1, 2))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_split_and_views(dtype):
    x = numbers(np.random.default_rng(2), dtype, X)
    model = node_model("Split", [x, np.array([2, 4])], {"axis": 1}, 2, constants=(1,))
    session = Session(model)
    parts = session.run({"in0": x})
    assert drivers_of(session) == ["layout.split"]
    np.testing.assert_array_equal(np.concatenate([parts["out0"], parts["out1"]], 1), x, strict=True)
    session = Session(node_model("Reshape", [x, np.array([0, -1])], constants=(1,)))
    np.testing.assert_array_equal(session.run({"in0": x})["out0"], x.reshape(2, -1), strict=True)
    assert "numpy" not in drivers_of(session)
