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
    """A graph of 3 to 21 steps over one float32 `x`, an image (even seeds) or a sequence; each step reads one of the
    last four values and adds a node, or the few that exporters write for it.

    model: the ModelProto; shape: of x; outputs: names, of all that no node reads and sometimes of what one does.
    """

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        image = (self.one_of(1, 1, 2), self.below(12) + 1, self.below(17) + 3, self.below(17) + 3)
        sequence = (self.one_of(1, 2, 3), self.below(20) + 1, self.one_of(4, 8, 12, 16))
        self.shape: Shape = sequence if seed % 2 else image
        steps = COMMON + (OF_SEQUENCES if seed % 2 else OF_IMAGES)
        self.values: list[tuple[str, Shape]] = [("x", self.shape)]
        for _ in range(3 + self.below(19)):
            x, shape = self.values[-1 - self.below(min(4, len(self.values)))]
            self.one_of(*steps)(self, x, shape)
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
        """A node whose result later steps may read, unless that is too large or empty."""
        if 0 < np.prod(shape) <= LARGEST:
            self.show(self.node(op, inputs, **attrs), shape)

    def show(self, name: str, shape: Sequence[int]) -> None:
        self.values.append((name, tuple(int(d) for d in shape)))

    def node(self, op: str, inputs: Sequence[str], outputs: int = 1, **attrs) -> str:
        """A node within a step; returns the name of its first result: others end in .1, .2."""
        name = f"t{len(self.nodes)}"
        names = [name, *(f"{name}.{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"{op}_{name}", **attrs))
        return name

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

    # Steps of sequences

    def linear(self, x: str, shape: Shape) -> None:
        n = self.one_of(4, 5, 8, 12, 16)
        product = self.node("MatMul", [x, self.weights(shape[-1], n, fan_in=shape[-1])])
        self.add("Add", [product, self.weights(n)][:: self.one_of(1, -1)], (*shape[:-1], n))

    def gemm(self, x: str, shape: Shape) -> None:
        if len(shape) == 2:
            n, turned = 1 + self.below(20), self.below(2)
            w = self.weights(*((n, shape[1]) if turned else (shape[1], n)), fan_in=shape[1])
            alpha, beta = self.one_of(1.0, 0.5), self.one_of(1.0, 2.0)
            self.add("Gemm", [x, w, self.weights(n)], (shape[0], n), transB=turned, alpha=alpha, beta=beta)

    def layer_norm(self, x: str, shape: Shape) -> None:
        """As exporters write it without the operator."""
        last = self.ints(-1)
        centered = self.node("Sub", [x, self.node("ReduceMean", [x, last])])
        square = self.one_of(["Mul", centered], ["Pow", self.constant(np.float32(2))])
        variance = self.node("ReduceMean", [self.node(square[0], [centered, square[1]]), last])
        root = self.node("Sqrt", [self.node("Add", [variance, self.constant(np.float32(EPSILON))])])
        scaled = self.node("Mul", [self.node("Div", [centered, root]), self.weights(shape[-1])])
        self.add("Add", [scaled, self.weights(shape[-1])], shape)

    def gelu_or_silu(self, x: str, shape: Shape) -> None:
        if self.below(2):
            self.add("Mul", [x, self.node("Sigmoid", [x])], shape)
        else:
            erf = self.node("Erf", [self.node("Div", [x, self.constant(np.float32(2**0.5))])])
            product = self.node("Mul", [x, self.node("Add", [erf, self.constant(np.float32(1))])])
            self.add("Mul", [product, self.constant(np.float32(0.5))], shape)

    def attention(self, x: str, shape: Shape) -> None:
        heads = self.one_of(1, 2, 4)
        if len(shape) != 3 or shape[2] % heads:
            return
        n, length, width = shape
        each = width // heads

        def projected(perm: list[int]) -> str:
            w = self.node("MatMul", [x, self.weights(width, width, fan_in=width)])
            split = self.node(
                "Reshape", [self.node("Add", [w, self.weights(width)]), self.ints(n, length, heads, each)]
            )
            return self.node("Transpose", [split], perm=perm)

        q, k, v = projected([0, 2, 1, 3]), projected([0, 2, 3, 1]), projected([0, 2, 1, 3])
        if self.below(2):
            q = self.node("Div", [q, self.constant(np.float32(each**0.5))])
            scores = self.node("MatMul", [q, k])
        else:
            scores = self.node("Mul", [self.node("MatMul", [q, k]), self.constant(np.float32(each**-0.5))])
        if self.below(2):
            sizes = self.one_of((1, 1, length, length), (n, 1, 1, length))
            hidden = np.where(self.rng.random(sizes) < 0.2, -1e4, 0).astype(np.float32)
            scores = self.node("Add", [scores, self.constant(hidden)])
        mixed = self.node("MatMul", [self.node("Softmax", [scores], axis=-1), v])
        self.add("Reshape", [self.node("Transpose", [mixed], perm=[0, 2, 1, 3]), self.ints(*shape)], shape)

    def recurrent(self, x: str, shape: Shape) -> None:
        if len(shape) != 3:
            return
        op, gates = self.one_of(("LSTM", 4), ("GRU", 3), ("RNN", 1))
        hidden, direction = self.one_of(3, 4, 8), self.one_of("forward", "reverse", "bidirectional")
        ways = 1 + (direction == "bidirectional")
        attrs = {"linear_before_reset": self.below(2)} if op == "GRU" else {}
        w = self.weights(ways, gates * hidden, shape[2], fan_in=shape[2])
        bias = [self.weights(ways, 2 * gates * hidden)] if self.below(2) else []
        inputs = [x, w, self.weights(ways, gates * hidden, hidden, fan_in=hidden), *bias]
        y = self.node(op, inputs, hidden_size=hidden, direction=direction, **attrs)
        out = (shape[0], shape[1], ways * hidden)
        self.add("Reshape", [self.node("Transpose", [y], perm=[0, 2, 1, 3]), self.ints(*out)], out)

    def conv_1d(self, x: str, shape: Shape) -> None:
        k, stride, m = self.one_of(1, 3, 5), self.one_of(1, 2), 1 + self.below(20)
        if len(shape) == 3 and shape[2] >= k:
            w = self.weights(m, shape[1], k, fan_in=k * shape[1])
            out = (shape[0], m, (shape[2] - 1) // stride + 1)
            self.add("Conv", [x, w, self.weights(m)], out, kernel_shape=[k], pads=[k // 2] * 2, strides=[stride])

    def where(self, x: str, shape: Shape) -> None:
        other = self.one_of(*(name for name, s in self.values if s == shape))
        self.add("Where", [self.node("Greater", [x, self.constant(np.float32(0.1))]), x, other], shape)

    def split(self, x: str, shape: Shape) -> None:
        axis = self.below(len(shape))
        if shape[axis] > 1:
            first = 1 + self.below(shape[axis] - 1)
            name = self.node("Split", [x, self.ints(first, shape[axis] - first)], 2, axis=axis)
            self.show(name, (*shape[:axis], first, *shape[axis + 1 :]))
            self.show(f"{name}.1", (*shape[:axis], shape[axis] - first, *shape[axis + 1 :]))

    def top_k(self, x: str, shape: Shape) -> None:
        k = 1 + self.below(shape[-1])
        self.show(self.node("TopK", [x, self.ints(k)], 2, axis=-1), (*shape[:-1], k))

    def products(self, x: str, shape: Shape) -> None:
        if len(shape) == 3 and self.below(2):
            n = 1 + self.below(8)
            w = self.weights(shape[2], n, fan_in=shape[2])
            self.add("Einsum", [x, w], (shape[0], n, shape[1]), equation="abc,cd->adb")
        elif len(shape) == 3:
            scores = self.node("MatMul", [x, self.node("Transpose", [x], perm=[0, 2, 1])])
            scale = self.constant(np.float32(1 / shape[2]))
            self.add("Mul", [scores, scale], (shape[0], shape[1], shape[1]))

    def cumulative(self, x: str, shape: Shape) -> None:
        axis = self.constant(np.int64(self.below(len(shape))))
        self.add("CumSum", [x, axis], shape, exclusive=self.below(2), reverse=self.below(2))

    def expand_or_tile(self, x: str, shape: Shape) -> None:
        if self.below(2):
            out = [self.one_of(1, 2, 3) if d == 1 else d for d in shape]
            self.add("Expand", [x, self.ints(*out)], out)
        else:
            times = [self.one_of(1, 1, 2) for _ in shape]
            self.add("Tile", [x, self.ints(*times)], [a * b for a, b in zip(times, shape, strict=True)])

    def flatten_by_shape(self, x: str, shape: Shape) -> None:
        """To [N, -1], with N read from the shape."""
        n = self.node("Gather", [self.node("Shape", [x]), self.ints(0)], axis=0)
        target = self.node("Concat", [n, self.ints(-1)], axis=0)
        self.add("Reshape", [x, target], (shape[0], int(np.prod(shape[1:]))))


G = RandomGraph
Step = Callable[[RandomGraph, str, Shape], None]
COMMON: tuple[Step, ...] = (
    G.unary, G.unary, G.clip_or_prelu, G.binary, G.broadcast, G.matmul, G.reduce, G.softmax, G.transpose, G.merge_axes,
    G.split_axis, G.unsqueeze, G.concat, G.slice, G.gather, G.pad, G.normalize,
)  # fmt: skip
OF_IMAGES: tuple[Step, ...] = (
    G.conv, G.conv, G.conv, G.conv, G.conv, G.conv_transpose, G.pool, G.pool, G.global_pool, G.resize,
)  # fmt: skip
OF_SEQUENCES: tuple[Step, ...] = (
    G.linear, G.linear, G.gemm, G.layer_norm, G.gelu_or_silu, G.attention, G.attention, G.recurrent, G.conv_1d, G.where,
    G.split, G.top_k, G.products, G.cumulative, G.expand_or_tile, G.flatten_by_shape,
)  # fmt: skip
