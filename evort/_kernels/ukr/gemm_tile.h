/* The matrix product micro-kernel for one element type; gemm_body.h defines the macros.
 *
 * EV_MR x 2*VW sums live in registers: 12 of 16 with AVX2 and with SSE2 (which passes NR/(2*VW) times over a panel), 24
 * of 32 with NEON (the same) and with AVX-512 (which takes two panels at a time). Rows are named variables, as GCC keeps arrays of vectors in
 * memory. */

/* How many of the 2*VW columns there are: up to VW/2, up to VW, fewer than 2*VW, all. Where masks cost nothing, all are
 * PARTIAL, and rows of B that end with the last column can be read; half a vector is worth a tile of its own there, as
 * operations on one cost half or, where processors have as many as of 256 bits, as much. */
#ifndef EV_TILE_WIDTHS
#define EV_TILE_WIDTHS
enum { HALF, NARROW, PARTIAL, WHOLE };
#if defined(__AVX512F__)
#define EV_TILE_WIDTH(left, vw) ((left) > (vw) ? PARTIAL : 2 * (left) > (vw) ? NARROW : HALF)
/* One vector, then a half. */
#define EV_TILE_COLUMNS(left, vw) ((left) > (vw) && (left) <= (vw) + (vw) / 2 ? (vw) : 2 * (vw))
#define EV_MASKS 1
#define HALF_ROWS(mr) EV_TYPED(half_rows)(t, plain, a, b, i, j, mr)
#else
#define EV_TILE_WIDTH(left, vw) ((left) >= 2 * (vw) ? WHOLE : (left) > (vw) ? PARTIAL : NARROW)
#define EV_TILE_COLUMNS(left, vw) (2 * (vw))
#define EV_MASKS 0
#define HALF_ROWS(mr) (void)0
#endif
#endif

/* Whether the sums are the results. */
static inline int EV_TYPED(is_plain)(const ev_tile *t)
{
    return !t->add && !t->row_bias && !t->col_bias && t->alpha == 1 && t->lo == -INFINITY && t->hi == INFINITY;
}

/* Results of a tile of up to VW columns, from the sums of its rows. */
static __attribute__((noinline)) void EV_TYPED(vector_finish)(
    const ev_tile *t, const V *sums, int64_t i0, int64_t j0, int mr, int64_t n)
{
    const V lo = (T)t->lo - (V){0}, hi = (T)t->hi - (V){0};
    const V s = t->col_bias ? PART((const T *)t->col_bias + j0, n) : (V){0};
    for (int64_t i = i0; i < i0 + mr; i++) {
        V r = s;
        if (t->row_bias) r += ((const T *)t->row_bias)[i];
        if (t->add) r += PART((const T *)t->add + i * t->ldadd + j0, n) * (T)t->beta;
        r = VMIN(hi, VMAX(lo, r + sums[i - i0] * (T)t->alpha));
        SET_PART((T *)t->c + i * t->ldc + j0, n, r);
    }
}

/* Tiles of up to one vector, and of half a vector where that has its own. */
#define W V
#define W_PART(p, n) (EV_MASKS ? PART(p, n) : *(const VU *)(p)) /* panels are filled up with zeros */
#define W_WIDEN(x) (x)
#define VECTOR_ROWS EV_TYPED(vector_rows)
#include "gemm_narrow.h"
#undef W
#undef W_PART
#undef W_WIDEN
#undef VECTOR_ROWS
#if defined(__AVX512F__)
#define W HALF_V
#define W_PART HALF_PART
#define W_WIDEN HALF_WIDEN
#define VECTOR_ROWS EV_TYPED(half_rows)
#include "gemm_narrow.h"
#undef W
#undef W_PART
#undef W_WIDEN
#undef VECTOR_ROWS
#endif

/* Where rows of A lie side by side, NEON multiplies by lanes of whole vectors, which GCC would load one by one. */
#ifndef EV_BY_LANES
#if defined(__aarch64__)
#define EV_HAS_LANES 1
#define EV_BY_LANES(t) (EV_MR % VW == 0 && (t)->rsa == 1)
#define EV_LOAD_LANES(v, p) v = *(const VU *)(p), ({ __asm__("" : "+w"(v)); })
#else
#define EV_HAS_LANES 0
#define EV_BY_LANES(t) 0
#define EV_LOAD_LANES(v, p) (void)(v)
#endif
#endif

/* mr, width, by_lanes and packs are constants at each call, so every `if` below is resolved by the compiler. With
 * `packs`, rows of B are read from `from`, ldf elements apart, and copied to the panels, for which there is time
 * between the multiplications; rows to come are fetched into L2, as rows a power of two apart would drive each other
 * out of L1. Without, `next` is what later tiles read of A or B, fetched as well: `step` elements on for each k, and
 * `skip` more after `run` of them. */
#ifndef EV_FETCH
#define EV_FETCH(p) __builtin_prefetch(p, 0, 2)
#define EV_LAST (64 / sizeof(T) - 1) /* of a line's elements: rows seldom begin a line, and where one does not, what its first line
                                      * shares with the columns to the left came with them */
enum { EV_FETCH_AHEAD = 32, EV_FETCH_C_K = 128 }; /* depth from which it pays to fetch the tile's part of C early */
#endif

static inline __attribute__((always_inline)) void EV_TYPED(gemm_rows)(
    const ev_tile *t, const T *a, T *b, int64_t i0, int64_t j0, const int mr, const int width, const int by_lanes,
    const int packs, const T *from, int64_t ldf, const T *next, int64_t step, int64_t run, int64_t skip)
{
    const int64_t n1 = t->n - j0 - VW;
    const int64_t rsa = t->rsa, csa = t->csa, ldb = t->ldb;
    const T *a3 = a + 3 * rsa, *a6 = a + 6 * rsa, *a9 = a + 9 * rsa; /* as x86 addresses reach three rows each */
    T *second = b + VW / NR * t->b_step + VW % NR;
#define X(i) V p##i = {0}, q##i = {0};
    EV_EACH_ROW(X)
#undef X
    if (t->k >= EV_FETCH_C_K) {
        const T *old = t->add ? (const T *)t->add + i0 * t->ldadd + j0 : (const T *)t->c + i0 * t->ldc + j0;
        const int64_t step = t->add ? t->ldadd : t->ldc;
#pragma GCC unroll 1
        for (int i = 0; i < mr; i++, old += step) {
            EV_FETCH(old + EV_LAST);
            EV_FETCH(old + VW + EV_LAST);
        }
    }
    /* Where rows of B lie in memory, there may be nothing behind the last one; behind others are those that follow. */
    const int cut = EV_MASKS && width == PARTIAL && n1 < VW && ldb != NR && t->k > 0;
    const V edge = cut ? PART(second + (t->k - 1) * ldb, n1) : (V){0};
    for (int64_t left = t->k, some; left > 0; left -= some, next += skip) {
        some = left < run ? left : run;
        if (cut && left == 1) second = (T *)&edge;
        else if (cut && left == some) some--;
        EV_UNROLL
        for (int64_t k = some; k > 0; k--) {
            V lanes = {0};
            const V b0 = *(const VU *)(packs ? from : b);
            const V b1 = *(const VU *)(packs ? from + VW : second);
            if (packs) {
                EV_FETCH(from + EV_FETCH_AHEAD * ldf + EV_LAST);
                if (2 * VW * sizeof(T) > 64) EV_FETCH(from + EV_FETCH_AHEAD * ldf + VW + EV_LAST);
                *(VU *)b = b0;
                *(VU *)second = b1;
                from += ldf;
            } else {
                EV_FETCH(next);
                if (2 * VW * sizeof(T) > 64) EV_FETCH(next + 64 / sizeof(T));
                next += step;
            }
#define X(i)                                                                                                  \
            if (mr > i) {                                                                                     \
                if (by_lanes && i % VW == 0) EV_LOAD_LANES(lanes, a + i);                                     \
                const T x = by_lanes ? lanes[i % VW] : (i < 3 ? a : i < 6 ? a3 : i < 9 ? a6 : a9)[(i % 3) * rsa];\
                p##i += b0 * x;                                                                               \
                q##i += b1 * x;                                                                               \
            }
            EV_EACH_ROW(X)
#undef X
            a += csa;
            a3 += csa;
            a6 += csa;
            a9 += csa;
            b += ldb;
            second += ldb;
        }
    }

    T *c = (T *)t->c + i0 * t->ldc + j0;
    const T alpha = (T)t->alpha, beta = (T)t->beta;
    const V lo = (T)t->lo - (V){0}, hi = (T)t->hi - (V){0};
    const T *row_bias = t->row_bias ? (const T *)t->row_bias + i0 : NULL;
    const T *col_bias = t->col_bias ? (const T *)t->col_bias + j0 : NULL;
    const T *add = t->add ? (const T *)t->add + i0 * t->ldadd + j0 : NULL;
#define LOAD(p) (width == WHOLE ? *(const VU *)(p) : PART(p, n1))
    V s0 = {0}, s1 = {0};
    if (col_bias) {
        s0 = *(const VU *)col_bias;
        s1 = LOAD(col_bias + VW);
    }
#define X(i)                                                    \
    if (mr > i) {                                               \
        V r0 = s0, r1 = s1;                                     \
        if (row_bias) {                                         \
            r0 += row_bias[i];                                  \
            r1 += row_bias[i];                                  \
        }                                                       \
        if (add) {                                              \
            r0 += *(const VU *)(add + i * t->ldadd) * beta;     \
            r1 += LOAD(add + i * t->ldadd + VW) * beta;         \
        }                                                       \
        r0 = VMIN(hi, VMAX(lo, r0 + p##i * alpha));             \
        r1 = VMIN(hi, VMAX(lo, r1 + q##i * alpha));             \
        *(VU *)(c + i * t->ldc) = r0;                           \
        if (width == WHOLE) *(VU *)(c + i * t->ldc + VW) = r1;  \
        else SET_PART(c + i * t->ldc + VW, n1, r1);             \
    }
    EV_EACH_ROW(X)
#undef X
#undef LOAD
}

/* Few columns, and contiguous rows of A: products of rows with a column each, VW elements of k at a time, cost as much as
 * the columns are, and not as much as a vector. EV_TAIL_ROWS rows at a time share what is loaded of the columns. */
#ifndef EV_TAIL
#define EV_TAIL
#if defined(__AVX2__)
#define EV_LOADED(x) __asm__("" : "+v"(x)) /* once, and not by each multiplication */
#else
#define EV_LOADED(x) (void)0
#endif
enum { EV_TAIL_COLUMNS = 4, EV_TAIL_K = 512 };
#if defined(__AVX512F__) || defined(__aarch64__)
enum { EV_TAIL_ROWS = 4 }; /* of 32 registers */
#else
enum { EV_TAIL_ROWS = 2 };
#endif

/* Adds vectors up: a and b become halves of one, quarters of one, or pairs of lanes in each quarter of one. */
#if defined(__AVX512F__)
#define EV_HALVES(a, b) (_mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xee))
#define EV_QUARTERS(a, b) (_mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd))
#define EV_PAIRS(a, b) (_mm512_shuffle_ps(a, b, 0x88) + _mm512_shuffle_ps(a, b, 0xdd))
#define EV_TAIL_COLUMN(s, j) EV_QUARTERS(EV_HALVES(s[0][j], s[1][j]), EV_HALVES(s[2][j], s[3][j]))
#elif defined(__AVX2__)
#define EV_HALVES(a, b) (_mm256_permute2f128_ps(a, b, 0x20) + _mm256_permute2f128_ps(a, b, 0x31))
#define EV_PAIRS(a, b) (_mm256_shuffle_ps(a, b, 0x88) + _mm256_shuffle_ps(a, b, 0xdd))
#define EV_TAIL_COLUMN(s, j) EV_HALVES(s[0][j], s[1][j])
#endif
#ifdef EV_PAIRS
/* The sums of the lanes of EV_TAIL_ROWS rows of four vectors, row by row, as a vector. */
static inline __attribute__((always_inline)) EV_FN(vf32) EV_FN(tail_sums)(const EV_FN(vf32) (*s)[EV_TAIL_COLUMNS])
{
    return EV_PAIRS(EV_PAIRS(EV_TAIL_COLUMN(s, 0), EV_TAIL_COLUMN(s, 1)),
                    EV_PAIRS(EV_TAIL_COLUMN(s, 2), EV_TAIL_COLUMN(s, 3)));
}
#endif
#endif

/* One row of results from its sums; elements of k from `done` on are still to be added. */
static inline __attribute__((always_inline)) void EV_TYPED(tail_finish)(
    const ev_tile *t, const T *const *column, int64_t i, int64_t j0, T *sums, int64_t done, int64_t k, const int n,
    int plain)
{
    typedef T four __attribute__((vector_size(EV_TAIL_COLUMNS * sizeof(T))));
    typedef __typeof__((four){0} < (four){0}) mask;
    const four least = (T)t->lo - (four){0}, most = (T)t->hi - (four){0};
    const T *a = (const T *)t->a + i * t->rsa;
    T *c = (T *)t->c + i * t->ldc + j0;
    for (int64_t p = done; p < k; p++)
#pragma GCC unroll 4
        for (int j = 0; j < n; j++) sums[j] += a[p] * column[j][p];
    if (plain) {
        memcpy(c, sums, n * sizeof(T));
        return;
    }
    four s, r = (t->row_bias ? ((const T *)t->row_bias)[i] : 0) - (four){0};
    memcpy(&s, sums, sizeof s);
    if (t->col_bias || t->add)
        for (int j = 0; j < n; j++) {
            if (t->col_bias) r[j] += ((const T *)t->col_bias)[j0 + j];
            if (t->add) r[j] += ((const T *)t->add)[i * t->ldadd + j0 + j] * (T)t->beta;
        }
    r += s * (T)t->alpha;
    const mask below = r < least, above = r > most;
    r = (four)((mask)r & ~below & ~above | (mask)least & below | (mask)most & above);
    memcpy(c, &r, n * sizeof(T));
}

static inline __attribute__((always_inline)) void EV_TYPED(tail_rows)(
    const ev_tile *t, const T *const *column, int64_t i0, int64_t j0, const int rows, const int n,
    int plain)
{
    const T *a = (const T *)t->a + i0 * t->rsa;
    const int64_t k = t->k, whole = k / VW * VW;
#define EACH_ROW(X) X(0) X(1) X(2) X(3)
#define X(i) V s##i##0 = {0}, s##i##1 = {0}, s##i##2 = {0}, s##i##3 = {0};
    EACH_ROW(X)
#undef X
#define ADD(i, y)                       \
    s##i##0 += y * x0;                  \
    if (n > 1) s##i##1 += y * x1;       \
    if (n > 2) s##i##2 += y * x2;       \
    if (n > 3) s##i##3 += y * x3;
    for (int64_t p = 0; p < whole; p += VW) {
        const V x0 = *(const VU *)(column[0] + p), x1 = *(const VU *)(column[1] + p);
        const V x2 = *(const VU *)(column[2] + p), x3 = *(const VU *)(column[3] + p);
#define X(i)                                                                                                      \
        if (rows > i) {                                                                                           \
            V y = *(const VU *)(a + i * t->rsa + p);                                                              \
            __builtin_prefetch(a + (i + rows) * t->rsa + p); /* rows to come, which in a model lie in L3 */        \
            EV_LOADED(y);                                                                                         \
            ADD(i, y)                                                                                             \
        }
        EACH_ROW(X)
#undef X
    }
#if defined(__AVX512F__) /* parts cost nothing */
    if (whole < k) {
        const int64_t left = k - whole;
        const V x0 = PART(column[0] + whole, left), x1 = PART(column[1] + whole, left);
        const V x2 = PART(column[2] + whole, left), x3 = PART(column[3] + whole, left);
#define X(i)                                                      \
        if (rows > i) {                                           \
            const V y = PART(a + i * t->rsa + whole, left);       \
            ADD(i, y)                                             \
        }
        EACH_ROW(X)
#undef X
    }
    const int64_t done = k;
#else
    const int64_t done = whole;
#endif
    T sums[EV_TAIL_ROWS * EV_TAIL_COLUMNS];
#define X(i) {s##i##0, s##i##1, s##i##2, s##i##3},
    const V vectors[4][EV_TAIL_COLUMNS] = {EACH_ROW(X)};
#undef X
#ifdef TAIL_SUMS
    if (rows == EV_TAIL_ROWS) {
        const V all = TAIL_SUMS(vectors);
        memcpy(sums, &all, sizeof all);
    } else
#endif
        for (int i = 0; i < rows; i++) EV_TYPED(four_sums)(vectors[i], sums + EV_TAIL_COLUMNS * i);
    for (int i = 0; i < rows; i++)
        EV_TYPED(tail_finish)(t, column, i0 + i, j0, sums + EV_TAIL_COLUMNS * i, done, k, n, plain);
#undef ADD
#undef EACH_ROW
}

/* Columns j0 and n - 1 behind it of C, at most EV_TAIL_COLUMNS, from those of B, each contiguous. */
static __attribute__((noinline)) void EV_TYPED(columns_from)(
    const ev_tile *t, const T *const *column, int64_t j0, int64_t n)
{
    const int plain = EV_TYPED(is_plain)(t);
    int64_t i = 0;
#define X(n)                                                                                                      \
    case n:                                                                                                       \
        for (; i + EV_TAIL_ROWS <= t->m; i += EV_TAIL_ROWS) EV_TYPED(tail_rows)(t, column, i, j0, EV_TAIL_ROWS, n, plain); \
        if (EV_TAIL_ROWS > 2 && i + 2 <= t->m) EV_TYPED(tail_rows)(t, column, i, j0, 2, n, plain), i += 2;         \
        if (i < t->m) EV_TYPED(tail_rows)(t, column, i, j0, 1, n, plain);                                         \
        break;
    switch (n) { X(1) X(2) X(3) X(4) }
#undef X
}

static void EV_TYPED(gemm_few)(const ev_tile *t)
{
    for (int64_t j0 = 0; j0 < t->n; j0 += EV_TAIL_COLUMNS) {
        const int64_t left = t->n - j0, n = left < EV_TAIL_COLUMNS ? left : EV_TAIL_COLUMNS;
        const T *column[EV_TAIL_COLUMNS];
        for (int64_t j = 0; j < EV_TAIL_COLUMNS; j++) column[j] = (const T *)t->b + (j0 + (j < n ? j : 0)) * t->b_step;
        EV_TYPED(columns_from)(t, column, j0, n);
    }
}

/* The last columns, at most EV_TAIL_COLUMNS. B is transposed four rows at a time, as far as so much of it follows. */
static void EV_TYPED(gemm_tail)(const ev_tile *t, int64_t j0, int64_t n)
{
    T copy[EV_TAIL_COLUMNS][EV_TAIL_K] __attribute__((aligned(64)));
    const T *column[EV_TAIL_COLUMNS] = {copy[0], copy[1], copy[2], copy[3]};
    const T *b = (const T *)t->b + j0 / NR * t->b_step + j0 % NR;
    const int64_t ldb = t->ldb;
    int64_t p = 0;
    for (; p + 4 <= t->k && (t->k - 4 - p) * ldb >= 4 - n; p += 4, b += 4 * ldb)
        EV_TYPED(transpose)(b, ldb, copy[0] + p, EV_TAIL_K);
    for (; p < t->k; p++, b += ldb)
        for (int64_t j = 0; j < n; j++) copy[j][p] = b[j];
    EV_TYPED(columns_from)(t, column, j0, n);
}

/* How many of the last columns are summed along k, which depends on n and k alone: where a tile costs more than that and
 * adding up lanes, as much as some 24 multiplications of vectors. */
static int64_t EV_TYPED(tail_columns)(const ev_tile *t)
{
    if (t->csa != 1 || t->in_order || t->k > EV_TAIL_K) return 0;
#if defined(__AVX512F__)
    const int64_t last = t->n % (VW / 2), groups = (last + EV_TAIL_COLUMNS - 1) / EV_TAIL_COLUMNS;
    /* More where half a vector is left beside them, as one would do for both. */
    const int64_t lanes = t->n % VW > VW / 2 ? 40 : 24;
    return t->k * (VW - 2 * last) >= lanes * VW * groups ? last : 0;
#else
    const int64_t last = t->n % NR;
    return last <= EV_TAIL_COLUMNS && t->k >= 4 * VW ? last : 0;
#endif
}

static __attribute__((noinline)) void EV_TYPED(gemm_columns)(const ev_tile *t, const T *from, int64_t ldf)
{
    const int packed = t->a_step != EV_MR * t->rsa;
    const int plain = EV_TYPED(is_plain)(t);
    const int64_t n = t->n - EV_TYPED(tail_columns)(t);
    const int64_t rows = t->m - (from ? EV_MR : 0), groups = (rows + EV_MR - 1) / EV_MR;
    const int64_t even = groups > 1 ? rows / groups : rows;
    for (int64_t j = 0, some; j < n; j += some) {
        some = EV_TILE_COLUMNS(n - j, VW);
        T *b = (T *)t->b + j / NR * t->b_step + j % NR;
        const T *a = t->a;
        const int width = EV_TILE_WIDTH(some < n - j ? some : n - j, VW);
        int64_t larger = rows - even * groups, mr, i = 0;
        if (from) {
#define PACKING(by_lanes) \
    EV_TYPED(gemm_rows)(t, a, b, 0, j, EV_MR, WHOLE, by_lanes, 1, from + j, ldf, NULL, 0, t->k, 0)
            if (EV_BY_LANES(t)) PACKING(1);
            else PACKING(0);
#undef PACKING
            i = EV_MR;
            a += t->a_step;
        }
        for (; i < t->m; i += mr) {
            /* Rows that do not lie in panels go in even shares: 14 are 7 and 7. */
#ifdef EV_LEAN
            mr = t->m - i >= EV_MR ? EV_MR : t->m - i > 1 ? 2 : 1;
#else
            mr = !packed ? even + (larger-- > 0) : t->m - i < EV_MR ? t->m - i : EV_MR;
#endif
            /* The first rows to meet a panel that lies apart fetch the next one (its first line came with this one's last),
             * those that meet the first panel the rows of A to come (the last panel, where those are packed once all panels
             * have passed). Others have both in L2, and fetch what they read. */
            const T *next = b;
            int64_t step = t->ldb, run = t->k, skip = 0;
            if (i == 0 && t->ldb != NR) {
                next += 2 * VW + EV_LAST;
            } else if (t->next && (packed ? j + some >= n : j == 0)) {
                next = (const T *)t->next + i * t->ldnext;
                step = mr;
                if (t->ldnext != t->k) run = (t->k + mr - 1) / mr, skip = t->ldnext - run * mr;
            }
#define ROWS(mr, width, by_lanes) \
    EV_TYPED(gemm_rows)(t, a, b, i, j, mr, width, by_lanes, 0, NULL, 0, next, step, run, skip)
            switch (mr) {
#define X(mr)                                                                                             \
            case mr:                                                                                      \
                if (width == HALF) HALF_ROWS(mr);                                                         \
                else if (width == NARROW) EV_TYPED(vector_rows)(t, plain, a, b, i, j, mr);                \
                else if (width == PARTIAL) ROWS(mr, PARTIAL, 0);                                          \
                else if ((mr == EV_MR || (mr % 4 == 0 && packed)) && EV_BY_LANES(t)) ROWS(mr, WHOLE, 1);  \
                else ROWS(mr, WHOLE, 0);                                                                  \
                break;
            EV_EACH_HEIGHT(X)
#undef X
#undef ROWS
            }
            a += packed && mr == EV_MR ? t->a_step : mr * t->rsa;
        }
    }
    /* Once the others, which have the time for it, have brought A to the cache. */
    for (int64_t j = n; j < t->n; j += EV_TAIL_COLUMNS)
        EV_TYPED(gemm_tail)(t, j, t->n - j < EV_TAIL_COLUMNS ? t->n - j : EV_TAIL_COLUMNS);
}

static void EV_TYPED(gemm)(const ev_tile *t) { EV_TYPED(gemm_columns)(t, NULL, 0); }

static void EV_TYPED(gemm_packing)(const ev_tile *t, const void *from, int64_t ldf)
{
    EV_TYPED(gemm_columns)(t, from, ldf);
}
