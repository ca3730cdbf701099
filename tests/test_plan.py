"""The planner: no two live tensors overlap, views and in-place steps take no memory, and the arena is near the least
that liveness allows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import make_graph, make_model

from evort.errors import MemoryBudgetError, ShapeError
from evort.graph import Node
from evort.plan import best_fit
from evort.session import Session
from evort.types import DType

F = DType.FLOAT


def run_both(model, feeds):
    """Outputs of the planned run, held to those of the reference interpreter."""
    planned = Session(model, threads=1)
    expected = Session(model, device="reference").run(feeds)
    for _ in range(2):  # the second run reuses the arena
        got = planned.run(feeds)
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-6, atol=1e-6)
            assert got[name].dtype == value.dtype
    return planned


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 20), st.integers(0, 8)), min_size=1, max_size=40))
def test_best_fit_never_overlaps_and_covers_the_demand(buffers):
    sizes = np.array([64 * n for n, _, _ in buffers], np.int64)
    starts = np.array([s for _, s, _ in buffers], np.int64)
    ends = np.array([s + d for _, s, d in buffers], np.int64)
    total, found = best_fit(sizes.tolist(), starts.tolist(), ends.tolist())
    offsets = np.array(found)
    assert (offsets >= 0).all() and (offsets % 64 == 0).all()
    assert total == (offsets + sizes).max()
    for i in range(len(buffers)):
        for j in range(i):
            alive_together = starts[i] <= ends[j] and starts[j] <= ends[i]
            apart = offsets[i] + sizes[i] <= offsets[j] or offsets[j] + sizes[j] <= offsets[i]
            assert apart or not alive_together
    demand = max(sizes[(starts <= t) & (t <= ends)].sum() for t in range(30))
    assert demand <= total <= sizes.sum()


def test_best_fit_tries_other_orders():
    """Largest first, these take 832 bytes."""
    sizes, starts, ends = [256, 320, 192, 64, 192, 64], [1, 4, 0, 3, 1, 3], [4, 4, 2, 3, 3, 5]
    assert best_fit(sizes, starts, ends)[0] == 640


def test_chain_of_elementwise_steps_takes_one_buffer():
    nodes = [Node("Relu", ["x"], ["a"]), *(Node("Neg", [f"{'abcd'[i]}"], ["bcde"[i]]) for i in range(3))]
    nodes.append(Node("MatMul", ["d", "w"], ["y"]))
    model = make_model(nodes, {"x": (F, (16, 32))}, ["y"], {"w": np.ones((32, 8), np.float32)})
    session = run_both(model, {"x": np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)})
    memory = session.memory()
    assert memory.arena - memory.scratch <= 16 * 32 * 4 + 64


def test_output_is_written_by_its_producer():
    model = make_model([Node("Relu", ["x"], ["a"]), Node("Neg", ["a"], ["y"])], {"x": (F, (100,))}, ["y"])
    session = run_both(model, {"x": np.linspace(-1, 1, 100, dtype=np.float32)})
    assert session.memory().arena == 0
    assert len(session.plans()[0].rows) == 2


def test_views_take_no_step_and_no_memory():
    nodes = [
        Node("Neg", ["x"], ["a"]),
        Node("Reshape", ["a", "shape"], ["b"]),
        Node("Split", ["b"], ["c", "d"], {"axis": 0, "num_outputs": 2}),
        Node("Add", ["c", "d"], ["y"]),
    ]
    model = make_model(nodes, {"x": (F, (4, 6))}, ["y"], {"shape": np.array([2, 12], np.int64)})
    session = run_both(model, {"x": np.arange(24, dtype=np.float32).reshape(4, 6)})
    assert [s.call.node.op for s in session.plans()[0].steps] == ["Neg", "Add"]
    assert session.memory().arena <= 128


def test_concat_parts_are_written_in_place():
    nodes = [
        Node("Neg", ["x"], ["a"]),
        Node("Abs", ["x"], ["b"]),
        Node("Concat", ["a", "b"], ["y"], {"axis": 1}),
    ]
    model = make_model(nodes, {"x": (F, (1, 3, 8))}, ["y"])
    session = run_both(model, {"x": np.random.default_rng(1).standard_normal((1, 3, 8)).astype(np.float32)})
    assert session.memory().arena == 0


def test_concat_of_one_tensor_twice_and_of_constants():
    nodes = [Node("Neg", ["x"], ["a"]), Node("Concat", ["a", "k", "a", "x"], ["y"], {"axis": 0})]
    model = make_model(nodes, {"x": (F, (2, 3))}, ["y"], {"k": np.full((1, 3), 7, np.float32)})
    run_both(model, {"x": np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32)})


def test_in_place_does_not_destroy_what_is_still_needed():
    nodes = [
        Node("Neg", ["x"], ["a"]),
        Node("Relu", ["a"], ["b"]),
        Node("Add", ["a", "b"], ["c"]),
        Node("Mul", ["c", "c"], ["d"]),
        Node("Add", ["d", "b"], ["y"]),
    ]
    model = make_model(nodes, {"x": (F, (5, 7))}, ["y", "c"])
    run_both(model, {"x": np.random.default_rng(2).standard_normal((5, 7)).astype(np.float32)})


def test_an_operand_that_comes_twice_stays_whole():
    nodes = [Node("Neg", ["x"], ["a"]), Node("Abs", ["x"], ["b"]), Node("Sum", ["a", "b", "a"], ["y"])]
    model = make_model([*nodes, Node("Neg", ["y"], ["z"])], {"x": (F, (5, 7))}, ["z"])
    run_both(model, {"x": np.random.default_rng(3).standard_normal((5, 7)).astype(np.float32)})


def test_inputs_and_constants_may_be_outputs():
    nodes = [Node("Reshape", ["x", "s"], ["v"]), Node("Neg", ["x"], ["n"])]
    model = make_model(nodes, {"x": (F, (2, 3))}, ["x", "v", "k", "n"],
                       {"s": np.array([6], np.int64), "k": np.arange(3.0, dtype=np.float32)})  # fmt: skip
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    session = Session(model, threads=1)
    got = session.run({"x": x})
    np.testing.assert_array_equal(got["x"], x)
    np.testing.assert_array_equal(got["v"], x.reshape(6))
    np.testing.assert_array_equal(got["k"], [0, 1, 2])
    assert not any(np.may_share_memory(x, value) for value in got.values())


def test_shape_arithmetic_needs_no_step():
    nodes = [
        Node("Shape", ["x"], ["s"]),
        Node("Gather", ["s", "zero"], ["n"]),
        Node("Concat", ["n", "minus"], ["t"], {"axis": 0}),
        Node("Reshape", ["x", "t"], ["v"]),
        Node("Neg", ["v"], ["y"]),
    ]
    constants = {"zero": np.array([0], np.int64), "minus": np.array([-1], np.int64)}
    model = make_model(nodes, {"x": (F, ("n", 2, 3))}, ["y"], constants)
    session = Session(model, threads=1)
    for n in (1, 4):
        x = np.random.default_rng(n).standard_normal((n, 2, 3)).astype(np.float32)
        np.testing.assert_array_equal(session.run({"x": x})["y"], -x.reshape(n, 6))
    assert [[s.call.node.op for s in p.steps] for p in session.plans()] == [["Neg"], ["Neg"]]


def test_shape_from_a_value_splits_the_plan():
    nodes = [
        Node("Abs", ["s"], ["t"]),
        Node("Neg", ["x"], ["a"]),
        Node("Reshape", ["a", "t"], ["b"]),
        Node("MatMul", ["b", "b"], ["y"]),
    ]
    model = make_model(nodes, {"x": (F, (4,)), "s": (DType.INT64, (2,))}, ["y", "a"])
    session = Session(model, threads=1)
    x = np.arange(4, dtype=np.float32)
    got = session.run({"x": x, "s": np.array([2, -2], np.int64)})
    np.testing.assert_allclose(got["y"], -x.reshape(2, 2) @ -x.reshape(2, 2))
    np.testing.assert_array_equal(got["a"], -x)
    with pytest.raises(ShapeError):
        session.run({"x": x, "s": np.array([3, 2], np.int64)})


def test_data_dependent_shapes():
    nodes = [Node("Relu", ["x"], ["r"]), Node("NonZero", ["r"], ["i"]), Node("Gather", ["k", "i"], ["y"])]
    model = make_model(nodes, {"x": (F, (6,))}, ["y"], {"k": np.arange(10, 16, dtype=np.float32)})
    session = Session(model, threads=1)
    for x in ([1, -1, 2, 0, 3, -2], [-1] * 6, [1] * 6):
        x = np.array(x, np.float32)
        np.testing.assert_array_equal(session.run({"x": x})["y"], np.arange(10, 16)[None, x > 0])


def test_if_becomes_its_branch():
    graphs = {
        name: make_graph([Node(op, ["a"], ["r"])], {}, ["r"], name=name)
        for name, op in (("then_branch", "Abs"), ("else_branch", "Neg"))
    }
    nodes = [Node("Relu", ["x"], ["a"]), Node("If", ["c"], ["y"], graphs), Node("Add", ["y", "a"], ["z"])]
    model = make_model(nodes, {"x": (F, (3,)), "c": (DType.BOOL, ())}, ["z", "y"])
    session = Session(model, threads=1)
    x = np.array([1, -2, 3], np.float32)
    for flag in (True, False, True):
        got = session.run({"x": x, "c": np.array(flag)})
        relu = np.maximum(x, 0)
        np.testing.assert_array_equal(got["y"], relu if flag else -relu)
        np.testing.assert_array_equal(got["z"], got["y"] + relu)
        np.testing.assert_array_equal(
            Session(model, device="reference").run({"x": x, "c": np.array(flag)})["z"], got["z"]
        )


@pytest.mark.parametrize("given_by", ["x", "row"])
def test_what_a_small_input_chooses_is_remembered(given_by):
    """Runs after the first go straight to the branch; a view of an input that the branch reads is not remembered."""
    graphs = {
        name: make_graph([Node(op, [given_by], ["r"])], {}, ["r"], name=name)
        for name, op in (("then_branch", "Abs"), ("else_branch", "Neg"))
    }
    nodes = [
        Node("Reshape", ["x", "flat"], ["row"]),
        Node("Equal", ["rate", "fast"], ["c"]),
        Node("If", ["c"], ["y"], graphs),
    ]
    constants = {"flat": np.array([1, -1], np.int64), "fast": np.array(16000, np.int64)}
    model = make_model(nodes, {"x": (F, (40, 2)), "rate": (DType.INT64, ())}, ["y"], constants)
    session = Session(model, threads=1)
    rng = np.random.default_rng(0)
    for rate in (16000, 8000, 16000, 16000, 8000):
        x = rng.standard_normal((40, 2)).astype(np.float32)
        shape = (40, 2) if given_by == "x" else (1, 80)
        expected = (np.abs(x) if rate == 16000 else -x).reshape(shape)
        feeds = {"x": x, "rate": np.array(rate, np.int64)}
        np.testing.assert_array_equal(session.run(feeds)["y"], expected)
        into = np.empty(shape, np.float32)
        session.run_into(feeds, {"y": into})
        np.testing.assert_array_equal(into, expected)
    (first,) = session._runner.root.plans.values()
    assert len(first.switched) == (2 if given_by == "x" else 0)


def test_loop_carries_values_and_reads_the_outer_graph():
    body = make_graph(
        [
            Node("Add", ["v", "step"], ["next"]),
            Node("Identity", ["next"], ["row"]),
            Node("Less", ["total", "limit"], ["go"]),
            Node("ReduceSum", ["next"], ["total"], {"keepdims": 0}),
        ],
        {"i": (DType.INT64, ()), "cond": (DType.BOOL, ()), "v": (F, (2,))},
        ["go", "next", "row"],
    )
    body.nodes = [body.nodes[0], body.nodes[1], body.nodes[3], body.nodes[2]]
    nodes = [Node("Neg", ["x"], ["step"]), Node("Loop", ["m", "", "x"], ["last", "rows"], {"body": body})]
    model = make_model(
        nodes, {"x": (F, (2,))}, ["last", "rows"],
        {"m": np.array(10, np.int64), "limit": np.array(-3, np.float32)},
    )  # fmt: skip
    for device in ("cpu", "reference"):
        got = Session(model, threads=1, device=device).run({"x": np.array([1, 2], np.float32)})
        # x + step is zero after one step; the sum 0 is not below -3, so the loop stops there.
        np.testing.assert_array_equal(got["rows"], [[0, 0]])
        np.testing.assert_array_equal(got["last"], [0, 0])


def test_plans_are_bounded():
    from evort.runner import MAX_PLANS

    session = Session(make_model([Node("Neg", ["x"], ["y"])], {"x": (F, ("n",))}, ["y"]), threads=1)
    for n in range(1, 3 * MAX_PLANS):
        assert session.run({"x": np.ones(n, np.float32)})["y"].shape == (n,)
    assert len(session.plans()) <= MAX_PLANS


def test_memory_limit_is_checked_before_allocating():
    nodes = [Node("Neg", ["x"], ["a"]), Node("Transpose", ["a"], ["b"]), Node("Neg", ["b"], ["y"])]
    model = make_model(nodes, {"x": (F, (1000, 1000))}, ["y"])
    with pytest.raises(MemoryBudgetError, match="4,000,000") as caught:
        Session(model, threads=1, max_memory=3_999_999)
    assert caught.value.needed >= 4_000_000
    Session(model, threads=1, max_memory=caught.value.needed)


def test_absurd_shapes_are_refused():
    model = make_model([Node("Expand", ["x", "s"], ["y"])], {"x": (F, (1,))}, ["y"],
                       {"s": np.array([1 << 40, 1 << 20], np.int64)})  # fmt: skip
    with pytest.raises(ShapeError, match="limit"):
        Session(model, threads=1)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.data())
def test_random_graphs_equal_the_reference(data):
    """Graphs of views, concats, in-place and ordinary steps over one another, in any order."""
    names, nodes = ["x"], []
    shapes = {"x": (2, 6)}
    for i in range(data.draw(st.integers(1, 14))):
        a = data.draw(st.sampled_from(names))
        b = data.draw(st.sampled_from(names))
        out = f"t{i}"
        kind = data.draw(st.sampled_from(["Neg", "Add", "Concat", "Split", "Reshape", "Transpose", "Relu"]))
        rows = shapes[a][0]
        if kind == "Add" and shapes[a] == shapes[b]:
            nodes.append(Node("Add", [a, b], [out]))
            shapes[out] = shapes[a]
        elif kind == "Concat" and rows + shapes[b][0] <= 32:
            nodes.append(Node("Concat", [a, b], [out], {"axis": 0}))
            shapes[out] = (rows + shapes[b][0], 6)
        elif kind == "Split" and rows % 2 == 0:
            nodes.append(Node("Split", [a], [out, out + "b"], {"axis": 0, "num_outputs": 2}))
            shapes[out] = shapes[out + "b"] = (rows // 2, 6)
            names.append(out + "b")
        elif kind == "Reshape":
            nodes.append(Node("Reshape", [a, "flat"], [out + "f"]))
            nodes.append(Node("Reshape", [out + "f", "six"], [out]))
            shapes[out] = shapes[a]
        elif kind == "Transpose":
            nodes.append(Node("Transpose", [a], [out + "t"], {"perm": [1, 0]}))
            nodes.append(Node("Transpose", [out + "t"], [out], {"perm": [1, 0]}))
            shapes[out] = shapes[a]
        else:
            nodes.append(Node("Neg" if kind == "Neg" else "Relu", [a], [out]))
            shapes[out] = shapes[a]
        names.append(out)
    outputs = data.draw(st.lists(st.sampled_from(names[1:]), min_size=1, max_size=4, unique=True))
    constants = {"flat": np.array([-1], np.int64), "six": np.array([-1, 6], np.int64)}
    model = make_model(nodes, {"x": (F, (2, 6))}, outputs, constants)
    x = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    session = run_both(model, {"x": x})
    memory = session.memory()
    assert memory.lower_bound <= memory.arena
