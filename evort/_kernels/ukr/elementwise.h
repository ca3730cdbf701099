/* Numbers of the elementwise functions: those of the tables in evort/ops/elementwise.py and binary.py. */
#ifndef EV_ELEMENTWISE_H
#define EV_ELEMENTWISE_H

#include "ev.h"

/* unary_*: these, and the activations EV_ACT_* of ev.h. a and b are attributes of the operator of that name. */
enum {
    EV_ABS = 32, EV_NEG, EV_SIGN, EV_FLOOR, EV_CEIL, EV_ROUND, EV_SQRT, EV_RECIPROCAL, EV_EXP, EV_LOG,
    EV_SIN, EV_COS, EV_TAN, EV_ASIN, EV_ACOS, EV_ATAN, EV_SINH, EV_COSH, EV_ASINH, EV_ACOSH, EV_ATANH, EV_ERF,
    EV_SELU,            /* x > 0 ? b*x : b*a*(exp(x) - 1) */
    EV_CELU,            /* max(x, 0) + min(0, a*(exp(x/a) - 1)) */
    EV_THRESHOLDED_RELU, /* x > a ? x : 0 */
    EV_SOFTSIGN,        /* x / (1 + |x|) */
    EV_SHRINK,          /* x < -b ? x + a : x > b ? x - a : 0 */
    EV_NOT              /* of integers: all bits */
};

/* binary_*: y = a op b of the operands' type; from EV_EQUAL on, y is a bool. */
enum {
    EV_ADD = 0, EV_SUB, EV_MUL, EV_DIV, EV_MIN, EV_MAX,
    EV_MOD,             /* the sign of b */
    EV_FMOD,            /* the sign of a */
    EV_POW, EV_PRELU,   /* floats; PRelu: a < 0 ? a*b : a */
    EV_BITAND, EV_BITOR, EV_BITXOR, EV_SHIFT_LEFT, EV_SHIFT_RIGHT, /* integers */
    EV_EQUAL, EV_LESS, EV_LESS_OR_EQUAL
};

typedef void (*ev_binary)(int op, int64_t n, const void *a, int64_t sa, const void *b, int64_t sb, void *y);

/* Bytes of one item at run time. */
static inline int64_t ev_item_size(int32_t dtype)
{
    switch (dtype) {
    case EV_INT16: case EV_UINT16: case EV_FLOAT16: case EV_BFLOAT16: return 2;
    case EV_INT32: case EV_UINT32: case EV_FLOAT: return 4;
    case EV_INT64: case EV_UINT64: case EV_DOUBLE: return 8;
    default: return 1;
    }
}

#endif
