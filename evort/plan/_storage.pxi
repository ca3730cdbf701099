# Which tensors share memory, and where each piece of memory lies in the arena. Part of _planner.pyx.
#
# 1. Every tensor starts as a block of its own: the arena, or outside it (a constant, an input).
# 2. Views (Reshape, contiguous Slice, Split) join the block of the tensor that they look into: no copy, no step.
# 3. The inputs of a Concat whose parts are contiguous move into the Concat's block: their producers write there.
# 4. An output may take over the block of an input that dies at the step (element by element operators, residual adds).
# 5. A block that is exactly a graph output becomes the caller's buffer.
# 6. What is left in the arena gets its offset by size-first best fit over lifetimes, or the best of some orders (`best_fit`).
#
# Lifetimes count steps: a block lives from the first step that writes any part of it to the last that reads any.

cdef enum:
    ALIGN = 64
    ATTEMPTS = 32                # to place buffers, each in another order


@cython.final
cdef class Block:
    """A piece of memory. kind and index: as in `executor.Program`. start, end: its first and last step.
    members: the tensors in it."""

    cdef int kind
    cdef int64_t index, nbytes, start, end, offset
    cdef list members
    cdef Spec sparse  # a constant whose zeros are not there yet

    def __cinit__(self, int kind, int64_t index, int64_t nbytes, int64_t start):
        self.kind = kind
        self.index = index
        self.nbytes = nbytes
        self.start = start
        self.end = start
        self.members = []


@cython.final
cdef class Place:
    """Where a tensor is: its block, bytes from the block's start, bytes, and the step that defines it."""

    cdef str name
    cdef Block block
    cdef int64_t at, nbytes, step

    def __cinit__(self, str name, Block block, int64_t at, int64_t nbytes, int64_t step):
        self.name = name
        self.block = block
        self.at = at
        self.nbytes = nbytes
        self.step = step
        block.members.append(self)


@cython.final
cdef class Storage:
    """Assigns blocks. where: Place by name."""

    cdef dict where

    def __cinit__(self):
        self.where = {}

    cdef int add(self, str name, int kind, int64_t index, int64_t nbytes, int64_t step) except -1:
        """A tensor with a block of its own, first written at `step` (-1: before the plan runs)."""
        self.where[name] = Place(name, Block(kind, index, nbytes, step), 0, nbytes, step)
        return 0

    cdef int alias(self, str name, str source, int64_t offset, int64_t nbytes, int64_t step) except -1:
        """A tensor that is part of another, from `offset` bytes into it."""
        cdef Place place = self.where[source]
        self.where[name] = Place(name, place.block, place.at + offset, nbytes, step)
        return 0

    cdef int use(self, str name, int64_t step) except -1:
        """Notes that a step reads a tensor."""
        cdef Block block = (<Place> self.where[name]).block
        block.end = max(block.end, step)
        return 0

    cdef int merge(self, str name, str target, int64_t offset) except -1:
        """Moves the whole block of `name` into the block of `target`, `offset` bytes into that tensor."""
        cdef Block source = (<Place> self.where[name]).block
        cdef Place place = self.where[target]
        cdef Block block = place.block
        cdef int64_t at = place.at + offset
        if at == 0 and source.nbytes == block.nbytes and len(source.members) > len(block.members):
            # The same bytes either way: move the fewer members, so that long chains stay linear.
            source, block = block, source
        for place in source.members:
            place.block = block
            place.at += at
            block.members.append(place)
        block.start = min(block.start, source.start)
        block.end = max(block.end, source.end)
        return 0

    cdef Block whole(self, str name):
        """The arena block that a tensor fills exactly, or None."""
        cdef Place place = self.where[name]
        if place.block.kind == ARENA and place.at == 0 and place.nbytes == place.block.nbytes:
            return place.block
        return None

    cdef int place_parts(self, object definition, Call c) except -1:
        """Step 3 for one node: moves inputs into their place in output 0."""
        cdef Block block, target
        parts = definition.placement(c)
        if not parts:
            return 0
        out = c.node.outputs[0]
        for index, offset in parts.items():
            name = c.node.inputs[index]
            block = self.whole(name)
            target = (<Place> self.where[out]).block
            if block is None or block is target or target.kind != ARENA or (<Spec?> c.ins[index]).bytes() == 0:
                continue
            self.merge(name, out, offset)
        return 0

    cdef int take_over(self, tuple inplace, Call c, int64_t step) except -1:
        """Step 4 for one node: lets an output take the block of an input that dies here."""
        cdef Py_ssize_t out_index, in_index
        cdef Spec a, b
        cdef Block block, target
        cdef Place place
        cdef int64_t size
        names = c.node.inputs
        for out_index, in_index in inplace:
            if in_index >= len(c.ins) or c.ins[in_index] is None or not c.wants(out_index):
                continue
            a, b = c.ins[in_index], c.outs[out_index]
            if a.shape != b.shape:
                continue
            size = b.bytes()
            if a.bytes() != size or size == 0:
                continue
            name, out = names[in_index], c.node.outputs[out_index]
            block = self.whole(name)
            place = self.where[out]
            target = place.block
            if block is None or block is target or block.end > step or target.kind != ARENA:
                continue
            # A driver of many operands reads them one after another: one that comes twice must stay whole.
            if len(names) > 2 and names.count(name) > 1:
                continue
            if not self.shared_safely(names, in_index, block) or written_before(target, place.at, size, step):
                continue
            self.merge(name, out, 0)
            return 0
        return 0

    cdef bint shared_safely(self, object names, Py_ssize_t index, Block block) except -1:
        """Another operand in the same block is safe only where it is the very same elements."""
        cdef Py_ssize_t i
        for i in range(len(names)):
            other = names[i]
            if other and i != index and (<Place> self.where[other]).block is block and other != names[index]:
                return False
        return True

    cdef list blocks(self):
        """The distinct blocks, in order of first appearance."""
        cdef Place place
        cdef dict found = {}
        for place in self.where.values():
            found[id(place.block)] = place.block
        return list(found.values())


cdef bint written_before(Block block, int64_t at, int64_t nbytes, int64_t step):
    """Whether anything that lies in these bytes of a block is written before a step."""
    cdef Place place
    for place in block.members:
        if place.at < at + nbytes and at < place.at + place.nbytes and place.step < step:
            return True
    return False


cdef int64_t aligned(int64_t nbytes) noexcept:
    return (nbytes + ALIGN - 1) // ALIGN * ALIGN


cdef tuple assign(list blocks, list scratch):
    """Offsets for the arena blocks and for scratch buffers, given as (step, bytes).

    Returns the arena's bytes, the scratch offsets, and the bytes that liveness alone demands (the most that is alive
    at one step): no placement can need less.
    """
    cdef Block block
    cdef list live = [block for block in blocks if block.kind == ARENA and block.nbytes]
    cdef list sizes = [aligned(block.nbytes) for block in live] + [aligned(n) for _, n in scratch]
    cdef list starts = [max(block.start, 0) for block in live] + [s for s, _ in scratch]
    cdef list ends = [block.end for block in live] + [s for s, _ in scratch]
    if not sizes:
        return 0, [], 0
    cdef int64_t least = demand(sizes, starts, ends)
    total, offsets = fit(sizes, starts, ends, least)
    for block, offset in zip(live, offsets):
        block.offset = offset
    return total, offsets[len(live):], least


def best_fit(list sizes, list starts, list ends) -> tuple[int, list[int]]:
    """Places buffers in an arena: largest first, each in the smallest gap that fits among those alive with it. Where that
    takes more than is alive at a time, buffers that lie highest come first in the next of some attempts.

    sizes in bytes (multiples of the alignment); a buffer lives from step starts[i] to ends[i], both included. Returns
    the arena's bytes and each buffer's offset. (Size-first best fit: Pisarchyk and Lee, arXiv:2001.03288.)
    """
    return fit(sizes, starts, ends, demand(sizes, starts, ends))


cdef tuple fit(list sizes, list starts, list ends, int64_t least):
    """`best_fit`, for buffers of which `least` bytes are alive at a time."""
    cdef int64_t total
    cdef list order = [entry[2] for entry in sorted([(-sizes[i], starts[i], i) for i in range(len(sizes))])]
    cdef tuple found = placed_in(order, sizes, starts, ends), best = found
    for _ in range(ATTEMPTS):
        if best[0] <= least:
            break
        total, offsets = found
        top = [i for i in order if offsets[i] + sizes[i] == total]
        order = top + [i for i in order if i not in top]
        found = placed_in(order, sizes, starts, ends)
        if found[0] < best[0]:
            best = found
    return best


cdef int64_t demand(list sizes, list starts, list ends) except -1:
    """The most bytes that are alive at a step."""
    cdef list change = [0] * (max(ends, default=0) + 2)
    for size, start, end in zip(sizes, starts, ends):
        change[start] += size
        change[end + 1] -= size
    return max(accumulate(change))


cdef tuple placed_in(list order, list sizes, list starts, list ends):
    """The arena's bytes and each buffer's offset, buffers taken in this order."""
    cdef Py_ssize_t n = len(sizes), a, b, i, j, n_placed = 0
    cdef int64_t total = 0, at, gap, best, best_gap
    # Sizes, starts, ends, offsets; and the buffers placed, sorted by offset.
    cdef int64_t *size = <int64_t *> malloc((5 * n + 1) * sizeof(int64_t))
    if size == NULL:
        raise MemoryError("no memory for planning")
    cdef int64_t *start = size + n
    cdef int64_t *end = start + n
    cdef int64_t *offset = end + n
    cdef int64_t *placed = offset + n
    try:
        for i in range(n):
            size[i], start[i], end[i] = sizes[i], starts[i], ends[i]
        for a in range(n):
            i = order[a]
            at = 0
            best = -1
            best_gap = 0
            for b in range(n_placed):
                j = placed[b]
                if end[j] < start[i] or end[i] < start[j]:
                    continue
                gap = offset[j] - at
                if gap >= size[i] and (best < 0 or gap < best_gap):
                    best = at
                    best_gap = gap
                at = max(at, offset[j] + size[j])
            offset[i] = at if best < 0 else best
            total = max(total, offset[i] + size[i])
            b = n_placed
            while b > 0 and offset[placed[b - 1]] > offset[i]:
                placed[b] = placed[b - 1]
                b -= 1
            placed[b] = i
            n_placed += 1
        return total, [offset[i] for i in range(n)]
    finally:
        free(size)
