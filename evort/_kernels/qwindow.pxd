"""Integer convolutions: geometry, scratch and staging, which qconv.pyx and qdepthwise.pyx share."""
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t
from evort._kernels.core cimport ev_call, ev_qfinish, ev_qtaps, ev_tensor

cdef enum:
    WIDE_ROWS = 8                # of weights that are multiplied by int16 at once
    WIDE_K = 256                 # products of int16 and the difference of bytes that 32 bits hold
    CHUNK = 2048                 # depthwise sums at a time
    MACS_PER_TASK = 1 << 20      # some 10 us: less work is not worth waking a thread, nor cutting into bands
    PHASES = 1024                # the largest stride

# Parameters of the drivers, in order.
cdef enum:
    I_ACTIVATION, I_GROUP
    I_WINDOW                     # image, out, kernel, strides, dilations, pads of three axes (as Window.ints)
    I_TRANSPOSED = 20
    I_N, I_C, I_M                # images, channels in and out
    I_SIZE                       # bytes of an element of the staged image
    I_FLOAT                      # x is float32
    I_SHIFTED                    # weights have zero points, other than 128 for uint8
    I_INPUTS                     # inputs of the node
    N_INTS

# One spatial axis. Position j of the output (of a phase) and tap t meet element j + shift of plane `plane`.
ctypedef struct Axis:
    int64_t size, count          # elements of x; positions of the output (of the first phase)
    int64_t out, kernel, stride, dilation, pad
    int64_t step                 # from an element of a plane to the next, in x
    int64_t low, high            # least and greatest place of a tap
    int64_t length               # elements of a staged plane
    int32_t planes
    int16_t plane_of[PHASES]
    int16_t phase_of[PHASES]

ctypedef struct Plan:
    int64_t n, c, m, group, channels, rows, taps
    int64_t size                 # bytes of a staged element
    bint transposed, direct      # direct: x is read where it lies
    bint quads                   # staged in quads of channels,
    int64_t fours                # so many of them
    Axis axis[3]
    int cut                      # the axis that bands cut
    int64_t band, bands, parts   # positions along it; shares of the rows of W
    int64_t plane                # elements of a staged plane
    int64_t k, kp, columns       # most rows of B, rounded up; columns of a block
    # Offsets into a thread's scratch.
    int64_t at_four, at_offset, at_tap, at_quad, at_panel, at_rows, at_a, at_extra, at_sum, at_column, at_line, slot

ctypedef struct Operands:
    ev_tensor *x
    ev_tensor *x_scale
    ev_tensor *x_zero
    ev_tensor *w
    ev_tensor *w_scale
    ev_tensor *w_zero
    ev_tensor *y_scale
    ev_tensor *y_zero
    ev_tensor *b
    ev_tensor *z
    ev_tensor *z_scale
    ev_tensor *z_zero
    ev_tensor *y

ctypedef struct Job:
    const ev_call *call
    Plan plan
    Operands o
    ev_qfinish finish
    int32_t x_type               # of its integers
    int64_t x_zero               # as the staged image has it
    float x_scale
    float stage[5]               # parameters of qc_stage
    int32_t w_flip
    int64_t w_shift              # what w_flip takes off
    const ev_qtaps *taps         # depthwise: pairs of taps, those of channel m from starts[m] on
    const int32_t *starts


# Operand i, or NULL where it is absent.
cdef ev_tensor *operand(const ev_call *c, int i) noexcept nogil
# Element i of a zero point; one serves all. 0 where it is absent.
cdef int64_t zero_of(const ev_tensor *t, int64_t i) noexcept nogil
# What the sums of channel m are multiplied with, and what is added to them before; weights: the sum of the channel's
# weights, less their zero points.
cdef float row_scale(const Job *job, int64_t m) noexcept nogil
cdef int64_t row_add(const Job *job, int64_t m, int64_t weights) noexcept nogil
# Both, of the first n channels; weights: NULL, or the sums of each. The additions wrap.
cdef void row_factors(const Job *job, int64_t n, const int32_t *weights, int32_t *add, float *scale) noexcept nogil
cdef void make_plan(Plan *p, const int64_t *v, int32_t threads, bint depthwise) noexcept nogil
# All of the job but its plan, from its operands.
cdef void read_operands(const ev_call *c, Job *job) noexcept nogil
# The same, operands too, for those of QLinearConv.
cdef void take_linear(const ev_call *c, Job *job) noexcept nogil
# The planes of `channels` channels for positions from `first` of the cut axis on.
cdef void stage(const Job *job, const char *x, int64_t channels, int64_t first, char *to) noexcept nogil
# The taps that a phase meets: their places in the staged image and their numbers. Returns how many.
cdef int64_t list_taps(const Plan *p, const int64_t *phase, int32_t *offset, int32_t *tap) noexcept nogil
