#include "ukr.h"

#include <string.h>

extern const ev_ukr ev_ukr_table__scalar;
#if defined(__x86_64__)
#include <cpuid.h>
extern const ev_ukr ev_ukr_table__avx2;

/* AVX2, FMA and F16C in the processor, and the upper register halves saved by the operating system (XCR0). */
static int has_avx2(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    const unsigned fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
    const unsigned want = fma | osxsave | avx | f16c;
    if ((c & want) != want) return 0;
    unsigned lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    if ((lo & 6u) != 6u) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1u << 5));
}
#endif

ev_ukr ev_active;

static int always(void) { return 1; }

/* Best first. */
static const struct {
    const ev_ukr *table;
    int (*usable)(void);
} ISAS[] = {
#if defined(__x86_64__)
    {&ev_ukr_table__avx2, has_avx2},
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
        ev_active = *ISAS[i].table;
        return 0;
    }
    return -1;
}
