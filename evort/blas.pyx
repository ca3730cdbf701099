"""BLAS on NumPy arrays, and (blas.pxd) for Cython.

    level 1   axpy copy swap scal dot nrm2 asum iamax      y := alpha*x + y, ...
    level 2   gemv ger                                     y := alpha*op(A)*x + beta*y;  A := alpha*x*y^T + A
    level 3   gemm gemm_batch gemm_int8                    C := alpha*op(A)*op(B) + beta*C
    narrow    gemm_nbits gemm_half                         C := A*op(W), weights of 2 to 8 bits in blocks, or of 16

The Python functions take float32 or float64 arrays of any strides (gemm_int8: int8 or uint8), check them, work in place on
their outputs and release the GIL while they compute. They raise TypeError for a wrong type or dtype and ValueError for
shapes that do not fit, read-only or overlapping outputs.
"""
cimport cython
cimport numpy as cnp
from evort._kernels cimport blas as core
from evort._kernels.blas cimport real
from evort._kernels.core cimport EV_BFLOAT16, EV_FLOAT, EV_FLOAT16, EV_UINT8
from evort._kernels.nbits cimport ev_weights, narrow_weights, packed_weights
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t
from libc.stdlib cimport getenv
from libc.string cimport strchr

import numpy as np

from evort._kernels.core import cpu_count, default_threads

cnp.import_array()

__all__ = ["asum", "axpy", "copy", "dot", "gemm", "gemm_batch", "gemm_half", "gemm_int8", "gemm_nbits", "gemv", "ger", "iamax", "nrm2", "scal",
           "swap"]


# --- the interface for Cython --------------------------------------------------------------------------------------

include "_blas_cython.pxi"


# --- the interface for Python --------------------------------------------------------------------------------------

cdef dict NAMES = {"f": "float32", "d": "float64", "b": "int8", "B": "uint8", "i": "int32", "e": "float16",
                   "H": "uint16"}


cdef char kind_of(cnp.ndarray array) noexcept:
    """The letter of an array's dtype, 0 for one that nothing here takes."""
    cdef int number = cnp.PyArray_TYPE(array)
    if not cnp.PyArray_ISNOTSWAPPED(array):
        return 0
    if number == cnp.NPY_FLOAT32:
        return c"f"
    if number == cnp.NPY_FLOAT64:
        return c"d"
    if number == cnp.NPY_INT8:
        return c"b"
    if number == cnp.NPY_UINT8:
        return c"B"
    if number == cnp.NPY_INT32:
        return c"i"
    if number == cnp.NPY_FLOAT16:
        return c"e"
    return c"H" if number == cnp.NPY_UINT16 else 0


@cython.final
@cython.no_gc
@cython.freelist(8)
cdef class Operand:
    """A checked array argument: its memory, shape and strides (in elements), shorter shapes filled up with 1."""
    cdef object array
    cdef str name
    cdef char kind               # its dtype, see NAMES
    cdef int ndim
    cdef int64_t itemsize
    cdef char *data
    cdef int64_t[3] n, s
    cdef int64_t low, high       # the bytes that it spans, relative to data

    cdef int check(self, cnp.ndarray array, int least, int most, bint output) except -1:
        """Fills in the fields behind `kind`. They are NumPy's own, as a buffer takes longer than a small product."""
        cdef int axis, ndim = cnp.PyArray_NDIM(array), i
        cdef int64_t span, step, dense
        cdef bint by_rows, by_columns
        if not least <= ndim <= most:
            wanted = f"{least}" if least == most else f"{least} or {most}"
            raise ValueError(f"{self.name} must have {wanted} dimensions, but its shape is {self.array.shape}")
        if not cnp.PyArray_ISALIGNED(array):
            raise ValueError(f"{self.name} is not aligned in memory: pass a copy")
        if output and not cnp.PyArray_ISWRITEABLE(array):
            raise ValueError(f"{self.name} is an output, but read-only")
        self.ndim, self.data, self.itemsize = ndim, <char *> cnp.PyArray_DATA(array), cnp.PyArray_ITEMSIZE(array)
        self.low, self.high = 0, self.itemsize
        for axis in range(3):
            self.n[axis], self.s[axis] = 1, 0
        # NumPy allows any stride along an axis of one element: here it is that of a dense array.
        by_rows, by_columns = cnp.PyArray_IS_C_CONTIGUOUS(array), cnp.PyArray_IS_F_CONTIGUOUS(array)
        dense = self.itemsize
        for i in range(ndim):
            axis = ndim - 1 - i if by_rows else i
            self.n[axis] = cnp.PyArray_DIM(array, axis)
            step = dense if by_rows or by_columns else cnp.PyArray_STRIDE(array, axis)
            dense *= self.n[axis]
            self.s[axis] = step // self.itemsize
            span = (self.n[axis] - 1) * step
            if self.n[axis] == 0:
                self.high = self.low
            elif span < 0:
                self.low += span
            elif self.high > self.low:
                self.high += span
        if output and not by_rows and not by_columns and self.high > self.low and not self.is_distinct():
            raise ValueError(f"{self.name} is an output, but its elements share memory: strides {self.array.strides}")
        return 0

    cdef bint is_distinct(self):
        """Whether no two elements share memory: each axis steps over all that the axes of smaller stride span."""
        cdef int64_t span = 1
        cdef int axis, least, done = 0, round
        for round in range(3):
            least = -1
            for axis in range(3):
                if not done & (1 << axis) and (least < 0 or abs(self.s[axis]) < abs(self.s[least])):
                    least = axis
            done |= 1 << least
            if self.n[least] > 1:
                if abs(self.s[least]) < span:
                    return False
                span += (self.n[least] - 1) * abs(self.s[least])
        return True

    cdef bint same_as(self, Operand other):
        """Whether both are the same elements in the same order."""
        cdef int axis
        for axis in range(3):
            if self.n[axis] != other.n[axis] or (self.n[axis] > 1 and self.s[axis] != other.s[axis]):
                return False
        return self.data == other.data

    cdef object must_differ_from(self, Operand other, bint same_allowed):
        """Raises where this output shares memory with another operand (unless element for element)."""
        if self.data + self.low >= other.data + other.high or other.data + other.low >= self.data + self.high:
            return
        if same_allowed and self.same_as(other):
            return
        if np.shares_memory(self.array, other.array):
            raise ValueError(f"{self.name} is an output, but shares memory with {other.name}: pass a copy")

    cdef object must_have_dtype_of(self, Operand other):
        if self.kind != other.kind:
            raise TypeError(f"{self.name} is {NAMES[chr(self.kind)]}, but {other.name} is {NAMES[chr(other.kind)]}")

    cdef int must_have_shape(self, tuple shape) except -1:
        if self.array.shape != shape:
            raise ValueError(f"{self.name} has shape {self.array.shape}, but the other operands ask for {shape}")
        return 0


cdef Operand operand(array, str name, int least, int most, const char *kinds, bint output=False):
    """An argument of `least` to `most` dimensions and a dtype in `kinds`. Raises TypeError or ValueError."""
    cdef Operand found = Operand.__new__(Operand)
    if not cnp.PyArray_Check(array):
        raise TypeError(f"{name} must be a NumPy array, not {type(array).__name__}")
    found.array, found.name, found.kind = array, name, kind_of(array)
    if found.kind == 0 or strchr(kinds, found.kind) == NULL:
        allowed = " or ".join([NAMES[kind] for kind in kinds.decode()])
        raise TypeError(f"{name} must be of dtype {allowed}, not {array.dtype}")
    found.check(array, least, most, output)
    return found


cdef Operand vector(array, str name, bint output=False):
    return operand(array, name, 1, 1, b"fd", output)


cdef tuple pair(x, y, bint output):
    """Two vectors of one dtype and length; y may be an output."""
    cdef Operand ox = vector(x, "x"), oy = vector(y, "y", output)
    oy.must_have_dtype_of(ox)
    oy.must_have_shape(ox.array.shape)
    if output:
        oy.must_differ_from(ox, True)
    return ox, oy


cdef int32_t processors = 0      # asked for once, as that reads files

cdef int32_t thread_count(threads) except -1:
    global processors
    if threads is None:
        if getenv("EVORT_NUM_THREADS") != NULL:
            return default_threads()
        if processors == 0:
            processors = cpu_count()
        return processors
    cdef int64_t count = threads
    if count < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    return <int32_t> min(count, <int64_t> 1024)


cdef object new_output(c, shape, Operand like, double beta):
    """The array to write: c, or a new one where c is None."""
    if c is not None:
        return c
    if beta != 0:
        raise ValueError("beta is not 0, so the output's old value is needed: pass it")
    return np.empty(shape, like.array.dtype)


def axpy(alpha, x, y):
    """y := alpha*x + y. Returns y."""
    cdef Operand ox, oy
    ox, oy = pair(x, y, True)
    cdef double scale = alpha
    with nogil:
        if ox.itemsize == 4:
            core.axpy[float](ox.n[0], <float> scale, <float *> ox.data, ox.s[0], <float *> oy.data, oy.s[0])
        else:
            core.axpy[double](ox.n[0], scale, <double *> ox.data, ox.s[0], <double *> oy.data, oy.s[0])
    return y


def copy(x, y):
    """y := x. Returns y."""
    cdef Operand ox, oy
    ox, oy = pair(x, y, True)
    with nogil:
        if ox.itemsize == 4:
            core.copy[float](ox.n[0], <float *> ox.data, ox.s[0], <float *> oy.data, oy.s[0])
        else:
            core.copy[double](ox.n[0], <double *> ox.data, ox.s[0], <double *> oy.data, oy.s[0])
    return y


def swap(x, y):
    """Exchanges the elements of x and y."""
    cdef Operand ox, oy
    ox, oy = pair(x, y, True)
    vector(x, "x", True)
    with nogil:
        if ox.itemsize == 4:
            core.swap[float](ox.n[0], <float *> ox.data, ox.s[0], <float *> oy.data, oy.s[0])
        else:
            core.swap[double](ox.n[0], <double *> ox.data, ox.s[0], <double *> oy.data, oy.s[0])


def scal(alpha, x):
    """x := alpha*x; zeros, whatever x holds, for alpha == 0. Returns x."""
    cdef Operand o = vector(x, "x", True)
    cdef double scale = alpha
    with nogil:
        if o.itemsize == 4:
            core.scal[float](o.n[0], <float> scale, <float *> o.data, o.s[0])
        else:
            core.scal[double](o.n[0], scale, <double *> o.data, o.s[0])
    return x


def dot(x, y) -> float:
    """The inner product of x and y."""
    cdef Operand ox, oy
    cdef double result
    ox, oy = pair(x, y, False)
    with nogil:
        if ox.itemsize == 4:
            result = core.dot[float](ox.n[0], <float *> ox.data, ox.s[0], <float *> oy.data, oy.s[0])
        else:
            result = core.dot[double](ox.n[0], <double *> ox.data, ox.s[0], <double *> oy.data, oy.s[0])
    return result


def nrm2(x) -> float:
    """The Euclidean norm of x. Squares neither overflow nor vanish on the way."""
    cdef Operand o = vector(x, "x")
    cdef double result
    with nogil:
        if o.itemsize == 4:
            result = core.nrm2[float](o.n[0], <float *> o.data, o.s[0])
        else:
            result = core.nrm2[double](o.n[0], <double *> o.data, o.s[0])
    return result


def asum(x) -> float:
    """The sum of the absolute values of x."""
    cdef Operand o = vector(x, "x")
    cdef double result
    with nogil:
        if o.itemsize == 4:
            result = core.asum[float](o.n[0], <float *> o.data, o.s[0])
        else:
            result = core.asum[double](o.n[0], <double *> o.data, o.s[0])
    return result


def iamax(x) -> int:
    """The index of the first element of the largest absolute value (of the first NaN, if there is one).

    Raises ValueError for an empty x.
    """
    cdef Operand o = vector(x, "x")
    if o.n[0] == 0:
        raise ValueError("x is empty, so it has no largest element")
    if o.itemsize == 4:
        return core.iamax[float](o.n[0], <float *> o.data, o.s[0])
    return core.iamax[double](o.n[0], <double *> o.data, o.s[0])


def gemv(a, x, y=None, alpha=1.0, beta=0.0, trans=False, threads=None):
    """y := alpha*op(a) x + beta*y, where op(a) is a or, with trans, its transpose. Returns y.

    a[m, n]; x[n] and y[m], or x[m] and y[n] with trans; y is made where it is None. threads: None for the default.
    """
    cdef Operand oa = operand(a.T if trans and isinstance(a, np.ndarray) else a, "a", 2, 2, b"fd")
    if oa.s[0] != 1 and oa.s[1] != 1 and oa.n[0] > 1 and oa.n[1] > 1:
        oa = operand(np.ascontiguousarray(oa.array), "a", 2, 2, b"fd")     # neither rows nor columns are contiguous
    cdef Operand ox = vector(x, "x")
    cdef double s = alpha, t = beta
    cdef int32_t count = thread_count(threads)
    y = new_output(y, (oa.n[0],), oa, t)
    cdef Operand oy = vector(y, "y", True)
    ox.must_have_dtype_of(oa)
    oy.must_have_dtype_of(oa)
    ox.must_have_shape((oa.n[1],))
    oy.must_have_shape((oa.n[0],))
    oy.must_differ_from(oa, False)
    oy.must_differ_from(ox, False)
    with nogil:
        if oa.itemsize == 4:
            core.gemv[float](oa.n[0], oa.n[1], <float> s, <float *> oa.data, oa.s[0], oa.s[1], <float *> ox.data, ox.s[0],
                         <float> t, <float *> oy.data, oy.s[0], count)
        else:
            core.gemv[double](oa.n[0], oa.n[1], s, <double *> oa.data, oa.s[0], oa.s[1], <double *> ox.data, ox.s[0], t,
                          <double *> oy.data, oy.s[0], count)
    return y


def ger(x, y, a=None, alpha=1.0):
    """a := alpha * x y^T + a. Returns a[m, n], which starts as zeros where it is None; x[m], y[n]."""
    cdef Operand ox = vector(x, "x"), oy = vector(y, "y")
    cdef double s = alpha
    oy.must_have_dtype_of(ox)
    if a is None:
        a = np.zeros((ox.n[0], oy.n[0]), ox.array.dtype)
    cdef Operand oa = operand(a, "a", 2, 2, b"fd", True)
    oa.must_have_dtype_of(ox)
    oa.must_have_shape((ox.n[0], oy.n[0]))
    oa.must_differ_from(ox, False)
    oa.must_differ_from(oy, False)
    with nogil:
        if oa.itemsize == 4:
            core.ger[float](oa.n[0], oa.n[1], <float> s, <float *> ox.data, ox.s[0], <float *> oy.data, oy.s[0],
                        <float *> oa.data, oa.s[0], oa.s[1])
        else:
            core.ger[double](oa.n[0], oa.n[1], s, <double *> ox.data, ox.s[0], <double *> oy.data, oy.s[0],
                         <double *> oa.data, oa.s[0], oa.s[1])
    return a


cdef tuple output_shape(int dims, int64_t count, int64_t m, int64_t n):
    cdef tuple matrix = (m, n)
    return matrix if dims == 2 else (count, *matrix)


cdef object product(a, b, c, int dims, double alpha, double beta, trans_a, trans_b, threads):
    """gemm and gemm_batch: checks the operands, and computes C^T = B^T A^T where C is laid out by columns."""
    cdef Operand oa = operand(a, "a", 2, dims, b"fd"), ob = operand(b, "b", 2, dims, b"fd"), oc
    cdef int32_t thread_limit = thread_count(threads)
    cdef int64_t[3] an, bn, as_, bs                        # batch, row, column
    cdef int64_t count
    cdef int status
    ob.must_have_dtype_of(oa)
    as_matrices(oa, trans_a, an, as_)
    as_matrices(ob, trans_b, bn, bs)
    if an[2] != bn[1]:
        raise ValueError(f"a{'^T' if trans_a else ''} has {an[2]} columns, but b{'^T' if trans_b else ''} {bn[1]} rows")
    if an[0] != bn[0] and an[0] != 1 and bn[0] != 1:
        raise ValueError(f"a is a batch of {an[0]}, but b of {bn[0]}")
    count = bn[0] if an[0] == 1 else an[0]
    as_[0] = as_[0] if an[0] > 1 else 0
    bs[0] = bs[0] if bn[0] > 1 else 0
    if c is None:
        c = new_output(None, output_shape(dims, count, an[1], bn[2]), oa, beta)
    oc = operand(c, "c", dims, dims, b"fd", True)
    oc.must_have_dtype_of(oa)
    if oc.n[dims - 2] != an[1] or oc.n[dims - 1] != bn[2] or dims == 3 and oc.n[0] != count:
        oc.must_have_shape(output_shape(dims, count, an[1], bn[2]))
    oc.must_differ_from(oa, False)
    oc.must_differ_from(ob, False)
    cdef int64_t row = oc.s[dims - 2], column = oc.s[dims - 1], step = oc.s[0] if dims == 3 else 0
    cdef bint by_rows = column == 1 or bn[2] <= 1
    if not by_rows and row != 1 and an[1] > 1:
        raise ValueError(f"c must have contiguous rows or contiguous columns, not strides {c.strides}")
    with nogil:
        if by_rows:
            status = multiply(oa, ob, oc, an[1], bn[2], an[2], alpha, as_, bs, beta, row, count, step, thread_limit)
        else:
            as_[1], as_[2], bs[1], bs[2] = as_[2], as_[1], bs[2], bs[1]
            status = multiply(ob, oa, oc, bn[2], an[1], an[2], alpha, bs, as_, beta, column, count, step, thread_limit)
    if status != 0:
        raise MemoryError("no memory for the packing buffer of a matrix product")
    return c


cdef void as_matrices(Operand o, bint trans, int64_t *n, int64_t *s):
    """Batch, row and column counts and strides of an operand of 2 or 3 dimensions, transposed where asked."""
    cdef int row = o.ndim - 2, column = o.ndim - 1
    if trans:
        row, column = column, row
    n[0], s[0] = 1, 0
    if o.ndim == 3:
        n[0], s[0] = o.n[0], o.s[0]
    n[1], s[1], n[2], s[2] = o.n[row], o.s[row], o.n[column], o.s[column]


cdef int multiply(Operand a, Operand b, Operand c, int64_t m, int64_t n, int64_t k, double alpha, const int64_t *a_s,
                  const int64_t *b_s, double beta, int64_t ldc, int64_t count, int64_t stride_c,
                  int32_t threads) noexcept nogil:
    if a.itemsize == 4:
        return core.gemm[float](m, n, k, <float> alpha, <float *> a.data, a_s[1], a_s[2], <float *> b.data, b_s[1],
                                b_s[2], <float> beta, <float *> c.data, ldc, count, a_s[0], b_s[0], stride_c, threads)
    return core.gemm[double](m, n, k, alpha, <double *> a.data, a_s[1], a_s[2], <double *> b.data, b_s[1], b_s[2], beta,
                             <double *> c.data, ldc, count, a_s[0], b_s[0], stride_c, threads)


def gemm(a, b, c=None, alpha=1.0, beta=0.0, trans_a=False, trans_b=False, threads=None):
    """c := alpha*op(a) op(b) + beta*c, where op() transposes if trans_a, trans_b say so. Returns c.

    op(a)[m, k], op(b)[k, n], c[m, n] with contiguous rows or columns; c is made where it is None.
    threads: how many to use at most, None for EVORT_NUM_THREADS or all processors.
    """
    return product(a, b, c, 2, alpha, beta, trans_a, trans_b, threads)


def gemm_batch(a, b, c=None, alpha=1.0, beta=0.0, trans_a=False, trans_b=False, threads=None):
    """gemm for each matrix of a batch: op(a)[batch, m, k], op(b)[batch, k, n], c[batch, m, n]. Returns c.

    An a or b of two dimensions, or with a batch of 1, serves the whole batch.
    """
    return product(a, b, c, 3, alpha, beta, trans_a, trans_b, threads)


ctypedef struct Zero:
    uint8_t one                  # a zero point for all, as the byte that it is
    const void *data             # of so many bytes apart
    int64_t step


cdef Operand zero_points(zero, str name, Operand like, int64_t n, Zero *z):
    """One zero point, or one for each of n rows or columns, in the operand's own dtype. Returns what holds them."""
    cdef int64_t low = -128 if like.kind == c"b" else 0, value
    cdef Operand found
    z.data, z.step = &z.one, 0
    if type(zero) is int:
        if not low <= zero <= low + 255:
            raise ValueError(f"{name} must lie within [{low}, {low + 255}], the range of {like.name}")
        value = zero
        z.one = <uint8_t> value
        return None
    values = np.atleast_1d(np.asarray(zero))
    if values.dtype.kind not in "iu":
        raise TypeError(f"{name} must be a whole number, or an array of such, not {values.dtype}")
    if values.ndim != 1 or (len(values) != 1 and len(values) != n):
        raise ValueError(f"{name} must be one value or {n}, but its shape is {values.shape}")
    if values.min() < low or values.max() > low + 255:
        raise ValueError(f"{name} must lie within [{low}, {low + 255}], the range of {like.name}")
    found = operand(values.astype(like.array.dtype), name, 1, 1, b"bB")
    z.data, z.step = found.data, 1 if found.n[0] > 1 else 0
    return found


def gemm_int8(a, b, c=None, alpha=1, beta=0, trans_a=False, trans_b=False, a_zero=0, b_zero=0, threads=None):
    """c := alpha*(op(a) - a_zero) (op(b) - b_zero) + beta*c for int8 or uint8 a and b, int32 c. Returns c.

    op(a)[m, k], op(b)[k, n], c[m, n] with contiguous rows. a_zero: a number, or an array of one for each row of op(a);
    b_zero: the same for the columns of op(b). Sums are exact; one that does not fit int32 wraps around. alpha and beta
    are whole numbers.
    """
    cdef Operand oa = operand(a, "a", 2, 2, b"bB"), ob = operand(b, "b", 2, 2, b"bB"), oc, za, zb
    cdef int64_t[3] an, bn, as_, bs
    cdef int32_t scale = alpha, old = beta, thread_limit = thread_count(threads)
    cdef bint a_signed = oa.kind == c"b", b_signed = ob.kind == c"b"
    cdef Zero a_points, b_points
    cdef int status
    as_matrices(oa, trans_a, an, as_)
    as_matrices(ob, trans_b, bn, bs)
    if an[2] != bn[1]:
        raise ValueError(f"a{'^T' if trans_a else ''} has {an[2]} columns, but b{'^T' if trans_b else ''} {bn[1]} rows")
    za = zero_points(a_zero, "a_zero", oa, an[1], &a_points)
    zb = zero_points(b_zero, "b_zero", ob, bn[2], &b_points)
    if c is None:
        if beta != 0:
            raise ValueError("beta is not 0, so the output's old value is needed: pass it")
        c = np.empty((an[1], bn[2]), np.int32)
    oc = operand(c, "c", 2, 2, b"i", True)
    if oc.n[0] != an[1] or oc.n[1] != bn[2]:
        oc.must_have_shape((an[1], bn[2]))
    oc.must_differ_from(oa, False)
    oc.must_differ_from(ob, False)
    if bn[2] > 1 and oc.s[1] != 1:
        raise ValueError(f"c must have contiguous rows, not strides {c.strides}")
    with nogil:
        status = core.igemm(an[1], bn[2], an[2], scale, oa.data, as_[1], as_[2], a_signed, a_points.data, a_points.step,
                            ob.data, bs[1], bs[2], b_signed, b_points.data, b_points.step, old, <int32_t *> oc.data,
                            oc.s[0], thread_limit)
    if status != 0:
        raise MemoryError("no memory for the packing buffer of a matrix product")
    return c


cdef tuple rows_and_output(a, c, int64_t k, int64_t n):
    """a[m, k] and c[m, n] (made where it is None) in float32, both with contiguous rows."""
    cdef Operand oa = operand(a, "a", 2, 2, b"f"), oc
    if oa.n[1] != k:
        raise ValueError(f"a has {oa.n[1]} columns, but the weights take {k}")
    if k > 1 and oa.s[1] != 1:
        raise ValueError(f"a must have contiguous rows, not strides {a.strides}")
    if c is None:
        c = np.empty((oa.n[0], n), np.float32)
    oc = operand(c, "c", 2, 2, b"f", True)
    oc.must_have_shape((oa.n[0], n))
    oc.must_differ_from(oa, False)
    if n > 1 and oc.s[1] != 1:
        raise ValueError(f"c must have contiguous rows, not strides {c.strides}")
    return oa, oc


cdef object must_be_dense(Operand o):
    if not o.array.flags.c_contiguous:
        raise ValueError(f"{o.name} must be contiguous, not of strides {o.array.strides}")


def gemm_nbits(a, q, scales, zeros=None, c=None, bits=4, block=32, exact=True, threads=None):
    """c := a W^T for weights W[n, k] of 2, 3, 4 or 8 bits in blocks of `block` along k: (q - zero) * scale. Returns c.

    a[m, k], c[m, n] with contiguous rows; q uint8 [n, bytes], each row one stream of bits, low bits first, that holds k
    numbers or whole blocks of them; scales float32 or float16 [n, ceil(k/block)]; zeros uint8 [n, ceil(blocks*bits/8)],
    packed alike, None for 2^(bits-1). This is how onnxruntime's MatMulNBits packs 2, 4 and 8 bits. Weights are widened
    as they are used; a product of one row reads them once. exact=False: up to three rows of a may be rounded to 16 bits
    with a scale for each 16 columns or fewer, which is faster.
    """
    cdef Operand oq = operand(q, "q", 2, 2, b"B"), os = operand(scales, "scales", 2, 2, b"fe"), oz = None, oa, oc
    cdef int64_t n = oq.n[0], k, blocks, size = block, numbers
    cdef int32_t width = bits, thread_limit = thread_count(threads)
    cdef bint rounded = not exact
    cdef const uint8_t *points = NULL
    cdef int status
    if bits not in (2, 3, 4, 8):
        raise ValueError(f"bits must be 2, 3, 4 or 8, not {bits}")
    if size < 16 or size & (size - 1):
        raise ValueError(f"block must be a power of two and at least 16, not {block}")
    k = a.shape[1] if isinstance(a, np.ndarray) and a.ndim == 2 else 0
    blocks = (k + size - 1) // size
    oa, oc = rows_and_output(a, c, k, n)
    numbers = oq.n[1] * 8 // width
    if numbers < k or oq.n[1] > blocks * size * width // 8:
        raise ValueError(f"q has {oq.n[1]} bytes a row; {k} weights of {bits} bits take {(k * width + 7) // 8}")
    os.must_have_shape((n, blocks))
    for o in (oq, os):
        must_be_dense(o)
        oc.must_differ_from(o, False)
    if zeros is not None:
        oz = operand(zeros, "zeros", 2, 2, b"B")
        oz.must_have_shape((n, (blocks * width + 7) // 8))
        must_be_dense(oz)
        oc.must_differ_from(oz, False)
        points = <const uint8_t *> oz.data
    with nogil:
        status = nbits_gemm(oa.n[0], n, k, width, size, 1, <const float *> oa.data, oa.s[0], <const uint8_t *> oq.data,
                            oq.n[1], os.data, os.itemsize == 2, points, rounded, <float *> oc.data, oc.s[0],
                            thread_limit)
    if status != 0:
        raise MemoryError("no memory for the scratch of a matrix product")
    return oc.array


def gemm_half(a, w, c=None, trans_w=False, threads=None):
    """c := a op(w) for weights w of float16, or of bfloat16 as uint16 bits. Returns c.

    a[m, k] and c[m, n] in float32 with contiguous rows; w [k, n], or [n, k] with trans_w, contiguous. Weights are widened
    as they are used; a product of one row reads them once.
    """
    cdef Operand ow = operand(w, "w", 2, 2, b"eH"), oa, oc
    cdef bint trans = trans_w, brain = ow.kind == c"H"
    cdef int64_t k = ow.n[1] if trans else ow.n[0], n = ow.n[0] if trans else ow.n[1]
    cdef int32_t thread_limit = thread_count(threads)
    cdef int status
    oa, oc = rows_and_output(a, c, k, n)
    must_be_dense(ow)
    oc.must_differ_from(ow, False)
    with nogil:
        status = half_gemm(trans, oa.n[0], n, k, 1, <const float *> oa.data, oa.s[0], <const uint16_t *> ow.data, brain,
                           <float *> oc.data, oc.s[0], thread_limit)
    if status != 0:
        raise MemoryError("no memory for the scratch of a matrix product")
    return oc.array
