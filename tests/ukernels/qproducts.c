/* Around products of integers: their operands, products with one row or column; normalizations of bytes; weights of few
 * bits as floats. Integers are exact, and each operation of floats is rounded by itself. */
#include <float.h>
#include <math.h>

#include "check.h"

static const int64_t SIZES[] = {1, 2, 3, 4, 7, 15, 16, 17, 33, 70};

/* Operands of each type and their zero points, one or one for each line. */
static const struct {
    int type, as_type, zeros; /* 0: none, 1: one, 2: one for each */
} OPERANDS[] = {{EV_UINT8, 0, 0}, {EV_UINT8, 0, 2}, {EV_INT8, 0, 1}, {EV_INT8, 0, 2}, {EV_INT16, 0, 1}, {EV_FLOAT,
        EV_INT8, 1}, {EV_FLOAT, EV_UINT8, 0}, {EV_FLOAT, EV_INT16, 1}};

/* A number that is, when divided by the scale, in the middle between two integers, or next to it. */
static float middle(float scale)
{
    const float x = ((float)extreme(-260, 260) + 0.5f) * scale;
    const int beside = (int)extreme(-1, 1);
    return beside ? nextafterf(x, (float)beside * INFINITY) : x;
}

/* An operand of `size` elements; zero points of `lines` lines. */
static ev_qoperand operand(int64_t at, int64_t size, int64_t lines, int64_t rs, int64_t cs)
{
    static const float SCALES[] = {0.1f, 0.125f, 0.0077f, 1e-38f};
    ev_qoperand x = {.rs = rs, .cs = cs, .type = OPERANDS[at].type, .as_type = OPERANDS[at].as_type,
                     .scale = SCALES[random_bits() % 4]};
    uint8_t *data = guarded((size_t)(size * ev_item_size(x.type))), *zero = guarded((size_t)lines * 2);
    for (int64_t i = 0; i < size; i++)
        if (x.type == EV_FLOAT) ((float *)data)[i] = random_bits() % 4 ? middle(x.scale) : provoking();
        else for (int64_t b = 0; b < ev_item_size(x.type); b++) data[i * ev_item_size(x.type) + b] = (uint8_t)extreme(0, 255);
    for (int64_t i = 0; i < 2 * lines; i++) zero[i] = (uint8_t)extreme(0, 255);
    x.data = data, x.zero = OPERANDS[at].zeros ? zero : NULL, x.zero_step = OPERANDS[at].zeros == 2;
    return x;
}

/* Element i of the operand's line as an integer, and its zero point. */
static int32_t element(const ev_qoperand *x, int64_t line, int64_t i, int32_t *zero)
{
    const int type = x->type == EV_FLOAT ? x->as_type : x->type;
    *zero = x->zero ? item(type, x->zero, line * x->zero_step) : 0;
    if (x->type != EV_FLOAT) return item(type, x->data, i);
    return whole(((const float *)x->data)[i] / x->scale, *zero, lowest(type), highest(type));
}

/* Rows of A and panels of B, of pairs less their zero points (but for 16 bits) and of quads of bytes. */
void check_q_operands(void)
{
    char what[64];
    EACH(o, OPERANDS) EACH(m, SIZES) EACH(k, SIZES) for (int layout = 0; layout < 3; layout++) {
        const int64_t lines = SIZES[m_], k = SIZES[k_], l0 = 1, p0 = 2, all = lines + l0;
        const int64_t along = layout == 0 ? 1 : layout == 1 ? all + 1 : 2,
            apart = layout == 1 ? 1 : along * (k + p0) + 1;
        const ev_qoperand a = operand(o_, (all - 1) * apart + (k + p0 - 1) * along + 1, all, apart, along);
        ev_qoperand b = a;
        b.rs = along, b.cs = apart;
        const int64_t panels = (lines + EV_QNR - 1) / EV_QNR, pairs = (k + 1) / 2, quads = (k + 3) / 4;
        int16_t *rows = guarded((size_t)(lines * pairs) * 4), *columns = guarded((size_t)(panels * pairs * EV_QNR) * 4);
        uint8_t *row_quads = guarded((size_t)(lines * quads) * 4),
            *panel_quads = guarded((size_t)(panels * quads * EV_QNR) * 4);
        const int wide = a.type == EV_INT16 || a.as_type == EV_INT16, flip = k % 2 ? 0x80 : 0;
        K->qrows(&a, l0, lines, p0, k, rows);
        K->qpanels(&b, p0, k, l0, lines, columns);
        if (!wide) K->qquad_rows(&a, l0, lines, p0, k, flip, row_quads);
        if (!wide) K->qquad_panels(&b, p0, k, l0, lines, flip, panel_quads);
        snprintf(what, sizeof what, "operand %d, %d lines of %d, layout %d", (int)o_, (int)lines, (int)k, layout);
        for (int64_t l = 0; l < panels * EV_QNR; l++) for (int64_t p = 0; p < 4 * quads; p++) {
            const int inside = l < lines && p < k;
            int32_t zero = 0;
            const int32_t v = inside ? element(&a, l0 + l, (l0 + l) * apart + (p0 + p) * along, &zero) : 0;
            const int32_t less = a.type == EV_INT16 ? v : v - zero, centred = a.as_type == EV_INT16 ? v : less;
            const int64_t panel = l / EV_QNR, j = l % EV_QNR;
            if (p < 2 * pairs && l < lines && !same_i32("qrows", what, l * 2 * pairs + p, rows[l * 2 * pairs + p],
                                                        centred)) return;
            if (p < 2 * pairs && !same_i32("qpanels", what, p,
                    columns[((panel * pairs + p / 2) * EV_QNR + j) * 2 + p % 2], centred)) return;
            if (wide) continue;
            if (l < lines && !same_i32("qquad_rows", what, p, row_quads[l * 4 * quads + p],
                                       inside ? (v ^ flip) & 255 : 0)) return;
            if (inside && !same_i32("qquad_panels", what, p,
                                    panel_quads[((panel * quads + p / 4) * EV_QNR + j) * 4 + p % 4], (v ^ flip) & 255))
                return;
        }
        release_all();
    }
}

void check_q_sums(void)
{
    EACH(n, SIZES) EACH(k, SIZES) for (int add = 0; add < 2; add++) {
        const int64_t m = SIZES[n_], k = SIZES[k_], lda = k + 3, panels = (m + EV_QNR - 1) / EV_QNR;
        int8_t *a = guarded((size_t)((m - 1) * lda + k)), *b = guarded((size_t)(panels * k * 4 * EV_QNR));
        int32_t *rows = guarded((size_t)m * 4), *columns = guarded((size_t)(panels * EV_QNR) * 4);
        fill_bytes(a, (m - 1) * lda + k, 1), fill_bytes(b, panels * k * 4 * EV_QNR, 1);
        for (int64_t i = 0; i < m; i++) rows[i] = 7;
        for (int64_t j = 0; j < panels * EV_QNR; j++) columns[j] = 7;
        K->qrow_sums(m, k, a, lda, add, rows), K->qpanel_sums(m, k, b, add, columns);
        for (int64_t i = 0; i < m; i++) {
            int64_t want = add ? 7 : 0;
            for (int64_t p = 0; p < k; p++) want += a[i * lda + p];
            if (!same_i32("qrow_sums", "", i, rows[i], want)) return;
        }
        for (int64_t j = 0; j < m; j++) {
            int64_t want = add ? 7 : 0;
            for (int64_t p = 0; p < 4 * k; p++) want += b[((j / EV_QNR * k + p / 4) * EV_QNR + j % EV_QNR) * 4 + p % 4];
            if (!same_i32("qpanel_sums", "", j, columns[j], want)) return;
        }
        release_all();
    }
}

/* One row or column of int16 (any, or bytes less a zero point) by a matrix of bytes, modulo 2^32. */
void check_q_vectors(void)
{
    static const int16_t LEAST[] = {-32767, -127, 0, -20}; /* of x, within 254 of it but for the first */
    EACH(n, SIZES) EACH(k, SIZES) EACH(l, LEAST) for (int is_signed = 0; is_signed < 2; is_signed++) {
        const int64_t n = SIZES[n_], k = SIZES[k_], inc = 1 + k % 2;
        int16_t *x = guarded((size_t)k * 2);
        uint8_t *dots = guarded((size_t)(n * (k + 1) - 1)), *rows = guarded((size_t)(k * (n + 1) - 1));
        int32_t *y = guarded((size_t)((n - 1) * inc + 1) * 4), *z = guarded((size_t)((n + EV_QNR - 1) / EV_QNR * EV_QNR) * 4);
        fill_i16(x, k, l_ ? 127 : 32767);
        for (int64_t i = 0; l_ && i < k; i++) x[i] += LEAST[l_] + 127;
        fill_bytes(dots, n * (k + 1) - 1, is_signed), fill_bytes(rows, k * (n + 1) - 1, is_signed);
        for (int64_t j = 0; j < n; j++) y[j * inc] = z[j] = -5;
        K->qdot(n, k, x, dots, k + 1, is_signed, y, inc), K->qaxpy(n, k, x, rows, n + 1, is_signed, z);
        for (int64_t j = 0; j < n; j++) {
            int64_t dot = -5, sum = -5;
            for (int64_t p = 0; p < k; p++) {
                dot += (int64_t)x[p] * item(is_signed ? EV_INT8 : EV_UINT8, dots, j * (k + 1) + p);
                sum += (int64_t)x[p] * item(is_signed ? EV_INT8 : EV_UINT8, rows, p * (n + 1) + j);
            }
            if (!same_i32("qdot", "", j, y[j * inc], dot) || !same_i32("qaxpy", "", j, z[j], sum)) return;
        }
        release_all();
    }
}

void check_q_normalize(void)
{
    static const int TYPES[] = {EV_UINT8, EV_INT8};
    EACH(n, SIZES) EACH(t, TYPES) EACH(o, TYPES) {
        const int64_t n = SIZES[n_], rows = 300, step = n + 1;
        const int type = TYPES[t_], out = TYPES[o_], is_signed = type == EV_INT8;
        uint8_t *x = guarded((size_t)(rows * step - 1)), *y = guarded((size_t)n), largest;
        float *v = floats(n), *w = floats(n), *scale = floats(n), *bias = floats(n), *z = guarded((size_t)n * 4),
            *table = guarded(256 * 4);
        int32_t *columns = guarded((size_t)n * 4);
        int64_t sum = 3, square = 4, want_sum = 3, want_square = 4, total, want_total = 0;
        fill_bytes(x, rows * step - 1, is_signed);
        for (int64_t r = 0; r < rows; r++) x[r * step] = is_signed ? 127 : 255; /* more than 16 bits hold, in one column */
        for (int i = 0; i < 256; i++) table[i] = (float)(random_bits() % 100000);
        for (int64_t i = 0; i < n; i++) scale[i] *= 40, columns[i] = 9;
        const int32_t zero = (int32_t)extreme(lowest(type), highest(type)), zero_out = out == EV_INT8 ? -7 : 90;
        K->q_moments(type, n, x, zero, &sum, &square);
        K->q_sum_cols(type, rows, step, n, x, columns);
        K->q_exp_sum(n, x, is_signed ? 0x80 : 0, table, &largest, &total);
        K->q_affine_f32(n, v, 0.3f, 2.5f, scale, bias, z);
        K->q_normalize(type, n, x, zero, 0.3f, 0.02f, scale, bias, out, zero_out, lowest(out) + 3, highest(out), y);
        int most = 0;
        for (int64_t i = 0; i < n; i++) most = (x[i] ^ (is_signed ? 0x80 : 0)) > most ? x[i] ^ (is_signed ? 0x80 : 0) : most;
        for (int64_t i = 0; i < n; i++) {
            const int32_t c = item(type, x, i) - zero;
            int64_t column = 9;
            want_sum += c, want_square += c * c,
                want_total += (int64_t)table[255 - most + (x[i] ^ (is_signed ? 0x80 : 0))];
            for (int64_t r = 0; r < rows; r++) column += item(type, x, r * step + i);
            volatile float p = (v[i] - 0.3f) * 2.5f * scale[i], q = ((float)c - 0.3f) * 0.02f * scale[i],
                r = q + bias[i];
            if (!same_i32("q_sum_cols", "", i, columns[i], column) ||
                !close_to("q_affine_f32", "", i, z[i], p + bias[i], 0) ||
                !same_i32("q_normalize", "", i, item(out, y, i), whole(r, zero_out, lowest(out) + 3, highest(out))))
                return;
        }
        if (!same_i32("q_moments", "sum", n, (int32_t)sum, want_sum) ||
            !same_i32("q_moments", "square", n, (int32_t)square, want_square) ||
            !same_i32("q_exp_sum", "largest", n, largest, most) ||
            !same_i32("q_exp_sum", "total", n, (int32_t)total, want_total))
            return;
        for (int op = EV_QADD; op <= EV_QMUL; op++) {
            K->q_combine_f32(op, n, v, w, 0.7f, 1.3f, z);
            for (int64_t i = 0; i < n; i++) {
                volatile float left = v[i] * 0.7f, right = w[i] * 1.3f, product = v[i] * w[i];
                if (!close_to("q_combine_f32", "", i, z[i], op == EV_QMUL ? product * 0.7f : left + right, 0)) return;
            }
        }
        release_all();
    }
}

/* Weights of 2, 3, 4 and 8 bits in blocks: a panel of them, and a part of a row. Off by three roundings. */
void check_nbits_floats(void)
{
    static const int BITS[] = {2, 3, 4, 8};
    enum { ROWS = 18, K_ALL = 320 };
    char what[64];
    EACH(b, BITS) for (int log_block = 4; log_block < 8; log_block++) for (int zeros = 0; zeros < 2; zeros++)
    for (int64_t k = 1; k < 300; k += 47) {
        const int bits = BITS[b_];
        const int64_t blocks = (K_ALL + (1 << log_block) - 1) >> log_block, bytes = (blocks << log_block) * bits / 8;
        uint8_t *q = guarded((size_t)(ROWS * bytes));
        float *scale = floats(ROWS * blocks), *zero = floats(ROWS * blocks), *row = guarded((size_t)k * 4);
        float *panel = guarded((size_t)k * EV_NR_F32 * 4);
        for (int64_t i = 0; i < ROWS * bytes; i++) q[i] = (uint8_t)random_bits();
        const ev_nbits w = {q, bytes, scale, zeros ? zero : NULL, 0, blocks, bits, log_block, EV_FLOAT, EV_FLOAT};
        const int64_t p0 = 16, j0 = 2, n = k % 2 ? EV_NR_F32 : 7;
        K->nbits_panel_f32(&w, j0, n, p0, k, panel);
        K->nbits_widen_f32(&w, ROWS - 1, p0 - 3, k, row);
        snprintf(what, sizeof what, "%d bits, blocks of %d, k=%d", bits, 1 << log_block, (int)k);
        for (int64_t i = 0; i < k * (EV_NR_F32 + 1); i++) {
            const int of_row = i >= k * EV_NR_F32;
            const int64_t j = of_row ? ROWS - 1 : j0 + i % EV_NR_F32,
                p = of_row ? p0 - 3 + i - k * EV_NR_F32 : p0 + i / EV_NR_F32;
            if (!of_row && i % EV_NR_F32 >= n) {
                if (!close_to("nbits_panel_f32", what, i, panel[i], 0, 0)) return;
                continue;
            }
            int number = 0;
            for (int t = 0; t < bits; t++) number |= (q[j * bytes + (p * bits + t) / 8] >> (p * bits + t) % 8 & 1) << t;
            const double s = scale[j * blocks + (p >> log_block)],
                z = zeros ? zero[j * blocks + (p >> log_block)] : 1 << (bits - 1);
            if (!close_to(of_row ? "nbits_widen_f32" : "nbits_panel_f32", what, i,
                          of_row ? row[i - k * EV_NR_F32] : panel[i],
                          (number - z) * s, 1.5 * FLT_EPSILON * (number + (1 << bits) + fabs(z)) * fabs(s)))
                return;
        }
        release_all();
    }
}
