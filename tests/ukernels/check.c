/* Runs the micro-kernels of every instruction set that this processor has (or QEMU pretends to) beside plain loops: odd
 * sizes, extremes of every type, memory that ends at a guard page.
 *
 *   check            all instruction sets, with their names and counts; exit status 1 where a result differs
 *   check ISA...     these; 2 where the processor lacks one
 *
 * A row of a table has its case in CASES. On aarch64, where little else runs the tables of wider instruction sets, a row
 * that differs from the portable one and has no case is a failure. Every table runs every case, as rows that it inherits
 * must agree with its own (on the width of panels of A, say). */
#include <float.h>
#include <math.h>

#include "check.h"

const ev_ukr *K = &ev_active;
long failures, checks;

static struct {
    void *base;
    size_t bytes;
} held[64];
static int n_held;

void *guarded(size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page;
    char *base = mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED || mprotect(base + whole, page, PROT_NONE) || n_held == 64) abort();
    held[n_held].base = base;
    held[n_held++].bytes = whole + page;
    memset(base, 0x5a, whole);
    return base + whole - bytes;
}

void release_all(void)
{
    while (n_held) {
        n_held--;
        munmap(held[n_held].base, held[n_held].bytes);
    }
}

uint32_t random_bits(void)
{
    static uint64_t state = 88172645463325252u; /* xorshift64 */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

int64_t extreme(int64_t low, int64_t high)
{
    switch (random_bits() % 4) {
    case 0: return low;
    case 1: return high;
    default: return low + (int64_t)(random_bits() % (uint64_t)(high - low + 1));
    }
}

double uniform(void) { return (double)(int32_t)random_bits() / 2147483648.0; }

void fill_bytes(void *p, int64_t n, int is_signed)
{
    for (int64_t i = 0; i < n; i++) ((uint8_t *)p)[i] = (uint8_t)(is_signed ? extreme(-128, 127) : extreme(0, 255));
}

void fill_i16(int16_t *p, int64_t n, int64_t most)
{
    for (int64_t i = 0; i < n; i++) p[i] = (int16_t)extreme(-most, most);
}

void fill_floats(float *p, int64_t n)
{
    for (int64_t i = 0; i < n; i++) p[i] = (float)uniform();
}

int close_to(const char *row, const char *what, int64_t at, double got, double want, double most)
{
    checks++;
    if (isnan(want) ? isnan(got) : got == want || fabs(got - want) <= most) return 1;
    if (failures++ < 20)
        printf("%s %s: %s, element %lld is %.9g, not %.9g +- %.2g\n", K->isa, row, what, (long long)at, got, want, most);
    return 0;
}

int near(const char *row, const char *what, int64_t at, double got, double want, double size, int64_t k)
{
    return close_to(row, what, at, got, want,
                    (double)(2 * k + 8) * (FLT_EPSILON / 2) / (1 - (double)(k + 4) * FLT_EPSILON) * size);
}

int same_i32(const char *row, const char *what, int64_t at, int32_t got, int64_t want)
{
    checks++;
    if (got == (int32_t)want) return 1;
    if (failures++ < 20)
        printf("%s %s: %s, element %lld is %d, not %d\n", K->isa, row, what, (long long)at, got, (int32_t)want);
    return 0;
}

void check_gemm_f32(void);
void check_gemm_f64(void);
void check_gemm_packing_f32(void);
void check_gemm_packing_f64(void);
void check_gemm_few_f32(void);
void check_winograd_row(void);
void check_qc_tile(void);
void check_qgemm_u8(void);
void check_qgemm_i16(void);
void check_qquad_panels(void);
void check_nhwc_conv(void);
void check_sparse_f32(void);
void check_sparse_s8(void);
void check_nhwc_depthwise(void);
void check_nhwc_winograd(void);
void check_nhwc_columns(void);
void check_nhwc_max(void);
void check_sp_gather(void);
void check_direct(void);
void check_depthwise(void);
void check_q_floats(void);
void check_q_binary(void);
void check_q_lookup(void);
void check_integer_attention(void);
void check_unary(void);
void check_softmax_part(void);
void check_half(void);
void check_narrow(void);
void check_nbits(void);

static const struct {
    const char *row;
    void (*run)(void);
} CASES[] = {
    {"gemm_f32", check_gemm_f32}, {"gemm_f64", check_gemm_f64},
    {"gemm_packing_f32", check_gemm_packing_f32}, {"gemm_packing_f64", check_gemm_packing_f64},
    {"sp_tile_f32", check_sparse_f32}, {"sp_dot_f32", check_sparse_f32}, {"sp_tile_s8", check_sparse_s8},
    {"sp_dot_s8", check_sparse_s8}, {"qc_tile", check_qc_tile},
    {"gemm_few_f32", check_gemm_few_f32}, {"winograd_row_f32", check_winograd_row},
    {"qc_plain", check_qc_tile},  {"qgemm_u8", check_qgemm_u8}, {"qhas_u8", check_qgemm_u8},
    {"qquad_panels", check_qquad_panels},
    {"qgemm_i16", check_qgemm_i16}, {"nhwc_widen", check_nhwc_conv}, {"nhwc_has", check_nhwc_conv}, {"nhwc_conv", check_nhwc_conv},
    {"nhwc_depthwise", check_nhwc_depthwise}, {"nhwc_winograd_image", check_nhwc_winograd},
    {"nhwc_winograd_kernels", check_nhwc_winograd}, {"nhwc_winograd_results", check_nhwc_winograd},
    {"nhwc_quads", check_nhwc_columns}, {"nhwc_columns", check_nhwc_columns}, {"nhwc_max", check_nhwc_max},
    {"sp_gather", check_sp_gather}, {"direct_f32", check_direct}, {"direct_lanes_f32", check_direct},
    {"depthwise_f32", check_depthwise}, {"depthwise_rows_f32", check_depthwise},
    {"q_dequantize", check_q_floats}, {"q_quantize", check_q_floats}, {"q_round", check_q_floats},
    {"q_binary", check_q_binary}, {"q_lookup", check_q_lookup}, {"unary_f32", check_unary}, {"cast", check_half},
    {"softmax_part_f32", check_softmax_part}, {"qa_rows", check_integer_attention}, {"qa_most", check_integer_attention},
    {"qa_columns", check_integer_attention}, {"qa_real", check_integer_attention}, {"qa_weights", check_integer_attention},
    {"narrow_dot_f32", check_narrow}, {"narrow_rows_f32", check_narrow}, {"nbits_spread_f32", check_nbits},
    {"nbits_dot_f32", check_nbits}, {"nbits_spread_i16", check_nbits}, {"nbits_dot_i16", check_nbits},
};
enum { N_CASES = sizeof CASES / sizeof CASES[0] };

static void check_table(void)
{
    int rows = 0, own = 0, checked = 0;
    void (*last)(void) = NULL;
    const long before = checks;
#define EV_UKERNEL(name, args)                                                       \
    rows++;                                                                          \
    {                                                                                \
        const int is_own = K->name != ev_ukr_table__scalar.name;                     \
        int found = 0;                                                               \
        for (int i = 0; i < N_CASES; i++)                                            \
            if (!strcmp(CASES[i].row, #name)) {                                      \
                found = 1;                                                           \
                if (CASES[i].run != last) CASES[i].run();                            \
                last = CASES[i].run;                                                 \
                release_all();                                                       \
            }                                                                        \
        own += is_own;                                                               \
        checked += found;                                                            \
        REQUIRE(found || !is_own, #name)                                             \
    }
#if defined(__aarch64__)
#define REQUIRE(found, name)                                                         \
    if (!(found) && K->isa != ev_ukr_table__scalar.isa) {                            \
        failures++;                                                                  \
        printf("%s %s has no case in tests/ukernels\n", K->isa, name);               \
    }
#else
#define REQUIRE(found, name)
#endif
#include "ukernels.inc"
#undef EV_UKERNEL
    printf("%-14s %3d of %d rows are not the portable ones; %d have cases here: %ld results compared\n", K->isa, own,
           rows, checked, checks - before);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (ev_select(argv[i])) {
            printf("%s: this processor lacks it, or there is no such table\n", argv[i]);
            return 2;
        }
        check_table();
    }
    for (int i = 0; argc == 1 && ev_available(i); i++) {
        ev_select(ev_available(i));
        check_table();
    }
    if (failures) printf("%ld results differ\n", failures);
    return failures != 0;
}
