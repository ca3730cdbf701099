"""The thread pool: every item once, concurrent callers, fork, quotas, and no thread or CPU time without need."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from evort._kernels import core

SOURCE = """
# cython: language_level=3
from evort._kernels.core cimport parallel_for
from libc.stdint cimport int32_t, int64_t

ctypedef struct Probe:
    int32_t *hits       # how often each item ran
    int32_t *worker     # by whom
    int64_t rounds      # busy work for each item
    int32_t nested

cdef void task(void *ctx, int64_t begin, int64_t end, int32_t worker) noexcept nogil:
    cdef Probe *p = <Probe *> ctx
    cdef Probe inner
    cdef volatile int64_t x = 0
    cdef int64_t i, r
    for i in range(begin, end):
        for r in range(p.rounds):
            x = x + r
        if p.nested:
            inner = p[0]
            inner.nested = 0
            inner.hits = p.hits + i * 8
            inner.worker = p.worker + i * 8
            parallel_for(task, &inner, 8, 1, 4)
        else:
            p.hits[i] += 1
            p.worker[i] = worker

def probe(int32_t[::1] hits, int32_t[::1] worker, int64_t grain, int32_t threads, int64_t rounds=0, bint nested=False):
    cdef Probe p
    cdef int64_t n = len(hits)
    p.hits, p.worker, p.rounds, p.nested = &hits[0], &worker[0], rounds, nested
    with nogil:
        parallel_for(task, &p, n // 8 if nested else n, grain, threads)
"""


@pytest.fixture(scope="module")
def probe(native):
    module = native("pool_probe", SOURCE)

    def run(n: int, grain: int, threads: int, rounds: int = 0, nested: bool = False) -> np.ndarray:
        hits, worker = np.zeros(n, np.int32), np.full(n, -1, np.int32)
        module.probe(hits, worker, grain, threads, rounds, nested)
        np.testing.assert_array_equal(hits, 1)
        assert worker.min() >= 0
        assert worker.max() < threads if not nested else worker.max() < 4
        return worker

    run.folder = os.path.dirname(module.__file__)
    return run


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000, 99_991])
@pytest.mark.parametrize("grain", [1, 5, 64, 1 << 40])
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_item_runs_once(probe, n, grain, threads):
    probe(n, grain, threads)


def test_small_work_stays_with_the_caller(probe):
    time.sleep(0.01)  # until all sleep: workers that look out are given smaller work
    assert set(probe(100, 51, 4)) == {0}
    assert set(probe(100, 1, 1)) == {0}


def test_work_is_shared_when_it_is_worth_it(probe):
    for _ in range(50):  # a worker may wake up too late once, on a busy machine, but not always
        if len(set(probe(64, 1, 2, rounds=200_000))) == 2:
            return
    pytest.fail("the second thread never took an item")


def test_a_worker_that_is_awake_takes_smaller_work(probe):
    for _ in range(200):
        probe(64, 1, 2, rounds=2000)
        if len(set(probe(100, 51, 2, rounds=2000))) == 2:
            return
    pytest.fail("the second thread never took small work")


def test_each_thread_has_the_same_part(probe):
    """Each begins with its own half; what is taken of the other's is taken from its beginning."""
    for _ in range(50):
        worker = probe(64, 1, 2, rounds=200_000)
        if len(set(worker)) == 2:
            assert worker[0] == 0 or worker[32] == 1
            return
    pytest.fail("the second thread never took an item")


def test_regions_inside_tasks(probe):
    probe(8 * 16, 1, 3, rounds=1000, nested=True)


def test_concurrent_callers_share_one_pool(probe):
    probe(100, 1, 4)
    failures = []

    def call():
        try:
            for _ in range(200):
                probe(257, 3, 4, rounds=50)
        except AssertionError as error:
            failures.append(error)

    before = core.pool_threads()
    callers = [threading.Thread(target=call) for _ in range(6)]
    for t in callers:
        t.start()
    for t in callers:
        t.join()
    assert not failures
    assert core.pool_threads() == before


def python(code: str, path: str = "", **env: str) -> str:
    """Runs code in a fresh interpreter and returns what it prints."""
    child_env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **env}
    child_env["PYTHONPATH"] = os.pathsep.join(filter(None, [path, *sys.path]))
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=child_env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


CHILD = """
import os, sys, time
import numpy as np, pool_probe
from evort._kernels import core
def go(n, grain, threads, rounds=0):
    hits, worker = np.zeros(n, np.int32), np.zeros(n, np.int32)
    pool_probe.probe(hits, worker, grain, threads, rounds)
    assert (hits == 1).all()
    return worker
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads through /proc")
def test_one_thread_means_one_thread(probe):
    code = CHILD + "go(10000, 1, 1); go(10, 6, 8); print(len(os.listdir('/proc/self/task')), core.pool_threads())"
    assert python(code, probe.folder) == "1 0"
    code = CHILD + "go(10000, 1, 3); print(len(os.listdir('/proc/self/task')), core.pool_threads())"
    assert python(code, probe.folder) == "3 2"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_a_working_pool(probe):
    code = (
        CHILD
        + """
import threading
go(1000, 1, 3)
stop = False
def busy():
    while not stop: go(1000, 1, 3, 100)
others = [threading.Thread(target=busy) for _ in range(2)]
for t in others: t.start()
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        assert core.pool_threads() == 0
        go(1000, 1, 3, 100)
        os._exit(0 if core.pool_threads() == 2 and len(os.listdir('/proc/self/task')) == 3 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    go(1000, 1, 3)
stop = True
for t in others: t.join()
print("ok")
"""
    )
    assert python("import warnings; warnings.simplefilter('ignore')\n" + code, probe.folder) == "ok"


def test_idle_workers_burn_no_cpu_time(probe):
    probe(1000, 1, 4)
    time.sleep(0.01)  # the look-out after a region is 50 microseconds
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.01


def test_the_pool_works_without_looking_out(probe):
    code = CHILD + "go(1000, 1, 2)\nprint(core.spin_us())"
    assert python(code, probe.folder, EVORT_SPIN_US="0") == "0"
    assert python(code, probe.folder, EVORT_SPIN_US="") == "200"


def test_spin_is_checked(monkeypatch):
    for bad in ("-1", "two", "1.5", "1000001"):
        monkeypatch.setenv("EVORT_SPIN_US", bad)
        with pytest.raises(ValueError, match="EVORT_SPIN_US"):
            core.spin_us()


def test_default_threads(monkeypatch):
    monkeypatch.delenv("EVORT_NUM_THREADS", raising=False)
    assert core.default_threads() == core.cpu_count()
    monkeypatch.setenv("EVORT_NUM_THREADS", "3")
    assert core.default_threads() == 3
    for bad in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("EVORT_NUM_THREADS", bad)
        with pytest.raises(ValueError, match="EVORT_NUM_THREADS"):
            core.default_threads()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_cpu_count_respects_affinity():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    assert python(code + "from evort._kernels import core; print(core.cpu_count())") == "1"


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000"}, 0.0),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, 0.5),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "300000 100000"}, 3.0),
        ("4:cpuset:/\n3:cpu,cpuacct:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "20000",
                                            "cpu,cpuacct/x/cpu.cfs_period_us": "10000"}, 2.0),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 0.0),
        ("not a cgroup line\n0::\n:::\n", {}, 0.0),
        ("0::/" + "x" * 5000 + "\n", {}, 0.0),
    ],
)  # fmt: skip
def test_cgroup_quota(tmp_path, membership, files, quota):
    (tmp_path / "cgroup").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert core.cpu_quota(str(tmp_path / "cgroup"), str(tmp_path / "root")) == quota


def test_no_cgroup_file_means_no_quota(tmp_path):
    assert core.cpu_quota(str(tmp_path / "absent"), str(tmp_path)) == 0.0
