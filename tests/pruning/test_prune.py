"""Patterns, what is stored of pruned weights, training while zeros grow, and the command."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT, drivers_of

import evort
from evort import etm
from evort.errors import InputError
from evort.session import Session
from evort.train import Batches
from evort.types import DType
from evort_tools.cli import main
from evort_tools.prune import prune
from evort_tools.pruning.patterns import Pattern
from evort_tools.pruning.weights import dense, weights_of

LENET = ROOT / "models" / "lenet.onnx"
PATTERNS = ["4x1", "8x1", "16x1", "1x4", "2:4", "1:4"]


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    with np.load(ROOT / "models" / "mnist_500.npz") as file:
        arrays = list(file.values())
    images = next(a for a in arrays if a.ndim > 1)
    labels = next(a for a in arrays if a.ndim == 1)
    scale = np.float32(1 / 255 if images.dtype == np.uint8 else 1)
    return images.reshape(-1, 1, 28, 28).astype(np.float32) * scale, labels.astype(np.int64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4", "is no pattern"),
        ("4:2", "n less than m"),
        ("0x4", "from 1 to"),
        ("512x1", "from 1 to"),
        ("groups:0", "no"),
    ],
)
def test_patterns_that_are_none(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pattern.parse(text)


def test_sparsity_that_does_not_fit() -> None:
    assert Pattern.parse("2:4").target(None) == 0.5 and Pattern.parse("4x1").target(None) == 0.75
    assert Pattern.parse("channels").target(None) == 0.5
    with pytest.raises(ValueError, match="leave --sparsity out"):
        Pattern.parse("1:4").target(0.5)
    with pytest.raises(ValueError, match="is not from 0"):
        Pattern.parse("4x1").target(1.0)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sampled_from(PATTERNS), st.integers(1, 40), st.integers(1, 60), st.floats(0, 1), st.integers(0, 9))
def test_masks_have_their_pattern(text: str, rows: int, columns: int, part: float, seed: int) -> None:
    """Whole blocks, as many as asked for, those of least saliency; n of m at most where all is asked for."""
    pattern = Pattern.parse(text)
    saliency = np.random.default_rng(seed).random((rows, columns))
    share = part * pattern.target(None)
    mask = pattern.mask(saliency, share)
    a, b = pattern.block
    if pattern.kind == "n:m":
        full = np.zeros((rows, -(-columns // b) * b), bool)
        full[:, :columns] = mask
        counts = full.reshape(rows, -1, b).sum(axis=2)
        width = np.minimum(b, columns - b * np.arange(counts.shape[1]))
        cut = counts == np.minimum(a, width)
        assert (cut | (counts == width)).all()
        assert round(part * cut.size) <= cut.sum()
        return
    means, kept = [], []
    for i in range(0, rows, a):
        for j in range(0, columns, b):
            block = mask[i : i + a, j : j + b]
            assert block.all() or not block.any()
            means.append(saliency[i : i + a, j : j + b].mean())
            kept.append(block.all())
    assert len(kept) - sum(kept) == round(share * len(kept))
    assert (
        not any(kept)
        or all(kept)
        or max(m for m, k in zip(means, kept, strict=True) if not k)
        <= min(m for m, k in zip(means, kept, strict=True) if k)
    )


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pruned_at_once(pattern: str, digits: Any) -> None:
    """The file has the pattern's layers without zeros, and gives what the same model with its zeros does."""
    result = prune(LENET, None, pattern)
    stored = {row["tensor"]: row for row in result.layers}
    assert [name for name, row in stored.items() if row["stored"]] == ["conv2.weight", "fc1.weight", "fc2.weight"]
    assert stored["conv1.weight"]["left_out"] and stored["fc3.weight"]["left_out"]
    share = result.share
    for name in ("conv2.weight", "fc1.weight", "fc2.weight"):
        assert share - 0.06 < stored[name]["zeros"] < share + 0.03
        assert stored[name]["bytes"] < (1 - share + 0.08) * stored[name]["bytes_before"]
    session = evort.load(result.to_bytes())
    expected = Session(result.real).run({"image": digits[0][:8]})
    got = session.run({"image": digits[0][:8]})
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-4)
    # Of one row skipped alone, a convolution in float32 is slower than dense; 2:4 is so everywhere.
    assert stored["fc1.weight"]["runs"] == ("dense" if pattern == "2:4" else "skipping")
    expected_drivers = {"2:4": 0, "1:4": 2, "1x4": 2}.get(pattern, 3)
    assert sum(driver.startswith("sparse.") for driver in drivers_of(session)) == expected_drivers
    filled = dense(etm.read(result.to_bytes()).model)
    assert all(t.sparsity is None for t in filled.graph.tensors.values())


@pytest.mark.parametrize(("pattern", "importance"), [("4x1", "magnitude"), ("1x4", "taylor"), ("channels", "taylor")])
def test_training_while_zeros_grow(pattern: str, importance: str, digits: Any, tmp_path: Any) -> None:
    images, labels = digits
    result = prune(
        LENET, tmp_path / "l.etm", pattern, importance=importance, data=digits, epochs=5, batch_size=25, lr=3e-3,
        test=digits, quantize="static", threads=1,
    )  # fmt: skip
    assert result.accuracy["pruned"] > 0.95 and result.accuracy["quantized"] > 0.95  # of its own training data
    assert len(result.history) == 5
    session = evort.load(tmp_path / "l.etm")
    session.run({"image": images[:16]})  # of few rows, products of one row skipped alone are faster dense
    driven = [d for d in drivers_of(session) if d.startswith("sparse.")]
    if pattern == "channels":
        assert not driven and result.sizes["file"] < 0.5 * result.sizes["dense"]
    else:
        assert driven == ["sparse.convolution_s8", "sparse.product_s8", "sparse.product_s8"]
        assert [row["runs"] for row in result.layers if row["stored"]] == ["skipping"] * 3
        assert result.history[-1]["zeros"] == pytest.approx(0.75, abs=0.01)
        assert result.sizes["file"] < 0.4 * result.sizes["dense"]
    batches = Batches(images, labels, batch_size=25, drop_last=True)
    again = prune(
        LENET, None, pattern, importance=importance, data=batches, epochs=5, lr=3e-3, quantize="static", threads=1
    )
    assert again.to_bytes() == (tmp_path / "l.etm").read_bytes()


@pytest.mark.parametrize("how", ["static", "qat"])
def test_weights_of_4_bits(how: str, digits: Any) -> None:
    """Stored in 4 bits, without zeros; training with the rounding keeps the zeros."""
    options = {"data": digits, "epochs": 3, "batch_size": 25, "lr": 3e-3, "quantize": how, "threads": 1}
    result = prune(LENET, None, "8x1", test=digits, bits=4, **options)
    stored = [row for row in result.layers if row["stored"]]
    assert len(stored) == 3 and all(row["zeros"] > 0.72 for row in stored)
    tensors = etm.read(result.to_bytes()).model.graph.tensors
    assert all(tensors[row["tensor"]].dtype == DType.INT4 for row in stored)
    assert sum(row["bytes"] for row in stored) < 0.18 * sum(row["bytes_before"] for row in stored)
    assert result.accuracy["quantized"] > result.accuracy["pruned"] - 0.1
    with pytest.raises(ValueError, match="weights of 8 or 4 bits"):
        prune(LENET, None, "8x1", bits=3, **options)


def test_distillation(digits: Any) -> None:
    result = prune(LENET, None, "16x1", 0.5, data=digits, epochs=1, distill=True, threads=1)
    assert result.history[0]["loss"] < 5


def test_excluded_stays(digits: Any) -> None:
    result = prune(LENET, None, "4x1", exclude=["fc1*", "Conv"])
    assert [row["tensor"] for row in result.layers if row["stored"]] == ["fc2.weight"]
    with pytest.raises(ValueError, match="nothing to prune is called fc9"):
        prune(LENET, None, "4x1", exclude=["fc9"])
    whole = prune(LENET, None, "channels", exclude=["fc1*"])
    assert next(r["shape"] for r in whole.layers if r["tensor"] == "fc1.weight") == [120, 200]


def test_bad_data(digits: Any) -> None:
    with pytest.raises(ValueError, match="need data"):
        prune(LENET, None, "4x1", epochs=1)
    with pytest.raises(InputError, match="one more array"):
        prune(LENET, None, "4x1", data={"image": digits[0]}, epochs=1)
    with pytest.raises(InputError, match="as many samples each"):
        prune(LENET, None, "4x1", data=(digits[0], digits[1][1:]), epochs=1)


def test_command(tmp_path: Any, capsys: pytest.CaptureFixture[str], digits: Any) -> None:
    np.savez(tmp_path / "d.npz", image=digits[0][:100], label=digits[1][:100])
    out = tmp_path / "p.etm"
    data = ["--data", str(tmp_path / "d.npz"), "--epochs", "1", "--test", str(tmp_path / "d.npz"), "--threads", "1"]
    assert main(["prune", str(LENET), "-o", str(out), "--pattern", "1:4", "--quantize", "static", *data, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pattern"] == "1:4" and found["sizes"]["file"] == out.stat().st_size
    assert set(found["accuracy"]) == {"before", "pruned", "quantized"}
    assert main(["prune", str(LENET), "-o", str(out), "--pattern", "16x1"]) == 0
    assert "of the dense one" in capsys.readouterr().out
    # A pruned file is a model like any other: it can be quantized, and pruned again.
    assert main(["prune", str(out), "-o", str(tmp_path / "q.etm"), "--pattern", "channels", "--json"]) == 0
    assert main(["prune", str(LENET), "-o", str(out), "--pattern", "5"]) == 2
    assert main(["prune", str(out), "-o", str(out)]) == 2
    assert "is the model itself" in capsys.readouterr().err
    assert weights_of(etm.read(tmp_path / "q.etm").model.graph)
