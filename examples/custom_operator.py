"""Registers an operator of one's own, in Python, without touching evort: it converts, saves, loads and runs.

    python examples/custom_operator.py

The operator is `example::Dither(X) -> Y`: ordered dithering of an image [N, C, H, W] in [0, 1] to {0, 1} with the 2x2
Bayer matrix.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

import evort
import evort_tools
from evort.ops import Attr, Call, Op, op
from evort.types import DType, Spec


@op("Dither", domain="example")
class Dither(Op):
    """Y = X > threshold, with a threshold that repeats every two pixels."""

    inputs, outputs = ("X",), ("Y",)
    attrs = {"levels": Attr("floats", [0.2, 0.6, 0.8, 0.4])}
    dtypes = {"X": frozenset({DType.FLOAT})}

    def infer(self, c: Call) -> list[Spec]:
        if c.ins[0].rank != 4 or len(c["levels"]) != 4:
            raise c.error("takes [N, C, H, W] and four levels")
        return [c.like(0)]

    def reference(self, c: Call, x: np.ndarray) -> np.ndarray:
        height, width = x.shape[2:]
        tile = np.array(c["levels"], np.float32).reshape(2, 2)
        threshold = np.tile(tile, (height // 2 + 1, width // 2 + 1))[:height, :width]
        return (x > threshold).astype(np.float32)


def build() -> bytes:
    """An .etm model of one Dither after a Clip, by way of ONNX."""
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["image"], ["positive"]),
            helper.make_node("Dither", ["positive"], ["dots"], domain="example"),
        ],
        "halftone",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, "H", "W"])],
        [helper.make_tensor_value_info("dots", TensorProto.FLOAT, ["N", 1, "H", "W"])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("example", 1)]
    return evort_tools.convert(helper.make_model(graph, opset_imports=opsets))


def main() -> None:
    session = evort.load(build())
    ramp = np.tile(np.linspace(0, 1, 48, dtype=np.float32), (8, 1))[None, None]
    for row in session(ramp)[0, 0]:
        print("".join("█" if dot else " " for dot in row))


if __name__ == "__main__":
    main()
