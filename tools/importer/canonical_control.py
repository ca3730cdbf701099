"""Rewriting of Scan as opset 8 has it: batched, over axis 1."""

from __future__ import annotations

from evort.graph import Graph, Node, Tensor
from evort_tools.importer.builder import Builder
from evort_tools.importer.canonical import rewrite


@rewrite("Scan", before=9)
def scan_8(b: Builder) -> None:
    """Two Scans of today: one over the batch, whose body is the one over the sequence."""
    node = b.node
    body, scans = node.attrs.get("body"), node.attrs.get("num_scan_inputs")
    if not isinstance(body, Graph) or not isinstance(scans, int):
        raise b.refuse("attributes 'body' and 'num_scan_inputs' are required")
    if b.input(0):
        raise b.refuse("sequence lengths (its first input) are not supported; export it with opset 9 or newer")
    operands = node.inputs[1:]
    outer = Graph(f"{body.name}/batch")
    for operand in operands:
        name = b.names.fresh(f"{operand}/item")
        outer.inputs.append(name)
        dtype = b.dtype(operand)
        if dtype is not None:
            dims = b.dims(operand)
            outer.add(Tensor(name, dtype, None if dims is None else dims[1:]))
    outer.outputs = [b.names.fresh(f"{name}/item") for name in body.outputs]
    attrs = {"body": body, "num_scan_inputs": scans}
    if any(node.attrs.get("directions", [])):
        attrs["scan_input_directions"] = node.attrs["directions"]
    outer.nodes.append(Node("Scan", list(outer.inputs), list(outer.outputs), attrs, name=node.name))
    b.finish("Scan", operands, {"body": outer, "num_scan_inputs": len(operands)})
