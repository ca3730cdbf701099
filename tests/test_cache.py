"""Plans that are kept for the next start: the same results, from the plan alone; anything amiss is planned anew."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from support import ROOT, make_model, node_model

import evort
import evort_tools
from evort import cache as cache_module
from evort._kernels import core
from evort.errors import ExecutionError, InputError, MemoryBudgetError
from evort.etm import write
from evort.graph import Graph, Model, Node, Tensor
from evort.types import DType

LENET = str(ROOT / "models" / "lenet.etm")
DIGIT = np.random.default_rng(1).random((1, 1, 28, 28), np.float32)


def is_kept(session: evort.Session) -> bool:
    """Whether a session runs a kept plan, without its model."""
    return "model" not in vars(session)


def product(weights: np.ndarray, rows: int | str = "n") -> Model:
    """X [rows, k] by constant weights [k, m]."""
    graph = Graph("product")
    graph.inputs = [graph.add(Tensor("x", DType.FLOAT, (rows, len(weights))))]
    graph.add(Tensor("w", DType.FLOAT, weights.shape, weights))
    graph.nodes = [Node("MatMul", ["x", "w"], ["y"])]
    graph.outputs = ["y"]
    return Model(graph)


def test_the_next_start_runs_the_kept_plan(tmp_path):
    first = evort.load(LENET, threads=1, cache=tmp_path / "plans")
    expected = first(DIGIT)
    (plan,) = (tmp_path / "plans").iterdir()
    assert plan.name.startswith("lenet-") and (tmp_path / "plans").stat().st_mode & 0o777 == 0o700
    second = evort.load(LENET, threads=1, cache=tmp_path / "plans")
    assert not is_kept(first) and is_kept(second)
    np.testing.assert_array_equal(second(DIGIT), expected)
    name = next(v.name for v in second.inputs)
    np.testing.assert_array_equal(second(**{name: DIGIT}), expected)
    into = np.empty_like(expected)
    second.run_into({name: DIGIT}, {second.outputs[0].name: into})
    np.testing.assert_array_equal(into, expected)
    assert [repr(v) for v in second.inputs + second.outputs] == [repr(v) for v in first.inputs + first.outputs]
    assert is_kept(second) and is_kept(pickle.loads(pickle.dumps(second)))


def test_what_only_the_model_tells_reads_it(tmp_path):
    evort.load(LENET, threads=1, cache=tmp_path)(DIGIT)
    plain = evort.load(LENET, threads=1)
    plain(DIGIT)
    for ask in (
        lambda s: s.metadata,
        lambda s: [repr(v) for v in s.outputs],
        lambda s: {**s.memory().as_dict(), "arenas": 0},  # those of programs that ran
        lambda s: [len(p.rows) for p in s.plans()],
        lambda s: len(s.profile({s.inputs[0].name: DIGIT})[0][1]),
        lambda s: len(s.model.graph.nodes),
        lambda s: s.tuned,
        repr,
    ):
        session = evort.load(LENET, threads=1, cache=tmp_path)
        assert is_kept(session)
        assert ask(session) == ask(plain)
        np.testing.assert_array_equal(session(DIGIT), plain(DIGIT))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = evort.load(LENET, threads=1, cache=tmp_path).nothing


def test_other_shapes_are_planned(tmp_path):
    w = np.random.default_rng(2).random((5, 3), np.float32)
    write(product(w), tmp_path / "m.etm")
    x = np.random.default_rng(3).random((7, 5), np.float32)
    for rows in (4, 4, 7, 2):
        session = evort.load(tmp_path / "m.etm", threads=1, cache=tmp_path / "plans")
        expected = evort.load(tmp_path / "m.etm", threads=1)
        np.testing.assert_array_equal(session(x[:rows]), expected(x[:rows]))
        np.testing.assert_array_equal(session(x[:4]), expected(x[:4]))
    assert len(list((tmp_path / "plans").iterdir())) == 1
    session = evort.load(tmp_path / "m.etm", threads=1, cache=tmp_path / "plans")
    with pytest.raises(InputError, match="shape"):
        session(x[:, :2])
    with pytest.raises(InputError, match="missing"):
        session.run({})
    np.testing.assert_array_equal(session(np.asfortranarray(x)), expected(x))


def test_a_plan_is_for_one_file_thread_count_instruction_set_and_shape(tmp_path):
    plans = tmp_path / "plans"
    rng = np.random.default_rng(4)
    x = rng.random((4, 6), np.float32)
    for _ in range(3):  # the same path and size each time
        w = rng.random((6, 2), np.float32)
        write(product(w), tmp_path / "m.etm")
        for _ in range(2):
            session = evort.load(tmp_path / "m.etm", threads=1, cache=plans)
            np.testing.assert_allclose(session(x), x @ w, rtol=1e-5)
        assert is_kept(session)
        assert len(list(plans.iterdir())) == 1
    assert not is_kept(evort.load(tmp_path / "m.etm", threads=2, cache=plans))
    assert not is_kept(evort.load(tmp_path / "m.etm", threads=1, cache=plans, shapes={"x": (4, 6)}))
    isa = core.isa()
    try:
        for name in core.available_isas():
            core.select_isa(name)
            session = evort.load(tmp_path / "m.etm", threads=1, cache=plans)
            assert is_kept(session) == (name == isa)
            np.testing.assert_allclose(session(x), x @ w, rtol=1e-5)
    finally:
        core.select_isa(isa)


def test_damaged_plans_are_made_anew(tmp_path):
    session = evort.load(LENET, threads=1, cache=tmp_path)
    expected = session(DIGIT)
    (plan,) = tmp_path.iterdir()
    whole = plan.read_bytes()
    length = int.from_bytes(whole[24:32], "little")
    rng = np.random.default_rng(5)
    damaged = [whole[:n] for n in (0, 1, 16, 31, 32, 40, len(whole) - 1)] + [whole + b"x"]
    for at in [0, 9, 17, 24, 30, *rng.integers(32, 32 + length, 40)]:
        damaged.append(whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :])
    for data in damaged:
        plan.write_bytes(data)
        session = evort.load(LENET, threads=1, cache=tmp_path)
        assert not is_kept(session)
        np.testing.assert_array_equal(session(DIGIT), expected)
        assert plan.read_bytes() == whole


def test_the_folder_must_be_the_users_own(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(PermissionError, match="writable for nobody else"):
        evort.load(LENET, cache=tmp_path / "open")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="must be a folder"):
        evort.load(LENET, cache=tmp_path / "file")


def test_a_folder_that_cannot_be_written_to_is_a_warning(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(cache_module, "write_atomically", full)
    session = evort.load(LENET, threads=1, cache=tmp_path)
    with pytest.warns(RuntimeWarning, match="No space left"):
        expected = session(DIGIT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        np.testing.assert_array_equal(session(DIGIT), expected)


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EVORT_CACHE", str(tmp_path / "plans"))
    for _ in range(2):
        session = evort.load(LENET, threads=1)
        session(DIGIT)
    assert is_kept(session)
    session = evort.load(LENET, threads=1, checksum=True)
    assert not is_kept(session)
    with open(LENET, "rb") as file:
        assert not is_kept(evort.load(file.read(), threads=1))


def test_kernel_errors_name_the_node(tmp_path):
    data, good, bad = np.arange(6, dtype=np.float32), np.array([1, 5]), np.array([1, 6])
    write(node_model("Gather", [data, good]), tmp_path / "m.etm")
    evort.load(tmp_path / "m.etm", threads=1, cache=tmp_path / "plans")(data, good)
    session = evort.load(tmp_path / "m.etm", threads=1, cache=tmp_path / "plans")
    np.testing.assert_array_equal(session(data, good), data[good])
    assert is_kept(session)
    with pytest.raises(ExecutionError, match=r"Gather 'node'.*outside its axis"):
        session(data, bad)
    np.testing.assert_array_equal(session(data, good), data[good])


def branches() -> Model:
    """y = x + 1 where flag, else x * 3, with the condition computed."""

    def branch(op: str, value: float) -> Graph:
        graph = Graph(op)
        graph.add(Tensor("c", DType.FLOAT, (), np.array(value, np.float32)))
        graph.nodes, graph.outputs = [Node(op, ["x", "c"], [f"{op}_y"])], [f"{op}_y"]
        return graph

    graph = Graph("branches")
    graph.inputs = [graph.add(Tensor("x", DType.FLOAT, (2, 3))), graph.add(Tensor("rate", DType.INT64, ()))]
    graph.add(Tensor("limit", DType.INT64, (), np.array(16000)))
    graph.nodes = [
        Node("Equal", ["rate", "limit"], ["flag"]),
        Node("If", ["flag"], ["y"], {"then_branch": branch("Add", 1), "else_branch": branch("Mul", 3)}),
    ]
    graph.outputs = ["y"]
    return Model(graph)


def test_a_plan_that_inputs_choose_is_for_their_values(tmp_path):
    write(branches(), tmp_path / "m.etm")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    evort.load(tmp_path / "m.etm", threads=1, cache=tmp_path / "plans")(x, np.array(16000))
    session = evort.load(tmp_path / "m.etm", threads=1, cache=tmp_path / "plans")
    np.testing.assert_array_equal(session(x, np.array(16000)), x + 1)
    assert is_kept(session)
    np.testing.assert_array_equal(session(x, np.array(8000)), x * 3)
    np.testing.assert_array_equal(session(x, np.array(16000)), x + 1)


def test_what_is_not_all_drivers_is_not_kept(tmp_path):
    x = np.array([[1.0, 2.0], [3.0, 4.0]], np.float64)
    write(node_model("Det", [x]), tmp_path / "m.etm")
    for _ in range(2):
        session = evort.load(tmp_path / "m.etm", cache=tmp_path / "plans")
        np.testing.assert_allclose(session(x), -2)
    assert not is_kept(session) and not list((tmp_path / "plans").iterdir())


def test_a_budget_holds_for_a_kept_plan(tmp_path):
    session = evort.load(LENET, threads=1, cache=tmp_path, max_memory=1 << 30)
    session(DIGIT)
    memory = session.memory()
    needed = memory.weights_mapped + memory.weights_copied + memory.arena
    assert is_kept(evort.load(LENET, threads=1, cache=tmp_path, max_memory=needed))
    with pytest.raises(MemoryBudgetError):
        evort.load(LENET, threads=1, cache=tmp_path, max_memory=needed - 1)(DIGIT)


def test_a_budget_is_held_against_the_largest_shapes(tmp_path):
    """As without a kept plan: where the model bounds its sizes, loading fails if the largest ones do not fit."""
    nodes = [Node("MatMul", ["x", "w"], ["h"]), Node("MatMul", ["h", "v"], ["y"])]  # h takes 4,000 bytes for each of n
    weights = {"w": np.ones((4, 1000), np.float32), "v": np.ones((1000, 4), np.float32)}
    model = make_model(nodes, {"x": (DType.FLOAT, ("n", 4))}, ["y"], weights)
    model.bounds = {"n": (1, 64)}
    write(model, tmp_path / "m.etm")
    x = np.ones((2, 4), np.float32)
    plans = {"threads": 1, "cache": tmp_path / "plans"}
    for options in (plans, {**plans, "max_memory": 1 << 20}):
        evort.load(tmp_path / "m.etm", **options)(x)
        assert is_kept(evort.load(tmp_path / "m.etm", **options))
    with pytest.raises(MemoryBudgetError):
        evort.load(tmp_path / "m.etm", **plans, max_memory=50_000)


def test_packed_weights_are_kept_too(tmp_path):
    evort_tools.quantize(LENET, tmp_path / "m.etm", scheme="dynamic", prefer="size")
    expected = evort.load(tmp_path / "m.etm", threads=1)(DIGIT)
    for _ in range(2):
        session = evort.load(tmp_path / "m.etm", threads=1, cache=tmp_path / "plans")
        np.testing.assert_array_equal(session(DIGIT), expected)
    assert is_kept(session)


def test_many_threads_share_a_kept_plan(tmp_path):
    expected = evort.load(LENET, threads=1, cache=tmp_path)(DIGIT)
    for _ in range(20):
        session, wrong = evort.load(LENET, threads=1, cache=tmp_path), []

        def work(i, session=session, wrong=wrong):
            try:
                for _ in range(5):
                    if not np.array_equal(session(DIGIT), expected):
                        wrong.append("differs")
                if i == 3:
                    session.memory()  # which reads the model
            except Exception as error:
                wrong.append(repr(error))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_processes_that_write_the_same_plan(tmp_path):
    code = (
        f"import numpy as np, evort\ns = evort.load({LENET!r}, threads=1, cache={str(tmp_path)!r})\n"
        "s(np.zeros((1, 1, 28, 28), np.float32))\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    running = [subprocess.Popen([sys.executable, "-P", "-c", code], env=env) for _ in range(4)]
    assert [p.wait() for p in running] == [0] * 4
    assert len(list(tmp_path.iterdir())) == 1
    assert is_kept(evort.load(LENET, threads=1, cache=tmp_path))
