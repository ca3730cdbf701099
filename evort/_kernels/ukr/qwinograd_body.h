/* Winograd's F(4x4, 3x3) of bytes, exact: a quarter of the products, of 16 bits.
 *
 *     y = A^T [(G g G^T) o (B^T d B)] A        of tiles d of 6x6, kernels g, results y of 4x4
 *
 * G has fractions: its rows are those of integers, (1 0 0) (1 1 1) (1 -1 1) (1 2 4) (1 -2 4) (0 0 1), over 4, -6, -6, 24,
 * 24, 1. The divisors go over to A, whose rows then give 24, 12, 6 and 6 times the results. So transformed kernels are at
 * most 49 * 128, tiles 50 * 255, and both fit 16 bits. Sums are taken modulo 2^32, in which nothing is lost: 9 has an
 * inverse, and what is left, 2^2 to 2^6 times the result, is a shift. The result is right wherever it fits 25 bits and a
 * sign; whoever calls has looked at the kernels' sums for that.
 *
 * Channels are the lanes, and two of the input lie side by side, so that qgemm_i16 multiplies the 36 elements. Included once
 * more with EV_W_BYTES of 64, behind VNNI's nhwc_finish, for what comes in vectors of 64 bytes: kernels and results. */

#ifdef EV_W_BYTES
#define EV_W_WIDE 1
#else
#define EV_W_BYTES EV_QBYTES
#define EV_W_WIDE 0
#endif
#if defined(__SSE2__) || defined(__ARM_NEON)
typedef int16_t EV_FN(wh) __attribute__((vector_size(EV_W_BYTES), may_alias, aligned(2)));
typedef uint8_t EV_FN(wub) __attribute__((vector_size(EV_W_BYTES / 2), may_alias, aligned(1)));
typedef int8_t EV_FN(wb) __attribute__((vector_size(EV_W_BYTES / 2), may_alias, aligned(1)));
#if EV_W_WIDE
#define EV_W_SIGNED(p) ((EV_FN(wh))_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(p))))
#elif defined(__AVX2__) /* for a conversion that compilers take apart */
#define EV_W_SIGNED(p) ((EV_FN(wh))_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(p))))
#define EV_W_UNSIGNED(p) ((EV_FN(wh))_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(p))))
#else
#define EV_W_SIGNED(p) __builtin_convertvector(*(const EV_FN(wb) *)(p), EV_FN(wh))
#define EV_W_UNSIGNED(p) __builtin_convertvector(*(const EV_FN(wub) *)(p), EV_FN(wh))
#endif
typedef int32_t EV_FN(wi) __attribute__((vector_size(EV_W_BYTES), may_alias, aligned(4)));
enum { EV_FN(W_HALVES) = EV_W_BYTES / 2, EV_FN(W_INTS) = EV_W_BYTES / 4 };
#else
typedef int16_t EV_FN(wh);
typedef int32_t EV_FN(wi);
#define EV_W_SIGNED(p) (*(const int8_t *)(p))
#define EV_W_UNSIGNED(p) (*(const uint8_t *)(p))
enum { EV_FN(W_HALVES) = 1, EV_FN(W_INTS) = 1 };
#endif

#if !EV_W_WIDE
/* Six elements of x, `step` apart, times B. */
static inline __attribute__((always_inline)) void EV_FN(wino_b)(EV_FN(wh) *x, const int step)
{
#define D(i) x[(i) * step]
    const EV_FN(wh) p = D(4) - D(2) * 4, q = D(3) - D(1) * 4, r = D(4) - D(2), s = D(3) - D(1);
    D(0) = (D(0) - D(2)) * 4 + r;
    D(5) = D(5) - D(3) - s * 4;
    D(1) = p + q;
    D(2) = p - q;
    D(3) = r + s * 2;
    D(4) = r - s * 2;
#undef D
}

/* Tiles of the image, channels up to a vector of them. */
static void EV_FN(nhwc_winograd_image)(const ev_nhwc_winograd *g)
{
    const int64_t step = g->step_v;
    int16_t *v = g->v;
    for (int64_t row = 0; row < g->rows; row++)
        for (int64_t col = 0; col < g->cols; col++, v += g->ldv) {
            const uint8_t *x = g->x + 4 * (row * g->pitch + col * g->c);
            for (int64_t c = 0; c < g->c; c += EV_FN(W_HALVES)) {
                EV_FN(wh) d[36];
#pragma GCC unroll 6
                for (int i = 0; i < 6; i++) {
#pragma GCC unroll 6
                    for (int j = 0; j < 6; j++)
                        d[6 * i + j] = EV_W_UNSIGNED(x + i * g->pitch + j * g->c + c);
                    EV_FN(wino_b)(d + 6 * i, 1);
                }
#pragma GCC unroll 6
                for (int j = 0; j < 6; j++) {
                    EV_FN(wino_b)(d + j, 6);
#pragma GCC unroll 6
                    for (int i = 0; i < 6; i++) *(EV_FN(wh) *)(v + (6 * i + j) * step + c) = d[6 * i + j];
                }
            }
        }
}

#endif

/* Three elements of x, `step` apart, times G in integers: to six, `to_step` apart. */
static inline __attribute__((always_inline)) void EV_FN(wino_g)(const EV_FN(wh) *x, const int step, EV_FN(wh) *to,
                                                                const int64_t to_step)
{
    const EV_FN(wh) p = x[0] + x[2 * step], q = x[0] + x[2 * step] * 4, r = x[step] * 2;
    to[0] = x[0];
    to[to_step] = p + x[step];
    to[2 * to_step] = p - x[step];
    to[3 * to_step] = q + r;
    to[4 * to_step] = q - r;
    to[5 * to_step] = x[2 * step];
}

/* Kernels of 16 channels of the result and pairs [p0, p0 + pairs) of those of the image. */
static void EV_FN(nhwc_winograd_kernels)(const ev_nhwc_winograd *g, int64_t p0, int64_t pairs)
{
    enum { PAIR = 2 * EV_NHWC_VECTOR };
    const int8_t *w = g->w + 9 * p0 * PAIR;
    const int64_t step = g->step_u;
    int16_t *to = g->u;
    for (; pairs > 0; pairs--, w += 9 * PAIR, to += PAIR)
        for (int64_t i = 0; i < PAIR; i += EV_FN(W_HALVES)) {
            EV_FN(wh) k[9], d[18], u[6];
#pragma GCC unroll 9
            for (int t = 0; t < 9; t++) k[t] = EV_W_SIGNED(w + t * PAIR + i);
#pragma GCC unroll 3
            for (int j = 0; j < 3; j++) EV_FN(wino_g)(k + j, 3, d + j, 3);
#pragma GCC unroll 6
            for (int j = 0; j < 6; j++) {
                EV_FN(wino_g)(d + 3 * j, 1, u, 1);
#pragma GCC unroll 6
                for (int t = 0; t < 6; t++) *(EV_FN(wh) *)(to + (6 * j + t) * step + i) = u[t];
            }
        }
}

/* Six elements of x, `step` apart, times A: to four, which are then 8, 4, 2 and 2 times the results (modulo 3). */
static inline __attribute__((always_inline)) void EV_FN(wino_a)(const EV_FN(wi) *x, const int64_t step, EV_FN(wi) *to,
                                                                const int to_step)
{
    const EV_FN(wi) a = x[step] + x[2 * step], b = x[step] - x[2 * step];
    const EV_FN(wi) c = x[3 * step] + x[4 * step], d = x[3 * step] - x[4 * step];
    to[0] = x[0] * 6 - a * 4 + c;
    to[to_step] = d - b * 2;
    to[2 * to_step] = c - a;
    to[3 * to_step] = x[5 * step] * 6 + d * 2 - b;
}

/* What becomes of the products of up to 16 channels. */
static void EV_FN(nhwc_winograd_results)(const ev_nhwc_winograd *g)
{
    static const int shift[4] = {3, 2, 1, 1};
    const int32_t ninth = 954437177; /* 9 * ninth = 1, modulo 2^32 */
    const int32_t *o = g->o;
    enum { APART = EV_W_WIDE ? EV_NHWC_NR : EV_NHWC_VECTOR }; /* positions of sums; some behind the last may be read */
    int32_t sum[16 * APART + (EV_W_WIDE ? 7 * APART : 16)] __attribute__((aligned(64)));
#if EV_W_WIDE
    const ev_nhwc_conv k = {.scale = g->scale, .channels = g->channels, .finish = g->finish, .z = g->z, .ldz = g->ldz,
                            .ldy = g->ldy, .y = g->y};
    EV_FN(nhwc_seen) seen = EV_FN(nhwc_nothing)();
#endif
    for (int64_t row = 0; row < g->rows; row++)
        for (int64_t col = 0; col < g->cols; col++, o += EV_NHWC_VECTOR) {
            for (int64_t c = 0; c < EV_NHWC_VECTOR; c += EV_FN(W_INTS)) {
                EV_FN(wi) d[24], y[4];
                const EV_FN(wi) add = *(const EV_FN(wi) *)(g->add + c);
#pragma GCC unroll 6
                for (int j = 0; j < 6; j++) {
                    EV_FN(wi) x[6];
#pragma GCC unroll 6
                    for (int i = 0; i < 6; i++) x[i] = *(const EV_FN(wi) *)(o + (6 * i + j) * g->step_o + c);
                    EV_FN(wino_a)(x, 1, d + j, 6);
                }
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    EV_FN(wino_a)(d + 6 * i, 1, y, 1);
#pragma GCC unroll 4
                    for (int j = 0; j < 4; j++)
                        *(EV_FN(wi) *)(sum + (4 * i + j) * APART + c) =
                            ((y[j] * ninth) >> (shift[i] + shift[j])) + add;
                }
            }
#if EV_W_WIDE
            const int64_t n = g->width - 4 * col < 4 ? g->width - 4 * col : 4;
            for (int64_t i = 0; i < 4 && 4 * row + i < g->height; i++)
                EV_FN(nhwc_finish)(&k, sum + 4 * i * APART, n, (4 * row + i) * g->width + 4 * col, &seen);
#else
            for (int64_t i = 0; i < 4 && 4 * row + i < g->height; i++)
                for (int64_t j = 0; j < 4 && 4 * col + j < g->width; j++) {
                    const int64_t at = (4 * row + i) * g->width + 4 * col + j;
                    const int32_t *from = sum + (4 * i + j) * APART;
                    const char *z = g->z ? (const char *)g->z + at * g->ldz : NULL;
#if defined(__AVX2__)
                    EV_FN(nhwc_finish)(g->finish, g->channels, from, g->scale, z, g->y + at * g->ldy);
#elif defined(__aarch64__)
                    ev_nhwc_finish(g->finish, 1, g->channels, from, 0, g->scale, z, 0, g->y + at * g->ldy, 0);
#else
                    for (int64_t c = 0; c < g->channels; c++)
                        EV_FN(nhwc_put)(g->finish, from[c], g->scale[c], z ? z + c : NULL, g->y + at * g->ldy + c);
#endif
                }
#endif
        }
#if EV_W_WIDE
    if (g->finish && g->finish->range) EV_FN(nhwc_note_range)(g->finish, &seen);
#endif
}
#undef EV_W_SIGNED
#undef EV_W_UNSIGNED
#undef EV_W_BYTES
#undef EV_W_WIDE
