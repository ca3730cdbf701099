"""The fuzzer runs, and finds a reader that breaks a promise."""

import random
import sys
from pathlib import Path

import pytest
from etm_support import SAMPLES, assemble, parts

from evort import etm
from evort.errors import EvortError

sys.path.insert(0, str(Path(__file__).parents[2] / "fuzz"))
import fuzz_etm


def test_a_short_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fuzz_etm.run([etm.write(make()) for make in SAMPLES.values()], 0.5, 1)
    assert "no failure" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_broken_promises_are_found(tmp_path, monkeypatch):
    def unsound(data: bytes, checksum: bool):
        file = real(data)
        for tensor in file.model.graph.tensors.values():
            tensor.shape = (-1,)
        return file

    real = etm.read
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(etm, "read", unsound)
    with pytest.raises(AssertionError):
        fuzz_etm.run([etm.write(SAMPLES["convolutional"]())], 60, 0)
    assert (tmp_path / "fuzz-failure.etm").exists()


def test_mutations_keep_the_file_a_file():
    """The hash is made right again: none stops at it."""
    metadata, weights = parts(etm.write(SAMPLES["nested"]()))
    rng = random.Random(0)
    for _ in range(200):
        changed = bytearray(metadata)
        fuzz_etm.mutate(changed, rng)
        assert len(changed) == len(metadata)
        try:
            etm.read(assemble(bytes(changed), weights))
        except EvortError as error:
            assert "hash" not in str(error)
