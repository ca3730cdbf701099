"""Whole chains on random graphs: ONNX -> passes -> `.etm` -> plan -> kernels beside onnxruntime, and quantized beside
float32. EVORT_RANDOM_GRAPHS=5000 tries more of them than a test run has time for."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from random_graphs import RandomGraph
from support import import_onnxruntime

import evort
import evort_tools
from evort.session import Session

COUNT = int(os.environ.get("EVORT_RANDOM_GRAPHS", "200"))
# Of a result's largest number. Both sides round in float32 and add in orders of their own: 21 nodes of sums of up to
# 1,000 products leave about 21 * sqrt(1000) * 2**-24 = 4e-5, and normalizations magnify that a few times.
TOLERANCE = 2e-4
# Of quantized results, dB. 8 bits leave about 45 dB a layer, and some of these graphs have 20 layers of random weights
# behind each other: of 80 the worst had 31 (integers) and 36 (weights alone). What is broken has less than 10. Of
# thousands one may show a few small numbers of a large tensor, and have 16.
LEAST_SQNR = 20
SCHEMES = {"static": {"prefer": "size"}, "dynamic": {"prefer": "size"}, "weight-only": {"bits": 8, "prefer": "size"}}


@pytest.mark.parametrize("first", range(0, COUNT, 25))
def test_float32_beside_onnxruntime(first):
    runtime = import_onnxruntime()
    runtime.set_default_logger_severity(4)
    for seed in range(first, min(first + 25, COUNT)):
        graph = RandomGraph(seed)
        if not graph.outputs:
            continue
        feeds = graph.input()
        want = runtime.InferenceSession(graph.model.SerializeToString()).run(graph.outputs, feeds)
        etm = evort_tools.convert(graph.model)
        for threads in (1, 2):
            got = evort.load(etm, threads=threads).run(feeds)
            for name, y in zip(graph.outputs, want, strict=True):
                finite = np.isfinite(y)
                assert got[name].shape == y.shape, (seed, name)
                assert (np.isfinite(got[name]) == finite).all(), (seed, name)
                error = np.abs(got[name] - y)[finite].max(initial=0)
                assert error <= TOLERANCE * np.abs(y)[finite].max(initial=1e-3), (seed, name, threads)


@pytest.mark.parametrize("scheme", list(SCHEMES))
@pytest.mark.parametrize("first", range(0, COUNT // 4, 10))
def test_quantized_beside_float32(scheme, first):
    for seed in range(first, first + 10):
        graph = RandomGraph(seed)
        if not graph.outputs:
            continue
        data = [graph.input(i) for i in range(2)]
        want = evort.load(evort_tools.convert(graph.model)).run(data[0])
        calib = data if scheme == "static" else None
        result = evort_tools.quantize(graph.model, scheme=scheme, calib=calib, **SCHEMES[scheme])
        got = Session(result.model).run(data[0])
        for name, y in want.items():
            noise = np.square(got[name] - y, dtype=np.float64).sum()
            assert noise <= np.square(y, dtype=np.float64).sum() * 10 ** (-LEAST_SQNR / 10), (seed, name)


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("kind", ["QUInt8", "QInt8"])
def test_quantized_by_onnxruntime(form, kind, tmp_path, caplog):
    """Integers here are within rounding of onnxruntime's: roundings that are left out and ties that go the other way
    are a part of what quantization costs. What is cut off wrongly costs far more."""
    runtime, quantization = import_onnxruntime(), import_onnxruntime("onnxruntime.quantization")
    caplog.set_level("CRITICAL")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self, data):
            self.data = iter(data)

        def get_next(self):
            return next(self.data, None)

    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    path, quantized = str(tmp_path / "random.onnx"), str(tmp_path / "quantized.onnx")
    compared = 0
    for seed in range(COUNT // 4):
        graph = RandomGraph(seed)
        if not graph.outputs:
            continue
        data = [graph.input(i) for i in range(3)]
        onnx.save(graph.model, path)
        real = runtime.InferenceSession(path).run(graph.outputs, data[0])
        try:
            quantization.quantize_static(
                path, quantized, Reader(data), quant_format=quantization.QuantFormat[form],
                activation_type=quantization.QuantType[kind], per_channel=seed % 3 == 0,
            )  # fmt: skip
            want = runtime.InferenceSession(quantized, options).run(graph.outputs, data[0])
        except Exception:  # graphs that its tool or its kernels do not take
            continue
        got = evort.load(evort_tools.convert(quantized)).run(data[0])
        for name, y, exact in zip(graph.outputs, want, real, strict=True):
            size, noise, error = (np.square(v, dtype=np.float64).sum() for v in (y, y - exact, got[name] - y))
            if np.isfinite(size):
                assert error <= max(4 * noise, 1e-4 * size), (seed, name)
                compared += 1
    assert compared > COUNT // 8
