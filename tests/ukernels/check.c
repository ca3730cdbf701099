/* Runs the micro-kernels of every instruction set that this processor has (or QEMU pretends to) beside plain loops: odd
 * sizes, extremes of every type, memory that ends at a guard page.
 *
 *   check            all instruction sets, with their names and counts; exit status 1 where a result differs
 *   check ISA...     these; 2 where the processor lacks one
 *
 * Every row has its case (cases.inc), and every table runs every case, as rows that it inherits must agree with its own (on
 * the width of panels of A, say). */
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

float *floats(int64_t n)
{
    float *p = guarded((size_t)n * sizeof *p);
    fill_floats(p, n);
    return p;
}

int close_to(const char *row, const char *what, int64_t at, double got, double want, double most)
{
    checks++;
    if (isnan(want) ? isnan(got) : got == want || fabs(got - want) <= most) return 1;
    if (failures++ < 20)
        printf("%s %s: %s, element %lld is %.9g, not %.9g +- %.2g\n", K->isa, row, what, (long long)at, got, want,
               most);
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

int same_bytes(const char *row, const char *what, const void *got, const void *want, size_t bytes)
{
    checks++;
    if (!memcmp(got, want, bytes)) return 1;
    size_t at = 0;
    while (((const uint8_t *)got)[at] == ((const uint8_t *)want)[at]) at++;
    if (failures++ < 20) printf("%s %s: %s differs from byte %zu of %zu on\n", K->isa, row, what, at, bytes);
    return 0;
}

int32_t lowest(int type) { return type == EV_INT8 ? -128 : type == EV_INT16 ? -32768 : 0; }

int32_t highest(int type)
{
    return type == EV_INT8 ? 127 : type == EV_INT16 ? 32767 : type == EV_UINT8 ? 255 : 65535;
}

int32_t item(int type, const void *x, int64_t i)
{
    return type == EV_UINT8   ? ((const uint8_t *)x)[i]
           : type == EV_INT8  ? ((const int8_t *)x)[i]
           : type == EV_INT16 ? ((const int16_t *)x)[i]
                              : ((const uint16_t *)x)[i];
}

int32_t whole(float x, int32_t zero, int32_t lo, int32_t hi)
{
    const double r = rint((double)x) + zero;
    return isnan(r) || r < lo ? lo : r > hi ? hi : (int32_t)r;
}

float provoking(void)
{
    static const float some[] = {NAN, INFINITY, -INFINITY, 3e9f, -3e9f, 2.5f, -0.5f, 1e-30f};
    const uint32_t r = random_bits() % 16;
    return r < 8 ? some[r] : (float)(uniform() * (r & 1 ? 40000 : 300));
}

#define CASE(run, rows) void run(void);
#include "cases.inc"
#undef CASE

static const struct {
    void (*run)(void);
    const char *rows; /* that it checks, each with a space on either side */
} CASES[] = {
#define CASE(run, rows) {run, " " rows " "},
#include "cases.inc"
#undef CASE
};
enum { N_CASES = sizeof CASES / sizeof CASES[0] };

static int has_case(const char *row)
{
    char word[64];
    snprintf(word, sizeof word, " %s ", row);
    for (int i = 0; i < N_CASES; i++)
        if (strstr(CASES[i].rows, word)) return 1;
    return 0;
}

static void check_table(void)
{
    int rows = 0, own = 0;
    const long before = checks;
    for (int i = 0; i < N_CASES; i++) {
        CASES[i].run();
        release_all();
    }
#define EV_UKERNEL(name, args)                          \
    rows++;                                             \
    own += K->name != ev_ukr_table__scalar.name;        \
    if (!has_case(#name)) {                             \
        failures++;                                     \
        printf("%s has no case in cases.inc\n", #name); \
    }
#include "ukernels.inc"
#undef EV_UKERNEL
    printf("%-14s %3d of %d rows are not the portable ones: %ld results compared\n", K->isa, own, rows,
           checks - before);
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
