/* The process's one thread pool. */
#ifndef EV_POOL_H
#define EV_POOL_H

#include <stdint.h>

/* Work on items [begin, end) of a range; `worker` is in [0, threads) and no two calls of one region that run at the
 * same time have the same. */
typedef void (*ev_task)(void *ctx, int64_t begin, int64_t end, int32_t worker);

/* Runs fn over [0, n) in chunks of at least `grain` items on up to `threads` threads, the caller's included, and
 * returns when all is done. With threads == 1 or too few items it is a plain call fn(ctx, 0, n, 0): n < 2*grain where a
 * worker would have to be woken, which is what `grain` is about, a quarter of that where one is awake. May be called from
 * any thread, also from inside a task. Never fails: with no worker to be had, the caller does all the work. */
void ev_parallel_for(ev_task fn, void *ctx, int64_t n, int64_t grain, int32_t threads);

/* Microseconds for which a worker looks out for the next layer of a model that runs; 0: it sleeps at once. Before the
 * first region. */
void ev_spin(int64_t us);

/* A model runs from one to the other: workers look out for its next layer for longer. */
void ev_run_begins(void);
void ev_run_ends(void);

/* Threads that the pool has started in this process, the callers' own not counted. */
int32_t ev_pool_size(void);

/* Processors that this process may use: the CPU affinity mask and the cgroups' quota (rounded up), at least 1. */
int32_t ev_cpu_count(void);

/* The smallest CPU quota (in processors; 0 for none) of the cgroups that `membership` (/proc/self/cgroup) names and of
 * their ancestors, under the mount point `root` (/sys/fs/cgroup); versions 1 and 2. */
double ev_cpu_quota(const char *membership, const char *root);

#endif
