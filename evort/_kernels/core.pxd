"""What every kernel module cimports: the driver contract (ev.h), the micro-kernel table and the thread pool.

A kernel module defines its drivers and exports them:

    from evort._kernels.core cimport ev_call, ev_ukr, ukernels, register
    cdef const ev_ukr *K = ukernels()
    cdef int relu_f32(const ev_call *c) noexcept nogil: ...
    DRIVERS = {}
    register(DRIVERS, "relu_f32", relu_f32)

and the operator's bind() names it: `Kernel("elementwise.relu_f32", ints=..., reals=...)`.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "ev.h" nogil:
    int EV_MAX_RANK
    enum:
        EV_FLOAT, EV_UINT8, EV_INT8, EV_UINT16, EV_INT16, EV_INT32, EV_INT64, EV_STRING, EV_BOOL
        EV_FLOAT16, EV_DOUBLE, EV_UINT32, EV_UINT64, EV_BFLOAT16, EV_UINT4, EV_INT4
    enum:
        EV_OK, EV_BAD_INDEX, EV_DIVIDE_BY_ZERO, EV_BAD_ARGUMENT, EV_UNSUPPORTED
    enum:
        EV_ACT_NONE, EV_ACT_RELU, EV_ACT_CLIP, EV_ACT_LEAKY_RELU, EV_ACT_SIGMOID, EV_ACT_TANH, EV_ACT_HARD_SIGMOID
        EV_ACT_HARD_SWISH, EV_ACT_SWISH, EV_ACT_GELU, EV_ACT_GELU_TANH, EV_ACT_PRELU, EV_ACT_SOFTPLUS, EV_ACT_ELU
        EV_ACT_MISH
    ctypedef struct ev_tensor:
        void *data
        int64_t size
        int64_t *dims
        int32_t rank
        int32_t dtype
    ctypedef struct ev_call:
        ev_tensor **in_ "in"
        ev_tensor **out
        const int64_t *ints
        const double *reals
        void *scratch
        int64_t scratch_bytes
        int32_t n_in, n_out, n_ints, n_reals
        int32_t threads
        const void *ahead
        int64_t ahead_bytes
        float *range
    ctypedef int (*ev_driver)(const ev_call *) noexcept nogil
    void ev_widen(float *range, float lo, float hi)

cdef extern from "pool.h" nogil:
    ctypedef void (*ev_task)(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil

cdef extern from "gemm.h" nogil:
    int EV_MR_UNIT, EV_NR_F32, EV_NR_F64
    enum:
        EV_BIAS_NONE, EV_BIAS_ROW, EV_BIAS_COLUMN
    ctypedef struct ev_tile:
        int64_t m, n, k
        const void *a
        int64_t rsa, csa, a_step
        const void *next
        int64_t ldnext
        int in_order
        const void *b
        int64_t ldb, b_step
        void *c
        int64_t ldc
        const void *add
        int64_t ldadd
        const void *row_bias
        const void *col_bias
        double alpha, beta, lo, hi
    ctypedef struct ev_epilogue:
        const void *bias
        const void *residual
        int64_t ldr
        const float *slope
        int32_t bias_axis, activation
        float a, b

cdef extern from "qgemm.h" nogil:
    int EV_QMR, EV_QNR, EV_QMC
    ctypedef struct ev_qoperand:
        const void *data
        int64_t rs, cs
        int32_t type, as_type
        float scale
        const void *zero
        int64_t zero_step
    ctypedef struct ev_requant:
        const float *scale
        const void *bias
        const void *residual
        int64_t ldr
        const float *slope
        float factor
        int32_t scale_axis, bias_axis, bias_type
        int32_t residual_type, residual_zero
        float residual_scale
        int32_t activation
        float a, b
        int32_t type
        float y_scale
        int32_t y_zero, lo, hi
        int32_t alpha, beta
        float *range
    ctypedef struct ev_sums:
        int64_t i0, j0, m, n
        const int32_t *sum
        const int64_t *wide
        const int32_t *row_add
        const int32_t *col_add
        void *c
        int64_t ldc

cdef extern from "interpolate.h" nogil:
    ctypedef struct ev_axis:
        int32_t size, stride, taps, padding
        float low, high

cdef extern from "reduce.h" nogil:
    enum:
        EV_REDUCE_SUM, EV_REDUCE_ABS, EV_REDUCE_SQUARE, EV_REDUCE_EXP, EV_REDUCE_PROD
    enum:
        EV_REDUCE_TILE
    enum:
        EV_POOL_MAX, EV_POOL_SUM, EV_POOL_SQUARE, EV_POOL_ABS
    ctypedef struct ev_window:
        int64_t out, width, kernel, stride, dilation, pad
        int64_t from_ "from"
        int64_t to
        int64_t count_from, count_to
        double weight

cdef extern from "qelementwise.h" nogil:
    enum:
        EV_QADD, EV_QMUL
    ctypedef struct ev_qbinary:
        float scale_a, scale_b
        int32_t zero_a, zero_b, zero, lo, hi
    ctypedef struct ev_place:
        int32_t at, next
        float part

cdef extern from "conv.h" nogil:
    ctypedef struct ev_conv_window:
        int64_t image[3]
        int64_t out[3]
        int64_t kernel[3]
        int64_t stride[3]
        int64_t dilation[3]
        int64_t pad[3]
    ctypedef struct ev_depthwise:
        int64_t h, w, oh, ow, kh, kw, sh, sw, dh, dw, pad_h, pad_w, multiplier, plane
        float lo, hi
    int EV_DEPTHWISE_CHANNELS
    bint ev_depthwise_rows(const ev_depthwise *d)
    int64_t ev_depthwise_floats(const ev_depthwise *d, int64_t rows)
    ctypedef struct ev_direct_image:
        ev_conv_window window
        int64_t channels
        int64_t period[3]
        int64_t shift[3]
        int64_t wrap, planes, rows, pitch, depth, height
    int64_t EV_DIRECT_LANES
    ctypedef struct ev_direct:
        int64_t m, k
        const float *w
        int64_t ldw
        const float *x
        const int32_t *offset
        int64_t rows, pitch, ow
        float *y
        int64_t ldy
        const float *bias
        const float *residual
        float lo, hi
    int EV_WINOGRAD_MAPS
    ctypedef struct ev_winograd_row:
        int64_t row, c, tiles
        const float *w
        int64_t ldw
        const float *v
        int64_t panel, ldv, step_v
        float *u
        float *o
        int64_t step
        int32_t first
        const float *next
    ctypedef struct ev_winograd_output:
        int64_t rows, cols, height, width, step, ldy
        float lo, hi

cdef extern from "nbits.h" nogil:
    int EV_NBITS_PAD
    ctypedef struct ev_nbits:
        const uint8_t *q
        int64_t row_bytes
        const void *scales
        const void *zeros
        int64_t zero_bytes, blocks
        int32_t bits, log_block, scale_type, zero_type

cdef extern from "qconv.h" nogil:
    int EV_QC_MR, EV_QC_PLAIN_MR, EV_QC_NR, EV_QC_STEP, EV_QD_LANES
    ctypedef struct ev_qextra:
        int32_t quad
        int8_t *w
    ctypedef struct ev_qrun:
        int64_t from_ "from"
        int64_t at, n
    ctypedef struct ev_qdmap:
        int64_t h, w, out_w, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w
        int32_t zero, flip
    ctypedef struct ev_qtaps:
        int16_t a, b
        int8_t wa, wb
        int16_t last
    ctypedef struct ev_qfinish:
        int32_t type, zero, lo, hi, folds, activation
        float a, b, unit
        int32_t z_type, z_zero
        float z_scale
        float *range

cdef extern from "qnhwc.h" nogil:
    int EV_NHWC_DOTS, EV_NHWC_BYTES, EV_NHWC_HALVES, EV_NHWC_NR, EV_NHWC_VECTOR, EV_NHWC_WIDE, EV_NHWC_TAPS
    ctypedef struct ev_nhwc_conv:
        const void *x
        int64_t wide, presum
        int64_t row_step, step, width
        const int32_t *pool
        int64_t pooled, halves
        const int32_t *offset
        int64_t segments, quads
        const int8_t *w
        const int32_t *add
        const float *scale
        int64_t channels
        const ev_qfinish *finish
        const void *z
        int64_t ldz, ldy
        uint8_t *y
    ctypedef struct ev_nhwc_winograd:
        int64_t rows, cols, height, width
        const uint8_t *x
        int64_t c, pitch
        int16_t *v
        int64_t ldv, step_v
        const int8_t *w
        int16_t *u
        int64_t step_u
        const int32_t *o
        int64_t step_o
        const int32_t *add
        const float *scale
        int64_t channels
        const ev_qfinish *finish
        const void *z
        int64_t ldz, ldy
        uint8_t *y
    ctypedef struct ev_nhwc_columns:
        const uint8_t *q
        int64_t groups, group_step, first, rows, kernel_h, kernel_w, tap_step, step
        const int8_t *w
        int64_t w_step
        const int32_t *add
        const float *scale
        int32_t zero
        int64_t channels
        const ev_qfinish *finish
        int64_t y_step
        uint8_t *y

cdef extern from "sparse.h" nogil:
    int EV_SP_MR, EV_SP_NR

cdef extern from "train.h" nogil:
    ctypedef struct ev_adam:
        float lr, beta1, beta2, rest1, rest2, unbias1, unbias2, epsilon, decay, scale
        int32_t decoupled

cdef extern from "ukr.h" nogil:
    int64_t ev_item_size(int32_t dtype)
    ctypedef void (*ev_binary)(int op, int64_t n, const void *a, int64_t sa, const void *b, int64_t sb,
                               void *y) noexcept nogil
    # Rows of ukr/ukernels.inc.
    ctypedef struct ev_ukr:
        const char *isa
        int64_t mr
        int packs_a
        int masks
        void (*unary_f32)(int op, int64_t n, const float *x, float *y, float a, float b) noexcept nogil
        ev_binary binary_f32
        ev_binary binary_f64
        ev_binary binary_s8
        ev_binary binary_u8
        ev_binary binary_s32
        ev_binary binary_s64
        void (*select)(int64_t width, int64_t n, const uint8_t *c, int64_t sc, const void *a, int64_t sa,
                       const void *b, int64_t sb, void *y) noexcept nogil
        void (*cast)(int from_, int to, int64_t n, const void *x, void *y) noexcept nogil
        void (*dequantize_f32)(int64_t n, const float *x, const float *scale, const float *zero, int64_t stride,
                               float *y) noexcept nogil
        void (*range_f32)(int64_t n, const float *x, float *range) noexcept nogil
        void (*classify_f32)(int kinds, int64_t n, const float *x, uint8_t *y) noexcept nogil
        void (*q_dequantize)(int dtype, int64_t n, const void *x, const float *scale, const void *zero, int64_t stride,
                             float *y) noexcept nogil
        void (*q_quantize)(int dtype, int64_t n, const float *x, const float *scale, const void *zero, int64_t stride,
                           int32_t lo, int32_t hi, void *y) noexcept nogil
        void (*q_round)(int dtype, int64_t n, const float *x, float factor, int32_t zero, int32_t lo, int32_t hi,
                        void *y) noexcept nogil
        void (*q_binary)(int dtype, int op, int64_t n, const void *a, int64_t sa, const void *b, int64_t sb,
                         const ev_qbinary *p, void *y) noexcept nogil
        void (*q_binary_tiled)(int dtype, int op, int64_t n, const void *a, int64_t tile, const void *b,
                               const ev_qbinary *p, void *y) noexcept nogil
        void (*q_combine_f32)(int op, int64_t n, const float *a, const float *b, float scale_a, float scale_b,
                              float *y) noexcept nogil
        void (*q_lookup)(int64_t size, int64_t n, const uint8_t *x, const void *table, void *y) noexcept nogil
        void (*q_exp_sum)(int64_t n, const uint8_t *x, int flip, const float *table, uint8_t *largest,
                          int64_t *total) noexcept nogil
        void (*q_moments)(int dtype, int64_t n, const void *x, int32_t zero, int64_t *sum,
                          int64_t *square) noexcept nogil
        void (*q_sum_cols)(int dtype, int64_t rows, int64_t step, int64_t n, const void *x, int32_t *sum) noexcept nogil
        void (*q_affine_f32)(int64_t n, const float *x, float mean, float inverse, const float *scale,
                             const float *bias, float *y) noexcept nogil
        void (*q_normalize)(int dtype, int64_t n, const void *x, int32_t zero, float mean, float inverse,
                            const float *scale, const float *bias, int out, int32_t zero_out, int32_t lo, int32_t hi,
                            void *y) noexcept nogil
        void (*q_pool_row)(int dtype, int64_t rows, const void *const *row, const ev_window *w, int32_t zero,
                           float factor, void *buf, float *y) noexcept nogil
        void (*q_line_f32)(int64_t n, int64_t taps, int64_t inner, const float *x, const int64_t *first,
                           const float *w, float *y) noexcept nogil
        void (*q_colours)(int64_t n, const float *table, const ev_place *const *place, const uint8_t *const *index,
                          float *y) noexcept nogil
        void (*q_places)(int64_t n, const float *x, float step, int64_t size, int64_t stride,
                         ev_place *place) noexcept nogil
        void (*gemm_f32)(const ev_tile *t) noexcept nogil
        void (*gemm_f64)(const ev_tile *t) noexcept nogil
        void (*gemm_packing_f32)(const ev_tile *t, const void *b, int64_t ldb) noexcept nogil
        void (*gemm_packing_f64)(const ev_tile *t, const void *b, int64_t ldb) noexcept nogil
        void (*gemm_few_f32)(const ev_tile *t) noexcept nogil
        void (*gemm_few_f64)(const ev_tile *t) noexcept nogil
        void (*pack_f32)(int64_t width, int64_t n, int64_t k, int64_t sj, int64_t sp, const void *src,
                         void *dst) noexcept nogil
        void (*pack_f64)(int64_t width, int64_t n, int64_t k, int64_t sj, int64_t sp, const void *src,
                         void *dst) noexcept nogil
        void (*qgemm_i16)(int64_t m, int64_t n, int64_t pairs, const int16_t *a, int64_t lda, const int16_t *b, int add,
                          int32_t *c) noexcept nogil
        void (*qrows)(const ev_qoperand *a, int64_t i0, int64_t m, int64_t p0, int64_t k, int16_t *dst) noexcept nogil
        void (*qpanels)(const ev_qoperand *b, int64_t p0, int64_t k, int64_t j0, int64_t n,
                        int16_t *dst) noexcept nogil
        void (*qfinish)(const ev_requant *q, const ev_sums *s) noexcept nogil
        void (*gemv_rows_f32)(int64_t n, int64_t k, double alpha, const void *x, int64_t incx, const void *w,
                              int64_t ld, void *y) noexcept nogil
        void (*gemv_dot_f32)(int64_t n, int64_t k, double alpha, const void *x, const void *w, int64_t ld, void *y,
                             int64_t incy) noexcept nogil
        void (*gemv_rows_f64)(int64_t n, int64_t k, double alpha, const void *x, int64_t incx, const void *w,
                              int64_t ld, void *y) noexcept nogil
        void (*gemv_dot_f64)(int64_t n, int64_t k, double alpha, const void *x, const void *w, int64_t ld, void *y,
                             int64_t incy) noexcept nogil
        void (*axpy_f32)(int64_t n, double alpha, const void *x, int64_t incx, void *y, int64_t incy) noexcept nogil
        void (*axpy_f64)(int64_t n, double alpha, const void *x, int64_t incx, void *y, int64_t incy) noexcept nogil
        void (*scal_f32)(int64_t n, double alpha, void *x, int64_t incx) noexcept nogil
        void (*scal_f64)(int64_t n, double alpha, void *x, int64_t incx) noexcept nogil
        void (*dot_f32)(int64_t n, const void *x, int64_t incx, const void *y, int64_t incy,
                        double *result) noexcept nogil
        void (*dot_f64)(int64_t n, const void *x, int64_t incx, const void *y, int64_t incy,
                        double *result) noexcept nogil
        void (*asum_f32)(int64_t n, const void *x, int64_t incx, double *result) noexcept nogil
        void (*asum_f64)(int64_t n, const void *x, int64_t incx, double *result) noexcept nogil
        void (*nrm2_f32)(int64_t n, const void *x, int64_t incx, double *result) noexcept nogil
        void (*nrm2_f64)(int64_t n, const void *x, int64_t incx, double *result) noexcept nogil
        void (*iamax_f32)(int64_t n, const void *x, int64_t incx, int64_t *index) noexcept nogil
        void (*iamax_f64)(int64_t n, const void *x, int64_t incx, int64_t *index) noexcept nogil
        void (*sp_gather)(int64_t k, int64_t size, const char *image, const int32_t *offset, const ev_qrun *run,
                          int runs, int careful, int flip, char *dst) noexcept nogil
        void (*sp_tile_s8)(int rows, int64_t quads, const uint16_t *index, const int32_t *offset, const int8_t *w,
                           const uint8_t *b, uint64_t lanes, int32_t *sum, int64_t ld) noexcept nogil
        void (*sp_tile_f32)(int rows, int64_t n, const uint16_t *index, const float *w, const float *b, float *sum,
                            int64_t ld) noexcept nogil
        void (*sp_dot_s8)(int rows, int64_t quads, const uint16_t *index, const int8_t *w, const uint8_t *x,
                          int32_t *sum) noexcept nogil
        void (*sp_dot_f32)(int rows, int64_t n, const uint16_t *index, const float *w, const float *x,
                           float *sum) noexcept nogil
        void (*activate_f32)(const ev_epilogue *e, int64_t m, int64_t n, int64_t i0, float *c,
                             int64_t ldc) noexcept nogil
        void (*reduce_rows_f32)(int op, int64_t rows, int64_t step, int64_t n, const float *x, const float *shift,
                                double *acc) noexcept nogil
        void (*reduce_cols_f32)(int op, int64_t rows, int64_t step, int64_t n, const float *x, const float *shift,
                                double *acc) noexcept nogil
        void (*extreme_rows)(int min, int dtype, int64_t rows, int64_t step, int64_t n, const void *x,
                             void *acc) noexcept nogil
        void (*extreme_cols)(int min, int dtype, int64_t rows, int64_t step, int64_t n, const void *x,
                             void *acc) noexcept nogil
        void (*arg_rows)(int min, int last, int dtype, int64_t rows, int64_t step, int64_t n, const void *x,
                         int64_t *out) noexcept nogil
        void (*arg_cols)(int min, int last, int dtype, int64_t rows, int64_t step, int64_t n, const void *x,
                         int64_t *out) noexcept nogil
        void (*wrap_rows_u32)(int prod, int64_t rows, int64_t step, int64_t n, const uint32_t *x,
                              uint32_t *acc) noexcept nogil
        void (*wrap_cols_u32)(int prod, int64_t rows, int64_t step, int64_t n, const uint32_t *x,
                              uint32_t *acc) noexcept nogil
        void (*wrap_rows_u64)(int prod, int64_t rows, int64_t step, int64_t n, const uint64_t *x,
                              uint64_t *acc) noexcept nogil
        void (*wrap_cols_u64)(int prod, int64_t rows, int64_t step, int64_t n, const uint64_t *x,
                              uint64_t *acc) noexcept nogil
        void (*softmax_rows_f32)(int log_of, int64_t rows, int64_t n, const float *x, float *y) noexcept nogil
        void (*softmax_cols_f32)(int log_of, int64_t rows, int64_t step, int64_t n, const float *x,
                                 float *y) noexcept nogil
        void (*moments_f32)(int64_t n, const float *x, double *count, double *mean, double *m2) noexcept nogil
        void (*affine_f32)(int64_t n, const float *x, float mean, float scale, float bias, float *y) noexcept nogil
        void (*affine_each_f32)(int64_t n, const float *x, float mean, float inverse, float shift,
                                const float *scale, const float *bias, float *y) noexcept nogil
        void (*affine_cols_f32)(int64_t n, const float *x, const float *mean, const float *scale, const float *bias,
                                float *y) noexcept nogil
        void (*divide_cols_f32)(int64_t n, const float *x, const float *d, float *y) noexcept nogil
        void (*lrn_f32)(int64_t n, int64_t rows, int64_t step, const float *x, const float *own, float bias,
                        float alpha, float beta, float *y) noexcept nogil
        void (*pool_2x2_f32)(int64_t lines, int64_t out, int64_t width, const float *x, float *y, int *done) noexcept nogil
        void (*pool_row_f32)(int op, int64_t rows, const float *const *row, const ev_window *w, float *buf,
                             float *y) noexcept nogil
        void (*pool_max_row_i8)(int64_t rows, const int8_t *const *row, const ev_window *w, int8_t *buf,
                                int8_t *y) noexcept nogil
        void (*pool_max_row_i16)(int64_t rows, const int16_t *const *row, const ev_window *w, int16_t *buf,
                                 int16_t *y) noexcept nogil
        void (*pool_max_row_u8)(int64_t rows, const uint8_t *const *row, const ev_window *w, uint8_t *buf,
                                uint8_t *y) noexcept nogil
        void (*move_step)(int item, int64_t n, const void *x, int64_t step, void *y) noexcept nogil
        void (*move_rows)(int64_t n, int64_t bytes, const void *x, int64_t xs, void *y, int64_t ys) noexcept nogil
        void (*move_fill)(int item, int64_t n, const void *x, void *y) noexcept nogil
        void (*move_repeat)(int item, int64_t n, int64_t times, const void *x, void *y) noexcept nogil
        void (*move_index)(int item, int64_t n, const void *x, const int64_t *index, const void *fill,
                           void *y) noexcept nogil
        void (*move_transpose)(int item, int64_t rows, int64_t cols, const void *x, int64_t xs, void *y,
                               int64_t ys) noexcept nogil
        void (*im2col_f32)(const ev_conv_window *g, const float *x, int64_t p0, int64_t kc, int64_t j0, int64_t nc,
                           float *dst) noexcept nogil
        void (*depthwise_f32)(const ev_depthwise *d, const float *x, const float *k, float bias, const float *residual,
                              float *y, int64_t first, int64_t last) noexcept nogil
        void (*depthwise_rows_f32)(const ev_depthwise *d, int64_t begin, int64_t end, const float *x, const float *k,
                                   const float *bias, const float *residual, float *y, int64_t first,
                                   int64_t last) noexcept nogil
        void (*depthwise_block_f32)(const ev_depthwise *d, int64_t begin, int64_t end, const float *x, const float *k,
                                    const float *bias, const float *residual, float *y, int64_t first, int64_t last,
                                    float *scratch, int64_t floats) noexcept nogil
        void (*transposed_row_f32)(const ev_conv_window *g, const float *col, int64_t ld, int64_t row0, int64_t od,
                                   int64_t oh, float bias, const float *residual, float lo, float hi, float *tmp,
                                   float *y) noexcept nogil
        void (*direct_copy_f32)(const ev_direct_image *g, const float *x, int64_t od, int64_t oh,
                                float *dst) noexcept nogil
        void (*direct_f32)(const ev_direct *d) noexcept nogil
        void (*direct_lanes_f32)(const ev_direct *d) noexcept nogil
        void (*qc_prepare)(int64_t k, int s, int8_t *row, ev_qextra *extra, int32_t *count) noexcept nogil
        void (*qc_weights)(int64_t n, int64_t step, int flip, const uint8_t *src, int8_t *dst,
                           int32_t *total) noexcept nogil
        void (*qc_widen)(int64_t k, const int8_t *row, int16_t *to) noexcept nogil
        void (*qc_plain)(int *plain) noexcept nogil
        void (*qc_tile)(int64_t m, int64_t n, int s, int64_t k, const void *a, int64_t lda, const uint8_t *b,
                        const int32_t *offset, int64_t step, const ev_qextra *const *extra, const int32_t *extras,
                        int32_t *sum, int64_t ld) noexcept nogil
        void (*qc_interleave)(int64_t n, const uint8_t *x, int64_t step, uint8_t *y) noexcept nogil
        void (*qc_pack)(int64_t k, const uint8_t *image, const int32_t *offset, const ev_qrun *run, int runs,
                        int careful, int flip, uint8_t *rows, uint8_t *dst) noexcept nogil
        void (*qc_pack_i16)(int64_t k, const int16_t *image, const int32_t *offset, const ev_qrun *run, int runs,
                            int careful, int16_t *rows, int16_t *dst) noexcept nogil
        void (*qc_stage_rows)(int type, int64_t rows, int64_t n, int64_t step, const void *x, int64_t x_step,
                              const void *params, void *y, int64_t y_step) noexcept nogil
        void (*qc_stage)(int type, int64_t n, int64_t step, const void *src, const void *params,
                         void *dst) noexcept nogil
        void (*qd_taps)(int64_t n, const uint8_t *x, const int32_t *offset, const ev_qtaps *taps, int64_t pairs,
                        int32_t *sum) noexcept nogil
        void (*qd_map)(const ev_qdmap *g, const uint8_t *x, const int8_t *w, int64_t row, int64_t rows, int32_t *sum,
                       int *done) noexcept nogil
        void (*qd_taps_i16)(int64_t n, const int16_t *x, const int32_t *offset, const int16_t *w, int64_t taps,
                            int32_t *sum) noexcept nogil
        void (*qc_shift)(int64_t n, int32_t factor, const int32_t *column, int32_t *sum) noexcept nogil
        void (*qc_scales)(int64_t n, float x_scale, const float *scales, float unit, float *to) noexcept nogil
        void (*qc_finish)(const ev_qfinish *f, int64_t n, const int32_t *sum, const int64_t *wide, int64_t add,
                          float scale, const void *z, void *y) noexcept nogil
        void (*nhwc_has)(int *has) noexcept nogil
        void (*nhwc_widen)(int64_t n, const uint8_t *x, int16_t *y) noexcept nogil
        void (*nhwc_conv)(const ev_nhwc_conv *g, int64_t begin, int64_t end) noexcept nogil
        void (*nhwc_winograd_image)(const ev_nhwc_winograd *g) noexcept nogil
        void (*nhwc_winograd_kernels)(const ev_nhwc_winograd *g, int64_t p0, int64_t pairs) noexcept nogil
        void (*nhwc_winograd_results)(const ev_nhwc_winograd *g) noexcept nogil
        void (*nhwc_quads)(int64_t n, const uint8_t *const *rows, uint8_t *q) noexcept nogil
        void (*nhwc_columns)(const ev_nhwc_columns *g, int64_t n) noexcept nogil
        void (*nhwc_pairs)(int64_t n, const uint8_t *const *rows, int16_t *q) noexcept nogil
        void (*nhwc_pair_columns)(const ev_nhwc_columns *g, int64_t n) noexcept nogil
        void (*nhwc_max)(int64_t n, int64_t taps, const int32_t *offset, int is_signed, const uint8_t *x, int64_t step,
                         int64_t pixels, uint8_t *y) noexcept nogil
        void (*winograd_weights_f32)(int64_t m, int64_t c, const float *w, int64_t stride_m, int64_t stride_c, float *u,
                                     int64_t ldu, int64_t step) noexcept nogil
        void (*winograd_row_f32)(const ev_winograd_row *g) noexcept nogil
        void (*winograd_input_f32)(int64_t rows, int64_t cols, const float *x, int64_t pitch, float *v, int64_t panel,
                                   int64_t ld, int64_t step_i, int64_t step_j) noexcept nogil
        void (*winograd_output_f32)(const ev_winograd_output *g, const float *o, float bias, const float *residual,
                                    float *y) noexcept nogil
        void (*winograd_output_maps_f32)(const ev_winograd_output *g, int64_t n, const float *o, int64_t ldo,
                                         const float *bias, const float *residual, float *y,
                                         int64_t plane) noexcept nogil
        void (*winograd_line_kernels_f32)(int64_t n, const float *w, float *u, int64_t step) noexcept nogil
        void (*winograd_line_input_f32)(int64_t c, int64_t height, int64_t width, const float *x, int64_t top,
                                        int64_t rows, int64_t pad, float *v, int64_t pitch, int64_t step) noexcept nogil
        void (*winograd_line_output_f32)(int64_t rows, int64_t ow, const float *o, int64_t step, float lo, float hi,
                                         float *y) noexcept nogil
        void (*rnn_cell_f32)(int64_t n, const float *gate, float clip, float *h) noexcept nogil
        void (*lstm_cell_f32)(int64_t n, const float *gates, const float *p, float clip, int input_forget, float *cell,
                              float *h) noexcept nogil
        void (*gru_cell_f32)(int64_t n, const float *x, const float *r, float clip, float *h) noexcept nogil
        void (*gru_reset_f32)(int64_t n, const float *gates, float clip, const float *h, float *kept) noexcept nogil
        void (*gru_update_f32)(int64_t n, const float *gates, float clip, float *h) noexcept nogil
        void (*interp_place_f32)(int64_t n, const float *g, int64_t stride, int64_t size, int align,
                                 float *x) noexcept nogil
        void (*interp_taps_f32)(const ev_axis *a, float *x, int32_t *at, float *w) noexcept nogil
        void (*interp_corners_f32)(int axes, int taps, const int32_t *at, const float *w, int32_t zero,
                                   uint32_t *offset, float *weight) noexcept nogil
        void (*interp_blend_f32)(int64_t n, int corners, const float *x, const uint32_t *offset, const float *weight,
                                 float *y) noexcept nogil
        void (*interp_pack_f32)(int64_t n, int channels, const float *x, int64_t stride, float *y) noexcept nogil
        void (*interp_unpack_f32)(int64_t n, int channels, const float *x, float *y, int64_t stride) noexcept nogil
        void (*interp_rows_f32)(int64_t n, int64_t taps, const float *ring, int64_t slot, const float *w,
                                float *y) noexcept nogil
        void (*interp_line_f32)(int64_t n, int64_t taps, int64_t inner, const float *x, const int64_t *first,
                                const float *w, float *y) noexcept nogil
        void (*nbits_spread_f32)(int bits, int64_t k, int64_t padded, const float *x, float *out,
                                 float *sums) noexcept nogil
        void (*nbits_dot_f32)(const ev_nbits *w, int64_t first, int64_t rows, const float *xs, const float *sums,
                              float *y) noexcept nogil
        void (*nbits_spread_i16)(int bits, int64_t k, int64_t padded, const float *x, void *out) noexcept nogil
        void (*nbits_dot_i16)(const ev_nbits *w, int64_t first, int64_t rows, const void *xs, float *y) noexcept nogil
        void (*nbits_panel_f32)(const ev_nbits *w, int64_t j0, int64_t n, int64_t p0, int64_t kc,
                                float *dst) noexcept nogil
        void (*narrow_dot_f32)(int dtype, int64_t n, int64_t k, const float *x, const void *w, int64_t ld,
                               float *y) noexcept nogil
        void (*narrow_rows_f32)(int dtype, int64_t n, int64_t k, const float *x, const void *w, int64_t ld,
                                float *y) noexcept nogil
        void (*nbits_widen_f32)(const ev_nbits *w, int64_t row, int64_t p0, int64_t n, float *out) noexcept nogil
        void (*qgemm_u8)(int64_t m, int64_t n, int64_t quads, const uint8_t *a, int64_t lda,
                          const uint8_t *b, int a_unsigned, int presum, int add, int32_t *c) noexcept nogil
        void (*qhas_u8)(int *has) noexcept nogil
        void (*qquad_rows)(const ev_qoperand *a, int64_t i0, int64_t m, int64_t p0, int64_t k, int flip,
                          uint8_t *dst) noexcept nogil
        void (*qquad_panels)(const ev_qoperand *b, int64_t p0, int64_t k, int64_t j0, int64_t n, int flip,
                          uint8_t *dst) noexcept nogil
        void (*qrow_sums)(int64_t m, int64_t k, const int8_t *a, int64_t lda, int add, int32_t *sums) noexcept nogil
        void (*qpanel_sums)(int64_t n, int64_t quads, const int8_t *b, int add, int32_t *sums) noexcept nogil
        void (*qdot)(int64_t n, int64_t k, const int16_t *x, const uint8_t *w, int64_t ld, int is_signed,
                          int32_t *sums, int64_t inc) noexcept nogil
        void (*qaxpy)(int64_t n, int64_t k, const int16_t *x, const uint8_t *w, int64_t ld, int is_signed,
                          int32_t *sums) noexcept nogil
        void (*softmax_part_f32)(int64_t rows, int64_t n, float *x, int64_t ld, float *most, float *total,
                          float *keep) noexcept nogil
        void (*qa_rows)(int64_t rows, int64_t n, const float *x, int64_t ld, int flip, uint8_t *y, int64_t ldy,
                          float *scale) noexcept nogil
        void (*qa_most)(int64_t rows, int64_t n, const float *x, int64_t ld, int32_t *most) noexcept nogil
        void (*qa_columns)(int64_t rows, int64_t n, const float *x, int64_t ld, const float *most,
                          int8_t *y) noexcept nogil
        void (*qa_real)(int64_t m, int64_t n, const int32_t *sum, const int32_t *less, const float *row,
                          const float *column, float *y, int64_t ld) noexcept nogil
        void (*qa_weights)(int64_t n, const float *x, uint8_t *y, float *total) noexcept nogil
        void (*activation_grad_f32)(int op, int64_t n, const float *dy, const float *v, float a, float b,
                                    float *dx) noexcept nogil
        void (*inner_products_f32)(int64_t m, int64_t taps, int64_t count, int64_t n, const float *a, int64_t lda,
                                   int64_t sa, const float *b, const int64_t *offset, int64_t sb, float *c,
                                   int64_t ldc) noexcept nogil
        void (*max_pool_grad_2x2_f32)(int64_t n, const float *x0, const float *x1, const float *dy, float *dx0,
                                      float *dx1) noexcept nogil
        void (*combine_f32)(int64_t n, float a, const float *x, float b, const float *y, float c,
                            float *z) noexcept nogil
        void (*momentum_f32)(int64_t n, int nesterov, float lr, float momentum, float decay, float scale,
                             const float *w, const float *g, const float *v, float *w_new, float *v_new) noexcept nogil
        void (*adam_f32)(int64_t n, const ev_adam *p, const float *w, const float *g, const float *m, const float *v,
                         float *w_new, float *m_new, float *v_new) noexcept nogil

cdef const ev_ukr *ukernels() noexcept nogil
cdef void parallel_for(ev_task fn, void *ctx, int64_t n, int64_t grain, int32_t threads) noexcept nogil
cdef void run_begins() noexcept nogil
cdef void run_ends() noexcept nogil
cdef object register(dict drivers, str name, ev_driver fn)

# Widens ev_call.range by the range of x times unit (see ev_widen).
cdef inline void note(const ev_ukr *kernels, float *range, int64_t n, const float *x, float unit) noexcept nogil:
    cdef float[2] found
    found[0], found[1] = 1e38, -1e38
    if n == 1:
        found[0], found[1] = min(found[0], x[0]), max(found[1], x[0])
    else:
        kernels.range_f32(n, x, found)
    ev_widen(range, found[0] * unit, found[1] * unit)

cdef inline void *address(object array) except? NULL:
    """The address of a C-contiguous buffer (which its owner keeps alive and does not resize)."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
    cdef void *p = view.buf
    PyBuffer_Release(&view)
    return p
