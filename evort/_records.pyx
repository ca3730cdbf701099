"""The records that loading a model makes by the hundred: tensors, nodes, specifications, calls.

Compiled, since most of the time that a model takes to load goes into making and reading them. evort.types, evort.graph
and evort.ops.base give them to the rest of evort; `_records.pxd` lists their fields.
"""
cimport cython

import numpy as np

from evort.errors import ShapeError

cdef extern from *:
    """
    #define mul_overflow(a, b, r) __builtin_mul_overflow((int64_t) (a), (int64_t) (b), (int64_t *) (r))
    """
    bint mul_overflow(int64_t a, int64_t b, int64_t *r) noexcept

# What an attribute without a default has for one.
REQUIRED = object()

cdef object ndarray = np.ndarray
cdef int[128] item_sizes
for _i in range(128):
    item_sizes[_i] = 0


def set_item_sizes(dict sizes):
    """Tells `Spec.nbytes` the bytes of one element at run time, by number of the element type."""
    for number, size in sizes.items():
        item_sizes[<int> number] = size


@cython.final
cdef class Spec:
    """What is known of a tensor before a plan runs: element type, shape and, where it is a constant, its value.

    `shape` is a tuple of ints. `value` is an array in `STORAGE[dtype]`, or None. `sparse` is the Tensor of a constant
    that is stored without its zeros, whose value is None: `dense` gives it. `channels_last`: its memory is [N, D..., C],
    whatever the shape [N, C, D...] says; only the planner sets it, see `evort.ops.base.Op.channels_last`.
    """

    def __init__(self, dtype, shape, value=None, sparse=None):
        self.dtype = dtype
        self.shape = shape
        self.value = value
        self.sparse = sparse

    def dense(self):
        """The value, with its zeros where it is stored without; None where there is none."""
        if self.sparse is None:
            return self.value
        from evort.sparse import expand

        return expand(self.sparse.data, self.sparse.sparsity, self.shape)

    @property
    def rank(self):
        return len(self.shape)

    @property
    def size(self):
        """Number of elements."""
        return self.items()

    @property
    def nbytes(self):
        """Bytes at run time."""
        return self.bytes()

    cdef int64_t items(self) except -1:
        cdef int64_t n = 1
        for d in self.shape:
            if mul_overflow(n, <int64_t> d, &n):
                raise OverflowError(f"a tensor of shape {self.shape} has too many elements")
        return n

    cdef int64_t bytes(self) except -1:
        cdef int code = self.dtype
        if not 0 <= code < 128 or item_sizes[code] == 0:
            raise KeyError(self.dtype)
        cdef int64_t n = self.items()
        if mul_overflow(n, item_sizes[code], &n):
            raise OverflowError(f"a tensor of shape {self.shape} has too many elements")
        return n

    def __repr__(self):
        known = "" if self.value is None else ", known"
        return f"{self.dtype.name.lower()}{list(self.shape)}{known}"


@cython.final
cdef class Tensor:
    """A named tensor. `shape` is None where even the rank is unknown; `data` is the value of a constant, in the
    NumPy dtype that `evort.types.STORAGE` gives for `dtype`, else None. `layout` is "" for ONNX's own order."""

    def __init__(self, name, dtype, shape, data=None, quant=None, sparsity=None, layout=""):
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.data = data
        self.quant = quant
        self.sparsity = sparsity
        self.layout = layout

    def __repr__(self):
        return f"Tensor({self.name!r}, {self.dtype.name}, {self.shape}{', constant' if self.data is not None else ''})"


@cython.final
cdef class Node:
    """One operation. An absent optional input or output is the empty string.

    Attribute values are int, float, str, NumPy array (a tensor; `bfloat16` and the like as their bits), Graph, or a
    list of int, float or str. `attrs` holds only what differs from, or has no, default.
    """

    def __init__(self, op, inputs, outputs, attrs=None, domain="", name=""):
        self.op = op
        self.inputs = inputs
        self.outputs = outputs
        self.attrs = attrs or {}
        self.domain = domain
        self.name = name

    def subgraphs(self):
        """The graphs among the attributes."""
        return iter([a for a in self.attrs.values() if isinstance(a, Graph)])

    cdef bint nested(self) except -1:
        """Whether there are any."""
        for a in (<dict?> self.attrs).values():
            if isinstance(a, Graph):
                return True
        return False

    def label(self):
        """How messages name the node."""
        full = f"{self.domain}::{self.op}" if self.domain else self.op
        return f"{full} {self.name!r}" if self.name else f"{full} -> {self.outputs[0] if self.outputs else '?'!r}"

    def __repr__(self):
        return f"Node({self.label()}: {self.inputs} -> {self.outputs})"


@cython.final
cdef class Graph:
    """Nodes in topological order over named tensors.

    `tensors` has at least every input and constant; for values between nodes it may hold what inference found.
    make: None, or what gives the graph that stands for this one where it is run, the same one each time.
    """

    def __init__(self, name=""):
        self.name = name
        self.make = None
        self.nodes = []
        self.tensors = {}
        self.inputs = []
        self.outputs = []

    def taken(self):
        """The graph to run."""
        return self if self.make is None else self.make()

    def add(self, tensor):
        """Adds or replaces a tensor; returns its name."""
        self.tensors[tensor.name] = tensor
        return tensor.name

    def constant(self, name):
        """The value of a constant of this graph, or None."""
        t = self.tensors.get(name)
        return None if t is None else t.data

    def free_names(self):
        """Names read here but defined in a graph around this one, in order of first use."""
        defined = set(self.inputs)
        defined.update([name for name, t in self.tensors.items() if t.data is not None])
        free = {}
        for node in self.nodes:
            for name in node.inputs:
                if name and name not in defined:
                    free[name] = None
            for sub in node.subgraphs():
                for name in sub.free_names():
                    if name not in defined:
                        free[name] = None
            defined.update(node.outputs)
        for name in self.outputs:
            if name not in defined:
                free[name] = None
        return list(free)


@cython.final
cdef class Kernel:
    """A driver bound to a node's shapes.

    driver: "module.name" in `evort._kernels`, or a capsule from `core.register`.
    ints, reals: the driver's parameters, in the order that it documents.
    scratch: bytes of scratch memory that one call needs.
    packed: extra constant operands made from the node's constants, as pairs (key, make): `make()` returns the array,
      once for each node and key in a session; they follow the node's inputs in `ev_call.in`. They are copies of
      weights, counted and reported: prefer drivers that read what the file holds.
    inputs: which of the node's inputs the driver gets, by index; all of them where None.
    """

    def __init__(self, driver, ints=(), reals=(), scratch=0, packed=(), inputs=None):
        self.driver = driver
        self.ints = ints
        self.reals = reals
        self.scratch = scratch
        self.packed = packed
        self.inputs = inputs


class NeedsValue(Exception):
    """Raised by `infer` where the outputs' shape depends on the value of an input that is not known yet.

    The planner ends the stage there, and plans the rest when the value is known.
    """

    def __init__(self, index):
        self.index = index


cdef class Call:
    """One node, as its operator sees it: attributes (`c["axis"]`, defaults filled in) and operand specifications.

    ins, outs: a Spec for each input and output, None where an optional one is absent; outs is filled after `infer`.
    threads: how many threads the plan may use. run_graph: runs a nested graph, `run_graph(graph, {name: value})`
    giving the list of its outputs (only set while the node runs). memo, found: what `infer` and `channels_last` worked
    out, where `bind` can use it again; None until an operator sets it, and once a plan is made. kernel: the driver that was measured to be best here (`Op.choices`), which
    `bind` must give where it can; None leaves the choice to it.
    """

    def __init__(self, node, attrs, ins, threads=1):
        self.node = node
        self.attrs = attrs
        self.ins = ins
        self.outs = ()
        self.threads = threads

    def __getitem__(self, name):
        return self.attrs[name]

    def has(self, Py_ssize_t index):
        """Whether the optional input is there."""
        return index < len(self.ins) and self.ins[index] is not None

    def known(self, *indices):
        """Whether those of these inputs that are there are constants."""
        cdef Py_ssize_t index
        cdef Spec spec
        for index in indices:
            if index < len(self.ins):
                spec = self.ins[index]
                if spec is not None and spec.value is None:
                    return False
        return True

    def most_axes(self):
        """The largest rank of the operands and results."""
        cdef Spec spec
        cdef Py_ssize_t most = 0
        for specs in (self.ins, self.outs):
            for spec in specs:
                if spec is not None:
                    most = max(most, <Py_ssize_t> len(spec.shape))
        return most

    def wants(self, Py_ssize_t index):
        """Whether the optional output is wanted."""
        outputs = self.node.outputs
        return index < len(outputs) and bool(outputs[index])

    def like(self, Py_ssize_t index=0, dtype=None):
        """The specification of an output that has an input's shape."""
        spec = self.ins[index]
        return Spec(spec.dtype if dtype is None else dtype, spec.shape)

    def value(self, Py_ssize_t index):
        """An input's value at planning time. Raises NeedsValue where it is only known later."""
        value = self.ins[index].value
        if value is None:
            raise NeedsValue(index)
        return value

    def ints(self, Py_ssize_t index):
        """The value of an integer vector or scalar input, as a tuple of ints. Raises NeedsValue as `value` does."""
        return tuple(self.value(index).reshape(-1).tolist())

    def axis(self, axis, rank):
        """An axis in [0, rank) from one in [-rank, rank). Raises ShapeError otherwise."""
        if not -rank <= axis < rank:
            raise self.error(f"axis {axis} is outside a tensor of rank {rank}")
        return (axis + rank if axis < 0 else axis) if rank else 0

    def axes(self, axes, rank):
        """Distinct axes in [0, rank), sorted. Raises ShapeError for one outside or given twice."""
        found = sorted([self.axis(a, rank) for a in axes])
        if len(set(found)) != len(found):
            raise self.error(f"axes {list(axes)} name one axis twice")
        return tuple(found)

    def error(self, message):
        """A ShapeError that names the node and its operands, to be raised."""
        operands = ", ".join(["absent" if s is None else repr(s) for s in self.ins])
        return ShapeError(f"{self.node.label()}: {message}. Inputs were ({operands})")


cdef dict _kinds = {
    "int": A_INT, "float": A_FLOAT | A_INT, "str": A_STR, "tensor": A_TENSOR, "graph": A_GRAPH, "ints": A_INTS,
    "floats": A_FLOATS | A_INTS, "strs": A_STRS,
}
cdef dict _infos = {}  # by id of the definition, which the OpInfo keeps alive


cdef int kind_of(object value) except -1:
    """The bit of an attribute value, A_OTHER where it is not plainly of one kind."""
    cdef int found
    if isinstance(value, int):
        return A_INT
    if isinstance(value, float):
        return A_FLOAT
    if isinstance(value, str):
        return A_STR
    if isinstance(value, list):
        found = A_INTS
        for item in <list> value:
            if isinstance(item, int):
                continue
            if isinstance(item, float):
                found = A_FLOATS
            else:
                return A_STRS if all([isinstance(v, str) for v in value]) else A_OTHER
        return found
    if isinstance(value, ndarray):
        return A_TENSOR
    return A_GRAPH if isinstance(value, Graph) else A_OTHER


@cython.final
cdef class OpInfo:
    """What the reader and the planner must know of a definition, to see quickly that a node obeys it.

    Where a node does not plainly do so, evort.ops.base decides (and raises): the rules are there, this saves time.
    required: bit i for an input i that may not be absent. kinds: for each attribute the bits of what it may be;
    needed: attributes without a default. allowed: the element types of each input, None for any.
    """

    cdef bint arity_fits(self, int64_t n_in, int64_t n_out, uint64_t absent) noexcept:
        """Whether so many operands fit, of which the inputs with a bit in `absent` (63: or a later one) are left out."""
        return (
            self.low_in <= n_in <= self.high_in and self.low_out <= n_out <= self.high_out
            and not absent & self.required
        )

    cdef bint dtypes_fit(self, list ins) except -1:
        """Whether the operator takes these element types."""
        cdef Py_ssize_t i, last = len(self.allowed) - 1
        if self.anything:
            return True
        cdef Spec spec
        for i in range(len(ins)):
            spec = ins[i]
            if spec is not None:
                allowed = self.allowed[min(i, last)]
                if allowed is not None and spec.dtype not in <frozenset> allowed:
                    return False
        return True

    cdef dict complete(self, Node node):
        """The node's attributes with defaults filled in, which nobody changes; None where something does not plainly
        fit."""
        cdef dict given = node.attrs
        cdef dict full
        cdef Py_ssize_t i
        cdef uint64_t absent = 0
        for i in range(len(node.inputs)):
            if not node.inputs[i]:
                absent |= (<uint64_t> 1) << min(i, 63)
        if not self.arity_fits(len(node.inputs), len(node.outputs), absent):
            return None
        if not given and not self.needed:
            return self.defaults
        full = self.defaults.copy()
        for key, value in given.items():
            if not <int> self.kinds.get(key, 0) & kind_of(value):
                return None
            full[key] = value
        if self.needed and not self.needed <= given.keys():
            return None
        return full


cdef OpInfo info_of(object definition):
    cdef OpInfo info = _infos.get(id(definition))
    if info is not None:
        return info
    from evort.ops.base import Op  # which is made of these records

    info = OpInfo()
    info.definition = definition
    low_in, high_in, low_out, high_out = definition.arity
    info.low_in, info.high_in = low_in, 1 << 30 if high_in is None else high_in
    info.low_out, info.high_out = low_out, 1 << 30 if high_out is None else high_out
    for i, param in enumerate(definition.inputs):
        if not param.endswith("?") and not param.startswith("*"):
            info.required |= (<uint64_t> 1) << <int> min(i, 63)
    attrs = definition.attrs
    info.kinds = {key: _kinds.get(attr.kind, 0) for key, attr in attrs.items()}
    info.defaults = {key: attr.default for key, attr in attrs.items()}
    info.needed = frozenset([key for key, attr in attrs.items() if attr.default is REQUIRED])
    dtypes, info.allowed = definition.dtypes, []
    for param in definition.inputs:
        allowed = dtypes.get(param.strip("?*"))
        info.allowed.append(None if allowed is None else frozenset(allowed))
    info.anything = not dtypes or not info.allowed
    own = type(definition)
    info.expands, info.views = own.expand is not Op.expand, own.view is not Op.view
    info.lasts, info.joins = own.channels_last is not Op.channels_last, own.join is not Op.join
    info.places, info.deterministic = own.placement is not Op.placement, definition.deterministic
    info.inplace = tuple(definition.inplace)
    _infos[id(definition)] = info
    return info
