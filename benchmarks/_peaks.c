/* What one core of this machine can do at most, for roofline.py: built there with -O3 -march=native. Each function returns
 * something that depends on all it did, so that none of it can be left out. */
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

typedef float V __attribute__((vector_size(BYTES)));
typedef float VU __attribute__((vector_size(BYTES), may_alias, aligned(4)));

/* Twelve sums hide the latency of a multiply-add (4 or 5 cycles, two at a time). */
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

/* n times twelve vectors of float32 multiply-adds; MACs in all: */
int64_t fma_f32_macs(int64_t n) { return n * 12 * (BYTES / 4); }

float fma_f32(int64_t n)
{
    V x = (V){0} + 0.999f, y = (V){0} + 1e-3f;
#define X(i) V s##i = y * (float)i;
    EACH(X)
#undef X
    for (; n > 0; n--) {
#define X(i) s##i = s##i * x + y;
        EACH(X)
#undef X
        __asm__ volatile("" ::: "memory");
    }
    V all = (V){0};
#define X(i) all += s##i;
    EACH(X)
#undef X
    return all[0];
}

/* The same for products of bytes, summed in 32 bits by the best instruction that there is. */
#if defined(__AVX512VNNI__)
#define I8 "vpdpbusd, 512 bits"
typedef __m512i I;
#define LANES 64
#define SET(v) _mm512_set1_epi8(v)
#define DOT(s, x, y) s = _mm512_dpbusd_epi32(s, x, y)
#define SUM(s) _mm512_reduce_add_epi32(s)
#elif defined(__AVX2__)
#define I8 "vpmaddubsw and vpmaddwd, 256 bits"
typedef __m256i I;
#define LANES 32
#define SET(v) _mm256_set1_epi8(v)
#define DOT(s, x, y) s = _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), _mm256_set1_epi16(1)))
#define SUM(s) (_mm256_extract_epi32(s, 0) + _mm256_extract_epi32(s, 7))
#elif defined(__ARM_FEATURE_MATMUL_INT8)
#define I8 "smmla"
typedef int32x4_t I;
#define LANES 32
#define SET(v) vreinterpretq_s32_s8(vdupq_n_s8(v))
#define DOT(s, x, y) s = vmmlaq_s32(s, vreinterpretq_s8_s32(x), vreinterpretq_s8_s32(y))
#define SUM(s) vaddvq_s32(s)
#elif defined(__ARM_FEATURE_DOTPROD)
#define I8 "sdot"
typedef int32x4_t I;
#define LANES 16
#define SET(v) vreinterpretq_s32_s8(vdupq_n_s8(v))
#define DOT(s, x, y) s = vdotq_s32(s, vreinterpretq_s8_s32(x), vreinterpretq_s8_s32(y))
#define SUM(s) vaddvq_s32(s)
#elif defined(__aarch64__)
#define I8 "smlal of 16 bits"
typedef int32x4_t I;
#define LANES 4
#define SET(v) vdupq_n_s32(v)
#define DOT(s, x, y) s = vmlal_s16(s, vreinterpret_s16_s32(vget_low_s32(x)), vreinterpret_s16_s32(vget_low_s32(y)))
#define SUM(s) vaddvq_s32(s)
#else
#define I8 "plain C"
typedef int32_t I;
#define LANES 1
#define SET(v) (v)
#define DOT(s, x, y) s += (x) * (y)
#define SUM(s) (s)
#endif

const char *dot_i8_name(void) { return I8; }
int64_t dot_i8_macs(int64_t n) { return n * 12 * LANES; }

int32_t dot_i8(int64_t n)
{
    I x = SET(3), y = SET(5);
#define X(i) I s##i = SET(i); /* all the same would be one sum for the compiler */
    EACH(X)
#undef X
    for (; n > 0; n--) {
        __asm__ volatile("" ::: "memory");
#if defined(__x86_64__)
        __asm__("" : "+x"(x), "+x"(y));
#elif defined(__aarch64__)
        __asm__("" : "+w"(x), "+w"(y));
#endif
#define X(i) DOT(s##i, x, y);
        EACH(X)
#undef X
    }
    int32_t all = 0;
#define X(i) all += SUM(s##i);
    EACH(X)
#undef X
    return all;
}

/* Reads `bytes` (a multiple of 1024) from `at`, n times. */
float read_all(const float *at, int64_t bytes, int64_t n)
{
    V s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    for (; n > 0; n--) {
        const float *p = at, *end = at + bytes / 4;
        for (; p < end; p += BYTES) { /* four vectors */
            s0 += *(const VU *)p;
            s1 += *(const VU *)(p + BYTES / 4);
            s2 += *(const VU *)(p + BYTES / 2);
            s3 += *(const VU *)(p + 3 * (BYTES / 4));
        }
        __asm__ volatile("" ::: "memory");
    }
    s0 += s1 + s2 + s3;
    return s0[0] + s0[1];
}
