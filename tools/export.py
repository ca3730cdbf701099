"""Writes a float model as ONNX.

    python tools/export.py model.etm -o model.onnx        (also: evort export)
    evort_tools.export.export(trainer.model(), "model.onnx")

What evort's passes have moved into an operator (an activation, a residual) becomes a node of its own again. The oldest
opset is used that has all of the operators in the form that evort has them in. Models with operators that ONNX lacks,
such as those of integers that evort's quantizer makes, are refused.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from evort._version import __version__
from evort.errors import ConversionError
from evort.etm import read
from evort.files import write_atomically
from evort.graph import Graph, Model, Node, Tensor
from evort.ops.base import lookup
from evort.ops.unfuse import apart
from evort.types import FROM_NUMPY

OLDEST = 17


def export(model: Model, path: str | os.PathLike[str] | None = None) -> onnx.ModelProto:
    """The model as ONNX, checked by onnx.checker, and written to `path` where one is given (whole, or not at all).

    Raises ConversionError for an operator or an element type that ONNX lacks; OSError.
    """
    graph = model.graph
    nodes: list[Node] = []
    extra: dict[str, np.ndarray] = {}
    for node in graph.nodes:
        copy = Node(node.op, list(node.inputs), list(node.outputs), dict(node.attrs), node.domain, node.name)
        for part in apart(copy, keep=False):
            nodes.append(_clip(part, extra) if part.op == "Clip" and part.attrs else part)
    opset = OLDEST
    for node in nodes:
        if node.domain not in ("", "ai.onnx"):
            raise ConversionError([f"{node.label()}: ONNX has no operators of domain {node.domain!r}"])
        schema = onnx.defs.get_schema(node.op)
        unknown = set(node.attrs) - set(schema.attributes)
        if unknown or len(node.inputs) > schema.max_input:
            what = f"attribute {', '.join(sorted(unknown))}" if unknown else "so many inputs"
            raise ConversionError([f"{node.label()}: ONNX's {node.op} has not {what}"])
        opset = max(opset, lookup(node).since)
    used = {name for node in nodes for name in node.inputs} | set(graph.outputs)
    weights = [_tensor(t) for name, t in graph.tensors.items() if t.data is not None and name in used]
    weights += [numpy_helper.from_array(value, name) for name, value in extra.items()]
    result = helper.make_model(
        helper.make_graph(
            [_node(node) for node in nodes], graph.name or "model", [_value(graph, n) for n in graph.inputs],
            [_value(graph, n) for n in graph.outputs], weights,
        ),
        opset_imports=[helper.make_opsetid("", opset)], producer_name="evort", producer_version=__version__,
    )  # fmt: skip
    result.ir_version = helper.find_min_ir_version_for(list(result.opset_import))
    helper.set_model_props(result, {key: value for key, value in model.metadata.items() if key})
    result = onnx.shape_inference.infer_shapes(result)  # outputs need a shape
    onnx.checker.check_model(result, full_check=True)
    if path is not None:
        write_atomically(path, result.SerializeToString())
    return result


def _clip(node: Node, extra: dict[str, np.ndarray]) -> Node:
    """A Clip whose bounds are attributes, as an activation's are, with the bounds as inputs."""
    operands = [node.inputs[0]]
    for key, default in (("alpha", -np.inf), ("beta", np.inf)):
        name = f"{node.outputs[0]}/{key}"
        extra[name] = np.array(node.attrs.get(key, default), np.float32)
        operands.append(name)
    return Node("Clip", operands, node.outputs, None, "", node.name)


def _node(node: Node) -> onnx.NodeProto:
    if any(isinstance(value, Graph) for value in node.attrs.values()):
        raise ConversionError([f"{node.label()}: nested graphs are not exported"])
    attrs = {k: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for k, v in node.attrs.items()}
    return helper.make_node(node.op, node.inputs, node.outputs, node.name, **attrs)


def _tensor(tensor: Tensor) -> TensorProto:
    if tensor.quant is not None or FROM_NUMPY.get(tensor.data.dtype) != tensor.dtype:
        raise ConversionError([f"tensor {tensor.name!r} of type {tensor.dtype.name.lower()} is not exported"])
    return numpy_helper.from_array(np.ascontiguousarray(tensor.data).reshape(tensor.data.shape), tensor.name)


def _value(graph: Graph, name: str) -> onnx.ValueInfoProto:
    tensor = graph.tensors.get(name)
    if tensor is None:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    shape = None if tensor.shape is None else [d or None for d in tensor.shape]
    return helper.make_tensor_value_info(name, int(tensor.dtype), shape)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="the .etm file of a float model")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the .onnx file to write")


def run(args: argparse.Namespace) -> int:
    export(read(args.model).model, args.output)
    print(f"{args.output}: written")
    return 0


if __name__ == "__main__":
    import sys

    from evort_tools.cli import run_command

    sys.exit(run_command("export"))
