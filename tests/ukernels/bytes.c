/* Quantized tensors element by element, and what integer attention does between its products, by their definitions:
 * every operation rounded by itself, to nearest even. */
#include <math.h>

#include "check.h"

static const int TYPES[] = {EV_UINT8, EV_INT8, EV_UINT16, EV_INT16};
static const int64_t COUNTS[] = {1, 3, 4, 7, 8, 9, 16, 31, 65};

void check_q_floats(void)
{
    char what[64];
    EACH(t, TYPES)
        EACH(n, COUNTS)
            for (int each = 0; each < 2; each++)
                for (int narrow = 0; narrow < 2; narrow++) {
                    const int type = TYPES[t_];
                    const int64_t n = COUNTS[n_], size = ev_item_size(type);
                    float *x = guarded((size_t)n * 4), *scale = guarded((size_t)n * 4), *back = guarded((size_t)n * 4);
                    void *zero = guarded((size_t)(n * size)), *y = guarded((size_t)(n * size));
                    fill_bytes(zero, n * size, 0);
                    for (int64_t i = 0; i < n; i++) x[i] = provoking(), scale[i] = (float)(0.01 + fabs(uniform()));
                    const int32_t lo = lowest(type) + 20 * narrow, hi = highest(type) - 30 * narrow;
                    snprintf(what, sizeof what, "type %d, n=%d, each %d", type, (int)n, each);
                    K->q_quantize(type, n, x, scale, zero, each, lo, hi, y);
                    K->q_dequantize(type, n, y, scale, zero, each, back);
                    for (int64_t i = 0; i < n; i++) {
                        const int32_t z = item(type, zero, each ? i : 0);
                        const float s = scale[each ? i : 0];
                        if (!same_i32("q_quantize", what, i, item(type, y, i), whole(x[i] / s, z, lo, hi))) return;
                        if (!close_to("q_dequantize", what, i, back[i], (float)(item(type, y, i) - z) * s, 0)) return;
                    }
                    const int32_t z = item(type, zero, 0);
                    K->q_round(type, n, x, scale[0], z, lo, hi, y);
                    for (int64_t i = 0; i < n; i++)
                        if (!same_i32("q_round", what, i, item(type, y, i), whole(x[i] * scale[0], z, lo, hi))) return;
                    release_all();
                }
}

void check_q_binary(void)
{
    char what[64];
    for (int is_signed = 0; is_signed < 2; is_signed++)
        EACH(n, COUNTS)
            for (int kind = 0; kind < 8; kind++) {
                const int type = is_signed ? EV_INT8 : EV_UINT8, op = kind & 1 ? EV_QMUL : EV_QADD, sa = !(kind & 2),
                          sb = !(kind & 4);
                const int64_t n = COUNTS[n_];
                const int32_t lo = lowest(type), hi = highest(type);
                void *a = guarded((size_t)(sa ? n : 1)), *b = guarded((size_t)(sb ? n : 1)), *y = guarded((size_t)n);
                fill_bytes(a, sa ? n : 1, is_signed), fill_bytes(b, sb ? n : 1, is_signed);
                const ev_qbinary p = {(float)(0.001 + fabs(uniform())),
                                      (float)fabs(uniform()),
                                      (int32_t)extreme(lo, hi),
                                      (int32_t)extreme(lo, hi),
                                      (int32_t)extreme(lo, hi),
                                      lo + (kind & 1),
                                      hi - 3};
                K->q_binary(type, op, n, a, sa, b, sb, &p, y);
                snprintf(what, sizeof what, "type %d, n=%d, kind %d", type, (int)n, kind);
                for (int64_t i = 0; i < n; i++) {
                    const float va = (float)(item(type, a, sa * i) - p.zero_a),
                                vb = (float)(item(type, b, sb * i) - p.zero_b);
                    volatile float left = va * p.scale_a, right = vb * p.scale_b, product = va * vb;
                    volatile float r = op == EV_QMUL ? product * p.scale_a : left + right;
                    if (!same_i32("q_binary", what, i, item(type, y, i), whole(r, p.zero, p.lo, p.hi))) return;
                }
                release_all();
            }
}

/* In place, too; products beyond what integers hold among them. */
void check_q_binary_tiled(void)
{
    static const int64_t TILES[] = {1, 8, 63, 64, 200, 1000}, ROUNDS[] = {1, 2, 5};
    char what[64];
    EACH(t, TILES) EACH(r, ROUNDS) for (int kind = 0; kind < 16; kind++) {
        const int is_signed = kind & 1, type = is_signed ? EV_INT8 : EV_UINT8, op = kind & 2 ? EV_QMUL : EV_QADD, inside = kind & 4;
        const int64_t tile = TILES[t_], n = tile * ROUNDS[r_] - (kind & 8 ? tile / 3 : 0);
        const int32_t lo = lowest(type), hi = highest(type);
        uint8_t *a = guarded((size_t)n), *b = guarded((size_t)tile), *y = guarded((size_t)n), *to = inside ? y : a;
        fill_bytes(a, n, is_signed), fill_bytes(b, tile, is_signed);
        uint8_t *was = guarded((size_t)n);
        memcpy(was, a, (size_t)n);
        const float scales[] = {(float)(0.001 * fabs(uniform())), (float)fabs(uniform()), 32.5f, 1e6f};
        const ev_qbinary p = {scales[random_bits() % 4], (float)fabs(uniform()), (int32_t)extreme(lo, hi), (int32_t)extreme(lo, hi),
                              (int32_t)extreme(lo, hi), lo + 1, hi - 3};
        K->q_binary_tiled(type, op, n, a, tile, b, &p, to);
        snprintf(what, sizeof what, "type %d, tile=%d, kind %d, scale %g", type, (int)tile, kind, (double)p.scale_a);
        for (int64_t i = 0; i < n; i++) {
            const float va = (float)(item(type, was, i) - p.zero_a), vb = (float)(item(type, b, i % tile) - p.zero_b);
            volatile float left = va * p.scale_a, right = vb * p.scale_b, product = va * vb;
            volatile float v = op == EV_QMUL ? product * p.scale_a : left + right;
            if (!same_i32("q_binary_tiled", what, i, item(type, to, i), whole(v, p.zero, p.lo, p.hi))) return;
        }
        release_all();
    }
}

void check_q_lookup(void)
{
    static const int64_t LONG[] = {1, 15, 16, 63, 64, 79, 200};
    EACH(n, LONG)
        for (int64_t size = 1; size <= 4; size *= 2) {
            const int64_t n = LONG[n_];
            uint8_t *x = guarded((size_t)n), *table = guarded((size_t)(256 * size)), *y = guarded((size_t)(n * size));
            for (int64_t i = 0; i < n; i++) x[i] = (uint8_t)random_bits();
            for (int64_t i = 0; i < 256 * size; i++) table[i] = (uint8_t)random_bits();
            K->q_lookup(size, n, x, table, y);
            for (int64_t i = 0; i < n * size; i++)
                if (!same_i32("q_lookup", size == 1 ? "bytes" : "wider", i, y[i], table[x[i / size] * size + i % size]))
                    return;
            if (size == 1) {
                K->q_lookup(size, n, x, table, x);
                if (memcmp(x, y, (size_t)n)) failures++, printf("%s q_lookup: in place differs\n", K->isa);
            }
            release_all();
        }
}

void check_nhwc_max(void)
{
    static const int64_t CHANNELS[] = {1, 3, 8, 15, 16, 17, 40};
    char what[64];
    EACH(c, CHANNELS)
        for (int64_t taps = 1; taps < 10; taps += 4)
            for (int64_t pixels = 1; pixels < 20; pixels += 6)
                for (int is_signed = 0; is_signed < 2; is_signed++) {
                    const int64_t n = CHANNELS[c_], step = n + 2,
                                  size = (pixels - 1) * step + 30 + n + (n < 16 ? 16 : 0);
                    uint8_t *x = guarded((size_t)size), *y = guarded((size_t)(pixels * n));
                    int32_t *offset = guarded((size_t)taps * 4);
                    for (int64_t i = 0; i < size; i++) x[i] = (uint8_t)random_bits();
                    for (int64_t t = 0; t < taps; t++) offset[t] = (int32_t)(random_bits() % 31);
                    K->nhwc_max(n, taps, offset, is_signed, x, step, pixels, y);
                    snprintf(what, sizeof what, "%d channels, %d taps, %d pixels, signed %d", (int)n, (int)taps,
                             (int)pixels, is_signed);
                    for (int64_t i = 0; i < pixels * n; i++) {
                        int want = -128;
                        for (int64_t t = 0; t < taps; t++) {
                            const uint8_t v = x[i / n * step + i % n + offset[t]];
                            const int number = is_signed ? (int8_t)v : v;
                            want = number > want ? number : want;
                        }
                        if (!same_i32("nhwc_max", what, i, y[i], (uint8_t)want)) return;
                    }
                    release_all();
                }
}

/* Rows of a panel of 64 columns, in runs. */
void check_sp_gather(void)
{
    static const int64_t DEPTHS[] = {1, 4, 9};
    EACH(k, DEPTHS)
        for (int runs = 1; runs < 5; runs++)
            for (int64_t size = 1; size <= 4; size += 3)
                for (int careful = 0; careful < 2; careful++) {
                    const int64_t k = DEPTHS[k_], reach = 200;
                    const int flip = size == 1 && runs % 2 ? 0x80 : 0;
                    ev_qrun run[4];
                    int64_t at = 0, far = 0;
                    for (int i = 0; i < runs; i++) {
                        run[i].at = at;
                        run[i].n = i == runs - 1 ? EV_SP_NR - at : 1 + (int64_t)(random_bits() % 17);
                        run[i].from = (int64_t)(random_bits() % 60);
                        at += run[i].n;
                        far = run[i].from + run[i].n > far ? run[i].from + run[i].n : far;
                    }
                    uint8_t *image = guarded((size_t)((careful ? 30 + far : reach) * size)),
                            *y = guarded((size_t)(k * EV_SP_NR * size + 15));
                    int32_t *offset = guarded((size_t)k * 4);
                    for (int64_t i = 0; i < (careful ? 30 + far : reach) * size; i++) image[i] = (uint8_t)random_bits();
                    for (int64_t p = 0; p < k; p++) offset[p] = (int32_t)(random_bits() % 31);
                    K->sp_gather(k, size, (const char *)image, offset, run, runs, careful, flip, (char *)y);
                    for (int64_t p = 0; p < k; p++)
                        for (int i = 0; i < runs; i++)
                            for (int64_t j = 0; j < run[i].n * size; j++)
                                if (!same_i32("sp_gather", careful ? "careful" : "",
                                              p * EV_SP_NR * size + run[i].at * size + j,
                                              y[(p * EV_SP_NR + run[i].at) * size + j],
                                              image[(run[i].from + offset[p]) * size + j] ^ flip))
                                    return;
                    release_all();
                }
}

/* An integer is a rounded real number: half off, and what that number's own rounding gives. */
static int rounded(const char *row, int64_t at, int32_t got, double real)
{
    return close_to(row, "rounding", at, got, real, 0.5 + 1e-4);
}

void check_integer_attention(void)
{
    static const int64_t WIDE[] = {1, 15, 16, 63, 64, 65, 130};
    enum { ROWS = 3, BEHIND = 64 };
    EACH(n, WIDE)
        for (int kind = 0; kind < 4; kind++) {
            const int64_t n = WIDE[n_], ld = n + 3;
            float *x = guarded((size_t)((ROWS - 1) * ld + n) * 4), scale[ROWS], *most = guarded((size_t)n * 4), total;
            uint8_t *y = guarded((size_t)(ROWS * n + BEHIND));
            int32_t *bits = guarded((size_t)n * 4);
            fill_floats(x, (ROWS - 1) * ld + n);
            if (kind == 1) memset(x, 0, (size_t)n * 4);
            if (kind == 2) x[n / 2] = NAN;
            K->qa_rows(ROWS, n, x, ld, kind & 1 ? 0x80 : 0, y, n, scale);
            for (int64_t r = 0; r < ROWS; r++) {
                double largest = 0;
                for (int64_t j = 0; j < n; j++)
                    largest = isnan(x[r * ld + j]) || isnan(largest) ? NAN : fmax(largest, fabs(x[r * ld + j]));
                if (!close_to("qa_rows", "scale", r, scale[r], largest / 127, 1e-8)) return;
                for (int64_t j = 0; j < n && !isnan(largest); j++)
                    if (!rounded("qa_rows", r * n + j, (int8_t)(y[r * n + j] ^ (kind & 1 ? 0x80 : 0)),
                                 largest > 0 ? x[r * ld + j] / largest * 127 : 0))
                        return;
            }
            memset(bits, 0, (size_t)n * 4);
            K->qa_most(ROWS, n, x, ld, bits);
            memcpy(most, bits, (size_t)n * 4);
            K->qa_columns(ROWS, n, x, ld, most, (int8_t *)y);
            for (int64_t j = 0; j < n; j++) {
                double largest = 0;
                for (int64_t r = 0; r < ROWS; r++)
                    largest = isnan(x[r * ld + j]) || isnan(largest) ? NAN : fmax(largest, fabs(x[r * ld + j]));
                if (!close_to("qa_most", "", j, most[j], largest, 0)) return;
                for (int64_t r = 0; r < ROWS && !isnan(largest); r++)
                    if (!rounded("qa_columns", r * n + j, (int8_t)y[r * n + j],
                                 largest > 0 ? x[r * ld + j] / largest * 127 : 0))
                        return;
            }
            for (int64_t j = 0; j < n; j++) x[j] *= kind == 3 ? 30 : 3;
            K->qa_weights(n, x, y, &total);
            double largest = x[0], sum = 0;
            for (int64_t j = 0; j < n; j++) largest = isnan(x[j]) || isnan(largest) ? NAN : fmax(largest, x[j]);
            for (int64_t j = 0; j < n; j++) {
                const double w = 255 * exp(x[j] - largest);
                sum += y[j];
                if (!close_to("qa_weights", "", j, y[j], isnan(largest) ? 0 : w, w < 1 ? 1 : 0.5 + 1e-3)) return;
            }
            if (!close_to("qa_weights", "total", n, total, isnan(largest) ? NAN : sum, 0)) return;
            int32_t *sums = guarded(ROWS * EV_QNR * 4), less[EV_QNR];
            float *real = guarded((size_t)((ROWS - 1) * ld + n) * 4), row[ROWS], column[EV_QNR];
            const int64_t some = n < EV_QNR ? n : EV_QNR;
            for (int64_t i = 0; i < ROWS * EV_QNR; i++) sums[i] = (int32_t)extreme(-1000000, 1000000);
            for (int64_t i = 0; i < EV_QNR; i++) less[i] = (int32_t)extreme(-1000, 1000), column[i] = (float)uniform();
            fill_floats(row, ROWS);
            K->qa_real(ROWS, some, sums, less, row, column, real, ld);
            for (int64_t r = 0; r < ROWS; r++)
                for (int64_t j = 0; j < some; j++) {
                    const double want = (double)(sums[r * EV_QNR + j] - less[j]) * row[r] * column[j];
                    if (!near("qa_real", "", r * ld + j, real[r * ld + j], want, fabs(want), 1)) return;
                }
            release_all();
        }
}
