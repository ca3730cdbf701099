/* A vector times rows of weights of 4 bits by products of bytes (nbits.h, nbits_body.h), to as many digits as float32
 * has.
 *
 * Eight numbers of x, which meet a lane's word of weights, are integers of 24 bits beside a scale; an integer is three
 * signed bytes, low + 256 * middle + 65536 * high. A word of weights is two words of four bytes:
 *
 *     q0 q1 q2 q3 q4 q5 q6 q7  ->  q0 | q2 | q4 | q6, times a digit of x0, x2, x4, x6,  and  q1 | q3 | q5 | q7 likewise
 *
 * Sums of the eight are exact. What an x is off by, 2^-24 of the largest of the eight, is less than the rounding that
 * their terms are allowed (u |x| (|w| + 2^bits * scale) each). Vectors of which that is not so (infinite, or below what
 * has such a scale) and other widths go the way of floats; the last word of `sums` says which way a vector went. */
extern const ev_ukr ev_ukr_table__avx512;

enum { NB_MOST = 8355000, NB_LANES = 16, NB_CHUNK = 128, NB_SEGMENT = 64, NB_ROWS = 4 };

typedef struct { /* for NB_CHUNK numbers */
    int8_t digit[3][2][64]; /* low, middle, high; of even and of odd numbers */
    float scale[NB_LANES];
    int32_t start[NB_LANES]; /* less the middle of the weights' range */
} EV_FN(nb_digits);

static inline int32_t *EV_FN(nb_has_digits)(const float *sums, int64_t padded)
{
    return (int32_t *)sums + (padded + EV_NBITS_PAD - 1) / EV_NBITS_PAD * EV_NBITS_PAD - 1;
}

/* Eight numbers of x, of which `some` are there; 0 where they have no digits. */
static inline int EV_FN(nb_eight)(const float *x, int64_t some, EV_FN(nb_digits) *to, int lane, float *sum)
{
    const __mmask8 there = some >= 8 ? 0xff : some > 0 ? (1 << some) - 1 : 0;
    const __m256 v = _mm256_maskz_loadu_ps(there, x), size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v);
    if (_mm256_cmp_ps_mask(size, _mm256_set1_ps(3.4028235e38f), _CMP_NLE_UQ)) return 0;
    const float most = _mm512_reduce_max_ps(_mm512_castps256_ps512(size)), scale = most / NB_MOST;
    if (most > 0 && most < 1e-30f) return 0;
    const __m512d whole = _mm512_mul_pd(_mm512_cvtps_pd(v), _mm512_set1_pd(most > 0 ? 1 / (double)scale : 0));
    __m256i left = _mm256_permutevar8x32_epi32(_mm512_cvtpd_epi32(whole), _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
    const int total = _mm512_reduce_add_epi32(_mm512_castsi256_si512(left));
    for (int d = 0; d < 3; d++) {
        const __m128i bytes = _mm256_cvtepi32_epi8(left); /* the digit is what the low byte is, with its sign */
        _mm_storeu_si32(to->digit[d][0] + 4 * lane, bytes);
        _mm_storeu_si32(to->digit[d][1] + 4 * lane, _mm_srli_si128(bytes, 4));
        left = _mm256_srai_epi32(_mm256_sub_epi32(left, _mm256_cvtepi8_epi32(bytes)), 8);
    }
    to->scale[lane] = scale;
    to->start[lane] = -8 * total;
    *sum = (float)total * scale;
    return 1;
}

static void EV_FN(nbits_spread_f32)(int bits, int64_t k, int64_t padded, const float *x, float *out, float *sums)
{
    EV_FN(nb_digits) *to = (EV_FN(nb_digits) *)out;
    int whole = bits == 4;
    for (int64_t p = 0; whole && p < padded; p += NB_CHUNK, to++)
        for (int l = 0; whole && l < NB_LANES; l++)
            whole = EV_FN(nb_eight)(x + p + 8 * l, k - p - 8 * l, to, l, sums + p / 8 + l);
    if (!whole) ev_ukr_table__avx512.nbits_spread_f32(bits, k, padded, x, out, sums);
    *EV_FN(nb_has_digits)(sums, padded) = whole;
}

/* How far the zero points of `count` blocks lie below the middle. */
static void EV_FN(nb_shifts)(const ev_nbits *w, int64_t row, int64_t first, int64_t count, float *shift)
{
    if (w->zero_type != EV_UINT8) {
        const int64_t at = (row * w->blocks + first) * ev_item_size(w->zero_type);
        ev_active.cast(w->zero_type, EV_FLOAT, count, (const char *)w->zeros + at, shift);
    }
    for (int64_t i = 0; i < count; i += NB_LANES) {
        __m512 zero;
        if (w->zero_type == EV_UINT8) {
            const int64_t byte = (first + i) / 2, left = w->zero_bytes - byte;
            const __m128i two = _mm_maskz_loadu_epi8(left >= 8 ? 0xff : (1 << left) - 1,
                                                     (const uint8_t *)w->zeros + row * w->zero_bytes + byte);
            const __m128i low = _mm_and_si128(two, _mm_set1_epi8(15));
            const __m128i high = _mm_and_si128(_mm_srli_epi16(two, 4), _mm_set1_epi8(15));
            zero = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(low, high)));
        } else {
            zero = _mm512_loadu_ps(shift + i);
        }
        _mm512_storeu_ps(shift + i, _mm512_sub_ps(_mm512_set1_ps(8), zero));
    }
}

/* `rows` rows times the vector, which share what is loaded of it; the rows to come are fetched meanwhile, as no
 * processor follows a stream past its page. */
static inline __attribute__((always_inline)) void EV_FN(nb_rows)(
    const ev_nbits *w, int64_t row, const EV_FN(nb_digits) *x, const float *sums, const int rows, float *y)
{
    const __m512i nibble = _mm512_set1_epi8(15), zero = _mm512_setzero_si512();
    const __m512i number = _mm512_setr_epi32(0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120);
    const __m512i block_of = _mm512_srl_epi32(number, _mm_cvtsi32_si128(w->log_block));
    const uint8_t *q = w->q + row * w->row_bytes;
    const int64_t next = rows * w->row_bytes, next_scale = w->scale_type == EV_FLOAT ? rows * w->blocks : 0;
    float scale[NB_ROWS][NB_SEGMENT], shift[NB_ROWS][NB_SEGMENT + NB_LANES];
    const float *scales[NB_ROWS];
    __m512 sum0 = _mm512_setzero_ps(), sum1 = sum0, sum2 = sum0, sum3 = sum0;
    int64_t room = w->row_bytes;
    for (int64_t first = 0; first < w->blocks; first += NB_SEGMENT) {
        const int64_t left = w->blocks - first, count = left < NB_SEGMENT ? left : NB_SEGMENT;
        for (int r = 0; r < rows; r++) {
            const int64_t at = (row + r) * w->blocks + first;
            scales[r] = (const float *)w->scales + at;
            if (w->scale_type != EV_FLOAT) {
                ev_active.cast(w->scale_type, EV_FLOAT, count,
                               (const char *)w->scales + at * ev_item_size(w->scale_type), scale[r]);
                scales[r] = scale[r];
            }
            if (w->zeros) EV_FN(nb_shifts)(w, row + r, first, count, shift[r]);
        }
        for (int64_t p = 0; p < count << w->log_block; p += NB_CHUNK, q += 64, room -= 64, x++, sums += NB_LANES) {
            const int64_t block = p >> w->log_block;
            __mmask16 blocks = 0xffff;
            __mmask64 bytes = ~0ull;
            if (count - block < NB_LANES) blocks = (__mmask16)((1 << (count - block)) - 1);
            if (room < 64) bytes = room > 0 ? (1ull << room) - 1 : 0;
            const __m512i *digit = (const __m512i *)x->digit;
#define SCALES(v) _mm512_permutexvar_ps(block_of, _mm512_maskz_loadu_ps(blocks, (v) + block))
#define X(r)                                                                                              \
            if (rows > r) {                                                                               \
                const uint8_t *from = q + r * w->row_bytes;                                               \
                const __m512i v = _mm512_maskz_loadu_epi8(bytes, from);                                   \
                const __m512i even = _mm512_and_si512(v, nibble);                                         \
                const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(v, 4), nibble);                    \
                _mm_prefetch((const char *)from + next, _MM_HINT_T1);                                     \
                _mm_prefetch((const char *)(scales[r] + block + next_scale), _MM_HINT_T1);                \
                const __m512i low = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(start, even, d0), odd, d1);   \
                const __m512i middle = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(zero, even, d2), odd, d3); \
                const __m512i high = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(zero, even, d4), odd, d5);   \
                const __m512i above = _mm512_add_epi32(middle, _mm512_slli_epi32(high, 8));               \
                const __m512i all = _mm512_add_epi32(low, _mm512_slli_epi32(above, 8));                   \
                __m512 part = _mm512_mul_ps(_mm512_cvtepi32_ps(all), x_scale);                            \
                if (w->zeros) part = _mm512_fmadd_ps(SCALES(shift[r]), x_sum, part);                      \
                sum##r = _mm512_fmadd_ps(SCALES(scales[r]), part, sum##r);                                \
            }
            const __m512i d0 = digit[0], d1 = digit[1], d2 = digit[2], d3 = digit[3], d4 = digit[4], d5 = digit[5];
            const __m512i start = _mm512_load_si512(x->start);
            const __m512 x_scale = _mm512_load_ps(x->scale), x_sum = _mm512_loadu_ps(sums);
            X(0) X(1) X(2) X(3)
#undef X
#undef SCALES
        }
    }
    y[0] = _mm512_reduce_add_ps(sum0);
    if (rows == 1) return;
    y[1] = _mm512_reduce_add_ps(sum1);
    y[2] = _mm512_reduce_add_ps(sum2);
    y[3] = _mm512_reduce_add_ps(sum3);
}

static void EV_FN(nbits_dot_f32)(const ev_nbits *w, int64_t first, int64_t rows, const float *xs, const float *sums,
                                 float *y)
{
    if (!*EV_FN(nb_has_digits)(sums, w->blocks << w->log_block)) {
        ev_ukr_table__avx512.nbits_dot_f32(w, first, rows, xs, sums, y);
        return;
    }
    const EV_FN(nb_digits) *x = (const EV_FN(nb_digits) *)xs;
    int64_t j = 0;
    for (; j + NB_ROWS <= rows; j += NB_ROWS) EV_FN(nb_rows)(w, first + j, x, sums, NB_ROWS, y + j);
    for (; j < rows; j++) EV_FN(nb_rows)(w, first + j, x, sums, 1, y + j);
}
