"""Reductions, pools and normalizations that are large enough to be split: the number of threads changes no bit."""

import numpy as np
import pytest
from support import compiled

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((600, 700)).astype(np.float32)
IMAGE = RNG.standard_normal((1, 24, 130, 131)).astype(np.float32)
C = RNG.uniform(0.5, 2, 24).astype(np.float32)
POOL = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}


@pytest.mark.parametrize(
    "driver, op, inputs, attrs, outputs, constants",
    [
        ("reduce.reduce", "ReduceSum", [ROWS, np.array([0])], {}, 1, (1,)),
        ("reduce.reduce", "ReduceLogSumExp", [ROWS, np.array([1])], {}, 1, (1,)),
        ("reduce.reduce", "ReduceMax", [IMAGE, np.array([1, 3])], {}, 1, (1,)),
        ("reduce.arg_extreme", "ArgMax", [ROWS], {"axis": 1}, 1, ()),
        ("reduce.arg_extreme", "ArgMin", [IMAGE], {"axis": 1}, 1, ()),
        ("reduce.softmax_f32", "Softmax", [ROWS], {"axis": 1}, 1, ()),
        ("reduce.softmax_f32", "Softmax", [IMAGE], {"axis": 1}, 1, ()),
        ("reduce.cumulative", "CumSum", [ROWS, np.array(1)], {}, 1, (1,)),
        ("search.top_k", "TopK", [ROWS, np.array([7])], {}, 2, (1,)),
        ("pooling.pool", "MaxPool", [IMAGE], POOL, 1, ()),
        ("pooling.pool", "AveragePool", [IMAGE], POOL, 1, ()),
        ("pooling.max_with_indices", "MaxPool", [IMAGE], POOL, 2, ()),
        ("normalize.batch_f32", "BatchNormalization", [IMAGE, C, C, C, C], {}, 1, ()),
        ("normalize.group_f32", "InstanceNormalization", [IMAGE, C, C], {"activation": "LeakyRelu"}, 1, ()),
        ("normalize.layer_f32", "LayerNormalization", [ROWS, ROWS[0], ROWS[1]], {}, 1, ()),
        ("normalize.norm_f32", "LpNormalization", [IMAGE], {"axis": 1}, 1, ()),
        ("normalize.lrn_f32", "LRN", [IMAGE], {"size": 3}, 1, ()),
    ],
)
def test_threads_change_nothing(driver, op, inputs, attrs, outputs, constants):
    results = compiled(driver, op, inputs, attrs, outputs, constants, threads=(1, 2, 3))
    for first in range(0, len(results), 3):  # of each instruction set
        for other in results[first + 1 : first + 3]:
            for a, b in zip(results[first], other, strict=True):
                np.testing.assert_array_equal(a, b)
