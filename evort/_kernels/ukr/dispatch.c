#include "ukr.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
extern const ev_ukr ev_ukr_table__avx2, ev_ukr_table__avx512, ev_ukr_table__avx512vnni;

/* Whether the operating system saves these parts of the registers (XCR0: 2 and 4 the 256 bits, 0xe0 the 512). */
static int os_saves(unsigned mask)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) return 0; /* OSXSAVE */
    unsigned lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (lo & mask) == mask;
}

static int has_avx2(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    const unsigned want = 1u << 12 | 1u << 28 | 1u << 29; /* FMA, AVX, F16C */
    if ((c & want) != want || !os_saves(6u)) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1u << 5));
}

static int has_avx512(void)
{
    unsigned a, b, c, d;
    if (!has_avx2() || !os_saves(0xe6u) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    const unsigned want = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    return (b & want) == want;
}

static int has_avx512vnni(void)
{
    unsigned a, b, c, d;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & (1u << 11));
}
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
extern const ev_ukr ev_ukr_table__neon, ev_ukr_table__neon_dotprod, ev_ukr_table__neon_i8mm;

/* Bits of Linux's HWCAP and HWCAP2, which old headers lack. */
static int has_neon_dotprod(void) { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; }
static int has_neon_i8mm(void) { return has_neon_dotprod() && (getauxval(AT_HWCAP2) >> 13 & 1) != 0; }
#endif

static int always(void) { return 1; }

ev_ukr ev_active;

/* Best first; each can do what those below it can. A table has the rows that its instruction set does better. */
static const struct {
    const ev_ukr *table;
    int (*usable)(void);
} ISAS[] = {
#if defined(__x86_64__)
    {&ev_ukr_table__avx512vnni, has_avx512vnni},
    {&ev_ukr_table__avx512, has_avx512},
    {&ev_ukr_table__avx2, has_avx2},
#elif defined(__aarch64__) && defined(__linux__)
    {&ev_ukr_table__neon_i8mm, has_neon_i8mm},
    {&ev_ukr_table__neon_dotprod, has_neon_dotprod},
    {&ev_ukr_table__neon, always},
#endif
    {&ev_ukr_table__scalar, always},
};

#define N_ISAS ((int)(sizeof ISAS / sizeof ISAS[0]))

const char *ev_available(int index)
{
    for (int i = 0; i < N_ISAS; i++)
        if (ISAS[i].usable() && index-- == 0) return ISAS[i].table->isa;
    return NULL;
}

int ev_select(const char *isa)
{
    for (int i = 0; i < N_ISAS; i++) {
        if (isa && *isa && strcmp(isa, ISAS[i].table->isa) != 0) continue;
        if (!ISAS[i].usable()) continue;
        ev_ukr chosen = *ISAS[i].table;
        for (int j = i + 1; j < N_ISAS; j++) {
            if (!chosen.mr) chosen.mr = ISAS[j].table->mr;
#define EV_UKERNEL(name, args) if (!chosen.name) chosen.name = ISAS[j].table->name;
#include "ukernels.inc"
#undef EV_UKERNEL
        }
        ev_active = chosen;
        return 0;
    }
    return -1;
}
