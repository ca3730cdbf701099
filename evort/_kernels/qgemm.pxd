"""Quantized matrix products for the kernels: C := requantize(sum over k of (A - a_zero)(B - b_zero)).

    cdef ev_qgemm g
    qgemm_init(&g, m, n, k, a, EV_INT8, b, EV_UINT8, c, EV_UINT8)   # dense, one thread, zero points 0, scales 1
    g.b.zero = &x_zero                                               # and whatever else differs
    g.q.scale, g.q.scale_axis, g.q.factor = w_scale, EV_BIAS_ROW, x_scale
    g.q.bias, g.q.bias_axis, g.q.y_scale, g.q.y_zero = bias, EV_BIAS_ROW, y_scale, y_zero
    g.threads, g.scratch = call.threads, call.scratch                # qgemm_scratch() bytes, 64-byte aligned
    qgemm(&g)

Either operand may hold the weights: A of a convolution (with per-row scales), B of MatMul (with per-column scales).

Operands (ev_qoperand of ukr/qgemm.h): uint8, int8, int16 (with an 8-bit partner), or float32, which is quantized as it
is read: q = saturate(round(x / scale) + zero). `zero` points to one zero point (zero_step 0), or to one for each row of
A or column of B (zero_step 1; not with int16), of the operand's integer type. Sums are exact: int32 that wraps around
modulo 2^32, as ONNX has it, where a sum does not fit; int64 where an operand is int16.

The epilogue (ev_requant), with s[i,j] a sum:
  EV_INT32  C = beta*C + alpha*s + bias                                            (int32 all)
  others    real = (s + bias) * (factor * scale) [+ float bias] + (Z - residual_zero) * residual_scale
            (Z float32: as it is), then the activation.
            EV_FLOAT: C = real. EV_UINT8, EV_INT8, EV_INT16: C = saturate(round_half_even(real / y_scale) + y_zero).
            Without Z and a float bias, and with no activation, Relu or Clip, an integer C is one product with the
            float32 number m = factor * scale / y_scale, and the activation is a clamp of the integers.
  No multiplication is fused with an addition, so results have the same bits on every instruction set wherever the
  activation needs no exp. A NaN becomes the lowest integer.

How drivers set it: factor = x_scale, scale = w_scale as the file has it, y_scale as the operator's input.
"""
from evort._kernels.core cimport ev_qoperand, ev_requant
from evort._kernels.gemm cimport ev_pack_b
from libc.stdint cimport int8_t, int32_t, int64_t

ctypedef struct ev_qgemm:
    int64_t m, n, k
    ev_qoperand a, b             # a.data[i*a.rs + p*a.cs], b.data[p*b.rs + j*b.cs]; see core.pxd
    # Supplies B in b.data's place: rows [p0, p0+kc) x columns [j0, j0+nc) as ceil(nc/16) panels of kc rows of 16 elements
    # of type b.type. A padded element of an image is the zero point; columns past nc may hold anything. (j0 is a
    # multiple of 16.) Called from several threads at once, with disjoint dst. Not with float32.
    ev_pack_b pack
    const void *pack_ctx
    # S of the operator's attribute `presum`, 0 where nothing is proven. With it, for each row (column) of the weights, which
    # are int8 with zero point 0, and each group of 4*S successive k (from k = 0): the positive weights at k % 4 in {0, 1}
    # add up to at most 128, the negative ones to at least -128, and the same at k % 4 in {2, 3}. (255 * 128 fits 16
    # bits.) Where the instruction set has a product of bytes, it is then used; results are the same. S = 1, 2 or 4.
    int32_t presum
    bint weights_in_b            # which operand the proof is about; the other is uint8 or int8 with one zero point
    void *c                      # row-major, row stride ldc in elements
    int64_t ldc
    ev_requant q                 # c's type is q.type; the residual has row stride q.ldr
    int32_t threads
    void *scratch
    const char *ahead            # weights of later products, which are fetched into L2 meanwhile; or NULL
    int64_t ahead_bytes

# c_type: EV_UINT8, EV_INT8, EV_INT16, EV_FLOAT or EV_INT32; also sets the integers' range q.lo, q.hi.
cdef void qgemm_init(ev_qgemm *g, int64_t m, int64_t n, int64_t k, const void *a, int32_t a_type, const void *b,
                     int32_t b_type, void *c, int32_t c_type) noexcept nogil

# Scratch bytes for any strides, types and epilogue. packs: with a pack function; wide: with an int16 operand; as_it_lies:
# B has 8 bits and a stride of 1, so that a product of one row reads it where it lies, and takes little.
cdef int64_t qgemm_scratch(int64_t count, int64_t m, int64_t n, int64_t k, int32_t threads, bint packs, bint wide,
                           bint as_it_lies) noexcept nogil
cdef void qgemm(const ev_qgemm *g) noexcept nogil

# `count` products of one shape; a, b and c (with a residual, which is laid out like c) move on by the strides, in
# elements. A stride of 0 uses the same matrix again; with a pack function, stride_b must be 0.
cdef void qgemm_batch(const ev_qgemm *g, int64_t count, int64_t stride_a, int64_t stride_b,
                      int64_t stride_c) noexcept nogil
