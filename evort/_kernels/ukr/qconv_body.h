/* Convolutions of integers.
 *
 *   W rows [K] of int8, where they lie or copied    B panels: K/4 quads of 16 columns, as uint8
 *       w0 w1 w2 w3 | w4 ...                            b00 b10 b20 b30, b01 b11 b21 b31, ... | b40 ...
 *
 * vpmaddubsw multiplies a quad of W with those of eight columns and adds products in pairs, in 16 bits, where it
 * saturates. It is made exact, whatever the weights: before a row is used, every group of weights whose results are
 * added up in 16 bits is looked at, and as long as its positive or its negative weights add up to more than 128 (128 *
 * 255 < 2^15), the largest leaves the row and joins its `extra` ones, which take a short way of their own. A group is S
 * quads: S = 4 is faster, S = 2 has fewer extras. Where even those are many, S = 1 stands for vpmaddwd, for which a quad
 * is split into 16-bit numbers; it needs twice as many multiplications, and nothing is taken out.
 *
 * int8 images are uint8 with the highest bit flipped, 128 more; zero points are the driver's business. */

enum { EV_FN(QC_LIMIT) = 128 };

/* Rows of W ------------------------------------------------------------------------------------------------------- */

static inline int EV_FN(qc_pair_fits)(int a, int b)
{
    return a + b <= EV_FN(QC_LIMIT) && a + b >= -EV_FN(QC_LIMIT);
}

/* Moves the largest weight of one sign out of group g of `row`: its lanes are bytes lane, lane+1, lane+4, lane+5 ... */
static int32_t EV_FN(qc_move)(int8_t *row, int64_t g, int s, int lane, int sign, ev_qextra *extra, int32_t count,
                              int32_t first)
{
    int64_t best = -1;
    for (int q = 0; q < s; q++)
        for (int t = 0; t < 2; t++) {
            const int64_t at = (g * s + q) * 4 + lane + t;
            if (row[at] * sign > 0 && (best < 0 || row[at] * sign > row[best] * sign)) best = at;
        }
    const int32_t quad = (int32_t)(best / 4);
    const int byte = (int)(best % 4), other = byte ^ 1;
    for (int32_t i = first; i < count; i++)
        if (extra[i].quad == quad && !extra[i].w[byte] &&
            EV_FN(qc_pair_fits)(extra[i].w[other], row[best])) {
            extra[i].w[byte] = row[best];
            row[best] = 0;
            return count;
        }
    extra[count] = (ev_qextra){quad, {0, 0, 0, 0}};
    extra[count].w[byte] = row[best];
    row[best] = 0;
    return count + 1;
}

/* Takes out of group g what could overflow; returns the new number of extras. */
static __attribute__((noinline)) int32_t EV_FN(qc_relieve)(int8_t *row, int64_t g, int s, ev_qextra *extra,
                                                           int32_t count)
{
    const int32_t first = count;
    for (int lane = 0; lane < 4; lane += 2)
        for (int sign = 1; sign >= -1; sign -= 2)
            for (;;) {
                int sum = 0;
                for (int q = 0; q < s; q++)
                    for (int t = 0; t < 2; t++) {
                        const int w = row[(g * s + q) * 4 + lane + t] * sign;
                        sum += w > 0 ? w : 0;
                    }
                if (sum <= EV_FN(QC_LIMIT)) break;
                count = EV_FN(qc_move)(row, g, s, lane, sign, extra, count, first);
            }
    return count;
}

/* Makes a row of k weights (a multiple of EV_QC_STEP) fit for groups of s quads; *count extras go to `extra`, which has
 * room for k/2. Where it is NULL, the row stays as it is, and *count says how many 16 weights have such a group. */
static void EV_FN(qc_prepare)(int64_t k, int s, int8_t *row, ev_qextra *extra, int32_t *count)
{
    int32_t found = 0;
#if defined(__AVX2__)
    const __m128i ones = _mm_set1_epi8(1), limit = _mm_set1_epi16(EV_FN(QC_LIMIT)), zero = _mm_setzero_si128();
    for (int64_t p = 0; p < k; p += 16) {
        const __m128i w = _mm_loadu_si128((const __m128i *)(row + p));
        __m128i up = _mm_maddubs_epi16(_mm_max_epi8(w, zero), ones);
        __m128i down = _mm_maddubs_epi16(_mm_sub_epi8(zero, _mm_min_epi8(w, zero)), ones);
        up = _mm_add_epi16(up, _mm_shuffle_epi32(up, 0xb1)); /* two quads */
        down = _mm_add_epi16(down, _mm_shuffle_epi32(down, 0xb1));
        if (s == 4) {
            up = _mm_add_epi16(up, _mm_shuffle_epi32(up, 0x4e));
            down = _mm_add_epi16(down, _mm_shuffle_epi32(down, 0x4e));
        }
        if (!_mm_movemask_epi8(_mm_cmpgt_epi16(_mm_max_epi16(up, down), limit))) continue;
        if (!extra) found++;
        else
            for (int64_t g = p / (4 * s); g < (p + 16) / (4 * s); g++)
                found = EV_FN(qc_relieve)(row, g, s, extra, found);
    }
#endif
    (void)k, (void)s, (void)row, (void)extra;
    *count = found;
}

/* A row for tiles with s = 1: quads w0 w2 w1 w3 of int16. */
static void EV_FN(qc_widen)(int64_t k, const int8_t *row, int16_t *to)
{
    int64_t p = 0;
#if defined(__AVX2__)
    const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    for (; p + 16 <= k; p += 16) {
        const __m128i w = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(row + p)), order);
        _mm256_storeu_si256((__m256i *)(to + p), _mm256_cvtepi8_epi16(w));
    }
#endif
    for (; p < k; p += 4) {
        to[p] = row[p];
        to[p + 1] = row[p + 2];
        to[p + 2] = row[p + 1];
        to[p + 3] = row[p + 3];
    }
}

/* n weights, `step` bytes apart, as int8 (flip: 0x80 for uint8, which become 128 less); returns their sum. */
static void EV_FN(qc_weights)(int64_t n, int64_t step, int flip, const uint8_t *src, int8_t *dst, int32_t *total)
{
    int32_t sum = 0;
    int64_t i = 0;
#if defined(__AVX2__)
    if (step == 1) {
        const __m256i ones = _mm256_set1_epi8(1), wide = _mm256_set1_epi16(1), f = _mm256_set1_epi8((char)flip);
        __m256i acc = _mm256_setzero_si256();
        for (; i + 32 <= n; i += 32) {
            const __m256i w = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(src + i)), f);
            _mm256_storeu_si256((__m256i *)(dst + i), w);
            acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(ones, w), wide));
        }
        int32_t part[8];
        memcpy(part, &acc, sizeof part);
        for (int j = 0; j < 8; j++) sum += part[j];
    }
#endif
    if (step == 1)
        for (; i < n; i++) {
            dst[i] = (int8_t)(src[i] ^ flip);
            sum += dst[i];
        }
    else
        for (; i < n; i++) {
            dst[i] = (int8_t)(src[i * step] ^ flip);
            sum += dst[i];
        }
    *total += sum;
}

/* Panels ---------------------------------------------------------------------------------------------------------- */

/* One quad of 16 columns from four rows. */
static inline void EV_FN(qc_quad)(const uint8_t *r0, const uint8_t *r1, const uint8_t *r2, const uint8_t *r3, int flip,
                                  uint8_t *dst)
{
#if defined(__SSE2__)
    const __m128i f = _mm_set1_epi8((char)flip);
    const __m128i a = _mm_xor_si128(_mm_loadu_si128((const __m128i *)r0), f);
    const __m128i b = _mm_xor_si128(_mm_loadu_si128((const __m128i *)r1), f);
    const __m128i c = _mm_xor_si128(_mm_loadu_si128((const __m128i *)r2), f);
    const __m128i d = _mm_xor_si128(_mm_loadu_si128((const __m128i *)r3), f);
    const __m128i ab0 = _mm_unpacklo_epi8(a, b), ab1 = _mm_unpackhi_epi8(a, b);
    const __m128i cd0 = _mm_unpacklo_epi8(c, d), cd1 = _mm_unpackhi_epi8(c, d);
    _mm_storeu_si128((__m128i *)dst, _mm_unpacklo_epi16(ab0, cd0));
    _mm_storeu_si128((__m128i *)(dst + 16), _mm_unpackhi_epi16(ab0, cd0));
    _mm_storeu_si128((__m128i *)(dst + 32), _mm_unpacklo_epi16(ab1, cd1));
    _mm_storeu_si128((__m128i *)(dst + 48), _mm_unpackhi_epi16(ab1, cd1));
#else
    for (int j = 0; j < EV_QC_NR; j++) {
        dst[4 * j] = r0[j] ^ flip;
        dst[4 * j + 1] = r1[j] ^ flip;
        dst[4 * j + 2] = r2[j] ^ flip;
        dst[4 * j + 3] = r3[j] ^ flip;
    }
#endif
}

/* Quads of n columns, and more up to a multiple of 16, from four rows that are `step` apart. */
static void EV_FN(qc_interleave)(int64_t n, const uint8_t *x, int64_t step, uint8_t *y)
{
    for (; n > 0; n -= EV_QC_NR, x += EV_QC_NR, y += 4 * EV_QC_NR)
        EV_FN(qc_quad)(x, x + step, x + 2 * step, x + 3 * step, 0, y);
}

/* k rows of a panel's columns to `rows`, 16 elements each (and 16 more behind the last). Where `careful`, nothing
 * beyond a run is read. */
static inline __attribute__((always_inline)) void EV_FN(qc_gather)(
    int64_t k, const char *image, const int32_t *offset, const ev_qrun *run, int runs, int careful, char *rows,
    const int64_t size)
{
    for (int64_t p = 0; p < k; p++, rows += EV_QC_NR * size)
        for (int i = 0; i < runs; i++) {
            const char *from = image + (run[i].from + offset[p]) * size;
            /* A run may write past its end: what follows it is written later. */
            if (careful) memcpy(rows + run[i].at * size, from, (size_t)(run[i].n * size));
            else memcpy(rows + run[i].at * size, from, (size_t)(EV_QC_NR * size));
        }
}

/* Row p of the panel: offset[p] in the image and on, along the runs. k is a multiple of 4; `rows` holds 16*(k+1)
 * bytes. flip: 0x80 for int8. */
static void EV_FN(qc_pack)(int64_t k, const uint8_t *image, const int32_t *offset, const ev_qrun *run, int runs,
                           int careful, int flip, uint8_t *rows, uint8_t *dst)
{
    if (runs == 1 && !careful) {
        const uint8_t *from = image + run->from;
        for (int64_t p = 0; p < k; p += 4, dst += 64)
            EV_FN(qc_quad)(from + offset[p], from + offset[p + 1], from + offset[p + 2], from + offset[p + 3], flip, dst);
        return;
    }
    EV_FN(qc_gather)(k, (const char *)image, offset, run, runs, careful, (char *)rows, 1);
    for (int64_t p = 0; p < k; p += 4, dst += 64, rows += 64)
        EV_FN(qc_quad)(rows, rows + 16, rows + 32, rows + 48, flip, dst);
}

/* The same for int16, in pairs; k is even. */
static void EV_FN(qc_pack_i16)(int64_t k, const int16_t *image, const int32_t *offset, const ev_qrun *run, int runs,
                               int careful, int16_t *rows, int16_t *dst)
{
    EV_FN(qc_gather)(k, (const char *)image, offset, run, runs, careful, (char *)rows, 2);
    for (int64_t p = 0; p < k; p += 2, dst += 32, rows += 32)
        for (int j = 0; j < EV_QC_NR; j++) {
            dst[2 * j] = rows[j];
            dst[2 * j + 1] = rows[16 + j];
        }
}

/* y[i] = x[2 * i] ^ flip. What lies before x[0] or behind x[2 * (n - 1)] is not read. */
static void EV_FN(qc_stage_halves)(int64_t n, const uint8_t *x, uint8_t flip, uint8_t *y)
{
    int64_t i = 0;
#if defined(__SSE2__)
    const __m128i f = _mm_set1_epi8((char)flip), even = _mm_set1_epi16(0xFF);
    for (; i + 16 < n; i += 16) {
        const __m128i a = _mm_and_si128(_mm_loadu_si128((const __m128i *)(x + 2 * i)), even);
        const __m128i b = _mm_and_si128(_mm_loadu_si128((const __m128i *)(x + 2 * i + 16)), even);
        _mm_storeu_si128((__m128i *)(y + i), _mm_xor_si128(_mm_packus_epi16(a, b), f));
    }
    if (n > 8) { /* at most 16 are left: the odd bytes of what ends with the last one, once or twice */
        for (int64_t from = i + 8 < n ? i : n - 8; from < n; from = from < n - 8 ? n - 8 : n) {
            const __m128i a = from ? _mm_srli_epi16(_mm_loadu_si128((const __m128i *)(x + 2 * from - 1)), 8)
                                   : _mm_and_si128(_mm_loadu_si128((const __m128i *)x), even);
            _mm_storel_epi64((__m128i *)(y + from), _mm_xor_si128(_mm_packus_epi16(a, a), f));
        }
        return;
    }
#endif
    for (; i < n; i++) y[i] = x[2 * i] ^ flip;
}

static void EV_FN(q_quantize)(int dtype, int64_t n, const float *x, const float *scale, const void *zero,
                              int64_t stride, int32_t lo, int32_t hi, void *y); /* qelementwise_body.h */

/* n elements of an image's row, `step` apart, to the staged image: uint8 (int8 flipped) or int16. */
static void EV_FN(qc_stage)(int type, int64_t n, int64_t step, const void *src, const void *params, void *dst)
{
    if (type == EV_FLOAT) {
        /* params: scale, zero point (as the staged image has it), lower and upper bound, 2 for an int16 image; 4: it
         * stays as it is */
        const float *x = src, *p = params, scale = p[0], least = p[2] - p[1], most = p[3] - p[1];
        const int32_t zero = (int32_t)p[1];
        if (p[4] == 4) {
            float *y = dst;
            for (int64_t i = 0; i < n; i++) y[i] = x[i * step];
        } else if (p[4] == 2) {
            int16_t *y = dst;
            for (int64_t i = 0; i < n; i++) y[i] = (int16_t)(EV_FN(quantized)(x[i * step] / scale, least, most) + zero);
        } else {
            uint8_t *y = dst;
            if (step == 1)
                EV_FN(q_quantize)(EV_UINT8, n, x, &scale, &(uint8_t){(uint8_t)zero}, 0, (int32_t)p[2], (int32_t)p[3], y);
            else
                for (int64_t i = 0; i < n; i++)
                    y[i] = (uint8_t)(EV_FN(quantized)(x[i * step] / scale, least, most) + zero);
        }
    } else if (type == EV_INT16) {
        const int16_t *x = src;
        int16_t *y = dst;
        for (int64_t i = 0; i < n; i++) y[i] = x[i * step];
    } else {
        const uint8_t *x = src;
        uint8_t *y = dst;
        const uint8_t flip = type == EV_INT8 ? 0x80 : 0;
        if (step == 1)
            for (int64_t i = 0; i < n; i++) y[i] = x[i] ^ flip;
        else if (step == 2)
            EV_FN(qc_stage_halves)(n, x, flip, y);
        else
            for (int64_t i = 0; i < n; i++) y[i] = x[step * i] ^ flip;
    }
}

/* Rows of an image: x_step elements apart in x, y_step in y. */
static void EV_FN(qc_stage_rows)(int type, int64_t rows, int64_t n, int64_t step, const void *x, int64_t x_step,
                                 const void *params, void *y, int64_t y_step)
{
    const int64_t from = type == EV_FLOAT ? 4 : type == EV_INT16 ? 2 : 1;
    const int64_t to = type == EV_FLOAT ? (int64_t)((const float *)params)[4] : from; /* bytes of an element */
    for (int64_t r = 0; r < rows; r++)
        EV_FN(qc_stage)(type, n, step, (const char *)x + r * x_step * from, params, (char *)y + r * y_step * to);
}

/* Depthwise -------------------------------------------------------------------------------------------------------- */

/* sum[j] = sum over the pairs of taps of wa * x[offset[a] + j] + wb * x[offset[b] + j], j in [0, n); n is a multiple of
 * EV_QD_LANES, and so many elements can be read behind the last. Pairs up to one with `last` are added up in 16 bits,
 * which hold them: see qd_program. */
static void EV_FN(qd_taps)(int64_t n, const uint8_t *x, const int32_t *offset, const ev_qtaps *taps, int64_t pairs,
                           int32_t *sum)
{
#if defined(__AVX2__)
    for (int64_t j = 0; j < n; j += EV_QD_LANES, x += EV_QD_LANES, sum += EV_QD_LANES) {
        __m256i c0 = _mm256_setzero_si256(), c1 = c0, c2 = c0, c3 = c0, s = c0, t = c0;
        for (int64_t i = 0; i < pairs; i++) {
            int16_t two;
            memcpy(&two, &taps[i].wa, 2);
            const __m256i w = _mm256_set1_epi16(two);
            const __m256i a = _mm256_loadu_si256((const __m256i *)(x + offset[taps[i].a]));
            const __m256i b = _mm256_loadu_si256((const __m256i *)(x + offset[taps[i].b]));
            s = _mm256_add_epi16(s, _mm256_maddubs_epi16(_mm256_unpacklo_epi8(a, b), w));
            t = _mm256_add_epi16(t, _mm256_maddubs_epi16(_mm256_unpackhi_epi8(a, b), w));
            if (taps[i].last) {
                c0 = _mm256_add_epi32(c0, _mm256_srai_epi32(_mm256_unpacklo_epi16(s, s), 16));
                c1 = _mm256_add_epi32(c1, _mm256_srai_epi32(_mm256_unpackhi_epi16(s, s), 16));
                c2 = _mm256_add_epi32(c2, _mm256_srai_epi32(_mm256_unpacklo_epi16(t, t), 16));
                c3 = _mm256_add_epi32(c3, _mm256_srai_epi32(_mm256_unpackhi_epi16(t, t), 16));
                s = t = _mm256_setzero_si256();
            }
        }
        /* Lanes are 0-3 16-19, 4-7 20-23, 8-11 24-27, 12-15 28-31. */
        _mm256_storeu_si256((__m256i *)sum, _mm256_permute2x128_si256(c0, c1, 0x20));
        _mm256_storeu_si256((__m256i *)(sum + 8), _mm256_permute2x128_si256(c2, c3, 0x20));
        _mm256_storeu_si256((__m256i *)(sum + 16), _mm256_permute2x128_si256(c0, c1, 0x31));
        _mm256_storeu_si256((__m256i *)(sum + 24), _mm256_permute2x128_si256(c2, c3, 0x31));
    }
#else
    for (int64_t j = 0; j < n; j++) sum[j] = 0;
    for (int64_t i = 0; i < pairs; i++) {
        const uint8_t *a = x + offset[taps[i].a], *b = x + offset[taps[i].b];
        const int wa = taps[i].wa, wb = taps[i].wb;
        for (int64_t j = 0; j < n; j++) sum[j] += a[j] * wa + b[j] * wb;
    }
#endif
}

/* Sums of rows [row, row + rows) of a map, out_w in a row: the same without a copy of the image and without a program.
 * *done: whether there is such a kernel for this window. */
static void EV_FN(qd_map)(const ev_qdmap *g, const uint8_t *x, const int8_t *w, int64_t row, int64_t rows, int32_t *sum,
                          int *done)
{
    (void)g, (void)x, (void)w, (void)row, (void)rows, (void)sum;
    *done = 0;
}

/* int16 images: weights w[i] of taps i. The caller has seen to it that 32 bits hold the sums. */
static void EV_FN(qd_taps_i16)(int64_t n, const int16_t *x, const int32_t *offset, const int16_t *w, int64_t taps,
                               int32_t *sum)
{
#if defined(__AVX2__)
    /* Pairs of taps; two products of 16 by 9 bits add up to less than 2^25. */
    for (int64_t j = 0; j < n; j += 16, x += 16, sum += 16) {
        __m256i p = _mm256_setzero_si256(), q = p;
        for (int64_t i = 0; i < taps; i += 2) {
            const int two = i + 1 < taps;
            const __m256i a = _mm256_loadu_si256((const __m256i *)(x + offset[i]));
            const __m256i b = two ? _mm256_loadu_si256((const __m256i *)(x + offset[i + 1])) : _mm256_setzero_si256();
            const __m256i k = _mm256_set1_epi32((int)((uint32_t)(uint16_t)w[i] | (two ? (uint32_t)(uint16_t)w[i + 1] << 16 : 0)));
            p = _mm256_add_epi32(p, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), k));
            q = _mm256_add_epi32(q, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), k));
        }
        _mm256_storeu_si256((__m256i *)sum, _mm256_permute2x128_si256(p, q, 0x20));
        _mm256_storeu_si256((__m256i *)(sum + 8), _mm256_permute2x128_si256(p, q, 0x31));
    }
#else
    for (int64_t j = 0; j < n; j++) sum[j] = 0;
    for (int64_t i = 0; i < taps; i++) {
        const int16_t *a = x + offset[i];
        const int32_t k = w[i];
        for (int64_t j = 0; j < n; j++) sum[j] += a[j] * k;
    }
#endif
}
