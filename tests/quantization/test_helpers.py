"""The accuracy helpers: each keeps the float function, and helps where its paper says that it does."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from onnx import helper
from support import ROOT
from tools_support import onnx_model

import evort_tools
from evort.session import Session
from evort.types import DType
from evort_tools.common import silent
from evort_tools.convert import convert_model
from evort_tools.quantization import adaround, bias, equalize, improve, smooth, static
from evort_tools.quantization.compare import expected_outputs, output_errors
from evort_tools.quantization.data import open_calibration
from evort_tools.quantization.encodings import Encoding
from evort_tools.quantization.improve import Helpers
from evort_tools.quantization.qdq import copy_model, fake_quantized
from evort_tools.quantization.static import Settings

node = helper.make_node
OFF = dict.fromkeys(("equalize", "smooth", "int16", "clip", "adaround", "bias"), "off")


def normal(*shape, seed=0):
    return np.random.default_rng(seed + int(np.prod(shape))).normal(size=shape).astype(np.float32)


def unbalanced():
    """Two convolutions and a depthwise one between them, with channels whose weights differ by a factor of 300."""
    factors = np.geomspace(0.05, 16, 8).astype(np.float32)[:, None, None, None]
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["ra"]),
        node("Conv", ["ra", "wd", "bd"], ["d"], group=8, pads=[1, 1, 1, 1]),
        node("Relu", ["d"], ["rd"]),
        node("MaxPool", ["rd"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "w2"], ["y"]),
    ]
    constants = {
        "w1": normal(8, 3, 3, 3) * factors, "b1": normal(8) * factors.reshape(-1) / 4,
        "wd": normal(8, 1, 3, 3) / factors[::-1], "bd": normal(8) / 4,
        "w2": normal(4, 8, 1, 1) / (factors[:, 0] / factors[::-1, 0])[None],
    }  # fmt: skip
    return convert_model(onnx_model(nodes, {"x": (np.float32, ("N", 3, 8, 8))}, ["y"], constants))


def block():
    """A normalization whose output has a few channels that are far larger than the others, read by two products."""
    scale = np.ones(32, np.float32)
    scale[[3, 17]] = 60, 40
    nodes = [
        node("LayerNormalization", ["x", "scale", "shift"], ["n"]),
        node("MatMul", ["n", "wq"], ["q"]),
        node("MatMul", ["n", "wk"], ["k0"]),
        node("Relu", ["k0"], ["k"]),
        node("Mul", ["q", "k"], ["y"]),
    ]
    constants = {"scale": scale, "shift": normal(32), "wq": normal(32, 16), "wk": normal(32, 16, seed=1)}
    return convert_model(onnx_model(nodes, {"x": (np.float32, ("N", 5, 32))}, ["y"], constants))


def sqnr_with(model, data, helpers, **settings):
    calibration = open_calibration(data, model.graph)
    options = Settings(**{"method": "minmax", **settings})
    changed, found, kept = improve.quantize(model, calibration, options, helpers, lambda what, count: lambda: None)
    feeds = open_calibration(data[::-1], model.graph).head(64)
    errors = output_errors(fake_quantized(changed, found.encodings), feeds, expected_outputs(model, feeds))
    return next(iter(errors.values())).sqnr, kept


@pytest.mark.parametrize("make", [unbalanced, block])
def test_float_results_stay(make):
    """Factors that differ from powers of two round each weight once more: some float32 steps of the largest sums."""
    model = make()
    data = normal(6, 3, 8, 8) if make is unbalanced else normal(6, 5, 32)
    before = Session(model).run({"x": data})["y"]
    changed = copy_model(model)
    if make is unbalanced:
        assert equalize.equalize(changed.graph) == 2
        for first, second in equalize.pairs(changed.graph):
            np.testing.assert_allclose(first.ranges(), second.ranges(), rtol=0.05)
    else:
        assert smooth.smooth(changed, ({"x": data},)) == 1
    after = Session(changed).run({"x": data})["y"]
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max(), rtol=0)


def test_equalization_saves_weights_with_one_scale():
    """Nagel et al. 2019, table 1: with one scale for all of a layer's weights, unbalanced channels are lost without."""
    data = normal(16, 3, 8, 8)
    plain, _ = sqnr_with(unbalanced(), data, Helpers(**OFF), per_channel=False)
    better, kept = sqnr_with(unbalanced(), data, Helpers(**{**OFF, "equalize": "auto"}), per_channel=False)
    assert better > plain + 6 and list(kept) == ["equalize"]


def test_smoothing_saves_activations_with_outlier_channels():
    """Xiao et al. 2022: outliers in fixed channels of what a normalization writes."""
    data = normal(16, 5, 32)
    plain, _ = sqnr_with(block(), data, Helpers(**OFF))
    better, _ = sqnr_with(block(), data, Helpers(**{**OFF, "smooth": "on"}))
    assert better > plain + 6
    same, _ = sqnr_with(block(), data, Helpers(**{**OFF, "smooth": "on"}, smooth_alpha=0.0))
    assert same < better
    with pytest.raises(ValueError, match="alpha"):
        smooth.smooth(block(), (), 1.5)


def outliers(wide=False):
    """A product whose output has channels that are 60 times the others, and a small one that does without those; wide
    makes the small one the larger of the two."""
    big = np.ones(64, np.float32)
    big[::16] = 60
    many = 512 if wide else 8
    nodes = [node("MatMul", ["x", "w1"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "w2"], ["y"])]
    constants = {"w1": normal(64, 64) / 8 * big, "w2": normal(64, many) * (big == 1)[:, None]}
    return convert_model(onnx_model(nodes, {"x": (np.float32, ("N", 64))}, ["y"], constants))


def test_16_bits_save_activations_that_8_cannot_hold():
    data = normal(32, 64)
    plain, _ = sqnr_with(outliers(), data, Helpers(**OFF))
    better, kept = sqnr_with(outliers(), data, Helpers(**{**OFF, "int16": "auto"}))
    assert plain < 15 and better > plain + 15 and list(kept) == ["int16"]
    # Not where int16 would be most of the work, and not where 8 bits are enough.
    assert not sqnr_with(outliers(wide=True), data, Helpers(**{**OFF, "int16": "auto"}))[1]
    easy = convert_model(onnx_model([node("MatMul", ["x", "w"], ["y"])], {"x": (np.float32, ("N", 64))}, ["y"],
                                    {"w": normal(64, 8)}))  # fmt: skip
    assert not sqnr_with(easy, np.sign(data) + 0.01 * data, Helpers(**{**OFF, "int16": "auto"}))[1]


def test_16_bits_run_in_integers():
    data = normal(32, 64)
    result = evort_tools.quantize(outliers(), calib=data, method="minmax", prefer="size", equalize="off", verify=False)
    assert "int16" in result.helpers and result.encodings["r"].dtype == DType.INT16
    assert [n.op for n in result.model.graph.nodes] == ["QLinearMatMul", "QLinearMatMul"]
    got, want = (Session(m).run({"x": data})["y"] for m in (result.model, outliers()))
    assert np.square(got - want).mean() < 1e-3 * np.square(want).mean()


def test_a_scale_for_each_channel_of_activations():
    """As SmoothQuant with alpha 1: all channels of a tensor get one range."""
    data = normal(16, 5, 32)
    options = {"method": "minmax", "prefer": "size", "equalize": "off", "adaround": "off", "bias_correction": "off",
               "wide_activations": "off"}  # fmt: skip
    plain, channels = (
        evort_tools.quantize(block(), calib=data, per_channel_activations=on, **options) for on in (False, True)
    )
    assert channels.sqnr["y"] > plain.sqnr["y"] + 1 and "smooth" in channels.helpers


def test_a_scale_for_each_channel_of_activations_is_no_worse_on_other_samples():
    """A channel's range has been seen less often than that of all together: each has room for what comes."""
    digits = np.load(ROOT / "models" / "mnist_500.npz")["images"][:, None].astype(np.float32) / 255
    model = convert_model(ROOT / "models" / "lenet.onnx")
    options = {"method": "minmax", "prefer": "size", "verify": False, "adaround": "off", "bias_correction": "off"}
    lost = []
    for channels in (False, True):
        made = evort_tools.quantize(model, calib=digits[:100], per_channel_activations=channels, **options).model
        samples = [{"image": x[None]} for x in digits[100:]]
        errors = output_errors(made, samples, expected_outputs(model, samples))
        lost.append(errors["logits"].sqnr)
    # 1 dB is what changed ranges make by chance; with ranges of no more than was seen it is 10 dB less.
    assert lost[1] > lost[0] - 1


def test_magnitudes_leave_room_by_how_often_a_channel_was_seen():
    seen = smooth.Magnitudes(-1)
    x = np.zeros((100, 4), np.float32)
    x[:, 0] = 8  # the furthest of all
    x[:, 1] = -1  # in each row
    x[7, 2] = 1  # once
    seen.observe(x)
    assert list(seen.times) == [100, 100, 1, 0]
    # log(4 * 100) / log(100) times; as far as any where next to nothing is known.
    np.testing.assert_allclose(seen.reach(), [8, 1.3010, 8, 8], atol=1e-3)
    images = smooth.Magnitudes(1)
    images.observe(np.ones((3, 2, 5, 5), np.float32))
    assert list(images.times) == [3, 3]


def positive(seed=0):
    """A product of positive inputs, as behind a ReLU: the errors of a channel's weights add up with one sign."""
    w = normal(12, 200, seed=seed) / 14
    w[:, 0] = 3  # an outlier in each channel makes the steps large
    nodes = [node("Gemm", ["x", "w", "b"], ["y"], transB=1)]
    model = convert_model(onnx_model(nodes, {"x": (np.float32, ("N", 200))}, ["y"], {"w": w, "b": normal(12)}))
    rng = np.random.default_rng(seed)
    shared = rng.random((40, 1)) * 3
    return model, (np.maximum(rng.normal(size=(40, 200)) * 0.3 + shared, 0)).astype(np.float32)


def test_bias_correction_takes_the_mean_error_away():
    model, data = positive()
    samples = [{"x": x[None]} for x in data]
    encodings = {"w": Encoding.of_weights(model.graph.constant("w"), 0)}
    expected = Session(model).run({"x": data})["y"]
    changed = copy_model(model)
    bias.add_to_biases(changed.graph, bias.corrections(model, model.graph.nodes, encodings, samples))
    before, after = (Session(fake_quantized(m, encodings)).run({"x": data})["y"] - expected for m in (model, changed))
    # Float32 rounding of sums of 200 products of about 3 is left.
    assert np.abs(after.mean(axis=0)).max() < 1e-4 < 0.02 * np.abs(before.mean(axis=0)).max()
    assert (after**2).mean() < 0.6 * (before**2).mean()


def test_bias_correction_takes_away_what_adaround_has_left():
    model, data = positive()
    few = data[:3]  # too few to be halved: learnt from and judged by the same
    settings, means = Settings(activations="int16"), []
    for switch in ("off", "on"):
        helpers = Helpers(**{**OFF, "adaround": "on", "bias": switch})
        made, found, kept = improve.quantize(model, open_calibration(few, model.graph), settings, helpers, silent)
        assert list(kept) == ["adaround", "bias"][: 1 + (switch == "on")]
        rounded = fake_quantized(made, {"w": found.encodings["w"]})
        error = Session(rounded).run({"x": few})["y"] - Session(model).run({"x": few})["y"]
        means.append(np.abs(error.mean(axis=0)).max())
    # Float32 rounding of sums of 200 products of about 3 is left.
    assert means[1] < 1e-4 < means[0]


def test_bias_correction_gives_products_a_bias_and_counts_padding():
    nodes = [node("Conv", ["x", "w"], ["h"], pads=[2, 2, 2, 2]), node("Relu", ["h"], ["y"])]
    model = convert_model(onnx_model(nodes, {"x": (np.float32, ("N", 4, 6, 6))}, ["y"], {"w": normal(5, 4, 5, 5)}))
    data = np.abs(normal(8, 4, 6, 6))
    encodings = {"w": Encoding.of_range(-3, 3, static.DType.INT4, True)}
    changed = copy_model(model)
    found = bias.corrections(model, model.graph.nodes, encodings, [{"x": x[None]} for x in data])
    bias.add_to_biases(changed.graph, found)
    conv = changed.graph.nodes[0]
    conv.attrs = {k: v for k, v in conv.attrs.items() if not k.startswith("activation")}
    plain = copy_model(model)
    plain.graph.nodes[0].attrs = dict(conv.attrs)
    error = Session(fake_quantized(changed, encodings)).run({"x": data})["y"] - Session(plain).run({"x": data})["y"]
    np.testing.assert_allclose(error.mean(axis=(0, 2, 3)), 0, atol=1e-4)


@pytest.mark.parametrize("shape", [(8,), (1, 8), (4, 8), (4, 1), (1,)])
def test_biases_of_any_shape_are_corrected(shape):
    nodes = [node("Gemm", ["x", "w", "b"], ["h"]), node("Relu", ["h"], ["r"]), node("Gemm", ["r", "v"], ["y"])]
    constants = {"w": normal(16, 8), "v": normal(8, 5), "b": normal(*shape)}
    model = convert_model(onnx_model(nodes, {"x": (np.float32, (4, 16))}, ["y"], constants))
    change = np.arange(8) / 7
    changed = copy_model(model)
    bias.add_to_biases(changed.graph, {changed.graph.nodes[0].outputs[0]: change})
    x = normal(4, 16)
    wanted = np.maximum(x @ constants["w"] + constants["b"] + change, 0) @ constants["v"]
    np.testing.assert_allclose(Session(changed).run({"x": x})["y"], wanted, atol=1e-4)
    result = evort_tools.quantize(model, calib=normal(80, 16), prefer="size", bias_correction="on")
    assert result.sqnr["y"] > 25


def test_adaround_is_better_than_nearest_and_near_the_best():
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(size=(300, 9)) + 1, 0)
    h = x.T @ x
    rows = rng.normal(size=(20, 9))
    scale = np.abs(rows).max(axis=1) / 7
    q = adaround.round_rows(rows, scale, h, static.DType.INT4)
    nearest = np.clip(np.rint(rows / scale[:, None]), -7, 7)
    assert np.abs(q - rows / scale[:, None]).max() <= 1 + 1e-9 and np.abs(q).max() <= 7
    found = adaround.error_of(q, rows, scale, h)
    assert found < 0.5 * adaround.error_of(nearest, rows, scale, h)
    # All 2^9 roundings of each row.
    best = 0.0
    for row, s in zip(rows, scale, strict=True):
        low = np.floor(row / s)
        choices = np.clip(low + np.array(list(product((0, 1), repeat=9))), -7, 7)
        e = choices * s - row
        best += float(((e @ h) * e).sum(axis=1).min())
    # Descent by single weights ends in a local minimum.
    assert found <= 2 * best


def test_adaround_lowers_the_error_of_the_outputs():
    model, data = positive()
    plain, _ = sqnr_with(model, data, Helpers(**OFF), activations="int16")
    better, kept = sqnr_with(model, data, Helpers(**{**OFF, "adaround": "auto"}), activations="int16")
    assert better > plain + 3 and list(kept) == ["adaround"]


def test_clipping_outliers_lowers_the_error_of_weights():
    """Banner et al., "Post training 4-bit quantization of convolutional networks" (2019), table 1: of numbers with a
    Laplace distribution of scale b, 8 bits represent those up to 9.89 b with the least squared error."""
    w = np.random.default_rng(0).laplace(size=(100, 5000)).astype(np.float32)
    model = convert_model(
        onnx_model([node("Gemm", ["x", "w"], ["y"])], {"x": (np.float32, ("N", 100))}, ["y"], {"w": w})
    )
    data = normal(4, 100)
    found = static.calibrate(model, open_calibration(data, model.graph), Settings(method="minmax", per_channel=False))
    clipped = improve.clipped(model, found).encodings["w"]
    # Shrunk in steps of 1 % of the largest magnitude (13.3), on a finite sample; the minimum is flat.
    assert clipped.range[1] == pytest.approx(9.89, rel=0.05)
    error = [np.square(e.fake(w) - w).sum() for e in (found.encodings["w"], clipped)]
    assert error[1] < 0.75 * error[0]


def test_auto_keeps_only_what_helps():
    digits = np.load(ROOT / "models" / "mnist_500.npz")["images"][:60, None].astype(np.float32) / 255
    model = convert_model(ROOT / "models" / "lenet.onnx")
    plain, _ = sqnr_with(model, digits, Helpers(**OFF))
    better, kept = sqnr_with(model, digits, Helpers())
    assert better > plain and "adaround" in kept and list(kept.values()) == sorted(kept.values(), reverse=True)
