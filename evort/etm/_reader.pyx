# distutils: define_macros=NPY_NO_DEPRECATED_API=NPY_2_0_API_VERSION
"""Reads `.etm` files: checks everything, then builds the graph over arrays that lie in the file's bytes.

    File bytes --header--> metadata (FlatBuffer) --cursor--> Model, whose constants are views of the weight segment

What docs/etm-format.md demands of a reader is checked here, and nowhere later: who gets a Model from `parse` may rely
on it. Operators' own rules are those of evort.ops.base; `OpInfo` is their fast path.
"""
cimport cython
cimport numpy as cnp
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.math cimport isfinite
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from evort._records cimport (A_FLOAT, A_FLOATS, A_GRAPH, A_INT, A_INTS, A_STR, A_STRS, A_TENSOR, Graph, Node, OpInfo,
                             Tensor, info_of)
from evort.etm._schema cimport *
from evort.etm._xxh64 cimport xxh64 as _xxh64

import sys

import numpy as np

from evort.errors import EtmFormatError
from evort.graph import Golden, Model, Quantization, Sparsity
from evort.ops.base import check_arity, complete_attrs, find, lookup
from evort.types import BITS, INTS, SIGNED_INTS, STORAGE, DType

cnp.import_array()
if sys.byteorder != "little":
    raise ImportError("evort reads .etm files in place, which needs a little-endian machine")

MAGIC = b"\x89ETM"
VERSION = (1, 0)       # of this reader, and of the files that the writer makes
FEATURES = frozenset()  # Model.required_features that this reader has
IDENTIFIER = b"ETM1"

# What a file may hold. Generous for real models; they bound what a hostile one can cost.
cdef enum:
    MAX_METADATA = 1 << 28    # bytes of metadata
    MAX_STRING = 1 << 24      # bytes of a string of the metadata
    MAX_STRINGS = 1 << 22
    MAX_NODES = 1 << 20       # of all graphs together
    MAX_TENSORS = 1 << 20     # of all graphs together
    MAX_OPERANDS = 1 << 16    # inputs, or outputs, of a node
    MAX_ATTRIBUTES = 256      # of a node
    MAX_RANK = 64
    MAX_NESTING = 16          # graphs inside graphs
    MAX_BLOCK = 256           # rows, or columns, of a block of a sparse constant
    MAX_EXPANSION = 1024      # items of a sparse constant for each one stored
    ALIGN = 64                # of blobs in the weight segment, and of the segment in the file
cdef int64_t MAX_ELEMENTS = (<int64_t> 1) << 58  # of a tensor: 16 bytes each, it can still be counted in 64 bits

ALIGNMENT = ALIGN
LIMITS = {
    "metadata": MAX_METADATA, "string": MAX_STRING, "strings": MAX_STRINGS, "nodes": MAX_NODES,
    "tensors": MAX_TENSORS, "operands": MAX_OPERANDS, "attributes": MAX_ATTRIBUTES, "rank": MAX_RANK,
    "nesting": MAX_NESTING, "block": MAX_BLOCK, "expansion": MAX_EXPANSION,
}

cdef int[256] kind_bits  # the bit in OpInfo.kinds for each AttributeType
memset(kind_bits, 0, sizeof(kind_bits))
kind_bits[<int> ATTRIBUTE_TYPE_INT], kind_bits[<int> ATTRIBUTE_TYPE_INTS] = A_INT, A_INTS
kind_bits[<int> ATTRIBUTE_TYPE_FLOAT], kind_bits[<int> ATTRIBUTE_TYPE_FLOATS] = A_FLOAT, A_FLOATS
kind_bits[<int> ATTRIBUTE_TYPE_STRING], kind_bits[<int> ATTRIBUTE_TYPE_STRINGS] = A_STR, A_STRS
kind_bits[<int> ATTRIBUTE_TYPE_TENSOR], kind_bits[<int> ATTRIBUTE_TYPE_GRAPH] = A_TENSOR, A_GRAPH

include "_cursor.pxi"
include "_values.pxi"


def xxh64(data, seed: int = 0) -> int:
    """XXH64 of a contiguous buffer. Releases the GIL."""
    cdef Py_buffer view
    cdef uint64_t value, start = seed
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            value = _xxh64(<const uint8_t *> view.buf, view.len, start)
    finally:
        PyBuffer_Release(&view)
    return value


def blob_alignment(length: int) -> int:
    """What the offset of a blob of so many bytes must be a multiple of."""
    return alignment_of(length)


class Header:
    """The fixed part of a file. `version` is the file's, `oldest` the oldest reader that can read it; offsets and
    lengths are in bytes; `hash` is that of header and metadata."""

    __slots__ = (
        "file_size", "flags", "hash", "metadata_length", "metadata_offset", "oldest", "version", "weights_length",
        "weights_offset",
    )


cdef object read_header(const uint8_t *base, uint64_t size):
    """Checks the header of a file of `size` bytes. `base`: a private copy of its first 64 bytes."""
    cdef uint64_t metadata_offset, metadata_length, weights_offset, weights_length, file_size, stored
    cdef uint32_t flags
    if base[:4] != MAGIC:
        raise EtmFormatError(f"byte 0: {base[:4]!r} is not the magic number of an .etm file, {MAGIC!r}")
    version, oldest = (base[4], base[5]), (base[6], base[7])
    if version[0] > VERSION[0] or oldest > VERSION:
        raise EtmFormatError(
            f"byte 4: the file has format {version[0]}.{version[1]} and needs a reader of at least "
            f"{oldest[0]}.{oldest[1]}; this one reads {VERSION[0]}.{VERSION[1]}. Install a newer evort, or convert again"
        )
    if version[0] < 1:
        raise EtmFormatError(f"byte 4: there is no format {version[0]}.{version[1]}")
    memcpy(&flags, base + 8, 4)
    memcpy(&metadata_offset, base + 16, 8)
    memcpy(&metadata_length, base + 24, 8)
    memcpy(&weights_offset, base + 32, 8)
    memcpy(&weights_length, base + 40, 8)
    memcpy(&file_size, base + 48, 8)
    memcpy(&stored, base + 56, 8)
    if flags & 0xFFFF:
        raise EtmFormatError(f"byte 8: flags {flags:#x} ask for something that this reader lacks")
    if file_size != size:
        raise EtmFormatError(f"byte 48: the file should have {file_size} bytes, but has {size}")
    if metadata_offset < 64 or metadata_offset % 64 or metadata_offset > size:
        raise EtmFormatError(f"byte 16: the metadata cannot start at byte {metadata_offset}")
    if metadata_length < 16 or metadata_length > size - metadata_offset:
        raise EtmFormatError(f"byte 24: the metadata cannot have {metadata_length} bytes")
    if metadata_length > MAX_METADATA:
        raise EtmFormatError(f"byte 24: {metadata_length} bytes of metadata; the limit is {MAX_METADATA}")
    if weights_offset < metadata_offset + metadata_length or weights_offset % ALIGN or weights_offset > size:
        raise EtmFormatError(f"byte 32: the weights cannot start at byte {weights_offset}")
    if weights_length > size - weights_offset:
        raise EtmFormatError(f"byte 40: {weights_length} bytes of weights run past the end of the file")
    header = Header()
    header.version, header.oldest, header.flags = version, oldest, flags
    header.metadata_offset, header.metadata_length = metadata_offset, metadata_length
    header.weights_offset, header.weights_length = weights_offset, weights_length
    header.file_size, header.hash = file_size, stored
    return header


@cython.final
cdef class _Reader(_Values):
    """One reading of one file."""

    cdef uint8_t *depth_of      # for each string: 0, or 1 + how deeply nested the graph is that defines that name
    cdef uint32_t *defined      # the names defined, in order
    cdef Py_ssize_t n_defined
    cdef int64_t n_nodes, n_tensors
    cdef bint operators
    cdef dict infos             # OpInfo by (domain, name)
    cdef bytes scope            # owns the memory of depth_of and defined

    cdef int define(self, uint32_t index, int depth, int64_t at, str field) except -1:
        """Notes that a graph `depth` graphs deep writes a name."""
        if self.depth_of[index]:
            fail(&self.meta, at, field, f"{self.strings[index]!r} is defined already")
        if index == 0:
            fail(&self.meta, at, field, "the empty name cannot be defined")
        self.depth_of[index] = depth + 1
        self.defined[self.n_defined] = index
        self.n_defined += 1
        return 0

    cdef str string_at(self, int64_t at, str field):
        """The string whose index is at `at`."""
        cdef uint32_t index = load32(&self.meta, at)
        if index >= self.n_strings:
            fail(&self.meta, at, field, f"there is no string {index} of {self.n_strings}")
        return <str> self.strings[index]

    cdef object read_tensor(self, Table *t, int depth):
        cdef Meta *m = &self.meta
        cdef Table item
        cdef const uint8_t *raw
        cdef int64_t count, at
        cdef int dtype = get8(m, t, TENSOR_AT_DTYPE, "Tensor.dtype", FLOAT)
        if _dtypes[dtype] is None:
            fail(m, t.at, "Tensor.dtype", f"there is no element type {dtype}")
        name = self.name(t, TENSOR_AT_NAME, "Tensor.name")
        shape = self.read_shape(t, TENSOR_AT_SHAPE, "Tensor.shape", &count)
        stored, layout, data, quant, sparsity = shape, "", None, None, None
        if t.vtable_size > TENSOR_AT_LAYOUT:
            layout = self.name(t, TENSOR_AT_LAYOUT, "Tensor.layout")
            if child(m, t, TENSOR_AT_QUANTIZATION, "Tensor.quantization", &item):
                quant = self.read_quantization(&item, dtype, shape)
        at = slot(m, t, TENSOR_AT_DATA, 24, "Tensor.data")
        if at:
            self.define(get32(m, t, TENSOR_AT_NAME, "Tensor.name"), depth, t.at, "Tensor.name")
            if count < 0 or _numpy[dtype] < 0:
                fail(m, at, "Tensor.data", f"a constant of type {_dtypes[dtype].name} and shape {shape} cannot be")
            if child(m, t, TENSOR_AT_SPARSITY, "Tensor.sparsity", &item):
                sparsity, stored = self.read_sparsity(&item, shape)
                count = product(stored)
            data = self.read_value(at, dtype, stored, count, "Tensor.data", &raw)
            if sparsity is not None:
                self.check_overhang(at, data, sparsity, shape)
        elif child(m, t, TENSOR_AT_SPARSITY, "Tensor.sparsity", &item):
            fail(m, item.at, "Tensor.sparsity", "only constants can be sparse")
        return Tensor(name, _dtypes[dtype], shape, data, quant, sparsity, layout)

    cdef object read_graph(self, Table *t, int depth):
        cdef Meta *m = &self.meta
        cdef Table item
        cdef int64_t i, n, at, place
        cdef uint32_t index
        cdef Py_ssize_t mark = self.n_defined
        if depth > MAX_NESTING:
            fail(m, t.at, "Graph", f"graphs are nested more than {MAX_NESTING} deep")
        graph = Graph(self.name(t, GRAPH_AT_NAME, "Graph.name"))

        at = vector(m, t, GRAPH_AT_TENSORS, 4, 4, &n, "Graph.tensors")
        self.n_tensors += n
        if self.n_tensors > MAX_TENSORS:
            fail(m, at, "Graph.tensors", f"more than {MAX_TENSORS} tensors")
        cdef dict tensors = graph.tensors
        for i in range(n):
            open_table(m, follow(m, at + 4 * i, "Graph.tensors"), "Tensor", &item)
            tensor = self.read_tensor(&item, depth)
            tensors[tensor.name] = tensor
            if len(tensors) != i + 1:
                fail(m, item.at, "Tensor.name", f"{tensor.name!r} is there twice")

        graph.inputs = self.names(t, GRAPH_AT_INPUTS, "Graph.inputs", MAX_TENSORS, &place)
        for i in range(len(graph.inputs)):
            if graph.inputs[i] not in tensors:
                fail(m, place + 4 * i, "Graph.inputs", f"input {graph.inputs[i]!r} is not among the graph's tensors")
            self.define(load32(m, place + 4 * i), depth, place + 4 * i, "Graph.inputs")

        at = vector(m, t, GRAPH_AT_NODES, 4, 4, &n, "Graph.nodes")
        self.n_nodes += n
        if self.n_nodes > MAX_NODES:
            fail(m, at, "Graph.nodes", f"more than {MAX_NODES} nodes")
        cdef list nodes = [None] * n
        for i in range(n):
            open_table(m, follow(m, at + 4 * i, "Graph.nodes"), "Node", &item)
            nodes[i] = self.read_node(&item, depth)
        graph.nodes = nodes

        graph.outputs = self.names(t, GRAPH_AT_OUTPUTS, "Graph.outputs", MAX_TENSORS, &place)
        for i in range(len(graph.outputs)):
            index = load32(m, place + 4 * i)
            if not self.depth_of[index]:
                fail(m, place + 4 * i, "Graph.outputs", f"output {graph.outputs[i]!r} is never computed")
        while self.n_defined > mark:  # the graph's names end with it
            self.n_defined -= 1
            self.depth_of[self.defined[self.n_defined]] = 0
        return graph

    cdef object read_node(self, Table *t, int depth):
        cdef Meta *m = &self.meta
        cdef int64_t i, n, place, outputs_place
        cdef uint32_t index
        cdef uint64_t absent = 0
        cdef bint fits = True
        cdef OpInfo info = None
        op = self.name(t, NODE_AT_OP, "Node.op")
        domain = self.name(t, NODE_AT_DOMAIN, "Node.domain")
        cdef list inputs = self.names(t, NODE_AT_INPUTS, "Node.inputs", MAX_OPERANDS, &place)
        cdef list outputs = self.names(t, NODE_AT_OUTPUTS, "Node.outputs", MAX_OPERANDS, &outputs_place)
        name = self.name(t, NODE_AT_NAME, "Node.name")
        cdef dict attrs = None
        if not op:
            fail(m, t.at, "Node.op", "a node has no operator")
        n = len(inputs)
        for i in range(n):
            index = load32(m, place + 4 * i)
            if index == 0:
                absent |= (<uint64_t> 1) << min(i, 63)
            elif not self.depth_of[index]:
                label = Node(op, inputs, outputs, None, domain, name).label()
                fail(m, place + 4 * i, "Node.inputs", f"{label} reads {inputs[i]!r}, which nothing before it computes")
        if self.operators:
            info = self.infos.get((domain, op))
            if info is None:
                definition = find(op, domain)
                if definition is None:
                    lookup(Node(op, inputs, outputs, None, domain, name))  # which raises, and names near ones
                info = self.infos[domain, op] = info_of(definition)
        if t.vtable_size > NODE_AT_ATTRIBUTES:
            attrs = self.read_attributes(t, info, &fits, depth)
        node = Node(op, inputs, outputs, attrs, domain, name)
        if info is not None and not (
            fits and info.arity_fits(n, len(outputs), absent) and (not info.needed or info.needed <= node.attrs.keys())
        ):
            check_arity(info.definition, node)
            complete_attrs(info.definition, node)
        for i in range(len(outputs)):
            index = load32(m, outputs_place + 4 * i)
            if index:
                self.define(index, depth, outputs_place + 4 * i, "Node.outputs")
        return node

    cdef dict read_attributes(self, Table *t, OpInfo info, bint *fits, int depth):
        """A node's attributes. `fits` becomes False where one is not plainly of a kind that the operator takes."""
        cdef Meta *m = &self.meta
        cdef Table item
        cdef int64_t i, n, at
        cdef int kind
        cdef dict found = {}
        at = vector(m, t, NODE_AT_ATTRIBUTES, 4, 4, &n, "Node.attributes")
        if n > MAX_ATTRIBUTES:
            fail(m, at, "Node.attributes", f"{n} attributes; the limit is {MAX_ATTRIBUTES}")
        for i in range(n):
            open_table(m, follow(m, at + 4 * i, "Node.attributes"), "Attribute", &item)
            key = self.name(&item, ATTRIBUTE_AT_KEY, "Attribute.key")
            kind = get8(m, &item, ATTRIBUTE_AT_TYPE, "Attribute.type")
            found[key] = self.read_attribute(&item, kind, depth)
            if len(found) != i + 1:
                fail(m, item.at, "Attribute.key", f"{key!r} is there twice")
            if info is not None and not <int> info.kinds.get(key, 0) & kind_bits[kind]:
                fits[0] = False
        return found

    cdef object read_attribute(self, Table *t, int kind, int depth):
        cdef Meta *m = &self.meta
        cdef Table item
        cdef const uint8_t *raw
        cdef int dtype
        cdef int64_t at, i, n
        if kind == ATTRIBUTE_TYPE_INT:
            at = slot(m, t, ATTRIBUTE_AT_I, 8, "Attribute.i")
            return <int64_t> load64(m, at) if at else 0
        if kind == ATTRIBUTE_TYPE_INTS:
            at = vector(m, t, ATTRIBUTE_AT_INTS, 8, 8, &n, "Attribute.ints")
            return [<int64_t> load64(m, at + 8 * i) for i in range(n)]
        if kind == ATTRIBUTE_TYPE_FLOAT:
            at = slot(m, t, ATTRIBUTE_AT_F, 8, "Attribute.f")
            return load_double(m, at) if at else 0.0
        if kind == ATTRIBUTE_TYPE_FLOATS:
            at = vector(m, t, ATTRIBUTE_AT_FLOATS, 8, 8, &n, "Attribute.floats")
            return [load_double(m, at + 8 * i) for i in range(n)]
        if kind == ATTRIBUTE_TYPE_STRING:
            return self.name(t, ATTRIBUTE_AT_S, "Attribute.s")
        if kind == ATTRIBUTE_TYPE_STRINGS:
            return self.names(t, ATTRIBUTE_AT_STRINGS, "Attribute.strings", MAX_STRINGS, &at)
        if kind == ATTRIBUTE_TYPE_TENSOR:
            if not child(m, t, ATTRIBUTE_AT_TENSOR, "Attribute.tensor", &item):
                fail(m, t.at, "Attribute.tensor", "is missing")
            return self.read_array(&item, "Attribute.tensor", &dtype, &n, &raw)
        if kind == ATTRIBUTE_TYPE_GRAPH:
            if not child(m, t, ATTRIBUTE_AT_GRAPH, "Attribute.graph", &item):
                fail(m, t.at, "Attribute.graph", "is missing")
            return self.read_graph(&item, depth + 1)
        fail(m, t.at, "Attribute.type", f"there is no attribute type {kind}")

    cdef object read_model(self):
        cdef Meta *m = &self.meta
        cdef Table t, graph
        cdef int64_t i, n, at
        if m.base[4:8] != IDENTIFIER:
            fail(m, 4, "metadata", f"the FlatBuffer's identifier is {m.base[4:8]!r}, not {IDENTIFIER!r}")
        open_table(m, follow(m, 0, "Model"), "Model", &t)
        self.read_strings(&t)
        for feature in self.names(&t, MODEL_AT_REQUIRED_FEATURES, "Model.required_features", MAX_STRINGS, &at):
            if feature not in FEATURES:
                fail(m, at, "Model.required_features",
                     f"the file needs {feature!r}, which this version of evort lacks; install a newer one")
        self.scope = PyBytes_FromStringAndSize(NULL, self.n_strings * 5)
        self.defined = <uint32_t *> PyBytes_AS_STRING(self.scope)
        self.depth_of = <uint8_t *> (self.defined + self.n_strings)
        memset(self.depth_of, 0, self.n_strings)
        if not child(m, &t, MODEL_AT_GRAPH, "Model.graph", &graph):
            fail(m, t.at, "Model.graph", "is missing")
        model = Model(self.read_graph(&graph, 0), None, None, self.name(&t, MODEL_AT_PRODUCER, "Model.producer"))
        at = vector(m, &t, MODEL_AT_OPSETS, 8, 4, &n, "Model.opsets")
        for i in range(n):
            model.opsets[self.string_at(at + 8 * i, "Model.opsets")] = load32(m, at + 8 * i + 4)
        if len(model.opsets) != n:
            fail(m, at, "Model.opsets", "a domain is there twice")
        at = vector(m, &t, MODEL_AT_METADATA, 8, 4, &n, "Model.metadata")
        for i in range(n):
            key = self.string_at(at + 8 * i, "Model.metadata")
            model.metadata[key] = self.string_at(at + 8 * i + 4, "Model.metadata")
        if len(model.metadata) != n:
            fail(m, at, "Model.metadata", "a key is there twice")
        if t.vtable_size > MODEL_AT_SYMBOLS:
            self.read_bounds(&t, model.bounds)
            if child(m, &t, MODEL_AT_GOLDEN, "Model.golden", &graph):
                model.golden = self.read_golden(&graph, model.graph)
        return model

    cdef int read_bounds(self, Table *t, dict bounds) except -1:
        cdef Meta *m = &self.meta
        cdef Table item
        cdef int64_t i, n, low, high
        cdef int64_t at = vector(m, t, MODEL_AT_SYMBOLS, 4, 4, &n, "Model.symbols")
        for i in range(n):
            open_table(m, follow(m, at + 4 * i, "Model.symbols"), "Symbol", &item)
            low, high = get64(m, &item, SYMBOL_AT_MIN, "Symbol.min"), get64(m, &item, SYMBOL_AT_MAX, "Symbol.max")
            if not 0 <= low <= high:
                fail(m, item.at, "Symbol", f"{low} to {high} are no sizes")
            bounds[self.name(&item, SYMBOL_AT_NAME, "Symbol.name")] = (low, high)
        if len(bounds) != n or "" in bounds:
            fail(m, at, "Model.symbols", "a name is empty or there twice")
        return 0

    cdef object read_golden(self, Table *t, graph):
        cdef int64_t at = slot(&self.meta, t, GOLDEN_AT_TOLERANCE, 8, "Golden.tolerance")
        cdef double tolerance = load_double(&self.meta, at) if at else 0.0
        if not (isfinite(tolerance) and tolerance >= 0):
            fail(&self.meta, at, "Golden.tolerance", f"{tolerance} is no tolerance")
        inputs = self.read_named(t, GOLDEN_AT_INPUTS, "Golden.inputs", graph.inputs, graph.tensors)
        return Golden(inputs, self.read_named(t, GOLDEN_AT_OUTPUTS, "Golden.outputs", graph.outputs, graph.tensors),
                      tolerance)

    cdef dict read_named(self, Table *t, int where, str field, list names, dict tensors):
        """Arrays by name: one for each of `names`, of the dtype and shape that its tensor says."""
        cdef Meta *m = &self.meta
        cdef Table item, value
        cdef const uint8_t *raw
        cdef int dtype
        cdef int64_t i, n, count
        cdef int64_t at = vector(m, t, where, 4, 4, &n, field)
        cdef dict found = {}
        for i in range(n):
            open_table(m, follow(m, at + 4 * i, field), field, &item)
            if not child(m, &item, NAMED_ARRAY_AT_VALUE, field, &value):
                fail(m, item.at, field, "a value is missing")
            name = self.name(&item, NAMED_ARRAY_AT_NAME, field)
            array = found[name] = self.read_array(&value, field, &dtype, &count, &raw)
            tensor = tensors.get(name)
            if tensor is not None and not (array.dtype == STORAGE.get(tensor.dtype) and (tensor.shape is None or (
                len(tensor.shape) == array.ndim
                and all([d == e or isinstance(d, str) for d, e in zip(tensor.shape, array.shape)])
            ))):
                fail(m, value.at, field, f"{array.dtype}{list(array.shape)} does not fit {tensor}")
        if len(found) != n or found.keys() != set(names):
            fail(m, at, field, f"must have each of {', '.join(names)} once")
        return found


def parse(buffer, bint checksum, bint operators):
    """Reads a file that lies in a contiguous buffer: (Header, Model, bytes that were copied).

    The constants are views of `buffer`, which must give arrays that cannot be written. checksum: verify that of each
    blob. operators: check each node by its operator's definition. Raises EtmFormatError; UnsupportedError and
    ShapeError where a node is not one that evort can run.
    """
    cdef Py_buffer view
    cdef uint8_t[64] head
    cdef uint64_t found
    cdef _Reader reader = _Reader()
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        if view.len < 64:
            raise EtmFormatError(f"a file of {view.len} bytes is too short for the header of 64 bytes")
        memcpy(head, view.buf, 64)
        header = read_header(head, view.len)
        if <size_t> view.buf % 16:  # a bytes object's data are aligned so; some element types could bear no less
            header, model, copied = parse(bytes(buffer), checksum, operators)
            return header, model, copied + header.file_size
        reader.meta.origin, reader.meta.length = header.metadata_offset, header.metadata_length
        metadata = PyBytes_FromStringAndSize(<const char *> view.buf + reader.meta.origin, reader.meta.length)
        reader.meta.base = <const uint8_t *> PyBytes_AS_STRING(metadata)
        found = _xxh64(reader.meta.base, reader.meta.length, _xxh64(head, 56, 0))
        if found != header.hash:
            raise EtmFormatError(
                f"byte 56: the hash of header and metadata is {found:#018x}, the file says {header.hash:#018x}"
            )
        reader.meta.budget = reader.meta.length
        reader.weights.origin, reader.weights.length = header.weights_offset, header.weights_length
        reader.weights.base = <const uint8_t *> view.buf + reader.weights.origin
        reader.weights.widen_budget = reader.weights.verify_budget = reader.weights.length
        reader.buffer, reader.checksum, reader.operators = buffer, checksum, operators
        reader.verified, reader.widened, reader.infos = set(), {}, {}
        return header, reader.read_model(), reader.copied
    finally:
        PyBuffer_Release(&view)
