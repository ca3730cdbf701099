"""Runs a plan: one walk over an array of bound steps, without the GIL.

A `Program` is a plan made executable: C structs for its tensors and calls, and an arena of its own. It holds no
weights (their memory is shared) and is used by one thread at a time; a session keeps as many as it has callers.
"""

import numpy as np

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from evort._kernels.core cimport (EV_INT8, EV_MAX_RANK, EV_OK, EV_UINT8, address, ev_call, ev_driver, ev_tensor, register,
                                  run_begins, run_ends)

# Where a tensor's memory is (the second item of a plan's tensor tuples).
CONST, INPUT, OUTPUT, ARENA = 0, 1, 2, 3
cdef enum:
    K_CONST = 0
    K_INPUT = 1
    K_OUTPUT = 2
    K_ARENA = 3
    FETCHED = 4096               # bytes of weights that are worth fetching ahead

cdef int64_t ALIGN = 64
cnp.import_array()


cdef inline void *data_of(object array) except? NULL:
    """As `address`, in a fraction of the time for an array."""
    if cnp.PyArray_CheckExact(array) and cnp.PyArray_IS_C_CONTIGUOUS(array):
        return cnp.PyArray_DATA(array)
    return address(array)


cdef int64_t now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t> t.tv_sec * 1000000000 + t.tv_nsec


cdef int copy_driver(const ev_call *c) noexcept nogil:
    """in: X; out: the same bytes; ints: (bytes,)."""
    if c.in_[0].data != c.out[0].data and c.ints[0] > 0:
        memcpy(c.out[0].data, c.in_[0].data, <size_t> c.ints[0])
    return EV_OK


DRIVERS = {}
register(DRIVERS, "copy", copy_driver)


cdef class Program:
    """A plan's steps, ready to run.

    tensors: for each, (dtype number, kind, index, byte offset, NumPy dtype, shape); index numbers the constant, the
      plan's input or its output; the offset is within that, or within the arena.
    steps: for each, (capsule or None, function or None, input ids, output ids, ints, reals, scratch offset, scratch
      bytes); an absent operand's id is -1. A Python function gets the list of its input arrays and returns its
      outputs' arrays.
    constants: the arrays that CONST tensors index.
    """
    cdef ev_tensor *tensors
    cdef ev_call *calls
    cdef ev_driver *drivers
    cdef ev_tensor **operands
    cdef int64_t *ints
    cdef double *reals
    cdef int32_t *kinds
    cdef int64_t *offsets
    cdef int32_t *indices
    cdef Py_ssize_t n_tensors, n_steps
    cdef Py_ssize_t *external
    cdef Py_ssize_t n_external
    cdef list functions, constants, arrays, specs, step_ids
    cdef readonly object arena
    cdef object ranges
    cdef bint has_python

    def __cinit__(self, list tensors, list steps, list constants, int64_t arena_bytes, int threads):
        cdef Py_ssize_t i, j, n_operands = 0, n_ints = 0, n_reals = 0
        cdef ev_tensor *t
        cdef ev_call *call
        cdef char *base
        self.n_tensors = len(tensors)
        self.n_steps = len(steps)
        self.constants = constants
        self.specs = tensors
        self.functions = [step[1] for step in steps]
        self.step_ids = [(step[2], step[3]) for step in steps]
        self.has_python = any(f is not None for f in self.functions)
        for step in steps:
            n_operands += len(step[2]) + len(step[3])
            n_ints += len(step[4])
            n_reals += len(step[5])
        self.tensors = <ev_tensor *> calloc(self.n_tensors + 1, sizeof(ev_tensor))
        self.kinds = <int32_t *> calloc(self.n_tensors + 1, sizeof(int32_t))
        self.indices = <int32_t *> calloc(self.n_tensors + 1, sizeof(int32_t))
        self.offsets = <int64_t *> calloc(self.n_tensors + 1, sizeof(int64_t))
        self.external = <Py_ssize_t *> calloc(self.n_tensors + 1, sizeof(Py_ssize_t))
        self.calls = <ev_call *> calloc(self.n_steps + 1, sizeof(ev_call))
        self.drivers = <ev_driver *> calloc(self.n_steps + 1, sizeof(ev_driver))
        self.operands = <ev_tensor **> calloc(n_operands + 1, sizeof(ev_tensor *))
        self.ints = <int64_t *> calloc(n_ints + 1, sizeof(int64_t))
        self.reals = <double *> calloc(n_reals + 1, sizeof(double))
        if not (self.tensors and self.kinds and self.indices and self.offsets and self.external and self.calls
                and self.drivers and self.operands and self.ints and self.reals):
            raise MemoryError("no memory for a plan's tables")

        whole = np.empty(arena_bytes + ALIGN, np.uint8)
        skip = -(<int64_t> address(whole)) & (ALIGN - 1)
        self.arena = whole[skip:skip + arena_bytes]
        base = <char *> address(self.arena)

        for i in range(self.n_tensors):
            t = &self.tensors[i]
            dtype, kind, index, offset, _, shape = tensors[i]
            t.dtype = dtype
            t.rank = len(shape)
            t.size = 1
            for j in range(t.rank):
                if j < EV_MAX_RANK:  # tensors of higher rank only meet Python steps
                    t.dims[j] = shape[j]
                t.size *= <int64_t> shape[j]
            self.kinds[i] = kind
            self.indices[i] = index
            self.offsets[i] = offset
            if kind == K_CONST:
                t.data = <char *> address(constants[index]) + <int64_t> offset
            elif kind == K_ARENA:
                t.data = base + <int64_t> offset
            else:
                self.external[self.n_external] = i
                self.n_external += 1

        cdef Py_ssize_t at_operand = 0, at_int = 0, at_real = 0
        for i in range(self.n_steps):
            capsule, function, ins, outs, ints, reals, scratch, scratch_bytes = steps[i]
            call = &self.calls[i]
            self.drivers[i] = NULL
            if capsule is not None:
                self.drivers[i] = <ev_driver> PyCapsule_GetPointer(capsule, "evort.driver")
            call.n_in, call.n_out = len(ins), len(outs)
            call.n_ints, call.n_reals = len(ints), len(reals)
            call.threads = threads
            call.in_ = &self.operands[at_operand]
            call.out = &self.operands[at_operand + call.n_in]
            for j in (*ins, *outs):
                self.operands[at_operand] = &self.tensors[j] if j >= 0 else NULL
                at_operand += 1
            call.ints = &self.ints[at_int]
            for value in ints:
                self.ints[at_int] = value
                at_int += 1
            call.reals = &self.reals[at_real]
            for value in reals:
                self.reals[at_real] = value
                at_real += 1
            call.scratch = base + <int64_t> scratch
            call.scratch_bytes = scratch_bytes
        self.look_ahead()
        self.arrays = [None] * self.n_tensors
        if self.has_python:
            for step, (ins, outs) in zip(steps, self.step_ids):
                if step[1] is not None:
                    for j in (*ins, *outs):
                        if j >= 0 and self.kinds[j] not in (K_INPUT, K_OUTPUT):
                            self.arrays[j] = self.view(j, constants, constants)

    cdef void look_ahead(self) noexcept:
        """Tells each step of the weights of bytes that the steps behind it read first: the largest constant of one."""
        cdef Py_ssize_t i
        cdef int j
        cdef ev_tensor *t
        cdef ev_tensor *ahead = NULL
        cdef ev_tensor *found
        for i in range(self.n_steps - 1, -1, -1):
            if ahead != NULL:
                self.calls[i].ahead, self.calls[i].ahead_bytes = ahead.data, ahead.size
            found = NULL
            for j in range(self.calls[i].n_in):
                t = self.calls[i].in_[j]
                if t != NULL and self.kinds[t - self.tensors] == K_CONST and t.dtype in (EV_INT8, EV_UINT8):
                    if t.size >= FETCHED and (found == NULL or t.size > found.size):
                        found = t
            ahead = ahead if found == NULL else found

    def __dealloc__(self):
        free(self.tensors)
        free(self.kinds)
        free(self.indices)
        free(self.offsets)
        free(self.external)
        free(self.calls)
        free(self.drivers)
        free(self.operands)
        free(self.ints)
        free(self.reals)

    def watch(self, object ranges):
        """Has the steps note the ranges of their quantized results: ranges, float32 [steps, 2], is [smallest, largest]
        of each step's real results, and only ever widened; drivers that do not note leave it as it is. None: no
        longer. Raises ValueError for an array of another shape or type."""
        cdef float *p = NULL
        if ranges is not None:
            if ranges.dtype != np.float32 or ranges.shape != (self.n_steps, 2) or not ranges.flags.c_contiguous:
                raise ValueError(f"ranges must be C-contiguous float32 [{self.n_steps}, 2]")
            p = <float *> address(ranges)
        self.ranges = ranges
        self.watch_steps(p)

    def pause(self, bint paused):
        """Whether the steps of a watched program leave the ranges as they are."""
        if self.ranges is not None and paused != (self.n_steps > 0 and self.calls[0].range == NULL):
            self.watch_steps(NULL if paused else <float *> address(self.ranges))

    cdef int watch_steps(self, float *ranges) except -1:
        cdef Py_ssize_t i
        for i in range(self.n_steps):
            self.calls[i].range = NULL if ranges == NULL else ranges + 2 * i
        return 0

    def rebind(self, Py_ssize_t step, tuple ints, tuple reals):
        """Gives a step other parameters, as many as before. Raises ValueError where there are more or fewer."""
        cdef ev_call *call = &self.calls[step]
        cdef Py_ssize_t i
        if len(ints) != call.n_ints or len(reals) != call.n_reals:
            raise ValueError(f"step {step} has {call.n_ints} ints and {call.n_reals} reals")
        for i in range(call.n_ints):
            (<int64_t *> call.ints)[i] = ints[i]
        for i in range(call.n_reals):
            (<double *> call.reals)[i] = reals[i]

    cpdef object view(self, Py_ssize_t i, object inputs, object outputs):
        """Tensor i as an array over its memory."""
        _, kind, index, offset, dtype, shape = self.specs[i]
        if kind == K_CONST:
            source = self.constants[index]
        elif kind == K_INPUT:
            source = inputs[index]
        elif kind == K_OUTPUT:
            source = outputs[index]
        else:
            source = self.arena
        count = 1
        for d in shape:
            count *= d
        if count == 0:
            return np.empty(shape, dtype)
        return np.frombuffer(source, dtype, count, offset).reshape(shape)

    cpdef int run(self, list inputs, list outputs, object times=None) except -1:
        """Runs all steps. inputs, outputs: C-contiguous arrays of the plan's dtypes and shapes, in its order.

        times: an int64 array, filled with each step's nanoseconds, or None. Raises StepFailed, or what a Python step raised.
        """
        cdef Py_ssize_t k, i = 0
        cdef int status = EV_OK
        cdef ev_tensor *t
        cdef int64_t *spent = NULL if times is None else <int64_t *> address(times)
        cdef int64_t start = 0
        for k in range(self.n_external):
            i = self.external[k]
            t = &self.tensors[i]
            source = inputs[self.indices[i]] if self.kinds[i] == K_INPUT else outputs[self.indices[i]]
            t.data = <char *> data_of(source) + self.offsets[i]
        i = 0
        run_begins()
        try:
            with nogil:
                while i < self.n_steps:
                    if spent != NULL:
                        start = now()
                    if self.drivers[i] != NULL:
                        status = self.drivers[i](&self.calls[i])
                        if status != EV_OK:
                            break
                    else:
                        with gil:
                            self.call_python(i, inputs, outputs)
                    if spent != NULL:
                        spent[i] = now() - start
                    i += 1
        finally:
            run_ends()
        if status != EV_OK:
            raise StepFailed(i, status)
        return 0

    def call(self, dict feeds, list reads, list writes) -> dict:
        """Runs all steps on feeds by name, giving new arrays by name. reads: the inputs' names; writes: (name, shape,
        dtype) of the outputs."""
        cdef tuple write
        cdef list outputs = [blank(write) for write in writes]
        self.run([feeds[name] for name in reads], outputs)
        return {write[0]: array for write, array in zip(writes, outputs)}

    cdef int call_python(self, Py_ssize_t i, list inputs, list outputs) except -1:
        ins, outs = self.step_ids[i]
        results = self.functions[i]([self.array(j, inputs, outputs) if j >= 0 else None for j in ins])
        for j, result in zip(outs, results):
            if j >= 0:
                target = self.array(j, inputs, outputs)
                if target is not result:
                    target[...] = result
        return 0

    cdef object array(self, Py_ssize_t i, list inputs, list outputs):
        found = self.arrays[i]
        return self.view(i, inputs, outputs) if found is None else found


class StepFailed(Exception):
    """A driver returned an error: `step` is its number and `status` the code of ev.h."""

    def __init__(self, step, status):
        super().__init__(step, status)
        self.step = step
        self.status = status


include "programs.pxi"
