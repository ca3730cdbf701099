"""Losses and signal processing, which run in NumPy: ONNX's cases, defining properties, refusals."""

import numpy as np
import pytest
from onnx_cases import check_node, node_cases
from support import run_node

from evort.errors import ExecutionError, ShapeError
from evort.types import DType

CASES = node_cases(
    "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss HannWindow HammingWindow BlackmanWindow DFT STFT MelWeightMatrix"
)
RNG = np.random.default_rng


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_onnx_cases(case, device):
    check_node(case, device)


@pytest.mark.parametrize("op", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
def test_a_label_that_is_no_class_is_refused(op):
    scores = RNG(0).standard_normal((3, 4)).astype(np.float32)
    for wrong in ([0, 1, 4], [0, -1, 1]):
        with pytest.raises(ExecutionError, match="not one of 4 classes"):
            run_node(op, [scores, np.array(wrong)])
    losses = run_node(op, [scores, np.array([0, -1, 1])], {"ignore_index": -1, "reduction": "none"})[0]
    assert losses[1] == 0 and losses[0] != 0


@pytest.mark.parametrize(
    "labels, weights, attrs, message",
    [
        (np.zeros((3, 1), np.int64), None, {}, "shape of the scores"),
        (np.zeros(3, np.int64), np.ones(3, np.float32), {}, "one for each class"),
        (np.zeros(3, np.int64), None, {"reduction": "max"}, "reduction"),
    ],
)
def test_wrong_losses_are_refused(labels, weights, attrs, message):
    with pytest.raises(ShapeError, match=message):
        run_node("SoftmaxCrossEntropyLoss", [np.ones((3, 4), np.float32), labels, weights], attrs)


def test_cross_entropy_does_not_overflow():
    (loss,) = run_node("SoftmaxCrossEntropyLoss", [np.array([[1e4, 0.0]], np.float32), np.array([1])])
    assert loss == 1e4


@pytest.mark.parametrize("op", ["HannWindow", "HammingWindow", "BlackmanWindow"])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 64])
def test_windows_are_symmetric(op, n):
    (y,) = run_node(op, [np.array(n)], {"periodic": 0})
    assert y.shape == (n,) and y.dtype == np.float32
    np.testing.assert_allclose(y, y[::-1], atol=1e-7)
    (periodic,) = run_node(op, [np.array(n)])
    if n > 1:
        np.testing.assert_allclose(periodic, run_node(op, [np.array(n + 1)], {"periodic": 0})[0][:-1], atol=1e-7)


def test_windows_of_other_types():
    assert run_node("HannWindow", [np.array(8)], {"output_datatype": int(DType.DOUBLE)})[0].dtype == np.float64
    for wrong in (int(DType.STRING), 99):
        with pytest.raises(ShapeError, match="output_datatype"):
            run_node("HannWindow", [np.array(8)], {"output_datatype": wrong})
    with pytest.raises(ShapeError, match="size"):
        run_node("HannWindow", [np.array(-1)])


@pytest.mark.parametrize("axis", [0, 1, -2, -3])
@pytest.mark.parametrize("length", [None, 5, 12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_dft_is_that_of_numpy(axis, length, dtype):
    x = RNG(0).standard_normal((6, 8, 2)).astype(dtype)
    inputs = [x, None if length is None else np.array(length), np.array(axis)]
    at = axis % 3
    z = x[..., 0].astype(np.float64) + 1j * x[..., 1]
    atol = {np.float32: 1e-5, np.float64: 1e-13, np.float16: 2e-2}[dtype]
    for inverse, want in ((0, np.fft.fft(z, length, at)), (1, np.fft.ifft(z, length, at))):
        (y,) = run_node("DFT", inputs, {"inverse": inverse})
        assert y.dtype == dtype
        np.testing.assert_allclose(y, np.stack([want.real, want.imag], -1), atol=atol)


@pytest.mark.parametrize("n", [8, 9])
def test_onesided_dft_and_back(n):
    x = RNG(0).standard_normal((3, n, 1)).astype(np.float32)
    (terms,) = run_node("DFT", [x], {"onesided": 1})
    assert terms.shape == (3, n // 2 + 1, 2)
    (back,) = run_node("DFT", [terms, np.array(n)], {"onesided": 1, "inverse": 1})
    np.testing.assert_allclose(back, x, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 4, 1), (0, 4, 2)])
def test_dft_of_an_empty_batch(shape):
    assert run_node("DFT", [np.zeros(shape, np.float32)])[0].shape == (0, 4, 2)


X = np.ones((2, 8, 2), np.float32)


@pytest.mark.parametrize(
    "op, inputs, attrs, message",
    [
        ("DFT", [X[..., :0]], {}, "last axis"),
        ("DFT", [X, None, np.array(2)], {}, "not to be transformed"),
        ("DFT", [X, None, np.array(-4)], {}, "axis -4"),
        ("DFT", [X, np.array(0)], {}, "dft_length"),
        ("DFT", [X], {"onesided": 1}, "real input"),
        ("DFT", [X[:, :1]], {"onesided": 1, "inverse": 1}, "no elements"),
        ("STFT", [X, np.array(0)], {"onesided": 0}, "frame_step"),
        ("STFT", [X, np.array(2)], {}, "real signals"),
        ("STFT", [X, np.array(2), None, np.array(9)], {"onesided": 0}, "does not fit"),
        ("STFT", [X, np.array(2), np.ones(4, np.float32), np.array(5)], {"onesided": 0}, "length of the window"),
        ("STFT", [X[0], np.array(2)], {}, "signal must have shape"),
    ],
)
def test_wrong_transforms_are_refused(op, inputs, attrs, message):
    with pytest.raises(ShapeError, match=message):
        run_node(op, inputs, attrs)


@pytest.mark.parametrize("onesided", [0, 1])
def test_stft_frame_by_frame(onesided):
    x = RNG(0).standard_normal((2, 50, 1)).astype(np.float32)
    window = RNG(1).uniform(0, 1, 16).astype(np.float32)
    (y,) = run_node("STFT", [x, np.array(7), window], {"onesided": onesided})
    assert y.shape == (2, 5, 9 if onesided else 16, 2)
    for i in range(5):
        want = np.fft.fft(x[:, 7 * i : 7 * i + 16, 0].astype(np.float64) * window)[:, : y.shape[2]]
        np.testing.assert_allclose(y[:, i], np.stack([want.real, want.imag], -1), atol=1e-5)


def mel(*values):
    kinds = [np.int64, np.int64, np.int64, np.float32, np.float32]
    return [np.array(v, k) for v, k in zip(values, kinds, strict=True)]


def test_mel_filters_have_a_peak_of_1():
    (y,) = run_node("MelWeightMatrix", mel(10, 512, 16000, 0.0, 8000.0))
    assert y.shape == (257, 10) and y.dtype == np.float32
    np.testing.assert_array_equal(y.max(0), 1)
    assert y.min() == 0


@pytest.mark.parametrize("low, high", [(-5.0, 100.0), (200.0, 100.0), (0.0, 1e9), (np.nan, 100.0), (0.0, np.inf)])
def test_mel_edges_are_checked(low, high):
    with pytest.raises(ExecutionError, match="edges"):
        run_node("MelWeightMatrix", mel(4, 16, 8000, low, high))
