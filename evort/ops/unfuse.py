"""The reverse of fusing: an operator's activation and residual as nodes of their own."""

from __future__ import annotations

from evort.graph import Node
from evort.ops.activation import ACTIVATIONS

_RESIDUAL = {"Conv": 3, "ConvTranspose": 3, "Gemm": 3, "MatMul": 3}  # which input is added to the product


def apart(node: Node, keep: bool = True) -> list[Node]:
    """A node, which is changed, and behind it what it does on its way out (an activation, a residual) as nodes of their
    own. keep: leaves an activation where it is whose slope is a function of its output: gradients need no more."""
    name = node.attrs.get("activation", "")
    residual = _RESIDUAL.get(node.op) if node.domain == "" else None
    adds = residual is not None and len(node.inputs) > residual and node.inputs[residual] != ""
    stays = name == "" or (keep and ACTIVATIONS[name].of_output)
    if not keep and node.op == "MatMul" and len(node.inputs) > 2 and node.inputs[2]:  # a bias is evort's extension
        before = f"{node.outputs[0]}/matrix"
        sum_of = Node("Add", [before, node.inputs[2]], node.outputs, node.attrs, "", f"{node.name}/bias")
        product = Node("MatMul", node.inputs[:2], [before], None, "", node.name)
        if adds:
            middle = f"{node.outputs[0]}/biased"
            last = Node("Add", [middle, node.inputs[residual]], node.outputs, node.attrs, "", f"{node.name}/residual")
            sum_of.outputs, sum_of.attrs = [middle], {}
            return [product, sum_of, *apart(last, keep)]
        return [product, *apart(sum_of, keep)]
    if stays and not adds:
        return [node]
    found, out = [node], node.outputs[0]
    z, slope = node.inputs[residual] if adds else "", node.inputs[4] if name == "PRelu" else ""
    if residual is not None:
        node.inputs = node.inputs[:residual]
        while not node.inputs[-1]:
            node.inputs.pop()
    keys = ("activation", "activation_alpha", "activation_beta")
    fused = {key: node.attrs.pop(key) for key in keys if key in node.attrs}
    if adds:
        node.outputs[0] = f"{out}/product"
        attrs = fused if stays else None
        found.append(Node("Add", [f"{out}/product", z], [out], attrs, "", f"{node.name}/residual"))
    if stays:
        return found
    found[-1].outputs[0] = before = f"{out}/before"
    attrs = {key.removeprefix("activation_"): value for key, value in fused.items() if key != "activation"}
    if name in ("Gelu", "GeluTanh"):
        name, attrs = "Gelu", {"approximate": "tanh" if name == "GeluTanh" else "none"}
    operands = [before, slope] if slope else [before]
    found.append(Node(name, operands, [out], attrs, "", f"{node.name}/{name}"))
    return found
