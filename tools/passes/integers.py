"""Turns DequantizeLinear -> operator -> QuantizeLinear into operators on integers.

A quantized model says what is an integer by pairs of QuantizeLinear and DequantizeLinear around float operators (QDQ).
Five steps make integer operators of them:

1. what only moves elements (Reshape, MaxPool, ...) moves integers: DequantizeLinear is pushed behind it;
2. operators with an integer form take it (`integer_forms`), with a float32 output where no QuantizeLinear follows;
3. QuantizeLinear behind DequantizeLinear cancels it, or becomes a table of 256 entries;
4. products take the sum behind them (`integer_products`), and
5. a QuantizeLinear or DequantizeLinear that is left joins its consumer or its producer, where that has float sides
   (`integer_sides`).

Weights are read as integers; what is left of DequantizeLinear on constants is folded afterwards (`constants`).
"""

from __future__ import annotations

import numpy as np

from evort.graph import Graph, Node
from evort.ops.base import find
from evort.ops.quantize import MOVES
from evort_tools.passes import integer_forms_nn, integer_products, integer_sides  # noqa: F401 (forms register themselves)
from evort_tools.passes.constants import computed
from evort_tools.passes.edit import Context, Edit
from evort_tools.passes.integer_forms import FORMS
from evort_tools.passes.quantized import Quantized, dequantized, followed, lookup, quantized


def run(graph: Graph, ctx: Context) -> int:
    ed = Edit(graph, ctx)
    changes = 0
    for node in list(graph.nodes):
        if node.outputs and ed.writer.get(node.outputs[0]) is node:
            changes += _moved(ed, node) or _formed(ed, node) or _cancelled(ed, node)
    changes += integer_products.run(ed)
    changes += integer_sides.run(ed)
    for tensor in graph.tensors.values() if changes else ():
        tensor.quant = None  # the operators' scales say it
    # From here on nothing needs to be told from its DequantizeLinear any more.
    ctx.fold_weights = True
    return changes


def _moved(ed: Edit, node: Node) -> bool:
    """op(DequantizeLinear(x)) = DequantizeLinear(op(x)) for what moves elements, where there is one scale."""
    if node.domain:
        return False
    if node.op in ("Concat", "Pad", "Resize"):
        inputs = _moving_inputs(ed, node)
    elif node.op in MOVES and not (node.op == "MaxPool" and any(node.outputs[1:])):
        first = quantized(ed, node.inputs[0])
        inputs = None if first is None else (first, [first.x, *node.inputs[1:]])
    else:
        return False
    if inputs is None or inputs[0].axis is not None or not _takes(node, inputs[0]):
        return False
    source, names = inputs
    if len(node.outputs) > 1 and any(o in ed.outputs for o in node.outputs):
        return False
    moved = ed.insert_node(node, node.op, names, len(node.outputs), node.attrs)
    results = list(moved.outputs)
    folded = computed(moved, ed.ctx, ed) if ed.value(names[0]) is not None else None
    if folded is not None:
        results = [ed.constant(v, f"{o}/value", source.dtype) for o, v in zip(node.outputs, folded, strict=True)]
    for index, result in enumerate(results):
        real = ed.insert(node, "DequantizeLinear", [result, source.scale, source.zero], hint=f"{result}/real")
        name = node.outputs[index]
        ed.bypass(node, real, index)
        ed.prune(real)
        if result in moved.outputs and ed.writer.get(result) is moved:
            ed.rename(result, name)
    ed.prune(moved.outputs[0])
    return True


def _takes(node: Node, source: Quantized) -> bool:
    definition = find(node.op)
    allowed = definition.dtypes.get(definition.inputs[0].strip("?*"))
    return allowed is None or source.dtype in allowed


def _moving_inputs(ed: Edit, node: Node) -> tuple[Quantized, list[str]] | None:
    """The integer operands of operators that move elements only under a condition."""
    first = quantized(ed, node.inputs[0])
    if first is None or first.axis is not None:
        return None
    if node.op == "Concat":
        parts = [quantized(ed, name) for name in node.inputs]
        if any(p is None or not p.same(ed, first) for p in parts):
            return None
        return first, [p.x for p in parts]
    if node.op == "Resize":
        return (first, [first.x, *node.inputs[1:]]) if node.attrs.get("mode", "nearest") == "nearest" else None
    if node.attrs.get("mode", "constant") == "constant":
        fill = node.inputs[2] if len(node.inputs) > 2 else ""
        number = ed.scalar(fill) if fill else 0.0
        if number is None:
            return None
        code = first.code(ed, number)
        if code is None:
            return None
        name = ed.constant(np.array(code), f"{node.outputs[0]}/fill", first.dtype)
        return first, [first.x, node.inputs[1], name, *node.inputs[3:]]
    return first, [first.x, *node.inputs[1:]]


def _formed(ed: Edit, node: Node) -> bool:
    form = FORMS.get((node.domain, node.op))
    if form is None or len([o for o in node.outputs if o]) != 1:
        return False
    quantize = followed(ed, node.outputs[0])
    made = form(ed, node, quantize)
    if made is None:
        return False
    op, domain, inputs, attrs = made
    last = node if quantize is None else quantize.node
    hint = node.outputs[0] if quantize is None else last.outputs[0]
    out = ed.insert(last, op, inputs, attrs, hint=f"{hint}/integer", domain=domain)
    ed.writer[out].name = node.name
    ed.bypass(last, out)
    ed.prune(node.outputs[0])
    # Its integers keep the name of the real tensor: so tools find the same layer in both models.
    ed.rename(out, node.outputs[0])
    return True


def _cancelled(ed: Edit, node: Node) -> bool:
    """QuantizeLinear(DequantizeLinear(x)) is x, or a table of x."""
    if node.op != "QuantizeLinear" or node.domain:
        return False
    source, target = quantized(ed, node.inputs[0]), dequantized(ed, node)
    if source is None or target is None or source.axis is not None:
        return False
    if source.same(ed, target):
        return ed.bypass(node, source.x)
    made = lookup(ed, node.outputs[0], source, lambda x: x, target)
    if made is None:
        return False
    op, domain, inputs, attrs = made
    return ed.bypass(node, ed.insert(node, op, inputs, attrs, hint=f"{node.outputs[0]}/integer", domain=domain))
