"""Layers: models built in Python, with seeded weights.

    build = layers.Builder(seed=1)
    x = build.input("image", ("N", 1, 28, 28))
    x = layers.Conv2d(1, 6, 5, padding=2)(x).relu()
    ...
    model = build.model(logits=layers.Linear(84, 10)(x))

or, where one layer follows another, `layers.sequential(input, *layers)`. A layer called twice shares its weights.
Values add, subtract and multiply. What comes out is an ordinary `evort.graph.Model` with symbolic batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evort.errors import InputError
from evort.graph import Dim, Graph, Model, Node, Tensor
from evort.types import DType, dtype_of


class Value:
    """A tensor of a model that is being built."""

    __slots__ = ("build", "name")

    def __init__(self, build: Builder, name: str):
        self.build = build
        self.name = name

    def _with(self, op: str, other: Value | float) -> Value:
        if not isinstance(other, Value):
            other = self.build.constant(np.array(other, np.float32))
        return self.build.emit(op, [self, other])

    def __add__(self, other: Value | float) -> Value:
        return self._with("Add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._with("Sub", other)

    def __mul__(self, other: Value | float) -> Value:
        return self._with("Mul", other)

    def relu(self) -> Value:
        return self.build.emit("Relu", [self])

    def reshape(self, *shape: int) -> Value:
        """-1 is what is left, 0 the size that is there."""
        return self.build.emit("Reshape", [self, self.build.constant(np.array(shape, np.int64))])

    def transpose(self, *perm: int) -> Value:
        return self.build.emit("Transpose", [self], {"perm": list(perm)})


class Builder:
    """Collects the nodes and weights of a model. seed: of the weights, which depend on it and on the order in which
    layers are first called."""

    def __init__(self, seed: int = 0, name: str = "model"):
        self.graph = Graph(name)
        self.rng = np.random.default_rng(seed)
        self._count: dict[str, int] = {}

    def input(self, name: str, shape: Sequence[Dim], dtype: DType = DType.FLOAT) -> Value:
        """An input; sizes given as text are symbolic."""
        self.graph.inputs.append(self.graph.add(Tensor(name, dtype, tuple(shape))))
        return Value(self, name)

    def fresh(self, hint: str) -> str:
        """A name: `hint` with a number behind it."""
        while True:
            number = self._count[hint] = self._count.get(hint, 0) + 1
            if f"{hint}{number}" not in self._count:
                return f"{hint}{number}"

    def constant(self, value: np.ndarray, name: str = "") -> Value:
        name = name or self.fresh("constant")
        self.graph.add(Tensor(name, dtype_of(value), value.shape, value))
        return Value(self, name)

    def emit(
        self,
        op: str,
        inputs: Sequence[Value | None],
        attrs: dict[str, Any] | None = None,
        outputs: int = 1,
        name: str = "",
    ) -> Any:
        """Appends an operator of the default domain; returns its output, or a list of several. name: of the node and
        its output, where it is free."""
        label = name if name and name not in self._count else self.fresh(op.lower())
        self._count.setdefault(label, 0)
        names = [label] if outputs == 1 else [f"{label}_{i}" for i in range(outputs)]
        operands = ["" if v is None else v.name for v in inputs]
        while operands and not operands[-1]:
            operands.pop()
        self.graph.nodes.append(Node(op, operands, names, attrs or {}, "", label))
        found = [Value(self, name) for name in names]
        return found[0] if outputs == 1 else found

    def model(self, **outputs: Value) -> Model:
        """The model; outputs by name."""
        if not outputs:
            raise InputError("a model needs an output")
        inner = [value.name for value in outputs.values()]
        for name, value in outputs.items():
            writer = next((n for n in self.graph.nodes if value.name in n.outputs), None)
            if writer is None or inner.count(value.name) > 1:
                self.graph.nodes.append(Node("Identity", [value.name], [name], {}, "", name))
            else:
                writer.outputs = [name if n == value.name else n for n in writer.outputs]
                for node in self.graph.nodes:
                    node.inputs = [name if n == value.name else n for n in node.inputs]
            self.graph.add(Tensor(name, DType.FLOAT, None))
            self.graph.outputs.append(name)
        return Model(self.graph, {"": 22}, producer="evort.train")


class Layer:
    """Base class. Weights are made at the first call, and belong to that call's builder. name: in front of theirs."""

    def __init__(self, name: str = "") -> None:
        self._build: Builder | None = None
        self.label = name
        self.weights: dict[str, Value] = {}

    def __call__(self, *x: Value) -> Value:
        build = x[0].build
        if self._build is None:
            self._build = build
            self.label = self.label or build.fresh(type(self).__name__.lower())
            self.make(build)
        elif self._build is not build:
            raise InputError(f"the layer {self.label!r} has weights in another model")
        return self.apply(build, *x)

    def make(self, build: Builder) -> None:
        """Makes the weights."""

    def apply(self, build: Builder, *x: Value) -> Any:
        raise NotImplementedError

    def weight(self, name: str, value: np.ndarray) -> Value:
        found = self._build.constant(value.astype(np.float32), f"{self.label}.{name}")
        self.weights[name] = found
        return found


def _he(rng: np.random.Generator, shape: Sequence[int], fan_in: int) -> np.ndarray:
    """He et al., arXiv:1502.01852: normal, of variance 2 / fan_in."""
    return rng.normal(0, math.sqrt(2 / max(1, fan_in)), shape)


def _xavier(rng: np.random.Generator, shape: Sequence[int], fan_in: int, fan_out: int) -> np.ndarray:
    """Glorot and Bengio (2010): uniform, of variance 2 / (fan_in + fan_out)."""
    bound = math.sqrt(6 / (fan_in + fan_out))
    return rng.uniform(-bound, bound, shape)


def _pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


class Conv2d(Layer):
    """Conv: [N, C, H, W] to [N, M, H', W']."""

    def __init__(self, channels: int, out: int, kernel: int | tuple[int, int], stride: int | tuple[int, int] = 1,
                 padding: int | tuple[int, int] = 0, dilation: int | tuple[int, int] = 1, groups: int = 1,
                 bias: bool = True, name: str = ""):  # fmt: skip
        super().__init__(name)
        self.channels, self.out, self.kernel, self.groups, self.bias = channels, out, _pair(kernel), groups, bias
        pads = _pair(padding) * 2
        self.attrs = {"strides": _pair(stride), "pads": pads, "dilations": _pair(dilation), "group": groups}

    def make(self, build: Builder) -> None:
        shape = (self.out, self.channels // self.groups, *self.kernel)
        self.weight("weight", _he(build.rng, shape, math.prod(shape[1:])))
        if self.bias:
            self.weight("bias", np.zeros(self.out))

    def apply(self, build: Builder, x: Value) -> Value:
        return build.emit("Conv", [x, *self.weights.values()], {**self.attrs, "kernel_shape": self.kernel},
                          name=self.label)  # fmt: skip


class ConvTranspose2d(Conv2d):
    """ConvTranspose: [N, C, H, W] to [N, M, H', W']."""

    def __init__(self, channels: int, out: int, kernel: int | tuple[int, int], stride: int | tuple[int, int] = 1,
                 padding: int | tuple[int, int] = 0, output_padding: int | tuple[int, int] = 0, groups: int = 1,
                 bias: bool = True, name: str = ""):  # fmt: skip
        super().__init__(channels, out, kernel, stride, padding, 1, groups, bias, name)
        self.attrs["output_padding"] = _pair(output_padding)

    def make(self, build: Builder) -> None:
        shape = (self.channels, self.out // self.groups, *self.kernel)
        self.weight("weight", _he(build.rng, shape, self.channels // self.groups * math.prod(self.kernel)))
        if self.bias:
            self.weight("bias", np.zeros(self.out))

    def apply(self, build: Builder, x: Value) -> Value:
        return build.emit("ConvTranspose", [x, *self.weights.values()], {**self.attrs, "kernel_shape": self.kernel},
                          name=self.label)  # fmt: skip


class Linear(Layer):
    """x W^T + b over the last axis. flat: x is a matrix, so that one Gemm does it."""

    def __init__(self, features: int, out: int, bias: bool = True, flat: bool = True, name: str = ""):
        super().__init__(name)
        self.features, self.out, self.bias, self.flat = features, out, bias, flat

    def make(self, build: Builder) -> None:
        shape = (self.out, self.features) if self.flat else (self.features, self.out)
        self.weight("weight", _he(build.rng, shape, self.features))
        if self.bias:
            self.weight("bias", np.zeros(self.out))

    def apply(self, build: Builder, x: Value) -> Value:
        if self.flat:
            return build.emit("Gemm", [x, *self.weights.values()], {"transB": 1}, name=self.label)
        y = build.emit("MatMul", [x, self.weights["weight"]])
        return build.emit("Add", [y, self.weights["bias"]]) if self.bias else y


class BatchNorm(Layer):
    """BatchNormalization over axis 1, with running statistics."""

    def __init__(self, channels: int, momentum: float = 0.9, epsilon: float = 1e-5, name: str = ""):
        super().__init__(name)
        self.channels, self.attrs = channels, {"momentum": momentum, "epsilon": epsilon}

    def make(self, build: Builder) -> None:
        ones, zeros = np.ones(self.channels), np.zeros(self.channels)
        for name, value in (("scale", ones), ("bias", zeros), ("mean", zeros), ("var", ones)):
            self.weight(name, value)

    def apply(self, build: Builder, x: Value) -> Value:
        return build.emit("BatchNormalization", [x, *self.weights.values()], dict(self.attrs))


class LayerNorm(Layer):
    """LayerNormalization over the last axis."""

    def __init__(self, features: int, epsilon: float = 1e-5, name: str = ""):
        super().__init__(name)
        self.features, self.epsilon = features, epsilon

    def make(self, build: Builder) -> None:
        self.weight("scale", np.ones(self.features))
        self.weight("bias", np.zeros(self.features))

    def apply(self, build: Builder, x: Value) -> Value:
        return build.emit("LayerNormalization", [x, *self.weights.values()], {"epsilon": self.epsilon})


class Dropout(Layer):
    """Dropout with a ratio; nothing when the model is run."""

    def __init__(self, ratio: float = 0.5):
        super().__init__()
        self.ratio = ratio

    def apply(self, build: Builder, x: Value) -> Value:
        return build.emit("Dropout", [x, build.constant(np.array(self.ratio, np.float32))])


class Embedding(Layer):
    """Rows of a table [count, features], by int64 indices."""

    def __init__(self, count: int, features: int, name: str = ""):
        super().__init__(name)
        self.count, self.features = count, features

    def make(self, build: Builder) -> None:
        self.weight("weight", build.rng.normal(0, 1, (self.count, self.features)))

    def apply(self, build: Builder, x: Value) -> Value:
        return build.emit("Gather", [self.weights["weight"], x])


class LSTM(Layer):
    """LSTM over [T, N, features]; gives the sequence [T, N, hidden]."""

    def __init__(self, features: int, hidden: int, name: str = ""):
        super().__init__(name)
        self.features, self.hidden = features, hidden

    def make(self, build: Builder) -> None:
        h, rng, bound = self.hidden, build.rng, 1 / math.sqrt(self.hidden)
        self.weight("W", rng.uniform(-bound, bound, (1, 4 * h, self.features)))
        self.weight("R", rng.uniform(-bound, bound, (1, 4 * h, h)))
        bias = np.zeros((1, 8 * h))
        bias[0, 2 * h : 3 * h] = 1  # of the forget gate (Jozefowicz et al., 2015)
        self.weight("B", bias)

    def apply(self, build: Builder, x: Value) -> Value:
        y, _, _ = build.emit("LSTM", [x, *self.weights.values()], {"hidden_size": self.hidden}, outputs=3)
        return build.emit("Squeeze", [y, build.constant(np.array([1], np.int64))])


class MultiHeadAttention(Layer):
    """Self-attention over [N, T, features] with `heads` heads (Vaswani et al., arXiv:1706.03762)."""

    def __init__(self, features: int, heads: int, causal: bool = False, name: str = ""):
        super().__init__(name)
        if features % heads:
            raise InputError(f"{features} features do not fit {heads} heads")
        self.features, self.heads, self.causal = features, heads, causal

    def make(self, build: Builder) -> None:
        f = self.features
        for name in ("query", "key", "value", "out"):
            self.weight(f"{name}.weight", _xavier(build.rng, (f, f), f, f))
            self.weight(f"{name}.bias", np.zeros(f))

    def _project(self, build: Builder, x: Value, name: str) -> Value:
        return build.emit("MatMul", [x, self.weights[f"{name}.weight"]]) + self.weights[f"{name}.bias"]

    def apply(self, build: Builder, x: Value) -> Value:
        q, k, v = (self._project(build, x, name) for name in ("query", "key", "value"))
        attrs = {"q_num_heads": self.heads, "kv_num_heads": self.heads, "is_causal": int(self.causal)}
        return self._project(build, build.emit("Attention", [q, k, v], attrs), "out")


class _Plain(Layer):
    """A layer of one operator without weights."""

    def __init__(self, op: str, attrs: dict[str, Any] | None = None):
        super().__init__()
        self.op, self.attrs = op, attrs or {}

    def apply(self, build: Builder, x: Value) -> Value:
        return build.emit(self.op, [x], dict(self.attrs))


def _pool(op: str, kernel: int | tuple[int, int], stride: Any, padding: int | tuple[int, int]) -> _Plain:
    strides = _pair(kernel if stride is None else stride)
    return _Plain(op, {"kernel_shape": _pair(kernel), "strides": strides, "pads": _pair(padding) * 2})


def MaxPool(kernel: int | tuple[int, int], stride: int | tuple[int, int] | None = None, padding: int = 0) -> Layer:
    """MaxPool over [N, C, H, W]; stride: the kernel's size where None."""
    return _pool("MaxPool", kernel, stride, padding)


def AvgPool(kernel: int | tuple[int, int], stride: int | tuple[int, int] | None = None, padding: int = 0) -> Layer:
    """AveragePool over [N, C, H, W]."""
    return _pool("AveragePool", kernel, stride, padding)


def GlobalAvgPool() -> Layer:
    return _Plain("GlobalAveragePool")


def Flatten(axis: int = 1) -> Layer:
    return _Plain("Flatten", {"axis": axis})


def Activation(name: str, **attrs: float) -> Layer:
    """Any ONNX activation by its name: "Relu", "Gelu", "HardSwish", ..."""
    return _Plain(name, dict(attrs))


def Relu() -> Layer:
    return _Plain("Relu")


def Sigmoid() -> Layer:
    return _Plain("Sigmoid")


def Tanh() -> Layer:
    return _Plain("Tanh")


def Gelu() -> Layer:
    return _Plain("Gelu")


def HardSwish() -> Layer:
    return _Plain("HardSwish")


def Softmax(axis: int = -1) -> Layer:
    return _Plain("Softmax", {"axis": axis})


def sequential(
    shape: Sequence[Dim], *layers: Callable[[Value], Value], seed: int = 0, input: str = "input", output: str = "output"
) -> Model:
    """A model of one layer after another on one input of that shape ("N" for the batch size)."""
    build = Builder(seed)
    x = build.input(input, shape)
    for layer in layers:
        x = layer(x)
    return build.model(**{output: x})
