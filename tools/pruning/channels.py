"""Which channels of a graph belong together, so that they can only be removed together.

Every tensor between nodes has one axis of channels, each with a number. A product makes new channels; what works
channel by channel passes them on; an addition makes two channels one (a residual ties those of its branch to those of
the trunk); Concat lines them up; Flatten repeats each for its positions. At the end a channel is a set of places: rows
of the weights that make it, columns of those that read it, elements of biases, scales and statistics. Removing it
removes all of them. Channels that something needs as they are (outputs of the graph, operators that are not known here)
stay.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from evort.graph import Graph, Model, Node
from evort_tools.passes.fitting import shapes_of
from evort_tools.passes.shapes import Shapes

# One input, channels as they are, with per-channel operands at these indices of the inputs (vectors over the channels).
_BY_CHANNEL = {
    "BatchNormalization": (1, 2, 3, 4), "InstanceNormalization": (1, 2),
    "AveragePool": (), "Cast": (), "Clip": (), "Dropout": (), "Elu": (), "Erf": (), "Gelu": (), "GlobalAveragePool": (),
    "GlobalMaxPool": (), "HardSigmoid": (), "HardSwish": (), "Identity": (), "LeakyRelu": (), "MaxPool": (), "Mish": (),
    "Relu": (), "Resize": (), "Sigmoid": (), "Softplus": (), "Sqrt": (), "Swish": (), "Tanh": (), "Abs": (), "Neg": (),
}  # fmt: skip
# Of these, those to which axis 1 is the channels' and the others are not alike.
_AXIS_1 = frozenset({
    "AveragePool", "BatchNormalization", "GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization", "MaxPool",
})  # fmt: skip
_BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu", "Pow"})
_REDUCE = frozenset({"ReduceMean", "ReduceMax", "ReduceSum"})


class Channels:
    """The channels of a graph.

    places: for each channel {(constant, axis): indices}, after `find` of its number. makers: of each channel, the
    constants whose rows (axis) make it. pinned: channels that must stay.
    """

    def __init__(self, model: Model):
        self.graph: Graph = model.graph
        self.shapes: Shapes = shapes_of(model.graph)
        self._parent: list[int] = []
        self.tensors: dict[str, tuple[int, np.ndarray]] = {}  # axis and the channels' numbers along it
        self._places: list[tuple[np.ndarray, str, int, np.ndarray]] = []
        self._made: list[tuple[np.ndarray, str, int]] = []
        self._pins: list[np.ndarray] = []
        self.flattened: dict[str, str] = {}  # {constant shape of a Reshape: its result}
        self._reads = Counter(n for node in self.graph.nodes for n in node.inputs)
        for node in self.graph.nodes:
            self._node(node)
        for name in self.graph.outputs:
            self._pin(name)

    # Numbers

    def _fresh(self, count: int) -> np.ndarray:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def find(self, channel: int) -> int:
        """The number that stands for all channels tied to this one."""
        parent = self._parent
        while parent[channel] != channel:
            parent[channel] = parent[parent[channel]]
            channel = parent[channel]
        return channel

    def _tie(self, a: np.ndarray, b: np.ndarray) -> None:
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            x, y = self.find(x), self.find(y)
            self._parent[max(x, y)] = min(x, y)

    def _pin(self, *names: str) -> None:
        for name in names:
            if name in self.tensors:
                self._pins.append(self.tensors[name][1])

    # Constants

    def _constant(self, name: str) -> np.ndarray | None:
        """A constant's value, where one node reads it: a shared one cannot lose a channel for one of its readers."""
        value = self.graph.constant(name) if name else None
        return value if value is not None and self._reads[name] == 1 else None

    def _place(self, channels: np.ndarray, name: str, axis: int) -> None:
        """Element i of a constant along an axis belongs to channels[i]."""
        self._places.append((channels, name, axis, np.arange(channels.size)))

    def _vectors(self, node: Node, indices: tuple[int, ...], channels: np.ndarray) -> bool:
        """Notes vectors over the channels; False where one cannot be cut."""
        names = [node.inputs[i] for i in indices if i < len(node.inputs) and node.inputs[i]]
        values = [self._constant(n) for n in names]
        if any(v is None or v.shape != (channels.size,) for v in values):
            return False
        for name in names:
            self._place(channels, name, 0)
        return True

    # Nodes

    def _node(self, node: Node) -> None:
        known = [n for n in node.inputs if n in self.tensors]
        subgraphs = list(node.subgraphs())
        handler = None if subgraphs or node.domain else getattr(self, f"_{node.op.lower()}", None)
        if handler is None and not node.domain and not subgraphs:
            if node.op in _BY_CHANNEL:
                handler = self._by_channel
            elif node.op in _BINARY:
                handler = self._binary
            elif node.op in _REDUCE:
                handler = self._reduce
        if handler is None or not handler(node):
            self._pin(*known)
            for sub in subgraphs:
                self._pin(*sub.free_names())

    def _rank(self, name: str) -> int | None:
        return self.shapes.rank(name)

    def _size(self, name: str, axis: int) -> int | None:
        shape = self.shapes.shape(name)
        return shape[axis] if shape is not None and isinstance(shape[axis], int) else None

    def _input(self, name: str, axis: int) -> np.ndarray | None:
        """The channels of a tensor, where they lie along that axis."""
        found = self.tensors.get(name)
        return found[1] if found is not None and found[0] == axis else None

    def _summed(self, name: str, axis: int) -> np.ndarray | None:
        """The same for what a product sums over; channels that lie elsewhere must stay."""
        channels = self._input(name, axis)
        if channels is None:
            self._pin(name)
        return channels

    def _conv(self, node: Node) -> bool:
        w = self._constant(node.inputs[1])
        if w is None or any(len(node.inputs) > i and node.inputs[i] in self.tensors and i != 3 for i in (1, 2, 4)):
            return False
        group, m = node.attrs.get("group", 1), w.shape[0]
        x = self._summed(node.inputs[0], 1)
        if group > 1 and x is None:
            return False
        made = self._fresh(m)
        if group == 1:
            if x is not None:
                self._place(x, node.inputs[1], 1)
        elif w.shape[1] == 1 and m % group == 0:  # depthwise: each channel makes m / group
            self._tie(made, np.repeat(x, m // group))
            if m != group:
                self._pins.append(made)
        else:  # all groups lose the same channels
            for part in (x.reshape(group, -1), made.reshape(group, -1)):
                for other in part[1:]:
                    self._tie(part[0], other)
            self._place(x.reshape(group, -1)[0], node.inputs[1], 1)
        self._place(made, node.inputs[1], 0)
        self._made.append((made, node.inputs[1], 0))
        return self._finish_product(node, made, 1, bias=2, z=3, slope=4)

    def _convtranspose(self, node: Node) -> bool:
        w = self._constant(node.inputs[1])
        if w is None or node.attrs.get("group", 1) != 1:
            return False
        x = self._summed(node.inputs[0], 1)
        if x is not None:
            self._place(x, node.inputs[1], 0)
        made = self._fresh(w.shape[1])
        self._place(made, node.inputs[1], 1)
        self._made.append((made, node.inputs[1], 1))
        return self._finish_product(node, made, 1, bias=2, z=-1, slope=-1)

    def _gemm(self, node: Node) -> bool:
        w = self._constant(node.inputs[1])
        if w is None or node.attrs.get("transA", 0):
            return False
        rows, columns = (0, 1) if node.attrs.get("transB", 0) else (1, 0)
        x = self._summed(node.inputs[0], 1)
        if x is not None:
            self._place(x, node.inputs[1], columns)
        made = self._fresh(w.shape[rows])
        self._place(made, node.inputs[1], rows)
        self._made.append((made, node.inputs[1], rows))
        return self._finish_product(node, made, 1, bias=2, z=3, slope=-1)

    def _matmul(self, node: Node) -> bool:
        w, rank = self._constant(node.inputs[1]), self._rank(node.inputs[0])
        if w is None or w.ndim != 2 or rank is None or rank < 2:
            return False
        x = self._summed(node.inputs[0], rank - 1)
        if x is not None:
            self._place(x, node.inputs[1], 0)
        made = self._fresh(w.shape[1])
        self._place(made, node.inputs[1], 1)
        self._made.append((made, node.inputs[1], 1))
        return self._finish_product(node, made, rank - 1, bias=2, z=3, slope=-1)

    def _finish_product(self, node: Node, made: np.ndarray, axis: int, bias: int, z: int, slope: int) -> bool:
        out = node.outputs[0]
        self.tensors[out] = (axis, made)
        for index in (bias, slope):
            name = node.inputs[index] if 0 <= index < len(node.inputs) else ""
            if not name:
                continue
            value = self._constant(name)
            if value is not None and value.shape in ((made.size,), (1, made.size)):
                self._place(made, name, value.ndim - 1)
            elif value is None or value.size != 1:
                self._pins.append(made)
        name = node.inputs[z] if 0 <= z < len(node.inputs) else ""
        if name and not self._added(made, axis, name):
            self._pins.append(made)
            self._pin(name)
        return True

    def _added(self, channels: np.ndarray, axis: int, name: str) -> bool:
        """Ties the channels of an operand of the same shape to those of a result."""
        other = self._input(name, axis)
        if other is None or other.size != channels.size:
            return False
        self._tie(channels, other)
        return True

    def _by_channel(self, node: Node) -> bool:
        found = self.tensors.get(node.inputs[0])
        if found is None:
            return False
        axis, channels = found
        if node.op == "Resize":
            before, after = self._size(node.inputs[0], axis), self._size(node.outputs[0], axis)
            if before is None or before != after or any(n in self.tensors for n in node.inputs[1:] if n):
                return False
            sizes = self.graph.constant(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] else None
            if sizes is not None:
                return False
        if axis != 1 and node.op in _AXIS_1:
            return False
        if not self._vectors(node, _BY_CHANNEL[node.op], channels):
            return False
        for out in node.outputs[:1]:
            self.tensors[out] = found
        return all(not out or i == 0 for i, out in enumerate(node.outputs))

    def _binary(self, node: Node) -> bool:
        out = node.outputs[0]
        rank, found = self._rank(out), None
        if rank is None:
            return False
        for name in node.inputs:
            if name in self.tensors:
                from_end = self.tensors[name][0] - self._rank(name)
                if found is None or self.tensors[name][1].size > found[1].size:
                    found = (from_end, self.tensors[name][1])
        if found is None:
            return False
        from_end, channels = found
        for name in node.inputs:
            shape = self.shapes.shape(name)
            if shape is None:
                return False
            size = shape[from_end] if len(shape) >= -from_end else 1
            if name in self.tensors:
                axis, other = self.tensors[name]
                if axis - len(shape) != from_end:
                    return False
                if other.size == channels.size:
                    self._tie(channels, other)
                elif other.size != 1:
                    return False
                else:
                    self._pins.append(other)
            elif size == 1:
                continue
            elif self._constant(name) is not None and size == channels.size:
                self._place(channels, name, len(shape) + from_end)
            else:
                return False
        self.tensors[out] = (rank + from_end, channels)
        return True

    def _concat(self, node: Node) -> bool:
        rank = self._rank(node.outputs[0])
        if rank is None or any(n not in self.tensors for n in node.inputs):
            return False
        axis = node.attrs["axis"] % rank
        axes = {self.tensors[n][0] for n in node.inputs}
        if len(axes) != 1:
            return False
        parts = [self.tensors[n][1] for n in node.inputs]
        if axes == {axis}:
            self.tensors[node.outputs[0]] = (axis, np.concatenate(parts))
            return True
        for other in parts[1:]:
            self._tie(parts[0], other)
        self.tensors[node.outputs[0]] = (axes.pop(), parts[0])
        return True

    def _flatten(self, node: Node) -> bool:
        x = self._input(node.inputs[0], 1)
        if x is None or node.attrs.get("axis", 1) != 1:
            return False
        return self._flat(node, x)

    def _reshape(self, node: Node) -> bool:
        """[N, C, ...] to [N, C * ...], with a constant shape that this node alone reads."""
        x, shape = self._input(node.inputs[0], 1), self._constant(node.inputs[1])
        if x is None or shape is None or shape.size != 2 or int(shape[1]) == 0:
            return False
        if int(shape[0]) not in (0, -1, self._size(node.inputs[0], 0)):
            return False
        if int(shape[1]) != -1:
            self.flattened[node.inputs[1]] = node.outputs[0]
        return self._flat(node, x)

    def _flat(self, node: Node, channels: np.ndarray) -> bool:
        shape = self.shapes.shape(node.inputs[0])
        if shape is None or not all(isinstance(d, int) for d in shape[2:]):
            return False
        repeated = np.repeat(channels, int(np.prod(shape[2:], dtype=np.int64)))
        if self._size(node.outputs[0], 1) not in (None, repeated.size):
            return False
        self.tensors[node.outputs[0]] = (1, repeated)
        return True

    def _reduce(self, node: Node) -> bool:
        found = self.tensors.get(node.inputs[0])
        axes = self.graph.constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
        rank = self._rank(node.inputs[0])
        if found is None or axes is None or rank is None:
            return False
        gone = {int(a) % rank for a in axes.reshape(-1)}
        return self._without(node, found, gone if not node.attrs.get("keepdims", 1) else set(), gone)

    def _squeeze(self, node: Node) -> bool:
        found, rank = self.tensors.get(node.inputs[0]), self._rank(node.inputs[0])
        axes = self.graph.constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
        if found is None or axes is None or rank is None:
            return False
        gone = {int(a) % rank for a in axes.reshape(-1)}
        return self._without(node, found, gone, gone)

    def _unsqueeze(self, node: Node) -> bool:
        found, rank = self.tensors.get(node.inputs[0]), self._rank(node.outputs[0])
        axes = self.graph.constant(node.inputs[1])
        if found is None or axes is None or rank is None:
            return False
        new = {int(a) % rank for a in axes.reshape(-1)}
        self.tensors[node.outputs[0]] = ([i for i in range(rank) if i not in new][found[0]], found[1])
        return True

    def _without(self, node: Node, found: tuple[int, np.ndarray], dropped: set[int], touched: set[int]) -> bool:
        axis, channels = found
        if axis in touched:
            return False
        self.tensors[node.outputs[0]] = (axis - sum(a < axis for a in dropped), channels)
        return True

    def _transpose(self, node: Node) -> bool:
        found, rank = self.tensors.get(node.inputs[0]), self._rank(node.inputs[0])
        if found is None or rank is None:
            return False
        perm = node.attrs.get("perm") or list(range(rank))[::-1]
        self.tensors[node.outputs[0]] = (list(perm).index(found[0]), found[1])
        return True

    # What came out

    def groups(self) -> list[Space]:
        """The channels that can be removed, in spaces: those that the same products make."""
        root = np.array([self.find(i) for i in range(len(self._parent))], np.int64)
        pinned = {int(root[i]) for pins in self._pins for i in pins.tolist()}
        makers: dict[int, list[tuple[str, int, int]]] = {}
        of_maker: dict[str, list[int]] = {}
        for made, name, axis in self._made:
            for index, channel in enumerate(root[made].tolist()):
                makers.setdefault(channel, []).append((name, axis, index))
                of_maker.setdefault(name, []).append(channel)
        places: dict[int, dict[tuple[str, int], list[int]]] = {}
        for channels, name, axis, indices in self._places:
            for channel, index in zip(root[channels].tolist(), indices.tolist(), strict=True):
                places.setdefault(channel, {}).setdefault((name, axis), []).append(index)
        spaces, seen = [], set()
        for start in makers:
            if start in seen:
                continue
            found, waiting = [], [start]
            seen.add(start)
            while waiting:
                channel = waiting.pop()
                found.append(channel)
                for name, _, _ in makers[channel]:
                    for other in of_maker.pop(name, ()):
                        if other not in seen:
                            seen.add(other)
                            waiting.append(other)
            found.sort()
            names = tuple(dict.fromkeys(name for c in found for name, _, _ in makers[c]))
            free = [c for c in found if c not in pinned]
            spaces.append(Space(names, free, len(found), {c: makers[c] for c in free}, {c: places[c] for c in free}))
        return spaces


class Space:
    """Channels that the same products make.

    makers: the weights; channels: those that may be removed, of `count`; rows: for each of them, which (weight, axis,
    index) make it; places: {(constant, axis): indices} of all that goes with it.
    """

    __slots__ = ("channels", "count", "makers", "places", "rows")

    def __init__(
        self,
        makers: tuple[str, ...],
        channels: list[int],
        count: int,
        rows: dict[int, list[tuple[str, int, int]]],
        places: dict[int, dict[tuple[str, int], list[int]]],
    ):
        self.makers = makers
        self.channels = channels
        self.count = count
        self.rows = rows
        self.places = places


__all__ = ["Channels", "Space"]
