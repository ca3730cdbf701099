/* Winograd's convolution F(4x4, 3x3) with output channels in the lanes: the sums over channels for one row of the 6x6
 * elements. Kernels are transformed as they are multiplied (winograd_body.h has the points), by 12 operations beside 24
 * multiply-adds for each four tiles, and read where more tiles follow. The factors that rows of G have throughout, -2/3
 * and 1/6, are taken of the sums. Uses gemm_body.h. */

#define V EV_FN(vf32)
#define VU EV_FN(vf32u)
#define VW (EV_VECTOR_BYTES / 4)

#define EV_SQRT_HALF 0.70710678f
#define EV_SQRT_TWO 1.41421356f
#define EV_FACTOR(row) ((row) % 5 == 0 ? 1.0f : (row) < 3 ? -2.0f / 3 : 1.0f / 6)
#define EV_EACH_OF_6(X) X(0) X(1) X(2) X(3) X(4) X(5)

/* The six elements of row `row` of G g G^T, but for their factors, of the kernels in VW lanes of w[9][EV_WINOGRAD_MAPS].
 * ends: row is 0 or 5. */
static inline __attribute__((always_inline)) void EV_FN(winograd_kernel)(const float *w, int64_t row, const int ends, V *u)
{
#define AT(i) (*(const VU *)(w + (i) * EV_WINOGRAD_MAPS))
    const float even = row < 3 ? 0.5f : 2, odd = (row < 3 ? EV_SQRT_HALF : EV_SQRT_TWO) * (row % 2 ? 1 : -1);
    V x0, x1, x2;
    if (ends) {
        w += row / 5 * 6 * EV_WINOGRAD_MAPS;
        x0 = AT(0), x1 = AT(1), x2 = AT(2);
    } else {
        x0 = AT(0) + even * AT(6) + odd * AT(3);
        x1 = AT(1) + even * AT(7) + odd * AT(4);
        x2 = AT(2) + even * AT(8) + odd * AT(5);
    }
    const V near = x0 + 0.5f * x2, far = x0 + 2 * x2;
    u[0] = x0;
    u[1] = near + EV_SQRT_HALF * x1;
    u[2] = near - EV_SQRT_HALF * x1;
    u[3] = far + EV_SQRT_TWO * x1;
    u[4] = far - EV_SQRT_TWO * x1;
    u[5] = x2;
#undef AT
}

#if defined(__AVX512F__) || defined(EV_32_REGISTERS)

/* Four tiles, VW output channels: 24 sums in registers. `made`: the transformed kernels are there, else they are made,
 * and stored `step_u` apart. */
static inline __attribute__((always_inline)) void EV_FN(winograd_quad)(
    const ev_winograd_row *g, const float *w, const float *v, float *u, int64_t step_u, float *o, const int made,
    const int ends)
{
    const int64_t panel = g->panel, ldv = g->ldv;
    const float *v3 = v + 3 * panel, *next = g->next;
#define X(j) V a##j = {0}, b##j = {0}, c##j = {0}, d##j = {0};
    EV_EACH_OF_6(X)
#undef X
    for (int64_t c = g->c; c > 0; c--) {
        V k[6];
        if (!made) {
            EV_FN(winograd_kernel)(w, g->row, ends, k);
            __builtin_prefetch(next, 0, 2);
            __builtin_prefetch(next + 16, 0, 2);
            next += 9 * EV_WINOGRAD_MAPS / 6;
        }
#define X(j)                                                           \
        if (made) k[j] = *(const VU *)(u + j * EV_WINOGRAD_MAPS);      \
        else *(VU *)(u + j * EV_WINOGRAD_MAPS) = k[j];                 \
        a##j += k[j] * (j < 3 ? v : v3)[j % 3 * panel];                \
        b##j += k[j] * (j < 3 ? v : v3)[j % 3 * panel + 1];            \
        c##j += k[j] * (j < 3 ? v : v3)[j % 3 * panel + 2];            \
        d##j += k[j] * (j < 3 ? v : v3)[j % 3 * panel + 3];
        EV_EACH_OF_6(X)
#undef X
        w += g->ldw;
        u += step_u;
        v += ldv;
        v3 += ldv;
    }
    const float factor = EV_FACTOR(g->row);
#define SET(j, t, sum)                                                                            \
    do {                                                                                          \
        VU *to = (VU *)(o + j * g->step + t * EV_WINOGRAD_MAPS);                                  \
        *to = (g->first ? (V){0} : *to) + sum * (factor * EV_FACTOR(j));                          \
    } while (0);
#define X(j) SET(j, 0, a##j) SET(j, 1, b##j) SET(j, 2, c##j) SET(j, 3, d##j)
    EV_EACH_OF_6(X)
#undef X
#undef SET
}

static void EV_FN(winograd_row_f32)(const ev_winograd_row *g)
{
    const int64_t step_u = g->tiles > 4 ? 6 * EV_WINOGRAD_MAPS : 0;
    for (int64_t lane = 0; lane < EV_WINOGRAD_MAPS; lane += VW) {
        const float *w = g->w + lane;
        float *u = g->u + lane, *o = g->o + lane;
        if (g->row % 5 == 0) EV_FN(winograd_quad)(g, w, g->v, u, step_u, o, 0, 1);
        else EV_FN(winograd_quad)(g, w, g->v, u, step_u, o, 0, 0);
        for (int64_t t = 4; t < g->tiles; t += 4)
            EV_FN(winograd_quad)(g, w, g->v + t / g->panel * g->step_v + t % g->panel, u, step_u,
                                 o + t * EV_WINOGRAD_MAPS, 1, 0);
    }
}

#else

static void EV_FN(winograd_row_f32)(const ev_winograd_row *g)
{
    for (int64_t c = 0; c < g->c; c++)
        for (int64_t lane = 0; lane < EV_WINOGRAD_MAPS; lane += VW) {
            const float *w = g->w + c * g->ldw + lane;
            float *u = g->u + c * 6 * EV_WINOGRAD_MAPS + lane;
            V k[6];
            if (g->row % 5 == 0) EV_FN(winograd_kernel)(w, g->row, 1, k);
            else EV_FN(winograd_kernel)(w, g->row, 0, k);
#pragma GCC unroll 6
            for (int j = 0; j < 6; j++) *(VU *)(u + j * EV_WINOGRAD_MAPS) = k[j];
        }
    ev_tile t = {.n = EV_WINOGRAD_MAPS, .k = g->c, .rsa = 1, .csa = g->ldv, .a_step = EV_MR, .ldb = 6 * EV_WINOGRAD_MAPS,
                 .ldc = EV_WINOGRAD_MAPS, .ldadd = EV_WINOGRAD_MAPS, .beta = 1, .lo = -INFINITY, .hi = INFINITY};
    for (int64_t i = 0; i < g->tiles; i += g->panel) {
        t.m = g->tiles - i < g->panel ? g->tiles - i : g->panel;
        for (int j = 0; j < 6; j++) {
            float *o = g->o + j * g->step + i * EV_WINOGRAD_MAPS;
            t.a = g->v + i / g->panel * g->step_v + j * g->panel;
            t.b = g->u + j * EV_WINOGRAD_MAPS;
            t.c = o;
            t.add = g->first ? NULL : o;
            t.alpha = EV_FACTOR(g->row) * EV_FACTOR(j);
            EV_FN(gemm_f32)(&t);
        }
    }
}

#endif

#undef EV_SQRT_HALF
#undef EV_SQRT_TWO
#undef EV_FACTOR
#undef EV_EACH_OF_6
#undef V
#undef VU
#undef VW
