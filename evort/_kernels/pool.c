#define _GNU_SOURCE
#include "pool.h"

#include <sched.h>

void ev_parallel_for(ev_task fn, void *ctx, int64_t n, int64_t grain, int32_t threads)
{
    (void)grain;
    (void)threads;
    if (n > 0) fn(ctx, 0, n, 0);
}

int32_t ev_cpu_count(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}
