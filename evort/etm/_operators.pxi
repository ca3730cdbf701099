# A fast way to see that a node obeys its operator's definition. Where it does not plainly, evort.ops.base decides (and
# raises): the rules are there, this only saves time. Part of _reader.pyx.

cdef class OpInfo:
    """What `accepts` must know of a definition."""
    cdef object definition
    cdef Py_ssize_t low_in, high_in, low_out, high_out
    cdef uint64_t required   # bit i: input i may not be absent
    cdef dict kinds          # attribute: bits of the AttributeTypes that are plainly of its kind
    cdef frozenset needed    # attributes without a default

cdef dict _kinds = {
    "int": 1 << ATTRIBUTE_TYPE_INT,
    "float": 1 << ATTRIBUTE_TYPE_FLOAT | 1 << ATTRIBUTE_TYPE_INT,
    "str": 1 << ATTRIBUTE_TYPE_STRING,
    "tensor": 1 << ATTRIBUTE_TYPE_TENSOR,
    "graph": 1 << ATTRIBUTE_TYPE_GRAPH,
    "ints": 1 << ATTRIBUTE_TYPE_INTS,
    "floats": 1 << ATTRIBUTE_TYPE_FLOATS | 1 << ATTRIBUTE_TYPE_INTS,
    "strs": 1 << ATTRIBUTE_TYPE_STRINGS,
}
cdef dict _infos = {}  # by id of the definition, which the OpInfo keeps alive


cdef OpInfo operator_info(str op, str domain):
    """None where there is no such operator."""
    definition = find(op, domain)
    if definition is None:
        return None
    cdef OpInfo info = _infos.get(id(definition))
    if info is not None:
        return info
    info = OpInfo()
    info.definition = definition
    low_in, high_in, low_out, high_out = definition.arity
    info.low_in, info.high_in = low_in, MAX_OPERANDS if high_in is None else high_in
    info.low_out, info.high_out = low_out, MAX_OPERANDS if high_out is None else high_out
    for i, param in enumerate(definition.inputs):
        if not param.endswith("?") and not param.startswith("*"):
            info.required |= (<uint64_t> 1) << <int> min(i, 63)
    info.kinds = {key: _kinds.get(attr.kind, 0) for key, attr in definition.attrs.items()}
    info.needed = frozenset(key for key, attr in definition.attrs.items() if attr.default is REQUIRED)
    _infos[id(definition)] = info
    return info


cdef bint accepts(OpInfo info, Py_ssize_t n_in, Py_ssize_t n_out, uint64_t absent) noexcept:
    """Whether so many operands fit, of which the inputs with a bit in `absent` (63: or a later one) are left out."""
    return (
        info.low_in <= n_in <= info.high_in and info.low_out <= n_out <= info.high_out and not absent & info.required
    )
