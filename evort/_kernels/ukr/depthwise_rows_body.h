/* Depthwise convolution along rows, where they lie: kernels of 3x3 and 5x5, strides 1 and 2.
 *
 * A tile of ROWS x (VT * VW) outputs is kept in registers while the rows of the image under it pass by once; a vector of
 * the image that is loaded for a tap serves as many rows of outputs as meet it. Tiles at the left and right border load
 * lanes inside the image only; rows outside it are passed over. The last tile of a row is moved left to end with the row,
 * and the last rows up to end with the map, where outputs may be computed twice: not where a residual lies in y.
 *
 * Uses the vectors of gemm_body.h. */

#define V EV_FN(vf32)
#define VU EV_FN(vf32u)
#define VI EV_FN(vi32)
#define VW (EV_VECTOR_BYTES / 4)

/* Lanes [low, high) of a vector at p, the others zero: in a form that is made once for the tiles of a column. */
#if defined(__AVX512F__)
typedef __mmask16 EV_FN(between);
static inline EV_FN(between) EV_FN(make_between)(int64_t low, int64_t high)
{
    return (__mmask16)(EV_FIRST(high < 0 ? 0 : high) & ~EV_FIRST(low < 0 ? 0 : low));
}
static inline V EV_FN(load_between)(const float *p, EV_FN(between) b) { return _mm512_maskz_loadu_ps(b, p); }
#elif defined(__AVX2__)
typedef __m256i EV_FN(between);
static inline EV_FN(between) EV_FN(make_between)(int64_t low, int64_t high)
{
    const VI iota = {0, 1, 2, 3, 4, 5, 6, 7};
    const int first = low < 0 ? 0 : low > VW ? VW : (int)low, last = high < 0 ? 0 : high > VW ? VW : (int)high;
    return (__m256i)((iota >= first) & (iota < last));
}
static inline V EV_FN(load_between)(const float *p, EV_FN(between) b) { return _mm256_maskload_ps(p, b); }
#else
typedef struct {
    int64_t low, high;
} EV_FN(between);
static inline EV_FN(between) EV_FN(make_between)(int64_t low, int64_t high) { return (EV_FN(between)){low, high}; }
static inline V EV_FN(load_between)(const float *p, EV_FN(between) b)
{
    V r = {0};
    for (int i = 0; i < VW; i++)
        if (i >= b.low && i < b.high) r[i] = p[i];
    return r;
}
#endif

/* The compiler would load a vector again for every output row, which costs two accesses where it lies across lines, and
 * every element of the kernel for every product. */
#if defined(__x86_64__)
#define EV_IN_REGISTER(x) __asm__("" : "+v"(x))
#elif defined(__aarch64__)
#define EV_IN_REGISTER(x) __asm__("" : "+w"(x))
#else
#define EV_IN_REGISTER(x) (void)(x)
#endif

/* The first elements of a kernel, as many as registers hold; named, as GCC keeps arrays of vectors in memory. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define EV_KEPT 25
#define EV_EACH_KEPT(X)                                                                                             \
    X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19)   \
    X(20) X(21) X(22) X(23) X(24)
#else
#define EV_KEPT 9
#define EV_EACH_KEPT(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8)
#endif
#define X(i) V k##i;
typedef struct { EV_EACH_KEPT(X) } EV_FN(kept);
#undef X

static inline __attribute__((always_inline)) EV_FN(kept) EV_FN(keep)(const float *k, const int n)
{
    EV_FN(kept) r;
#define X(i) r.k##i = (i < n ? k[i] : 0) - (V){0}; EV_IN_REGISTER(r.k##i);
    EV_EACH_KEPT(X)
#undef X
    return r;
}

static inline __attribute__((always_inline)) V EV_FN(kept_at)(const EV_FN(kept) *r, const int at)
{
#define X(i) at == i ? r->k##i :
    return EV_EACH_KEPT(X) (V){0};
#undef X
}

/* What the loads of a column of tiles may touch, and how many outputs are wide. */
typedef struct {
    int64_t lanes;
    int edge;                   /* some loads reach beyond the image's columns */
    EV_FN(between) loads[2][6]; /* of each vector: one for each tap, or those of part_columns */
} EV_FN(place);

static EV_FN(place) EV_FN(make_place)(const ev_depthwise *d, int64_t column, int64_t lanes, int vectors)
{
    const int64_t w0 = column * d->sw - d->pad_w, taps = d->sw == 1 ? d->kw : d->kw + 1;
    EV_FN(place) p = {.lanes = lanes, .edge = w0 < 0 || w0 + vectors * VW * d->sw + d->kw - 1 > d->w};
    for (int v = 0; v < vectors; v++)
        for (int64_t i = 0; i < taps; i++) {
            int64_t w = w0 + v * VW * d->sw + (d->sw == 1 ? i : i / 2 * 2 + i % 2 * VW);
            if (EV_VECTOR_BYTES == 64 && d->sw == 2) w = w0 + v * VW * 2 + d->kw / 2 + (i - 1) * VW;
            p.loads[v][i] = EV_FN(make_between)(-w, d->w - w);
        }
    return p;
}

/* With a stride of 2, the columns of the image that the K taps of a vector of outputs meet, the first of them at x. */
static inline __attribute__((always_inline)) void EV_FN(part_columns)(
    const float *x, const EV_FN(between) *loads, const int K, const int edge, V *to)
{
#if EV_VECTOR_BYTES == 64
    /* Taps beside those in the middle see the same lanes but for one: that costs less than to load and part them, too. */
#define EV_LANES(low, high, n) ((V)_mm512_alignr_epi32((__m512i)(high), (__m512i)(low), n))
#define EV_AT(i, at) (edge ? EV_FN(load_between)(c + (i - 1) * VW, loads[i]) : _mm512_set1_ps(c[at]))
    const float *c = x + K / 2;
    const V a = edge ? EV_FN(load_between)(c, loads[1]) : _mm512_loadu_ps(c);
    const V b = edge ? EV_FN(load_between)(c + VW, loads[2]) : _mm512_loadu_ps(c + VW);
    const V even = __builtin_shuffle(a, b, (VI){0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30});
    const V odd = __builtin_shuffle(a, b, (VI){1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31});
    const V before = EV_AT(0, -1);
    to[K / 2 - 1] = EV_LANES(before, odd, 15);
    to[K / 2] = even;
    to[K / 2 + 1] = odd;
    if (K == 5) {
        to[0] = EV_LANES(edge ? EV_LANES(before, before, 15) : _mm512_set1_ps(c[-2]), even, 15);
        to[4] = EV_LANES(even, EV_AT(3, 2 * VW), 1);
    }
#undef EV_AT
#undef EV_LANES
#else
#pragma GCC unroll 3
    for (int t = 0; t < K; t += 2) {
        const V a = edge ? EV_FN(load_between)(x + t, loads[t]) : *(const VU *)(x + t);
        const V b = edge ? EV_FN(load_between)(x + t + VW, loads[t + 1]) : *(const VU *)(x + t + VW);
#if EV_VECTOR_BYTES == 32
        to[t] = __builtin_shuffle(a, b, (VI){0, 2, 4, 6, 8, 10, 12, 14});
        to[t + 1] = __builtin_shuffle(a, b, (VI){1, 3, 5, 7, 9, 11, 13, 15});
#else
        to[t] = __builtin_shuffle(a, b, (VI){0, 2, 4, 6});
        to[t + 1] = __builtin_shuffle(a, b, (VI){1, 3, 5, 7});
#endif
    }
#endif
}

/* The first n outputs of a vector. */
static __attribute__((noinline)) void EV_FN(rows_part)(V lo, V hi, V r, int64_t n, const float *residual, float *y)
{
    if (n <= 0) return;
    const EV_FN(between) b = EV_FN(make_between)(0, n);
    if (residual) r += EV_FN(load_between)(residual, b);
    r = EV_MIN_F32(hi, EV_MAX_F32(lo, r));
#if defined(__AVX2__) && !defined(__AVX512F__)
    _mm256_maskstore_ps(y, b, r);
#else
    EV_SET_PART_F32(y, n, r);
#endif
}

/* One tile, from output row oh on. Up to `end`, outputs past the last ones of a row may be written, as they are written
 * again later. K: rows and columns of the kernel; SH, S: the strides. */
static inline __attribute__((always_inline)) void EV_FN(rows_tile)(
    const ev_depthwise *d, const float *x, const EV_FN(kept) *kept, const float *k, float bias, const float *residual, float *y,
    const float *end, int64_t oh, int64_t column, const EV_FN(place) *p, const int K, const int SH, const int S, const int ROWS, const int VT, const int edge)
{
    V acc[4][2];
#pragma GCC unroll 4
    for (int o = 0; o < ROWS; o++)
#pragma GCC unroll 2
        for (int v = 0; v < VT; v++) acc[o][v] = bias - (V){0};
    const int64_t h0 = oh * SH - d->pad_h, w = d->w;
    const float *row = x + h0 * w + column * S - d->pad_w;
#pragma GCC unroll 11
    for (int r = 0; r < (ROWS - 1) * SH + K; r++, row += w) {
        if ((uint64_t)(h0 + r) >= (uint64_t)d->h) continue;
#pragma GCC unroll 2
        for (int v = 0; v < VT; v++) {
            V columns[6];
            if (S == 2) EV_FN(part_columns)(row + v * VW * S, p->loads[v], K, edge, columns);
#pragma GCC unroll 5
            for (int t = 0; t < K; t++) {
                const float *at = row + v * VW + t;
                if (S == 1) columns[t] = edge ? EV_FN(load_between)(at, p->loads[v][t]) : *(const VU *)at;
                EV_IN_REGISTER(columns[t]);
#pragma GCC unroll 4
                for (int o = 0; o < ROWS; o++) {
                    if (r - o * SH < 0 || r - o * SH >= K) continue;
                    const int tap = (r - o * SH) * K + t;
                    if (K * K <= EV_KEPT) acc[o][v] += columns[t] * EV_FN(kept_at)(kept, tap);
                    else acc[o][v] += columns[t] * k[tap];
                }
            }
        }
    }
    const V lo = d->lo - (V){0}, hi = d->hi - (V){0};
    const int64_t lanes = p->lanes, step = d->ow;
    const float *z = residual ? residual + oh * step + column : NULL;
    float *to = y + oh * step + column;
#pragma GCC unroll 4
    for (int o = 0; o < ROWS; o++, to += step) {
        const int whole = lanes >= VT * VW || to + VT * VW <= end;
#pragma GCC unroll 2
        for (int v = 0; v < VT; v++) {
            if (!whole) {
                EV_FN(rows_part)(lo, hi, acc[o][v], lanes - v * VW, z ? z + v * VW : NULL, to + v * VW);
                continue;
            }
            if (z) acc[o][v] += *(const VU *)(z + v * VW);
            *(VU *)(to + v * VW) = EV_MIN_F32(hi, EV_MAX_F32(lo, acc[o][v]));
        }
        if (z) z += step;
    }
}

/* Columns of tiles of a map. Those that are neither the first nor one of the last two lie inside the image. */
typedef struct {
    int64_t count, width, last;  /* the columns, their outputs, the first output of the last one */
    const float *end;            /* where outputs end that will be written in the same call, or NULL */
    EV_FN(place) first, inside, ends[2];
} EV_FN(columns);

static void EV_FN(make_columns)(const ev_depthwise *d, int vectors, int twice, EV_FN(columns) *c)
{
    c->width = vectors * VW;
    c->count = (d->ow + c->width - 1) / c->width;
    c->last = twice && d->ow >= c->width ? d->ow - c->width : (c->count - 1) * c->width;
    c->first = EV_FN(make_place)(d, 0, d->ow, vectors);
    c->inside = EV_FN(make_place)(d, c->width, c->width, vectors);
    for (int64_t i = 0; i < 2; i++) {
        const int64_t at = i == 1 ? c->last : (c->count - 2) * c->width;
        c->ends[i] = EV_FN(make_place)(d, at, d->ow - at, vectors);
    }
}

/* Output rows [first, last) of a channel. */
static inline __attribute__((always_inline)) void EV_FN(rows_channel)(
    const ev_depthwise *d, const EV_FN(columns) *columns, const float *x, const float *k, float bias, const float *residual,
    float *y, int64_t first, int64_t last, const int K, const int SH, const int S, const int ROWS, const int VT)
{
    const int twice = residual != y;
    const EV_FN(kept) kept = EV_FN(keep)(k, K * K <= EV_KEPT ? K * K : 0);
    for (int64_t j = 0, n = columns->count; j < n; j++) {
        const int64_t column = j == n - 1 ? columns->last : j * columns->width;
        const EV_FN(place) *p = j == 0 ? &columns->first : j >= n - 2 ? columns->ends + (j - n + 2) : &columns->inside;
        int64_t oh = first;
#define TILE(rows, edge) EV_FN(rows_tile)(d, x, &kept, k, bias, residual, y, columns->end, oh, column, p, K, SH, S, rows, VT, edge)
        while (oh < last) {
            if (oh + ROWS > last && last - first >= ROWS && twice) oh = last - ROWS;
            if (oh + ROWS <= last) {
                if (p->edge) TILE(ROWS, 1);
                else TILE(ROWS, 0);
                oh += ROWS;
            } else if (ROWS > 2 && oh + 2 <= last) {
                TILE(2, 1);
                oh += 2;
            } else {
                TILE(1, 1);
                oh++;
            }
        }
#undef TILE
    }
}

/* Kernel, strides, rows of a tile, vectors of a tile. */
#if EV_VECTOR_BYTES == 64
#define EV_EACH_ROWS(X)                                                         \
    X(3, 1, 1, 4, 1) X(3, 2, 1, 2, 1) X(3, 1, 2, 2, 1) X(3, 2, 2, 2, 1)         \
    X(5, 1, 1, 3, 1) X(5, 2, 1, 2, 1) X(5, 1, 2, 2, 1) X(5, 2, 2, 2, 1)
#elif defined(EV_LEAN) /* half of the code */
#define EV_EACH_ROWS(X)                                                         \
    X(3, 1, 1, 4, 1) X(3, 2, 1, 2, 1) X(3, 1, 2, 2, 1) X(3, 2, 2, 2, 1)         \
    X(5, 1, 1, 3, 1) X(5, 2, 1, 2, 1) X(5, 1, 2, 1, 1) X(5, 2, 2, 1, 1)
#else
#define EV_EACH_ROWS(X)                                                         \
    X(3, 1, 1, 4, 1) X(3, 2, 1, 2, 2) X(3, 1, 2, 2, 1) X(3, 2, 2, 2, 1)         \
    X(5, 1, 1, 3, 2) X(5, 2, 1, 2, 2) X(5, 1, 2, 2, 1) X(5, 2, 2, 2, 1)
#endif
#define EV_ROWS_ARGS                                                                                                    \
    const ev_depthwise *d, const EV_FN(columns) *columns, const float *x, const float *k, float bias,                   \
        const float *residual, float *y, int64_t first, int64_t last
#define X(size, sh, sw, rows, vectors)                                                                                  \
    static __attribute__((noinline)) void EV_FN(rows_##size##_##sh##_##sw)(EV_ROWS_ARGS)                                \
    {                                                                                                                   \
        EV_FN(rows_channel)(d, columns, x, k, bias, residual, y, first, last, size, sh, sw, rows, vectors);             \
    }
EV_EACH_ROWS(X)
#undef X

#if defined(__AVX512F__)
/* Narrow maps as large as the image: their rows lie one behind the other, so vectors of outputs go on from row to row, and
 * each tap is a vector of the image some elements away, of which masks leave out what belongs to other rows. */
enum { EV_FN(FLAT_MASKS) = 1024 };

static int EV_FN(is_flat)(const ev_depthwise *d)
{
    return d->sh == 1 && d->sw == 1 && d->oh == d->h && d->ow == d->w && d->pad_h == d->kh / 2 && d->pad_w == d->kw / 2
           && (d->h * d->w + VW - 1) / VW * d->kh * d->kw <= EV_FN(FLAT_MASKS);
}

static inline __attribute__((always_inline)) void EV_FN(flat_map)(const ev_depthwise *d, const __mmask16 *mask, const float *x,
                                                                  const float *k, float bias, const float *residual, float *y,
                                                                  const int K)
{
    const int64_t w = d->w, n = d->h * w;
    const V lo = d->lo - (V){0}, hi = d->hi - (V){0};
    for (int64_t i = 0; i < n; i += VW) {
        V rows[5];
#pragma GCC unroll 5
        for (int r = 0; r < K; r++) { /* sums that do not wait for each other */
            const float *at = x + i + (r - K / 2) * w - K / 2;
            rows[r] = (r ? 0 : bias) - (V){0};
#pragma GCC unroll 5
            for (int t = 0; t < K; t++) rows[r] += _mm512_maskz_loadu_ps(*mask++, at + t) * k[r * K + t];
        }
#pragma GCC unroll 4
        for (int r = 1; r < K; r++) rows[0] += rows[r];
        const __mmask16 there = EV_FIRST(n - i);
        if (residual) rows[0] += _mm512_maskz_loadu_ps(there, residual + i);
        _mm512_mask_storeu_ps(y + i, there, EV_MIN_F32(hi, EV_MAX_F32(lo, rows[0])));
    }
}

static void EV_FN(flat_maps)(const ev_depthwise *d, int64_t begin, int64_t end, const float *x, const float *k, const float *bias,
                             const float *residual, float *y)
{
    __mmask16 mask[EV_FN(FLAT_MASKS)], *to = mask;
    const int width = (int)d->w, K = (int)d->kw;
    const __m512i h = _mm512_set1_epi32((int)d->h), w = _mm512_set1_epi32(width);
    VI row, column;
    for (int lane = 0; lane < VW; lane++) row[lane] = lane / width, column[lane] = lane % width;
    for (int64_t i = 0; i < d->h * d->w; i += VW) {
        for (int r = -K / 2; r <= K / 2; r++)
            for (int t = -K / 2; t <= K / 2; t++)
                *to++ = _mm512_cmplt_epu32_mask((__m512i)(row + r), h) & _mm512_cmplt_epu32_mask((__m512i)(column + t), w);
        row += VW / width, column += VW % width;
        const VI beyond = column >= width;
        row -= beyond, column += beyond & -width;
    }
    for (int64_t c = begin; c < end; c++) {
        const float *plane = x + c / d->multiplier * d->plane, *taps = k + c * d->kh * d->kw;
        const float b = bias ? bias[c] : 0;
        const int64_t at = c * d->h * d->w;
        const float *z = residual ? residual + at : NULL;
        if (d->kw == 3) EV_FN(flat_map)(d, mask, plane, taps, b, z, y + at, 3);
        else EV_FN(flat_map)(d, mask, plane, taps, b, z, y + at, 5);
    }
}
#endif

/* Output rows [first, last) of channels [begin, end), where ev_depthwise_rows says so. As depthwise_block_f32. */
static void EV_FN(depthwise_rows_f32)(const ev_depthwise *d, int64_t begin, int64_t end, const float *x, const float *k,
                                      const float *bias, const float *residual, float *y, int64_t first, int64_t last)
{
#if defined(__AVX512F__)
    extern const ev_ukr ev_ukr_table__avx2;
    if (d->ow <= VW / 2) { /* half of the lanes would be idle */
        if (first == 0 && last == d->oh && EV_FN(is_flat)(d)) EV_FN(flat_maps)(d, begin, end, x, k, bias, residual, y);
        else ev_ukr_table__avx2.depthwise_rows_f32(d, begin, end, x, k, bias, residual, y, first, last);
        return;
    }
#endif
    void (*fn)(EV_ROWS_ARGS) = NULL;
    int width = 1;
#define X(size, sh_, sw_, rows, vectors) \
    if (d->kw == size && d->sh == sh_ && d->sw == sw_) fn = EV_FN(rows_##size##_##sh_##_##sw_), width = vectors;
    EV_EACH_ROWS(X)
#undef X
    EV_FN(columns) columns = {.end = NULL};
    EV_FN(make_columns)(d, width, residual != y, &columns);
    /* Large maps in bands of rows that stay in L1 from one column of tiles to the next. */
    const int64_t band = 12 * (1 + 256 / d->ow);
    for (int64_t c = begin; c < end; c++) {
        const float *plane = x + c / d->multiplier * d->plane, *taps = k + c * d->kh * d->kw;
        const int64_t at = c * d->oh * d->ow;
        if (columns.count == 1 && residual != y)
            columns.end = y + ((first == 0 && last == d->oh ? end - 1 : c) * d->oh + last) * d->ow;
        for (int64_t oh = first; oh < last; oh += band)
            fn(d, &columns, plane, taps, bias ? bias[c] : 0, residual ? residual + at : NULL, y + at, oh,
               oh + band < last ? oh + band : last);
    }
}

#undef EV_EACH_ROWS
#undef EV_ROWS_ARGS
#undef EV_KEPT
#undef EV_EACH_KEPT
#undef EV_IN_REGISTER
#undef V
#undef VU
#undef VI
#undef VW
