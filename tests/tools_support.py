"""What the tests of the converter share: small ONNX models, and how they are run before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from evort.backends.reference import interpret
from evort.graph import Model
from evort_tools.importer import import_model, read
from evort_tools.passes import ORDER, node_count, run_passes
from evort_tools.passes.fitting import fitted
from evort_tools.passes.shapes import Shapes

node = helper.make_node


def onnx_model(
    nodes: Sequence[NodeProto],
    inputs: dict[str, tuple[type | int, Sequence[Any]]],
    outputs: Sequence[str] = ("y",),
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 21,
    domains: dict[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model; inputs are (NumPy type or ONNX element type, shape) by name."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(n, _element(t), list(s)) for n, (t, s) in inputs.items()],
        [helper.make_empty_tensor_value_info(n) for n in outputs],
        [numpy_helper.from_array(v, n) for n, v in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in (domains or {}).items())]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))


def _element(kind: type | int) -> int:
    return kind if isinstance(kind, int) else helper.np_dtype_to_tensor_dtype(np.dtype(kind))


def imported(model: Any, input_shapes: dict[str, Sequence[Any]] | None = None) -> tuple[Model, Shapes]:
    """The graph before any pass."""
    found, shapes = import_model(read(model), input_shapes)
    return found, fitted(found.graph, shapes)


def optimized(model: Any, *only: str, input_shapes: dict[str, Sequence[Any]] | None = None) -> Model:
    """The graph after the passes named (all where none is), and dead code."""
    found, shapes = imported(model, input_shapes)
    keep = {"dead_code", *(only or ORDER)}
    run_passes(found, shapes, [name for name in ORDER if name not in keep])
    return found


def run(model: Model, feeds: dict[str, Any]) -> list[Any]:
    """The outputs, by the operators' references."""
    return interpret(model.graph, feeds)


def random_feeds(model: Model, seed: int = 0, sizes: dict[str, int] | None = None) -> dict[str, np.ndarray]:
    """Inputs of a graph: normal floats, small integers."""
    from evort.types import STORAGE

    rng = np.random.default_rng(seed)
    feeds = {}
    for name in model.graph.inputs:
        tensor = model.graph.tensors[name]
        shape = [d if isinstance(d, int) else (sizes or {})[d] for d in tensor.shape]
        storage = STORAGE[tensor.dtype]
        drawn = rng.standard_normal(shape) if storage.kind == "f" else rng.integers(0, 5, shape)
        feeds[name] = drawn.astype(storage)
    return feeds


def ops_of(model: Model) -> list[str]:
    """The operators of a graph, in order."""
    return [n.op for n in model.graph.nodes]


def check_pass(
    model: onnx.ModelProto,
    *only: str,
    feeds: dict[str, np.ndarray] | None = None,
    rtol: float = 2e-6,
    input_shapes: dict[str, Sequence[Any]] | None = None,
    sizes: dict[str, int] | None = None,
) -> Model:
    """Runs a model before and after passes and holds the results to each other; returns the graph after.

    rtol: of the largest magnitude of an output. Float32 sums of a few dozen terms in another order, or with factors
    folded into weights, differ by some 2^-24 = 6e-8 of their terms' magnitudes for each term.
    """
    before, _ = imported(model, input_shapes)
    after = optimized(model, *only, input_shapes=input_shapes)
    feeds = random_feeds(before, sizes=sizes) if feeds is None else feeds
    assert before.graph.outputs == after.graph.outputs
    for name, a, b in zip(before.graph.outputs, run(before, feeds), run(after, feeds), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, name
        if a.dtype.kind == "f":
            finite = np.isfinite(a)
            np.testing.assert_array_equal(finite, np.isfinite(b))
            np.testing.assert_array_equal(a[~finite], b[~finite])
            scale = float(np.abs(a[finite]).max()) if finite.any() else 0.0
            np.testing.assert_allclose(b[finite], a[finite], rtol=0, atol=rtol * max(scale, 1e-30))
        else:
            np.testing.assert_array_equal(a, b)
    assert node_count(after.graph) <= node_count(before.graph)
    return after
