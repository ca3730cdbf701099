"""Turns a stage into a plan: bound steps over placed tensors.

    Stage --trace (_trace.pxi)--> Calls with concrete shapes --storage (_storage.pxi)--> blocks and offsets --> Plan

Compiled: planning is most of the time that a model with fixed shapes takes to load. What operators do in it (`infer`,
`bind`) is Python.
"""
cimport cython
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

from evort._records cimport Call, Graph, Kernel, Node, OpInfo, Spec, Tensor, info_of

from itertools import accumulate

import numpy as np

from evort.errors import EvortError, ShapeError, UnsupportedError
from evort.ops.base import DataDependent, NeedsValue, check_arity, check_dtypes, complete_attrs, find, lookup
from evort.types import BITS, STORAGE, dtype_of

cdef enum:  # where a tensor's memory is, as in `executor.Program`
    CONST = 0
    INPUT = 1
    OUTPUT = 2
    ARENA = 3

cdef enum:  # element types that stay with the runner: only nodes between stages touch them
    STRING = 8
    SEQUENCE = 100

cdef dict bits_of = BITS
cdef Kernel COPY = Kernel("executor.copy")

include "_trace.pxi"
include "_join.pxi"
include "_layout.pxi"
include "_storage.pxi"


@cython.final
cdef class Step:
    """One step, for people: what runs, on what, and where its scratch is."""

    cdef readonly object definition, driver, scratch
    cdef readonly Call call

    def __cinit__(self, definition, Call call, driver, scratch):
        self.definition = definition
        self.call = call
        self.driver = driver
        self.scratch = scratch


@cython.final
cdef class Buffer:
    """A block of the arena, for people: the tensors in it, bytes, offset, first and last step that it lives."""

    cdef readonly list names
    cdef readonly object nbytes, offset, start, end

    def __cinit__(self, list names, nbytes, offset, start, end):
        self.names = names
        self.nbytes = nbytes
        self.offset = offset
        self.start = start
        self.end = end


@cython.final
cdef class Plan:
    """Steps and memory for one stage and one set of input shapes; immutable, shared by the programs that run it.

    tensors, rows, constants: what `executor.Program` takes. steps, buffers: the same for people.
    reads: names of its inputs, in the order that `Program.run` takes them; writes: the graph outputs that it computes,
    likewise, with `write_specs`; keeps: names that later stages read, with `keep_ids` their tensors.
    known: graph outputs whose value planning found. specs: of all its tensors. eager: the Bound to run by its reference
    after it, or None; next: the Stage that follows, or None.
    """

    cdef readonly list tensors, rows, constants, steps, reads, writes, write_specs
    cdef list arena              # the buffers of tensors
    cdef readonly int64_t arena_bytes, scratch_bytes, lower_bound
    cdef readonly dict keep_ids, known, specs
    cdef readonly Bound eager
    cdef readonly Stage next

    def __cinit__(self):
        self.tensors, self.rows, self.constants, self.steps, self.arena = [], [], [], [], []
        self.reads, self.writes, self.write_specs = [], [], []
        self.keep_ids, self.known, self.specs = {}, {}, {}

    @property
    def buffers(self):
        cdef Step step
        cdef list found = list(self.arena)
        for i, step in enumerate(self.steps):
            if step.scratch:
                offset = self.rows[i][6]
                found.append(Buffer([f"scratch of {step.call.node.label()}"], step.scratch, offset, i, i))
        return found


def build(Stage stage, dict specs, binder, int threads=1) -> Plan:
    """Plans a stage for given input specifications.

    binder: the backend, see `evort.plan.Binder`. Raises ShapeError or UnsupportedError, naming the node.
    """
    cdef Trace found = trace(stage, specs, threads, binder.tuned)
    cdef Plan plan = Plan()
    cdef Call c
    cdef Stage following
    cdef list later = []
    plan.eager, plan.specs = found.eager, found.specs
    if found.rest or found.eager is not None:
        # This plan, and so the stages after it, are for these very values: what is known stays known.
        constants = {
            n: s for n, s in found.specs.items() if (<Spec> s).value is not None or (<Spec> s).sparse is not None
        }
        done = set(constants)
        for c in found.calls:
            done.update(c.node.outputs)
        outputs = [n for n in stage.outputs if n not in done]
        follow = found.rest if found.eager is None else [found.eager, *found.rest]
        following = Stage(follow, outputs, constants, found.known)
        later = [n for n in following.reads if n in found.specs]
        plan.next = Stage(found.rest, outputs, constants, found.known)
    _Builder(plan, stage, found, binder, later).run()
    return plan


@cython.final
cdef class _Builder:
    cdef Plan plan
    cdef Stage stage
    cdef Trace found
    cdef object binder
    cdef list later
    cdef Storage storage
    cdef dict specs, ids

    def __cinit__(self, Plan plan, Stage stage, Trace found, binder, list later):
        self.plan = plan
        self.stage = stage
        self.found = found
        self.binder = binder
        self.later = later
        self.storage = Storage()
        self.specs = found.specs
        self.ids = {}

    cdef int run(self) except -1:
        cdef Plan plan = self.plan
        cdef Storage storage = self.storage
        cdef Spec spec
        cdef Call c
        cdef Bound bound
        cdef Py_ssize_t step, last
        cdef set produced = set()
        if self.binder.joins:
            join_chains(self.found, {*self.stage.outputs, *self.later})
        for c in self.found.calls:
            produced.update(c.node.outputs)
        for name in self.stage.reads:
            spec = self.specs[name]
            if spec.value is None and not is_object(spec):
                storage.add(name, INPUT, len(plan.reads), spec.bytes(), -1)
                plan.reads.append(name)
        cdef list calls = [], bounds = []
        if self.binder.channels_last:
            choose_layouts(self.found, {*self.stage.outputs, *self.later})
        self.views(calls, bounds)
        last = len(calls)

        for step in range(last):
            c = calls[step]
            for name in c.node.inputs:
                if name:
                    self.source(name)
                    storage.use(name, step)
        for name in {*self.stage.outputs, *self.later}:
            if name in storage.where:
                storage.use(name, last)
        for step in range(last):
            bound = bounds[step]
            if bound.info.places:
                storage.place_parts(bound.definition, calls[step])
        for step in range(last):
            bound = bounds[step]
            if bound.info.inplace:
                storage.take_over(bound.info.inplace, calls[step], step)

        for name in self.stage.outputs:
            spec = self.specs.get(name)
            if spec is not None and (spec.value is not None or spec.sparse is not None):
                plan.known[name] = spec.dense()
        copies = self.outputs(produced)
        self.emit(calls, bounds, copies)
        return 0

    cdef int views(self, list calls, list bounds) except -1:
        """Steps 1 and 2 of _storage.pxi; fills in the calls that need a step."""
        cdef Storage storage = self.storage
        cdef Py_ssize_t k, i
        cdef Bound bound
        cdef Call c
        cdef list outs
        for k in range(len(self.found.calls)):
            bound, c = self.found.bounds[k], self.found.calls[k]
            views = bound.definition.view(c) if bound.info.views else None
            if views:
                for out, (source, offset) in views.items():
                    if c.wants(out):
                        name = c.node.inputs[source]
                        self.source(name)
                        storage.alias(c.node.outputs[out], name, offset, (<Spec?> c.outs[out]).bytes(), len(calls))
                continue
            outs = c.outs
            for i in range(min(len(outs), len(c.node.outputs))):
                name = c.node.outputs[i]
                if name:
                    storage.add(name, ARENA, 0, (<Spec?> outs[i]).bytes(), len(calls))
            calls.append(c)
            bounds.append(bound)
        return 0

    cdef int source(self, str name) except -1:
        """Makes a known value into a constant tensor of the plan when a step reads it. Of a sparse constant, that is
        decided when the steps are bound: drivers may read it as it is."""
        cdef Spec spec
        cdef Place place
        if name not in self.storage.where:
            spec = self.specs[name]
            self.storage.add(name, CONST, -1 if spec.sparse is not None else self.constant(spec.value), 0, -1)
            place = self.storage.where[name]
            place.block.sparse = None if spec.sparse is None else spec
        return 0

    cdef Py_ssize_t constant(self, array) except -1:
        self.plan.constants.append(array if array.flags.c_contiguous else np.ascontiguousarray(array))
        return len(self.plan.constants) - 1

    cdef list outputs(self, set produced):
        """Step 5: blocks that become the caller's buffers; returns the outputs that need a copy."""
        cdef Plan plan = self.plan
        cdef Block block
        cdef Spec spec
        cdef list copies = []
        for name in dict.fromkeys(self.stage.outputs):
            here = name in produced or (plan.next is None and name in self.storage.where)
            if not here or name in plan.known:
                continue
            index = len(plan.writes)
            spec = self.specs[name]
            plan.writes.append(name)
            plan.write_specs.append(spec)
            block = self.storage.whole(name)
            if block is None or spec.bytes() == 0:
                copies.append((name, index))
            else:
                block.kind, block.index = OUTPUT, index
        return copies

    cdef int emit(self, list calls, list bounds, list copies) except -1:
        """Step 6: drivers, offsets, and the rows that the executor walks."""
        cdef Plan plan = self.plan
        cdef Py_ssize_t step
        cdef Bound bound
        cdef Call c
        cdef Kernel kernel
        cdef Spec spec
        cdef Block block
        cdef Place place
        cdef list blocks = self.storage.blocks(), kernels = [], scratch = []
        for step in range(len(calls)):
            bound, c = bounds[step], calls[step]
            kernel, function = self.binder.bind(bound.definition, c)
            c.memo = c.found = None  # which have served
            kernels.append((kernel, function))
            if kernel is not None and kernel.scratch:
                scratch.append((step, kernel.scratch))
        plan.arena_bytes, offsets, plan.lower_bound = assign(blocks, scratch)
        scratch_at = {}
        for (step, nbytes), offset in zip(scratch, offsets):
            scratch_at[step] = offset
            plan.scratch_bytes = max(plan.scratch_bytes, <int64_t> nbytes)
        for block in blocks:
            if block.kind == ARENA:
                names = [place.name for place in block.members]
                plan.arena.append(Buffer(names, block.nbytes, block.offset, max(block.start, 0), block.end))

        for step in range(len(calls)):
            bound, c = bounds[step], calls[step]
            kernel, function = kernels[step]
            used = c.node.inputs
            if kernel is not None and kernel.inputs is not None:
                used = [used[i] if i < len(used) else "" for i in kernel.inputs]
            ins = [self.tensor(name) if name else -1 for name in used]
            outs = [self.tensor(name) if name else -1 for name in c.node.outputs]
            if kernel is None:
                plan.rows.append((None, function, ins, outs, (), (), 0, 0))
                plan.steps.append(Step(bound.definition, c, "numpy", 0))
                continue
            for key, make in kernel.packed:
                array = self.binder.packed(c, key, make)
                spec = Spec(dtype_of(array), array.shape)
                ins.append(self.new_tensor(spec, CONST, self.constant(array), 0))
            plan.rows.append(
                (self.binder.capsule(kernel), None, ins, outs, kernel.ints, kernel.reals, scratch_at.get(step, 0),
                 kernel.scratch)
            )
            driver = kernel.driver if isinstance(kernel.driver, str) else "user"
            plan.steps.append(Step(bound.definition, c, driver, kernel.scratch))

        for name, index in copies:
            spec = self.specs[name]
            target = self.new_tensor(spec, OUTPUT, index, 0)
            plan.rows.append(
                (self.binder.capsule(COPY), None, [self.tensor(name)], [target], (spec.bytes(),), (), 0, 0)
            )
        for name in self.later:
            if name in self.storage.where:
                plan.keep_ids[name] = self.tensor(name)
        return 0

    cdef object tensor(self, str name):
        """The number of a tensor of the plan."""
        cdef Place place
        found = self.ids.get(name)
        if found is None:
            place = self.storage.where[name]
            if place.block.sparse is not None:
                place.block.index = self.constant(self.binder.dense(place.block.sparse))
                place.block.sparse = None
            offset = place.at + (place.block.offset if place.block.kind == ARENA else 0)
            found = self.ids[name] = self.new_tensor(self.specs[name], place.block.kind, place.block.index, offset)
        return found

    cdef Py_ssize_t new_tensor(self, Spec spec, int kind, int64_t index, int64_t offset) except -1:
        self.plan.tensors.append((<int> spec.dtype, kind, index, offset, STORAGE[spec.dtype], spec.shape))
        return len(self.plan.tensors) - 1
