"""Which samples a quantization is tried on, and which ones measure the result."""

from __future__ import annotations

import numpy as np
import pytest

import evort_tools
from evort.graph import Graph, Model, Node, Tensor
from evort.types import DType
from evort_tools.quantization import improve, trials
from evort_tools.quantization.data import open_calibration
from evort_tools.quantization.encodings import Encoding

UNSURE = (5, 12, 30, 41)  # samples of which the classifier below is not sure


def classifier() -> Model:
    """Softmax(x W), of two classes."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(64, 2)).astype(np.float32)
    g = Graph("classifier")
    g.add(Tensor("x", DType.FLOAT, (1, 64)))
    g.add(Tensor("w", DType.FLOAT, w.shape, w))
    g.nodes = [Node("MatMul", ["x", "w"], ["logits"], name="dense"), Node("Softmax", ["logits"], ["y"])]
    g.inputs, g.outputs = ["x"], ["y"]
    return Model(g, {"": 22})


def inputs() -> np.ndarray:
    """Samples that lie far to one side, but for those that the classifier is not sure of."""
    rng = np.random.default_rng(1)
    w = classifier().graph.constant("w")
    way = (w[:, 0] - w[:, 1]) / np.linalg.norm(w[:, 0] - w[:, 1])
    x = rng.normal(size=(48, 64))
    x -= (x @ way)[:, None] * way
    x += rng.choice([-6, 6], (48, 1)) * way
    x[list(UNSURE)] -= (x[list(UNSURE)] @ way - 0.05)[:, None] * way
    return x.astype(np.float32)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(trials, "trial_count", lambda model, data: 4)


def test_the_samples_that_tell_most_come_first(few):
    model, data = classifier(), open_calibration(inputs(), classifier().graph)
    trials.rank(model, data, [{"x": Encoding.of_range(-8, 8, DType.UINT8)}])
    judges, fitting = improve.halves(data, 4)
    x = inputs()

    def places(samples):
        return {int(np.flatnonzero((x == s["x"]).all(1))[0]) for s in samples}

    assert set(UNSURE) <= places(judges) | places(fitting) and len(judges) == len(fitting) == 4
    # Half of them are spread over all, and weights are fitted to none that is judged by.
    assert all(place % 2 == 0 for place in places(judges)) and all(place % 2 for place in places(fitting))
    assert not places(judges) & places(improve.Fitting(data))
    assert len(places(judges) | places(fitting)) == 8


def test_of_many_samples_some_measure_the_result_only():
    options = {"prefer": "size", "method": "minmax"}
    result = evort_tools.quantize(classifier(), calib=inputs(), **options)
    (held, few), (seen, most) = result.measured.items()
    assert ("held out" in held, few["samples"], "calibration" in seen, most["samples"]) == (True, 6, True, 42)
    assert result.sqnr["y"] == min(few["sqnr_db"]["y"], most["sqnr_db"]["y"])  # the figure that flatters least
    assert most["worst_db"]["y"] <= most["sqnr_db"]["y"]
    x = inputs()
    x[7::8] *= 3  # those that are held out: the ranges do not know of them
    assert evort_tools.quantize(classifier(), calib=x, **options).encodings["x"].range == result.encodings["x"].range
    for calib, more in ((inputs(), {"hold_out": 0}), (inputs()[:31], {})):
        result = evort_tools.quantize(classifier(), calib=calib, **options, **more)
        assert {kind: m["samples"] for kind, m in result.measured.items()} == {"calibration samples": len(calib)}
    # Without calibration all samples are strangers.
    result = evort_tools.quantize(classifier(), calib=inputs(), scheme="dynamic", prefer="size")
    assert {kind: m["samples"] for kind, m in result.measured.items()} == {"samples": 48}


def test_a_classifier_is_judged_by_what_its_softmax_reads():
    """Where it is sure its output is 0 or 1 with much noise, too: there another quantization looks as good."""
    model = classifier()
    x = np.delete(inputs(), UNSURE, axis=0)
    samples = [{"x": row[None]} for row in x]
    judge = trials.Judge(model, samples, 1)
    fine, coarse = ({"x": Encoding.of_range(-reach, reach, DType.INT8, True)} for reach in (8, 60))
    assert judge.of_outputs(model, coarse) < 1e-4
    logits = x @ model.graph.constant("w")
    rounded = coarse["x"].fake(x) @ model.graph.constant("w")
    assert judge.ratio(model, coarse) == pytest.approx(np.sum((rounded - logits) ** 2) / np.sum(logits**2), rel=1e-3)
    assert judge.ratio(model, fine) < 0.1 * judge.ratio(model, coarse)
    model.graph.outputs = ["logits", "y"]
    assert trials.Judge(model, samples, 1).ratio(model, coarse) == pytest.approx(judge.ratio(classifier(), coarse))
