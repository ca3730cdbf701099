"""The gradient of every operator that has one: against central differences, and compiled against the reference."""

from __future__ import annotations

import re

import numpy as np
import pytest
from support import ROOT, node_model
from train_gradients import check

from evort.backends.reference import interpret
from evort.graph import Graph, Tensor
from evort.ops import registered
from evort.ops.base import Op
from evort.train import differentiate, trace
from evort.train.autodiff import needed_nodes
from evort.types import DType, Spec, dtype_of

_RNG = np.random.default_rng(3)


def real(*shape: int, low: float = -2.0, high: float = 2.0, apart: bool = False) -> np.ndarray:
    """float64 numbers; apart: no two nearer than 1e-3, so that no maximum changes within a difference's step."""
    n = int(np.prod(shape))
    if apart:
        return (_RNG.permutation(n) * (high - low) / max(1, n) + low + 1e-3).reshape(shape)
    return _RNG.uniform(low, high, shape)


def whole(high: int, *shape: int) -> np.ndarray:
    return _RNG.integers(0, high, shape)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


PERMUTED = np.stack([_RNG.permutation(5) for _ in range(3)], 1)  # three columns of 0 to 4
REGIONS = np.array([[0.3, 1.1, 6.2, 5.7], [2.2, 0.4, 9.5, 6.1], [1.3, 2.6, 1.9, 3.2]])
BOXES = np.array([[0.0, 1, 1, 6, 5], [1, 0, 2, 3, 9], [0, 8, 8, 9, 9]])
MASK = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)  # the second query has no keys
UNARY = {
    "Abs": {}, "Neg": {}, "Relu": {}, "Exp": {}, "Sin": {}, "Cos": {}, "Tan": {"low": -1, "high": 1}, "Sinh": {},
    "Cosh": {}, "Asinh": {}, "Atan": {}, "Erf": {}, "Selu": {}, "Celu": {}, "Softsign": {}, "Shrink": {},
    "LeakyRelu": {}, "Elu": {}, "HardSigmoid": {}, "HardSwish": {"low": -4, "high": 4}, "Sigmoid": {}, "Tanh": {},
    "Softplus": {}, "Mish": {}, "Swish": {}, "Gelu": {}, "ThresholdedRelu": {}, "Identity": {},
    "Sqrt": {"low": 0.3}, "Reciprocal": {"low": 0.4}, "Log": {"low": 0.3}, "Acosh": {"low": 1.2, "high": 3},
    "Asin": {"low": -0.9, "high": 0.9}, "Acos": {"low": -0.9, "high": 0.9}, "Atanh": {"low": -0.9, "high": 0.9},
}  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
def test_elementwise(op):
    check(op, [real(3, 37, **UNARY[op])])


CASES = {
    "gelu tanh": ("Gelu", [real(5, 9)], {"approximate": "tanh"}),
    "swish alpha": ("Swish", [real(5, 9)], {"alpha": 0.7}),
    "clip": ("Clip", [real(5, 9), np.array(-0.7), np.array(0.9)], {}, {"wrt": [0], "constants": (1, 2)}),
    "add": ("Add", [real(3, 4, 5), real(4, 1)]),
    "add relu": ("Add", [real(3, 4, 5), real(5)], {"activation": "Relu"}),
    "sub": ("Sub", [real(1, 4, 5), real(3, 1, 5)]),
    "mul": ("Mul", [real(3, 4, 5), real(3, 1, 1)]),
    "div": ("Div", [real(3, 4), real(4, low=0.5)]),
    "pow": ("Pow", [real(3, 4, low=0.3), real(4)]),
    "prelu": ("PRelu", [real(2, 3, 4), real(3, 1)]),
    "min": ("Min", [real(3, 4), real(3, 4), real(1, 4)]),
    "max": ("Max", [real(3, 4), real(4)]),
    "sum": ("Sum", [real(3, 4), real(4), real(3, 1)]),
    "mean": ("Mean", [real(3, 4), real(4)]),
    "where": ("Where", [_RNG.random((3, 4)) < 0.5, real(3, 4), real(4)], {}, {"wrt": [1, 2]}),
    "gemm": ("Gemm", [real(5, 7), real(7, 4), real(4)], {"alpha": 0.5, "beta": 2.0}),
    "gemm ta": ("Gemm", [real(7, 5), real(7, 4), real(5, 1)], {"transA": 1}),
    "gemm tb": ("Gemm", [real(5, 7), real(4, 7), real(4)], {"transB": 1, "activation": "Sigmoid"}),
    "gemm tab": ("Gemm", [real(7, 5), real(4, 7)], {"transA": 1, "transB": 1}),
    "matmul": ("MatMul", [real(5, 7), real(7, 4)]),
    "matmul rows": ("MatMul", [real(2, 5, 7), real(7, 4), real(4)]),
    "matmul batch": ("MatMul", [real(2, 3, 5, 7), real(3, 7, 4)]),
    "matmul vector": ("MatMul", [real(2, 5, 7), real(7)]),
    "einsum": ("Einsum", [real(2, 3, 4), real(2, 4, 5)], {"equation": "bij,bjk->bik"}),
    "einsum summed": ("Einsum", [real(3, 4), real(3, 2)], {"equation": "ij,ik->k"}, {"drivers": False}),
    "conv": ("Conv", [real(2, 3, 8, 9), real(4, 3, 3, 3), real(4)], {"pads": [1, 1, 1, 1]}),
    "conv relu": ("Conv", [real(3, 2, 12, 11), real(5, 2, 5, 5), real(5)], {"activation": "Relu"}),
    "conv 1x1": ("Conv", [real(2, 8, 5, 5), real(6, 8, 1, 1)], {}),
    "conv stride": ("Conv", [real(2, 3, 9, 8), real(4, 3, 3, 3), real(4)], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "conv stride 3": ("Conv", [real(1, 2, 11, 13), real(3, 2, 2, 2)], {"strides": [3, 3]}),
    "conv dilated": (
        "Conv", [real(2, 2, 9, 9), real(3, 2, 3, 3), real(3)], {"dilations": [2, 2], "pads": [2, 1, 0, 1]},
    ),
    "conv strided dilated": (
        "Conv", [real(2, 2, 13, 12), real(3, 2, 3, 3)], {"strides": [2, 3], "dilations": [3, 2], "pads": [2, 1, 3, 1]},
    ),
    "conv groups": ("Conv", [real(2, 4, 6, 6), real(6, 2, 3, 3), real(6)], {"group": 2, "pads": [1, 1, 1, 1]}),
    "conv depthwise": ("Conv", [real(2, 5, 7, 7), real(5, 1, 3, 3), real(5)], {"group": 5, "pads": [1, 1, 1, 1]}),
    "conv depthwise stride": (
        "Conv", [real(2, 5, 8, 8), real(5, 1, 3, 3), real(5)], {"group": 5, "pads": [1, 1, 1, 1], "strides": [2, 2]},
    ),
    "conv 1d": ("Conv", [real(2, 3, 20), real(4, 3, 5), real(4)], {"pads": [2, 2]}),
    "conv 3d": ("Conv", [real(1, 2, 4, 5, 6), real(3, 2, 2, 3, 2)], {"pads": [0, 1, 1, 1, 0, 1], "strides": [1, 2, 1]}),
    "conv wide pads": ("Conv", [real(1, 2, 4, 4), real(2, 2, 2, 2)], {"pads": [2, 2, 2, 2]}),
    "conv same": ("Conv", [real(1, 2, 7, 7), real(2, 2, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "conv transpose": (
        "ConvTranspose", [real(2, 3, 5, 4), real(3, 4, 3, 3), real(4)],
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    ),
    "conv transpose groups": (
        "ConvTranspose", [real(2, 4, 5, 5), real(4, 2, 2, 2)], {"strides": [2, 2], "group": 2},
    ),
    "maxpool": ("MaxPool", [real(2, 3, 8, 6, apart=True)], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "maxpool overlap": (
        "MaxPool", [real(2, 3, 7, 8, apart=True)], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    ),
    "maxpool dilated": (
        "MaxPool", [real(1, 2, 9, 9, apart=True)], {"kernel_shape": [2, 3], "dilations": [2, 1], "ceil_mode": 1,
                                                    "strides": [2, 2]},
    ),
    "maxpool 1d": ("MaxPool", [real(2, 3, 12, apart=True)], {"kernel_shape": [3], "strides": [3]}),
    "avgpool": ("AveragePool", [real(2, 3, 8, 6)], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "avgpool pads": (
        "AveragePool", [real(2, 3, 7, 7)], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    ),
    "avgpool counted": (
        "AveragePool", [real(1, 2, 7, 7)], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1},
    ),
    "global average": ("GlobalAveragePool", [real(2, 3, 4, 5)]),
    "global max": ("GlobalMaxPool", [real(2, 3, 4, 5, apart=True)]),
    "softmax": ("Softmax", [real(3, 4, 5)], {"axis": 1}),
    "log softmax": ("LogSoftmax", [real(3, 7)]),
    "batch norm": (
        "BatchNormalization", [real(4, 3, 5, 5), real(3, low=0.5), real(3), real(3), real(3, low=0.5)],
        {"training_mode": 1}, {"wrt": [0, 1, 2]},
    ),
    "batch norm relu": (
        "BatchNormalization", [real(4, 3, 5), real(3, low=0.5), real(3), real(3), real(3, low=0.5)],
        {"training_mode": 1, "activation": "Relu"}, {"wrt": [0, 1, 2]},
    ),
    "batch norm fixed": (
        "BatchNormalization", [real(4, 3, 5, 5), real(3, low=0.5), real(3), real(3), real(3, low=0.5)], {},
    ),
    "layer norm": ("LayerNormalization", [real(4, 6, 8), real(8), real(8)], {}),
    "layer norm axis": ("LayerNormalization", [real(4, 6, 8), real(6, 8), real(8)], {"axis": 1}, {"drivers": False}),
    "rms norm": ("RMSNormalization", [real(4, 6, 8), real(8)], {}),
    "group norm": ("GroupNormalization", [real(2, 6, 4, 4), real(6), real(6)], {"num_groups": 3}),
    "instance norm": ("InstanceNormalization", [real(2, 3, 4, 4), real(3), real(3)], {}),
    "lrn": ("LRN", [real(2, 5, 3, 3)], {"size": 3, "alpha": 0.3, "beta": 0.7, "bias": 1.5}),
    "mean variance": ("MeanVarianceNormalization", [real(2, 3, 4, 4)], {}, {"drivers": False}),
    "lp norm": ("LpNormalization", [real(3, 5)], {}),
    "lp norm 1": ("LpNormalization", [real(3, 5)], {"p": 1, "axis": 0}),
    "reshape": ("Reshape", [real(3, 4), i64(2, -1)], {}, {"constants": (1,)}),
    "flatten": ("Flatten", [real(3, 4, 5)]),
    "squeeze": ("Squeeze", [real(3, 1, 5)]),
    "unsqueeze": ("Unsqueeze", [real(3, 5), i64(1)], {}, {"constants": (1,)}),
    "transpose": ("Transpose", [real(3, 4, 5)], {"perm": [2, 0, 1]}),
    "space to depth": ("SpaceToDepth", [real(1, 2, 4, 6)], {"blocksize": 2}),
    "depth to space": ("DepthToSpace", [real(1, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}),
    "slice": ("Slice", [real(5, 6), i64(1, 2), i64(4, 6)], {}, {"constants": (1, 2)}),
    "slice steps": (
        "Slice", [real(7, 6), i64(5, 0), i64(0, 6), i64(0, 1), i64(-2, 2)], {}, {"constants": (1, 2, 3, 4)},
    ),
    "expand": ("Expand", [real(3, 1), i64(2, 3, 4)], {}, {"constants": (1,)}),
    "tile": ("Tile", [real(2, 3), i64(2, 3)], {}, {"constants": (1,)}),
    "concat": ("Concat", [real(2, 3), real(2, 4)], {"axis": 1}),
    "split": ("Split", [real(2, 7), i64(3, 4)], {"axis": 1}, {"constants": (1,), "outputs": 2}),
    "split part": ("Split", [real(2, 7), i64(3, 4)], {"axis": 1}, {"constants": (1,), "outputs": 2, "watched": 1}),
    "pad": ("Pad", [real(3, 4), i64(1, 0, 2, 1)], {}, {"constants": (1,)}),
    "pad crop": ("Pad", [real(3, 4), i64(1, -1, 0, 2)], {}, {"constants": (1,)}),
    "pad edge": ("Pad", [real(3, 4), i64(1, 2, 2, 1)], {"mode": "edge"}, {"constants": (1,)}),
    "pad reflect": ("Pad", [real(3, 4), i64(1, 2, 2, 1)], {"mode": "reflect"}, {"constants": (1,)}),
    "gather": ("Gather", [real(5, 3), whole(5, 2, 4)], {}),
    "gather axis": ("Gather", [real(2, 5, 3), whole(5, 4)], {"axis": 1}),
    "gather elements": ("GatherElements", [real(5, 3), whole(5, 4, 3)], {}),
    "cumsum": ("CumSum", [real(3, 5), np.array(1)], {"exclusive": 1}, {"constants": (1,)}),
    "resize": (
        "Resize", [real(1, 2, 4, 5), None, np.array([1, 1, 2, 1.5], np.float32)], {"mode": "linear"},
        {"wrt": [0], "constants": (2,)},
    ),
    "resize nearest": (
        "Resize", [real(1, 2, 4, 5), None, None, i64(1, 2, 8, 10)], {"mode": "nearest"},
        {"wrt": [0], "constants": (3,)},
    ),
    "resize cubic": (
        "Resize", [real(1, 1, 5, 4), None, None, i64(1, 1, 7, 9)], {"mode": "cubic"}, {"wrt": [0], "constants": (3,)},
    ),
    "cross entropy": (
        "CrossEntropy", [real(6, 5), whole(5, 6)], {"label_smoothing": 0.1},
        {"domain": "evort", "outputs": 2, "watched": 1},
    ),
    "dropout": ("RandomDropout", [real(6, 50), np.array(3)], {"ratio": 0.3, "seed": 5}, {"domain": "evort"}),
    "lstm": (
        "LSTM", [real(4, 2, 3), real(1, 16, 3), real(1, 16, 4), real(1, 32)], {"hidden_size": 4}, {"outputs": 3},
    ),
    "lstm both ways": (
        "LSTM", [real(3, 2, 3), real(2, 8, 3), real(2, 8, 2), real(2, 16), None, real(2, 2, 2), real(2, 2, 2)],
        {"hidden_size": 2, "direction": "bidirectional"}, {"outputs": 3},
    ),
    "gru": (
        "GRU", [real(4, 2, 3), real(1, 12, 3), real(1, 12, 4), real(1, 24)], {"hidden_size": 4}, {"outputs": 2},
    ),
    "gru after": (
        "GRU", [real(3, 2, 3), real(1, 6, 3), real(1, 6, 2), real(1, 12)],
        {"hidden_size": 2, "linear_before_reset": 1, "direction": "reverse"}, {"outputs": 2},
    ),
    "rnn": ("RNN", [real(4, 2, 3), real(1, 4, 3), real(1, 4, 4), real(1, 8)], {"hidden_size": 4}, {"outputs": 2}),
    "attention": ("Attention", [real(2, 2, 4, 3), real(2, 2, 5, 3), real(2, 2, 5, 3)], {}),
    "attention causal": (
        "Attention", [real(2, 4, 6), real(2, 4, 6), real(2, 4, 6)],
        {"q_num_heads": 2, "kv_num_heads": 2, "is_causal": 1},
    ),
    "attention grouped": (
        "Attention", [real(1, 4, 3, 4), real(1, 2, 3, 4), real(1, 2, 3, 4), real(3, 3)], {"scale": 0.3},
    ),
    "clip computed": ("Clip", [real(5, 9), np.array(-0.7), np.array(0.9)], {}),
    "global lp pool": ("GlobalLpPool", [real(2, 3, 4, 5)], {}),
    "global lp pool 3": ("GlobalLpPool", [real(2, 3, 4, low=0.2)], {"p": 3}, {"drivers": False}),
    "center crop pad": ("CenterCropPad", [real(4, 5, 2), i64(6, 3)], {"axes": [0, 1]}, {"constants": (1,)}),
    "compress": ("Compress", [real(4, 3), np.array([1, 0, 1, 1], bool)], {"axis": 0}, {"constants": (1,)}),
    "mod": ("Mod", [real(3, 4, low=-3, high=3), real(4, low=0.8)], {"fmod": 1}),
    "lp pool": ("LpPool", [real(2, 3, 7, 8)], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    "lp pool 1": ("LpPool", [real(1, 2, 9, low=0.2)], {"kernel_shape": [3], "p": 1, "ceil_mode": 1, "strides": [2]}),
    "lp pool 3": (
        "LpPool", [real(1, 2, 7, 7)], {"kernel_shape": [2, 3], "p": 3, "dilations": [2, 1], "activation": "Relu"},
        {"drivers": False},
    ),
    "max unpool": (
        "MaxUnpool", [real(1, 2, 2, 2), (4 * np.arange(8) + 1).reshape(1, 2, 2, 2), i64(1, 2, 5, 4)],
        {"kernel_shape": [2, 2], "strides": [2, 2]}, {"constants": (2,), "drivers": False},
    ),
    "col2im": (
        "Col2Im", [real(2, 3 * 4, 20), i64(5, 4), i64(2, 2)], {"pads": [1, 0, 0, 1], "strides": [1, 1]},
        {"constants": (1, 2), "drivers": False},
    ),
    "gather nd": ("GatherND", [real(4, 3, 5), np.stack([whole(4, 2, 6), whole(3, 2, 6)], -1)]),
    "gather nd batches": ("GatherND", [real(2, 4, 3), whole(4, 2, 6, 1)], {"batch_dims": 1}),
    "scatter": ("Scatter", [real(5, 3), PERMUTED[:4], real(4, 3)]),
    "scatter elements": ("ScatterElements", [real(3, 5), PERMUTED[:4].T.copy(), real(3, 4)], {"axis": 1}),
    "scatter nd": ("ScatterND", [real(6, 2, 3), i64(4, 0, -1).reshape(3, 1), real(3, 2, 3)]),
    "tensor scatter": ("TensorScatter", [real(2, 3, 5, 4), real(2, 3, 2, 4), i64(3, 1)], {}),
    "tensor scatter round": ("TensorScatter", [real(2, 5, 4), real(2, 3, 4), i64(4, 1)], {"mode": "circular"}),
    "tensor scatter start": ("TensorScatter", [real(2, 5, 4), real(2, 3, 4)], {}),
    "reverse sequence": ("ReverseSequence", [real(5, 3, 2), i64(2, 5, 0)], {}),
    "trilu": ("Trilu", [real(2, 4, 5), i64(1).reshape(())], {"upper": 0}, {"constants": (1,)}),
    "top k": ("TopK", [real(4, 6, apart=True), i64(3)], {"axis": 0}, {"constants": (1,), "outputs": 2, "watched": 1}),
    "cumprod": ("CumProd", [real(3, 5), np.array(1)], {}, {"constants": (1,)}),
    "cumprod zeros": (
        "CumProd", [real(5, 3) * (whole(3, 5, 3) > 0), np.array(0)], {"exclusive": 1, "reverse": 1},
        {"constants": (1,)},
    ),
    "rotary": (
        "RotaryEmbedding", [real(2, 3, 4, 8), real(2, 4, 3), real(2, 4, 3)], {"rotary_embedding_dim": 6}, {"wrt": [0]},
    ),
    "rotary positions": (
        "RotaryEmbedding", [real(2, 4, 12), real(9, 2), real(9, 2), whole(9, 2, 4)],
        {"num_heads": 3, "interleaved": 1}, {"wrt": [0]},
    ),
    "affine grid": ("AffineGrid", [real(2, 2, 3), i64(2, 1, 4, 3)], {"align_corners": 1}, {"constants": (1,)}),
    "roi align": (
        "RoiAlign", [real(2, 3, 7, 8), REGIONS, whole(2, 3)],
        {"output_height": 2, "output_width": 3, "spatial_scale": 0.8}, {"wrt": [0], "drivers": False},
    ),
    "roi align max": (
        "RoiAlign", [real(2, 3, 7, 8), REGIONS, whole(2, 3)],
        {"output_height": 2, "output_width": 2, "mode": "max", "sampling_ratio": 2,
         "coordinate_transformation_mode": "output_half_pixel"}, {"wrt": [0], "drivers": False},
    ),
    "max roi pool": (
        "MaxRoiPool", [real(2, 3, 7, 8, apart=True), BOXES], {"pooled_shape": [2, 3]}, {"wrt": [0], "drivers": False},
    ),
    "deform conv": (
        "DeformConv", [real(2, 4, 5, 6), real(6, 2, 3, 2), real(2, 2 * 12, 3, 5), real(6), real(2, 2 * 6, 3, 5)],
        {"group": 2, "offset_group": 2, "strides": [2, 1], "pads": [1, 0, 1, 0]},
    ),
    "deform conv plain": ("DeformConv", [real(1, 2, 5, 5), real(3, 2, 2, 2), real(1, 8, 4, 4)], {}),
    "lookup table": (
        "tri_forward", [real(3, 4, 4, 4), real(2, 3, 5, 4, low=0, high=1), None, None, None, np.array([0.34])], {},
        {"domain": "cus_ops", "wrt": [0, 1]},
    ),
    "dft": ("DFT", [real(2, 6, 3, 2), i64(5).reshape(()), np.array(1)], {}, {"constants": (1, 2), "drivers": False}),
    "dft real": ("DFT", [real(2, 5, 1), None, np.array(1)], {"onesided": 1}, {"constants": (2,), "drivers": False}),
    "dft longer": (
        "DFT", [real(5, 2, 1), i64(7).reshape(()), np.array(0)], {}, {"constants": (1, 2), "drivers": False},
    ),
    "dft back": ("DFT", [real(2, 6, 2), None, np.array(1)], {"inverse": 1}, {"constants": (2,), "drivers": False}),
    "dft back real": (
        "DFT", [real(2, 4, 2), None, np.array(1)], {"inverse": 1, "onesided": 1}, {"constants": (2,), "drivers": False},
    ),
    "dft back odd": (
        "DFT", [real(2, 4, 2), i64(7).reshape(()), np.array(1)], {"inverse": 1, "onesided": 1},
        {"constants": (1, 2), "drivers": False},
    ),
    "stft": ("STFT", [real(2, 12, 1), i64(3).reshape(()), real(6)], {}, {"constants": (1,), "drivers": False}),
    "nll": ("NegativeLogLikelihoodLoss", [real(4, 3, 5), whole(3, 4, 5), real(3, low=0.5)], {"ignore_index": 1}),
    "nll sum": ("NegativeLogLikelihoodLoss", [real(4, 3), whole(3, 4)], {"reduction": "sum"}),
    "softmax cross entropy": ("SoftmaxCrossEntropyLoss", [real(4, 3, 2), whole(3, 4, 2)], {}, {"outputs": 2}),
    "softmax cross entropy each": (
        "SoftmaxCrossEntropyLoss", [real(4, 3), whole(3, 4), real(3, low=0.5)], {"reduction": "none"},
    ),
    "lstm lengths": (
        "LSTM", [real(4, 3, 2), real(2, 12, 2), real(2, 12, 3), real(2, 24), i32(2, 4, 0), real(2, 3, 3),
                 real(2, 3, 3), real(2, 9)],
        {"hidden_size": 3, "direction": "bidirectional", "clip": 0.9}, {"outputs": 3},
    ),
    "lstm functions": (
        "LSTM", [real(3, 2, 2), real(1, 8, 2), real(1, 8, 2), real(1, 16)],
        {"hidden_size": 2, "input_forget": 1, "activations": ["HardSigmoid", "ScaledTanh", "Softsign"],
         "activation_alpha": [0.3, 1.2], "activation_beta": [0.4, 0.7]}, {"outputs": 3},
    ),
    "gru lengths": (
        "GRU", [real(3, 4, 2), real(1, 6, 2), real(1, 6, 2), real(1, 12), i32(4, 1, 2)],
        {"hidden_size": 2, "direction": "reverse", "layout": 1}, {"outputs": 2},
    ),
    "rnn lengths": (
        "RNN", [real(4, 2, 3), real(2, 4, 3), real(2, 4, 4), real(2, 8), i32(3, 4)],
        {"hidden_size": 4, "direction": "bidirectional", "activations": ["Affine", "Elu"], "clip": 1.5,
         "activation_alpha": [0.8, 0.6], "activation_beta": [0.1]}, {"outputs": 2},
    ),
    "attention cache": (
        "Attention", [real(2, 2, 3, 4), real(2, 2, 2, 4), real(2, 2, 2, 3), None, real(2, 2, 4, 4), real(2, 2, 4, 3)],
        {"is_causal": 1, "left_window_size": 3}, {"outputs": 3},
    ),
    "attention mask": (
        "Attention", [real(2, 4, 3, 4), real(2, 2, 5, 4), real(2, 2, 5, 4), MASK], {"softcap": 2.0}, {"wrt": [0, 1, 2]},
    ),
    "attention short mask": (
        "Attention", [real(1, 2, 3, 4), real(1, 2, 5, 4), real(1, 2, 5, 4), real(1, 2, 3, 3)],
        {"qk_matmul_output_mode": 3}, {"outputs": 4},
    ),
    "attention lengths": (
        "Attention", [real(3, 2, 2, 4), real(3, 2, 5, 4), real(3, 2, 5, 4), None, None, None, i64(5, 2, 0)],
        {"is_causal": 1, "left_window_size": 2, "qk_matmul_output_mode": 0}, {"outputs": 4},
    ),
}  # fmt: skip
for _mode in ("linear", "nearest", "cubic"):
    for _padding in ("zeros", "border", "reflection"):
        CASES[f"grid sample {_mode} {_padding}"] = (
            "GridSample", [real(2, 3, 5, 4), real(2, 3, 2, 2, low=-1.4, high=1.4)],
            {"mode": _mode, "padding_mode": _padding, "align_corners": len(CASES) % 2},
            {"wrt": [0] if _mode == "nearest" else [0, 1]},
        )  # fmt: skip
CASES["grid sample 3d"] = ("GridSample", [real(1, 2, 3, 4, 3), real(1, 2, 2, 2, 3, low=-1.2, high=1.2)], {})
for _how in ("add", "mul", "min", "max"):
    _at = np.array([[0, 2, 2, 0], [1, 0, 4, 1]])
    _new = real(2, 4, apart=True)
    _new[0, 1] = _new[1, 0] = 0.0  # products with one zero
    CASES[f"scatter elements {_how}"] = (
        "ScatterElements", [real(2, 5, apart=True) + 3e-3, _at, _new], {"axis": 1, "reduction": _how},
    )  # fmt: skip
    _rows = real(4, 3, apart=True)
    if _how == "mul":
        _rows[0] = _rows[2] = 0.0  # and with two
    CASES[f"scatter nd {_how}"] = (
        "ScatterND", [real(4, 3, apart=True) + 3e-3, i64(1, 3, 1, 0).reshape(4, 1), _rows], {"reduction": _how},
    )  # fmt: skip
for _name in ("Sum", "Mean", "L1", "L2", "SumSquare", "Prod", "LogSum", "LogSumExp", "Max", "Min"):
    _low = 0.3 if _name in ("LogSum", "Prod", "L1") else -2.0
    _data = real(3, 4, 5, low=_low, apart=_name in ("Max", "Min"))
    CASES[f"reduce {_name}"] = (f"Reduce{_name}", [_data, i64(0, 2)], {"keepdims": 0}, {"constants": (1,)})
CASES["reduce Prod with zeros"] = (
    "ReduceProd", [real(2, 3, 4) * (np.arange(24).reshape(2, 3, 4) % 5 != 0), i64(0, 2)], {}, {"constants": (1,)},
)  # fmt: skip
CASES["reduce all"] = ("ReduceMean", [real(3, 4)], {})


@pytest.mark.parametrize("name", CASES)
def test_operator(name):
    op, inputs, *rest = CASES[name]
    options = rest[1] if len(rest) > 1 else {}
    check(op, inputs, rest[0] if rest else {}, **options)


@pytest.mark.parametrize(
    ("op", "x", "want"),
    [("ReduceMax", [1.0, 3, 3, 2, 3, 3], [0, 0.25, 0.25, 0, 0.25, 0.25]), ("ReduceMin", [0.0, 0], [0.5, 0.5]),
     ("ReduceL2", [0.0, 0, 0], [0, 0, 0]), ("GlobalMaxPool", [[[1.0, 3, 3]]], [[[0, 0.5, 0.5]]])],
)  # fmt: skip
def test_reductions_that_have_corners(op, x, want):
    """Equal extremes share the gradient, as copies of one number must; a norm has none at zero."""
    x = np.array(x)
    attrs = {"keepdims": 0} if op.startswith("Reduce") else {}
    g = trace(node_model(op, [x], attrs).graph, {"in0": Spec(DType.DOUBLE, x.shape)})
    name = differentiate(g, "out0", ["in0"])["in0"]
    graph = Graph("gradient")
    graph.inputs = [graph.add(Tensor("in0", DType.DOUBLE, x.shape))]
    graph.outputs, graph.nodes = [name], needed_nodes(g.nodes, [name])
    for constant, value in g.constants.items():
        graph.add(Tensor(constant, g.specs[constant].dtype, value.shape, value))
    np.testing.assert_array_equal(interpret(graph, {"in0": x})[0], want)


@pytest.mark.parametrize("op", ["Cast", "CastLike"])
def test_conversions_between_float_types(op):
    """What is linear has the weights of the loss for gradient, in the type of the input."""
    x, weights = real(3, 4).astype(np.float32), real(3, 4)
    inputs = [x] if op == "Cast" else [x, np.zeros(1)]
    attrs = {"to": int(DType.DOUBLE)} if op == "Cast" else {}
    g = trace(node_model(op, inputs, attrs).graph, {f"in{i}": Spec(dtype_of(v), v.shape) for i, v in enumerate(inputs)})
    loss = g.emit("ReduceSum", [g.mul("out0", g.constant(weights))], {"keepdims": 0})
    name = differentiate(g, loss, ["in0"])["in0"]
    assert g.specs[name].dtype == DType.FLOAT
    graph = Graph("gradient")
    graph.outputs, graph.nodes = [name], needed_nodes(g.nodes, [name])
    for constant, value in g.constants.items():
        graph.add(Tensor(constant, g.specs[constant].dtype, value.shape, value))
    np.testing.assert_array_equal(interpret(graph, {})[0], weights.astype(np.float32))


@pytest.mark.parametrize("op", ["Ceil", "Floor", "Round", "Sign"])
def test_what_is_flat_hands_nothing_on(op):
    g = trace(node_model(op, [real(3, 4)]).graph, {"in0": Spec(DType.DOUBLE, (3, 4))})
    assert differentiate(g, g.emit("ReduceSum", ["out0"], {"keepdims": 0}), ["in0"]) == {}


# Operators with a rule that are checked elsewhere or not by differences: RoundThrough, whose rule is not its slope, in
# test_qat.py; If and Upsample are replaced by others while planning; what gives bools and integers only shares a class.
ELSEWHERE = {
    ("", "Cast"), ("", "CastLike"), ("", "Ceil"), ("", "Floor"), ("", "Round"), ("", "Sign"),
    ("evort", "RoundThrough"), ("", "Not"), ("", "BitwiseNot"), ("evort", "QLinearResize"),
}  # fmt: skip


def test_every_rule_is_checked():
    tested = {("", name) for name in UNARY} | ELSEWHERE
    tested |= {((case[3] if len(case) > 3 else {}).get("domain", ""), case[0]) for case in CASES.values()}
    rules = {
        key
        for key, definition in registered().items()
        if (type(definition).gradient, type(definition).lower) != (Op.gradient, Op.lower)
    }
    assert rules <= tested


def test_documents_name_what_has_no_rule():
    """docs/training.md says why each operator of ONNX without a rule has none."""
    text = (ROOT / "docs/training.md").read_text()
    section = text[text.index("## Operators without a gradient") :].split("\n## ")[0]
    without = {
        name
        for (domain, name), definition in registered().items()
        if domain == "" and {type(definition).gradient, type(definition).lower} == {Op.gradient, Op.lower}
        and type(definition).expand is Op.expand
    }  # fmt: skip
    assert set(re.findall("`([A-Z][A-Za-z]*)`", section)) == without
