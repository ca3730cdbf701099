# Chains of nodes that one node does better (Op.join): what they hand on is read by nobody else, and needs no memory of its
# own. Part of _planner.pyx.

cdef enum:
    LONGEST = 3
    HANDED_ON = 3 << 17          # bytes between nodes of one operator: less is not worth looking at


cdef inline str made_by(Trace found, Py_ssize_t k):
    """The name of the operator of a call."""
    return (<Bound> found.bounds[k]).definition.name


cdef int join_chains(Trace found, set kept) except -1:
    """Replaces chains among the calls. kept: names that others read."""
    cdef Py_ssize_t k, j, count
    cdef int64_t handed_on
    cdef Call c
    cdef Bound bound
    cdef dict readers = {}, made = {}
    cdef list chain
    cdef set gone = set()
    cdef bint near = False
    for k in range(len(found.calls)):
        bound, c = found.bounds[k], found.calls[k]
        if bound.info.joins:
            name = c.node.inputs[0]
            near = near or (name in made and (bound.definition.joins == made_by(found, made[name]) or (
                2 * (<Spec> found.specs[name]).bytes() >= HANDED_ON)))
        if len(c.node.outputs) == 1:
            made[c.node.outputs[0]] = k
    if not near:
        return 0
    for c in found.calls:
        for name in names_read(c.node):
            readers[name] = readers.get(name, 0) + 1
    for k in range(len(found.calls) - 1, -1, -1):
        bound = found.bounds[k]
        if not bound.info.joins or k in gone:
            continue
        chain = [k]
        handed_on = 0
        other = bound.definition.joins
        while len(chain) < (2 if other else LONGEST):
            name = (<Call> found.calls[chain[0]]).node.inputs[0]
            if name in kept or readers[name] != 1 or name not in made:
                break
            j = made[name]
            if made_by(found, j) != (other or bound.definition.name):
                break
            chain.insert(0, j)
            handed_on += (<Spec> found.specs[name]).bytes()
        if len(chain) < 2 or (not other and handed_on < HANDED_ON):
            continue
        joined = bound.definition.join([found.calls[j] for j in chain])
        if joined is None:
            continue
        count, node = joined
        gone.update(chain[len(chain) - count : len(chain) - 1])
        bound = found.bounds[k] = Bound(node)
        c = Call(node, bound.attrs, [found.specs[name] if name else None for name in node.inputs],
                 (<Call> found.calls[k]).threads)
        c.outs = (<Call> found.calls[k]).outs
        found.calls[k] = c
    if gone:
        found.calls = [found.calls[k] for k in range(len(found.calls)) if k not in gone]
        found.bounds = [found.bounds[k] for k in range(len(found.bounds)) if k not in gone]
    return 0
