/* Direct convolution: the product of the weights and a band's copy (conv.h has its layout; direct_copy_body.h makes it).
 * Uses the vectors and the rows of gemm_body.h. */

#define V EV_FN(vf32)
#define VU EV_FN(vf32u)
#define VI EV_FN(vi32)
#define VW (EV_VECTOR_BYTES / 4)

/* Which lanes of a vector of the copy are outputs, and where the first of them goes. */
typedef struct {
    int64_t n, at;
    int whole; /* may store a whole vector: what it writes past its n lanes is written again later */
    VI lane;   /* the output lanes first; the rest does not matter */
} EV_FN(lanes);

static inline VI EV_FN(iota)(void)
{
    VI r;
    for (int i = 0; i < VW; i++) r[i] = i;
    return r;
}

static inline EV_FN(lanes) EV_FN(find_lanes)(const ev_direct *d, int64_t row, int64_t column)
{
    EV_FN(lanes) r;
    if (column >= d->pitch && d->pitch >= VW) {
        column -= d->pitch;
        row++;
    }
    r.at = row * d->ow + (column < d->ow ? column : d->ow);
    if (row >= d->rows) {
        r.n = 0;
    } else if (d->pitch >= VW) { /* at most two runs */
        const int64_t left = d->ow - column, next = d->pitch - column;
        const int64_t n1 = left < 0 ? 0 : left < VW ? left : VW;
        int64_t n2 = next < VW && row + 1 < d->rows ? VW - next : 0;
        if (n2 > d->ow) n2 = d->ow;
        r.n = n1 + n2;
        const VI iota = EV_FN(iota)();
        r.lane = iota + ((iota >= (int)n1) & ((int)(next - n1) - (VI){0}));
    } else {
        r.n = 0;
        for (int i = 0; i < VW; i++, column++) {
            for (; column >= d->pitch; row++) column -= d->pitch;
            if (column >= d->ow || row >= d->rows) continue;
            if (r.n == 0) r.at = row * d->ow + column;
            r.lane[r.n++] = i;
        }
    }
    if (r.n == VW) r.lane = EV_FN(iota)();
    r.whole = r.n == VW || (!d->residual && r.at + VW <= d->rows * d->ow);
    return r;
}

static inline V EV_FN(pick_lanes)(V x, VI lane)
{
#if defined(__AVX512F__)
    return _mm512_permutexvar_ps((__m512i)lane, x);
#elif defined(__AVX2__)
    return _mm256_permutevar8x32_ps(x, (__m256i)lane);
#else
    return __builtin_shuffle(x, lane & (VW - 1));
#endif
}

/* The first n lanes of one vector of one output channel, where a whole one must not be stored. */
static __attribute__((noinline)) void EV_FN(direct_part)(const ev_direct *d, const EV_FN(lanes) *l, int64_t i, V acc)
{
    float *y = d->y + i * d->ldy + l->at;
    V r = (d->bias ? d->bias[i] : 0) - (V){0};
    if (d->residual)
        for (int64_t j = 0; j < l->n; j++) r[j] += d->residual[i * d->ldy + l->at + j];
    r += EV_FN(pick_lanes)(acc, l->lane);
    r = EV_MIN_F32(d->hi - (V){0}, EV_MAX_F32(d->lo - (V){0}, r));
    for (int64_t j = 0; j < l->n; j++) y[j] = r[j];
}

/* 2 * VW columns of mr output channels from i0 on. mr is a constant at each call. */
static inline __attribute__((always_inline)) void EV_FN(direct_rows)(
    const ev_direct *d, const float *x, const EV_FN(lanes) *first, const EV_FN(lanes) *second, int64_t i0, const int mr)
{
    const int64_t ldw = d->ldw;
    const float *a = d->w + i0 * ldw, *a3 = a + 3 * ldw, *a6 = a + 6 * ldw, *a9 = a + 9 * ldw;
    const int32_t *offset = d->offset;
#define X(i) V p##i = {0}, q##i = {0};
    EV_EACH_ROW(X)
#undef X
#pragma GCC unroll 4
    for (int64_t k = 0; k < d->k; k++) {
        const float *b = x + offset[k];
        const V b0 = *(const VU *)b, b1 = *(const VU *)(b + VW);
#define X(i)                                                         \
        if (mr > i) {                                                \
            const float s = (i < 3 ? a : i < 6 ? a3 : i < 9 ? a6 : a9)[(i % 3) * ldw + k]; \
            p##i += b0 * s;                                          \
            q##i += b1 * s;                                          \
        }
        EV_EACH_ROW(X)
#undef X
    }
    const V lo = d->lo - (V){0}, hi = d->hi - (V){0};
    const float none[EV_MR] = {0}, *bias = d->bias ? d->bias + i0 : none;
    const float *residual = d->residual ? d->residual + i0 * d->ldy : NULL;
    float *y0 = d->y + i0 * d->ldy + first->at, *y1 = d->y + i0 * d->ldy + second->at;
    if (first->n == VW && second->n == VW) {
#define X(i)                                                         \
        if (mr > i) {                                                \
            V r0 = bias[i] - (V){0}, r1 = r0;                        \
            if (residual) {                                          \
                r0 += *(const VU *)(residual + first->at);           \
                r1 += *(const VU *)(residual + second->at);          \
                residual += d->ldy;                                  \
            }                                                        \
            *(VU *)y0 = EV_MIN_F32(hi, EV_MAX_F32(lo, r0 + p##i));   \
            *(VU *)y1 = EV_MIN_F32(hi, EV_MAX_F32(lo, r1 + q##i));   \
            y0 += d->ldy;                                            \
            y1 += d->ldy;                                            \
        }
        EV_EACH_ROW(X)
#undef X
    } else if (first->whole && second->whole && !residual) {
        const VI lane0 = first->lane, lane1 = second->lane;
#define X(i)                                                                                        \
        if (mr > i) {                                                                               \
            const V b0 = bias[i] - (V){0};                                                          \
            *(VU *)y0 = EV_MIN_F32(hi, EV_MAX_F32(lo, b0 + EV_FN(pick_lanes)(p##i, lane0)));         \
            *(VU *)y1 = EV_MIN_F32(hi, EV_MAX_F32(lo, b0 + EV_FN(pick_lanes)(q##i, lane1)));         \
            y0 += d->ldy;                                                                           \
            y1 += d->ldy;                                                                           \
        }
        EV_EACH_ROW(X)
#undef X
    } else {
#define X(i)                                             \
        if (mr > i) {                                    \
            EV_FN(direct_part)(d, first, i0 + i, p##i);  \
            EV_FN(direct_part)(d, second, i0 + i, q##i); \
        }
        EV_EACH_ROW(X)
#undef X
    }
}

static void EV_FN(direct_f32)(const ev_direct *d)
{
    const int64_t end = (d->rows - 1) * d->pitch + d->ow, groups = (d->m + EV_MR - 1) / EV_MR;
    int64_t row = 0, column = 0;
    for (int64_t q = 0; q < end; q += 2 * VW) {
        const EV_FN(lanes) first = EV_FN(find_lanes)(d, row, column), second = EV_FN(find_lanes)(d, row, column + VW);
        for (int64_t g = 0, i = 0; g < groups; g++) { /* rows in even shares: 16 are 6 + 5 + 5 */
            const int64_t mr = (d->m - i + groups - g - 1) / (groups - g);
            switch (mr) {
#define X(mr) case mr: EV_FN(direct_rows)(d, d->x + q, &first, &second, i, mr); break;
            EV_EACH_COUNT(X)
#undef X
            }
            i += mr;
        }
        for (column += 2 * VW; column >= d->pitch; row++) column -= d->pitch;
    }
}

/* Channels in the lanes: `mc` neighbouring columns of a row for NV vectors of output channels from `w` on. mc is a constant
 * at each call. */
static inline __attribute__((always_inline)) void EV_FN(direct_columns)(
    const ev_direct *d, const float *x, const float *w, const float *bias, float *y, const int NV, const int mc)
{
    const int32_t *offset = d->offset;
    const V b0 = *(const VU *)bias, b1 = NV == 2 ? *(const VU *)(bias + VW) : b0;
#define X(i) V p##i = b0, q##i = b1;
    EV_EACH_ROW(X)
#undef X
#pragma GCC unroll 2
    for (int64_t k = 0; k < d->k; k++, w += EV_DIRECT_LANES) {
        const float *a = x + offset[k];
        const V w0 = *(const VU *)w, w1 = NV == 2 ? *(const VU *)(w + VW) : w0;
        V lanes = {0};
#define X(i)                                                              \
        if (mc > i) {                                                     \
            if (EV_HAS_LANES && i % VW == 0) EV_LOAD_LANES(lanes, a + i); \
            const float s = EV_HAS_LANES ? lanes[i % VW] : a[i];          \
            p##i += w0 * s;           \
            if (NV == 2) q##i += w1 * s; \
        }
        EV_EACH_ROW(X)
#undef X
    }
    const V lo = d->lo - (V){0}, hi = d->hi - (V){0};
#define X(i)                                                                               \
    if (mc > i) {                                                                          \
        *(VU *)y = EV_MIN_F32(hi, EV_MAX_F32(lo, p##i));                                   \
        if (NV == 2) *(VU *)(y + VW) = EV_MIN_F32(hi, EV_MAX_F32(lo, q##i));               \
        y += d->ldy;                                                                       \
    }
    EV_EACH_ROW(X)
#undef X
}

static void EV_FN(direct_lanes_f32)(const ev_direct *d)
{
    enum { NV = VW == EV_DIRECT_LANES ? 1 : 2 };
    const int64_t groups = (d->ow + EV_MR - 1) / EV_MR;
    for (int64_t i = 0; i < d->m; i += NV * VW) {
        const float *w = d->w + i / EV_DIRECT_LANES * EV_DIRECT_LANES * d->k + i % EV_DIRECT_LANES;
        float *y = d->y + i;
        for (int64_t row = 0; row < d->rows; row++)
            for (int64_t g = 0, j = 0; g < groups; g++) {
                const int64_t mc = (d->ow - j + groups - g - 1) / (groups - g);
                const float *x = d->x + row * d->pitch + j;
                switch (mc) {
#define X(mc) case mc: EV_FN(direct_columns)(d, x, w, d->bias + i, y, NV, mc); break;
                EV_EACH_COUNT(X)
#undef X
                }
                j += mc;
                y += mc * d->ldy;
            }
    }
}

#undef V
#undef VU
#undef VI
#undef VW
