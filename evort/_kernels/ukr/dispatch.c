#include "ukr.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
extern const ev_ukr ev_ukr_table__avx2, ev_ukr_table__avx512, ev_ukr_table__avx512vnni;

/* What the processor says of itself. Asked once: under a hypervisor each question takes microseconds. */
static struct {
    int known;
    unsigned c1, b7, c7; /* leaf 1, ecx; leaf 7, ebx and ecx; 0 where there is none */
    unsigned saved;      /* the registers that the operating system saves (XCR0: 6 for 256 bits, 0xe6 for 512) */
} cpu;

static int has(unsigned c1, unsigned b7, unsigned c7, unsigned saved)
{
    if (!cpu.known) {
        unsigned a, b, d, high;
        const unsigned last = __get_cpuid_max(0, NULL);
        if (last >= 1) __cpuid(1, a, b, cpu.c1, d);
        if (last >= 7) __cpuid_count(7, 0, a, cpu.b7, cpu.c7, d);
        if (cpu.c1 & 1u << 27) __asm__ volatile("xgetbv" : "=a"(cpu.saved), "=d"(high) : "c"(0)); /* OSXSAVE */
        cpu.known = 1;
    }
    return (cpu.c1 & c1) == c1 && (cpu.b7 & b7) == b7 && (cpu.c7 & c7) == c7 && (cpu.saved & saved) == saved;
}

static int has_avx2(void) { return has(1u << 12 | 1u << 28 | 1u << 29, 1u << 5, 0, 6); /* FMA, AVX, F16C; AVX2 */ }

static int has_avx512(void)
{
    return has_avx2() && has(0, 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, 0, 0xe6); /* F, DQ, BW, VL */
}

static int has_avx512vnni(void) { return has_avx512() && has(0, 0, 1u << 11, 0xe6); }
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
            if (!chosen.mr) {
                chosen.mr = ISAS[j].table->mr;
                chosen.packs_a = ISAS[j].table->packs_a;
                chosen.masks = ISAS[j].table->masks;
            }
#define EV_UKERNEL(name, args) if (!chosen.name) chosen.name = ISAS[j].table->name;
#include "ukernels.inc"
#undef EV_UKERNEL
        }
        ev_active = chosen;
        return 0;
    }
    return -1;
}
