/* Matrix products: instances of gemm_tile.h, gemm_vector.h, gemm_pack.h and blas1.h for each float type. In them
 *   T             the element type           EV_TYPED(foo)  foo_f32__avx2 and the like
 *   V, VU         vector of VW elements, and the same for unaligned access
 *   NR            columns of a panel          ABS            fabs
 *   VMAX, VMIN    (bound, x): x clamped, NaN where x is NaN
 *   PART, SET_PART  the first n elements at p as a vector, and back
 *   HALF_V, HALF_PART, HALF_WIDEN  (AVX-512) half a vector, the first n elements at p as such, and a V of it
 *   TAIL_SUMS      the sums of several rows' vectors at once, where there is such a way
 * See gemm.h for the contract. */
#include "transpose_body.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#define EV_VECTOR_BYTES 64
#elif defined(__AVX2__)
#include <immintrin.h>
#define EV_VECTOR_BYTES 32
#else
#if defined(__aarch64__)
#include <arm_neon.h>
#endif
#define EV_VECTOR_BYTES 16
#endif

/* Rows of the tile of sums that lives in registers (of which AVX-512 and NEON have 32); how often the loop over k is
 * unrolled. */
#if defined(__AVX512F__) || defined(EV_32_REGISTERS)
#define EV_UNROLL _Pragma("GCC unroll 2")
#define EV_MR 12
#define EV_EACH_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define EV_EACH_COUNT(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)
#else
#define EV_UNROLL _Pragma("GCC unroll 4")
#define EV_MR 6
#define EV_EACH_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5)
#define EV_EACH_COUNT(X) X(1) X(2) X(3) X(4) X(5) X(6)
#endif
#ifdef EV_LEAN /* the last rows two by two: tiles of each height would weigh more than they are waited for */
#define EV_EACH_HEIGHT(X) X(1) X(2) X(6)
#else
#define EV_EACH_HEIGHT EV_EACH_COUNT
#endif

#define EV_VECTOR(type, name)                                                          \
    typedef type EV_FN(name) __attribute__((vector_size(EV_VECTOR_BYTES), may_alias)); \
    typedef type EV_FN(name##u) __attribute__((vector_size(EV_VECTOR_BYTES), may_alias, aligned(sizeof(type))));
EV_VECTOR(float, vf32)
EV_VECTOR(double, vf64)
EV_VECTOR(int32_t, vi32)

/* Clamps that keep NaN: the x86 instructions return their second operand where either is NaN. */
#if defined(__AVX512F__)
#define EV_MAX_F32(bound, x) _mm512_max_ps(bound, x)
#define EV_MIN_F32(bound, x) _mm512_min_ps(bound, x)
#define EV_MAX_F64(bound, x) _mm512_max_pd(bound, x)
#define EV_MIN_F64(bound, x) _mm512_min_pd(bound, x)
#elif defined(__AVX2__)
#define EV_MAX_F32(bound, x) _mm256_max_ps(bound, x)
#define EV_MIN_F32(bound, x) _mm256_min_ps(bound, x)
#define EV_MAX_F64(bound, x) _mm256_max_pd(bound, x)
#define EV_MIN_F64(bound, x) _mm256_min_pd(bound, x)
#elif defined(__aarch64__)
#define EV_MAX_F32(bound, x) vmaxq_f32(bound, x)
#define EV_MIN_F32(bound, x) vminq_f32(bound, x)
#define EV_MAX_F64(bound, x) vmaxq_f64(bound, x)
#define EV_MIN_F64(bound, x) vminq_f64(bound, x)
#else
#define EV_PICK(mask, x, y) ((__typeof__(x))(((mask) & (__typeof__(mask))(x)) | (~(mask) & (__typeof__(mask))(y))))
#define EV_MAX_F32(bound, x) EV_PICK((x) < (bound), bound, x)
#define EV_MIN_F32(bound, x) EV_PICK((x) > (bound), bound, x)
#define EV_MAX_F64 EV_MAX_F32
#define EV_MIN_F64 EV_MIN_F32
#endif

/* The first n lanes of a vector (0 <= n; more than VW are all), the others zero, from memory and to it. */
#if defined(__AVX512F__)
#define EV_FIRST(n) ((n) >= 16 ? 0xffff : (1u << (n)) - 1)
#define EV_PART_F32(p, n) _mm512_maskz_loadu_ps((__mmask16)EV_FIRST(n), p)
#define EV_SET_PART_F32(p, n, x) _mm512_mask_storeu_ps(p, (__mmask16)EV_FIRST(n), x)
#define EV_PART_F64(p, n) _mm512_maskz_loadu_pd((__mmask8)EV_FIRST(n), p)
#define EV_SET_PART_F64(p, n, x) _mm512_mask_storeu_pd(p, (__mmask8)EV_FIRST(n), x)
typedef float EV_FN(half_f32) __attribute__((vector_size(32), may_alias));
typedef double EV_FN(half_f64) __attribute__((vector_size(32), may_alias));
#define EV_HALF_PART_F32(p, n) _mm256_maskz_loadu_ps((__mmask8)EV_FIRST(n), p)
#define EV_HALF_PART_F64(p, n) _mm256_maskz_loadu_pd((__mmask8)EV_FIRST(n), p)
#else
#define EV_PARTS(T, name)                                                                                           \
    static __attribute__((noinline)) EV_FN(v##name) EV_FN(part_##name)(const T *p, int64_t n)                       \
    {                                                                                                               \
        EV_FN(v##name) x = {0};                                                                                     \
        for (int i = 0; i < (int)(sizeof x / sizeof x[0]); i++)                                                     \
            if (i < n) x[i] = p[i];                                                                                 \
        return x;                                                                                                   \
    }                                                                                                               \
    static __attribute__((noinline)) void EV_FN(set_part_##name)(T *p, int64_t n, EV_FN(v##name) x)                 \
    {                                                                                                               \
        for (int i = 0; i < (int)(sizeof x / sizeof x[0]); i++)                                                     \
            if (i < n) p[i] = x[i];                                                                                 \
    }
EV_PARTS(float, f32)
EV_PARTS(double, f64)
#undef EV_PARTS
#define EV_PART_F32 EV_FN(part_f32)
#define EV_SET_PART_F32 EV_FN(set_part_f32)
#define EV_PART_F64 EV_FN(part_f64)
#define EV_SET_PART_F64 EV_FN(set_part_f64)
#endif

/* x[2j]*y[2j] + x[2j+1]*y[2j+1] for int16 pairs held in int32 lanes. */
#if defined(__AVX512BW__)
#define EV_MADD_I16(x, y) ((EV_FN(vi32))_mm512_madd_epi16((__m512i)(x), (__m512i)(y)))
#elif defined(__AVX2__)
#define EV_MADD_I16(x, y) ((EV_FN(vi32))_mm256_madd_epi16((__m256i)(x), (__m256i)(y)))
#elif defined(__SSE2__)
#include <emmintrin.h>
#define EV_MADD_I16(x, y) ((EV_FN(vi32))_mm_madd_epi16((__m128i)(x), (__m128i)(y)))
#else
#define EV_MADD_I16(x, y) (((x) << 16 >> 16) * ((y) << 16 >> 16) + ((x) >> 16) * ((y) >> 16))
#endif

#define EV_JOIN_(a, b) a##_##b
#define EV_JOIN(a, b) EV_JOIN_(a, b)
#define EV_TYPED(name) EV_FN(EV_JOIN(name, TYPE))

#define T float
#define TYPE f32
#define V EV_FN(vf32)
#define VU EV_FN(vf32u)
#define VW (EV_VECTOR_BYTES / 4)
#define NR EV_NR_F32
#define VMAX EV_MAX_F32
#define VMIN EV_MIN_F32
#define PART EV_PART_F32
#define SET_PART EV_SET_PART_F32
#define HALF_V EV_FN(half_f32)
#define HALF_PART EV_HALF_PART_F32
#define HALF_WIDEN(x) _mm512_zextps256_ps512(x)
#define ABS fabsf
#if EV_VECTOR_BYTES >= 32
#define TAIL_SUMS EV_FN(tail_sums)
#endif
#include "gemm_vector.h"
#include "gemm_pack.h"
#include "gemm_tile.h"
#include "blas1.h"
#undef T
#undef TYPE
#undef V
#undef VU
#undef VW
#undef NR
#undef VMAX
#undef VMIN
#undef PART
#undef SET_PART
#undef HALF_V
#undef HALF_PART
#undef HALF_WIDEN
#undef ABS
#undef TAIL_SUMS

#define T double
#define TYPE f64
#define V EV_FN(vf64)
#define VU EV_FN(vf64u)
#define VW (EV_VECTOR_BYTES / 8)
#define NR EV_NR_F64
#define VMAX EV_MAX_F64
#define VMIN EV_MIN_F64
#define PART EV_PART_F64
#define SET_PART EV_SET_PART_F64
#define HALF_V EV_FN(half_f64)
#define HALF_PART EV_HALF_PART_F64
#define HALF_WIDEN(x) _mm512_zextpd256_pd512(x)
#define ABS fabs
#include "gemm_vector.h"
#include "gemm_pack.h"
#include "gemm_tile.h"
#include "blas1.h"
#undef T
#undef TYPE
#undef V
#undef VU
#undef VW
#undef NR
#undef VMAX
#undef VMIN
#undef PART
#undef SET_PART
#undef HALF_V
#undef HALF_PART
#undef HALF_WIDEN
#undef ABS
