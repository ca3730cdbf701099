/* The C side of evort: what a step of a plan looks like to the function (the driver) that computes it.
 *
 *   plan.py  --builds-->  executor.Program  --calls-->  driver(const ev_call *)  --calls-->  ukr (micro-kernels)
 *
 * Every tensor is dense and row-major. A driver may not allocate, may not touch Python and may not block; all
 * memory that it needs beside its operands is its scratch, planned ahead. */
#ifndef EV_H
#define EV_H

#include <stddef.h>
#include <stdint.h>

#define EV_MAX_RANK 8

/* Element types: the numbers of ONNX's TensorProto.DataType. int4, uint4, int2 and uint2 take one byte an element
 * at run time (they are packed only in files). */
enum {
    EV_FLOAT = 1, EV_UINT8 = 2, EV_INT8 = 3, EV_UINT16 = 4, EV_INT16 = 5, EV_INT32 = 6, EV_INT64 = 7,
    EV_STRING = 8, EV_BOOL = 9, EV_FLOAT16 = 10, EV_DOUBLE = 11, EV_UINT32 = 12, EV_UINT64 = 13,
    EV_BFLOAT16 = 16, EV_UINT4 = 21, EV_INT4 = 22
};

typedef struct {
    void *data;
    int64_t size;               /* number of elements */
    int64_t dims[EV_MAX_RANK];  /* the first `rank` are valid */
    int32_t rank;
    int32_t dtype;
} ev_tensor;

typedef struct {
    ev_tensor *const *in;       /* n_in pointers; NULL for an optional input that is absent */
    ev_tensor *const *out;      /* n_out pointers; NULL for an optional output that is absent */
    const int64_t *ints;        /* the integer and the real parameters that the operator's bind() gave, in order */
    const double *reals;
    void *scratch;              /* scratch_bytes, 64-byte aligned, contents undefined */
    int64_t scratch_bytes;
    int32_t n_in, n_out, n_ints, n_reals;
    int32_t threads;            /* how many threads the driver may use, 1 or more */
    const void *ahead;          /* NULL; or weights that later steps read, which a driver may fetch while it computes */
    int64_t ahead_bytes;
    float *range;               /* NULL; or [smallest, largest], which drivers of quantized results widen: see ev_widen */
} ev_call;

/* What a driver returns. The executor turns anything but EV_OK into an exception that names the node. */
enum {
    EV_OK = 0,
    EV_BAD_INDEX = 1,           /* an index operand points outside its axis */
    EV_DIVIDE_BY_ZERO = 2,      /* integer division by zero */
    EV_BAD_ARGUMENT = 3,        /* an operand's value is outside what the operator defines */
    EV_UNSUPPORTED = 4          /* the driver was bound to dtypes or shapes that it does not take: a bug in bind() */
};

/* Activation functions, by the numbers that evort/ops/activation.py gives them; a and b are their parameters. */
enum {
    EV_ACT_NONE = 0,
    EV_ACT_RELU = 1,
    EV_ACT_CLIP = 2,            /* min(max(x, a), b) */
    EV_ACT_LEAKY_RELU = 3,      /* x < 0 ? a*x : x */
    EV_ACT_SIGMOID = 4,
    EV_ACT_TANH = 5,
    EV_ACT_HARD_SIGMOID = 6,    /* min(max(a*x + b, 0), 1) */
    EV_ACT_HARD_SWISH = 7,      /* x * min(max(x/6 + 1/2, 0), 1) */
    EV_ACT_SWISH = 8,           /* x * sigmoid(a*x); SiLU for a = 1 */
    EV_ACT_GELU = 9,            /* x/2 * (1 + erf(x/sqrt(2))) */
    EV_ACT_GELU_TANH = 10,      /* x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) */
    EV_ACT_PRELU = 11,          /* x < 0 ? slope[row]*x : x; only behind a product */
    EV_ACT_SOFTPLUS = 12,       /* log(1 + exp(x)) */
    EV_ACT_ELU = 13,            /* x < 0 ? a*(exp(x) - 1) : x */
    EV_ACT_MISH = 14            /* x * tanh(softplus(x)) */
};

typedef int (*ev_driver)(const ev_call *call);

/* Widens range = [smallest, largest] to hold lo and hi; several threads may do so at once. What it is for: the real
 * values of a quantized result before they were cut off, so that its scale can follow them. Products note them as they
 * are, sums and means in units of the result's scale. */
static inline void ev_widen(float *range, float lo, float hi)
{
    float seen;
    __atomic_load(&range[0], &seen, __ATOMIC_RELAXED);
    while (lo < seen && !__atomic_compare_exchange(&range[0], &seen, &lo, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    __atomic_load(&range[1], &seen, __ATOMIC_RELAXED);
    while (hi > seen && !__atomic_compare_exchange(&range[1], &seen, &hi, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
}

#endif
