/* Template: windows along one row. The includer defines T, NAME and F(a, b), which merges two elements; for floats
 * also F8(a, b), which merges eight. Writes the merged windows of w to y; `empty` is the result of a window that holds
 * no element. */

/* Windows [from, to), all inside the row. Inlined with constant kernel and stride, so that it vectorises. */
static inline __attribute__((always_inline)) void EV_CAT(NAME, inside)(const ev_window *w, int64_t from, int64_t to,
                                                                      int64_t kernel, int64_t stride, const T *b, T *y)
{
    const int64_t dilation = w->dilation;
    b -= w->pad;
    for (int64_t o = from; o < to; o++) {
        T v = b[o * stride];
        for (int64_t k = 1; k < kernel; k++) {
            const T e = b[o * stride + k * dilation];
            v = F(v, e);
        }
        y[o] = v;
    }
}

static void NAME(const ev_window *w, const T *restrict b, T *restrict y, T empty)
{
    const int64_t kernel = w->kernel, stride = w->stride, dilation = w->dilation, from = w->from, to = w->to;
    for (int64_t o = 0; o < w->out; o++) {
        if (o == from) o = to; /* what lies inside is done below */
        if (o >= w->out) break;
        int64_t i, k = ev_window_part(w, o, 0, w->width, &i);
        T v = empty;
        for (; k > 0; k--, i += dilation) v = F(v, b[i]);
        y[o] = v;
    }
    if (stride == 2 && kernel == 2) EV_CAT(NAME, inside)(w, from, to, 2, 2, b, y);
    else if (stride == 2 && kernel == 3) EV_CAT(NAME, inside)(w, from, to, 3, 2, b, y);
    else if (stride == 3 && kernel == 3) EV_CAT(NAME, inside)(w, from, to, 3, 3, b, y);
#ifdef F8
    else if (stride == 1 && to - from >= 8) {
        for (int64_t i = from; i < to; i += 8) {
            const int64_t o = i < to - 8 ? i : to - 8; /* the last eight may overlap those before */
            const T *e = b + o - w->pad;
            ev_v8f v = EV_LOAD8(e);
            for (int64_t k = 1; k < kernel; k++) v = F8(EV_LOAD8(e + k * dilation), v);
            *(ev_v8f *)(y + o) = v;
        }
    }
#endif
    else if (stride == 1) {
        EV_CAT(NAME, inside)(w, from, to, 1, 1, b, y);
        for (int64_t k = 1; k < kernel; k++) {
            const T *e = b - w->pad + k * dilation;
            for (int64_t o = from; o < to; o++) y[o] = F(y[o], e[o]);
        }
    } else EV_CAT(NAME, inside)(w, from, to, kernel, stride, b, y);
}

#undef T
#undef NAME
#undef F
#undef F8
