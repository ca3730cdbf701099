"""Walks an ONNX model and builds the graph: names, constants, nested graphs, functions, rewriting to newest forms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import FunctionProto, GraphProto, NodeProto, TypeProto, ValueInfoProto, defs

from evort.errors import ConversionError
from evort.graph import Dim, Graph, Model, Node, Tensor
from evort.ops.base import find
from evort.types import FROM_NUMPY, STORAGE, DType
from evort_tools.importer.attributes import Attributes, constant_of, values_of
from evort_tools.importer.builder import Builder, Names, Refused
from evort_tools.importer.canonical import rule_for
from evort_tools.importer.order import node_reads, reads, sorted_nodes
from evort_tools.importer.source import Source, array, dense
from evort_tools.passes.shapes import Shapes

OLDEST_OPSET = 7
MAX_DEPTH = 64  # of functions calling functions


class Scope:
    """Where names are looked up: one graph, or one body of a function that is being inlined.

    names: from ONNX names to the graph's; outer: the scope around a nested graph; attrs: the attributes of the call
    that a function's body refers to; used: ONNX names that something reads.
    """

    def __init__(
        self,
        graph: Graph,
        opsets: Mapping[str, int],
        used: set[str],
        outer: Scope | None = None,
        attrs: Attributes | None = None,
        prefix: str = "",
        depth: int = 0,
    ):
        self.graph = graph
        self.opsets = opsets
        self.used = used
        self.outer = outer
        self.attrs = attrs
        self.prefix = prefix
        self.depth = depth
        self.names: dict[str, str] = {}

    def find(self, name: str) -> str | None:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        return None


class Importer:
    """One import; `run` gives the model. All problems are collected and raised together."""

    def __init__(self, source: Source, input_shapes: Mapping[str, Sequence[Dim]] | None = None):
        self.source = source
        self.proto = source.proto
        self.input_shapes = dict(input_shapes or {})
        self.problems: list[str] = []
        self.names = Names()
        self.shapes = Shapes()
        self.top: Graph | None = None
        self.functions = {(f.domain, f.name, f.overload): f for f in self.proto.functions}

    def run(self) -> Model:
        opsets = self._opsets(self.proto.opset_import)
        if self.problems:
            raise ConversionError(self.problems)
        proto = self.proto.graph
        # Names at the top of the model stay as they are; those of nested graphs move aside.
        for name in _defined(proto):
            self.names.reserve(name)
        self.top = graph = Graph(proto.name)
        scope = Scope(graph, opsets, reads(proto))
        self._graph(proto, scope, top=True)
        unknown = [name for name in self.input_shapes if name not in graph.inputs]
        for name in unknown:
            self.problems.append(f"no input is named {name!r}; inputs: {', '.join(graph.inputs)}")
        if self.problems:
            raise ConversionError(self.problems)
        newest = {domain: version for domain, version in opsets.items() if domain}
        return Model(graph, {"": defs.onnx_opset_version(), **newest}, self._metadata(), self._producer())

    # Model

    def _opsets(self, imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
        opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in imports}
        newest = defs.onnx_opset_version()
        version = opsets.setdefault("", 1 if not opsets else newest)
        if version < OLDEST_OPSET:
            self.problems.append(
                f"the model uses opset {version}, the oldest that converts is {OLDEST_OPSET}: "
                "update it with onnx.version_converter, or export it anew"
            )
        elif version > newest:
            self.problems.append(
                f"the model uses opset {version}, the installed onnx {onnx.__version__} knows up to {newest}: update it"
            )
        return opsets

    def _producer(self) -> str:
        return " ".join(filter(None, (self.proto.producer_name, self.proto.producer_version)))

    def _metadata(self) -> dict[str, str]:
        proto = self.proto
        found = {p.key: p.value for p in proto.metadata_props}
        imports = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in proto.opset_import)
        known = {
            "onnx.opset_import": imports,
            "onnx.domain": proto.domain,
            "onnx.model_version": str(proto.model_version) if proto.model_version else "",
            "onnx.doc_string": proto.doc_string or proto.graph.doc_string,
        }
        found.update((key, value) for key, value in known.items() if value)
        return found

    # Graphs

    def _graph(self, proto: GraphProto, scope: Scope, top: bool = False) -> None:
        """Fills scope.graph. Initializers come first, so that one of an input's name makes it a constant."""
        graph = scope.graph
        for tensor in proto.initializer:
            self._constant(tensor.name, scope, lambda t=tensor: array(t, self.source.folder))
        for sparse in proto.sparse_initializer:
            self._constant(sparse.values.name, scope, lambda t=sparse: dense(t, self.source.folder))
        for info in proto.input:
            if info.name in scope.names:
                continue
            name = self._define(info.name, scope, top)
            graph.inputs.append(name)
            self._input(info, name, graph, top)
        self._nodes(proto.node, scope, top)
        for info in proto.output:
            name = scope.find(info.name)
            if name is None:
                self.problems.append(f"output {info.name!r} is computed by no node")
                continue
            graph.outputs.append(name)
            if top and name not in graph.tensors:
                self._declared(info, name, graph)

    def _define(self, name: str, scope: Scope, top: bool = False) -> str:
        """Gives an ONNX name its place in the scope."""
        if name in scope.names:
            self.problems.append(f"{name!r} is defined twice")
        given = name if top else self.names.fresh(scope.prefix + name)
        scope.names[name] = given
        return given

    def _constant(self, name: str, scope: Scope, load: Any) -> None:
        top = scope.outer is None and not scope.prefix
        given = self._define(name, scope, top)
        try:
            dtype, value = load()
        except (ValueError, OSError) as error:
            self.problems.append(f"weight {name!r}: {error}")
            return
        tensor = Tensor(given, dtype, value.shape, value)
        scope.graph.add(tensor)
        self.shapes.constant(tensor)

    def _input(self, info: ValueInfoProto, name: str, graph: Graph, top: bool) -> None:
        dtype, dims = self._type(info.type, name)
        if top and name in self.input_shapes:
            given = tuple(self.input_shapes[name])
            if dims is not None and len(dims) != len(given):
                self.problems.append(f"input {name!r} has rank {len(dims)}, the shape given for it has {len(given)}")
                return
            dims = given
        if not top:
            # A nested graph's input has the type of what is passed to it, which `Shapes` knows; what is declared
            # fills the gaps.
            if dtype is not None:
                graph.add(Tensor(name, dtype, dims))
            return
        if dtype is None:
            self.problems.append(f"input {name!r} has no element type")
            return
        self.shapes.input(graph.tensors[graph.add(Tensor(name, dtype, dims))])

    def _type(self, proto: TypeProto, name: str) -> tuple[DType | None, tuple[Dim, ...] | None]:
        kind = proto.WhichOneof("value")
        if kind in ("sequence_type", "optional_type"):
            return (DType.SEQUENCE if kind == "sequence_type" else DType.OPTIONAL), None
        if kind not in (None, "tensor_type"):
            self.problems.append(f"{name!r} is of kind {kind}, which evort does not have")
            return None, None
        tensor = proto.tensor_type
        if not tensor.elem_type:
            return None, None
        try:
            dtype = DType(tensor.elem_type)
        except ValueError:
            self.problems.append(f"{name!r} has the unknown element type {tensor.elem_type}")
            return None, None
        if not tensor.HasField("shape"):
            return dtype, None
        dims: list[Dim] = []
        for axis, d in enumerate(tensor.shape.dim):
            if d.HasField("dim_value") and d.dim_value >= 0:
                dims.append(d.dim_value)
            elif d.dim_param and d.dim_param != "?":
                dims.append(d.dim_param)
            else:
                # A size of its own: exporters write -1, "?" or nothing for several unrelated ones.
                dims.append(f"{name}_dim_{axis}")
        return dtype, tuple(dims)

    def _declared(self, info: ValueInfoProto, name: str, graph: Graph) -> None:
        """Notes the declared type of an output, for what inference does not find."""
        dtype, dims = self._type(info.type, name)
        if dtype is not None:
            anonymous = {f"{name}_dim_{axis}" for axis in range(len(dims or ()))}
            dims = None if dims is None else tuple("" if d in anonymous else d for d in dims)
            graph.add(Tensor(name, dtype, dims))

    # Nodes

    def _nodes(self, protos: Iterable[NodeProto], scope: Scope, top: bool) -> None:
        ordered, cyclic = sorted_nodes(list(protos))
        for proto in cyclic:
            self.problems.append(f"{_label(proto)}: it needs its own result")
        for proto in ordered:
            self._node(proto, scope, top)

    def _node(self, proto: NodeProto, scope: Scope, top: bool) -> None:
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        inputs = []
        for name in proto.input:
            given = scope.find(name) if name else ""
            if given is None:
                self.problems.append(f"{_label(proto)}: nothing before it defines its input {name!r}")
                given = ""
            inputs.append(given)
        wanted = [name if name in scope.used else "" for name in proto.output]
        if proto.output and not any(wanted):
            return  # dead; rewriting it could only fail
        try:
            attrs = values_of(proto, scope.attrs, lambda graph, owner: self._nested(graph, owner or scope),
                              self.source.folder)  # fmt: skip
        except ValueError as error:
            self.problems.append(f"{_label(proto)}: {error}")
            attrs = {}
        if (domain, proto.op_type) == ("", "Constant"):
            self._constant_node(proto, attrs, scope)
            return
        outputs = [self._define(name, scope, top) if name else "" for name in wanted]
        if (domain, proto.op_type) == ("", "ConstantOfShape") and self._held_as_bits(proto, scope, inputs, outputs):
            return
        while outputs and not outputs[-1]:
            outputs.pop()
        name = scope.prefix + proto.name if proto.name else ""
        node = Node(proto.op_type, inputs, outputs, attrs, domain, name)
        function = self.functions.get((proto.domain, proto.op_type, proto.overload))
        if function is not None:
            self._inline(function, node, Attributes(proto, scope.attrs, scope), scope)
        elif domain not in scope.opsets:
            self.problems.append(f"{node.label()}: the model imports no opset of the domain {domain!r}")
        else:
            self._standard(proto, node, scope, scope.opsets[domain])

    def _standard(self, proto: NodeProto, node: Node, scope: Scope, opset: int) -> None:
        """A node of an operator set: rewritten, taken as it is, or replaced by the body that ONNX defines for it."""
        rule = rule_for(node.domain, node.op, opset)
        if rule is not None:
            try:
                rule(Builder(scope.graph, self.names, self.shapes, node, opset, self.add))
            except Refused as why:
                self.problems.append(f"{node.label()}: {why}")
            return
        if find(node.op, node.domain) is None:
            function = self._schema_function(proto, node, scope, opset)
            if function is not None:
                self._inline(function, node, Attributes(proto, scope.attrs, scope), scope)
                return
        self.add(scope.graph, node)

    def add(self, graph: Graph, node: Node) -> None:
        """Appends a node in its newest form; attributes that are at their default are left out."""
        definition = find(node.op, node.domain)
        if definition is not None:
            node.attrs = {k: v for k, v in node.attrs.items() if not _is_default(definition.attrs.get(k), v)}
            while len(node.inputs) > definition.arity[0] and not node.inputs[-1]:
                node.inputs.pop()
            node.outputs += [""] * (definition.arity[2] - len(node.outputs))  # that nothing reads, but must be there
        graph.nodes.append(node)
        self.shapes.infer(node, graph is self.top)

    def _constant_node(self, proto: NodeProto, attrs: dict[str, Any], scope: Scope) -> None:
        given = [a for a in proto.attribute if a.name.startswith(("value", "sparse_value"))]
        if len(given) != 1:
            self.problems.append(f"{_label(proto)}: it needs exactly one value, and has {len(given)}")
            return
        attribute = scope.attrs.resolve(given[0])[0] if scope.attrs is not None else given[0]
        if attribute is None:
            self.problems.append(f"{_label(proto)}: the call of its function does not set its value")
            return
        self._constant(proto.output[0], scope, lambda: constant_of(attribute, self.source.folder))

    def _held_as_bits(self, proto: NodeProto, scope: Scope, inputs: list[str], outputs: list[str]) -> bool:
        """ConstantOfShape of an element type that NumPy lacks: its array does not tell the type, a constant's does."""
        given = scope.attrs.resolved(proto) if scope.attrs is not None else proto.attribute
        value = next((a.t for a in given if a.name == "value"), None)
        if value is None or FROM_NUMPY.get(STORAGE[DType(value.data_type)]) == value.data_type:
            return False
        name = self.names.fresh(f"{outputs[0]}/value")
        dtype, data = array(value, self.source.folder)
        tensor = scope.graph.tensors[scope.graph.add(Tensor(name, dtype, (), data.reshape(())))]
        self.shapes.constant(tensor)
        self.add(scope.graph, Node("Expand", [name, *inputs], outputs, name=proto.name))
        return True

    # Nested graphs and functions

    def _nested(self, proto: GraphProto, outer: Scope) -> Graph:
        graph = Graph(proto.name)
        scope = Scope(graph, outer.opsets, reads(proto), outer, outer.attrs, outer.prefix, outer.depth)
        self._graph(proto, scope)
        return graph

    def _inline(self, function: FunctionProto, node: Node, call: Attributes, scope: Scope) -> None:
        """Puts a function's body in place of a call."""
        if scope.depth >= MAX_DEPTH:
            self.problems.append(f"{node.label()}: functions call each other more than {MAX_DEPTH} deep")
            return
        opsets = self._opsets(function.opset_import) if function.opset_import else dict(scope.opsets)
        used = {name for n in function.node for name in node_reads(n)} | set(function.output)
        prefix = f"{node.name or next((o for o in node.outputs if o), node.op)}/"
        call.defaults = {a.name: a for a in function.attribute_proto}
        inner = Scope(scope.graph, opsets, used, None, call, prefix, scope.depth + 1)
        for index, formal in enumerate(function.input):
            inner.names[formal] = node.inputs[index] if index < len(node.inputs) else ""
        self._nodes(function.node, inner, top=False)
        for formal, actual in zip(function.output, node.outputs, strict=False):
            if not actual:
                continue
            source = inner.find(formal)
            if source is None:
                self.problems.append(f"{node.label()}: its function computes no {formal!r}")
            else:
                self.add(scope.graph, Node("Identity", [source], [actual], name=node.name))

    def _schema_function(self, proto: NodeProto, node: Node, scope: Scope, opset: int) -> FunctionProto | None:
        """The body that ONNX defines for an operator that evort has no definition of, or None."""
        if not defs.has(node.op, opset, node.domain):
            return None
        schema = defs.get_schema(node.op, opset, node.domain)
        limit = scope.opsets.get("", opset)
        body = FunctionProto()
        if schema.has_function:
            versions = [v for v in schema.function_opset_versions if v <= limit]
            if not versions:
                return None
            body.ParseFromString(schema.get_function_with_opset_version(max(versions)))
        elif schema.has_context_dependent_function:
            versions = [v for v in schema.context_dependent_function_opset_versions if v <= limit]
            if not versions:
                return None
            plain = NodeProto()
            plain.CopyFrom(proto)
            if scope.attrs is not None:
                del plain.attribute[:]
                plain.attribute.extend(scope.attrs.resolved(proto))
            types = [self._type_proto(name).SerializeToString() for name in node.inputs]
            data = schema.get_context_dependent_function_with_opset_version(
                max(versions), plain.SerializeToString(), types
            )
            if not data:
                return None
            body.ParseFromString(data)
        else:
            return None
        # The body refers to the operator's attributes, whose defaults are in the schema.
        own = {a.name for a in body.attribute_proto}
        defaults = (a.default_value for name, a in schema.attributes.items() if name not in own)
        body.attribute_proto.extend(value for value in defaults if value.name)
        if not body.opset_import:
            body.opset_import.append(onnx.helper.make_opsetid("", max(versions)))
        return body

    def _type_proto(self, name: str) -> TypeProto:
        dtype = self.shapes.dtype(name) if name else None
        if dtype is None or dtype in (DType.SEQUENCE, DType.OPTIONAL):
            return TypeProto()
        dims = self.shapes.shape(name)
        return onnx.helper.make_tensor_type_proto(
            int(dtype), None if dims is None else [d if d != "" else None for d in dims]
        )


def import_model(source: Source, input_shapes: Mapping[str, Sequence[Dim]] | None = None) -> tuple[Model, Shapes]:
    """Builds a model's graph in newest forms, and what inference found on the way.

    input_shapes: shapes to use instead of the declared ones, by input name; a name in them is a symbolic dimension.
    Raises ConversionError with every problem found.
    """
    importer = Importer(source, input_shapes)
    model = importer.run()
    return model, importer.shapes


def _defined(proto: GraphProto) -> Iterable[str]:
    yield from (i.name for i in proto.input)
    yield from (t.name for t in proto.initializer)
    yield from (t.values.name for t in proto.sparse_initializer)
    for node in proto.node:
        yield from (name for name in node.output if name)


def _is_default(attr: Any, value: Any) -> bool:
    if attr is None or attr.default is None or isinstance(value, Graph) or hasattr(value, "dtype"):
        return False
    if isinstance(value, float):  # the file has 32 bits of it, the definition 64
        return isinstance(attr.default, float | int) and np.float32(value) == np.float32(attr.default)
    return type(value) is type(attr.default) and value == attr.default


def _label(proto: NodeProto) -> str:
    return Node(proto.op_type, [], list(proto.output), None, proto.domain, proto.name).label()
