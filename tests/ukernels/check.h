/* What the checks of micro-kernels share: memory that ends at a page that nobody may touch, and numbers that provoke. */
#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ukr.h"

extern const ev_ukr *K;   /* the table in use */
extern long failures, checks;

/* `bytes` of memory, filled with rubbish; what is read or written behind it crashes. Freed by release_all(). */
void *guarded(size_t bytes);
void release_all(void);

uint32_t random_bits(void);
/* From low to high, the ends more often than not. */
int64_t extreme(int64_t low, int64_t high);
double uniform(void); /* -1 to 1 */

void fill_bytes(void *p, int64_t n, int is_signed);
void fill_i16(int16_t *p, int64_t n, int64_t most);

void fill_floats(float *p, int64_t n); /* -1 to 1 */
float *floats(int64_t n);              /* guarded, and so filled */

/* Counts a check; prints what differs. */
int same_i32(const char *row, const char *what, int64_t at, int32_t got, int64_t want);
/* The same for memory. */
int same_bytes(const char *row, const char *what, const void *got, const void *want, size_t bytes);
/* The same for a number that may be off by `most`. */
int close_to(const char *row, const char *what, int64_t at, double got, double want, double most);
/* The same for a float32 sum of k products, whose sizes add up to `size`. It is off by at most gamma(k) times that (Higham,
 * Accuracy and Stability, section 3.1). */
int near(const char *row, const char *what, int64_t at, double got, double want, double size, int64_t k);

/* Quantized numbers: the ends of a type, an item of memory, and a number as an integer of [lo, hi]: NaN as the smallest. */
int32_t lowest(int type);
int32_t highest(int type);
int32_t item(int type, const void *x, int64_t i);
int32_t whole(float x, int32_t zero, int32_t lo, int32_t hi);
float provoking(void); /* numbers around ties and bounds, and what is none */

#define EACH(x, array) for (size_t x##_ = 0; x##_ < sizeof array / sizeof *array; x##_++)

#endif
