/* Products with weights of a few bits; see nbits.h.
 *
 * A number becomes a float without a conversion: its bits, masked out where they lie in a word, are the low end of the
 * mantissa of a float whose exponent gives them the weight of ones, 2^(23-p) for bit p. Less that power and the middle
 * of the range, it is q - 2^(bits-1), exactly. A lane of a vector takes consecutive numbers of a row, one a step:
 *
 *     4 bits:   lane 0  q0 q1 .. q7     lane 1  q8 q9 .. q15    ...   (2 and 3 bits: 16 a lane, 8 bits: 4)
 *     step 0:   x0 q0 | x8 q8 | x16 q16 ...      step 1:   x1 q1 | x9 q9 | ...
 *
 * so the vector x is put into that order once (nbits_spread), not every row of the matrix. */

EV_VECTOR(uint32_t, vu32)

#define NB_V EV_FN(vf32)
#define NB_VU EV_FN(vf32u)
#define NB_W (EV_VECTOR_BYTES / 4)
#define NB_I EV_FN(vu32)
#define NB_INLINE static inline __attribute__((always_inline))
#define NB_EXPONENT(p) ((uint32_t)(127 + 23 - (p)) << 23)
#define NB_POWER(p) ((float)(1 << (23 - (p))))

/* Scales and zero points are widened for so many blocks of a row at a time: a multiple of any chunk's. */
enum { EV_FN(nb_segment) = 64 };

/* Numbers in a lane. */
NB_INLINE int EV_FN(nb_lane)(int bits) { return bits == 3 ? 16 : 32 / bits; }

static void EV_FN(nbits_spread_f32)(int bits, int64_t k, int64_t padded, const float *x, float *out, float *sums)
{
    const int lane = EV_FN(nb_lane)(bits), chunk = NB_W * lane;
    for (int64_t p = 0; p < padded; p += chunk, sums += NB_W)
        for (int l = 0; l < NB_W; l++) {
            float sum = 0;
            for (int s = 0; s < lane; s++) {
                const int64_t at = p + l * lane + s;
                const float v = at < k ? x[at] : 0;
                out[p + s * NB_W + l] = v;
                sum += v;
            }
            sums[l] = sum;
        }
}

/* Four numbers at a time, as floats in their own order: out[i] = weight p0 + i of a row, for i < n of one block. */
typedef float EV_FN(nb4) __attribute__((vector_size(16)));
typedef uint32_t EV_FN(nb4i) __attribute__((vector_size(16)));

NB_INLINE void EV_FN(nb_widen)(const int bits, const uint8_t *row, int64_t row_bytes, int64_t p0, int64_t n,
                               float shift, float scale, float *out)
{
    const uint32_t mask = (1u << bits) - 1;
    const float base = (float)(1 << (bits - 1)) - shift; /* the zero point */
    if (bits == 8) {
        for (int64_t i = 0; i < n; i++) out[i] = ((float)row[p0 + i] - base) * scale;
        return;
    }
    const EV_FN(nb4i) masks = {mask, mask << bits, mask << 2 * bits, mask << 3 * bits};
    const EV_FN(nb4i) ones = {NB_EXPONENT(0), NB_EXPONENT(bits), NB_EXPONENT(2 * bits), NB_EXPONENT(3 * bits)};
    const EV_FN(nb4) powers = {NB_POWER(0), NB_POWER(bits), NB_POWER(2 * bits), NB_POWER(3 * bits)};
    for (int64_t i = 0; i < n; i += 4) {
        const int64_t bit = (p0 + i) * bits, byte = bit >> 3;
        uint32_t word = 0;
        if (byte + 4 <= row_bytes) memcpy(&word, row + byte, 4);
        else memcpy(&word, row + byte, (size_t)(row_bytes - byte));
        const EV_FN(nb4i) words = (word >> (bit & 7)) - (EV_FN(nb4i)){0};
        const EV_FN(nb4) v = ((EV_FN(nb4))((words & masks) | ones) - powers - base) * scale;
        if (i + 4 <= n) memcpy(out + i, &v, sizeof v);
        else
            for (int64_t r = i; r < n; r++) out[r] = v[r - i];
    }
}

/* The scales of `count` blocks of a row (unless NULL), and how far their zero points lie below the middle; zeros fill up
 * to a multiple of the vector's width past them. */
static void EV_FN(nb_blocks)(const ev_nbits *w, int64_t row, int64_t first, int64_t count, float *scale, float *shift)
{
    const int64_t at = row * w->blocks + first;
    const float middle = (float)(1 << (w->bits - 1));
    if (scale) {
        ev_active.cast(w->scale_type, EV_FLOAT, count, (const char *)w->scales + at * ev_item_size(w->scale_type), scale);
        memset(scale + count, 0, NB_W * sizeof(float));
    }
    if (!w->zeros) return;
    memset(shift + count, 0, NB_W * sizeof(float));
    if (w->zero_type != EV_UINT8) {
        ev_active.cast(w->zero_type, EV_FLOAT, count, (const char *)w->zeros + at * ev_item_size(w->zero_type), shift);
        for (int64_t i = 0; i < count; i++) shift[i] = middle - shift[i];
        return;
    }
    const uint8_t *z = (const uint8_t *)w->zeros + row * w->zero_bytes;
#define NB_CASE(bits) case bits: EV_FN(nb_widen)(bits, z, w->zero_bytes, first, count, 0, -1, shift); break;
    switch (w->bits) { NB_CASE(2) NB_CASE(3) NB_CASE(4) NB_CASE(8) }
#undef NB_CASE
}

/* v[lane of block]: the blocks' numbers for each lane of a chunk; n are there, and where parts of vectors cannot be read
 * at no cost, a whole vector of them. */
#if defined(__AVX512F__)
#define NB_READS_PARTS 1
#else
#define NB_READS_PARTS 0
#endif
NB_INLINE NB_V EV_FN(nb_expand)(const float *v, int64_t n, NB_I index)
{
#if defined(__AVX512F__)
    return (NB_V)_mm512_permutexvar_ps((__m512i)index, EV_PART_F32(v, n));
#elif defined(__AVX2__)
    return (NB_V)_mm256_permutevar8x32_ps(_mm256_loadu_ps(v), (__m256i)index);
#else
    NB_V out;
    for (int l = 0; l < NB_W; l++) out[l] = v[index[l]];
    return out;
#endif
}

/* even, odd += (q - middle) * x for a chunk at q; bits is a constant at each call. */
NB_INLINE void EV_FN(nb_chunk)(const int bits, const uint8_t *q, const float *x, NB_V *even, NB_V *odd)
{
    const uint32_t mask = (1u << bits) - 1;
    const float middle = (float)(1 << (bits - 1));
    NB_V a = *even, b = *odd;
#define NB_STEP(word, p, s) \
    ((NB_V)(((word) & (mask << (p))) | NB_EXPONENT(p)) - (NB_POWER(p) + middle)) * *(const NB_VU *)(x + (s) * NB_W)
    if (bits == 3) {
        uint32_t low[NB_W], high[NB_W]; /* 30 bits and 18 */
        for (int l = 0; l < NB_W; l++, q += 6) {
            uint32_t word;
            uint16_t rest;
            memcpy(&word, q, 4);
            memcpy(&rest, q + 4, 2);
            low[l] = word;
            high[l] = word >> 30 | (uint32_t)rest << 2;
        }
        const NB_I v = *(const EV_FN(vu32u) *)low, u = v >> 15, t = *(const EV_FN(vu32u) *)high;
#define NB_PAIR(word, p, s)               \
        a += NB_STEP(word, p, s);         \
        b += NB_STEP(word, (p) + 3, (s) + 1);
        NB_PAIR(v, 0, 0)
        NB_PAIR(v, 6, 2)
        a += NB_STEP(v, 12, 4);
        b += NB_STEP(u, 0, 5);
        NB_PAIR(u, 3, 6)
        NB_PAIR(u, 9, 8)
        NB_PAIR(t, 0, 10)
        NB_PAIR(t, 6, 12)
        NB_PAIR(t, 12, 14)
#undef NB_PAIR
    } else {
        const NB_I v = *(const EV_FN(vu32u) *)q, u = v >> 16;
        const int half = 16 / bits;
#pragma GCC unroll 8
        for (int s = 0; s < half; s += 2) {
            a += NB_STEP(v, s * bits, s);
            b += NB_STEP(v, (s + 1) * bits, s + 1);
        }
#pragma GCC unroll 8
        for (int s = 0; s < half; s += 2) {
            a += NB_STEP(u, s * bits, half + s);
            b += NB_STEP(u, (s + 1) * bits, half + s + 1);
        }
    }
#undef NB_STEP
    *even = a;
    *odd = b;
}

/* The same in integers: x as 16 bits beside a scale for each lane. A word's halves are multiplied and added as a pair:
 *
 *     4 bits:   word of lane 0  q0 q1 q2 q3 | q4 q5 q6 q7      step 0:  q0 x0 + q4 x4      step 1:  q1 x1 + q5 x5 ...
 *
 * 3 bits are brought into halves of 5 and 5, 3 and 3 numbers. Sums of a chunk fit easily and are exact. Each chunk of x
 * is a record: pairs, then for each lane the scale, the sum of its x (as float), and -middle times that sum. */
typedef struct {
    float scale[NB_W], sum[NB_W];
    int32_t start[NB_W];
} EV_FN(nb_lanes);

NB_INLINE int64_t EV_FN(nb_record)(int bits)
{
    return NB_W * EV_FN(nb_lane)(bits) * 2 + (int64_t)sizeof(EV_FN(nb_lanes));
}

static void EV_FN(nbits_spread_i16)(int bits, int64_t k, int64_t padded, const float *x, void *out)
{
    const int lane = EV_FN(nb_lane)(bits), chunk = NB_W * lane;
    char *record = out;
    for (int64_t p = 0; p < padded; p += chunk, record += EV_FN(nb_record)(bits)) {
        int16_t *pairs = (int16_t *)record;
        EV_FN(nb_lanes) *lanes = (EV_FN(nb_lanes) *)(record + 2 * chunk);
        for (int l = 0; l < NB_W; l++) {
            const int64_t first = p + l * lane;
            const int some = k - first >= lane ? lane : k > first ? (int)(k - first) : 0;
            float v[16] = {0}, most = 0;
            int finite = 1, sum = 0;
            for (int s = 0; s < some; s++) {
                v[s] = x[first + s];
                const float size = fabsf(v[s]);
                finite &= size <= 3.4028235e38f;
                most = size > most ? size : most;
            }
            /* Below the smallest normal number, 32767/most could be infinite: such numbers are taken for 0. */
            const float inverse = finite && most >= 1e-33f ? 32767 / most : 0;
            lanes->scale[l] = !finite ? NAN : inverse > 0 ? most / 32767 : 0;
            for (int s = 0; s < lane; s++) {
                const int q = finite ? (int)rintf(v[s] * inverse) : 0;
                int half = s >= lane / 2, at = half ? s - lane / 2 : s; /* which half of the word, which step */
                if (bits == 3) {
                    half = s < 10 ? s >= 5 : s >= 13;
                    at = s < 10 ? s % 5 : 5 + (s - 10) % 3;
                }
                pairs[(at * NB_W + l) * 2 + half] = (int16_t)q;
                sum += q;
            }
            lanes->sum[l] = (float)sum;
            lanes->start[l] = -(sum << (bits - 1));
        }
    }
}

/* start + the sum of q * x for a chunk at q, as floats. */
NB_INLINE NB_V EV_FN(nb_chunk_i16)(const int bits, const uint8_t *q, const int16_t *x, const int32_t *start)
{
    typedef EV_FN(vi32) I;
    const uint32_t mask = (1u << bits) - 1, masks = mask | mask << 16;
    I sum = *(const EV_FN(vi32u) *)start;
#define NB_PAIR(word, p, s) \
    sum += EV_MADD_I16((I)((word) >> (p) & masks), *(const EV_FN(vi32u) *)(x + (s) * 2 * NB_W));
    if (bits == 3) {
        uint32_t low[NB_W], high[NB_W];
        for (int l = 0; l < NB_W; l++, q += 6) {
            uint32_t word;
            uint16_t rest;
            memcpy(&word, q, 4);
            memcpy(&rest, q + 4, 2);
            low[l] = (word & 0x7fff) | (word << 1 & 0x7fff0000);
            high[l] = word >> 30 | (rest & 0x7fu) << 2 | (uint32_t)(rest >> 7) << 16;
        }
        const NB_I v = *(const EV_FN(vu32u) *)low, t = *(const EV_FN(vu32u) *)high;
#pragma GCC unroll 5
        for (int s = 0; s < 5; s++) { NB_PAIR(v, 3 * s, s) }
#pragma GCC unroll 3
        for (int s = 0; s < 3; s++) { NB_PAIR(t, 3 * s, 5 + s) }
    } else {
        const NB_I v = *(const EV_FN(vu32u) *)q;
#pragma GCC unroll 8
        for (int s = 0; s < 16 / bits; s++) { NB_PAIR(v, bits * s, s) }
    }
#undef NB_PAIR
    return __builtin_convertvector(sum, NB_V);
}

/* A chunk's share of a row's sum. */
NB_INLINE NB_V EV_FN(nb_term)(const int bits, const int whole, const int zeros, const uint8_t *q, const float *xs,
                              const float *sums, const float *scale, const float *shift, int64_t n, NB_I index)
{
    if (whole) {
        const EV_FN(nb_lanes) *lanes = (const EV_FN(nb_lanes) *)((const char *)xs + 2 * NB_W * EV_FN(nb_lane)(bits));
        NB_V sum = EV_FN(nb_chunk_i16)(bits, q, (const int16_t *)xs, lanes->start);
        if (zeros) sum += *(const NB_VU *)lanes->sum * EV_FN(nb_expand)(shift, n, index);
        return sum * *(const NB_VU *)lanes->scale * EV_FN(nb_expand)(scale, n, index);
    }
    NB_V even = {0}, odd = {0};
    EV_FN(nb_chunk)(bits, q, xs, &even, &odd);
    even += odd;
    if (zeros) even += *(const NB_VU *)sums * EV_FN(nb_expand)(shift, n, index);
    return even * EV_FN(nb_expand)(scale, n, index);
}

/* One or two rows at a time, so that two sums are under way beside each other. whole: x is of 16 bits, in records. The rows
 * to come are fetched meanwhile, as no processor follows a stream past its page. */
NB_INLINE void EV_FN(nb_rows)(const ev_nbits *w, int64_t row, const float *xs, const float *sums, float *y,
                              const int bits, const int rows, const int whole)
{
    const int lane = EV_FN(nb_lane)(bits), chunk = NB_W * lane, bytes = chunk * bits / 8, shift_by = w->log_block;
    float scale[2][EV_FN(nb_segment) + NB_W], shift[2][EV_FN(nb_segment) + NB_W];
    NB_V total0 = {0}, total1 = {0};
    NB_I index;
    for (int l = 0; l < NB_W; l++) index[l] = (uint32_t)(l * lane) >> shift_by;
    const uint8_t *q = w->q + row * w->row_bytes;
    const int direct = NB_READS_PARTS && w->scale_type == EV_FLOAT; /* scales are read where they lie */
    const float *scales[2] = {scale[0], scale[1]};
    for (int64_t first = 0; first < w->blocks; first += EV_FN(nb_segment)) {
        const int64_t left = w->blocks - first, count = left < EV_FN(nb_segment) ? left : EV_FN(nb_segment);
        for (int r = 0; r < rows; r++) {
            if (direct) scales[r] = (const float *)w->scales + (row + r) * w->blocks + first;
            if (!direct || w->zeros)
                EV_FN(nb_blocks)(w, row + r, first, count, direct ? NULL : scale[r], shift[r]);
        }
        const int64_t n = count << shift_by;
        for (int64_t p = 0; p < n; p += chunk, q += bytes) {
            const int64_t block = p >> shift_by;
            uint8_t edge[2][6 * NB_W];
            const uint8_t *from[2] = {q, q + w->row_bytes};
            for (int r = 0; r < rows; r++) {
                __builtin_prefetch(from[r] + rows * w->row_bytes, 0, 2);
                if (direct) __builtin_prefetch(scales[r] + block + rows * w->blocks, 0, 2);
            }
            const int64_t room = w->row_bytes - (((first << shift_by) + p) * bits >> 3);
            if (room < bytes) /* a row's last chunk, cut short */
                for (int r = 0; r < rows; r++) {
                    memset(edge[r], 0, sizeof edge[r]);
                    if (room > 0) memcpy(edge[r], from[r], (size_t)room);
                    from[r] = edge[r];
                }
            total0 += EV_FN(nb_term)(bits, whole, w->zeros != NULL, from[0], xs, sums, scales[0] + block,
                                     shift[0] + block, count - block, index);
            if (rows == 2)
                total1 += EV_FN(nb_term)(bits, whole, w->zeros != NULL, from[1], xs, sums, scales[1] + block,
                                         shift[1] + block, count - block, index);
            if (whole) {
                xs = (const float *)((const char *)xs + EV_FN(nb_record)(bits));
            } else {
                xs += chunk;
                sums += NB_W;
            }
        }
    }
    y[0] = EV_FN(lanes_sum_f32)(total0);
    if (rows == 2) y[1] = EV_FN(lanes_sum_f32)(total1);
}

#define NB_CASE(bits, whole)                                                                                    \
    case bits:                                                                                                  \
        for (; j + 2 <= rows; j += 2) EV_FN(nb_rows)(w, first + j, xs, sums, y + j, bits, 2, whole);            \
        if (j < rows) EV_FN(nb_rows)(w, first + j, xs, sums, y + j, bits, 1, whole);                            \
        break;

static void EV_FN(nbits_dot_f32)(const ev_nbits *w, int64_t first, int64_t rows, const float *xs, const float *sums,
                                 float *y)
{
    int64_t j = 0;
    switch (w->bits) { NB_CASE(2, 0) NB_CASE(3, 0) NB_CASE(4, 0) NB_CASE(8, 0) }
}

static void EV_FN(nbits_dot_i16)(const ev_nbits *w, int64_t first, int64_t rows, const void *xs, float *y)
{
    const float *sums = NULL;
    int64_t j = 0;
    switch (w->bits) { NB_CASE(2, 1) NB_CASE(3, 1) NB_CASE(4, 1) NB_CASE(8, 1) }
}
#undef NB_CASE

/* A panel of B for the product: weight [j0 + j, p0 + p] to dst[p*EV_NR_F32 + j], for j < n <= EV_NR_F32 and p < kc;
 * zeros past n. p0 is a multiple of 16. A lane is a row here, so a word gives the next numbers of NB_W rows. */
NB_INLINE void EV_FN(nb_panel)(const ev_nbits *w, const int bits, int64_t j0, int64_t n, int64_t p0, int64_t kc,
                               float *dst)
{
    const uint32_t mask = (1u << bits) - 1;
    const float middle = (float)(1 << (bits - 1));
    const int lane = EV_FN(nb_lane)(bits), words = bits == 3 ? 2 : 1, segment = EV_FN(nb_segment);
    float scale[NB_W][EV_FN(nb_segment) + NB_W], shift[NB_W][EV_FN(nb_segment) + NB_W];
    for (int64_t part = 0; part < EV_NR_F32; part += NB_W) {
        const int64_t rows = n - part < NB_W ? (n > part ? n - part : 0) : NB_W;
        int64_t known = -1; /* the block whose scales are in s and z */
        NB_V s = {0}, z = {0};
        for (int64_t p = 0; p < kc; p += lane) {
            const int64_t block = (p0 + p) >> w->log_block, left = ((p0 + kc - 1) >> w->log_block) + 1 - block;
            const uint8_t *q = w->q + (j0 + part) * w->row_bytes + ((p0 + p) * bits >> 3);
            uint32_t low[NB_W] = {0}, high[NB_W] = {0};
            if (block != known) {
                const int64_t at = (block - (p0 >> w->log_block)) % segment;
                for (int r = 0; r < rows; r++) {
                    if (at == 0)
                        EV_FN(nb_blocks)(w, j0 + part + r, block, left < segment ? left : segment, scale[r], shift[r]);
                    s[r] = scale[r][at];
                    if (w->zeros) z[r] = shift[r][at];
                }
                known = block;
            }
            const int64_t room = w->row_bytes - ((p0 + p) * bits >> 3);
            for (int r = 0; r < rows; r++, q += w->row_bytes) {
                uint16_t rest = 0;
                if (room >= 4 + 2 * (bits == 3)) {
                    memcpy(&low[r], q, 4);
                    if (bits == 3) memcpy(&rest, q + 4, 2);
                } else { /* a row's end */
                    memcpy(&low[r], q, (size_t)(room < 4 ? room : 4));
                    if (room > 4) memcpy(&rest, q + 4, (size_t)(room - 4));
                }
                if (bits == 3) high[r] = low[r] >> 30 | (uint32_t)rest << 2;
            }
            const NB_I v = *(const EV_FN(vu32u) *)low, t = *(const EV_FN(vu32u) *)high;
            float *out = dst + p * EV_NR_F32 + part;
            const int64_t some = kc - p;
#define NB_STEP(word, bit, step)                                                                                  \
            if ((step) < some)                                                                                    \
                *(NB_VU *)(out + (step) * EV_NR_F32) =                                                            \
                    (((NB_V)(((word) & (mask << (bit))) | NB_EXPONENT(bit)) - (NB_POWER(bit) + middle)) + z) * s;
            if (words == 2) {
                const NB_I u = v >> 15;
#pragma GCC unroll 5
                for (int i = 0; i < 5; i++) { NB_STEP(v, 3 * i, i) }
#pragma GCC unroll 5
                for (int i = 0; i < 5; i++) { NB_STEP(u, 3 * i, 5 + i) }
#pragma GCC unroll 6
                for (int i = 0; i < 6; i++) { NB_STEP(t, 3 * i, 10 + i) }
            } else {
                const NB_I u = v >> 16;
                const int half = 16 / bits;
#pragma GCC unroll 8
                for (int i = 0; i < half; i++) { NB_STEP(v, bits * i, i) }
#pragma GCC unroll 8
                for (int i = 0; i < half; i++) { NB_STEP(u, bits * i, half + i) }
            }
#undef NB_STEP
        }
    }
}

static void EV_FN(nbits_panel_f32)(const ev_nbits *w, int64_t j0, int64_t n, int64_t p0, int64_t kc, float *dst)
{
    switch (w->bits) {
    case 2: EV_FN(nb_panel)(w, 2, j0, n, p0, kc, dst); break;
    case 3: EV_FN(nb_panel)(w, 3, j0, n, p0, kc, dst); break;
    case 4: EV_FN(nb_panel)(w, 4, j0, n, p0, kc, dst); break;
    default: EV_FN(nb_panel)(w, 8, j0, n, p0, kc, dst); break;
    }
}

static void EV_FN(nbits_widen_f32)(const ev_nbits *w, int64_t row, int64_t p0, int64_t n, float *out)
{
    const uint8_t *q = w->q + row * w->row_bytes;
    const int64_t end = p0 + n, block = (int64_t)1 << w->log_block;
    float scale[EV_FN(nb_segment) + NB_W], shift[EV_FN(nb_segment) + NB_W];
    while (p0 < end) {
        const int64_t first = p0 >> w->log_block;
        const int64_t left = ((end - 1) >> w->log_block) + 1 - first;
        const int64_t count = left < EV_FN(nb_segment) ? left : EV_FN(nb_segment);
        EV_FN(nb_blocks)(w, row, first, count, scale, shift);
        for (int64_t b = 0; b < count; b++) {
            const int64_t stop = (first + b + 1) * block < end ? (first + b + 1) * block : end, some = stop - p0;
            const float s = w->zeros ? shift[b] : 0;
            switch (w->bits) {
            case 2: EV_FN(nb_widen)(2, q, w->row_bytes, p0, some, s, scale[b], out); break;
            case 3: EV_FN(nb_widen)(3, q, w->row_bytes, p0, some, s, scale[b], out); break;
            case 4: EV_FN(nb_widen)(4, q, w->row_bytes, p0, some, s, scale[b], out); break;
            default: EV_FN(nb_widen)(8, q, w->row_bytes, p0, some, s, scale[b], out); break;
            }
            out += some;
            p0 = stop;
        }
    }
}

#undef NB_V
#undef NB_VU
#undef NB_W
#undef NB_I
#undef NB_INLINE
