"""Calibration data: where it comes from, and what is said of data that is of no use."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from PIL import Image
from tools_support import onnx_model

from evort_tools.convert import convert_model
from evort_tools.quantization.data import CalibrationError, Images, open_calibration

X = np.random.default_rng(0).random((6, 3, 4, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def graph():
    node = helper.make_node("Relu", ["x"], ["y"])
    return convert_model(onnx_model([node], {"x": (np.float32, ("N", 3, 4, 5))})).graph


@pytest.fixture(scope="module")
def pair():
    """Two inputs, one of them without dimensions."""
    nodes = [helper.make_node("Mul", ["x", "rate"], ["y"])]
    return convert_model(onnx_model(nodes, {"x": (np.float32, (2, 5)), "rate": (np.float32, ())})).graph


def images_of(graph, source, **options):
    return [sample["x"] for sample in open_calibration(source, graph, **options)]


@pytest.mark.parametrize("kind", ["npz", "compressed", "npy", "fortran", "dict", "array", "list", "generator", "call"])
def test_all_sources_give_the_same_samples_again_and_again(kind, graph, tmp_path):
    path = tmp_path / ("c.npy" if kind == "npy" else "c.npz")
    if kind in ("npz", "fortran"):
        np.savez(path, x=np.asfortranarray(X) if kind == "fortran" else X)
    elif kind == "compressed":
        np.savez_compressed(path, x=X)
    elif kind == "npy":
        np.save(path, X)
    source = {
        "dict": {"x": X},
        "array": X,
        "list": [{"x": x[None]} for x in X],
        "generator": ({"x": x[None]} for x in X),
        "call": lambda: (x[None] for x in X),
    }.get(kind, path)
    data = open_calibration(source, graph)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([s["x"] for s in data]), X)
    assert len(data) == 6 and all(s["x"].shape == (1, 3, 4, 5) for s in data)
    np.testing.assert_array_equal([s["x"][0] for s in data.head(2)], X[[0, 5]])
    assert len(images_of(graph, X, limit=4)) == 4


def test_a_generator_that_was_left_early_goes_on_where_it_was(graph):
    data = open_calibration(({"x": x[None]} for x in X), graph)
    first = next(iter(data))["x"]
    np.testing.assert_array_equal(first[0], X[0])
    np.testing.assert_array_equal(np.concatenate([s["x"] for s in data]), X)


def test_samples_of_several_rows_and_inputs_given_once(pair):
    rows = np.arange(30, dtype=np.float64).reshape(6, 5)
    found = list(open_calibration({"x": rows, "rate": np.float32(2)}, pair))
    assert len(found) == 3 and found[1]["x"].dtype == np.float32 and found[2]["rate"] == 2
    np.testing.assert_array_equal(found[1]["x"], rows[2:4])
    stacked = list(open_calibration({"x": rows.reshape(3, 2, 5), "rate": np.ones(3, np.float32)}, pair))
    np.testing.assert_array_equal(stacked[1]["x"], rows[2:4])


def test_a_folder_of_images(graph, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (4, 5, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "b.png")
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "a.png")  # grey
    options = Images(mean=(0.5, 0.25, 0.0), std=(2.0,), bgr=True, size=(4, 5))
    grey, colour = images_of(graph, tmp_path, images=options)
    # Float32 rounding of four operations on numbers below 1.
    expected = (pixels[:, :, ::-1].transpose(2, 0, 1) / 255 - np.array([0.5, 0.25, 0])[:, None, None]) / 2
    np.testing.assert_allclose(colour[0], expected, atol=1e-6)
    np.testing.assert_allclose(grey[0, 2], pixels[:, :, 0] / 255 / 2, atol=1e-6)
    with pytest.raises(CalibrationError, match="std has 2 numbers, the input 3 channels"):
        images_of(graph, tmp_path, images=Images(std=(1.0, 2.0)))


BAD = {
    "empty": (X[:0], "is empty"),
    "no samples": (iter(()), "is empty"),
    "nan": (np.where(X[3, 0, 0, 0] == X, np.nan, X), r"sample 3, input 'x' holds NaN"),
    "inf": (np.where(X[1, 0, 0, 0] == X, np.inf, X), r"sample 1.*infinity"),
    "shape": (X[:, :2], r"sample 0, input 'x' has shape \[1, 2, 4, 5\]; the model takes \[N, 3, 4, 5\]"),
    "rank": (X[0, 0], r"shape \[4, 5\]; samples of \[N, 3, 4, 5\] along its first axis"),
    "name": ({"image": X}, r"array 'image'; the model's inputs are x"),
    "name of a sample": ([{"image": X[:1]}], r"sample 0 has 'image' and lacks 'x'"),
    "text": ([{"x": np.array(["a"])}], r"is <U1; the model takes float32"),
    "complex": ([{"x": X[:1] * 1j}], "complex64"),
    "kind": (3, "cannot be read from int"),
    "no file": ("nowhere.npz", "no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_refused_with_what_is_wrong(case, graph):
    source, message = BAD[case]
    with pytest.raises(CalibrationError, match=message):
        list(open_calibration(source, graph))


def test_bad_files(graph, pair, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"nothing")
    (tmp_path / "a.txt").write_text("1 2")
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "objects.npz", x=np.array([None], object))
    (tmp_path / "a.npy").write_bytes(b"nothing")
    np.save(tmp_path / "short.npy", X)
    os.truncate(tmp_path / "short.npy", 500)
    for name, message in (
        ("a.npz", "no npz"),
        ("a.npy", "no npy"),
        ("short.npy", "ends before its last sample"),
        ("a.txt", r"\.npz or \.npy"),
        ("empty", "no images"),
        ("objects.npz", "object"),
    ):
        with pytest.raises(CalibrationError, match=message):
            list(open_calibration(tmp_path / name, graph))
    with pytest.raises(CalibrationError, match="different numbers of samples"):
        open_calibration({"x": np.ones((4, 5)), "rate": np.ones(3)}, pair)
    with pytest.raises(CalibrationError, match="x, rate"):
        open_calibration(np.ones((4, 5)), pair)
    with pytest.raises(CalibrationError, match="one sample has 2"):
        open_calibration({"x": np.ones((1, 5)), "rate": 1}, pair)


@pytest.mark.parametrize("source", ["npz", "npy", "generator"])
def test_memory_does_not_grow_with_the_data(source, tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = convert_model(onnx_model([node], {"x": (np.float32, ("N", 1000))})).graph
    peaks = []
    for count in (10, 400):
        path, x = tmp_path / f"{count}.{source}", np.ones((count, 1000), np.float32)
        if source == "npz":
            np.savez(path, x=x)
        elif source == "npy":
            np.save(path, x)
        made = path if source != "generator" else (np.ones((1, 1000), np.float32) for _ in range(count))
        data = open_calibration(made, graph)
        list(zip(range(2), data, strict=False))
        tracemalloc.start()
        for _ in data:
            assert path.name not in Path("/proc/self/maps").read_text()  # pages of a map stay, and count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 400 samples are 1.6 MB; one is 4 kB, and what is kept of each in a list of places is some dozens of bytes.
    assert peaks[1] < peaks[0] + 100_000


def test_samples_held_out_are_those_of_one_data_set(graph):
    data = open_calibration(lambda: (x[None] for x in X), graph, limit=5)
    rest, held = data.split(3)
    assert (len(rest), len(held)) == (4, 1)
    assert [np.array_equal(a["x"], X[i][None]) for a, i in zip(rest, (0, 1, 3, 4), strict=True)] == [True] * 4
    assert np.array_equal(held.head(4)[0]["x"], X[2][None]) and len(held.head(4)) == 1


def test_some_samples_are_spread_evenly(graph):
    data = open_calibration(X, graph)
    few = data.some(3)
    assert len(few) == 3 and data.some(len(X)) is data
    for sample, place in zip(few, data.spread(3), strict=True):
        assert np.array_equal(sample["x"], X[place][None])


def test_the_order_says_what_is_tried_first(graph):
    data = open_calibration(X, graph)
    data.order = [4, 1, 0]
    assert [np.flatnonzero([np.array_equal(s["x"][0], x) for x in X])[0] for s in data.head(2)] == [4, 1]
    assert len(data.head(9)) == 6  # all that there are, in their own order


def test_data_that_says_little_is_pointed_out(graph):
    assert open_calibration(X, graph).oddities() == ({}, {})
    assert open_calibration(np.full_like(X, 3), graph).oddities() == ({"x": 3}, {})
    far = X.copy()
    far[4] *= 1e6
    data = open_calibration(far, graph)
    constant, found = data.oddities()
    assert not constant and list(found) == [4] and "input 'x' reaches" in found[4]
    assert len(data.without([4])) == 5 and data.without([4]).oddities() == ({}, {})
