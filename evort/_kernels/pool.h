/* The process's one thread pool. */
#ifndef EV_POOL_H
#define EV_POOL_H

#include <stdint.h>

/* Work on items [begin, end) of a range; `worker` is in [0, threads) and unique among the calls in flight. */
typedef void (*ev_task)(void *ctx, int64_t begin, int64_t end, int32_t worker);

/* Runs fn over [0, n) in chunks of at least `grain` items on up to `threads` threads, the caller's included, and
 * returns when all is done. With threads == 1 (or n <= grain) it is a plain call. */
void ev_parallel_for(ev_task fn, void *ctx, int64_t n, int64_t grain, int32_t threads);

/* Processors that this process may use: the CPU affinity mask and the cgroup's quota, at least 1. */
int32_t ev_cpu_count(void);

#endif
