"""Runs a model on files: npz (arrays by input name), npy, or images; writes the outputs to an npz file.

Images become float32 [1, C, H, W]: RGB (or grey where the model takes one channel), resized to the model's size where
that is fixed, multiplied by --scale, minus --mean, divided by --std.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from evort.inputs import Value
from evort.session import Session
from evort_tools.common import open_session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an .etm file (or .onnx, converted in memory)")
    add_input_arguments(parser, required=True)
    parser.add_argument("-o", "--output", metavar="FILE.npz", help="where to write the outputs")
    parser.add_argument("--threads", type=int, help="threads to use (default: EVORT_NUM_THREADS or the processors)")
    parser.add_argument("--device", default="cpu", help="cpu, or reference (slow, for checking)")


def add_input_arguments(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Files with inputs, and how images are read: what `given_inputs` takes."""
    parser.add_argument(
        "-i", "--input", action="append", required=required, metavar="[NAME=]FILE",
        help="an npz with all inputs, or an npy or image file for one input (repeatable; NAME may be left out where "
        "the model has one input)",
    )  # fmt: skip
    parser.add_argument("--scale", type=float, default=1 / 255, help="what image values are multiplied by (1/255)")
    parser.add_argument("--mean", type=_floats, default=[0.0], help="subtracted after scaling, by channel: 0.5,0.5,0.5")
    parser.add_argument("--std", type=_floats, default=[1.0], help="divided by after that, by channel")
    parser.add_argument("--bgr", action="store_true", help="give the channels in the order blue, green, red")


def _floats(text: str) -> list[float]:
    return [float(t) for t in text.split(",")]


def run(args: argparse.Namespace) -> int:
    session = open_session(args.model, threads=args.threads, device=args.device)
    results = session.run(given_inputs(session, args))
    if args.output:
        write_npz(args.output, results)
    for name, value in results.items():
        print(f"{name}: {describe(value)}")
    return 0


def given_inputs(session: Session, args: argparse.Namespace) -> dict[str, Any]:
    """The arrays of all --input. Raises ValueError or OSError for what cannot be read."""
    feeds: dict[str, Any] = {}
    for given in args.input or ():
        feeds.update(read_inputs(session, given, args))
    return feeds


def read_inputs(session: Session, given: str, args: argparse.Namespace) -> dict[str, Any]:
    """The arrays of one --input. Raises ValueError or OSError for what cannot be read."""
    name, equals, path = given.partition("=")
    if not equals or not any(v.name == name for v in session.inputs):
        name, path = "", given
    if path.endswith(".npz"):
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    if not name:
        if len(session.inputs) != 1:
            raise ValueError(f"{given}: which input is it? The model has {session.inputs}; write NAME=FILE")
        name = session.inputs[0].name
    if path.endswith(".npy"):
        return {name: np.load(path, allow_pickle=False)}
    value = next(v for v in session.inputs if v.name == name)
    return {name: read_image(path, value, args.scale, args.mean, args.std, args.bgr)}


def read_image(
    path: str, value: Value, scale: float, mean: list[float], std: list[float], bgr: bool = False
) -> np.ndarray:
    """An image as float32 [1, C, H, W] for an input, resized where that has a fixed size."""
    from PIL import Image

    shape = value.shape
    if shape is None or len(shape) != 4:
        raise ValueError(f"input {value.name!r} takes {shape}, not an image [N, C, H, W]")
    with Image.open(path) as image:
        image = image.convert("L" if shape[1] == 1 else "RGB")
        if isinstance(shape[2], int) and isinstance(shape[3], int):
            image = image.resize((shape[3], shape[2]), Image.Resampling.BILINEAR)
        pixels = np.atleast_3d(np.asarray(image, np.float32))
    if bgr:
        pixels = pixels[:, :, ::-1]
    pixels = (pixels * np.float32(scale) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def write_npz(path: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays to an npz file at once: a temporary file beside it, then a rename."""
    folder = Path(path).resolve().parent
    handle, temporary = tempfile.mkstemp(suffix=".npz", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def describe(value: Any) -> str:
    """dtype, shape, and the range or the values."""
    if not isinstance(value, np.ndarray):
        return f"{type(value).__name__} of {len(value)}" if isinstance(value, list) else repr(value)
    text = f"{value.dtype}{list(value.shape)}"
    if value.size == 0 or value.dtype == object:
        return text
    if value.size <= 16:
        return f"{text} = {np.array2string(value, precision=5, separator=', ')}"
    return f"{text} from {value.min():.6g} to {value.max():.6g}, mean {value.mean():.6g}"


if __name__ == "__main__":
    from evort_tools.cli import run_command

    sys.exit(run_command("run"))
