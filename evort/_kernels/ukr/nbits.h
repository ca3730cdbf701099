/* Matrices of 2, 3, 4 or 8 bits a weight, in blocks along K that share a scale (and a zero point):
 *
 *     weight = (q - zero) * scale
 *
 * A row is one stream of bits, little-endian: number p of the row takes the bits [bits*p, bits*(p+1)) of it. With 2, 4
 * and 8 bits that is the packing of onnxruntime's MatMulNBits; zero points are packed alike, a row of them for each
 * row. Rows have whole blocks of numbers, of which those past k mean nothing, or end with the byte of the last number. */
#ifndef EV_NBITS_H
#define EV_NBITS_H

#include <stdint.h>

typedef struct {
    const uint8_t *q;           /* row j at q + j*row_bytes */
    int64_t row_bytes;
    const void *scales;         /* scale b of row j at index j*blocks + b */
    const void *zeros;          /* NULL: all 2^(bits-1) */
    int64_t zero_bytes;         /* of a row, where they are packed */
    int64_t blocks;             /* of a row */
    int32_t bits;
    int32_t log_block;          /* log2 of the numbers in a block, at least 4 */
    int32_t scale_type;         /* EV_FLOAT, EV_FLOAT16 or EV_BFLOAT16 */
    int32_t zero_type;          /* EV_UINT8 where they are packed, or as scale_type */
} ev_nbits;

/* nbits_spread pads a vector to this many numbers: the most that a kernel takes at a time. */
#define EV_NBITS_PAD 256

#endif
