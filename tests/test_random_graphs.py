"""Whole chains on random graphs: ONNX -> passes -> `.etm` -> plan -> kernels beside onnxruntime, and quantized beside
float32. EVORT_RANDOM_GRAPHS=5000 tries more of them than a test run has time for."""

from __future__ import annotations

import os

import numpy as np
import pytest
from random_graphs import RandomGraph

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
SCHEMES = {"static": {"prefer": "size"}, "dynamic": {"prefer": "size"}, "weight-only": {"bits": 8}}


@pytest.mark.parametrize("first", range(0, COUNT, 25))
def test_float32_beside_onnxruntime(first):
    runtime = pytest.importorskip("onnxruntime")
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
