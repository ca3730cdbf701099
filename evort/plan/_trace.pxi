# The walk that finds every tensor's dtype and shape for given input shapes, and evaluates what is already known. Part of
# _planner.pyx.
#
# Nodes whose inputs are all known (shape arithmetic, mostly) are computed here, by their references, and need no step.
# The walk stops at a node whose output shape needs a value that is not known yet (`NeedsValue`), or which only running
# can tell (`DataDependent`); what is left becomes another stage. An If whose condition is known is replaced by its
# branch, so control flow on inputs costs one stage and nothing per run.

cdef enum:
    # Values computed while planning are small: shapes, axes, indices. Larger ones are left to the kernels.
    KNOWN_BYTES = 1 << 16
# A single tensor beyond this is refused before anything is allocated.
cdef int64_t TENSOR_BYTES = (<int64_t> 1) << 42


@cython.final
cdef class Bound:
    """A node with its definition and completed attributes. Raises UnsupportedError for an operator that evort lacks,
    ShapeError for operands or attributes that the definition forbids."""

    cdef readonly Node node
    cdef readonly object definition
    cdef readonly dict attrs
    cdef OpInfo info

    def __init__(self, Node node):
        self.node = node
        self.definition = find(node.op, node.domain)
        if self.definition is None:
            self.definition = lookup(node)  # which raises, and names near ones
        self.info = info_of(self.definition)
        self.attrs = self.info.complete(node)
        if self.attrs is None:
            check_arity(self.definition, node)
            self.attrs = complete_attrs(self.definition, node)


@cython.final
cdef class Stage:
    """Nodes to plan together.

    nodes: a Bound each. reads: names that the nodes, or the graph's outputs, need from outside (graph inputs, results
    of earlier stages), constants excepted. known: those whose value a plan needs. plans: the plans made, by shapes.
    """

    cdef readonly list nodes, outputs, reads
    cdef readonly dict constants
    cdef readonly frozenset known
    cdef public dict plans

    def __init__(self, list nodes, list outputs, dict constants, known=()):
        cdef Bound bound
        self.nodes = nodes
        self.outputs = outputs
        self.constants = constants
        self.known = frozenset(known)
        cdef set defined = set()
        cdef dict reads = dict.fromkeys(self.known)
        for bound in nodes:
            for name in names_read(bound.node):
                if name and name not in defined and name not in constants:
                    reads[name] = None
            defined.update(bound.node.outputs)
        for name in outputs:
            if name not in defined and name not in constants:
                reads[name] = None
        self.reads = list(reads)
        self.plans = {}


@cython.final
cdef class Trace:
    """What the walk found.

    calls: for each node that needs a step, in order, its Call with outs filled in; bounds: the nodes themselves.
    specs: of every tensor met. rest: the nodes not reached; eager: the node to run by its reference before them, or
    None; known: names whose value the next stage needs.
    """

    cdef list calls, bounds, rest, known
    cdef dict specs
    cdef Bound eager

    def __init__(self, dict specs):
        self.calls = []
        self.bounds = []
        self.specs = specs
        self.rest = []
        self.known = []


cdef list names_read(Node node):
    """Names that a node needs: its inputs, and what its nested graphs take from around them."""
    cdef list names = list(node.inputs)
    if node.attrs and node.nested():
        for sub in node.subgraphs():
            names += sub.free_names()
    return names


def constant_specs(Graph graph) -> dict:
    """A specification, with value, for each constant of a graph; of sparse ones, with the tensor.

    Raises UnsupportedError for a tensor that is stored in a way that no kernel reads.
    """
    cdef Tensor t
    cdef dict found = {}
    for name, t in (<dict?> graph.tensors).items():
        if t.layout:
            raise UnsupportedError(
                f"tensor {t.name!r} is stored in layout {t.layout!r}, which this version of evort cannot run"
            )
        if t.sparsity is not None:
            found[name] = Spec(t.dtype, t.shape, None, t)
        elif t.data is not None:
            found[name] = Spec(t.dtype, t.data.shape, t.data)
    return found


cdef Trace trace(Stage stage, dict specs, int threads, dict tuned):
    """Walks a stage. specs: one for each name that the stage reads, with values for `stage.known`. tuned: None, or kernels
    to use, by the name and shape of a node's first output.

    Raises ShapeError or UnsupportedError, naming the node.
    """
    cdef dict known = {**stage.constants, **specs}
    cdef Trace found = Trace(known)
    cdef list nodes = stage.nodes, ins, outs
    cdef Py_ssize_t at = 0, i
    cdef Bound bound
    cdef Node node
    cdef Call c
    for name, spec in specs.items():
        if not holds(<Spec?> spec):
            raise ShapeError(f"{name!r} of shape {list(spec.shape)} is beyond evort's limit of {TENSOR_BYTES} bytes")
    while at < len(nodes):
        bound = nodes[at]
        node = bound.node
        try:
            ins = [known[name] if name else None for name in node.inputs]
        except KeyError as missing:
            raise ShapeError(f"{node.label()}: input {missing} is not defined before it") from None
        c = Call(node, bound.attrs, ins, threads)
        try:
            if not bound.info.dtypes_fit(ins):
                check_dtypes(bound.definition, c)
            graph = bound.definition.expand(c) if bound.info.expands else None
            if graph is not None:
                nodes = nodes[:at] + inline(node, graph, known) + nodes[at + 1:]
                continue
            outs = checked(c, list(bound.definition.infer(c)))
            c.outs = outs
            if tuned is not None and outs[0] is not None:
                kernel = tuned.get((node.outputs[0], (<Spec> outs[0]).shape))
                c.kernel = kernel if kernel in bound.definition.choices else None
            if has_objects(ins) or has_objects(outs):
                raise DataDependent
        except NeedsValue as need:
            if (<Spec> ins[need.index]).sparse is not None:
                known[node.inputs[need.index]] = expanded(ins[need.index])
                continue
            found.rest = nodes[at:]
            found.known = [node.inputs[need.index]]
            return found
        except DataDependent:
            found.rest = nodes[at + 1:]
            found.eager = bound
            return found
        except EvortError:
            raise
        except Exception as error:
            raise c.error(f"cannot infer its outputs ({type(error).__name__}: {error})") from error
        if not evaluate(bound, c, ins, outs):
            found.calls.append(c)
            found.bounds.append(bound)
        for i in range(min(len(outs), len(node.outputs))):
            name = node.outputs[i]
            if name:
                known[name] = outs[i]
        at += 1
    return found


cdef Spec expanded(Spec spec):
    """A sparse constant with its zeros."""
    return Spec(spec.dtype, spec.shape, spec.dense())


cdef bint has_objects(list specs) except -1:
    """Whether strings, sequences or optionals are among them."""
    cdef Spec spec
    for spec in specs:
        if spec is not None and is_object(spec):
            return True
    return False


cdef bint is_object(Spec spec) except -1:
    cdef int code = spec.dtype
    return code == STRING or code >= SEQUENCE


cdef bint holds(Spec spec) except -1:
    """Whether memory can hold a tensor."""
    cdef int64_t size = 1, d
    for item in spec.shape:
        if item < 0:
            return False
        if item == 0:
            return True
    for item in spec.shape:
        if item > TENSOR_BYTES // size:
            return False
        d = item
        size *= d
    return size * bits_of.get(spec.dtype, 64) <= TENSOR_BYTES * 8


cdef list checked(Call c, list outs):
    """The inferred outputs, held to what memory can be."""
    cdef Spec spec
    for spec in outs:
        if spec is not None and not holds(spec):
            for d in spec.shape:
                if d < 0:
                    raise c.error(f"output shape {spec.shape} has a negative dimension")
            raise c.error(f"an output of shape {spec.shape} is beyond evort's limit of {TENSOR_BYTES} bytes")
    return outs


cdef bint evaluate(Bound bound, Call c, list ins, list outs) except -1:
    """Computes the outputs where everything is known and small. Returns whether it did."""
    cdef Spec spec
    cdef int64_t total = 0
    cdef bint done = True
    for spec in outs:
        if spec is not None and spec.value is None:
            done = False
    if done:
        return True
    if not bound.info.deterministic:
        return False
    for spec in ins:
        if spec is not None and spec.value is None:
            return False
    for spec in outs:
        if spec is not None:
            total += spec.bytes()
    if bound.node.nested() or (total > KNOWN_BYTES and not widens(bound.node, ins)):
        return False
    from evort.ops import run

    results = run.run_reference(bound.definition, c, [None if s is None else (<Spec> s).value for s in ins])
    for spec, result in zip(outs, results):
        if spec is not None:
            spec.value = np.ascontiguousarray(result).reshape(spec.shape)
    return True


cdef bint widens(Node node, list ins) except -1:
    """Whether a node makes bytes of integers of fewer bits: weights, which must not be widened in each run."""
    return node.op == "Cast" and not node.domain and bits_of.get((<Spec> ins[0]).dtype, 8) < 8


cdef list inline(Node node, Graph graph, dict specs):
    """The nodes of a graph in place of a node; names defined inside get the node's name as a prefix."""
    prefix = f"{node.name or node.outputs[0]}/"
    names = dict(zip(graph.inputs, node.inputs))
    for name, spec in constant_specs(graph).items():
        names[name] = prefix + name
        specs[prefix + name] = spec
    inlined = [renamed(inner, names, prefix) for inner in graph.nodes]
    for outer, inner in zip(node.outputs, graph.outputs, strict=True):
        if outer:
            inlined.append(Node("Identity", [names.get(inner, inner)], [outer], None, "", f"{prefix}{outer}"))
    return [Bound(inner) for inner in inlined]


cdef Node renamed(Node node, dict names, str prefix):
    """A copy of a node with `names` applied, in its nested graphs too; its outputs get the prefix."""
    inputs = [names.get(name, name) for name in node.inputs]
    attrs = {k: captured(v, names) if isinstance(v, Graph) else v for k, v in node.attrs.items()}
    for name in node.outputs:
        if name:
            names[name] = prefix + name
    outputs = [names[name] if name else "" for name in node.outputs]
    return Node(node.op, inputs, outputs, attrs, node.domain, prefix + node.name)


cdef Graph captured(Graph graph, dict names):
    """A copy of a nested graph that reads outer names under their new names."""
    cdef Node node
    free = set(graph.free_names())
    outer = {name: new for name, new in names.items() if name in free}
    if not outer:
        return graph
    graph = graph.taken()
    copy = Graph(graph.name)
    copy.inputs, copy.tensors = graph.inputs, graph.tensors
    copy.outputs = [outer.get(name, name) for name in graph.outputs]
    for node in graph.nodes:
        attrs = {k: captured(v, outer) if isinstance(v, Graph) else v for k, v in node.attrs.items()}
        inputs = [outer.get(name, name) for name in node.inputs]
        copy.nodes.append(Node(node.op, inputs, node.outputs, attrs, node.domain, node.name))
    return copy
