# Which tensors lie channels last. Part of _planner.pyx.
#
# The graph keeps ONNX's meaning, [N, C, D...]; where all who write and read a tensor say that they can
# (Op.channels_last), its memory is [N, D..., C]. Regions grow as far as that goes; at their borders, the operators that
# can do either way convert what they read or write. Tensors of one channel or of one pixel are the same in both ways.


cdef bint is_same(Spec spec) except -1:
    """Whether channels first and last are the same memory."""
    shape, size = spec.shape, spec.items()
    return size == 1 or (len(shape) > 2 and (shape[1] == 1 or size == shape[0] * shape[1]))


cdef int choose_layouts(Trace found, set kept) except -1:
    """Marks the specifications of tensors that lie channels last. kept: those that others read."""
    cdef Py_ssize_t k, i
    cdef Bound bound
    cdef Call c
    cdef Spec spec
    cdef dict written = {}
    cdef set first = set(kept), taken
    cdef list groups = [], group, given = []
    cdef bint any_ = False
    for k in range(len(found.calls)):
        bound = found.bounds[k]
        given.append(bound.definition.channels_last(found.calls[k]) if bound.info.lasts else ())
        any_ = any_ or len(given[k]) != 0
    if not any_:
        return 0
    for k in range(len(found.calls)):
        c = found.calls[k]
        taken = set()
        for places in given[k]:
            group = []
            for i in places:
                operands, specs = (c.node.inputs, c.ins) if i >= 0 else (c.node.outputs, c.outs)
                spec = specs[i if i >= 0 else ~i]
                taken.add(i)
                if not is_same(spec):
                    group.append(operands[i if i >= 0 else ~i])
            groups.append(group)
        for i in range(len(c.node.inputs)):
            if i not in taken:
                first.add(c.node.inputs[i])
        if c.node.attrs and (<Node> c.node).nested():
            first.update(names_read(c.node))
        for i in range(len(c.node.outputs)):
            written[c.node.outputs[i]] = c.outs[i] if i < len(c.outs) else None
            if ~i not in taken:
                first.add(c.node.outputs[i])
    changed = True
    while changed:
        changed = False
        for group in groups:
            if not first.issuperset(group) and any([name in first or name not in written for name in group]):
                first.update(group)
                changed = True
    for group in groups:
        for name in group:
            if name not in first:
                (<Spec> written[name]).channels_last = True
    return 0
