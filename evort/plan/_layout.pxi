# Which tensors lie channels last. Part of _planner.pyx.
#
# The graph keeps ONNX's meaning, [N, C, D...]; where all who write and read a tensor say that they can
# (Op.channels_last), its memory is [N, D..., C]. Regions grow as far as that goes; at their borders, the operators that
# can do either way convert what they read or write. Tensors of one channel or of one pixel are the same in both ways.


cdef bint is_same(Spec spec) except -1:
    """Whether channels first and last are the same memory."""
    shape, size = spec.shape, spec.items()
    return size == 1 or (len(shape) > 2 and (shape[1] == 1 or size == shape[0] * shape[1]))


cdef list named(Call c, places):
    """The names of operands that are not the same in both ways."""
    cdef list names = []
    cdef Py_ssize_t i
    for i in places:
        operands, specs = (c.node.inputs, c.ins) if i >= 0 else (c.node.outputs, c.outs)
        if not is_same(specs[i if i >= 0 else ~i]):
            names.append(operands[i if i >= 0 else ~i])
    return names


cdef int choose_layouts(Trace found, set kept) except -1:
    """Marks the specifications of tensors that lie channels last. kept: those that others read."""
    cdef Py_ssize_t k, i
    cdef Bound bound
    cdef Call c
    cdef dict written = {}
    cdef set first = set(kept), taken
    cdef list groups = [], following = [], given = []
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
            taken.update(places)
            groups.append(named(c, places))
            if type(places) is dict:
                following.append((groups.pop(), named(c, places.values())))
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
        for group, others in following:
            if not first.issuperset(group) and any([name in first for name in others]):
                first.update(group)
                changed = True
    for group in groups + [names for names, _ in following]:
        for name in group:
            if name not in first:
                (<Spec> written[name]).channels_last = True
    return 0
