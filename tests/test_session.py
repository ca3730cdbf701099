"""Sessions: inputs and outputs, threads, pickling, allocations, errors."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest
from support import make_model

import evort
from evort.errors import ExecutionError, InputError, UnsupportedError
from evort.etm import write
from evort.graph import Node
from evort.session import Session
from evort.types import DType

F = DType.FLOAT


def small_model():
    """y = relu(x @ w + x0) with symbolic rows."""
    rng = np.random.default_rng(0)
    nodes = [Node("MatMul", ["x", "w"], ["a"]), Node("Add", ["a", "b"], ["c"]), Node("Relu", ["c"], ["y"])]
    constants = {"w": rng.standard_normal((8, 4)).astype(np.float32), "b": np.ones(4, np.float32)}
    return make_model(nodes, {"x": (F, ("n", 8))}, ["y"], constants)


def expected(x):
    model = small_model()
    return np.maximum(x @ model.graph.constant("w") + 1, 0)


def test_run_call_and_run_into(tmp_path):
    path = tmp_path / "m.etm"
    write(small_model(), path)
    session = evort.load(path, threads=1)
    assert [(v.name, v.dtype, v.shape) for v in session.inputs] == [("x", F, ("n", 8))]
    assert [v.name for v in session.outputs] == ["y"]
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    np.testing.assert_allclose(session.run({"x": x})["y"], expected(x), rtol=1e-5)
    np.testing.assert_allclose(session(x), expected(x), rtol=1e-5)
    np.testing.assert_allclose(session(x=x), expected(x), rtol=1e-5)
    y = np.empty((3, 4), np.float32)
    for kind in (dict, OrderedDict):
        y[...] = 0
        session.run_into(kind(x=x), kind(y=y))
        np.testing.assert_allclose(y, expected(x), rtol=1e-5)
    # A transposed (not contiguous) input and one of another row count.
    np.testing.assert_allclose(session(np.asfortranarray(x)), expected(x), rtol=1e-5)
    np.testing.assert_allclose(session(x[:1]), expected(x[:1]), rtol=1e-5)


def test_loads_from_bytes_and_read_only_files(tmp_path):
    data = write(small_model(), None)
    x = np.ones((1, 8), np.float32)
    np.testing.assert_allclose(evort.load(data)(x), expected(x), rtol=1e-5)
    np.testing.assert_allclose(evort.load(bytearray(data))(x), expected(x), rtol=1e-5)
    path = tmp_path / "m.etm"
    path.write_bytes(data)
    path.chmod(0o444)
    np.testing.assert_allclose(evort.load(str(path))(x), expected(x), rtol=1e-5)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "missing"),
        ({"x": np.ones((1, 8), np.float32), "z": np.ones(1)}, "unknown input 'z'"),
        ({"x": np.ones((1, 8))}, "float64"),
        ({"x": np.ones((1, 7), np.float32)}, r"shape \[1, 7\]"),
        ({"x": np.ones(8, np.float32)}, r"shape \[8\]"),
    ],
)
def test_wrong_inputs_say_what_is_wrong(feeds, message):
    with pytest.raises(InputError, match=message):
        Session(small_model(), threads=1).run(feeds)


def test_run_into_checks_its_outputs():
    session = Session(small_model(), threads=1)
    x = np.ones((2, 8), np.float32)
    for bad, message in [
        ({"y": np.empty((2, 5), np.float32)}, "the model gives"),
        ({"y": np.empty((2, 4))}, "float64"),
        ({"z": np.empty((2, 4), np.float32)}, "unknown output"),
        ({"y": np.empty((4, 2), np.float32).T}, "C-contiguous"),
        ({"y": x.reshape(-1)[:8].reshape(2, 4)}, "overlaps"),
    ]:
        with pytest.raises(InputError, match=message):
            session.run_into({"x": x}, bad)


def test_run_into_allocates_nothing_once_planned():
    session = Session(small_model(), threads=1)
    feeds, outs = {"x": np.ones((64, 8), np.float32)}, {"y": np.empty((64, 4), np.float32)}
    for _ in range(3):
        session.run_into(feeds, outs)
    tracemalloc.start()
    try:
        for _ in range(50):  # Python's free lists fill up
            session.run_into(feeds, outs)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(50):
            session.run_into(feeds, outs)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # What Python itself needs for a call (frames, tuples, a dictionary), far below one row of the data, and nothing
    # of it stays.
    assert after - before < 256
    assert peak - before < 4096


def test_many_threads_share_a_session():
    session = Session(small_model(), threads=1)
    failures = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for n in rng.integers(1, 20, 50):
            x = rng.standard_normal((n, 8)).astype(np.float32)
            if not np.allclose(session(x), expected(x), rtol=1e-5, atol=1e-6):
                failures.append(seed)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not failures


def test_gil_is_released_while_kernels_run():
    n = 700
    model = make_model([Node("MatMul", ["x", "x"], ["y"])], {"x": (F, (n, n))}, ["y"])
    session = Session(model, threads=1)
    x = np.ones((n, n), np.float32)
    session(x)
    start = time.perf_counter()
    session(x)
    once = time.perf_counter() - start
    ticks, running = [0], [True]

    def count():
        while running[0]:
            ticks[0] += 1
            time.sleep(once / 50)

    counter = threading.Thread(target=count)
    counter.start()
    before = ticks[0]
    for _ in range(5):
        session(x)
    during = ticks[0] - before
    running[0] = False
    counter.join()
    # With the GIL held the counter would move between runs only: at most once for each of the five.
    assert during > 10


def test_single_thread_session_starts_no_thread():
    code = (
        "import os, numpy as np; from evort.session import Session; from support import node_model\n"
        "x = np.ones((300, 300), np.float32)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "s = Session(node_model('MatMul', [x, x]), threads=1); s(x, x)\n"
        "assert len(os.listdir('/proc/self/task')) == before\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])}
    subprocess.run([sys.executable, "-P", "-c", code], check=True, env=env)


def test_pickled_sessions_reopen_their_file(tmp_path):
    path = tmp_path / "m.etm"
    write(small_model(), path)
    x = np.ones((2, 8), np.float32)
    for source in (path, write(small_model(), None)):
        copy = pickle.loads(pickle.dumps(evort.load(source, threads=1)))
        np.testing.assert_allclose(copy(x), expected(x), rtol=1e-5)
        assert copy.threads == 1
    with pytest.raises(TypeError, match="file"):
        pickle.dumps(Session(small_model()))


def test_threads_and_device_are_checked():
    for threads in (0, -1, 1.5, "2"):
        with pytest.raises(ValueError, match="threads"):
            Session(small_model(), threads=threads)
    with pytest.raises(UnsupportedError, match="device"):
        Session(small_model(), device="tpu")


def test_environment_sets_the_thread_count(monkeypatch):
    monkeypatch.setenv("EVORT_NUM_THREADS", "3")
    assert Session(small_model()).threads == 3
    monkeypatch.setenv("EVORT_NUM_THREADS", "none")
    with pytest.raises(ValueError, match="EVORT_NUM_THREADS"):
        Session(small_model())


def test_kernel_errors_name_the_node():
    nodes = [Node("Gather", ["k", "i"], ["y"], name="lookup")]
    model = make_model(nodes, {"i": (DType.INT64, (2,))}, ["y"], {"k": np.arange(5, dtype=np.float32)})
    session = Session(model, threads=1)
    with pytest.raises(ExecutionError, match=r"'lookup'.*outside"):
        session(np.array([1, 5]))
    np.testing.assert_array_equal(session(np.array([1, -1])), [1, 4])


def test_unknown_operators_name_near_ones():
    with pytest.raises(UnsupportedError, match="did you mean Relu"):
        Session(make_model([Node("Relo", ["x"], ["y"])], {"x": (F, (1,))}, ["y"]))


def test_registered_python_operator():
    from evort.ops import Attr, Op, op

    @op("Twice", domain="test.session")
    class Twice(Op):
        inputs, outputs = ("X",), ("Y",)
        attrs = {"times": Attr("int", 2)}

        def infer(self, c):
            return [c.like(0)]

        def reference(self, c, x):
            return x * c["times"]

    model = make_model(
        [Node("Twice", ["x"], ["a"], {"times": 3}, "test.session"), Node("Neg", ["a"], ["y"])], {"x": (F, (3,))}, ["y"]
    )
    data = write(model, None)
    np.testing.assert_array_equal(evort.load(data)(np.arange(3, dtype=np.float32)), [0, -3, -6])


def test_profile_times_every_step():
    session = Session(small_model(), threads=1)
    profile = session.profile({"x": np.ones((200, 8), np.float32)})
    assert [len(spent) for _, spent in profile] == [len(plan.rows) for plan, _ in profile]
    assert all((spent > 0).all() for _, spent in profile)
