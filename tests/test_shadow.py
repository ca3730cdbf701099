"""Shadow sessions: a quantized model's layers against its float model's, while it runs."""

from __future__ import annotations

import logging
import pickle

import numpy as np
import pytest
from support import make_model

import evort
from evort import etm
from evort.errors import InputError
from evort.graph import Model, Node
from evort.types import DType
from evort_tools.passes import lower
from evort_tools.quantization.encodings import Encoding
from evort_tools.quantization.qdq import fake_quantized


def _float_model() -> Model:
    rng = np.random.default_rng(0)
    w = {f"w{i}": rng.normal(0, 0.2, (4, 4, 3, 3)).astype(np.float32) for i in range(2)}
    nodes = [
        Node("Conv", ["x", "w0"], ["a"], {"activation": "Relu", "pads": [1, 1, 1, 1]}),
        Node("Conv", ["a", "w1"], ["y"], {"pads": [1, 1, 1, 1]}),
    ]
    return make_model(nodes, {"x": (DType.FLOAT, (1, 4, 8, 8))}, ["y"], w)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Paths of the float model and of one quantized for values of x in [-3, 3]."""
    folder = tmp_path_factory.mktemp("shadow")
    real = _float_model()
    encodings = {
        "x": Encoding.of_range(-3, 3, DType.UINT8),
        "a": Encoding.of_range(0, 6, DType.UINT8),
        "w0": Encoding.of_weights(real.graph.constant("w0"), 0),
        "w1": Encoding.of_weights(real.graph.constant("w1"), 0),
    }
    quantized = fake_quantized(real, encodings)
    lower(quantized)
    assert [node.op for node in quantized.graph.nodes] == ["QLinearConv", "QLinearConv"]
    paths = folder / "float.etm", folder / "int8.etm"
    etm.write(real, paths[0])
    etm.write(quantized, paths[1])
    return paths


def _image(scale: float, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).uniform(-1, 1, (1, 4, 8, 8)) * scale).astype(np.float32)


def test_one_run_in_n_is_compared(files):
    session = evort.load(files[1], threads=1, shadow=3, shadow_model=files[0])
    plain = evort.load(files[1], threads=1)
    for i in range(7):
        x = _image(3, i)
        np.testing.assert_array_equal(session(x), plain(x))
    assert list(session.shadow.layers) == ["x", "a", "y"]
    assert [count.runs for count in session.shadow.layers.values()] == [2, 2, 2]
    assert session.shadow.layers["a"].elements == 2 * 4 * 8 * 8


def test_figures(files):
    """The counters are what the two models give by themselves."""
    session = evort.load(files[1], threads=1, shadow=1, shadow_model=files[0])
    x = _image(2)
    real, got = evort.load(files[0], threads=1)(x), session(x)
    count = session.shadow.layers["y"]
    expected = 10 * np.log10(np.square(real, dtype=np.float64).sum() / np.square(real - got, dtype=np.float64).sum())
    assert count.sqnr == pytest.approx(expected, rel=1e-6)
    assert count.sqnr > 25
    assert session.shadow.layers["a"].sqnr > 25
    assert session.shadow.worst() in session.shadow.layers.values()
    assert not session.shadow.alarmed()


def test_alarm_where_the_inputs_leave_their_range(files, caplog):
    session = evort.load(files[1], threads=1, shadow=1, shadow_model=files[0], alarm_sqnr=20)
    with caplog.at_level(logging.WARNING, "evort.shadow"):
        session(_image(2))
        assert not caplog.records
        session(_image(40))
        session(_image(40, 2))
    alarmed = session.shadow.alarmed()
    assert [count.name for count in alarmed] == ["x", "a", "y"]
    assert session.shadow.layers["x"].last_saturation > 0.8
    assert session.shadow.layers["x"].alarms == 2
    assert len(caplog.records) == len(alarmed)


def test_saturation_alone_raises_an_alarm(files):
    session = evort.load(files[1], threads=1, shadow=1, shadow_model=files[0], alarm_sqnr=-200, alarm_saturation=0.3)
    session(np.full((1, 4, 8, 8), -30, np.float32))
    assert [count.name for count in session.shadow.alarmed()] == ["x"]


def test_integers_that_are_only_moved_keep_their_scale():
    """A MaxPool between two layers: what it gives is compared as the numbers that its integers stand for."""
    real = _float_model()
    real.graph.nodes[1].inputs[0] = "flat"
    real.graph.nodes[1:1] = [
        Node("MaxPool", ["a"], ["p"], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        Node("Transpose", ["p"], ["flat"], {"perm": [0, 1, 3, 2]}),
    ]
    encodings = {
        "x": Encoding.of_range(-3, 3, DType.UINT8),
        "a": Encoding.of_range(0, 6, DType.UINT8),
        **{w: Encoding.of_weights(real.graph.constant(w), 0) for w in ("w0", "w1")},
    }
    quantized = fake_quantized(real, encodings)
    lower(quantized)
    assert [node.op for node in quantized.graph.nodes] == ["QLinearConv", "MaxPool", "Transpose", "QLinearConv"]
    session = evort.load(etm.write(quantized), threads=1, shadow=1, shadow_model=etm.write(real))
    session(_image(2))
    layers = session.shadow.layers
    assert {"a", "p", "flat", "y"} <= set(layers) and all(layer.last_sqnr > 25 for layer in layers.values())


def test_counters_for_machines(files):
    import json

    session = evort.load(files[1], threads=1, shadow=1, shadow_model=files[0])
    session(_image(2))
    found = json.loads(json.dumps(session.shadow.as_dict(), allow_nan=False))
    assert found["calls"] == 1
    assert [layer["name"] for layer in found["layers"]] == ["x", "a", "y"]


def test_pickled_session_has_a_shadow(files):
    session = evort.load(str(files[1]), threads=1, shadow=2, shadow_model=str(files[0]), alarm_sqnr=7.0)
    again = pickle.loads(pickle.dumps(session))
    assert (again.shadow.every, again.shadow.alarm_sqnr) == (2, 7.0)


def test_refusals(files):
    with pytest.raises(ValueError, match="shadow_model"):
        evort.load(files[1], shadow=2)
    with pytest.raises(ValueError, match="positive"):
        evort.load(files[1], shadow=0, shadow_model=files[0])
    other = make_model([Node("Relu", ["z"], ["y"])], {"z": (DType.FLOAT, (1,))}, ["y"])
    with pytest.raises(InputError, match="takes z"):
        evort.load(files[1], shadow=1, shadow_model=etm.write(other))
    unlike = make_model([Node("Relu", ["x"], ["z"])], {"x": (DType.FLOAT, (1, 4, 8, 8))}, ["z"])
    with pytest.raises(InputError, match="in common"):
        evort.load(files[1], shadow=1, shadow_model=etm.write(unlike))
