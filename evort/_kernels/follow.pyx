"""Following the ranges of quantized tensors from run to run (evort.adaptive): a moving average with hysteresis.

Compiled, as it comes after every run of models that take microseconds.
"""
from libc.math cimport INFINITY, fmax, fmin
from libc.stdint cimport int32_t, int64_t, uint8_t
import numpy as np

from evort._kernels.core cimport address, ev_ukr, ukernels

cdef const ev_ukr *K = ukernels()


cdef class Watch:
    """Where the runs of a program note ranges, and what they say.

    ranges: float32 [any, 2], which `Follower.observe` clears; rows: int32 [count], the row of each tensor, -1 for one
    that is not followed; inputs: the rows of float inputs. noises: float64 [count], each tensor's noise relative to its
    signal where its range is just as wide as its values; reach: float64 [count], how many times wider than its range
    its integers are; units: float64 [count], what is noted in units of.
    """
    cdef readonly object ranges, rows, noises, reach, units
    cdef readonly list inputs

    def __init__(self, object ranges, object rows, list inputs, object noises, object reach, object units):
        self.ranges, self.rows, self.inputs = ranges, rows, inputs
        self.noises, self.reach, self.units = noises, reach, units
        ranges[:] = INFINITY, -INFINITY


cdef class Follower:
    """The ranges of `count` tensors.

    state: float64 [count, 5]; of each tensor the averages of its smallest and largest value, the ends of the range that
      its integers stand for, and how many runs in a row were rejected as outliers. All that is remembered.
    bounds: float64 [count, 2]; what an activation clamps values to.
    attack, release: how much of the way an average goes to a value outside of it, and inside. outlier: values beyond so
      many times the average are rejected, unless they come `confirm` times in a row. grow, shrink: a range is due for
      change where the average is larger than it by a share `grow`, or where it is smaller by a share `shrink`.

    inputs: int64 [any]; which tensors are float inputs of the model.

    After `observe`: due, a byte for each tensor; excess, by how much of itself the largest value was cut off, at worst;
    noise, the sum of the tensors' noise at these ranges, relative to their signal; waits, whether an outlier may come
    again.
    """
    cdef readonly object state, bounds, due, inputs, now
    cdef readonly double excess, noise
    cdef readonly bint waits
    cdef double attack, release, outlier, grow, shrink
    cdef int64_t confirm, count
    cdef double *s
    cdef double *b
    cdef uint8_t *d
    cdef const int64_t *about
    cdef float *new
    cdef Py_ssize_t n_inputs

    def __init__(self, object bounds, object inputs, double attack, double release, double outlier, int64_t confirm,
                 double grow, double shrink):
        self.n_inputs = len(inputs)
        self.inputs, self.now = np.array(inputs, np.int64), np.zeros((self.n_inputs, 2), np.float32)
        self.about, self.new = <const int64_t *> address(self.inputs), <float *> address(self.now)
        self.count = len(bounds)
        self.bounds = np.ascontiguousarray(bounds, np.float64).reshape(self.count, 2)
        self.state = np.zeros((self.count, 5))
        self.due = np.zeros(self.count, np.uint8)
        self.s, self.b = <double *> address(self.state), <double *> address(self.bounds)
        self.d = <uint8_t *> address(self.due)
        self.attack, self.release, self.outlier, self.confirm = attack, release, outlier, confirm
        self.grow, self.shrink = grow, shrink

    def look(self, dict feeds, list names) -> bool:
        """Takes the ranges of the float inputs; returns whether one goes beyond what its integers stand for, by the share
        `grow` or more."""
        cdef bint beyond = False
        cdef double room
        cdef double *s
        cdef float *r
        cdef Py_ssize_t k
        for k in range(self.n_inputs):
            x, r, s = feeds[names[k]], self.new + 2 * k, self.s + 5 * self.about[k]
            r[0], r[1] = INFINITY, -INFINITY
            if x.size > 0:
                K.range_f32(x.size, <const float *> address(x), r)
                room = self.grow * (s[3] - s[2])
                beyond = beyond or r[1] > s[3] + room or r[0] < s[2] - room
        return beyond

    def observe(self, Watch w, bint learn) -> int:
        """Takes in what a run has noted, and clears it; returns how many ranges are due for change. The inputs are those
        of the last `look`.

        learn: whether the averages follow.
        """
        cdef float *r = <float *> address(w.ranges)
        cdef const int32_t *row = <const int32_t *> address(w.rows)
        cdef const double *n = <const double *> address(w.noises)
        cdef const double *wide = <const double *> address(w.reach)
        cdef const double *unit = <const double *> address(w.units)
        cdef double *s
        cdef double lo, hi, width, used, step
        cdef int64_t i, k
        cdef int found = 0
        for k in range(self.n_inputs):
            i = 2 * <int64_t> w.inputs[k]
            r[i], r[i + 1] = min(r[i], self.new[2 * k]), max(r[i + 1], self.new[2 * k + 1])
        self.excess = self.noise = 0
        self.waits = False
        for i in range(self.count):
            self.d[i] = 0
            s = self.s + 5 * i
            used = s[3] - s[2]
            if row[i] < 0:
                self.noise += n[i]
                continue
            lo = fmin(0, fmax(self.b[2 * i], unit[i] * r[2 * row[i]]))
            hi = fmax(0, fmin(self.b[2 * i + 1], unit[i] * r[2 * row[i] + 1]))
            r[2 * row[i]], r[2 * row[i] + 1] = INFINITY, -INFINITY
            width = hi - lo
            if not 0 < width < INFINITY:     # nothing noted, nothing but zeros, or not finite
                continue
            self.excess = fmax(self.excess, fmax(hi - wide[i] * s[3], wide[i] * s[2] - lo) / width)
            self.noise += n[i] * (used / width) * (used / width)
            if not learn:
                continue
            if width > self.outlier * (s[1] - s[0]) and s[4] < self.confirm - 1:
                s[4] += 1
                self.waits = True
                continue
            step = self.attack if s[4] > 0 or lo < s[0] else self.release
            s[0] += step * (lo - s[0])
            step = self.attack if s[4] > 0 or hi > s[1] else self.release
            s[1] += step * (hi - s[1])
            s[4] = 0
            width = s[1] - s[0]
            if s[1] > s[3] + self.grow * used or s[0] < s[2] - self.grow * used or width < (1 - self.shrink) * used:
                self.d[i] = 1
                found += 1
        return found
