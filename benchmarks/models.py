"""Synthetic networks of the usual kinds, built with onnx.helper and seeded weights: no framework, no download.

Each `build_x()` returns a checked `onnx.ModelProto` and each entry of `MODELS` also knows example inputs. Weights are
He-normal, so that activations keep their size through the depth and comparisons of results mean something. Graphs are
written the way exporters write them (BatchNormalization not folded, SiLU as Sigmoid and Mul, GELU as its Erf formula in
one network and as the operator in another), because that is what a converter has to clean up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Inputs = dict[str, np.ndarray]


class Builder:
    """Collects nodes and initializers; every method adds one layer and returns the name of its output."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shapes: dict[str, int] = {}  # channels of each feature map, which the next Conv needs

    def op(self, kind: str, *inputs: str, **attrs: object) -> str:
        """A node of type `kind` with one output, named after its position."""
        out = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=f"n{len(self.nodes)}_{kind}", **attrs))
        if inputs and inputs[0] in self.shapes:
            self.shapes[out] = self.shapes[inputs[0]]
        return out

    def const(self, value: np.ndarray) -> str:
        """An initializer."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def normal(self, *shape: int, scale: float) -> str:
        return self.const((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def conv(
        self,
        x: str,
        channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        rank: int = 2,
        pad: int | None = None,
        bias: bool = True,
    ) -> str:
        """A convolution of `rank` spatial dimensions, padded so that stride 1 keeps the size."""
        cin = self.shapes[x]
        fan_in = cin // groups * kernel**rank
        inputs = [x, self.normal(channels, cin // groups, *[kernel] * rank, scale=np.sqrt(2 / fan_in))]
        if bias:
            inputs.append(self.normal(channels, scale=0.05))
        y = self.op(
            "Conv",
            *inputs,
            kernel_shape=[kernel] * rank,
            strides=[stride] * rank,
            group=groups,
            pads=[kernel // 2 if pad is None else pad] * 2 * rank,
        )
        self.shapes[y] = channels
        return y

    def batch_norm(self, x: str) -> str:
        c = self.shapes[x]
        scale, shift, mean = (self.rng.normal(m, 0.1, c).astype(np.float32) for m in (1, 0, 0))
        variance = self.rng.uniform(0.8, 1.2, c).astype(np.float32)
        return self.op("BatchNormalization", x, *map(self.const, (scale, shift, mean, variance)))

    def conv_bn(self, x: str, channels: int, kernel: int, stride: int = 1, groups: int = 1, rank: int = 2) -> str:
        return self.batch_norm(self.conv(x, channels, kernel, stride, groups, rank, bias=False))

    def linear(self, x: str, cin: int, cout: int, gain: float = 1.0) -> str:
        """`x @ W + b` over the last axis, as MatMul and Add."""
        w = self.normal(cin, cout, scale=np.sqrt(gain / cin))
        return self.op("Add", self.op("MatMul", x, w), self.normal(cout, scale=0.02))

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64))

    def model(
        self, name: str, inputs: dict[str, tuple[int, list[int | str]]], outputs: dict[str, list[int | str]], opset: int
    ) -> onnx.ModelProto:
        """Close the graph: `inputs` maps a name to (element type, shape), `outputs` a tensor to its shape."""
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(k, t, s) for k, (t, s) in inputs.items()],
            [helper.make_tensor_value_info(k, TensorProto.FLOAT, s) for k, s in outputs.items()],
            self.weights,
        )
        ir = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
        model = helper.make_model(
            graph, producer_name="evort-benchmarks", ir_version=ir, opset_imports=[helper.make_opsetid("", opset)]
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def build_lenet() -> onnx.ModelProto:
    """LeNet-5 with ReLU and max pooling, random weights (the trained one is `models/lenet.onnx`)."""
    b = Builder(1)
    b.shapes["x"] = 1
    x = b.op("MaxPool", b.op("Relu", b.conv("x", 6, 5)), kernel_shape=[2, 2], strides=[2, 2])
    x = b.op("MaxPool", b.op("Relu", b.conv(x, 16, 5, pad=0)), kernel_shape=[2, 2], strides=[2, 2])
    x = b.op("Flatten", x)
    for cin, cout in ((400, 120), (120, 84), (84, 10)):
        w, bias = b.normal(cout, cin, scale=np.sqrt(2 / cin)), b.normal(cout, scale=0.05)
        x = b.op("Gemm", x, w, bias, transB=1)
        x = x if cout == 10 else b.op("Relu", x)
    return b.model("lenet", {"x": (TensorProto.FLOAT, ["N", 1, 28, 28])}, {x: ["N", 10]}, 17)


def build_mobilenet_v2() -> onnx.ModelProto:
    """MobileNetV2 1.0 at 224 (Sandler et al., 2018): inverted residuals, 300 M multiply-adds, 3.5 M weights."""
    b = Builder(2)
    b.shapes["image"] = 3
    zero, six = b.const(np.float32(0)), b.const(np.float32(6))

    def relu6(x: str) -> str:
        return b.op("Clip", x, zero, six)

    x = relu6(b.conv_bn("image", 32, 3, 2))
    for expand, channels, repeat, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for i in range(repeat):
            cin, s = b.shapes[x], stride if i == 0 else 1
            y = x if expand == 1 else relu6(b.conv_bn(x, cin * expand, 1))
            y = relu6(b.conv_bn(y, cin * expand, 3, s, groups=cin * expand))
            y = b.conv_bn(y, channels, 1)
            x = b.op("Add", x, y) if s == 1 and cin == channels else y
    x = relu6(b.conv_bn(x, 1280, 1))
    x = b.op("Flatten", b.op("GlobalAveragePool", x))
    x = b.op("Gemm", x, b.normal(1000, 1280, scale=np.sqrt(1 / 1280)), b.normal(1000, scale=0.02), transB=1)
    return b.model("mobilenet_v2", {"image": (TensorProto.FLOAT, ["N", 3, 224, 224])}, {x: ["N", 1000]}, 17)


def build_resnet18() -> onnx.ModelProto:
    """ResNet-18 at 224 (He et al., 2015): 1.8 G multiply-adds, 11.7 M weights."""
    b = Builder(3)
    b.shapes["image"] = 3
    x = b.op("Relu", b.conv_bn("image", 64, 7, 2))
    x = b.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for s in (stride, 1):
            skip = b.conv_bn(x, channels, 1, s) if b.shapes[x] != channels else x
            y = b.op("Relu", b.conv_bn(x, channels, 3, s))
            x = b.op("Relu", b.op("Add", b.conv_bn(y, channels, 3), skip))
    x = b.op("Flatten", b.op("GlobalAveragePool", x))
    x = b.op("Gemm", x, b.normal(1000, 512, scale=np.sqrt(1 / 512)), b.normal(1000, scale=0.02), transB=1)
    return b.model("resnet18", {"image": (TensorProto.FLOAT, ["N", 3, 224, 224])}, {x: ["N", 1000]}, 17)


def build_unet3d() -> onnx.ModelProto:
    """A 3-D U-Net (Cicek et al., 2016) with trilinear upsampling for 1x1xDxHxW volumes, here 32x64x64."""
    b = Builder(4)
    b.shapes["volume"] = 1
    scales = b.const(np.array([1, 1, 2, 2, 2], np.float32))

    def block(x: str, channels: int) -> str:
        for _ in range(2):
            x = b.op("Relu", b.conv_bn(x, channels, 3, rank=3))
        return x

    x, skips = block("volume", 8), []
    for channels in (16, 32, 64):
        skips.append(x)
        x = block(b.op("MaxPool", x, kernel_shape=[2] * 3, strides=[2] * 3), channels)
    for skip in reversed(skips):
        up = b.op("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
        both = b.shapes[up] + b.shapes[skip]
        x = b.op("Concat", up, skip, axis=1)
        b.shapes[x] = both
        x = block(x, b.shapes[skip])
    x = b.conv(x, 3, 1, rank=3)
    x = b.op("Softmax", x, axis=1)
    return b.model("unet3d", {"volume": (TensorProto.FLOAT, [1, 1, "D", "H", "W"])}, {x: [1, 3, "D", "H", "W"]}, 17)


def build_bert_mini() -> onnx.ModelProto:
    """BERT-mini (Turc et al., 2019): 4 post-norm layers, 256 hidden, 4 heads, int64 ids [N,L] with L <= 128."""
    b = Builder(5)
    hidden, heads, vocabulary, longest = 256, 4, 8192, 128
    size = hidden // heads

    def norm(x: str) -> str:
        scale = b.const(b.rng.normal(1, 0.05, hidden).astype(np.float32))
        return b.op("LayerNormalization", x, scale, b.normal(hidden, scale=0.02), axis=-1, epsilon=1e-12)

    ids_shape = b.op("Shape", "input_ids")
    length = b.op("Gather", ids_shape, b.const(np.array([1], np.int64)), axis=0)
    words = b.op("Gather", b.normal(vocabulary, hidden, scale=0.5), "input_ids", axis=0)
    places = b.op("Slice", b.normal(longest, hidden, scale=0.5), b.ints(0), length, b.ints(0))
    kinds = b.op("Gather", b.normal(2, hidden, scale=0.5), "token_type_ids", axis=0)
    x = norm(b.op("Add", b.op("Add", words, kinds), places))
    # Masked keys get a large negative score: (1 - mask) * -10000, broadcast over heads and queries.
    mask = b.op("Cast", b.op("Unsqueeze", "attention_mask", b.ints(1, 2)), to=TensorProto.FLOAT)
    mask = b.op("Mul", b.op("Sub", b.const(np.float32(1)), mask), b.const(np.float32(-10000)))
    split, merge = b.ints(0, 0, heads, size), b.ints(0, 0, hidden)

    def head(y: str, perm: list[int]) -> str:
        return b.op("Transpose", b.op("Reshape", b.linear(y, hidden, hidden), split), perm=perm)

    for _ in range(4):
        q, k, v = head(x, [0, 2, 1, 3]), head(x, [0, 2, 3, 1]), head(x, [0, 2, 1, 3])
        scores = b.op("Div", b.op("MatMul", q, k), b.const(np.float32(np.sqrt(size))))
        weights = b.op("Softmax", b.op("Add", scores, mask), axis=-1)
        context = b.op("Transpose", b.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        x = norm(b.op("Add", b.linear(b.op("Reshape", context, merge), hidden, hidden), x))
        y = b.op("Gelu", b.linear(x, hidden, 4 * hidden))
        x = norm(b.op("Add", b.linear(y, 4 * hidden, hidden), x))
    ids = (TensorProto.INT64, ["N", "L"])
    return b.model(
        "bert_mini", {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids}, {x: ["N", "L", hidden]}, 20
    )


def build_yolo() -> onnx.ModelProto:
    """A one-stage detector in the manner of YOLOv5n at 320: SiLU, CSP blocks, SPPF, PAN neck, three decoded heads.

    Output [N,6300,15]: centre x, y, width, height in pixels, objectness, 10 class scores per anchor.
    """
    b = Builder(6)
    b.shapes["image"] = 3
    classes, anchors, size = 10, 3, 320

    def cbs(x: str, channels: int, kernel: int = 1, stride: int = 1) -> str:
        y = b.conv_bn(x, channels, kernel, stride)
        return b.op("Mul", y, b.op("Sigmoid", y))

    def concat(*xs: str) -> str:
        y = b.op("Concat", *xs, axis=1)
        b.shapes[y] = sum(b.shapes[x] for x in xs)
        return y

    def csp(x: str, channels: int, repeat: int, shortcut: bool = True) -> str:
        y, side = cbs(x, channels // 2), cbs(x, channels // 2)
        for _ in range(repeat):
            z = cbs(cbs(y, channels // 2), channels // 2, 3)
            y = b.op("Add", y, z) if shortcut else z
        return cbs(concat(y, side), channels)

    def up(x: str) -> str:
        return b.op(
            "Resize", x, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
        )

    scales = b.const(np.array([1, 1, 2, 2], np.float32))
    x = cbs(cbs("image", 16, 3, 2), 32, 3, 2)
    x = csp(x, 32, 1)
    p3 = csp(cbs(x, 64, 3, 2), 64, 2)
    p4 = csp(cbs(p3, 128, 3, 2), 128, 3)
    x = cbs(csp(cbs(p4, 256, 3, 2), 256, 1), 128)
    pools = [x]
    for _ in range(3):
        pools.append(b.op("MaxPool", pools[-1], kernel_shape=[5, 5], strides=[1, 1], pads=[2, 2, 2, 2]))
    p5 = cbs(concat(*pools), 256)
    t5 = cbs(p5, 128)
    t4 = cbs(csp(concat(up(t5), p4), 128, 1, False), 64)
    n3 = csp(concat(up(t4), p3), 64, 1, False)
    n4 = csp(concat(cbs(n3, 64, 3, 2), t4), 128, 1, False)
    n5 = csp(concat(cbs(n4, 128, 3, 2), t5), 256, 1, False)
    outputs = []
    for level, stride in ((n3, 8), (n4, 16), (n5, 32)):
        n = size // stride
        y = b.conv(level, anchors * (classes + 5), 1)
        y = b.op("Reshape", y, b.ints(0, anchors, classes + 5, n, n))
        y = b.op("Sigmoid", b.op("Transpose", y, perm=[0, 1, 3, 4, 2]))
        xy, wh, rest = (f"{y}_{part}" for part in ("xy", "wh", "rest"))
        b.nodes.append(helper.make_node("Split", [y, b.ints(2, 2, classes + 1)], [xy, wh, rest], f"split{n}", axis=4))
        grid = np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).astype(np.float32)[None, None] - 0.5
        sizes = np.linspace(stride, 4 * stride, 2 * anchors, dtype=np.float32).reshape(1, anchors, 1, 1, 2)
        two = b.const(np.float32(2))
        xy = b.op("Mul", b.op("Add", b.op("Mul", xy, two), b.const(grid)), b.const(np.float32(stride)))
        wh = b.op("Mul", b.op("Pow", b.op("Mul", wh, two), two), b.const(sizes))
        outputs.append(b.op("Reshape", b.op("Concat", xy, wh, rest, axis=4), b.ints(0, -1, classes + 5)))
    x = b.op("Concat", *outputs, axis=1)
    return b.model("yolo", {"image": (TensorProto.FLOAT, ["N", 3, size, size])}, {x: ["N", 6300, classes + 5]}, 17)


def build_ds_cnn() -> onnx.ModelProto:
    """DS-CNN for keyword spotting (Zhang et al., "Hello Edge", 2017): [N,1,49,10] MFCC frames to 12 words."""
    b = Builder(7)
    b.shapes["mfcc"] = 1
    w = b.normal(64, 1, 10, 4, scale=np.sqrt(2 / 40))
    x = b.op("Conv", "mfcc", w, kernel_shape=[10, 4], strides=[2, 2], pads=[4, 1, 5, 1])
    b.shapes[x] = 64
    x = b.op("Relu", b.batch_norm(x))
    for _ in range(4):
        x = b.op("Relu", b.conv_bn(x, 64, 3, groups=64))
        x = b.op("Relu", b.conv_bn(x, 64, 1))
    x = b.op("Flatten", b.op("GlobalAveragePool", x))
    x = b.op("Gemm", x, b.normal(12, 64, scale=np.sqrt(1 / 64)), b.normal(12, scale=0.02), transB=1)
    return b.model("ds_cnn", {"mfcc": (TensorProto.FLOAT, ["N", 1, 49, 10])}, {b.op("Softmax", x): ["N", 12]}, 17)


def build_audio_tcn() -> onnx.ModelProto:
    """A causal temporal network over raw 16 kHz audio: 1-D depthwise-separable, dilated, GELU written out with Erf."""
    b = Builder(8)
    b.shapes["audio"] = 1
    x = b.op(
        "Conv",
        "audio",
        b.normal(64, 1, 32, scale=np.sqrt(2 / 32)),
        b.normal(64, scale=0.05),
        kernel_shape=[32],
        strides=[16],
        pads=[16, 0],
    )
    b.shapes[x] = 64

    def gelu(y: str) -> str:
        inner = b.op("Erf", b.op("Div", y, b.const(np.float32(np.sqrt(2)))))
        return b.op("Mul", b.op("Mul", y, b.op("Add", inner, b.const(np.float32(1)))), b.const(np.float32(0.5)))

    for dilation in (1, 2, 4, 8, 1, 2, 4, 8):
        padded = b.op("Pad", x, b.ints(0, 0, 4 * dilation, 0, 0, 0), b.const(np.float32(0)))
        y = b.op(
            "Conv",
            padded,
            b.normal(64, 1, 5, scale=np.sqrt(2 / 5)),
            b.normal(64, scale=0.05),
            kernel_shape=[5],
            dilations=[dilation],
            group=64,
        )
        b.shapes[y] = 64
        x = b.op("Add", x, b.conv(gelu(b.conv(y, 128, 1, rank=1)), 64, 1, rank=1))
    x = b.op("Sigmoid", b.conv(x, 1, 1, rank=1))
    return b.model("audio_tcn", {"audio": (TensorProto.FLOAT, ["N", 1, 16000])}, {x: ["N", 1, "frames"]}, 17)


def _normal(name: str, *shape: int) -> Callable[[np.random.Generator], Inputs]:
    return lambda rng: {name: rng.standard_normal(shape, dtype=np.float32)}


def _uniform(name: str, *shape: int) -> Callable[[np.random.Generator], Inputs]:
    return lambda rng: {name: rng.random(shape, dtype=np.float32)}


def _tokens(rng: np.random.Generator) -> Inputs:
    """128 positions of which the last 28 are padding."""
    mask = (np.arange(128) < 100).astype(np.int64)[None]
    return {
        "input_ids": rng.integers(0, 8192, (1, 128)),
        "attention_mask": mask,
        "token_type_ids": (np.arange(128) >= 50).astype(np.int64)[None],
    }


@dataclass(frozen=True)
class Synthetic:
    """A synthetic network: `build()` makes the model, `example(rng)` one set of inputs for it."""

    build: Callable[[], onnx.ModelProto]
    example: Callable[[np.random.Generator], Inputs]


MODELS: dict[str, Synthetic] = {
    "lenet": Synthetic(build_lenet, _uniform("x", 1, 1, 28, 28)),
    "mobilenet_v2": Synthetic(build_mobilenet_v2, _normal("image", 1, 3, 224, 224)),
    "resnet18": Synthetic(build_resnet18, _normal("image", 1, 3, 224, 224)),
    "unet3d": Synthetic(build_unet3d, _uniform("volume", 1, 1, 32, 64, 64)),
    "bert_mini": Synthetic(build_bert_mini, _tokens),
    "yolo": Synthetic(build_yolo, _uniform("image", 1, 3, 320, 320)),
    "ds_cnn": Synthetic(build_ds_cnn, _normal("mfcc", 1, 1, 49, 10)),
    "audio_tcn": Synthetic(build_audio_tcn, _normal("audio", 1, 1, 16000)),
}
