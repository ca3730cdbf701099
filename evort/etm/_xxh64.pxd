"""XXH64, the checksum of `.etm` files (Yann Collet, https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md)."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #define XXH_P1 0x9E3779B185EBCA87ULL
    #define XXH_P2 0xC2B2AE3D27D4EB4FULL
    #define XXH_P3 0x165667B19E3779F9ULL
    #define XXH_P4 0x85EBCA77C2B2AE63ULL
    #define XXH_P5 0x27D4EB2F165667C5ULL
    #define XXH_ROTL(x, r) (((x) << (r)) | ((x) >> (64 - (r))))
    """
    const uint64_t P1 "XXH_P1"
    const uint64_t P2 "XXH_P2"
    const uint64_t P3 "XXH_P3"
    const uint64_t P4 "XXH_P4"
    const uint64_t P5 "XXH_P5"
    uint64_t rotl "XXH_ROTL" (uint64_t x, int r) noexcept nogil


cdef inline uint64_t lane(const uint8_t *p) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, p, 8)
    return value


cdef inline uint64_t mix(uint64_t accumulator, uint64_t value) noexcept nogil:
    accumulator += value * P2
    return rotl(accumulator, 31) * P1


cdef inline uint64_t merge(uint64_t h, uint64_t accumulator) noexcept nogil:
    return (h ^ mix(0, accumulator)) * P1 + P4


cdef inline uint64_t xxh64(const uint8_t *p, uint64_t n, uint64_t seed) noexcept nogil:
    """The hash of n bytes, on a little-endian machine."""
    cdef uint64_t a, b, c, d, h
    cdef uint64_t left = n
    cdef uint32_t word
    if n >= 32:
        a, b, c, d = seed + P1 + P2, seed + P2, seed, seed - P1
        while left >= 32:
            a = mix(a, lane(p))
            b = mix(b, lane(p + 8))
            c = mix(c, lane(p + 16))
            d = mix(d, lane(p + 24))
            p += 32
            left -= 32
        h = rotl(a, 1) + rotl(b, 7) + rotl(c, 12) + rotl(d, 18)
        h = merge(merge(merge(merge(h, a), b), c), d)
    else:
        h = seed + P5
    h += n
    while left >= 8:
        h ^= mix(0, lane(p))
        h = rotl(h, 27) * P1 + P4
        p += 8
        left -= 8
    if left >= 4:
        memcpy(&word, p, 4)
        h ^= word * P1
        h = rotl(h, 23) * P2 + P3
        p += 4
        left -= 4
    while left:
        h ^= p[0] * P5
        h = rotl(h, 11) * P1
        p += 1
        left -= 1
    h = (h ^ (h >> 33)) * P2
    h = (h ^ (h >> 29)) * P3
    return h ^ (h >> 32)
