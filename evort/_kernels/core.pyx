"""The one extension that links evort's C code: dispatch state, micro-kernels and thread pool. And mapped files, and a
pause of garbage collection, as this is what every start has."""
import gc
import os

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.exc cimport PyErr_SetFromErrno
from cpython.pycapsule cimport PyCapsule_New
from posix.mman cimport MADV_DONTNEED, MADV_RANDOM, MAP_FAILED, MAP_SHARED, PROT_READ, madvise, mmap, munmap
from posix.unistd cimport _SC_PAGESIZE, sysconf
from evort._kernels.core cimport address, ev_call, ev_driver, ev_task, ev_ukr

cdef extern from "pool.h" nogil:
    void ev_parallel_for(ev_task fn, void *ctx, int64_t n, int64_t grain, int32_t threads)
    void ev_spin(int64_t us)
    void ev_run_begins()
    void ev_run_ends()
    int32_t ev_pool_size()
    int32_t ev_cpu_count()
    double ev_cpu_quota(const char *membership, const char *root)

cdef extern from "ukr.h" nogil:
    ev_ukr ev_active
    int ev_select(const char *isa)
    const char *ev_available(int i)


cdef const ev_ukr *ukernels() noexcept nogil:
    """The active table. The pointer stays valid; `select_isa` changes what it holds."""
    return &ev_active


cdef void parallel_for(ev_task fn, void *ctx, int64_t n, int64_t grain, int32_t threads) noexcept nogil:
    ev_parallel_for(fn, ctx, n, grain, threads)


cdef void run_begins() noexcept nogil:
    ev_run_begins()


cdef void run_ends() noexcept nogil:
    ev_run_ends()


cdef object register(dict drivers, str name, ev_driver fn):
    """Adds a driver, as the capsule that `executor.Program` unwraps."""
    drivers[name] = PyCapsule_New(<void *> fn, "evort.driver", NULL)


def available_isas() -> tuple[str, ...]:
    """Instruction sets that this machine can run, best first; "scalar" (portable C) is always the last."""
    found = []
    while ev_available(len(found)) != NULL:
        found.append(ev_available(len(found)).decode())
    return tuple(found)


def isa() -> str:
    """The instruction set in use."""
    return ev_active.isa.decode()


def channels_last() -> int:
    """Whether the instruction set in use is better off with integer images that lie channels last: EV_NHWC_BYTES
    or another form of ukr/qnhwc.h, or 0."""
    cdef int has = 0
    ev_active.nhwc_has(&has)
    return has


def select_isa(name: str = "") -> None:
    """Switches the whole process to another instruction set ("" for the best). Not while a model runs.

    Raises ValueError where this machine cannot run it.
    """
    if ev_select(name.encode()) != 0:
        raise ValueError(f"instruction set {name!r} is not one that this machine runs: {', '.join(available_isas())}")


def cpu_count() -> int:
    """Processors that this process may use: affinity mask and container quota, at least 1."""
    return ev_cpu_count()


def cpu_quota(membership: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> float:
    """The CPU quota of this process's cgroups (version 1 or 2) in processors, 0.0 where there is none.

    membership: the file that names the cgroups; root: where they are mounted.
    """
    return ev_cpu_quota(os.fsencode(membership), os.fsencode(root))


def default_threads() -> int:
    """Threads that a session uses unless told otherwise: EVORT_NUM_THREADS, or else cpu_count().

    Raises ValueError where EVORT_NUM_THREADS is not a positive number.
    """
    text = os.environ.get("EVORT_NUM_THREADS", "").strip()
    if not text:
        return cpu_count()
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"EVORT_NUM_THREADS must be a positive number, not {text!r}")
    return min(int(text), 1024)


def pool_threads() -> int:
    """Threads that the pool has started in this process so far: 0 until something asks for more than one thread."""
    return ev_pool_size()


def spin_us() -> int:
    """Microseconds for which the pool's threads look out for the next layer of a model that runs, before they sleep:
    EVORT_SPIN_US, or else 200. 0 for not at all, where processors are shared or power counts.

    Raises ValueError where EVORT_SPIN_US is not a number of 0 to 1,000,000.
    """
    text = os.environ.get("EVORT_SPIN_US", "").strip() or "200"
    if not text.isdecimal() or int(text) > 1000000:
        raise ValueError(f"EVORT_SPIN_US must be a number of microseconds, 0 to 1000000, not {text!r}")
    return int(text)


@cython.final
cdef class Uncollected:
    """`with Uncollected():` no garbage is collected where much is made that is none: importing, loading, planning.

    The collections that this sets off find nothing, and take up to a third of the time. What was made is old at once
    (frozen, and thawed into the oldest generation), as the next collection of young objects would walk all of it; where
    others have frozen objects, those stay frozen, and this does nothing but pause.
    """

    cdef bint collecting

    def __enter__(self):
        self.collecting = gc.isenabled()
        gc.disable()

    def __exit__(self, *error):
        if self.collecting:
            if gc.get_freeze_count() == 0:
                gc.freeze()
                gc.unfreeze()
            gc.enable()


@cython.final
cdef class Mapping:
    """A file mapped into memory, to be read. It stays mapped while anything uses its bytes.

    fd: an open file, which may be closed then; size: its bytes, at least 1. Raises OSError. (The standard library's
    mmap does the same; importing it takes as long as loading a small model.)
    """

    cdef void *base
    cdef size_t size

    def __cinit__(self, int fd, size_t size):
        self.size = size
        self.base = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0)
        if self.base == MAP_FAILED:
            self.base = NULL
            PyErr_SetFromErrno(OSError)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.base, self.size, True, flags)

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.size)


cdef Mapping mapping_of(object array):
    """The mapped file that an array lies in, or None."""
    while array is not None and not isinstance(array, Mapping):
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    return array


def place_in(array) -> tuple[Mapping, int] | None:
    """The mapped file that a C-contiguous array lies in, and where in it; None for other arrays."""
    cdef Mapping file = mapping_of(array)
    return None if file is None else (file, <char *> address(array) - <char *> file.base)


cdef enum:
    AROUND = 32768  # bytes that may come back with pages beside them, which systems map 64 KB at a time


def release(array):
    """Lets the system take back the memory of an array that lies in a mapped file, as of weights that were copied into
    another layout: whole pages of it, which are read from the file again if they are used. Other arrays are left
    alone."""
    cdef size_t page = sysconf(_SC_PAGESIZE)
    if <size_t> array.nbytes < page or mapping_of(array) is None or not array.flags.c_contiguous:
        return
    cdef size_t start = <size_t> address(array), end = start + <size_t> array.nbytes
    start = (start + page - 1) // page * page
    end = end // page * page
    if start < end:
        madvise(<void *> start, end - start, MADV_DONTNEED)
        if end - start >= AROUND:
            madvise(<void *> start, end - start, MADV_RANDOM)


select_isa(os.environ.get("EVORT_ISA", ""))
ev_spin(spin_us())
