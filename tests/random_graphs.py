"""Random ONNX graphs: what no one would write by hand, for comparing whole chains (passes, planner, kernels) with
another runtime. A seed always gives the same graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LARGEST = 60_000  # elements of a tensor
UNARY = (
    "Relu", "Sigmoid", "Tanh", "HardSwish", "Softplus", "Elu", "LeakyRelu", "Abs", "Neg", "HardSigmoid", "Erf", "Gelu",
    "Mish",
)  # fmt: skip
EPSILON = 0.1  # of normalizations: a small one magnifies what rounding left of nearly constant channels
Shape = tuple[int, ...]


class RandomGraph:
    """A graph of 3 to 21 nodes over one float32 image `x`; each node reads one of the last four values.

    model: the ModelProto; shape: of x; outputs: names, of all that no node reads and sometimes of what one does.
    """

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shape = (self.one_of(1, 1, 2), self.below(12) + 1, self.below(17) + 3, self.below(17) + 3)
        self.values: list[tuple[str, Shape]] = [("x", self.shape)]
        for _ in range(3 + self.below(19)):
            x, shape = self.values[-1 - self.below(min(4, len(self.values)))]
            STEPS[self.below(len(STEPS))](self, x, shape)
        read = {name for node in self.nodes for name in node.input}
        made = self.values[1:]
        shown = [v for v in made if v[0] not in read or self.rng.random() < 0.05]
        self.outputs = [name for name, _ in shown]
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes, f"random {seed}", [value("x", TensorProto.FLOAT, self.shape)],
            [value(name, TensorProto.FLOAT, shape) for name, shape in shown], self.constants,
        )  # fmt: skip
        self.model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)

    def input(self, seed: int = 0) -> dict[str, np.ndarray]:
        return {"x": np.random.default_rng(seed).standard_normal(self.shape).astype(np.float32)}

    # What steps are made of

    def below(self, n: int) -> int:
        return int(self.rng.integers(n))

    def one_of(self, *choices):
        return choices[self.below(len(choices))]

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def weights(self, *shape: int, fan_in: int = 4) -> str:
        """fan_in: how many of them a sum has; sums are then about as large as what comes in."""
        return self.constant((self.rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32))

    def add(self, op: str, inputs: Sequence[str], shape: Sequence[int], **attrs) -> None:
        """A node, unless its result is too large or empty."""
        if 0 < np.prod(shape) <= LARGEST:
            name = f"t{len(self.nodes)}"
            self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"{op}_{name}", **attrs))
            self.values.append((name, tuple(int(d) for d in shape)))

    # Steps: each may add a node that reads x

    def conv(self, x: str, shape: Shape) -> None:
        if len(shape) != 4:
            return
        n, c, h, w = shape
        k, stride, dilation = self.one_of(1, 3, 3, 5), self.one_of(1, 1, 2), self.one_of(1, 1, 1, 2)
        groups, m = self.one_of((c, c * self.one_of(1, 2)), (2, 2 * (1 + self.below(8))), (1, 1 + self.below(40)))
        if c % groups:
            return
        pads = [self.below(k) for _ in range(4)]
        reach = dilation * (k - 1) + 1
        out_h, out_w = (h + pads[0] + pads[2] - reach) // stride + 1, (w + pads[1] + pads[3] - reach) // stride + 1
        if min(out_h, out_w) < 1:
            return
        bias = [self.weights(m)] if self.rng.random() < 0.6 else []
        w = self.weights(m, c // groups, k, k, fan_in=c // groups * k * k)
        self.add("Conv", [x, w, *bias], (n, m, out_h, out_w), group=groups, kernel_shape=[k, k],
                 strides=[stride] * 2, dilations=[dilation] * 2, pads=pads)  # fmt: skip

    def conv_transpose(self, x: str, shape: Shape) -> None:
        if len(shape) == 4:
            m, k, stride = 1 + self.below(12), self.one_of(2, 3), self.one_of(1, 2)
            out = (shape[0], m, (shape[2] - 1) * stride + k, (shape[3] - 1) * stride + k)
            inputs = [x, self.weights(shape[1], m, k, k, fan_in=shape[1]), self.weights(m)]
            self.add("ConvTranspose", inputs, out, kernel_shape=[k, k], strides=[stride] * 2)

    def pool(self, x: str, shape: Shape) -> None:
        k, stride, pad = self.one_of(2, 3), self.one_of(1, 2), self.below(2)
        if len(shape) == 4 and min(shape[2:]) >= k:
            op = self.one_of("MaxPool", "AveragePool")
            out = [(d + 2 * pad - k) // stride + 1 for d in shape[2:]]
            attrs = {"count_include_pad": self.below(2)} if op == "AveragePool" else {}
            self.add(op, [x], (*shape[:2], *out), kernel_shape=[k, k], strides=[stride] * 2, pads=[pad] * 4, **attrs)

    def normalize(self, x: str, shape: Shape) -> None:
        if len(shape) == 4:
            c = shape[1]
            if self.below(2):
                self.add("InstanceNormalization", [x, self.weights(c), self.weights(c)], shape, epsilon=EPSILON)
            else:
                variance = self.constant(self.rng.random(c).astype(np.float32) + np.float32(0.5))
                self.add("BatchNormalization", [x, *(self.weights(c) for _ in range(3)), variance], shape)
        else:
            inputs = [x, self.weights(shape[-1]), self.weights(shape[-1])]
            self.add("LayerNormalization", inputs, shape, axis=-1, epsilon=EPSILON)

    def unary(self, x: str, shape: Shape) -> None:
        self.add(self.one_of(*UNARY), [x], shape)

    def clip_or_prelu(self, x: str, shape: Shape) -> None:
        if len(shape) == 4 and self.below(2):
            self.add("PRelu", [x, self.weights(shape[1], 1, 1)], shape)
        else:
            low, high = np.float32(-self.rng.random()), np.float32(3 * self.rng.random())
            self.add("Clip", [x, self.constant(low), self.constant(high)], shape)

    def binary(self, x: str, shape: Shape) -> None:
        """With another value of the same shape, x itself among them."""
        other = self.one_of(*(name for name, s in self.values if s == shape))
        self.add(self.one_of("Add", "Mul", "Sub", "Max", "Min"), [x, other], shape)

    def broadcast(self, x: str, shape: Shape) -> None:
        """With a constant, some of whose sizes are 1, or missing in front."""
        sizes = [d if self.below(2) else 1 for d in shape][self.below(len(shape) + 1) :]
        inputs = [x, self.weights(*sizes)]
        self.add(self.one_of("Add", "Mul", "Sub"), inputs[:: self.one_of(1, 1, -1)], shape)

    def matmul(self, x: str, shape: Shape) -> None:
        if len(shape) >= 2:
            n = 1 + self.below(24)
            self.add("MatMul", [x, self.weights(shape[-1], n, fan_in=shape[-1])], (*shape[:-1], n))

    def reduce(self, x: str, shape: Shape) -> None:
        axis, keep = self.below(len(shape)), self.below(2)
        out = shape[:axis] + (1,) * keep + shape[axis + 1 :]
        if out:
            op = self.one_of("ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2")
            self.add(op, [x, self.ints(axis)], out, keepdims=keep)

    def global_pool(self, x: str, shape: Shape) -> None:
        if len(shape) == 4:
            self.add("GlobalAveragePool", [x], (*shape[:2], 1, 1))

    def softmax(self, x: str, shape: Shape) -> None:
        self.add("Softmax", [x], shape, axis=self.below(len(shape)))

    def transpose(self, x: str, shape: Shape) -> None:
        order = [int(i) for i in self.rng.permutation(len(shape))]
        self.add("Transpose", [x], [shape[i] for i in order], perm=order)

    def merge_axes(self, x: str, shape: Shape) -> None:
        if len(shape) >= 2:
            at = self.below(len(shape) - 1)
            out = (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])
            self.add("Reshape", [x, self.ints(*out)], out)

    def split_axis(self, x: str, shape: Shape) -> None:
        at, factor = self.below(len(shape)), self.one_of(2, 3, 4)
        if len(shape) < 5 and shape[at] % factor == 0:
            out = (*shape[:at], factor, shape[at] // factor, *shape[at + 1 :])
            self.add("Reshape", [x, self.ints(*out)], out)

    def unsqueeze(self, x: str, shape: Shape) -> None:
        at = self.below(len(shape) + 1)
        if len(shape) < 5:
            self.add("Unsqueeze", [x, self.ints(at)], (*shape[:at], 1, *shape[at:]))

    def concat(self, x: str, shape: Shape) -> None:
        axis = self.below(len(shape))
        without = [s[:axis] + s[axis + 1 :] if len(s) == len(shape) else None for _, s in self.values]
        fits = [v for v, rest in zip(self.values, without, strict=True) if rest == shape[:axis] + shape[axis + 1 :]]
        other, size = self.one_of(*((name, s[axis]) for name, s in fits))
        self.add("Concat", [x, other], (*shape[:axis], shape[axis] + size, *shape[axis + 1 :]), axis=axis)

    def slice(self, x: str, shape: Shape) -> None:
        axis, step = self.below(len(shape)), self.one_of(1, 1, 2)
        begin = self.below(shape[axis])
        end = begin + 1 + self.below(shape[axis] - begin)
        out = (*shape[:axis], len(range(begin, end, step)), *shape[axis + 1 :])
        self.add("Slice", [x, *(self.ints(i) for i in (begin, end, axis, step))], out)

    def gather(self, x: str, shape: Shape) -> None:
        axis, n = self.below(len(shape)), 1 + self.below(4)
        at = self.constant(self.rng.integers(-shape[axis], shape[axis], n))
        self.add("Gather", [x, at], (*shape[:axis], n, *shape[axis + 1 :]), axis=axis)

    def pad(self, x: str, shape: Shape) -> None:
        pads = [self.below(3) for _ in range(2 * len(shape))]
        out = [d + a + b for d, a, b in zip(shape, pads[: len(shape)], pads[len(shape) :], strict=True)]
        self.add("Pad", [x, self.ints(*pads)], out, mode=self.one_of("constant", "edge"))

    def resize(self, x: str, shape: Shape) -> None:
        if len(shape) == 4:
            scales = self.constant(np.array([1, 1, 2, 2], np.float32))
            self.add("Resize", [x, "", scales], (*shape[:2], 2 * shape[2], 2 * shape[3]), nearest_mode="floor",
                     mode=self.one_of("nearest", "linear"),
                     coordinate_transformation_mode=self.one_of("asymmetric", "half_pixel"))  # fmt: skip


G = RandomGraph
STEPS: tuple[Callable[[RandomGraph, str, Shape], None], ...] = (
    G.conv, G.conv, G.conv, G.conv, G.conv, G.conv_transpose, G.pool, G.normalize, G.unary, G.unary, G.clip_or_prelu,
    G.binary, G.broadcast, G.matmul, G.reduce, G.global_pool, G.softmax, G.transpose, G.merge_axes, G.split_axis,
    G.unsqueeze, G.concat, G.slice, G.gather, G.pad, G.resize,
)  # fmt: skip
