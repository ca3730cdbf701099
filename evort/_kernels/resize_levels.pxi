# The axes that `resize` resamples, for float32 (interpolate.pyx) and for integers (qsample.pyx).

cdef enum:
    MAX_LEVELS = 8

cdef struct Level:
    int64_t size, out, taps
    const int64_t *first    # [out] where each window begins
    const float *w          # [out, taps]
    int64_t behind          # elements of a resampled slice behind this axis
    int64_t source          # elements of an input slice behind this axis
    int64_t ring            # where this axis's ring lies among a worker's


cdef float *read_levels(const int64_t *ints, const double *reals, float *w, Level *level) noexcept nogil:
    """Fills in the axes from ints (axes n, outer, inner, elements of a worker's rings, n times (size, output size,
    taps), then for each axis where its windows begin) and reals (the windows' weights, axis by axis, which are copied
    to w as float32). Returns what lies behind the weights; NULL for too many axes, or none."""
    cdef int64_t n = ints[0], inner = ints[2], i, k, count, ring = 0
    cdef const int64_t *sizes = ints + 4
    cdef const int64_t *first = sizes + 3 * n
    cdef Level *v
    if n < 1 or n > MAX_LEVELS:
        return NULL
    for i in range(n):
        v = &level[i]
        v.size, v.out, v.taps = sizes[3 * i], sizes[3 * i + 1], sizes[3 * i + 2]
        v.first = first
        v.w = w
        count = v.out * v.taps
        for k in range(count):
            w[k] = <float> reals[k]
        first += v.out
        reals += count
        w += count
    for i in range(n - 1, -1, -1):
        v = &level[i]
        v.behind = inner if i == n - 1 else (v + 1).behind * (v + 1).out
        v.source = inner if i == n - 1 else (v + 1).source * (v + 1).size
        v.ring = ring
        if i < n - 1:
            ring += v.taps * v.behind
    return w
