# Programs of a plan, and the short way of a session: inputs that have been run before are recognized, and run, without
# a line of Python. Part of executor.pyx.

cdef enum:
    MOST_AXES = 8                # EV_MAX_RANK of ev.h

# Those that were asked for, by "module.name".
cdef dict CAPSULES = {}


def driver_capsule(str name):
    """The driver "module.name" of `evort._kernels`. Raises UnsupportedError where there is none."""
    found = CAPSULES.get(name)
    if found is None:
        from evort import _kernels  # which imports the module

        module, _, short = name.rpartition(".")
        try:
            found = getattr(_kernels, module).DRIVERS[short]
        except (AttributeError, KeyError):
            from evort.errors import UnsupportedError

            raise UnsupportedError(f"evort._kernels has no driver {name!r}") from None
        CAPSULES[name] = found
    return found


cdef class Programs:
    """A plan, and the programs that wait for their next run: a run takes one, or makes one, and puts it back.

    plan: has tensors, rows, constants, arena_bytes and reads, as an `evort.plan.Plan` does. reads: names of its inputs;
    writes: name, shape and NumPy dtype of what it computes; alone: whether that is all outputs of its graph. made: how
    many programs there are.
    """
    cdef readonly object plan
    cdef readonly list reads, writes, free
    cdef readonly bint alone
    cdef int threads
    cdef public Py_ssize_t made

    def __init__(self, plan, list writes, bint alone, int threads):
        self.plan, self.reads, self.writes, self.alone, self.threads = plan, plan.reads, writes, alone, threads
        self.free = []

    cpdef Program take(self):
        """A program that nobody runs."""
        if self.free:
            return self.free.pop()
        self.made += 1
        plan = self.plan
        return Program(plan.tensors, plan.rows, plan.constants, plan.arena_bytes, self.threads)

    cdef int run(self, list inputs, list outputs) except -1:
        cdef Program program = self.take()
        try:
            program.run(inputs, outputs)
        except StepFailed as failure:
            raise self.error(failure) from None
        finally:
            self.free.append(program)
        return 0

    def call_into(self, dict feeds, dict into):
        """Runs the plan on checked, C-contiguous feeds, into arrays that fit. Raises what `error` makes."""
        self.run([feeds[name] for name in self.reads], [into[write[0]] for write in self.writes])

    cpdef bint fits(self, dict into) except? -1:
        """Whether arrays are given for all outputs, of their shapes and dtypes."""
        cdef tuple write
        if len(into) != len(self.writes):
            return False
        for write in self.writes:
            array = into.get(write[0])
            if not cnp.PyArray_CheckExact(array) or not has_dtype(array, write[2]) or not has_shape(array, write[1]):
                return False
        return True

    def error(self, failure):
        """What is raised where a driver refuses its operands."""
        return failure


cdef class Ready:
    """What runs inputs of certain shapes and, of a few small ones, certain values, without looking further.

    shapes: of the inputs in the order of a session's; programs: of a plan that computes all outputs; names: of the
    inputs; values: bytes of those that have to have them; given: arrays that the plan reads beside inputs. Or stages: a
    function of the inputs by name, where a plan is followed by others. key: equal for what is for the same.
    """
    cdef readonly object key
    cdef tuple shapes
    cdef Programs programs
    cdef list reads, values      # an input's place or an array; (an input's place, its bytes)
    cdef object stages

    def __init__(self, tuple shapes, Programs programs, list names, dict values, dict given, stages=None):
        self.shapes, self.programs, self.stages = shapes, programs, stages
        self.key = shapes, values
        if stages is None:
            self.values = [(names.index(name), value) for name, value in values.items()]
            self.reads = [given[name] if name in given else names.index(name) for name in programs.reads]

    cdef bint takes(self, list arrays) except -1:
        cdef Py_ssize_t i
        cdef bytes value
        for i in range(len(arrays)):
            if not has_shape(arrays[i], self.shapes[i]):
                return False
        if self.values:
            for i, value in self.values:
                if memcmp(cnp.PyArray_DATA(arrays[i]), <char *> value, len(value)) != 0:
                    return False
        return True

    cdef object run(self, list arrays, dict inputs, dict into):
        cdef list fed = [], outputs = []
        cdef dict results = into
        cdef tuple write
        if self.stages is not None:
            return self.stages(inputs) if into is None else None
        if into is None:
            results = {}
            for write in self.programs.writes:
                results[write[0]] = array = blank(write)
                outputs.append(array)
        elif self.programs.fits(into):
            for write in self.programs.writes:
                outputs.append(into[write[0]])
        else:
            return None
        for read in self.reads:
            fed.append(arrays[read] if type(read) is int else read)
        self.programs.run(fed, outputs)
        return results


cdef inline bint has_dtype(object array, object dtype) noexcept:
    """Whether an array's dtype is this very object."""
    return <void *> cnp.PyArray_DESCR(array) == <void *> dtype


cdef bint has_shape(object array, tuple shape):
    """Whether an array has a shape."""
    cdef Py_ssize_t i
    if cnp.PyArray_NDIM(array) != len(shape):
        return False
    for i in range(len(shape)):
        if cnp.PyArray_DIMS(array)[i] != <Py_ssize_t> shape[i]:
            return False
    return True


cdef object blank(tuple write):
    """An array for an output: its name, shape and dtype."""
    cdef cnp.npy_intp dims[MOST_AXES]
    cdef tuple shape = write[1]
    cdef Py_ssize_t i
    if len(shape) > MOST_AXES:
        return np.empty(shape, write[2])
    for i in range(len(shape)):
        dims[i] = shape[i]
    return cnp.PyArray_EMPTY(<int> len(shape), dims, (<cnp.dtype> write[2]).type_num, 0)


cdef list arrays_of(inputs, list plain):
    """Inputs by name, in the order of plain, where they are a dict of C-contiguous arrays with the names and NumPy dtypes
    that it has; else None."""
    cdef tuple wanted
    cdef list arrays
    cdef Py_ssize_t i
    if type(inputs) is not dict or len(<dict> inputs) != len(plain):
        return None
    arrays = [None] * len(plain)
    for i in range(len(plain)):
        wanted = plain[i]
        array = (<dict> inputs).get(wanted[0])
        if not cnp.PyArray_CheckExact(array) or not cnp.PyArray_IS_C_CONTIGUOUS(array) or not has_dtype(array, wanted[1]):
            return None
        arrays[i] = array
    return arrays


def shapes_of(inputs, list plain) -> tuple | None:
    """The shapes of inputs by name, in the order of plain, where they are a dict of C-contiguous arrays with the names and
    NumPy dtypes that it has; else None."""
    arrays = arrays_of(inputs, plain)
    return None if arrays is None else tuple([array.shape for array in arrays])


def run_ready(list ready, list plain, inputs, into):
    """Runs inputs by name the short way, where one of `ready` takes them (and into, where that is not None). plain: name and
    NumPy dtype of each. Returns the outputs by name, None where nothing was run. Raises StepFailed, or what
    `Programs.error` makes of that."""
    cdef Ready one
    cdef list arrays = arrays_of(inputs, plain)
    if arrays is not None and (into is None or type(into) is dict):
        for one in ready:
            if one.takes(arrays):
                return one.run(arrays, inputs, into)
    return None


def apart(dict inputs, dict outputs) -> bool:
    """Whether outputs are plain arrays that can be written to while the inputs, plain arrays as well, are read."""
    cdef char *start
    cdef char *other
    for array in outputs.values():
        if not (cnp.PyArray_CheckExact(array) and cnp.PyArray_IS_C_CONTIGUOUS(array) and cnp.PyArray_ISWRITEABLE(array)):
            return False
        start = <char *> cnp.PyArray_DATA(array)
        for given in inputs.values():
            if not cnp.PyArray_CheckExact(given) or not cnp.PyArray_IS_C_CONTIGUOUS(given):
                return False
            other = <char *> cnp.PyArray_DATA(given)
            if start < other + cnp.PyArray_NBYTES(given) and other < start + cnp.PyArray_NBYTES(array):
                return False
    return True
