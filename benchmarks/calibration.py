"""Samples of the kind that each model of `cases.py` was made for: some to calibrate with, others to test on.

`samples(name, count, test)` gives input dicts; calibration and test samples differ. Everything comes from what is at
hand (the digits, the shared photographs, text drawn with Pillow, hummed tones, files of Python's library), and is
seeded.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from cases import ROOT, SHARED, Inputs

from evort.train import read_idx

Maker = Callable[[np.random.Generator, bool], Inputs]
_MAKERS: dict[str, Callable[[], Maker]] = {}


def samples(name: str, count: int, test: bool = False) -> Iterator[Inputs]:
    """`count` samples for a case. Raises KeyError for one that has none."""
    make = _MAKERS[name]()
    rng = np.random.default_rng([7, test])
    for _ in range(count):
        yield make(rng, test)


def known(name: str) -> bool:
    """Whether there are samples for a case."""
    return name in _MAKERS


def _samples_of(*names: str) -> Callable[[Callable[[], Maker]], Callable[[], Maker]]:
    def decorate(function: Callable[[], Maker]) -> Callable[[], Maker]:
        _MAKERS.update(dict.fromkeys(names, function))
        return function

    return decorate


def mnist(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """All digits of the "train" or "t10k" set: float32 [N, 1, 28, 28] in 0..1, and their labels."""
    folder = SHARED / "data" / "mnist"
    images = read_idx(folder / f"{kind}-images-idx3-ubyte.gz")[:, None].astype(np.float32) / 255
    return images, read_idx(folder / f"{kind}-labels-idx1-ubyte.gz")


def _digits(name: str, scale: float) -> Maker:
    sets: dict[bool, np.ndarray] = {}

    def make(rng: np.random.Generator, test: bool) -> Inputs:
        if test not in sets:
            sets[test] = mnist("t10k" if test else "train")[0]
        return {name: sets[test][rng.integers(len(sets[test]))][None] * np.float32(scale)}

    return make


# mnist_8 takes brightness from 0 to 255.
_MAKERS["lenet"] = lambda: _digits("image", 1)
_MAKERS["mnist_8"] = lambda: _digits("Input3", 255)


def _photograph(index: int) -> np.ndarray:
    from PIL import Image

    path = SHARED / "models" / "lut3d_96" / "images" / f"input_{index}.jpg"
    return np.asarray(Image.open(path).convert("RGB"), np.float32) / 255


def _crop(rng: np.random.Generator, image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A random part of an image [H, W, C], mirrored at random."""
    top, left = (rng.integers(have - want + 1) for have, want in zip(image.shape, (height, width), strict=False))
    part = image[top : top + height, left : left + width]
    return part[:, ::-1] if rng.random() < 0.5 else part


@_samples_of("lut3d_96")
def _prints() -> Maker:
    # Calibrated on both photographs, mirrored and in changed light, contrast and colours; tested on one as it is.
    both = _photograph(0), _photograph(2)

    def make(rng: np.random.Generator, test: bool) -> Inputs:
        image = both[rng.integers(2)]
        if not test:
            image = np.clip(image ** rng.uniform(0.6, 1.6) * rng.uniform(0.5, 1.3, 3), 0, 1)[..., rng.permutation(3)]
            image = image[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
        return {"input0": np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)}

    return make


def _grey(name: str, side: int) -> Maker:
    photographs = [_photograph(index).mean(2, keepdims=True) for index in (0, 2)]

    def make(rng: np.random.Generator, test: bool) -> Inputs:
        return {name: np.ascontiguousarray(_crop(rng, photographs[test], side, side).transpose(2, 0, 1)[None])}

    return make


@_samples_of("super_resolution_10")
def _luminance() -> Maker:
    return _grey("input", 224)


@_samples_of("halftone_v1")
def _plates() -> Maker:
    return _grey("input", 256)


_TEXT = "Evort reads lines of text 0123456789 quickly on small devices: invoice, total, price & date. Hello World"


def _text_image(rng: np.random.Generator, height: int, width: int, lines: int) -> np.ndarray:
    """Lines of words in random sizes and colours: RGB in -1..1, [1, 3, height, width]."""
    from PIL import Image, ImageDraw, ImageFont

    paper, ink = rng.integers(160, 256, 3), rng.integers(0, 110, 3)
    image = Image.new("RGB", (width, height), tuple(map(int, paper)))
    draw = ImageDraw.Draw(image)
    room = height / lines
    for line in range(lines):
        font = ImageFont.load_default(size=float(room * rng.uniform(0.5, 0.8)))
        words = " ".join(rng.choice(_TEXT.split(), rng.integers(1, 6)))
        draw.text((rng.integers(2, 12), line * room + room * 0.08), words, fill=tuple(map(int, ink)), font=font)
    pixels = np.asarray(image, np.float32) + rng.normal(0, 4, (height, width, 3))
    return np.ascontiguousarray((pixels / 127.5 - 1).clip(-1, 1).transpose(2, 0, 1)[None], np.float32)


def _drawn(height: int, width: int, lines: int) -> Callable[[], Maker]:
    return lambda: lambda rng, test: {"x": _text_image(rng, height, width, lines)}


_MAKERS["ppocr_det"] = _drawn(480, 480, 8)
_MAKERS["ppocr_rec"] = _drawn(48, 320, 1)
_MAKERS["ppocr_cls"] = _drawn(48, 192, 1)


@_samples_of("silero_vad")
def _tones() -> Maker:
    """Frames of hummed tones and of noise; the state is what an earlier frame may leave, near zero."""

    def make(rng: np.random.Generator, test: bool) -> Inputs:
        t = np.arange(16000 * 36 // 1000) / 16000
        pitch, loud = rng.uniform(90, 300), rng.uniform(0, 0.2)
        wave = sum(np.sin(2 * np.pi * (pitch * k * t + rng.random())) / k for k in range(1, 9)) * loud
        wave = wave + rng.normal(0, rng.uniform(0.0005, 0.05), len(t))
        state = rng.normal(0, 0.2, (2, 1, 128))
        return {
            "input": wave[None].astype(np.float32),
            "sr": np.array(16000, np.int64),
            "state": state.astype(np.float32),
        }

    return make


@_samples_of("magika")
def _files() -> Maker:
    """Files of Python's library and of this repository, their first and last 1,024 bytes."""
    folders = [Path(sysconfig.get_paths()["stdlib"]), ROOT]
    found = sorted(p for f in folders for p in f.glob("*.*") if p.is_file() and p.stat().st_size > 2048)
    found += sorted(p for p in (SHARED / "models").rglob("*.*") if p.is_file())
    halves = found[::2], found[1::2]

    def make(rng: np.random.Generator, test: bool) -> Inputs:
        raw = halves[test][rng.integers(len(halves[test]))].read_bytes().strip()
        head, tail = (np.frombuffer(part, np.uint8) for part in (raw[:1024], raw[-1024:]))
        row = np.concatenate([np.pad(head.astype(np.int32), (0, 1024 - len(head)), constant_values=256),
                              np.pad(tail.astype(np.int32), (1024 - len(tail), 0), constant_values=256)])  # fmt: skip
        return {"bytes": row[None]}

    return make
