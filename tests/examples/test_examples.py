"""The examples run, and give the right answers."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, SHARED, import_onnxruntime

import evort
import evort_tools

EXAMPLES = ROOT / "examples"
MODELS = SHARED / "models"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder with the real models is not there")


def load_example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_example(name: str, *args: str | Path) -> str:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_custom_operator():
    lines = run_example("custom_operator").splitlines()
    assert len(lines) == 8
    # Dark on the left, light on the right: the dots get denser.
    columns = np.array([[c == "█" for c in line.ljust(48)] for line in lines])
    assert columns[:, :8].mean() < 0.1 and columns[:, -8:].mean() > 0.9


@needs_shared
def test_lut3d_cmyk(tmp_path):
    from PIL import Image

    folder = MODELS / "lut3d_96"
    evort_tools.convert(str(folder / "model.onnx"), str(tmp_path / "lut.etm"))
    run_example("lut3d_cmyk", tmp_path / "lut.etm", folder / "images" / "input_0.jpg", tmp_path / "out.tiff")
    with Image.open(tmp_path / "out.tiff") as got, Image.open(folder / "images" / "output_0.tiff") as expected:
        assert got.mode == "CMYK"
        difference = np.abs(np.asarray(got).astype(int) - np.asarray(expected).astype(int))
    assert difference.max() <= 2 and (difference == 0).mean() >= 0.9998


FONTS = ["DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf"]
LINES = ["Nozzle 12 needs cleaning", "TOTAL 1,284.50", "evort reads text", "Serial: A7-3391-XQ"]


def page(font_name: str, size: int, upside_down: bool = False):
    """A white page with the lines of text, in one of the fonts that come with matplotlib."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font_name), size)
    image = Image.new("RGB", (size * 18, size * 3 * len(LINES)), "white")
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(LINES):
        draw.text((size, size * (3 * i + 1)), line, "black", font)
    return image.transpose(Image.Transpose.ROTATE_180) if upside_down else image


@needs_shared
@pytest.mark.parametrize("upside_down", [False, True])
@pytest.mark.parametrize(("font", "size"), [(FONTS[0], 22), (FONTS[0], 40), (FONTS[1], 28), (FONTS[2], 32)])
def test_reads_text_like_onnxruntime(font, size, upside_down):
    ort = import_onnxruntime()
    example = load_example("read_text")
    mine = readers(example)
    sessions = {n: ort.InferenceSession(str(MODELS / "ppocr" / f"ppocr_{n}.onnx")) for n in ("det", "cls", "rec")}

    def network(session):
        return lambda x: session.run(None, {session.get_inputs()[0].name: x})[0]

    characters = sessions["rec"].get_modelmeta().custom_metadata_map["character"]
    peer = example.Reader(*(network(sessions[n]) for n in ("det", "cls", "rec")), example.character_list(characters))
    image = page(font, size, upside_down)
    got = [(box, text) for box, text, _ in mine.read(image)]
    assert got == [(box, text) for box, text, _ in peer.read(image)]
    if "Mono" in font:
        return  # the network takes a monospaced O for a zero and splits wide gaps: both engines must only agree
    texts = [text for _, text in got]
    assert sorted(t.replace(" ", "") for t in texts) == sorted(t.replace(" ", "") for t in LINES)


_READER = []


def readers(example):
    if not _READER:
        _READER.append(example.open_reader(MODELS / "ppocr", threads=2))
    return _READER[0]


@needs_shared
def test_read_text_command(tmp_path):
    page(FONTS[0], 32).save(tmp_path / "page.png")
    out = run_example("read_text", MODELS / "ppocr", tmp_path / "page.png")
    # Whether the network sees blanks depends on how Pillow's FreeType draws them.
    assert "evortreadstext" in out.replace(" ", "")


@needs_shared
def test_voice_activity(tmp_path):
    """Silence gives no speech, and the probabilities are those of onnxruntime on the same frames."""
    ort = import_onnxruntime()
    example = load_example("voice_activity")
    onnx_path = MODELS / "silero_vad" / "silero_vad_op18_ifless.onnx"
    evort_tools.convert(str(onnx_path), str(tmp_path / "vad.etm"))
    rate = 16000
    t = np.arange(rate) / rate
    # A buzz with formants that comes and goes: something like a vowel.
    voice = sum(np.sin(2 * np.pi * 120 * k * t) * np.exp(-((120 * k - 700) ** 2) / 4e5) for k in range(1, 20))
    samples = (voice / np.abs(voice).max() * 0.5 * (np.sin(2 * np.pi * 3 * t) > 0)).astype(np.float32)
    got = example.speech_probabilities(evort.load(tmp_path / "vad.etm", threads=1), samples, rate)
    peer, state, expected = ort.InferenceSession(str(onnx_path)), np.zeros((2, 1, 128), np.float32), []
    for frame in example.frames(samples, rate):
        out, state = peer.run(None, {"input": frame, "sr": np.array(rate), "state": state})
        expected.append(out[0, 0])
    np.testing.assert_allclose(got, expected, atol=1e-4)
    with wave.open(str(tmp_path / "silence.wav"), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(bytes(2 * rate))
    assert run_example("voice_activity", tmp_path / "vad.etm", tmp_path / "silence.wav") == ""


@pytest.mark.skipif(not (SHARED / "data/mnist").is_dir(), reason="MNIST is not there")
def test_train_lenet(tmp_path):
    """The whole command on the first 6400 digits, plain files; five epochs, 250 steps, give 95 % and more."""
    import gzip
    import json

    counts = {"train-images-idx3": 6400, "train-labels-idx1": 6400, "t10k-images-idx3": 1000, "t10k-labels-idx1": 1000}
    for name, count in counts.items():
        raw = gzip.decompress((SHARED / "data/mnist" / f"{name}-ubyte.gz").read_bytes())
        head = 16 if "images" in name else 8
        size = 784 if "images" in name else 1
        data = raw[:4] + count.to_bytes(4, "big") + raw[8:head] + raw[head : head + count * size]
        (tmp_path / f"{name}-ubyte").write_bytes(data)
    out, log = tmp_path / "lenet.etm", tmp_path / "log.json"
    text = run_example(
        "train_lenet", "--data", tmp_path, "--out", out, "--epochs", "5", "--quiet", "--log", log, "--threads", "2"
    )
    rows = json.loads(log.read_text())
    assert rows[-1]["val_accuracy"] > 0.9
    assert f"{rows[-1]['val_accuracy']:.2%} of 1000 test digits right" in text
    assert float(evort.load(out).metadata["accuracy_mnist_test_10000"]) == pytest.approx(rows[-1]["val_accuracy"])
