"""The graph that quantization-aware training trains: the float model with fake quantization where the integer model
quantizes, so written that its whole numbers are those of the deployed operators, bit for bit.

A quantized tensor T = scale * (q - zero_point) is carried as the float tensor n = q - zero_point, whose values are
whole numbers. Sums of products of those are exact in float32 (below 2^24), and what follows a sum is computed in the
order of evort.ops.requantize:

    n = round(clip(v, low, high))       v = (sum + B) * (x_scale * w_scale / y_scale)    no residual, a clamp
                                        v = activation((sum + B) * (x_scale * w_scale) + residual) * (1 / y_scale)  else

So it is with averages, and with sums and products of two tensors (evort.ops.qpool, evort.ops.qelementwise). A function
of one 8-bit tensor is deployed as a table, which is made by this graph: of all 256 numbers.

Rounding hands gradients on unchanged (straight-through), and clipping stops them; by the chain rule a scale's gradient
is then that of LSQ (Esser et al., arXiv:1902.08153): round(v) - v inside the range, the bound outside. Scales are
trained by their logarithms, so that they stay positive and steps are relative to their size."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from evort.graph import Graph, Model, Node, Tensor
from evort.ops.activation import ACTIVATIONS
from evort.quant import limits
from evort.session import Session
from evort.train import trace
from evort.types import STORAGE, DType, Spec, dtype_of
from evort_tools.quantization.encodings import Encoding
from evort_tools.quantization.integers import integer_model
from evort_tools.quantization.qdq import copy_model
from evort_tools.quantization.select import MOVES, PRODUCTS, Z, operand
from evort_tools.quantization.static import Calibrated

LOG = "/log_scale"  # suffix of the parameter behind a scale
_AVERAGES = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
_CLAMPS = ("", "Relu", "Clip")
_FEW = frozenset({DType.INT4, DType.INT2})


class QatGraph:
    """The training graph of a float model and its calibration.

    model: to be given to a Trainer. scales: the parameter (a logarithm) behind each encoding, by tensor. integers: for
    each quantized tensor, the tensor of its whole numbers, zero point taken off.
    """

    def __init__(self, real: Model, found: Calibrated):
        self.real, self.found = real, found
        self.selection = found.selection
        self.graph = Graph(real.graph.name)
        self.scales: dict[str, str] = {}
        self.integers: dict[str, str] = {}
        self._scale: dict[str, str] = {}
        self._plain: dict[str, str] = {}
        self._numbers: dict[tuple[float, str], str] = {}
        self._biases: dict[str, tuple[str, str]] = {}  # of a product: (bias, tensor of its unit)
        self._float: set[str] = set()  # written in float, and quantized by the products that read it
        self._shapes: dict[str, tuple[int, ...]] | None = None
        source = real.graph
        self.graph.inputs, self.graph.outputs = list(source.inputs), list(source.outputs)
        for name, tensor in source.tensors.items():
            self.graph.add(Tensor(name, tensor.dtype, tensor.shape, tensor.data))
        for name in source.inputs:
            if name in found.encodings:
                self._quantize(name, self._divide(name, self.scale(name)))
                self._float.add(name)
        for node in source.nodes:
            self._node(node)
        old = real
        self.model = Model(self.graph, dict(old.opsets), dict(old.metadata), old.producer, dict(old.bounds))

    # Pieces

    def emit(self, op: str, inputs: list[str], attrs: dict | None = None, out: str = "", domain: str = "") -> str:
        out = out or f"{inputs[0]}/{op.lower()}.{len(self.graph.nodes)}"
        self.graph.nodes.append(Node(op, inputs, [out], attrs or {}, domain, out))
        return out

    def constant(self, name: str, value: np.ndarray) -> str:
        return self.graph.add(Tensor(name, dtype_of(value), value.shape, value))

    def number(self, value: float) -> str:
        """A constant without axes, which is not trained."""
        key = (float(value), "")
        if key not in self._numbers:
            self._numbers[key] = self.constant(f"qat/number_{len(self._numbers)}", np.array(value, np.float32))
        return self._numbers[key]

    def root(self, name: str) -> str:
        return self.selection.activations.get(name, name)

    def scale(self, name: str) -> str:
        """The scale of a tensor's encoding, a vector; one for all tensors that share an encoding."""
        owner = self.root(name)
        if owner not in self._scale:
            parameter = f"{owner}{LOG}"
            logs = np.log(self.found.encodings[name].scale.astype(np.float64)).astype(np.float32).reshape(-1)
            self.scales[owner] = self.constant(parameter, logs)
            self._scale[owner] = self.emit("Exp", [parameter], out=f"{owner}/scale")
        self.scales[name] = self.scales[owner]
        return self._scale[owner]

    def _divide(self, x: str, scale: str) -> str:
        return self.emit("Div", [x, scale])

    def _clip(self, v: str, low: float, high: float, out: str = "") -> str:
        return self.emit("Clip", [v, self.number(low), self.number(high)], out=out)

    def _quantize(self, name: str, v: str) -> None:
        """The whole numbers of a tensor, from itself in units of its scale."""
        encoding = self.found.encodings[name]
        low, high = limits(encoding.dtype, encoding.narrow)
        zero = int(encoding.zero_point.reshape(()))
        n = self._clip(v, low - zero, high - zero)
        self.integers[name] = self.emit("RoundThrough", [n], out=f"{name}/integers", domain="evort")

    def dequantized(self, name: str) -> str:
        """What is left of a quantized tensor; a tensor that is none itself."""
        if name not in self.integers:
            return name
        made = f"{name}/dequantized"
        if made not in self._plain:
            self._plain[made] = self.emit("Mul", [self.integers[name], self.scale(name)], out=made)
        return self._plain[made]

    def _weights(self, node: Node) -> tuple[str, str]:
        """(whole numbers, scale of the output channels shaped to go with the product) of a product's weights."""
        name = node.inputs[1]
        encoding, w = self.found.encodings[name], self.real.graph.constant(name)
        scale = self.scale(name)
        shape = [1] * w.ndim
        if encoding.axis is not None:
            shape[encoding.axis] = -1
        if name not in self.integers:
            fitted = self._shaped(scale, shape) if encoding.axis is not None else scale
            low, high = limits(encoding.dtype, encoding.narrow)
            v = self._clip(self._divide(name, fitted), low, high)
            self.integers[name] = self.emit("RoundThrough", [v], out=f"{name}/integers", domain="evort")
        return self.integers[name], scale

    def _shaped(self, x: str, shape: list[int]) -> str:
        key = f"qat/shape_{'_'.join(map(str, shape))}"
        if key not in self.graph.tensors:
            self.constant(key, np.array(shape, np.int64))
        return self.emit("Reshape", [x, key])

    # Nodes

    def _node(self, node: Node) -> None:
        if not self.selection.integer(node):  # reads everything as it is in float
            self.graph.nodes.append(node)
            self._encode(node, node.outputs[0])
            self._float.add(node.outputs[0])
        elif node.op in PRODUCTS and (node.inputs[1] in self.selection.weights or node.inputs[1] in self.integers):
            self._product(node)
        elif node.op in MOVES and node.inputs[0] in self.integers:
            self._move(node)
        elif node.op in _AVERAGES and node.inputs[0] in self.integers and node.outputs[0] in self.found.encodings:
            self._average(node)
        elif node.op in ("Add", "Mul") and self._pointwise(node):
            pass
        else:
            inputs = [self.dequantized(n) for n in node.inputs]
            self.graph.nodes.append(Node(node.op, inputs, node.outputs, node.attrs, node.domain, node.name))
            self._encode(node, node.outputs[0])

    def _encode(self, node: Node, out: str) -> None:
        if out in self.found.encodings:
            self._quantize(out, self._divide(out, self.scale(out)))

    def _average(self, node: Node) -> None:
        """The exact sum times x_scale / y_scale / count. Where the count is not the same everywhere, or the shape is
        open, the mean times x_scale / y_scale, which may be rounded to another number."""
        x, out = node.inputs[0], node.outputs[0]
        unit, real = self._divide(self.scale(x), self.scale(out)), self.scale(x)
        count = self._count(node)
        mean = self.emit(node.op, [self.integers[x], *node.inputs[1:]], dict(node.attrs))
        if count:  # the mean of whole numbers is off by less than half a step of their sum
            n = self.number(count)
            mean = self.emit("RoundThrough", [self.emit("Mul", [mean, n])], domain="evort")
            unit, real = self._divide(unit, n), self._divide(real, n)
        self._quantize(out, self.emit("Mul", [mean, unit]))
        self.emit("Mul", [mean, real], out=out)

    def _count(self, node: Node) -> int:
        """How many numbers each result is the mean of; 0 where that is not known."""
        if node.op == "AveragePool":
            padded = any(node.attrs.get("pads") or ()) or node.attrs.get("auto_pad", "NOTSET").startswith("SAME")
            return 0 if padded or node.attrs.get("ceil_mode") else prod(node.attrs["kernel_shape"])
        shape, result = (self._shape(name) for name in (node.inputs[0], node.outputs[0]))
        return prod(shape) // prod(result) if shape and result else 0

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """A tensor's shape for a batch of one; None where other axes are open, too."""
        if self._shapes is None:
            tensors = [self.real.graph.tensors[n] for n in self.real.graph.inputs]
            known = all(t.shape and all(isinstance(d, int) for d in t.shape[1:]) for t in tensors)
            specs = {t.name: Spec(t.dtype, (1, *t.shape[1:])) for t in tensors} if known else None
            self._shapes = {n: s.shape for n, s in trace(self.real.graph, specs).specs.items()} if specs else {}
        return self._shapes.get(name)

    def _pointwise(self, node: Node) -> bool:
        """QLinearAdd or QLinearMul, where that is what the node becomes."""
        names, out, kind = node.inputs[:2], node.outputs[0], node.attrs.get("activation", "")
        if out not in self.found.encodings or kind not in _CLAMPS or any(n not in self.integers for n in names):
            return False
        if len({self.found.encodings[n].dtype for n in (*names, out)}) > 1:
            return False
        (a, b), (for_a, for_b), unit = (self.integers[n] for n in names), map(self.scale, names), self.scale(out)
        if node.op == "Add":
            terms = [self.emit("Mul", [n, self._divide(s, unit)]) for n, s in ((a, for_a), (b, for_b))]
            v = self.emit("Add", terms)
        else:
            v = self.emit("Mul", [self.emit("Mul", [a, b]), self._divide(self.emit("Mul", [for_a, for_b]), unit)])
        self._quantize(out, self._clamped(node, kind, v, unit))
        real = [self.dequantized(n) for n in names]
        self.graph.nodes.append(Node(node.op, real, [out], dict(node.attrs), "", node.name))
        return True

    def _clamped(self, node: Node, kind: str, v: str, scale: str) -> str:
        """A clamp, in units of a scale."""
        low, high = self._bounds(node, kind)
        if low is not None:
            v = self.emit("Max", [v, self._divide(self.number(low), scale)])
        if high is not None:
            v = self.emit("Min", [v, self._divide(self.number(high), scale)])
        return v

    def _move(self, node: Node) -> None:
        """Whole numbers are moved, and keep their scale; a reader in float gets what is left of the float tensor."""
        source = node.inputs[0]
        encoding = self.found.encodings[source]
        names = [f"{o}/integers" if o else "" for o in node.outputs]
        attrs = dict(node.attrs)
        inputs = [self.integers[source], *node.inputs[1:]]
        self.graph.nodes.append(Node(node.op, inputs, names, attrs, node.domain, f"{node.name}/integers"))
        for out, name in zip(node.outputs, names, strict=True):
            if out:
                self.integers[out] = name
                self.found.encodings.setdefault(out, encoding)
                self.selection.activations.setdefault(out, self.root(source))
                self.emit("Mul", [name, self.scale(source)], out=out)

    def _product(self, node: Node) -> None:
        graph, out = self.real.graph, node.outputs[0]
        constant, x = graph.constant(node.inputs[1]), self._operand(node)
        if constant is None:  # two activations, as in attention
            w, w_scale, rank = self.integers[node.inputs[1]], self.scale(node.inputs[1]), 0
        else:
            (w, w_scale), rank = self._weights(node), constant.ndim
        column = [1, -1, *[1] * (rank - 2)] if node.op in ("Conv", "ConvTranspose") else [1, -1]
        unit = self.emit("Mul", [self.scale(node.inputs[0]), w_scale], out=f"{out}/unit")
        attrs = {k: v for k, v in node.attrs.items() if not k.startswith("activation")}
        if node.op == "Conv":
            attrs["exact"] = 1
        inputs = [x, w]
        if operand(node, 2):
            whole = self.emit("RoundThrough", [self._divide(node.inputs[2], unit)], domain="evort")
            count = graph.constant(node.inputs[2]).size
            self._biases[out] = (node.inputs[2], unit)
            inputs.append(self._shaped(whole, [count]))
        total = self.emit(node.op, inputs, attrs, out=f"{out}/sum")
        broadcast = self.found.encodings[node.inputs[1]].axis is not None
        wide = self._shaped(unit, column) if broadcast else unit
        kind = node.attrs.get("activation", "")
        z = operand(node, Z)
        if out in self.found.encodings and not z and kind in _CLAMPS:
            scale = self.scale(out)
            v = self.emit("Mul", [total, self._divide(wide, scale)])
            self._quantize(out, self._clamped(node, kind, v, scale))
            self._float_result(node, total, wide, z, kind)
            return
        self._float_result(node, total, wide, z, kind)
        if out in self.found.encodings:
            self._quantize(out, self.emit("Mul", [out, self._divide(self.number(1), self.scale(out))]))

    def _operand(self, node: Node) -> str:
        name = node.inputs[0]
        if name not in self.integers:
            raise ValueError(f"{node.label()}: its operand {name!r} is not quantized")
        return self.integers[name]

    def _bounds(self, node: Node, kind: str) -> tuple[float | None, float | None]:
        if kind == "":
            return None, None
        if kind == "Relu":
            return 0.0, None
        low, high = (node.attrs.get(f"activation_{k}", d) for k, d in (("alpha", -np.inf), ("beta", np.inf)))
        return (low if np.isfinite(low) else None), (high if np.isfinite(high) else None)

    def _float_result(self, node: Node, total: str, unit: str, z: str, kind: str) -> None:
        """A product's output in float, before it is rounded: for those who read it so, and for the model's outputs."""
        out = node.outputs[0]
        attrs = {k: v for k, v in node.attrs.items() if k.startswith("activation")}
        fused = kind == "" or ACTIVATIONS[kind].of_output
        if z:
            real = self.emit("Mul", [total, unit])
            self.emit(
                "Add",
                [real, z if z in self._float else self.dequantized(z)],
                attrs if fused else None,
                out=out if fused else f"{out}/real",
            )
        else:
            self.emit("Mul", [total, unit], attrs if fused else None, out=out if fused else f"{out}/real")
        if not fused:
            plain = {k.removeprefix("activation_"): v for k, v in attrs.items() if k != "activation"}
            op = "Gelu" if kind == "GeluTanh" else kind
            if kind in ("Gelu", "GeluTanh"):
                plain = {"approximate": "tanh" if kind == "GeluTanh" else "none"}
            self.emit(op, [f"{out}/real"], plain, out=out)

    # What comes out

    def trained(self, model: Model) -> tuple[Model, Calibrated]:
        """The float model and the calibration that a trained graph stands for: deploying them gives its numbers."""
        graph = model.graph
        units = self._evaluated(model, [unit for _, unit in self._biases.values()] + list(self._scale.values()))
        real = copy_model(self.real)
        for name, tensor in real.graph.tensors.items():
            if tensor.data is not None and name in graph.tensors:
                tensor.data = graph.tensors[name].data
        for bias, unit in self._biases.values():
            steps = units[unit].astype(np.float64)
            b = graph.tensors[bias].data
            # The float number nearest to a whole number of steps, which deployment rounds to the same.
            whole = np.rint(b.reshape(-1) / units[unit]).astype(np.float64)
            real.graph.tensors[bias].data = (whole * steps).astype(np.float32).reshape(b.shape)
        encodings = {}
        for name, encoding in self.found.encodings.items():
            owner, dtype = self.root(name), encoding.dtype
            scale = units[self._scale[owner]].reshape(encoding.scale.shape) if owner in self._scale else encoding.scale
            made = Encoding(dtype, scale, encoding.zero_point, encoding.axis, encoding.block, encoding.narrow, "qat")
            if dtype in _FEW:  # weights of few bits run as int8: as whole numbers of steps they stay what they are
                real.graph.tensors[name].data = made.fake(real.graph.tensors[name].data)
                made.dtype, made.zero_point = DType.INT8, made.zero_point.astype(np.int8)
            encodings[name] = made
        return real, replace(self.found, encodings=encodings)

    def integer(self, model: Model) -> Model:
        """The integer model of a trained graph, weights of few bits as int8."""
        made, _ = integer_model(*self.trained(model))
        self._tables(model, made.graph)
        return made

    def deployed(self, model: Model) -> Model:
        """The integer model of a trained graph, weights of few bits packed."""
        made = self.integer(model)
        for name, encoding in self.found.encodings.items():
            tensor = made.graph.tensors.get(name)
            if encoding.dtype in _FEW and tensor is not None and tensor.dtype == DType.INT8:
                _pack(made.graph, tensor, encoding.dtype)
        return made

    def _tables(self, model: Model, made: Graph) -> None:
        """Tables of 256 entries as the training graph has them: the same functions by the same kernels."""
        for node in made.nodes:
            x, out = node.inputs[0] if node.inputs else "", node.outputs[0]
            entries = made.tensors.get(node.inputs[1]) if node.op == "Lookup" else None
            source = self.found.encodings.get(x)
            if entries is None or entries.data is None or source is None or x not in self.integers:
                continue
            bits = np.arange(256, dtype=np.uint8).view(STORAGE[source.dtype])
            numbers = bits.astype(np.float32) - source.zero_point.astype(np.float32).reshape(())
            target = self.integers.get(out) if entries.dtype != DType.FLOAT else out
            if target is None:
                continue
            found = self._evaluated(model, [target], {self.integers[x]: numbers})[target].reshape(-1)
            if entries.dtype != DType.FLOAT:
                found = found + self.found.encodings[out].zero_point.astype(np.float32).reshape(())
            entries.data = found.astype(entries.data.dtype)

    def _evaluated(
        self, model: Model, names: list[str], feeds: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Values of tensors that depend on parameters and `feeds` alone, as the compiled graph computes them."""
        names, feeds = list(dict.fromkeys(names)), feeds or {}
        small = Graph("scales")
        needed = set(names)
        for node in reversed(model.graph.nodes):
            if any(o in needed and o not in feeds for o in node.outputs):
                small.nodes.insert(0, node)
                needed.update(node.inputs)
        small.tensors = {n: t for n, t in model.graph.tensors.items() if n in needed and t.data is not None}
        for name, value in feeds.items():
            small.inputs.append(small.add(Tensor(name, dtype_of(value), value.shape)))
        small.outputs = names
        return Session(Model(small), threads=1).run(feeds) if names else {}


def _pack(graph: Graph, tensor: Tensor, dtype: DType) -> None:
    """Stores int8 weights in few bits; they are widened once, when the model is planned."""
    name = tensor.name
    wide = f"{name}/int8"
    for node in graph.nodes:
        node.inputs = [wide if n == name else n for n in node.inputs]
    graph.add(Tensor(name, dtype, tensor.shape, tensor.data))
    graph.nodes.insert(0, Node("Cast", [name], [wide], {"to": int(DType.INT8)}, "", wide))


def weight_encoding(w: np.ndarray, axis: int | None, bits: int) -> Encoding:
    """The symmetric encoding of weights in so many bits (2, 4 or 8), each channel's scale the one of least squared
    error."""
    dtype = {2: DType.INT2, 4: DType.INT4, 8: DType.INT8}[bits]
    if bits == 8:
        return Encoding.of_weights(w, axis)
    others = None if axis is None else tuple(i for i in range(w.ndim) if i != axis)
    best, least = None, None
    for shrink in np.linspace(0.2, 1.0, 33):
        encoding = Encoding.of_weights(w, axis, dtype, shrink)
        error = np.square(encoding.fake(w) - w, dtype=np.float64).sum(axis=others)
        if best is None:
            best, least = encoding, error
        else:
            better = error < least
            best.scale, least = np.where(better, encoding.scale, best.scale), np.where(better, error, least)
    return best


__all__ = ["LOG", "QatGraph", "weight_encoding"]
