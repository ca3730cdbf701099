/* A thread pool of our own, on POSIX threads, rather than OpenMP's, because GCC's OpenMP runtime
 *   - keeps one team for each calling thread, so a server that calls in from 8 Python threads has 8 x N threads;
 *   - is broken in a child after fork() (multiprocessing's default on Linux for years): the first region hangs;
 *   - spins idle workers for milliseconds, which burns the quota of a container and the battery of a device.
 *
 * How it works:
 *   - No thread exists until a region first asks for more than one. The pool grows to the largest `threads` - 1 asked
 *     for and never shrinks.
 *   - A region claims workers that are free and never waits for busy ones, so concurrent callers share the pool
 *     instead of multiplying it; a caller that finds none free does its work alone.
 *   - Each thread has a contiguous part of the items, the same one in each region, so that it finds what it wrote in its
 *     own cache; whoever is through takes chunks of the others' parts. So it does not matter when, or whether, a worker
 *     arrives: one that has not woken up when the work is done is un-claimed, not waited for.
 *   - After a region a worker looks out for the next, as layers follow each other closely: while a model runs for
 *     200 microseconds (ev_spin; 0 for not at all), else for a quarter of it. Then it sleeps. A worker that looks out is
 *     given smaller pieces of work than one that has to be woken.
 *   - A child after fork() starts with an empty pool.
 *
 * A worker's `slot` says what it does:
 *
 *      FREE --caller: compare-and-swap--> &region --worker: compare-and-swap--> TAKEN --worker--> FREE
 *                                            |
 *                                            +----caller takes it back----> FREE */
#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MAX_WORKERS = 127, STACK_BYTES = 1 << 20 };
enum { AWAKE = 4 }; /* the share of a region's grain that is worth giving to a worker that is awake */

typedef struct {
    _Alignas(64) _Atomic int64_t next; /* first item that nobody has taken */
    int64_t end;
} part_t;

typedef struct {
    ev_task fn;
    void *ctx;
    int64_t chunk;
    part_t *parts;              /* one for each thread */
    int32_t threads;
    _Atomic int32_t ids;        /* worker numbers given out */
    _Atomic int32_t active;     /* claimed workers that may still look at this region */
} region_t;

#define FREE ((region_t *)0)
#define TAKEN ((region_t *)1)

typedef struct {
    _Alignas(64) region_t *_Atomic slot;
    _Atomic int asleep;
    pthread_mutex_t mutex;      /* guards going to sleep */
    pthread_cond_t wake;
} worker_t;

static worker_t workers[MAX_WORKERS];
static _Atomic int32_t n_workers;
static pthread_mutex_t growing = PTHREAD_MUTEX_INITIALIZER;
static int fork_handled;
static int64_t spin_us = 200, spin_ns; /* as wanted, and in use; 0: nobody spins */
static _Atomic int32_t running;        /* models that run */

/* Callers that sleep until their region's last worker is through. Static, as a region is gone once it is done. */
static pthread_mutex_t done_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t done = PTHREAD_COND_INITIALIZER;
static _Atomic int32_t done_waiters;

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void relax(void)
{
#if defined(__x86_64__)
    for (int i = 0; i < 16; i++) __builtin_ia32_pause();
#elif defined(__aarch64__)
    for (int i = 0; i < 16; i++) __asm__ volatile("yield");
#endif
}

static void work(region_t *r, int32_t id)
{
    for (int32_t k = 0; k < r->threads; k++) {
        part_t *part = &r->parts[(id + k) % r->threads];
        for (;;) {
            if (atomic_load(&part->next) >= part->end) break;
            const int64_t begin = atomic_fetch_add(&part->next, r->chunk);
            if (begin >= part->end) break;
            r->fn(r->ctx, begin, begin + r->chunk < part->end ? begin + r->chunk : part->end, id);
        }
    }
}

/* Whether one that has looked out since `start` should go on. After a while others on its processor go first. */
static int keep_looking(int64_t start, int64_t limit)
{
    const int64_t spent = now_ns() - start;
    if (spent >= limit) return 0;
    if (spent < 10000) relax();
    else sched_yield();
    return 1;
}

/* Waits until the worker is claimed: looking for a while, then asleep. */
static region_t *await(worker_t *w)
{
    region_t *r;
    if (spin_ns)
        for (const int64_t start = now_ns(); keep_looking(start, atomic_load(&running) > 0 ? spin_ns : spin_ns / 4);)
            if ((r = atomic_load(&w->slot)) != FREE) return r;
    pthread_mutex_lock(&w->mutex);
    atomic_store(&w->asleep, 1);
    while ((r = atomic_load(&w->slot)) == FREE) pthread_cond_wait(&w->wake, &w->mutex);
    atomic_store(&w->asleep, 0);
    pthread_mutex_unlock(&w->mutex);
    return r;
}

static void *worker_main(void *arg)
{
    worker_t *w = arg;
    for (;;) {
        region_t *r = await(w);
        if (!atomic_compare_exchange_strong(&w->slot, &r, TAKEN)) continue;
        work(r, 1 + atomic_fetch_add(&r->ids, 1));
        atomic_store(&w->slot, FREE);
        if (atomic_fetch_sub(&r->active, 1) == 1 && atomic_load(&done_waiters) > 0) {
            pthread_mutex_lock(&done_mutex);
            pthread_cond_broadcast(&done);
            pthread_mutex_unlock(&done_mutex);
        }
    }
    return NULL;
}

static void before_fork(void) { pthread_mutex_lock(&growing); }
static void after_fork_parent(void) { pthread_mutex_unlock(&growing); }

/* Only the forking thread lives on in the child. Its mutexes and conditions may have been in use: made anew. */
static void after_fork_child(void)
{
    atomic_store(&n_workers, 0);
    atomic_store(&done_waiters, 0);
    atomic_store(&running, 0);
    pthread_mutex_init(&done_mutex, NULL);
    pthread_cond_init(&done, NULL);
    pthread_mutex_init(&growing, NULL);
}

static void start_worker(worker_t *w)
{
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t all, old;
    atomic_store(&w->slot, FREE);
    atomic_store(&w->asleep, 0);
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->wake, NULL);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigfillset(&all); /* signals are for the interpreter's threads; the new thread inherits the mask */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    if (pthread_create(&thread, &attributes, worker_main, w) == 0) {
#if defined(__linux__)
        pthread_setname_np(thread, "evort");
#endif
        atomic_fetch_add(&n_workers, 1);
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attributes);
}

/* Brings the pool to `want` workers, or to as many as the system allows. */
static void grow(int32_t want)
{
    pthread_mutex_lock(&growing);
    if (!fork_handled) {
        fork_handled = 1;
        spin_ns = ev_cpu_count() > 1 ? spin_us * 1000 : 0;
        pthread_atfork(before_fork, after_fork_parent, after_fork_child);
    }
    for (int32_t i = atomic_load(&n_workers); i < want && atomic_load(&n_workers) == i; i++) start_worker(&workers[i]);
    pthread_mutex_unlock(&growing);
}

/* Whether a free worker is awake. */
static int someone_looks(void)
{
    for (int32_t i = 0, n = atomic_load(&n_workers); i < n; i++)
        if (atomic_load(&workers[i].slot) == FREE && !atomic_load(&workers[i].asleep)) return 1;
    return 0;
}

void ev_spin(int64_t us) { spin_us = us; }
void ev_run_begins(void) { atomic_fetch_add(&running, 1); }
void ev_run_ends(void) { atomic_fetch_sub(&running, 1); }

void ev_parallel_for(ev_task fn, void *ctx, int64_t n, int64_t grain, int32_t threads)
{
    if (n <= 0) return;
    if (grain < 1) grain = 1;
    if (threads > n / grain && grain > 1 && someone_looks()) grain = (grain + AWAKE - 1) / AWAKE;
    if (threads > n / grain) threads = (int32_t)(n / grain);
    if (threads > MAX_WORKERS + 1) threads = MAX_WORKERS + 1;
    if (threads <= 1) {
        fn(ctx, 0, n, 0);
        return;
    }
    if (atomic_load(&n_workers) < threads - 1) grow(threads - 1);

    part_t parts[MAX_WORKERS + 1];
    region_t r = {.fn = fn, .ctx = ctx, .parts = parts, .threads = threads};
    const int64_t even = (n + threads * 4 - 1) / (threads * 4);
    r.chunk = even > grain ? even : grain;
    for (int32_t i = 0; i < threads; i++) {
        atomic_init(&parts[i].next, n * i / threads);
        parts[i].end = n * (i + 1) / threads;
    }

    int32_t claimed[MAX_WORKERS], n_claimed = 0;
    const int32_t available = atomic_load(&n_workers);
    for (int32_t i = 0; i < available && n_claimed < threads - 1; i++) {
        worker_t *w = &workers[i];
        region_t *expected = FREE;
        atomic_fetch_add(&r.active, 1);
        if (!atomic_compare_exchange_strong(&w->slot, &expected, &r)) {
            atomic_fetch_sub(&r.active, 1);
            continue;
        }
        claimed[n_claimed++] = i;
        if (atomic_load(&w->asleep)) {
            pthread_mutex_lock(&w->mutex);
            pthread_cond_signal(&w->wake);
            pthread_mutex_unlock(&w->mutex);
        }
    }
    work(&r, 0);

    for (int32_t i = 0; i < n_claimed; i++) {
        region_t *expected = &r;
        if (atomic_compare_exchange_strong(&workers[claimed[i]].slot, &expected, FREE)) atomic_fetch_sub(&r.active, 1);
    }
    if (spin_ns)
        for (const int64_t start = now_ns(); atomic_load(&r.active) > 0 && keep_looking(start, spin_ns / 4);) {}
    if (atomic_load(&r.active) > 0) {
        pthread_mutex_lock(&done_mutex);
        atomic_fetch_add(&done_waiters, 1);
        while (atomic_load(&r.active) > 0) pthread_cond_wait(&done, &done_mutex);
        atomic_fetch_sub(&done_waiters, 1);
        pthread_mutex_unlock(&done_mutex);
    }
}

int32_t ev_pool_size(void) { return atomic_load(&n_workers); }

/* The quota that one cgroup directory states, in processors; 0 for none. */
static double quota_of(const char *directory)
{
    char path[2300];
    double quota = 0, period = 0;
    FILE *f;
    snprintf(path, sizeof path, "%s/cpu.max", directory); /* version 2: "max 100000" or "150000 100000" */
    if ((f = fopen(path, "r"))) {
        if (fscanf(f, "%lf %lf", &quota, &period) != 2) quota = 0;
        fclose(f);
    } else {
        snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", directory); /* version 1: -1 or microseconds */
        if ((f = fopen(path, "r"))) {
            if (fscanf(f, "%lf", &quota) != 1) quota = 0;
            fclose(f);
        }
        snprintf(path, sizeof path, "%s/cpu.cfs_period_us", directory);
        if ((f = fopen(path, "r"))) {
            if (fscanf(f, "%lf", &period) != 1) period = 0;
            fclose(f);
        }
    }
    return quota > 0 && period > 0 ? quota / period : 0;
}

double ev_cpu_quota(const char *membership, const char *root)
{
    /* Version 2 is mounted at the root itself, version 1's cpu controller in a directory of its own. */
    static const char *const mounts[] = {"", "/cpu", "/cpu,cpuacct", "/cpuacct,cpu"};
    char line[1024], directory[2200];
    double least = 0;
    FILE *f = fopen(membership, "r");
    if (!f) return 0;
    while (fgets(line, sizeof line, f)) {
        /* hierarchy:controllers:path; version 2 has no controllers, version 1 has "cpu" among them */
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path) continue;
        *path++ = 0;
        controllers++;
        path[strcspn(path, "\n")] = 0;
        const int v2 = !*controllers, v1 = !v2 && strstr(controllers, "cpu") && strcmp(controllers, "cpuset") != 0;
        for (int m = v2 ? 0 : 1; m < (v2 ? 1 : v1 ? 4 : 0); m++) {
            char group[1024];
            snprintf(group, sizeof group, "%s", path);
            for (;;) { /* the group and its ancestors up to the mount point */
                snprintf(directory, sizeof directory, "%.1000s%s%s", root, mounts[m], strcmp(group, "/") ? group : "");
                const double quota = quota_of(directory);
                if (quota > 0 && (least == 0 || quota < least)) least = quota;
                char *slash = strrchr(group, '/');
                if (!slash) break;
                *slash = 0;
            }
        }
    }
    fclose(f);
    return least;
}

int32_t ev_cpu_count(void)
{
    long count = sysconf(_SC_NPROCESSORS_ONLN);
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
    const double quota = ev_cpu_quota("/proc/self/cgroup", "/sys/fs/cgroup");
    if (quota > 0 && quota < (double)count) count = (long)quota + ((double)(long)quota < quota);
#endif
    return count > 1 ? (int32_t)count : 1;
}
