"""Damage to the files of real models: each reads as what it was, or raises an evort error."""

import numpy as np
import pytest
from etm_support import assemble, check_model, parts, plain
from support import ROOT, SHARED

import evort_tools
from evort import etm
from evort.errors import EvortError

MODELS = {
    "lenet": ROOT / "models" / "lenet.onnx",
    "mnist_8": SHARED / "models" / "mnist_8" / "model.onnx",
    "super_resolution_10": SHARED / "models" / "super_resolution_10" / "model.onnx",
    "ppocr_cls": SHARED / "models" / "ppocr" / "ppocr_cls.onnx",
}


@pytest.fixture(scope="module", params=MODELS)
def data(request) -> bytes:
    path = MODELS[request.param]
    if not path.exists():
        pytest.skip(f"{path} is not in this checkout")
    return evort_tools.convert(path)


def outcome(data: bytes, checksum: bool = True) -> tuple | None:
    try:
        model = etm.read(data, checksum=checksum).model
    except EvortError:
        return None
    check_model(model)
    return plain(model)


def test_truncations(data):
    rng = np.random.default_rng(0)
    for length in rng.integers(0, len(data), 500).tolist():
        assert outcome(data[:length]) is None


def test_changed_bytes(data):
    """Anywhere in the file, and as many again in its first part, where everything counts."""
    rng = np.random.default_rng(1)
    expected = outcome(data)
    changed = bytearray(data)
    first = len(data) - len(parts(data)[1])
    places = [*rng.integers(0, len(data), 300).tolist(), *rng.integers(0, first, 1500).tolist()]
    for at in places:
        old = changed[at]
        changed[at] ^= int(rng.integers(1, 256))
        assert outcome(changed) in (None, expected)
        changed[at] = old


def test_changed_metadata_under_a_right_hash(data):
    metadata, weights = parts(data)
    rng = np.random.default_rng(2)
    for _ in range(1500):
        changed = bytearray(metadata)
        for at in rng.integers(0, len(metadata), rng.integers(1, 4)).tolist():
            changed[at] = int(rng.choice([0, 1, 4, 0x7F, 0x80, 0xFF, int(rng.integers(256))]))
        outcome(assemble(bytes(changed), weights), checksum=False)
