"""Weight-only schemes on models: what is stored, what it costs, and that GPTQ does better than rounding to nearest."""

import numpy as np
import pytest
from support import ROOT, drivers_of, make_model

from evort.graph import Model, Node
from evort.session import Session
from evort.types import DType
from evort_tools.quantization.gptq import GptqOptions, gptq, quantize_rows
from evort_tools.quantization.weights import WeightOptions, group_scales, round_to_nearest, snr, weight_only

rng = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def network() -> Model:
    """An embedding, a convolution with a group, products in both orientations, and a layer that is too small."""
    nodes = [
        Node("Gather", ["table", "ids"], ["e"], name="embed"),
        Node("MatMul", ["e", "w1"], ["h"], {"activation": "Relu"}, name="up"),
        Node("Gemm", ["h", "w2", "b2"], ["g"], {"transB": 1}, name="down"),
        Node("Reshape", ["g", "shape"], ["i"]),
        Node("Conv", ["i", "w3", "b3"], ["c"], {"pads": [1, 1, 1, 1], "group": 2}, name="conv"),
        Node("Conv", ["c", "w4"], ["y"], {"group": 8}, name="depthwise"),
    ]
    constants = {
        "table": normal(50, 64), "w1": normal(64, 96), "w2": normal(64, 96), "b2": normal(64),
        "shape": np.array([-1, 8, 8, 8]),
        "w3": normal(8, 4, 3, 3), "b3": normal(8), "w4": normal(8, 1, 3, 3),
    }  # fmt: skip
    return make_model(nodes, {"ids": (DType.INT64, (16,))}, ["y"], constants)


def size(model: Model) -> int:
    return sum(t.data.nbytes for t in model.graph.tensors.values() if t.data is not None)


def run(model: Model, **feeds: np.ndarray) -> np.ndarray:
    return Session(model).run(feeds)["y"]


def samples(count: int) -> list[dict[str, np.ndarray]]:
    return [{"ids": rng.integers(0, 50, 16)} for _ in range(count)]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_round_to_nearest(bits, symmetric):
    model = network()
    before = {name: t.data for name, t in model.graph.tensors.items()}
    report: list[dict[str, object]] = []
    small = weight_only(model, WeightOptions(bits, 32, symmetric), report)
    assert [n.op for n in small.graph.nodes] == [
        "GatherBlockQuantized",
        "MatMulNBits",
        "MatMulNBits",
        "Reshape",
        "ConvNBits",
        "Conv",
    ]
    assert [row["name"] for row in report] == ["embed", "up", "down", "conv"]
    assert {name: t.data for name, t in model.graph.tensors.items()} == before  # the model that was given is as it was
    assert "w1" not in small.graph.tensors
    feeds = samples(1)[0]
    # The weights' noise adds up over four layers; a bit is worth 6 dB. For 8 bits float16 scales are not in the way.
    least = {2: -3, 3: 5, 4: 12, 8: 35}[bits]
    assert snr(run(model, **feeds), run(small, **feeds)) > least
    assert "numpy" not in drivers_of(Session(small, shapes={"ids": (16,)}))
    taken = {2: 0.16, 3: 0.21, 4: 0.25, 8: 0.4}[bits]
    assert size(small) < taken * size(model)


def test_rounding_is_to_the_nearest_number():
    w = normal(7, 100)
    for symmetric in (True, False):
        packed = round_to_nearest(w, WeightOptions(4, 16, symmetric, search=False, half_scales=False))
        step = np.repeat(np.abs(packed.scales), 16, axis=1)[:, :100]
        assert np.all(np.abs(packed.floats() - w) <= step * (0.5 if not symmetric else 1.0) + 1e-6)
        assert packed.q.max() <= 15
    assert not round_to_nearest(np.zeros((3, 40), np.float32), WeightOptions(4)).floats().any()


def test_clipping_lowers_the_error():
    w = rng.standard_t(3, (64, 32)).astype(np.float32)  # long tails
    for symmetric in (True, False):
        errors = []
        for search in (False, True):
            packed = round_to_nearest(w, WeightOptions(3, 32, symmetric, search))
            errors.append(((packed.floats() - w) ** 2).sum(axis=1))
        assert np.all(errors[1] <= errors[0] * 1.0001)  # every group, up to the order of sums
        assert errors[1].sum() < 0.93 * errors[0].sum()


def test_scales_of_half_precision_are_those_rounded_with():
    scale, _ = group_scales(normal(5, 3, 32) * 1e-3, 4, True)
    np.testing.assert_array_equal(scale, scale.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("kind", [DType.FLOAT16, DType.BFLOAT16])
def test_16_bits(kind):
    model = network()
    small = weight_only(model, WeightOptions(16, kind=kind))
    assert [n.op for n in small.graph.nodes] == [n.op for n in model.graph.nodes]
    assert size(small) < 0.52 * size(model)
    feeds = samples(1)[0]
    assert snr(run(model, **feeds), run(small, **feeds)) > (60 if kind == DType.FLOAT16 else 42)
    assert "numpy" not in drivers_of(Session(small, shapes={"ids": (16,)}))


def test_float16_gives_way_to_bfloat16_where_it_would_overflow():
    model = make_model(
        [Node("MatMul", ["x", "w"], ["y"])], {"x": (DType.FLOAT, (2, 3))}, ["y"], {"w": normal(3, 4) * 1e6}
    )
    small = weight_only(model, WeightOptions(16))
    assert small.graph.tensors["w:bf16"].dtype == DType.BFLOAT16
    assert np.isfinite(run(small, x=normal(2, 3))).all()


@pytest.mark.parametrize("factor", [1e-30, 1e-8, 1e10])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_weights_of_any_size(factor, bits):
    """Where float16 has too few bits of scales, or of weights, there is another type."""
    w, x = normal(64, 32), normal(5, 64)
    model = make_model(
        [Node("MatMul", ["x", "w"], ["y"])], {"x": (DType.FLOAT, (5, 64))}, ["y"], {"w": w * np.float32(factor)}
    )
    # Half a step of 2^bits and of bfloat16's 2^8 in twice the largest weight leave as much at least.
    assert snr(x @ w, run(weight_only(model, WeightOptions(bits)), x=x) / factor) > {4: 18, 8: 40, 16: 42}[bits]
    packed = quantize_rows(w.T * np.float32(factor), x.T @ x, WeightOptions(4), GptqOptions())
    assert snr(w.T, packed.floats() / factor) > 15


def correlated(n: int, k: int) -> np.ndarray:
    """Inputs as layers have them: few directions carry most."""
    return (rng.standard_normal((n, k)) * np.geomspace(1, 0.02, k)) @ np.linalg.qr(rng.standard_normal((k, k)))[0]


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("k", [128, 150])
def test_gptq_beats_rounding_to_nearest(act_order, symmetric, k):
    x, w = correlated(600, k), normal(48, k)
    options = WeightOptions(3, 32, symmetric)
    ours = quantize_rows(w, x.T @ x, options, GptqOptions(act_order=act_order)).floats()
    plain = round_to_nearest(w, options).floats()
    error = [float((((f - w) @ x.T) ** 2).sum()) for f in (ours, plain)]
    assert error[0] < 0.6 * error[1]


def test_gptq_without_data_or_with_inputs_that_are_zero():
    w = normal(9, 64)
    options = WeightOptions(4, 32)
    np.testing.assert_array_equal(
        quantize_rows(w, np.zeros((64, 64)), options, GptqOptions()).floats(), round_to_nearest(w, options).floats()
    )
    x = normal(100, 64)
    x[:, 10:40] = 0
    assert np.isfinite(quantize_rows(w, x.T @ x, options, GptqOptions()).floats()).all()


def test_gptq_on_a_model():
    model, data = network(), samples(12)
    options = WeightOptions(3, 32)
    report: list[dict[str, object]] = []
    ours, plain = gptq(model, data, options, report=report), weight_only(model, options)
    assert [n.op for n in ours.graph.nodes] == [n.op for n in plain.graph.nodes]
    assert sorted(row["name"] for row in report) == ["conv", "down", "embed", "up"]
    found = [[snr(run(model, **f), run(m, **f)) for f in samples(6)] for m in (ours, plain)]
    assert np.mean(found[0]) > np.mean(found[1]) + 0.5


def test_skips_and_refuses():
    model = network()
    kept = weight_only(model, WeightOptions(4, 32, skip=lambda name: name in ("up", "conv")))
    assert [n.op for n in kept.graph.nodes] == [
        "GatherBlockQuantized",
        "MatMul",
        "MatMulNBits",
        "Reshape",
        "Conv",
        "Conv",
    ]
    for bad in ({"bits": 5}, {"block": 24}, {"block": 8}, {"bits": 16, "kind": DType.INT8}):
        with pytest.raises(ValueError):
            WeightOptions(**bad)
    model.graph.tensors["w1"].data[3, 4] = np.nan
    with pytest.raises(ValueError, match="up"):
        weight_only(model, WeightOptions(4))
    with pytest.raises(ValueError):
        gptq(network(), [], WeightOptions(16))


def test_a_shared_table_is_stored_once():
    """An embedding that is also the last layer's matrix."""
    nodes = [Node("Gather", ["table", "ids"], ["e"]), Node("Gemm", ["e", "table"], ["y"], {"transB": 1})]
    model = make_model(nodes, {"ids": (DType.INT64, (3,))}, ["y"], {"table": normal(40, 64)})
    small = weight_only(model, WeightOptions(8, 64))
    ids = np.array([0, 39, 7])
    assert snr(run(model, ids=ids), run(small, ids=ids)) > 35


def test_a_small_embedding_has_8_bits():
    """It costs next to nothing, and what it loses goes through the whole model."""
    nodes = [Node("Gather", ["table", "ids"], ["e"], name="embed"), Node("MatMul", ["e", "w"], ["y"], name="up")]
    for rows, bits in ((20, 8), (200, 4)):
        model = make_model(
            nodes, {"ids": (DType.INT64, (16,))}, ["y"], {"table": normal(rows, 64), "w": normal(64, 256)}
        )
        for data in (None, [{"ids": rng.integers(0, 20, 16)}]):
            report: list[dict[str, object]] = []
            options = WeightOptions(4, 32)
            weight_only(model, options, report) if data is None else gptq(model, data, options, report=report)
            assert {row["name"]: row["bits"] for row in report} == {"embed": bits, "up": 4}
    nodes[1] = Node("Gemm", ["e", "table"], ["y"], {"transB": 1}, name="up")  # the same constant has one form
    model = make_model(nodes, {"ids": (DType.INT64, (16,))}, ["y"], {"table": normal(200, 64)})
    weight_only(model, WeightOptions(4, 32), report := [])
    assert {row["bits"] for row in report} == {4}


def test_lenet(tmp_path):
    """The shipped network: the file, and what it says of digits."""
    from evort.etm import write
    from evort_tools.convert import convert_model

    model = convert_model(ROOT / "models" / "lenet.onnx")
    with np.load(ROOT / "models" / "mnist_500.npz") as file:
        images, labels = file["images"].astype(np.float32)[:, None] / 255, file["labels"]
    data = [{"image": images[i : i + 20]} for i in range(0, 60, 20)]
    found = {
        "float": model,
        "int8": weight_only(model, WeightOptions(8, 64)),
        "int4": weight_only(model, WeightOptions(4)),
        "gptq4": gptq(model, data, WeightOptions(4)),
        "half": weight_only(model, WeightOptions(16)),
    }
    size, right = {}, {}
    for name, m in found.items():
        write(m, tmp_path / name)
        size[name] = (tmp_path / name).stat().st_size
        logits = Session(m, threads=1).run({"image": images})["logits"]
        right[name] = int((logits.argmax(1) == labels).sum())
    assert size["int4"] <= 0.16 * size["float"] and size["int8"] <= 0.28 * size["float"], size
    assert size["half"] <= 0.52 * size["float"], size
    assert all(n >= right["float"] - 1 for n in right.values()), right  # 0.2 points of 500 are one digit


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_transposed_convolution(bits):
    """Its weights are widened in each run; the file has them packed. Passes name weights that they change as here."""
    nodes = [Node("ConvTranspose", ["x", "y/weights", "b"], ["y"], {"strides": [2, 2], "group": 2}, name="up")]
    constants = {"y/weights": normal(16, 24, 4, 4), "b": normal(48)}
    model = make_model(nodes, {"x": (DType.FLOAT, (1, 16, 9, 9))}, ["y"], constants)
    x = normal(1, 16, 9, 9)
    for data in (None, [{"x": x}]):
        report: list[dict[str, object]] = []
        if data is None:
            small = weight_only(model, WeightOptions(bits, 32), report)
        elif bits < 16:
            small = gptq(model, data, WeightOptions(bits, 32), report=report)
        assert [n.op for n in small.graph.nodes] == ["Cast" if bits == 16 else "WidenNBits", "ConvTranspose"]
        assert [row["bits"] for row in report] == [bits] or (bits == 16 and data is not None)
        assert size(small) < {4: 0.16, 8: 0.28, 16: 0.52}[bits] * size(model)
        assert snr(run(model, x=x), run(small, x=x)) > {4: 18, 8: 40, 16: 65}[bits]
