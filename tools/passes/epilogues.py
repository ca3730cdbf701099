"""Lets an operator apply the activation function behind it on its way out."""

from __future__ import annotations

from evort.graph import Graph, Node
from evort.ops.activation import ACTIVATIONS
from evort.ops.base import find
from evort_tools.passes.edit import Context, Edit


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    return sum(_fold(ed, node) for node in list(graph.nodes) if not node.domain)


def _fold(ed: Edit, node: Node) -> bool:
    if node.op not in ACTIVATIONS or node.attrs.get("activation") or not ed.is_real(node.outputs[0]):
        return False
    source = ed.producer(node.inputs[0])
    if source is None or not ed.single(node.inputs[0]) or source.domain or len(source.outputs) != 1:
        return False
    definition = find(source.op)
    if definition is None or "activation" not in definition.attrs or source.attrs.get("activation"):
        return False
    found = _parameters(ed, node, source)
    if found is None:
        return False
    name, params, slope = found
    attrs = {**source.attrs, "activation": name}
    attrs.update((key, v) for key, v in zip(("activation_alpha", "activation_beta"), params, strict=False)
                 if v is not None)  # fmt: skip
    inputs = list(source.inputs)
    if slope:
        inputs += [""] * (4 - len(inputs))
        inputs.append(slope)
    ed.change(node, source.op, inputs, attrs)
    return True


_DEFAULTS = {
    "LeakyRelu": (("alpha", 0.01),),
    "HardSigmoid": (("alpha", 0.2), ("beta", 0.5)),
    "Swish": (("alpha", 1.0),),
    "Elu": (("alpha", 1.0),),
}


def _parameters(ed: Edit, node: Node, source: Node) -> tuple[str, tuple[float | None, ...], str] | None:
    """(name of the activation, alpha and beta, the name of PRelu's slopes); None where it cannot be fused."""
    if node.op == "Clip":
        bounds: list[float | None] = []
        for name in (*node.inputs[1:3], "", "")[:2]:
            bounds.append(ed.scalar(name) if name else None)
            if name and bounds[-1] is None:
                return None
        return "Clip", tuple(bounds), ""
    if node.op == "Gelu":
        return ("GeluTanh" if node.attrs.get("approximate", "none") == "tanh" else "Gelu"), (), ""
    if node.op == "PRelu":
        return _prelu(ed, node, source)
    defaults = _DEFAULTS.get(node.op, ())
    if any(key not in dict(defaults) for key in node.attrs):
        return None
    return node.op, tuple(float(node.attrs.get(key, value)) for key, value in defaults), ""


def _prelu(ed: Edit, node: Node, source: Node) -> tuple[str, tuple[float | None, ...], str] | None:
    """PRelu with one slope for each channel of a Conv, or one for all."""
    from evort_tools.passes.linear import channels, output_vector

    slope = ed.real(node.inputs[1])
    if source.op != "Conv" or slope is None:
        return None
    if slope.size == 1 and slope.ndim <= (ed.shapes.rank(node.inputs[0]) or 0):
        return "LeakyRelu", (float(slope.reshape(-1)[0]),), ""
    vector = output_vector(ed, source, node.inputs[1])
    if vector is None or channels(ed, source) is None:
        return None
    dtype = ed.shapes.dtype(node.outputs[0])
    return "PRelu", (), ed.constant(vector.astype(slope.dtype), f"{node.outputs[0]}/slope", dtype)
