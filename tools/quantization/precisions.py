"""The precisions that each layer of a model can have, and the model in which layers have some of them.

    float32   as it is
    float16   weights of 16 bits, widened as they are used (bfloat16 by option, or where float16 overflows)
    int16     weights of 16 bits, one scale for each output channel, widened as they are used
    int8      weights and activations in integers, as in the static scheme; embeddings, LSTM, GRU as in the dynamic one
    int4      weights of 4 bits in groups, rounded with GPTQ where there is calibration data

The layers of a nested graph (a branch of an If, the body of a Loop or Scan) go together: what holds the graphs is one
layer, whose int8 is the static scheme's, of layers that are faster so.

All but int8 read and give float32. So no precision needs a cast of its own: an int8 layer quantizes what it reads from
others, and gives float32 where others read it (`integers.integer_model`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np

from evort.graph import Graph, Model, Node
from evort.types import BITS, DType
from evort_tools.passes import graphs_of
from evort_tools.quantization import static
from evort_tools.quantization.by_range import BY_RANGE
from evort_tools.quantization.dynamic import DynamicOptions, dynamic
from evort_tools.quantization.gptq import gptq
from evort_tools.quantization.integers import integer_model
from evort_tools.quantization.latency import changed
from evort_tools.quantization.options import PRECISIONS, Options
from evort_tools.quantization.qdq import copy_model, drop_unread
from evort_tools.quantization.select import PRODUCTS
from evort_tools.quantization.static import Calibrated
from evort_tools.quantization.weights import WeightOptions, weight_only


class Layer:
    """A node with weights, or several that share them; a product of two activations; or a node with nested graphs.

    name: how users name it: the node's name, or else its output's. outputs: the first outputs of its nodes. bytes: of
    its constants, by the precisions that it has. static: whether its int8 is that of the static scheme, with operands
    and results that may be integers. timed: whether its time is known, as that of nested graphs is not.
    """

    __slots__ = ("bytes", "name", "op", "outputs", "static", "timed")

    def __init__(self, node: Node):
        self.name = node.name or node.outputs[0]
        self.op = node.op
        self.outputs: list[str] = []
        self.bytes: dict[str, int] = {}
        self.static = False
        self.timed = not any(True for _ in node.subgraphs())


def variants(
    real: Model, wanted: Iterable[str], options: Options, data: Iterable[Mapping[str, np.ndarray]] | None = None
) -> dict[str, Model]:
    """{precision: the model with all layers in it that have it}; for int8 only those that the dynamic scheme does.
    data: samples for GPTQ, which may be gone through several times."""
    made: dict[str, Model] = {}
    for precision in wanted:
        if precision == "float16":
            kind = DType.FLOAT16 if options.storage == "float16" else DType.BFLOAT16
            made[precision] = weight_only(real, WeightOptions(16, kind=kind))
        elif precision == "int16":
            made[precision] = dynamic(real, DynamicOptions(16))
        elif precision == "int4":
            how = WeightOptions(4, options.block, not options.zero_points)
            nearest = data is None or options.rounding == "nearest"
            made[precision] = weight_only(real, how) if nearest else gptq(real, data, how)
        elif precision == "int8":
            how = DynamicOptions(8, not options.zero_points, operators=BY_RANGE, attention=options.attention)
            made[precision] = dynamic(real, how, nested=False)
    return made


def layers_of(real: Model, found: Calibrated | None, models: Mapping[str, Model]) -> list[Layer]:
    """The layers of a model that have more than one precision, in order, with what they take. found: for int8 as in the
    static scheme, where that is among the precisions. models: `variants`."""
    integers: dict[str, Node] = {}
    chosen: set[str] = set()
    if found is not None:
        made, left = integer_model(real, found)
        chosen = {n.outputs[0] for n in left.selection.nodes if n.op in PRODUCTS}
        integers = {n.outputs[0]: n for n in made.graph.nodes if n.op not in PRODUCTS or n.domain}
    others = {p: changed(real.graph, m.graph) for p, m in models.items()}
    nodes = {p: {n.outputs[0]: n for n in m.graph.nodes} for p, m in models.items()}
    groups: dict[str, list[Node]] = {}
    for node in real.graph.nodes:
        out = node.outputs[0]
        if (out in chosen and out in integers) or any(out in names for names in others.values()):
            nested = any(True for _ in node.subgraphs())
            w = out if nested else node.inputs[0 if node.op == "Gather" else 1]
            groups.setdefault(w if real.graph.constant(w) is not None else out, []).append(node)
    layers = []
    for group in groups.values():
        layer = Layer(group[0])
        layer.outputs = [node.outputs[0] for node in group]
        layer.bytes["float32"] = _bytes(real.graph, group)
        if all(o in chosen and o in integers for o in layer.outputs):
            layer.bytes["int8"] = _bytes(made.graph, [integers[o] for o in layer.outputs])
            layer.static = True
        for precision, names in others.items():
            if all(o in names for o in layer.outputs) and precision not in layer.bytes:
                own = [nodes[precision][o] for o in layer.outputs]
                makers = [m for node in own for m in _makers(node, nodes[precision], real.graph)]
                layer.bytes[precision] = _bytes(models[precision].graph, [*own, *makers])
        if len(layer.bytes) > 1:
            layers.append(layer)
    return layers


def _makers(node: Node, nodes: Mapping[str, Node], real: Graph) -> list[Node]:
    """The nodes that make a layer's operands in its precision, such as floats of weights in 16 bits: those among
    `nodes`, by first output, of which the float graph has no like."""
    own = {n.outputs[0] for n in real.nodes}
    return [nodes[name] for name in node.inputs if name in nodes and name not in own]


def _bytes(graph: Graph, nodes: Sequence[Node]) -> int:
    """Bytes of all constants that these nodes read, and their nested graphs hold."""
    names = dict.fromkeys(name for node in nodes for name in node.inputs if name)
    tensors = [graph.tensors.get(name) for name in names]
    inner = [g for node in nodes for sub in node.subgraphs() for g in graphs_of(sub)]
    tensors += [t for g in inner for t in g.tensors.values()]
    constants = [t for t in tensors if t is not None and t.data is not None]
    return sum((t.data.size * BITS.get(t.dtype, 64) + 7) // 8 for t in constants)


def pins_of(graph: Graph, layers: Sequence[Layer], pins: Sequence[str], exclude: Sequence[str]) -> dict[int, str]:
    """{index of a layer: the precision that it must have}, from "PATTERN=PRECISION" (where several fit a layer, the
    last) and patterns of what stays in float32. Raises ValueError for a pattern that fits no layer, for an unknown
    precision, and for one that a layer does not have."""
    named: dict[str, list[str]] = {}  # what names a node, or one in its nested graphs
    for node in graph.nodes:
        inner = [n for sub in node.subgraphs() for g in graphs_of(sub) for n in g.nodes]
        named[node.outputs[0]] = [text for n in (node, *inner) for text in (n.name, n.op, *n.outputs) if text]
    found: dict[int, str] = {}
    for pin in (*(f"{pattern}=float32" for pattern in exclude), *pins):
        pattern, equals, precision = pin.rpartition("=")
        if not equals or not pattern:
            raise ValueError(f"pin: {pin!r} should be a layer or pattern and a precision, like conv1=int8")
        if precision not in PRECISIONS:
            raise ValueError(f"pin: {pin!r}: {precision!r} is not one of {', '.join(PRECISIONS)}")
        fits = [
            i
            for i, layer in enumerate(layers)
            for o in layer.outputs
            if any(fnmatchcase(text, pattern) for text in named[o])
        ]
        if not fits:
            names = [layer.name for layer in layers]
            shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
            raise ValueError(f"pin: no layer is named {pattern!r}; the model's layers are {shown or 'none'}")
        for i in fits:
            if precision not in layers[i].bytes:
                raise ValueError(
                    f"pin: layer {layers[i].name!r} ({layers[i].op}) has no {precision}; it has "
                    f"{', '.join(p for p in PRECISIONS if p in layers[i].bytes)}"
                )
            found[i] = precision
    return found


def swapped(real: Model, models: Mapping[str, Model], chosen: Mapping[str, str]) -> Model:
    """A copy of the float model in which nodes are those of other models: {first output: precision}."""
    new = copy_model(real)
    nodes = {p: {n.outputs[0]: n for n in models[p].graph.nodes} for p in {*chosen.values()} & models.keys()}
    placed: list[Node] = []
    for node in new.graph.nodes:
        precision = chosen.get(node.outputs[0], "")
        other = nodes.get(precision, {}).get(node.outputs[0])
        if other is None:
            placed.append(node)
            continue
        for part in (*_makers(other, nodes[precision], real.graph), other):
            placed.append(
                Node(part.op, list(part.inputs), list(part.outputs), dict(part.attrs), part.domain, part.name)
            )
            for name in part.inputs:
                tensor = models[precision].graph.tensors.get(name)
                if tensor is not None and tensor.data is not None and name not in new.graph.tensors:
                    new.graph.add(tensor)
    new.graph.nodes = placed
    drop_unread(new.graph, list(new.graph.tensors))
    return new


def build(
    real: Model, found: Calibrated | None, models: Mapping[str, Model], layers: Sequence[Layer], chosen: Sequence[str]
) -> tuple[Model, Calibrated | None]:
    """The model whose layers have these precisions, and what calibration found for those in static int8."""
    pairs = list(zip(layers, chosen, strict=True))
    integer = static_int8(layers, chosen)
    others = {o: p for layer, p in pairs for o in layer.outputs if p in models and o not in integer}
    new = swapped(real, models, others)
    if not integer:
        return new, None
    floats = {n.outputs[0]: "" for n in found.selection.nodes if n.op in PRODUCTS and n.outputs[0] not in integer}
    return integer_model(new, static.restricted(found, floats))


def static_int8(layers: Sequence[Layer], chosen: Sequence[str]) -> set[str]:
    """The first outputs of the nodes that the static scheme makes integers."""
    return {o for layer, p in zip(layers, chosen, strict=True) if layer.static and p == "int8" for o in layer.outputs}
