"""Bounds of roofline.py on a core with made-up figures, and its loops, of which no time is asserted."""

import ctypes

import numpy as np
import pytest
import roofline
from support import ROOT

import evort

CORE = roofline.Core({"float32": 10.0, "int8": 40.0}, "none", [("L1", 1000, 100.0), ("memory", 1 << 62, 1.0)])


def test_loops_compute_what_they_say(tmp_path):
    library = roofline.build(tmp_path)
    lanes = library.fma_f32_macs(1) // 12
    assert lanes in (4, 8, 16)
    ones = np.ones(4096, np.float32)
    # Two lanes of a sum over all elements, read three times.
    assert library.read_all(ones.ctypes.data, ones.nbytes, 3) == 2 * 3 * ones.size / lanes
    assert library.dot_i8_macs(10) == 10 * library.dot_i8_macs(1) > 0
    assert library.dot_i8(2) - library.dot_i8(1) == pytest.approx(library.dot_i8(3) - library.dot_i8(2))
    assert library.dot_i8(2) != library.dot_i8(1)
    assert library.fma_f32.restype is ctypes.c_float


def test_bounds_of_lenet(tmp_path):
    import evort_tools

    file = tmp_path / "lenet.etm"
    evort_tools.convert(ROOT / "models" / "lenet.onnx", file)
    session = evort.load(file, threads=1)
    layers = roofline.measure_layers(session, {"image": np.zeros((1, 1, 28, 28), np.float32)}, CORE, 0)
    assert [x.macs for x in layers] == [step.definition.macs(step.call) for step in session.plans()[0].steps]
    for x in layers:
        assert x.us > 0 and x.kind == "float32"
        assert x.compute_us == x.macs / 10 / 1e3
        # More than 1000 bytes of weights: they come from memory, a byte a nanosecond.
        near = 100 if x.activation_bytes + x.weight_bytes <= 1000 else 1
        assert x.traffic_us == pytest.approx((x.activation_bytes / near + x.weight_bytes) / 1e3)
        assert x.bound_us == max(x.compute_us, x.traffic_us)
        assert x.bound_by == ("float32 multiply-adds" if x.compute_us >= x.traffic_us else x.level)
    assert {x.bound_by for x in layers} == {"float32 multiply-adds", "memory"}


def test_plot_and_tables(tmp_path):
    from rich.console import Console

    layers = [
        roofline.Layer("a", "Conv", "conv.im2col_f32", "", 1000, 100, 100, "float32", 2.0, 1.0, 0.5, "L1"),
        roofline.Layer("b", "Relu", "elementwise.unary_f32", "", 0, 800, 0, "float32", 1.0, 0.0, 0.9, "L1"),
    ]
    console = Console(record=True, width=200)
    roofline.show_layers(layers, "two", 0, console)
    text = console.export_text()
    assert "reached 63%" in text and "float32 multiply-adds" in text
    roofline.plot(layers, CORE, "two", tmp_path / "two.png")
    assert (tmp_path / "two.png").stat().st_size > 1000
