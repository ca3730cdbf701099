"""RGB image in, CMYK TIFF out: an image-adaptive 3-D lookup table for inkjet printing.

    python examples/lut3d_cmyk.py lut3d_96.etm photo.jpg photo.tiff

The model (.etm, or .onnx, converted on the fly) takes RGB / 255 as [1, 3, H, W] and gives CMYK in [0, 1] as
[1, 4, H, W]; what is outside is clipped. It was exported for 480 x 720, but its graph takes any multiples of 4 (it
halves the image twice), so it is converted with symbolic sizes. An image of another size is resized: to the nearest
multiples below, or to what the model fixes.
"""

from __future__ import annotations

import argparse

import numpy as np
from PIL import Image

import evort


def load(path: str, threads: int | None = None) -> evort.Session:
    """A session of an .etm file, or of an .onnx file converted in memory."""
    if path.endswith(".onnx"):
        import evort_tools

        data = evort_tools.convert(path, input_shapes={"input0": (1, 3, "H", "W")})
        return evort.load(data, threads=threads)
    return evort.load(path, threads=threads)


def to_cmyk(session: evort.Session, image: Image.Image) -> Image.Image:
    """The CMYK picture that the model makes of an RGB one."""
    height, width = session.inputs[0].shape[2:]
    if not (isinstance(height, int) and isinstance(width, int)):
        width, height = (max(8, d // 4 * 4) for d in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    cmyk = session(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))[0]
    # Truncated, not rounded, as the printer's own software does.
    return Image.fromarray((np.clip(cmyk, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0), "CMYK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="lut3d_96 as .etm or .onnx")
    parser.add_argument("image", help="an RGB image")
    parser.add_argument("output", help="the TIFF to write")
    parser.add_argument("--threads", type=int, help="threads to use")
    args = parser.parse_args()
    with Image.open(args.image) as image:
        cmyk = to_cmyk(load(args.model, args.threads), image)
    cmyk.save(args.output, compression="tiff_deflate")
    print(f"{args.output}: {cmyk.width} x {cmyk.height} CMYK")


if __name__ == "__main__":
    main()
