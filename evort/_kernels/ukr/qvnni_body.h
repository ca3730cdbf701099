/* Sums of products of bytes by vpdpbusd (VNNI): four products of uint8 by int8 are added to an int32 lane, and nothing
 * saturates. A panel's quad of 16 columns is one vector. */

/* mr rows by nv panels. Rows are named variables, as GCC keeps arrays of vectors in memory. */
#define EV_ROWS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
static inline __attribute__((always_inline)) void EV_FN(qc_dots)(
    int64_t quads, const int8_t *a, int64_t lda, const uint8_t *panel, const int32_t *offset, int64_t step, int32_t *sum,
    int64_t ld, const int mr, const int nv)
{
    const int8_t *a4 = a + 4 * lda, *a8 = a + 8 * lda;
#define X(i) __m512i p##i = _mm512_setzero_si512(), q##i = p##i;
    EV_ROWS(X)
#undef X
    for (; quads > 0; quads--, a += 4, a4 += 4, a8 += 4, offset++) {
        const uint8_t *b = panel + *offset;
        const __m512i b0 = _mm512_loadu_si512(b), b1 = nv > 1 ? _mm512_loadu_si512(b + step) : b0;
#define X(i)                                                                                    \
        if (mr > i) {                                                                           \
            int32_t four;                                                                       \
            memcpy(&four, (i < 4 ? a : i < 8 ? a4 : a8) + (i % 4) * lda, 4);                    \
            const __m512i w = _mm512_set1_epi32(four);                                          \
            p##i = _mm512_dpbusd_epi32(p##i, b0, w);                                            \
            if (nv > 1) q##i = _mm512_dpbusd_epi32(q##i, b1, w);                                \
        }
        EV_ROWS(X)
#undef X
    }
#define X(i)                                                                                    \
    if (mr > i) {                                                                               \
        _mm512_storeu_si512(sum + i * ld, p##i);                                                \
        if (nv > 1) _mm512_storeu_si512(sum + i * ld + EV_QC_NR, q##i);                         \
    }
    EV_ROWS(X)
#undef X
}

static void EV_FN(qc_tile)(int64_t m, int64_t n, int s, int64_t k, const void *a, int64_t lda, const uint8_t *b,
                           const int32_t *offset, int64_t step, const ev_qextra *const *extra, const int32_t *extras,
                           int32_t *sum, int64_t ld)
{
    (void)s, (void)extra, (void)extras;
    for (; n > 0; n -= 2 * EV_QC_NR, b += 2 * step, sum += 2 * EV_QC_NR) {
        const int8_t *w = a;
        int32_t *to = sum;
        int64_t i = m;
#define CALL(mr)                                                                                \
        for (; i >= mr; i -= mr, w += mr * lda, to += mr * ld)                                  \
            if (n > EV_QC_NR) EV_FN(qc_dots)(k / 4, w, lda, b, offset, step, to, ld, mr, 2);    \
            else EV_FN(qc_dots)(k / 4, w, lda, b, offset, step, to, ld, mr, 1)
        CALL(12);
        CALL(4);
        CALL(1);
#undef CALL
    }
}

/* One row by a matrix (qgemm_body.h) by vpdpwssd: numbers of 16 bits, two at a time ------------------------------------ */

/* 32 bytes as int16. */
static inline __attribute__((always_inline)) __m512i EV_FN(q_wide)(__m256i v, const int is_signed)
{
    return is_signed ? _mm512_cvtepi8_epi16(v) : _mm512_cvtepu8_epi16(v);
}

/* sums[i*inc] += the sum of the lanes of acc[i], for n of eight. */
static inline __attribute__((always_inline)) void EV_FN(q_add_lanes)(const __m512i *acc, int64_t n, int32_t *sums, int64_t inc)
{
    __m256i h[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        h[i] = _mm256_add_epi32(_mm512_castsi512_si256(acc[i]), _mm512_extracti64x4_epi64(acc[i], 1));
    const __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(h[0], h[1]), _mm256_hadd_epi32(h[2], h[3]));
    const __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(h[4], h[5]), _mm256_hadd_epi32(h[6], h[7]));
    const __m256i total = _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
    if (inc == 1) {
        const __mmask8 there = (__mmask8)(n >= 8 ? 0xff : (1u << n) - 1);
        _mm256_mask_storeu_epi32(sums, there, _mm256_add_epi32(total, _mm256_maskz_loadu_epi32(there, sums)));
    } else {
        int32_t t[8];
        _mm256_storeu_si256((__m256i *)t, total);
        for (int64_t i = 0; i < 8 && i < n; i++) sums[i * inc] += t[i];
    }
}

/* Eight rows of W at a time; their sums are added up across the lanes together. */
static inline __attribute__((always_inline)) void EV_FN(q_dot_rows)(int64_t n, int64_t k, const int16_t *x, const uint8_t *w,
                                                                    int64_t ld, const int is_signed, int32_t *sums, int64_t inc)
{
    for (int64_t j = 0; j < n; j += 8, w += 8 * ld) {
        const uint8_t *r[8];
        __m512i acc[8];
        for (int i = 0; i < 8; i++) r[i] = w + (j + i < n ? i : 0) * ld, acc[i] = _mm512_setzero_si512();
        for (int64_t p = 0; p < k; p += 32) {
            const __mmask32 there = k - p >= 32 ? ~0u : (1u << (k - p)) - 1;
            const __m512i v = _mm512_maskz_loadu_epi16(there, x + p);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++)
                acc[i] = _mm512_dpwssd_epi32(acc[i], v, EV_FN(q_wide)(_mm256_maskz_loadu_epi8(there, r[i] + p), is_signed));
        }
        EV_FN(q_add_lanes)(acc, n - j, sums + j * inc, inc);
    }
}

/* Int8 by vpdpbusd takes x as bytes: unsigned ones; signed ones, to which those of W, with 128 added, are the unsigned
 * (128 times their sum is taken off once); or x + less, where what is less, times the sum of each row, is taken off. */
enum { Q_UNSIGNED, Q_SIGNED, Q_SHIFTED, Q_BLOCK = 1024 };

typedef struct {
    int form, less;
    int32_t add; /* to each sum */
    uint8_t x[Q_BLOCK];
} EV_FN(q_bytes);

/* 1 where x does not fit: no 8 bits less a zero point are that far apart, but x may be any. */
static int EV_FN(q_to_bytes)(int64_t n, const int16_t *x, EV_FN(q_bytes) *b)
{
    __m512i low = _mm512_setzero_si512(), high = low, total = low;
    for (int64_t i = 0; i < n; i += 32) {
        const __m512i v = _mm512_maskz_loadu_epi16(n - i >= 32 ? ~0u : (1u << (n - i)) - 1, x + i);
        low = _mm512_min_epi16(low, v);
        high = _mm512_max_epi16(high, v);
        total = _mm512_dpwssd_epi32(total, v, _mm512_set1_epi16(1));
    }
    /* the least of pairs, as 32 bits, and then of all */
    const int least = _mm512_reduce_min_epi32(_mm512_min_epi32(_mm512_slli_epi32(low, 16), low)) >> 16;
    const int most = _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_slli_epi32(high, 16), high)) >> 16;
    if (most - least > 255) return 1;
    b->form = least == 0 ? Q_UNSIGNED : least >= -128 && most <= 127 ? Q_SIGNED : Q_SHIFTED;
    b->less = b->form == Q_SHIFTED ? -least : 0;
    b->add = b->form == Q_SIGNED ? -128 * _mm512_reduce_add_epi32(total) : 0;
    for (int64_t i = 0; i < n; i += 32) {
        const __mmask32 there = n - i >= 32 ? ~0u : (1u << (n - i)) - 1;
        const __m512i v = _mm512_add_epi16(_mm512_maskz_loadu_epi16(there, x + i), _mm512_set1_epi16((int16_t)b->less));
        _mm256_mask_storeu_epi8(b->x + i, there, _mm512_cvtepi16_epi8(v));
    }
    return 0;
}

/* Rows are named variables, as GCC keeps arrays of vectors in memory. */
#define EV_EIGHT(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
static inline __attribute__((always_inline)) void EV_FN(q_dot_bytes)(int64_t n, int64_t k, const EV_FN(q_bytes) *b, const int form,
                                                                     const uint8_t *w, int64_t ld, int32_t *sums, int64_t inc)
{
    const __m512i less = _mm512_set1_epi8((char)b->less), flip = _mm512_set1_epi8(-128);
    const __m512i add = _mm512_zextsi128_si512(_mm_cvtsi32_si128(b->add));
    for (int64_t j = 0; j < n; j += 8, w += 8 * ld) {
#define X(i)                                              \
    const uint8_t *r##i = w + (j + i < n ? i : 0) * ld; \
    __m512i acc##i = add, all##i = _mm512_setzero_si512();
        EV_EIGHT(X)
#undef X
        for (int64_t p = 0; p < k; p += 64) {
            const __mmask64 there = k - p >= 64 ? ~0ull : (1ull << (k - p)) - 1;
            const __m512i v = _mm512_maskz_loadu_epi8(there, b->x + p);
#define X(i)                                                                                      \
    {                                                                                             \
        const __m512i row = _mm512_maskz_loadu_epi8(there, r##i + p);                             \
        if (form == Q_SIGNED) acc##i = _mm512_dpbusd_epi32(acc##i, _mm512_xor_si512(row, flip), v); \
        else acc##i = _mm512_dpbusd_epi32(acc##i, v, row);                                        \
        if (form == Q_SHIFTED) all##i = _mm512_dpbusd_epi32(all##i, less, row);                   \
    }
            EV_EIGHT(X)
#undef X
        }
#define X(i) form == Q_SHIFTED ? _mm512_sub_epi32(acc##i, all##i) : acc##i,
        const __m512i acc[8] = {EV_EIGHT(X)};
#undef X
        EV_FN(q_add_lanes)(acc, n - j, sums + j * inc, inc);
    }
}
#undef EV_EIGHT

static void EV_FN(qdot)(int64_t n, int64_t k, const int16_t *x, const uint8_t *w, int64_t ld, int is_signed, int32_t *sums,
                        int64_t inc)
{
    EV_FN(q_bytes) b;
    if (!is_signed) {
        EV_FN(q_dot_rows)(n, k, x, w, ld, 0, sums, inc);
        return;
    }
    for (int64_t p = 0; p < k; p += Q_BLOCK, x += Q_BLOCK, w += Q_BLOCK) {
        const int64_t some = k - p < Q_BLOCK ? k - p : Q_BLOCK;
        if (EV_FN(q_to_bytes)(some, x, &b)) EV_FN(q_dot_rows)(n, some, x, w, ld, 1, sums, inc);
        else if (b.form == Q_UNSIGNED) EV_FN(q_dot_bytes)(n, some, &b, Q_UNSIGNED, w, ld, sums, inc);
        else if (b.form == Q_SIGNED) EV_FN(q_dot_bytes)(n, some, &b, Q_SIGNED, w, ld, sums, inc);
        else EV_FN(q_dot_bytes)(n, some, &b, Q_SHIFTED, w, ld, sums, inc);
    }
}

/* Sixteen sums of the 64 of a line: as unpacking bytes leaves two lines, eight and, eight further on, eight more. */
static inline __m512i EV_FN(q_sums)(const int32_t *sums)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)sums)),
                              _mm256_loadu_si256((const __m256i *)(sums + 16)), 1);
}

static inline void EV_FN(q_set_sums)(int32_t *sums, __m512i s)
{
    _mm256_storeu_si256((__m256i *)sums, _mm512_castsi512_si256(s));
    _mm256_storeu_si256((__m256i *)(sums + 16), _mm512_extracti64x4_epi64(s, 1));
}

/* Lines of eight rows of W at a time, and fetches those of the next eight: a row may be pages behind the one before. */
static inline __attribute__((always_inline)) void EV_FN(q_axpy_rows)(int64_t n, int64_t k, const int16_t *x, const uint8_t *w,
                                                                     int64_t ld, const int is_signed, int32_t *sums)
{
    enum { ROWS = 8 };
    for (int64_t p = 0; p < k; p += ROWS, w += ROWS * ld) {
        __m512i xs[ROWS / 2];
        const uint8_t *r[ROWS]; /* rows past the last: that one, times 0 */
        for (int i = 0; i < ROWS; i++) r[i] = w + (p + i < k ? i : k - 1 - p) * ld;
        for (int i = 0; i < ROWS; i += 2)
            xs[i / 2] = _mm512_set1_epi32((int32_t)((p + i < k ? (uint16_t)x[p + i] : 0) |
                                                    (p + i + 1 < k ? (uint32_t)(uint16_t)x[p + i + 1] << 16 : 0)));
        for (int64_t j = 0; j < n; j += 64) {
            const int64_t left = n - j;
            const __mmask64 there = left < 64 ? (1ull << left) - 1 : ~0ull;
            int32_t part[64] = {0}, *to = left < 64 ? part : sums + j;
            if (left < 64) memcpy(part, sums + j, (size_t)left * sizeof *part);
            __m512i s0 = EV_FN(q_sums)(to), s1 = EV_FN(q_sums)(to + 32);
            __m512i t0 = EV_FN(q_sums)(to + 8), t1 = EV_FN(q_sums)(to + 40);
#pragma GCC unroll 4
            for (int i = 0; i < ROWS; i += 2) {
                const __m512i u = _mm512_maskz_loadu_epi8(there, r[i] + j), v = _mm512_maskz_loadu_epi8(there, r[i + 1] + j);
                const __m512i low = _mm512_unpacklo_epi8(u, v), high = _mm512_unpackhi_epi8(u, v), y = xs[i / 2];
                __builtin_prefetch(r[i] + ROWS * ld + j, 0, 2);
                __builtin_prefetch(r[i + 1] + ROWS * ld + j, 0, 2);
                s0 = _mm512_dpwssd_epi32(s0, y, EV_FN(q_wide)(_mm512_castsi512_si256(low), is_signed));
                s1 = _mm512_dpwssd_epi32(s1, y, EV_FN(q_wide)(_mm512_extracti64x4_epi64(low, 1), is_signed));
                t0 = _mm512_dpwssd_epi32(t0, y, EV_FN(q_wide)(_mm512_castsi512_si256(high), is_signed));
                t1 = _mm512_dpwssd_epi32(t1, y, EV_FN(q_wide)(_mm512_extracti64x4_epi64(high, 1), is_signed));
            }
            EV_FN(q_set_sums)(to, s0);
            EV_FN(q_set_sums)(to + 32, s1);
            EV_FN(q_set_sums)(to + 8, t0);
            EV_FN(q_set_sums)(to + 40, t1);
            if (left < 64) memcpy(sums + j, part, (size_t)left * sizeof *part);
        }
    }
}

/* The 64 sums of a line as unpacking quads of bytes leaves them, and back: as rows and columns of 4 x 4 fours. */
static inline void EV_FN(q_turn_sums)(int32_t *sums)
{
    __m512i *s = (__m512i *)sums;
    const __m512i a = _mm512_loadu_si512(s), b = _mm512_loadu_si512(s + 1);
    const __m512i c = _mm512_loadu_si512(s + 2), d = _mm512_loadu_si512(s + 3);
    const __m512i ab0 = _mm512_shuffle_i32x4(a, b, 0x44), ab1 = _mm512_shuffle_i32x4(a, b, 0xee);
    const __m512i cd0 = _mm512_shuffle_i32x4(c, d, 0x44), cd1 = _mm512_shuffle_i32x4(c, d, 0xee);
    _mm512_storeu_si512(s, _mm512_shuffle_i32x4(ab0, cd0, 0x88));
    _mm512_storeu_si512(s + 1, _mm512_shuffle_i32x4(ab0, cd0, 0xdd));
    _mm512_storeu_si512(s + 2, _mm512_shuffle_i32x4(ab1, cd1, 0x88));
    _mm512_storeu_si512(s + 3, _mm512_shuffle_i32x4(ab1, cd1, 0xdd));
}

/* The same of int8 by vpdpbusd, for whole lines: quads of rows are interleaved. */
static inline __attribute__((always_inline)) void EV_FN(q_axpy_bytes)(
    int64_t n, int64_t k, const EV_FN(q_bytes) *b, const int form, const uint8_t *w, int64_t ld, int32_t *sums)
{
    enum { ROWS = 8 };
    const __m512i flip = _mm512_set1_epi8(-128);
    for (int64_t j = 0; j < n; j += 64) EV_FN(q_turn_sums)(sums + j);
    for (int64_t j = 0; form == Q_SIGNED && j < n; j++) sums[j] += b->add;
    for (int64_t p = 0; p < k; p += ROWS, w += ROWS * ld) {
        const uint8_t *r[ROWS]; /* rows past the last: that one, times 0 */
        int32_t quad[2] = {0}, less[2] = {0};
        const int64_t left = k - p < ROWS ? k - p : ROWS;
        for (int i = 0; i < ROWS; i++) r[i] = w + (i < left ? i : left - 1) * ld;
        memcpy(quad, b->x + p, (size_t)left);
        memset(less, b->less, (size_t)left);
        const __m512i x0 = _mm512_set1_epi32(quad[0]), x1 = _mm512_set1_epi32(quad[1]);
        const __m512i less0 = _mm512_set1_epi32(less[0]), less1 = _mm512_set1_epi32(less[1]);
        for (int64_t j = 0; j < n; j += 64) {
            __m512i *to = (__m512i *)(sums + j);
            __m512i s[4], all[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) s[i] = _mm512_loadu_si512(to + i), all[i] = _mm512_setzero_si512();
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                __m512i q[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    q[i] = _mm512_loadu_si512(r[4 * h + i] + j);
                    if (form == Q_SIGNED) q[i] = _mm512_xor_si512(q[i], flip);
                    __builtin_prefetch(r[4 * h + i] + ROWS * ld + j, 0, 2);
                }
                const __m512i ab0 = _mm512_unpacklo_epi8(q[0], q[1]), ab1 = _mm512_unpackhi_epi8(q[0], q[1]);
                const __m512i cd0 = _mm512_unpacklo_epi8(q[2], q[3]), cd1 = _mm512_unpackhi_epi8(q[2], q[3]);
                const __m512i y[4] = {_mm512_unpacklo_epi16(ab0, cd0), _mm512_unpackhi_epi16(ab0, cd0),
                                      _mm512_unpacklo_epi16(ab1, cd1), _mm512_unpackhi_epi16(ab1, cd1)};
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    if (form == Q_SIGNED) s[i] = _mm512_dpbusd_epi32(s[i], y[i], h ? x1 : x0);
                    else s[i] = _mm512_dpbusd_epi32(s[i], h ? x1 : x0, y[i]);
                    if (form == Q_SHIFTED) all[i] = _mm512_dpbusd_epi32(all[i], h ? less1 : less0, y[i]);
                }
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                _mm512_storeu_si512(to + i, form == Q_SHIFTED ? _mm512_sub_epi32(s[i], all[i]) : s[i]);
        }
    }
    for (int64_t j = 0; j < n; j += 64) EV_FN(q_turn_sums)(sums + j);
}

/* At most 64 columns: their sums stay in registers over all rows, two of which are taken at a time. */
static inline __attribute__((always_inline)) void EV_FN(q_axpy_narrow)(int64_t n, int64_t k, const int16_t *x, const uint8_t *w,
                                                                       int64_t ld, const int is_signed, int32_t *sums)
{
    enum { SIDE = 4 };
    __m512i s[SIDE];
    __mmask16 there[SIDE];
    for (int b = 0; b < SIDE; b++) {
        const int64_t left = n - 16 * b;
        there[b] = (__mmask16)(left >= 16 ? 0xffff : left <= 0 ? 0 : (1u << left) - 1);
        s[b] = _mm512_maskz_loadu_epi32(there[b], sums + 16 * b);
    }
    for (int64_t p = 0; p < k; p += 2) {
        const uint8_t *u = w + p * ld, *v = p + 1 < k ? u + ld : u;
        const __m512i xs = _mm512_set1_epi32((int32_t)((uint16_t)x[p] | (p + 1 < k ? (uint32_t)(uint16_t)x[p + 1] << 16 : 0)));
#pragma GCC unroll 4
        for (int b = 0; b < SIDE; b++) {
            if (n <= 16 * b) break;
            const __m128i p0 = _mm_maskz_loadu_epi8(there[b], u + 16 * b), p1 = _mm_maskz_loadu_epi8(there[b], v + 16 * b);
            const __m256i both = _mm256_set_m128i(_mm_unpackhi_epi8(p0, p1), _mm_unpacklo_epi8(p0, p1));
            s[b] = _mm512_dpwssd_epi32(s[b], xs, EV_FN(q_wide)(both, is_signed));
        }
    }
    for (int b = 0; b < SIDE; b++) _mm512_mask_storeu_epi32(sums + 16 * b, there[b], s[b]);
}

static void EV_FN(qaxpy)(int64_t n, int64_t k, const int16_t *x, const uint8_t *w, int64_t ld, int is_signed,
                         int32_t *sums)
{
    const int64_t lines = is_signed ? n / 64 * 64 : 0;
    int64_t done = 0;
    if (lines) {
        EV_FN(q_bytes) b;
        for (; done < k; done += Q_BLOCK) {
            const int64_t some = k - done < Q_BLOCK ? k - done : Q_BLOCK;
            const uint8_t *from = w + done * ld;
            if (EV_FN(q_to_bytes)(some, x + done, &b)) EV_FN(q_axpy_rows)(lines, some, x + done, from, ld, 1, sums);
            else if (b.form == Q_UNSIGNED) EV_FN(q_axpy_bytes)(lines, some, &b, Q_UNSIGNED, from, ld, sums);
            else if (b.form == Q_SIGNED) EV_FN(q_axpy_bytes)(lines, some, &b, Q_SIGNED, from, ld, sums);
            else EV_FN(q_axpy_bytes)(lines, some, &b, Q_SHIFTED, from, ld, sums);
        }
        if (n == lines) return;
        n -= lines;
        w += lines;
        sums += lines;
    }
    if (n <= 64 && is_signed) EV_FN(q_axpy_narrow)(n, k, x, w, ld, 1, sums);
    else if (n <= 64) EV_FN(q_axpy_narrow)(n, k, x, w, ld, 0, sums);
    else EV_FN(q_axpy_rows)(n, k, x, w, ld, 0, sums);
}

/* Products of qgemm_body.h ------------------------------------------------------------------------------------------ */

static inline __attribute__((always_inline)) void EV_FN(q_dots)(
    int64_t quads, const uint8_t *a, int64_t lda, const uint8_t *b, const int a_unsigned, int add, int32_t *c,
    const int mr)
{
    const uint8_t *a4 = a + 4 * lda, *a8 = a + 8 * lda;
#define X(i) __m512i p##i = add && mr > i ? _mm512_loadu_si512(c + i * EV_QNR) : _mm512_setzero_si512();
    EV_ROWS(X)
#undef X
    for (; quads > 0; quads--, a += 4, a4 += 4, a8 += 4, b += 64) {
        const __m512i v = _mm512_loadu_si512(b);
#define X(i)                                                                                    \
        if (mr > i) {                                                                           \
            int32_t four;                                                                       \
            memcpy(&four, (i < 4 ? a : i < 8 ? a4 : a8) + (i % 4) * lda, 4);                    \
            const __m512i x = _mm512_set1_epi32(four);                                          \
            p##i = a_unsigned ? _mm512_dpbusd_epi32(p##i, x, v) : _mm512_dpbusd_epi32(p##i, v, x); \
        }
        EV_ROWS(X)
#undef X
    }
#define X(i) if (mr > i) _mm512_storeu_si512(c + i * EV_QNR, p##i);
    EV_ROWS(X)
#undef X
}
#undef EV_ROWS

static inline __attribute__((always_inline)) void EV_FN(q_panel)(int64_t m, int64_t quads, const uint8_t *a, int64_t lda,
                                                                 const uint8_t *b, const int a_unsigned, int add,
                                                                 int32_t *c)
{
#define CALL(mr) \
    for (; m >= mr; m -= mr, a += mr * lda, c += mr * EV_QNR) EV_FN(q_dots)(quads, a, lda, b, a_unsigned, add, c, mr)
    CALL(12);
    CALL(8);
    CALL(4);
    CALL(1);
#undef CALL
}

static void EV_FN(qgemm_u8)(int64_t m, int64_t n, int64_t quads, const uint8_t *a, int64_t lda, const uint8_t *b,
                            int a_unsigned, int presum, int add, int32_t *c)
{
    (void)n, (void)presum;
    if (a_unsigned) EV_FN(q_panel)(m, quads, a, lda, b, 1, add, c);
    else EV_FN(q_panel)(m, quads, a, lda, b, 0, add, c);
}

static void EV_FN(qhas_u8)(int *has)
{
    *has = 2;
}

static void EV_FN(qrow_sums)(int64_t m, int64_t k, const int8_t *a, int64_t lda, int add, int32_t *sums)
{
    const __m512i one = _mm512_set1_epi8(1);
    for (int64_t i = 0; i < m; i++, a += lda) {
        __m512i s = _mm512_setzero_si512();
        int64_t p = 0;
        for (; p + 64 <= k; p += 64) s = _mm512_dpbusd_epi32(s, one, _mm512_loadu_si512(a + p));
        s = _mm512_dpbusd_epi32(s, one, _mm512_maskz_loadu_epi8((1ull << (k - p)) - 1, a + p));
        sums[i] = _mm512_reduce_add_epi32(s) + (add ? sums[i] : 0);
    }
}

static void EV_FN(qpanel_sums)(int64_t n, int64_t quads, const int8_t *b, int add, int32_t *sums)
{
    const __m512i one = _mm512_set1_epi8(1);
    for (int64_t j = 0; j < n; j += EV_QNR, sums += EV_QNR) {
        __m512i s = add ? _mm512_loadu_si512(sums) : _mm512_setzero_si512(), t = _mm512_setzero_si512(), u = t;
        int64_t p = 0; /* three sums, as each addition waits for the one before */
        for (; p + 3 <= quads; p += 3, b += 12 * EV_QNR) {
            s = _mm512_dpbusd_epi32(s, one, _mm512_loadu_si512(b));
            t = _mm512_dpbusd_epi32(t, one, _mm512_loadu_si512(b + 4 * EV_QNR));
            u = _mm512_dpbusd_epi32(u, one, _mm512_loadu_si512(b + 8 * EV_QNR));
        }
        for (; p < quads; p++, b += 4 * EV_QNR) s = _mm512_dpbusd_epi32(s, one, _mm512_loadu_si512(b));
        _mm512_storeu_si512(sums, _mm512_add_epi32(s, _mm512_add_epi32(t, u)));
    }
}

/* Rows of W are used as they lie. */
static void EV_FN(qc_plain)(int *plain)
{
    *plain = 1;
}

/* Depthwise: 16 positions of a row of the output, four taps of a row of the kernel in each lane. ------------------- */

/* The bytes of lanes 4*i .. 4*i+3 are in the dwords from step*i on: their places there, and in 16 bytes of them. */
static inline void EV_FN(qd_orders)(int64_t step, __m512i *dwords, __m512i *bytes)
{
    const __m512i lane = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m512i place = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x01010101, 0x02020202, 0x03030303));
    *dwords = _mm512_add_epi32(_mm512_mullo_epi32(lane, _mm512_set1_epi32((int)step)),
                               _mm512_broadcast_i32x4(_mm_setr_epi32(0, 1, 2, 3)));
    *bytes = _mm512_add_epi32(_mm512_mullo_epi16(place, _mm512_set1_epi16((int16_t)step)), _mm512_set1_epi32(0x03020100));
}

/* For each of 16 positions, `step` apart, the four bytes from there on; elements that `mask` lacks are `zero`. */
static inline __attribute__((always_inline)) __m512i EV_FN(qd_quads)(const uint8_t *x, __mmask64 mask, __m512i zero,
                                                                     __m512i flip, __m512i dwords, __m512i bytes)
{
    const __m512i v = _mm512_xor_si512(_mm512_mask_loadu_epi8(zero, mask, x), flip);
    return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(dwords, v), bytes);
}

static void EV_FN(qd_map)(const ev_qdmap *g, const uint8_t *x, const int8_t *w, int64_t row, int64_t rows, int32_t *sum,
                          int *done)
{
    enum { MOST = 16 };
    const int64_t groups = (g->kernel_w + 3) / 4;
    int32_t weight[MOST][4];
    *done = g->kernel_h <= MOST && g->kernel_w <= MOST && g->stride_w <= 4;
    if (!*done) return;
    for (int64_t i = 0; i < g->kernel_h; i++) {
        const __mmask16 taps = (__mmask16)((1u << g->kernel_w) - 1);
        _mm_storeu_si128((__m128i *)weight[i], _mm_maskz_loadu_epi8(taps, w + i * g->kernel_w));
    }
    __m512i dwords, bytes;
    EV_FN(qd_orders)(g->stride_w, &dwords, &bytes);
    const __m512i flip = _mm512_set1_epi8((char)g->flip), zero = _mm512_set1_epi8((char)(g->zero ^ g->flip));
    const __m512i outside = _mm512_set1_epi8((char)g->zero);
    for (int64_t j = 0; j < g->out_w; j += 16) {
        const __mmask16 wanted = (__mmask16)(g->out_w - j >= 16 ? 0xffff : (1u << (g->out_w - j)) - 1);
        const int64_t left = j * g->stride_w - g->pad_w;
        __mmask64 mask[4];
        for (int64_t q = 0; q < groups; q++) {
            const int64_t from = left + 4 * q, lo = from < 0 ? -from : 0, hi = g->w - from < 64 ? g->w - from : 64;
            mask[q] = lo >= hi ? 0 : (hi == 64 ? ~0ull : (1ull << hi) - 1) & ~0ull << lo;
        }
#define QUADS(i, q)                                                                                                \
    ((i) < 0 || (i) >= g->h ? outside                                                                              \
                            : EV_FN(qd_quads)(x + (i) * g->w + left + 4 * (q), mask[q], zero, flip, dwords, bytes))
        int32_t *to = sum + j;
        if (g->kernel_h == 3 && groups == 1 && g->stride_h == 1) { /* rows of the image are shared */
            const __m512i w0 = _mm512_set1_epi32(weight[0][0]), w1 = _mm512_set1_epi32(weight[1][0]);
            const __m512i w2 = _mm512_set1_epi32(weight[2][0]);
            const int64_t top = row - g->pad_h;
            __m512i a = QUADS(top, 0), b = QUADS(top + 1, 0);
            for (int64_t r = 0; r < rows; r++, to += g->out_w) {
                const __m512i c = QUADS(top + r + 2, 0);
                __m512i s = _mm512_dpbusd_epi32(_mm512_setzero_si512(), a, w0);
                s = _mm512_dpbusd_epi32(s, b, w1);
                _mm512_mask_storeu_epi32(to, wanted, _mm512_dpbusd_epi32(s, c, w2));
                a = b, b = c;
            }
            continue;
        }
        for (int64_t r = row; r < row + rows; r++, to += g->out_w) {
            const int64_t top = r * g->stride_h - g->pad_h;
            __m512i s = _mm512_setzero_si512(), t = s;
            for (int64_t i = 0; i < g->kernel_h; i++) {
                s = _mm512_dpbusd_epi32(s, QUADS(top + i, 0), _mm512_set1_epi32(weight[i][0]));
                for (int64_t q = 1; q < groups; q++)
                    t = _mm512_dpbusd_epi32(t, QUADS(top + i, q), _mm512_set1_epi32(weight[i][q]));
            }
            _mm512_mask_storeu_epi32(to, wanted, _mm512_add_epi32(s, t));
        }
#undef QUADS
    }
}

/* Products of pairs of 16 bits, as qgemm_body.h has them: a row of sums is a vector, rows are named variables. */
#define EV_ROWS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
static inline __attribute__((always_inline)) void EV_FN(qpairs)(int64_t pairs, const int16_t *a, int64_t lda, const int16_t *b,
                                                                int add, int32_t *c, const int mr)
{
    typedef int32_t pair __attribute__((may_alias, aligned(2)));
#define X(i) __m512i s##i = i < mr && add ? _mm512_loadu_si512(c + i * EV_QNR) : _mm512_setzero_si512();
    EV_ROWS(X)
#undef X
    for (; pairs > 0; pairs--, a += 2, b += 2 * EV_QNR) {
        const __m512i w = _mm512_loadu_si512(b);
#define X(i) \
    if (i < mr) s##i = _mm512_dpwssd_epi32(s##i, w, _mm512_set1_epi32(*(const pair *)(a + 2 * i * lda)));
        EV_ROWS(X)
#undef X
    }
#define X(i) if (i < mr) _mm512_storeu_si512(c + i * EV_QNR, s##i);
    EV_ROWS(X)
#undef X
}
#undef EV_ROWS

static void EV_FN(qgemm_i16)(int64_t m, int64_t n, int64_t pairs, const int16_t *a, int64_t lda, const int16_t *b, int add,
                             int32_t *c)
{
    (void)n; /* of 16 columns, those that are not wanted cost nothing */
#define STEP(mr) \
    for (; m >= mr; m -= mr, a += 2 * mr * lda, c += mr * EV_QNR) EV_FN(qpairs)(pairs, a, lda, b, add, c, mr);
    STEP(8)
    STEP(4)
    STEP(1)
#undef STEP
}
