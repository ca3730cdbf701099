"""Weights of a reduced range: sums that fit 16 bits, at the least error, and a model that says what it cost."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from tools_support import onnx_model

import evort_tools
from evort._kernels import core
from evort.session import Session
from evort_tools.convert import convert_model
from evort_tools.passes.integer_products import fits
from evort_tools.quantization import improve, placement, reduced, static
from evort_tools.quantization.data import open_calibration
from evort_tools.quantization.latency import Profile

node = helper.make_node
OFF = dict.fromkeys(("equalize", "adaround", "wide_activations"), "off")


def silent(what, count):
    return lambda: None


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 40), st.sampled_from([1, 2]), st.integers(10, 140), st.integers(0, 2**32 - 1))
def test_sums_stay_within(k, presum, spread, seed):
    real = np.random.default_rng(seed).normal(0, spread, (5, k)).astype(np.float32)
    q = reduced.within(real, presum)
    assert (q == np.rint(q)).all()
    assert np.abs(q).max() <= 127
    assert fits(q.astype(np.int8), presum)


@pytest.mark.parametrize("seed", range(6))
def test_the_nearest_within_is_taken(seed):
    """A group's pair, beside all pairs of integers."""
    real = np.random.default_rng(seed).uniform(-127, 127, 4).astype(np.float32)
    q = reduced.within(real[None], 1)[0]
    every = np.arange(-127, 128)
    for lane in (0, 2):
        x, y = real[lane : lane + 2]
        best = min(
            float((a - x) ** 2 + (b - y) ** 2)
            for a, b in product(every, every)
            if max(a, 0) + max(b, 0) <= 128 and min(a, 0) + min(b, 0) >= -128
        )
        got = float(((q[lane : lane + 2] - real[lane : lane + 2]) ** 2).sum())
        assert got == pytest.approx(best, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("presum", [1, 2])
def test_it_loses_less_than_seven_or_six_bits(presum):
    rows = np.random.default_rng(0).standard_t(5, (16, 256)).astype(np.float32)
    scale = np.abs(rows).max(axis=1) / np.float32(127)
    q, grown = reduced.fit_rows(rows, scale, presum)
    few = scale * np.float32(127 * presum / 64)
    error, plain = (
        np.square(i * s[:, None] - rows).sum() for i, s in ((q, grown), (np.rint(rows / few[:, None]), few))
    )
    assert fits(q.astype(np.int8), presum)
    assert error < 0.75 * plain


def network(rng):
    """A convolution, a pointwise one behind it, and a product; weights as trained ones are, with outliers."""
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["a"], ["ra"]),
        node("Conv", ["ra", "w2"], ["c"]),
        node("Relu", ["c"], ["rc"]),
        node("GlobalAveragePool", ["rc"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("MatMul", ["f", "w3"], ["y"]),
    ]
    constants = {
        name: (rng.standard_t(4, shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for name, shape in (("w1", (24, 8, 3, 3)), ("w2", (40, 24, 1, 1)), ("w3", (40, 16)))
    }
    constants["b1"] = rng.normal(size=24).astype(np.float32)
    model = convert_model(onnx_model(nodes, {"x": (np.float32, (1, 8, 14, 14))}, ["y"], constants))
    return model, [{"x": np.abs(rng.normal(size=(1, 8, 14, 14))).astype(np.float32)} for _ in range(12)]


def presums(model):
    return [n.attrs.get("presum", 0) for n in model.graph.nodes if n.op in ("QLinearConv", "QLinearMatMul")]


def test_on_reduces_all_and_every_instruction_set_agrees():
    model, samples = network(np.random.default_rng(3))
    whole, small = (
        evort_tools.quantize(model, calib=samples, prefer="size", reduce_range=how, **OFF) for how in ("off", "on")
    )
    assert max(presums(whole.model)) == 0
    assert min(presums(small.model)) == 2
    assert any("reduced range" in note for note in small.notes)
    assert not any("reduced range" in note for note in whole.notes)
    assert small.sqnr["y"] > whole.sqnr["y"] - 6
    results = []
    for isa in core.available_isas():
        core.select_isa(isa)
        try:
            results.append(Session(small.model).run(samples[0])["y"])
        finally:
            core.select_isa()
    for got in results[1:]:
        np.testing.assert_array_equal(got, results[0])


def test_layers_give_up_until_the_loss_is_small():
    """Of layers that save time, those that lose much for it keep the whole range."""
    model, samples = network(np.random.default_rng(5))
    data = open_calibration(samples, model.graph)
    found = static.calibrate(model, data, static.Settings(method="minmax"))
    trial = improve.Trial(model, data, 1)
    before = trial.ratio(model, found.encodings)
    saved = {n.outputs[0]: 1.0 for n in found.selection.nodes if n.op in ("Conv", "MatMul")}
    changed, some = reduced.choose(model, model, found, saved, trial, 1, silent)
    _, every = reduced.choose(model, model, found, None, trial, 1, silent)
    assert trial.ratio(changed, some.encodings) <= reduced.LOSS * before
    assert set(every.reduced.values()) == {2} and len(every.reduced) == 3
    assert set(some.reduced) <= set(saved)
    _, none = reduced.choose(model, model, found, {}, trial, 1, silent)
    assert none.reduced == {} and none.notes == []


def test_what_keeps_its_range_is_timed_with_it():
    """A layer that is faster than float with a reduced range alone goes to float where that would lose too much."""
    model, samples = network(np.random.default_rng(7))
    found = static.calibrate(model, open_calibration(samples, model.graph), static.Settings(method="minmax"))
    times = {n.outputs[0]: {"float32": 10.0, "int8": 5.0, placement.WHOLE: 5.0} for n in model.graph.nodes}
    layer = next(n.outputs[0] for n in model.graph.nodes if n.op == "MatMul")
    times[layer][placement.WHOLE] = 40.0
    costs = placement.Costs(found.selection, Profile(times, {}, {}, {}))
    assert placement.saved_by_reducing(costs, ()) == {layer: 35.0}
    assert placement.saved_by_reducing(costs, (layer,)) == {}
    assert layer in placement.slower_unreduced(costs, {}, [layer])
