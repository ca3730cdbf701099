/* Matrix products: instances of gemm_tile.h, gemm_vector.h, gemm_pack.h and blas1.h for each float type. In them
 *   T             the element type           EV_TYPED(foo)  foo_f32__avx2 and the like
 *   V, VU         vector of VW elements, and the same for unaligned access
 *   VMAX, VMIN    (bound, x): x clamped, NaN where x is NaN
 *   MULADD        (acc, b, x): acc += b*x    ABS            fabs
 * See gemm.h for the contract.
 *
 * The integer product takes pairs of int16 (rows p and p+1 of B side by side) as its int32 elements, and one
 * instruction multiplies and adds a pair: exact for every operand, where the 8-bit form of that instruction would
 * saturate. */
#if defined(__AVX2__)
#include <immintrin.h>
#define EV_VECTOR_BYTES 32
#else
#define EV_VECTOR_BYTES 16
#endif

#define EV_VECTOR(type, name)                                                          \
    typedef type EV_FN(name) __attribute__((vector_size(EV_VECTOR_BYTES), may_alias)); \
    typedef type EV_FN(name##u) __attribute__((vector_size(EV_VECTOR_BYTES), may_alias, aligned(sizeof(type))));
EV_VECTOR(float, vf32)
EV_VECTOR(double, vf64)
EV_VECTOR(int32_t, vi32)

/* Clamps that keep NaN: the x86 instructions return their second operand where either is NaN. */
#if defined(__AVX2__)
#define EV_MAX_F32(bound, x) _mm256_max_ps(bound, x)
#define EV_MIN_F32(bound, x) _mm256_min_ps(bound, x)
#define EV_MAX_F64(bound, x) _mm256_max_pd(bound, x)
#define EV_MIN_F64(bound, x) _mm256_min_pd(bound, x)
#else
#define EV_PICK(mask, x, y) ((__typeof__(x))(((mask) & (__typeof__(mask))(x)) | (~(mask) & (__typeof__(mask))(y))))
#define EV_MAX_F32(bound, x) EV_PICK((x) < (bound), bound, x)
#define EV_MIN_F32(bound, x) EV_PICK((x) > (bound), bound, x)
#define EV_MAX_F64 EV_MAX_F32
#define EV_MIN_F64 EV_MIN_F32
#endif

/* x[2j]*y[2j] + x[2j+1]*y[2j+1] for int16 pairs held in int32 lanes. */
#if defined(__AVX2__)
#define EV_MADD_I16(x, y) ((EV_FN(vi32))_mm256_madd_epi16((__m256i)(x), (__m256i)(y)))
#elif defined(__SSE2__)
#include <emmintrin.h>
#define EV_MADD_I16(x, y) ((EV_FN(vi32))_mm_madd_epi16((__m128i)(x), (__m128i)(y)))
#else
#define EV_MADD_I16(x, y) (((x) << 16 >> 16) * ((y) << 16 >> 16) + ((x) >> 16) * ((y) >> 16))
#endif

#define EV_MULADD_FLOAT(acc, b, x) (acc) += (b) * (x)
#define EV_MULADD_PAIRS(acc, b, x) (acc) += EV_MADD_I16(b, (x) - (EV_FN(vi32)){0})
#define EV_MAX_I32(bound, x) ((void)(bound), (x)) /* integer results are not clamped */
#define EV_MIN_I32 EV_MAX_I32

#define EV_JOIN_(a, b) a##_##b
#define EV_JOIN(a, b) EV_JOIN_(a, b)
#define EV_TYPED(name) EV_FN(EV_JOIN(name, TYPE))

#define T float
#define TYPE f32
#define V EV_FN(vf32)
#define VU EV_FN(vf32u)
#define VW (EV_VECTOR_BYTES / 4)
#define VMAX EV_MAX_F32
#define VMIN EV_MIN_F32
#define MULADD EV_MULADD_FLOAT
#define ABS fabsf
#include "gemm_tile.h"
#include "gemm_vector.h"
#include "gemm_pack.h"
#include "blas1.h"
#undef T
#undef TYPE
#undef V
#undef VU
#undef VW
#undef VMAX
#undef VMIN
#undef MULADD
#undef ABS

#define T double
#define TYPE f64
#define V EV_FN(vf64)
#define VU EV_FN(vf64u)
#define VW (EV_VECTOR_BYTES / 8)
#define VMAX EV_MAX_F64
#define VMIN EV_MIN_F64
#define MULADD EV_MULADD_FLOAT
#define ABS fabs
#include "gemm_tile.h"
#include "gemm_vector.h"
#include "gemm_pack.h"
#include "blas1.h"
#undef T
#undef TYPE
#undef V
#undef VU
#undef VW
#undef VMAX
#undef VMIN
#undef MULADD
#undef ABS

typedef int32_t EV_FN(pair) __attribute__((may_alias)); /* two int16 */
#define T EV_FN(pair)
#define TYPE i16
#define V EV_FN(vi32)
#define VU EV_FN(vi32u)
#define VW (EV_VECTOR_BYTES / 4)
#define VMAX EV_MAX_I32
#define VMIN EV_MIN_I32
#define MULADD EV_MULADD_PAIRS
#include "gemm_tile.h"
#undef T
#undef TYPE
#undef V
#undef VU
#undef VW
#undef VMAX
#undef VMIN
#undef MULADD

#include "gemm_pairs.h"
