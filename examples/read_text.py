"""Reads the lines of text in an image with PP-OCR: detection, direction, recognition.

    python examples/read_text.py MODELS image.png

MODELS is the folder with ppocr_det, ppocr_cls and ppocr_rec as .etm or .onnx files. The characters that the recogniser
knows are in its metadata. Only upright or upside-down lines are read: a box is an axis-aligned rectangle.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

# A network: image batch [N, 3, H, W] in, its one output out.
Network = Callable[[np.ndarray], np.ndarray]
Box = tuple[int, int, int, int]  # left, top, right, bottom


class Reader:
    """Finds and reads lines of text. detect, direct, recognise: the three networks; characters: of the recogniser's
    classes 1.. (class 0 is CTC's blank)."""

    def __init__(self, detect: Network, direct: Network, recognise: Network, characters: list[str]):
        self.detect = detect
        self.direct = direct
        self.recognise = recognise
        self.characters = characters

    def read(self, image: Image.Image) -> list[tuple[Box, str, float]]:
        """(box, text, confidence in 0..1) of each line, top to bottom."""
        image = image.convert("RGB")
        found = []
        for box in self.boxes(image):
            line = image.crop(box)
            if self.upside_down(line):
                line = line.transpose(Image.Transpose.ROTATE_180)
            text, confidence = self.text(line)
            if text:
                found.append((box, text, confidence))
        return found

    def boxes(
        self, image: Image.Image, threshold: float = 0.3, box_threshold: float = 0.5, unclip: float = 1.6
    ) -> list[Box]:
        """Rectangles around the lines (differentiable binarization, arXiv:1911.08947: the network gives shrunk text
        regions; each is grown back by area * unclip / perimeter)."""
        # Small pictures are enlarged to 736 pixels on the short side, as PP-OCR was trained; sides are multiples of 32.
        scale = max(1.0, 736 / min(image.size))
        size = tuple(max(32, round(side * scale / 32) * 32) for side in image.size)
        probability = self.detect(normalised(image.resize(size, Image.Resampling.BILINEAR)))[0, 0]
        labels, _ = ndimage.label(probability > threshold, np.ones((3, 3)))
        sx, sy = image.width / size[0], image.height / size[1]
        boxes = []
        for label, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
            height, width = rows.stop - rows.start, columns.stop - columns.start
            inside = labels[rows, columns] == label
            if min(height, width) < 3 or probability[rows, columns][inside].mean() < box_threshold:
                continue
            grow = height * width * unclip / (2 * (height + width))
            left, right = max(0, columns.start - grow) * sx, min(size[0], columns.stop + grow) * sx
            top, bottom = max(0, rows.start - grow) * sy, min(size[1], rows.stop + grow) * sy
            boxes.append((round(left), round(top), round(right), round(bottom)))
        return sorted(boxes, key=lambda box: (box[1], box[0]))

    def upside_down(self, line: Image.Image) -> bool:
        """Whether the direction network is sure that a line stands on its head."""
        upright, turned = self.direct(fitted(line, 48, 192))[0]
        return bool(turned > 0.9 and turned > upright)

    def text(self, line: Image.Image) -> tuple[str, float]:
        """A line's characters, by greedy CTC decoding, and their mean probability."""
        width = max(320, int(np.ceil(48 * line.width / line.height)))
        steps = self.recognise(fitted(line, 48, width))[0]
        best, probability = steps.argmax(1), steps.max(1)
        keep = (best != 0) & (best != np.concatenate([[0], best[:-1]]))
        text = "".join(self.characters[i - 1] for i in best[keep])
        return text, float(probability[keep].mean()) if keep.any() else 0.0


def normalised(image: Image.Image) -> np.ndarray:
    """RGB image to float32 [1, 3, H, W] in -1..1."""
    pixels = np.asarray(image, np.float32) / 127.5 - 1
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def fitted(line: Image.Image, height: int, width: int) -> np.ndarray:
    """A line scaled to a height, its right side padded with zeros (or the line squeezed) to a width."""
    scaled = min(width, max(1, int(np.ceil(height * line.width / line.height))))
    x = np.zeros((1, 3, height, width), np.float32)
    x[:, :, :, :scaled] = normalised(line.resize((scaled, height), Image.Resampling.BILINEAR))
    return x


def character_list(metadata: str) -> list[str]:
    """The characters of classes 1..: the model's list, and the space that PP-OCR puts last."""
    return [*metadata.splitlines(), " "]


def open_reader(folder: str | Path, threads: int | None = None) -> Reader:
    """A reader that runs on evort."""
    import evort

    sessions = {}
    for name in ("det", "cls", "rec"):
        path = Path(folder) / f"ppocr_{name}.etm"
        if path.is_file():
            sessions[name] = evort.load(path, threads=threads)
        else:
            import evort_tools

            sessions[name] = evort.load(evort_tools.convert(str(path.with_suffix(".onnx"))), threads=threads)
    characters = character_list(sessions["rec"].metadata["character"])
    return Reader(sessions["det"], sessions["cls"], sessions["rec"], characters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", help="folder with ppocr_det, ppocr_cls, ppocr_rec (.etm or .onnx)")
    parser.add_argument("image", nargs="+", help="images to read")
    parser.add_argument("--threads", type=int, help="threads to use")
    args = parser.parse_args()
    reader = open_reader(args.models, args.threads)
    for path in args.image:
        with Image.open(path) as image:
            for box, text, confidence in reader.read(image):
                print(f"{path} {box} {confidence:.2f} {text}")


if __name__ == "__main__":
    main()
