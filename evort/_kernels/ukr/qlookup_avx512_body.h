/* Tables of 256 bytes by AVX-512: four registers hold one whole. */

/* 64 bytes at a time, the last ones by mask: with VBMI (Ice Lake, Zen 4 and later) two instructions look up the halves of
 * the table, which the top bit of a byte chooses between; y may be x. Returns how many were looked up: 0 without VBMI. */
__attribute__((target("avx512vbmi"))) static int64_t EV_FN(q_lookup_bytes)(int64_t n, const uint8_t *x,
                                                                           const uint8_t *table, uint8_t *y)
{
    if (!__builtin_cpu_supports("avx512vbmi")) return 0;
    __m512i part[4];
    for (int k = 0; k < 4; k++) part[k] = _mm512_loadu_si512(table + 64 * k);
    for (int64_t i = 0; i < n; i += 64) {
        const __mmask64 there = n - i < 64 ? ~0ULL >> (64 - (n - i)) : ~0ULL;
        const __m512i v = _mm512_maskz_loadu_epi8(there, x + i);
        const __m512i low = _mm512_permutex2var_epi8(part[0], v, part[1]);
        const __m512i high = _mm512_permutex2var_epi8(part[2], v, part[3]);
        _mm512_mask_storeu_epi8(y + i, there, _mm512_mask_blend_epi8(_mm512_movepi8_mask(v), low, high));
    }
    return n;
}

/* y = table[x], entries of `size` bytes. */
static void EV_FN(q_lookup)(int64_t size, int64_t n, const uint8_t *x, const void *table, void *y)
{
    if (size != 1 || !EV_FN(q_lookup_bytes)(n, x, table, y)) ev_ukr_table__avx2.q_lookup(size, n, x, table, y);
}
